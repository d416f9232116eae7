//! IRET as one that Rust has done before: see [`crate::area::Return`].

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use xenolith_cpu::env::Privilege;
use xenolith_cpu::state::{Rflags, sreg};

use super::bits::Run;
use super::memory::{Borrowed, Check};
use super::place::Spot;
use super::system::SYSRET_SYSTEM;
use super::{Emitter, R10, RCX, Site, mask};
use crate::area::{CROSSED_BACK, CROSSED_IN, NEAR_RETURN, Return, offset};
use crate::plan::{Plan, Step};

// Where the words that were popped are.
const RIP: i32 = offset::spill(4);
const CS: i32 = offset::spill(5);
const FLAGS: i32 = offset::spill(6);
const RSP: i32 = offset::spill(7);
const SS: i32 = offset::spill(2);
// Which return it is: an offset.
const RETURN: i32 = offset::spill(3);
const SECOND: i32 = size_of::<Return>() as i32;
const fn of(field: usize) -> i32 {
    offset::RETURNS + field as i32
}
const CLOSED: i32 = of(std::mem::offset_of!(Return, closed));
const SELECTORS: i32 = of(std::mem::offset_of!(Return, minus_selectors));
const UPPER: i32 = of(std::mem::offset_of!(Return, minus_upper));
const BIT: i32 = of(std::mem::offset_of!(Return, crossed));
const LEADS_TO: i32 = of(std::mem::offset_of!(Return, side));

impl Emitter<'_> {
    /// IRET at CPL 0 of five words, as one that Rust has done before: to the same selectors, by the same descriptors,
    /// which are read again. Nothing changes before all is known to fit.
    pub(super) fn return_far(&mut self, step: &Step, plan: &Plan, next: u64) {
        let out = self.hand_over_here(step, next);
        let start = self.offset();
        let (base, at) = self.stack_access(0, 40, false, step, plan);
        dynasm!(self.asm ; .arch x64
            ; lea r11, [Rq(base) + r11 + at]
            ; mov r10, [r11]
            ; gs mov [RIP], r10
            ; movzx r10d, WORD [r11 + 8]
            ; gs mov [CS], r10
            ; mov r10, [r11 + 16]
            ; gs mov [FLAGS], r10
            ; mov r10, [r11 + 24]
            ; gs mov [RSP], r10
            ; movzx r10d, WORD [r11 + 32]
            ; gs mov [SS], r10
        );
        self.spill_if_open(out);
        dynasm!(self.asm ; .arch x64
            ; gs mov rcx, [CS]
            ; gs mov r10, [SELECTORS]
            ; lea rcx, [rcx + r10]
            ; mov r11d, 0
            ; jrcxz >known
            ; gs mov rcx, [CS]
            ; gs mov r10, [SELECTORS + SECOND]
            ; lea rcx, [rcx + r10]
            ; mov r11d, SECOND
            ; jrcxz >known
            ; jmp =>out
            ; known:
            ; gs mov [RETURN], r11
            ; gs mov rcx, [SS]
            ; gs mov r10, [r11 + SELECTORS + 8]
            ; lea rcx, [rcx + r10]
            ; jrcxz >stack
            ; jmp =>out
            ; stack:
        );
        self.check_descriptor(0, step, start, out);
        self.check_descriptor(1, step, start, out);
        dynasm!(self.asm ; .arch x64
            ; gs mov r10, [RIP]
        );
        self.gather(R10, R10, Run::UPPER);
        dynasm!(self.asm ; .arch x64
            ; gs mov rcx, [r11 + UPPER]
            ; lea rcx, [rcx + r10]
            ; jrcxz >canonical
            ; jmp =>out
            ; canonical:
        );
        self.check_flags(out);
        self.take_flags();
        dynasm!(self.asm ; .arch x64
            ; gs mov r10, [offset::CROSSED]
            ; and r10d, CROSSED_IN as i32
            ; gs or r10, [r11 + BIT]
            ; gs mov [offset::CROSSED], r10
            ; gs mov r10, [r11 + LEADS_TO]
            ; gs mov [offset::SIDE], r10
        );
        self.set_selectors(|n| if n == 0 { CS } else { SS });
        self.set_status();
        dynasm!(self.asm ; .arch x64
            ; gs mov rax, [offset::spill(1)]
            ; gs mov rsp, [RSP]
        );
        self.count_instructions(self.uncounted + 1);
        dynasm!(self.asm ; .arch x64
            ; gs mov rcx, [RETURN]
            ; jrcxz >inner
            ; jmp >outer
            ; inner:
            ; gs mov rcx, [offset::spill(0)]
            ; gs mov r10, [RIP]
        );
        self.cross(Privilege::Supervisor);
        dynasm!(self.asm ; .arch x64
            ; outer:
            ; gs mov rcx, [offset::spill(0)]
        );
        if self.frame.mode.vector > 0 {
            self.load_vector();
        }
        dynasm!(self.asm ; .arch x64 ; gs mov r10, [RIP]);
        self.cross(Privilege::User);
    }

    /// IRET at CPL 0 of three words, in flat 32-bit code outside long mode: as [`Self::return_far`], but to code of the
    /// same mode, and SS stays.
    pub(super) fn return_near(&mut self, step: &Step, plan: &Plan, next: u64) {
        let out = self.hand_over_here(step, next);
        let start = self.offset();
        if self.by_segment(step) {
            dynasm!(self.asm ; .arch x64
                ; fs mov r10d, [esp]
                ; gs mov [RIP], r10
                ; fs movzx r10d, WORD [BYTE esp + 4]
                ; gs mov [CS], r10
                ; fs mov r10d, [BYTE esp + 8]
                ; gs mov [FLAGS], r10
            );
        } else {
            let (base, at) = self.stack_access(0, 12, false, step, plan);
            dynasm!(self.asm ; .arch x64
                ; lea r11, [Rq(base) + r11 + at]
                ; mov r10d, [r11]
                ; gs mov [RIP], r10
                ; movzx r10d, WORD [r11 + 4]
                ; gs mov [CS], r10
                ; mov r10d, [r11 + 8]
                ; gs mov [FLAGS], r10
            );
        }
        dynasm!(self.asm ; .arch x64
            ; gs mov [offset::spill(0)], rcx
            ; mov r11d, SECOND * NEAR_RETURN as i32
            ; gs mov [RETURN], r11
            ; gs mov rcx, [CS]
            ; gs mov r10, [r11 + SELECTORS]
            ; lea rcx, [rcx + r10]
            ; jrcxz >known
            ; jmp =>out
            ; known:
        );
        self.check_descriptor(0, step, start, out);
        self.check_flags(out);
        self.take_flags();
        dynasm!(self.asm ; .arch x64
            ; gs mov r10, [offset::CROSSED]
            ; and r10d, CROSSED_IN as i32
            ; or r10d, (CROSSED_BACK << NEAR_RETURN) as i32
            ; gs mov [offset::CROSSED], r10
            ; gs mov r10, [CS]
            ; gs mov [offset::selector(sreg::CS)], r10
        );
        self.set_status();
        dynasm!(self.asm ; .arch x64
            ; gs mov rax, [offset::spill(1)]
            ; gs mov rcx, [offset::spill(0)]
        );
        self.move_stack(12);
        self.count_instructions(self.uncounted + 1);
        dynasm!(self.asm ; .arch x64 ; gs mov r10, [RIP]);
        self.leap(self.frame.mode.privilege, Site::Crossed);
    }

    /// Goes to `out` unless the descriptor of the return at r11 reads as it did, with RCX spilled.
    fn check_descriptor(&mut self, n: i32, step: &Step, start: usize, out: DynamicLabel) {
        let rip = mask(step.insn.ip(), self.frame.mode.bits);
        let address = of(std::mem::offset_of!(Return, descriptors)) + 8 * n;
        let contents = of(std::mem::offset_of!(Return, minus_descriptors)) + 8 * n;
        dynasm!(self.asm ; .arch x64
            ; gs mov r10, [r11 + address]
            ; gs mov rcx, [offset::spill(0)]
        );
        let check = Check::one(step, rip, false, 8, start, Spot::Linear);
        self.check(Borrowed::SCRATCH, check);
        dynasm!(self.asm ; .arch x64
            ; mov r10, [r10 + r11]
            ; gs mov [offset::spill(0)], rcx
            ; gs mov r11, [RETURN]
            ; gs mov rcx, [r11 + contents]
            ; lea rcx, [rcx + r10]
            ; jrcxz >same
            ; jmp =>out
            ; same:
        );
    }

    /// Goes to `out` if the return at r11 is closed, or the flags aren't such that blocks run with, or something waits.
    /// RCX is spilled.
    fn check_flags(&mut self, out: DynamicLabel) {
        dynasm!(self.asm ; .arch x64
            ; gs mov rcx, [FLAGS]
        );
        self.pick(RCX, RCX, offset::IRET_LOOKS);
        dynasm!(self.asm ; .arch x64
            ; gs mov r10, [r11 + CLOSED]
            ; lea r10, [r10 + rcx]
            ; gs mov rcx, [FLAGS]
        );
        self.gather(RCX, RCX, Run::INTERRUPT);
        dynasm!(self.asm ; .arch x64
            ; jrcxz >masked
            ; gs mov rcx, [offset::ATTENTION]
            ; mov ecx, [rcx]
            ; jmp >waiting
            ; masked:
            ; gs mov rcx, [offset::ATTENTION]
            ; mov ecx, [rcx]
        );
        self.turn(RCX, RCX, 1);
        dynasm!(self.asm ; .arch x64
            // All but the lowest bit.
            ; lea rcx, [rcx + rcx]
            ; waiting:
            ; lea rcx, [rcx + r10]
            ; jrcxz >fits
            ; jmp =>out
            ; fits:
        );
    }

    /// Takes the flags, but for the status flags, which are in RCX after it. RAX is spilled.
    fn take_flags(&mut self) {
        dynasm!(self.asm ; .arch x64
            ; gs mov [offset::spill(1)], rax
            ; gs mov rcx, [FLAGS]
            ; mov r10, rcx
            ; and r10d, SYSRET_SYSTEM as i32
            ; or r10d, Rflags::FIXED.bits() as i32
            ; gs mov [offset::SYSTEM_FLAGS], r10
        );
        self.take_interrupt_flag();
    }
}
