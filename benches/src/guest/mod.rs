//! One guest measured three ways: natively, in QEMU's emulator and in Xenolith.
//!
//! Problem: a shared, noisy host makes times of different minutes incomparable, and starting a guest for
//! every measurement takes longer than the measurement. Scheme: one static program (`benches/guest`) is the native
//! column as it stands and the first program of the guest in both emulators; all stay alive and are told over
//! their consoles what to run, in turns: workload by workload, round by round, each column once. Medians of the rounds are
//! compared. Every workload gives a checksum; columns that differ fail the run.
//!
//! What a time is: [`target`]. What must be reached: [`bars`].

mod bars;
mod boots;
pub mod files;
mod idle;
mod process;
mod stats;
mod table;
mod target;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use files::Files;
use table::{Row, Table};
use target::{Column, Sample, Target};

#[derive(Args, Debug)]
pub struct GuestArgs {
    /// Only these: names, groups (integer, memory, crypto, float, register, program, system, boot, boot-guest,
    /// idle, stats) or beginnings of names, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    only: Vec<String>,

    /// Engines of Xenolith to measure
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "bt")]
    engine: Vec<String>,

    /// Rounds; medians are taken
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,

    /// Size of the work, in thousandths of the usual
    #[arg(long, value_name = "PERMILLE", default_value_t = 1000)]
    scale: u64,

    /// Other builds of the program, each a column of its own beside this one's [default: this
    /// workspace's release build, made first]
    #[arg(long, value_name = "FILE")]
    program: Vec<PathBuf>,

    /// Leave QEMU out
    #[arg(long)]
    no_qemu: bool,

    /// Leave the native column out
    #[arg(long)]
    no_native: bool,

    /// Options for `xenolith run`, as in --xenolith='--cpu x86-64-v3 --stats'
    #[arg(long, value_name = "OPTIONS", default_value = "", allow_hyphen_values = true)]
    xenolith: String,

    /// QEMU's processor
    #[arg(long, value_name = "MODEL", default_value = "max,la57=off")]
    qemu_cpu: String,

    /// Memory of the guest in MiB
    #[arg(short, long, value_name = "MIB", default_value_t = 768)]
    memory: u32,

    /// Times as they are, with the time that others kept the processor
    #[arg(long)]
    raw: bool,

    /// Write every single time there, as a table with tabs
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Only build the guest, print where it lies and how to run it by hand
    #[arg(long)]
    build: bool,

    /// List the workloads
    #[arg(long)]
    list: bool,
}

/// A workload as the guest's program names it.
#[derive(Clone, Debug)]
struct Workload {
    name: String,
    group: String,
}

impl GuestArgs {
    fn wants(&self, name: &str, group: &str) -> bool {
        self.only.is_empty()
            || self.only.iter().any(|word| name.starts_with(word.as_str()) || group == word)
    }

    /// The columns, slowest to bear last: native, QEMU, ours.
    fn columns(&self) -> Result<Vec<Column>> {
        let mut columns = Vec::new();
        if !self.no_native {
            columns.push(Column::Native);
        }
        if !self.no_qemu {
            columns.push(Column::Qemu { cpu: self.qemu_cpu.clone() });
        }
        let mut programs = vec![None];
        programs.extend(self.program.iter().cloned().map(Some));
        for program in programs {
            for engine in &self.engine {
                columns.push(Column::Xenolith {
                    program: match &program {
                        Some(path) => path.clone(),
                        None => files::program()?,
                    },
                    engine: engine.clone(),
                    options: self.xenolith.split_whitespace().map(str::to_owned).collect(),
                    other: program.is_some(),
                });
            }
        }
        Ok(columns)
    }
}

/// Measures what `args` ask for. False if a bar isn't reached.
///
/// # Errors
/// The guest can't be built, or nothing can be measured.
pub fn run(args: &GuestArgs) -> Result<bool> {
    ensure!(args.runs > 0 && args.scale > 0, "--runs and --scale are at least 1");
    let files = Files::provide()?;
    if args.build {
        files.explain(args.memory, &args.qemu_cpu);
        return Ok(true);
    }
    let workloads = workloads(&files)?;
    if args.list {
        for Workload { name, group } in &workloads {
            println!("{group:<10} {name}");
        }
        for boot in &boots::BOOTS {
            println!("{:<10} {}", boot.group, boot.name);
        }
        println!("idle       processor and memory of an idle guest");
        println!("stats      what the translator counts over a boot");
        return Ok(true);
    }
    let columns = args.columns()?;
    println!(
        "{} rounds, scale {}/1000, {} MiB, {}",
        args.runs,
        args.scale,
        args.memory,
        if args.raw { "times as they are" } else { "times without waiting for a processor" }
    );
    for column in &columns {
        println!("  {:<8} {}", column.name(), column.describe());
    }
    println!();

    let mut table = Table::new(&columns, args.out.as_deref())?;
    for boot in boots::BOOTS {
        if args.wants(boot.name, boot.group) {
            table.add(boots::measure(&boot, &files, &columns, args.runs, args.raw)?)?;
        }
    }
    let wanted: Vec<_> = workloads.into_iter().filter(|w| args.wants(&w.name, &w.group)).collect();
    let idle = args.wants("idle", "idle");
    if idle {
        idle::measure(&files, &columns, &mut table)?;
    }
    if args.wants("stats", "stats") {
        stats::measure(&files, &columns, &mut table)?;
    }
    if !wanted.is_empty() {
        let mut targets = start(&columns, &files, args)?;
        for workload in &wanted {
            table.add(measure(workload, &mut targets, args)?)?;
        }
    }
    ensure!(!table.is_empty(), "nothing is called {}; --list lists all", args.only.join(","));
    Ok(table.finish())
}

fn start<'a>(columns: &'a [Column], files: &'a Files, args: &GuestArgs) -> Result<Vec<Target<'a>>> {
    columns.iter().map(|column| Target::start(column, files, args.memory)).collect()
}

fn measure(workload: &Workload, targets: &mut [Target<'_>], args: &GuestArgs) -> Result<Row> {
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); targets.len()];
    let mut failures = BTreeMap::new();
    for _ in 0..args.runs {
        for (at, target) in targets.iter_mut().enumerate() {
            // What has failed once is left out from then on.
            if failures.contains_key(&at) {
                continue;
            }
            match target.run(&workload.name, args.scale) {
                Ok(sample) => samples[at].push(sample),
                Err(error) => {
                    failures.insert(at, format!("{error:#}"));
                }
            }
        }
    }
    let times = samples
        .iter()
        .map(|column| column.iter().map(|sample| sample.time(args.raw)).collect())
        .collect();
    let mut row = Row::new(&workload.name, &workload.group, times);
    for (at, text) in failures {
        row.note(&format!("{}: {text}", targets[at].name()));
    }
    let mut sums = samples
        .iter()
        .zip(targets.iter())
        .filter_map(|(column, target)| Some((column.first()?.checksum.clone(), target.name())));
    if let Some((sum, first)) = sums.next() {
        for (other, name) in sums {
            if other != sum {
                row.wrong(&format!("WRONG RESULT: {other} ({name}) is not {sum} ({first})"));
            }
        }
    }
    Ok(row)
}

/// All workloads, asked of the program itself.
fn workloads(files: &Files) -> Result<Vec<Workload>> {
    let mut target = Target::start(&Column::Native, files, 0)?;
    let mut found = Vec::new();
    for line in target.ask("list", "end")? {
        let words: Vec<_> = line.split_whitespace().collect();
        let ["workload", name, group, _] = words[..] else { bail!("not a workload: {line}") };
        found.push(Workload { name: name.to_owned(), group: group.to_owned() });
    }
    found.first().context("the program has no workloads")?;
    Ok(found)
}
