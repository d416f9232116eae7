//! Host signals that stand for guest events.
//!
//! Problem: a guest vector instruction that raises an unmasked SIMD floating-point exception raises it on
//! the host too, as the stub runs it under the guest's MXCSR; the kernel makes SIGFPE of it. Scheme:
//! one process-wide handler asks [`simd_fault::recover`] where the interrupted stub resumes and
//! changes the program counter in the signal frame. The kernel then restores the vector state of the
//! fault, MXCSR flags included. A SIGFPE from anywhere else is a bug of ours and gets the default
//! action. Invariants: the handler only reads a thread's own cell and writes the frame, so it is
//! async-signal-safe. Installed once, before the first vCPU runs; runs on the faulting thread.
//! Source: sigaction(2); SDM vol. 3, "Interrupt 19, SIMD Floating-Point Exception".

use std::io;
use std::sync::OnceLock;

use xenolith_cpu::vector::simd_fault;

/// Installs the handler, the first time it is called.
///
/// # Errors
/// What sigaction(2) says.
pub fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Option<i32>> = OnceLock::new();
    match INSTALLED.get_or_init(|| handle_sigfpe().err().and_then(|error| error.raw_os_error())) {
        None => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(*errno)),
    }
}

fn handle_sigfpe() -> io::Result<()> {
    // SAFETY: sigaction is plain data, for which zeros are a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigfpe as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the type that SA_SIGINFO asks for and is async-signal-safe.
    if unsafe { libc::sigaction(libc::SIGFPE, &action, std::ptr::null_mut()) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

extern "C" fn on_sigfpe(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes the address of a ucontext_t, ours until we return.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let Some(pc) = context.uc_mcontext.gregs.get_mut(libc::REG_RIP as usize) else { return };
    if let Some(resume) = simd_fault::recover(pc.cast_unsigned()) {
        *pc = resume.cast_signed();
        return;
    }
    // Raised again on return, and then fatal.
    // SAFETY: SIG_DFL is valid for every signal.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
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
