//! What the vCPU loop asks of an execution engine.
//!
//! Problem: the loop must not care which engine executes guest code, nor need one to be tested. Scheme:
//! a small trait, which the interpreter over the soft TLB implements. One instance per vCPU, on its
//! thread.

use xenolith_codecache::arena::{Arena, ArenaError};
use xenolith_cpu::CpuState;
use xenolith_cpu::env::Memory;
use xenolith_cpu::host_code::HostCode;
use xenolith_cpu::interp::{self, Interp};

/// Why an engine came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The instruction budget is used up.
    Budget,
    /// HLT: nothing to do before an interrupt.
    Halted,
    /// Triple fault.
    Shutdown,
    /// An attention bit that is the machine's to handle.
    Attention,
}

/// An execution engine with its vCPU's state.
pub trait Engine: Send {
    /// Runs at most about `budget` instructions. Takes interrupts and NMIs by itself.
    fn run(&mut self, budget: u64) -> Exit;
    /// Runs little: one instruction where the engine can stop behind it, else to the end of one block.
    /// Takes an interrupt or NMI at the beginning only.
    fn step(&mut self) -> Exit {
        self.run(1)
    }
    fn state(&mut self) -> &mut CpuState;
    /// The state was changed from outside: nothing cached may be relied on.
    fn state_changed(&mut self);
    /// Guest time has stood still: what is kept of [`xenolith_cpu::env::Env::tsc_base`] is no longer true.
    fn time_moved(&mut self) {}
    /// Registers for people.
    fn dump(&self) -> String;
}

/// Room for generated stubs; each takes some hundred bytes, and a full one is only emptied.
const STUBS_BYTES: usize = 4 << 20;

/// One vCPU's executable memory for vector instructions.
#[derive(Debug)]
pub struct Stubs(Arena);

impl Stubs {
    /// # Errors
    /// The host refuses executable memory.
    pub fn new() -> Result<Self, ArenaError> {
        Arena::new(STUBS_BYTES).map(Self)
    }
}

impl HostCode for Stubs {
    fn publish(&mut self, code: &[u8]) -> Option<*const u8> {
        self.0.publish(code)
    }
    fn reset(&mut self) {
        self.0.reset();
    }
}

impl<M: Memory + Send> Engine for Interp<M> {
    fn run(&mut self, budget: u64) -> Exit {
        match Interp::run(self, budget) {
            interp::Exit::Budget => Exit::Budget,
            interp::Exit::Halted => Exit::Halted,
            interp::Exit::Shutdown => Exit::Shutdown,
            interp::Exit::Attention => Exit::Attention,
        }
    }
    fn step(&mut self) -> Exit {
        match Engine::run(self, 0) {
            Exit::Budget => Interp::step(self),
            exit => return exit,
        }
        Exit::Budget
    }
    fn state(&mut self) -> &mut CpuState {
        &mut self.state
    }
    fn state_changed(&mut self) {
        self.mem.flush_all();
    }
    fn dump(&self) -> String {
        Interp::dump(self)
    }
}
