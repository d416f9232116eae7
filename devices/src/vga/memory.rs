//! The window at 0xa0000: how a byte there reaches the planes.
//!
//! Problem: an 8086 addresses 256 KiB of planes through 32 to 128 KiB. Scheme: a read loads the four
//! latches and gives one plane's byte or a comparison; a write goes to the planes of the map mask through
//! one of four write modes. Chain-4 and odd/even take the low address bits for the plane. Under
//! the display interface the window is a bank of the linear memory instead. Invariants: word indices are below
//! [`PLANE_WORDS`]. Any thread, under the device's mutex.
//! Source: IBM PS/2 Hardware Interface Technical Reference, "Graphics Controller", "Sequencer".

use super::{MISC_RAM, PLANE_WORDS, Vga};

/// A byte of four planes at once.
fn spread(byte: u8) -> u32 {
    u32::from(byte) * 0x0101_0101
}

/// All bits of each plane whose bit is set in `planes`.
fn mask_of(planes: u8) -> u32 {
    (0..4).fold(0, |mask, n| if planes >> n & 1 != 0 { mask | 0xff << (8 * n) } else { mask })
}

impl Vga {
    /// The offset in the mapped part of the window, if the memory map includes `offset`.
    fn mapped(&self, offset: u64) -> Option<usize> {
        if self.misc & MISC_RAM == 0 {
            return None;
        }
        let (start, len) = match self.graphics.regs[6] >> 2 & 3 {
            0 => (0, 0x2_0000),
            1 => (0, 0x1_0000),
            2 => (0x1_0000, 0x8000),
            _ => (0x1_8000, 0x8000),
        };
        let at = offset.checked_sub(start)?;
        (at < len).then_some(at as usize)
    }

    /// The byte at `offset` of the window, for a bank of the linear memory.
    fn banked(&self, at: usize) -> usize {
        self.dispi.bank_offset() + (at & 0xffff)
    }

    pub(super) fn read_window(&mut self, offset: u64) -> u8 {
        let Some(at) = self.mapped(offset) else { return 0xff };
        if self.dispi.is_packed() {
            let mut byte = [0xff];
            self.host.copy_out(self.banked(at), &mut byte);
            return byte[0];
        }
        if let Some(direct) = self.direct {
            // Reached while a processor still holds the window's old translation.
            let mut byte = [0];
            self.host.read_window(direct.range().start + at as u64, &mut byte);
            return byte[0];
        }
        let (seq, gr) = (self.sequencer.regs, self.graphics.regs);
        let (word, plane) = if seq[4] & 0x08 != 0 {
            (at & !3, at & 3)
        } else if gr[5] & 0x10 != 0 {
            (at & !1, usize::from(gr[4] & 2) | at & 1)
        } else {
            (at, usize::from(gr[4]))
        };
        self.latches = self.host.load(word % PLANE_WORDS);
        if gr[5] & 0x08 == 0 {
            return self.latches.to_le_bytes()[plane];
        }
        // Read mode 1: bits where all planes that count have the colour to compare.
        let differs = (self.latches ^ mask_of(gr[2])) & mask_of(gr[7]);
        !differs.to_le_bytes().into_iter().fold(0, |all, byte| all | byte)
    }

    pub(super) fn write_window(&mut self, offset: u64, value: u8) {
        let Some(at) = self.mapped(offset) else { return };
        if self.dispi.is_packed() {
            let byte = self.banked(at);
            let shift = 8 * (byte & 3);
            let word = self.host.load(byte / 4) & !(0xff << shift);
            return self.host.store(byte / 4, word | u32::from(value) << shift);
        }
        if let Some(direct) = self.direct {
            return self.host.write_window(direct.range().start + at as u64, &[value]);
        }
        let (seq, gr) = (self.sequencer.regs, self.graphics.regs);
        let (word, planes) = if seq[4] & 0x08 != 0 {
            (at & !3, 1 << (at & 3))
        } else if seq[4] & 0x04 == 0 {
            (at & !1, if at & 1 == 0 { 0b0101 } else { 0b1010 })
        } else {
            (at, 0x0f)
        };
        let word = word % PLANE_WORDS;
        let rotated = value.rotate_right(u32::from(gr[3] & 7));
        let (data, bits) = match gr[5] & 3 {
            0 => {
                let enabled = mask_of(gr[1]);
                (spread(rotated) & !enabled | mask_of(gr[0]) & enabled, gr[8])
            }
            1 => return self.store_planes(word, self.latches, planes & seq[2]),
            2 => (mask_of(value & 0x0f), gr[8]),
            _ => (mask_of(gr[0]), gr[8] & rotated),
        };
        let data = match gr[3] >> 3 & 3 {
            0 => data,
            1 => data & self.latches,
            2 => data | self.latches,
            _ => data ^ self.latches,
        };
        let bits = spread(bits);
        self.store_planes(word, data & bits | self.latches & !bits, planes & seq[2]);
    }

    fn store_planes(&mut self, word: usize, value: u32, planes: u8) {
        let mask = mask_of(planes);
        let old = self.host.load(word);
        self.host.store(word, old & !mask | value & mask);
    }
}
