//! The page that guessed regions are proved by.
//!
//! Problem: whether a region was guessed right must be seen without touching the flags or costing a
//! branch. Scheme: all host addresses below 4 GiB are kept from everybody, but for one page;
//! translated code reads there, one page aside for each region that the guess is aside, and faults unless it
//! was right ([`PROBE`]). Invariant: nothing else is mapped below 4 GiB once [`set_up`] has said yes. Once for
//! the process, any thread.

use std::ptr::{self, NonNull};
use std::sync::OnceLock;

use xenolith_cpu::PAGE_SIZE;
use xenolith_translator::area::PROBE;

/// Where mappings may begin (vm.mmap_min_addr is at most this); nothing is mapped below.
const FIRST: usize = 64 << 10;
const END: usize = 4 << 30;

/// Whether the page is there; makes it the first time. It can't be where something of the process already
/// lies below 4 GiB.
pub fn set_up() -> bool {
    *DONE.get_or_init(|| reserve().is_some())
}

static DONE: OnceLock<bool> = OnceLock::new();

/// Gives a forked child, which runs no translated code, all addresses below 4 GiB back. Async-signal-safe.
pub fn withdraw() {
    if DONE.get() == Some(&true) {
        // SAFETY: mappings of `reserve`, which only translated code uses.
        unsafe { libc::munmap(ptr::without_provenance_mut(FIRST), END - FIRST) };
    }
}

fn reserve() -> Option<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let fixed = flags | libc::MAP_FIXED_NOREPLACE;
    let map = |at: usize, len: usize, protection: i32, flags: i32| {
        let at = ptr::without_provenance_mut(at);
        // SAFETY: without access, where nothing is; or the page within such a mapping.
        let mapped = unsafe { libc::mmap(at, len, protection, flags, -1, 0) };
        (mapped == at).then_some(NonNull::new(mapped)).flatten()
    };
    map(FIRST, END - FIRST, libc::PROT_NONE, fixed)?;
    map(PROBE as usize, PAGE_SIZE as usize, libc::PROT_READ, flags | libc::MAP_FIXED)?;
    Some(())
}
