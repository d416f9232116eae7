//! Delivery of events (SDM vol. 3, "Interrupt and Exception Handling"; "8086 Emulation").

use super::bench::{
    Bench, CODE, DATA, FREE, HANDLERS, IDT, INNER_STACK, IST_STACK, KERNEL_CODE, KERNEL_DATA, LONG,
    STACK, TSS_A, USER_CODE, USER_DATA, USER_STACK, flat, gate,
};
use crate::interp::Exit;
use crate::state::reg::{RAX, RSP};
use crate::state::{Activity, Cr4, Rflags, Segment, TableRegister, sreg};

const UD2: &[u8] = b"\x0f\x0b";
const IF: u64 = Rflags::IF.bits();
const RF: u64 = Rflags::RF.bits();
const AC: u64 = Rflags::AC.bits();
const VIF: u64 = Rflags::VIF.bits();
const VIP: u64 = Rflags::VIP.bits();
const VM: u64 = Rflags::VM.bits();
const IOPL: u64 = Rflags::IOPL.bits();

#[test]
fn a_fault_pushes_rf_and_the_state_before() {
    for bits in [32, 64] {
        let mut b = Bench::new(bits);
        b.bytes(UD2);
        let caught = b.expect(6, 0, 0);
        assert_eq!((caught.cs, caught.flags), (KERNEL_CODE, RF | 2));
    }
}

#[test]
fn real_mode_pushes_three_words_and_clears_ac() {
    let mut b = Bench::new(16);
    b.bytes(UD2).vm.state.rflags |= IF | AC;
    let caught = b.expect(6, 0, 0);
    assert_eq!((u64::from(caught.cs), caught.flags), (CODE >> 4, IF | 2));
    assert_eq!(b.vm.state.rflags, 2);
    assert_eq!(b.vm.state.gpr[RSP], 0xfff0 - 6);
}

#[test]
fn real_mode_checks_the_table_limit() {
    // #UD beyond the limit: #GP, which is inside; beyond too: #DF; beyond too: shutdown.
    for (limit, vector) in [(0x37, 13), (0x23, 8)] {
        let mut b = Bench::new(16);
        b.vm.state.idtr.limit = limit;
        b.bytes(b"\xcd\x80").expect(vector, 0, 0);
    }
    let mut b = Bench::new(16);
    b.vm.state.idtr.limit = 7;
    b.bytes(UD2);
    assert_eq!(b.vm.run(10), Exit::Shutdown);
    assert_eq!(b.vm.state.activity, Activity::Shutdown);
}

#[test]
fn contributory_faults_double_and_others_follow() {
    // #UD whose gate is absent: #NP(gate), an ordinary exception after a benign one.
    let mut b = Bench::new(64);
    b.set_gate(6, 0x0e, KERNEL_CODE);
    b.bytes(UD2).expect(11, 6 * 8 + 3, 0);
    // #GP whose gate is absent: #DF(0).
    let mut b = Bench::new(64);
    b.set_gate(13, 0x0e, KERNEL_CODE);
    b.set_level(3);
    b.bytes(b"\xf4").expect(8, 0, 0);
    // #GP, then #PF at the handler's stack: the page fault is delivered.
    let mut b = Bench::new(64);
    b.set_level(3);
    b.write_u64(TSS_A + 4, 0x50_0000);
    b.set_raw_gate(14, gate(0x8e, KERNEL_CODE, HANDLERS as u32 + 0xe0) | 1 << 32);
    b.bytes(b"\xf4").expect(14, 2, 0);
    assert_eq!(b.vm.state.cr2, 0x50_0000 - 8);
    // #PF, then anything but a benign one: #DF.
    let mut b = Bench::new(64);
    b.set_gate(14, 0x0e, KERNEL_CODE);
    b.vm.state.gpr[RSP] = 0x50_0000;
    let df = gate(0x8e, KERNEL_CODE, HANDLERS as u32 + 0x80);
    b.set_raw_gate(8, df | 1 << 32);
    b.bytes(b"\x50").expect(8, 0, 0);
    // And no way to deliver that: shutdown.
    let mut b = Bench::new(64);
    b.vm.state.idtr.limit = 0x10;
    b.bytes(UD2);
    assert_eq!(b.vm.run(10), Exit::Shutdown);
}

#[test]
fn error_codes_tell_external_events_from_software() {
    // INT n through an absent gate: no EXT.
    let mut b = Bench::new(64);
    b.set_gate(0x40, 0x0e, KERNEL_CODE);
    b.bytes(b"\xcd\x40").expect(11, 0x40 * 8 + 2, 0);
    // The same by a device.
    let mut b = Bench::new(64);
    b.set_gate(0x40, 0x0e, KERNEL_CODE);
    b.bytes(b"\x90\x90").vm.state.rflags |= IF;
    b.interrupt(0x40);
    b.expect(11, 0x40 * 8 + 3, 0);
    // A gate to a segment that isn't there, or isn't code.
    for (selector, code, vector) in [(FREE, FREE, 13), (KERNEL_DATA, KERNEL_DATA, 13), (0, 0, 13)] {
        let mut b = Bench::new(64);
        b.set_gate(6, 0x8e, selector);
        b.bytes(UD2).expect(vector, u32::from(code) | 1, 0);
    }
    let mut b = Bench::new(64);
    b.set_descriptor(FREE, flat(0x1b, LONG));
    b.set_gate(6, 0x8e, FREE);
    b.bytes(UD2).expect(11, u32::from(FREE) | 1, 0);
    // Not a gate.
    let mut b = Bench::new(64);
    b.set_gate(6, 0x8c, KERNEL_CODE);
    b.bytes(UD2).expect(13, 6 * 8 + 3, 0);
}

#[test]
fn gate_privilege_counts_for_int_only() {
    // INT n, INT3, INTO from level 3 through gates of level 0; INT1 and faults pass.
    let mut b = Bench::new(32);
    b.set_level(3);
    b.bytes(b"\xcd\x40").expect(13, 0x40 * 8 + 2, 0);
    let mut b = Bench::new(32);
    b.set_level(3);
    b.bytes(b"\xcc").expect(13, 3 * 8 + 2, 0);
    let mut b = Bench::new(32);
    b.set_level(3);
    b.bytes(b"\xce").vm.state.rflags |= Rflags::OF.bits();
    b.expect(13, 4 * 8 + 2, 0);
    let mut b = Bench::new(32);
    b.set_level(3);
    b.bytes(b"\xf1").expect(1, 0, 1);
    // A gate of level 3 lets INT pass.
    let mut b = Bench::new(32);
    b.set_gate(0x40, 0xee, KERNEL_CODE);
    b.set_level(3);
    let caught = b.bytes(b"\xcd\x40").expect(0x40, 0, 2);
    assert_eq!((caught.rsp, caught.ss), (USER_STACK, USER_DATA));
    assert_eq!(b.vm.state.seg[sreg::SS].selector, KERNEL_DATA);
}

#[test]
fn trap_gates_leave_interrupts_on() {
    for (access, on) in [(0x8e, false), (0x8f, true)] {
        let mut b = Bench::new(64);
        b.set_gate(0x40, access, KERNEL_CODE);
        b.bytes(b"\xcd\x40").vm.state.rflags |= IF | Rflags::NT.bits();
        b.expect(0x40, 0, 2);
        assert_eq!(b.vm.state.rflags, if on { IF | 2 } else { 2 });
    }
}

#[test]
fn long_mode_frames_are_aligned_and_always_whole() {
    let mut b = Bench::new(64);
    b.vm.state.gpr[RSP] = STACK - 3;
    let caught = b.bytes(UD2).expect(6, 0, 0);
    assert_eq!((caught.rsp, caught.ss), (STACK - 3, KERNEL_DATA));
    assert_eq!(b.vm.state.gpr[RSP], STACK - 16 - 40);
    // From outside: RSP0, and a null SS with the level as its RPL.
    let mut b = Bench::new(64);
    b.set_level(3);
    let caught = b.bytes(UD2).expect(6, 0, 0);
    assert_eq!((caught.rsp, caught.ss, caught.cs), (USER_STACK, USER_DATA, USER_CODE));
    assert_eq!(b.vm.state.gpr[RSP], INNER_STACK - 40);
    assert_eq!(b.vm.state.seg[sreg::SS].selector, 0);
    // By interrupt stack table, also without a change of level; SS stays then.
    let mut b = Bench::new(64);
    b.set_raw_gate(6, gate(0x8e, KERNEL_CODE, HANDLERS as u32 + 0x60) | 1 << 32);
    b.bytes(UD2).expect(6, 0, 0);
    assert_eq!(b.vm.state.gpr[RSP], IST_STACK - 40);
    assert_eq!(b.vm.state.seg[sreg::SS].selector, KERNEL_DATA);
}

#[test]
fn stacks_that_the_tss_lacks_are_its_fault() {
    for bits in [32, 64] {
        let mut b = Bench::new(bits);
        b.vm.state.tr.limit = 5;
        b.set_level(3);
        // #UD to #TS(TSS + EXT), which doesn't get through either: #DF, then shutdown.
        b.bytes(UD2);
        assert_eq!(b.vm.run(10), Exit::Shutdown);
    }
    // Where #TS has a task of its own it can be seen: see the task tests. A non-canonical RSP0:
    let mut b = Bench::new(64);
    b.write_u64(TSS_A + 4, 1 << 60);
    let ss = gate(0x8e, KERNEL_CODE, HANDLERS as u32 + 0xc0);
    b.set_raw_gate(12, ss | 1 << 32);
    b.set_level(3);
    b.bytes(UD2).expect(12, 1, 0);
}

#[test]
fn inner_stack_segments_are_checked() {
    // (selector in the TSS, what its descriptor is, vector, code)
    let ts = |selector: u16| (10, u32::from(selector) | 1);
    let cases = [
        (0, 0, ts(0)),
        (FREE | 3, flat(0x93, 4), ts(FREE)),
        (FREE, flat(0xf3, 4), ts(FREE)),
        (FREE, flat(0x91, 4), ts(FREE)),
        (FREE, flat(0x9b, 4), ts(FREE)),
        (0xff8, 0, ts(0xff8)),
        (FREE, flat(0x13, 4), (12, u32::from(FREE) | 1)),
    ];
    for (selector, raw, (vector, code)) in cases {
        let mut b = Bench::new(32);
        if selector & !7 == FREE {
            b.set_descriptor(FREE, raw);
        }
        b.write_u32(TSS_A + 8, u32::from(selector));
        b.set_level(3);
        // The second fault is delivered by a conforming handler: at level 3, on the present stack.
        let conforming = FREE + 8;
        b.set_descriptor(conforming, flat(0x9f, 4));
        b.set_gate(vector, 0x8e, conforming);
        b.bytes(UD2);
        b.vm.step();
        let s = &b.vm.state;
        assert_eq!(s.rip, HANDLERS + 16 * u64::from(vector), "{selector:x}\n{}", b.vm.dump());
        let sp = s.gpr[RSP];
        assert_eq!(b.read_u32(sp), code, "{selector:x} {raw:x}");
    }
}

#[test]
fn nmis_are_blocked_until_iret() {
    let mut b = Bench::new(64);
    b.bytes(b"\x90\x90");
    b.nmi();
    b.expect(2, 0, 0);
    assert!(b.vm.state.nmi_blocked);
    b.nmi();
    assert_eq!(b.run(), Exit::Halted);
    assert_eq!(b.frame().vector, 2);
    // An IRET that faults lets them in too.
    let mut b = Bench::new(64);
    b.vm.state.nmi_blocked = true;
    b.write_u64(STACK, 1 << 60);
    b.write_u64(STACK + 8, u64::from(KERNEL_CODE));
    b.bytes(b"\x48\xcf").expect(13, 0, 0);
    assert!(!b.vm.state.nmi_blocked);
}

#[test]
fn an_nmi_comes_before_an_interrupt() {
    let mut b = Bench::new(64);
    b.bytes(b"\x90\x90").vm.state.rflags |= IF;
    b.nmi();
    b.interrupt(0x40);
    b.vm.run(1);
    assert_eq!(b.vm.state.rip, HANDLERS + 0x21);
}

#[test]
fn virtual_8086_mode_pushes_all_segments_and_returns_to_them() {
    let mut b = Bench::new(32);
    b.set_v86(0);
    b.bytes(b"\xcd\x40");
    // IOPL below 3.
    b.expect(13, 0, 0);

    let mut b = Bench::new(32);
    b.set_gate(0x40, 0xee, KERNEL_CODE);
    b.write(HANDLERS + 0x400, b"\xcf");
    b.set_v86(3);
    b.bytes(b"\xcd\x40\x0f\x0b");
    let before = b.vm.state.clone();
    b.vm.step();
    let s = &b.vm.state;
    assert_eq!((s.cpl, s.rflags & VM, s.gpr[RSP]), (0, 0, INNER_STACK - 9 * 4));
    for register in [sreg::DS, sreg::ES, sreg::FS, sreg::GS] {
        assert_eq!(s.seg[register], Segment::NULL);
    }
    let pushed: Vec<u32> = (0..9).map(|n| b.read_u32(INNER_STACK - 36 + 4 * n)).collect();
    let flags = 2 | VM as u32 | 3 << 12;
    let expected = [2, (CODE >> 4) as u32, flags, 0x4000, 0x3000, 0x2000, 0x2000, 0x1111, 0x2222];
    assert_eq!(pushed, expected);
    b.vm.step();
    let s = &b.vm.state;
    assert_eq!((s.seg, s.cpl, s.rflags, s.rip), (before.seg, 3, before.rflags, 2));
    assert_eq!(s.gpr[RSP], before.gpr[RSP]);
}

#[test]
fn handlers_of_virtual_8086_code_must_be_at_level_0() {
    let mut b = Bench::new(32);
    b.set_descriptor(FREE, flat(0x9f, 4));
    b.set_gate(6, 0x8e, FREE);
    b.set_v86(3);
    b.bytes(UD2).expect(13, u32::from(FREE) | 1, 0);
}

/// In virtual-8086 mode with CR4.VME; `redirected`: INT 0x40 goes to the program's own handler.
fn vme(iopl: u8, redirected: bool) -> Bench {
    let mut b = Bench::new(32);
    b.set_v86(iopl);
    b.vm.state.cr4 |= Cr4::VME.bits();
    // The map starts at 0x88; the 32 bytes before it are for interrupts.
    b.write(TSS_A + 0x66, &[0x88, 0]);
    b.write(TSS_A + 0x68 + 8, &[u8::from(!redirected)]);
    b.write_u32(0x40 * 4, 0x1234_5678);
    b
}

#[test]
fn int_goes_to_the_program_itself_under_vme() {
    let mut b = vme(0, true);
    b.bytes(b"\xcd\x40").vm.state.rflags |= VIF;
    b.vm.step();
    let s = &b.vm.state;
    assert_eq!((s.seg[sreg::CS].selector, s.rip), (0x1234, 0x5678));
    assert_eq!((s.cpl, s.rflags), (3, VM | 2));
    // The program sees its virtual flag, and IOPL 3.
    assert_eq!(b.read_u16(0x3_3ffe), 2 | (IOPL | IF) as u16);
    assert_eq!(b.read_u16(0x3_3ffa), 2);

    let mut b = vme(3, true);
    b.bytes(b"\xcd\x40").vm.state.rflags |= IF;
    b.vm.step();
    assert_eq!(b.vm.state.rflags, VM | IOPL | 2);
    // Not redirected: by IOPL.
    vme(0, false).bytes(b"\xcd\x40").expect(13, 0, 0);
    let mut b = vme(3, false);
    b.set_gate(0x40, 0xee, KERNEL_CODE);
    b.bytes(b"\xcd\x40").expect(0x40, 0, 2);
}

#[test]
fn the_virtual_interrupt_flag_stands_for_if() {
    // STI, PUSHF, CLI, PUSHF.
    let mut b = vme(0, false);
    b.bytes(b"\xfb\x9c\xfa\x9c");
    for _ in 0..4 {
        b.vm.step();
    }
    assert_eq!(b.read_u16(0x3_3ffe), 2 | (IOPL | IF) as u16);
    assert_eq!(b.read_u16(0x3_3ffc), 2 | IOPL as u16);
    // POPF sets it; with VIP pending that is #GP, as STI is.
    let mut b = vme(0, false);
    b.write(0x3_4000, &[2, 2]);
    b.bytes(b"\x9d").vm.step();
    assert_eq!(b.vm.state.rflags, VM | VIF | 2);
    for code in [b"\x9d", b"\xfb"] {
        let mut b = vme(0, false);
        b.write(0x3_4000, &[2, 2]);
        b.vm.state.rflags |= VIP;
        b.bytes(code).expect(13, 0, 0);
    }
    // IRET: the same; TF in the image is #GP.
    let mut b = vme(0, false);
    b.write(0x3_4000, &[0x10, 0, 0, 0x12, 2, 2]);
    b.bytes(b"\xcf").vm.step();
    let s = &b.vm.state;
    assert_eq!((s.rip, s.seg[sreg::CS].selector, s.rflags), (0x10, 0x1200, VM | VIF | 2));
    let mut b = vme(0, false);
    b.write(0x3_4000, &[0x10, 0, 0, 0x12, 2, 1]);
    b.bytes(b"\xcf").expect(13, 0, 0);
    // Their 32-bit forms don't know it.
    for code in [&b"\x66\x9c"[..], b"\x66\x9d", b"\x66\xcf"] {
        vme(0, false).bytes(code).expect(13, 0, 0);
    }
}

#[test]
fn protected_mode_virtual_interrupts() {
    let mut b = Bench::new(32);
    b.set_level(3);
    b.vm.state.cr4 |= Cr4::PVI.bits();
    b.bytes(b"\xfb\x90\xfa");
    b.vm.step();
    assert_eq!(b.vm.state.rflags, VIF | 2);
    b.vm.step();
    b.vm.step();
    assert_eq!(b.vm.state.rflags, 2);
    let mut b = Bench::new(32);
    b.set_level(3);
    b.bytes(b"\xfb").expect(13, 0, 0);
}

#[test]
fn wide_and_narrow_gates_push_their_own_width() {
    let mut b = Bench::new(32);
    b.set_gate(0x40, 0x86, KERNEL_CODE);
    b.bytes(b"\xcd\x40").vm.step();
    let s = &b.vm.state;
    assert_eq!((s.rip, s.gpr[RSP]), ((HANDLERS + 0x400) & 0xffff, STACK - 6));
    assert_eq!(b.read_u16(STACK - 6), (CODE + 2) as u16);
}

#[test]
fn a_table_reaching_out_of_the_canonical_space_is_refused() {
    let mut b = Bench::new(64);
    b.vm.state.idtr = TableRegister { base: 0x7fff_ffff_ffe0, limit: 0xfff };
    b.bytes(UD2);
    assert_eq!(b.vm.run(10), Exit::Shutdown);
    // IDT entries are read with supervisor rights, whatever the level.
    let mut b = Bench::new(64);
    let page = super::bench::Mapping { gpa: IDT, write: true, user: false };
    b.vm.mem.map(IDT, Some(page));
    b.set_level(3);
    b.vm.state.gpr[RAX] = DATA;
    b.bytes(UD2).expect(6, 0, 0);
}
