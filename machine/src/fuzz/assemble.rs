//! One instruction from its template.
//!
//! Problem: an instruction is worth running when its memory operand leads where something interesting is, and
//! that depends on registers whose values earlier instructions may have changed. Scheme: [`Registers`]
//! knows which registers still have a known value, and which of these nobody has looked at yet, so that their
//! initial value may still be chosen. A memory operand gets its target first; then a form is chosen and
//! whatever is free (base register, displacement) makes up for the rest.
//! Invariant: what is assembled is as long as it says. Source: SDM vol. 2, "Instruction Format".

use super::rng::Rng;
use super::template::{Immediate, Rm, Template};
use super::values::number;
use crate::snippet::Bits;

/// General registers as far as they can be foreseen.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    /// Values at the start.
    pub initial: [u64; 16],
    /// Bits of registers that still have their initial value.
    pub known: u16,
    /// Bits of those that no instruction has read: their value may still be chosen.
    pub free: u16,
}

impl Registers {
    #[must_use]
    pub fn is_known(&self, n: usize) -> bool {
        self.known >> n & 1 == 1
    }
    #[must_use]
    pub fn is_free(&self, n: usize) -> bool {
        self.free >> n & 1 == 1
    }
    /// Chooses a register's initial value, if that is still possible.
    pub fn choose(&mut self, n: usize, value: u64) -> bool {
        let free = self.is_free(n);
        if free {
            self.initial[n] = value;
            self.free &= !(1 << n);
        }
        free
    }
}

/// An assembled instruction.
#[derive(Clone, Copy, Debug)]
pub struct Assembled {
    pub bytes: [u8; 15],
    pub len: usize,
    /// Where its memory operand leads, if it has one that could be steered.
    pub target: Option<u64>,
    /// Number of the vector register that indexes its memory operand, and its elements' size.
    pub vector_index: Option<(usize, u8, u8)>,
}

/// Bytes being put together; `None` past the 15th.
struct Writer {
    bytes: [u8; 15],
    len: usize,
    full: bool,
}

impl Writer {
    fn put(&mut self, byte: u8) {
        if let Some(slot) = self.bytes.get_mut(self.len) {
            *slot = byte;
            self.len += 1;
        } else {
            self.full = true;
        }
    }
    fn put_all(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.put(byte);
        }
    }
}

/// Address bytes behind the opcode.
#[derive(Clone, Copy, Debug, Default)]
struct Address {
    /// Mod and r/m of the ModRM byte.
    modrm: u8,
    sib: Option<u8>,
    displacement: u64,
    displacement_len: usize,
    rex: u8,
    /// The displacement counts from the next instruction.
    relative: bool,
}

const REX_X: u8 = 2;
const REX_B: u8 = 1;

/// What an instruction is assembled for.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub bits: Bits,
    /// Offset of the instruction in its segment.
    pub rip: u64,
    /// Where its memory operand shall lead.
    pub target: u64,
}

/// Assembles an instruction of `template`.
pub fn assemble(
    rng: &mut Rng,
    template: &Template,
    place: Place,
    registers: &mut Registers,
) -> Option<Assembled> {
    let Place { bits, .. } = place;
    let wide = bits == Bits::B64;
    let mut out = Writer { bytes: [0; 15], len: 0, full: false };
    let address_bits = address_size(rng, template, bits);
    prefixes(rng, template, bits, address_bits, &mut out);

    let memory = match template.rm {
        Rm::Memory => true,
        Rm::Either => rng.one_in(2),
        Rm::None | Rm::Register => false,
    };
    let mut assembled = Assembled { bytes: [0; 15], len: 0, target: None, vector_index: None };
    let mut address = Address::default();
    if memory {
        let index = template.vector_index.map(|size| {
            let n = rng.below(if wide { 16 } else { 8 }) as u8;
            assembled.vector_index = Some((usize::from(n), size, 0));
            n
        });
        address = memory_operand(rng, place, address_bits, index, registers);
        assembled.target = Some(place.target);
        if let (Some(it), Some(sib)) = (&mut assembled.vector_index, address.sib) {
            it.2 = 1 << (sib >> 6);
        }
    }

    let modrm = modrm(rng, template, memory.then_some(&address));
    let extend = wide && rng.one_in(2);
    if template.vex {
        let rex = address.rex | if extend { rng.next() as u8 & rex_mask(memory) } else { 0 };
        vex(rng, template, rex, wide, &mut out);
    } else {
        let mut rex = address.rex | if extend { rng.next() as u8 & rex_mask(memory) } else { 0 };
        let needed = template.operand_size == 64 || template.w == 1;
        let ignored = template.operand_size == 0 && rng.one_in(24);
        if wide && (needed || ignored) {
            rex |= 8;
        }
        if rex != 0 || wide && rng.one_in(12) {
            out.put(0x40 | rex);
        }
        match template.map {
            1 => out.put(0x0f),
            2 => out.put_all(&[0x0f, 0x38]),
            3 => out.put_all(&[0x0f, 0x3a]),
            _ => {}
        }
        let register = if template.register_in_opcode { rng.next() as u8 & 7 } else { 0 };
        match template.second {
            Some(second) => out.put_all(&[template.opcode, second + register]),
            None => out.put(template.opcode + register),
        }
    }
    let mut relative_at = None;
    if template.rm != Rm::None {
        out.put(modrm);
        if let Some(sib) = address.sib {
            out.put(sib);
        }
        if address.relative {
            relative_at = Some(out.len);
        }
        out.put_all(&address.displacement.to_le_bytes()[..address.displacement_len]);
    }
    immediates(rng, template, place, address_bits, &mut out);
    if out.full {
        return None;
    }
    if let Some(at) = relative_at {
        let next = place.rip + out.len as u64;
        let displacement = place.target.wrapping_sub(next) as u32;
        out.bytes[at..at + 4].copy_from_slice(&displacement.to_le_bytes());
    }
    assembled.bytes = out.bytes;
    assembled.len = out.len;
    Some(assembled)
}

/// REX bits that may be chosen freely: those of a memory operand are given.
fn rex_mask(memory: bool) -> u8 {
    if memory { 4 } else { 7 }
}

fn address_size(rng: &mut Rng, template: &Template, bits: Bits) -> u32 {
    let own = bits.number();
    let other = if own == 32 { 16 } else { 32 };
    match template.address_size {
        0 if rng.one_in(14) => other,
        0 => own,
        size => size,
    }
}

fn prefixes(rng: &mut Rng, template: &Template, bits: Bits, address_bits: u32, out: &mut Writer) {
    const SEGMENTS: [u8; 6] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];
    let mut list = [0u8; 8];
    let mut count = 0;
    let mut add = |byte: u8| {
        if let Some(slot) = list.get_mut(count) {
            *slot = byte;
            count += 1;
        }
    };
    if address_bits != bits.number() {
        add(0x67);
    }
    if !template.vex {
        let native = if bits == Bits::B16 { 16 } else { 32 };
        let small = template.operand_size == 16 && native == 32;
        let large = template.operand_size == 32 && native == 16;
        if small || large {
            add(0x66);
        }
        if template.prefix != 0 {
            add(template.prefix);
        }
        if template.lock && rng.one_in(3) {
            add(0xf0);
        }
        if template.repeats && rng.one_in(2) {
            add(rng.pick(&[0xf2, 0xf3]));
        }
    }
    if rng.one_in(12) {
        add(rng.pick(&SEGMENTS));
    }
    // Now and then one too many, or one that does not belong there.
    if rng.one_in(24) {
        add(rng.pick(&[0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x3e, 0x64]));
    }
    let list = &mut list[..count];
    if count > 1 {
        list.rotate_left(rng.below(count as u64) as usize);
    }
    out.put_all(list);
}

fn modrm(rng: &mut Rng, template: &Template, address: Option<&Address>) -> u8 {
    let reg = template.group.unwrap_or_else(|| rng.next() as u8 & 7);
    let rest = match address {
        Some(address) => address.modrm,
        None => 0xc0 | template.rm_group.unwrap_or_else(|| rng.next() as u8 & 7),
    };
    rest | reg << 3
}

fn vex(rng: &mut Rng, template: &Template, rex: u8, wide: bool, out: &mut Writer) {
    let prefix = match template.prefix {
        0x66 => 1,
        0xf3 => 2,
        0xf2 => 3,
        _ => 0,
    };
    // Inverted, as R, X and B are.
    let second = match (template.vvvv, wide) {
        (true, true) => rng.next() as u8 & 15,
        (true, false) => 8 | rng.next() as u8 & 7,
        // Must be ones; anything else is undefined.
        (false, _) if rng.one_in(64) => rng.next() as u8 & 15,
        (false, _) => 15,
    };
    let ignored = u8::from(rng.one_in(2));
    let l = template.l.unwrap_or(ignored) & 1;
    let w = if template.w == 1 || template.operand_size == 64 { 1 } else { 0 };
    let last = second << 3 | l << 2 | prefix;
    if template.map == 1 && w == 0 && rex & 3 == 0 && rng.one_in(2) {
        out.put_all(&[0xc5, (!rex & 4) << 5 | last, template.opcode]);
    } else {
        out.put_all(&[0xc4, (!rex & 7) << 5 | template.map, w << 7 | last, template.opcode]);
    }
}

fn immediates(
    rng: &mut Rng,
    template: &Template,
    place: Place,
    address_bits: u32,
    out: &mut Writer,
) {
    use iced_x86::Mnemonic as M;
    for immediate in &template.immediates {
        match *immediate {
            Immediate::Plain(2) if template.mnemonic == M::Enter => {
                let size = if rng.one_in(16) { rng.next() } else { rng.below(256) };
                out.put_all(&size.to_le_bytes()[..2]);
            }
            Immediate::Plain(1) if template.mnemonic == M::Enter => {
                out.put(if rng.one_in(16) { rng.next() } else { rng.below(5) } as u8);
            }
            Immediate::Plain(2) if matches!(template.mnemonic, M::Ret | M::Retf) => {
                out.put_all(&(4 * rng.below(8)).to_le_bytes()[..2]);
            }
            Immediate::Plain(len) => {
                out.put_all(&number(rng).to_le_bytes()[..usize::from(len)]);
            }
            Immediate::Address => {
                out.put_all(&place.target.to_le_bytes()[..address_bits as usize / 8]);
            }
            // To the next instruction; the snippet's maker may know better.
            Immediate::Branch(len) => out.put_all(&[0; 4][..usize::from(len)]),
            Immediate::Far(len) => out.put_all(&[0; 6][..usize::from(len) + 2]),
        }
    }
}

/// A memory operand that leads to `place.target`, if registers allow.
fn memory_operand(
    rng: &mut Rng,
    place: Place,
    address_bits: u32,
    vector_index: Option<u8>,
    registers: &mut Registers,
) -> Address {
    if address_bits == 16 {
        return memory_16(rng, place.target, registers);
    }
    let wide = place.bits == Bits::B64;
    let target = place.target;
    let form = rng.below(16);
    if wide && form == 0 && vector_index.is_none() {
        return Address { modrm: 5, displacement_len: 4, relative: true, ..Address::default() };
    }
    if form == 1 && vector_index.is_none() {
        return absolute(rng, target, wide);
    }
    let base = if rng.one_in(10) { 4 } else { rng.below(if wide { 16 } else { 8 }) as usize };
    let index = match vector_index {
        Some(index) => Some(usize::from(index)),
        None if rng.one_in(3) => {
            // 4 would mean none.
            let index = rng.below(if wide { 16 } else { 8 }) as usize;
            (index != 4 && index != base).then_some(index)
        }
        None => None,
    };
    let shift = rng.below(4) as u8;
    let mut sum = 0u64;
    if vector_index.is_none()
        && let Some(index) = index
    {
        if !registers.is_known(index) {
            return absolute(rng, target, wide);
        }
        registers.free &= !(1 << index);
        sum = registers.initial[index] << shift;
    }
    let rest = target.wrapping_sub(sum);
    let (displacement, displacement_len) = match rng.below(4) {
        0 => (rng.next() as i8 as u64, 1),
        1 => ((rng.next() as i32 >> rng.below(24)) as u64, 4),
        _ => (0, 0),
    };
    let mut value = rest.wrapping_sub(displacement);
    if address_bits == 32 {
        value &= 0xffff_ffff;
        if wide {
            value |= rng.next() << 32;
        }
    }
    let (displacement, displacement_len) = if registers.choose(base, value) {
        (displacement, displacement_len)
    } else if registers.is_known(base) {
        let missing = rest.wrapping_sub(registers.initial[base]);
        let narrow = address_bits == 32 || missing as i64 == i64::from(missing as i32);
        if !narrow && !rng.one_in(32) {
            return absolute(rng, target, wide);
        }
        if missing as i64 == i64::from(missing as i8) { (missing, 1) } else { (missing, 4) }
    } else if rng.one_in(8) {
        // Wherever it leads.
        (displacement, displacement_len)
    } else {
        return absolute(rng, target, wide);
    };
    // EBP and R13 have no form without a displacement.
    let displacement_len =
        if displacement_len == 0 && base & 7 == 5 { 1 } else { displacement_len };
    let mode = match displacement_len {
        0 => 0,
        1 => 0x40,
        _ => 0x80,
    };
    let mut address = Address { displacement, displacement_len, modrm: mode, ..Address::default() };
    if base >= 8 {
        address.rex |= REX_B;
    }
    match index {
        Some(index) => {
            address.modrm |= 4;
            address.sib = Some(shift << 6 | (index as u8 & 7) << 3 | (base as u8 & 7));
            if index >= 8 {
                address.rex |= REX_X;
            }
        }
        None if base & 7 == 4 || rng.one_in(16) => {
            address.modrm |= 4;
            address.sib = Some(shift << 6 | 4 << 3 | (base as u8 & 7));
        }
        None => address.modrm |= base as u8 & 7,
    }
    address
}

/// A displacement alone.
fn absolute(rng: &mut Rng, target: u64, wide: bool) -> Address {
    let plain = Address { displacement: target, displacement_len: 4, ..Address::default() };
    if wide || rng.one_in(8) {
        let scale = rng.next() as u8 & 0xc0;
        Address { modrm: 4, sib: Some(scale | 0x25), ..plain }
    } else {
        Address { modrm: 5, ..plain }
    }
}

/// The forms of 16-bit addresses.
fn memory_16(rng: &mut Rng, target: u64, registers: &mut Registers) -> Address {
    const FORMS: [(usize, Option<usize>); 8] = [
        (3, Some(6)),
        (3, Some(7)),
        (5, Some(6)),
        (5, Some(7)),
        (6, None),
        (7, None),
        (5, None),
        (3, None),
    ];
    let rm = rng.below(8) as usize;
    let (base, index) = FORMS[rm];
    let plain =
        Address { displacement: target, displacement_len: 2, modrm: 6, ..Address::default() };
    if rm == 6 && rng.one_in(2) {
        return plain;
    }
    let mut sum = 0;
    if let Some(index) = index {
        if !registers.is_known(index) {
            return plain;
        }
        registers.free &= !(1 << index);
        sum = registers.initial[index];
    }
    let displacement = if rng.one_in(2) { rng.next() as i8 as u64 } else { 0 };
    let value = target.wrapping_sub(sum).wrapping_sub(displacement) & 0xffff;
    let upper = registers.initial[base] & !0xffff;
    let address = if registers.choose(base, upper | value) {
        let len = if displacement == 0 && rm != 6 { 0 } else { 1 };
        Address { displacement, displacement_len: len, ..Address::default() }
    } else if registers.is_known(base) {
        let missing = target.wrapping_sub(sum).wrapping_sub(registers.initial[base]);
        Address { displacement: missing, displacement_len: 2, ..Address::default() }
    } else {
        return plain;
    };
    let mode = [0, 0x40, 0x80][address.displacement_len];
    Address { modrm: mode | rm as u8, ..address }
}
