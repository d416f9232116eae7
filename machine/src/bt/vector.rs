//! Where the guest's vector registers are.
//!
//! Problem: translated code has them in the host's registers, Rust may use those, and the interpreter
//! wants them in the XSAVE area; moving 512 bytes at every exit would cost more than the exit. Scheme: the
//! exit saves them to the area if they were loaded, the entry loads them if the block relies on it, and
//! only who really looks at them brings them to `CpuState`. Invariant: `home` names the newest copy
//! while Rust runs.

use xenolith_cpu::state::VectorState;

use super::Bt;

/// Where the newest copy is while Rust runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// `CpuState::vector`.
    State,
    /// The area.
    Area,
    /// Both are the same.
    Both,
}

impl Bt {
    /// Before translated code runs: the area has the registers, and they are loaded now if it is `live`.
    pub(super) fn ready_vectors(&mut self, live: bool) {
        if self.home == Home::State {
            let vector = &self.interp.state.vector;
            for n in 0..16 {
                self.area.ymm[n] = vector.ymm(n);
            }
            self.area.guest_mxcsr = u64::from(vector.mxcsr());
            self.home = Home::Both;
        }
        self.area.vector_wanted = u64::from(live);
        self.area.vector_idle = 1;
        self.area.vector_saved = 0;
    }

    /// After it: the newest copy is in the area if any was saved.
    pub(super) fn vectors_left(&mut self) {
        if self.area.vector_saved != 0 {
            self.home = Home::Area;
        }
    }

    /// Brings the registers to the state.
    pub(super) fn bring_home(&mut self) {
        if std::mem::replace(&mut self.home, Home::State) == Home::Area {
            let vector = &mut self.interp.state.vector;
            for n in 0..16 {
                vector.set_ymm(n, &self.area.ymm[n]);
            }
            vector.set_mxcsr(self.area.guest_mxcsr as u32);
            debug_assert_eq!(vector.bytes[VectorState::XSTATE_BV], 7);
        }
    }
}
