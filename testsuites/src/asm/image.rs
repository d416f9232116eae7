//! The harness guest: packing cases into its image, and reading its report.
//!
//! Problem: one boot has to run as many cases as possible, and one bad case must not take the others
//! with it. Scheme: the image is the assembled `harness.asm` with a record for each case behind it;
//! [`run_all`] boots it in any machine, and when a machine stops before the end, it books the case
//! that was running as lost and boots again with those after it. The report, on the serial port:
//! `cpuid ...` once; for each case `case N`, then `sI=V` for each word of the state block that differs from
//! the initial one and `mA=V` for each changed word of memory, `done`; `end` last; all hexadecimal.
//! Invariant: a record's layout is that of `harness.asm`. One thread.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::assemble::{Assembled, Scratch, harness_folder, nasm};
use super::case::Case;
use super::layout::symbol;
use super::state::{Outcome, Run, State};
use super::value;

/// CPUID words of the report: 1.ecx, 1.edx, 7.ebx, 7.ecx, 80000001.ecx, 80000001.edx, 0xd:1.eax.
pub type Features = [u32; 7];

/// Feature names of `needs:`, with their word and bit in [`Features`].
const FEATURES: [(&str, usize, u32); 41] = [
    ("sse3", 0, 0),
    ("pclmulqdq", 0, 1),
    ("monitor", 0, 3),
    ("ssse3", 0, 9),
    ("fma", 0, 12),
    ("cx16", 0, 13),
    ("pcid", 0, 17),
    ("sse4.1", 0, 19),
    ("sse4.2", 0, 20),
    ("movbe", 0, 22),
    ("popcnt", 0, 23),
    ("aes", 0, 25),
    ("xsave", 0, 26),
    ("avx", 0, 28),
    ("f16c", 0, 29),
    ("rdrand", 0, 30),
    ("vme", 1, 1),
    ("de", 1, 2),
    ("sep", 1, 11),
    ("pse36", 1, 17),
    ("clflush", 1, 19),
    ("fsgsbase", 2, 0),
    ("bmi1", 2, 3),
    ("avx2", 2, 5),
    ("smep", 2, 7),
    ("bmi2", 2, 8),
    ("invpcid", 2, 10),
    ("rdseed", 2, 18),
    ("adx", 2, 19),
    ("smap", 2, 20),
    ("clflushopt", 2, 23),
    ("sha", 2, 29),
    ("umip", 3, 2),
    ("rdpid", 3, 22),
    ("lahf64", 4, 0),
    ("lzcnt", 4, 5),
    ("nx", 5, 20),
    ("gbpages", 5, 26),
    ("rdtscp", 5, 27),
    ("xsaveopt", 6, 0),
    ("xsavec", 6, 1),
];

/// The first feature of `case` that is not in `features`.
#[must_use]
pub fn lacking<'a>(case: &'a Case, features: &Features) -> Option<&'a str> {
    case.needs.iter().map(String::as_str).find(|name| {
        FEATURES
            .iter()
            .find(|(known, ..)| known == name)
            .is_none_or(|&(_, word, bit)| features[word] >> bit & 1 == 0)
    })
}

/// Whether `name` may stand in `needs:`.
#[must_use]
pub fn is_feature(name: &str) -> bool {
    FEATURES.iter().any(|(known, ..)| *known == name)
}

/// A case ready to run.
#[derive(Clone, Debug)]
pub struct Prepared<'a> {
    pub case: &'a Case,
    pub assembled: Assembled,
    pub state: State,
    /// Initial memory by linear address, code included.
    pub chunks: Vec<(u64, Vec<u8>)>,
    /// Address and length of what is watched for changes; multiples of 4.
    pub windows: Vec<(u64, u64)>,
}

impl<'a> Prepared<'a> {
    /// # Errors
    /// A value of the case that can't be evaluated.
    pub fn new(case: &'a Case, assembled: Assembled) -> Result<Self> {
        Self::build(case, assembled).with_context(|| case.name.clone())
    }

    fn build(case: &'a Case, assembled: Assembled) -> Result<Self> {
        for name in &case.needs {
            ensure!(is_feature(name), "no feature {name}");
        }
        let labels = &assembled.labels;
        let state = case.initial_state(labels)?;
        let base = case.mode.base;
        let (segment, offset) = base.code();
        let mut chunks = vec![(segment + offset, assembled.code.clone())];
        if !case.setup.is_empty() {
            let (segment, offset) = base.setup();
            chunks.push((segment + offset, assembled.setup.clone()));
        }
        for memory in &case.input_memory {
            chunks.push((value::evaluate(&memory.address, labels)?, memory.bytes.clone()));
        }
        let mut windows: Vec<(u64, u64)> = Vec::new();
        if base.code_bits() != 16 {
            windows.extend([
                (symbol("RWX"), 0x1000),
                (symbol("DATA"), 0x2000),
                (symbol("SUP"), 0x1000),
                (symbol("STACK"), 0x2000),
            ]);
        }
        if case.uses_low_segments() {
            windows.extend(["DATA16", "EXTRA16", "STACK16"].map(|name| (symbol(name), 0x10000)));
        }
        for (address, len) in &case.watch {
            let address = value::evaluate(address, labels)?;
            ensure!(address % 4 == 0 && len % 4 == 0, "watch: multiples of 4 only");
            windows.push((address, *len));
        }
        Ok(Self { case, assembled, state, chunks, windows })
    }

    /// Byte of initial memory.
    #[must_use]
    pub fn initial_byte(&self, address: u64) -> u8 {
        self.chunks
            .iter()
            .rev()
            .find_map(|(start, bytes)| {
                let offset = usize::try_from(address.checked_sub(*start)?).ok()?;
                bytes.get(offset).copied()
            })
            .unwrap_or(0)
    }

    fn record(&self, index: u32) -> Vec<u8> {
        let mut body = Vec::new();
        for (address, bytes) in &self.chunks {
            push_words(&mut body, &[*address as u32, bytes.len() as u32]);
            body.extend_from_slice(bytes);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        for (address, len) in &self.windows {
            push_words(&mut body, &[*address as u32, *len as u32]);
        }
        let setup = if self.case.setup.is_empty() {
            0
        } else {
            let (_, offset) = self.case.mode.base.setup();
            offset as u32
        };
        let total = 32 + self.state.bytes.len() + body.len();
        let mut record = b"CASE".to_vec();
        push_words(
            &mut record,
            &[
                total as u32,
                index,
                self.case.mode.harness_mode(),
                setup,
                self.chunks.len() as u32,
                self.windows.len() as u32,
                if self.case.uses_low_segments() { 16 } else { self.case.mode.base.code_bits() },
            ],
        );
        record.extend_from_slice(&self.state.bytes);
        record.extend(body);
        record
    }
}

fn push_words(bytes: &mut Vec<u8>, words: &[u32]) {
    for word in words {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
}

/// The assembled harness without cases.
///
/// # Errors
/// As [`nasm`].
pub fn harness() -> Result<Vec<u8>> {
    let scratch = Scratch::new("harness")?;
    let mut image = nasm(&harness_folder().join("harness.asm"), &scratch.path().join("harness"))?;
    // Offset 32 says where the records go: NASM drops an empty section's alignment.
    let word = image.get(32..36).context("the harness is cut off")?;
    let end = u32::from_le_bytes(word.try_into().expect("four bytes")) as usize;
    ensure!(end >= image.len() && end < 1 << 20, "the harness's record offset is wrong");
    image.resize(end, 0);
    Ok(image)
}

/// The image that runs `cases`, numbered by their position.
#[must_use]
pub fn image(harness: &[u8], cases: &[&Prepared]) -> Vec<u8> {
    let mut image = harness.to_vec();
    for (index, case) in cases.iter().enumerate() {
        image.extend(case.record(index as u32));
    }
    image.extend_from_slice(&[0; 4]);
    image
}

/// What a boot reported.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub features: Option<Features>,
    /// By number of the case.
    pub outcomes: BTreeMap<usize, Outcome>,
    /// The case that was begun but not done.
    pub open: Option<usize>,
    pub complete: bool,
}

/// Reads the serial output of a boot with `cases`.
#[must_use]
pub fn read_report(text: &str, cases: &[&Prepared]) -> Report {
    let mut report = Report::default();
    let mut current: Option<(usize, Outcome)> = None;
    let hex = |digits: &str| u32::from_str_radix(digits, 16).ok();
    for line in text.lines().map(str::trim) {
        if let Some(words) = line.strip_prefix("cpuid ") {
            let words: Vec<u32> = words.split(' ').filter_map(hex).collect();
            report.features = words.try_into().ok();
        } else if let Some(number) = line.strip_prefix("case ") {
            let index = hex(number).map(|n| n as usize);
            current = index.and_then(|n| {
                let state = cases.get(n)?.state.clone();
                Some((n, Outcome { state, memory: BTreeMap::new() }))
            });
            report.open = index;
        } else if line == "done" {
            if let Some((index, outcome)) = current.take() {
                report.outcomes.insert(index, outcome);
            }
            report.open = None;
        } else if line == "end" {
            report.complete = true;
        } else if let (Some((_, outcome)), Some((place, word))) =
            (&mut current, line.split_once('='))
        {
            let (Some(place_value), Some(word)) = (hex(place.get(1..).unwrap_or("")), hex(word))
            else {
                continue;
            };
            match place.as_bytes()[0] {
                b's' if place_value < 256 => {
                    outcome.state.set(4 * place_value as usize, 4, u64::from(word));
                }
                b'm' => {
                    outcome.memory.insert(u64::from(place_value), word);
                }
                _ => {}
            }
        }
    }
    report
}

/// What all cases came to on one machine.
#[derive(Clone, Debug)]
pub struct Runs {
    pub features: Features,
    pub runs: Vec<Run>,
}

/// Runs cases on a machine: `boot` gets an image, returns the serial output and why it stopped.
///
/// # Errors
/// `boot`'s, or a machine that doesn't even start the harness.
pub fn run_all(
    cases: &[&Prepared],
    mut boot: impl FnMut(&[u8]) -> Result<(String, String)>,
) -> Result<Runs> {
    let harness = harness()?;
    let mut features = None;
    let mut runs = Vec::new();
    while runs.len() < cases.len() || features.is_none() {
        let rest = &cases[runs.len()..];
        let (text, stop) = boot(&image(&harness, rest))?;
        let mut report = read_report(&text, rest);
        features = features.or(report.features);
        ensure!(features.is_some(), "the harness did not start: {stop}\n{text}");
        let done = report.outcomes.len();
        runs.extend(
            (0..done)
                .filter_map(|n| report.outcomes.remove(&n))
                .map(|outcome| Run::Ended(Box::new(outcome))),
        );
        if !report.complete {
            runs.push(Run::Lost(stop));
        }
        ensure!(
            report.complete || runs.len() <= cases.len(),
            "the harness stopped after its last case"
        );
    }
    Ok(Runs { features: features.context("the harness reported no features")?, runs })
}
