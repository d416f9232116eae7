//! IDE from the driver's side: what a driver writes, what it must read; and what a hostile one writes.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{DRIVES, Drive, add};
use crate::bus::Bus;
use crate::clock::lock;
use crate::disk::{DiskImage, SECTOR};
use crate::fake::{FakeIrqs, Random};
use crate::pci::PciRoot;

const RAM_BYTES: usize = 1 << 20;
const DISK_SECTORS: usize = 4096;
/// Where the tests put BAR 4.
const MASTER: u64 = 0xc000;
const CONTROL: u64 = 0x3f6;

/// An image in memory, which can be told to fail.
struct Image {
    bytes: Mutex<Vec<u8>>,
    broken: Mutex<bool>,
    /// It can be read without waiting.
    cached: Mutex<bool>,
    flushes: Mutex<usize>,
    discarded: Mutex<Vec<(u64, u64)>>,
    read_only: bool,
}

impl Image {
    fn new(sectors: usize) -> Arc<Self> {
        let bytes = (0..sectors * 512).map(|at| ((at / 512) as u8).wrapping_mul(3) ^ at as u8);
        Arc::new(Self {
            bytes: Mutex::new(bytes.collect()),
            broken: Mutex::default(),
            cached: Mutex::default(),
            flushes: Mutex::default(),
            discarded: Mutex::default(),
            read_only: false,
        })
    }

    fn at(&self, sector: usize, sectors: usize) -> Vec<u8> {
        lock(&self.bytes)[sector * 512..(sector + sectors) * 512].to_vec()
    }
}

impl DiskImage for Image {
    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        if *lock(&self.broken) {
            return Err(io::ErrorKind::Other.into());
        }
        let from = offset as usize;
        data.copy_from_slice(&lock(&self.bytes)[from..from + data.len()]);
        Ok(())
    }
    fn read_cached(&self, offset: u64, data: &mut [u8]) -> bool {
        *lock(&self.cached) && self.read_at(offset, data).is_ok()
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if *lock(&self.broken) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let to = offset as usize;
        lock(&self.bytes)[to..to + data.len()].copy_from_slice(data);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        *lock(&self.flushes) += 1;
        Ok(())
    }
    fn size(&self) -> u64 {
        lock(&self.bytes).len() as u64
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    fn can_discard(&self) -> bool {
        true
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        lock(&self.discarded).push((offset / SECTOR, len / SECTOR));
        Ok(())
    }
}

struct Board {
    ports: Bus,
    irqs: Arc<FakeIrqs>,
    memory: Arc<GuestMemoryMmap<()>>,
    disk: Arc<Image>,
    disc: Arc<Image>,
    _root: Arc<Mutex<PciRoot>>,
}

impl Board {
    /// A disk as the first drive, a disc in the third.
    fn new(threads: bool) -> Self {
        let irqs = FakeIrqs::new();
        let memory: GuestMemoryMmap<()> =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).expect("1 MiB");
        let memory = Arc::new(memory);
        let mut ports = Bus::new();
        let root = PciRoot::new(&Bus::new(), &mut ports, Arc::clone(&irqs) as _, Box::new(()))
            .expect("an empty bus");
        let (disk, disc) = (Image::new(DISK_SECTORS), Image::new(4 * 200));
        let mut drives = [const { None }; DRIVES];
        drives[0] = Some(Drive::Disk(Arc::clone(&disk) as _));
        drives[2] = Some(Drive::Cdrom(Arc::clone(&disc) as _));
        let lines = [14, 15].map(|irq| irqs.line(irq));
        add(&mut lock(&root), &mut ports, lines, &memory, drives, threads).expect("fits");
        let board = Self { ports, irqs, memory, disk, disc, _root: root };
        board.configure(0x20, MASTER as u32);
        board.configure(0x04, 0b101);
        board
    }

    fn configure(&self, register: u32, value: u32) {
        self.ports.write(0xcf8, 4, u64::from(0x8000_0900 | register));
        self.ports.write(0xcfc, 4, u64::from(value));
    }

    fn channel(&self, index: u64) -> Cable<'_> {
        Cable { board: self, base: 0x1f0 - 0x80 * index, master: MASTER + 8 * index, index }
    }

    /// Puts a table of physical regions at 0x1000.
    fn table(&self, regions: &[(u32, u32)]) {
        for (n, &(at, len)) in regions.iter().enumerate() {
            let last = if n + 1 == regions.len() { 1 << 31 } else { 0 };
            let entry = u64::from(len & 0xffff | last) << 32 | u64::from(at);
            self.memory.write_obj(entry, GuestAddress(0x1000 + 8 * n as u64)).expect("RAM");
        }
    }

    fn ram(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).expect("RAM");
        bytes
    }
}

struct Cable<'a> {
    board: &'a Board,
    base: u64,
    master: u64,
    index: u64,
}

impl Cable<'_> {
    fn get(&self, register: u64) -> u8 {
        self.board.ports.read(self.base + register, 1) as u8
    }

    fn put(&self, register: u64, value: u8) {
        self.board.ports.write(self.base + register, 1, u64::from(value));
    }

    fn irq(&self) -> bool {
        self.board.irqs.level(14 + self.index as u32)
    }

    /// Waits for an interrupt, and returns the status that ends it.
    fn interrupted(&self) -> u8 {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !self.irq() {
            assert!(Instant::now() < deadline, "no interrupt; status {:#x}", self.get(7));
            std::thread::yield_now();
        }
        let status = self.get(7);
        assert!(!self.irq(), "reading the status ends the interrupt");
        status
    }

    /// Gives a command for `count` sectors from `lba` on, by 28-bit addresses.
    fn command(&self, command: u8, lba: u32, count: u8) {
        let [low, mid, high, top] = lba.to_le_bytes();
        self.put(6, 0xe0 | top);
        self.put(2, count);
        self.put(3, low);
        self.put(4, mid);
        self.put(5, high);
        self.put(7, command);
    }

    fn command48(&self, command: u8, lba: u64, count: u16) {
        let lba = lba.to_le_bytes();
        self.put(6, 0x40);
        for bytes in [
            [count.to_be_bytes()[0], lba[3], lba[4], lba[5]],
            [count.to_be_bytes()[1], lba[0], lba[1], lba[2]],
        ] {
            for (n, byte) in bytes.into_iter().enumerate() {
                self.put(2 + n as u64, byte);
            }
        }
        self.put(7, command);
    }

    fn take(&self, bytes: usize) -> Vec<u8> {
        // Double words and words in turn.
        let mut data = Vec::new();
        while data.len() < bytes {
            let size = if data.len() % 8 == 0 && bytes - data.len() >= 4 { 4 } else { 2 };
            let value = self.board.ports.read(self.base, size);
            data.extend(&value.to_le_bytes()[..usize::from(size)]);
        }
        data
    }

    fn give(&self, data: &[u8]) {
        for word in data.chunks(2) {
            let value = u16::from_le_bytes([word[0], word[1]]);
            self.board.ports.write(self.base, 2, u64::from(value));
        }
    }

    /// Starts the bus master.
    fn start(&self, to_memory: bool) {
        self.board.ports.write(self.master + 4, 4, 0x1000);
        self.board.ports.write(self.master + 2, 1, 0b110);
        let direction = if to_memory { 8 } else { 0 };
        self.board.ports.write(self.master, 1, direction);
        self.board.ports.write(self.master, 1, direction | 1);
    }

    /// The bus master's status, after it was stopped.
    fn stop(&self) -> u8 {
        let status = self.board.ports.read(self.master + 2, 1) as u8;
        self.board.ports.write(self.master, 1, 0);
        status
    }

    fn packet(&self, features: u8, limit: u16, packet: &[u8]) {
        self.put(6, 0xa0);
        self.put(1, features);
        self.put(4, limit.to_le_bytes()[0]);
        self.put(5, limit.to_le_bytes()[1]);
        self.put(7, 0xa0);
        assert_eq!((self.get(7) & 0x89, self.get(2)), (0x08, 1), "a packet is wanted");
        let mut bytes = [0; 12];
        bytes[..packet.len()].copy_from_slice(packet);
        self.give(&bytes);
    }

    /// Everything that a packet's command gives, with the blocks' lengths, or its sense key.
    fn answer(&self, limit: u16, packet: &[u8]) -> Result<(Vec<u8>, Vec<usize>), u8> {
        self.packet(0, limit, packet);
        let (mut data, mut blocks) = (Vec::new(), Vec::new());
        loop {
            let status = self.interrupted();
            if status & 1 != 0 {
                assert_eq!(self.get(2), 3);
                return Err(self.get(1) >> 4);
            }
            if status & 8 == 0 {
                assert_eq!((status, self.get(2)), (0x50, 3));
                return Ok((data, blocks));
            }
            assert_eq!(self.get(2), 2);
            let len = usize::from(u16::from_le_bytes([self.get(4), self.get(5)]));
            blocks.push(len);
            let mut block = self.take(len.next_multiple_of(2));
            block.truncate(len);
            data.extend(block);
        }
    }
}

#[test]
fn drives_show_what_they_are_after_a_reset_and_missing_ones_show_nothing() {
    let board = Board::new(false);
    let (disk, disc) = (board.channel(0), board.channel(1));
    board.ports.write(CONTROL, 1, 4);
    assert_eq!(disk.get(7), 0x80);
    board.ports.write(CONTROL, 1, 0);
    assert_eq!([1, 2, 3, 4, 5, 7].map(|n| disk.get(n)), [1, 1, 1, 0, 0, 0x50]);
    assert_eq!([1, 2, 3, 4, 5, 7].map(|n| disc.get(n)), [1, 1, 1, 0x14, 0xeb, 0]);
    for (cable, name) in [(&disk, "disk"), (&disc, "disc")] {
        cable.put(6, 0xb0);
        cable.put(2, 0x55);
        assert_eq!(
            [2, 6, 7].map(|n| cable.get(n)),
            [0, 0, 0],
            "the second drive beside the {name}"
        );
        cable.put(7, 0xec);
        assert!(!cable.irq());
        cable.put(6, 0xa0);
    }
}

#[test]
fn a_disk_tells_its_size_and_serial_number() {
    let board = Board::new(false);
    let disk = board.channel(0);
    disk.command(0xec, 0, 0);
    assert_eq!(disk.interrupted(), 0x58);
    let words: Vec<u16> =
        disk.take(512).chunks(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    assert_eq!(disk.get(7), 0x50);
    assert!(!disk.irq());
    assert_eq!((words[60], words[61], words[100]), (DISK_SECTORS as u16, 0, DISK_SECTORS as u16));
    assert_eq!(words[10].to_be_bytes(), *b"XD");
    assert_eq!(words[1], (DISK_SECTORS / (16 * 63)) as u16);
    // A CD-ROM drive refuses, and shows what it is.
    let disc = board.channel(1);
    disc.command(0xec, 0, 0);
    assert_eq!((disc.interrupted() & 1, disc.get(1)), (1, 4));
    assert_eq!((disc.get(4), disc.get(5)), (0x14, 0xeb));
    disc.command(0xa1, 0, 0);
    assert_eq!(disc.interrupted(), 0x58);
    assert_eq!(disc.take(2), 0x85c0u16.to_le_bytes());
}

#[test]
fn what_the_host_has_in_memory_is_there_at_once() {
    let board = Board::new(true);
    let (disk, disc) = (board.channel(0), board.channel(1));
    for image in [&board.disk, &board.disc] {
        *lock(&image.cached) = true;
    }
    disk.command(0x20, 7, 200);
    let mut read = Vec::new();
    for _ in 0..200 {
        assert!(disk.irq(), "without waiting");
        assert_eq!(disk.interrupted(), 0x58);
        read.extend(disk.take(512));
    }
    assert!(read == board.disk.at(7, 200));
    disc.packet(0, 0xfffe, &[0x28, 0, 0, 0, 0, 3, 0, 0, 2]);
    assert!(disc.irq(), "without waiting");
    assert_eq!(disc.interrupted() & 8, 8);
    assert!(disc.take(2 * 2048) == board.disc.at(4 * 3, 8));
    // An error is the thread's to tell.
    *lock(&board.disk.broken) = true;
    disk.command(0x20, 7, 1);
    assert_eq!(disk.interrupted() & 1, 1);
}

#[test]
fn sectors_are_read_and_written_word_by_word() {
    for threads in [false, true] {
        let board = Board::new(threads);
        let disk = board.channel(0);
        // More than a chunk, one sector a block.
        disk.command(0x20, 7, 200);
        let mut read = Vec::new();
        for _ in 0..200 {
            assert_eq!(disk.interrupted(), 0x58);
            read.extend(disk.take(512));
        }
        assert_eq!((disk.get(7), disk.irq()), (0x50, false));
        assert!(read == board.disk.at(7, 200));

        // Many words at once, but none of the next block before there is a look at the status.
        disk.command(0x20, 9, 2);
        let mut read = vec![0; 3 * 512];
        for n in 0..2 {
            assert_eq!(disk.interrupted(), 0x58);
            read[n * 512..n * 512 + 6].copy_from_slice(&disk.take(6));
            let rest = &mut read[n * 512 + 6..];
            assert_eq!(board.ports.read_many(disk.base, 1, rest), 0, "a byte loses the other");
            assert_eq!(board.ports.read_many(disk.base, 2, rest), 506);
            assert_eq!(board.ports.read_many(disk.base + 1, 2, rest), 0, "not the data port");
        }
        assert_eq!(board.ports.read_many(disk.base, 2, &mut read[1024..]), 0);
        assert_eq!((disk.get(7), disk.irq()), (0x50, false));
        assert!(read[..1024] == board.disk.at(9, 2));

        // Blocks of eight, by 48-bit addresses; the last block is shorter.
        disk.put(2, 8);
        disk.put(7, 0xc6);
        assert_eq!(disk.interrupted(), 0x50);
        disk.command48(0x29, 1000, 300);
        let mut read = Vec::new();
        while read.len() < 300 * 512 {
            assert_eq!(disk.interrupted(), 0x58);
            read.extend(disk.take((300 * 512 - read.len()).min(8 * 512)));
        }
        assert!(read == board.disk.at(1000, 300));

        let wanted: Vec<u8> = (0..150 * 512).map(|at| (at / 7) as u8).collect();
        disk.command48(0x34, 2000, 150);
        for (n, sector) in wanted.chunks(512).enumerate() {
            if n > 0 {
                assert_eq!(disk.interrupted(), 0x58);
            }
            disk.give(sector);
        }
        assert_eq!(disk.interrupted(), 0x50);
        assert!(board.disk.at(2000, 150) == wanted);
        assert_eq!(*lock(&board.disk.flushes), 0);
        disk.put(7, 0xe7);
        assert_eq!(disk.interrupted(), 0x50);
        assert_eq!(*lock(&board.disk.flushes), 1);
    }
}

#[test]
fn addresses_by_cylinder_head_and_sector_follow_the_geometry() {
    let board = Board::new(false);
    let disk = board.channel(0);
    let read = |cylinder: u8, head: u8, sector: u8| {
        disk.put(6, 0xa0 | head);
        disk.put(2, 1);
        disk.put(3, sector);
        disk.put(4, cylinder);
        disk.put(5, 0);
        disk.put(7, 0x20);
        let status = disk.interrupted();
        if status & 1 == 0 { Ok(disk.take(512)) } else { Err(disk.get(1)) }
    };
    assert_eq!(read(2, 3, 4), Ok(board.disk.at((2 * 16 + 3) * 63 + 3, 1)));
    assert_eq!(read(0, 0, 0), Err(0x10));
    assert_eq!(read(0, 0, 64), Err(0x10));
    // Four heads of 17 sectors.
    disk.put(6, 0xa3);
    disk.put(2, 17);
    disk.put(7, 0x91);
    assert_eq!(disk.interrupted(), 0x50);
    assert_eq!(read(2, 3, 4), Ok(board.disk.at((2 * 4 + 3) * 17 + 3, 1)));
    assert_eq!(read(0, 4, 1), Err(0x10));
}

#[test]
fn the_bus_master_moves_sectors_through_scattered_memory() {
    for threads in [false, true] {
        let board = Board::new(threads);
        let disk = board.channel(0);
        board.table(&[(0x2000, 0x200), (0x8000, 0x1002), (0x4000, 0x7fe), (0x1_0000, 0)]);
        disk.command(0xc8, 100, 64);
        assert!(!disk.irq(), "it waits for the bus master");
        disk.start(true);
        assert_eq!(disk.interrupted(), 0x50);
        // More memory than data: still active.
        assert_eq!(disk.stop() & 7, 0b101);
        let mut read = board.ram(0x2000, 0x200);
        read.extend(board.ram(0x8000, 0x1002));
        read.extend(board.ram(0x4000, 0x7fe));
        read.extend(board.ram(0x1_0000, 64 * 512 - 0x1a00));
        assert!(read == board.disk.at(100, 64));
        // Nothing behind the data.
        assert_eq!(board.ram(0x1_0000 + 64 * 512 - 0x1a00, 16), [0; 16]);

        // The other way, started before the command; exactly as long.
        board.table(&[(0x8000, 0x1000), (0x2000, 0x200)]);
        disk.start(false);
        disk.command48(0x3d, 3000, 9);
        assert_eq!(disk.interrupted(), 0x50);
        assert_eq!(disk.stop() & 7, 0b100);
        let mut wanted = board.ram(0x8000, 0x1000);
        wanted.extend(board.ram(0x2000, 0x200));
        assert!(board.disk.at(3000, 9) == wanted);
        assert_eq!(*lock(&board.disk.flushes), 1, "FUA");
    }
}

#[test]
fn a_table_that_is_too_short_or_no_memory_is_told() {
    let board = Board::new(false);
    let disk = board.channel(0);
    board.table(&[(0x2000, 0x200)]);
    disk.command(0xc8, 0, 2);
    disk.start(true);
    assert!(!disk.irq());
    assert_eq!((disk.stop() & 7, disk.get(7)), (0, 0x50));
    for regions in [[(0x2000, 0x200), (RAM_BYTES as u32, 0x200)], [(0xffff_fffe, 0), (0, 0)]] {
        board.table(&regions);
        disk.command(0xc8, 0, 2);
        disk.start(true);
        assert_eq!((disk.interrupted(), disk.get(1)), (0x51, 4));
        assert_eq!(disk.stop() & 7, 0b110);
    }
    // A table where there is no memory.
    disk.command(0xca, 0, 2);
    board.ports.write(disk.master + 2, 1, 0b110);
    board.ports.write(disk.master + 4, 4, 0xffff_fffc);
    board.ports.write(disk.master, 1, 1);
    assert_eq!(disk.interrupted(), 0x51);
    assert_eq!(disk.stop() & 7, 0b110);
}

#[test]
fn errors_of_the_image_and_sectors_past_the_end_are_told_with_the_place() {
    let board = Board::new(false);
    let disk = board.channel(0);
    let end = DISK_SECTORS as u32;
    for command in [0x20, 0xc4, 0xc8, 0x30, 0xc5, 0xca, 0x40] {
        disk.command(command, end - 1, 2);
        assert_eq!((disk.interrupted(), disk.get(1)), (0x51, 0x10), "{command:#x}");
    }
    for command in [0x24, 0x35] {
        disk.command48(command, 1 << 40, 1);
        assert_eq!((disk.interrupted(), disk.get(1)), (0x51, 0x10), "{command:#x}");
    }
    *lock(&board.disk.broken) = true;
    disk.command(0x20, 0x123, 1);
    assert_eq!((disk.interrupted(), disk.get(1)), (0x51, 0x40));
    assert_eq!((disk.get(3), disk.get(4)), (0x23, 0x01));
    disk.command(0x30, 5, 1);
    disk.give(&[0; 512]);
    assert_eq!((disk.interrupted(), disk.get(1)), (0x51, 4));
    board.table(&[(0x2000, 0)]);
    disk.command(0xca, 5, 1);
    disk.start(false);
    assert_eq!(disk.interrupted(), 0x51);
}

#[test]
fn what_is_discarded_is_within_the_disk() {
    let board = Board::new(false);
    let disk = board.channel(0);
    let trim = |ranges: &[u64]| {
        board.memory.write_slice(&[0; 512], GuestAddress(0x2000)).expect("RAM");
        for (n, range) in ranges.iter().enumerate() {
            board.memory.write_obj(*range, GuestAddress(0x2000 + 8 * n as u64)).expect("RAM");
        }
        board.table(&[(0x2000, 512)]);
        disk.put(1, 1);
        disk.command48(0x06, 0, 1);
        disk.start(false);
        let status = disk.interrupted();
        disk.stop();
        status
    };
    assert_eq!(trim(&[8 << 48 | 16, 0, 1 << 48 | (DISK_SECTORS as u64 - 1)]), 0x50);
    assert_eq!(*lock(&board.disk.discarded), [(16, 8), (DISK_SECTORS as u64 - 1, 1)]);
    assert_eq!(trim(&[2 << 48 | (DISK_SECTORS as u64 - 1)]), 0x51);
    assert_eq!(trim(&[u64::MAX]), 0x51);
    assert_eq!(lock(&board.disk.discarded).len(), 2);
}

#[test]
fn a_disc_is_read_in_blocks_of_the_size_that_was_asked_for() {
    for threads in [false, true] {
        let board = Board::new(threads);
        let disc = board.channel(1);
        let read = [0x28, 0, 0, 0, 0, 10, 0, 0, 40];
        let (data, blocks) = disc.answer(2048, &read).expect("a disc");
        assert!(data == board.disc.at(40, 160));
        assert_eq!(blocks, [2048; 40]);
        let (data, blocks) = disc.answer(0xffff, &read).expect("a disc");
        assert!(data == board.disc.at(40, 160));
        assert_eq!(blocks, [0xfffe, 2, 8 * 2048]);
        // By the bus master.
        board.table(&[(0x1_0000, 0), (0x2_0000, 0)]);
        disc.packet(1, 0, &read);
        disc.start(true);
        assert_eq!((disc.interrupted(), disc.get(2)), (0x50, 3));
        assert_eq!(disc.stop() & 4, 4);
        assert!(board.ram(0x1_0000, 40 * 2048) == board.disc.at(40, 160));
        // The last sector, and one more.
        assert!(disc.answer(2048, &[0x28, 0, 0, 0, 0, 199, 0, 0, 1]).is_ok());
        assert_eq!(disc.answer(2048, &[0x28, 0, 0, 0, 0, 199, 0, 0, 2]), Err(5));
        assert_eq!(
            disc.answer(2048, &[0xa8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            Err(5)
        );
    }
}

#[test]
fn a_disc_tells_its_size_contents_and_state() {
    let board = Board::new(false);
    let disc = board.channel(1);
    let answer = |packet: &[u8]| disc.answer(0xfffe, packet).map(|(data, _)| data);
    assert_eq!(answer(&[0x25]), Ok(vec![0, 0, 0, 199, 0, 0, 8, 0]));
    let contents = answer(&[0x43, 0, 0, 0, 0, 0, 0, 0, 255]).expect("a disc");
    assert_eq!(contents[..4], [0, 18, 1, 1]);
    assert_eq!(contents[12..], [0, 0x14, 0xaa, 0, 0, 0, 0, 200]);
    let contents = answer(&[0x43, 2, 0, 0, 0, 0, 0xaa, 0, 255]).expect("a disc");
    // 200 sectors and two seconds.
    assert_eq!(contents[8..], [0, 0, 4, 50]);
    let inquiry = answer(&[0x12, 0, 0, 0, 36]).expect("always");
    assert_eq!((inquiry.len(), inquiry[0], inquiry[1]), (36, 5, 0x80));
    assert_eq!(answer(&[0x12, 0, 0, 0, 5]).expect("always").len(), 5);
    let configuration = answer(&[0x46, 0, 0, 0, 0, 0, 0, 0, 255]).expect("always");
    assert_eq!(configuration[..8], [0, 0, 0, 36, 0, 0, 0, 8]);
    assert_eq!(answer(&[0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 255]).expect("always").len(), 28);
    assert_eq!(answer(&[0x5a, 0, 0x0e, 0, 0, 0, 0, 0, 255]), Err(5));
    assert_eq!(answer(&[0xff]), Err(5));
    let sense = answer(&[0x03, 0, 0, 0, 18]).expect("always");
    assert_eq!((sense[2], sense[12]), (5, 0x20));
    assert_eq!(answer(&[0x03, 0, 0, 0, 18]).expect("always")[2], 0);

    // Out and in again, unless it is locked.
    assert!(answer(&[0x1e, 0, 0, 0, 1]).is_ok());
    assert_eq!(answer(&[0x1b, 0, 0, 0, 2]), Err(5));
    assert!(answer(&[0x1e, 0, 0, 0, 0]).is_ok());
    assert!(answer(&[0x1b, 0, 0, 0, 2]).is_ok());
    assert_eq!(answer(&[0x00]), Err(2));
    assert_eq!(answer(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1]), Err(2));
    assert_eq!(answer(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8]).expect("always")[4..6], [0, 1]);
    assert!(answer(&[0x1b, 0, 0, 0, 3]).is_ok());
    assert_eq!(answer(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8]).expect("always")[4..6], [2, 2]);
    assert_eq!(answer(&[0x00]), Err(6));
    assert!(answer(&[0x00]).is_ok());
}

#[test]
fn interrupts_can_be_switched_off_and_a_reset_ends_a_command() {
    let board = Board::new(true);
    let disk = board.channel(0);
    board.ports.write(CONTROL, 1, 2);
    disk.command(0xec, 0, 0);
    assert!(!disk.irq() && board.ports.read(CONTROL, 1) == 0x58);
    // Registers take nothing while a block waits.
    disk.put(2, 0x77);
    disk.put(7, 0x20);
    assert_ne!(disk.get(2), 0x77);
    board.ports.write(CONTROL, 1, 6);
    board.ports.write(CONTROL, 1, 0);
    assert_eq!((disk.get(7), disk.take(2)), (0x50, vec![0, 0]));
    // While the thread may be at work.
    board.table(&[(0x1_0000, 0)]);
    for _ in 0..50 {
        disk.command(0xc8, 0, 128);
        disk.start(true);
        board.ports.write(CONTROL, 1, 4);
        board.memory.write_slice(&[0x5a; 0x1_0000], GuestAddress(0x1_0000)).expect("RAM");
        board.ports.write(CONTROL, 1, 0);
        disk.stop();
        assert_eq!((disk.get(7), disk.irq()), (0x50, false));
    }
    assert!(board.ram(0x1_0000, 0x1_0000).iter().all(|&byte| byte == 0x5a));
}

#[test]
fn a_read_only_disk_takes_no_write() {
    let irqs = FakeIrqs::new();
    let memory: Arc<GuestMemoryMmap<()>> =
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).expect("a page"));
    let mut ports = Bus::new();
    let root = PciRoot::new(&Bus::new(), &mut ports, Arc::clone(&irqs) as _, Box::new(()))
        .expect("an empty bus");
    let image = Arc::into_inner(Image::new(8)).expect("only here");
    let image = Arc::new(Image { read_only: true, ..image });
    let drives = [Some(Drive::Disk(image)), None, None, None];
    let lines = [14, 15].map(|irq| irqs.line(irq));
    add(&mut lock(&root), &mut ports, lines, &memory, drives, false).expect("fits");
    for command in [0x30, 0x34, 0xca, 0x35, 0xc5, 0x06] {
        ports.write(0x1f2, 1, 1);
        ports.write(0x1f6, 1, 0xe0);
        ports.write(0x1f7, 1, command);
        assert_eq!((ports.read(0x1f7, 1), ports.read(0x1f1, 1)), (0x51, 4), "{command:#x}");
    }
}

#[test]
fn random_accesses_to_all_registers_do_no_harm() {
    for (seed, threads) in (1..60).zip([false, true].into_iter().cycle()) {
        let board = Board::new(threads);
        let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        board.table(&[(0x8000, 0x100), (0x9000, 0x8000), (0xffff_f000, 0), (0x2000, 3)]);
        for _ in 0..4000 {
            let draw = random.next();
            let base = [0x1f0, 0x1f0, 0x170, 0x170, MASTER, MASTER, CONTROL, 0x376];
            let port = base[(draw & 7) as usize];
            let port = if (0x300..MASTER).contains(&port) { port } else { port + (draw >> 8 & 15) };
            // Commands that exist come more often.
            let commands = [0x20, 0x24, 0x25, 0xc8, 0xca, 0x35, 0xc5, 0x29, 0xa0, 0xec, 0xef, 0x06];
            let value = if draw >> 16 & 3 == 0 {
                commands[(draw >> 20) as usize % commands.len()]
            } else {
                random.next()
            };
            // Interrupts and resets only now and then, so that commands get somewhere.
            if port == CONTROL && draw >> 32 & 15 != 0 {
                continue;
            }
            let size = 1 << (draw >> 40 & 3).min(2);
            if draw >> 48 & 1 == 0 {
                board.ports.write(port, size, value);
            } else {
                let _ = board.ports.read(port, size);
            }
        }
    }
}
