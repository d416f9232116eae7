//! Memory balloon device.
//!
//! Problem: a host wants memory back from a guest that has more than it needs. Scheme: the target is in the
//! configuration; the guest's driver takes pages from the guest until so many are in the balloon, and puts
//! their numbers into the inflate queue. The worker gives those pages back to the host through
//! [`BalloonMemory`]; a page that leaves the balloon is the guest's from its first access on, as zeroes. The
//! statistics queue has one buffer, which the device keeps until somebody asks for news. [`BalloonHandle`] is
//! the host's end. Invariants: a page that isn't RAM is left alone; the numbers of a request are taken in pieces
//! of bounded size. Worker thread; the handle from any thread.
//!
//! Source: VIRTIO 1.2, §5.5 "Traditional Memory Balloon Device".

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use vm_memory::GuestAddressSpace;

use super::{Active, Chain, Doorbell, Events, Malformed, Service, VirtQueue, VirtioDevice};
use crate::clock::lock;

const QUEUE_SIZE: u16 = 128;
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATISTICS: u16 = 2;
/// There is a statistics queue.
const F_STATS_VQ: u32 = 1;
/// Pages that the device's numbers count.
const PAGE: u64 = 4096;
/// Numbers taken from a request at a time.
const PIECE: usize = 1024;
/// Bytes of a statistic: tag and value.
const STATISTIC: usize = 10;
/// Statistics that are kept: those that the specification names.
const STATISTICS_MAX: usize = 10;
/// `actual` in the configuration, which is the driver's to write.
const ACTUAL: usize = 4;

/// The guest's memory, whose pages can be given back.
pub trait BalloonMemory: Send + Sync {
    /// Gives `bytes` bytes of whole pages from guest physical `start` on back to the host: they read as zeroes
    /// until the guest stores there. What isn't RAM is left alone.
    fn give_back(&self, start: u64, bytes: u64);
}

#[derive(Default)]
struct Statistics {
    /// By tag.
    values: [Option<u64>; STATISTICS_MAX],
    /// Counts the driver's answers.
    answers: u64,
}

#[derive(Default)]
struct Shared {
    /// Pages that shall be, and that the driver says are in the balloon.
    target: AtomicU32,
    actual: AtomicU32,
    statistics: Mutex<Statistics>,
    answered: Condvar,
    doorbell: Arc<Doorbell>,
}

/// A balloon.
pub struct Balloon {
    shared: Arc<Shared>,
    memory: Arc<dyn BalloonMemory>,
}

impl std::fmt::Debug for Balloon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Balloon").field("actual", &self.shared.actual).finish_non_exhaustive()
    }
}

/// The host's end of a balloon. Cheap to clone; outlives its balloon.
#[derive(Clone)]
pub struct BalloonHandle(Weak<Shared>);

impl std::fmt::Debug for BalloonHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BalloonHandle").field("bytes", &self.bytes()).finish()
    }
}

impl BalloonHandle {
    /// Asks the guest to have so many bytes in the balloon, in whole pages.
    pub fn set_target(&self, bytes: u64) {
        if let Some(shared) = self.0.upgrade() {
            let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
            if shared.target.swap(pages, Ordering::SeqCst) != pages {
                shared.doorbell.ring(Events::CONFIG);
            }
        }
    }

    /// Bytes in the balloon, as the driver says.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.upgrade().map_or(0, |shared| u64::from(shared.actual.load(Ordering::SeqCst)) * PAGE)
    }

    /// Asks the driver for statistics, waits `patience` for them, and returns the latest: names and values
    /// in the order of their tags.
    #[must_use]
    pub fn statistics(&self, patience: Duration) -> Vec<(&'static str, u64)> {
        let Some(shared) = self.0.upgrade() else { return Vec::new() };
        let mut statistics = lock(&shared.statistics);
        let before = statistics.answers;
        // A driver that has never answered won't now.
        if before > 0 {
            shared.doorbell.ring(Events::INPUT);
            (statistics, _) = shared
                .answered
                .wait_timeout_while(statistics, patience, |now| now.answers == before)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let named = NAMES.into_iter().zip(statistics.values);
        named.filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

/// What the statistics are, by tag (§5.5.6.4 "Memory Statistics Tags").
const NAMES: [&str; STATISTICS_MAX] = [
    "swapped in",
    "swapped out",
    "major faults",
    "minor faults",
    "free",
    "total",
    "available",
    "disk caches",
    "huge page allocations",
    "huge page failures",
];

impl Balloon {
    /// An empty balloon in `memory`.
    #[must_use]
    pub fn new(memory: Arc<dyn BalloonMemory>) -> (Self, BalloonHandle) {
        let shared = Arc::<Shared>::default();
        let handle = BalloonHandle(Arc::downgrade(&shared));
        (Self { shared, memory }, handle)
    }
}

impl<M: GuestAddressSpace + Send + 'static> VirtioDevice<M> for Balloon {
    fn id(&self) -> u16 {
        5
    }

    fn class(&self) -> u32 {
        0x00_ff00
    }

    fn name(&self) -> &'static str {
        "balloon"
    }

    fn features(&self) -> u64 {
        1 << F_STATS_VQ
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE]
    }

    fn config(&self) -> Vec<u8> {
        // struct virtio_balloon_config: num_pages, actual.
        let words = [&self.shared.target, &self.shared.actual];
        words.into_iter().flat_map(|word| word.load(Ordering::SeqCst).to_le_bytes()).collect()
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        // Old drivers write single bytes.
        let mut actual = self.shared.actual.load(Ordering::SeqCst).to_le_bytes();
        for (at, &byte) in (offset..).zip(data) {
            if let Some(slot) = at.checked_sub(ACTUAL).and_then(|at| actual.get_mut(at)) {
                *slot = byte;
            }
        }
        self.shared.actual.store(u32::from_le_bytes(actual), Ordering::SeqCst);
    }

    fn reset(&mut self) {
        // What was in it is the guest's again.
        self.shared.actual.store(0, Ordering::SeqCst);
        *lock(&self.shared.statistics) = Statistics::default();
    }

    fn doorbell(&self) -> &Arc<Doorbell> {
        &self.shared.doorbell
    }

    fn serve(&mut self, mut active: Active<M>) -> Service {
        let mut inflate = active.take(INFLATE.into());
        let mut deflate = active.take(DEFLATE.into());
        let mut statistics = active.take(STATISTICS.into()).filter(|_| active.has(F_STATS_VQ));
        let memory = Arc::clone(&self.memory);
        let shared = Arc::clone(&self.shared);
        Service::by(move || {
            // The statistics queue's buffer.
            let mut held = None;
            active.serve(|active, events| {
                if events.contains(Events::CONFIG) {
                    active.signals.config_changed();
                }
                if events.contains(Events::queue(INFLATE))
                    && let Some(queue) = &mut inflate
                {
                    active.drain(queue, |chain| take_pages(chain, &*memory, &active.doorbell))?;
                }
                if events.contains(Events::queue(DEFLATE))
                    && let Some(queue) = &mut deflate
                {
                    active.drain(queue, |_| Ok(0))?;
                }
                let Some(queue) = &mut statistics else { return Ok(()) };
                if events.contains(Events::INPUT)
                    && let Some(chain) = held.take()
                {
                    give(active, queue, &chain)?;
                }
                if events.contains(Events::queue(STATISTICS)) {
                    note_statistics(active, queue, &mut held, &shared)?;
                }
                Ok(())
            });
        })
    }
}

/// Gives a buffer back, unwritten.
fn give<M: GuestAddressSpace>(
    active: &Active<M>,
    queue: &mut VirtQueue<M>,
    chain: &Chain<M>,
) -> Result<(), Malformed> {
    queue.push_used(chain, 0)?;
    if queue.needs_interrupt()? {
        active.signals.queue(queue.index());
    }
    Ok(())
}

/// Gives the pages of one request back to the host.
fn take_pages<M: GuestAddressSpace>(
    chain: &mut Chain<M>,
    memory: &dyn BalloonMemory,
    doorbell: &Doorbell,
) -> Result<u32, Malformed> {
    let mut bytes = [0; 4 * PIECE];
    let mut pages = Vec::with_capacity(PIECE);
    while !doorbell.stopped() {
        let len = chain.read(&mut bytes)?;
        let (numbers, _) = bytes[..len].as_chunks::<4>();
        pages.clear();
        pages.extend(numbers.iter().map(|number| u64::from(u32::from_le_bytes(*number))));
        if pages.is_empty() {
            break;
        }
        pages.sort_unstable();
        pages.dedup();
        // Neighbours go together.
        for run in pages.chunk_by(|a, b| a + 1 == *b) {
            memory.give_back(run[0] * PAGE, run.len() as u64 * PAGE);
        }
    }
    Ok(0)
}

/// Reads the driver's statistics and keeps the buffer. One that was kept goes back: there is to be one only.
fn note_statistics<M: GuestAddressSpace>(
    active: &Active<M>,
    queue: &mut VirtQueue<M>,
    held: &mut Option<Chain<M>>,
    shared: &Shared,
) -> Result<(), Malformed> {
    loop {
        queue.disable_notification()?;
        while !active.doorbell.stopped()
            && let Some(mut chain) = queue.pop()?
        {
            let mut bytes = [0; STATISTIC * STATISTICS_MAX];
            let len = chain.read(&mut bytes)?;
            let mut statistics = lock(&shared.statistics);
            for statistic in bytes[..len].chunks_exact(STATISTIC) {
                let tag = u16::from_le_bytes([statistic[0], statistic[1]]);
                let value = u64::from_le_bytes(std::array::from_fn(|i| statistic[2 + i]));
                if let Some(slot) = statistics.values.get_mut(usize::from(tag)) {
                    *slot = Some(value);
                }
            }
            statistics.answers += 1;
            drop(statistics);
            shared.answered.notify_all();
            if let Some(before) = held.replace(chain) {
                give(active, queue, &before)?;
            }
        }
        if active.doorbell.stopped() || !queue.enable_notification()? {
            return Ok(());
        }
    }
}
