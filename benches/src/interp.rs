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

use anyhow::{Context, Result, ensure};
use xenolith_machine::{Config, End, Engine, Machine};

use crate::guests::{LOOPS, Loop};

/// The contract of the reference engine: the integer loop must not be slower.
const INTEGER_MIPS_MIN: f64 = 25.0;
/// Instructions of the short and of the long run.
pub const SHORT: u32 = 2_000_000;
const LONG: u32 = 200_000_000;
/// Repetitions; the fastest counts, as others only add other people's work.
const RUNS: u32 = 3;

/// A file that goes when dropped.
pub struct Image(PathBuf);

impl Image {
    /// A loop of about so many instructions.
    ///
    /// # Errors
    /// It can't be written.
    pub fn new(which: &Loop, instructions: u32) -> Result<Self> {
        let name = format!("xenolith-bench-{}-{}-{instructions}", std::process::id(), which.name);
        let path = std::env::temp_dir().join(name);
        fs::write(&path, which.image(instructions / which.about)?)?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // Nobody minds a leftover in the folder for temporary files.
        let _ = fs::remove_file(&self.0);
    }
}

/// One run here.
#[derive(Clone, Copy)]
struct Sample {
    wall: Duration,
    /// Processor time of this process: the same when the host is busy with others.
    cpu: Duration,
    instructions: u64,
}

impl Sample {
    /// What the longer run had more than `short`.
    fn beyond(self, short: Self) -> Self {
        Self {
            wall: self.wall.saturating_sub(short.wall),
            cpu: self.cpu.saturating_sub(short.cpu),
            instructions: self.instructions.saturating_sub(short.instructions),
        }
    }
}

fn mips(instructions: u64, time: Duration) -> f64 {
    instructions as f64 / time.as_secs_f64().max(1e-9) / 1e6
}

fn cpu_time() -> Duration {
    // Fields 14 and 15 of /proc/self/stat, counted behind the name in parentheses; in hundredths.
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(10 * ticks)
}

fn here(kernel: &Path) -> Result<Sample> {
    let config = Config {
        memory_bytes: 64 << 20,
        engine: Engine::Interp,
        kernel: kernel.to_owned(),
        ..Config::default()
    };
    let machine = Machine::new(config, Box::new(io::sink()))?;
    let handle = machine.handle();
    let (start, cpu) = (Instant::now(), cpu_time());
    let end = machine.run();
    ensure!(end == End::DebugExit(0), "the guest ended with {end:?}");
    let (wall, cpu) = (start.elapsed(), cpu_time().saturating_sub(cpu));
    Ok(Sample { wall, cpu, instructions: handle.retired() })
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

/// Runs one loop briefly and once, for tools that count (`valgrind --tool=callgrind`).
///
/// # Errors
/// There is no such loop, or it doesn't run.
pub fn once(name: &str, instructions: u32) -> Result<()> {
    let which = LOOPS.iter().find(|which| which.name == name).context("no such loop")?;
    let sample = here(&Image::new(which, instructions)?.0)?;
    println!("{name}: {} instructions", sample.instructions);
    Ok(())
}

/// Runs all loops. False if the contract isn't met.
///
/// # Errors
/// A guest doesn't run.
pub fn run() -> Result<bool> {
    println!(
        "interp: million guest instructions a second, by wall clock and by processor time (best of {RUNS})"
    );
    let mut passed = true;
    for which in LOOPS {
        let (short, long) = (Image::new(&which, SHORT)?, Image::new(&which, LONG)?);
        let (mut by_wall, mut by_cpu, mut by_qemu) = (0f64, 0f64, 0f64);
        for _ in 0..RUNS {
            let less = here(&short.0)?;
            let more = here(&long.0)?.beyond(less);
            by_wall = by_wall.max(mips(more.instructions, more.wall));
            by_cpu = by_cpu.max(mips(more.instructions, more.cpu));
            if let (Some(less), Some(time)) = (qemu(&short.0), qemu(&long.0)) {
                by_qemu = by_qemu.max(mips(more.instructions, time.saturating_sub(less)));
            }
        }
        let reference =
            if by_qemu > 0.0 { format!("QEMU's TCG {by_qemu:6.0}") } else { "no QEMU".to_owned() };
        println!("  {:<8} {by_wall:6.1} {by_cpu:6.1}   {reference}   {}", which.name, which.what);
        if which.name == "integer" && by_wall < INTEGER_MIPS_MIN {
            println!("  the integer loop must make {INTEGER_MIPS_MIN} at least");
            passed = false;
        }
    }
    Ok(passed)
}
