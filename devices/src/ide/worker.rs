//! What a channel's thread does: reads and writes images, and moves data by the bus master.
//!
//! Problem: an image's file may be slow, and a processor that gave a command must not wait for it. Scheme: the
//! channel puts one [`Job`] on its [`Desk`]; the thread takes it, works without any lock and tells the outcome.
//! The bus master's table is walked as data comes. Invariants: at most one job is on a desk; a job that was
//! cancelled ends soon and [`Desk::wait`] returns only when it has; a table's walk ends after as many entries
//! as its address counter can count. The channel's thread; or the processor's, where there is none, and for
//! [`Job::at_once`].
//!
//! Source: "Programming Interface for Bus Master IDE Controller, Revision 1.0", §1.2 "Physical Region
//! Descriptor Table".

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use crate::clock::lock;
use crate::disk::{DiskImage, SECTOR};

/// Bytes that are moved between looks at whether the job was cancelled.
const PIECE: usize = 64 << 10;
/// Entries of a table: its address counter has 16 bits.
const ENTRIES_MAX: u32 = (64 << 10) / 8;
const END_OF_TABLE: u32 = 1 << 31;

/// Where the bus master gets what it writes to memory.
pub(super) enum Source {
    Image { image: Arc<dyn DiskImage>, offset: u64, len: u64 },
    Bytes(Vec<u8>),
}

/// One step of a command. Offsets and lengths are bytes within the image.
pub(super) enum Job {
    Read {
        image: Arc<dyn DiskImage>,
        offset: u64,
        len: usize,
    },
    Write {
        image: Arc<dyn DiskImage>,
        offset: u64,
        data: Vec<u8>,
        flush: bool,
    },
    Flush {
        image: Arc<dyn DiskImage>,
    },
    DmaIn {
        source: Source,
    },
    DmaOut {
        image: Arc<dyn DiskImage>,
        offset: u64,
        len: u64,
        flush: bool,
    },
    /// DATA SET MANAGEMENT: `len` bytes of ranges.
    Trim {
        image: Arc<dyn DiskImage>,
        len: usize,
    },
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Done,
    /// The image, after so many bytes.
    Failed(u64),
    /// The table has no room for all data.
    TableShort,
    /// The table, or what it points to, isn't memory.
    NoMemory,
    /// A range of Trim isn't within the image.
    BadRange,
}

/// What a job gives back.
pub(super) struct Outcome {
    pub(super) end: End,
    /// What was read.
    pub(super) data: Vec<u8>,
    /// The table goes on behind the data.
    pub(super) table_left: bool,
}

impl From<End> for Outcome {
    fn from(end: End) -> Self {
        Self { end, data: Vec::new(), table_left: false }
    }
}

/// A walk through the table of physical regions.
struct Table<'a, M> {
    memory: &'a M,
    entry: u32,
    entries: u32,
    /// The rest of the region under way.
    region: u64,
    region_len: usize,
    last: bool,
}

impl<'a, M: GuestAddressSpace> Table<'a, M> {
    fn new(memory: &'a M, start: u32) -> Self {
        Self { memory, entry: start, entries: 0, region: 0, region_len: 0, last: false }
    }

    /// The next piece of memory, `len` bytes at most.
    fn next(&mut self, len: usize) -> Result<(GuestAddress, usize), End> {
        if self.region_len == 0 {
            if self.last || self.entries == ENTRIES_MAX {
                return Err(End::TableShort);
            }
            let mut entry = [0; 8];
            let at = GuestAddress(u64::from(self.entry));
            self.memory.memory().read_slice(&mut entry, at).map_err(|_| End::NoMemory)?;
            let [base, count] =
                [0, 4].map(|at| u32::from_le_bytes(entry[at..at + 4].try_into().expect("4 bytes")));
            self.region = u64::from(base & !1);
            self.region_len = match count & 0xfffe {
                0 => 64 << 10,
                len => len as usize,
            };
            self.last = count & END_OF_TABLE != 0;
            self.entry = self.entry.wrapping_add(8);
            self.entries += 1;
        }
        let len = len.min(self.region_len);
        let at = GuestAddress(self.region);
        self.region += len as u64;
        self.region_len -= len;
        Ok((at, len))
    }

    fn put(&mut self, mut data: &[u8]) -> Result<(), End> {
        while !data.is_empty() {
            let (at, len) = self.next(data.len())?;
            let (piece, rest) = data.split_at(len);
            self.memory.memory().write_slice(piece, at).map_err(|_| End::NoMemory)?;
            data = rest;
        }
        Ok(())
    }

    fn get(&mut self, mut data: &mut [u8]) -> Result<(), End> {
        while !data.is_empty() {
            let (at, len) = self.next(data.len())?;
            let (piece, rest) = data.split_at_mut(len);
            self.memory.memory().read_slice(piece, at).map_err(|_| End::NoMemory)?;
            data = rest;
        }
        Ok(())
    }

    fn left(&self) -> bool {
        self.region_len > 0 || !self.last
    }
}

impl Job {
    /// Does what needs no waiting: a read of what the host has in memory, which software will move itself. To wake the
    /// thread takes longer than that.
    pub(super) fn at_once(&self) -> Option<Outcome> {
        let Self::Read { image, offset, len } = self else { return None };
        let mut data = vec![0; *len];
        let read = image.read_cached(*offset, &mut data);
        read.then_some(Outcome { end: End::Done, data, table_left: false })
    }

    /// Does it. `table` is the address of the bus master's table.
    pub(super) fn run<M: GuestAddressSpace>(
        self,
        memory: &M,
        table: u32,
        cancelled: &AtomicBool,
    ) -> Outcome {
        let mut table = Table::new(memory, table);
        let done = match self {
            Self::Read { image, offset, len } => {
                let mut data = vec![0; len];
                return match image.read_at(offset, &mut data) {
                    Ok(()) => Outcome { end: End::Done, data, table_left: false },
                    Err(error) => failed(&error, 0).into(),
                };
            }
            Self::Write { image, offset, data, flush } => {
                let len = data.len() as u64;
                image
                    .write_at(offset, &data)
                    .map_err(|error| failed(&error, 0))
                    .and_then(|()| flush_if(flush, &*image, len))
            }
            Self::Flush { image } => flush_if(true, &*image, 0),
            Self::DmaIn { source: Source::Bytes(data) } => table.put(&data),
            Self::DmaIn { source: Source::Image { image, offset, len } } => {
                in_pieces(len, cancelled, |done, piece| {
                    image.read_at(offset + done, piece).map_err(|error| failed(&error, done))?;
                    table.put(piece)
                })
            }
            Self::DmaOut { image, offset, len, flush } => {
                in_pieces(len, cancelled, |done, piece| {
                    table.get(piece)?;
                    image.write_at(offset + done, piece).map_err(|error| failed(&error, done))
                })
                .and_then(|()| flush_if(flush, &*image, len))
            }
            Self::Trim { image, len } => {
                let mut ranges = vec![0; len];
                table.get(&mut ranges).and_then(|()| trim(&*image, &ranges, cancelled))
            }
        };
        let table_left = table.left();
        Outcome { table_left, ..done.err().unwrap_or(End::Done).into() }
    }
}

/// Calls `step` for pieces of `len` bytes with the bytes that came before, until the job is cancelled.
fn in_pieces(
    len: u64,
    cancelled: &AtomicBool,
    mut step: impl FnMut(u64, &mut [u8]) -> Result<(), End>,
) -> Result<(), End> {
    let mut buffer = vec![0; len.min(PIECE as u64) as usize];
    let mut done = 0;
    while done < len && !cancelled.load(Ordering::Relaxed) {
        let piece = (len - done).min(PIECE as u64) as usize;
        step(done, &mut buffer[..piece])?;
        done += piece as u64;
    }
    Ok(())
}

fn failed(error: &std::io::Error, done: u64) -> End {
    tracing::warn!("IDE: the disk image: {error}");
    End::Failed(done)
}

fn flush_if(flush: bool, image: &dyn DiskImage, done: u64) -> Result<(), End> {
    if flush { image.flush().map_err(|error| failed(&error, done)) } else { Ok(()) }
}

/// Discards ranges: 48 bits of first sector, 16 bits of count, none if that is 0.
fn trim(image: &dyn DiskImage, ranges: &[u8], cancelled: &AtomicBool) -> Result<(), End> {
    for range in ranges.chunks_exact(8) {
        let range = u64::from_le_bytes(range.try_into().expect("8 bytes"));
        let (first, count) = (range & 0xffff_ffff_ffff, range >> 48);
        if count == 0 || cancelled.load(Ordering::Relaxed) {
            continue;
        }
        if first + count > image.size() / SECTOR {
            return Err(End::BadRange);
        }
        let discarded = image.discard(first * SECTOR, count * SECTOR);
        discarded.map_err(|error| failed(&error, 0))?;
    }
    Ok(())
}

/// A job with the table's address, and the channel's count of commands when it was given.
pub(super) struct Order {
    pub(super) job: Job,
    pub(super) table: u32,
    pub(super) number: u64,
}

/// Where a channel and its thread meet.
#[derive(Default)]
pub(super) struct Desk {
    state: Mutex<State>,
    changed: Condvar,
    cancelled: AtomicBool,
}

#[derive(Default)]
struct State {
    order: Option<Order>,
    working: bool,
    stopped: bool,
}

impl Desk {
    fn sleep<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, order: Order) {
        self.cancelled.store(false, Ordering::Relaxed);
        lock(&self.state).order = Some(order);
        self.changed.notify_all();
    }

    /// Returns when nothing is under way.
    pub(super) fn wait(&self) {
        let mut state = lock(&self.state);
        while state.working || state.order.is_some() {
            state = self.sleep(state);
        }
    }

    /// Makes what is under way end soon, and waits for that.
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        lock(&self.state).order = None;
        self.wait();
    }

    /// Ends [`Desk::serve`].
    pub(super) fn stop(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        lock(&self.state).stopped = true;
        self.changed.notify_all();
    }

    /// The thread's body: does each order and hands its number and outcome to `tell`.
    pub(super) fn serve<M: GuestAddressSpace>(&self, memory: &M, tell: impl Fn(u64, Outcome)) {
        loop {
            let mut state = lock(&self.state);
            let order = loop {
                if state.stopped {
                    return;
                }
                if let Some(order) = state.order.take() {
                    break order;
                }
                state = self.sleep(state);
            };
            state.working = true;
            drop(state);
            let outcome = order.job.run(memory, order.table, &self.cancelled);
            lock(&self.state).working = false;
            self.changed.notify_all();
            tell(order.number, outcome);
        }
    }
}
