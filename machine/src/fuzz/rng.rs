//! Random numbers that repeat.
//!
//! Problem: a case must be the same wherever and whenever its seed is given. Scheme: SplitMix64, whose state
//! is one word, so that any number makes a generator of its own. One owner.
//! Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators".

/// See the module's head.
#[derive(Clone, Copy, Debug)]
pub struct Rng(u64);

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Rng {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator for number `n` of a row that `seed` names.
    #[must_use]
    pub fn of(seed: u64, n: u64) -> Self {
        let mut first = Self(seed);
        let base = first.next();
        let mut rng = Self(base ^ n.wrapping_mul(STEP));
        rng.next();
        rng
    }

    #[allow(clippy::should_implement_trait, reason = "it is no iterator: it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number from 0 to `n` - 1.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    pub fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}
