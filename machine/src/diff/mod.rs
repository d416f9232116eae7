//! Lockstep: the same guest in two engines, up to the first difference.
//!
//! Problem: a wrong instruction shows itself millions of instructions later as a crash somewhere else;
//! whoever looks for it must be led to the instruction. Scheme: a *leader* with a whole machine under
//! counted time takes steps, and a *follower* repeats each and is compared with it. The follower has no
//! devices: what the leader's instructions got from ports, device memory, time, chance and interrupt
//! controller is recorded and given to the follower at the same instruction ([`replay`]).
//!
//! - [`ours`]: the follower is the interpreter, on RAM of its own. Every step's registers and stored pages
//!   are compared, all RAM now and then. A difference in RAM that no compared store explains is traced to
//!   its step by a second run, which is the same as the first.
//! - [`qemu`]: the follower is QEMU, driven through its debugger's protocol. Stretches between two looks
//!   at the machine run at QEMU's speed up to a breakpoint; one that ends differently is taken back on
//!   both sides and gone through in single steps.
//!
//! Invariants: runs are functions of their configuration; the guest never sees that it is compared.
//! What can and can't be compared: docs/testing.md, "Lockstep". Thread: one, of its own, since the
//! translator blocks signals on it.

mod compare;
mod decoded;
pub(crate) mod gdb;
mod leader;
mod memory;
mod ours;
pub(crate) mod peer;
mod qemu;
mod replay;
mod report;
mod segments;
mod watch;
mod worn;

use std::time::Duration;

use xenolith_cpu::CpuState;

use crate::config::{Config, ConfigError};

pub use compare::Field;
pub use report::{BlockRun, Difference, Executed, History, MemoryRow};

/// The second engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// The interpreter with itself: finds what isn't deterministic.
    Interp,
    /// The translator leads, the interpreter follows.
    Bt,
    /// The interpreter leads, QEMU follows.
    Qemu,
}

/// Changes the leader's state behind a step, given the step's number: plants a difference, for tests.
pub type Tamper = Box<dyn FnMut(u64, &mut CpuState) + Send>;

/// What to compare.
pub struct DiffConfig {
    /// The guest. Disks and the engine are not looked at.
    pub machine: Config,
    pub against: Against,
    /// End when the guest has written this to COM1.
    pub until: Option<String>,
    /// End after so many steps of the leader.
    pub steps: Option<u64>,
    /// QEMU only: compare after every instruction instead of after stretches.
    pub every_instruction: bool,
    pub tamper: Option<Tamper>,
    /// Called now and then with the number of instructions done.
    pub progress: Option<Box<dyn FnMut(u64) + Send>>,
}

impl DiffConfig {
    #[must_use]
    pub fn new(machine: Config, against: Against) -> Self {
        Self {
            machine,
            against,
            until: None,
            steps: None,
            every_instruction: false,
            tamper: None,
            progress: None,
        }
    }

    fn tamper(&mut self, step: u64, state: &mut CpuState) {
        if let Some(tamper) = &mut self.tamper {
            tamper(step, state);
        }
    }

    fn report_progress(&mut self, instructions: u64) {
        if let Some(progress) = &mut self.progress {
            progress(instructions);
        }
    }
}

impl std::fmt::Debug for DiffConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiffConfig")
            .field("machine", &self.machine)
            .field("against", &self.against)
            .finish_non_exhaustive()
    }
}

/// Why a run without a difference ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    Steps,
    Marker,
    PowerOff,
    Reset,
    DebugExit(u32),
    TripleFault,
    /// Halted, and nothing will wake it.
    Asleep,
}

/// What was compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub stop: Stop,
    pub steps: u64,
    pub instructions: u64,
    /// Steps whose result came from the machine and was given to QEMU instead of compared.
    pub injected: u64,
    /// Steps in loops that ask the machine each time around, and had been compared often: QEMU got what came of them.
    pub jumped: u64,
    /// Stretches that had to be gone through in single steps, though they came out equal.
    pub repeated: u64,
    /// Differences that the manual allows: undefined flags, accessed and dirty bits.
    pub allowed: u64,
    pub time: Duration,
}

/// The end of a lockstep run.
#[derive(Clone, Debug)]
pub enum Outcome {
    Equal(Summary),
    Different(Box<Difference>),
}

/// Why there is nothing to compare. `Display` is one line.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("--against qemu: {0}")]
    Qemu(String),
    #[error("the host gives no thread: {0}")]
    Thread(std::io::Error),
    #[error(
        "two runs of the same configuration were not the same: give --against interp to see why"
    )]
    Unsteady,
    #[error("a defect of Xenolith stopped the comparison")]
    Panicked,
}

/// Runs a guest in two engines until they differ or the run ends.
///
/// # Errors
/// The machine can't be built, or there is no QEMU.
pub fn run(config: DiffConfig) -> Result<Outcome, DiffError> {
    let body = move || match config.against {
        Against::Interp | Against::Bt => ours::run(config),
        Against::Qemu => qemu::run(config),
    };
    let thread = std::thread::Builder::new().name("lockstep".to_owned());
    let thread = thread.spawn(body).map_err(DiffError::Thread)?;
    thread.join().unwrap_or(Err(DiffError::Panicked))
}
