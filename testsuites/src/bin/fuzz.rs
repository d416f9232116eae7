//! Runs hostile guests for as long as it is told, and reports what must not happen.
//!
//! Problem: the worst defects (a crash, a hang, memory that grows) take the process with them that would
//! report them. Scheme: workers are processes of this same program that run guest after guest and say so on a
//! pipe; this one watches. A worker that dies or says nothing for too long is a finding of the guest it was
//! at, and is replaced. Each finding is saved as a file that `--replay` takes. Threads: one reader for each
//! worker.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use xenolith_machine::{End, Engine};
use xenolith_testsuites::fuzz::{Defect, HostileGuest, Run, Stage};

const USAGE: &str = "\
fuzz: runs hostile guests and reports panics, crashes, hangs and memory that grows

  --seconds N    how long (600)
  --seed N       the first guest; those after it follow (a new one every time)
  --guests N     at most so many
  --jobs N       worker processes (1)
  --out FOLDER   where guests that found something are saved (fuzz-findings)
  --engine NAME  interp or bt (interp)
  --replay WHAT  runs one guest, a saved file or a seed, and says how it ended
";

/// A worker that has been at one guest for longer hangs.
const SILENCE_MAX: Duration = Duration::from_secs(150);
/// Memory of a worker: a guest has 64 MiB, its decoded code 160 MiB at most.
const RESIDENT_KIB_MAX: u64 = 1 << 20;
/// A worker is measured after so many guests, and may not grow much beyond that later.
const WARM_UP_GUESTS: u64 = 300;
const GROWTH_KIB_MAX: u64 = 256 << 10;
/// One repeatable guest in so many is run twice.
const TWICE_ONE_IN: u64 = 32;

#[derive(Clone, Debug)]
struct Options {
    seconds: u64,
    seed: u64,
    guests: u64,
    jobs: u64,
    out: PathBuf,
    engine: Engine,
    replay: Option<String>,
    /// This process is a worker: first seed and step.
    worker: Option<(u64, u64)>,
}

fn options() -> Result<Options> {
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let mut options = Options {
        seconds: 600,
        seed: now << 20,
        guests: u64::MAX,
        jobs: 1,
        out: PathBuf::from("fuzz-findings"),
        engine: Engine::Interp,
        replay: None,
        worker: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        if name == "--help" || name == "-h" {
            print!("{USAGE}");
            std::process::exit(0);
        }
        let value = arguments.next().with_context(|| format!("{name} wants a value"))?;
        let number = || value.parse::<u64>().with_context(|| format!("{name} {value}"));
        match name.as_str() {
            "--seconds" => options.seconds = number()?,
            "--seed" => options.seed = number()?,
            "--guests" => options.guests = number()?,
            "--jobs" => options.jobs = number()?.clamp(1, 64),
            "--out" => options.out = PathBuf::from(value),
            "--engine" => {
                options.engine = match value.as_str() {
                    "interp" => Engine::Interp,
                    "bt" => Engine::Bt,
                    _ => bail!("--engine {value}: it is interp or bt"),
                }
            }
            "--replay" => options.replay = Some(value),
            "--worker" => {
                let (seed, step) = value.split_once(':').context("--worker SEED:STEP")?;
                options.worker = Some((seed.parse()?, step.parse()?));
            }
            _ => bail!("{name}: unknown\n{USAGE}"),
        }
    }
    Ok(options)
}

fn main() -> Result<ExitCode> {
    let options = options()?;
    if let Some((seed, step)) = options.worker {
        return work(options.engine, seed, step);
    }
    if let Some(what) = &options.replay {
        return replay(options.engine, what);
    }
    watch(&options)
}

fn replay(engine: Engine, what: &str) -> Result<ExitCode> {
    let guest = match what.parse() {
        Ok(seed) => HostileGuest::from_seed(seed)?,
        Err(_) => {
            let bytes = std::fs::read(what).with_context(|| what.to_owned())?;
            HostileGuest::from_bytes(&bytes).with_context(|| what.to_owned())?
        }
    };
    println!("{guest:?}");
    let mut stage = Stage::new(engine)?;
    let run = if stage.is_repeatable(&guest) { stage.run_twice(&guest) } else { stage.run(&guest) };
    match run {
        Ok(run) => {
            println!("{run:#?}");
            Ok(ExitCode::SUCCESS)
        }
        Err(defect) => {
            println!("{defect}");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Name of an end, for the statistics.
fn end_name(end: &End) -> &'static str {
    match end {
        End::PowerOff => "power-off",
        End::Reboot => "reset",
        End::TripleFault { .. } => "triple-fault",
        End::DebugExit(_) => "all-chunks",
        End::Timeout => "time-up",
        End::Quit | End::Failed { .. } => "failed",
    }
}

/// This process's memory in KiB.
fn resident_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|field| field.parse::<u64>().ok());
    pages.unwrap_or(0) * 4
}

/// Body of a worker: guests until nobody listens.
fn work(engine: Engine, mut seed: u64, step: u64) -> Result<ExitCode> {
    let mut stage = Stage::new(engine)?;
    let mut out = std::io::stdout().lock();
    loop {
        writeln!(out, "start {seed}")?;
        out.flush()?;
        let guest = HostileGuest::from_seed(seed)?;
        let twice = stage.is_repeatable(&guest) && seed.is_multiple_of(TWICE_ONE_IN);
        let result = if twice { stage.run_twice(&guest) } else { stage.run(&guest) };
        match result {
            Ok(Run { end, retired, took, .. }) => writeln!(
                out,
                "done {} {retired} {} {}",
                end_name(&end),
                took.as_micros(),
                resident_kib()
            )?,
            Err(Defect::Panic(text)) => writeln!(out, "defect {}", one_line(&text))?,
            Err(defect) => writeln!(out, "defect {}", one_line(&defect.to_string()))?,
        }
        out.flush()?;
        seed = seed.wrapping_add(step);
    }
}

fn one_line(text: &str) -> String {
    text.replace('\n', " | ")
}

/// What a worker's reader passes on.
enum Said {
    Line(String),
    Gone,
}

struct Worker {
    child: Child,
    /// Tells this worker's lines from those of the ones before it.
    id: u64,
    seed: u64,
    since: Instant,
    guests: u64,
    /// Memory after the warm-up.
    warm_kib: Option<u64>,
}

impl Worker {
    fn start(options: &Options, seed: u64, id: u64, to: &Sender<(u64, Said)>) -> Result<Self> {
        let engine = if options.engine == Engine::Bt { "bt" } else { "interp" };
        let step = options.jobs;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--worker", &format!("{seed}:{step}"), "--engine", engine])
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("no worker")?;
        let lines = BufReader::new(child.stdout.take().context("its output is a pipe")?);
        let to = to.clone();
        thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                if to.send((id, Said::Line(line))).is_err() {
                    return;
                }
            }
            // The watcher may have left.
            let _ = to.send((id, Said::Gone));
        });
        Ok(Self { child, id, seed, since: Instant::now(), guests: 0, warm_kib: None })
    }

    /// Ends it, however it is; how it ended by itself, if it has.
    fn finish(&mut self) -> String {
        // It may be gone already.
        let _ = self.child.kill();
        self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
    }
}

#[derive(Default)]
struct Totals {
    guests: u64,
    instructions: u64,
    ends: BTreeMap<String, u64>,
    slowest: (Duration, u64),
    resident_kib_max: u64,
    findings: Vec<(u64, String)>,
}

impl Totals {
    fn finding(&mut self, options: &Options, seed: u64, text: String) {
        eprintln!("FINDING seed {seed}: {text}");
        let saved = HostileGuest::from_seed(seed).and_then(|guest| {
            std::fs::create_dir_all(&options.out)?;
            let path = options.out.join(format!("guest-{seed}"));
            std::fs::write(&path, guest.to_bytes())?;
            Ok(path)
        });
        match saved {
            Ok(path) => eprintln!("        again with --replay {}", path.display()),
            Err(error) => eprintln!("        not saved: {error}"),
        }
        self.findings.push((seed, text));
    }

    fn report(&self, elapsed: Duration) {
        println!(
            "{} guests, {} million instructions in {:.0} s; worker memory at most {} MiB; slowest guest {:?} \
             (seed {})",
            self.guests,
            self.instructions / 1_000_000,
            elapsed.as_secs_f64(),
            self.resident_kib_max >> 10,
            self.slowest.0,
            self.slowest.1,
        );
        let ends: Vec<_> = self.ends.iter().map(|(end, count)| format!("{end} {count}")).collect();
        println!("ends: {}", ends.join(", "));
        println!("findings: {}", self.findings.len());
        for (seed, text) in &self.findings {
            println!("  seed {seed}: {text}");
        }
    }
}

fn watch(options: &Options) -> Result<ExitCode> {
    let start = Instant::now();
    let end = start + Duration::from_secs(options.seconds);
    println!("seeds from {}, {} s, {} workers", options.seed, options.seconds, options.jobs);
    let (to, from) = mpsc::channel();
    let mut workers = Vec::new();
    for n in 0..options.jobs {
        workers.push(Worker::start(options, options.seed.wrapping_add(n), n, &to)?);
    }
    let mut totals = Totals::default();
    let mut next_id = options.jobs;
    while Instant::now() < end && totals.guests < options.guests {
        let broken = match next(&from) {
            Some((id, said)) => {
                let Some(worker) = workers.iter_mut().find(|worker| worker.id == id) else {
                    continue;
                };
                listen(worker, said, &mut totals, options)
            }
            None => None,
        };
        for worker in &mut workers {
            let hangs = worker.since.elapsed() > SILENCE_MAX;
            if hangs {
                totals.finding(options, worker.seed, format!("hangs for {SILENCE_MAX:?}"));
            }
            if hangs || broken == Some(worker.id) {
                worker.finish();
                let seed = worker.seed.wrapping_add(options.jobs);
                *worker = Worker::start(options, seed, next_id, &to)?;
                next_id += 1;
            }
        }
    }
    for worker in &mut workers {
        worker.finish();
    }
    totals.report(start.elapsed());
    Ok(if totals.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn next(from: &Receiver<(u64, Said)>) -> Option<(u64, Said)> {
    from.recv_timeout(Duration::from_millis(500)).ok()
}

/// Takes in what a worker said. Returns its id if it must be replaced.
fn listen(worker: &mut Worker, said: Said, totals: &mut Totals, options: &Options) -> Option<u64> {
    let Said::Line(line) = said else {
        let how = worker.finish();
        totals.finding(options, worker.seed, format!("the worker died: {how}"));
        return Some(worker.id);
    };
    let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
    match word {
        "start" => {
            worker.seed = rest.parse().unwrap_or(worker.seed);
            worker.since = Instant::now();
            return None;
        }
        "defect" => {
            totals.finding(options, worker.seed, rest.to_owned());
            totals.guests += 1;
            return None;
        }
        "done" => {}
        _ => return None,
    }
    let fields: Vec<_> = rest.split(' ').collect();
    let number = |n: usize| fields.get(n).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let (retired, took, resident) = (number(1), Duration::from_micros(number(2)), number(3));
    worker.guests += 1;
    totals.guests += 1;
    totals.instructions += retired;
    *totals.ends.entry(fields.first().copied().unwrap_or_default().to_owned()).or_default() += 1;
    totals.slowest = totals.slowest.max((took, worker.seed));
    totals.resident_kib_max = totals.resident_kib_max.max(resident);
    if worker.guests == WARM_UP_GUESTS {
        worker.warm_kib = Some(resident);
    }
    let grown = worker.warm_kib.is_some_and(|warm| resident > warm + GROWTH_KIB_MAX);
    if grown || resident > RESIDENT_KIB_MAX {
        let text = format!("the worker's memory has grown to {} MiB", resident >> 10);
        totals.finding(options, worker.seed, text);
        return Some(worker.id);
    }
    None
}
