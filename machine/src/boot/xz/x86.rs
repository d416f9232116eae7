//! The x86 filter of .xz files, undone.
//!
//! Problem: the packer has made the targets of calls and jumps absolute, so that those to one place look the same; a
//! kernel has one every few bytes. Scheme: positions of the opcodes are looked for many bytes at a time, and what is
//! known of those just before is read from the bytes again. Invariants: bytes below the returned position are final;
//! the result depends on the bytes alone, not on how they were cut in pieces. Any thread.
//!
//! What looks like an opcode may be an operand's byte. So one is believed only if its target's top byte is a sign (all
//! zeroes or all ones), and if among the three bytes before it there is at most one other that was not believed, whose
//! own top byte was no sign. That byte is in our operand. Where subtracting makes a sign of it, the packer, which has
//! to decide as we do from what it writes, has inverted the operand up to that byte.
//!
//! Source: The .xz File Format, section 5.3.2, "Branch/Call/Jump Filters for Executables".

use memchr::memchr2;

/// A call's opcode; a jump's is the next number.
const CALL: u8 = 0xe8;
/// Opcode and operand.
const INSN_BYTES: usize = 5;
/// So far away an opcode still has its top byte in our operand.
const NEAR: usize = 3;

#[derive(Debug)]
pub struct Filter {
    /// Address of the first byte.
    start: u32,
    /// Where to look on.
    at: usize,
    /// End of the last operand that was changed: before it nothing counts as an opcode.
    free: usize,
}

impl Filter {
    pub fn new(start: u32) -> Self {
        Self { start, at: 0, free: 0 }
    }

    /// Undoes as much as it can of all `bytes` from the first one on, which the last call has seen the beginning of.
    /// Gives the number of those that will not change any more; at the very end that is all.
    pub fn undo(&mut self, bytes: &mut [u8]) -> usize {
        // The last one with a whole operand.
        let end = (bytes.len() + 1).saturating_sub(INSN_BYTES);
        while self.at < end {
            match memchr2(CALL, CALL + 1, &bytes[self.at..end]) {
                Some(offset) => self.opcode(bytes, self.at + offset),
                None => self.at = end,
            }
        }
        self.at
    }

    /// Undoes the opcode at `at`, whose operand is there, unless it isn't believed.
    fn opcode(&mut self, bytes: &mut [u8], at: usize) {
        self.at = at + 1;
        let (before, operand) = bytes.split_at_mut(at + 1);
        let Some(operand) = operand.first_chunk_mut() else { return };
        let packed = u32::from_le_bytes(*operand);
        if !is_sign(packed >> 24) {
            return;
        }
        // Of the other opcode: from its top byte down, in our operand.
        let mut below = None;
        let near = before[self.free.max(at.saturating_sub(NEAR))..at].iter().rev();
        for (_, distance) in near.zip(1..).filter(|(byte, _)| **byte & !1 == CALL) {
            let bits = 32 - 8 * distance;
            if below.is_some() || is_sign(packed >> (bits - 8) & 0xff) {
                return;
            }
            below = Some(bits);
        }
        self.at = at + INSN_BYTES;
        self.free = self.at;
        let next = self.start.wrapping_add(self.at as u32);
        let mut target = packed.wrapping_sub(next);
        if let Some(bits) = below.filter(|bits| is_sign(target >> (bits - 8) & 0xff)) {
            // Once is enough: it gives the inverse of what was packed, and that was no sign.
            target = (target ^ ((1 << bits) - 1)).wrapping_sub(next);
        }
        // Of the top byte only the lowest bit counts.
        *operand = (((target << 7).cast_signed()) >> 7).to_le_bytes();
    }
}

fn is_sign(byte: u32) -> bool {
    byte == 0 || byte == 0xff
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// The library's result.
    fn theirs(start: u32, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        // SAFETY: a buffer and its length.
        unsafe { liblzma_sys::lzma_bcj_x86_decode(start, bytes.as_mut_ptr(), bytes.len()) };
        bytes
    }

    fn ours(start: u32, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        Filter::new(start).undo(&mut bytes);
        bytes
    }

    /// A piece after the other: what it calls finished is never changed again.
    fn in_pieces(start: u32, bytes: &[u8], random: &mut Random) -> Vec<u8> {
        let mut whole = Vec::new();
        let mut filter = Filter::new(start);
        let mut finished = Vec::new();
        while whole.len() < bytes.len() {
            let more = 1 + random.draw() as usize % 40;
            whole.extend(&bytes[whole.len()..bytes.len().min(whole.len() + more)]);
            let end = filter.undo(&mut whole);
            assert!(whole.len() - end < INSN_BYTES && whole[..finished.len()] == finished);
            finished = whole[..end].to_vec();
        }
        whole
    }

    #[test]
    fn short_runs_of_all_kinds() {
        let kinds = [0xe8, 0xe9, 0x00, 0xff, 0x12];
        for len in 0..=8 {
            for n in 0..5usize.pow(len) {
                let bytes: Vec<u8> = (0..len).map(|at| kinds[n / 5usize.pow(at) % 5]).collect();
                assert_eq!(ours(0, &bytes), theirs(0, &bytes), "{bytes:02x?}");
            }
        }
    }

    #[test]
    fn bytes_that_look_like_code() {
        let mut random = Random::fixed(0);
        for _ in 0..20_000 {
            let len = random.draw() as usize % 300;
            // From nothing but these to hardly any.
            let rare = random.draw() % 5;
            let byte = |random: &mut Random| match random.draw() % (6 + 3 * rare) {
                0 => 0xe8,
                1 => 0xe9,
                2 | 3 => 0x00,
                4 | 5 => 0xff,
                _ => random.draw() as u8,
            };
            let mut bytes: Vec<u8> = (0..len).map(|_| byte(&mut random)).collect();
            let start = if random.draw() & 1 == 0 { 0 } else { random.draw() as u32 };
            let expected = theirs(start, &bytes);
            assert!(ours(start, &bytes) == expected, "{start:#x} {bytes:02x?}");
            assert!(in_pieces(start, &bytes, &mut random) == expected, "{start:#x} {bytes:02x?}");
            let plain = bytes.clone();
            // SAFETY: a buffer and its length.
            unsafe { liblzma_sys::lzma_bcj_x86_encode(start, bytes.as_mut_ptr(), bytes.len()) };
            assert!(ours(start, &bytes) == plain, "{start:#x} {plain:02x?}");
        }
    }

    /// This program's.
    #[test]
    fn real_code() {
        let program = std::env::current_exe().expect("a path");
        let mut bytes = std::fs::read(program).expect("it can be read");
        bytes.truncate(32 << 20);
        assert!(ours(0, &bytes) == theirs(0, &bytes));
        let plain = bytes.clone();
        // SAFETY: a buffer and its length.
        unsafe { liblzma_sys::lzma_bcj_x86_encode(0, bytes.as_mut_ptr(), bytes.len()) };
        assert!(bytes != plain && ours(0, &bytes) == plain);
    }
}
