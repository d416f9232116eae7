//! Single instructions for a translator that has decoded them itself.
//!
//! Problem: kernel entries and exits are frequent and have no operands, so finding and decoding them again
//! costs more than doing them. Scheme: the translator names one, and its handler runs at once.
//! Invariant: what would fault changes nothing and is left to [`Interp::run`].

use iced_x86::{Code, Instruction, Mnemonic};

use super::decode::{Handler, Insn, NO_REGISTER};
use super::{Interp, syscall, system};
use crate::env::Memory;
use crate::exception::Trap;

/// Instructions that [`Interp::quick`] knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quick {
    Syscall,
    Sysretq,
    Swapgs,
    Stac,
    Clac,
    Rdtsc,
    Rdtscp,
}

impl Quick {
    /// The one with this mnemonic in 64-bit code. SYSRET is known with 64-bit operands only.
    #[must_use]
    pub fn of(insn: &Instruction) -> Option<Self> {
        Some(match insn.mnemonic() {
            Mnemonic::Syscall => Self::Syscall,
            Mnemonic::Sysretq => Self::Sysretq,
            Mnemonic::Swapgs => Self::Swapgs,
            Mnemonic::Stac => Self::Stac,
            Mnemonic::Clac => Self::Clac,
            Mnemonic::Rdtsc => Self::Rdtsc,
            Mnemonic::Rdtscp => Self::Rdtscp,
            _ => return None,
        })
    }

    /// Privilege, and with it the mode, may be another one behind it.
    #[must_use]
    pub fn changes_mode(self) -> bool {
        matches!(self, Self::Syscall | Self::Sysretq | Self::Stac | Self::Clac)
    }
}

impl<M: Memory> Interp<M> {
    /// Does the instruction at RIP, which is `which` and ends at `next`. False, with nothing changed, if it
    /// faults.
    pub fn quick(&mut self, which: Quick, next: u64) -> bool {
        let (code, run): (Code, Handler<M>) = match which {
            Quick::Syscall => (Code::Syscall, syscall::syscall::<M>),
            Quick::Sysretq => (Code::Sysretq, syscall::sysret::<M>),
            Quick::Swapgs => (Code::Swapgs, system::swapgs::<M>),
            Quick::Stac => (Code::Stac, system::set_ac::<M, true>),
            Quick::Clac => (Code::Clac, system::set_ac::<M, false>),
            Quick::Rdtsc => (Code::Rdtsc, system::rdtsc::<M, false>),
            Quick::Rdtscp => (Code::Rdtscp, system::rdtsc::<M, true>),
        };
        let mut raw = Instruction::default();
        raw.set_code(code);
        let insn = Insn {
            run,
            disp: 0,
            imm: 0,
            addr_mask: u64::MAX,
            len: 0,
            dst: 0,
            src: 0,
            base: NO_REGISTER,
            index: NO_REGISTER,
            scale: 1,
            seg: 0,
            lock: false,
            raw,
            vector: None,
        };
        self.refresh();
        let rip = std::mem::replace(&mut self.state.rip, next);
        match run(self, &insn) {
            Ok(()) | Err(Trap::Exit) => {
                self.state.retired += 1;
                true
            }
            Err(Trap::Exception(_)) => {
                self.state.rip = rip;
                false
            }
        }
    }
}
