//! Every instruction that the decoder knows and the CPU model has, has a handler.

use iced_x86::{Code, DecoderOptions, EncodingKind, Mnemonic as N};

use super::bench::{Ram, model};
use super::generate;
use crate::interp::decode::Insn;
use crate::interp::table;
use crate::vector::VectorUnit;
use crate::vector::tests::generate::Rng;
use crate::vector::tests::native::TestCode;

/// Instructions without a handler that are #UD on purpose, with the reason.
fn is_undefined(code: Code) -> Option<&'static str> {
    Some(match code.mnemonic() {
        N::Ud0 | N::Ud1 | N::Ud2 => "made to be undefined",
        N::Rsm => "#UD outside system management mode, which guests have no way into",
        N::Incsspd | N::Incsspq | N::Saveprevssp | N::Rstorssp => "shadow stacks: CPUID lacks them",
        N::Wrssd | N::Wrssq | N::Wrussd | N::Wrussq => "shadow stacks: CPUID lacks them",
        N::Setssbsy | N::Clrssbsy => "shadow stacks: CPUID lacks them",
        _ => return None,
    })
}

#[test]
fn every_instruction_of_the_model_has_a_handler() {
    let cpuid = model();
    let mut unit = VectorUnit::new(Box::new(TestCode::new(1 << 20)));
    let mut rng = Rng::new(1);
    let mut missing = Vec::new();
    let mut checked = 0;
    for code in Code::values() {
        let features = code.cpuid_features();
        let plain = matches!(code.op_code().encoding(), EncodingKind::Legacy | EncodingKind::VEX);
        if !plain || !code.op_code().is_instruction() || !features.iter().all(|&f| cpuid.allows(f))
        {
            continue;
        }
        for bits in [16, 32, 64] {
            // Several, since register and memory forms may differ.
            for _ in 0..4 {
                let Some(raw) = generate::decoded(&mut rng, code, bits) else { continue };
                let vector = unit.prepare(&raw);
                let insn = Insn::<Ram>::new(raw, vector, &cpuid);
                checked += 1;
                if table::find(&insn, &cpuid).is_none() && is_undefined(code).is_none() {
                    missing.push(format!("{code:?} in {bits}-bit code: {raw}"));
                    break;
                }
            }
        }
    }
    assert!(checked > 5000, "{checked}");
    assert!(missing.is_empty(), "{missing:#?}");
}

/// Codes that the decoder never makes without options for other processors.
fn is_never_decoded(code: Code) -> bool {
    let name = format!("{code:?}");
    // 9B and an x87 instruction are decoded as two.
    let waiting =
        code.mnemonic() == N::Feni || code.mnemonic() == N::Fdisi || code.op_code().fwait();
    // AMD's reading of a 16-bit operand size in 64-bit code.
    let amd = name.ends_with("_rel8_16_RCX") || name == "Jrcxz_rel8_16";
    // The form without a ModRM byte, of processors long gone.
    waiting || amd || code == Code::Ud0
}

/// What the test above can't build it doesn't check.
#[test]
fn the_generator_builds_all() {
    let cpuid = model();
    let mut rng = Rng::new(2);
    let mut unbuilt = Vec::new();
    for code in Code::values() {
        let info = code.op_code();
        let plain = matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX);
        let ours = code.cpuid_features().iter().all(|&f| cpuid.allows(f));
        let by_option = info.decoder_option() != DecoderOptions::NONE;
        if !plain || !info.is_instruction() || !ours || by_option || is_never_decoded(code) {
            continue;
        }
        let built = [16, 32, 64]
            .into_iter()
            .any(|bits| (0..20).any(|_| generate::decoded(&mut rng, code, bits).is_some()));
        if !built {
            unbuilt.push(code);
        }
    }
    assert!(unbuilt.is_empty(), "{unbuilt:?}");
}
