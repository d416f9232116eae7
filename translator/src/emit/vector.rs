//! Vector instructions, on the host's registers.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use xenolith_cpu::vector::Plain;

use super::{EmitError, Emitter, has_memory};
use crate::area::offset;
use crate::plan::{Plan, Step};

impl Emitter<'_> {
    /// A vector instruction. In modes that don't keep the registers loaded they are on a block's first
    /// one.
    pub(super) fn vector(
        &mut self,
        step: &Step,
        plan: &Plan,
        plain: Plain,
    ) -> Result<(), EmitError> {
        if !std::mem::replace(&mut self.vector_live, true) {
            let live = self.asm.new_dynamic_label();
            dynasm!(self.asm ; .arch x64
                ; gs mov [offset::spill(0)], rcx
                ; gs mov rcx, [offset::VECTOR_IDLE]
                ; jrcxz =>live
                ; lea r10, [=>live]
            );
            self.jump_to(self.frame.load_vector);
            dynasm!(self.asm ; .arch x64
                ; =>live
                ; gs mov rcx, [offset::spill(0)]
            );
        }
        if has_memory(&step.insn) {
            self.with_memory(step, plan, plain.align)
        } else {
            self.registers_only(step)
        }
    }
}
