//! Instructions that have been compared with QEMU often enough where they are.
//!
//! Problem: a loop that waits for time or for a device reads it each time around, and QEMU has to stop at each: a
//! kernel that calibrates its timers would take an hour. Scheme: of short stretches that end where the machine is asked the
//! instructions are counted; those that were in [`ENOUGH`] are *worn*. From one question to the machine on, worn
//! instructions are not compared again, up to the first that isn't worn. Invariant: system instructions that
//! QEMU does by itself never count. Thread: the lockstep's.

use super::qemu::Visits;

/// Times after which an instruction is worn.
const ENOUGH: u32 = 500;
/// Steps of a stretch that is short: one round of a loop that waits.
const SHORT_MAX: usize = 256;

/// See the module's head.
#[derive(Default)]
pub(super) struct Worn(Visits);

impl Worn {
    /// Counts a stretch of so many steps at the addresses `seen`, which has been compared, and the question to the
    /// machine at `end`.
    pub fn note(&mut self, steps: usize, seen: &Visits, end: u64) {
        if steps > SHORT_MAX {
            return;
        }
        for at in seen.keys().copied().chain([end]) {
            let times = self.0.entry(at).or_default();
            *times = times.saturating_add(1);
        }
    }

    /// Whether the instruction at `at` is worn.
    pub fn has(&self, at: u64) -> bool {
        self.0.get(&at).is_some_and(|&times| times >= ENOUGH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_stretches_wear_their_instructions() {
        let mut worn = Worn::default();
        let seen = [(0x10, 1), (0x14, 9)].into_iter().collect();
        for _ in 1..ENOUGH {
            worn.note(SHORT_MAX, &seen, 0x20);
        }
        worn.note(SHORT_MAX + 1, &seen, 0x20);
        assert!(!worn.has(0x14) && !worn.has(0x20));
        worn.note(1, &seen, 0x20);
        assert!(worn.has(0x10) && worn.has(0x14) && worn.has(0x20));
        assert!(!worn.has(0x24));
    }
}
