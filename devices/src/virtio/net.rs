//! Network device.
//!
//! Problem: frames go both ways at their own pace, and neither a guest without buffers nor a network
//! without room may make the other wait or lose its place. Scheme: one worker moves frames between the
//! queues and a [`NetBackend`]; a frame is taken from either side only when the other can have it, and
//! whatever changes rings the doorbell. No offloads are offered, so every frame is whole and has its checksum.
//! Invariants: frames keep their order; a frame that no buffer can hold is dropped and the buffer given
//! back empty; a packet without a whole header is malformed. Worker thread.
//!
//! Source: VIRTIO 1.2, §5.1 "Network Device".

use std::sync::Arc;

use virtio_bindings::bindings::virtio_net as net;
use vm_memory::GuestAddressSpace;

use super::{Active, Chain, Doorbell, Events, Malformed, VirtQueue, VirtioDevice, config};
use crate::net::{FRAME_MAX, FRAME_MIN, Mac, NetBackend};

const QUEUE_SIZE: u16 = 256;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// struct virtio_net_hdr as VIRTIO_F_VERSION_1 has it, and without its last field, `num_buffers`, as drivers from
/// before have it.
const HEADER: usize = 12;
const HEADER_LEGACY: usize = 10;
/// Offset of `num_buffers` in the header.
const NUM_BUFFERS: usize = 10;

/// A network card.
pub struct Net {
    backend: Arc<dyn NetBackend>,
    mac: Mac,
    doorbell: Arc<Doorbell>,
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Net").field("mac", &self.mac).finish_non_exhaustive()
    }
}

impl Net {
    /// A card with this address, plugged into `backend`.
    #[must_use]
    pub fn new(backend: Arc<dyn NetBackend>, mac: Mac) -> Self {
        let doorbell = Arc::<Doorbell>::default();
        let bell = Arc::clone(&doorbell);
        backend.plug(Box::new(move || bell.ring(Events::INPUT)));
        Self { backend, mac, doorbell }
    }
}

impl<M: GuestAddressSpace + Send + 'static> VirtioDevice<M> for Net {
    fn id(&self) -> u16 {
        1
    }

    fn class(&self) -> u32 {
        0x02_0000
    }

    fn name(&self) -> &'static str {
        "net"
    }

    fn features(&self) -> u64 {
        1 << net::VIRTIO_NET_F_MAC | 1 << net::VIRTIO_NET_F_STATUS
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn config(&self) -> Vec<u8> {
        // struct virtio_net_config: mac, status.
        let mut config = self.mac.0.to_vec();
        config.extend((net::VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        config
    }

    fn doorbell(&self) -> &Arc<Doorbell> {
        &self.doorbell
    }

    fn worker(&mut self, mut active: Active<M>) -> Box<dyn FnOnce() + Send> {
        let mut receive = active.take(RECEIVE.into());
        let mut transmit = active.take(TRANSMIT.into());
        let backend = Arc::clone(&self.backend);
        let header = if active.has(config::VIRTIO_F_VERSION_1) { HEADER } else { HEADER_LEGACY };
        Box::new(move || {
            active.serve(|active, events| {
                let changed = events.contains(Events::INPUT);
                if (changed || events.contains(Events::queue(RECEIVE)))
                    && let Some(queue) = &mut receive
                {
                    pour_in(active, queue, &*backend, header)?;
                }
                if (changed || events.contains(Events::queue(TRANSMIT)))
                    && let Some(queue) = &mut transmit
                {
                    pour_out(active, queue, &*backend, header)?;
                }
                Ok(())
            });
        })
    }
}

/// Fills receive buffers while there are both buffers and frames.
fn pour_in<M: GuestAddressSpace>(
    active: &Active<M>,
    queue: &mut VirtQueue<M>,
    backend: &dyn NetBackend,
    header: usize,
) -> Result<(), Malformed> {
    let mut packet = Vec::with_capacity(HEADER + FRAME_MAX);
    while !active.doorbell.stopped() {
        if !backend.pending() {
            // The next frame wakes us; the next buffer needn't.
            return queue.disable_notification();
        }
        let Some(mut chain) = queue.pop()? else {
            if queue.enable_notification()? {
                continue;
            }
            return Ok(());
        };
        // Only this thread takes from the backend, so what was there still is.
        let Some(frame) = backend.receive() else { continue };
        packet.clear();
        packet.resize(header, 0);
        if let Some(buffers) = packet.get_mut(NUM_BUFFERS) {
            *buffers = 1;
        }
        packet.extend_from_slice(&frame);
        let written = if chain.writable() < packet.len() as u64 {
            tracing::debug!("virtio-net: a buffer of {} bytes is too small", chain.writable());
            0
        } else {
            chain.write(&packet)?
        };
        queue.push_used(&chain, u32::try_from(written).unwrap_or(u32::MAX))?;
        if queue.needs_interrupt()? {
            active.signals.queue(queue.index());
        }
    }
    Ok(())
}

/// Sends what the driver has put into the queue, as long as the network has room.
fn pour_out<M: GuestAddressSpace>(
    active: &Active<M>,
    queue: &mut VirtQueue<M>,
    backend: &dyn NetBackend,
    header: usize,
) -> Result<(), Malformed> {
    // One byte more than is sent shows that there is more.
    let mut frame = [0; FRAME_MAX + 1];
    loop {
        queue.disable_notification()?;
        while !active.doorbell.stopped() {
            if !backend.ready(1) {
                // Room wakes us; the next packet needn't.
                return Ok(());
            }
            let Some(mut chain) = queue.pop()? else { break };
            if let Some(len) = take(&mut chain, header, &mut frame)? {
                backend.send(&frame[..len]);
            }
            queue.push_used(&chain, 0)?;
            if queue.needs_interrupt()? {
                active.signals.queue(queue.index());
            }
        }
        if active.doorbell.stopped() || !queue.enable_notification()? {
            return Ok(());
        }
    }
}

/// The frame of one packet; `None` if it is none that can be sent.
fn take<M: GuestAddressSpace>(
    chain: &mut Chain<M>,
    header_len: usize,
    frame: &mut [u8; FRAME_MAX + 1],
) -> Result<Option<usize>, Malformed> {
    let mut header = [0; HEADER];
    if chain.read(&mut header[..header_len])? < header_len {
        return Err(Malformed::Request("a packet's header is cut off"));
    }
    let len = chain.read(frame)?;
    let [flags, segmentation, ..] = header;
    // Both need features that are not offered.
    let plain = flags == 0 && u32::from(segmentation) == net::VIRTIO_NET_HDR_GSO_NONE;
    Ok((plain && (FRAME_MIN..=FRAME_MAX).contains(&len)).then_some(len))
}
