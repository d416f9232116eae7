//! Guest memory as instructions use it: segment checks, then the TLB, then a host access or a device.
//!
//! Problem: every load and store passes segmentation, canonicality, paging, alignment checks and data
//! breakpoints, nearly always without anything to report. Scheme: a short inline path for an access
//! inside one page with nothing special armed; everything else goes through cold functions that do
//! the same in general. Invariants: an access that faults changes no memory (both pages of a
//! crossing store are translated before the first byte is written); the segment number names a
//! register in `CpuState::seg`. Source: SDM vol. 3, "Segment Limit Checking"; "Canonical Addressing".

use std::sync::{Mutex, PoisonError};

use super::width::Width;
use super::{Interp, Mode, note_data_access};
use crate::addr::{Gpa, Gva, PAGE_SIZE};
use crate::env::{Access, Env, Memory, PageFault, Place, Privilege};
use crate::exception::{Exception, Outcome, Trap, Vector};
use crate::state::{CpuState, Segment, sreg};
use crate::vector::{OperandMemory, VectorUnit};

/// Held during a locked access that crosses a cache line. One that crosses a page the host can't do in
/// one instruction; others it could, but Linux slows a process down by milliseconds for each, or kills
/// it (split_lock_detect). What is lost: atomicity against accesses that don't cross.
static SPLIT_LOCK: Mutex<()> = Mutex::new(());

/// Bytes within which a locked access is one transaction.
const CACHE_LINE: u64 = 64;

/// Bits 47-63 are equal.
#[inline(always)]
pub fn is_canonical(address: u64) -> bool {
    ((address as i64) << 16 >> 16) as u64 == address
}

/// Copies from memory that other threads may be writing.
///
/// # Safety
/// `from` must be valid for reads of `to.len()` bytes.
pub unsafe fn copy_in(from: *const u8, to: &mut [u8]) {
    // SAFETY: the caller vouches for `from`, and `to` is ours.
    unsafe {
        std::arch::asm!("rep movsb", inout("rcx") to.len() => _, inout("rsi") from => _,
            inout("rdi") to.as_mut_ptr() => _, options(nostack, preserves_flags));
    }
}

/// Copies to memory that other threads may be reading.
///
/// # Safety
/// `to` must be valid for writes of `from.len()` bytes.
pub unsafe fn copy_out(from: &[u8], to: *mut u8) {
    // SAFETY: the caller vouches for `to`, and `from` is ours.
    unsafe {
        std::arch::asm!("rep movsb", inout("rcx") from.len() => _, inout("rsi") from.as_ptr() => _,
            inout("rdi") to => _, options(nostack, preserves_flags));
    }
}

/// The parts of the interpreter that memory accesses use, apart from the state: so that vector
/// instructions can hold the state at the same time.
pub(super) struct Path<'a, M: Memory> {
    pub mem: &'a mut M,
    pub env: &'a mut dyn Env,
    pub mode: &'a Mode,
    pub leave: &'a mut bool,
}

/// Linear address of `size` bytes at `seg:offset`, after segment and canonical checks.
#[inline(always)]
fn linear(
    cpu: &CpuState,
    mode: &Mode,
    seg: u8,
    offset: u64,
    size: u64,
    write: bool,
) -> Outcome<u64> {
    let s = &cpu.seg[usize::from(seg)];
    if mode.long64 {
        let base = if usize::from(seg) >= sreg::FS { s.base } else { 0 };
        let la = base.wrapping_add(offset);
        if is_canonical(la) && is_canonical(la.wrapping_add(size - 1)) {
            return Ok(la);
        }
        return Err(segment_fault(seg));
    }
    let plain = if write {
        s.access & 0x1_009e == 0x92
    } else {
        s.access & 0x1_009c == 0x90 || s.access & 0x1_009a == 0x9a
    };
    if plain && offset + (size - 1) <= u64::from(s.limit) {
        return Ok(s.base.wrapping_add(offset) & 0xffff_ffff);
    }
    linear_checked(s, mode, seg, offset, size, write)
}

/// The general case of [`linear`] outside 64-bit mode.
#[cold]
fn linear_checked(
    s: &Segment,
    mode: &Mode,
    seg: u8,
    offset: u64,
    size: u64,
    write: bool,
) -> Outcome<u64> {
    let la = s.base.wrapping_add(offset) & 0xffff_ffff;
    if mode.protected {
        let allowed = if write { s.is_writable() } else { s.is_readable() };
        if !s.is_usable() || !s.is_present() || !allowed {
            return Err(segment_fault(seg));
        }
    }
    let last = offset + (size - 1);
    let inside = if s.is_expand_down() {
        let top = if s.is_big() { 0xffff_ffff } else { 0xffff };
        offset > u64::from(s.limit) && last <= top
    } else {
        // A 4 GiB segment lets an access wrap around its end.
        last <= u64::from(s.limit) || s.limit == 0xffff_ffff
    };
    if inside { Ok(la) } else { Err(segment_fault(seg)) }
}

impl<M: Memory> Interp<M> {
    /// The state, the way to memory, and the vector unit, all at once.
    pub(super) fn split(&mut self) -> (&mut CpuState, Path<'_, M>, &mut VectorUnit) {
        let path = Path {
            mem: &mut self.mem,
            env: &mut *self.env,
            mode: &self.mode,
            leave: &mut self.leave,
        };
        (&mut self.state, path, &mut self.vector)
    }

    /// Linear address of `size` bytes at `seg:offset`, after segment and canonical checks.
    #[inline(always)]
    pub(super) fn linear(&self, seg: u8, offset: u64, size: u64, write: bool) -> Outcome<u64> {
        linear(&self.state, &self.mode, seg, offset, size, write)
    }

    /// Loads from `seg:offset`.
    #[inline(always)]
    pub(super) fn load<W: Width>(&mut self, seg: u8, offset: u64) -> Outcome<W> {
        let la = self.linear(seg, offset, W::BYTES, false)?;
        self.load_linear(la)
    }

    /// Stores to `seg:offset`.
    #[inline(always)]
    pub(super) fn store<W: Width>(&mut self, seg: u8, offset: u64, value: W) -> Outcome {
        let la = self.linear(seg, offset, W::BYTES, true)?;
        self.store_linear(la, value)
    }

    /// Loads from a linear address with the current privilege.
    #[inline(always)]
    pub(super) fn load_linear<W: Width>(&mut self, la: u64) -> Outcome<W> {
        if la & (PAGE_SIZE - 1) > PAGE_SIZE - W::BYTES || self.mode.watchful {
            return self.load_slow(la, self.mode.privilege);
        }
        match self.mem.translate(&self.state, Gva(la), Access::Read, self.mode.privilege) {
            // SAFETY: the access stays in the page that `hva` lies in.
            Ok(Place::Ram { hva, .. }) => Ok(unsafe { W::load(hva) }),
            Ok(Place::Device { gpa }) => Ok(W::from_u64(self.mmio_read(gpa, W::BYTES))),
            Err(fault) => Err(self.page_fault(fault)),
        }
    }

    /// Stores to a linear address with the current privilege.
    #[inline(always)]
    pub(super) fn store_linear<W: Width>(&mut self, la: u64, value: W) -> Outcome {
        if la & (PAGE_SIZE - 1) > PAGE_SIZE - W::BYTES || self.mode.watchful {
            return self.store_slow(la, value, self.mode.privilege);
        }
        match self.mem.translate(&self.state, Gva(la), Access::Write, self.mode.privilege) {
            Ok(Place::Ram { hva, gpa }) => {
                // SAFETY: the access stays in the page that `hva` lies in.
                unsafe { W::store(hva, value) };
                self.stored(gpa, W::BYTES);
                Ok(())
            }
            Ok(Place::Device { gpa }) => {
                self.mmio_write(gpa, W::BYTES, value.to_u64());
                Ok(())
            }
            Err(fault) => Err(self.page_fault(fault)),
        }
    }

    /// Replaces the value at `seg:offset` by `change` of it and returns the old one.
    #[inline(always)]
    pub(super) fn modify<W: Width>(
        &mut self,
        seg: u8,
        offset: u64,
        lock: bool,
        mut change: impl FnMut(&mut CpuState, W) -> W,
    ) -> Outcome<W> {
        let la = self.linear(seg, offset, W::BYTES, true)?;
        let unit = if lock { CACHE_LINE } else { PAGE_SIZE };
        if la & (unit - 1) > unit - W::BYTES || self.mode.watchful {
            return self.modify_slow(la, &mut change);
        }
        match self.mem.translate(&self.state, Gva(la), Access::Write, self.mode.privilege) {
            Ok(Place::Ram { hva, gpa }) => {
                // SAFETY: the access stays in the page that `hva` lies in.
                let mut old = unsafe { W::load(hva) };
                if lock {
                    let flags = self.state.rflags;
                    loop {
                        let new = change(&mut self.state, old);
                        // SAFETY: as above.
                        let held = unsafe { W::compare_exchange(hva, old, new) };
                        if held == old {
                            break;
                        }
                        old = held;
                        self.state.rflags = flags;
                    }
                } else {
                    let new = change(&mut self.state, old);
                    // SAFETY: as above.
                    unsafe { W::store(hva, new) };
                }
                self.stored(gpa, W::BYTES);
                Ok(old)
            }
            Ok(Place::Device { gpa }) => {
                let old = W::from_u64(self.mmio_read(gpa, W::BYTES));
                let new = change(&mut self.state, old);
                self.mmio_write(gpa, W::BYTES, new.to_u64());
                Ok(old)
            }
            Err(fault) => Err(self.page_fault(fault)),
        }
    }

    #[cold]
    fn modify_slow<W: Width>(
        &mut self,
        la: u64,
        change: &mut dyn FnMut(&mut CpuState, W) -> W,
    ) -> Outcome<W> {
        let _guard = SPLIT_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..W::BYTES as usize];
        self.check_alignment(la, W::BYTES)?;
        self.probe(la, W::BYTES, self.mode.privilege)?;
        self.read_linear(la, bytes, self.mode.privilege)?;
        let old = from_bytes(bytes);
        let new = change(&mut self.state, old);
        self.write_linear(
            la,
            &new.to_u64().to_le_bytes()[..W::BYTES as usize],
            self.mode.privilege,
        )?;
        Ok(old)
    }

    /// CMPXCHG16B at an aligned linear address: what memory held.
    pub(super) fn compare_exchange_16(&mut self, la: u64, old: u128, new: u128) -> Outcome<u128> {
        note_data_access(&mut self.state, &self.mode, la, 16, true);
        match self.mem.translate(&self.state, Gva(la), Access::Write, self.mode.privilege) {
            Ok(Place::Ram { hva, gpa }) => {
                // SAFETY: 16 aligned bytes don't leave the page that `hva` lies in.
                let held = unsafe { super::integer::compare_exchange_16(hva, old, new) };
                self.stored(gpa, 16);
                Ok(held)
            }
            Ok(Place::Device { gpa }) => {
                let low = u128::from(self.mmio_read(gpa, 8));
                let held = low | u128::from(self.mmio_read(gpa.add(8), 8)) << 64;
                let value = if held == old { new } else { held };
                self.mmio_write(gpa, 8, value as u64);
                self.mmio_write(gpa.add(8), 8, (value >> 64) as u64);
                Ok(held)
            }
            Err(fault) => Err(self.page_fault(fault)),
        }
    }

    #[cold]
    fn load_slow<W: Width>(&mut self, la: u64, privilege: Privilege) -> Outcome<W> {
        self.check_alignment(la, W::BYTES)?;
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..W::BYTES as usize];
        self.read_linear(la, bytes, privilege)?;
        Ok(from_bytes(bytes))
    }

    #[cold]
    fn store_slow<W: Width>(&mut self, la: u64, value: W, privilege: Privilege) -> Outcome {
        self.check_alignment(la, W::BYTES)?;
        self.write_linear(la, &value.to_u64().to_le_bytes()[..W::BYTES as usize], privilege)
    }

    /// Loads from a system structure (descriptor table, TSS), as the processor does by itself.
    pub(super) fn load_system<W: Width>(&mut self, la: u64) -> Outcome<W> {
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..W::BYTES as usize];
        self.read_system(la, bytes)?;
        Ok(from_bytes(bytes))
    }

    /// Reads any number of bytes of a system structure.
    pub(super) fn read_system(&mut self, la: u64, out: &mut [u8]) -> Outcome {
        check_canonical(la, out.len())?;
        self.read_linear(la, out, Privilege::Supervisor)
    }

    /// Stores to a system structure.
    pub(super) fn store_system<W: Width>(&mut self, la: u64, value: W) -> Outcome {
        self.write_system(la, &value.to_u64().to_le_bytes()[..W::BYTES as usize])
    }

    /// Writes any number of bytes of a system structure.
    pub(super) fn write_system(&mut self, la: u64, data: &[u8]) -> Outcome {
        check_canonical(la, data.len())?;
        self.write_linear(la, data, Privilege::Supervisor)
    }

    /// #AC for an unaligned user access when it is switched on.
    #[inline]
    pub(super) fn check_alignment(&self, la: u64, size: u64) -> Outcome {
        if self.mode.align_check && la & (size - 1) != 0 { Err(Trap::ac()) } else { Ok(()) }
    }

    /// Reads any number of bytes, page by page.
    pub(super) fn read_linear(&mut self, la: u64, out: &mut [u8], privilege: Privilege) -> Outcome {
        let (cpu, mut path, _) = self.split();
        path.read(cpu, la, out, privilege)
    }

    /// Writes any number of bytes after checking that none faults.
    pub(super) fn write_linear(&mut self, la: u64, data: &[u8], privilege: Privilege) -> Outcome {
        let (cpu, mut path, _) = self.split();
        path.write(cpu, la, data, privilege)
    }

    /// Checks that `len` bytes at `la` can be written.
    pub(super) fn probe(&mut self, la: u64, len: u64, privilege: Privilege) -> Outcome {
        let (cpu, mut path, _) = self.split();
        path.probe(cpu, la, len, privilege)
    }

    /// Linear addresses of system structures have 32 bits outside long mode.
    #[inline(always)]
    pub(super) fn wrap(&self, la: u64) -> u64 {
        wrap(&self.state, la)
    }

    /// Linear addresses of code and data have 32 bits outside 64-bit mode.
    #[inline(always)]
    pub(super) fn wrap_code(&self, la: u64) -> u64 {
        if self.mode.long64 { la } else { la & 0xffff_ffff }
    }

    /// Tells the MMU of a finished store, and leaves the block when it may have changed its code.
    #[inline(always)]
    pub(super) fn stored(&mut self, gpa: Gpa, len: u64) {
        if self.mem.stored(gpa, len) {
            self.leave = true;
        }
    }

    /// Sets CR2 and makes the exception.
    pub(super) fn page_fault(&mut self, fault: PageFault) -> Trap {
        page_fault(&mut self.state, fault)
    }

    #[cold]
    fn mmio_read(&mut self, gpa: Gpa, size: u64) -> u64 {
        let (cpu, mut path, _) = self.split();
        path.mmio_read(cpu, gpa, size)
    }

    #[cold]
    fn mmio_write(&mut self, gpa: Gpa, size: u64, value: u64) {
        let (cpu, mut path, _) = self.split();
        path.mmio_write(cpu, gpa, size, value);
    }
}

/// Linear addresses have 32 bits outside long mode.
#[inline(always)]
fn wrap(cpu: &CpuState, la: u64) -> u64 {
    if cpu.long_mode() { la } else { la & 0xffff_ffff }
}

/// A table's base is canonical, but an entry may not be.
fn check_canonical(la: u64, len: usize) -> Outcome {
    let last = la.wrapping_add(len as u64 - 1);
    if is_canonical(la) && is_canonical(last) { Ok(()) } else { Err(Trap::gp0()) }
}

/// Sets CR2 and makes the exception.
#[cold]
fn page_fault(cpu: &mut CpuState, fault: PageFault) -> Trap {
    cpu.cr2 = fault.gva.0;
    Trap::Exception(Exception { vector: Vector::PageFault, error_code: fault.error_code })
}

impl<M: Memory> Path<'_, M> {
    /// `la + done`: in compatibility mode data wraps at 4 GiB, while tables may lie above.
    fn further(&self, cpu: &CpuState, la: u64, done: u64) -> u64 {
        let at = la.wrapping_add(done);
        if self.mode.long64 || cpu.long_mode() && la >> 32 != 0 { at } else { at & 0xffff_ffff }
    }

    fn read(
        &mut self,
        cpu: &mut CpuState,
        la: u64,
        out: &mut [u8],
        privilege: Privilege,
    ) -> Outcome {
        note_data_access(cpu, self.mode, la, out.len() as u64, false);
        let mut done = 0;
        while done < out.len() {
            let at = self.further(cpu, la, done as u64);
            let n = (out.len() - done).min((PAGE_SIZE - (at & (PAGE_SIZE - 1))) as usize);
            let part = &mut out[done..done + n];
            match self.mem.translate(cpu, Gva(at), Access::Read, privilege) {
                // SAFETY: `n` bytes from `hva` lie in its page.
                Ok(Place::Ram { hva, .. }) => unsafe { copy_in(hva, part) },
                Ok(Place::Device { gpa }) => {
                    for (at, from, size) in device_pieces(gpa, n) {
                        let value = self.mmio_read(cpu, at, size as u64);
                        part[from..from + size].copy_from_slice(&value.to_le_bytes()[..size]);
                    }
                }
                Err(fault) => return Err(page_fault(cpu, fault)),
            }
            done += n;
        }
        Ok(())
    }

    fn write(&mut self, cpu: &mut CpuState, la: u64, data: &[u8], privilege: Privilege) -> Outcome {
        self.probe(cpu, la, data.len() as u64, privilege)?;
        note_data_access(cpu, self.mode, la, data.len() as u64, true);
        let mut done = 0;
        while done < data.len() {
            let at = self.further(cpu, la, done as u64);
            let n = (data.len() - done).min((PAGE_SIZE - (at & (PAGE_SIZE - 1))) as usize);
            let part = &data[done..done + n];
            match self.mem.translate(cpu, Gva(at), Access::Write, privilege) {
                Ok(Place::Ram { hva, gpa }) => {
                    // SAFETY: `n` bytes from `hva` lie in its page.
                    unsafe { copy_out(part, hva) };
                    *self.leave |= self.mem.stored(gpa, n as u64);
                }
                Ok(Place::Device { gpa }) => {
                    for (at, from, size) in device_pieces(gpa, n) {
                        let mut value = [0; 8];
                        value[..size].copy_from_slice(&part[from..from + size]);
                        self.mmio_write(cpu, at, size as u64, u64::from_le_bytes(value));
                    }
                }
                Err(fault) => return Err(page_fault(cpu, fault)),
            }
            done += n;
        }
        Ok(())
    }

    fn probe(&mut self, cpu: &mut CpuState, la: u64, len: u64, privilege: Privilege) -> Outcome {
        let mut done = 0;
        while done < len {
            let at = self.further(cpu, la, done);
            if let Err(fault) = self.mem.translate(cpu, Gva(at), Access::Write, privilege) {
                return Err(page_fault(cpu, fault));
            }
            done += PAGE_SIZE - (at & (PAGE_SIZE - 1));
        }
        Ok(())
    }

    fn mmio_read(&mut self, cpu: &CpuState, gpa: Gpa, size: u64) -> u64 {
        self.env.set_retired(cpu.retired);
        let mut value = [0; 8];
        for (at, from, size) in device_pieces(gpa, size as usize) {
            let part = self.env.mmio_read(at, size as u8);
            value[from..from + size].copy_from_slice(&part.to_le_bytes()[..size]);
        }
        u64::from_le_bytes(value)
    }

    fn mmio_write(&mut self, cpu: &CpuState, gpa: Gpa, size: u64, value: u64) {
        self.env.set_retired(cpu.retired);
        let bytes = value.to_le_bytes();
        for (at, from, size) in device_pieces(gpa, size as usize) {
            let mut part = [0; 8];
            part[..size].copy_from_slice(&bytes[from..from + size]);
            self.env.mmio_write(at, size as u8, u64::from_le_bytes(part));
        }
    }

    /// Linear address of a vector operand. #AC is for the caller: it depends on the instruction.
    fn vector_linear(
        &self,
        cpu: &CpuState,
        segment: usize,
        offset: u64,
        len: usize,
        write: bool,
    ) -> Outcome<u64> {
        // Outside 64-bit mode offsets have 32 bits, also where the vector unit added to one.
        let offset = if self.mode.long64 { offset } else { offset & 0xffff_ffff };
        linear(cpu, self.mode, segment as u8, offset, len.max(1) as u64, write)
    }
}

impl<M: Memory> OperandMemory for Path<'_, M> {
    fn read(&mut self, cpu: &mut CpuState, segment: usize, offset: u64, out: &mut [u8]) -> Outcome {
        let la = self.vector_linear(cpu, segment, offset, out.len(), false)?;
        let privilege = self.mode.privilege;
        Path::read(self, cpu, la, out, privilege)
    }

    fn write(&mut self, cpu: &mut CpuState, segment: usize, offset: u64, data: &[u8]) -> Outcome {
        let la = self.vector_linear(cpu, segment, offset, data.len(), true)?;
        let privilege = self.mode.privilege;
        Path::write(self, cpu, la, data, privilege)
    }

    fn check_segment(
        &self,
        cpu: &CpuState,
        segment: usize,
        offset: u64,
        len: usize,
        write: bool,
    ) -> Outcome {
        self.vector_linear(cpu, segment, offset, len, write).map(|_| ())
    }

    fn probe_write(
        &mut self,
        cpu: &mut CpuState,
        segment: usize,
        offset: u64,
        len: usize,
    ) -> Outcome {
        let la = self.vector_linear(cpu, segment, offset, len, true)?;
        self.probe(cpu, la, len as u64, self.mode.privilege)
    }
}

/// #SS(0) for the stack segment, #GP(0) for the others.
#[cold]
pub(super) fn segment_fault(seg: u8) -> Trap {
    if usize::from(seg) == sreg::SS { Trap::ss0() } else { Trap::gp0() }
}

/// Cuts a device access into the pieces a bus takes (8, 4, 2 or 1 bytes, the widest first): address,
/// position, size.
fn device_pieces(gpa: Gpa, len: usize) -> impl Iterator<Item = (Gpa, usize, usize)> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let size = match len - from {
            0 => return None,
            8.. => 8,
            4..=7 => 4,
            2..=3 => 2,
            _ => 1,
        };
        let piece = (gpa.add(from as u64), from, size);
        from += size;
        Some(piece)
    })
}

fn from_bytes<W: Width>(bytes: &[u8]) -> W {
    let mut value = [0; 8];
    value[..bytes.len()].copy_from_slice(bytes);
    W::from_u64(u64::from_le_bytes(value))
}

/// The null selector's unusable descriptor cache, keeping what a null load keeps.
pub(super) fn null_segment(selector: u16) -> Segment {
    Segment { selector, ..Segment::NULL }
}
