//! What one side's world did, written down for the other.
//!
//! Problem: two engines that run the same guest must see the same device registers, time stamps and
//! interrupts, and only one machine has devices. Scheme: the leader's environment is wrapped in a
//! [`Recorder`] that keeps every call with its answer; the follower's is a [`Replayer`] that gives the
//! same answers, in order, and notes when it is asked something else: that is a difference too.
//! Invariant: the queue is empty whenever the two sides agree. Thread: the one that drives both; the
//! mutex is for the traits' sake.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use xenolith_cpu::Gpa;
use xenolith_cpu::env::{Env, Refused, attention};
use xenolith_devices::clock::lock;

/// One call of [`Env`] with its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    PortRead { port: u16, size: u8, value: u32 },
    PortWrite { port: u16, size: u8, value: u32 },
    DeviceRead { gpa: u64, size: u8, value: u64 },
    DeviceWrite { gpa: u64, size: u8, value: u64 },
    TimeStamp(u64),
    Random(u64),
    Interrupt(Option<u8>),
    DeviceMsrRead { msr: u32, value: Option<u64> },
    DeviceMsrWrite { msr: u32, value: u64, done: bool },
    PriorityRead(u8),
    PriorityWrite(u8),
    CoprocessorError,
}

/// Events in order, shared by both sides.
pub type Log = Arc<Mutex<VecDeque<Event>>>;

/// The leader's world: passes everything on and keeps it.
pub struct Recorder {
    world: Box<dyn Env>,
    log: Log,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("log", &self.log).finish_non_exhaustive()
    }
}

impl Recorder {
    #[must_use]
    pub fn new(world: Box<dyn Env>, log: Log) -> Self {
        Self { world, log }
    }

    fn keep(&self, event: Event) {
        lock(&self.log).push_back(event);
    }
}

impl Env for Recorder {
    fn pio_read(&mut self, port: u16, size: u8) -> u32 {
        let value = self.world.pio_read(port, size);
        self.keep(Event::PortRead { port, size, value });
        value
    }
    fn pio_write(&mut self, port: u16, size: u8, value: u32) {
        self.world.pio_write(port, size, value);
        self.keep(Event::PortWrite { port, size, value });
    }
    fn mmio_read(&mut self, gpa: Gpa, size: u8) -> u64 {
        let value = self.world.mmio_read(gpa, size);
        self.keep(Event::DeviceRead { gpa: gpa.0, size, value });
        value
    }
    fn mmio_write(&mut self, gpa: Gpa, size: u8, value: u64) {
        self.world.mmio_write(gpa, size, value);
        self.keep(Event::DeviceWrite { gpa: gpa.0, size, value });
    }
    fn tsc(&mut self) -> u64 {
        let value = self.world.tsc();
        self.keep(Event::TimeStamp(value));
        value
    }
    fn set_retired(&mut self, retired: u64) {
        self.world.set_retired(retired);
    }
    fn random(&mut self) -> u64 {
        let value = self.world.random();
        self.keep(Event::Random(value));
        value
    }
    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        let vector = self.world.acknowledge_interrupt();
        self.keep(Event::Interrupt(vector));
        vector
    }
    fn device_msr_read(&mut self, msr: u32) -> Result<u64, Refused> {
        let value = self.world.device_msr_read(msr);
        self.keep(Event::DeviceMsrRead { msr, value: value.ok() });
        value
    }
    fn device_msr_write(&mut self, msr: u32, value: u64, tsc_offset: u64) -> Result<(), Refused> {
        let done = self.world.device_msr_write(msr, value, tsc_offset);
        self.keep(Event::DeviceMsrWrite { msr, value, done: done.is_ok() });
        done
    }
    fn tsc_moved(&mut self, tsc_offset: u64) {
        self.world.tsc_moved(tsc_offset);
    }
    fn task_priority(&mut self) -> u8 {
        let priority = self.world.task_priority();
        self.keep(Event::PriorityRead(priority));
        priority
    }
    fn set_task_priority(&mut self, tpr: u8) {
        self.world.set_task_priority(tpr);
        self.keep(Event::PriorityWrite(tpr));
    }
    fn ferr(&mut self) {
        self.world.ferr();
        self.keep(Event::CoprocessorError);
    }
    fn attention(&self) -> Arc<AtomicU32> {
        self.world.attention()
    }
}

/// An access that the leader didn't make.
pub type Surprise = Arc<Mutex<Option<String>>>;

/// The follower's world: answers from the log.
#[derive(Debug)]
pub struct Replayer {
    log: Log,
    surprise: Surprise,
    attention: Arc<AtomicU32>,
}

impl Replayer {
    #[must_use]
    pub fn new(log: Log, surprise: Surprise, attention: Arc<AtomicU32>) -> Self {
        Self { log, surprise, attention }
    }

    /// The next event if `fits` likes it; else notes the surprise.
    fn next<T>(&self, asked: &str, fits: impl FnOnce(Event) -> Option<T>) -> Option<T> {
        let next = lock(&self.log).pop_front();
        let answer = next.and_then(fits);
        if answer.is_none() {
            let mut surprise = lock(&self.surprise);
            if surprise.is_none() {
                *surprise = Some(match next {
                    Some(event) => format!("{asked}, where the leader had {event:x?}"),
                    None => format!("{asked}, where the leader asked nothing"),
                });
            }
        }
        answer
    }
}

impl Env for Replayer {
    fn pio_read(&mut self, port: u16, size: u8) -> u32 {
        let asked = || format!("{size}-byte read of port {port:#x}");
        self.next(&asked(), |event| match event {
            Event::PortRead { port: p, size: s, value } if (p, s) == (port, size) => Some(value),
            _ => None,
        })
        .unwrap_or(u32::MAX)
    }
    fn pio_write(&mut self, port: u16, size: u8, value: u32) {
        let wanted = Event::PortWrite { port, size, value };
        let asked = format!("{size}-byte write of {value:#x} to port {port:#x}");
        self.next(&asked, |event| (event == wanted).then_some(()));
    }
    fn mmio_read(&mut self, gpa: Gpa, size: u8) -> u64 {
        let asked = format!("{size}-byte device read at {:#x}", gpa.0);
        self.next(&asked, |event| match event {
            Event::DeviceRead { gpa: g, size: s, value } if (g, s) == (gpa.0, size) => Some(value),
            _ => None,
        })
        .unwrap_or(u64::MAX)
    }
    fn mmio_write(&mut self, gpa: Gpa, size: u8, value: u64) {
        let wanted = Event::DeviceWrite { gpa: gpa.0, size, value };
        let asked = format!("{size}-byte device write of {value:#x} at {:#x}", gpa.0);
        self.next(&asked, |event| (event == wanted).then_some(()));
    }
    fn tsc(&mut self) -> u64 {
        self.next("read of the time stamp counter", |event| match event {
            Event::TimeStamp(value) => Some(value),
            _ => None,
        })
        .unwrap_or(0)
    }
    fn set_retired(&mut self, _: u64) {}
    fn random(&mut self) -> u64 {
        self.next("draw of a random number", |event| match event {
            Event::Random(value) => Some(value),
            _ => None,
        })
        .unwrap_or(0)
    }
    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        self.attention.fetch_and(!attention::INTR, Ordering::SeqCst);
        self.next("acknowledgement of an interrupt", |event| match event {
            Event::Interrupt(vector) => Some(vector),
            _ => None,
        })
        .flatten()
    }
    fn device_msr_read(&mut self, msr: u32) -> Result<u64, Refused> {
        self.next(&format!("RDMSR of {msr:#x}"), |event| match event {
            Event::DeviceMsrRead { msr: m, value } if m == msr => Some(value),
            _ => None,
        })
        .flatten()
        .ok_or(Refused)
    }
    fn device_msr_write(&mut self, msr: u32, value: u64, _: u64) -> Result<(), Refused> {
        self.next(&format!("WRMSR of {value:#x} to {msr:#x}"), |event| match event {
            Event::DeviceMsrWrite { msr: m, value: v, done } if (m, v) == (msr, value) => {
                Some(done)
            }
            _ => None,
        })
        .filter(|&done| done)
        .map(|_| ())
        .ok_or(Refused)
    }
    fn task_priority(&mut self) -> u8 {
        self.next("read of CR8", |event| match event {
            Event::PriorityRead(priority) => Some(priority),
            _ => None,
        })
        .unwrap_or(0)
    }
    fn set_task_priority(&mut self, tpr: u8) {
        let asked = format!("write of {tpr} to CR8");
        self.next(&asked, |event| (event == Event::PriorityWrite(tpr)).then_some(()));
    }
    fn ferr(&mut self) {
        self.next("FERR#", |event| (event == Event::CoprocessorError).then_some(()));
    }
    fn attention(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.attention)
    }
}
