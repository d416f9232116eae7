//! Sensitive instructions that need no Rust.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Instruction, Mnemonic};
use xenolith_cpu::env::{Privilege, attention};
use xenolith_cpu::state::{Rflags, sreg};

use super::bits::Run;
use super::names::scratch_number;
use super::{Emitter, R10, R11, RAX, RCX, RDX, Restore, Site, Stub, mask};
use crate::area::{CROSSED_IN, CROSSED_OUT, SYSRET_LOOKS, offset};
use crate::classify::slot_bytes;
use crate::plan::{Plan, Step};

/// The attention bits that matter while interrupts are off.
const UNMASKABLE: i32 = !(attention::INTR as i32);
/// RFLAGS's bits that SYSRET takes from R11, but for the status flags and IF.
pub(super) const SYSRET_SYSTEM: u64 = Rflags::all()
    .difference(Rflags::STATUS)
    .difference(Rflags::IF)
    .difference(Rflags::RF)
    .difference(Rflags::VM)
    .bits();
/// RFLAGS's bits that POPF at CPL 0 takes, but for the status flags, IF and those that blocks can't run with.
const POPF_SYSTEM: i32 = Rflags::IOPL.bits() as i32;
/// IF's place, from which it is moved to that of [`attention::INTR`].
const IF_BIT: i8 = Rflags::IF.bits().trailing_zeros() as i8;
const _: () = assert!(attention::INTR == 1);
/// OF in the second byte of RFLAGS, and what a byte with only it set overflows by when added to.
const OVERFLOW_BIT: i8 = 8;
const OVERFLOWS: i8 = 0x78;

impl Emitter<'_> {
    /// CLI: maskable interrupts are no reason to stop any more.
    pub(super) fn clear_interrupts(&mut self) {
        dynasm!(self.asm ; .arch x64
            ; gs mov QWORD [offset::INTERRUPT_FLAG], 0
            ; gs mov DWORD [offset::ATTENTION_MASK], UNMASKABLE
        );
    }

    /// STI. If something waits, the interpreter does it, and takes what is due behind the next instruction:
    /// there may be a CLI before the next poll.
    pub(super) fn set_interrupts(&mut self, step: &Step, next: u64) {
        let out = self.hand_over_here(step, next);
        dynasm!(self.asm ; .arch x64
            ; gs mov [offset::spill(0)], rcx
            ; gs mov rcx, [offset::ATTENTION]
            ; mov ecx, [rcx]
            ; jrcxz >quiet
            ; jmp =>out
            ; quiet:
            ; gs mov rcx, [offset::spill(0)]
            ; gs mov QWORD [offset::INTERRUPT_FLAG], 0x200
            ; gs mov DWORD [offset::ATTENTION_MASK], -1
        );
    }

    /// RDTSC, RDTSCP. The latter waits for what comes before it here too.
    pub(super) fn read_time(&mut self, insn: &Instruction) {
        if insn.mnemonic() == Mnemonic::Rdtscp {
            dynasm!(self.asm ; .arch x64 ; rdtscp ; gs mov ecx, [offset::TSC_AUX]);
        } else {
            dynasm!(self.asm ; .arch x64 ; rdtsc);
        }
        self.turn(RDX, RDX, 32);
        dynasm!(self.asm ; .arch x64
            ; lea rax, [rax + rdx]
            ; gs mov r11, [offset::TSC_BASE]
            ; lea rax, [rax + r11]
        );
        self.turn(RDX, RAX, 32);
        dynasm!(self.asm ; .arch x64
            ; mov edx, edx
            ; mov eax, eax
        );
    }

    /// MOV from a control register.
    pub(super) fn read_control(&mut self, insn: &Instruction) {
        let target = insn.op0_register().full_register();
        let number = target.number() as u8;
        let from = offset::control(insn.op1_register().number());
        if self.wide() {
            dynasm!(self.asm ; .arch x64 ; gs mov Rq(number), [from]);
        } else {
            dynasm!(self.asm ; .arch x64 ; gs mov Rd(number), [from]);
        }
        if let Some(number) = scratch_number(target) {
            self.store_guest(number);
        }
    }

    /// The stub of an instruction that the interpreter does if it can't be done here, with RCX spilled.
    pub(super) fn hand_over_here(&mut self, step: &Step, next: u64) -> DynamicLabel {
        let rip = mask(step.insn.ip(), self.frame.mode.bits);
        let site = Site::HandOver {
            rip,
            next,
            resume: 0,
            live: self.vector_live,
            mnemonic: step.insn.mnemonic(),
            done: self.uncounted,
            again: 0,
        };
        let (label, site) = (self.asm.new_dynamic_label(), self.site(site));
        self.stubs.push(Stub { label, site, restore: Restore::Rcx });
        label
    }

    /// Takes IF, and what it lets in, from the flags in RCX. r10 is lost, and so are the host's flags.
    pub(super) fn take_interrupt_flag(&mut self) {
        dynasm!(self.asm ; .arch x64
            ; mov r10d, ecx
            ; and r10d, Rflags::IF.bits() as i32
            ; gs mov [offset::INTERRUPT_FLAG], r10
            ; shr r10d, IF_BIT
            ; or r10d, UNMASKABLE
            ; gs mov [offset::ATTENTION_MASK], r10d
        );
    }

    /// Spills RCX, and goes to `out` unless crossing is open.
    pub(super) fn spill_if_open(&mut self, out: DynamicLabel) {
        dynasm!(self.asm ; .arch x64
            ; gs mov [offset::spill(0)], rcx
            ; gs mov rcx, [offset::CROSSING_CLOSED]
            ; jrcxz >open
            ; jmp =>out
            ; open:
        );
    }

    /// Sets the status flags to those in RCX, by way of RAX.
    pub(super) fn set_status(&mut self) {
        dynasm!(self.asm ; .arch x64
            ; mov al, ch
            ; and al, OVERFLOW_BIT
            ; add al, OVERFLOWS
            ; mov ah, cl
            ; sahf
        );
    }

    /// POPF at CPL 0, where it changes nothing that blocks depend on. If an interrupt waits that it lets in, the
    /// interpreter does it: there may be a CLI before the next poll.
    pub(super) fn pop_flags(&mut self, step: &Step, plan: &Plan, next: u64) {
        let out = self.hand_over_here(step, next);
        let size = slot_bytes(&step.insn);
        self.stack_load(R10, size, step, plan);
        dynasm!(self.asm ; .arch x64
            ; gs mov [offset::spill(7)], r10
            ; gs mov [offset::spill(0)], rcx
            ; mov r11d, 0
        );
        self.check_flags_image(out);
        let taken = if size == 2 { POPF_SYSTEM } else { POPF_SYSTEM | Rflags::ID.bits() as i32 };
        self.take_flags_image(taken, taken | Rflags::NT.bits() as i32);
        self.move_stack(i32::from(size));
    }

    /// Looks at an image of the flags in r10, with RCX spilled: goes to `out` if blocks can't run with it, if it
    /// lets in an interrupt that waits, or if r11 isn't zero.
    pub(super) fn check_flags_image(&mut self, out: DynamicLabel) {
        self.pick(RCX, R10, offset::IRET_LOOKS);
        dynasm!(self.asm ; .arch x64 ; lea r11, [r11 + rcx]);
        self.gather(RCX, R10, Run::INTERRUPT);
        dynasm!(self.asm ; .arch x64
            ; jrcxz >masked
            ; gs mov rcx, [offset::ATTENTION]
            ; mov ecx, [rcx]
            ; masked:
            ; lea rcx, [rcx + r11]
            ; jrcxz >fits
            ; jmp =>out
            ; fits:
        );
    }

    /// Takes the flags from the image in spill slot 7: status flags, IF, and of the others those in `taken` in place of
    /// those in `replaced`. RCX is spilled, and whole after it.
    pub(super) fn take_flags_image(&mut self, taken: i32, replaced: i32) {
        dynasm!(self.asm ; .arch x64
            ; gs mov [offset::spill(1)], rax
            ; gs mov rcx, [offset::spill(7)]
            ; mov r10d, ecx
            ; and r10d, taken
            ; gs mov r11, [offset::SYSTEM_FLAGS]
            ; and r11d, !replaced
            ; or r11d, r10d
            ; gs mov [offset::SYSTEM_FLAGS], r11
        );
        self.take_interrupt_flag();
        self.set_status();
        dynasm!(self.asm ; .arch x64
            ; gs mov rax, [offset::spill(1)]
            ; gs mov rcx, [offset::spill(0)]
        );
    }

    /// Goes to the address in r10 with another privilege.
    pub(super) fn cross(&mut self, to: Privilege) {
        if self.frame.mode.lends_fs() && to != Privilege::SupervisorAc {
            let window = offset::regions(to as usize);
            dynasm!(self.asm ; .arch x64 ; gs mov r11, [window] ; wrfsbase r11);
        }
        self.leap(to as u8, Site::Crossed);
    }

    /// SYSCALL. Rust has seen that FMASK clears IF and all that blocks can't run with.
    pub(super) fn enter_kernel(&mut self, step: &Step, next: u64) {
        let out = self.hand_over_here(step, next);
        self.spill_if_open(out);
        dynasm!(self.asm ; .arch x64
            ; gs mov [offset::spill(1)], rax
            ; gs mov [offset::spill(3)], rsp
            ; gs mov rsp, [offset::HOST_RSP]
            ; pushfq
            ; pop rcx
            ; gs mov rsp, [offset::spill(3)]
            ; gs and rcx, [offset::STATUS]
            ; gs mov rax, [offset::SYSTEM_FLAGS]
            ; or rcx, rax
            ; gs or rcx, [offset::INTERRUPT_FLAG]
            ; gs mov [offset::gpr(11)], rcx
            ; gs and rax, [offset::SYSCALL_KEEPS]
            ; gs mov [offset::SYSTEM_FLAGS], rax
            ; gs and rcx, [offset::SYSCALL_KEEPS]
        );
        self.clear_interrupts();
        dynasm!(self.asm ; .arch x64
            ; gs mov QWORD [offset::CROSSED], CROSSED_IN as i32
            ; gs mov QWORD [offset::SIDE], Privilege::Supervisor as i32
        );
        self.set_selectors(offset::syscall_selector);
        self.set_status();
        dynasm!(self.asm ; .arch x64 ; gs mov rax, [offset::spill(1)]);
        self.address(RCX, next);
        self.count_instructions(self.uncounted + 1);
        dynasm!(self.asm ; .arch x64 ; gs mov r10, [offset::LSTAR]);
        self.cross(Privilege::Supervisor);
    }

    /// SYSRET to 64-bit code, with interrupts and nothing that blocks can't run with.
    pub(super) fn leave_kernel(&mut self, step: &Step, next: u64) {
        let out = self.hand_over_here(step, next);
        dynasm!(self.asm ; .arch x64
            ; gs mov [offset::spill(0)], rcx
        );
        self.gather(R11, RCX, Run::UPPER);
        dynasm!(self.asm ; .arch x64
            ; gs mov rcx, [offset::CROSSING_CLOSED]
            ; lea rcx, [rcx + r11 * 2]
            ; jrcxz >open
            ; jmp =>out
            ; open:
            ; gs mov r10, [offset::gpr(11)]
        );
        self.differs(RCX, R10, SYSRET_LOOKS.bits() as u32, Rflags::IF.bits() as u32);
        dynasm!(self.asm ; .arch x64
            ; jrcxz >fits
            ; jmp =>out
            ; fits:
            ; gs mov [offset::spill(1)], rax
            ; mov rcx, r10
            ; and r10d, SYSRET_SYSTEM as i32
            ; or r10d, Rflags::FIXED.bits() as i32
            ; gs mov [offset::SYSTEM_FLAGS], r10
            ; gs mov QWORD [offset::INTERRUPT_FLAG], Rflags::IF.bits() as i32
            ; gs mov DWORD [offset::ATTENTION_MASK], -1
            ; gs or QWORD [offset::CROSSED], CROSSED_OUT as i32
            ; gs mov QWORD [offset::SIDE], Privilege::User as i32
        );
        self.set_selectors(offset::sysret_selector);
        self.set_status();
        dynasm!(self.asm ; .arch x64
            ; gs mov rax, [offset::spill(1)]
            ; gs mov rcx, [offset::spill(0)]
        );
        self.count_instructions(self.uncounted + 1);
        if self.frame.mode.vector > 0 {
            self.load_vector();
        }
        dynasm!(self.asm ; .arch x64 ; mov r10, rcx);
        self.cross(Privilege::User);
    }

    /// SYSENTER from 32-bit code outside long mode. RFLAGS but for IF stay, so none may be set that blocks can't run
    /// with at CPL 0.
    pub(super) fn enter_kernel32(&mut self, step: &Step, next: u64) {
        let out = self.hand_over_here(step, next);
        dynasm!(self.asm ; .arch x64
            ; gs mov [offset::spill(0)], rcx
            ; gs mov rcx, [offset::SYSTEM_FLAGS]
        );
        self.pick(RCX, RCX, offset::IRET_LOOKS);
        dynasm!(self.asm ; .arch x64
            ; gs mov r10, [offset::CROSSING_CLOSED]
            ; lea rcx, [rcx + r10]
            ; jrcxz >open
            ; jmp =>out
            ; open:
            ; gs mov rcx, [offset::spill(0)]
        );
        self.clear_interrupts();
        dynasm!(self.asm ; .arch x64
            ; gs mov QWORD [offset::CROSSED], CROSSED_IN as i32
            ; gs mov QWORD [offset::SIDE], Privilege::Supervisor as i32
        );
        self.set_selectors(offset::syscall_selector);
        self.count_instructions(self.uncounted + 1);
        dynasm!(self.asm ; .arch x64
            ; gs mov rsp, [offset::SYSENTER_ESP]
            ; gs mov r10, [offset::LSTAR]
        );
        self.cross(Privilege::Supervisor);
    }

    /// SYSEXIT to 32-bit code outside long mode.
    pub(super) fn leave_kernel32(&mut self, step: &Step, next: u64) {
        let out = self.hand_over_here(step, next);
        self.spill_if_open(out);
        dynasm!(self.asm ; .arch x64
            ; gs mov rcx, [offset::spill(0)]
            ; gs or QWORD [offset::CROSSED], CROSSED_OUT as i32
            ; gs mov QWORD [offset::SIDE], Privilege::User as i32
        );
        self.set_selectors(offset::sysret_selector);
        self.count_instructions(self.uncounted + 1);
        if self.frame.mode.vector > 0 {
            self.load_vector();
        }
        dynasm!(self.asm ; .arch x64 ; mov esp, ecx ; mov r10d, edx);
        self.cross(Privilege::User);
    }

    /// Gives CS and SS these selectors; r11 is free.
    pub(super) fn set_selectors(&mut self, from: impl Fn(usize) -> i32) {
        for (n, register) in [sreg::CS, sreg::SS].into_iter().enumerate() {
            let to = offset::selector(register);
            dynasm!(self.asm ; .arch x64 ; gs mov r11, [from(n)] ; gs mov [to], r11);
        }
    }

    /// STAC or CLAC, where AC isn't what it will be.
    pub(super) fn toggle_ac(&mut self, step: &Step, next: u64) {
        let out = self.hand_over_here(step, next);
        let (by, to) = match step.insn.mnemonic() {
            Mnemonic::Stac => (Rflags::AC.bits() as i32, Privilege::SupervisorAc),
            _ => (-(Rflags::AC.bits() as i32), Privilege::Supervisor),
        };
        self.spill_if_open(out);
        dynasm!(self.asm ; .arch x64
            ; gs mov rcx, [offset::SYSTEM_FLAGS]
            ; lea rcx, [rcx + by]
            ; gs mov [offset::SYSTEM_FLAGS], rcx
            ; gs mov rcx, [offset::spill(0)]
            ; gs mov QWORD [offset::SIDE], to as i32
        );
        self.count_instructions(self.uncounted + 1);
        self.address(R10, next);
        self.cross(to);
    }

    /// SWAPGS.
    pub(super) fn swap_gs(&mut self) {
        let base = offset::seg_base(sreg::GS);
        dynasm!(self.asm ; .arch x64
            ; gs mov r10, [base]
            ; gs mov r11, [offset::KERNEL_GS_BASE]
            ; gs mov [base], r11
            ; gs mov [offset::KERNEL_GS_BASE], r10
        );
    }
}
