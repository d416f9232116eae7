//! The stack: PUSH, POP, CALL's and RET's accesses, LEAVE, PUSHF.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::OpKind;

use super::memory::{Borrowed, Check};
use super::names::{is_short, scratch_number};
use super::{EmitError, Emitter, R10, R11, RBP, RSP, mask};
use crate::area::{is_floating, offset};
use crate::classify::slot_bytes;
use crate::plan::{Part, Plan, Step};

impl Emitter<'_> {
    /// Makes the stack slot of `size` bytes at RSP + `displacement` reachable: the host address is then the
    /// host register that comes back plus r11 plus the displacement that comes back. See [`Emitter::is_steady`].
    pub(super) fn stack_access(
        &mut self,
        displacement: i32,
        size: u8,
        write: bool,
        step: &Step,
        plan: &Plan,
    ) -> (u8, i32) {
        self.keep_but(1 << R11);
        if let Some(Part { window, first: false }) = step.part
            && self.wide()
        {
            self.recall(R11, window);
            return (RSP, displacement);
        }
        if !step.looks_up && self.wide() {
            self.delta(R11, RSP);
            if let Some(Part { window, .. }) = step.part {
                self.keep(R11, window);
            }
            return (RSP, displacement);
        }
        let rip = mask(step.insn.ip(), self.frame.mode.bits);
        let start = self.offset();
        self.slot_address(R10, RSP, displacement);
        let check = Check::one(step, rip, write, size, start, self.stack_spot());
        let check = Check { slots: true, ..check };
        (R10, self.reach(Borrowed::SCRATCH, check, step.part, plan))
    }

    /// Moves the stack pointer.
    pub(super) fn move_stack(&mut self, by: i32) {
        self.set_stack(RSP, by);
    }

    /// Loads the slot of `size` bytes at RSP into a register, zero-extended.
    pub(super) fn stack_load(&mut self, into: u8, size: u8, step: &Step, plan: &Plan) {
        if self.by_segment(step) {
            self.load_by_segment(into, RSP, size);
            return;
        }
        let (base, at) = self.stack_access(0, size, false, step, plan);
        match size {
            2 => dynasm!(self.asm ; .arch x64 ; movzx Rd(into), WORD [Rq(base) + r11 + at]),
            4 => dynasm!(self.asm ; .arch x64 ; mov Rd(into), [Rq(base) + r11 + at]),
            _ => dynasm!(self.asm ; .arch x64 ; mov Rq(into), [Rq(base) + r11 + at]),
        }
    }

    /// Loads from `base`, a linear address of 32 bits, by FS: see [`Self::by_segment`].
    pub(super) fn load_by_segment(&mut self, into: u8, base: u8, size: u8) {
        match size {
            1 => dynasm!(self.asm ; .arch x64 ; fs movzx Rd(into), BYTE [Rd(base)]),
            2 => dynasm!(self.asm ; .arch x64 ; fs movzx Rd(into), WORD [Rd(base)]),
            _ => dynasm!(self.asm ; .arch x64 ; fs mov Rd(into), [Rd(base)]),
        }
    }

    /// Pushes a host register; if it is r11, what is in spill slot 3.
    pub(super) fn push_value(&mut self, from: u8, step: &Step, plan: &Plan) {
        let size = slot_bytes(&step.insn);
        let slot = i32::from(size);
        if self.by_segment(step) {
            let below = -size.cast_signed();
            if from == R11 {
                dynasm!(self.asm ; .arch x64 ; gs mov r11, [offset::spill(3)]);
            }
            match size {
                2 => dynasm!(self.asm ; .arch x64 ; fs mov [BYTE esp + below], Rw(from)),
                _ => dynasm!(self.asm ; .arch x64 ; fs mov [BYTE esp + below], Rd(from)),
            }
            return self.move_stack(-slot);
        }
        let (base, at) = self.stack_access(-slot, size, true, step, plan);
        if from == R11 {
            dynasm!(self.asm ; .arch x64
                ; lea r10, [Rq(base) + r11 + at]
                ; gs mov r11, [offset::spill(3)]
            );
            match size {
                2 => dynasm!(self.asm ; .arch x64 ; mov [r10], r11w),
                4 => dynasm!(self.asm ; .arch x64 ; mov [r10], r11d),
                _ => dynasm!(self.asm ; .arch x64 ; mov [r10], r11),
            }
            return self.move_stack(-slot);
        }
        match size {
            2 => dynasm!(self.asm ; .arch x64 ; mov [Rq(base) + r11 + at], Rw(from)),
            4 => dynasm!(self.asm ; .arch x64 ; mov [Rq(base) + r11 + at], Rd(from)),
            _ => dynasm!(self.asm ; .arch x64 ; mov [Rq(base) + r11 + at], Rq(from)),
        }
        self.move_stack(-slot);
    }

    /// Pushes a constant: an address of code or an immediate.
    pub(super) fn push_constant(&mut self, value: u64, step: &Step, plan: &Plan) {
        let size = slot_bytes(&step.insn);
        let slot = i32::from(size);
        if self.by_segment(step) {
            let below = -size.cast_signed();
            if is_floating(value) {
                self.address(R11, value);
                dynasm!(self.asm ; .arch x64 ; fs mov [BYTE esp + below], r11d);
            } else if size == 2 {
                dynasm!(self.asm ; .arch x64 ; fs mov WORD [BYTE esp + below], value as i16);
            } else {
                dynasm!(self.asm ; .arch x64 ; fs mov DWORD [BYTE esp + below], value as i32);
            }
            return self.move_stack(-slot);
        }
        let (base, at) = self.stack_access(-slot, size, true, step, plan);
        if is_floating(value) {
            dynasm!(self.asm ; .arch x64 ; lea r10, [Rq(base) + r11 + at]);
            self.address(R11, value);
            match size {
                2 => dynasm!(self.asm ; .arch x64 ; mov [r10], r11w),
                4 => dynasm!(self.asm ; .arch x64 ; mov [r10], r11d),
                _ => dynasm!(self.asm ; .arch x64 ; mov [r10], r11),
            }
        } else if size == 2 {
            dynasm!(self.asm ; .arch x64 ; mov WORD [Rq(base) + r11 + at], value as i16);
        } else if size == 4 {
            dynasm!(self.asm ; .arch x64 ; mov DWORD [Rq(base) + r11 + at], value as i32);
        } else if is_short(value) {
            dynasm!(self.asm ; .arch x64 ; mov QWORD [Rq(base) + r11 + at], value as i32);
        } else {
            dynasm!(self.asm ; .arch x64
                ; lea r10, [Rq(base) + r11 + at]
                ; mov r11, QWORD value as i64
                ; mov [r10], r11
            );
        }
        self.move_stack(-slot);
    }

    pub(super) fn push(&mut self, step: &Step, plan: &Plan) -> Result<(), EmitError> {
        let insn = &step.insn;
        match insn.op0_kind() {
            OpKind::Register => {
                let register = insn.op0_register().full_register();
                let number = register.number() as u8;
                if scratch_number(register).is_some() {
                    let at = offset::gpr(usize::from(number));
                    dynasm!(self.asm ; .arch x64
                        ; gs mov r11, [at]
                        ; gs mov [offset::spill(3)], r11
                    );
                    self.push_value(R11, step, plan);
                } else {
                    self.push_value(number, step, plan);
                }
            }
            OpKind::Memory => {
                self.load_operand(step, R10, slot_bytes(insn))?;
                dynasm!(self.asm ; .arch x64 ; gs mov [offset::spill(3)], r10);
                self.push_value(R11, step, plan);
            }
            _ => self.push_constant(insn.immediate(0), step, plan),
        }
        Ok(())
    }

    pub(super) fn pop(&mut self, step: &Step, plan: &Plan) {
        let register = step.insn.op0_register().full_register();
        let number = register.number() as u8;
        let size = slot_bytes(&step.insn);
        let slot = i32::from(size);
        if scratch_number(register).is_some() {
            self.stack_load(R10, size, step, plan);
            dynasm!(self.asm ; .arch x64 ; gs mov [offset::gpr(usize::from(number))], r10);
            self.move_stack(slot);
        } else if size == 2 {
            // The register's upper part stays. POP SP: the popped value does.
            self.stack_load(R10, size, step, plan);
            self.move_stack(slot);
            dynasm!(self.asm ; .arch x64 ; mov Rw(number), r10w);
        } else {
            self.stack_load(number, size, step, plan);
            // POP RSP: the popped value stays.
            if number != RSP {
                self.move_stack(slot);
            }
        }
    }

    pub(super) fn leave(&mut self, step: &Step, plan: &Plan) {
        let size = slot_bytes(&step.insn);
        if self.by_segment(step) {
            self.load_by_segment(R10, RBP, size);
        } else {
            let rip = mask(step.insn.ip(), self.frame.mode.bits);
            let start = self.offset();
            self.slot_address(R10, RBP, 0);
            let check = Check::one(step, rip, false, size, start, self.stack_spot());
            let at = self.reach(Borrowed::SCRATCH, check, step.part, plan);
            match size {
                2 => dynasm!(self.asm ; .arch x64 ; movzx r10d, WORD [r10 + r11 + at]),
                4 => dynasm!(self.asm ; .arch x64 ; mov r10d, [r10 + r11 + at]),
                _ => dynasm!(self.asm ; .arch x64 ; mov r10, [r10 + r11 + at]),
            }
        }
        self.set_stack(RBP, i32::from(size));
        match size {
            2 => dynasm!(self.asm ; .arch x64 ; mov Rw(RBP), r10w),
            4 => dynasm!(self.asm ; .arch x64 ; mov Rd(RBP), r10d),
            _ => dynasm!(self.asm ; .arch x64 ; mov Rq(RBP), r10),
        }
    }

    /// PUSHF: the host's status flags and the rest from the area. The host's stack takes the flags.
    pub(super) fn push_flags(&mut self, step: &Step, plan: &Plan) {
        self.load_flags();
        dynasm!(self.asm ; .arch x64 ; gs mov [offset::spill(3)], r10);
        self.push_value(R11, step, plan);
    }

    /// Loads RFLAGS into r10.
    pub(super) fn load_flags(&mut self) {
        dynasm!(self.asm ; .arch x64
            ; gs mov [offset::spill(3)], rsp
            ; gs mov rsp, [offset::HOST_RSP]
            ; pushfq
            ; pop r10
            ; gs mov rsp, [offset::spill(3)]
        );
        self.cut(R10, offset::STATUS);
        dynasm!(self.asm ; .arch x64
            ; gs mov r11, [offset::SYSTEM_FLAGS]
            ; lea r10, [r10 + r11]
            ; gs mov r11, [offset::INTERRUPT_FLAG]
            ; lea r10, [r10 + r11]
        );
    }
}
