//! Which address spaces run through shadow windows, and what is in them.
//!
//! Problem: mapping a page costs as much as some thousand accesses through the inline TLB, and a process may live for
//! less. Scheme: user code of an address space starts with the inline TLB. One that has been seen at work by several
//! interrupts without its TLB having been flushed, for four times as long as filling windows took lately, gets a
//! space of windows; its code is translated anew, for them. When its TLB is flushed, the space is woken for the next era
//! at once, if it was at work for four times as long as that takes; else that, too, has to be earned. A fault maps the
//! page, and its neighbours that need no bit set; what can't be mapped (devices, code being written, a real fault) is
//! the interpreter's, and an instruction that comes there often is translated with the inline TLB for a while.
//! Invariants: the space in use is that of the soft TLB's era; the area's regions are those of the space in use.

use std::collections::HashMap;

use iced_x86::{Decoder, Register};
use xenolith_codecache::cache::Located;
use xenolith_cpu::env::{Access, Memory, Place, Privilege};
use xenolith_cpu::interp::{Interp, copy_in, is_canonical};
use xenolith_cpu::state::{Cr0, Cr4};
use xenolith_cpu::{Gpa, Gva, PAGE_SIZE};
use xenolith_mmu::Shadow;
use xenolith_mmu::shadow::{Delta, Page, Run};
use xenolith_mmu::tlb::Peeked;
use xenolith_translator::area::{AreaBox, is_floating};
use xenolith_translator::emit::{self, MapEntry};
use xenolith_translator::mode::Mode;

use super::mmu::{FlushedPages, KeptLarge, NotingMmu};
use super::{Bt, Fetched};
use crate::config::Mmu;

/// Interrupts that must find an address space's user code at work before it gets windows.
const TICKS_TO_PROMOTE: u32 = 2;
/// Interrupts that must find a page's code at work in windows before regions are guessed in it: that costs a fault for
/// each guess that is wrong, and blocks that no other address can have.
const TICKS_TO_GUESS: u32 = 4;
/// Pages that interrupts are counted for.
const WARM_MAX: usize = 1 << 12;
/// An address space must have been at work for so many times what filling windows took for others.
const WORK_PER_COST: u64 = 4;
/// The same for waking windows of the kernel's code, whose blocks would have to be made a second time.
const KERNEL_WORK_PER_WAKING: u64 = 1;
/// Exits of the kernel's code, or ticks of the time stamp counter since the first one, before it does.
const EXITS_TO_PROMOTE: u32 = 3000;
const TIME_TO_PROMOTE: u64 = 20_000_000;
/// The owner of windows of global pages, whichever page tables they are in. No CR3 is like it.
const EVERYBODY: u64 = u64::MAX;
/// Eras that are counted for.
const ERAS_MAX: usize = 32;
/// Pages looked at around a fault; a power of two.
const AROUND_PAGES: u64 = 16;
/// Bytes of code that hold the rest of a guess.
const UNGUESSED_BYTES: usize = 32;
/// In an instruction's word: the block relies on the vector registers there.
pub(super) const LIVE: u64 = 1 << 40;
/// The block may be entered there, though not all before it was run by the block.
pub(super) const ENTERS: u64 = 1 << 41;
/// The vector of #DE.
const DIVIDE_ERROR: u64 = 0;
/// #PF's error code: the access was a write.
const WRITE: u64 = 2;

/// The windows of one privilege: user, or supervisor without AC.
#[derive(Debug)]
pub(super) struct Windows {
    pub shadow: Shadow,
    /// The era that `shadow` and the area's regions were last made right for.
    era: u64,
    /// Regions that lead somewhere in the area.
    shown: Vec<u16>,
    /// What eras have done to earn windows.
    earned: HashMap<u64, (u32, u64)>,
    /// Time stamp counts that filling has taken since a space was last made, and that it took for the spaces before, on
    /// average.
    spent: u64,
    cost: u64,
    /// Time stamp counts that it takes to look a page up when a space is woken, on average.
    page_cost: u64,
}

impl Windows {
    pub fn new(shadow: Shadow) -> Self {
        let (shown, earned) = (Vec::new(), HashMap::new());
        Self { shadow, era: 0, shown, earned, spent: 0, cost: 0, page_cost: 0 }
    }

    /// Makes a space for an era.
    fn create(&mut self, era: u64, owner: u64) {
        self.shadow.create(era, owner, ticks());
        self.cost = (self.cost + std::mem::take(&mut self.spent)) / 2;
    }

    /// Time stamp counts that waking a space of so many pages takes.
    fn waking(&self, pages: usize) -> u64 {
        pages as u64 * self.page_cost
    }

    /// Wakes the owner's space for an era, if there is one.
    fn wake(&mut self, era: u64, owner: u64, is_still: impl FnMut(u64, Page) -> bool) -> bool {
        let pages = self.shadow.asleep(owner).map_or(0, |asleep| asleep.pages as u64);
        let start = ticks();
        let woken = self.shadow.wake(era, owner, start, is_still);
        if let Some(each) = ticks().wrapping_sub(start).checked_div(pages) {
            self.page_cost = (3 * self.page_cost + each) / 4;
        }
        woken
    }

    /// Makes the area's regions those of the active space.
    fn show(&mut self, area: &mut AreaBox, privilege: usize) {
        for region in std::mem::take(&mut self.shown) {
            area.set_region(privilege, region, self.shadow.nowhere(region).delta);
        }
        for Delta { region, delta } in self.shadow.active_deltas() {
            area.set_region(privilege, region, delta);
            self.shown.push(region);
        }
    }

    /// Counts one more of what earns windows: how many there are, and the time since the first.
    fn earn(&mut self, era: u64) -> (u32, u64) {
        if self.earned.len() >= ERAS_MAX {
            self.earned.clear();
        }
        let now = ticks();
        let (count, since) = self.earned.entry(era).or_insert((0, now));
        *count += 1;
        (*count, now.wrapping_sub(*since))
    }
}

/// A privilege's code must have been at work for so many times what waking its windows takes.
fn work_per_waking(privilege: usize) -> u64 {
    if privilege == 0 { WORK_PER_COST } else { KERNEL_WORK_PER_WAKING }
}

/// Whether a mode is one that may have windows.
fn may_have_windows(mode: Mode) -> bool {
    mode.privilege != Privilege::SupervisorAc as u8 && !mode.armed
}

fn privilege_of(privilege: u8) -> Privilege {
    if privilege == Privilege::User as u8 { Privilege::User } else { Privilege::Supervisor }
}

impl Bt {
    /// What the windows of a privilege are good for: as long as the TLB keeps what they map. The kernel's
    /// are those of global pages, once there are global pages.
    fn window_era(&self, privilege: usize) -> u64 {
        let soft = &self.interp.mem.soft;
        if privilege > 0 && self.interp.state.cr4(Cr4::PGE) {
            soft.global_era()
        } else {
            soft.era()
        }
    }

    /// The mode of the present state: with windows if its address space has them.
    pub(super) fn mode(&mut self) -> Option<Mode> {
        let mut mode = Mode::of(&self.interp.state)?;
        mode.time &= self.tsc_base.is_some();
        Some(self.with_windows(mode))
    }

    /// A mode of this address space, with the windows that it has.
    pub(super) fn with_windows(&mut self, mode: Mode) -> Mode {
        if !may_have_windows(mode) {
            return mode;
        }
        let privilege = usize::from(mode.privilege);
        let era = self.window_era(privilege);
        if self.windows[privilege].era != era {
            let windows = &mut self.windows[privilege];
            windows.era = era;
            windows.shadow.switch(era, ticks());
            let never = self.stepping || self.shared.options.making.mmu == Mmu::Soft;
            if !never && windows.shadow.active_era().is_none() {
                let owner = self.window_owner(privilege);
                let windows = &mut self.windows[privilege];
                let asleep = windows.shadow.asleep(owner);
                if asleep.is_some_and(|it| {
                    it.worked >= work_per_waking(privilege) * windows.waking(it.pages)
                }) {
                    self.wake_windows(mode.privilege, era, owner);
                } else if self.shared.options.making.mmu == Mmu::Shadow {
                    windows.create(era, owner);
                }
            }
            self.windows[privilege].show(&mut self.area, privilege);
        }
        let windows = &self.windows[privilege];
        let shadow = windows.shadow.active_era() == Some(era);
        Mode { shadow, ..mode }
    }

    /// An interrupt came while user code ran, or kernel code was left: that earns windows.
    pub(super) fn earn_windows(&mut self, mode: Mode, interrupted: bool) {
        let user = mode.privilege == Privilege::User as u8;
        let never = self.stepping || self.shared.options.making.mmu == Mmu::Soft;
        if never || mode.shadow || !may_have_windows(mode) || user != interrupted {
            return;
        }
        let privilege = usize::from(mode.privilege);
        let era = self.window_era(privilege);
        let owner = self.window_owner(privilege);
        let windows = &mut self.windows[privilege];
        let (count, time) = windows.earn(era);
        let asleep = windows.shadow.asleep(owner);
        let earned = match asleep {
            Some(asleep) => time >= work_per_waking(privilege) * windows.waking(asleep.pages),
            None if user => count >= TICKS_TO_PROMOTE && time >= WORK_PER_COST * windows.cost,
            None => count >= EXITS_TO_PROMOTE || time >= TIME_TO_PROMOTE,
        };
        if !earned {
            return;
        }
        windows.earned.remove(&era);
        if asleep.is_some() {
            self.wake_windows(mode.privilege, era, owner);
        } else {
            windows.create(era, owner);
            self.stats.promotions += 1;
        }
        self.windows[privilege].show(&mut self.area, privilege);
    }

    /// Whose windows those of a privilege are: a user's by the page tables.
    fn window_owner(&self, privilege: usize) -> u64 {
        let state = &self.interp.state;
        if privilege > 0 {
            EVERYBODY
        } else if state.long_mode() {
            state.cr3 & !(PAGE_SIZE - 1)
        } else if state.cr0(Cr0::PG) {
            state.cr3
        } else {
            0
        }
    }

    /// Wakes the space of `owner` with what the guest's tables say now.
    fn wake_windows(&mut self, privilege: u8, era: u64, owner: u64) {
        let interp = &*self.interp;
        let mut large = KeptLarge::new();
        let mut peek = interp.mem.soft.peeks(&interp.state, privilege_of(privilege));
        let is_still = |page: u64, mapped: Page| {
            let found =
                peek(Gva(page << 12)).and_then(|found| for_windows(interp, privilege, found));
            found.is_some_and(|(gpa, may_write, shift)| {
                large.note(page << 12, shift);
                gpa.gpn() == mapped.gpn && (may_write || !mapped.writable)
            })
        };
        let woken = self.windows[usize::from(privilege)].wake(era, owner, is_still);
        drop(peek);
        self.stats.wakings += u64::from(woken);
        large.tell(&mut self.interp.mem.soft);
    }

    /// An interrupt came in a block of user code: after several, its page's code is made again here, with guesses.
    pub(super) fn warm_page(&mut self, mode: Mode, block: u32) {
        if self.stepping || mode.privilege > 0 || !self.may_guess(mode) {
            return;
        }
        let cache = self.shared.cache();
        if !cache.is_live(block) {
            return;
        }
        let (tag, gpn) = (cache.tag_of(block), cache.page_of(block));
        drop(cache);
        if !is_floating(tag) {
            return;
        }
        if self.warm.len() >= WARM_MAX {
            self.warm.clear();
        }
        let la = self.area.home;
        let ticks = self.warm.entry((la, gpn)).or_default();
        *ticks += 1;
        if *ticks == TICKS_TO_GUESS {
            // From now on the page has another identifier here.
            self.forget_page_id(la);
            self.area.flush_pages(la, 1);
            self.stats.warm_pages += 1;
        }
    }

    /// Whether the blocks of a page of user code serve all addresses that it is mapped at; else they are for this
    /// one, and regions are guessed in them.
    pub(super) fn page_floats(&self, la: u64, gpn: u64) -> bool {
        let is_warm = || self.warm.get(&(la, gpn)).is_some_and(|&ticks| ticks >= TICKS_TO_GUESS);
        let guesses =
            self.shared.has_probe && (self.shared.options.making.mmu == Mmu::Shadow || is_warm());
        !guesses
    }

    fn may_guess(&self, mode: Mode) -> bool {
        mode.shadow && mode.bits == 64 && self.shared.has_probe
    }

    /// Whether regions are guessed in a block at `rip`.
    pub(super) fn guesses(&self, mode: Mode, floats: bool, rip: u64) -> bool {
        // A kernel's pointers lead everywhere: guesses gain nothing there, as measured. Its half is the upper one;
        // loaders and decompressors run in the lower.
        self.may_guess(mode) && rip >> 63 == 0 && !floats
    }

    /// Drops from the windows what the guest has flushed.
    pub(super) fn settle_windows(&mut self) {
        let mem = &mut self.interp.mem;
        let global_era = mem.soft.global_era();
        let mut flushed = std::mem::take(&mut mem.flushed_pages);
        if std::mem::take(&mut mem.flushed_huge) {
            self.drop_windows();
        }
        for FlushedPages { era, page, count, global } in flushed.drain(..) {
            let may_stay = self.may_stay(0, page, count);
            let windows = &mut self.windows[0];
            if global {
                let kept = windows.shadow.active_era().filter(|_| may_stay);
                windows.shadow.unmap_but(kept, page, count);
            } else if !may_stay {
                windows.shadow.unmap(era, page, count);
            }
            if !self.may_stay(1, page, count) {
                self.windows[1].shadow.unmap(era, page, count);
                self.windows[1].shadow.unmap(global_era, page, count);
            }
        }
        self.interp.mem.flushed_pages = flushed;
    }

    /// Drops all windows.
    pub(super) fn drop_windows(&mut self) {
        for windows in &mut self.windows {
            windows.shadow.drop_all();
            windows.era = 0;
        }
    }

    /// A page that was flushed is mapped as the guest's tables still say: the next access would only
    /// bring it back.
    fn may_stay(&self, privilege: u8, page: u64, count: u64) -> bool {
        let shadow = &self.windows[usize::from(privilege)].shadow;
        let era = self.window_era(usize::from(privilege));
        if count > 1 || shadow.active_era() != Some(era) {
            return false;
        }
        let Some((gpn, writable)) = shadow.mapped(page) else { return false };
        self.peek(privilege, page << 12)
            .is_some_and(|(gpa, may_write, _)| gpa.gpn() == gpn && (may_write || !writable))
    }

    /// Sees to a fault in translated code: the address to go on at, and whether the vector registers must
    /// be loaded there; or the instruction, if the interpreter must do it; `state.rip` is then its address, as after
    /// [`Bt::unload`].
    pub(super) fn window_fault(&mut self, mode: Mode) -> Result<(usize, bool), Located> {
        self.retry_windows();
        let pc = std::mem::take(&mut self.area.fault_pc) as usize;
        let located = self.shared.cache().locate(pc);
        let at = located.expect("translated code faults only at instructions of blocks");
        let spilled = [(at.word >> 16) as u8, (at.word >> 24) as u8];
        for (n, register) in spilled.into_iter().enumerate() {
            if register != MapEntry::NONE {
                self.area.gpr[usize::from(register)] = self.area.spill[1 + n];
            }
        }
        self.interp.state.rip = self.rip_in(at.tag, at.word);
        self.count(at.word >> 32 & 0xff);
        let write = self.area.fault_error & WRITE != 0;
        let address = self.area.fault_address;
        let misled = self.may_guess(mode) && address >> 32 == 0;
        if misled && self.unguess(mode, pc, &at) {
            self.uncount(at.word >> 32 & 0xff);
            return Ok((at.host, at.word & LIVE != 0));
        }
        let helped = mode.shadow && !misled && {
            let shadow = &self.windows[usize::from(mode.privilege)].shadow;
            match shadow.linear(address) {
                Some(la) => self.fill_window(mode, la, write),
                None => shadow.is_nowhere(address) && self.open_regions(mode),
            }
        };
        if helped && !self.settle() {
            self.stats.window_fills += 1;
            self.uncount(at.word >> 32 & 0xff);
            return Ok((at.host, at.word & LIVE != 0));
        }
        if self.area.is_behind(address) {
            // An offset that isn't in its segment, or one of a window that the segment hasn't all of.
            self.stats.segment_misses += 1;
            self.note_unlucky_block(at.key);
        } else {
            self.stats.window_misses += 1;
            if !helped && !misled && self.area.fault_vector != DIVIDE_ERROR {
                self.note_fault(&at);
            }
        }
        Err(at)
    }

    /// Regions without a window all lead to one place: opens those that the instruction at `state.rip`
    /// may be about to touch. False if none was opened.
    fn open_regions(&mut self, mode: Mode) -> bool {
        if mode.bits < 64 {
            return self.open_window(mode, 0);
        }
        let rip = self.interp.state.rip;
        let Some(Fetched { host, .. }) = self.fetch(rip, mode) else { return false };
        let mut bytes = [0; 15];
        let len = bytes.len().min((PAGE_SIZE - (rip & (PAGE_SIZE - 1))) as usize);
        // SAFETY: no more than what is left of the page that `host` lies in.
        unsafe { copy_in(host, &mut bytes[..len]) };
        let options = self.cpuid.decoder_options();
        let insn = Decoder::with_ip(64, &bytes[..len], rip, options).decode();
        let area = &self.area;
        let value = |register: Register, _, _| {
            let full = register.full_register();
            match register {
                Register::FS | Register::GS => Some(area.seg_base[register.number()]),
                _ if full.is_gpr64() => {
                    let value = area.gpr[full.number()];
                    Some(if register.size() == 4 { value & 0xffff_ffff } else { value })
                }
                _ => Some(0),
            }
        };
        let mut addresses = vec![area.gpr[4], area.gpr[4].wrapping_sub(8), area.gpr[5]];
        for n in 0..insn.op_count() {
            addresses.extend(insn.virtual_address(n, 0, value));
            // What the base alone leads to, where the displacement leaves its region.
            addresses.push(value(insn.memory_base(), 0, 0).unwrap_or(0));
        }
        let mut opened = false;
        for la in addresses {
            // Most user code has nothing in the upper half, but that of a paravirtualized kernel has.
            let may =
                mode.privilege > 0 || la >> 63 == 0 || self.peek(mode.privilege, la).is_some();
            if is_canonical(la) && may {
                opened |= self.open_window(mode, la);
            }
        }
        opened
    }

    /// Gives a region a window. False if it has one or there is no room.
    fn open_window(&mut self, mode: Mode, la: u64) -> bool {
        let privilege = usize::from(mode.privilege);
        let windows = &mut self.windows[privilege];
        let Ok(Some(Delta { region, delta })) = windows.shadow.open_region(la) else {
            return false;
        };
        self.area.set_region(privilege, region, delta);
        windows.shown.push(region);
        true
    }

    /// Maps the page of `la` and its neighbours. False if that can't be.
    fn fill_window(&mut self, mode: Mode, la: u64, write: bool) -> bool {
        let start = ticks();
        let filled = self.map_around(mode, la, write);
        let windows = &mut self.windows[usize::from(mode.privilege)];
        windows.spent += ticks().wrapping_sub(start);
        filled
    }

    fn map_around(&mut self, mode: Mode, la: u64, write: bool) -> bool {
        let privilege = privilege_of(mode.privilege);
        if mode.bits == 64 && !is_canonical(la) {
            return false;
        }
        let access = if write { Access::Write } else { Access::Read };
        let interp = &mut *self.interp;
        let place = interp.mem.translate(&interp.state, Gva(la), access, privilege);
        let Ok(Place::Ram { gpa, .. }) = place else { return false };
        let watched = interp.mem.code_version(gpa) != 0;
        let Some((_, writable, shift)) = self.peek(mode.privilege, la) else { return false };
        if write && (!writable || watched) {
            return false;
        }
        let page = la >> 12;
        if self.windows[usize::from(mode.privilege)].shadow.has(page, write) {
            // It faulted though it is mapped: not something that mapping could help.
            return false;
        }
        let around = if shift > 12 { 1 << (shift.min(21) - 12) } else { AROUND_PAGES };
        let first = page & !(around - 1);
        let mut run: Option<Run> = None;
        for page_at in first..first + around {
            let next = self.window_page(mode, page_at, page_at == page && write);
            let joined = match (run, next) {
                (Some(run), Some(next)) => (run.gpn + run.count == next.gpn
                    && run.writable == next.writable)
                    .then_some(Run { count: run.count + 1, ..run }),
                _ => None,
            };
            if joined.is_some() {
                run = joined;
                continue;
            }
            if let Some(whole) = run
                && !self.map_run(mode, whole)
            {
                return false;
            }
            run = next;
        }
        run.is_none_or(|whole| self.map_run(mode, whole))
            && self.windows[usize::from(mode.privilege)].shadow.has(page, write)
    }

    fn map_run(&mut self, mode: Mode, run: Run) -> bool {
        let privilege = usize::from(mode.privilege);
        let windows = &mut self.windows[privilege];
        // What a user may see a kernel has cleared at least.
        let filled = mode.privilege == Privilege::User as u8;
        if windows.shadow.map(run, filled).is_err() {
            // Too many mappings: this address space goes back to the inline TLB.
            windows.shadow.drop_active();
            windows.show(&mut self.area, privilege);
            return false;
        }
        self.stats.window_pages += run.count;
        true
    }

    /// A page that may be mapped without asking the guest, if it isn't.
    fn window_page(&mut self, mode: Mode, page: u64, again: bool) -> Option<Run> {
        if self.windows[usize::from(mode.privilege)].shadow.has(page, false) && !again {
            return None;
        }
        let (gpa, writable, _) = self.peek(mode.privilege, page << 12)?;
        let interp = &*self.interp;
        if !interp.mem.soft.guest_ram().is_plain(gpa) {
            return None;
        }
        let writable = writable && interp.mem.code_version(gpa) == 0;
        Some(Run { page, gpn: gpa.gpn(), count: 1, writable })
    }

    fn peek(&self, privilege: u8, la: u64) -> Option<(Gpa, bool, u8)> {
        peek(&self.interp, privilege, la)
    }

    /// A region was guessed wrong by the load at `pc`: it will be looked up. False if the block is gone.
    fn unguess(&mut self, mode: Mode, pc: usize, at: &Located) -> bool {
        self.stats.misled += 1;
        self.shared.lessons().note_misled(self.interp.state.rip);
        if self.shared.is_alone() {
            let behind = std::ptr::with_exposed_provenance::<[u8; UNGUESSED_BYTES]>(pc);
            // SAFETY: code of ours, readable; blocks are followed by more than a few bytes.
            let behind = unsafe { behind.read() };
            if let Some(code) = emit::unguess(&behind, mode.privilege) {
                self.shared.cache().rewrite(pc - 1, &code);
                return true;
            }
        }
        self.shared.drop_block(at.key);
        false
    }

    /// Counts a fault that windows couldn't help; often enough, the instruction does without.
    fn note_fault(&mut self, at: &Located) {
        let (rip, next) = (self.interp.state.rip, &self.shared.next_retry);
        let again = self.shared.lessons().note_fault(at.key, rip, ticks(), next);
        if again {
            self.shared.drop_block(at.key);
        }
    }

    /// Lets instructions that have done without windows for long enough try again.
    pub(super) fn retry_windows(&mut self) {
        let (now, next) = (ticks(), &self.shared.next_retry);
        if !next.is_due(now) {
            return;
        }
        let due = self.shared.lessons().due(now, next);
        for key in due {
            self.shared.drop_block(key);
        }
    }
}

/// What the guest's tables say of an address, if its page may be in the windows at all. Those of user code may have
/// global pages too, which go with the era or by INVLPG.
fn peek(interp: &Interp<NotingMmu>, privilege: u8, la: u64) -> Option<(Gpa, bool, u8)> {
    let found = interp.mem.soft.peek(&interp.state, Gva(la), privilege_of(privilege))?;
    for_windows(interp, privilege, found)
}

fn for_windows(interp: &Interp<NotingMmu>, privilege: u8, page: Peeked) -> Option<(Gpa, bool, u8)> {
    let of_era = privilege == 0 || page.global == interp.state.cr4(Cr4::PGE);
    of_era.then_some((page.gpa, page.writable, page.shift))
}

/// The host's time stamp counter.
pub(super) fn ticks() -> u64 {
    // SAFETY: the time stamp counter may be read by any program here.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The eight bytes at a linear address, if they are in one page of RAM.
pub(super) fn peek_u64(interp: &Interp<NotingMmu>, privilege: u8, la: u64) -> Option<u64> {
    let offset = la % PAGE_SIZE;
    let mut bytes = [0; 8];
    if offset > PAGE_SIZE - bytes.len() as u64 {
        return None;
    }
    let page = interp.mem.soft.peek(&interp.state, Gva(la), privilege_of(privilege))?;
    let host = interp.mem.ram(Gpa(page.gpa.0 + offset), bytes.len())?;
    // SAFETY: that many bytes of RAM from there.
    unsafe { copy_in(host, &mut bytes) };
    Some(u64::from_le_bytes(bytes))
}
