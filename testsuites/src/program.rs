//! A program under test or beside it, driven through its standard streams: `xenolith` itself, or QEMU.
//!
//! Problem: what a person gets is the program with its exit status and two output streams, and not the
//! machine behind it; and only a process can be killed. Scheme: a child with three pipes; one thread for
//! each output copies it into a [`Console`]. Invariant: a `Program` that is dropped has ended.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};

use crate::console::{Console, Dialogue};

/// A running program.
#[derive(Debug)]
pub struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    dialogue: Dialogue,
    stderr: Console,
    readers: Vec<JoinHandle<()>>,
}

/// What a program left behind.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Program {
    /// Starts `command`.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
        let (stdout, stderr) = (Console::default(), Console::default());
        let mut readers = Vec::new();
        if let Some(pipe) = child.stdout.take() {
            readers.push(copy(pipe, stdout.clone()));
        }
        if let Some(pipe) = child.stderr.take() {
            readers.push(copy(pipe, stderr.clone()));
        }
        let stdin = child.stdin.take();
        Ok(Self { child, stdin, dialogue: Dialogue::new(stdout), stderr, readers })
    }

    /// Waits for `text` in the output after the last match. Returns what came before it.
    ///
    /// # Errors
    /// It didn't come in time, or the program has ended.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<String> {
        self.dialogue.wait_for(text, limit).with_context(|| complaint(&self.dialogue, &self.stderr))
    }

    /// Types a line and Enter.
    pub fn type_line(&mut self, line: &str) {
        type_into(&mut self.stdin, format!("{line}\r").as_bytes());
    }

    /// Runs a shell command in the guest and returns what it printed.
    ///
    /// # Errors
    /// It didn't finish in time, or with another status than 0.
    pub fn command(&mut self, line: &str, limit: Duration) -> Result<String> {
        let stdin = &mut self.stdin;
        self.dialogue
            .command(line, limit, |typed| type_into(stdin, typed))
            .with_context(|| complaint(&self.dialogue, &self.stderr))
    }

    /// Processor time that the program has used.
    ///
    /// # Errors
    /// It has ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name, the second field, may hold anything but ends at the last parenthesis; utime and
        // stime are fields 14 and 15, in ticks.
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11);
        let mut ticks = || -> Result<u64> { Ok(fields.next().context("a short stat")?.parse()?) };
        let ticks = ticks()? + ticks()?;
        // SAFETY: no pointers.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        Ok(Duration::from_millis(ticks * 1000 / u64::try_from(per_second)?.max(1)))
    }

    /// Processor time that each of its threads called `name` and a number has used. Nothing of what it had to wait for
    /// a processor is in it, so it hardly depends on what else runs.
    ///
    /// # Errors
    /// It has ended.
    pub fn thread_times(&self, name: &str) -> Result<Vec<Duration>> {
        self.thread_statistics(name, 0)
    }

    /// How long each of those threads has waited for a processor that somebody else had.
    ///
    /// # Errors
    /// It has ended.
    pub fn thread_waits(&self, name: &str) -> Result<Vec<Duration>> {
        self.thread_statistics(name, 1)
    }

    fn thread_statistics(&self, name: &str, field: usize) -> Result<Vec<Duration>> {
        let mut times = Vec::new();
        for thread in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let thread = thread?.path();
            let called = fs::read_to_string(thread.join("comm"))?;
            let number = called.trim_end().strip_prefix(name);
            if number.is_some_and(|number| number.parse::<u32>().is_ok()) {
                // Nanoseconds on a processor, waiting for one, and how often.
                let statistics = fs::read_to_string(thread.join("schedstat"))?;
                let time = statistics.split(' ').nth(field).context("a short schedstat")?;
                times.push(Duration::from_nanos(time.parse()?));
            }
        }
        Ok(times)
    }

    /// How it has ended, if it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        // No error is known for a child of ours.
        self.child.try_wait().ok().flatten()
    }

    /// Ends the program as SIGKILL does: without a word. Returns all that was on its standard output.
    ///
    /// # Errors
    /// It has ended before.
    pub fn kill(mut self) -> Result<String> {
        if let Some(status) = self.child.try_wait()? {
            bail!("it ended before it was killed: {status}");
        }
        self.child.kill()?;
        self.child.wait()?;
        self.join();
        Ok(self.dialogue.console().text())
    }

    /// Has the guest's shell power its machine off, and waits until the program has ended well.
    ///
    /// # Errors
    /// It didn't in time, or says that something failed.
    pub fn power_off(mut self, limit: Duration) -> Result<Ended> {
        self.type_line("poweroff");
        let ended = self.end(limit)?;
        ensure!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
        Ok(ended)
    }

    /// Waits until the program ends by itself.
    ///
    /// # Errors
    /// It didn't in time.
    pub fn end(mut self, limit: Duration) -> Result<Ended> {
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                return Err(self.dialogue.failure(&format!("it still ran after {limit:?}")));
            }
            thread::sleep(Duration::from_millis(20));
        };
        self.join();
        let stdout = self.dialogue.console().bytes();
        Ok(Ended { status, stdout, stderr: self.stderr.text() })
    }

    /// Lets the readers come to the pipes' ends.
    fn join(&mut self) {
        for reader in self.readers.drain(..) {
            // A panic there has been reported where it happened.
            let _ = reader.join();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Errors mean that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a program has said on its standard error: all of it, if the program has ended.
fn complaint(dialogue: &Dialogue, stderr: &Console) -> String {
    if dialogue.console().wait_for_close(Duration::ZERO) {
        stderr.wait_for_close(Duration::from_secs(10));
    }
    stderr.text()
}

fn copy(mut pipe: impl Read + Send + 'static, mut console: Console) -> JoinHandle<()> {
    thread::spawn(move || {
        // Either end of the pipe may go first.
        let _ = io::copy(&mut pipe, &mut console);
        console.close();
    })
}

fn type_into(stdin: &mut Option<ChildStdin>, bytes: &[u8]) {
    if let Some(pipe) = stdin {
        // A program that has ended is noticed by the next wait.
        let _ = pipe.write_all(bytes);
    }
}

/// A command that starts `xenolith`, without the settings of the person who runs the tests.
///
/// # Errors
/// There is no such program and it can't be built.
pub fn xenolith() -> Result<Command> {
    let mut command = Command::new(path()?);
    command.env_remove("XENOLITH_LOG").env_remove("XENOLITH_CACHE");
    Ok(command)
}

/// The program of this very build: cargo puts it beside the folder of the tests, and beside our own programs. A run
/// of all tests has built it; a run of only this package's may find an old one, or none.
fn path() -> Result<PathBuf> {
    if let Some(path) = env::var_os("XENOLITH_PROGRAM") {
        return Ok(path.into());
    }
    let test = env::current_exe()?;
    let folder = test.parent().context("a test outside a target folder")?;
    let in_deps = folder.file_name().is_some_and(|name| name == "deps");
    let folder = if in_deps { folder.parent().unwrap_or(folder) } else { folder };
    let path = folder.join("xenolith");
    if !path.is_file() {
        let release = folder.file_name().is_some_and(|name| name == "release");
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--package", "xenolith", "--profile"]);
        cargo.arg(if release { "release" } else { "test" });
        let status = cargo.status().context("cargo")?;
        if !status.success() || !path.is_file() {
            bail!("{} is not there and cargo can't build it", path.display());
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_outputs_and_the_status_are_kept_apart() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo ready; read line; echo \"got $line\"; echo oops >&2; exit 5"]);
        let mut program = Program::start(command).expect("a shell");
        program.wait_for("ready\n", Duration::from_secs(120)).expect("it comes");
        program.type_line("word");
        // read takes no carriage return for an end of line.
        type_into(&mut program.stdin, b"\n");
        program.wait_for("got word", Duration::from_secs(120)).expect("it comes");
        let ended = program.end(Duration::from_secs(120)).expect("it ends");
        assert_eq!(ended.status.code(), Some(5));
        assert_eq!(ended.stdout, b"ready\ngot word\r\n");
        assert_eq!(ended.stderr, "oops\n");

        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec >&-; sleep 0.2; echo oops >&2"]);
        let mut program = Program::start(command).expect("a shell");
        let error = program.wait_for("ready\n", Duration::from_secs(120)).expect_err("it ends");
        assert!(format!("{error:#}").contains("oops"), "{error:#}");
    }

    #[test]
    fn processor_time_is_that_of_the_program() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo x; read y"]);
        let mut program = Program::start(command).expect("a shell");
        program.wait_for("x", Duration::from_secs(60)).expect("it comes");
        let used = program.cpu_time().expect("it runs");
        assert!(used > Duration::from_millis(10) && used < Duration::from_secs(60), "{used:?}");
        program.kill().expect("it runs");
    }
}
