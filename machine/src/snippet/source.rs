//! Snippets that a person writes.
//!
//! Problem: somebody who doubts an instruction wants to type it and see what everybody makes of it, and to run a
//! failing snippet that was found once. Scheme: code as hexadecimal digits, or a file for NASM whose comments may
//! say registers and memory, in the words of the conformance suite (docs/testing.md): `; in: rax=5 rsi=DATA+8`,
//! `; in-mem: DATA+0x10 = 01 02`. Invariant: NASM runs in a folder of its own that is removed. Any thread.

use std::path::Path;
use std::process::Command;

use xenolith_cpu::state::{Rflags, VectorState};

use super::layout::{
    ABSENT, CODE, CODE16, DATA, DATA16, EXTRA16, LOCAL, RO, RWX, STACK, STACK_MID, STACK16,
};
use super::{Bits, Piece, RunnerError, Snippet};

fn wrong(reason: impl Into<String>) -> RunnerError {
    RunnerError::Source(reason.into())
}

/// Names that a value may use.
const SYMBOLS: [(&str, u64); 12] = [
    ("CODE", CODE),
    ("RWX", RWX),
    ("DATA", DATA),
    ("DATA2", DATA + 0x1000),
    ("ABSENT", ABSENT),
    ("RO", RO),
    ("STACK", STACK),
    ("STACK_MID", STACK_MID),
    ("CODE16", CODE16),
    ("DATA16", DATA16),
    ("EXTRA16", EXTRA16),
    ("STACK16", STACK16),
];

/// A snippet from digits or from a file.
///
/// # Errors
/// What is wrong with it, in one line; or there is no NASM.
pub fn read(text: &str, bits: Bits) -> Result<Snippet, RunnerError> {
    if let Some(code) = digits(text) {
        if code.is_empty() {
            return Err(wrong("no code"));
        }
        return Ok(Snippet::new(bits, code));
    }
    let path = Path::new(text);
    if path.extension().is_none_or(|extension| extension != "asm") {
        let reason = "neither hexadecimal digits nor a file whose name ends in .asm";
        return Err(wrong(format!("{text}: {reason}")));
    }
    let source = std::fs::read_to_string(path)
        .map_err(|error| wrong(format!("{text}: {}", plain(&error))))?;
    let mut snippet = Snippet::new(bits, assemble(path, &source, bits)?);
    for line in source.lines() {
        directive(&mut snippet, line).map_err(|reason| wrong(format!("{text}: {reason}")))?;
    }
    Ok(snippet)
}

/// An I/O error without its number.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// Bytes of a row of hexadecimal digits, in pairs with or without spaces.
pub fn digits(text: &str) -> Option<Vec<u8>> {
    let packed: String = text.chars().filter(|it| !it.is_whitespace() && *it != ',').collect();
    let packed = packed.strip_prefix("0x").unwrap_or(&packed);
    if !packed.len().is_multiple_of(2) || !packed.chars().all(|it| it.is_ascii_hexdigit()) {
        return None;
    }
    (0..packed.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&packed[at..at + 2], 16).ok())
        .collect()
}

fn assemble(path: &Path, source: &str, bits: Bits) -> Result<Vec<u8>, RunnerError> {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let n = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("xenolith-snippet-{}-{n}", std::process::id()));
    std::fs::create_dir_all(&folder)
        .map_err(|error| wrong(format!("{}: {}", folder.display(), plain(&error))))?;
    let result = assemble_in(&folder, path, source, bits);
    // A leftover in the temporary folder hurts nobody.
    let _ = std::fs::remove_dir_all(&folder);
    result
}

fn assemble_in(
    folder: &Path,
    path: &Path,
    source: &str,
    bits: Bits,
) -> Result<Vec<u8>, RunnerError> {
    let (input, output) = (folder.join("in.asm"), folder.join("out.bin"));
    let mut text = format!("bits {}\norg {:#x}\n", bits.number(), bits.code().1);
    for (name, value) in SYMBOLS {
        text.push_str(&format!("{name} equ {value:#x}\n"));
    }
    for (name, selector, ..) in LOCAL {
        text.push_str(&format!("{name} equ {selector:#x}\n"));
    }
    // The directive stands for a line itself, before the first.
    text.push_str(&format!("%line 0+1 {}\n{source}\n", path.display()));
    std::fs::write(&input, text)
        .map_err(|error| wrong(format!("{}: {}", input.display(), plain(&error))))?;
    let run = Command::new("nasm").args(["-f", "bin", "-o"]).arg(&output).arg(&input).output();
    let run = match run {
        Ok(run) => run,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let reason =
                "nasm is not installed: install it, or give the code as hexadecimal digits";
            return Err(wrong(format!("{}: {reason}", path.display())));
        }
        Err(error) => return Err(wrong(format!("nasm: {}", plain(&error)))),
    };
    if !run.status.success() {
        let text = String::from_utf8_lossy(&run.stderr);
        let first = text.lines().next().unwrap_or("nasm failed");
        return Err(wrong(first.replace("error: ", "")));
    }
    let code = std::fs::read(&output)
        .map_err(|error| wrong(format!("{}: {}", output.display(), plain(&error))))?;
    match code.len() {
        0 => Err(wrong(format!("{}: no code", path.display()))),
        1..=0x1000 => Ok(code),
        len => Err(wrong(format!("{}: {len} bytes of code: at most 4096", path.display()))),
    }
}

/// `; in: ...` and `; in-mem: ...`; other lines say nothing here.
fn directive(snippet: &mut Snippet, line: &str) -> Result<(), String> {
    let Some((word, rest)) = line.trim().strip_prefix(';').and_then(|it| it.split_once(':')) else {
        return Ok(());
    };
    match word.trim() {
        "in" => rest.split_whitespace().try_for_each(|it| assign(snippet, it)),
        "in-mem" => {
            let (at, bytes) = rest.split_once('=').ok_or("in-mem: wants ADDRESS = BYTES")?;
            let bytes = digits(bytes).ok_or_else(|| format!("in-mem: {bytes}: no bytes"))?;
            snippet.memory.push(Piece { at: value(at.trim())?, bytes });
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A sum of numbers and names.
fn value(text: &str) -> Result<u64, String> {
    let mut sum = 0u64;
    for term in text.split('+') {
        let term = term.trim();
        let number = if let Some(digits) = term.strip_prefix("0x") {
            u64::from_str_radix(&digits.replace('_', ""), 16).ok()
        } else if let Ok(number) = term.parse() {
            Some(number)
        } else {
            let local = LOCAL.iter().map(|&(name, selector, ..)| (name, u64::from(selector)));
            SYMBOLS.into_iter().chain(local).find(|(name, _)| *name == term).map(|(_, it)| it)
        };
        let number = number.ok_or_else(|| format!("{term} is no number and no name"))?;
        sum = sum.wrapping_add(number);
    }
    Ok(sum)
}

/// A number of hexadecimal digits, lowest byte first.
fn bytes(text: &str, len: usize) -> Result<Vec<u8>, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text).replace('_', "");
    if digits.len() > 2 * len {
        return Err(format!("{text} is longer than {len} bytes"));
    }
    let digits = format!("{digits:0>width$}", width = 2 * len);
    let pairs = (0..len).map(|n| u8::from_str_radix(&digits[2 * n..2 * n + 2], 16));
    let mut bytes: Vec<u8> =
        pairs.collect::<Result<_, _>>().map_err(|_| format!("{text} is no number"))?;
    bytes.reverse();
    Ok(bytes)
}

/// `register=value`.
fn assign(snippet: &mut Snippet, word: &str) -> Result<(), String> {
    const WIDE: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    const NARROW: [&str; 8] = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"];
    const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];
    let (name, text) = word.split_once('=').ok_or_else(|| format!("in: {word} has no ="))?;
    let find = |list: &[&str]| list.iter().position(|it| *it == name);
    let number = |prefix: &str, count: usize| {
        let n: usize = name.strip_prefix(prefix)?.parse().ok()?;
        (n < count).then_some(n)
    };
    let vector = &mut snippet.vector;
    if let Some(n) = find(&WIDE).or_else(|| find(&NARROW)) {
        snippet.gpr[n] = value(text)?;
    } else if let Some(n) = find(&SEGMENTS) {
        snippet.selectors[n] = value(text)? as u16;
    } else if name == "flags" {
        for flag in text.split(',').filter(|flag| *flag != "none") {
            let bare = flag.strip_prefix('-').unwrap_or(flag);
            let bit = Rflags::from_name(bare).ok_or_else(|| format!("no flag {bare}"))?.bits();
            let set = snippet.rflags | bit;
            snippet.rflags = if bare == flag { set } else { set ^ bit };
        }
    } else if let Some(n) = number("xmm", 16) {
        vector.bytes[VectorState::XMM + 16 * n..][..16].copy_from_slice(&bytes(text, 16)?);
    } else if let Some(n) = number("ymm", 16) {
        let mut all = [0; 32];
        all.copy_from_slice(&bytes(text, 32)?);
        vector.set_ymm(n, &all);
    } else if let Some(n) = number("st", 8) {
        let (exponent, significand) =
            text.split_once('_').ok_or_else(|| format!("{text}: give EXPONENT_SIGNIFICAND"))?;
        let slot = &mut vector.bytes[VectorState::ST + 16 * n..][..10];
        slot[..8].copy_from_slice(&bytes(significand, 8)?);
        slot[8..].copy_from_slice(&bytes(exponent, 2)?);
        let top = usize::from(vector.u16_at(VectorState::FSW) >> 11 & 7);
        vector.bytes[VectorState::FTW] |= 1 << ((top + n) % 8);
    } else {
        let number = value(text)?;
        match name {
            "fcw" => vector.set_u16_at(VectorState::FCW, number as u16),
            "fsw" => vector.set_u16_at(VectorState::FSW, number as u16),
            "ftw" => vector.bytes[VectorState::FTW] = number as u8,
            "mxcsr" => vector.set_mxcsr(number as u32),
            _ => return Err(format!("no register {name}")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_code() {
        assert_eq!(digits("48 01 d8"), Some(vec![0x48, 0x01, 0xd8]));
        assert_eq!(digits("4801d8"), digits("0x4801D8"));
        assert_eq!(digits("480"), None);
        assert_eq!(digits("add.asm"), None);
        assert!(read("", Bits::B64).is_err());
        assert!(read("add rax, rbx", Bits::B64).is_err());
        assert!(read("/nowhere/x.asm", Bits::B64).is_err());
    }

    #[test]
    fn directives_set_the_start() {
        let mut snippet = Snippet::new(Bits::B64, vec![0x90]);
        for line in [
            "; in: rax=5 rsi=DATA+0x8 flags=CF,-IF xmm3=0102 st0=3fff_8000000000000000",
            "; in-mem: DATA+0x10 = 01 02",
            "; out: rax=6",
            "; prose: nothing",
        ] {
            directive(&mut snippet, line).expect("all of these are right");
        }
        assert_eq!((snippet.gpr[0], snippet.gpr[6]), (5, DATA + 8));
        assert_eq!(snippet.rflags, 3);
        assert_eq!(snippet.vector.ymm(3)[..2], [2, 1]);
        assert_eq!(snippet.vector.bytes[VectorState::FTW], 1);
        assert_eq!(snippet.memory, [Piece { at: DATA + 16, bytes: vec![1, 2] }]);
        for line in ["; in: rax", "; in: rax=x", "; in: zax=1", "; in-mem: 5", "; in: flags=XF"] {
            assert!(directive(&mut snippet, line).is_err(), "{line}");
        }
    }
}
