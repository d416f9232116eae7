//! The pair of 8237A DMA controllers with their page registers.
//!
//! Problem: a floppy controller moves its data by a channel that software has set up with address, length and
//! direction. Scheme: registers as on the chips; a device calls [`DmaChannels::store`] or [`DmaChannels::load`]
//! when it has, or wants, bytes, and learns how many were moved and whether the count has run out.
//! Channels move bytes on the first controller, words on the second. Invariants: an address stays in its page
//! of 64 KiB (128 KiB with words), as the counter has 16 bits; memory that isn't there reads as ones and takes
//! nothing; a masked channel moves nothing. Any thread, under the controllers' lock.
//!
//! Memory to memory, cascades and the timing bits keep what is written and do nothing.
//!
//! Source: Intel 8237A datasheet; Intel 82371FB/SB (PIIX/PIIX3) datasheet, "DMA Registers".

use std::fmt;
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use crate::bus::{Bus, BusDevice, Overlap};

/// Ports: the first controller, the page registers, the second controller.
const FIRST: u64 = 0x00;
const FIRST_LEN: u64 = 16;
const PAGES: u64 = 0x80;
const PAGES_LEN: u64 = 16;
const SECOND: u64 = 0xc0;
const SECOND_LEN: u64 = 32;

// Offsets in the device, for its ranges of ports.
const AT_FIRST: u64 = 0;
const AT_PAGES: u64 = 0x100;
const AT_SECOND: u64 = 0x200;

/// The page register of each channel, by its port; the fourth channel cascades the first controller.
const PAGE_OF: [usize; 8] = [7, 3, 1, 2, 15, 11, 9, 10];

mod mode {
    /// Transfer type: device to memory, memory to device.
    pub const TYPE: u8 = 0b11 << 2;
    pub const TO_MEMORY: u8 = 0b01 << 2;
    pub const FROM_MEMORY: u8 = 0b10 << 2;
    pub const AUTO: u8 = 1 << 4;
    pub const DOWN: u8 = 1 << 5;
}

#[derive(Clone, Copy, Debug, Default)]
struct Channel {
    base_address: u16,
    base_count: u16,
    address: u16,
    count: u16,
    mode: u8,
    masked: bool,
    /// The count has run out since the status was read.
    done: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Controller {
    channels: [Channel; 4],
    command: u8,
    /// The next byte of an address or count is the upper one.
    upper: bool,
}

impl Controller {
    fn clear(&mut self) {
        for channel in &mut self.channels {
            (channel.masked, channel.done) = (true, false);
        }
        (self.command, self.upper) = (0, false);
    }

    fn read(&mut self, register: u64) -> u8 {
        match register {
            0..=7 => {
                let channel = &self.channels[(register / 2) as usize];
                let value =
                    if register.is_multiple_of(2) { channel.address } else { channel.count };
                let byte = value.to_le_bytes()[usize::from(self.upper)];
                self.upper = !self.upper;
                byte
            }
            8 => {
                let status = (0..4).fold(0, |all, n| all | u8::from(self.channels[n].done) << n);
                for channel in &mut self.channels {
                    channel.done = false;
                }
                status
            }
            15 => (0..4).fold(0xf0, |all, n| all | u8::from(self.channels[n].masked) << n),
            // The temporary register and those that only take writes.
            _ => 0,
        }
    }

    fn write(&mut self, register: u64, value: u8) {
        let selected = usize::from(value & 3);
        match register {
            0..=7 => {
                let channel = &mut self.channels[(register / 2) as usize];
                let (base, now) = if register.is_multiple_of(2) {
                    (&mut channel.base_address, &mut channel.address)
                } else {
                    (&mut channel.base_count, &mut channel.count)
                };
                let mut bytes = base.to_le_bytes();
                bytes[usize::from(self.upper)] = value;
                *base = u16::from_le_bytes(bytes);
                *now = *base;
                self.upper = !self.upper;
            }
            8 => self.command = value,
            10 => self.channels[selected].masked = value & 4 != 0,
            11 => self.channels[selected].mode = value & !3,
            12 => self.upper = false,
            13 => self.clear(),
            14 => self.channels.iter_mut().for_each(|channel| channel.masked = false),
            15 => {
                for (n, channel) in self.channels.iter_mut().enumerate() {
                    channel.masked = value >> n & 1 != 0;
                }
            }
            // Requests by software are for transfers from memory to memory.
            _ => {}
        }
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    pub bytes: usize,
    /// The channel's count has run out.
    pub terminal_count: bool,
}

/// The controllers over the guest's memory `M`.
pub struct Dma<M> {
    controllers: [Controller; 2],
    pages: [u8; 16],
    memory: M,
}

impl<M> fmt::Debug for Dma<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dma").field("controllers", &self.controllers).finish_non_exhaustive()
    }
}

/// What a device sees of the controllers.
pub trait DmaChannels: Send {
    /// Whether channel `channel` would move bytes.
    fn ready(&self, channel: usize) -> bool;
    /// The device has `data` for channel `channel`.
    fn store(&mut self, channel: usize, data: &[u8]) -> Moved;
    /// The device wants `data` from channel `channel`.
    fn load(&mut self, channel: usize, data: &mut [u8]) -> Moved;
}

impl<M: GuestAddressSpace + Send + 'static> Dma<M> {
    #[must_use]
    pub fn new(memory: M) -> Self {
        let mut dma = Self { controllers: Default::default(), pages: [0; 16], memory };
        dma.controllers.iter_mut().for_each(Controller::clear);
        dma
    }

    /// Puts the ports on the bus.
    ///
    /// # Errors
    /// [`Overlap`] if one is taken.
    pub fn attach(dma: &Arc<Mutex<Self>>, ports: &mut Bus) -> Result<(), Overlap> {
        for (start, len, base) in [
            (FIRST, FIRST_LEN, AT_FIRST),
            (PAGES, PAGES_LEN, AT_PAGES),
            (SECOND, SECOND_LEN, AT_SECOND),
        ] {
            ports.insert_at(start, len, base, Arc::clone(dma) as _)?;
        }
        Ok(())
    }

    /// Calls `step` with the place of each byte or word that `len` bytes take, until the count has run out.
    fn walk(&mut self, channel: usize, len: usize, mut step: impl FnMut(&M, u64, usize)) -> Moved {
        let word = channel / 4;
        let unit = 1 << word;
        let page = u64::from(self.pages[PAGE_OF[channel]]);
        let registers = &mut self.controllers[word].channels[channel % 4];
        let mut moved = Moved { bytes: 0, terminal_count: false };
        while moved.bytes + unit <= len && !registers.masked {
            let at = if word == 0 {
                page << 16 | u64::from(registers.address)
            } else {
                (page & !1) << 16 | u64::from(registers.address) << 1
            };
            step(&self.memory, at, moved.bytes);
            moved.bytes += unit;
            registers.address = match registers.mode & mode::DOWN {
                0 => registers.address.wrapping_add(1),
                _ => registers.address.wrapping_sub(1),
            };
            registers.count = registers.count.wrapping_sub(1);
            if registers.count == u16::MAX {
                registers.done = true;
                moved.terminal_count = true;
                if registers.mode & mode::AUTO != 0 {
                    registers.address = registers.base_address;
                    registers.count = registers.base_count;
                } else {
                    registers.masked = true;
                }
                break;
            }
        }
        moved
    }

    fn kind(&self, channel: usize) -> u8 {
        self.controllers[channel / 4].channels[channel % 4].mode & mode::TYPE
    }
}

impl<M: GuestAddressSpace + Send + 'static> DmaChannels for Dma<M> {
    fn ready(&self, channel: usize) -> bool {
        const DISABLED: u8 = 1 << 2;
        let controller = &self.controllers[channel / 4];
        controller.command & DISABLED == 0 && !controller.channels[channel % 4].masked
    }

    fn store(&mut self, channel: usize, data: &[u8]) -> Moved {
        let writes = self.kind(channel) == mode::TO_MEMORY;
        let unit = 1 << (channel / 4);
        self.walk(channel, data.len(), |memory, at, from| {
            if writes {
                // Where there is no memory nothing is written.
                let _ = memory.memory().write_slice(&data[from..from + unit], GuestAddress(at));
            }
        })
    }

    fn load(&mut self, channel: usize, data: &mut [u8]) -> Moved {
        let reads = self.kind(channel) == mode::FROM_MEMORY;
        let unit = 1 << (channel / 4);
        self.walk(channel, data.len(), |memory, at, to| {
            let piece = &mut data[to..to + unit];
            if !reads || memory.memory().read_slice(piece, GuestAddress(at)).is_err() {
                piece.fill(0xff);
            }
        })
    }
}

impl<M: GuestAddressSpace + Send + 'static> BusDevice for Dma<M> {
    fn read(&mut self, offset: u64, _: u8) -> u64 {
        u64::from(match offset {
            AT_SECOND.. => self.controllers[1].read((offset - AT_SECOND) / 2),
            AT_PAGES.. => self.pages[(offset - AT_PAGES) as usize % self.pages.len()],
            _ => self.controllers[0].read(offset),
        })
    }

    fn write(&mut self, offset: u64, _: u8, value: u64) {
        let value = (value & 0xff) as u8;
        match offset {
            AT_SECOND.. => self.controllers[1].write((offset - AT_SECOND) / 2, value),
            AT_PAGES.. => self.pages[(offset - AT_PAGES) as usize % self.pages.len()] = value,
            _ => self.controllers[0].write(offset, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;
    use crate::fake::Random;

    fn dma() -> (Dma<Arc<GuestMemoryMmap<()>>>, Arc<GuestMemoryMmap<()>>) {
        let memory: GuestMemoryMmap<()> =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4_0000)]).expect("256 KiB");
        let memory = Arc::new(memory);
        (Dma::new(Arc::clone(&memory)), memory)
    }

    /// Sets channel 2 up as software does.
    fn set_up(dma: &mut Dma<Arc<GuestMemoryMmap<()>>>, at: u32, len: u16, mode: u8) {
        let [low, high, page, _] = at.to_le_bytes();
        let [count_low, count_high] = (len - 1).to_le_bytes();
        for (offset, value) in [
            (10, 4 | 2),
            (12, 0),
            (4, low),
            (4, high),
            (5, count_low),
            (5, count_high),
            (11, mode | 2),
            (AT_PAGES + 1, page),
            (10, 2),
        ] {
            dma.write(offset, 1, u64::from(value));
        }
    }

    #[test]
    fn a_channel_moves_what_its_count_says_and_stays_in_its_page() {
        let (mut dma, memory) = dma();
        assert!(!dma.ready(2));
        set_up(&mut dma, 0x1_fffc, 8, 0x44);
        assert!(dma.ready(2));
        assert_eq!(dma.store(2, &[1, 2, 3]), Moved { bytes: 3, terminal_count: false });
        let rest = dma.store(2, &[4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(rest, Moved { bytes: 5, terminal_count: true });
        let read = |at| {
            let mut bytes = [0; 4];
            memory.read_slice(&mut bytes, GuestAddress(at)).expect("RAM");
            bytes
        };
        assert_eq!((read(0x1_fffc), read(0x1_0000)), ([1, 2, 3, 4], [5, 6, 7, 8]));
        assert_eq!((dma.read(8, 1), dma.read(8, 1)), (4, 0));
        assert!(!dma.ready(2), "masked when its count has run out");
        assert_eq!(dma.store(2, &[1]).bytes, 0);

        set_up(&mut dma, 0x1_fffc, 4, 0x48 | mode::AUTO);
        let mut data = [0; 6];
        assert_eq!(dma.load(2, &mut data), Moved { bytes: 4, terminal_count: true });
        assert_eq!((data, dma.ready(2)), ([1, 2, 3, 4, 0, 0], true));
        // Past the memory's end.
        set_up(&mut dma, 0x10_0000, 2, 0x48);
        assert_eq!(dma.load(2, &mut data).bytes, 2);
        assert_eq!(data[..2], [0xff; 2]);
    }

    #[test]
    fn random_writes_do_no_harm() {
        let (mut dma, _) = dma();
        let mut random = Random(99);
        for _ in 0..20_000 {
            let draw = random.next();
            let offset = match draw & 3 {
                0 => draw >> 8 & 15,
                1 => AT_PAGES + (draw >> 8 & 15),
                _ => AT_SECOND + (draw >> 8 & 31),
            };
            dma.write(offset, 1, draw >> 32);
            let _ = dma.read(offset, 1);
            let channel = (draw >> 40 & 7) as usize;
            dma.store(channel, &[0; 40]);
            dma.load(channel, &mut [0; 40]);
        }
    }
}
