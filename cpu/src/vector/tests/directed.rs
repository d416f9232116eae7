//! Single rules, each with the smallest state that shows it.

use std::sync::atomic::Ordering;

use iced_x86::Instruction;

use super::generate::{self, Rng};
use super::native::{TestCode, install_handlers};
use super::random::{Page, cpu};
use crate::exception::{Exception, Outcome, Trap, Vector};
use crate::state::{CpuState, Cr0, Cr4, Rflags, Segment, VectorState, reg, sreg};
use crate::vector::VectorUnit;

const BASE: u64 = 0x1_0000;

pub(super) struct Bench {
    pub unit: VectorUnit,
    pub cpu: CpuState,
    pub page: Page,
}

impl Bench {
    pub fn new(bits: u32) -> Self {
        install_handlers();
        let mut bench = Self {
            unit: VectorUnit::new(Box::new(TestCode::new(1 << 16))),
            cpu: cpu(bits),
            page: Page { base: BASE, bytes: vec![0; 4096] },
        };
        bench.cpu.vector = VectorState::default();
        bench
    }

    fn decode(&self, bytes: &[u8]) -> Instruction {
        generate::decode(bytes, self.cpu.code_bits(), self.cpu.rip)
    }

    /// Executes with a memory operand, if any, at `BASE + at`.
    pub fn at(&mut self, at: u64, bytes: &[u8]) -> Outcome {
        let insn = self.decode(bytes);
        let op = self.unit.prepare(&insn).expect("one of ours");
        self.unit.execute(&op, &insn, &mut self.cpu, &mut self.page, BASE + at)
    }

    pub fn run(&mut self, bytes: &[u8]) -> Outcome {
        self.at(0, bytes)
    }
}

// [rdi] or [edi] where there is memory.
const ADDPS_REG: &[u8] = b"\x0f\x58\xc1";
const ADDPS: &[u8] = b"\x0f\x58\x07";
const MOVUPS: &[u8] = b"\x0f\x10\x07";
const MOVAPS_STORE: &[u8] = b"\x0f\x29\x07";
const PADDB_MMX: &[u8] = b"\x0f\xfc\xc1";
const CVTPS2PI: &[u8] = b"\x0f\x2d\xc1";
const VADDPS: &[u8] = b"\xc5\xf4\x58\xc2";
const VMOVUPS: &[u8] = b"\xc5\xfc\x10\x07";
const VMOVAPS: &[u8] = b"\xc5\xfc\x28\x07";
const DIVPS: &[u8] = b"\x0f\x5e\xc1";
pub(super) const FLD1: &[u8] = b"\xd9\xe8";
pub(super) const FDIVP: &[u8] = b"\xde\xf9";
pub(super) const FLDZ: &[u8] = b"\xd9\xee";
const FWAIT: &[u8] = b"\x9b";
const FNSTSW_AX: &[u8] = b"\xdf\xe0";
const FNCLEX: &[u8] = b"\xdb\xe2";
const FNINIT: &[u8] = b"\xdb\xe3";
const FNSTENV: &[u8] = b"\xd9\x37";
const FLDENV: &[u8] = b"\xd9\x27";
const FNSAVE: &[u8] = b"\xdd\x37";
const FRSTOR: &[u8] = b"\xdd\x27";
const FSTP_M64: &[u8] = b"\xdd\x1f";
const FXSAVE: &[u8] = b"\x0f\xae\x07";
const FXRSTOR: &[u8] = b"\x0f\xae\x0f";
const LDMXCSR: &[u8] = b"\x0f\xae\x17";
const XSAVE: &[u8] = b"\x0f\xae\x27";
const XRSTOR: &[u8] = b"\x0f\xae\x2f";
const XGETBV: &[u8] = b"\x0f\x01\xd0";
const XSETBV: &[u8] = b"\x0f\x01\xd1";
const VZEROUPPER: &[u8] = b"\xc5\xf8\x77";

#[test]
fn guards_follow_the_exception_classes() {
    let with = |bytes: &[u8], change: fn(&mut CpuState)| {
        let mut bench = Bench::new(64);
        change(&mut bench.cpu);
        let before = bench.cpu.vector.clone();
        let outcome = bench.run(bytes);
        if outcome.is_err() {
            assert_eq!(bench.cpu.vector, before, "{bytes:x?}");
        }
        outcome
    };
    let (ud, nm, mf) = (Err(Trap::ud()), Err(Trap::nm()), Err(Trap::mf()));
    let pending = |cpu: &mut CpuState| {
        cpu.vector.set_u16_at(VectorState::FCW, 0x37e);
        cpu.vector.set_u16_at(VectorState::FSW, 0x8081);
    };
    let (em, ts) = (
        |c: &mut CpuState| c.cr0 |= Cr0::EM.bits(),
        |c: &mut CpuState| {
            c.cr0 |= Cr0::TS.bits();
        },
    );
    let both = |c: &mut CpuState| c.cr0 |= (Cr0::EM | Cr0::TS).bits();
    let no_osfxsr = |c: &mut CpuState| c.cr4 &= !Cr4::OSFXSR.bits();
    let no_osxsave = |c: &mut CpuState| c.cr4 &= !Cr4::OSXSAVE.bits();

    for sse in [ADDPS_REG, MOVUPS, LDMXCSR] {
        assert_eq!((with(sse, em), with(sse, ts), with(sse, both)), (ud, nm, ud));
        assert_eq!(with(sse, no_osfxsr), ud);
        assert_eq!(with(sse, pending), Ok(()));
    }
    assert_eq!((with(PADDB_MMX, em), with(PADDB_MMX, ts)), (ud, nm));
    assert_eq!((with(PADDB_MMX, pending), with(PADDB_MMX, no_osfxsr)), (mf, Ok(())));
    assert_eq!((with(CVTPS2PI, pending), with(CVTPS2PI, no_osfxsr)), (mf, ud));
    for vex in [VADDPS, VMOVUPS, VZEROUPPER] {
        assert_eq!((with(vex, em), with(vex, ts), with(vex, no_osxsave)), (Ok(()), nm, ud));
        assert_eq!((with(vex, no_osfxsr), with(vex, pending)), (Ok(()), Ok(())));
        assert_eq!((with(vex, |c| c.xcr0 = 3), with(vex, |c| c.cr0 = 0)), (ud, ud));
        assert_eq!(with(vex, |c| c.rflags |= Rflags::VM.bits()), ud);
    }
    assert_eq!((with(FLD1, em), with(FLD1, ts), with(FLD1, pending)), (nm, nm, mf));
    assert_eq!((with(FNSTSW_AX, ts), with(FNSTSW_AX, pending)), (nm, Ok(())));
    assert_eq!((with(FNSTENV, pending), with(FNCLEX, pending)), (Ok(()), Ok(())));
    assert_eq!((with(FLDENV, pending), with(FRSTOR, pending)), (mf, mf));
    assert_eq!((with(FWAIT, em), with(FWAIT, ts), with(FWAIT, pending)), (Ok(()), nm, mf));
    assert_eq!(with(FWAIT, |c| c.cr0 = (Cr0::PE | Cr0::TS).bits()), Ok(()), "MP is clear");
    assert_eq!((with(FXSAVE, em), with(FXSAVE, ts), with(FXSAVE, pending)), (nm, nm, Ok(())));
    assert_eq!((with(XSAVE, no_osxsave), with(XSAVE, ts), with(XSAVE, em)), (ud, nm, Ok(())));
}

#[test]
fn simd_exception_is_invalid_opcode_without_osxmmexcpt() {
    let mut bench = Bench::new(64);
    bench.cpu.vector.set_mxcsr(0x1f80 & !0x80);
    assert_eq!(bench.run(DIVPS), Err(Trap::xm()), "0 / 0");
    assert_eq!(bench.cpu.vector.mxcsr(), 0x1f01);
    bench.cpu.cr4 &= !Cr4::OSXMMEXCPT.bits();
    assert_eq!(bench.run(DIVPS), Err(Trap::ud()));
}

#[test]
fn alignment_is_that_of_the_linear_address() {
    let mut bench = Bench::new(32);
    assert_eq!(bench.at(8, ADDPS), Err(Trap::gp0()));
    assert_eq!(bench.at(8, MOVAPS_STORE), Err(Trap::gp0()));
    assert_eq!(bench.at(8, MOVUPS), Ok(()));
    assert_eq!(bench.at(16, VMOVAPS), Err(Trap::gp0()));
    assert_eq!(bench.at(17, VMOVUPS), Ok(()));
    assert_eq!(bench.at(16, XSAVE), Err(Trap::gp0()));
    assert_eq!(bench.at(8, FXSAVE), Err(Trap::gp0()));
    bench.cpu.seg[sreg::DS].base = 8;
    assert_eq!(bench.at(8, ADDPS), Ok(()));
    assert_eq!(bench.at(0, ADDPS), Err(Trap::gp0()));
    // In 64-bit code the base of DS doesn't count.
    let mut bench = Bench::new(64);
    bench.cpu.seg[sreg::DS].base = 8;
    assert_eq!(bench.at(0, ADDPS), Ok(()));
}

#[test]
fn x87_pointers_are_the_guests() {
    let mut bench = Bench::new(64);
    bench.cpu.vector.set_u16_at(VectorState::FCW, 0x37b);
    bench.cpu.rip = 0x1234_5678_9abc;
    let field = |bench: &Bench, at: usize| {
        u64::from_le_bytes(bench.cpu.vector.bytes[at..at + 8].try_into().expect("eight"))
    };
    bench.run(FLD1).expect("masked");
    bench.run(FLDZ).expect("masked");
    assert_eq!((field(&bench, 8), field(&bench, 16)), (0x1234_5678_9abc, 0));
    bench.run(FSTP_M64).expect("masked");
    assert_eq!(field(&bench, 16), 0, "FDP moves with unmasked exceptions only");
    bench.cpu.rip = 0x55;
    // fdiv qword [rdi]
    assert_eq!(bench.at(0x10, b"\xdc\x37"), Ok(()), "reported by the next instruction");
    assert_eq!((field(&bench, 8), field(&bench, 16)), (0x55, BASE + 0x10));
    assert_eq!(bench.cpu.vector.u16_at(6), 0x437);
    assert_eq!(bench.run(FLD1), Err(Trap::mf()));
    assert_eq!(bench.run(FNSTSW_AX), Ok(()));
    assert_eq!(bench.cpu.gpr[reg::RAX] & 0x8084, 0x8084);
    assert_eq!(bench.run(FNINIT), Ok(()));
    assert_eq!((field(&bench, 8), field(&bench, 16)), (0, 0));
}

#[test]
fn unmasked_x87_store_leaves_memory_and_stack() {
    let mut bench = Bench::new(64);
    // 1 / 0 masked gives infinity; as an integer that is invalid.
    for insn in [FLD1, FLDZ, FDIVP] {
        bench.run(insn).expect("masked");
    }
    bench.cpu.vector.set_u16_at(VectorState::FSW, bench.cpu.vector.u16_at(2) & !0x3f);
    bench.cpu.vector.set_u16_at(VectorState::FCW, 0x37e);
    bench.page.bytes.fill(0x5a);
    let top = bench.cpu.vector.u16_at(VectorState::FSW) >> 11 & 7;
    // fistp dword [rdi]
    assert_eq!(bench.run(b"\xdb\x1f"), Ok(()));
    assert_eq!(bench.page.bytes[..4], [0x5a; 4]);
    assert_eq!(bench.cpu.vector.u16_at(VectorState::FSW) >> 11 & 7, top);
    assert_eq!(bench.run(FWAIT), Err(Trap::mf()));
}

#[test]
fn x87_store_that_page_faults_does_not_pop() {
    let mut bench = Bench::new(64);
    bench.run(FLD1).expect("no exception");
    let before = bench.cpu.vector.clone();
    let fault = Err(Trap::with_code(Vector::PageFault, 0));
    assert_eq!(bench.at(4092, FSTP_M64), fault);
    assert_eq!(bench.cpu.vector, before);
}

#[test]
fn environment_formats_round_trip_in_every_mode() {
    for (bits, real, small) in [
        (64, false, false),
        (64, false, true),
        (32, false, false),
        (32, false, true),
        (16, true, true),
        (16, true, false),
        (16, false, true),
    ] {
        let mut bench = Bench::new(bits);
        if bits == 16 {
            bench.cpu.seg[sreg::CS].access &= !Segment::DB;
        }
        if real {
            bench.cpu.cr0 &= !Cr0::PE.bits();
        }
        let prefixed = small != (bits == 16);
        let insn = |bytes: &[u8]| [if prefixed { &b"\x66"[..] } else { b"" }, bytes].concat();
        let mut rng = Rng::new(u64::from(bits) + 3);
        bench.cpu.vector = generate::state(&mut rng);
        let state = &mut bench.cpu.vector;
        state.set_u16_at(VectorState::FCW, 0x37f);
        state.set_u16_at(VectorState::FSW, 0x2800);
        state.bytes[VectorState::FTW] = 0x5a;
        state.set_u16_at(6, 0x5a3);
        // As much of the pointers as the format keeps.
        let (fip, fdp): (u64, u64) = match (real, small) {
            (true, true) => (0xf_1234, 0xa_5678),
            (false, true) => (0x1234, 0x5678),
            _ => (0x8765_4321, 0xfedc_ba98),
        };
        state.bytes[8..16].copy_from_slice(&fip.to_le_bytes());
        state.bytes[16..24].copy_from_slice(&fdp.to_le_bytes());
        if small && !real {
            state.set_u16_at(6, 0);
        }
        let mut want = state.clone();

        let case = format!("{bits}-bit code, real {real}, small {small}");
        assert_eq!(bench.run(&insn(FNSTENV)), Ok(()), "{case}");
        bench.run(FNINIT).expect("never faults");
        assert_eq!(bench.run(&insn(FLDENV)), Ok(()), "{case}");
        assert_eq!(bench.cpu.vector, want, "{case}");

        assert_eq!(bench.run(&insn(FNSAVE)), Ok(()), "{case}");
        assert_eq!(bench.cpu.vector.u16_at(VectorState::FTW), 0, "{case}");
        bench.cpu.vector.bytes[VectorState::ST..][..128].fill(0xee);
        assert_eq!(bench.run(&insn(FRSTOR)), Ok(()), "{case}");
        want.bytes[VectorState::XSTATE_BV] = bench.cpu.vector.bytes[VectorState::XSTATE_BV];
        assert_eq!(bench.cpu.vector, want, "{case}");
    }
}

#[test]
fn real_mode_environment_has_the_documented_bits() {
    let mut bench = Bench::new(32);
    bench.cpu.cr0 &= !Cr0::PE.bits();
    bench.cpu.seg[sreg::CS].access &= !Segment::DB;
    bench.cpu.vector.set_u16_at(6, 0x7a5);
    bench.cpu.vector.bytes[8..12].copy_from_slice(&0xf_1234_u32.to_le_bytes());
    bench.cpu.vector.bytes[16..20].copy_from_slice(&0xa_5678_u32.to_le_bytes());
    bench.run(FNSTENV).expect("in reach");
    assert_eq!(bench.page.bytes[6..14], *b"\x34\x12\xa5\xf7\x78\x56\x00\xa0");
}

#[test]
fn thirty_two_bit_code_saves_and_loads_eight_registers() {
    let mut bench = Bench::new(32);
    let mut rng = Rng::new(5);
    bench.cpu.vector = generate::state(&mut rng);
    bench.cpu.vector.set_mxcsr(0x1f80);
    bench.page.bytes.fill(0x77);
    bench.run(FXSAVE).expect("aligned");
    assert_eq!(bench.page.bytes[160..288], bench.cpu.vector.bytes[160..288]);
    assert!(bench.page.bytes[288..512].iter().all(|&byte| byte == 0x77));
    let upper = bench.cpu.vector.bytes[288..416].to_vec();
    bench.page.bytes[160..416].fill(0x11);
    bench.run(FXRSTOR).expect("a valid image");
    assert_eq!(bench.cpu.vector.bytes[160..288], [0x11; 128]);
    assert_eq!(bench.cpu.vector.bytes[288..416], upper[..]);

    bench.cpu.gpr[reg::RAX] = 7;
    bench.page.bytes.fill(0);
    bench.run(XRSTOR).expect("an empty header is all initial");
    assert_eq!(bench.cpu.vector.bytes[160..288], [0; 128]);
    assert_eq!(bench.cpu.vector.bytes[288..416], upper[..]);
    bench.cpu.vector.bytes[576..832].fill(0x22);
    bench.run(VZEROUPPER).expect("AVX is on");
    assert_eq!(bench.cpu.vector.bytes[576..704], [0; 128]);
    assert_eq!(bench.cpu.vector.bytes[704..832], [0x22; 128]);
}

#[test]
fn bad_images_change_nothing() {
    let mut bench = Bench::new(64);
    bench.cpu.gpr[reg::RAX] = 7;
    let mut rng = Rng::new(9);
    bench.cpu.vector = generate::state(&mut rng);
    let before = bench.cpu.vector.clone();
    let gp = Err(Trap::gp0());
    for (at, value) in [(26, 1), (512, 8), (519, 0x80), (520, 1), (535, 1)] {
        bench.page.bytes.fill(0);
        bench.page.bytes[at] = value;
        assert_eq!(bench.run(XRSTOR), gp, "byte {at}");
    }
    bench.page.bytes.fill(0);
    bench.page.bytes[26] = 1;
    assert_eq!((bench.run(FXRSTOR), bench.at(24, LDMXCSR)), (gp, gp));
    // AVX off: its bits in a header are refused.
    bench.cpu.xcr0 = 3;
    bench.page.bytes.fill(0);
    bench.page.bytes[512] = 4;
    assert_eq!(bench.run(XRSTOR), gp);
    assert_eq!(bench.cpu.vector, before);
}

#[test]
fn xcr0_is_checked() {
    let mut bench = Bench::new(64);
    let set = |bench: &mut Bench, rcx: u64, value: u64| {
        bench.cpu.gpr[reg::RCX] = rcx;
        bench.cpu.gpr[reg::RAX] = value & 0xffff_ffff;
        bench.cpu.gpr[reg::RDX] = value >> 32;
        bench.run(XSETBV)
    };
    let gp = Err(Trap::gp0());
    assert_eq!(set(&mut bench, 0, 7), gp, "CPL 3");
    bench.cpu.cpl = 0;
    assert_eq!(set(&mut bench, 1, 7), gp);
    for bad in [0, 2, 5, 6, 15, 1 << 32 | 7] {
        assert_eq!(set(&mut bench, 0, bad), gp, "{bad:x}");
    }
    assert_eq!(set(&mut bench, 0, 3), Ok(()));
    assert_eq!(bench.cpu.xcr0, 3);
    bench.unit.set_model(3, false);
    assert_eq!(set(&mut bench, 0, 7), gp);
    bench.cpu.cr4 &= !Cr4::OSXSAVE.bits();
    assert_eq!(set(&mut bench, 0, 3), Err(Trap::ud()));

    let mut bench = Bench::new(64);
    bench.cpu.gpr[reg::RCX] = 0;
    assert_eq!((bench.run(XGETBV), bench.cpu.gpr[reg::RAX]), (Ok(()), 7));
    bench.cpu.gpr[reg::RCX] = 1;
    bench.cpu.vector.bytes[VectorState::YMMH + 255] = 1;
    bench.cpu.vector.set_mxcsr(0x1fa0);
    assert_eq!((bench.run(XGETBV), bench.cpu.gpr[reg::RAX]), (Ok(()), 6));
    bench.cpu.gpr[reg::RCX] = 2;
    assert_eq!(bench.run(XGETBV), Err(Trap::gp0()));
}

#[test]
fn others_instructions_are_left_alone() {
    let mut bench = Bench::new(64);
    for bytes in [
        &b"\x90"[..],
        b"\x0f\xa2",
        b"\xf2\x0f\x38\xf0\xc0",     // crc32
        b"\x0f\xae\xe8",             // lfence
        b"\x0f\x18\x07",             // prefetchnta
        b"\x0f\xc7\x2f",             // xsaves
        b"\x62\xf1\x7c\x48\x58\xc1", // vaddps zmm
        b"\xc4\xe2\x7d\xdc\xc1",     // vaesenc ymm
        b"\x66\x0f\x38\xcf\xc1",     // gf2p8mulb
        b"\xc4\xe2\x70\xf2\xc2",     // andn
        b"\x0f\x0f\xc1\x9e",         // pfadd
        b"\x8f\xe9\x78\x80\xc1",     // vfrczps
        b"\xc4\xe2\x69\x92\x14\x07", // vgatherdps with one register twice
        b"\x0f\x20\xc0",             // mov rax, cr0
    ] {
        let insn = bench.decode(bytes);
        assert!(bench.unit.prepare(&insn).is_none(), "{insn}");
    }
}

#[test]
fn full_code_area_is_emptied_and_old_handles_stay_good() {
    install_handlers();
    let code = TestCode::new(512);
    let resets = code.resets.clone();
    let mut bench = Bench::new(64);
    bench.unit = VectorUnit::new(Box::new(code));
    // addps xmm0-7, xmm1
    let insns: Vec<_> = (0..8).map(|n| bench.decode(&[0x0f, 0x58, 0xc1 | n << 3])).collect();
    let ops: Vec<_> = insns.iter().map(|insn| bench.unit.prepare(insn).expect("ours")).collect();
    for round in 1..4 {
        for (op, insn) in ops.iter().zip(&insns) {
            assert!(bench.unit.is_current(op));
            let outcome = bench.unit.execute(op, insn, &mut bench.cpu, &mut bench.page, 0);
            assert_eq!(outcome, Ok(()));
        }
        assert!(resets.load(Ordering::SeqCst) >= round, "512 bytes don't hold eight stubs");
    }
    // All forgotten: a handle is prepared again on the way.
    bench.unit.forget_all();
    assert!(!bench.unit.is_current(&ops[3]));
    let outcome = bench.unit.execute(&ops[3], &insns[3], &mut bench.cpu, &mut bench.page, 0);
    assert_eq!(outcome, Ok(()));
}

#[test]
fn masked_store_over_a_page_end_writes_all_or_nothing() {
    let mut bench = Bench::new(64);
    bench.cpu.vector.set_ymm(1, &[0xaa; 32]);
    bench.cpu.gpr[reg::RDI] = BASE + 4096 - 8;
    let mut mask = [0; 32];
    (mask[0], mask[2], mask[9]) = (0x80, 0x80, 0x80);
    bench.cpu.vector.set_ymm(2, &mask);
    // maskmovdqu xmm1, xmm2
    let insn = b"\x66\x0f\xf7\xca";
    assert!(matches!(
        bench.run(insn),
        Err(Trap::Exception(Exception { vector: Vector::PageFault, .. }))
    ));
    assert!(bench.page.bytes.iter().all(|&byte| byte == 0));
    mask[9] = 0;
    bench.cpu.vector.set_ymm(2, &mask);
    assert_eq!(bench.run(insn), Ok(()));
    assert_eq!(bench.page.bytes[4088..4091], [0xaa, 0, 0xaa]);
}

#[test]
fn garbage_is_refused_or_executed_but_never_kills_us() {
    let mut rng = Rng::new(0xbad);
    let mut executed = 0;
    for bits in [16, 32, 64] {
        let mut bench = Bench::new(bits.max(32));
        bench.unit = VectorUnit::new(Box::new(TestCode::new(1 << 16)));
        if bits == 16 {
            bench.cpu.seg[sreg::CS].access &= !Segment::DB;
        }
        for _ in 0..100_000 {
            let mut bytes = [0; 15];
            rng.fill(&mut bytes);
            match rng.below(5) {
                0 => bytes[0] = 0x0f,
                1 => (bytes[0], bytes[1]) = (rng.pick(&[0x66, 0xf2, 0xf3]), 0x0f),
                2 => bytes[0] = 0xc5,
                3 => (bytes[0], bytes[1]) = (0xc4, rng.pick(&[0xe1, 0xe2, 0xe3, 0x42])),
                _ => bytes[0] = 0xd8 | bytes[0] & 7,
            }
            let insn = generate::decode(&bytes, bits, 0);
            let Some(op) = bench.unit.prepare(&insn) else { continue };
            bench.cpu.vector = generate::state(&mut rng);
            for value in &mut bench.cpu.gpr {
                *value = rng.next() >> rng.below(64);
            }
            let address = BASE.wrapping_add(rng.below(4200));
            let _ = bench.unit.execute(&op, &insn, &mut bench.cpu, &mut bench.page, address);
            assert_eq!(bench.cpu.vector.mxcsr() >> 16, 0);
            executed += 1;
        }
    }
    assert!(executed > 50_000, "{executed}");
}

/// `cargo test --release -p xenolith-cpu -- --ignored --nocapture vector_speed`
#[test]
#[ignore = "a measurement"]
fn vector_speed() {
    let mut bench = Bench::new(64);
    for (name, bytes) in [
        ("movups xmm, m", MOVUPS),
        ("movaps m, xmm", MOVAPS_STORE),
        ("vmovups ymm, m", VMOVUPS),
        ("pxor same", b"\x66\x0f\xef\xc0"),
        ("pxor", b"\x66\x0f\xef\xc1"),
        ("pxor xmm, m", b"\x66\x0f\xef\x07"),
        ("addps", ADDPS_REG),
        ("addsd xmm, m", b"\xf2\x0f\x58\x07"),
        ("ucomisd", b"\x66\x0f\x2e\xc1"),
        ("cvtsi2sd", b"\xf2\x0f\x2a\xc1"),
        ("pmovmskb", b"\x66\x0f\xd7\xc1"),
        ("vaddps", VADDPS),
        ("vpaddd ymm", b"\xc5\xf5\xfe\xc2"),
        ("fxch", b"\xd9\xc9"),
        ("fst m64", b"\xdd\x17"),
        ("paddb mmx", PADDB_MMX),
        ("fxsave", FXSAVE),
        ("xsave", XSAVE),
    ] {
        bench.cpu.gpr[reg::RAX] = 7;
        let insn = bench.decode(bytes);
        let op = bench.unit.prepare(&insn).expect("ours");
        let rounds = 1_000_000;
        let start = std::time::Instant::now();
        for _ in 0..rounds {
            bench.unit.execute(&op, &insn, &mut bench.cpu, &mut bench.page, BASE).expect("runs");
        }
        let each = start.elapsed() / rounds;
        println!("{name:16} {} ns", each.as_nanos());
    }
    let insn = bench.decode(ADDPS);
    let start = std::time::Instant::now();
    for _ in 0..100_000 {
        std::hint::black_box(bench.unit.prepare(&insn));
    }
    println!("{:16} {} ns", "prepare again", start.elapsed().as_nanos() / 100_000);
}
