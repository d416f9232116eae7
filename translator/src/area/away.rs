//! What an address space had in the record's tables, put away while another one is current.
//!
//! Problem: the tables of executable pages and of indirect branches know one address space, so each switch to another
//! empties them, and what a program had there must then be found again, one exit at a time. Scheme: before they are
//! emptied a copy is made of what is the space's own, and is brought back when the space is current again.
//! Invariants: only what lies in the lower half, is not global and is no segmented code is put away, so what is done
//! to other pages doesn't concern the copy; the engine throws a copy away when anything may have changed that it
//! says. Thread: the vCPU's.

use std::sync::atomic::Ordering;

use super::{AreaBox, exec_slot, nowhere};

/// User code's jump cache.
const USER: usize = 0;

/// The copy.
#[derive(Debug, Default)]
pub struct Away {
    /// Linear addresses of executable pages, and their identifiers.
    pages: Vec<(u64, u32)>,
    /// Addresses that user code was branched to, and of their blocks.
    jumps: Vec<(u64, u64)>,
}

/// Whether an address is in the lower half.
fn is_low(la: u64) -> bool {
    la >> 47 == 0
}

impl AreaBox {
    /// Copies what the tables have of the address space that is being left.
    #[must_use]
    pub fn put_away(&self) -> Away {
        let is_there = |&&(la, id): &&(u64, u32)| is_low(la) && self.exec[exec_slot(la)] == id;
        let pages = self.pages.iter().filter(is_there).copied().collect();
        let mut jumps = Vec::new();
        let cache = self.jumps_of_all()[USER];
        self.jumps[USER].local.each(|slot| {
            let minus_rip = cache[slot].minus_rip.load(Ordering::Relaxed);
            let rip = minus_rip.wrapping_neg();
            if minus_rip != nowhere(slot) && is_low(rip) {
                jumps.push((rip, cache[slot].host));
            }
        });
        Away { pages, jumps }
    }

    /// Brings back what was put away. Of the branches those that `may_jump` says are still good.
    pub fn bring_back(&mut self, away: &Away, may_jump: impl Fn(u64) -> bool) {
        for &(la, id) in &away.pages {
            self.vouch(la, id, false);
        }
        for &(rip, host) in &away.jumps {
            if may_jump(rip) {
                // Such code's addresses are linear ones.
                self.remember(USER, rip, rip, host, false);
            }
        }
    }
}
