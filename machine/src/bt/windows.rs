//! Which address spaces run through shadow windows, and what is in them.
//!
//! Problem: mapping a page costs as much as some thousand accesses through the inline TLB, and a process
//! may live for less. Scheme: user code of an address space starts with the inline TLB. One that has been
//! seen at work by several interrupts without its TLB having been flushed gets a space of windows;
//! its code is translated anew, for them. A fault maps the page, and its neighbours that need no bit
//! set; what can't be mapped (devices, code being written, a real fault) is the interpreter's, and an
//! instruction that comes there often is translated with the inline TLB. Invariants: the space in use is
//! that of the soft TLB's era; the area's regions are those of the space in use.

use std::collections::HashMap;

use iced_x86::{Decoder, Register};
use xenolith_codecache::cache::Located;
use xenolith_cpu::env::{Access, Memory, Place, Privilege};
use xenolith_cpu::interp::{copy_in, is_canonical};
use xenolith_cpu::{Gva, PAGE_SIZE};
use xenolith_mmu::shadow::{Delta, Run};
use xenolith_translator::emit::MapEntry;
use xenolith_translator::mode::Mode;

use super::Bt;

/// Interrupts that an era must be seen working by.
const TICKS_TO_PROMOTE: u32 = 2;
/// Eras whose ticks are remembered.
const ERAS_MAX: usize = 32;
/// Pages looked at around a fault; a power of two.
const AROUND_PAGES: u64 = 16;
/// Faults at one instruction that the interpreter had to see to before it does without windows.
const FAULTS_MAX: u32 = 8;
/// Instructions that faults are counted of.
const FAULTING_MAX: usize = 1 << 16;
/// #PF's error code: the access was a write.
const WRITE: u64 = 2;

impl Bt {
    /// The mode of the present state: with windows if its address space has them.
    pub(super) fn mode(&mut self) -> Option<Mode> {
        let mode = Mode::of(&self.interp.state)?;
        if mode.bits != 64 || mode.privilege != Privilege::User as u8 {
            return Some(mode);
        }
        let era = self.interp.mem.soft.era();
        if self.shadow_era != era {
            self.shadow_era = era;
            self.shadow.switch(era);
            self.show_regions();
        }
        Some(Mode { shadow: self.shadow.active_era() == Some(era), ..mode })
    }

    /// Makes the area's regions those of the active space.
    fn show_regions(&mut self) {
        for region in std::mem::take(&mut self.regions_shown) {
            self.area.set_region(region, self.shadow.nowhere(region).delta);
        }
        for Delta { region, delta } in self.shadow.active_deltas() {
            self.area.set_region(region, delta);
            self.regions_shown.push(region);
        }
    }

    /// An interrupt came while user code ran: its address space may have earned windows.
    pub(super) fn tick(&mut self, mode: Mode) {
        if mode.shadow || mode.bits != 64 || mode.privilege != Privilege::User as u8 {
            return;
        }
        let era = self.interp.mem.soft.era();
        if self.ticks.len() >= ERAS_MAX {
            self.ticks.clear();
        }
        let ticks = self.ticks.entry(era).or_insert(0);
        *ticks += 1;
        if *ticks >= TICKS_TO_PROMOTE && !self.stepping {
            self.ticks.remove(&era);
            self.shadow.create(era);
            self.stats.promotions += 1;
            self.show_regions();
        }
    }

    /// Drops from the windows what the guest has flushed.
    pub(super) fn settle_windows(&mut self) {
        let mem = &mut self.interp.mem;
        if std::mem::take(&mut mem.flushed_large) {
            self.shadow.drop_active();
            self.shadow_era = 0;
        }
        for (era, page) in mem.flushed_shadows.drain(..) {
            self.shadow.unmap(era, page);
        }
    }

    /// Sees to a fault in translated code: the address to go on at, or nothing if the interpreter must do
    /// the instruction; `state.rip` is then its address, as after [`Bt::unload`].
    pub(super) fn window_fault(&mut self, mode: Mode) -> Option<usize> {
        let pc = std::mem::take(&mut self.area.fault_pc) as usize;
        let located = self.shared.cache().locate(pc);
        let at = located.expect("translated code faults only at instructions of blocks");
        let spilled = [(at.word >> 16) as u8, (at.word >> 24) as u8];
        for (n, register) in spilled.into_iter().enumerate() {
            if register != MapEntry::NONE {
                self.area.gpr[usize::from(register)] = self.area.spill[1 + n];
            }
        }
        self.interp.state.rip = at.tag.wrapping_add(at.word & 0xffff);
        self.count(at.word >> 32);
        let write = self.area.fault_error & WRITE != 0;
        let address = self.area.fault_address;
        let helped = mode.shadow
            && match self.shadow.linear(address) {
                Some(la) => self.fill_window(la, write),
                None => self.shadow.is_nowhere(address) && self.open_regions(mode),
            };
        if helped && !self.settle() {
            self.stats.window_fills += 1;
            self.uncount(at.word >> 32);
            return Some(at.host);
        }
        self.stats.window_misses += 1;
        if !helped {
            self.note_fault(&at);
        }
        None
    }

    /// Regions without a window all lead to one place: opens those that the instruction at `state.rip`
    /// may be about to touch. False if none was opened.
    fn open_regions(&mut self, mode: Mode) -> bool {
        let rip = self.interp.state.rip;
        let Some((hva, ..)) = self.fetch(rip, mode) else { return false };
        let mut bytes = [0; 15];
        let len = bytes.len().min((PAGE_SIZE - (rip & (PAGE_SIZE - 1))) as usize);
        // SAFETY: no more than what is left of the page that `hva` lies in.
        unsafe { copy_in(hva, &mut bytes[..len]) };
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
            if la >> 47 == 0 {
                opened |= self.open_window(la);
            }
        }
        opened
    }

    /// Gives a region a window. False if it has one or there is no room.
    fn open_window(&mut self, la: u64) -> bool {
        let Ok(Some(Delta { region, delta })) = self.shadow.open_region(la) else { return false };
        self.area.set_region(region, delta);
        self.regions_shown.push(region);
        true
    }

    /// Maps the page of `la` and its neighbours. False if that can't be.
    fn fill_window(&mut self, la: u64, write: bool) -> bool {
        if !is_canonical(la) {
            return false;
        }
        let access = if write { Access::Write } else { Access::Read };
        let interp = &mut *self.interp;
        let place = interp.mem.translate(&interp.state, Gva(la), access, Privilege::User);
        let Ok(Place::Ram { gpa, .. }) = place else { return false };
        let watched = interp.mem.code_version(gpa) != 0;
        let Some((_, writable, shift)) = interp.mem.soft.peek_user(&interp.state, Gva(la)) else {
            return false;
        };
        if write && (!writable || watched) {
            return false;
        }
        let page = la >> 12;
        if self.shadow.has(page, write) {
            // It faulted though it is mapped: not something that mapping could help.
            return false;
        }
        let around = if shift > 12 { 1 << (shift.min(21) - 12) } else { AROUND_PAGES };
        let first = page & !(around - 1);
        let mut run: Option<Run> = None;
        for page_at in first..first + around {
            let next = self.window_page(page_at, page_at == page && write);
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
                && !self.map_run(whole)
            {
                return false;
            }
            run = next;
        }
        run.is_none_or(|whole| self.map_run(whole)) && self.shadow.has(page, write)
    }

    fn map_run(&mut self, run: Run) -> bool {
        if self.shadow.map(run).is_err() {
            // Too many mappings: this address space goes back to the inline TLB.
            self.shadow.drop_active();
            self.show_regions();
            return false;
        }
        self.stats.window_pages += run.count;
        true
    }

    /// A page that may be mapped without asking the guest, if it isn't.
    fn window_page(&mut self, page: u64, again: bool) -> Option<Run> {
        if self.shadow.has(page, false) && !again {
            return None;
        }
        let interp = &*self.interp;
        let (gpa, writable, _) = interp.mem.soft.peek_user(&interp.state, Gva(page << 12))?;
        interp.mem.ram(gpa, PAGE_SIZE as usize)?;
        let writable = writable && interp.mem.code_version(gpa) == 0;
        Some(Run { page, gpn: gpa.gpn(), count: 1, writable })
    }

    /// Counts a fault that windows couldn't help; often enough, the instruction does without.
    fn note_fault(&mut self, at: &Located) {
        let rip = self.interp.state.rip;
        if self.faults.len() >= FAULTING_MAX {
            self.faults.clear();
        }
        let times = self.faults.entry(rip).or_insert(0);
        *times += 1;
        if *times == FAULTS_MAX {
            self.shared.cache().remove(at.key);
            self.shared.forget_jumps(&[(at.key, at.tag)]);
        }
    }
}

/// Whether the instruction at `rip` does without windows.
pub(super) fn faults_often(faults: &HashMap<u64, u32>, rip: u64) -> bool {
    faults.get(&rip).is_some_and(|&times| times >= FAULTS_MAX)
}
