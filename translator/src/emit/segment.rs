//! Segment registers as operands, and the stack operations that only 16- and 32-bit code has.
//!
//! Problem: real-mode code loads segment registers all the time. Scheme: the area has the selectors; in segmented
//! code a load in a mode where the base is made of the selector sets selector and base there and says so, and Rust
//! takes them over when the block is left. Loads of SS hold interrupts off for one instruction: the area says so
//! until that one is done, for Rust to know if it is left there. Loads that read descriptors are the
//! interpreter's. Invariant: a window is never open across a load, so no kept addend is an old base's.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::memory::{Borrowed, Check};
use super::names::scratch_number;
use super::{EmitError, Emitter, R10, R11, mask};
use crate::area::offset;
use crate::classify::slot_bytes;
use crate::plan::{Plan, Step};

/// The order in which PUSHA pushes: RSP is the fourth from the last.
const ALL: [u8; 8] = [7, 6, 5, 4, 3, 2, 1, 0];
const RSP_OF_ALL: usize = 3;

/// The segment register that LES or one of its like loads.
fn loaded_with_pointer(insn: &Instruction) -> Option<Register> {
    match insn.mnemonic() {
        Mnemonic::Les => Some(Register::ES),
        Mnemonic::Lds => Some(Register::DS),
        Mnemonic::Lfs => Some(Register::FS),
        Mnemonic::Lgs => Some(Register::GS),
        Mnemonic::Lss => Some(Register::SS),
        _ => None,
    }
}

impl Emitter<'_> {
    /// PUSH of a segment register.
    pub(super) fn push_segment(&mut self, step: &Step, plan: &Plan) {
        let selector = offset::selector(step.insn.op0_register().number());
        if slot_bytes(&step.insn) == 4 {
            let (base, at) = self.stack_access(-4, 4, true, step, plan);
            dynasm!(self.asm ; .arch x64
                ; lea r10, [Rq(base) + r11 + at]
                ; gs mov r11, [selector]
                ; mov [r10], r11w
            );
            return self.move_stack(-4);
        }
        dynasm!(self.asm ; .arch x64
            ; gs mov r11, [selector]
            ; gs mov [offset::spill(3)], r11
        );
        self.push_value(R11, step, plan);
    }

    /// POP of a segment register whose base is made of the selector.
    pub(super) fn pop_segment(&mut self, step: &Step, plan: &Plan) {
        let size = slot_bytes(&step.insn);
        self.stack_load(R10, size, step, plan);
        self.move_stack(i32::from(size));
        self.set_segment(step.insn.op0_register());
        self.hold_off(step, true);
    }

    /// After a load of SS, or the instruction behind it: interrupts are held off, or no longer.
    pub(super) fn hold_off(&mut self, step: &Step, off: bool) {
        if step.loads_stack() {
            dynasm!(self.asm ; .arch x64 ; gs mov QWORD [offset::STACK_LOADED], i32::from(off));
        }
    }

    /// MOV from a segment register.
    pub(super) fn store_segment(&mut self, step: &Step) -> Result<(), EmitError> {
        let insn = &step.insn;
        let selector = offset::selector(insn.op1_register().number());
        if insn.op0_kind() == OpKind::Register {
            let register = insn.op0_register();
            let number = register.number() as u8;
            dynasm!(self.asm ; .arch x64 ; gs mov r11, [selector]);
            if let Some(scratch) = scratch_number(register.full_register()) {
                let at = offset::gpr(usize::from(scratch));
                if register.size() == 2 {
                    dynasm!(self.asm ; .arch x64 ; gs mov WORD [at], r11w);
                } else {
                    dynasm!(self.asm ; .arch x64 ; gs mov [at], r11);
                }
            } else if register.size() == 2 {
                dynasm!(self.asm ; .arch x64 ; mov Rw(number), r11w);
            } else {
                dynasm!(self.asm ; .arch x64 ; mov Rd(number), r11d);
            }
            return Ok(());
        }
        let rip = mask(insn.ip(), self.frame.mode.bits);
        let start = self.offset();
        let b = Borrowed::SCRATCH;
        self.effective_address(insn, b.address, b.addend)?;
        self.check(b, Check::one(step, rip, true, 2, start, self.spot(insn)));
        dynasm!(self.asm ; .arch x64
            ; lea r10, [r10 + r11]
            ; gs mov r11, [selector]
            ; mov [r10], r11w
        );
        Ok(())
    }

    /// MOV to a segment register whose base is made of the selector.
    pub(super) fn load_segment(&mut self, step: &Step) -> Result<(), EmitError> {
        let insn = &step.insn;
        if insn.op1_kind() == OpKind::Register {
            let number = insn.op1_register().number() as u8;
            dynasm!(self.asm ; .arch x64 ; movzx r10d, Rw(number));
        } else {
            self.load_operand(step, R10, 2)?;
        }
        self.set_segment(insn.op0_register());
        self.hold_off(step, true);
        Ok(())
    }

    /// LES and its like, with an offset of 16 bits.
    pub(super) fn load_pointer(&mut self, step: &Step) -> Result<(), EmitError> {
        let number = step.insn.op0_register().number() as u8;
        self.load_operand(step, R10, 4)?;
        dynasm!(self.asm ; .arch x64
            ; mov Rw(number), r10w
        );
        self.turn(R10, R10, 16);
        dynasm!(self.asm ; .arch x64 ; movzx r10d, r10w);
        self.set_segment(loaded_with_pointer(&step.insn).unwrap_or(Register::ES));
        Ok(())
    }

    /// Gives a segment register but CS the selector in r10.
    fn set_segment(&mut self, register: Register) {
        self.store_selector(register.number());
        dynasm!(self.asm ; .arch x64 ; gs mov QWORD [offset::SEGMENTS_LOADED], 1);
    }

    /// Stores the selector in r10, which is lost, and the base that is made of it.
    pub(super) fn store_selector(&mut self, register: usize) {
        dynasm!(self.asm ; .arch x64
            ; gs mov [offset::selector(register)], r10
            // Sixteen times the selector.
            ; lea r10, [r10 * 8]
            ; lea r10, [r10 + r10]
            ; gs mov [offset::seg_base(register)], r10
        );
    }

    /// PUSHA and PUSHAD: one check for all slots.
    pub(super) fn push_all(&mut self, step: &Step, plan: &Plan) {
        let size = self.all_slot(step);
        self.all_access(-8 * size, size, true, step, plan);
        for (n, register) in ALL.into_iter().enumerate() {
            let at = n as i32 * size;
            if size == 2 {
                dynasm!(self.asm ; .arch x64 ; mov [r10 + r11 + at], Rw(register));
            } else {
                dynasm!(self.asm ; .arch x64 ; mov [r10 + r11 + at], Rd(register));
            }
        }
        self.move_stack(-8 * size);
    }

    /// POPA and POPAD: RSP's slot is skipped.
    pub(super) fn pop_all(&mut self, step: &Step, plan: &Plan) {
        let size = self.all_slot(step);
        self.all_access(0, size, false, step, plan);
        for (n, register) in ALL.into_iter().enumerate() {
            let at = n as i32 * size;
            if n == RSP_OF_ALL {
                continue;
            }
            if size == 2 {
                dynasm!(self.asm ; .arch x64 ; mov Rw(register), [r10 + r11 + at]);
            } else {
                dynasm!(self.asm ; .arch x64 ; mov Rd(register), [r10 + r11 + at]);
            }
        }
        self.move_stack(8 * size);
    }

    /// Bytes of one of the eight slots.
    fn all_slot(&self, step: &Step) -> i32 {
        i32::from(slot_bytes(&step.insn) / 8)
    }

    /// Makes the eight slots reachable at r10 + r11.
    fn all_access(&mut self, displacement: i32, size: i32, write: bool, step: &Step, plan: &Plan) {
        let (base, at) = self.stack_access(displacement, 8 * size as u8, write, step, plan);
        debug_assert_eq!((base, at), (R10, 0));
    }
}
