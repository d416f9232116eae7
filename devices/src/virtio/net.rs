//! Network device.
//!
//! Problem: frames go both ways at their own pace, and neither a guest without buffers nor a network
//! without room may make the other wait or lose its place. Scheme: one worker moves frames between the
//! queues and a [`NetBackend`]; a frame is taken from either side only when the other can have it, and
//! whatever changes rings the doorbell. What the driver leaves to the card is the checksum of what it sends
//! and, where the network takes long TCP segments, cutting them; received frames are whole and have their checksums.
//! Invariants: frames keep their order; a frame that no buffer can hold is dropped and the buffer given
//! back empty; a packet without a whole header is malformed. Worker thread.
//!
//! Source: VIRTIO 1.2, §5.1 "Network Device".

use std::sync::Arc;

use virtio_bindings::bindings::virtio_net as net;
use vm_memory::GuestAddressSpace;

use super::{Active, Chain, Doorbell, Events, Malformed, Service, VirtQueue, VirtioDevice, config};
use crate::net::{FRAME_MAX, FRAME_MIN, Mac, NetBackend, SEGMENT_MAX};

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
        let segments = u64::from(self.backend.takes_segments());
        1 << net::VIRTIO_NET_F_MAC
            | 1 << net::VIRTIO_NET_F_STATUS
            | 1 << net::VIRTIO_NET_F_CSUM
            | segments << net::VIRTIO_NET_F_HOST_TSO4
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

    fn serve(&mut self, mut active: Active<M>) -> Service {
        let mut receive = active.take(RECEIVE.into());
        let mut transmit = active.take(TRANSMIT.into());
        let backend = Arc::clone(&self.backend);
        let offloads = Offloads {
            header: if active.has(config::VIRTIO_F_VERSION_1) { HEADER } else { HEADER_LEGACY },
            checksum: active.has(net::VIRTIO_NET_F_CSUM),
            segments: active.has(net::VIRTIO_NET_F_HOST_TSO4),
        };
        // One byte more than is sent shows that there is more.
        let mut frame = vec![0; if offloads.segments { SEGMENT_MAX } else { FRAME_MAX } + 1];
        Service::by(move || {
            active.serve(|active, events| {
                let changed = events.contains(Events::INPUT);
                if (changed || events.contains(Events::queue(RECEIVE)))
                    && let Some(queue) = &mut receive
                {
                    pour_in(active, queue, &*backend, offloads.header)?;
                }
                if (changed || events.contains(Events::queue(TRANSMIT)))
                    && let Some(queue) = &mut transmit
                {
                    pour_out(active, queue, &*backend, offloads, &mut frame)?;
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

/// What was negotiated of what is done to packets.
#[derive(Clone, Copy)]
struct Offloads {
    /// Bytes of the header before each packet.
    header: usize,
    checksum: bool,
    segments: bool,
}

/// Sends what the driver has put into the queue, as long as the network has room.
fn pour_out<M: GuestAddressSpace>(
    active: &Active<M>,
    queue: &mut VirtQueue<M>,
    backend: &dyn NetBackend,
    offloads: Offloads,
    frame: &mut [u8],
) -> Result<(), Malformed> {
    loop {
        queue.disable_notification()?;
        while !active.doorbell.stopped() {
            if !backend.ready(1) {
                // Room wakes us; the next packet needn't.
                return Ok(());
            }
            let Some(mut chain) = queue.pop()? else { break };
            if let Some(len) = take(&mut chain, offloads, frame)? {
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

/// The frame of one packet, with its checksum; `None` if it is none that can be sent.
fn take<M: GuestAddressSpace>(
    chain: &mut Chain<M>,
    offloads: Offloads,
    frame: &mut [u8],
) -> Result<Option<usize>, Malformed> {
    let mut header = [0; HEADER];
    if chain.read(&mut header[..offloads.header])? < offloads.header {
        return Err(Malformed::Request("a packet's header is cut off"));
    }
    let len = chain.read(frame)?;
    // struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
    let [flags, segmentation, _, _, _, _, start_low, start_high, offset_low, offset_high, ..] =
        header;
    let len_max = match u32::from(segmentation) {
        net::VIRTIO_NET_HDR_GSO_NONE => FRAME_MAX,
        net::VIRTIO_NET_HDR_GSO_TCPV4 if offloads.segments => SEGMENT_MAX,
        _ => return Ok(None),
    };
    if !(FRAME_MIN..=len_max).contains(&len) {
        return Ok(None);
    }
    if u32::from(flags) & net::VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
        let start = usize::from(u16::from_le_bytes([start_low, start_high]));
        let offset = usize::from(u16::from_le_bytes([offset_low, offset_high]));
        if !offloads.checksum || !complete_checksum(&mut frame[..len], start, offset) {
            return Ok(None);
        }
    }
    Ok(Some(len))
}

/// Puts the Internet checksum of everything from `start` on at `start + offset`, where the driver has put the
/// pseudo header's. False if that is outside the frame. Source: RFC 1071.
fn complete_checksum(frame: &mut [u8], start: usize, offset: usize) -> bool {
    let Some(data) = frame.get_mut(start..) else { return false };
    let (words, rest) = data.as_chunks::<4>();
    let mut sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum += u64::from(u32::from_ne_bytes(last));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // The sum of words is the same in either order of bytes. 0 would mean that there is none, to UDP.
    let value = match !(sum as u16) {
        0 => 0xffff,
        value => value,
    };
    let Some(field) = data.get_mut(offset..offset + 2) else { return false };
    field.copy_from_slice(&value.to_ne_bytes());
    true
}
