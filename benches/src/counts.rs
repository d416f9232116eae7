//! Instruction counts that don't depend on how busy the host is, compared with committed bounds.
//!
//! Problem: wall time on a shared machine varies more than the changes that one wants to see. Scheme: count what
//! the host executes. The interpreter runs a small guest, and the translator translates, under valgrind's callgrind,
//! which counts everything. Valgrind can't run translated code (it has no FSGSBASE), so there the host's own single-stepping counts: the program
//! runs a loop of a known guest, a debugger's stop catches the vCPU's thread, and some hundred thousand steps
//! show how many host instructions one iteration takes ([`steps`]).
//!
//! `benches/counts.txt` holds a bound for each. A count above its bound fails; one far below it asks to be
//! written there, so that it stays won. Counts are of release builds.

mod steps;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::guest::files;
use crate::guests::LOOPS;
use crate::interp::{self, Image};
use crate::translate;

/// Compilers of one version still place code differently.
const ABOVE_MAX: f64 = 1.03;
/// Below this part of its bound, a bound is out of date.
const BELOW_MIN: f64 = 0.90;
/// Goes on for minutes in every engine.
const ENDLESS: u32 = u32::MAX;

/// Counts everything and compares. False if a bound is exceeded.
///
/// # Errors
/// Something can't be counted: no valgrind, no such program.
pub fn run(bless: bool) -> Result<bool> {
    let bounds = bounds()?;
    let mut passed = true;
    let mut blessed = String::from(
        "# Host instructions: whole runs of the interpreter, the translator for one guest instruction, one\n\
         # iteration of a loop in translated code.\n\
         # Written by `xenolith-benches counts --bless`; see benches/src/counts.rs.\n",
    );
    let mut check = |name: &str, count: f64| {
        let bound = bounds.iter().find(|(known, _)| known == name).map(|(_, bound)| *bound);
        let verdict = match bound {
            None => "no bound".to_owned(),
            Some(bound) if count > bound * ABOVE_MAX => {
                passed = false;
                format!("TOO MANY: the bound is {bound}")
            }
            Some(bound) if count < bound * BELOW_MIN => {
                format!("better than its bound, {bound}: take it with --bless")
            }
            Some(bound) => format!("bound {bound}"),
        };
        println!("  {name:<20} {count:>14.1}   {verdict}");
        blessed.push_str(&format!("{name} {count:.1}\n"));
    };
    for which in LOOPS {
        check(&format!("interp-{}", which.name), callgrind(which.name)?);
    }
    for corpus in translate::corpora()? {
        check(&format!("translate-{}", corpus.name), translation(&corpus)?);
    }
    let program = files::program()?;
    for which in LOOPS {
        let image = Image::new(&which, ENDLESS)?;
        let per_iteration = steps::per_iteration(&program, image.path())
            .with_context(|| format!("the loop '{}' in translated code", which.name))?;
        check(&format!("bt-{}", which.name), per_iteration);
    }
    if bless {
        fs::write(path(), blessed)?;
        println!("  written to {}", path().display());
        return Ok(true);
    }
    Ok(passed)
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("counts.txt")
}

fn bounds() -> Result<Vec<(String, f64)>> {
    let text = fs::read_to_string(path()).unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines
        .map(|line| {
            let (name, bound) = line.split_once(' ').context("NAME BOUND")?;
            Ok((name.to_owned(), bound.trim().parse()?))
        })
        .collect::<Result<_>>()
        .with_context(|| format!("{}", path().display()))
}

/// Instructions of this program that runs a loop on the interpreter, beyond those of a shorter run.
fn callgrind(name: &str) -> Result<f64> {
    let (long, short) = (interp::SHORT, interp::SHORT / 2);
    Ok(collected(&["once", name, &long.to_string()])?.0
        - collected(&["once", name, &short.to_string()])?.0)
}

/// Instructions of the translator for each of the guest's.
fn translation(corpus: &translate::Corpus) -> Result<f64> {
    let path = corpus.path().display().to_string();
    let once = |part| collected(&["translate", "--once", &path, corpus.name, part]);
    let ((long, all), (short, some)) = (once("16")?, once("4")?);
    Ok((long - short) / (all.parse::<f64>()? - some.parse::<f64>()?))
}

/// Instructions of a run of this program under callgrind, and what it printed.
fn collected(arguments: &[&str]) -> Result<(f64, String)> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("cannot run valgrind")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind fails: {text}");
    // "==PID== Collected : N"
    for line in text.lines() {
        if let Some((_, count)) = line.split_once("Collected : ") {
            let printed = String::from_utf8(output.stdout)?.trim().to_owned();
            return Ok((count.trim().parse()?, printed));
        }
    }
    bail!("valgrind collected nothing: {text}")
}
