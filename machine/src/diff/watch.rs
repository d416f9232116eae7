//! Guest memory that tells what an instruction touched.
//!
//! Problem: a report must show the memory an instruction read and wrote, with what was there before;
//! and a wrong store must be found at the store, not where its value is loaded an hour later. Scheme: a
//! wrapper of the soft TLB that keeps every data translation with the bytes found there, and every page
//! stored to. Invariant: [`Watched::forget`] between steps, or the lists stop growing at their bounds.
//! Thread: the one that drives the engine.

use xenolith_cpu::env::{Access, Memory, PageFault, Place, Privilege};
use xenolith_cpu::{CpuState, Gpa, Gva, PAGE_SIZE};
use xenolith_mmu::SoftMmu;

/// Bytes kept of each place touched.
pub const SHOWN: usize = 16;
/// Places kept of one step; a string instruction may touch very many.
const TOUCHES_MAX: usize = 64;

/// A place that was read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    pub gva: u64,
    pub gpa: u64,
    pub write: bool,
    pub before: [u8; SHOWN],
}

/// See the module's head.
#[derive(Debug)]
pub struct Watched {
    pub soft: SoftMmu,
    pub touches: Vec<Touch>,
    /// Guest physical pages stored to, in order, with repetitions.
    pub stored: Vec<u64>,
}

impl Watched {
    #[must_use]
    pub fn new(soft: SoftMmu) -> Self {
        Self { soft, touches: Vec::with_capacity(TOUCHES_MAX), stored: Vec::new() }
    }

    /// Begins a new step.
    pub fn forget(&mut self) {
        self.touches.clear();
        self.stored.clear();
    }
}

/// The first bytes at `hva`, as far as they are in the page.
fn peek(hva: *const u8, gpa: u64) -> [u8; SHOWN] {
    let mut bytes = [0; SHOWN];
    let len = SHOWN.min((PAGE_SIZE - gpa % PAGE_SIZE) as usize);
    // SAFETY: `hva` leads to RAM up to the end of its page, which `len` doesn't pass.
    unsafe { std::ptr::copy_nonoverlapping(hva, bytes.as_mut_ptr(), len) };
    bytes
}

impl Memory for Watched {
    #[inline(always)]
    fn translate(
        &mut self,
        cpu: &CpuState,
        gva: Gva,
        access: Access,
        privilege: Privilege,
    ) -> Result<Place, PageFault> {
        let place = self.soft.translate(cpu, gva, access, privilege)?;
        if access != Access::Fetch
            && self.touches.len() < TOUCHES_MAX
            && let Place::Ram { hva, gpa } = place
        {
            let write = access == Access::Write;
            let before = peek(hva, gpa.0);
            self.touches.push(Touch { gva: gva.0, gpa: gpa.0, write, before });
        }
        Ok(place)
    }
    fn ram(&self, gpa: Gpa, len: usize) -> Option<*mut u8> {
        self.soft.ram(gpa, len)
    }
    #[inline(always)]
    fn stored(&mut self, gpa: Gpa, len: u64) -> bool {
        let gpn = gpa.gpn();
        if self.stored.last() != Some(&gpn) {
            self.stored.push(gpn);
        }
        self.soft.stored(gpa, len)
    }
    fn watch_code(&mut self, gpa: Gpa) -> u32 {
        self.soft.watch_code(gpa)
    }
    #[inline(always)]
    fn code_version(&self, gpa: Gpa) -> u32 {
        self.soft.code_version(gpa)
    }
    fn pdptes(&self, cr3: u64) -> Option<[u64; 4]> {
        self.soft.pdptes(cr3)
    }
    fn flush_all(&mut self) {
        self.soft.flush_all();
    }
    fn flush_context(&mut self, pcid: Option<u16>) {
        self.soft.flush_context(pcid);
    }
    fn set_context(&mut self, cpu: &CpuState, keep: bool) {
        self.soft.set_context(cpu, keep);
    }
    fn flush_page(&mut self, gva: Gva) {
        self.soft.flush_page(gva);
    }
    fn flush_page_in(&mut self, pcid: u16, gva: Gva) {
        self.soft.flush_page_in(pcid, gva);
    }
}
