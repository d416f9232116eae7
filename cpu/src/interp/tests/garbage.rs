//! Garbage: random bytes in random modes with random tables may end in any way but a panic.

use super::bench::{Bench, CODE, DATA, GDT, IDT, LDT, RAM_LEN, STACK, TSS_A};
use crate::state::{Activity, Cr0, Cr4, Rflags, Segment, sreg};
use crate::vector::tests::generate::Rng;

const PROGRAMS: u64 = 1500;
const INSTRUCTIONS: u64 = 300;

/// Bytes that make more of an instruction than chance does.
fn fill(rng: &mut Rng, out: &mut [u8]) {
    const COMMON: [u8; 24] = [
        0x0f, 0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x48, 0x8e, 0xcf, 0xcb, 0xcd, 0x9d, 0xff, 0xea, 0x9a,
        0xc8, 0xa4, 0xab, 0x00, 0x01, 0x20, 0x22, 0x23, 0x07,
    ];
    for byte in out {
        *byte = if rng.one_in(2) { rng.pick(&COMMON) } else { rng.next() as u8 };
    }
}

/// An address that may be anywhere, but is mostly somewhere.
fn address(rng: &mut Rng) -> u64 {
    match rng.below(8) {
        0 => rng.next(),
        1 => rng.next() & 0xffff_ffff,
        2 => (1 << 47) - rng.below(32),
        3 => 0u64.wrapping_sub(rng.below(32)),
        4 => rng.below(64),
        _ => rng.below(RAM_LEN as u64),
    }
}

fn program(seed: u64) {
    let mut rng = Rng::new(seed);
    let bits = rng.pick(&[16, 32, 32, 64, 64]);
    let mut b = Bench::new(bits);
    let mut bytes = [0; 0x400];
    fill(&mut rng, &mut bytes);
    b.write(CODE, &bytes);
    fill(&mut rng, &mut bytes);
    b.write(DATA, &bytes);
    for at in [GDT + 0x40, LDT, IDT + 8 * rng.below(64), TSS_A + rng.below(64)] {
        rng.fill(&mut bytes[..64]);
        b.write(at, &bytes[..64]);
    }
    if bits == 32 && rng.one_in(4) {
        b.set_v86(rng.below(4) as u8);
    } else if bits != 16 && rng.one_in(2) {
        b.set_level(3);
    }
    let s = &mut b.vm.state;
    for register in &mut s.gpr {
        *register = address(&mut rng);
    }
    if rng.one_in(2) {
        s.gpr[4] = STACK - 64;
    }
    s.rflags |= rng.next() & (Rflags::all() - Rflags::VM - Rflags::TF).bits();
    if rng.one_in(8) {
        s.rflags |= Rflags::TF.bits();
    }
    if rng.one_in(4) {
        s.dr = std::array::from_fn(|_| address(&mut rng));
        s.dr[6] = 0xffff_0ff0;
        s.dr[7] = rng.next() & 0xffff_07ff | 0x400;
    }
    if rng.one_in(4) {
        s.cr0 ^= rng.next() & (Cr0::AM | Cr0::WP | Cr0::TS | Cr0::EM | Cr0::NE).bits();
        s.cr4 ^= rng.next() & (Cr4::VME | Cr4::PVI | Cr4::DE | Cr4::UMIP | Cr4::SMAP).bits();
    }
    if bits != 16 && rng.one_in(3) {
        s.ldtr = Segment { base: LDT, limit: rng.below(256) as u32, access: 0x82, selector: 0x38 };
        s.tr.limit = rng.below(0x200) as u32;
        s.idtr.limit = rng.below(0x1000) as u16;
        s.seg[sreg::DS].limit = rng.next() as u32;
        s.seg[sreg::SS].base = if bits == 32 { rng.next() & 0xffff_ffff } else { 0 };
        s.msr.lstar = CODE;
        s.msr.star = rng.next();
        s.msr.sysenter_cs = rng.next();
    }
    for _ in 0..8 {
        b.vm.run(INSTRUCTIONS);
        if rng.one_in(2) {
            b.interrupt(rng.next() as u8);
        } else {
            b.nmi();
        }
        if b.vm.state.activity == Activity::Halted {
            b.vm.state.activity = Activity::Running;
        }
    }
}

#[test]
fn garbage_never_panics() {
    for seed in 0..PROGRAMS {
        program(seed);
    }
}

#[test]
#[ignore = "the same for minutes"]
fn garbage_never_panics_for_long() {
    for seed in PROGRAMS..40 * PROGRAMS {
        program(seed);
    }
}
