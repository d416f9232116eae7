//! Sensitive instructions that need no Rust.

use dynasmrt::{DynasmApi, dynasm};
use xenolith_cpu::env::attention;

use super::Emitter;
use crate::area::offset;

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
}
