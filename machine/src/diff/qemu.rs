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
//! otherwise likewise, down to single steps: so the report names the instruction. Flags that the manual leaves undefined are made ours. Thread: the lockstep's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use iced_x86::{Code, Instruction, Mnemonic};
use xenolith_cpu::env::Memory as _;
use xenolith_cpu::interp::Interp;
use xenolith_cpu::state::{Activity, Rflags, sreg};
use xenolith_cpu::{CpuState, Gpa, PAGE_SIZE};
use xenolith_devices::clock::lock;

use super::compare::{asks_the_machine, decode, differing, undefined_after, words_differing};
use super::leader::{Leader, Plan, Step};
use super::memory::{Pages, read};
use super::ours::code_at;
use super::peer::Peer;
use super::report::{Difference, Executed, History, MemoryRow};
use super::watch::{SHOWN, Touch, Watched};
use super::{DiffConfig, DiffError, Outcome, Stop, Summary};

const NAMES: [&str; 2] = ["interp", "qemu"];
/// Steps after which a stretch ends where QEMU stops at few breakpoints before; and at the latest. QEMU forgets all
/// that it has translated at every new breakpoint.
const STRETCH: usize = 500_000;
const STRETCH_MAX: usize = 5_000_000;
/// Earlier visits of a stretch's last address that are few: QEMU stops at each.
const VISITS_FEW: usize = 8;
/// Parts that a stretch is gone through again in, and the steps below which it isn't parted.
const PARTS: usize = 16;
const PART_MIN: usize = 256;
/// A stretch no longer than this is stepped through: that takes less time than a breakpoint.
const SHORT: usize = 3;
/// Stops at a breakpoint before the right one, beyond those that are known (repeated string instructions
/// stop at every iteration).
const EXTRA_STOPS: usize = 64;
/// How long QEMU may take for a stretch: at any rate, and for each step. One that it takes longer for is gone
/// through again in parts.
const STRETCH_TIME: Duration = Duration::from_millis(500);
const STEP_TIME: Duration = Duration::from_micros(2);
/// Iterations of one repeated instruction that are stepped through before a breakpoint is used.
const ITERATIONS_STEPPED: usize = 8;

/// How QEMU does a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Native,
    Injected,
}

/// Plain steps that QEMU has yet to do.
struct Stretch {
    start: CpuState,
    steps: usize,
    /// Addresses of its instructions, with how often each.
    seen: BTreeMap<u64, usize>,
    /// Pages stored to.
    stored: BTreeSet<u64>,
    /// Status flags that are undefined at its end.
    undefined: u64,
}

impl Stretch {
    fn new(start: CpuState) -> Self {
        Self { start, steps: 0, seen: BTreeMap::new(), stored: BTreeSet::new(), undefined: 0 }
    }

    /// Takes in a plain step of the leader, made at the linear address `at`.
    fn note(&mut self, at: u64, done: &Done) {
        *self.seen.entry(at).or_default() += 1;
        self.steps += 1;
        self.stored.extend(&done.stored);
        self.undefined = undefined_after(&done.insn, self.undefined);
    }

    /// Whether `at`, after at least `steps`, is a good end.
    fn may_end(&self, at: u64, steps: usize) -> bool {
        let few = self.seen.get(&at).is_none_or(|&visits| visits <= VISITS_FEW);
        self.steps >= steps && few || self.steps >= STRETCH_MAX
    }
}

type Machine = Leader<Interp<Watched>>;

struct Lockstep {
    leader: Machine,
    peer: Peer,
    every_instruction: bool,
    history: History,
    steps: u64,
    injected: u64,
    repeated: u64,
    allowed: u64,
}

/// One instruction of the leader with what it was.
struct Done {
    kind: Kind,
    before: CpuState,
    insn: Instruction,
    bytes: Vec<u8>,
    stored: Vec<u64>,
    touches: Vec<Touch>,
}

pub fn run(mut config: DiffConfig) -> Result<Outcome, DiffError> {
    let plan = Plan::new(&config)?;
    let leader = Leader::build(&plan, config.until.as_deref(), |parts| {
        let mmu = Watched::new(parts.mmu);
        Ok(Interp::new(parts.state, mmu, parts.env, parts.model, parts.index, parts.code))
    })?;
    let peer = Peer::start(&leader.ram, &leader.engine.state)?;
    let mut lockstep = Lockstep {
        leader,
        peer,
        every_instruction: config.every_instruction,
        history: History::default(),
        steps: 0,
        injected: 0,
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

fn transfers_far(insn: &Instruction) -> bool {
    let returns = matches!(
        insn.mnemonic(),
        Mnemonic::Retf | Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq
    );
    returns
        || insn.is_jmp_far()
        || insn.is_jmp_far_indirect()
        || insn.is_call_far()
        || insn.is_call_far_indirect()
}

/// System instructions that load what a debugger can't write.
fn is_native(insn: &Instruction, state: &CpuState) -> bool {
    match insn.mnemonic() {
        Mnemonic::Lgdt
        | Mnemonic::Lidt
        | Mnemonic::Lldt
        | Mnemonic::Ltr
        | Mnemonic::Xsetbv
        | Mnemonic::Invd
        | Mnemonic::Wbinvd => true,
        Mnemonic::Mov => matches!(
            insn.code(),
            Code::Mov_cr_r32
                | Code::Mov_cr_r64
                | Code::Mov_dr_r32
                | Code::Mov_dr_r64
                | Code::Mov_Sreg_rm16
                | Code::Mov_Sreg_r32m16
                | Code::Mov_Sreg_r64m16
        ),
        // A segment can only be written by its selector: its hidden part might be another by then.
        _ if transfers_far(insn) => true,
        Mnemonic::Lds | Mnemonic::Les | Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lss => true,
        Mnemonic::Pop => insn.op0_register().is_segment_register(),
        // MSRs that both sides keep and that change what instructions do.
        Mnemonic::Wrmsr => matches!(
            state.gpr[1] as u32,
            0x174..=0x176 | 0x277 | 0xc000_0080..=0xc000_0084 | 0xc000_0100..=0xc000_0103
        ),
        _ => false,
    }
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
            let mut stretch = Stretch::new(self.leader.engine.state.clone());
            let (last, stop) = self.gather(&mut stretch, config);
            // The state at the end of the stretch: the leader may be one step beyond.
            let at_end = match &last {
                Some(done) => done.before.clone(),
                None => self.leader.engine.state.clone(),
            };
            if let Some(difference) = self.follow(&mut stretch, &at_end, last.as_ref(), config)? {
                return Ok(Outcome::Different(difference));
            }
            if let Some(done) = last
                && let Some(difference) = self.follow_last(done)?
            {
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
            if config.steps.is_some_and(|limit| self.steps >= limit) {
                return (None, Some(Stop::Steps));
            }
            let at = linear(&self.leader.engine.state);
            if stretch.may_end(at, limit) || self.every_instruction && stretch.steps >= 1 {
                return (None, None);
            }
            self.leader.tell_retired(self.leader.engine.state.retired);
            if let Some(stop) = self.leader.settle() {
                return (None, Some(stop));
            }
            let (done, step) = self.lead(config);
            let stop = match step {
                Step::Ended(stop) => Some(stop),
                Step::Ran | Step::Waited => None,
            };
            if done.kind != Kind::Plain || stop.is_some() {
                return (Some(done), stop);
            }
            stretch.note(at, &done);
        }
    }

    /// One step of the leader: an interrupt, or else an instruction.
    fn lead(&mut self, config: &mut DiffConfig) -> (Done, Step) {
        let before = self.leader.engine.state.clone();
        self.leader.engine.mem.forget();
        // Takes what is due and executes nothing.
        self.leader.engine.run(0);
        let interrupted = self.leader.engine.state.rip != before.rip;
        let bits = before.code_bits();
        let vm = &mut self.leader.engine;
        let bytes = code_at(&mut vm.mem, &self.leader.ram, &before, before.rip, bits);
        let insn = decode(bits, before.rip, &bytes);
        let step = if interrupted { Step::Ran } else { self.leader.step() };
        self.steps += 1;
        let vm = &mut self.leader.engine;
        config.tamper(self.steps, &mut vm.state);
        self.history.note(before.rip, vm.state.rip);
        let asked = {
            let mut log = lock(&self.leader.log);
            let asked = !log.is_empty();
            log.clear();
            asked
        };
        let mut stored = vm.mem.stored.clone();
        let by_devices = self.leader.ram.code().take_device_stores();
        let asked = asked || !by_devices.is_empty();
        stored.extend(by_devices);
        let injected = asked
            || interrupted
            || step == Step::Waited
            || asks_the_machine(&insn)
            || vm.state.activity != Activity::Running;
        let kind = if injected {
            Kind::Injected
        } else if is_native(&insn, &before) {
            Kind::Native
        } else if insn.mnemonic() == Mnemonic::Wrmsr {
            Kind::Injected
        } else {
            Kind::Plain
        };
        let touches = vm.mem.touches.clone();
        (Done { kind, before, insn, bytes, stored, touches }, step)
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
        let arrived = stretch.steps > SHORT && self.run_to(stretch, at_end)?;
        if arrived && self.ends_equal(stretch, at_end, &beyond)? {
            return Ok(None);
        }
        let ran = stretch.steps > SHORT;
        let new_state = self.leader.engine.state.clone();
        let pages: BTreeSet<u64> = stretch.stored.union(&beyond).copied().collect();
        let new_pages: Vec<(u64, Vec<u8>)> = pages
            .iter()
            .filter_map(|&gpn| Some((gpn, self.leader.ram.page(gpn)?.to_vec())))
            .collect();
        if ran {
            let theirs = self.peer.state(&stretch.start)?;
            for (gpn, page) in &old_pages {
                self.peer.write_page(*gpn, page)?;
            }
            self.peer.set_state(&stretch.start, &theirs)?;
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

    /// Goes once more through the next part of a stretch of which `left` steps are left: how many steps it had, and
    /// the difference in it.
    fn again(
        &mut self,
        stretch: &Stretch,
        left: usize,
        config: &mut DiffConfig,
    ) -> Result<(usize, Option<Box<Difference>>), DiffError> {
        if stretch.steps <= PART_MIN {
            let (done, _) = self.lead(config);
            return Ok((1, self.single(done)?));
        }
        let size = stretch.steps.div_ceil(PARTS);
        let mut part = Stretch::new(self.leader.engine.state.clone());
        loop {
            let at = linear(&self.leader.engine.state);
            // Half of a loop is worth its breakpoints: the whole of it would be stepped through otherwise.
            let enough = part.may_end(at, size) || part.steps >= stretch.steps / 2;
            if part.steps == left || enough {
                break;
            }
            let (done, _) = self.lead(config);
            part.note(at, &done);
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
    }

    /// Runs QEMU to the end of the stretch; `false` if it doesn't come there.
    fn run_to(&mut self, stretch: &Stretch, at_end: &CpuState) -> Result<bool, DiffError> {
        let target = linear(at_end);
        let mut stops = stretch.seen.get(&target).copied().unwrap_or_default() + EXTRA_STOPS;
        if linear(&stretch.start) == target {
            self.peer.step()?;
        }
        let patience = STRETCH_TIME + STEP_TIME * u32::try_from(stretch.steps).unwrap_or(u32::MAX);
        self.peer.set_breakpoint(target)?;
        let mut there = false;
        while !there && stops > 0 && self.peer.go(patience)? {
            let theirs = self.peer.state(at_end)?;
            there = theirs.gpr == at_end.gpr && theirs.rip == at_end.rip;
            stops -= 1;
            if !there {
                // A single step goes on from a breakpoint.
                self.peer.step()?;
            }
        }
        self.peer.clear_breakpoint(target)?;
        Ok(there)
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
            let (word, tolerated) = self.peer.page_differs(&self.leader.ram, gpn);
            self.allowed += tolerated as u64;
            if word.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Compares QEMU's state with `ours`, and makes undefined flags ours.
    fn state_equal(
        &mut self,
        ours: &CpuState,
        undefined: u64,
    ) -> Result<(bool, CpuState), DiffError> {
        let mut theirs = self.peer.state(ours)?;
        let flags = theirs.rflags ^ ours.rflags;
        if flags != 0 && flags & !(undefined & Rflags::STATUS.bits()) == 0 {
            let mut right = theirs.clone();
            right.rflags = ours.rflags;
            self.peer.set_state(&right, &theirs)?;
            theirs = right;
            self.allowed += 1;
        }
        Ok((differing(ours, &theirs).is_empty(), theirs))
    }

    /// The step behind a stretch.
    fn follow_last(&mut self, done: Done) -> Result<Option<Box<Difference>>, DiffError> {
        if done.kind != Kind::Injected {
            return self.single(done);
        }
        self.injected += 1;
        let after = self.leader.engine.state.clone();
        let theirs = self.peer.state(&done.before)?;
        // Segment registers are loaded by the guest's tables, so memory comes first.
        for &gpn in &done.stored {
            self.peer.copy_page(&self.leader.ram, gpn)?;
        }
        self.peer.set_state(&after, &theirs)?;
        Ok(None)
    }

    /// QEMU does one instruction that the leader has done, and is compared.
    fn single(&mut self, done: Done) -> Result<Option<Box<Difference>>, DiffError> {
        let ours = self.leader.engine.state.clone();
        self.peer.step()?;
        let repeats = done.insn.has_rep_prefix() || done.insn.has_repne_prefix();
        if repeats && done.insn.is_string_instruction() {
            self.finish_repeat(&done, &ours)?;
        }
        let undefined = undefined_after(&done.insn, 0);
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
            (transfers_far(&done.insn), self.leader.ram.page(gpn), self.peer.page(gpn))
        else {
            return false;
        };
        let (words, _) = words_differing(ours, theirs);
        let state = &done.before;
        !words.is_empty()
            && words.iter().all(|&word| {
                let at = |page: &[u8]| {
                    u64::from_le_bytes(page[word..word + 8].try_into().expect("eight bytes"))
                };
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
                self.peer.run_to(linear(ours), STRETCH_TIME)?;
                return Ok(());
            }
            if n > 1 << 14 {
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
        let len = done.insn.len().min(done.bytes.len());
        let executed = Executed {
            rip: done.before.rip,
            bytes: done.bytes[..len].to_vec(),
            insn: done.insn,
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
