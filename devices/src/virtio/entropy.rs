//! Entropy device.
//!
//! Problem: a guest wants randomness early, and has no other good source. Scheme: each buffer is
//! filled from the source that the machine gives (a host generator, or a seeded one for replay).
//! Invariants: a request is filled up to [`FILL_MAX`], which bounds its time; the driver learns how
//! much. Worker thread.
//!
//! Source: VIRTIO 1.2, §5.4 "Entropy Device".

use std::sync::{Arc, Mutex};

use vm_memory::GuestAddressSpace;

use super::{Active, Doorbell, Events, Service, VirtioDevice};
use crate::clock::lock;

const QUEUE_SIZE: u16 = 64;
/// Bytes given for one request at most.
const FILL_MAX: usize = 4096;

type Source = Box<dyn FnMut(&mut [u8]) + Send>;

/// A source of randomness.
pub struct Entropy {
    /// Behind a lock as a worker uses it, and after a reset the next one.
    source: Arc<Mutex<Source>>,
    doorbell: Arc<Doorbell>,
}

impl std::fmt::Debug for Entropy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entropy").finish_non_exhaustive()
    }
}

impl Entropy {
    /// A device that gives what `source` fills in.
    #[must_use]
    pub fn new(source: Source) -> Self {
        Self { source: Arc::new(Mutex::new(source)), doorbell: Arc::default() }
    }
}

impl<M: GuestAddressSpace + Send + 'static> VirtioDevice<M> for Entropy {
    fn id(&self) -> u16 {
        4
    }

    fn class(&self) -> u32 {
        0x00_ff00
    }

    fn name(&self) -> &'static str {
        "entropy"
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn doorbell(&self) -> &Arc<Doorbell> {
        &self.doorbell
    }

    fn serve(&mut self, mut active: Active<M>) -> Service {
        let queue = active.take(0);
        let source = Arc::clone(&self.source);
        Service::by(move || {
            let Some(mut queue) = queue else { return };
            let mut bytes = [0; FILL_MAX];
            active.serve(|active, events| {
                if events.contains(Events::queue(0)) {
                    active.drain(&mut queue, |chain| {
                        let room = usize::try_from(chain.writable()).unwrap_or(FILL_MAX);
                        let bytes = &mut bytes[..room.min(FILL_MAX)];
                        lock(&source)(bytes);
                        let len = chain.write(bytes)?;
                        Ok(u32::try_from(len).unwrap_or(u32::MAX))
                    })?;
                }
                Ok(())
            });
        })
    }
}
