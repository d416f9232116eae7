//! Single instructions, decoded once and run many times.
//!
//! Problem: a translator leaves some instructions to the interpreter, one at a time; finding and decoding
//! each again costs more than doing it. Scheme: whoever asks keeps the decoded instruction and hands it
//! back. Invariant: the owner drops it when the code that it was decoded from may have changed.

use iced_x86::Instruction;

use super::Interp;
use super::decode::Insn;
use crate::env::Memory;
use crate::exception::Trap;
use crate::state::sreg;

/// A decoded instruction, for [`Interp::run_prepared`].
pub struct Prepared<M: Memory>(Insn<M>);

impl<M: Memory> std::fmt::Debug for Prepared<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.raw)
    }
}

impl<M: Memory> Prepared<M> {
    #[must_use]
    pub fn instruction(&self) -> &Instruction {
        &self.0.raw
    }
}

impl<M: Memory> Interp<M> {
    /// Decodes the instruction at RIP; `None` if it can't be fetched from one page of RAM.
    pub fn prepare(&mut self) -> Option<Prepared<M>> {
        self.refresh();
        let insn = self.decode_one()?;
        let last = self.state.rip.wrapping_add(u64::from(insn.len) - 1);
        let inside = self.mode.long64 || last <= u64::from(self.state.seg[sreg::CS].limit);
        inside.then_some(Prepared(insn))
    }

    /// Does the instruction at RIP, from which `prepared` was decoded in the present mode, and delivers
    /// its exception if it raises one. False, with nothing done, where something must be looked at
    /// before each instruction: [`Interp::run`] does that.
    #[inline]
    pub fn run_prepared(&mut self, prepared: &Prepared<M>) -> bool {
        self.refresh();
        if self.mode.careful {
            return false;
        }
        self.leave = false;
        let insn = &prepared.0;
        let rip = self.state.rip;
        self.state.rip = rip.wrapping_add(u64::from(insn.len)) & self.mode.ip_mask;
        self.state.retired += 1;
        match (insn.run)(self, insn) {
            Ok(()) => {}
            Err(Trap::Exit) => self.refresh(),
            Err(trap) => {
                self.state.retired -= 1;
                self.trapped(trap, rip);
            }
        }
        true
    }
}
