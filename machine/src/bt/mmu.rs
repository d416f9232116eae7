//! The soft TLB, with a note of what the inline TLB must forget.
//!
//! Problem: the interpreter, which handles everything rare, flushes and stores through [`Memory`], and
//! translated code's own tables must follow. Scheme: a wrapper that passes everything on and keeps
//! notes; the engine acts on them before translated code runs again. One per vCPU, on its thread.

use xenolith_cpu::env::{Access, Memory, PageFault, Place, Privilege};
use xenolith_cpu::{CpuState, Gpa, Gva};
use xenolith_mmu::SoftMmu;

/// See the module's head.
#[derive(Debug)]
pub struct NotingMmu {
    pub soft: SoftMmu,
    /// All translations were dropped.
    pub flushed: bool,
    /// Pages whose translations were dropped.
    pub flushed_pages: Vec<u64>,
    /// A page has become watched: nothing may be written to it unseen.
    pub newly_watched: bool,
    /// Pages with code that were stored to.
    pub written: Vec<u64>,
}

impl NotingMmu {
    pub fn new(soft: SoftMmu) -> Self {
        Self {
            soft,
            flushed: false,
            flushed_pages: Vec::new(),
            newly_watched: false,
            written: Vec::new(),
        }
    }
}

impl NotingMmu {
    fn note_page(&mut self, gva: Gva) {
        if self.soft.may_be_large(gva) {
            self.flushed = true;
        } else {
            self.flushed_pages.push(gva.page_base().0);
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
        self.soft.translate(cpu, gva, access, privilege)
    }
    fn ram(&self, gpa: Gpa, len: usize) -> Option<*mut u8> {
        self.soft.ram(gpa, len)
    }
    #[inline(always)]
    fn stored(&mut self, gpa: Gpa) -> bool {
        let watched = self.soft.stored(gpa);
        if watched {
            self.written.push(gpa.gpn());
        }
        watched
    }
    fn watch_code(&mut self, gpa: Gpa) -> u32 {
        if self.soft.code_version(gpa) == 0 {
            self.newly_watched = true;
        }
        self.soft.watch_code(gpa)
    }
    fn code_version(&self, gpa: Gpa) -> u32 {
        self.soft.code_version(gpa)
    }
    fn pdptes(&self, cr3: u64) -> Option<[u64; 4]> {
        self.soft.pdptes(cr3)
    }
    fn flush_all(&mut self) {
        self.flushed = true;
        self.soft.flush_all();
    }
    fn flush_context(&mut self, pcid: Option<u16>) {
        self.flushed = true;
        self.soft.flush_context(pcid);
    }
    fn set_context(&mut self, cpu: &CpuState, keep: bool) {
        self.flushed = true;
        self.soft.set_context(cpu, keep);
    }
    fn flush_page(&mut self, gva: Gva) {
        self.note_page(gva);
        self.soft.flush_page(gva);
    }
    fn flush_page_in(&mut self, pcid: u16, gva: Gva) {
        self.note_page(gva);
        self.soft.flush_page_in(pcid, gva);
    }
}
