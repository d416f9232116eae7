//! Memory with address space behind it that nothing can be in.
//!
//! Problem: translated code computes addresses behind a record of ours on purpose, to fault. Scheme: one
//! reservation, whose beginning is readable and writable, zeroed, and the rest without access. Any thread
//! owns it; what is in it is the user's business. A part that will be in use everywhere can be had on large pages of
//! the host's. Source: mmap(2), madvise(2).

use std::ffi::c_void;
use std::ops::Range;
use std::ptr::{self, NonNull};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};
use rustix::mm::{madvise, mmap_anonymous, mprotect, munmap};

use crate::table::LARGE_BYTES;

const PAGE_BYTES: usize = 4096;

/// See the module's head.
#[derive(Debug)]
pub struct Span {
    reserved: *mut c_void,
    reserved_bytes: usize,
    start: NonNull<u8>,
}

// SAFETY: the mapping is this value's alone, and it hands out raw pointers only.
unsafe impl Send for Span {}

impl Span {
    /// `memory_bytes` of zeroes, a whole number of pages, and at least `behind_bytes` of nothing. Of the zeroes those of
    /// `large`, whole pages too, are on large pages if the host has them; it begins at a multiple of theirs, empty or not.
    ///
    /// # Errors
    /// The host gives no address space.
    pub fn new(
        memory_bytes: usize,
        behind_bytes: usize,
        large: Range<usize>,
    ) -> Result<Self, std::io::Error> {
        assert!(large.start <= large.end && large.end <= memory_bytes, "a part of the memory");
        assert!(large.start.is_multiple_of(PAGE_BYTES), "the memory begins with a page, too");
        let reserved_bytes = memory_bytes + behind_bytes + LARGE_BYTES;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: the kernel picks a free address.
        let reserved =
            unsafe { mmap_anonymous(ptr::null_mut(), reserved_bytes, ProtFlags::empty(), flags) }?;
        // Large pages begin where `large` does.
        let first = reserved.addr() + large.start;
        let before = first.next_multiple_of(LARGE_BYTES) - first;
        let start = NonNull::new(reserved.wrapping_byte_add(before).cast::<u8>());
        let start = start.expect("the kernel never picks address 0");
        let this = Self { reserved, reserved_bytes, start };
        let access = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: the beginning of the mapping just made.
        unsafe { mprotect(start.as_ptr().cast(), memory_bytes, access) }
            .map_err(|error: Errno| std::io::Error::from(error))?;
        if !large.is_empty() {
            let at = start.as_ptr().wrapping_add(large.start).cast();
            // SAFETY: a part of it; the advice changes no contents. A refusal does no harm.
            let _ = unsafe { madvise(at, large.len(), Advice::LinuxHugepage) };
        }
        Ok(this)
    }

    /// Its first byte, aligned to a page.
    #[must_use]
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped; whoever kept a pointer into it broke the contract.
        let unmapped = unsafe { munmap(self.reserved, self.reserved_bytes) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours could not be unmapped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_is_memory_and_the_rest_is_not() {
        let span = Span::new(8192, 1 << 32, 4096..8192).expect("address space");
        assert!((span.start().addr().get() + 4096).is_multiple_of(LARGE_BYTES));
        let start = span.start().as_ptr();
        // SAFETY: within the memory of the span.
        unsafe { start.wrapping_add(8191).write(7) };
        let line_of = |address: usize| {
            let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
            let range = |line: &str| {
                let (start, end) = line.split(' ').next()?.split_once('-')?;
                let parse = |text| usize::from_str_radix(text, 16).ok();
                Some(parse(start)?..parse(end)?)
            };
            let found = maps.lines().find(|l| range(l).is_some_and(|r| r.contains(&address)));
            found.map(str::to_owned).expect("a mapped address")
        };
        assert!(line_of(start.addr() + 8191).contains("rw-p"));
        for behind in [8192, 1 << 31, (1 << 32) + 8191] {
            assert!(line_of(start.addr() + behind).contains("---p"));
        }
    }
}
