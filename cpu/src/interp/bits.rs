//! Bit tests, bit counts, BMI1, BMI2, ADX, MOVBE and CRC32.
//!
//! Problem: a bit number in a register may name a bit far from the memory operand; the newer
//! instructions have three operands. Scheme: bit tests displace the address by whole operands first;
//! the VEX ones, TZCNT and LZCNT run as themselves on the host, so their undefined flags are the host's.
//! Invariant: the CPUID model offers BMI1, BMI2 and LZCNT only where the host has them. Source: SDM
//! vol. 2, each instruction.

use std::arch::asm;

use iced_x86::{Instruction, OpKind};

use super::Interp;
use super::alu::operand_bytes;
use super::decode::{Handler, Insn};
use super::integer::source1;
use super::width::{WideWidth, Width};
use crate::env::Memory;
use crate::exception::Outcome;
use crate::state::Rflags;

/// BT, BTS, BTR or BTC.
pub(super) trait BitOp {
    const STORES: bool = true;
    fn apply<W: WideWidth>(a: W, bit: W, flags: &mut u64) -> W;
}

macro_rules! bit_ops {
    ($($name:ident = $f:ident $($stores:literal)?;)*) => { $(
        pub(super) enum $name {}
        impl BitOp for $name {
            $(const STORES: bool = $stores;)?
            #[inline(always)]
            fn apply<W: WideWidth>(a: W, bit: W, flags: &mut u64) -> W {
                W::$f(a, bit, flags)
            }
        }
    )* };
}
bit_ops! { Bt = bt false; Bts = bts; Btr = btr; Btc = btc; }

/// Instantiates `$f` for 16, 32 or 64 bits.
macro_rules! by_wide_width {
    ($bytes:expr, $m:ident, $f:ident $(, $generic:ty)*) => {
        match $bytes {
            2 => $f::<$m, u16 $(, $generic)*>,
            4 => $f::<$m, u32 $(, $generic)*>,
            _ => $f::<$m, u64 $(, $generic)*>,
        }
    };
}

pub(super) fn bit_test<M: Memory, O: BitOp>(raw: &Instruction) -> Handler<M> {
    by_wide_width!(operand_bytes(raw), M, bit_test_sized, O)
}

fn bit_test_sized<M: Memory, W: WideWidth, O: BitOp>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let by_register = i.raw.op1_kind() == OpKind::Register;
    if i.raw.op0_kind() == OpKind::Register {
        let bit = if by_register { W::get(&vm.state, i.src) } else { W::from_u64(i.imm) };
        let a = W::get(&vm.state, i.dst);
        let result = O::apply(a, bit, &mut vm.state.rflags);
        if O::STORES {
            W::set(&mut vm.state, i.dst, result);
        }
        return Ok(());
    }
    let mut offset = vm.address(i);
    let bit = if by_register { W::get(&vm.state, i.dst) } else { W::from_u64(i.imm) };
    if by_register {
        let operands = bit.to_i64() >> W::BITS.trailing_zeros();
        offset = offset.wrapping_add((operands * W::BYTES as i64) as u64) & i.addr_mask;
    }
    if O::STORES {
        vm.modify(i.seg, offset, i.lock, |cpu, a| O::apply::<W>(a, bit, &mut cpu.rflags))?;
    } else {
        let a = vm.load::<W>(i.seg, offset)?;
        O::apply(a, bit, &mut vm.state.rflags);
    }
    Ok(())
}

/// BSF (`FORWARD`) and BSR.
pub(super) fn bit_scan<M: Memory, const FORWARD: bool>(raw: &Instruction) -> Handler<M> {
    match (operand_bytes(raw), FORWARD) {
        (2, _) => bit_scan_sized::<M, u16, FORWARD>,
        (4, _) => bit_scan_sized::<M, u32, FORWARD>,
        _ => bit_scan_sized::<M, u64, FORWARD>,
    }
}

fn bit_scan_sized<M: Memory, W: WideWidth, const FORWARD: bool>(
    vm: &mut Interp<M>,
    i: &Insn<M>,
) -> Outcome {
    let a = source1::<M, W>(vm, i)?;
    let old = W::get(&vm.state, i.dst);
    let apply = if FORWARD { W::bsf } else { W::bsr };
    let result = apply(old, a, &mut vm.state.rflags);
    // A zero source leaves the whole destination alone, the upper half too.
    if a != W::default() {
        W::set(&mut vm.state, i.dst, result);
    }
    Ok(())
}

/// A bit count: POPCNT, LZCNT or TZCNT.
pub(super) trait Counting {
    fn apply<W: WideWidth>(a: W, flags: &mut u64) -> W;
}

macro_rules! counts {
    ($($name:ident($a:ident, $flags:ident) = $count:expr;)*) => { $(
        pub(super) enum $name {}
        impl Counting for $name {
            fn apply<W: WideWidth>($a: W, $flags: &mut u64) -> W {
                $count
            }
        }
    )* };
}
counts! { Popcnt(a, flags) = W::popcnt(a, flags); Lzcnt(a, flags) = W::lzcnt(a, a, flags);
Tzcnt(a, flags) = W::tzcnt(a, a, flags); }

pub(super) fn bit_count<M: Memory, O: Counting>(raw: &Instruction) -> Handler<M> {
    by_wide_width!(operand_bytes(raw), M, bit_count_sized, O)
}

fn bit_count_sized<M: Memory, W: WideWidth, O: Counting>(
    vm: &mut Interp<M>,
    i: &Insn<M>,
) -> Outcome {
    let a = source1::<M, W>(vm, i)?;
    let result = O::apply(a, &mut vm.state.rflags);
    W::set(&mut vm.state, i.dst, result);
    Ok(())
}

/// MOVBE.
pub(super) fn movbe<M: Memory>(raw: &Instruction) -> Handler<M> {
    by_wide_width!(operand_bytes(raw), M, movbe_sized)
}

fn movbe_sized<M: Memory, W: WideWidth>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let offset = vm.address(i);
    if i.raw.op0_kind() == OpKind::Memory {
        let value = W::get(&vm.state, i.dst);
        vm.store(i.seg, offset, W::swap_bytes(value))
    } else {
        let value = vm.load::<W>(i.seg, offset)?;
        W::set(&mut vm.state, i.dst, W::swap_bytes(value));
        Ok(())
    }
}

/// ADCX and ADOX: an addition whose carry is `CARRY` and that touches no other flag.
fn add_with_carry<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>, carry: Rflags) -> Outcome {
    let b = u128::from(source1::<M, W>(vm, i)?.to_u64());
    let a = u128::from(W::get(&vm.state, i.dst).to_u64());
    let sum = a + b + u128::from(vm.state.flag(carry));
    vm.state.rflags &= !carry.bits();
    if sum >> W::BITS != 0 {
        vm.state.rflags |= carry.bits();
    }
    W::set(&mut vm.state, i.dst, W::from_u64(sum as u64));
    Ok(())
}

pub(super) fn adcx<M: Memory>(raw: &Instruction) -> Handler<M> {
    if operand_bytes(raw) == 4 {
        |vm, i| add_with_carry::<M, u32>(vm, i, Rflags::CF)
    } else {
        |vm, i| add_with_carry::<M, u64>(vm, i, Rflags::CF)
    }
}

pub(super) fn adox<M: Memory>(raw: &Instruction) -> Handler<M> {
    if operand_bytes(raw) == 4 {
        |vm, i| add_with_carry::<M, u32>(vm, i, Rflags::OF)
    } else {
        |vm, i| add_with_carry::<M, u64>(vm, i, Rflags::OF)
    }
}

/// CRC32: the source has its own width.
pub(super) fn crc32<M: Memory>(raw: &Instruction) -> Handler<M> {
    let bytes = if raw.op1_kind() == OpKind::Register {
        raw.op1_register().size()
    } else {
        raw.memory_size().size()
    };
    match bytes {
        1 => crc32_sized::<M, u8>,
        2 => crc32_sized::<M, u16>,
        4 => crc32_sized::<M, u32>,
        _ => crc32_sized::<M, u64>,
    }
}

fn crc32_sized<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    /// The Castagnoli polynomial, bit-reflected.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut data = source1::<M, W>(vm, i)?.to_u64();
    let mut crc = u32::get(&vm.state, i.dst);
    for _ in 0..W::BYTES {
        crc ^= data as u8 as u32;
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 != 0 { POLYNOMIAL } else { 0 };
        }
        data >>= 8;
    }
    u32::set(&mut vm.state, i.dst, crc);
    Ok(())
}

/// A BMI instruction `dst = op(a, b)`, run on the host in 64 bits or in 32.
type HostOp = fn(a: u64, b: u64, flags: u64) -> (u64, u64);

/// Makes [`HostOp`]s from instructions; `{r}` is the result, `{a}` and `{b}` the operands.
macro_rules! host_ops {
    ($($name:ident($($b:ident)?) $narrow:literal $wide:literal;)*) => { $(
        fn $name<W: Width>(a: u64, _b: u64, flags: u64) -> (u64, u64) {
            let r: u64;
            let mut word = flags & Rflags::STATUS.bits();
            // SAFETY: register arithmetic; the pushes and pops balance, and only status flags are set.
            unsafe {
                if W::BYTES == 8 {
                    asm!("push {f}", "popfq", $wide, "pushfq", "pop {f}",
                        r = out(reg) r, a = in(reg) a, $($b = in(reg) _b,)? f = inout(reg) word);
                } else {
                    asm!("push {f}", "popfq", $narrow, "pushfq", "pop {f}",
                        r = out(reg) r, a = in(reg) a, $($b = in(reg) _b,)? f = inout(reg) word);
                }
            }
            let status = Rflags::STATUS.bits();
            (r, flags & !status | word & status)
        }
    )* };
}
host_ops! {
    andn(b) "andn {r:e}, {a:e}, {b:e}" "andn {r}, {a}, {b}";
    bextr(b) "bextr {r:e}, {a:e}, {b:e}" "bextr {r}, {a}, {b}";
    bzhi(b) "bzhi {r:e}, {a:e}, {b:e}" "bzhi {r}, {a}, {b}";
    pdep(b) "pdep {r:e}, {a:e}, {b:e}" "pdep {r}, {a}, {b}";
    pext(b) "pext {r:e}, {a:e}, {b:e}" "pext {r}, {a}, {b}";
    sarx(b) "sarx {r:e}, {a:e}, {b:e}" "sarx {r}, {a}, {b}";
    shlx(b) "shlx {r:e}, {a:e}, {b:e}" "shlx {r}, {a}, {b}";
    shrx(b) "shrx {r:e}, {a:e}, {b:e}" "shrx {r}, {a}, {b}";
    blsi() "blsi {r:e}, {a:e}" "blsi {r}, {a}";
    blsmsk() "blsmsk {r:e}, {a:e}" "blsmsk {r}, {a}";
    blsr() "blsr {r:e}, {a:e}" "blsr {r}, {a}";
}

/// Reads operand `n` of a VEX instruction with general registers.
fn vex_operand<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>, n: u32) -> Outcome<u64> {
    match i.raw.op_kind(n) {
        OpKind::Memory => {
            let offset = vm.address(i);
            Ok(vm.load::<W>(i.seg, offset)?.to_u64())
        }
        OpKind::Register => {
            let number = super::decode::register_number(i.raw.op_register(n));
            Ok(W::get(&vm.state, number).to_u64())
        }
        _ => Ok(i.imm),
    }
}

fn vex<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>, op: HostOp) -> Outcome {
    vm.no_vex_in_real_mode()?;
    let a = vex_operand::<M, W>(vm, i, 1)?;
    let b = if i.raw.op_count() > 2 { vex_operand::<M, W>(vm, i, 2)? } else { 0 };
    let (result, flags) = op(a, b, vm.state.rflags);
    vm.state.rflags = flags;
    W::set(&mut vm.state, i.dst, W::from_u64(result));
    Ok(())
}

macro_rules! vex_handlers {
    ($($name:ident = $op:ident;)*) => { $(
        pub(super) fn $name<M: Memory>(raw: &Instruction) -> Handler<M> {
            if operand_bytes(raw) == 8 {
                |vm, i| vex::<M, u64>(vm, i, $op::<u64>)
            } else {
                |vm, i| vex::<M, u32>(vm, i, $op::<u32>)
            }
        }
    )* };
}
vex_handlers! {
    vex_andn = andn; vex_bextr = bextr; vex_bzhi = bzhi; vex_pdep = pdep; vex_pext = pext;
    vex_sarx = sarx; vex_shlx = shlx; vex_shrx = shrx;
    vex_blsi = blsi; vex_blsmsk = blsmsk; vex_blsr = blsr;
}

/// RORX.
pub(super) fn rorx<M: Memory>(raw: &Instruction) -> Handler<M> {
    fn rotate<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
        vm.no_vex_in_real_mode()?;
        let value = W::from_u64(vex_operand::<M, W>(vm, i, 1)?);
        let mut unused = 0;
        let result = W::ror(value, i.imm as u8, &mut unused);
        W::set(&mut vm.state, i.dst, result);
        Ok(())
    }
    if operand_bytes(raw) == 8 { rotate::<M, u64> } else { rotate::<M, u32> }
}

/// MULX: high half to the first operand, low half to the second; when they are one register it holds
/// the high half.
pub(super) fn mulx<M: Memory>(raw: &Instruction) -> Handler<M> {
    fn multiply<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
        vm.no_vex_in_real_mode()?;
        let a = W::from_u64(vex_operand::<M, W>(vm, i, 2)?);
        let b = W::get(&vm.state, crate::state::reg::RDX as u8);
        let mut unused = 0;
        let (low, high) = W::mul(a, b, &mut unused);
        W::set(&mut vm.state, i.src, low);
        W::set(&mut vm.state, i.dst, high);
        Ok(())
    }
    if operand_bytes(raw) == 8 { multiply::<M, u64> } else { multiply::<M, u32> }
}

impl<M: Memory> Interp<M> {
    /// VEX encodings are #UD in real and virtual-8086 mode.
    fn no_vex_in_real_mode(&self) -> Outcome {
        if self.mode.protected { Ok(()) } else { Err(crate::exception::Trap::ud()) }
    }
}
