//! A guest under test, driven through its console like a person would.
//!
//! Problem: a boot test waits for text that may never come, types, and judges how the machine ended;
//! and when it fails, what the guest said is the only evidence. Scheme: the machine runs on a thread of
//! its own and writes into a [`Console`]; the test waits on it with deadlines. Each wait looks at what came
//! after the last match, so the same prompt can be awaited again and again. Invariants: a `Guest` that is
//! dropped has been quit and its thread is gone; every error names the file with the guest's whole
//! output.

use std::fmt;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use xenolith_machine::{Config, End, Handle, Machine, SerialInput};

/// How much of the output an error message shows.
const TAIL_BYTES: usize = 2000;

/// Everything a guest has written to its console.
#[derive(Clone, Debug, Default)]
pub struct Console(Arc<(Mutex<Vec<u8>>, Condvar)>);

impl Console {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All output so far, with what isn't UTF-8 replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// Waits until `wanted` stands in the output at or after `from`: its position and end.
    fn find(&self, wanted: &[u8], from: usize, deadline: Instant) -> Option<(usize, usize)> {
        let mut bytes = self.bytes();
        let mut searched = from;
        loop {
            let new = bytes.get(searched..).unwrap_or_default();
            if let Some(at) = new.windows(wanted.len().max(1)).position(|part| part == wanted) {
                return Some((searched + at, searched + at + wanted.len()));
            }
            // The next bytes may complete a match that has begun.
            searched = bytes.len().saturating_sub(wanted.len()).max(from);
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            // Never long: a machine that has ended writes no more, and nobody would notify.
            let slice = left.min(Duration::from_millis(200));
            bytes = self.0.1.wait_timeout(bytes, slice).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bytes().extend_from_slice(bytes);
        self.0.1.notify_all();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A running guest.
pub struct Guest {
    console: Console,
    input: SerialInput,
    handle: Handle,
    ended: Receiver<End>,
    thread: Option<JoinHandle<()>>,
    /// Output up to here has been matched.
    seen: usize,
    log: PathBuf,
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest").field("log", &self.log).finish_non_exhaustive()
    }
}

impl Guest {
    /// Starts a machine.
    ///
    /// # Errors
    /// It can't be built from `config`.
    pub fn boot(config: Config) -> Result<Self> {
        let console = Console::default();
        let machine = Machine::new(config, Box::new(console.clone()))?;
        let (input, handle) = (machine.serial_input(), machine.handle());
        let (sender, ended) = mpsc::channel();
        let thread = thread::Builder::new().name("machine".to_owned()).spawn(move || {
            // The receiver is gone if the test has given up.
            let _ = sender.send(machine.run());
        })?;
        Ok(Self { console, input, handle, ended, thread: Some(thread), seen: 0, log: log_path() })
    }

    /// Waits for `text` in the output after the last match. Returns what came before it.
    ///
    /// # Errors
    /// It didn't come in time; the message shows the end of the output.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        match self.console.find(text.as_bytes(), self.seen, deadline) {
            Some((start, end)) => {
                let before =
                    String::from_utf8_lossy(&self.console.bytes()[self.seen..start]).into_owned();
                self.seen = end;
                Ok(before)
            }
            None => Err(self.failure(&format!("no {text:?} on the console in {limit:?}"))),
        }
    }

    /// Types bytes.
    pub fn type_bytes(&self, bytes: &[u8]) {
        self.input.send(bytes);
    }

    /// Types a line and Enter.
    pub fn type_line(&self, line: &str) {
        self.input.send(line.as_bytes());
        self.input.send(b"\r");
    }

    /// Runs a shell command and returns what it printed, without the echo of the command.
    ///
    /// # Errors
    /// It didn't finish in time.
    pub fn command(&mut self, line: &str, limit: Duration) -> Result<String> {
        // Typed in two halves, so that the echo of the line doesn't look like the mark itself.
        self.type_line(&format!("{line}; echo do''ne:$?:"));
        self.wait_for("\n", limit)?;
        let output = self.wait_for("done:", limit)?;
        let status = self.wait_for(":", limit)?;
        let output = output.replace('\r', "");
        if status == "0" {
            Ok(output)
        } else {
            Err(self.failure(&format!("{line:?} ended with status {status}: {output}")))
        }
    }

    /// Waits until the machine ends by itself.
    ///
    /// # Errors
    /// It didn't in time.
    pub fn end(mut self, limit: Duration) -> Result<End> {
        match self.ended.recv_timeout(limit) {
            Ok(end) => {
                self.join();
                Ok(end)
            }
            Err(RecvTimeoutError::Timeout) => {
                Err(self.failure(&format!("the machine still ran after {limit:?}")))
            }
            Err(RecvTimeoutError::Disconnected) => Err(self.failure("the machine's thread died")),
        }
    }

    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
    }

    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// An error with the end of the output, and all of it in a file.
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

    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported where it happened.
            let _ = thread.join();
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.handle.quit();
        self.join();
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
}
