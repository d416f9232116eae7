//! The vCPU loop and the threads of a running machine.
//!
//! Problem: run all vCPUs, each on a thread of its own, until something ends the run; sleep where they
//! sleep; drive the timers. Scheme: [`Vcpu::run`] alternates between its engine and the attention bits
//! that are the machine's. Under host time one thread serves the timers. Under counted time the one
//! vCPU does: its budget reaches to the next timer, and when it halts, time jumps there, after the
//! host has slept as long: else a guest that waits for its disk would see its timeouts pass before the
//! disk has moved. Invariants: a thread that panics ends the run instead of hanging it; when [`run`] returns no thread of the
//! board is left. Source: SDM vol. 3, "MP Initialization Protocol Algorithm", "Processor State After
//! INIT".

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use xenolith_cpu::CpuState;
use xenolith_cpu::env::attention;
use xenolith_cpu::state::{Activity, Cr0, Rflags, Segment, sreg};
use xenolith_devices::clock::{Clock, TimerQueue};
use xenolith_devices::power::PowerEvent;

use crate::clock::CountedClock;
use crate::control::{Cause, Control};
use crate::engine::{Engine, Exit};
use crate::vcpu::Pins;

/// How guest time passes.
#[derive(Clone)]
pub enum Time {
    Host(Arc<dyn Clock>),
    Counted(Arc<CountedClock>),
}

impl Time {
    #[must_use]
    pub fn clock(&self) -> Arc<dyn Clock> {
        match self {
            Self::Host(clock) => Arc::clone(clock),
            Self::Counted(clock) => Arc::clone(clock) as _,
        }
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host(_) => "Host",
            Self::Counted(_) => "Counted",
        })
    }
}

/// One virtual processor with what its loop needs.
pub struct Vcpu {
    pub index: u32,
    /// CPUID.1:EAX, which INIT leaves in EDX.
    pub signature: u32,
    pub engine: Box<dyn Engine>,
    pub pins: Arc<Pins>,
    /// Tells the vCPU's own devices that it took an INIT.
    pub devices_init: Box<dyn FnMut() + Send>,
}

impl fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vcpu").field("index", &self.index).finish_non_exhaustive()
    }
}

impl Vcpu {
    /// Runs until STOP.
    pub fn run(&mut self, time: &Time, timers: &TimerQueue, control: &Control) {
        while !self.pins.has(attention::STOP) {
            if self.pins.has(attention::REST) {
                control.rest(self.index as usize, self.engine.state());
                self.engine.time_moved();
                continue;
            }
            if self.pins.take(attention::INIT) != 0 {
                if self.index == 0 {
                    // The boot processor would start at the reset vector, where firmware restarts
                    // the machine.
                    control.end(Cause::Power(PowerEvent::Reset));
                    return;
                }
                self.init();
            }
            let start_up = self.pins.take_sipi();
            if self.engine.state().activity == Activity::WaitForSipi {
                match start_up {
                    Some(vector) => self.start_up(vector),
                    None => {
                        self.pins.sleep(OUT_OF_SLEEP | attention::SIPI, None);
                        continue;
                    }
                }
            }
            let budget = match time {
                Time::Host(_) => u64::MAX,
                Time::Counted(clock) => {
                    self.pins.take(attention::TIMER);
                    timers.run_due(clock.now_ns());
                    let next_ns = timers.earliest_ns().unwrap_or(u64::MAX);
                    next_ns.saturating_sub(clock.now_ns()).max(1)
                }
            };
            let exit = self.engine.run(budget);
            self.pins.tell_retired(self.engine.state().retired);
            if let Time::Counted(clock) = time {
                clock.set_retired(self.engine.state().retired);
            }
            match exit {
                Exit::Budget | Exit::Attention => {}
                Exit::Halted => {
                    let wake = wake_bits(self.engine.state());
                    self.idle(time, timers, wake);
                }
                Exit::Shutdown => {
                    let dump = format!("vCPU {}: triple fault\n{}", self.index, self.engine.dump());
                    control.end(Cause::TripleFault { dump });
                    return;
                }
            }
        }
    }

    /// Sleeps after HLT until something can end it.
    fn idle(&self, time: &Time, timers: &TimerQueue, wake: u32) {
        match time {
            Time::Host(_) => self.pins.sleep(wake, None),
            Time::Counted(clock) => {
                while !self.pins.has(wake) {
                    let now_ns = clock.now_ns();
                    let Some(next_ns) = timers.earliest_ns() else {
                        // Only the world outside can wake it now; input may also arm a timer.
                        self.pins.sleep(wake | attention::TIMER, None);
                        self.pins.take(attention::TIMER);
                        continue;
                    };
                    let start = Instant::now();
                    let wait = Duration::from_nanos(next_ns.saturating_sub(now_ns));
                    self.pins.sleep(wake | attention::TIMER, Some(wait));
                    self.pins.take(attention::TIMER);
                    let slept_ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                    clock.skip_to(next_ns.min(now_ns.saturating_add(slept_ns)));
                    timers.run_due(clock.now_ns());
                }
            }
        }
    }

    /// State after INIT; most of what RESET changes, but not the caches, the FPU and most MSRs.
    fn init(&mut self) {
        let signature = self.signature;
        let state = self.engine.state();
        let kept_cr0 = state.cr0 & (Cr0::CD | Cr0::NW).bits();
        let fresh = CpuState::reset(signature);
        *state = CpuState {
            cr0: kept_cr0 | Cr0::ET.bits(),
            xcr0: state.xcr0,
            msr: state.msr.clone(),
            vector: state.vector.clone(),
            retired: state.retired,
            activity: Activity::WaitForSipi,
            ..fresh
        };
        (self.devices_init)();
        self.pins.take(attention::NMI);
        self.engine.state_changed();
    }

    fn start_up(&mut self, vector: u8) {
        let state = self.engine.state();
        state.activity = Activity::Running;
        state.rip = 0;
        state.seg[sreg::CS] = Segment::real(u16::from(vector) << 8, 0x9b);
        self.engine.state_changed();
        tracing::debug!("vCPU {} starts at {:#x}", self.index, u32::from(vector) << 12);
    }
}

/// What gets a vCPU out of any sleep.
const OUT_OF_SLEEP: u32 = attention::STOP | attention::REST | attention::INIT;

/// What can end a HLT in this state.
fn wake_bits(state: &CpuState) -> u32 {
    let mut bits = OUT_OF_SLEEP;
    if state.flag(Rflags::IF) {
        bits |= attention::INTR;
    }
    if !state.nmi_blocked {
        bits |= attention::NMI;
    }
    bits
}

/// Runs a board's vCPUs to an end and waits until its threads are gone. `ended` is called when the cause
/// is known, before the threads are waited for: it must free whoever waits for the host.
pub fn run(
    vcpus: Vec<Vcpu>,
    time: &Time,
    timers: &TimerQueue,
    control: &Control,
    deadline: Option<Instant>,
    ended: impl FnOnce(&Cause),
) -> Cause {
    let pins = vcpus.iter().map(|vcpu| Arc::clone(&vcpu.pins)).collect();
    control.begin(pins, time.clock());
    thread::scope(|scope| {
        if let Time::Host(clock) = time {
            spawn(scope, control, "timers".to_owned(), || timers.serve(&**clock));
        }
        for mut vcpu in vcpus {
            let name = format!("vcpu-{}", vcpu.index);
            spawn(scope, control, name, move || vcpu.run(time, timers, control));
        }
        let cause = control.wait(deadline);
        ended(&cause);
        timers.stop();
        cause
    })
}

/// Starts a thread whose panic ends the run.
fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    control: &'scope Control,
    name: String,
    body: impl FnOnce() + Send + 'scope,
) {
    let guarded = move || {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
            control.end(Cause::Failed { message: message_of(&*panic) });
        }
    };
    if let Err(error) = thread::Builder::new().name(name).spawn_scoped(scope, guarded) {
        let message = format!("the host gives no thread: {error}");
        control.end(Cause::Failed { message });
    }
}

/// The text of a panic.
fn message_of(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "a thread panicked".to_owned()
    }
}

#[cfg(test)]
mod tests;
