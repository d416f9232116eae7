//! The clock that KVM offers its guests.
//!
//! Problem: a kernel that must measure the time stamp counter's frequency waits for the 8254 or the HPET, tens of
//! milliseconds at every boot, and is off where the host was busy meanwhile. Scheme: a kernel that finds KVM's
//! CPUID leaves names a place in memory for each vCPU, by an MSR, where it finds what makes nanoseconds of its time
//! stamp counter; another MSR has the date written at which these nanoseconds began. Both are
//! functions of the clock's frequency and start: nanoseconds count from the time stamp counter's
//! zero, so all vCPUs' places say the same and are written once, and counted time stays repeatable.
//! Places are written again when a vCPU's counter is moved.
//!
//! Invariants: what a place says of its vCPU's counter is the clock's [`Clock::now_ns`]. It is marked as stable
//! (PVCLOCK_TSC_STABLE_BIT: it serves for the other vCPUs' counters too) exactly while all counters are the same.
//! A place has an odd version while it is written. One outside RAM, across a page's end or not aligned is not written.
//! Any thread, under the device's lock. Source: Linux, Documentation/virt/kvm/x86/msr.rst,
//! arch/x86/include/asm/pvclock-abi.h.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use crate::clock::{Clock, Scale};

/// The MSRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Where the date is to be written. One for all vCPUs.
    WallClock,
    /// Where the vCPU's time is to be written.
    SystemTime,
}

impl Register {
    /// The register of that number; each has one that came later, too.
    #[must_use]
    pub fn of(msr: u32) -> Option<Self> {
        match msr {
            0x11 | 0x4b56_4d00 => Some(Self::WallClock),
            0x12 | 0x4b56_4d01 => Some(Self::SystemTime),
            _ => None,
        }
    }
}

/// In [`Register::SystemTime`]: the place is to be written.
const ENABLED: u64 = 1;
/// The place serves for all vCPUs.
const TSC_STABLE: u32 = 1;
const NS_PER_S: i64 = 1_000_000_000;
const PAGE_BYTES: u64 = 4096;

/// One vCPU's part.
#[derive(Clone, Copy, Default)]
struct Reader {
    /// [`Register::SystemTime`] as the guest has written it: a guest physical address and [`ENABLED`].
    system_time: u64,
    /// What the vCPU adds to the raw time stamp counter.
    tsc_offset: u64,
}

/// The device over the guest's memory `M`.
pub struct KvmClock<M> {
    clock: Arc<dyn Clock>,
    memory: M,
    readers: Vec<Reader>,
    wall_clock: u64,
}

impl<M> fmt::Debug for KvmClock<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmClock").field("wall_clock", &self.wall_clock).finish_non_exhaustive()
    }
}

impl<M: GuestAddressSpace> KvmClock<M> {
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, memory: M, vcpus: usize) -> Self {
        Self { clock, memory, readers: vec![Reader::default(); vcpus], wall_clock: 0 }
    }

    /// Reads a register on vCPU `cpu`.
    #[must_use]
    pub fn read(&self, cpu: usize, register: Register) -> u64 {
        match register {
            Register::WallClock => self.wall_clock,
            Register::SystemTime => self.readers[cpu].system_time,
        }
    }

    /// Writes a register on vCPU `cpu`.
    pub fn write(&mut self, cpu: usize, register: Register, value: u64) {
        match register {
            Register::WallClock => {
                self.wall_clock = value;
                self.tell_date();
            }
            Register::SystemTime => {
                self.readers[cpu].system_time = value;
                self.tell_time(cpu);
            }
        }
    }

    /// vCPU `cpu` now adds `tsc_offset` to the raw time stamp counter.
    pub fn tsc_moved(&mut self, cpu: usize, tsc_offset: u64) {
        self.readers[cpu].tsc_offset = tsc_offset;
        // Whether the others are stable may have changed.
        (0..self.readers.len()).for_each(|cpu| self.tell_time(cpu));
    }

    /// vCPU `cpu` has got an INIT: as with KVM its place is given up.
    pub fn init_cpu(&mut self, cpu: usize) {
        self.readers[cpu].system_time = 0;
    }

    /// All vCPUs' time stamp counters are the same.
    fn is_stable(&self) -> bool {
        self.readers.windows(2).all(|pair| pair[0].tsc_offset == pair[1].tsc_offset)
    }

    /// Writes vCPU `cpu`'s place, if it has one.
    fn tell_time(&self, cpu: usize) {
        let Reader { system_time, tsc_offset } = self.readers[cpu];
        if system_time & ENABLED == 0 {
            return;
        }
        let scale = Scale::of(self.clock.tsc_hz());
        let flags = if self.is_stable() { TSC_STABLE } else { 0 };
        // Padding; the counter's value at a time, and that time in nanoseconds, 0; factor; shift, flags, padding.
        let shift_and_flags = u32::from(scale.shift.to_le_bytes()[0]) | flags << 8;
        let [low, high] = halves(tsc_offset);
        self.store(system_time & !ENABLED, [0, low, high, 0, 0, scale.factor, shift_and_flags]);
    }

    /// Writes the date at nanosecond 0.
    fn tell_date(&self) {
        if self.wall_clock == 0 {
            return;
        }
        let unix_ns = self.clock.start_unix_ns();
        let [seconds, _] = halves(unix_ns.div_euclid(NS_PER_S).cast_unsigned());
        self.store(self.wall_clock, [seconds, unix_ns.rem_euclid(NS_PER_S) as u32]);
    }

    /// Stores words behind a version, which is odd meanwhile, and another than before after it.
    fn store<const WORDS: usize>(&self, gpa: u64, words: [u32; WORDS]) {
        let bytes = 4 * (1 + WORDS as u64);
        if gpa % PAGE_BYTES + bytes > PAGE_BYTES {
            return;
        }
        let memory = self.memory.memory();
        let at = |word: u64| GuestAddress(gpa + 4 * word);
        // What can't be loaded is no RAM, or not aligned; then nothing is stored either.
        let Ok(version) = memory.load::<u32>(at(0), Ordering::Relaxed) else { return };
        let odd = version.wrapping_add(1) | 1;
        let values = std::iter::once(odd).chain(words).zip(0..).map(|(value, n)| (n, value));
        for (word, value) in values.chain([(0, odd.wrapping_add(1))]) {
            // Each after the one before it.
            if memory.store(value, at(word), Ordering::Release).is_err() {
                return;
            }
        }
    }
}

/// Low and high half.
fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

#[cfg(test)]
mod tests;
