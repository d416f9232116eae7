//! Delivery of exceptions and interrupts.
//!
//! Problem: an event must reach its handler through the IDT in whatever mode the processor is, and a
//! fault on the way turns into another event, a double fault, or shutdown. Scheme: [`Interp::enter`]
//! does one delivery, as one transaction: it reads and checks everything, writes the frame, and only
//! then changes registers; [`Interp::deliver`] loops over what fails. Invariants: a delivery that fails
//! has changed no register; at most three are tried for one exception. Source: SDM vol. 3, "Interrupt
//! and Exception Handling", "Interrupt 8—Double Fault Exception"; vol. 2, "INT n/INTO/INT3/INT1".

use super::decode::Insn;
use super::far::Target;
use super::memory::is_canonical;
use super::segment::{V86_ACCESS, is_null, kind, null_stack};
use super::{Interp, memory::null_segment};
use crate::env::{Memory, Privilege};
use crate::exception::{Exception, Outcome, Trap, Vector};
use crate::state::reg::RSP;
use crate::state::{Activity, Cr4, Rflags, Segment, Shadow, sreg};

/// Where an event comes from, which decides privilege checks and the error code's EXT bit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Device interrupt or NMI.
    External,
    /// Fault, trap or abort; also INT1.
    Exception,
    /// INT n, INT3, INTO.
    Software,
}

/// An event to deliver.
#[derive(Clone, Copy)]
struct Event {
    vector: u8,
    error_code: Option<u32>,
    origin: Origin,
    /// RFLAGS image to push.
    flags: u64,
}

/// A stack being pushed to before it becomes the current one.
pub(super) struct Frame {
    pub segment: Segment,
    pub sp: u64,
    sp_mask: u64,
    /// Bytes of a slot: 2, 4 or 8.
    width: u64,
    privilege: Privilege,
    /// Raised when a push leaves the segment.
    overflow: Trap,
}

impl Frame {
    pub fn new(segment: Segment, sp: u64, width: u64, cpl: u8, overflow: Trap) -> Self {
        let sp_mask = if width == 8 {
            u64::MAX
        } else if segment.is_big() {
            0xffff_ffff
        } else {
            0xffff
        };
        let privilege = if cpl == 3 { Privilege::User } else { Privilege::Supervisor };
        Self { segment, sp, sp_mask, width, privilege, overflow }
    }

    /// In long mode slots have 8 bytes and the stack no limits.
    fn long(&self) -> bool {
        self.sp_mask == u64::MAX
    }

    /// Sets the stack pointer's width, where it isn't the segment's (64-bit mode).
    pub fn set_mask(&mut self, sp_mask: u64) {
        self.sp_mask = sp_mask;
    }

    pub fn push<M: Memory>(&mut self, vm: &mut Interp<M>, value: u64) -> Outcome {
        let sp = self.sp.wrapping_sub(self.width) & self.sp_mask;
        let la = if self.long() {
            if !is_canonical(sp) {
                return Err(self.overflow);
            }
            sp
        } else {
            if !holds(&self.segment, sp, self.width) {
                return Err(self.overflow);
            }
            self.segment.base.wrapping_add(sp) & 0xffff_ffff
        };
        if self.privilege == Privilege::User {
            vm.check_alignment(la, self.width)?;
        }
        let bytes = value.to_le_bytes();
        vm.write_linear(la, &bytes[..self.width as usize], self.privilege)?;
        self.sp = if self.sp_mask == 0xffff { self.sp & !0xffff | sp } else { sp };
        Ok(())
    }
}

/// `size` bytes at `offset` lie inside a stack segment.
fn holds(segment: &Segment, offset: u64, size: u64) -> bool {
    let last = offset + (size - 1);
    if segment.is_expand_down() {
        let top = if segment.is_big() { 0xffff_ffff } else { 0xffff };
        offset > u64::from(segment.limit) && last <= top
    } else {
        last <= u64::from(segment.limit)
    }
}

/// Exceptions by how they combine (SDM vol. 3, "Interrupt 8—Double Fault Exception").
#[derive(PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
}

fn class(vector: Vector) -> Class {
    use Vector as V;
    match vector {
        V::DivideError
        | V::InvalidTss
        | V::SegmentNotPresent
        | V::StackFault
        | V::GeneralProtection => Class::Contributory,
        V::PageFault => Class::PageFault,
        _ => Class::Benign,
    }
}

impl<M: Memory> Interp<M> {
    /// Delivers an exception; ends in shutdown when its handling faults three times over.
    pub(super) fn deliver(&mut self, exception: Exception) {
        self.deliver_resuming(exception, true);
    }

    /// Delivers #DB. `resume`: the RF flag that is pushed is set. It is for traps inside a repeated
    /// string instruction and for the general-detect fault, not for execution breakpoints or other
    /// traps.
    pub(super) fn deliver_debug(&mut self, resume: bool) {
        self.deliver_resuming(Exception { vector: Vector::Debug, error_code: 0 }, resume);
    }

    fn deliver_resuming(&mut self, exception: Exception, resume: bool) {
        let mut current = exception;
        let mut resume = resume;
        loop {
            // Faults push RF set, so that the handler's IRET doesn't meet the same breakpoint (SDM vol.
            // 3, "Instruction-Breakpoint Exception Condition").
            let flags = self.state.rflags | if resume { Rflags::RF.bits() } else { 0 };
            let event = Event {
                vector: current.vector as u8,
                error_code: current.vector.has_error_code().then_some(current.error_code),
                origin: Origin::Exception,
                flags,
            };
            let done = self.enter(&event);
            self.task_switched = false;
            let Err(Trap::Exception(second)) = done else { return };
            if current.vector == Vector::DoubleFault {
                self.state.activity = Activity::Shutdown;
                return;
            }
            let doubles = match class(current.vector) {
                Class::Benign => false,
                Class::Contributory => class(second.vector) == Class::Contributory,
                Class::PageFault => class(second.vector) != Class::Benign,
            };
            current = if doubles {
                Exception { vector: Vector::DoubleFault, error_code: 0 }
            } else {
                second
            };
            resume = current.vector != Vector::DoubleFault;
        }
    }

    /// Delivers an external interrupt or NMI.
    pub(super) fn deliver_external(&mut self, vector: u8) {
        let mut flags = self.state.rflags;
        if self.inside_repeat() {
            flags |= Rflags::RF.bits();
        }
        let event = Event { vector, error_code: None, origin: Origin::External, flags };
        let done = self.enter(&event);
        self.task_switched = false;
        if let Err(Trap::Exception(exception)) = done {
            self.deliver(exception);
        }
    }

    /// Delivers a software interrupt; RIP is already at the next instruction.
    pub(super) fn software_interrupt(&mut self, vector: u8, origin: Origin) -> Outcome {
        let event = Event { vector, error_code: None, origin, flags: self.state.rflags };
        self.enter(&event)?;
        self.no_step_trap = true;
        Err(Trap::Exit)
    }

    /// One delivery.
    fn enter(&mut self, event: &Event) -> Outcome {
        self.refresh();
        let result = if !self.state.protected() {
            self.enter_real(event)
        } else if self.state.long_mode() {
            self.enter_long(event)
        } else {
            self.enter_protected(event)
        };
        if matches!(result, Ok(()) | Err(Trap::Exit)) {
            self.state.shadow = Shadow::None;
            self.repeat_left_at = u64::MAX;
            if self.state.activity == Activity::Halted {
                // Any event ends HLT, a single-step trap too.
                self.state.activity = Activity::Running;
            }
            self.refresh();
            return Ok(());
        }
        result
    }

    /// Through the real-mode interrupt vector table.
    fn enter_real(&mut self, event: &Event) -> Outcome {
        let at = u64::from(event.vector) * 4;
        if at + 3 > u64::from(self.state.idtr.limit) {
            return Err(Trap::gp0());
        }
        let entry = self.load_system::<u32>(self.state.idtr.base.wrapping_add(at) & 0xffff_ffff)?;
        let ss = self.state.seg[sreg::SS];
        let mut frame = Frame::new(ss, self.state.gpr[RSP], 2, 0, Trap::ss0());
        frame.push(self, event.flags)?;
        frame.push(self, u64::from(self.state.seg[sreg::CS].selector))?;
        frame.push(self, self.state.rip)?;
        self.state.gpr[RSP] = frame.sp;
        let cleared = Rflags::IF | Rflags::TF | Rflags::AC | Rflags::RF;
        self.state.rflags &= !cleared.bits();
        self.set_real_cs((entry >> 16) as u16);
        self.state.rip = u64::from(entry & 0xffff);
        Ok(())
    }

    /// Error code naming an IDT entry.
    fn idt_code(event: &Event) -> u32 {
        u32::from(event.vector) << 3 | 2 | Self::external_bit(event)
    }

    fn external_bit(event: &Event) -> u32 {
        u32::from(event.origin != Origin::Software)
    }

    /// Checks a gate's privilege and presence.
    fn check_gate(&self, event: &Event, dpl: u8, present: bool) -> Outcome {
        let code = Self::idt_code(event);
        if event.origin == Origin::Software && dpl < self.state.cpl {
            return Err(Trap::with_code(Vector::GeneralProtection, code));
        }
        if !present {
            return Err(Trap::with_code(Vector::SegmentNotPresent, code));
        }
        Ok(())
    }

    /// Checks a gate's code segment: its descriptor, and the privilege level its handler runs at.
    fn handler_segment(&mut self, event: &Event, selector: u16) -> Outcome<(Target, u8)> {
        let ext = Self::external_bit(event);
        let refused = move |vector, selector: u16| {
            Trap::with_code(vector, u32::from(selector & 0xfffc) | ext)
        };
        if is_null(selector) {
            return Err(refused(Vector::GeneralProtection, 0));
        }
        let bad = refused(Vector::GeneralProtection, selector);
        let descriptor = self.descriptor(selector)?.ok_or(bad)?;
        let segment = descriptor.segment();
        if !segment.is_code() || segment.dpl() > self.state.cpl {
            return Err(bad);
        }
        let wide = segment.access & Segment::LONG != 0;
        if self.state.long_mode() && (!wide || segment.is_big()) {
            return Err(bad);
        }
        if !segment.is_present() {
            return Err(refused(Vector::SegmentNotPresent, selector));
        }
        let cpl = if segment.is_conforming() { self.state.cpl } else { segment.dpl() };
        Ok((Target::new(descriptor), cpl))
    }

    /// Through a gate of the protected-mode IDT.
    fn enter_protected(&mut self, event: &Event) -> Outcome {
        let at = u64::from(event.vector) * 8;
        let code = Self::idt_code(event);
        if at + 7 > u64::from(self.state.idtr.limit) {
            return Err(Trap::with_code(Vector::GeneralProtection, code));
        }
        let gate = self.load_system::<u64>(self.state.idtr.base.wrapping_add(at) & 0xffff_ffff)?;
        let kind = (gate >> 40 & 0x1f) as u32;
        let (wide, trap) = match kind {
            kind::TASK_GATE => (false, false),
            kind::INTERRUPT_GATE_16 => (false, false),
            kind::TRAP_GATE_16 => (false, true),
            kind::INTERRUPT_GATE => (true, false),
            kind::TRAP_GATE => (true, true),
            _ => return Err(Trap::with_code(Vector::GeneralProtection, code)),
        };
        self.check_gate(event, (gate >> 45 & 3) as u8, gate >> 47 & 1 != 0)?;
        let selector = (gate >> 16) as u16;
        if kind == kind::TASK_GATE {
            return self.enter_task(event, selector);
        }
        let offset = if wide { gate & 0xffff | gate >> 32 & 0xffff_0000 } else { gate & 0xffff };
        let (mut target, cpl) = self.handler_segment(event, selector)?;
        let ext = Self::external_bit(event);
        let v86 = self.state.v86();
        if v86 && cpl != 0 {
            let code = u32::from(selector & 0xfffc) | ext;
            return Err(Trap::with_code(Vector::GeneralProtection, code));
        }
        let width = if wide { 4 } else { 2 };
        let inner = cpl < self.state.cpl;
        let ss = self.state.seg[sreg::SS];
        let mut frame = if inner {
            let (selector, sp) = self.inner_stack(cpl, ext)?;
            let segment = self.inner_stack_segment(selector, cpl, ext)?;
            let code = u32::from(selector & 0xfffc) | ext;
            Frame::new(segment, sp, width, cpl, Trap::with_code(Vector::StackFault, code))
        } else {
            let overflow = Trap::with_code(Vector::StackFault, ext);
            Frame::new(ss, self.state.gpr[RSP], width, cpl, overflow)
        };
        if offset > u64::from(target.segment().limit) {
            return Err(Trap::with_code(Vector::GeneralProtection, ext));
        }
        if v86 {
            for register in [sreg::GS, sreg::FS, sreg::DS, sreg::ES] {
                frame.push(self, u64::from(self.state.seg[register].selector))?;
            }
        }
        if inner {
            frame.push(self, u64::from(ss.selector))?;
            frame.push(self, self.state.gpr[RSP])?;
        }
        self.push_return(event, &mut frame)?;
        self.commit_target(&mut target, cpl)?;
        if v86 {
            for register in [sreg::GS, sreg::FS, sreg::DS, sreg::ES] {
                self.state.seg[register] = null_segment(0);
            }
        }
        if inner {
            self.state.seg[sreg::SS] = frame.segment;
        }
        self.state.gpr[RSP] = frame.sp;
        self.finish_entry(trap);
        self.state.rip = offset;
        Ok(())
    }

    /// Pushes RFLAGS, CS, RIP and the error code.
    fn push_return(&mut self, event: &Event, frame: &mut Frame) -> Outcome {
        frame.push(self, event.flags)?;
        frame.push(self, u64::from(self.state.seg[sreg::CS].selector))?;
        frame.push(self, self.state.rip)?;
        if let Some(code) = event.error_code {
            frame.push(self, u64::from(code))?;
        }
        Ok(())
    }

    /// Flags on entry to a handler.
    fn finish_entry(&mut self, trap_gate: bool) {
        let mut cleared = Rflags::TF | Rflags::NT | Rflags::VM | Rflags::RF;
        if !trap_gate {
            cleared |= Rflags::IF;
        }
        self.state.rflags &= !cleared.bits();
    }

    /// Through a gate of the long-mode IDT.
    fn enter_long(&mut self, event: &Event) -> Outcome {
        let at = u64::from(event.vector) * 16;
        let code = Self::idt_code(event);
        if at + 15 > u64::from(self.state.idtr.limit) {
            return Err(Trap::with_code(Vector::GeneralProtection, code));
        }
        let la = self.state.idtr.base.wrapping_add(at);
        let low = self.load_system::<u64>(la)?;
        let high = self.load_system::<u64>(la.wrapping_add(8))?;
        let trap = match (low >> 40 & 0x1f) as u32 {
            kind::INTERRUPT_GATE => false,
            kind::TRAP_GATE => true,
            _ => return Err(Trap::with_code(Vector::GeneralProtection, code)),
        };
        self.check_gate(event, (low >> 45 & 3) as u8, low >> 47 & 1 != 0)?;
        let offset = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
        let (mut target, cpl) = self.handler_segment(event, (low >> 16) as u16)?;
        let ext = Self::external_bit(event);
        let inner = cpl < self.state.cpl;
        let ist = low >> 32 & 7;
        let sp = if ist != 0 {
            self.long_stack(0x24 + (ist - 1) * 8, ext)?
        } else if inner {
            self.long_stack(4 + u64::from(cpl) * 8, ext)?
        } else {
            self.state.gpr[RSP]
        };
        let ss = self.state.seg[sreg::SS];
        let segment = if inner { null_stack(u16::from(cpl), cpl) } else { ss };
        let overflow = Trap::with_code(Vector::StackFault, ext);
        let mut frame = Frame::new(segment, sp & !15, 8, cpl, overflow);
        if !is_canonical(offset) {
            return Err(Trap::with_code(Vector::GeneralProtection, ext));
        }
        frame.push(self, u64::from(ss.selector))?;
        frame.push(self, self.state.gpr[RSP])?;
        self.push_return(event, &mut frame)?;
        self.commit_target(&mut target, cpl)?;
        self.state.seg[sreg::SS] = frame.segment;
        self.state.gpr[RSP] = frame.sp;
        self.finish_entry(trap);
        self.state.rip = offset;
        Ok(())
    }

    /// A stack pointer from the 64-bit TSS.
    pub(super) fn long_stack(&mut self, offset: u64, ext: u32) -> Outcome<u64> {
        let tr = self.state.tr;
        if offset + 7 > u64::from(tr.limit) {
            let code = u32::from(tr.selector & 0xfffc) | ext;
            return Err(Trap::with_code(Vector::InvalidTss, code));
        }
        let sp = self.load_system::<u64>(tr.base.wrapping_add(offset))?;
        if is_canonical(sp) { Ok(sp) } else { Err(Trap::with_code(Vector::StackFault, ext)) }
    }

    /// SS and stack pointer for privilege level `cpl` from a 16- or 32-bit TSS.
    pub(super) fn inner_stack(&mut self, cpl: u8, ext: u32) -> Outcome<(u16, u64)> {
        let tr = self.state.tr;
        let wide = tr.access & 8 != 0;
        let (offset, size) =
            if wide { (4 + u64::from(cpl) * 8, 8) } else { (2 + u64::from(cpl) * 4, 4) };
        if offset + size - 1 > u64::from(tr.limit) {
            let code = u32::from(tr.selector & 0xfffc) | ext;
            return Err(Trap::with_code(Vector::InvalidTss, code));
        }
        let la = tr.base.wrapping_add(offset);
        if wide {
            let sp = self.load_system::<u32>(la & 0xffff_ffff)?;
            let ss = self.load_system::<u16>(la.wrapping_add(4) & 0xffff_ffff)?;
            Ok((ss, u64::from(sp)))
        } else {
            let sp = self.load_system::<u16>(la & 0xffff_ffff)?;
            let ss = self.load_system::<u16>(la.wrapping_add(2) & 0xffff_ffff)?;
            Ok((ss, u64::from(sp)))
        }
    }

    /// Checks the stack segment that a TSS names.
    pub(super) fn inner_stack_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        ext: u32,
    ) -> Outcome<Segment> {
        self.stack_segment(selector, cpl, Trap::ts).map_err(|trap| match trap {
            // Page faults keep their code; selector codes get the EXT bit.
            Trap::Exception(e) if e.vector != Vector::PageFault => {
                Trap::with_code(e.vector, e.error_code | ext)
            }
            other => other,
        })
    }

    /// Through a task gate.
    fn enter_task(&mut self, event: &Event, selector: u16) -> Outcome {
        let ext = Self::external_bit(event);
        self.switch_by_gate(selector, ext, event.flags)?;
        if let Some(code) = event.error_code {
            self.refresh();
            let width = if self.state.tr.access & 8 != 0 { 4 } else { 2 };
            let ss = self.state.seg[sreg::SS];
            let overflow = Trap::with_code(Vector::StackFault, ext);
            let mut frame = Frame::new(ss, self.state.gpr[RSP], width, self.state.cpl, overflow);
            frame.push(self, u64::from(code))?;
            self.state.gpr[RSP] = frame.sp;
        }
        Ok(())
    }

    /// Loads CS in real mode or virtual-8086 mode.
    pub fn set_real_cs(&mut self, selector: u16) {
        let v86 = self.state.v86();
        let cs = &mut self.state.seg[sreg::CS];
        if v86 {
            *cs = Segment::real(selector, V86_ACCESS);
        } else {
            cs.selector = selector;
            cs.base = u64::from(selector) << 4;
        }
    }
}

/// INT n.
pub(super) fn int_n<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let vector = i.imm as u8;
    if vm.state.v86() {
        if vm.state.cr4(Cr4::VME) && !vm.redirects_to_task(vector)? {
            return vm.enter_v86_handler(vector);
        }
        if vm.state.iopl() < 3 {
            return Err(Trap::gp0());
        }
    }
    vm.software_interrupt(vector, Origin::Software)
}

impl<M: Memory> Interp<M> {
    /// The TSS's software interrupt redirection bitmap: set means through the IDT.
    fn redirects_to_task(&mut self, vector: u8) -> Outcome<bool> {
        let tr = self.state.tr;
        if tr.access & 8 == 0 || tr.limit < 0x67 {
            return Err(Trap::gp0());
        }
        let map = u64::from(self.load_system::<u16>(self.wrap(tr.base.wrapping_add(0x66)))?);
        let Some(at) = (map + u64::from(vector / 8)).checked_sub(32) else { return Ok(true) };
        if at > u64::from(tr.limit) {
            return Err(Trap::gp0());
        }
        let bits = self.load_system::<u8>(self.wrap(tr.base.wrapping_add(at)))?;
        Ok(bits >> (vector % 8) & 1 != 0)
    }

    /// INT n to the virtual-8086 program's own handler (SDM vol. 3, "Method 5/6").
    fn enter_v86_handler(&mut self, vector: u8) -> Outcome {
        let entry = self.read_v86_vector(vector)?;
        let mut flags = self.state.rflags & !(Rflags::VM | Rflags::RF).bits();
        let own_if = self.state.iopl() == 3;
        if !own_if {
            flags |= Rflags::IOPL.bits();
            flags &= !Rflags::IF.bits();
            if self.state.flag(Rflags::VIF) {
                flags |= Rflags::IF.bits();
            }
        }
        let ss = self.state.seg[sreg::SS];
        let mut frame = Frame::new(ss, self.state.gpr[RSP], 2, 3, Trap::ss0());
        frame.push(self, flags)?;
        frame.push(self, u64::from(self.state.seg[sreg::CS].selector))?;
        frame.push(self, self.state.rip)?;
        self.state.gpr[RSP] = frame.sp;
        let interrupt = if own_if { Rflags::IF } else { Rflags::VIF };
        self.state.rflags &= !(interrupt | Rflags::TF).bits();
        self.set_real_cs((entry >> 16) as u16);
        self.state.rip = u64::from(entry & 0xffff);
        self.no_step_trap = true;
        Err(Trap::Exit)
    }

    fn read_v86_vector(&mut self, vector: u8) -> Outcome<u32> {
        let mut bytes = [0; 4];
        self.read_linear(u64::from(vector) * 4, &mut bytes, Privilege::User)?;
        Ok(u32::from_le_bytes(bytes))
    }
}

/// INT3.
pub(super) fn int3<M: Memory>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    vm.software_interrupt(Vector::Breakpoint as u8, Origin::Software)
}

/// INTO.
pub(super) fn into<M: Memory>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    if vm.state.flag(Rflags::OF) {
        vm.software_interrupt(Vector::Overflow as u8, Origin::Software)
    } else {
        Ok(())
    }
}

/// INT1: a debug trap without privilege check.
pub(super) fn int1<M: Memory>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    vm.software_interrupt(Vector::Debug as u8, Origin::Exception)
}
