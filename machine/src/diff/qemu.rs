//! Lockstep with QEMU.
//!
//! Problem: a single step of QEMU costs a third of a millisecond, so a boot can't be stepped through; and
//! QEMU must see the same devices, time and interrupts. Scheme: the interpreter leads with the machine.
//! Its steps are of three kinds: *plain*, which QEMU must do by itself; *native* system instructions,
//! which it does by one single step each; and *injected* ones, whose result came from the machine (port
//! and device accesses, time, CPUID, most MSRs, HLT, interrupts): there QEMU's registers and memory are
//! set to ours. Plain steps are gathered into stretches. QEMU runs one up to a breakpoint at its end,
//! where registers and all pages that the stretch stored to are compared. A stretch that ends otherwise
//! is taken back on both sides, which is possible because nothing in it touches the machine or
//! registers that a debugger can't write, and gone through again in shorter ones; the one of these that ends
//! otherwise likewise, down to single steps: so the report names the instruction. Flags that the manual leaves
//! undefined are made ours. An interrupt that comes where QEMU would stop often before, in a loop, is held off until
//! the guest is behind the loop: processors promise no moment. A loop that asks the machine each time around, which QEMU
//! would stop at as often, is jumped over when it has been compared often enough ([`worn`]). Invariant: `known` is
//! QEMU's state, if it is there. Thread: the lockstep's.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::{Duration, Instant};

use iced_x86::{Instruction, Mnemonic, Register};
use xenolith_cpu::env::{Memory as _, attention};
use xenolith_cpu::interp::Interp;
use xenolith_cpu::state::{Activity, Rflags, sreg};
use xenolith_cpu::{CpuState, Gpa, PAGE_SIZE};
use xenolith_devices::clock::lock;

use super::compare::{
    asks_the_machine, loads_segments, loads_system_state, same, transfers_far, undefined_after,
    words_differing,
};
use super::decoded::{Decoded, DecodedCache};
use super::leader::{Leader, Plan, Step};
use super::memory::{Pages, read};
use super::peer::Peer;
use super::report::{Difference, Executed, History, MemoryRow};
use super::segments;
use super::watch::{SHOWN, Touch, Watched};
use super::worn::Worn;
use super::{DiffConfig, DiffError, Outcome, Stop, Summary};
use crate::engine::{Engine, Exit};

const NAMES: [&str; 2] = ["interp", "qemu"];
/// Steps after which a stretch ends where QEMU stops at few breakpoints before; and at the latest. QEMU forgets all
/// that it has translated at every new breakpoint.
const STRETCH: usize = 500_000;
const STRETCH_MAX: usize = 100_000_000;
/// Earlier visits of a stretch's last address that are few: QEMU stops at each.
const VISITS_FEW: u32 = 8;
/// Earlier visits that are borne so as to end where the user has said.
const VISITS_AT_LIMIT: u32 = 1000;
/// Parts that a stretch is gone through again in, and the steps below which it isn't parted.
const PARTS: usize = 16;
const PART_MIN: usize = 256;
/// A stretch no longer than this is stepped through: that takes less time than a breakpoint.
const SHORT: usize = 1;
/// Steps that an interrupt is held off at most, until it comes where QEMU stops at few breakpoints before.
const HELD_MAX: u64 = 20_000_000;
/// Steps that are jumped over at a time.
const JUMP_MAX: usize = 1_000_000;
/// Steps between two looks at the timers.
const SETTLE_EVERY: usize = 64;
/// Stops at a breakpoint before the right one, beyond those that are known (repeated string instructions
/// stop at every iteration).
const EXTRA_STOPS: u32 = 64;
/// How long QEMU may take for a stretch: at any rate, and for each step. One that it takes longer for is gone
/// through again in parts.
const STRETCH_TIME: Duration = Duration::from_millis(500);
const STEP_TIME: Duration = Duration::from_micros(2);
/// How long it may take for the rest of one repeated instruction.
const REPEAT_TIME: Duration = Duration::from_secs(60);
/// Times that a stretch ends at an instruction before the breakpoint stays, and how many stay: each slows down its page.
const MET_OFTEN: u32 = 3;
const KEPT_MAX: usize = 64;
/// Iterations of one repeated instruction that are stepped through before a breakpoint is used.
const ITERATIONS_STEPPED: usize = 8;
/// Iterations that are stepped through where the instruction isn't finished, as it has faulted.
const ITERATIONS_STEPPED_MAX: usize = 1 << 14;

/// How QEMU does a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Native,
    Injected,
}

/// Spreads addresses.
#[derive(Default)]
pub(super) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

/// How often each address was executed.
pub(super) type Visits = HashMap<u64, u32, BuildHasherDefault<AddressHasher>>;

/// Plain steps that QEMU has yet to do.
struct Stretch {
    start: CpuState,
    /// It may load segment registers: they can be brought back to those of its start.
    loads_segments: bool,
    steps: usize,
    /// Iterations of repeated string instructions.
    iterations: u64,
    seen: Visits,
    /// Pages stored to, and the last of them.
    stored: BTreeSet<u64>,
    last_stored: u64,
    /// Status flags that are undefined at its end.
    undefined: u64,
    /// Those that were undefined when PUSHF made numbers of them.
    pushed: u64,
}

impl Stretch {
    fn new(leader: &mut Machine) -> Self {
        let vm = &mut leader.engine;
        let start = vm.state.clone();
        Self {
            loads_segments: segments::are_loadable(&mut vm.mem.soft, &leader.ram, &start),
            start,
            steps: 0,
            iterations: 0,
            seen: Visits::default(),
            stored: BTreeSet::new(),
            last_stored: u64::MAX,
            undefined: 0,
            pushed: 0,
        }
    }

    /// Takes in a plain step of the leader, made at the linear address `at`, that stored to these pages and had so many
    /// iterations.
    fn note(&mut self, at: u64, decoded: &Decoded, stored: &[u64], iterations: u64) {
        *self.seen.entry(at).or_default() += 1;
        self.steps += 1;
        self.iterations += iterations;
        for &gpn in stored {
            if gpn != self.last_stored {
                self.stored.insert(gpn);
                self.last_stored = gpn;
            }
        }
        if decoded.pushes_flags {
            self.pushed |= self.undefined & Rflags::STATUS.bits();
        }
        self.undefined = decoded.undefined.after(self.undefined);
        if decoded.pops_flags {
            self.undefined = self.pushed;
        }
    }

    /// Whether these two differ only in one or two copies of the flags register, pushed somewhere in the stretch, by
    /// what was undefined in it.
    fn copies_flags(&self, ours: u64, theirs: u64) -> bool {
        let copy = |ours: u64, differ: u64| {
            let one = Rflags::all().contains(Rflags::from_bits_retain(ours)) && ours & 2 != 0;
            differ == 0 || differ & !self.pushed == 0 && one
        };
        let differ = ours ^ theirs;
        // A 32-bit guest pushes two into a word.
        copy(ours & 0xffff_ffff, differ & 0xffff_ffff) && copy(ours >> 32, differ >> 32)
    }

    /// How often QEMU would stop at a breakpoint before if `at` was the end.
    fn visits(&self, at: u64) -> u32 {
        self.seen.get(&at).copied().unwrap_or_default()
    }

    /// Whether it would stop at few.
    fn few(&self, at: u64) -> bool {
        self.visits(at) <= VISITS_FEW
    }

    /// Whether `at`, after at least `steps`, is a good end.
    fn may_end(&self, at: u64, steps: usize) -> bool {
        self.steps >= steps && self.few(at) || self.steps >= STRETCH_MAX
    }
}

/// An interrupt that is held off. A guest that waits for it in a loop without changing anything comes by the same
/// state again, and any of its visits will do for QEMU to stop at: then it goes on no longer. States are compared with
/// one that is taken anew at every power of two (Brent's way to find a cycle).
#[derive(Default)]
struct Held {
    steps: u64,
    rip: u64,
    rflags: u64,
    gpr: [u64; 16],
}

impl Held {
    fn goes_on(&mut self, state: &CpuState) -> bool {
        let again = self.steps > 0
            && (self.rip, self.rflags) == (state.rip, state.rflags)
            && self.gpr == state.gpr;
        self.steps += 1;
        if self.steps.is_power_of_two() {
            (self.rip, self.rflags, self.gpr) = (state.rip, state.rflags, state.gpr);
        }
        !again && self.steps < HELD_MAX
    }
}

/// Breakpoints at the ends of stretches. One at an instruction that is always injected stays after it has been met a
/// few times: no stretch goes beyond, and QEMU forgets all that it has translated at every new one.
#[derive(Default)]
struct Breakpoints {
    kept: BTreeSet<u64>,
    met: Visits,
}

impl Breakpoints {
    fn set(&mut self, peer: &mut Peer, at: u64) -> Result<(), DiffError> {
        if self.kept.contains(&at) { Ok(()) } else { peer.set_breakpoint(at) }
    }

    /// Behind a run to `at`. `arrived` is false if the run ended elsewhere, which may be for one that was kept.
    fn end(
        &mut self,
        peer: &mut Peer,
        at: u64,
        arrived: bool,
        always: bool,
    ) -> Result<(), DiffError> {
        let met = self.met.entry(at).or_default();
        *met += u32::from(always);
        if arrived && always && *met >= MET_OFTEN && self.kept.len() < KEPT_MAX {
            self.kept.insert(at);
            return Ok(());
        }
        if !self.kept.contains(&at) {
            peer.clear_breakpoint(at)?;
        }
        if !arrived || !always && self.kept.contains(&at) {
            for at in std::mem::take(&mut self.kept) {
                peer.clear_breakpoint(at)?;
            }
        }
        Ok(())
    }
}

type Machine = Leader<Interp<Watched>>;

struct Lockstep {
    leader: Machine,
    peer: Peer,
    cache: DecodedCache,
    /// The leader's state before its last step, and that instruction.
    before: CpuState,
    decoded: Decoded,
    /// `before` has other vector registers than the leader.
    vector_changed: bool,
    /// QEMU's state.
    known: Option<CpuState>,
    held: Held,
    breakpoints: Breakpoints,
    worn: Worn,
    every_instruction: bool,
    history: History,
    steps: u64,
    injected: u64,
    jumped: u64,
    repeated: u64,
    allowed: u64,
}

/// One instruction of the leader with what it was.
struct Done {
    kind: Kind,
    before: CpuState,
    decoded: Decoded,
    stored: Vec<u64>,
    touches: Vec<Touch>,
}

pub fn run(mut config: DiffConfig) -> Result<Outcome, DiffError> {
    let plan = Plan::new(&config)?;
    let mut leader = Leader::build(&plan, config.until.as_deref(), |parts| {
        let mmu = Watched::new(parts.mmu);
        Ok(Interp::new(parts.state, mmu, parts.env, parts.model, parts.index, parts.code))
    })?;
    let peer = Peer::start(&leader.ram, &leader.engine.state)?;
    let before = leader.engine.state.clone();
    let mut cache = DecodedCache::default();
    let decoded = cache.get(&mut leader.engine.mem, &leader.ram, &before);
    let mut lockstep = Lockstep {
        leader,
        peer,
        cache,
        before,
        decoded,
        vector_changed: false,
        known: None,
        held: Held::default(),
        breakpoints: Breakpoints::default(),
        worn: Worn::default(),
        every_instruction: config.every_instruction,
        history: History::default(),
        steps: 0,
        injected: 0,
        jumped: 0,
        repeated: 0,
        allowed: 0,
    };
    lockstep.run(&mut config)
}

fn linear(state: &CpuState) -> u64 {
    if state.is_64bit() {
        state.rip
    } else {
        state.seg[sreg::CS].base.wrapping_add(state.rip) & 0xffff_ffff
    }
}

/// The word at this offset of a page.
fn u64_at(page: &[u8], word: usize) -> u64 {
    u64::from_le_bytes(page[word..word + 8].try_into().expect("eight bytes"))
}

/// Copies all but x87 and vector registers.
fn copy_registers(to: &mut CpuState, from: &CpuState) {
    let CpuState {
        gpr,
        rip,
        rflags,
        seg,
        ldtr,
        tr,
        gdtr,
        idtr,
        cr0,
        cr2,
        cr3,
        cr4,
        efer,
        xcr0,
        dr,
        pdpte,
        cpl,
        activity,
        shadow,
        nmi_blocked,
        pending_debug,
        ref msr,
        retired,
        vector: _,
    } = *from;
    (to.gpr, to.rip, to.rflags, to.seg) = (gpr, rip, rflags, seg);
    (to.ldtr, to.tr, to.gdtr, to.idtr) = (ldtr, tr, gdtr, idtr);
    (to.cr0, to.cr2, to.cr3, to.cr4, to.efer, to.xcr0) = (cr0, cr2, cr3, cr4, efer, xcr0);
    (to.dr, to.pdpte, to.cpl, to.activity, to.shadow) = (dr, pdpte, cpl, activity, shadow);
    (to.nmi_blocked, to.pending_debug, to.retired) = (nmi_blocked, pending_debug, retired);
    to.msr.clone_from(msr);
}

/// System instructions that QEMU does by itself and a debugger can't take back. `loads` tells that it can take back
/// segment registers.
fn is_native(insn: &Instruction, state: &CpuState, loads: bool) -> bool {
    match insn.mnemonic() {
        // MSRs that both sides keep and that change what instructions do. Bases are registers for a debugger, too.
        Mnemonic::Wrmsr => matches!(
            state.gpr[1] as u32,
            0x174..=0x176 | 0x277 | 0xc000_0080..=0xc000_0084 | 0xc000_0103
        ),
        // Control registers are written one by one, which suits CR3 alone.
        Mnemonic::Mov if insn.op0_register() == Register::CR3 => false,
        _ if loads_segments(insn) => !loads,
        _ => loads_system_state(insn),
    }
}

/// Instructions that ask the machine wherever they are executed.
fn is_always_injected(insn: &Instruction) -> bool {
    asks_the_machine(insn)
        || matches!(
            insn.mnemonic(),
            Mnemonic::In
                | Mnemonic::Out
                | Mnemonic::Insb
                | Mnemonic::Insw
                | Mnemonic::Insd
                | Mnemonic::Outsb
                | Mnemonic::Outsw
                | Mnemonic::Outsd
        )
}

/// MSRs whose writes QEMU does by itself and a debugger can take back.
fn is_plain_wrmsr(state: &CpuState) -> bool {
    state.long_mode() && matches!(state.gpr[1] as u32, 0xc000_0100..=0xc000_0102)
}

impl Lockstep {
    fn run(&mut self, config: &mut DiffConfig) -> Result<Outcome, DiffError> {
        let start = Instant::now();
        let mut told = 0;
        let stop = loop {
            let retired = self.leader.engine.state.retired;
            if retired >= told {
                config.report_progress(retired);
                told = retired + 10_000;
            }
            let mut stretch = Stretch::new(&mut self.leader);
            let (last, mut stop) = self.gather(&mut stretch, config);
            // The state at the end of the stretch: the leader may be one step beyond.
            let at_end = match &last {
                Some(done) => done.before.clone(),
                None => self.leader.engine.state.clone(),
            };
            if let Some(difference) = self.follow(&mut stretch, &at_end, last.as_ref(), config)? {
                return Ok(Outcome::Different(difference));
            }
            let difference = match last {
                Some(mut done) if done.kind == Kind::Injected => {
                    let mut native = None;
                    if stop.is_none() && !self.every_instruction {
                        self.worn.note(stretch.steps, &stretch.seen, linear(&done.before));
                        let stored;
                        (stored, native, stop) = self.jump(config);
                        done.stored.extend(stored);
                    }
                    self.inject(&done, native.as_ref())?;
                    native.map(|done| self.single(done))
                }
                Some(done) => Some(self.single(done)),
                None => None,
            };
            if let Some(difference) = difference.transpose()?.flatten() {
                return Ok(Outcome::Different(difference));
            }
            if let Some(stop) = stop {
                break stop;
            }
        };
        Ok(Outcome::Equal(Summary {
            stop,
            steps: self.steps,
            instructions: self.leader.engine.state.retired,
            injected: self.injected,
            jumped: self.jumped,
            repeated: self.repeated,
            allowed: self.allowed,
            time: start.elapsed(),
        }))
    }

    /// Lets the leader make plain steps into the stretch, up to one of another kind, which is returned.
    fn gather(
        &mut self,
        stretch: &mut Stretch,
        config: &mut DiffConfig,
    ) -> (Option<Done>, Option<Stop>) {
        let limit = if self.every_instruction { 1 } else { STRETCH };
        loop {
            let inside = stretch.steps > 0 && self.inside_repeat();
            let at = linear(&self.leader.engine.state);
            if !inside && config.steps.is_some_and(|limit| self.over(limit, stretch, at)) {
                return (None, Some(Stop::Steps));
            }
            if !inside && stretch.may_end(at, limit) {
                return (None, None);
            }
            let (look, stop) = self.look(stretch.steps);
            if stop.is_some() {
                return (None, stop);
            }
            // The look may just have raised it.
            let hold = self.leader.pins() == attention::INTR
                && (inside || !stretch.few(at) && self.held.goes_on(&self.leader.engine.state));
            if !hold {
                self.held.steps = 0;
            }
            let (kind, step) = self.lead(config, hold, look, stretch.loads_segments);
            let stop = match step {
                Step::Ended(stop) => Some(stop),
                Step::Ran | Step::Waited => None,
            };
            if kind != Kind::Plain || stop.is_some() {
                return (Some(self.done(kind)), stop);
            }
            stretch.note(at, &self.decoded, &self.leader.engine.mem.stored, self.iterations());
        }
    }

    /// Looks at the timers and the machine's end, if it is time to after so many steps; whether it was.
    fn look(&mut self, steps: usize) -> (bool, Option<Stop>) {
        let due = steps.is_multiple_of(SETTLE_EVERY) || self.leader.pins() & !attention::INTR != 0;
        if !due {
            return (false, None);
        }
        self.leader.tell_retired(self.leader.engine.state.retired);
        (true, self.leader.settle())
    }

    /// Behind an injected step: goes on with the leader alone as long as it is at worn instructions. Returns the pages
    /// that it stored to, the first step that QEMU must do by itself, and why the run ends, if it does.
    fn jump(&mut self, config: &mut DiffConfig) -> (BTreeSet<u64>, Option<Done>, Option<Stop>) {
        let mut stored = BTreeSet::new();
        for steps in 1..=JUMP_MAX {
            let is_over = config.steps.is_some_and(|limit| self.steps >= limit);
            if is_over || !self.worn.has(linear(&self.leader.engine.state)) {
                break;
            }
            let (look, stop) = self.look(steps);
            if stop.is_some() {
                return (stored, None, stop);
            }
            let (kind, step) = self.lead(config, false, look, false);
            if kind == Kind::Native {
                return (stored, Some(self.done(kind)), None);
            }
            stored.extend(&self.leader.engine.mem.stored);
            self.jumped += 1;
            if let Step::Ended(stop) = step {
                return (stored, None, Some(stop));
            }
        }
        (stored, None, None)
    }

    /// Whether `limit` steps are over, and `at` is no place in a loop that QEMU would stop at too often before.
    fn over(&self, limit: u64, stretch: &Stretch, at: u64) -> bool {
        self.steps >= limit
            && (stretch.visits(at) <= VISITS_AT_LIMIT || self.steps - limit >= HELD_MAX)
    }

    /// One step of the leader: an interrupt, unless it is held off, or else an instruction. `look` tells that devices
    /// may have stored something just before, `loads` that segment registers can be taken back.
    fn lead(
        &mut self,
        config: &mut DiffConfig,
        hold: bool,
        look: bool,
        loads: bool,
    ) -> (Kind, Step) {
        let wanted = !hold && self.leader.pins() != 0;
        let vm = &mut self.leader.engine;
        if std::mem::take(&mut self.vector_changed) {
            self.before.clone_from(&vm.state);
        } else {
            copy_registers(&mut self.before, &vm.state);
        }
        vm.mem.forget();
        let exit = match wanted || vm.state.activity != Activity::Running {
            // Takes what is due and executes nothing.
            true => Engine::run(vm, 0),
            false => Exit::Budget,
        };
        let interrupted = vm.state.rip != self.before.rip;
        self.decoded = self.cache.get(&mut vm.mem, &self.leader.ram, &self.before);
        if !interrupted && exit == Exit::Budget {
            Interp::step(vm);
        }
        let step = if interrupted { Step::Ran } else { self.leader.after(exit) };
        self.steps += 1;
        let vm = &mut self.leader.engine;
        config.tamper(self.steps, &mut vm.state);
        self.vector_changed = self.decoded.vector || config.tamper.is_some();
        self.history.note(self.before.rip, vm.state.rip);
        let asked = {
            let mut log = lock(&self.leader.log);
            let asked = !log.is_empty();
            log.clear();
            asked
        };
        let by_devices = match asked || look {
            true => self.leader.ram.code().take_device_stores(),
            false => Vec::new(),
        };
        let injected = asked
            || !by_devices.is_empty()
            || interrupted
            || step == Step::Waited
            || vm.state.activity != Activity::Running;
        vm.mem.stored.extend(by_devices);
        if injected {
            return (Kind::Injected, step);
        }
        // A task switch, also one by a gate.
        if vm.state.tr != self.before.tr || vm.state.v86() != self.before.v86() {
            return (Kind::Native, step);
        }
        if !self.decoded.special {
            return (Kind::Plain, step);
        }
        let insn = &self.decoded.insn;
        let kind = if asks_the_machine(insn) {
            Kind::Injected
        } else if is_native(insn, &self.before, loads) {
            Kind::Native
        } else if insn.mnemonic() == Mnemonic::Wrmsr && !is_plain_wrmsr(&self.before) {
            Kind::Injected
        } else {
            Kind::Plain
        };
        (kind, step)
    }

    /// Whether the leader's last step has left a repeated string instruction unfinished.
    fn inside_repeat(&self) -> bool {
        self.decoded.repeats && self.leader.engine.state.rip == self.before.rip
    }

    /// Iterations in the leader's last step.
    fn iterations(&self) -> u64 {
        match self.decoded.repeats {
            true => self.before.gpr[1].wrapping_sub(self.leader.engine.state.gpr[1]) & 0xffff_ffff,
            false => 0,
        }
    }

    /// Makes up to `left` steps, one instruction in all: how many, and what it was.
    fn lead_whole(&mut self, config: &mut DiffConfig, left: usize, loads: bool) -> (usize, Done) {
        let (kind, _) = self.lead(config, true, false, loads);
        let mut done = self.done(kind);
        let mut steps = 1;
        while self.inside_repeat() && steps < left {
            self.lead(config, true, false, loads);
            done.stored.extend(&self.leader.engine.mem.stored);
            steps += 1;
        }
        (steps, done)
    }

    /// The step just made, to keep.
    fn done(&self, kind: Kind) -> Done {
        Done {
            kind,
            before: self.before.clone(),
            decoded: self.decoded,
            stored: self.leader.engine.mem.stored.clone(),
            touches: self.leader.engine.mem.touches.clone(),
        }
    }

    /// Lets QEMU do a stretch and compares its end. When that differs, both sides go back and through it
    /// in parts, or in single steps if it is short. `last` is the step that the leader has made beyond it.
    fn follow(
        &mut self,
        stretch: &mut Stretch,
        at_end: &CpuState,
        last: Option<&Done>,
        config: &mut DiffConfig,
    ) -> Result<Option<Box<Difference>>, DiffError> {
        if stretch.steps == 0 {
            return Ok(None);
        }
        // As QEMU has them now: the stretch's beginning.
        let old_pages: Vec<(u64, Vec<u8>)> = stretch
            .stored
            .iter()
            .filter_map(|&gpn| Some((gpn, self.peer.page(gpn)?.to_vec())))
            .collect();
        // The last step may have stored to pages that the stretch did too.
        let beyond: BTreeSet<u64> = last.iter().flat_map(|it| it.stored.iter().copied()).collect();
        let arrived = stretch.steps > SHORT && self.run_to(stretch, at_end, last)?;
        if arrived && self.ends_equal(stretch, at_end, &beyond)? {
            return Ok(None);
        }
        let ran = stretch.steps > SHORT;
        if ran {
            tracing::debug!(
                "{} steps from {:#x} to {:#x} again: {}",
                stretch.steps,
                stretch.start.rip,
                at_end.rip,
                if arrived { "something differs there" } else { "not arrived" }
            );
        }
        let new_state = self.leader.engine.state.clone();
        let pages: BTreeSet<u64> = stretch.stored.union(&beyond).copied().collect();
        let new_pages: Vec<(u64, Vec<u8>)> = pages
            .iter()
            .filter_map(|&gpn| Some((gpn, self.leader.ram.page(gpn)?.to_vec())))
            .collect();
        if ran {
            let theirs = self.peer.state(&stretch.start)?;
            if !arrived {
                // It may have run past the end, and have stored anywhere.
                self.heal(&pages)?;
            }
            for (gpn, page) in &old_pages {
                self.peer.write_page(*gpn, page)?;
            }
            self.peer.take_back(&stretch.start, &theirs)?;
            self.known = None;
            self.repeated += 1;
        }
        let beyond_pages =
            pages.iter().filter_map(|&gpn| Some((gpn, self.peer.page(gpn)?.to_vec())));
        let beyond_pages: Vec<_> = beyond_pages.collect();
        let made = self.steps;
        self.take_back(&stretch.start, &beyond_pages);
        self.steps = made - stretch.steps as u64 - u64::from(last.is_some());
        let mut left = stretch.steps;
        while left > 0 {
            let (steps, found) = self.again(stretch, left, config)?;
            if found.is_some() {
                return Ok(found);
            }
            left -= steps;
        }
        self.steps = made;
        self.take_back(&new_state, &new_pages);
        Ok(None)
    }

    /// Makes all of QEMU's RAM as the leader's, but for these pages.
    fn heal(&mut self, but: &BTreeSet<u64>) -> Result<(), DiffError> {
        let mut gpns = self.leader.ram.touched();
        gpns.extend(self.peer.touched());
        gpns.sort_unstable();
        gpns.dedup();
        for gpn in gpns {
            if !but.contains(&gpn) && self.peer.page_differs(&self.leader.ram, gpn).0.is_some() {
                self.peer.copy_page(&self.leader.ram, gpn)?;
            }
        }
        Ok(())
    }

    /// Goes once more through the next part of a stretch of which `left` steps are left: how many steps it had, and
    /// the difference in it.
    fn again(
        &mut self,
        stretch: &Stretch,
        left: usize,
        config: &mut DiffConfig,
    ) -> Result<(usize, Option<Box<Difference>>), DiffError> {
        if stretch.steps <= PART_MIN {
            let (steps, done) = self.lead_whole(config, left, stretch.loads_segments);
            return Ok((steps, self.single(done)?));
        }
        let size = stretch.steps.div_ceil(PARTS);
        let mut part = Stretch::new(&mut self.leader);
        loop {
            let at = linear(&self.leader.engine.state);
            // Half of a loop is worth its breakpoints: the whole of it would be stepped through otherwise.
            let enough = part.may_end(at, size) || part.steps >= stretch.steps / 2;
            let inside = part.steps > 0 && self.inside_repeat();
            if part.steps == left || enough && !inside {
                break;
            }
            self.lead(config, true, false, stretch.loads_segments);
            part.note(at, &self.decoded, &self.leader.engine.mem.stored, self.iterations());
        }
        let end = self.leader.engine.state.clone();
        Ok((part.steps, self.follow(&mut part, &end, None, config)?))
    }

    /// Sets the leader's state and these pages.
    fn take_back(&mut self, state: &CpuState, pages: &[(u64, Vec<u8>)]) {
        for (gpn, page) in pages {
            if let Some(host) = self.leader.ram.host_ptr(Gpa(gpn * PAGE_SIZE), page.len()) {
                // SAFETY: a whole page of RAM, while nothing of its machine runs.
                unsafe { std::ptr::copy_nonoverlapping(page.as_ptr(), host, page.len()) };
                self.leader.ram.code().stored(*gpn);
            }
        }
        let vm = &mut self.leader.engine;
        vm.state.clone_from(state);
        vm.mem.flush_all();
        self.vector_changed = true;
    }

    /// Runs QEMU to the end of the stretch, where `last` follows, or to where all is as it is there; `false` if it
    /// doesn't come there.
    fn run_to(
        &mut self,
        stretch: &Stretch,
        at_end: &CpuState,
        last: Option<&Done>,
    ) -> Result<bool, DiffError> {
        let target = linear(at_end);
        self.known = None;
        let mut earlier = stretch.visits(target);
        if linear(&stretch.start) == target {
            self.peer.step()?;
            earlier -= 1;
        }
        // QEMU stops at each iteration of a repeated string instruction, so there it is known by registers alone.
        let vm = &mut self.leader.engine;
        let mut stops = earlier + EXTRA_STOPS;
        if self.cache.get(&mut vm.mem, &self.leader.ram, at_end).repeats {
            earlier = 0;
        }
        let instructions = (stretch.steps as u64).saturating_add(stretch.iterations);
        let patience = STRETCH_TIME + STEP_TIME * u32::try_from(instructions).unwrap_or(u32::MAX);
        self.breakpoints.set(&mut self.peer, target)?;
        let mut there = false;
        while !there && stops > 0 && self.peer.go(patience)? {
            stops -= 1;
            // A guest that waits in a loop is in the state of the end long before it.
            if earlier == 0 || stretch.visits(target) > VISITS_FEW {
                let theirs = self.peer.state(at_end)?;
                let mut right = theirs.clone();
                for (ours, theirs) in at_end.gpr.iter().zip(&mut right.gpr) {
                    if ours != theirs && stretch.copies_flags(*ours, *theirs) {
                        *theirs = *ours;
                        self.allowed += 1;
                    }
                }
                there = right.gpr == at_end.gpr
                    && right.rip == at_end.rip
                    && (earlier == 0 || self.memory_equal(stretch, last));
                if there {
                    self.peer.set_state(&right, &theirs)?;
                    self.known = Some(right);
                }
            }
            earlier = earlier.saturating_sub(1);
            if !there {
                // A single step goes on from a breakpoint.
                self.peer.step()?;
            }
        }
        let always = last.is_some_and(|done| is_always_injected(&done.decoded.insn));
        self.breakpoints.end(&mut self.peer, target, there, always)?;
        Ok(there)
    }

    /// Whether QEMU has in memory what the stretch stored. What the leader's step beyond the end has touched may differ.
    fn memory_equal(&self, stretch: &Stretch, last: Option<&Done>) -> bool {
        let touches = last.map_or(&[][..], |done| &done.touches);
        let is_touched = |gpa: u64| touches.iter().any(|it| it.write && it.gpa & !7 == gpa);
        stretch.stored.iter().all(|&gpn| {
            let (Some(ours), Some(theirs)) = (self.leader.ram.page(gpn), self.peer.page(gpn))
            else {
                return true;
            };
            let (words, _) = words_differing(ours, theirs);
            words.into_iter().all(|word| is_touched(gpn * PAGE_SIZE + word as u64))
        })
    }

    /// Compares at the end of a stretch.
    fn ends_equal(
        &mut self,
        stretch: &Stretch,
        at_end: &CpuState,
        beyond: &BTreeSet<u64>,
    ) -> Result<bool, DiffError> {
        if !self.state_equal(at_end, stretch.undefined)?.0 {
            return Ok(false);
        }
        for &gpn in &stretch.stored {
            // What the leader has stored to beyond the end can be compared behind that only.
            if beyond.contains(&gpn) {
                continue;
            }
            if stretch.pushed != 0 {
                self.mend_pushed(stretch, gpn)?;
            }
            let (word, tolerated) = self.peer.page_differs(&self.leader.ram, gpn);
            self.allowed += tolerated as u64;
            if let Some(word) = word {
                let [ours, theirs] = [self.leader.ram.page(gpn), self.peer.page(gpn)]
                    .map(|page| page.map(|page| u64_at(page, word)));
                tracing::debug!(
                    "at {:#x} there is {ours:x?} and in QEMU {theirs:x?}",
                    gpn * PAGE_SIZE + word as u64
                );
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes copies of pushed undefined flags ours in a page.
    fn mend_pushed(&mut self, stretch: &Stretch, gpn: u64) -> Result<(), DiffError> {
        let (Some(ours), Some(theirs)) = (self.leader.ram.page(gpn), self.peer.page(gpn)) else {
            return Ok(());
        };
        let (words, _) = words_differing(ours, theirs);
        let both = words.into_iter().map(|at| (at, u64_at(ours, at), u64_at(theirs, at)));
        let copies: Vec<_> =
            both.filter(|&(_, ours, theirs)| stretch.copies_flags(ours, theirs)).collect();
        for (at, ours, _) in copies {
            self.peer.write(gpn * PAGE_SIZE + at as u64, &ours.to_le_bytes())?;
            self.allowed += 1;
        }
        Ok(())
    }

    /// Compares QEMU's state with `ours`, and makes undefined flags ours.
    fn state_equal(
        &mut self,
        ours: &CpuState,
        undefined: u64,
    ) -> Result<(bool, CpuState), DiffError> {
        let mut theirs = match self.known.take() {
            Some(known) => known,
            None => self.peer.state(ours)?,
        };
        let flags = theirs.rflags ^ ours.rflags;
        if flags != 0 && flags & !(undefined & Rflags::STATUS.bits()) == 0 {
            let mut right = theirs.clone();
            right.rflags = ours.rflags;
            self.peer.set_state(&right, &theirs)?;
            theirs = right;
            self.allowed += 1;
        }
        self.known = Some(theirs.clone());
        Ok((same(ours, &theirs), theirs))
    }

    /// QEMU, which is before the step `done`, gets what came of it and of all that was jumped over: the leader's state, or
    /// that before `next`.
    fn inject(&mut self, done: &Done, next: Option<&Done>) -> Result<(), DiffError> {
        self.injected += 1;
        let after = next.map_or(&self.leader.engine.state, |next| &next.before).clone();
        let theirs = match self.known.take() {
            Some(known) => known,
            None => self.peer.state(&done.before)?,
        };
        // Segment registers are loaded by the guest's tables, so memory comes first.
        for &gpn in &done.stored {
            self.peer.copy_page(&self.leader.ram, gpn)?;
        }
        self.peer.set_state(&after, &theirs)?;
        self.known = Some(after);
        Ok(())
    }

    /// QEMU does one instruction that the leader has done, and is compared.
    fn single(&mut self, done: Done) -> Result<Option<Box<Difference>>, DiffError> {
        let ours = self.leader.engine.state.clone();
        self.known = None;
        self.peer.step()?;
        if done.decoded.repeats {
            self.finish_repeat(&done, &ours)?;
        }
        let undefined = undefined_after(&done.decoded.insn, 0);
        let (equal, theirs) = self.state_equal(&ours, undefined)?;
        let mut note = None;
        for &gpn in &done.stored {
            if self.forgets_accessed(&done, gpn) {
                self.peer.copy_page(&self.leader.ram, gpn)?;
                self.allowed += 1;
                continue;
            }
            let (word, tolerated) = self.peer.page_differs(&self.leader.ram, gpn);
            self.allowed += tolerated as u64;
            if let Some(word) = word {
                note = Some(format!("memory differs at {:#x}", gpn * PAGE_SIZE + word as u64));
            }
        }
        if equal && note.is_none() {
            return Ok(None);
        }
        Ok(Some(self.difference(done, ours, theirs, note)))
    }

    /// Whether all that differs in a page is the accessed bit of a descriptor that a far transfer has loaded. They set
    /// it (SDM vol. 3, "Segment Descriptors": whenever the processor loads a segment selector); QEMU's don't.
    fn forgets_accessed(&self, done: &Done, gpn: u64) -> bool {
        const ACCESSED: u64 = 1 << 40;
        let (true, Some(ours), Some(theirs)) =
            (transfers_far(&done.decoded.insn), self.leader.ram.page(gpn), self.peer.page(gpn))
        else {
            return false;
        };
        let (words, _) = words_differing(ours, theirs);
        let state = &done.before;
        !words.is_empty()
            && words.iter().all(|&word| {
                let at = |page| u64_at(page, word);
                let gpa = gpn * PAGE_SIZE + word as u64;
                // A store of the leader's to that descriptor, by way of the table.
                let stored = done.touches.iter().any(|touch| {
                    let tables = [
                        (state.gdtr.base, u64::from(state.gdtr.limit)),
                        (state.ldtr.base, u64::from(state.ldtr.limit)),
                    ];
                    touch.write
                        && touch.gpa & !7 == gpa
                        && tables
                            .iter()
                            .any(|(base, limit)| touch.gva.wrapping_sub(*base) <= *limit)
                });
                stored && at(ours) ^ at(theirs) == ACCESSED && at(ours) & ACCESSED != 0
            })
    }

    /// Steps through the iterations of a repeated string instruction, up to where ours stopped.
    fn finish_repeat(&mut self, done: &Done, ours: &CpuState) -> Result<(), DiffError> {
        for n in 0..=usize::MAX {
            let theirs = self.peer.state(ours)?;
            if theirs.rip != done.before.rip || theirs.gpr == ours.gpr && theirs.rip == ours.rip {
                return Ok(());
            }
            if n >= ITERATIONS_STEPPED && ours.rip != done.before.rip {
                self.peer.run_to(linear(ours), REPEAT_TIME)?;
                return Ok(());
            }
            if n > ITERATIONS_STEPPED_MAX {
                return Ok(());
            }
            self.peer.step()?;
        }
        Ok(())
    }

    fn difference(
        &mut self,
        done: Done,
        ours: CpuState,
        theirs: CpuState,
        note: Option<String>,
    ) -> Box<Difference> {
        let rows = done.touches.iter().map(|&touch| {
            let mut after = [[0; SHOWN]; 2];
            read(&self.leader.ram, touch.gpa, &mut after[0]);
            read(&self.peer, touch.gpa, &mut after[1]);
            MemoryRow { touch, after }
        });
        let memory = rows.collect();
        let executed = Executed {
            rip: done.before.rip,
            bytes: done.decoded.bytes[..done.decoded.len].to_vec(),
            insn: done.decoded.insn,
            touches_from: 0,
        };
        let difference = Difference {
            step: self.steps,
            retired: done.before.retired,
            names: NAMES,
            executed: vec![executed],
            before: done.before,
            after: [ours, theirs],
            fields: Vec::new(),
            memory,
            history: self.history.clone(),
            notes: note.into_iter().collect(),
        };
        Box::new(difference.compared())
    }
}
