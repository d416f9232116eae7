//! Random cases: registers, memory and operands of a given instruction code.

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, Instruction, OpCodeOperandKind as K, OpKind, Register,
};

use crate::state::{VectorState, XSAVE_AREA_SIZE};

/// xorshift64*: repeatable and small.
#[derive(Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 32) % n
    }
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
    pub fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

/// Sixteen bytes that mean something as single, double, integer or string.
pub fn vector(rng: &mut Rng) -> [u8; 16] {
    const SINGLES: [u32; 16] = [
        0,
        0x8000_0000,
        0x3f80_0000,
        0xbf80_0000,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0000,
        0x7f80_0001,
        0x0000_0001,
        0x807f_ffff,
        0x0080_0000,
        0x7f7f_ffff,
        0x4f00_0000,
        0x3f00_0000,
        0x4040_0000,
        0x3eaa_aaab,
    ];
    const DOUBLES: [u64; 16] = [
        0,
        1 << 63,
        0x3ff0_0000_0000_0000,
        0xbff0_0000_0000_0000,
        0x7ff0_0000_0000_0000,
        0xfff0_0000_0000_0000,
        0x7ff8_0000_0000_0000,
        0x7ff0_0000_0000_0001,
        1,
        0x800f_ffff_ffff_ffff,
        0x0010_0000_0000_0000,
        0x7fef_ffff_ffff_ffff,
        0x41e0_0000_0000_0000,
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
                if rng.one_in(2) {
                    let bits = 0x3fe0_0000_0000_0000 | (rng.next() & 0x803f_ffff_ffff_ffff);
                    lane.copy_from_slice(&bits.to_le_bytes());
                } else {
                    let bits = 0x3f00_0000_3f00_0000 | (rng.next() & 0x807f_ffff_807f_ffff);
                    lane.copy_from_slice(&bits.to_le_bytes());
                }
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

/// A random state, as a processor could hold it, with XSTATE_BV naming what is not initial.
pub fn state(rng: &mut Rng) -> VectorState {
    let mut state = VectorState { bytes: [0; XSAVE_AREA_SIZE] };
    let control = match rng.below(4) {
        0 => 0x37f,
        1 => 0x7f | (rng.next() & 0x1f00) as u16,
        _ => 0x40 | (rng.next() & 0x1f3f) as u16,
    };
    let control = if rng.one_in(2) { control | 0x3f } else { control };
    // Exception flags: none unmasked, but for a few.
    let mut status = (rng.next() & 0x7f7f) as u16;
    if !rng.one_in(12) {
        status &= control & 0x3f | !0x3f;
    }
    if status & !control & 0x3f != 0 {
        status |= 0x8080;
    }
    if !rng.one_in(10) {
        state.set_u16_at(VectorState::FCW, control);
        state.set_u16_at(VectorState::FSW, status);
        let tags = if rng.one_in(3) { rng.next() as u8 } else { 0xff };
        state.bytes[VectorState::FTW] = tags;
        state.set_u16_at(6, (rng.next() & 0x7ff) as u16);
        state.bytes[8..16].copy_from_slice(&(rng.next() >> 17).to_le_bytes());
        state.bytes[16..24].copy_from_slice(&(rng.next() >> 17).to_le_bytes());
        for n in 0..8 {
            state.bytes[VectorState::ST + 16 * n..][..10].copy_from_slice(&extended(rng));
        }
    } else {
        state.set_u16_at(VectorState::FCW, 0x37f);
    }
    let mxcsr = match rng.below(4) {
        0 => 0x1f80,
        1 => 0x1f80 | (rng.next() & 0xe07f) as u32,
        _ => (rng.next() & 0xffff) as u32,
    };
    state.set_mxcsr(mxcsr);
    if !rng.one_in(10) {
        for n in 0..16 {
            state.bytes[VectorState::XMM + 16 * n..][..16].copy_from_slice(&vector(rng));
        }
    }
    if !rng.one_in(10) {
        for n in 0..16 {
            state.bytes[VectorState::YMMH + 16 * n..][..16].copy_from_slice(&vector(rng));
        }
    }
    state.bytes[VectorState::XSTATE_BV] = in_use(&state);
    state
}

/// Which components differ from their initial configuration: what XRSTOR must be told so that the
/// host tracks the same.
pub fn in_use(state: &VectorState) -> u8 {
    let any = |from: usize, to: usize| state.bytes[from..to].iter().any(|&byte| byte != 0);
    let x87 = state.u16_at(0) != 0x37f || any(2, 24) || any(32, 160);
    u8::from(x87) | u8::from(any(160, 416)) << 1 | u8::from(any(576, 832)) << 2
}

/// Builds a random instruction of `code`; `None` if its operands are of no kind we know. `low`: only
/// registers that 32-bit code has too.
pub fn instruction(rng: &mut Rng, code: Code, low: bool) -> Option<Instruction> {
    let count = if low { 8 } else { 16 };
    let mut insn = Instruction::default();
    insn.set_code(code);
    let mut memory = false;
    for i in 0..code.op_code().op_count() {
        let any = rng.below(count) as u32;
        let as_memory = rng.one_in(2);
        let register = match code.op_code().op_kind(i) {
            K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 => Register::XMM0 + any,
            K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 => Register::YMM0 + any,
            K::mm_reg | K::mm_rm => Register::MM0 + any % 8,
            K::r32_reg | K::r32_rm | K::r32_vvvv => Register::EAX + any,
            K::r64_reg | K::r64_rm | K::r64_vvvv => Register::RAX + any,
            K::xmm_or_mem if !as_memory => Register::XMM0 + any,
            K::ymm_or_mem if !as_memory => Register::YMM0 + any,
            K::mm_or_mem if !as_memory => Register::MM0 + any % 8,
            K::r32_or_mem if !as_memory => Register::EAX + any,
            K::r64_or_mem if !as_memory => Register::RAX + any,
            K::st0 => Register::ST0,
            K::sti_opcode => Register::ST0 + any % 8,
            K::ax => Register::AX,
            K::imm8 => {
                insn.set_op_kind(i, OpKind::Immediate8);
                insn.set_immediate8(rng.next() as u8);
                continue;
            }
            K::seg_rDI => {
                insn.set_op_kind(i, OpKind::MemorySegRDI);
                continue;
            }
            K::mem_vsib32x | K::mem_vsib64x => {
                memory = true;
                insn.set_op_kind(i, OpKind::Memory);
                insn.set_memory_index(Register::XMM0 + any);
                continue;
            }
            K::mem_vsib32y | K::mem_vsib64y => {
                memory = true;
                insn.set_op_kind(i, OpKind::Memory);
                insn.set_memory_index(Register::YMM0 + any);
                continue;
            }
            K::mem
            | K::xmm_or_mem
            | K::ymm_or_mem
            | K::mm_or_mem
            | K::r32_or_mem
            | K::r64_or_mem => {
                memory = true;
                insn.set_op_kind(i, OpKind::Memory);
                if rng.one_in(4) {
                    let index = rng.pick(&[0, 1, 2, 3, 5, 6, 7]);
                    insn.set_memory_index(Register::RAX + index);
                }
                continue;
            }
            _ => return None,
        };
        insn.set_op_kind(i, OpKind::Register);
        insn.set_op_register(i, register);
    }
    if memory {
        insn.set_memory_base(Register::RAX + rng.below(count) as u32);
        insn.set_memory_index_scale(rng.pick(&[1, 2, 4, 8]));
        match rng.below(3) {
            0 => {}
            1 => {
                insn.set_memory_displ_size(1);
                insn.set_memory_displacement64(i64::from(rng.next() as i8) as u64);
            }
            _ => {
                insn.set_memory_displ_size(8);
                insn.set_memory_displacement64((i64::from(rng.next() as i32) >> 4) as u64);
            }
        }
    }
    Some(insn)
}

pub fn encode(insn: &Instruction) -> Option<Vec<u8>> {
    let mut encoder = Encoder::new(64);
    encoder.encode(insn, 0).ok()?;
    Some(encoder.take_buffer())
}

pub fn decode(bytes: &[u8], bits: u32, ip: u64) -> Instruction {
    Decoder::with_ip(bits, bytes, ip, DecoderOptions::NONE).decode()
}
