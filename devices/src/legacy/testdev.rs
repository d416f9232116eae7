//! The test device that QEMU calls pc-testdev, used by kvm-unit-tests.
//!
//! Problem: tests of emulation need I/O with a known answer: storage behind ports of each width,
//! storage behind MMIO, interrupt lines by hand. Scheme: one device with several ranges:
//!
//! | where | what |
//! |---|---|
//! | port 0xe0-0xe3 | 32-bit scratch register |
//! | port 0xe4-0xe7 | a write names a page whose host mapping is to be dropped: nothing to see |
//! | port 0xe8-0xeb | the same scratch register, byte by byte |
//! | port 0x2000-0x2017 | write of nonzero/zero raises/lowers that interrupt line |
//! | memory 0xff000000, 64 KiB | storage |
//!
//! Invariants: offsets are taken modulo their range, so no guest value indexes outside. Any thread.
//! Source: the device's users (kvm-unit-tests x86: ioapic, emulator, memory tests) and QEMU 10's
//! behaviour.

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::bus::{Bus, BusDevice, Overlap};
use crate::irq::{IrqLine, IrqSink};

const SCRATCH_PORT: u64 = 0xe0;
const SCRATCH_PORTS: u64 = 12;
const LINE_PORT: u64 = 0x2000;
const LINES: u32 = 24;
const MEMORY: u64 = 0xff00_0000;
const MEMORY_BYTES: usize = 0x1_0000;

/// Ports 0xe0-0xeb.
#[derive(Debug, Default)]
struct Scratch([u8; 4]);

impl BusDevice for Scratch {
    fn read(&mut self, offset: u64, size: u8) -> u64 {
        if offset & 0xc == 4 {
            return 0;
        }
        (0..u64::from(size).min(4))
            .map(|i| u64::from(self.0[((offset + i) & 3) as usize]) << (8 * i))
            .sum()
    }
    fn write(&mut self, offset: u64, size: u8, value: u64) {
        if offset & 0xc == 4 {
            return;
        }
        let bytes = value.to_le_bytes();
        for i in 0..u64::from(size).min(4) {
            self.0[((offset + i) & 3) as usize] = bytes[i as usize];
        }
    }
    fn width(&self) -> u8 {
        4
    }
}

/// Ports 0x2000-0x2017.
#[derive(Debug)]
struct Lines(Vec<IrqLine>);

impl BusDevice for Lines {
    fn read(&mut self, _: u64, _: u8) -> u64 {
        0
    }
    fn write(&mut self, offset: u64, _: u8, value: u64) {
        if let Some(line) = usize::try_from(offset).ok().and_then(|i| self.0.get(i)) {
            line.set(value & 0xff != 0);
        }
    }
}

/// 64 KiB of memory that is a device.
struct Storage(Box<[u8]>);

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Storage").finish_non_exhaustive()
    }
}

fn index(offset: u64, i: u64) -> usize {
    (offset.wrapping_add(i) % MEMORY_BYTES as u64) as usize
}

impl BusDevice for Storage {
    fn read(&mut self, offset: u64, size: u8) -> u64 {
        (0..u64::from(size).min(8)).map(|i| u64::from(self.0[index(offset, i)]) << (8 * i)).sum()
    }
    fn write(&mut self, offset: u64, size: u8, value: u64) {
        let bytes = value.to_le_bytes();
        for i in 0..u64::from(size).min(8) {
            self.0[index(offset, i)] = bytes[i as usize];
        }
    }
    fn width(&self) -> u8 {
        8
    }
}

/// Puts the test device on both buses.
///
/// # Errors
/// [`Overlap`] if one of its ranges is taken.
pub fn attach(ports: &mut Bus, memory: &mut Bus, sink: &Arc<dyn IrqSink>) -> Result<(), Overlap> {
    let lines = (0..LINES).map(|gsi| IrqLine::new(Arc::clone(sink), gsi)).collect();
    ports.insert(SCRATCH_PORT, SCRATCH_PORTS, Arc::new(Mutex::new(Scratch::default())))?;
    ports.insert(LINE_PORT, LINES.into(), Arc::new(Mutex::new(Lines(lines))))?;
    let storage = Storage(vec![0; MEMORY_BYTES].into_boxed_slice());
    memory.insert(MEMORY, MEMORY_BYTES as u64, Arc::new(Mutex::new(storage)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeIrqs, Random};

    fn buses() -> (Bus, Bus, Arc<FakeIrqs>) {
        let (mut ports, mut memory, irqs) = (Bus::new(), Bus::new(), FakeIrqs::new());
        let sink: Arc<dyn IrqSink> = Arc::clone(&irqs) as _;
        attach(&mut ports, &mut memory, &sink).expect("empty buses");
        (ports, memory, irqs)
    }

    #[test]
    fn scratch_register_in_every_width() {
        let (ports, ..) = buses();
        ports.write(0xe0, 4, 0x1234_5678);
        assert_eq!(ports.read(0xe0, 4), 0x1234_5678);
        assert_eq!(ports.read(0xe2, 2), 0x1234);
        assert_eq!(ports.read(0xe1, 1), 0x56);
        assert_eq!(ports.read(0xe8, 4), 0x1234_5678);
        ports.write(0xe9, 1, 0xaa);
        ports.write(0xe4, 4, 0x10_0000);
        assert_eq!(ports.read(0xe0, 4), 0x1234_aa78);
    }

    #[test]
    fn lines_follow_writes() {
        let (ports, _, irqs) = buses();
        ports.write(0x200e, 1, 1);
        assert!(irqs.level(14));
        ports.write(0x200e, 1, 0);
        assert!(!irqs.level(14));
        ports.write(0x2017, 1, 0x80);
        assert!(irqs.level(23));
    }

    #[test]
    fn storage_keeps_bytes_in_every_width() {
        let (_, memory, _) = buses();
        memory.write(MEMORY + 0xfff8, 8, 0x1122_3344_5566_7788);
        assert_eq!(memory.read(MEMORY + 0xfffc, 4), 0x1122_3344);
        assert_eq!(memory.read(MEMORY + 0xfffd, 1), 0x33);
        memory.write(MEMORY, 2, 0xaabb);
        assert_eq!(memory.read(MEMORY + 0xfffe, 4), 0xaabb_1122, "past the end: the start");
    }

    #[test]
    fn random_traffic_is_harmless() {
        let (ports, memory, _) = buses();
        let mut random = Random(77);
        for _ in 0..100_000 {
            let n = random.next();
            let size = 1 << (n & 3);
            let port = if n & 4 == 0 { 0xe0 } else { 0x2000 } + (n >> 8 & 0x1f);
            if n & 8 == 0 {
                ports.write(port, size.min(4), n >> 16);
                memory.write(MEMORY + (n >> 13 & 0xffff), size, n);
            } else {
                let _ = ports.read(port, size.min(4));
                let _ = memory.read(MEMORY + (n >> 13 & 0xffff), size);
            }
        }
    }
}
