//! How much less time two jobs take on two processors than on one, on the clock.
//!
//! ```text
//! cargo run --release -p xenolith-testsuites --bin parallel -- [ROUNDS]
//! ```
//!
//! Both of Debian's kernels, each in two machines at once, with one processor and with two; the machines take turns,
//! and the one that waits for its turn does nothing. Seconds from a command's Enter to the next prompt, medians of the
//! rounds. Means something only where two processors of the host have nothing else to do: the load is told, and
//! the part of the time for which each vCPU's thread really ran.

use std::fs;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use xenolith_testsuites::Program;
use xenolith_testsuites::debian::{Debian, PATIENCE};

/// Where packages are kept, unless XENOLITH_CACHE says it: as for the tests.
const SCRATCH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tmp");
const ROUNDS: usize = 5;

/// What is done twice at the same time.
const WORK: [(&str, &str); 4] = [
    ("sha512sum", "for n in $(seq 20); do sha512sum </tmp/data; done"),
    ("gzip", "for n in 1 2 3 4; do gzip -c </tmp/data; done"),
    ("bzip2", "bzip2 -c </tmp/data"),
    ("pipes and forks", "for n in $(seq 400); do true | cat; done; seq 1 200000 | md5sum"),
];
/// Text with something to find for who compresses it.
const DATA: &str = "seq 1 1500000 >/tmp/data";

/// A machine and what is at work in it.
struct Machine {
    program: Program,
    /// Of each round.
    seconds: Vec<f64>,
}

impl Machine {
    fn start(guest: &Debian, vcpus: usize) -> Result<Self> {
        let mut command = guest.run_elf("")?;
        command.args(["-c", &vcpus.to_string()]);
        let mut program = guest.boot(command)?;
        program.command(DATA, PATIENCE)?;
        Ok(Self { program, seconds: Vec::new() })
    }

    /// Seconds of two jobs, and processor seconds of all vCPUs.
    fn work(&mut self, job: &str) -> Result<(f64, f64)> {
        let line = format!("(({job}) >/dev/null & ({job}) >/dev/null & wait)");
        let before = self.program.thread_times("vcpu-")?;
        let start = Instant::now();
        self.program.command(&line, PATIENCE)?;
        let seconds = start.elapsed().as_secs_f64();
        let after = self.program.thread_times("vcpu-")?;
        let spent =
            before.iter().zip(&after).map(|(before, after)| (*after - *before).as_secs_f64());
        Ok((seconds, spent.sum()))
    }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

fn table(rounds: usize) -> Result<()> {
    let heads = ["one", "two", "two/one", "busy", "load"];
    print!("{:<30}", "seconds");
    println!("{}", heads.map(|head| format!("{head:>9}")).concat());
    for name in ["debian", "debian-i386"] {
        let guest = Debian::get(name, SCRATCH)?;
        let (mut one, mut two) = (Machine::start(&guest, 1)?, Machine::start(&guest, 2)?);
        for (what, job) in WORK {
            let mut busy = Vec::new();
            // The first round translates.
            for round in 0..=rounds {
                let (alone, _) = one.work(job)?;
                let (shared, spent) = two.work(job)?;
                if round > 0 {
                    one.seconds.push(alone);
                    two.seconds.push(shared);
                    busy.push(spent / (2.0 * shared));
                }
            }
            let (alone, shared) = (median(&mut one.seconds), median(&mut two.seconds));
            let load = fs::read_to_string("/proc/loadavg")?;
            let load = load.split(' ').next().unwrap_or_default();
            println!(
                "{:<30}{alone:>9.2}{shared:>9.2}{:>9.3}{:>9.2}{load:>9}",
                format!("{name}: {what}"),
                shared / alone,
                median(&mut busy),
            );
            one.seconds.clear();
            two.seconds.clear();
        }
    }
    Ok(())
}

fn rounds() -> Result<usize> {
    let Some(text) = std::env::args().nth(1) else { return Ok(ROUNDS) };
    text.parse().ok().filter(|&rounds| rounds > 0).with_context(|| format!("{text}: how many?"))
}

fn main() -> ExitCode {
    match rounds().and_then(table) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("parallel: {error:#}");
            ExitCode::FAILURE
        }
    }
}
