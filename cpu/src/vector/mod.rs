//! x87, MMX, SSE and AVX instructions, run on the host.
//!
//! Problem: vector and floating-point semantics are large, and the only exact definition at hand is the
//! processor itself. Scheme: each instruction is classified by an allowlist (`classify`). The
//! commonest moves are plain Rust (`moves`); state management is written out (`x87`, `xsave`);
//! instructions that touch memory element by element are written out too (`masked`); everything
//! else runs **as itself** in a generated stub (`stub`) with the guest's registers loaded, its
//! general register renamed to RAX and its memory operand pointed at a bounce buffer.
//!
//! Invariants:
//! - A guest-chosen opcode reaches the host only through the allowlist; default is refusal.
//! - Memory is read before and written after the stub, through [`OperandMemory`]; whatever could
//!   fault is checked before any register changes.
//! - Every exception comes out as an `Err` with the state as before the instruction, but for what the
//!   SDM lets change: MXCSR flags with #XM, finished elements of a gather.
//! - The host never takes #MF: x87 instructions run only after the pending-exception check, and stubs
//!   save the state with non-waiting instructions.
//! - The host takes #XM (SIGFPE) only with an exception unmasked in the guest's MXCSR, at the one
//!   instruction announced to [`simd_fault`], which says where the handler resumes.
//!
//! What the guest sees of x87 pointers, on every host: on an Intel model FIP follows every non-control
//! instruction; FDP and FOP only those that raise an unmasked exception (CPUID.7.0:EBX bit 6,
//! FDP_EXCPTN_ONLY, must be reported 1); FCS and FDS are zero (bit 13 must be reported 1). On an AMD model all
//! five follow every non-control instruction, and what is not FNSTENV, FNSAVE, FLDENV or FRSTOR saves and
//! loads zeros for them unless an unmasked exception is pending (CPUID.80000008:EBX bit 2, XSAVEERPTR, must
//! be reported 1); so does the processor, as measured on a Zen 4 host.
//!
//! Thread: the vCPU's. Source: SDM vol. 1, "Programming with the x87 FPU" to "Programming with AVX,
//! FMA, and AVX2"; vol. 2, "Exceptions Type 1-14" and the instruction pages.

mod classify;
mod masked;
mod moves;
pub mod simd_fault;
mod stub;
#[cfg(test)]
pub(crate) mod tests;
mod x87;
mod xsave;

use std::collections::HashMap;
use std::fmt;

use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic as M, Register};

use crate::exception::{Outcome, Trap};
use crate::host_code::HostCode;
use crate::state::{CpuState, Cr0, Cr4, Rflags, VectorState, sreg};
use classify::{Action, Guard, HostFeatures, StubOp};
use stub::Bounce;

/// Guest memory by segment:offset, as the interpreter implements it: it does the segment, canonical
/// and paging checks and returns the guest's exception (#SS, #GP, #PF, #AC).
pub trait OperandMemory {
    /// # Errors
    /// The exception to raise; `out` may then hold anything.
    fn read(&mut self, cpu: &mut CpuState, segment: usize, offset: u64, out: &mut [u8]) -> Outcome;
    /// # Errors
    /// The exception to raise; nothing has then been written.
    fn write(&mut self, cpu: &mut CpuState, segment: usize, offset: u64, data: &[u8]) -> Outcome;
    /// Checks the segment alone.
    ///
    /// # Errors
    /// #SS or #GP.
    fn check_segment(
        &self,
        _cpu: &CpuState,
        _segment: usize,
        _offset: u64,
        _len: usize,
        _write: bool,
    ) -> Outcome {
        Ok(())
    }
    /// Checks that a later write of `len` bytes can't fault.
    ///
    /// # Errors
    /// The exception that the write would raise.
    fn probe_write(
        &mut self,
        cpu: &mut CpuState,
        segment: usize,
        offset: u64,
        len: usize,
    ) -> Outcome;
}

/// A prepared instruction: a small handle to keep with the decoded one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorOp {
    generation: u32,
    index: u32,
}

/// What tells two prepared instructions apart: the renamed encoding and the general register behind
/// the name.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    code: Code,
    gpr: u8,
    len: u8,
    bytes: [u8; 15],
}

/// Most prepared instructions kept; then all are forgotten and the generation changes. A stub takes
/// some 50 to 150 bytes of host code.
const OPS_MAX: usize = 1 << 16;

/// One vCPU's means of running vector and x87 instructions.
pub struct VectorUnit {
    code: Box<dyn HostCode>,
    host: HostFeatures,
    ops: Vec<classify::Prepared>,
    index: HashMap<Key, u32>,
    generation: u32,
    xcr0_supported: u64,
    /// The guest's processor is AMD's.
    amd: bool,
    bounce: Box<Bounce>,
}

impl fmt::Debug for VectorUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VectorUnit")
            .field("ops", &self.ops.len())
            .field("generation", &self.generation)
            .field("xcr0_supported", &self.xcr0_supported)
            .finish_non_exhaustive()
    }
}

/// An instruction in execution: what every handler needs to know about it.
pub(crate) struct Operand<'a> {
    pub cpu: &'a mut CpuState,
    pub mem: &'a mut dyn OperandMemory,
    pub segment: usize,
    pub address: u64,
    /// The guest's processor is AMD's.
    pub amd: bool,
}

impl Operand<'_> {
    /// Reads `out.len()` bytes at `displacement` from the operand's start.
    pub fn read(&mut self, displacement: u64, out: &mut [u8]) -> Outcome {
        self.mem.read(self.cpu, self.segment, self.address.wrapping_add(displacement), out)
    }
    pub fn write(&mut self, displacement: u64, data: &[u8]) -> Outcome {
        self.mem.write(self.cpu, self.segment, self.address.wrapping_add(displacement), data)
    }
    pub fn probe(&mut self, len: usize) -> Outcome {
        self.mem.probe_write(self.cpu, self.segment, self.address, len)
    }
    /// #GP(0) unless the operand's linear address is a multiple of `align`, a power of two.
    pub fn check_alignment(&self, align: u64) -> Outcome {
        if align > 1 && self.linear() & (align - 1) != 0 { Err(Trap::gp0()) } else { Ok(()) }
    }
    /// The same for the areas of FXSAVE and XSAVE. As measured, Intel's processors look first whether the segment
    /// has the first byte.
    pub fn check_area(&self, align: u64) -> Outcome {
        if !self.amd {
            self.mem.check_segment(self.cpu, self.segment, self.address, 1, false)?;
        }
        self.check_alignment(align)
    }
    /// #AC for an unaligned operand of `len` bytes where CR0.AM, EFLAGS.AC and CPL ask for it (SDM vol. 3,
    /// table "Alignment Requirements by Data Type"). As measured, Intel's processors don't check operands of
    /// 16 bytes and more, AMD's want them at multiples of 16; the lanes of masked moves and gathers are
    /// not checked.
    fn check_for_ac(&self, len: usize, write: bool) -> Outcome {
        if self.cpu.cpl != 3 || !self.cpu.flag(Rflags::AC) || !self.cpu.cr0(Cr0::AM) {
            return Ok(());
        }
        let align: u64 = match len {
            2 | 4 | 8 => len as u64,
            10 => 8,
            // Environments and states of the x87 unit with 16- and 32-bit operands.
            14 | 94 => 2,
            28 | 108 => 4,
            16 | 32 if self.amd => 16,
            512 if self.amd => 4,
            _ => 1,
        };
        if self.linear() & (align - 1) == 0 {
            return Ok(());
        }
        self.mem.check_segment(self.cpu, self.segment, self.address, len, write)?;
        Err(Trap::ac())
    }
    fn linear(&self) -> u64 {
        let base = if self.cpu.is_64bit() && self.segment < sreg::FS {
            0
        } else {
            self.cpu.seg.get(self.segment).map_or(0, |segment| segment.base)
        };
        base.wrapping_add(self.address)
    }
}

/// Which state a [`Plain`] instruction needs in the host's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Sse,
    Avx,
    X87,
    Mmx,
    /// XMM and MM registers.
    SseMmx,
}

/// An instruction that works on vector or x87 registers, general registers and one memory operand, and
/// nothing else: it may run on the host as it is, as long as it can't raise a floating-point exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plain {
    pub unit: Unit,
    /// Alignment that the memory operand must have; 0 or 1 for none.
    pub align: u8,
}

fn host() -> &'static HostFeatures {
    static HOST: std::sync::OnceLock<HostFeatures> = std::sync::OnceLock::new();
    HOST.get_or_init(HostFeatures::detect)
}

/// Codes that [`classify::classify`] refuses whatever their operands are: nearly all that a translator meets.
fn is_foreign(code: Code) -> bool {
    static FOREIGN: std::sync::OnceLock<Box<[bool]>> = std::sync::OnceLock::new();
    let table = FOREIGN
        .get_or_init(|| Code::values().map(|code| !classify::may_be_ours(code, host())).collect());
    table[code as usize]
}

/// Whether `insn` reads or writes x87, MMX, SSE or AVX state: it is one of the vector unit's.
#[must_use]
pub fn is_vector(insn: &Instruction) -> bool {
    !is_foreign(insn.code()) && classify::classify(insn, host()).is_some()
}

/// Whether `insn` is such an instruction, and the host has it. LDMXCSR and FLDCW are, as long as the value that
/// they load masks every exception; FWAIT, as long as no exception is pending.
#[must_use]
pub fn plain(insn: &Instruction) -> Option<Plain> {
    if is_foreign(insn.code()) {
        return None;
    }
    let prepared = classify::classify(insn, host())?;
    let unit = match prepared.guard {
        Guard::Sse => Unit::Sse,
        Guard::Vex => Unit::Avx,
        Guard::X87 | Guard::X87NoWait | Guard::Wait => Unit::X87,
        Guard::Mmx if matches!(prepared.action, Action::Stub(StubOp { mxcsr: false, .. })) => {
            Unit::Mmx
        }
        // CVTPS2PI of memory has no XMM register, but MXCSR.
        Guard::Mmx | Guard::SseMmx => Unit::SseMmx,
        _ => return None,
    };
    use classify::System as S;
    use x87::Control as C;
    let direct = match prepared.action {
        Action::Native(_) | Action::Stub(_) => true,
        Action::System(S::X87(control)) => matches!(
            control,
            C::ClearExceptions
                | C::LoadControlWord
                | C::StoreControlWord
                | C::StoreStatusWord
                | C::StatusToAx
                | C::Wait
        ),
        Action::System(system) => matches!(system, S::Vzero { .. } | S::Ldmxcsr | S::Stmxcsr),
        Action::Masked(_) => false,
    };
    direct.then(|| {
        let len = insn.memory_size().size() as u8;
        let vex = unit == Unit::Avx;
        Plain { unit, align: classify::alignment(insn.mnemonic(), vex, len) }
    })
}

impl VectorUnit {
    #[must_use]
    pub fn new(code: Box<dyn HostCode>) -> Self {
        Self {
            code,
            host: HostFeatures::detect(),
            ops: Vec::new(),
            index: HashMap::new(),
            generation: 0,
            xcr0_supported: 7,
            amd: false,
            bounce: Box::default(),
        }
    }

    /// Which XCR0 bits the guest's CPUID model has (leaf 0xD), so that XSETBV refuses the others, and
    /// whether it is AMD's. 7 and no unless told.
    pub fn set_model(&mut self, xcr0_supported: u64, amd: bool) {
        self.xcr0_supported = xcr0_supported & 7;
        self.amd = amd;
    }

    /// Whether `op` still names a prepared instruction. [`Self::execute`] takes a stale one too, but
    /// prepares it anew each time: a caller who keeps handles should then replace its own.
    #[must_use]
    pub fn is_current(&self, op: &VectorOp) -> bool {
        op.generation == self.generation
    }

    /// Makes `insn` ready to execute. `None`: not one of ours, or the host can't run it; unless the
    /// integer interpreter has it, it is #UD.
    ///
    /// The caller has checked that the guest's CPUID model has the instruction's features.
    pub fn prepare(&mut self, insn: &Instruction) -> Option<VectorOp> {
        let prepared = classify::classify(insn, &self.host)?;
        let key = match prepared.action {
            // These take their operands from the instruction each time.
            Action::System(_) | Action::Masked(_) => {
                Key { code: insn.code(), gpr: 0, len: 0, bytes: [0; 15] }
            }
            Action::Native(_) | Action::Stub(_) => {
                let (bytes, len) = stub::renamed_bytes(insn)?;
                Key { code: insn.code(), gpr: stub::explicit_gpr(insn).unwrap_or(0), len, bytes }
            }
        };
        if let Some(&index) = self.index.get(&key) {
            return Some(VectorOp { generation: self.generation, index });
        }
        if self.ops.len() >= OPS_MAX {
            self.forget_all();
        }
        let index = u32::try_from(self.ops.len()).expect("bounded by OPS_MAX");
        self.ops.push(prepared);
        self.index.insert(key, index);
        Some(VectorOp { generation: self.generation, index })
    }

    fn forget_all(&mut self) {
        self.ops.clear();
        self.index.clear();
        self.code.reset();
        self.generation = self.generation.wrapping_add(1);
    }

    /// Executes `insn`, which `op` was prepared from. `address`: effective address (offset) of its
    /// memory operand if it has one, truncated to the address size; the segment is taken from `insn`.
    /// (Gathers and MASKMOV work out their own addresses.) `cpu.rip` is the instruction's own address
    /// and is not changed.
    ///
    /// A host SIGFPE handler that asks [`simd_fault::recover`] must be installed.
    ///
    /// # Errors
    /// The exception to deliver with RIP at the instruction. A pending x87 exception is
    /// [`Trap::mf`]: with CR0.NE clear the caller asserts FERR# instead.
    pub fn execute(
        &mut self,
        op: &VectorOp,
        insn: &Instruction,
        cpu: &mut CpuState,
        mem: &mut dyn OperandMemory,
        address: u64,
    ) -> Outcome {
        let op = if self.is_current(op) { *op } else { self.prepare(insn).ok_or(Trap::ud())? };
        let Some(&prepared) = self.ops.get(op.index as usize) else {
            return Err(Trap::ud());
        };
        check_guard(prepared.guard, cpu)?;
        let segment = insn.memory_segment();
        let segment = if segment == Register::None { sreg::DS } else { segment.number() };
        let operand = Operand { cpu, mem, segment, address, amd: self.amd };
        let len = insn.memory_size().size();
        // What needs alignment anyway is #GP for want of it, by AMD's processors too.
        let vex = prepared.guard == Guard::Vex;
        let aligned = matches!(len, 16 | 32)
            && !(self.amd && is_sha(insn))
            && classify::alignment(insn.mnemonic(), vex, len as u8) > 1;
        // Intel's do not report #AC here (SDM vol. 2, "VCVTPH2PS", "VCVTPS2PH", Other Exceptions).
        let half = matches!(insn.mnemonic(), M::Vcvtph2ps | M::Vcvtps2ph);
        let exempt = aligned || half && !self.amd;
        if !matches!(prepared.action, Action::Masked(_)) && !exempt {
            let write = matches!(prepared.action, Action::Stub(StubOp { writes_memory: true, .. }))
                || matches!(prepared.action, Action::Native(moves::Native::Store { .. }));
            operand.check_for_ac(len, write)?;
        }
        match prepared.action {
            Action::Native(native) => moves::execute(native, operand),
            Action::Stub(stub) => self.run_stub(op.index, stub, insn, operand),
            Action::System(system) => self.execute_system(system, insn, operand),
            Action::Masked(masked) => masked::execute(masked, insn, operand),
        }
    }

    fn execute_system(
        &mut self,
        system: classify::System,
        insn: &Instruction,
        mut operand: Operand<'_>,
    ) -> Outcome {
        use classify::System as S;
        match system {
            S::X87(control) => x87::execute(control, &mut operand),
            S::Save(area) => xsave::execute(area, &mut operand),
            S::Xgetbv => xsave::xgetbv(operand.cpu, operand.amd),
            S::Xsetbv => xsave::xsetbv(operand.cpu, self.xcr0_supported),
            S::Ldmxcsr => xsave::ldmxcsr(&mut operand),
            S::Stmxcsr => {
                let mxcsr = operand.cpu.vector.mxcsr();
                operand.write(0, &mxcsr.to_le_bytes())
            }
            S::Vzero { all } => {
                moves::vzero(operand.cpu, all);
                Ok(())
            }
            S::Movnti => {
                let register = insn.op1_register();
                let value = operand.cpu.gpr[register.number() & 15].to_le_bytes();
                operand.write(0, &value[..register.size().min(8)])
            }
        }
    }

    /// Makes sure that the stub is published; returns it with its entry filled in.
    fn publish(&mut self, index: u32, mut op: StubOp, insn: &Instruction) -> Outcome<StubOp> {
        let stub = stub::generate(insn, &op).ok_or(Trap::ud())?;
        let entry = match self.code.publish(&stub.bytes) {
            Some(entry) => entry,
            None => {
                // Full. Handles stay good: each stub is published again when next executed.
                self.code.reset();
                for prepared in &mut self.ops {
                    if let Action::Stub(stub) = &mut prepared.action {
                        stub.entry = 0;
                    }
                }
                self.code.publish(&stub.bytes).expect("an empty code area holds one stub")
            }
        };
        op.entry = entry as usize;
        op.insn_at = stub.insn_at;
        op.resume_at = stub.resume_at;
        if let Some(prepared) = self.ops.get_mut(index as usize) {
            prepared.action = Action::Stub(op);
        }
        Ok(op)
    }

    fn run_stub(
        &mut self,
        index: u32,
        op: StubOp,
        insn: &Instruction,
        mut operand: Operand<'_>,
    ) -> Outcome {
        let op = if op.entry == 0 { self.publish(index, op, insn)? } else { op };
        let size = usize::from(op.memory_len);
        if size != 0 {
            // As measured, AMD's processors don't check the operands of SHA instructions, and judge a store's
            // address before an exception of the computation.
            if !(self.amd && is_sha(insn)) {
                operand.check_alignment(u64::from(op.align))?;
            }
            if self.amd && op.writes_memory {
                operand.probe(size)?;
            }
            if !op.writes_memory {
                operand.read(0, &mut self.bounce.data[..size])?;
            }
        }
        if op.x87_state {
            return self.run_x87_stub(op, insn, operand, size);
        }
        if stub::run(&op, operand.cpu, &mut self.bounce) == stub::Exit::SimdFault {
            return Err(simd_exception(operand.cpu));
        }
        // Of these only VCVTPS2PH changes more than its destination: on hardware as here, MXCSR has
        // its flags even if the store faults, and an unmasked one comes before the store.
        if op.writes_memory { operand.write(0, &self.bounce.data[..size]) } else { Ok(()) }
    }

    /// A stub with x87 or MMX state.
    fn run_x87_stub(
        &mut self,
        op: StubOp,
        insn: &Instruction,
        mut operand: Operand<'_>,
        size: usize,
    ) -> Outcome {
        let saved = op.writes_memory.then(|| x87::Saved::of(&operand.cpu.vector));
        let cpu = &mut *operand.cpu;
        // The host would put its own addresses into the pointers.
        let pointers = x87::take_pointers(&mut cpu.vector);
        let exit = stub::run(&op, cpu, &mut self.bounce);
        x87::put_pointers(&mut cpu.vector, pointers);
        if exit == stub::Exit::SimdFault {
            return Err(simd_exception(cpu));
        }
        if op.x87_pointers {
            let data = (size != 0).then_some((operand.segment, operand.address));
            x87::update_pointers(cpu, insn, data, operand.amd);
        }
        let Some(saved) = saved else { return Ok(()) };
        // An unmasked exception suppresses the store, and with it a page fault.
        if op.x87_pointers && !x87::stored(&cpu.vector) {
            return Ok(());
        }
        operand.write(0, &self.bounce.data[..size]).inspect_err(|_| {
            saved.restore(&mut operand.cpu.vector);
        })
    }
}

fn is_sha(insn: &Instruction) -> bool {
    insn.cpuid_features().contains(&CpuidFeature::SHA)
}

/// The exception for an unmasked SIMD floating-point condition (SDM vol. 3, "Interrupt 19").
fn simd_exception(cpu: &CpuState) -> Trap {
    if cpu.cr4(Cr4::OSXMMEXCPT) { Trap::xm() } else { Trap::ud() }
}

/// The checks that come before any operand is touched, in the order of the SDM's exception classes.
#[inline]
fn check_guard(guard: Guard, cpu: &CpuState) -> Outcome {
    let fail_if = |condition: bool, trap: Trap| if condition { Err(trap) } else { Ok(()) };
    match guard {
        Guard::None => Ok(()),
        Guard::Sse | Guard::SseMmx => {
            fail_if(cpu.cr0(Cr0::EM) || !cpu.cr4(Cr4::OSFXSR), Trap::ud())?;
            fail_if(cpu.cr0(Cr0::TS), Trap::nm())?;
            fail_if(guard == Guard::SseMmx && x87::is_pending(&cpu.vector), Trap::mf())
        }
        Guard::Vex => {
            fail_if(cpu.real_or_v86() || !cpu.cr4(Cr4::OSXSAVE) || cpu.xcr0 & 6 != 6, Trap::ud())?;
            fail_if(cpu.cr0(Cr0::TS), Trap::nm())
        }
        Guard::Mmx => {
            fail_if(cpu.cr0(Cr0::EM), Trap::ud())?;
            fail_if(cpu.cr0(Cr0::TS), Trap::nm())?;
            fail_if(x87::is_pending(&cpu.vector), Trap::mf())
        }
        Guard::X87 | Guard::X87NoWait => {
            fail_if(cpu.cr0(Cr0::EM) || cpu.cr0(Cr0::TS), Trap::nm())?;
            fail_if(guard == Guard::X87 && x87::is_pending(&cpu.vector), Trap::mf())
        }
        Guard::Wait => {
            fail_if(cpu.cr0(Cr0::MP) && cpu.cr0(Cr0::TS), Trap::nm())?;
            fail_if(x87::is_pending(&cpu.vector), Trap::mf())
        }
        Guard::Fxsr => fail_if(cpu.cr0(Cr0::EM) || cpu.cr0(Cr0::TS), Trap::nm()),
        Guard::Xsave => {
            fail_if(!cpu.cr4(Cr4::OSXSAVE), Trap::ud())?;
            fail_if(cpu.cr0(Cr0::TS), Trap::nm())
        }
        Guard::Osxsave => fail_if(!cpu.cr4(Cr4::OSXSAVE), Trap::ud()),
    }
}

/// The 16 bytes of XMMn.
fn xmm(state: &VectorState, n: usize) -> &[u8] {
    &state.bytes[VectorState::XMM + 16 * (n & 15)..][..16]
}
