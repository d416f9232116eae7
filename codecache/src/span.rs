//! Memory with address space behind it that nothing can be in.
//!
//! Problem: translated code computes addresses behind a record of ours on purpose, to fault. Scheme: one
//! reservation, whose beginning is readable and writable, zeroed, and the rest without access. Any thread
//! owns it; what is in it is the user's business. Source: mmap(2).

use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

/// See the module's head.
#[derive(Debug)]
pub struct Span {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is this value's alone, and it hands out raw pointers only.
unsafe impl Send for Span {}

impl Span {
    /// `memory_bytes` of zeroes, a whole number of pages, and at least `behind_bytes` of nothing.
    ///
    /// # Errors
    /// The host gives no address space.
    pub fn new(memory_bytes: usize, behind_bytes: usize) -> Result<Self, std::io::Error> {
        let bytes = memory_bytes + behind_bytes;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: the kernel picks a free address.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::empty(), flags) }?;
        let start = NonNull::new(start.cast()).expect("the kernel never picks address 0");
        let this = Self { start, bytes };
        let access = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: the beginning of the mapping just made.
        unsafe { mprotect(start.as_ptr().cast(), memory_bytes, access) }
            .map_err(|error: Errno| std::io::Error::from(error))?;
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
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours could not be unmapped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_is_memory_and_the_rest_is_not() {
        let span = Span::new(8192, 1 << 32).expect("address space");
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
