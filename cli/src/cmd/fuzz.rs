//! `xenolith fuzz`: random instructions, up to the first differences.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::{Result, anyhow};
use xenolith_machine::Making;
use xenolith_machine::fuzz::{self, Config, Counts, Finding, Unsteady, file};
use xenolith_machine::snippet::Who;

use crate::flags::{FuzzArgs, FuzzEngine};
use crate::{status, terminal};

/// Seconds of a run that says nothing about its end.
const SECONDS: u64 = 60;

/// Compares, prints what was found, and gives the exit status.
///
/// # Errors
/// The host refuses memory or a process, the model is unknown, or a finding can't be written.
pub fn run(args: &FuzzArgs) -> Result<u8> {
    if !args.insns {
        return Err(anyhow!("fuzz: nothing to make up: give --insns"));
    }
    let mut who = if args.no_host { Vec::new() } else { vec![Who::Host] };
    who.extend(args.engines.iter().map(|engine| match engine {
        FuzzEngine::Interp => Who::Interp,
        FuzzEngine::Bt => Who::Bt,
        FuzzEngine::Qemu => Who::Qemu,
    }));
    if args.engines.is_empty() {
        who.extend([Who::Interp, Who::Bt]);
    }
    if who.len() < 2 {
        return Err(anyhow!("--no-host leaves nobody to compare with: give two --engine"));
    }
    let seconds = args.seconds.or(args.snippets.is_none().then_some(SECONDS));
    let mut config = Config {
        making: Making { mmu: args.mmu.into(), bmi2: !args.no_bmi2 },
        seed: args.seed,
        first: args.first,
        snippets: args.snippets,
        time: seconds.map(Duration::from_secs),
        cpu: args.cpu.clone(),
        who,
        folder: Some(args.out.clone()),
        findings_max: usize::try_from(args.findings).unwrap_or(usize::MAX),
        report: Box::new(|finding| {
            // A reader that went away (`| head`) is no failure.
            let _ = io::stdout().write_all(describe(finding).as_bytes());
        }),
        report_unsteady: Box::new(|unsteady| {
            let _ = io::stdout().write_all(describe_unsteady(unsteady).as_bytes());
        }),
        progress: None,
    };
    if io::stderr().is_terminal() {
        config.progress = Some(Box::new(|counts| {
            // Nobody minds progress that can't be shown.
            let _ = write!(
                io::stderr(),
                "\r{:.1} million instructions compared, {} findings",
                counts.instructions as f64 / 1e6,
                counts.findings
            );
        }));
    }
    let counts = fuzz::run(config).map_err(|error| anyhow!("{error}"))?;
    if io::stderr().is_terminal() {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
    terminal::say(&summary(&counts));
    Ok(if counts.findings == 0 && counts.unsteady == 0 { status::DONE } else { status::DIFFERENT })
}

fn describe(finding: &Finding) -> String {
    let mut text = String::new();
    let [a, b] = finding.names;
    // Writing to a String can't fail.
    let _ = writeln!(
        text,
        "difference: {a} and {b}, seed {} snippet {}, {} bits, shrunk from {} to {} instructions in {:.1} s",
        finding.seed,
        finding.number,
        finding.snippet.bits.number(),
        finding.lengths[0],
        finding.lengths[1],
        finding.shrunk_in.as_secs_f64(),
    );
    for (bytes, insn) in file::listing(&finding.snippet) {
        let bytes: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let _ = writeln!(text, "    {bytes:<30} {insn}");
    }
    for it in &finding.differences {
        let [x, y] = &it.values;
        let _ = writeln!(text, "  {:<8} {a} {x}, {b} {y}", it.name);
    }
    if let Some(path) = &finding.path {
        let _ = writeln!(text, "  {}", path.display());
    }
    text
}

fn describe_unsteady(unsteady: &Unsteady) -> String {
    let mut text = String::new();
    let [a, b] = unsteady.names;
    let after = match unsteady.after {
        Some(number) => format!("right after snippet {number}"),
        None => "in its batch".to_owned(),
    };
    let _ = writeln!(
        text,
        "difference: {a} and {b}, seed {} snippet {}, only {after}",
        unsteady.seed, unsteady.number
    );
    for snippet in &unsteady.snippets {
        let _ = writeln!(text, "  {} bits at {:#x}", snippet.bits.number(), snippet.rip);
        for (bytes, insn) in file::listing(snippet) {
            let bytes: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let _ = writeln!(text, "    {bytes:<30} {insn}");
        }
    }
    for it in &unsteady.differences {
        let [x, y] = &it.values;
        let _ = writeln!(text, "  {:<8} {a} {x}, {b} {y}", it.name);
    }
    text
}

fn summary(counts: &Counts) -> String {
    let seconds = counts.time.as_secs_f64().max(1e-9);
    let mut text = format!(
        "{} snippets, {} instructions compared in {seconds:.0} s ({:.0} a second); {} different findings, {} \
         more of the same",
        counts.snippets,
        counts.instructions,
        counts.instructions as f64 / seconds,
        counts.findings,
        counts.again,
    );
    if counts.unsteady != 0 {
        let _ = write!(text, "; {} differed only behind another snippet", counts.unsteady);
    }
    let endings: Vec<_> =
        counts.endings.iter().map(|(name, count)| format!("{name} {count}")).collect();
    let _ = write!(text, "; endings: {}", endings.join(", "));
    let excused: Vec<_> =
        counts.excused.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    let _ = write!(text, "; not compared to the end: {}", excused.join(", "));
    text
}
