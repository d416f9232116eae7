//! Control registers, MSRs, descriptor queries, table registers (SDM vol. 3, "Control Registers").

use iced_x86::code_asm::registers as r;

use super::bench::{
    BIG, Bench, CODE, DATA, FREE, KERNEL_DATA, LDT, TSS_B, descriptor, flat, model, model_of,
};
use crate::cpuid::Feature;
use crate::state::reg::{RAX, RBX, RCX, RDX, RSP};
use crate::state::{Cr0, Cr4, Efer, Rflags, Segment, sreg};

const OTHER: u16 = FREE + 0x10;
const ZF: u64 = Rflags::ZF.bits();

/// MOV CRn, RAX with this value in `bits`-bit code after `prepare`: 0 if it was done, else the vector.
fn write_cr(bits: u32, n: u8, value: u64, prepare: impl Fn(&mut Bench)) -> (u8, Bench) {
    let mut b = Bench::new(bits);
    prepare(&mut b);
    b.vm.state.gpr[RAX] = value;
    b.bytes(&[0x0f, 0x22, 0xc0 | n << 3, 0xf4]).vm.step();
    let vector = if b.vm.state.rip == CODE + 3 { 0 } else { b.frame().vector };
    (vector, b)
}

#[test]
fn cr0_refuses_impossible_states() {
    let base = Bench::new(32).vm.state.cr0;
    let (pe, pg) = (Cr0::PE.bits(), Cr0::PG.bits());
    let (nw, cd) = (Cr0::NW.bits(), Cr0::CD.bits());
    let none = |_: &mut Bench| {};
    assert_eq!(write_cr(32, 0, base & !pe | pg, none).0, 13);
    assert_eq!(write_cr(32, 0, base | nw, none).0, 13);
    assert_eq!(write_cr(32, 0, base | nw | cd, none).0, 0);
    assert_eq!(write_cr(64, 0, base | pg | 1 << 32, none).0, 13);
    // Paging can't be left in 64-bit code.
    assert_eq!(write_cr(64, 0, base, none).0, 13);
    // Unknown bits are dropped, ET stays.
    let (vector, b) = write_cr(32, 0, base & !0x10 | 0x80, none);
    assert_eq!((vector, b.vm.state.cr0), (0, base));
    // PAE tables with reserved bits.
    let pae = |b: &mut Bench| {
        b.vm.state.cr4 |= Cr4::PAE.bits();
        b.vm.state.cr3 = 0x800_0000;
    };
    assert_eq!(write_cr(32, 0, base | pg, pae).0, 13);
}

#[test]
fn long_mode_is_entered_with_pae_a_32_bit_tss_and_no_long_code() {
    let base = Bench::new(32).vm.state.cr0 | Cr0::PG.bits();
    let lme = |b: &mut Bench| b.vm.state.efer |= Efer::LME.bits();
    assert_eq!(write_cr(32, 0, base, lme).0, 13);
    let ready = |b: &mut Bench| {
        b.vm.state.efer |= Efer::LME.bits();
        b.vm.state.cr4 |= Cr4::PAE.bits();
    };
    let (vector, b) = write_cr(32, 0, base, ready);
    assert_eq!(vector, 0);
    assert!(b.vm.state.long_mode() && b.vm.state.code_bits() == 32);
    let tss_16 = |b: &mut Bench| {
        ready(b);
        b.vm.state.tr.access = 0x83;
    };
    assert_eq!(write_cr(32, 0, base, tss_16).0, 13);
    let long_code = |b: &mut Bench| {
        ready(b);
        b.vm.state.seg[sreg::CS].access |= Segment::LONG;
    };
    assert_eq!(write_cr(32, 0, base, long_code).0, 13);
    // And left from compatibility mode by clearing PG.
    let compatible = |b: &mut Bench| {
        b.set_descriptor(OTHER, flat(0x9b, BIG));
        let code = b.segment(OTHER);
        b.vm.state.seg[sreg::CS] = code;
    };
    let (vector, b) = write_cr(64, 0, base & !Cr0::PG.bits(), compatible);
    assert_eq!((vector, b.vm.state.efer & Efer::LMA.bits()), (0, 0));
    let pcids = |b: &mut Bench| {
        compatible(b);
        b.vm.state.cr4 |= Cr4::PCIDE.bits();
    };
    assert_eq!(write_cr(64, 0, base & !Cr0::PG.bits(), pcids).0, 13);
}

#[test]
fn cr4_refuses_what_the_mode_or_model_lacks() {
    let pae = Cr4::PAE.bits();
    let none = |_: &mut Bench| {};
    assert_eq!(write_cr(64, 4, 0, none).0, 13);
    assert_eq!(write_cr(64, 4, pae | 1 << 23, none).0, 13);
    assert_eq!(write_cr(64, 4, pae | Cr4::PKE.bits(), none).0, 13);
    assert_eq!(write_cr(64, 4, pae | Cr4::LA57.bits(), none).0, 13);
    assert_eq!(write_cr(32, 4, Cr4::PCIDE.bits(), none).0, 13);
    assert_eq!(write_cr(64, 4, pae | Cr4::PCIDE.bits(), none).0, 0);
    let pcid = |b: &mut Bench| b.vm.state.cr3 = 1;
    assert_eq!(write_cr(64, 4, pae | Cr4::PCIDE.bits(), pcid).0, 13);
    // PAE switched on under paging loads the PDPTEs.
    let paging = |b: &mut Bench| {
        b.vm.state.cr0 |= Cr0::PG.bits();
        b.vm.state.cr3 = 0x800_0000;
    };
    assert_eq!(write_cr(32, 4, pae, paging).0, 13);
}

#[test]
fn cr3_takes_what_is_an_address() {
    let none = |_: &mut Bench| {};
    let top = 1 << model().physical_bits();
    assert_eq!(write_cr(64, 3, top, none).0, 13);
    assert_eq!(write_cr(64, 3, top - 1, none).0, 0);
    assert_eq!(write_cr(64, 3, 1 << 63, none).0, 13);
    let pcids = |b: &mut Bench| b.vm.state.cr4 |= Cr4::PCIDE.bits();
    let (vector, b) = write_cr(64, 3, 1 << 63 | 0x1005, pcids);
    assert_eq!((vector, b.vm.state.cr3), (0, 0x1005));
}

#[test]
fn cr8_is_the_task_priority() {
    let mut b = Bench::new(64);
    b.vm.state.gpr[RAX] = 9;
    b.code(|a| {
        a.mov(r::cr8, r::rax)?;
        a.mov(r::rbx, r::cr8)?;
        a.hlt()
    });
    b.expect_halt();
    assert_eq!((b.vm.state.gpr[RBX], b.world.lock().expect("free").tpr), (9, 9));
    let mut b = Bench::new(64);
    b.vm.state.gpr[RAX] = 0x10;
    b.code(|a| a.mov(r::cr8, r::rax)).expect(13, 0, 0);
    // CR1, CR5 and so on don't exist.
    Bench::new(64).bytes(b"\x0f\x22\xc8").expect(6, 0, 0);
}

#[test]
fn lmsw_sets_pe_and_never_clears_it() {
    let mut b = Bench::new(32);
    b.vm.state.gpr[RAX] = 0xfff0;
    b.bytes(b"\x0f\x01\xf0\xf4").expect_halt();
    assert_eq!(b.vm.state.cr0, (Cr0::PE | Cr0::NE | Cr0::ET | Cr0::WP).bits());
}

#[test]
fn umip_hides_tables_from_users() {
    for code in [
        &b"\x0f\x01\x00"[..],
        b"\x0f\x01\x08",
        b"\x0f\x00\x00",
        b"\x0f\x00\x08",
        b"\x0f\x01\x20",
        b"\x0f\x01\xe0",
    ] {
        for umip in [false, true] {
            let mut b = Bench::new(64);
            if umip {
                b.vm.state.cr4 |= Cr4::UMIP.bits();
            }
            b.set_level(3);
            b.vm.state.gpr[RAX] = DATA;
            // Allowed, the HLT behind it faults.
            b.bytes(&[code, b"\xf4"].concat());
            b.expect(13, 0, if umip { 0 } else { 3 });
        }
    }
}

#[test]
fn instructions_about_descriptors_need_protected_mode() {
    // LAR, LSL, VERR, VERW, SLDT, STR, LLDT, LTR.
    for code in [
        &b"\x0f\x02\xc1"[..],
        b"\x0f\x03\xc1",
        b"\x0f\x00\xe0",
        b"\x0f\x00\xe8",
        b"\x0f\x00\xc0",
        b"\x0f\x00\xc8",
        b"\x0f\x00\xd0",
        b"\x0f\x00\xd8",
    ] {
        Bench::new(16).bytes(code).expect(6, 0, 0);
        let mut b = Bench::new(32);
        b.set_v86(3);
        b.bytes(code).expect(6, 0, 0);
    }
}

/// LAR or LSL of a selector: its result, or `None`.
fn query(bits: u32, lsl: bool, selector: u16, raw: u64, cpl: u8) -> Option<u64> {
    let mut b = Bench::new(bits);
    if selector & !7 == OTHER {
        b.set_descriptor(OTHER, raw);
        b.set_descriptor(OTHER + 8, 0);
    }
    b.set_level(cpl);
    b.vm.state.gpr[RAX] = u64::from(selector);
    b.vm.state.gpr[RCX] = 0xdead;
    // lar/lsl ecx, eax
    b.bytes(&[0x0f, if lsl { 3 } else { 2 }, 0xc8]).vm.step();
    assert_eq!(b.vm.state.rip, CODE + 3);
    let found = b.vm.state.rflags & ZF != 0;
    assert!(found || b.vm.state.gpr[RCX] == 0xdead);
    found.then_some(b.vm.state.gpr[RCX])
}

#[test]
fn lar_and_lsl_know_which_types_the_mode_has() {
    for kind in 0..16u8 {
        let raw = descriptor(0x1234, 0x5678, 0x80 | kind, 0);
        let legacy = matches!(kind, 1 | 2 | 3 | 4 | 5 | 9 | 11 | 12);
        let long = matches!(kind, 2 | 9 | 11 | 12);
        assert_eq!(query(32, false, OTHER, raw, 0).is_some(), legacy, "LAR of {kind}");
        assert_eq!(query(64, false, OTHER, raw, 0).is_some(), long, "LAR of {kind} in long mode");
        let gate = matches!(kind, 4 | 5 | 12);
        assert_eq!(query(32, true, OTHER, raw, 0).is_some(), legacy && !gate, "LSL of {kind}");
        assert_eq!(query(64, true, OTHER, raw, 0).is_some(), long && !gate, "LSL of {kind}, long");
    }
    assert_eq!(query(32, false, OTHER, flat(0x93, BIG), 0), Some(0xcf_9300));
    assert_eq!(query(32, true, OTHER, flat(0x93, BIG), 0), Some(0xffff_ffff));
    assert_eq!(query(32, true, OTHER, descriptor(0, 0x123, 0x13, 0), 0), Some(0x123));
    // Null, beyond the table, hidden from this level, and conforming code, which never is.
    for selector in [0, 0x2000, 4] {
        assert_eq!(query(32, false, selector, 0, 0), None);
    }
    assert_eq!(query(32, false, OTHER, flat(0x93, BIG), 3), None);
    assert_eq!(query(32, false, OTHER | 3, flat(0x93, BIG), 0), None);
    assert!(query(32, false, OTHER | 3, flat(0x9f, BIG), 3).is_some());
}

#[test]
fn verr_and_verw_ask_for_rights() {
    let cases = [
        (0x93, true, true),
        (0x91, true, false),
        (0x9b, true, false),
        (0x99, false, false),
        (0x89, false, false),
    ];
    for (access, read, write) in cases {
        for (modrm, expected) in [(0xe0, read), (0xe8, write)] {
            let mut b = Bench::new(32);
            b.set_descriptor(OTHER, flat(access, BIG));
            b.vm.state.gpr[RAX] = OTHER.into();
            b.bytes(&[0x0f, 0, modrm]).vm.step();
            assert_eq!(b.vm.state.rflags & ZF != 0, expected, "{access:x}");
        }
    }
}

/// LLDT or LTR of a selector: vector and code, or `None` if it was done.
fn load_table(bits: u32, ltr: bool, selector: u16, entry: &[u64]) -> (Option<(u8, u32)>, Bench) {
    let mut b = Bench::new(bits);
    for (n, &raw) in entry.iter().enumerate() {
        b.set_descriptor(OTHER + 8 * n as u16, raw);
    }
    b.vm.state.gpr[RAX] = selector.into();
    b.bytes(&[0x0f, 0, if ltr { 0xd8 } else { 0xd0 }, 0xf4]).vm.step();
    if b.vm.state.rip == CODE + 3 {
        return (None, b);
    }
    let caught = b.frame();
    (Some((caught.vector, caught.code)), b)
}

#[test]
fn table_selectors_are_checked() {
    let gp = Some((13, u32::from(OTHER)));
    let np = Some((11, u32::from(OTHER)));
    let tss = |access| descriptor(TSS_B as u32, 0x67, access, 0);
    let ldt = |access| descriptor(LDT as u32, 0xff, access, 0);
    // LTR.
    assert_eq!(load_table(32, true, 0, &[]).0, Some((13, 0)));
    assert_eq!(load_table(32, true, OTHER | 4, &[]).0, Some((13, u32::from(OTHER | 4))));
    for (bits, access, expected) in [
        (32, 0x8b, gp),
        (32, 0x81, None),
        (64, 0x81, gp),
        (32, 0x09, np),
        (32, 0x92, gp),
        (32, 0x82, gp),
        (64, 0x89, None),
    ] {
        let (outcome, mut b) = load_table(bits, true, OTHER, &[tss(access), 0]);
        assert_eq!(outcome, expected, "{access:x}");
        if outcome.is_none() {
            assert_eq!(b.segment(OTHER).access & 2, 2, "busy");
            assert_eq!(b.vm.state.tr.base, TSS_B);
        }
    }
    // LLDT.
    assert_eq!(load_table(32, false, 0, &[]).0, None);
    assert_eq!(load_table(32, false, OTHER, &[ldt(0x02)]).0, np);
    assert_eq!(load_table(32, false, OTHER, &[ldt(0x89)]).0, gp);
    let (outcome, b) = load_table(64, false, OTHER, &[ldt(0x82), 0xffff_8000]);
    assert_eq!((outcome, b.vm.state.ldtr.base), (None, 0xffff_8000_0000_5000));
    // Non-canonical, and a type in the second half.
    for high in [0x8000, 1 << 40] {
        assert_eq!(load_table(64, false, OTHER, &[ldt(0x82), high]).0, gp);
        assert_eq!(load_table(64, true, OTHER, &[tss(0x89), high]).0, gp);
    }
    // The second half beyond the limit.
    let mut b = Bench::new(64);
    b.vm.state.gdtr.limit = OTHER + 7;
    b.set_descriptor(OTHER, tss(0x89));
    b.vm.state.gpr[RAX] = OTHER.into();
    b.bytes(b"\x0f\x00\xd8").expect(13, OTHER.into(), 0);
    // Not for users.
    let mut b = Bench::new(32);
    b.set_level(3);
    b.bytes(b"\x0f\x00\xd8").expect(13, 0, 0);
}

/// MOV to a segment register of a selector: vector and code, or `None`.
fn load(bits: u32, register: u8, selector: u16, raw: u64, cpl: u8) -> Option<(u8, u32)> {
    let mut b = Bench::new(bits);
    b.set_descriptor(OTHER, raw);
    b.set_level(cpl);
    b.vm.state.gpr[RAX] = selector.into();
    b.bytes(&[0x8e, 0xc0 | register << 3]).vm.step();
    if b.vm.state.rip == CODE + 2 {
        return None;
    }
    let caught = b.frame();
    Some((caught.vector, caught.code))
}

#[test]
fn segment_loads_are_checked() {
    const SS: u8 = 2;
    const DS: u8 = 3;
    let other = u32::from(OTHER);
    let (gp, np, ss) = (Some((13, other)), Some((11, other)), Some((12, other)));
    for (access, rpl, cpl, expected) in [
        (0x93, 0, 0, None),
        (0x91, 0, 0, None),
        (0x9b, 0, 0, None),
        (0x99, 0, 0, gp),
        (0x89, 0, 0, gp),
        (0x13, 0, 0, np),
        (0x93, 3, 0, gp),
        (0x93, 0, 3, gp),
        (0xf3, 3, 3, None),
        // Conforming, readable code: any level.
        (0x9f, 3, 3, None),
        (0xfb, 3, 0, None),
    ] {
        assert_eq!(load(32, DS, OTHER | rpl, flat(access, BIG), cpl), expected, "{access:x}");
    }
    for (access, rpl, cpl, expected) in [
        (0x93, 0, 0, None),
        (0x91, 0, 0, gp),
        (0x9b, 0, 0, gp),
        (0x13, 0, 0, ss),
        (0xf3, 0, 0, gp),
        (0x93, 3, 0, gp),
        (0xf3, 3, 3, None),
    ] {
        assert_eq!(load(32, SS, OTHER | rpl, flat(access, BIG), cpl), expected, "{access:x}");
    }
    // Null: fine for data; for SS in 64-bit code below level 3 only.
    assert_eq!(load(32, DS, 3, 0, 0), None);
    assert_eq!(load(32, SS, 0, 0, 0), Some((13, 0)));
    assert_eq!(load(64, SS, 0, 0, 0), None);
    assert_eq!(load(64, SS, 3, 0, 0), Some((13, 0)));
    assert_eq!(load(64, SS, 3, 0, 3), Some((13, 0)));
    // CS can't be loaded so.
    Bench::new(32).bytes(b"\x8e\xc8").expect(6, 0, 0);
}

#[test]
fn loading_a_segment_marks_its_descriptor() {
    let mut b = Bench::new(32);
    b.set_descriptor(OTHER, flat(0x92, BIG));
    b.vm.state.gpr[RAX] = OTHER.into();
    b.bytes(b"\x8e\xd8\xf4").expect_halt();
    assert_eq!(b.segment(OTHER).access & 1, 1);
    assert_eq!(b.vm.state.seg[sreg::DS].access & 1, 1);
}

fn wrmsr(msr: u64, value: u64) -> (bool, Bench) {
    let mut b = Bench::new(64);
    b.vm.state.gpr[RCX] = msr;
    b.vm.state.gpr[RAX] = value & 0xffff_ffff;
    b.vm.state.gpr[RDX] = value >> 32;
    b.bytes(b"\x0f\x30\xf4").vm.step();
    let done = b.vm.state.rip == CODE + 2;
    assert!(done || b.frame().vector == 13);
    (done, b)
}

#[test]
fn msrs_refuse_reserved_bits() {
    let non_canonical = 1 << 47;
    for (msr, value, allowed) in [
        (0xc000_0082, non_canonical, false),
        (0xc000_0082, u64::MAX, true),
        (0xc000_0100, non_canonical, false),
        (0xc000_0101, non_canonical, false),
        (0xc000_0102, non_canonical, false),
        (0x175, non_canonical, false),
        (0x176, non_canonical, false),
        // EFER: LME can't change under paging, reserved bits.
        (0xc000_0080, Efer::NXE.bits(), false),
        (0xc000_0080, (Efer::LME | Efer::LMA | Efer::SCE).bits(), true),
        (0xc000_0080, 0x1501, false),
        // PAT and MTRRs: memory types.
        (0x277, 0x0007_0406_0007_0406, true),
        (0x277, 0x02, false),
        (0x2ff, 0xc06, true),
        (0x2ff, 0x07, false),
        (0x200, 0x07, false),
        (0x201, 0x400, false),
        (0x250, 0x0606_0606_0606_0606, true),
        (0x250, 2, false),
        // Read-only, and unknown.
        (0xfe, 0, false),
        (0xdead_beef, 0, false),
    ] {
        assert_eq!(wrmsr(msr, value).0, allowed, "{msr:x} = {value:x}");
    }
    let mut b = Bench::new(64);
    b.vm.state.gpr[RCX] = 0xdead_beef;
    b.bytes(b"\x0f\x32").expect(13, 0, 0);
    let mut b = Bench::new(64);
    b.set_level(3);
    b.bytes(b"\x0f\x32").expect(13, 0, 0);
}

#[test]
fn kvms_clock_has_msrs_where_the_model_has_the_clock() {
    let bench = |spec| Bench::with_model(64, model_of(spec));
    let write = |b: &mut Bench, msr: u32, value: u64| {
        b.vm.state.rip = CODE;
        b.vm.state.gpr[RCX] = u64::from(msr);
        (b.vm.state.gpr[RAX], b.vm.state.gpr[RDX]) = (value & 0xffff_ffff, value >> 32);
        b.bytes(b"\x0f\x30").vm.step();
        b.vm.state.rip == CODE + 2
    };
    let mut with = bench("host");
    assert!(write(&mut with, 0x10, 1_000_500));
    for (msr, value) in [(0x11, 1), (0x12, 2), (0x4b56_4d00, 3), (0x4b56_4d01, u64::MAX)] {
        assert!(write(&mut with, msr, value), "{msr:#x}");
        assert_eq!(
            with.world.lock().expect("no test holds it").msr_writes.pop(),
            Some((msr, value, 500))
        );
        assert_eq!(read_msr(&mut with, msr), Some(0x1234), "{msr:#x}");
        for spec in ["host,-kvmclock", "host,-hypervisor"] {
            assert!(!write(&mut bench(spec), msr, value), "{spec} {msr:#x}");
            assert_eq!(read_msr(&mut bench(spec), msr), None, "{spec} {msr:#x}");
        }
    }
    assert!(!write(&mut bench("host"), 0x4b56_4d02, 0), "asynchronous page faults");
}

#[test]
fn kvms_clock_is_told_when_the_counter_is_moved() {
    for (spec, expected) in [("host", &[500, 7, 0][..]), ("host,-kvmclock", &[])] {
        let mut b = Bench::with_model(64, model_of(spec));
        // IA32_TSC, IA32_TSC_ADJUST.
        for (msr, value) in [(0x10, 1_000_500), (0x3b, 7), (0x3b, 0)] {
            b.vm.state.rip = CODE;
            (b.vm.state.gpr[RCX], b.vm.state.gpr[RAX], b.vm.state.gpr[RDX]) = (msr, value, 0);
            b.bytes(b"\x0f\x30").vm.step();
            assert_eq!(b.vm.state.rip, CODE + 2);
        }
        assert_eq!(b.world.lock().expect("no test holds it").tsc_moves, expected, "{spec}");
    }
}

#[test]
fn segment_bases_are_msrs_too() {
    let (done, b) = wrmsr(0xc000_0100, 0x1234_5678_9abc);
    assert!(done);
    assert_eq!(b.vm.state.seg[sreg::FS].base, 0x1234_5678_9abc);
    // A null selector clears it.
    let mut b = Bench::new(64);
    b.vm.state.seg[sreg::FS].base = 1;
    b.bytes(b"\x8e\xe0").vm.step();
    assert_eq!(b.vm.state.seg[sreg::FS].base, 0);
    let mut b = Bench::new(64);
    b.vm.state.seg[sreg::GS].base = 1;
    b.vm.state.msr.kernel_gs_base = 2;
    b.bytes(b"\x0f\x01\xf8").vm.step();
    assert_eq!((b.vm.state.seg[sreg::GS].base, b.vm.state.msr.kernel_gs_base), (2, 1));
    let mut b = Bench::new(64);
    b.set_level(3);
    b.bytes(b"\x0f\x01\xf8").expect(13, 0, 0);
}

#[test]
fn privileged_instructions_fault_for_users() {
    for code in [
        &b"\x0f\x01\x10"[..],
        b"\x0f\x01\x18",
        b"\x0f\x01\xf0",
        b"\x0f\x06",
        b"\x0f\x08",
        b"\x0f\x09",
        b"\x0f\x01\x38",
        b"\x0f\x20\xc0",
        b"\x0f\x22\xc0",
        b"\x0f\x30",
        b"\xf4",
        b"\xfa",
        b"\xfb",
        b"\x0f\x33",
    ] {
        let mut b = Bench::new(64);
        b.set_level(3);
        b.vm.state.gpr[RAX] = DATA;
        b.bytes(code).expect(13, 0, 0);
    }
    // STAC and CLAC are #UD instead.
    if model().has(Feature::Smap) {
        let mut b = Bench::new(64);
        b.set_level(3);
        b.bytes(b"\x0f\x01\xcb").expect(6, 0, 0);
    }
    // RDTSC by CR4.TSD.
    let mut b = Bench::new(64);
    b.set_level(3);
    b.vm.state.cr4 |= Cr4::TSD.bits();
    b.bytes(b"\x0f\x31").expect(13, 0, 0);
}

#[test]
fn iopl_lets_users_change_if() {
    let mut b = Bench::new(64);
    b.set_level(3);
    b.vm.state.rflags |= Rflags::IOPL.bits();
    b.bytes(b"\xfb\x90\xfa").vm.step();
    assert_ne!(b.vm.state.rflags & Rflags::IF.bits(), 0);
}

#[test]
fn popf_changes_what_the_level_may() {
    let all = 0x3f_7fd7 & !(1 << 8);
    for (cpl, iopl, fixed) in [
        (0, 0, Rflags::VM | Rflags::RF | Rflags::VIF | Rflags::VIP),
        (3, 0, Rflags::VM | Rflags::RF | Rflags::VIF | Rflags::VIP | Rflags::IOPL | Rflags::IF),
        (3, 3, Rflags::VM | Rflags::RF | Rflags::VIF | Rflags::VIP),
    ] {
        let mut b = Bench::new(64);
        b.set_level(cpl);
        b.vm.state.rflags |= iopl << 12;
        let sp = b.vm.state.gpr[RSP] - 8;
        b.write_u64(sp, all);
        b.vm.state.gpr[RSP] = sp;
        b.bytes(b"\x9d").vm.step();
        assert_eq!(b.vm.state.rflags, all & !fixed.bits() | iopl << 12, "{cpl} {iopl}");
    }
}

#[test]
fn gdt_and_idt_loads_follow_the_operand_size() {
    let mut b = Bench::new(32);
    b.write_u64(DATA, 0x1234_5678_9abc_0fff);
    b.vm.state.gpr[RAX] = DATA;
    // o16 lgdt: 24 bits of base.
    b.bytes(b"\x66\x0f\x01\x10").vm.step();
    assert_eq!((b.vm.state.gdtr.base, b.vm.state.gdtr.limit), (0x78_9abc, 0x0fff));
    let mut b = Bench::new(64);
    b.write_u64(DATA, 0xffff);
    b.write_u64(DATA + 2, 1 << 47);
    b.vm.state.gpr[RAX] = DATA;
    b.bytes(b"\x0f\x01\x10").expect(13, 0, 0);
}

#[test]
fn selectors_are_pushed_and_moved_in_their_own_ways() {
    // A 32-bit push of a selector writes 16 bits and moves the pointer by four.
    let mut b = Bench::new(32);
    let sp = b.vm.state.gpr[RSP];
    b.write_u32(sp - 4, 0xffff_ffff);
    b.bytes(b"\x1e\xf4").expect_halt();
    assert_eq!(b.vm.state.gpr[RSP], sp - 4);
    assert_eq!(b.read_u32(sp - 4), 0xffff_0000 | u32::from(KERNEL_DATA));
    // mov ecx, ds zero-extends, mov cx, ds doesn't.
    let mut b = Bench::new(64);
    b.vm.state.gpr[RCX] = u64::MAX;
    b.vm.state.gpr[RBX] = u64::MAX;
    b.bytes(b"\x8c\xd9\x66\x8c\xdb\xf4").expect_halt();
    assert_eq!(b.vm.state.gpr[RCX], KERNEL_DATA.into());
    assert_eq!(b.vm.state.gpr[RBX], 0xffff_ffff_ffff_0000 | u64::from(KERNEL_DATA));
}

#[test]
fn arpl_raises_the_rpl() {
    for (selector, rpl, expected) in [(0x10u64, 3u64, Some(0x13u64)), (0x13, 1, None)] {
        let mut b = Bench::new(32);
        b.vm.state.gpr[RAX] = selector;
        b.vm.state.gpr[RCX] = rpl;
        b.bytes(b"\x63\xc8\xf4").expect_halt();
        assert_eq!(b.vm.state.gpr[RAX], expected.unwrap_or(selector));
        assert_eq!(b.vm.state.rflags & ZF != 0, expected.is_some());
    }
}

#[test]
fn xsetbv_refuses_avx_that_the_model_lacks() {
    for (spec, vector) in [("x86-64-v3", 0), ("x86-64-v3,-avx", 13)] {
        let mut b = Bench::with_model(64, model_of(spec));
        b.vm.state.cr4 |= Cr4::OSXSAVE.bits();
        b.vm.state.gpr[RAX] = 7;
        b.bytes(b"\x0f\x01\xd1").vm.step();
        let caught = if b.vm.state.rip == CODE + 3 { 0 } else { b.frame().vector };
        assert_eq!(caught, vector, "{spec}");
    }
}

/// What RDMSR gives; `None` for #GP.
fn read_msr(b: &mut Bench, msr: u32) -> Option<u64> {
    b.vm.state.rip = CODE;
    b.vm.state.gpr[RCX] = u64::from(msr);
    b.bytes(b"\x0f\x32").vm.step();
    let s = &b.vm.state;
    (s.rip == CODE + 2).then(|| s.gpr[RDX] << 32 | s.gpr[RAX])
}

#[test]
fn each_vendor_has_its_own_msrs() {
    // PLATFORM_ID, FEATURE_CONTROL, SPEC_CTRL, ARCH_CAPABILITIES, MISC_ENABLE.
    for msr in [0x17, 0x3a, 0x48, 0x10a, 0x1a0] {
        assert!(read_msr(&mut Bench::new(64), msr).is_some(), "{msr:#x}");
        assert_eq!(read_msr(&mut Bench::amd(64), msr), None, "{msr:#x}");
    }
    // SYSCFG; HWCR: the time stamp counter's frequency is P0's; NB_CFG; DE_CFG: LFENCE serialises.
    for (msr, value) in
        [(0xc001_0010, 0), (0xc001_0015, 1 << 24), (0xc001_001f, 0), (0xc001_1029, 1 << 1)]
    {
        assert_eq!(read_msr(&mut Bench::amd(64), msr), Some(value), "{msr:#x}");
        assert_eq!(read_msr(&mut Bench::new(64), msr), None, "{msr:#x}");
        // Locked: a write is ignored.
        let mut b = Bench::amd(64);
        b.vm.state.gpr[RCX] = u64::from(msr);
        b.vm.state.gpr[RAX] = 0xffff;
        b.bytes(b"\x0f\x30").vm.step();
        assert_eq!((b.vm.state.rip, read_msr(&mut b, msr)), (CODE + 2, Some(value)));
    }
    // Automatic IBRS is a bit of AMD's EFER.
    for (mut b, allowed) in [(Bench::new(64), false), (Bench::amd(64), true)] {
        b.vm.state.gpr[RCX] = 0xc000_0080;
        b.vm.state.gpr[RAX] = b.vm.state.efer | 1 << 21;
        b.bytes(b"\x0f\x30").vm.step();
        assert_eq!(b.vm.state.rip == CODE + 2, allowed);
    }
}
