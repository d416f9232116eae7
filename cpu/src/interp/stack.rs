//! The stack: PUSH, POP and their relatives.
//!
//! Problem: a push that faults must leave the stack pointer as it was, and the stack's width is SS's,
//! not the code's. Scheme: [`Interp::push`] stores first and moves the pointer after. Invariants: only
//! the stack pointer's low `sp_mask` bits move. Source: SDM vol. 1, "Procedure Stack".

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::Interp;
use super::alu::operand_bytes;
use super::decode::{Handler, Insn};
use super::width::Width;
use crate::env::Memory;
use crate::exception::{Outcome, Trap};
use crate::state::reg::{RBP, RSP};
use crate::state::{Cr4, Rflags, sreg};

const SS: u8 = sreg::SS as u8;

impl<M: Memory> Interp<M> {
    /// `base + delta` in the stack pointer's width; the bits above are the old pointer's.
    #[inline(always)]
    pub(super) fn stack_moved(&self, delta: i64) -> u64 {
        let mask = self.mode.sp_mask;
        let sp = self.state.gpr[RSP];
        let moved = sp.wrapping_add(delta as u64) & mask;
        // A 32-bit stack pointer clears the upper half, a 16-bit one keeps what is above.
        if mask == 0xffff { sp & !mask | moved } else { moved }
    }

    #[inline(always)]
    pub(super) fn push<W: Width>(&mut self, value: W) -> Outcome {
        let sp = self.stack_moved(-(W::BYTES as i64));
        self.store(SS, sp & self.mode.sp_mask, value)?;
        self.state.gpr[RSP] = sp;
        Ok(())
    }

    #[inline(always)]
    pub(super) fn pop<W: Width>(&mut self) -> Outcome<W> {
        let value = self.load(SS, self.state.gpr[RSP] & self.mode.sp_mask)?;
        self.state.gpr[RSP] = self.stack_moved(W::BYTES as i64);
        Ok(value)
    }

    /// Reads `bytes` (2, 4 or 8) at `depth` bytes above the stack pointer, without popping.
    pub(super) fn peek(&mut self, bytes: usize, depth: u64) -> Outcome<u64> {
        let at = self.state.gpr[RSP].wrapping_add(depth) & self.mode.sp_mask;
        Ok(match bytes {
            2 => u64::from(self.load::<u16>(SS, at)?),
            4 => u64::from(self.load::<u32>(SS, at)?),
            _ => self.load::<u64>(SS, at)?,
        })
    }
}

pub(super) fn push<M: Memory>(raw: &Instruction) -> Handler<M> {
    let bytes = raw.stack_pointer_increment().unsigned_abs() as usize;
    match bytes {
        2 => push_kind::<M, u16>(raw),
        4 => push_kind::<M, u32>(raw),
        _ => push_kind::<M, u64>(raw),
    }
}

fn push_kind<M: Memory, W: Width>(raw: &Instruction) -> Handler<M> {
    match raw.op0_kind() {
        OpKind::Register if raw.op0_register().is_segment_register() => |vm, i| {
            // A selector with 32- or 64-bit operand size: 16 bits are stored, as processors do for
            // 32 bits; 64 bits are zero-extended.
            let selector = vm.state.seg[i.raw.op0_register().number()].selector;
            if W::BYTES == 4 {
                let sp = vm.stack_moved(-4);
                let at = sp & vm.mode.sp_mask;
                let la = vm.linear(SS, at, 4, true)?;
                vm.store_linear(la, selector)?;
                vm.state.gpr[RSP] = sp;
                Ok(())
            } else {
                vm.push(W::from_u64(u64::from(selector)))
            }
        },
        OpKind::Register => |vm, i| {
            let value = W::get(&vm.state, i.dst);
            vm.push(value)
        },
        OpKind::Memory => |vm, i| {
            let offset = vm.address(i);
            let value = vm.load::<W>(i.seg, offset)?;
            vm.push(value)
        },
        _ => |vm, i| vm.push(W::from_u64(i.imm)),
    }
}

pub(super) fn pop<M: Memory>(raw: &Instruction) -> Handler<M> {
    if raw.op0_kind() == OpKind::Register && raw.op0_register().is_segment_register() {
        return pop_segment;
    }
    match (operand_bytes(raw), raw.op0_kind()) {
        (2, OpKind::Register) => pop_register::<M, u16>,
        (4, OpKind::Register) => pop_register::<M, u32>,
        (_, OpKind::Register) => pop_register::<M, u64>,
        (2, _) => pop_memory::<M, u16>,
        (4, _) => pop_memory::<M, u32>,
        _ => pop_memory::<M, u64>,
    }
}

fn pop_register<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    // POP SP: the popped value wins over the increment.
    let value = vm.pop::<W>()?;
    W::set(&mut vm.state, i.dst, value);
    Ok(())
}

fn pop_memory<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    // An address with RSP is computed after the increment.
    let before = vm.state.gpr[RSP];
    let value = vm.pop::<W>()?;
    let offset = vm.address(i);
    let done = vm.store(i.seg, offset, value);
    if done.is_err() {
        vm.state.gpr[RSP] = before;
    }
    done
}

fn pop_segment<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let bytes = i.raw.stack_pointer_increment().unsigned_abs() as usize;
    let register = i.raw.op0_register().number();
    let selector = vm.peek(2, 0)? as u16;
    // The rest of the slot is not read, but the pointer moves by all of it.
    let sp = vm.stack_moved(bytes as i64);
    let stack_16 = vm.mode.sp_mask == 0xffff;
    vm.load_segment(register, selector)?;
    if stack_16 {
        vm.state.gpr[RSP] = vm.state.gpr[RSP] & !0xffff | sp & 0xffff;
    } else {
        vm.state.gpr[RSP] = sp;
    }
    vm.segment_loaded(register)
}

/// PUSHA and PUSHAD.
pub(super) fn pusha<M: Memory, W: Width>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    let before = vm.state.gpr[RSP];
    for r in 0..8 {
        let value = if r == RSP { W::from_u64(before) } else { W::get(&vm.state, r as u8) };
        if let Err(trap) = vm.push(value) {
            vm.state.gpr[RSP] = before;
            return Err(trap);
        }
    }
    Ok(())
}

/// POPA and POPAD: the stack pointer's slot is skipped.
pub(super) fn popa<M: Memory, W: Width>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    let mut values = [W::default(); 8];
    for r in (0..8).rev() {
        let depth = (7 - r as u64) * W::BYTES;
        values[r] = W::from_u64(vm.peek(W::BYTES as usize, depth)?);
    }
    for (r, value) in values.into_iter().enumerate() {
        if r != RSP {
            W::set(&mut vm.state, r as u8, value);
        }
    }
    vm.state.gpr[RSP] = vm.stack_moved(8 * W::BYTES as i64);
    Ok(())
}

/// PUSHF, PUSHFD and PUSHFQ.
pub(super) fn pushf<M: Memory, W: Width>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    let mut flags = vm.state.rflags & !(Rflags::VM | Rflags::RF).bits();
    if vm.state.v86() && vm.state.iopl() < 3 {
        if !vm.state.cr4(Cr4::VME) || W::BYTES != 2 {
            return Err(Trap::gp0());
        }
        // Virtual-mode extensions: IF shows VIF, IOPL shows 3.
        flags |= Rflags::IOPL.bits();
        flags &= !Rflags::IF.bits();
        if vm.state.flag(Rflags::VIF) {
            flags |= Rflags::IF.bits();
        }
    }
    vm.push(W::from_u64(flags))
}

/// POPF, POPFD and POPFQ.
pub(super) fn popf<M: Memory, W: Width>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    let v86 = vm.state.v86();
    if v86 && vm.state.iopl() < 3 {
        return popf_v86(vm, W::BYTES);
    }
    let image = vm.pop::<W>()?.to_u64();
    let mut changeable = (Rflags::STATUS | Rflags::TF | Rflags::DF | Rflags::NT).bits();
    if W::BYTES > 2 {
        changeable |= (Rflags::AC | Rflags::ID).bits();
    }
    if vm.state.cpl == 0 || !vm.state.protected() {
        changeable |= Rflags::IOPL.bits();
    }
    if v86 || vm.state.cpl <= vm.state.iopl() {
        changeable |= Rflags::IF.bits();
    }
    let kept = vm.state.rflags & !changeable & !Rflags::RF.bits();
    vm.state.rflags = kept | image & changeable;
    Err(Trap::Exit)
}

/// POPF in virtual-8086 mode with IOPL below 3: the virtual interrupt flag (CR4.VME), or #GP.
fn popf_v86<M: Memory>(vm: &mut Interp<M>, bytes: u64) -> Outcome {
    if !vm.state.cr4(Cr4::VME) || bytes != 2 {
        return Err(Trap::gp0());
    }
    let image = vm.peek(2, 0)?;
    let wants_if = image & Rflags::IF.bits() != 0;
    if image & Rflags::TF.bits() != 0 || wants_if && vm.state.flag(Rflags::VIP) {
        return Err(Trap::gp0());
    }
    vm.state.gpr[RSP] = vm.stack_moved(2);
    let changeable = (Rflags::STATUS | Rflags::TF | Rflags::DF | Rflags::NT).bits();
    let mut flags = vm.state.rflags & !changeable | image & changeable;
    flags &= !(Rflags::VIF | Rflags::RF).bits();
    if wants_if {
        flags |= Rflags::VIF.bits();
    }
    vm.state.rflags = flags;
    Err(Trap::Exit)
}

/// ENTER (SDM vol. 2, "ENTER").
pub(super) fn enter<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let size = u64::from(i.raw.immediate16());
    let level = i.raw.immediate8_2nd() & 31;
    let before = vm.state.gpr[RSP];
    let done = enter_frame::<M, W>(vm, size, level);
    if done.is_err() {
        vm.state.gpr[RSP] = before;
    }
    done
}

fn enter_frame<M: Memory, W: Width>(vm: &mut Interp<M>, size: u64, level: u8) -> Outcome {
    let mask = vm.mode.sp_mask;
    let mut frame = vm.state.gpr[RBP];
    vm.push(W::get(&vm.state, RBP as u8))?;
    let new_frame = vm.state.gpr[RSP];
    if level > 0 {
        for _ in 1..level {
            frame = frame.wrapping_sub(W::BYTES);
            let value = vm.load::<W>(SS, frame & mask)?;
            vm.push(value)?;
        }
        vm.push(W::from_u64(new_frame))?;
    }
    let sp = vm.stack_moved(-(size as i64));
    // The final stack top must be writable (SDM: a #PF or #SS is raised before state changes).
    let la = vm.linear(SS, sp & mask, W::BYTES, true)?;
    vm.check_alignment(la, W::BYTES)?;
    vm.probe(la, W::BYTES, vm.mode.privilege)?;
    vm.state.gpr[RSP] = sp;
    W::set(&mut vm.state, RBP as u8, W::from_u64(new_frame));
    Ok(())
}

/// LEAVE.
pub(super) fn leave<M: Memory, W: Width>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    let mask = vm.mode.sp_mask;
    let frame = vm.state.gpr[RBP] & mask;
    let value = vm.load::<W>(SS, frame)?;
    let sp = frame.wrapping_add(W::BYTES) & mask;
    let old = vm.state.gpr[RSP];
    vm.state.gpr[RSP] = if mask == 0xffff { old & !mask | sp } else { sp };
    W::set(&mut vm.state, RBP as u8, value);
    Ok(())
}

/// Handlers that come in three operand sizes, picked by what they do to the stack pointer or by name.
pub(super) fn by_mnemonic<M: Memory>(raw: &Instruction) -> Handler<M> {
    match raw.mnemonic() {
        Mnemonic::Pusha => pusha::<M, u16>,
        Mnemonic::Pushad => pusha::<M, u32>,
        Mnemonic::Popa => popa::<M, u16>,
        Mnemonic::Popad => popa::<M, u32>,
        Mnemonic::Pushf => pushf::<M, u16>,
        Mnemonic::Pushfd => pushf::<M, u32>,
        Mnemonic::Pushfq => pushf::<M, u64>,
        Mnemonic::Popf => popf::<M, u16>,
        Mnemonic::Popfd => popf::<M, u32>,
        Mnemonic::Popfq => popf::<M, u64>,
        Mnemonic::Enter => match raw.code() {
            iced_x86::Code::Enterw_imm16_imm8 => enter::<M, u16>,
            iced_x86::Code::Enterd_imm16_imm8 => enter::<M, u32>,
            _ => enter::<M, u64>,
        },
        _ => match raw.code() {
            iced_x86::Code::Leavew => leave::<M, u16>,
            iced_x86::Code::Leaved => leave::<M, u32>,
            _ => leave::<M, u64>,
        },
    }
}
