//! Breakpoints, single-step and shadows (SDM vol. 3, "Debug Exceptions").

use iced_x86::code_asm::{byte_ptr, dword_ptr, ptr, registers as r};

use super::bench::{Bench, DATA, HANDLERS, KERNEL_DATA, STACK, USER_STACK};
use crate::interp::Exit;
use crate::state::reg::{RAX, RCX, RDI, RSP};
use crate::state::{Activity, Rflags, Shadow};

const TF: u64 = Rflags::TF.bits();
const RF: u64 = Rflags::RF.bits();
const IF: u64 = Rflags::IF.bits();
const DR6: u64 = 0xffff_0ff0;
const BS: u64 = 1 << 14;
const BD: u64 = 1 << 13;

/// DR7 with breakpoint 0 armed; `kind` and `len` as its fields are.
fn armed(kind: u64, len: u64) -> u64 {
    0x401 | kind << 16 | len << 18
}

const EXECUTE: u64 = 0;
const WRITE: u64 = 1;
const PORT: u64 = 2;
const ACCESS: u64 = 3;

impl Bench {
    /// Goes on where the handler was called from, as its IRET would.
    fn resume(&mut self) {
        let caught = self.frame();
        let s = &mut self.vm.state;
        s.rip = caught.rip;
        s.rflags = caught.flags;
        s.gpr[RSP] = if caught.rsp != 0 { caught.rsp } else { STACK };
        s.activity = Activity::Running;
        s.dr[6] = DR6;
    }
}

#[test]
fn single_step_traps_after_the_instruction() {
    let mut b = Bench::new(64);
    b.bytes(b"\x90\x90").vm.state.rflags |= TF;
    let caught = b.expect(1, 0, 1);
    assert_eq!(caught.flags & (TF | RF), TF);
    assert_eq!(b.vm.state.dr[6], DR6 | BS);
    assert_eq!(b.vm.state.rflags & TF, 0);
}

#[test]
fn single_step_of_a_repetition_traps_after_each_iteration() {
    let mut b = Bench::new(64);
    b.bytes(b"\xf3\xaa").vm.state.rflags |= TF;
    b.vm.state.gpr[RCX] = 3;
    b.vm.state.gpr[RDI] = DATA;
    for left in [2, 1] {
        let caught = b.expect(1, 0, 0);
        assert_eq!((b.vm.state.gpr[RCX], caught.flags & RF), (left, RF));
        b.resume();
    }
    let caught = b.expect(1, 0, 2);
    assert_eq!((b.vm.state.gpr[RCX], caught.flags & RF), (0, 0));
}

#[test]
fn a_fault_is_not_single_stepped() {
    let mut b = Bench::new(64);
    b.bytes(b"\x0f\x0b").vm.state.rflags |= TF;
    let caught = b.expect(6, 0, 0);
    assert_eq!(caught.flags & (TF | RF), TF | RF);
    assert_eq!(b.vm.state.dr[6], DR6);
}

#[test]
fn int_is_not_single_stepped() {
    let mut b = Bench::new(64);
    b.bytes(b"\xcd\x80").vm.state.rflags |= TF;
    let caught = b.expect(0x80, 0, 2);
    assert_eq!(caught.flags & (TF | RF), TF);
}

#[test]
fn syscall_traps_unless_fmask_clears_tf() {
    for (fmask, vector) in [(TF, 0x90), (0, 1)] {
        let mut b = Bench::new(64);
        b.set_level(3);
        b.bytes(b"\x0f\x05").vm.state.rflags |= TF;
        b.vm.state.msr.star = 0x08 << 32;
        b.vm.state.msr.lstar = HANDLERS + 0x900;
        b.vm.state.msr.fmask = fmask;
        // The handler's stack: SYSCALL doesn't switch.
        b.run();
        let la = b.vm.state.rip - 1;
        assert_eq!((la - HANDLERS) >> 4, vector);
    }
}

#[test]
fn hlt_is_woken_by_its_single_step_trap() {
    let mut b = Bench::new(64);
    b.bytes(b"\xf4").vm.state.rflags |= TF;
    b.expect(1, 0, 1);
}

#[test]
fn an_instruction_breakpoint_comes_first_and_pushes_no_rf() {
    let mut b = Bench::new(64);
    b.bytes(b"\x90\xf4");
    b.vm.state.dr[0] = super::bench::CODE;
    b.vm.state.dr[7] = armed(EXECUTE, 0);
    let caught = b.expect(1, 0, 0);
    assert_eq!((caught.flags & RF, b.vm.state.dr[6]), (0, DR6 | 1));
    // With RF set the instruction is executed, and RF is gone after it.
    b.resume();
    b.vm.state.rflags |= RF;
    b.vm.step();
    assert_eq!(b.vm.state.rip, super::bench::CODE + 1);
    assert_eq!(b.vm.state.rflags & RF, 0);
}

#[test]
fn an_instruction_breakpoint_on_a_repetition_comes_once() {
    let mut b = Bench::new(64);
    b.bytes(b"\xf3\xaa\xf4");
    b.vm.state.gpr[RCX] = 5;
    b.vm.state.gpr[RDI] = DATA;
    b.vm.state.dr[0] = super::bench::CODE;
    b.vm.state.dr[7] = armed(EXECUTE, 0);
    b.vm.state.rflags |= RF;
    b.expect_halt();
    assert_eq!(b.vm.state.gpr[RCX], 0);
}

#[test]
fn a_data_breakpoint_traps_after_the_access() {
    for kind in [WRITE, ACCESS] {
        let mut b = Bench::new(64);
        b.code(|a| {
            a.mov(dword_ptr(r::rdi), r::eax)?;
            a.mov(r::eax, dword_ptr(r::rdi))?;
            a.hlt()
        });
        b.vm.state.gpr[RDI] = DATA;
        b.vm.state.dr[0] = DATA + 2;
        b.vm.state.dr[7] = armed(kind, 0);
        let caught = b.expect(1, 0, 2);
        assert_eq!((caught.flags & RF, b.vm.state.dr[6]), (0, DR6 | 1));
        b.resume();
        if kind == ACCESS {
            b.expect(1, 0, 4);
        } else {
            b.expect_halt();
        }
    }
}

#[test]
fn breakpoints_meet_accesses_by_their_aligned_range() {
    // (address, length field, access, bytes, hit)
    let cases = [
        (DATA + 5, 3, DATA + 4, 1, true),
        (DATA + 5, 3, DATA + 3, 1, false),
        (DATA + 5, 2, DATA, 1, true),
        (DATA + 8, 2, DATA + 7, 1, false),
        (DATA + 8, 0, DATA + 7, 4, true),
        (DATA + 3, 1, DATA + 2, 1, true),
    ];
    for (address, len, at, bytes, hit) in cases {
        let mut b = Bench::new(64);
        b.bytes(if bytes == 1 { b"\x88\x07\xf4" } else { b"\x89\x07\xf4" });
        b.vm.state.gpr[RDI] = at;
        b.vm.state.dr[0] = address;
        b.vm.state.dr[7] = armed(WRITE, len);
        b.run();
        assert_eq!(b.vm.state.dr[6] & 1 != 0, hit, "{address:x} {len} {at:x}");
    }
}

#[test]
fn a_data_breakpoint_in_a_repetition_traps_after_that_iteration() {
    let mut b = Bench::new(64);
    b.bytes(b"\xf3\xaa\xf4");
    b.vm.state.gpr[RCX] = 8;
    b.vm.state.gpr[RDI] = DATA;
    b.vm.state.dr[0] = DATA + 2;
    b.vm.state.dr[7] = armed(WRITE, 0);
    let caught = b.expect(1, 0, 0);
    assert_eq!((b.vm.state.gpr[RCX], caught.flags & RF), (5, RF));
    b.resume();
    b.expect_halt();
}

#[test]
fn a_data_breakpoint_of_a_faulting_instruction_is_forgotten() {
    let mut b = Bench::new(64);
    // push [DATA], with no stack.
    b.code(|a| a.push(iced_x86::code_asm::qword_ptr(DATA)));
    b.vm.mem.map(0x50_0000, None);
    b.vm.state.gpr[RSP] = 0x50_0008;
    b.set_gate(14, 0x8e, super::bench::KERNEL_CODE);
    let gate = b.read_u64(super::bench::IDT + 16 * 14);
    // On a stack of its own.
    b.set_raw_gate(14, gate | 1 << 32);
    b.vm.state.dr[0] = DATA;
    b.vm.state.dr[7] = armed(ACCESS, 0);
    b.expect(14, 2, 0);
    assert_eq!(b.vm.state.dr[6], DR6);
    assert_eq!(b.vm.state.pending_debug, 0);
}

#[test]
fn port_breakpoints_need_debugging_extensions() {
    for (cr4, hit) in [(8, true), (0, false)] {
        let mut b = Bench::new(64);
        b.bytes(b"\xe6\x80\xf4");
        b.vm.state.cr4 |= cr4;
        b.vm.state.dr[0] = 0x80;
        b.vm.state.dr[7] = armed(PORT, 0);
        b.run();
        assert_eq!(b.vm.state.dr[6] & 1 != 0, hit);
        assert_eq!(b.world.lock().expect("done").port_writes.len(), 1);
    }
}

#[test]
fn guarded_debug_registers_fault_with_bd() {
    let mut b = Bench::new(64);
    b.code(|a| a.mov(r::dr0, r::rax));
    b.vm.state.dr[7] = 0x400 | 1 << 13;
    let caught = b.expect(1, 0, 0);
    assert_eq!((caught.flags & RF, b.vm.state.dr[6]), (RF, DR6 | BD));
    assert_eq!(b.vm.state.dr[7], 0x400);
}

#[test]
fn debug_registers_keep_their_fixed_bits() {
    let mut b = Bench::new(64);
    b.code(|a| {
        a.mov(r::dr6, r::rax)?;
        a.mov(r::dr7, r::rax)?;
        // Aliases, without CR4.DE.
        a.mov(r::rcx, r::dr4)?;
        a.mov(r::rdi, r::dr5)?;
        a.hlt()
    });
    b.expect_halt();
    assert_eq!((b.vm.state.gpr[RCX], b.vm.state.gpr[RDI]), (DR6, 0x400));
    b.vm.state.activity = Activity::Running;
    b.vm.state.rip = super::bench::CODE;
    // All but breakpoints and GD.
    b.vm.state.gpr[RAX] = 0xffff_dc00;
    b.expect_halt();
    assert_eq!((b.vm.state.gpr[RCX], b.vm.state.gpr[RDI]), (0xffff_cff0, 0xffff_0400));
}

#[test]
fn debug_registers_check_aliases_rights_and_reserved_bits() {
    let mut b = Bench::new(64);
    b.vm.state.cr4 |= 8;
    b.code(|a| a.mov(r::rax, r::dr4)).expect(6, 0, 0);
    let mut b = Bench::new(64);
    b.vm.state.gpr[RAX] = 1 << 32;
    b.code(|a| a.mov(r::dr7, r::rax)).expect(13, 0, 0);
    let mut b = Bench::new(64);
    b.set_level(3);
    b.code(|a| a.mov(r::rax, r::dr0)).expect(13, 0, 0);
}

#[test]
fn loading_ss_holds_traps_off_for_one_instruction() {
    let mut b = Bench::new(64);
    b.code(|a| {
        a.mov(r::ss, ptr(DATA))?;
        a.nop()?;
        a.nop()?;
        a.hlt()
    });
    b.write(DATA, &KERNEL_DATA.to_le_bytes());
    b.vm.state.dr[0] = DATA;
    b.vm.state.dr[7] = armed(ACCESS, 1);
    let length = 7;
    b.expect(1, 0, length + 1);
    assert_eq!(b.vm.state.dr[6], DR6 | 1);

    // Single-step: its own trap is lost, the next one's is not.
    let mut b = Bench::new(64);
    b.bytes(b"\x8e\xd0\x90\x90").vm.state.gpr[RAX] = u64::from(KERNEL_DATA);
    b.vm.state.rflags |= TF;
    b.expect(1, 0, 3);
}

#[test]
fn only_the_first_of_several_loads_of_ss_holds_anything_off() {
    let mut b = Bench::new(64);
    b.bytes(b"\x8e\xd0\x8e\xd0\x90\x90").vm.state.gpr[RAX] = u64::from(KERNEL_DATA);
    b.vm.state.rflags |= IF;
    b.vm.step();
    assert_eq!(b.vm.state.shadow, Shadow::MovSs);
    b.interrupt(0x40);
    b.expect(0x40, 0, 4);
}

#[test]
fn a_trap_held_off_by_ss_comes_inside_the_handler_of_an_int() {
    let mut b = Bench::new(64);
    b.bytes(b"\x8e\x10\xcd\x80").vm.state.gpr[RAX] = DATA;
    b.write(DATA, &KERNEL_DATA.to_le_bytes());
    b.vm.state.dr[0] = DATA;
    b.vm.state.dr[7] = armed(ACCESS, 1);
    let caught = b.caught();
    assert_eq!((caught.vector, caught.rip), (1, HANDLERS + 0x800));
}

#[test]
fn lss_holds_nothing_off() {
    let mut b = Bench::new(32);
    b.code(|a| {
        a.lss(r::esp, iced_x86::code_asm::fword_ptr(DATA as i32))?;
        a.nop()?;
        a.hlt()
    });
    b.write_u32(DATA, STACK as u32);
    b.write(DATA + 4, &KERNEL_DATA.to_le_bytes());
    b.vm.state.rflags |= TF;
    b.expect(1, 0, 7);
}

#[test]
fn sti_holds_interrupts_off_for_one_instruction() {
    let mut b = Bench::new(64);
    b.bytes(b"\xfb\x90\x90");
    b.interrupt(0x40);
    b.expect(0x40, 0, 2);
    // But not when interrupts were on already.
    let mut b = Bench::new(64);
    b.bytes(b"\xfb\x90\x90").vm.state.rflags |= IF;
    b.vm.step();
    b.interrupt(0x40);
    b.expect(0x40, 0, 1);
}

#[test]
fn an_interrupt_after_sti_hlt_returns_after_the_hlt() {
    let mut b = Bench::new(64);
    b.bytes(b"\xfb\xf4");
    assert_eq!(b.run(), Exit::Halted);
    b.interrupt(0x40);
    b.expect(0x40, 0, 2);
}

#[test]
fn an_interrupt_inside_a_repetition_pushes_rf() {
    let mut b = Bench::new(64);
    b.bytes(b"\xf3\xac\xf4").vm.state.rflags |= IF;
    // LODSB goes one by one; the stretch between two looks is shorter than this.
    b.vm.state.gpr[RCX] = 5000;
    b.vm.run(1);
    assert!((1..5000).contains(&b.vm.state.gpr[RCX]));
    b.interrupt(0x40);
    let caught = b.expect(0x40, 0, 0);
    assert_eq!(caught.flags & RF, RF);
    // After the last iteration it doesn't.
    let mut b = Bench::new(64);
    b.bytes(b"\xf3\xac\xf4").vm.state.rflags |= IF;
    b.vm.state.gpr[RCX] = 3;
    b.vm.run(1);
    b.interrupt(0x40);
    let caught = b.expect(0x40, 0, 2);
    assert_eq!(caught.flags & RF, 0);
}

#[test]
fn popf_that_sets_tf_traps_after_the_next_instruction() {
    let mut b = Bench::new(64);
    b.bytes(b"\x9d\x90\x90");
    b.write_u64(STACK - 8, 0x102);
    b.vm.state.gpr[RSP] = STACK - 8;
    b.expect(1, 0, 2);
    // And one that clears it, after itself.
    let mut b = Bench::new(64);
    b.bytes(b"\x9d\x90\x90").vm.state.rflags |= TF;
    b.write_u64(STACK - 8, 0x2);
    b.vm.state.gpr[RSP] = STACK - 8;
    let caught = b.expect(1, 0, 1);
    assert_eq!(caught.flags & TF, 0);
}

#[test]
fn user_code_is_watched_too() {
    let mut b = Bench::new(64);
    b.set_level(3);
    b.code(|a| {
        a.mov(byte_ptr(DATA), 1)?;
        a.nop()
    });
    b.vm.state.dr[0] = DATA;
    b.vm.state.dr[7] = armed(WRITE, 0);
    let caught = b.expect(1, 0, 8);
    assert_eq!((caught.rsp, caught.cs), (USER_STACK, super::bench::USER_CODE));
}
