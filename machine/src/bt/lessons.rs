//! What faults have taught about guest code, for who makes its blocks.
//!
//! Problem: code that shadow windows or guesses don't suit is to be made without them, and blocks are all vCPUs'. Were
//! each to learn for itself, one would drop a block again and again, and another make it again as it was. Scheme:
//! what one has learnt all know; an instruction that does without windows tries again after a while. Invariant: nothing
//! here grows without bound. Any thread, under the lock of [`super::Shared::lessons`], which comes after the
//! cache's.

use std::sync::atomic::{AtomicU64, Ordering};

use xenolith_codecache::cache::{Key, NumberMap};
use xenolith_cpu::PAGE_SIZE;

/// Windows of a block that must be left to the interpreter before the block does without.
const UNLUCKY_MAX: u32 = 16;
/// Faults at one instruction that the interpreter had to see to before it does without windows for a while.
const FAULTS_MAX: u32 = 8;
/// Of instructions in a page.
const OFFSETS: usize = PAGE_SIZE as usize;
/// How long the first time, in ticks of the time stamp counter; then twice as long each time, so many times.
const WITHOUT_TICKS: u64 = 20_000_000;
const DOUBLED_MAX: u32 = 10;
/// Instructions or blocks that each thing is known of; then all is forgotten.
const KNOWN_MAX: usize = 1 << 16;

/// See the module's head.
#[derive(Debug, Default)]
pub struct Lessons {
    /// How often blocks had to be left because a window lay across pages or the like.
    unlucky: NumberMap<Key, u32>,
    /// Faults at instructions that windows couldn't help, by [`insn_key`]; and, by their offsets in their pages, which have
    /// ever had enough of them: most blocks are made of others.
    faults: NumberMap<Key, Faults>,
    faulty: Vec<u64>,
    /// Blocks that do without windows because of them.
    without: Vec<Without>,
    /// Instructions whose region was guessed wrong, by their linear addresses.
    misled: NumberMap<u64, ()>,
    /// Loops that have been seen at work.
    busy: NumberMap<Key, ()>,
}

/// When the first of those that do without windows tries again: in ticks, for who has no lock.
#[derive(Debug)]
pub struct NextRetry(AtomicU64);

/// Faults of one instruction that windows couldn't help.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    /// Since it was last tried with windows.
    times: u32,
    /// How often it has come to do without.
    spells: u32,
}

/// A block with an instruction that does without windows.
#[derive(Debug)]
struct Without {
    until: u64,
    /// See [`insn_key`].
    insn: Key,
    key: Key,
}

/// What the faults of the instruction at `rip` are counted under, given the key of a block that has it: the same for all
/// blocks of its page and mode, wherever the page is mapped.
fn insn_key(key: Key, rip: u64) -> Key {
    key & !(PAGE_SIZE - 1) | rip & (PAGE_SIZE - 1)
}

fn make_room<V>(map: &mut NumberMap<u64, V>) {
    if map.len() >= KNOWN_MAX {
        map.clear();
    }
}

impl Default for NextRetry {
    fn default() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }
}

impl NextRetry {
    /// Whether somebody is due at `now`.
    pub fn is_due(&self, now: u64) -> bool {
        now >= self.0.load(Ordering::Relaxed)
    }
}

impl Lessons {
    /// A window of the block couldn't be used, for where it lies. True if the block is to be made without windows now.
    pub fn note_unlucky(&mut self, key: Key) -> bool {
        make_room(&mut self.unlucky);
        let times = self.unlucky.entry(key).or_insert(0);
        *times += 1;
        *times == UNLUCKY_MAX
    }

    /// Whether the block does without windows.
    pub fn is_unlucky(&self, key: Key) -> bool {
        self.unlucky.get(&key).is_some_and(|&times| times >= UNLUCKY_MAX)
    }

    /// The region of the instruction at `rip` was guessed wrong.
    pub fn note_misled(&mut self, rip: u64) {
        make_room(&mut self.misled);
        self.misled.insert(rip, ());
    }

    /// Whether nothing is guessed for the instruction at `rip`.
    pub fn is_misled(&self, rip: u64) -> bool {
        self.misled.contains_key(&rip)
    }

    /// The block, a loop, was at work when somebody looked. True the first time: it is to be made again.
    pub fn note_busy(&mut self, key: Key) -> bool {
        make_room(&mut self.busy);
        self.busy.insert(key, ()).is_none()
    }

    /// Whether the block, if it is a loop, is worth several rounds.
    pub fn is_busy(&self, key: Key) -> bool {
        self.busy.contains_key(&key)
    }

    /// Counts a fault at `now`, of the instruction at `rip` in the block of `key`, that windows couldn't help. Often
    /// enough, the instruction does without: true if the block is to be made again.
    pub fn note_fault(&mut self, key: Key, rip: u64, now: u64, next: &NextRetry) -> bool {
        make_room(&mut self.faults);
        let insn = insn_key(key, rip);
        let faults = self.faults.entry(insn).or_default();
        faults.times += 1;
        if faults.times < FAULTS_MAX {
            return false;
        }
        if faults.times == FAULTS_MAX {
            self.faulty.resize(OFFSETS / 64, 0);
            self.faulty[rip as usize % OFFSETS / 64] |= 1 << (rip % 64);
            faults.spells += 1;
        }
        // Other blocks may have the same instruction, so this may not be the first.
        let doubled = (faults.spells - 1).min(DOUBLED_MAX);
        let until = now + (WITHOUT_TICKS << doubled);
        self.without.push(Without { until, insn, key });
        next.0.fetch_min(until, Ordering::Relaxed);
        true
    }

    /// Whether the instruction at `rip`, in the block of `key`, does without windows.
    pub fn faults_often(&self, key: Key, rip: u64) -> bool {
        let word = self.faulty.get(rip as usize % OFFSETS / 64);
        word.is_some_and(|word| word & 1 << (rip % 64) != 0)
            && self.faults.get(&insn_key(key, rip)).is_some_and(|faults| faults.times >= FAULTS_MAX)
    }

    /// Blocks to be made again, as they have instructions that have done without windows for long enough: what those
    /// faulted on, pages that once held code above all, may be behind them.
    pub fn due(&mut self, now: u64, next: &NextRetry) -> Vec<Key> {
        let (due, later): (Vec<_>, _) =
            self.without.drain(..).partition(|without| without.until <= now);
        self.without = later;
        let first = self.without.iter().map(|without| without.until).min();
        next.0.store(first.unwrap_or(u64::MAX), Ordering::Relaxed);
        for Without { insn, .. } in &due {
            if let Some(faults) = self.faults.get_mut(insn) {
                faults.times = 0;
            }
        }
        due.into_iter().map(|without| without.key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = 0x1234_5000;

    #[test]
    fn an_instruction_that_faults_often_does_without_windows_for_longer_each_time() {
        let (mut lessons, next) = (Lessons::default(), NextRetry::default());
        let mut now = 1000;
        for spell in 0..3 {
            for fault in 1..=FAULTS_MAX {
                assert!(!lessons.faults_often(KEY, 0x77));
                assert_eq!(lessons.note_fault(KEY, 0x77, now, &next), fault == FAULTS_MAX);
            }
            // So it does in other blocks of the page.
            assert!(lessons.faults_often(KEY | 0x40, 0x9077) && !lessons.faults_often(KEY, 0x78));
            assert!(lessons.note_fault(KEY | 0x40, 0x77, now, &next));
            let until = now + (WITHOUT_TICKS << spell);
            assert!(!next.is_due(until - 1) && next.is_due(until));
            assert!(lessons.due(until - 1, &next).is_empty());
            assert_eq!(lessons.due(until, &next), [KEY, KEY | 0x40]);
            assert!(!lessons.faults_often(KEY, 0x77) && !next.is_due(u64::MAX - 1));
            now = until;
        }
    }

    #[test]
    fn what_is_known_has_bounds() {
        let (mut lessons, next) = (Lessons::default(), NextRetry::default());
        for n in 0..3 * KNOWN_MAX as u64 {
            lessons.note_misled(n);
            lessons.note_unlucky(n);
            lessons.note_fault(n << 12, 0, 0, &next);
            assert!(lessons.is_misled(n));
        }
        assert!(lessons.misled.len() <= KNOWN_MAX && lessons.unlucky.len() <= KNOWN_MAX);
        assert!(lessons.faults.len() <= KNOWN_MAX);
    }
}
