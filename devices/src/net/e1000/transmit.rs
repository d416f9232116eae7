//! Sending: descriptors gather a frame, and offloads finish it.
//!
//! Invariants: a frame gathers [`GATHERED_MAX`] bytes at most, what is more is left out; a descriptor is taken
//! only while the network has room for what may come of it. Source: manual ch. 3, "Packet
//! Transmission", "Transmit Descriptor Ring Structure", "TCP Segmentation", "IP/TCP/UDP Transmit Checksum
//! Offloading".

use vm_memory::GuestAddressSpace;

use super::receive::words;
use super::registers as reg;
use super::{Card, Ring};
use crate::net::{FRAME_MAX, FRAME_MIN};

const RING: Ring = Ring {
    base_low: reg::TDBAL,
    base_high: reg::TDBAH,
    len: reg::TDLEN,
    head: reg::TDH,
    tail: reg::TDT,
};

/// Largest frame before it is cut into segments.
const GATHERED_MAX: usize = 64 << 10;
/// Frames that come of one segmented packet of an ordinary driver.
const SEGMENTS: usize = 64;
const ADDRESSES: usize = 12;

/// Bits of a descriptor's command.
const EOP: u8 = 1 << 0;
const IC: u8 = 1 << 2;
/// In a data descriptor, where [`IC`] is.
const TSE: u8 = 1 << 2;
const RS: u8 = 1 << 3;
const RPS: u8 = 1 << 4;
const DEXT: u8 = 1 << 5;
const VLE: u8 = 1 << 6;
/// In a context descriptor: TCP, not UDP, and IPv4, not IPv6.
const TUCMD_TCP: u8 = 1 << 0;
const TUCMD_IP: u8 = 1 << 1;
const DD: u8 = 1 << 0;
/// Packet options: insert the IP checksum, insert the TCP or UDP checksum.
const IXSM: u8 = 1 << 0;
const TXSM: u8 = 1 << 1;

/// Flags of TCP that only the last segment has: FIN and PSH.
const TCP_LAST: u8 = 1 << 0 | 1 << 3;

/// A context descriptor's offloads.
#[derive(Clone, Copy, Debug, Default)]
struct Context {
    ip_start: usize,
    ip_offset: usize,
    ip_end: usize,
    tcp_start: usize,
    tcp_offset: usize,
    tcp_end: usize,
    command: u8,
    header_len: usize,
    segment_len: usize,
}

/// The frame that is being gathered.
#[derive(Debug, Default)]
pub struct Sending {
    frame: Vec<u8>,
    context: Context,
    /// Packet options of its first data descriptor.
    options: u8,
    tag: Option<u16>,
    segment: bool,
    /// A legacy descriptor's checksum: where it starts and where it goes.
    simple: Option<(usize, usize)>,
    begun: bool,
}

/// The sum of 16-bit words that Internet checksums are the complement of.
pub fn sum(bytes: &[u8]) -> u16 {
    let mut pairs = bytes.chunks_exact(2);
    let words = pairs.by_ref().map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u64 = words.sum();
    if let [last] = pairs.remainder() {
        sum += u64::from(*last) << 8;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Puts the checksum of `start..end` at `at`; an `end` of 0 is the frame's. What is outside is left alone.
fn put_checksum(frame: &mut [u8], start: usize, at: usize, end: usize) {
    let end = if end == 0 { frame.len() } else { (end + 1).min(frame.len()) };
    let Some(covered) = frame.get(start..end) else { return };
    let sum = !sum(covered);
    put(frame, at, sum);
}

fn put(frame: &mut [u8], at: usize, value: u16) {
    if let Some(place) = frame.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *place = value.to_be_bytes();
    }
}

fn word(frame: &[u8], at: usize) -> u16 {
    frame
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |bytes| u16::from_be_bytes(*bytes))
}

impl<M: GuestAddressSpace> Card<M> {
    /// Sends what the driver has put before the tail, as long as the network has room.
    pub(super) fn transmit(&mut self) {
        if self.get(reg::TCTL) & reg::TCTL_EN == 0 || !self.bus_master {
            return;
        }
        let mut causes = 0;
        while self.get(reg::TDH) != self.get(reg::TDT) && self.backend.ready(SEGMENTS) {
            let Some((at, bytes)) = self.descriptor(RING) else { break };
            let [address, rest] = words(&bytes);
            let command = bytes[11];
            let kind = bytes[10] >> 4;
            if command & DEXT != 0 && kind == 0 {
                self.sending.context = context(address, rest);
            } else {
                self.gather(address, rest, &bytes);
                if command & EOP != 0 {
                    self.finish();
                }
            }
            if command & (RS | RPS) != 0 {
                self.store(at + 12, &[bytes[12] | DD]);
                causes |= reg::CAUSE_TXDW;
            }
            self.advance(RING);
            if self.get(reg::TDH) == self.get(reg::TDT) {
                causes |= reg::CAUSE_TXQE;
            }
        }
        if causes != 0 {
            self.raise(causes);
        }
    }

    /// Adds a data or legacy descriptor's buffer to the frame.
    fn gather(&mut self, address: u64, rest: u64, bytes: &[u8; 16]) {
        let command = bytes[11];
        let extended = command & DEXT != 0;
        if !self.sending.begun {
            self.sending.begun = true;
            self.sending.options = if extended { bytes[13] } else { 0 };
            self.sending.segment = extended && command & TSE != 0;
        }
        let len = (rest & if extended { 0xf_ffff } else { 0xffff }) as usize;
        let old = self.sending.frame.len();
        let mut frame = std::mem::take(&mut self.sending.frame);
        frame.resize(old + len.min(GATHERED_MAX - old), 0);
        self.load(address, &mut frame[old..]);
        self.sending.frame = frame;
        if command & EOP != 0 {
            let tag = u16::from_le_bytes([bytes[14], bytes[15]]);
            let tagged = command & VLE != 0 && self.get(reg::CTRL) & reg::CTRL_VME != 0;
            self.sending.tag = tagged.then_some(tag);
            let simple = !extended && command & IC != 0;
            // CSS and CSO.
            self.sending.simple = simple.then_some((bytes[13].into(), bytes[10].into()));
        }
    }

    /// Sends the frame that was gathered.
    fn finish(&mut self) {
        let sending = std::mem::take(&mut self.sending);
        // The context holds until the next one.
        self.sending.context = sending.context;
        let Sending { mut frame, context, options, tag, segment, simple, .. } = sending;
        if segment {
            self.count(reg::TSCTC, 1);
            for mut piece in context.segments(&frame) {
                context.put_checksums(&mut piece, options);
                self.send(piece, tag);
            }
            return;
        }
        if let Some((start, at)) = simple {
            put_checksum(&mut frame, start, at, 0);
        }
        context.put_checksums(&mut frame, options);
        self.send(frame, tag);
    }

    fn send(&mut self, mut frame: Vec<u8>, tag: Option<u16>) {
        if let Some(tag) = tag
            && frame.len() >= ADDRESSES
        {
            let kind = (self.get(reg::VET) as u16).to_be_bytes();
            let [a, b] = tag.to_be_bytes();
            frame.splice(ADDRESSES..ADDRESSES, [kind[0], kind[1], a, b]);
        }
        if !(FRAME_MIN..=FRAME_MAX).contains(&frame.len()) {
            return;
        }
        // With the check sequence, and as long as the wire wants it.
        let wire_len = (frame.len().max(60) + 4) as u32;
        self.count(reg::GPTC, 1);
        self.count(reg::TPT, 1);
        self.count_long(reg::GOTCL, wire_len);
        self.count_long(reg::TOTL, wire_len);
        if frame[..6] == [0xff; 6] {
            self.count(reg::BPTC, 1);
        } else if frame[0] & 1 != 0 {
            self.count(reg::MPTC, 1);
        }
        self.backend.send(&frame);
    }
}

/// A context descriptor's fields.
fn context(low: u64, high: u64) -> Context {
    let byte = |word: u64, shift: u32| (word >> shift & 0xff) as usize;
    let half = |word: u64, shift: u32| (word >> shift & 0xffff) as usize;
    Context {
        ip_start: byte(low, 0),
        ip_offset: byte(low, 8),
        ip_end: half(low, 16),
        tcp_start: byte(low, 32),
        tcp_offset: byte(low, 40),
        tcp_end: half(low, 48),
        command: byte(high, 24) as u8,
        header_len: byte(high, 40),
        segment_len: half(high, 48),
    }
}

impl Context {
    fn put_checksums(&self, frame: &mut [u8], options: u8) {
        if options & TXSM != 0 {
            put_checksum(frame, self.tcp_start, self.tcp_offset, self.tcp_end);
        }
        if options & IXSM != 0 {
            put_checksum(frame, self.ip_start, self.ip_offset, self.ip_end);
        }
    }

    /// Cuts a packet into segments, each with its own header.
    fn segments(self, packet: &[u8]) -> impl Iterator<Item = Vec<u8>> {
        let (header, payload) = packet.split_at(self.header_len.min(packet.len()));
        let len = self.segment_len.max(1);
        let count = payload.len().div_ceil(len).max(1);
        (0..count).map(move |n| {
            let at = n * len;
            let piece = &payload[at..payload.len().min(at + len)];
            let mut segment = [header, piece].concat();
            self.adjust(&mut segment, n, at, n + 1 == count);
            segment
        })
    }

    /// Makes the copied header that of segment `n`, whose payload begins at `offset`.
    fn adjust(&self, segment: &mut [u8], n: usize, offset: usize, last: bool) {
        let ip = self.ip_start;
        let total = segment.len().saturating_sub(ip);
        if self.command & TUCMD_IP != 0 {
            put(segment, ip + 2, total as u16);
            let identification = word(segment, ip + 4).wrapping_add(n as u16);
            put(segment, ip + 4, identification);
        } else {
            // The payload's length is without the fixed header.
            put(segment, ip + 4, total.saturating_sub(40) as u16);
        }
        let start = self.tcp_start;
        let tcp_len = segment.len().saturating_sub(start) as u16;
        if self.command & TUCMD_TCP != 0 {
            let high = u32::from(word(segment, start + 4));
            let sequence = high << 16 | u32::from(word(segment, start + 6));
            let sequence = sequence.wrapping_add(offset as u32);
            put(segment, start + 4, (sequence >> 16) as u16);
            put(segment, start + 6, sequence as u16);
            if let Some(flags) = segment.get_mut(start + 13).filter(|_| !last) {
                *flags &= !TCP_LAST;
            }
        } else {
            put(segment, start + 4, tcp_len);
        }
        // The driver's partial sum is that of the addresses and the protocol; the length is added here.
        let partial = word(segment, self.tcp_offset).to_be_bytes();
        let [a, b] = tcp_len.to_be_bytes();
        put(segment, self.tcp_offset, sum(&[partial[0], partial[1], a, b]));
    }
}
