//! Random snippets.
//!
//! Problem: random code must go deep: several instructions that work on each other's results, whose memory
//! operands mostly lead somewhere, whose branches mostly arrive, and now and then not; and nothing that the
//! manual leaves undefined should be looked at by accident. Scheme: instructions are appended one by one. Each
//! gets a target for its memory operand, is assembled ([`assemble`](super::assemble)), decoded again by
//! the decoder, and *arranged*: what it takes from registers or memory without naming it (counts,
//! return addresses, selectors) is put where it will look, as far as that is foreseeable.
//! Invariant: a snippet depends on its seed, its number and the CPU model only.
//! Source: SDM vol. 2, "Instruction Format".

mod arrange;

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, OpAccess,
};
use std::sync::Arc;
use xenolith_cpu::cpuid::CpuidModel;
use xenolith_cpu::state::Rflags;

use super::assemble::{Assembled, Place, Registers, assemble};
use super::coverage;
use super::rng::Rng;
use super::template::{Table, Template};
use super::values::{number, vector_state};
use crate::snippet::image::PATTERNS;
use crate::snippet::judge::names_esp;
use crate::snippet::layout::{
    ABSENT, CODE, DATA, PAGE, RO, RWX, STACK, STACK_MID, STACK16_SP, UCODE32, UDATA,
};
use crate::snippet::undefined::read_flags;
use crate::snippet::{Bits, FLAGS, Snippet, System};

/// Instructions in a snippet at most.
const LENGTH_MAX: u64 = 8;
/// One 64-bit snippet of so many is a loop.
const LOOP_ODDS: u64 = 8;
/// Snippets that are best run together begin at multiples of this.
pub const BATCH: u64 = 128;
/// Attempts at an instruction before the snippet is taken as it is.
const ATTEMPTS: usize = 12;

/// See the module's head.
#[derive(Debug)]
pub struct Generator {
    tables: [Table; 3],
    model: Arc<CpuidModel>,
    factory: InstructionInfoFactory,
    /// 16-bit code needs an LDT.
    sixteen: bool,
}

/// A snippet being made.
struct Draft {
    snippet: Snippet,
    registers: Registers,
    /// Flags that are undefined here, whatever the operands were.
    undefined: u64,
    /// Vector registers that may have changed.
    vectors_touched: u16,
    /// Where the displacement of the last instruction is, and its length, if it branches.
    branch: Option<(usize, usize)>,
    /// Where instructions begin.
    starts: Vec<usize>,
}

impl Generator {
    /// `sixteen`: 16-bit code too.
    #[must_use]
    pub fn new(model: &Arc<CpuidModel>, sixteen: bool) -> Self {
        Self {
            tables: Bits::ALL.map(|bits| Table::new(model, bits)),
            model: Arc::clone(model),
            factory: InstructionInfoFactory::new(),
            sixteen,
        }
    }

    /// Snippet number `n` of a seed.
    pub fn snippet(&mut self, seed: u64, n: u64) -> Snippet {
        let rng = &mut Rng::of(seed, n);
        // 16-bit code has memory of its own, and every system its tables, so changing to them takes time.
        let (system, bits) = match ((n / BATCH) % 32, rng.below(16)) {
            (3 | 19, _) => (System::Real, Bits::B16),
            (11 | 27, _) => (System::V86, Bits::B16),
            (5, _) => (System::Protected, Bits::B16),
            (21, _) => (System::Protected, Bits::B32),
            (7 | 15 | 23 | 31, _) if self.sixteen => (System::Long, Bits::B16),
            (_, 0..=4) => (System::Long, Bits::B32),
            _ => (System::Long, Bits::B64),
        };
        let mut draft = start(rng, system, bits);
        let length = 1 + rng.below(LENGTH_MAX);
        for _ in 0..length {
            if !self.append(rng, &mut draft) {
                break;
            }
        }
        if draft.snippet.code.is_empty() {
            draft.snippet.code.push(0x90);
        }
        if bits == Bits::B64 && rng.one_in(LOOP_ODDS) {
            repeat(rng, &mut draft);
        }
        finish(rng, draft)
    }

    /// Appends an instruction; false when none was found that fits.
    fn append(&mut self, rng: &mut Rng, draft: &mut Draft) -> bool {
        let bits = draft.snippet.bits;
        let table = &self.tables[bits as usize];
        for _ in 0..ATTEMPTS {
            let template = if rng.one_in(2) {
                &table.all[rng.pick(&table.common)]
            } else {
                &table.all[rng.below(table.all.len() as u64) as usize]
            };
            let rip = draft.snippet.end();
            let place = Place { bits, rip, target: target(rng, bits, template, rip) };
            let mut registers = draft.registers;
            let Some(assembled) = assemble(rng, template, place, &mut registers) else { continue };
            let bytes = &assembled.bytes[..assembled.len];
            let insn = Decoder::with_ip(bits.number(), bytes, rip, DecoderOptions::NONE).decode();
            if !acceptable(rng, &insn, template, bytes, bits, &self.model) {
                continue;
            }
            if !coverage::may_run(&insn, draft.snippet.system) {
                continue;
            }
            if names_esp(bits, &insn) || read_flags(&insn) & draft.undefined != 0 && !rng.one_in(32)
            {
                continue;
            }
            draft.registers = registers;
            self.commit(rng, draft, &insn, &assembled);
            return true;
        }
        false
    }

    /// Puts the instruction into the snippet, with all that it wants.
    fn commit(&mut self, rng: &mut Rng, draft: &mut Draft, insn: &Instruction, it: &Assembled) {
        let at = draft.snippet.code.len();
        draft.starts.push(at);
        draft.snippet.code.extend_from_slice(&it.bytes[..it.len]);
        // The branch before may skip this one.
        if let Some((at, len)) = draft.branch.take()
            && rng.one_in(3)
        {
            draft.snippet.code[at..at + len].copy_from_slice(&(it.len as u64).to_le_bytes()[..len]);
        }
        if insn.is_invalid() {
            return;
        }
        let next = draft.snippet.end();
        arrange::arrange(rng, draft, insn, it, next);
        let rsp = draft.registers.initial[4];
        let rsp_known = draft.registers.is_known(4);
        let info = self.factory.info(insn);
        for used in info.used_registers() {
            let register = used.register();
            if register.is_vector_register() {
                draft.vectors_touched |= 1 << (register.number() & 15);
            }
            let full = register.full_register();
            if !full.is_gpr64() {
                continue;
            }
            let bit = 1u16 << full.number();
            draft.registers.free &= !bit;
            let writes = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead);
            if writes && used.access() != OpAccess::NoMemAccess {
                draft.registers.known &= !bit;
            }
        }
        let moved = insn.stack_pointer_increment();
        let plain = matches!(
            insn.flow_control(),
            FlowControl::Next | FlowControl::Call | FlowControl::Return
        );
        let explicit = (0..insn.op_count()).any(|n| {
            insn.op_register(n).full_register().number() == 4
                && insn.op_register(n).full_register().is_gpr64()
        });
        if rsp_known && moved != 0 && plain && !explicit {
            // Pushes and pops move it by as much as they say: it stays known. That is kept in the
            // initial values, which are looked at only through `known` from here on.
            draft.registers.known |= 1 << 4;
            draft.registers.initial[4] = rsp.wrapping_add(moved as u64);
        }
        draft.undefined = undefined_after(insn, draft.undefined);
    }
}

/// Whether the decoder sees an instruction that may be compared, and mostly the one that was meant.
fn acceptable(
    rng: &mut Rng,
    insn: &Instruction,
    template: &Template,
    bytes: &[u8],
    bits: Bits,
    model: &CpuidModel,
) -> bool {
    if insn.is_invalid() {
        return rng.one_in(24) && bytes.len() > 1;
    }
    let wanted = insn.code() == template.code;
    insn.len() == bytes.len()
        && coverage::is_compared(insn, bytes, bits.number(), model)
        && (wanted || rng.one_in(6))
}

/// As [`crate::snippet::undefined::undefined_flags`], for every count.
fn undefined_after(insn: &Instruction, before: u64) -> u64 {
    use iced_x86::{Mnemonic as M, RflagsBits as R};
    const ALL: u64 = Rflags::STATUS.bits();
    const SHIFTED: u64 = Rflags::CF.bits() | Rflags::AF.bits() | Rflags::OF.bits();
    let by_cl = (0..insn.op_count()).any(|n| insn.op_register(n) == iced_x86::Register::CL);
    match insn.mnemonic() {
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr if by_cl => {
            before | SHIFTED
        }
        M::Shld | M::Shrd => before | ALL,
        _ => {
            let pairs = [
                (R::CF, Rflags::CF),
                (R::PF, Rflags::PF),
                (R::AF, Rflags::AF),
                (R::ZF, Rflags::ZF),
                (R::SF, Rflags::SF),
                (R::OF, Rflags::OF),
            ];
            let of = |bits: u32| {
                let named = pairs.iter().filter(|(bit, _)| bits & bit != 0);
                named.fold(0, |all, (_, flag)| all | flag.bits())
            };
            let settled = of(insn.rflags_written() | insn.rflags_cleared() | insn.rflags_set());
            before & !settled | of(insn.rflags_undefined())
        }
    }
}

/// An empty snippet with random registers.
fn start(rng: &mut Rng, system: System, bits: Bits) -> Draft {
    let mut snippet = Snippet::under(system, bits, Vec::with_capacity(64));
    let count = if bits == Bits::B64 { 16 } else { 8 };
    for n in (0..count).filter(|&n| n != 4) {
        let value = number(rng);
        snippet.gpr[n] = if bits == Bits::B64 { value } else { value & 0xffff_ffff };
    }
    snippet.gpr[4] = stack_pointer(rng, bits);
    let status = rng.next() & Rflags::STATUS.bits();
    snippet.rflags = FLAGS | status;
    for (odds, flag) in [(6, Rflags::DF), (24, Rflags::AC), (48, Rflags::TF), (32, Rflags::RF)] {
        if rng.one_in(odds) {
            snippet.rflags |= flag.bits();
        }
    }
    if system == System::V86 && rng.one_in(2) {
        snippet.rflags |= Rflags::IOPL.bits();
    }
    if !rng.one_in(6) {
        snippet.vector.clone_from(vector_state(rng));
    }
    snippet.pattern = if rng.one_in(4) { 0 } else { rng.below(PATTERNS as u64) as u8 };
    snippet.rip = code_place(rng, bits);
    if bits == Bits::B32 && rng.one_in(12) {
        let n = rng.pick(&[0, 3, 3, 4, 5]);
        snippet.selectors[n] = rng.pick(&START_SELECTORS);
    }
    let registers = Registers {
        initial: snippet.gpr,
        known: u16::MAX,
        free: if bits == Bits::B64 { !0x10 } else { 0xef },
    };
    Draft { snippet, registers, undefined: 0, vectors_touched: 0, branch: None, starts: Vec::new() }
}

/// Data selectors that 32-bit code may start with instead of the flat one: null, flat, small,
/// expand-down, read-only, code. The host's kernel loads no other.
const START_SELECTORS: [u16; 7] = [0, UDATA, 0x0f, 0x1f, 0x27, 0x2f, UCODE32];

fn stack_pointer(rng: &mut Rng, bits: Bits) -> u64 {
    if bits == Bits::B16 {
        return match rng.below(12) {
            0 => rng.below(20),
            1 => 0xffff - rng.below(20),
            _ => STACK16_SP + 2 * rng.below(64),
        };
    }
    match rng.below(24) {
        0 => STACK + rng.below(40),
        1 => STACK + 2 * PAGE - rng.below(40),
        2 => STACK_MID + rng.below(64),
        3 => DATA + 8 * rng.below(1024),
        _ => STACK_MID + 8 * rng.below(32) - 128,
    }
}

/// Where the code begins, as an offset in its segment.
fn code_place(rng: &mut Rng, bits: Bits) -> u64 {
    if bits == Bits::B16 {
        return match rng.below(24) {
            0 => 0x1_0000 - 1 - rng.below(24),
            1 => 0x1000 - rng.below(16),
            _ => 0,
        };
    }
    match rng.below(32) {
        0..=2 => CODE + PAGE - rng.below(24),
        3 => CODE + 2 * PAGE - 1 - rng.below(32),
        4..=7 => RWX + rng.below(64),
        8 => RWX + PAGE - 1 - rng.below(40),
        _ => CODE,
    }
}

/// Where a memory operand shall lead: mostly into the data pages, often to where something begins or ends.
fn target(rng: &mut Rng, bits: Bits, template: &Template, rip: u64) -> u64 {
    let size = u64::from(template.memory_size).max(1);
    let align = if template.aligned || template.lock || rng.one_in(2) {
        size.next_power_of_two().min(32)
    } else {
        1
    };
    let lines = PAGE / 32;
    if bits == Bits::B16 {
        return match rng.below(24) {
            0 => 0x1_0000 - rng.below(size + 1),
            1 => rng.below(4),
            2 => 0x1000 - rng.below(size + 1),
            3 => rng.next() & 0xffff,
            _ => (rng.below(0x2000 - size)) & !(align - 1),
        };
    }
    let near_end = |rng: &mut Rng, end: u64| {
        let back = if rng.one_in(3) { rng.below(size) } else { size + rng.below(8) };
        (end - back) & !(if template.aligned { align - 1 } else { 0 })
    };
    match rng.below(64) {
        0..=3 if !template.lock => near_end(rng, DATA + PAGE),
        4 => near_end(rng, DATA + 2 * PAGE),
        5 => DATA - rng.below(size + 1),
        6 | 7 => (RO + rng.below(PAGE - size)) & !(align - 1),
        8 => near_end(rng, RO + PAGE),
        9 => (CODE + rng.below(PAGE)) & !(align - 1),
        10 => (RWX + rng.below(PAGE - size)) & !(align - 1),
        // Its own code, or what lies behind it.
        11 | 12 => rip.wrapping_add(rng.below(32)),
        13..=15 => (STACK + rng.below(2 * PAGE - size)) & !(align - 1),
        16 => near_end(rng, STACK + 2 * PAGE),
        17 => ABSENT + rng.below(PAGE),
        18 if bits == Bits::B64 => rng.pick(&[
            0x7fff_ffff_fff8,
            0x8000_0000_0000,
            0x4141_4141_4141_4141,
            0xffff_7fff_ffff_ffff,
            0xffff_8fff_0000_0000,
        ]),
        18 => rng.next() & 0xffff_ffff,
        19 => (DATA + rng.below(2 * PAGE - size)) & !(align - 1) | u64::from(template.aligned),
        _ => {
            let line = DATA + 32 * rng.below(2 * lines - 1);
            line + if align == 1 { rng.below(32) } else { rng.below(32 / align) * align }
        }
    }
}

/// Makes a loop of the snippet, with a register that it leaves alone as its count; some others move from round to round.
fn repeat(rng: &mut Rng, draft: &mut Draft) {
    let free: Vec<u8> = (0..16).filter(|n| *n != 4 && draft.registers.free >> n & 1 != 0).collect();
    if free.is_empty() {
        return;
    }
    let count = rng.pick(&free);
    draft.registers.initial[usize::from(count)] = 2 + rng.below(6);
    let mut append = |bytes: &[u8]| {
        draft.starts.push(draft.snippet.code.len());
        draft.snippet.code.extend_from_slice(bytes);
    };
    // ADD r64, imm8 and SUB r64, imm8.
    let add = |to: u8, what: i8| [0x48 | to >> 3, 0x83, 0xc0 | to & 7, what.cast_unsigned()];
    let subtract = |from: u8, what: u8| [0x48 | from >> 3, 0x83, 0xe8 | from & 7, what];
    for _ in 0..rng.below(4) {
        let moved = rng.pick(&[0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        if moved != count {
            append(&add(moved, rng.pick(&[1, 4, 8, 16, 32, 64, -1, -8, -32])));
        }
    }
    append(&subtract(count, 1));
    let behind = draft.snippet.code.len() as i32 + 6;
    let [a, b, c, d] = (-behind).to_le_bytes();
    // JNE.
    draft.starts.push(draft.snippet.code.len());
    draft.snippet.code.extend_from_slice(&[0x0f, 0x85, a, b, c, d]);
}

/// Takes over what was chosen for the registers.
fn finish(rng: &mut Rng, draft: Draft) -> Snippet {
    let Draft { mut snippet, registers, .. } = draft;
    let count = if snippet.bits == Bits::B64 { 16 } else { 8 };
    for n in (0..count).filter(|&n| n != 4) {
        let value = registers.initial[n];
        snippet.gpr[n] = if snippet.bits == Bits::B64 { value } else { value & 0xffff_ffff };
    }
    // Upper halves that 16-bit addresses leave alone.
    if snippet.bits == Bits::B16 && rng.one_in(8) {
        let n = rng.below(8) as usize;
        if n != 4 {
            snippet.gpr[n] |= rng.next() & 0xffff_0000;
        }
    }
    snippet
}
