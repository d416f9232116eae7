//! Random instructions of a given code: operands of every kind, encoded for a code size.

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, Instruction, OpCodeOperandKind as K, OpKind, Register,
};

use crate::vector::tests::generate::Rng;

/// A register of a class, by number; SPL to DIL and R8L up only in 64-bit code.
fn r8(rng: &mut Rng, bits: u32) -> Register {
    const LEGACY: [Register; 8] = [
        Register::AL,
        Register::CL,
        Register::DL,
        Register::BL,
        Register::AH,
        Register::CH,
        Register::DH,
        Register::BH,
    ];
    if bits == 64 && rng.one_in(3) {
        Register::SPL + rng.below(12) as u32
    } else {
        rng.pick(&LEGACY)
    }
}

/// Builds a random instruction of `code` for `bits`-bit code; `None` if it doesn't exist there or has
/// operands of a kind that only vector instructions have. Memory operands are base, index, scale and
/// a small displacement.
pub fn instruction(rng: &mut Rng, code: Code, bits: u32) -> Option<Instruction> {
    let mut insn = Instruction::default();
    insn.set_code(code);
    let info = code.op_code();
    let exists = match bits {
        16 => info.mode16(),
        32 => info.mode32(),
        _ => info.mode64(),
    };
    if !exists {
        return None;
    }
    let registers = if bits == 64 { 16 } else { 8 };
    for i in 0..info.op_count() {
        let any = rng.below(registers) as u32;
        let as_memory = rng.one_in(2);
        let register = match info.op_kind(i) {
            K::r8_reg | K::r8_opcode => r8(rng, bits),
            K::r8_or_mem if !as_memory => r8(rng, bits),
            K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode => Register::AX + any,
            K::r16_or_mem if !as_memory => Register::AX + any,
            K::r32_reg | K::r32_reg_mem | K::r32_rm | K::r32_opcode | K::r32_vvvv => {
                Register::EAX + any
            }
            K::r32_or_mem | K::r32_or_mem_mpx if !as_memory => Register::EAX + any,
            K::r64_reg | K::r64_reg_mem | K::r64_rm | K::r64_opcode | K::r64_vvvv => {
                Register::RAX + any
            }
            K::r64_or_mem | K::r64_or_mem_mpx if !as_memory => Register::RAX + any,
            K::mm_reg | K::mm_rm => Register::MM0 + any % 8,
            K::mm_or_mem if !as_memory => Register::MM0 + any % 8,
            K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 => Register::XMM0 + any,
            K::xmm_or_mem if !as_memory => Register::XMM0 + any,
            K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 => Register::YMM0 + any,
            K::ymm_or_mem if !as_memory => Register::YMM0 + any,
            K::st0 => Register::ST0,
            K::sti_opcode => Register::ST0 + any % 8,
            K::seg_reg => rng.pick(&[Register::ES, Register::SS, Register::DS, Register::FS]),
            K::cr_reg => rng.pick(&[Register::CR0, Register::CR2, Register::CR3, Register::CR4]),
            K::dr_reg => Register::DR0 + any % 8,
            K::es => Register::ES,
            K::cs => Register::CS,
            K::ss => Register::SS,
            K::ds => Register::DS,
            K::fs => Register::FS,
            K::gs => Register::GS,
            K::al => Register::AL,
            K::cl => Register::CL,
            K::ax => Register::AX,
            K::dx => Register::DX,
            K::eax => Register::EAX,
            K::rax => Register::RAX,
            _ => {
                other_operand(rng, &mut insn, i, bits)?;
                continue;
            }
        };
        insn.set_op_kind(i, OpKind::Register);
        insn.set_op_register(i, register);
    }
    Some(insn)
}

/// An operand that isn't a register.
fn other_operand(rng: &mut Rng, insn: &mut Instruction, i: u32, bits: u32) -> Option<()> {
    let code = insn.code();
    let kind = match code.op_code().op_kind(i) {
        K::imm8 => {
            if insn.op_count() > 1 && code.op_code().op_kind(i.saturating_sub(1)) == K::imm16 {
                insn.set_immediate8_2nd(rng.next() as u8);
                insn.set_op_kind(i, OpKind::Immediate8_2nd);
                return Some(());
            }
            insn.set_immediate8(rng.next() as u8);
            OpKind::Immediate8
        }
        K::imm8_const_1 => {
            insn.set_immediate8(1);
            OpKind::Immediate8
        }
        K::imm8sex16 => {
            insn.set_immediate8to16(i16::from(rng.next() as i8));
            OpKind::Immediate8to16
        }
        K::imm8sex32 => {
            insn.set_immediate8to32(i32::from(rng.next() as i8));
            OpKind::Immediate8to32
        }
        K::imm8sex64 => {
            insn.set_immediate8to64(i64::from(rng.next() as i8));
            OpKind::Immediate8to64
        }
        K::imm16 => {
            insn.set_immediate16(rng.next() as u16);
            OpKind::Immediate16
        }
        K::imm32 => {
            insn.set_immediate32(rng.next() as u32);
            OpKind::Immediate32
        }
        K::imm32sex64 => {
            insn.set_immediate32to64(i64::from(rng.next() as i32));
            OpKind::Immediate32to64
        }
        K::imm64 => {
            insn.set_immediate64(rng.next());
            OpKind::Immediate64
        }
        K::mem_offs => {
            insn.set_memory_displ_size(bits / 8);
            OpKind::Memory
        }
        K::seg_rSI if bits == 64 => rng.pick(&[OpKind::MemorySegRSI, OpKind::MemorySegESI]),
        K::seg_rSI => OpKind::MemorySegESI,
        K::seg_rDI if bits == 64 => OpKind::MemorySegRDI,
        K::seg_rDI => OpKind::MemorySegEDI,
        K::es_rDI => {
            // Both operands of a string instruction have one address size.
            let other = if i == 0 { 1 } else { 0 };
            let narrow = insn.op_count() > 1 && insn.op_kind(other) == OpKind::MemorySegESI;
            let first = i == 0 && rng.one_in(4);
            if bits != 64 || narrow || first { OpKind::MemoryESEDI } else { OpKind::MemoryESRDI }
        }
        K::seg_rBX_al => {
            insn.set_memory_base(if bits == 64 { Register::RBX } else { Register::EBX });
            insn.set_memory_index(Register::AL);
            OpKind::Memory
        }
        K::br16_1 | K::br16_2 => OpKind::NearBranch16,
        K::br32_1 | K::br32_4 => OpKind::NearBranch32,
        K::br64_1 | K::br64_4 => OpKind::NearBranch64,
        K::farbr2_2 => OpKind::FarBranch16,
        K::farbr4_2 => OpKind::FarBranch32,
        K::mem
        | K::mem_mpx
        | K::r8_or_mem
        | K::r16_or_mem
        | K::r32_or_mem
        | K::r32_or_mem_mpx
        | K::r64_or_mem
        | K::r64_or_mem_mpx
        | K::mm_or_mem
        | K::xmm_or_mem
        | K::ymm_or_mem => {
            memory(rng, insn, bits);
            OpKind::Memory
        }
        K::mem_vsib32x | K::mem_vsib64x => {
            insn.set_memory_index(Register::XMM1);
            insn.set_memory_base(if bits == 64 { Register::RAX } else { Register::EAX });
            OpKind::Memory
        }
        K::mem_vsib32y | K::mem_vsib64y => {
            insn.set_memory_index(Register::YMM1);
            insn.set_memory_base(if bits == 64 { Register::RAX } else { Register::EAX });
            OpKind::Memory
        }
        _ => return None,
    };
    // The second of two string operands follows the first.
    insn.set_op_kind(i, kind);
    if i == 1 && insn.op_kind(0) == OpKind::MemoryESEDI && kind == OpKind::MemorySegRSI {
        insn.set_op_kind(1, OpKind::MemorySegESI);
    }
    if i == 1 && insn.op_kind(0) == OpKind::MemoryESRDI && kind == OpKind::MemorySegESI {
        insn.set_op_kind(1, OpKind::MemorySegRSI);
    }
    Some(())
}

fn memory(rng: &mut Rng, insn: &mut Instruction, bits: u32) {
    let narrow = bits != 64 || rng.one_in(6);
    let first = if narrow { Register::EAX } else { Register::RAX };
    let count = if bits == 64 { 16 } else { 8 };
    let base = rng.below(count) as u32;
    insn.set_memory_base(first + base);
    if rng.one_in(3) {
        // Not RSP, which can't be one, nor the base, so that the base can still be chosen freely.
        let index = rng.pick(&[0, 1, 2, 3, 5, 6, 7]);
        if index != base {
            insn.set_memory_index(first + index);
            insn.set_memory_index_scale(rng.pick(&[1, 2, 4, 8]));
        }
    }
    match rng.below(3) {
        0 => {}
        1 => {
            insn.set_memory_displ_size(1);
            insn.set_memory_displacement64(displacement(i64::from(rng.next() as i8), narrow));
        }
        _ => {
            insn.set_memory_displ_size(if narrow { 4 } else { 8 });
            let value = i64::from(rng.next() as i32) >> 4;
            insn.set_memory_displacement64(displacement(value, narrow));
        }
    }
}

/// A displacement as iced keeps it for 32- or 64-bit addresses.
fn displacement(value: i64, narrow: bool) -> u64 {
    if narrow { u64::from(value as u32) } else { value as u64 }
}

/// Encodes; `None` when such an instruction can't be.
pub fn encode(insn: &Instruction, bits: u32) -> Option<Vec<u8>> {
    let mut encoder = Encoder::new(bits);
    encoder.encode(insn, 0).ok()?;
    Some(encoder.take_buffer())
}

pub fn decode(bytes: &[u8], bits: u32, options: u32) -> Instruction {
    Decoder::with_ip(bits, bytes, 0, options).decode()
}

/// A random instruction of `code`, as the decoder sees it.
pub fn decoded(rng: &mut Rng, code: Code, bits: u32) -> Option<Instruction> {
    let insn = instruction(rng, code, bits)?;
    let bytes = encode(&insn, bits)?;
    let insn = decode(&bytes, bits, DecoderOptions::NONE);
    (insn.code() == code).then_some(insn)
}
