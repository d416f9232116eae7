//! A hard disk's commands.
//!
//! Problem: three ways of addressing and four of moving data, over decades of drivers. Scheme: [`Reach`] is what
//! a command's registers ask for, checked against the disk; then sectors go through a buffer of [`CHUNK`]
//! sectors, or by the bus master. Invariants: no sector past the disk's end is touched; a command that
//! may not lose its data (FUA, or the write cache switched off) ends after the image was flushed. Any thread,
//! under the channel's lock.
//!
//! Source: ATA/ATAPI-6, §8 "Command descriptions"; ACS-2, "DATA SET MANAGEMENT".

use std::sync::Arc;

use vm_memory::GuestAddressSpace;

use super::channel::{Channel, Fitted, Kind, Registers, Transfer, Twofold, Unit, error, status};
use super::identify::{self, DmaMode, LBA28_SECTORS_MAX, MULTIPLE_MAX};
use super::worker::{End, Job, Outcome, Source};
use crate::disk::{DiskImage, SECTOR};

/// Sectors in the buffer of programmed transfers: a multiple of every block.
const CHUNK: u64 = 128;
const SECTOR_BYTES: usize = SECTOR as usize;
/// Sectors of ranges that one DATA SET MANAGEMENT takes.
const TRIM_SECTORS_MAX: u64 = 1;

/// A disk's settings.
pub(super) struct Disk {
    pub(super) image: Arc<dyn DiskImage>,
    pub(super) serial: String,
    /// Heads, and sectors of a track, for addresses by cylinder.
    heads: u8,
    per_track: u8,
    /// Sectors of a block of READ MULTIPLE; 0 if it isn't set up.
    pub(super) multiple: u8,
    pub(super) write_cache: bool,
    pub(super) dma_mode: DmaMode,
}

impl Disk {
    pub(super) fn new(image: Arc<dyn DiskImage>, serial: String) -> Self {
        Self {
            image,
            serial,
            heads: 16,
            per_track: 63,
            multiple: MULTIPLE_MAX,
            write_cache: true,
            dma_mode: DmaMode::Ultra(5),
        }
    }

    /// What a reset changes. Modes stay.
    pub(super) fn reset(&mut self) {
        (self.heads, self.per_track) = (16, 63);
        self.multiple = MULTIPLE_MAX;
    }

    pub(super) fn sectors(&self) -> u64 {
        self.image.size() / SECTOR
    }

    /// Heads and sectors of a track now.
    pub(super) fn geometry(&self) -> (u8, u8) {
        (self.heads, self.per_track)
    }

    /// Cylinders of the disk's own geometry. A disk smaller than one has them all the same, as on QEMU: firmware
    /// would find no sector otherwise.
    pub(super) fn cylinders(&self) -> u16 {
        self.cylinders_of(16, 63).clamp(2, 16383)
    }

    pub(super) fn cylinders_of(&self, heads: u8, per_track: u8) -> u16 {
        let cylinders = self.sectors() / (u64::from(heads) * u64::from(per_track)).max(1);
        u16::try_from(cylinders).unwrap_or(u16::MAX)
    }
}

/// The sectors that a command is about.
#[derive(Clone, Copy)]
struct Reach {
    first: u64,
    count: u64,
}

impl Reach {
    /// What the registers ask for. None if it isn't on the disk.
    fn of(registers: &Registers, disk: &Disk, extended: bool) -> Option<Self> {
        let first = address(registers, disk, extended)?;
        let count = if extended {
            match u64::from(u16::from_be_bytes([registers.count.before, registers.count.now])) {
                0 => 1 << 16,
                count => count,
            }
        } else {
            match u64::from(registers.count.now) {
                0 => 1 << 8,
                count => count,
            }
        };
        (first + count <= disk.sectors()).then_some(Self { first, count })
    }
}

/// The sector that the registers name. None if there is no such cylinder, head and sector.
fn address(registers: &Registers, disk: &Disk, extended: bool) -> Option<u64> {
    let [low, mid, high] = registers.lba;
    let top = if registers.is_lba() && !extended { registers.head() } else { 0 };
    let number = u64::from(u32::from_be_bytes([top, high.now, mid.now, low.now]));
    if extended {
        let before = u32::from_be_bytes([0, high.before, mid.before, low.before]);
        return Some(u64::from(before) << 24 | number);
    }
    if registers.is_lba() {
        return Some(number);
    }
    let cylinder = u64::from(u16::from_be_bytes([high.now, mid.now]));
    let (heads, per_track) = (u64::from(disk.heads), u64::from(disk.per_track));
    let (head, sector) = (u64::from(registers.head()), u64::from(low.now));
    let exists = head < heads && (1..=per_track).contains(&sector);
    exists.then(|| (cylinder * heads + head) * per_track + sector - 1)
}

/// Puts a sector's number into the registers.
fn set_address(registers: &mut Registers, disk: &Disk, sector: u64, extended: bool) {
    let bytes = sector.to_le_bytes();
    if extended {
        let twofold = |n: usize| Twofold { now: bytes[n], before: bytes[n + 3] };
        registers.lba = [twofold(0), twofold(1), twofold(2)];
    } else if registers.is_lba() {
        for (register, byte) in registers.lba.iter_mut().zip(bytes) {
            register.now = byte;
        }
        registers.set_head(bytes[3]);
    } else {
        let (heads, per_track) = (u64::from(disk.heads), u64::from(disk.per_track));
        let track = sector / per_track.max(1);
        let cylinder = (track / heads.max(1)).to_le_bytes();
        let in_track = (sector % per_track.max(1)).to_le_bytes()[0];
        registers.lba[0].now = in_track.wrapping_add(1);
        registers.lba[1].now = cylinder[0];
        registers.lba[2].now = cylinder[1];
        registers.set_head((track % heads.max(1)).to_le_bytes()[0]);
    }
}

/// How a command's data goes.
#[derive(Clone, Copy)]
enum Way {
    /// Block by block through the data port; a block has one sector, or those of SET MULTIPLE.
    Single,
    Multiple,
    Master,
}

impl<M: GuestAddressSpace> Channel<M> {
    /// The selected drive's registers and settings, if it is a disk.
    fn disk(&mut self) -> Option<(&mut Registers, &mut Disk)> {
        match self.drive() {
            Some(Fitted { registers, unit: Unit::Disk(disk) }) => Some((registers, disk)),
            _ => None,
        }
    }

    /// The selected drive is a disk and takes a command.
    pub(super) fn disk_command(&mut self, command: u8) {
        use Way::{Master, Multiple, Single};
        match command {
            0x20 | 0x21 => self.read_disk(false, Single),
            0x24 => self.read_disk(true, Single),
            0xc4 => self.read_disk(false, Multiple),
            0x29 => self.read_disk(true, Multiple),
            0xc8 | 0xc9 => self.read_disk(false, Master),
            0x25 => self.read_disk(true, Master),
            0x30 | 0x31 => self.write_disk(false, Single, false),
            0x34 => self.write_disk(true, Single, false),
            0xc5 => self.write_disk(false, Multiple, false),
            0x39 => self.write_disk(true, Multiple, false),
            0xce => self.write_disk(true, Multiple, true),
            0xca | 0xcb => self.write_disk(false, Master, false),
            0x35 => self.write_disk(true, Master, false),
            0x3d => self.write_disk(true, Master, true),
            0x06 => self.trim(),
            // READ VERIFY: sectors that exist can be read.
            0x40..=0x42 => match self.reach(command == 0x42) {
                Some(_) => self.done(),
                None => self.fail(error::IDNF),
            },
            // SEEK, and RECALIBRATE.
            0x70..=0x7f => {
                let there = self.disk().and_then(|(registers, disk)| {
                    address(registers, disk, false).filter(|&sector| sector < disk.sectors())
                });
                if there.is_some() { self.done() } else { self.fail(error::IDNF) }
            }
            0x10..=0x1f => self.done(),
            0x91 => self.set_geometry(),
            0xc6 => self.set_multiple(),
            0xe7 | 0xea => self.flush(),
            0xec => self.identify_disk(),
            0xef => self.set_features(),
            // CHECK POWER MODE: active or idle. The others change nothing that could be seen.
            0xe5 | 0x98 => {
                if let Some((registers, _)) = self.disk() {
                    registers.count.now = 0xff;
                }
                self.done();
            }
            0xe0..=0xe3 | 0xe6 | 0x94..=0x97 | 0x99 => self.done(),
            0xf8 | 0x27 => self.tell_last_sector(command == 0x27),
            _ => self.fail(error::ABRT),
        }
    }

    fn reach(&mut self, extended: bool) -> Option<Reach> {
        let (registers, disk) = self.disk()?;
        Reach::of(registers, disk, extended)
    }

    /// Sectors of a block that goes this way. None if SET MULTIPLE has not said.
    fn block(&mut self, way: Way) -> Option<usize> {
        match way {
            Way::Single | Way::Master => Some(1),
            Way::Multiple => {
                let multiple = usize::from(self.disk()?.1.multiple);
                (multiple > 0).then_some(multiple)
            }
        }
    }

    fn read_disk(&mut self, extended: bool, way: Way) {
        let Some(block) = self.block(way) else { return self.fail(error::ABRT) };
        let Some(reach) = self.reach(extended) else { return self.fail(error::IDNF) };
        if matches!(way, Way::Master) {
            let Some((_, disk)) = self.disk() else { return };
            let image = Arc::clone(&disk.image);
            let (offset, len) = (reach.first * SECTOR, reach.count * SECTOR);
            let job = Job::DmaIn { source: Source::Image { image, offset, len } };
            return self.by_master(job, reach.first);
        }
        let kind = Kind::DiskIn { next: reach.first, left: reach.count, block };
        self.transfer = Some(Transfer::new(kind, Vec::new()));
        self.fetch();
    }

    /// Reads the next sectors of the transfer into its buffer.
    fn fetch(&mut self) {
        let Some(Transfer { kind: Kind::DiskIn { next, left, .. }, .. }) = self.transfer else {
            return;
        };
        let Some((registers, disk)) = self.disk() else { return };
        registers.status = status::BSY;
        let image = Arc::clone(&disk.image);
        let len = left.min(CHUNK) as usize * SECTOR_BYTES;
        self.work(Job::Read { image, offset: next * SECTOR, len });
    }

    fn write_disk(&mut self, extended: bool, way: Way, fua: bool) {
        let Some(block) = self.block(way) else { return self.fail(error::ABRT) };
        let Some((_, disk)) = self.disk() else { return };
        if disk.image.read_only() {
            return self.fail(error::ABRT);
        }
        let (image, flush) = (Arc::clone(&disk.image), fua || !disk.write_cache);
        let Some(reach) = self.reach(extended) else { return self.fail(error::IDNF) };
        if matches!(way, Way::Master) {
            let (offset, len) = (reach.first * SECTOR, reach.count * SECTOR);
            return self.by_master(Job::DmaOut { image, offset, len, flush }, reach.first);
        }
        let kind = Kind::DiskOut { next: reach.first, left: reach.count, block, flush };
        self.transfer = Some(Transfer::new(kind, Vec::new()));
        // Of the first block drivers are told by the status alone.
        self.take_more();
    }

    /// Makes room for the next sectors of the transfer.
    fn take_more(&mut self) {
        let Some(transfer) = &mut self.transfer else { return };
        let Kind::DiskOut { left, block, .. } = &mut transfer.kind else { return };
        let (len, block) = ((*left).min(CHUNK), *block * SECTOR_BYTES);
        *left -= len;
        transfer.buffer = vec![0; len as usize * SECTOR_BYTES];
        transfer.at = 0;
        self.offer(block);
    }

    /// Software has read or written a block of sectors.
    pub(super) fn disk_block_moved(&mut self) {
        let Some(transfer) = &mut self.transfer else { return };
        let more = transfer.at < transfer.buffer.len();
        match transfer.kind {
            Kind::DiskIn { block, .. } | Kind::DiskOut { block, .. } if more => {
                self.offer(block * SECTOR_BYTES);
                self.interrupt();
            }
            Kind::DiskIn { left: 0, .. } => {
                // The last block's interrupt was the command's last.
                self.transfer = None;
                self.set_status(status::READY);
            }
            Kind::DiskIn { .. } => self.fetch(),
            Kind::DiskOut { next, left, flush, .. } => {
                let data = std::mem::take(&mut transfer.buffer);
                let Some((registers, disk)) = self.disk() else { return };
                registers.status = status::BSY;
                let image = Arc::clone(&disk.image);
                let flush = flush && left == 0;
                self.work(Job::Write { image, offset: next * SECTOR, data, flush });
            }
            Kind::Packet { .. } | Kind::PacketIn { .. } | Kind::Dma { .. } | Kind::Plain => {}
        }
    }

    /// A job of a programmed transfer, or of a command without data, has ended.
    pub(super) fn disk_goes_on(&mut self, outcome: Outcome) {
        let Some(transfer) = &mut self.transfer else { return };
        let failed = outcome.end != End::Done;
        match &mut transfer.kind {
            Kind::DiskIn { next, .. } if failed => {
                let sector = *next;
                self.fail_at(error::UNC, sector);
            }
            Kind::DiskOut { next, .. } if failed => {
                let sector = *next;
                self.fail_at(error::ABRT, sector);
            }
            _ if failed => self.fail(error::ABRT),
            Kind::DiskIn { next, left, block } => {
                let sectors = (outcome.data.len() / SECTOR_BYTES) as u64;
                *next += sectors;
                *left -= sectors;
                let block = *block * SECTOR_BYTES;
                transfer.buffer = outcome.data;
                transfer.at = 0;
                self.offer(block);
                self.interrupt();
            }
            Kind::DiskOut { left: 0, .. } => self.done(),
            Kind::DiskOut { next, .. } => {
                *next += CHUNK;
                self.take_more();
                self.interrupt();
            }
            _ => self.done(),
        }
    }

    /// The bus master has moved a command's data, or not.
    pub(super) fn disk_master_done(&mut self, end: End, sector: u64) {
        match end {
            End::Done => self.done(),
            End::Failed(done) => self.fail_at(error::UNC, sector + done / SECTOR),
            End::BadRange => self.fail(error::IDNF),
            End::NoMemory | End::TableShort => self.fail(error::ABRT),
        }
    }

    /// The command has failed at this sector.
    fn fail_at(&mut self, bits: u8, sector: u64) {
        if let Some((registers, disk)) = self.disk() {
            // Only 48-bit commands reach what doesn't fit into 28 bits; for the others it is the same.
            let extended = sector > LBA28_SECTORS_MAX;
            set_address(registers, disk, sector, extended);
        }
        self.fail(bits);
    }

    fn flush(&mut self) {
        let Some((registers, disk)) = self.disk() else { return };
        registers.status = status::BSY;
        let image = Arc::clone(&disk.image);
        self.transfer = Some(Transfer::new(Kind::Plain, Vec::new()));
        self.work(Job::Flush { image });
    }

    fn trim(&mut self) {
        const TRIM: u8 = 1;
        let Some((registers, disk)) = self.disk() else { return };
        let count = u16::from_be_bytes([registers.count.before, registers.count.now]);
        let count = u64::from(count);
        let can = disk.image.can_discard() && !disk.image.read_only();
        if !can || registers.features.now != TRIM || !(1..=TRIM_SECTORS_MAX).contains(&count) {
            return self.fail(error::ABRT);
        }
        let image = Arc::clone(&disk.image);
        self.by_master(Job::Trim { image, len: count as usize * SECTOR_BYTES }, 0);
    }

    fn identify_disk(&mut self) {
        let Some((_, disk)) = self.disk() else { return };
        let answer = identify::disk(disk);
        let kind = Kind::DiskIn { next: 0, left: 0, block: 1 };
        self.transfer = Some(Transfer::new(kind, answer));
        self.offer(identify::BYTES);
        self.interrupt();
    }

    /// INITIALIZE DEVICE PARAMETERS.
    fn set_geometry(&mut self) {
        let Some((registers, disk)) = self.disk() else { return };
        let (heads, per_track) = (registers.head() + 1, registers.count.now);
        if per_track == 0 {
            return self.fail(error::ABRT);
        }
        (disk.heads, disk.per_track) = (heads, per_track);
        self.done();
    }

    fn set_multiple(&mut self) {
        let Some((registers, disk)) = self.disk() else { return };
        let count = registers.count.now;
        if count > MULTIPLE_MAX || count != 0 && !count.is_power_of_two() {
            return self.fail(error::ABRT);
        }
        disk.multiple = count;
        self.done();
    }

    /// READ NATIVE MAX ADDRESS.
    fn tell_last_sector(&mut self, extended: bool) {
        let Some((registers, disk)) = self.disk() else { return };
        let last = disk.sectors() - 1;
        let last = if extended { last } else { last.min(LBA28_SECTORS_MAX - 1) };
        set_address(registers, disk, last, extended);
        self.done();
    }

    fn set_features(&mut self) {
        let Some((registers, disk)) = self.disk() else { return };
        match registers.features.now {
            0x02 => disk.write_cache = true,
            // What is in the cache goes to the disk.
            0x82 => {
                disk.write_cache = false;
                return self.flush();
            }
            0x03 => match transfer_mode(registers.count.now) {
                Some(mode) => disk.dma_mode = mode.unwrap_or(disk.dma_mode),
                None => return self.fail(error::ABRT),
            },
            // Read look-ahead; defaults after a software reset.
            0x55 | 0xaa | 0x66 | 0xcc => {}
            _ => return self.fail(error::ABRT),
        }
        self.done();
    }
}

/// The mode that SET FEATURES names; a mode of programmed transfers leaves DMA alone. None if there is no such.
pub(super) fn transfer_mode(value: u8) -> Option<Option<DmaMode>> {
    match value {
        0x00 | 0x01 | 0x08..=0x0c => Some(None),
        0x20..=0x22 => Some(Some(DmaMode::Multiword(value & 7))),
        0x40..=0x45 => Some(Some(DmaMode::Ultra(value & 7))),
        _ => None,
    }
}
