//! The floppy controller from the driver's side, and from a hostile one's.

use std::io;
use std::sync::{Arc, Mutex};

use super::*;
use crate::fake::{FakeIrqs, Random};
use crate::legacy::dma::Moved;

const DISK_BYTES: usize = 1440 << 10;

struct Image {
    bytes: Mutex<Vec<u8>>,
    read_only: bool,
    broken: Mutex<bool>,
}

impl DiskImage for Image {
    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        if *lock(&self.broken) {
            return Err(io::ErrorKind::Other.into());
        }
        data.copy_from_slice(&lock(&self.bytes)[offset as usize..offset as usize + data.len()]);
        Ok(())
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        lock(&self.bytes)[offset as usize..offset as usize + data.len()].copy_from_slice(data);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn size(&self) -> u64 {
        lock(&self.bytes).len() as u64
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
}

/// A channel that takes and gives `left` bytes.
#[derive(Default)]
struct Channel {
    left: usize,
    data: Vec<u8>,
}

impl Channel {
    fn step(&mut self, len: usize) -> Moved {
        let bytes = len.min(self.left);
        self.left -= bytes;
        Moved { bytes, terminal_count: bytes > 0 && self.left == 0 }
    }
}

impl DmaChannels for Channel {
    fn ready(&self, channel: usize) -> bool {
        channel == 2 && self.left > 0
    }
    fn store(&mut self, _: usize, data: &[u8]) -> Moved {
        let moved = self.step(data.len());
        self.data.extend(&data[..moved.bytes]);
        moved
    }
    fn load(&mut self, _: usize, data: &mut [u8]) -> Moved {
        let moved = self.step(data.len());
        let rest = self.data.split_off(moved.bytes.min(self.data.len()));
        let given = std::mem::replace(&mut self.data, rest);
        data[..given.len()].copy_from_slice(&given);
        moved
    }
}

struct Board {
    ports: Bus,
    irqs: Arc<FakeIrqs>,
    channel: Arc<Mutex<Channel>>,
    image: Arc<Image>,
}

impl Board {
    fn new(bytes: usize, read_only: bool) -> Self {
        let bytes = (0..bytes).map(|at| (at / 512) as u8 ^ at as u8).collect();
        let image =
            Arc::new(Image { bytes: Mutex::new(bytes), read_only, broken: Mutex::default() });
        let irqs = FakeIrqs::new();
        let channel = Arc::new(Mutex::new(Channel::default()));
        let media = Media::new(Arc::clone(&image) as _).expect("a floppy's size");
        let fdc = Fdc::new([Some(media), None], Arc::clone(&channel) as _, irqs.line(IRQ));
        let mut ports = Bus::new();
        Fdc::attach(&Arc::new(Mutex::new(fdc)), &mut ports).expect("free");
        let board = Self { ports, irqs, channel, image };
        // Out of reset with the first drive's motor on, as firmware does; 500 kbit/s.
        board.put(2, 0);
        board.put(2, 0x1c);
        assert!(board.irq());
        for drive in 0..4 {
            assert_eq!(board.command(&[8]), [0xc0 | drive, 0]);
        }
        board.put(7, 0);
        board.command(&[3, 0xaf, 2]);
        board
    }

    fn get(&self, register: u64) -> u8 {
        self.ports.read(0x3f0 + register, 1) as u8
    }

    fn put(&self, register: u64, value: u8) {
        self.ports.write(0x3f0 + register, 1, u64::from(value));
    }

    fn irq(&self) -> bool {
        self.irqs.level(IRQ)
    }

    /// Gives a command and takes its results.
    fn command(&self, bytes: &[u8]) -> Vec<u8> {
        for &byte in bytes {
            assert_eq!(self.get(4) & 0xc0, 0x80, "a byte of {bytes:x?} is wanted");
            self.put(5, byte);
        }
        self.results()
    }

    fn results(&self) -> Vec<u8> {
        let mut results = Vec::new();
        while self.get(4) & 0xc0 == 0xc0 {
            results.push(self.get(5));
        }
        results
    }

    fn seek(&self, cylinder: u8) {
        assert!(self.command(&[0x0f, 0, cylinder]).is_empty() && self.irq());
        assert_eq!(self.command(&[8]), [0x20, cylinder]);
        assert!(!self.irq());
    }

    fn at(&self, cylinder: usize, head: usize, sector: usize, sectors: usize) -> Vec<u8> {
        let first = (cylinder * 2 + head) * 18 + sector - 1;
        lock(&self.image.bytes)[first * 512..(first + sectors) * 512].to_vec()
    }
}

#[test]
fn sectors_come_by_dma_until_the_count_runs_out() {
    let board = Board::new(DISK_BYTES, false);
    assert_eq!(board.command(&[0x10]), [0x90]);
    assert_eq!(board.get(7) & 0x80, 0x80, "a disk that nobody has looked at");
    assert!(board.command(&[7, 0]).is_empty());
    assert_eq!(board.command(&[8]), [0x20, 0]);
    assert_eq!(board.get(7) & 0x80, 0);
    assert_eq!(board.command(&[8]), [0x80], "nothing more to tell");

    board.seek(3);
    lock(&board.channel).left = 5 * 512;
    // Both sides: the last two of one, the first three of the other.
    assert_eq!(board.command(&[0xe6, 0, 3, 0, 17, 2, 18, 27, 0xff]), [4, 0, 0, 3, 1, 4, 2]);
    let mut wanted = board.at(3, 0, 17, 2);
    wanted.extend(board.at(3, 1, 1, 3));
    assert!(lock(&board.channel).data == wanted);

    // To the disk, and the interrupt ends with the first result.
    let data: Vec<u8> = (0..1024u32).map(|at| (at / 5) as u8).collect();
    *lock(&board.channel) = Channel { left: 1024, data: data.clone() };
    for byte in [0x45, 4, 3, 1, 5, 2, 18, 27, 0xff] {
        board.put(5, byte);
    }
    assert!(board.irq());
    assert_eq!(board.results(), [4, 0, 0, 3, 1, 7, 2]);
    assert!(!board.irq());
    assert!(board.at(3, 1, 5, 2) == data);
    // READ ID
    assert_eq!(board.command(&[0x4a, 4])[..3], [4, 0, 0]);
}

/// The datasheet's "Result Phase Table": what the host is told of where it would go on, for each MT, head and final
/// sector. Status register 0 has "the current head address", so the head that the table gives.
#[test]
fn results_say_where_the_next_sector_is() {
    let board = Board::new(DISK_BYTES, false);
    board.seek(3);
    // MT, head and sector that the host's last byte was of; cylinder, head and sector in the results.
    for (mt, head, last, [c, h, r]) in [
        (0, 0, 17, [3, 0, 18]),
        (0, 0, 18, [4, 0, 1]),
        (0, 1, 17, [3, 1, 18]),
        (0, 1, 18, [4, 1, 1]),
        (0x80, 0, 17, [3, 0, 18]),
        (0x80, 0, 18, [3, 1, 1]),
        (0x80, 1, 17, [3, 1, 18]),
        (0x80, 1, 18, [4, 0, 1]),
    ] {
        for (command, sectors) in [(0x46, 1), (0x46, 3), (0x45, 1), (0x45, 2)] {
            *lock(&board.channel) = Channel { left: sectors * 512, data: vec![7; sectors * 512] };
            let first = last + 1 - sectors as u8;
            let told = board.command(&[mt | command, head << 2, 3, head, first, 2, 18, 27, 0xff]);
            assert_eq!(told, [h << 2, 0, 0, c, h, r, 2], "{mt:x} {head} {last} {command:x}");
        }
    }
    // Over both sides, to the very end.
    lock(&board.channel).left = 36 * 512;
    assert_eq!(board.command(&[0xe6, 0, 3, 0, 1, 2, 18, 27, 0xff]), [0, 0, 0, 4, 0, 1, 2]);
    // One byte more than there is: the table's place again, but as an error.
    lock(&board.channel).left = 36 * 512 + 1;
    assert_eq!(board.command(&[0xe6, 0, 3, 0, 1, 2, 18, 27, 0xff]), [0x40, 0x80, 0, 4, 0, 1, 2]);
}

#[test]
fn a_command_waits_for_the_channel_and_a_track_ends() {
    let board = Board::new(DISK_BYTES, false);
    board.seek(1);
    for byte in [0x46, 0, 1, 0, 18, 2, 18, 27, 0xff] {
        board.put(5, byte);
    }
    assert_eq!((board.get(4), board.irq()), (0x10, false), "no channel yet");
    lock(&board.channel).left = 1024;
    // One side: after the last sector there is none, and the count had 512 bytes left.
    assert_eq!(board.get(4) & 0xc0, 0xc0);
    assert!(board.irq());
    assert_eq!(board.results(), [0x40, 0x80, 0, 2, 0, 1, 2]);
    assert!(lock(&board.channel).data == board.at(1, 0, 18, 1));
}

#[test]
fn bytes_can_be_polled() {
    let board = Board::new(DISK_BYTES, false);
    board.command(&[3, 0xaf, 3]);
    board.seek(2);
    for byte in [0x46, 0, 2, 0, 18, 2, 18, 27, 0xff] {
        board.put(5, byte);
    }
    let read: Vec<u8> = (0..512)
        .map(|_| {
            assert_eq!(board.get(4), 0xf0);
            board.get(5)
        })
        .collect();
    assert!(read == board.at(2, 0, 18, 1));
    assert_eq!(board.results()[..3], [0x40, 0x80, 0]);
}

#[test]
fn what_is_not_there_is_not_found() {
    let board = Board::new(DISK_BYTES, true);
    lock(&board.channel).left = 512;
    let read = |cylinder, head, sector, size| {
        board.command(&[0x46, head << 2, cylinder, head, sector, size, 18, 27, 0xff])[..3].to_vec()
    };
    assert_eq!(read(0, 0, 19, 2), [0x40, 4, 0]);
    assert_eq!(read(0, 0, 0, 2), [0x40, 4, 0]);
    assert_eq!(read(5, 0, 1, 2), [0x40, 4, 0x10], "the head is elsewhere");
    assert_eq!(read(0, 0, 1, 3), [0x40, 4, 0], "sectors of 1024 bytes");
    board.seek(100);
    assert_eq!(read(100, 0, 1, 2), [0x40, 4, 0]);
    board.seek(0);
    assert_eq!(board.command(&[0x45, 0, 0, 0, 1, 2, 18, 27, 0xff])[..3], [0x40, 2, 0]);
    assert_eq!(board.command(&[0x4d, 0, 2, 18, 27, 0xf6])[..3], [0x40, 2, 0]);
    assert_eq!(board.command(&[4, 0])[0] & 0x50, 0x50, "track 0, protected");
    // The drive that isn't there, and the wrong data rate.
    assert_eq!(board.command(&[0x46, 1, 0, 0, 1, 2, 18, 27, 0xff])[..3], [0x41, 1, 0]);
    board.put(7, 2);
    assert_eq!(board.command(&[0x4a, 0])[..3], [0x40, 1, 0]);
    board.put(7, 0);
    *lock(&board.image.broken) = true;
    assert_eq!(read(0, 0, 1, 2), [0x40, 0x20, 0x20]);
    assert_eq!(board.command(&[0x1f]), [0x80], "no such command");
}

#[test]
fn a_track_is_formatted() {
    let board = Board::new(DISK_BYTES, false);
    board.seek(7);
    let addresses: Vec<u8> = (1..=18).flat_map(|sector| [7, 1, sector, 2]).collect();
    *lock(&board.channel) = Channel { left: 72, data: addresses };
    assert_eq!(board.command(&[0x4d, 4, 2, 18, 0x54, 0xf6])[..3], [4, 0, 0]);
    assert!(board.at(7, 1, 1, 18).iter().all(|&byte| byte == 0xf6));
    assert!(board.at(8, 0, 1, 1) != vec![0xf6; 512]);
}

#[test]
fn all_sizes_that_there_were_are_known_and_larger_ones_refused() {
    for kib in [160, 180, 320, 360, 720, 800, 1200, 1440, 1680, 2880] {
        let board = Board::new(kib << 10, false);
        assert!(lock(&board.image.bytes).len() == kib << 10);
    }
    let bytes = Mutex::new(vec![0; (2880 << 10) + 512]);
    let image = Arc::new(Image { bytes, read_only: false, broken: Mutex::default() });
    assert!(Media::new(image).is_err());
}

/// A boot sector and what it loads, say.
#[test]
fn an_image_of_another_size_begins_a_disk_of_2880_kib() {
    let board = Board::new(40 * 512, false);
    // 1 Mbit/s.
    board.put(7, 3);
    let access = |command, cylinder, head, sector| {
        *lock(&board.channel) = Channel { left: 512, data: vec![9; 512] };
        board.command(&[command, head << 2, cylinder, head, sector, 2, 36, 27, 0xff])[..3].to_vec()
    };
    let data = |sector: usize| lock(&board.image.bytes)[sector * 512..(sector + 1) * 512].to_vec();
    for (head, sector, number) in [(0, 36, 35), (1, 4, 39)] {
        let wanted = data(number);
        assert_eq!(access(0x46, 0, head, sector)[1..], [0, 0]);
        assert!(lock(&board.channel).data.ends_with(&wanted), "{number}");
    }
    assert_eq!(access(0x46, 0, 1, 5)[1..], [0, 0]);
    assert!(lock(&board.channel).data.ends_with(&[0; 512]), "behind the image");
    assert_eq!(access(0x46, 0, 1, 37)[1..], [4, 0], "no sector of that number");
    assert_eq!(access(0x45, 0, 1, 4)[1..], [0, 0]);
    assert!(data(39) == [9; 512]);
    assert_eq!(access(0x45, 0, 1, 5), [0x44, 0x20, 0x20], "no room in the image");
    assert_eq!(lock(&board.image.bytes).len(), 40 * 512);
}

#[test]
fn random_accesses_do_no_harm() {
    for seed in 1..40 {
        let board = Board::new(DISK_BYTES, seed % 2 == 0);
        let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        for _ in 0..20_000 {
            let draw = random.next();
            if draw & 0xff == 0 {
                *lock(&board.channel) =
                    Channel { left: (draw >> 40 & 0xffff) as usize, data: vec![] };
            }
            // The FIFO most of the time; resets only now and then.
            let register = match draw >> 8 & 15 {
                0 => [2, 4][(draw >> 16 & 1) as usize],
                1 | 2 => draw >> 16 & 7,
                _ => 5,
            };
            if register == 6 || register == 2 && draw >> 20 & 7 != 0 {
                continue;
            }
            if draw >> 24 & 1 == 0 {
                board.put(register, (draw >> 32) as u8);
            } else {
                let _ = board.get(register);
            }
        }
    }
}
