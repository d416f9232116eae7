//! What broken and hostile drivers get: a device that needs a reset, never a panic, never a hang.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::balloon::Given;
use super::board::{Board, PciTransport, RAM_LEN, RAM_START, Ram, eventually, new_ram};
use super::devices::MemoryImage;
use crate::clock::lock;
use crate::net::{Mac, fake::FakeNet};
use crate::virtio::{Balloon, Block, Console, Entropy, Interfaces, Net, add};

/// Panics of workers since the program started: a reset only logs them.
fn worker_panics() -> usize {
    static HOOK: Once = Once::new();
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    HOOK.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().name().is_some_and(|name| name.starts_with("virtio")) {
                COUNT.fetch_add(1, Ordering::SeqCst);
            }
            next(info);
        }));
    });
    COUNT.load(Ordering::SeqCst)
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const NEEDS_RESET: u64 = 0x40;

/// A descriptor: address, length, flags, next.
type Descriptor = (u64, u32, u16, u16);

/// Entries of each test queue, and the place of queue 0's structures; queue 1 follows.
const ENTRIES: u16 = 16;
const DESCRIPTORS: u64 = RAM_START;
const AVAILABLE: u64 = RAM_START + 0x1000;
const USED: u64 = RAM_START + 0x2000;
const QUEUE_STRIDE: u64 = 0x4000;
/// Where requests are.
const DATA: u64 = RAM_START + 0x1_0000;

fn put_descriptors(ram: &Ram, at: u64, descriptors: &[Descriptor]) {
    for (i, &(address, len, flags, next)) in descriptors.iter().enumerate() {
        let at = at + 16 * i as u64;
        ram.write_obj(address, GuestAddress(at)).expect("in RAM");
        ram.write_obj(len, GuestAddress(at + 8)).expect("in RAM");
        ram.write_obj(flags, GuestAddress(at + 12)).expect("in RAM");
        ram.write_obj(next, GuestAddress(at + 14)).expect("in RAM");
    }
}

/// Sets the available ring's flag for no interrupts.
fn put_no_interrupt(ram: &Ram, at: u64, polls: bool) {
    ram.write_obj(u16::from(polls), GuestAddress(at)).expect("in RAM");
}

fn put_available(ram: &Ram, at: u64, heads: &[u16], index: u16) {
    for (i, &head) in heads.iter().enumerate() {
        ram.write_obj(head, GuestAddress(at + 4 + 2 * i as u64)).expect("in RAM");
    }
    ram.write_obj(index, GuestAddress(at + 2)).expect("in RAM");
}

fn used_index(ram: &Ram, at: u64) -> u16 {
    ram.read_obj(GuestAddress(at + 2)).expect("in RAM")
}

const EVENT_IDX: u64 = 1 << 29;
/// Both ring features, and the balloon's statistics queue.
const FEATURES: u64 = EVENT_IDX | 1 << 28 | 1 << 1;

/// A driver at DRIVER_OK with `queues` queues and what is offered of `features`.
fn ready(driver: &PciTransport, queues: u16, features: u64) {
    driver.write(0x00, 4, 0);
    let offered = driver.read(0x04, 4);
    assert!(driver.negotiate(1 << 32 | offered & features));
    for queue in 0..queues {
        let shift = u64::from(queue) * QUEUE_STRIDE;
        driver.write(0x16, 2, u64::from(queue));
        driver.write(0x18, 2, u64::from(ENTRIES));
        driver.write(0x20, 8, DESCRIPTORS + shift);
        driver.write(0x28, 8, AVAILABLE + shift);
        driver.write(0x30, 8, USED + shift);
        driver.write(0x1c, 2, 1);
    }
    driver.write(0x14, 1, 0xf);
}

/// The first port of the device in slot 2, for drivers from before virtio 1.0.
fn ports_of(board: &Board) -> u64 {
    u64::from(board.config_read(2, 0x10, 4) & !3)
}

/// [`ready`] by such a driver.
fn ready_by_ports(board: &Board, queues: u16, features: u64) {
    let ports = ports_of(board);
    let write = |offset, size, value| board.ports.write(ports + offset, size, value);
    for status in [0, 1, 3] {
        write(0x12, 1, status);
    }
    write(0x04, 4, features);
    for queue in 0..queues {
        write(0x0e, 2, u64::from(queue));
        write(0x08, 4, (DESCRIPTORS + u64::from(queue) * QUEUE_STRIDE) >> 12);
    }
    write(0x12, 1, 7);
}

/// A device with either interface.
struct Subject {
    board: Arc<Board>,
    driver: PciTransport,
    by_ports: bool,
    /// The driver wants no interrupts.
    polls: bool,
    queues: u16,
}

impl Subject {
    fn new(kind: u8, by_ports: bool, polls: bool, ram: &Ram) -> Self {
        let board = board_with(kind, ram);
        let driver = PciTransport::new(&board);
        Self { board, driver, by_ports, polls, queues: QUEUES[usize::from(kind)] }
    }

    /// Size of a queue and where it has available and used ring.
    fn queue(&self, queue: u16) -> (u16, u64, u64) {
        let shift = u64::from(queue) * QUEUE_STRIDE;
        if !self.by_ports {
            return (ENTRIES, AVAILABLE + shift, USED + shift);
        }
        let ports = ports_of(&self.board);
        self.board.ports.write(ports + 0x0e, 2, u64::from(queue));
        let size = self.board.ports.read(ports + 0x0c, 2);
        let available = DESCRIPTORS + shift + 16 * size;
        (size as u16, available, (available + 6 + 2 * size).next_multiple_of(4096))
    }

    fn ready(&self) {
        let features = if self.polls { FEATURES & !EVENT_IDX } else { FEATURES };
        if self.by_ports {
            ready_by_ports(&self.board, self.queues, features);
        } else {
            ready(&self.driver, self.queues, features);
        }
    }

    fn notify(&self, queue: u16) {
        if self.by_ports {
            self.board.ports.write(ports_of(&self.board) + 0x10, 2, u64::from(queue));
        } else {
            self.driver.notify_queue(queue);
        }
    }

    fn status(&self) -> u64 {
        self.driver.read(0x14, 1)
    }
}

/// Devices by number, as [`board_with`] makes them, and how many queues they have.
const QUEUES: [u16; 5] = [1, 2, 1, 2, 3];

/// Chains that are wrong whatever they are for, in a queue of `size` entries: descriptors, head, available index.
fn malformed(size: u16) -> Vec<(&'static str, Vec<Descriptor>, u16, u16)> {
    let end = RAM_START + RAM_LEN as u64;
    let one = |address, len, flags, next| vec![(address, len, flags, next)];
    vec![
        ("loop", vec![(DATA, 16, NEXT, 1), (DATA, 16, NEXT, 0)], 0, 1),
        ("self loop", one(DATA, 16, NEXT, 0), 0, 1),
        ("next past the table", one(DATA, 16, NEXT, size), 0, 1),
        ("next far past the table", one(DATA, 16, NEXT, 0xffff), 0, 1),
        ("head past the table", one(DATA, 16, 0, 0), size, 1),
        ("available index too far ahead", one(DATA, 16, 0, 0), 0, size + 1),
        ("outside RAM", one(0, 16, WRITE, 0), 0, 1),
        ("over the end", one(end - 1, 2, 0, 0), 0, 1),
        ("wraps", one(u64::MAX, u32::MAX, WRITE, 0), 0, 1),
        ("4 GiB", one(DATA, u32::MAX, 0, 0), 0, 1),
        ("readable after writable", vec![(DATA, 16, NEXT | WRITE, 1), (DATA, 16, 0, 0)], 0, 1),
        ("indirect table of odd size", one(DATA + 0x1000, 17, INDIRECT, 0), 0, 1),
        ("indirect table empty", one(DATA + 0x1000, 0, INDIRECT, 0), 0, 1),
        ("indirect table outside RAM", one(0, 48, INDIRECT, 0), 0, 1),
        ("indirect table wraps", one(u64::MAX - 15, 32, INDIRECT, 0), 0, 1),
        ("indirect in indirect", one(DATA + 0x2000, 16, INDIRECT, 0), 0, 1),
        ("loop in an indirect table", one(DATA + 0x3000, 32, INDIRECT, 0), 0, 1),
    ]
}

#[test]
fn every_queue_of_every_device_refuses_malformed_chains_by_both_interfaces() {
    let ram = new_ram();
    put_descriptors(&ram, DATA + 0x2000, &[(DATA + 0x2000, 16, INDIRECT, 0)]);
    put_descriptors(&ram, DATA + 0x3000, &[(DATA, 16, NEXT, 1), (DATA, 16, NEXT, 0)]);
    let panics = worker_panics();
    for (kind, queues) in (0..).zip(QUEUES) {
        for (queue, by_ports, polls) in (0..queues).flat_map(|queue| {
            [(queue, false, false), (queue, false, true), (queue, true, false), (queue, true, true)]
        }) {
            let subject = Subject::new(kind, by_ports, polls, &ram);
            let (size, available, used) = subject.queue(queue);
            for (what, descriptors, head, index) in malformed(size) {
                let name = format!(
                    "device {kind}, queue {queue}, by ports {by_ports}, polls {polls}: {what}"
                );
                ram.write_slice(&[0; 0xc000], GuestAddress(RAM_START)).expect("in RAM");
                let shift = u64::from(queue) * QUEUE_STRIDE;
                put_descriptors(&ram, DESCRIPTORS + shift, &descriptors);
                put_available(&ram, available, &[head], index);
                put_no_interrupt(&ram, available, polls);
                subject.ready();
                subject.notify(queue);
                eventually(&name, || subject.status() & NEEDS_RESET != 0);
                assert_eq!(used_index(&ram, used), 0, "{name}: nothing is given back");
                // Deaf until a reset.
                subject.notify(queue);
                subject.driver.write(0x14, 1, 0);
                assert_eq!(subject.status(), 0);
            }
        }
    }
    assert_eq!(worker_panics(), panics);
}

fn block_board() -> (Ram, Arc<Board>, PciTransport) {
    let ram = new_ram();
    let board = Board::with(Block::new(MemoryImage::new(64, false), ""), &ram);
    let driver = PciTransport::new(&board);
    (ram, board, driver)
}

/// A read of one sector at `DATA`: what a sound request looks like.
const READ: [Descriptor; 3] =
    [(DATA, 16, NEXT, 1), (DATA + 16, 512, NEXT | WRITE, 2), (DATA + 528, 1, WRITE, 0)];

#[test]
fn a_malformed_ring_needs_a_reset_and_works_after_it() {
    let end = RAM_START + RAM_LEN as u64;
    let cases: &[(&str, &[Descriptor], u16, u16)] = &[
        ("loop", &[(DATA, 16, NEXT, 1), (DATA, 16, NEXT, 0)], 0, 1),
        ("sound but for its end", &[READ[0], READ[1], (DATA + 528, 1, NEXT | WRITE, 16)], 0, 1),
        ("sound but for a loop", &[READ[0], READ[1], (DATA + 528, 1, NEXT | WRITE, 2)], 0, 1),
        ("self loop", &[(DATA, 16, NEXT, 0)], 0, 1),
        ("next past the table", &[(DATA, 16, NEXT, 16)], 0, 1),
        ("head past the table", &READ, 16, 1),
        ("available index too far ahead", &READ, 0, 17),
        ("buffer outside RAM", &[(0, 16, NEXT, 1), READ[1], READ[2]], 0, 1),
        ("buffer over the end", &[READ[0], (end - 1, 512, NEXT | WRITE, 2), READ[2]], 0, 1),
        ("buffer wraps", &[(u64::MAX, u32::MAX, NEXT, 1), READ[1], READ[2]], 0, 1),
        ("readable after writable", &[(DATA, 16, NEXT | WRITE, 1), (DATA, 16, 0, 0)], 0, 1),
        ("indirect table of odd size", &[(DATA + 0x1000, 17, INDIRECT, 0)], 0, 1),
        ("indirect table empty", &[(DATA + 0x1000, 0, INDIRECT, 0)], 0, 1),
        ("indirect table outside RAM", &[(0, 48, INDIRECT, 0)], 0, 1),
        ("indirect in indirect", &[(DATA + 0x2000, 16, INDIRECT, 0)], 0, 1),
        ("no header", &[READ[2]], 0, 1),
        ("no status", &[(DATA, 16, 0, 0)], 0, 1),
    ];
    let (ram, _board, driver) = block_board();
    put_descriptors(&ram, DATA + 0x2000, &[(DATA + 0x2000, 16, INDIRECT, 0)]);
    let panics = worker_panics();
    for &(what, descriptors, head, index) in cases {
        ram.write_slice(&[0; 0x3000], GuestAddress(RAM_START)).expect("in RAM");
        put_descriptors(&ram, DESCRIPTORS, descriptors);
        put_available(&ram, AVAILABLE, &[head], index);
        ready(&driver, 1, FEATURES);
        driver.notify_queue(0);
        eventually(what, || driver.read(0x14, 1) & NEEDS_RESET != 0);
        assert_eq!(used_index(&ram, USED), 0, "{what}: nothing is given back");

        ram.write_slice(&[0; 0x3000], GuestAddress(RAM_START)).expect("in RAM");
        put_descriptors(&ram, DESCRIPTORS, &READ);
        put_available(&ram, AVAILABLE, &[0], 1);
        ready(&driver, 1, FEATURES);
        driver.notify_queue(0);
        eventually("a request after the reset", || used_index(&ram, USED) == 1);
        assert_eq!(driver.read(0x14, 1), 0xf);
    }
    assert_eq!(worker_panics(), panics);
}

#[test]
fn queues_that_cannot_be_are_refused_at_driver_ok() {
    let (_ram, _board, driver) = block_board();
    let places: &[(u64, u64, u64, u64)] = &[
        (0, DESCRIPTORS, AVAILABLE, USED),
        (3, DESCRIPTORS, AVAILABLE, USED),
        (0x8000, DESCRIPTORS, AVAILABLE, USED),
        (16, DESCRIPTORS + 8, AVAILABLE, USED),
        (16, DESCRIPTORS, AVAILABLE + 1, USED),
        (16, DESCRIPTORS, AVAILABLE, USED + 2),
        (16, 0, AVAILABLE, USED),
        (16, DESCRIPTORS, u64::MAX - 1, USED),
        (16, u64::MAX - 15, AVAILABLE, USED),
        (16, DESCRIPTORS, AVAILABLE, RAM_START + RAM_LEN as u64 - 4),
    ];
    for &(size, descriptors, available, used) in places {
        assert!(driver.negotiate(1 << 32));
        driver.write(0x18, 2, size);
        driver.write(0x20, 8, descriptors);
        driver.write(0x28, 8, available);
        driver.write(0x30, 8, used);
        driver.write(0x1c, 2, 1);
        driver.write(0x14, 1, 0xf);
        assert_eq!(driver.read(0x14, 1), 0x4f, "{size} {descriptors:x} {available:x} {used:x}");
        driver.notify_queue(0);
    }
}

/// Takes its time with each piece, and counts them.
struct SlowSink(Arc<AtomicUsize>);

impl std::io::Write for SlowSink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        std::thread::sleep(Duration::from_millis(1));
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reset_ends_a_huge_request_early() {
    let ram = new_ram();
    let pieces = Arc::new(AtomicUsize::new(0));
    let (device, _handle) = Console::new(Box::new(SlowSink(Arc::clone(&pieces))));
    let board = Board::with(device, &ram);
    let driver = PciTransport::new(&board);
    // 16 chains of 16 times 60 MiB each, transmitted again and again.
    let descriptors: Vec<Descriptor> =
        (0..ENTRIES).map(|i| (DATA, 60 << 20, if i < 15 { NEXT } else { 0 }, i + 1)).collect();
    put_descriptors(&ram, DESCRIPTORS + QUEUE_STRIDE, &descriptors);
    put_available(&ram, AVAILABLE + QUEUE_STRIDE, &[0; ENTRIES as usize], ENTRIES);
    ready(&driver, 2, FEATURES);
    driver.notify_queue(1);
    eventually("the first piece", || pieces.load(Ordering::SeqCst) > 0);
    // All of them are 15 GiB, and take more than an hour.
    let begin = Instant::now();
    driver.write(0x14, 1, 0);
    assert!(begin.elapsed() < Duration::from_secs(60), "took {:?}", begin.elapsed());
}

/// An address: in RAM by preference, near its queues often, else anywhere.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => RAM_START..RAM_START + 0x2_0000,
        1 => RAM_START..RAM_START + RAM_LEN as u64 + 0x1000,
        1 => any::<u64>(),
        1 => Just(u64::MAX),
    ]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let len = prop_oneof![
        6 => 0..0x1000u32,
        1 => Just(16u32),
        1 => any::<u32>(),
        1 => Just(u32::MAX),
    ];
    (address(), len, 0..8u16, 0..20u16)
}

/// A device by number; all have what the test of rings needs.
fn board_with(kind: u8, ram: &Ram) -> Arc<Board> {
    match kind {
        0 => Board::with(Block::new(MemoryImage::new(64, false), ""), ram),
        1 => {
            let (device, handle) = Console::new(Box::new(std::io::sink()));
            handle.send(&[0x55; 5000]);
            Board::with(device, ram)
        }
        2 => Board::with(Entropy::new(Box::new(|bytes| bytes.fill(0xee))), ram),
        4 => {
            let (device, handle) = Balloon::new(Arc::new(Given::default()));
            handle.set_target(1 << 20);
            Board::with(device, ram)
        }
        _ => {
            let network = FakeNet::new();
            for len in [14, 60, 1518] {
                network.deliver(&vec![0x77; len]);
            }
            Board::with(Net::new(network, Mac::default()), ram)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any contents of descriptor table and rings, on any device.
    #[test]
    fn random_rings_neither_panic_nor_hang(
        kind in 0..5u8,
        by_ports in any::<bool>(),
        polls in any::<bool>(),
        early in any::<bool>(),
        descriptors in vec(descriptor(), 48),
        heads in vec(0..17u16, 48),
        index in 0..18u16,
        headers in vec(any::<u8>(), 64),
    ) {
        let panics = worker_panics();
        let ram = new_ram();
        let subject = Subject::new(kind, by_ports, polls, &ram);
        ram.write_slice(&headers, GuestAddress(DATA)).expect("in RAM");
        let mut used = 0;
        for queue in 0..subject.queues {
            let half = 16 * usize::from(queue)..16 * usize::from(queue) + 16;
            let at = DESCRIPTORS + u64::from(queue) * QUEUE_STRIDE;
            let (_, available, used_ring) = subject.queue(queue);
            put_descriptors(&ram, at, &descriptors[half.clone()]);
            put_available(&ram, available, &heads[half], index);
            put_no_interrupt(&ram, available, polls);
            used = used.max(used_ring);
        }
        if early {
            // A driver that can't wait.
            subject.notify(0);
        }
        subject.ready();
        for queue in 0..subject.queues {
            subject.notify(queue);
        }
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(3)
            && subject.status() & NEEDS_RESET == 0
            && used_index(&ram, used) != index
        {
            std::thread::yield_now();
        }
        let driver = &subject.driver;
        let begin = Instant::now();
        driver.write(0x14, 1, 0);
        prop_assert_eq!(driver.read(0x14, 1), 0);
        prop_assert!(begin.elapsed() < Duration::from_secs(60));
        prop_assert_eq!(worker_panics(), panics);
    }

    /// Any accesses to configuration space (so BARs go anywhere) and to BARs wherever they are.
    #[test]
    fn random_register_accesses_neither_panic_nor_hang(
        accesses in vec(
            (0..21u8, any::<u32>(), 0..4u8, any::<u64>(), prop::bool::weighted(0.7)),
            1..200,
        ),
    ) {
        let panics = worker_panics();
        let ram = new_ram();
        let board = Board::new();
        {
            let mut root = lock(&board.root);
            let kind = Interfaces::default();
            add(&mut root, Block::new(MemoryImage::new(8, false), "x"), ram.clone(), kind).expect("fits");
            let (console, _) = Console::new(Box::new(std::io::sink()));
            add(&mut root, console, ram.clone(), kind).expect("fits");
            let entropy = Entropy::new(Box::new(|bytes| bytes.fill(1)));
            add(&mut root, entropy, ram.clone(), kind).expect("fits");
            let card = Net::new(FakeNet::new(), Mac::default());
            add(&mut root, card, ram.clone(), kind).expect("fits");
            let (balloon, _) = Balloon::new(Arc::new(Given::default()));
            add(&mut root, balloon, ram.clone(), kind).expect("fits");
        }
        board.assign();
        let begin = Instant::now();
        for access in accesses {
            perform(&board, access);
        }
        lock(&board.root).reset();
        board.assign();
        prop_assert_eq!(board.memory.read(board.bar(2, 4) + 0x2000, 8), 8, "as new");
        prop_assert!(begin.elapsed() < Duration::from_secs(60));
        prop_assert_eq!(worker_panics(), panics);
    }
}

/// A register access: target, offset, size (as a power of two), value, and whether it writes.
type Access = (u8, u32, u8, u64, bool);

fn perform(board: &Board, (target, offset, size, value, write): Access) {
    let slot = target % 7;
    let size = 1 << size;
    if target < 7 {
        // Ports: whole configuration space, also over the end of double words.
        let at = 1u64 << 31 | u64::from(slot) << 11 | u64::from(offset & 0xfc);
        board.ports.write(0xcf8, 4, at);
        let port = 0xcfc + u64::from(offset >> 8 & 3);
        if write {
            board.ports.write(port, size, value);
        } else {
            let _ = board.ports.read(port, size);
        }
        return;
    }
    // Registers: small values and few bits lead deeper than random ones.
    let value = if value & 1 == 0 { value >> 1 & 0xf } else { value };
    if target < 14 {
        let ports = u64::from(board.config_read(slot, 0x10, 4) & 0xfffc);
        let at = ports + u64::from(offset & 0x1f);
        if write {
            board.ports.write(at, size, value);
        } else {
            let _ = board.ports.read(at, size);
        }
        return;
    }
    let index = if target & 1 == 0 { 1 } else { 4 };
    let offset = u64::from(offset >> 8 & 0x3) << 12 | u64::from(offset & 0x3f);
    let at = board.bar(slot, index).wrapping_add(offset);
    if write {
        board.memory.write(at, size, value);
    } else {
        let _ = board.memory.read(at, size);
    }
}
