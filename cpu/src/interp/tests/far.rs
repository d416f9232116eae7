//! Far transfers: gates, returns, IRET, fast system calls (SDM vol. 2, each instruction).

use iced_x86::code_asm::{registers as r, tword_ptr};

use super::bench::{
    BIG, Bench, CODE, DATA, FREE, INNER_STACK, KERNEL_CODE, KERNEL_DATA, LONG, STACK, TSS_A,
    USER_CODE, USER_DATA, USER_STACK, descriptor, flat, gate,
};
use crate::state::reg::{RAX, RCX, RDX, RSP};
use crate::state::{Rflags, Segment, sreg};

const GATE: u16 = FREE;
const OTHER: u16 = FREE + 0x10;
const RETF: &[u8] = b"\xcb";
const IRET: &[u8] = b"\xcf";
const IRETQ: &[u8] = b"\x48\xcf";

impl Bench {
    /// Pushes words of four bytes (eight in 64-bit mode), the last one to be popped first.
    fn push(&mut self, words: &[u64]) -> &mut Self {
        let wide = self.vm.state.is_64bit();
        for &word in words {
            let size = if wide { 8 } else { 4 };
            self.vm.state.gpr[RSP] -= size;
            let at = self.vm.state.gpr[RSP];
            self.write(at, &word.to_le_bytes()[..size as usize]);
        }
        self
    }

    /// CALL or JMP FAR through a pointer at DATA, with a 32-bit offset.
    fn far(&mut self, selector: u16, call: bool) -> &mut Self {
        self.write_u32(DATA, 0);
        self.write(DATA + 4, &selector.to_le_bytes());
        self.bytes(if call { b"\xff\x18" } else { b"\xff\x28" });
        self.vm.state.gpr[RAX] = DATA;
        self
    }
}

#[test]
fn far_jumps_check_in_the_order_of_the_manual() {
    let gp = |selector: u16| (13, u32::from(selector));
    // (descriptor, what comes) from level 0.
    let cases = [
        (flat(0x93, BIG), gp(OTHER)),
        (flat(0xfb, BIG), gp(OTHER)),
        (flat(0xff, BIG), gp(OTHER)),
        (flat(0x1b, BIG), (11, u32::from(OTHER))),
        (flat(0x7b, BIG), gp(OTHER)),
        (descriptor(0, 0, 0x9b, BIG), (0, 0)),
    ];
    for (raw, (vector, code)) in cases {
        let mut b = Bench::new(32);
        b.set_descriptor(OTHER, raw);
        b.far(OTHER, false);
        if vector == 0 {
            b.vm.step();
            assert_eq!((b.vm.state.rip, b.vm.state.seg[sreg::CS].selector), (0, OTHER));
        } else {
            b.expect(vector, code, 0);
        }
    }
    Bench::new(32).far(0, false).expect(13, 0, 0);
    Bench::new(32).far(0x2000, false).expect(13, 0x2000, 0);
    Bench::new(32).far(4, false).expect(13, 4, 0);
    // RPL above CPL is fine for a conforming segment only.
    let mut b = Bench::new(32);
    b.set_descriptor(OTHER, flat(0x9f, BIG));
    b.far(OTHER | 3, false).vm.step();
    assert_eq!(b.vm.state.seg[sreg::CS].selector, OTHER);
    let mut b = Bench::new(32);
    b.set_descriptor(OTHER, flat(0x9b, BIG));
    b.far(OTHER | 3, false).expect(13, u32::from(OTHER), 0);
    // Beyond the limit.
    let mut b = Bench::new(32);
    b.set_descriptor(OTHER, descriptor(0, 0xff, 0x9b, BIG));
    b.far(OTHER, false).write_u32(DATA, 0x100);
    b.expect(13, 0, 0);
}

#[test]
fn a_jump_through_a_gate_cant_change_privilege() {
    // The wrong level counts before absence.
    let mut b = Bench::new(32);
    b.set_descriptor(GATE, gate(0xec, OTHER, 0x1234));
    b.set_descriptor(OTHER, flat(0x1b, BIG));
    b.set_level(3);
    b.far(GATE, false).expect(13, u32::from(OTHER), 0);
    let mut b = Bench::new(32);
    b.set_descriptor(GATE, gate(0xec, OTHER, 0x1234));
    b.set_descriptor(OTHER, flat(0x9f, BIG));
    b.set_level(3);
    b.far(GATE, false).vm.step();
    let s = &b.vm.state;
    assert_eq!((s.rip, s.cpl, s.seg[sreg::CS].selector), (0x1234, 3, OTHER | 3));
}

#[test]
fn gates_check_themselves_first() {
    let cases = [
        (gate(0x8c, KERNEL_CODE, 0), (13, u32::from(GATE))),
        (gate(0x6c, KERNEL_CODE, 0), (11, u32::from(GATE))),
        (gate(0xec, 0, 0), (13, 0)),
        (gate(0xec, KERNEL_DATA, 0), (13, u32::from(KERNEL_DATA))),
        (gate(0xee, KERNEL_CODE, 0), (13, u32::from(GATE))),
    ];
    for (raw, (vector, code)) in cases {
        let mut b = Bench::new(32);
        b.set_descriptor(GATE, raw);
        b.set_level(3);
        b.far(GATE, true).expect(vector, code, 0);
    }
}

#[test]
fn a_call_gate_copies_parameters_to_the_inner_stack() {
    let mut b = Bench::new(32);
    b.set_descriptor(GATE, gate(0xec, KERNEL_CODE, 0x1_2340) | 2 << 32);
    b.set_level(3);
    b.push(&[0x2222, 0x1111]).far(GATE, true).vm.step();
    let s = &b.vm.state;
    assert_eq!((s.rip, s.cpl, s.gpr[RSP]), (0x1_2340, 0, INNER_STACK - 24));
    assert_eq!(s.seg[sreg::SS].selector, KERNEL_DATA);
    let frame: Vec<u32> = (0..6).map(|n| b.read_u32(INNER_STACK - 24 + 4 * n)).collect();
    let outer = (USER_STACK - 8) as u32;
    let expected = [CODE as u32 + 2, USER_CODE.into(), 0x1111, 0x2222, outer, USER_DATA.into()];
    assert_eq!(frame, expected);
    // RETF 8 there releases them on both stacks.
    b.write(0x1_2340, b"\xca\x08\x00");
    b.vm.step();
    let s = &b.vm.state;
    assert_eq!((s.cpl, s.rip, s.gpr[RSP]), (3, CODE + 2, USER_STACK));
}

#[test]
fn a_16_bit_call_gate_pushes_words() {
    let mut b = Bench::new(32);
    b.set_descriptor(GATE, gate(0xe4, KERNEL_CODE, 0xffff_2340) | 1 << 32);
    b.set_level(3);
    b.push(&[0x1111]).far(GATE, true).vm.step();
    assert_eq!((b.vm.state.rip, b.vm.state.gpr[RSP]), (0x2340, INNER_STACK - 10));
    assert_eq!(b.read_u16(INNER_STACK - 6), 0x1111);
}

#[test]
fn long_call_gates_take_16_bytes_and_no_parameters() {
    let mut b = Bench::new(64);
    b.set_descriptor(GATE, gate(0xec, KERNEL_CODE, 0x1_2340) | 3 << 32);
    b.set_descriptor(GATE + 8, 0);
    b.set_level(3);
    b.far(GATE, true).vm.step();
    let s = &b.vm.state;
    assert_eq!((s.rip, s.cpl, s.gpr[RSP]), (0x1_2340, 0, INNER_STACK - 32));
    assert_eq!(s.seg[sreg::SS].selector, 0);
    let frame: Vec<u64> = (0..4).map(|n| b.read_u64(INNER_STACK - 32 + 8 * n)).collect();
    assert_eq!(frame, [CODE + 2, USER_CODE.into(), USER_STACK, USER_DATA.into()]);
    // A type in the second half.
    let mut b = Bench::new(64);
    b.set_descriptor(GATE, gate(0xec, KERNEL_CODE, 0x1_2340));
    b.set_descriptor(GATE + 8, 1 << 40);
    b.far(GATE, true).expect(13, u32::from(GATE), 0);
    // The code must be 64-bit.
    let mut b = Bench::new(64);
    b.set_descriptor(GATE, gate(0xec, OTHER, 0x1_2340));
    b.set_descriptor(GATE + 8, 0);
    b.set_descriptor(OTHER, flat(0x9b, BIG));
    b.far(GATE, true).expect(13, u32::from(OTHER), 0);
    // Gates of other kinds don't exist.
    for access in [0x84, 0x85, 0x89, 0x81] {
        let mut b = Bench::new(64);
        b.set_descriptor(GATE, gate(access, KERNEL_CODE, 0));
        b.far(GATE, true).expect(13, u32::from(GATE), 0);
    }
}

/// Code of 32 bits at level 0 under long mode, with a stack segment whose base is not 0.
fn compatibility() -> Bench {
    let mut b = Bench::new(64);
    b.set_descriptor(OTHER, flat(0x9b, BIG));
    let code = b.segment(OTHER);
    b.vm.state.seg[sreg::CS] = code;
    b.vm.state.seg[sreg::SS].base = 0x100;
    b
}

#[test]
fn a_call_gate_from_compatibility_mode_uses_a_64_bit_stack() {
    let mut b = compatibility();
    b.set_descriptor(GATE, gate(0x8c, KERNEL_CODE, 0x1_2340));
    b.set_descriptor(GATE + 8, 0);
    b.far(GATE, true).vm.step();
    let s = &b.vm.state;
    assert_eq!((s.rip, s.gpr[RSP], s.is_64bit()), (0x1_2340, STACK - 16, true));
    assert_eq!(b.read_u64(STACK - 16), CODE + 2);
    assert_eq!(b.read_u64(STACK - 8), u64::from(OTHER));
}

#[test]
fn interrupts_from_compatibility_mode_use_the_64_bit_stack() {
    let mut b = compatibility();
    b.bytes(b"\x0f\x0b").expect(6, 0, 0);
    assert_eq!(b.vm.state.gpr[RSP], STACK - 40);
}

#[test]
fn returns_go_outwards_only() {
    let frame = |cs: u16| [u64::from(cs), CODE + 0x100];
    let cases = [
        (0, (13, 0)),
        (KERNEL_DATA, (13, u32::from(KERNEL_DATA))),
        // DPL isn't RPL.
        (KERNEL_CODE | 3, (13, u32::from(KERNEL_CODE))),
        (USER_CODE & !3, (13, u32::from(USER_CODE & !3))),
    ];
    for (selector, (vector, code)) in cases {
        Bench::new(32).push(&frame(selector)).bytes(RETF).expect(vector, code, 0);
    }
    // Inwards.
    let mut b = Bench::new(32);
    b.set_level(3);
    b.push(&frame(KERNEL_CODE)).bytes(RETF).expect(13, u32::from(KERNEL_CODE), 0);
    // A bad stack for the outer level, before the limit of the code.
    for (ss, vector, code) in
        [(KERNEL_DATA, 13, u32::from(KERNEL_DATA)), (0, 13, 0), (USER_CODE, 13, 0x18)]
    {
        let mut b = Bench::new(32);
        b.push(&[u64::from(ss), USER_STACK]).push(&frame(USER_CODE));
        b.bytes(RETF).expect(vector, code, 0);
    }
    let mut b = Bench::new(32);
    b.set_descriptor(OTHER, flat(0x73, BIG));
    b.push(&[u64::from(OTHER | 3), USER_STACK]).push(&frame(USER_CODE));
    b.bytes(RETF).expect(12, u32::from(OTHER), 0);
}

#[test]
fn an_outer_return_hides_inner_segments_and_keeps_bases() {
    for (bits, code) in [(32, RETF), (64, b"\x48\xcb")] {
        let mut b = Bench::new(bits);
        b.set_descriptor(OTHER, flat(0x9f, BIG));
        let (conforming, user) = (b.segment(OTHER), b.segment(USER_DATA));
        b.vm.state.seg[sreg::ES] = conforming;
        b.vm.state.seg[sreg::FS] = Segment { base: 0x1234, selector: 3, ..Segment::NULL };
        b.vm.state.seg[sreg::GS] = user;
        b.push(&[u64::from(USER_DATA), USER_STACK, u64::from(USER_CODE), CODE + 0x100]);
        b.bytes(code).vm.step();
        let s = &b.vm.state;
        assert_eq!((s.cpl, s.rip, s.gpr[RSP]), (3, CODE + 0x100, USER_STACK));
        assert_eq!(s.seg[sreg::DS], Segment::NULL);
        assert_eq!((s.seg[sreg::ES], s.seg[sreg::GS]), (conforming, user));
        assert_eq!((s.seg[sreg::FS].selector, s.seg[sreg::FS].base), (0, 0x1234));
    }
}

#[test]
fn iret_restores_flags_by_privilege() {
    let all = 0x3f_7fd5 & !(Rflags::VM | Rflags::TF | Rflags::NT).bits();
    // From level 0: all of them.
    let mut b = Bench::new(32);
    b.push(&[all, u64::from(KERNEL_CODE), CODE + 0x100]).bytes(IRET).vm.step();
    assert_eq!(b.vm.state.rflags, all | 2);
    // From level 3 with IOPL 0: neither IOPL nor IF, VIF, VIP.
    let mut b = Bench::new(32);
    b.set_level(3);
    b.push(&[all, u64::from(USER_CODE), CODE + 0x100]).bytes(IRET).vm.step();
    let kept = Rflags::IOPL | Rflags::IF | Rflags::VIF | Rflags::VIP;
    assert_eq!(b.vm.state.rflags, all & !kept.bits() | 2);
    // With 16 bits the upper half stays.
    let mut b = Bench::new(32);
    b.vm.state.rflags |= Rflags::AC.bits();
    let at = STACK - 6;
    b.write(at, &0x100u16.to_le_bytes());
    b.write(at + 2, &KERNEL_CODE.to_le_bytes());
    b.write(at + 4, &0xfed5u16.to_le_bytes());
    b.vm.state.gpr[RSP] = at;
    let wanted = Rflags::AC.bits() | 0x7fd7 & !(1 << 8 | 1 << 14);
    b.write(at + 4, &(wanted as u16).to_le_bytes());
    b.bytes(b"\x66\xcf").vm.step();
    assert_eq!((b.vm.state.rflags, b.vm.state.rip), (wanted, 0x100));
}

#[test]
fn iretq_always_pops_the_stack() {
    let mut b = Bench::new(64);
    b.push(&[0, STACK - 0x800, 2, u64::from(KERNEL_CODE), CODE + 0x100]);
    b.bytes(IRETQ).vm.step();
    let s = &b.vm.state;
    // A null SS is fine at level 0 in 64-bit mode.
    assert_eq!((s.rip, s.gpr[RSP], s.seg[sreg::SS].selector), (CODE + 0x100, STACK - 0x800, 0));
    // But not at level 3, nor for compatibility mode.
    let mut b = Bench::new(64);
    b.push(&[3, USER_STACK, 2, u64::from(USER_CODE), CODE]).bytes(IRETQ).expect(13, 0, 0);
    let mut b = Bench::new(64);
    b.set_descriptor(OTHER, flat(0x9b, BIG));
    b.push(&[0, STACK, 2, u64::from(OTHER), CODE]).bytes(IRETQ).expect(13, 0, 0);
    // To compatibility mode at level 3.
    let mut b = Bench::new(64);
    b.set_descriptor(OTHER, flat(0xfb, BIG));
    let ss = u64::from(USER_DATA);
    b.push(&[ss, 0xffff_0000_0003_4000, 2, u64::from(OTHER | 3), CODE]);
    b.bytes(IRETQ).vm.step();
    let s = &b.vm.state;
    assert_eq!((s.code_bits(), s.cpl, s.gpr[RSP]), (32, 3, USER_STACK));
    // A non-canonical RIP faults before anything changes.
    let mut b = Bench::new(64);
    b.push(&[ss, USER_STACK, 2, u64::from(USER_CODE), 1 << 47]).bytes(IRETQ).expect(13, 0, 0);
    // NT is #GP in long mode.
    let mut b = Bench::new(64);
    b.vm.state.rflags |= Rflags::NT.bits();
    b.push(&[0, STACK, 2, u64::from(KERNEL_CODE), CODE]).bytes(IRETQ).expect(13, 0, 0);
}

#[test]
fn iret_from_compatibility_mode_pops_no_stack_at_its_level() {
    let mut b = compatibility();
    b.vm.state.seg[sreg::SS].base = 0;
    b.push(&[2, u64::from(KERNEL_CODE), CODE + 0x100]).bytes(IRET).vm.step();
    let s = &b.vm.state;
    assert_eq!((s.rip, s.gpr[RSP], s.is_64bit()), (CODE + 0x100, STACK, true));
}

#[test]
fn code_that_is_both_long_and_big_is_refused() {
    let mut b = Bench::new(64);
    b.set_descriptor(OTHER, flat(0x9b, LONG | BIG));
    b.far(OTHER, false).expect(13, u32::from(OTHER), 0);
    let mut b = Bench::new(64);
    b.set_descriptor(OTHER, flat(0x9b, LONG | BIG));
    b.push(&[0, STACK, 2, u64::from(OTHER), CODE]).bytes(IRETQ).expect(13, u32::from(OTHER), 0);
}

#[test]
fn far_pointers_have_64_bits_with_rex() {
    let mut b = Bench::new(64);
    b.write_u64(DATA, CODE + 0x100);
    b.write(DATA + 8, &KERNEL_CODE.to_le_bytes());
    b.vm.state.gpr[RAX] = DATA;
    b.code(|a| a.call(tword_ptr(r::rax))).vm.step();
    assert_eq!((b.vm.state.rip, b.vm.state.gpr[RSP]), (CODE + 0x100, STACK - 16));
    let mut b = Bench::new(64);
    b.write_u64(DATA, 1 << 47);
    b.write(DATA + 8, &KERNEL_CODE.to_le_bytes());
    b.vm.state.gpr[RAX] = DATA;
    b.code(|a| a.call(tword_ptr(r::rax))).expect(13, 0, 0);
}

#[test]
fn syscall_and_sysret_load_fixed_segments() {
    let mut b = Bench::new(64);
    b.set_level(3);
    b.vm.state.msr.star = 0x0013_0008 << 32;
    b.vm.state.msr.lstar = CODE + 2;
    b.vm.state.msr.fmask = 0x200;
    b.vm.state.rflags = 0x246;
    b.bytes(b"\x0f\x05\x48\x0f\x07").vm.step();
    let s = &b.vm.state;
    assert_eq!((s.cpl, s.rip, s.gpr[RCX], s.gpr[11]), (0, CODE + 2, CODE + 2, 0x246));
    assert_eq!((s.rflags, s.gpr[RSP]), (0x46, USER_STACK));
    assert_eq!((s.seg[sreg::CS].selector, s.seg[sreg::SS].selector), (8, 0x10));
    b.vm.state.gpr[11] = !(1 << 8);
    b.vm.step();
    let s = &b.vm.state;
    assert_eq!((s.cpl, s.rip), (3, CODE + 2));
    assert_eq!((s.seg[sreg::CS].selector, s.seg[sreg::SS].selector), (0x23, 0x1b));
    assert_eq!(s.rflags, 0x3c_7ed7);
    // To compatibility mode.
    let mut b = Bench::new(64);
    b.vm.state.msr.star = 0x0013_0008 << 32;
    b.vm.state.gpr[RCX] = 0xffff_ffff_0001_0000;
    b.bytes(b"\x0f\x07").vm.step();
    let s = &b.vm.state;
    assert_eq!((s.rip, s.code_bits(), s.seg[sreg::CS].selector), (0x1_0000, 32, 0x13));
    // #GP at the kernel's level for a non-canonical target.
    let mut b = Bench::new(64);
    b.vm.state.gpr[RCX] = 1 << 47;
    b.bytes(b"\x48\x0f\x07").expect(13, 0, 0);
    let mut b = Bench::new(64);
    b.set_level(3);
    b.bytes(b"\x48\x0f\x07").expect(13, 0, 0);
    let mut b = Bench::new(64);
    b.vm.state.efer &= !1;
    b.bytes(b"\x0f\x05").expect(6, 0, 0);
    // Intel's processors have SYSCALL in 64-bit mode only.
    compatibility().bytes(b"\x0f\x05").expect(6, 0, 0);
}

#[test]
fn sysenter_and_sysexit_work_in_all_protected_modes() {
    for bits in [32, 64] {
        let mut b = Bench::new(bits);
        b.set_level(3);
        b.vm.state.msr.sysenter_cs = 0x0b;
        b.vm.state.msr.sysenter_eip = CODE + 2;
        b.vm.state.msr.sysenter_esp = STACK;
        b.vm.state.rflags |= 0x200;
        b.bytes(b"\x0f\x34\x0f\x35").vm.step();
        let s = &b.vm.state;
        assert_eq!((s.cpl, s.rip, s.gpr[RSP], s.rflags), (0, CODE + 2, STACK, 2));
        assert_eq!((s.seg[sreg::CS].selector, s.seg[sreg::SS].selector), (8, 0x10));
        assert_eq!(s.code_bits(), bits);
        b.vm.state.gpr[RDX] = CODE;
        b.vm.state.gpr[RCX] = USER_STACK;
        b.vm.step();
        let s = &b.vm.state;
        assert_eq!((s.cpl, s.rip, s.gpr[RSP], s.code_bits()), (3, CODE, USER_STACK, 32));
        assert_eq!((s.seg[sreg::CS].selector, s.seg[sreg::SS].selector), (0x1b, 0x23));
    }
    Bench::new(32).bytes(b"\x0f\x34").expect(13, 0, 0);
    let mut b = Bench::new(64);
    b.vm.state.msr.sysenter_cs = 8;
    b.vm.state.gpr[RDX] = 1 << 47;
    b.bytes(b"\x48\x0f\x35").expect(13, 0, 0);
    // REX.W: 64-bit code, 32 and 40 further on.
    let mut b = Bench::new(64);
    b.vm.state.msr.sysenter_cs = 8;
    b.bytes(b"\x48\x0f\x35").vm.step();
    assert_eq!((b.vm.state.seg[sreg::CS].selector, b.vm.state.code_bits()), (0x2b, 64));
}

#[test]
fn a_tss_too_short_for_the_inner_stack_is_named() {
    let mut b = Bench::new(32);
    b.set_descriptor(GATE, gate(0xec, KERNEL_CODE, 0x1_2340));
    b.set_level(3);
    b.vm.state.tr.limit = 8;
    // #TS is delivered at level 3 by a conforming handler.
    b.set_descriptor(OTHER, flat(0x9f, BIG));
    b.set_gate(10, 0x8e, OTHER);
    b.far(GATE, true).vm.step();
    let sp = b.vm.state.gpr[RSP];
    assert_eq!(b.read_u32(sp), u32::from(super::bench::TASK_A));
    assert_eq!(b.read_u32(TSS_A + 4), INNER_STACK as u32);
}

#[test]
fn amd_has_syscall_in_compatibility_mode() {
    let mut b = Bench::amd(64);
    b.set_descriptor(USER_CODE, flat(0xfb, BIG));
    b.set_level(3);
    b.vm.state.msr.star = 0x0013_0008 << 32;
    b.vm.state.msr.cstar = CODE + 0x100;
    b.vm.state.msr.fmask = 0x200;
    b.vm.state.rflags = 0x246;
    b.bytes(b"\x0f\x05").vm.step();
    let s = &b.vm.state;
    assert_eq!((s.cpl, s.rip, s.gpr[RCX], s.gpr[11]), (0, CODE + 0x100, CODE + 2, 0x246));
    assert_eq!((s.rflags, s.code_bits()), (0x46, 64));
    assert_eq!((s.seg[sreg::CS].selector, s.seg[sreg::SS].selector), (8, 0x10));
}

#[test]
fn amd_has_syscall_in_protected_mode() {
    let mut b = Bench::amd(32);
    b.set_level(3);
    b.vm.state.efer |= 1;
    b.vm.state.msr.star = 0x001b_0008 << 32 | (CODE + 2);
    b.vm.state.rflags = 0x246;
    b.vm.state.gpr[11] = 5;
    b.bytes(b"\x0f\x05\x0f\x07").vm.step();
    let s = &b.vm.state;
    assert_eq!((s.cpl, s.rip, s.gpr[RCX], s.gpr[11]), (0, CODE + 2, CODE + 2, 5));
    assert_eq!((s.rflags, s.code_bits()), (0x46, 32));
    assert_eq!((s.seg[sreg::CS].selector, s.seg[sreg::SS].selector), (8, 0x10));
    // SYSRET gives IF back and leaves the other flags.
    b.vm.step();
    let s = &b.vm.state;
    assert_eq!((s.cpl, s.rip, s.rflags, s.code_bits()), (3, CODE + 2, 0x246, 32));
    assert_eq!((s.seg[sreg::CS].selector, s.seg[sreg::SS].selector), (0x1b, 0x23));
    let mut b = Bench::amd(32);
    b.bytes(b"\x0f\x05").expect(6, 0, 0);
    let mut b = Bench::amd(16);
    b.vm.state.efer |= 1;
    b.bytes(b"\x0f\x05").vm.step();
    assert_eq!(b.vm.state.seg[sreg::CS].selector, 0x600, "#UD in real mode");
}

#[test]
fn amd_leaves_ss_alone_on_sysret() {
    let mut b = Bench::amd(64);
    b.vm.state.msr.star = 0x0010_0008 << 32;
    b.vm.state.seg[sreg::SS] = crate::interp::memory::null_segment(0);
    b.vm.state.gpr[RCX] = CODE;
    b.bytes(b"\x0f\x07").vm.step();
    let ss = &b.vm.state.seg[sreg::SS];
    // The selector as it stands in STAR; the segment is no more usable than before.
    assert_eq!((ss.selector, ss.is_usable(), b.vm.state.cpl), (0x18, false, 3));
    // A non-canonical target faults there, at level 3.
    let mut b = Bench::amd(64);
    b.vm.state.gpr[RCX] = 1 << 47;
    b.bytes(b"\x48\x0f\x07").vm.step();
    assert_eq!((b.vm.state.cpl, b.vm.state.rip), (3, 1 << 47));
}

#[test]
fn amd_has_no_sysenter_in_long_mode() {
    let mut b = Bench::amd(64);
    b.set_level(3);
    b.vm.state.msr.sysenter_cs = 8;
    b.bytes(b"\x0f\x34").expect(6, 0, 0);
    let mut b = Bench::amd(64);
    b.vm.state.msr.sysenter_cs = 8;
    b.bytes(b"\x48\x0f\x35").expect(6, 0, 0);
    let mut b = Bench::amd(64);
    b.set_level(3);
    b.vm.state.msr.sysenter_cs = 8;
    b.bytes(b"\x0f\x35").expect(13, 0, 0);
    let mut b = Bench::amd(32);
    b.vm.state.msr.sysenter_cs = 8;
    b.vm.state.msr.sysenter_eip = CODE + 0x20;
    b.bytes(b"\x0f\x34").vm.step();
    assert_eq!(b.vm.state.rip, CODE + 0x20);
}

#[test]
fn amd_heeds_an_operand_size_prefix_at_near_branches() {
    // JMP, CALL and RET.
    for (bytes, rip, pushed) in [
        (&b"\x66\xeb\x10"[..], (CODE + 0x13) & 0xffff, 0),
        (b"\x66\xe8\x10\x00", (CODE + 0x14) & 0xffff, 2),
        (b"\x66\xc3", 0x1234, -2),
    ] {
        let mut b = Bench::amd(64);
        b.write_u64(STACK, 0x5678_1234);
        b.bytes(bytes).vm.step();
        let moved = STACK.wrapping_sub(b.vm.state.gpr[RSP]) as i64;
        assert_eq!((b.vm.state.rip, moved), (rip, pushed), "{bytes:x?}");
    }
    // Intel's take the prefix for nothing.
    let mut b = Bench::new(64);
    b.bytes(b"\x66\xeb\x10").vm.step();
    assert_eq!(b.vm.state.rip, CODE + 0x13);
    // And REX.W for nothing: a far pointer has 32 bits of offset.
    let mut b = Bench::amd(64);
    b.write_u64(DATA, u64::from(KERNEL_CODE) << 32 | (CODE + 0x100));
    b.vm.state.gpr[RAX] = DATA;
    b.bytes(b"\x48\xff\x28").vm.step();
    assert_eq!(b.vm.state.rip, CODE + 0x100);
}
