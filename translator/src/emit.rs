//! Host code for one block.
//!
//! Problem: guest instructions should run as themselves, at the host's speed, and still be stopped
//! exactly before any one that must not. Scheme: guest registers are in the host registers of the same
//! name, but for r10 and r11, which live in the [`Area`](crate::area::Area) and whose host registers are
//! scratch; guest RSP is in host RSP. Status flags stay in the host's flags: nothing we add touches
//! them (MOV, LEA, PEXT, JRCXZ). An instruction without memory operand is copied; one with a memory
//! operand gets its address checked against the inline TLB and runs on the host address. Invariants:
//! every check comes before the first change that its instruction makes, so leaving at a check leaves
//! the guest exactly at that instruction; all exits go through a [`Site`].
//!
//! ```text
//! entry, and at every instruction boundary:
//!   rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r12-r15   the guest's      r10 r11   scratch
//!   status flags   the guest's (DF clear)           gs                the Area
//! ```

#![allow(clippy::useless_conversion, reason = "dynasm! converts register numbers")]

use dynasmrt::x64::X64Relocation;
use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, VecAssembler, dynasm};
use iced_x86::{
    Code, Encoder, Instruction, InstructionInfoFactory, MemoryOperand, Mnemonic, OpAccess, OpKind,
    Register,
};

use xenolith_cpu::env::attention;
use xenolith_cpu::vector::Plain;

use crate::area::offset;
use crate::classify::{Class, classify};
use crate::mode::Mode;

const R10: u8 = 10;
const R11: u8 = 11;
const RSP: u8 = 4;
const RBP: u8 = 5;

/// How translated code is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// The inline TLB has no entry for `Area::ea`. Refill it and go on at `resume` (offset in the
    /// block's code), or let the interpreter do the instruction at `rip`.
    Miss { rip: u64, write: bool, size: u8, align: u8, resume: usize },
    /// A direct transfer to `target`. The 32-bit displacement at `patch` (offset in the block's code)
    /// may be pointed at the target's block.
    Chain { target: u64, patch: usize },
    /// An indirect transfer to `Area::rip` that the jump cache doesn't know. The instruction was at
    /// `rip` and moved RSP by `moved`.
    Indirect { rip: u64, moved: i64 },
    /// Something is in the attention word; the guest is at `rip`.
    Poll { rip: u64 },
    /// The interpreter does the instruction at `rip`.
    HandOver { rip: u64 },
}

/// A translated block, to be placed at the address it was assembled for.
#[derive(Debug)]
pub struct Translation {
    pub code: Vec<u8>,
    pub sites: Vec<Site>,
    /// Guest bytes it was made from.
    pub bytes: usize,
    pub instructions: usize,
}

/// Why a block could not be assembled.
#[derive(Debug, thiserror::Error)]
pub enum EmitError {
    #[error("no host encoding for {0}")]
    Encode(String),
    #[error("assembling a block: {0}")]
    Assemble(String),
}

/// What the emitter must know of its surroundings.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Where the code will be.
    pub base: u64,
    /// The common exit routine.
    pub exit: u64,
    /// The routine that loads the vector registers and jumps to r10.
    pub load_vector: u64,
    /// Number of the block's first site.
    pub first_site: u32,
    pub mode: Mode,
    /// Guest address of the block.
    pub rip: u64,
}

/// Assembles one block.
pub struct Emitter {
    asm: VecAssembler<X64Relocation>,
    encoder: Encoder,
    info: InstructionInfoFactory,
    frame: Frame,
    sites: Vec<Site>,
    /// Code after the block proper: one piece for each site.
    stubs: Vec<Stub>,
    /// The block has made sure that the vector registers are the guest's.
    vector_live: bool,
}

impl std::fmt::Debug for Emitter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Emitter").field("sites", &self.sites).finish_non_exhaustive()
    }
}

struct Stub {
    label: DynamicLabel,
    site: usize,
    restore: Option<Borrowed>,
}

/// The scratch registers of one access, and which of them the guest's value must return to.
#[derive(Clone, Copy)]
struct Borrowed {
    /// Holds the linear address.
    address: u8,
    /// Holds the TLB index, then the addend.
    addend: u8,
    /// Registers other than r10 and r11 that were spilled, to slots 1 and 2.
    spilled: [Option<u8>; 2],
}

/// Assembles the instructions at `frame.rip`, which are the start of `bytes`.
///
/// `allowed`: whether the CPU model has an instruction. At most `length_max` instructions.
///
/// # Errors
/// A bug of ours: something in the table has no encoding.
pub fn translate(
    frame: Frame,
    bytes: &[u8],
    length_max: usize,
    allowed: &dyn Fn(&Instruction) -> bool,
    decoder_options: u32,
) -> Result<Option<Translation>, EmitError> {
    let (bits, rip) = (frame.mode.bits, frame.rip);
    let mut decoder = iced_x86::Decoder::with_ip(u32::from(bits), bytes, rip, decoder_options);
    let mut emitter = Emitter::new(frame);
    let mut done = 0;
    let mut instructions = 0;
    loop {
        let insn = if instructions < length_max && decoder.can_decode() {
            decoder.decode()
        } else {
            Instruction::default()
        };
        let at = rip.wrapping_add(done as u64);
        if insn.is_invalid() {
            if instructions == 0 {
                return Ok(None);
            }
            // The page or the block's length is over; or the interpreter will raise what is due.
            emitter.chain(mask(at, bits), None);
            break;
        }
        let class_of = |insn: &Instruction| {
            if !insn.is_invalid() && allowed(insn) {
                classify(insn, frame.mode)
            } else {
                Class::HandOver
            }
        };
        let mut class = class_of(&insn);
        if class == Class::SetInterrupts {
            // The next instruction comes before any interrupt: it must be in the block too.
            let after = &bytes[done + insn.len()..];
            let mut ahead =
                iced_x86::Decoder::with_ip(u32::from(bits), after, insn.next_ip(), decoder_options);
            let shadowed = instructions + 1 < length_max
                && ahead.can_decode()
                && class_of(&ahead.decode()) != Class::HandOver;
            if !shadowed {
                class = Class::HandOver;
            }
        }
        if class == Class::HandOver {
            if instructions == 0 {
                return Ok(None);
            }
            emitter.hand_over(at);
            break;
        }
        let ends = emitter.instruction(&insn, class, at)?;
        done += insn.len();
        instructions += 1;
        if ends {
            break;
        }
    }
    emitter.finish(done, instructions).map(Some)
}

fn mask(rip: u64, bits: u8) -> u64 {
    if bits == 64 { rip } else { rip & 0xffff_ffff }
}

/// A register's 64-bit host number if it is r10 or r11.
fn scratch_number(register: Register) -> Option<u8> {
    match register.full_register() {
        Register::R10 => Some(R10),
        Register::R11 => Some(R11),
        _ => None,
    }
}

/// iced's name of a 64-bit register number.
fn full(number: u8) -> Register {
    const NAMES: [Register; 16] = [
        Register::RAX,
        Register::RCX,
        Register::RDX,
        Register::RBX,
        Register::RSP,
        Register::RBP,
        Register::RSI,
        Register::RDI,
        Register::R8,
        Register::R9,
        Register::R10,
        Register::R11,
        Register::R12,
        Register::R13,
        Register::R14,
        Register::R15,
    ];
    NAMES[usize::from(number & 15)]
}

/// Which guest registers an instruction reads and writes apart from its address.
#[derive(Default)]
struct Uses {
    /// Bits by register number.
    any: u16,
    read: u16,
    written: u16,
}

impl Emitter {
    fn new(frame: Frame) -> Self {
        Self {
            asm: VecAssembler::new(frame.base as usize),
            encoder: Encoder::new(64),
            info: InstructionInfoFactory::new(),
            frame,
            sites: Vec::new(),
            stubs: Vec::new(),
            vector_live: false,
        }
    }

    fn wide(&self) -> bool {
        self.frame.mode.bits == 64
    }

    /// Bytes of a stack slot.
    fn slot(&self) -> i32 {
        i32::from(self.frame.mode.bits / 8)
    }

    fn offset(&self) -> usize {
        self.asm.offset().0
    }

    /// Registers that `insn` uses as data.
    fn uses(&mut self, insn: &Instruction) -> Uses {
        let mut uses = Uses::default();
        let info = self.info.info(insn);
        let mut note = |register: Register, read: bool, write: bool| {
            let full = register.full_register();
            if full.is_gpr64() {
                let bit = 1 << full.number();
                uses.any |= bit;
                if read {
                    uses.read |= bit;
                }
                if write {
                    uses.written |= bit;
                }
            }
        };
        for n in 0..insn.op_count() {
            if insn.op_kind(n) == OpKind::Register {
                let register = insn.op_register(n);
                let (read, write) = directions(info.op_access(n));
                // Narrow writes merge into the register.
                note(register, read || write && register.size() < 4, write);
            }
        }
        // What is neither operand nor address is implicit; a register that is both was noted above.
        let address = [insn.memory_base().full_register(), insn.memory_index().full_register()];
        for used in info.used_registers() {
            let register = used.register().full_register();
            if !address.contains(&register) {
                let (read, write) = directions(used.access());
                note(register, read || write && used.register().size() < 4, write);
            }
        }
        // A conditional write leaves the old value.
        uses.read |= uses.written & conditional(insn, uses.written);
        uses
    }

    fn instruction(
        &mut self,
        insn: &Instruction,
        class: Class,
        rip: u64,
    ) -> Result<bool, EmitError> {
        let bits = self.frame.mode.bits;
        let next = mask(rip.wrapping_add(insn.len() as u64), bits);
        match class {
            Class::Same => {
                self.same(insn, rip)?;
                return Ok(false);
            }
            Class::Push => {
                self.push(insn, rip)?;
                return Ok(false);
            }
            Class::Pop => {
                self.pop(insn, rip);
                return Ok(false);
            }
            Class::Leave => {
                self.leave(rip);
                return Ok(false);
            }
            Class::Jump => {
                let target = mask(insn.near_branch_target(), bits);
                self.chain(target, (target <= rip).then_some(target));
            }
            Class::Branch => self.branch(insn, rip, next)?,
            Class::Call => {
                let target = mask(insn.near_branch_target(), bits);
                self.push_constant(next, rip);
                self.chain(target, (target <= rip).then_some(target));
            }
            Class::Return => {
                let released = if insn.op_count() == 0 { 0 } else { i32::from(insn.immediate16()) };
                let slot = self.slot();
                let borrowed = self.stack_access(0, rip, false);
                self.load_stack(R10, borrowed);
                self.move_stack(slot + released);
                self.indirect(rip, i64::from(slot + released));
            }
            Class::JumpIndirect => {
                self.load_target(insn, rip)?;
                self.indirect(rip, 0);
            }
            Class::CallIndirect => {
                self.load_target(insn, rip)?;
                dynasm!(self.asm ; .arch x64 ; gs mov [offset::spill(3)], r10);
                self.push_constant(next, rip);
                dynasm!(self.asm ; .arch x64 ; gs mov r10, [offset::spill(3)]);
                let slot = self.slot();
                self.indirect(rip, -i64::from(slot));
            }
            Class::Divide => {
                self.divide(insn, rip)?;
                return Ok(false);
            }
            Class::Vector(plain) => {
                self.vector(insn, plain, rip)?;
                return Ok(false);
            }
            Class::PushFlags => {
                self.push_flags(rip);
                return Ok(false);
            }
            Class::ClearInterrupts => {
                let masked = !(attention::INTR as i32);
                dynasm!(self.asm ; .arch x64
                    ; gs mov QWORD [offset::INTERRUPT_FLAG], 0
                    ; gs mov DWORD [offset::ATTENTION_MASK], masked
                );
                return Ok(false);
            }
            Class::SetInterrupts => {
                dynasm!(self.asm ; .arch x64
                    ; gs mov QWORD [offset::INTERRUPT_FLAG], 0x200
                    ; gs mov DWORD [offset::ATTENTION_MASK], -1
                );
                return Ok(false);
            }
            Class::HandOver => self.hand_over(rip),
        }
        Ok(true)
    }

    /// Loads guest r10 or r11 into the host's.
    fn load_guest(&mut self, register: u8) {
        dynasm!(self.asm ; .arch x64 ; gs mov Rq(register), [offset::gpr(usize::from(register))]);
    }

    fn store_guest(&mut self, register: u8) {
        dynasm!(self.asm ; .arch x64 ; gs mov [offset::gpr(usize::from(register))], Rq(register));
    }

    fn encode(&mut self, insn: &Instruction) -> Result<(), EmitError> {
        let at = self.frame.base + self.offset() as u64;
        self.encoder
            .encode(insn, at)
            .map_err(|error| EmitError::Encode(format!("{insn}: {error}")))?;
        let bytes = self.encoder.take_buffer();
        self.asm.extend(&bytes);
        Ok(())
    }

    /// An instruction that runs as itself.
    fn same(&mut self, insn: &Instruction, rip: u64) -> Result<(), EmitError> {
        let memory = (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory);
        if matches!(insn.mnemonic(), Mnemonic::Nop | Mnemonic::Endbr32 | Mnemonic::Endbr64)
            || memory && is_hint(insn.mnemonic())
        {
            return Ok(());
        }
        if insn.mnemonic() == Mnemonic::Lea {
            return self.lea(insn);
        }
        if memory { self.with_memory(insn, rip, 0) } else { self.registers_only(insn) }
    }

    fn registers_only(&mut self, insn: &Instruction) -> Result<(), EmitError> {
        let uses = self.uses(insn);
        self.around(insn, &uses)
    }

    /// Emits `insn` with guest r10 and r11 loaded before and stored after, as far as it uses them.
    fn around(&mut self, insn: &Instruction, uses: &Uses) -> Result<(), EmitError> {
        for register in [R10, R11] {
            if uses.read & 1 << register != 0 {
                self.load_guest(register);
            }
        }
        self.encode(&wide_form(insn))?;
        for register in [R10, R11] {
            if uses.written & 1 << register != 0 {
                self.store_guest(register);
            }
        }
        Ok(())
    }

    fn lea(&mut self, insn: &Instruction) -> Result<(), EmitError> {
        let target = insn.op0_register();
        if let Some(address) = constant_address(insn) {
            // Of the address, as many bits as the register has.
            let number = target.full_register().number() as u8;
            if target.size() == 2 {
                if scratch_number(target).is_some() {
                    self.load_guest(number);
                }
                dynasm!(self.asm ; .arch x64 ; mov Rw(number), address as i16);
            } else {
                let value = if target.size() == 4 { address & 0xffff_ffff } else { address };
                dynasm!(self.asm ; .arch x64 ; mov Rq(number), QWORD value as i64);
            }
            if scratch_number(target).is_some() {
                self.store_guest(number);
            }
            return Ok(());
        }
        let registers = [insn.memory_base(), insn.memory_index()];
        for register in [R10, R11] {
            let used = registers.iter().any(|r| scratch_number(*r) == Some(register))
                || target.size() == 2 && scratch_number(target) == Some(register);
            if used {
                self.load_guest(register);
            }
        }
        let mut plain = *insn;
        plain.set_segment_prefix(Register::None);
        self.encode(&plain)?;
        if let Some(number) = scratch_number(target) {
            self.store_guest(number);
        }
        Ok(())
    }

    /// Computes the linear address of `insn`'s memory operand into `address`; `other` is free too.
    fn effective_address(
        &mut self,
        insn: &Instruction,
        address: u8,
        other: u8,
    ) -> Result<(), EmitError> {
        if let Some(at) = constant_address(insn) {
            dynasm!(self.asm ; .arch x64 ; mov Rq(address), QWORD at as i64);
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
            let code = if self.wide() { Code::Lea_r64_m } else { Code::Lea_r32_m };
            let target = if self.wide() { full(address) } else { narrow(address) };
            let lea = Instruction::with2(code, target, operand)
                .map_err(|error| EmitError::Encode(format!("{insn}: {error}")))?;
            self.encode(&lea)?;
        }
        let segment = insn.memory_segment();
        if matches!(segment, Register::FS | Register::GS) {
            let base = offset::seg_base(segment.number());
            dynasm!(self.asm ; .arch x64 ; gs mov Rq(other), [base]);
            if self.wide() {
                dynasm!(self.asm ; .arch x64 ; lea Rq(address), [Rq(address) + Rq(other)]);
            } else {
                dynasm!(self.asm ; .arch x64 ; lea Rd(address), [Rq(address) + Rq(other)]);
            }
        }
        Ok(())
    }

    /// DIV: the dividend's upper half must be zero and the divisor not, so that it can't fault.
    fn divide(&mut self, insn: &Instruction, rip: u64) -> Result<(), EmitError> {
        let start = self.offset();
        let size = if insn.op0_kind() == OpKind::Register {
            insn.op0_register().size()
        } else {
            insn.memory_size().size()
        };
        if insn.op0_kind() == OpKind::Register {
            let number = insn.op0_register().full_register().number() as u8;
            if scratch_number(insn.op0_register()).is_some() {
                let at = offset::gpr(usize::from(number));
                dynasm!(self.asm ; .arch x64 ; gs mov r11, [at]);
            } else {
                dynasm!(self.asm ; .arch x64 ; mov r11, Rq(number));
            }
            if size == 4 {
                dynasm!(self.asm ; .arch x64 ; mov r11d, r11d);
            }
        } else {
            let b = Borrowed { address: R10, addend: R11, spilled: [None; 2] };
            self.effective_address(insn, R10, R11)?;
            self.check(b, rip, false, size as u8, start);
            if size == 4 {
                dynasm!(self.asm ; .arch x64 ; mov r11d, [r10 + r11]);
            } else {
                dynasm!(self.asm ; .arch x64 ; mov r11, [r10 + r11]);
            }
        }
        let slow = self.asm.new_dynamic_label();
        dynasm!(self.asm ; .arch x64 ; gs mov [offset::spill(0)], rcx);
        if size == 4 {
            dynasm!(self.asm ; .arch x64 ; mov ecx, edx);
        } else {
            dynasm!(self.asm ; .arch x64 ; mov rcx, rdx);
        }
        dynasm!(self.asm ; .arch x64
            ; jrcxz >small
            ; jmp =>slow
            ; small:
            ; mov rcx, r11
            ; jrcxz >zero
            ; jmp >fits
            ; zero:
            ; jmp =>slow
            ; fits:
            ; gs mov rcx, [offset::spill(0)]
        );
        if size == 4 {
            dynasm!(self.asm ; .arch x64 ; div r11d);
        } else {
            dynasm!(self.asm ; .arch x64 ; div r11);
        }
        let site = self.site(Site::HandOver { rip });
        let restore = Borrowed { address: R10, addend: R11, spilled: [None; 2] };
        self.stubs.push(Stub { label: slow, site, restore: Some(restore) });
        Ok(())
    }

    /// A vector instruction: the registers are loaded on a block's first one.
    fn vector(&mut self, insn: &Instruction, plain: Plain, rip: u64) -> Result<(), EmitError> {
        if !std::mem::replace(&mut self.vector_live, true) {
            let live = self.asm.new_dynamic_label();
            dynasm!(self.asm ; .arch x64
                ; gs mov [offset::spill(0)], rcx
                ; gs mov rcx, [offset::VECTOR_IDLE]
                ; jrcxz =>live
                ; lea r10, [=>live]
            );
            self.jump_to(self.frame.load_vector);
            dynasm!(self.asm ; .arch x64
                ; =>live
                ; gs mov rcx, [offset::spill(0)]
            );
        }
        let memory = (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory);
        if memory { self.with_memory(insn, rip, plain.align) } else { self.registers_only(insn) }
    }

    /// JMP rel32 to a fixed address.
    fn jump_to(&mut self, target: u64) {
        let end = self.frame.base + self.offset() as u64 + 5;
        let distance = target.wrapping_sub(end) as i32;
        self.asm.push(0xe9);
        self.asm.push_i32(distance);
    }

    /// PUSHF: the host's status flags and the rest from the area. The host's stack takes the flags.
    fn push_flags(&mut self, rip: u64) {
        let slot = self.slot();
        dynasm!(self.asm ; .arch x64
            ; gs mov [offset::spill(3)], rsp
            ; gs mov rsp, [offset::HOST_RSP]
            ; pushfq
            ; pop r10
            ; gs mov rsp, [offset::spill(3)]
            ; gs pext r10, r10, [offset::STATUS]
            ; gs pdep r10, r10, [offset::STATUS]
            ; gs mov r11, [offset::SYSTEM_FLAGS]
            ; lea r10, [r10 + r11]
            ; gs mov r11, [offset::INTERRUPT_FLAG]
            ; lea r10, [r10 + r11]
            ; gs mov [offset::spill(3)], r10
        );
        self.stack_access(-slot, rip, true);
        self.join();
        dynasm!(self.asm ; .arch x64 ; gs mov r11, [offset::spill(3)]);
        self.store_joined_r11();
        self.move_stack(-slot);
    }

    /// The inline TLB lookup. On entry the address is in `b.address`; after it `[address + addend]` is
    /// the host's. Leaves by a stub on a miss; RCX is whole again after it.
    fn check(&mut self, b: Borrowed, rip: u64, write: bool, size: u8, start: usize) {
        self.check_aligned(b, rip, write, size, 0, start);
    }

    /// As [`Emitter::check`], where the address must also be a multiple of `align`.
    fn check_aligned(
        &mut self,
        b: Borrowed,
        rip: u64,
        write: bool,
        size: u8,
        align: u8,
        start: usize,
    ) {
        // An aligned operand doesn't cross a page: its first byte is looked at, else its last.
        let (page, last) = match align {
            16 => (offset::PAGE_AND_16, 0),
            32 => (offset::PAGE_AND_32, 0),
            _ => (offset::PAGE, i32::from(size) - 1),
        };
        let privilege = usize::from(self.frame.mode.privilege);
        let (address, addend) = (b.address, b.addend);
        let tag = offset::tlb_tag(privilege, write);
        let slow = self.asm.new_dynamic_label();
        let hit = self.asm.new_dynamic_label();
        dynasm!(self.asm ; .arch x64
            ; gs pext Rq(addend), Rq(address), [offset::TLB_INDEX]
            ; gs mov [offset::spill(0)], rcx
            ; gs mov rcx, [Rq(addend) * 8 + tag]
            ; lea rcx, [rcx + Rq(address) + last]
            ; gs pext rcx, rcx, [page]
            ; jrcxz =>hit
            ; jmp =>slow
            ; =>hit
            ; gs mov rcx, [offset::spill(0)]
            ; gs mov Rq(addend), [Rq(addend) * 8 + offset::tlb_addend(privilege)]
        );
        let site = self.site(Site::Miss { rip, write, size, align, resume: start });
        self.stubs.push(Stub { label: slow, site, restore: Some(b) });
    }

    fn site(&mut self, site: Site) -> usize {
        self.sites.push(site);
        self.sites.len() - 1
    }

    /// Two registers for an access by an instruction that uses `busy`; spills as needed.
    fn borrow(&mut self, busy: u16) -> Borrowed {
        // RCX is taken by the check, RSP is the stack.
        const CANDIDATES: [u8; 8] = [R10, R11, 9, 8, 7, 6, 3, 5];
        let mut free = CANDIDATES.into_iter().filter(|r| busy & 1 << r == 0);
        let address = free.next().expect("no instruction uses that many registers");
        let addend = free.next().expect("no instruction uses that many registers");
        let mut spilled = [None; 2];
        for (n, register) in [address, addend].into_iter().enumerate() {
            if register < R10 {
                spilled[n] = Some(register);
                dynasm!(self.asm ; .arch x64 ; gs mov [offset::spill(1 + n)], Rq(register));
            }
        }
        Borrowed { address, addend, spilled }
    }

    fn give_back(&mut self, borrowed: Borrowed) {
        for (n, register) in borrowed.spilled.into_iter().enumerate() {
            if let Some(register) = register {
                dynasm!(self.asm ; .arch x64 ; gs mov Rq(register), [offset::spill(1 + n)]);
            }
        }
    }

    fn with_memory(&mut self, insn: &Instruction, rip: u64, align: u8) -> Result<(), EmitError> {
        let uses = self.uses(insn);
        let size = insn.memory_size().size().max(1) as u8;
        let write = (0..insn.op_count()).any(|n| {
            insn.op_kind(n) == OpKind::Memory && directions(self.info.info(insn).op_access(n)).1
        });
        let start = self.offset();
        let borrowed = self.borrow(uses.any | address_bits(insn));
        self.effective_address(insn, borrowed.address, borrowed.addend)?;
        self.check_aligned(borrowed, rip, write, size, align, start);
        let mut redirected = wide_form(insn);
        redirected.set_segment_prefix(Register::None);
        redirected.set_memory_base(full(borrowed.address));
        redirected.set_memory_index(full(borrowed.addend));
        redirected.set_memory_index_scale(1);
        redirected.set_memory_displacement64(0);
        redirected.set_memory_displ_size(0);
        self.around(&redirected, &uses)?;
        self.give_back(borrowed);
        Ok(())
    }

    /// Checks an access to the stack slot at RSP + `displacement`.
    fn stack_access(&mut self, displacement: i32, rip: u64, write: bool) -> Borrowed {
        let start = self.offset();
        if self.wide() {
            dynasm!(self.asm ; .arch x64 ; lea r10, [rsp + displacement]);
        } else {
            dynasm!(self.asm ; .arch x64 ; lea r10d, [rsp + displacement]);
        }
        let borrowed = Borrowed { address: R10, addend: R11, spilled: [None; 2] };
        let size = self.slot() as u8;
        self.check(borrowed, rip, write, size, start);
        borrowed
    }

    /// Moves the stack pointer.
    fn move_stack(&mut self, by: i32) {
        if self.wide() {
            dynasm!(self.asm ; .arch x64 ; lea rsp, [rsp + by]);
        } else {
            dynasm!(self.asm ; .arch x64 ; lea esp, [rsp + by]);
        }
    }

    /// Loads a slot from a checked address.
    fn load_stack(&mut self, into: u8, b: Borrowed) {
        if self.wide() {
            dynasm!(self.asm ; .arch x64 ; mov Rq(into), [Rq(b.address) + Rq(b.addend)]);
        } else {
            dynasm!(self.asm ; .arch x64 ; mov Rd(into), [Rq(b.address) + Rq(b.addend)]);
        }
    }

    /// Stores host register `from` to a checked address.
    fn store_stack(&mut self, from: u8, b: Borrowed) {
        if self.wide() {
            dynasm!(self.asm ; .arch x64 ; mov [Rq(b.address) + Rq(b.addend)], Rq(from));
        } else {
            dynasm!(self.asm ; .arch x64 ; mov [Rq(b.address) + Rq(b.addend)], Rd(from));
        }
    }

    /// Joins a checked address in r10, so that r11 is free.
    fn join(&mut self) {
        dynasm!(self.asm ; .arch x64 ; lea r10, [r10 + r11]);
    }

    fn store_joined_r11(&mut self) {
        if self.wide() {
            dynasm!(self.asm ; .arch x64 ; mov [r10], r11);
        } else {
            dynasm!(self.asm ; .arch x64 ; mov [r10], r11d);
        }
    }

    /// Pushes a constant: a return address.
    fn push_constant(&mut self, value: u64, rip: u64) {
        let slot = self.slot();
        self.stack_access(-slot, rip, true);
        self.join();
        dynasm!(self.asm ; .arch x64 ; mov r11, QWORD value as i64);
        self.store_joined_r11();
        self.move_stack(-slot);
    }

    fn push(&mut self, insn: &Instruction, rip: u64) -> Result<(), EmitError> {
        let slot = self.slot();
        match insn.op0_kind() {
            OpKind::Register => {
                let register = insn.op0_register().full_register();
                let number = register.number() as u8;
                let b = self.stack_access(-slot, rip, true);
                if scratch_number(register).is_some() {
                    self.join();
                    let at = offset::gpr(usize::from(number));
                    dynasm!(self.asm ; .arch x64 ; gs mov r11, [at]);
                    self.store_joined_r11();
                } else {
                    self.store_stack(number, b);
                }
                self.move_stack(-slot);
            }
            OpKind::Memory => {
                let start = self.offset();
                let b = Borrowed { address: R10, addend: R11, spilled: [None; 2] };
                self.effective_address(insn, R10, R11)?;
                self.check(b, rip, false, slot as u8, start);
                self.load_stack(R10, b);
                dynasm!(self.asm ; .arch x64 ; gs mov [offset::spill(3)], r10);
                self.stack_access(-slot, rip, true);
                self.join();
                dynasm!(self.asm ; .arch x64 ; gs mov r11, [offset::spill(3)]);
                self.store_joined_r11();
                self.move_stack(-slot);
            }
            _ => {
                let value = insn.immediate(0);
                self.push_constant(value, rip);
            }
        }
        Ok(())
    }

    fn pop(&mut self, insn: &Instruction, rip: u64) {
        let register = insn.op0_register().full_register();
        let number = register.number() as u8;
        let slot = self.slot();
        let b = self.stack_access(0, rip, false);
        if scratch_number(register).is_some() {
            self.load_stack(R10, b);
            dynasm!(self.asm ; .arch x64 ; gs mov [offset::gpr(usize::from(number))], r10);
            self.move_stack(slot);
        } else {
            self.load_stack(number, b);
            // POP RSP: the popped value stays.
            if number != RSP {
                self.move_stack(slot);
            }
        }
    }

    fn leave(&mut self, rip: u64) {
        let start = self.offset();
        if self.wide() {
            dynasm!(self.asm ; .arch x64 ; mov r10, rbp);
        } else {
            dynasm!(self.asm ; .arch x64 ; mov r10d, ebp);
        }
        let b = Borrowed { address: R10, addend: R11, spilled: [None; 2] };
        let slot = self.slot();
        self.check(b, rip, false, slot as u8, start);
        self.load_stack(R11, b);
        if self.wide() {
            dynasm!(self.asm ; .arch x64 ; lea rsp, [rbp + slot] ; mov Rq(RBP), r11);
        } else {
            dynasm!(self.asm ; .arch x64 ; lea esp, [rbp + slot] ; mov Rd(RBP), r11d);
        }
    }

    /// Loads the target of an indirect transfer into r10.
    fn load_target(&mut self, insn: &Instruction, rip: u64) -> Result<(), EmitError> {
        if insn.op0_kind() == OpKind::Register {
            let register = insn.op0_register().full_register();
            let number = register.number() as u8;
            if scratch_number(register).is_some() {
                let at = offset::gpr(usize::from(number));
                dynasm!(self.asm ; .arch x64 ; gs mov r10, [at]);
            } else if self.wide() {
                dynasm!(self.asm ; .arch x64 ; mov r10, Rq(number));
            } else {
                dynasm!(self.asm ; .arch x64 ; mov r10d, Rd(number));
            }
            return Ok(());
        }
        let start = self.offset();
        let b = Borrowed { address: R10, addend: R11, spilled: [None; 2] };
        self.effective_address(insn, R10, R11)?;
        let slot = self.slot() as u8;
        self.check(b, rip, false, slot, start);
        self.load_stack(R10, b);
        Ok(())
    }

    /// Leaves when something is in the attention word; `rip` is where the guest then is. Uses r11.
    fn poll(&mut self, site: Site) {
        let go = self.asm.new_dynamic_label();
        let out = self.asm.new_dynamic_label();
        dynasm!(self.asm ; .arch x64
            ; gs mov r11, [offset::ATTENTION]
            ; gs mov [offset::spill(0)], rcx
            ; mov ecx, [r11]
            ; gs pext rcx, rcx, [offset::ATTENTION_MASK]
            ; jrcxz =>go
            ; gs mov rcx, [offset::spill(0)]
            ; jmp =>out
            ; =>go
            ; gs mov rcx, [offset::spill(0)]
        );
        let site = self.site(site);
        self.stubs.push(Stub { label: out, site, restore: None });
    }

    /// Goes to `target`; polls first where `poll` says where the guest is.
    fn chain(&mut self, target: u64, poll: Option<u64>) {
        if target >> 12 != self.frame.rip >> 12 {
            // Another page may be mapped there by the time: the jump cache knows.
            dynasm!(self.asm ; .arch x64 ; mov r10, QWORD target as i64);
            self.indirect(target, 0);
            return;
        }
        if let Some(rip) = poll {
            self.poll(Site::Poll { rip });
        }
        let label = self.asm.new_dynamic_label();
        dynasm!(self.asm ; .arch x64 ; jmp =>label);
        let patch = self.offset() - 4;
        let site = self.site(Site::Chain { target, patch });
        self.stubs.push(Stub { label, site, restore: None });
    }

    fn branch(&mut self, insn: &Instruction, rip: u64, next: u64) -> Result<(), EmitError> {
        let target = mask(insn.near_branch_target(), self.frame.mode.bits);
        let taken = self.asm.new_dynamic_label();
        use iced_x86::ConditionCode as C;
        match insn.condition_code() {
            C::o => dynasm!(self.asm ; .arch x64 ; jo =>taken),
            C::no => dynasm!(self.asm ; .arch x64 ; jno =>taken),
            C::b => dynasm!(self.asm ; .arch x64 ; jb =>taken),
            C::ae => dynasm!(self.asm ; .arch x64 ; jae =>taken),
            C::e => dynasm!(self.asm ; .arch x64 ; je =>taken),
            C::ne => dynasm!(self.asm ; .arch x64 ; jne =>taken),
            C::be => dynasm!(self.asm ; .arch x64 ; jbe =>taken),
            C::a => dynasm!(self.asm ; .arch x64 ; ja =>taken),
            C::s => dynasm!(self.asm ; .arch x64 ; js =>taken),
            C::ns => dynasm!(self.asm ; .arch x64 ; jns =>taken),
            C::p => dynasm!(self.asm ; .arch x64 ; jp =>taken),
            C::np => dynasm!(self.asm ; .arch x64 ; jnp =>taken),
            C::l => dynasm!(self.asm ; .arch x64 ; jl =>taken),
            C::ge => dynasm!(self.asm ; .arch x64 ; jge =>taken),
            C::le => dynasm!(self.asm ; .arch x64 ; jle =>taken),
            C::g => dynasm!(self.asm ; .arch x64 ; jg =>taken),
            C::None => return Err(EmitError::Encode(format!("condition of {insn}"))),
        }
        self.chain(next, None);
        dynasm!(self.asm ; .arch x64 ; =>taken);
        self.chain(target, (target <= rip).then_some(target));
        Ok(())
    }

    /// Goes to the address in r10 by the jump cache.
    fn indirect(&mut self, rip: u64, moved: i64) {
        let privilege = usize::from(self.frame.mode.privilege);
        let jumps = offset::jumps(privilege);
        let hit = self.asm.new_dynamic_label();
        let out = self.asm.new_dynamic_label();
        // Any cycle of the guest's goes through a backward branch or here: look at the world.
        dynasm!(self.asm ; .arch x64
            ; gs mov [offset::RIP], r10
            ; gs mov [offset::spill(0)], rcx
            ; gs mov rcx, [offset::ATTENTION]
            ; mov ecx, [rcx]
            ; gs pext rcx, rcx, [offset::ATTENTION_MASK]
            ; gs pext r11, r10, [offset::JUMP_INDEX]
            ; lea r11, [r11 * 8]
            ; lea rcx, [rcx + r10]
            ; gs mov r10, [r11 * 2 + jumps]
            ; lea rcx, [rcx + r10]
            ; jrcxz =>hit
            ; gs mov rcx, [offset::spill(0)]
            ; jmp =>out
            ; =>hit
            ; gs mov rcx, [offset::spill(0)]
            ; gs jmp QWORD [r11 * 2 + jumps + 8]
        );
        let site = self.site(Site::Indirect { rip, moved });
        self.stubs.push(Stub { label: out, site, restore: None });
    }

    fn hand_over(&mut self, rip: u64) {
        let label = self.asm.new_dynamic_label();
        dynasm!(self.asm ; .arch x64 ; jmp =>label);
        let site = self.site(Site::HandOver { rip: mask(rip, self.frame.mode.bits) });
        self.stubs.push(Stub { label, site, restore: None });
    }

    fn finish(mut self, bytes: usize, instructions: usize) -> Result<Translation, EmitError> {
        for stub in std::mem::take(&mut self.stubs) {
            dynasm!(self.asm ; .arch x64 ; =>stub.label);
            if let Some(borrowed) = stub.restore {
                dynasm!(self.asm ; .arch x64
                    ; gs mov [offset::EA], Rq(borrowed.address)
                    ; gs mov rcx, [offset::spill(0)]
                );
                self.give_back(borrowed);
            }
            let number = self.frame.first_site + stub.site as u32;
            dynasm!(self.asm ; .arch x64 ; gs mov DWORD [offset::SITE], number as i32);
            self.jump_to(self.frame.exit);
        }
        let code = self.asm.finalize().map_err(|error| EmitError::Assemble(error.to_string()))?;
        Ok(Translation { code, sites: self.sites, bytes, instructions })
    }
}

/// The registers of `insn`'s address that are in host registers of their own: they can't be borrowed.
fn address_bits(insn: &Instruction) -> u16 {
    [insn.memory_base(), insn.memory_index()]
        .into_iter()
        .filter(|r| r.is_gpr() && scratch_number(*r).is_none())
        .fold(0, |bits, r| bits | 1 << r.full_register().number())
}

/// The address of an operand that no register moves.
fn constant_address(insn: &Instruction) -> Option<u64> {
    let absolute = insn.memory_base() == Register::None && insn.memory_index() == Register::None;
    (absolute || insn.is_ip_rel_memory_operand()).then(|| insn.memory_displacement64())
}

/// The 32-bit name of a register.
fn narrow(number: u8) -> Register {
    const NAMES: [Register; 16] = [
        Register::EAX,
        Register::ECX,
        Register::EDX,
        Register::EBX,
        Register::ESP,
        Register::EBP,
        Register::ESI,
        Register::EDI,
        Register::R8D,
        Register::R9D,
        Register::R10D,
        Register::R11D,
        Register::R12D,
        Register::R13D,
        Register::R14D,
        Register::R15D,
    ];
    NAMES[usize::from(number & 15)]
}

fn directions(access: OpAccess) -> (bool, bool) {
    match access {
        OpAccess::Read | OpAccess::CondRead => (true, false),
        OpAccess::Write => (false, true),
        OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
        OpAccess::None | OpAccess::NoMemAccess => (false, false),
    }
}

/// Written registers whose old value may survive: shifts by zero and bit scans of zero.
fn conditional(insn: &Instruction, written: u16) -> u16 {
    match insn.mnemonic() {
        Mnemonic::Bsf | Mnemonic::Bsr => written,
        _ => 0,
    }
}

/// Instructions that do nothing to the state.
fn is_hint(mnemonic: Mnemonic) -> bool {
    use Mnemonic as N;
    matches!(
        mnemonic,
        N::Prefetchnta | N::Prefetcht0 | N::Prefetcht1 | N::Prefetcht2 | N::Prefetchw
    )
}

/// The encoding of an instruction that 64-bit code has too.
fn wide_form(insn: &Instruction) -> Instruction {
    let code = match insn.code() {
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_RAX_moffs64 => Code::Mov_r64_rm64,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        Code::Mov_moffs64_RAX => Code::Mov_rm64_r64,
        other => other,
    };
    let mut out = *insn;
    out.set_code(code);
    out
}
