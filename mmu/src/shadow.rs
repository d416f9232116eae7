//! Shadow windows: guest linear memory in the host's own page tables.
//!
//! Problem: looking a page up in software at every access costs several times what most accesses do.
//! Scheme: guest RAM is a file, so a guest page can be mapped once more, where the host's MMU finds it by
//! itself. A *space* is what is mapped for one era of one PCID (see [`crate::tlb`]), that is, a TLB
//! whose entries are host mappings: the guest's flush makes a new era, and the old era's space sleeps. It is
//! woken for a later era of the same owner by looking each page up again: what the guest's tables still say of it
//! is what that era's TLB could have as well, the rest is unmapped. A space has a *window* of 4 GiB of
//! host addresses for each 4 GiB region of guest addresses in use, with as much room without access on both
//! sides: a base register plus any 32-bit displacement stays in there, and what isn't mapped faults.
//!
//! Invariants: a page is mapped only as the TLB could have it: accessed bits set, for writing only if dirty
//! and not watched for code; the mappings in all spaces stay below a budget, since the host has a limit
//! for each process, at the expense of the space that was used longest ago. One per vCPU, on its thread.
//! Source: SDM vol. 3, "Caching Translation Information"; mmap(2), vm.max_map_count.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};
use xenolith_cpu::PAGE_SIZE;

use crate::pages::PageMap;
use crate::ram::GuestRam;

/// Guest addresses of one window.
const REGION_BYTES: usize = 4 << 30;
/// A window and the room around it.
const RESERVED_BYTES: usize = 3 * REGION_BYTES;
/// Spaces kept; the one that was used longest ago goes first.
const SPACES_MAX: usize = 8;
/// Regions of one space.
const REGIONS_MAX: usize = 16;
/// Pages of a run that the host is asked to find at once where it may not have them yet.
const POPULATE_MAX: u64 = 16;
/// Mappings that we leave to others, of those that the host allows a process.
const MAPPINGS_SPARED: usize = 16 << 10;

/// Mappings in all windows of the process, at most.
static MAPPED: AtomicUsize = AtomicUsize::new(0);

/// A region's number, and what is added to its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta {
    /// Bits 32 to 47 of the addresses.
    pub region: u16,
    pub delta: u64,
}

/// Host addresses without access, unmapped when dropped.
#[derive(Debug)]
struct Reservation(NonNull<u8>);

impl Reservation {
    fn new() -> Result<Self, Errno> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: the kernel picks a free address.
        let start = unsafe {
            mmap_anonymous(std::ptr::null_mut(), RESERVED_BYTES, ProtFlags::empty(), flags)
        }?;
        Ok(Self(NonNull::new(start.cast()).expect("the kernel never picks address 0")))
    }

    /// The window's first byte.
    fn window(&self) -> *mut u8 {
        self.0.as_ptr().wrapping_add(REGION_BYTES)
    }

    /// What is added to addresses of `region`.
    fn delta(&self, region: u16) -> u64 {
        // Canonical: bit 47 goes on above.
        let start = (u64::from(region) << 48).cast_signed() >> 16;
        (self.window().addr() as u64).wrapping_sub(start as u64)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped; whoever kept an address of it broke the contract.
        let unmapped = unsafe { munmap(self.0.as_ptr().cast(), RESERVED_BYTES) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours could not be unmapped");
    }
}

/// A page that is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Guest page number.
    pub gpn: u64,
    pub writable: bool,
}

impl Page {
    /// The host makes one mapping of this page and the one before.
    fn goes_on_from(self, before: Self) -> bool {
        self.gpn == before.gpn + 1 && self.writable == before.writable
    }
}

/// What is mapped for one era.
#[derive(Debug)]
struct Space {
    /// Never another's.
    id: u64,
    era: u64,
    owner: u64,
    regions: Vec<(u16, Reservation)>,
    /// By linear page number.
    pages: PageMap<u64, Page>,
    /// Mappings that the host has, as it joins those that go on from each other: the places where one begins.
    mappings: usize,
    used_at: u64,
    /// How long it has been active since it was made or woken, but for the present time.
    worked: u64,
}

impl Drop for Space {
    fn drop(&mut self) {
        MAPPED.fetch_sub(self.mappings, Ordering::Relaxed);
    }
}

impl Space {
    /// Places from `first` to behind the last of `count` pages where a mapping begins, or the room between two.
    fn beginnings(&self, first: u64, count: u64) -> usize {
        let mut before = self.pages.get(&first.wrapping_sub(1));
        let begins = |page: u64| {
            let this = self.pages.get(&page);
            match (std::mem::replace(&mut before, this), this) {
                (None, None) => false,
                (Some(before), Some(this)) => !this.goes_on_from(*before),
                _ => true,
            }
        };
        (first..=first + count).map(begins).filter(|&it| it).count()
    }

    /// Changes what is mapped of `count` pages from `first` on, and counts the mappings anew.
    fn change(&mut self, first: u64, count: u64, change: impl FnOnce(&mut PageMap<u64, Page>)) {
        let before = self.beginnings(first, count);
        change(&mut self.pages);
        let after = self.beginnings(first, count);
        self.mappings = self.mappings + after - before;
        if after > before {
            MAPPED.fetch_add(after - before, Ordering::Relaxed);
        } else {
            MAPPED.fetch_sub(before - after, Ordering::Relaxed);
        }
    }

    fn window(&self, la: u64) -> Option<*mut u8> {
        let region = (la >> 32) as u16;
        self.regions.iter().find(|(number, _)| *number == region).map(|(_, r)| r.window())
    }
}

/// A run of pages to be mapped: linear page number, guest page number, count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub page: u64,
    pub gpn: u64,
    pub count: u64,
    pub writable: bool,
}

/// Which spaces (by number) and linear pages map a guest page for writing.
#[derive(Debug, Default)]
struct Writers(PageMap<u64, Vec<(u64, u64)>>);

impl Writers {
    fn note(&mut self, id: u64, page: u64, mapped: Page) {
        if mapped.writable {
            self.0.entry(mapped.gpn).or_default().push((id, page));
        }
    }

    fn forget(&mut self, id: u64, page: u64, mapped: Page) {
        if mapped.writable
            && let Some(writers) = self.0.get_mut(&mapped.gpn)
        {
            writers.retain(|&writer| writer != (id, page));
            if writers.is_empty() {
                self.0.remove(&mapped.gpn);
            }
        }
    }
}

/// See the module's head.
#[derive(Debug)]
pub struct Shadow {
    ram: Arc<GuestRam>,
    spaces: Vec<Space>,
    active: Option<usize>,
    budget: usize,
    writers: Writers,
    nowhere: Reservation,
    clock: u64,
    /// When the active space became active.
    since: u64,
    next_id: u64,
}

// SAFETY: the reservations are this value's alone.
unsafe impl Send for Shadow {}

/// A space that sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asleep {
    /// Pages to be looked up when it is woken.
    pub pages: usize,
    /// How long it was active since it was last made or woken, in the unit of `now`.
    pub worked: u64,
}

/// The host has no room for more mappings, or the space for more regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Shadow {
    /// # Errors
    /// The host gives no address space.
    pub fn new(ram: Arc<GuestRam>) -> Result<Self, Errno> {
        let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count")
            .ok()
            .and_then(|text| text.trim().parse::<usize>().ok())
            .unwrap_or(65530);
        Ok(Self {
            ram,
            spaces: Vec::new(),
            active: None,
            budget: limit.saturating_sub(MAPPINGS_SPARED),
            writers: Writers::default(),
            nowhere: Reservation::new()?,
            clock: 0,
            since: 0,
            next_id: 0,
        })
    }

    /// What leads addresses of a region without window to a fault.
    #[must_use]
    pub fn nowhere(&self, region: u16) -> Delta {
        Delta { region, delta: self.nowhere.delta(region) }
    }

    /// Whether a host address that faulted is one of a region without window.
    #[must_use]
    pub fn is_nowhere(&self, host: u64) -> bool {
        host.wrapping_sub(self.nowhere.0.as_ptr().addr() as u64) < RESERVED_BYTES as u64
    }

    /// The era whose space is active.
    #[must_use]
    #[inline]
    pub fn active_era(&self) -> Option<u64> {
        self.active.map(|n| self.spaces[n].era)
    }

    /// The regions of the active space.
    pub fn active_deltas(&self) -> impl Iterator<Item = Delta> {
        let regions = self.active.map_or(&[][..], |n| &self.spaces[n].regions[..]);
        regions.iter().map(|(region, r)| Delta { region: *region, delta: r.delta(*region) })
    }

    /// Makes the space of an era active, if there is one. `now` is a time in any unit.
    pub fn switch(&mut self, era: u64, now: u64) {
        let next = self.spaces.iter().position(|space| space.era == era);
        self.activate(next, now);
    }

    fn activate(&mut self, next: Option<usize>, now: u64) {
        if let Some(n) = self.active {
            self.spaces[n].worked += now.saturating_sub(self.since);
        }
        self.since = now;
        self.clock += 1;
        self.active = next;
        if let Some(n) = next {
            self.spaces[n].used_at = self.clock;
        }
    }

    /// Makes an empty space for an era of `owner` and activates it.
    pub fn create(&mut self, era: u64, owner: u64, now: u64) {
        if self.spaces.len() >= SPACES_MAX {
            self.activate(None, now);
            self.drop_oldest();
        }
        self.spaces.push(Space {
            id: self.next_id,
            era,
            owner,
            regions: Vec::new(),
            pages: PageMap::default(),
            mappings: 0,
            used_at: 0,
            worked: 0,
        });
        self.next_id += 1;
        self.activate(Some(self.spaces.len() - 1), now);
    }

    fn sleeping(&self, owner: u64) -> Option<usize> {
        let of_owner = |&n: &usize| self.spaces[n].owner == owner && self.active != Some(n);
        (0..self.spaces.len()).filter(of_owner).max_by_key(|&n| self.spaces[n].used_at)
    }

    /// The space of `owner` that was active last, but the active one.
    #[must_use]
    pub fn asleep(&self, owner: u64) -> Option<Asleep> {
        let space = &self.spaces[self.sleeping(owner)?];
        Some(Asleep { pages: space.pages.len(), worked: space.worked })
    }

    /// Activates that space for an era, having unmapped all pages of which `is_still` says, by linear page number,
    /// that they aren't what they were. False if there is none; or if most pages aren't, and the space is dropped: what
    /// it was made for is gone, and another program has its page tables.
    pub fn wake(
        &mut self,
        era: u64,
        owner: u64,
        now: u64,
        mut is_still: impl FnMut(u64, Page) -> bool,
    ) -> bool {
        let Some(n) = self.sleeping(owner) else { return false };
        self.activate(Some(n), now);
        let Self { spaces, writers, .. } = self;
        let space = &mut spaces[n];
        space.era = era;
        space.worked = 0;
        let pages = space.pages.iter();
        let mut gone: Vec<u64> = pages
            .filter_map(|(&page, &mapped)| (!is_still(page, mapped)).then_some(page))
            .collect();
        if 2 * gone.len() > space.pages.len() {
            self.drop_space(n);
            return false;
        }
        gone.sort_unstable();
        for run in gone.chunk_by(|page, next| page + 1 == *next) {
            Self::unmap_in(space, writers, run[0], run.len() as u64);
        }
        true
    }

    fn drop_space(&mut self, n: usize) {
        let space = self.spaces.swap_remove(n);
        for (&page, mapped) in &space.pages {
            self.writers.forget(space.id, page, *mapped);
        }
        self.active = None;
    }

    /// Drops the space that was used longest ago, but not the active one. False if there is no other.
    fn drop_oldest(&mut self) -> bool {
        let others = (0..self.spaces.len()).filter(|&n| self.active != Some(n));
        let Some(oldest) = others.min_by_key(|&n| self.spaces[n].used_at) else { return false };
        let active = self.active.map(|n| self.spaces[n].id);
        self.drop_space(oldest);
        self.active = self.spaces.iter().position(|space| Some(space.id) == active);
        true
    }

    /// Drops all spaces.
    pub fn drop_all(&mut self) {
        while !self.spaces.is_empty() {
            self.drop_space(0);
        }
    }

    /// Drops the active space.
    pub fn drop_active(&mut self) {
        if let Some(n) = self.active.take() {
            self.drop_space(n);
        }
    }

    /// The linear address that a host address of the active space's windows stands for.
    #[must_use]
    pub fn linear(&self, host: u64) -> Option<u64> {
        let space = &self.spaces[self.active?];
        space.regions.iter().find_map(|(region, r)| {
            let offset = host.wrapping_sub(r.window().addr() as u64);
            (offset < REGION_BYTES as u64).then(|| host.wrapping_sub(r.delta(*region)))
        })
    }

    /// Whether a page of the active space is mapped, for writing if asked.
    #[must_use]
    pub fn has(&self, page: u64, write: bool) -> bool {
        self.active
            .and_then(|n| self.spaces[n].pages.get(&page))
            .is_some_and(|mapped| mapped.writable || !write)
    }

    /// The guest page that a page of the active space leads to, and whether it may be written.
    #[must_use]
    pub fn mapped(&self, page: u64) -> Option<(u64, bool)> {
        let mapped = self.spaces[self.active?].pages.get(&page)?;
        Some((mapped.gpn, mapped.writable))
    }

    /// Makes sure that the active space has a window for the region of `la`; its delta if it is new.
    ///
    /// # Errors
    /// No room for one.
    pub fn open_region(&mut self, la: u64) -> Result<Option<Delta>, Full> {
        let Some(n) = self.active else { return Err(Full) };
        let space = &mut self.spaces[n];
        if space.window(la).is_some() {
            return Ok(None);
        }
        if space.regions.len() >= REGIONS_MAX {
            return Err(Full);
        }
        let reservation = Reservation::new().map_err(|_| Full)?;
        let region = (la >> 32) as u16;
        let delta = Delta { region, delta: reservation.delta(region) };
        space.regions.push((region, reservation));
        Ok(Some(delta))
    }

    /// Maps a run of pages, which lies in one region with a window, into the active space. `filled`: the guest has probably
    /// given all of it contents, so the host has it, or will need to.
    ///
    /// # Errors
    /// The budget is used up, or the host refuses.
    pub fn map(&mut self, run: Run, filled: bool) -> Result<(), Full> {
        while MAPPED.load(Ordering::Relaxed) >= self.budget {
            if !self.drop_oldest() {
                return Err(Full);
            }
        }
        let Some(n) = self.active else { return Err(Full) };
        let la = run.page << 12;
        let window = self.spaces[n].window(la).ok_or(Full)?;
        let at = window.wrapping_add((la & (REGION_BYTES as u64 - 1)) as usize);
        let layout = self.ram.layout();
        let file_page = layout.file_page(run.gpn).ok_or(Full)? as u64;
        let write = if run.writable { ProtFlags::WRITE } else { ProtFlags::empty() };
        // A page that faulted is touched at once; of a kernel's large one most may never be.
        let at_once = filled || run.count <= POPULATE_MAX;
        let populate = if at_once { MapFlags::POPULATE } else { MapFlags::empty() };
        // SAFETY: within a window of ours, whose addresses only translated code uses.
        unsafe {
            mmap(
                at.cast(),
                (run.count * PAGE_SIZE) as usize,
                ProtFlags::READ | write,
                MapFlags::SHARED | MapFlags::FIXED | populate,
                self.ram.file(),
                file_page << 12,
            )
        }
        .map_err(|_| Full)?;
        let space = &mut self.spaces[n];
        let (id, writers) = (space.id, &mut self.writers);
        space.change(run.page, run.count, |pages| {
            for i in 0..run.count {
                let page = Page { gpn: run.gpn + i, writable: run.writable };
                if let Some(old) = pages.insert(run.page + i, page) {
                    writers.forget(id, run.page + i, old);
                }
                writers.note(id, run.page + i, page);
            }
        });
        Ok(())
    }

    /// Drops pages of an era's space: `count` from `first` on, a power of two and a multiple of it.
    pub fn unmap(&mut self, era: u64, first: u64, count: u64) {
        let Self { spaces, writers, .. } = self;
        if let Some(space) = spaces.iter_mut().find(|space| space.era == era) {
            Self::unmap_in(space, writers, first, count);
        }
    }

    /// The same in the spaces of all eras but `kept`.
    pub fn unmap_but(&mut self, kept: Option<u64>, first: u64, count: u64) {
        let Self { spaces, writers, .. } = self;
        for space in spaces.iter_mut().filter(|space| Some(space.era) != kept) {
            Self::unmap_in(space, writers, first, count);
        }
    }

    fn unmap_in(space: &mut Space, writers: &mut Writers, first: u64, count: u64) {
        if (first..first + count).all(|page| !space.pages.contains_key(&page)) {
            return;
        }
        let id = space.id;
        space.change(first, count, |pages| {
            for page in first..first + count {
                if let Some(old) = pages.remove(&page) {
                    writers.forget(id, page, old);
                }
            }
        });
        let la = first << 12;
        let Some(window) = space.window(la) else { return };
        let at = window.wrapping_add((la & (REGION_BYTES as u64 - 1)) as usize);
        let len = (count * PAGE_SIZE) as usize;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: pages of a window of ours; what was mapped there is no longer used.
        let unmapped = unsafe { mmap_anonymous(at.cast(), len, ProtFlags::empty(), flags) };
        assert!(unmapped.is_ok(), "the host does not take back pages of a window");
    }

    /// Lets a guest page be written through no window any more: it is watched for code now.
    pub fn forbid_writes(&mut self, gpn: u64) {
        for (id, page) in self.writers.0.remove(&gpn).unwrap_or_default() {
            let Some(space) = self.spaces.iter_mut().find(|space| space.id == id) else {
                continue;
            };
            let Some(window) = space.window(page << 12) else { continue };
            let Some(&mapped) = space.pages.get(&page) else { continue };
            if mapped.gpn != gpn || !mapped.writable {
                continue;
            }
            space.change(page, 1, |pages| {
                pages.insert(page, Page { writable: false, ..mapped });
            });
            let at = window.wrapping_add(((page << 12) & (REGION_BYTES as u64 - 1)) as usize);
            // SAFETY: a page of a window of ours, mapped.
            let protected = unsafe { mprotect(at.cast(), PAGE_SIZE as usize, MprotectFlags::READ) };
            assert!(protected.is_ok(), "the host does not protect a page of a window");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mappings are counted for the whole process.
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

    /// Mappings that the host has between two addresses.
    fn mappings_between(start: usize, end: usize) -> usize {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("a process has mappings");
        let starts =
            maps.lines().filter_map(|line| usize::from_str_radix(line.split('-').next()?, 16).ok());
        starts.filter(|at| (start..end).contains(at)).count()
    }

    /// A shadow whose one space has pages mapped, taken out and forbidden to be written.
    #[test]
    fn mappings_are_counted_as_the_host_makes_them() {
        let _alone = ALONE.lock();
        let ram = GuestRam::new(64 << 20).expect("some memory");
        let mut shadow = Shadow::new(ram).expect("room");
        shadow.create(1, 0, 0);
        let base = 0x5_0000_0000u64 >> 12;
        shadow.open_region(base << 12).expect("room");
        let window = shadow.spaces[0].regions[0].1.window().addr();
        let host = || mappings_between(window + 1, window + REGION_BYTES);
        // Numbers of no quality will do; the same at every run.
        let mut seed = 1u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        let none = host();
        for round in 0..2000 {
            let page = base + 1 + next(200);
            match next(4) {
                0 => shadow.unmap(1, page & !3, 4),
                1 => shadow.forbid_writes(0x1000 + next(300)),
                _ => {
                    // Often what the neighbours go on to.
                    let gpn = if next(2) == 0 { 0x1000 + page - base } else { 0x1000 + next(300) };
                    let run = Run { page, gpn, count: 1 + next(5), writable: next(2) == 0 };
                    shadow.map(run, false).expect("there is room");
                }
            }
            assert_eq!(shadow.spaces[0].mappings, host() - none, "round {round}");
            for (page, mapped) in &shadow.spaces[0].pages {
                let noted = shadow.writers.0.get(&mapped.gpn).map_or(0, |writers| {
                    writers.iter().filter(|&&writer| writer == (0, *page)).count()
                });
                assert_eq!(noted, usize::from(mapped.writable));
            }
        }
        shadow.drop_active();
        assert!(shadow.writers.0.is_empty());
    }

    #[test]
    fn a_global_page_goes_from_all_spaces() {
        let _alone = ALONE.lock();
        let ram = GuestRam::new(64 << 20).expect("some memory");
        let mut shadow = Shadow::new(ram).expect("room");
        for era in 1..=3 {
            shadow.create(era, era, 0);
            shadow.open_region(0x1000).expect("room");
            shadow.map(Run { page: 5, gpn: 7, count: 2, writable: true }, false).expect("room");
        }
        shadow.unmap_but(Some(3), 5, 1);
        let mut has = |era, page| {
            shadow.switch(era, 0);
            shadow.has(page, true)
        };
        assert_eq!([1, 2, 3].map(|era| has(era, 5)), [false, false, true]);
        assert_eq!([1, 2, 3].map(|era| has(era, 6)), [true; 3]);
        shadow.unmap_but(None, 5, 1);
        assert!(!shadow.has(5, false));
        shadow.drop_all();
        assert!(shadow.writers.0.is_empty() && shadow.active_era().is_none());
    }

    #[test]
    fn the_space_used_longest_ago_makes_room() {
        let _alone = ALONE.lock();
        let ram = GuestRam::new(64 << 20).expect("some memory");
        let mut shadow = Shadow::new(ram).expect("room");
        shadow.budget = MAPPED.load(Ordering::Relaxed) + 16;
        let map = |shadow: &mut Shadow, page: u64| {
            shadow.open_region(0x1000).expect("room");
            shadow.map(Run { page, gpn: page, count: 1, writable: true }, false)
        };
        for era in 1..=2 {
            shadow.create(era, era, 0);
            for n in 0..4 {
                assert_eq!(map(&mut shadow, 10 + 2 * n), Ok(()));
            }
        }
        assert_eq!(map(&mut shadow, 100), Ok(()), "at the expense of era 1");
        assert_eq!(shadow.active_era(), Some(2));
        assert!(shadow.has(10, true) && shadow.has(100, true));
        shadow.switch(1, 0);
        assert_eq!(shadow.active_era(), None);
        shadow.switch(2, 0);
        let full = (0..100).find(|n| map(&mut shadow, 200 + 2 * n).is_err());
        assert!(full.is_some(), "nothing is left to drop");
    }

    /// A space of three runs of pages is woken after some of them have changed.
    #[test]
    fn a_space_is_woken_with_what_is_still_so() {
        let _alone = ALONE.lock();
        let ram = GuestRam::new(64 << 20).expect("some memory");
        let mut shadow = Shadow::new(ram).expect("room");
        let owner = 0x1000;
        shadow.create(1, owner, 100);
        shadow.open_region(0x1000).expect("room");
        shadow.map(Run { page: 5, gpn: 7, count: 4, writable: true }, false).expect("room");
        shadow.map(Run { page: 20, gpn: 70, count: 2, writable: false }, false).expect("room");
        let deltas: Vec<_> = shadow.active_deltas().collect();
        assert_eq!(shadow.asleep(owner), None, "it is active");
        shadow.switch(2, 130);
        assert_eq!(shadow.active_era(), None);
        assert_eq!(shadow.asleep(owner), Some(Asleep { pages: 6, worked: 30 }));
        assert!(!shadow.wake(2, owner + 0x1000, 140, |_, _| true), "not another's");
        let mut seen = Vec::new();
        let woken = shadow.wake(2, owner, 150, |page, mapped| {
            seen.push((page, mapped.gpn, mapped.writable));
            !matches!(page, 6 | 7 | 21)
        });
        seen.sort_unstable();
        let pages = [(5, 7), (6, 8), (7, 9), (8, 10)].map(|(page, gpn)| (page, gpn, true));
        assert_eq!(seen[..4], pages);
        assert_eq!(seen[4..], [(20, 70, false), (21, 71, false)]);
        assert!(woken && shadow.active_era() == Some(2));
        let kept = (0..30).filter(|&page| shadow.has(page, false));
        assert_eq!(kept.collect::<Vec<_>>(), [5, 8, 20]);
        assert_eq!(shadow.active_deltas().collect::<Vec<_>>(), deltas);
        // A page that is watched from now on can't be written in it either.
        shadow.forbid_writes(10);
        assert!(shadow.has(8, false) && !shadow.has(8, true));
        shadow.switch(1, 160);
        assert_eq!(shadow.active_era(), None, "era 1 is over");
        assert_eq!(shadow.asleep(owner), Some(Asleep { pages: 3, worked: 10 }));
        assert!(!shadow.wake(3, owner, 170, |page, _| page == 5), "most is gone");
        assert!(shadow.active_era().is_none() && shadow.asleep(owner).is_none());
        assert!(shadow.writers.0.is_empty());
    }
}
