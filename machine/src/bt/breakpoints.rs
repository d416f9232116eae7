//! Hardware breakpoints, for the engine.
//!
//! Problem: a breakpoint must be met exactly, and a guest that has armed one should still run at speed.
//! Scheme: the interpreter knows breakpoints; so what may meet one is left to it, page by page. A page with a
//! breakpoint on code has no block and isn't vouched for, so that neither a chain nor the jump cache leads there;
//! one with a breakpoint on data isn't in the inline TLB. Blocks of armed modes use no shadow windows. Port I/O
//! is the interpreter's anyway. Invariant: translated code's tables were emptied after the last change of
//! an armed breakpoint. Source: SDM vol. 3, "Debug Registers".

use xenolith_cpu::PAGE_SIZE;

use super::Bt;

/// Debug registers with something armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Breakpoints {
    addresses: [u64; 4],
    control: u64,
}

/// DR7's L and G bits.
const ENABLED: u64 = 0xff;

impl Breakpoints {
    fn of(dr: &[u64; 8]) -> Option<Self> {
        let addresses = [dr[0], dr[1], dr[2], dr[3]];
        (dr[7] & ENABLED != 0).then_some(Self { addresses, control: dr[7] })
    }

    /// Some breakpoint whose R/W field is wanted is in the page of `la`: none leaves its page.
    fn any(&self, la: u64, wanted: impl Fn(u64) -> bool) -> bool {
        self.addresses.iter().enumerate().any(|(n, address)| {
            let enabled = self.control >> (2 * n) & 3 != 0;
            let kind = self.control >> (16 + 4 * n) & 3;
            enabled && wanted(kind) && (address ^ la) & !(PAGE_SIZE - 1) == 0
        })
    }

    pub fn on_code(&self, la: u64) -> bool {
        self.any(la, |kind| kind == 0)
    }

    pub fn on_data(&self, la: u64) -> bool {
        self.any(la, |kind| kind == 1 || kind == 3)
    }
}

impl Bt {
    /// Empties what translated code relies on if other breakpoints are armed now. True if they are.
    pub(super) fn settle_breakpoints(&mut self) -> bool {
        let dr = &self.interp.state.dr;
        if dr[7] & ENABLED == 0 && self.breakpoints.is_none() {
            return false;
        }
        let armed = Breakpoints::of(dr);
        if armed == self.breakpoints {
            return false;
        }
        self.breakpoints = armed;
        self.elsewhere.clear();
        self.area.flush();
        true
    }
}
