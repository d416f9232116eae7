//! What a block consists of, worked out before any of it is emitted.
//!
//! Problem: whether an access needs a check of its own depends on the accesses before it. Scheme: decode
//! and classify the whole block, follow which registers hold the same value but for a constant, and
//! gather accesses through the same value into *windows*: the first access of a window checks the
//! whole range that it and the later ones touch, and keeps the page's addend; the later ones need no
//! check. Invariants: a window's accesses lie in one straight run of code in which nothing leaves to
//! Rust and comes back, so no translation is flushed between them; a window is small, so that it seldom
//! crosses a page, and one that does is no error: its first access then goes to the interpreter and
//! the block is left there.

use iced_x86::{
    Decoder, Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess,
    OpKind, Register,
};

use crate::area::{WINDOWS_MAX, is_floating};
use crate::classify::{Class, classify, slot_bytes};
use crate::guess::{Start, guess};
use crate::hoist::{Loop, find_loop, hoist};
use crate::mode::Mode;

/// Bytes that a window spans at most: few where it must lie within a page or a segment, many where only
/// the region counts and leaving it faults.
const WINDOW_BYTES_MAX: i64 = 256;
const SHADOW_WINDOW_BYTES_MAX: i64 = 1 << 20;

/// Which guest registers an instruction reads and writes apart from its address: bits by number.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uses {
    pub any: u16,
    pub read: u16,
    pub written: u16,
    /// It writes its memory operand.
    pub stores: bool,
}

/// An access's part in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub window: u8,
    /// It checks the window.
    pub first: bool,
}

/// One instruction of a block.
#[derive(Clone, Debug, Default)]
pub struct Step {
    pub insn: Instruction,
    pub class: Class,
    pub uses: Uses,
    pub part: Option<Part>,
    /// Its accesses look into the inline TLB, also in a mode that uses shadow windows.
    pub looks_up: bool,
    /// What region its access will probably be to ([`crate::guess`]).
    pub region: Option<u32>,
}

impl Step {
    /// It loads SS as MOV and POP do, in a mode in which that needs no descriptor.
    #[must_use]
    pub fn loads_stack(&self) -> bool {
        matches!(self.class, Class::LoadSegment | Class::PopSegment)
            && self.insn.op0_register() == Register::SS
    }
}

/// A range of addresses that one check is made for.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Where it begins, from the first access's address (not positive), and its length in bytes.
    pub below: i32,
    pub bytes: u32,
    /// Some access writes.
    pub write: bool,
}

/// A block before it is emitted.
#[derive(Debug, Default)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub windows: Vec<Window>,
    /// The loop that the block is, if it is one.
    pub again: Loop,
    /// Guest bytes of the steps.
    pub bytes: usize,
    /// The last step is the last instruction of the block: nothing follows it.
    pub ends: bool,
    /// Some step is a vector instruction.
    pub vector: bool,
}

/// A value that a register or an address has: an unknown one plus a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Value {
    root: u32,
    offset: i64,
}

/// The roots of constant addresses: those that move with the code, and those that don't.
const BESIDE_CODE: u32 = u32::MAX;
const ABSOLUTE: u32 = u32::MAX - 1;

/// A window in the making.
#[derive(Debug)]
struct Draft {
    root: u32,
    segment: Register,
    from: i64,
    to: i64,
    write: bool,
    /// Where its first access is.
    first: i64,
    accesses: usize,
}

/// Memory that planning one block needs, kept for the next.
#[derive(Debug, Default)]
pub struct Drafts {
    drafts: Vec<Draft>,
    /// Step and draft of each access.
    members: Vec<(usize, usize)>,
}

pub(crate) struct Values {
    registers: [Value; 16],
    next_root: u32,
}

impl Values {
    pub(crate) fn new() -> Self {
        let value = |n: usize| Value { root: n as u32, offset: 0 };
        Self { registers: std::array::from_fn(value), next_root: 16 }
    }

    /// What has been added to a register's value at first, if it is that and a constant.
    pub(crate) fn moved(&self, register: usize) -> Option<i64> {
        let Value { root, offset } = self.registers[register];
        (root == register as u32).then_some(offset)
    }

    fn set(&mut self, register: usize, value: Value) {
        self.registers[register] = value;
    }

    fn forget(&mut self, register: usize) {
        self.registers[register] = Value { root: self.next_root, offset: 0 };
        self.next_root += 1;
    }

    fn shift(&mut self, register: usize, by: i64) {
        let value = &mut self.registers[register];
        value.offset = value.offset.wrapping_add(by);
    }
}

const RSP: usize = 4;
const RBP: usize = 5;

/// What steers a plan.
#[derive(Clone, Copy)]
pub struct Limits<'a> {
    pub length_max: usize,
    /// Whether the CPU model has an instruction.
    pub allowed: &'a dyn Fn(&Instruction) -> bool,
    pub decoder_options: u32,
    pub windows: bool,
    /// Blocks count the instructions they run.
    pub counts: bool,
    /// The block has been seen at work: if it is a loop, several rounds are made of it.
    pub unrolls: bool,
    /// The code segment's limit.
    pub code_limit: u64,
    /// Whether an instruction had better not go through shadow windows: it faults too often there.
    pub looks_up: &'a dyn Fn(&Instruction) -> bool,
    /// What regions are guessed by, if they are to be.
    pub start: Option<&'a Start<'a>>,
}

impl std::fmt::Debug for Limits<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limits").field("length_max", &self.length_max).finish_non_exhaustive()
    }
}

/// Plans the block at `rip`, whose code `bytes` begin with. Without steps if it begins with nothing that
/// can be decoded. `old` and `drafts` are there for their memory.
pub fn plan(
    mode: Mode,
    rip: u64,
    bytes: &[u8],
    limits: &Limits,
    info: &mut InstructionInfoFactory,
    old: Plan,
    drafts: &mut Drafts,
) -> Plan {
    let bits = u32::from(mode.bits);
    let mut decoder = Decoder::with_ip(bits, bytes, rip, limits.decoder_options);
    let Plan { mut steps, mut windows, mut again, .. } = old;
    steps.clear();
    windows.clear();
    // In flat 32-bit code with shadow windows an address's delta is a constant: nothing is to be kept.
    let constant = mode.shadow && mode.bits < 64 && !mode.segmented;
    let mut ends = false;
    let mut done = 0;
    while steps.len() < limits.length_max && !ends && decoder.can_decode() {
        // Decoded where it stays: to copy an instruction waits for the decoder's stores.
        steps.push(Step::default());
        let Some(step) = steps.last_mut() else { break };
        decoder.decode_out(&mut step.insn);
        let insn = &step.insn;
        if insn.is_invalid() {
            steps.pop();
            break;
        }
        let allowed = (limits.allowed)(insn);
        let mut class = if allowed { classify(insn, mode) } else { Class::HandOver };
        if class.is_relative() && insn.near_branch_target() > limits.code_limit {
            // The branch itself faults when it is taken.
            class = Class::HandOver;
        }
        if class.is_relative() && insn.op0_kind() == OpKind::NearBranch16 && is_floating(rip) {
            // It goes to some of its address's bits, which aren't known.
            class = Class::HandOver;
        }
        done += insn.len();
        ends = class.ends_block(insn);
        let whole = class == Class::String || class.changes_segment();
        step.looks_up = !mode.shadow || whole || (limits.looks_up)(insn);
        step.class = class;
        // Nobody asks where the window's address is the guest's with FS for a segment.
        let goes_by_segment = constant
            && !step.looks_up
            && step.insn.segment_prefix() == Register::None
            && !has_high_byte(&step.insn);
        if !goes_by_segment {
            step.uses = uses(&step.insn, info);
        }
    }
    // A load of SS holds interrupts off for one instruction more, which must be in the block, and plain.
    for number in 0..steps.len() {
        let next = steps.get(number + 1).map(|step| step.class);
        if steps[number].loads_stack() && next != Some(Class::Same) {
            steps[number].class = Class::HandOver;
        }
    }
    // So does STI: it must not be the last.
    if steps.last().is_some_and(|step| step.class == Class::SetInterrupts) {
        let last = steps.len() - 1;
        steps[last].class = Class::HandOver;
    }
    if let Some(start) = limits.start {
        guess(&mut steps, start);
    }
    let vector = steps.iter().any(|step| matches!(step.class, Class::Vector(_)));
    let keeps = limits.windows && !constant && !mode.expands_down;
    if keeps {
        gather(mode, &mut steps, &mut windows, drafts);
    }
    // Where blocks count, each round must look.
    find_loop(mode, rip, &steps, limits.unrolls && !limits.counts, &mut again);
    again.ahead.clear();
    if keeps && mode.bits == 64 {
        hoist(mode, &mut steps, &mut windows, &mut again);
    }
    Plan { steps, windows, again, bytes: done, ends, vector }
}

/// Registers that `insn` uses as data.
fn uses(insn: &Instruction, info: &mut InstructionInfoFactory) -> Uses {
    let mut uses = Uses::default();
    let info = info.info_options(insn, InstructionInfoOptions::NO_MEMORY_USAGE);
    let note = |uses: &mut Uses, register: Register, read: bool, write: bool| {
        let full = register.full_register();
        if full.is_gpr64() {
            let bit = 1 << full.number();
            uses.any |= bit;
            if read {
                uses.read |= bit;
            }
            if write {
                uses.written |= bit;
            }
        }
    };
    for n in 0..insn.op_count() {
        match insn.op_kind(n) {
            OpKind::Register => {
                let register = insn.op_register(n);
                let (read, write) = directions(info.op_access(n));
                // Narrow writes merge into the register.
                note(&mut uses, register, read || write && register.size() < 4, write);
            }
            OpKind::Memory => uses.stores |= directions(info.op_access(n)).1,
            _ => {}
        }
    }
    // What is neither operand nor address is implicit; a register that is both was noted above.
    let address = [insn.memory_base().full_register(), insn.memory_index().full_register()];
    for used in info.used_registers() {
        let register = used.register().full_register();
        if !address.contains(&register) {
            let (read, write) = directions(used.access());
            note(&mut uses, register, read || write && used.register().size() < 4, write);
        } else if directions(used.access()).1 && register.is_gpr64() {
            // An implicit write of a register that is also the address, as XCHG or POP have it.
            uses.written |= 1 << register.number();
        }
    }
    // A conditional write leaves the old value: bit scans of zero do.
    if matches!(insn.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr) {
        uses.read |= uses.written;
    }
    uses
}

/// AH, CH, DH or BH is an operand: no register of the instruction may need a REX prefix.
pub(crate) fn has_high_byte(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|n| {
        insn.op_kind(n) == OpKind::Register
            && matches!(
                insn.op_register(n),
                Register::AH | Register::CH | Register::DH | Register::BH
            )
    })
}

fn directions(access: OpAccess) -> (bool, bool) {
    match access {
        OpAccess::Read | OpAccess::CondRead => (true, false),
        OpAccess::Write => (false, true),
        OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
        OpAccess::None | OpAccess::NoMemAccess => (false, false),
    }
}

/// Finds the windows and marks their accesses.
fn gather(mode: Mode, steps: &mut [Step], windows: &mut Vec<Window>, memory: &mut Drafts) {
    let Drafts { drafts, members } = memory;
    drafts.clear();
    members.clear();
    let mut values = Values::new();
    // Drafts before this one are closed.
    let mut open = 0;
    let by_region = mode.shadow && !mode.segmented;
    let bytes_max = if by_region { SHADOW_WINDOW_BYTES_MAX } else { WINDOW_BYTES_MAX };
    for (number, step) in steps.iter().enumerate() {
        let loads_segment =
            matches!(step.class, Class::PopSegment | Class::LoadSegment | Class::LoadPointer);
        if step.class == Class::HandOver || loads_segment {
            open = drafts.len();
        } else if step.looks_up == mode.shadow {
            // Neither alone nor in a window of another kind.
        } else if let Some((value, segment, bytes, write)) = access(mode, step, &values) {
            let (from, to) = (value.offset, value.offset.wrapping_add(bytes));
            let fits = |draft: &Draft| {
                draft.root == value.root
                    && draft.segment == segment
                    && draft.to.max(to).wrapping_sub(draft.from.min(from)) <= bytes_max
            };
            match drafts[open..].iter().position(fits) {
                Some(at) => {
                    let draft = &mut drafts[open + at];
                    draft.from = draft.from.min(from);
                    draft.to = draft.to.max(to);
                    draft.write |= write;
                    draft.accesses += 1;
                    members.push((number, open + at));
                }
                None => {
                    members.push((number, drafts.len()));
                    let root = value.root;
                    drafts.push(Draft { root, segment, from, to, write, first: from, accesses: 1 });
                }
            }
        }
        follow(mode, step, &mut values);
    }
    for (number, draft) in drafts.iter().enumerate() {
        if draft.accesses == 1 {
            continue;
        }
        if windows.len() == WINDOWS_MAX {
            break;
        }
        let window = windows.len() as u8;
        let mut first = true;
        for &(step, _) in members.iter().filter(|&&(_, of)| of == number) {
            steps[step].part = Some(Part { window, first });
            first = false;
        }
        windows.push(Window {
            below: (draft.from - draft.first) as i32,
            bytes: (draft.to - draft.from) as u32,
            write: draft.write,
        });
    }
}

/// The one access of a step that can be part of a window: its address, segment, bytes, whether it writes.
fn access(mode: Mode, step: &Step, values: &Values) -> Option<(Value, Register, i64, bool)> {
    let insn = &step.insn;
    let slot = i64::from(slot_bytes(insn));
    let segment = if mode.segmented { Register::SS } else { Register::None };
    let stack = |by: i64, write: bool| {
        let sp = values.registers[RSP];
        let value = Value { offset: sp.offset.wrapping_add(by), ..sp };
        follows_stack(mode).then_some((value, segment, slot, write))
    };
    match step.class {
        Class::Push if insn.op0_kind() != OpKind::Memory => stack(-slot, true),
        Class::PushSegment => stack(-slot, true),
        Class::Pop => stack(0, false),
        Class::Call => stack(-slot, true),
        Class::Return => stack(0, false),
        Class::Leave => {
            let value = values.registers[RBP];
            follows_stack(mode).then_some((value, segment, slot, false))
        }
        Class::Same | Class::Vector(_) => explicit(mode, step, values),
        _ => None,
    }
}

fn explicit(mode: Mode, step: &Step, values: &Values) -> Option<(Value, Register, i64, bool)> {
    let insn = &step.insn;
    let has_memory = (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory);
    let touches = insn.mnemonic() != Mnemonic::Lea && !is_hint(insn);
    let aligned = alignment(step) > 1;
    if !has_memory || !touches || aligned && !mode.shadow || insn.memory_index() != Register::None {
        return None;
    }
    let bytes = insn.memory_size().size().max(1) as i64;
    let segment = match insn.memory_segment() {
        segment if mode.segmented => segment,
        // Outside 64-bit code each such access is checked.
        Register::FS | Register::GS if mode.bits < 64 => return None,
        segment @ (Register::FS | Register::GS) => segment,
        _ => Register::None,
    };
    let base = insn.memory_base();
    let value = if base == Register::None || insn.is_ip_rel_memory_operand() {
        let root = if insn.is_ip_rel_memory_operand() { BESIDE_CODE } else { ABSOLUTE };
        if mode.segmented && insn.memory_displ_size() != u32::from(mode.bits / 8) {
            return None;
        }
        Value { root, offset: insn.memory_displacement64() as i64 }
    } else {
        if base.size() != usize::from(mode.bits / 8) {
            return None;
        }
        let value = values.registers[base.full_register().number()];
        let displacement = signed(insn.memory_displacement64(), base.size());
        Value { offset: value.offset.wrapping_add(displacement), ..value }
    };
    Some((value, segment, bytes, step.uses.stores))
}

/// A number of `width` bytes as a signed one, also where iced shows it zero-extended.
fn signed(number: u64, width: usize) -> i64 {
    match width {
        2 => i64::from(number as i16),
        4 => i64::from(number as i32),
        _ => number as i64,
    }
}

/// The stack pointer is as wide as the addresses that are followed, which are the code's.
fn follows_stack(mode: Mode) -> bool {
    !mode.segmented || mode.stack16 == (mode.bits == 16)
}

/// Follows what a step does to the values of registers: as many of their bits as the code's addresses
/// have.
pub(crate) fn follow(mode: Mode, step: &Step, values: &mut Values) {
    let insn = &step.insn;
    let slot = i64::from(slot_bytes(insn));
    let width = usize::from(mode.bits / 8);
    match step.class {
        Class::Push
        | Class::Pop
        | Class::Leave
        | Class::PushFlags
        | Class::PopFlags
        | Class::PushSegment
        | Class::PopSegment
        | Class::PushAll
        | Class::PopAll
            if !follows_stack(mode) =>
        {
            values.forget(RSP);
        }
        Class::Push | Class::PushSegment | Class::PushAll => return values.shift(RSP, -slot),
        Class::PopSegment => return values.shift(RSP, slot),
        Class::Pop => {
            values.shift(RSP, slot);
            return values.forget(insn.op0_register().full_register().number());
        }
        Class::Leave => {
            let frame = values.registers[RBP];
            values.set(RSP, Value { offset: frame.offset.wrapping_add(slot), ..frame });
            return values.forget(RBP);
        }
        Class::PushFlags => return values.shift(RSP, -slot),
        Class::PopFlags => return values.shift(RSP, slot),
        Class::HandOver => {
            for register in 0..16 {
                values.forget(register);
            }
            return;
        }
        _ => {}
    }
    let target = insn.op0_register();
    let plain = matches!(insn.op_count(), 1 | 2)
        && insn.op0_kind() == OpKind::Register
        && target.is_gpr()
        && target.size() >= width
        && !insn.has_lock_prefix();
    if plain {
        let number = target.full_register().number();
        let immediate = || signed(insn.immediate(1), width);
        let constant = !matches!(insn.op1_kind(), OpKind::Register | OpKind::Memory);
        match insn.mnemonic() {
            Mnemonic::Cmp | Mnemonic::Test => return,
            Mnemonic::Inc => return values.shift(number, 1),
            Mnemonic::Dec => return values.shift(number, -1),
            Mnemonic::Add if constant => return values.shift(number, immediate()),
            Mnemonic::Sub if constant => return values.shift(number, immediate().wrapping_neg()),
            Mnemonic::Mov if insn.op1_kind() == OpKind::Register => {
                let source = insn.op1_register().full_register();
                if source.is_gpr64() {
                    let value = values.registers[source.number()];
                    return values.set(number, value);
                }
            }
            Mnemonic::Lea if insn.memory_index() == Register::None => {
                let base = insn.memory_base();
                if base.is_gpr() && base.size() >= width {
                    let value = values.registers[base.full_register().number()];
                    let displacement = signed(insn.memory_displacement64(), width);
                    let offset = value.offset.wrapping_add(displacement);
                    return values.set(number, Value { offset, ..value });
                }
            }
            _ => {}
        }
    }
    for register in 0..16 {
        if step.uses.written & 1 << register != 0 {
            values.forget(register);
        }
    }
}

/// What a step's memory operand must be a multiple of; 0 or 1 for any.
#[must_use]
pub fn alignment(step: &Step) -> u8 {
    match step.class {
        Class::Vector(plain) => plain.align,
        Class::Same if step.insn.mnemonic() == Mnemonic::Cmpxchg16b => 16,
        _ => 0,
    }
}

/// Instructions that do nothing to the state.
#[must_use]
pub fn is_hint(insn: &Instruction) -> bool {
    use Mnemonic as N;
    matches!(
        insn.mnemonic(),
        N::Nop
            | N::Stac
            | N::Clac
            | N::Cld
            | N::Endbr32
            | N::Endbr64
            | N::Prefetchnta
            | N::Prefetcht0
            | N::Prefetcht1
            | N::Prefetcht2
            | N::Prefetchw
    )
}
