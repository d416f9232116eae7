//! String instructions and their repetition.
//!
//! Problem: a repeated string instruction may run for millions of iterations, fault in any of them and
//! must let interrupts in between. Scheme: index and count registers move with each iteration, so the
//! instruction can be left and begun again at any point; the commonest (MOVS and STOS upwards) go a
//! page at a time by the host's own REP. Invariants: RIP stays at the instruction until the last
//! iteration; registers show exactly the iterations done. Source: SDM vol. 2,
//! "REP/REPE/REPZ/REPNE/REPNZ".

use iced_x86::{Instruction, Mnemonic};

use super::decode::{Handler, Insn};
use super::width::Width;
use super::{Access, Interp};
use crate::addr::{Gva, PAGE_SIZE};
use crate::env::{Memory, Place};
use crate::exception::{Outcome, Trap};
use crate::state::reg::{RAX, RCX, RDI, RDX, RSI};
use crate::state::{Rflags, sreg};

/// Iterations between two looks at the world. Each such stretch counts as an instruction, so that a budget of
/// instructions bounds the host's time, also when every iteration is a device access.
const ITERATIONS_MAX: u32 = 64;
const ES: u8 = sreg::ES as u8;

/// What one iteration does.
trait StringOp {
    /// ZF ends the repetition (CMPS, SCAS).
    const COMPARES: bool = false;
    /// Writes at ES:RDI.
    const STORES: bool = false;
    /// Index registers that a 32-bit address size truncates at the start of the repetition (as it does
    /// the count), even if nothing is done: so do Intel's processors. AMD's truncate what an iteration
    /// moves.
    const TRUNCATES: &[usize] = &[];
    /// Checks the right to the port: as measured, also when nothing is to be done.
    fn may<M: Memory, W: Width>(_: &mut Interp<M>) -> Outcome {
        Ok(())
    }
    fn once<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome;
    /// Does up to `count` iterations at once, if it can; returns how many.
    fn many<M: Memory, W: Width>(_: &mut Interp<M>, _: &Insn<M>, _count: u64) -> u64 {
        0
    }
}

enum Movs {}
enum Cmps {}
enum Stos {}
enum Lods {}
enum Scas {}
enum Ins {}
enum Outs {}

/// Adds to an index or count register in the address size.
#[inline(always)]
fn advance<M: Memory>(vm: &mut Interp<M>, register: usize, delta: u64, mask: u64) {
    let old = vm.state.gpr[register];
    let new = old.wrapping_add(delta) & mask;
    vm.state.gpr[register] = if mask == 0xffff { old & !mask | new } else { new };
}

/// Step of the index registers.
#[inline(always)]
fn step<M: Memory, W: Width>(vm: &Interp<M>) -> u64 {
    if vm.state.flag(Rflags::DF) { W::BYTES.wrapping_neg() } else { W::BYTES }
}

/// `count` cut to what fits, upwards from `offset`, in its page and below the address size's end.
fn room<W: Width>(la: u64, offset: u64, mask: u64, count: u64) -> u64 {
    let to_page_end = (PAGE_SIZE - (la & (PAGE_SIZE - 1))) / W::BYTES;
    let to_wrap = (mask - offset) / W::BYTES;
    count.min(to_page_end).min(to_wrap)
}

impl<M: Memory> Interp<M> {
    /// RAM for `count` elements upwards at `seg:offset`, and how many of them one page holds.
    fn run_of<W: Width>(
        &mut self,
        seg: u8,
        offset: u64,
        mask: u64,
        count: u64,
        access: Access,
    ) -> Option<(*mut u8, crate::addr::Gpa, u64)> {
        if self.mode.watchful || self.state.flag(Rflags::DF) {
            return None;
        }
        let write = access == Access::Write;
        let la = self.linear(seg, offset, W::BYTES, write).ok()?;
        let count = room::<W>(la, offset, mask, count);
        if count == 0 || self.linear(seg, offset, count * W::BYTES, write).is_err() {
            return None;
        }
        match self.mem.translate(&self.state, Gva(la), access, self.mode.privilege) {
            Ok(Place::Ram { hva, gpa }) => Some((hva, gpa, count)),
            _ => None,
        }
    }
}

impl StringOp for Movs {
    const STORES: bool = true;
    const TRUNCATES: &[usize] = &[RSI, RDI];
    fn once<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
        let value = vm.load::<W>(i.seg, vm.state.gpr[RSI] & i.addr_mask)?;
        vm.store(ES, vm.state.gpr[RDI] & i.addr_mask, value)?;
        let step = step::<M, W>(vm);
        advance(vm, RSI, step, i.addr_mask);
        advance(vm, RDI, step, i.addr_mask);
        Ok(())
    }

    fn many<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>, count: u64) -> u64 {
        let mask = i.addr_mask;
        let (from, to) = (vm.state.gpr[RSI] & mask, vm.state.gpr[RDI] & mask);
        let Some((_, _, count)) = vm.run_of::<W>(i.seg, from, mask, count, Access::Read) else {
            return 0;
        };
        let Some((dst, gpa, count)) = vm.run_of::<W>(ES, to, mask, count, Access::Write) else {
            return 0;
        };
        // Asked again, since a pointer lives only to the next translation.
        let Some((src, _, _)) = vm.run_of::<W>(i.seg, from, mask, count, Access::Read) else {
            return 0;
        };
        // SAFETY: `count` elements at both ends lie in their pages of RAM. Overlap repeats elements as
        // the guest's own instruction would.
        unsafe { W::rep_movs(dst, src, count) };
        vm.stored(gpa, count * W::BYTES);
        advance(vm, RSI, count * W::BYTES, mask);
        advance(vm, RDI, count * W::BYTES, mask);
        count
    }
}

impl StringOp for Stos {
    const STORES: bool = true;
    const TRUNCATES: &[usize] = &[RDI];
    fn once<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
        let value = W::get(&vm.state, RAX as u8);
        vm.store(ES, vm.state.gpr[RDI] & i.addr_mask, value)?;
        let step = step::<M, W>(vm);
        advance(vm, RDI, step, i.addr_mask);
        Ok(())
    }

    fn many<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>, count: u64) -> u64 {
        let mask = i.addr_mask;
        let to = vm.state.gpr[RDI] & mask;
        let Some((dst, gpa, count)) = vm.run_of::<W>(ES, to, mask, count, Access::Write) else {
            return 0;
        };
        let value = W::get(&vm.state, RAX as u8);
        // SAFETY: `count` elements from `dst` lie in their page of RAM.
        unsafe { W::rep_stos(dst, value, count) };
        vm.stored(gpa, count * W::BYTES);
        advance(vm, RDI, count * W::BYTES, mask);
        count
    }
}

impl StringOp for Lods {
    fn once<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
        let value = vm.load::<W>(i.seg, vm.state.gpr[RSI] & i.addr_mask)?;
        W::set(&mut vm.state, RAX as u8, value);
        let step = step::<M, W>(vm);
        advance(vm, RSI, step, i.addr_mask);
        Ok(())
    }
}

impl StringOp for Cmps {
    const COMPARES: bool = true;
    fn once<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
        // In this order, as measured.
        let b = vm.load::<W>(ES, vm.state.gpr[RDI] & i.addr_mask)?;
        let a = vm.load::<W>(i.seg, vm.state.gpr[RSI] & i.addr_mask)?;
        W::sub(a, b, &mut vm.state.rflags);
        let step = step::<M, W>(vm);
        advance(vm, RSI, step, i.addr_mask);
        advance(vm, RDI, step, i.addr_mask);
        Ok(())
    }
}

impl StringOp for Scas {
    const COMPARES: bool = true;
    fn once<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
        let b = vm.load::<W>(ES, vm.state.gpr[RDI] & i.addr_mask)?;
        let a = W::get(&vm.state, RAX as u8);
        W::sub(a, b, &mut vm.state.rflags);
        let step = step::<M, W>(vm);
        advance(vm, RDI, step, i.addr_mask);
        Ok(())
    }
}

impl StringOp for Ins {
    const STORES: bool = true;
    fn may<M: Memory, W: Width>(vm: &mut Interp<M>) -> Outcome {
        vm.check_io(vm.state.gpr[RDX] as u16, W::BYTES)
    }
    fn once<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
        let port = vm.state.gpr[RDX] as u16;
        Self::may::<M, W>(vm)?;
        // The port is read only when the store can't fault any more.
        let la = vm.linear(ES, vm.state.gpr[RDI] & i.addr_mask, W::BYTES, true)?;
        vm.check_alignment(la, W::BYTES)?;
        vm.probe(la, W::BYTES, vm.mode.privilege)?;
        let value = vm.port_in(port, W::BYTES as u8);
        vm.store_linear(la, W::from_u64(u64::from(value)))?;
        let step = step::<M, W>(vm);
        advance(vm, RDI, step, i.addr_mask);
        Ok(())
    }

    fn many<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>, count: u64) -> u64 {
        let to = vm.state.gpr[RDI] & i.addr_mask;
        let Some((dst, gpa, count)) = vm.run_of::<W>(ES, to, i.addr_mask, count, Access::Write)
        else {
            return 0;
        };
        if Self::may::<M, W>(vm).is_err() {
            return 0;
        }
        // A page at most.
        let mut bytes = [0; PAGE_SIZE as usize];
        let wanted = &mut bytes[..(count * W::BYTES) as usize];
        let port = vm.state.gpr[RDX] as u16;
        let count = vm.port_in_many(port, W::BYTES as u8, wanted) as u64 / W::BYTES;
        if count == 0 {
            return 0;
        }
        // SAFETY: `count` elements from `dst`, no more than asked for, lie in their page of RAM; `bytes` has them.
        unsafe { W::rep_movs(dst, bytes.as_ptr(), count) };
        vm.stored(gpa, count * W::BYTES);
        advance(vm, RDI, count * W::BYTES, i.addr_mask);
        count
    }
}

impl StringOp for Outs {
    fn may<M: Memory, W: Width>(vm: &mut Interp<M>) -> Outcome {
        vm.check_io(vm.state.gpr[RDX] as u16, W::BYTES)
    }
    fn once<M: Memory, W: Width>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
        let port = vm.state.gpr[RDX] as u16;
        Self::may::<M, W>(vm)?;
        let value = vm.load::<W>(i.seg, vm.state.gpr[RSI] & i.addr_mask)?;
        vm.port_out(port, W::BYTES as u8, value.to_u64() as u32);
        let step = step::<M, W>(vm);
        advance(vm, RSI, step, i.addr_mask);
        Ok(())
    }
}

/// Iterations, of `count`, before one stores over the instruction itself, as far as linear addresses tell
/// (SDM vol. 3, "Handling Self- and Cross-Modifying Code").
fn before_itself<M: Memory, W: Width>(vm: &Interp<M>, i: &Insn<M>, count: u64) -> u64 {
    let len = u64::from(i.len);
    let base = |n: usize| if vm.mode.long64 { 0 } else { vm.state.seg[n].base };
    let code = base(sreg::CS).wrapping_add(vm.state.rip).wrapping_sub(len);
    let to = base(sreg::ES).wrapping_add(vm.state.gpr[RDI] & i.addr_mask);
    // Bytes from the first store's end to the code, or from the code's end down to it.
    let (gap, overlaps) = if vm.state.flag(Rflags::DF) {
        let end = code.wrapping_add(len);
        (to.wrapping_sub(end), to < end && to.wrapping_add(W::BYTES) > code)
    } else {
        let end = to.wrapping_add(W::BYTES);
        (code.wrapping_sub(end), code < end && code.wrapping_add(len) > to)
    };
    if overlaps { 0 } else { count.min((gap / W::BYTES).saturating_add(1)) }
}

fn single<M: Memory, W: Width, O: StringOp>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    O::once::<M, W>(vm, i)
}

fn repeated<M: Memory, W: Width, O: StringOp>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let mask = i.addr_mask;
    let goes_on_equal = i.raw.has_repe_prefix();
    let flags = vm.state.rflags;
    O::may::<M, W>(vm)?;
    if !vm.amd {
        for &register in [RCX].iter().chain(O::TRUNCATES) {
            advance(vm, register, 0, mask);
        }
    }
    // As measured, AMD's processors go on when the instruction stores over itself.
    let mut overwritten = false;
    let mut done_here = 0;
    while done_here < ITERATIONS_MAX || overwritten {
        done_here += 1;
        let count = vm.state.gpr[RCX] & mask;
        if count == 0 {
            return Ok(());
        }
        // As measured, Intel's processors fetch the instruction again once it has stored over itself.
        let several =
            if O::STORES && !vm.amd { before_itself::<M, W>(vm, i, count) } else { count };
        let done =
            if vm.mode.careful || several == 0 { 0 } else { O::many::<M, W>(vm, i, several) };
        if done != 0 {
            advance(vm, RCX, done.wrapping_neg(), mask);
        } else {
            if let Err(trap) = O::once::<M, W>(vm, i) {
                // A fault in CMPS or SCAS shows EFLAGS as before the instruction (SDM vol. 2, "REP"); on AMD's
                // processors, as measured, as after the last comparison.
                if !vm.amd {
                    vm.state.rflags = flags;
                }
                return Err(trap);
            }
            advance(vm, RCX, u64::MAX, mask);
            if O::COMPARES && vm.state.flag(Rflags::ZF) != goes_on_equal {
                return Ok(());
            }
        }
        if vm.state.gpr[RCX] & mask == 0 {
            return Ok(());
        }
        overwritten |= vm.leave && vm.amd && O::STORES;
        if vm.mode.careful || several == 0 || vm.leave && !overwritten || vm.is_wanted() {
            break;
        }
    }
    // Not finished: begin again here, after a look at the world.
    vm.state.rip = vm.state.rip.wrapping_sub(u64::from(i.len)) & vm.mode.ip_mask;
    vm.repeat_left_at = vm.state.retired;
    Err(Trap::Exit)
}

fn sized<M: Memory, W: Width, O: StringOp>(raw: &Instruction) -> Handler<M> {
    if raw.has_repe_prefix() || raw.has_repne_prefix() {
        repeated::<M, W, O>
    } else {
        single::<M, W, O>
    }
}

pub(super) fn handler<M: Memory>(raw: &Instruction) -> Handler<M> {
    use Mnemonic as N;
    match raw.mnemonic() {
        N::Movsb => sized::<M, u8, Movs>(raw),
        N::Movsw => sized::<M, u16, Movs>(raw),
        N::Movsd => sized::<M, u32, Movs>(raw),
        N::Movsq => sized::<M, u64, Movs>(raw),
        N::Cmpsb => sized::<M, u8, Cmps>(raw),
        N::Cmpsw => sized::<M, u16, Cmps>(raw),
        N::Cmpsd => sized::<M, u32, Cmps>(raw),
        N::Cmpsq => sized::<M, u64, Cmps>(raw),
        N::Stosb => sized::<M, u8, Stos>(raw),
        N::Stosw => sized::<M, u16, Stos>(raw),
        N::Stosd => sized::<M, u32, Stos>(raw),
        N::Stosq => sized::<M, u64, Stos>(raw),
        N::Lodsb => sized::<M, u8, Lods>(raw),
        N::Lodsw => sized::<M, u16, Lods>(raw),
        N::Lodsd => sized::<M, u32, Lods>(raw),
        N::Lodsq => sized::<M, u64, Lods>(raw),
        N::Scasb => sized::<M, u8, Scas>(raw),
        N::Scasw => sized::<M, u16, Scas>(raw),
        N::Scasd => sized::<M, u32, Scas>(raw),
        N::Scasq => sized::<M, u64, Scas>(raw),
        N::Insb => sized::<M, u8, Ins>(raw),
        N::Insw => sized::<M, u16, Ins>(raw),
        N::Insd => sized::<M, u32, Ins>(raw),
        N::Outsb => sized::<M, u8, Outs>(raw),
        N::Outsw => sized::<M, u16, Outs>(raw),
        _ => sized::<M, u32, Outs>(raw),
    }
}
