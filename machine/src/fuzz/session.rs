//! A run of the fuzzer.
//!
//! See the parent module.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iced_x86::{Code, Decoder, DecoderOptions};
use xenolith_cpu::cpuid::CpuidModel;

use super::coverage::{is_compared, may_run};
use super::generate::{BATCH, Generator};
use super::shrink::{boundaries, shrink};
use super::{file, shrink};
use crate::config;
use crate::snippet::engine::{self, EngineRunner};
use crate::snippet::host::has_local_descriptors;
use crate::snippet::judge::{self, Difference, Excuse, Mask, agree, differences};
use crate::snippet::{End, Ending, Runner, RunnerError, Snippet, System, Who};

/// Is told something.
pub type Listener<T> = Box<dyn FnMut(&T)>;

/// What to run.
pub struct Config {
    pub seed: u64,
    /// Number of the first snippet.
    pub first: u64,
    /// End after so many snippets.
    pub snippets: Option<u64>,
    /// End after so much time.
    pub time: Option<Duration>,
    /// CPU model, as for `run`.
    pub cpu: String,
    /// Who is compared; the first one is the reference.
    pub who: Vec<Who>,
    /// How the translator makes code.
    pub making: config::Making,
    /// Where failing snippets are written; nowhere if `None`.
    pub folder: Option<PathBuf>,
    /// End after so many different findings.
    pub findings_max: usize,
    /// Told of every finding when it is made.
    pub report: Listener<Finding>,
    /// Told of every snippet that differs only behind another.
    pub report_unsteady: Listener<Unsteady>,
    /// Called now and then.
    pub progress: Option<Listener<Counts>>,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("seed", &self.seed)
            .field("snippets", &self.snippets)
            .field("time", &self.time)
            .field("who", &self.who)
            .finish_non_exhaustive()
    }
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub snippets: u64,
    /// Instructions executed and compared, of all pairs together.
    pub instructions: u64,
    /// Comparisons that weren't equal and were excused, by reason.
    pub excused: BTreeMap<String, u64>,
    /// Failures of a kind that was already found.
    pub again: u64,
    pub findings: usize,
    /// Snippets that differed in their batch but not alone.
    pub unsteady: u64,
    /// Snippets by how they ended.
    pub endings: BTreeMap<String, u64>,
    pub time: Duration,
}

/// A disagreement, shrunk.
#[derive(Clone, Debug)]
pub struct Finding {
    pub seed: u64,
    /// Number of the snippet it was found with.
    pub number: u64,
    pub names: [&'static str; 2],
    pub snippet: Snippet,
    pub endings: [Ending; 2],
    pub differences: Vec<Difference>,
    /// The conformance case.
    pub text: String,
    pub path: Option<PathBuf>,
    /// Instructions before and after shrinking.
    pub lengths: [usize; 2],
    /// Time that shrinking took.
    pub shrunk_in: Duration,
}

/// A snippet that differs only when another one has run before: something was left over, as code that was
/// translated and then overwritten.
#[derive(Clone, Debug)]
pub struct Unsteady {
    pub seed: u64,
    pub number: u64,
    /// The one that must have run just before; `None`: it takes more than one.
    pub after: Option<u64>,
    pub names: [&'static str; 2],
    pub snippets: Vec<Snippet>,
    pub differences: Vec<Difference>,
}

/// Runners that are compared; the first is the reference.
struct Bench {
    runners: Vec<Box<dyn Runner>>,
    /// Those to whom endless snippets are not given.
    slow: Vec<bool>,
    /// The interpreter's place, and whether it is there only for what nobody else judges.
    interp: usize,
    substitute: bool,
    /// For going through snippets by single instructions.
    tracer: EngineRunner,
    model: Arc<CpuidModel>,
    generator: Generator,
}

/// Runs until time or number is up, or enough is found.
///
/// # Errors
/// The host refuses something, or a finding can't be written.
pub fn run(mut config: Config) -> Result<Counts, RunnerError> {
    let mut bench = Bench::new(&config)?;
    let mut counts = Counts::default();
    let mut known: HashSet<(usize, Code, String)> = HashSet::new();
    let start = Instant::now();
    let mut number = config.first;
    let mut told = Instant::now();
    let end = config.snippets.map(|n| config.first.saturating_add(n));
    loop {
        let to_next = BATCH - number % BATCH;
        let left = end.map_or(to_next, |end| end - number).min(to_next);
        let late = config.time.is_some_and(|time| start.elapsed() >= time);
        if left == 0 || late || counts.findings >= config.findings_max {
            break;
        }
        let batch: Vec<Snippet> =
            (number..number + left).map(|n| bench.generator.snippet(config.seed, n)).collect();
        let (reference, others) = bench.compared(batch[0].system);
        let endings = bench.run(&batch, reference, &others)?;
        for (n, snippet) in batch.iter().enumerate() {
            counts.snippets += 1;
            note_end(&mut counts, &endings[reference][n]);
            for &other in &others {
                let pair = [&endings[reference][n], &endings[other][n]];
                if pair.iter().all(|it| it.end != End::Endless) {
                    counts.instructions += executed(&endings, n);
                }
                if agree(snippet, pair[0], pair[1], &Mask::default()) {
                    continue;
                }
                let excuse = bench.excuse(snippet, pair[0], pair[1]);
                if excuse != Excuse::None {
                    *counts.excused.entry(excuse_text(&excuse)).or_default() += 1;
                    continue;
                }
                if !bench.fails(snippet, other)? {
                    // Alone it does not: something of an earlier snippet's was left over.
                    let place = (config.seed, number);
                    let unsteady = bench.after_what(place, &batch[..=n], other, &endings)?;
                    (config.report_unsteady)(&unsteady);
                    counts.unsteady += 1;
                    continue;
                }
                let Some(found) = bench.find(&mut known, snippet, other)? else {
                    counts.again += 1;
                    continue;
                };
                counts.findings += 1;
                let place = (config.seed, number + n as u64);
                let finding = bench.finish(found, place, config.folder.as_ref())?;
                (config.report)(&finding);
            }
        }
        number += left;
        counts.time = start.elapsed();
        if let Some(progress) = &mut config.progress
            && told.elapsed() > Duration::from_secs(1)
        {
            progress(&counts);
            told = Instant::now();
        }
    }
    counts.time = start.elapsed();
    Ok(counts)
}

fn excuse_text(excuse: &Excuse) -> String {
    match excuse {
        Excuse::None => "none".to_owned(),
        Excuse::Undefined(cite) => (*cite).to_owned(),
        Excuse::Makers(cite) => (*cite).to_owned(),
        Excuse::Tainted => "an undefined value was used".to_owned(),
        Excuse::Strayed => "went to instructions that are not compared".to_owned(),
        Excuse::Endless => "ran too long".to_owned(),
    }
}

fn note_end(counts: &mut Counts, ending: &Ending) {
    let name = judge::end_text(ending);
    let name = name.split(['(', ' ']).next().unwrap_or_default().to_owned();
    *counts.endings.entry(name).or_default() += 1;
}

/// Instructions of snippet `n`, the one that faulted included; the interpreter counts them best.
fn executed(endings: &[Vec<Ending>], n: usize) -> u64 {
    let known = endings.iter().filter_map(|list| list.get(n));
    known.map(|ending| ending.retired).find(|&retired| retired > 0).unwrap_or(0) + 1
}

/// A failure on its way to a finding.
struct Found {
    original: Snippet,
    snippet: Snippet,
    other: usize,
    time: Duration,
}

impl Bench {
    fn new(config: &Config) -> Result<Self, RunnerError> {
        let model = engine::model(&config.cpu)?;
        let mut who = config.who.clone();
        let known = who.iter().position(|who| *who == Who::Interp);
        let interp = known.unwrap_or(who.len());
        if known.is_none() {
            who.push(Who::Interp);
        }
        let runners = who
            .iter()
            .map(|who| who.runner(config.making, &model))
            .collect::<Result<Vec<_>, _>>()?;
        let slow = who.iter().map(|who| *who == Who::Qemu).collect();
        // The host's kernel may give no LDT.
        let sixteen = !config.who.contains(&Who::Host) || has_local_descriptors();
        let tracer = EngineRunner::new(config::Engine::Interp, config.making, &model)?;
        let generator = Generator::new(&model, sixteen);
        let substitute = known.is_none();
        Ok(Self { runners, slow, interp, substitute, tracer, model, generator })
    }

    /// Who is compared under that system: the reference, and the others. The first that was asked for is it, where it
    /// can; else the interpreter.
    fn compared(&self, system: System) -> (usize, Vec<usize>) {
        let (reference, end) = match self.runners[0].takes(system) {
            true => (0, self.runners.len() - usize::from(self.substitute)),
            false => (self.interp, self.runners.len()),
        };
        let takes = |&n: &usize| n != reference && self.runners[n].takes(system);
        (reference, (0..end).filter(takes).collect())
    }

    /// All endings, by runner; none of those that aren't compared.
    fn run(
        &mut self,
        batch: &[Snippet],
        reference: usize,
        others: &[usize],
    ) -> Result<Vec<Vec<Ending>>, RunnerError> {
        let mut places = vec![reference];
        places.extend(others);
        for &n in &places {
            self.runners[n].start(batch)?;
        }
        let mut endings: Vec<Vec<Ending>> = vec![Vec::new(); self.runners.len()];
        // Those that work in this thread first: the other process goes on meanwhile.
        for &n in places.iter().rev().filter(|&&n| !self.slow[n]) {
            endings[n] = self.runners[n].finish(batch)?;
        }
        for &n in places.iter().filter(|&&n| self.slow[n]) {
            let known = endings.iter().find(|list| !list.is_empty());
            let ends: Vec<bool> = (0..batch.len())
                .map(|at| known.is_none_or(|list| list[at].end != End::Endless))
                .collect();
            let part: Vec<Snippet> = batch
                .iter()
                .zip(&ends)
                .filter(|(_, ends)| **ends)
                .map(|(it, _)| it.clone())
                .collect();
            let mut part = self.runners[n].finish(&part)?.into_iter();
            endings[n] = ends
                .iter()
                .map(|ends| ends.then(|| part.next()).flatten())
                .map(|it| it.unwrap_or_else(|| Ending::only(End::Endless)))
                .collect();
        }
        Ok(endings)
    }

    fn excuse(&mut self, snippet: &Snippet, a: &Ending, b: &Ending) -> Excuse {
        let model = Arc::clone(&self.model);
        let bits = snippet.bits.number();
        judge::excuse(&mut self.tracer, snippet, a, b, |insn, bytes| {
            is_compared(insn, bytes, bits, &model) && may_run(insn, snippet.system)
        })
    }

    /// The endings of the reference and of runner `other`.
    fn pair(&mut self, snippet: &Snippet, other: usize) -> Result<[Ending; 2], RunnerError> {
        let (reference, _) = self.compared(snippet.system);
        Ok([self.runners[reference].run(snippet)?, self.runners[other].run(snippet)?])
    }

    /// Whether the two disagree without excuse.
    fn fails(&mut self, snippet: &Snippet, other: usize) -> Result<bool, RunnerError> {
        let [a, b] = self.pair(snippet, other)?;
        Ok(!agree(snippet, &a, &b, &Mask::default())
            && self.excuse(snippet, &a, &b) == Excuse::None)
    }

    /// Looks for the one snippet in front of the batch's last that makes it differ.
    fn after_what(
        &mut self,
        (seed, first): (u64, u64),
        batch: &[Snippet],
        other: usize,
        endings: &[Vec<Ending>],
    ) -> Result<Unsteady, RunnerError> {
        let n = batch.len() - 1;
        let (reference, _) = self.compared(batch[n].system);
        let names = [self.runners[reference].name(), self.runners[other].name()];
        let right = &endings[reference][n];
        let found = differences(&batch[n], right, &endings[other][n], &Mask::default());
        let mut unsteady = Unsteady {
            seed,
            number: first + n as u64,
            after: None,
            names,
            snippets: vec![batch[n].clone()],
            differences: found,
        };
        for before in (0..n).rev() {
            self.runners[other].run(&batch[before])?;
            let again = self.runners[other].run(&batch[n])?;
            if !agree(&batch[n], right, &again, &Mask::default()) {
                unsteady.after = Some(first + before as u64);
                unsteady.snippets.insert(0, batch[before].clone());
                break;
            }
        }
        Ok(unsteady)
    }

    /// Shrinks a failure, unless one with the same instruction and the same differences is known.
    fn find(
        &mut self,
        known: &mut HashSet<(usize, Code, String)>,
        original: &Snippet,
        other: usize,
    ) -> Result<Option<Found>, RunnerError> {
        let start = Instant::now();
        // The first instruction behind which they differ.
        let mut snippet = original.clone();
        for end in boundaries(original).into_iter().skip(1) {
            let mut prefix = original.clone();
            prefix.code.truncate(end);
            if self.fails(&prefix, other)? {
                snippet = prefix;
                break;
            }
        }
        let key = self.key(&snippet, other)?;
        if !known.insert(key) {
            return Ok(None);
        }
        let mut error = None;
        let shrunk = shrink(&snippet, &mut |it| match self.fails(it, other) {
            Ok(fails) => fails,
            Err(reason) => {
                error = Some(reason);
                false
            }
        });
        if let Some(error) = error {
            return Err(error);
        }
        let key = self.key(&shrunk, other)?;
        known.insert(key);
        let time = start.elapsed();
        Ok(Some(Found { original: original.clone(), snippet: shrunk, other, time }))
    }

    fn key(
        &mut self,
        snippet: &Snippet,
        other: usize,
    ) -> Result<(usize, Code, String), RunnerError> {
        let starts = boundaries(snippet);
        let last = starts[starts.len().saturating_sub(2)];
        let bits = snippet.bits.number();
        let insn = Decoder::new(bits, &snippet.code[last..], DecoderOptions::NONE).decode();
        let [a, b] = self.pair(snippet, other)?;
        let list = differences(snippet, &a, &b, &Mask::default());
        if [&a, &b].iter().any(|it| matches!(it.end, End::Lost(_))) {
            // One cause, most probably, whatever the instruction.
            return Ok((other, Code::INVALID, judge::end_text(&b)));
        }
        let kinds: HashSet<char> = list.iter().filter_map(|it| it.name.chars().next()).collect();
        let mut kinds: Vec<char> = kinds.into_iter().collect();
        kinds.sort_unstable();
        Ok((other, insn.code(), kinds.into_iter().collect()))
    }

    fn finish(
        &mut self,
        found: Found,
        (seed, number): (u64, u64),
        folder: Option<&PathBuf>,
    ) -> Result<Finding, RunnerError> {
        let Found { original, snippet, other, time } = found;
        let endings = self.pair(&snippet, other)?;
        let (reference, _) = self.compared(snippet.system);
        let names = [self.runners[reference].name(), self.runners[other].name()];
        let differences = differences(&snippet, &endings[0], &endings[1], &Mask::default());
        let insns = file::listing(&snippet);
        let word = insns.last().map_or("nothing", |(_, text)| {
            text.split_whitespace().find(|word| !is_prefix(word)).unwrap_or("nothing")
        });
        let name = format!("{word}-{}-{seed}-{number}", names[1]);
        let mut remarks = vec![
            format!("Found by xenolith fuzz --insns --seed {seed} --first {number} --snippets 1."),
            format!("Expected values are from {}; {} had otherwise", names[0], names[1]),
        ];
        remarks.extend(
            differences
                .iter()
                .take(12)
                .map(|it| format!("  {} = {}, not {}", it.name, it.values[1], it.values[0])),
        );
        let text = file::text(&name, &snippet, &endings[0], &Mask::default(), &remarks);
        let mut path = None;
        if let Some(folder) = folder {
            let target = folder.join(format!("{name}.asm"));
            let written =
                std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&target, &text));
            written.map_err(|error| RunnerError::Host {
                what: "write a failing snippet",
                reason: format!("{}: {error}", target.display()),
            })?;
            path = Some(target);
        }
        let lengths = [&original, &snippet].map(|it| shrink::boundaries(it).len() - 1);
        Ok(Finding {
            seed,
            number,
            names,
            snippet,
            endings,
            differences,
            text,
            path,
            lengths,
            shrunk_in: time,
        })
    }
}

fn is_prefix(word: &str) -> bool {
    matches!(word, "lock" | "rep" | "repe" | "repne" | "xacquire" | "xrelease" | "bnd" | "notrack")
        || matches!(word, "o16" | "o32" | "o64" | "a16" | "a32" | "a64")
        || matches!(word, "es" | "cs" | "ss" | "ds" | "fs" | "gs")
}
