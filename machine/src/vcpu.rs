//! A vCPU's pins and its sleep.
//!
//! Problem: interrupts reach a vCPU from other threads while it runs or sleeps, and a sleeping vCPU
//! must cost the host nothing. Scheme: one 32-bit attention word for each vCPU, which the engine tests
//! between blocks and which doubles as the futex that the vCPU sleeps on. Setting a bit is one atomic
//! operation; the wake-up call is made only if the vCPU sleeps. Invariants: a bit set before or during
//! the way to sleep is never lost: the sleeper announces itself first and the host compares the
//! word before it suspends it, while the setter changes the word first and looks for a sleeper after
//! (both sequentially consistent). Any thread sets; the vCPU's own thread sleeps.
//! Source: SDM vol. 3, "Local APIC", `INIT IPI`, `Start-up IPI`; futex(2).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use rustix::thread::futex;
use xenolith_cpu::env::attention;
use xenolith_devices::irq::CpuSignals;

const SIPI_VECTOR_SHIFT: u32 = 24;

/// The pins of one vCPU.
#[derive(Debug, Default)]
pub struct Pins {
    word: Arc<AtomicU32>,
    asleep: AtomicBool,
    /// For statistics.
    retired: AtomicU64,
}

impl Pins {
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// The attention word, for the engine.
    #[must_use]
    pub fn word(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.word)
    }

    /// The vCPU tells how many instructions it has retired.
    pub fn tell_retired(&self, retired: u64) {
        self.retired.store(retired, Relaxed);
    }

    /// As last told.
    #[must_use]
    pub fn retired(&self) -> u64 {
        self.retired.load(Relaxed)
    }

    /// Sets bits and wakes the vCPU.
    pub fn raise(&self, bits: u32) {
        let before = self.word.fetch_or(bits, SeqCst);
        if before & bits != bits {
            self.wake();
        }
    }

    /// Clears bits and returns which of them were set.
    pub fn take(&self, bits: u32) -> u32 {
        self.word.fetch_and(!bits, SeqCst) & bits
    }

    #[must_use]
    pub fn has(&self, bits: u32) -> bool {
        self.word.load(SeqCst) & bits != 0
    }

    /// Takes a start-up IPI: its vector.
    pub fn take_sipi(&self) -> Option<u8> {
        let taken = self.take(attention::SIPI | 0xff << SIPI_VECTOR_SHIFT);
        (taken & attention::SIPI != 0).then_some((taken >> SIPI_VECTOR_SHIFT) as u8)
    }

    /// Sleeps until one of `bits` is set, or for `limit`.
    pub fn sleep(&self, bits: u32, limit: Option<Duration>) {
        let limit = limit.and_then(|limit| {
            Some(futex::Timespec {
                tv_sec: i64::try_from(limit.as_secs()).ok()?,
                tv_nsec: i64::from(limit.subsec_nanos()),
            })
        });
        self.asleep.store(true, SeqCst);
        loop {
            let word = self.word.load(SeqCst);
            if word & bits != 0 {
                break;
            }
            let woken = futex::wait(&self.word, futex::Flags::PRIVATE, word, limit.as_ref());
            if matches!(woken, Err(rustix::io::Errno::TIMEDOUT)) {
                break;
            }
        }
        self.asleep.store(false, SeqCst);
    }

    fn wake(&self) {
        if self.asleep.load(SeqCst) {
            // It fails only for an address that isn't mapped, and ours is.
            let _ = futex::wake(&self.word, futex::Flags::PRIVATE, 1);
        }
    }
}

impl CpuSignals for Pins {
    fn intr(&self, level: bool) {
        if level {
            self.raise(attention::INTR);
        } else {
            self.take(attention::INTR);
        }
    }

    fn nmi(&self) {
        self.raise(attention::NMI);
    }

    fn init(&self) {
        self.raise(attention::INIT);
    }

    fn sipi(&self, vector: u8) {
        // A second one that comes before the first was taken is lost, as on hardware.
        let bits = attention::SIPI | u32::from(vector) << SIPI_VECTOR_SHIFT;
        let set = self.word.fetch_update(SeqCst, SeqCst, |word| {
            (word & attention::SIPI == 0).then_some(word | bits)
        });
        if set.is_ok() {
            self.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn sleep_ends_with_the_bit_and_only_with_it() {
        let pins = Pins::new();
        let setter = Arc::clone(&pins);
        let start = Instant::now();
        let thread = std::thread::spawn(move || {
            setter.raise(attention::INTR);
            std::thread::sleep(Duration::from_millis(50));
            setter.nmi();
        });
        pins.sleep(attention::NMI, None);
        assert!(start.elapsed() >= Duration::from_millis(50), "woken by the wrong bit");
        assert!(pins.has(attention::INTR) && pins.has(attention::NMI));
        thread.join().expect("the setter is done");
        pins.intr(false);
        assert!(!pins.has(attention::INTR));
    }

    #[test]
    fn sleep_ends_at_its_limit() {
        let pins = Pins::new();
        let start = Instant::now();
        pins.sleep(attention::INTR, Some(Duration::from_millis(20)));
        assert!(start.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn no_wake_is_lost() {
        let (ping, pong) = (Pins::new(), Pins::new());
        let (from, to) = (Arc::clone(&ping), Arc::clone(&pong));
        let thread = std::thread::spawn(move || {
            for _ in 0..20_000 {
                from.sleep(attention::INTR, None);
                from.intr(false);
                to.intr(true);
            }
        });
        for _ in 0..20_000 {
            ping.intr(true);
            pong.sleep(attention::INTR, None);
            pong.intr(false);
        }
        thread.join().expect("every ping was answered");
    }

    #[test]
    fn sipi_carries_its_vector_once() {
        let pins = Pins::new();
        assert_eq!(pins.take_sipi(), None);
        pins.sipi(0x9a);
        pins.sipi(0x11);
        assert_eq!(pins.take_sipi(), Some(0x9a));
        assert_eq!(pins.take_sipi(), None);
        pins.sipi(0);
        assert_eq!(pins.take_sipi(), Some(0));
    }
}
