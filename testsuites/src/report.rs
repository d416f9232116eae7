//! System-level reports: guests that try out what only a kernel can, and print what came of it.
//!
//! Problem: page rights, gates, debugging and mode switches have hundreds of combinations, too many for cases that
//! a person writes one by one, and the bare processor can't be asked. Scheme: guests in C and assembly
//! (`guests/report`) go through the combinations and print a line for each group; they run under QEMU and under each
//! engine, and the reports must be equal, line by line. Where they aren't, [`DIFFERENCES`] says who is right by the
//! manual. Invariants: a guest prints only what the manual defines; a difference that the table names and that is not
//! there is an error too. GCC, NASM and binutils build the guests, in a scratch folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::asm::assemble::{INSTALL_HINT, Scratch};

/// A report guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportGuest {
    /// Long mode.
    Long,
    /// Protected mode, virtual-8086 mode, tasks, and the way through all modes.
    Protected,
}

impl ReportGuest {
    pub const ALL: [Self; 2] = [Self::Long, Self::Protected];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Long => "64",
            Self::Protected => "32",
        }
    }
}

/// Who is right where QEMU and we differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Our engines are.
    Ours,
}

/// A difference that is explained.
#[derive(Clone, Copy, Debug)]
pub struct Explained {
    pub guest: ReportGuest,
    /// How the lines begin.
    pub lines: &'static str,
    pub right: Right,
    /// What QEMU does, and the manual's word.
    pub why: &'static str,
}

const RESERVED: &str = "QEMU clears P in the error code of a reserved bit; it can be set only if P is (SDM vol. 3, \
                        Page-Fault Exceptions, RSVD flag)";
const JUMP: &str = "QEMU faults at the target; a near jump to an address that isn't canonical faults itself (SDM vol. 2, \
                    JMP, 64-Bit Mode Exceptions)";
const SHADOW: &str = "QEMU breaks behind MOV SS; code breakpoints there are held off (SDM vol. 3, Masking Exceptions and \
                      Interrupts When Switching Stacks)";
const DETECT: &str = "QEMU pushes RF clear; a fault pushes it set, but for instruction breakpoints (SDM vol. 3, \
                      Instruction-Breakpoint Exception Condition)";

const ABSENT: &str = "QEMU raises #NP; an absent stack segment is #SS (SDM vol. 2, IRET)";
const DEFAULT: &str =
    "QEMU takes a 64-bit code segment whose D is set; IRET refuses it (SDM vol. 2, IRET)";
const ACCESSED: &str = "QEMU's IRET leaves the accessed bit clear; loading a segment sets it (SDM vol. 3, Segment \
                        Descriptors)";
const LIMIT: &str = "QEMU checks neither limits nor kinds of data segments; the processor does (SDM vol. 3, Limit \
                     Checking, Type Checking)";
const GATE: &str = "QEMU enters a conforming segment at its DPL and on another stack; the privilege stays (SDM vol. 2, \
                    CALL, CALL-GATE)";
const TRAP: &str = "QEMU ignores a task's trap bit (SDM vol. 3, Task-Switch Exception Condition)";

/// Every difference between QEMU 10.0 and our engines.
pub const DIFFERENCES: [Explained; 32] = [
    ours("rights level=4 reserved ", RESERVED),
    ours("rights level=4 reserved,no-execute ", RESERVED),
    ours("rights level=3 reserved ", RESERVED),
    ours("rights level=3 reserved,no-execute ", RESERVED),
    ours("rights level=2 reserved ", RESERVED),
    ours("rights level=2 reserved,no-execute ", RESERVED),
    ours("rights level=1 reserved ", RESERVED),
    ours("rights level=1 reserved,no-execute ", RESERVED),
    ours("rights level=4 page-size ", RESERVED),
    ours("rights level=2 large reserved-13 ", RESERVED),
    ours("rights level=2 large reserved-20 ", RESERVED),
    ours("page end second=3 ", RESERVED),
    ours("canonical at=800000000000 access=2 ", JUMP),
    ours("canonical at=ffff7fffffffffff access=2 ", JUMP),
    ours(" break behind mov ss:", SHADOW),
    ours(" general detect:", DETECT),
    ours("returns to 0 ss absent", ABSENT),
    ours("returns to 3 ss absent", ABSENT),
    ours("returns to 0 cs default", DEFAULT),
    ours("returns to 3 cs default", DEFAULT),
    ours("returns to 0 cs accessed", ACCESSED),
    ours("returns to 3 cs accessed", ACCESSED),
    ours("returns to 0 ss accessed", ACCESSED),
    ours("returns to 3 ss accessed", ACCESSED),
    ours_32("limit ", LIMIT),
    ours_32("task null ds ", LIMIT),
    ours_32("call gate conforming=1 bits=20 ", GATE),
    ours_32("call gate conforming=1 bits=10 ", GATE),
    ours_32("task with the trap bit ", TRAP),
    ours_32("pae level=2 reserved ", RESERVED),
    ours_32("pae level=1 reserved ", RESERVED),
    ours_32("pae large level=2 reserved ", RESERVED),
];

const fn ours(lines: &'static str, why: &'static str) -> Explained {
    Explained { guest: ReportGuest::Long, lines, right: Right::Ours, why }
}

const fn ours_32(lines: &'static str, why: &'static str) -> Explained {
    Explained { guest: ReportGuest::Protected, lines, right: Right::Ours, why }
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guests/report")
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("no {program}: {INSTALL_HINT}"))?;
    ensure!(
        output.status.success(),
        "{program} {}:\n{}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Builds a guest: a multiboot image.
///
/// # Errors
/// A tool is missing or refuses.
pub fn build(guest: ReportGuest) -> Result<Vec<u8>> {
    let scratch = Scratch::new("report")?;
    let source = |name: String| sources().join(name).display().to_string();
    let made = |name: &str| scratch.path().join(name).display().to_string();
    let (bits, machine, format, emulation) = match guest {
        ReportGuest::Long => ("64", "-m64", "elf64", "elf_x86_64"),
        ReportGuest::Protected => ("32", "-m32", "elf32", "elf_i386"),
    };
    let start = source(format!("start{bits}.asm"));
    run("nasm", &["-f", format, "-o", &made("start.o"), &start])?;
    let flags = [
        machine,
        "-O1",
        "-ffreestanding",
        "-fno-pic",
        "-mgeneral-regs-only",
        "-mno-red-zone",
        "-fno-stack-protector",
        "-fno-asynchronous-unwind-tables",
        "-fcf-protection=none",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-c",
        "-o",
    ];
    let (object, main) = (made("report.o"), source(format!("report{bits}.c")));
    run("gcc", &[&flags[..], &[object.as_str(), main.as_str()]].concat())?;
    let script = source("link.ld".to_owned());
    let options = ["-nostdlib", "--no-warn-rwx-segments", "-z", "noexecstack"];
    let linked = made("report.elf");
    let files = ["-m", emulation, "-T", &script, "-o", &linked, &made("start.o"), &object];
    run("ld", &[&options[..], &files[..]].concat())?;
    let image = made("report.img");
    run("objcopy", &["-O", "binary", &linked, &image])?;
    std::fs::read(&image).with_context(|| image.clone())
}

/// A report's lines.
///
/// # Errors
/// The guest didn't come to its end.
pub fn lines(output: &str, stop: &str) -> Result<Vec<String>> {
    let lines: Vec<String> =
        output.lines().map(|line| line.trim_end_matches('\r').to_owned()).collect();
    let whole = lines.iter().any(|line| line == "end");
    let last = lines.iter().rev().take(3).rev().cloned().collect::<Vec<_>>().join("\n");
    ensure!(whole, "the report is cut off ({stop}) behind:\n{last}");
    Ok(lines)
}

/// What is wrong between QEMU's report and an engine's, as text; empty when all is explained.
#[must_use]
pub fn compare(guest: ReportGuest, qemu: &[String], ours: &[String]) -> String {
    let mut text = String::new();
    if qemu.len() != ours.len() {
        text.push_str(&format!("{} lines in QEMU, {} here\n", qemu.len(), ours.len()));
    }
    for (theirs, mine) in qemu.iter().zip(ours) {
        let explained = DIFFERENCES.iter().any(|it| {
            it.guest == guest && theirs.starts_with(it.lines) && mine.starts_with(it.lines)
        });
        if theirs != mine && !explained {
            text.push_str(&format!("qemu {theirs}\nhere {mine}\n"));
        }
    }
    for it in DIFFERENCES.iter().filter(|it| it.guest == guest) {
        let differs =
            |(theirs, mine): (&String, &String)| theirs.starts_with(it.lines) && theirs != mine;
        if !qemu.iter().zip(ours).any(differs) {
            text.push_str(&format!("no difference is there any more in {:?}\n", it.lines));
        }
    }
    text
}
