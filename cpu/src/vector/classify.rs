//! Which instructions are ours, and how each is run: the allowlist.
//!
//! Problem: stubs run opcodes that a guest chose, so what may reach the host must be decided by a
//! positive list. Scheme: legacy and VEX encodings only, every CPUID feature of the instruction in a
//! short list that the host has too, minus the integer instructions that share those features.
//! State management, masked moves and gathers are routed to written-out code, common moves to Rust,
//! the rest to a stub. Invariant: a stub's instruction touches no memory but its one explicit
//! operand, no segment or control register, and cannot branch. Any thread. Source: SDM vol. 2.

use iced_x86::{
    Code, CpuidFeature, EncodingKind, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpCodeTableKind, OpKind, Register,
};

use super::masked::Masked;
use super::moves::{self, Native};
use super::x87::Control;
use super::xsave::Area;

/// Dynamic checks, by exception class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    None,
    /// XMM registers, legacy encoding.
    Sse,
    /// XMM and MM registers.
    SseMmx,
    Vex,
    Mmx,
    X87,
    X87NoWait,
    Wait,
    /// FXSAVE, FXRSTOR.
    Fxsr,
    /// XSAVE and its kin.
    Xsave,
    /// XGETBV, XSETBV.
    Osxsave,
}

/// Instructions that manage state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    X87(Control),
    Save(Area),
    Xgetbv,
    Xsetbv,
    Ldmxcsr,
    Stmxcsr,
    Vzero { all: bool },
    Movnti,
}

/// An instruction that runs in a stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StubOp {
    /// Host address of the published stub; 0: not published.
    pub entry: usize,
    /// Offset of the guest's instruction in the stub, and of the fault exit.
    pub insn_at: u16,
    pub resume_at: u16,
    /// Bytes of the memory operand; 0: none.
    pub memory_len: u8,
    pub writes_memory: bool,
    /// Required alignment of the memory operand; 1: none.
    pub align: u8,
    /// Runs with the guest's x87/MMX state loaded.
    pub x87_state: bool,
    /// Updates the x87 instruction and data pointers.
    pub x87_pointers: bool,
    /// Computes under MXCSR.
    pub mxcsr: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Native(Native),
    Stub(StubOp),
    System(System),
    Masked(Masked),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared {
    pub guard: Guard,
    pub action: Action,
}

/// Which of the features we carry the host has.
#[derive(Clone, Copy, Debug)]
pub struct HostFeatures {
    sse3: bool,
    ssse3: bool,
    sse41: bool,
    sse42: bool,
    avx: bool,
    avx2: bool,
    fma: bool,
    f16c: bool,
    aes: bool,
    pclmul: bool,
    sha: bool,
}

impl HostFeatures {
    pub fn detect() -> Self {
        use std::is_x86_feature_detected as has;
        Self {
            sse3: has!("sse3"),
            ssse3: has!("ssse3"),
            sse41: has!("sse4.1"),
            sse42: has!("sse4.2"),
            avx: has!("avx"),
            avx2: has!("avx2"),
            fma: has!("fma"),
            f16c: has!("f16c"),
            aes: has!("aes"),
            pclmul: has!("pclmulqdq"),
            sha: has!("sha"),
        }
    }

    /// Whether the feature is one of ours and the host has it. x87, MMX, CMOV, SSE and SSE2 are part
    /// of x86-64; the save family is written out and asks nothing of the host.
    fn has(&self, feature: CpuidFeature) -> bool {
        use CpuidFeature as F;
        match feature {
            F::FPU | F::FPU287 | F::FPU387 | F::CMOV | F::MMX | F::SSE | F::SSE2 => true,
            F::FXSR | F::XSAVE | F::XSAVEC | F::XSAVEOPT => true,
            F::SSE3 => self.sse3,
            F::SSSE3 => self.ssse3,
            F::SSE4_1 => self.sse41,
            F::SSE4_2 => self.sse42,
            F::AVX => self.avx,
            F::AVX2 => self.avx2,
            F::FMA => self.fma,
            F::F16C => self.f16c,
            F::AES => self.aes,
            F::PCLMULQDQ => self.pclmul,
            F::SHA => self.sha,
            _ => false,
        }
    }
}

/// Whether instructions of this code can be ours, as far as encoding and features tell.
pub fn may_be_ours(code: Code, host: &HostFeatures) -> bool {
    let features = code.cpuid_features();
    // FWAIT carries no feature of ours in the tables.
    matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && (code == Code::Wait
            || !features.is_empty() && features.iter().all(|&feature| host.has(feature)))
}

/// Decides how `insn` is run; `None`: not here.
pub fn classify(insn: &Instruction, host: &HostFeatures) -> Option<Prepared> {
    if !may_be_ours(insn.code(), host) {
        return None;
    }
    let vex = insn.encoding() == EncodingKind::VEX;
    if insn.code() == Code::Wait {
        return Some(system(Guard::Wait, System::X87(Control::Wait)));
    }
    if insn.has_lock_prefix() || !insn.op_code().mode64() {
        return None;
    }
    if let Some(prepared) = classify_system(insn) {
        return prepared;
    }
    if let Some(masked) = Masked::of(insn) {
        let guard = match masked {
            Masked::Refused => return None,
            Masked::ByteStore { mmx: true, .. } => Guard::Mmx,
            Masked::ByteStore { .. } if !vex => Guard::Sse,
            _ => Guard::Vex,
        };
        return Some(Prepared { guard, action: Action::Masked(masked) });
    }
    if let Some(native) = moves::classify(insn, vex) {
        let guard = if vex { Guard::Vex } else { Guard::Sse };
        return Some(Prepared { guard, action: Action::Native(native) });
    }
    classify_stub(insn, vex)
}

fn system(guard: Guard, system: System) -> Prepared {
    Prepared { guard, action: Action::System(system) }
}

/// `Some(None)`: refused. `None`: not a state-management instruction.
fn classify_system(insn: &Instruction) -> Option<Option<Prepared>> {
    use Mnemonic as M;
    let x87 = |guard, control| Some(Some(system(guard, System::X87(control))));
    let area = |guard, area| Some(Some(system(guard, System::Save(area))));
    let env = |small| if small { 16 } else { 32 };
    match insn.code() {
        Code::Fldenv_m14byte | Code::Fldenv_m28byte => {
            let bits = env(insn.code() == Code::Fldenv_m14byte);
            return x87(Guard::X87, Control::LoadEnvironment { bits });
        }
        Code::Fnstenv_m14byte | Code::Fnstenv_m28byte => {
            let bits = env(insn.code() == Code::Fnstenv_m14byte);
            return x87(Guard::X87NoWait, Control::StoreEnvironment { bits });
        }
        Code::Frstor_m94byte | Code::Frstor_m108byte => {
            let bits = env(insn.code() == Code::Frstor_m94byte);
            return x87(Guard::X87, Control::Restore { bits });
        }
        Code::Fnsave_m94byte | Code::Fnsave_m108byte => {
            let bits = env(insn.code() == Code::Fnsave_m94byte);
            return x87(Guard::X87NoWait, Control::Save { bits });
        }
        _ => {}
    }
    match insn.mnemonic() {
        M::Fninit => x87(Guard::X87NoWait, Control::Init),
        M::Fnclex => x87(Guard::X87NoWait, Control::ClearExceptions),
        M::Fnstcw => x87(Guard::X87NoWait, Control::StoreControlWord),
        M::Fnstsw if insn.op0_kind() == OpKind::Register => {
            x87(Guard::X87NoWait, Control::StatusToAx)
        }
        M::Fnstsw => x87(Guard::X87NoWait, Control::StoreStatusWord),
        M::Fldcw => x87(Guard::X87, Control::LoadControlWord),
        // No operation since the 387.
        M::Fneni | M::Fndisi | M::Fnsetpm => x87(Guard::X87NoWait, Control::Nothing),
        M::Fxsave => area(Guard::Fxsr, Area::Fxsave { wide: false }),
        M::Fxsave64 => area(Guard::Fxsr, Area::Fxsave { wide: true }),
        M::Fxrstor => area(Guard::Fxsr, Area::Fxrstor { wide: false }),
        M::Fxrstor64 => area(Guard::Fxsr, Area::Fxrstor { wide: true }),
        M::Xsave => area(Guard::Xsave, Area::Xsave { wide: false }),
        M::Xsave64 => area(Guard::Xsave, Area::Xsave { wide: true }),
        M::Xsaveopt => area(Guard::Xsave, Area::Xsaveopt { wide: false }),
        M::Xsaveopt64 => area(Guard::Xsave, Area::Xsaveopt { wide: true }),
        M::Xsavec => area(Guard::Xsave, Area::Xsavec { wide: false }),
        M::Xsavec64 => area(Guard::Xsave, Area::Xsavec { wide: true }),
        M::Xrstor => area(Guard::Xsave, Area::Xrstor { wide: false }),
        M::Xrstor64 => area(Guard::Xsave, Area::Xrstor { wide: true }),
        M::Xgetbv => Some(Some(system(Guard::Osxsave, System::Xgetbv))),
        M::Xsetbv => Some(Some(system(Guard::Osxsave, System::Xsetbv))),
        M::Ldmxcsr => Some(Some(system(Guard::Sse, System::Ldmxcsr))),
        M::Stmxcsr => Some(Some(system(Guard::Sse, System::Stmxcsr))),
        M::Vldmxcsr => Some(Some(system(Guard::Vex, System::Ldmxcsr))),
        M::Vstmxcsr => Some(Some(system(Guard::Vex, System::Stmxcsr))),
        M::Vzeroupper => Some(Some(system(Guard::Vex, System::Vzero { all: false }))),
        M::Vzeroall => Some(Some(system(Guard::Vex, System::Vzero { all: true }))),
        M::Movnti => Some(Some(system(Guard::None, System::Movnti))),
        // Integer instructions that share our features.
        M::Crc32 | M::Lfence | M::Mfence | M::Sfence => Some(None),
        M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 => Some(None),
        // Two instructions in one code (9B prefix): the decoder never makes them.
        M::Feni
        | M::Fdisi
        | M::Fclex
        | M::Finit
        | M::Fsetpm
        | M::Fsave
        | M::Fstcw
        | M::Fstenv
        | M::Fstsw => Some(None),
        _ => None,
    }
}

/// First byte of an x87 opcode, if it is one.
pub fn x87_opcode(code: Code) -> Option<u8> {
    let info = code.op_code();
    if info.table() != OpCodeTableKind::Normal {
        return None;
    }
    let bytes = info.op_code();
    let first = if info.op_code_len() == 2 { bytes >> 8 } else { bytes };
    u8::try_from(first).ok().filter(|first| (0xd8..=0xdf).contains(first))
}

/// Whether a (non-x87) instruction computes under MXCSR: by opcode, since whole opcode rows do. Too
/// large a set costs time only; the property tests would show one that is missing.
fn uses_mxcsr(code: Code) -> bool {
    let info = code.op_code();
    match (info.table(), info.op_code()) {
        // CVTPI2PS to COMISS; SQRT, RSQRT, RCP; ADD to MAX; HADD, HSUB; CMP; ADDSUB; CVTDQ2PD.
        (
            OpCodeTableKind::T0F,
            0x2a | 0x2c..=0x2f | 0x51..=0x53 | 0x58..=0x5f | 0x7c..=0x7d | 0xc2 | 0xd0 | 0xe6,
        ) => true,
        // VCVTPH2PS; FMA.
        (OpCodeTableKind::T0F38, 0x13 | 0x96..=0x9f | 0xa6..=0xaf | 0xb6..=0xbf) => true,
        // ROUND; VCVTPS2PH; DPPS, DPPD.
        (OpCodeTableKind::T0F3A, 0x08..=0x0b | 0x1d | 0x40..=0x41) => true,
        _ => false,
    }
}

fn classify_stub(insn: &Instruction, vex: bool) -> Option<Prepared> {
    let x87 = x87_opcode(insn.code()).is_some();
    let mut mm = insn.mnemonic() == Mnemonic::Emms;
    let mut xmm = false;
    for i in 0..insn.op_count() {
        match insn.op_kind(i) {
            OpKind::Register => {
                let register = insn.op_register(i);
                if register.is_mm() {
                    mm = true;
                } else if register.is_xmm() || register.is_ymm() {
                    xmm = true;
                } else if !(register.is_gpr32() || register.is_gpr64() || register.is_st()) {
                    return None;
                }
            }
            OpKind::Memory | OpKind::Immediate8 | OpKind::Immediate8_2nd => {}
            _ => return None,
        }
    }
    // An instruction without a register we know is not one we know, but for a conversion from memory
    // to a general register.
    xmm |= matches!(
        insn.mnemonic(),
        Mnemonic::Cvtss2si
            | Mnemonic::Cvttss2si
            | Mnemonic::Cvtsd2si
            | Mnemonic::Cvttsd2si
            | Mnemonic::Vcvtss2si
            | Mnemonic::Vcvttss2si
            | Mnemonic::Vcvtsd2si
            | Mnemonic::Vcvttsd2si
    );
    if !x87 && !mm && !xmm {
        return None;
    }

    let mut memory_len = 0;
    let mut writes_memory = false;
    let mut info = InstructionInfoFactory::new();
    let info = info.info(insn);
    for memory in info.used_memory() {
        if memory_len != 0 {
            return None;
        }
        memory_len = u8::try_from(memory.memory_size().size()).ok().filter(|&n| n <= 32)?;
        writes_memory = match memory.access() {
            OpAccess::Read | OpAccess::CondRead => false,
            OpAccess::Write => true,
            _ => return None,
        };
    }
    // An operand that only names an address (none is on the list) would be read by nobody.
    let has_memory = (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory);
    if has_memory != (memory_len != 0) {
        return None;
    }
    if has_memory && insn.memory_index().is_vector_register() {
        return None;
    }

    let guard = if vex {
        Guard::Vex
    } else if x87 {
        Guard::X87
    } else if mm && xmm {
        Guard::SseMmx
    } else if mm {
        Guard::Mmx
    } else {
        Guard::Sse
    };
    let stub = StubOp {
        entry: 0,
        insn_at: 0,
        resume_at: 0,
        memory_len,
        writes_memory,
        align: alignment(insn.mnemonic(), vex, memory_len),
        x87_state: x87 || mm,
        x87_pointers: x87,
        mxcsr: !x87 && uses_mxcsr(insn.code()),
    };
    Some(Prepared { guard, action: Action::Stub(stub) })
}

/// Required alignment of a memory operand. Legacy SSE wants 16-byte operands aligned, but for the
/// instructions made for the other case; VEX wants nothing, but for those made to want it.
/// Source: SDM vol. 1, "Memory Alignment"; vol. 2, "Exceptions Type 1" and "Type 4".
pub fn alignment(mnemonic: Mnemonic, vex: bool, len: u8) -> u8 {
    use Mnemonic as M;
    match mnemonic {
        M::Vmovaps | M::Vmovapd | M::Vmovdqa => len,
        M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa => len,
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu => 1,
        M::Pcmpestri | M::Pcmpestri64 | M::Pcmpestrm | M::Pcmpestrm64 => 1,
        M::Pcmpistri | M::Pcmpistrm => 1,
        _ if !vex && len == 16 => 16,
        _ => 1,
    }
}

/// Number of a vector register of any width.
pub fn vector_number(register: Register) -> Option<u8> {
    if register.is_vector_register() {
        u8::try_from(register.number()).ok().filter(|&n| n < 16)
    } else {
        None
    }
}
