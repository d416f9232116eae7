//! Million guest instructions a second.
//!
//! Scheme: each loop runs once briefly and once for some seconds; the difference, in time and in
//! instructions, leaves out what starting a machine costs. QEMU runs the same images; its instruction counts
//! are ours.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use xenolith_machine::{Config, End, Machine};

use crate::guests::{LOOPS, Loop};

/// The contract of the reference engine: the integer loop must not be slower.
const INTEGER_MIPS_MIN: f64 = 25.0;
/// Instructions of the short and of the long run.
const SHORT: u32 = 2_000_000;
const LONG: u32 = 200_000_000;
/// Repetitions; the fastest counts, as others only add other people's work.
const RUNS: u32 = 3;

/// A file that goes when dropped.
struct Image(PathBuf);

impl Image {
    fn new(which: &Loop, instructions: u32) -> Result<Self> {
        let name = format!("xenolith-bench-{}-{}-{instructions}", std::process::id(), which.name);
        let path = std::env::temp_dir().join(name);
        fs::write(&path, which.image(instructions / which.about)?)?;
        Ok(Self(path))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // Nobody minds a leftover in the folder for temporary files.
        let _ = fs::remove_file(&self.0);
    }
}

/// Time and instructions of one run here.
fn here(kernel: &Path) -> Result<(Duration, u64)> {
    let config = Config { memory_bytes: 64 << 20, kernel: kernel.to_owned(), ..Config::default() };
    let machine = Machine::new(config, Box::new(io::sink()))?;
    let handle = machine.handle();
    let start = Instant::now();
    let end = machine.run();
    ensure!(end == End::DebugExit(0), "the guest ended with {end:?}");
    Ok((start.elapsed(), handle.retired()))
}

/// Time of one run of QEMU's emulator, if it is installed.
fn qemu(kernel: &Path) -> Option<Duration> {
    let start = Instant::now();
    let status = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg", "-m", "64", "-display", "none", "-nodefaults", "-no-reboot"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel"])
        .arg(kernel)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .ok()?;
    (status.code() == Some(1)).then(|| start.elapsed())
}

/// Runs all loops. False if the contract isn't met.
///
/// # Errors
/// A guest doesn't run.
pub fn run() -> Result<bool> {
    println!("interp: million guest instructions a second (fastest of {RUNS})");
    let mut passed = true;
    for which in LOOPS {
        let (short, long) = (Image::new(&which, SHORT)?, Image::new(&which, LONG)?);
        let (mut best, mut best_qemu, mut instructions) = (f64::MAX, f64::MAX, 0);
        for _ in 0..RUNS {
            let ((less_time, fewer), (time, count)) = (here(&short.0)?, here(&long.0)?);
            instructions = count.saturating_sub(fewer);
            best = best.min(time.saturating_sub(less_time).as_secs_f64());
            if let (Some(less), Some(time)) = (qemu(&short.0), qemu(&long.0)) {
                best_qemu = best_qemu.min(time.saturating_sub(less).as_secs_f64());
            }
        }
        let mips = |seconds: f64| instructions as f64 / seconds / 1e6;
        let reference = if best_qemu < f64::MAX {
            format!("{:8.1} in QEMU's TCG", mips(best_qemu))
        } else {
            "no QEMU".to_owned()
        };
        println!("  {:<8} {:8.1}   {reference}   {}", which.name, mips(best), which.what);
        if which.name == "integer" && mips(best) < INTEGER_MIPS_MIN {
            println!("  the integer loop must make {INTEGER_MIPS_MIN} at least");
            passed = false;
        }
    }
    Ok(passed)
}
