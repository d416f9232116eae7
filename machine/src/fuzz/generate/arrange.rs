//! What instructions take without naming it, put where they will look.
//!
//! See the parent module. Everything here is a suggestion: it is done only for registers whose value may still
//! be chosen, and seldom left undone on purpose.

use iced_x86::{FlowControl, Instruction, Mnemonic as M, OpKind, Register};

use super::super::assemble::Assembled;
use super::super::rng::Rng;
use super::super::values::number;
use super::Draft;
use crate::snippet::layout::{
    BEYOND_SEL, DATA, DATA16, KCODE32, KDATA, PAGE, STACK16, UCODE32, UCODE64, UDATA,
};
use crate::snippet::{Bits, FLAGS, Piece};

/// Selectors that a host process has as well. Null ones but 0 become 0 whenever the host is interrupted.
const SELECTORS: [u16; 18] = [
    0,
    UDATA,
    UDATA & !3,
    UCODE32,
    KDATA,
    KCODE32,
    BEYOND_SEL,
    BEYOND_SEL | 7,
    0x0f,
    0x1f,
    0x27,
    0x2f,
    0x37,
    0x3f,
    0x47,
    0x57,
    0x0d,
    0x87,
];

pub fn arrange(rng: &mut Rng, draft: &mut Draft, insn: &Instruction, it: &Assembled, next: u64) {
    if rng.one_in(12) {
        return;
    }
    if insn.is_string_instruction() {
        string(rng, draft, insn);
        return;
    }
    if let Some((n, size, scale)) = it.vector_index {
        vector_index(rng, draft, n, size, scale);
    }
    match insn.mnemonic() {
        M::Xlatb => {
            let al = draft.registers.initial[0] & 0xff;
            let base = data(rng, draft.snippet.bits).wrapping_sub(al);
            if draft.registers.is_known(0) {
                draft.registers.choose(3, base);
            }
        }
        M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu => {
            let at = data(rng, draft.snippet.bits);
            draft.registers.choose(7, at);
        }
        M::Div | M::Idiv => {
            let high = if rng.one_in(2) { rng.below(4) } else { u64::MAX };
            draft.registers.choose(2, high);
        }
        M::Bt | M::Bts | M::Btr | M::Btc if insn.op0_kind() == OpKind::Memory => {
            let register = insn.op1_register();
            if register.is_gpr() {
                let bit = i64::from(rng.next() as i16) >> rng.below(10);
                draft.registers.choose(register.full_register().number(), bit as u64);
            }
        }
        M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b => compare_exchange(rng, draft, insn, it),
        M::Loop | M::Loope | M::Loopne => repeat(rng, draft, insn),
        M::Ret | M::Retf | M::Iret | M::Iretd | M::Iretq => returns(rng, draft, insn, next),
        M::Popf | M::Popfd | M::Popfq => {
            let flags = rng.next() & 0x8d5 | rng.pick(&[0, 0, 0x400, 0x4000, 0x4_0000, 0x20_0000]);
            stack(draft, &(flags | FLAGS).to_le_bytes());
        }
        M::Jmp | M::Call if insn.flow_control() != FlowControl::ConditionalBranch => {
            jump(rng, draft, insn, it, next);
        }
        M::Mov | M::Pop | M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => {
            segment(rng, draft, insn, it);
        }
        M::Leave => {
            let at = draft.registers.initial[4].wrapping_add(8 * rng.below(4));
            draft.registers.choose(5, at);
        }
        M::Wrfsbase | M::Wrgsbase => {
            let register = insn.op0_register().full_register().number();
            let base = if rng.one_in(3) { number(rng) } else { rng.below(256) };
            draft.registers.choose(register, base);
        }
        M::Bound => {
            if let Some(at) = it.target {
                let mut bounds = [0; 16];
                rng.fill(&mut bounds);
                memory(draft, at, &bounds);
            }
        }
        _ => {}
    }
    if insn.is_jcc_short_or_near() || matches!(insn.mnemonic(), M::Jrcxz | M::Jecxz | M::Jcxz) {
        branch(draft, insn);
    }
}

/// An address, or offset, in the data pages.
fn data(rng: &mut Rng, bits: Bits) -> u64 {
    let offset = match rng.below(12) {
        0 => PAGE - rng.below(24),
        1 => 2 * PAGE - rng.below(24),
        2 => rng.below(16),
        _ => 256 + 8 * rng.below(900),
    };
    if bits == Bits::B16 { offset } else { DATA + offset }
}

fn string(rng: &mut Rng, draft: &mut Draft, insn: &Instruction) {
    let bits = draft.snippet.bits;
    let narrow = (0..insn.op_count())
        .any(|n| matches!(insn.op_kind(n), OpKind::MemorySegESI | OpKind::MemoryESEDI));
    let upper = if bits == Bits::B64 && narrow { rng.next() << 32 } else { 0 };
    let count = if rng.one_in(6) { 0 } else { rng.below(40) };
    for (n, value) in [(1, count), (6, data(rng, bits)), (7, data(rng, bits))] {
        draft.registers.choose(n, value | upper);
    }
    // Like bytes, so that comparisons go on.
    if rng.one_in(3) && bits != Bits::B16 {
        draft.snippet.pattern = 0;
    }
}

/// Small indices in the lanes of a vector register that indexes memory.
fn vector_index(rng: &mut Rng, draft: &mut Draft, n: usize, size: u8, scale: u8) {
    if draft.vectors_touched >> n & 1 == 1 {
        return;
    }
    let mut lanes = draft.snippet.vector.ymm(n);
    let far = rng.one_in(6);
    for lane in lanes.chunks_exact_mut(usize::from(size)) {
        let mut value = rng.below(512) as i64 - 256;
        if far && rng.one_in(3) {
            value = 0x4000;
        }
        let value = value / i64::from(scale.max(1));
        let len = lane.len();
        lane.copy_from_slice(&value.to_le_bytes()[..len]);
    }
    draft.snippet.vector.set_ymm(n, &lanes);
    draft.vectors_touched |= 1 << n;
}

/// Memory, by linear address in flat segments and by offset in 16-bit code's data segment.
fn memory(draft: &mut Draft, at: u64, bytes: &[u8]) {
    let base = if draft.snippet.bits == Bits::B16 { DATA16 } else { 0 };
    draft.snippet.memory.push(Piece { at: base.wrapping_add(at), bytes: bytes.to_vec() });
}

/// Bytes where the stack pointer points.
fn stack(draft: &mut Draft, bytes: &[u8]) {
    if !draft.registers.is_known(4) {
        return;
    }
    let base = if draft.snippet.bits == Bits::B16 { STACK16 } else { 0 };
    let at = base.wrapping_add(draft.registers.initial[4]);
    draft.snippet.memory.push(Piece { at, bytes: bytes.to_vec() });
}

/// Accumulator and memory of one value, so that they can be equal.
fn compare_exchange(rng: &mut Rng, draft: &mut Draft, insn: &Instruction, it: &Assembled) {
    if rng.one_in(2) {
        return;
    }
    let value = number(rng);
    if insn.op0_kind() == OpKind::Memory {
        let Some(at) = it.target else { return };
        if draft.registers.choose(0, value) {
            let high = number(rng);
            let high = if draft.registers.choose(2, high) { high } else { 0 };
            let wide = insn.mnemonic() == M::Cmpxchg16b;
            let mut bytes = value.to_le_bytes().to_vec();
            if wide {
                bytes.extend(high.to_le_bytes());
            } else if insn.mnemonic() == M::Cmpxchg8b {
                bytes[4..].copy_from_slice(&high.to_le_bytes()[..4]);
            }
            memory(draft, at, &bytes);
        }
    } else if draft.registers.choose(0, value) {
        draft.registers.choose(insn.op0_register().full_register().number(), value);
    }
}

/// Loops go back over what was already there, a few times.
fn repeat(rng: &mut Rng, draft: &mut Draft, insn: &Instruction) {
    let count = 1 + rng.below(6);
    let len = draft.snippet.code.len();
    if draft.registers.choose(1, count) && rng.one_in(2) && draft.starts.len() > 1 {
        let from = rng.pick(&draft.starts[..draft.starts.len() - 1]);
        let back = (from as i64 - len as i64) as i8;
        if i64::from(back) == from as i64 - len as i64 {
            draft.snippet.code[len - 1] = back as u8;
            // What the loop does again is not foreseen.
            (draft.registers.known, draft.registers.free) = (0, 0);
            return;
        }
    }
    branch(draft, insn);
}

/// Remembers the displacement, so that it may lead over the next instruction.
fn branch(draft: &mut Draft, insn: &Instruction) {
    let len = draft.snippet.code.len();
    let size = match insn.op0_kind() {
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
            // A short form has two bytes, prefixes apart.
            let short = matches!(
                insn.code().op_code().op_kind(0),
                iced_x86::OpCodeOperandKind::br16_1
                    | iced_x86::OpCodeOperandKind::br32_1
                    | iced_x86::OpCodeOperandKind::br64_1
            );
            match insn.op0_kind() {
                _ if short => 1,
                OpKind::NearBranch16 => 2,
                _ => 4,
            }
        }
        _ => return,
    };
    draft.branch = Some((len - size, size));
}

fn returns(rng: &mut Rng, draft: &mut Draft, insn: &Instruction, next: u64) {
    let bits = draft.snippet.bits;
    let code = draft.snippet.selectors[1];
    let size = insn.stack_pointer_increment();
    // Bytes of each word on the stack.
    let width: usize = match insn.mnemonic() {
        M::Iret => 2,
        M::Iretd => 4,
        M::Iretq => 8,
        _ => match format!("{:?}", insn.code()).as_str() {
            name if name.contains('q') => 8,
            name if name.contains('d') => 4,
            _ => 2,
        },
    };
    let far = matches!(insn.mnemonic(), M::Retf | M::Iret | M::Iretd | M::Iretq);
    let mut words = vec![next];
    if far {
        let other = rng.pick(&[code, code, code, UCODE32, UCODE64, 0x47, 0x6f, KCODE32, 0, 0x10]);
        let selector =
            if rng.one_in(6) && (bits != Bits::B64) == (other != UCODE64) { other } else { code };
        words.push(u64::from(selector));
    }
    if matches!(insn.mnemonic(), M::Iret | M::Iretd | M::Iretq) {
        words.push(FLAGS | rng.next() & 0x8d5);
        words.push(draft.registers.initial[4].wrapping_add(64));
        words.push(u64::from(draft.snippet.selectors[2]));
    }
    let bytes: Vec<u8> =
        words.iter().flat_map(|word| word.to_le_bytes()[..width].to_vec()).collect();
    if size != 0 || far {
        stack(draft, &bytes);
    }
}

fn jump(rng: &mut Rng, draft: &mut Draft, insn: &Instruction, it: &Assembled, next: u64) {
    let code = draft.snippet.selectors[1];
    match insn.op0_kind() {
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => branch(draft, insn),
        OpKind::Register => {
            let register = insn.op0_register().full_register();
            draft.registers.choose(register.number(), next);
        }
        OpKind::Memory => {
            let Some(at) = it.target else { return };
            let width = match insn.memory_size().size() {
                2 => 2,
                4 if insn.memory_size() != iced_x86::MemorySize::SegPtr16 => 4,
                4 => 2,
                6 => 4,
                _ => 8,
            };
            let mut bytes = next.to_le_bytes()[..width].to_vec();
            bytes.extend(code.to_le_bytes());
            memory(draft, at, &bytes);
        }
        OpKind::FarBranch16 | OpKind::FarBranch32 => {
            let len = draft.snippet.code.len();
            let width = if insn.op0_kind() == OpKind::FarBranch16 { 2 } else { 4 };
            let other = rng.pick(&[code, code, 0x47, 0x6f, KCODE32, UDATA, 0, BEYOND_SEL]);
            let at = len - width - 2;
            draft.snippet.code[at..at + width].copy_from_slice(&next.to_le_bytes()[..width]);
            draft.snippet.code[len - 2..].copy_from_slice(&other.to_le_bytes());
        }
        _ => {}
    }
}

/// Selectors for instructions that load one.
fn segment(rng: &mut Rng, draft: &mut Draft, insn: &Instruction, it: &Assembled) {
    let selector = rng.pick(&SELECTORS);
    if insn.mnemonic() == M::Mov {
        if !insn.op0_register().is_segment_register() {
            return;
        }
        if insn.op1_kind() == OpKind::Register {
            let upper = number(rng) & !0xffff;
            let register = insn.op1_register().full_register();
            draft.registers.choose(register.number(), upper | u64::from(selector));
        } else if let Some(at) = it.target {
            memory(draft, at, &selector.to_le_bytes());
        }
    } else if insn.mnemonic() == M::Pop {
        if insn.op0_register().is_segment_register() {
            stack(draft, &u64::from(selector).to_le_bytes());
        }
    } else if let Some(at) = it.target {
        let width = match insn.op0_register() {
            register if register.size() == 2 => 2,
            register if register.size() == 4 => 4,
            _ => 8,
        };
        let offset = data(rng, draft.snippet.bits);
        let mut bytes = offset.to_le_bytes()[..width].to_vec();
        bytes.extend(selector.to_le_bytes());
        memory(draft, at, &bytes);
    }
    // What a segment leads to is not foreseen any more.
    if insn.op0_register() == Register::SS || insn.mnemonic() == M::Lss {
        draft.registers.known &= !0x10;
    }
}
