//! The machine as its user sees it.
//!
//! Problem: a run survives any number of guest resets, while its user holds one input, one output and
//! one handle. Scheme: [`Machine`] keeps what outlives a reset (configuration, loaded files, open disks, the
//! network, the console's host side, the [`Control`] cell, what the clock's battery keeps) and builds a fresh
//! [`Board`] for every start, so that a reset machine can't differ from a new one in anything else. Invariants:
//! [`Machine::run`] returns after the last board's threads are gone and its output is written, or the time for that is
//! up. Thread: the caller's.

use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use xenolith_devices::clock::lock;
use xenolith_devices::power::PowerEvent;
use xenolith_net::Network;

use crate::boot::Files;
use crate::builder::{Board, open_network};
use crate::clock;
use crate::config::{Config, ConfigError};
use crate::console::{Input, Sink};
use crate::control::{Cause, Control};
use crate::drives::{Disk, open_disks};
use crate::inspect::Inspector;
use crate::memory_map::{ACPI_TABLES, MemoryMap};
use crate::random::Random;
use crate::screen::Screen;

/// Of random numbers under counted time; vCPUs and devices have others.
const RANDOM_SEED: u64 = u64::MAX / 2;

/// How long an ended run waits for a reader that is slow to take the last output.
const DRAIN: Duration = Duration::from_secs(30);
/// The same when the user wants out.
const DRAIN_QUIT: Duration = Duration::from_millis(500);

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest switched the power off.
    PowerOff,
    /// The guest reset the machine under [`Config::no_reboot`].
    Reboot,
    /// A processor shut down without firmware or under [`Config::no_reboot`]; `dump` shows its registers.
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
pub struct Machine {
    config: Config,
    map: MemoryMap,
    files: Files,
    /// For where a kernel is put.
    random: Random,
    disks: Vec<Disk>,
    network: Option<Network>,
    sink: Sink,
    input: Input,
    screen: Screen,
    inspector: Inspector,
    control: Arc<Control>,
    /// Built by `new`, so that what is wrong shows there.
    first: Option<Board>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("config", &self.config).finish_non_exhaustive()
    }
}

/// The sending end of the guest's console.
#[derive(Clone, Debug)]
pub struct SerialInput {
    input: Input,
}

impl SerialInput {
    /// Queues bytes typed at the console. Never waits.
    pub fn send(&self, bytes: &[u8]) {
        self.input.send(bytes);
    }
}

/// Acts on a running machine from any thread.
#[derive(Clone, Debug)]
pub struct Handle {
    control: Arc<Control>,
    input: Input,
}

impl Handle {
    /// Ends the run with [`End::Quit`].
    pub fn quit(&self) {
        self.control.end(Cause::Quit);
    }

    /// Instructions that the guest's processors have retired, over all resets. While a processor runs, what
    /// it did since it last slept or reached for a device is missing.
    #[must_use]
    pub fn retired(&self) -> u64 {
        self.control.retired()
    }

    /// Tells the guest the size of the console's window.
    pub fn set_console_size(&self, columns: u16, rows: u16) {
        self.input.resize(columns, rows);
    }
}

impl Machine {
    /// Builds the machine that `config` describes. The guest's console bytes go to `serial_output`.
    ///
    /// # Errors
    /// What is wrong with `config`, in one line.
    pub fn new(config: Config, serial_output: Box<dyn Write + Send>) -> Result<Self, ConfigError> {
        config.check()?;
        clock::begin_measuring();
        let map = MemoryMap::new(config.memory_bytes);
        let files = Files::read(&config)?;
        let mut random = if config.icount { Random::fixed(RANDOM_SEED) } else { Random::host() };
        let start = files.load(&config, &map, ACPI_TABLES.0, &mut random)?;
        let disks = open_disks(&config.disks)?;
        let network = open_network(&config)?;
        let sink = Sink::new(serial_output);
        let first = Board::build(&config, &map, &start, &disks, network.as_ref(), &sink)?;
        let control = Control::new();
        let named = config.disks.iter().cloned().zip(disks.iter().cloned()).collect();
        Ok(Self {
            config,
            map,
            files,
            random,
            disks,
            network,
            sink,
            input: Input::default(),
            screen: Screen::default(),
            inspector: Inspector::new(Arc::clone(&control), named),
            control,
            first: Some(first),
        })
    }

    #[must_use]
    pub fn serial_input(&self) -> SerialInput {
        SerialInput { input: self.input.clone() }
    }

    /// The screen and what one types and points with, over all resets.
    #[must_use]
    pub fn screen(&self) -> Screen {
        self.screen.clone()
    }

    /// Looks at the machine, over all resets.
    #[must_use]
    pub fn inspector(&self) -> Inspector {
        self.inspector.clone()
    }

    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle { control: Arc::clone(&self.control), input: self.input.clone() }
    }

    /// Another board, after a reset.
    fn again(&mut self) -> Result<Board, ConfigError> {
        let start = self.files.load(&self.config, &self.map, ACPI_TABLES.0, &mut self.random)?;
        let network = self.network.as_ref();
        Board::build(&self.config, &self.map, &start, &self.disks, network, &self.sink)
    }

    /// Runs the machine to its end.
    pub fn run(mut self) -> End {
        let deadline = self.config.timeout.and_then(|limit| Instant::now().checked_add(limit));
        let mut guest_time = self.config.guest_timeout;
        let mut battery = None;
        let resets = self.config.firmware.is_some();
        loop {
            let board = match self.first.take() {
                Some(board) => Ok(board),
                None => self.again(),
            };
            let board = match board {
                Ok(board) => board,
                Err(error) => return End::Failed { message: error.to_string() },
            };
            let rtc = board.rtc();
            if let Some(battery) = &battery {
                lock(&rtc).restore(battery);
            }
            self.input.connect(Some(board.port()));
            self.screen.connect(board.screen());
            self.inspector.connect(Some(board.inspected()));
            let (cause, passed) = board.run(&self.control, deadline, guest_time, drain_limit);
            guest_time = guest_time.map(|left| left.saturating_sub(passed));
            self.input.connect(None);
            self.inspector.connect(None);
            battery = Some(lock(&rtc).battery());
            // A quit may have overtaken a reset meanwhile.
            let cause = self.control.take().unwrap_or(cause);
            return match cause {
                Cause::Power(PowerEvent::Reset) if !self.config.no_reboot => {
                    tracing::debug!("the guest resets the machine");
                    continue;
                }
                // The chip set makes a reset of a processor's shutdown, and some systems count on it. A kernel that
                // was started without firmware has more of being told.
                Cause::TripleFault { .. } if resets && !self.config.no_reboot => {
                    tracing::info!("a triple fault resets the machine");
                    continue;
                }
                Cause::Power(PowerEvent::Reset) => End::Reboot,
                Cause::Power(PowerEvent::PowerOff) => End::PowerOff,
                Cause::Power(PowerEvent::DebugExit(value)) => End::DebugExit(value),
                Cause::TripleFault { dump } => End::TripleFault { dump },
                Cause::Timeout => End::Timeout,
                Cause::Quit => End::Quit,
                Cause::Failed { message } => End::Failed { message },
            };
        }
    }
}

/// How long the console's reader may take for what is left.
fn drain_limit(cause: &Cause) -> Duration {
    match cause {
        Cause::Quit | Cause::Timeout => DRAIN_QUIT,
        _ => DRAIN,
    }
}
