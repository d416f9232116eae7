//! Receiving: which frames are for this card, and where they go.
//!
//! Source: manual ch. 3, "Packet Reception".

use vm_memory::GuestAddressSpace;

use super::registers as reg;
use super::{Card, DESCRIPTOR, Ring};

const RING: Ring = Ring {
    base_low: reg::RDBAL,
    base_high: reg::RDBAH,
    len: reg::RDLEN,
    head: reg::RDH,
    tail: reg::RDT,
};

/// Least length of a frame on the wire, without its check sequence.
const WIRE_MIN: usize = 60;
const CHECK_LEN: usize = 4;
const ADDRESSES: usize = 12;
const TAG_LEN: usize = 4;

/// Bits of a descriptor's status.
const DD: u8 = 1 << 0;
const EOP: u8 = 1 << 1;
const IXSM: u8 = 1 << 2;
const VP: u8 = 1 << 3;
const PIF: u8 = 1 << 7;

impl<M: GuestAddressSpace> Card<M> {
    /// Takes frames from the network while there are descriptors for them.
    pub(super) fn receive(&mut self) {
        let mut causes = 0;
        while self.backend.pending() {
            if self.get(reg::RCTL) & reg::RCTL_EN == 0 || !self.bus_master {
                // Nobody listens: frames pass by.
                let _ = self.backend.receive();
                continue;
            }
            if self.free_descriptors() == 0 {
                // They wait for the driver.
                break;
            }
            let Some(frame) = self.backend.receive() else { break };
            if let Some(exact) = self.accepts(&frame)
                && self.deliver(frame, exact)
            {
                causes |= reg::CAUSE_RXT0;
            }
        }
        if causes != 0 {
            // RDMTS: a half, a quarter or an eighth.
            let part = 2 << (self.get(reg::RCTL) >> 8 & 3).min(2);
            let count = self.get(reg::RDLEN) / DESCRIPTOR as u32;
            if self.free_descriptors() <= count / part {
                causes |= reg::CAUSE_RXDMT0;
            }
            self.raise(causes);
        }
    }

    fn free_descriptors(&self) -> u32 {
        let count = self.get(reg::RDLEN) / DESCRIPTOR as u32;
        let (head, tail) = (self.get(reg::RDH), self.get(reg::RDT));
        if head >= count || tail >= count { 0 } else { (tail + count - head) % count }
    }

    /// Whether a frame is for this card; if so, whether by an exact address (else by a hash).
    fn accepts(&self, frame: &[u8]) -> Option<bool> {
        let control = self.get(reg::RCTL);
        let to: [u8; 6] = *frame.first_chunk()?;
        if !self.accepts_vlan(frame, control) {
            return None;
        }
        let known = (0..reg::RECEIVE_ADDRESSES).any(|n| {
            let low = self.get(reg::RAL + 8 * n).to_le_bytes();
            let high = self.get(reg::RAL + 8 * n + 4);
            let [a, b, ..] = high.to_le_bytes();
            high & reg::RAH_VALID != 0 && to == [low[0], low[1], low[2], low[3], a, b]
        });
        if known {
            return Some(true);
        }
        if to == [0xff; 6] {
            return (control & (reg::RCTL_BAM | reg::RCTL_MPE) != 0).then_some(true);
        }
        if to[0] & 1 == 0 {
            return (control & reg::RCTL_UPE != 0).then_some(false);
        }
        // MO says which twelve bits of the last two bytes.
        let shift = [4, 3, 2, 0][(control >> 12 & 3) as usize];
        let hash = u32::from(u16::from_le_bytes([to[4], to[5]])) >> shift & 0xfff;
        let hit = self.get(reg::MTA + 4 * (hash >> 5)) >> (hash & 31) & 1 != 0;
        (hit || control & reg::RCTL_MPE != 0).then_some(!hit)
    }

    fn tag(&self, frame: &[u8]) -> Option<u16> {
        let kind = u16::from_be_bytes(*frame.get(ADDRESSES..)?.first_chunk()?);
        let tag = u16::from_be_bytes(*frame.get(ADDRESSES + 2..)?.first_chunk()?);
        (u32::from(kind) == self.get(reg::VET) & 0xffff).then_some(tag)
    }

    fn accepts_vlan(&self, frame: &[u8], control: u32) -> bool {
        let Some(tag) = self.tag(frame) else { return true };
        if control & reg::RCTL_VFE == 0 {
            return true;
        }
        let id = u32::from(tag & 0xfff);
        let wanted = self.get(reg::VFTA + 4 * (id >> 5)) >> (id & 31) & 1 != 0;
        let cfi = tag >> 12 & 1 != 0;
        let cfi_wanted = control & reg::RCTL_CFI != 0;
        wanted && (control & reg::RCTL_CFIEN == 0 || cfi == cfi_wanted)
    }

    /// Stores a frame. False if the ring ended before it.
    fn deliver(&mut self, mut frame: Vec<u8>, exact: bool) -> bool {
        let control = self.get(reg::RCTL);
        if frame.len() < WIRE_MIN {
            frame.resize(WIRE_MIN, 0);
        }
        let wire_len = (frame.len() + CHECK_LEN) as u32;
        self.count(reg::GPRC, 1);
        self.count(reg::TPR, 1);
        self.count_long(reg::GORCL, wire_len);
        self.count_long(reg::TORL, wire_len);
        match frame.first_chunk::<6>() {
            Some([0xff, 0xff, 0xff, 0xff, 0xff, 0xff]) => self.count(reg::BPRC, 1),
            Some([first, ..]) if first & 1 != 0 => self.count(reg::MPRC, 1),
            _ => {}
        }
        let mut status = DD | IXSM | if exact { 0 } else { PIF };
        let mut special = 0;
        if self.get(reg::CTRL) & reg::CTRL_VME != 0
            && let Some(tag) = self.tag(&frame)
        {
            frame.drain(ADDRESSES..ADDRESSES + TAG_LEN);
            special = tag;
            status |= VP;
        }
        // PCSS: where the checksum of the packet begins.
        let start = (self.get(reg::RXCSUM) & 0xff) as usize;
        let checksum = super::transmit::sum(frame.get(start..).unwrap_or_default());
        if control & reg::RCTL_SECRC == 0 {
            frame.extend(check_sequence(&frame).to_le_bytes());
        }
        let unit = if control & reg::RCTL_BSEX != 0 { 16 } else { 1 };
        let buffer_len = (2048 >> (control >> 16 & 3)) * unit;
        let pieces = frame.len().div_ceil(buffer_len);
        for (n, piece) in frame.chunks(buffer_len).enumerate() {
            let Some((at, mut bytes)) = self.descriptor(RING) else { return n > 0 };
            let [buffer, _] = words(&bytes);
            // A driver may leave a descriptor without a buffer, which then swallows.
            if buffer != 0 {
                self.store(buffer, piece);
            }
            bytes[8..10].copy_from_slice(&(piece.len() as u16).to_le_bytes());
            bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
            bytes[12] = status | if n + 1 == pieces { EOP } else { 0 };
            bytes[13] = 0;
            bytes[14..16].copy_from_slice(&special.to_le_bytes());
            // The status last: a driver on another processor may be looking at it.
            self.store(at + 8, &bytes[8..12]);
            self.store(at + 14, &bytes[14..16]);
            self.store(at + 12, &bytes[12..14]);
            self.advance(RING);
        }
        true
    }
}

/// The two halves of a descriptor.
pub(super) fn words(bytes: &[u8; DESCRIPTOR as usize]) -> [u64; 2] {
    [0, 8].map(|at| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i])))
}

/// The frame check sequence (IEEE 802.3, "Frame Check Sequence field"): CRC-32.
pub(super) fn check_sequence(frame: &[u8]) -> u32 {
    const TABLE: [u32; 16] = {
        let mut table = [0; 16];
        let mut n = 0;
        while n < 16 {
            let mut value = n as u32;
            let mut bit = 0;
            while bit < 4 {
                value = if value & 1 != 0 { value >> 1 ^ 0xedb8_8320 } else { value >> 1 };
                bit += 1;
            }
            table[n] = value;
            n += 1;
        }
        table
    };
    !frame.iter().fold(!0, |crc, &byte| {
        let crc: u32 = crc ^ u32::from(byte);
        let crc = crc >> 4 ^ TABLE[(crc & 15) as usize];
        crc >> 4 ^ TABLE[(crc & 15) as usize]
    })
}
