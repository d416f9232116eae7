//! The world around one vCPU.
//!
//! Problem: instructions reach ports, device memory, the local APIC, time and chance. Scheme: [`VcpuEnv`]
//! passes each on to its part. A vCPU's own local APIC page comes before the memory bus, since every
//! vCPU sees another device there. Invariants: before anything that may read time, the engine has told
//! [`Env::set_retired`], so counted time is the same at the same instruction in every run. Thread: the
//! vCPU's. Source: SDM vol. 3, "Local APIC"; IBM PC AT Technical Reference, "Coprocessor controls".

use std::fmt;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

use xenolith_cpu::Gpa;
use xenolith_cpu::env::{Env, Refused};
use xenolith_devices::apic::InterruptRouter;
use xenolith_devices::bus::{Bus, BusDevice};
use xenolith_devices::clock::{Clock, lock};
use xenolith_devices::irq::IrqLine;
use xenolith_devices::kvmclock::{KvmClock, Register};
use xenolith_mmu::DeviceMemory;

use crate::random::Random;
use crate::run::Time;
use crate::vcpu::Pins;

/// The two buses, as all vCPUs share them.
#[derive(Debug, Default)]
pub struct Buses {
    pub ports: Bus,
    pub memory: Bus,
}

impl Buses {
    /// Reads `size` bytes, 1, 2 or 4, of `port`.
    fn pio_read(&self, port: u16, size: u8) -> u32 {
        // At most four bytes are asked for.
        self.ports.read(u64::from(port), size) as u32
    }
}

/// What a vCPU is wired to.
#[derive(Debug)]
pub struct World {
    pub index: usize,
    pub buses: Arc<Buses>,
    pub router: Arc<InterruptRouter>,
    pub time: Time,
    pub pins: Arc<Pins>,
    pub ferr: Arc<Mutex<Ferr>>,
    pub kvmclock: Arc<Mutex<GuestClock>>,
}

/// KVM's clock over this machine's memory.
pub type GuestClock = KvmClock<Arc<DeviceMemory>>;

/// One vCPU's environment.
pub struct VcpuEnv {
    world: World,
    clock: Arc<dyn Clock>,
    random: Random,
}

impl fmt::Debug for VcpuEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuEnv").field("index", &self.world.index).finish_non_exhaustive()
    }
}

/// Nanoseconds that a read of the 8254 takes beside what leaving translated code does: six cycles of the ISA bus at
/// 8 MHz are 750 in all. Longer ones make guests measure for longer, in which more can come between.
const ISA_READ_NS: u64 = 600;

/// Ports of the 8254 and the one beside it, which guests read in loops to measure their processors' speed.
fn is_timer(port: u16) -> bool {
    matches!(port, 0x40..=0x43 | 0x61)
}

impl VcpuEnv {
    /// Lets the time pass that a read takes on a real bus. Guests compare the longest read of a loop with the
    /// shortest, and give up if something held it up for ten times as long: a read that takes next to
    /// no time makes that out of every interrupt of the host.
    fn wait_for_the_bus(&self) {
        let end = self.clock.now_ns() + ISA_READ_NS;
        while self.clock.now_ns() < end {
            std::hint::spin_loop();
        }
    }

    #[must_use]
    pub fn new(world: World) -> Self {
        let random = match world.time {
            Time::Host(_) => Random::host(),
            Time::Counted(_) => Random::fixed(world.index as u64),
        };
        Self { clock: world.time.clock(), world, random }
    }
}

impl Env for VcpuEnv {
    fn pio_read(&mut self, port: u16, size: u8) -> u32 {
        if is_timer(port) && matches!(self.world.time, Time::Host(_)) {
            self.wait_for_the_bus();
        }
        self.world.buses.pio_read(port, size)
    }

    fn pio_write(&mut self, port: u16, size: u8, value: u32) {
        self.world.buses.ports.write(u64::from(port), size, u64::from(value));
    }

    fn pio_read_many(&mut self, port: u16, size: u8, out: &mut [u8]) -> usize {
        self.world.buses.ports.read_many(u64::from(port), size, out)
    }

    fn mmio_read(&mut self, gpa: Gpa, size: u8) -> u64 {
        match self.world.router.local_offset(self.world.index, gpa.0) {
            Some(offset) => self.world.router.mmio_read(self.world.index, offset, size),
            None => self.world.buses.memory.read(gpa.0, size),
        }
    }

    fn mmio_write(&mut self, gpa: Gpa, size: u8, value: u64) {
        match self.world.router.local_offset(self.world.index, gpa.0) {
            Some(offset) => self.world.router.mmio_write(self.world.index, offset, size, value),
            None => self.world.buses.memory.write(gpa.0, size, value),
        }
    }

    fn tsc(&mut self) -> u64 {
        self.clock.tsc()
    }

    fn tsc_base(&self) -> Option<u64> {
        self.clock.tsc_base()
    }

    fn set_retired(&mut self, retired: u64) {
        self.world.pins.tell_retired(retired);
        if let Time::Counted(clock) = &self.world.time {
            clock.set_retired(retired);
        }
    }

    fn random(&mut self) -> u64 {
        self.random.draw()
    }

    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        self.world.router.acknowledge(self.world.index)
    }

    fn device_msr_read(&mut self, msr: u32) -> Result<u64, Refused> {
        let world = &self.world;
        if let Some(register) = Register::of(msr) {
            return Ok(lock(&world.kvmclock).read(world.index, register));
        }
        world.router.msr_read(world.index, msr).map_err(|_| Refused)
    }

    fn device_msr_write(&mut self, msr: u32, value: u64, tsc_offset: u64) -> Result<(), Refused> {
        let world = &self.world;
        if let Some(register) = Register::of(msr) {
            lock(&world.kvmclock).write(world.index, register, value);
            return Ok(());
        }
        world.router.msr_write(world.index, msr, value, tsc_offset).map_err(|_| Refused)
    }

    fn tsc_moved(&mut self, tsc_offset: u64) {
        lock(&self.world.kvmclock).tsc_moved(self.world.index, tsc_offset);
    }

    fn task_priority(&mut self) -> u8 {
        self.world.router.tpr(self.world.index)
    }

    fn set_task_priority(&mut self, tpr: u8) {
        self.world.router.set_tpr(self.world.index, tpr);
    }

    fn ferr(&mut self) {
        lock(&self.world.ferr).raise();
    }

    fn attention(&self) -> Arc<AtomicU32> {
        self.world.pins.word()
    }
}

/// The world around a processor of no machine: buses, and neither interrupts nor time.
#[derive(Debug, Default)]
pub struct BareEnv {
    pub buses: Arc<Buses>,
    pub attention: Arc<AtomicU32>,
}

impl Env for BareEnv {
    fn pio_read(&mut self, port: u16, size: u8) -> u32 {
        self.buses.pio_read(port, size)
    }
    fn pio_write(&mut self, port: u16, size: u8, value: u32) {
        self.buses.ports.write(u64::from(port), size, u64::from(value));
    }
    fn mmio_read(&mut self, gpa: Gpa, size: u8) -> u64 {
        self.buses.memory.read(gpa.0, size)
    }
    fn mmio_write(&mut self, gpa: Gpa, size: u8, value: u64) {
        self.buses.memory.write(gpa.0, size, value);
    }
    fn tsc(&mut self) -> u64 {
        0
    }
    fn set_retired(&mut self, _: u64) {}
    fn random(&mut self) -> u64 {
        0
    }
    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        None
    }
    fn device_msr_read(&mut self, _: u32) -> Result<u64, Refused> {
        Err(Refused)
    }
    fn device_msr_write(&mut self, _: u32, _: u64, _: u64) -> Result<(), Refused> {
        Err(Refused)
    }
    fn task_priority(&mut self) -> u8 {
        0
    }
    fn set_task_priority(&mut self, _: u8) {}
    fn ferr(&mut self) {}
    fn attention(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.attention)
    }
}

/// The latch between the processors' FERR# and IRQ 13: an unmasked x87 error sets it, a write to port
/// 0xf0 (or a reset of the coprocessor by 0xf1) clears it.
#[derive(Debug)]
pub struct Ferr {
    line: IrqLine,
}

impl Ferr {
    /// First of its two ports.
    pub const PORT: u64 = 0xf0;

    #[must_use]
    pub fn new(line: IrqLine) -> Self {
        Self { line }
    }

    fn raise(&self) {
        self.line.set(true);
    }
}

impl BusDevice for Ferr {
    fn read(&mut self, _: u64, _: u8) -> u64 {
        0xff
    }
    fn write(&mut self, _: u64, _: u8, _: u64) {
        self.line.set(false);
    }
}
