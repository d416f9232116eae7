//! Host code for one block.
//!
//! Problem: guest instructions should run as themselves, at the host's speed, and still be stopped
//! exactly before any one that must not. Scheme: guest registers are in the host registers of the same
//! name, but for r10 and r11, which live in the [`Area`](crate::area::Area) and whose host registers are
//! scratch; guest RSP is in host RSP. Status flags stay in the host's flags: nothing we add touches
//! them (MOV, LEA, JRCXZ; [`bits`]). An instruction without memory operand is copied; one with a memory
//! operand gets its address checked against the inline TLB ([`memory`]) and runs on the host address.
//! A block goes on past conditional branches and past instructions that Rust does, up to the first
//! unconditional transfer.
//!
//! Invariants: every check comes before the first change that its instruction makes, so leaving at a check
//! leaves the guest exactly at that instruction; all exits go through a [`Site`]; a displacement that
//! may be patched lies within one line of the cache, so that a patch is one store to whoever runs it.
//!
//! User code that isn't segmented *floats*, as a rule: the same page of a library lies elsewhere in every process, and
//! its blocks serve them all. The area has the page's present address, from the entry that was taken; what a block wants of
//! its own address is relative to that, and a transfer to another page says at which address it means that to be.
//!
//! ```text
//! at every entry and instruction boundary:
//!   rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r12-r15   the guest's      r10 r11   scratch
//!   status flags   the guest's (DF clear)           gs                the Area
//! entries:
//!   guarded   checks that the page is still the block's; for whoever comes from another page
//!   indirect  notes where a floating block runs; for whoever comes by the jump cache
//!   polled    looks at the attention word; for whoever comes from behind, or indirectly to what does not float
//!   plain
//!   again     in a block that is a loop: as polled, behind what is looked up before the first round ([`crate::hoist`])
//! ```

#![allow(clippy::useless_conversion, reason = "dynasm! converts register numbers")]

mod bits;
mod flow;
mod integer;
mod iret;
mod memory;
mod names;
mod place;
mod real;
mod segment;
mod stack;
mod string;
mod system;
mod vector;
mod x87;

use dynasmrt::x64::X64Relocation;
use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, VecAssembler, dynasm};
use iced_x86::{Encoder, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};

use crate::area::{FLOATING, WINDOWS_MAX, is_floating, offset};
use crate::classify::{Class, slot_bytes};
use crate::hoist::Loop;
use crate::host::Host;
use crate::mode::Mode;
use crate::plan::{Drafts, Limits, Plan, Step, Uses, is_hint, plan};
pub use flow::{POLL_LOAD_BYTES, POLL_NOP};
pub use memory::unguess;
use xenolith_codecache::cache::Link;

use memory::Borrowed;
use names::{constant_address, is_prefixed_scan, is_short, keeps_bytes, scratch_number, wide_form};
use place::is_narrow;

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const R10: u8 = 10;
const R11: u8 = 11;
const RSP: u8 = 4;
const RBP: u8 = 5;

/// Room for most blocks' code.
const CODE_BYTES: usize = 4096;
/// The alignment that keeps a patchable displacement in one line of the cache.
const LINE_BYTES: u64 = 64;

/// How translated code is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// The inline TLB has no entry for `size` bytes at `Area::ea`. Refill it and go on at `resume` (offset
    /// in the block's code), or let the interpreter do the instruction at `rip`. The access to fill
    /// for is `write`; the table that was looked at is the one for `writes`: they differ where a
    /// window's first access reads and a later one writes. `live`: the block relies on the vector
    /// registers to be loaded, `done`: instructions that were run but not counted; here as in the other
    /// sites.
    Miss {
        rip: u64,
        write: bool,
        writes: bool,
        size: u16,
        align: u8,
        resume: u32,
        live: bool,
        done: u8,
    },
    /// A direct transfer to `target`. The 32-bit displacement at `patch` (offset in the block's code)
    /// may be pointed at an entry of the target's block.
    Chain { target: u64, patch: u32, link: Link },
    /// An indirect transfer to `Area::rip` that the jump cache doesn't know. The instruction was at
    /// `rip` and moved RSP by `moved`.
    Indirect { rip: u64, moved: i64 },
    /// SYSCALL, SYSRET, STAC or CLAC to `Area::rip`, which the other side's jump cache doesn't know, or a far transfer
    /// in a mode in which the mode stays. All is done but the jump.
    Crossed,
    /// Something is in the attention word; the guest is at `rip`. `unrolls`: the block is a loop that would be made of
    /// several rounds, had it been seen at work.
    Poll { rip: u64, unrolls: bool },
    /// The table of executable pages doesn't vouch for the block's page.
    Guard { rip: u64 },
    /// The interpreter does the instruction at `rip`; if the guest is then at `next` under the same
    /// mode, it may go on at `resume` (offset in the block's code; 0: there is nothing).
    HandOver {
        rip: u64,
        next: u64,
        resume: u32,
        live: bool,
        mnemonic: Mnemonic,
        done: u8,
        /// Instructions that the block is going to count when it goes on.
        again: u8,
    },
}

/// A translated block, to be placed at the address it was assembled for.
#[derive(Debug)]
pub struct Translation {
    pub code: Vec<u8>,
    pub sites: Vec<Site>,
    /// Offsets of the other entries; `guarded` is at 0.
    pub indirect: u32,
    pub polled: u32,
    pub again: u32,
    pub plain: u32,
    /// Where the exits begin: what is behind this is run only to leave.
    pub exits: u32,
    /// Guest bytes it was made from.
    pub bytes: usize,
    pub instructions: usize,
    /// Where each instruction is, in order.
    pub map: Vec<MapEntry>,
}

/// Where an instruction's host code begins, and what a fault in it must put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// Offset in the block's code.
    pub host: u32,
    /// Guest address, from the block's.
    pub guest: u16,
    /// Registers whose values are in the spill slots 1 and 2; [`MapEntry::NONE`] for none.
    pub spilled: [u8; 2],
    /// Instructions before it that were run but not counted.
    pub done: u8,
    /// The block relies on the vector registers to be loaded.
    pub live: bool,
    /// The block may be entered here: nothing that it keeps from earlier is relied on, but for vector registers.
    pub enters: bool,
}

impl MapEntry {
    pub const NONE: u8 = 0xff;
}

/// Why a block could not be assembled.
#[derive(Debug, thiserror::Error)]
pub enum EmitError {
    #[error("no host encoding for {0}")]
    Encode(String),
    #[error("assembling a block: {0}")]
    Assemble(String),
}

/// A page and the identifier under which the table of executable pages vouches for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    pub la: u64,
    pub id: u32,
}

/// Addresses of the code that all blocks share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Routines {
    /// Leaves translated code; the site's number has been noted.
    pub exit: u64,
    /// Loads the vector registers and jumps to r10.
    pub load_vector: u64,
    /// The same for the x87 registers.
    pub load_x87: u64,
    /// Goes on at r10 by the user's jump cache, or leaves if that doesn't know it. RCX is in its spill slot.
    pub look_again: u64,
}

impl Routines {
    /// Their names, for listings.
    #[must_use]
    pub fn named(&self) -> [(u64, &'static str); 4] {
        [
            (self.exit, "the common exit"),
            (self.load_vector, "loads the vector registers"),
            (self.load_x87, "loads the x87 registers"),
            (self.look_again, "looks in the jump cache"),
        ]
    }
}

/// What the emitter must know of its surroundings.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Where the code will be.
    pub base: u64,
    pub routines: Routines,
    /// Number of the block's first site.
    pub first_site: u32,
    pub mode: Mode,
    /// Guest address of the block; its offset in its page plus [`FLOATING`], and the page's address FLOATING itself, if it
    /// is to run wherever the page is.
    pub rip: u64,
    pub page: Page,
    /// The second page of a block that is one instruction across a page's end.
    pub second: Option<Page>,
    /// The code segment's base, in segmented code.
    pub code_base: u64,
    pub host: Host,
    /// Nobody but the one vCPU looks at what the code's locked instructions touch: they needn't be.
    pub unlocks: bool,
}

impl Frame {
    /// The block may run at any linear address.
    #[must_use]
    pub fn floats(&self) -> bool {
        is_floating(self.rip)
    }

    /// The linear address of code.
    fn linear(&self, rip: u64) -> u64 {
        mask(self.code_base.wrapping_add(rip), self.mode.bits)
    }
}

/// Assembles one block.
struct Emitter<'a> {
    asm: &'a mut VecAssembler<X64Relocation>,
    encoder: &'a mut Encoder,
    frame: Frame,
    /// The guest's code from the block's first instruction on.
    code: &'a [u8],
    sites: Vec<Site>,
    /// Code after the block proper: one piece for each site.
    stubs: &'a mut Vec<Stub>,
    map: Vec<MapEntry>,
    /// The block has made sure that the vector registers are the guest's.
    vector_live: bool,
    /// The same for the x87 registers; they may be anybody's at a block's entry.
    x87_live: bool,
    /// What the instruction in hand has spilled.
    spilled: [u8; 2],
    /// The region that the instruction in hand will probably access.
    region: Option<u32>,
    /// The windows whose addends r10 and r11 held when the instruction in hand began, and will hold behind it as far as
    /// is known yet. Only what comes back there by itself may rely on it, or after a fault, which puts them back.
    ready: [Option<u8>; 2],
    held: [Option<u8>; 2],
    /// What the jump in hand does, if it is the one at the end of a round of the block's loop.
    edge: Option<Edge>,
    /// The block is a loop that may be made of several rounds, and is of one.
    unrolls: bool,
    /// Instructions since the last count, where blocks count.
    counts: bool,
    uncounted: u8,
}

impl std::fmt::Debug for Emitter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Emitter").field("sites", &self.sites).finish_non_exhaustive()
    }
}

/// The end of a loop's round.
#[derive(Clone, Copy)]
enum Edge {
    /// Back to the first round, past what is looked up before it.
    Again,
    /// Another round follows: only out of the loop, to there.
    Over(DynamicLabel),
}

/// The addends that a block keeps for its windows, as far as it is emitted.
struct Addends {
    /// The last step that uses each window.
    last_uses: [usize; WINDOWS_MAX],
    /// Up to this step an addend is kept.
    until: usize,
}

impl Addends {
    fn of(plan: &Plan) -> Self {
        let mut last_uses = [0; WINDOWS_MAX];
        for (number, step) in plan.steps.iter().enumerate() {
            if let Some(part) = step.part {
                last_uses[usize::from(part.window)] = number;
            }
        }
        Self { last_uses, until: 0 }
    }
}

struct Stub {
    label: DynamicLabel,
    site: usize,
    restore: Restore,
}

/// What a stub puts back before it leaves.
#[derive(Clone, Copy)]
enum Restore {
    Nothing,
    /// RCX from its spill slot.
    Rcx,
    /// r11 is the page that was meant, which may have another block.
    Home,
    /// RCX, and r10 is the target of an indirect transfer.
    Target,
    /// The scratch registers of an access, whose address is told too.
    Access(Borrowed),
}

/// Makes blocks. The memory that one needs on the way is kept for the next.
pub struct Translator {
    info: InstructionInfoFactory,
    asm: VecAssembler<X64Relocation>,
    encoder: Encoder,
    plan: Plan,
    drafts: Drafts,
    stubs: Vec<Stub>,
    spare: Spare,
}

/// What a translation was made of.
#[derive(Debug, Default)]
struct Spare {
    sites: Vec<Site>,
    map: Vec<MapEntry>,
}

impl std::fmt::Debug for Translator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Translator").finish_non_exhaustive()
    }
}

impl Default for Translator {
    fn default() -> Self {
        Self {
            info: InstructionInfoFactory::new(),
            // Nothing that is assembled depends on where it will be but by distances, which are worked
            // out here.
            asm: VecAssembler::new(0),
            encoder: Encoder::new(64),
            plan: Plan::default(),
            drafts: Drafts::default(),
            stubs: Vec::new(),
            spare: Spare::default(),
        }
    }
}

impl Translator {
    /// Assembles the block whose code `bytes` begin with. `None` if it begins with nothing that can be
    /// decoded.
    ///
    /// # Errors
    /// A bug of ours: something in the table has no encoding.
    pub fn translate(
        &mut self,
        frame: Frame,
        bytes: &[u8],
        limits: &Limits,
    ) -> Result<Option<Translation>, EmitError> {
        let old = std::mem::take(&mut self.plan);
        let (info, drafts) = (&mut self.info, &mut self.drafts);
        let plan = plan(frame.mode, frame.rip, bytes, limits, info, old, drafts);
        let made = if plan.steps.is_empty() {
            Ok(None)
        } else {
            let emitter = Emitter::new(frame, bytes, limits.counts, self);
            emitter.block(&plan).map(Some)
        };
        self.plan = plan;
        if made.is_err() {
            // What is half done is no beginning.
            *self = Self::default();
        }
        made
    }

    /// Takes back the memory of a translation that is done with.
    pub fn recycle(&mut self, done: Translation) {
        let Translation { mut sites, mut map, .. } = done;
        sites.clear();
        map.clear();
        self.spare = Spare { sites, map };
    }
}

/// An address of code, within the bounds of the mode.
fn mask(rip: u64, bits: u8) -> u64 {
    match bits {
        64 => rip,
        _ if is_floating(rip) => FLOATING | rip & 0xffff_ffff,
        _ => rip & 0xffff_ffff,
    }
}

impl<'a> Emitter<'a> {
    fn new(frame: Frame, code: &'a [u8], counts: bool, memory: &'a mut Translator) -> Self {
        let Spare { sites, map } = std::mem::take(&mut memory.spare);
        memory.asm.reserve_ops(CODE_BYTES);
        Self {
            asm: &mut memory.asm,
            encoder: &mut memory.encoder,
            frame,
            code,
            sites,
            stubs: &mut memory.stubs,
            map,
            vector_live: frame.mode.keeps_vector(),
            x87_live: false,
            spilled: [MapEntry::NONE; 2],
            region: None,
            ready: [None; 2],
            held: [None; 2],
            edge: None,
            unrolls: false,
            counts,
            uncounted: 0,
        }
    }

    fn block(mut self, plan: &Plan) -> Result<Translation, EmitError> {
        let bits = self.frame.mode.bits;
        let Loop { edge, rounds, .. } = plan.again;
        self.unrolls = edge.is_some() && rounds == 1 && !self.counts;
        self.enter_guarded();
        let indirect = self.enter_indirect();
        let polled = self.offset();
        self.poll();
        let plain = self.offset();
        if let Some(second) = self.frame.second {
            self.guard_second(second);
        }
        let head = self.offset();
        let again = if plan.again.ahead.is_empty() { polled } else { self.enter_again(plan)? };
        let mut kept = Addends::of(plan);
        let over = self.asm.new_dynamic_label();
        if let Some(edge) = edge {
            for _ in 1..rounds {
                for number in 0..=edge {
                    self.edge = (number == edge).then_some(Edge::Over(over));
                    self.step(plan, number, &mut kept, head)?;
                }
                kept.until = 0;
            }
        }
        for number in 0..plan.steps.len() {
            let looks_ahead = !plan.again.ahead.is_empty();
            self.edge = (looks_ahead && edge == Some(number)).then_some(Edge::Again);
            self.step(plan, number, &mut kept, head)?;
            if rounds > 1 && edge == Some(number) {
                dynasm!(self.asm ; .arch x64 ; =>over);
                self.held = [None; 2];
            }
        }
        if !plan.ends {
            // The page or the block's length is over; or the interpreter will raise what is due.
            self.count_instructions(self.uncounted);
            let next = plan.steps.last().map_or(self.frame.rip, |step| step.insn.next_ip());
            self.chain(mask(next, bits), 0);
        }
        let exits = self.offset();
        self.finish_stubs();
        let code = self.asm.take().map_err(|error| EmitError::Assemble(error.to_string()))?;
        Ok(Translation {
            code,
            sites: self.sites,
            indirect: indirect as u32,
            polled: polled as u32,
            plain: plain as u32,
            again: again as u32,
            exits: exits as u32,
            bytes: plan.bytes,
            instructions: plan.steps.len(),
            map: self.map,
        })
    }

    /// One step. The block proper begins at `head`.
    fn step(
        &mut self,
        plan: &Plan,
        number: usize,
        kept: &mut Addends,
        head: usize,
    ) -> Result<(), EmitError> {
        let step = &plan.steps[number];
        let is_first = self.map.is_empty();
        let host = if is_first { head } else { self.offset() } as u32;
        let relies = kept.until >= number || plan.again.keeps_in(number);
        let enters = (is_first || !relies) && !self.x87_live;
        if let Some(part) = step.part {
            kept.until = kept.until.max(kept.last_uses[usize::from(part.window)]);
        }
        self.spilled = [MapEntry::NONE; 2];
        self.region = step.region;
        self.ready = std::mem::take(&mut self.held);
        let (done, live) = (self.uncounted, self.vector_live);
        self.instruction(step, plan)?;
        if let Some(before) = number.checked_sub(1) {
            self.hold_off(&plan.steps[before], false);
        }
        self.uncounted = if self.transfers(step) { 0 } else { self.uncounted + 1 };
        let guest = step.insn.ip().wrapping_sub(self.frame.rip) as u16;
        self.map.push(MapEntry { host, guest, spilled: self.spilled, done, live, enters });
        Ok(())
    }

    /// After the step nothing is left to be counted: a transfer counts itself too, and Rust counts all.
    fn transfers(&self, step: &Step) -> bool {
        step.class == Class::HandOver
            || step.class.ends_block(&step.insn)
            || matches!(step.class, Class::Branch | Class::Count)
    }

    /// Where blocks count: `n` more instructions are run.
    fn count_instructions(&mut self, n: u8) {
        if self.counts && n > 0 {
            dynasm!(self.asm ; .arch x64
                ; gs mov r11, [offset::REMAINING]
                ; lea r11, [r11 - i32::from(n)]
                ; gs mov [offset::REMAINING], r11
            );
        }
    }

    /// Where a direct branch leads.
    fn target(&self, insn: &Instruction) -> u64 {
        let Mode { bits, .. } = self.frame.mode;
        let target = insn.near_branch_target();
        // Short addresses have lost what says that they float.
        if bits < 64 && self.frame.floats() { FLOATING | target } else { mask(target, bits) }
    }

    /// Whether the code is looked for by what its page is at an address: see [`crate::area::Area::homes`].
    fn has_home(&self) -> bool {
        self.frame.mode.has_home()
    }

    /// Loads an address of code, or one that is relative to it.
    fn address(&mut self, into: u8, address: u64) {
        if !is_floating(address) {
            dynasm!(self.asm ; .arch x64 ; mov Rq(into), QWORD address as i64);
            return;
        }
        dynasm!(self.asm ; .arch x64 ; gs mov Rq(into), [offset::HOME]);
        if !self.wide() {
            dynasm!(self.asm ; .arch x64 ; lea Rd(into), [Rq(into) + address as i32]);
            return;
        }
        let distance = address.wrapping_sub(FLOATING).cast_signed();
        // An instruction's end and its displacement may be a bit more than a displacement can say.
        let near = distance.clamp(i32::MIN.into(), i32::MAX.into()) as i32;
        for by in [near, (distance - i64::from(near)) as i32] {
            if by != 0 {
                dynasm!(self.asm ; .arch x64 ; lea Rq(into), [Rq(into) + by]);
            }
        }
    }

    /// Loads the address of an operand that no register moves.
    fn constant_address(&mut self, into: u8, insn: &Instruction, at: u64) {
        match insn.memory_base() {
            Register::RIP => self.address(into, at),
            Register::EIP if self.frame.floats() => {
                self.address(into, FLOATING.wrapping_add_signed(i64::from(at as i32)));
                dynasm!(self.asm ; .arch x64 ; mov Rd(into), Rd(into));
            }
            _ => dynasm!(self.asm ; .arch x64 ; mov Rq(into), QWORD at as i64),
        }
    }

    fn wide(&self) -> bool {
        self.frame.mode.bits == 64
    }

    fn offset(&self) -> usize {
        self.asm.offset().0
    }

    fn instruction(&mut self, step: &Step, plan: &Plan) -> Result<(), EmitError> {
        let bits = self.frame.mode.bits;
        let insn = &step.insn;
        let (rip, next) = (mask(insn.ip(), bits), mask(insn.next_ip(), bits));
        if matches!(step.class, Class::Jump | Class::Branch | Class::Count) {
            self.count_instructions(self.uncounted + 1);
        }
        let is_steady = self.is_steady(step, next);
        if !is_steady {
            self.ready = [None; 2];
        }
        match step.class {
            Class::Same => self.same(step, plan)?,
            Class::Push => self.push(step, plan)?,
            Class::Pop => self.pop(step, plan),
            Class::Leave => self.leave(step, plan),
            Class::Jump if matches!(self.edge, Some(Edge::Over(_))) => self.edge = None,
            Class::Jump => self.chain(self.target(insn), rip),
            Class::Branch => self.branch(insn)?,
            Class::Count => self.count(insn),
            Class::Call => {
                self.push_constant(next, step, plan);
                self.count_instructions(self.uncounted + 1);
                self.chain(self.target(insn), rip);
            }
            Class::Return => {
                let released = if insn.op_count() == 0 { 0 } else { i32::from(insn.immediate16()) };
                let size = slot_bytes(insn);
                let slot = i32::from(size);
                self.stack_load(R10, size, step, plan);
                self.move_stack(slot + released);
                self.indirect(rip, i64::from(slot + released));
            }
            Class::JumpIndirect => {
                self.load_target(step)?;
                self.indirect(rip, 0);
            }
            Class::CallIndirect => {
                self.load_target(step)?;
                self.call_indirect(step, plan, next);
            }
            Class::String => self.string(step),
            Class::BitString => self.bit_string(step)?,
            Class::Vector(plain) => self.vector(step, plan, plain)?,
            Class::LoadMxcsr => self.load_mxcsr(step)?,
            Class::LoadControlWord => self.load_control_word(step)?,
            Class::ReadTime => self.read_time(insn),
            Class::ReadControl => self.read_control(insn),
            Class::SwapGs => self.swap_gs(),
            Class::EnterKernel if self.wide() => self.enter_kernel(step, next),
            Class::EnterKernel => self.enter_kernel32(step, next),
            Class::LeaveKernel if self.wide() => self.leave_kernel(step, next),
            Class::LeaveKernel => self.leave_kernel32(step, next),
            Class::ReturnFar if self.wide() => self.return_far(step, plan, next),
            Class::ReturnFar => self.return_near(step, plan, next),
            Class::ToggleAc => self.toggle_ac(step, next),
            Class::JumpSegment => self.jump_segment(step, next)?,
            Class::CallSegment => self.call_segment(step, plan, next)?,
            Class::ReturnSegment => self.return_segment(step, plan, next),
            Class::EnterVector => self.enter_vector(step, plan, next),
            Class::LeaveVector => self.leave_vector(step, plan, next),
            Class::PushFlags => self.push_flags(step, plan),
            Class::PopFlags => self.pop_flags(step, plan, next),
            Class::ClearInterrupts => self.clear_interrupts(),
            Class::SetInterrupts => self.set_interrupts(step, next),
            Class::PushSegment => self.push_segment(step, plan),
            Class::PopSegment => self.pop_segment(step, plan),
            Class::StoreSegment => self.store_segment(step)?,
            Class::LoadSegment => self.load_segment(step)?,
            Class::LoadPointer => self.load_pointer(step)?,
            Class::PushAll => self.push_all(step, plan),
            Class::PopAll => self.pop_all(step, plan),
            Class::HandOver => self.hand_over(step, next),
        }
        if !is_steady {
            self.held = [None; 2];
        }
        Ok(())
    }

    /// Whether what the step is made into changes r10 and r11 only as [`Self::keep_but`], [`Self::recall`] and
    /// [`Self::keep`] say: r11 holds the addend of its stack slot, if it has one, from before that is accessed.
    fn is_steady(&self, step: &Step, next: u64) -> bool {
        let insn = &step.insn;
        let is_plain =
            |register: Register| register.is_gpr64() && scratch_number(register).is_none();
        self.wide()
            && match step.class {
                Class::Same | Class::Vector(_) | Class::Branch | Class::Return => true,
                Class::Push => match insn.op0_kind() {
                    OpKind::Register => is_plain(insn.op0_register()),
                    OpKind::Memory => false,
                    _ => is_short(insn.immediate(0)),
                },
                Class::Pop => is_plain(insn.op0_register()),
                Class::Call => is_short(next),
                _ => false,
            }
    }

    /// Says that r10 and r11 are what they were at the instruction's beginning, but for the registers of a mask.
    fn keep_but(&mut self, changed: u16) {
        for (n, register) in [R10, R11].into_iter().enumerate() {
            self.held[n] = self.ready[n].filter(|_| changed & 1 << register == 0);
        }
    }

    /// Brings a window's addend, which is kept, to r10 or r11: nothing need be done if it is there.
    fn recall(&mut self, into: u8, window: u8) {
        let n = usize::from(into - R10);
        if self.ready[n] != Some(window) {
            let slot = offset::window(usize::from(window));
            dynasm!(self.asm ; .arch x64 ; gs mov Rq(into), [slot]);
        }
        self.held[n] = Some(window);
    }

    /// Keeps a window's addend, which is in r10 or r11.
    fn keep(&mut self, from: u8, window: u8) {
        let slot = offset::window(usize::from(window));
        dynasm!(self.asm ; .arch x64 ; gs mov [slot], Rq(from));
        self.held[usize::from(from - R10)] = Some(window);
    }

    /// Loads guest r10 or r11 into the host's.
    fn load_guest(&mut self, register: u8) {
        dynasm!(self.asm ; .arch x64 ; gs mov Rq(register), [offset::gpr(usize::from(register))]);
    }

    fn store_guest(&mut self, register: u8) {
        dynasm!(self.asm ; .arch x64 ; gs mov [offset::gpr(usize::from(register))], Rq(register));
    }

    fn encode(&mut self, insn: &Instruction) -> Result<(), EmitError> {
        let at = self.frame.base + self.offset() as u64;
        self.encoder
            .encode(insn, at)
            .map_err(|error| EmitError::Encode(format!("{insn}: {error}")))?;
        let mut bytes = self.encoder.take_buffer();
        self.asm.extend(&bytes);
        bytes.clear();
        self.encoder.set_buffer(bytes);
        Ok(())
    }

    /// Copies `insn` from the guest's code.
    fn copy(&mut self, insn: &Instruction) {
        let start = insn.ip().wrapping_sub(self.frame.rip) as usize;
        self.asm.extend(&self.code[start..start + insn.len()]);
    }

    /// An instruction that runs as itself.
    fn same(&mut self, step: &Step, plan: &Plan) -> Result<(), EmitError> {
        let insn = &step.insn;
        let memory = has_memory(insn);
        if is_hint(insn) {
            self.keep_but(0);
            return Ok(());
        }
        if insn.mnemonic() == Mnemonic::Lea {
            return self.lea(insn);
        }
        if memory { self.with_memory(step, plan) } else { self.registers_only(step) }
    }

    fn registers_only(&mut self, step: &Step) -> Result<(), EmitError> {
        let scratch = 1 << R10 | 1 << R11;
        let is_same = match self.frame.mode.bits {
            64 => !is_prefixed_scan(&step.insn),
            32 => keeps_bytes(&step.insn),
            _ => false,
        };
        if is_same && step.uses.any & scratch == 0 {
            self.copy(&step.insn);
            self.keep_but(0);
            return Ok(());
        }
        self.keep_but(step.uses.any);
        self.around(&step.insn, &step.uses)
    }

    /// Emits `insn` with guest r10 and r11 loaded before and stored after, as far as it uses them.
    fn around(&mut self, insn: &Instruction, uses: &Uses) -> Result<(), EmitError> {
        for register in [R10, R11] {
            if uses.read & 1 << register != 0 {
                self.load_guest(register);
            }
        }
        self.encode(&wide_form(insn))?;
        for register in [R10, R11] {
            if uses.written & 1 << register != 0 {
                self.store_guest(register);
            }
        }
        Ok(())
    }

    fn lea(&mut self, insn: &Instruction) -> Result<(), EmitError> {
        let target = insn.op0_register();
        if let Some(address) = constant_address(insn) {
            // Of the address, as many bits as the register has.
            let number = target.full_register().number() as u8;
            if target.size() == 2 {
                if scratch_number(target).is_some() {
                    self.load_guest(number);
                }
                let whole = if number == R10 { R11 } else { R10 };
                self.constant_address(whole, insn, address);
                dynasm!(self.asm ; .arch x64 ; mov Rw(number), Rw(whole));
            } else {
                self.constant_address(number, insn, address);
                if target.size() == 4 {
                    dynasm!(self.asm ; .arch x64 ; mov Rd(number), Rd(number));
                }
            }
            if scratch_number(target).is_some() {
                self.store_guest(number);
            }
            return Ok(());
        }
        let registers = [insn.memory_base(), insn.memory_index()];
        for register in [R10, R11] {
            let used = registers.iter().any(|r| scratch_number(*r) == Some(register))
                || target.size() == 2 && scratch_number(target) == Some(register);
            if used {
                self.load_guest(register);
            }
        }
        let mut plain = *insn;
        plain.set_segment_prefix(Register::None);
        let narrow = is_narrow(insn);
        if narrow {
            let displacement = insn.memory_displacement64() as i16;
            plain.set_memory_base(insn.memory_base().full_register());
            plain.set_memory_index(insn.memory_index().full_register());
            plain.set_memory_displacement64(i64::from(displacement) as u64);
            plain.set_memory_displ_size(if displacement == 0 { 0 } else { 8 });
        }
        self.encode(&plain)?;
        if narrow && target.size() == 4 {
            let number = target.number() as u8;
            dynasm!(self.asm ; .arch x64 ; movzx Rd(number), Rw(number));
        }
        if registers.into_iter().chain([target]).all(|register| scratch_number(register).is_none())
        {
            self.keep_but(0);
        }
        if let Some(number) = scratch_number(target) {
            self.store_guest(number);
        }
        Ok(())
    }

    fn site(&mut self, site: Site) -> usize {
        self.sites.push(site);
        self.sites.len() - 1
    }

    fn finish_stubs(&mut self) {
        let mut stubs = std::mem::take(self.stubs);
        for stub in stubs.drain(..) {
            dynasm!(self.asm ; .arch x64 ; =>stub.label);
            match stub.restore {
                Restore::Nothing => {}
                Restore::Rcx => dynasm!(self.asm ; .arch x64 ; gs mov rcx, [offset::spill(0)]),
                Restore::Home => {
                    let offset = (self.frame.rip & 0xfff) as i32;
                    dynasm!(self.asm ; .arch x64
                        ; gs mov [offset::HOME], r11
                        ; lea r10, [r11 + offset]
                    );
                    self.leave_by_way_of(stub.site, self.frame.routines.look_again);
                    continue;
                }
                Restore::Target => dynasm!(self.asm ; .arch x64
                    ; gs mov [offset::RIP], r10
                    ; gs mov rcx, [offset::spill(0)]
                ),
                Restore::Access(borrowed) => {
                    dynasm!(self.asm ; .arch x64
                        ; gs mov [offset::EA], Rq(borrowed.address)
                        ; gs mov rcx, [offset::spill(0)]
                    );
                    self.give_back(borrowed);
                }
            }
            self.leave_by(stub.site);
        }
        *self.stubs = stubs;
    }

    /// Tells which site it is and leaves.
    fn leave_by(&mut self, site: usize) {
        self.leave_by_way_of(site, self.frame.routines.exit);
    }

    fn leave_by_way_of(&mut self, site: usize, routine: u64) {
        let number = self.frame.first_site + site as u32;
        dynasm!(self.asm ; .arch x64 ; gs mov DWORD [offset::SITE], number as i32);
        self.jump_to(routine);
    }

    /// JMP rel32 to a fixed address.
    fn jump_to(&mut self, target: u64) {
        let end = self.frame.base + self.offset() as u64 + 5;
        let distance = target.wrapping_sub(end) as i32;
        self.asm.push(0xe9);
        self.asm.push_i32(distance);
    }
}

fn has_memory(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory)
}
