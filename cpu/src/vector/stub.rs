//! Stubs: one guest instruction with its state loaded around it.
//!
//! Problem: run an arbitrary allowed instruction on the host without letting it see the host's
//! registers or memory. Scheme: rename, encode for 64-bit mode whatever the guest's mode, and wrap:
//!
//! ```text
//! extern "sysv64" fn(rdi = *mut CpuState, rsi = *mut Bounce) -> eax = 0 done, 1 SIMD fault
//!
//! without x87 state                        with x87 state
//!   ldmxcsr  [rdi + MXCSR]   (if used)       fxrstor64 [rdi + vector]
//!   movups   xmmN, [rdi + ..]  each read     mov  rax, [rdi + gpr]     (if read)
//!   vinsertf128 ..           (256 bits)      push/popfq status flags   (FCMOVcc, FCOMI)
//!   mov      rax, [rdi + gpr]  (if read)   I:<instruction>
//! I:<instruction>                            mov  [rdi + gpr], rax     (if written)
//!   mov      [rdi + gpr], rax  (if written)  pushfq/pop, merge         (if written)
//!   pushfq/pop, merge        (if written)    fxsave64 [rdi + vector]
//!   movups   [rdi + ..], xmmN  each written  fninit
//!   stmxcsr  [rdi + MXCSR]; ldmxcsr [rsi+64] ldmxcsr [rsi + 64]
//!   vzeroupper               (VEX)           xor eax, eax; ret
//!   xor eax, eax; ret
//! R:stmxcsr, ldmxcsr, vzeroupper           R:fxsave64, fninit, ldmxcsr
//!   mov eax, 1; ret                          mov eax, 1; ret
//! ```
//!
//! Vector registers keep their numbers, a general register operand becomes (R/E)AX, the memory operand
//! [rsi]. PCMPESTRx reads RAX and RDX and PCMPxSTRI writes RCX: loaded and stored under their own
//! names. May clobber: rax, rcx, rdx, flags, all vector, MM and x87 registers, as a SysV callee may.
//! R is reached only by [`super::simd_fault`]. Invariants: no branch inside, position independent; a
//! legacy SSE instruction leaves the upper halves in `CpuState` alone, a VEX one stores all 32 bytes
//! (the processor has zeroed the upper half of a 128-bit destination). Thread: the vCPU's.
//! Source: SDM vol. 2; System V ABI for x86-64.

use std::mem::offset_of;

use iced_x86::{
    Code, Encoder, EncodingKind, Instruction, InstructionInfoFactory, MemoryOperand, Mnemonic,
    OpAccess, OpKind, Register,
};

use super::classify::{StubOp, vector_number};
use super::simd_fault;
use crate::state::{CpuState, Rflags, VectorState, reg};

/// Where a stub's memory operand lies, and the host's MXCSR.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Bounce {
    pub data: [u8; 64],
    mxcsr: u32,
}

impl Default for Bounce {
    fn default() -> Self {
        Self { data: [0; 64], mxcsr: 0x1f80 }
    }
}

const VECTOR: usize = offset_of!(CpuState, vector);
const MXCSR: usize = VECTOR + VectorState::MXCSR;
const RFLAGS: usize = offset_of!(CpuState, rflags);
/// FXRSTOR wants 16 bytes.
const _: () = assert!(VECTOR.is_multiple_of(64) && offset_of!(Bounce, mxcsr) == 64);

/// How a stub came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done,
    /// An unmasked SIMD floating-point exception: MXCSR has its flags, nothing else changed.
    SimdFault,
}

/// A finished stub, to be published.
#[derive(Debug)]
pub struct Stub {
    pub bytes: Vec<u8>,
    pub insn_at: u16,
    pub resume_at: u16,
}

/// Calls the published stub of `op`.
pub fn run(op: &StubOp, cpu: &mut CpuState, bounce: &mut Bounce) -> Exit {
    type Entry = unsafe extern "sysv64" fn(*mut CpuState, *mut Bounce) -> u32;
    let masked = cpu.vector.mxcsr() & 0x1f80 == 0x1f80;
    // SAFETY: `entry` came from `HostCode::publish` of bytes that `generate` made with this signature,
    // and is set to 0 (and published anew) when the code area is reset.
    let entry: Entry = unsafe { std::mem::transmute::<usize, Entry>(op.entry) };
    let (cpu, bounce): (*mut CpuState, *mut Bounce) = (cpu, bounce);
    let call = || {
        // SAFETY: both pointers come from exclusive references that outlive the call; the stub accesses
        // them at compile-time offsets only, and keeps the ABI's callee-saved state; see the drawing
        // above.
        unsafe { entry(cpu, bounce) }
    };
    // CVTPS2PI and its kin have `mxcsr` set as well as `x87_state`.
    let result = if masked || !op.mxcsr {
        call()
    } else {
        let at = |offset: u16| op.entry as u64 + u64::from(offset);
        simd_fault::armed(at(op.insn_at), at(op.resume_at), call)
    };
    if result == 0 { Exit::Done } else { Exit::SimdFault }
}

/// Number of the general register that is an explicit operand.
pub fn explicit_gpr(insn: &Instruction) -> Option<u8> {
    explicit_gpr_operand(insn)
        .and_then(|operand| u8::try_from(insn.op_register(operand).number()).ok())
}

fn explicit_gpr_operand(insn: &Instruction) -> Option<u32> {
    (0..insn.op_count())
        .find(|&i| insn.op_kind(i) == OpKind::Register && insn.op_register(i).is_gpr())
}

/// The instruction as the stub has it.
fn renamed(insn: &Instruction) -> Instruction {
    let mut renamed = *insn;
    if let Some(operand) = explicit_gpr_operand(insn) {
        let wide = insn.op_register(operand).is_gpr64();
        renamed.set_op_register(operand, if wide { Register::RAX } else { Register::EAX });
    }
    renamed.set_segment_prefix(Register::None);
    renamed.set_has_rep_prefix(false);
    renamed.set_has_repne_prefix(false);
    renamed.set_has_lock_prefix(false);
    if (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory) {
        renamed.set_memory_base(Register::RSI);
        renamed.set_memory_index(Register::None);
        renamed.set_memory_index_scale(1);
        renamed.set_memory_displ_size(0);
        renamed.set_memory_displacement64(0);
    }
    renamed
}

/// Encoding of the renamed instruction: what identifies its stub.
pub fn renamed_bytes(insn: &Instruction) -> Option<([u8; 15], u8)> {
    let mut encoder = Encoder::new(64);
    encoder.encode(&renamed(insn), 0).ok()?;
    let buffer = encoder.take_buffer();
    let mut bytes = [0; 15];
    bytes.get_mut(..buffer.len())?.copy_from_slice(&buffer);
    Some((bytes, u8::try_from(buffer.len()).ok()?))
}

/// Appends instructions; fails as a whole when one can't be encoded.
struct Emitter {
    encoder: Encoder,
    len: usize,
}

impl Emitter {
    fn emit(&mut self, insn: &Instruction) -> Option<()> {
        self.len += self.encoder.encode(insn, 0).ok()?;
        Some(())
    }
    fn op0(&mut self, code: Code) -> Option<()> {
        self.emit(&Instruction::with(code))
    }
    fn memory(&mut self, code: Code, memory: MemoryOperand) -> Option<()> {
        self.emit(&Instruction::with1(code, memory).ok()?)
    }
    fn load(&mut self, code: Code, register: Register, from: usize) -> Option<()> {
        self.emit(&Instruction::with2(code, register, state(from)).ok()?)
    }
    fn store(&mut self, code: Code, to: usize, register: Register) -> Option<()> {
        self.emit(&Instruction::with2(code, state(to), register).ok()?)
    }
    fn immediate(&mut self, code: Code, register: Register, value: i32) -> Option<()> {
        self.emit(&Instruction::with2(code, register, value).ok()?)
    }
    fn host_mxcsr(&mut self) -> Option<()> {
        let slot = i64::try_from(offset_of!(Bounce, mxcsr)).ok()?;
        self.memory(Code::Ldmxcsr_m32, MemoryOperand::with_base_displ(Register::RSI, slot))
    }
    fn leave(&mut self, result: i32) -> Option<()> {
        self.immediate(Code::Mov_r32_imm32, Register::EAX, result)?;
        self.op0(Code::Retnq)
    }
    fn position(&self) -> Option<u16> {
        u16::try_from(self.len).ok()
    }
}

/// A field of `CpuState`.
fn state(offset: usize) -> MemoryOperand {
    let displacement = i64::try_from(offset).unwrap_or(0);
    MemoryOperand::with_base_displ(Register::RDI, displacement)
}

const fn gpr(number: usize) -> usize {
    offset_of!(CpuState, gpr) + 8 * (number & 15)
}
fn xmm_field(number: u8) -> usize {
    VECTOR + VectorState::XMM + 16 * usize::from(number)
}
fn upper_field(number: u8) -> usize {
    VECTOR + VectorState::YMMH + 16 * usize::from(number)
}
fn numbered(first: Register, number: u8) -> Register {
    first + u32::from(number)
}

/// Registers that travel between `CpuState` and the host, beside x87 state.
struct Plan {
    /// General registers as (host register, guest number).
    gpr_in: Vec<(Register, usize)>,
    gpr_out: Vec<(Register, usize)>,
    vector_in: Vec<u8>,
    vector_out: Vec<u8>,
    wide: bool,
    vex: bool,
    flags_in: bool,
    flags_out: bool,
}

impl Plan {
    fn of(insn: &Instruction) -> Self {
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(insn);
        let status = 0xff & !(iced_x86::RflagsBits::DF | iced_x86::RflagsBits::IF);
        let mut plan = Self {
            gpr_in: Vec::new(),
            gpr_out: Vec::new(),
            vector_in: Vec::new(),
            vector_out: Vec::new(),
            wide: false,
            vex: insn.encoding() == EncodingKind::VEX,
            flags_in: insn.rflags_read() & status != 0,
            flags_out: insn.rflags_modified() & status != 0,
        };
        for used in info.used_registers() {
            let Some(number) = vector_number(used.register()) else { continue };
            // A destination may keep some of its bytes: it is loaded as well.
            if !plan.vector_in.contains(&number) {
                plan.vector_in.push(number);
            }
            let writes = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead);
            if writes && !plan.vector_out.contains(&number) {
                plan.vector_out.push(number);
            }
        }
        plan.wide = (0..insn.op_count())
            .any(|i| insn.op_kind(i) == OpKind::Register && insn.op_register(i).is_ymm());
        if let Some(operand) = explicit_gpr_operand(insn) {
            let number = insn.op_register(operand).number();
            let access = info.op_access(operand);
            if !matches!(access, OpAccess::Write) {
                plan.gpr_in.push((Register::RAX, number));
            }
            if !matches!(access, OpAccess::Read | OpAccess::CondRead) {
                plan.gpr_out.push((Register::RAX, number));
            }
        }
        use Mnemonic as M;
        let mnemonic = insn.mnemonic();
        if matches!(
            mnemonic,
            M::Pcmpestri
                | M::Pcmpestri64
                | M::Vpcmpestri
                | M::Vpcmpestri64
                | M::Pcmpestrm
                | M::Pcmpestrm64
                | M::Vpcmpestrm
                | M::Vpcmpestrm64
        ) {
            plan.gpr_in.push((Register::RAX, reg::RAX));
            plan.gpr_in.push((Register::RDX, reg::RDX));
        }
        if matches!(
            mnemonic,
            M::Pcmpestri
                | M::Pcmpestri64
                | M::Vpcmpestri
                | M::Vpcmpestri64
                | M::Pcmpistri
                | M::Vpcmpistri
        ) {
            plan.gpr_out.push((Register::RCX, reg::RCX));
        }
        // FCOMI leaves OF, SF and AF, on some processors.
        plan.flags_in |= plan.flags_out && super::classify::x87_opcode(insn.code()).is_some();
        plan
    }
}

/// Writes the stub for `insn`. `None` only if it can't be encoded.
pub fn generate(insn: &Instruction, op: &StubOp) -> Option<Stub> {
    let plan = Plan::of(insn);
    let mut e = Emitter { encoder: Encoder::try_with_capacity(64, 256).ok()?, len: 0 };
    let status = i32::try_from(Rflags::STATUS.bits()).ok()?;

    if op.x87_state {
        e.memory(Code::Fxrstor64_m512byte, state(VECTOR))?;
    } else {
        if op.mxcsr {
            e.memory(Code::Ldmxcsr_m32, state(MXCSR))?;
        }
        for &n in &plan.vector_in {
            load_vector(&mut e, &plan, n)?;
        }
    }
    if plan.flags_in {
        e.load(Code::Mov_r32_rm32, Register::EAX, RFLAGS)?;
        e.immediate(Code::And_EAX_imm32, Register::EAX, status)?;
        e.emit(&Instruction::with1(Code::Push_r64, Register::RAX).ok()?)?;
        e.op0(Code::Popfq)?;
    }
    for &(host, number) in &plan.gpr_in {
        e.load(Code::Mov_r64_rm64, host, gpr(number))?;
    }

    let insn_at = e.position()?;
    e.emit(&renamed(insn))?;

    for &(host, number) in &plan.gpr_out {
        e.store(Code::Mov_rm64_r64, gpr(number), host)?;
    }
    if plan.flags_out {
        e.op0(Code::Pushfq)?;
        e.emit(&Instruction::with1(Code::Pop_r64, Register::RDX).ok()?)?;
        e.immediate(Code::And_rm32_imm32, Register::EDX, status)?;
        e.load(Code::Mov_r32_rm32, Register::ECX, RFLAGS)?;
        e.immediate(Code::And_rm32_imm32, Register::ECX, !status)?;
        e.emit(&Instruction::with2(Code::Or_r32_rm32, Register::ECX, Register::EDX).ok()?)?;
        e.store(Code::Mov_rm32_r32, RFLAGS, Register::ECX)?;
    }
    if !op.x87_state {
        for &n in &plan.vector_out {
            store_vector(&mut e, &plan, n)?;
        }
    }
    save_state(&mut e, op, &plan, insn)?;
    e.leave(0)?;

    let resume_at = e.position()?;
    if op.mxcsr {
        save_state(&mut e, op, &plan, insn)?;
        e.leave(1)?;
    }
    Some(Stub { bytes: e.encoder.take_buffer(), insn_at, resume_at })
}

/// Takes what both exits save, and gives the host its own state back.
fn save_state(e: &mut Emitter, op: &StubOp, plan: &Plan, insn: &Instruction) -> Option<()> {
    if op.x87_state {
        e.memory(Code::Fxsave64_m512byte, state(VECTOR))?;
        e.op0(Code::Fninit)?;
        return e.host_mxcsr();
    }
    if op.mxcsr {
        e.memory(Code::Stmxcsr_m32, state(MXCSR))?;
        e.host_mxcsr()?;
    }
    if plan.vex {
        e.op0(Code::VEX_Vzeroupper)?;
    }
    // With a memory operand these leave x87 state alone on Intel; elsewhere it may have become MMX.
    if matches!(insn.mnemonic(), Mnemonic::Cvtpi2ps | Mnemonic::Cvtpi2pd) {
        e.op0(Code::Fninit)?;
    }
    Some(())
}

fn load_vector(e: &mut Emitter, plan: &Plan, n: u8) -> Option<()> {
    let xmm = numbered(Register::XMM0, n);
    if !plan.vex {
        return e.load(Code::Movups_xmm_xmmm128, xmm, xmm_field(n));
    }
    e.load(Code::VEX_Vmovups_xmm_xmmm128, xmm, xmm_field(n))?;
    if plan.wide {
        let ymm = numbered(Register::YMM0, n);
        let code = Code::VEX_Vinsertf128_ymm_ymm_xmmm128_imm8;
        e.emit(&Instruction::with4(code, ymm, ymm, state(upper_field(n)), 1).ok()?)?;
    }
    Some(())
}

fn store_vector(e: &mut Emitter, plan: &Plan, n: u8) -> Option<()> {
    let xmm = numbered(Register::XMM0, n);
    if !plan.vex {
        return e.store(Code::Movups_xmmm128_xmm, xmm_field(n), xmm);
    }
    e.store(Code::VEX_Vmovups_xmmm128_xmm, xmm_field(n), xmm)?;
    let ymm = numbered(Register::YMM0, n);
    let code = Code::VEX_Vextractf128_xmmm128_ymm_imm8;
    e.emit(&Instruction::with3(code, state(upper_field(n)), ymm, 1).ok()?)
}
