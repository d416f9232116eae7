//! The machine as its user sees it.

use std::fmt;
use std::io::Write;

use crate::config::{Config, ConfigError};

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest switched the power off.
    PowerOff,
    /// The guest reset the machine under [`Config::no_reboot`].
    Reboot,
    /// A processor shut down; `dump` shows its registers.
    TripleFault { dump: String },
    /// The guest wrote this value to the debug-exit port; the customary status is `(V << 1) | 1`.
    DebugExit(u32),
    /// [`Config::timeout`] passed.
    Timeout,
    /// [`Handle::quit`] was called.
    Quit,
    /// A defect of ours stopped a thread of the machine; `message` is for a bug report.
    Failed { message: String },
}

/// A machine, ready to run.
pub struct Machine {}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").finish_non_exhaustive()
    }
}

/// The sending end of the guest's console.
#[derive(Clone, Debug)]
pub struct SerialInput {}

impl SerialInput {
    /// Queues bytes typed at the console.
    pub fn send(&self, _bytes: &[u8]) {}
}

/// Acts on a running machine from any thread.
#[derive(Clone, Debug)]
pub struct Handle {}

impl Handle {
    /// Ends the run with [`End::Quit`].
    pub fn quit(&self) {}
    /// Tells the guest the size of the console's window.
    pub fn set_console_size(&self, _columns: u16, _rows: u16) {}
}

impl Machine {
    /// Builds the machine that `config` describes. The guest's console bytes go to `serial_output`.
    ///
    /// # Errors
    /// What is wrong with `config`, in one line.
    pub fn new(config: Config, _serial_output: Box<dyn Write + Send>) -> Result<Self, ConfigError> {
        config.check()?;
        Err(ConfigError::Host { what: "run a guest", reason: "not built yet".to_owned() })
    }

    #[must_use]
    pub fn serial_input(&self) -> SerialInput {
        SerialInput {}
    }

    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle {}
    }

    /// Runs the machine to its end.
    pub fn run(self) -> End {
        End::Quit
    }
}
