//! Fast system calls: SYSCALL, SYSRET, SYSENTER, SYSEXIT.
//!
//! Problem: these load CS and SS with fixed contents, without looking at descriptors. Scheme: one
//! function builds a flat segment. Intel's processors have SYSCALL in 64-bit mode only, and SYSENTER
//! everywhere; AMD's have SYSCALL in compatibility and protected mode too, and SYSENTER outside long mode
//! only. Invariant: RFLAGS, CS, SS and CPL change together. Source: SDM vol. 2, each instruction; vol. 3,
//! "Performing Fast Calls to System Procedures"; APM vol. 3, each instruction.

use super::Interp;
use super::decode::Insn;
use super::memory::is_canonical;
use crate::env::Memory;
use crate::exception::{Outcome, Trap};
use crate::state::reg::{RCX, RDX, RSP};
use crate::state::{Efer, Rflags, Segment, sreg};

/// A flat 4 GiB segment: code that is readable, or writable data; accessed, present.
fn flat(selector: u16, dpl: u8, code: bool, size: u32) -> Segment {
    let kind = if code { 0xb } else { 0x3 };
    let access =
        kind | Segment::S | Segment::PRESENT | Segment::GRANULARITY | u32::from(dpl) << 5 | size;
    Segment { base: 0, limit: 0xffff_ffff, access, selector }
}

impl<M: Memory> Interp<M> {
    fn enter_flat(&mut self, cs: u16, ss: u16, cpl: u8, code_size: u32) {
        self.state.seg[sreg::CS] = flat(cs, cpl, true, code_size);
        self.state.seg[sreg::SS] = flat(ss, cpl, false, Segment::DB);
        self.state.cpl = cpl;
    }

    /// What SYSCALL in 64-bit mode does to CS, SS and CPL, for an engine that does the rest.
    pub fn enter_by_syscall(&mut self) {
        let [cs, ss] = self.syscall_selectors();
        self.enter_flat(cs, ss, 0, Segment::LONG);
        self.refresh();
    }

    /// The selectors that SYSCALL loads to CS and SS.
    #[must_use]
    pub fn syscall_selectors(&self) -> [u16; 2] {
        let selector = (self.state.msr.star >> 32) as u16;
        [selector & 0xfffc, selector.wrapping_add(8)]
    }

    /// The selectors that SYSRET with a 64-bit operand loads.
    #[must_use]
    pub fn sysret_selectors(&self) -> [u16; 2] {
        let base = (self.state.msr.star >> 48) as u16;
        let rpl = if self.amd { 0 } else { 3 };
        [base.wrapping_add(16) | 3, base.wrapping_add(8) | rpl]
    }

    /// What SYSRET with a 64-bit operand does to CS, SS and CPL.
    pub fn leave_by_sysret(&mut self) {
        self.leave_flat(Segment::LONG);
        self.refresh();
    }

    /// The selectors that SYSENTER loads to CS and SS.
    #[must_use]
    pub fn sysenter_selectors(&self) -> [u16; 2] {
        let selector = self.state.msr.sysenter_cs as u16 & 0xfffc;
        [selector, selector.wrapping_add(8)]
    }

    /// The selectors that SYSEXIT to 32-bit code loads.
    #[must_use]
    pub fn sysexit_selectors(&self) -> [u16; 2] {
        let selector = self.state.msr.sysenter_cs as u16;
        [16, 24].map(|further| selector.wrapping_add(further) | 3)
    }

    /// What SYSENTER does to CS, SS and CPL outside long mode.
    pub fn enter_by_sysenter(&mut self) {
        let [cs, ss] = self.sysenter_selectors();
        self.enter_flat(cs, ss, 0, Segment::DB);
        self.refresh();
    }

    /// What SYSEXIT to 32-bit code does to CS, SS and CPL.
    pub fn leave_by_sysexit(&mut self) {
        let [cs, ss] = self.sysexit_selectors();
        self.enter_flat(cs, ss, 3, Segment::DB);
        self.refresh();
    }

    fn leave_flat(&mut self, size: u32) {
        let base = (self.state.msr.star >> 48) as u16;
        let cs = if size == Segment::LONG { base.wrapping_add(16) } else { base };
        let ss = self.state.seg[sreg::SS];
        self.enter_flat(cs | 3, base.wrapping_add(8) | 3, 3, size);
        if self.amd {
            // Only the selector changes, as it stands in STAR. (Of the rights, DPL follows CPL here.)
            let access = ss.access & !(3 << 5) | 3 << 5;
            self.state.seg[sreg::SS] = Segment { selector: base.wrapping_add(8), access, ..ss };
        }
    }
}

/// SYSCALL and SYSRET exist in this mode.
fn has_syscall<M: Memory>(vm: &Interp<M>) -> bool {
    let mode = vm.mode.long64 || vm.amd && vm.mode.protected;
    mode && vm.state.efer & Efer::SCE.bits() != 0
}

/// SYSENTER and SYSEXIT exist in this mode.
fn has_sysenter<M: Memory>(vm: &Interp<M>) -> bool {
    !(vm.amd && vm.state.long_mode())
}

pub(super) fn syscall<M: Memory>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    if !has_syscall(vm) {
        return Err(Trap::ud());
    }
    let selector = (vm.state.msr.star >> 32) as u16;
    vm.state.gpr[RCX] = vm.state.rip;
    if !vm.state.long_mode() {
        vm.enter_flat(selector & 0xfffc, selector.wrapping_add(8), 0, Segment::DB);
        vm.state.rip = vm.state.msr.star & 0xffff_ffff;
        vm.state.rflags &= !(Rflags::IF | Rflags::RF).bits();
        vm.no_step_trap = !vm.state.flag(Rflags::TF);
        return Err(Trap::Exit);
    }
    vm.state.gpr[11] = vm.state.rflags & !Rflags::RF.bits();
    let entry = if vm.mode.long64 { vm.state.msr.lstar } else { vm.state.msr.cstar };
    vm.enter_flat(selector & 0xfffc, selector.wrapping_add(8), 0, Segment::LONG);
    vm.state.rip = entry;
    let kept = !vm.state.msr.fmask & !Rflags::RF.bits();
    vm.state.rflags = vm.state.rflags & kept | Rflags::FIXED.bits();
    // A single-step trap is taken only if FMASK left TF set.
    vm.no_step_trap = !vm.state.flag(Rflags::TF);
    Err(Trap::Exit)
}

pub(super) fn sysret<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    if !has_syscall(vm) {
        return Err(Trap::ud());
    }
    vm.privileged()?;
    let wide = i.raw.code() == iced_x86::Code::Sysretq;
    let target = vm.state.gpr[RCX];
    // AMD's fault at the target.
    if wide && !is_canonical(target) && !vm.amd {
        return Err(Trap::gp0());
    }
    vm.leave_flat(if wide { Segment::LONG } else { Segment::DB });
    vm.state.rip = if wide { target } else { target & 0xffff_ffff };
    if !vm.mode.long64 {
        vm.state.rflags |= Rflags::IF.bits();
        return Err(Trap::Exit);
    }
    let image = Rflags::all().difference(Rflags::RF | Rflags::VM).bits();
    vm.state.rflags = vm.state.gpr[11] & image | Rflags::FIXED.bits();
    Err(Trap::Exit)
}

pub(super) fn sysenter<M: Memory>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    if !has_sysenter(vm) {
        return Err(Trap::ud());
    }
    let selector = vm.state.msr.sysenter_cs as u16;
    if !vm.state.protected() || selector & 0xfffc == 0 {
        return Err(Trap::gp0());
    }
    let long = vm.state.long_mode();
    let cleared = Rflags::VM | Rflags::IF | Rflags::RF;
    vm.state.rflags &= !cleared.bits();
    let size = if long { Segment::LONG } else { Segment::DB };
    let [cs, ss] = vm.sysenter_selectors();
    vm.enter_flat(cs, ss, 0, size);
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    vm.state.gpr[RSP] = vm.state.msr.sysenter_esp & mask;
    vm.state.rip = vm.state.msr.sysenter_eip & mask;
    Err(Trap::Exit)
}

pub(super) fn sysexit<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let selector = vm.state.msr.sysenter_cs as u16;
    if !vm.state.protected() || selector & 0xfffc == 0 || vm.state.cpl != 0 {
        return Err(Trap::gp0());
    }
    // As measured, this comes after the check of privilege.
    if !has_sysenter(vm) {
        return Err(Trap::ud());
    }
    let wide = i.raw.code() == iced_x86::Code::Sysexitq;
    let (target, stack) = (vm.state.gpr[RDX], vm.state.gpr[RCX]);
    if wide {
        if !is_canonical(target) || !is_canonical(stack) {
            return Err(Trap::gp0());
        }
        let cs = selector.wrapping_add(32);
        vm.enter_flat(cs | 3, selector.wrapping_add(40) | 3, 3, Segment::LONG);
        vm.state.gpr[RSP] = stack;
        vm.state.rip = target;
    } else {
        let [cs, ss] = vm.sysexit_selectors();
        vm.enter_flat(cs, ss, 3, Segment::DB);
        vm.state.gpr[RSP] = stack & 0xffff_ffff;
        vm.state.rip = target & 0xffff_ffff;
    }
    Err(Trap::Exit)
}
