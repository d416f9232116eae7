//! Sensitive instructions that need no Rust, and division.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::OpKind;
use xenolith_cpu::env::attention;

use super::names::scratch_number;
use super::{EmitError, Emitter, R11, Restore, Site, Stub};
use crate::area::offset;
use crate::plan::Step;

impl Emitter<'_> {
    /// CLI: maskable interrupts are no reason to stop any more.
    pub(super) fn clear_interrupts(&mut self) {
        let masked = !(attention::INTR as i32);
        dynasm!(self.asm ; .arch x64
            ; gs mov QWORD [offset::INTERRUPT_FLAG], 0
            ; gs mov DWORD [offset::ATTENTION_MASK], masked
        );
    }

    /// STI. The next poll comes after at least one more instruction: that is the shadow.
    pub(super) fn set_interrupts(&mut self) {
        dynasm!(self.asm ; .arch x64
            ; gs mov QWORD [offset::INTERRUPT_FLAG], 0x200
            ; gs mov DWORD [offset::ATTENTION_MASK], -1
        );
    }

    /// DIV: the dividend's upper half must be zero and the divisor not, so that it can't fault.
    pub(super) fn divide(&mut self, step: &Step, rip: u64) -> Result<(), EmitError> {
        let insn = &step.insn;
        let size = if insn.op0_kind() == OpKind::Register {
            insn.op0_register().size()
        } else {
            insn.memory_size().size()
        };
        if insn.op0_kind() == OpKind::Register {
            let number = insn.op0_register().full_register().number() as u8;
            if scratch_number(insn.op0_register()).is_some() {
                let at = offset::gpr(usize::from(number));
                dynasm!(self.asm ; .arch x64 ; gs mov r11, [at]);
            } else {
                dynasm!(self.asm ; .arch x64 ; mov r11, Rq(number));
            }
            if size == 4 {
                dynasm!(self.asm ; .arch x64 ; mov r11d, r11d);
            }
        } else {
            self.load_operand(step, R11, size as u8)?;
        }
        let slow = self.asm.new_dynamic_label();
        dynasm!(self.asm ; .arch x64 ; gs mov [offset::spill(0)], rcx);
        if size == 4 {
            dynasm!(self.asm ; .arch x64 ; mov ecx, edx);
        } else {
            dynasm!(self.asm ; .arch x64 ; mov rcx, rdx);
        }
        dynasm!(self.asm ; .arch x64
            ; jrcxz >small
            ; jmp =>slow
            ; small:
            ; mov rcx, r11
            ; jrcxz >zero
            ; jmp >fits
            ; zero:
            ; jmp =>slow
            ; fits:
            ; gs mov rcx, [offset::spill(0)]
        );
        if size == 4 {
            dynasm!(self.asm ; .arch x64 ; div r11d);
        } else {
            dynasm!(self.asm ; .arch x64 ; div r11);
        }
        let next = super::mask(insn.next_ip(), self.frame.mode.bits);
        let resume = self.offset() as u32;
        let live = self.vector_live;
        let (mnemonic, done) = (insn.mnemonic(), self.uncounted);
        let again = done + 1;
        let vector = false;
        let site = Site::HandOver { rip, next, resume, vector, live, mnemonic, done, again };
        let site = self.site(site);
        self.stubs.push(Stub { label: slow, site, restore: Restore::Rcx });
        Ok(())
    }
}
