//! What of the kernel's code the tables keep over a flush of everything.
//!
//! Problem: after each such flush, every function that the kernel enters or returns to indirectly would be looked for
//! again, one exit at a time, though hardly ever any of its code has moved. Scheme: the jump cache's book knows the
//! pages that it has blocks of; the engine is asked for each whether it still is what it was, and only the jumps of those
//! that aren't are looked at. Invariant: all that a jump cache of the kernel has of a page is of what the page was when it
//! was noted last, since other jumps go when something else is noted. Thread: the vCPU's.

use std::ops::Range;
use std::sync::atomic::Ordering;

use xenolith_codecache::cache::NumberMap;

use super::{AreaBox, JUMP_CACHES, PAGE_JUMPS, SPACES, nowhere};

/// The kernel's jump caches but for code with AC set, which is little.
pub(super) const KEPT: Range<usize> = SPACES..SPACES + 2;

/// What a page of code is at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodePage {
    /// Its identifier in the table of executable pages.
    pub id: u32,
    /// The guest page.
    pub gpn: u64,
    pub global: bool,
}

/// By page number, what a jump cache has blocks of.
pub(super) type CodePages = NumberMap<u64, CodePage>;

impl AreaBox {
    /// Notes what a page is whose code a jump cache is about to have a block of.
    pub(super) fn note_code_page(&mut self, cache: usize, page: u64, what: CodePage) {
        let old = self.books[cache].code_pages.insert(page, what);
        if old.is_some_and(|old| old != what) {
            self.drop_jumps(cache, page);
        }
    }

    /// Drops what a jump cache has of a page.
    fn drop_jumps(&mut self, cache: usize, page: u64) {
        let jumps = &self.jumps[cache];
        let first = (page << 12 & self.jump_index) as usize & !(PAGE_JUMPS - 1);
        self.books[cache].slots.each_of_page(first, |slot| {
            let jump = &jumps[slot].minus_rip;
            if jump.load(Ordering::Relaxed).wrapping_neg() >> 12 == page {
                jump.store(nowhere(slot), Ordering::Relaxed);
            }
        });
    }

    /// [`Self::flush`], but for the kernel's code that is where it was: `now` says what guest page may be executed at an
    /// address, and whether it is a global one.
    pub fn flush_but(&mut self, mut now: impl FnMut(u64) -> Option<(u64, bool)>) {
        self.flush_translations(true);
        for cache in 0..JUMP_CACHES {
            if KEPT.contains(&cache) && !self.books[cache].segmented {
                self.keep_jumps(cache, &mut now);
            } else {
                self.flush_jumps(cache..cache + 1, true);
            }
        }
    }

    fn keep_jumps(&mut self, cache: usize, now: &mut impl FnMut(u64) -> Option<(u64, bool)>) {
        let mut pages = std::mem::take(&mut self.books[cache].code_pages);
        pages.retain(|&page, what| {
            let stays = now(page << 12) == Some((what.gpn, what.global));
            if stays {
                self.vouch(page << 12, what.id, what.global);
            } else {
                self.drop_jumps(cache, page);
            }
            stays
        });
        self.books[cache].code_pages = pages;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: usize = 1;

    fn page(id: u32, global: bool) -> CodePage {
        CodePage { id, gpn: u64::from(id) + 100, global }
    }

    fn area() -> AreaBox {
        static ATTENTION: u32 = 0;
        AreaBox::new(&raw const ATTENTION, true).expect("address space")
    }

    #[test]
    fn code_that_is_where_it_was_is_kept() {
        let mut area = area();
        area.vouch(0xc000_1000, 7, true);
        area.remember(KERNEL, 0xc000_1010, 0xc000_1010, page(7, true), 100);
        area.remember(KERNEL, 0xc000_2020, 0xc000_2020, page(8, true), 200);
        area.remember(KERNEL, 0xc000_3030, 0xc000_3030, page(9, false), 300);
        area.remember(0, 0x8000, 0x8000, page(10, true), 400);
        let mut asked = Vec::new();
        area.flush_but(|la| {
            asked.push(la);
            // The second is elsewhere.
            let gpn = [107, 1080, 109][((la >> 12) - 0xc_0001) as usize];
            Some((gpn, gpn == 107))
        });
        asked.sort_unstable();
        assert_eq!(asked, [0xc000_1000, 0xc000_2000, 0xc000_3000]);
        let jump = |area: &AreaBox, rip| area.jump(KERNEL, rip);
        assert_eq!(jump(&area, 0xc000_1010), Some(100));
        assert_eq!(jump(&area, 0xc000_2020), None);
        assert_eq!(jump(&area, 0xc000_3030), Some(300));
        assert_eq!(area.jump(0, 0x8000), None, "user code is not asked for");
        assert_eq!(area.exec[super::super::exec_slot(0xc000_1000)], 7);
        // What was kept is flushed as anything else: first what isn't global.
        area.leave_space(false);
        assert_eq!([jump(&area, 0xc000_1010), jump(&area, 0xc000_3030)], [Some(100), None]);
        area.flush_pages(0xc000_1000, 1);
        assert_eq!(jump(&area, 0xc000_1010), None);
        assert_eq!(area.exec[super::super::exec_slot(0xc000_1000)], 0);
    }

    #[test]
    fn another_page_at_an_address_takes_the_old_ones_jumps_away() {
        let mut area = area();
        for (rip, host) in [(0xc000_1010, 100), (0xc000_1ff0, 101), (0xc000_2000, 200)] {
            area.remember(KERNEL, rip, rip, page((rip >> 12) as u32, true), host);
        }
        area.remember(KERNEL, 0xc000_1020, 0xc000_1020, page(9, true), 300);
        let known = [0xc000_1010, 0xc000_1ff0, 0xc000_2000, 0xc000_1020];
        assert_eq!(known.map(|rip| area.jump(KERNEL, rip)), [None, None, Some(200), Some(300)]);
    }

    #[test]
    fn code_with_windows_and_without_have_jumps_of_their_own() {
        let mut area = area();
        let rip = 0xc000_1010;
        area.remember(KERNEL, rip, rip, page(7, true), 100);
        area.choose_kernel_jumps(true);
        assert_eq!(area.jump(KERNEL, rip), None);
        area.remember(KERNEL, rip, rip, page(7, true), 200);
        area.choose_kernel_jumps(false);
        assert_eq!(area.jump(KERNEL, rip), Some(100));
        area.forget_jump(KERNEL, rip);
        area.choose_kernel_jumps(true);
        assert_eq!(area.jump(KERNEL, rip), None, "a block is forgotten in both");
    }
}
