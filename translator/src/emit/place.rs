//! Where an operand lies: from the offset that an instruction names to a linear address.
//!
//! Problem: outside 64-bit and flat 32-bit code an offset is one into a segment, which has a base, a limit
//! and rights; it may have 16 bits; and the segment registers may change while the block stays. Scheme: the
//! area has each segment's base and [`Bounds`](crate::area::Bounds). A bound plus the offset is negative
//! where the access would fault; its sign, taken by PEXT, is the index of a load that faults for one, as
//! a poll's does, so that a check costs loads only, is in nobody's way, and touches no flag. The signal
//! handler leaves, and the interpreter finds out which exception it is. Invariants: offsets are
//! checked before anything that their instruction changes; a window of a segmented block keeps what is
//! added to *offsets*, and was checked not to wrap around the end of 64 KiB or 4 GiB.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Instruction, Register};

use super::memory::{Borrowed, Check};
use super::{Emitter, RSP};
use crate::area::offset;
use crate::mode::Loads;
use xenolith_cpu::state::sreg;

/// What an address that was computed is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spot {
    /// The linear address.
    Linear,
    /// An offset into a segment, of 16 bits if `narrow`.
    Offset { segment: u8, narrow: bool },
}

/// The address of `insn`'s memory operand has 16 bits.
pub(super) fn is_narrow(insn: &Instruction) -> bool {
    let (base, index) = (insn.memory_base(), insn.memory_index());
    if base == Register::None && index == Register::None {
        insn.memory_displ_size() == 2
    } else {
        base.size() == 2 || index.size() == 2
    }
}

impl Emitter<'_> {
    pub(super) fn segmented(&self) -> bool {
        self.frame.mode.segmented
    }

    /// Whether the address of `insn`'s memory operand is an offset into a segment that may be any.
    pub(super) fn has_offset(&self, insn: &Instruction) -> bool {
        let extra = matches!(insn.memory_segment(), Register::FS | Register::GS);
        self.segmented() || extra && !self.wide()
    }

    /// What [`Self::effective_address`] computes.
    pub(super) fn spot(&self, insn: &Instruction) -> Spot {
        if self.has_offset(insn) {
            let segment = insn.memory_segment().number() as u8;
            Spot::Offset { segment, narrow: is_narrow(insn) }
        } else {
            Spot::Linear
        }
    }

    /// What the stack pointer is.
    pub(super) fn stack_spot(&self) -> Spot {
        if self.segmented() {
            Spot::Offset { segment: sreg::SS as u8, narrow: self.frame.mode.stack16 }
        } else {
            Spot::Linear
        }
    }

    /// Adds to an address as wide as the spot's.
    pub(super) fn shift_address(&mut self, register: u8, by: i32, spot: Spot) {
        if self.wide() {
            dynasm!(self.asm ; .arch x64 ; lea Rq(register), [Rq(register) + by]);
        } else {
            dynasm!(self.asm ; .arch x64 ; lea Rd(register), [Rq(register) + by]);
        }
        if let Spot::Offset { narrow: true, .. } = spot {
            dynasm!(self.asm ; .arch x64 ; movzx Rd(register), Rw(register));
        }
    }

    /// The address of the stack slot at `displacement` from the host register `base`, which is guest RSP or
    /// RBP.
    pub(super) fn slot_address(&mut self, into: u8, base: u8, displacement: i32) {
        if self.wide() {
            dynasm!(self.asm ; .arch x64 ; lea Rq(into), [Rq(base) + displacement]);
        } else if self.frame.mode.stack16 && displacement == 0 {
            dynasm!(self.asm ; .arch x64 ; movzx Rd(into), Rw(base));
        } else {
            dynasm!(self.asm ; .arch x64 ; lea Rd(into), [Rq(base) + displacement]);
            if self.frame.mode.stack16 {
                dynasm!(self.asm ; .arch x64 ; movzx Rd(into), Rw(into));
            }
        }
    }

    /// Moves the stack pointer to `by` from the host register `base`. R11 is used where it has 16 bits.
    pub(super) fn set_stack(&mut self, base: u8, by: i32) {
        if let (false, Ok(by)) = (self.frame.mode.stack16, i8::try_from(by)) {
            if self.wide() {
                dynasm!(self.asm ; .arch x64 ; lea rsp, [BYTE Rq(base) + by]);
            } else {
                dynasm!(self.asm ; .arch x64 ; lea esp, [BYTE Rq(base) + by]);
            }
        } else if self.wide() {
            dynasm!(self.asm ; .arch x64 ; lea rsp, [Rq(base) + by]);
        } else if self.frame.mode.stack16 {
            // The bits above stay.
            dynasm!(self.asm ; .arch x64 ; lea r11d, [Rq(base) + by] ; mov Rw(RSP), r11w);
        } else {
            dynasm!(self.asm ; .arch x64 ; lea esp, [Rq(base) + by]);
        }
    }

    /// Turns the offset in `b.address` into a linear address, if it is one; `b.addend` is free. `window`: the
    /// access is a whole window's, and the address doesn't wrap around.
    pub(super) fn linearize(&mut self, b: Borrowed, check: &Check, window: bool) {
        let Spot::Offset { segment, narrow } = check.spot else { return };
        let (mode, number) = (self.frame.mode, usize::from(segment));
        let free = mode.loads == Loads::Base && narrow && check.size == 1;
        if !free {
            // Slots of a stack wrap around one by one, as a window's accesses do.
            let above = offset::above(number, check.writes, narrow && (window || check.slots));
            self.stop_if_negative(b, above, i32::from(check.size) - 1);
        }
        if mode.expands_down {
            self.stop_if_negative(b, offset::below(number), 0);
        }
        let (address, addend) = (b.address, b.addend);
        dynasm!(self.asm ; .arch x64 ; gs mov Rq(addend), [offset::seg_base(number)]);
        if window {
            dynasm!(self.asm ; .arch x64 ; lea Rq(address), [Rq(address) + Rq(addend)]);
        } else {
            dynasm!(self.asm ; .arch x64 ; lea Rd(address), [Rq(address) + Rq(addend)]);
        }
    }

    /// Faults if a bound plus `b.address` plus `by` is negative.
    pub(super) fn stop_if_negative(&mut self, b: Borrowed, bound: i32, by: i32) {
        let (address, sum) = (b.address, b.addend);
        dynasm!(self.asm ; .arch x64
            ; gs mov Rq(sum), [bound]
            ; lea Rq(sum), [Rq(sum) + Rq(address) + by]
        );
        self.gather_sign(sum);
        dynasm!(self.asm ; .arch x64 ; gs mov Rq(sum), [Rq(sum) * 8 + offset::POLL]);
    }
}
