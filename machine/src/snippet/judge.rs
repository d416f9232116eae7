//! Whether two endings of one snippet agree, and whether the manual allows that they don't.
//!
//! Problem: most disagreements are real, some are allowed: undefined flags, undefined results, half-done
//! instructions; and which ones depends on the instructions that were executed. Scheme: two steps. [`agree`]
//! compares everything that is ever comparable, fast, for every run. Only what fails is looked at by
//! [`excuse`], which goes through the snippet once more by single instructions of the interpreter,
//! follows undefined flags and registers along the way, and compares again without them. Once an undefined
//! value has been *read*, everything is undefined and nothing can be said.
//! Invariant: an excuse names its reason. Any thread. Source: [`super::undefined`].

use iced_x86::{
    Decoder, DecoderOptions, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register,
};
use xenolith_cpu::CpuState;
use xenolith_cpu::state::{Rflags, VectorState, XSAVE_AREA_SIZE, sreg};

use super::engine::EngineRunner;
use super::makers::{self, Kind};
use super::undefined::{half_done, read_flags, settled_flags, undefined_flags, undefined_result};
use super::{Bits, End, Ending, Snippet};

/// Linux shows user code every fault above this as one of rights, so that it learns nothing of the kernel
/// (`arch/x86/mm/fault.c`).
const USER_END: u64 = (1 << 47) - 4096;
const PRESENT: u32 = 1;

/// What is left out of a comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mask {
    pub flags: u64,
    /// General registers by bit.
    pub general: u16,
    /// Upper halves of general registers by bit.
    pub upper: u16,
    pub mxcsr: bool,
    pub x87: bool,
    pub vector: bool,
    pub memory: bool,
}

/// One thing that differs, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub name: String,
    pub values: [String; 2],
}

/// An ending brought into the form in which it is compared.
fn end_of(ending: &Ending) -> (u32, u32, u64) {
    match ending.end {
        End::Exception { vector: 14, error, cr2 } => {
            let error = if cr2 >= USER_END { error | PRESENT } else { error };
            (14, error, cr2)
        }
        End::Exception { vector, error, .. } => (u32::from(vector), error, 0),
        End::SystemCall => (0x100, 0, 0),
        End::Endless => (0x101, 0, 0),
        End::Lost(_) => (0x102, 0, 0),
    }
}

/// A general register as code of that size sees it.
#[must_use]
pub fn general(snippet: &Snippet, ending: &Ending, n: usize) -> u64 {
    match snippet.bits {
        Bits::B64 => ending.gpr[n],
        // What a change of mode does to R8 up and to upper halves is undefined (SDM vol. 1, "Address
        // Calculations in 64-Bit Mode" and "General-Purpose Registers in 64-Bit Mode").
        _ if n >= 8 => 0,
        // IRET to a 16-bit stack loads SP only (SDM vol. 3, "Stack Switching"): the kernel's way into the
        // snippet leaves bits of its own in the rest of ESP.
        Bits::B16 if n == 4 => ending.gpr[4] & 0xffff,
        _ => ending.gpr[n] & 0xffff_ffff,
    }
}

/// Bits of a general register that are compared.
fn kept(mask: &Mask, n: usize) -> u64 {
    if mask.upper >> n & 1 == 1 { 0xffff_ffff } else { u64::MAX }
}

/// RF is set in the image of a fault, as the processor likes (SDM vol. 3, "Instruction-Breakpoint Exception
/// Condition"): not compared.
const FLAGS_COMPARED: u64 = !Rflags::RF.bits();

/// Bytes of the vector state: general x87 state, XMM and YMM. Left out: FOP, FIP and FDP, which processors
/// keep in different ways (CPUID.7.0:EBX bits 6 and 13; some keep them only under an unmasked exception), MXCSR_MASK and
/// padding.
fn is_x87_byte(at: usize) -> bool {
    at < 5 || (32..160).contains(&at) && at % 16 < 10
}
fn is_vector_byte(at: usize) -> bool {
    (24..28).contains(&at) || (160..416).contains(&at) || at >= 576
}

fn same_vector(a: &VectorState, b: &VectorState, mask: &Mask) -> bool {
    if a.bytes[..5] == b.bytes[..5]
        && a.bytes[24..28] == b.bytes[24..28]
        && a.bytes[32..416] == b.bytes[32..416]
        && a.bytes[576..] == b.bytes[576..]
    {
        return true;
    }
    (0..XSAVE_AREA_SIZE).all(|at| {
        a.bytes[at] == b.bytes[at]
            || (mask.x87 || !is_x87_byte(at)) && (mask.vector || !is_vector_byte(at))
            || mask.mxcsr && (24..28).contains(&at)
    })
}

/// The kernel's way back to user code makes all null selectors zero (SDM vol. 2, "IRET").
fn selectors(ending: &Ending) -> [u16; 6] {
    ending.selectors.map(|selector| if selector < 4 { 0 } else { selector })
}

/// Whether the two are equal in everything that is compared.
#[must_use]
pub fn agree(snippet: &Snippet, a: &Ending, b: &Ending, mask: &Mask) -> bool {
    end_of(a) == end_of(b)
        && a.rip == b.rip
        && (0..16).all(|n| {
            mask.general >> n & 1 == 1
                || general(snippet, a, n) & kept(mask, n) == general(snippet, b, n) & kept(mask, n)
        })
        && (a.rflags ^ b.rflags) & FLAGS_COMPARED & !mask.flags == 0
        && selectors(a) == selectors(b)
        && same_vector(&a.vector, &b.vector, mask)
        && (mask.memory || (a.changed, a.hash) == (b.changed, b.hash))
}

/// Everything in which the two differ.
#[must_use]
pub fn differences(snippet: &Snippet, a: &Ending, b: &Ending, mask: &Mask) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut put = |name: &str, x: String, y: String| {
        if x != y {
            found.push(Difference { name: name.to_owned(), values: [x, y] });
        }
    };
    put("end", end_text(a), end_text(b));
    put("RIP", format!("{:#x}", a.rip), format!("{:#x}", b.rip));
    for n in (0..16).filter(|n| mask.general >> n & 1 == 0) {
        let text = |ending| format!("{:#x}", general(snippet, ending, n) & kept(mask, n));
        put(GENERAL[n], text(a), text(b));
    }
    let flags = |ending: &Ending| flags_text(ending.rflags & FLAGS_COMPARED & !mask.flags);
    put("RFLAGS", flags(a), flags(b));
    for (n, name) in SEGMENTS.iter().enumerate() {
        put(name, format!("{:#x}", selectors(a)[n]), format!("{:#x}", selectors(b)[n]));
    }
    for (name, value) in vector_listing(&a.vector, mask) {
        let other = vector_listing(&b.vector, mask).into_iter().find(|(it, _)| *it == name);
        put(&name, value, other.map_or_else(String::new, |(_, value)| value));
    }
    if !mask.memory && (a.changed, a.hash) != (b.changed, b.hash) {
        let find =
            |list: &Ending, at: u64| list.changes.iter().find(|it| it.0 == at).map(|it| it.1);
        let mut places: Vec<u64> = a.changes.iter().chain(&b.changes).map(|&(at, _)| at).collect();
        places.sort_unstable();
        places.dedup();
        for at in places {
            let text = |value: Option<u64>| {
                value.map_or_else(|| "unchanged".to_owned(), |value| format!("{value:016x}"))
            };
            put(&format!("[{at:#x}]"), text(find(a, at)), text(find(b, at)));
        }
    }
    found
}

pub const GENERAL: [&str; 16] = [
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13",
    "R14", "R15",
];
pub const SEGMENTS: [&str; 6] = ["ES", "CS", "SS", "DS", "FS", "GS"];

/// How it ended, in the manual's words.
#[must_use]
pub fn end_text(ending: &Ending) -> String {
    match &ending.end {
        End::Exception { vector, error, cr2 } => {
            let name = vector_name(*vector);
            match vector {
                14 => format!("{name}({error:#x}) cr2={cr2:#x}"),
                8 | 10..=13 | 17 => format!("{name}({error:#x})"),
                _ => name,
            }
        }
        End::SystemCall => "a system call".to_owned(),
        End::Endless => "still running".to_owned(),
        End::Lost(how) => format!("lost: {how}"),
    }
}

/// `#GP` and the like.
#[must_use]
pub fn vector_name(vector: u8) -> String {
    const NAMES: [&str; 20] = [
        "DE", "DB", "NMI", "BP", "OF", "BR", "UD", "NM", "DF", "9", "TS", "NP", "SS", "GP", "PF",
        "15", "MF", "AC", "MC", "XM",
    ];
    match NAMES.get(usize::from(vector)) {
        Some(name) => format!("#{name}"),
        None => format!("int {vector:#x}"),
    }
}

/// Flags by name.
#[must_use]
pub fn flags_text(rflags: u64) -> String {
    let names = Rflags::from_bits_truncate(rflags & !2);
    let names: Vec<_> = names.iter_names().map(|(name, _)| name).collect();
    format!("{:08x} {}", rflags | 2, names.join(" "))
}

/// x87 and vector registers that are compared, by name.
#[must_use]
pub fn vector_listing(state: &VectorState, mask: &Mask) -> Vec<(String, String)> {
    let hex =
        |bytes: &[u8]| bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut all = Vec::new();
    if !mask.x87 {
        all.push(("FCW".to_owned(), format!("{:04x}", state.u16_at(VectorState::FCW))));
        all.push(("FSW".to_owned(), format!("{:04x}", state.u16_at(VectorState::FSW))));
        all.push(("FTW".to_owned(), format!("{:02x}", state.bytes[VectorState::FTW])));
        for n in 0..8 {
            let bytes = &state.bytes[VectorState::ST + 16 * n..][..10];
            all.push((format!("ST{n}"), format!("{}_{}", hex(&bytes[8..]), hex(&bytes[..8]))));
        }
    }
    if !mask.vector {
        all.push(("MXCSR".to_owned(), format!("{:08x}", state.mxcsr())));
        for n in 0..16 {
            all.push((format!("YMM{n}"), hex(&state.ymm(n))));
        }
    }
    all
}

/// Why two endings may differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Excuse {
    /// They may not.
    None,
    /// Flags or results that the manual leaves undefined.
    Undefined(&'static str),
    /// Something that processors of different makers do differently.
    Makers(&'static str),
    /// An undefined value was read; what came after can't be compared.
    Tainted,
    /// The snippet went where instructions are that nobody wants compared, by a wild jump or by storing to its
    /// own code.
    Strayed,
    /// It ran for too long in one of the two.
    Endless,
}

/// What is undefined after going through a snippet.
#[derive(Default)]
struct Trail {
    mask: Mask,
    cite: Option<&'static str>,
    tainted: bool,
    strayed: bool,
    last: Option<Instruction>,
    /// What the makers do differently, of all instructions and of the last one.
    kinds: Vec<(u64, Kind)>,
    last_kinds: Vec<Kind>,
}

/// Looks for the reason why two endings differ. `compared`: whether an instruction is one that may be compared.
pub fn excuse(
    interp: &mut EngineRunner,
    snippet: &Snippet,
    a: &Ending,
    b: &Ending,
    compared: impl Fn(&Instruction, &[u8]) -> bool,
) -> Excuse {
    if a.end == End::Endless || b.end == End::Endless {
        return Excuse::Endless;
    }
    let mut factory = InstructionInfoFactory::new();
    let mut trail = Trail::default();
    let mut before_last = 0;
    let traced = interp.trace(snippet, |state, bytes| {
        let bits = state.code_bits();
        let insn = Decoder::with_ip(bits, bytes, state.rip, DecoderOptions::NONE).decode();
        before_last = trail.mask.flags;
        follow(&mut trail, &mut factory, &insn, state);
        trail.last_kinds.clear();
        makers::note(&insn, bytes, state, |kind, mask| {
            trail.kinds.push((state.rip, kind));
            trail.last_kinds.push(kind);
            trail.mask.upper |= mask.upper;
            trail.mask.memory |= mask.memory;
            if mask != Mask::default() {
                trail.cite = Some(makers::cite(kind));
            }
        });
        if !compared(&insn, &bytes[..insn.len()]) {
            trail.strayed = true;
        }
    });
    if trail.strayed {
        return Excuse::Strayed;
    }
    if trail.tainted {
        return Excuse::Tainted;
    }
    if let Some(kind) = makers::excuse(&trail.kinds, [a, b]) {
        return Excuse::Makers(makers::cite(kind));
    }
    if traced.end == End::Endless {
        // They ended where the trail doesn't lead.
        return Excuse::Endless;
    }
    if !traced.is_complete(snippet)
        && let Some(last) = &trail.last
    {
        // A fault leaves flags as they were.
        trail.mask.flags |= before_last;
        if trail.last_kinds.contains(&Kind::RepeatFlags) {
            trail.mask.flags |= Rflags::STATUS.bits();
        }
        trail.mask.mxcsr = trail.last_kinds.contains(&Kind::HalfFlags);
        let half = half_done(last);
        trail.mask.x87 |= half.x87;
        trail.mask.vector |= half.vector;
        trail.mask.memory |= half.memory;
        if half.general {
            trail.mask.general = u16::MAX;
        }
    }
    if trail.mask != Mask::default() && agree(snippet, a, b, &trail.mask) {
        return Excuse::Undefined(trail.cite.unwrap_or("half done when it faulted"));
    }
    Excuse::None
}

fn follow(
    trail: &mut Trail,
    factory: &mut InstructionInfoFactory,
    insn: &Instruction,
    state: &CpuState,
) {
    trail.last = Some(*insn);
    if insn.is_invalid() {
        return;
    }
    if read_flags(insn) & trail.mask.flags != 0 {
        trail.tainted = true;
    }

    let info = factory.info(insn);
    let number = |register: Register| {
        let full = register.full_register();
        full.is_gpr64().then(|| full.number())
    };
    for used in info.used_registers() {
        let Some(n) = number(used.register()) else { continue };
        let bit = 1u16 << n;
        let reads =
            !matches!(used.access(), OpAccess::Write | OpAccess::CondWrite | OpAccess::None);
        let wide = used.register().size() == 8;
        if reads && (trail.mask.general & bit != 0 || wide && trail.mask.upper & bit != 0) {
            trail.tainted = true;
        }
        let whole = used.register().size() >= 4;
        if used.access() == OpAccess::Write && whole {
            trail.mask.general &= !bit;
            trail.mask.upper &= !bit;
        }
    }
    let undefined = undefined_flags(insn, state);
    trail.mask.flags = trail.mask.flags & !settled_flags(insn, state) | undefined;
    if undefined != 0 {
        trail.cite = Some("flags that the manual leaves undefined");
    }
    let source_is_zero = || match insn.op1_kind() {
        OpKind::Register => {
            let register = insn.op1_register();
            let width = 8 * register.size() as u32;
            number(register).is_none_or(|n| state.gpr[n] << (64 - width) == 0)
        }
        _ => true,
    };
    if let Some(cite) = undefined_result(insn, state, source_is_zero) {
        trail.cite = Some(cite);
        match insn.op0_kind() {
            OpKind::Register => {
                if let Some(n) = number(insn.op0_register()) {
                    trail.mask.general |= 1 << n;
                }
            }
            _ => trail.mask.memory = true,
        }
    }
}

/// Whether 16-bit code names the upper half of ESP, which the way into it changes.
#[must_use]
pub fn names_esp(bits: Bits, insn: &Instruction) -> bool {
    use iced_x86::Mnemonic as M;
    bits == Bits::B16
        && (insn.memory_base() == Register::ESP
            || (0..insn.op_count()).any(|n| insn.op_register(n) == Register::ESP)
            || matches!(insn.mnemonic(), M::Pushad | M::Enter | M::Leave))
}

/// The segment register that the state's code runs in.
#[must_use]
pub fn code_base(state: &CpuState) -> u64 {
    if state.is_64bit() { 0 } else { state.seg[sreg::CS].base }
}
