//! The reference interpreter.
//!
//! Problem: an engine that is right first, complete, and quick enough to boot whole systems; the
//! translator is proved against it and falls back to it. Scheme: guest code is decoded once into
//! blocks of [`decode::Insn`], each with the handler that does it and its operands laid out; the run
//! loop walks a block and looks at the world (attention word, single-step, shadows) between blocks.
//! A handler returns `Ok` (go on), [`Trap::Exit`] (done, but the mode or an event may have changed:
//! leave the block) or an exception, which is delivered with RIP back at the instruction.
//! Invariants: `mode` mirrors the control registers and CS whenever a handler runs; while a handler
//! runs, `state.rip` is the next instruction's address; a handler that fails has changed nothing but
//! what the SDM lets it. One instance per vCPU, on its thread.

mod alu;
mod bits;
mod control;
mod decode;
mod far;
mod integer;
mod interrupt;
mod io;
mod memory;
mod msr;
mod operand;
mod prepared;
mod segment;
mod stack;
mod string;
mod syscall;
mod system;
mod table;
mod task;
#[cfg(test)]
mod tests;
mod width;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use iced_x86::Instruction;

use crate::cpuid::{CpuidModel, Vendor};
use crate::env::{Access, Env, Memory, Privilege, attention};
use crate::exception::{Trap, Vector};
use crate::host_code::HostCode;
use crate::state::{Activity, CpuState, Cr0, Rflags, Shadow, sreg};
use crate::vector::VectorUnit;
use decode::Cache;

pub use far::Returned;
pub use io::PortAccess;
pub use memory::{copy_in, is_canonical};
pub use prepared::Prepared;

/// Why [`Interp::run`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The instruction budget is used up.
    Budget,
    /// HLT: nothing to do until an interrupt.
    Halted,
    /// A triple fault; `state` is as the fault left it.
    Shutdown,
    /// STOP, REST, INIT, SIPI or TIMER is set in the attention word.
    Attention,
}

/// Attention bits that are the machine's to handle.
const FOR_MACHINE: u32 =
    attention::STOP | attention::REST | attention::INIT | attention::SIPI | attention::TIMER;

/// What handlers ask about the mode at every turn, worked out once whenever it may change.
#[derive(Clone, Copy, Debug)]
struct Mode {
    /// Code size: 16, 32 or 64.
    bits: u8,
    /// 64-bit mode: no limits, most bases zero.
    long64: bool,
    /// Protected mode proper: selectors name descriptors (not real, not virtual-8086).
    protected: bool,
    /// RIP's width.
    ip_mask: u64,
    /// Stack pointer's width.
    sp_mask: u64,
    privilege: Privilege,
    /// #AC is armed.
    align_check: bool,
    /// A data or I/O breakpoint is armed.
    breakpoints: bool,
    /// Data accesses take the slow path: `align_check` or `breakpoints`.
    watchful: bool,
    /// Go one instruction at a time: TF, RF, a shadow or a breakpoint.
    careful: bool,
}

/// How one instruction or block ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Completed,
    /// An exception was delivered.
    Faulted,
}

/// One vCPU run by interpretation.
pub struct Interp<M: Memory> {
    pub state: CpuState,
    pub mem: M,
    env: Box<dyn Env>,
    cpuid: Arc<CpuidModel>,
    /// The model is AMD's: where that matters, instructions do as AMD's processors do.
    amd: bool,
    vector: VectorUnit,
    attention: Arc<AtomicU32>,
    cache: Cache<M>,
    mode: Mode,
    /// The block must be left after this instruction: it branched, or the block's code may have
    /// changed.
    leave: bool,
    /// Initial APIC ID, for CPUID.
    apic_id: u32,
    /// Unknown MSRs that have been logged.
    msrs_logged: HashSet<u32>,
    /// The instruction ended by delivering an interrupt: no single-step trap follows.
    no_step_trap: bool,
    /// Value of `state.retired` when a repeated string instruction was left unfinished: while the two
    /// are equal, nothing has been executed since.
    repeat_left_at: u64,
    /// The failing instruction has switched tasks: RIP is the new task's.
    task_switched: bool,
}

impl<M: Memory> std::fmt::Debug for Interp<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interp").field("state", &self.state).finish_non_exhaustive()
    }
}

impl<M: Memory> Interp<M> {
    /// `apic_id`: as CPUID reports it. `code`: where stubs for vector instructions go.
    #[must_use]
    pub fn new(
        state: CpuState,
        mem: M,
        env: Box<dyn Env>,
        cpuid: Arc<CpuidModel>,
        apic_id: u32,
        code: Box<dyn HostCode>,
    ) -> Self {
        let attention = env.attention();
        let mode = Mode::of(&state);
        let amd = cpuid.vendor() == Vendor::Amd;
        let mut vector = VectorUnit::new(code);
        vector.set_model(cpuid.xcr0_mask(), amd);
        Self {
            state,
            mem,
            env,
            cpuid,
            amd,
            vector,
            attention,
            cache: Cache::new(),
            mode,
            leave: false,
            apic_id,
            msrs_logged: HashSet::new(),
            no_step_trap: false,
            repeat_left_at: u64::MAX,
            task_switched: false,
        }
    }

    /// Whether an instruction is anything but undefined on that model.
    #[must_use]
    pub fn supports(raw: &Instruction, cpuid: &CpuidModel) -> bool {
        table::supports::<M>(raw, cpuid)
    }

    /// Runs until something for the machine turns up, at most `budget` instructions.
    pub fn run(&mut self, budget: u64) -> Exit {
        self.refresh();
        let end = self.state.retired.saturating_add(budget);
        loop {
            let quiet = !self.is_wanted() && self.state.activity == Activity::Running;
            if !quiet && let Some(exit) = self.service() {
                return exit;
            }
            if self.state.retired >= end {
                return Exit::Budget;
            }
            if self.mode.careful {
                self.step_carefully();
            } else {
                self.run_block(end - self.state.retired);
            }
        }
    }

    /// Executes one instruction (for a repeated string instruction, one iteration when TF is set), and
    /// nothing asynchronous. A halted vCPU stays so.
    pub fn step(&mut self) {
        self.refresh();
        if self.state.activity == Activity::Running {
            self.step_carefully();
        }
    }

    /// Whether something may have to be done before the next instruction. An interrupt request can
    /// stand for long while IF is clear, as all through a kernel's decompressor: it must not cost more
    /// than a look.
    #[inline]
    fn is_wanted(&self) -> bool {
        let word = self.attention.load(Ordering::Acquire);
        word != 0 && (word != attention::INTR || self.state.flag(Rflags::IF))
    }

    /// Takes what is due between instructions; `Some` when the machine must act.
    #[cold]
    fn service(&mut self) -> Option<Exit> {
        let word = self.attention.load(Ordering::Acquire);
        if word & attention::REMAP != 0 {
            self.remap();
        }
        if word & FOR_MACHINE != 0 {
            return Some(Exit::Attention);
        }
        match self.state.activity {
            Activity::Shutdown => return Some(Exit::Shutdown),
            Activity::WaitForSipi => return Some(Exit::Halted),
            Activity::Running | Activity::Halted => {}
        }
        if self.state.shadow != Shadow::MovSs
            && word & attention::NMI != 0
            && !self.state.nmi_blocked
        {
            self.attention.fetch_and(!attention::NMI, Ordering::AcqRel);
            self.state.activity = Activity::Running;
            self.state.nmi_blocked = true;
            self.interrupt(Vector::Nmi as u8);
        } else if word & attention::INTR != 0
            && self.state.flag(Rflags::IF)
            && self.state.shadow == Shadow::None
        {
            self.env.set_retired(self.state.retired);
            if let Some(vector) = self.env.acknowledge_interrupt() {
                self.state.activity = Activity::Running;
                self.interrupt(vector);
            }
        }
        (self.state.activity == Activity::Halted).then_some(Exit::Halted)
    }

    /// Forgets translations after the chip set has changed what they lead to.
    #[cold]
    fn remap(&mut self) {
        self.attention.fetch_and(!attention::REMAP, Ordering::AcqRel);
        self.mem.flush_all();
        // The bytes that follow in the block may no longer be those of its page.
        self.leave = true;
    }

    /// Delivers an external interrupt or NMI.
    fn interrupt(&mut self, vector: u8) {
        self.deliver_external(vector);
        self.refresh();
    }

    /// Runs the block at RIP; when it ends by jumping to its own start, runs it again.
    #[inline]
    fn run_block(&mut self, budget: u64) -> Ended {
        let (slot, block) = match self.enter_block() {
            Ok(found) => found,
            Err(trap) => return self.trapped(trap, self.state.rip),
        };
        let first_rip = self.state.rip;
        let ip_mask = self.mode.ip_mask;
        // Both are only stored in the loop, never loaded: a load would wait for the store before it.
        let mut rip = first_rip;
        let mut retired = self.state.retired;
        let end = retired.saturating_add(budget);
        let ended = 'block: loop {
            self.leave = false;
            let n = (end - retired).min(block.insns.len() as u64) as usize;
            for insn in &block.insns[..n] {
                let next = rip.wrapping_add(u64::from(insn.len)) & ip_mask;
                self.state.rip = next;
                retired += 1;
                self.state.retired = retired;
                match (insn.run)(self, insn) {
                    Ok(()) if self.leave => break,
                    Ok(()) => rip = next,
                    Err(Trap::Exit) => {
                        self.refresh();
                        break 'block Ended::Completed;
                    }
                    Err(trap) => {
                        self.state.retired = retired - 1;
                        break 'block self.trapped(trap, rip);
                    }
                }
            }
            rip = self.state.rip;
            if retired == end || rip != first_rip || self.is_wanted() || !self.is_current(&block) {
                break Ended::Completed;
            }
        };
        self.cache.put_back(slot, block);
        ended
    }

    /// Delivers the exception of an instruction at `rip` that failed.
    #[cold]
    fn trapped(&mut self, trap: Trap, rip: u64) -> Ended {
        if !std::mem::take(&mut self.task_switched) {
            self.state.rip = rip;
        }
        // Debug conditions that a failed instruction met before are met again when it is restarted.
        self.state.pending_debug = 0;
        match trap {
            Trap::Exception(exception) => self.deliver(exception),
            Trap::Exit => {}
        }
        self.refresh();
        Ended::Faulted
    }

    /// A repeated string instruction has been left between two iterations, and RIP is still at it.
    pub(self) fn inside_repeat(&self) -> bool {
        self.repeat_left_at == self.state.retired
    }

    /// One instruction with everything that surrounds it: breakpoints, shadows, single-step.
    #[cold]
    fn step_carefully(&mut self) {
        let resume = self.state.flag(Rflags::RF) || self.inside_repeat();
        let shadow = self.state.shadow;
        if shadow != Shadow::MovSs {
            // Traps of the instruction before, then breakpoints on this one.
            if self.state.pending_debug != 0 {
                return self.debug_trap();
            }
            if self.mode.breakpoints && !resume {
                let hits = self.code_breakpoints();
                if hits != 0 {
                    self.note_debug(hits);
                    self.deliver_debug(false);
                    return self.refresh();
                }
            }
        }
        let stepping = self.state.flag(Rflags::TF);
        self.state.rflags &= !Rflags::RF.bits();
        self.state.shadow = Shadow::None;
        self.no_step_trap = false;
        if self.run_block(1) == Ended::Faulted {
            return;
        }
        if self.state.shadow == Shadow::MovSs {
            if shadow != Shadow::MovSs {
                // The data breakpoints of the instruction that loads SS wait; its single-step trap is
                // lost.
                return self.refresh();
            }
            // Of several such instructions in a row only the first one holds anything off.
            self.state.shadow = Shadow::None;
        }
        if stepping && !self.no_step_trap {
            self.state.pending_debug |= DR6_BS;
        }
        if self.state.pending_debug != 0 {
            self.debug_trap();
        }
        self.refresh();
    }

    /// Delivers the debug traps that have been noted.
    fn debug_trap(&mut self) {
        let hits = self.state.pending_debug;
        self.note_debug(hits);
        // Between two iterations the trap goes back into the middle of an instruction.
        self.deliver_debug(self.inside_repeat());
        self.refresh();
    }

    /// Sets DR6.
    fn note_debug(&mut self, hits: u32) {
        self.state.dr[6] = (self.state.dr[6] & !0xf) | u64::from(hits);
        self.state.dr[7] &= !DR7_GD;
        self.state.pending_debug = 0;
    }

    /// DR6 bits of the execution breakpoints at RIP.
    fn code_breakpoints(&self) -> u32 {
        let base = if self.mode.long64 { 0 } else { self.state.seg[sreg::CS].base };
        let la = self.wrap_code(base.wrapping_add(self.state.rip));
        (0..4)
            .filter(|&n| breakpoint_armed(&self.state, n, 0) && self.state.dr[n] == la)
            .fold(0, |hits, n| hits | 1 << n)
    }

    /// Works out [`Mode`] anew.
    fn refresh(&mut self) {
        self.mode = Mode::of(&self.state);
    }

    /// [`Env::tsc_base`] of this vCPU's environment.
    #[must_use]
    pub fn tsc_base(&self) -> Option<u64> {
        self.env.tsc_base()
    }

    /// Registers as text, for people.
    #[must_use]
    pub fn dump(&self) -> String {
        dump(&self.state)
    }
}

/// Breakpoint `n` is enabled and of this R/W type.
fn breakpoint_armed(cpu: &CpuState, n: usize, kind: u64) -> bool {
    let dr7 = cpu.dr[7];
    dr7 >> (2 * n) & 3 != 0 && dr7 >> (16 + 4 * n) & 3 == kind
}

/// Whether breakpoint `n`'s range meets `len` bytes at `at`. Lengths are 1, 2, 8, 4; the address is
/// taken aligned to its length.
fn breakpoint_meets(cpu: &CpuState, n: usize, at: u64, len: u64) -> bool {
    let size = [1, 2, 8, 4][(cpu.dr[7] >> (18 + 4 * n) & 3) as usize];
    let from = cpu.dr[n] & !(size - 1);
    from < at.wrapping_add(len) && at < from.wrapping_add(size)
}

/// Notes the data breakpoints that an access of `len` bytes at `la` touches.
#[inline]
fn note_data_access(cpu: &mut CpuState, mode: &Mode, la: u64, len: u64, write: bool) {
    if !mode.breakpoints {
        return;
    }
    for n in 0..4 {
        let armed = breakpoint_armed(cpu, n, 3) || write && breakpoint_armed(cpu, n, 1);
        if armed && breakpoint_meets(cpu, n, la, len) {
            cpu.pending_debug |= 1 << n;
        }
    }
}

/// DR6: the trap came from single-stepping.
const DR6_BS: u32 = 1 << 14;
/// DR7: debug registers are guarded.
const DR7_GD: u64 = 1 << 13;

impl Mode {
    fn of(state: &CpuState) -> Self {
        let bits = state.code_bits() as u8;
        let long64 = bits == 64;
        let align_check = state.cpl == 3 && state.cr0(Cr0::AM) && state.flag(Rflags::AC);
        let breakpoints = state.dr[7] & 0xff != 0;
        Self {
            bits,
            long64,
            protected: !state.real_or_v86(),
            ip_mask: if long64 { u64::MAX } else { 0xffff_ffff },
            sp_mask: if long64 {
                u64::MAX
            } else if state.seg[sreg::SS].is_big() {
                0xffff_ffff
            } else {
                0xffff
            },
            privilege: if state.cpl == 3 {
                Privilege::User
            } else if state.flag(Rflags::AC) {
                Privilege::SupervisorAc
            } else {
                Privilege::Supervisor
            },
            align_check,
            breakpoints,
            watchful: align_check || breakpoints,
            careful: breakpoints
                || state.shadow != Shadow::None
                || state.pending_debug != 0
                || state.rflags & (Rflags::TF | Rflags::RF).bits() != 0,
        }
    }
}

/// Registers as text, for people.
#[must_use]
pub fn dump(s: &CpuState) -> String {
    let mut out = String::new();
    const NAMES: [&str; 8] = ["RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI"];
    const SEGS: [&str; 6] = ["ES", "CS", "SS", "DS", "FS", "GS"];
    // Writing to a String can't fail.
    let _ = writeln!(out, "RIP={:016x} RFL={:08x} CPL={} {:?}", s.rip, s.rflags, s.cpl, s.activity);
    for (n, value) in s.gpr.iter().enumerate() {
        let name = NAMES.get(n).map_or_else(|| format!("R{n}"), ToString::to_string);
        let end = if n % 4 == 3 { '\n' } else { ' ' };
        let _ = write!(out, "{name:<3}={value:016x}{end}");
    }
    let system = [("LDT", s.ldtr), ("TR", s.tr)];
    for (name, seg) in SEGS.into_iter().zip(s.seg).chain(system) {
        let _ = writeln!(
            out,
            "{name:<3}={:04x} base={:016x} limit={:08x} access={:05x}",
            seg.selector, seg.base, seg.limit, seg.access
        );
    }
    let _ = writeln!(out, "GDT= {:016x} {:04x}", s.gdtr.base, s.gdtr.limit);
    let _ = writeln!(out, "IDT= {:016x} {:04x}", s.idtr.base, s.idtr.limit);
    let _ = writeln!(
        out,
        "CR0={:08x} CR2={:016x} CR3={:016x} CR4={:08x} EFER={:08x}",
        s.cr0, s.cr2, s.cr3, s.cr4, s.efer
    );
    let _ = write!(
        out,
        "DR0={:016x} DR1={:016x} DR2={:016x} DR3={:016x} DR6={:08x} DR7={:08x} retired={}",
        s.dr[0], s.dr[1], s.dr[2], s.dr[3], s.dr[6], s.dr[7], s.retired
    );
    out
}
