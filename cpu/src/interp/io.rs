//! IN and OUT, and who may use which port.
//!
//! Problem: port access is allowed by IOPL or by the TSS's bitmap. Scheme: one check before every
//! access. Invariant: no device sees an access that the guest was not allowed. Source: SDM vol. 1,
//! "Protected-Mode I/O".

use std::sync::atomic::Ordering;

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::decode::{Handler, Insn};
use super::width::Width;
use super::{Interp, breakpoint_armed, breakpoint_meets};
use crate::env::{Memory, attention};
use crate::exception::{Outcome, Trap};
use crate::state::reg::{RAX, RDX};
use crate::state::{Cr4, Rflags};

/// An IN or OUT, for an engine that does it without the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAccess {
    writes: bool,
    bytes: u8,
    /// Unless it is in DX.
    port: Option<u8>,
}

impl PortAccess {
    /// What `insn` does, if it is an IN or OUT.
    #[must_use]
    pub fn of(insn: &Instruction) -> Option<Self> {
        let writes = match insn.mnemonic() {
            Mnemonic::In => false,
            Mnemonic::Out => true,
            _ => return None,
        };
        let [port, value] = if writes { [0, 1] } else { [1, 0] };
        let immediate = insn.op_kind(port) != OpKind::Register;
        let bytes = insn.op_register(value).size() as u8;
        Some(Self { writes, bytes, port: immediate.then(|| insn.immediate8()) })
    }
}

impl<M: Memory> Interp<M> {
    /// Does an IN or OUT at CPL 0 with no breakpoint armed, on the general registers in `gpr`. What RIP leads to, and
    /// what the access has brought about, is for the caller to see.
    pub fn access_port(&mut self, access: PortAccess, gpr: &mut [u64; 16]) {
        self.state.retired += 1;
        let port = access.port.map_or(gpr[RDX] as u16, u16::from);
        let kept = match access.bytes {
            1 => !0xff,
            2 => !0xffff,
            // A write of 32 bits clears those above.
            _ => 0,
        };
        let part = u64::from(u32::MAX) & !kept;
        if access.writes {
            self.port_out(port, access.bytes, (gpr[RAX] & part) as u32);
        } else {
            let value = u64::from(self.port_in(port, access.bytes));
            gpr[RAX] = gpr[RAX] & kept | value & part;
        }
    }

    /// #GP(0) unless this code may access `bytes` ports from `port`.
    pub(super) fn check_io(&mut self, port: u16, bytes: u64) -> Outcome {
        if self.state.protected()
            && (self.state.cpl > self.state.iopl() || self.state.flag(Rflags::VM))
        {
            self.check_io_bitmap(port, bytes)?;
        }
        self.note_port_access(port, bytes);
        if self.state.cpl == 3 {
            self.mem.user_meets_device();
        }
        Ok(())
    }

    fn check_io_bitmap(&mut self, port: u16, bytes: u64) -> Outcome {
        let tr = self.state.tr;
        // Only a 32- or 64-bit TSS has a bitmap.
        if !tr.is_usable() || tr.access & 8 == 0 || tr.limit < 0x67 {
            return Err(Trap::gp0());
        }
        let map = u64::from(self.load_system::<u16>(tr.base.wrapping_add(0x66))?);
        let at = map + u64::from(port / 8);
        // Two bytes are always read: the ports may straddle them.
        if at + 1 > u64::from(tr.limit) {
            return Err(Trap::gp0());
        }
        let bits = self.load_system::<u16>(self.wrap(tr.base.wrapping_add(at)))?;
        let wanted = ((1u16 << bytes) - 1) << (port % 8);
        if bits & wanted == 0 { Ok(()) } else { Err(Trap::gp0()) }
    }

    /// I/O breakpoints (CR4.DE and DR7.R/W = 2).
    fn note_port_access(&mut self, port: u16, bytes: u64) {
        if !self.mode.breakpoints || !self.state.cr4(Cr4::DE) {
            return;
        }
        for n in 0..4 {
            let armed = breakpoint_armed(&self.state, n, 2);
            if armed && breakpoint_meets(&self.state, n, u64::from(port), bytes) {
                self.state.pending_debug |= 1 << n;
            }
        }
    }

    pub(super) fn port_in(&mut self, port: u16, bytes: u8) -> u32 {
        self.env.set_retired(self.state.retired);
        self.env.pio_read(port, bytes)
    }

    /// Fills the beginning of `out`, as far as comes at once: bytes.
    pub(super) fn port_in_many(&mut self, port: u16, bytes: u8, out: &mut [u8]) -> usize {
        self.env.set_retired(self.state.retired);
        self.env.pio_read_many(port, bytes, out)
    }

    pub(super) fn port_out(&mut self, port: u16, bytes: u8, value: u32) {
        self.env.set_retired(self.state.retired);
        self.env.pio_write(port, bytes, value);
        // The next instruction already sees what this one has switched.
        if self.attention.load(Ordering::Acquire) & attention::REMAP != 0 {
            self.remap();
        }
    }
}

fn port_of<M: Memory>(vm: &Interp<M>, i: &Insn<M>, operand: u32) -> u16 {
    if i.raw.op_kind(operand) == OpKind::Register {
        vm.state.gpr[RDX] as u16
    } else {
        i.imm as u8 as u16
    }
}

fn input<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let port = port_of(vm, i, 1);
    vm.check_io(port, W::BYTES)?;
    let value = vm.port_in(port, W::BYTES as u8);
    W::set(&mut vm.state, RAX as u8, W::from_u64(u64::from(value)));
    Ok(())
}

fn output<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let port = port_of(vm, i, 0);
    vm.check_io(port, W::BYTES)?;
    let value = W::get(&vm.state, RAX as u8).to_u64() as u32;
    vm.port_out(port, W::BYTES as u8, value);
    Ok(())
}

pub(super) fn in_<M: Memory>(raw: &Instruction) -> Handler<M> {
    match raw.op0_register() {
        Register::AL => input::<M, u8>,
        Register::AX => input::<M, u16>,
        _ => input::<M, u32>,
    }
}

pub(super) fn out<M: Memory>(raw: &Instruction) -> Handler<M> {
    match raw.op1_register() {
        Register::AL => output::<M, u8>,
        Register::AX => output::<M, u16>,
        _ => output::<M, u32>,
    }
}
