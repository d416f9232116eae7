//! Which region an access will probably go to.
//!
//! Problem: with shadow windows an access must find its region's window first, and what a pointer leads to
//! then waits for two loads instead of one. Scheme: a block is made when it is about to run, so most
//! addresses in it can be worked out from the registers; an access whose region is guessed takes that
//! region's window at once, and whether the guess was right is looked at on the side. Invariant: a guess
//! is only that. Nothing but speed may depend on it: a wrong one is found out when the access is made.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::classify::Class;
use crate::plan::Step;

/// The guest as it is about to enter the block.
#[derive(Clone, Copy)]
pub struct Start<'a> {
    pub registers: [u64; 16],
    /// Segment bases, as [`xenolith_cpu::state::sreg`] numbers them.
    pub bases: [u64; 6],
    /// The eight bytes at a linear address, if they can be had without side effects.
    pub read: &'a dyn Fn(u64) -> Option<u64>,
    /// Whether a guess for an instruction has been wrong before.
    pub misleads: &'a dyn Fn(&Instruction) -> bool,
}

impl std::fmt::Debug for Start<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Start").field("registers", &self.registers).finish_non_exhaustive()
    }
}

const RSP: usize = 4;
const RBP: usize = 5;
const SLOT_BYTES: u64 = 8;

/// Notes in each step of 64-bit code what region it will probably access: bits 32 to 51 of the address.
pub fn guess(steps: &mut [Step], start: &Start) {
    let mut values = start.registers.map(Some);
    for step in steps {
        let address = address(step, start, &values);
        if address.is_some() && !step.looks_up && !(start.misleads)(&step.insn) {
            step.region = address.map(|address| (address >> 32) as u32 & 0xf_ffff);
        }
        follow(step, start, &mut values);
    }
}

/// What the step's only access goes by: the base register where only a displacement is added, or else the
/// address.
fn address(step: &Step, start: &Start, values: &[Option<u64>; 16]) -> Option<u64> {
    let insn = &step.insn;
    let explicit = || {
        let base = insn.memory_base();
        let is_plain = base.is_gpr64()
            && insn.memory_index() == Register::None
            && !matches!(insn.memory_segment(), Register::FS | Register::GS);
        let operand = operand(insn)?;
        if is_plain { values[base.number()] } else { effective(insn, operand, start, values) }
    };
    match step.class {
        Class::Same | Class::Vector(_) | Class::JumpIndirect => explicit(),
        Class::Push | Class::Pop if insn.op0_kind() != OpKind::Memory => values[RSP],
        Class::Call | Class::Return | Class::PushFlags => values[RSP],
        Class::Leave => values[RBP],
        _ => None,
    }
}

/// Number of the memory operand.
fn operand(insn: &Instruction) -> Option<u32> {
    (0..insn.op_count()).find(|&n| insn.op_kind(n) == OpKind::Memory)
}

/// The linear address of a memory operand. An index that isn't known is taken for a small one.
fn effective(
    insn: &Instruction,
    operand: u32,
    start: &Start,
    values: &[Option<u64>; 16],
) -> Option<u64> {
    insn.virtual_address(operand, 0, |register: Register, _, _| {
        let full = register.full_register();
        match register {
            Register::FS | Register::GS => Some(start.bases[register.number()]),
            _ if full.is_gpr64() => {
                let value = values[full.number()];
                let value =
                    if register == insn.memory_base() { value? } else { value.unwrap_or(0) };
                Some(if register.size() == 4 { value & 0xffff_ffff } else { value })
            }
            _ => Some(0),
        }
    })
}

/// Follows what a step does to the registers' values.
fn follow(step: &Step, start: &Start, values: &mut [Option<u64>; 16]) {
    let insn = &step.insn;
    let moved = |value: Option<u64>, by: u64| value.map(|value| value.wrapping_add(by));
    match step.class {
        Class::Push | Class::Call | Class::PushFlags => {
            values[RSP] = moved(values[RSP], SLOT_BYTES.wrapping_neg());
            return;
        }
        Class::Pop if insn.op0_kind() == OpKind::Register => {
            let popped = values[RSP].and_then(|rsp| (start.read)(rsp));
            values[RSP] = moved(values[RSP], SLOT_BYTES);
            values[insn.op0_register().full_register().number()] = popped;
            return;
        }
        Class::Leave => {
            values[RSP] = moved(values[RBP], SLOT_BYTES);
            values[RBP] = values[RBP].and_then(|rbp| (start.read)(rbp));
            return;
        }
        _ => {}
    }
    let target = insn.op0_register();
    let written = |values: &[Option<u64>; 16]| {
        let source = insn.op1_register();
        match insn.mnemonic() {
            Mnemonic::Mov if source.is_gpr64() => values[source.number()],
            Mnemonic::Mov if insn.op1_kind() == OpKind::Memory => {
                effective(insn, 1, start, values).and_then(|at| (start.read)(at))
            }
            Mnemonic::Lea => effective(insn, 1, start, values),
            Mnemonic::Add if source == Register::None && insn.op1_kind() != OpKind::Memory => {
                moved(values[target.number()], insn.immediate(1))
            }
            Mnemonic::Sub if source == Register::None && insn.op1_kind() != OpKind::Memory => {
                moved(values[target.number()], insn.immediate(1).wrapping_neg())
            }
            _ => None,
        }
    };
    let plain = step.class == Class::Same && insn.op_count() == 2 && target.is_gpr64();
    let value = if plain { written(values) } else { None };
    for (register, known) in values.iter_mut().enumerate() {
        if step.uses.written & 1 << register != 0 {
            *known = None;
        }
    }
    if plain && step.uses.written & 1 << target.number() != 0 {
        values[target.number()] = value;
    }
}
