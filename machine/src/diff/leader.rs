//! The side with the machine.
//!
//! Problem: lockstep needs a machine that stands still between two steps, and time that depends on
//! nothing but the steps made. Scheme: a board under counted time is taken apart; its engine is ours
//! to step, and what its vCPU loop would do (run timers, jump over sleep, notice the end) is done here.
//! Sleep is jumped over without waiting. Invariants: nothing but [`Leader::step`] moves the machine, so
//! the same configuration makes the same steps every time. Thread: one, which [`Leader::build`] and the
//! steps share.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use xenolith_cpu::env::attention;
use xenolith_cpu::state::Rflags;
use xenolith_devices::power::PowerEvent;
use xenolith_mmu::GuestRam;

use super::replay::{Event, Log, Recorder};
use super::{DiffConfig, DiffError, Stop};
use crate::boot::{Files, Start};
use crate::builder::{Board, Clockwork, EngineParts};
use crate::config::{self, Config, ConfigError};
use crate::console::Sink;
use crate::engine::{Engine, Exit};
use crate::memory_map::{ACPI_TABLES, MemoryMap};
use crate::random::Random;
use xenolith_devices::clock::{Clock, lock};

/// COM1's data and line control registers, whose output `--until` reads.
const COM1: u16 = 0x3f8;
const COM1_LCR: u16 = COM1 + 3;
const DLAB: u32 = 0x80;

/// What one step was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Instructions were executed, or an exception delivered.
    Ran,
    /// Only time passed.
    Waited,
    Ended(Stop),
}

/// What both sides are made from.
#[derive(Debug)]
pub struct Plan {
    pub config: Config,
    pub map: MemoryMap,
    start: Start,
}

impl Plan {
    /// Reads the guest's files.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub fn new(config: &DiffConfig) -> Result<Self, DiffError> {
        let config = Config {
            vcpus: 1,
            icount: true,
            disks: Vec::new(),
            engine: config::Engine::Interp,
            // The follower may be QEMU, which is brought into flat protected mode only; and a kernel's unpacker
            // is code to compare, too.
            unpacker: config::Unpacker::Guest,
            ..config.machine.clone()
        };
        config.check()?;
        let map = MemoryMap::new(config.memory_bytes);
        let files = Files::read(&config)?;
        let start = files.load(&config, &map, ACPI_TABLES.0, &mut Random::fixed(0))?;
        Ok(Self { config, map, start })
    }

    /// Builds a machine and takes it apart.
    ///
    /// # Errors
    /// The host refuses something.
    pub fn parts(&self) -> Result<(EngineParts, Clockwork), DiffError> {
        let mut taken = None;
        let sink = Sink::new(Box::new(io::sink()));
        let mut make = |parts: EngineParts| {
            let state = parts.state.clone();
            taken = Some(parts);
            Ok(Box::new(Absent(state)) as Box<dyn Engine>)
        };
        let board =
            Board::build_with(&self.config, &self.map, &self.start, &[], None, &sink, &mut make)?;
        let clockwork = board.into_clockwork();
        match (taken, clockwork) {
            (Some(parts), Some(clockwork)) => Ok((parts, clockwork)),
            _ => Err(DiffError::Config(ConfigError::Host {
                what: "build the machine",
                reason: "it has no processor under counted time".to_owned(),
            })),
        }
    }
}

/// Stands where the engine was taken out.
struct Absent(xenolith_cpu::CpuState);

impl Engine for Absent {
    fn run(&mut self, _: u64) -> Exit {
        Exit::Halted
    }
    fn state(&mut self) -> &mut xenolith_cpu::CpuState {
        &mut self.0
    }
    fn state_changed(&mut self) {}
    fn dump(&self) -> String {
        String::new()
    }
}

/// See the module's head.
pub struct Leader<E> {
    pub engine: E,
    pub log: Log,
    pub ram: Arc<GuestRam>,
    clockwork: Clockwork,
    console: Console,
}

impl<E> std::fmt::Debug for Leader<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leader").field("clockwork", &self.clockwork).finish_non_exhaustive()
    }
}

impl<E: Engine> Leader<E> {
    /// A fresh machine whose engine `make` makes.
    ///
    /// # Errors
    /// The host refuses something.
    pub fn build(
        plan: &Plan,
        until: Option<&str>,
        make: impl FnOnce(EngineParts) -> Result<E, ConfigError>,
    ) -> Result<Self, DiffError> {
        let (mut parts, clockwork) = plan.parts()?;
        let log = Log::default();
        let ram = Arc::clone(parts.mmu.guest_ram());
        ram.code().log_device_stores();
        parts.env = Box::new(Recorder::new(parts.env, Arc::clone(&log)));
        let engine = make(parts)?;
        Ok(Self { engine, log, ram, clockwork, console: Console::new(until) })
    }

    /// Tells time how many instructions have been executed.
    pub fn tell_retired(&self, retired: u64) {
        self.clockwork.clock.set_retired(retired);
    }

    /// Makes timers act that are due, and looks for the end of the run.
    pub fn settle(&mut self) -> Option<Stop> {
        let Clockwork { clock, timers, pins, power } = &self.clockwork;
        if let Some(event) = power.get() {
            return Some(match event {
                PowerEvent::PowerOff => Stop::PowerOff,
                PowerEvent::Reset => Stop::Reset,
                PowerEvent::DebugExit(value) => Stop::DebugExit(value),
            });
        }
        if pins.take(attention::INIT) != 0 {
            return Some(Stop::Reset);
        }
        pins.take_sipi();
        pins.take(attention::TIMER);
        if timers.earliest_ns().is_some_and(|ns| ns <= clock.now_ns()) {
            timers.run_due(clock.now_ns());
        }
        pins.take(attention::TIMER);
        None
    }

    /// One step of the engine. [`Leader::settle`] comes before.
    pub fn step(&mut self) -> Step {
        let exit = self.engine.step();
        self.after(exit)
    }

    /// What a step was that the engine came back from like this.
    pub fn after(&mut self, exit: Exit) -> Step {
        if self.console.read(&self.log) {
            return Step::Ended(Stop::Marker);
        }
        match exit {
            Exit::Budget => Step::Ran,
            Exit::Attention => Step::Waited,
            Exit::Shutdown => Step::Ended(Stop::TripleFault),
            Exit::Halted => self.sleep(),
        }
    }

    /// The attention word.
    pub fn pins(&self) -> u32 {
        self.clockwork.pins.word().load(Ordering::SeqCst)
    }

    /// Jumps to the next timer.
    fn sleep(&mut self) -> Step {
        let Clockwork { clock, timers, .. } = &self.clockwork;
        if !self.engine.state().flag(Rflags::IF) {
            return Step::Ended(Stop::Asleep);
        }
        let Some(next_ns) = timers.earliest_ns() else { return Step::Ended(Stop::Asleep) };
        clock.skip_to(next_ns);
        timers.run_due(clock.now_ns());
        Step::Waited
    }
}

/// Reads COM1's output from the log, for `--until`.
#[derive(Debug)]
struct Console {
    marker: Vec<u8>,
    line: Vec<u8>,
    dlab: bool,
}

/// Output kept to look for the marker in.
const LINE_MAX: usize = 4096;

impl Console {
    fn new(until: Option<&str>) -> Self {
        let marker = until.unwrap_or_default().as_bytes().to_vec();
        Self { marker, line: Vec::new(), dlab: false }
    }

    /// Whether the marker has now been written. Looks at the events of the step just made.
    fn read(&mut self, log: &Log) -> bool {
        if self.marker.is_empty() {
            return false;
        }
        let log = lock(log);
        for event in &*log {
            match *event {
                Event::PortWrite { port: COM1_LCR, value, .. } => self.dlab = value & DLAB != 0,
                Event::PortWrite { port: COM1, value, .. } if !self.dlab => {
                    if self.line.len() > LINE_MAX + self.marker.len() {
                        self.line.drain(..LINE_MAX);
                    }
                    self.line.push(value as u8);
                    if self.line.ends_with(&self.marker) {
                        return true;
                    }
                }
                _ => {}
            }
        }
        false
    }
}
