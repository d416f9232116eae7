//! The stack: PUSH, POP, CALL's and RET's accesses, LEAVE, PUSHF.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::OpKind;

use super::memory::{Borrowed, Check};
use super::names::scratch_number;
use super::template::Kind;
use super::{EmitError, Emitter, R10, R11, RBP, RSP, mask};
use crate::area::offset;
use crate::plan::{Part, Plan, Step};

impl Emitter<'_> {
    /// Makes the stack slot at RSP + `displacement` reachable: the host address is then the host
    /// register that comes back plus r11 plus the displacement that comes back.
    fn stack_access(
        &mut self,
        displacement: i32,
        write: bool,
        step: &Step,
        plan: &Plan,
    ) -> (u8, i32) {
        if let Some(Part { window, first: false }) = step.part
            && self.wide()
        {
            let slot = offset::window(usize::from(window));
            dynasm!(self.asm ; .arch x64 ; gs mov r11, [slot]);
            return (RSP, displacement);
        }
        if !step.looks_up && self.wide() {
            self.delta(R11, RSP);
            if let Some(Part { window, .. }) = step.part {
                let slot = offset::window(usize::from(window));
                dynasm!(self.asm ; .arch x64 ; gs mov [slot], r11);
            }
            return (RSP, displacement);
        }
        let rip = mask(step.insn.ip(), self.frame.mode.bits);
        let start = self.offset();
        if self.wide() {
            dynasm!(self.asm ; .arch x64 ; lea r10, [rsp + displacement]);
        } else {
            dynasm!(self.asm ; .arch x64 ; lea r10d, [rsp + displacement]);
        }
        let check = Check::one(step, rip, write, self.slot() as u8, start);
        (R10, self.reach(Borrowed::SCRATCH, check, step.part, plan))
    }

    /// Moves the stack pointer.
    pub(super) fn move_stack(&mut self, by: i32) {
        if self.wide() {
            dynasm!(self.asm ; .arch x64 ; lea rsp, [rsp + by]);
        } else {
            dynasm!(self.asm ; .arch x64 ; lea esp, [rsp + by]);
        }
    }

    /// Loads the slot at RSP + `displacement`.
    pub(super) fn stack_load(&mut self, into: u8, displacement: i32, step: &Step, plan: &Plan) {
        let (base, at) = self.stack_access(displacement, false, step, plan);
        if self.wide() {
            dynasm!(self.asm ; .arch x64 ; mov Rq(into), [Rq(base) + r11 + at]);
        } else {
            dynasm!(self.asm ; .arch x64 ; mov Rd(into), [Rq(base) + r11 + at]);
        }
    }

    /// Pushes a host register; if it is r11, what is in spill slot 3.
    fn push_value(&mut self, from: u8, step: &Step, plan: &Plan) {
        let slot = self.slot();
        let (base, at) = self.stack_access(-slot, true, step, plan);
        if from == R11 {
            dynasm!(self.asm ; .arch x64
                ; lea r10, [Rq(base) + r11 + at]
                ; gs mov r11, [offset::spill(3)]
            );
            self.store_at_r10();
        } else if self.wide() {
            dynasm!(self.asm ; .arch x64 ; mov [Rq(base) + r11 + at], Rq(from));
        } else {
            dynasm!(self.asm ; .arch x64 ; mov [Rq(base) + r11 + at], Rd(from));
        }
        self.move_stack(-slot);
    }

    fn store_at_r10(&mut self) {
        if self.wide() {
            dynasm!(self.asm ; .arch x64 ; mov [r10], r11);
        } else {
            dynasm!(self.asm ; .arch x64 ; mov [r10], r11d);
        }
    }

    /// Pushes a constant: a return address (`code`) or an immediate.
    pub(super) fn push_constant(&mut self, value: u64, code: bool, step: &Step, plan: &Plan) {
        let slot = self.slot();
        let (base, at) = self.stack_access(-slot, true, step, plan);
        let narrow = value as i64 == i64::from(value as i32);
        if !self.wide() {
            dynasm!(self.asm ; .arch x64 ; mov DWORD [Rq(base) + r11 + at], value as i32);
            if code {
                self.depends(Kind::Guest32);
            }
        } else if narrow {
            dynasm!(self.asm ; .arch x64 ; mov QWORD [Rq(base) + r11 + at], value as i32);
            if code {
                self.stays();
            }
        } else {
            dynasm!(self.asm ; .arch x64
                ; lea r10, [Rq(base) + r11 + at]
                ; mov r11, QWORD value as i64
            );
            if code {
                self.depends(Kind::Guest64);
            }
            dynasm!(self.asm ; .arch x64 ; mov [r10], r11);
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
                let slot = self.slot() as u8;
                self.load_operand(step, R10, slot)?;
                dynasm!(self.asm ; .arch x64 ; gs mov [offset::spill(3)], r10);
                self.push_value(R11, step, plan);
            }
            _ => self.push_constant(insn.immediate(0), false, step, plan),
        }
        Ok(())
    }

    pub(super) fn pop(&mut self, step: &Step, plan: &Plan) {
        let register = step.insn.op0_register().full_register();
        let number = register.number() as u8;
        let slot = self.slot();
        if scratch_number(register).is_some() {
            self.stack_load(R10, 0, step, plan);
            dynasm!(self.asm ; .arch x64 ; gs mov [offset::gpr(usize::from(number))], r10);
            self.move_stack(slot);
        } else {
            self.stack_load(number, 0, step, plan);
            // POP RSP: the popped value stays.
            if number != RSP {
                self.move_stack(slot);
            }
        }
    }

    pub(super) fn leave(&mut self, step: &Step, plan: &Plan) {
        let slot = self.slot();
        let rip = mask(step.insn.ip(), self.frame.mode.bits);
        let start = self.offset();
        if self.wide() {
            dynasm!(self.asm ; .arch x64 ; mov r10, rbp);
        } else {
            dynasm!(self.asm ; .arch x64 ; mov r10d, ebp);
        }
        let check = Check::one(step, rip, false, slot as u8, start);
        let at = self.reach(Borrowed::SCRATCH, check, step.part, plan);
        if self.wide() {
            dynasm!(self.asm ; .arch x64
                ; mov r11, [r10 + r11 + at]
                ; lea rsp, [rbp + slot]
                ; mov Rq(RBP), r11
            );
        } else {
            dynasm!(self.asm ; .arch x64
                ; mov r11d, [r10 + r11 + at]
                ; lea esp, [rbp + slot]
                ; mov Rd(RBP), r11d
            );
        }
    }

    /// PUSHF: the host's status flags and the rest from the area. The host's stack takes the flags.
    pub(super) fn push_flags(&mut self, step: &Step, plan: &Plan) {
        dynasm!(self.asm ; .arch x64
            ; gs mov [offset::spill(3)], rsp
            ; gs mov rsp, [offset::HOST_RSP]
            ; pushfq
            ; pop r10
            ; gs mov rsp, [offset::spill(3)]
            ; gs pext r10, r10, [offset::STATUS]
            ; gs pdep r10, r10, [offset::STATUS]
            ; gs mov r11, [offset::SYSTEM_FLAGS]
            ; lea r10, [r10 + r11]
            ; gs mov r11, [offset::INTERRUPT_FLAG]
            ; lea r10, [r10 + r11]
            ; gs mov [offset::spill(3)], r10
        );
        self.push_value(R11, step, plan);
    }
}
