//! Effective addresses.
//!
//! Problem: where a memory operand lies. Scheme: the decoder has laid out base, index, scale and
//! displacement; this adds them up. Invariant: the result is truncated to the address size, not yet
//! offset by the segment. Source: SDM vol. 1, "Specifying an Offset".

use super::Interp;
use super::decode::{BASE_IP, Insn, NO_REGISTER};
use crate::env::Memory;

impl<M: Memory> Interp<M> {
    /// Offset of the memory operand in its segment.
    #[inline(always)]
    pub(super) fn address(&self, insn: &Insn<M>) -> u64 {
        let mut offset = insn.disp;
        match insn.base {
            NO_REGISTER => {}
            BASE_IP => offset = offset.wrapping_add(self.state.rip),
            base => offset = offset.wrapping_add(self.state.gpr[usize::from(base & 15)]),
        }
        if insn.index != NO_REGISTER {
            let index = self.state.gpr[usize::from(insn.index & 15)];
            offset = offset.wrapping_add(index << insn.scale);
        }
        offset & insn.addr_mask
    }
}
