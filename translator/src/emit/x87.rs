//! The x87 registers, which are the MMX registers too.
//!
//! Problem: loading and saving them takes as long as a hundred instructions, and most code never touches them.
//! Scheme: nothing in Rust uses them, so the guest's stay in the host's over exits, until Rust wants
//! to look at them; a block's first x87 instruction makes sure that they are there. Such blocks exist
//! only in modes in which every exception is masked, so that none is ever raised or pending; what would
//! unmask one is the interpreter's. The pointers to the last instruction and operand are the host's own while
//! it has the registers and never shown: the guest's stay as the last load left them.
//! Source: SDM vol. 1, "Programming with the x87 FPU".

use dynasmrt::{DynasmApi, dynasm};

use super::{EmitError, Emitter, R11};
use crate::area::offset;
use crate::plan::Step;

/// The control word's exception masks.
const MASKS: u32 = 0x3f;

impl Emitter<'_> {
    /// Makes sure that the x87 registers are the guest's.
    pub(super) fn load_x87(&mut self) {
        if !std::mem::replace(&mut self.x87_live, true) {
            self.load_by(offset::X87_IDLE, self.frame.routines.load_x87);
        }
    }

    /// FLDCW. A value that unmasks an exception is the interpreter's.
    pub(super) fn load_control_word(&mut self, step: &Step) -> Result<(), EmitError> {
        self.load_x87();
        self.load_operand(step, R11, 2)?;
        let slow = self.keep_if(MASKS, MASKS);
        dynasm!(self.asm ; .arch x64 ; gs fldcw WORD [offset::spill(3)]);
        self.leave_at(step, slow);
        Ok(())
    }
}
