//! Random instructions, every one as likely as every other.
//!
//! Problem: random bytes hit MOV and ADD all the time and VPMASKMOVQ never. Scheme: from the decoder's own
//! table of opcodes, each entry as likely as the next, put together prefixes, map and opcode bytes;
//! what follows the opcode (ModRM, SIB, displacement, immediate) is random, cut to the instruction's
//! length. Now and then a bit flips, which gives the neighbours that no table lists.
//! Source: SDM vol. 2, "Instruction Format".

use std::sync::OnceLock;

use iced_x86::{
    Code, Decoder, DecoderOptions, EncodingKind, MandatoryPrefix, OpCodeInfo, OpCodeTableKind,
};

use super::rng::Rng;

const LEGACY_PREFIXES: [u8; 11] =
    [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3];

/// One opcode.
struct Template {
    info: &'static OpCodeInfo,
    /// The low three opcode bits are a register.
    register_in_opcode: bool,
}

fn templates() -> &'static [Template] {
    static ALL: OnceLock<Vec<Template>> = OnceLock::new();
    ALL.get_or_init(|| {
        Code::values()
            .map(Code::op_code)
            .filter(|info| {
                info.is_instruction()
                    && matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
            })
            .map(|info| Template {
                info,
                register_in_opcode: info
                    .op_kinds()
                    .iter()
                    .any(|kind| format!("{kind:?}").ends_with("opcode")),
            })
            .collect()
    })
}

/// Appends a random instruction of `bits` code.
pub fn random(rng: &mut Rng, bits: u32, out: &mut Vec<u8>) {
    let all = templates();
    let template = loop {
        let template = rng.pick(all);
        let fits = match bits {
            16 => template.info.mode16(),
            32 => template.info.mode32(),
            _ => template.info.mode64(),
        };
        // Opcodes that this mode doesn't have are worth a try too.
        if fits || rng.one_in(64) {
            break template;
        }
    };
    let start = out.len();
    while rng.one_in(8) {
        out.push(*rng.pick(&LEGACY_PREFIXES));
    }
    match template.info.encoding() {
        EncodingKind::VEX => vex(rng, template.info, bits, out),
        _ => legacy(rng, template, bits, out),
    }
    let mut tail = [0; 12];
    rng.fill(&mut tail);
    if let Ok(group) = u8::try_from(template.info.group_index()) {
        tail[0] = tail[0] & 0xc7 | (group & 7) << 3;
    }
    if let Ok(rm) = u8::try_from(template.info.rm_group_index()) {
        tail[0] = tail[0] & 0xf8 | rm & 7;
    }
    // Near a register's value there is often memory, far from it seldom.
    if rng.one_in(2) {
        tail[1..].iter_mut().skip(1).for_each(|byte| *byte = 0);
    }
    out.extend(tail);
    let mut decoder = Decoder::new(bits, &out[start..], DecoderOptions::NONE);
    let len = decoder.decode().len().clamp(1, 15);
    out.truncate(start + len);
    if rng.one_in(16) {
        let at = start + rng.below(len);
        out[at] ^= 1 << rng.below(8);
    }
}

fn legacy(rng: &mut Rng, template: &Template, bits: u32, out: &mut Vec<u8>) {
    let info = template.info;
    match (info.operand_size(), bits) {
        (16, 32 | 64) | (32, 16) => out.push(0x66),
        _ => {}
    }
    match (info.address_size(), bits) {
        (16, 32) | (32, 16 | 64) => out.push(0x67),
        _ => {}
    }
    match info.mandatory_prefix() {
        MandatoryPrefix::P66 => out.push(0x66),
        MandatoryPrefix::PF3 => out.push(0xf3),
        MandatoryPrefix::PF2 => out.push(0xf2),
        _ => {}
    }
    if bits == 64 {
        let wide = info.operand_size() == 64 || info.w() == 1 || rng.one_in(8);
        let extensions = if rng.one_in(2) { rng.u8() & 7 } else { 0 };
        if wide || extensions != 0 {
            out.push(0x40 | u8::from(wide) << 3 | extensions);
        }
    }
    match info.table() {
        OpCodeTableKind::T0F => out.push(0x0f),
        OpCodeTableKind::T0F38 => out.extend([0x0f, 0x38]),
        OpCodeTableKind::T0F3A => out.extend([0x0f, 0x3a]),
        _ => {}
    }
    let opcode = info.op_code();
    if info.op_code_len() == 2 {
        out.push((opcode >> 8) as u8);
    }
    let register = if template.register_in_opcode { rng.u8() & 7 } else { 0 };
    out.push(opcode as u8 | register);
}

fn vex(rng: &mut Rng, info: &OpCodeInfo, bits: u32, out: &mut Vec<u8>) {
    let map = match info.table() {
        OpCodeTableKind::T0F38 => 2,
        OpCodeTableKind::T0F3A => 3,
        _ => 1,
    };
    let prefix = match info.mandatory_prefix() {
        MandatoryPrefix::P66 => 1,
        MandatoryPrefix::PF3 => 2,
        MandatoryPrefix::PF2 => 3,
        _ => 0,
    };
    // R, X and B are inverted, and vvvv as well.
    let extensions = if bits == 64 { rng.u8() & 0xe0 } else { 0xe0 };
    let second = if rng.one_in(2) { 0x0f } else { rng.u8() & 0x0f };
    let w = if info.w() == 1 || rng.one_in(16) { 0x80 } else { 0 };
    let l = if info.l() == 1 || rng.one_in(16) { 4 } else { 0 };
    out.extend([0xc4, extensions | map, w | second << 3 | l | prefix, info.op_code() as u8]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn most_opcodes_come_up() {
        let mut rng = Rng::new(1);
        let mut seen = HashSet::new();
        for bits in [16, 32, 64] {
            for _ in 0..40_000 {
                let mut bytes = Vec::new();
                random(&mut rng, bits, &mut bytes);
                seen.insert(Decoder::new(bits, &bytes, DecoderOptions::NONE).decode().mnemonic());
            }
        }
        use iced_x86::Mnemonic as N;
        for wanted in [
            N::Vpmaskmovq,
            N::Vgatherdpd,
            N::Iretq,
            N::Xsaves,
            N::Fpatan,
            N::Arpl,
            N::Invpcid,
            N::Lss,
            N::Wrmsr,
            N::Vfmadd231ps,
            N::Sha256rnds2,
            N::Pdep,
            N::Maskmovdqu,
            N::Cmpxchg16b,
            N::Loopne,
        ] {
            assert!(seen.contains(&wanted), "no {wanted:?}");
        }
        assert!(seen.len() > 900, "{}", seen.len());
    }
}
