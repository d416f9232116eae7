//! How processors of different makers differ, as a table.
//!
//! Problem: the engines follow the SDM and Intel's processors; a host of another maker does some rare
//! things otherwise, which is nobody's mistake. Scheme: rows ([`MAKERS`]) with their reasons; [`note`] tells of an
//! executed instruction whether a row is about it, [`excuse`] whether two endings differ as the row says.
//! Invariant: a row excuses only endings that an instruction of its kind had a part in.
//! Source: SDM and AMD's APM, as named in each row; the rest as measured.

use iced_x86::{FlowControl, Instruction, Mnemonic as M, OpKind, Register};
use xenolith_cpu::CpuState;
use xenolith_cpu::state::{Rflags, sreg};

use super::judge::Mask;
use super::{End, Ending};

/// A kind of difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    RepeatFlags,
    WideAlignment,
    FrameOrder,
    RepeatUpper,
    MaskedStore,
    SelectorWidth,
    VexInvalid,
    ShaAlignment,
    MaskedFault,
    Wrap,
    HalfFlags,
    FastReturn,
    RetFar,
    Bounds,
    NoModrm,
    CompareOrder,
    Wrap16,
    GatherTrap,
    Canonical,
    Movsxd16,
    CallOrder,
    HostSelector,
    BasedOffset,
    Misaligned,
    SegmentEnd,
}

/// All kinds, with their reasons.
pub const MAKERS: [(Kind, &str); 25] = [
    (
        Kind::RepeatFlags,
        "REP CMPS and SCAS that fault: flags as before them (SDM vol. 2, REP), or of the last iteration (AMD)",
    ),
    (
        Kind::WideAlignment,
        "#AC for operands of 16 bytes and more: not checked (SDM vol. 2, Exceptions Type 4), or checked (AMD)",
    ),
    (
        Kind::FrameOrder,
        "which of several absent words an instruction names in CR2: the manuals give no order",
    ),
    (
        Kind::RepeatUpper,
        "repeated strings with 32-bit addresses that do nothing: upper halves cleared (Intel), or not (AMD)",
    ),
    (
        Kind::MaskedStore,
        "MASKMOVQ and MASKMOVDQU with an empty mask: faults are up to the processor (SDM vol. 2, MASKMOVDQU)",
    ),
    (
        Kind::SelectorWidth,
        "PUSH and POP of a segment register with 32-bit operands: two bytes or four (SDM vol. 2, PUSH)",
    ),
    (
        Kind::VexInvalid,
        "VEX forms that the opcode map leaves out: undefined, or W ignored outside 64-bit mode (AMD)",
    ),
    (
        Kind::ShaAlignment,
        "SHA instructions with unaligned memory: #GP (SDM vol. 2, Exceptions Type 4), or allowed (AMD)",
    ),
    (
        Kind::MaskedFault,
        "x87 stores with an unmasked exception: no page fault (Intel), or the page fault first (AMD)",
    ),
    (
        Kind::Wrap,
        "accesses over the end of a 4 GiB segment: up to the processor (SDM vol. 3, Limit Checking)",
    ),
    (Kind::HalfFlags, "VCVTPS2PH whose store faults: MXCSR's flags set (Intel), or not (AMD)"),
    (
        Kind::FastReturn,
        "SYSRET outside 64-bit mode: undefined (SDM vol. 2, SYSRET), or privileged (APM vol. 3, SYSRET)",
    ),
    (
        Kind::RetFar,
        "RETF and IRET with several faults: the outer stack's words and RIP's limit looked at before SS (AMD), or not",
    ),
    (
        Kind::Bounds,
        "BOUND: both bounds read first (AMD), or the upper one only if the lower one holds (Intel)",
    ),
    (
        Kind::NoModrm,
        "UD1 and undefined opcodes at a page end: a ModRM byte fetched (SDM vol. 2, UD), or not (AMD)",
    ),
    (
        Kind::Misaligned,
        "LDMXCSR that sets MM: #GP (SDM vol. 2, LDMXCSR), or allowed (APM vol. 1, MXCSR)",
    ),
    (
        Kind::CompareOrder,
        "CMPS with two bad operands: which one faults is not said (SDM vol. 2, CMPS)",
    ),
    (
        Kind::Wrap16,
        "operands of ten bytes and more over the end of a 64 KiB segment: #GP or #SS, or parts wrap around (AMD)",
    ),
    (
        Kind::GatherTrap,
        "gathers and a pending trap: taken between elements, or behind them (SDM vol. 2, VPGATHERDD)",
    ),
    (
        Kind::Canonical,
        "operands that begin below the end of canonical or 32-bit addresses and end above: no order of faults",
    ),
    (
        Kind::Movsxd16,
        "MOVSXD with a 16-bit operand: two bytes read (SDM vol. 2, MOVSXD), or four (APM vol. 3, MOVSXD)",
    ),
    (
        Kind::HostSelector,
        "selectors that only the host's kernel has (Linux, arch/x86/include/asm/segment.h)",
    ),
    (
        Kind::BasedOffset,
        "offsets that aren't canonical before FS or GS is added: allowed (SDM vol. 1, Canonical Addressing), or #GP (AMD)",
    ),
    (
        Kind::SegmentEnd,
        "a branch that ends where its segment does: taken, or #GP now and then (AMD Zen 5, as measured)",
    ),
    (Kind::CallOrder, "CALL with a bad stack and a bad target: no order is given"),
];

/// The reason of a kind.
#[must_use]
pub fn cite(kind: Kind) -> &'static str {
    MAKERS.iter().find(|(it, _)| *it == kind).map_or("", |(_, cite)| cite)
}

/// What is left out of the comparison once `insn` has been executed in `state`, and the kinds that it may
/// belong to.
pub fn note(insn: &Instruction, bytes: &[u8], state: &CpuState, mut kind: impl FnMut(Kind, Mask)) {
    let none = Mask::default();
    if insn.is_invalid() {
        // Prefixes may stand before it.
        kind(Kind::NoModrm, none);
        if bytes.iter().take(4).any(|&byte| matches!(byte, 0xc4 | 0xc5)) {
            kind(Kind::VexInvalid, none);
        }
        return;
    }
    let bits = state.code_bits();
    if matches!(insn.mnemonic(), M::Retf | M::Iret | M::Iretd | M::Iretq) {
        kind(Kind::RetFar, none);
    }
    let registers = || (0..insn.op_count()).map(|n| insn.op_register(n));
    if insn.memory_size().size() >= 16 && state.rflags & Rflags::AC.bits() != 0 {
        kind(Kind::WideAlignment, none);
    }
    if bits != 64 {
        kind(Kind::Wrap, none);
        let end = insn.ip() + insn.len() as u64;
        if insn.flow_control() != FlowControl::Next
            && end == u64::from(state.seg[sreg::CS].limit) + 1
        {
            kind(Kind::SegmentEnd, none);
        }
    }
    if insn.is_string_instruction() && (insn.has_rep_prefix() || insn.has_repne_prefix()) {
        use iced_x86::OpKind as K;
        let narrow = (0..insn.op_count())
            .any(|n| matches!(insn.op_kind(n), K::MemorySegESI | K::MemoryESEDI | K::MemorySegEDI));
        if bits == 64 && narrow {
            kind(Kind::RepeatUpper, Mask { upper: 1 << 1 | 1 << 6 | 1 << 7, ..none });
        }
        if insn.rflags_modified() != 0 {
            kind(Kind::RepeatFlags, none);
        }
    }
    if matches!(insn.mnemonic(), M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq) {
        kind(Kind::CompareOrder, none);
    }
    let far_pointer = matches!(insn.mnemonic(), M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss);
    if far_pointer
        || insn.op0_register().is_segment_register()
        || insn.stack_pointer_increment() >= 4
    {
        kind(Kind::HostSelector, none);
    }
    if insn.memory_index().is_vector_register() {
        kind(Kind::GatherTrap, none);
    }
    if bits == 64 && insn.memory_size().size() > 1 {
        kind(Kind::Canonical, none);
    }
    if bits == 64
        && matches!(insn.memory_segment(), Register::FS | Register::GS)
        && offset(insn, state).is_none_or(|offset| (offset as i64) << 16 >> 16 != offset as i64)
    {
        kind(Kind::BasedOffset, none);
    }
    if bits != 64 && insn.memory_size().size() >= 10 {
        kind(Kind::Wrap16, none);
    }
    match insn.mnemonic() {
        M::Iret | M::Iretd | M::Iretq | M::Retf | M::Popa | M::Popad | M::Pusha | M::Pushad => {
            kind(Kind::FrameOrder, none);
        }
        M::Enter => kind(Kind::FrameOrder, none),
        M::Movsxd if insn.op0_register().size() == 2 => kind(Kind::Movsxd16, none),
        M::Call => kind(Kind::CallOrder, none),
        M::Bound => kind(Kind::Bounds, none),
        M::Sysret | M::Sysretq if bits != 64 => kind(Kind::FastReturn, none),
        M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu => kind(Kind::MaskedStore, none),
        M::Push | M::Pop
            if registers().any(Register::is_segment_register)
                && insn.stack_pointer_increment().abs() > 2 =>
        {
            kind(Kind::SelectorWidth, Mask { memory: insn.mnemonic() == M::Push, ..none });
        }
        M::Sha1msg1
        | M::Sha1msg2
        | M::Sha1nexte
        | M::Sha1rnds4
        | M::Sha256msg1
        | M::Sha256msg2
        | M::Sha256rnds2 => kind(Kind::ShaAlignment, none),
        M::Fst | M::Fstp | M::Fist | M::Fistp | M::Fisttp | M::Fbstp => {
            kind(Kind::MaskedFault, none);
        }
        M::Vcvtps2ph => kind(Kind::HalfFlags, none),
        M::Ldmxcsr | M::Vldmxcsr => kind(Kind::Misaligned, none),
        M::Ud1 => kind(Kind::NoModrm, none),
        _ => {}
    }
}

/// The offset of a memory operand with FS or GS in 64-bit mode, without vector registers.
fn offset(insn: &Instruction, state: &CpuState) -> Option<u64> {
    let operand = (0..insn.op_count()).find(|&n| insn.op_kind(n) == OpKind::Memory)?;
    insn.virtual_address(operand, 0, |register, _, _| match register {
        _ if register.is_segment_register() => Some(0),
        _ if register.is_gpr() => {
            let value = state.gpr[register.full_register().number()];
            Some(if register.size() == 4 { value & 0xffff_ffff } else { value })
        }
        _ => None,
    })
}

/// Whether two endings differ as `kinds` say, which are those of the executed instructions with their RIP.
#[must_use]
pub fn excuse(kinds: &[(u64, Kind)], endings: [&Ending; 2]) -> Option<Kind> {
    let vectors = endings.map(|it| match it.end {
        End::Exception { vector, .. } => vector,
        _ => u8::MAX,
    });
    let elsewhere = vectors[0] != vectors[1] || endings[0].rip != endings[1].rip;
    let one = |wanted: &[u8]| elsewhere && vectors.iter().any(|vector| wanted.contains(vector));
    let both_page_faults = || match endings.map(|it| &it.end) {
        [
            End::Exception { vector: 14, error: a, cr2: x },
            End::Exception { vector: 14, error: b, cr2: y },
        ] => (a ^ b) & !1 == 0 && (x.wrapping_sub(*y) as i32).unsigned_abs() < 512,
        _ => false,
    };
    let page_faults_64k_apart = || match endings.map(|it| &it.end) {
        [End::Exception { vector: 14, cr2: x, .. }, End::Exception { vector: 14, cr2: y, .. }] => {
            x.abs_diff(*y) == 0x1_0000
        }
        _ => false,
    };
    let fetch_faults = || {
        endings.iter().any(
            |it| matches!(it.end, End::Exception { vector: 14, error, .. } if error & 0x10 != 0),
        )
    };
    // RIP's limit names no selector.
    let limit_first = || match endings.map(|it| &it.end) {
        [
            End::Exception { vector: 13, error: a, .. },
            End::Exception { vector: 13, error: b, .. },
        ] => a != b && (*a == 0 || *b == 0),
        _ => false,
    };
    let near_wrap = || {
        endings.iter().any(|it| match it.end {
            End::Exception { vector: 14, cr2, .. } => !(0x1000..0xffff_f000).contains(&cr2),
            End::Exception { vector: 17, .. } => true,
            _ => false,
        })
    };
    let at_an_end = || {
        endings.iter().any(|it| match it.end {
            End::Exception { vector: 14, cr2, .. } => {
                (0x7fff_ffff_ff00..0x8000_0000_0000).contains(&cr2)
                    || (0xffff_ff00..0x1_0000_0100).contains(&cr2)
            }
            _ => false,
        })
    };
    let holds = |kind: &Kind| match kind {
        Kind::WideAlignment => elsewhere && vectors.contains(&17),
        Kind::MaskedStore => elsewhere || vectors == [14, 14],
        Kind::SelectorWidth => true,
        Kind::VexInvalid => elsewhere && vectors.contains(&6),
        Kind::ShaAlignment => elsewhere && vectors.contains(&13),
        Kind::HostSelector => names_host_selector(endings),
        Kind::Wrap => one(&[12, 13]) && near_wrap(),
        _ => false,
    };
    let holds_there = |kind: &Kind| match kind {
        Kind::FrameOrder => both_page_faults(),
        Kind::FastReturn => one(&[6]),
        Kind::RetFar => one(&[12, 14, 17]) || limit_first(),
        Kind::BasedOffset => one(&[13]),
        Kind::GatherTrap => one(&[1]),
        // Here as for `Wrap16`: in a loop both may end there, though not in the same round.
        Kind::Movsxd16 => elsewhere || vectors == [14, 14],
        Kind::CallOrder => one(&[12, 13]) && vectors.iter().all(|it| matches!(it, 12..=14 | 17)),
        Kind::Canonical => vectors.iter().all(|it| matches!(it, 12..=14 | 17)) && at_an_end(),
        Kind::NoModrm => one(&[6]) && fetch_faults(),
        Kind::Misaligned => one(&[13]),
        Kind::CompareOrder => vectors.iter().all(|vector| matches!(vector, 12 | 13 | 14 | 17)),
        Kind::Wrap16 => vectors.iter().any(|it| matches!(it, 12 | 13)) || page_faults_64k_apart(),
        Kind::MaskedFault => one(&[12, 13, 14, 17]) || elsewhere,
        Kind::Bounds => one(&[12, 13, 14, 17]),
        Kind::HalfFlags => one(&[14, 19]),
        Kind::SegmentEnd => one(&[13]),
        _ => false,
    };
    let there = |rip: u64| endings.iter().any(|it| it.rip == rip);
    let found = kinds.iter().find(|(rip, kind)| holds(kind) || there(*rip) && holds_there(kind));
    found.map(|&(_, kind)| kind)
}

/// Whether a segment register or an error code has a selector of the entries that Linux has and we haven't: TSS,
/// LDT, thread-local storage, number of the processor.
fn names_host_selector(endings: [&Ending; 2]) -> bool {
    let theirs = |selector: u16| (0x38..0x80).contains(&selector) && selector & 4 == 0;
    endings.iter().any(|it| {
        let error = match it.end {
            End::Exception { vector: 10..=13, error, .. } => error as u16,
            _ => 0,
        };
        theirs(error) || it.selectors.iter().any(|&selector| theirs(selector))
    })
}
