//! A split virtqueue as the device sees it, and the buffers of one request.
//!
//! Problem: rings and descriptors are written by a guest that may be broken or hostile, while we read
//! them. Scheme: `virtio-queue` keeps the rings; each chain is copied out of guest memory once and
//! checked whole before a device sees it: readable buffers first, all in RAM, ended properly, not
//! longer than the queue allows. Invariants: a [`Chain`]'s buffers lay in RAM when it was popped, and
//! every access checks again; there are at most [`DESCRIPTORS_MAX`] of them and 4 GiB in all; anything
//! else is [`Malformed`]. One thread at a time.
//!
//! Source: VIRTIO 1.2, §2.7 "Split Virtqueues".

use std::sync::atomic::Ordering;

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryError, Permissions,
};

/// Longest chain that we take. The specification's bound is the queue's size, but drivers put longer
/// ones into indirect tables.
pub const DESCRIPTORS_MAX: usize = 1024;

/// The driver broke the rules of the ring.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    #[error("virtqueue {0} can't be used: {1}")]
    Ring(u16, virtio_queue::Error),
    #[error("virtqueue {0} is outside RAM or misaligned")]
    Place(u16),
    #[error("virtqueue {0}: descriptor chain loops, is cut off or longer than {DESCRIPTORS_MAX}")]
    Chain(u16),
    #[error("virtqueue {0}: readable buffer after a writable one")]
    Order(u16),
    #[error("virtqueue {queue}: buffer {address:#x}+{len:#x} is outside RAM")]
    Buffer { queue: u16, address: u64, len: u32 },
    #[error("guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
    #[error("request is not what the device takes: {0}")]
    Request(&'static str),
}

/// Where the driver put a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub size: u16,
    pub descriptors: u64,
    /// Driver area, the available ring.
    pub available: u64,
    /// Device area, the used ring.
    pub used: u64,
}

/// A queue in use.
pub struct VirtQueue<M: GuestAddressSpace> {
    queue: Queue,
    memory: M,
    index: u16,
}

impl<M: GuestAddressSpace> std::fmt::Debug for VirtQueue<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtQueue")
            .field("index", &self.index)
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

impl<M: GuestAddressSpace> VirtQueue<M> {
    /// Queue `index` of at most `max_size` entries, at `place`.
    ///
    /// # Errors
    /// [`Malformed`] if it can't be there.
    pub fn new(
        memory: M,
        index: u16,
        max_size: u16,
        place: Place,
        event_idx: bool,
    ) -> Result<Self, Malformed> {
        let ring = |error| Malformed::Ring(index, error);
        let mut queue = Queue::new(max_size).map_err(ring)?;
        queue.try_set_size(place.size).map_err(ring)?;
        queue.try_set_desc_table_address(GuestAddress(place.descriptors)).map_err(ring)?;
        queue.try_set_avail_ring_address(GuestAddress(place.available)).map_err(ring)?;
        queue.try_set_used_ring_address(GuestAddress(place.used)).map_err(ring)?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        if !queue.is_valid(&*memory.memory()) {
            return Err(Malformed::Place(index));
        }
        Ok(Self { queue, memory, index })
    }

    /// Goes on where whoever served the queue before has stopped, with no request in hand: as many were taken
    /// as were given back.
    ///
    /// # Errors
    /// [`Malformed`] if the used ring can't be read.
    pub fn resume(&mut self) -> Result<(), Malformed> {
        let used = self
            .queue
            .used_idx(&*self.memory.memory(), Ordering::Acquire)
            .map_err(|error| Malformed::Ring(self.index, error))?;
        self.queue.set_next_avail(used.0);
        self.queue.set_next_used(used.0);
        Ok(())
    }

    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The next request, if there is one.
    ///
    /// # Errors
    /// [`Malformed`] if the ring or the chain is.
    pub fn pop(&mut self) -> Result<Option<Chain<M>>, Malformed> {
        let index = self.index;
        let memory = self.memory.memory();
        let mut iter =
            self.queue.iter(memory.clone()).map_err(|error| Malformed::Ring(index, error))?;
        let Some(descriptors) = iter.next() else { return Ok(None) };
        let head = descriptors.head_index();
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        // The iterator hides why it ends. A chain that ends well ends in a descriptor that names no
        // successor.
        let mut open = true;
        for descriptor in descriptors {
            if readable.len() + writable.len() == DESCRIPTORS_MAX {
                return Err(Malformed::Chain(index));
            }
            let (address, len) = (descriptor.addr(), descriptor.len());
            let (buffers, access) = if descriptor.is_write_only() {
                (&mut writable, Permissions::Write)
            } else if writable.is_empty() {
                (&mut readable, Permissions::Read)
            } else {
                return Err(Malformed::Order(index));
            };
            if !memory.check_range(address, len as usize, access) {
                let address = address.raw_value();
                return Err(Malformed::Buffer { queue: index, address, len });
            }
            buffers.push(Buffer { address, len });
            open = descriptor.has_next();
        }
        if open {
            return Err(Malformed::Chain(index));
        }
        Ok(Some(Chain { memory, head, readable: readable.into(), writable: writable.into() }))
    }

    /// Where the next request is taken from.
    #[must_use]
    pub fn position(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Goes back to `position`, as if what came after it had not been taken. Nothing of that was given back.
    pub fn rewind(&mut self, position: u16) {
        self.queue.set_next_avail(position);
    }

    /// Gives a request back, with the number of bytes written to it.
    ///
    /// # Errors
    /// [`Malformed`] if the used ring can't be written.
    pub fn push_used(&mut self, chain: &Chain<M>, written: u32) -> Result<(), Malformed> {
        let memory = self.memory.memory();
        self.queue
            .add_used(&*memory, chain.head, written)
            .map_err(|error| Malformed::Ring(self.index, error))
    }

    /// Whether the driver wants to be interrupted for what was given back since the last call.
    ///
    /// # Errors
    /// [`Malformed`] if the available ring can't be read.
    pub fn needs_interrupt(&mut self) -> Result<bool, Malformed> {
        let memory = self.memory.memory();
        let needs = self
            .queue
            .needs_notification(&*memory)
            .map_err(|error| Malformed::Ring(self.index, error))?;
        if self.queue.event_idx_enabled() {
            return Ok(needs);
        }
        self.no_interrupt().map(|no_interrupt| !no_interrupt)
    }

    /// Whether the driver looks at the used ring by itself: it wants no interrupts at all.
    ///
    /// # Errors
    /// [`Malformed`] if the available ring can't be read.
    pub fn driver_polls(&self) -> Result<bool, Malformed> {
        // With event indices a driver says which request it wants to hear of, not that it wants to hear of none.
        Ok(!self.queue.event_idx_enabled() && self.no_interrupt()?)
    }

    fn no_interrupt(&self) -> Result<bool, Malformed> {
        let memory = self.memory.memory();
        let flags: u16 = memory.load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)?;
        Ok(u16::from_le(flags) & VRING_AVAIL_F_NO_INTERRUPT as u16 != 0)
    }

    /// Asks for a notification of the next request. True if one came in the meantime.
    ///
    /// # Errors
    /// [`Malformed`] if the rings can't be accessed.
    pub fn enable_notification(&mut self) -> Result<bool, Malformed> {
        let memory = self.memory.memory();
        self.queue.enable_notification(&*memory).map_err(|error| Malformed::Ring(self.index, error))
    }

    /// Asks for no notifications, as we are looking anyway.
    ///
    /// # Errors
    /// [`Malformed`] if the used ring can't be written.
    pub fn disable_notification(&mut self) -> Result<(), Malformed> {
        let memory = self.memory.memory();
        self.queue
            .disable_notification(&*memory)
            .map_err(|error| Malformed::Ring(self.index, error))
    }
}

#[derive(Clone, Copy, Debug)]
struct Buffer {
    address: GuestAddress,
    len: u32,
}

/// Buffers of one direction and how far they are used up.
#[derive(Debug)]
struct Buffers {
    list: Vec<Buffer>,
    /// First buffer that isn't used up, and how much of it is.
    at: usize,
    done: u32,
    left: u64,
}

impl From<Vec<Buffer>> for Buffers {
    fn from(list: Vec<Buffer>) -> Self {
        let left = list.iter().map(|buffer| u64::from(buffer.len)).sum();
        Self { list, at: 0, done: 0, left }
    }
}

impl Buffers {
    /// Takes up to `len` bytes, all from one buffer.
    fn take(&mut self, len: usize) -> Option<(GuestAddress, usize)> {
        while let Some(buffer) = self.list.get(self.at) {
            let room = buffer.len - self.done;
            if room == 0 {
                self.at += 1;
                self.done = 0;
                continue;
            }
            let take = u32::try_from(len).unwrap_or(u32::MAX).min(room);
            // Checked when popped: the buffer is in RAM, so its addresses don't wrap.
            let address = buffer.address.unchecked_add(u64::from(self.done));
            self.done += take;
            self.left -= u64::from(take);
            return Some((address, take as usize));
        }
        None
    }
}

/// One request: bytes to read, then room to write, in any framing.
pub struct Chain<M: GuestAddressSpace> {
    memory: M::T,
    head: u16,
    readable: Buffers,
    writable: Buffers,
}

impl<M: GuestAddressSpace> std::fmt::Debug for Chain<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chain")
            .field("head", &self.head)
            .field("readable", &self.readable)
            .field("writable", &self.writable)
            .finish_non_exhaustive()
    }
}

impl<M: GuestAddressSpace> Chain<M> {
    /// Bytes not read yet.
    #[must_use]
    pub fn readable(&self) -> u64 {
        self.readable.left
    }

    /// Room not written yet.
    #[must_use]
    pub fn writable(&self) -> u64 {
        self.writable.left
    }

    /// Reads the next bytes, fewer than `data` takes only at the end.
    ///
    /// # Errors
    /// [`Malformed::Memory`] if RAM is gone.
    pub fn read(&mut self, data: &mut [u8]) -> Result<usize, Malformed> {
        let mut done = 0;
        while done < data.len()
            && let Some((address, len)) = self.readable.take(data.len() - done)
        {
            self.memory.read_slice(&mut data[done..done + len], address)?;
            done += len;
        }
        Ok(done)
    }

    /// Writes the next bytes, fewer than all of `data` only at the end of the room.
    ///
    /// # Errors
    /// [`Malformed::Memory`] if RAM is gone.
    pub fn write(&mut self, data: &[u8]) -> Result<usize, Malformed> {
        let mut done = 0;
        while done < data.len()
            && let Some((address, len)) = self.writable.take(data.len() - done)
        {
            self.memory.write_slice(&data[done..done + len], address)?;
            done += len;
        }
        Ok(done)
    }

    /// Leaves out the next `len` bytes of room.
    pub fn skip_writable(&mut self, len: u64) {
        let mut left = len;
        while left > 0
            && let Some((_, len)) = self.writable.take(usize::try_from(left).unwrap_or(usize::MAX))
        {
            left -= len as u64;
        }
    }
}
