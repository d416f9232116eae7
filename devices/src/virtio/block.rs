//! Block device.
//!
//! Problem: host I/O must not stop vCPUs, and what the guest was told is durable must be. Scheme: one
//! worker takes requests in order; data goes through a bounce buffer in pieces, since guest memory may
//! change under us and a request may be 4 GiB. What a driver that polls (firmware) reads is read by its vCPU, if the
//! host has it in memory: to wake the worker takes longer. Invariants: a request's sectors are within the image; a
//! flush completes after [`DiskImage::flush`]; if the driver didn't negotiate flushes, every write is
//! flushed before it completes; the status byte is the last of the writable bytes. Worker thread; the vCPU that
//! notifies for [`Requests::at_once`].
//!
//! Source: VIRTIO 1.2, §5.2 "Block Device".

use std::io;
use std::sync::{Arc, Mutex};

use virtio_bindings::bindings::virtio_blk as blk;
use vm_memory::GuestAddressSpace;

use super::{
    Active, Chain, Doorbell, Events, Malformed, Service, Signals, VirtQueue, VirtioDevice,
};
use crate::clock::lock;
use crate::disk::{DiskImage, SECTOR};

const QUEUE_SIZE: u16 = 256;
/// Data segments of a request: a full queue less header and status.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Sectors of one discard or write-zeroes segment. Bounds the time of a request.
const ZEROES_SECTORS_MAX: u32 = 1 << 16;
/// Discard and write-zeroes segments in a request.
const ZEROES_SEGMENTS_MAX: u32 = 16;
const BOUNCE: usize = 128 << 10;
const ID_LEN: usize = blk::VIRTIO_BLK_ID_BYTES as usize;

/// Flag of a write-zeroes segment: the space may be given back.
const SEGMENT_UNMAP: u32 = 1;

/// A disk.
pub struct Block {
    image: Arc<dyn DiskImage>,
    serial: [u8; ID_LEN],
    doorbell: Arc<Doorbell>,
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Block").field("size", &self.image.size()).finish_non_exhaustive()
    }
}

impl Block {
    /// A disk with the contents of `image`. The guest sees the first 20 bytes of `serial`.
    #[must_use]
    pub fn new(image: Arc<dyn DiskImage>, serial: &str) -> Self {
        let mut bytes = [0; ID_LEN];
        for (to, from) in bytes.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        Self { image, serial: bytes, doorbell: Arc::default() }
    }
}

impl<M: GuestAddressSpace + Send + 'static> VirtioDevice<M> for Block {
    fn id(&self) -> u16 {
        2
    }

    fn class(&self) -> u32 {
        0x01_0000
    }

    fn name(&self) -> &'static str {
        "block"
    }

    fn features(&self) -> u64 {
        let bit = |bit: u32, on: bool| u64::from(on) << bit;
        let writable = !self.image.read_only();
        bit(blk::VIRTIO_BLK_F_SEG_MAX, true)
            | bit(blk::VIRTIO_BLK_F_BLK_SIZE, true)
            | bit(blk::VIRTIO_BLK_F_FLUSH, true)
            | bit(blk::VIRTIO_BLK_F_RO, !writable)
            | bit(blk::VIRTIO_BLK_F_WRITE_ZEROES, writable)
            | bit(blk::VIRTIO_BLK_F_DISCARD, writable && self.image.can_discard())
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> Vec<u8> {
        // struct virtio_blk_config up to write_zeroes_may_unmap.
        let mut config = vec![0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.image.size() / SECTOR).to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(36, &ZEROES_SECTORS_MAX.to_le_bytes());
        put(40, &ZEROES_SEGMENTS_MAX.to_le_bytes());
        put(44, &1u32.to_le_bytes());
        put(48, &ZEROES_SECTORS_MAX.to_le_bytes());
        put(52, &ZEROES_SEGMENTS_MAX.to_le_bytes());
        put(56, &[u8::from(self.image.can_discard())]);
        config
    }

    fn doorbell(&self) -> &Arc<Doorbell> {
        &self.doorbell
    }

    fn serve(&mut self, mut active: Active<M>) -> Service {
        let Some(queue) = active.take(0) else { return Service::by(|| ()) };
        let requests = Requests {
            image: Arc::clone(&self.image),
            serial: self.serial,
            write_through: !active.has(blk::VIRTIO_BLK_F_FLUSH),
            bounce: vec![0; BOUNCE],
        };
        let serving = Arc::new(Mutex::new((queue, requests)));
        let (shared, signals) = (Arc::clone(&serving), Arc::clone(&active.signals));
        let at_once = move |_| {
            // If it is held, the worker is at it.
            let Ok(mut serving) = shared.try_lock() else { return false };
            let (queue, requests) = &mut *serving;
            // What is malformed is left to the worker.
            requests.at_once(queue, &signals).unwrap_or(false)
        };
        let worker = move || {
            active.serve(|active, events| {
                if events.contains(Events::queue(0)) {
                    let (queue, requests) = &mut *lock(&serving);
                    active.drain(queue, |chain| requests.request(chain, &active.doorbell))?;
                }
                Ok(())
            });
        };
        Service { worker: Box::new(worker), at_once: Some(Box::new(at_once)) }
    }
}

/// How a request fails. The driver sees a status byte.
enum Failure {
    Io(io::Error),
    Unsupported,
    /// The ring is broken: there is no driver to tell.
    Malformed(Malformed),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Malformed> for Failure {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}

/// A request that the driver got wrong, with a sound chain.
fn refused(why: &'static str) -> Failure {
    Failure::Io(io::Error::new(io::ErrorKind::InvalidInput, why))
}

/// Kind and sector of a request.
fn header<M: GuestAddressSpace>(chain: &mut Chain<M>) -> Result<(u32, u64), Malformed> {
    let mut header = [0; 16];
    if chain.read(&mut header)? < header.len() {
        return Err(Malformed::Request("a block request's header is cut off"));
    }
    let [kind, _reserved, low, high] =
        std::array::from_fn(|i| u32::from_le_bytes(std::array::from_fn(|j| header[4 * i + j])));
    Ok((kind, u64::from(high) << 32 | u64::from(low)))
}

/// Byte offset of `len` bytes from `sector` on, which must be in the image.
fn place(image: &dyn DiskImage, sector: u64, len: u64) -> Result<u64, Failure> {
    let start = sector.checked_mul(SECTOR).ok_or_else(|| refused("past the end"))?;
    if !len.is_multiple_of(SECTOR) {
        return Err(refused("length is no multiple of a sector"));
    }
    match start.checked_add(len) {
        Some(end) if end <= image.size() => Ok(start),
        _ => Err(refused("past the end")),
    }
}

struct Requests {
    image: Arc<dyn DiskImage>,
    serial: [u8; ID_LEN],
    write_through: bool,
    bounce: Vec<u8>,
}

impl Requests {
    /// Serves one request. Returns the bytes written into the chain.
    fn request<M: GuestAddressSpace>(
        &mut self,
        chain: &mut Chain<M>,
        doorbell: &Doorbell,
    ) -> Result<u32, Malformed> {
        let Some(room) = chain.writable().checked_sub(1) else {
            return Err(Malformed::Request("no room for a block request's status"));
        };
        let (kind, sector) = header(chain)?;
        let done = match kind {
            blk::VIRTIO_BLK_T_IN => self.read(chain, sector, room, doorbell),
            blk::VIRTIO_BLK_T_OUT => self.write(chain, sector, doorbell),
            blk::VIRTIO_BLK_T_FLUSH => self.image.flush().map_err(Failure::Io),
            blk::VIRTIO_BLK_T_GET_ID => {
                let len = ID_LEN.min(usize::try_from(room).unwrap_or(ID_LEN));
                chain.write(&self.serial[..len]).map(|_| ()).map_err(Failure::Malformed)
            }
            blk::VIRTIO_BLK_T_DISCARD | blk::VIRTIO_BLK_T_WRITE_ZEROES => {
                self.zeroes(chain, kind == blk::VIRTIO_BLK_T_DISCARD, doorbell)
            }
            _ => Err(Failure::Unsupported),
        };
        let status = match done {
            Ok(()) => blk::VIRTIO_BLK_S_OK,
            Err(Failure::Io(error)) => {
                tracing::debug!("virtio-block: request {kind} at sector {sector}: {error}");
                blk::VIRTIO_BLK_S_IOERR
            }
            Err(Failure::Unsupported) => blk::VIRTIO_BLK_S_UNSUPP,
            Err(Failure::Malformed(error)) => return Err(error),
        };
        let written = room - (chain.writable() - 1);
        chain.skip_writable(chain.writable() - 1);
        chain.write(&[status as u8])?;
        // Only what was written from the start counts, and after a gap the status doesn't.
        let all = if written == room { room + 1 } else { written };
        Ok(u32::try_from(all).unwrap_or(u32::MAX))
    }

    /// Serves the next request of a driver that polls, if that needs no waiting. Says whether nothing is left for the
    /// worker.
    fn at_once<M: GuestAddressSpace>(
        &mut self,
        queue: &mut VirtQueue<M>,
        signals: &Signals,
    ) -> Result<bool, Malformed> {
        if !queue.driver_polls()? {
            return Ok(false);
        }
        let position = queue.position();
        let Ok(Some((chain, written))) = self.take_at_once(queue) else {
            queue.rewind(position);
            return Ok(false);
        };
        queue.push_used(&chain, written)?;
        if queue.needs_interrupt()? {
            signals.queue(queue.index());
        }
        Ok(!queue.enable_notification()?)
    }

    /// Takes the next request and does it, if it is a small read of what the host has in memory. Returns it with the
    /// bytes written into it.
    fn take_at_once<M: GuestAddressSpace>(
        &mut self,
        queue: &mut VirtQueue<M>,
    ) -> Result<Option<(Chain<M>, u32)>, Malformed> {
        let Some(mut chain) = queue.pop()? else { return Ok(None) };
        let room = chain.writable();
        if !(1..=BOUNCE as u64).contains(&room) {
            return Ok(None);
        }
        let (kind, sector) = header(&mut chain)?;
        let data = &mut self.bounce[..room as usize - 1];
        let Ok(start) = place(&*self.image, sector, room - 1) else { return Ok(None) };
        if kind != blk::VIRTIO_BLK_T_IN || !self.image.read_cached(start, data) {
            return Ok(None);
        }
        chain.write(data)?;
        chain.write(&[blk::VIRTIO_BLK_S_OK as u8])?;
        Ok(Some((chain, room as u32)))
    }

    fn read<M: GuestAddressSpace>(
        &mut self,
        chain: &mut Chain<M>,
        sector: u64,
        len: u64,
        doorbell: &Doorbell,
    ) -> Result<(), Failure> {
        let start = place(&*self.image, sector, len)?;
        let mut done = 0;
        while done < len {
            if doorbell.stopped() {
                return Err(refused("the device is being reset"));
            }
            let piece = usize::try_from(len - done).unwrap_or(BOUNCE).min(BOUNCE);
            self.image.read_at(start + done, &mut self.bounce[..piece])?;
            chain.write(&self.bounce[..piece])?;
            done += piece as u64;
        }
        Ok(())
    }

    fn write<M: GuestAddressSpace>(
        &mut self,
        chain: &mut Chain<M>,
        sector: u64,
        doorbell: &Doorbell,
    ) -> Result<(), Failure> {
        let len = chain.readable();
        let start = place(&*self.image, sector, len)?;
        if self.image.read_only() {
            return Err(refused("the image is read-only"));
        }
        let mut done = 0;
        while done < len {
            if doorbell.stopped() {
                return Err(refused("the device is being reset"));
            }
            let piece = usize::try_from(len - done).unwrap_or(BOUNCE).min(BOUNCE);
            chain.read(&mut self.bounce[..piece])?;
            self.image.write_at(start + done, &self.bounce[..piece])?;
            done += piece as u64;
        }
        self.written()
    }

    /// Discard or write zeroes: segments of sector, count, flags.
    fn zeroes<M: GuestAddressSpace>(
        &mut self,
        chain: &mut Chain<M>,
        discard: bool,
        doorbell: &Doorbell,
    ) -> Result<(), Failure> {
        if discard && !self.image.can_discard() {
            return Err(Failure::Unsupported);
        }
        if self.image.read_only() {
            return Err(refused("the image is read-only"));
        }
        if chain.readable() > u64::from(ZEROES_SEGMENTS_MAX) * 16
            || !chain.readable().is_multiple_of(16)
        {
            return Err(refused("too many segments"));
        }
        let mut segment = [0; 16];
        while chain.read(&mut segment)? == segment.len() {
            let [low, high, count, flags] = std::array::from_fn(|i| {
                u32::from_le_bytes(std::array::from_fn(|j| segment[4 * i + j]))
            });
            // Discard has no flags.
            if flags & !SEGMENT_UNMAP != 0 || discard && flags != 0 {
                return Err(Failure::Unsupported);
            }
            if count > ZEROES_SECTORS_MAX {
                return Err(refused("segment too long"));
            }
            if doorbell.stopped() {
                return Err(refused("the device is being reset"));
            }
            let len = u64::from(count) * SECTOR;
            let start = place(&*self.image, u64::from(high) << 32 | u64::from(low), len)?;
            if discard {
                self.image.discard(start, len)?;
            } else {
                self.image.write_zeroes(start, len)?;
            }
        }
        self.written()
    }

    fn written(&self) -> Result<(), Failure> {
        if self.write_through {
            self.image.flush()?;
        }
        Ok(())
    }
}
