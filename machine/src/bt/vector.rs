//! Where the guest's vector registers are.
//!
//! Problem: translated code has them in the host's registers, Rust may use those, and the interpreter
//! wants them in the XSAVE area; moving 512 bytes at every exit would cost more than the exit. Scheme: the
//! exit saves them to the area if they were loaded, the entry loads them if the block relies on it, and
//! only who really looks at them brings them to `CpuState`. Invariant: `home` names the newest copy
//! while Rust runs.
//!
//! x87 registers, which Rust doesn't use, stay in the host's: they are saved when somebody looks at them,
//! and at the end of a run, since another engine may be next on this thread.

use std::arch::asm;

use xenolith_cpu::state::VectorState;

use super::Bt;
use super::common::XSTATE_X87;

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

/// The x87 state but for its pointers: control, status and tag words; the registers.
const X87_PARTS: [std::ops::Range<usize>; 2] =
    [VectorState::FCW..VectorState::FTW + 1, VectorState::ST..VectorState::XMM];

impl Bt {
    /// Before translated code runs: the area has the registers, and they are loaded now if it is `live`.
    pub(super) fn ready_vectors(&mut self, live: bool) {
        if self.home == Home::State {
            let vector = &self.interp.state.vector;
            for n in 0..16 {
                self.area.ymm[n] = vector.ymm(n);
            }
            let upper = self.area.ymm.iter().any(|ymm| ymm[16..] != [0; 16]);
            self.area.vector_upper = u64::from(upper);
            self.area.guest_mxcsr = u64::from(vector.mxcsr());
            self.home = Home::Both;
        }
        if !self.has_x87() && !std::mem::replace(&mut self.x87_ready, true) {
            let (from, image) = (&self.interp.state.vector.bytes, &mut self.area.x87.0);
            for part in X87_PARTS {
                image[part.clone()].copy_from_slice(&from[part]);
            }
            image[VectorState::XSTATE_BV] = XSTATE_X87 as u8;
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

    /// Whether the guest's x87 registers are in the host's.
    pub(super) fn has_x87(&self) -> bool {
        self.area.x87_idle == 0
    }

    /// Brings the x87 registers to the state. The pointers to instruction and operand stay as they are
    /// there: the host's would be of no use to the guest.
    pub(super) fn bring_x87_home(&mut self) {
        self.x87_ready = false;
        if !self.has_x87() {
            return;
        }
        self.area.x87_idle = 1;
        let image = &raw mut self.area.x87;
        // SAFETY: the image is large and aligned enough for the x87 component and the header; a host with AVX has
        // XSAVE, which changes no register.
        unsafe {
            asm!(
                "xsave64 [{image}]",
                image = in(reg) image, in("eax") XSTATE_X87, in("edx") 0,
                options(nostack, preserves_flags),
            );
        }
        let (image, to) = (&self.area.x87.0, &mut self.interp.state.vector.bytes);
        for part in X87_PARTS {
            to[part.clone()].copy_from_slice(&image[part]);
        }
    }

    /// Brings the registers to the state.
    pub(super) fn bring_home(&mut self) {
        self.bring_x87_home();
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
