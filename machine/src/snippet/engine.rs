//! Our engines as runners.
//!
//! Problem: an engine runs whole machines, and building one for a snippet would take a thousand times longer than
//! running it. Scheme: one engine over a small memory of its own, without a board, kept from snippet to snippet.
//! Memory holds a kernel of one instruction ([`kernel`]): every gate leads to a HLT of its own. So the place of the
//! HLT is the vector and the frame on the stack the snippet's last state. Invariants: a snippet can change only its
//! own pages and the registers that each run loads. What runs too long is stopped by a watch of its own thread. One
//! thread beside the watch.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once, Weak};
use std::time::Duration;

use xenolith_cpu::cpuid::CpuidModel;
use xenolith_cpu::env::attention;
use xenolith_cpu::state::{Activity, Cr0, Rflags, Segment, VectorState, sreg};
use xenolith_cpu::{CpuState, Gpa};
use xenolith_devices::clock::lock;
use xenolith_mmu::{GuestRam, SoftMmu};

use super::image::{self, Memory, Tally};
use super::kernel::{self, HANDLER_STEP, HANDLERS, KERNEL, RAM_BYTES, has_error_code};
use super::kernel32;
use super::layout::{HIGH_AREAS, HIGH_LEN, HIGH_START, LOW_AREAS, LOW_LEN, LOW_START, PAGE, areas};
use super::{End, Ending, Runner, RunnerError, Snippet, System};
use crate::bt::{Options, SharedSlot};
use crate::builder::EngineParts;
use crate::config;
use crate::cpu_time::CpuClock;
use crate::engine::{Engine, Exit, Stubs};
use crate::env::BareEnv;

/// Room for translated code.
const CACHE_BYTES: usize = 16 << 20;
/// Instructions that a snippet may run.
pub const BUDGET: u64 = 20_000;
/// Processor time that it may take.
const TIME_MAX: Duration = Duration::from_millis(200);
/// How often the watch looks.
const TICK: Duration = Duration::from_millis(50);

/// Stops a run that takes too long.
#[derive(Debug)]
struct Watch {
    attention: Arc<AtomicU32>,
    watched: Mutex<Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    /// Snippets so far.
    count: u64,
    /// Of the thread that runs one.
    running: Option<CpuClock>,
    /// The one that runs has been stopped.
    late: bool,
}

impl Watch {
    fn start(attention: Arc<AtomicU32>) -> std::io::Result<Arc<Self>> {
        let watch = Arc::new(Self { attention, watched: Mutex::default() });
        let weak = Arc::downgrade(&watch);
        std::thread::Builder::new()
            .name("snippets".to_owned())
            .spawn(move || Self::guard(&weak))?;
        Ok(watch)
    }

    fn guard(watch: &Weak<Self>) {
        let mut seen = (0, Duration::ZERO);
        loop {
            std::thread::sleep(TICK);
            let Some(watch) = watch.upgrade() else { return };
            let mut watched = lock(&watch.watched);
            let Some(now) = watched.running.and_then(CpuClock::now) else { continue };
            if watched.count != seen.0 {
                seen = (watched.count, now);
            } else if now - seen.1 >= TIME_MAX {
                watched.late = true;
                watch.attention.fetch_or(attention::STOP, Ordering::SeqCst);
            }
        }
    }

    /// A snippet runs from now on, in this thread.
    fn begin(&self) {
        let mut watched = lock(&self.watched);
        watched.count += 1;
        watched.running = CpuClock::of_this_thread();
    }

    /// It runs no more: whether it was stopped.
    fn end(&self) -> bool {
        let mut watched = lock(&self.watched);
        watched.running = None;
        self.attention.fetch_and(!attention::STOP, Ordering::SeqCst);
        std::mem::take(&mut watched.late)
    }
}

/// See the module's head.
pub struct EngineRunner {
    name: &'static str,
    kind: config::Engine,
    making: config::Making,
    model: Arc<CpuidModel>,
    engine: Box<dyn Engine>,
    ram: Arc<GuestRam>,
    memory: Memory,
    /// The states in which snippets are entered, but for what the snippet says, by [`System`].
    templates: [CpuState; 4],
    /// The system of the snippet before.
    system: System,
    /// What real-mode code reaches beside its own memory.
    around: Vec<Around>,
    segments: Vec<(u16, Segment)>,
    watch: Arc<Watch>,
    /// The low piece of memory is mapped, not the high one.
    low: bool,
    /// Value of the instruction counter at the start of the snippet.
    entered_at: u64,
    /// Memory as it was before the snippet: see [`Memory`].
    _before: Vec<u64>,
}

// SAFETY: the pointers of `memory` lead into `ram` and `_before`, which move along; nobody else has them.
unsafe impl Send for EngineRunner {}

impl std::fmt::Debug for EngineRunner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineRunner").field("name", &self.name).finish_non_exhaustive()
    }
}

fn refused(what: &'static str, error: impl std::fmt::Display) -> RunnerError {
    RunnerError::Host { what, reason: error.to_string() }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs something whose panics are for the caller to tell.
fn quietly<T>(run: impl FnOnce() -> T) -> T {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
    QUIET.set(true);
    let result = run();
    QUIET.set(false);
    result
}

/// A CPU model by its name.
///
/// # Errors
/// There is none, or the host can't carry it.
pub fn model(spec: &str) -> Result<Arc<CpuidModel>, RunnerError> {
    CpuidModel::parse(spec)
        .map(Arc::new)
        .map_err(|error| RunnerError::Cpu { model: spec.to_owned(), reason: error.to_string() })
}

impl EngineRunner {
    /// # Errors
    /// The host refuses memory.
    pub fn new(
        kind: config::Engine,
        making: impl Into<config::Making>,
        model: &Arc<CpuidModel>,
    ) -> Result<Self, RunnerError> {
        let making = making.into();
        crate::signal::install().map_err(|error| refused("handle SIGFPE", error))?;
        let ram =
            GuestRam::new(RAM_BYTES).map_err(|error| refused("provide guest memory", error))?;
        let code = Stubs::new().map_err(|error| refused("provide memory for code", error))?;
        let word = Arc::new(AtomicU32::new(0));
        let watch =
            Watch::start(Arc::clone(&word)).map_err(|error| refused("start a thread", error))?;
        let halt = |_| [0xf4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        kernel::build(&mut |at, value| put(&ram, at, value), halt);
        kernel32::build(&mut |at, value| put(&ram, at, value));
        let templates = [System::Long, System::Protected, System::V86, System::Real]
            .map(|system| kernel32::state(model, system));
        let around = Around::all(&ram);
        let parts = EngineParts {
            state: templates[0].clone(),
            mmu: SoftMmu::new(Arc::clone(&ram), model.physical_bits()),
            env: Box::new(BareEnv { attention: word, ..BareEnv::default() }),
            model: Arc::clone(model),
            index: 0,
            code: Box::new(code),
            translations: Arc::new(SharedSlot::new(Options {
                vcpus: 1,
                cache_bytes: CACHE_BYTES,
                counts: false,
                making,
                report: None,
                listing: None,
            })),
        };
        let engine = parts.engine(kind).map_err(|error| refused("make an engine", error))?;
        let mut before = vec![0u64; (HIGH_LEN + LOW_LEN) / 8 + 8];
        let high_model: *mut u8 = before.as_mut_ptr().cast();
        let pieces =
            (ram.host_ptr(Gpa(HIGH_START), HIGH_LEN), ram.host_ptr(Gpa(LOW_START), LOW_LEN));
        let (Some(high), Some(low)) = pieces else {
            return Err(refused("find guest memory", "it is smaller than asked for"));
        };
        // SAFETY: the pieces lie in RAM that this value keeps, the models in memory that it keeps; only this
        // value's engine runs on that RAM.
        let memory =
            unsafe { Memory::new(high, low, high_model, high_model.wrapping_add(HIGH_LEN)) };
        let name = match kind {
            config::Engine::Interp => "interp",
            config::Engine::Bt => "bt",
        };
        let segments = kernel::segments();
        Ok(Self {
            name,
            kind,
            making,
            model: Arc::clone(model),
            engine,
            ram,
            memory,
            templates,
            system: System::Long,
            around,
            segments,
            watch,
            low: false,
            entered_at: 0,
            _before: before,
        })
    }

    /// Lays out memory and loads the state.
    fn enter(&mut self, snippet: &Snippet) {
        const END: [u8; 2] = [0x0f, 0x0b];
        let low = snippet.bits == super::Bits::B16;
        if std::mem::replace(&mut self.low, low) != low {
            kernel::map_piece(&mut |at, value| put(&self.ram, at, value), low);
            self.engine.state_changed();
        }
        if snippet.pattern != 0 {
            let at = Memory::pattern_at(snippet.bits);
            self.lay(at, image::pattern(snippet.pattern));
        }
        self.lay(snippet.at(), &snippet.code);
        self.lay(snippet.at() + snippet.code.len() as u64, &END);
        for piece in &snippet.memory {
            self.lay(piece.at, &piece.bytes);
        }
        let find = |selector: u16| {
            let known = self.segments.iter().find(|(it, _)| *it == selector);
            known.map_or(Segment { selector, ..Segment::NULL }, |(_, segment)| *segment)
        };
        let segments = match snippet.system {
            System::Long | System::Protected => snippet.selectors.map(find),
            System::V86 => snippet.selectors.map(|selector| Segment::real(selector, 0xf3)),
            System::Real => snippet.selectors.map(|selector| Segment::real(selector, 0x93)),
        };
        let state = self.engine.state();
        let retired = state.retired;
        state.clone_from(&self.templates[snippet.system as usize]);
        // Engines may take it that this only grows.
        state.retired = retired;
        self.entered_at = retired;
        state.seg = segments;
        state.gpr = snippet.gpr;
        state.rip = snippet.rip;
        state.rflags = snippet.rflags;
        if snippet.system == System::V86 {
            state.rflags |= Rflags::VM.bits();
        }
        state.vector.clone_from(&snippet.vector);
        state.vector.bytes[VectorState::XSTATE_BV] = 7;
        if std::mem::replace(&mut self.system, snippet.system) != snippet.system {
            self.engine.state_changed();
        }
    }

    fn lay(&self, at: u64, bytes: &[u8]) {
        self.memory.lay(at, bytes);
        self.tell_stored(at, bytes.len());
    }

    /// Engines must not run code that has been overwritten.
    fn tell_stored(&self, at: u64, len: usize) {
        for gpn in at / PAGE..=(at + len.max(1) as u64 - 1) / PAGE {
            self.ram.code().stored(gpn);
        }
    }

    fn leave(&mut self, snippet: &Snippet, end: Option<End>) -> Ending {
        let mut ending = Ending::only(End::Endless);
        let ram = Arc::clone(&self.ram);
        let state = self.engine.state();
        ending.gpr = state.gpr;
        ending.rip = state.rip;
        ending.rflags = state.rflags;
        ending.selectors = state.seg.map(|segment| segment.selector);
        ending.retired = state.retired - self.entered_at;
        ending.vector.clone_from(&state.vector);
        ending.end = match end {
            Some(end) => end,
            None => match snippet.system {
                System::Long => read_frame(&ram, state, &mut ending),
                System::Protected | System::V86 => kernel32::read_frame(&ram, state, &mut ending),
                System::Real => kernel32::read_real_frame(&ram, state, &mut ending),
            },
        };
        let changes = &mut ending.changes;
        let mut pages = [u64::MAX; 2];
        let code = ram.code();
        let tally = self.memory.changes(snippet.bits, |_, at, value| {
            changes.push((at, value));
            if pages[0] != at / PAGE {
                pages[0] = at / PAGE;
                code.stored(pages[0]);
            }
        });
        if tally.changed as usize > changes.len() {
            // Any page may have been put back.
            for area in areas(snippet.bits).iter().filter(|area| area.write) {
                self.tell_stored(area.start, area.len as usize);
            }
        }
        let mut tally = tally;
        if snippet.system == System::Real {
            for it in &mut self.around {
                it.put_back(&ram, &mut tally);
            }
        }
        (ending.changed, ending.hash) = (tally.changed, tally.hash);
        self.clear(snippet);
        ending
    }

    fn clear(&self, snippet: &Snippet) {
        let clear = |at: u64, len: usize| {
            self.memory.clear(at, len);
            self.tell_stored(at, len);
        };
        if snippet.pattern != 0 {
            clear(Memory::pattern_at(snippet.bits), image::PATTERN_LEN);
        }
        clear(snippet.at(), snippet.code.len() + 2);
        for piece in &snippet.memory {
            clear(piece.at, piece.bytes.len());
        }
    }

    /// Runs one, by whole runs of the engine.
    pub fn run_one(&mut self, snippet: &Snippet) -> Ending {
        self.enter(snippet);
        self.watch.begin();
        let engine = &mut self.engine;
        let ran = quietly(|| catch_unwind(AssertUnwindSafe(|| engine.run(BUDGET))));
        let late = self.watch.end();
        let Ok(mut exit) = ran else { return self.replace() };
        if late && exit != Exit::Halted {
            exit = Exit::Attention;
        }
        let end = match exit {
            Exit::Halted => None,
            Exit::Budget | Exit::Attention => Some(End::Endless),
            Exit::Shutdown => Some(End::Lost("triple fault".to_owned())),
        };
        self.leave(snippet, end)
    }

    /// A new engine in place of one that has panicked.
    fn replace(&mut self) -> Ending {
        if let Ok(fresh) = Self::new(self.kind, self.making, &self.model) {
            *self = fresh;
        }
        Ending::only(End::Lost("the engine panicked".to_owned()))
    }

    /// Runs one, an instruction at a time; `look` sees the state before each. For the interpreter, whose
    /// steps are instructions.
    pub fn trace(&mut self, snippet: &Snippet, mut look: impl FnMut(&CpuState, &[u8])) -> Ending {
        self.enter(snippet);
        for _ in 0..BUDGET {
            let ram = Arc::clone(&self.ram);
            let state = self.engine.state();
            let kernel = state.cpl == 0 && snippet.system != System::Real;
            if kernel || state.activity != Activity::Running {
                break;
            }
            let mut bytes = [0; 15];
            let len = code_bytes(&ram, state, &mut bytes);
            look(state, &bytes[..len]);
            self.engine.step();
        }
        let end = match self.engine.run(1) {
            Exit::Halted => None,
            Exit::Shutdown => Some(End::Lost("triple fault".to_owned())),
            Exit::Budget | Exit::Attention => Some(End::Endless),
        };
        self.leave(snippet, end)
    }
}

/// Bytes at the state's RIP, also beyond what may be executed: a fetch fault still has its instruction. How many.
fn code_bytes(ram: &GuestRam, state: &CpuState, bytes: &mut [u8; 15]) -> usize {
    let base = if state.is_64bit() { 0 } else { state.seg[sreg::CS].base };
    for (n, byte) in bytes.iter_mut().enumerate() {
        let at = base.wrapping_add(state.rip).wrapping_add(n as u64);
        let mut all = HIGH_AREAS.iter().chain(&LOW_AREAS);
        let paging = state.cr0(Cr0::PG);
        let near = !paging
            || all.any(|area| area.execute && at.wrapping_sub(area.start) < area.len + PAGE);
        let Some(host) = near.then(|| ram.host_ptr(Gpa(at), 1)).flatten() else { return n };
        // SAFETY: one byte of RAM that stays mapped; the engine doesn't run.
        *byte = unsafe { host.read() };
    }
    bytes.len()
}

/// The exception that led to the HLT, from the kernel's stack.
fn read_frame(ram: &GuestRam, state: &CpuState, ending: &mut Ending) -> End {
    let vector = (state.rip.wrapping_sub(1 + KERNEL + HANDLERS) / HANDLER_STEP) as u8;
    let has_code = has_error_code(vector);
    let word = |n: u64| get(ram, state.gpr[4].wrapping_sub(KERNEL).wrapping_add(8 * n));
    let at = u64::from(has_code);
    ending.rip = word(at);
    ending.selectors[sreg::CS] = word(at + 1) as u16;
    ending.rflags = word(at + 2);
    ending.gpr[4] = word(at + 3);
    ending.selectors[sreg::SS] = word(at + 4) as u16;
    // HLT and the delivery are not the snippet's.
    ending.retired = ending.retired.saturating_sub(1);
    let error = if has_code { word(0) as u32 } else { 0 };
    End::Exception { vector, error, cr2: state.cr2 }
}

/// Memory that real-mode code reaches beside its own, and how it is between snippets.
struct Around {
    start: u64,
    before: Vec<u64>,
}

impl Around {
    fn all(ram: &Arc<GuestRam>) -> Vec<Self> {
        // Below and above the snippet's own; then what lies beyond 1 MiB.
        let spans =
            [(0, LOW_START), (LOW_START + LOW_LEN as u64, 0xa_0000), (0x10_0000, 0x11_0000)];
        let of = |(start, end): (u64, u64)| {
            let words = (start..end).step_by(8).map(|at| get(ram, at)).collect();
            Self { start, before: words }
        };
        spans.into_iter().map(of).collect()
    }

    /// Counts what has changed, and puts it back.
    fn put_back(&mut self, ram: &Arc<GuestRam>, tally: &mut Tally) {
        let len = 8 * self.before.len();
        let Some(host) = ram.host_ptr(Gpa(self.start), len) else { return };
        // SAFETY: so many bytes of RAM, page aligned, that stay mapped; no engine runs.
        let now = unsafe { std::slice::from_raw_parts_mut(host.cast::<u64>(), len / 8) };
        let pages = now.chunks_mut(PAGE as usize / 8).zip(self.before.chunks(PAGE as usize / 8));
        for (n, (now, before)) in pages.enumerate() {
            if now == before {
                continue;
            }
            let at = self.start + n as u64 * PAGE;
            for (word, value) in now.iter().enumerate().filter(|&(word, it)| *it != before[word]) {
                tally.add(at + 8 * word as u64, *value);
            }
            now.copy_from_slice(before);
            ram.code().stored(at / PAGE);
        }
    }
}

impl Runner for EngineRunner {
    fn name(&self) -> &'static str {
        self.name
    }

    fn takes(&self, _: System) -> bool {
        true
    }

    fn start(&mut self, _: &[Snippet]) -> Result<(), RunnerError> {
        Ok(())
    }

    fn finish(&mut self, batch: &[Snippet]) -> Result<Vec<Ending>, RunnerError> {
        Ok(batch.iter().map(|snippet| self.run_one(snippet)).collect())
    }
}

/// Eight bytes of RAM; zero where there is none.
pub(super) fn get(ram: &GuestRam, at: u64) -> u64 {
    // SAFETY: eight bytes of RAM that stay mapped; no engine runs.
    ram.host_ptr(Gpa(at), 8).map_or(0, |host| unsafe { host.cast::<u64>().read_unaligned() })
}

fn put(ram: &GuestRam, at: u64, value: u64) {
    if let Some(host) = ram.host_ptr(Gpa(at), 8) {
        // SAFETY: eight bytes of RAM that stay mapped; no engine runs.
        unsafe { host.cast::<u64>().write_unaligned(value) };
    }
}
