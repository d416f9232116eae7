//! The 82077AA floppy controller with its drives.
//!
//! Problem: what boots from a floppy, and old systems, command the controller byte by byte and take data by the
//! DMA controller or by polling. Scheme: a command is its bytes ([`Fdc::command`]), then perhaps data,
//! then result bytes, as the datasheet's three phases; data is whole sectors in a buffer, read from and written to
//! the image at once, since a floppy's image is small enough to be in the host's memory. Drives have no
//! mechanics: seeks end when they begin. Invariants: a sector that isn't on the disk is "not found", never
//! another's; bytes out of turn are dropped. Lock order: controller, DMA controllers. Any thread, under the
//! controller's lock.
//!
//! Source: Intel 82077AA datasheet, "Register Set", "Controller Phases", "Command Set Descriptions".

mod media;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::bus::{Bus, BusDevice, Overlap};
use crate::clock::lock;
use crate::disk::DiskImage;
use crate::irq::IrqLine;
use crate::legacy::dma::DmaChannels;

pub use media::{FloppyError, Media};

/// Interrupt request and DMA channel.
pub const IRQ: u32 = 6;
const CHANNEL: usize = 2;
/// Drives that the board has cables for.
pub const DRIVES: usize = 2;

/// Ports; the one between these is the IDE controller's.
const PORT: u64 = 0x3f0;
const PORTS: u64 = 6;
const PORT_7: u64 = 0x3f7;

// Registers, by their distance from the first port.
const SRA: u64 = 0;
const SRB: u64 = 1;
const DOR: u64 = 2;
const TDR: u64 = 3;
const MSR_DSR: u64 = 4;
const FIFO: u64 = 5;
const DIR_CCR: u64 = 7;

/// Digital output register.
mod dor {
    pub const SELECT: u8 = 0b11;
    /// Low: reset.
    pub const NRESET: u8 = 1 << 2;
    pub const DMA_GATE: u8 = 1 << 3;
    pub const MOTOR: u8 = 1 << 4;
}

/// Main status register.
mod msr {
    pub const BUSY: u8 = 1 << 4;
    pub const NON_DMA: u8 = 1 << 5;
    /// The next byte goes to the host.
    pub const DIO: u8 = 1 << 6;
    pub const RQM: u8 = 1 << 7;
}

/// Status registers 0 to 3, as results have them.
mod st {
    pub const ABNORMAL: u8 = 1 << 6;
    pub const INVALID: u8 = 1 << 7;
    pub const READY_CHANGED: u8 = 0b11 << 6;
    pub const SEEK_END: u8 = 1 << 5;
    pub const CHECK: u8 = 1 << 4;
    pub const NO_ADDRESS: u8 = 1 << 0;
    pub const NOT_WRITABLE: u8 = 1 << 1;
    pub const NO_DATA: u8 = 1 << 2;
    pub const DATA_ERROR: u8 = 1 << 5;
    pub const END_OF_CYLINDER: u8 = 1 << 7;
    pub const WRONG_CYLINDER: u8 = 1 << 4;
    pub const TRACK_0: u8 = 1 << 4;
    pub const PROTECTED: u8 = 1 << 6;
    /// Always set in status register 3: ready, two sides.
    pub const ALWAYS: u8 = 0b0010_1000;
}

struct Drive {
    media: Option<Media>,
    cylinder: u8,
    /// The disk may have been changed since the last step.
    changed: bool,
}

/// Where sectors are on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    cylinder: u8,
    head: u8,
    sector: u8,
}

/// A transfer under way.
struct Transfer {
    kind: Kind,
    drive: usize,
    place: Place,
    /// Last sector of a track.
    end: u8,
    /// Goes on with the other side.
    both_sides: bool,
    /// Bytes of the sector, or of a sector's address for formatting; and how many were moved.
    buffer: Vec<u8>,
    at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    /// The byte that fills sectors, and how many more there are.
    Format {
        fill: u8,
        left: u8,
    },
}

/// The controller.
pub struct Fdc {
    drives: [Drive; DRIVES],
    dor: u8,
    tdr: u8,
    /// Data rate, as the two low bits of DSR and CCR.
    rate: u8,
    /// Polled transfers.
    non_dma: bool,
    /// CONFIGURE's and SPECIFY's bytes, and PERPENDICULAR's and LOCK's, which DUMPREG tells.
    configured: [u8; 2],
    specified: [u8; 2],
    perpendicular: u8,
    locked: bool,
    last_end: u8,
    command: Vec<u8>,
    results: Vec<u8>,
    transfer: Option<Transfer>,
    /// What SENSE INTERRUPT STATUS is to tell: status register 0 and a drive.
    events: Vec<(u8, usize)>,
    dma: Arc<Mutex<dyn DmaChannels>>,
    line: IrqLine,
}

impl fmt::Debug for Fdc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fdc").field("command", &self.command).finish_non_exhaustive()
    }
}

impl Fdc {
    /// With these disks in its drives.
    #[must_use]
    pub fn new(
        media: [Option<Media>; DRIVES],
        dma: Arc<Mutex<dyn DmaChannels>>,
        line: IrqLine,
    ) -> Self {
        Self {
            drives: media.map(|media| Drive { media, cylinder: 0, changed: true }),
            dor: dor::NRESET | dor::DMA_GATE,
            tdr: 0,
            rate: 2,
            non_dma: false,
            configured: [0; 2],
            specified: [0; 2],
            perpendicular: 0,
            locked: false,
            last_end: 0,
            command: Vec::new(),
            results: Vec::new(),
            transfer: None,
            events: Vec::new(),
            dma,
            line,
        }
    }

    /// Puts the ports on the bus.
    ///
    /// # Errors
    /// [`Overlap`] if one is taken.
    pub fn attach(fdc: &Arc<Mutex<Self>>, ports: &mut Bus) -> Result<(), Overlap> {
        ports.insert(PORT, PORTS, Arc::clone(fdc) as _)?;
        ports.insert_at(PORT_7, 1, PORT_7 - PORT, Arc::clone(fdc) as _)
    }

    fn reset(&mut self) {
        self.command.clear();
        self.results.clear();
        self.transfer = None;
        self.events.clear();
        if !self.locked {
            self.configured = [0; 2];
        }
        self.perpendicular = 0;
        self.line.set(false);
    }

    /// The reset has ended: all four drives' states are to be asked for.
    fn awake(&mut self) {
        self.events = (0..4).map(|drive| (st::READY_CHANGED | drive as u8, drive)).collect();
        self.interrupt();
    }

    fn interrupt(&mut self) {
        if self.dor & dor::DMA_GATE != 0 {
            self.line.set(true);
        }
    }

    fn in_reset(&self) -> bool {
        self.dor & dor::NRESET == 0
    }

    fn read_register(&mut self, register: u64) -> u8 {
        self.run();
        match register {
            SRA | SRB => 0,
            DOR => self.dor,
            TDR => self.tdr,
            MSR_DSR => self.main_status(),
            FIFO => self.read_fifo(),
            DIR_CCR => {
                let selected = usize::from(self.dor & dor::SELECT);
                let on = self.dor & dor::MOTOR << selected != 0;
                let changed = self.drives.get(selected).is_some_and(|drive| drive.changed);
                u8::from(on && changed) << 7
            }
            _ => 0xff,
        }
    }

    fn main_status(&self) -> u8 {
        if self.in_reset() {
            return 0;
        }
        match &self.transfer {
            Some(transfer) if self.non_dma => {
                let to_host = if transfer.kind == Kind::Read { msr::DIO } else { 0 };
                msr::RQM | msr::NON_DMA | msr::BUSY | to_host
            }
            Some(_) => msr::BUSY,
            None if !self.results.is_empty() => msr::RQM | msr::DIO | msr::BUSY,
            None if !self.command.is_empty() => msr::RQM | msr::BUSY,
            None => msr::RQM,
        }
    }

    fn read_fifo(&mut self) -> u8 {
        if self.non_dma
            && let Some(transfer) = &mut self.transfer
        {
            if transfer.kind != Kind::Read {
                return 0;
            }
            let byte = transfer.buffer[transfer.at];
            transfer.at += 1;
            if transfer.at == transfer.buffer.len() {
                self.sector_moved(false);
            }
            return byte;
        }
        if self.results.is_empty() {
            return 0;
        }
        self.line.set(false);
        self.results.remove(0)
    }

    fn write_register(&mut self, register: u64, value: u8) {
        match register {
            DOR => {
                let was_in_reset = self.in_reset();
                self.dor = value;
                if self.in_reset() {
                    self.reset();
                } else if was_in_reset {
                    self.awake();
                }
                if value & dor::DMA_GATE == 0 {
                    self.line.set(false);
                }
            }
            TDR => self.tdr = value & 0b11,
            MSR_DSR => {
                const RESET: u8 = 1 << 7;
                self.rate = value & 0b11;
                if value & RESET != 0 && !self.in_reset() {
                    self.reset();
                    self.awake();
                }
            }
            FIFO if !self.in_reset() => self.write_fifo(value),
            DIR_CCR => self.rate = value & 0b11,
            _ => {}
        }
        self.run();
    }

    fn write_fifo(&mut self, value: u8) {
        if let Some(transfer) = &mut self.transfer {
            if self.non_dma && transfer.kind != Kind::Read {
                transfer.buffer[transfer.at] = value;
                transfer.at += 1;
                if transfer.at == transfer.buffer.len() {
                    self.sector_moved(false);
                }
            }
            return;
        }
        if !self.results.is_empty() {
            return;
        }
        self.command.push(value);
        if self.command.len() == length(self.command[0]) {
            let command = std::mem::take(&mut self.command);
            self.command(&command);
        }
    }

    /// Starts the result phase.
    fn result(&mut self, bytes: &[u8]) {
        self.results.extend(bytes);
    }

    /// All bytes of a command have come.
    fn command(&mut self, bytes: &[u8]) {
        let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
        let (select, head) = (byte(1) & 0b11, byte(1) >> 2 & 1);
        let drive = usize::from(select);
        match bytes[0] & 0x1f {
            0x03 if bytes[0] == 0x03 => {
                self.specified = [byte(1), byte(2)];
                self.non_dma = byte(2) & 1 != 0;
            }
            0x04 if bytes[0] == 0x04 => {
                let mut status = st::ALWAYS | byte(1) & 0b111;
                if let Some(drive) = self.drives.get(drive) {
                    status |= if drive.cylinder == 0 { st::TRACK_0 } else { 0 };
                    let protected = drive.media.as_ref().is_none_or(Media::read_only);
                    status |= if protected { st::PROTECTED } else { 0 };
                }
                self.result(&[status]);
            }
            0x07 if bytes[0] == 0x07 => self.seek(drive, select, Some(0)),
            0x0f if bytes[0] == 0x0f => self.seek(drive, select | head << 2, Some(byte(2))),
            // Relative: further in, or out.
            0x0f => {
                let now = self.drives.get(drive).map_or(0, |drive| drive.cylinder);
                let to = if bytes[0] & 0x40 != 0 {
                    now.saturating_add(byte(2))
                } else {
                    now.saturating_sub(byte(2))
                };
                self.seek(drive, select | head << 2, Some(to));
            }
            0x08 if bytes[0] == 0x08 => {
                self.line.set(false);
                if self.events.is_empty() {
                    return self.result(&[st::INVALID]);
                }
                let (status, drive) = self.events.remove(0);
                let cylinder = self.drives.get(drive).map_or(0, |drive| drive.cylinder);
                self.result(&[status, cylinder]);
            }
            0x06 | 0x0c => self.begin(bytes, Kind::Read),
            0x05 | 0x09 => self.begin(bytes, Kind::Write),
            // READ TRACK: from the first sector on.
            0x02 => {
                let mut bytes = bytes.to_vec();
                bytes[4] = 1;
                self.begin(&bytes, Kind::Read);
            }
            0x0a => self.read_id(drive, head),
            0x0d => self.format(bytes),
            // DUMPREG
            0x0e if bytes[0] == 0x0e => {
                let [a, b] = self.drives.each_ref().map(|drive| drive.cylinder);
                let lock = u8::from(self.locked) << 7;
                let ([s1, s2], [c1, c2]) = (self.specified, self.configured);
                let perpendicular = lock | self.perpendicular & 0x7f;
                self.result(&[a, b, 0, 0, s1, s2, self.last_end, perpendicular, c1, c2]);
            }
            0x10 if bytes[0] == 0x10 => self.result(&[0x90]),
            0x12 => self.perpendicular = byte(1) & 0x3f,
            0x13 => self.configured = [byte(2), byte(3)],
            0x14 => {
                self.locked = bytes[0] & 0x80 != 0;
                self.result(&[u8::from(self.locked) << 4]);
            }
            // PART ID
            0x18 if bytes[0] == 0x18 => self.result(&[0x41]),
            _ => self.result(&[st::INVALID]),
        }
    }

    fn seek(&mut self, drive: usize, select: u8, to: Option<u8>) {
        let mut status = st::SEEK_END | select;
        match (self.drives.get_mut(drive), to) {
            (Some(found), Some(to)) => {
                found.cylinder = to;
                found.changed = found.media.is_none();
            }
            // No drive says that its heads are at track 0.
            _ => status |= st::ABNORMAL | st::CHECK,
        }
        self.events.push((status, drive));
        // Software that never asks must not make this long.
        self.events.truncate(8);
        self.interrupt();
    }

    /// The disk in a drive that can be read at the data rate that is set.
    fn media(&self, drive: usize) -> Option<&Media> {
        let media = self.drives.get(drive)?.media.as_ref()?;
        (media.rate() == self.rate).then_some(media)
    }

    fn read_id(&mut self, drive: usize, head: u8) {
        let cylinder = self.drives.get(drive).map_or(0, |drive| drive.cylinder);
        let there = self.media(drive).is_some_and(|media| media.has_track(cylinder, head));
        let place = Place { cylinder, head, sector: 1 };
        if there {
            self.end(drive, place, 0, 0, 0);
        } else {
            self.end(drive, place, st::ABNORMAL, st::NO_ADDRESS, 0);
        }
    }

    /// Ends a command with data: its results, and an interrupt. The place is where it would go on.
    fn end(&mut self, drive: usize, place: Place, st0: u8, st1: u8, st2: u8) {
        const BYTES_512: u8 = 2;
        self.transfer = None;
        let st0 = st0 | place.head << 2 | (drive & 3) as u8;
        let Place { cylinder, head, sector } = place;
        self.result(&[st0, st1, st2, cylinder, head, sector, BYTES_512]);
        self.interrupt();
    }

    /// Starts reading or writing sectors.
    fn begin(&mut self, bytes: &[u8], kind: Kind) {
        const BOTH_SIDES: u8 = 1 << 7;
        const BYTES_512: u8 = 2;
        let drive = usize::from(bytes[1] & 0b11);
        let place = Place { cylinder: bytes[2], head: bytes[3], sector: bytes[4] };
        self.last_end = bytes[6];
        if self.media(drive).is_none() {
            return self.end(drive, place, st::ABNORMAL, st::NO_ADDRESS, 0);
        }
        if bytes[5] != BYTES_512 || bytes[3] != bytes[1] >> 2 & 1 {
            return self.end(drive, place, st::ABNORMAL, st::NO_DATA, 0);
        }
        let end = bytes[6];
        let both_sides = bytes[0] & BOTH_SIDES != 0;
        let buffer = Vec::new();
        self.transfer = Some(Transfer { kind, drive, place, end, both_sides, buffer, at: 0 });
        if self.find_sector() && self.non_dma {
            self.interrupt();
        }
    }

    fn format(&mut self, bytes: &[u8]) {
        let drive = usize::from(bytes[1] & 0b11);
        let cylinder = self.drives.get(drive).map_or(0, |drive| drive.cylinder);
        let place = Place { cylinder, head: bytes[1] >> 2 & 1, sector: 1 };
        let Some(media) = self.media(drive) else {
            return self.end(drive, place, st::ABNORMAL, st::NO_ADDRESS, 0);
        };
        if media.read_only() {
            return self.end(drive, place, st::ABNORMAL, st::NOT_WRITABLE, 0);
        }
        if bytes[3] == 0 {
            return self.end(drive, place, 0, 0, 0);
        }
        let kind = Kind::Format { fill: bytes[5], left: bytes[3] - 1 };
        let (end, both_sides, buffer) = (bytes[3], false, vec![0; 4]);
        self.transfer = Some(Transfer { kind, drive, place, end, both_sides, buffer, at: 0 });
        if self.non_dma {
            self.interrupt();
        }
    }

    /// Looks for the sector that the transfer is at and reads it, if it is to be read. False if the command has
    /// ended.
    fn find_sector(&mut self) -> bool {
        let Some(transfer) = &mut self.transfer else { return false };
        let (drive, place, kind) = (transfer.drive, transfer.place, transfer.kind);
        let cylinder = self.drives.get(drive).map_or(0, |drive| drive.cylinder);
        let media = self.drives.get(drive).and_then(|drive| drive.media.as_ref());
        let (st1, st2) = match media {
            None => (st::NO_ADDRESS, 0),
            Some(media) if kind == Kind::Write && media.read_only() => (st::NOT_WRITABLE, 0),
            Some(_) if place.cylinder != cylinder => (st::NO_DATA, st::WRONG_CYLINDER),
            Some(media) => match media.offset(place.cylinder, place.head, place.sector) {
                None => (st::NO_DATA, 0),
                Some(offset) => {
                    transfer.buffer = vec![0; media::SECTOR_BYTES];
                    transfer.at = 0;
                    if kind == Kind::Read
                        && let Err(error) = media.read(offset, &mut transfer.buffer)
                    {
                        tracing::warn!("floppy: the disk image: {error}");
                        (st::DATA_ERROR, st::DATA_ERROR)
                    } else {
                        return true;
                    }
                }
            },
        };
        self.end(drive, place, st::ABNORMAL, st1, st2);
        false
    }

    /// Moves data by the DMA controller as long as it takes some.
    fn run(&mut self) {
        while !self.non_dma
            && self.dor & dor::DMA_GATE != 0
            && let Some(transfer) = &mut self.transfer
        {
            let dma = Arc::clone(&self.dma);
            let mut dma = lock(&dma);
            if !dma.ready(CHANNEL) {
                return;
            }
            let rest = &mut transfer.buffer[transfer.at..];
            let moved = match transfer.kind {
                Kind::Read => dma.store(CHANNEL, rest),
                Kind::Write | Kind::Format { .. } => dma.load(CHANNEL, rest),
            };
            drop(dma);
            transfer.at += moved.bytes;
            if transfer.at < transfer.buffer.len() && !moved.terminal_count {
                return;
            }
            self.sector_moved(moved.terminal_count);
        }
    }

    /// A sector's bytes, or a part of them and no more, have been moved. `last`: the terminal count came.
    fn sector_moved(&mut self, last: bool) {
        let Some(transfer) = &mut self.transfer else { return };
        let (drive, place) = (transfer.drive, transfer.place);
        if let Kind::Format { fill, left } = transfer.kind {
            let [cylinder, head, sector, _] = transfer.buffer[..] else { return };
            let media = self.drives.get(drive).and_then(|drive| drive.media.as_ref());
            // Addresses that are not the disk's own leave no trace: there is no place for them.
            let offset = media.and_then(|media| media.offset(cylinder, head, sector));
            if let (Some(media), Some(offset)) = (media, offset)
                && (cylinder, head) == (place.cylinder, place.head)
                && media.write(offset, &[fill; media::SECTOR_BYTES]).is_err()
            {
                return self.end(drive, place, st::ABNORMAL, st::DATA_ERROR, 0);
            }
            if last || left == 0 {
                return self.end(drive, place, 0, 0, 0);
            }
            transfer.kind = Kind::Format { fill, left: left - 1 };
            transfer.at = 0;
            return;
        }
        if transfer.kind == Kind::Write {
            // What didn't come is zero, as in the buffer.
            let media = self.drives.get(drive).and_then(|drive| drive.media.as_ref());
            let offset =
                media.and_then(|media| media.offset(place.cylinder, place.head, place.sector));
            let written = match (media, offset) {
                (Some(media), Some(offset)) => media.write(offset, &transfer.buffer),
                _ => Ok(()),
            };
            if let Err(error) = written {
                tracing::warn!("floppy: the disk image: {error}");
                return self.end(drive, place, st::ABNORMAL, st::DATA_ERROR, st::DATA_ERROR);
            }
        }
        // The next sector, or the other side's first, or the next cylinder's.
        let track_ends = place.sector >= transfer.end;
        let next = match (track_ends, transfer.both_sides && place.head == 0) {
            (false, _) => Place { sector: place.sector + 1, ..place },
            (true, true) => Place { head: 1, sector: 1, ..place },
            (true, false) => {
                let head = if transfer.both_sides { 0 } else { place.head };
                Place { cylinder: place.cylinder.wrapping_add(1), head, sector: 1 }
            }
        };
        transfer.place = next;
        if last {
            return self.end(drive, next, 0, 0, 0);
        }
        if next.cylinder != place.cylinder {
            return self.end(drive, next, st::ABNORMAL, st::END_OF_CYLINDER, 0);
        }
        self.find_sector();
    }
}

/// Bytes of a command, by its first. What isn't known has one.
fn length(command: u8) -> usize {
    match (command, command & 0x1f) {
        (_, 0x02 | 0x05 | 0x06 | 0x09 | 0x0c) => 9,
        (_, 0x0d) => 6,
        (0x03 | 0x0f | 0x8f | 0xcf, _) => 3,
        (0x04 | 0x07, _) | (_, 0x0a | 0x12) => 2,
        (_, 0x13) => 4,
        _ => 1,
    }
}

impl BusDevice for Fdc {
    fn read(&mut self, offset: u64, _: u8) -> u64 {
        u64::from(self.read_register(offset))
    }
    fn write(&mut self, offset: u64, _: u8, value: u64) {
        self.write_register(offset, (value & 0xff) as u8);
    }
}

/// A drive's type, as CMOS has it: 0 if there is none.
#[must_use]
pub fn cmos_type(media: Option<&Media>) -> u8 {
    media.map_or(0, Media::cmos_type)
}

/// The media of an image.
///
/// # Errors
/// It is larger than any floppy.
pub fn media(image: Arc<dyn DiskImage>) -> Result<Media, FloppyError> {
    Media::new(image)
}
