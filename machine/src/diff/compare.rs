//! Comparing two states of one processor.
//!
//! Problem: what must be equal differs with the peer: our engines share the whole [`CpuState`], a debugger
//! sees only part of QEMU's; and the manual leaves some flags undefined. Scheme: a peer's registers are
//! brought into a `CpuState` whose unseen fields are ours, so that one comparison serves all; undefined
//! flags are found per instruction in iced's tables, which follow the manual. Pure functions.
//! Source: SDM vol. 1, appendix A, "EFLAGS Cross-Reference".

use std::fmt::Write as _;

use iced_x86::{
    Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register, RflagsBits,
};
use xenolith_cpu::CpuState;
use xenolith_cpu::state::{Rflags, VectorState};

/// A register that differs, with both values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub values: [String; 2],
}

/// Whether everything but counters is equal.
#[must_use]
pub fn same(a: &CpuState, b: &CpuState) -> bool {
    a.rip == b.rip
        && a.gpr == b.gpr
        && a.rflags == b.rflags
        && a.seg == b.seg
        && (a.cr0, a.cr2, a.cr3, a.cr4, a.efer) == (b.cr0, b.cr2, b.cr3, b.cr4, b.efer)
        && (a.ldtr, a.tr, a.gdtr, a.idtr) == (b.ldtr, b.tr, b.gdtr, b.idtr)
        && (a.cpl, a.activity, a.shadow, a.nmi_blocked)
            == (b.cpl, b.activity, b.shadow, b.nmi_blocked)
        && (a.xcr0, a.dr, a.pdpte) == (b.xcr0, b.dr, b.pdpte)
        && a.pending_debug == b.pending_debug
        && a.vector == b.vector
        && a.msr == b.msr
}

/// Every register by name, as text.
#[must_use]
pub fn listing(s: &CpuState) -> Vec<(String, String)> {
    const GPR: [&str; 16] = [
        "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12",
        "R13", "R14", "R15",
    ];
    const SEG: [&str; 6] = ["ES", "CS", "SS", "DS", "FS", "GS"];
    let mut all = vec![("RIP".to_owned(), format!("{:016x}", s.rip))];
    let mut put = |name: &str, value: String| all.push((name.to_owned(), value));
    for (name, value) in GPR.iter().zip(s.gpr) {
        put(name, format!("{value:016x}"));
    }
    put("RFLAGS", flags(s.rflags));
    let system = [("LDTR", s.ldtr), ("TR", s.tr)];
    for (name, it) in SEG.into_iter().zip(s.seg).chain(system) {
        let text = format!("{:04x} {:x}+{:x} {:05x}", it.selector, it.base, it.limit, it.access);
        put(name, text);
    }
    put("GDTR", format!("{:x}+{:x}", s.gdtr.base, s.gdtr.limit));
    put("IDTR", format!("{:x}+{:x}", s.idtr.base, s.idtr.limit));
    for (name, value) in [
        ("CR0", s.cr0),
        ("CR2", s.cr2),
        ("CR3", s.cr3),
        ("CR4", s.cr4),
        ("EFER", s.efer),
        ("XCR0", s.xcr0),
    ] {
        put(name, format!("{value:x}"));
    }
    put("DR0-7", format!("{:x?}", s.dr));
    put("PDPTE", format!("{:x?}", s.pdpte));
    put("CPL", s.cpl.to_string());
    put("activity", format!("{:?}, {:?}", s.activity, s.shadow));
    put("pending", format!("debug {:x}, NMI blocked {}", s.pending_debug, s.nmi_blocked));
    let v = &s.vector;
    put("FCW", format!("{:04x}", v.u16_at(VectorState::FCW)));
    put("FSW", format!("{:04x}", v.u16_at(VectorState::FSW)));
    put("FTW", format!("{:02x}", v.bytes[VectorState::FTW]));
    put("MXCSR", format!("{:08x}", v.mxcsr()));
    for n in 0..8 {
        put(&format!("ST{n}"), hex_down(&v.bytes[VectorState::ST + 16 * n..][..10]));
    }
    for n in 0..16 {
        put(&format!("YMM{n}"), hex_down(&v.ymm(n)));
    }
    put("x87 pointers", hex_down(&v.bytes[6..24]));
    put("MSRs", format!("{:x?}", s.msr));
    all
}

/// The registers that differ.
#[must_use]
pub fn differing(a: &CpuState, b: &CpuState) -> Vec<Field> {
    let pairs = listing(a).into_iter().zip(listing(b));
    pairs
        .filter(|(a, b)| a.1 != b.1)
        .map(|(a, b)| Field { name: a.0, values: [a.1, b.1] })
        .collect()
}

/// Highest byte first.
fn hex_down(bytes: &[u8]) -> String {
    bytes.iter().rev().fold(String::new(), |mut text, byte| {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn flags(rflags: u64) -> String {
    let names: Vec<_> =
        Rflags::from_bits_truncate(rflags & !2).iter_names().map(|(name, _)| name).collect();
    format!("{rflags:08x} {}", names.join(" "))
}

/// Decodes the instruction at the head of `bytes`.
#[must_use]
pub fn decode(bits: u32, rip: u64, bytes: &[u8]) -> Instruction {
    Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE).decode()
}

/// What an instruction does to the knowledge of which status flags are undefined.
#[derive(Clone, Copy, Debug)]
pub struct Undefined {
    kept: u64,
    added: u64,
}

impl Undefined {
    #[must_use]
    pub fn by(insn: &Instruction) -> Self {
        let of = |bits: u32| {
            let pairs = [
                (RflagsBits::CF, Rflags::CF),
                (RflagsBits::PF, Rflags::PF),
                (RflagsBits::AF, Rflags::AF),
                (RflagsBits::ZF, Rflags::ZF),
                (RflagsBits::SF, Rflags::SF),
                (RflagsBits::OF, Rflags::OF),
            ];
            let set = pairs.into_iter().filter(|(bit, _)| bits & bit != 0);
            set.fold(0, |all, (_, flag)| all | flag.bits())
        };
        // With a count of zero a shift leaves all flags alone, so the old ones may still be there.
        let by_cl = (1..insn.op_count())
            .any(|n| insn.op_kind(n) == OpKind::Register && insn.op_register(n) == Register::CL);
        let defined = insn.rflags_written() | insn.rflags_cleared() | insn.rflags_set();
        let kept = if by_cl { u64::MAX } else { !of(defined) };
        Self { kept, added: of(insn.rflags_undefined()) }
    }

    /// Status flags that are undefined behind the instruction, given those undefined before it.
    #[must_use]
    pub fn after(self, before: u64) -> u64 {
        before & self.kept | self.added
    }
}

/// Status flags that `insn` leaves undefined, given those undefined before it.
#[must_use]
pub fn undefined_after(insn: &Instruction, before: u64) -> u64 {
    Undefined::by(insn).after(before)
}

/// Instructions whose result is not the guest's alone: it comes from the machine or the CPU model.
#[must_use]
pub fn asks_the_machine(insn: &Instruction) -> bool {
    matches!(
        insn.code(),
        Code::Cpuid
            | Code::Rdtsc
            | Code::Rdtscp
            | Code::Rdpmc
            | Code::Rdmsr
            | Code::Hlt
            | Code::Rdrand_r16
            | Code::Rdrand_r32
            | Code::Rdrand_r64
            | Code::Rdseed_r16
            | Code::Rdseed_r32
            | Code::Rdseed_r64
            | Code::Rdpid_r32
            | Code::Rdpid_r64
    )
}

/// Instructions that may change what a debugger can't write, or not by itself.
#[must_use]
pub fn loads_system_state(insn: &Instruction) -> bool {
    let loads = match insn.mnemonic() {
        Mnemonic::Lgdt
        | Mnemonic::Lidt
        | Mnemonic::Lldt
        | Mnemonic::Ltr
        | Mnemonic::Xsetbv
        | Mnemonic::Invd
        | Mnemonic::Wbinvd
        | Mnemonic::Wrmsr => true,
        Mnemonic::Mov => matches!(
            insn.code(),
            Code::Mov_cr_r32 | Code::Mov_cr_r64 | Code::Mov_dr_r32 | Code::Mov_dr_r64
        ),
        _ => false,
    };
    loads || loads_segments(insn)
}

/// Instructions that load segment registers.
#[must_use]
pub fn loads_segments(insn: &Instruction) -> bool {
    match insn.mnemonic() {
        Mnemonic::Mov => matches!(
            insn.code(),
            Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16
        ),
        Mnemonic::Lds | Mnemonic::Les | Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lss => true,
        Mnemonic::Pop => insn.op0_register().is_segment_register(),
        _ => transfers_far(insn),
    }
}

/// Far jumps, calls and returns.
#[must_use]
pub fn transfers_far(insn: &Instruction) -> bool {
    let returns = matches!(
        insn.mnemonic(),
        Mnemonic::Retf | Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq
    );
    returns
        || insn.is_jmp_far()
        || insn.is_jmp_far_indirect()
        || insn.is_call_far()
        || insn.is_call_far_indirect()
}

/// 8-byte words of a page that differ; those that differ in a paging entry's accessed and dirty bits only
/// are counted apart, as processors set them when they please to cache an entry.
#[must_use]
pub fn words_differing(a: &[u8], b: &[u8]) -> (Vec<usize>, usize) {
    const ACCESSED_AND_DIRTY: u64 = 0x60 | 0x60 << 32;
    if a == b {
        return (Vec::new(), 0);
    }
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("a chunk of eight"));
    let (mut real, mut tolerated) = (Vec::new(), 0);
    for (n, (x, y)) in a.chunks_exact(8).zip(b.chunks_exact(8)).enumerate() {
        match word(x) ^ word(y) {
            0 => {}
            bits if bits & !ACCESSED_AND_DIRTY == 0 => tolerated += 1,
            _ => real.push(8 * n),
        }
    }
    (real, tolerated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undefined_flags_follow_the_manual() {
        let of = |bytes: &[u8], before| undefined_after(&decode(64, 0, bytes), before);
        let (af, cf, zf) = (Rflags::AF.bits(), Rflags::CF.bits(), Rflags::ZF.bits());
        assert_eq!(of(&[0x21, 0xd8], 0), af, "AND leaves AF");
        assert_eq!(of(&[0x01, 0xd8], af | cf), 0, "ADD defines all");
        assert_eq!(of(&[0x90], af), af, "NOP changes nothing");
        assert_eq!(of(&[0xff, 0xc0], af | cf), cf, "INC leaves CF as it was");
        assert_eq!(of(&[0xd3, 0xe0], zf) & zf, zf, "SHL by CL may do nothing");
    }

    #[test]
    fn accessed_and_dirty_bits_are_no_difference() {
        let mut a = [0u8; 4096];
        let b = a;
        a[8] = 0x60;
        assert_eq!(words_differing(&a, &b), (vec![], 1));
        a[17] = 1;
        assert_eq!(words_differing(&a, &b), (vec![16], 1));
    }
}
