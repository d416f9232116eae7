//! Guest RAM: one memfd, mapped linearly for walks, devices and the interpreter.
//!
//! Problem: vCPUs, page walks and devices on several threads share the guest's memory; later, shadow
//! windows map the same pages elsewhere. Scheme: one sealed memfd holds all RAM without gaps. The
//! guest sees its first 3 GiB at address 0 and the rest from 4 GiB, so that the last gigabyte below
//! 4 GiB is free for PCI, APICs and firmware (the *PCI hole*). Each of the two parts is one mapping.
//! ROM would be a third kind of range beside them: addresses outside [`Layout`] are "not RAM" to all
//! users of this module, so adding it touches only [`GuestRam::host_ptr`]'s callers that write.
//!
//! Invariants: the file never changes size (sealed), so a pointer into a mapping stays good while the
//! `GuestRam` lives; guest memory is only accessed through raw pointers, atomics or volatile
//! accesses, never through references, since the guest changes it at any time. Any thread.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};
use xenolith_cpu::Gpa;

use crate::code::{CodeBitmap, CodeMap};

/// Smallest and largest guest, in bytes.
pub const RAM_BYTES_MIN: u64 = 64 << 20;
pub const RAM_BYTES_MAX: u64 = 64 << 30;
/// RAM comes in multiples of this many bytes.
pub const RAM_BYTES_STEP: u64 = 1 << 20;
/// Where the PCI hole begins and ends: RAM past 3 GiB continues at 4 GiB.
pub const HOLE_START: u64 = 3 << 30;
pub const HOLE_END: u64 = 4 << 30;

/// Guest memory as devices and loaders see it.
pub type DeviceMemory = GuestMemoryMmap<CodeBitmap>;

/// Why there is no RAM.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    #[error("guest memory of {bytes} bytes is too small: the least is 64 MiB")]
    TooSmall { bytes: u64 },
    #[error("guest memory of {bytes} bytes is too large: the most is 64 GiB")]
    TooLarge { bytes: u64 },
    #[error("guest memory of {bytes} bytes is not a whole number of MiB")]
    NotWholeMib { bytes: u64 },
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
}

impl Layout {
    /// The layout of `bytes` of RAM.
    #[must_use]
    pub fn of(bytes: u64) -> Self {
        let low_bytes = bytes.min(HOLE_START);
        Self { low_bytes, high_bytes: bytes - low_bytes }
    }

    /// Pages of RAM in all.
    #[must_use]
    pub fn pages(&self) -> usize {
        ((self.low_bytes + self.high_bytes) >> 12) as usize
    }

    /// Page of the RAM file behind a guest page.
    #[must_use]
    #[inline(always)]
    pub fn file_page(&self, gpn: u64) -> Option<usize> {
        if gpn < self.low_bytes >> 12 {
            Some(gpn as usize)
        } else {
            let high = gpn.wrapping_sub(HOLE_END >> 12);
            (high < self.high_bytes >> 12).then(|| (high + (self.low_bytes >> 12)) as usize)
        }
    }

    /// The guest page of a page of the RAM file.
    #[must_use]
    pub fn guest_page(&self, file_page: u64) -> u64 {
        let low = self.low_bytes >> 12;
        if file_page < low { file_page } else { file_page - low + (HOLE_END >> 12) }
    }
}

/// The guest's memory.
#[derive(Debug)]
pub struct GuestRam {
    layout: Layout,
    low: *mut u8,
    /// Dangling if there is no RAM above 4 GiB.
    high: *mut u8,
    code: Arc<CodeMap>,
    file: Arc<File>,
    /// Owns the two mappings.
    memory: Arc<DeviceMemory>,
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
        let file = Arc::new(ram_file(bytes).map_err(RamError::Create)?);
        let layout = Layout::of(bytes);
        let code = Arc::new(CodeMap::new(layout));

        let map = |base: u64, file_offset: u64, len: u64| {
            let region = MmapRegionBuilder::new_with_bitmap(
                len as usize,
                CodeBitmap::new(Arc::clone(&code), file_offset),
            )
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(Arc::clone(&file), file_offset))
            .build()
            .map_err(|error| RamError::Map { bytes, error })?;
            keep_out_of_core_dumps(region.as_ptr(), region.size());
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
        Ok(Arc::new(Self { layout, low, high, code, file, memory: Arc::new(memory) }))
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

    /// Host address of `len` bytes at `gpa`, if all are RAM and contiguous. A store through it must be
    /// followed by [`CodeMap::stored`] for each page touched.
    #[must_use]
    #[inline(always)]
    pub fn host_ptr(&self, gpa: Gpa, len: usize) -> Option<*mut u8> {
        let low = self.layout.low_bytes;
        if gpa.0 <= low && len as u64 <= low - gpa.0 {
            return Some(self.low.wrapping_add(gpa.0 as usize));
        }
        let high = self.layout.high_bytes;
        let offset = gpa.0.checked_sub(HOLE_END)?;
        if high != 0 && offset <= high && len as u64 <= high - offset {
            return Some(self.high.wrapping_add(offset as usize));
        }
        None
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
    fn memory_outlives_the_ram_object() {
        let memory = GuestRam::new(64 << 20).expect("64 MiB").memory_arc();
        memory.write_obj(7_u8, GuestAddress(0)).expect("RAM");
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0)).expect("RAM"), 7);
    }
}
