//! The PCI transport: capabilities, common configuration, notification, and the life of the worker.
//!
//! Problem: registers are accessed by any vCPU in any order and width while the device works in a
//! thread. Scheme: reads are cut from an image of the structure; writes take exactly the fields that
//! the specification has, in their widths (64-bit ones also in halves), and ignore the rest. DRIVER_OK
//! builds the queues and starts the worker; status 0, a PCI reset and dropping the device stop and join
//! it. A transitional device has the interface of before virtio 1.0 beside this one ([`legacy`]), on the same
//! registers. Invariants: there is a worker only between DRIVER_OK (for an old driver: its first
//! notification) and reset; queue registers and features don't change under it. Any thread, under the
//! function's lock.
//!
//! ```text
//! BAR 4 (64-bit, 16 KiB)   0x0000 common   0x1000 ISR   0x2000 device   0x3000 notify, 4 bytes a queue
//! BAR 1 (32-bit)           MSI-X: vector 0 to the number of queues
//! BAR 0 (ports)            the legacy interface
//! BAR 6 (expansion ROM)    what firmware starts a network card by
//! ```
//!
//! Source: VIRTIO 1.2, §4.1 "Virtio Over PCI Bus".

mod legacy;

use std::sync::Arc;
use std::thread::JoinHandle;

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::GuestAddressSpace;

use super::queue::Place;
use super::{
    Active, AtOnce, Doorbell, Events, Malformed, RING_FEATURES, Service, Signals, VirtQueue,
    VirtioDevice,
};
use crate::pci::config::{Bar, BarKind, ConfigSpace, Identity};
use crate::pci::rom::readdress;
use crate::pci::{Function, Interrupts, PciDevice, PciError, PciRoot, ROM};

const VENDOR: u16 = 0x1af4;
const BAR: u8 = 4;
const BAR_SIZE: u64 = 0x4000;
const MSIX_BAR: u8 = 1;
/// Offset and length of each structure in the BAR.
const COMMON: (u32, u32) = (0x0000, 0x38);
const ISR: (u32, u32) = (0x1000, 1);
const DEVICE: (u32, u32) = (0x2000, 0x1000);
const NOTIFY: (u32, u32) = (0x3000, 0x1000);
const NOTIFY_MULTIPLIER: u32 = 4;

const CAPABILITY_VENDOR: u8 = 0x09;
/// Structure types of vendor capabilities.
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;
/// `cap_len` and the bytes before the body that `add_capability` writes.
const CAPABILITY_LEN: u8 = 16;

/// Bits of the status register that a driver sets one after the other, and FAILED.
const STATUS_DRIVER_BITS: u8 = 0x8f;
const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;

/// Which drivers a device is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interfaces {
    /// All: the registers of virtio 1.x and those of before.
    #[default]
    Transitional,
    /// Those of virtio 1.x.
    Modern,
    /// Those of before it.
    Legacy,
}

impl Interfaces {
    fn modern(self) -> bool {
        self != Self::Legacy
    }

    fn legacy(self) -> bool {
        self != Self::Modern
    }
}

/// A queue's registers.
#[derive(Clone, Copy, Default)]
struct QueueRegisters {
    place: Place,
    max_size: u16,
    enabled: bool,
}

/// A virtio device as a PCI function.
pub struct VirtioPci<M: GuestAddressSpace, D> {
    device: D,
    memory: M,
    signals: Arc<Signals>,
    doorbell: Arc<Doorbell>,
    worker: Option<JoinHandle<()>>,
    /// There is one only while there is a worker.
    at_once: Option<AtOnce>,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
    /// Offset of the PCI configuration access capability, if there is one.
    window: Option<usize>,
    /// What the expansion ROM holds.
    rom: Vec<u8>,
}

impl<M: GuestAddressSpace, D> std::fmt::Debug for VirtioPci<M, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtioPci")
            .field("signals", &self.signals)
            .field("running", &self.worker.is_some())
            .finish_non_exhaustive()
    }
}

/// Fits `device` into a free slot of `root`. Returns the slot.
///
/// # Errors
/// [`PciError::Full`] if the bus is.
pub fn add<M, D>(
    root: &mut PciRoot,
    device: D,
    memory: M,
    interfaces: Interfaces,
) -> Result<u8, PciError>
where
    M: GuestAddressSpace + Send + 'static,
    D: VirtioDevice<M> + 'static,
{
    add_with_rom(root, device, memory, interfaces, Vec::new())
}

/// The same with an expansion ROM; empty: none.
///
/// # Errors
/// The same.
pub fn add_with_rom<M, D>(
    root: &mut PciRoot,
    device: D,
    memory: M,
    interfaces: Interfaces,
    rom: Vec<u8>,
) -> Result<u8, PciError>
where
    M: GuestAddressSpace + Send + 'static,
    D: VirtioDevice<M> + 'static,
{
    let slot = root.free_slot().ok_or(PciError::Full)?;
    let vectors = device.queue_sizes().len() + 1;
    let interrupts = root.interrupts(slot, u16::try_from(vectors).unwrap_or(u16::MAX));
    root.add(slot, VirtioPci::function(device, memory, interrupts, interfaces, rom))?;
    Ok(slot)
}

impl<M, D> VirtioPci<M, D>
where
    M: GuestAddressSpace + Send + 'static,
    D: VirtioDevice<M> + 'static,
{
    /// The PCI function for `device`.
    #[must_use]
    pub fn function(
        device: D,
        memory: M,
        interrupts: Arc<Interrupts>,
        interfaces: Interfaces,
        mut rom: Vec<u8>,
    ) -> Function {
        let (id, revision, subsystem) = if interfaces.legacy() {
            (legacy::pci_id(device.id()), 0, device.id())
        } else {
            (0x1040 + device.id(), 1, 0x1100)
        };
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: id,
            class: device.class(),
            revision,
            subsystem_vendor: VENDOR,
            subsystem,
        });
        if interfaces.legacy() {
            let size = legacy::bar_size(device.config().len());
            config.add_bar(usize::from(legacy::BAR), Bar { kind: BarKind::Io, size });
        }
        let window = interfaces.modern().then(|| add_structures(&mut config));
        if !rom.is_empty() {
            readdress(&mut rom, VENDOR, id);
            config.add_rom((rom.len() as u64).next_power_of_two().max(2048));
        }

        let queues: Vec<_> = device
            .queue_sizes()
            .iter()
            .map(|&max_size| QueueRegisters { max_size, ..QueueRegisters::default() })
            .collect();
        let mut transport = Self {
            doorbell: Arc::clone(device.doorbell()),
            device,
            memory,
            signals: Signals::new(Arc::clone(&interrupts), queues.len()),
            worker: None,
            at_once: None,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues,
            window,
            rom,
        };
        transport.reset_registers();
        Function::new(config, Box::new(transport)).with_interrupts(interrupts, MSIX_BAR)
    }

    fn offered(&self) -> u64 {
        self.device.features() | RING_FEATURES
    }

    /// The common configuration structure as the driver reads it now.
    fn common_image(&self) -> [u8; COMMON.1 as usize] {
        let mut image = [0; COMMON.1 as usize];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        let half = |bits: u64, select: u32| match select {
            0 => bits as u32,
            1 => (bits >> 32) as u32,
            _ => 0,
        };
        put(0x00, &self.device_feature_select.to_le_bytes());
        put(0x04, &half(self.offered(), self.device_feature_select).to_le_bytes());
        put(0x08, &self.driver_feature_select.to_le_bytes());
        put(0x0c, &half(self.driver_features, self.driver_feature_select).to_le_bytes());
        put(0x10, &self.signals.config_vector().to_le_bytes());
        put(0x12, &u16::try_from(self.queues.len()).unwrap_or(u16::MAX).to_le_bytes());
        put(0x14, &[self.signals.status(), self.device.config_generation()]);
        put(0x16, &self.queue_select.to_le_bytes());
        // A queue that isn't there reads as size 0.
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(0x18, &queue.place.size.to_le_bytes());
            put(0x1a, &self.signals.queue_vector(self.queue_select).to_le_bytes());
            put(0x1c, &u16::from(queue.enabled).to_le_bytes());
            put(0x1e, &self.queue_select.to_le_bytes());
            put(0x20, &queue.place.descriptors.to_le_bytes());
            put(0x28, &queue.place.available.to_le_bytes());
            put(0x30, &queue.place.used.to_le_bytes());
        } else {
            put(0x1a, &super::signals::NO_VECTOR.to_le_bytes());
        }
        image
    }

    fn write_common(&mut self, offset: u32, size: u8, value: u64) {
        let low = value as u32;
        let word = value as u16;
        let negotiating = self.signals.status() & FEATURES_OK == 0 && self.worker.is_none();
        match (offset, size) {
            (0x00, 4) => self.device_feature_select = low,
            (0x08, 4) => self.driver_feature_select = low,
            (0x0c, 4) if negotiating => match self.driver_feature_select {
                0 => self.driver_features = self.driver_features >> 32 << 32 | u64::from(low),
                1 => {
                    self.driver_features =
                        self.driver_features & 0xffff_ffff | u64::from(low) << 32;
                }
                // Bits past 63 are ours to refuse: none is offered.
                _ => {}
            },
            (0x10, 2) => self.signals.set_config_vector(word),
            (0x14, 1) => self.set_status(value as u8),
            (0x16, 2) => self.queue_select = word,
            (0x1a, 2) => self.signals.set_queue_vector(self.queue_select, word),
            _ => self.write_queue(offset, size, value),
        }
    }

    /// Registers of the selected queue. Fixed once the driver is ready.
    fn write_queue(&mut self, offset: u32, size: u8, value: u64) {
        if self.signals.status() & DRIVER_OK != 0 || self.worker.is_some() {
            return;
        }
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        match (offset, size) {
            (0x18, 2) => queue.place.size = value as u16,
            // Only ever enabled: disabling is by reset.
            (0x1c, 2) => queue.enabled |= value == 1,
            (0x20..0x38, 4 | 8) if offset.is_multiple_of(u32::from(size)) => {
                let place = &mut queue.place;
                let register = match offset & !7 {
                    0x20 => &mut place.descriptors,
                    0x28 => &mut place.available,
                    _ => &mut place.used,
                };
                *register = match (size, offset & 4) {
                    (8, _) => value,
                    (_, 0) => *register >> 32 << 32 | value & 0xffff_ffff,
                    _ => *register & 0xffff_ffff | value << 32,
                };
            }
            _ => {}
        }
    }

    fn set_status(&mut self, status: u8) {
        if status == 0 {
            self.stop();
            self.reset_registers();
            return;
        }
        let before = self.signals.status();
        // Bits are only set here; all of them are cleared by a reset.
        let mut new = status & STATUS_DRIVER_BITS & !before;
        let acceptable = self.driver_features & !self.offered() == 0
            && self.driver_features >> VIRTIO_F_VERSION_1 & 1 != 0;
        if new & FEATURES_OK != 0 && !acceptable {
            new &= !FEATURES_OK;
        }
        if (before | new) & FEATURES_OK == 0 {
            // §3.1.1: no driver may go on without it.
            new &= !DRIVER_OK;
        }
        self.signals.add_status(new);
        if new & DRIVER_OK != 0 {
            self.start_or_break(false);
        }
    }

    /// [`Self::start`]; where that can't be, the device needs a reset.
    fn start_or_break(&mut self, resumed: bool) {
        if let Err(error) = self.start(resumed) {
            tracing::warn!("virtio-{}: {error}; the device needs a reset", self.device.name());
            self.signals.needs_reset();
        }
    }

    /// Starts the worker on the queues that the driver has set up. `resumed`: they were in use, and every
    /// request that was taken from them was given back.
    fn start(&mut self, resumed: bool) -> Result<(), Malformed> {
        // One that the other interface has started.
        self.stop();
        let event_idx = self.driver_features >> VIRTIO_RING_F_EVENT_IDX & 1 != 0;
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, queue) in (0..).zip(&self.queues) {
            let memory = self.memory.clone();
            queues.push(if queue.enabled {
                let mut queue =
                    VirtQueue::new(memory, index, queue.max_size, queue.place, event_idx)?;
                if resumed {
                    queue.resume()?;
                }
                Some(queue)
            } else {
                None
            });
        }
        self.doorbell.open();
        let Service { worker, at_once } = self.device.serve(Active {
            features: self.driver_features,
            queues,
            doorbell: Arc::clone(&self.doorbell),
            signals: Arc::clone(&self.signals),
        });
        let name = format!("virtio-{}", self.device.name());
        match std::thread::Builder::new().name(name).spawn(worker) {
            Ok(worker) => {
                self.worker = Some(worker);
                self.at_once = at_once;
            }
            Err(error) => {
                tracing::error!("no thread for virtio-{}: {error}", self.device.name());
                self.signals.needs_reset();
            }
        }
        Ok(())
    }

    fn reset_registers(&mut self) {
        self.device.reset();
        self.signals.reset();
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        for queue in &mut self.queues {
            queue.enabled = false;
            queue.place = Place { size: queue.max_size, ..Place::default() };
        }
    }

    fn notify(&mut self, queue: u32) {
        let running = self.signals.status() & (DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET as u8);
        if running == DRIVER_OK
            && let Ok(queue) = u16::try_from(queue)
            && usize::from(queue) < self.queues.len()
        {
            self.ring(queue);
        }
    }

    /// Has `queue` served, here or by the worker.
    fn ring(&mut self, queue: u16) {
        if !self.at_once.as_mut().is_some_and(|at_once| at_once(queue)) {
            self.doorbell.ring(Events::queue(queue));
        }
    }

    /// The window of the PCI configuration access capability: BAR offset and width.
    fn windowed(&self, config: &ConfigSpace, offset: usize, size: usize) -> Option<Windowed> {
        let window = self.window?;
        let data = window + 16;
        let touched = offset < data + 4 && offset + size > data;
        let len = match config.u32(window + 12) {
            1 => 1,
            2 => 2,
            4 => 4,
            _ => return None,
        };
        let at = u64::from(config.u32(window + 8));
        (touched && config.u8(window + 4) == BAR).then_some(Windowed { at, len, data })
    }
}

impl<M: GuestAddressSpace, D> VirtioPci<M, D> {
    /// Ends the worker, if there is one.
    fn stop(&mut self) {
        self.at_once = None;
        self.doorbell.stop();
        if let Some(worker) = self.worker.take()
            && worker.join().is_err()
        {
            tracing::error!("a virtio worker panicked");
        }
    }
}

/// An access through the PCI configuration access capability: offset in the BAR, bytes, and where in
/// configuration space the data are.
struct Windowed {
    at: u64,
    len: u8,
    data: usize,
}

/// Adds the BAR with the structures and the capabilities that tell of them. Returns the offset of the PCI
/// configuration access capability.
fn add_structures(config: &mut ConfigSpace) -> usize {
    config.add_bar(usize::from(BAR), Bar { kind: BarKind::Memory64, size: BAR_SIZE });
    for (kind, place) in [(COMMON_CFG, COMMON), (ISR_CFG, ISR), (DEVICE_CFG, DEVICE)] {
        config.add_capability(CAPABILITY_VENDOR, &capability(kind, place, &[]));
    }
    let notify = capability(NOTIFY_CFG, NOTIFY, &NOTIFY_MULTIPLIER.to_le_bytes());
    config.add_capability(CAPABILITY_VENDOR, &notify);
    let window = config.add_capability(CAPABILITY_VENDOR, &capability(PCI_CFG, (0, 0), &[0; 4]));
    // BAR, offset, length and data are the driver's.
    config.set_writable(window + 4, &[0xff]);
    config.set_writable(window + 8, &[0xff; 12]);
    window
}

/// Bytes of `image` from `at` on, as a number of `size` bytes; what isn't there is zero.
fn cut(image: &[u8], at: usize, size: u8) -> u64 {
    (0..usize::from(size)).fold(0, |value, i| {
        let byte = image.get(at + i).copied().unwrap_or(0);
        value | u64::from(byte) << (8 * i)
    })
}

/// Body of a virtio vendor capability, from `cap_len` on.
fn capability(kind: u8, place: (u32, u32), more: &[u8]) -> Vec<u8> {
    let len = CAPABILITY_LEN + more.len() as u8;
    let mut body = vec![len, kind, if place.1 == 0 { 0 } else { BAR }, 0, 0, 0];
    body.extend(place.0.to_le_bytes());
    body.extend(place.1.to_le_bytes());
    body.extend(more);
    body
}

/// The offset in the structure at `place`, if `offset` is in it.
fn within(place: (u32, u32), offset: u64) -> Option<u32> {
    let offset = u32::try_from(offset).ok()?.checked_sub(place.0)?;
    (offset < place.1).then_some(offset)
}

impl<M, D> PciDevice for VirtioPci<M, D>
where
    M: GuestAddressSpace + Send + 'static,
    D: VirtioDevice<M> + 'static,
{
    fn bar_read(&mut self, bar: u8, offset: u64, size: u8) -> u64 {
        if bar == ROM {
            // Offsets are below the ROM's size.
            return cut(&self.rom, usize::try_from(offset).unwrap_or(usize::MAX - 8), size);
        }
        if bar == legacy::BAR {
            return self.legacy_read(offset, size);
        }
        if bar != BAR {
            u64::MAX
        } else if let Some(at) = within(COMMON, offset) {
            cut(&self.common_image(), at as usize, size)
        } else if within(ISR, offset).is_some() {
            u64::from(self.signals.take_isr())
        } else if let Some(at) = within(DEVICE, offset) {
            cut(&self.device.config(), at as usize, size)
        } else {
            0
        }
    }

    fn bar_write(&mut self, bar: u8, offset: u64, size: u8, value: u64) {
        if bar == legacy::BAR {
            self.legacy_write(offset, size, value);
            return;
        }
        if bar != BAR {
            return;
        }
        if let Some(at) = within(COMMON, offset) {
            self.write_common(at, size, value);
        } else if let Some(at) = within(DEVICE, offset) {
            let bytes = value.to_le_bytes();
            self.device.write_config(at as usize, &bytes[..usize::from(size.min(8))]);
        } else if let Some(at) = within(NOTIFY, offset) {
            self.notify(at / NOTIFY_MULTIPLIER);
        }
    }

    fn config_read(&mut self, config: &mut ConfigSpace, offset: usize, size: usize) {
        if let Some(access) = self.windowed(config, offset, size) {
            let value = self.bar_read(BAR, access.at, access.len);
            config.set_u32(access.data, value as u32);
        }
    }

    fn config_written(&mut self, config: &mut ConfigSpace, offset: usize, size: usize) {
        if let Some(access) = self.windowed(config, offset, size) {
            let value = u64::from(config.u32(access.data));
            let mask = u64::MAX >> (64 - 8 * u32::from(access.len));
            self.bar_write(BAR, access.at, access.len, value & mask);
        }
    }

    fn reset(&mut self, _: &mut ConfigSpace) {
        self.stop();
        self.reset_registers();
    }
}

/// The worker must not outlive the device.
impl<M: GuestAddressSpace, D> Drop for VirtioPci<M, D> {
    fn drop(&mut self) {
        self.stop();
    }
}
