//! What translating costs by itself: no guest runs, nothing is inserted into a cache.
//!
//! Scheme: code of real programs, the guest's kernel and the program of `benches/guest`, is gone through
//! block by block, as a guest would that falls through every branch. `translate` shows nanoseconds and bytes; `counts`
//! has callgrind count the instructions, which valgrind can do as nothing translated is executed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use iced_x86::{DecoderOptions, Instruction};
use xenolith_translator::emit::{Frame, Page, Routines, Translator};
use xenolith_translator::host::Host;
use xenolith_translator::mode::{Loads, Mode};
use xenolith_translator::plan::Limits;

use crate::guest::files::Files;

/// As the engine has it.
const LENGTH_MAX: usize = 64;
const INSN_BYTES_MAX: usize = 15;
const PAGE: u64 = 4096;
/// Code to go through.
const BYTES: usize = 256 << 10;
/// The first pages are start-up code like no other.
const SKIP: usize = 64 << 10;
const RUNS: usize = 5;

/// Code to translate.
#[derive(Debug)]
pub struct Corpus {
    pub name: &'static str,
    path: PathBuf,
}

/// The mode of a corpus's code: user code has vectors and shadow windows.
fn mode(name: &str) -> Result<Mode> {
    let (privilege, vector, shadow) = match name {
        "kernel" => (0, 0, false),
        "program" => (3, 2, true),
        _ => bail!("no such code: {name}"),
    };
    Ok(Mode {
        bits: 64,
        privilege,
        vector,
        x87: true,
        shadow,
        ring0: name == "kernel",
        time: true,
        segmented: false,
        stack16: false,
        expands_down: false,
        loads: Loads::Descriptor,
        armed: false,
    })
}

/// What translating a corpus gave.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    blocks: usize,
    instructions: usize,
    bytes: usize,
    code: usize,
    refused: usize,
}

/// The corpora: a kernel at privilege 0, a program at 3.
///
/// # Errors
/// The guest can't be built.
pub fn corpora() -> Result<[Corpus; 2]> {
    let files = Files::provide()?;
    Ok([
        Corpus { name: "kernel", path: files.vmlinux() },
        Corpus { name: "program", path: files.root().join("init") },
    ])
}

/// Translates the first `part` of 16 of a corpus once, for tools that count.
///
/// # Errors
/// There is no such corpus.
pub fn once(path: &Path, name: &str, part: usize) -> Result<()> {
    ensure!((1..=16).contains(&part), "a part is 1 to 16");
    let (code, start) = text(path)?;
    let work = go_through(&code[..code.len() * part / 16], start, mode(name)?)?;
    println!("{}", work.instructions);
    Ok(())
}

impl Corpus {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Shows what translating costs.
///
/// # Errors
/// There is no code to translate.
pub fn run() -> Result<()> {
    println!("translate: best of {RUNS}");
    for corpus in corpora()? {
        let (code, start) = text(&corpus.path)?;
        let mut best = f64::MAX;
        let mut work = Work::default();
        for _ in 0..RUNS {
            let clock = Instant::now();
            work = go_through(&code, start, mode(corpus.name)?)?;
            best = best.min(clock.elapsed().as_secs_f64());
        }
        println!(
            "  {:<8} {:6.1} ns an instruction   {} instructions in {} blocks, {:.2} host bytes a guest byte, {} bytes refused",
            corpus.name,
            best * 1e9 / work.instructions as f64,
            work.instructions,
            work.blocks,
            work.code as f64 / work.bytes as f64,
            work.refused,
        );
    }
    Ok(())
}

fn go_through(code: &[u8], start: u64, mode: Mode) -> Result<Work> {
    let mut translator = Translator::default();
    let limits = Limits {
        start: None,
        length_max: LENGTH_MAX,
        allowed: &|_: &Instruction| true,
        decoder_options: DecoderOptions::NONE,
        windows: true,
        counts: false,
        unrolls: false,
        looks_up: &|_: &Instruction| false,
        code_limit: u64::MAX,
    };
    let mut work = Work::default();
    let mut at = 0;
    while at < code.len() {
        let rip = start + at as u64;
        let in_page = (PAGE - rip % PAGE) as usize;
        let bytes = &code[at..code.len().min(at + in_page.min(LENGTH_MAX * INSN_BYTES_MAX))];
        let frame = Frame {
            base: 0x7000_0000 + work.code as u64,
            routines: Routines { exit: 0x6fff_0000, ..Routines::default() },
            first_site: 0,
            mode,
            rip,
            page: Page { la: rip - rip % PAGE, id: 1 },
            second: None,
            code_base: 0,
            host: Host::detect(),
            unlocks: false,
        };
        match translator.translate(frame, bytes, &limits)? {
            Some(block) => {
                work.blocks += 1;
                work.instructions += block.instructions;
                work.bytes += block.bytes;
                work.code += block.code.len();
                at += block.bytes.max(1);
                translator.recycle(block);
            }
            None => {
                work.refused += 1;
                at += 1;
            }
        }
    }
    ensure!(work.instructions > code.len() / 20, "little of it is code");
    Ok(work)
}

/// A part of the first executable segment of an ELF file, and its address (ELF-64 Object File Format,
/// "Program header table").
fn text(path: &Path) -> Result<(Vec<u8>, u64)> {
    let file = fs::read(path).with_context(|| path.display().to_string())?;
    let number = |at: usize, len: usize| -> Option<u64> {
        let bytes = file.get(at..at + len)?;
        Some(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    };
    let find = || -> Option<(Vec<u8>, u64)> {
        let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        for n in 0..count {
            let header = usize::try_from(table + n * size).ok()?;
            let (kind, flags) = (number(header, 4)?, number(header + 4, 4)?);
            let (offset, address) = (number(header + 8, 8)?, number(header + 16, 8)?);
            if kind == 1 && flags & 1 != 0 {
                let from = usize::try_from(offset).ok()? + SKIP;
                let code = file.get(from..from + BYTES)?;
                return Some((code.to_vec(), address + SKIP as u64));
            }
        }
        None
    };
    find().with_context(|| format!("{}: no code to translate", path.display()))
}
