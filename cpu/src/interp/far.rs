//! Far transfers: JMP, CALL and RET between segments, call gates, IRET.
//!
//! Problem: one instruction may change code segment, privilege level, stack and mode, and must do all
//! of it or nothing. Scheme: read the operands and the stack without moving anything ([`Interp::peek`]),
//! check, write the new stack's frame ([`Frame`]), then commit registers. Invariants: `cpl` and SS
//! change together with CS; every handler here ends its block. Source: SDM vol. 3, "Control Transfer
//! between Segments"; vol. 2, "JMP", "CALL", "RET", "IRET/IRETD/IRETQ".

use iced_x86::{Code, MemorySize, OpKind};

use super::Interp;
use super::decode::Insn;
use super::interrupt::Frame;
use super::memory::is_canonical;
use super::segment::{Descriptor, V86_ACCESS, is_null, kind, null_stack};
use crate::env::Memory;
use crate::exception::{Outcome, Trap};
use crate::state::reg::RSP;
use crate::state::{Cr4, Rflags, Segment, TableRegister, sreg};

/// A checked code segment to go to.
#[derive(Clone, Copy)]
pub(super) struct Target {
    descriptor: Descriptor,
}

impl Target {
    pub fn new(descriptor: Descriptor) -> Self {
        Self { descriptor }
    }
    pub fn segment(&self) -> Segment {
        self.descriptor.segment()
    }
}

/// What an IRET loaded to CS and SS, and of what descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Returned {
    /// CS and SS.
    pub segments: [Segment; 2],
    /// Linear address and contents of their descriptors.
    pub descriptors: [(u64, u64); 2],
    /// The table that these are in.
    pub table: TableRegister,
}

/// A descriptor's accessed bit.
const ACCESSED: u64 = 1 << 40;

/// A far pointer operand and its operand size in bytes.
struct Pointer {
    selector: u16,
    offset: u64,
    bytes: usize,
}

impl<M: Memory> Interp<M> {
    fn far_pointer(&mut self, i: &Insn<M>) -> Outcome<Pointer> {
        let raw = &i.raw;
        Ok(match raw.op0_kind() {
            OpKind::FarBranch16 => Pointer {
                selector: raw.far_branch_selector(),
                offset: u64::from(raw.far_branch16()),
                bytes: 2,
            },
            OpKind::FarBranch32 => Pointer {
                selector: raw.far_branch_selector(),
                offset: u64::from(raw.far_branch32()),
                bytes: 4,
            },
            _ => {
                let at = self.address(i);
                let (offset, bytes) = match raw.memory_size() {
                    MemorySize::SegPtr16 => (u64::from(self.load::<u16>(i.seg, at)?), 2),
                    MemorySize::SegPtr32 => (u64::from(self.load::<u32>(i.seg, at)?), 4),
                    _ => (self.load::<u64>(i.seg, at)?, 8),
                };
                let selector = self.load(i.seg, at.wrapping_add(bytes as u64) & i.addr_mask)?;
                Pointer { selector, offset, bytes }
            }
        })
    }

    /// Commits CS: the accessed bit, the selector with RPL = `cpl`, the privilege level.
    pub(super) fn commit_target(&mut self, target: &mut Target, cpl: u8) -> Outcome {
        self.mark_accessed(&mut target.descriptor)?;
        let mut segment = target.descriptor.segment();
        segment.selector = segment.selector & !3 | u16::from(cpl);
        self.state.seg[sreg::CS] = segment;
        self.state.cpl = cpl;
        Ok(())
    }

    /// Checks an offset against the code segment it will run in.
    fn check_offset(&self, segment: &Segment, offset: u64) -> Outcome {
        let wide = self.state.long_mode() && segment.access & Segment::LONG != 0;
        let inside = if wide { is_canonical(offset) } else { offset <= u64::from(segment.limit) };
        if inside { Ok(()) } else { Err(Trap::gp0()) }
    }

    /// Rules for a code segment that JMP, CALL or a gate leads to.
    fn check_code(&self, descriptor: &Descriptor) -> Outcome<Segment> {
        let segment = descriptor.segment();
        let both = Segment::LONG | Segment::DB;
        if !segment.is_code() || self.state.long_mode() && segment.access & both == both {
            return Err(Trap::gp(descriptor.selector));
        }
        Ok(segment)
    }

    /// JMP or CALL straight to a code segment: no change of privilege.
    fn direct_target(&mut self, descriptor: Descriptor) -> Outcome<Target> {
        let segment = self.check_code(&descriptor)?;
        let cpl = self.state.cpl;
        let allowed = if segment.is_conforming() {
            segment.dpl() <= cpl
        } else {
            segment.rpl() <= cpl && segment.dpl() == cpl
        };
        if !allowed {
            return Err(Trap::gp(descriptor.selector));
        }
        if !segment.is_present() {
            return Err(Trap::np(descriptor.selector));
        }
        Ok(Target::new(descriptor))
    }

    /// Checks a gate's own privilege and presence.
    fn check_gate_access(&self, gate: &Descriptor) -> Outcome {
        let rpl = (gate.selector & 3) as u8;
        if gate.dpl() < self.state.cpl.max(rpl) {
            return Err(Trap::gp(gate.selector));
        }
        if !gate.is_present() {
            return Err(Trap::np(gate.selector));
        }
        Ok(())
    }

    /// The code segment, offset and parameter count of a call gate. `jump`: for JMP, which doesn't change
    /// privilege even through a gate.
    fn gate_target(&mut self, gate: &Descriptor, jump: bool) -> Outcome<(Descriptor, u64, usize)> {
        self.check_gate_access(gate)?;
        let selector = (gate.raw >> 16) as u16;
        let mut offset = gate.raw & 0xffff;
        if gate.kind() == kind::CALL_GATE {
            offset |= gate.raw >> 32 & 0xffff_0000;
        }
        if self.state.long_mode() {
            let high = self.descriptor_high(gate)?;
            if high >> 40 & 0x1f != 0 {
                return Err(Trap::gp(gate.selector));
            }
            offset |= high << 32;
        }
        if is_null(selector) {
            return Err(Trap::gp0());
        }
        let descriptor = self.descriptor(selector)?.ok_or(Trap::gp(selector))?;
        let segment = self.check_code(&descriptor)?;
        let wide = segment.access & Segment::LONG != 0;
        let (dpl, cpl) = (segment.dpl(), self.state.cpl);
        let allowed = if jump && !segment.is_conforming() { dpl == cpl } else { dpl <= cpl };
        if !allowed || self.state.long_mode() && !wide {
            return Err(Trap::gp(selector));
        }
        if !segment.is_present() {
            return Err(Trap::np(selector));
        }
        Ok((descriptor, offset, (gate.raw >> 32 & 0x1f) as usize))
    }

    /// A system descriptor that JMP or CALL may go through in this mode.
    fn transfer_kind(&self, descriptor: &Descriptor) -> Outcome<u32> {
        let found = descriptor.kind();
        let allowed = match found {
            kind::CALL_GATE => true,
            kind::CALL_GATE_16 | kind::TASK_GATE | kind::TSS_16 | kind::TSS => {
                !self.state.long_mode()
            }
            _ => false,
        };
        if allowed { Ok(found) } else { Err(Trap::gp(descriptor.selector)) }
    }

    /// A non-null selector's descriptor, for JMP and CALL.
    fn transfer_descriptor(&mut self, selector: u16) -> Outcome<Descriptor> {
        if is_null(selector) {
            return Err(Trap::gp0());
        }
        self.descriptor(selector)?.ok_or(Trap::gp(selector))
    }

    /// Goes to a task: directly by a TSS descriptor, or by a task gate.
    fn transfer_task(&mut self, descriptor: &Descriptor, found: u32, nested: bool) -> Outcome {
        self.check_gate_access(descriptor)?;
        let tss = if found == kind::TASK_GATE {
            (descriptor.raw >> 16) as u16
        } else {
            descriptor.selector
        };
        self.switch_by_transfer(tss, nested)?;
        Err(Trap::Exit)
    }

    fn jmp_protected(&mut self, pointer: &Pointer) -> Outcome {
        let descriptor = self.transfer_descriptor(pointer.selector)?;
        if !descriptor.is_system() {
            let mut target = self.direct_target(descriptor)?;
            let offset = truncate(pointer.offset, pointer.bytes);
            self.check_offset(&target.segment(), offset)?;
            self.commit_target(&mut target, self.state.cpl)?;
            self.state.rip = offset;
            return Err(Trap::Exit);
        }
        let found = self.transfer_kind(&descriptor)?;
        if !matches!(found, kind::CALL_GATE | kind::CALL_GATE_16) {
            return self.transfer_task(&descriptor, found, false);
        }
        let (code, offset, _) = self.gate_target(&descriptor, true)?;
        self.check_offset(&code.segment(), offset)?;
        let mut target = Target::new(code);
        self.commit_target(&mut target, self.state.cpl)?;
        self.state.rip = offset;
        Err(Trap::Exit)
    }

    fn call_protected(&mut self, pointer: &Pointer) -> Outcome {
        let descriptor = self.transfer_descriptor(pointer.selector)?;
        if !descriptor.is_system() {
            let mut target = self.direct_target(descriptor)?;
            let offset = truncate(pointer.offset, pointer.bytes);
            let mut frame = self.current_frame(pointer.bytes as u64);
            if self.state.long_mode() {
                // As measured on both makers' processors, it pushes as the target's mode does.
                let stack = &self.state.seg[sreg::SS];
                frame.set_mask(if target.segment().access & Segment::LONG != 0 {
                    u64::MAX
                } else if stack.is_big() {
                    0xffff_ffff
                } else {
                    0xffff
                });
            }
            frame.push(self, u64::from(self.state.seg[sreg::CS].selector))?;
            frame.push(self, self.state.rip)?;
            self.check_offset(&target.segment(), offset)?;
            self.commit_target(&mut target, self.state.cpl)?;
            self.state.gpr[RSP] = frame.sp;
            self.state.rip = offset;
            return Err(Trap::Exit);
        }
        let found = self.transfer_kind(&descriptor)?;
        if !matches!(found, kind::CALL_GATE | kind::CALL_GATE_16) {
            return self.transfer_task(&descriptor, found, true);
        }
        self.call_gate(&descriptor)
    }

    /// The present stack as a frame of slots `width` wide.
    fn current_frame(&self, width: u64) -> Frame {
        let mut frame = Frame::new(
            self.state.seg[sreg::SS],
            self.state.gpr[RSP],
            width,
            self.state.cpl,
            Trap::ss0(),
        );
        frame.set_mask(self.mode.sp_mask);
        frame
    }

    fn call_gate(&mut self, gate: &Descriptor) -> Outcome {
        let (code, offset, parameters) = self.gate_target(gate, false)?;
        let long = self.state.long_mode();
        let width = match (long, gate.kind()) {
            (true, _) => 8,
            (false, kind::CALL_GATE) => 4,
            _ => 2,
        };
        let segment = code.segment();
        let mut target = Target::new(code);
        let inner = !segment.is_conforming() && segment.dpl() < self.state.cpl;
        if !inner {
            let mut frame = self.current_frame(width);
            if long {
                // The target is 64-bit code, and so is its stack.
                frame.set_mask(u64::MAX);
            }
            frame.push(self, u64::from(self.state.seg[sreg::CS].selector))?;
            frame.push(self, self.state.rip)?;
            self.check_offset(&segment, offset)?;
            self.commit_target(&mut target, self.state.cpl)?;
            self.state.gpr[RSP] = frame.sp;
            self.state.rip = offset;
            return Err(Trap::Exit);
        }
        let cpl = segment.dpl();
        let (ss, sp) = (self.state.seg[sreg::SS], self.state.gpr[RSP]);
        let mut frame = if long {
            let sp = self.long_stack(4 + u64::from(cpl) * 8, 0)?;
            Frame::new(null_stack(u16::from(cpl), cpl), sp, 8, cpl, Trap::ss0())
        } else {
            let (selector, sp) = self.inner_stack(cpl, 0)?;
            let stack = self.inner_stack_segment(selector, cpl, 0)?;
            Frame::new(stack, sp, width, cpl, Trap::ss(selector))
        };
        frame.push(self, u64::from(ss.selector))?;
        frame.push(self, sp)?;
        if !long {
            // Parameters are copied, the first one ending up lowest.
            let bytes = width as usize;
            for n in (0..parameters as u64).rev() {
                let value = self.peek(bytes, n * width)?;
                frame.push(self, value)?;
            }
        }
        frame.push(self, u64::from(self.state.seg[sreg::CS].selector))?;
        frame.push(self, self.state.rip)?;
        self.check_offset(&segment, offset)?;
        self.commit_target(&mut target, cpl)?;
        self.state.seg[sreg::SS] = frame.segment;
        self.state.gpr[RSP] = frame.sp;
        self.state.rip = offset;
        Err(Trap::Exit)
    }

    /// Rules for the code segment that RET or IRET returns to.
    fn return_target(&mut self, selector: u16) -> Outcome<Target> {
        if is_null(selector) {
            return Err(Trap::gp0());
        }
        let descriptor = self.descriptor(selector)?.ok_or(Trap::gp(selector))?;
        let segment = self.check_code(&descriptor)?;
        let rpl = segment.rpl();
        let level =
            if segment.is_conforming() { segment.dpl() <= rpl } else { segment.dpl() == rpl };
        if rpl < self.state.cpl || !level {
            return Err(Trap::gp(selector));
        }
        if !segment.is_present() {
            return Err(Trap::np(selector));
        }
        Ok(Target::new(descriptor))
    }

    /// The stack segment that a return to an outer level pops.
    fn return_stack(&mut self, selector: u16, cpl: u8, target: &Target) -> Outcome<Segment> {
        if is_null(selector) {
            let to_64bit = self.state.long_mode() && target.segment().access & Segment::LONG != 0;
            if to_64bit && cpl < 3 && (selector & 3) as u8 == cpl {
                return Ok(null_stack(selector, cpl));
            }
            return Err(Trap::gp0());
        }
        self.stack_segment(selector, cpl, Trap::gp)
    }

    /// RET to another segment, releasing `released` bytes of parameters.
    fn ret_protected(&mut self, bytes: usize, released: u64) -> Outcome {
        let slot = bytes as u64;
        let offset = self.peek(bytes, 0)?;
        let selector = self.peek(bytes, slot)? as u16;
        let mut target = self.return_target(selector)?;
        let rpl = (selector & 3) as u8;
        if rpl == self.state.cpl {
            self.check_offset(&target.segment(), offset)?;
            let sp = self.stack_moved((2 * slot + released) as i64);
            self.commit_target(&mut target, rpl)?;
            self.state.gpr[RSP] = sp;
            self.state.rip = offset;
            return Err(Trap::Exit);
        }
        let sp = self.peek(bytes, 2 * slot + released)?;
        let ss = self.peek(bytes, 3 * slot + released)? as u16;
        let stack = self.return_stack(ss, rpl, &target)?;
        self.check_offset(&target.segment(), offset)?;
        self.commit_target(&mut target, rpl)?;
        self.state.seg[sreg::SS] = stack;
        self.refresh();
        self.set_stack_pointer(sp);
        self.state.gpr[RSP] = self.stack_moved(released as i64);
        self.drop_inner_segments();
        self.state.rip = offset;
        Err(Trap::Exit)
    }

    /// Loads a popped stack pointer in the new stack's width.
    fn set_stack_pointer(&mut self, sp: u64) {
        let mask = self.mode.sp_mask;
        let rsp = &mut self.state.gpr[RSP];
        *rsp = if mask == 0xffff { *rsp & !mask | sp & mask } else { sp & mask };
    }

    /// RFLAGS from an image that IRET popped, with the rights of the level it ran at.
    fn restore_flags(&mut self, image: u64, bytes: usize, cpl: u8, extra: Rflags) {
        let mut changeable = Rflags::STATUS | Rflags::TF | Rflags::DF | Rflags::NT | extra;
        if bytes > 2 {
            changeable |= Rflags::RF | Rflags::AC | Rflags::ID;
        }
        if cpl == 0 {
            changeable |= Rflags::IOPL;
            if bytes > 2 {
                changeable |= Rflags::VIF | Rflags::VIP;
            }
        }
        if cpl <= self.state.iopl() {
            changeable |= Rflags::IF;
        }
        let bits = changeable.bits();
        self.state.rflags = self.state.rflags & !bits | image & bits;
    }

    /// What an IRET in 64-bit mode at CPL 0 has just loaded, if an IRET that pops the same selectors and finds the same
    /// descriptors loads the same; for an engine that does it then without looking further.
    pub fn last_return(&mut self) -> Option<Returned> {
        let [cs, ss] = [sreg::CS, sreg::SS].map(|register| self.state.seg[register]);
        let of_cs = self.source_of(&cs)?;
        // A kernel's SS may be null, and then has no descriptor.
        let of_ss = if is_null(ss.selector) { of_cs } else { self.source_of(&ss)? };
        Some(Returned { segments: [cs, ss], descriptors: [of_cs, of_ss], table: self.state.gdtr })
    }

    /// The same of an IRET outside long mode that has stayed at its level. SS means nothing.
    pub fn last_return_inside(&mut self) -> Option<Returned> {
        let cs = self.state.seg[sreg::CS];
        let of_cs = self.source_of(&cs)?;
        let table = self.state.gdtr;
        Some(Returned { segments: [cs; 2], descriptors: [of_cs; 2], table })
    }

    /// Linear address and contents of a descriptor in the global table that is just what the segment is. Of the local
    /// table nobody tells when it changes.
    fn source_of(&mut self, segment: &Segment) -> Option<(u64, u64)> {
        if is_null(segment.selector) || segment.selector & 4 != 0 {
            return None;
        }
        let descriptor = self.descriptor(segment.selector).ok()??;
        let same = descriptor.raw & ACCESSED != 0 && descriptor.segment() == *segment;
        same.then_some((descriptor.la, descriptor.raw))
    }

    /// Loads CS and SS as an IRET did, and CPL.
    pub fn return_as(&mut self, known: &Returned) {
        let [cs, ss] = known.segments;
        self.state.seg[sreg::CS] = cs;
        self.state.seg[sreg::SS] = ss;
        self.state.cpl = cs.rpl();
        self.refresh();
    }

    /// Loads CS as an IRET did that stayed at its level.
    pub fn return_inside_as(&mut self, known: &Returned) {
        [self.state.seg[sreg::CS], _] = known.segments;
        self.refresh();
    }

    /// IRET in real mode, and in virtual-8086 mode with IOPL 3.
    fn iret_real(&mut self, bytes: usize) -> Outcome {
        let slot = bytes as u64;
        let offset = self.peek(bytes, 0)?;
        let selector = self.peek(bytes, slot)? as u16;
        let image = self.peek(bytes, 2 * slot)?;
        if offset > u64::from(self.state.seg[sreg::CS].limit) {
            return Err(Trap::gp0());
        }
        self.state.gpr[RSP] = self.stack_moved(3 * slot as i64);
        self.set_real_cs(selector);
        self.state.rip = offset;
        // Virtual-8086 mode may not change IOPL.
        let rights = if self.state.v86() { 3 } else { 0 };
        let (vif, vip) = (Rflags::VIF.bits(), Rflags::VIP.bits());
        let kept = self.state.rflags & (vif | vip);
        self.restore_flags(image, bytes, rights, Rflags::empty());
        self.state.rflags = self.state.rflags & !(vif | vip) | kept;
        Err(Trap::Exit)
    }

    /// IRET in virtual-8086 mode with IOPL below 3: virtual-mode extensions or #GP.
    fn iret_v86_extended(&mut self, bytes: usize) -> Outcome {
        if !self.state.cr4(Cr4::VME) || bytes != 2 {
            return Err(Trap::gp0());
        }
        let offset = self.peek(2, 0)?;
        let selector = self.peek(2, 2)? as u16;
        let image = self.peek(2, 4)?;
        let wants_if = image & Rflags::IF.bits() != 0;
        if image & Rflags::TF.bits() != 0 || wants_if && self.state.flag(Rflags::VIP) {
            return Err(Trap::gp0());
        }
        self.state.gpr[RSP] = self.stack_moved(6);
        self.set_real_cs(selector);
        self.state.rip = offset;
        let changeable = (Rflags::STATUS | Rflags::TF | Rflags::DF | Rflags::NT).bits();
        let vif = if wants_if { Rflags::VIF.bits() } else { 0 };
        let kept = self.state.rflags & !(changeable | Rflags::VIF.bits());
        self.state.rflags = kept | image & changeable | vif;
        Err(Trap::Exit)
    }

    /// IRET from level 0 into virtual-8086 mode.
    fn iret_to_v86(&mut self, image: u64) -> Outcome {
        let mut words = [0; 9];
        for (word, depth) in words.iter_mut().zip((0..).step_by(4)) {
            *word = self.peek(4, depth)?;
        }
        let [ip, cs, _, sp, ss, es, ds, fs, gs] = words;
        if ip > 0xffff {
            return Err(Trap::gp0());
        }
        let all = Rflags::all().bits();
        self.state.rflags = image & all | Rflags::FIXED.bits();
        self.state.cpl = 3;
        let selectors = [es, cs, ss, ds, fs, gs];
        for (segment, selector) in self.state.seg.iter_mut().zip(selectors) {
            *segment = Segment::real(selector as u16, V86_ACCESS);
        }
        self.state.gpr[RSP] = sp;
        self.state.rip = ip & 0xffff;
        Err(Trap::Exit)
    }

    fn iret_protected(&mut self, bytes: usize) -> Outcome {
        let slot = bytes as u64;
        let long = self.state.long_mode();
        if self.state.flag(Rflags::NT) {
            if long {
                return Err(Trap::gp0());
            }
            return self.return_from_task();
        }
        let offset = self.peek(bytes, 0)?;
        let selector = self.peek(bytes, slot)? as u16;
        let image = self.peek(bytes, 2 * slot)?;
        let cpl = self.state.cpl;
        if !long && bytes == 4 && image & Rflags::VM.bits() != 0 && cpl == 0 {
            return self.iret_to_v86(image);
        }
        let mut target = self.return_target(selector)?;
        let rpl = (selector & 3) as u8;
        let outer = rpl > cpl;
        // In 64-bit mode SS:RSP are always popped.
        if !outer && !self.mode.long64 {
            self.check_offset(&target.segment(), offset)?;
            let sp = self.stack_moved(3 * slot as i64);
            self.commit_target(&mut target, rpl)?;
            self.state.gpr[RSP] = sp;
        } else {
            let sp = self.peek(bytes, 3 * slot)?;
            let ss = self.peek(bytes, 4 * slot)? as u16;
            let stack = self.return_stack(ss, rpl, &target)?;
            self.check_offset(&target.segment(), offset)?;
            self.commit_target(&mut target, rpl)?;
            self.state.seg[sreg::SS] = stack;
            self.refresh();
            self.set_stack_pointer(sp);
        }
        self.state.rip = offset;
        self.restore_flags(image, bytes, cpl, Rflags::empty());
        if outer {
            self.drop_inner_segments();
        }
        Err(Trap::Exit)
    }
}

fn truncate(offset: u64, bytes: usize) -> u64 {
    match bytes {
        2 => offset & 0xffff,
        4 => offset & 0xffff_ffff,
        _ => offset,
    }
}

pub(super) fn jmp<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let pointer = vm.far_pointer(i)?;
    if vm.mode.protected {
        return vm.jmp_protected(&pointer);
    }
    if pointer.offset > u64::from(vm.state.seg[sreg::CS].limit) {
        return Err(Trap::gp0());
    }
    vm.set_real_cs(pointer.selector);
    vm.state.rip = pointer.offset;
    Err(Trap::Exit)
}

pub(super) fn call<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let pointer = vm.far_pointer(i)?;
    if vm.mode.protected {
        return vm.call_protected(&pointer);
    }
    if pointer.offset > u64::from(vm.state.seg[sreg::CS].limit) {
        return Err(Trap::gp0());
    }
    let mut frame = vm.current_frame(pointer.bytes as u64);
    frame.push(vm, u64::from(vm.state.seg[sreg::CS].selector))?;
    frame.push(vm, vm.state.rip)?;
    vm.state.gpr[RSP] = frame.sp;
    vm.set_real_cs(pointer.selector);
    vm.state.rip = pointer.offset;
    Err(Trap::Exit)
}

pub(super) fn ret<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let bytes = match i.raw.code() {
        Code::Retfw | Code::Retfw_imm16 => 2,
        Code::Retfd | Code::Retfd_imm16 => 4,
        _ => 8,
    };
    let released = if i.raw.op_count() == 0 { 0 } else { i.imm & 0xffff };
    if vm.mode.protected {
        return vm.ret_protected(bytes, released);
    }
    let offset = vm.peek(bytes, 0)?;
    let selector = vm.peek(bytes, bytes as u64)? as u16;
    if offset > u64::from(vm.state.seg[sreg::CS].limit) {
        return Err(Trap::gp0());
    }
    vm.state.gpr[RSP] = vm.stack_moved(2 * bytes as i64 + released as i64);
    vm.set_real_cs(selector);
    vm.state.rip = offset;
    Err(Trap::Exit)
}

pub(super) fn iret<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let bytes = match i.raw.code() {
        Code::Iretw => 2,
        Code::Iretd => 4,
        _ => 8,
    };
    // NMIs are let in again even when IRET faults.
    vm.state.nmi_blocked = false;
    if vm.mode.protected {
        vm.iret_protected(bytes)
    } else if vm.state.v86() && vm.state.iopl() < 3 {
        vm.iret_v86_extended(bytes)
    } else {
        vm.iret_real(bytes)
    }
}
