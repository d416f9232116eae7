//! x87 state: control instructions, pointers, environments.
//!
//! Problem: arithmetic runs on the host, but control instructions must not meet the host's own state,
//! and the instruction and data pointers must be the guest's. Scheme: the FXSAVE image in
//! `CpuState::vector` is the state; these functions edit it. Invariants of the image: FCW bit 6 set and
//! bits 7, 13-15 clear; FSW.ES and FSW.B set exactly when an unmasked flag is set (processors
//! recompute both on every load); slot n of the register area is ST(n), so whoever changes FSW.TOP
//! rotates the slots. Thread: the vCPU's. Source: SDM vol. 1, "x87 FPU Execution Environment",
//! "x87 State Image"; vol. 2, FLDENV, FNSAVE, FNSTENV, FRSTOR. Reserved bits and the recomputation of
//! ES were measured on a Sapphire Rapids host.

use iced_x86::{Encoder, Instruction};

use super::Operand;
use super::classify::x87_opcode;
use crate::exception::Outcome;
use crate::state::{CpuState, VectorState, reg, sreg};

const FCW: usize = VectorState::FCW;
const FSW: usize = VectorState::FSW;
const FTW: usize = VectorState::FTW;
const FOP: usize = 6;
const FIP: usize = 8;
const FDP: usize = 16;
const ST: usize = VectorState::ST;
const FCS: usize = VectorState::FCS;
const FDS: usize = VectorState::FDS;

/// x87 control instructions that are written out. `bits`: operand size, 16 or 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    Init,
    ClearExceptions,
    LoadControlWord,
    StoreControlWord,
    StoreStatusWord,
    StatusToAx,
    LoadEnvironment { bits: u8 },
    StoreEnvironment { bits: u8 },
    Save { bits: u8 },
    Restore { bits: u8 },
    Wait,
    Nothing,
}

fn top(state: &VectorState) -> usize {
    usize::from(state.u16_at(FSW) >> 11) & 7
}

/// The unmasked exception flags that are set.
fn unmasked(state: &VectorState) -> u16 {
    state.u16_at(FSW) & !state.u16_at(FCW) & 0x3f
}

/// A waiting x87 or MMX instruction would raise #MF now.
#[inline]
pub fn is_pending(state: &VectorState) -> bool {
    unmasked(state) != 0
}

/// Whether the store just executed (with no exception pending before) wrote its destination. Only an
/// unmasked precision exception lets the result out.
pub fn stored(state: &VectorState) -> bool {
    unmasked(state) & 0x1f == 0
}

/// Brings control and status words into the form that a processor holds after loading any values.
pub fn normalise(state: &mut VectorState) {
    let control = (state.u16_at(FCW) & 0x1f7f) | 0x40;
    state.set_u16_at(FCW, control);
    let status = state.u16_at(FSW) & 0x7f7f;
    let summary = if status & !control & 0x3f != 0 { 0x8080 } else { 0 };
    state.set_u16_at(FSW, status | summary);
}

/// Sets FSW.TOP with the physical registers staying where they are.
fn set_top(state: &mut VectorState, new: usize) {
    let turn = (8 + new - top(state)) & 7;
    state.bytes[ST..ST + 128].rotate_left(16 * turn);
    let status = state.u16_at(FSW) & !0x3800;
    state.set_u16_at(FSW, status | u16::try_from(new << 11).unwrap_or(0));
}

fn init(state: &mut VectorState) {
    set_top(state, 0);
    state.set_u16_at(FCW, 0x37f);
    state.set_u16_at(FSW, 0);
    state.bytes[FTW..FDP + 8].fill(0);
    state.bytes[FCS..FDS + 2].fill(0);
}

/// The low 64 bits of physical register `n`: MMn.
pub fn mm(state: &VectorState, n: usize) -> [u8; 8] {
    let slot = (8 + (n & 7) - top(state)) & 7;
    let mut out = [0; 8];
    out.copy_from_slice(&state.bytes[ST + 16 * slot..][..8]);
    out
}

/// What every MMX instruction but EMMS does to the x87 state.
pub fn enter_mmx(state: &mut VectorState) {
    set_top(state, 0);
    state.bytes[FTW] = 0xff;
}

/// The x87 part of the state, to go back to when a store faults.
#[derive(Debug)]
pub struct Saved([u8; ST + 128]);

impl Saved {
    pub fn of(state: &VectorState) -> Self {
        let mut saved = [0; ST + 128];
        saved.copy_from_slice(&state.bytes[..ST + 128]);
        Self(saved)
    }
    pub fn restore(&self, state: &mut VectorState) {
        state.bytes[..ST + 128].copy_from_slice(&self.0);
    }
}

/// FOP, FIP and FDP. (The host doesn't touch the bytes that FCS and FDS lie in.)
pub type Pointers = [u8; 18];

/// Takes the pointers out, leaving zeros: the host is not to see the guest's.
pub fn take_pointers(state: &mut VectorState) -> Pointers {
    let mut out = [0; 18];
    out.copy_from_slice(&state.bytes[FOP..FOP + 18]);
    state.bytes[FOP..FOP + 18].fill(0);
    out
}

pub fn put_pointers(state: &mut VectorState, pointers: Pointers) {
    state.bytes[FOP..FOP + 18].copy_from_slice(&pointers);
}

/// Updates the pointers after the non-control instruction `insn`, with its operand's segment register and
/// offset.
pub fn update_pointers(
    cpu: &mut CpuState,
    insn: &Instruction,
    memory: Option<(usize, u64)>,
    amd: bool,
) {
    let mask = if cpu.is_64bit() { u64::MAX } else { 0xffff_ffff };
    cpu.vector.bytes[FIP..FIP + 8].copy_from_slice(&(cpu.rip & mask).to_le_bytes());
    if amd {
        let code = cpu.seg[sreg::CS].selector;
        cpu.vector.set_u16_at(FCS, code);
    }
    if amd || is_pending(&cpu.vector) {
        cpu.vector.set_u16_at(FOP, opcode(insn).unwrap_or(0));
        if let Some((segment, address)) = memory {
            cpu.vector.bytes[FDP..FDP + 8].copy_from_slice(&(address & mask).to_le_bytes());
            if amd {
                let data = cpu.seg.get(segment).map_or(0, |segment| segment.selector);
                cpu.vector.set_u16_at(FDS, data);
            }
        }
    }
}

/// Whether FXSAVE, XSAVE and what loads their images handle the pointers, rather than zeros.
pub fn saves_pointers(state: &VectorState, amd: bool) -> bool {
    !amd || is_pending(state)
}

/// Sets all pointers and their selectors to zero.
pub fn clear_pointers(state: &mut VectorState) {
    take_pointers(state);
    state.bytes[FCS..FDS + 2].fill(0);
}

/// The 11-bit opcode that FOP holds. The ModRM byte of a memory form is taken from iced's encoding of
/// the instruction, which for an unusually long encoding (a needless SIB byte or displacement) is not
/// the guest's own.
fn opcode(insn: &Instruction) -> Option<u16> {
    let first = x87_opcode(insn.code())?;
    let mut encoder = Encoder::new(insn.code_size().bitness());
    encoder.encode(insn, insn.ip()).ok()?;
    let bytes = encoder.take_buffer();
    let at = bytes.iter().position(|&byte| byte == first)?;
    Some(u16::from(first & 7) << 8 | u16::from(*bytes.get(at + 1)?))
}

trait Bitness {
    fn bitness(self) -> u32;
}
impl Bitness for iced_x86::CodeSize {
    fn bitness(self) -> u32 {
        match self {
            iced_x86::CodeSize::Code16 => 16,
            iced_x86::CodeSize::Code32 => 32,
            _ => 64,
        }
    }
}

/// The 16-bit tag word (SDM vol. 1, "x87 FPU Tag Word"): per physical register 0 valid, 1 zero,
/// 2 special, 3 empty.
fn full_tags(state: &VectorState) -> u16 {
    (0..8).fold(0, |tags, physical| {
        let empty = state.bytes[FTW] & (1 << physical) == 0;
        let tag = if empty { 3 } else { classify_register(state, physical) };
        tags | tag << (2 * physical)
    })
}

fn classify_register(state: &VectorState, physical: usize) -> u16 {
    let slot = ST + 16 * ((8 + physical - top(state)) & 7);
    let exponent = state.u16_at(slot + 8) & 0x7fff;
    let significand = mm(state, physical);
    let integer_bit = significand[7] & 0x80 != 0;
    match exponent {
        0 if significand == [0; 8] => 1,
        0 | 0x7fff => 2,
        _ if !integer_bit => 2,
        _ => 0,
    }
}

fn abridged_tags(full: u16) -> u8 {
    (0..8).fold(0, |tags, n| tags | u8::from((full >> (2 * n)) & 3 != 3) << n)
}

pub fn execute(control: Control, operand: &mut Operand<'_>) -> Outcome {
    use Control as C;
    match control {
        C::Wait | C::Nothing => {}
        C::Init => init(&mut operand.cpu.vector),
        C::ClearExceptions => {
            let status = operand.cpu.vector.u16_at(FSW) & 0x7f00;
            operand.cpu.vector.set_u16_at(FSW, status);
        }
        C::LoadControlWord => {
            let mut word = [0; 2];
            operand.read(0, &mut word)?;
            operand.cpu.vector.set_u16_at(FCW, u16::from_le_bytes(word));
            normalise(&mut operand.cpu.vector);
        }
        C::StoreControlWord => {
            let word = operand.cpu.vector.u16_at(FCW);
            operand.write(0, &word.to_le_bytes())?;
        }
        C::StoreStatusWord => {
            let word = operand.cpu.vector.u16_at(FSW);
            operand.write(0, &word.to_le_bytes())?;
        }
        C::StatusToAx => {
            let word = operand.cpu.vector.u16_at(FSW);
            let rax = &mut operand.cpu.gpr[reg::RAX];
            *rax = *rax & !0xffff | u64::from(word);
        }
        C::StoreEnvironment { bits } => {
            let (environment, len) = environment(operand.cpu, bits);
            operand.write(0, &environment[..len])?;
            let state = &mut operand.cpu.vector;
            let control = state.u16_at(FCW) | 0x3f;
            state.set_u16_at(FCW, control);
            normalise(state);
        }
        C::LoadEnvironment { bits } => {
            let mut image = [0; 28];
            let len = environment_len(bits);
            operand.read(0, &mut image[..len])?;
            let selectors = operand.amd;
            let loaded = Environment::parse(&image, bits, operand.cpu.real_or_v86(), selectors);
            set_top(&mut operand.cpu.vector, loaded.top());
            loaded.apply(&mut operand.cpu.vector);
        }
        C::Save { bits } => {
            let (environment, len) = environment(operand.cpu, bits);
            let mut image = [0; 108];
            image[..len].copy_from_slice(&environment[..len]);
            for n in 0..8 {
                let register = &operand.cpu.vector.bytes[ST + 16 * n..][..10];
                image[len + 10 * n..][..10].copy_from_slice(register);
            }
            operand.write(0, &image[..len + 80])?;
            init(&mut operand.cpu.vector);
        }
        C::Restore { bits } => {
            let mut image = [0; 108];
            let len = environment_len(bits);
            operand.read(0, &mut image[..len + 80])?;
            let mut head = [0; 28];
            head[..len].copy_from_slice(&image[..len]);
            let selectors = operand.amd;
            let loaded = Environment::parse(&head, bits, operand.cpu.real_or_v86(), selectors);
            let state = &mut operand.cpu.vector;
            loaded.apply(state);
            for n in 0..8 {
                state.bytes[ST + 16 * n..][..10].copy_from_slice(&image[len + 10 * n..][..10]);
                state.bytes[ST + 16 * n + 10..][..6].fill(0);
            }
        }
    }
    Ok(())
}

fn environment_len(bits: u8) -> usize {
    if bits == 16 { 14 } else { 28 }
}

/// What FNSTENV stores and FLDENV loads.
struct Environment {
    control: u16,
    status: u16,
    tags: u16,
    opcode: u16,
    instruction: u64,
    data: u64,
    /// FCS and FDS; zero where the model doesn't keep them.
    selectors: [u16; 2],
}

impl Environment {
    fn top(&self) -> usize {
        usize::from(self.status >> 11) & 7
    }

    /// SDM vol. 1, figures "Protected Mode x87 FPU State Image in Memory, 32-Bit Format" and the
    /// three after it. `selectors`: the model keeps them.
    fn parse(image: &[u8; 28], bits: u8, real: bool, selectors: bool) -> Self {
        let word = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
        let selectors = match (bits, real) {
            (16, false) if selectors => [word(8), word(12)],
            (32, false) if selectors => [word(16), word(24)],
            _ => [0; 2],
        };
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 2)) << 16;
        match (bits, real) {
            (16, false) => Self {
                control: word(0),
                status: word(2),
                tags: word(4),
                opcode: 0,
                instruction: u64::from(word(6)),
                data: u64::from(word(10)),
                selectors,
            },
            (16, true) => Self {
                control: word(0),
                status: word(2),
                tags: word(4),
                opcode: word(8) & 0x7ff,
                instruction: u64::from(word(6)) | u64::from(word(8) & 0xf000) << 4,
                data: u64::from(word(10)) | u64::from(word(12) & 0xf000) << 4,
                selectors,
            },
            (_, false) => Self {
                control: word(0),
                status: word(4),
                tags: word(8),
                opcode: word(18) & 0x7ff,
                instruction: long(12),
                data: long(20),
                selectors,
            },
            (_, true) => Self {
                control: word(0),
                status: word(4),
                tags: word(8),
                opcode: word(16) & 0x7ff,
                instruction: u64::from(word(12)) | (long(16) & 0x0fff_f000) << 4,
                data: u64::from(word(20)) | (long(24) & 0x0fff_f000) << 4,
                selectors,
            },
        }
    }

    /// Everything but the registers. The caller has seen to the slots.
    fn apply(&self, state: &mut VectorState) {
        state.set_u16_at(FCW, self.control);
        state.set_u16_at(FSW, self.status);
        state.bytes[FTW] = abridged_tags(self.tags);
        state.set_u16_at(FOP, self.opcode);
        state.bytes[FIP..FIP + 8].copy_from_slice(&self.instruction.to_le_bytes());
        state.bytes[FDP..FDP + 8].copy_from_slice(&self.data.to_le_bytes());
        state.set_u16_at(FCS, self.selectors[0]);
        state.set_u16_at(FDS, self.selectors[1]);
        normalise(state);
    }
}

/// The environment image and its length.
fn environment(cpu: &CpuState, bits: u8) -> ([u8; 28], usize) {
    let state = &cpu.vector;
    let word = |at: usize| state.u16_at(at);
    let long = |at: usize| u32::from(word(at)) | u32::from(word(at + 2)) << 16;
    let (fip, fdp) = (long(FIP), long(FDP));
    let low = |value: u32| value & 0xffff;
    let tags = u32::from(full_tags(state));
    let opcode = u32::from(word(FOP) & 0x7ff);
    let (fcs, fds) = (u32::from(word(FCS)), u32::from(word(FDS)));
    let mut image = [0; 28];
    let len = environment_len(bits);
    if bits == 16 {
        let words = if cpu.real_or_v86() {
            [low(fip), (fip >> 4) & 0xf000 | opcode, low(fdp), (fdp >> 4) & 0xf000]
        } else {
            [low(fip), fcs, low(fdp), fds]
        };
        let head = [u32::from(word(FCW)), u32::from(word(FSW)), tags];
        for (out, value) in image.chunks_exact_mut(2).zip(head.into_iter().chain(words)) {
            out.copy_from_slice(&value.to_le_bytes()[..2]);
        }
    } else {
        const RESERVED: u32 = 0xffff_0000;
        let longs = if cpu.real_or_v86() {
            [
                RESERVED | low(fip),
                (fip >> 4) & 0x0fff_f000 | opcode,
                RESERVED | low(fdp),
                (fdp >> 4) & 0x0fff_f000,
            ]
        } else {
            [fip, opcode << 16 | fcs, fdp, RESERVED | fds]
        };
        let head =
            [RESERVED | u32::from(word(FCW)), RESERVED | u32::from(word(FSW)), RESERVED | tags];
        for (out, value) in image.chunks_exact_mut(4).zip(head.into_iter().chain(longs)) {
            out.copy_from_slice(&value.to_le_bytes());
        }
    }
    (image, len)
}
