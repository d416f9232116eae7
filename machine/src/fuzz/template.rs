//! One opcode of the decoder's table, taken apart so that instructions can be put together from it.
//!
//! Problem: every opcode must come up as often as every other, with every prefix and operand form that it can
//! have, in well under a microsecond. Scheme: what the table says of each code is worked out once: map and
//! opcode bytes, wanted prefixes, whether a ModRM byte follows and what it may name, immediate bytes.
//! Invariant: read-only after first use. Source: SDM vol. 2, "Instruction Format"; iced's table of codes.

use iced_x86::{
    Code, EncodingKind, MandatoryPrefix, Mnemonic, OpCodeOperandKind as K, OpCodeTableKind,
};
use xenolith_cpu::cpuid::CpuidModel;

use super::coverage::{self, Treatment, treatment};
use crate::snippet::Bits;

/// What the ModRM byte's r/m field may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rm {
    /// There is no ModRM byte.
    None,
    Register,
    Memory,
    Either,
}

/// An immediate operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Immediate {
    /// Of so many bytes.
    Plain(u8),
    /// An address of the address size.
    Address,
    /// A relative branch.
    Branch(u8),
    /// A far pointer with an offset of so many bytes.
    Far(u8),
}

/// See the module's head.
#[derive(Clone, Debug)]
pub struct Template {
    pub code: Code,
    pub mnemonic: Mnemonic,
    pub vex: bool,
    /// 0: one byte; 1: 0F; 2: 0F38; 3: 0F3A.
    pub map: u8,
    pub opcode: u8,
    /// A second opcode byte, where ModRM would be.
    pub second: Option<u8>,
    /// 0, or the prefix that is part of the opcode.
    pub prefix: u8,
    /// 0: does not matter.
    pub operand_size: u32,
    pub address_size: u32,
    pub w: u8,
    /// VEX.L, if it matters.
    pub l: Option<u8>,
    pub group: Option<u8>,
    pub rm_group: Option<u8>,
    pub rm: Rm,
    /// The low three bits of the last opcode byte are a register.
    pub register_in_opcode: bool,
    pub vvvv: bool,
    /// The index of a memory operand is a vector register, with elements of so many bytes.
    pub vector_index: Option<u8>,
    pub immediates: Vec<Immediate>,
    pub memory_size: u32,
    /// The operand must be aligned to its size, or else the instruction faults.
    pub aligned: bool,
    pub lock: bool,
    pub repeats: bool,
    /// Integer and control instructions: what compilers emit all day.
    pub common: bool,
}

impl Template {
    pub fn new(code: Code) -> Self {
        let info = code.op_code();
        let vex = info.encoding() == EncodingKind::VEX;
        let kinds = info.op_kinds();
        let has = |list: &[K]| kinds.iter().any(|kind| list.contains(kind));
        let name = |kind: &K| format!("{kind:?}");
        let ends = |end: &str| kinds.iter().any(|kind| name(kind).ends_with(end));
        let memory = ends("_or_mem")
            || ends("_or_mem_mpx")
            || has(&[K::mem, K::mem_mpx, K::mem_mib])
            || kinds.iter().any(|kind| name(kind).starts_with("mem_vsib"));
        let register = ends("_or_mem") || ends("_or_mem_mpx") || ends("_rm");
        let group = u8::try_from(info.group_index()).ok();
        let rm = match (memory, register) {
            (true, true) => Rm::Either,
            (true, false) => Rm::Memory,
            (false, true) => Rm::Register,
            // A register in the reg field alone, as MOV CR has, has its other one in r/m.
            (false, false) if ends("_reg") || group.is_some() => Rm::Register,
            (false, false) => Rm::None,
        };
        let opcode = info.op_code();
        let (opcode, second) = if info.op_code_len() == 2 {
            ((opcode >> 8) as u8, Some(opcode as u8))
        } else {
            (opcode as u8, None)
        };
        let rm = if second.is_some() { Rm::None } else { rm };
        let wide_index = |kind: &K| match name(kind).strip_prefix("mem_vsib")?.get(..2)? {
            "64" => Some(8),
            _ => Some(4),
        };
        let features = code.cpuid_features();
        let common = !vex
            && features.iter().all(|feature| {
                let name = format!("{feature:?}");
                name.starts_with("INTEL") || matches!(name.as_str(), "X64" | "CMOV" | "CX8")
            });
        let prefix = match info.mandatory_prefix() {
            MandatoryPrefix::P66 => 0x66,
            MandatoryPrefix::PF3 => 0xf3,
            MandatoryPrefix::PF2 => 0xf2,
            _ => 0,
        };
        let bytes = info.memory_size().size() as u32;
        Self {
            code,
            mnemonic: code.mnemonic(),
            vex,
            map: match info.table() {
                OpCodeTableKind::T0F => 1,
                OpCodeTableKind::T0F38 => 2,
                OpCodeTableKind::T0F3A => 3,
                _ => 0,
            },
            opcode,
            second,
            prefix,
            operand_size: info.operand_size(),
            address_size: info.address_size(),
            w: info.w() as u8,
            l: (!info.is_lig()).then(|| info.l() as u8),
            group,
            rm_group: u8::try_from(info.rm_group_index()).ok(),
            rm,
            register_in_opcode: ends("_opcode"),
            vvvv: ends("_vvvv"),
            vector_index: kinds.iter().find_map(wide_index),
            immediates: kinds.iter().filter_map(immediate).collect(),
            memory_size: bytes,
            aligned: !vex && bytes == 16 && !common,
            lock: info.can_use_lock_prefix(),
            repeats: info.can_use_rep_prefix() || info.can_use_repne_prefix(),
            common,
        }
    }
}

fn immediate(kind: &K) -> Option<Immediate> {
    Some(match kind {
        K::imm8 | K::imm8sex16 | K::imm8sex32 | K::imm8sex64 => Immediate::Plain(1),
        K::xmm_is4 | K::ymm_is4 | K::xmm_is5 | K::ymm_is5 => Immediate::Plain(1),
        K::imm16 => Immediate::Plain(2),
        K::imm32 | K::imm32sex64 => Immediate::Plain(4),
        K::imm64 => Immediate::Plain(8),
        K::mem_offs => Immediate::Address,
        K::br16_1 | K::br32_1 | K::br64_1 => Immediate::Branch(1),
        K::br16_2 | K::xbegin_2 | K::brdisp_2 => Immediate::Branch(2),
        K::br32_4 | K::br64_4 | K::xbegin_4 | K::brdisp_4 => Immediate::Branch(4),
        K::farbr2_2 => Immediate::Far(2),
        K::farbr4_2 => Immediate::Far(4),
        _ => return None,
    })
}

/// Opcodes to choose from in code of one size.
#[derive(Debug)]
pub struct Table {
    pub all: Vec<Template>,
    /// Positions in `all` of common ones.
    pub common: Vec<usize>,
}

impl Table {
    #[must_use]
    pub fn new(model: &CpuidModel, bits: Bits) -> Self {
        let all: Vec<_> = coverage::codes(model, bits)
            .filter(|&code| treatment(code) == Treatment::Compared)
            .map(Template::new)
            .collect();
        let common = (0..all.len()).filter(|&n| all[n].common).collect();
        Self { all, common }
    }
}
