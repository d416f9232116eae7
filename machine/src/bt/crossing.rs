//! SYSCALL and SYSRET that translated code does by itself.
//!
//! Problem: a system call takes less time than coming to Rust and going back does. Scheme: when code that may
//! do one is entered, the mode on the other side is worked out too; translated code then changes RFLAGS and goes
//! to the other privilege's jump cache, and notes what it has done; CS, SS and CPL follow when it is left.
//! Invariants: while crossing is open, the jump caches of both privileges are those of [`Bt::other`] and of the mode
//! that runs; nothing that either mode depends on changes but in Rust. Source: SDM vol. 2, SYSCALL, SYSRET.

use xenolith_cpu::interp::is_canonical;
use xenolith_cpu::state::{Cr4, Efer, Rflags};
use xenolith_translator::area::{CROSSED_IN, CROSSED_OUT};
use xenolith_translator::mode::Mode;

use super::Bt;

/// What FMASK has to clear: blocks don't run with most of it, and IF is taken for clear.
const CLEARED: Rflags =
    Rflags::TF.union(Rflags::IF).union(Rflags::DF).union(Rflags::NT).union(Rflags::AC);

impl Bt {
    /// Opens the crossing for code of `mode` that is about to run, if it can be.
    pub(super) fn ready_crossing(&mut self, mode: Mode) {
        self.area.side = u64::from(mode.privilege);
        self.area.crossing_closed = 1;
        let state = &self.interp.state;
        let msr = &state.msr;
        let may = !self.stepping
            && mode.may_cross()
            && state.efer & Efer::SCE.bits() != 0
            && msr.fmask & CLEARED.bits() == CLEARED.bits()
            && is_canonical(msr.lstar);
        if !may {
            return;
        }
        self.area.lstar = msr.lstar;
        self.area.syscall_keeps = !(msr.fmask | Rflags::RF.bits());
        let mut other = mode.other_side();
        other.time = self.tsc_base.is_some() && (other.ring0 || !state.cr4(Cr4::TSD));
        let other = self.with_windows(other);
        self.own_jumps(other);
        self.other = Some(other);
        self.area.crossing_closed = 0;
    }

    /// Takes over what translated code has done since it was entered with `mode`; gives the mode that it was
    /// left with.
    pub(super) fn settle_crossing(&mut self, mode: Mode) -> Mode {
        let crossed = std::mem::take(&mut self.area.crossed);
        if crossed & CROSSED_IN != 0 {
            self.interp.enter_by_syscall();
        }
        if crossed & CROSSED_OUT != 0 {
            self.interp.leave_by_sysret();
        }
        if self.area.side == u64::from(mode.privilege) {
            return mode;
        }
        self.other.replace(mode).expect("it was open")
    }
}
