//! SYSCALL, SYSRET, SYSENTER, SYSEXIT, IRET, STAC and CLAC that translated code does by itself.
//!
//! Problem: a system call takes less time than coming to Rust and going back does. Scheme: when code is entered,
//! the modes of the other privileges are worked out too; translated code then changes RFLAGS and goes to the other
//! privilege's jump cache, and notes what it has done; CS, SS and CPL follow when it is left. An IRET at CPL 0 is
//! done as one that the interpreter has done before, if it pops the same selectors and their descriptors still read
//! the same; in 32-bit code only one to the same level. Invariants: while crossing is open, the jump caches are
//! those of [`Bt::sides`]; nothing that these modes depend on changes but in Rust; it is open in long mode for
//! 64-bit code only. Source: SDM vol. 2, SYSCALL, SYSRET, SYSENTER, SYSEXIT, IRET, STAC, CLAC.

use xenolith_cpu::CpuState;
use xenolith_cpu::env::Privilege;
use xenolith_cpu::interp::is_canonical;
use xenolith_cpu::state::{Cr4, Efer, Rflags};
use xenolith_translator::area::{CROSSED_BACK, CROSSED_IN, CROSSED_OUT, NEAR_RETURN, Return};
use xenolith_translator::mode::Mode;

use super::Bt;

/// What FMASK has to clear: IF is taken for clear, and blocks aren't made for the rest.
const CLEARED: Rflags = Rflags::TF.union(Rflags::IF).union(Rflags::DF).union(Rflags::AC);

/// CS is flat 32-bit code.
fn is_flat32(state: &CpuState) -> bool {
    Mode::of(state).is_some_and(|mode| mode.bits == 32 && !mode.segmented)
}

impl Bt {
    /// Opens the crossing for code of `mode` that is about to run, if it can be.
    pub(super) fn ready_crossing(&mut self, mode: Mode) {
        self.area.side = u64::from(mode.privilege);
        self.area.crossing_closed = 1;
        self.open_returns(mode);
        let state = &self.interp.state;
        let msr = &state.msr;
        let long = state.long_mode();
        let may_call = if long {
            state.efer & Efer::SCE.bits() != 0
                && msr.fmask & CLEARED.bits() == CLEARED.bits()
                && is_canonical(msr.lstar)
        } else {
            msr.sysenter_cs as u16 & 0xfffc != 0
        };
        let may = !self.stepping && mode.may_cross() && may_call && long == (mode.bits == 64);
        if !may {
            return;
        }
        if long {
            self.area.lstar = msr.lstar;
            self.area.syscall_keeps = !(msr.fmask | Rflags::RF.bits()) | Rflags::FIXED.bits();
        } else {
            self.area.lstar = msr.sysenter_eip & 0xffff_ffff;
            self.area.sysenter_esp = msr.sysenter_esp & 0xffff_ffff;
        }
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
        let interp = &self.interp;
        let (call, back) = if long {
            (interp.syscall_selectors(), interp.sysret_selectors())
        } else {
            (interp.sysenter_selectors(), interp.sysexit_selectors())
        };
        self.area.syscall_selectors = call.map(u64::from);
        self.area.sysret_selectors = back.map(u64::from);
        self.area.crossing_closed = 0;
    }

    /// Opens the returns that are known, if nothing but what they look at stands in their way.
    fn open_returns(&mut self, mode: Mode) {
        let state = &self.interp.state;
        let free = !state.nmi_blocked && !state.flag(Rflags::NT) && mode.may_cross();
        let long = state.long_mode();
        for (n, known) in self.returns.iter().enumerate() {
            let there = free && known.is_some_and(|known| known.table == state.gdtr);
            let may = there
                && match n {
                    0 => long,
                    NEAR_RETURN => !long,
                    _ => long && self.interp.keeps_segments(),
                };
            self.area.returns[n].closed = u64::from(!may);
        }
    }

    /// Learns from the IRET that the interpreter has just done at CPL 0 in code of `mode`.
    pub(super) fn learn_return(&mut self, mode: Mode) {
        let state = &self.interp.state;
        let (long, outer) = (state.long_mode(), state.cpl == 3);
        let n = match mode.bits {
            64 if state.is_64bit() && matches!(state.cpl, 0 | 3) => usize::from(outer),
            32 if !long && state.cpl == 0 && is_flat32(state) => NEAR_RETURN,
            _ => return,
        };
        let known = if long { self.interp.last_return() } else { self.interp.last_return_inside() };
        self.returns[n] = known;
        let Some(known) = known else {
            self.area.returns[n] = Return::CLOSED;
            return;
        };
        let privilege = if outer { Privilege::User } else { Privilege::Supervisor };
        self.area.returns[n] = Return {
            closed: 1,
            minus_selectors: known.segments.map(|it| u64::from(it.selector).wrapping_neg()),
            descriptors: known.descriptors.map(|(at, _)| at),
            minus_descriptors: known.descriptors.map(|(_, raw)| raw.wrapping_neg()),
            // The next one will lead to the same half of the addresses.
            minus_upper: (self.interp.state.rip >> 47).wrapping_neg(),
            crossed: CROSSED_BACK << n,
            side: privilege as u64,
        };
    }

    /// Takes over what translated code has done since it was entered with `mode`; gives the mode that it was
    /// left with.
    pub(super) fn settle_crossing(&mut self, mode: Mode) -> Mode {
        let crossed = std::mem::take(&mut self.area.crossed);
        let long = self.interp.state.long_mode();
        if crossed & CROSSED_IN != 0 {
            if long {
                self.interp.enter_by_syscall();
            } else {
                self.interp.enter_by_sysenter();
            }
        }
        let [inner, outer, near] = self.returns;
        if let Some(known) = inner.filter(|_| crossed & CROSSED_BACK != 0) {
            self.interp.return_as(&known);
        }
        if let Some(known) = near.filter(|_| crossed & CROSSED_BACK << NEAR_RETURN != 0) {
            self.interp.return_inside_as(&known);
        }
        if crossed & CROSSED_OUT != 0 {
            if long {
                self.interp.leave_by_sysret();
            } else {
                self.interp.leave_by_sysexit();
            }
        }
        if let Some(known) = outer.filter(|_| crossed & CROSSED_BACK << 1 != 0) {
            self.interp.return_as(&known);
        }
        if self.area.side == u64::from(mode.privilege) {
            return mode;
        }
        self.sides[self.area.side as usize].expect("it was open")
    }
}
