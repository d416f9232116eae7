//! What a block is specialised on.
//!
//! Problem: the same bytes mean different things in different modes, and checks that the mode decides
//! once need not be done at every access. Scheme: the mode is part of a block's key. Invariant: a mode
//! exists only for states in which plain data accesses need no segment check.

use iced_x86::Register;
use xenolith_cpu::CpuState;
use xenolith_cpu::env::Privilege;
use xenolith_cpu::state::{Cr0, Cr4, Rflags, Segment, Shadow, sreg};

/// Part of a block's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mode {
    /// Code size: 32 or 64.
    pub bits: u8,
    /// As a number: see [`Privilege`].
    pub privilege: u8,
    /// Outside 64-bit mode: FS (bit 0) and GS (bit 1) are writable and have no limit.
    pub extra_segments: u8,
    /// Vector instructions that may run: 0 none, 1 SSE, 2 AVX too; with every exception masked.
    pub vector: u8,
    /// Memory operands go through shadow windows.
    pub shadow: bool,
}

/// MXCSR's exception masks.
const MXCSR_MASKS: u32 = 0x1f80;

/// A data segment (or, for CS, code) that covers all 4 GiB from 0 and may be read and written.
fn is_flat(segment: &Segment, code: bool) -> bool {
    let kind =
        if code { segment.is_code() && segment.is_readable() } else { segment.is_writable() };
    segment.is_usable()
        && segment.is_present()
        && kind
        && !segment.is_expand_down()
        && segment.limit == u32::MAX
        && segment.base == 0
}

impl Mode {
    /// Whether accesses through `segment` need no check.
    #[must_use]
    pub fn fits(&self, segment: Register) -> bool {
        match segment {
            Register::FS => self.extra_segments & 1 != 0,
            Register::GS => self.extra_segments & 2 != 0,
            // CS is readable, but not writable.
            Register::CS => false,
            _ => true,
        }
    }

    /// The mode as a number below 2^20, another one for each.
    #[must_use]
    pub fn number(&self) -> u32 {
        u32::from(self.bits)
            | u32::from(self.privilege) << 8
            | u32::from(self.extra_segments) << 10
            | u32::from(self.vector) << 12
            | u32::from(self.shadow) << 14
    }

    /// While such code runs the vector registers are always the guest's.
    #[must_use]
    pub fn keeps_vector(&self) -> bool {
        self.privilege == Privilege::User as u8 && self.vector > 0
    }

    /// The mode of a state, if it is one that blocks are made for.
    #[must_use]
    pub fn of(state: &CpuState) -> Option<Self> {
        let plain = state.shadow == Shadow::None
            && state.pending_debug == 0
            && state.rflags & (Rflags::TF | Rflags::RF | Rflags::VM | Rflags::DF).bits() == 0
            && state.dr[7] & 0xff == 0;
        let align_check = state.cpl == 3 && state.cr0(Cr0::AM) && state.flag(Rflags::AC);
        if !plain || align_check {
            return None;
        }
        let bits = state.code_bits() as u8;
        let seg = &state.seg;
        match bits {
            64 => {}
            32 if state.protected()
                && is_flat(&seg[sreg::CS], true)
                && seg[sreg::SS].is_big()
                && [sreg::SS, sreg::DS, sreg::ES].iter().all(|&s| is_flat(&seg[s], false)) => {}
            _ => return None,
        }
        let privilege = if state.cpl == 3 {
            Privilege::User
        } else if state.flag(Rflags::AC) {
            Privilege::SupervisorAc
        } else {
            Privilege::Supervisor
        };
        let extra = |register: usize| {
            u8::from(bits == 64 || is_flat(&Segment { base: 0, ..seg[register] }, false))
        };
        let extra_segments = extra(sreg::FS) | extra(sreg::GS) << 1;
        let sse = !state.cr0(Cr0::EM)
            && !state.cr0(Cr0::TS)
            && state.cr4(Cr4::OSFXSR)
            && state.vector.mxcsr() & MXCSR_MASKS == MXCSR_MASKS;
        let avx = sse && state.cr4(Cr4::OSXSAVE) && state.xcr0 & 6 == 6;
        let vector = u8::from(sse) + u8::from(avx);
        Some(Self { bits, privilege: privilege as u8, extra_segments, vector, shadow: false })
    }
}
