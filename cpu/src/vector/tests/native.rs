//! The host as oracle: runs an instruction as it is, un-renamed, with all registers loaded.
//!
//! Scheme: a frame below 2 GiB holds registers in and out, so the harness code addresses it absolutely
//! and every general register can have the case's value:
//!
//! ```text
//! entry: push callee-saved; mov [HOST_RSP], rsp; xrstor64 [IN]; popfq; mov r, [GPR + 8r] all 16
//! I:     <instruction>
//! done:  mov [GPR + 8r], r all 16; mov rsp, [HOST_RSP]; pushfq/pop [FLAGS];
//!        push 2/popfq; xsave64 [OUT]
//!        fninit; ldmxcsr; vzeroupper; pop callee-saved; ret
//! ```
//!
//! A signal in between is recorded with the processor's vector and continues at `done`: what XSAVE
//! stores is then the state at the fault. One run at a time (a lock); signals use an alternate stack.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, Once};

use iced_x86::code_asm::{CodeAssembler, ptr, registers as r};

use crate::host_code::HostCode;
use crate::state::XSAVE_AREA_SIZE;
use crate::vector::simd_fault;

pub const SCRATCH_LEN: usize = 4096;
const CODE_LEN: usize = 4096;

#[repr(C, align(64))]
struct Frame {
    input: [u8; 4096],
    output: [u8; 4096],
    gpr: [u64; 16],
    flags: u64,
    host_rsp: u64,
    host_mxcsr: u32,
    trap: i64,
    error: i64,
    cr2: i64,
}

/// Frame, then code; scratch with guard pages around it.
#[derive(Debug)]
pub struct Native {
    frame: *mut Frame,
    code: *mut u8,
    scratch: *mut u8,
}

// SAFETY: the mappings are process-wide and used under the lock of `native` only.
unsafe impl Send for Native {}

/// For the signal handler: bounds of the code, address of `done`, address of the frame.
static CODE_START: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);
static FRAME: AtomicU64 = AtomicU64::new(0);

/// What the host did.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub state: Vec<u8>,
    pub gpr: [u64; 16],
    pub flags: u64,
    /// Exception vector, if it faulted.
    pub trap: Option<u8>,
    /// Error code and CR2 of the fault.
    pub error: u32,
    pub cr2: u64,
}

fn map(len: usize, prot: i32, low: bool) -> *mut u8 {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | if low { libc::MAP_32BIT } else { 0 };
    // SAFETY: a new anonymous mapping disturbs nothing.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at.cast()
}

const RWX: i32 = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

pub fn native() -> MutexGuard<'static, Native> {
    static NATIVE: Mutex<Option<&'static Mutex<Native>>> = Mutex::new(None);
    install_handlers();
    let mut slot = NATIVE.lock().unwrap_or_else(|poison| poison.into_inner());
    let native = slot.get_or_insert_with(|| {
        let frame: *mut Frame = map(size_of::<Frame>().next_multiple_of(4096), RW, true).cast();
        let code = map(CODE_LEN, RWX, true);
        let guarded = map(SCRATCH_LEN + 2 * 4096, libc::PROT_NONE, true);
        // SAFETY: inside the mapping just made.
        let scratch = unsafe { guarded.add(4096) };
        // SAFETY: as above.
        assert_eq!(unsafe { libc::mprotect(scratch.cast(), SCRATCH_LEN, RW) }, 0);
        FRAME.store(frame as u64, Ordering::SeqCst);
        CODE_START.store(code as u64, Ordering::SeqCst);
        Box::leak(Box::new(Mutex::new(Native { frame, code, scratch })))
    });
    native.lock().unwrap_or_else(|poison| poison.into_inner())
}

/// Installs the signal handlers and this thread's alternate stack.
pub fn install_handlers() {
    static ONCE: Once = Once::new();
    thread_local! {
        static STACK: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    }
    if !STACK.replace(true) {
        let len = 256 * 1024;
        let stack = libc::stack_t { ss_sp: map(len, RW, false).cast(), ss_flags: 0, ss_size: len };
        // SAFETY: the stack is a fresh mapping, never freed.
        let done = unsafe { libc::sigaltstack(&stack, std::ptr::null_mut()) };
        assert_eq!(done, 0);
    }
    ONCE.call_once(|| {
        for signal in [libc::SIGFPE, libc::SIGSEGV, libc::SIGILL, libc::SIGBUS] {
            // SAFETY: all zeros is a valid sigaction.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            // SAFETY: the handler is async-signal-safe.
            let done = unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) };
            assert_eq!(done, 0);
        }
    });
}

extern "C" fn on_signal(signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a ucontext_t.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let registers = &mut context.uc_mcontext.gregs;
    let pc = registers[libc::REG_RIP as usize] as u64;
    if signal == libc::SIGFPE
        && let Some(resume) = simd_fault::recover(pc)
    {
        registers[libc::REG_RIP as usize] = resume as i64;
        return;
    }
    let start = CODE_START.load(Ordering::SeqCst);
    if start == 0 || !(start..start + CODE_LEN as u64).contains(&pc) {
        // Not ours: the default action, on return.
        // SAFETY: SIG_DFL is always valid.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    let frame = FRAME.load(Ordering::SeqCst) as *mut Frame;
    let (trap, error) = (registers[libc::REG_TRAPNO as usize], registers[libc::REG_ERR as usize]);
    let cr2 = registers[libc::REG_CR2 as usize];
    // SAFETY: the frame is mapped for good, and the interrupted code is the only other user.
    unsafe { (*frame).trap = trap };
    // SAFETY: as above.
    unsafe { (*frame).error = error };
    // SAFETY: as above.
    unsafe { (*frame).cr2 = cr2 };
    registers[libc::REG_RIP as usize] = DONE.load(Ordering::SeqCst) as i64;
}

const GPRS: [iced_x86::code_asm::AsmRegister64; 16] = [
    r::rax,
    r::rcx,
    r::rdx,
    r::rbx,
    r::rsp,
    r::rbp,
    r::rsi,
    r::rdi,
    r::r8,
    r::r9,
    r::r10,
    r::r11,
    r::r12,
    r::r13,
    r::r14,
    r::r15,
];

impl Native {
    /// Address of the scratch memory; a page before and after can't be accessed.
    pub fn scratch_address(&self) -> u64 {
        self.scratch as u64
    }
    pub fn scratch(&mut self) -> &mut [u8] {
        // SAFETY: mapped for good; `&mut self` makes it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.scratch, SCRATCH_LEN) }
    }

    fn field(&self, offset: usize) -> i32 {
        i32::try_from(self.frame as usize + offset).expect("MAP_32BIT")
    }

    /// Builds the harness around `insn`; returns the address at which the instruction lies.
    pub fn place(&mut self, insn: &[u8]) -> u64 {
        let (before, after) = self.harness();
        let at = self.code as u64 + before.len() as u64;
        self.put(&[&before[..], insn, &after[..]].concat());
        DONE.store(at + insn.len() as u64, Ordering::SeqCst);
        at
    }

    /// The same with `insn` in 32-bit code: far jumps to Linux's user code segments around it.
    pub fn place_32(&mut self, insn: &[u8]) -> u64 {
        const CODE_32: u16 = 0x23;
        const CODE_64: u16 = 0x33;
        let (mut before, after) = self.harness();
        // mov eax, DATA; mov ds, eax; mov es, eax: 64-bit processes have null there.
        before.splice(0..0, *b"\xb8\x2b\0\0\0\x8e\xd8\x8e\xc0");
        let base = u32::try_from(self.code as u64).expect("MAP_32BIT");
        // jmp far [pointer]; insn; jmp far CODE_64:after
        let at = base + before.len() as u32 + 7;
        let back = at + insn.len() as u32;
        let pointer = base + CODE_LEN as u32 - 8;
        let mut all = before;
        all.extend_from_slice(b"\xff\x2c\x25");
        all.extend_from_slice(&pointer.to_le_bytes());
        all.extend_from_slice(insn);
        all.push(0xea);
        all.extend_from_slice(&(back + 7).to_le_bytes());
        all.extend_from_slice(&CODE_64.to_le_bytes());
        all.extend_from_slice(&after);
        all.resize(CODE_LEN - 8, 0xcc);
        all.extend_from_slice(&at.to_le_bytes());
        all.extend_from_slice(&CODE_32.to_le_bytes());
        self.put(&all);
        DONE.store(u64::from(back), Ordering::SeqCst);
        u64::from(at)
    }

    fn put(&mut self, all: &[u8]) {
        assert!(all.len() <= CODE_LEN);
        // SAFETY: the mapping is writable, large enough, and `&mut self` makes it exclusive.
        unsafe { std::ptr::copy_nonoverlapping(all.as_ptr(), self.code, all.len()) };
    }

    /// The code before and after the instruction.
    fn harness(&self) -> (Vec<u8>, Vec<u8>) {
        let gpr = self.field(std::mem::offset_of!(Frame, gpr));
        let flags = self.field(std::mem::offset_of!(Frame, flags));
        let host_rsp = self.field(std::mem::offset_of!(Frame, host_rsp));
        let host_mxcsr = self.field(std::mem::offset_of!(Frame, host_mxcsr));
        let input = self.field(std::mem::offset_of!(Frame, input));
        let output = self.field(std::mem::offset_of!(Frame, output));
        let build = || -> Result<(Vec<u8>, Vec<u8>), iced_x86::IcedError> {
            let saved = [r::rbx, r::rbp, r::r12, r::r13, r::r14, r::r15];
            let mut a = CodeAssembler::new(64)?;
            for register in saved {
                a.push(register)?;
            }
            a.mov(ptr(host_rsp), r::rsp)?;
            a.mov(r::eax, 7)?;
            a.xor(r::edx, r::edx)?;
            a.xrstor64(ptr(input))?;
            a.push(iced_x86::code_asm::qword_ptr(flags))?;
            a.popfq()?;
            for (n, register) in GPRS.into_iter().enumerate() {
                a.mov(register, ptr(gpr + 8 * n as i32))?;
            }
            let before = a.assemble(0)?;
            a.reset();
            for (n, register) in GPRS.into_iter().enumerate() {
                a.mov(ptr(gpr + 8 * n as i32), register)?;
            }
            a.mov(r::rsp, ptr(host_rsp))?;
            a.pushfq()?;
            a.pop(iced_x86::code_asm::qword_ptr(flags))?;
            // Direction and alignment check as Rust code wants them.
            a.push(2)?;
            a.popfq()?;
            a.mov(r::eax, 7)?;
            a.xor(r::edx, r::edx)?;
            a.xsave64(ptr(output))?;
            a.fninit()?;
            a.ldmxcsr(ptr(host_mxcsr))?;
            a.vzeroupper()?;
            for register in saved.into_iter().rev() {
                a.pop(register)?;
            }
            a.ret()?;
            Ok((before, a.assemble(0)?))
        };
        build().expect("the harness encodes")
    }

    /// Runs what was placed. `state` is an XSAVE image.
    pub fn run(&mut self, state: &[u8], gpr: &[u64; 16], flags: u64) -> Outcome {
        // SAFETY: mapped for good; `&mut self` makes it exclusive.
        let frame = unsafe { &mut *self.frame };
        frame.input.fill(0);
        frame.output.fill(0);
        frame.input[..XSAVE_AREA_SIZE].copy_from_slice(state);
        frame.gpr = *gpr;
        frame.flags = flags;
        frame.host_mxcsr = 0x1f80;
        frame.trap = -1;
        // SAFETY: `place` put a function of this type there.
        let entry: extern "sysv64" fn() =
            unsafe { std::mem::transmute::<*mut u8, extern "sysv64" fn()>(self.code) };
        entry();
        // SAFETY: as above; read afresh, since the handler wrote behind the reference.
        let frame = unsafe { &*std::hint::black_box(self.frame) };
        Outcome {
            state: frame.output[..XSAVE_AREA_SIZE].to_vec(),
            gpr: frame.gpr,
            flags: frame.flags,
            trap: u8::try_from(frame.trap).ok(),
            error: frame.error as u32,
            cr2: frame.cr2 as u64,
        }
    }
}

/// Executable memory for stubs under test.
#[derive(Debug)]
pub struct TestCode {
    base: *mut u8,
    len: usize,
    used: usize,
    pub resets: std::sync::Arc<AtomicU64>,
}

// SAFETY: the mapping belongs to this value alone.
unsafe impl Send for TestCode {}

impl TestCode {
    pub fn new(len: usize) -> Self {
        Self { base: map(len, RWX, false), len, used: 0, resets: std::sync::Arc::default() }
    }
}

impl Drop for TestCode {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and nobody executes it any more.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

impl HostCode for TestCode {
    fn publish(&mut self, code: &[u8]) -> Option<*const u8> {
        let start = self.used.next_multiple_of(16);
        if start + code.len() > self.len {
            return None;
        }
        self.used = start + code.len();
        // SAFETY: inside the mapping.
        let at = unsafe { self.base.add(start) };
        // SAFETY: as above, and nothing published lies there.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), at, code.len()) };
        Some(at)
    }
    fn reset(&mut self) {
        self.used = 0;
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
}
