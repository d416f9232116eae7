//! What the manual leaves undefined, as a table.
//!
//! Problem: processors and engines may differ where the manual says "undefined", and only there; every
//! exception to "all must be equal" wants its reason. Scheme: rows of instructions with the status flags that
//! they leave undefined ([`FLAGS`]), of results that are undefined under a condition ([`RESULTS`]) and of what
//! a fault may leave half done ([`INTERRUPTED`]), each with its place in the manual. A test checks the flags
//! against the decoder's own tables. Pure functions. Source: SDM vol. 2, instruction pages, "Flags Affected";
//! SDM vol. 1, appendix A, "EFLAGS Cross-Reference".

use iced_x86::{Code, Instruction, Mnemonic as M, OpKind, Register};
use xenolith_cpu::CpuState;
use xenolith_cpu::state::Rflags;

const CF: u64 = Rflags::CF.bits();
const PF: u64 = Rflags::PF.bits();
const AF: u64 = Rflags::AF.bits();
const ZF: u64 = Rflags::ZF.bits();
const SF: u64 = Rflags::SF.bits();
const OF: u64 = Rflags::OF.bits();
const STATUS: u64 = Rflags::STATUS.bits();

/// Instructions, flags, and where the manual says so.
pub type Row = (&'static [M], u64, &'static str);

/// Flags that are undefined after the instruction whatever its operands. Counted shifts are in
/// [`undefined_flags`].
pub const FLAGS: [Row; 15] = [
    (&[M::Aaa, M::Aas], OF | SF | ZF | PF, "SDM vol. 2, AAA and AAS"),
    (&[M::Aad, M::Aam], OF | AF | CF, "SDM vol. 2, AAD and AAM"),
    (&[M::Daa, M::Das], OF, "SDM vol. 2, DAA and DAS"),
    (&[M::And, M::Or, M::Xor, M::Test], AF, "SDM vol. 2, AND, OR, XOR and TEST"),
    (&[M::Andn], AF | PF, "SDM vol. 2, ANDN"),
    (&[M::Bextr], AF | SF | PF, "SDM vol. 2, BEXTR"),
    (&[M::Blsi, M::Blsmsk, M::Blsr], AF | PF, "SDM vol. 2, BLSI, BLSMSK and BLSR"),
    (&[M::Bzhi], AF | PF, "SDM vol. 2, BZHI"),
    (&[M::Bsf, M::Bsr], CF | OF | SF | AF | PF, "SDM vol. 2, BSF and BSR"),
    (&[M::Bt, M::Btc, M::Btr, M::Bts], OF | SF | AF | PF, "SDM vol. 2, BT, BTC, BTR and BTS"),
    (&[M::Lzcnt], OF | SF | PF | AF, "SDM vol. 2, LZCNT"),
    (&[M::Tzcnt], OF | SF | PF | AF, "SDM vol. 2, TZCNT"),
    (&[M::Div, M::Idiv], STATUS, "SDM vol. 2, DIV and IDIV"),
    (&[M::Mul, M::Imul], SF | ZF | AF | PF, "SDM vol. 2, MUL and IMUL"),
    (&[M::Fcom], 0, "x87 comparisons leave RFLAGS alone: SDM vol. 2, FCOM"),
];

fn moves_special(code: Code) -> bool {
    use Code as C;
    matches!(
        code,
        C::Mov_r32_cr
            | C::Mov_r64_cr
            | C::Mov_cr_r32
            | C::Mov_cr_r64
            | C::Mov_r32_dr
            | C::Mov_r64_dr
            | C::Mov_dr_r32
            | C::Mov_dr_r64
            | C::Mov_r32_tr
            | C::Mov_tr_r32
    )
}

/// How a shift or rotation counts.
fn shift_count(insn: &Instruction, state: &CpuState) -> u64 {
    let last = insn.op_count() - 1;
    let count = match insn.op_kind(last) {
        OpKind::Immediate8 => u64::from(insn.immediate8()),
        OpKind::Register if insn.op_register(last) == Register::CL => state.gpr[1] & 0xff,
        _ => 1,
    };
    count & if operand_bits(insn) == 64 { 63 } else { 31 }
}

fn operand_bits(insn: &Instruction) -> u64 {
    let bytes = match insn.op0_kind() {
        OpKind::Register => insn.op0_register().size(),
        _ => insn.memory_size().size(),
    };
    8 * bytes as u64
}

/// Flags that `insn` leaves undefined when executed in `state`; 0 also if it changes none.
#[must_use]
pub fn undefined_flags(insn: &Instruction, state: &CpuState) -> u64 {
    let bits = || operand_bits(insn);
    match insn.mnemonic() {
        // SDM vol. 2, "SAL/SAR/SHL/SHR": OF for counts but 1, AF for counts but 0, CF of SHL and SHR for counts
        // of the operand's size and more.
        M::Shl | M::Sal | M::Shr | M::Sar => match shift_count(insn, state) {
            0 => 0,
            1 => AF,
            count if count >= bits() && insn.mnemonic() != M::Sar => AF | OF | CF,
            _ => AF | OF,
        },
        // SDM vol. 2, "RCL/RCR/ROL/ROR": OF for counts but 1; a count of 0 leaves all flags alone.
        M::Rol | M::Ror | M::Rcl | M::Rcr => match shift_count(insn, state) {
            0 | 1 => 0,
            _ => OF,
        },
        // SDM vol. 2, "SHLD" and "SHRD": OF for counts but 1, AF for counts but 0, all for counts beyond the
        // operand's size.
        M::Shld | M::Shrd => match shift_count(insn, state) {
            0 => 0,
            1 => AF,
            count if count > bits() => STATUS,
            _ => AF | OF,
        },
        // SDM vol. 2, "MOV-Move to/from Control Registers" and "MOV-Move to/from Debug Registers".
        M::Mov if moves_special(insn.code()) => STATUS,
        mnemonic => FLAGS
            .iter()
            .find(|(list, ..)| list.contains(&mnemonic))
            .map_or(0, |&(_, flags, _)| flags),
    }
}

/// Flags whose old, perhaps undefined, value doesn't survive `insn`.
#[must_use]
pub fn settled_flags(insn: &Instruction, state: &CpuState) -> u64 {
    use iced_x86::RflagsBits as R;
    let counted = matches!(
        insn.mnemonic(),
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    );
    let repeated =
        insn.is_string_instruction() && (insn.has_rep_prefix() || insn.has_repne_prefix());
    // A count of zero changes nothing.
    if counted && shift_count(insn, state) == 0 || repeated {
        return 0;
    }
    let bits = insn.rflags_written() | insn.rflags_cleared() | insn.rflags_set();
    let pairs = [(R::CF, CF), (R::PF, PF), (R::AF, AF), (R::ZF, ZF), (R::SF, SF), (R::OF, OF)];
    pairs.into_iter().filter(|(bit, _)| bits & bit != 0).fold(0, |all, (_, flag)| all | flag)
}

/// Flags that `insn` reads.
#[must_use]
pub fn read_flags(insn: &Instruction) -> u64 {
    use iced_x86::RflagsBits as R;
    let bits = insn.rflags_read();
    let pairs = [(R::CF, CF), (R::PF, PF), (R::AF, AF), (R::ZF, ZF), (R::SF, SF), (R::OF, OF)];
    pairs.into_iter().filter(|(bit, _)| bits & bit != 0).fold(0, |all, (_, flag)| all | flag)
}

/// Results that are undefined under a condition: the instructions, the condition, its place.
pub const RESULTS: [(&[M], &str, &str); 3] = [
    (&[M::Bsf, M::Bsr], "the source is zero", "SDM vol. 2, BSF and BSR, Description"),
    (&[M::Shld, M::Shrd], "the count is beyond the operand's size", "SDM vol. 2, SHLD and SHRD"),
    (&[M::Bswap], "the operand has 16 bits", "SDM vol. 2, BSWAP, Description"),
];

/// The place in the manual that leaves the destination of `insn` undefined in `state`. `source_is_zero`
/// tells of a memory source.
#[must_use]
pub fn undefined_result(
    insn: &Instruction,
    state: &CpuState,
    source_is_zero: impl FnOnce() -> bool,
) -> Option<&'static str> {
    let undefined = match insn.mnemonic() {
        M::Bsf | M::Bsr => source_is_zero(),
        M::Shld | M::Shrd => shift_count(insn, state) > operand_bits(insn),
        M::Bswap => operand_bits(insn) == 16,
        _ => false,
    };
    let row = RESULTS.iter().find(|(list, ..)| list.contains(&insn.mnemonic()));
    row.filter(|_| undefined).map(|&(.., cite)| cite)
}

/// What may be half done when an instruction faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HalfDone {
    pub general: bool,
    pub x87: bool,
    pub vector: bool,
    pub memory: bool,
}

/// Why: the instructions and the manual's word.
pub const INTERRUPTED: [(&str, &str); 5] = [
    (
        "POPA: registers before the fault may be loaded; they are again when it is restarted",
        "SDM vol. 3, Restarting of Program or Task After a Fault Exception",
    ),
    (
        "gathers: elements before the fault are loaded and their masks cleared; how many is the processor's",
        "SDM vol. 2, VPGATHERDD, Description",
    ),
    (
        "MMX stores: the x87 tags may already be set",
        "SDM vol. 1, Effect of MMX Instructions on the x87 FPU Tag Word",
    ),
    (
        "stores of more than eight bytes over a page end: the first part may be stored",
        "SDM vol. 3, Memory Ordering, and Exceptions of FSTP, FNSAVE, FXSAVE and XSAVE",
    ),
    (
        "FRSTOR, FXRSTOR and XRSTOR: components before the fault may be loaded",
        "SDM vol. 2, XRSTOR, Description",
    ),
];

/// What a fault in `insn` may leave half done.
#[must_use]
pub fn half_done(insn: &Instruction) -> HalfDone {
    let registers = || (0..insn.op_count()).map(|n| insn.op_register(n));
    let mut half = HalfDone::default();
    match insn.mnemonic() {
        M::Popa | M::Popad => half.general = true,
        M::Fxrstor | M::Fxrstor64 | M::Xrstor | M::Xrstor64 | M::Frstor | M::Fldenv => {
            (half.x87, half.vector) = (true, true);
        }
        M::Fnsave
        | M::Fnstenv
        | M::Fxsave
        | M::Fxsave64
        | M::Xsave
        | M::Xsave64
        | M::Xsavec
        | M::Xsavec64
        | M::Xsaveopt
        | M::Xsaveopt64 => (half.x87, half.memory) = (true, true),
        _ => {}
    }
    half.x87 |= registers().any(Register::is_mm);
    half.vector |= insn.memory_index().is_vector_register();
    half.memory |= insn.memory_size().size() > 8;
    half
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{EncodingKind, RflagsBits};

    /// The decoder's tables, which follow the manual independently of ours.
    #[test]
    fn flags_are_undefined_where_the_decoder_says_so() {
        let state = CpuState::reset(0);
        let mut checked = 0;
        let mut wrong = std::collections::HashMap::new();
        for code in Code::values() {
            let info = code.op_code();
            let plain = matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX);
            if !plain || !info.is_instruction() {
                continue;
            }
            let mut insn = Instruction::default();
            insn.set_code(code);
            let counted = matches!(
                code.mnemonic(),
                M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr
            ) || matches!(code.mnemonic(), M::Shld | M::Shrd);
            // TZCNTI is of another architecture; iced knows it.
            let foreign = code.mnemonic() == M::Tzcnti;
            if counted
                || foreign
                || code.cpuid_features().iter().any(|f| format!("{f:?}").contains("TBM"))
            {
                continue;
            }
            let theirs = insn.rflags_undefined();
            let ours = undefined_flags(&insn, &state);
            for (flag, bit) in [
                (CF, RflagsBits::CF),
                (PF, RflagsBits::PF),
                (AF, RflagsBits::AF),
                (ZF, RflagsBits::ZF),
                (SF, RflagsBits::SF),
                (OF, RflagsBits::OF),
            ] {
                if (ours & flag != 0) != (theirs & bit != 0) {
                    wrong.insert(code.mnemonic(), (ours, theirs));
                }
                checked += 1;
            }
        }
        assert!(wrong.is_empty(), "ours, theirs: {wrong:x?}");
        assert!(checked > 5000, "{checked}");
    }

    #[test]
    fn counted_shifts_leave_flags_undefined_by_their_count() {
        let mut state = CpuState::reset(0);
        let flags = |bytes: &[u8], state: &CpuState| {
            let mut decoder = iced_x86::Decoder::new(64, bytes, 0);
            undefined_flags(&decoder.decode(), state)
        };
        // shl al, cl; ror eax, 1; shld ax, bx, 17; sar al, 9; shl rax, 64.
        state.gpr[1] = 0x20;
        assert_eq!(flags(&[0xd2, 0xe0], &state), 0, "a masked count of zero");
        state.gpr[1] = 9;
        assert_eq!(flags(&[0xd2, 0xe0], &state), AF | OF | CF);
        assert_eq!(flags(&[0xd1, 0xc8], &state), 0);
        assert_eq!(flags(&[0x66, 0x0f, 0xa4, 0xd8, 17], &state), STATUS);
        assert_eq!(flags(&[0xc0, 0xf8, 9], &state), AF | OF);
        assert_eq!(flags(&[0x48, 0xc1, 0xe0, 64], &state), 0);
    }
}
