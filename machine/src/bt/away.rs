//! The tables of address spaces that are not current.
//!
//! Problem: a guest that switches between two processes would find all their pages and branches again at each
//! switch. Scheme: what the tables of translated code have of an address space is kept under the era of its TLB
//! entries when it is left, and is in use again if that era becomes current again. Invariant: what is kept
//! is dropped with anything that its era drops. Thread: the vCPU's.

use xenolith_cpu::Gva;
use xenolith_cpu::env::Privilege;
use xenolith_translator::area::{Away, SPACES};
use xenolith_translator::mode::Mode;

use super::Bt;
use super::mmu::{FlushedPages, KeptLarge};
use super::windows::ticks;

/// Address spaces that are kept; one more is current.
const KEPT_MAX: usize = SPACES - 1;

/// What is kept of an address space.
#[derive(Debug)]
struct Kept {
    era: u64,
    tables: Away,
    /// Whose jump cache the user's is.
    owner: Option<Mode>,
}

/// Address spaces, those that were left last at the end.
#[derive(Debug, Default)]
pub(super) struct Elsewhere {
    /// The era and the PCID whose the tables are; era 0 if that isn't known.
    current: (u64, u16),
    kept: Vec<Kept>,
    /// Time stamp counts: when all was flushed last, and what keeping the kernel's took then.
    flushed_at: u64,
    keeping: u64,
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

    /// A jump cache that is nobody's.
    fn free_space(&mut self) -> usize {
        if self.kept.len() > KEPT_MAX {
            self.kept.remove(0);
        }
        let is_free = |space: &usize| self.kept.iter().all(|kept| kept.tables.space != *space);
        (0..SPACES).find(is_free).expect("fewer are kept than there are")
    }
}

impl Bt {
    /// All was flushed. Of the kernel's code, the tables keep what is where it was, if the last time was longer ago than
    /// looking at it took.
    pub(super) fn flush_area(&mut self) {
        let start = ticks();
        let worked = start.wrapping_sub(std::mem::replace(&mut self.elsewhere.flushed_at, start));
        if self.breakpoints.is_some() || worked < self.elsewhere.keeping {
            return self.area.flush();
        }
        let Self { interp, area, .. } = self;
        let mut large = KeptLarge::new();
        let mut peek = interp.mem.soft.peeks(&interp.state, Privilege::Supervisor);
        area.flush_but(|la| {
            let found = peek(Gva(la)).filter(|found| found.executable)?;
            large.note(la, found.shift);
            Some((found.gpa.gpn(), found.global))
        });
        drop(peek);
        large.tell(&mut interp.mem.soft);
        self.elsewhere.keeping = ticks().wrapping_sub(start);
    }

    /// All but global pages was flushed: another address space is current, or the same one in a new era.
    pub(super) fn switch_tables(&mut self) {
        let soft = &self.interp.mem.soft;
        let (era, pcid) = self.elsewhere.current;
        let now = (soft.era(), soft.pcid());
        self.elsewhere.current = now;
        let changed = |flushed: &FlushedPages| flushed.era == era;
        let lives = era != 0 && era != now.0 && soft.era_of_pcid(pcid) == era;
        let keep = lives && !self.interp.mem.flushed_pages.iter().any(changed);
        if let Some(tables) = self.area.leave_space(keep) {
            self.elsewhere.kept.push(Kept { era, tables, owner: self.jump_owner[0] });
        }
        let Some(kept) = self.elsewhere.take(now.0) else {
            let space = self.elsewhere.free_space();
            return self.area.enter_space(space, None);
        };
        if kept.owner != self.jump_owner[0] {
            self.jump_owner[0] = kept.owner;
            self.area.crossing_closed = 1;
        }
        self.area.enter_space(kept.tables.space, Some(kept.tables));
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
