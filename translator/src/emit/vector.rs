//! Vector instructions, on the host's registers.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::Mnemonic;
use xenolith_cpu::vector::{Plain, Unit};

use super::{EmitError, Emitter, R11, RCX, Restore, Site, Stub, has_memory, mask};
use crate::area::offset;
use crate::plan::{Plan, Step};

/// MXCSR's bits that have to be as they are here: every exception masked, nothing reserved set.
const MXCSR_FIXED: u32 = 0xffff_1f80;
/// Those of them that are set.
const MXCSR_MASKS: u32 = 0x1f80;

impl Emitter<'_> {
    /// Makes sure that the vector registers are the guest's. In modes that don't keep them loaded they
    /// are on a block's first vector instruction.
    pub(super) fn load_vector(&mut self) {
        if !std::mem::replace(&mut self.vector_live, true) {
            self.load_by(offset::VECTOR_IDLE, self.frame.routines.load_vector);
        }
    }

    /// Goes through a common routine that comes back to r10, unless the word at `idle` is zero.
    pub(super) fn load_by(&mut self, idle: i32, routine: u64) {
        let live = self.asm.new_dynamic_label();
        // The routine is free to use r10, and whoever comes to it later may go on from here.
        self.ready = [None; 2];
        dynasm!(self.asm ; .arch x64
            ; gs mov [offset::spill(0)], rcx
            ; gs mov rcx, [idle]
            ; jrcxz =>live
            ; lea r10, [=>live]
        );
        self.jump_to(routine);
        dynasm!(self.asm ; .arch x64
            ; =>live
            ; gs mov rcx, [offset::spill(0)]
        );
    }

    /// A vector, x87 or MMX instruction.
    pub(super) fn vector(
        &mut self,
        step: &Step,
        plan: &Plan,
        plain: Plain,
    ) -> Result<(), EmitError> {
        if step.insn.mnemonic() == Mnemonic::Wait {
            return Ok(());
        }
        if matches!(plain.unit, Unit::Sse | Unit::Avx | Unit::SseMmx) {
            self.load_vector();
        }
        if matches!(plain.unit, Unit::X87 | Unit::Mmx | Unit::SseMmx) {
            self.load_x87();
        }
        let zeroes = matches!(step.insn.mnemonic(), Mnemonic::Vzeroupper | Mnemonic::Vzeroall);
        if zeroes && !self.wide() {
            self.zero_lower_eight(step.insn.mnemonic() == Mnemonic::Vzeroall);
            Ok(())
        } else if has_memory(&step.insn) {
            self.with_memory(step, plan)
        } else {
            self.registers_only(step)
        }
    }

    /// VZEROUPPER and VZEROALL where there are but eight registers: 64-bit code would lose the others.
    fn zero_lower_eight(&mut self, all: bool) {
        for n in 0..8 {
            if all {
                dynasm!(self.asm ; .arch x64 ; vxorps Rx(n), Rx(n), Rx(n));
            } else {
                dynasm!(self.asm ; .arch x64 ; vmovaps Rx(n), Rx(n));
            }
        }
    }

    /// LDMXCSR. A value that faults or unmasks an exception is the interpreter's.
    pub(super) fn load_mxcsr(&mut self, step: &Step) -> Result<(), EmitError> {
        self.load_vector();
        self.load_operand(step, R11, 4)?;
        let slow = self.keep_if(MXCSR_FIXED, MXCSR_MASKS);
        dynasm!(self.asm ; .arch x64 ; gs ldmxcsr [offset::spill(3)]);
        self.leave_at(step, slow);
        Ok(())
    }

    /// Keeps the control word in r11 in spill slot 3 if its bits under `mask` are `wanted`; or else goes to the label
    /// that comes back, with RCX to be restored.
    pub(super) fn keep_if(&mut self, mask: u32, wanted: u32) -> DynamicLabel {
        let slow = self.asm.new_dynamic_label();
        dynasm!(self.asm ; .arch x64 ; gs mov [offset::spill(0)], rcx);
        self.differs(RCX, R11, mask, wanted);
        dynasm!(self.asm ; .arch x64
            ; jrcxz >good
            ; jmp =>slow
            ; good:
            ; gs mov rcx, [offset::spill(0)]
            ; gs mov [offset::spill(3)], r11
        );
        slow
    }

    /// At `slow`, where RCX is in its spill slot, the interpreter does the instruction, and the block is left.
    pub(super) fn leave_at(&mut self, step: &Step, slow: DynamicLabel) {
        let insn = &step.insn;
        let bits = self.frame.mode.bits;
        let site = self.site(Site::HandOver {
            rip: mask(insn.ip(), bits),
            next: mask(insn.next_ip(), bits),
            resume: 0,
            live: self.vector_live,
            mnemonic: insn.mnemonic(),
            done: self.uncounted,
            again: 0,
        });
        self.stubs.push(Stub { label: slow, site, restore: Restore::Rcx });
    }
}
