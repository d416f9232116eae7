//! The interface of drivers from before virtio 1.0: ports in BAR 0.
//!
//! Problem: firmware, boot ROMs and old systems know only this one; the device behind it is the same. Scheme:
//! reads are cut from an image of the registers, as in the modern interface; a queue's page number places all
//! of its three parts. There is no FEATURES_OK: features are what was last written when the worker starts.
//! Old drivers use queues before DRIVER_OK, and put further ones in place while the device runs; so a
//! notification starts the worker too, and a page number written under it stops it (which cuts a long request
//! short) and starts it again. Invariants: what is offered here has no bit above 31; a queue's size can't be changed.
//! Any thread, under the function's lock.
//!
//! ```text
//! 0x00 device features   0x04 driver features   0x08 queue page   0x0c queue size   0x0e queue select
//! 0x10 queue notify      0x12 device status     0x13 ISR status
//! with MSI-X enabled     0x14 configuration's vector   0x16 queue's vector
//! then                   device configuration
//! ```
//!
//! Source: VIRTIO 1.2, §4.1.4.10 "Legacy Interfaces: A Note on PCI Device Layout", §2.7.2 "Legacy Interfaces:
//! A Note on Virtqueue Layout", §3.1.2 "Legacy Interface: Device Initialization".

use vm_memory::GuestAddressSpace;

use super::{DRIVER_OK, FEATURES_OK, Place, RING_FEATURES, STATUS_DRIVER_BITS, VirtioPci, cut};
use crate::virtio::VirtioDevice;

pub(super) const BAR: u8 = 0;
/// VIRTIO_F_ANY_LAYOUT: requests may be cut into buffers anywhere. (§6.3; no feature of 1.x.)
const ANY_LAYOUT: u32 = 27;
/// Where the device's configuration begins, without and with MSI-X.
const CONFIG: usize = 0x14;
const CONFIG_MSIX: usize = 0x18;
/// A queue lies on whole pages of this size, and so does its used ring.
const PAGE: u64 = 4096;

/// PCI device ID of a transitional device of virtio ID `id` (§4.1.2.1).
pub(super) fn pci_id(id: u16) -> u16 {
    match id {
        // Network card, block device.
        1 | 2 => 0x0fff + id,
        // Memory balloon, SCSI host, entropy.
        5 => 0x1002,
        8 => 0x1004,
        4 => 0x1005,
        // Console, 9P transport.
        _ => 0x1000 + id,
    }
}

/// Ports of a device with `config` bytes of configuration.
pub(super) fn bar_size(config: usize) -> u64 {
    ((CONFIG_MSIX + config) as u64).next_power_of_two().max(32)
}

/// Where a queue of `size` entries at page `page` has its parts; nowhere for page 0.
fn place(page: u32, size: u16) -> Place {
    let descriptors = u64::from(page) * PAGE;
    let entries = u64::from(size);
    let available = descriptors + 16 * entries;
    // Flags, index, entries, used_event.
    let used = (available + 2 * (3 + entries)).next_multiple_of(PAGE);
    Place { size, descriptors, available, used }
}

impl<M, D> VirtioPci<M, D>
where
    M: GuestAddressSpace + Send + 'static,
    D: VirtioDevice<M> + 'static,
{
    fn legacy_offered(&self) -> u32 {
        (self.device.features() | RING_FEATURES | 1 << ANY_LAYOUT) as u32
    }

    fn config_offset(&self) -> usize {
        if self.signals.msix_enabled() { CONFIG_MSIX } else { CONFIG }
    }

    pub(super) fn legacy_read(&mut self, offset: u64, size: u8) -> u64 {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let config = self.config_offset();
        if at >= config {
            return cut(&self.device.config(), at - config, size);
        }
        let mut image = [0; CONFIG_MSIX];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &self.legacy_offered().to_le_bytes());
        put(0x04, &(self.driver_features as u32).to_le_bytes());
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            let page = if queue.enabled { queue.place.descriptors / PAGE } else { 0 };
            put(0x08, &(page as u32).to_le_bytes());
            put(0x0c, &queue.max_size.to_le_bytes());
        }
        put(0x0e, &self.queue_select.to_le_bytes());
        put(0x12, &[self.signals.status()]);
        put(0x14, &self.signals.config_vector().to_le_bytes());
        put(0x16, &self.signals.queue_vector(self.queue_select).to_le_bytes());
        if (at..at + usize::from(size)).contains(&0x13) {
            put(0x13, &[self.signals.take_isr()]);
        }
        cut(&image[..config], at, size)
    }

    pub(super) fn legacy_write(&mut self, offset: u64, size: u8, value: u64) {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let config = self.config_offset();
        if at >= config {
            let bytes = value.to_le_bytes();
            self.device.write_config(at - config, &bytes[..usize::from(size.min(8))]);
            return;
        }
        let word = value as u16;
        match (at, size) {
            // Bits that are not offered are not taken.
            (0x04, 4) if self.worker.is_none() => {
                self.driver_features = u64::from(value as u32 & self.legacy_offered());
            }
            (0x08, 4) => self.legacy_place(value as u32),
            (0x0e, 2) => self.queue_select = word,
            (0x10, 2) => self.legacy_notify(word),
            (0x12, 1) => self.legacy_status(value as u8),
            (0x14, 2) => self.signals.set_config_vector(word),
            (0x16, 2) => self.signals.set_queue_vector(self.queue_select, word),
            _ => {}
        }
    }

    /// The selected queue's page is written: 0 takes the queue away.
    fn legacy_place(&mut self, page: u32) {
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        let runs = self.worker.is_some();
        queue.place = place(page, queue.max_size);
        queue.enabled = page != 0;
        if runs {
            // The others go on where they were; a queue that begins has used nothing.
            self.start_or_break(true);
        }
    }

    fn legacy_status(&mut self, status: u8) {
        if status == 0 {
            self.stop();
            self.reset_registers();
            return;
        }
        let new = status & STATUS_DRIVER_BITS & !FEATURES_OK & !self.signals.status();
        self.signals.add_status(new);
        if new & DRIVER_OK != 0 && self.worker.is_none() {
            self.start_or_break(false);
        }
    }

    fn legacy_notify(&mut self, queue: u16) {
        let Some(registers) = self.queues.get(usize::from(queue)) else { return };
        if self.signals.broken() || !registers.enabled {
            return;
        }
        if self.worker.is_none() && self.signals.status() & DRIVER_OK == 0 {
            self.start_or_break(false);
        }
        if self.worker.is_some() {
            self.ring(queue);
        }
    }
}
