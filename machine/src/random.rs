//! Random numbers for RDRAND and RDSEED.
//!
//! Problem: guests seed their secrets from these, so they must be the host's best; but a counted run
//! must be the same every time. Scheme: the host's generator, a block at a time, under host time; a fixed
//! sequence (SplitMix64) under counted time. One instance per vCPU, on its thread.
//! Source: getrandom(2); Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators".

use std::fmt;

const BLOCK: usize = 64;

/// A source of 64-bit numbers.
pub enum Random {
    Host { block: Box<[u8; BLOCK * 8]>, used: usize },
    Fixed { state: u64 },
}

impl fmt::Debug for Random {
    /// Shows no secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host { .. } => "Host",
            Self::Fixed { .. } => "Fixed",
        })
    }
}

impl Random {
    #[must_use]
    pub fn host() -> Self {
        Self::Host { block: Box::new([0; BLOCK * 8]), used: BLOCK }
    }

    #[must_use]
    pub fn fixed(seed: u64) -> Self {
        Self::Fixed { state: seed }
    }

    pub fn draw(&mut self) -> u64 {
        match self {
            Self::Host { block, used } => {
                if *used == BLOCK {
                    fill(&mut block[..]);
                    *used = 0;
                }
                let at = *used * 8;
                *used += 1;
                let bytes = block[at..at + 8].try_into().expect("a slice of eight bytes");
                let value = u64::from_le_bytes(bytes);
                // A number is handed out once.
                block[at..at + 8].fill(0);
                value
            }
            Self::Fixed { state } => {
                *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = *state;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                z ^ (z >> 31)
            }
        }
    }
}

impl Random {
    /// Fills `bytes` from this source.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        match self {
            Self::Host { .. } => fill(bytes),
            Self::Fixed { .. } => {
                for part in bytes.chunks_mut(8) {
                    part.copy_from_slice(&self.draw().to_le_bytes()[..part.len()]);
                }
            }
        }
    }
}

fn fill(block: &mut [u8]) {
    let mut done = 0;
    while done < block.len() {
        let rest = &mut block[done..];
        // SAFETY: the pointer and length are those of a live slice.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        // It fails only when a signal comes first (then the loop asks again) or when the kernel is older
        // than 3.17, which runs no program built with this toolchain.
        done += usize::try_from(got).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_numbers_differ() {
        let mut random = Random::host();
        let mut seen: Vec<u64> = (0..1000).map(|_| random.draw()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 1000);
        assert_ne!(Random::host().draw(), Random::host().draw());
    }

    #[test]
    fn fixed_numbers_are_the_same_every_time() {
        let two = |seed| {
            let mut random = Random::fixed(seed);
            [random.draw(), random.draw()]
        };
        // The sequence's published start for seed 0.
        assert_eq!(two(0), [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
        assert_ne!(two(1), two(2));
    }
}
