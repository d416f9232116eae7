//! Registers and encodings under other names.

use std::sync::LazyLock;

use iced_x86::{Code, EncodingKind, Instruction, Mnemonic, Register};

use super::{R10, R11};

/// A register's 64-bit host number if it is r10 or r11.
pub fn scratch_number(register: Register) -> Option<u8> {
    match register.full_register() {
        Register::R10 => Some(R10),
        Register::R11 => Some(R11),
        _ => None,
    }
}

/// iced's name of a 64-bit register number.
pub fn full(number: u8) -> Register {
    const NAMES: [Register; 16] = [
        Register::RAX,
        Register::RCX,
        Register::RDX,
        Register::RBX,
        Register::RSP,
        Register::RBP,
        Register::RSI,
        Register::RDI,
        Register::R8,
        Register::R9,
        Register::R10,
        Register::R11,
        Register::R12,
        Register::R13,
        Register::R14,
        Register::R15,
    ];
    NAMES[usize::from(number & 15)]
}

/// The registers of `insn`'s address that are in host registers of their own: they can't be borrowed.
pub fn address_bits(insn: &Instruction) -> u16 {
    [insn.memory_base(), insn.memory_index()]
        .into_iter()
        .filter(|r| r.is_gpr() && scratch_number(*r).is_none())
        .fold(0, |bits, r| bits | 1 << r.full_register().number())
}

/// The address of an operand that no register moves.
pub fn constant_address(insn: &Instruction) -> Option<u64> {
    let absolute = insn.memory_base() == Register::None && insn.memory_index() == Register::None;
    (absolute || insn.is_ip_rel_memory_operand()).then(|| insn.memory_displacement64())
}

/// Whether a value is what its lower half is, sign-extended: then it can be a displacement or an immediate operand.
pub fn is_short(value: u64) -> bool {
    value as i64 == i64::from(value as i32)
}

/// The 32-bit name of a register.
pub fn narrow(number: u8) -> Register {
    const NAMES: [Register; 16] = [
        Register::EAX,
        Register::ECX,
        Register::EDX,
        Register::EBX,
        Register::ESP,
        Register::EBP,
        Register::ESI,
        Register::EDI,
        Register::R8D,
        Register::R9D,
        Register::R10D,
        Register::R11D,
        Register::R12D,
        Register::R13D,
        Register::R14D,
        Register::R15D,
    ];
    NAMES[usize::from(number & 15)]
}

/// The encoding of an instruction that means the same in the host's 64-bit code.
pub fn wide_form(insn: &Instruction) -> Instruction {
    let code = match insn.code() {
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_RAX_moffs64 => Code::Mov_r64_rm64,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        Code::Mov_moffs64_RAX => Code::Mov_rm64_r64,
        other => other,
    };
    let mut out = *insn;
    out.set_code(code);
    if is_prefixed_scan(insn) {
        out.set_has_rep_prefix(false);
    }
    out
}

/// BSF or BSR with a prefix that the guest's processor, which has no TZCNT or LZCNT, doesn't look at; the host's may.
pub fn is_prefixed_scan(insn: &Instruction) -> bool {
    insn.has_rep_prefix() && matches!(insn.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr)
}

/// Whether 64-bit code has an instruction of 32-bit code in the same bytes, but for prefixes of its address, where that
/// has a register. VEX has bits that only 64-bit code looks at.
pub fn keeps_bytes(insn: &Instruction) -> bool {
    static KEEP: LazyLock<Box<[bool]>> = LazyLock::new(|| {
        let keeps = |code: Code| {
            let info = code.op_code();
            info.mode64() && info.encoding() == EncodingKind::Legacy
        };
        Code::values().map(keeps).collect()
    });
    KEEP[insn.code() as usize] && !is_prefixed_scan(insn)
}
