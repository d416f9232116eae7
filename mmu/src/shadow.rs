//! Shadow windows: guest linear memory in the host's own page tables.
//!
//! Problem: looking a page up in software at every access costs several times what most accesses do.
//! Scheme: guest RAM is a file, so a guest page can be mapped once more, where the host's MMU finds it by
//! itself. A *space* is what is mapped for one era of one PCID (see [`crate::tlb`]), that is, a TLB
//! whose entries are host mappings: the guest's flush makes a new era, and the old era's space is
//! never used again. A space has a *window* of 4 GiB of host addresses for each 4 GiB region of guest
//! addresses in use, with as much room without access on both sides: a base register plus any 32-bit
//! displacement stays in there, and what isn't mapped faults.
//!
//! Invariants: a page is mapped only as the TLB could have it: accessed bits set, for writing only if dirty
//! and not watched for code; the mappings in all spaces stay below a budget, since the host has a limit
//! for each process. One per vCPU, on its thread.
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
/// Pages of a run that the host is asked to find at once.
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
#[derive(Clone, Copy, Debug)]
struct Page {
    gpn: u64,
    writable: bool,
}

/// What is mapped for one era.
#[derive(Debug)]
struct Space {
    era: u64,
    regions: Vec<(u16, Reservation)>,
    /// By linear page number.
    pages: PageMap<u64, Page>,
    /// Mappings at most: a run is one, and a page taken out of a run makes two more.
    mappings: usize,
    used_at: u64,
}

impl Drop for Space {
    fn drop(&mut self) {
        MAPPED.fetch_sub(self.mappings, Ordering::Relaxed);
    }
}

impl Space {
    fn add_mappings(&mut self, n: usize) {
        self.mappings += n;
        MAPPED.fetch_add(n, Ordering::Relaxed);
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

/// See the module's head.
#[derive(Debug)]
pub struct Shadow {
    ram: Arc<GuestRam>,
    spaces: Vec<Space>,
    active: Option<usize>,
    budget: usize,
    /// Which spaces (by era) and linear pages may map a guest page for writing.
    writers: PageMap<u64, Vec<(u64, u64)>>,
    nowhere: Reservation,
    clock: u64,
}

// SAFETY: the reservations are this value's alone.
unsafe impl Send for Shadow {}

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
            writers: PageMap::default(),
            nowhere: Reservation::new()?,
            clock: 0,
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

    /// Makes the space of an era active, if there is one.
    pub fn switch(&mut self, era: u64) {
        self.clock += 1;
        self.active = self.spaces.iter().position(|space| space.era == era);
        if let Some(n) = self.active {
            self.spaces[n].used_at = self.clock;
        }
    }

    /// Makes an empty space for an era and activates it.
    pub fn create(&mut self, era: u64) {
        if self.spaces.len() >= SPACES_MAX
            && let Some(oldest) = (0..self.spaces.len()).min_by_key(|&n| self.spaces[n].used_at)
        {
            self.drop_space(oldest);
        }
        self.clock += 1;
        let used_at = self.clock;
        self.spaces.push(Space {
            era,
            regions: Vec::new(),
            pages: PageMap::default(),
            mappings: 0,
            used_at,
        });
        self.active = Some(self.spaces.len() - 1);
    }

    fn drop_space(&mut self, n: usize) {
        drop(self.spaces.swap_remove(n));
        if self.spaces.is_empty() {
            self.writers.clear();
        }
        self.active = None;
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

    /// Maps a run of pages, which lies in one region with a window, into the active space.
    ///
    /// # Errors
    /// The budget is used up, or the host refuses.
    pub fn map(&mut self, run: Run) -> Result<(), Full> {
        let Some(n) = self.active else { return Err(Full) };
        if MAPPED.load(Ordering::Relaxed) >= self.budget {
            return Err(Full);
        }
        let la = run.page << 12;
        let window = self.spaces[n].window(la).ok_or(Full)?;
        let at = window.wrapping_add((la & (REGION_BYTES as u64 - 1)) as usize);
        let layout = self.ram.layout();
        let file_page = layout.file_page(run.gpn).ok_or(Full)? as u64;
        let write = if run.writable { ProtFlags::WRITE } else { ProtFlags::empty() };
        // A page that faulted is touched at once; of a large one most may never be.
        let populate =
            if run.count <= POPULATE_MAX { MapFlags::POPULATE } else { MapFlags::empty() };
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
        space.add_mappings(if run.count == 1 { 2 } else { 1 });
        for i in 0..run.count {
            let page = Page { gpn: run.gpn + i, writable: run.writable };
            space.pages.insert(run.page + i, page);
            if run.writable {
                let writers = self.writers.entry(run.gpn + i).or_default();
                let writer = (space.era, run.page + i);
                if !writers.contains(&writer) {
                    writers.push(writer);
                }
            }
        }
        Ok(())
    }

    /// Drops pages of an era's space: `count` from `first` on, a power of two and a multiple of it.
    pub fn unmap(&mut self, era: u64, first: u64, count: u64) {
        let Some(space) = self.spaces.iter_mut().find(|space| space.era == era) else { return };
        let known = space.pages.len();
        for page in first..first + count {
            space.pages.remove(&page);
        }
        if space.pages.len() == known {
            return;
        }
        space.add_mappings(2);
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
        for (era, page) in self.writers.remove(&gpn).unwrap_or_default() {
            let Some(space) = self.spaces.iter_mut().find(|space| space.era == era) else {
                continue;
            };
            let Some(window) = space.window(page << 12) else { continue };
            let Some(mapped) = space.pages.get_mut(&page) else { continue };
            if mapped.gpn != gpn || !std::mem::replace(&mut mapped.writable, false) {
                continue;
            }
            space.mappings += 2;
            MAPPED.fetch_add(2, Ordering::Relaxed);
            let at = window.wrapping_add(((page << 12) & (REGION_BYTES as u64 - 1)) as usize);
            // SAFETY: a page of a window of ours, mapped.
            let protected = unsafe { mprotect(at.cast(), PAGE_SIZE as usize, MprotectFlags::READ) };
            assert!(protected.is_ok(), "the host does not protect a page of a window");
        }
    }

    /// The same for all pages: another vCPU watches one.
    pub fn forbid_all_writes(&mut self) {
        let watched: Vec<u64> = self.writers.keys().copied().collect();
        for gpn in watched {
            self.forbid_writes(gpn);
        }
    }
}
