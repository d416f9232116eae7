//! Looking at a running machine, for a monitor.
//!
//! Problem: a person wants to see registers, memory and devices as they are at one moment, whichever engine
//! runs, while the guest goes on as if nobody had looked. Scheme: [`Inspector`] outlives the boards that resets
//! build and has the latest one's parts; [`Inspector::hold`] brings the vCPUs to rest between two instructions
//! and gives a [`Held`] that answers questions from their states, from memory and from the devices, until
//! it is dropped. Invariants: nothing that is asked changes the guest's state, no device register is read, and no
//! accessed bit set; time stands still while somebody holds. Any thread but a vCPU's.

mod text;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use xenolith_cpu::cpuid::{CpuidModel, Feature, Vendor};
use xenolith_cpu::state::{Activity, Segment, sreg};
use xenolith_cpu::{CpuState, Gpa, Gva, PAGE_SIZE};
use xenolith_devices::acpi::pm::PmBlock;
use xenolith_devices::apic::InterruptRouter;
use xenolith_devices::clock::lock;
use xenolith_devices::power::{PowerEvent, PowerEvents};
use xenolith_devices::virtio::BalloonHandle;
use xenolith_mmu::GuestRam;
use xenolith_mmu::walk::{self, Paging};

use crate::config::DiskConfig;
use crate::control::Control;
use crate::drives::Disk;
use crate::env::Buses;

pub use crate::control::{Hold, Unrest};

/// How long a guest may take to tell of its memory.
const STATISTICS_PATIENCE: Duration = Duration::from_millis(500);

/// A board's parts that can be looked at.
pub struct Parts {
    pub ram: Arc<GuestRam>,
    pub buses: Arc<Buses>,
    pub router: Arc<InterruptRouter>,
    pub pm: Arc<Mutex<PmBlock>>,
    pub power: PowerEvents,
    pub balloon: Option<BalloonHandle>,
    pub model: Arc<CpuidModel>,
}

impl Parts {
    /// Asks the guest to do with `bytes` of its memory.
    fn set_memory_target(&self, bytes: u64) {
        if let Some(balloon) = &self.balloon {
            balloon.set_target(self.ram.size_bytes().saturating_sub(bytes));
        }
    }
}

/// What a balloon leaves to the guest, and what the guest tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BalloonState {
    pub memory_bytes: u64,
    /// Names and values.
    pub statistics: Vec<(&'static str, u64)>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// Looks at a machine over all its resets.
#[derive(Clone)]
pub struct Inspector {
    control: Arc<Control>,
    parts: Arc<Mutex<Option<Arc<Parts>>>>,
    disks: Arc<[(DiskConfig, Disk)]>,
    /// Memory that the guest shall have, of all that there is.
    memory_target: Arc<Mutex<Option<u64>>>,
}

impl fmt::Debug for Inspector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inspector").field("control", &self.control).finish_non_exhaustive()
    }
}

/// Which addresses are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Linear addresses of a vCPU.
    Linear,
    Physical,
}

/// There is no memory that could be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("{0:#x}: no page is mapped there")]
    Unmapped(u64),
    #[error("{0:#x} (physical): not memory")]
    NotMemory(u64),
}

impl Inspector {
    pub(crate) fn new(control: Arc<Control>, disks: Vec<(DiskConfig, Disk)>) -> Self {
        let disks = disks.into();
        Self { control, parts: Arc::default(), disks, memory_target: Arc::default() }
    }

    /// A board is there, or with `None` gone.
    pub(crate) fn connect(&self, parts: Option<Arc<Parts>>) {
        if let (Some(parts), Some(target)) = (&parts, *lock(&self.memory_target)) {
            parts.set_memory_target(target);
        }
        *lock(&self.parts) = parts;
    }

    fn parts(&self) -> Option<Arc<Parts>> {
        self.control.wait_for_start();
        lock(&self.parts).clone()
    }

    /// Brings all vCPUs to rest.
    ///
    /// # Errors
    /// The machine doesn't run, or a vCPU waits for the host for too long.
    pub fn hold(&self) -> Result<Held, Unrest> {
        let hold = self.control.hold()?;
        let parts = self.parts().ok_or(Unrest::NotRunning)?;
        let states = hold.states();
        if states.is_empty() {
            return Err(Unrest::NotRunning);
        }
        Ok(Held { states, parts, _hold: hold })
    }

    /// Brings all vCPUs to rest, over resets too, until what is returned is dropped.
    ///
    /// # Errors
    /// The same.
    pub fn stop(&self) -> Result<Hold, Unrest> {
        self.control.hold()
    }

    /// Presses the power button. False if the guest has not asked to be told of it.
    ///
    /// # Errors
    /// The machine doesn't run.
    pub fn press_power_button(&self) -> Result<bool, Unrest> {
        let parts = self.parts().ok_or(Unrest::NotRunning)?;
        Ok(lock(&parts.pm).press_power_button())
    }

    /// Presses the reset button.
    ///
    /// # Errors
    /// The machine doesn't run.
    pub fn press_reset_button(&self) -> Result<(), Unrest> {
        let parts = self.parts().ok_or(Unrest::NotRunning)?;
        parts.power.raise(PowerEvent::Reset);
        Ok(())
    }

    /// Presses the NMI button: all processors get one.
    ///
    /// # Errors
    /// The machine doesn't run.
    pub fn press_nmi_button(&self) -> Result<(), Unrest> {
        self.parts().ok_or(Unrest::NotRunning)?.router.nmi();
        Ok(())
    }

    /// Asks the guest, by its balloon, to do with `bytes` of its memory from now on, over resets too. False
    /// if the machine has no balloon.
    ///
    /// # Errors
    /// The machine doesn't run.
    pub fn set_memory_target(&self, bytes: u64) -> Result<bool, Unrest> {
        let parts = self.parts().ok_or(Unrest::NotRunning)?;
        *lock(&self.memory_target) = Some(bytes);
        parts.set_memory_target(bytes);
        Ok(parts.balloon.is_some())
    }

    /// The balloon; `None` if there isn't one.
    ///
    /// # Errors
    /// The machine doesn't run.
    pub fn balloon(&self) -> Result<Option<BalloonState>, Unrest> {
        let parts = self.parts().ok_or(Unrest::NotRunning)?;
        Ok(parts.balloon.as_ref().map(|balloon| BalloonState {
            memory_bytes: parts.ram.size_bytes().saturating_sub(balloon.bytes()),
            statistics: balloon.statistics(STATISTICS_PATIENCE),
        }))
    }

    /// The disks, a line each.
    #[must_use]
    pub fn disks(&self) -> String {
        text::disks(&self.disks)
    }
}

/// A machine at rest: its vCPUs stand between two instructions until this is dropped.
pub struct Held {
    states: Vec<CpuState>,
    parts: Arc<Parts>,
    _hold: Hold,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("vcpus", &self.states.len()).finish_non_exhaustive()
    }
}

/// Methods that take a vCPU's number panic if there is no such vCPU.
impl Held {
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.states.len()
    }

    /// The state of vCPU `cpu`.
    #[must_use]
    pub fn state(&self, cpu: usize) -> &CpuState {
        &self.states[cpu]
    }

    /// All registers, for people.
    #[must_use]
    pub fn registers(&self, cpu: usize) -> String {
        text::registers(&self.states[cpu])
    }

    /// A register by its usual name in lower case; `pc` is the linear address of the next instruction.
    #[must_use]
    pub fn register(&self, cpu: usize, name: &str) -> Option<u64> {
        text::register(&self.states[cpu], name)
    }

    /// The vCPUs, a line each.
    #[must_use]
    pub fn processors(&self) -> String {
        let line = |(n, state): (usize, &CpuState)| {
            let doing = match state.activity {
                Activity::Running => "",
                Activity::Halted => " (halted)",
                Activity::WaitForSipi => " (not started)",
                Activity::Shutdown => " (shut down)",
            };
            format!("CPU #{n}: pc={:#018x}{doing}\n", next_instruction(state))
        };
        self.states.iter().enumerate().map(line).collect()
    }

    /// The 8259A pair's registers.
    #[must_use]
    pub fn pic(&self) -> String {
        self.parts.router.describe_pic()
    }

    /// The I/O APIC's registers.
    #[must_use]
    pub fn io_apic(&self) -> String {
        self.parts.router.describe_io_apic()
    }

    /// The local APIC's registers.
    #[must_use]
    pub fn local_apic(&self, cpu: usize) -> String {
        self.parts.router.describe_local_apic(cpu)
    }

    /// What is where in memory and ports.
    #[must_use]
    pub fn memory_map(&self) -> String {
        text::memory_map(&self.parts)
    }

    /// Where a linear address leads; by the guest's tables as they are, whatever a TLB may still hold.
    #[must_use]
    pub fn translate(&self, cpu: usize, linear: u64) -> Option<u64> {
        let (state, model) = (&self.states[cpu], &self.parts.model);
        let long = state.long_mode();
        let linear = if long { linear } else { linear & 0xffff_ffff };
        if long && (linear as i64) << 16 >> 16 != linear as i64 {
            return None;
        }
        let paging = Paging {
            reserves_global: model.vendor() == Vendor::Amd,
            ..Paging::of(state, model.physical_bits(), model.has(Feature::Pdpe1gb))
        };
        let (found, _) = walk::look(&self.parts.ram, &paging, Gva(linear))?;
        Some(found.gpa.0 | linear & (PAGE_SIZE - 1))
    }

    /// Reads memory from `address` on; what is a device's is not read.
    ///
    /// # Errors
    /// A byte is not there.
    pub fn read(
        &self,
        cpu: usize,
        space: Space,
        address: u64,
        out: &mut [u8],
    ) -> Result<(), Unreadable> {
        let mut done = 0;
        while done < out.len() {
            let at = address.wrapping_add(done as u64);
            let len = (out.len() - done).min((PAGE_SIZE - at % PAGE_SIZE) as usize);
            let gpa = match space {
                Space::Linear => self.translate(cpu, at).ok_or(Unreadable::Unmapped(at))?,
                Space::Physical => self.parts.ram.issue(at),
            };
            let host = self.parts.ram.host_ptr(Gpa(gpa), len).ok_or(Unreadable::NotMemory(gpa))?;
            for (n, byte) in out[done..done + len].iter_mut().enumerate() {
                // SAFETY: `host_ptr` gives `len` bytes that stay mapped while the RAM lives; devices may
                // change them at any time, so they are read as the guest's processors do.
                *byte = unsafe { host.wrapping_add(n).read_volatile() };
            }
            done += len;
        }
        Ok(())
    }

    /// `count` instructions from `address` on, a line each, as code of the vCPU's present size. Ends early with a
    /// line that says why.
    #[must_use]
    pub fn disassemble(&self, cpu: usize, space: Space, address: u64, count: usize) -> String {
        text::disassemble(self, cpu, space, address, count)
    }
}

/// The linear address of the next instruction.
fn next_instruction(state: &CpuState) -> u64 {
    let cs = &state.seg[sreg::CS];
    if state.long_mode() && cs.access & Segment::LONG != 0 {
        state.rip
    } else {
        state.rip.wrapping_add(cs.base) & 0xffff_ffff
    }
}
