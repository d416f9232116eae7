//! How a virtio device speaks up: interrupts, ISR status, and the device status that says it is broken.
//!
//! Problem: workers signal while vCPUs read ISR status and re-aim vectors. Scheme: one small lock
//! around ISR status and the INTx level that follows it; vectors and status are atomics. Invariants:
//! INTx is requested exactly while ISR status isn't zero. Any thread.
//!
//! Source: VIRTIO 1.2, §4.1.4.5 "ISR status capability", §4.1.5.3 "Used Buffer Notifications",
//! §2.1.2 "Device Requirements: Device Status Field".

use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};

use crate::clock::lock;
use crate::pci::Interrupts;

/// "No vector": the event doesn't interrupt.
pub const NO_VECTOR: u16 = 0xffff;

const ISR_QUEUE: u8 = 1 << 0;
const ISR_CONFIG: u8 = 1 << 1;

/// See the module.
#[derive(Debug)]
pub struct Signals {
    interrupts: Arc<Interrupts>,
    isr: Mutex<u8>,
    status: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
}

impl Signals {
    pub(super) fn new(interrupts: Arc<Interrupts>, queues: usize) -> Arc<Self> {
        Arc::new(Self {
            interrupts,
            isr: Mutex::new(0),
            status: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
        })
    }

    /// Buffers of queue `index` were used.
    pub fn queue(&self, index: u16) {
        if let Some(vector) = self.queue_vectors.get(usize::from(index)) {
            self.raise(ISR_QUEUE, vector.load(Ordering::SeqCst));
        }
    }

    /// The configuration changed.
    pub fn config_changed(&self) {
        if self.status() & VIRTIO_CONFIG_S_DRIVER_OK as u8 != 0 {
            self.raise(ISR_CONFIG, self.config_vector.load(Ordering::SeqCst));
        }
    }

    /// The driver broke the rules: the device is dead until reset.
    pub fn needs_reset(&self) {
        self.status.fetch_or(VIRTIO_CONFIG_S_NEEDS_RESET as u8, Ordering::SeqCst);
        self.config_changed();
    }

    fn raise(&self, bit: u8, vector: u16) {
        let mut isr = lock(&self.isr);
        if self.interrupts.msix_enabled() {
            self.interrupts.signal(vector);
        } else {
            *isr |= bit;
            self.interrupts.set_intx(true);
        }
    }

    /// The driver broke the rules, and has not reset the device since.
    pub(super) fn broken(&self) -> bool {
        self.status() & VIRTIO_CONFIG_S_NEEDS_RESET as u8 != 0
    }

    pub(super) fn msix_enabled(&self) -> bool {
        self.interrupts.msix_enabled()
    }

    /// Reads ISR status, which clears it and INTx.
    pub(super) fn take_isr(&self) -> u8 {
        let mut isr = lock(&self.isr);
        self.interrupts.set_intx(false);
        std::mem::take(&mut *isr)
    }

    pub(super) fn status(&self) -> u8 {
        self.status.load(Ordering::SeqCst)
    }

    pub(super) fn add_status(&self, bits: u8) {
        self.status.fetch_or(bits, Ordering::SeqCst);
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::SeqCst)
    }

    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.existing(vector), Ordering::SeqCst);
    }

    pub(super) fn queue_vector(&self, queue: u16) -> u16 {
        let vector = self.queue_vectors.get(usize::from(queue));
        vector.map_or(NO_VECTOR, |vector| vector.load(Ordering::SeqCst))
    }

    pub(super) fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(queue)) {
            slot.store(self.existing(vector), Ordering::SeqCst);
        }
    }

    /// A vector past the table reads back as "no vector": the driver sees that it can't have it.
    fn existing(&self, vector: u16) -> u16 {
        if vector < self.interrupts.vectors() { vector } else { NO_VECTOR }
    }

    /// State after a reset. The worker has ended.
    pub(super) fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.config_vector.store(NO_VECTOR, Ordering::SeqCst);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::SeqCst);
        }
        self.take_isr();
    }
}
