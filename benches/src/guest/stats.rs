//! What the program itself counts over a boot (`--stats`): the interpreter's share and the speed of translation.
//!
//! Scheme: the guest of the boots, whose first program switches the machine off; the counters come on standard
//! error. Time in the translator is the host's clock, so on a busy host it is too much.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use super::boots::{BOOTS, Boot};
use super::files::Files;
use super::table::Table;
use super::target::Column;

const COMMAND_LINE: &str = "console=ttyS0 rdinit=/off";

/// What is compared with bars.
#[derive(Clone, Copy, Debug)]
pub struct Stats {
    /// Of all instructions, those that the interpreter did.
    pub interpreted_share: f64,
    pub ns_an_instruction: f64,
}

/// Boots each of our engines that counts, once for each kernel.
///
/// # Errors
/// One doesn't boot, or doesn't say what is expected.
pub fn measure(files: &Files, columns: &[Column], table: &mut Table) -> Result<()> {
    for (at, column) in columns.iter().enumerate().filter(|(_, column)| column.counts()) {
        for boot in &BOOTS {
            let text = once(boot, files, column)?;
            let stats = parse(&text).with_context(|| format!("no counters in {text:?}"))?;
            table.stats(at, boot.name, stats);
        }
    }
    Ok(())
}

fn once(boot: &Boot, files: &Files, column: &Column) -> Result<String> {
    let mut command = boot.command(files, column, COMMAND_LINE).context("something to boot")?;
    let output = command
        .arg("--stats")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{}: {}: {text}", boot.name, output.status);
    Ok(text)
}

/// "N interpreted (SHARE %)" and "N ns for it, EACH ns an instruction".
fn parse(text: &str) -> Option<Stats> {
    let share = text.lines().find_map(|line| line.split_once("interpreted ("))?.1;
    let each = text.lines().find_map(|line| line.split_once("ns for it, "))?.1;
    Some(Stats {
        interpreted_share: share.split_once(" %")?.0.trim().parse::<f64>().ok()? / 100.0,
        ns_an_instruction: each.split_once(" ns")?.0.trim().parse().ok()?,
    })
}
