//! Lockstep of two of our own engines.
//!
//! Problem: the translator stops only between blocks and doesn't count; the interpreter can stop
//! anywhere. Scheme: the leader makes one step of whatever length, then the interpreter goes on by single
//! instructions until its state is the leader's. When it does not get there in as many as a block can
//! have, the block was wrong. A leader that is the interpreter itself makes steps of one instruction and
//! is compared after exactly one. Invariant: at the head of [`Lockstep::step`] both sides are equal, and
//! the log is empty. Thread: the lockstep's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use xenolith_cpu::env::{Access, Memory, Place, Privilege, attention};
use xenolith_cpu::interp::Interp;
use xenolith_cpu::state::{Rflags, Shadow, sreg};
use xenolith_cpu::{CpuState, Gva};
use xenolith_devices::clock::lock;
use xenolith_mmu::GuestRam;

use super::compare::{decode, same, undefined_after, words_differing};
use super::leader::{Leader, Plan, Step};
use super::memory::{Pages, first_difference, read};
use super::replay::{Event, Log, Replayer, Surprise};
use super::report::{Difference, Executed, History, MemoryRow};
use super::watch::{SHOWN, Watched};
use super::{Against, DiffConfig, DiffError, Outcome, Stop, Summary};
use crate::builder::EngineParts;
use crate::config;
use crate::engine::Engine;

/// Instructions that one step of the leader may have, deliveries of exceptions included.
const STEP_MAX: usize = 256;
/// Steps between two comparisons of all RAM.
const ALL_RAM_EVERY: u64 = 1 << 24;
/// Steps between two reports of progress.
const PROGRESS_EVERY: u64 = 1 << 20;

/// A page to compare after every step beyond one: a difference was found in it later.
#[derive(Clone, Copy, Debug)]
struct Suspect {
    gpn: u64,
    after: u64,
}

/// What a first run tells the second, which then shows the difference.
#[derive(Clone, Copy, Debug)]
enum Hint {
    None,
    Page(Suspect),
    /// In this step the interpreter is at the leader's RIP after so many instructions, and differs.
    Short {
        step: u64,
        instructions: usize,
    },
}

pub fn run(mut config: DiffConfig) -> Result<Outcome, DiffError> {
    let mut hint = Hint::None;
    // A page leads to a step, and that to its instructions.
    for _ in 0..3 {
        match session(&mut config, hint)? {
            End::Outcome(outcome) => return Ok(outcome),
            End::Again(better) => hint = better,
        }
    }
    Err(DiffError::Unsteady)
}

enum End {
    Outcome(Outcome),
    Again(Hint),
}

/// How the two sides differ: notes for the report, or how to find out.
enum Wrong {
    Notes(Vec<String>),
    Passed(usize),
}

fn session(config: &mut DiffConfig, hint: Hint) -> Result<End, DiffError> {
    let plan = Plan::new(config)?;
    let kind = match config.against {
        Against::Bt => config::Engine::Bt,
        Against::Interp | Against::Qemu => config::Engine::Interp,
    };
    let leader = Leader::build(&plan, config.until.as_deref(), |parts| parts.engine(kind))?;
    let (parts, _) = plan.parts()?;
    let follower = Follower::new(parts, Arc::clone(&leader.log));
    let names = match config.against {
        Against::Bt => ["bt", "interp"],
        Against::Interp | Against::Qemu => ["interp", "interp again"],
    };
    let exact = kind == config::Engine::Interp;
    let mut lockstep = Lockstep { leader, follower, names, exact, steps: 0, allowed: 0, hint };
    lockstep.run(config)
}

impl Engine for Box<dyn Engine> {
    fn run(&mut self, budget: u64) -> crate::engine::Exit {
        (**self).run(budget)
    }
    fn step(&mut self) -> crate::engine::Exit {
        (**self).step()
    }
    fn state(&mut self) -> &mut CpuState {
        (**self).state()
    }
    fn state_changed(&mut self) {
        (**self).state_changed();
    }
    fn time_moved(&mut self) {
        (**self).time_moved();
    }
    fn dump(&self) -> String {
        (**self).dump()
    }
}

/// The interpreter that repeats the leader's steps.
struct Follower {
    vm: Interp<Watched>,
    ram: Arc<GuestRam>,
    attention: Arc<AtomicU32>,
    /// INTR as the leader had it before the step: a repeated string instruction looks at it even
    /// when it can't be taken.
    pins: u32,
    /// NMI, if the leader took one.
    nmi: u32,
    log: Log,
    surprise: Surprise,
    history: History,
    /// RIP and code size of the step's instructions, and their first touches.
    trace: Vec<(u64, u32, usize)>,
}

impl Follower {
    fn new(parts: EngineParts, log: Log) -> Self {
        let EngineParts { state, mmu, model, index, code, .. } = parts;
        let ram = Arc::clone(mmu.guest_ram());
        let attention = Arc::new(AtomicU32::new(0));
        let surprise = Surprise::default();
        let env = Replayer::new(Arc::clone(&log), Arc::clone(&surprise), Arc::clone(&attention));
        let vm = Interp::new(state, Watched::new(mmu), Box::new(env), model, index, code);
        Self {
            vm,
            ram,
            attention,
            pins: 0,
            nmi: 0,
            log,
            surprise,
            history: History::default(),
            trace: Vec::new(),
        }
    }

    /// One instruction, after an interrupt if the leader took one here.
    fn step(&mut self) {
        let state = &self.vm.state;
        let takes = state.flag(Rflags::IF) && state.shadow == Shadow::None;
        let taken = matches!(lock(&self.log).front(), Some(Event::Interrupt(_)));
        let intr = match (takes, taken) {
            (true, true) => attention::INTR,
            (true, false) => 0,
            (false, _) => self.pins,
        };
        self.attention.store(intr | std::mem::take(&mut self.nmi), Ordering::SeqCst);
        if self.attention.load(Ordering::Relaxed) != 0 {
            let from = self.vm.state.rip;
            self.vm.run(0);
            if self.vm.state.rip != from {
                self.history.note(from, self.vm.state.rip);
            }
        }
        let from = self.vm.state.rip;
        self.trace.push((from, self.vm.state.code_bits(), self.vm.mem.touches.len()));
        self.vm.step();
        self.history.note(from, self.vm.state.rip);
    }

    /// The instructions of the step, as they are in memory now.
    fn executed(&mut self, before: &CpuState) -> Vec<Executed> {
        let trace = std::mem::take(&mut self.trace);
        let list = trace
            .iter()
            .map(|&(rip, bits, touches_from)| {
                let bytes = self.code_at(before, rip, bits);
                let insn = decode(bits, rip, &bytes);
                let bytes = bytes[..insn.len().min(bytes.len())].to_vec();
                Executed { rip, bytes, insn, touches_from }
            })
            .collect();
        self.trace = trace;
        list
    }

    fn code_at(&mut self, before: &CpuState, rip: u64, bits: u32) -> Vec<u8> {
        code_at(&mut self.vm.mem, &self.ram, before, rip, bits)
    }
}

/// Up to 15 bytes of code.
pub fn code_at(
    mem: &mut impl Memory,
    ram: &Arc<GuestRam>,
    state: &CpuState,
    rip: u64,
    bits: u32,
) -> Vec<u8> {
    let base = if bits == 64 { 0 } else { state.seg[sreg::CS].base };
    let mut bytes = Vec::new();
    let mut linear = base.wrapping_add(rip);
    while bytes.len() < 15 {
        if bits != 64 {
            linear &= 0xffff_ffff;
        }
        let place = mem.translate(state, Gva(linear), Access::Fetch, Privilege::Supervisor);
        // Code of user pages isn't fetched as a supervisor under SMEP.
        let place =
            place.or_else(|_| mem.translate(state, Gva(linear), Access::Fetch, Privilege::User));
        let Ok(Place::Ram { gpa, .. }) = place else { break };
        let len = (15 - bytes.len()).min(4096 - (gpa.0 & 4095) as usize);
        let at = bytes.len();
        bytes.resize(at + len, 0);
        read(ram, gpa.0, &mut bytes[at..]);
        linear = linear.wrapping_add(len as u64);
        // The next page is looked at only if the instruction reaches into it.
        if !decode(bits, rip, &bytes).is_invalid() {
            break;
        }
    }
    bytes
}

struct Lockstep {
    leader: Leader<Box<dyn Engine>>,
    follower: Follower,
    names: [&'static str; 2],
    /// The leader's steps are single instructions.
    exact: bool,
    steps: u64,
    allowed: u64,
    hint: Hint,
}

impl Lockstep {
    fn run(&mut self, config: &mut DiffConfig) -> Result<End, DiffError> {
        let start = Instant::now();
        let mut compared_at = 0;
        let mut before = self.follower.vm.state.clone();
        let stop = loop {
            if config.steps.is_some_and(|limit| self.steps >= limit) {
                break Stop::Steps;
            }
            self.leader.tell_retired(self.follower.vm.state.retired);
            if let Some(stop) = self.leader.settle() {
                break stop;
            }
            before.clone_from(&self.follower.vm.state);
            let step = match self.step(config) {
                Ok(step) => step,
                Err(Wrong::Passed(instructions)) => {
                    return Ok(End::Again(Hint::Short { step: self.steps, instructions }));
                }
                Err(Wrong::Notes(notes)) => {
                    return Ok(End::Outcome(Outcome::Different(self.difference(before, notes))));
                }
            };
            match step {
                Step::Ended(stop) => break stop,
                Step::Ran | Step::Waited => {}
            }
            if self.steps.is_multiple_of(PROGRESS_EVERY) {
                config.report_progress(self.follower.vm.state.retired);
            }
            if self.steps.is_multiple_of(ALL_RAM_EVERY) {
                if let Some(suspect) = self.compare_ram(compared_at) {
                    return Ok(End::Again(Hint::Page(suspect)));
                }
                compared_at = self.steps;
            }
        };
        if let Some(suspect) = self.compare_ram(compared_at) {
            return Ok(End::Again(Hint::Page(suspect)));
        }
        Ok(End::Outcome(Outcome::Equal(Summary {
            stop,
            steps: self.steps,
            instructions: self.follower.vm.state.retired,
            injected: 0,
            jumped: 0,
            repeated: 0,
            allowed: self.allowed,
            time: start.elapsed(),
        })))
    }

    fn compare_ram(&mut self, after: u64) -> Option<Suspect> {
        let (gpa, tolerated) = first_difference(&self.leader.ram, &self.follower.ram);
        self.allowed += tolerated as u64;
        gpa.map(|gpa| Suspect { gpn: gpa >> 12, after })
    }

    /// One step of both sides. `Err` has notes about a difference.
    fn step(&mut self, config: &mut DiffConfig) -> Result<Step, Wrong> {
        self.follower.trace.clear();
        self.follower.vm.mem.forget();
        let pins = self.leader.pins();
        self.follower.pins = pins & attention::INTR;
        let retired = self.leader.engine.state().retired;
        let step = self.leader.step();
        self.steps += 1;
        // A block that sets a timer ends for the attention it asks for, and has been executed.
        let waited = step == Step::Waited && self.leader.engine.state().retired == retired;
        config.tamper(self.steps, self.leader.engine.state());
        self.follower.nmi = pins & !self.leader.pins() & attention::NMI;
        let caught_up = match (waited, self.exact) {
            (true, _) => {
                if !lock(&self.follower.log).is_empty() {
                    self.follower.step();
                }
                self.agrees()
            }
            (false, true) => {
                self.follower.step();
                self.agrees()
            }
            (false, false) => self.catch_up()?,
        };
        if let Some(text) = lock(&self.follower.surprise).take() {
            return Err(Wrong::Notes(vec![format!("{} made a {text}", self.names[1])]));
        }
        if !caught_up {
            return Err(Wrong::Notes(Vec::new()));
        }
        if let Some(event) = lock(&self.follower.log).front() {
            let note = format!("{} had {event:x?}, {} not", self.names[0], self.names[1]);
            return Err(Wrong::Notes(vec![note]));
        }
        self.compare_stores()?;
        Ok(step)
    }

    /// Lets the interpreter go on until it is where the leader is.
    fn catch_up(&mut self) -> Result<bool, Wrong> {
        if let Hint::Short { step, instructions } = self.hint
            && step == self.steps
        {
            for _ in 0..instructions {
                self.follower.step();
            }
            return Ok(self.agrees());
        }
        let mut passed = None;
        for n in 1..=STEP_MAX {
            self.follower.step();
            if lock(&self.follower.surprise).is_some() {
                passed.get_or_insert(n);
                break;
            }
            if self.follower.vm.state.rip == self.leader.engine.state().rip {
                if self.agrees() {
                    return Ok(true);
                }
                passed.get_or_insert(n);
            }
        }
        // Nowhere equal. It has run on: what is shown is the first time that it came by.
        Err(Wrong::Passed(passed.unwrap_or(1)))
    }

    /// Whether the states are equal but for flags that the step's instructions left undefined; those the
    /// follower takes over.
    fn agrees(&mut self) -> bool {
        let leader = self.leader.engine.state();
        if same(leader, &self.follower.vm.state) {
            return true;
        }
        let differ = leader.rflags ^ self.follower.vm.state.rflags;
        if differ == 0
            || differ & !Rflags::STATUS.bits() != 0
            || leader.rip != self.follower.vm.state.rip
        {
            return false;
        }
        let flags = leader.rflags;
        let state = self.follower.vm.state.clone();
        let undefined = self
            .follower
            .executed(&state)
            .iter()
            .fold(0, |undefined, it| undefined_after(&it.insn, undefined));
        if differ & !undefined != 0 {
            return false;
        }
        self.follower.vm.state.rflags = flags;
        if same(self.leader.engine.state(), &self.follower.vm.state) {
            self.allowed += 1;
            return true;
        }
        self.follower.vm.state.rflags = state.rflags;
        false
    }

    /// Compares the pages stored to, and gives the follower what devices stored.
    fn compare_stores(&mut self) -> Result<(), Wrong> {
        let by_devices = self.leader.ram.code().take_device_stores();
        for &gpn in &by_devices {
            if let Some(page) = self.leader.ram.page(gpn)
                && let Some(host) = self.follower.ram.host_ptr(xenolith_cpu::Gpa(gpn << 12), 4096)
            {
                // SAFETY: both are whole pages of RAM, of different machines.
                unsafe { std::ptr::copy_nonoverlapping(page.as_ptr(), host, page.len()) };
                self.follower.ram.code().stored(gpn);
            }
        }
        if let Hint::Page(suspect) = self.hint
            && self.steps > suspect.after
        {
            self.follower.vm.mem.stored.push(suspect.gpn);
        }
        for &gpn in &self.follower.vm.mem.stored {
            let (Some(a), Some(b)) = (self.leader.ram.page(gpn), self.follower.ram.page(gpn))
            else {
                continue;
            };
            if a == b {
                continue;
            }
            let (words, tolerated) = words_differing(a, b);
            self.allowed += tolerated as u64;
            if let Some(&word) = words.first() {
                let at = |page: &[u8]| page[word..word + 8].to_vec();
                return Err(Wrong::Notes(vec![format!(
                    "memory at {:#x}: {:02x?} in {}, {:02x?} in {}",
                    (gpn << 12) + word as u64,
                    at(a),
                    self.names[0],
                    at(b),
                    self.names[1]
                )]));
            }
        }
        Ok(())
    }

    fn difference(&mut self, before: CpuState, notes: Vec<String>) -> Box<Difference> {
        let leader = self.leader.engine.state().clone();
        let executed = self.follower.executed(&before);
        let memory = self.follower.vm.mem.touches.iter().map(|&touch| {
            let mut after = [[0; SHOWN]; 2];
            read(&self.leader.ram, touch.gpa, &mut after[0]);
            read(&self.follower.ram, touch.gpa, &mut after[1]);
            MemoryRow { touch, after }
        });
        let memory = memory.collect();
        Box::new(
            Difference {
                step: self.steps,
                retired: before.retired,
                names: self.names,
                executed,
                before,
                after: [leader, self.follower.vm.state.clone()],
                fields: Vec::new(),
                memory,
                history: self.follower.history.clone(),
                notes,
            }
            .compared(),
        )
    }
}
