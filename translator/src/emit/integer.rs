//! Integer instructions that need more than their operand redirected.
//!
//! Problem: a bit's number in a register may lead anywhere from the memory operand, and the host would add it to
//! a host address. Scheme: the bit's own word is found first, and looked up as any operand; the
//! instruction then runs on that word, with the number cut to the bits of a word. Source: SDM vol. 2,
//! "BT", table "Range of Bit Positions Specified by Bit Offset Operands". Invariant: nothing changes before
//! the one instruction that may fault.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::Mnemonic;

use super::bits::Run;
use super::memory::{Borrowed, Check};
use super::names::scratch_number;
use super::place::Spot;
use super::{EmitError, Emitter, R10, R11, mask};
use crate::area::offset;
use crate::plan::Step;

/// The prefix.
const LOCK: u8 = 0xf0;

impl Emitter<'_> {
    /// BT, BTS, BTR and BTC of memory by a register of 32 or 64 bits.
    pub(super) fn bit_string(&mut self, step: &Step) -> Result<(), EmitError> {
        let insn = &step.insn;
        let register = insn.op1_register();
        let number = register.full_register().number() as u8;
        let in_area = scratch_number(register).is_some();
        let at = offset::gpr(usize::from(number));
        let (size, is_long) = (register.size() as u8, register.size() == 8);
        let rip = mask(insn.ip(), self.frame.mode.bits);
        let start = self.offset();
        self.effective_address(insn, R10, R11)?;
        // The word's distance in words, rounded down.
        match (is_long, in_area) {
            (true, true) => dynasm!(self.asm ; .arch x64 ; gs mov r11, [at]),
            (true, false) => dynasm!(self.asm ; .arch x64 ; mov r11, Rq(number)),
            (false, true) => dynasm!(self.asm ; .arch x64 ; gs movsxd r11, DWORD [at]),
            (false, false) => dynasm!(self.asm ; .arch x64 ; movsxd r11, Rd(number)),
        }
        self.shift_down(R11, if is_long { 6 } else { 5 });
        if is_long {
            dynasm!(self.asm ; .arch x64 ; lea r10, [r10 + r11 * 8]);
        } else if self.wide() {
            dynasm!(self.asm ; .arch x64 ; lea r10, [r10 + r11 * 4]);
        } else {
            dynasm!(self.asm ; .arch x64 ; lea r10d, [r10 + r11 * 4]);
        }
        let tests = insn.mnemonic() == Mnemonic::Bt;
        self.check(Borrowed::SCRATCH, Check::one(step, rip, !tests, size, start, Spot::Linear));
        if tests {
            // With the word in a register the host takes the number modulo its bits.
            if is_long {
                dynasm!(self.asm ; .arch x64 ; mov r11, [r10 + r11]);
            } else {
                dynasm!(self.asm ; .arch x64 ; mov r11d, [r10 + r11]);
            }
            if in_area {
                dynasm!(self.asm ; .arch x64 ; gs mov r10, [at]);
            }
            let number = if in_area { R10 } else { number };
            if is_long {
                dynasm!(self.asm ; .arch x64 ; bt r11, Rq(number));
            } else {
                dynasm!(self.asm ; .arch x64 ; bt r11d, Rd(number));
            }
            return Ok(());
        }
        dynasm!(self.asm ; .arch x64 ; lea r10, [r10 + r11]);
        if in_area {
            dynasm!(self.asm ; .arch x64 ; gs mov r11, [at]);
        }
        let from = if in_area { R11 } else { number };
        self.gather(R11, from, Run::bit_number(is_long));
        if insn.has_lock_prefix() {
            self.asm.push(LOCK);
        }
        match (insn.mnemonic(), is_long) {
            (Mnemonic::Bts, true) => dynasm!(self.asm ; .arch x64 ; bts [r10], r11),
            (Mnemonic::Bts, false) => dynasm!(self.asm ; .arch x64 ; bts [r10], r11d),
            (Mnemonic::Btr, true) => dynasm!(self.asm ; .arch x64 ; btr [r10], r11),
            (Mnemonic::Btr, false) => dynasm!(self.asm ; .arch x64 ; btr [r10], r11d),
            (_, true) => dynasm!(self.asm ; .arch x64 ; btc [r10], r11),
            (_, false) => dynasm!(self.asm ; .arch x64 ; btc [r10], r11d),
        }
        Ok(())
    }
}
