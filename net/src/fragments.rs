//! Puts datagrams together that a guest sent in several packets.
//!
//! Invariants: at most [`DATAGRAMS_MAX`] wait, the oldest goes first; pieces that overlap end their datagram, as
//! nobody sound sends such; memory is bounded by the largest datagram. Source: RFC 791, "Fragmentation".

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

const DATAGRAMS_MAX: usize = 16;
const LEN_MAX: usize = 65535;
/// How long a datagram may take (RFC 1122, "Reassembly").
const PATIENCE: Duration = Duration::from_secs(30);

/// What pieces of one datagram have in common: addresses, identification, protocol.
pub type Name = (Ipv4Addr, Ipv4Addr, u16, u8);

#[derive(Debug)]
struct Datagram {
    name: Name,
    since: Instant,
    /// Offset and bytes, in order, none empty.
    pieces: Vec<(usize, Vec<u8>)>,
    /// Known once the last piece is here.
    len: Option<usize>,
}

#[derive(Debug, Default)]
pub struct Fragments(Vec<Datagram>);

impl Fragments {
    /// Takes a piece; returns the payload if it was the last missing.
    pub fn add(
        &mut self,
        name: Name,
        offset: usize,
        more: bool,
        piece: &[u8],
        now: Instant,
    ) -> Option<Vec<u8>> {
        self.0.retain(|datagram| now.duration_since(datagram.since) < PATIENCE);
        let end = offset + piece.len();
        if piece.is_empty() || end > LEN_MAX || more && !piece.len().is_multiple_of(8) {
            return None;
        }
        let at = self.0.iter().position(|datagram| datagram.name == name).unwrap_or_else(|| {
            if self.0.len() == DATAGRAMS_MAX {
                self.0.remove(0);
            }
            self.0.push(Datagram { name, since: now, pieces: Vec::new(), len: None });
            self.0.len() - 1
        });
        if !self.0[at].insert(offset, more, piece) {
            self.0.remove(at);
            return None;
        }
        self.0[at]
            .is_whole()
            .then(|| self.0.remove(at).pieces.into_iter().flat_map(|(_, bytes)| bytes).collect())
    }
}

impl Datagram {
    /// False if the piece contradicts another.
    fn insert(&mut self, offset: usize, more: bool, piece: &[u8]) -> bool {
        let end = offset + piece.len();
        let at = self.pieces.partition_point(|(start, _)| *start < offset);
        if self.pieces.get(at).is_some_and(|(start, bytes)| *start == offset && bytes == piece) {
            // Sent twice.
            return true;
        }
        let before = at.checked_sub(1).map(|at| &self.pieces[at]);
        let overlaps = before.is_some_and(|(start, bytes)| start + bytes.len() > offset)
            || self.pieces.get(at).is_some_and(|(start, _)| end > *start)
            || self.len.is_some_and(|len| end > len || !more);
        if overlaps || !more && at < self.pieces.len() {
            return false;
        }
        if !more {
            self.len = Some(end);
        }
        self.pieces.insert(at, (offset, piece.to_vec()));
        true
    }

    fn is_whole(&self) -> bool {
        // No overlaps: the sum says whether there is a gap.
        self.len == Some(self.pieces.iter().map(|(_, bytes)| bytes.len()).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: Name = (Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, 7, 17);

    #[test]
    fn pieces_come_in_any_order_and_twice() {
        let now = Instant::now();
        let mut fragments = Fragments::default();
        let mut add = |offset, more, piece: &[u8]| fragments.add(NAME, offset, more, piece, now);
        assert_eq!(add(16, false, b"end"), None);
        assert_eq!(add(0, true, b"abcdefgh"), None);
        assert_eq!(add(0, true, b"abcdefgh"), None);
        assert_eq!(add(8, true, b"ijklmnop").as_deref(), Some(&b"abcdefghijklmnopend"[..]));
        assert!(fragments.0.is_empty());
    }

    #[test]
    fn what_contradicts_or_is_late_or_too_much_is_dropped() {
        let now = Instant::now();
        let mut fragments = Fragments::default();
        assert_eq!(fragments.add(NAME, 65528, false, &[0; 8], now), None, "past the end");
        assert_eq!(fragments.add(NAME, 0, true, b"odd", now), None);
        assert!(fragments.0.is_empty());
        fragments.add(NAME, 8, true, &[1; 16], now);
        fragments.add(NAME, 16, true, &[2; 16], now);
        assert!(fragments.0.is_empty(), "an overlap");
        fragments.add(NAME, 8, false, &[1; 16], now);
        assert_eq!(fragments.add(NAME, 24, true, &[1; 8], now), None, "behind the end");
        assert!(fragments.0.is_empty());
        fragments.add(NAME, 0, true, &[1; 8], now);
        let late = now + PATIENCE;
        assert_eq!(fragments.add(NAME, 8, false, &[1; 8], late), None);
        for n in 0..100 {
            fragments.add((NAME.0, NAME.1, n, 17), 0, true, &[1; 8], late);
        }
        assert_eq!(fragments.0.len(), DATAGRAMS_MAX);
    }
}
