//! One channel: the registers of its drives, its half of the bus master, the command under way.
//!
//! Problem: software gives a command by registers and then polls or is interrupted, moves data word by word or
//! by the bus master, and may stop, reset or disturb it at any step. Scheme: [`Channel::transfer`] is the
//! command under way, and its [`Kind`] the step that it waits at: for software to move a block of its
//! buffer, for the bus master to be started, or for a job. A write to a command block goes to both drives. Invariants:
//! while there is a transfer its drive shows BSY or DRQ and its registers take no writes; an outcome
//! counts only if its number is the transfer's. Any thread, under the channel's lock.
//!
//! Source: ATA/ATAPI-6, §7 "Interface register definitions and descriptions", §9 "Protocol".

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use vm_memory::GuestAddressSpace;

use super::Drive;
use super::ata::Disk;
use super::atapi::Cdrom;
use super::worker::{Desk, End, Job, Order, Outcome};
use crate::bus::{Bus, BusDevice, Overlap};
use crate::clock::lock;
use crate::irq::IrqLine;

/// Status register.
pub(super) mod status {
    pub const ERR: u8 = 1 << 0;
    pub const DRQ: u8 = 1 << 3;
    pub const DSC: u8 = 1 << 4;
    pub const DRDY: u8 = 1 << 6;
    pub const BSY: u8 = 1 << 7;
    /// Nothing under way.
    pub const READY: u8 = DRDY | DSC;
}

/// Error register.
pub(super) mod error {
    pub const ABRT: u8 = 1 << 2;
    pub const IDNF: u8 = 1 << 4;
    pub const UNC: u8 = 1 << 6;
}

/// Interrupt reason, in the sector count register of packet commands.
pub(super) mod reason {
    pub const COMMAND: u8 = 1 << 0;
    pub const TO_HOST: u8 = 1 << 1;
}

/// Device control register.
mod control {
    pub const NIEN: u8 = 1 << 1;
    pub const SRST: u8 = 1 << 2;
    pub const HOB: u8 = 1 << 7;
}

/// Bus master's command and status.
mod master {
    pub const START: u8 = 1 << 0;
    pub const TO_MEMORY: u8 = 1 << 3;
    pub const ACTIVE: u8 = 1 << 0;
    pub const ERROR: u8 = 1 << 1;
    pub const INTERRUPT: u8 = 1 << 2;
    /// Set by software for software: which drives can do DMA.
    pub const CAPABLE: u8 = 0b11 << 5;
}

/// Device register: bits that read as ones, the drive, and that the address is a sector's number.
const DEVICE_ONES: u8 = 0xa0;
const DEVICE_DRIVE: u8 = 1 << 4;
const DEVICE_LBA: u8 = 1 << 6;

// Registers of the command block.
const DATA: u64 = 0;
const ERROR_FEATURES: u64 = 1;
const COUNT: u64 = 2;
const LBA_LOW: u64 = 3;
const LBA_HIGH: u64 = 5;
const DEVICE: u64 = 6;
const STATUS_COMMAND: u64 = 7;

/// A register that remembers what it held before the last write, for 48-bit commands.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Twofold {
    pub(super) now: u8,
    pub(super) before: u8,
}

impl Twofold {
    fn write(&mut self, value: u8) {
        self.before = self.now;
        self.now = value;
    }
}

/// A drive's own registers.
#[derive(Clone, Debug, Default)]
pub(super) struct Registers {
    pub(super) features: Twofold,
    pub(super) count: Twofold,
    /// Low, mid, high.
    pub(super) lba: [Twofold; 3],
    pub(super) device: u8,
    pub(super) status: u8,
    pub(super) error: u8,
}

impl Registers {
    /// Whether the address is a sector's number and not cylinder, head and sector.
    pub(super) fn is_lba(&self) -> bool {
        self.device & DEVICE_LBA != 0
    }

    /// The low four bits of the device register: a head, or the top of a 28-bit address.
    pub(super) fn head(&self) -> u8 {
        self.device & 0xf
    }

    pub(super) fn set_head(&mut self, head: u8) {
        self.device = self.device & !0xf | head & 0xf;
    }
}

/// The kind of a drive, with what only that kind has.
pub(super) enum Unit {
    Disk(Disk),
    Cdrom(Cdrom),
}

pub(super) struct Fitted {
    pub(super) registers: Registers,
    pub(super) unit: Unit,
}

impl Fitted {
    /// What a drive's registers show after a reset: its kind.
    pub(super) fn sign(&mut self) {
        let (mid, high, status) = match self.unit {
            Unit::Disk(_) => (0, 0, status::READY),
            Unit::Cdrom(_) => (0x14, 0xeb, 0),
        };
        let one = |now| Twofold { now, before: 0 };
        self.registers = Registers {
            count: one(1),
            lba: [one(1), one(mid), one(high)],
            device: 0,
            status,
            // Diagnostics found nothing wrong.
            error: 1,
            ..Registers::default()
        };
    }

    fn reset(&mut self) {
        match &mut self.unit {
            Unit::Disk(disk) => disk.reset(),
            Unit::Cdrom(cdrom) => cdrom.reset(),
        }
        self.sign();
    }
}

/// What the command under way is waiting for, or does next.
pub(super) enum Kind {
    /// Software reads the buffer; then `left` sectors from `next` on are read from the disk.
    DiskIn { next: u64, left: u64, block: usize },
    /// Software writes the buffer, which goes to sector `next`; then come `left` more.
    DiskOut { next: u64, left: u64, block: usize, flush: bool },
    /// Software writes a packet; with `dma`, the data that it asks for goes by the bus master.
    Packet { dma: bool, limit: usize },
    /// Software reads the buffer; then `left` bytes from `next` on are read from the disc.
    PacketIn { next: u64, left: u64, limit: usize },
    /// The bus master, to be started, or at work if there is no job any more. `sector` is the first.
    Dma { job: Option<Job>, sector: u64 },
    /// A command without data.
    Plain,
}

/// The command under way.
pub(super) struct Transfer {
    pub(super) kind: Kind,
    pub(super) buffer: Vec<u8>,
    /// The next byte of the buffer, and where the block that software may move ends.
    pub(super) at: usize,
    pub(super) block_end: usize,
}

impl Transfer {
    pub(super) fn new(kind: Kind, buffer: Vec<u8>) -> Self {
        Self { kind, buffer, at: 0, block_end: 0 }
    }
}

#[derive(Default)]
struct BusMaster {
    command: u8,
    status: u8,
    table: u32,
}

/// A channel with its drives.
pub(super) struct Channel<M> {
    pub(super) drives: [Option<Fitted>; 2],
    pub(super) selected: usize,
    control: u8,
    /// A drive asks for an interrupt.
    interrupt: bool,
    line: IrqLine,
    master: BusMaster,
    pub(super) transfer: Option<Transfer>,
    /// Counts what ends or replaces a transfer.
    number: u64,
    /// The thread's, if there is one.
    desk: Option<Arc<Desk>>,
    memory: M,
}

impl<M: GuestAddressSpace> Channel<M> {
    /// Channel `index` with the drives of a cable, signalling on `line`.
    pub(super) fn new(line: IrqLine, memory: M, cable: [Option<Drive>; 2], index: usize) -> Self {
        let mut position = index * 2;
        let drives = cable.map(|drive| {
            let serial = format!("XD{position:05}");
            position += 1;
            let unit = match drive? {
                Drive::Disk(image) => Unit::Disk(Disk::new(image, serial)),
                Drive::Cdrom(image) => Unit::Cdrom(Cdrom::new(image, serial)),
            };
            Some(Fitted { registers: Registers::default(), unit })
        });
        let mut channel = Self {
            drives,
            selected: 0,
            control: 0,
            interrupt: false,
            line,
            master: BusMaster::default(),
            transfer: None,
            number: 0,
            desk: None,
            memory,
        };
        channel.power_on();
        channel
    }

    /// Power-on state.
    pub(super) fn power_on(&mut self) {
        self.control = 0;
        self.master = BusMaster::default();
        self.reset();
    }

    /// Ends what is under way and puts both drives into the state after a reset.
    fn reset(&mut self) {
        self.abandon();
        self.selected = 0;
        for drive in self.drives.iter_mut().flatten() {
            drive.reset();
        }
    }

    /// Ends what is under way. Memory and image are left alone from here on.
    pub(super) fn abandon(&mut self) {
        if let Some(desk) = &self.desk {
            desk.cancel();
        }
        self.number += 1;
        self.transfer = None;
        self.master.status &= !master::ACTIVE;
        self.set_interrupt(false);
    }

    fn set_interrupt(&mut self, level: bool) {
        self.interrupt = level;
        self.drive_line();
    }

    fn drive_line(&mut self) {
        let level = self.interrupt && self.control & control::NIEN == 0;
        if level {
            self.master.status |= master::INTERRUPT;
        }
        self.line.set(level);
    }

    /// The selected drive asks for an interrupt.
    pub(super) fn interrupt(&mut self) {
        self.set_interrupt(true);
    }

    /// The selected drive.
    pub(super) fn drive(&mut self) -> Option<&mut Fitted> {
        self.drives[self.selected].as_mut()
    }

    pub(super) fn set_status(&mut self, status: u8) {
        if let Some(drive) = self.drive() {
            drive.registers.status = status;
        }
    }

    /// The command has ended as it should.
    pub(super) fn done(&mut self) {
        self.transfer = None;
        self.set_status(status::READY);
        self.interrupt();
    }

    /// The command has ended with these bits in the error register.
    pub(super) fn fail(&mut self, bits: u8) {
        self.transfer = None;
        if let Some(drive) = self.drive() {
            drive.registers.error = bits;
            drive.registers.status = status::READY | status::ERR;
        }
        self.interrupt();
    }

    /// Offers software the next block of the buffer, `len` bytes at most.
    pub(super) fn offer(&mut self, len: usize) {
        if let Some(transfer) = &mut self.transfer {
            transfer.block_end = transfer.buffer.len().min(transfer.at + len);
        }
        self.set_status(status::READY | status::DRQ);
    }

    /// Has `job` done for the transfer; [`Channel::complete`] goes on with it.
    pub(super) fn work(&mut self, job: Job) {
        self.number += 1;
        let order = Order { job, table: self.master.table, number: self.number };
        let outcome = match &self.desk {
            Some(desk) => match order.job.at_once() {
                Some(outcome) => outcome,
                None => return desk.put(order),
            },
            None => {
                let cancelled = std::sync::atomic::AtomicBool::new(false);
                order.job.run(&self.memory, order.table, &cancelled)
            }
        };
        self.complete(order.number, outcome);
    }

    /// Lets the bus master do `job` when it is started; it may be so already. `sector` is where an error is
    /// counted from.
    pub(super) fn by_master(&mut self, job: Job, sector: u64) {
        self.set_status(status::READY | status::DRQ);
        self.transfer = Some(Transfer::new(Kind::Dma { job: Some(job), sector }, Vec::new()));
        self.run_master();
    }

    fn run_master(&mut self) {
        if self.master.command & master::START == 0 {
            return;
        }
        if let Some(Transfer { kind: Kind::Dma { job, .. }, .. }) = &mut self.transfer
            && let Some(job) = job.take()
        {
            self.master.status |= master::ACTIVE;
            self.work(job);
        }
    }

    /// Order `number` has ended.
    fn complete(&mut self, number: u64, outcome: Outcome) {
        if number != self.number {
            return;
        }
        let is_disk = matches!(self.drive(), Some(Fitted { unit: Unit::Disk(_), .. }));
        match self.transfer.as_ref().map(|transfer| &transfer.kind) {
            Some(&Kind::Dma { sector, .. }) => self.master_done(&outcome, sector, is_disk),
            Some(_) if is_disk => self.disk_goes_on(outcome),
            Some(_) => self.disc_goes_on(outcome),
            None => {}
        }
    }

    fn master_done(&mut self, outcome: &Outcome, sector: u64, is_disk: bool) {
        if outcome.end != End::Done || !outcome.table_left {
            self.master.status &= !master::ACTIVE;
        }
        match outcome.end {
            End::TableShort => {
                // Software sees that neither is active nor has interrupted.
                self.transfer = None;
                self.set_status(status::READY);
                return;
            }
            End::NoMemory => self.master.status |= master::ERROR,
            End::Done | End::Failed(_) | End::BadRange => {}
        }
        if is_disk {
            self.disk_master_done(outcome.end, sector);
        } else {
            self.disc_master_done(outcome.end);
        }
    }

    /// Reads `size` bytes at `register` of the command block.
    fn read(&mut self, register: u64, size: u8) -> u64 {
        if register == DATA && size > 1 {
            return self.read_data(usize::from(size));
        }
        (0..u64::from(size)).fold(0, |all, n| {
            let byte = match register + n {
                // A byte of a word: the other is lost.
                DATA => (self.read_data(2) & 0xff) as u8,
                register => self.read_register(register),
            };
            all | u64::from(byte) << (8 * n)
        })
    }

    fn write(&mut self, register: u64, size: u8, value: u64) {
        if register == DATA && size > 1 {
            return self.write_data(&value.to_le_bytes()[..usize::from(size)]);
        }
        for n in 0..u64::from(size) {
            let byte = (value >> (8 * n) & 0xff) as u8;
            match register + n {
                DATA => self.write_data(&[byte, 0]),
                register => self.write_register(register, byte),
            }
        }
    }

    fn read_register(&mut self, register: u64) -> u8 {
        let old = self.control & control::HOB != 0;
        let selected = self.selected;
        // Nobody drives the cable for a drive that isn't there.
        let Some(drive) = self.drive() else { return 0 };
        let registers = &drive.registers;
        let pick = |register: Twofold| if old { register.before } else { register.now };
        match register {
            ERROR_FEATURES => registers.error,
            COUNT => pick(registers.count),
            LBA_LOW..=LBA_HIGH => pick(registers.lba[(register - LBA_LOW) as usize]),
            DEVICE => {
                let drive = if selected == 1 { DEVICE_DRIVE } else { 0 };
                registers.device & !DEVICE_DRIVE | DEVICE_ONES | drive
            }
            STATUS_COMMAND => {
                let status = registers.status;
                self.set_interrupt(false);
                status
            }
            _ => 0xff,
        }
    }

    /// The status without the effect of having read it.
    fn alternate_status(&mut self) -> u8 {
        self.drive().map_or(0, |drive| drive.registers.status)
    }

    fn write_register(&mut self, register: u64, value: u8) {
        if register == STATUS_COMMAND {
            return self.command(value);
        }
        if self.alternate_status() & (status::BSY | status::DRQ) != 0 {
            return;
        }
        self.control &= !control::HOB;
        if register == DEVICE {
            self.selected = usize::from(value & DEVICE_DRIVE != 0);
        }
        for drive in self.drives.iter_mut().flatten() {
            let registers = &mut drive.registers;
            match register {
                ERROR_FEATURES => registers.features.write(value),
                COUNT => registers.count.write(value),
                LBA_LOW..=LBA_HIGH => registers.lba[(register - LBA_LOW) as usize].write(value),
                DEVICE => registers.device = value,
                _ => {}
            }
        }
    }

    /// Writes the device control register.
    fn write_control(&mut self, value: u8) {
        let before = self.control;
        self.control = value;
        if before & control::SRST == 0 && value & control::SRST != 0 {
            self.abandon();
            for drive in self.drives.iter_mut().flatten() {
                drive.registers.status = status::BSY;
            }
        } else if before & control::SRST != 0 && value & control::SRST == 0 {
            self.reset();
        }
        self.drive_line();
    }

    fn command(&mut self, command: u8) {
        const DEVICE_RESET: u8 = 0x08;
        const DIAGNOSE: u8 = 0x90;

        if self.control & control::SRST != 0 {
            return;
        }
        let Some(drive) = self.drive() else { return };
        let is_disk = matches!(drive.unit, Unit::Disk(_));
        if command == DEVICE_RESET && !is_disk {
            self.abandon();
            if let Some(drive) = self.drive() {
                drive.sign();
            }
            return;
        }
        if drive.registers.status & (status::BSY | status::DRQ) != 0 {
            return;
        }
        drive.registers.error = 0;
        self.set_interrupt(false);
        if command == DIAGNOSE {
            self.selected = 0;
            for drive in self.drives.iter_mut().flatten() {
                drive.sign();
            }
            self.interrupt();
        } else if is_disk {
            self.disk_command(command);
        } else {
            self.cdrom_command(command);
        }
    }

    fn read_data(&mut self, size: usize) -> u64 {
        let Some(transfer) = &mut self.transfer else { return 0 };
        let to_host = matches!(transfer.kind, Kind::DiskIn { .. } | Kind::PacketIn { .. });
        if !to_host || transfer.at >= transfer.block_end {
            return 0;
        }
        let end = transfer.block_end.min(transfer.at + size);
        let bytes = &transfer.buffer[transfer.at..end];
        let value = bytes.iter().rev().fold(0, |all, &byte| all << 8 | u64::from(byte));
        transfer.at = end;
        if end == transfer.block_end {
            self.block_moved();
        }
        value
    }

    /// The same as [`Self::read_data`] again and again, at most to the end of the block that is offered.
    fn read_data_many(&mut self, size: usize, out: &mut [u8]) -> usize {
        let Some(transfer) = &mut self.transfer else { return 0 };
        let to_host = matches!(transfer.kind, Kind::DiskIn { .. } | Kind::PacketIn { .. });
        let left = transfer.block_end.saturating_sub(transfer.at).min(out.len());
        let len = left - left % size;
        if !to_host || len == 0 {
            return 0;
        }
        let end = transfer.at + len;
        out[..len].copy_from_slice(&transfer.buffer[transfer.at..end]);
        transfer.at = end;
        if end == transfer.block_end {
            self.block_moved();
        }
        len
    }

    fn write_data(&mut self, bytes: &[u8]) {
        let Some(transfer) = &mut self.transfer else { return };
        let to_drive = matches!(transfer.kind, Kind::DiskOut { .. } | Kind::Packet { .. });
        if !to_drive || transfer.at >= transfer.block_end {
            return;
        }
        let end = transfer.block_end.min(transfer.at + bytes.len());
        let len = end - transfer.at;
        transfer.buffer[transfer.at..end].copy_from_slice(&bytes[..len]);
        transfer.at = end;
        if end == transfer.block_end {
            self.block_moved();
        }
    }

    /// Software has moved the block that it was offered.
    fn block_moved(&mut self) {
        match self.transfer.as_ref().map(|transfer| &transfer.kind) {
            Some(Kind::DiskIn { .. } | Kind::DiskOut { .. }) => self.disk_block_moved(),
            Some(Kind::Packet { .. }) => self.packet_arrived(),
            Some(Kind::PacketIn { .. }) => self.disc_block_moved(),
            Some(Kind::Dma { .. } | Kind::Plain) | None => {}
        }
    }

    /// Reads a byte of the bus master's registers.
    pub(super) fn bus_master_read(&self, at: u8) -> u8 {
        match at {
            0 => self.master.command,
            2 => self.master.status,
            4..=7 => self.master.table.to_le_bytes()[usize::from(at - 4)],
            _ => 0,
        }
    }

    pub(super) fn bus_master_write(&mut self, at: u8, value: u8) {
        match at {
            0 => {
                let before = self.master.command;
                self.master.command = value & (master::START | master::TO_MEMORY);
                if value & master::START == 0 && before & master::START != 0 {
                    // What has begun is let finish, and memory is left alone when this returns.
                    if let Some(desk) = &self.desk {
                        desk.wait();
                    }
                    self.master.status &= !master::ACTIVE;
                } else if value & master::START != 0 && before & master::START == 0 {
                    self.master.status |= master::ACTIVE;
                    self.run_master();
                }
            }
            2 => {
                let cleared = value & (master::ERROR | master::INTERRUPT);
                let kept = self.master.status & !cleared & !master::CAPABLE;
                self.master.status = kept | value & master::CAPABLE;
            }
            4..=7 => {
                let mut bytes = self.master.table.to_le_bytes();
                bytes[usize::from(at - 4)] = value;
                self.master.table = u32::from_le_bytes(bytes) & !3;
            }
            _ => {}
        }
    }
}

/// A channel and its thread, which ends with this.
pub(super) struct Handle<M: GuestAddressSpace + Clone + Send + 'static> {
    pub(super) channel: Arc<Mutex<Channel<M>>>,
    thread: Option<(Arc<Desk>, JoinHandle<()>)>,
}

impl<M: GuestAddressSpace + Clone + Send + 'static> Handle<M> {
    /// Starts the channel's thread, if there is to be one.
    pub(super) fn start(channel: Channel<M>, thread: bool) -> std::io::Result<Arc<Self>> {
        let memory = channel.memory.clone();
        let channel = Arc::new(Mutex::new(channel));
        let mut handle = Self { channel, thread: None };
        if thread {
            let desk = Arc::new(Desk::default());
            lock(&handle.channel).desk = Some(Arc::clone(&desk));
            let (channel, its_desk) = (Arc::clone(&handle.channel), Arc::clone(&desk));
            let join = std::thread::Builder::new().name("ide".to_owned()).spawn(move || {
                its_desk.serve(&memory, |number, outcome| lock(&channel).complete(number, outcome));
            })?;
            handle.thread = Some((desk, join));
        }
        Ok(Arc::new(handle))
    }
}

impl<M: GuestAddressSpace + Clone + Send + 'static> Drop for Handle<M> {
    fn drop(&mut self) {
        if let Some((desk, join)) = self.thread.take() {
            desk.stop();
            // A panic there has been reported where it happened.
            let _ = join.join();
        }
    }
}

/// The eight ports of a command block.
struct CommandBlock<M: GuestAddressSpace + Clone + Send + 'static>(Arc<Handle<M>>);

impl<M: GuestAddressSpace + Clone + Send + 'static> BusDevice for CommandBlock<M> {
    fn read(&mut self, offset: u64, size: u8) -> u64 {
        lock(&self.0.channel).read(offset, size)
    }
    fn write(&mut self, offset: u64, size: u8, value: u64) {
        lock(&self.0.channel).write(offset, size, value);
    }
    fn read_many(&mut self, offset: u64, size: u8, out: &mut [u8]) -> usize {
        let words = offset == DATA && size > 1;
        if words { lock(&self.0.channel).read_data_many(usize::from(size), out) } else { 0 }
    }
    fn width(&self) -> u8 {
        4
    }
}

/// The port of device control and alternate status.
struct ControlPort<M: GuestAddressSpace + Clone + Send + 'static>(Arc<Handle<M>>);

impl<M: GuestAddressSpace + Clone + Send + 'static> BusDevice for ControlPort<M> {
    fn read(&mut self, _: u64, _: u8) -> u64 {
        u64::from(lock(&self.0.channel).alternate_status())
    }
    fn write(&mut self, _: u64, _: u8, value: u64) {
        lock(&self.0.channel).write_control((value & 0xff) as u8);
    }
}

/// Puts a channel's ports on the bus.
pub(super) fn attach<M: GuestAddressSpace + Clone + Send + 'static>(
    handle: &Arc<Handle<M>>,
    ports: &mut Bus,
    command: u64,
    control: u64,
) -> Result<(), Overlap> {
    let block = Arc::new(Mutex::new(CommandBlock(Arc::clone(handle))));
    ports.insert(command, super::COMMAND_PORTS_LEN, block)?;
    ports.insert(control, 1, Arc::new(Mutex::new(ControlPort(Arc::clone(handle)))))
}
