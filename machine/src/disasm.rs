//! What the translator makes of guest code, for people to read.
//!
//! Problem: a person wants to see host code, of a few bytes or of a guest as it ran. Scheme: bytes are translated
//! for addresses that nobody runs at; a guest's blocks are listed when its engine ends, so that jumps are
//! shown where they were pointed ([`Wanted`] travels with the configuration). Invariant: nothing that is
//! translated here is executed. Any thread.

use std::sync::{Mutex, PoisonError};

use iced_x86::{EncodingKind, Instruction};
use xenolith_cpu::PAGE_SIZE;
use xenolith_cpu::cpuid::CpuidModel;
use xenolith_translator::emit::{Frame, Page, Routines, Translator};
use xenolith_translator::host::Host;
use xenolith_translator::listing::Listing;
use xenolith_translator::mode::{Loads, Mode};
use xenolith_translator::plan::Limits;

use crate::config::Mmu;

/// Guest instructions in a block at most, as when a guest runs.
const LENGTH_MAX: usize = crate::bt::LENGTH_MAX;

/// Which blocks of a run to list, and the list.
#[derive(Debug, Default)]
pub struct Wanted {
    /// A linear address: the blocks that have it are listed whole. Without one, all blocks, a line each.
    pub at: Option<u64>,
    text: Mutex<String>,
}

impl Wanted {
    #[must_use]
    pub fn new(at: Option<u64>) -> Self {
        Self { at, text: Mutex::default() }
    }

    /// Keeps a list: the last that had anything, as a machine that was reset begins anew.
    pub(crate) fn found(&self, text: String) {
        if !text.is_empty() {
            *self.text.lock().unwrap_or_else(PoisonError::into_inner) = text;
        }
    }

    /// The list; empty if there were no such blocks.
    #[must_use]
    pub fn take(&self) -> String {
        std::mem::take(&mut *self.text.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Why code can't be listed.
#[derive(Debug, thiserror::Error)]
pub enum DisasmError {
    #[error("no code")]
    Empty,
    #[error("{0:#x}: these bytes are no instruction of {1}-bit code")]
    Undecodable(u64, u8),
    #[error("the code ends beyond {limit:#x}, the last address of {bits}-bit code")]
    Beyond { limit: u64, bits: u8 },
    #[error("{0}")]
    Emit(String),
}

/// Lists the blocks that `code` at `rip` becomes, as supervisor code of `bits` (16: real mode; 32: flat) with
/// everything allowed that the model has.
///
/// # Errors
/// The code isn't all instructions.
pub fn code(
    code: &[u8],
    bits: u8,
    rip: u64,
    model: &CpuidModel,
    mmu: Mmu,
) -> Result<String, DisasmError> {
    let limit = match bits {
        16 => 0xffff,
        32 => 0xffff_ffff,
        _ => u64::MAX,
    };
    if code.is_empty() {
        return Err(DisasmError::Empty);
    }
    if rip > limit || limit - rip < code.len() as u64 - 1 {
        return Err(DisasmError::Beyond { limit, bits });
    }
    let real = bits == 16;
    let mode = Mode {
        bits,
        privilege: 1,
        vector: if real { 1 } else { 2 },
        x87: true,
        shadow: mmu == Mmu::Shadow && !real,
        ring0: true,
        time: true,
        segmented: real,
        stack16: real,
        expands_down: false,
        loads: if real { Loads::Base } else { Loads::Descriptor },
        armed: false,
    };
    let allowed = |insn: &Instruction| {
        insn.code().cpuid_features().iter().all(|&feature| model.allows(feature))
            && !(real && insn.encoding() != EncodingKind::Legacy)
    };
    let mut translator = Translator::default();
    let mut text = String::new();
    let mut at = 0;
    // Where the blocks would be: what they refer to is in front of them.
    let mut base = BASE;
    let mut first_site = 0;
    while at < code.len() {
        let start = rip + at as u64;
        let rest = &code[at..];
        let in_page = (PAGE_SIZE - start % PAGE_SIZE) as usize;
        let decode = |bytes: &[u8]| {
            let options = model.decoder_options();
            iced_x86::Decoder::with_ip(u32::from(bits), bytes, start, options).decode()
        };
        let first = decode(rest);
        if first.is_invalid() {
            return Err(DisasmError::Undecodable(start, bits));
        }
        // As in a guest: a block ends with its page, but for an instruction that lies across.
        let across = first.len() > in_page;
        let page = Page { la: start & !(PAGE_SIZE - 1), id: 1 };
        let second = across.then(|| Page { la: page.la.wrapping_add(PAGE_SIZE), id: 2 });
        let bytes = if across { rest } else { &rest[..rest.len().min(in_page)] };
        let frame = Frame {
            base,
            routines: ROUTINES,
            first_site,
            mode,
            rip: start,
            page,
            second,
            code_base: 0,
            host: Host::detect(),
            unlocks: false,
        };
        let limits = Limits {
            start: None,
            looks_up: &|_| false,
            length_max: if across { 1 } else { LENGTH_MAX },
            allowed: &allowed,
            decoder_options: model.decoder_options(),
            windows: true,
            counts: false,
            unrolls: false,
            code_limit: limit,
        };
        let made = translator.translate(frame, bytes, &limits);
        let made = made.map_err(|error| DisasmError::Emit(error.to_string()))?;
        let Some(made) = made else { return Err(DisasmError::Undecodable(start, bits)) };
        let map: Vec<(u32, u16)> = made.map.iter().map(|entry| (entry.host, entry.guest)).collect();
        let listing = Listing {
            mode,
            rip: start,
            guest: &bytes[..made.bytes],
            options: model.decoder_options(),
            base,
            code: &made.code,
            indirect: made.indirect,
            polled: made.polled,
            plain: made.plain,
            exits: made.exits,
            map: &map,
            sites: &made.sites,
            first_site,
            names: &name,
        };
        if at > 0 {
            text.push('\n');
        }
        text.push_str(&listing.to_string());
        at += made.bytes;
        base = (base + made.code.len() as u64).next_multiple_of(64);
        first_site += made.sites.len() as u32;
        translator.recycle(made);
    }
    Ok(text)
}

/// Made-up host addresses.
const ROUTINES: Routines = Routines {
    exit: 0x10_0000,
    load_vector: 0x10_0100,
    load_x87: 0x10_0200,
    look_again: 0x10_0300,
};
const BASE: u64 = 0x10_1000;

fn name(address: u64) -> Option<String> {
    let named = ROUTINES.named();
    let (_, name) = named.iter().find(|&&(at, _)| at == address)?;
    Some((*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(bytes: &[u8], bits: u8, rip: u64) -> Result<String, DisasmError> {
        let model = CpuidModel::parse("x86-64-v3").expect("a model");
        code(bytes, bits, rip, &model, Mmu::Soft)
    }

    #[test]
    fn both_sides_are_there() {
        // add [rbx+8], eax; jne to the beginning; ret
        let text = list(&[1, 0x43, 8, 0x75, 0xfb, 0xc3], 64, 0x1000).expect("code");
        let line = |part: &str| {
            text.lines()
                .find(|line| line.contains(part))
                .unwrap_or_else(|| panic!("{part}: {text}"))
        };
        assert!(line("block 1000").contains("64-bit"), "{text}");
        assert!(line("in: ").contains("in: 3 instructions, 6 bytes"), "{text}");
        assert!(line("0000000000001000").contains("014308"), "{text}");
        assert!(line("0000000000001003").contains("jne"), "{text}");
        assert!(line("not chained yet").contains("leaves for 1000"), "{text}");
        for part in
            ["tlb1.write", "tlb1.addend", "refill the inline TLB for a write of 4 bytes at 1000"]
        {
            line(part);
        }
        line("jump cache doesn't know the target of the transfer at 1005");
    }

    #[test]
    fn code_goes_on_behind_a_transfer_and_a_page() {
        // jmp to what follows; at the page's end a nop, and an instruction across.
        let text = list(&[0xeb, 0], 32, 0x2000).expect("code");
        assert_eq!(text.matches("block ").count() - text.matches("the block at").count(), 1);
        let text = list(&[0x90, 0x81, 0xc0, 1, 2, 3, 4, 0xf4], 32, 0x1ffe).expect("code");
        for start in ["block 1ffe:", "block 1fff:", "block 2005:"] {
            assert!(text.contains(start), "{start}: {text}");
        }
        assert!(text.contains("the interpreter does HLT at 2005"), "{text}");
    }

    #[test]
    fn all_sizes_of_code() {
        for (bits, digits) in [(16, "00000100"), (32, "00000100"), (64, "0000000000000100")] {
            let text = list(&[0x8b, 7, 0xc3], bits, 0x100).expect("code");
            assert!(text.lines().any(|line| line.starts_with(&format!("{digits} "))), "{text}");
            assert!(text.contains(&format!("{bits}-bit")), "{text}");
        }
    }

    #[test]
    fn what_is_no_code_is_told() {
        assert!(matches!(list(&[], 64, 0), Err(DisasmError::Empty)));
        assert!(matches!(list(&[0x90, 6], 64, 0), Err(DisasmError::Undecodable(1, 64))));
        assert!(matches!(list(&[0x90; 3], 16, 0xfffe), Err(DisasmError::Beyond { .. })));
        assert!(list(&[0x90; 2], 16, 0xfffe).is_ok());
        assert!(list(&[0x90; 2], 64, u64::MAX - 1).is_ok());
    }
}
