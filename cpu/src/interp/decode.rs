//! Guest bytes to decoded instructions, and the cache of decoded blocks.
//!
//! Problem: decoding costs ten times what executing does. Scheme: a block is decoded from one page up
//! to an unconditional control transfer (a conditional one leaves it when taken) and kept in a
//! direct-mapped table under its guest physical address and code size; an instruction that crosses into a second page is a block by itself, which depends on both.
//! Nothing in a block depends on the linear address: branch targets and RIP-relative operands are
//! kept relative to the next instruction. A block is valid while the code version of its page is the
//! one it was decoded under; when only other bytes of the page have changed, comparing the block's
//! bytes revives it. Invariants: the page is watched before its bytes are read, so a later store is
//! never missed; while a block runs it is out of the table. Owner: the interpreter of one vCPU.

use iced_x86::{
    Code, CodeSize, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, OpKind,
    Register,
};

use super::memory::{copy_in, is_canonical};
use super::{Access, Interp, table};
use crate::INSN_BYTES_MAX;
use crate::addr::{Gpa, Gva, PAGE_SIZE};
use crate::env::{Memory, Place, Privilege};
use crate::exception::{Outcome, Trap};
use crate::state::sreg;
use crate::vector::VectorOp;

/// Blocks kept; a power of two.
const SLOTS: usize = 1 << 15;
/// Instructions in a block at most.
const LENGTH_MAX: usize = 48;

/// Code version of a device, whose reads may change from one to the next: no page ever has it.
const NEVER_CURRENT: u32 = u32::MAX;

/// No base or index register.
pub const NO_REGISTER: u8 = 0xff;
/// Base register number that stands for the next instruction's address.
pub const BASE_IP: u8 = 0xfe;

pub type Handler<M> = fn(&mut Interp<M>, &Insn<M>) -> Outcome;

/// One decoded instruction.
pub struct Insn<M: Memory> {
    pub run: Handler<M>,
    /// Displacement of the memory operand.
    pub disp: u64,
    /// Immediate (sign-extended as the operation wants it), or a branch's distance from its end.
    pub imm: u64,
    /// Width of the address computation.
    pub addr_mask: u64,
    pub len: u8,
    /// First register operand, as [`super::width::Width::get`] numbers it.
    pub dst: u8,
    /// Second register operand.
    pub src: u8,
    pub base: u8,
    pub index: u8,
    pub scale: u8,
    /// Segment register of the memory operand.
    pub seg: u8,
    pub lock: bool,
    pub raw: Instruction,
    pub vector: Option<VectorOp>,
}

/// Straight-line code.
pub struct Block<M: Memory> {
    gpa: Gpa,
    bits: u8,
    version: u32,
    /// For one instruction that ends in another page: that page's address and version.
    tail: Option<(Gpa, u32)>,
    bytes: Box<[u8]>,
    pub insns: Box<[Insn<M>]>,
}

/// Decoded blocks by guest physical address.
pub struct Cache<M: Memory> {
    slots: Box<[Option<Box<Block<M>>>]>,
}

impl<M: Memory> Cache<M> {
    pub fn new() -> Self {
        Self { slots: (0..SLOTS).map(|_| None).collect() }
    }

    fn slot(gpa: Gpa, bits: u8) -> usize {
        // Multiplying spreads the page number over the bits that the page offset leaves empty.
        let key = gpa.0 ^ (u64::from(bits) << 57);
        (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SLOTS.trailing_zeros())) as usize
    }

    pub fn put_back(&mut self, slot: usize, block: Box<Block<M>>) {
        self.slots[slot] = Some(block);
    }
}

/// Where instruction bytes come from.
#[derive(Clone, Copy)]
enum Source {
    Ram(*const u8),
    Device,
}

impl<M: Memory> Interp<M> {
    /// The block at RIP, taken out of the cache or decoded, and where to put it back.
    #[inline]
    pub(super) fn enter_block(&mut self) -> Outcome<(usize, Box<Block<M>>)> {
        let rip = self.state.rip;
        let la = if self.mode.long64 {
            if !is_canonical(rip) {
                return Err(Trap::gp0());
            }
            rip
        } else {
            let cs = &self.state.seg[sreg::CS];
            if rip > u64::from(cs.limit) {
                return Err(Trap::gp0());
            }
            cs.base.wrapping_add(rip) & 0xffff_ffff
        };
        let (gpa, source) = self.fetch(la)?;
        let slot = Cache::<M>::slot(gpa, self.mode.bits);
        if let Some(mut block) = self.cache.slots[slot].take() {
            let last = rip.wrapping_add(block.bytes.len() as u64 - 1);
            if block.gpa == gpa
                && block.bits == self.mode.bits
                && (self.mode.long64 || last <= u64::from(self.state.seg[sreg::CS].limit))
                && self.revive(&mut block, la, source)?
            {
                return Ok((slot, block));
            }
        }
        Ok((slot, self.decode_block(la, gpa, source)?))
    }

    /// The code that `block` was decoded from has not been written since, as far as one look tells.
    #[inline]
    pub(super) fn is_current(&self, block: &Block<M>) -> bool {
        self.mem.code_version(block.gpa) == block.version
            && block.tail.is_none_or(|(gpa, version)| self.mem.code_version(gpa) == version)
    }

    /// Makes `block`, found at linear address `la`, usable if its bytes are still there.
    #[inline]
    fn revive(&mut self, block: &mut Block<M>, la: u64, source: Source) -> Outcome<bool> {
        if block.tail.is_none() && self.mem.code_version(block.gpa) == block.version {
            return Ok(true);
        }
        self.revive_checked(block, la, source)
    }

    #[cold]
    fn revive_checked(&mut self, block: &mut Block<M>, la: u64, source: Source) -> Outcome<bool> {
        let Source::Ram(hva) = source else { return Ok(false) };
        let version = self.mem.watch_code(block.gpa);
        let first = block.bytes.len().min((PAGE_SIZE - block.gpa.page_offset()) as usize);
        let mut bytes = [0; LENGTH_MAX * INSN_BYTES_MAX];
        // SAFETY: `first` bytes from `hva` lie in its page.
        unsafe { copy_in(hva, &mut bytes[..first]) };
        if let Some((tail_gpa, tail_version)) = &mut block.tail {
            let (gpa, source) = self.fetch_tail(la.wrapping_add(first as u64))?;
            let Source::Ram(hva) = source else { return Ok(false) };
            if gpa != *tail_gpa {
                return Ok(false);
            }
            *tail_version = self.mem.watch_code(gpa);
            // SAFETY: an instruction's second part is shorter than the page that `hva` begins.
            unsafe { copy_in(hva, &mut bytes[first..block.bytes.len()]) };
        }
        if bytes[..block.bytes.len()] != *block.bytes {
            return Ok(false);
        }
        block.version = version;
        Ok(true)
    }

    /// Translates an instruction address.
    #[inline]
    fn fetch(&mut self, la: u64) -> Outcome<(Gpa, Source)> {
        let privilege = if self.state.cpl == 3 { Privilege::User } else { Privilege::Supervisor };
        match self.mem.translate(&self.state, Gva(la), Access::Fetch, privilege) {
            Ok(Place::Ram { hva, gpa }) => Ok((gpa, Source::Ram(hva))),
            Ok(Place::Device { gpa }) => Ok((gpa, Source::Device)),
            Err(fault) => Err(self.page_fault(fault)),
        }
    }

    /// Translates the address of the second page that an instruction lies in.
    fn fetch_tail(&mut self, la: u64) -> Outcome<(Gpa, Source)> {
        let la = self.wrap_code(la);
        if self.mode.long64 && !is_canonical(la) {
            return Err(Trap::gp0());
        }
        self.fetch(la)
    }

    fn read_code(&mut self, gpa: Gpa, source: Source, out: &mut [u8]) {
        match source {
            // SAFETY: callers ask for bytes of the page that `hva` lies in.
            Source::Ram(hva) => unsafe { copy_in(hva, out) },
            Source::Device => {
                for (n, byte) in out.iter_mut().enumerate() {
                    *byte = self.env.mmio_read(gpa.add(n as u64), 1) as u8;
                }
            }
        }
    }

    #[cold]
    fn decode_block(&mut self, la: u64, gpa: Gpa, source: Source) -> Outcome<Box<Block<M>>> {
        // Instructions from a device are decoded one by one and never used again.
        let version = match source {
            Source::Ram(_) => self.mem.watch_code(gpa),
            Source::Device => NEVER_CURRENT,
        };
        let in_page = (PAGE_SIZE - gpa.page_offset()) as usize;
        let in_segment = if self.mode.long64 {
            usize::MAX
        } else {
            (u64::from(self.state.seg[sreg::CS].limit) - self.state.rip + 1) as usize
        };
        let longest = match source {
            Source::Ram(_) => LENGTH_MAX * INSN_BYTES_MAX,
            Source::Device => INSN_BYTES_MAX,
        };
        let mut bytes = [0; LENGTH_MAX * INSN_BYTES_MAX];
        let available = longest.min(in_page).min(in_segment);
        self.read_code(gpa, source, &mut bytes[..available]);

        let mut insns = Vec::new();
        let mut length =
            self.decode_run(&bytes[..available], matches!(source, Source::Device), &mut insns);
        let mut tail = None;
        if insns.is_empty() {
            // The first instruction isn't complete: it ends in the next page, or beyond the segment.
            let total = INSN_BYTES_MAX.min(in_segment);
            if available < total {
                let (tail_gpa, tail_source) = self.fetch_tail(la.wrapping_add(available as u64))?;
                let tail_version = match tail_source {
                    Source::Ram(_) => self.mem.watch_code(tail_gpa),
                    Source::Device => NEVER_CURRENT,
                };
                self.read_code(tail_gpa, tail_source, &mut bytes[available..total]);
                tail = Some((tail_gpa, tail_version));
                length = self.decode_run(&bytes[..total], true, &mut insns);
            }
        }
        if insns.is_empty() {
            return Err(Trap::gp0());
        }
        Ok(Box::new(Block {
            gpa,
            bits: self.mode.bits,
            version,
            tail,
            bytes: bytes[..length].into(),
            insns: insns.into(),
        }))
    }

    /// Decodes the instruction at RIP, if it lies in one page of RAM.
    pub(super) fn decode_one(&mut self) -> Option<Insn<M>> {
        let base = if self.mode.long64 { 0 } else { self.state.seg[sreg::CS].base };
        let la = self.wrap_code(base.wrapping_add(self.state.rip));
        let Ok((gpa, Source::Ram(hva))) = self.fetch(la) else { return None };
        let mut bytes = [0; INSN_BYTES_MAX];
        let available = INSN_BYTES_MAX.min((PAGE_SIZE - gpa.page_offset()) as usize);
        // SAFETY: `available` bytes from `hva` lie in its page.
        unsafe { copy_in(hva, &mut bytes[..available]) };
        let mut insns = Vec::with_capacity(1);
        self.decode_run(&bytes[..available], true, &mut insns);
        insns.pop()
    }

    /// Decodes instructions up to an unconditional control transfer; returns their length in bytes.
    fn decode_run(&mut self, bytes: &[u8], single: bool, out: &mut Vec<Insn<M>>) -> usize {
        let mut decoder =
            Decoder::with_ip(u32::from(self.mode.bits), bytes, 0, self.cpuid.decoder_options());
        let mut length = 0;
        while out.len() < LENGTH_MAX && decoder.can_decode() {
            let raw = decoder.decode();
            if raw.is_invalid() {
                let rest = &bytes[length..];
                let more = decoder.last_error() == DecoderError::NoMoreBytes;
                let bits = u32::from(self.mode.bits);
                let more = match (self.amd, more) {
                    (false, true) => !is_undefined_so_far(rest, bits),
                    (false, false) => is_cut_short(rest, bits),
                    (true, true) => !is_undefined_so_far_for_amd(rest, bits),
                    (true, false) => is_cut_short_for_amd(rest, bits),
                };
                if more && rest.len() < INSN_BYTES_MAX {
                    break;
                }
                let long = is_too_long(&bytes[length..], u32::from(self.mode.bits));
                out.push(Insn::plain(raw, if long { table::too_long } else { table::undefined }));
                length += raw.len().max(1);
                break;
            }
            let exchange =
                if self.amd { exchange_behind_pause(&raw, &bytes[length..]) } else { None };
            let raw = exchange.unwrap_or(raw);
            length += raw.len();
            let vector = self.vector.prepare(&raw);
            let ends = single
                || !matches!(
                    raw.flow_control(),
                    FlowControl::Next | FlowControl::ConditionalBranch
                );
            out.push(Insn::new(raw, vector, &self.cpuid));
            if ends {
                break;
            }
        }
        length
    }
}

/// F3 90 is PAUSE, but F3 REX.B 90 is XCHG with R8 for AMD's processors, as measured; Intel's and the decoder
/// make PAUSE of both.
fn exchange_behind_pause(raw: &Instruction, bytes: &[u8]) -> Option<Instruction> {
    if raw.code() != Code::Pause || raw.code_size() != CodeSize::Code64 {
        return None;
    }
    let bytes = bytes.get(..raw.len())?;
    let rex = *bytes.get(bytes.len().checked_sub(2)?)?;
    if rex & 0xf1 != 0x41 {
        return None;
    }
    let plain: Vec<u8> = bytes.iter().copied().filter(|&byte| byte != 0xf3).collect();
    let mut exchange = Decoder::with_ip(64, &plain, raw.ip(), DecoderOptions::NONE).decode();
    exchange.set_len(bytes.len());
    exchange.set_next_ip(raw.next_ip());
    Some(exchange)
}

/// How many of the first bytes are prefixes.
fn count_prefixes(bytes: &[u8], bits: u32) -> usize {
    let is_prefix = |b: &u8| {
        matches!(b, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
            || bits == 64 && matches!(b, 0x40..=0x4f)
    };
    bytes.iter().take_while(|b| is_prefix(b)).count()
}

/// Whether bytes that end after an opcode are #UD for it alone: Intel's processors, as measured, fetch nothing
/// behind these.
fn is_undefined_so_far(bytes: &[u8], bits: u32) -> bool {
    match bytes[count_prefixes(bytes, bits)..] {
        [opcode] => {
            bits == 64
                && matches!(
                    opcode,
                    0x06 | 0x07
                        | 0x0e
                        | 0x16
                        | 0x17
                        | 0x1e
                        | 0x1f
                        | 0x27
                        | 0x2f
                        | 0x37
                        | 0x3f
                        | 0x60
                        | 0x61
                        | 0xce
                        | 0xd6
                )
        }
        [0x0f, opcode] => matches!(opcode, 0x04 | 0x0a | 0x0c | 0x0f | 0x24..=0x27 | 0x36),
        // The decoder takes it for AMD's XOP prefix.
        [0x8f, modrm, ..] if modrm & 0x38 != 0 => !is_cut_short(bytes, bits),
        _ => false,
    }
}

/// As [`is_undefined_so_far`], of AMD's processors, as measured.
fn is_undefined_so_far_for_amd(bytes: &[u8], bits: u32) -> bool {
    match bytes[count_prefixes(bytes, bits)..] {
        [0x0f, 0x0f, ..] => false,
        // The decoder gives these two a ModRM byte.
        [0x0f, 0xb9 | 0xff, ..] => true,
        _ => is_undefined_so_far(bytes, bits),
    }
}

/// As [`is_cut_short`], of AMD's processors, as measured: the same, but that other opcodes of the two-byte map have no
/// ModRM byte, and that 64-bit mode's undefined opcodes keep the operands that they have elsewhere.
fn is_cut_short_for_amd(bytes: &[u8], bits: u32) -> bool {
    // Behind the opcode: offset and selector.
    let far = |operands: &[u8], prefixes: &[u8]| {
        operands.len() < if prefixes.contains(&0x66) { 4 } else { 6 }
    };
    let prefixes = count_prefixes(bytes, bits);
    match bytes[prefixes..] {
        [0x82, ref operands @ ..] if bits == 64 => {
            is_cut_short(&[&bytes[..prefixes], &[0xc6], operands].concat(), bits)
        }
        [0x9a | 0xea, ref operands @ ..] if bits == 64 => far(operands, &bytes[..prefixes]),
        [0xd4 | 0xd5, ref operands @ ..] if bits == 64 => operands.is_empty(),
        // As 3DNow! had it: an immediate byte at the end.
        [0x0f, 0x0f, ref operands @ ..] => {
            is_cut_short(&[&bytes[..prefixes], &[0xc6], operands].concat(), bits)
        }
        [
            0x0f,
            0x04
            | 0x0a
            | 0x0c
            | 0x0e
            | 0x24..=0x27
            | 0x36
            | 0x39
            | 0x3b..=0x3f
            | 0x7a
            | 0x7b
            | 0xa6
            | 0xa7
            | 0xb9
            | 0xff,
            ..,
        ] => false,
        _ => is_cut_short(bytes, bits),
    }
}

/// Whether the bytes of an undefined instruction end before its ModRM byte, displacement or immediate do: Intel's
/// processors, as measured, fetch all that the opcode's place in the map asks for, then raise #UD. A defined
/// instruction with operands of the same form tells.
fn is_cut_short(bytes: &[u8], bits: u32) -> bool {
    /// MOV r, r/m; IMUL r, r/m, imm8; IMUL r, r/m, imm16 or imm32.
    const PLAIN: u8 = 0x8b;
    const BYTE: u8 = 0x6b;
    const WORD: u8 = 0x69;
    let in_map_1 = |opcode: u8| match opcode {
        0x70..=0x73 | 0xa4 | 0xac | 0xba | 0xc2 | 0xc4..=0xc6 => BYTE,
        _ => PLAIN,
    };
    let prefixes = count_prefixes(bytes, bits);
    let (form, operands) = match bytes[prefixes..] {
        [0x8f, ref operands @ ..] => (PLAIN, operands),
        [0xc6, ref operands @ ..] => (BYTE, operands),
        [0xc7, ref operands @ ..] => (WORD, operands),
        [0x0f, 0x38, _, ref operands @ ..] => (PLAIN, operands),
        [0x0f, 0x3a, _, ref operands @ ..] => (BYTE, operands),
        [0x0f, opcode, ref operands @ ..] => (in_map_1(opcode), operands),
        [0xc5, _, opcode, ref operands @ ..] if opcode != 0x77 => (in_map_1(opcode), operands),
        [0xc4, map, _, opcode, ref operands @ ..] if opcode != 0x77 => match map & 0x1f {
            1 => (in_map_1(opcode), operands),
            2 => (PLAIN, operands),
            3 => (BYTE, operands),
            _ => return false,
        },
        _ => return false,
    };
    let sizes = bytes[..prefixes].iter().filter(|&byte| matches!(byte, 0x66 | 0x67));
    let defined: Vec<u8> = sizes.chain([&form]).chain(operands).copied().collect();
    let mut decoder = Decoder::with_ip(bits, &defined, 0, DecoderOptions::NONE);
    decoder.decode().is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes
}

/// Whether bytes that don't decode are an instruction longer than 15 bytes, which is #GP, not #UD.
fn is_too_long(bytes: &[u8], bits: u32) -> bool {
    let prefixes = count_prefixes(bytes, bits);
    if prefixes >= INSN_BYTES_MAX {
        return true;
    }
    // Without its first prefixes it would decode, and then be too long with them.
    (1..=prefixes).any(|dropped| {
        let mut decoder = Decoder::with_ip(bits, &bytes[dropped..], 0, DecoderOptions::NONE);
        let raw = decoder.decode();
        !raw.is_invalid() && raw.len() + dropped > INSN_BYTES_MAX
    })
}

/// General register number of an iced register, 16 to 19 for AH, CH, DH, BH.
pub fn register_number(register: Register) -> u8 {
    let n = register.number() as u8;
    match n {
        _ if !register.is_gpr8() || n < 4 => n,
        4..=7 => 12 + n,
        _ => n - 4,
    }
}

impl<M: Memory> Insn<M> {
    /// An instruction without operands to lay out.
    fn plain(raw: Instruction, run: Handler<M>) -> Self {
        Self {
            run,
            disp: 0,
            imm: 0,
            addr_mask: u64::MAX,
            len: raw.len().max(1) as u8,
            dst: 0,
            src: 0,
            base: NO_REGISTER,
            index: NO_REGISTER,
            scale: 0,
            seg: sreg::DS as u8,
            lock: false,
            raw,
            vector: None,
        }
    }

    pub fn new(
        mut raw: Instruction,
        vector: Option<VectorOp>,
        cpuid: &crate::cpuid::CpuidModel,
    ) -> Self {
        // These overrides do nothing in 64-bit mode, and what is at a stack address stays #SS (SDM vol. 1,
        // "Segmentation in 64-Bit Mode").
        let ignored = matches!(
            raw.segment_prefix(),
            Register::ES | Register::CS | Register::SS | Register::DS
        );
        if ignored && raw.code_size() == CodeSize::Code64 {
            raw.set_segment_prefix(Register::None);
        }
        let mut insn =
            Self { lock: raw.has_lock_prefix(), vector, ..Self::plain(raw, table::undefined) };
        let mut registers = 0;
        for n in 0..raw.op_count() {
            match raw.op_kind(n) {
                OpKind::Register => {
                    let number = register_number(raw.op_register(n));
                    match registers {
                        0 => insn.dst = number,
                        1 => insn.src = number,
                        _ => {}
                    }
                    registers += 1;
                }
                OpKind::Memory => insn.lay_out_memory(),
                OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                    insn.imm = raw.near_branch64().wrapping_sub(raw.next_ip());
                }
                OpKind::FarBranch16 | OpKind::FarBranch32 => {}
                OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => {
                    insn.addr_mask = 0xffff;
                }
                OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => {
                    insn.addr_mask = 0xffff_ffff;
                }
                OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => {}
                // ENTER's and EXTRQ's second immediate is read from `raw`.
                OpKind::Immediate8_2nd => {}
                _ => insn.imm = raw.immediate(n),
            }
        }
        if raw.op_count() > 0 && insn.seg == sreg::DS as u8 {
            insn.seg = raw.memory_segment().number() as u8;
        }
        insn.run = table::handler(&insn, cpuid);
        insn
    }

    fn lay_out_memory(&mut self) {
        let raw = &self.raw;
        let (base, index) = (raw.memory_base(), raw.memory_index());
        self.disp = raw.memory_displacement64();
        self.seg = raw.memory_segment().number() as u8;
        self.scale = raw.memory_index_scale().trailing_zeros() as u8;
        let size = match (base, index) {
            (Register::None, Register::None) => raw.memory_displ_size() as usize,
            (Register::None, _) if index.is_gpr() => index.size(),
            // A vector index: the displacement tells.
            (Register::None, _) => raw.memory_displ_size() as usize,
            _ => base.size(),
        };
        self.addr_mask = match size {
            2 => 0xffff,
            4 => 0xffff_ffff,
            _ => u64::MAX,
        };
        if raw.is_ip_rel_memory_operand() {
            self.base = BASE_IP;
            self.disp = self.disp.wrapping_sub(raw.next_ip());
        } else if base != Register::None {
            self.base = base.number() as u8;
        }
        // A vector index (VSIB) is added element by element.
        if index.is_gpr() {
            self.index = index.number() as u8;
        }
    }
}
