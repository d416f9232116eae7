//! Guest page-table walks.
//!
//! Problem: the guest's page tables, in its own memory and changed by its other vCPUs at any time,
//! say where a linear address leads and who may go there. Scheme: [`walk`] descends through the
//! tables, notes each entry, checks rights, and on success sets accessed and dirty bits with a
//! compare-and-exchange of exactly the entry it has judged; if an entry has changed meanwhile, the walk
//! starts over. Nothing is cached here.
//!
//! Four modes: none, 32-bit (two levels of 4-byte entries, 4 MiB pages with PSE-36), PAE (four PDPTE
//! registers, then two levels of 8-byte entries, 2 MiB pages), 4-level (2 MiB and 1 GiB pages).
//! An entry is judged in the SDM's order: not present, then reserved bits, at each level on the way
//! down; rights only at the end, over all levels together. A table that lies outside RAM reads as
//! all ones, as an unclaimed bus does, and is not written; one in ROM is read, and not written either.
//!
//! Invariants: a refused access changes no accessed or dirty bit; every loop is bounded. Any thread.
//! Source: SDM vol. 3, chapter "Paging": "Paging Modes and Control Bits", "32-Bit Paging", "PAE
//! Paging", "4-Level Paging and 5-Level Paging", "Access Rights", "Page-Fault Exceptions",
//! "Accessed and Dirty Flags"; APM vol. 2, "Page-Translation-Table Entry Fields".

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use xenolith_cpu::env::{Access, PageFault, Privilege};
use xenolith_cpu::exception::page_fault;
use xenolith_cpu::state::{Cr0, Cr4, Efer};
use xenolith_cpu::{CpuState, Gpa, Gva};

use crate::ram::GuestRam;

mod ways;

pub use ways::Ways;

/// Bits of a paging-structure entry.
pub mod entry {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    /// Maps a page rather than referring to a table.
    pub const PAGE_SIZE: u64 = 1 << 7;
    pub const GLOBAL: u64 = 1 << 8;
    pub const NO_EXECUTE: u64 = 1 << 63;
}

/// Tries at setting accessed bits by compare-and-exchange before they are just or-ed in.
const RETRIES_MAX: u32 = 64;

/// Paging modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Off,
    Bits32,
    Pae,
    FourLevel,
}

/// What of a vCPU's state and model steers a walk.
#[derive(Clone, Copy, Debug)]
pub struct Paging {
    pub mode: Mode,
    pub cr3: u64,
    pub pdpte: [u64; 4],
    pub write_protect: bool,
    pub smep: bool,
    pub smap: bool,
    pub no_execute: bool,
    pub page_size_extensions: bool,
    pub global_pages: bool,
    /// The CPU model has 1 GiB pages.
    pub gigabyte_pages: bool,
    /// AMD's 4-level paging: G is reserved in entries that refer to a page directory or above.
    pub reserves_global: bool,
    /// MAXPHYADDR, 32 to 52.
    pub physical_bits: u8,
}

impl Paging {
    /// The paging that `cpu` is under.
    #[must_use]
    pub fn of(cpu: &CpuState, physical_bits: u8, gigabyte_pages: bool) -> Self {
        let mode = if !cpu.cr0(Cr0::PG) {
            Mode::Off
        } else if cpu.long_mode() {
            Mode::FourLevel
        } else if cpu.cr4(Cr4::PAE) {
            Mode::Pae
        } else {
            Mode::Bits32
        };
        Self {
            mode,
            cr3: cpu.cr3,
            pdpte: cpu.pdpte,
            write_protect: cpu.cr0(Cr0::WP),
            smep: cpu.cr4(Cr4::SMEP),
            smap: cpu.cr4(Cr4::SMAP),
            no_execute: cpu.efer & Efer::NXE.bits() != 0,
            page_size_extensions: cpu.cr4(Cr4::PSE),
            global_pages: cpu.cr4(Cr4::PGE),
            gigabyte_pages,
            reserves_global: false,
            physical_bits: physical_bits.clamp(32, 52),
        }
    }

    /// Whether `rights` let `privilege` do `access`, accessed and dirty bits aside.
    #[must_use]
    #[inline]
    pub fn permits(&self, rights: Rights, access: Access, privilege: Privilege) -> bool {
        if self.mode == Mode::Off {
            return true;
        }
        let user_page = rights.user;
        if privilege == Privilege::User {
            return user_page
                && match access {
                    Access::Read => true,
                    Access::Write => rights.write,
                    Access::Fetch => rights.execute,
                };
        }
        let smap_blocks = self.smap && user_page && privilege != Privilege::SupervisorAc;
        match access {
            Access::Read => !smap_blocks,
            Access::Write => !smap_blocks && (rights.write || !self.write_protect),
            Access::Fetch => rights.execute && !(self.smep && user_page),
        }
    }

    fn fault(&self, gva: Gva, access: Access, privilege: Privilege, cause: u32) -> PageFault {
        let mut error_code = cause;
        if access == Access::Write {
            error_code |= page_fault::WRITE;
        }
        if privilege == Privilege::User {
            error_code |= page_fault::USER;
        }
        let wide = matches!(self.mode, Mode::Pae | Mode::FourLevel);
        if access == Access::Fetch && (self.smep || (wide && self.no_execute)) {
            error_code |= page_fault::FETCH;
        }
        PageFault { gva, error_code }
    }

    /// Bits of an 8-byte entry that may hold an address, from bit 12.
    fn address_mask(&self) -> u64 {
        (1_u64 << self.physical_bits) - 0x1000
    }

    /// Reserved bits of any 8-byte entry that refers to a table or maps a 4 KiB page.
    fn reserved_mask(&self) -> u64 {
        // PAE paging reserves up to bit 62; 4-level paging leaves 52 to 62 to software.
        let top = if self.mode == Mode::Pae { 63 } else { 52 };
        let above = ((1_u64 << top) - 1) & !((1_u64 << self.physical_bits) - 1);
        above | if self.no_execute { 0 } else { entry::NO_EXECUTE }
    }
}

/// Rights over all levels of a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// U/S is set at every level.
    pub user: bool,
    /// R/W is set at every level.
    pub write: bool,
    /// XD is clear at every level.
    pub execute: bool,
}

impl Rights {
    const ALL: Self = Self { user: true, write: true, execute: true };

    fn both(self, other: Self) -> Self {
        Self {
            user: self.user && other.user,
            write: self.write && other.write,
            execute: self.execute && other.execute,
        }
    }

    fn and(self, entry: u64) -> Self {
        Self {
            user: self.user && entry & entry::USER != 0,
            write: self.write && entry & entry::WRITE != 0,
            execute: self.execute && entry & entry::NO_EXECUTE == 0,
        }
    }
}

/// A successful walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Start of the 4 KiB page that the address lies in.
    pub gpa: Gpa,
    /// log2 of the guest's page size: 12, 21, 22 or 30.
    pub page_shift: u8,
    pub rights: Rights,
    /// The leaf's dirty bit, after this access.
    pub dirty: bool,
    /// The leaf's global bit, if CR4.PGE lets it count.
    pub global: bool,
}

/// Where an entry was found.
#[derive(Clone, Copy)]
enum Slot<'a> {
    Wide(&'a AtomicU64),
    Narrow(&'a AtomicU32),
    /// Outside RAM, or where a processor can't write.
    Nowhere,
}

/// An entry as it was judged.
#[derive(Clone, Copy)]
struct Step<'a> {
    gpa: u64,
    value: u64,
    slot: Slot<'a>,
}

impl<'a> Step<'a> {
    const NONE: Self = Self { gpa: 0, value: 0, slot: Slot::Nowhere };

    fn wide(ram: &'a GuestRam, gpa: u64) -> Self {
        let gpa = ram.issue(gpa);
        match ram.host_ptr(Gpa(gpa), 8) {
            Some(host) if host.cast::<u64>().is_aligned() => {
                // SAFETY: eight aligned bytes of RAM that stay mapped while `ram` is borrowed, and
                // that all of us access by raw or atomic means only.
                let slot = unsafe { AtomicU64::from_ptr(host.cast()) };
                let value = slot.load(Ordering::Acquire);
                let slot = if ram.may_write(Gpa(gpa)) { Slot::Wide(slot) } else { Slot::Nowhere };
                Self { gpa, value, slot }
            }
            _ => Self { gpa, value: u64::MAX, slot: Slot::Nowhere },
        }
    }

    fn narrow(ram: &'a GuestRam, gpa: u64) -> Self {
        let gpa = ram.issue(gpa);
        match ram.host_ptr(Gpa(gpa), 4) {
            Some(host) if host.cast::<u32>().is_aligned() => {
                // SAFETY: as in `wide`, with four bytes.
                let slot = unsafe { AtomicU32::from_ptr(host.cast()) };
                let value = u64::from(slot.load(Ordering::Acquire));
                let slot = if ram.may_write(Gpa(gpa)) { Slot::Narrow(slot) } else { Slot::Nowhere };
                Self { gpa, value, slot }
            }
            _ => Self { gpa, value: u64::from(u32::MAX), slot: Slot::Nowhere },
        }
    }

    /// Sets `bits`, unless the entry is no longer what was judged and `force` is off.
    fn set(&self, ram: &GuestRam, bits: u64, force: bool) -> Result<(), Changed> {
        if self.value & bits == bits {
            return Ok(());
        }
        let (old, new) = (self.value, self.value | bits);
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        let unchanged = match self.slot {
            Slot::Nowhere => return Ok(()),
            Slot::Wide(slot) => slot.compare_exchange(old, new, success, failure).is_ok(),
            Slot::Narrow(slot) => {
                slot.compare_exchange(old as u32, new as u32, success, failure).is_ok()
            }
        };
        if !unchanged && !force {
            return Err(Changed);
        }
        if !unchanged {
            match self.slot {
                Slot::Nowhere => 0,
                Slot::Wide(slot) => slot.fetch_or(bits, success),
                Slot::Narrow(slot) => u64::from(slot.fetch_or(bits as u32, success)),
            };
        }
        // A page table may be code as well.
        ram.code().stored(self.gpa >> 12);
        Ok(())
    }
}

/// An entry changed between judging it and setting its accessed bit.
struct Changed;

/// Entries from the root to the leaf, and what they say together.
struct Path<'a> {
    steps: [Step<'a>; 4],
    len: usize,
    translation: Translation,
}

impl Path<'_> {
    /// All accessed bits are set.
    fn is_accessed(&self) -> bool {
        self.steps[..self.len].iter().all(|step| step.value & entry::ACCESSED != 0)
    }
}

/// Translates `gva` for `access` with the rights of `privilege`, and sets accessed and dirty bits.
///
/// # Errors
/// The page fault to raise; no bit has been set then.
pub fn walk(
    ram: &GuestRam,
    paging: &Paging,
    gva: Gva,
    access: Access,
    privilege: Privilege,
) -> Result<Translation, PageFault> {
    for attempt in 0..=RETRIES_MAX {
        if paging.mode == Mode::Off {
            return Ok(itself(ram, gva));
        }
        let descent = descend(ram, paging, gva);
        let mut path = descent.map_err(|cause| paging.fault(gva, access, privilege, cause))?;
        if !paging.permits(path.translation.rights, access, privilege) {
            return Err(paging.fault(gva, access, privilege, page_fault::PRESENT));
        }
        let write = access == Access::Write;
        if set_accessed(ram, &path, write, attempt == RETRIES_MAX).is_ok() {
            path.translation.dirty |= write;
            path.translation.gpa = Gpa(ram.issue(path.translation.gpa.0));
            return Ok(path.translation);
        }
    }
    unreachable!("the last attempt sets bits unconditionally");
}

/// What a walk for reading would find at `gva`, if it would set no bit: all accessed bits are set. Rights
/// are for the caller to judge.
#[must_use]
pub fn peek(ram: &GuestRam, paging: &Paging, gva: Gva) -> Option<Translation> {
    let (translation, accessed) = look(ram, paging, gva)?;
    accessed.then_some(translation)
}

/// What a walk would find at `gva`, and whether all its accessed bits are set. Sets none.
#[must_use]
pub fn look(ram: &GuestRam, paging: &Paging, gva: Gva) -> Option<(Translation, bool)> {
    if paging.mode == Mode::Off {
        return Some((itself(ram, gva), true));
    }
    let path = descend(ram, paging, gva).ok()?;
    let accessed = path.is_accessed();
    let gpa = Gpa(ram.issue(path.translation.gpa.0));
    Some((Translation { gpa, ..path.translation }, accessed))
}

/// Without paging a linear address is the physical one.
fn itself(ram: &GuestRam, gva: Gva) -> Translation {
    Translation {
        gpa: Gpa(ram.issue(gva.0 & 0xffff_f000)),
        page_shift: 12,
        rights: Rights::ALL,
        dirty: true,
        global: false,
    }
}

fn set_accessed(ram: &GuestRam, path: &Path, write: bool, force: bool) -> Result<(), Changed> {
    let leaf = path.len - 1;
    for (level, step) in path.steps[..path.len].iter().enumerate() {
        let dirty = if write && level == leaf { entry::DIRTY } else { 0 };
        step.set(ram, entry::ACCESSED | dirty, force)?;
    }
    Ok(())
}

/// Goes from the root to the leaf. Without paging there is none, and nothing to go to.
fn descend<'a>(ram: &'a GuestRam, paging: &Paging, gva: Gva) -> Result<Path<'a>, u32> {
    match paging.mode {
        Mode::Off => Err(0),
        Mode::Bits32 => descend_32bit(ram, paging, gva.0 & 0xffff_ffff),
        Mode::Pae => descend_pae(ram, paging, gva.0 & 0xffff_ffff),
        Mode::FourLevel => descend_wide(ram, paging, gva.0, paging.cr3 & paging.address_mask(), 39),
    }
}

/// 4-level paging from the level that `shift` names, or PAE paging from its page directory.
fn descend_wide<'a>(
    ram: &'a GuestRam,
    paging: &Paging,
    gva: u64,
    root: u64,
    root_shift: u8,
) -> Result<Path<'a>, u32> {
    let mut table = root;
    let mut steps = [Step::NONE; 4];
    let mut rights = Rights::ALL;
    let mut shift = root_shift;
    let mut len = 0;
    loop {
        let step = Step::wide(ram, table + ((gva >> shift) & 0x1ff) * 8);
        let value = step.value;
        if value & entry::PRESENT == 0 {
            return Err(0);
        }
        let may_map = shift == 21 || (shift == 30 && paging.gigabyte_pages);
        let maps_large = may_map && value & entry::PAGE_SIZE != 0;
        let mut reserved = paging.reserved_mask();
        if maps_large {
            // Between the page's address and the PAT bit.
            reserved |= (1 << shift) - 0x2000;
        } else if shift > 12 && !may_map {
            reserved |= entry::PAGE_SIZE;
        }
        if paging.reserves_global && shift >= 30 && !maps_large {
            reserved |= entry::GLOBAL;
        }
        if value & reserved != 0 {
            return Err(page_fault::PRESENT | page_fault::RESERVED);
        }
        rights = rights.and(value);
        steps[len] = step;
        len += 1;
        if maps_large || shift == 12 {
            let offset_mask = (1_u64 << shift) - 1;
            let base = value & paging.address_mask() & !offset_mask;
            let translation = Translation {
                gpa: Gpa(base | (gva & offset_mask & !0xfff)),
                page_shift: shift,
                rights,
                dirty: value & entry::DIRTY != 0,
                global: paging.global_pages && value & entry::GLOBAL != 0,
            };
            return Ok(Path { steps, len, translation });
        }
        table = value & paging.address_mask();
        shift -= 9;
    }
}

fn descend_pae<'a>(ram: &'a GuestRam, paging: &Paging, gva: u64) -> Result<Path<'a>, u32> {
    // Reserved bits were checked when the registers were loaded, and they carry no rights.
    let pdpte = paging.pdpte[(gva >> 30) as usize & 3];
    if pdpte & entry::PRESENT == 0 {
        return Err(0);
    }
    descend_wide(ram, paging, gva, pdpte & paging.address_mask(), 21)
}

fn descend_32bit<'a>(ram: &'a GuestRam, paging: &Paging, gva: u64) -> Result<Path<'a>, u32> {
    let global = |value| paging.global_pages && value & entry::GLOBAL != 0;
    let mut steps = [Step::NONE; 4];
    let pde = Step::narrow(ram, (paging.cr3 & 0xffff_f000) + (gva >> 22) * 4);
    steps[0] = pde;
    if pde.value & entry::PRESENT == 0 {
        return Err(0);
    }
    let rights = Rights::ALL.and(pde.value);
    if paging.page_size_extensions && pde.value & entry::PAGE_SIZE != 0 {
        // PSE-36: bits 13 up to 20 are bits 32 up to 39 of the address, as far as MAXPHYADDR goes.
        let high_bits = paging.physical_bits.min(40) - 32;
        let reserved = (1_u64 << 22) - (1_u64 << (13 + high_bits));
        if pde.value & reserved != 0 {
            return Err(page_fault::PRESENT | page_fault::RESERVED);
        }
        let base = (pde.value & 0xffc0_0000) | ((pde.value >> 13 & 0xff) << 32);
        let translation = Translation {
            gpa: Gpa(base | (gva & 0x3f_f000)),
            page_shift: 22,
            rights,
            dirty: pde.value & entry::DIRTY != 0,
            global: global(pde.value),
        };
        return Ok(Path { steps, len: 1, translation });
    }
    let pte = Step::narrow(ram, (pde.value & 0xffff_f000) + ((gva >> 12) & 0x3ff) * 4);
    steps[1] = pte;
    if pte.value & entry::PRESENT == 0 {
        return Err(0);
    }
    let translation = Translation {
        gpa: Gpa(pte.value & 0xffff_f000),
        page_shift: 12,
        rights: rights.and(pte.value),
        dirty: pte.value & entry::DIRTY != 0,
        global: global(pte.value),
    };
    Ok(Path { steps, len: 2, translation })
}

/// A PDPTE with reserved bits: the load of CR3, CR0 or CR4 that caused it is #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved;

/// The four PDPTEs that CR3 points to, for the PDPTE registers (SDM vol. 3, "PDPTE Registers").
///
/// # Errors
/// One that is present has a reserved bit set.
pub fn load_pdptes(ram: &GuestRam, cr3: u64, physical_bits: u8) -> Result<[u64; 4], Reserved> {
    let address = (1_u64 << physical_bits.clamp(32, 52)) - 0x1000;
    // P, PWT, PCD and the bits for software are the others allowed.
    let reserved = !(address | 0xe19);
    let mut pdptes = [0; 4];
    for (index, pdpte) in (0..).zip(&mut pdptes) {
        *pdpte = Step::wide(ram, (cr3 & 0xffff_ffe0) + 8 * index).value;
        if *pdpte & entry::PRESENT != 0 && *pdpte & reserved != 0 {
            return Err(Reserved);
        }
    }
    Ok(pdptes)
}

#[cfg(test)]
mod tests;
