//! What of the kernel's code the tables keep over a flush of everything.
//!
//! Problem: after each such flush, every function that the kernel enters or returns to indirectly would be looked for
//! again, one exit at a time, though hardly ever any of its code has moved. Scheme: the jump cache's book knows the
//! pages that it has blocks of, with their identifiers; the engine is asked for each whether it still is what it was.
//! Invariant: all that a jump cache of the kernel has of a page is of the identifier in its book, since other jumps go
//! when another one is noted. Thread: the vCPU's.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::Ordering;

use super::{AreaBox, JUMP_CACHES, PAGE_JUMPS, SPACES, is_segmented, nowhere};

/// The kernel's jump caches but for code with AC set, which is little.
pub(super) const HOMED: Range<usize> = SPACES..SPACES + 2;

/// The page numbers that a jump cache has blocks of, and their identifiers.
pub(super) type Homes = HashMap<u64, u32>;

impl AreaBox {
    /// Notes what page is at a page number, of whose code a jump cache is about to have a block.
    pub(super) fn note_home(&mut self, cache: usize, page: u64, id: u32) {
        let book = &mut self.books[cache];
        if book.homes.insert(page, id).is_none_or(|old| old == id) {
            return;
        }
        let jumps = &self.jumps[cache];
        let first = (page << 12 & self.jump_index) as usize & !(PAGE_JUMPS - 1);
        self.books[cache].slots.each_of_page(first, |slot| {
            let jump = &jumps[slot].minus_rip;
            if jump.load(Ordering::Relaxed).wrapping_neg() >> 12 == page {
                jump.store(nowhere(slot), Ordering::Relaxed);
            }
        });
    }

    /// [`Self::flush`], but for the kernel's code that is where it was: `is_still` says of a page and its identifier whether
    /// that is so, and whether the page is global.
    pub fn flush_but(&mut self, mut is_still: impl FnMut(u64, u32) -> Option<bool>) {
        self.flush_translations(true);
        for cache in 0..JUMP_CACHES {
            if HOMED.contains(&cache) {
                self.keep_jumps(cache, &mut is_still);
            } else {
                self.flush_jumps(cache..cache + 1, true);
            }
        }
    }

    fn keep_jumps(&mut self, kept: usize, is_still: &mut impl FnMut(u64, u32) -> Option<bool>) {
        // SAFETY: mapped while `self` lives; the borrow of the book beside it is of other memory.
        let area = unsafe { self.area.as_ref() };
        let book = &mut self.books[kept];
        let is_still = |(page, id): (u64, u32)| Some((page, (id, is_still(page << 12, id)?)));
        let homes: HashMap<u64, (u32, bool)> = book.homes.drain().filter_map(is_still).collect();
        let mut known = Vec::new();
        book.slots.drain(true, |slot| known.push(slot));
        (book.segmented, book.high) = (false, false);
        book.pages.iter_mut().for_each(|pages| pages.0.fill(0));
        for slot in known {
            let jump = &area.jumps[kept][slot].minus_rip;
            let rip = jump.load(Ordering::Relaxed).wrapping_neg();
            let page = rip >> 12;
            match homes.get(&page).filter(|_| !is_segmented(rip)) {
                Some(&(_, global)) => {
                    book.high |= rip >> 47 != 0;
                    book.slots.note(slot, global);
                    book.pages[usize::from(global)].note(page);
                }
                None => jump.store(nowhere(slot), Ordering::Relaxed),
            }
        }
        for (page, (id, global)) in homes {
            self.books[kept].homes.insert(page, id);
            self.vouch(page << 12, id, global);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: usize = 1;

    fn area() -> AreaBox {
        static ATTENTION: u32 = 0;
        AreaBox::new(&raw const ATTENTION, true).expect("address space")
    }

    #[test]
    fn code_that_is_where_it_was_is_kept() {
        let mut area = area();
        area.vouch(0xc000_1000, 7, true);
        area.remember(KERNEL, 0xc000_1010, 0xc000_1010, 7, 100, true);
        area.remember(KERNEL, 0xc000_2020, 0xc000_2020, 8, 200, true);
        area.remember(KERNEL, 0xc000_3030, 0xc000_3030, 9, 300, false);
        area.remember(0, 0x8000, 0x8000, 10, 400, true);
        let mut asked = Vec::new();
        area.flush_but(|la, id| {
            asked.push((la, id));
            (id != 8).then_some(id == 7)
        });
        asked.sort_unstable();
        assert_eq!(asked, [(0xc000_1000, 7), (0xc000_2000, 8), (0xc000_3000, 9)]);
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
            area.remember(KERNEL, rip, rip, (rip >> 12) as u32, host, true);
        }
        area.remember(KERNEL, 0xc000_1020, 0xc000_1020, 9, 300, true);
        let known = [0xc000_1010, 0xc000_1ff0, 0xc000_2000, 0xc000_1020];
        assert_eq!(known.map(|rip| area.jump(KERNEL, rip)), [None, None, Some(200), Some(300)]);
    }

    #[test]
    fn code_with_windows_and_without_have_jumps_of_their_own() {
        let mut area = area();
        let rip = 0xc000_1010;
        area.remember(KERNEL, rip, rip, 7, 100, true);
        area.choose_kernel_jumps(true);
        assert_eq!(area.jump(KERNEL, rip), None);
        area.remember(KERNEL, rip, rip, 7, 200, true);
        area.choose_kernel_jumps(false);
        assert_eq!(area.jump(KERNEL, rip), Some(100));
        area.forget_jump(KERNEL, rip);
        area.choose_kernel_jumps(true);
        assert_eq!(area.jump(KERNEL, rip), None, "a block is forgotten in both");
    }
}
