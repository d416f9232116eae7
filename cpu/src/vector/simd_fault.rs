//! Where execution goes on when a stub's instruction raises a SIMD floating-point exception.
//!
//! Problem: with an exception unmasked in the guest's MXCSR only the processor itself knows exactly
//! which flags an instruction leaves behind (an unmasked underflow is raised for exact tiny results,
//! an unmasked overflow need not be inexact, pre-computation faults hide later ones). So the stub
//! runs under the guest's MXCSR, and the host kernel turns #XM into SIGFPE. Scheme: before entering
//! such a stub the thread writes down the address of its one instruction and that of the stub's fault
//! exit. The machine's signal handler passes the interrupted program counter to [`recover`] and
//! stores what comes back into the signal frame: the kernel then restores the vector registers as
//! the instruction left them, MXCSR with its new flags, and the stub leaves by its fault exit.
//!
//! Invariants: set only around a stub's call; the cell needs no initialisation and no destructor, so
//! reading it in a handler is safe. Thread: each its own cell. Source: SDM vol. 1, "SIMD
//! Floating-Point Exceptions".

use std::cell::Cell;

thread_local! {
    /// Program counter that may fault, and where to resume; zeros when none may.
    static ARMED: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

/// For the SIGFPE handler: if the fault at `pc` is that of a vector stub on this thread, the program
/// counter to resume at. Otherwise the fault is not ours.
#[must_use]
pub fn recover(pc: u64) -> Option<u64> {
    let (faulting, resume) = ARMED.get();
    (faulting != 0 && faulting == pc).then_some(resume)
}

/// Runs `stub` with the one instruction at `faulting` allowed to fault.
pub(super) fn armed<T>(faulting: u64, resume: u64, stub: impl FnOnce() -> T) -> T {
    ARMED.set((faulting, resume));
    let result = stub();
    ARMED.set((0, 0));
    result
}
