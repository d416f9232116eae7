//! Where a model of AMD's differs: on hosts of other makers the random tests don't see it.

use super::directed::{Bench, FDIVP, FLD1, FLDZ};
use crate::exception::Trap;
use crate::state::{CpuState, Cr0, Rflags, VectorState, sreg};

const FLD_M64: &[u8] = b"\xdd\x07";
const FNSTENV: &[u8] = b"\xd9\x37";
const FXSAVE64: &[u8] = b"\x48\x0f\xae\x07";
const FXRSTOR64: &[u8] = b"\x48\x0f\xae\x0f";
const MOVUPS: &[u8] = b"\x0f\x10\x07";
const VMOVUPS: &[u8] = b"\xc5\xfc\x10\x07";
const SHA1MSG1: &[u8] = b"\x0f\x38\xc9\x07";
const FSTP_M64: &[u8] = b"\xdd\x1f";
/// vgatherdps xmm0, [rdi + xmm1], xmm2
const GATHER: &[u8] = b"\xc4\xe2\x69\x92\x04\x0f";

fn bench(amd: bool) -> Bench {
    let mut bench = Bench::new(64);
    bench.unit.set_model(7, amd);
    bench
}

fn unmask_all(cpu: &mut CpuState) {
    cpu.vector.set_u16_at(VectorState::FCW, 0x340);
}

#[test]
fn amd_saves_x87_pointers_with_pending_exceptions_only() {
    let mut b = bench(true);
    b.cpu.rip = 0x1234;
    b.cpu.seg[sreg::DS].selector = 0x7b;
    b.at(8, FLD_M64).expect("loads");
    b.run(FXSAVE64).expect("saves");
    assert_eq!(b.page.bytes[6..24], [0; 18], "FXSAVE");
    // FNSTENV has them all: FIP, FCS and FOP, FDP, FDS.
    b.run(FNSTENV).expect("stores");
    let word = |b: &Bench, at: usize| u16::from_le_bytes([b.page.bytes[at], b.page.bytes[at + 1]]);
    assert_eq!([12, 16, 18, 20, 24].map(|at| word(&b, at)), [0x1234, 0x23, 0x507, 8, 0x7b]);
    // And FXSAVE once an exception is pending.
    let mut b = bench(true);
    unmask_all(&mut b.cpu);
    b.cpu.rip = 0x1234;
    for bytes in [FLD1, FLDZ, FDIVP] {
        b.run(bytes).expect("raised at the next one");
    }
    b.run(FXSAVE64).expect("saves");
    assert_eq!((word(&b, 6), word(&b, 8)), (0x6f9, 0x1234));
    // What is loaded without one is forgotten.
    b.page.bytes[..4].copy_from_slice(&[0x7f, 3, 0, 0]);
    b.run(FXRSTOR64).expect("loads");
    assert_eq!(b.cpu.vector.bytes[6..24], [0; 18], "FXRSTOR");
}

#[test]
fn amd_checks_alignment_of_vectors_under_ac() {
    for (amd, bytes, at, fails) in [
        (true, MOVUPS, 8, true),
        (true, MOVUPS, 16, false),
        (true, VMOVUPS, 8, true),
        (true, VMOVUPS, 16, false),
        (false, MOVUPS, 1, false),
        (false, VMOVUPS, 1, false),
    ] {
        let mut b = bench(amd);
        b.cpu.rflags |= Rflags::AC.bits();
        b.cpu.cr0 |= Cr0::AM.bits();
        assert_eq!(b.at(at, bytes), if fails { Err(Trap::ac()) } else { Ok(()) }, "{amd} {at}");
    }
}

#[test]
fn amd_takes_sha_operands_anywhere() {
    if std::is_x86_feature_detected!("sha") {
        assert_eq!(bench(true).at(8, SHA1MSG1), Ok(()));
        assert_eq!(bench(false).at(8, SHA1MSG1), Err(Trap::gp0()));
    }
}

#[test]
fn amd_judges_a_store_before_the_computation() {
    for amd in [false, true] {
        let mut b = bench(amd);
        unmask_all(&mut b.cpu);
        // An empty register, and a page that is absent.
        let outcome = b.at(4096, FSTP_M64);
        assert_eq!(outcome.is_err(), amd, "{outcome:?}");
        assert_eq!(b.cpu.vector.u16_at(VectorState::FSW) & 1 != 0, !amd);
    }
}

#[test]
fn amd_leaves_what_a_faulting_gather_has_not_reached() {
    for amd in [false, true] {
        let mut b = bench(amd);
        let base = b.page.base;
        b.cpu.gpr[crate::state::reg::RDI] = base;
        let lanes = |values: [u32; 4]| {
            let mut ymm = [0x55; 32];
            for (bytes, value) in ymm.chunks_exact_mut(4).zip(values) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
            ymm
        };
        b.cpu.vector.set_ymm(1, &lanes([0, 8, 4096, 0]));
        b.cpu.vector.set_ymm(2, &lanes([0x8000_0000, 1, 0x8000_0001, 0x8000_0002]));
        assert!(b.run(GATHER).is_err());
        let mask = b.cpu.vector.ymm(2);
        let lane = |n: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| mask[4 * n + byte]));
        let left = if amd { [0x8000_0001, 0x8000_0002] } else { [u32::MAX; 2] };
        assert_eq!([0, 1, 2, 3].map(lane), [0, 0, left[0], left[1]]);
    }
}
