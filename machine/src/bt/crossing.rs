//! SYSCALL, SYSRET, STAC and CLAC that translated code does by itself.
//!
//! Problem: a system call takes less time than coming to Rust and going back does. Scheme: when 64-bit code is
//! entered, the modes of the other privileges are worked out too; translated code then changes RFLAGS and goes
//! to the other privilege's jump cache, and notes what it has done; CS, SS and CPL follow when it is left.
//! Invariants: while crossing is open, the jump caches are those of [`Bt::sides`]; nothing that these modes
//! depend on changes but in Rust. Source: SDM vol. 2, SYSCALL, SYSRET, STAC, CLAC.

use xenolith_cpu::env::Privilege;
use xenolith_cpu::interp::is_canonical;
use xenolith_cpu::state::{Cr4, Efer, Rflags};
use xenolith_translator::area::{CROSSED_IN, CROSSED_OUT};
use xenolith_translator::mode::Mode;

use super::Bt;

/// What FMASK has to clear: IF is taken for clear, and blocks aren't made for the rest.
const CLEARED: Rflags = Rflags::TF.union(Rflags::IF).union(Rflags::DF).union(Rflags::AC);

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
        self.area.syscall_keeps = !(msr.fmask | Rflags::RF.bits()) | Rflags::FIXED.bits();
        let user_time = !state.cr4(Cr4::TSD);
        for privilege in [Privilege::User, Privilege::Supervisor, Privilege::SupervisorAc] {
            let side = if mode.privilege == privilege as u8 {
                mode
            } else {
                let side = mode.with_privilege(privilege);
                let time = self.tsc_base.is_some() && (side.ring0 || user_time);
                self.with_windows(Mode { time, ..side })
            };
            self.own_jumps(side);
            self.sides[privilege as usize] = Some(side);
        }
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
        self.sides[self.area.side as usize].expect("it was open")
    }
}
