//! KVM's clock from the driver's side: it is read as Linux reads it.

use vm_memory::GuestMemoryMmap;

use super::Register::{SystemTime, WallClock};
use super::*;
use crate::fake::FakeClock;

const PLACE: u64 = 0x1000;
const RAM_BYTES: u64 = 0x8000;

struct Bench {
    memory: Arc<GuestMemoryMmap>,
    clock: Arc<FakeClock>,
    device: KvmClock<Arc<GuestMemoryMmap>>,
}

/// What stands at a vCPU's place.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    version: u32,
    tsc: u64,
    ns: u64,
    scale: Scale,
    flags: u8,
}

impl Told {
    /// The time at a value of the vCPU's counter.
    fn ns(&self, tsc: u64) -> u64 {
        self.ns + self.scale.ns(tsc.wrapping_sub(self.tsc))
    }
}

impl Bench {
    fn new(vcpus: usize) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_BYTES as usize)]);
        let memory = Arc::new(memory.expect("32 KiB"));
        let clock = FakeClock::into_second(250_000_000);
        let device = KvmClock::new(Arc::clone(&clock) as _, Arc::clone(&memory), vcpus);
        Self { memory, clock, device }
    }

    fn bytes<const LEN: usize>(&self, gpa: u64) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        self.memory.read_slice(&mut bytes, GuestAddress(gpa)).expect("in RAM");
        bytes
    }

    fn word(&self, gpa: u64) -> u32 {
        u32::from_le_bytes(self.bytes(gpa))
    }

    fn told(&self, gpa: u64) -> Told {
        let long = |at| u64::from_le_bytes(self.bytes(gpa + at));
        let [shift, flags] = self.bytes(gpa + 28);
        let scale = Scale { shift: i8::from_le_bytes([shift]), factor: self.word(gpa + 24) };
        Told { version: self.word(gpa), tsc: long(8), ns: long(16), scale, flags }
    }
}

#[test]
fn a_place_tells_the_clocks_time() {
    let mut bench = Bench::new(1);
    for _ in 0..2 {
        bench.clock.advance(123_456_789);
        bench.device.write(0, SystemTime, PLACE | 1);
        let told = bench.told(PLACE);
        assert_eq!(told.ns(bench.clock.tsc()), bench.clock.now_ns());
        assert_eq!((told.version % 2, told.flags), (0, 1));
    }
    // Not written again without need, and not beyond its end.
    bench.clock.advance(1);
    assert_eq!(bench.told(PLACE).version, 4);
    assert_eq!(bench.bytes::<32>(PLACE + 32), [0; 32]);
    // Given up: the guest's own again.
    bench.device.write(0, SystemTime, PLACE);
    bench.device.tsc_moved(0, 1);
    assert_eq!(bench.told(PLACE).version, 4);
}

#[test]
fn each_register_has_two_numbers() {
    let found = [0x10, 0x11, 0x12, 0x4b56_4d00, 0x4b56_4d01, 0x4b56_4d02].map(Register::of);
    let (wall, system) = (Some(WallClock), Some(SystemTime));
    assert_eq!(found, [None, wall, system, wall, system, None]);
}

#[test]
fn the_date_has_one_register_and_the_time_one_a_vcpu() {
    let mut bench = Bench::new(2);
    bench.device.write(1, SystemTime, PLACE | 1);
    bench.device.write(1, WallClock, 0x2000);
    let read = |cpu, register| bench.device.read(cpu, register);
    assert_eq!((read(0, SystemTime), read(1, SystemTime)), (0, PLACE | 1));
    assert_eq!((read(0, WallClock), read(1, WallClock)), (0x2000, 0x2000));
}

#[test]
fn a_moved_counter_tells_the_same_time() {
    let mut bench = Bench::new(1);
    bench.device.write(0, SystemTime, PLACE | 1);
    bench.clock.advance(5_000_000_000);
    for offset in [7, 5_000_000_000u64.wrapping_neg(), u64::MAX / 2] {
        let version = bench.told(PLACE).version;
        bench.device.tsc_moved(0, offset);
        let told = bench.told(PLACE);
        assert_eq!(told.ns(bench.clock.tsc().wrapping_add(offset)), 5_000_000_000, "{offset:#x}");
        assert_eq!(told.version, version + 2);
    }
}

#[test]
fn places_are_stable_while_all_counters_are_the_same() {
    let mut bench = Bench::new(2);
    let places = [PLACE, 0x2000];
    for (cpu, place) in places.into_iter().enumerate() {
        bench.device.write(cpu, SystemTime, place | 1);
    }
    let flags = |bench: &Bench| places.map(|place| bench.told(place).flags);
    assert_eq!(flags(&bench), [1, 1]);
    bench.device.tsc_moved(1, 100);
    assert_eq!(flags(&bench), [0, 0]);
    bench.device.tsc_moved(0, 100);
    assert_eq!(flags(&bench), [1, 1]);
    assert_eq!(bench.told(PLACE).tsc, 100);
}

#[test]
fn the_date_is_told_on_each_write() {
    let mut bench = Bench::new(1);
    for version in [2, 4] {
        bench.clock.advance(1_000_000_000);
        bench.device.write(0, WallClock, 0x2004);
        let date = [0, 4, 8, 12].map(|at| bench.word(0x2004 + at));
        assert_eq!(date, [version, 1_700_000_000, 250_000_000, 0]);
    }
}

#[test]
fn versions_become_even_whatever_was_there() {
    let mut bench = Bench::new(1);
    for (before, after) in [(0, 2), (1, 4), (2, 4), (u32::MAX - 1, 0), (u32::MAX, 2)] {
        bench.memory.write_slice(&before.to_le_bytes(), GuestAddress(PLACE)).expect("in RAM");
        bench.device.write(0, SystemTime, PLACE | 1);
        assert_eq!(bench.told(PLACE).version, after, "{before:#x}");
    }
}

#[test]
fn init_gives_the_place_up() {
    let mut bench = Bench::new(1);
    bench.device.write(0, SystemTime, PLACE | 1);
    bench.device.init_cpu(0);
    bench.device.tsc_moved(0, 1);
    assert_eq!(bench.told(PLACE).version, 2);
    assert_eq!(bench.device.read(0, SystemTime), 0);
}

#[test]
fn what_is_no_place_is_not_written() {
    let mut bench = Bench::new(1);
    for gpa in [2, 0xfe4, RAM_BYTES - 28, RAM_BYTES, 1 << 40, !31, !1] {
        bench.device.write(0, SystemTime, gpa | 1);
    }
    for gpa in [0, 1, 0xff8, RAM_BYTES - 8, RAM_BYTES, 1 << 40, !15, !0] {
        bench.device.write(0, WallClock, gpa);
    }
    assert_eq!(bench.bytes::<{ RAM_BYTES as usize }>(0), [0; RAM_BYTES as usize]);
}
