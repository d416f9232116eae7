//! The board that the tests drive.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::bus::Bus;
use crate::clock::lock;
use crate::irq::IrqSink;
use crate::pci::PciRoot;
use crate::virtio::{Interfaces, VirtioDevice, add};

pub type Ram = Arc<GuestMemoryMmap<()>>;

/// RAM begins here, so that address 0 is outside.
pub const RAM_START: u64 = 0x10_0000;
pub const RAM_LEN: usize = 64 << 20;
/// The hole that BARs go to.
pub const HOLE: u64 = 0xe000_0000;

/// RAM of all boards: `Hal` has no state of its own.
pub static RAM: LazyLock<Ram> = LazyLock::new(new_ram);

pub fn new_ram() -> Ram {
    Arc::new(
        GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM_START), RAM_LEN)])
            .expect("64 MiB can be reserved"),
    )
}

/// Next free page of [`RAM`].
static NEXT: AtomicU64 = AtomicU64::new(RAM_START);

pub fn alloc(len: usize) -> u64 {
    let len = len.next_multiple_of(PAGE_SIZE).max(PAGE_SIZE) as u64;
    let at = NEXT.fetch_add(len, Ordering::SeqCst);
    assert!(at + len <= RAM_START + RAM_LEN as u64, "tests share 64 MiB");
    at
}

pub struct TestHal;

// SAFETY: pages come from one mapping that lives as long as the program, each handed out once.
unsafe impl Hal for TestHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let at = alloc(pages * PAGE_SIZE);
        let host = RAM.get_host_address(GuestAddress(at)).expect("in RAM");
        (at, NonNull::new(host).expect("a mapping isn't at 0"))
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        unreachable!("the transport goes through the bus")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        let at = alloc(buffer.len());
        // SAFETY: the caller gives a valid buffer that nobody else accesses.
        let bytes = unsafe { buffer.as_ref() };
        RAM.write_slice(bytes, GuestAddress(at)).expect("in RAM");
        at
    }

    unsafe fn unshare(at: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        if direction != BufferDirection::DriverToDevice {
            // SAFETY: the caller gives a valid buffer that nobody else accesses.
            let bytes = unsafe { buffer.as_mut() };
            RAM.read_slice(bytes, GuestAddress(at)).expect("in RAM");
        }
    }
}

/// Records what interrupt controllers would get.
#[derive(Default)]
pub struct Sink {
    levels: Mutex<Vec<(u32, bool)>>,
    messages: Mutex<Vec<(u64, u32)>>,
}

impl IrqSink for Sink {
    fn set_level(&self, gsi: u32, level: bool) {
        lock(&self.levels).push((gsi, level));
    }
    fn edges(&self, gsi: u32, _: u64) {
        self.set_level(gsi, true);
    }
    fn forget_edges(&self, _: u32) {}
    fn message(&self, address: u64, data: u32) {
        lock(&self.messages).push((address, data));
    }
}

impl Sink {
    pub fn messages(&self) -> Vec<(u64, u32)> {
        lock(&self.messages).clone()
    }
    /// The level of `gsi` now.
    pub fn level(&self, gsi: u32) -> bool {
        lock(&self.levels).iter().rev().find(|change| change.0 == gsi).is_some_and(|last| last.1)
    }
}

/// Waits for what another thread will do.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Two buses with PCI between them.
pub struct Board {
    pub memory: Bus,
    pub ports: Bus,
    pub root: Arc<Mutex<PciRoot>>,
    pub sink: Arc<Sink>,
}

impl Board {
    pub fn new() -> Self {
        let (memory, mut ports) = (Bus::new(), Bus::new());
        let sink = Arc::new(Sink::default());
        let root = PciRoot::new(&memory, &mut ports, Arc::clone(&sink) as _, Box::new(()))
            .expect("free ports");
        Self { memory, ports, root, sink }
    }

    /// A board with one device, in slot 2.
    pub fn with(device: impl VirtioDevice<Ram> + 'static, ram: &Ram) -> Arc<Self> {
        Self::with_interfaces(device, ram, Interfaces::default())
    }

    pub fn with_interfaces(
        device: impl VirtioDevice<Ram> + 'static,
        ram: &Ram,
        interfaces: Interfaces,
    ) -> Arc<Self> {
        let board = Self::new();
        let slot =
            add(&mut lock(&board.root), device, Arc::clone(ram), interfaces).expect("free slot");
        assert_eq!(slot, 2);
        board.assign();
        Arc::new(board)
    }

    pub fn assign(&self) {
        let mut root = lock(&self.root);
        root.assign_resources(HOLE..0xfec0_0000, 0xc000..0xd000).expect("enough space");
    }

    pub fn config_read(&self, slot: u8, offset: u32, size: u8) -> u32 {
        self.ports.write(0xcf8, 4, u64::from(1 << 31 | u32::from(slot) << 11 | offset & !3));
        self.ports.read(u64::from(0xcfc + (offset & 3)), size) as u32
    }

    pub fn config_write(&self, slot: u8, offset: u32, size: u8, value: u32) {
        self.ports.write(0xcf8, 4, u64::from(1 << 31 | u32::from(slot) << 11 | offset & !3));
        self.ports.write(u64::from(0xcfc + (offset & 3)), size, u64::from(value));
    }

    pub fn bar(&self, slot: u8, index: u32) -> u64 {
        let low = self.config_read(slot, 0x10 + 4 * index, 4);
        let high = if low & 6 == 4 { self.config_read(slot, 0x14 + 4 * index, 4) } else { 0 };
        u64::from(high) << 32 | u64::from(low & !0xf)
    }

    /// Offset of the first capability `id`, and for vendor ones structure type `kind`.
    pub fn capability(&self, slot: u8, id: u8, kind: Option<u8>) -> u32 {
        let mut at = self.config_read(slot, 0x34, 1);
        while at != 0 {
            let matches = kind.is_none_or(|kind| self.config_read(slot, at + 3, 1) as u8 == kind);
            if self.config_read(slot, at, 1) as u8 == id && matches {
                return at;
            }
            at = self.config_read(slot, at + 1, 1);
        }
        panic!("no capability {id:#x} {kind:?}");
    }

    /// Enables MSI-X with vector `i` sending data `0x40 + i`.
    pub fn enable_msix(&self, slot: u8) {
        let at = self.capability(slot, 0x11, None);
        let table = self.bar(slot, self.config_read(slot, at + 4, 4) & 7);
        let last = self.config_read(slot, at + 2, 2) & 0x7ff;
        for i in 0..=last {
            let entry = table + 16 * u64::from(i);
            self.memory.write(entry, 8, 0xfee0_1000);
            self.memory.write(entry + 8, 4, u64::from(0x40 + i));
            self.memory.write(entry + 12, 4, 0);
        }
        self.config_write(slot, at + 2, 2, 0x8000);
        self.config_write(slot, 4, 2, 0x0407);
    }
}

/// A driver's way to the device in slot 2.
pub struct PciTransport {
    board: Arc<Board>,
    common: u64,
    isr: u64,
    device: u64,
    notify: u64,
}

impl PciTransport {
    pub fn new(board: &Arc<Board>) -> Self {
        // Bus mastering, as drivers do.
        let command = board.config_read(2, 4, 2);
        board.config_write(2, 4, 2, command | 4);
        let place = |kind| {
            let at = board.capability(2, 9, Some(kind));
            let bar = board.bar(2, board.config_read(2, at + 4, 1));
            bar + u64::from(board.config_read(2, at + 8, 4))
        };
        let (common, notify, isr, device) = (place(1), place(2), place(3), place(4));
        Self { board: Arc::clone(board), common, isr, device, notify }
    }

    pub fn read(&self, offset: u64, size: u8) -> u64 {
        self.board.memory.read(self.common + offset, size)
    }

    pub fn write(&self, offset: u64, size: u8, value: u64) {
        self.board.memory.write(self.common + offset, size, value);
    }

    pub fn notify_queue(&self, queue: u16) {
        self.board.memory.write(self.notify + 4 * u64::from(queue), 2, u64::from(queue));
    }

    /// From reset to FEATURES_OK with `features`. Returns whether the device accepts.
    pub fn negotiate(&self, features: u64) -> bool {
        self.write(0x14, 1, 0);
        self.write(0x14, 1, 3);
        for half in 0..2 {
            self.write(0x08, 4, half);
            self.write(0x0c, 4, features >> (32 * half) & 0xffff_ffff);
        }
        self.write(0x14, 1, 0xb);
        self.read(0x14, 1) & 8 != 0
    }
}

impl Transport for PciTransport {
    fn device_type(&self) -> DeviceType {
        // Of a transitional device, the subsystem ID says what it is.
        let id = self.board.config_read(2, 0x2e, 2);
        DeviceType::try_from(id as u16).expect("a known device")
    }

    fn read_device_features(&mut self) -> u64 {
        (0..2).fold(0, |bits, half| {
            self.write(0x00, 4, half);
            bits | self.read(0x04, 4) << (32 * half)
        })
    }

    fn write_driver_features(&mut self, features: u64) {
        for half in 0..2 {
            self.write(0x08, 4, half);
            self.write(0x0c, 4, features >> (32 * half) & 0xffff_ffff);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.write(0x16, 2, u64::from(queue));
        self.read(0x18, 2) as u32
    }

    fn notify(&mut self, queue: u16) {
        self.notify_queue(queue);
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_truncate(self.read(0x14, 1) as u32)
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.write(0x14, 1, u64::from(status.bits()));
    }

    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, queue: u16, size: u32, desc: u64, driver: u64, device: u64) {
        self.write(0x16, 2, u64::from(queue));
        self.write(0x18, 2, u64::from(size));
        self.write(0x1a, 2, u64::from(queue) + 1);
        // One in halves, as Linux does.
        self.write(0x20, 4, desc & 0xffff_ffff);
        self.write(0x24, 4, desc >> 32);
        self.write(0x28, 8, driver);
        self.write(0x30, 8, device);
        self.write(0x1c, 2, 1);
    }

    fn queue_unset(&mut self, _: u16) {
        // Queues end with a reset only.
        self.write(0x14, 1, 0);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.write(0x16, 2, u64::from(queue));
        self.read(0x1c, 2) != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::from_bits_truncate(self.board.memory.read(self.isr, 1) as u32)
    }

    fn read_config_generation(&self) -> u32 {
        self.read(0x15, 1) as u32
    }

    fn read_config_space<T: zerocopy::FromBytes + zerocopy::IntoBytes>(
        &self,
        offset: usize,
    ) -> virtio_drivers::Result<T> {
        let bytes: Vec<u8> = (0..size_of::<T>())
            .map(|i| self.board.memory.read(self.device + (offset + i) as u64, 1) as u8)
            .collect();
        T::read_from_bytes(&bytes).map_err(|_| virtio_drivers::Error::ConfigSpaceTooSmall)
    }

    fn write_config_space<T: zerocopy::IntoBytes + zerocopy::Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> virtio_drivers::Result<()> {
        let mut bytes = [0; 8];
        bytes[..size_of::<T>()].copy_from_slice(value.as_bytes());
        let size = size_of::<T>() as u8;
        let at = self.device + offset as u64;
        self.board.memory.write(at, size, u64::from_le_bytes(bytes));
        Ok(())
    }
}
