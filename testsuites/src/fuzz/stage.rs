//! Running hostile guests in this process, and judging how they end.
//!
//! Problem: a defect may show as a panic of the vCPU's thread (which ends the run), of any other thread
//! (which may go unnoticed), as a run that doesn't end, or as one that ends differently the second time.
//! Scheme: a process-wide panic hook notes every panic before it prints it; the run is bounded in guest
//! time, or in host time where guest time isn't counted. What takes the whole process down is for the
//! watcher of the process. One stage per process. Invariant: every end that the machine offers is a good
//! one but [`End::Failed`].

use std::fmt;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::fs::{MemfdFlags, memfd_create};
use xenolith_machine::{Config, DiskConfig, End, Engine, Machine, NetConfig, NetSettings};

use super::guest::HostileGuest;
use super::places;
use crate::multiboot::TemporaryFile;

/// Host time of guests whose own time isn't counted or starts again.
const HOST_TIME: Duration = Duration::from_millis(40);
/// The same for guests in counted time, whose instructions may each be 64 accesses to a device.
const COUNTED_HOST_TIME: Duration = Duration::from_secs(3);
/// A machine that runs for so long after its time is up doesn't end.
const GRACE: Duration = Duration::from_secs(60);
const DISK_BYTES: usize = 1 << 20;

/// Panics of any thread since the last look.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// How a run went.
#[derive(Clone, Debug)]
pub struct Run {
    pub end: End,
    pub retired: u64,
    pub took: Duration,
    /// Host time decided how it went.
    pub cut_short: bool,
}

/// What must not happen.
#[derive(Clone, Debug)]
pub enum Defect {
    Panic(String),
    Failed(String),
    /// The run didn't end when its time was up.
    Endless(Duration),
    /// The machine refused the guest.
    Refused(String),
    /// The same guest ended in two ways.
    Differs(String),
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panic(text) => write!(f, "panic: {text}"),
            Self::Failed(text) => write!(f, "the machine failed: {text}"),
            Self::Endless(took) => write!(f, "it ended only after {took:?}"),
            Self::Refused(text) => write!(f, "the machine refuses to run it: {text}"),
            Self::Differs(text) => write!(f, "a second run differs: {text}"),
        }
    }
}

/// Where guests run.
#[derive(Debug)]
pub struct Stage {
    engine: Engine,
    kernel: File,
    disk: TemporaryFile,
}

impl Stage {
    /// A stage for guests under `engine`. Only the interpreter counts time.
    ///
    /// # Errors
    /// The host's.
    pub fn new(engine: Engine) -> Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let print = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                PANICS.lock().unwrap_or_else(PoisonError::into_inner).push(info.to_string());
                print(info);
            }));
        });
        let kernel = File::from(memfd_create("hostile guest", MemfdFlags::CLOEXEC)?);
        Ok(Self { engine, kernel, disk: TemporaryFile::new(&vec![0; DISK_BYTES])? })
    }

    /// Runs a guest to its end.
    ///
    /// # Errors
    /// A defect of ours.
    pub fn run(&mut self, guest: &HostileGuest) -> Result<Run, Defect> {
        self.load(guest).map_err(|error| Defect::Refused(error.to_string()))?;
        let counted = self.is_counted(guest);
        let limit = if counted && !guest.resets { COUNTED_HOST_TIME } else { HOST_TIME };
        // Nothing may come from outside.
        let settings = NetSettings { restrict: true, ..NetSettings::default() };
        let config = Config {
            memory_bytes: places::RAM_BYTES,
            vcpus: if self.engine == Engine::Bt { 1 } else { guest.vcpus },
            engine: self.engine,
            kernel: PathBuf::from(format!("/proc/self/fd/{}", self.kernel.as_raw_fd())),
            disks: vec![DiskConfig { path: self.disk.0.clone(), ..DiskConfig::default() }],
            balloon: true,
            net: Some(NetConfig { settings, ..NetConfig::default() }),
            icount: counted,
            guest_timeout: counted.then_some(guest.guest_time),
            timeout: Some(limit),
            no_reboot: !guest.resets,
            ..Config::default()
        };
        let start = Instant::now();
        let machine = Machine::new(config, Box::new(io::sink()))
            .map_err(|error| Defect::Refused(error.to_string()))?;
        let handle = machine.handle();
        let end = machine.run();
        let took = start.elapsed();
        let run = Run { end, retired: handle.retired(), took, cut_short: took >= limit };
        let panics = std::mem::take(&mut *PANICS.lock().unwrap_or_else(PoisonError::into_inner));
        if !panics.is_empty() {
            return Err(Defect::Panic(panics.join("; ")));
        }
        match &run.end {
            End::Failed { message } => Err(Defect::Failed(message.clone())),
            End::Quit => Err(Defect::Failed("ended by a quit that nobody asked for".to_owned())),
            _ if run.took >= limit + GRACE => Err(Defect::Endless(run.took)),
            _ => Ok(run),
        }
    }

    /// The guest runs in its own time.
    fn is_counted(&self, guest: &HostileGuest) -> bool {
        self.engine == Engine::Interp && guest.vcpus == 1
    }

    /// Whether a second run of the guest must do the same.
    #[must_use]
    pub fn is_repeatable(&self, guest: &HostileGuest) -> bool {
        guest.repeatable && self.is_counted(guest)
    }

    /// Runs a repeatable guest twice.
    ///
    /// # Errors
    /// A defect of ours; also if the runs differ.
    pub fn run_twice(&mut self, guest: &HostileGuest) -> Result<Run, Defect> {
        let (first, second) = (self.run(guest)?, self.run(guest)?);
        let same = (&first.end, first.retired) == (&second.end, second.retired);
        if same || first.cut_short || second.cut_short {
            return Ok(first);
        }
        let text = format!(
            "{:?} after {} instructions, then {:?} after {}",
            first.end, first.retired, second.end, second.retired
        );
        Err(Defect::Differs(text))
    }

    fn load(&mut self, guest: &HostileGuest) -> io::Result<()> {
        self.kernel.set_len(0)?;
        self.kernel.rewind()?;
        self.kernel.write_all(&guest.image)
    }
}
