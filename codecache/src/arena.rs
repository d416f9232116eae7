//! Executable memory with separate views for writing and for running.
//!
//! Problem: generated code must be written and run, yet memory that is writable and executable at once
//! hands any stray write to the guest's advantage. Scheme: one memfd with two shared mappings, one
//! readable and writable, one readable and executable. Code is published by bump allocation and
//! never changed; [`Arena::reset`] forgets all of it. After mapping, the file is sealed against other
//! sizes and against further writable mappings, and closed, so that the executable view can't be made
//! writable by `mprotect` either.
//!
//! Invariants: bytes below `used` in the executable view are published code or INT3 padding; entry
//! points are aligned to a line of the cache. What is forgotten is overwritten by INT3, so a stale entry point traps.
//! The writing view has another linear address than the running one, so the processor need not
//! notice that bytes it has prefetched are new: [`Arena::publish`] serialises its thread. Others
//! that run the code must synchronise with it first. One owner; any thread.
//! Source: SDM vol. 3, "Handling Self- and Cross-Modifying Code"; memfd_create(2), fcntl(2) on seals.

use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::ffi::c_void;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::LazyLock;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use crate::table::LARGE_BYTES;

/// Alignment of entry points.
pub const ENTRY_ALIGN: usize = 64;
/// Arenas are whole host pages and at most this large: a rel32 reaches all of an arena.
pub const CAPACITY_BYTES_MAX: usize = 1 << 30;

const PAGE_BYTES: usize = 4096;
const INT3: u8 = 0xcc;

/// Why there is no arena.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    #[error("a code arena of {bytes} bytes is not possible: from 1 byte to 1 GiB is")]
    Capacity { bytes: usize },
    #[error("the host gives no memory file for generated code: {0}")]
    Create(std::io::Error),
    #[error("the host does not map {bytes} bytes for generated code: {error}")]
    Map { bytes: usize, error: std::io::Error },
}

/// A shared mapping of the whole file at a multiple of [`LARGE_BYTES`], unmapped when dropped.
#[derive(Debug)]
struct View {
    start: NonNull<u8>,
    bytes: usize,
    _room: Room,
}

/// Address space that is given back when dropped, with what is mapped there.
#[derive(Debug)]
struct Room {
    start: *mut c_void,
    bytes: usize,
}

impl View {
    fn map(file: &OwnedFd, bytes: usize, protection: ProtFlags) -> Result<Self, ArenaError> {
        let failed = |error: Errno| ArenaError::Map { bytes, error: error.into() };
        let room_bytes = bytes + LARGE_BYTES;
        let nothing = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: the kernel picks a free address, so no mapping of anybody's is touched.
        let start =
            unsafe { mmap_anonymous(ptr::null_mut(), room_bytes, ProtFlags::empty(), nothing) }
                .map_err(failed)?;
        let room = Room { start, bytes: room_bytes };
        let before = start.addr().next_multiple_of(LARGE_BYTES) - start.addr();
        let here = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: within the room, which is ours.
        let start =
            unsafe { mmap(start.wrapping_byte_add(before), bytes, protection, here, file, 0) }
                .map_err(failed)?;
        let start = NonNull::new(start.cast()).expect("the kernel never picks address 0");
        Ok(Self { start, bytes, _room: room })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped; whoever kept a pointer into it broke the contract.
        let unmapped = unsafe { munmap(self.start, self.bytes) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours could not be unmapped");
    }
}

/// Executable memory.
#[derive(Debug)]
pub struct Arena {
    write: View,
    run: View,
    /// Where the next code goes; a multiple of [`ENTRY_ALIGN`].
    used: usize,
    /// Where it must end.
    limit: usize,
    /// What lies behind was never used.
    touched: usize,
    /// Up to where the host was asked for large pages; nothing once it had none.
    large: Option<usize>,
}

// SAFETY: the views are ours alone; the pointers handed out are raw, and running them is the
// caller's unsafe act.
unsafe impl Send for Arena {}

impl Arena {
    /// An empty arena of at least `capacity_bytes`, rounded up to whole pages. The host's memory is
    /// taken as code is published.
    ///
    /// # Errors
    /// A size out of range, or the host refuses.
    pub fn new(capacity_bytes: usize) -> Result<Self, ArenaError> {
        if !(1..=CAPACITY_BYTES_MAX).contains(&capacity_bytes) {
            return Err(ArenaError::Capacity { bytes: capacity_bytes });
        }
        let bytes = capacity_bytes.next_multiple_of(PAGE_BYTES);
        let file = code_file().map_err(|error| ArenaError::Create(error.into()))?;
        ftruncate(&file, bytes as u64).map_err(|error| ArenaError::Create(error.into()))?;
        let write = View::map(&file, bytes, ProtFlags::READ | ProtFlags::WRITE)?;
        seal(&file).map_err(|error| ArenaError::Create(error.into()))?;
        let run = View::map(&file, bytes, ProtFlags::READ | ProtFlags::EXEC)?;
        Ok(Self { write, run, used: 0, limit: bytes, touched: 0, large: Some(0) })
    }

    /// Copies finished, position-independent `code` into executable memory and returns its entry
    /// point, aligned to [`ENTRY_ALIGN`]. It stays there, unchanged, until [`Self::reset`]. `None` if there is no
    /// room, or no code.
    pub fn publish(&mut self, code: &[u8]) -> Option<*const u8> {
        let entry = self.append(code)?;
        serialise();
        Some(entry)
    }

    /// As [`Self::publish`], for a caller that serialises by itself before it runs the code.
    pub fn append(&mut self, code: &[u8]) -> Option<*const u8> {
        let end = self.used.checked_add(code.len())?.checked_next_multiple_of(ENTRY_ALIGN)?;
        if code.is_empty() || end > self.limit {
            return None;
        }
        let start = self.used;
        self.take_large(end);
        let padded = self.writable(start, end);
        let (body, padding) = padded.split_at_mut(code.len());
        body.copy_from_slice(code);
        padding.fill(INT3);
        self.used = end;
        self.touched = self.touched.max(end);
        Some(self.run.start.as_ptr().wrapping_add(start).cast_const())
    }

    /// Forgets what is published from `start` to `end`, and puts what comes next there. Nothing of it may
    /// be running or be run afterwards.
    ///
    /// # Panics
    /// Not a range of the arena that begins at a possible entry.
    pub fn open(&mut self, start: usize, end: usize) {
        assert!(start.is_multiple_of(ENTRY_ALIGN) && start <= end && end <= self.write.bytes);
        let stale = end.min(self.touched);
        self.writable(start.min(stale), stale).fill(INT3);
        self.used = start;
        self.limit = end;
        serialise();
    }

    /// The address of the arena's first byte.
    #[must_use]
    pub fn first_entry(&self) -> *const u8 {
        self.run.start.as_ptr().cast_const()
    }

    /// The four bytes at address `at`, which lie in the arena, as a displacement.
    ///
    /// # Panics
    /// `at` isn't in the arena.
    #[must_use]
    pub fn read_displacement(&self, at: usize) -> i32 {
        let bytes = self.read(at, 4).first_chunk().expect("four were asked for");
        i32::from_le_bytes(*bytes)
    }

    /// The `bytes` bytes from host address `at` on.
    ///
    /// # Panics
    /// They aren't all in the arena.
    #[must_use]
    pub fn read(&self, at: usize, bytes: usize) -> &[u8] {
        let offset = at - self.run.start.addr().get();
        assert!(offset + bytes <= self.write.bytes, "code in the arena");
        let place = self.write.start.as_ptr().wrapping_add(offset).cast_const();
        // SAFETY: within the writing view, which only the owner of `self` writes to, by `&mut self`.
        unsafe { std::slice::from_raw_parts(place, bytes) }
    }

    /// Where the next [`Self::publish`] puts its code, if it fits.
    #[must_use]
    pub fn next_entry(&self) -> *const u8 {
        self.run.start.as_ptr().wrapping_add(self.used).cast_const()
    }

    /// Overwrites the four bytes at address `at`, which lie in the arena and may be running: one store,
    /// so whoever runs it sees the old or the new displacement if it lies in one line of the cache.
    ///
    /// # Panics
    /// `at` isn't in the arena.
    pub fn patch(&mut self, at: usize, displacement: i32) {
        let offset = at - self.run.start.addr().get();
        assert!(offset + 4 <= self.write.bytes, "a displacement in the arena");
        let place = self.write.start.as_ptr().wrapping_add(offset).cast::<i32>();
        // SAFETY: within the writing view, which nobody else writes to. An assembler store, since it may
        // be unaligned and must be one store.
        unsafe {
            std::arch::asm!(
                "mov dword ptr [{place}], {value:e}",
                place = in(reg) place, value = in(reg) displacement,
                options(nostack, preserves_flags),
            );
        }
    }

    /// Overwrites code at address `at`, which must not be running.
    ///
    /// # Panics
    /// Not all of it is in the arena.
    pub fn rewrite(&mut self, at: usize, code: &[u8]) {
        let start = at - self.run.start.addr().get();
        self.writable(start, start + code.len()).copy_from_slice(code);
        serialise();
    }

    /// Forgets everything published. Nothing of it may be running or be run afterwards.
    pub fn reset(&mut self) {
        self.writable(0, self.used).fill(INT3);
        self.used = 0;
        self.limit = self.write.bytes;
        serialise();
    }

    /// Whether `pointer` is into published code.
    #[must_use]
    pub fn contains(&self, pointer: *const u8) -> bool {
        pointer.addr().checked_sub(self.run.start.addr().get()).is_some_and(|at| at < self.used)
    }

    /// Bytes in use, padding included.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.used
    }

    #[must_use]
    pub fn capacity_bytes(&self) -> usize {
        self.run.bytes
    }

    /// Asks for large pages up to `end`: a small one is a fault for each view, and translated code, which is spread
    /// widely, misses them in the instruction TLB. Without large pages all goes on as before.
    fn take_large(&mut self, end: usize) {
        while let Some(first) = self.large
            && first < end
            && first + LARGE_BYTES <= self.write.bytes
        {
            // The kernel makes a large page only of one that has something.
            let byte = &mut self.writable(first, first + 1)[0];
            // SAFETY: a byte of ours, which stays as it is.
            unsafe { (&raw mut *byte).write_volatile(*byte) };
            let start = self.write.start.as_ptr().wrapping_add(first);
            // SAFETY: a range of the writing view; what is in it stays. madvise(2), MADV_COLLAPSE, Linux 6.1.
            let made = unsafe { libc::madvise(start.cast(), LARGE_BYTES, libc::MADV_COLLAPSE) };
            self.large = (made == 0).then_some(first + LARGE_BYTES);
        }
    }

    fn writable(&mut self, start: usize, end: usize) -> &mut [u8] {
        assert!(start <= end && end <= self.write.bytes, "a range within the arena");
        let first = self.write.start.as_ptr().wrapping_add(start);
        // SAFETY: within the writing view, which lives as long as `self`; `&mut self` makes this the
        // only reference. The running view is only ever read as instructions.
        unsafe { std::slice::from_raw_parts_mut(first, end - start) }
    }
}

/// A memfd for code. The file itself is never executed, only mapped, which hosts that forbid
/// executable memfds (`vm.memfd_noexec`) allow. Kernels before 6.3 don't know the flag.
fn code_file() -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create("xenolith-code", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create("xenolith-code", flags),
        result => result,
    }
}

fn seal(file: &OwnedFd) -> Result<(), Errno> {
    let size = SealFlags::GROW | SealFlags::SHRINK;
    // Kernels before 5.1 don't know FUTURE_WRITE; then closing the file has to do.
    match fcntl_add_seals(file.as_fd(), size | SealFlags::FUTURE_WRITE | SealFlags::SEAL) {
        Err(Errno::INVAL) => fcntl_add_seals(file.as_fd(), size | SealFlags::SEAL),
        result => result,
    }
}

/// Makes this processor forget instructions that it has fetched. In a virtual machine CPUID leaves it, which takes
/// microseconds; SERIALIZE doesn't. Source: SDM vol. 3, "Serializing Instructions".
fn serialise() {
    static HAS_SERIALIZE: LazyLock<bool> = LazyLock::new(|| {
        const SERIALIZE: u32 = 1 << 14;
        __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & SERIALIZE != 0
    });
    if *HAS_SERIALIZE {
        // SAFETY: the processor has the instruction, which changes no register and no memory. The assembler need not
        // know it.
        unsafe { std::arch::asm!(".byte 0x0f, 0x01, 0xe8", options(nostack, preserves_flags)) };
    } else {
        let _ = std::hint::black_box(__cpuid(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `mov eax, value; ret`.
    fn returns(value: u32) -> Vec<u8> {
        let mut code = vec![0xb8];
        code.extend(value.to_le_bytes());
        code.push(0xc3);
        code
    }

    fn run(entry: *const u8) -> u32 {
        // SAFETY: `entry` is published code that keeps to the C calling convention.
        let function: extern "C" fn() -> u32 = unsafe { std::mem::transmute(entry) };
        function()
    }

    fn protections(address: usize) -> String {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
        let line = maps.lines().find(|line| {
            let (start, end) =
                line.split(' ').next().and_then(|r| r.split_once('-')).expect("range");
            let parse = |text| usize::from_str_radix(text, 16).expect("hexadecimal");
            (parse(start)..parse(end)).contains(&address)
        });
        line.and_then(|line| line.split(' ').nth(1)).expect("a mapped address").to_owned()
    }

    #[test]
    fn published_code_runs() {
        let mut arena = Arena::new(PAGE_BYTES).expect("a page");
        let entries: Vec<_> =
            (0..5).map(|n| arena.publish(&returns(n * 1000)).expect("room")).collect();
        for (n, entry) in (0..).zip(entries) {
            assert_eq!(entry.addr() % ENTRY_ALIGN, 0);
            assert!(arena.contains(entry));
            assert_eq!(run(entry), n * 1000);
        }
    }

    #[test]
    fn code_published_after_a_reset_replaces_the_old() {
        let mut arena = Arena::new(1).expect("a page");
        for value in 0..2000 {
            let entry = arena.publish(&returns(value)).expect("room");
            assert_eq!(run(entry), value);
            arena.reset();
            assert!(!arena.contains(entry));
            // SAFETY: still mapped; nobody writes meanwhile.
            assert_eq!(unsafe { entry.read() }, INT3);
        }
    }

    #[test]
    fn a_full_arena_says_so() {
        let mut arena = Arena::new(PAGE_BYTES + 1).expect("two pages");
        assert_eq!(arena.capacity_bytes(), 2 * PAGE_BYTES);
        assert!(arena.publish(&vec![INT3; 2 * PAGE_BYTES + 1]).is_none());
        assert!(arena.publish(&vec![INT3; 2 * PAGE_BYTES - 65]).is_some());
        assert_eq!(arena.used_bytes(), 2 * PAGE_BYTES - 64);
        assert!(arena.publish(&[INT3; 65]).is_none());
        let last = arena.publish(&[INT3; 64]).expect("exactly the rest");
        assert!(arena.contains(last.wrapping_add(63)) && !arena.contains(last.wrapping_add(64)));
        assert!(arena.publish(&[0xc3]).is_none());
        assert!(arena.publish(&[]).is_none());
        assert!(!arena.contains(std::ptr::null()));
        arena.reset();
        assert!(arena.publish(&[0xc3]).is_some());
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for bytes in [0, CAPACITY_BYTES_MAX + 1, usize::MAX] {
            assert!(matches!(Arena::new(bytes), Err(ArenaError::Capacity { .. })));
        }
    }

    #[test]
    fn no_view_is_writable_and_executable() {
        let arena = Arena::new(PAGE_BYTES).expect("a page");
        assert_eq!(protections(arena.write.start.addr().get()), "rw-s");
        assert_eq!(protections(arena.run.start.addr().get()), "r-xs");
        let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        // SAFETY: changes, if anything, the protection of a mapping that only this test uses.
        let changed = unsafe { libc::mprotect(arena.run.start.as_ptr().cast(), PAGE_BYTES, all) };
        assert_eq!(changed, -1, "the executable view could be made writable");
    }
}
