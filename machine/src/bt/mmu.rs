//! The soft TLB, with a note of what the inline TLB must forget.
//!
//! Problem: the interpreter, which handles everything rare, flushes and stores through [`Memory`], and
//! translated code's own tables must follow. Scheme: a wrapper that passes everything on and keeps
//! notes; the engine acts on them before translated code runs again. A page that begins to be watched
//! is forbidden to the other vCPUs at once, before its bytes are read. One per vCPU, on its thread.

use std::sync::Arc;

use xenolith_cpu::env::{Access, Memory, PageFault, Place, Privilege};
use xenolith_cpu::{CpuState, Gpa, Gva};
use xenolith_mmu::SoftMmu;

use super::shared::{Peer, Shared};

/// What was dropped from the TLB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flushed {
    Nothing,
    /// All but global pages.
    Local,
    All,
}

/// Translations of one era that were dropped: `count` pages from `page` on. `global`: those of global pages were, too.
#[derive(Clone, Copy, Debug)]
pub struct FlushedPages {
    pub era: u64,
    pub page: u64,
    pub count: u64,
    pub global: bool,
}

/// Pages that are dropped one by one: those of the smaller large pages.
const FLUSHED_COUNT_MAX: u64 = 1024;

/// Large pages that are told apart from those seen before; a power of two.
const LATELY: usize = 64;

/// Large pages of which something is kept over a flush, most of them once: they come in no order.
#[derive(Debug)]
pub struct KeptLarge {
    pages: Vec<(u64, u8)>,
    lately: [(u64, u8); LATELY],
}

impl KeptLarge {
    pub fn new() -> Self {
        Self { pages: Vec::new(), lately: [(0, 0); LATELY] }
    }

    /// The page of `la` is kept, which is part of one of this size.
    pub fn note(&mut self, la: u64, shift: u8) {
        let number = la >> shift;
        let whole = (number << shift, shift);
        if shift > 12
            && std::mem::replace(&mut self.lately[number as usize % LATELY], whole) != whole
        {
            self.pages.push(whole);
        }
    }

    /// Tells the soft TLB, which a flush has made forget them.
    pub fn tell(self, soft: &mut SoftMmu) {
        for (la, shift) in self.pages {
            soft.note_kept(Gva(la), shift);
        }
    }
}

/// See the module's head.
#[derive(Debug)]
pub struct NotingMmu {
    pub soft: SoftMmu,
    pub flushed: Flushed,
    /// Pages whose translations were dropped.
    pub flushed_pages: Vec<FlushedPages>,
    /// Too many for `flushed_pages` were dropped.
    pub flushed_huge: bool,
    /// Guest pages that have become watched: nothing may be written to them unseen.
    pub newly_watched: Vec<u64>,
    /// User code talks to devices, for the first time.
    pub met_device: bool,
    /// A store went to a watched page: the block that is being left may be stale.
    pub stored_to_code: bool,
    shared: Arc<Shared>,
    me: Arc<Peer>,
}

impl NotingMmu {
    pub fn new(soft: SoftMmu, shared: Arc<Shared>, me: Arc<Peer>) -> Self {
        Self {
            soft,
            flushed: Flushed::Nothing,
            flushed_pages: Vec::new(),
            flushed_huge: false,
            newly_watched: Vec::new(),
            met_device: false,
            stored_to_code: false,
            shared,
            me,
        }
    }

    fn note(&mut self, flushed: Flushed) {
        self.flushed = self.flushed.max(flushed);
    }

    /// All of what may be one large page goes with any part of it.
    fn note_page(&mut self, era: u64, gva: Gva, global: bool) {
        let shift = self.soft.page_shift(gva);
        let page = gva.0 >> shift << (shift - 12);
        let count = 1 << (shift - 12);
        if count > FLUSHED_COUNT_MAX {
            self.flushed = Flushed::All;
            self.flushed_huge = true;
        } else {
            self.flushed_pages.push(FlushedPages { era, page, count, global });
        }
    }
}

impl Memory for NotingMmu {
    #[inline(always)]
    fn translate(
        &mut self,
        cpu: &CpuState,
        gva: Gva,
        access: Access,
        privilege: Privilege,
    ) -> Result<Place, PageFault> {
        let place = self.soft.translate(cpu, gva, access, privilege);
        if privilege == Privilege::User && matches!(place, Ok(Place::Device { .. })) {
            self.user_meets_device();
        }
        place
    }
    fn user_meets_device(&mut self) {
        self.met_device |= self.shared.note_user_device();
    }
    fn ram(&self, gpa: Gpa, len: usize) -> Option<*mut u8> {
        self.soft.ram(gpa, len)
    }
    #[inline(always)]
    fn stored(&mut self, gpa: Gpa, len: u64) -> bool {
        let watched = self.soft.stored(gpa, len);
        self.stored_to_code |= watched;
        watched
    }
    fn watch_code(&mut self, gpa: Gpa) -> u32 {
        let newly = self.soft.code_version(gpa) == 0;
        let version = self.soft.watch_code(gpa);
        if newly {
            self.newly_watched.push(gpa.gpn());
            self.shared.forbid_writes(&self.me, gpa.gpn());
        }
        version
    }
    fn code_version(&self, gpa: Gpa) -> u32 {
        self.soft.code_version(gpa)
    }
    fn pdptes(&self, cr3: u64) -> Option<[u64; 4]> {
        self.soft.pdptes(cr3)
    }
    fn flush_all(&mut self) {
        self.note(Flushed::All);
        self.soft.flush_all();
    }
    fn flush_context(&mut self, pcid: Option<u16>) {
        self.note(Flushed::Local);
        self.soft.flush_context(pcid);
    }
    fn set_context(&mut self, cpu: &CpuState, keep: bool) {
        self.note(Flushed::Local);
        self.soft.set_context(cpu, keep);
    }
    fn flush_page(&mut self, gva: Gva) {
        self.note_page(self.soft.era(), gva, true);
        self.soft.flush_page(gva);
    }
    fn flush_page_in(&mut self, pcid: u16, gva: Gva) {
        self.note_page(self.soft.era_of_pcid(pcid), gva, false);
        self.soft.flush_page_in(pcid, gva);
    }
}
