//! The table: a row a workload as it is measured, means and verdicts at the end.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::bars::{self, Bar};
use super::stats::Stats;
use super::target::Column;

/// One workload's times, a list a column.
#[derive(Debug)]
pub struct Row {
    name: String,
    group: String,
    times: Vec<Vec<Duration>>,
    notes: Vec<String>,
    wrong: bool,
}

impl Row {
    pub fn new(name: &str, group: &str, times: Vec<Vec<Duration>>) -> Self {
        Self {
            name: name.to_owned(),
            group: group.to_owned(),
            times,
            notes: Vec::new(),
            wrong: false,
        }
    }

    pub fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }

    /// Something that fails the run whatever the bars.
    pub fn wrong(&mut self, text: &str) {
        self.wrong = true;
        self.note(text);
    }

    fn median(&self, column: usize) -> Option<f64> {
        let mut times: Vec<_> = self.times[column].iter().map(Duration::as_secs_f64).collect();
        times.sort_by(f64::total_cmp);
        match times.len() {
            0 => None,
            n if n % 2 == 1 => Some(times[n / 2]),
            n => Some((times[n / 2 - 1] + times[n / 2]) / 2.0),
        }
    }

    /// How many times `other` took as long as `column`.
    fn ratio(&self, other: Option<usize>, column: usize) -> Option<f64> {
        let (a, b) = (self.median(other?)?, self.median(column)?);
        (b > 0.0).then_some(a / b)
    }
}

#[derive(Debug)]
pub struct Table {
    names: Vec<String>,
    native: Option<usize>,
    tcg: Option<usize>,
    ours: Vec<usize>,
    rows: Vec<Row>,
    idle: Vec<(usize, f64, Option<u64>)>,
    stats: Vec<(usize, String, Stats)>,
    out: Option<File>,
}

impl Table {
    /// Prints the head.
    ///
    /// # Errors
    /// The file for single times can't be written.
    pub fn new(columns: &[Column], out: Option<&Path>) -> Result<Self> {
        let place = |what: fn(&Column) -> bool| columns.iter().position(what);
        let ours = |column: &Column| matches!(column, Column::Xenolith { .. });
        let mut table = Self {
            names: columns.iter().map(Column::name).collect(),
            native: place(|column| matches!(column, Column::Native)),
            tcg: place(|column| matches!(column, Column::Qemu { .. })),
            ours: (0..columns.len()).filter(|&at| ours(&columns[at])).collect(),
            rows: Vec::new(),
            idle: Vec::new(),
            stats: Vec::new(),
            out: None,
        };
        if let Some(path) = out {
            let mut file =
                File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            writeln!(file, "workload\tgroup\tcolumn\tround\tseconds")?;
            table.out = Some(file);
        }
        let mut head = format!("{:<18}", "milliseconds");
        for name in &table.names {
            head.push_str(&format!("{name:>10}"));
        }
        for &at in &table.ours {
            let name = &table.names[at];
            head.push_str(&format!(
                "{:>12}{:>14}",
                format!("tcg/{name}"),
                format!("{name}/native")
            ));
        }
        println!("{head}");
        Ok(table)
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.idle.is_empty() && self.stats.is_empty()
    }

    /// Prints a row and keeps it.
    ///
    /// # Errors
    /// The file for single times can't be written.
    pub fn add(&mut self, row: Row) -> Result<()> {
        let mut line = format!("{:<18}", row.name);
        for at in 0..self.names.len() {
            line.push_str(&match row.median(at) {
                Some(time) => format!("{:>10.1}", time * 1e3),
                None => format!("{:>10}", "-"),
            });
        }
        for &at in &self.ours {
            let show = |ratio: Option<f64>| ratio.map_or("-".to_owned(), |r| format!("{r:.2}"));
            let tcg = show(row.ratio(self.tcg, at));
            let native = show(
                row.ratio(Some(at), self.native.unwrap_or(at)).filter(|_| self.native.is_some()),
            );
            line.push_str(&format!("{tcg:>12}{native:>14}"));
        }
        for text in self.judge(&row) {
            line.push_str(&format!("  {text}"));
        }
        for note in &row.notes {
            line.push_str(&format!("  [{note}]"));
        }
        println!("{line}");
        if let Some(file) = &mut self.out {
            for (at, times) in row.times.iter().enumerate() {
                for (round, time) in times.iter().enumerate() {
                    let seconds = time.as_secs_f64();
                    writeln!(
                        file,
                        "{}\t{}\t{}\t{round}\t{seconds:.9}",
                        row.name, row.group, self.names[at]
                    )?;
                }
            }
        }
        self.rows.push(row);
        Ok(())
    }

    /// A target's share of a processor and its memory beyond the guest's.
    pub fn idle(&mut self, column: usize, share: f64, memory: Option<u64>) {
        self.idle.push((column, share, memory));
    }

    /// What a translator of ours counted over a boot.
    pub fn stats(&mut self, column: usize, boot: &str, stats: Stats) {
        self.stats.push((column, boot.to_owned(), stats));
    }

    /// The bars that a row misses, for this workspace's first engine; nothing if there is nothing to compare.
    fn judge(&self, row: &Row) -> Vec<String> {
        let Some(&first) = self.ours.first() else { return Vec::new() };
        let Bar { tcg_min, native_max } = bars::of(&row.group);
        let mut missed = Vec::new();
        if row.ratio(self.tcg, first).is_some_and(|ratio| ratio < tcg_min) {
            missed.push(format!("MISSED: {tcg_min} x TCG"));
        }
        if let (Some(max), Some(native)) = (native_max, self.native)
            && row.ratio(Some(first), native).is_some_and(|ratio| ratio > max)
        {
            missed.push(format!("MISSED: {max} x native"));
        }
        missed
    }

    /// Prints means and verdicts. True if everything that was measured passes.
    pub fn finish(self) -> bool {
        let mut passed = true;
        println!();
        let mut groups: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !groups.contains(&row.group.as_str()) {
                groups.push(&row.group);
            }
        }
        println!("geometric means     rows{}", self.heads());
        for group in &groups {
            self.mean(group, |row| row.group == *group, None);
        }
        let compute = |row: &Row| bars::is_compute(&row.group);
        passed &= self.mean("all compute", compute, Some(bars::COMPUTE_MEAN));
        passed &= self.mean("all system", |row| row.group == "system", Some(bars::SYSTEM_MEAN));
        println!();
        for (column, share, memory) in &self.idle {
            let ours = self.ours.first() == Some(column);
            let memory_bad = memory.is_none_or(|bytes| bytes > bars::MEMORY_BEYOND_MAX);
            let share_bad = *share > bars::IDLE_SHARE_MAX;
            println!(
                "{:<8} idle {:5.2} % of a processor{}; memory beyond the guest's {}{}",
                self.names[*column],
                share * 100.0,
                if ours { verdict(!share_bad) } else { "" },
                memory.map_or("unknown".to_owned(), |bytes| format!("{} MiB", bytes >> 20)),
                if ours { verdict(!memory_bad) } else { "" },
            );
            passed &= !ours || !(memory_bad || share_bad);
        }
        for (column, boot, stats) in &self.stats {
            let ours = self.ours.first() == Some(column);
            let share_bad = stats.interpreted_share > bars::INTERPRETED_SHARE_MAX;
            let speed_bad = stats.ns_an_instruction > bars::NS_AN_INSTRUCTION_MAX;
            println!(
                "{:<8} {boot}: {:.3} % interpreted{}; {:.0} ns to translate an instruction{}",
                self.names[*column],
                stats.interpreted_share * 100.0,
                if ours { verdict(!share_bad) } else { "" },
                stats.ns_an_instruction,
                if ours { verdict(!speed_bad) } else { "" },
            );
            passed &= !ours || !(share_bad || speed_bad);
        }
        let missed: Vec<_> = self.rows.iter().filter(|row| !self.judge(row).is_empty()).collect();
        let broken =
            |row: &&Row| row.wrong || self.ours.first().is_some_and(|&at| row.times[at].is_empty());
        let broken: Vec<_> = self.rows.iter().filter(broken).collect();
        for (what, rows) in [("miss their bar", &missed), ("fail or are wrong", &broken)] {
            let names: Vec<_> = rows.iter().map(|row| row.name.as_str()).collect();
            println!("{} of {} workloads {what}: {}", rows.len(), self.rows.len(), names.join(" "));
        }
        passed && missed.is_empty() && broken.is_empty()
    }

    fn heads(&self) -> String {
        self.ours
            .iter()
            .map(|&at| {
                let name = &self.names[at];
                format!("{:>12}{:>14}", format!("tcg/{name}"), format!("{name}/native"))
            })
            .collect()
    }

    /// Prints the means of some rows; false if the first of our columns misses `bar` against TCG.
    fn mean(&self, name: &str, which: impl Fn(&Row) -> bool, bar: Option<f64>) -> bool {
        let rows: Vec<_> = self.rows.iter().filter(|row| which(row)).collect();
        if rows.is_empty() {
            return true;
        }
        let mut line = format!("{name:<18}{:>6}", rows.len());
        let mut passed = true;
        for &at in &self.ours {
            let tcg = mean(rows.iter().filter_map(|row| row.ratio(self.tcg, at)));
            let native = self
                .native
                .and_then(|native| mean(rows.iter().filter_map(|row| row.ratio(Some(at), native))));
            for (value, width) in [(tcg, 12), (native, 14)] {
                let text = value.map_or("-".to_owned(), |value| format!("{value:.2}"));
                line.push_str(&format!("{text:>width$}"));
            }
            if let (Some(bar), Some(tcg), true) = (bar, tcg, self.ours.first() == Some(&at)) {
                passed = tcg >= bar;
                line.push_str(&format!("  {bar} x TCG:{}", verdict(passed)));
            }
        }
        println!("{line}");
        passed
    }
}

fn verdict(passed: bool) -> &'static str {
    if passed { " passed" } else { " MISSED" }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for value in values {
        sum += value.ln();
        count += 1;
    }
    (count > 0).then(|| (sum / f64::from(count)).exp())
}
