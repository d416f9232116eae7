//! The child's side: set-up and signal handlers.
//!
//! See the parent module. Everything here runs in the child, after the fork, with no thread but this one.

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::time::Duration;

use xenolith_cpu::state::XSAVE_AREA_SIZE;

use super::super::Bits;
use super::super::image::{self, Memory};
use super::super::layout::{self, HIGH_LEN, HIGH_START, LOCAL, LOW_LEN, LOW_START, UserDesc};
use super::record::{self, Answer, ENDLESS, Head, Reader, SYSTEM_CALL, Shared};
use crate::bt::probe;

pub const STACK_LEN: usize = 1 << 16;
/// Value of `Shared::stage` once all is set up.
pub const READY: u32 = 100;
/// Processor time between two looks at a snippet, and looks that it may survive.
const TICK_US: i64 = 10_000;
const TICKS_MAX: u32 = 3;

/// What the child needs to know, made before the fork.
#[derive(Debug)]
pub struct Setup {
    bits: Bits,
    memory_file: i32,
    shared: *mut Shared,
    stack: *mut u8,
    local: [UserDesc; LOCAL.len()],
}

// SAFETY: the pointers lead to mappings that the owner of this value keeps.
unsafe impl Send for Setup {}

/// For the handler: this process is the child, and has one batch at a time.
static SHARED: AtomicPtr<Shared> = AtomicPtr::new(ptr::null_mut());
static STATE: AtomicPtr<State> = AtomicPtr::new(ptr::null_mut());

/// What the handler remembers between two signals.
struct State {
    memory: Memory,
    reader: Reader,
    /// The snippet that runs: where its pieces begin, and its head.
    pieces: Reader,
    head: Head,
    ticks: u32,
}

impl Setup {
    pub fn new(bits: Bits, memory_file: i32, shared: *mut Shared, stack: *mut u8) -> Box<Self> {
        // Asked here, where libc may be.
        can_write_bases();
        Box::new(Self { bits, memory_file, shared, stack, local: layout::local_descriptors() })
    }

    /// Everything that the child does. Called after the fork.
    pub fn run(&self) -> ! {
        // SAFETY: the shared block is mapped and valid for any content.
        let shared = unsafe { &*self.shared };
        let mut stage = 1;
        let mut step = |done: bool| {
            if !done {
                exit_now(2);
            }
            stage += 1;
            shared.stage.store(stage, Ordering::SeqCst);
        };
        // SAFETY: plain call; the child goes when its parent goes.
        step(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } == 0);
        probe::withdraw();
        step(self.map_areas());
        let Some(memory) = self.map_memory() else { exit_now(2) };
        for descriptor in &self.local {
            const WRITE: i32 = 0x11;
            // SAFETY: adds an entry to this process's own LDT. A kernel without LDTs refuses; then nobody asks
            // for them.
            unsafe {
                libc::syscall(
                    libc::SYS_modify_ldt,
                    WRITE,
                    ptr::from_ref(descriptor),
                    size_of::<UserDesc>(),
                )
            };
        }
        let reader = Reader::new(shared.input.get().cast());
        let mut state = State {
            memory,
            reader,
            pieces: reader,
            // SAFETY: zeros are a valid head.
            head: unsafe { std::mem::zeroed() },
            ticks: 0,
        };
        SHARED.store(self.shared, Ordering::SeqCst);
        STATE.store(&raw mut state, Ordering::SeqCst);
        step(self.install_handlers());
        step(start_timer());
        let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: plain call: a core file of every lost child helps nobody.
        step(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core) } == 0);
        step(confine());
        // SAFETY: enters the handler, which never comes back here.
        unsafe { std::arch::asm!("ud2", options(noreturn)) }
    }

    /// The snippet's view of its memory.
    fn map_areas(&self) -> bool {
        layout::areas(self.bits).iter().all(|area| {
            let write = if area.write { libc::PROT_WRITE } else { 0 };
            let execute = if area.execute { libc::PROT_EXEC } else { 0 };
            let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE;
            let target = ptr::with_exposed_provenance_mut(area.start as usize);
            let offset = if area.start >= HIGH_START {
                area.start - HIGH_START
            } else {
                HIGH_LEN as u64 + area.start - LOW_START
            };
            let protection = libc::PROT_READ | write | execute;
            let (len, file) = (area.len as usize, self.memory_file);
            // SAFETY: never replaces a mapping: the address must be free.
            let mapped = unsafe { libc::mmap(target, len, protection, flags, file, offset as i64) };
            mapped == target
        })
    }

    /// The handler's view of it, and the model.
    fn map_memory(&self) -> Option<Memory> {
        let map = |file: i32| {
            let kind = if file < 0 { libc::MAP_ANONYMOUS } else { 0 };
            let flags = libc::MAP_SHARED | libc::MAP_POPULATE | kind;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let len = HIGH_LEN + LOW_LEN;
            // SAFETY: a new mapping at an address of the kernel's choice.
            let at = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, file, 0) };
            (at != libc::MAP_FAILED).then_some(at.cast::<u8>())
        };
        let (memory, model) = (map(self.memory_file)?, map(-1)?);
        // SAFETY: both are as long as the two pieces together, zero, and stay mapped.
        let memory = unsafe {
            Memory::new(memory, memory.wrapping_add(HIGH_LEN), model, model.wrapping_add(HIGH_LEN))
        };
        Some(memory)
    }

    fn install_handlers(&self) -> bool {
        let alternate = libc::stack_t { ss_sp: self.stack.cast(), ss_flags: 0, ss_size: STACK_LEN };
        // SAFETY: the stack is mapped and used by nobody else.
        if unsafe { libc::sigaltstack(&raw const alternate, ptr::null_mut()) } != 0 {
            return false;
        }
        // SAFETY: all zeros is a valid sigaction.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let entry: unsafe extern "C" fn(i32, *mut libc::siginfo_t, *mut c_void) =
            xenolith_snippet_signal_entry;
        action.sa_sigaction = entry as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY: `action` is ours. No tick while an ending is looked at.
        unsafe { libc::sigaddset(&raw mut action.sa_mask, libc::SIGVTALRM) };
        const SIGNALS: [i32; 7] = [
            libc::SIGILL,
            libc::SIGTRAP,
            libc::SIGBUS,
            libc::SIGFPE,
            libc::SIGSEGV,
            libc::SIGSYS,
            libc::SIGVTALRM,
        ];
        // SAFETY: all zeros is a valid set.
        let mut mask: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `mask` is ours.
        unsafe { libc::sigfillset(&raw mut mask) };
        for signal in SIGNALS {
            // SAFETY: the handler is one for SA_SIGINFO.
            if unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } != 0 {
                return false;
            }
            // SAFETY: `mask` is ours.
            unsafe { libc::sigdelset(&raw mut mask, signal) };
        }
        // SAFETY: blocks what the parent's terminal sends, whose handlers would be the parent's.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const mask, ptr::null_mut()) == 0 }
    }
}

/// SIGVTALRM now and then while the child computes.
fn start_timer() -> bool {
    let tick = libc::timeval { tv_sec: 0, tv_usec: TICK_US };
    let timer = libc::itimerval { it_interval: tick, it_value: tick };
    // SAFETY: plain call.
    unsafe {
        libc::syscall(libc::SYS_setitimer, 1, &raw const timer, ptr::null::<libc::itimerval>()) == 0
    }
}

/// Allows what the handler needs, and nothing else.
fn confine() -> bool {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    const TRAP: u32 = 0x0003_0000;
    const ARCH_X86_64: u32 = 0xc000_003e;
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let number = |n: i64| n as u32;
    // A snippet lies below 4 GiB, this program above, unless it was linked otherwise: then a snippet's own exit
    // ends the child.
    let below = (on_signal as *const () as u64) >> 32 == 0;
    let mut program = [
        op(LOAD_WORD, 0, 0, 4),
        op(JUMP_EQUAL, 0, 6, ARCH_X86_64),
        op(LOAD_WORD, 0, 0, 12),
        op(JUMP_EQUAL, if below { 0 } else { 4 }, 0, 0),
        op(LOAD_WORD, 0, 0, 0),
        op(JUMP_EQUAL, 3, 0, number(libc::SYS_rt_sigreturn)),
        op(JUMP_EQUAL, 2, 0, number(libc::SYS_futex)),
        op(JUMP_EQUAL, 1, 0, number(libc::SYS_exit_group)),
        op(RETURN, 0, 0, TRAP),
        op(RETURN, 0, 0, ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: plain call: a filter without privileges needs it.
    let done = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } == 0;
    const MODE_FILTER: i32 = 2;
    // SAFETY: the program is well-formed and copied by the kernel.
    done && unsafe { libc::prctl(libc::PR_SET_SECCOMP, MODE_FILTER, &raw const filter) } == 0
}

/// Ends the process without touching thread-local storage.
fn exit_now(status: i32) -> ! {
    // SAFETY: exit_group does not return.
    unsafe {
        std::arch::asm!(
            "syscall", in("rax") libc::SYS_exit_group, in("rdi") status, options(noreturn, nostack),
        );
    }
}

unsafe extern "C" {
    fn xenolith_snippet_signal_entry(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void);
}

// Clears AC before any compiled code may access memory unaligned, and NT and ID, which a signal's return does not
// load: they would stay for the next snippet.
std::arch::global_asm!(
    ".globl xenolith_snippet_signal_entry",
    "xenolith_snippet_signal_entry:",
    "pushfq",
    "and qword ptr [rsp], ~0x244000",
    "popfq",
    "jmp {handler}",
    handler = sym on_signal,
);

/// The first signal begins the first batch, every other one ends a snippet.
extern "C" fn on_signal(signal: i32, _info: *mut libc::siginfo_t, context: *mut c_void) {
    let context: *mut libc::ucontext_t = context.cast();
    // SAFETY: the kernel passes a valid context, and nothing else refers to it.
    let context = unsafe { &mut *context };
    // SAFETY: set before the first signal; only this handler uses it.
    let state = unsafe { &mut *STATE.load(Ordering::Relaxed) };
    let shared = SHARED.load(Ordering::Relaxed);
    // SAFETY: the block is mapped and valid for any content.
    let counters = unsafe { &*shared };
    if counters.stage.load(Ordering::Relaxed) == READY {
        let trap = match signal {
            libc::SIGVTALRM if state.ticks < TICKS_MAX => {
                state.ticks += 1;
                return;
            }
            libc::SIGVTALRM => ENDLESS,
            libc::SIGSYS => SYSTEM_CALL,
            _ => context.uc_mcontext.gregs[libc::REG_TRAPNO as usize] as u32,
        };
        let index = counters.index.load(Ordering::Relaxed) as usize;
        // SAFETY: the child writes the answers while a batch runs, and there is one for every snippet.
        let answer = unsafe { &mut *counters.answers[index].get() };
        record_ending(answer, trap, context, state);
        let through = index as u32 + 1;
        counters.index.store(through, Ordering::SeqCst);
        if through == counters.count.load(Ordering::SeqCst) {
            finish_batch(counters);
            await_batch(counters, state);
        }
    } else if signal == libc::SIGVTALRM {
        return;
    } else {
        counters.stage.store(READY, Ordering::SeqCst);
        await_batch(counters, state);
    }
    lay_out(state);
    load(state, context);
}

fn finish_batch(counters: &Shared) {
    counters.done.store(counters.wanted.load(Ordering::SeqCst), Ordering::SeqCst);
    record::wake(&counters.done);
}

/// Waits for a batch that isn't empty.
fn await_batch(counters: &Shared, state: &mut State) {
    let wanted: &AtomicU32 = &counters.wanted;
    loop {
        let done = counters.done.load(Ordering::SeqCst);
        if wanted.load(Ordering::SeqCst) == done {
            record::wait(wanted, done, Duration::from_secs(1));
        } else if counters.count.load(Ordering::SeqCst) == 0 {
            // Nothing fitted; the parent sees that.
            finish_batch(counters);
        } else {
            state.reader = Reader::new(counters.input.get().cast());
            return;
        }
    }
}

/// Memory of the next snippet.
fn lay_out(state: &mut State) {
    state.head = state.reader.head();
    state.pieces = state.reader;
    state.ticks = 0;
    let bits = record::bits(state.head.bits);
    if state.head.pattern != 0 {
        state.memory.lay(Memory::pattern_at(bits), image::pattern(state.head.pattern));
    }
    for _ in 0..state.head.pieces {
        let (at, bytes) = state.reader.piece();
        state.memory.lay(at, bytes);
    }
}

/// Order of `gregs` against the general registers' numbers.
const GREGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// The kernel's XSAVE image in a signal frame.
fn xstate(context: &mut libc::ucontext_t) -> &mut [u8] {
    let xstate: *mut u8 = context.uc_mcontext.fpregs.cast();
    // SAFETY: with AVX enabled the frame is at least FXSAVE area, header and YMM halves long.
    unsafe { std::slice::from_raw_parts_mut(xstate, XSAVE_AREA_SIZE) }
}

/// Puts the next snippet's registers into the context.
fn load(state: &State, context: &mut libc::ucontext_t) {
    let head = &state.head;
    let gregs = &mut context.uc_mcontext.gregs;
    for (n, greg) in GREGS.iter().enumerate() {
        gregs[*greg as usize] = head.gpr[n] as i64;
    }
    gregs[libc::REG_RIP as usize] = head.rip as i64;
    gregs[libc::REG_EFL as usize] = head.rflags as i64;
    let [es, cs, ss, ds, fs, gs] = head.selectors;
    gregs[libc::REG_CSGSFS as usize] = i64::from(cs) | i64::from(ss) << 48;
    // SS is taken from the context, as it is.
    const SIGCONTEXT_SS: u64 = 2;
    const STRICT_RESTORE_SS: u64 = 4;
    context.uc_flags |= SIGCONTEXT_SS | STRICT_RESTORE_SS;
    let xstate = xstate(context);
    // The last 96 bytes of the legacy area describe the frame to the kernel, and MXCSR's mask is its own.
    xstate[..28].copy_from_slice(&head.vector[..28]);
    xstate[32..416].copy_from_slice(&head.vector[32..416]);
    xstate[512..520].copy_from_slice(&7u64.to_le_bytes());
    xstate[576..].copy_from_slice(&head.vector[576..]);
    load_data_segments([es, ds, fs, gs]);
}

/// ES, DS, FS and GS: the signal frame leaves them in the registers. Bases of FS and GS become zero where the
/// selector is null, as in a new process.
fn load_data_segments([es, ds, fs, gs]: [u16; 4]) {
    // SAFETY: loads selectors that user code may load; this code uses none of the segments.
    unsafe {
        std::arch::asm!(
            "mov es, {0:x}", "mov ds, {1:x}", "mov fs, {2:x}", "mov gs, {3:x}",
            in(reg) es, in(reg) ds, in(reg) fs, in(reg) gs, options(nomem, nostack),
        );
    }
    // Some processors keep a base under a null selector.
    if fs < 4 && can_write_bases() {
        // SAFETY: the kernel has enabled the instruction; nothing here uses FS.
        unsafe { std::arch::asm!("wrfsbase {0}", in(reg) 0u64, options(nomem, nostack)) };
    }
    if gs < 4 && can_write_bases() {
        // SAFETY: as above, for GS.
        unsafe { std::arch::asm!("wrgsbase {0}", in(reg) 0u64, options(nomem, nostack)) };
    }
}

/// CR4.FSGSBASE, as the kernel tells programs. Asked once, before the fork.
fn can_write_bases() -> bool {
    const HWCAP2_FSGSBASE: u64 = 1 << 1;
    static ANSWER: AtomicU32 = AtomicU32::new(2);
    match ANSWER.load(Ordering::Relaxed) {
        2 => {
            // SAFETY: AT_HWCAP2 is a plain query of the process's own start-up block.
            let has = unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_FSGSBASE != 0;
            ANSWER.store(u32::from(has), Ordering::Relaxed);
            has
        }
        answer => answer == 1,
    }
}

fn data_selectors() -> [u16; 4] {
    let (es, ds, fs, gs): (u16, u16, u16, u16);
    // SAFETY: reads selectors into general registers.
    unsafe {
        std::arch::asm!(
            "mov {0:x}, es", "mov {1:x}, ds", "mov {2:x}, fs", "mov {3:x}, gs",
            out(reg) es, out(reg) ds, out(reg) fs, out(reg) gs, options(nomem, nostack),
        );
    }
    [es, ds, fs, gs]
}

/// Keeps how the snippet ended, and clears its memory away.
fn record_ending(
    answer: &mut Answer,
    trap: u32,
    context: &mut libc::ucontext_t,
    state: &mut State,
) {
    let gregs = &context.uc_mcontext.gregs;
    for (n, greg) in GREGS.iter().enumerate() {
        answer.gpr[n] = gregs[*greg as usize] as u64;
    }
    answer.rip = gregs[libc::REG_RIP as usize] as u64;
    answer.rflags = gregs[libc::REG_EFL as usize] as u64;
    answer.cr2 = gregs[libc::REG_CR2 as usize] as u64;
    answer.error = gregs[libc::REG_ERR as usize] as u32;
    answer.trap = trap;
    let packed = gregs[libc::REG_CSGSFS as usize] as u64;
    let [es, ds, fs, gs] = data_selectors();
    answer.selectors = [es, packed as u16, (packed >> 48) as u16, ds, fs, gs];
    record_vector(&mut answer.vector, xstate(context));
    let bits = record::bits(state.head.bits);
    let changes = &mut answer.changes;
    let tally = state.memory.changes(bits, |n, at, value| {
        if let Some(slot) = changes.get_mut(n) {
            *slot = [at, value];
        }
    });
    (answer.changed, answer.hash) = (tally.changed, tally.hash);
    if state.head.pattern != 0 {
        state.memory.clear(Memory::pattern_at(bits), image::PATTERN_LEN);
    }
    let mut pieces = state.pieces;
    for _ in 0..state.head.pieces {
        let (at, bytes) = pieces.piece();
        state.memory.clear(at, bytes.len());
    }
}

/// Components that are in their initial state may not be in the image.
fn record_vector(answer: &mut [u8; XSAVE_AREA_SIZE], xstate: &[u8]) {
    let present = xstate[512];
    answer.copy_from_slice(xstate);
    if present & 1 == 0 {
        answer[..24].fill(0);
        answer[..2].copy_from_slice(&0x37fu16.to_le_bytes());
        answer[32..160].fill(0);
    }
    if present & 2 == 0 {
        answer[160..416].fill(0);
    }
    if present & 4 == 0 {
        answer[576..].fill(0);
    }
    answer[512..520].copy_from_slice(&7u64.to_le_bytes());
}
