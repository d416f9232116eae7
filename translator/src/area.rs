//! What translated code and Rust share: one area for each vCPU, which GS points to.
//!
//! Problem: translated code has the guest's registers in the host's, so it needs a place that costs no
//! register for everything else: the registers that don't fit, the way back to Rust, the inline TLB.
//! Scheme: one `repr(C)` record at GS; templates name its fields by [`offset`]. On an exit the general
//! registers and flags are stored here, and Rust moves them to `CpuState` and back. Invariants: guest
//! r10 and r11 live here, never in the host's r10 and r11, which are scratch; entries of the inline
//! TLB are those of the vCPU's present address space, and an entry for writing never leads to a page
//! that holds translated code. One per vCPU, on its thread.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};

/// Entries of each table of the inline TLB; a power of two.
pub const TLB_ENTRIES: usize = 512;
/// Entries of the jump cache; a power of two.
pub const JUMP_ENTRIES: usize = 1024;

/// The inline TLB for one privilege (see [`xenolith_cpu::env::Privilege`]).
#[repr(C)]
#[derive(Debug)]
pub struct Tlb {
    /// Minus the linear page address that may be read, by page number.
    pub read: [u64; TLB_ENTRIES],
    /// Minus the linear page address that may be written.
    pub write: [u64; TLB_ENTRIES],
    /// Host address minus linear address.
    pub addend: [u64; TLB_ENTRIES],
}

/// Where an indirect branch leads: a slot of the jump cache.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Jump {
    /// Minus the guest RIP.
    pub minus_rip: u64,
    pub host: u64,
}

/// See the module's head.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Area {
    /// General registers while Rust runs; r10 and r11 always.
    pub gpr: [u64; 16],
    /// Status flags while Rust runs.
    pub flags: u64,
    /// Guest RIP after an exit.
    pub rip: u64,
    /// Rust's stack while the guest runs.
    pub host_rsp: u64,
    /// Registers borrowed for a memory access; RCX is in the first.
    pub spill: [u64; 4],
    /// Segment bases.
    pub seg_base: [u64; 6],
    /// The attention word.
    pub attention: *const u32,
    /// PEXT mask of the attention bits that the guest can be stopped for now.
    pub attention_mask: u64,
    /// RFLAGS but for IF and the status flags, and IF by itself.
    pub system_flags: u64,
    pub interrupt_flag: u64,
    /// The status flags' bits, for PEXT and PDEP.
    pub status: u64,
    /// The guest's vector state in memory ([`xenolith_cpu::state::VectorState`]).
    pub vector: *mut u8,
    /// Zero while the guest's vector state is in the host's registers.
    pub vector_idle: u64,
    /// Not zero: load the vector state on entry. Set on an exit that found it loaded.
    pub vector_wanted: u64,
    /// MXCSR while Rust runs.
    pub host_mxcsr: u64,
    /// Which site left translated code.
    pub site: u64,
    /// Linear address of the access that missed.
    pub ea: u64,
    /// PEXT masks: index in the TLB, page number, index in the jump cache.
    pub tlb_index: u64,
    pub page: u64,
    /// As `page`, and the low bits of aligned operands of 16 and 32 bytes.
    pub page_and_16: u64,
    pub page_and_32: u64,
    pub jump_index: u64,
    /// Guest instructions done, as far as counted.
    pub retired: u64,
    pub tlb: [Tlb; 3],
    /// Jump caches, one for each privilege.
    pub jumps: [[Jump; JUMP_ENTRIES]; 3],
}

// SAFETY: `attention` is only read, as an atomic word, and `vector` is the owner's; both outlive the
// area by its maker's contract.
unsafe impl Send for Area {}

/// A linear page address that no access indexed to `slot` can have, nor one that begins in the page
/// before: its index bits are others.
fn nobody(slot: usize) -> u64 {
    (((slot ^ (TLB_ENTRIES / 2)) as u64) << 12).wrapping_neg()
}

impl Area {
    /// An area with an empty TLB.
    #[must_use]
    pub fn new(attention: *const u32, vector: *mut u8) -> Box<Self> {
        let layout = Layout::new::<Self>();
        // SAFETY: the layout isn't empty.
        let area = unsafe { alloc_zeroed(layout) }.cast::<Self>();
        if area.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: allocated by the global allocator with this layout; zeroes are valid for all fields.
        let mut area = unsafe { Box::from_raw(area) };
        area.attention = attention;
        area.vector = vector;
        area.tlb_index = (TLB_ENTRIES as u64 - 1) << 12;
        area.page = !0xfff;
        area.page_and_16 = !0xfff | 15;
        area.page_and_32 = !0xfff | 31;
        area.status = 0x8d5;
        area.vector_idle = 1;
        area.host_mxcsr = 0x1f80;
        // Return addresses and branch targets differ in their low bits.
        area.jump_index = JUMP_ENTRIES as u64 - 1;
        area.flush();
        area
    }

    /// Empties the TLB and the jump cache.
    pub fn flush(&mut self) {
        for table in &mut self.tlb {
            for slot in 0..TLB_ENTRIES {
                table.read[slot] = nobody(slot);
                table.write[slot] = nobody(slot);
            }
        }
        self.flush_jumps();
    }

    /// Drops one page: `la` is its address.
    pub fn flush_page(&mut self, la: u64) {
        let slot = (la >> 12) as usize & (TLB_ENTRIES - 1);
        for table in &mut self.tlb {
            table.read[slot] = nobody(slot);
            table.write[slot] = nobody(slot);
        }
        for cache in &mut self.jumps {
            for (slot, jump) in cache.iter_mut().enumerate() {
                if jump.minus_rip.wrapping_neg() >> 12 == la >> 12 {
                    jump.minus_rip = ((slot ^ 1) as u64).wrapping_neg();
                }
            }
        }
    }

    /// Empties the tables for writing: some page holds code now.
    pub fn flush_writes(&mut self) {
        for table in &mut self.tlb {
            for slot in 0..TLB_ENTRIES {
                table.write[slot] = nobody(slot);
            }
        }
    }

    /// Empties the jump caches.
    pub fn flush_jumps(&mut self) {
        for privilege in 0..self.jumps.len() {
            self.flush_jumps_of(privilege);
        }
    }

    /// Empties the jump cache of one privilege.
    pub fn flush_jumps_of(&mut self, privilege: usize) {
        for (slot, jump) in self.jumps[privilege].iter_mut().enumerate() {
            // A RIP with another index.
            jump.minus_rip = ((slot ^ 1) as u64).wrapping_neg();
        }
    }

    /// Lets accesses to the page of `la` go to `host` (the page's first byte).
    pub fn fill(&mut self, privilege: usize, la: u64, host: u64, write: bool) {
        let page = la & !0xfff;
        let slot = (page >> 12) as usize & (TLB_ENTRIES - 1);
        let table = &mut self.tlb[privilege];
        let addend = host.wrapping_sub(page);
        if table.addend[slot] != addend {
            table.read[slot] = nobody(slot);
            table.write[slot] = nobody(slot);
        }
        table.addend[slot] = addend;
        if write {
            table.write[slot] = page.wrapping_neg();
        } else {
            table.read[slot] = page.wrapping_neg();
        }
    }

    /// Remembers where the block at `rip` is.
    pub fn remember(&mut self, privilege: usize, rip: u64, host: u64) {
        let slot = rip as usize & (JUMP_ENTRIES - 1);
        self.jumps[privilege][slot] = Jump { minus_rip: rip.wrapping_neg(), host };
    }
}

/// Offsets of the fields from GS.
pub mod offset {
    use super::{Area, JUMP_ENTRIES, TLB_ENTRIES};
    use std::mem::offset_of;

    const fn at(offset: usize) -> i32 {
        assert!(offset < i32::MAX as usize);
        offset as i32
    }
    #[must_use]
    pub const fn gpr(register: usize) -> i32 {
        at(offset_of!(Area, gpr) + 8 * register)
    }
    pub const FLAGS: i32 = at(offset_of!(Area, flags));
    pub const RIP: i32 = at(offset_of!(Area, rip));
    pub const HOST_RSP: i32 = at(offset_of!(Area, host_rsp));
    #[must_use]
    pub const fn spill(n: usize) -> i32 {
        at(offset_of!(Area, spill) + 8 * n)
    }
    #[must_use]
    pub const fn seg_base(segment: usize) -> i32 {
        at(offset_of!(Area, seg_base) + 8 * segment)
    }
    pub const ATTENTION: i32 = at(offset_of!(Area, attention));
    pub const ATTENTION_MASK: i32 = at(offset_of!(Area, attention_mask));
    pub const SYSTEM_FLAGS: i32 = at(offset_of!(Area, system_flags));
    pub const INTERRUPT_FLAG: i32 = at(offset_of!(Area, interrupt_flag));
    pub const STATUS: i32 = at(offset_of!(Area, status));
    pub const VECTOR: i32 = at(offset_of!(Area, vector));
    pub const VECTOR_IDLE: i32 = at(offset_of!(Area, vector_idle));
    pub const VECTOR_WANTED: i32 = at(offset_of!(Area, vector_wanted));
    pub const HOST_MXCSR: i32 = at(offset_of!(Area, host_mxcsr));
    pub const PAGE_AND_16: i32 = at(offset_of!(Area, page_and_16));
    pub const PAGE_AND_32: i32 = at(offset_of!(Area, page_and_32));
    pub const SITE: i32 = at(offset_of!(Area, site));
    pub const EA: i32 = at(offset_of!(Area, ea));
    pub const TLB_INDEX: i32 = at(offset_of!(Area, tlb_index));
    pub const PAGE: i32 = at(offset_of!(Area, page));
    pub const JUMP_INDEX: i32 = at(offset_of!(Area, jump_index));
    pub const RETIRED: i32 = at(offset_of!(Area, retired));
    #[must_use]
    pub const fn jumps(privilege: usize) -> i32 {
        at(offset_of!(Area, jumps) + privilege * size_of::<[super::Jump; JUMP_ENTRIES]>())
    }
    const TABLE: usize = 8 * TLB_ENTRIES;
    #[must_use]
    pub const fn tlb_tag(privilege: usize, write: bool) -> i32 {
        at(offset_of!(Area, tlb) + privilege * 3 * TABLE + if write { TABLE } else { 0 })
    }
    #[must_use]
    pub const fn tlb_addend(privilege: usize) -> i32 {
        at(offset_of!(Area, tlb) + privilege * 3 * TABLE + 2 * TABLE)
    }
}
