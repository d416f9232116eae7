//! Hardware task switches (SDM vol. 3, "Task Switching").

use super::bench::{
    BIG, Bench, CODE, DATA, FREE, HANDLERS, KERNEL_CODE, KERNEL_DATA, LDT, STACK, TASK_A, TSS_A,
    TSS_B, USER_CODE, USER_DATA, descriptor, flat, gate,
};
use crate::interp::Exit;
use crate::state::reg::{RAX, RDI, RSP};
use crate::state::{Cr0, Rflags, sreg};

const TASK_B: u16 = FREE;
const GATE: u16 = FREE + 8;
const LDT_SELECTOR: u16 = FREE + 0x10;
/// Where task B starts.
const CODE_B: u64 = CODE + 0x800;
const STACK_B: u64 = STACK - 0x1000;
const NT: u64 = Rflags::NT.bits();

/// A 32-bit TSS.
struct Tss {
    eip: u64,
    eflags: u64,
    segments: [u16; 6],
    ldt: u16,
    trap: bool,
}

impl Default for Tss {
    fn default() -> Self {
        let d = KERNEL_DATA;
        Self { eip: CODE_B, eflags: 2, segments: [d, KERNEL_CODE, d, d, d, d], ldt: 0, trap: false }
    }
}

fn bench(tss: &Tss) -> Bench {
    let mut b = Bench::new(32);
    b.set_descriptor(TASK_B, descriptor(TSS_B as u32, 0x67, 0x89, 0));
    b.write_u32(TSS_B + 0x20, tss.eip as u32);
    b.write_u32(TSS_B + 0x24, tss.eflags as u32);
    for n in 0..8 {
        b.write_u32(TSS_B + 0x28 + 4 * n, 0x1000 * n as u32);
    }
    b.write_u32(TSS_B + 0x38, STACK_B as u32);
    for (n, selector) in tss.segments.into_iter().enumerate() {
        b.write_u32(TSS_B + 0x48 + 4 * n as u64, selector.into());
    }
    b.write_u32(TSS_B + 0x60, tss.ldt.into());
    b.write_u32(TSS_B + 0x64, tss.trap.into());
    // Task B halts.
    b.write(CODE_B, b"\xf4");
    b.vm.state.gpr[RAX] = DATA;
    b.write(DATA + 4, &TASK_B.to_le_bytes());
    b
}

const JMP: &[u8] = b"\xff\x28";
const CALL: &[u8] = b"\xff\x18";

fn is_busy(b: &mut Bench, selector: u16) -> bool {
    b.segment(selector).access & 2 != 0
}

#[test]
fn a_jump_swaps_the_registers() {
    let mut b = bench(&Tss::default());
    b.vm.state.gpr[RDI] = 0xabcd;
    b.vm.state.rflags |= Rflags::CF.bits();
    b.vm.state.dr[7] = 0x403;
    b.bytes(JMP).run();
    let s = &b.vm.state;
    assert_eq!((s.rip, s.gpr[RDI], s.gpr[RSP]), (CODE_B + 1, 0x7000, STACK_B));
    assert_eq!((s.tr.selector, s.tr.base, s.rflags), (TASK_B, TSS_B, 2));
    assert!(s.cr0(Cr0::TS));
    // Local breakpoints are off.
    assert_eq!(s.dr[7], 0x402);
    assert!(is_busy(&mut b, TASK_B) && !is_busy(&mut b, TASK_A));
    // What was saved.
    assert_eq!(b.read_u32(TSS_A + 0x20), CODE as u32 + 2);
    assert_eq!(b.read_u32(TSS_A + 0x24), 3);
    assert_eq!(b.read_u32(TSS_A + 0x28 + 28), 0xabcd);
    assert_eq!(b.read_u32(TSS_A + 0x48 + 4), KERNEL_CODE.into());
    // No link.
    assert_eq!(b.read_u16(TSS_B), 0);
}

#[test]
fn a_call_nests_and_iret_returns() {
    let mut b = bench(&Tss::default());
    b.write(CODE_B, b"\xcf\xf4");
    b.bytes(b"\xff\x18\xf4").vm.step();
    assert_eq!(b.vm.state.rflags & NT, NT);
    assert_eq!(b.read_u16(TSS_B), TASK_A);
    assert!(is_busy(&mut b, TASK_A) && is_busy(&mut b, TASK_B));
    b.run();
    let s = &b.vm.state;
    assert_eq!((s.rip, s.tr.selector, s.rflags, s.gpr[RSP]), (CODE + 3, TASK_A, 2, STACK));
    assert!(is_busy(&mut b, TASK_A) && !is_busy(&mut b, TASK_B));
    // B goes on after its IRET, with NT clear.
    assert_eq!(b.read_u32(TSS_B + 0x20), CODE_B as u32 + 1);
    assert_eq!(u64::from(b.read_u32(TSS_B + 0x24)) & NT, 0);
}

#[test]
fn refused_switches_leave_the_old_task() {
    let b_code = u32::from(TASK_B);
    let cases = [
        (descriptor(TSS_B as u32, 0x67, 0x8b, 0), 13, b_code),
        (descriptor(TSS_B as u32, 0x67, 0x09, 0), 11, b_code),
        (descriptor(TSS_B as u32, 0x66, 0x89, 0), 10, b_code),
        (descriptor(0x50_0000, 0x67, 0x89, 0), 14, 0),
    ];
    for (raw, vector, code) in cases {
        let mut b = bench(&Tss::default());
        b.set_descriptor(TASK_B, raw);
        b.bytes(JMP).expect(vector, code, 0);
        assert_eq!(b.vm.state.tr.selector, TASK_A);
        assert!(is_busy(&mut b, TASK_A));
    }
    // IRET to a task that isn't busy, or isn't one.
    for link in [TASK_B, KERNEL_CODE, 0x2000, TASK_B | 4] {
        let mut b = bench(&Tss::default());
        b.write(TSS_A, &link.to_le_bytes());
        b.vm.state.rflags |= NT;
        b.bytes(b"\xcf").expect(10, u32::from(link), 0);
    }
    // From level 3 to a TSS of level 0.
    let mut b = bench(&Tss::default());
    b.set_level(3);
    b.bytes(JMP).expect(13, b_code, 0);
}

#[test]
fn faults_after_the_switch_are_the_new_tasks() {
    let d = KERNEL_DATA;
    let absent = FREE + 0x20;
    // (segments, LDT, vector, code)
    let cases = [
        ([d, d, d, d, d, d], 0, 10, d),
        ([d, 0, d, d, d, d], 0, 10, 0),
        ([d, KERNEL_CODE, USER_DATA, d, d, d], 0, 10, USER_DATA & !3),
        ([d, KERNEL_CODE, d, 0x2000, d, d], 0, 10, 0x2000),
        ([d, KERNEL_CODE, d, absent, d, d], 0, 11, absent),
        ([d, KERNEL_CODE, d, d, d, d], KERNEL_DATA, 10, KERNEL_DATA),
    ];
    for (segments, ldt, vector, code) in cases {
        let mut b = bench(&Tss { segments, ldt, ..Tss::default() });
        b.set_descriptor(absent, flat(0x13, BIG));
        // The handler is a task as well: nothing of B may be needed to get there.
        let other = FREE + 0x28;
        let tss = 0x8000;
        b.set_descriptor(other, descriptor(tss, 0x67, 0x89, 0));
        b.set_raw_gate(vector, gate(0x85, other, 0));
        b.write_u32(u64::from(tss) + 0x20, HANDLERS as u32);
        b.write_u32(u64::from(tss) + 0x38, STACK as u32 - 0x2000);
        for (n, selector) in Tss::default().segments.into_iter().enumerate() {
            b.write_u32(u64::from(tss) + 0x48 + 4 * n as u64, selector.into());
        }
        b.bytes(JMP).run();
        let s = &b.vm.state;
        assert_eq!((s.rip, s.tr.selector), (HANDLERS + 1, other), "{}", b.vm.dump());
        // The error code is on the handler's stack, the place is in B's TSS.
        let sp = s.gpr[RSP];
        assert_eq!(b.read_u32(sp), u32::from(code), "{segments:x?}");
        assert_eq!(b.read_u32(TSS_B + 0x20), CODE_B as u32);
        assert_eq!(b.read_u16(u64::from(tss)), TASK_B);
    }
}

#[test]
fn an_eip_beyond_the_new_code_segment_is_the_new_tasks_fault() {
    let mut b = bench(&Tss { segments: [0x10, 0x68, 0x10, 0x10, 0x10, 0x10], ..Tss::default() });
    b.set_descriptor(0x68, descriptor(0, 0xfff, 0x9b, BIG));
    let caught = b.bytes(JMP).caught();
    assert_eq!((caught.vector, caught.rip, caught.cs), (13, CODE_B, 0x68));
    assert_eq!(b.vm.state.tr.selector, TASK_B);
}

#[test]
fn the_debug_trap_flag_traps_before_the_first_instruction() {
    let mut b = bench(&Tss { trap: true, ..Tss::default() });
    let caught = b.bytes(JMP).caught();
    assert_eq!((caught.vector, caught.rip), (1, CODE_B));
    assert_eq!(b.vm.state.dr[6], 0xffff_8ff0);
}

#[test]
fn a_task_gate_in_the_idt_nests() {
    let mut b = bench(&Tss::default());
    b.set_raw_gate(13, gate(0x85, TASK_B, 0));
    // #GP(0x2000).
    b.write(DATA + 4, &0x2000u16.to_le_bytes());
    b.bytes(JMP).run();
    let s = &b.vm.state;
    assert_eq!((s.rip, s.rflags, s.gpr[RSP]), (CODE_B + 1, 2 | NT, STACK_B - 4));
    assert_eq!(b.read_u32(STACK_B - 4), 0x2000);
    assert_eq!(b.read_u16(TSS_B), TASK_A);
    // The fault's place, with RF set.
    assert_eq!(b.read_u32(TSS_A + 0x20), CODE as u32);
    assert_eq!(b.read_u32(TSS_A + 0x24), 2 | 1 << 16);
    // Busy already: #GP(TSS + EXT), through the same gate: #DF.
    let mut b = bench(&Tss::default());
    b.set_descriptor(TASK_B, descriptor(TSS_B as u32, 0x67, 0x8b, 0));
    b.set_raw_gate(6, gate(0x85, TASK_B, 0));
    b.bytes(b"\x0f\x0b").expect(13, u32::from(TASK_B) | 1, 0);
}

#[test]
fn calls_through_a_task_gate_check_the_gate_only() {
    let mut b = bench(&Tss::default());
    b.set_descriptor(GATE, gate(0xe5, TASK_B, 0));
    b.write(DATA + 4, &GATE.to_le_bytes());
    b.set_level(3);
    b.bytes(CALL).run();
    assert_eq!((b.vm.state.rip, b.vm.state.cpl), (CODE_B + 1, 0));
    assert_eq!(b.read_u32(TSS_A + 0x48 + 4), USER_CODE.into());
    for (selector, code) in [(TASK_B | 4, TASK_B | 4), (0x2000, 0x2000), (0, 0)] {
        let mut b = bench(&Tss::default());
        b.set_descriptor(GATE, gate(0x85, selector, 0));
        b.write(DATA + 4, &GATE.to_le_bytes());
        b.bytes(CALL).expect(13, u32::from(code), 0);
    }
}

#[test]
fn a_16_bit_tss_holds_words() {
    let mut b = bench(&Tss::default());
    b.set_descriptor(TASK_B, descriptor(TSS_B as u32, 0x2b, 0x81, 0));
    b.write(TSS_B, &[0; 0x68]);
    let code = FREE + 0x20;
    b.set_descriptor(code, descriptor(CODE_B as u32, 0xffff, 0x9b, 0));
    b.write(TSS_B + 0x10, &[2, 0]);
    b.write(TSS_B + 0x12, &[0x34, 0x12]);
    for (n, selector) in [KERNEL_DATA, code, KERNEL_DATA, KERNEL_DATA].into_iter().enumerate() {
        b.write(TSS_B + 0x22 + 2 * n as u64, &selector.to_le_bytes());
    }
    b.bytes(JMP).run();
    let s = &b.vm.state;
    assert_eq!((s.rip, s.gpr[RAX] & 0xffff, s.tr.selector), (1, 0x1234, TASK_B));
    assert_eq!(s.seg[sreg::FS].selector, 0);
    // One byte short.
    let mut b = bench(&Tss::default());
    b.set_descriptor(TASK_B, descriptor(TSS_B as u32, 0x2a, 0x81, 0));
    b.bytes(JMP).expect(10, u32::from(TASK_B), 0);
}

#[test]
fn a_task_may_be_virtual_8086_code() {
    let mut b = bench(&Tss {
        eip: 0,
        eflags: Rflags::VM.bits() | 2,
        segments: [0x2000, (CODE_B >> 4) as u16, 0x2800, 0x2000, 0x1111, 0x2222],
        ..Tss::default()
    });
    // #UD at once.
    b.write(CODE_B, b"\x0f\x0b");
    b.write_u32(TSS_B + 4, STACK as u32);
    b.write_u32(TSS_B + 8, KERNEL_DATA.into());
    let caught = b.bytes(JMP).caught();
    assert_eq!((caught.vector, caught.rip, caught.cs), (6, 0, (CODE_B >> 4) as u16));
    assert_eq!(caught.flags & Rflags::VM.bits(), Rflags::VM.bits());
    assert_eq!(caught.ss, 0x2800);
}

#[test]
fn a_task_brings_its_ldt() {
    // DS from the LDT's entry 1.
    let d = KERNEL_DATA;
    let mut b = bench(&Tss {
        segments: [d, KERNEL_CODE, d, 0x0c, d, d],
        ldt: LDT_SELECTOR,
        ..Tss::default()
    });
    b.set_descriptor(LDT_SELECTOR, descriptor(LDT as u32, 0xf, 0x82, 0));
    b.write_u64(LDT + 8, descriptor(0x1234, 0xff, 0x93, BIG));
    assert_eq!(b.bytes(JMP).run(), Exit::Halted);
    let s = &b.vm.state;
    assert_eq!((s.seg[sreg::DS].base, s.ldtr.base), (0x1234, LDT));
}

#[test]
fn paging_follows_the_task() {
    let mut b = bench(&Tss::default());
    b.vm.state.cr0 |= Cr0::PG.bits();
    b.write_u32(TSS_B + 0x1c, 0x12_3000);
    b.bytes(JMP).run();
    assert_eq!(b.vm.state.cr3, 0x12_3000);
}
