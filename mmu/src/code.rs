//! Code versions: how cached code learns that its bytes have changed.
//!
//! Problem: decoded or translated code is kept per physical page, and any vCPU or device may store to
//! that page at any time. Missing one store leaves stale code for ever. Scheme: one atomic word for
//! each page of RAM. Code that is kept notes the word's version and is valid while the page still has
//! that version; everybody who stores to RAM looks at the word *after* the store ([`CodeMap::stored`])
//! and moves the version on if somebody watches. So the common store costs one load and one branch.
//!
//! The word: 0 means never watched. Bits 0-29 are the version, never 0 once watched. `COLD` (bit 31):
//! nobody has asked for the page since its last few dozen stores, so stores leave it alone; a page of
//! data that once held code does not pay for it for ever. `ARMING` (bit 30): a watcher has announced
//! itself, but its barrier has not yet passed.
//!
//! Why no store is missed. A storer does (S1) store, (S2) load the word; a watcher does (W1) make the
//! word hot, (W2) barrier, (W3) read the bytes. The bad outcome is "S2 saw no watcher *and* W3 saw the
//! old bytes": it needs S2 before W1, while S1 sits in the storer's store buffer until after W3.
//! x86 lets a load pass an older store to another address, so S1 and S2 alone don't forbid that, and a
//! fence on every guest store would cost 20 cycles. `membarrier` puts the fence on the rare side
//! instead: W2 interrupts every CPU that runs a thread of this process, which drains its store buffer.
//! If S2 came before W1, S1 is older still, so it has drained when W2 returns, and W3 sees the new
//! bytes. If S2 comes after W1, the storer sees the watcher and moves the version on; W1's version was
//! taken before W3, so bytes decoded too early carry a version that no longer matches. A check
//! *before* the store would not do: a storer preempted between check and store passes any barrier.
//! Between S1 and S2 the compiler is held by a compiler fence. A second watcher that finds the word
//! `ARMING` waits on the mutex, as W2 has not passed for it either. Where the kernel has no
//! membarrier, storers fence instead (`storers_fence`).
//!
//! Invariants: version words change only here; a version that code has noted never returns before
//! 2^30 stores to that page. Any thread. Source: SDM vol. 3, "Memory Ordering" and "Handling Self-
//! and Cross-Modifying Code"; membarrier(2).

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, compiler_fence, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

use crate::ram::Layout;
use xenolith_cpu::Gpa;

const PAGE_BITS: u32 = 12;
const PAGE_BYTES: u16 = 1 << PAGE_BITS;
const COLD: u32 = 1 << 31;
const ARMING: u32 = 1 << 30;
const VERSION: u32 = ARMING - 1;
/// A page goes cold when its version reaches a multiple of this, unless it is watched again.
const COLD_AFTER_STORES: u32 = 64;

/// Who is told of stores to watched pages, after each and by the thread that stored: the guest page, and which of its
/// bytes may have changed.
pub type Listener = dyn Fn(u64, Range<u16>) + Send + Sync;

/// The version words of all RAM, shared by vCPUs and devices.
pub struct CodeMap {
    layout: Layout,
    /// Indexed by page of the RAM file, not by guest page: there are no words for the PCI hole.
    words: Box<[AtomicU32]>,
    /// Serialises watchers on their slow path.
    arming: Mutex<()>,
    /// Ranges of the RAM file that devices stored to, while somebody wants to know.
    device_stores: Mutex<Option<Vec<(u64, u64)>>>,
    logs_stores: AtomicBool,
    /// Is told of each store that changed a version.
    listener: RwLock<Option<Arc<Listener>>>,
    /// No membarrier on this host: the storer's side has to fence.
    storers_fence: bool,
}

impl std::fmt::Debug for CodeMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CodeMap").field("layout", &self.layout).finish_non_exhaustive()
    }
}

impl CodeMap {
    #[must_use]
    pub(crate) fn new(layout: Layout) -> Self {
        // Zero pages come from the host as they are touched: 64 GiB of RAM has 64 MiB of words.
        let words = Box::<[AtomicU32]>::new_zeroed_slice(layout.pages());
        // SAFETY: all zeroes is a valid AtomicU32.
        let words = unsafe { words.assume_init() };
        Self {
            layout,
            words,
            arming: Mutex::new(()),
            device_stores: Mutex::default(),
            logs_stores: AtomicBool::new(false),
            listener: RwLock::default(),
            storers_fence: !register_membarrier(),
        }
    }

    #[inline(always)]
    fn word(&self, gpn: u64) -> Option<&AtomicU32> {
        self.words.get(self.layout.file_page(gpn)?)
    }

    /// Starts watching a page and returns its version, never 0. Read the page's bytes after this
    /// call. For a page that isn't RAM the answer never equals [`Self::version`].
    #[inline]
    pub fn watch(&self, gpn: u64) -> u32 {
        let Some(word) = self.word(gpn) else { return u32::MAX };
        let value = word.load(Ordering::Acquire);
        if is_hot(value) { value } else { self.arm(word) }
    }

    #[cold]
    fn arm(&self, word: &AtomicU32) -> u32 {
        let _watchers = self.arming.lock().unwrap_or_else(PoisonError::into_inner);
        let value = word.load(Ordering::Acquire);
        if is_hot(value) {
            return value;
        }
        // Storers leave 0 and cold words alone and other watchers wait for the lock, so nobody
        // changes the word between this load and the store.
        word.store((value & VERSION).max(1) | ARMING, Ordering::SeqCst);
        if self.storers_fence {
            fence(Ordering::SeqCst);
        } else {
            membarrier();
        }
        word.fetch_and(!ARMING, Ordering::AcqRel) & !ARMING
    }

    /// The page's version, or 0 if nobody watches it or it isn't RAM.
    #[must_use]
    #[inline(always)]
    pub fn version(&self, gpn: u64) -> u32 {
        let value = self.word(gpn).map_or(0, |word| word.load(Ordering::Acquire));
        if is_hot(value) { value } else { 0 }
    }

    /// To be called after a store to a page, by whoever stored. True if the version has changed.
    #[inline(always)]
    pub fn stored(&self, gpn: u64) -> bool {
        self.stored_bytes(Gpa(gpn << PAGE_BITS), u64::from(PAGE_BYTES))
    }

    /// The same after a store of `len` bytes at `gpa`, which lie in one page.
    #[inline(always)]
    pub fn stored_bytes(&self, gpa: Gpa, len: u64) -> bool {
        let gpn = gpa.gpn();
        compiler_fence(Ordering::SeqCst);
        let Some(word) = self.word(gpn) else { return false };
        if self.storers_fence {
            fence(Ordering::SeqCst);
        }
        let value = word.load(Ordering::Relaxed);
        let watched = is_watched(value);
        if watched {
            let first = gpa.0 as u16 & (PAGE_BYTES - 1);
            self.changed(word, gpn, first..first.saturating_add(len as u16).min(PAGE_BYTES));
        }
        watched
    }

    /// Replaces whoever is told of stores to watched pages.
    pub fn set_listener(&self, listener: Arc<Listener>) {
        *self.listener.write().unwrap_or_else(PoisonError::into_inner) = Some(listener);
    }

    /// Moves the version of a watched page on, and tells.
    #[cold]
    fn changed(&self, word: &AtomicU32, gpn: u64, bytes: Range<u16>) {
        // While it is cold stores are not told: whoever watches it again by this one must look at all bytes.
        let bytes = if bump(word) { 0..PAGE_BYTES } else { bytes };
        if let Some(listener) = &*self.listener.read().unwrap_or_else(PoisonError::into_inner) {
            listener(gpn, bytes);
        }
    }

    /// Starts to log what devices store, for lockstep runs.
    pub fn log_device_stores(&self) {
        *self.device_stores() = Some(Vec::new());
        self.logs_stores.store(true, Ordering::Relaxed);
    }

    /// Guest physical pages that devices have stored to since the last call.
    pub fn take_device_stores(&self) -> Vec<u64> {
        let ranges = match self.device_stores().as_mut() {
            Some(log) if !log.is_empty() => std::mem::take(log),
            _ => return Vec::new(),
        };
        let mut pages: Vec<u64> = ranges
            .into_iter()
            .flat_map(|(offset, len)| offset >> 12..=(offset + (len - 1)) >> 12)
            .map(|page| self.layout.guest_page(page))
            .collect();
        pages.sort_unstable();
        pages.dedup();
        pages
    }

    fn device_stores(&self) -> MutexGuard<'_, Option<Vec<(u64, u64)>>> {
        self.device_stores.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called after a store of `len` bytes at an offset of the RAM file.
    pub(crate) fn stored_file_range(&self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        if self.logs_stores.load(Ordering::Relaxed)
            && let Some(log) = self.device_stores().as_mut()
        {
            log.push((offset, len));
        }
        compiler_fence(Ordering::SeqCst);
        if self.storers_fence {
            fence(Ordering::SeqCst);
        }
        let first = ((offset >> 12) as usize).min(self.words.len());
        let last = (offset.saturating_add(len - 1) >> 12) as usize;
        let end = last.saturating_add(1).clamp(first, self.words.len());
        for (word, page) in self.words[first..end].iter().zip(first as u64..) {
            if is_watched(word.load(Ordering::Relaxed)) {
                let in_page = |at: u64| {
                    at.saturating_sub(page << PAGE_BITS).min(u64::from(PAGE_BYTES)) as u16
                };
                let bytes = in_page(offset)..in_page(offset.saturating_add(len));
                self.changed(word, self.layout.guest_page(page), bytes);
            }
        }
    }
}

/// Watched, and the watcher's barrier has passed.
#[inline(always)]
fn is_hot(value: u32) -> bool {
    value.wrapping_sub(1) < ARMING - 1
}

/// Neither 0 nor cold: a store must change it.
#[inline(always)]
fn is_watched(value: u32) -> bool {
    value.wrapping_sub(1) < COLD - 1
}

/// Moves a version on. True if the page has gone cold by that.
fn bump(word: &AtomicU32) -> bool {
    let next = |value: u32| ((value + 1) & VERSION).max(1);
    // A word being armed has a watcher by definition.
    let goes_cold =
        |value: u32| value & ARMING == 0 && next(value).is_multiple_of(COLD_AFTER_STORES);
    let moved = word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |value| {
        let cold = if goes_cold(value) { COLD } else { 0 };
        (value != 0 && value & COLD == 0).then(|| next(value) | (value & ARMING) | cold)
    });
    // Fails only for a word that has gone cold meanwhile: nothing holds its version.
    moved.is_ok_and(goes_cold)
}

fn register_membarrier() -> bool {
    membarrier_command(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)
        && membarrier_command(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED)
}

fn membarrier() {
    let passed = membarrier_command(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED);
    // It worked when we registered and the registration stays with the process.
    assert!(passed, "membarrier failed after it was registered");
}

fn membarrier_command(command: libc::c_int) -> bool {
    // SAFETY: membarrier takes two integers more and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

/// What vm-memory calls after a device has written to guest memory: DMA into code.
///
/// It keeps no record of dirty pages of its own; [`Bitmap::dirty_at`] is always false.
#[derive(Clone, Debug)]
pub struct CodeBitmap {
    code: Arc<CodeMap>,
    /// Where the region starts in the RAM file.
    file_offset: u64,
}

impl CodeBitmap {
    pub(crate) fn new(code: Arc<CodeMap>, file_offset: u64) -> Self {
        Self { code, file_offset }
    }
}

/// A part of a [`CodeBitmap`] that starts at an offset.
#[derive(Clone, Copy, Debug)]
pub struct CodeBitmapSlice<'a> {
    code: &'a CodeMap,
    file_offset: u64,
}

impl<'a> WithBitmapSlice<'a> for CodeBitmap {
    type S = CodeBitmapSlice<'a>;
}

impl Bitmap for CodeBitmap {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.slice_at(offset).mark_dirty(0, len);
    }
    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }
    fn slice_at(&self, offset: usize) -> CodeBitmapSlice<'_> {
        let file_offset = self.file_offset.saturating_add(offset as u64);
        CodeBitmapSlice { code: &self.code, file_offset }
    }
}

impl WithBitmapSlice<'_> for CodeBitmapSlice<'_> {
    type S = Self;
}

impl BitmapSlice for CodeBitmapSlice<'_> {}

impl Bitmap for CodeBitmapSlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.code.stored_file_range(self.file_offset.saturating_add(offset as u64), len as u64);
    }
    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }
    fn slice_at(&self, offset: usize) -> Self {
        Self { file_offset: self.file_offset.saturating_add(offset as u64), ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> CodeMap {
        CodeMap::new(Layout::of(64 << 20))
    }

    #[test]
    fn who_listens_is_told_which_bytes() {
        let map = map();
        let told = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&told);
        map.set_listener(Arc::new(move |gpn, bytes| log.lock().unwrap().push((gpn, bytes))));
        for gpn in [5, 6, 7] {
            map.watch(gpn);
        }
        map.stored_bytes(Gpa(0x4ffe), 2);
        map.stored_bytes(Gpa(0x5ffc), 4);
        map.stored_bytes(Gpa(0x6010), 1);
        map.stored(7);
        map.stored_file_range(0x5ff0, 0x1020);
        let whole = 0..0x1000;
        let expected = [
            (5, 0xffc..0x1000),
            (6, 0x10..0x11),
            (7, whole.clone()),
            (5, 0xff0..0x1000),
            (6, whole),
            (7, 0..0x10),
        ];
        assert_eq!(*told.lock().unwrap(), expected);
    }

    #[test]
    fn a_page_that_goes_cold_is_looked_at_as_a_whole() {
        let map = map();
        let told = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&told);
        map.set_listener(Arc::new(move |_, bytes| log.lock().unwrap().push(bytes)));
        map.watch(5);
        while map.version(5) != 0 {
            map.stored_bytes(Gpa(0x5000), 8);
        }
        let told = told.lock().unwrap();
        let (last, others) = told.split_last().expect("some stores");
        assert_eq!(*last, 0..0x1000, "others may have stored meanwhile, untold");
        assert!(others.iter().all(|bytes| *bytes == (0..8)) && !others.is_empty());
    }

    #[test]
    fn only_watched_pages_have_versions() {
        let map = map();
        assert!(!map.stored(5));
        assert_eq!(map.version(5), 0);
        let first = map.watch(5);
        assert_ne!(first, 0);
        assert_eq!(map.version(5), first);
        assert_eq!(map.watch(5), first, "watching again is not a store");
        assert_eq!(map.version(6), 0);
        assert!(map.stored(5));
        assert_ne!(map.version(5), first);
        map.stored(6);
        assert_eq!(map.version(6), 0);
    }

    #[test]
    fn no_version_outside_ram_matches() {
        let map = map();
        for gpn in [(64 << 20) >> 12, 0xc_0000, 0x10_0000, u64::MAX] {
            assert_ne!(map.watch(gpn), map.version(gpn));
            map.stored(gpn);
        }
    }

    #[test]
    fn unasked_pages_go_cold_and_come_back_with_a_new_version() {
        let map = map();
        let first = map.watch(1);
        for _ in 0..COLD_AFTER_STORES {
            map.stored(1);
        }
        assert_eq!(map.version(1), 0);
        let cold = map.words[1].load(Ordering::Relaxed);
        map.stored(1);
        assert_eq!(map.words[1].load(Ordering::Relaxed), cold, "cold pages are left alone");
        let again = map.watch(1);
        assert!(again > first);
        map.stored(1);
        assert!(map.version(1) > again);
    }

    #[test]
    fn version_wraps_past_zero() {
        let map = map();
        map.words[0].store(VERSION, Ordering::Relaxed);
        assert_eq!(map.version(0), VERSION);
        map.stored(0);
        assert_eq!(map.version(0), 1);
    }

    #[test]
    fn dma_moves_versions_of_all_touched_pages() {
        let map = Arc::new(map());
        let before: Vec<u32> = (0..5).map(|gpn| map.watch(gpn)).collect();
        let bitmap = CodeBitmap::new(Arc::clone(&map), 0);
        bitmap.slice_at(0x1000).slice_at(0xfff).mark_dirty(0, 0x1002);
        bitmap.mark_dirty(0x4000, 0);
        let changed: Vec<bool> =
            (0..5).map(|gpn| map.version(gpn) != before[gpn as usize]).collect();
        assert_eq!(changed, [false, true, true, true, false]);
        // The end of RAM, and past it.
        bitmap.mark_dirty((64 << 20) - 1, usize::MAX);
        bitmap.mark_dirty(usize::MAX, usize::MAX);
    }

    /// A storer and a watcher race on fresh pages; whatever the watcher read before a store must
    /// carry a version that the store has made stale.
    #[test]
    fn a_store_racing_the_first_watch_is_not_missed() {
        use std::sync::Barrier;
        const PAGES: usize = 4000;
        let map = map();
        let bytes: Vec<AtomicU32> = (0..PAGES).map(|_| AtomicU32::new(0)).collect();
        let turn = AtomicU32::new(u32::MAX);
        let together = Barrier::new(2);
        let mut seen = vec![(0, 0); PAGES];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                together.wait();
                for (page, byte) in (0..).zip(&bytes) {
                    turn.store(page, Ordering::Relaxed);
                    byte.store(1, Ordering::Relaxed);
                    map.stored(u64::from(page));
                }
            });
            together.wait();
            for page in 0..PAGES {
                let mut patience = 0;
                while turn.load(Ordering::Relaxed).wrapping_add(1) < page as u32
                    && patience < 100_000
                {
                    patience += 1;
                }
                let version = map.watch(page as u64);
                seen[page] = (version, bytes[page].load(Ordering::Relaxed));
            }
        });
        for (page, (version, byte)) in seen.into_iter().enumerate() {
            assert!(
                byte == 1 || map.version(page as u64) != version,
                "page {page}: old bytes kept with the current version"
            );
        }
    }
}
