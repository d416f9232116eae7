//! Guest RAM: one memfd, mapped linearly for walks, devices and the interpreter.
//!
//! Problem: vCPUs, page walks and devices on several threads share the guest's memory; later, shadow
//! windows map the same pages elsewhere. Scheme: one sealed memfd holds all RAM without gaps. The
//! guest sees its first 3 GiB at address 0 and the rest from 4 GiB, so that the last gigabyte below
//! 4 GiB is free for PCI, APICs and firmware (the *PCI hole*). Each of the two parts is one mapping. The
//! firmware's ROM, if there is one, ends at 4 GiB; it stands in the same file behind RAM. What processors
//! see between 0xa0000 and 1 MiB is switched at run time ([`crate::view`]). A display's memory is a mapping
//! of its own, which processors find wherever its base register says, as plain memory that holds no cached
//! code.
//!
//! Invariants: the file never changes size (sealed), so a pointer into a mapping stays good while the
//! `GuestRam` lives; guest memory is only accessed through raw pointers, atomics or volatile
//! accesses, never through references, since the guest changes it at any time. Any thread.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, memfd_create};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};
use xenolith_cpu::Gpa;

use crate::code::{CodeBitmap, CodeMap};
use crate::view::{SWITCHED, Source, View, Views};

/// Smallest and largest guest, in bytes.
pub const RAM_BYTES_MIN: u64 = 64 << 20;
pub const RAM_BYTES_MAX: u64 = 64 << 30;
/// RAM comes in multiples of this many bytes.
pub const RAM_BYTES_STEP: u64 = 1 << 20;
/// Where the PCI hole begins and ends: RAM past 3 GiB continues at 4 GiB.
pub const HOLE_START: u64 = 3 << 30;
pub const HOLE_END: u64 = 4 << 30;
/// A firmware ROM comes in multiples of this many bytes, up to so many.
pub const ROM_BYTES_STEP: u64 = 64 << 10;
pub const ROM_BYTES_MAX: u64 = 8 << 20;

/// Guest memory as devices and loaders see it.
pub type DeviceMemory = GuestMemoryMmap<CodeBitmap>;

type Region = vm_memory::MmapRegion<CodeBitmap>;

/// Why there is no RAM.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    #[error("guest memory of {bytes} bytes is too small: the least is 64 MiB")]
    TooSmall { bytes: u64 },
    #[error("guest memory of {bytes} bytes is too large: the most is 64 GiB")]
    TooLarge { bytes: u64 },
    #[error("guest memory of {bytes} bytes is not a whole number of MiB")]
    NotWholeMib { bytes: u64 },
    #[error(
        "a firmware of {bytes} bytes: it must be a whole number of {} KiB, {} MiB at most",
        ROM_BYTES_STEP >> 10,
        ROM_BYTES_MAX >> 20
    )]
    RomSize { bytes: u64 },
    #[error("the host does not take the firmware into memory: {0}")]
    Rom(std::io::Error),
    #[error("the host gives no memory file for the guest's memory: {0}")]
    Create(std::io::Error),
    #[error("the host does not map the guest's memory of {bytes} bytes: {error}")]
    Map { bytes: u64, error: MmapRegionError },
}

/// Where in guest physical space RAM is, and where in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes at guest physical 0; the RAM file starts with them.
    pub low_bytes: u64,
    /// Bytes at guest physical 4 GiB.
    pub high_bytes: u64,
    /// Bytes of ROM that end at 4 GiB; in the file they come last.
    pub rom_bytes: u64,
}

impl Layout {
    /// The layout of `bytes` of RAM, without a ROM.
    #[must_use]
    pub fn of(bytes: u64) -> Self {
        let low_bytes = bytes.min(HOLE_START);
        Self { low_bytes, high_bytes: bytes - low_bytes, rom_bytes: 0 }
    }

    fn ram_bytes(&self) -> u64 {
        self.low_bytes + self.high_bytes
    }

    /// Pages of RAM and ROM in all.
    #[must_use]
    pub fn pages(&self) -> usize {
        ((self.ram_bytes() + self.rom_bytes) >> 12) as usize
    }

    /// Page of the file behind a guest page. In [`SWITCHED`] it is the RAM's, whatever processors see.
    #[must_use]
    #[inline(always)]
    pub fn file_page(&self, gpn: u64) -> Option<usize> {
        if gpn < self.low_bytes >> 12 {
            return Some(gpn as usize);
        }
        let high = gpn.wrapping_sub(HOLE_END >> 12);
        if high < self.high_bytes >> 12 {
            return Some((high + (self.low_bytes >> 12)) as usize);
        }
        let rom = gpn.wrapping_sub((HOLE_END - self.rom_bytes) >> 12);
        (rom < self.rom_bytes >> 12).then(|| (rom + (self.ram_bytes() >> 12)) as usize)
    }

    /// The guest page of a page of the file.
    #[must_use]
    pub fn guest_page(&self, file_page: u64) -> u64 {
        let (low, ram) = (self.low_bytes >> 12, self.ram_bytes() >> 12);
        if file_page < low {
            file_page
        } else if file_page < ram {
            file_page - low + (HOLE_END >> 12)
        } else {
            file_page - ram + ((HOLE_END - self.rom_bytes) >> 12)
        }
    }
}

/// The guest's memory.
#[derive(Debug)]
pub struct GuestRam {
    layout: Layout,
    low: *mut u8,
    /// Dangling if there is no RAM above 4 GiB.
    high: *mut u8,
    /// Dangling if there is no ROM.
    rom: *mut u8,
    views: Views,
    code: Arc<CodeMap>,
    file: Arc<File>,
    /// Owns the two mappings of RAM.
    memory: Arc<DeviceMemory>,
    /// Owns the ROM's mapping.
    _rom: Option<Region>,
    video: VideoMemory,
}

/// Memory of a display that processors may find anywhere.
#[derive(Debug)]
struct VideoMemory {
    /// Where it is, or [`NOWHERE`].
    base: AtomicU64,
    bytes: u64,
    /// Dangling if there are no bytes.
    host: *mut u8,
    _region: Option<vm_memory::MmapRegion>,
}

/// No memory reaches up to here.
const NOWHERE: u64 = u64::MAX;
/// A display's memory, at most.
pub const VIDEO_BYTES_MAX: u64 = 256 << 20;

impl VideoMemory {
    fn new(bytes: u64) -> Result<Self, RamError> {
        if bytes == 0 {
            let base = AtomicU64::new(NOWHERE);
            return Ok(Self { base, bytes, host: std::ptr::null_mut(), _region: None });
        }
        let region = MmapRegionBuilder::new(bytes.min(VIDEO_BYTES_MAX) as usize)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .map_err(|error| RamError::Map { bytes, error })?;
        keep_out_of_core_dumps(region.as_ptr(), region.size());
        Ok(Self {
            base: AtomicU64::new(NOWHERE),
            bytes: region.size() as u64,
            host: region.as_ptr(),
            _region: Some(region),
        })
    }

    fn at(&self, gpa: u64, len: usize) -> Option<*mut u8> {
        let offset = gpa.checked_sub(self.base.load(Ordering::Relaxed))?;
        (offset <= self.bytes && len as u64 <= self.bytes - offset)
            .then(|| self.host.wrapping_add(offset as usize))
    }
}

// SAFETY: the pointers lead into shared mappings that `memory` keeps alive, and this type hands out
// raw pointers only: whoever uses one answers for its accesses.
unsafe impl Send for GuestRam {}
// SAFETY: as above; all fields are immutable or synchronise themselves.
unsafe impl Sync for GuestRam {}

impl GuestRam {
    /// `size_bytes` of zeroed RAM. The host's memory is taken page by page when it is touched.
    ///
    /// # Errors
    /// A size that isn't a whole number of MiB from 64 MiB to 64 GiB, or the host refuses.
    pub fn new(size_bytes: u64) -> Result<Arc<Self>, RamError> {
        Self::with_rom(size_bytes, &[])
    }

    /// The same with a firmware in ROM, which ends at 4 GiB. Nothing shows at 1 MiB until
    /// [`Self::set_view`] says so.
    ///
    /// # Errors
    /// The same, and a firmware whose size isn't a ROM's.
    pub fn with_rom(size_bytes: u64, rom: &[u8]) -> Result<Arc<Self>, RamError> {
        Self::with_video(size_bytes, rom, 0)
    }

    /// The same with `video_bytes` of a display's memory, which is nowhere until [`Self::place_video`].
    ///
    /// # Errors
    /// The same.
    pub fn with_video(
        size_bytes: u64,
        rom: &[u8],
        video_bytes: u64,
    ) -> Result<Arc<Self>, RamError> {
        let bytes = size_bytes;
        if bytes < RAM_BYTES_MIN {
            return Err(RamError::TooSmall { bytes });
        }
        if bytes > RAM_BYTES_MAX {
            return Err(RamError::TooLarge { bytes });
        }
        if !bytes.is_multiple_of(RAM_BYTES_STEP) {
            return Err(RamError::NotWholeMib { bytes });
        }
        let rom_bytes = rom.len() as u64;
        if rom_bytes > ROM_BYTES_MAX || !rom_bytes.is_multiple_of(ROM_BYTES_STEP) {
            return Err(RamError::RomSize { bytes: rom_bytes });
        }
        let file = Arc::new(ram_file(bytes + rom_bytes).map_err(RamError::Create)?);
        file.write_all_at(rom, bytes).map_err(RamError::Rom)?;
        let layout = Layout { rom_bytes, ..Layout::of(bytes) };
        let code = Arc::new(CodeMap::new(layout));

        let map_file = |file_offset: u64, len: u64, prot: i32| {
            let region = MmapRegionBuilder::new_with_bitmap(
                len as usize,
                CodeBitmap::new(Arc::clone(&code), file_offset),
            )
            .with_mmap_prot(prot)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(Arc::clone(&file), file_offset))
            .build()
            .map_err(|error| RamError::Map { bytes, error })?;
            keep_out_of_core_dumps(region.as_ptr(), region.size());
            Ok::<Region, RamError>(region)
        };
        let map = |base: u64, file_offset: u64, len: u64| {
            let region = map_file(file_offset, len, libc::PROT_READ | libc::PROT_WRITE)?;
            let host = region.as_ptr();
            let region = GuestRegionMmap::new(region, GuestAddress(base))
                .expect("the highest RAM address is 65 GiB, far from overflow");
            Ok((host, region))
        };
        let (low, low_region) = map(0, 0, layout.low_bytes)?;
        let mut regions = vec![low_region];
        let mut high = std::ptr::null_mut();
        if layout.high_bytes > 0 {
            let (host, region) = map(HOLE_END, layout.low_bytes, layout.high_bytes)?;
            high = host;
            regions.push(region);
        }
        let memory = DeviceMemory::from_regions(regions)
            .expect("the regions are in order and the hole lies between them");
        let rom = match rom_bytes {
            0 => None,
            len => Some(map_file(bytes, len, libc::PROT_READ)?),
        };
        Ok(Arc::new(Self {
            layout,
            low,
            high,
            rom: rom.as_ref().map_or(std::ptr::null_mut(), Region::as_ptr),
            views: Views::default(),
            code,
            file,
            memory: Arc::new(memory),
            _rom: rom,
            video: VideoMemory::new(video_bytes)?,
        }))
    }

    /// Size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.layout.low_bytes + self.layout.high_bytes
    }

    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// For loaders and devices: writes through it invalidate cached code.
    #[must_use]
    pub fn memory(&self) -> &DeviceMemory {
        &self.memory
    }

    /// The same, to keep. It keeps the RAM alive too.
    #[must_use]
    pub fn memory_arc(&self) -> Arc<DeviceMemory> {
        Arc::clone(&self.memory)
    }

    /// Gives the host back what stands behind `bytes` bytes of RAM from `gpa` on, whole pages all: they read as
    /// zeroes wherever they are mapped, until somebody stores there. What isn't RAM is left alone, and so is
    /// everything if the host refuses.
    pub fn give_back(&self, gpa: Gpa, bytes: u64) {
        for (_, offset, len) in self.in_file(gpa, bytes) {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(&*self.file, flags, offset, len) {
                // A store like a device's: code that stood there is gone.
                Ok(()) => self.code.stored_file_range(offset, len),
                Err(error) => tracing::debug!("the host takes no memory back: {error}"),
            }
        }
    }

    /// Copies `bytes` to `gpa`, as a loader does before the guest runs. Through the file: pages that are written whole
    /// needn't be zeroed first, and aren't mapped one by one.
    ///
    /// # Errors
    /// Not all of it is RAM, or the host has no memory; a part may have been copied.
    pub fn load(&self, gpa: Gpa, bytes: &[u8]) -> std::io::Result<()> {
        let mut loaded = 0;
        for (start, offset, len) in self.in_file(gpa, bytes.len() as u64) {
            let from = (start - gpa.0) as usize;
            self.file.write_all_at(&bytes[from..from + len as usize], offset)?;
            self.code.stored_file_range(offset, len);
            loaded += len;
        }
        if loaded != bytes.len() as u64 {
            let message = format!("{:#x} bytes at {:#x} aren't all RAM", bytes.len(), gpa.0);
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, message));
        }
        Ok(())
    }

    /// The RAM among `bytes` bytes from `gpa` on: where it begins, where that is in the file, and how much it is.
    fn in_file(&self, gpa: Gpa, bytes: u64) -> impl Iterator<Item = (u64, u64, u64)> {
        let end = gpa.0.saturating_add(bytes);
        let Layout { low_bytes, high_bytes, .. } = self.layout;
        let parts = [(0, low_bytes, 0), (HOLE_END, high_bytes, low_bytes)];
        parts.into_iter().filter_map(move |(base, len, file_offset)| {
            let (first, last) = (gpa.0.max(base), end.min(base + len));
            (first < last).then(|| (first, first - base + file_offset, last - first))
        })
    }

    /// The file that holds all RAM, laid out as [`Layout::file_page`] says.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The code versions of all pages.
    #[must_use]
    pub fn code(&self) -> &Arc<CodeMap> {
        &self.code
    }

    /// Host address of `len` bytes at `gpa`, if a processor that reads there meets memory and all of it is
    /// contiguous. A store through it is allowed where [`Self::may_write`] says so, and must be followed
    /// by [`CodeMap::stored`] for each page touched.
    #[must_use]
    #[inline(always)]
    pub fn host_ptr(&self, gpa: Gpa, len: usize) -> Option<*mut u8> {
        let low = self.layout.low_bytes;
        if gpa.0 <= low && len as u64 <= low - gpa.0 {
            if gpa.0 < SWITCHED.end && gpa.0 + len as u64 > SWITCHED.start {
                return self.switched_ptr(gpa.0, len);
            }
            return Some(self.low.wrapping_add(gpa.0 as usize));
        }
        let high = self.layout.high_bytes;
        if let Some(offset) = gpa.0.checked_sub(HOLE_END) {
            let fits = high != 0 && offset <= high && len as u64 <= high - offset;
            if fits {
                return Some(self.high.wrapping_add(offset as usize));
            }
        }
        self.rom_ptr(HOLE_END, gpa.0, len).or_else(|| self.video.at(gpa.0, len))
    }

    /// The display's memory and its length. It lives as long as this does.
    #[must_use]
    pub fn video(&self) -> (*mut u8, usize) {
        (self.video.host, self.video.bytes as usize)
    }

    /// Where the display's memory shows, if it does.
    #[must_use]
    pub fn video_range(&self) -> Option<Range<u64>> {
        let base = self.video.base.load(Ordering::Relaxed);
        (base != NOWHERE).then(|| base..base + self.video.bytes)
    }

    /// Shows the display's memory at `base`, where no RAM or ROM is, or with `None` nowhere. True if that
    /// is a change: then every vCPU must flush its TLB before it goes on.
    pub fn place_video(&self, base: Option<u64>) -> bool {
        let base = base.unwrap_or(NOWHERE);
        self.video.base.swap(base, Ordering::Relaxed) != base
    }

    /// The ROM's bytes at `gpa` when its end is at `end`.
    fn rom_ptr(&self, end: u64, gpa: u64, len: usize) -> Option<*mut u8> {
        let back = end.checked_sub(gpa)?;
        let rom = self.layout.rom_bytes;
        (back <= rom && len as u64 <= back).then(|| self.rom.wrapping_add((rom - back) as usize))
    }

    /// [`Self::host_ptr`] where a part of the range is switched.
    #[cold]
    fn switched_ptr(&self, gpa: u64, len: usize) -> Option<*mut u8> {
        let end = gpa + len as u64;
        let first = gpa.max(SWITCHED.start) & !0xfff;
        let read = self.views.of(first)?.read;
        let mut pages = (first..end.min(SWITCHED.end)).step_by(0x1000);
        if !pages.all(|page| self.views.of(page).is_some_and(|view| view.read == read)) {
            return None;
        }
        match read {
            Source::Ram => Some(self.low.wrapping_add(gpa as usize)),
            Source::Rom if gpa >= SWITCHED.start => self.rom_ptr(SWITCHED.end, gpa, len),
            Source::Rom | Source::Bus => None,
        }
    }

    /// What a processor meets at a page: `None` where nothing is switched.
    #[must_use]
    pub fn view(&self, gpa: Gpa) -> Option<View> {
        self.views.of(gpa.0)
    }

    /// Whether a processor's stores to the page of `gpa` may go where [`Self::host_ptr`] says.
    #[must_use]
    #[inline]
    pub fn may_write(&self, gpa: Gpa) -> bool {
        let is_rom = (HOLE_END - self.layout.rom_bytes..HOLE_END).contains(&gpa.0);
        match self.views.of(gpa.0) {
            Some(view) => view.read == Source::Ram && view.write,
            None => !is_rom,
        }
    }

    /// Whether the page of `gpa` is RAM whatever the chip set's registers say.
    #[must_use]
    pub fn is_plain(&self, gpa: Gpa) -> bool {
        self.views.of(gpa.0).is_none()
            && self.layout.file_page(gpa.gpn()).is_some()
            && self.may_write(gpa)
    }

    /// Switches the pages of `range`, which lies in [`SWITCHED`], to `view`. True if that is a change: then
    /// every vCPU must flush its TLB before it goes on.
    pub fn set_view(&self, range: Range<u64>, view: View) -> bool {
        let mut changed = false;
        for gpa in range.step_by(0x1000) {
            if self.views.set(gpa, view) {
                changed = true;
                // Other bytes stand there now: what was made from the old ones is stale.
                self.code.stored(gpa >> 12);
            }
        }
        changed
    }

    /// Lets processors' address line 20 pass, or ties it to zero. True as for [`Self::set_view`].
    pub fn set_a20(&self, passes: bool) -> bool {
        self.views.set_a20(passes)
    }

    /// The address that reaches memory when a processor issues `gpa`.
    #[must_use]
    #[inline(always)]
    pub fn issue(&self, gpa: u64) -> u64 {
        self.views.issue(gpa)
    }
}

/// A file of `bytes` zeroes that can neither grow nor shrink: no access to it ever raises SIGBUS
/// for lying past its end.
fn ram_file(bytes: u64) -> std::io::Result<File> {
    let fd = memfd_create("xenolith-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let file = File::from(fd);
    file.set_len(bytes)?;
    fcntl_add_seals(file.as_fd(), SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file)
}

/// A crash of ours must not write the guest's secrets, or gigabytes, to disk.
fn keep_out_of_core_dumps(start: *mut u8, len: usize) {
    // SAFETY: the range is a mapping just made; DONTDUMP changes no contents. A refusal is harmless.
    let _ = unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTDUMP) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    use vm_memory::{Bytes, GuestMemoryBackend};

    #[test]
    fn sizes_outside_the_limits_are_refused_in_words() {
        let text = |bytes| GuestRam::new(bytes).expect_err("a refused size").to_string();
        assert!(text(0).contains("too small: the least is 64 MiB"));
        assert!(text((64 << 20) - 1).contains("too small"));
        assert!(text((64 << 30) + (1 << 20)).contains("too large: the most is 64 GiB"));
        assert!(text(u64::MAX).contains("too large"));
        assert!(text((64 << 20) + 4096).contains("whole number of MiB"));
        for bytes in [64 << 20, 65 << 20, 3 << 30, 64 << 30] {
            assert_eq!(GuestRam::new(bytes).expect("an allowed size").size_bytes(), bytes);
        }
    }

    #[test]
    fn ram_has_a_hole_below_four_gib() {
        let ram = GuestRam::new(4 << 30).expect("4 GiB without reserve");
        let at = |gpa, len| ram.host_ptr(Gpa(gpa), len).is_some();
        assert!(at(0, 1) && at(HOLE_START - 8, 8) && at(0, HOLE_START as usize));
        assert!(!at(HOLE_START - 8, 9) && !at(HOLE_START, 1) && !at(HOLE_END - 1, 1));
        assert!(at(HOLE_END, 8) && at((5 << 30) - 8, 8));
        assert!(!at((5 << 30) - 8, 9) && !at(5 << 30, 1) && !at(u64::MAX, 1));
        assert!(!at(0, usize::MAX) && !at(HOLE_END, usize::MAX));
        assert_eq!(ram.memory().num_regions(), 2);
        let layout = ram.layout();
        assert_eq!(layout.file_page((HOLE_START >> 12) - 1), Some((HOLE_START >> 12) as usize - 1));
        assert_eq!(layout.file_page(HOLE_START >> 12), None);
        assert_eq!(layout.file_page(HOLE_END >> 12), Some((HOLE_START >> 12) as usize));
        assert_eq!(layout.file_page(5 << 18), None);
    }

    #[test]
    fn devices_and_vcpus_see_the_same_bytes() {
        let ram = GuestRam::new(4 << 30).expect("4 GiB without reserve");
        for gpa in [0x1234, HOLE_END + 0x1234] {
            ram.memory().write_obj(0xfeed_u16, GuestAddress(gpa)).expect("RAM");
            let host = ram.host_ptr(Gpa(gpa), 2).expect("RAM");
            // SAFETY: two bytes of mapped RAM that nobody else accesses.
            assert_eq!(unsafe { host.cast::<u16>().read_unaligned() }, 0xfeed);
        }
        assert!(ram.memory().write_obj(1_u8, GuestAddress(HOLE_START)).is_err());
    }

    #[test]
    fn dma_into_watched_pages_moves_their_versions() {
        let ram = GuestRam::new(4 << 30).expect("4 GiB without reserve");
        for gpa in [0x5000, HOLE_END + 0x5000] {
            let version = ram.code().watch(gpa >> 12);
            ram.memory().read_obj::<u32>(GuestAddress(gpa)).expect("RAM");
            assert_eq!(ram.code().version(gpa >> 12), version, "a read changed the version");
            ram.memory().write_slice(&[1; 32], GuestAddress(gpa - 16)).expect("RAM");
            assert_ne!(ram.code().version(gpa >> 12), version);
        }
    }

    #[test]
    fn what_is_loaded_is_ram_all_of_it() {
        let ram = GuestRam::new(4 << 30).expect("4 GiB without reserve");
        for gpa in [0x4ff0, HOLE_END + 0x4ff0] {
            let versions = [0, 1].map(|page| ram.code().watch((gpa >> 12) + page));
            ram.load(Gpa(gpa), &[7; 0x20]).expect("RAM");
            let around = [gpa - 1, gpa, gpa + 0x1f, gpa + 0x20].map(|gpa| byte(&ram, gpa));
            assert_eq!(around, [Some(0), Some(7), Some(7), Some(0)]);
            for (page, version) in versions.into_iter().enumerate() {
                assert_ne!(ram.code().version((gpa >> 12) + page as u64), version);
            }
        }
        ram.load(Gpa(HOLE_START - 8), &[1; 8]).expect("the last bytes");
        for gpa in [HOLE_START - 7, HOLE_START, HOLE_END - 1, (5 << 30) - 7, u64::MAX - 3] {
            assert!(ram.load(Gpa(gpa), &[1; 8]).is_err(), "{gpa:#x}");
        }
    }

    fn byte(ram: &GuestRam, gpa: u64) -> Option<u8> {
        // SAFETY: a byte that is mapped, and that nobody else accesses.
        ram.host_ptr(Gpa(gpa), 1).map(|host| unsafe { host.read() })
    }

    #[test]
    fn the_firmware_ends_at_four_gib_and_where_views_show_it() {
        let rom: Vec<u8> = (0..128 << 10).map(|n: u32| (n >> 10) as u8).collect();
        let ram = GuestRam::with_rom(64 << 20, &rom).expect("a ROM of 128 KiB");
        assert_eq!(byte(&ram, HOLE_END - 1), Some(127));
        assert_eq!(byte(&ram, HOLE_END - (128 << 10)), Some(0));
        assert_eq!(byte(&ram, HOLE_END - (128 << 10) - 1), None);
        assert!(!ram.may_write(Gpa(HOLE_END - 1)) && !ram.is_plain(Gpa(HOLE_END - 0x1000)));
        let layout = ram.layout();
        for gpn in [0, 0x3fff, (HOLE_END >> 12) - 1, (HOLE_END >> 12) - 32] {
            let page = layout.file_page(gpn).expect("RAM or ROM");
            assert_eq!(layout.guest_page(page as u64), gpn);
        }
        assert_eq!(layout.file_page((HOLE_END >> 12) - 33), None);

        assert_eq!(byte(&ram, 0xf_ffff), Some(0), "RAM until a view says otherwise");
        assert!(ram.may_write(Gpa(0xf_0000)));
        let version = ram.code().watch(0xf0);
        let rom_view = View { read: Source::Rom, write: false };
        assert!(ram.set_view(0xc_0000..0x10_0000, rom_view));
        assert!(!ram.set_view(0xc_0000..0x10_0000, rom_view), "no change");
        assert_ne!(ram.code().version(0xf0), version, "code of the old bytes is stale");
        assert_eq!((byte(&ram, 0xf_ffff), byte(&ram, 0xe_0000)), (Some(127), Some(0)));
        assert_eq!(byte(&ram, 0xd_ffff), None, "the ROM isn't that large");
        assert!(!ram.may_write(Gpa(0xf_0000)));
        assert_eq!(ram.host_ptr(Gpa(0xb_fff8), 16), None, "two kinds of memory");
        assert!(ram.host_ptr(Gpa(0), 0xc_0000).is_some());
        ram.set_view(0xf_0000..0x10_0000, View { read: Source::Ram, write: false });
        assert_eq!(byte(&ram, 0xf_ffff), Some(0));
        assert!(!ram.may_write(Gpa(0xf_ffff)) && ram.may_write(Gpa(0x10_0000)));
    }

    #[test]
    fn a_displays_memory_is_where_its_base_says() {
        let ram = GuestRam::with_video(64 << 20, &[], 1 << 20).expect("RAM");
        let at = |gpa| ram.host_ptr(Gpa(gpa), 0x1000);
        assert_eq!(at(0xe000_0000), None);
        assert!(ram.place_video(Some(0xe000_0000)) && !ram.place_video(Some(0xe000_0000)));
        let (host, len) = ram.video();
        assert_eq!((at(0xe000_0000), len), (Some(host), 1 << 20));
        assert_eq!(at(0xe00f_f000), Some(host.wrapping_add(0xf_f000)));
        assert_eq!((at(0xe00f_f001), at(0xdfff_ffff)), (None, None));
        assert!(ram.may_write(Gpa(0xe000_0000)) && !ram.is_plain(Gpa(0xe000_0000)));
        // RAM is there first; 4 GiB and more work as well.
        ram.place_video(Some(0));
        assert_ne!(at(0), Some(host));
        ram.place_video(Some(5 << 30));
        assert_eq!(at(5 << 30), Some(host));
        assert!(ram.place_video(None));
        assert_eq!((at(5 << 30), at(u64::MAX - 0xfff)), (None, None));
    }

    #[test]
    fn memory_that_is_given_back_is_zeroes_and_the_hosts() {
        let ram = GuestRam::with_rom(4 << 30, &[0xff; 64 << 10]).expect("4 GiB without reserve");
        let used = || ram.file().metadata().map(|it| it.blocks() * 512).expect("a file");
        let before = used();
        for gpa in [0x20_0000, HOLE_END] {
            ram.memory().write_slice(&[7; 0x4000], GuestAddress(gpa)).expect("RAM");
            let version = ram.code().watch((gpa >> 12) + 1);
            assert_eq!(used() - before, 0x4000);
            ram.give_back(Gpa(gpa + 0x1000), 0x2000);
            assert_eq!(used() - before, 0x2000, "the host has it");
            let bytes = [0, 0xfff, 0x1000, 0x2fff, 0x3000].map(|at| byte(&ram, gpa + at));
            assert_eq!(bytes, [Some(7), Some(7), Some(0), Some(0), Some(7)]);
            assert_ne!(ram.code().version((gpa >> 12) + 1), version, "its code is stale");
            ram.give_back(Gpa(gpa), 0x4000);
        }
        // Over all ends, and where no RAM is.
        ram.memory().write_obj(7_u8, GuestAddress(HOLE_START - 1)).expect("RAM");
        ram.give_back(Gpa(HOLE_START - 0x1000), HOLE_END - HOLE_START);
        ram.give_back(Gpa(u64::MAX - 0xfff), 0x1000);
        ram.give_back(Gpa(HOLE_END - 0x1000), 0x1000);
        ram.give_back(Gpa(5 << 30), 1 << 40);
        assert_eq!(used(), before);
        assert_eq!(byte(&ram, HOLE_START - 1), Some(0));
        assert_eq!(byte(&ram, HOLE_END - 1), Some(0xff), "the firmware stays");
    }

    #[test]
    fn a_firmware_of_another_size_is_refused() {
        for bytes in [1, (64 << 10) - 1, (8 << 20) + (64 << 10)] {
            let error = GuestRam::with_rom(64 << 20, &vec![0; bytes]).expect_err("refused");
            assert!(error.to_string().contains("64 KiB"), "{error}");
        }
    }

    #[test]
    fn line_20_can_be_tied_to_zero() {
        let ram = GuestRam::new(64 << 20).expect("64 MiB");
        assert_eq!(ram.issue(0x31_2345), 0x31_2345);
        assert!(ram.set_a20(false) && !ram.set_a20(false));
        assert_eq!((ram.issue(0x31_2345), ram.issue(0xffff_ffff)), (0x21_2345, 0xffef_ffff));
        assert!(ram.set_a20(true));
        assert_eq!(ram.issue(0x31_2345), 0x31_2345);
    }

    #[test]
    fn memory_outlives_the_ram_object() {
        let memory = GuestRam::new(64 << 20).expect("64 MiB").memory_arc();
        memory.write_obj(7_u8, GuestAddress(0)).expect("RAM");
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0)).expect("RAM"), 7);
    }
}
