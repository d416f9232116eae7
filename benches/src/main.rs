//! Measurements: how fast guests run.
//!
//! ```text
//! cargo run --release -p xenolith-benches -- interp     million instructions a second of small guests
//! cargo run --release -p xenolith-benches -- boot       Debian's kernel from power-on to init and a shell
//! cargo run --release -p xenolith-benches               both
//! xenolith-benches once LOOP                            one short loop, to be counted by callgrind
//! ```
//!
//! Where QEMU is installed, its emulator runs the same guests for comparison. Numbers of one day are in
//! `docs/performance.md`.

mod boot;
mod guests;
mod interp;

use std::process::ExitCode;

use anyhow::Result;

const USAGE: &str = "usage: xenolith-benches [interp|boot]... | once LOOP";

fn main() -> Result<ExitCode> {
    let mut wanted: Vec<String> = std::env::args().skip(1).collect();
    if let [once, name] = &wanted[..]
        && once == "once"
    {
        interp::once(name)?;
        return Ok(ExitCode::SUCCESS);
    }
    if wanted.is_empty() {
        wanted = ["interp", "boot"].map(str::to_owned).to_vec();
    }
    let mut passed = true;
    println!("host: {}", host());
    for name in wanted {
        passed &= match name.as_str() {
            "interp" => interp::run()?,
            "boot" => boot::run()?,
            _ => {
                eprintln!("{USAGE}");
                return Ok(ExitCode::FAILURE);
            }
        };
    }
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
