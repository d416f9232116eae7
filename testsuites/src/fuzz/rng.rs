//! The fuzzer's dice.
//!
//! Problem: a guest must be the same whenever its seed is. Scheme: SplitMix64, with a few ways to choose.
//! Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators".

use std::ops::Range;

/// A sequence of numbers that its seed decides.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn u32(&mut self) -> u32 {
        self.u64() as u32
    }

    pub fn u8(&mut self) -> u8 {
        self.u64() as u8
    }

    /// From a range that isn't empty.
    pub fn range(&mut self, range: Range<u64>) -> u64 {
        range.start + self.u64() % (range.end - range.start).max(1)
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.range(0..end as u64) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.u64().is_multiple_of(n)
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Each bit of `bits` with even odds.
    pub fn some_of(&mut self, bits: u64) -> u64 {
        self.u64() & bits
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.u64().to_le_bytes()[..part.len()]);
        }
    }

    /// For a device's register: every byte as likely as another, or a number that breaks things.
    pub fn register_value(&mut self) -> u64 {
        if self.one_in(2) { self.u64() } else { self.odd_u64() }
    }

    /// A number of the kinds that break things: small, all ones, powers of two and their neighbours, pages,
    /// sign changes, non-canonical, or any.
    pub fn odd_u64(&mut self) -> u64 {
        let near = self.range(0..17).wrapping_sub(8);
        match self.below(10) {
            0 => near,
            1 => (1u64 << self.below(64)).wrapping_add(near),
            2 => u64::MAX << self.below(64),
            3 => u64::MAX >> self.below(64),
            4 => u64::from(self.u32()),
            5 => (self.range(0..0x4000) << 12).wrapping_add(near),
            6 => 0x7fff_ffff_ffff_ffff_u64.wrapping_add(near),
            7 => 0x8000_0000_0000_u64.wrapping_add(near),
            8 => (i64::from(self.u32() as i32) as u64).wrapping_add(near),
            _ => self.u64(),
        }
    }
}
