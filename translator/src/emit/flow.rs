//! Control transfers: between blocks, and looks at the world on the way.
//!
//! Problem: a transfer should cost what it costs the guest, yet nothing may go on for ever unseen, and a
//! block must not be entered where the guest's memory map now has something else. Scheme: a direct
//! transfer is one jump, patched when its target is known: to the `plain` entry forward in the page,
//! to `polled` backward, to `guarded` in another page. Indirect ones look in the jump cache. Any cycle
//! has a backward or indirect transfer, so any cycle is polled. A poll loads from an address that the
//! attention word moves into reserved space, so it costs loads only and touches no flag; when it
//! faults, the signal handler finds the site's number in the NOP behind it.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use xenolith_cpu::env::Privilege;

use super::names::scratch_number;
use super::{
    Edge, EmitError, Emitter, LINE_BYTES, Link, Page, R10, R11, Restore, Site, Stub, mask,
};
use crate::area::{Area, FLOATING, home_mark, jumps_behind, offset};
use crate::plan::{Plan, Step};

/// The NOP behind a poll: `nop dword [rax + site]`.
pub const POLL_NOP: [u8; 3] = [0x0f, 0x1f, 0x80];
/// Bytes of a poll's last load.
pub const POLL_LOAD_BYTES: usize = 9;

/// Bytes of the register that LOOP and its like count by.
fn count_bytes(insn: &Instruction) -> u8 {
    use Code as C;
    match insn.code() {
        C::Loop_rel8_16_CX
        | C::Loop_rel8_32_CX
        | C::Loope_rel8_16_CX
        | C::Loope_rel8_32_CX
        | C::Loopne_rel8_16_CX
        | C::Loopne_rel8_32_CX
        | C::Jcxz_rel8_16
        | C::Jcxz_rel8_32 => 2,
        C::Loop_rel8_64_RCX
        | C::Loope_rel8_64_RCX
        | C::Loopne_rel8_64_RCX
        | C::Jrcxz_rel8_16
        | C::Jrcxz_rel8_64 => 8,
        _ => 4,
    }
}

impl Emitter<'_> {
    /// The block's first entry: for whoever comes from another page. Where pages have homes r11 is the linear address of the
    /// page that is meant, which must be the block's.
    pub(super) fn enter_guarded(&mut self) {
        let page = self.frame.page;
        if !self.has_home() {
            return self.guard(page);
        }
        let rip = FLOATING | self.frame.rip & 0xfff;
        self.guard_home(page, Site::Guard { rip }, true);
    }

    /// The second one: for whoever comes by the jump cache. Where pages have homes r10 is the linear address.
    pub(super) fn enter_indirect(&mut self) -> usize {
        if !self.frame.floats() {
            return self.offset();
        }
        let known = self.asm.new_dynamic_label();
        dynasm!(self.asm ; .arch x64 ; jmp =>known);
        let entry = self.offset();
        let offset = (self.frame.rip & 0xfff) as i32;
        dynasm!(self.asm ; .arch x64
            ; lea r11, [r10 - offset]
            ; =>known
            ; gs mov [offset::HOME], r11
        );
        entry
    }

    /// Looks up what a loop keeps, and goes to its first round. Gives the entry of the others.
    pub(super) fn enter_again(&mut self, plan: &Plan) -> Result<usize, EmitError> {
        let first = self.asm.new_dynamic_label();
        for step in plan.again.ahead.iter().map(|&number| &plan.steps[number]) {
            self.look_ahead(step)?;
        }
        dynasm!(self.asm ; .arch x64 ; jmp =>first);
        let entry = self.offset();
        self.poll();
        dynasm!(self.asm ; .arch x64 ; =>first);
        Ok(entry)
    }

    /// The block's second page is there.
    pub(super) fn guard_second(&mut self, page: Page) {
        if !self.has_home() {
            return self.guard(page);
        }
        self.address(R11, page.la);
        self.guard_home(page, Site::Guard { rip: self.frame.rip }, false);
    }

    /// Leaves unless the table of homes has the page's identifier at the address in r11.
    fn guard_home(&mut self, page: Page, site: Site, finds: bool) {
        let good = self.asm.new_dynamic_label();
        let out = self.asm.new_dynamic_label();
        let mark = home_mark(page.id) as i32;
        dynasm!(self.asm ; .arch x64 ; gs mov [offset::spill(0)], rcx);
        self.tlb_index(R10, R11);
        dynasm!(self.asm ; .arch x64
            ; gs mov rcx, [r10 * 8 + offset::HOMES]
            ; lea rcx, [rcx + r11 - mark]
            ; jrcxz =>good
            ; jmp =>out
            ; =>good
            ; gs mov rcx, [offset::spill(0)]
        );
        let site = self.site(site);
        let restore = if finds { Restore::Home } else { Restore::Rcx };
        self.stubs.push(Stub { label: out, site, restore });
    }

    /// Before a direct transfer: says which page is meant, if that isn't this one.
    fn announce(&mut self, target: u64) {
        if self.announces(target) {
            self.address(R11, target & !0xfff);
        }
    }

    fn announces(&self, target: u64) -> bool {
        self.has_home() && self.link(target) == Link::Guarded
    }

    /// Leaves unless the table of executable pages has the page's identifier.
    fn guard(&mut self, page: Page) {
        let entry = Area::exec_offset(page.la);
        let good = self.asm.new_dynamic_label();
        let out = self.asm.new_dynamic_label();
        dynasm!(self.asm ; .arch x64
            ; gs mov [offset::spill(0)], rcx
            ; gs mov ecx, [entry]
            ; lea rcx, [rcx + (page.id as i32).wrapping_neg()]
            ; jrcxz =>good
            ; jmp =>out
            ; =>good
            ; gs mov rcx, [offset::spill(0)]
        );
        let site = self.site(Site::Guard { rip: self.frame.rip });
        self.stubs.push(Stub { label: out, site, restore: Restore::Rcx });
    }

    /// Leaves when something is in the attention word, or the instructions to run are used up.
    pub(super) fn poll(&mut self) {
        let site = self.site(Site::Poll { rip: self.frame.rip, unrolls: self.unrolls });
        let number = self.frame.first_site + site as u32;
        if self.counts {
            dynasm!(self.asm ; .arch x64 ; gs mov r11, [offset::REMAINING]);
            self.gather_sign(R11);
            self.stop_unless_zero(number);
        }
        dynasm!(self.asm ; .arch x64
            ; gs mov r11, [offset::ATTENTION]
            ; mov r11d, [r11]
        );
        // User code that holds interrupts off is rare: it stops at each poll while one is pending, and goes on.
        if self.frame.mode.privilege != Privilege::User as u8 {
            self.pick_attention();
        }
        self.stop_unless_zero(number);
    }

    /// Leaves by a poll's site if r11 isn't zero: by a load that faults.
    fn stop_unless_zero(&mut self, site: u32) {
        let before = self.offset();
        dynasm!(self.asm ; .arch x64 ; gs mov r11, [r11 * 8 + offset::POLL]);
        debug_assert_eq!(self.offset() - before, POLL_LOAD_BYTES);
        self.asm.extend(&POLL_NOP);
        self.asm.push_u32(site);
    }

    /// Pads so that a displacement that comes `ahead` bytes from here is in one line of the cache.
    fn keep_in_line(&mut self, ahead: u64) {
        let at = (self.frame.base + self.offset() as u64 + ahead) % LINE_BYTES;
        for _ in 0..if at > LINE_BYTES - 4 { LINE_BYTES - at } else { 0 } {
            dynasm!(self.asm ; .arch x64 ; nop);
        }
    }

    /// How a transfer from this block to `target` is linked.
    fn link(&self, target: u64) -> Link {
        let frame = &self.frame;
        if frame.linear(target) >> 12 != frame.linear(frame.rip) >> 12 || frame.second.is_some() {
            Link::Guarded
        } else if target <= frame.rip {
            Link::Polled
        } else {
            Link::Plain
        }
    }

    /// The exit of a direct transfer whose displacement ends here.
    fn chained(&mut self, target: u64, label: DynamicLabel, from: u64) {
        let patch = self.offset() as u32 - 4;
        let mut link = self.link(target);
        if link == Link::Plain && target <= from {
            link = Link::Polled;
        }
        // Only the jump back: the block may end behind it, and what follows be in another page.
        if let Some(Edge::Again) = self.edge.take() {
            link = Link::Again;
        }
        let site = self.site(Site::Chain { target, patch, link });
        self.stubs.push(Stub { label, site, restore: Restore::Nothing });
    }

    /// Goes to `target`, from an instruction at `from` or, if that is 0, to what follows.
    pub(super) fn chain(&mut self, target: u64, from: u64) {
        let label = self.asm.new_dynamic_label();
        self.announce(target);
        self.keep_in_line(1);
        dynasm!(self.asm ; .arch x64 ; jmp =>label);
        self.chained(target, label, from);
    }

    /// Jcc: leaves for the target when taken, else goes on. Where another round of the loop follows it is the other way
    /// round.
    pub(super) fn branch(&mut self, insn: &Instruction) -> Result<(), EmitError> {
        if let Some(Edge::Over(over)) = self.edge {
            self.edge = None;
            self.keep_but(0);
            let mut inverse = *insn;
            inverse.negate_condition_code();
            return self.jump_if(&inverse, over);
        }
        let bits = self.frame.mode.bits;
        let target = self.target(insn);
        let taken = self.asm.new_dynamic_label();
        let changes_r11 = self.counts || self.announces(target);
        self.keep_but(if changes_r11 { 1 << R11 } else { 0 });
        self.announce(target);
        self.keep_in_line(2);
        self.jump_if(insn, taken)?;
        self.chained(target, taken, mask(insn.ip(), bits));
        Ok(())
    }

    /// Jcc with the condition of an instruction.
    fn jump_if(&mut self, insn: &Instruction, to: DynamicLabel) -> Result<(), EmitError> {
        use iced_x86::ConditionCode as C;
        match insn.condition_code() {
            C::o => dynasm!(self.asm ; .arch x64 ; jo =>to),
            C::no => dynasm!(self.asm ; .arch x64 ; jno =>to),
            C::b => dynasm!(self.asm ; .arch x64 ; jb =>to),
            C::ae => dynasm!(self.asm ; .arch x64 ; jae =>to),
            C::e => dynasm!(self.asm ; .arch x64 ; je =>to),
            C::ne => dynasm!(self.asm ; .arch x64 ; jne =>to),
            C::be => dynasm!(self.asm ; .arch x64 ; jbe =>to),
            C::a => dynasm!(self.asm ; .arch x64 ; ja =>to),
            C::s => dynasm!(self.asm ; .arch x64 ; js =>to),
            C::ns => dynasm!(self.asm ; .arch x64 ; jns =>to),
            C::p => dynasm!(self.asm ; .arch x64 ; jp =>to),
            C::np => dynasm!(self.asm ; .arch x64 ; jnp =>to),
            C::l => dynasm!(self.asm ; .arch x64 ; jl =>to),
            C::ge => dynasm!(self.asm ; .arch x64 ; jge =>to),
            C::le => dynasm!(self.asm ; .arch x64 ; jle =>to),
            C::g => dynasm!(self.asm ; .arch x64 ; jg =>to),
            C::None => return Err(EmitError::Encode(format!("condition of {insn}"))),
        }
        Ok(())
    }

    /// LOOP, LOOPE, LOOPNE and JRCXZ: none touches a flag.
    pub(super) fn count(&mut self, insn: &Instruction) {
        let target = self.target(insn);
        let done = self.asm.new_dynamic_label();
        let taken = self.asm.new_dynamic_label();
        let counts = !matches!(insn.mnemonic(), Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz);
        match count_bytes(insn) {
            2 => {
                let zero = self.asm.new_dynamic_label();
                // The bits above stay.
                if counts {
                    dynasm!(self.asm ; .arch x64 ; lea r11d, [rcx - 1] ; mov cx, r11w);
                }
                dynasm!(self.asm ; .arch x64
                    ; gs mov [offset::spill(0)], rcx
                    ; movzx ecx, cx
                    ; jrcxz =>zero
                    ; gs mov rcx, [offset::spill(0)]
                );
                if counts {
                    self.loop_taken(insn, target, taken, done);
                    dynasm!(self.asm ; .arch x64
                        ; =>zero
                        ; gs mov rcx, [offset::spill(0)]
                        ; =>done
                    );
                } else {
                    dynasm!(self.asm ; .arch x64
                        ; jmp =>done
                        ; =>zero
                        ; gs mov rcx, [offset::spill(0)]
                    );
                    self.loop_taken(insn, target, taken, done);
                    dynasm!(self.asm ; .arch x64 ; =>done);
                }
            }
            size if counts => {
                if size == 4 {
                    dynasm!(self.asm ; .arch x64 ; lea ecx, [rcx - 1] ; jrcxz =>done);
                } else {
                    dynasm!(self.asm ; .arch x64 ; lea rcx, [rcx - 1] ; jrcxz =>done);
                }
                self.loop_taken(insn, target, taken, done);
                dynasm!(self.asm ; .arch x64 ; =>done);
            }
            size => {
                let zero = self.asm.new_dynamic_label();
                if size == 4 {
                    dynasm!(self.asm ; .arch x64 ; jecxz =>zero);
                } else {
                    dynasm!(self.asm ; .arch x64 ; jrcxz =>zero);
                }
                dynasm!(self.asm ; .arch x64 ; jmp =>done ; =>zero);
                self.loop_taken(insn, target, taken, done);
                dynasm!(self.asm ; .arch x64 ; =>done);
            }
        }
    }

    /// The counter allows the transfer of `insn`; goes to `done` if ZF doesn't.
    fn loop_taken(
        &mut self,
        insn: &Instruction,
        target: u64,
        taken: DynamicLabel,
        done: DynamicLabel,
    ) {
        match insn.mnemonic() {
            Mnemonic::Loope => dynasm!(self.asm ; .arch x64 ; jne =>done),
            Mnemonic::Loopne => dynasm!(self.asm ; .arch x64 ; je =>done),
            _ => {}
        }
        self.announce(target);
        self.keep_in_line(1);
        dynasm!(self.asm ; .arch x64 ; jmp =>taken);
        self.chained(target, taken, mask(insn.ip(), self.frame.mode.bits));
    }

    /// Loads the target of an indirect transfer into r10.
    pub(super) fn load_target(&mut self, step: &Step) -> Result<(), EmitError> {
        let insn = &step.insn;
        if insn.op0_kind() == OpKind::Register {
            let register = insn.op0_register().full_register();
            let number = register.number() as u8;
            if scratch_number(register).is_some() {
                let at = offset::gpr(usize::from(number));
                dynasm!(self.asm ; .arch x64 ; gs mov r10, [at]);
            } else {
                match insn.op0_register().size() {
                    2 => dynasm!(self.asm ; .arch x64 ; movzx r10d, Rw(number)),
                    4 => dynasm!(self.asm ; .arch x64 ; mov r10d, Rd(number)),
                    _ => dynasm!(self.asm ; .arch x64 ; mov r10, Rq(number)),
                }
            }
            return Ok(());
        }
        self.load_operand(step, R10, insn.memory_size().size() as u8)
    }

    /// Looks for the address in r10 in the jump cache: after it r11 is the slot, to be scaled by 8. Leaves
    /// by `site` if it isn't there. In segmented code the segment's number is part of what is looked for.
    pub(super) fn look_up_jump(&mut self, site: Site) {
        self.look_up_jump_of(self.frame.mode.privilege, site);
    }

    /// The same in the jump cache of another privilege.
    pub(super) fn look_up_jump_of(&mut self, privilege: u8, site: Site) {
        if self.segmented() {
            dynasm!(self.asm ; .arch x64
                ; gs mov r11, [offset::CODE_NUMBER]
                ; lea r10, [r10 + r11]
            );
        }
        let jumps = offset::jumps(usize::from(privilege));
        let hit = self.asm.new_dynamic_label();
        let out = self.asm.new_dynamic_label();
        self.jump_index();
        dynasm!(self.asm ; .arch x64 ; gs mov [offset::spill(0)], rcx);
        let mode = self.frame.mode;
        let which = match privilege {
            _ if privilege == Privilege::User as u8 => Some(offset::USER_JUMPS),
            _ if privilege == Privilege::Supervisor as u8 && mode.privilege != privilege => {
                Some(offset::KERNEL_JUMPS)
            }
            _ => None,
        };
        match which {
            Some(which) => dynasm!(self.asm ; .arch x64
                ; gs mov rcx, [which]
                ; lea r11, [rcx + r11 * 2]
            ),
            None if privilege == Privilege::Supervisor as u8 && mode.shadow => {
                let behind = jumps_behind(1) as i32;
                dynasm!(self.asm ; .arch x64 ; lea r11, [r11 + r11 + behind]);
            }
            None => dynasm!(self.asm ; .arch x64 ; lea r11, [r11 + r11]),
        }
        dynasm!(self.asm ; .arch x64
            ; gs mov rcx, [r11 * 8 + jumps]
            ; lea rcx, [rcx + r10]
            ; jrcxz =>hit
            ; jmp =>out
            ; =>hit
            ; gs mov rcx, [offset::spill(0)]
        );
        let site = self.site(site);
        self.stubs.push(Stub { label: out, site, restore: Restore::Target });
    }

    /// Goes to the address in r10 by the jump cache, whose entries are polled.
    pub(super) fn indirect(&mut self, rip: u64, moved: i64) {
        self.count_instructions(self.uncounted + 1);
        self.leap(self.frame.mode.privilege, Site::Indirect { rip, moved });
    }

    /// Goes to the address in r10 by a privilege's jump cache, or leaves by `site` if it isn't there.
    pub(super) fn leap(&mut self, privilege: u8, site: Site) {
        self.look_up_jump_of(privilege, site);
        let jumps = offset::jumps(usize::from(privilege));
        dynasm!(self.asm ; .arch x64 ; gs jmp QWORD [r11 * 8 + jumps + 8]);
    }

    /// CALL to the address in r10. What the jump cache doesn't know the interpreter calls, since the
    /// address may be one that faults before anything is pushed.
    pub(super) fn call_indirect(&mut self, step: &Step, plan: &Plan, next: u64) {
        let jumps = offset::jumps(usize::from(self.frame.mode.privilege));
        let rip = mask(step.insn.ip(), self.frame.mode.bits);
        let (mnemonic, live) = (step.insn.mnemonic(), self.vector_live);
        let (done, again) = (self.uncounted, 0);
        let resume = 0;
        let site = Site::HandOver { rip, next, resume, live, mnemonic, done, again };
        self.look_up_jump(site);
        dynasm!(self.asm ; .arch x64
            ; gs mov r11, [r11 * 8 + jumps + 8]
            ; gs mov [offset::spill(3)], r11
        );
        if self.has_home() {
            dynasm!(self.asm ; .arch x64 ; gs mov [offset::spill(4)], r10);
        }
        self.push_constant(next, step, plan);
        self.count_instructions(self.uncounted + 1);
        if self.has_home() {
            dynasm!(self.asm ; .arch x64 ; gs mov r10, [offset::spill(4)]);
        }
        dynasm!(self.asm ; .arch x64 ; gs jmp QWORD [offset::spill(3)]);
    }

    /// Lets Rust do an instruction, and goes on behind it.
    pub(super) fn hand_over(&mut self, step: &Step, next: u64) {
        let rip = mask(step.insn.ip(), self.frame.mode.bits);
        let live = self.frame.mode.keeps_vector();
        let (mnemonic, done) = (step.insn.mnemonic(), self.uncounted);
        let again = 0;
        let site_with = |resume| Site::HandOver { rip, next, resume, live, mnemonic, done, again };
        let site = self.site(site_with(0));
        self.leave_by(site);
        if !step.class.ends_block(&step.insn) {
            self.sites[site] = site_with(self.offset() as u32);
        }
        self.vector_live = live;
        self.x87_live = false;
    }
}
