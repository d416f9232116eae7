//! The translating engine: runs a vCPU by translated code, and by the interpreter for the rest.
//!
//! Problem: translated code knows only plain instructions and memory that its inline TLB has. Scheme: a
//! loop. Find or make the block for the present state and enter it; when it leaves, its
//! [`Site`] says why: refill the TLB and go on, chain to the next block, or let the interpreter do one
//! instruction (everything sensitive, faulting, or outside RAM). Invariants: between two rounds the
//! whole state is in `CpuState`; what the interpreter flushed or wrote is acted on before translated
//! code runs again; only pages without translated code may be written inline. One per vCPU, on its
//! thread, where signals other than synchronous ones are blocked: the host's RSP is the guest's.

#![allow(clippy::useless_conversion, reason = "dynasm! converts register numbers")]

mod blocks;
mod mmu;

use std::arch::asm;
use std::sync::Arc;

use dynasmrt::x64::X64Relocation;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm};
use iced_x86::Instruction;
use xenolith_codecache::arena::{Arena, ArenaError};
use xenolith_cpu::cpuid::CpuidModel;
use xenolith_cpu::env::{Access, Env, Memory, Place, Privilege, attention};
use xenolith_cpu::host_code::HostCode;
use xenolith_cpu::interp::{self, Interp, is_canonical};
use xenolith_cpu::state::{Activity, Rflags, VectorState, sreg};
use xenolith_cpu::{CpuState, Gva, PAGE_SIZE};
use xenolith_mmu::SoftMmu;
use xenolith_translator::area::{Area, offset};
use xenolith_translator::emit::{self, Frame, Site};
use xenolith_translator::mode::Mode;

use crate::engine::{Engine, Exit};
use blocks::{Blocks, Key};
use mmu::NotingMmu;

/// Guest instructions in a block at most.
const LENGTH_MAX: usize = 64;
/// Host code of one vCPU.
const CODE_BYTES: usize = 64 << 20;
/// Single pages to flush before all are.
const FLUSHED_PAGES_MAX: usize = 8;
/// Rounds before the caller is asked: it counts time by them.
const INTERPRETED_RUN: u64 = 64;

/// The kernel lets programs use WRGSBASE (arch/x86, ELF_HWCAP2).
const HWCAP2_FSGSBASE: u64 = 1 << 1;

/// Counters, always on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub translated_blocks: u64,
    pub translated_instructions: u64,
    pub entries: u64,
    pub refills: u64,
    pub handed_over: u64,
    pub indirect_misses: u64,
    pub chains: u64,
    pub polls: u64,
    pub flushes: u64,
    pub invalidations: u64,
    pub unfit: u64,
    pub miss_interpreted: u64,
}

/// See the module's head.
pub struct Bt {
    interp: Box<Interp<NotingMmu>>,
    area: Box<Area>,
    blocks: Blocks,
    cpuid: Arc<CpuidModel>,
    /// Entry of the common code that enters the guest, and that which leaves it.
    enter: u64,
    exit: u64,
    load_vector: u64,
    /// Whose jump cache each privilege's is.
    jump_owner: [Option<Mode>; 3],
    /// Signals are blocked on the vCPU's thread.
    masked: bool,
    /// Blocks are run one at a time: nothing is chained or remembered.
    stepping: bool,
    pub stats: Stats,
}

/// Why there is no translating engine.
#[derive(Debug, thiserror::Error)]
pub enum BtError {
    #[error(transparent)]
    Arena(#[from] ArenaError),
    #[error("the translator needs a host with BMI2, AVX and FSGSBASE; use --engine interp")]
    Host,
}

impl std::fmt::Debug for Bt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bt").field("stats", &self.stats).finish_non_exhaustive()
    }
}

/// General registers but RSP and the scratch ones, which the common code moves.
const MOVED: [u8; 13] = [0, 1, 2, 3, 5, 6, 7, 8, 9, 12, 13, 14, 15];

/// The code that enters and leaves the guest, and where its parts are.
struct Common {
    code: Vec<u8>,
    exit: usize,
    load_vector: usize,
}

/// ```text
/// enter(target: rdi)   a C function; GS is the Area; comes back when the guest leaves
/// exit                 jumped to with the guest's registers and flags; SITE says from where
/// load_vector          jumped to; loads the vector registers and jumps to r10; uses r11, no flags
/// ```
fn common_code(base: u64) -> Common {
    let mut asm: VecAssembler<X64Relocation> = VecAssembler::new(base as usize);
    dynasm!(asm ; .arch x64
        ; push rbx ; push rbp ; push r12 ; push r13 ; push r14 ; push r15 ; sub rsp, 8
        ; gs mov [offset::HOST_RSP], rsp
        ; gs cmp QWORD [offset::VECTOR_WANTED], 0
        ; je >plain
        ; lea r10, [>plain]
        ; jmp >load_vector
        ; plain:
        ; mov r11, rdi
        ; gs push QWORD [offset::FLAGS]
        ; popfq
    );
    for register in MOVED {
        dynasm!(asm ; .arch x64 ; gs mov Rq(register), [offset::gpr(usize::from(register))]);
    }
    dynasm!(asm ; .arch x64 ; gs mov rsp, [offset::gpr(4)] ; jmp r11);
    let load_vector = asm.offset().0;
    dynasm!(asm ; .arch x64 ; load_vector: ; gs mov r11, [offset::VECTOR]);
    for n in 0..16 {
        let (low, high) = vector_halves(n);
        dynasm!(asm ; .arch x64
            ; vmovups Rx(n), [r11 + low]
            ; vinsertf128 Ry(n), Ry(n), [r11 + high], 1
        );
    }
    dynasm!(asm ; .arch x64
        ; ldmxcsr [r11 + VectorState::MXCSR as i32]
        ; gs mov QWORD [offset::VECTOR_IDLE], 0
        ; jmp r10
    );
    let exit = asm.offset().0;
    for register in MOVED {
        dynasm!(asm ; .arch x64 ; gs mov [offset::gpr(usize::from(register))], Rq(register));
    }
    dynasm!(asm ; .arch x64
        ; gs mov [offset::gpr(4)], rsp
        ; gs mov rsp, [offset::HOST_RSP]
        ; pushfq
        ; gs pop QWORD [offset::FLAGS]
        ; gs mov QWORD [offset::VECTOR_WANTED], 0
        ; gs cmp QWORD [offset::VECTOR_IDLE], 0
        ; jne >idle
        ; gs mov r11, [offset::VECTOR]
    );
    for n in 0..16 {
        let (low, high) = vector_halves(n);
        dynasm!(asm ; .arch x64
            ; vmovups [r11 + low], Rx(n)
            ; vextractf128 [r11 + high], Ry(n), 1
        );
    }
    dynasm!(asm ; .arch x64
        ; stmxcsr [r11 + VectorState::MXCSR as i32]
        ; vzeroupper
        ; gs ldmxcsr [offset::HOST_MXCSR]
        ; gs mov QWORD [offset::VECTOR_IDLE], 1
        ; gs mov QWORD [offset::VECTOR_WANTED], 1
        ; idle:
        ; add rsp, 8 ; pop r15 ; pop r14 ; pop r13 ; pop r12 ; pop rbp ; pop rbx
        ; ret
    );
    let code = asm.finalize().expect("no labels are left open");
    Common { code, exit, load_vector }
}

/// Offsets in `VectorState` of the halves of YMMn.
fn vector_halves(n: u8) -> (i32, i32) {
    let at = 16 * i32::from(n);
    (VectorState::XMM as i32 + at, VectorState::YMMH as i32 + at)
}

impl Bt {
    /// # Errors
    /// The host refuses executable memory, or lacks an instruction that the translator emits.
    pub fn new(
        state: CpuState,
        soft: SoftMmu,
        env: Box<dyn Env>,
        cpuid: Arc<CpuidModel>,
        apic_id: u32,
        code: Box<dyn HostCode>,
    ) -> Result<Self, BtError> {
        // SAFETY: AT_HWCAP2 is a plain query.
        let fsgsbase = unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_FSGSBASE != 0;
        if !fsgsbase
            || !std::arch::is_x86_feature_detected!("bmi2")
            || !std::arch::is_x86_feature_detected!("avx")
        {
            return Err(BtError::Host);
        }
        let attention = env.attention();
        let arena = Arena::new(CODE_BYTES)?;
        let base = arena.next_entry().addr() as u64;
        let common = common_code(base);
        let interp =
            Interp::new(state, NotingMmu::new(soft), env, Arc::clone(&cpuid), apic_id, code);
        let mut interp = Box::new(interp);
        let vector = interp.state.vector.bytes.as_mut_ptr();
        Ok(Self {
            area: Area::new(Arc::as_ptr(&attention).cast(), vector),
            interp,
            blocks: Blocks::new(arena, common.code),
            cpuid,
            enter: base,
            exit: base + common.exit as u64,
            load_vector: base + common.load_vector as u64,
            jump_owner: [None; 3],
            masked: false,
            stepping: false,
            stats: Stats::default(),
        })
    }

    /// One round; `Some` when the caller is needed.
    fn round(&mut self) -> Option<Exit> {
        let attention = u64::from(self.attention()) & self.deliverable() != 0;
        let waiting = attention || self.interp.state.activity != Activity::Running;
        if waiting && let Some(exit) = self.interpret(1) {
            return Some(exit);
        }
        let Some(mode) = Mode::of(&self.interp.state) else {
            self.stats.unfit += 1;
            return self.interpret(if self.stepping { 1 } else { INTERPRETED_RUN });
        };
        self.settle();
        match self.find(mode) {
            Some(entry) => self.run_from(entry, mode),
            None => {
                self.stats.handed_over += 1;
                self.interpret(1)
            }
        }
    }

    fn attention(&self) -> u32 {
        // SAFETY: the word belongs to the vCPU's pins, which the interpreter's `env` keeps alive; it is
        // an atomic, read whole.
        unsafe { self.area.attention.read_volatile() }
    }

    /// Attention bits that matter now: a maskable interrupt does only when it can be taken.
    fn deliverable(&self) -> u64 {
        if self.interp.state.flag(Rflags::IF) {
            u64::from(u32::MAX)
        } else {
            u64::from(!attention::INTR)
        }
    }

    /// Lets the interpreter do some instructions.
    fn interpret(&mut self, budget: u64) -> Option<Exit> {
        match self.interp.run(budget) {
            interp::Exit::Budget => None,
            interp::Exit::Halted => Some(Exit::Halted),
            interp::Exit::Shutdown => Some(Exit::Shutdown),
            interp::Exit::Attention => Some(Exit::Attention),
        }
    }

    /// Acts on what the interpreter has noted.
    fn settle(&mut self) {
        let mem = &mut self.interp.mem;
        if !mem.written.is_empty() {
            let mut written = std::mem::take(&mut mem.written);
            written.sort_unstable();
            written.dedup();
            for gpn in written.drain(..) {
                self.blocks.invalidate(gpn);
                self.stats.invalidations += 1;
            }
            self.interp.mem.written = written;
            self.area.flush_jumps();
        }
        let mem = &mut self.interp.mem;
        let pages = std::mem::take(&mut mem.flushed_pages);
        if std::mem::take(&mut mem.flushed) || pages.len() > FLUSHED_PAGES_MAX {
            self.area.flush();
            self.stats.flushes += 1;
        } else {
            for page in pages {
                self.area.flush_page(page);
            }
        }
        if std::mem::take(&mut mem.newly_watched) {
            self.area.flush_writes();
        }
    }

    /// The block for the present state; `None` when it begins with something for the interpreter.
    fn find(&mut self, mode: Mode) -> Option<*const u8> {
        let rip = self.interp.state.rip;
        if mode.bits == 64 && !is_canonical(rip) {
            return None;
        }
        let privilege = if mode.privilege == 0 { Privilege::User } else { Privilege::Supervisor };
        let interp = &mut *self.interp;
        let place = interp.mem.translate(&interp.state, Gva(rip), Access::Fetch, privilege).ok()?;
        let Place::Ram { hva, gpa } = place else { return None };
        let key = Key { rip, gpn: gpa.gpn(), mode };
        if let Some((entry, version)) = self.blocks.find(&key) {
            if self.interp.mem.code_version(gpa) == version {
                self.keep_jump(mode, rip, entry);
                return Some(entry);
            }
            self.blocks.invalidate(gpa.gpn());
            self.area.flush_jumps();
        }
        let version = self.interp.mem.watch_code(gpa);
        self.settle();
        let in_page = (PAGE_SIZE - gpa.page_offset()) as usize;
        let mut bytes = [0; LENGTH_MAX * 15];
        let bytes = &mut bytes[..in_page.min(LENGTH_MAX * 15)];
        // SAFETY: `bytes` is no longer than what is left of the page that `hva` lies in.
        unsafe { interp::copy_in(hva, bytes) };
        let entry = self.translate(key, version, bytes)?;
        self.keep_jump(mode, rip, entry);
        Some(entry)
    }

    fn keep_jump(&mut self, mode: Mode, rip: u64, entry: *const u8) {
        if self.stepping {
            return;
        }
        let privilege = usize::from(mode.privilege);
        self.own_jumps(mode);
        self.area.remember(privilege, rip, entry.addr() as u64);
    }

    /// Makes the jump cache of this privilege that of `mode`.
    fn own_jumps(&mut self, mode: Mode) {
        let owner = &mut self.jump_owner[usize::from(mode.privilege)];
        if *owner != Some(mode) {
            *owner = Some(mode);
            self.area.flush_jumps_of(usize::from(mode.privilege));
        }
    }

    fn translate(&mut self, key: Key, version: u32, bytes: &[u8]) -> Option<*const u8> {
        let cpuid = Arc::clone(&self.cpuid);
        let allowed = |insn: &Instruction| insn.cpuid_features().iter().all(|&f| cpuid.allows(f));
        for _ in 0..2 {
            let (base, first_site) = self.blocks.next();
            let (exit, load_vector) = (self.exit, self.load_vector);
            let Key { rip, mode, .. } = key;
            let frame = Frame { base, exit, load_vector, first_site, mode, rip };
            let options = self.cpuid.decoder_options();
            let translation = match emit::translate(frame, bytes, LENGTH_MAX, &allowed, options) {
                Ok(translation) => translation?,
                Err(error) => {
                    tracing::warn!("block at {:#x} left to the interpreter: {error}", key.rip);
                    return None;
                }
            };
            if let Some(entry) = self.blocks.insert(key, version, &translation) {
                self.stats.translated_blocks += 1;
                self.stats.translated_instructions += translation.instructions as u64;
                return Some(entry);
            }
            // Full: begin anew.
            self.blocks.reset();
            self.area.flush_jumps();
        }
        None
    }

    /// Enters translated code, and stays while only the TLB or a chain is wanted.
    fn run_from(&mut self, entry: *const u8, mode: Mode) -> Option<Exit> {
        self.own_jumps(mode);
        self.load();
        let mut target = entry;
        // Only an access that is tried again goes on within a block that has loaded the vector state.
        self.area.vector_wanted = 0;
        loop {
            self.stats.entries += 1;
            self.enter_guest(target);
            let exit = self.blocks.exit(self.area.site);
            if !matches!(exit.site, Site::Miss { .. }) {
                self.area.vector_wanted = 0;
            }
            match exit.site {
                Site::Miss { rip, write, size, align, resume } => {
                    self.stats.refills += 1;
                    if self.refill(mode, write, size, align) {
                        target = exit.code.wrapping_add(resume);
                        continue;
                    }
                    self.stats.miss_interpreted += 1;
                    self.unload(rip);
                    return self.interpret(1);
                }
                Site::Chain { target: rip, patch } => {
                    self.stats.chains += 1;
                    self.unload(rip);
                    if self.stepping {
                        return None;
                    }
                    let next = self.find(mode)?;
                    // Still where it was: making the block may have emptied the cache.
                    if self.blocks.is_live(exit) {
                        let key = self.blocks.key_like(exit, rip);
                        self.blocks.chain(exit, patch, &key);
                    }
                    target = next;
                }
                Site::Indirect { rip, moved } => {
                    self.stats.indirect_misses += 1;
                    let to = self.area.rip;
                    if mode.bits == 64 && !is_canonical(to) {
                        // The branch itself faults.
                        self.unload(rip);
                        let rsp = &mut self.interp.state.gpr[4];
                        *rsp = rsp.wrapping_sub(moved as u64);
                        return self.interpret(1);
                    }
                    self.unload(to);
                    if u64::from(self.attention()) & self.area.attention_mask != 0 {
                        return None;
                    }
                    if self.stepping {
                        return None;
                    }
                    target = self.find(mode)?;
                }
                Site::Poll { rip } => {
                    self.stats.polls += 1;
                    self.unload(rip);
                    return None;
                }
                Site::HandOver { rip } => {
                    self.stats.handed_over += 1;
                    self.unload(rip);
                    return self.interpret(1);
                }
            }
        }
    }

    /// Gives the inline TLB the page that missed; false when the interpreter must do the access.
    fn refill(&mut self, mode: Mode, write: bool, size: u8, align: u8) -> bool {
        let ea = self.area.ea;
        let crosses = (ea & (PAGE_SIZE - 1)) + u64::from(size) > PAGE_SIZE;
        let misaligned = align > 1 && ea & (u64::from(align) - 1) != 0;
        if crosses || misaligned || mode.bits == 64 && !is_canonical(ea) {
            return false;
        }
        let privilege = match mode.privilege {
            0 => Privilege::User,
            1 => Privilege::Supervisor,
            _ => Privilege::SupervisorAc,
        };
        let access = if write { Access::Write } else { Access::Read };
        let interp = &mut *self.interp;
        let Ok(Place::Ram { hva, gpa }) =
            interp.mem.translate(&interp.state, Gva(ea), access, privilege)
        else {
            return false;
        };
        if write && interp.mem.code_version(gpa) != 0 {
            return false;
        }
        let host = hva.addr() as u64 - (ea & (PAGE_SIZE - 1));
        self.area.fill(usize::from(mode.privilege), ea, host, write);
        true
    }

    /// Registers from the state to the area.
    fn load(&mut self) {
        let state = &self.interp.state;
        self.area.gpr = state.gpr;
        self.area.attention_mask = self.deliverable();
        let (status, interrupt) = (Rflags::STATUS.bits(), Rflags::IF.bits());
        self.area.flags = state.rflags & status | Rflags::FIXED.bits();
        self.area.system_flags = state.rflags & !(status | interrupt);
        self.area.interrupt_flag = state.rflags & interrupt;
        for register in [sreg::FS, sreg::GS] {
            self.area.seg_base[register] = state.seg[register].base;
        }
    }

    /// Registers from the area to the state.
    fn unload(&mut self, rip: u64) {
        let status = Rflags::STATUS.bits();
        let state = &mut self.interp.state;
        state.gpr = self.area.gpr;
        let system = self.area.system_flags | self.area.interrupt_flag;
        state.rflags = system | self.area.flags & status;
        state.rip = rip;
    }

    fn enter_guest(&mut self, target: *const u8) {
        let area: *mut Area = &raw mut *self.area;
        // SAFETY: the common code keeps the registers that a C function keeps; translated code touches
        // only guest RAM that the inline TLB leads to, and the area. GS is nobody else's.
        unsafe {
            asm!(
                "wrgsbase {area}", "call {enter}",
                area = in(reg) area, enter = in(reg) self.enter, in("rdi") target,
                clobber_abi("C"),
            );
        }
    }
}

impl Engine for Bt {
    fn run(&mut self, budget: u64) -> Exit {
        if !std::mem::replace(&mut self.masked, true) {
            block_signals();
        }
        let end = self.interp.state.retired.saturating_add(budget);
        loop {
            if let Some(exit) = self.round() {
                return exit;
            }
            if self.interp.state.retired >= end {
                return Exit::Budget;
            }
        }
    }
    fn step(&mut self) -> Exit {
        if !std::mem::replace(&mut self.masked, true) {
            block_signals();
        }
        if !std::mem::replace(&mut self.stepping, true) {
            // What was chained would run on.
            self.blocks.reset();
            self.area.flush_jumps();
        }
        self.round().unwrap_or(Exit::Budget)
    }
    fn state(&mut self) -> &mut CpuState {
        &mut self.interp.state
    }
    fn state_changed(&mut self) {
        self.interp.mem.flush_all();
    }
    fn dump(&self) -> String {
        self.interp.dump()
    }
}

/// Keeps signals but the synchronous ones from this thread: while the guest runs, the host's stack pointer
/// is the guest's, and a handler would write there.
fn block_signals() {
    // SAFETY: an empty set to begin with.
    let mut set = unsafe { std::mem::zeroed::<libc::sigset_t>() };
    // SAFETY: `set` is ours.
    unsafe { libc::sigfillset(&raw mut set) };
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
        // SAFETY: `set` is ours.
        unsafe { libc::sigdelset(&raw mut set, signal) };
    }
    // SAFETY: changes this thread's mask only.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
}

impl Drop for Bt {
    fn drop(&mut self) {
        tracing::info!(blocks = self.blocks.len(), "{:?}", self.stats);
    }
}
