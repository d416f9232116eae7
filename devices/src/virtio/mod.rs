//! Virtio devices: block, console, entropy, network, memory balloon, on a PCI transport.
//!
//! Problem: devices that do their work in threads of their own, on rings in guest memory that a
//! hostile guest fills. Scheme: the transport ([`VirtioPci`]) speaks the registers; when the driver
//! sets DRIVER_OK it hands the queues to [`VirtioDevice::serve`] and runs the worker that it gets on a
//! thread, which sleeps on a [`Doorbell`] until queues are notified; a reset rings it to stop and
//! joins it. A driver that polls would wait for that thread to wake up, which takes longer than a small request: the
//! vCPU that notifies serves what needs no waiting itself ([`Service::at_once`]). Invariants: a queue is touched by one
//! thread at a time; vCPUs never wait for host I/O, except for the end of a request in flight at reset; a malformed
//! ring stops the device with DEVICE_NEEDS_RESET and nothing else. Lock order: function, doorbell; workers take only
//! interrupt locks and their device's own.
//!
//! Source: OASIS Virtual I/O Device (VIRTIO) Version 1.2, §2 "Basic Facilities", §3 "General
//! Initialization And Device Operation".

mod balloon;
mod block;
mod console;
mod doorbell;
mod entropy;
mod net;
mod queue;
mod signals;
mod transport;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use vm_memory::GuestAddressSpace;

pub use balloon::{Balloon, BalloonHandle, BalloonMemory};
pub use block::Block;
pub use console::{Console, ConsoleHandle};

pub use doorbell::{Doorbell, Events};
pub use entropy::Entropy;
pub use net::Net;

pub use queue::{Chain, Malformed, VirtQueue};
pub use signals::Signals;
pub use transport::{Interfaces, VirtioPci, add, add_with_rom};

use virtio_bindings::bindings::virtio_config as config;
use virtio_bindings::bindings::virtio_ring as ring;

/// Feature bits that the transport and the queues implement for every device.
pub const RING_FEATURES: u64 = 1 << config::VIRTIO_F_VERSION_1
    | 1 << ring::VIRTIO_RING_F_EVENT_IDX
    | 1 << ring::VIRTIO_RING_F_INDIRECT_DESC;

/// A virtio device apart from its transport.
pub trait VirtioDevice<M: GuestAddressSpace>: Send {
    /// Device ID, §5 "Device Types".
    fn id(&self) -> u16;
    /// PCI class code.
    fn class(&self) -> u32;
    /// A name for the worker thread and logs.
    fn name(&self) -> &'static str;
    /// Device feature bits (0 to 23 and 50 on); the transport adds [`RING_FEATURES`].
    fn features(&self) -> u64;
    /// Largest size of each queue, powers of two.
    fn queue_sizes(&self) -> &[u16];
    /// Device configuration space now, as bytes.
    fn config(&self) -> Vec<u8>;
    /// Changes with each change of the configuration that the driver may miss between two reads.
    fn config_generation(&self) -> u8 {
        0
    }
    /// The driver writes device configuration.
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        let _ = (offset, data);
    }
    /// The driver, or the bus, has reset the device; the worker has ended.
    fn reset(&mut self) {}
    /// What wakes the worker.
    fn doorbell(&self) -> &Arc<Doorbell>;
    /// The driver is ready: what serves its queues until the next reset.
    fn serve(&mut self, active: Active<M>) -> Service;
}

/// Serves a queue, by index, as far as that needs no waiting. Says whether nothing is left to do.
pub type AtOnce = Box<dyn FnMut(u16) -> bool + Send>;

/// What serves a device's queues.
pub struct Service {
    /// The body of the thread that does. It returns soon after [`Doorbell::wait`] says to stop.
    pub worker: Box<dyn FnOnce() + Send>,
    /// Called by the vCPU that notifies a queue; the worker is woken if something is left.
    pub at_once: Option<AtOnce>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("at_once", &self.at_once.is_some()).finish_non_exhaustive()
    }
}

impl Service {
    /// Everything is done by `worker`.
    pub fn by(worker: impl FnOnce() + Send + 'static) -> Self {
        Self { worker: Box::new(worker), at_once: None }
    }
}

/// What a worker works with.
pub struct Active<M: GuestAddressSpace> {
    /// Negotiated features.
    pub features: u64,
    /// The queues that the driver enabled.
    pub queues: Vec<Option<VirtQueue<M>>>,
    pub doorbell: Arc<Doorbell>,
    pub signals: Arc<Signals>,
}

impl<M: GuestAddressSpace> std::fmt::Debug for Active<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Active").field("features", &self.features).finish_non_exhaustive()
    }
}

impl<M: GuestAddressSpace> Active<M> {
    /// Whether feature bit `bit` was negotiated.
    #[must_use]
    pub fn has(&self, bit: u32) -> bool {
        self.features >> bit & 1 != 0
    }

    /// Takes queue `index` out, if the driver enabled it.
    pub fn take(&mut self, index: usize) -> Option<VirtQueue<M>> {
        self.queues.get_mut(index)?.take()
    }

    /// Runs `serve` for each ring of the doorbell until it says to stop or the driver errs; the
    /// latter leaves the device needing a reset.
    pub fn serve(self, mut serve: impl FnMut(&Self, Events) -> Result<(), Malformed>) {
        while let Some(events) = self.doorbell.wait() {
            if let Err(error) = serve(&self, events) {
                tracing::warn!("virtio: {error}; the device needs a reset");
                self.signals.needs_reset();
                return;
            }
        }
    }

    /// Takes requests from `queue` until there are none, or the device is to stop. `request` says
    /// how many bytes it wrote into the chain.
    ///
    /// # Errors
    /// [`Malformed`] if the ring or a chain is.
    pub fn drain(
        &self,
        queue: &mut VirtQueue<M>,
        mut request: impl FnMut(&mut Chain<M>) -> Result<u32, Malformed>,
    ) -> Result<(), Malformed> {
        loop {
            queue.disable_notification()?;
            while !self.doorbell.stopped()
                && let Some(mut chain) = queue.pop()?
            {
                let written = request(&mut chain)?;
                queue.push_used(&chain, written)?;
                if queue.needs_interrupt()? {
                    self.signals.queue(queue.index());
                }
            }
            if self.doorbell.stopped() || !queue.enable_notification()? {
                return Ok(());
            }
        }
    }
}
