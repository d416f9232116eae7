//! Which instructions random snippets have, and which not, with the reason.
//!
//! Problem: "all instructions are compared" is true only if somebody counts, and what is left out must be left
//! out on purpose. Scheme: every instruction code of the decoder that the CPU model has is either generated
//! and compared, or named in [`LEFT_OUT`] with its reason and where it is tested instead. A test
//! generates snippets and fails for a supported code that neither came up nor is named, and for a named
//! one that did come up. Pure. Source: iced's table of codes.

use iced_x86::{Code, DecoderOptions, EncodingKind, Instruction, Mnemonic as M};
use xenolith_cpu::cpuid::CpuidModel;

use crate::snippet::{Bits, System};

/// What is done with an instruction code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    Compared,
    LeftOut(&'static str),
}

/// Instructions left out of random snippets, and why.
pub const LEFT_OUT: [(&[M], &str); 11] = [
    (
        &[M::Syscall, M::Sysenter],
        "enters the host's kernel: asm/0f/05-syscall-user, asm/system/08-syscalls",
    ),
    (
        &[M::Cpuid, M::Rdtsc, M::Rdtscp, M::Rdpmc, M::Rdpid, M::Xgetbv],
        "the result is the machine's, not the program's: asm/0f/a2-cpuid-misc, asm/system/01-msr",
    ),
    (&[M::Rdrand, M::Rdseed], "the result is random: asm/0f/a2-cpuid-misc"),
    (
        &[M::Sgdt, M::Sidt, M::Sldt, M::Str, M::Smsw],
        "the host's kernel refuses or imitates it (CR4.UMIP): asm/system/03-descriptor-queries",
    ),
    (
        &[M::Lar, M::Lsl, M::Verr, M::Verw],
        "asks the host's descriptor tables: asm/system/03-descriptor-queries",
    ),
    (
        &[
            M::Xsave,
            M::Xsave64,
            M::Xsavec,
            M::Xsavec64,
            M::Xsaveopt,
            M::Xsaveopt64,
            M::Xrstor,
            M::Xrstor64,
        ],
        "the host's XCR0 has components that ours has not: asm/0f/ae-xsave, cpu's vector tests",
    ),
    (
        &[M::Fxsave, M::Fxsave64, M::Fxrstor, M::Fxrstor64],
        "the image holds x87 pointers, which processors keep in different ways: asm/0f/ae-xsave, cpu's vector \
         tests",
    ),
    (
        &[M::Fnstenv, M::Fnsave, M::Fldenv, M::Frstor],
        "the image holds x87 pointers, which processors keep in different ways: asm/x87/d9-control",
    ),
    (&[M::Ud0], "older processors read no ModRM byte: asm/0f/ff-undefined"),
    (&[M::Xsetbv], "asm/system/11-fpu-control"),
    (
        &[M::Int1],
        "virtual machines show it with RIP before it, processors behind it: asm/one-byte/cc-int",
    ),
];

/// Codes of mnemonics that are compared otherwise.
pub const LEFT_OUT_CODES: [(&[Code], &str); 2] = [
    (
        &[
            Code::Reservednop_rm16_r16_0F0D,
            Code::Reservednop_rm32_r32_0F0D,
            Code::Reservednop_rm64_r64_0F0D,
        ],
        "without a memory operand it does nothing (SDM vol. 2, opcode map) or is undefined (APM vol. 3, PREFETCH)",
    ),
    (
        &[
            Code::Jmp_m1664,
            Code::Call_m1664,
            Code::Lfs_r64_m1664,
            Code::Lgs_r64_m1664,
            Code::Lss_r64_m1664,
        ],
        "AMD's processors have no far pointers with 64-bit offsets (APM vol. 3, CALL Far): asm/system/04-far-transfers",
    ),
];

/// Whether makers disagree about the instruction with these bytes: Intel's processors ignore an operand-size
/// prefix on near branches in 64-bit mode (SDM vol. 2, "Jcc"), AMD's don't (APM vol. 3, "Near Branches in 64-Bit
/// Mode"); and an F2 or F3 before LOOPE or LOOPNE does nothing (SDM vol. 2, "LOOP"), or decides which of the two it
/// is (AMD, as measured).
#[must_use]
pub fn makers_differ(insn: &Instruction, bytes: &[u8], bits: u32) -> bool {
    use iced_x86::FlowControl as F;
    let near = matches!(
        insn.flow_control(),
        F::UnconditionalBranch
            | F::IndirectBranch
            | F::ConditionalBranch
            | F::Return
            | F::Call
            | F::IndirectCall
    ) && !matches!(insn.mnemonic(), M::Retf | M::Iret | M::Iretd | M::Iretq);
    let prefixes = bytes.iter().take_while(|&&byte| {
        matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
    });
    let mut prefixes = prefixes.copied();
    match insn.mnemonic() {
        M::Loope | M::Loopne if prefixes.clone().any(|byte| matches!(byte, 0xf2 | 0xf3)) => true,
        _ => bits == 64 && near && prefixes.any(|byte| byte == 0x66),
    }
}

/// What is done with `code`.
#[must_use]
pub fn treatment(code: Code) -> Treatment {
    let mnemonic = code.mnemonic();
    if let Some((_, reason)) = LEFT_OUT_CODES.iter().find(|(list, _)| list.contains(&code)) {
        return Treatment::LeftOut(reason);
    }
    match LEFT_OUT.iter().find(|(list, _)| list.contains(&mnemonic)) {
        Some((_, reason)) => Treatment::LeftOut(reason),
        None => Treatment::Compared,
    }
}

/// Whether a decoded instruction may be compared: the model has it, and nothing speaks against it.
/// What no decoder knows is undefined everywhere, and compared too.
#[must_use]
pub fn is_compared(insn: &Instruction, bytes: &[u8], bits: u32, model: &CpuidModel) -> bool {
    if insn.is_invalid() {
        return true;
    }
    if makers_differ(insn, bytes, bits) {
        return false;
    }
    let known = matches!(insn.encoding(), EncodingKind::Legacy | EncodingKind::VEX);
    known
        && treatment(insn.code()) == Treatment::Compared
        && has(model, insn.code())
        // INT 0x80 is Linux's.
        && !(insn.mnemonic() == M::Int && insn.immediate8() == 0x80)
}

/// Whether an instruction does nothing that only a kernel may, under that system. Real mode has no kernel: there such
/// instructions would change the mode, halt or reach devices, which the conformance suite tries.
#[must_use]
pub fn may_run(insn: &Instruction, system: System) -> bool {
    system != System::Real || !insn.is_privileged()
}

/// Whether the model has the code.
#[must_use]
pub fn has(model: &CpuidModel, code: Code) -> bool {
    code.cpuid_features().iter().all(|&feature| model.allows(feature))
}

/// Codes of the model in code of that size, as the decoder makes them without options.
pub fn codes(model: &CpuidModel, bits: Bits) -> impl Iterator<Item = Code> + '_ {
    Code::values().filter(move |&code| {
        let info = code.op_code();
        let exists = match bits {
            Bits::B16 => info.mode16(),
            Bits::B32 => info.mode32(),
            Bits::B64 => info.mode64(),
        };
        exists
            && info.is_instruction()
            && matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
            && info.decoder_option() == DecoderOptions::NONE
            && has(model, code)
    })
}
