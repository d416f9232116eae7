//! Descriptors and segment registers.
//!
//! Problem: a selector load is a small access-control decision with an error code for each way to fail.
//! Scheme: [`Interp::descriptor`] fetches from the GDT or LDT; each kind of load applies its own
//! rules. Invariants: a register changes only after every check has passed and the accessed bit has
//! been written; loading SS ends the block with an interrupt shadow. Source: SDM vol. 3, "Protection",
//! "Segment Descriptor Tables"; vol. 2, "MOV", "LAR", "LSL", "VERR/VERW", "ARPL", "LTR", "LLDT".

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::Interp;
use super::alu::operand_bytes;
use super::decode::{Handler, Insn};
use super::memory::{is_canonical, null_segment};
use super::width::Width;
use crate::env::Memory;
use crate::exception::{Outcome, Trap};
use crate::state::{Rflags, Segment, Shadow, TableRegister, sreg};

/// System descriptor types (SDM vol. 3, "System Descriptor Types").
pub(super) mod kind {
    pub const TSS_16: u32 = 1;
    pub const LDT: u32 = 2;
    pub const TSS_16_BUSY: u32 = 3;
    pub const CALL_GATE_16: u32 = 4;
    pub const TASK_GATE: u32 = 5;
    pub const INTERRUPT_GATE_16: u32 = 6;
    pub const TRAP_GATE_16: u32 = 7;
    pub const TSS: u32 = 9;
    pub const TSS_BUSY: u32 = 11;
    pub const CALL_GATE: u32 = 12;
    pub const INTERRUPT_GATE: u32 = 14;
    pub const TRAP_GATE: u32 = 15;
}

/// The virtual-8086 access rights of a data segment (and of CS): present, DPL 3, writable, accessed.
pub(super) const V86_ACCESS: u32 = 0xf3;

/// The real-mode access rights of a data segment: present, writable, accessed.
const REAL_ACCESS: u32 = 0x93;

/// A descriptor in its table.
#[derive(Clone, Copy)]
pub(super) struct Descriptor {
    pub selector: u16,
    /// Linear address.
    pub la: u64,
    /// Its first eight bytes.
    pub raw: u64,
}

impl Descriptor {
    pub fn segment(&self) -> Segment {
        Segment::from_descriptor(self.selector, self.raw)
    }
    /// Type of a system descriptor or gate; meaningless for code and data.
    pub fn kind(&self) -> u32 {
        (self.raw >> 40 & 0xf) as u32
    }
    pub fn is_system(&self) -> bool {
        self.raw >> 44 & 1 == 0
    }
    pub fn is_present(&self) -> bool {
        self.raw >> 47 & 1 != 0
    }
    pub fn dpl(&self) -> u8 {
        (self.raw >> 45 & 3) as u8
    }
}

/// The segment registers that a return to an outer level looks at.
const DATA_SEGMENTS: [usize; 4] = [sreg::ES, sreg::DS, sreg::FS, sreg::GS];

/// What such a register is behind a return to `cpl`.
fn at_outer_level(segment: Segment, cpl: u8) -> Segment {
    if is_null(segment.selector) {
        // Only the selector: FS and GS keep the base that an MSR gave them.
        Segment { selector: 0, ..segment }
    } else if segment.is_usable() && !segment.is_conforming() && segment.dpl() < cpl {
        null_segment(0)
    } else {
        segment
    }
}

/// Selector without RPL: null?
pub(super) fn is_null(selector: u16) -> bool {
    selector & 0xfffc == 0
}

impl<M: Memory> Interp<M> {
    /// The descriptor that `selector` names; `None` beyond its table's limit.
    pub(super) fn descriptor(&mut self, selector: u16) -> Outcome<Option<Descriptor>> {
        let table = if selector & 4 == 0 {
            self.state.gdtr
        } else if self.state.ldtr.is_usable() {
            let limit = self.state.ldtr.limit.min(0xffff) as u16;
            TableRegister { base: self.state.ldtr.base, limit }
        } else {
            return Ok(None);
        };
        if selector | 7 > table.limit {
            return Ok(None);
        }
        let la = self.wrap(table.base.wrapping_add(u64::from(selector & 0xfff8)));
        let raw = self.load_system::<u64>(la)?;
        Ok(Some(Descriptor { selector, la, raw }))
    }

    /// The second half of a 16-byte system descriptor.
    pub(super) fn descriptor_high(&mut self, descriptor: &Descriptor) -> Outcome<u64> {
        let table_limit = if descriptor.selector & 4 == 0 {
            u32::from(self.state.gdtr.limit)
        } else {
            self.state.ldtr.limit
        };
        if u32::from(descriptor.selector | 7) + 8 > table_limit {
            return Err(Trap::gp(descriptor.selector));
        }
        self.load_system::<u64>(self.wrap(descriptor.la.wrapping_add(8)))
    }

    /// Sets the accessed bit of a code or data descriptor, in memory and in `descriptor`.
    pub(super) fn mark_accessed(&mut self, descriptor: &mut Descriptor) -> Outcome {
        self.set_type_bit(descriptor, 1)
    }

    /// Sets a type bit, if it isn't set yet.
    pub(super) fn set_type_bit(&mut self, descriptor: &mut Descriptor, bit: u64) -> Outcome {
        if descriptor.raw >> 40 & bit == 0 {
            descriptor.raw |= bit << 40;
            self.store_system(
                self.wrap(descriptor.la.wrapping_add(5)),
                (descriptor.raw >> 40) as u8,
            )?;
        }
        Ok(())
    }

    /// Loads ES, SS, DS, FS or GS as MOV and POP do.
    pub(super) fn load_segment(&mut self, register: usize, selector: u16) -> Outcome {
        if !self.mode.protected {
            let v86 = self.state.v86();
            let segment = &mut self.state.seg[register];
            if v86 {
                *segment = Segment::real(selector, V86_ACCESS);
            } else {
                if !segment.is_usable() {
                    // A null selector from protected mode left no limit or rights to go on with.
                    *segment = Segment::real(selector, REAL_ACCESS);
                }
                // The limit stays: how "unreal mode" comes about.
                segment.selector = selector;
                segment.base = u64::from(selector) << 4;
                segment.access |= Segment::PRESENT | Segment::S;
            }
            return Ok(());
        }
        let loaded = if register == sreg::SS {
            self.stack_segment(selector, self.state.cpl, Trap::gp)?
        } else {
            self.data_segment(selector)?
        };
        self.state.seg[register] = loaded;
        Ok(())
    }

    /// Checks a selector for SS at privilege `cpl` and gives the segment. `refused`: the exception for
    /// a bad selector (#GP, or #TS when it comes from a TSS).
    pub(super) fn stack_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        refused: fn(u16) -> Trap,
    ) -> Outcome<Segment> {
        if is_null(selector) {
            if self.mode.long64 && cpl < 3 && (selector & 3) as u8 == cpl {
                return Ok(null_stack(selector, cpl));
            }
            return Err(refused(0));
        }
        let mut descriptor = self.descriptor(selector)?.ok_or(refused(selector))?;
        let segment = descriptor.segment();
        if segment.rpl() != cpl || !segment.is_writable() || segment.dpl() != cpl {
            return Err(refused(selector));
        }
        if !segment.is_present() {
            return Err(Trap::ss(selector));
        }
        self.mark_accessed(&mut descriptor)?;
        Ok(descriptor.segment())
    }

    /// Checks a selector for DS, ES, FS or GS and gives the segment.
    pub(super) fn data_segment(&mut self, selector: u16) -> Outcome<Segment> {
        if is_null(selector) {
            return Ok(null_segment(selector));
        }
        let mut descriptor = self.descriptor(selector)?.ok_or(Trap::gp(selector))?;
        let segment = descriptor.segment();
        let reachable =
            segment.is_conforming() || segment.rpl().max(self.state.cpl) <= segment.dpl();
        if !segment.is_readable() || !reachable {
            return Err(Trap::gp(selector));
        }
        if !segment.is_present() {
            return Err(Trap::np(selector));
        }
        self.mark_accessed(&mut descriptor)?;
        Ok(descriptor.segment())
    }

    /// After a successful MOV or POP: SS holds off interrupts for one instruction and may change the
    /// stack's width.
    pub(super) fn segment_loaded(&mut self, register: usize) -> Outcome {
        if register != sreg::SS {
            return Ok(());
        }
        self.state.shadow = Shadow::MovSs;
        Err(Trap::Exit)
    }

    /// On a return to an outer level: data segments that the outer level may not use become null.
    pub(super) fn drop_inner_segments(&mut self) {
        for register in DATA_SEGMENTS {
            let segment = &mut self.state.seg[register];
            *segment = at_outer_level(*segment, self.state.cpl);
        }
    }

    /// Whether a return to CPL 3 would leave the data segment registers as they are.
    #[must_use]
    pub fn keeps_segments(&self) -> bool {
        DATA_SEGMENTS.iter().all(|&register| {
            let segment = self.state.seg[register];
            at_outer_level(segment, 3) == segment
        })
    }

    /// LAR, LSL, VERR and VERW: the descriptor if this privilege level may see it.
    fn visible_descriptor(&mut self, selector: u16) -> Outcome<Option<Descriptor>> {
        if is_null(selector) {
            return Ok(None);
        }
        let Some(descriptor) = self.descriptor(selector)? else { return Ok(None) };
        let segment = descriptor.segment();
        let conforming = segment.is_conforming();
        let level = self.state.cpl.max(segment.rpl());
        Ok((conforming || level <= segment.dpl()).then_some(descriptor))
    }
}

/// SS after a null load in 64-bit mode: usable there, with DPL as the privilege level.
pub(super) fn null_stack(selector: u16, cpl: u8) -> Segment {
    Segment { base: 0, limit: 0, access: Segment::UNUSABLE | u32::from(cpl) << 5, selector }
}

/// MOV to a segment register.
pub(super) fn mov_to<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let register = i.raw.op0_register().number();
    if register == sreg::CS {
        return Err(Trap::ud());
    }
    let selector = if i.raw.op1_kind() == OpKind::Memory {
        let offset = vm.address(i);
        vm.load::<u16>(i.seg, offset)?
    } else {
        vm.state.gpr[usize::from(i.src & 15)] as u16
    };
    vm.load_segment(register, selector)?;
    vm.segment_loaded(register)
}

/// MOV from a segment register.
pub(super) fn mov_from<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let selector = vm.state.seg[i.raw.op1_register().number()].selector;
    vm.store_word_or_register(i, u64::from(selector))
}

/// LDS, LES, LFS, LGS and LSS.
pub(super) fn load_far_pointer<M: Memory>(raw: &Instruction) -> Handler<M> {
    fn load<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
        let register = match i.raw.mnemonic() {
            Mnemonic::Les => sreg::ES,
            Mnemonic::Lds => sreg::DS,
            Mnemonic::Lfs => sreg::FS,
            Mnemonic::Lgs => sreg::GS,
            _ => sreg::SS,
        };
        let offset = vm.address(i);
        let value = vm.load::<W>(i.seg, offset)?;
        let selector = vm.load::<u16>(i.seg, offset.wrapping_add(W::BYTES) & i.addr_mask)?;
        vm.load_segment(register, selector)?;
        W::set(&mut vm.state, i.dst, value);
        // LSS loads the pointer too, so it holds nothing off; but the stack's width may change.
        if register == sreg::SS { Err(Trap::Exit) } else { Ok(()) }
    }
    match raw.op0_register().size() {
        2 => load::<M, u16>,
        4 => load::<M, u32>,
        _ => load::<M, u64>,
    }
}

/// Instructions about descriptors are #UD in real and virtual-8086 mode.
fn protected_only<M: Memory>(vm: &Interp<M>) -> Outcome {
    if vm.mode.protected { Ok(()) } else { Err(Trap::ud()) }
}

fn set_zf<M: Memory>(vm: &mut Interp<M>, on: bool) {
    vm.state.rflags &= !Rflags::ZF.bits();
    if on {
        vm.state.rflags |= Rflags::ZF.bits();
    }
}

/// The selector operand of LAR and LSL (their second).
fn selector_operand<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome<u16> {
    if i.raw.op1_kind() == OpKind::Memory {
        let offset = vm.address(i);
        vm.load(i.seg, offset)
    } else {
        Ok(vm.state.gpr[usize::from(i.src & 15)] as u16)
    }
}

fn set_sized<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>, value: u64) {
    match i.raw.op0_register().size() {
        2 => u16::set(&mut vm.state, i.dst, value as u16),
        4 => u32::set(&mut vm.state, i.dst, value as u32),
        _ => u64::set(&mut vm.state, i.dst, value),
    }
}

pub(super) fn lar<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    protected_only(vm)?;
    let selector = selector_operand(vm, i)?;
    let long = vm.state.long_mode();
    let found = vm.visible_descriptor(selector)?.filter(|descriptor| {
        use kind as k;
        !descriptor.is_system()
            || match descriptor.kind() {
                k::LDT | k::TSS | k::TSS_BUSY | k::CALL_GATE => true,
                k::TSS_16 | k::TSS_16_BUSY | k::CALL_GATE_16 | k::TASK_GATE => !long,
                _ => false,
            }
    });
    set_zf(vm, found.is_some());
    if let Some(descriptor) = found {
        set_sized(vm, i, descriptor.raw >> 32 & 0x00ff_ff00);
    }
    Ok(())
}

pub(super) fn lsl<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    protected_only(vm)?;
    let selector = selector_operand(vm, i)?;
    let long = vm.state.long_mode();
    let found = vm.visible_descriptor(selector)?.filter(|descriptor| {
        use kind as k;
        !descriptor.is_system()
            || match descriptor.kind() {
                k::LDT | k::TSS | k::TSS_BUSY => true,
                k::TSS_16 | k::TSS_16_BUSY => !long,
                _ => false,
            }
    });
    set_zf(vm, found.is_some());
    if let Some(descriptor) = found {
        set_sized(vm, i, u64::from(descriptor.segment().limit));
    }
    Ok(())
}

/// VERR, and VERW (`WRITE`).
pub(super) fn verify<M: Memory, const WRITE: bool>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    protected_only(vm)?;
    let selector = vm.load_word(i)?;
    let found = vm.visible_descriptor(selector)?.is_some_and(|descriptor| {
        let segment = descriptor.segment();
        !descriptor.is_system() && if WRITE { segment.is_writable() } else { segment.is_readable() }
    });
    set_zf(vm, found);
    Ok(())
}

pub(super) fn arpl<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    protected_only(vm)?;
    let memory = i.raw.op0_kind() == OpKind::Memory;
    let rpl = vm.state.gpr[usize::from(if memory { i.dst } else { i.src } & 15)] as u16 & 3;
    let old = vm.load_word(i)?;
    let raise = old & 3 < rpl;
    if raise {
        vm.store_word_operand(i, old & !3 | rpl)?;
    }
    set_zf(vm, raise);
    Ok(())
}

impl<M: Memory> Interp<M> {
    /// Stores 16 bits to the first operand.
    fn store_word_operand(&mut self, i: &Insn<M>, value: u16) -> Outcome {
        if i.raw.op0_kind() == OpKind::Memory {
            let offset = self.address(i);
            return self.store(i.seg, offset, value);
        }
        u16::set(&mut self.state, i.dst, value);
        Ok(())
    }
}

/// SLDT, and STR (`TASK`).
pub(super) fn store_selector<M: Memory, const TASK: bool>(
    vm: &mut Interp<M>,
    i: &Insn<M>,
) -> Outcome {
    protected_only(vm)?;
    vm.check_umip()?;
    let selector = if TASK { vm.state.tr.selector } else { vm.state.ldtr.selector };
    vm.store_word_or_register(i, u64::from(selector))
}

pub(super) fn lldt<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    protected_only(vm)?;
    vm.privileged()?;
    let selector = vm.load_word(i)?;
    vm.state.ldtr = if is_null(selector) {
        null_segment(selector)
    } else {
        vm.ldt_segment(selector, Trap::gp, Trap::np)?
    };
    Ok(())
}

impl<M: Memory> Interp<M> {
    /// Checks a non-null selector for LDTR.
    pub(super) fn ldt_segment(
        &mut self,
        selector: u16,
        refused: fn(u16) -> Trap,
        absent: fn(u16) -> Trap,
    ) -> Outcome<Segment> {
        if selector & 4 != 0 {
            return Err(refused(selector));
        }
        let descriptor = self.descriptor(selector)?.ok_or(refused(selector))?;
        if !descriptor.is_system() || descriptor.kind() != kind::LDT {
            return Err(refused(selector));
        }
        if !descriptor.is_present() {
            return Err(absent(selector));
        }
        self.system_segment(&descriptor)
    }

    /// The segment of an LDT or TSS descriptor, which has 16 bytes in long mode.
    fn system_segment(&mut self, descriptor: &Descriptor) -> Outcome<Segment> {
        let mut segment = descriptor.segment();
        if self.state.long_mode() {
            let high = self.descriptor_high(descriptor)?;
            segment.base = segment.base & 0xffff_ffff | high << 32;
            // The type field of the upper half must be zero.
            if high >> 40 & 0x1f != 0 || !is_canonical(segment.base) {
                return Err(Trap::gp(descriptor.selector));
            }
        }
        Ok(segment)
    }
}

pub(super) fn ltr<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    protected_only(vm)?;
    vm.privileged()?;
    let selector = vm.load_word(i)?;
    if is_null(selector) {
        return Err(Trap::gp0());
    }
    if selector & 4 != 0 {
        return Err(Trap::gp(selector));
    }
    let mut descriptor = vm.descriptor(selector)?.ok_or(Trap::gp(selector))?;
    let available = match descriptor.kind() {
        kind::TSS => true,
        kind::TSS_16 => !vm.state.long_mode(),
        _ => false,
    };
    if !descriptor.is_system() || !available {
        return Err(Trap::gp(selector));
    }
    if !descriptor.is_present() {
        return Err(Trap::np(selector));
    }
    let mut segment = vm.system_segment(&descriptor)?;
    vm.set_type_bit(&mut descriptor, 2)?;
    segment.access |= 2;
    vm.state.tr = segment;
    Ok(())
}

/// MOV with a segment register, picked by which side it is on.
pub(super) fn mov<M: Memory>(raw: &Instruction) -> Handler<M> {
    let to_segment = raw.op0_kind() == OpKind::Register && raw.op0_register().is_segment_register();
    debug_assert!(to_segment || operand_bytes(raw) != 1);
    if to_segment { mov_to } else { mov_from }
}
