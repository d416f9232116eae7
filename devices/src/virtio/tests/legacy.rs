//! What drivers from before virtio 1.0 see, through the ports of BAR 0.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::board::{Board, PciTransport, RAM, alloc, eventually};
use super::devices::MemoryImage;
use crate::net::{Mac, fake::FakeNet};
use crate::virtio::{Block, Console, Entropy, Interfaces, Net};

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// An old driver of the device in slot 2.
struct OldDriver {
    board: Arc<Board>,
    ports: u64,
}

impl OldDriver {
    fn new(board: &Arc<Board>) -> Self {
        let ports = board.config_read(2, 0x10, 4);
        assert_eq!(ports & 3, 1, "BAR 0 is in port space");
        let command = board.config_read(2, 4, 2);
        board.config_write(2, 4, 2, command | 4);
        Self { board: Arc::clone(board), ports: u64::from(ports & !3) }
    }

    fn read(&self, offset: u64, size: u8) -> u64 {
        self.board.ports.read(self.ports + offset, size)
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        self.board.ports.write(self.ports + offset, size, value);
    }

    /// Reset, ACKNOWLEDGE, DRIVER, features.
    fn begin(&self, features: u64) {
        for status in [0, 1, 3] {
            self.write(0x12, 1, status);
        }
        self.write(0x04, 4, features);
    }

    fn queue(&self, index: u16) -> OldQueue {
        self.write(0x0e, 2, u64::from(index));
        assert_eq!(self.read(0x08, 4), 0, "not in place yet");
        let size = self.read(0x0c, 2) as u16;
        assert!(size.is_power_of_two());
        // §2.7.2: the available ring follows the descriptors, the used ring begins a page.
        let available = 16 * u64::from(size);
        let used = (available + 6 + 2 * u64::from(size)).next_multiple_of(4096);
        let at = alloc((used + 6 + 8 * u64::from(size)) as usize);
        let queue = OldQueue { at, available: at + available, used: at + used, size };
        self.write(0x08, 4, at >> 12);
        assert_eq!(self.read(0x08, 4), at >> 12);
        queue
    }
}

struct OldQueue {
    at: u64,
    available: u64,
    used: u64,
    size: u16,
}

impl OldQueue {
    /// Offers one request from descriptor 0 on: address, length, flags.
    fn offer(&self, descriptors: &[(u64, u32, u16)]) {
        for (i, &(address, len, flags)) in (0u64..).zip(descriptors) {
            let words = [address, u64::from(len) | u64::from(flags) << 32 | (i + 1) << 48];
            RAM.write_obj(words, GuestAddress(self.at + 16 * i)).expect("in RAM");
        }
        let index: u16 = RAM.read_obj(GuestAddress(self.available + 2)).expect("in RAM");
        let slot = self.available + 4 + 2 * u64::from(index % self.size);
        RAM.write_obj(0u16, GuestAddress(slot)).expect("in RAM");
        RAM.write_obj(index + 1, GuestAddress(self.available + 2)).expect("in RAM");
    }

    /// Index of the used ring, and the length of its last entry.
    fn used(&self) -> (u16, u32) {
        let index: u16 = RAM.read_obj(GuestAddress(self.used + 2)).expect("in RAM");
        let last = self.used + 4 + 8 * u64::from(index.wrapping_sub(1) % self.size);
        (index, RAM.read_obj(GuestAddress(last + 4)).expect("in RAM"))
    }
}

fn disk() -> (Arc<MemoryImage>, Arc<Board>) {
    let image = MemoryImage::new(64, false);
    let board = Board::with(Block::new(Arc::clone(&image) as _, ""), &RAM);
    (image, board)
}

/// Offers to read sector `sector`; returns where the data will be.
fn read_sector(queue: &OldQueue, sector: u64) -> u64 {
    let at = alloc(4096);
    RAM.write_obj([0u64, sector], GuestAddress(at)).expect("in RAM");
    queue.offer(&[(at, 16, NEXT), (at + 16, 512, NEXT | WRITE), (at + 528, 1, WRITE)]);
    at + 16
}

#[test]
fn devices_have_the_ids_that_old_drivers_look_for() {
    let card = || Net::new(FakeNet::new(), Mac::default());
    let console = || Console::new(Box::new(std::io::sink())).0;
    let entropy = || Entropy::new(Box::new(|bytes| bytes.fill(0)));
    let disk = || Block::new(MemoryImage::new(8, false), "");
    for (board, id, subsystem) in [
        (Board::with(card(), &RAM), 0x1000, 1),
        (Board::with(disk(), &RAM), 0x1001, 2),
        (Board::with(console(), &RAM), 0x1003, 3),
        (Board::with(entropy(), &RAM), 0x1005, 4),
    ] {
        assert_eq!(board.config_read(2, 0, 4), id << 16 | 0x1af4);
        assert_eq!(board.config_read(2, 8, 1), 0, "revision");
        assert_eq!(board.config_read(2, 0x2c, 4), subsystem << 16 | 0x1af4);
        board.capability(2, 9, Some(1));
    }
    let board = Board::with_interfaces(disk(), &RAM, Interfaces::Modern);
    assert_eq!(board.config_read(2, 0, 4), 0x1042_1af4);
    assert_eq!(board.config_read(2, 8, 1), 1);
    assert_eq!(board.config_read(2, 0x10, 4), 0, "no ports");
    let board = Board::with_interfaces(disk(), &RAM, Interfaces::Legacy);
    assert_eq!(board.config_read(2, 0, 4), 0x1001_1af4);
    assert_eq!(board.config_read(2, 0x20, 4), 0, "no structures");
    let first = board.config_read(2, 0x34, 1);
    assert_eq!(board.config_read(2, first, 2), 0x11, "MSI-X is the only capability");
}

#[test]
fn a_disk_is_read_and_interrupts_by_intx() {
    let (_image, board) = disk();
    let driver = OldDriver::new(&board);
    assert_eq!(driver.read(0, 4) >> 24, 0x38, "any layout, indirect descriptors, event index");
    driver.begin(0);
    assert_eq!(driver.read(0x14, 4), 64, "capacity, without MSI-X");
    let queue = driver.queue(0);
    driver.write(0x12, 1, 7);
    let at = read_sector(&queue, 5);
    driver.write(0x10, 2, 0);
    eventually("the sector", || queue.used() == (1, 513));
    assert_eq!(RAM.read_obj::<u16>(GuestAddress(at)).expect("in RAM"), 0x0505);
    eventually("INTx", || board.sink.level(18));
    assert_eq!(driver.read(0x12, 2), 0x0107, "status; and ISR status, which reading clears");
    assert!(!board.sink.level(18));
    assert_eq!(driver.read(0x13, 1), 0);

    driver.write(0x12, 1, 0);
    assert_eq!((driver.read(0x12, 1), driver.read(0x08, 4)), (0, 0));
}

#[test]
fn vectors_shift_the_configuration_while_msix_is_on() {
    let (_image, board) = disk();
    let driver = OldDriver::new(&board);
    board.enable_msix(2);
    driver.begin(0);
    assert_eq!(driver.read(0x14, 4), 0xffff_ffff, "no vectors yet");
    assert_eq!(driver.read(0x18, 4), 64, "capacity");
    let queue = driver.queue(0);
    driver.write(0x16, 2, 9);
    assert_eq!(driver.read(0x16, 2), 0xffff, "there is no such vector");
    driver.write(0x16, 2, 1);
    driver.write(0x14, 2, 0);
    assert_eq!(driver.read(0x14, 4), 0x0001_0000);
    driver.write(0x12, 1, 7);
    read_sector(&queue, 0);
    driver.write(0x10, 2, 0);
    eventually("a message", || board.sink.messages() == [(0xfee0_1000, 0x41)]);
    assert_eq!(driver.read(0x13, 1), 0);
}

/// As Linux before 3.20 does, which reads partition tables in its probe function.
#[test]
fn a_disk_is_read_before_driver_ok() {
    let (_image, board) = disk();
    let driver = OldDriver::new(&board);
    driver.begin(0);
    let queue = driver.queue(0);
    read_sector(&queue, 1);
    driver.write(0x10, 2, 0);
    eventually("the sector", || queue.used() == (1, 513));
    driver.write(0x12, 1, 7);
    read_sector(&queue, 2);
    driver.write(0x10, 2, 0);
    eventually("another", || queue.used() == (2, 513));
}

#[test]
fn a_queue_can_be_put_in_place_while_another_is_used() {
    let network = FakeNet::new();
    let board = Board::with(Net::new(Arc::clone(&network) as _, Mac::default()), &RAM);
    let driver = OldDriver::new(&board);
    driver.begin(0);
    let transmit = driver.queue(1);
    let packet = alloc(4096);
    for sent in 1..=2 {
        transmit.offer(&[(packet, 10 + 60, 0)]);
        driver.write(0x10, 2, 1);
        eventually("a packet", || transmit.used().0 == sent);
        if sent == 1 {
            driver.queue(0);
        }
    }
    assert_eq!(network.sent(), [[0; 60]; 2]);
    // Away again; what is offered then stays where it is.
    driver.write(0x12, 1, 7);
    driver.write(0x0e, 2, 1);
    driver.write(0x08, 4, 0);
    transmit.offer(&[(packet, 10 + 60, 0)]);
    driver.write(0x10, 2, 1);
    assert_eq!(driver.read(0x12, 1), 7);
    assert_eq!(transmit.used().0, 2);
}

#[test]
fn packets_have_the_short_header() {
    let network = FakeNet::new();
    let board = Board::with(Net::new(Arc::clone(&network) as _, Mac::default()), &RAM);
    let driver = OldDriver::new(&board);
    driver.begin(1 << 5);
    assert_eq!(driver.read(0x14, 4), 0x1200_5452, "the card's address");
    let (receive, transmit) = (driver.queue(0), driver.queue(1));
    driver.write(0x12, 1, 7);
    let buffer = alloc(4096);
    RAM.write_slice(&[0xff; 4096], GuestAddress(buffer)).expect("in RAM");
    receive.offer(&[(buffer, 10, NEXT | WRITE), (buffer + 10, 1514, WRITE)]);
    network.deliver(&[0xaa; 60]);
    driver.write(0x10, 2, 0);
    eventually("a frame", || receive.used() == (1, 70));
    let mut bytes = [0; 71];
    RAM.read_slice(&mut bytes, GuestAddress(buffer)).expect("in RAM");
    assert_eq!(bytes[..10], [0; 10]);
    assert_eq!(bytes[10..], [[0xaa; 60].as_slice(), &[0xff]].concat());

    let packet = alloc(4096);
    RAM.write_slice(&[0xbb; 60], GuestAddress(packet + 10)).expect("in RAM");
    transmit.offer(&[(packet, 70, 0)]);
    driver.write(0x10, 2, 1);
    eventually("sent", || transmit.used().0 == 1);
    assert_eq!(network.sent(), [[0xbb; 60]]);
}

#[test]
fn what_is_not_offered_is_not_taken_and_both_interfaces_show_one_device() {
    let (_image, board) = disk();
    let driver = OldDriver::new(&board);
    driver.begin(0xffff_ffff);
    assert_eq!(driver.read(0x04, 4), driver.read(0x00, 4));
    let modern = PciTransport::new(&board);
    assert_eq!(modern.read(0x14, 1), 3);
    // One interface begins, the other goes on: one worker, and no harm.
    let queue = driver.queue(0);
    read_sector(&queue, 0);
    driver.write(0x10, 2, 0);
    eventually("the sector", || queue.used().0 == 1);
    modern.write(0x14, 1, 0xf);
    driver.write(0x12, 1, 0xf);
    assert!(modern.negotiate(1 << 32));
    assert_eq!(driver.read(0x12, 1), 0xb);
    assert_eq!(driver.read(0x08, 4), 0);
}

#[test]
fn queues_that_cannot_be_need_a_reset() {
    let (_image, board) = disk();
    let driver = OldDriver::new(&board);
    for page in [0xffff_ffff, 1, 0x1_0000_0000 >> 12] {
        driver.begin(0);
        driver.write(0x0e, 2, 0);
        driver.write(0x08, 4, page);
        driver.write(0x12, 1, 7);
        assert_eq!(driver.read(0x12, 1) & 0x40, 0x40, "{page:#x}");
        driver.write(0x10, 2, 0);
        driver.write(0x08, 4, page);
    }
    // None at all: nothing happens.
    driver.begin(0);
    for queue in [0, 1, 0xffff] {
        driver.write(0x10, 2, queue);
        driver.write(0x0e, 2, queue);
        driver.write(0x16, 2, 0);
        driver.write(0x10, 2, queue);
    }
    assert_eq!((driver.read(0x0c, 2), driver.read(0x12, 1)), (0, 3));
}
