//! One column: something that runs workloads when told to.
//!
//! Scheme: a child process whose standard input and output are the console; a thread reads its lines. The
//! protocol is described in `benches/guest/main.c`.
//!
//! What a time is. The guest's own clock says how long a workload took; from this the time is taken that the
//! vCPU's thread was runnable but had to wait for a processor of the host (`/proc/PID/task/TID/schedstat`), which is other
//! people's work. Natively it is the processor time of the program and its children, all bound to one
//! processor as the guest has one. `--raw` shows the clock's time instead. The guest's clock is compared with
//! the host's: one that runs slow would look like speed.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::files::{COMMAND_LINE, Files};
use super::process::Usage;

const BOOT_MAX: Duration = Duration::from_secs(300);
const RUN_MAX: Duration = Duration::from_secs(600);
/// By how much the guest's clock may be behind the host's: a part, and what the console takes.
const CLOCK_TOLERANCE: f64 = 0.05;
const CONSOLE_MAX: Duration = Duration::from_millis(60);

/// What to measure.
#[derive(Clone, Debug)]
pub enum Column {
    Native,
    Qemu {
        cpu: String,
    },
    Xenolith {
        program: PathBuf,
        engine: String,
        options: Vec<String>,
        /// Not this workspace's build.
        other: bool,
    },
}

impl Column {
    pub fn name(&self) -> String {
        match self {
            Self::Native => "native".to_owned(),
            Self::Qemu { .. } => "tcg".to_owned(),
            Self::Xenolith { engine, other: false, .. } => engine.clone(),
            Self::Xenolith { engine, other: true, .. } => format!("{engine}*"),
        }
    }

    pub fn describe(&self) -> String {
        match self {
            Self::Native => "the same programs on the host, bound to one processor".to_owned(),
            Self::Qemu { cpu } => {
                let version = Command::new("qemu-system-x86_64").arg("--version").output();
                let version = version.map_or("not installed".to_owned(), |output| {
                    let text = String::from_utf8_lossy(&output.stdout).into_owned();
                    text.lines().next().unwrap_or_default().to_owned()
                });
                format!("qemu-system-x86_64 -accel tcg -cpu {cpu}: {version}")
            }
            Self::Xenolith { program, engine, options, .. } => {
                format!("{} run --engine {engine} {}", program.display(), options.join(" "))
            }
        }
    }

    /// Whether it is a translator of ours.
    pub fn counts(&self) -> bool {
        matches!(self, Self::Xenolith { engine, .. } if engine == "bt")
    }

    /// A command that boots `kernel`, its console on standard input and output. Natively there is none.
    pub fn boot(
        &self,
        kernel: &std::path::Path,
        initrd: &std::path::Path,
        memory: u32,
        line: &str,
    ) -> Option<Command> {
        match self {
            Self::Native => None,
            Self::Qemu { cpu } => {
                let mut command = Command::new("qemu-system-x86_64");
                command.args(["-accel", "tcg", "-cpu", cpu, "-m", &memory.to_string()]);
                command.args(["-display", "none", "-nodefaults", "-serial", "stdio"]);
                command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
                command.args(["-append", line]);
                Some(command)
            }
            Self::Xenolith { program, engine, options, .. } => {
                let mut command = Command::new(program);
                command.args(["run", "--engine", engine, "-m", &format!("{memory}M")]);
                command.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
                command.args(["--append", line]).args(options);
                Some(command)
            }
        }
    }
}

/// What one run of a workload took.
#[derive(Clone, Debug)]
pub struct Sample {
    /// By the clock that the workload sees.
    clock: Duration,
    /// Without what others took from us.
    own: Duration,
    pub checksum: String,
}

impl Sample {
    pub fn time(&self, raw: bool) -> Duration {
        if raw { self.clock } else { self.own }
    }
}

/// A column that is alive.
#[derive(Debug)]
pub struct Target<'a> {
    column: &'a Column,
    files: &'a Files,
    memory: u32,
    live: Option<Live>,
}

#[derive(Debug)]
struct Live {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<(Instant, String)>,
    /// The last lines, for reports.
    tail: Vec<String>,
}

impl<'a> Target<'a> {
    /// Starts it and waits until it takes commands.
    ///
    /// # Errors
    /// It doesn't start.
    pub fn start(column: &'a Column, files: &'a Files, memory: u32) -> Result<Self> {
        let mut target = Self { column, files, memory, live: None };
        target.revive().with_context(|| format!("'{}' doesn't start", column.name()))?;
        Ok(target)
    }

    pub fn name(&self) -> String {
        self.column.name()
    }

    fn is_native(&self) -> bool {
        matches!(self.column, Column::Native)
    }

    fn revive(&mut self) -> Result<()> {
        let command = match self.column.boot(
            &self.files.vmlinux(),
            &self.files.initrd(),
            self.memory,
            COMMAND_LINE,
        ) {
            Some(command) => command,
            None => {
                // taskset is part of util-linux, which every Debian has.
                let mut command = Command::new("taskset");
                command.args(["--cpu-list", "0"]).arg(self.files.root().join("init"));
                command.arg(self.files.root());
                command
            }
        };
        let mut live = Live::start(command)?;
        live.wait_for(BOOT_MAX, |line| line == "ready")?;
        self.live = Some(live);
        Ok(())
    }

    /// Sends a command and gives the lines before the one that ends its answer.
    ///
    /// # Errors
    /// No such line comes.
    pub fn ask(&mut self, command: &str, end: &str) -> Result<Vec<String>> {
        let live = self.live.as_mut().context("it is not alive")?;
        live.send(command)?;
        let mut lines = Vec::new();
        loop {
            let (_, line) = live.line(RUN_MAX)?;
            if line == end {
                return Ok(lines);
            }
            lines.push(line);
        }
    }

    /// Runs a workload once. After a failure of the whole guest the next run starts another.
    ///
    /// # Errors
    /// The workload or the guest fails.
    pub fn run(&mut self, name: &str, permille: u64) -> Result<Sample> {
        if self.live.is_none() {
            self.revive()?;
        }
        let native = self.is_native();
        let live = self.live.as_mut().context("it was just started")?;
        match live.run(name, permille, native) {
            Ok(Ok(sample)) => Ok(sample),
            Ok(Err(text)) => bail!(text),
            Err(error) => {
                self.live = None;
                Err(error)
            }
        }
    }
}

impl Live {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {:?}", command.get_program()))?;
        let stdin = child.stdin.take().context("it was asked for")?;
        let (sender, lines) = channel();
        let outputs: [Option<Box<dyn std::io::Read + Send>>; 2] = [
            child.stdout.take().map(|pipe| Box::new(pipe) as _),
            child.stderr.take().map(|pipe| Box::new(pipe) as _),
        ];
        for output in outputs.into_iter().flatten() {
            let sender = sender.clone();
            thread::spawn(move || {
                let mut input = BufReader::new(output);
                let mut line = Vec::new();
                while input.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                    let text = String::from_utf8_lossy(&line).trim().to_owned();
                    if sender.send((Instant::now(), text)).is_err() {
                        return;
                    }
                    line.clear();
                }
            });
        }
        Ok(Self { child, stdin, lines, tail: Vec::new() })
    }

    fn send(&mut self, command: &str) -> Result<()> {
        self.stdin.write_all(format!("{command}\n").as_bytes()).context("its console is closed")
    }

    fn line(&mut self, limit: Duration) -> Result<(Instant, String)> {
        match self.lines.recv_timeout(limit) {
            Ok((when, line)) => {
                if self.tail.len() >= 12 {
                    self.tail.remove(0);
                }
                self.tail.push(line.clone());
                Ok((when, line))
            }
            Err(RecvTimeoutError::Timeout) => Err(self.failure("nothing came in time")),
            Err(RecvTimeoutError::Disconnected) => Err(self.failure("it ended")),
        }
    }

    fn wait_for(
        &mut self,
        limit: Duration,
        what: impl Fn(&str) -> bool,
    ) -> Result<(Instant, String)> {
        let deadline = Instant::now() + limit;
        loop {
            let (when, line) = self.line(deadline.saturating_duration_since(Instant::now()))?;
            if what(&line) {
                return Ok((when, line));
            }
        }
    }

    fn failure(&mut self, what: &str) -> anyhow::Error {
        let mut text = what.to_owned();
        if let Ok(Some(status)) = self.child.try_wait() {
            let _ = write!(text, " ({status})");
        }
        let _ = write!(text, "; its last lines: {}", self.tail.join(" | "));
        anyhow!(text)
    }

    /// The inner error is the workload's, the outer the guest's.
    fn run(&mut self, name: &str, permille: u64, native: bool) -> Result<Result<Sample, String>> {
        self.send(&format!("run {name} {permille}"))?;
        let failed = format!("failed {name} ");
        let begin = format!("begin {name}");
        let (start, line) =
            self.wait_for(RUN_MAX, |line| line == begin || line.starts_with(&failed))?;
        if let Some(text) = line.strip_prefix(&failed) {
            return Ok(Err(text.to_owned()));
        }
        let before = Usage::of(self.child.id());
        let result = format!("result {name} ");
        let (end, line) =
            self.wait_for(RUN_MAX, |line| line.starts_with(&result) || line.starts_with(&failed))?;
        let used = Usage::of(self.child.id()).since(&before);
        if let Some(text) = line.strip_prefix(&failed) {
            return Ok(Err(text.to_owned()));
        }
        let words: Vec<_> = line.split_whitespace().collect();
        let ["result", _, _, clock, checksum, cpu] = words[..] else {
            bail!("not a result: {line}")
        };
        let clock = Duration::from_nanos(clock.parse()?);
        let outside = end - start;
        let least = outside.saturating_sub(CONSOLE_MAX).mul_f64(1.0 - CLOCK_TOLERANCE);
        ensure!(
            clock >= least.saturating_sub(used.waited),
            "{name}: its clock says {clock:?}, ours {outside:?}"
        );
        let own = if native {
            Duration::from_nanos(cpu.parse()?)
        } else {
            clock.saturating_sub(used.waited)
        };
        Ok(Ok(Sample { clock, own, checksum: checksum.to_owned() }))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
