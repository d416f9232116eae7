//! A CD-ROM drive's commands: those of the channel, and those in packets.
//!
//! Problem: installers and firmware read discs by SCSI commands that come in packets of 12 bytes. Scheme:
//! [`Cdrom::execute`] turns a packet into a [`Reply`], which the channel delivers through the data port, in
//! blocks of the size that software named, or by the bus master. Invariants: nothing is written; a reply is
//! never longer than software has said that it takes; what failed is told by the sense data until the next
//! command. Any thread, under the channel's lock.
//!
//! Source: ATA/ATAPI-6, §8.21 "PACKET"; INCITS MMC-5, §6 "Commands"; SPC-3, "Sense data".

use std::sync::Arc;

use vm_memory::GuestAddressSpace;

use super::ata::transfer_mode;
use super::channel::{Channel, Fitted, Kind, Registers, Transfer, Unit, error, reason, status};
use super::identify::{self, DmaMode};
use super::worker::{End, Job, Outcome, Source};
use crate::disk::{DISC_SECTOR as SECTOR, DiskImage};

const PACKET_BYTES: usize = 12;
/// Bytes in the buffer of programmed transfers.
const CHUNK: u64 = 32 * SECTOR;
/// What software gets at most in one block if it names none.
const LIMIT_MAX: usize = 0xfffe;
/// Sectors of the longest CD (80 minutes); what is longer is a DVD.
const CD_SECTORS_MAX: u64 = 80 * 60 * 75;
/// The first sector's place on the disc: two seconds from the start.
const LEAD_IN: u32 = 150;
/// Track number of the lead-out.
const LEAD_OUT: u8 = 0xaa;
/// A data track, in the table of contents.
const DATA_TRACK: u8 = 0x14;

/// Why a command failed: sense key, additional code and qualifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sense {
    key: u8,
    code: u8,
    qualifier: u8,
}

const fn sense(key: u8, code: u8, qualifier: u8) -> Sense {
    Sense { key, code, qualifier }
}

const NO_SENSE: Sense = sense(0, 0, 0);
const NO_DISC: Sense = sense(0x2, 0x3a, 0x00);
const UNREADABLE: Sense = sense(0x3, 0x11, 0x00);
const UNKNOWN_COMMAND: Sense = sense(0x5, 0x20, 0x00);
const PAST_THE_END: Sense = sense(0x5, 0x21, 0x00);
const BAD_FIELD: Sense = sense(0x5, 0x24, 0x00);
const NOT_SAVED: Sense = sense(0x5, 0x39, 0x00);
const LOCKED: Sense = sense(0x5, 0x53, 0x02);
const DISC_CHANGED: Sense = sense(0x6, 0x28, 0x00);
const TRANSFER_FAILED: Sense = sense(0xb, 0x00, 0x00);

/// What a packet's command does.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Done,
    Data(Vec<u8>),
    /// Sectors from the first on.
    Sectors(u64, u64),
    Fail(Sense),
}

/// A drive's state.
pub(super) struct Cdrom {
    image: Arc<dyn DiskImage>,
    serial: String,
    dma_mode: DmaMode,
    /// The tray is closed, with the disc in it.
    loaded: bool,
    /// Software doesn't want the tray to open.
    locked: bool,
    /// There was no command since the disc came.
    changed: bool,
    sense: Sense,
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from(be16(bytes, at)) << 16 | u32::from(be16(bytes, at + 2))
}

/// A place on the disc as tables of contents have it: a sector's number, or minute, second and frame.
fn place(sector: u32, in_minutes: bool) -> [u8; 4] {
    if !in_minutes {
        return sector.to_be_bytes();
    }
    let frames = sector.saturating_add(LEAD_IN);
    let byte = |part: u32| u8::try_from(part).unwrap_or(u8::MAX);
    [0, byte(frames / (60 * 75)), byte(frames / 75 % 60), byte(frames % 75)]
}

/// `data` with its length in front, which doesn't count itself, cut to what software takes.
fn with_length(data: &[u8], limit: u16) -> Reply {
    let len = u16::try_from(data.len()).expect("answers are short");
    cut([&len.to_be_bytes()[..], data].concat(), limit)
}

fn cut(mut data: Vec<u8>, limit: u16) -> Reply {
    data.truncate(usize::from(limit));
    if data.is_empty() { Reply::Done } else { Reply::Data(data) }
}

impl Cdrom {
    pub(super) fn new(image: Arc<dyn DiskImage>, serial: String) -> Self {
        Self {
            image,
            serial,
            dma_mode: DmaMode::Ultra(2),
            loaded: true,
            locked: false,
            changed: false,
            sense: NO_SENSE,
        }
    }

    /// What a reset changes. The tray stays as it is.
    pub(super) fn reset(&mut self) {
        self.locked = false;
        self.sense = NO_SENSE;
    }

    fn sectors(&self) -> u64 {
        self.image.size() / SECTOR
    }

    /// The lead-out's place: behind the last sector.
    fn end(&self) -> u32 {
        u32::try_from(self.sectors()).unwrap_or(u32::MAX)
    }

    fn profile(&self) -> u16 {
        const CD_ROM: u16 = 0x0008;
        const DVD_ROM: u16 = 0x0010;
        match self.loaded {
            false => 0,
            true if self.sectors() > CD_SECTORS_MAX => DVD_ROM,
            true => CD_ROM,
        }
    }

    /// Does the command in `packet`, but for moving data.
    pub(super) fn execute(&mut self, packet: &[u8; PACKET_BYTES]) -> Reply {
        let command = packet[0];
        let works_always = matches!(command, 0x03 | 0x12 | 0x46 | 0x4a);
        if self.changed && !works_always {
            self.changed = false;
            return Reply::Fail(DISC_CHANGED);
        }
        let wants_disc = matches!(command, 0x00 | 0x25 | 0x28 | 0x2b | 0x43 | 0x51 | 0xa8 | 0xbe);
        if wants_disc && !self.loaded {
            return Reply::Fail(NO_DISC);
        }
        match command {
            // TEST UNIT READY, SET CD SPEED.
            0x00 | 0xbb => Reply::Done,
            0x03 => self.request_sense(packet[4]),
            0x12 => inquiry(packet),
            0x1b => self.start_stop(packet[4]),
            0x1e => {
                self.locked = packet[4] & 1 != 0;
                Reply::Done
            }
            0x25 => self.capacity(),
            0x28 => self.read(be32(packet, 2), u32::from(be16(packet, 7))),
            0xa8 => self.read(be32(packet, 2), be32(packet, 6)),
            0x2b => match self.read(be32(packet, 2), 1) {
                Reply::Sectors(..) => Reply::Done,
                failed => failed,
            },
            0x43 => self.contents(packet),
            0x46 => self.configuration(packet),
            0x4a => self.event(packet),
            0x51 => disc_information(be16(packet, 7)),
            0x5a => mode_sense(packet, self.loaded),
            // MECHANISM STATUS: one slot, nothing playing.
            0xbd => cut(vec![0, 0, 0, 0, 0, 1, 0, 0], be16(packet, 8)),
            0xbe => self.read_cd(packet),
            _ => Reply::Fail(UNKNOWN_COMMAND),
        }
    }

    fn read(&self, first: u32, count: u32) -> Reply {
        let (first, count) = (u64::from(first), u64::from(count));
        if first + count > self.sectors() {
            return Reply::Fail(PAST_THE_END);
        }
        if count == 0 { Reply::Done } else { Reply::Sectors(first, count) }
    }

    /// READ CD, of which there is the data of sectors only.
    fn read_cd(&self, packet: &[u8; PACKET_BYTES]) -> Reply {
        const USER_DATA: u8 = 1 << 4;
        let count = be32(packet, 5) & 0xff_ffff;
        match packet[9] & 0xf8 {
            0 => Reply::Done,
            USER_DATA => self.read(be32(packet, 2), count),
            _ => Reply::Fail(BAD_FIELD),
        }
    }

    fn request_sense(&mut self, limit: u8) -> Reply {
        let mut told = std::mem::take(&mut self.sense);
        if told == NO_SENSE && self.changed {
            self.changed = false;
            told = DISC_CHANGED;
        }
        let mut data = vec![0; 18];
        data[0] = 0x70;
        data[2] = told.key;
        data[7] = 10;
        data[12] = told.code;
        data[13] = told.qualifier;
        cut(data, limit.into())
    }

    fn start_stop(&mut self, what: u8) -> Reply {
        const START: u8 = 1 << 0;
        const TRAY: u8 = 1 << 1;
        if what & TRAY != 0 {
            let close = what & START != 0;
            if !close && self.locked {
                return Reply::Fail(LOCKED);
            }
            self.changed |= close && !self.loaded;
            self.loaded = close;
        }
        Reply::Done
    }

    fn capacity(&self) -> Reply {
        let mut data = self.end().saturating_sub(1).to_be_bytes().to_vec();
        data.extend((SECTOR as u32).to_be_bytes());
        Reply::Data(data)
    }

    /// READ TOC/PMA/ATIP: one session with one track of data.
    fn contents(&self, packet: &[u8; PACKET_BYTES]) -> Reply {
        let in_minutes = packet[1] & 1 << 1 != 0;
        let limit = be16(packet, 7);
        // Older software has the format in the last byte.
        let format = match packet[2] & 0xf {
            0 => packet[9] >> 6,
            format => format,
        };
        let entry = |number: u8, at: u32| {
            let place = place(at, in_minutes);
            [[0, DATA_TRACK, number, 0], place].concat()
        };
        let mut data = vec![1, 1];
        match (format, packet[6]) {
            (0, from) => {
                if from > 1 && from != LEAD_OUT {
                    return Reply::Fail(BAD_FIELD);
                }
                if from <= 1 {
                    data.extend(entry(1, 0));
                }
                data.extend(entry(LEAD_OUT, self.end()));
            }
            // Where the last session begins.
            (1, _) => data.extend(entry(1, 0)),
            (2, _) => {
                let start = place(0, true);
                let end = place(self.end(), true);
                let point = |point: u8, [_, m, s, f]: [u8; 4]| {
                    [1, DATA_TRACK, 0, point, 0, 0, 0, 0, m, s, f]
                };
                data.extend(point(0xa0, [0, 1, 0, 0]));
                data.extend(point(0xa1, [0, 1, 0, 0]));
                data.extend(point(0xa2, end));
                data.extend(point(1, start));
            }
            _ => return Reply::Fail(BAD_FIELD),
        }
        with_length(&data, limit)
    }

    /// GET CONFIGURATION: profiles, core and removable medium.
    fn configuration(&self, packet: &[u8; PACKET_BYTES]) -> Reply {
        const PERSISTENT_CURRENT: u8 = 0b11;
        const ONE: u8 = 2;
        let current = self.profile();
        let profile = |number: u16| {
            let [high, low] = number.to_be_bytes();
            [high, low, u8::from(number == current), 0]
        };
        let features = [
            (0u16, [profile(0x10), profile(0x08)].concat()),
            // By ATAPI.
            (1, vec![0, 0, 0, 2, 0, 0, 0, 0]),
            // A tray that opens on command and can be locked.
            (3, vec![0x29, 0, 0, 0]),
        ];
        let (kind, from) = (packet[1] & 0b11, be16(packet, 2));
        if kind > ONE {
            return Reply::Fail(BAD_FIELD);
        }
        let mut data = vec![0, 0];
        data.extend(current.to_be_bytes());
        for (number, body) in features {
            // All of them are current, so that asking for those that are changes nothing.
            let wanted = if kind == ONE { number == from } else { number >= from };
            if wanted {
                data.extend(number.to_be_bytes());
                let version = if number == 1 { 1 << 2 } else { 0 };
                data.push(version | PERSISTENT_CURRENT);
                data.push(body.len() as u8);
                data.extend(body);
            }
        }
        let len = u32::try_from(data.len()).expect("some dozen bytes");
        cut([&len.to_be_bytes()[..], &data].concat(), be16(packet, 7))
    }

    /// GET EVENT STATUS NOTIFICATION: of the disc only, and only when asked.
    fn event(&self, packet: &[u8; PACKET_BYTES]) -> Reply {
        const POLLED: u8 = 1 << 0;
        const MEDIA: u8 = 4;
        const NONE: u8 = 0x80;
        const NEW_DISC: u8 = 2;
        if packet[1] & POLLED == 0 {
            return Reply::Fail(BAD_FIELD);
        }
        let mut data = vec![MEDIA, 1 << MEDIA];
        if packet[4] & 1 << MEDIA != 0 {
            let happened = if self.changed { NEW_DISC } else { 0 };
            let state = if self.loaded { 0b10 } else { 0b01 };
            data.extend([happened, state, 0, 0]);
        } else {
            data[0] = NONE;
        }
        with_length(&data, be16(packet, 7))
    }
}

fn inquiry(packet: &[u8; PACKET_BYTES]) -> Reply {
    const VITAL: u8 = 1 << 0;
    if packet[1] & VITAL != 0 || packet[2] != 0 {
        return Reply::Fail(BAD_FIELD);
    }
    // CD-ROM, removable, ATAPI; then vendor, product and revision.
    let mut data = vec![0x05, 0x80, 0x00, 0x21, 31, 0, 0, 0];
    data.extend(b"XENOLITHCD-ROM          1   ");
    cut(data, be16(packet, 3))
}

fn disc_information(limit: u16) -> Reply {
    let mut data = vec![0; 32];
    // Finished, as its only session; its first and last track are 1; for any use.
    data[..6].copy_from_slice(&[0x0e, 1, 1, 1, 1, 0x20]);
    with_length(&data, limit)
}

/// MODE SENSE (10): error recovery and capabilities.
fn mode_sense(packet: &[u8; PACKET_BYTES], loaded: bool) -> Reply {
    const ALL: u8 = 0x3f;
    const RECOVERY: u8 = 0x01;
    const CAPABILITIES: u8 = 0x2a;
    const CHANGEABLE: u8 = 1;
    const SAVED: u8 = 3;
    let page = packet[2] & 0x3f;
    let control = packet[2] >> 6;
    if control == SAVED {
        return Reply::Fail(NOT_SAVED);
    }
    // Medium type: a disc of data, or none.
    let mut data = vec![if loaded { 0x01 } else { 0x70 }, 0, 0, 0, 0, 0];
    let before = data.len();
    if matches!(page, RECOVERY | ALL) {
        data.extend([RECOVERY, 6, 0, 5, 0, 0, 0, 0]);
    }
    if matches!(page, CAPABILITIES | ALL) {
        let mut body = [0; 20];
        body[..2].copy_from_slice(&[CAPABILITIES, 18]);
        // Reads CD-R and DVD-ROM; data on any session; a tray that can be locked and opens on command.
        body[2] = 0x3b;
        body[4] = 0x70;
        body[6] = 0x29;
        // 32 times 176.4 kB/s at most and now; a buffer of 512 KiB.
        for (at, value) in [(8, 5645u16), (12, 512), (14, 5645)] {
            body[at..at + 2].copy_from_slice(&value.to_be_bytes());
        }
        data.extend(body);
    }
    if data.len() == before {
        return Reply::Fail(BAD_FIELD);
    }
    if control == CHANGEABLE {
        // Nothing is: page headers stay.
        let mut at = before;
        while at + 2 <= data.len() {
            let len = usize::from(data[at + 1]);
            data[at + 2..at + 2 + len].fill(0);
            at += 2 + len;
        }
    }
    with_length(&data, be16(packet, 7))
}

impl<M: GuestAddressSpace> Channel<M> {
    /// The selected drive's registers and state, if it is a CD-ROM drive.
    fn cdrom(&mut self) -> Option<(&mut Registers, &mut Cdrom)> {
        match self.drive() {
            Some(Fitted { registers, unit: Unit::Cdrom(cdrom) }) => Some((registers, cdrom)),
            _ => None,
        }
    }

    /// The selected drive is a CD-ROM drive and takes a command.
    pub(super) fn cdrom_command(&mut self, command: u8) {
        const BY_MASTER: u8 = 1 << 0;
        const OVERLAPPED: u8 = 1 << 1;
        let Some((registers, cdrom)) = self.cdrom() else { return };
        match command {
            0xa0 => {
                let features = registers.features.now;
                if features & OVERLAPPED != 0 {
                    return self.fail(error::ABRT);
                }
                let limit = u16::from_be_bytes([registers.lba[2].now, registers.lba[1].now]);
                // Blocks have an even number of bytes, but for the last.
                let limit = match usize::from(limit) & LIMIT_MAX {
                    0 => LIMIT_MAX,
                    limit => limit,
                };
                registers.count.now = reason::COMMAND;
                let kind = Kind::Packet { dma: features & BY_MASTER != 0, limit };
                self.transfer = Some(Transfer::new(kind, vec![0; PACKET_BYTES]));
                self.offer(PACKET_BYTES);
            }
            0xa1 => {
                let answer = identify::cdrom(&cdrom.serial, cdrom.dma_mode);
                // As a disk's: without an interrupt at the end.
                let kind = Kind::DiskIn { next: 0, left: 0, block: 1 };
                self.transfer = Some(Transfer::new(kind, answer));
                self.offer(identify::BYTES);
                self.interrupt();
            }
            // A disk's IDENTIFY DEVICE, and its reads, are refused with what the drive is.
            0xec | 0x20 => {
                if let Some(drive) = self.drive() {
                    drive.sign();
                }
                self.fail(error::ABRT);
            }
            0xef => match (registers.features.now, transfer_mode(registers.count.now)) {
                (0x03, Some(mode)) => {
                    cdrom.dma_mode = mode.unwrap_or(cdrom.dma_mode);
                    self.done();
                }
                _ => self.fail(error::ABRT),
            },
            0xe5 => {
                registers.count.now = 0xff;
                self.done();
            }
            0xe0..=0xe3 | 0xe6 => self.done(),
            _ => self.fail(error::ABRT),
        }
    }

    /// Software has written the packet.
    pub(super) fn packet_arrived(&mut self) {
        let Some(Transfer { kind: Kind::Packet { dma, limit }, buffer, .. }) = self.transfer.take()
        else {
            return;
        };
        let Some((_, cdrom)) = self.cdrom() else { return };
        let packet: [u8; PACKET_BYTES] = buffer.try_into().expect("made with this length");
        let reply = cdrom.execute(&packet);
        if !matches!(reply, Reply::Fail(_)) {
            cdrom.sense = NO_SENSE;
        }
        match reply {
            Reply::Done => self.packet_done(),
            Reply::Fail(why) => self.packet_failed(why),
            Reply::Data(data) if dma => {
                self.set_reason(reason::TO_HOST);
                self.by_master(Job::DmaIn { source: Source::Bytes(data) }, 0);
            }
            Reply::Sectors(first, count) if dma => {
                let Some((_, cdrom)) = self.cdrom() else { return };
                let image = Arc::clone(&cdrom.image);
                let source = Source::Image { image, offset: first * SECTOR, len: count * SECTOR };
                self.set_reason(reason::TO_HOST);
                self.by_master(Job::DmaIn { source }, 0);
            }
            Reply::Data(data) => {
                let kind = Kind::PacketIn { next: 0, left: 0, limit };
                self.transfer = Some(Transfer::new(kind, data));
                self.offer_data();
            }
            Reply::Sectors(first, count) => {
                let (next, left) = (first * SECTOR, count * SECTOR);
                let kind = Kind::PacketIn { next, left, limit };
                self.transfer = Some(Transfer::new(kind, Vec::new()));
                self.fetch_disc();
            }
        }
    }

    fn set_reason(&mut self, reason: u8) {
        if let Some((registers, _)) = self.cdrom() {
            registers.count.now = reason;
        }
    }

    fn packet_done(&mut self) {
        self.set_reason(reason::COMMAND | reason::TO_HOST);
        self.done();
    }

    fn packet_failed(&mut self, why: Sense) {
        if let Some((_, cdrom)) = self.cdrom() {
            cdrom.sense = why;
        }
        self.set_reason(reason::COMMAND | reason::TO_HOST);
        self.fail(why.key << 4 | error::ABRT);
    }

    /// Offers software the next block of the buffer, and says how long it is.
    fn offer_data(&mut self) {
        let Some(Transfer { kind: Kind::PacketIn { limit, .. }, buffer, at, .. }) = &self.transfer
        else {
            return;
        };
        let len = (*limit).min(buffer.len() - at);
        if let Some((registers, _)) = self.cdrom() {
            let bytes = len.to_le_bytes();
            registers.count.now = reason::TO_HOST;
            registers.lba[1].now = bytes[0];
            registers.lba[2].now = bytes[1];
        }
        self.offer(len);
        self.interrupt();
    }

    /// Reads the next sectors of the transfer into its buffer.
    fn fetch_disc(&mut self) {
        let Some(Transfer { kind: Kind::PacketIn { next, left, .. }, .. }) = self.transfer else {
            return;
        };
        let Some((registers, cdrom)) = self.cdrom() else { return };
        registers.status = status::BSY;
        let image = Arc::clone(&cdrom.image);
        self.work(Job::Read { image, offset: next, len: left.min(CHUNK) as usize });
    }

    /// Software has read a block.
    pub(super) fn disc_block_moved(&mut self) {
        match &self.transfer {
            Some(transfer) if transfer.at < transfer.buffer.len() => self.offer_data(),
            Some(Transfer { kind: Kind::PacketIn { left: 0, .. }, .. }) => self.packet_done(),
            Some(_) => self.fetch_disc(),
            None => {}
        }
    }

    /// Sectors were read, or not.
    pub(super) fn disc_goes_on(&mut self, outcome: Outcome) {
        if outcome.end != End::Done {
            return self.packet_failed(UNREADABLE);
        }
        let Some(Transfer { kind: Kind::PacketIn { next, left, .. }, buffer, at, .. }) =
            &mut self.transfer
        else {
            return;
        };
        let len = outcome.data.len() as u64;
        *next += len;
        *left -= len;
        *buffer = outcome.data;
        *at = 0;
        self.offer_data();
    }

    /// The bus master has moved a packet's data, or not.
    pub(super) fn disc_master_done(&mut self, end: End) {
        match end {
            End::Done => self.packet_done(),
            End::Failed(_) => self.packet_failed(UNREADABLE),
            End::NoMemory | End::TableShort | End::BadRange => self.packet_failed(TRANSFER_FAILED),
        }
    }
}
