//! Moves, conversions, exchanges, conditional moves and decimal arithmetic.
//!
//! Problem: instructions that move data or have fixed operands. Scheme: one generic handler for each,
//! over the operand width. Invariant: flags change only where the SDM says so. Source: SDM vol. 2.

use std::arch::asm;

use iced_x86::{Instruction, OpKind};

use super::Interp;
use super::alu::{by_width, operand_bytes};
use super::decode::{Handler, Insn};
use super::table;
use super::width::Width;
use crate::env::Memory;
use crate::exception::{Outcome, Trap};
use crate::state::reg::{RAX, RBX, RCX, RDX};
use crate::state::{CpuState, Rflags, sreg};

pub(super) fn mov<M: Memory>(raw: &Instruction) -> Handler<M> {
    by_width!(operand_bytes(raw), M, mov_sized, raw;)
}

fn mov_sized<M: Memory, W: Width>(raw: &Instruction) -> Handler<M> {
    match (raw.op0_kind(), raw.op1_kind()) {
        (OpKind::Register, OpKind::Register) => mov_rr::<M, W>,
        (OpKind::Register, OpKind::Memory) => mov_rm::<M, W>,
        (OpKind::Memory, OpKind::Register) => mov_mr::<M, W>,
        (OpKind::Register, _) => mov_ri::<M, W>,
        (OpKind::Memory, _) => mov_mi::<M, W>,
        _ => table::undefined,
    }
}

fn mov_rr<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let value = W::get(&vm.state, i.src);
    W::set(&mut vm.state, i.dst, value);
    Ok(())
}
fn mov_rm<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let offset = vm.address(i);
    let value = vm.load::<W>(i.seg, offset)?;
    W::set(&mut vm.state, i.dst, value);
    Ok(())
}
fn mov_mr<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let offset = vm.address(i);
    let value = W::get(&vm.state, i.dst);
    vm.store(i.seg, offset, value)
}
fn mov_ri<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    W::set(&mut vm.state, i.dst, W::from_u64(i.imm));
    Ok(())
}
fn mov_mi<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let offset = vm.address(i);
    vm.store(i.seg, offset, W::from_u64(i.imm))
}

/// MOVZX, MOVSX and MOVSXD.
pub(super) fn extend<M: Memory, const SIGNED: bool>(raw: &Instruction) -> Handler<M> {
    let from = if raw.op1_kind() == OpKind::Register {
        raw.op1_register().size()
    } else {
        raw.memory_size().size()
    };
    match (raw.op0_register().size(), from) {
        (2, 1) => extend_sized::<M, u16, u8, SIGNED>,
        (4, 1) => extend_sized::<M, u32, u8, SIGNED>,
        (8, 1) => extend_sized::<M, u64, u8, SIGNED>,
        (2, 2) => extend_sized::<M, u16, u16, SIGNED>,
        (4, 2) => extend_sized::<M, u32, u16, SIGNED>,
        (8, 2) => extend_sized::<M, u64, u16, SIGNED>,
        (2, _) => extend_sized::<M, u16, u32, SIGNED>,
        (4, _) => extend_sized::<M, u32, u32, SIGNED>,
        _ => extend_sized::<M, u64, u32, SIGNED>,
    }
}

fn extend_sized<M: Memory, W: Width, F: Width, const SIGNED: bool>(
    vm: &mut Interp<M>,
    i: &Insn<M>,
) -> Outcome {
    let value = source1::<M, F>(vm, i)?;
    let wide = if SIGNED { value.to_i64() as u64 } else { value.to_u64() };
    W::set(&mut vm.state, i.dst, W::from_u64(wide));
    Ok(())
}

/// The second operand, register or memory.
#[inline(always)]
pub(super) fn source1<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome<W> {
    if i.raw.op1_kind() == OpKind::Memory {
        let offset = vm.address(i);
        vm.load(i.seg, offset)
    } else {
        Ok(W::get(&vm.state, i.src))
    }
}

pub(super) fn lea<M: Memory>(raw: &Instruction) -> Handler<M> {
    match raw.op0_register().size() {
        2 => lea_sized::<M, u16>,
        4 => lea_sized::<M, u32>,
        _ => lea_sized::<M, u64>,
    }
}

fn lea_sized<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let value = vm.address(i);
    W::set(&mut vm.state, i.dst, W::from_u64(value));
    Ok(())
}

pub(super) fn xchg<M: Memory>(raw: &Instruction) -> Handler<M> {
    by_width!(operand_bytes(raw), M, xchg_sized, raw;)
}

fn xchg_sized<M: Memory, W: Width>(raw: &Instruction) -> Handler<M> {
    match (raw.op0_kind(), raw.op1_kind()) {
        (OpKind::Register, OpKind::Register) => |vm, i| {
            let (a, b) = (W::get(&vm.state, i.dst), W::get(&vm.state, i.src));
            W::set(&mut vm.state, i.dst, b);
            W::set(&mut vm.state, i.src, a);
            Ok(())
        },
        // Locked whether or not there is a prefix.
        _ => |vm, i| {
            let offset = vm.address(i);
            let new = W::get(&vm.state, i.dst);
            let old = vm.modify(i.seg, offset, true, |_, _| new)?;
            W::set(&mut vm.state, i.dst, old);
            Ok(())
        },
    }
}

pub(super) fn xadd<M: Memory>(raw: &Instruction) -> Handler<M> {
    by_width!(operand_bytes(raw), M, xadd_sized, raw;)
}

fn xadd_sized<M: Memory, W: Width>(raw: &Instruction) -> Handler<M> {
    if raw.op0_kind() == OpKind::Memory {
        |vm, i| {
            let offset = vm.address(i);
            let b = W::get(&vm.state, i.dst);
            let old = vm.modify(i.seg, offset, i.lock, |cpu, a| W::add(a, b, &mut cpu.rflags))?;
            W::set(&mut vm.state, i.dst, old);
            Ok(())
        }
    } else {
        |vm, i| {
            let (a, b) = (W::get(&vm.state, i.dst), W::get(&vm.state, i.src));
            let sum = W::add(a, b, &mut vm.state.rflags);
            W::set(&mut vm.state, i.src, a);
            W::set(&mut vm.state, i.dst, sum);
            Ok(())
        }
    }
}

pub(super) fn cmpxchg<M: Memory>(raw: &Instruction) -> Handler<M> {
    by_width!(operand_bytes(raw), M, cmpxchg_sized, raw;)
}

fn cmpxchg_sized<M: Memory, W: Width>(raw: &Instruction) -> Handler<M> {
    if raw.op0_kind() == OpKind::Memory {
        |vm, i| {
            let offset = vm.address(i);
            let new = W::get(&vm.state, i.dst);
            let accumulator = W::get(&vm.state, RAX as u8);
            // The destination is written in both cases, with its own value when they differ.
            let old = vm.modify(i.seg, offset, i.lock, |cpu, a| {
                W::sub(accumulator, a, &mut cpu.rflags);
                if a == accumulator { new } else { a }
            })?;
            if old != accumulator {
                W::set(&mut vm.state, RAX as u8, old);
            }
            Ok(())
        }
    } else {
        |vm, i| {
            let old = W::get(&vm.state, i.dst);
            let accumulator = W::get(&vm.state, RAX as u8);
            W::sub(accumulator, old, &mut vm.state.rflags);
            if old == accumulator {
                let new = W::get(&vm.state, i.src);
                W::set(&mut vm.state, i.dst, new);
            } else {
                W::set(&mut vm.state, RAX as u8, old);
            }
            Ok(())
        }
    }
}

pub(super) fn cmpxchg8b<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let offset = vm.address(i);
    let low_half = |r: usize, cpu: &CpuState| cpu.gpr[r] & 0xffff_ffff;
    let expected = low_half(RDX, &vm.state) << 32 | low_half(RAX, &vm.state);
    let new = low_half(RCX, &vm.state) << 32 | low_half(RBX, &vm.state);
    let old =
        vm.modify::<u64>(i.seg, offset, i.lock, |_, a| if a == expected { new } else { a })?;
    vm.state.rflags &= !Rflags::ZF.bits();
    if old == expected {
        vm.state.rflags |= Rflags::ZF.bits();
    } else {
        vm.state.gpr[RAX] = old & 0xffff_ffff;
        vm.state.gpr[RDX] = old >> 32;
    }
    Ok(())
}

pub(super) fn cmpxchg16b<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let offset = vm.address(i);
    // Alignment comes first, as measured: also before SS's #SS for an address that isn't canonical.
    let base = if i.seg >= sreg::FS as u8 { vm.state.seg[usize::from(i.seg)].base } else { 0 };
    if base.wrapping_add(offset) & 15 != 0 {
        return Err(Trap::gp0());
    }
    let la = vm.linear(i.seg, offset, 16, true)?;
    let expected = u128::from(vm.state.gpr[RDX]) << 64 | u128::from(vm.state.gpr[RAX]);
    let new = u128::from(vm.state.gpr[RCX]) << 64 | u128::from(vm.state.gpr[RBX]);
    let old = vm.compare_exchange_16(la, expected, new)?;
    vm.state.rflags &= !Rflags::ZF.bits();
    if old == expected {
        vm.state.rflags |= Rflags::ZF.bits();
    } else {
        vm.state.gpr[RAX] = old as u64;
        vm.state.gpr[RDX] = (old >> 64) as u64;
    }
    Ok(())
}

/// CBW, CWDE and CDQE.
pub(super) fn widen_accumulator<M: Memory, F: Width, W: Width>(
    vm: &mut Interp<M>,
    _: &Insn<M>,
) -> Outcome {
    let value = F::get(&vm.state, RAX as u8).to_i64();
    W::set(&mut vm.state, RAX as u8, W::from_u64(value as u64));
    Ok(())
}

/// CWD, CDQ and CQO.
pub(super) fn spread_sign<M: Memory, W: Width>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    let sign = W::get(&vm.state, RAX as u8).to_i64() >> 63;
    W::set(&mut vm.state, RDX as u8, W::from_u64(sign as u64));
    Ok(())
}

/// Whether condition `cc` (the low four bits of the opcode) holds (SDM vol. 1, "Condition Codes").
#[inline(always)]
pub(super) fn condition(rflags: u64, cc: u8) -> bool {
    let f = |flag: Rflags| rflags & flag.bits() != 0;
    let holds = match cc >> 1 {
        0 => f(Rflags::OF),
        1 => f(Rflags::CF),
        2 => f(Rflags::ZF),
        3 => f(Rflags::CF) || f(Rflags::ZF),
        4 => f(Rflags::SF),
        5 => f(Rflags::PF),
        6 => f(Rflags::SF) != f(Rflags::OF),
        _ => f(Rflags::ZF) || f(Rflags::SF) != f(Rflags::OF),
    };
    holds != (cc & 1 != 0)
}

/// Instantiates `$f` for the condition of an instruction.
macro_rules! by_condition {
    ($raw:expr, $f:ident, $m:ident $(, $generic:ty)*) => {
        match table::condition_code($raw) {
            0 => $f::<$m $(, $generic)*, 0>,
            1 => $f::<$m $(, $generic)*, 1>,
            2 => $f::<$m $(, $generic)*, 2>,
            3 => $f::<$m $(, $generic)*, 3>,
            4 => $f::<$m $(, $generic)*, 4>,
            5 => $f::<$m $(, $generic)*, 5>,
            6 => $f::<$m $(, $generic)*, 6>,
            7 => $f::<$m $(, $generic)*, 7>,
            8 => $f::<$m $(, $generic)*, 8>,
            9 => $f::<$m $(, $generic)*, 9>,
            10 => $f::<$m $(, $generic)*, 10>,
            11 => $f::<$m $(, $generic)*, 11>,
            12 => $f::<$m $(, $generic)*, 12>,
            13 => $f::<$m $(, $generic)*, 13>,
            14 => $f::<$m $(, $generic)*, 14>,
            _ => $f::<$m $(, $generic)*, 15>,
        }
    };
}
pub(super) use by_condition;

pub(super) fn cmov<M: Memory>(raw: &Instruction) -> Handler<M> {
    match raw.op0_register().size() {
        2 => by_condition!(raw, cmov_sized, M, u16),
        4 => by_condition!(raw, cmov_sized, M, u32),
        _ => by_condition!(raw, cmov_sized, M, u64),
    }
}

fn cmov_sized<M: Memory, W: Width, const CC: u8>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    // The source is read, and the upper half cleared, also when the condition doesn't hold.
    let value = source1::<M, W>(vm, i)?;
    let kept = W::get(&vm.state, i.dst);
    let value = if condition(vm.state.rflags, CC) { value } else { kept };
    W::set(&mut vm.state, i.dst, value);
    Ok(())
}

pub(super) fn setcc<M: Memory>(raw: &Instruction) -> Handler<M> {
    by_condition!(raw, setcc_on, M)
}

fn setcc_on<M: Memory, const CC: u8>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let value = u8::from(condition(vm.state.rflags, CC));
    if i.raw.op0_kind() == OpKind::Memory {
        let offset = vm.address(i);
        vm.store(i.seg, offset, value)
    } else {
        u8::set(&mut vm.state, i.dst, value);
        Ok(())
    }
}

pub(super) fn xlat<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let al = vm.state.gpr[RAX] & 0xff;
    let offset = vm.state.gpr[RBX].wrapping_add(al) & i.addr_mask;
    let value = vm.load::<u8>(i.seg, offset)?;
    u8::set(&mut vm.state, RAX as u8, value);
    Ok(())
}

/// BSWAP of 32 or 64 bits; with 16 bits undefined, and zero on every processor known.
pub(super) fn bswap<M: Memory>(raw: &Instruction) -> Handler<M> {
    match raw.op0_register().size() {
        2 => |vm, i| {
            u16::set(&mut vm.state, i.dst, 0);
            Ok(())
        },
        4 => |vm, i| {
            let value = u32::get(&vm.state, i.dst).swap_bytes();
            u32::set(&mut vm.state, i.dst, value);
            Ok(())
        },
        _ => |vm, i| {
            let value = u64::get(&vm.state, i.dst).swap_bytes();
            u64::set(&mut vm.state, i.dst, value);
            Ok(())
        },
    }
}

/// LAHF.
pub(super) fn lahf<M: Memory>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    let flags = (vm.state.rflags & 0xd5 | 2) as u8;
    u8::set(&mut vm.state, 16, flags);
    Ok(())
}

/// SAHF.
pub(super) fn sahf<M: Memory>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    let ah = u64::from(u8::get(&vm.state, 16));
    vm.state.rflags = vm.state.rflags & !0xd5 | ah & 0xd5;
    Ok(())
}

/// Sets SF, ZF and PF from AL, and the other three as given (the undefined ones as on Intel's
/// processors: OF clear).
fn decimal_flags(cpu: &mut CpuState, al: u8, adjusted: bool, carry: bool) {
    let mut flags = cpu.rflags;
    u8::or(al, 0, &mut flags);
    flags &= !(Rflags::CF | Rflags::AF).bits();
    if adjusted {
        flags |= Rflags::AF.bits();
    }
    if carry {
        flags |= Rflags::CF.bits();
    }
    cpu.rflags = flags;
}

/// DAA, and DAS (`SUBTRACT`).
pub(super) fn decimal_adjust<M: Memory, const SUBTRACT: bool>(
    vm: &mut Interp<M>,
    _: &Insn<M>,
) -> Outcome {
    let old = u8::get(&vm.state, RAX as u8);
    let carry_in = vm.state.flag(Rflags::CF);
    let step = |al: u8, by: u8| if SUBTRACT { al.wrapping_sub(by) } else { al.wrapping_add(by) };
    let mut al = old;
    let low = old & 0xf > 9 || vm.state.flag(Rflags::AF);
    let mut carry = false;
    if low {
        carry = carry_in || if SUBTRACT { old < 6 } else { old > 0xf9 };
        al = step(al, 6);
    }
    if old > 0x99 || carry_in {
        al = step(al, 0x60);
        carry = true;
    }
    u8::set(&mut vm.state, RAX as u8, al);
    decimal_flags(&mut vm.state, al, low, carry);
    Ok(())
}

/// AAA, and AAS (`SUBTRACT`).
pub(super) fn ascii_adjust<M: Memory, const SUBTRACT: bool>(
    vm: &mut Interp<M>,
    _: &Insn<M>,
) -> Outcome {
    let mut ax = u16::get(&vm.state, RAX as u8);
    let adjust = ax & 0xf > 9 || vm.state.flag(Rflags::AF);
    if adjust {
        ax = if SUBTRACT { ax.wrapping_sub(0x106) } else { ax.wrapping_add(0x106) };
    }
    ax &= 0xff0f;
    u16::set(&mut vm.state, RAX as u8, ax);
    decimal_flags(&mut vm.state, ax as u8, adjust, adjust);
    Ok(())
}

pub(super) fn aam<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let base = i.imm as u8;
    let al = u8::get(&vm.state, RAX as u8);
    let (Some(tens), Some(ones)) = (al.checked_div(base), al.checked_rem(base)) else {
        return Err(Trap::de());
    };
    u16::set(&mut vm.state, RAX as u8, u16::from(tens) << 8 | u16::from(ones));
    decimal_flags(&mut vm.state, ones, false, false);
    Ok(())
}

pub(super) fn aad<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let ax = u16::get(&vm.state, RAX as u8);
    let tens = ((ax >> 8) as u8).wrapping_mul(i.imm as u8);
    // The undefined flags are the addition's, as on the host.
    let al = u8::add(ax as u8, tens, &mut vm.state.rflags);
    u16::set(&mut vm.state, RAX as u8, u16::from(al));
    Ok(())
}

/// One 16-byte `LOCK CMPXCHG16B` on the host.
///
/// # Safety
/// `p` must be aligned to 16 and valid for reads and writes of 16 bytes.
pub(super) unsafe fn compare_exchange_16(p: *mut u8, old: u128, new: u128) -> u128 {
    let (mut low, mut top) = (old as u64, (old >> 64) as u64);
    // SAFETY: the caller vouches for `p`. RBX, which the compiler reserves, is restored.
    unsafe {
        asm!(
            "xchg {b}, rbx", "lock cmpxchg16b [{p}]", "mov rbx, {b}",
            b = inout(reg) new as u64 => _, in("rcx") (new >> 64) as u64,
            p = in(reg) p, inout("rax") low, inout("rdx") top, options(nostack),
        );
    }
    u128::from(top) << 64 | u128::from(low)
}
