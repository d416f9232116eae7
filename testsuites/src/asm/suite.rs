//! The corpus as one value: parsed, assembled, and run by any oracle or engine.
//!
//! Problem: several tests and commands want the same cases, run in one boot each, with all failures in
//! one message. Scheme: [`Suite::load`] reads and assembles; [`Suite::on_host`] and [`Suite::on_machine`] give a
//! [`Tally`]; [`Suite::bless`] writes files. Invariant: blessing takes outcomes from the host CPU or
//! QEMU only. One thread.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use super::assemble::assemble;
use super::case::{Case, CaseFile, Maker};
use super::image::{self, Prepared};
use super::state::Run;
use super::verdict::{self, Scope};
use super::{host, qemu};

/// What one oracle or engine made of the corpus.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub agreed: usize,
    /// Cases not asked, with the reason: a feature that is missing there.
    pub lacking: Vec<String>,
    /// Cases that say that this oracle differs, and it does.
    pub excepted: Vec<String>,
    /// Cases that say so, and it does not: another version of it, or a line to remove.
    pub unneeded: Vec<String>,
    /// Name of the case and text to show.
    pub failures: Vec<(String, String)>,
}

impl Tally {
    /// All failures in one text; empty when there are none.
    #[must_use]
    pub fn complaint(&self, who: &str) -> String {
        let mut text = String::new();
        for (_, failure) in &self.failures {
            text.push_str(failure);
        }
        if !text.is_empty() {
            let total = self.agreed + self.failures.len();
            writeln!(text, "{who}: {} of {total} cases fail", self.failures.len())
                .expect("a String takes everything");
        }
        text
    }
}

/// Parsed and assembled cases.
#[derive(Debug)]
pub struct Suite {
    pub files: Vec<CaseFile>,
    assembled: Vec<super::assemble::Assembled>,
}

impl Suite {
    /// Reads the corpus; with a `filter`, only cases whose names contain it.
    ///
    /// # Errors
    /// A file that can't be read, parsed or assembled.
    pub fn load(root: &Path, filter: Option<&str>) -> Result<Self> {
        let mut files = super::load(root)?;
        if let Some(filter) = filter {
            for file in &mut files {
                file.cases.retain(|case| case.name.contains(filter));
            }
        }
        let cases: Vec<&Case> = files.iter().flat_map(|file| &file.cases).collect();
        let assembled = assemble(&cases)?;
        Ok(Self { files, assembled })
    }

    pub fn cases(&self) -> impl Iterator<Item = &Case> {
        self.files.iter().flat_map(|file| &file.cases)
    }

    /// Forgets all cases but these.
    pub fn keep(&mut self, wanted: impl Fn(&Case) -> bool) {
        let wanted_flags: Vec<bool> = self.cases().map(&wanted).collect();
        let mut flags = wanted_flags.iter();
        self.assembled.retain(|_| flags.next() == Some(&true));
        for file in &mut self.files {
            file.cases.retain(&wanted);
        }
    }

    /// All cases, ready to run.
    ///
    /// # Errors
    /// A value in a case that can't be evaluated.
    pub fn prepare(&self) -> Result<Vec<Prepared<'_>>> {
        self.cases()
            .zip(&self.assembled)
            .map(|(case, assembled)| Prepared::new(case, assembled.clone()))
            .collect()
    }

    /// Runs what can run on the host CPU.
    ///
    /// # Errors
    /// The host refuses processes or mappings.
    pub fn on_host(&self) -> Result<Tally> {
        let maker = host::maker();
        let features = host::features();
        let mut tally = Tally::default();
        let no_ldt = !host::has_local_descriptors();
        for prepared in self.prepare()?.iter().filter(|prepared| prepared.case.runs_on_host()) {
            if !prepared.case.holds_for(maker) {
                tally.lacking.push(format!("{}: another maker's", prepared.case.name));
                continue;
            }
            if no_ldt && prepared.case.uses_ldt() {
                tally.lacking.push(format!("{}: no modify_ldt", prepared.case.name));
                continue;
            }
            if let Some(feature) = image::lacking(prepared.case, &features) {
                tally.lacking.push(format!("{}: no {feature}", prepared.case.name));
                continue;
            }
            let run = host::run(prepared)?;
            judge(&mut tally, prepared, &run, Scope::Process, None)?;
        }
        Ok(tally)
    }

    /// Runs everything that holds for a maker's processor on a machine with one, but what `spared` keeps from
    /// it. `excuse`: whether a case's own word excuses this machine.
    ///
    /// # Errors
    /// A machine that doesn't start the harness.
    pub fn on_machine(
        &self,
        maker: Maker,
        boot: impl FnMut(&[u8]) -> Result<(String, String)>,
        spared: impl Fn(&Case) -> Option<&str>,
        excuse: impl Fn(&Case) -> Option<&str>,
    ) -> Result<Tally> {
        let mut tally = Tally::default();
        let mut all = self.prepare()?;
        all.retain(|prepared| prepared.case.holds_for(maker));
        all.retain(|prepared| {
            let reason = spared(prepared.case);
            if let Some(reason) = reason {
                tally.lacking.push(format!("{}: {reason}", prepared.case.name));
            }
            reason.is_none()
        });
        let references: Vec<&Prepared> = all.iter().collect();
        let result = image::run_all(&references, boot)?;
        for (prepared, run) in all.iter().zip(&result.runs) {
            if let Some(feature) = image::lacking(prepared.case, &result.features) {
                tally.lacking.push(format!("{}: no {feature}", prepared.case.name));
                continue;
            }
            judge(&mut tally, prepared, run, Scope::Machine, excuse(prepared.case))?;
        }
        Ok(tally)
    }

    /// Writes what the host CPU gave, or QEMU where the host can't, into the files. Returns the names of
    /// cases that neither could bless.
    ///
    /// # Errors
    /// As [`Suite::on_host`] and [`Suite::on_machine`], or an unwritable file.
    pub fn bless(&self) -> Result<Vec<String>> {
        let all = self.prepare()?;
        let host_features = host::features();
        let (by_host, by_qemu): (Vec<&Prepared>, Vec<&Prepared>) =
            all.iter().partition(|prepared| {
                prepared.case.runs_on_host()
                    && prepared.case.holds_for(host::maker())
                    && image::lacking(prepared.case, &host_features).is_none()
            });
        let mut results: BTreeMap<&Path, BTreeMap<usize, Vec<String>>> = BTreeMap::new();
        let mut left = Vec::new();
        let mut note = |prepared: &Prepared, run: &Run, scope| -> Result<()> {
            let Run::Ended(outcome) = run else {
                if !prepared.case.result_lines.is_empty() {
                    return Ok(()); // written by hand
                }
                left.push(format!("{}: {run:?}", prepared.case.name));
                return Ok(());
            };
            let lines = verdict::describe(prepared, outcome, scope)?;
            let file = self.files.iter().find(|file| file.path == prepared.case.path);
            let path = file.context("every case has a file")?.path.as_path();
            results.entry(path).or_default().insert(prepared.case.first_line, lines);
            Ok(())
        };
        for prepared in by_host {
            note(prepared, &host::run(prepared)?, Scope::Process)?;
        }
        let asked: Vec<&Prepared> = by_qemu
            .into_iter()
            .filter(|prepared| prepared.case.qemu_differs.is_none())
            .filter(|prepared| prepared.case.not_on_qemu.is_none())
            .collect();
        for maker in Maker::ALL {
            // Intel's processor stands for all where makers agree.
            let mut asked = asked.clone();
            asked.retain(|prepared| prepared.case.maker.unwrap_or(Maker::Intel) == maker);
            if asked.is_empty() {
                continue;
            }
            let runs = image::run_all(&asked, |image| qemu::boot(image, maker))?;
            for (prepared, run) in asked.iter().zip(&runs.runs) {
                match image::lacking(prepared.case, &runs.features) {
                    Some(feature) => {
                        let lost = Run::Lost(format!("neither oracle has {feature}"));
                        note(prepared, &lost, Scope::Machine)?;
                    }
                    None => note(prepared, run, Scope::Machine)?,
                }
            }
        }
        for file in &self.files {
            if let Some(results) = results.get(file.path.as_path()) {
                let text = verdict::bless(&file.lines, &file.cases, results);
                std::fs::write(&file.path, text)
                    .with_context(|| file.path.display().to_string())?;
            }
        }
        Ok(left)
    }
}

fn judge(
    tally: &mut Tally,
    prepared: &Prepared,
    run: &Run,
    scope: Scope,
    excuse: Option<&str>,
) -> Result<()> {
    let case = prepared.case;
    let lines = match run {
        Run::Ended(outcome) => verdict::compare(prepared, outcome, scope)?,
        Run::Lost(how) => vec![format!("lost: {how}")],
    };
    if lines.is_empty() {
        tally.agreed += 1;
        if excuse.is_some() {
            tally.unneeded.push(case.name.clone());
        }
    } else if excuse.is_some() {
        tally.excepted.push(case.name.clone());
    } else {
        let mut text =
            format!("{}  ({}:{})\n", case.name, case.path.display(), case.first_line + 1);
        for line in lines {
            writeln!(text, "    {line}").expect("a String takes everything");
        }
        tally.failures.push((case.name.clone(), text));
    }
    Ok(())
}
