//! What a vCPU asks of the world around it: memory, devices, time and its local APIC.
//!
//! Problem: this crate makes no host calls and knows no devices, yet instructions load, store, read
//! ports and take interrupts. Scheme: two traits. [`Memory`] is hot and a type parameter (the mmu
//! crate's soft TLB implements it); [`Env`] is cold and a trait object (the machine implements it).
//! Invariants: a `Place::Ram` pointer stays valid to the end of its page until the next call that
//! takes `&mut` memory; after a store through it, not before, the storer calls [`Memory::stored`].
//! One instance per vCPU, on its thread.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use crate::addr::{Gpa, Gva};
use crate::state::CpuState;

/// Kind of access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Access {
    Read = 0,
    Write = 1,
    Fetch = 2,
}

/// With whose rights a linear address is accessed (SDM vol. 3, "Access Rights").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Privilege {
    User = 0,
    /// CPL < 3, or an implicit access to a system structure: SMAP holds when CR4.SMAP is set.
    Supervisor = 1,
    /// Explicit access at CPL < 3 with EFLAGS.AC set: exempt from SMAP.
    SupervisorAc = 2,
}

/// Where a linear address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Guest RAM at this host address. A store through it must be followed by [`Memory::stored`].
    Ram { hva: *mut u8, gpa: Gpa },
    /// Not memory, or a write to memory that takes none: goes to [`Env::mmio_read`] and [`Env::mmio_write`].
    Device { gpa: Gpa },
}

/// A refused translation. The caller puts `gva` into CR2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    pub gva: Gva,
    /// See [`crate::exception::page_fault`].
    pub error_code: u32,
}

/// Guest memory as one vCPU sees it, through its translation lookaside buffer.
pub trait Memory {
    /// Translates `gva`, setting accessed and dirty bits as that access does. The result holds for
    /// the rest of the 4 KiB page. Addresses have been checked canonical.
    ///
    /// # Errors
    /// The page fault to raise.
    fn translate(
        &mut self,
        cpu: &CpuState,
        gva: Gva,
        access: Access,
        privilege: Privilege,
    ) -> Result<Place, PageFault>;

    /// Host address of `len` bytes of RAM at `gpa`, if they are RAM and contiguous.
    fn ram(&self, gpa: Gpa, len: usize) -> Option<*mut u8>;

    /// To be called after a store of `len` bytes to RAM at `gpa`, all in one page. If the page is watched its code
    /// version changes, and the answer is true.
    fn stored(&mut self, gpa: Gpa, len: u64) -> bool;

    /// Starts watching the page of `gpa` for stores and returns its code version, never 0. The
    /// version changes with every store to the page by anybody (vCPUs, DMA).
    fn watch_code(&mut self, gpa: Gpa) -> u32;

    /// The page's present code version; 0 if it isn't watched or isn't RAM.
    fn code_version(&self, gpa: Gpa) -> u32;

    /// The four page-directory-pointer entries that `cr3` names under PAE paging; `None` when one has
    /// reserved bits set.
    fn pdptes(&self, cr3: u64) -> Option<[u64; 4]>;

    /// User code is about to use a port, or a device in memory: it may be a driver.
    fn user_meets_device(&mut self) {}

    /// Drops every cached translation, global ones too.
    fn flush_all(&mut self);
    /// Drops every non-global translation of `pcid`, or of all where `None`.
    fn flush_context(&mut self, pcid: Option<u16>);
    /// CR3 was loaded: translations of other PCIDs may be kept. `keep`: bit 63 of the new value was
    /// set (with CR4.PCIDE), so this PCID's are kept too.
    fn set_context(&mut self, cpu: &CpuState, keep: bool);
    /// Drops `gva`'s translations in the current PCID and the global ones (`INVLPG`).
    fn flush_page(&mut self, gva: Gva);
    /// Drops `gva`'s non-global translations in `pcid` (`INVPCID` type 0).
    fn flush_page_in(&mut self, pcid: u16, gva: Gva);
}

/// Bits of the attention word: what the vCPU must look at before its next block.
pub mod attention {
    /// The interrupt controller has an interrupt for this vCPU.
    pub const INTR: u32 = 1 << 0;
    pub const NMI: u32 = 1 << 1;
    /// INIT signal.
    pub const INIT: u32 = 1 << 2;
    /// A start-up IPI; its vector is in bits 24-31.
    pub const SIPI: u32 = 1 << 3;
    /// The machine wants the vCPU out of its run loop.
    pub const STOP: u32 = 1 << 4;
    /// Counted time has reached a timer.
    pub const TIMER: u32 = 1 << 5;
    /// Another vCPU's engine wants this one to look at its orders.
    pub const ENGINE: u32 = 1 << 6;
    /// The chip set has changed what stands where in memory: cached translations are void.
    pub const REMAP: u32 = 1 << 7;
    /// The machine wants the vCPU to rest between two instructions.
    pub const REST: u32 = 1 << 8;
}

/// An MSR access that the device refused, to become #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// The machine around a vCPU.
pub trait Env: Send {
    /// Port input of 1, 2 or 4 bytes; unclaimed ports read as ones.
    fn pio_read(&mut self, port: u16, size: u8) -> u32;
    fn pio_write(&mut self, port: u16, size: u8, value: u32);
    /// The same as port inputs of `size` bytes into `out` one after the other, as many as can be done at once: how many
    /// bytes were read. None if the port must be asked each time.
    fn pio_read_many(&mut self, port: u16, size: u8, out: &mut [u8]) -> usize {
        let _ = (port, size, out);
        0
    }
    /// Physical read of 1, 2, 4 or 8 bytes outside RAM; unclaimed addresses read as ones.
    fn mmio_read(&mut self, gpa: Gpa, size: u8) -> u64;
    fn mmio_write(&mut self, gpa: Gpa, size: u8, value: u64);
    /// Raw time stamp counter, before `Msrs::tsc_offset`. `retired` is the vCPU's instruction count.
    fn tsc(&mut self) -> u64;
    /// What has to be added to the host's time stamp counter to get [`Self::tsc`]; nothing if each reading must
    /// be asked for.
    fn tsc_base(&self) -> Option<u64> {
        None
    }
    /// Tells counted time how far this vCPU is; called before any other call that may read time.
    fn set_retired(&mut self, retired: u64);
    /// 64 random bits for RDRAND and RDSEED.
    fn random(&mut self) -> u64;
    /// INTA cycle: the vector to deliver now, if there still is one.
    fn acknowledge_interrupt(&mut self) -> Option<u8>;
    /// IA32_APIC_BASE, IA32_TSC_DEADLINE, the x2APIC range 0x800-0x8ff, and KVM's clock.
    ///
    /// # Errors
    /// `Refused`: no such register, or not in this mode.
    fn device_msr_read(&mut self, msr: u32) -> Result<u64, Refused>;
    /// # Errors
    /// `Refused`: no such register, reserved bits, or not in this mode.
    fn device_msr_write(&mut self, msr: u32, value: u64, tsc_offset: u64) -> Result<(), Refused>;
    /// `Msrs::tsc_offset` has changed to this. Told where the model has [`crate::cpuid::Feature::KvmClock`].
    fn tsc_moved(&mut self, tsc_offset: u64) {
        let _ = tsc_offset;
    }
    /// CR8: the task priority class, 0 to 15.
    fn task_priority(&mut self) -> u8;
    fn set_task_priority(&mut self, tpr: u8);
    /// The FERR# pin: an unmasked x87 error with CR0.NE clear.
    fn ferr(&mut self);
    /// The word with [`attention`] bits, set by other threads; always the same one.
    fn attention(&self) -> Arc<AtomicU32>;
}
