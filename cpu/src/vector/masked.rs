//! Instructions that touch memory element by element: gathers, masked moves.
//!
//! Problem: only selected elements may be accessed or fault, and a gather that faults has finished the
//! elements before. A stub's single bounce buffer can't express that. Scheme: written out. Masked
//! stores probe every selected element before the first is written, so they happen whole or not at
//! all; a gather commits each element as it arrives and clears its mask, as hardware does.
//! Invariant: an unselected element's address is never formed into an access. Thread: the vCPU's.
//! Source: SDM vol. 2, VGATHERDPS to VPGATHERQQ, VMASKMOV, VPMASKMOV, MASKMOVQ, MASKMOVDQU. What a
//! faulting gather leaves (mask elements widened to all ones or zeros, upper halves cleared)
//! was measured on a Sapphire Rapids host and is what the SDM's pseudocode says; AMD's processors leave what
//! they haven't come to as it was, as measured on a Zen 4 host.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::classify::vector_number;
use super::{Operand, x87};
use crate::exception::Outcome;
use crate::state::VectorState;

/// What is moved. Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masked {
    /// MASKMOVQ (`mmx`), MASKMOVDQU.
    ByteStore {
        mmx: bool,
        len: u8,
    },
    /// VMASKMOVPS and its kin.
    Load {
        element: u8,
        len: u8,
    },
    Store {
        element: u8,
        len: u8,
    },
    Gather {
        element: u8,
        index: u8,
        count: u8,
    },
    /// Register operands that must differ don't.
    Refused,
}

impl Masked {
    pub fn of(insn: &Instruction) -> Option<Self> {
        use Mnemonic as M;
        let gather = |element, index| Some(Self::gather(insn, element, index));
        match insn.mnemonic() {
            M::Maskmovq => Some(Self::ByteStore { mmx: true, len: 8 }),
            M::Maskmovdqu | M::Vmaskmovdqu => Some(Self::ByteStore { mmx: false, len: 16 }),
            M::Vmaskmovps | M::Vpmaskmovd => Some(Self::vector(insn, 4)),
            M::Vmaskmovpd | M::Vpmaskmovq => Some(Self::vector(insn, 8)),
            M::Vpgatherdd | M::Vgatherdps => gather(4, 4),
            M::Vpgatherdq | M::Vgatherdpd => gather(8, 4),
            M::Vpgatherqd | M::Vgatherqps => gather(4, 8),
            M::Vpgatherqq | M::Vgatherqpd => gather(8, 8),
            _ => None,
        }
    }

    fn vector(insn: &Instruction, element: u8) -> Self {
        let len = if insn.op1_register().is_ymm() { 32 } else { 16 };
        if insn.op0_kind() == OpKind::Memory {
            Self::Store { element, len }
        } else {
            Self::Load { element, len }
        }
    }

    fn gather(insn: &Instruction, element: u8, index: u8) -> Self {
        let numbers = [insn.op0_register(), insn.memory_index(), insn.op2_register()]
            .map(|register| register.number());
        if numbers[0] == numbers[1] || numbers[0] == numbers[2] || numbers[1] == numbers[2] {
            return Self::Refused;
        }
        let bytes = |register: Register| if register.is_ymm() { 32 } else { 16 };
        let by_data = bytes(insn.op0_register()) / element;
        let by_index = bytes(insn.memory_index()) / index;
        Self::Gather { element, index, count: by_data.min(by_index) }
    }
}

pub fn execute(masked: Masked, insn: &Instruction, mut operand: Operand<'_>) -> Outcome {
    let register = |i| vector_number(insn.op_register(i)).map_or(0, usize::from);
    match masked {
        Masked::ByteStore { mmx, len } => byte_store(insn, operand, mmx, usize::from(len)),
        Masked::Load { element, len } => {
            let mask = operand.cpu.vector.ymm(register(1));
            let mut value = [0; 32];
            let (element, len) = (usize::from(element), usize::from(len));
            for run in Runs::of(&mask[..len], element) {
                operand.read(run.start as u64, &mut value[run])?;
            }
            operand.cpu.vector.set_ymm(register(0), &value);
            Ok(())
        }
        Masked::Store { element, len } => {
            let mask = operand.cpu.vector.ymm(register(1));
            let value = operand.cpu.vector.ymm(register(2));
            store(&mut operand, &value[..usize::from(len)], &mask, usize::from(element))
        }
        Masked::Gather { element, index, count } => {
            gather(insn, operand, usize::from(element), usize::from(index), usize::from(count))
        }
        Masked::Refused => Ok(()),
    }
}

/// Byte ranges of neighbouring selected elements (sign bit of the mask element set), in order.
struct Runs<'a> {
    mask: &'a [u8],
    element: usize,
    at: usize,
}

impl<'a> Runs<'a> {
    fn of(mask: &'a [u8], element: usize) -> Self {
        Self { mask, element, at: 0 }
    }
    fn selected(&self, at: usize) -> bool {
        self.mask[at + self.element - 1] & 0x80 != 0
    }
}

impl Iterator for Runs<'_> {
    type Item = std::ops::Range<usize>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.at < self.mask.len() && !self.selected(self.at) {
            self.at += self.element;
        }
        let start = self.at;
        while self.at < self.mask.len() && self.selected(self.at) {
            self.at += self.element;
        }
        (self.at > start).then_some(start..self.at)
    }
}

fn store(operand: &mut Operand<'_>, value: &[u8], mask: &[u8; 32], element: usize) -> Outcome {
    let mask = &mask[..value.len()];
    // As measured, Intel's processors try the first selected byte and then the last one: these are in CR2.
    if !operand.amd && element > 1 {
        let mut ends = Runs::of(mask, element);
        if let Some(first) = ends.next() {
            let last = ends.last().map_or(first.end, |run| run.end) - 1;
            for byte in [first.start, last] {
                let at = operand.address.wrapping_add(byte as u64);
                operand.mem.probe_write(operand.cpu, operand.segment, at, 1)?;
            }
        }
    }
    // One run needs no probe: a write that fails writes nothing.
    if Runs::of(mask, element).nth(1).is_some() {
        for run in Runs::of(mask, element) {
            let start = operand.address.wrapping_add(run.start as u64);
            operand.mem.probe_write(operand.cpu, operand.segment, start, run.len())?;
        }
    }
    for run in Runs::of(mask, element) {
        operand.write(run.start as u64, &value[run])?;
    }
    Ok(())
}

fn byte_store(insn: &Instruction, mut operand: Operand<'_>, mmx: bool, len: usize) -> Outcome {
    let rdi = operand.cpu.gpr[crate::state::reg::RDI];
    operand.address = match insn.op0_kind() {
        OpKind::MemorySegDI => rdi & 0xffff,
        OpKind::MemorySegEDI => rdi & 0xffff_ffff,
        _ => rdi,
    };
    if operand.amd {
        operand.check_for_ac(len, true)?;
    }
    let bytes = |state: &VectorState, register: Register| {
        let mut out = [0; 32];
        if mmx {
            out[..8].copy_from_slice(&x87::mm(state, register.number()));
        } else {
            out = state.ymm(register.number() & 15);
        }
        out
    };
    let value = bytes(&operand.cpu.vector, insn.op1_register());
    let mask = bytes(&operand.cpu.vector, insn.op2_register());
    store(&mut operand, &value[..len], &mask, 1)?;
    if mmx {
        x87::enter_mmx(&mut operand.cpu.vector);
    }
    Ok(())
}

fn gather(
    insn: &Instruction,
    mut operand: Operand<'_>,
    element: usize,
    index: usize,
    count: usize,
) -> Outcome {
    let number = |register| vector_number(register).map_or(0, usize::from);
    let (to, mask_register) = (number(insn.op0_register()), number(insn.op2_register()));
    let indices = operand.cpu.vector.ymm(number(insn.memory_index()));
    let mut value = operand.cpu.vector.ymm(to);
    let mut mask = operand.cpu.vector.ymm(mask_register);
    let active = element * count;

    let (value_before, mask_before) = (value, mask);
    value[active..].fill(0);
    mask[active..].fill(0);
    for lane in mask[..active].chunks_exact_mut(element) {
        let all = if lane[element - 1] & 0x80 != 0 { 0xff } else { 0 };
        lane.fill(all);
    }

    let base = insn.memory_base();
    let wide = base.is_gpr64() || (base == Register::None && insn.memory_displ_size() == 8);
    let start = if base == Register::None { 0 } else { operand.cpu.gpr[base.number() & 15] };
    let start = start.wrapping_add(insn.memory_displacement64());
    let scale = u64::from(insn.memory_index_scale());

    let mut outcome = Ok(());
    for i in 0..count {
        let lane = element * i..element * (i + 1);
        if mask[lane.start] == 0 {
            continue;
        }
        let at = &indices[index * i..index * (i + 1)];
        // Signed.
        let mut bytes = [if at[index - 1] & 0x80 != 0 { 0xff } else { 0 }; 8];
        bytes[..index].copy_from_slice(at);
        let address = start.wrapping_add(u64::from_le_bytes(bytes).wrapping_mul(scale));
        operand.address = if wide { address } else { address & 0xffff_ffff };
        let mut loaded = [0; 8];
        outcome = operand.read(0, &mut loaded[..element]);
        if outcome.is_err() {
            if operand.amd {
                mask[lane.start..].copy_from_slice(&mask_before[lane.start..]);
                value[lane.start..].copy_from_slice(&value_before[lane.start..]);
            }
            break;
        }
        value[lane.clone()].copy_from_slice(&loaded[..element]);
        mask[lane].fill(0);
    }
    operand.cpu.vector.set_ymm(to, &value);
    operand.cpu.vector.set_ymm(mask_register, &mask);
    outcome
}
