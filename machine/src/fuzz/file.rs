//! A snippet as a file of the conformance suite.
//!
//! Problem: what was found once must be tested for ever. Scheme: the snippet's state, memory and code are
//! written in the suite's words (docs/testing.md), code as bytes with its disassembly behind it, and the ending of
//! the host's processor as what is expected. Code that must lie elsewhere than cases begin is put there as
//! memory and jumped to. Pure.

use std::fmt::Write as _;

use iced_x86::{CpuidFeature, Decoder, DecoderOptions, Formatter, NasmFormatter};
use xenolith_cpu::state::{Rflags, VectorState};

use crate::snippet::image::{Memory, pattern};
use crate::snippet::judge::{Mask, vector_name};
use crate::snippet::layout::{
    ABSENT, CODE, CODE16, DATA, DATA16, EXTRA16, PAGE, RO, RWX, STACK, STACK16,
};
use crate::snippet::{Bits, End, Ending, FLAGS, Snippet, System};

use super::shrink::boundaries;

/// Regions by which addresses are named.
const REGIONS: [(&str, u64, u64); 10] = [
    ("CODE", CODE, 2 * PAGE + 1),
    ("RWX", RWX, PAGE + 1),
    ("DATA", DATA, 2 * PAGE),
    ("ABSENT", ABSENT, PAGE),
    ("RO", RO, PAGE + 1),
    ("STACK", STACK, 2 * PAGE + 1),
    ("CODE16", CODE16, 0x1_0000),
    ("DATA16", DATA16, 0x1_0000),
    ("EXTRA16", EXTRA16, 0x1_0000),
    ("STACK16", STACK16, 0x1_0000),
];

const WIDE: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];
const NARROW: [&str; 8] = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"];
const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// A number, by region where it lies in one. Of 16-bit code only memory is named.
fn number(value: u64, named: bool) -> String {
    let regions = if named { &REGIONS[..] } else { &[] };
    for &(name, start, len) in regions {
        if value == start {
            return name.to_owned();
        }
        if value.wrapping_sub(start) < len {
            return format!("{name}+{:#x}", value - start);
        }
    }
    format!("{value:#x}")
}

fn register(snippet: &Snippet, n: usize) -> &'static str {
    if snippet.bits == Bits::B64 || n >= 8 { WIDE[n] } else { NARROW[n] }
}

/// Names of flags as the suite writes them.
fn flags(value: u64) -> String {
    let mut names = Vec::new();
    for (name, flag) in Rflags::all().iter_names() {
        let bit = flag.bits();
        if matches!(name, "FIXED" | "IOPL" | "RF" | "STATUS") {
            continue;
        }
        match (value & bit != 0, FLAGS & bit != 0) {
            (true, false) => names.push(name.to_owned()),
            (false, true) => names.push(format!("-{name}")),
            _ => {}
        }
    }
    if names.is_empty() { "none".to_owned() } else { names.join(",") }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect()
}

fn x87(bytes: &[u8]) -> String {
    format!("{}_{}", hex(&bytes[8..10]), hex(&bytes[..8]))
}

/// x87 and vector registers of `state` that aren't as in `before`.
fn vectors(state: &VectorState, before: &VectorState, mask: &Mask) -> Vec<String> {
    let mut words = Vec::new();
    let mut put = |word: String| words.push(word);
    if !mask.x87 {
        for (name, at) in [("fcw", VectorState::FCW), ("fsw", VectorState::FSW)] {
            if state.u16_at(at) != before.u16_at(at) {
                put(format!("{name}={:#x}", state.u16_at(at)));
            }
        }
        // The physical registers stay where they are when the top moves.
        let top = |state: &VectorState| usize::from(state.u16_at(VectorState::FSW) >> 11 & 7);
        for n in 0..8 {
            let was = (n + 8 + top(state) - top(before)) % 8;
            let bytes = &state.bytes[VectorState::ST + 16 * n..][..10];
            let old = &before.bytes[VectorState::ST + 16 * was..][..10];
            if bytes != old {
                put(format!("st{n}={}", x87(bytes)));
            }
        }
        if state.bytes[VectorState::FTW] != before.bytes[VectorState::FTW] {
            put(format!("ftw={:#x}", state.bytes[VectorState::FTW]));
        }
    }
    if !mask.vector {
        if state.mxcsr() != before.mxcsr() {
            put(format!("mxcsr={:#x}", state.mxcsr()));
        }
        for n in 0..16 {
            let (now, old) = (state.ymm(n), before.ymm(n));
            if now[16..] != old[16..] {
                put(format!("ymm{n}={}", hex(&now)));
            } else if now[..16] != old[..16] {
                put(format!("xmm{n}={}", hex(&now[..16])));
            }
        }
    }
    words
}

/// `; word: a b c`, over as many lines as are wanted.
fn list(text: &mut String, word: &str, words: &[String]) {
    let mut line = String::new();
    for it in words {
        if !line.is_empty() && line.len() + it.len() > 90 {
            // Writing to a String can't fail.
            let _ = writeln!(text, "; {word}:{line}");
            line.clear();
        }
        let _ = write!(line, " {it}");
    }
    if !line.is_empty() {
        let _ = writeln!(text, "; {word}:{line}");
    }
}

fn memory(text: &mut String, word: &str, at: u64, bytes: &[u8]) {
    for (n, line) in bytes.chunks(16).enumerate() {
        if line.iter().all(|&byte| byte == 0) && word == "in-mem" {
            continue;
        }
        let place = number(at + 16 * n as u64, true);
        let bytes: Vec<_> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let _ = writeln!(text, "; {word}: {place} = {}", bytes.join(" "));
    }
}

/// Features of the instructions, in the suite's words.
fn needs(snippet: &Snippet) -> Vec<String> {
    use CpuidFeature as F;
    const NAMES: [(CpuidFeature, &str); 22] = [
        (F::SSE3, "sse3"),
        (F::PCLMULQDQ, "pclmulqdq"),
        (F::SSSE3, "ssse3"),
        (F::FMA, "fma"),
        (F::CMPXCHG16B, "cx16"),
        (F::SSE4_1, "sse4.1"),
        (F::SSE4_2, "sse4.2"),
        (F::MOVBE, "movbe"),
        (F::POPCNT, "popcnt"),
        (F::AES, "aes"),
        (F::XSAVE, "xsave"),
        (F::AVX, "avx"),
        (F::AVX2, "avx2"),
        (F::F16C, "f16c"),
        (F::FSGSBASE, "fsgsbase"),
        (F::BMI1, "bmi1"),
        (F::BMI2, "bmi2"),
        (F::ADX, "adx"),
        (F::CLFSH, "clflush"),
        (F::CLFLUSHOPT, "clflushopt"),
        (F::SHA, "sha"),
        (F::LZCNT, "lzcnt"),
    ];
    let mut found = Vec::new();
    let mut decoder =
        Decoder::with_ip(snippet.bits.number(), &snippet.code, snippet.rip, DecoderOptions::NONE);
    while decoder.can_decode() {
        for feature in decoder.decode().cpuid_features() {
            let name = NAMES.iter().find(|(known, _)| known == feature).map(|(_, name)| *name);
            if let Some(name) = name
                && !found.iter().any(|known| known == name)
            {
                found.push(name.to_owned());
            }
        }
    }
    found
}

/// Disassembly of the instructions, with their bytes.
#[must_use]
pub fn listing(snippet: &Snippet) -> Vec<(Vec<u8>, String)> {
    let mut formatter = NasmFormatter::new();
    let mut lines = Vec::new();
    for pair in boundaries(snippet).windows(2) {
        let bytes = &snippet.code[pair[0]..pair[1]];
        let ip = snippet.rip + pair[0] as u64;
        let insn =
            Decoder::with_ip(snippet.bits.number(), bytes, ip, DecoderOptions::NONE).decode();
        let mut text = String::new();
        formatter.format(&insn, &mut text);
        lines.push((bytes.to_vec(), text));
    }
    lines
}

/// The whole file. `remarks`: prose for its head. `mask`: what is undefined at its end.
#[must_use]
pub fn text(
    name: &str,
    snippet: &Snippet,
    expected: &Ending,
    mask: &Mask,
    remarks: &[String],
) -> String {
    let mut text = String::new();
    for remark in remarks {
        let _ = writeln!(text, "; {}", remark.replace(": ", " - "));
    }
    let iopl = (snippet.rflags & Rflags::IOPL.bits()) >> 12;
    let mode = match (snippet.system, snippet.bits) {
        (System::Real, _) => "real".to_owned(),
        (System::V86, _) => format!("v86 iopl={iopl}"),
        (System::Protected, Bits::B16) => "pm16 cpl=3".to_owned(),
        (System::Protected, _) => "pae32 cpl=3".to_owned(),
        (System::Long, Bits::B16) => "compat16 cpl=3".to_owned(),
        (System::Long, Bits::B32) => "compat32 cpl=3".to_owned(),
        (System::Long, Bits::B64) => "long64 cpl=3".to_owned(),
    };
    let _ = writeln!(text, "; mode: {mode}\n\n; case: {name}");
    list(&mut text, "needs", &needs(snippet));
    list(&mut text, "in", &inputs(snippet));
    if snippet.pattern != 0 {
        let at = Memory::pattern_at(snippet.bits);
        memory(&mut text, "in-mem", at, pattern(snippet.pattern));
    }
    for piece in &snippet.memory {
        memory(&mut text, "in-mem", piece.at, &piece.bytes);
    }
    let mut undefined = Vec::new();
    if mask.flags != 0 {
        undefined.push(format!("flags={}", flags(mask.flags | FLAGS)));
    }
    for n in (0..16).filter(|n| mask.general >> n & 1 == 1) {
        undefined.push(register(snippet, n).to_owned());
    }
    list(&mut text, "undef", &undefined);
    code(&mut text, snippet);
    results(&mut text, snippet, expected, mask);
    text
}

/// Registers that aren't as cases have them at their start.
fn inputs(snippet: &Snippet) -> Vec<String> {
    let usual = snippet.usual();
    let wide = snippet.bits != Bits::B16;
    let mut words = Vec::new();
    for n in 0..16 {
        if snippet.gpr[n] != usual.gpr[n] {
            let value = number(snippet.gpr[n], wide);
            words.push(format!("{}={value}", register(snippet, n)));
        }
    }
    if snippet.rflags & !(Rflags::RF | Rflags::IOPL).bits() != FLAGS {
        words.push(format!("flags={}", flags(snippet.rflags)));
    }
    for (n, name) in SEGMENTS.iter().enumerate() {
        if snippet.selectors[n] != usual.selectors[n] {
            words.push(format!("{name}={:#x}", snippet.selectors[n]));
        }
    }
    words.extend(vectors_in(&snippet.vector));
    words
}

/// As [`vectors`], for a start: the top first, then the registers, then the tags.
fn vectors_in(state: &VectorState) -> Vec<String> {
    let usual = VectorState::default();
    let mut before = usual.clone();
    // Nothing moves at a start.
    before.set_u16_at(VectorState::FSW, state.u16_at(VectorState::FSW));
    let mut words = Vec::new();
    if state.u16_at(VectorState::FSW) != usual.u16_at(VectorState::FSW) {
        words.push(format!("fsw={:#x}", state.u16_at(VectorState::FSW)));
    }
    words.extend(vectors(state, &before, &Mask::default()));
    // A register that is named counts as full: the last word has the tags.
    if words.iter().any(|word| word.starts_with("st"))
        && !words.iter().any(|word| word.starts_with("ftw"))
    {
        words.push(format!("ftw={:#x}", state.bytes[VectorState::FTW]));
    }
    words
}

fn code(text: &mut String, snippet: &Snippet) {
    let moved = snippet.rip != snippet.bits.code().1;
    let lines = listing(snippet);
    if !moved {
        for (bytes, insn) in lines {
            let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:#04x}")).collect();
            let _ = writeln!(text, "        db {:<48} ; {insn}", bytes.join(", "));
        }
        return;
    }
    for (_, insn) in lines {
        let _ = writeln!(text, "; there - {insn}");
    }
    let bytes = [&snippet.code[..], &[0x0f, 0x0b]].concat();
    memory(text, "in-mem", snippet.at(), &bytes);
    let place = number(snippet.rip, snippet.bits != Bits::B16);
    let _ = writeln!(text, "        jmp {place}");
}

fn results(text: &mut String, snippet: &Snippet, expected: &Ending, mask: &Mask) {
    let wide = snippet.bits != Bits::B16;
    let moved = snippet.rip != snippet.bits.code().1;
    let mut words = Vec::new();
    match expected.end {
        End::Exception { vector, error, cr2 } => {
            if !expected.is_complete(snippet) || moved {
                let what = match vector {
                    8 | 10..=14 | 17 => format!("{}({error:#x})", vector_name(vector)),
                    0..=19 => vector_name(vector),
                    _ => format!("int {vector:#x}"),
                };
                let place = if expected.rip == snippet.end() && !moved {
                    "end".to_owned()
                } else if expected.rip == snippet.rip && !moved {
                    "start".to_owned()
                } else {
                    number(expected.rip, wide)
                };
                let _ = writeln!(text, "; fault: {what} at {place}");
            }
            if vector == 14 {
                words.push(format!("cr2={}", number(cr2, true)));
            }
        }
        _ => {
            let _ = writeln!(text, "; it did not end: {:?}", expected.end);
        }
    }
    let count = if snippet.bits == Bits::B64 { 16 } else { 8 };
    for n in (0..count).filter(|n| mask.general >> n & 1 == 0) {
        let keep = if snippet.bits == Bits::B16 && n == 4 { 0xffff } else { u64::MAX };
        let value = expected.gpr[n] & keep;
        if value != snippet.gpr[n] & keep {
            words.push(format!("{}={}", register(snippet, n), number(value, wide)));
        }
    }
    let shown = |value: u64| flags(value & !mask.flags);
    if shown(expected.rflags) != shown(snippet.rflags) {
        words.push(format!("flags={}", shown(expected.rflags)));
    }
    for (n, name) in SEGMENTS.iter().enumerate() {
        if expected.selectors[n] != snippet.selectors[n] {
            words.push(format!("{name}={:#x}", expected.selectors[n]));
        }
    }
    words.extend(vectors(&expected.vector, &snippet.vector, mask));
    list(text, "out", &words);
    let mut any = !words.is_empty();
    if !mask.memory {
        for &(at, value) in &expected.changes {
            // The suite doesn't look at 16-bit code's own segment.
            if !(CODE16..DATA16).contains(&at) {
                memory(text, "out-mem", at, &value.to_le_bytes());
                any = true;
            }
        }
    }
    if !any {
        let _ = writeln!(text, "; out: unchanged");
    }
}
