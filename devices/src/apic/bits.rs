//! The 256-bit registers IRR, ISR and TMR.
//!
//! Problem: 256 bits, of which mostly the highest set one matters. Scheme: four words. No invariants
//! beyond that; plain data.

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bits([u64; 4]);

impl Bits {
    fn at(vector: u8) -> (usize, u64) {
        (usize::from(vector >> 6), 1 << (vector & 63))
    }

    pub(super) fn set(&mut self, vector: u8, value: bool) {
        let (word, bit) = Self::at(vector);
        if value {
            self.0[word] |= bit;
        } else {
            self.0[word] &= !bit;
        }
    }

    pub(super) fn get(&self, vector: u8) -> bool {
        let (word, bit) = Self::at(vector);
        self.0[word] & bit != 0
    }

    /// The highest vector, which has the highest priority.
    pub(super) fn highest(&self) -> Option<u8> {
        (0u8..4).rev().find_map(|word| {
            let bits = self.0[usize::from(word)];
            // The logarithm of a word is below 64.
            Some(word << 6 | u8::try_from(bits.checked_ilog2()?).ok()?)
        })
    }

    /// The `n`th of the eight 32-bit registers.
    pub(super) fn word(&self, n: u8) -> u32 {
        let word = self.0[usize::from(n >> 1 & 3)];
        let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
        u32::from_le_bytes(if n & 1 == 0 { [a, b, c, d] } else { [e, f, g, h] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn highest_and_words_agree() {
        let mut bits = Bits::default();
        assert_eq!(bits.highest(), None);
        for vector in [0, 31, 32, 63, 64, 200, 255] {
            bits.set(vector, true);
            assert_eq!(bits.highest(), Some(vector));
            assert_ne!(bits.word(vector >> 5) & 1 << (vector & 31), 0);
        }
        bits.set(255, false);
        assert_eq!((bits.highest(), bits.get(200), bits.get(255)), (Some(200), true, false));
    }
}
