//! Measurements: how fast guests run.
//!
//! ```text
//! cargo run --release -p xenolith-benches -- guest      one guest natively, in QEMU and in Xenolith, against the bars
//! cargo run --release -p xenolith-benches -- interp     million instructions a second of small guests
//! cargo run --release -p xenolith-benches -- boot       Debian's kernel from power-on to init and a shell
//! cargo run --release -p xenolith-benches -- translate  what translating costs by itself
//! cargo run --release -p xenolith-benches -- counts     instructions that the host executes, against bounds
//! xenolith-benches once LOOP                            one short loop, to be counted by callgrind
//! ```
//!
//! Where QEMU is installed, its emulator runs the same guests for comparison. Numbers of one day are in
//! `docs/performance.md`.

mod boot;
mod counts;
mod guest;
mod guests;
mod interp;
mod translate;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "xenolith-benches", max_term_width = 100, subcommand_required = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Workloads, boots and idling of one guest, side by side
    Guest(Box<guest::GuestArgs>),
    /// The interpreter's speed on small loops
    Interp,
    /// Debian's kernel on the interpreter, to init and to a shell
    Boot,
    /// Host instructions of small guests, against the bounds in benches/counts.txt
    Counts {
        /// Write today's counts as bounds
        #[arg(long)]
        bless: bool,
    },
    /// What translating costs by itself
    Translate {
        /// Only once, this part of 16 of a file's code, as a tool counts
        #[arg(long, num_args = 3, value_names = ["FILE", "KIND", "PART"])]
        once: Option<Vec<String>>,
    },
    /// One short loop on the interpreter
    Once { name: String, instructions: Option<u32> },
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("xenolith-benches: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<ExitCode> {
    if let Command::Once { name, instructions } = command {
        interp::once(name, instructions.unwrap_or(interp::SHORT))?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Command::Translate { once: Some(words) } = command
        && let [path, kind, part] = &words[..]
    {
        translate::once(Path::new(path), kind, part.parse()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("host: {}", host());
    let passed = match command {
        Command::Guest(args) => guest::run(args)?,
        Command::Interp => interp::run()?,
        Command::Boot => boot::run()?,
        Command::Counts { bless } => counts::run(*bless)?,
        Command::Translate { .. } => translate::run().map(|()| true)?,
        Command::Once { .. } => true,
    };
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The processor's name and how many there are, as numbers mean nothing without.
fn host() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("an unknown processor", |(_, name)| name.trim());
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{model}, {count} of them")
}
