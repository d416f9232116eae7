//! A guest under test, driven through its console like a person would.
//!
//! Problem: a test of the machine waits for what its guest prints, types, and judges how the machine ended.
//! Scheme: the machine runs on a thread of its own and writes into the console of a [`Dialogue`], which
//! does the waiting. Invariants: a `Guest` that is dropped has been quit and its thread is gone.

use std::fmt;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Result;
use xenolith_machine::inspect::Inspector;
use xenolith_machine::{Config, End, Handle, Machine, SerialInput};

use crate::console::{Console, Dialogue};

/// A running guest.
pub struct Guest {
    dialogue: Dialogue,
    input: SerialInput,
    handle: Handle,
    inspector: Inspector,
    ended: Receiver<End>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest").field("dialogue", &self.dialogue).finish_non_exhaustive()
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
        let output = console.clone();
        let (input, handle) = (machine.serial_input(), machine.handle());
        let inspector = machine.inspector();
        let (sender, ended) = mpsc::channel();
        let thread = thread::Builder::new().name("machine".to_owned()).spawn(move || {
            // The receiver is gone if the test has given up.
            let _ = sender.send(machine.run());
            output.close();
        })?;
        let dialogue = Dialogue::new(console);
        Ok(Self { dialogue, input, handle, inspector, ended, thread: Some(thread) })
    }

    /// Waits for `text` in the output after the last match. Returns what came before it.
    ///
    /// # Errors
    /// It didn't come in time; the message shows the end of the output.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<String> {
        self.dialogue.wait_for(text, limit)
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
    /// It didn't finish in time, or with another status than 0.
    pub fn command(&mut self, line: &str, limit: Duration) -> Result<String> {
        self.dialogue.command(line, limit, |typed| self.input.send(typed))
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
        self.dialogue.console()
    }

    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    #[must_use]
    pub fn inspector(&self) -> &Inspector {
        &self.inspector
    }

    /// An error with the end of the output, and all of it in a file.
    #[must_use]
    pub fn failure(&self, what: &str) -> anyhow::Error {
        self.dialogue.failure(what)
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
