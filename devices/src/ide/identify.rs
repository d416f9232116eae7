//! What drives say of themselves: IDENTIFY DEVICE and IDENTIFY PACKET DEVICE.
//!
//! Problem: drivers choose commands and modes by 256 words. Scheme: one function a kind of drive builds them
//! from what the drive can do here. Invariant: nothing is claimed that the commands don't do. Any thread.
//!
//! Source: ATA/ATAPI-6, §8.15 "IDENTIFY DEVICE", §8.16 "IDENTIFY PACKET DEVICE".

use super::ata::Disk;

/// Bytes of the answer.
pub(super) const BYTES: usize = 512;
/// Sectors of a block of READ MULTIPLE and WRITE MULTIPLE at most.
pub(super) const MULTIPLE_MAX: u8 = 16;

/// A transfer mode that SET FEATURES has chosen: multiword DMA 0 to 2 or Ultra DMA 0 to 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DmaMode {
    Multiword(u8),
    Ultra(u8),
}

struct Words([u16; BYTES / 2]);

impl Words {
    fn new() -> Self {
        Self([0; BYTES / 2])
    }

    fn put(&mut self, word: usize, value: u16) {
        self.0[word] = value;
    }

    /// A number over several words, lowest first.
    fn number(&mut self, word: usize, words: usize, value: u64) {
        for n in 0..words {
            self.0[word + n] = (value >> (16 * n) & 0xffff) as u16;
        }
    }

    /// Text, two characters a word, the first above the second, padded with spaces.
    fn text(&mut self, word: usize, words: usize, text: &str) {
        let mut bytes = text.bytes().chain(std::iter::repeat(b' '));
        for n in 0..words {
            let pair = [bytes.next().unwrap_or(b' '), bytes.next().unwrap_or(b' ')];
            self.0[word + n] = u16::from_be_bytes(pair);
        }
    }

    fn modes(&mut self, mode: DmaMode) {
        let (multiword, ultra) = match mode {
            DmaMode::Multiword(n) => (1 << 8 << n, 0),
            DmaMode::Ultra(n) => (0, 1 << 8 << n),
        };
        self.put(63, 0x0007 | multiword);
        self.put(88, 0x003f | ultra);
        // PIO modes 3 and 4; cycle times in ns.
        self.put(64, 0x0003);
        for word in 65..=68 {
            self.put(word, 120);
        }
    }

    fn bytes(self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

/// Cable of 80 conductors, detected after a reset.
const HARDWARE_RESET: u16 = 0x6001;
/// Words 83, 84 and 87: their contents are valid.
const VALID: u16 = 1 << 14;

/// A hard disk's.
pub(super) fn disk(disk: &Disk) -> Vec<u8> {
    let sectors = disk.sectors();
    let mut words = Words::new();
    words.put(0, 1 << 6);
    words.put(1, disk.cylinders());
    words.put(3, 16);
    words.put(6, 63);
    words.text(10, 10, &disk.serial);
    words.text(23, 4, "1");
    words.text(27, 20, "Xenolith disk");
    words.put(47, 0x8000 | u16::from(MULTIPLE_MAX));
    // Double words through the data port.
    words.put(48, 1);
    // DMA, LBA, IORDY that can be switched off.
    words.put(49, 0x0f00);
    words.put(50, VALID);
    words.put(51, 0x0200);
    words.put(53, 0x0007);
    let (heads, per_track) = disk.geometry();
    let cylinders = disk.cylinders_of(heads, per_track).max(1);
    words.put(54, cylinders);
    words.put(55, u16::from(heads));
    words.put(56, u16::from(per_track));
    words.number(57, 2, u64::from(cylinders) * u64::from(heads) * u64::from(per_track));
    words.put(59, if disk.multiple > 0 { 0x0100 | u16::from(disk.multiple) } else { 0 });
    words.number(60, 2, sectors.min(LBA28_SECTORS_MAX));
    words.modes(disk.dma_mode);
    if disk.image.can_discard() {
        words.put(105, 1);
        words.put(169, 1);
    }
    // ATA/ATAPI-4 to 7: Linux believes in TRIM from 7 on only.
    words.put(80, 0x00f0);
    // NOP; write cache.
    words.put(82, VALID | 1 << 5);
    // FLUSH CACHE and its EXT form, 48-bit addresses.
    let commands = 1 << 13 | 1 << 12 | 1 << 10;
    words.put(83, VALID | commands);
    // Writes with FUA.
    words.put(84, VALID | 1 << 6);
    words.put(85, VALID | u16::from(disk.write_cache) << 5);
    words.put(86, commands);
    words.put(87, VALID | 1 << 6);
    words.put(93, HARDWARE_RESET);
    words.number(100, 4, sectors);
    words.bytes()
}

/// The most that 28-bit addresses can tell of.
pub(super) const LBA28_SECTORS_MAX: u64 = 0x0fff_ffff;

/// A CD-ROM drive's.
pub(super) fn cdrom(serial: &str, mode: DmaMode) -> Vec<u8> {
    let mut words = Words::new();
    // Packets of 12 bytes, asked for within 50 µs without an interrupt; CD-ROM, removable.
    words.put(0, 2 << 14 | 5 << 8 | 1 << 7 | 2 << 5);
    words.text(10, 10, serial);
    words.text(23, 4, "1");
    words.text(27, 20, "Xenolith CD-ROM");
    words.put(48, 1);
    words.put(49, 0x0f00);
    words.put(50, VALID);
    words.put(53, 0x0006);
    words.modes(mode);
    words.put(80, 0x0070);
    // NOP, DEVICE RESET, packets.
    words.put(82, VALID | 1 << 9 | 1 << 4);
    words.put(83, VALID);
    words.put(84, VALID);
    words.put(85, VALID | 1 << 9 | 1 << 4);
    words.put(87, VALID);
    words.put(93, HARDWARE_RESET);
    words.bytes()
}
