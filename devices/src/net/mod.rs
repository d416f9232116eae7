//! Network cards and what they are plugged into.
//!
//! Problem: any card works with any network, and neither may wait for the other: a card's frames come
//! from vCPUs or workers, a network's from a thread that serves peers of all speeds. Scheme:
//! [`NetBackend`] is a pair of bounded queues. A card looks before it takes a frame from its guest, and
//! leaves the frame where it is while there is no room; the network calls the card when something has
//! changed. Invariants: no method waits; after `ready` has said no, or `pending` no, the next change calls
//! the card; no call into the card happens under a lock of the network's. Any thread.
//!
//! Source: IEEE 802.3, "Media Access Control frame and packet specifications".

use std::fmt;

pub mod e1000;
#[cfg(test)]
pub(crate) mod fake;

/// Bytes of a frame without its check sequence: header, a VLAN tag, 1,500 bytes. Cards send nothing longer.
pub const FRAME_MAX: usize = 14 + 4 + 1500;
/// The same around an IPv4 packet of the greatest length, for networks that take TCP segments of any size.
pub const SEGMENT_MAX: usize = 14 + 4 + 65_535;
/// Two addresses and a type. Cards send nothing shorter.
pub const FRAME_MIN: usize = 14;

/// What a card is plugged into. Frames have no preamble and no check sequence.
pub trait NetBackend: Send + Sync {
    /// Whether it takes frames of up to [`SEGMENT_MAX`] bytes with TCP over IPv4, which it cuts itself if need be.
    fn takes_segments(&self) -> bool {
        false
    }
    /// Whether there is room for so many frames from the card, of which few are asked for at once.
    fn ready(&self, frames: usize) -> bool;
    /// Takes a frame from the card. Without room it is lost.
    fn send(&self, frame: &[u8]);
    /// Whether there is a frame for the card.
    fn pending(&self) -> bool;
    /// Takes the next frame for the card.
    fn receive(&self) -> Option<Vec<u8>>;
    /// Plugs in a card, instead of the one before: `changed` is called from any thread when there is a
    /// frame where there was none, and when there is room again.
    fn plug(&self, changed: Box<dyn Fn() + Send + Sync>);
}

/// A card's address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Default for Mac {
    /// The first address that QEMU gives, which people know.
    fn default() -> Self {
        Self([0x52, 0x54, 0x00, 0x12, 0x34, 0x56])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Mac {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "an address is six bytes in hexadecimal, as 52:54:00:12:34:56";
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| (1..=2).contains(&part.len())).ok_or(FORM)?;
            if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(FORM);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| FORM)?;
        }
        if parts.next().is_some() {
            return Err(FORM);
        }
        if bytes[0] & 1 != 0 {
            return Err("a card's own address can't be one of a group");
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        assert_eq!("52:54:00:12:34:56".parse(), Ok(Mac::default()));
        assert_eq!(Mac::default().to_string(), "52:54:00:12:34:56");
        assert_eq!("2-0-0-0-a-FF".parse(), Ok(Mac([2, 0, 0, 0, 10, 255])));
        for bad in
            ["", "52:54:00:12:34", "52:54:00:12:34:56:7", "x2:54:00:12:34:56", "+1:0:0:0:0:0"]
        {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
        assert!("01:00:5e:00:00:01".parse::<Mac>().is_err(), "a group");
    }
}
