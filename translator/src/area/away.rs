//! What an address space has in the record's tables, kept while another one is current.
//!
//! Problem: the tables of executable pages and of indirect branches know one address space, so each switch to another
//! would empty them, and what a program had there must then be found again, one exit at a time; yet two processes may
//! take turns every few microseconds. Scheme: user code of each space that is kept has a jump cache of its own, and a
//! switch only says which is in use; of the executable pages a list is kept. Invariants: what is kept is of pages of
//! the lower half that are not global and of no segmented code, so what is done to other pages doesn't concern it; the
//! engine drops what it keeps when anything may have changed that it says; a block that is removed is forgotten by all
//! jump caches ([`super::Area::forget_jump`]). Thread: the vCPU's.

use super::{AreaBox, JUMP_CACHES, SPACES, exec_slot, home_entry};

/// An address space that is kept.
#[derive(Debug)]
pub struct Away {
    /// Which jump cache its user code has, below [`SPACES`].
    pub space: usize,
    /// Linear addresses of executable pages, and their identifiers; the same of those in the table of homes.
    pages: Vec<(u64, u32)>,
    homed: Vec<(u64, u32)>,
}

impl AreaBox {
    /// Leaves the address space. What is to be given to [`Self::enter_space`] later, if it is to be kept and can be.
    pub fn leave_space(&mut self, keep: bool) -> Option<Away> {
        let space = self.space;
        let book = &self.books[space];
        let can = !book.segmented && !book.high && book.slots.global.slots.is_empty();
        let away = (keep && can).then(|| {
            let is_low = |la: u64| la >> 47 == 0;
            let is_there = |&&(la, id): &&(u64, u32)| is_low(la) && self.exec[exec_slot(la)] == id;
            let is_home = |&&(la, id): &&(u64, u32)| {
                is_low(la) && self.homes[exec_slot(la)] == home_entry(la, id)
            };
            let pages = self.pages.iter().filter(is_there).copied().collect();
            let homed = self.homed.iter().filter(is_home).copied().collect();
            Away { space, pages, homed }
        });
        self.flush_translations(false);
        self.flush_jumps(SPACES..JUMP_CACHES, false);
        if away.is_none() {
            self.flush_jumps(space..space + 1, true);
        }
        away
    }

    /// Enters an address space that was kept, or one that nothing is known of and that gets the jump cache `space`.
    ///
    /// # Panics
    /// There is no such jump cache.
    pub fn enter_space(&mut self, space: usize, away: Option<Away>) {
        if away.is_none() {
            self.flush_jumps(space..space + 1, true);
        }
        self.space = space;
        self.area_mut().user_jumps = super::jumps_behind(space);
        let Some(away) = away else { return };
        for (la, id) in away.pages {
            self.vouch(la, id, false);
        }
        for (la, id) in away.homed {
            self.vouch_home(la, id);
        }
    }
}
