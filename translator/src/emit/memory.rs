//! Guest memory operands: the one place that knows how an access finds its host address.
//!
//! Problem: a guest address must become a host address at every access, without touching the flags,
//! which are the guest's, and a fault must leave the guest as it was before the instruction. Scheme:
//! the linear address goes to one scratch register, what must be added to it to another, by the inline
//! TLB's tag and addend; if the tag is another page's, or the access crosses its page, a stub leaves.
//! Within a window only the first access does that: it looks at the window's whole range and keeps the
//! addend for the others. Invariant: after a check, `[address + addend]` is guest RAM with the right
//! to do what was checked, for all bytes that were checked. Where
//! the mode uses shadow windows nothing is checked: the address's region tells what to add, and the
//! host's MMU does the rest, faults included; [`MapEntry`](super::MapEntry) then tells where.

use dynasmrt::x64::X64Relocation;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm};
use iced_x86::{
    Code, Decoder, DecoderOptions, Instruction, MemoryOperand, Mnemonic, OpKind, Register,
};

use xenolith_cpu::INSN_BYTES_MAX;

use super::names::{
    address_bits, constant_address, full, is_short, keeps_bytes, narrow, scratch_number, wide_form,
};
use super::place::{Spot, is_narrow};
use super::{EmitError, Emitter, R10, R11, RCX, Restore, Site, Stub, has_memory};
use crate::area::{PROBE, offset};
use crate::plan::{Part, Plan, Step, alignment, has_high_byte};

/// How far an address is turned so that its region's number comes to the lowest bits, or to where a page's
/// number is, for a guess.
const REGION_BITS: i8 = 32;
const GUESSED_BITS: i8 = 20;

/// Prefixes: FS, and an address of 32 bits in 64-bit code.
const FS_AND_NARROW: [u8; 2] = [0x64, 0x67];

/// The scratch registers of one access, and which of them the guest's value must return to.
#[derive(Clone, Copy)]
pub(super) struct Borrowed {
    /// Holds the linear address.
    pub address: u8,
    /// Holds the TLB index, then the addend.
    pub addend: u8,
    /// Registers other than r10 and r11 that were spilled, to slots 1 and 2.
    pub spilled: [Option<u8>; 2],
}

impl Borrowed {
    pub const SCRATCH: Self = Self { address: R10, addend: R11, spilled: [None; 2] };
}

/// What is checked about an access.
#[derive(Clone, Copy)]
pub(super) struct Check {
    pub rip: u64,
    /// The access writes.
    pub write: bool,
    /// Some access of the window does.
    pub writes: bool,
    pub size: u16,
    /// The address must be a multiple of this; 0 or 1 for any.
    pub align: u8,
    /// Where the computation of the address begins.
    pub start: usize,
    /// By the inline TLB, not by shadow windows.
    pub looks_up: bool,
    /// What the address is.
    pub spot: Spot,
    /// What is accessed are slots of the stack.
    pub slots: bool,
}

impl Check {
    /// Of a lone access.
    pub fn one(step: &Step, rip: u64, write: bool, size: u8, start: usize, spot: Spot) -> Self {
        let looks_up = step.looks_up;
        let (writes, size) = (write, u16::from(size));
        Self { rip, write, writes, size, align: 0, start, looks_up, spot, slots: false }
    }
}

impl Emitter<'_> {
    /// Computes the address of `insn`'s memory operand into `address`; `other` is free too. It is linear, or
    /// in segmented code an offset: see [`Self::spot`].
    pub(super) fn effective_address(
        &mut self,
        insn: &Instruction,
        address: u8,
        other: u8,
    ) -> Result<(), EmitError> {
        if let Some(at) = constant_address(insn) {
            if self.wide() {
                self.constant_address(address, insn, at);
            } else {
                dynasm!(self.asm ; .arch x64 ; mov Rd(address), at as i32);
            }
        } else {
            // Guest r10 and r11 are loaded to the two free registers, whichever those are.
            let mut free = [address, other].into_iter();
            let mut stand_in =
                |emitter: &mut Self, register: Register| match scratch_number(register) {
                    Some(number) => {
                        let place = free.next().unwrap_or(other);
                        let at = offset::gpr(usize::from(number));
                        dynasm!(emitter.asm ; .arch x64 ; gs mov Rq(place), [at]);
                        full(place)
                    }
                    None if register == Register::None => Register::None,
                    None => register.full_register(),
                };
            let narrow_address =
                !self.wide() || insn.memory_base().size() == 4 || insn.memory_index().size() == 4;
            let base = stand_in(self, insn.memory_base());
            let index = if insn.memory_index().full_register() == insn.memory_base().full_register()
            {
                base
            } else {
                stand_in(self, insn.memory_index())
            };
            // In 32-bit code the displacement is zero-extended: as a signed one it encodes.
            let displacement = if self.wide() {
                insn.memory_displacement64() as i64
            } else {
                i64::from(insn.memory_displacement64() as i32)
            };
            let operand = MemoryOperand::with_base_index_scale_displ_size(
                base,
                index,
                insn.memory_index_scale(),
                displacement,
                if displacement == 0 && base != Register::None { 0 } else { 8 },
            );
            let code = if narrow_address { Code::Lea_r32_m } else { Code::Lea_r64_m };
            let target = if narrow_address { narrow(address) } else { full(address) };
            let lea = Instruction::with2(code, target, operand)
                .map_err(|error| EmitError::Encode(format!("{insn}: {error}")))?;
            self.encode(&lea)?;
            if is_narrow(insn) {
                dynasm!(self.asm ; .arch x64 ; movzx Rd(address), Rw(address));
            }
        }
        let segment = insn.memory_segment();
        if self.wide() && matches!(segment, Register::FS | Register::GS) {
            let base = offset::seg_base(segment.number());
            dynasm!(self.asm ; .arch x64
                ; gs mov Rq(other), [base]
                ; lea Rq(address), [Rq(address) + Rq(other)]
            );
        }
        Ok(())
    }

    /// The address of an operand that is the same in all of the block's runs.
    fn fixed_address(&self, insn: &Instruction) -> Option<u64> {
        let is_relative = insn.is_ip_rel_memory_operand();
        let at = constant_address(insn)?;
        (self.wide()
            && self.frame.mode.shadow
            && has_memory(insn)
            && !(is_relative && self.frame.floats())
            && insn.memory_base() != Register::EIP
            && !matches!(insn.memory_segment(), Register::FS | Register::GS))
        .then_some(at)
    }

    /// Which of r10 and r11 is to hold the addend of a step's access: best the one that holds it. The stack's is in
    /// r11, so others come to r10 first.
    fn addend_register(&self, step: &Step) -> Option<u8> {
        let busy = step.uses.any | address_bits(&step.insn);
        let order = if step.insn.memory_base() == Register::RSP { [R11, R10] } else { [R10, R11] };
        let holds = |register: u8| {
            let held = self.ready[usize::from(register - R10)];
            held.is_some() && held == step.part.map(|part| part.window)
        };
        let mut free = order.into_iter().filter(|&register| busy & 1 << register == 0);
        let first = free.next()?;
        Some(free.find(|&register| holds(register) && !holds(first)).unwrap_or(first))
    }

    /// The shadow window's delta for the region of an address that is known.
    fn delta_of(&mut self, into: u8, at: u64) {
        let regions = offset::regions(usize::from(self.frame.mode.privilege));
        let delta = regions + 8 * i32::from((at >> 32) as u16);
        dynasm!(self.asm ; .arch x64 ; gs mov Rq(into), [delta]);
    }

    /// The shadow window's delta for the region of the address in `of`. Nothing is checked: what isn't
    /// mapped faults. The delta of a guessed region doesn't wait for the address; a byte load that faults
    /// for every other region shows that the guess is right.
    pub(super) fn delta(&mut self, into: u8, of: u8) {
        let regions = offset::regions(usize::from(self.frame.mode.privilege));
        if !self.wide() {
            // There is but one region.
            dynasm!(self.asm ; .arch x64 ; gs mov Rq(into), [regions]);
            return;
        }
        if let Some(region) = self.region {
            let page = PROBE.wrapping_sub(region << 12).cast_signed();
            let delta = regions + 8 * i32::from(region as u16);
            dynasm!(self.asm ; .arch x64
                ; rorx Rq(into), Rq(of), GUESSED_BITS
                ; movzx Rd(into), BYTE [Rd(into) + page]
                ; gs mov Rq(into), [delta]
            );
            return;
        }
        self.region_number(into, of);
        find_delta(self.asm, into, regions);
    }

    /// The inline TLB lookup, or the shadow window's delta. On entry the address is in `b.address`; after it
    /// `[address + addend]` is the host's. Leaves by a stub on a miss; RCX is whole again after it.
    pub(super) fn check(&mut self, b: Borrowed, check: Check) {
        self.linearize(b, &check, false);
        if check.looks_up {
            self.look_up(b, check, None);
        } else {
            self.delta(b.addend, b.address);
        }
    }

    /// The inline TLB lookup of a linear address. `keep`: slot of a window, and the segment that its
    /// offsets are into: what is to be added to them is stored.
    fn look_up(&mut self, b: Borrowed, check: Check, keep: Option<(i32, u8)>) {
        let Check { rip, write, writes, size, align, start, .. } = check;
        // An aligned operand doesn't cross a page: its first byte is looked at, else its last.
        let (page, last) = match align {
            16 => (offset::PAGE_AND_16, 0),
            32 => (offset::PAGE_AND_32, 0),
            _ => (offset::PAGE, i32::from(size) - 1),
        };
        let privilege = usize::from(self.frame.mode.privilege);
        let (address, addend) = (b.address, b.addend);
        let tag = offset::tlb_tag(privilege, writes);
        let slow = self.asm.new_dynamic_label();
        let hit = self.asm.new_dynamic_label();
        self.tlb_index(addend, address);
        dynasm!(self.asm ; .arch x64
            ; gs mov [offset::spill(0)], rcx
            ; gs mov rcx, [Rq(addend) * 8 + tag]
            ; lea rcx, [rcx + Rq(address) + last]
        );
        self.pick_page(RCX, page);
        dynasm!(self.asm ; .arch x64
            ; jrcxz =>hit
            ; jmp =>slow
            ; =>hit
            ; gs mov Rq(addend), [Rq(addend) * 8 + offset::tlb_addend(privilege)]
        );
        if let Some((slot, segment)) = keep {
            self.keep_addend(addend, slot, segment);
        }
        dynasm!(self.asm ; .arch x64 ; gs mov rcx, [offset::spill(0)]);
        let (resume, live, done) = (start as u32, self.vector_live, self.uncounted);
        let site = self.site(Site::Miss { rip, write, writes, size, align, resume, live, done });
        self.stubs.push(Stub { label: slow, site, restore: Restore::Access(b) });
    }

    /// Keeps what is to be added to offsets into a segment; RCX is free.
    fn keep_addend(&mut self, addend: u8, slot: i32, segment: u8) {
        let base = offset::seg_base(usize::from(segment));
        dynasm!(self.asm ; .arch x64
            ; gs mov rcx, [base]
            ; lea rcx, [rcx + Rq(addend)]
            ; gs mov [slot], rcx
        );
    }

    /// The first access of a window of offsets.
    fn open_window(&mut self, b: Borrowed, check: Check, slot: i32, below: i32, segment: u8) {
        if below != 0 {
            self.shift_address(b.address, below, check.spot);
        }
        self.linearize(b, &check, true);
        if check.looks_up {
            return self.look_up(b, check, Some((slot, segment)));
        }
        self.delta(b.addend, b.address);
        dynasm!(self.asm ; .arch x64 ; gs mov [offset::spill(0)], rcx);
        self.keep_addend(b.addend, slot, segment);
        dynasm!(self.asm ; .arch x64 ; gs mov rcx, [offset::spill(0)]);
    }

    /// Keeps the delta of a step's access, which comes later.
    pub(super) fn look_ahead(&mut self, step: &Step) -> Result<(), EmitError> {
        let Some(Part { window, .. }) = step.part else { return Ok(()) };
        self.effective_address(&step.insn, R10, R11)?;
        self.region = None;
        self.delta(R11, R10);
        dynasm!(self.asm ; .arch x64 ; gs mov [offset::window(usize::from(window))], r11);
        Ok(())
    }

    /// Makes an access part of its window, or checks it alone: the address is in `b.address`, after it
    /// `[address + addend + displacement]` is the host's, with the displacement that comes back.
    /// `displace` adds to the address before a check.
    pub(super) fn reach(
        &mut self,
        b: Borrowed,
        check: Check,
        part: Option<Part>,
        plan: &Plan,
    ) -> i32 {
        let Some(Part { window: number, first }) = part else {
            self.check(b, check);
            return 0;
        };
        let slot = offset::window(usize::from(number));
        let window = plan.windows[usize::from(number)];
        if let Spot::Offset { segment, .. } = check.spot {
            if !first {
                dynasm!(self.asm ; .arch x64 ; gs mov Rq(b.addend), [slot]);
                return 0;
            }
            let check = Check { writes: window.write, size: window.bytes as u16, ..check };
            self.open_window(b, check, slot, window.below, segment);
            return -window.below;
        }
        if !check.looks_up {
            if first {
                self.delta(b.addend, b.address);
                dynasm!(self.asm ; .arch x64 ; gs mov [slot], Rq(b.addend));
            } else {
                dynasm!(self.asm ; .arch x64 ; gs mov Rq(b.addend), [slot]);
            }
            return 0;
        }
        if !first {
            dynasm!(self.asm ; .arch x64 ; gs mov Rq(b.addend), [slot]);
            return 0;
        }
        if window.below != 0 {
            self.shift_address(b.address, window.below, check.spot);
        }
        self.check(b, Check { writes: window.write, size: window.bytes as u16, ..check });
        dynasm!(self.asm ; .arch x64 ; gs mov [slot], Rq(b.addend));
        -window.below
    }

    /// Two registers for an access by an instruction that uses `busy`; spills as needed.
    fn borrow(&mut self, insn: &Instruction, busy: u16) -> Borrowed {
        // RCX is taken by the check, RSP is the stack. AH and its like exclude registers that need REX.
        const CANDIDATES: [u8; 10] = [R10, R11, 9, 8, 7, 6, 5, 3, 2, 0];
        let candidates = if has_high_byte(insn) { &CANDIDATES[4..] } else { &CANDIDATES[..] };
        let mut free = candidates.iter().copied().filter(|r| busy & 1 << r == 0);
        let address = free.next().expect("no instruction uses that many registers");
        let addend = free.next().expect("no instruction uses that many registers");
        let mut spilled = [None; 2];
        for (n, register) in [address, addend].into_iter().enumerate() {
            if register < R10 {
                spilled[n] = Some(register);
                self.spilled[n] = register;
                dynasm!(self.asm ; .arch x64 ; gs mov [offset::spill(1 + n)], Rq(register));
            }
        }
        Borrowed { address, addend, spilled }
    }

    pub(super) fn give_back(&mut self, borrowed: Borrowed) {
        for (n, register) in borrowed.spilled.into_iter().enumerate() {
            if let Some(register) = register {
                dynasm!(self.asm ; .arch x64 ; gs mov Rq(register), [offset::spill(1 + n)]);
            }
        }
    }

    /// An instruction with a memory operand, which runs as itself on the host address.
    pub(super) fn with_memory(&mut self, step: &Step, plan: &Plan) -> Result<(), EmitError> {
        let (insn, uses) = (&step.insn, &step.uses);
        if self.by_segment(step) && self.takes_prefixes(insn) {
            self.asm.extend(&FS_AND_NARROW);
            self.copy(insn);
            return Ok(());
        }
        let mut redirected = wide_form(insn);
        redirected.set_segment_prefix(Register::None);
        if self.frame.unlocks && !is_fence(insn) {
            redirected.set_has_lock_prefix(false);
        }
        if self.by_segment(step) && self.spot(insn) == Spot::Linear && !is_narrow(insn) {
            redirected.set_segment_prefix(Register::FS);
            if self.can_unlock(insn) {
                return self.exchange(&redirected, R10);
            }
            return self.around(&redirected, uses);
        }
        let later = matches!(step.part, Some(Part { first: false, .. }));
        let fixed = self.fixed_address(insn).filter(|_| !step.looks_up);
        let goes_by_base = self.is_direct(insn) && (later || !step.looks_up);
        if (goes_by_base || fixed.is_some()) && self.by_addend(step, redirected, fixed)? {
            return Ok(());
        }
        let size = insn.memory_size().size().max(1) as u8;
        let rip = super::mask(insn.ip(), self.frame.mode.bits);
        let start = self.offset();
        let borrowed = self.borrow(insn, uses.any | address_bits(insn));
        self.effective_address(insn, borrowed.address, borrowed.addend)?;
        let spot = self.spot(insn);
        let check = Check {
            align: alignment(step),
            ..Check::one(step, rip, uses.stores, size, start, spot)
        };
        if self.by_segment(step) {
            self.linearize(borrowed, &check, false);
            redirected.set_segment_prefix(Register::FS);
            redirected.set_memory_base(narrow(borrowed.address));
            redirected.set_memory_index(Register::None);
            redirected.set_memory_displacement64(0);
            redirected.set_memory_displ_size(0);
            self.around(&redirected, uses)?;
            self.give_back(borrowed);
            return Ok(());
        }
        let displacement = self.reach(borrowed, check, step.part, plan);
        redirected.set_memory_base(full(borrowed.address));
        redirected.set_memory_index(full(borrowed.addend));
        redirected.set_memory_index_scale(1);
        redirected.set_memory_displacement64(displacement as i64 as u64);
        redirected.set_memory_displ_size(if displacement == 0 { 0 } else { 8 });
        if self.can_unlock(insn) {
            let Borrowed { address, addend, .. } = borrowed;
            dynasm!(self.asm ; .arch x64 ; lea Rq(address), [Rq(address) + Rq(addend) + displacement]);
            redirected.set_memory_index(Register::None);
            redirected.set_memory_displacement64(0);
            redirected.set_memory_displ_size(0);
            self.exchange(&redirected, addend)?;
        } else {
            self.around(&redirected, uses)?;
        }
        self.give_back(borrowed);
        Ok(())
    }

    /// An access whose base register, or a constant, makes the host's address with the window's addend. False, and nothing
    /// is done, if the registers for that aren't free.
    fn by_addend(
        &mut self,
        step: &Step,
        mut redirected: Instruction,
        fixed: Option<u64>,
    ) -> Result<bool, EmitError> {
        let (insn, uses) = (&step.insn, &step.uses);
        let Some(addend) = self.addend_register(step) else { return Ok(false) };
        let other = R10 + R11 - addend;
        let is_free = (uses.any | address_bits(insn)) & 1 << other == 0;
        // A constant that is no displacement needs a register.
        let far = fixed.filter(|&at| !is_short(at));
        if far.is_some() && !is_free {
            return Ok(false);
        }
        let exchanges = far.is_none() && is_free && self.can_unlock(insn);
        let changes_other = u16::from(far.is_some() || exchanges) << other;
        self.keep_but(uses.any | 1 << addend | changes_other);
        match (step.part, fixed) {
            (Some(Part { window, first: false }), _) => self.recall(addend, window),
            (_, Some(at)) => self.delta_of(addend, at),
            _ => self.delta(addend, insn.memory_base().number() as u8),
        }
        if let Some(Part { window, first: true }) = step.part {
            self.keep(addend, window);
        }
        redirected.set_memory_index(full(addend));
        redirected.set_memory_index_scale(1);
        if let Some(at) = far {
            dynasm!(self.asm ; .arch x64 ; mov Rq(other), QWORD at as i64);
            redirected.set_memory_base(full(other));
            redirected.set_memory_displacement64(0);
            redirected.set_memory_displ_size(0);
        } else if let Some(at) = fixed {
            redirected.set_memory_base(full(addend));
            redirected.set_memory_index(Register::None);
            redirected.set_memory_displacement64(at);
            redirected.set_memory_displ_size(8);
        }
        if exchanges {
            self.exchange(&redirected, other)?;
        } else {
            self.around(&redirected, uses)?;
        }
        Ok(true)
    }

    /// A step's linear addresses are added to FS base, which is where the windows begin.
    pub(super) fn by_segment(&self, step: &Step) -> bool {
        self.frame.mode.lends_fs() && self.frame.mode.shadow && !step.looks_up
    }

    /// An instruction of flat 32-bit code runs on the host's address with nothing but prefixes before it.
    fn takes_prefixes(&self, insn: &Instruction) -> bool {
        // A lone displacement is relative to RIP in 64-bit code.
        let has_register =
            insn.memory_base() != Register::None || insn.memory_index() != Register::None;
        let unlocks = self.frame.unlocks && (insn.has_lock_prefix() || self.can_unlock(insn));
        keeps_bytes(insn)
            && has_register
            && !is_narrow(insn)
            && insn.segment_prefix() == Register::None
            && !unlocks
            && insn.len() + FS_AND_NARROW.len() <= INSN_BYTES_MAX
    }

    /// XCHG of memory and a register of its own name, which needn't be locked.
    fn can_unlock(&self, insn: &Instruction) -> bool {
        let register = insn.op1_register();
        self.frame.unlocks
            && matches!(insn.code(), Code::Xchg_rm32_r32 | Code::Xchg_rm64_r64)
            && scratch_number(register).is_none()
    }

    /// XCHG by a load and a store, through a free register.
    fn exchange(&mut self, insn: &Instruction, by: u8) -> Result<(), EmitError> {
        let register = insn.op1_register();
        let is_wide = insn.code() == Code::Xchg_rm64_r64;
        let (load, by) =
            if is_wide { (Code::Mov_r64_rm64, full(by)) } else { (Code::Mov_r32_rm32, narrow(by)) };
        let mut step = *insn;
        step.set_code(load);
        step.set_op0_kind(OpKind::Register);
        step.set_op0_register(by);
        step.set_op1_kind(OpKind::Memory);
        self.encode(&step)?;
        let mut step = *insn;
        step.set_code(if is_wide { Code::Mov_rm64_r64 } else { Code::Mov_rm32_r32 });
        self.encode(&step)?;
        let step = Instruction::with2(load, register, by)
            .map_err(|error| EmitError::Encode(format!("{insn}: {error}")))?;
        self.encode(&step)
    }

    /// The operand is a 64-bit base register of its own name plus a displacement.
    fn is_direct(&self, insn: &Instruction) -> bool {
        let base = insn.memory_base();
        self.wide()
            && has_memory(insn)
            && base.is_gpr64()
            && insn.memory_index() == Register::None
            && !has_high_byte(insn)
            && scratch_number(base).is_none()
            && !matches!(insn.memory_segment(), Register::FS | Register::GS)
    }

    /// Loads an operand of `size` bytes into `into`, a scratch register, zero-extended.
    pub(super) fn load_operand(
        &mut self,
        step: &Step,
        into: u8,
        size: u8,
    ) -> Result<(), EmitError> {
        let insn = &step.insn;
        let rip = super::mask(insn.ip(), self.frame.mode.bits);
        let start = self.offset();
        let b = Borrowed::SCRATCH;
        self.effective_address(insn, b.address, b.addend)?;
        let check = Check::one(step, rip, false, size, start, self.spot(insn));
        if self.by_segment(step) {
            self.linearize(b, &check, false);
            self.load_by_segment(into, R10, size);
            return Ok(());
        }
        self.check(b, check);
        match size {
            1 => dynasm!(self.asm ; .arch x64 ; movzx Rd(into), BYTE [r10 + r11]),
            2 => dynasm!(self.asm ; .arch x64 ; movzx Rd(into), WORD [r10 + r11]),
            4 => dynasm!(self.asm ; .arch x64 ; mov Rd(into), [r10 + r11]),
            _ => dynasm!(self.asm ; .arch x64 ; mov Rq(into), [r10 + r11]),
        }
        Ok(())
    }
}

/// A locked instruction that changes nothing: it is there for the order of other accesses, which devices may look at.
fn is_fence(insn: &Instruction) -> bool {
    let constant = match insn.op1_kind() {
        OpKind::Register | OpKind::Memory => return false,
        _ => insn.immediate(1),
    };
    match insn.mnemonic() {
        Mnemonic::Add | Mnemonic::Sub | Mnemonic::Or | Mnemonic::Xor => constant == 0,
        Mnemonic::And => {
            constant == u64::MAX
                || insn.memory_size().size() == 4 && constant == u64::from(u32::MAX)
        }
        _ => false,
    }
}

/// The delta of the region whose number is in the low bits of `into`.
fn find_delta(asm: &mut VecAssembler<X64Relocation>, into: u8, regions: i32) {
    dynasm!(asm ; .arch x64
        ; movzx Rd(into), Rw(into)
        ; gs mov Rq(into), [Rq(into) * 8 + regions]
    );
}

/// What makes of a guessed region one that is looked up, in place: `code` is what the fault left of the guess,
/// from its probing load on. The new code belongs one byte before it.
#[must_use]
pub fn unguess(code: &[u8], privilege: u8) -> Option<Vec<u8>> {
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    let (probe, delta) = (decoder.decode(), decoder.decode());
    let is_guess = probe.code() == Code::Movzx_r32_rm8
        && delta.code() == Code::Mov_r64_rm64
        && delta.op0_register() == probe.op0_register().full_register();
    if !is_guess {
        return None;
    }
    let mut asm = VecAssembler::<X64Relocation>::new(0);
    asm.push(REGION_BITS as u8);
    let into = probe.op0_register().number() as u8;
    find_delta(&mut asm, into, offset::regions(usize::from(privilege)));
    let mut new = asm.finalize().ok()?;
    let room = 1 + probe.len() + delta.len();
    while new.len() < room {
        new.push(0x90);
    }
    (new.len() == room).then_some(new)
}
