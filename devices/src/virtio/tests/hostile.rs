//! What broken and hostile drivers get: a device that needs a reset, never a panic, never a hang.

use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::board::{Board, PciTransport, RAM_LEN, RAM_START, Ram, eventually, new_ram};
use super::devices::MemoryImage;
use crate::clock::lock;
use crate::net::{Mac, fake::FakeNet};
use crate::virtio::{Block, Console, Entropy, Net, add};

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

fn put_available(ram: &Ram, at: u64, heads: &[u16], index: u16) {
    for (i, &head) in heads.iter().enumerate() {
        ram.write_obj(head, GuestAddress(at + 4 + 2 * i as u64)).expect("in RAM");
    }
    ram.write_obj(index, GuestAddress(at + 2)).expect("in RAM");
}

fn used_index(ram: &Ram, at: u64) -> u16 {
    ram.read_obj(GuestAddress(at + 2)).expect("in RAM")
}

/// A driver at DRIVER_OK with `queues` queues and both ring features.
fn ready(driver: &PciTransport, queues: u16) {
    assert!(driver.negotiate(1 << 32 | 1 << 29 | 1 << 28));
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

fn block_board() -> (Ram, std::sync::Arc<Board>, PciTransport) {
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
        ready(&driver, 1);
        driver.notify_queue(0);
        eventually(what, || driver.read(0x14, 1) & NEEDS_RESET != 0);
        assert_eq!(used_index(&ram, USED), 0, "{what}: nothing is given back");

        ram.write_slice(&[0; 0x3000], GuestAddress(RAM_START)).expect("in RAM");
        put_descriptors(&ram, DESCRIPTORS, &READ);
        put_available(&ram, AVAILABLE, &[0], 1);
        ready(&driver, 1);
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

#[test]
fn a_reset_ends_a_huge_request_early() {
    let ram = new_ram();
    let (device, _handle) = Console::new(Box::new(std::io::sink()));
    let board = Board::with(device, &ram);
    let driver = PciTransport::new(&board);
    // 16 chains of 16 times 60 MiB each, transmitted again and again.
    let descriptors: Vec<Descriptor> =
        (0..ENTRIES).map(|i| (DATA, 60 << 20, if i < 15 { NEXT } else { 0 }, i + 1)).collect();
    put_descriptors(&ram, DESCRIPTORS + QUEUE_STRIDE, &descriptors);
    put_available(&ram, AVAILABLE + QUEUE_STRIDE, &[0; ENTRIES as usize], ENTRIES);
    ready(&driver, 2);
    driver.notify_queue(1);
    std::thread::sleep(Duration::from_millis(5));
    let begin = Instant::now();
    driver.write(0x14, 1, 0);
    assert!(begin.elapsed() < Duration::from_secs(2), "took {:?}", begin.elapsed());
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
fn board_with(kind: u8, ram: &Ram) -> std::sync::Arc<Board> {
    match kind {
        0 => Board::with(Block::new(MemoryImage::new(64, false), ""), ram),
        1 => {
            let (device, handle) = Console::new(Box::new(std::io::sink()));
            handle.send(&[0x55; 5000]);
            Board::with(device, ram)
        }
        2 => Board::with(Entropy::new(Box::new(|bytes| bytes.fill(0xee))), ram),
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
        kind in 0..4u8,
        descriptors in vec(descriptor(), 32),
        heads in vec(0..17u16, 32),
        index in 0..18u16,
        headers in vec(any::<u8>(), 64),
    ) {
        let panics = worker_panics();
        let ram = new_ram();
        let board = board_with(kind, &ram);
        let driver = PciTransport::new(&board);
        ram.write_slice(&headers, GuestAddress(DATA)).expect("in RAM");
        let queues = if kind == 1 || kind == 3 { 2 } else { 1 };
        for queue in 0..queues {
            let (shift, half) = (queue as u64 * QUEUE_STRIDE, 16 * queue..16 * queue + 16);
            put_descriptors(&ram, DESCRIPTORS + shift, &descriptors[half.clone()]);
            put_available(&ram, AVAILABLE + shift, &heads[half], index);
        }
        ready(&driver, queues as u16);
        driver.notify_queue(0);
        driver.notify_queue(1);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(3)
            && driver.read(0x14, 1) & NEEDS_RESET == 0
            && used_index(&ram, USED) != index
        {
            std::thread::yield_now();
        }
        let begin = Instant::now();
        driver.write(0x14, 1, 0);
        prop_assert_eq!(driver.read(0x14, 1), 0);
        prop_assert!(begin.elapsed() < Duration::from_secs(5));
        prop_assert_eq!(worker_panics(), panics);
    }

    /// Any accesses to configuration space (so BARs go anywhere) and to BARs wherever they are.
    #[test]
    fn random_register_accesses_neither_panic_nor_hang(
        accesses in vec(
            (0..13u8, any::<u32>(), 0..4u8, any::<u64>(), prop::bool::weighted(0.7)),
            1..200,
        ),
    ) {
        let panics = worker_panics();
        let ram = new_ram();
        let board = Board::new();
        {
            let mut root = lock(&board.root);
            add(&mut root, Block::new(MemoryImage::new(8, false), "x"), ram.clone()).expect("fits");
            let (console, _) = Console::new(Box::new(std::io::sink()));
            add(&mut root, console, ram.clone()).expect("fits");
            let entropy = Entropy::new(Box::new(|bytes| bytes.fill(1)));
            add(&mut root, entropy, ram.clone()).expect("fits");
            let card = Net::new(FakeNet::new(), Mac::default());
            add(&mut root, card, ram.clone()).expect("fits");
        }
        board.assign();
        let begin = Instant::now();
        for access in accesses {
            perform(&board, access);
        }
        lock(&board.root).reset();
        board.assign();
        prop_assert_eq!(board.memory.read(board.bar(2, 4) + 0x2000, 8), 8, "as new");
        prop_assert!(begin.elapsed() < Duration::from_secs(5));
        prop_assert_eq!(worker_panics(), panics);
    }
}

/// A register access: target, offset, size (as a power of two), value, and whether it writes.
type Access = (u8, u32, u8, u64, bool);

fn perform(board: &Board, (target, offset, size, value, write): Access) {
    let slot = target % 6;
    let size = 1 << size;
    if target < 6 {
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
    let index = if target & 1 == 0 { 1 } else { 4 };
    let offset = u64::from(offset >> 8 & 0x3) << 12 | u64::from(offset & 0x3f);
    let at = board.bar(slot, index).wrapping_add(offset);
    if write {
        board.memory.write(at, size, value);
    } else {
        let _ = board.memory.read(at, size);
    }
}
