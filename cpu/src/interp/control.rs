//! Near jumps, calls and returns.
//!
//! Problem: a branch out of the code segment faults at the branch, with the stack pointer where it was.
//! Scheme: every transfer goes through [`Interp::near_target`], which checks; then the stack; then RIP
//! ([`call_to`] for what CALL does first). Invariants: unconditional ones end a block, so no handler needs to
//! report the change; conditional ones stand in its middle too, and report it when they are taken
//! ([`Interp::branch`]).
//! Source: SDM vol. 2, "JMP", "CALL", "RET", "LOOP", "Jcc".

use iced_x86::{Code, Instruction, OpKind};

use super::Interp;
use super::decode::{Handler, Insn};
use super::integer::{by_condition, condition};
use super::memory::is_canonical;
use super::width::Width;
use super::{alu, table};
use crate::env::Memory;
use crate::exception::{Outcome, Trap};
use crate::state::reg::{RCX, RSP};
use crate::state::{Rflags, sreg};

impl<M: Memory> Interp<M> {
    /// Checks a near branch's target.
    #[inline(always)]
    pub(super) fn near_target(&self, target: u64) -> Outcome<u64> {
        let inside = if self.mode.long64 {
            is_canonical(target)
        } else {
            target <= u64::from(self.state.seg[sreg::CS].limit)
        };
        if inside { Ok(target) } else { Err(Trap::gp0()) }
    }

    /// Target of a relative branch of operand size `W`, not checked.
    #[inline(always)]
    fn relative_target<W: Width>(&self, i: &Insn<M>) -> u64 {
        W::from_u64(self.state.rip.wrapping_add(i.imm)).to_u64() & self.mode.ip_mask
    }

    /// The same, checked.
    #[inline(always)]
    fn relative<W: Width>(&self, i: &Insn<M>) -> Outcome<u64> {
        self.near_target(self.relative_target::<W>(i))
    }

    /// Takes a conditional branch.
    #[inline(always)]
    fn branch<W: Width>(&mut self, i: &Insn<M>) -> Outcome {
        self.state.rip = self.relative::<W>(i)?;
        self.leave = true;
        Ok(())
    }
}

/// Instantiates `$f` for a relative branch's operand size.
macro_rules! by_branch {
    ($raw:expr, $f:ident, $m:ident) => {
        match $raw.op0_kind() {
            OpKind::NearBranch16 => $f::<$m, u16>,
            OpKind::NearBranch32 => $f::<$m, u32>,
            _ => $f::<$m, u64>,
        }
    };
}

pub(super) fn jcc<M: Memory>(raw: &Instruction) -> Handler<M> {
    match raw.op0_kind() {
        OpKind::NearBranch16 => by_condition!(raw, jcc_sized, M, u16),
        OpKind::NearBranch32 => by_condition!(raw, jcc_sized, M, u32),
        _ => by_condition!(raw, jcc_sized, M, u64),
    }
}

fn jcc_sized<M: Memory, W: Width, const CC: u8>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    if condition(vm.state.rflags, CC) { vm.branch::<W>(i) } else { Ok(()) }
}

pub(super) fn jmp<M: Memory>(raw: &Instruction) -> Handler<M> {
    match raw.op0_kind() {
        OpKind::FarBranch16 | OpKind::FarBranch32 => super::far::jmp,
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
            by_branch!(raw, jmp_relative, M)
        }
        OpKind::Memory if table::is_far_indirect(raw) => super::far::jmp,
        _ => match alu::operand_bytes(raw) {
            2 => jmp_indirect::<M, u16>,
            4 => jmp_indirect::<M, u32>,
            _ => jmp_indirect::<M, u64>,
        },
    }
}

fn jmp_relative<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    vm.state.rip = vm.relative::<W>(i)?;
    Ok(())
}

fn jmp_indirect<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let target = alu::source::<M, W>(vm, i)?.to_u64();
    vm.state.rip = vm.near_target(target)?;
    Ok(())
}

pub(super) fn call<M: Memory>(raw: &Instruction) -> Handler<M> {
    match raw.op0_kind() {
        OpKind::FarBranch16 | OpKind::FarBranch32 => super::far::call,
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
            by_branch!(raw, call_relative, M)
        }
        OpKind::Memory if table::is_far_indirect(raw) => super::far::call,
        _ => match alu::operand_bytes(raw) {
            2 => call_indirect::<M, u16>,
            4 => call_indirect::<M, u32>,
            _ => call_indirect::<M, u64>,
        },
    }
}

/// Intel's processors store the return address before they look at the target: a bad stack comes before a
/// bad target, and after that one's #GP the word below the stack is written though RSP hasn't moved.
fn call_to<M: Memory, W: Width>(vm: &mut Interp<M>, target: u64) -> Outcome {
    if vm.amd {
        vm.near_target(target)?;
    }
    let sp = vm.state.gpr[RSP];
    vm.push(W::from_u64(vm.state.rip))?;
    match vm.near_target(target) {
        Ok(target) => {
            vm.state.rip = target;
            Ok(())
        }
        Err(trap) => {
            vm.state.gpr[RSP] = sp;
            Err(trap)
        }
    }
}

fn call_relative<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let target = vm.relative_target::<W>(i);
    call_to::<M, W>(vm, target)
}

fn call_indirect<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let target = alu::source::<M, W>(vm, i)?.to_u64();
    call_to::<M, W>(vm, target)
}

pub(super) fn ret<M: Memory>(raw: &Instruction) -> Handler<M> {
    match raw.code() {
        Code::Retnw | Code::Retnw_imm16 => ret_sized::<M, u16>,
        Code::Retnd | Code::Retnd_imm16 => ret_sized::<M, u32>,
        _ => ret_sized::<M, u64>,
    }
}

fn ret_sized<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let target = vm.peek(W::BYTES as usize, 0)?;
    vm.state.rip = vm.near_target(target)?;
    let released = if i.raw.op_count() == 0 { 0 } else { i.imm as i64 };
    vm.state.gpr[RSP] = vm.stack_moved(W::BYTES as i64 + released);
    Ok(())
}

/// LOOP, LOOPE, LOOPNE: operand size, then the counter's size.
pub(super) fn loop_<M: Memory>(raw: &Instruction) -> Handler<M> {
    use Code as C;
    match raw.code() {
        C::Loop_rel8_16_CX
        | C::Loop_rel8_32_CX
        | C::Loope_rel8_16_CX
        | C::Loope_rel8_32_CX
        | C::Loopne_rel8_16_CX
        | C::Loopne_rel8_32_CX => by_branch!(raw, loop_cx, M),
        C::Loop_rel8_16_ECX
        | C::Loop_rel8_32_ECX
        | C::Loop_rel8_64_ECX
        | C::Loope_rel8_16_ECX
        | C::Loope_rel8_32_ECX
        | C::Loope_rel8_64_ECX
        | C::Loopne_rel8_16_ECX
        | C::Loopne_rel8_32_ECX
        | C::Loopne_rel8_64_ECX => by_branch!(raw, loop_ecx, M),
        _ => by_branch!(raw, loop_rcx, M),
    }
}

fn loop_cx<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    loop_by::<M, W, u16>(vm, i)
}
fn loop_ecx<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    loop_by::<M, W, u32>(vm, i)
}
fn loop_rcx<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    loop_by::<M, W, u64>(vm, i)
}

fn loop_by<M: Memory, W: Width, C: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let count = C::from_u64(C::get(&vm.state, RCX as u8).to_u64().wrapping_sub(1));
    let zf = vm.state.flag(Rflags::ZF);
    let wanted = match i.raw.mnemonic() {
        iced_x86::Mnemonic::Loope => zf,
        iced_x86::Mnemonic::Loopne => !zf,
        _ => true,
    };
    if count != C::default() && wanted {
        vm.branch::<W>(i)?;
    }
    C::set(&mut vm.state, RCX as u8, count);
    Ok(())
}

/// JCXZ, JECXZ and JRCXZ.
pub(super) fn jrcxz<M: Memory>(raw: &Instruction) -> Handler<M> {
    fn jump_if_zero<M: Memory, W: Width, C: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
        if C::get(&vm.state, RCX as u8) == C::default() { vm.branch::<W>(i) } else { Ok(()) }
    }
    fn by_counter<M: Memory, C: Width>(raw: &Instruction) -> Handler<M> {
        match raw.op0_kind() {
            OpKind::NearBranch16 => jump_if_zero::<M, u16, C>,
            OpKind::NearBranch32 => jump_if_zero::<M, u32, C>,
            _ => jump_if_zero::<M, u64, C>,
        }
    }
    match raw.mnemonic() {
        iced_x86::Mnemonic::Jcxz => by_counter::<M, u16>(raw),
        iced_x86::Mnemonic::Jecxz => by_counter::<M, u32>(raw),
        _ => by_counter::<M, u64>(raw),
    }
}

/// BOUND.
pub(super) fn bound<M: Memory>(raw: &Instruction) -> Handler<M> {
    fn check<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
        let offset = vm.address(i);
        let index = W::get(&vm.state, i.dst).to_i64();
        // An index below the lower bound is #BR before the upper one is read; AMD's read both first.
        let below = index < vm.load::<W>(i.seg, offset)?.to_i64();
        if below && !vm.amd {
            return Err(Trap::br());
        }
        let upper = vm.load::<W>(i.seg, offset.wrapping_add(W::BYTES) & i.addr_mask)?.to_i64();
        if below || index > upper { Err(Trap::br()) } else { Ok(()) }
    }
    if raw.op0_register().size() == 2 { check::<M, u16> } else { check::<M, u32> }
}
