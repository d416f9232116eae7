//! Host signals that stand for guest events.
//!
//! Problem: a guest vector instruction that raises an unmasked SIMD floating-point exception raises it on
//! the host too, as the stub runs it under the guest's MXCSR; the kernel makes SIGFPE of it. Scheme:
//! one process-wide handler asks [`simd_fault::recover`] where the interrupted stub resumes and
//! changes the program counter in the signal frame. The kernel then restores the vector state of the
//! fault, MXCSR flags included. In translated code it is a division that faults; from anywhere else it is a
//! bug of ours and gets the default action. A poll of translated code that finds something in the attention word
//! faults: the handler reads the site's number behind it and lets the thread leave by the common exit, on a stack of
//! its own since the stack pointer is the guest's. An access through a shadow window that faults leaves likewise, with
//! the place and the address written down. Invariants: in translated code, where FS may be lent, the handler only reads
//! lists of ranges and writes the area and the frame; elsewhere it reads a thread's own cell: it is async-signal-safe.
//! Installed once, before the first vCPU runs; runs on the faulting thread.
//! Source: sigaction(2); SDM vol. 3, "Interrupt 19, SIMD Floating-Point Exception".

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use xenolith_cpu::vector::simd_fault;
use xenolith_translator::area::Area;
use xenolith_translator::emit::{POLL_LOAD_BYTES, POLL_NOP};

/// Installs the handler, the first time it is called.
///
/// # Errors
/// What sigaction(2) says.
pub fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Option<i32>> = OnceLock::new();
    match INSTALLED.get_or_init(|| {
        handle(libc::SIGFPE, on_sigfpe).err().and_then(|error| error.raw_os_error())
    }) {
        None => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(*errno)),
    }
}

type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

/// Sets the action of a signal.
fn handle(signal: i32, handler: Handler) -> io::Result<()> {
    // SAFETY: sigaction is plain data, for which zeros are a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the type that SA_SIGINFO asks for and is async-signal-safe.
    if unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

extern "C" fn on_sigfpe(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes the address of a ucontext_t, ours until we return.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    if leave_translated_code(context) {
        return;
    }
    if recover(context) {
        return;
    }
    // Raised again on return, and then fatal.
    // SAFETY: SIG_DFL is valid for every signal.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Lets a stub that faulted resume, if it was one. It reads what is thread-local, so it isn't to be mixed up with what
/// comes before.
#[inline(never)]
fn recover(context: &mut libc::ucontext_t) -> bool {
    let pc = &mut context.uc_mcontext.gregs[libc::REG_RIP as usize];
    let resume = simd_fault::recover(pc.cast_unsigned());
    if let Some(resume) = resume {
        *pc = resume.cast_signed();
    }
    resume.is_some()
}

/// A range of translated code, or none. Never freed, as a handler may look at it any time.
struct Span {
    start: AtomicUsize,
    end: AtomicUsize,
    next: Option<&'static Self>,
}

/// All ranges of translated code in this process, and who may change them.
static SPANS: AtomicPtr<Span> = AtomicPtr::new(std::ptr::null_mut());
static CHANGING: Mutex<()> = Mutex::new(());

/// The first range.
fn spans() -> Option<&'static Span> {
    // SAFETY: null, or the address of a leaked box.
    unsafe { SPANS.load(Ordering::Acquire).as_ref() }
}

fn is_translated(at: usize) -> bool {
    std::iter::successors(spans(), |span| span.next).any(|span| {
        (span.start.load(Ordering::Acquire)..span.end.load(Ordering::Acquire)).contains(&at)
    })
}

/// Faults in a range of translated code are understood while this lives.
#[derive(Debug)]
pub struct WatchedCode {
    start: usize,
}

impl WatchedCode {
    /// Understands faults in `code`, which is this process's.
    ///
    /// # Panics
    /// The host refuses a signal handler: translated code can't be stopped then.
    pub fn new(code: Range<usize>) -> Self {
        static INSTALLED: OnceLock<()> = OnceLock::new();
        INSTALLED.get_or_init(|| {
            // Non-canonical addresses raise #GP or, by way of RSP and RBP, #SS, which is SIGBUS.
            for signal in [libc::SIGSEGV, libc::SIGBUS] {
                handle(signal, on_fault).expect("memory faults can be handled");
            }
        });
        let _changing = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
        let free = std::iter::successors(spans(), |span| span.next)
            .find(|span| span.end.load(Ordering::Relaxed) == 0);
        // A range without an end has nothing in it.
        let span = free.unwrap_or_else(|| {
            let (start, end) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let span = Box::leak(Box::new(Span { start, end, next: spans() }));
            SPANS.store(span, Ordering::Release);
            span
        });
        span.start.store(code.start, Ordering::Release);
        span.end.store(code.end, Ordering::Release);
        Self { start: code.start }
    }
}

impl Drop for WatchedCode {
    fn drop(&mut self) {
        let _changing = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
        for span in std::iter::successors(spans(), |span| span.next) {
            if span.start.load(Ordering::Relaxed) == self.start {
                span.end.store(0, Ordering::Release);
                span.start.store(0, Ordering::Release);
            }
        }
    }
}

thread_local! {
    /// The stack that handlers run on while the guest has the stack pointer.
    static STACK: RefCell<Option<AltStack>> = const { RefCell::new(None) };
}

/// The vector of #PF.
const PAGE_FAULT: u64 = 14;
/// Bytes of a handler's stack; a frame with AVX-512 state takes about 4 KiB.
const STACK_BYTES: usize = 64 << 10;
/// The kernel must not take the guest's stack pointer for one into the handler's stack (sigaltstack(2)).
const SS_AUTODISARM: i32 = 1 << 31;

/// A stack for this thread's signal handlers, while it lives.
struct AltStack(Box<[u8]>);

impl AltStack {
    fn install() -> io::Result<Self> {
        let mut memory = vec![0; STACK_BYTES].into_boxed_slice();
        let stack = libc::stack_t {
            ss_sp: memory.as_mut_ptr().cast(),
            ss_flags: SS_AUTODISARM,
            ss_size: memory.len(),
        };
        // SAFETY: the memory stays until `drop` takes the stack away.
        match unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) } {
            0 => Ok(Self(memory)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for AltStack {
    fn drop(&mut self) {
        let stack = libc::stack_t {
            ss_sp: std::ptr::null_mut(),
            ss_flags: libc::SS_DISABLE,
            ss_size: self.0.len(),
        };
        // SAFETY: takes away what `install` gave; no handler runs now.
        unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) };
    }
}

/// Gives this thread a stack for handlers, which it needs before it runs translated code.
///
/// # Panics
/// The host refuses.
pub fn take_stack() {
    STACK.with_borrow_mut(|stack| {
        if stack.is_none() {
            *stack = Some(AltStack::install().expect("a thread may have a stack for signals"));
        }
    });
}

extern "C" fn on_fault(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes the address of a ucontext_t, ours until we return.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    if !leave_translated_code(context) {
        // Raised again on return, and then fatal.
        // SAFETY: SIG_DFL is valid for every signal.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// If the fault is one of translated code, writes down what it was and lets the thread leave by the common exit. FS may be
/// lent: nothing here may be thread-local.
fn leave_translated_code(context: &mut libc::ucontext_t) -> bool {
    let registers = &mut context.uc_mcontext.gregs;
    let at = registers[libc::REG_RIP as usize] as usize;
    if !is_translated(at) {
        return false;
    }
    let area: *mut Area;
    // SAFETY: reads GS base, which is the area's address while translated code runs.
    unsafe { std::arch::asm!("rdgsbase {}", out(reg) area, options(nomem, nostack)) };
    // SAFETY: the area of this thread, which translated code was about to use too.
    let area = unsafe { &mut *area };
    let behind = std::ptr::with_exposed_provenance::<[u8; 7]>(at + POLL_LOAD_BYTES);
    // SAFETY: code of ours, which is readable; a block ends with more than a few bytes.
    let behind = unsafe { behind.read() };
    if behind[..3] == POLL_NOP {
        let site = u32::from_le_bytes([behind[3], behind[4], behind[5], behind[6]]);
        area.site = u64::from(site);
    } else {
        let vector = registers[libc::REG_TRAPNO as usize].cast_unsigned();
        let address = registers[libc::REG_CR2 as usize].cast_unsigned();
        area.fault_pc = at as u64;
        area.scratch =
            [libc::REG_R10, libc::REG_R11].map(|n| registers[n as usize].cast_unsigned());
        area.fault_vector = vector;
        area.fault_address = if vector == PAGE_FAULT { address } else { u64::MAX };
        area.fault_error = registers[libc::REG_ERR as usize].cast_unsigned();
    }
    registers[libc::REG_RIP as usize] = area.exit.cast_signed();
    true
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};
    use xenolith_cpu::CpuState;
    use xenolith_cpu::exception::{Outcome, Trap};
    use xenolith_cpu::host_code::HostCode;
    use xenolith_cpu::state::{Cr0, Cr4, VectorState};
    use xenolith_cpu::vector::{OperandMemory, VectorUnit};

    /// The stubs' memory, from the code cache's arena.
    struct Code(xenolith_codecache::Arena);

    impl HostCode for Code {
        fn publish(&mut self, code: &[u8]) -> Option<*const u8> {
            self.0.publish(code)
        }
        fn reset(&mut self) {
            self.0.reset();
        }
    }

    struct NoMemory;

    impl OperandMemory for NoMemory {
        fn read(&mut self, _: &mut CpuState, _: usize, _: u64, _: &mut [u8]) -> Outcome {
            Err(Trap::gp0())
        }
        fn write(&mut self, _: &mut CpuState, _: usize, _: u64, _: &[u8]) -> Outcome {
            Err(Trap::gp0())
        }
        fn probe_write(&mut self, _: &mut CpuState, _: usize, _: u64, _: usize) -> Outcome {
            Err(Trap::gp0())
        }
    }

    #[test]
    fn unmasked_simd_exception_reaches_the_guest_and_not_the_program() {
        super::install().expect("SIGFPE can be handled");
        super::install().expect("and asking again does no harm");
        let arena = xenolith_codecache::Arena::new(65536).expect("a small arena");
        let mut unit = VectorUnit::new(Box::new(Code(arena)));
        let mut cpu = CpuState::reset(0);
        cpu.cr0 = (Cr0::PE | Cr0::NE).bits();
        cpu.cr4 = (Cr4::OSFXSR | Cr4::OSXMMEXCPT).bits();
        // divss xmm0, xmm1: 1.0 / 0.0.
        let insn = Decoder::new(32, b"\xf3\x0f\x5e\xc1", DecoderOptions::NONE).decode();
        let op = unit.prepare(&insn).expect("DIVSS is a vector instruction");
        cpu.vector.bytes[VectorState::XMM..][..4].copy_from_slice(&1f32.to_le_bytes());
        let before = cpu.vector.clone();
        for _ in 0..3 {
            cpu.vector = before.clone();
            cpu.vector.set_mxcsr(0x1f80 & !0x200);
            let outcome = unit.execute(&op, &insn, &mut cpu, &mut NoMemory, 0);
            assert_eq!(outcome, Err(Trap::xm()));
            assert_eq!(cpu.vector.mxcsr(), 0x1d84, "ZE is set");
            assert_eq!(cpu.vector.ymm(0), before.ymm(0));
        }
        cpu.vector.set_mxcsr(0x1f80);
        assert_eq!(unit.execute(&op, &insn, &mut cpu, &mut NoMemory, 0), Ok(()));
        assert_eq!(cpu.vector.ymm(0)[..4], f32::INFINITY.to_le_bytes());
    }
}
