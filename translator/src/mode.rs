//! What a block is specialised on.
//!
//! Problem: the same bytes mean different things in different modes, and checks that the mode decides once need not
//! be done at every access. Scheme: the mode is part of a block's key. Two kinds of modes differ in what is between
//! an offset and a linear address: nothing in 64-bit code and flat 32-bit code, but for FS and GS in the latter; a
//! base, a limit and rights in the others, which are *segmented*: their blocks look at the area's copy of the segment
//! registers at every access ([`crate::area::Bounds`]), so that the registers may change without the mode. Invariant:
//! a mode that isn't segmented exists only for states in which plain data accesses need no segment check.

use iced_x86::Register;
use xenolith_cpu::CpuState;
use xenolith_cpu::env::Privilege;
use xenolith_cpu::state::{Cr0, Cr4, Rflags, Segment, Shadow, VectorState, sreg};

/// Part of a block's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mode {
    /// Code size: 16, 32 or 64.
    pub bits: u8,
    /// As a number: see [`Privilege`].
    pub privilege: u8,
    /// Vector instructions that may run: 0 none, 1 SSE, 2 AVX too; with every exception masked.
    pub vector: u8,
    /// x87 and MMX instructions may run, with every exception masked.
    pub x87: bool,
    /// Memory operands go through shadow windows.
    pub shadow: bool,
    /// CPL 0: CLI and STI may be done.
    pub ring0: bool,
    /// RDTSC is allowed, and the guest's counter is the host's plus a constant.
    pub time: bool,
    /// Offsets are checked against segments, and their bases added.
    pub segmented: bool,
    /// What follows is for segmented modes only. The stack pointer is SP.
    pub stack16: bool,
    /// Some segment expands down: offsets are checked on both sides.
    pub expands_down: bool,
    /// How a segment register is loaded.
    pub loads: Loads,
    /// Hardware breakpoints are armed. The same code; but pages with breakpoints on code have no blocks
    /// then, and the inline TLB doesn't have those with breakpoints on data.
    pub armed: bool,
}

/// What a load of ES, SS, DS, FS or GS does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Loads {
    /// It reads a descriptor.
    Descriptor = 0,
    /// The base is made of the selector, and nothing else changes: in real mode, and in virtual-8086
    /// mode, where limit and rights are always the same. All segments may be read and written up to
    /// 0xffff, so an access of one byte by a 16-bit address needs no check.
    Base = 1,
}

/// MXCSR's exception masks.
const MXCSR_MASKS: u32 = 0x1f80;
/// Those of the x87 control word.
const FCW_MASKS: u16 = 0x3f;

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
    /// Whether accesses through `segment` can be translated.
    #[must_use]
    pub fn fits(&self, segment: Register) -> bool {
        // CS is readable, but not writable.
        self.segmented || segment != Register::CS
    }

    /// A mode that system calls, returns from them, STAC and CLAC may lead from and to without Rust.
    #[must_use]
    pub fn may_cross(&self) -> bool {
        !self.segmented && !self.armed
    }

    /// Whether the pages of such code are looked for by [`crate::area::Area::homes`], so that it may float.
    #[must_use]
    pub fn has_home(&self) -> bool {
        self.privilege == Privilege::User as u8 && !self.segmented
    }

    /// Whether FS is lent to such code: its base is where the windows of the privilege begin, if there are any. An
    /// address of 32 bits is added to it as the guest's processor would add it to a base of 0, wrapping around at 4 GiB.
    #[must_use]
    pub fn lends_fs(&self) -> bool {
        self.bits == 32 && !self.segmented
    }

    /// The supervisor's mode with AC set.
    #[must_use]
    pub fn has_ac(&self) -> bool {
        self.privilege == Privilege::SupervisorAc as u8
    }

    /// The mode that they lead to with another privilege, with the inline TLB.
    #[must_use]
    pub fn with_privilege(&self, privilege: Privilege) -> Self {
        let ring0 = privilege != Privilege::User;
        Self { privilege: privilege as u8, ring0, shadow: false, ..*self }
    }

    /// The mode as a number below 2^20, another one for each.
    #[must_use]
    pub fn number(&self) -> u32 {
        // 16, 32 and 64 become 1, 2 and 4.
        u32::from(self.bits) >> 4
            | u32::from(self.privilege) << 3
            | u32::from(self.vector) << 5
            | u32::from(self.shadow) << 7
            | u32::from(self.ring0) << 8
            | u32::from(self.segmented) << 9
            | u32::from(self.stack16) << 10
            | u32::from(self.expands_down) << 11
            | (self.loads as u32) << 12
            | u32::from(self.armed) << 13
            | u32::from(self.x87) << 14
            | u32::from(self.time) << 15
    }

    /// The mode of a number; bits above 20 don't count.
    #[must_use]
    pub fn numbered(number: u32) -> Self {
        let bit = |n: u32| number >> n & 1 != 0;
        Self {
            bits: (number & 7) as u8 * 16,
            privilege: (number >> 3 & 3) as u8,
            vector: (number >> 5 & 3) as u8,
            x87: bit(14),
            shadow: bit(7),
            ring0: bit(8),
            time: bit(15),
            segmented: bit(9),
            stack16: bit(10),
            expands_down: bit(11),
            loads: if bit(12) { Loads::Base } else { Loads::Descriptor },
            armed: bit(13),
        }
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
            && state.rflags & (Rflags::TF | Rflags::RF | Rflags::DF).bits() == 0;
        let align_check = state.cpl == 3 && state.cr0(Cr0::AM) && state.flag(Rflags::AC);
        if !plain || align_check {
            return None;
        }
        let bits = state.code_bits() as u8;
        let seg = &state.seg;
        let flat = bits == 64
            || bits == 32
                && state.protected()
                && !state.flag(Rflags::VM)
                && is_flat(&seg[sreg::CS], true)
                && seg[sreg::SS].is_big()
                && [sreg::SS, sreg::DS, sreg::ES].iter().all(|&s| is_flat(&seg[s], false))
                && ![sreg::FS, sreg::GS].iter().any(|&s| seg[s].is_expand_down());
        let privilege = if state.cpl == 3 {
            Privilege::User
        } else if state.flag(Rflags::AC) {
            Privilege::SupervisorAc
        } else {
            Privilege::Supervisor
        };
        let there = !state.cr0(Cr0::EM) && !state.cr0(Cr0::TS);
        // No exception is pending where all are masked.
        let x87 = there && state.vector.u16_at(VectorState::FCW) & FCW_MASKS == FCW_MASKS;
        let sse =
            there && state.cr4(Cr4::OSFXSR) && state.vector.mxcsr() & MXCSR_MASKS == MXCSR_MASKS;
        let vex = !state.real_or_v86() && state.cr4(Cr4::OSXSAVE) && state.xcr0 & 6 == 6;
        let vector = u8::from(sse) + u8::from(sse && vex);
        Some(Self {
            bits,
            privilege: privilege as u8,
            vector,
            x87,
            shadow: false,
            ring0: state.cpl == 0,
            time: !(state.cr4(Cr4::TSD) && state.cpl != 0 && state.protected()),
            segmented: !flat,
            stack16: !flat && !seg[sreg::SS].is_big(),
            expands_down: !flat && seg.iter().any(Segment::is_expand_down),
            loads: if !flat && loads_bases(state) { Loads::Base } else { Loads::Descriptor },
            armed: state.dr[7] & 0xff != 0,
        })
    }
}

/// See [`Loads::Base`].
fn loads_bases(state: &CpuState) -> bool {
    const RIGHTS: u32 = Segment::PRESENT | Segment::S;
    let v86 = state.v86();
    state.real_or_v86()
        && state.seg.iter().enumerate().all(|(register, segment)| {
            let limit = if v86 { segment.limit == 0xffff } else { segment.limit >= 0xffff };
            let rights = if v86 {
                segment.access == V86_ACCESS || register == sreg::CS
            } else {
                segment.is_usable() && segment.access & RIGHTS == RIGHTS
            };
            limit && rights && !segment.is_expand_down()
        })
}

/// A data segment's access rights in virtual-8086 mode: present, DPL 3, writable, accessed (SDM vol. 3,
/// "Virtual-8086 Mode").
const V86_ACCESS: u32 = 0xf3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_all_of_its_mode() {
        for number in 0..1 << 16 {
            let bits = number & 7;
            if matches!(bits, 1 | 2 | 4) {
                assert_eq!(Mode::numbered(number).number(), number);
            }
        }
    }
}
