//! What a driver of the memory balloon and its host see.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::board::{Board, PciTransport, RAM, alloc, eventually};
use crate::clock::lock;
use crate::virtio::{Balloon, BalloonHandle, BalloonMemory};

/// Records what is given back: start and length.
#[derive(Default)]
pub struct Given(Mutex<Vec<(u64, u64)>>);

impl BalloonMemory for Given {
    fn give_back(&self, start: u64, bytes: u64) {
        lock(&self.0).push((start, bytes));
    }
}

/// A driver by hand with three queues of 16 entries, one descriptor a request.
struct Driver {
    given: Arc<Given>,
    board: Arc<Board>,
    transport: PciTransport,
    rings: [u64; 3],
}

fn start() -> (Driver, BalloonHandle) {
    let given = Arc::<Given>::default();
    let (device, handle) = Balloon::new(Arc::clone(&given) as _);
    let board = Board::with(device, &RAM);
    let transport = PciTransport::new(&board);
    board.enable_msix(2);
    assert!(transport.negotiate(1 << 32 | 1 << 1));
    transport.write(0x10, 2, 0);
    let rings = [(); 3].map(|()| alloc(3 * 4096));
    for (queue, ring) in rings.into_iter().enumerate() {
        transport.write(0x16, 2, queue as u64);
        transport.write(0x18, 2, 16);
        transport.write(0x20, 8, ring);
        transport.write(0x28, 8, ring + 0x1000);
        transport.write(0x30, 8, ring + 0x2000);
        transport.write(0x1a, 2, queue as u64 + 1);
        transport.write(0x1c, 2, 1);
    }
    transport.write(0x14, 1, 0xf);
    (Driver { given, board, transport, rings }, handle)
}

impl Driver {
    fn config(&self, offset: u64) -> u64 {
        let bar = self.board.bar(2, 4);
        self.board.memory.read(bar + 0x2000 + offset, 4)
    }

    fn offer(&self, queue: usize, bytes: &[u8]) {
        let (ring, buffer) = (self.rings[queue], alloc(bytes.len()));
        RAM.write_slice(bytes, GuestAddress(buffer)).expect("in RAM");
        RAM.write_obj([buffer, bytes.len() as u64], GuestAddress(ring)).expect("in RAM");
        let index: u16 = RAM.read_obj(GuestAddress(ring + 0x1002)).expect("in RAM");
        let slot = GuestAddress(ring + 0x1004 + 2 * u64::from(index % 16));
        RAM.write_obj(0u16, slot).expect("in RAM");
        RAM.write_obj(index + 1, GuestAddress(ring + 0x1002)).expect("in RAM");
        self.transport.notify_queue(queue as u16);
    }

    fn used(&self, queue: usize) -> u16 {
        RAM.read_obj(GuestAddress(self.rings[queue] + 0x2002)).expect("in RAM")
    }

    fn pages(&self, queue: usize, pages: &[u32]) {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        let before = self.used(queue);
        self.offer(queue, &bytes);
        eventually("the request", || self.used(queue) == before + 1);
    }
}

#[test]
fn pages_in_the_balloon_are_given_back_and_neighbours_together() {
    let (driver, handle) = start();
    handle.set_target(6 * 4096 + 5);
    eventually("a configuration interrupt", || {
        driver.board.sink.messages().contains(&(0xfee0_1000, 0x40))
    });
    assert_eq!(driver.config(0), 6);
    driver.pages(0, &[9, 7, 8, 20, 7, u32::MAX]);
    let pages = [(7, 3), (20, 1), (u64::from(u32::MAX), 1)];
    assert_eq!(*lock(&driver.given.0), pages.map(|(page, count)| (page * 4096, count * 4096)));
    let bar = driver.board.bar(2, 4);
    driver.board.memory.write(bar + 0x2004, 4, 6);
    // The target is the host's.
    driver.board.memory.write(bar + 0x2000, 4, 1);
    assert_eq!((driver.config(0), driver.config(4), handle.bytes()), (6, 6, 6 * 4096));
    // A request that is cut off in the middle of a number, and one longer than is taken at a time.
    driver.offer(0, &[1, 0, 0]);
    eventually("the odd one", || driver.used(0) == 2);
    lock(&driver.given.0).clear();
    driver.pages(0, &(1000..3000).collect::<Vec<u32>>());
    let given = lock(&driver.given.0).clone();
    assert_eq!(given, [(1000 * 4096, 1024 * 4096), (2024 * 4096, 976 * 4096)]);

    driver.pages(1, &[7, 8, 9]);
    assert_eq!(lock(&driver.given.0).len(), 2, "who takes one out needs no leave");
    driver.transport.write(0x14, 1, 0);
    assert_eq!((driver.config(0), handle.bytes()), (6, 0), "the target stays over a reset");
}

#[test]
fn statistics_come_when_one_asks() {
    let (driver, handle) = start();
    assert_eq!(handle.statistics(Duration::from_secs(120)), [], "no driver, no waiting");
    let statistic = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    driver.offer(2, &[statistic(5, 512), statistic(4, 100), statistic(99, 1), vec![1]].concat());
    eventually("the first", || {
        handle.statistics(Duration::ZERO) == [("free", 100), ("total", 512)]
    });
    // The buffer comes back when somebody asks; a driver fills it again.
    eventually("the buffer", || driver.used(2) == 1);
    driver.offer(2, &statistic(4, 50));
    let mut returned = 1;
    let mut refill = || {
        if driver.used(2) > returned {
            returned += 1;
            driver.offer(2, &statistic(4, 60));
        }
    };
    let asking = handle.clone();
    let answer = std::thread::spawn(move || asking.statistics(Duration::from_secs(120)));
    while !answer.is_finished() {
        refill();
        std::thread::yield_now();
    }
    // The second or the third, as they came.
    let [("free", 50 | 60), ("total", 512)] = answer.join().expect("no panic")[..] else {
        panic!("other statistics");
    };
    eventually("the third", || {
        refill();
        handle.statistics(Duration::ZERO)[0] == ("free", 60)
    });
}
