//! A block for people to read: guest code and host code side by side.
//!
//! Problem: what was made of an instruction is seen neither in a debugger, which knows no guest, nor in the
//! guest. Scheme: the block's map says where each guest instruction's host code begins; both sides are decoded
//! and set beside each other, then the exits. What the area has at an offset of GS is named; so are the entries
//! of other blocks that jumps were pointed at. Invariant: nothing is executed, and bytes that don't
//! decode are shown as such. Any thread.

use std::fmt::{self, Write as _};

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Formatter, Instruction, NasmFormatter, OpKind,
    Register, SymbolResolver, SymbolResult,
};

use crate::area::name_of;
use crate::emit::Site;
use crate::mode::Mode;

/// A block and what is known about it.
#[derive(Clone, Copy)]
pub struct Listing<'a> {
    pub mode: Mode,
    /// Guest address.
    pub rip: u64,
    pub guest: &'a [u8],
    /// How guest bytes are decoded: of [`DecoderOptions`].
    pub options: u32,
    /// Host address.
    pub base: u64,
    pub code: &'a [u8],
    /// Offsets in `code`: the entries (`guarded` is at 0), and where the exits begin.
    pub indirect: u32,
    pub polled: u32,
    pub plain: u32,
    pub exits: u32,
    /// Of each guest instruction, in each round of a loop: offset of its host code, and its own offset.
    pub map: &'a [(u32, u16)],
    pub sites: &'a [Site],
    pub first_site: u32,
    /// What lies at a host address outside the block.
    pub names: &'a dyn Fn(u64) -> Option<String>,
}

impl fmt::Debug for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listing").field("rip", &self.rip).finish_non_exhaustive()
    }
}

/// Columns of the guest's side.
const GUEST_COLUMNS: usize = 66;
const BYTES_COLUMNS: usize = 22;

/// Names of fields of the area.
struct Fields;

impl SymbolResolver for Fields {
    fn symbol(
        &mut self,
        insn: &Instruction,
        operand: u32,
        _: Option<u32>,
        address: u64,
        _: u32,
    ) -> Option<SymbolResult<'_>> {
        let is_area = insn.op_kind(operand) == OpKind::Memory
            && insn.segment_prefix() == Register::GS
            && insn.memory_displ_size() > 1;
        let name = is_area.then(|| name_of(address as i32)).flatten()?;
        Some(SymbolResult::with_string(address, name))
    }
}

fn formatter(names: bool) -> NasmFormatter {
    let resolver: Option<Box<dyn SymbolResolver>> =
        if names { Some(Box::new(Fields)) } else { None };
    let mut formatter = NasmFormatter::with_options(resolver, None);
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_branch_leading_zeros(false);
    options.set_show_branch_size(false);
    options.set_rip_relative_addresses(true);
    formatter
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Listing<'_> {
    /// How many guest instructions the block is made of.
    fn instructions(&self) -> usize {
        let mut guests: Vec<u16> = self.map.iter().map(|&(_, guest)| guest).collect();
        guests.sort_unstable();
        guests.dedup();
        guests.len()
    }

    /// One line of `xenolith disasm`'s list of blocks.
    #[must_use]
    pub fn summary(&self) -> String {
        format!(
            "{:016x}  {:>3} instructions  {:>4} bytes  {:>5} host bytes  {}",
            self.rip,
            self.instructions(),
            self.guest.len(),
            self.code.len(),
            describe(&self.mode)
        )
    }

    fn guest_side(&self, number: usize) -> String {
        let at = usize::from(self.map[number].1);
        let rip = self.rip.wrapping_add(at as u64);
        let bytes = &self.guest[at..];
        let mut decoder = Decoder::with_ip(u32::from(self.mode.bits), bytes, rip, self.options);
        let insn = decoder.decode();
        let mut text = String::new();
        formatter(false).format(&insn, &mut text);
        let digits = if self.mode.bits == 64 { 16 } else { 8 };
        format!("{rip:0digits$x}  {:<BYTES_COLUMNS$} {text}", hex(&bytes[..insn.len()]))
    }

    /// What a site is for, in words.
    fn site(&self, site: &Site) -> String {
        match site {
            Site::Miss { rip, write, size, .. } => {
                let kind = if *write { "write" } else { "read" };
                format!(
                    "refill the inline TLB for a {kind} of {size} bytes at {rip:x}, or hand over"
                )
            }
            Site::Chain { target, link, .. } => format!(
                "find or make the block at {target:x}, point the jump at its entry {link:?}"
            )
            .replace("Plain", "plain")
            .replace("Polled", "polled")
            .replace("Guarded", "guarded"),
            Site::Indirect { rip, .. } => {
                format!("the jump cache doesn't know the target of the transfer at {rip:x}")
            }
            Site::Crossed => "the jump cache there doesn't know the target".to_owned(),
            Site::Poll { rip, .. } => format!("something is in the attention word, at {rip:x}"),
            Site::Guard { rip } => format!("{rip:x}'s page isn't vouched for"),
            Site::HandOver { rip, mnemonic, .. } => {
                let mnemonic = format!("{mnemonic:?}").to_uppercase();
                format!("the interpreter does {mnemonic} at {rip:x}")
            }
        }
    }

    /// What a host instruction that ends at `end` is for, where its text doesn't say.
    fn remark(&self, insn: &Instruction, end: u64) -> Option<String> {
        let names_site = insn.code() == Code::Mov_rm32_imm32
            && insn.segment_prefix() == Register::GS
            && insn.memory_base() == Register::None
            && name_of(insn.memory_displacement32() as i32).as_deref() == Some("site");
        if names_site {
            let number = insn.immediate32().checked_sub(self.first_site)?;
            return Some(format!("exit {number}: {}", self.site(self.sites.get(number as usize)?)));
        }
        if insn.code() == Code::Nop_rm32 && insn.memory_displ_size() > 1 {
            let number = insn.memory_displacement32().checked_sub(self.first_site)?;
            return Some(format!("exit {number}: {}", self.site(self.sites.get(number as usize)?)));
        }
        let direct = matches!(
            insn.flow_control(),
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
        );
        if !direct {
            return None;
        }
        let offset = (end - self.base) as u32;
        let target = insn.near_branch_target();
        let chained = self.sites.iter().find_map(|site| match site {
            Site::Chain { target, patch, .. } if patch + 4 == offset => Some(*target),
            _ => None,
        });
        let inside = (self.base..self.base + self.code.len() as u64).contains(&target);
        match chained {
            Some(to) if inside && (target - self.base) as u32 >= self.exits => {
                Some(format!("not chained yet: leaves for {to:x}"))
            }
            Some(to) if inside => Some(format!("chained: {to:x}, this block")),
            Some(to) => {
                let name = (self.names)(target).unwrap_or_else(|| format!("the block at {to:x}"));
                Some(format!("chained: {name}"))
            }
            None if inside => None,
            None => (self.names)(target),
        }
    }

    /// Host instructions from offset `from` to `to`: offset, bytes and text of each.
    fn host_side(&self, from: usize, to: usize) -> Vec<String> {
        let mut formatter = formatter(true);
        let ip = self.base + from as u64;
        let mut decoder = Decoder::with_ip(64, &self.code[from..to], ip, DecoderOptions::NONE);
        let mut lines = Vec::new();
        while decoder.can_decode() {
            let insn = decoder.decode();
            let at = (insn.ip() - self.base) as usize;
            let mut text = String::new();
            let target = insn.near_branch_target();
            let inside = target.wrapping_sub(self.base) < self.code.len() as u64;
            let branches = matches!(
                insn.flow_control(),
                FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
            );
            if branches && inside {
                let mnemonic = format!("{:?}", insn.mnemonic()).to_lowercase();
                // Writing to a String can't fail.
                let _ = write!(text, "{mnemonic} +{:x}", target - self.base);
            } else {
                formatter.format(&insn, &mut text);
            }
            let bytes = hex(&self.code[at..at + insn.len()]);
            let mut line = format!("+{at:<4x} {bytes:<BYTES_COLUMNS$} {text}");
            if let Some(remark) = self.remark(&insn, insn.next_ip()) {
                let _ = write!(line, "   ; {remark}");
            }
            lines.push(line);
        }
        lines
    }
}

/// A mode in words.
fn describe(mode: &Mode) -> String {
    let mut text = format!("{}-bit", mode.bits);
    text.push_str(if mode.privilege == 0 { ", user" } else { ", supervisor" });
    if mode.segmented {
        text.push_str(", segmented");
    }
    text.push_str(if mode.shadow { ", shadow windows" } else { ", inline TLB" });
    text
}

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (inside, all) = (self.exits as usize, self.code.len());
        let grown = inside as f64 / self.guest.len().max(1) as f64;
        writeln!(f, "block {:x}: {}", self.rip, describe(&self.mode))?;
        writeln!(
            f,
            "in: {} instructions, {} bytes; out: {inside} bytes ({grown:.1} times), {} more in {} exits; \
             host address {:x}",
            self.instructions(),
            self.guest.len(),
            all - inside,
            self.sites.len(),
            self.base,
        )?;
        let mut rows = |guest: &str, from: usize, to: usize| {
            let lines = self.host_side(from, to);
            let count = lines.len().max(usize::from(!guest.is_empty()));
            for n in 0..count {
                let left = if n == 0 { guest } else { "" };
                let right = lines.get(n).map_or("", String::as_str);
                writeln!(f, "{}", format!("{left:<GUEST_COLUMNS$} {right}").trim_end())?;
            }
            Ok(())
        };
        let entries = [self.indirect, self.polled, self.plain];
        let [indirect, polled, plain] = entries.map(|entry| entry as usize);
        let first = self.map.first().map_or(inside, |&(host, _)| host as usize);
        rows("entry guarded", 0, indirect)?;
        if indirect < polled {
            rows("entry indirect", indirect, polled)?;
        }
        rows("entry polled", polled, plain)?;
        rows("entry plain", plain, first)?;
        for (number, &(host, _)) in self.map.iter().enumerate() {
            let end = self.map.get(number + 1).map_or(inside, |&(host, _)| host as usize);
            rows(&self.guest_side(number), host as usize, end)?;
        }
        rows("exits", inside, all)
    }
}
