//! The commonest vector instructions, in Rust.
//!
//! Problem: kernels and C libraries move far more vectors than they compute with, and a stub call costs
//! more than such a move. Scheme: whole and scalar loads and stores, moves between registers, and the
//! zeroing idioms work on the bytes of `CpuState::vector`. Invariant: a VEX destination is written to
//! its full 32 bytes, a legacy one keeps its upper half. Thread: the vCPU's. Source: SDM vol. 2,
//! MOVAPS to MOVUPS, MOVD/MOVQ, MOVSS, MOVSD, PXOR.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::classify::{alignment, vector_number};
use super::{Operand, xmm};
use crate::exception::Outcome;
use crate::state::{CpuState, VectorState};

/// Loads zero-extend to the register's width; `len` is 4, 8, 16 or 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Native {
    Load { register: u8, len: u8, align: u8, vex: bool },
    Store { register: u8, len: u8, align: u8 },
    Copy { to: u8, from: u8, len: u8, vex: bool },
    FromGpr { to: u8, gpr: u8, len: u8, vex: bool },
    ToGpr { gpr: u8, from: u8, len: u8 },
    Zero { register: u8, vex: bool },
}

pub fn classify(insn: &Instruction, vex: bool) -> Option<Native> {
    use Mnemonic as M;
    match insn.mnemonic() {
        M::Movaps
        | M::Movapd
        | M::Movdqa
        | M::Movups
        | M::Movupd
        | M::Movdqu
        | M::Lddqu
        | M::Movntps
        | M::Movntpd
        | M::Movntdq
        | M::Movntdqa
        | M::Vmovaps
        | M::Vmovapd
        | M::Vmovdqa
        | M::Vmovups
        | M::Vmovupd
        | M::Vmovdqu
        | M::Vlddqu
        | M::Vmovntps
        | M::Vmovntpd
        | M::Vmovntdq
        | M::Vmovntdqa => whole(insn, vex),
        M::Movss | M::Vmovss | M::Movd | M::Vmovd => scalar(insn, vex, 4),
        M::Movsd | M::Vmovsd | M::Movq | M::Vmovq => scalar(insn, vex, 8),
        M::Pxor | M::Xorps | M::Xorpd if insn.op0_kind() == OpKind::Register => {
            let register = vector_number(insn.op0_register())?;
            let same =
                insn.op1_kind() == OpKind::Register && insn.op1_register() == insn.op0_register();
            same.then_some(Native::Zero { register, vex })
        }
        M::Vpxor | M::Vxorps | M::Vxorpd => {
            let register = vector_number(insn.op0_register())?;
            let same =
                insn.op2_kind() == OpKind::Register && insn.op1_register() == insn.op2_register();
            same.then_some(Native::Zero { register, vex })
        }
        _ => None,
    }
}

fn whole(insn: &Instruction, vex: bool) -> Option<Native> {
    let width = |register: Register| if register.is_ymm() { 32 } else { 16 };
    match (insn.op0_kind(), insn.op1_kind()) {
        (OpKind::Register, OpKind::Register) => {
            let len = width(insn.op0_register());
            let to = vector_number(insn.op0_register())?;
            let from = vector_number(insn.op1_register())?;
            Some(Native::Copy { to, from, len, vex })
        }
        (OpKind::Register, OpKind::Memory) => {
            let len = width(insn.op0_register());
            let align = alignment(insn.mnemonic(), vex, len);
            Some(Native::Load { register: vector_number(insn.op0_register())?, len, align, vex })
        }
        (OpKind::Memory, OpKind::Register) => {
            let len = width(insn.op1_register());
            let align = alignment(insn.mnemonic(), vex, len);
            Some(Native::Store { register: vector_number(insn.op1_register())?, len, align })
        }
        _ => None,
    }
}

fn scalar(insn: &Instruction, vex: bool, len: u8) -> Option<Native> {
    // The three-operand register forms merge.
    if insn.op_count() != 2 {
        return None;
    }
    let (first, second) = (insn.op0_register(), insn.op1_register());
    let number = |register: Register| u8::try_from(register.number()).ok();
    // MOVD's tables also carry MOVQ's width: the general register tells.
    match (insn.op0_kind(), insn.op1_kind()) {
        (OpKind::Register, OpKind::Memory) => {
            let register = vector_number(first)?;
            let len = u8::try_from(insn.memory_size().size()).ok().filter(|&n| n == len)?;
            Some(Native::Load { register, len, align: 1, vex })
        }
        (OpKind::Memory, OpKind::Register) => {
            let register = vector_number(second)?;
            let len = u8::try_from(insn.memory_size().size()).ok().filter(|&n| n == len)?;
            Some(Native::Store { register, len, align: 1 })
        }
        (OpKind::Register, OpKind::Register) if second.is_gpr() => {
            let to = vector_number(first)?;
            let len = u8::try_from(second.size()).ok().filter(|&n| n == len)?;
            Some(Native::FromGpr { to, gpr: number(second)?, len, vex })
        }
        (OpKind::Register, OpKind::Register) if first.is_gpr() => {
            let from = vector_number(second)?;
            let len = u8::try_from(first.size()).ok().filter(|&n| n == len)?;
            Some(Native::ToGpr { gpr: number(first)?, from, len })
        }
        _ => None,
    }
}

/// Writes a register: `value` is already zero-extended.
#[inline]
fn set(state: &mut VectorState, register: u8, value: &[u8; 32], vex: bool) {
    let n = usize::from(register & 15);
    state.bytes[VectorState::XMM + 16 * n..][..16].copy_from_slice(&value[..16]);
    if vex {
        state.bytes[VectorState::YMMH + 16 * n..][..16].copy_from_slice(&value[16..]);
    }
}

#[inline]
pub fn execute(native: Native, mut operand: Operand<'_>) -> Outcome {
    match native {
        Native::Load { register, len, align, vex } => {
            operand.check_alignment(u64::from(align))?;
            let mut value = [0; 32];
            operand.read(0, &mut value[..usize::from(len)])?;
            set(&mut operand.cpu.vector, register, &value, vex);
        }
        Native::Store { register, len, align } => {
            operand.check_alignment(u64::from(align))?;
            let value = operand.cpu.vector.ymm(usize::from(register & 15));
            operand.write(0, &value[..usize::from(len)])?;
        }
        Native::Copy { to, from, len, vex } => {
            let mut value = operand.cpu.vector.ymm(usize::from(from & 15));
            value[usize::from(len)..].fill(0);
            set(&mut operand.cpu.vector, to, &value, vex);
        }
        Native::FromGpr { to, gpr, len, vex } => {
            let len = usize::from(len);
            let source = operand.cpu.gpr[usize::from(gpr & 15)].to_le_bytes();
            let mut value = [0; 32];
            value[..len].copy_from_slice(&source[..len]);
            set(&mut operand.cpu.vector, to, &value, vex);
        }
        Native::ToGpr { gpr, from, len } => {
            let len = usize::from(len);
            let mut value = [0; 8];
            value[..len].copy_from_slice(&xmm(&operand.cpu.vector, usize::from(from))[..len]);
            operand.cpu.gpr[usize::from(gpr & 15)] = u64::from_le_bytes(value);
        }
        Native::Zero { register, vex } => set(&mut operand.cpu.vector, register, &[0; 32], vex),
    }
    Ok(())
}

/// VZEROUPPER, VZEROALL: registers 8-15 only in 64-bit mode.
pub fn vzero(cpu: &mut CpuState, all: bool) {
    let len = if cpu.is_64bit() { 256 } else { 128 };
    cpu.vector.bytes[VectorState::YMMH..][..len].fill(0);
    if all {
        cpu.vector.bytes[VectorState::XMM..][..len].fill(0);
    }
}
