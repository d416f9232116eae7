//! Operands at which instructions change their ways.
//!
//! Problem: a random 64-bit number is nearly never zero, a power of two or not-a-number. Scheme: mix
//! edges, small numbers and random ones; vector registers hold what means something as integers, singles,
//! doubles and text, x87 registers all classes of numbers. Pure but for the generator.

use std::sync::OnceLock;

use xenolith_cpu::state::{VectorState, XSAVE_AREA_SIZE};

use super::rng::Rng;

/// A number for a general register or an immediate operand.
pub fn number(rng: &mut Rng) -> u64 {
    const EDGES: [u64; 18] = [
        0,
        1,
        2,
        0x7f,
        0x80,
        0xff,
        0x7fff,
        0x8000,
        0xffff,
        0x1_0000,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0x7fff_ffff_ffff_ffff,
        0x8000_0000_0000_0000,
        0xffff_ffff_ffff_ffff,
        0xffff_ffff_ffff_fffe,
        0xffff_ffff_0000_0000,
    ];
    match rng.below(5) {
        0 | 1 => rng.pick(&EDGES),
        2 => rng.below(80),
        3 => rng.next() >> rng.below(64),
        _ => rng.next(),
    }
}

/// Sixteen bytes that mean something as single, double, integer or string.
pub fn vector(rng: &mut Rng) -> [u8; 16] {
    const SINGLES: [u32; 18] = [
        0,
        0x8000_0000,
        0x3f80_0000,
        0xbf80_0000,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0000,
        0xffc0_1234,
        0x7f80_0001,
        0x0000_0001,
        0x807f_ffff,
        0x0080_0000,
        0x7f7f_ffff,
        0x4f00_0000,
        0xcf00_0000,
        0x3f00_0000,
        0x4040_0000,
        0x3eaa_aaab,
    ];
    const DOUBLES: [u64; 18] = [
        0,
        1 << 63,
        0x3ff0_0000_0000_0000,
        0xbff0_0000_0000_0000,
        0x7ff0_0000_0000_0000,
        0xfff0_0000_0000_0000,
        0x7ff8_0000_0000_0000,
        0xfff8_0000_0000_1234,
        0x7ff0_0000_0000_0001,
        1,
        0x800f_ffff_ffff_ffff,
        0x0010_0000_0000_0000,
        0x7fef_ffff_ffff_ffff,
        0x41e0_0000_0000_0000,
        0xc3e0_0000_0000_0000,
        0x3fe0_0000_0000_0000,
        0x4008_0000_0000_0000,
        0x3810_0000_0000_0000,
    ];
    let mut out = [0; 16];
    match rng.below(6) {
        0 => rng.fill(&mut out),
        1 | 2 => {
            for lane in out.chunks_exact_mut(4) {
                lane.copy_from_slice(&rng.pick(&SINGLES).to_le_bytes());
            }
        }
        3 => {
            for lane in out.chunks_exact_mut(8) {
                lane.copy_from_slice(&rng.pick(&DOUBLES).to_le_bytes());
            }
        }
        4 => {
            // Numbers of ordinary size with random fractions: inexact results.
            for lane in out.chunks_exact_mut(8) {
                let bits = if rng.one_in(2) {
                    0x3fe0_0000_0000_0000 | (rng.next() & 0x803f_ffff_ffff_ffff)
                } else {
                    0x3f00_0000_3f00_0000 | (rng.next() & 0x807f_ffff_807f_ffff)
                };
                lane.copy_from_slice(&bits.to_le_bytes());
            }
        }
        _ => {
            for byte in &mut out {
                *byte = rng.pick(b"\0abAB01z\xff");
            }
        }
    }
    out
}

/// Ten bytes of an x87 register.
fn extended(rng: &mut Rng) -> [u8; 10] {
    let mut out = [0; 10];
    rng.fill(&mut out);
    let (exponent, significand): (u16, u64) = match rng.below(12) {
        0 => (0, 0),
        1 => (0x3fff, 1 << 63),
        2 => (0x7fff, 1 << 63),
        3 => (0x7fff, 0xc000_0000_0000_0000 | rng.next() >> 2),
        4 => (0x7fff, 0x8000_0000_0000_0001),
        5 => (0, rng.next() >> 1),
        6 => (0x4001, 1 << 62),
        7 => (0x7ffe, u64::MAX),
        8 => (0x0001, 1 << 63 | rng.next()),
        9 => (0x4000 + rng.below(70) as u16, 1 << 63 | rng.next()),
        10 => (0x3c00 + rng.below(0x800) as u16, 1 << 63 | rng.next()),
        _ => return out,
    };
    let sign = if rng.one_in(2) { 0x8000 } else { 0 };
    out[..8].copy_from_slice(&significand.to_le_bytes());
    out[8..].copy_from_slice(&(exponent | sign).to_le_bytes());
    out
}

/// A random state, as a processor could hold it.
fn state(rng: &mut Rng) -> VectorState {
    let mut state = VectorState { bytes: [0; XSAVE_AREA_SIZE] };
    let control = match rng.below(4) {
        0 | 1 => 0x37f,
        2 => 0x7f | (rng.next() & 0x0f00) as u16,
        _ => 0x40 | (rng.next() & 0x0f3f) as u16,
    };
    let control = if rng.one_in(4) { control } else { control | 0x3f };
    // Exception flags: none unmasked, but for a few.
    let mut status = (rng.next() & 0x7f7f) as u16;
    if !rng.one_in(24) {
        status &= control & 0x3f | !0x3f;
    }
    if status & !control & 0x3f != 0 {
        status |= 0x8080;
    }
    state.set_u16_at(VectorState::FCW, control);
    state.set_u16_at(VectorState::FSW, status);
    state.bytes[VectorState::FTW] = match rng.below(4) {
        0 => 0xff,
        1 => 0,
        _ => rng.next() as u8,
    };
    for n in 0..8 {
        state.bytes[VectorState::ST + 16 * n..][..10].copy_from_slice(&extended(rng));
    }
    let mxcsr = match rng.below(6) {
        0..=2 => 0x1f80,
        3 | 4 => 0x1f80 | (rng.next() & 0xe07f) as u32,
        _ => (rng.next() & 0xffff) as u32,
    };
    state.set_mxcsr(mxcsr);
    for n in 0..16 {
        state.bytes[VectorState::XMM + 16 * n..][..16].copy_from_slice(&vector(rng));
    }
    if !rng.one_in(4) {
        for n in 0..16 {
            state.bytes[VectorState::YMMH + 16 * n..][..16].copy_from_slice(&vector(rng));
        }
    }
    state.bytes[VectorState::XSTATE_BV] = 7;
    state
}

/// Number of prepared vector states.
const STATES: usize = 1024;

/// One of the prepared vector states; making one takes longer than running a snippet.
pub fn vector_state(rng: &mut Rng) -> &'static VectorState {
    static ALL: OnceLock<Vec<VectorState>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let mut rng = Rng::new(0x5eed);
        (0..STATES).map(|_| state(&mut rng)).collect()
    });
    &all[rng.below(STATES as u64) as usize]
}
