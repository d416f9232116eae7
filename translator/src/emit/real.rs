//! Far transfers where a segment's base is made of its selector: real mode, and virtual-8086 mode.
//!
//! Problem: firmware, boot loaders and DOS go through INT, IRET, far CALL and RET all the time. Scheme: a load of
//! CS there changes selector and base only, so the mode stays, and what differs is the code segment's number
//! ([`crate::area::Area::code_numbers`]). The transfer sets selector, base and number in the area and goes on
//! by the jump cache; Rust takes CS over when translated code is left. Invariants: nothing is changed before
//! all is known to be there: the number, the stack's slots, the vector; these look into the inline TLB also
//! where shadow windows are used, so nothing faults half done. What is out of the ordinary is the interpreter's: a
//! segment without a number yet, TF or DF in IRET's flags, NMIs that wait for IRET, an interrupt that it lets in.
//! Source: SDM vol. 2, "CALL", "RET", "INT n", "IRET", real-address mode.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Instruction, OpKind};
use xenolith_cpu::state::{Rflags, sreg};

use super::memory::{Borrowed, Check};
use super::place::Spot;
use super::{EmitError, Emitter, R10, Site, mask};
use crate::area::offset;
use crate::plan::{Plan, Step};

/// Spill slots: where the transfer leads, the offset below the selector in the second; the code segment's
/// number there; an image of the flags.
const SELECTOR: i32 = offset::spill(4);
const POINTER: i32 = offset::spill(5);
const NUMBER: i32 = offset::spill(6);
const FLAGS: i32 = offset::spill(7);

/// Bytes of a vector's entry.
const VECTOR_BYTES: i32 = 4;
/// What 16-bit IRET takes from the stack but for the status flags and IF.
const IRET_SYSTEM: i32 = Rflags::IOPL.bits() as i32;

impl Emitter<'_> {
    /// JMP to a segment's offset of 16 bits.
    pub(super) fn jump_segment(&mut self, step: &Step, next: u64) -> Result<(), EmitError> {
        let out = self.hand_over_here(step, next);
        self.load_pointer_of(step)?;
        self.look_up_segment(out);
        self.enter_segment();
        self.go_to_pointer();
        Ok(())
    }

    /// CALL of one.
    pub(super) fn call_segment(
        &mut self,
        step: &Step,
        plan: &Plan,
        next: u64,
    ) -> Result<(), EmitError> {
        let out = self.hand_over_here(step, next);
        self.load_pointer_of(step)?;
        self.look_up_segment(out);
        let (base, at) = self.stack_access(-4, 4, true, step, plan);
        dynasm!(self.asm ; .arch x64 ; lea r11, [Rq(base) + r11 + at]);
        self.store_return_address(next);
        self.enter_segment();
        self.move_stack(-4);
        self.go_to_pointer();
        Ok(())
    }

    /// RETF with an offset of 16 bits.
    pub(super) fn return_segment(&mut self, step: &Step, plan: &Plan, next: u64) {
        let out = self.hand_over_here(step, next);
        let insn = &step.insn;
        let released = if insn.op_count() == 0 { 0 } else { i32::from(insn.immediate16()) };
        let (base, at) = self.stack_access(0, 4, false, step, plan);
        dynasm!(self.asm ; .arch x64 ; mov r10d, [Rq(base) + r11 + at]);
        self.keep_pointer();
        self.look_up_segment(out);
        self.enter_segment();
        self.move_stack(4 + released);
        self.go_to_pointer();
    }

    /// INT in real mode.
    pub(super) fn enter_vector(&mut self, step: &Step, plan: &Plan, next: u64) {
        let out = self.hand_over_here(step, next);
        let rip = mask(step.insn.ip(), self.frame.mode.bits);
        let start = self.offset();
        let at = VECTOR_BYTES * i32::from(step.insn.immediate8());
        dynasm!(self.asm ; .arch x64 ; mov Rd(R10), at);
        self.stop_if_negative(Borrowed::SCRATCH, offset::IDT_ABOVE, VECTOR_BYTES - 1);
        dynasm!(self.asm ; .arch x64
            ; gs mov r11, [offset::IDT_BASE]
            ; lea r10d, [r10 + r11]
        );
        let size = VECTOR_BYTES as u8;
        self.check(Borrowed::SCRATCH, Check::one(step, rip, false, size, start, Spot::Linear));
        dynasm!(self.asm ; .arch x64 ; mov r10d, [r10 + r11]);
        self.keep_pointer();
        self.look_up_segment(out);
        self.load_flags();
        dynasm!(self.asm ; .arch x64 ; gs mov [FLAGS], r10);
        let (base, at) = self.stack_access(-6, 6, true, step, plan);
        dynasm!(self.asm ; .arch x64
            ; lea r11, [Rq(base) + r11 + at]
            ; gs mov r10, [FLAGS]
            ; mov [r11 + 4], r10w
        );
        self.store_return_address(next);
        self.clear_interrupts();
        self.enter_segment();
        self.move_stack(-6);
        self.go_to_pointer();
    }

    /// IRET of 16 bits in real mode.
    pub(super) fn leave_vector(&mut self, step: &Step, plan: &Plan, next: u64) {
        let out = self.hand_over_here(step, next);
        let (base, at) = self.stack_access(0, 6, false, step, plan);
        dynasm!(self.asm ; .arch x64
            ; lea r11, [Rq(base) + r11 + at]
            ; movzx r10d, WORD [r11 + 4]
            ; gs mov [FLAGS], r10
            ; mov r10d, [r11]
        );
        self.keep_pointer();
        self.look_up_segment(out);
        dynasm!(self.asm ; .arch x64
            ; gs mov [offset::spill(0)], rcx
            ; gs mov r10, [FLAGS]
            ; gs mov r11, [offset::NMI_BLOCKED]
        );
        self.check_flags_image(out);
        self.enter_segment();
        self.take_flags_image(IRET_SYSTEM, (Rflags::IOPL | Rflags::NT).bits() as i32);
        self.move_stack(6);
        self.go_to_pointer();
    }

    /// Keeps the pointer of a JMP or CALL.
    fn load_pointer_of(&mut self, step: &Step) -> Result<(), EmitError> {
        let insn: &Instruction = &step.insn;
        if insn.op0_kind() == OpKind::FarBranch16 {
            let (selector, to) = (insn.far_branch_selector(), insn.far_branch16());
            let pointer = u32::from(selector) << 16 | u32::from(to);
            dynasm!(self.asm ; .arch x64 ; mov r10d, pointer as i32);
        } else {
            self.load_operand(step, R10, 4)?;
        }
        self.keep_pointer();
        Ok(())
    }

    /// Keeps the pointer in r10d; r10 is its selector then.
    fn keep_pointer(&mut self) {
        dynasm!(self.asm ; .arch x64
            ; gs mov [POINTER], r10
            ; gs movzx r10d, WORD [POINTER + 2]
            ; gs mov [SELECTOR], r10
        );
    }

    /// Keeps the number of the code segment that the selector in r10 makes; goes to `out`, with RCX spilled, if
    /// it has none.
    fn look_up_segment(&mut self, out: DynamicLabel) {
        dynasm!(self.asm ; .arch x64
            ; gs mov [offset::spill(0)], rcx
            ; gs mov rcx, [r10 * 8 + offset::CODE_NUMBERS]
            ; gs mov [NUMBER], rcx
            ; jrcxz >unknown
            ; jmp >known
            ; unknown:
            ; jmp =>out
            ; known:
            ; gs mov rcx, [offset::spill(0)]
        );
    }

    /// Stores CS and the address behind this instruction to the host address in r11.
    fn store_return_address(&mut self, next: u64) {
        dynasm!(self.asm ; .arch x64
            ; gs mov r10, [offset::selector(sreg::CS)]
            ; mov [r11 + 2], r10w
            ; mov WORD [r11], next as i16
        );
    }

    /// Loads CS.
    fn enter_segment(&mut self) {
        dynasm!(self.asm ; .arch x64
            ; gs mov r10, [SELECTOR]
            ; gs mov r11, [NUMBER]
        );
        self.store_selector(sreg::CS);
        dynasm!(self.asm ; .arch x64
            ; gs mov [offset::CODE_NUMBER], r11
            ; gs mov QWORD [offset::CODE_LOADED], 1
        );
    }

    /// Goes to the offset of the pointer that was kept.
    fn go_to_pointer(&mut self) {
        self.count_instructions(self.uncounted + 1);
        dynasm!(self.asm ; .arch x64 ; gs movzx r10d, WORD [POINTER]);
        self.leap(self.frame.mode.privilege, Site::Crossed);
    }
}
