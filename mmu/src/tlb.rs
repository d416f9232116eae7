//! The software TLB: one vCPU's view of guest memory.
//!
//! Problem: every load, store and fetch of the interpreter is a linear address, and a page walk costs
//! some fifty times what the access does. Scheme: a direct-mapped table of 4 KiB translations. A hit
//! is a compare of page number and era, a test of one permission bit, and an addition.
//!
//! - *Permissions* are worked out once, when an entry is filled: nine bits, one for each kind of access
//!   and privilege, SMAP and AC included. A page that isn't dirty has no write bits, so the first
//!   write walks again and sets the dirty bit; nor has a page of ROM, whose writes are a device's. Refusals are never cached: they walk and so find
//!   rights that the guest has since granted, which hardware does too.
//! - *Eras* make flushes O(1). Each PCID has a number, its era, drawn from a counter that never
//!   repeats; an entry is good while it carries the era of the current PCID, or of the global pages.
//!   To flush is to draw a new number. Eras below `floor` are void whatever the table says, which
//!   flushes all PCIDs at once.
//! - *Large pages* are entered by 4 KiB fragments. INVLPG of any address in a large page must drop all
//!   its fragments. `large` remembers which those pages are, so that the common INVLPG of a
//!   small page looks at one entry only.
//!
//! Other vCPUs' changes to page tables are seen after a flush by this vCPU, as on hardware. Changes of
//! CR0, CR4 and EFER bits that steer walks must be followed by `flush_all`.
//!
//! Whether a page holds cached code is *not* cached here, as another vCPU may start to watch it at
//! any moment: the storer's call of `stored` after the store finds it out (see [`crate::code`]).
//!
//! Invariants: era 0 is never current; an entry's host pointer is into RAM or null. One instance per
//! vCPU, on its thread. Source: SDM vol. 3, "Caching Translation Information".

use std::sync::Arc;

use xenolith_cpu::env::{Access, Memory, PageFault, Place, Privilege};
use xenolith_cpu::state::Cr4;
use xenolith_cpu::{CpuState, Gpa, Gva, PAGE_SIZE};

use crate::pages::PageSet;
use crate::ram::GuestRam;
use crate::walk::{Paging, Translation, Ways, load_pdptes, peek, walk};

/// Entries in the table.
const ENTRIES: usize = 4096;
/// Large pages of one size that are told apart.
const LARGE_MAX: usize = 1 << 16;
const PCIDS: usize = 4096;

const PAGE_MASK: u64 = !(PAGE_SIZE - 1);
/// Where an entry's size class lies in its `gpa_and_rights`, above the nine permission bits.
const SIZE_SHIFT: u32 = 9;
/// Page shifts of the size classes 1, 2 and 3. Class 0 is 4 KiB.
const LARGE_SHIFTS: [u8; 3] = [21, 22, 30];

#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
struct Entry {
    /// Linear address of the page.
    page: u64,
    /// Good while this is the current PCID's or the global era.
    era: u64,
    /// Host address of the page; null for a device.
    host: *mut u8,
    /// Guest physical address of the page; bits 0-8 permissions, bits 9-10 size class.
    gpa_and_rights: u64,
}

impl Entry {
    const EMPTY: Self = Self { page: 0, era: 0, host: std::ptr::null_mut(), gpa_and_rights: 0 };

    fn size_class(&self) -> usize {
        (self.gpa_and_rights >> SIZE_SHIFT) as usize & 3
    }
}

/// Which permission bit of an entry an access needs.
#[inline(always)]
fn permission(access: Access, privilege: Privilege) -> u64 {
    1 << (access as u32 * 3 + privilege as u32)
}

#[inline(always)]
fn slot_of(gva: u64) -> usize {
    // Spreads regions that are large powers of two apart; a constant within 16 MiB.
    ((gva >> 12) ^ (gva >> 24)) as usize & (ENTRIES - 1)
}

/// What is known of a page that is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cached {
    /// Of all address spaces.
    pub global: bool,
    /// May be written, and its dirty bit is set.
    pub writable: bool,
}

/// What the guest's tables say of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peeked {
    pub gpa: Gpa,
    /// May be written, and its dirty bit is set.
    pub writable: bool,
    pub global: bool,
    pub executable: bool,
    /// log2 of the page's size in bytes.
    pub shift: u8,
}

/// Pages of one size, by the address bits above their offsets.
#[derive(Debug, Default)]
struct Large {
    pages: PageSet,
    /// There were too many to tell them apart.
    all: bool,
}

impl Large {
    fn note(&mut self, page: u64) {
        self.all |= self.pages.len() >= LARGE_MAX;
        if !self.all {
            self.pages.insert(page);
        }
    }

    fn may_have(&self, page: u64) -> bool {
        self.all || self.pages.contains(&page)
    }
}

/// Guest memory as one vCPU sees it.
#[derive(Debug)]
pub struct SoftMmu {
    entries: Box<[Entry; ENTRIES]>,
    /// Era of the current PCID.
    era: u64,
    global_era: u64,
    next_era: u64,
    /// Eras below this are void.
    floor: u64,
    pcid: u16,
    /// Era of each PCID, the current one included.
    eras: Box<[u64; PCIDS]>,
    /// For each size class from 1, the pages that may have fragments in the table.
    large: [Large; LARGE_SHIFTS.len()],
    ram: Arc<GuestRam>,
    physical_bits: u8,
    gigabyte_pages: bool,
    amd: bool,
    walks: u64,
}

// SAFETY: the raw pointers in the entries lead into RAM that `ram` keeps alive on any thread.
unsafe impl Send for SoftMmu {}

impl SoftMmu {
    /// An empty TLB over `ram`, for a CPU model with `physical_bits` of MAXPHYADDR.
    #[must_use]
    pub fn new(ram: Arc<GuestRam>, physical_bits: u8) -> Self {
        let mut eras = Box::new([0; PCIDS]);
        eras[0] = 1;
        Self {
            entries: Box::new([Entry::EMPTY; ENTRIES]),
            era: 1,
            global_era: 2,
            next_era: 3,
            floor: 1,
            pcid: 0,
            eras,
            large: Default::default(),
            ram,
            physical_bits,
            gigabyte_pages: true,
            amd: false,
            walks: 0,
        }
    }

    /// Whether the CPU model has 1 GiB pages (it does at first). Without, PS in a PDPTE is reserved.
    pub fn set_gigabyte_pages(&mut self, present: bool) {
        self.gigabyte_pages = present;
        self.flush_all();
    }

    /// Whether the CPU model is AMD's (it isn't at first), which reserves G where it has no meaning.
    pub fn set_amd(&mut self, amd: bool) {
        self.amd = amd;
        self.flush_all();
    }

    #[must_use]
    pub fn guest_ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Page walks done so far, for statistics.
    #[must_use]
    pub fn walks(&self) -> u64 {
        self.walks
    }

    /// The shift of the largest page that a cached translation of `gva` may come from: all of that page
    /// goes when `gva`'s is flushed.
    #[must_use]
    pub fn page_shift(&self, gva: Gva) -> u8 {
        let classes = LARGE_SHIFTS.iter().zip(&self.large).rev();
        let mut large = classes.filter(|(shift, large)| large.may_have(gva.0 >> **shift));
        large.next().map_or(12, |(&shift, _)| shift)
    }

    /// Says that what a page of this size was translated to is kept, here or by somebody else: a flush of one part of it
    /// concerns all. Gives the size's class if it is large.
    pub fn note_kept(&mut self, gva: Gva, shift: u8) -> Option<usize> {
        let class = LARGE_SHIFTS.iter().position(|&large| large == shift)?;
        self.large[class].note(gva.0 >> shift);
        Some(class)
    }

    /// What is cached of `gva`'s page, if anything: without a walk.
    #[must_use]
    pub fn cached(&self, gva: Gva, privilege: Privilege) -> Option<Cached> {
        let entry = &self.entries[slot_of(gva.0)];
        let global = entry.era == self.global_era;
        let good = entry.page == gva.0 & PAGE_MASK && (entry.era == self.era || global);
        let writable = entry.gpa_and_rights & permission(Access::Write, privilege) != 0;
        good.then_some(Cached { global, writable })
    }

    /// The number of the current PCID's present contents: another one after each flush of them.
    #[must_use]
    #[inline]
    pub fn era(&self) -> u64 {
        self.era
    }

    /// The same of a PCID that need not be current; 0 if it has none.
    #[must_use]
    pub fn era_of_pcid(&self, pcid: u16) -> u64 {
        self.era_of(pcid)
    }

    /// The number of the global pages' present contents.
    #[must_use]
    #[inline]
    pub fn global_era(&self) -> u64 {
        self.global_era
    }

    /// What a read would find at `gva` without setting a bit. Sets nothing and keeps nothing.
    #[must_use]
    pub fn peek(&self, cpu: &CpuState, gva: Gva, privilege: Privilege) -> Option<Peeked> {
        let paging = self.paging(cpu);
        self.peeked(&paging, &peek(&self.ram, &paging, gva)?, privilege)
    }

    /// [`Self::peek`] for many pages at one moment.
    pub fn peeks(&self, cpu: &CpuState, privilege: Privilege) -> impl FnMut(Gva) -> Option<Peeked> {
        let paging = self.paging(cpu);
        let mut ways = Ways::new(&self.ram, paging);
        move |gva| self.peeked(&paging, &ways.peek(gva)?, privilege)
    }

    fn peeked(&self, paging: &Paging, found: &Translation, privilege: Privilege) -> Option<Peeked> {
        let may = |access| paging.permits(found.rights, access, privilege);
        may(Access::Read).then(|| Peeked {
            gpa: found.gpa,
            writable: found.dirty && may(Access::Write) && self.ram.may_write(found.gpa),
            global: found.global,
            executable: may(Access::Fetch),
            shift: found.page_shift,
        })
    }

    fn paging(&self, cpu: &CpuState) -> Paging {
        Paging {
            reserves_global: self.amd,
            ..Paging::of(cpu, self.physical_bits, self.gigabyte_pages)
        }
    }

    fn draw_era(&mut self) -> u64 {
        let era = self.next_era;
        self.next_era += 1;
        era
    }

    /// The current PCID.
    #[must_use]
    pub fn pcid(&self) -> u16 {
        self.pcid
    }

    /// The era of a PCID that need not be current; 0 if it has nothing cached.
    fn era_of(&self, pcid: u16) -> u64 {
        let era = self.eras[usize::from(pcid) & (PCIDS - 1)];
        if era >= self.floor { era } else { 0 }
    }

    fn enter(&mut self, pcid: u16, keep: bool) {
        let mut era = if keep { self.era_of(pcid) } else { 0 };
        if era == 0 {
            era = self.draw_era();
            self.eras[usize::from(pcid) & (PCIDS - 1)] = era;
        }
        self.era = era;
        self.pcid = pcid;
    }

    /// Walks, and keeps the result.
    #[cold]
    #[inline(never)]
    fn miss(
        &mut self,
        cpu: &CpuState,
        gva: Gva,
        access: Access,
        privilege: Privilege,
    ) -> Result<Place, PageFault> {
        let pcid = current_pcid(cpu);
        if pcid != self.pcid {
            // CR4.PCIDE has changed, after which the TLB was flushed and CR3 not loaded.
            self.enter(pcid, true);
        }
        self.walks += 1;
        let paging = self.paging(cpu);
        let translation = walk(&self.ram, &paging, gva, access, privilege)?;
        let entry = self.fill(&paging, gva, &translation);
        if access == Access::Write && entry.gpa_and_rights & permission(access, privilege) == 0 {
            // The page lets this be written, the chip set doesn't.
            return Ok(Place::Device { gpa: Gpa(translation.gpa.0 | gva.0 & !PAGE_MASK) });
        }
        Ok(place(&entry, gva))
    }

    fn fill(&mut self, paging: &Paging, gva: Gva, translation: &Translation) -> Entry {
        let host = self.ram.host_ptr(translation.gpa, PAGE_SIZE as usize);
        let writable = host.is_none() || self.ram.may_write(translation.gpa);
        let mut rights = 0;
        for privilege in [Privilege::User, Privilege::Supervisor, Privilege::SupervisorAc] {
            for access in [Access::Read, Access::Write, Access::Fetch] {
                let barred = access == Access::Write && !(translation.dirty && writable);
                if !barred && paging.permits(translation.rights, access, privilege) {
                    rights |= permission(access, privilege);
                }
            }
        }
        let large = self.note_kept(gva, translation.page_shift);
        let size_class = large.map_or(0, |class| class as u64 + 1);
        let entry = Entry {
            page: gva.0 & PAGE_MASK,
            era: if translation.global { self.global_era } else { self.era },
            host: host.unwrap_or(std::ptr::null_mut()),
            gpa_and_rights: translation.gpa.0 | rights | size_class << SIZE_SHIFT,
        };
        self.entries[slot_of(gva.0)] = entry;
        entry
    }

    /// Drops what is cached for the page of `gva` in an era, and among the global pages if asked.
    fn drop_page(&mut self, gva: u64, era: u64, global: bool) {
        let global_era = if global { self.global_era } else { era };
        let drop_slot = |entry: &mut Entry, size_class: usize, shift: u8| {
            let same = (entry.page ^ gva) >> shift == 0 && entry.size_class() == size_class;
            if same && (entry.era == era || entry.era == global_era) {
                entry.era = 0;
            }
        };
        let slot = &mut self.entries[slot_of(gva)];
        let class = slot.size_class();
        drop_slot(slot, class, 12);
        for (index, &shift) in LARGE_SHIFTS.iter().enumerate() {
            if !self.large[index].may_have(gva >> shift) {
                continue;
            }
            let base = gva & (u64::MAX << shift);
            let fragments = 1_u64 << (shift - 12);
            if fragments >= ENTRIES as u64 {
                for entry in self.entries.iter_mut() {
                    drop_slot(entry, index + 1, shift);
                }
            } else {
                for fragment in 0..fragments {
                    let slot = slot_of(base + fragment * PAGE_SIZE);
                    drop_slot(&mut self.entries[slot], index + 1, shift);
                }
            }
        }
    }
}

fn current_pcid(cpu: &CpuState) -> u16 {
    if cpu.cr4(Cr4::PCIDE) { (cpu.cr3 & 0xfff) as u16 } else { 0 }
}

#[inline(always)]
fn place(entry: &Entry, gva: Gva) -> Place {
    let offset = gva.0 & !PAGE_MASK;
    let gpa = Gpa((entry.gpa_and_rights & PAGE_MASK) | offset);
    if entry.host.is_null() {
        Place::Device { gpa }
    } else {
        let hva = entry.host.wrapping_add(offset as usize);
        Place::Ram { hva, gpa }
    }
}

impl Memory for SoftMmu {
    #[inline(always)]
    fn translate(
        &mut self,
        cpu: &CpuState,
        gva: Gva,
        access: Access,
        privilege: Privilege,
    ) -> Result<Place, PageFault> {
        let entry = &self.entries[slot_of(gva.0)];
        if entry.page == gva.0 & PAGE_MASK
            && (entry.era == self.era || entry.era == self.global_era)
            && entry.gpa_and_rights & permission(access, privilege) != 0
        {
            return Ok(place(entry, gva));
        }
        self.miss(cpu, gva, access, privilege)
    }

    #[inline]
    fn ram(&self, gpa: Gpa, len: usize) -> Option<*mut u8> {
        self.ram.host_ptr(gpa, len)
    }

    #[inline(always)]
    fn stored(&mut self, gpa: Gpa, len: u64) -> bool {
        self.ram.code().stored_bytes(gpa, len)
    }

    fn watch_code(&mut self, gpa: Gpa) -> u32 {
        self.ram.code().watch(gpa.gpn())
    }

    #[inline(always)]
    fn code_version(&self, gpa: Gpa) -> u32 {
        self.ram.code().version(gpa.gpn())
    }

    fn pdptes(&self, cr3: u64) -> Option<[u64; 4]> {
        load_pdptes(&self.ram, cr3, self.physical_bits).ok()
    }

    fn flush_all(&mut self) {
        self.global_era = self.draw_era();
        self.large = Default::default();
        self.flush_context(None);
    }

    fn flush_context(&mut self, pcid: Option<u16>) {
        match pcid {
            None => {
                self.floor = self.next_era;
                self.enter(self.pcid, false);
            }
            Some(pcid) if pcid == self.pcid => self.enter(pcid, false),
            Some(pcid) => self.eras[usize::from(pcid) & (PCIDS - 1)] = 0,
        }
    }

    fn set_context(&mut self, cpu: &CpuState, keep: bool) {
        self.enter(current_pcid(cpu), keep && cpu.cr4(Cr4::PCIDE));
    }

    fn flush_page(&mut self, gva: Gva) {
        self.drop_page(gva.0, self.era, true);
    }

    fn flush_page_in(&mut self, pcid: u16, gva: Gva) {
        let era = self.era_of(pcid);
        if era != 0 {
            self.drop_page(gva.0, era, false);
        }
    }
}

#[cfg(test)]
mod tests;
