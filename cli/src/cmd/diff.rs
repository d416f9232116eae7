//! `xenolith diff`: the same guest in two engines, up to the first difference.

use std::io::{self, IsTerminal, Write};

use anyhow::{Result, anyhow};
use xenolith_machine::Config;
use xenolith_machine::diff::{self, Against, DiffConfig, Outcome};

use super::snippet;
use crate::flags::DiffArgs;
use crate::{status, terminal};

/// Compares, prints what was found, and gives the exit status.
///
/// # Errors
/// The guest can't be loaded, or there is no QEMU.
pub fn run(args: &DiffArgs) -> Result<u8> {
    if let Some(text) = &args.snippet {
        return snippet::run(text, &args.mode, args.cpu.as_deref().unwrap_or("host"));
    }
    let Some(kernel) = args.kernel.clone() else {
        return Err(anyhow!(
            "diff: nothing to compare: give --kernel FILE, or --snippet FILE.asm|HEX"
        ));
    };
    let against = Against::from(args.against);
    // What QEMU's emulator has and we have.
    let cpu = if against == Against::Qemu { "x86-64-v2" } else { "host" };
    let machine = Config {
        kernel,
        initrd: args.initrd.clone(),
        command_line: args.append.clone(),
        memory_bytes: args.memory_bytes,
        cpu: args.cpu.clone().unwrap_or_else(|| cpu.to_owned()),
        ..Config::default()
    };
    let mut config = DiffConfig::new(machine, against);
    config.until.clone_from(&args.until);
    config.steps = args.steps;
    config.every_instruction = args.every_instruction;
    if io::stderr().is_terminal() {
        config.progress = Some(Box::new(|instructions| {
            // Nobody minds progress that can't be shown.
            let _ = write!(io::stderr(), "\r{:.1} million instructions", instructions as f64 / 1e6);
        }));
    }
    let outcome = diff::run(config).map_err(|error| anyhow!("{error}"))?;
    if io::stderr().is_terminal() {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
    match outcome {
        Outcome::Equal(summary) => {
            let seconds = summary.time.as_secs_f64().max(1e-9);
            terminal::say(&format!(
                "no difference in {} instructions ({} steps, {:.0} a second; {} injected, {} in worn \
                 loops, {} allowed, {} stretches repeated), up to {:?}",
                summary.instructions,
                summary.steps,
                summary.steps as f64 / seconds,
                summary.injected,
                summary.jumped,
                summary.allowed,
                summary.repeated,
                summary.stop,
            ));
            Ok(status::DONE)
        }
        Outcome::Different(difference) => {
            let text = difference.to_string();
            // A reader that went away (`| head`) is no failure.
            let _ = io::stdout().write_all(text.as_bytes());
            Ok(status::DIFFERENT)
        }
    }
}
