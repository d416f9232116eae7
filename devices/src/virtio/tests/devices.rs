//! What well-behaved drivers see.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::device::console::VirtIOConsole;
use virtio_drivers::device::rng::VirtIORng;
use vm_memory::{Bytes, GuestAddress};

use super::board::{Board, PciTransport, RAM, TestHal, alloc, eventually};
use crate::clock::lock;
use crate::disk::DiskImage;
use crate::virtio::{Block, Console, Entropy};

/// An image in memory that counts flushes and notes who reads.
pub struct MemoryImage {
    bytes: Mutex<Vec<u8>>,
    flushes: AtomicUsize,
    read_only: bool,
    /// All of it can be read without waiting.
    cached: bool,
    /// Who read.
    readers: Mutex<Vec<ThreadId>>,
}

impl MemoryImage {
    pub fn new(sectors: usize, read_only: bool) -> Arc<Self> {
        let bytes = (0..sectors * 512).map(|i| (i / 512) as u8).collect();
        Arc::new(Self {
            bytes: Mutex::new(bytes),
            flushes: AtomicUsize::new(0),
            read_only,
            cached: true,
            readers: Mutex::default(),
        })
    }

    /// One that can't be read without waiting.
    fn slow(sectors: usize) -> Arc<Self> {
        let mut image = Arc::into_inner(Self::new(sectors, false)).expect("nobody has it yet");
        image.cached = false;
        Arc::new(image)
    }
}

impl DiskImage for MemoryImage {
    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        lock(&self.readers).push(thread::current().id());
        let at = offset as usize;
        data.copy_from_slice(&lock(&self.bytes)[at..at + data.len()]);
        Ok(())
    }
    fn read_cached(&self, offset: u64, data: &mut [u8]) -> bool {
        self.cached && self.read_at(offset, data).is_ok()
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        assert!(!self.read_only, "the device checks first");
        let at = offset as usize;
        lock(&self.bytes)[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn size(&self) -> u64 {
        lock(&self.bytes).len() as u64
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
}

type BlockDriver = VirtIOBlk<TestHal, PciTransport>;

fn block(image: &Arc<MemoryImage>) -> (Arc<Board>, BlockDriver) {
    let board = Board::with(Block::new(Arc::clone(image) as _, "xenolith"), &RAM);
    let driver = BlockDriver::new(PciTransport::new(&board)).expect("the driver starts");
    (board, driver)
}

#[test]
fn block_reads_writes_and_flushes() {
    let image = MemoryImage::new(64, false);
    let (_board, mut driver) = block(&image);
    assert_eq!(driver.capacity(), 64);
    assert!(!driver.readonly());
    let mut data = [0; 4 * SECTOR_SIZE];
    driver.read_blocks(3, &mut data).expect("reads");
    assert_eq!((data[0], data[SECTOR_SIZE], data[4 * SECTOR_SIZE - 1]), (3, 4, 6));
    driver.write_blocks(62, &[0xaa; 2 * SECTOR_SIZE]).expect("writes");
    assert_eq!(lock(&image.bytes)[62 * 512..], [0xaa; 1024]);
    assert_eq!(lock(&image.bytes)[62 * 512 - 1], 61);
    let before = image.flushes.load(Ordering::SeqCst);
    driver.flush().expect("flushes");
    assert_eq!(image.flushes.load(Ordering::SeqCst), before + 1);
    let mut id = [0; 20];
    let len = driver.device_id(&mut id).expect("has an ID");
    assert_eq!(&id[..len], b"xenolith");
    // Past the end, also partly.
    assert!(driver.read_blocks(64, &mut data[..SECTOR_SIZE]).is_err());
    assert!(driver.write_blocks(63, &[0; 2 * SECTOR_SIZE]).is_err());
    assert_eq!(lock(&image.bytes)[63 * 512], 0xaa, "nothing of it is written");
    driver.read_blocks(0, &mut data).expect("still works");
}

#[test]
fn block_refuses_writes_to_a_read_only_image() {
    let (_board, mut driver) = block(&MemoryImage::new(8, true));
    assert!(driver.readonly());
    assert!(driver.write_blocks(0, &[0; SECTOR_SIZE]).is_err());
    driver.read_blocks(0, &mut [0; SECTOR_SIZE]).expect("reads");
}

#[test]
fn block_interrupts_by_intx_until_isr_is_read() {
    let (board, mut driver) = block(&MemoryImage::new(8, false));
    driver.read_blocks(0, &mut [0; SECTOR_SIZE]).expect("reads");
    // Slot 2, INTA#.
    eventually("INTx", || board.sink.level(18));
    assert!(board.sink.level(10), "also routed as PIRQ");
    assert_ne!(board.config_read(2, 6, 2) & 8, 0, "interrupt status");
    assert!(!driver.ack_interrupt().is_empty());
    assert!(!board.sink.level(18) && !board.sink.level(10));
    assert!(driver.ack_interrupt().is_empty());
    assert!(board.sink.messages().is_empty());
}

#[test]
fn block_interrupts_by_msix_and_a_masked_vector_waits() {
    let image = MemoryImage::new(8, false);
    let board = Board::with(Block::new(Arc::clone(&image) as _, ""), &RAM);
    board.enable_msix(2);
    let mut driver = BlockDriver::new(PciTransport::new(&board)).expect("the driver starts");
    driver.read_blocks(0, &mut [0; SECTOR_SIZE]).expect("reads");
    eventually("a message", || board.sink.messages() == [(0xfee0_1000, 0x41)]);
    assert!(!board.sink.level(18));

    let table = board.bar(2, 1);
    board.memory.write(table + 16 + 12, 4, 1);
    driver.read_blocks(0, &mut [0; SECTOR_SIZE]).expect("reads");
    eventually("the pending bit", || board.memory.read(table + 0x800, 4) == 0b10);
    assert_eq!(board.sink.messages().len(), 1);
    board.memory.write(table + 16 + 12, 4, 0);
    assert_eq!(board.sink.messages().len(), 2, "sent when unmasked");
    assert_eq!(board.memory.read(table + 0x800, 4), 0);

    let control = board.capability(2, 0x11, None) + 2;
    board.config_write(2, control, 2, 0xc000);
    driver.read_blocks(0, &mut [0; SECTOR_SIZE]).expect("reads");
    eventually("the pending bit", || board.memory.read(table + 0x800, 4) == 0b10);
    assert_eq!(board.sink.messages().len(), 2, "the function mask holds it back");
    board.config_write(2, control, 2, 0x8000);
    assert_eq!(board.sink.messages().len(), 3);
}

#[test]
fn without_the_flush_feature_every_write_is_flushed() {
    let image = MemoryImage::new(8, false);
    let board = Board::with(Block::new(Arc::clone(&image) as _, ""), &RAM);
    let driver = PciTransport::new(&board);
    assert!(driver.negotiate(1 << 32));
    let ring = alloc(3 * 4096);
    let request = alloc(4096);
    queue(&driver, ring);
    driver.write(0x14, 1, 0xf);
    // Header (write sector 1), 512 bytes, status.
    RAM.write_obj(1u32, GuestAddress(request)).expect("in RAM");
    RAM.write_obj(1u64, GuestAddress(request + 8)).expect("in RAM");
    RAM.write_slice(&[0x5a; 513], GuestAddress(request + 16)).expect("in RAM");
    let descriptors =
        [(request, 16u32, 1u16, 1u16), (request + 16, 512, 1, 2), (request + 528, 1, 2, 0)];
    for (i, (address, len, flags, next)) in descriptors.into_iter().enumerate() {
        let at = ring + 16 * i as u64;
        RAM.write_obj(address, GuestAddress(at)).expect("in RAM");
        RAM.write_obj(len, GuestAddress(at + 8)).expect("in RAM");
        RAM.write_obj(flags, GuestAddress(at + 12)).expect("in RAM");
        RAM.write_obj(next, GuestAddress(at + 14)).expect("in RAM");
    }
    RAM.write_obj(1u16, GuestAddress(ring + 0x1002)).expect("in RAM");
    driver.notify_queue(0);
    eventually("the write", || {
        RAM.read_obj::<u16>(GuestAddress(ring + 0x2002)).expect("in RAM") == 1
    });
    assert_eq!(RAM.read_obj::<u8>(GuestAddress(request + 528)).expect("in RAM"), 0);
    assert_eq!(lock(&image.bytes)[512..1024], [0x5a; 512]);
    assert_eq!(image.flushes.load(Ordering::SeqCst), 1);
}

/// A driver that reads sectors one by one, or several with one notification, through rings of its own.
struct Reader {
    driver: PciTransport,
    ring: u64,
    data: u64,
    asked: u16,
}

impl Reader {
    const EVENT_IDX: u64 = 1 << 29;

    fn new(image: &Arc<MemoryImage>, features: u64, no_interrupt: bool) -> Self {
        let board = Board::with(Block::new(Arc::clone(image) as _, ""), &RAM);
        let driver = PciTransport::new(&board);
        assert!(driver.negotiate(1 << 32 | features));
        let ring = alloc(3 * 4096);
        queue(&driver, ring);
        RAM.write_obj(u16::from(no_interrupt), GuestAddress(ring + 0x1000)).expect("in RAM");
        driver.write(0x14, 1, 0xf);
        Self { driver, ring, data: alloc(8 * 1024), asked: 0 }
    }

    fn notifications_are_off(&self) -> bool {
        RAM.read_obj::<u16>(GuestAddress(self.ring + 0x2000)).expect("in RAM") & 1 != 0
    }

    fn used(&self) -> u16 {
        RAM.read_obj(GuestAddress(self.ring + 0x2002)).expect("in RAM")
    }

    /// Puts a read of `sector` into the ring: header, 512 bytes, status.
    fn ask(&mut self, sector: u64) {
        let slot = self.asked % 5;
        let request = self.data + 1024 * u64::from(slot);
        RAM.write_obj(0u32, GuestAddress(request)).expect("in RAM");
        RAM.write_obj(sector, GuestAddress(request + 8)).expect("in RAM");
        RAM.write_obj(0xffu8, GuestAddress(request + 528)).expect("in RAM");
        let head = 3 * slot;
        let descriptors = [
            (request, 16u32, 1u16, head + 1),
            (request + 16, 512, 3, head + 2),
            (request + 528, 1, 2, 0),
        ];
        for ((address, len, flags, next), i) in descriptors.into_iter().zip(u64::from(head)..) {
            let at = self.ring + 16 * i;
            RAM.write_obj(address, GuestAddress(at)).expect("in RAM");
            RAM.write_obj(len, GuestAddress(at + 8)).expect("in RAM");
            RAM.write_obj(flags, GuestAddress(at + 12)).expect("in RAM");
            RAM.write_obj(next, GuestAddress(at + 14)).expect("in RAM");
        }
        let available = self.ring + 0x1000;
        let entry = available + 4 + 2 * u64::from(self.asked % 16);
        RAM.write_obj(head, GuestAddress(entry)).expect("in RAM");
        self.asked += 1;
        RAM.write_obj(self.asked, GuestAddress(available + 2)).expect("in RAM");
    }

    /// First byte and status of the last read.
    fn answer(&self) -> (u8, u8) {
        let request = self.data + 1024 * u64::from((self.asked - 1) % 5);
        let byte = |at| RAM.read_obj::<u8>(GuestAddress(request + at)).expect("in RAM");
        (byte(16), byte(528))
    }
}

#[test]
fn a_driver_that_polls_has_what_the_host_has_in_memory_at_once() {
    let image = MemoryImage::new(64, false);
    let mut reader = Reader::new(&image, 0, true);
    // As soon as the worker, which looks at the queue when it starts, is done with that.
    eventually("forty reads without waiting", || {
        (0..40).all(|sector| {
            reader.ask(sector);
            reader.driver.notify_queue(0);
            let at_once = reader.used() == reader.asked && !reader.notifications_are_off();
            eventually("an answer", || reader.used() == reader.asked);
            assert_eq!(reader.answer(), (sector as u8, 0));
            at_once && lock(&image.readers).last() == Some(&thread::current().id())
        })
    });
    // Of two the worker does the rest. An error is told by it too.
    reader.ask(41);
    reader.ask(42);
    reader.driver.notify_queue(0);
    eventually("both", || reader.used() == reader.asked);
    assert_eq!(reader.answer(), (42, 0));
    reader.ask(64);
    reader.driver.notify_queue(0);
    eventually("an answer", || reader.used() == reader.asked);
    assert_eq!(reader.answer().1, 1, "past the end");
}

#[test]
fn all_others_are_served_by_the_worker() {
    for (image, features, no_interrupt) in [
        (MemoryImage::slow(64), 0, true),
        (MemoryImage::new(64, false), 0, false),
        // With event indices the flag means nothing.
        (MemoryImage::new(64, false), Reader::EVENT_IDX, true),
    ] {
        let mut reader = Reader::new(&image, features, no_interrupt);
        for sector in 0..10 {
            reader.ask(sector);
            reader.driver.notify_queue(0);
            eventually("an answer", || reader.used() == reader.asked);
            assert_eq!(reader.answer(), (sector as u8, 0));
        }
        assert!(lock(&image.readers).iter().all(|&who| who != thread::current().id()));
        assert_eq!(lock(&image.readers).len(), 10);
    }
}

/// Sets up queue 0 with 16 entries in three pages.
fn queue(driver: &PciTransport, ring: u64) {
    driver.write(0x16, 2, 0);
    driver.write(0x18, 2, 16);
    driver.write(0x20, 8, ring);
    driver.write(0x28, 8, ring + 0x1000);
    driver.write(0x30, 8, ring + 0x2000);
    driver.write(0x1c, 2, 1);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let board = Board::with(Block::new(MemoryImage::new(8, false), ""), &RAM);
    let driver = PciTransport::new(&board);
    assert!(!driver.negotiate(0), "VERSION_1 is a must");
    assert!(!driver.negotiate(1 << 32 | 1 << 40));
    driver.write(0x14, 1, 0xf);
    assert_eq!(driver.read(0x14, 1) & 4, 0, "no DRIVER_OK without FEATURES_OK");
    assert!(driver.negotiate(1 << 32));
    driver.write(0x0c, 4, 0);
    driver.write(0x08, 4, 1);
    assert_eq!(driver.read(0x0c, 4), 1, "fixed once accepted");
}

#[test]
fn the_configuration_window_reaches_the_structures() {
    let board = Board::with(Block::new(MemoryImage::new(8, false), ""), &RAM);
    let at = board.capability(2, 9, Some(5));
    board.config_write(2, at + 4, 1, 4);
    board.config_write(2, at + 8, 4, 0x2000);
    board.config_write(2, at + 12, 4, 4);
    assert_eq!(board.config_read(2, at + 16, 4), 8, "capacity");
    board.config_write(2, at + 8, 4, 0x14);
    board.config_write(2, at + 12, 4, 1);
    board.config_write(2, at + 16, 4, 1);
    assert_eq!(PciTransport::new(&board).read(0x14, 1), 1, "status written");
}

#[test]
fn a_moved_bar_answers_at_its_new_place_only() {
    let board = Board::with(Block::new(MemoryImage::new(8, false), ""), &RAM);
    let old = board.bar(2, 4);
    assert_eq!(board.memory.read(old + 0x2000, 4), 8);
    // Sizing with decoding on.
    board.config_write(2, 0x20, 4, u32::MAX);
    assert_eq!(board.config_read(2, 0x20, 4), 0xffff_c00c);
    board.config_write(2, 0x24, 4, u32::MAX);
    assert_eq!(board.config_read(2, 0x24, 4), 0xffff_ffff);
    board.config_write(2, 0x20, 4, 0x4000);
    board.config_write(2, 0x24, 4, 0x10);
    assert_eq!(board.memory.read(0x10_0000_6000, 4), 8, "above 4 GiB");
    assert_eq!(board.memory.read(old + 0x2000, 4), 0xffff_ffff);
    board.config_write(2, 4, 2, 0);
    assert_eq!(board.memory.read(0x10_0000_6000, 4), 0xffff_ffff, "decoding disabled");
}

#[test]
fn reset_and_drop_end_the_worker() {
    let image = MemoryImage::new(8, false);
    let (board, mut driver) = block(&image);
    driver.read_blocks(0, &mut [0; SECTOR_SIZE]).expect("reads");
    // The test, the device and its worker.
    assert_eq!(Arc::strong_count(&image), 3);
    lock(&board.root).reset();
    assert_eq!(Arc::strong_count(&image), 2, "the worker is gone");
    board.assign();
    let mut driver = {
        std::mem::forget(driver);
        BlockDriver::new(PciTransport::new(&board)).expect("starts again")
    };
    driver.read_blocks(0, &mut [0; SECTOR_SIZE]).expect("reads");
    assert_eq!(Arc::strong_count(&image), 3);
    std::mem::forget(driver);
    // The forgotten drivers keep the board; take it apart by hand.
    lock(&board.root).reset();
    let board = Board::with(Block::new(Arc::clone(&image) as _, ""), &RAM);
    drop(BlockDriver::new(PciTransport::new(&board)).expect("starts"));
    drop(board);
    assert_eq!(Arc::strong_count(&image), 2, "dropping the buses drops the device");
}

#[test]
fn bridges_are_what_guests_look_for() {
    let board = Board::new();
    assert_eq!(board.config_read(0, 0, 4), 0x1237_8086);
    assert_eq!(board.config_read(0, 0x0a, 2), 0x0600);
    assert_eq!(board.config_read(1, 0, 4), 0x7000_8086);
    assert_eq!(board.config_read(1, 0x0e, 1), 0x80);
    assert_eq!(board.config_read(5, 0, 4), 0xffff_ffff);
    board.ports.write(0xcf8, 4, 0x8000_0000);
    assert_eq!(board.ports.read(0xcf8, 4), 0x8000_0000);
    board.ports.write(0xcf8, 1, 0);
    board.ports.write(0xcf9, 1, 6);
    assert_eq!(board.ports.read(0xcf8, 4), 0x8000_0000, "only whole accesses reach CONFADD");
    assert_eq!(board.ports.read(0xcfe, 2), 0x1237);
    board.ports.write(0xcf8, 4, 0x8001_0000);
    assert_eq!(board.ports.read(0xcfc, 4), 0xffff_ffff, "bus 1 isn't there");
}

/// A sink that the test can look into.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<u8>>>);

impl io::Write for Heard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn console_carries_bytes_both_ways_and_tells_its_size() {
    let heard = Heard::default();
    let (device, handle) = Console::new(Box::new(heard.clone()));
    handle.set_size(80, 25);
    handle.send(b"early ");
    let board = Board::with(device, &RAM);
    board.enable_msix(2);
    let transport = PciTransport::new(&board);
    // The transport gives no vector to configuration changes: do it after the driver's reset.
    let mut driver = VirtIOConsole::<TestHal, _>::new(transport).expect("the driver starts");
    let size = driver.size().expect("readable").expect("offered");
    assert_eq!((size.columns, size.rows), (80, 25));

    driver.send_bytes(b"hello, host").expect("sends");
    eventually("output", || *lock(&heard.0) == b"hello, host");

    handle.send(b"input");
    let mut got = Vec::new();
    eventually("input", || {
        while let Some(byte) = driver.recv(true).expect("receives") {
            got.push(byte);
        }
        got == b"early input"
    });
    assert_eq!(handle.pending(), 0);

    let second = PciTransport::new(&board);
    second.write(0x10, 2, 0);
    let (messages, generation) = (board.sink.messages().len(), second.read(0x15, 1));
    handle.set_size(132, 50);
    eventually("a configuration interrupt", || {
        board.sink.messages()[messages..].contains(&(0xfee0_1000, 0x40))
    });
    assert_ne!(second.read(0x15, 1), generation);
    let size = driver.size().expect("readable").expect("offered");
    assert_eq!((size.columns, size.rows), (132, 50));
    drop(driver);
    drop(second);
    drop(board);
    handle.send(b"swallowed");
    assert_eq!(handle.pending(), 0);
}

#[test]
fn a_long_stream_through_the_console_keeps_its_order() {
    let heard = Heard::default();
    let (device, handle) = Console::new(Box::new(heard.clone()));
    let board = Board::with(device, &RAM);
    let mut driver =
        VirtIOConsole::<TestHal, _>::new(PciTransport::new(&board)).expect("the driver starts");
    let sent: Vec<u8> = (0..20_000u32).map(|i| (i % 251) as u8).collect();
    handle.send(&sent);
    let mut got = Vec::new();
    eventually("all of it", || {
        while let Some(byte) = driver.recv(true).expect("receives") {
            got.push(byte);
        }
        got.len() == sent.len()
    });
    assert!(got == sent);
    for piece in sent.chunks(1000) {
        driver.send_bytes(piece).expect("sends");
    }
    eventually("all of it", || lock(&heard.0).len() == sent.len());
    assert!(*lock(&heard.0) == sent);
}

#[test]
fn entropy_comes_from_the_source() {
    let mut next = 0u8;
    let source = move |bytes: &mut [u8]| {
        for byte in bytes {
            next = next.wrapping_add(1);
            *byte = next;
        }
    };
    let board = Board::with(Entropy::new(Box::new(source)), &RAM);
    let mut driver =
        VirtIORng::<TestHal, _>::new(PciTransport::new(&board)).expect("the driver starts");
    let mut bytes = [0; 8];
    assert_eq!(driver.request_entropy(&mut bytes).expect("gives"), 8);
    assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(driver.request_entropy(&mut bytes).expect("gives"), 8);
    assert_eq!(bytes[0], 9);
}
