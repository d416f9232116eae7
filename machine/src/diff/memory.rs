//! Comparing the two sides' RAM.
//!
//! Problem: RAM is large and mostly untouched, and touching it to look at it would cost the host all of
//! it. Scheme: pages that the host has never provided are zero on that side and are skipped. Thread: the one
//! that drives both sides, while neither runs.

use std::sync::Arc;

use xenolith_cpu::{Gpa, PAGE_SIZE};
use xenolith_mmu::GuestRam;
use xenolith_mmu::view::SWITCHED;

use super::compare::words_differing;

const PAGE: usize = PAGE_SIZE as usize;

/// A side's RAM: addresses of host memory by guest page.
pub trait Pages {
    /// The page's 4096 bytes; `None` if it isn't RAM.
    fn page(&self, gpn: u64) -> Option<&[u8]>;
    /// Guest pages that may hold anything but zeroes.
    fn touched(&self) -> Vec<u64>;
}

impl Pages for Arc<GuestRam> {
    fn page(&self, gpn: u64) -> Option<&[u8]> {
        let host = self.host_ptr(Gpa(gpn.checked_mul(PAGE_SIZE)?), PAGE)?;
        // SAFETY: `host` leads to a page of RAM that `self` keeps mapped; neither side runs while a
        // comparison looks at it.
        Some(unsafe { std::slice::from_raw_parts(host, PAGE) })
    }

    fn touched(&self) -> Vec<u64> {
        let layout = self.layout();
        let mut pages = Vec::new();
        // What shows below 1 MiB is switched page by page.
        let mut spans = vec![
            (0, SWITCHED.start),
            (SWITCHED.end, layout.low_bytes - SWITCHED.end),
            (layout.guest_page(layout.low_bytes >> 12) << 12, layout.high_bytes),
        ];
        spans.extend(SWITCHED.step_by(PAGE).map(|start| (start, PAGE_SIZE)));
        for (start, len) in spans {
            if len == 0 {
                continue;
            }
            if let Some(host) = self.host_ptr(Gpa(start), len as usize) {
                pages.extend(resident(host, len as usize).map(|n| (start >> 12) + n as u64));
            }
        }
        pages
    }
}

/// Pages of `len` bytes at `host` that the host has provided.
pub fn resident(host: *mut u8, len: usize) -> impl Iterator<Item = usize> {
    let mut present = vec![0u8; len.div_ceil(PAGE)];
    // SAFETY: the range is one mapping of ours and `present` has a byte for each of its pages.
    let result = unsafe { libc::mincore(host.cast(), len, present.as_mut_ptr()) };
    if result != 0 {
        // Then all may be there.
        present.fill(1);
    }
    present.into_iter().enumerate().filter(|(_, flag)| flag & 1 != 0).map(|(n, _)| n)
}

/// The first address where the two differ, and how many words were tolerated.
pub fn first_difference(a: &impl Pages, b: &impl Pages) -> (Option<u64>, usize) {
    let mut gpns = a.touched();
    gpns.extend(b.touched());
    gpns.sort_unstable();
    gpns.dedup();
    let mut tolerated = 0;
    for gpn in gpns {
        let (Some(x), Some(y)) = (a.page(gpn), b.page(gpn)) else { continue };
        let (words, allowed) = words_differing(x, y);
        tolerated += allowed;
        if let Some(&word) = words.first() {
            return (Some(gpn * PAGE_SIZE + word as u64), tolerated);
        }
    }
    (None, tolerated)
}

/// Up to `out.len()` bytes at a guest physical address, not beyond its page.
pub fn read(pages: &impl Pages, gpa: u64, out: &mut [u8]) {
    let offset = (gpa % PAGE_SIZE) as usize;
    if let Some(page) = pages.page(gpa / PAGE_SIZE) {
        let len = out.len().min(PAGE - offset);
        out[..len].copy_from_slice(&page[offset..offset + len]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touched_pages_are_found_wherever_they_are() {
        let ram = GuestRam::new(64 << 20).expect("64 MiB");
        let pages = [0, 0x9f, 0xa0, 0xff, 0x100, 0x3fff];
        for gpn in pages {
            let host = ram.host_ptr(Gpa(gpn << 12), 1).expect("RAM");
            // SAFETY: a byte of RAM that nobody else accesses.
            unsafe { host.write(1) };
        }
        let touched = ram.touched();
        assert!(pages.iter().all(|gpn| touched.contains(gpn)), "{touched:x?}");
    }
}
