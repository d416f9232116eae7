//! What a guest prints, and the conversation that a test has with it.
//!
//! Problem: a test waits for text that may never come, types, and judges the answer; and when it fails,
//! what the guest said is the only evidence. Scheme: whoever runs the guest writes into a [`Console`]; a
//! [`Dialogue`] waits on it with deadlines, each time behind the last match, so the same prompt can be
//! awaited again and again. Invariants: a wait ends at its deadline, or when the console is closed; every
//! error names the file with the guest's whole output. Any thread writes, the test's thread waits.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// How much of the output an error message shows.
const TAIL_BYTES: usize = 2000;

#[derive(Debug, Default)]
struct Output {
    bytes: Vec<u8>,
    /// Nothing more will come.
    closed: bool,
}

/// Everything a guest has written to its console.
#[derive(Clone, Debug, Default)]
pub struct Console(Arc<(Mutex<Output>, Condvar)>);

impl Console {
    fn output(&self) -> MutexGuard<'_, Output> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All output so far, with what isn't UTF-8 replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output().bytes).into_owned()
    }

    /// All output so far.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.output().bytes.clone()
    }

    /// Says that nothing more will come, so that nobody waits for it.
    pub fn close(&self) {
        self.output().closed = true;
        self.0.1.notify_all();
    }

    /// Waits until nothing more will come; whether that is so.
    pub fn wait_for_close(&self, limit: Duration) -> bool {
        let wait = self.0.1.wait_timeout_while(self.output(), limit, |output| !output.closed);
        wait.unwrap_or_else(PoisonError::into_inner).0.closed
    }

    /// Waits until `wanted` stands in the output at or after `from`: its position and end.
    fn find(&self, wanted: &[u8], from: usize, deadline: Instant) -> Option<(usize, usize)> {
        let mut output = self.output();
        let mut searched = from;
        loop {
            let new = output.bytes.get(searched..).unwrap_or_default();
            if let Some(at) = new.windows(wanted.len().max(1)).position(|part| part == wanted) {
                return Some((searched + at, searched + at + wanted.len()));
            }
            // The next bytes may complete a match that has begun.
            searched = output.bytes.len().saturating_sub(wanted.len()).max(from);
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || output.closed {
                return None;
            }
            output = self.0.1.wait_timeout(output, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output().bytes.extend_from_slice(bytes);
        self.0.1.notify_all();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A conversation over a console.
pub struct Dialogue {
    console: Console,
    /// Output up to here has been matched.
    seen: usize,
    log: PathBuf,
}

impl fmt::Debug for Dialogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialogue").field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl Dialogue {
    #[must_use]
    pub fn new(console: Console) -> Self {
        Self { console, seen: 0, log: log_path() }
    }

    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Waits for `text` in the output after the last match. Returns what came before it.
    ///
    /// # Errors
    /// It didn't come in time; the message shows the end of the output.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<String> {
        match self.console.find(text.as_bytes(), self.seen, Instant::now() + limit) {
            Some((start, end)) => {
                let before = self.console.output().bytes[self.seen..start].to_vec();
                self.seen = end;
                Ok(String::from_utf8_lossy(&before).into_owned())
            }
            None => Err(self.failure(&format!("no {text:?} on the console in {limit:?}"))),
        }
    }

    /// Runs a shell command by typing it with `send` and returns what it printed, without the echo of
    /// the command.
    ///
    /// # Errors
    /// It didn't finish in time, or with another status than 0.
    pub fn command(
        &mut self,
        line: &str,
        limit: Duration,
        send: impl FnOnce(&[u8]),
    ) -> Result<String> {
        // The marks are typed in two halves, so that the echo of the line doesn't look like them.
        send(format!("echo be''gin; {line}; echo do''ne:$?:\r").as_bytes());
        // A console behind another one may come with two carriage returns.
        self.wait_for("begin\r", limit)?;
        let output = self.wait_for("done:", limit)?.replace('\r', "");
        let status = self.wait_for(":", limit)?;
        if status == "0" {
            Ok(output.strip_prefix('\n').unwrap_or(&output).to_owned())
        } else {
            Err(self.failure(&format!("{line:?} ended with status {status}: {output}")))
        }
    }

    /// An error with the end of the output, and all of it in a file.
    #[must_use]
    pub fn failure(&self, what: &str) -> anyhow::Error {
        let text = self.console.text();
        let saved = match fs::write(&self.log, &text) {
            Ok(()) => format!("all of it in {}", self.log.display()),
            Err(error) => format!("not saved: {error}"),
        };
        let mut tail_at = text.len().saturating_sub(TAIL_BYTES);
        while !text.is_char_boundary(tail_at) {
            tail_at += 1;
        }
        anyhow!("{what}\n--- end of the guest's output ({saved}) ---\n{}\n---", &text[tail_at..])
    }
}

/// A fresh name in the folder for logs: `XENOLITH_LOGS`, or the system's for temporary files.
fn log_path() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let folder = std::env::var_os("XENOLITH_LOGS").map_or_else(std::env::temp_dir, PathBuf::from);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    folder.join(format!("xenolith-guest-{}-{n}.log", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn text_is_found_though_it_comes_in_pieces() {
        let console = Console::default();
        let mut writer = console.clone();
        let thread = thread::spawn(move || {
            for piece in ["boot", "ing\nlo", "gin: lo", "gin: "] {
                thread::sleep(Duration::from_millis(5));
                writer.write_all(piece.as_bytes()).expect("memory");
            }
        });
        let deadline = Instant::now() + Duration::from_secs(10);
        let first = console.find(b"login: ", 0, deadline).expect("it comes");
        assert_eq!(first, (8, 15));
        assert_eq!(console.find(b"login: ", first.1, deadline), Some((15, 22)));
        thread.join().expect("the writer is done");
        let soon = Instant::now() + Duration::from_millis(20);
        assert_eq!(console.find(b"login: ", 16, soon), None);
    }

    #[test]
    fn nobody_waits_for_a_closed_console() {
        let console = Console::default();
        console.close();
        let deadline = Instant::now() + Duration::from_secs(100);
        assert_eq!(console.find(b"x", 0, deadline), None);
        assert!(Instant::now() < deadline);
        assert!(console.wait_for_close(Duration::ZERO));
        assert!(!Console::default().wait_for_close(Duration::from_millis(1)));
    }

    #[test]
    fn a_commands_answer_is_told_from_its_echo() {
        let console = Console::default();
        let mut dialogue = Dialogue::new(console.clone());
        let mut shell = console;
        let limit = Duration::from_secs(10);
        let answer = dialogue.command("seq 2", limit, |typed| {
            // As a shell echoes a line longer than the screen is wide.
            let (first, second) = typed.split_at(14);
            for part in [first, b"\r\n", second, b"\nbegin\r\n1\r\n2\r\ndone:0:\r\n# "] {
                shell.write_all(part).expect("memory");
            }
        });
        assert_eq!(answer.expect("status 0"), "1\n2\n");
    }
}
