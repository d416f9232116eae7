//! Two-operand and one-operand arithmetic, logic, shifts, multiplication and division.
//!
//! Problem: the same dozen operations come in four widths and five operand forms. Scheme: an
//! operation is a type ([`Binary`], [`Unary`], [`Shift`]); a form is a generic function over it; the
//! table picks the instance when decoding. Invariant: a memory destination is translated for writing
//! before anything is computed. Source: SDM vol. 2, each instruction.

use iced_x86::{Instruction, OpKind};

use super::decode::{Handler, Insn};
use super::width::{WideWidth, Width};
use super::{Interp, table};
use crate::env::Memory;
use crate::exception::{Outcome, Trap};
use crate::state::reg::{RAX, RDX};

/// Bytes of the first operand.
pub(super) fn operand_bytes(raw: &Instruction) -> usize {
    if raw.op0_kind() == OpKind::Register {
        raw.op0_register().size()
    } else {
        raw.memory_size().size()
    }
}

/// Instantiates `$f` for the operand size.
macro_rules! by_width {
    ($bytes:expr, $m:ident, $f:ident $(, $rest:expr)* ; $($generic:ty),*) => {
        match $bytes {
            1 => $f::<$m, u8, $($generic),*>($($rest),*),
            2 => $f::<$m, u16, $($generic),*>($($rest),*),
            4 => $f::<$m, u32, $($generic),*>($($rest),*),
            _ => $f::<$m, u64, $($generic),*>($($rest),*),
        }
    };
}
pub(super) use by_width;

/// An operation `a op b`.
pub(super) trait Binary {
    /// The result is stored (not so for CMP and TEST).
    const STORES: bool = true;
    fn apply<W: Width>(a: W, b: W, flags: &mut u64) -> W;
}

/// An operation on one operand.
pub(super) trait Unary {
    fn apply<W: Width>(a: W, flags: &mut u64) -> W;
}

/// A shift or rotate.
pub(super) trait Shift {
    fn apply<W: Width>(a: W, count: u8, flags: &mut u64) -> W;
}

macro_rules! operations {
    ($($kind:ident $name:ident = $f:ident($($arg:ident: $t:ty)?) $($stores:literal)?;)*) => { $(
        pub(super) enum $name {}
        impl $kind for $name {
            $(const STORES: bool = $stores;)?
            #[inline(always)]
            fn apply<W: Width>(a: W, $($arg: $t,)? flags: &mut u64) -> W {
                W::$f(a, $($arg,)? flags)
            }
        }
    )* };
}
operations! {
    Binary Add = add(b: W);
    Binary Adc = adc(b: W);
    Binary Sub = sub(b: W);
    Binary Sbb = sbb(b: W);
    Binary And = and(b: W);
    Binary Or = or(b: W);
    Binary Xor = xor(b: W);
    Binary Cmp = sub(b: W) false;
    Binary Test = and(b: W) false;
    Unary Inc = inc();
    Unary Dec = dec();
    Unary Neg = neg();
    Shift Rol = rol(count: u8);
    Shift Ror = ror(count: u8);
    Shift Rcl = rcl(count: u8);
    Shift Rcr = rcr(count: u8);
    Shift Shl = shl(count: u8);
    Shift Shr = shr(count: u8);
    Shift Sar = sar(count: u8);
}

/// NOT: no flags.
pub(super) enum Not {}
impl Unary for Not {
    #[inline(always)]
    fn apply<W: Width>(a: W, _: &mut u64) -> W {
        W::not(a)
    }
}

pub(super) fn binary<M: Memory, O: Binary>(raw: &Instruction) -> Handler<M> {
    by_width!(operand_bytes(raw), M, binary_sized, raw; O)
}

fn binary_sized<M: Memory, W: Width, O: Binary>(raw: &Instruction) -> Handler<M> {
    match (raw.op0_kind(), raw.op1_kind()) {
        (OpKind::Register, OpKind::Register) => rr::<M, W, O>,
        (OpKind::Register, OpKind::Memory) => rm::<M, W, O>,
        (OpKind::Memory, OpKind::Register) => mr::<M, W, O>,
        (OpKind::Register, _) => ri::<M, W, O>,
        (OpKind::Memory, _) => mi::<M, W, O>,
        _ => table::undefined,
    }
}

fn rr<M: Memory, W: Width, O: Binary>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let b = W::get(&vm.state, i.src);
    register(vm, i, b, O::apply::<W>, O::STORES);
    Ok(())
}

fn ri<M: Memory, W: Width, O: Binary>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    register(vm, i, W::from_u64(i.imm), O::apply::<W>, O::STORES);
    Ok(())
}

fn rm<M: Memory, W: Width, O: Binary>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let offset = vm.address(i);
    let b = vm.load::<W>(i.seg, offset)?;
    register(vm, i, b, O::apply::<W>, O::STORES);
    Ok(())
}

fn mr<M: Memory, W: Width, O: Binary>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let b = W::get(&vm.state, i.dst);
    memory::<M, W, O>(vm, i, b)
}

fn mi<M: Memory, W: Width, O: Binary>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    memory::<M, W, O>(vm, i, W::from_u64(i.imm))
}

#[inline(always)]
fn register<M: Memory, W: Width>(
    vm: &mut Interp<M>,
    i: &Insn<M>,
    b: W,
    apply: impl Fn(W, W, &mut u64) -> W,
    stores: bool,
) {
    let a = W::get(&vm.state, i.dst);
    let result = apply(a, b, &mut vm.state.rflags);
    if stores {
        W::set(&mut vm.state, i.dst, result);
    }
}

#[inline(always)]
fn memory<M: Memory, W: Width, O: Binary>(vm: &mut Interp<M>, i: &Insn<M>, b: W) -> Outcome {
    let offset = vm.address(i);
    if O::STORES {
        vm.modify(i.seg, offset, i.lock, |cpu, a| O::apply::<W>(a, b, &mut cpu.rflags))?;
    } else {
        let a = vm.load::<W>(i.seg, offset)?;
        O::apply::<W>(a, b, &mut vm.state.rflags);
    }
    Ok(())
}

pub(super) fn unary<M: Memory, O: Unary>(raw: &Instruction) -> Handler<M> {
    let memory = raw.op0_kind() == OpKind::Memory;
    by_width!(operand_bytes(raw), M, unary_sized, memory; O)
}

fn unary_sized<M: Memory, W: Width, O: Unary>(memory: bool) -> Handler<M> {
    if memory { unary_m::<M, W, O> } else { unary_r::<M, W, O> }
}

fn unary_r<M: Memory, W: Width, O: Unary>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let a = W::get(&vm.state, i.dst);
    let result = O::apply::<W>(a, &mut vm.state.rflags);
    W::set(&mut vm.state, i.dst, result);
    Ok(())
}

fn unary_m<M: Memory, W: Width, O: Unary>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let offset = vm.address(i);
    vm.modify(i.seg, offset, i.lock, |cpu, a| O::apply::<W>(a, &mut cpu.rflags))?;
    Ok(())
}

pub(super) fn shift<M: Memory, O: Shift>(raw: &Instruction) -> Handler<M> {
    let memory = raw.op0_kind() == OpKind::Memory;
    let by_cl = raw.op1_kind() == OpKind::Register;
    by_width!(operand_bytes(raw), M, shift_sized, memory, by_cl; O)
}

fn shift_sized<M: Memory, W: Width, O: Shift>(memory: bool, by_cl: bool) -> Handler<M> {
    match (memory, by_cl) {
        (false, false) => shift_r::<M, W, O, false>,
        (false, true) => shift_r::<M, W, O, true>,
        (true, false) => shift_m::<M, W, O, false>,
        (true, true) => shift_m::<M, W, O, true>,
    }
}

/// The count, before the masking to 5 or 6 bits that the host instruction does as well.
#[inline(always)]
pub(super) fn count<M: Memory, const BY_CL: bool>(vm: &Interp<M>, i: &Insn<M>) -> u8 {
    if BY_CL { vm.state.gpr[1] as u8 } else { i.imm as u8 }
}

fn shift_r<M: Memory, W: Width, O: Shift, const BY_CL: bool>(
    vm: &mut Interp<M>,
    i: &Insn<M>,
) -> Outcome {
    let count = count::<M, BY_CL>(vm, i);
    let a = W::get(&vm.state, i.dst);
    let result = O::apply::<W>(a, count, &mut vm.state.rflags);
    W::set(&mut vm.state, i.dst, result);
    Ok(())
}

fn shift_m<M: Memory, W: Width, O: Shift, const BY_CL: bool>(
    vm: &mut Interp<M>,
    i: &Insn<M>,
) -> Outcome {
    let count = count::<M, BY_CL>(vm, i);
    let offset = vm.address(i);
    vm.modify(i.seg, offset, false, |cpu, a| O::apply::<W>(a, count, &mut cpu.rflags))?;
    Ok(())
}

/// SHLD (`LEFT`) and SHRD.
pub(super) fn double_shift<M: Memory, const LEFT: bool>(raw: &Instruction) -> Handler<M> {
    let by_cl = raw.op2_kind() == OpKind::Register;
    match (operand_bytes(raw), by_cl) {
        (2, false) => double_shift_sized::<M, u16, LEFT, false>,
        (2, true) => double_shift_sized::<M, u16, LEFT, true>,
        (4, false) => double_shift_sized::<M, u32, LEFT, false>,
        (4, true) => double_shift_sized::<M, u32, LEFT, true>,
        (_, false) => double_shift_sized::<M, u64, LEFT, false>,
        (_, true) => double_shift_sized::<M, u64, LEFT, true>,
    }
}

fn double_shift_sized<M: Memory, W: WideWidth, const LEFT: bool, const BY_CL: bool>(
    vm: &mut Interp<M>,
    i: &Insn<M>,
) -> Outcome {
    let count = count::<M, BY_CL>(vm, i);
    let apply = if LEFT { W::shld } else { W::shrd };
    if i.raw.op0_kind() == OpKind::Memory {
        let b = W::get(&vm.state, i.dst);
        let offset = vm.address(i);
        vm.modify(i.seg, offset, false, |cpu, a| apply(a, b, count, &mut cpu.rflags))?;
    } else {
        let a = W::get(&vm.state, i.dst);
        let b = W::get(&vm.state, i.src);
        let result = apply(a, b, count, &mut vm.state.rflags);
        W::set(&mut vm.state, i.dst, result);
    }
    Ok(())
}

/// The operand of a one-operand instruction.
#[inline(always)]
pub(super) fn source<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome<W> {
    if i.raw.op0_kind() == OpKind::Memory {
        let offset = vm.address(i);
        vm.load(i.seg, offset)
    } else {
        Ok(W::get(&vm.state, i.dst))
    }
}

/// Number of the high half's register: AH for bytes, rDX else.
fn high<W: Width>() -> u8 {
    if W::BYTES == 1 { 16 } else { RDX as u8 }
}

/// MUL, and IMUL with one operand (`SIGNED`).
pub(super) fn multiply<M: Memory, const SIGNED: bool>(raw: &Instruction) -> Handler<M> {
    match operand_bytes(raw) {
        1 => multiply_sized::<M, u8, SIGNED>,
        2 => multiply_sized::<M, u16, SIGNED>,
        4 => multiply_sized::<M, u32, SIGNED>,
        _ => multiply_sized::<M, u64, SIGNED>,
    }
}

fn multiply_sized<M: Memory, W: Width, const SIGNED: bool>(
    vm: &mut Interp<M>,
    i: &Insn<M>,
) -> Outcome {
    let b = source::<M, W>(vm, i)?;
    let a = W::get(&vm.state, RAX as u8);
    let apply = if SIGNED { W::imul } else { W::mul };
    let (low, top) = apply(a, b, &mut vm.state.rflags);
    W::set(&mut vm.state, RAX as u8, low);
    W::set(&mut vm.state, high::<W>(), top);
    Ok(())
}

/// DIV and IDIV (`SIGNED`).
pub(super) fn divide<M: Memory, const SIGNED: bool>(raw: &Instruction) -> Handler<M> {
    match operand_bytes(raw) {
        1 => divide_sized::<M, u8, SIGNED>,
        2 => divide_sized::<M, u16, SIGNED>,
        4 => divide_sized::<M, u32, SIGNED>,
        _ => divide_sized::<M, u64, SIGNED>,
    }
}

fn divide_sized<M: Memory, W: Width, const SIGNED: bool>(
    vm: &mut Interp<M>,
    i: &Insn<M>,
) -> Outcome {
    let divisor = source::<M, W>(vm, i)?;
    let low = W::get(&vm.state, RAX as u8);
    let top = W::get(&vm.state, high::<W>());
    let apply = if SIGNED { W::idiv } else { W::div };
    let (quotient, remainder) = apply(low, top, divisor, &mut vm.state.rflags).ok_or(Trap::de())?;
    W::set(&mut vm.state, RAX as u8, quotient);
    W::set(&mut vm.state, high::<W>(), remainder);
    Ok(())
}

/// IMUL with two or three operands.
pub(super) fn imul<M: Memory>(raw: &Instruction) -> Handler<M> {
    match (raw.op_count(), operand_bytes(raw)) {
        (1, _) => multiply::<M, true>(raw),
        (_, 2) => imul_sized::<M, u16>,
        (_, 4) => imul_sized::<M, u32>,
        _ => imul_sized::<M, u64>,
    }
}

fn imul_sized<M: Memory, W: WideWidth>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let b = if i.raw.op1_kind() == OpKind::Memory {
        let offset = vm.address(i);
        vm.load::<W>(i.seg, offset)?
    } else {
        W::get(&vm.state, i.src)
    };
    let a = if i.raw.op_count() == 3 { W::from_u64(i.imm) } else { W::get(&vm.state, i.dst) };
    let result = W::imul2(a, b, &mut vm.state.rflags);
    W::set(&mut vm.state, i.dst, result);
    Ok(())
}
