//! The next instruction, decoded once.
//!
//! Problem: lockstep asks of every instruction what it is, before it is executed, many million times a second; to
//! decode it each time would take longer than to execute it. Scheme: a table by address; an entry holds while the
//! bytes there are the ones that it was decoded from, which is looked at every time, so that no store needs to be
//! noticed. Pure but for reading guest memory. Thread: the lockstep's.

use std::sync::Arc;

use iced_x86::{CpuidFeature, Instruction, Mnemonic};
use xenolith_cpu::env::{Access, Memory, Place, Privilege};
use xenolith_cpu::state::sreg;
use xenolith_cpu::{CpuState, Gva, PAGE_SIZE};
use xenolith_mmu::GuestRam;

use super::compare::{Undefined, asks_the_machine, decode, loads_system_state};
use super::ours::code_at;

/// Entries: a power of two.
const ENTRIES: usize = 1 << 15;
/// Bytes looked at; an instruction has at most 15.
const LOOKED_AT: u64 = 16;

/// An instruction with what lockstep wants to know.
#[derive(Clone, Copy, Debug)]
pub struct Decoded {
    pub insn: Instruction,
    /// Its bytes; those behind `len` are zero.
    pub bytes: [u8; 16],
    pub len: usize,
    pub undefined: Undefined,
    /// It may change x87 or vector registers.
    pub vector: bool,
    /// It is a string instruction that is repeated.
    pub repeats: bool,
    /// It pushes the flags.
    pub pushes_flags: bool,
    /// It pops them.
    pub pops_flags: bool,
    /// It may be anything but plain.
    pub special: bool,
    bits: u32,
}

impl Decoded {
    fn new(bits: u32, rip: u64, code: &[u8]) -> Self {
        let insn = decode(bits, rip, code);
        let len = insn.len().min(code.len());
        let mut bytes = [0; 16];
        bytes[..len].copy_from_slice(&code[..len]);
        let vector = insn.cpuid_features().iter().any(|feature| !general(*feature));
        let repeats =
            insn.is_string_instruction() && (insn.has_rep_prefix() || insn.has_repne_prefix());
        let special = asks_the_machine(&insn) || loads_system_state(&insn);
        let is = |names: [Mnemonic; 3]| names.contains(&insn.mnemonic());
        let pushes_flags = is([Mnemonic::Pushf, Mnemonic::Pushfd, Mnemonic::Pushfq]);
        let pops_flags = is([Mnemonic::Popf, Mnemonic::Popfd, Mnemonic::Popfq]);
        let undefined = Undefined::by(&insn);
        Self {
            insn,
            bytes,
            len,
            undefined,
            vector,
            repeats,
            pushes_flags,
            pops_flags,
            special,
            bits,
        }
    }
}

/// A feature whose instructions leave x87 and vector registers alone. Those that aren't named here are taken for ones
/// that don't.
fn general(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::INTEL8086
            | F::INTEL8086_ONLY
            | F::INTEL186
            | F::INTEL286
            | F::INTEL386
            | F::INTEL486
            | F::X64
            | F::CMOV
            | F::CX8
            | F::CMPXCHG16B
            | F::MULTIBYTENOP
            | F::PAUSE
            | F::POPCNT
            | F::TSC
            | F::MSR
            | F::CPUID
            | F::SYSCALL
            | F::SEP
            | F::SMAP
    )
}

/// See the module's head.
#[derive(Debug)]
pub struct DecodedCache {
    entries: Vec<Option<Decoded>>,
}

impl Default for DecodedCache {
    fn default() -> Self {
        Self { entries: vec![None; ENTRIES] }
    }
}

impl DecodedCache {
    /// The instruction at RIP.
    pub fn get(&mut self, mem: &mut impl Memory, ram: &Arc<GuestRam>, state: &CpuState) -> Decoded {
        let bits = state.code_bits();
        let rip = state.rip;
        let Some(bytes) = glance(mem, state, bits) else {
            let code = code_at(mem, ram, state, rip, bits);
            return Decoded::new(bits, rip, &code);
        };
        let slot = &mut self.entries[(rip ^ rip >> 15) as usize % ENTRIES];
        if let Some(it) = slot
            && it.insn.ip() == rip
            && it.bits == bits
            && (u128::from_le_bytes(bytes) ^ u128::from_le_bytes(it.bytes)) & low_bytes(it.len) == 0
        {
            return *it;
        }
        let it = Decoded::new(bits, rip, &bytes[..15]);
        *slot = Some(it);
        it
    }
}

fn low_bytes(len: usize) -> u128 {
    // At most 15 bytes, so the shift is shorter than the number.
    (1 << (8 * len)) - 1
}

/// The bytes at RIP, where they can be read in one piece of one page.
fn glance(mem: &mut impl Memory, state: &CpuState, bits: u32) -> Option<[u8; 16]> {
    let linear = match bits {
        64 => state.rip,
        _ => state.seg[sreg::CS].base.wrapping_add(state.rip) & 0xffff_ffff,
    };
    let privilege = if state.cpl == 3 { Privilege::User } else { Privilege::Supervisor };
    match mem.translate(state, Gva(linear), Access::Fetch, privilege) {
        Ok(Place::Ram { hva, gpa }) if gpa.0 % PAGE_SIZE <= PAGE_SIZE - LOOKED_AT => {
            let from = hva.cast_const().cast::<[u8; 16]>();
            // SAFETY: `hva` leads to RAM up to the end of its page, so to at least 16 bytes; nothing runs meanwhile.
            Some(unsafe { from.read_unaligned() })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(bytes: &[u8]) -> bool {
        Decoded::new(64, 0, bytes).vector
    }

    #[test]
    fn what_changes_vector_registers_is_known() {
        assert!(!vector(&[0x48, 0x01, 0xd8]), "add");
        assert!(!vector(&[0x0f, 0x05]), "syscall");
        assert!(vector(&[0xd9, 0xe8]), "fld1");
        assert!(vector(&[0x0f, 0xae, 0x08]), "fxrstor");
        assert!(vector(&[0x0f, 0x77]), "emms");
        assert!(vector(&[0xf3, 0x0f, 0x10, 0x00]), "movss");
    }
}
