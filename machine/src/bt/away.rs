//! The tables of address spaces that are not current.
//!
//! Problem: a guest that switches between two processes would find all their pages and branches again at each
//! switch. Scheme: what the tables of translated code have of an address space is put away under the era of its TLB
//! entries when it is left, and is brought back if that era becomes current again. Invariants: what is put away
//! is dropped with anything that its era drops; blocks that are removed meanwhile are known by a log, and if
//! that doesn't reach back no branch is brought back. Thread: the vCPU's; the log is everybody's.

use std::collections::{HashSet, VecDeque};

use xenolith_translator::area::Away;
use xenolith_translator::mode::Mode;

use super::Bt;
use super::mmu::FlushedPages;

/// Address spaces that are kept.
const KEPT_MAX: usize = 8;
/// Removed blocks that the log keeps.
const LOG_MAX: usize = 4096;

/// The blocks that were removed last.
#[derive(Debug, Default)]
pub(super) struct Removed {
    /// How many ever were.
    count: u64,
    /// What the last ones were looked up by.
    tags: VecDeque<u64>,
}

impl Removed {
    pub fn note(&mut self, tags: impl Iterator<Item = u64>) {
        for tag in tags {
            if self.tags.len() == LOG_MAX {
                self.tags.pop_front();
            }
            self.tags.push_back(tag);
            self.count += 1;
        }
    }

    /// Those since there were `count`, if they are all known.
    fn since(&self, count: u64) -> Option<HashSet<u64>> {
        let new = (self.count - count) as usize;
        let known = self.tags.len().checked_sub(new)?;
        Some(self.tags.range(known..).copied().collect())
    }
}

/// What was put away of an address space.
#[derive(Debug)]
struct Kept {
    era: u64,
    tables: Away,
    /// Whose jump cache the user's was.
    owner: Option<Mode>,
    /// How many blocks had been removed, and the epoch that their addresses are good for.
    removed: u64,
    epoch: u64,
}

/// Address spaces, those put away last at the end.
#[derive(Debug, Default)]
pub(super) struct Elsewhere {
    /// The era and the PCID whose the tables are; era 0 if that isn't known.
    current: (u64, u16),
    kept: Vec<Kept>,
}

impl Elsewhere {
    pub fn clear(&mut self) {
        self.kept.clear();
        self.current = (0, 0);
    }

    fn take(&mut self, era: u64) -> Option<Kept> {
        let at = self.kept.iter().position(|kept| kept.era == era)?;
        Some(self.kept.remove(at))
    }
}

impl Bt {
    /// All but global pages was flushed: another address space is current, or the same one in a new era.
    pub(super) fn switch_tables(&mut self) {
        let soft = &self.interp.mem.soft;
        let (era, pcid) = self.elsewhere.current;
        let now = (soft.era(), soft.pcid());
        self.elsewhere.current = now;
        let changed = |flushed: &FlushedPages| flushed.era == era;
        let lives = era != 0 && era != now.0 && soft.era_of_pcid(pcid) == era;
        if lives && !self.interp.mem.flushed_pages.iter().any(changed) {
            if self.elsewhere.kept.len() == KEPT_MAX {
                self.elsewhere.kept.remove(0);
            }
            // What is removed from here on is in the log since then.
            let (removed, epoch) = (self.shared.removed().count, self.shared.epoch());
            let tables = self.area.put_away();
            let owner = self.jump_owner[0];
            self.elsewhere.kept.push(Kept { era, tables, owner, removed, epoch });
        }
        self.area.flush(false);
        let Some(kept) = self.elsewhere.take(now.0) else { return };
        if let Some(mode) = kept.owner {
            self.own_jumps(mode);
        }
        // Under the log's lock: who removes a block from now on looks for it in the jump cache later.
        let removed = self.shared.removed();
        let gone = removed.since(kept.removed).filter(|_| kept.epoch == self.shared.epoch());
        self.area
            .bring_back(&kept.tables, |rip| gone.as_ref().is_some_and(|gone| !gone.contains(&rip)));
    }

    /// Pages of single eras were flushed.
    pub(super) fn drop_kept(&mut self) {
        let era = self.interp.mem.soft.era();
        for flushed in &self.interp.mem.flushed_pages {
            if flushed.era != era {
                drop(self.elsewhere.take(flushed.era));
            }
        }
    }
}
