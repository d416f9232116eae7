//! The translating engine: runs a vCPU by translated code, and by the interpreter for the rest.
//!
//! Problem: translated code knows only plain instructions and memory that its inline TLB has. Scheme: a
//! loop. Find or make the block for the present state and enter it; when it leaves, its
//! [`Site`] says why: refill the TLB and go on, chain to the next block, or let the interpreter do one
//! instruction (everything sensitive, faulting, or outside RAM). Invariants: between two rounds the
//! whole state is in `CpuState`, but for vector registers, which are in the area until somebody asks;
//! what the interpreter flushed or wrote is acted on before translated code runs again; only pages
//! without translated code may be written inline; a host address of code is used only in the epoch in
//! which it was got. One per vCPU, on its thread, where signals other than synchronous ones are
//! blocked: the host's RSP is the guest's.

mod away;
mod breakpoints;
mod common;
mod crossing;
mod lessons;
mod listed;
mod make;
mod mmu;
pub mod probe;
mod quick;
mod segments;
mod shared;
mod stats;
mod vector;
mod windows;

use std::arch::asm;
use std::collections::HashMap;
use std::sync::Arc;

use iced_x86::Mnemonic;
use xenolith_codecache::arena::ArenaError;
use xenolith_codecache::cache::{Entries, Key, Record, Source};
use xenolith_cpu::cpuid::CpuidModel;
use xenolith_cpu::env::{Access, Env, Memory, Place, Privilege, attention};
use xenolith_cpu::host_code::HostCode;
use xenolith_cpu::interp::{self, Interp, PortAccess, Prepared, Returned, is_canonical};
use xenolith_cpu::state::{Activity, Rflags, sreg};
use xenolith_cpu::vector::is_vector;
use xenolith_cpu::{CpuState, Gva, INSN_BYTES_MAX, PAGE_SIZE};
use xenolith_mmu::{Shadow, SoftMmu};
use xenolith_translator::area::{Area, AreaBox, CodePage, FLOATING, RETURNS, Rights, is_floating};
use xenolith_translator::classify::{Class, classify};
use xenolith_translator::emit::{Page, Site};
use xenolith_translator::mode::Mode;

use crate::engine::{Engine, Exit};
use crate::signal;
use away::Elsewhere;
use breakpoints::Breakpoints;
use make::Maker;
use mmu::{Flushed, NotingMmu};
use segments::{Codes, Spot, note_place, rip_of};
use shared::{PageKey, Peer, Side};
use stats::Stats;
use vector::Home;
use windows::Windows;

pub use shared::{Options, Shared, SharedSlot};
pub use stats::Report;

/// Guest instructions in a block at most.
pub(crate) const LENGTH_MAX: usize = 64;
/// Single pages to flush before all are.
const FLUSHED_PAGES_MAX: usize = 32;
/// Rounds before the caller is asked: it counts time by them.
const INTERPRETED_RUN: u64 = 64;
/// Which is the jump cache of the kernel's code that uses shadow windows, behind those of the privileges.
const WINDOWED_JUMPS: usize = 3;
/// Page identifiers that one vCPU remembers; a power of two.
const PAGE_IDS: usize = 4096;
/// Instructions left to the interpreter that one vCPU keeps decoded; a power of two.
const PREPARED: usize = 2048;

/// The kernel lets programs use WRGSBASE (arch/x86, ELF_HWCAP2).
const HWCAP2_FSGSBASE: u64 = 1 << 1;

/// What a site leaves to the interpreter, decoded; the site's number is good in one epoch.
struct KnownInsn {
    site: u32,
    epoch: u64,
    insn: Prepared<NotingMmu>,
    /// It reads or writes vector state.
    vector: bool,
    /// It changes general registers, status flags and memory only.
    plain: bool,
    /// It is an IN or OUT.
    port: Option<PortAccess>,
}

/// See the module's head.
pub struct Bt {
    interp: Box<Interp<NotingMmu>>,
    area: AreaBox,
    shared: Arc<Shared>,
    me: Arc<Peer>,
    cpuid: Arc<CpuidModel>,
    maker: Maker,
    /// Whose jump cache each privilege's is, and that of the kernel's code with windows.
    jump_owner: [Option<Mode>; WINDOWED_JUMPS + 1],
    /// The modes of each privilege, while translated code may go from one to another.
    sides: [Option<Mode>; 3],
    /// IRETs at CPL 0 that were done: see [`RETURNS`].
    returns: [Option<Returned>; RETURNS],
    page_ids: Box<[Option<KnownPage>]>,
    prepared_insns: Box<[Option<KnownInsn>]>,
    /// Where the guest's vector registers are while Rust runs.
    home: Home,
    /// The area's image of the x87 registers is that of `CpuState`.
    x87_ready: bool,
    /// The thread is prepared: signals are blocked, faults are understood.
    prepared: bool,
    /// What makes the host's time stamp counter the guest's, but for the guest's own offset.
    tsc_base: Option<u64>,
    /// Numbers of code segments.
    codes: Codes,
    /// The breakpoints that are armed, as far as translated code's tables know.
    breakpoints: Option<Breakpoints>,
    /// Blocks are run one at a time: nothing is chained or remembered.
    stepping: bool,
    /// For user code and for the kernel's.
    windows: [Windows; 2],
    /// Interrupts that have found pages' code at work in windows, by linear and guest physical page.
    warm: HashMap<(u64, u64), u32>,
    /// Blocks count: `remaining` was this at the last entry.
    entered_with: i64,
    /// Where this run's budget ends, as a value of `retired`.
    end: u64,
    elsewhere: Elsewhere,
    pub stats: Stats,
}

/// Why there is no translating engine.
#[derive(Debug, thiserror::Error)]
pub enum BtError {
    #[error(transparent)]
    Arena(#[from] ArenaError),
    #[error("the host gives no address space for a processor: {0}")]
    Area(std::io::Error),
    #[error("the translator needs a host with AVX and FSGSBASE; use --engine interp")]
    Host,
}

impl std::fmt::Debug for Bt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bt").field("stats", &self.stats).finish_non_exhaustive()
    }
}

/// A page whose identifier a vCPU remembers.
#[derive(Clone, Copy)]
struct KnownPage {
    page: PageKey,
    id: u32,
    floats: bool,
}

/// Where an instruction was fetched: its host address, and its page.
#[derive(Clone, Copy)]
struct Fetched {
    host: *const u8,
    page: Page,
    gpn: u64,
    /// Blocks of the page serve all addresses that it is mapped at.
    floats: bool,
}

/// A block found, and the epoch its addresses are good for.
#[derive(Clone, Copy)]
struct Found {
    entries: Entries,
    key: Key,
    epoch: u64,
}

impl Bt {
    /// # Errors
    /// The host refuses executable memory, or lacks an instruction that the translator emits.
    pub fn new(
        state: CpuState,
        soft: SoftMmu,
        env: Box<dyn Env>,
        cpuid: Arc<CpuidModel>,
        apic_id: u32,
        code: Box<dyn HostCode>,
        shared: Arc<Shared>,
    ) -> Result<Self, BtError> {
        // SAFETY: AT_HWCAP2 is a plain query.
        let fsgsbase = unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_FSGSBASE != 0;
        if !fsgsbase || !std::arch::is_x86_feature_detected!("avx") {
            return Err(BtError::Host);
        }
        let attention = env.attention();
        let tsc_base = env.tsc_base();
        let bmi2 = shared.host.bmi2;
        let mut area = AreaBox::new(Arc::as_ptr(&attention).cast(), bmi2).map_err(BtError::Area)?;
        area.exit = shared.routines.exit;
        let make = || Shadow::new(Arc::clone(soft.guest_ram()));
        let windows = [make(), make()].map(|shadow| shadow.map(Windows::new));
        let [user, supervisor] = windows.map(|made| made.map_err(|e| BtError::Area(e.into())));
        let windows = [user?, supervisor?];
        for (privilege, windows) in windows.iter().enumerate() {
            for region in 0..=u16::MAX {
                area.set_region(privilege, region, windows.shadow.nowhere(region).delta);
            }
        }
        let me = shared.join(attention, area.as_ptr());
        let mem = NotingMmu::new(soft, Arc::clone(&shared), Arc::clone(&me));
        let interp = Box::new(Interp::new(state, mem, env, Arc::clone(&cpuid), apic_id, code));
        Ok(Self {
            interp,
            area,
            shared,
            me,
            maker: Maker::new(&cpuid),
            cpuid,
            jump_owner: [None; WINDOWED_JUMPS + 1],
            sides: [None; 3],
            returns: [None; RETURNS],
            elsewhere: Elsewhere::default(),
            page_ids: vec![None; PAGE_IDS].into_boxed_slice(),
            prepared_insns: (0..PREPARED).map(|_| None).collect(),
            home: Home::State,
            x87_ready: false,
            tsc_base,
            codes: Codes::default(),
            breakpoints: None,
            prepared: false,
            stepping: false,
            windows,
            warm: HashMap::new(),
            entered_with: 0,
            end: u64::MAX,
            stats: Stats::default(),
        })
    }

    /// One round; `Some` when the caller is needed.
    fn round(&mut self) -> Option<Exit> {
        if self.is_wanted()
            && let Some(exit) = self.interpret(1, true)
        {
            return Some(exit);
        }
        self.settle();
        let Some(mode) = self.mode() else {
            self.stats.unfit += 1;
            let one = self.stepping || self.fits_soon();
            return self.interpret(if one { 1 } else { INTERPRETED_RUN }, true);
        };
        match self.find(mode) {
            Some(found) => self.run_from(found, mode),
            None => {
                self.stats.unfound += 1;
                let run = if self.stepping || !mode.armed { 1 } else { INTERPRETED_RUN };
                self.interpret(run, true)
            }
        }
    }

    /// The state has no blocks, but will after one instruction: after a fault was returned from (RF), or while
    /// interrupts are held off.
    fn fits_soon(&self) -> bool {
        let state = &self.interp.state;
        let stays = Rflags::TF | Rflags::DF;
        state.rflags & stays.bits() == 0 && state.pending_debug == 0
    }

    /// Something must be looked at before the next instruction.
    fn is_wanted(&self) -> bool {
        u64::from(self.attention()) & self.deliverable() != 0
            || self.interp.state.activity != Activity::Running
    }

    fn attention(&self) -> u32 {
        // SAFETY: the word belongs to the vCPU's pins, which the interpreter's `env` keeps alive; it is
        // an atomic, read whole.
        unsafe { self.area.attention.read_volatile() }
    }

    /// Attention bits that matter now: a maskable interrupt does only when it can be taken.
    fn deliverable(&self) -> u64 {
        if self.interp.state.flag(Rflags::IF) {
            u64::from(u32::MAX)
        } else {
            u64::from(!attention::INTR)
        }
    }

    /// Lets the interpreter do some instructions. `vector`: they may concern vector registers.
    fn interpret(&mut self, budget: u64, vector: bool) -> Option<Exit> {
        if vector {
            self.bring_home();
        }
        let before = self.interp.state.retired;
        let exit = self.interp.run(budget);
        self.stats.interpreted += self.interp.state.retired - before;
        match exit {
            interp::Exit::Budget => None,
            interp::Exit::Halted => Some(Exit::Halted),
            interp::Exit::Shutdown => Some(Exit::Shutdown),
            interp::Exit::Attention => Some(Exit::Attention),
        }
    }

    /// Lets the interpreter do the instruction that the site just left by stands for, in a block of `mode`. True if
    /// nothing but general registers, status flags and memory can have changed.
    fn do_one(&mut self, epoch: u64, mode: Mode) -> Result<bool, Exit> {
        let site = self.area.site as u32;
        let slot = &mut self.prepared_insns[site as usize % PREPARED];
        if slot.as_ref().is_none_or(|known| known.site != site || known.epoch != epoch) {
            *slot = self.interp.prepare().map(|insn| {
                let vector = is_vector(insn.instruction());
                let plain = classify(insn.instruction(), mode) == Class::Same;
                let port = PortAccess::of(insn.instruction());
                KnownInsn { site, epoch, insn, vector, plain, port }
            });
        }
        let Some(vector) = slot.as_ref().map(|known| known.vector) else {
            return self.interpret(1, true).map_or(Ok(false), Err);
        };
        if vector {
            self.bring_home();
        }
        let known = self.prepared_insns[site as usize % PREPARED].as_ref().expect("just looked at");
        let retired = self.interp.state.retired;
        let done = self.interp.run_prepared(&known.insn);
        let plain = known.plain;
        let retired = self.interp.state.retired - retired;
        self.stats.interpreted += retired;
        // An exception that was delivered isn't counted.
        if done {
            Ok(plain && retired == 1)
        } else {
            self.interpret(1, vector).map_or(Ok(false), Err)
        }
    }

    /// Acts on what the interpreter and other vCPUs want forgotten. True if there was anything.
    fn settle(&mut self) -> bool {
        let mem = &mut self.interp.mem;
        let flushed = std::mem::replace(&mut mem.flushed, Flushed::Nothing);
        let quiet = flushed == Flushed::Nothing
            && mem.flushed_pages.is_empty()
            && mem.newly_watched.is_empty()
            && !mem.met_device
            && !mem.stored_to_code;
        if quiet {
            return self.settle_breakpoints();
        }
        self.settle_breakpoints();
        if std::mem::take(&mut self.interp.mem.met_device) {
            self.shared.evict_all(&self.me);
        }
        let mem = &mut self.interp.mem;
        mem.stored_to_code = false;
        let many = mem.flushed_pages.len() > FLUSHED_PAGES_MAX;
        if flushed != Flushed::Nothing || many {
            if flushed == Flushed::All || many {
                self.elsewhere.clear();
                self.flush_area();
            } else {
                self.switch_tables();
            }
            self.stats.flushes += 1;
        }
        self.drop_kept();
        let mem = &mut self.interp.mem;
        // A local flush may come with single pages, which may be global ones.
        if !many {
            for flushed in &mem.flushed_pages {
                self.area.flush_pages(flushed.page << 12, flushed.count);
            }
        }
        self.stats.page_flushes += mem.flushed_pages.len() as u64;
        let watched = std::mem::take(&mut mem.newly_watched);
        self.forbid_writes(&watched);
        self.settle_windows();
        true
    }

    /// Lets nothing be written inline to guest pages any more: they are watched.
    fn forbid_writes(&mut self, pages: &[u64]) {
        for &gpn in pages {
            let ram = self.interp.mem.soft.guest_ram();
            if let Some(host) = ram.host_ptr(xenolith_cpu::Gpa(gpn << 12), 1) {
                self.area.forbid_writes(host.addr() as u64);
            }
            for windows in &mut self.windows {
                windows.shadow.forbid_writes(gpn);
            }
        }
    }

    /// The identifier of the page last seen at `la`, if this vCPU remembers it.
    fn known_page(&self, la: u64, side: Side) -> Option<u32> {
        let KnownPage { page, id, .. } = self.page_ids[(la >> 12) as usize & (PAGE_IDS - 1)]?;
        (page.la == la && page.side == side && page.code == 0).then_some(id)
    }

    fn page_id(&mut self, page: PageKey) -> Option<KnownPage> {
        let slot = (page.la >> 12 ^ page.code) as usize & (PAGE_IDS - 1);
        let known = self.page_ids[slot].filter(|known| known.page == page);
        if known.is_some() {
            return known;
        }
        let floats = page.side == Side::Home && self.page_floats(page.la, page.gpn);
        let la = if floats { FLOATING } else { page.la };
        let id = self.shared.page_id(PageKey { la, ..page })?;
        self.page_ids[slot] = Some(KnownPage { page, id, floats });
        self.page_ids[slot]
    }

    fn forget_page_id(&mut self, la: u64) {
        self.page_ids[(la >> 12) as usize & (PAGE_IDS - 1)] = None;
    }

    /// The RIP that an address of code in translated code of `mode` stands for, of the block that was left last.
    fn present(&self, mode: Mode, rip: u64) -> u64 {
        if !is_floating(rip) {
            return rip;
        }
        let rip = self.area.home.wrapping_add(rip.wrapping_sub(FLOATING));
        if mode.bits == 64 { rip } else { rip & 0xffff_ffff }
    }

    /// The RIP of an instruction of the block that was left last, by the block's tag and the instruction's word.
    fn rip_in(&self, tag: u64, word: u64) -> u64 {
        let first =
            if is_floating(tag) { self.area.home | tag & (PAGE_SIZE - 1) } else { rip_of(tag) };
        first.wrapping_add(word & 0xffff)
    }

    /// Translates the address of an instruction.
    fn fetch(&mut self, la: u64, mode: Mode) -> Option<Fetched> {
        if self.breakpoints.is_some_and(|armed| armed.on_code(la)) {
            return None;
        }
        let side = Side::of(mode);
        let supervisor = side == Side::Supervisor;
        let privilege = if supervisor { Privilege::Supervisor } else { Privilege::User };
        let interp = &mut *self.interp;
        let place = interp.mem.translate(&interp.state, Gva(la), Access::Fetch, privilege).ok()?;
        let Place::Ram { hva, gpa } = place else { return None };
        let global = interp.mem.soft.cached(Gva(la), privilege).is_some_and(|page| page.global);
        let page_la = la & !(PAGE_SIZE - 1);
        let page = PageKey { la: page_la, gpn: gpa.gpn(), code: 0, side };
        let KnownPage { id, floats, .. } = self.page_id(page)?;
        if side == Side::Home {
            self.area.vouch_home(la, id);
        } else {
            self.area.vouch(la, id, global);
        }
        let page = Page { la: page_la, id };
        Some(Fetched { host: hva.cast_const(), page, gpn: gpa.gpn(), floats })
    }

    /// The block for the present state; `None` when the interpreter must do what comes.
    fn find(&mut self, mode: Mode) -> Option<Found> {
        let number = self.code_number(mode);
        let at = Spot::of(&self.interp.state, mode, number)?;
        let first = self.fetch(at.la, mode)?;
        let in_page = (PAGE_SIZE - (at.la & (PAGE_SIZE - 1))) as usize;
        // An instruction may lie across the page's end: its block is vouched for by both pages.
        let next_page = at.la.wrapping_add(in_page as u64);
        let crosses = in_page < INSN_BYTES_MAX && (mode.bits == 64 || next_page >> 32 == 0);
        let second = if crosses { self.fetch(next_page, mode) } else { None };
        let key = self.key_of(first.page, first.gpn, mode, &at)?;
        let (found, epoch) = {
            let cache = self.shared.cache();
            // The pages of an instruction across two needn't be the same two everywhere, nor both be mapped. Then it
            // is for the interpreter.
            let wanted = if crosses { cache.second_page(key) } else { None };
            let differs = |wanted: &Source| second.is_none_or(|there| there.gpn != wanted.gpn);
            if wanted.is_some_and(|wanted| differs(&wanted)) {
                return None;
            }
            let knows = |wanted: &Source| second.is_some_and(|there| there.page.id == wanted.id);
            let found = cache.find(key).filter(|_| wanted.is_none_or(|wanted| knows(&wanted)));
            (found, self.shared.epoch())
        };
        let found = match found {
            Some(entries) => Found { entries, key, epoch },
            None => {
                if crosses {
                    // It may be there, but for a second page that has another identifier by now.
                    self.shared.drop_block(key);
                }
                self.make(mode, key, at, first, second)?
            }
        };
        self.settle();
        if !self.stepping {
            self.own_jumps(mode);
            let global = self.page_is_global(at.la, mode);
            let entry = found.entries.indirect as u64;
            let mut cache = self.shared.cache();
            // Under the lock: whoever drops the block from now on makes this jump cache forget it.
            if let Some((entries, tag)) = cache.find_mut(key)
                && entries == found.entries
            {
                note_place(tag, at);
                let privilege = usize::from(mode.privilege);
                let page = CodePage { id: first.page.id, gpn: first.gpn, global };
                self.area.remember(privilege, at.tag(), at.la, page, entry);
            }
        }
        Some(found)
    }

    /// The block that the guest comes to at `state.rip` will be entered: tells it where it is.
    fn arrive(&mut self) {
        let rip = self.interp.state.rip;
        self.area.scratch[0] = rip;
        self.area.home = rip & !(PAGE_SIZE - 1);
    }

    /// Where to go on in a mode that has just been entered, and the epoch that the address is good for.
    fn go_on(&mut self, mode: Mode) -> Option<(usize, u64)> {
        let epoch = self.shared.epoch();
        self.own_jumps(mode);
        let tag = self.code_number(mode).wrapping_add(self.interp.state.rip);
        match self.area.jump(usize::from(mode.privilege), tag) {
            Some(host) => Some((host as usize, epoch)),
            None => self.find(mode).map(|found| (found.entries.polled, found.epoch)),
        }
    }

    fn page_is_global(&self, la: u64, mode: Mode) -> bool {
        let privilege = if mode.privilege == 0 { Privilege::User } else { Privilege::Supervisor };
        self.interp.mem.soft.cached(Gva(la), privilege).is_some_and(|page| page.global)
    }

    /// Makes the jump cache of this privilege that of `mode`.
    fn own_jumps(&mut self, mode: Mode) {
        let is_kernel = mode.privilege == Privilege::Supervisor as u8;
        if is_kernel {
            self.area.choose_kernel_jumps(mode.shadow);
        }
        let windowed = is_kernel && mode.shadow;
        let cache = if windowed { WINDOWED_JUMPS } else { usize::from(mode.privilege) };
        let owner = &mut self.jump_owner[cache];
        if *owner != Some(mode) {
            *owner = Some(mode);
            self.area.crossing_closed = 1;
            self.area.flush_jumps_of(usize::from(mode.privilege));
        }
    }

    /// Enters translated code, and stays while only the TLB or a chain is wanted. `state.rip` is always
    /// where the guest is at `target`.
    fn run_from(&mut self, found: Found, mode: Mode) -> Option<Exit> {
        let mut mode = mode;
        self.own_jumps(mode);
        self.load(mode);
        let mut target = found.entries.plain;
        let mut epoch = found.epoch;
        self.arrive();
        let mut live = mode.keeps_vector();
        let mut recent_misses = [None; 2];
        loop {
            if !self.me.go_in() {
                match self.me.obey() {
                    Some(watched) => self.forbid_writes(&watched),
                    None => {
                        self.area.flush_writes();
                        self.drop_windows();
                    }
                }
                // What was found may be gone, and addends that a block keeps are no longer good.
                self.unload(self.interp.state.rip);
                return None;
            }
            if self.shared.epoch() != epoch {
                self.me.go_out();
                self.unload(self.interp.state.rip);
                return None;
            }
            self.stats.entries += 1;
            if self.shared.options.counts {
                let left = self.end.saturating_sub(self.interp.state.retired);
                self.entered_with = i64::try_from(left).unwrap_or(i64::MAX);
                self.area.remaining = self.entered_with;
            }
            self.ready_vectors(live);
            self.lend_fs(mode);
            self.enter_guest(target);
            self.me.go_out();
            self.vectors_left();
            mode = self.settle_crossing(mode);
            if self.area.fault_pc != 0 {
                match self.window_fault(mode) {
                    Ok((host, vectors)) => {
                        target = host;
                        live = vectors;
                        continue;
                    }
                    Err(at) => {
                        self.unload(self.interp.state.rip);
                        if let Some(exit) = self.interpret(1, true) {
                            return Some(exit);
                        }
                        (target, live) = self.behind(at.block, at.host, mode, false, epoch)?;
                        continue;
                    }
                }
            }
            self.earn_windows(mode, false);
            let record = self.shared.sites().get(self.area.site as u32);
            match record.site {
                Site::Miss { rip, write, writes, size, align, resume, live: vectors, done } => {
                    self.retry_windows();
                    self.count(u64::from(done));
                    let rip = self.present(mode, rip);
                    self.interp.state.rip = rip;
                    // Two pages of one instruction may want one entry of the inline TLB, by turns.
                    let by_turns = recent_misses[1] == Some((rip, self.area.ea));
                    recent_misses = [Some((rip, self.area.ea)), recent_misses[0]];
                    if !by_turns && self.refill(mode, write, writes, size, align) && !self.settle()
                    {
                        self.stats.refills += 1;
                        // Back in the middle, where the same instructions are still uncounted.
                        self.uncount(u64::from(done));
                        target = record.code + resume as usize;
                        live = vectors;
                        // The addends that the block keeps are good in the same epoch only.
                        continue;
                    }
                    self.stats.misses_interpreted += 1;
                    let (ea, size) = (self.area.ea & (PAGE_SIZE - 1), u64::from(size));
                    let wraps = mode.segmented && self.area.ea >> 32 != 0;
                    self.stats.misses_across += u64::from(ea + size > PAGE_SIZE);
                    self.note_unlucky(&record, ea + size > PAGE_SIZE || wraps);
                    self.unload(rip);
                    let plain = match self.do_one(epoch, mode) {
                        Ok(plain) => plain,
                        Err(exit) => return Some(exit),
                    };
                    let resume = record.code + resume as usize;
                    (target, live) = self.behind(record.block, resume, mode, plain, epoch)?;
                    continue;
                }
                Site::Chain { target: rip, patch, link } => {
                    self.count(0);
                    self.stats.chain_exits += 1;
                    self.unload(self.present(mode, rip));
                    if self.stepping || self.mode() != Some(mode) {
                        return None;
                    }
                    let next = self.find(mode)?;
                    let mut cache = self.shared.cache();
                    if next.epoch == epoch {
                        cache.chain(&record, patch, next.key, link);
                    }
                    drop(cache);
                    self.arrive();
                    target = next.entries.polled;
                    epoch = next.epoch;
                }
                Site::Indirect { rip, moved } => {
                    self.count(0);
                    self.stats.indirect_misses += 1;
                    let to =
                        if mode.segmented { self.area.rip & 0xffff_ffff } else { self.area.rip };
                    let limit = u64::from(self.interp.state.seg[sreg::CS].limit);
                    if mode.bits == 64 && !is_canonical(to) || mode.segmented && to > limit {
                        // The branch itself faults.
                        self.unload(self.present(mode, rip));
                        let rsp = &mut self.interp.state.gpr[4];
                        let before = rsp.wrapping_sub(moved as u64);
                        *rsp = match () {
                            () if mode.stack16 => *rsp & !0xffff | before & 0xffff,
                            () if mode.bits < 64 => before & 0xffff_ffff,
                            () => before,
                        };
                        return self.interpret(1, false);
                    }
                    self.unload(to);
                    if self.stepping || self.mode() != Some(mode) {
                        return None;
                    }
                    let next = self.find(mode)?;
                    self.arrive();
                    target = next.entries.polled;
                    epoch = next.epoch;
                }
                Site::Guard { .. } | Site::Crossed => {
                    let rip = match record.site {
                        Site::Guard { rip } => self.present(mode, rip),
                        _ => rip_of(self.area.rip),
                    };
                    self.count(0);
                    self.stats.guard_exits += 1;
                    self.unload(rip);
                    if self.stepping || self.mode() != Some(mode) {
                        return None;
                    }
                    let next = self.find(mode)?;
                    self.arrive();
                    target = next.entries.polled;
                    epoch = next.epoch;
                }
                Site::Poll { rip, unrolls } => {
                    self.count(0);
                    self.stats.polls += 1;
                    if unrolls {
                        self.note_busy(&record);
                    }
                    self.earn_windows(mode, true);
                    self.warm_page(mode, record.block);
                    self.unload(self.present(mode, rip));
                    return None;
                }
                Site::HandOver { rip, next, resume, live: vectors, mnemonic, done, again } => {
                    self.count(u64::from(done));
                    let (rip, next) = (self.present(mode, rip), self.present(mode, next));
                    self.stats.handed_over += 1;
                    self.stats.by_mnemonic[mnemonic as usize] += 1;
                    if resume != 0 && self.do_quickly(mnemonic, epoch, mode) {
                        self.interp.state.rip = next;
                        if self.settle() || self.is_over_or_wanted_inside() {
                            self.unload(next);
                            return None;
                        }
                        self.uncount(u64::from(again));
                        target = record.code + resume as usize;
                        live = vectors;
                        continue;
                    }
                    if mnemonic == Mnemonic::Hlt && mode.ring0 && !self.stepping {
                        self.unload(next);
                        self.interp.state.retired += 1;
                        self.interp.state.activity = Activity::Halted;
                        return Some(Exit::Halted);
                    }
                    self.unload(rip);
                    let retired = self.interp.state.retired;
                    if let Err(exit) = self.do_one(epoch, mode) {
                        return Some(exit);
                    }
                    if matches!(mnemonic, Mnemonic::Iretq | Mnemonic::Iretd)
                        && mode.ring0
                        && self.interp.state.retired > retired
                    {
                        self.learn_return(mode);
                    }
                    let settled = !self.settle();
                    if self.is_over_or_wanted() {
                        return None;
                    }
                    let now = self.mode()?;
                    if resume != 0 && settled && now == mode && self.interp.state.rip == next {
                        self.uncount(u64::from(again));
                        target = record.code + resume as usize;
                        live = vectors;
                    } else {
                        mode = now;
                        (target, epoch) = self.go_on(mode)?;
                        self.arrive();
                        live = mode.keeps_vector();
                    }
                    self.load(mode);
                    continue;
                }
            }
            live = mode.keeps_vector();
        }
    }

    /// Makes ready to go on in `block` behind the instruction at `pc`, which the interpreter has done: where, and
    /// whether the vector registers must be loaded there. Nothing if the guest is elsewhere, or something is to be
    /// seen to first. `plain`: what [`Self::do_one`] said, so that the mode is the same, and all else in the area.
    fn behind(
        &mut self,
        block: u32,
        pc: usize,
        mode: Mode,
        plain: bool,
        epoch: u64,
    ) -> Option<(usize, bool)> {
        let mem = &self.interp.mem;
        // All else that is to be settled may concern addends that the block keeps.
        let only_stored = mem.stored_to_code
            && mem.flushed == Flushed::Nothing
            && mem.flushed_pages.is_empty()
            && mem.newly_watched.is_empty()
            && !mem.met_device;
        let settled = !self.settle() || only_stored;
        if !settled || self.is_over_or_wanted() || !plain && self.mode() != Some(mode) {
            return None;
        }
        let next = {
            let cache = self.shared.cache();
            if self.shared.epoch() != epoch {
                return None;
            }
            cache.locate_next(block, pc)?
        };
        let rip = self.rip_in(next.tag, next.word);
        if rip != self.interp.state.rip || next.word & windows::ENTERS == 0 {
            return None;
        }
        self.uncount(next.word >> 32 & 0xff);
        if plain {
            self.load_general();
        } else {
            self.load(mode);
        }
        Some((next.host, next.word & windows::LIVE != 0))
    }

    /// One instruction, or all that were asked for, have been run, or something else is to be done.
    fn is_over_or_wanted(&self) -> bool {
        self.stepping || self.interp.state.retired >= self.end || self.is_wanted()
    }

    /// Counts what was run since the last entry, and `done` that the block had not counted yet.
    fn count(&mut self, done: u64) {
        if self.shared.options.counts {
            let counted = (self.entered_with - self.area.remaining).cast_unsigned();
            self.entered_with = self.area.remaining;
            self.interp.state.retired += counted + done;
        }
    }

    /// Takes back what the block is going to count itself.
    fn uncount(&mut self, done: u64) {
        if self.shared.options.counts {
            self.interp.state.retired -= done;
        }
    }

    /// Notes that a block that is a loop is at work; it is made again, of several rounds.
    fn note_busy(&mut self, record: &Record<Site>) {
        let cache = self.shared.cache();
        if self.stepping || !cache.is_live(record.block) {
            return;
        }
        let key = cache.key_of(record.block);
        drop(cache);
        if self.shared.lessons().note_busy(key) {
            self.shared.drop_block(key);
        }
    }

    /// Notes that a block's window couldn't be used; one that never can is made without.
    fn note_unlucky(&mut self, record: &Record<Site>, across: bool) {
        if !across {
            return;
        }
        let cache = self.shared.cache();
        if !cache.is_live(record.block) {
            return;
        }
        let key = cache.key_of(record.block);
        drop(cache);
        self.note_unlucky_block(key);
    }

    /// The same by the block's key.
    fn note_unlucky_block(&mut self, key: Key) {
        let again = self.shared.lessons().note_unlucky(key);
        if again {
            self.shared.drop_block(key);
        }
    }

    /// Gives the inline TLB the page that missed; false when the interpreter must do the access.
    fn refill(&mut self, mode: Mode, write: bool, writes: bool, size: u16, align: u8) -> bool {
        let ea = self.area.ea;
        let crosses =
            (ea & (PAGE_SIZE - 1)) + u64::from(size) > PAGE_SIZE || mode.bits < 64 && ea >> 32 != 0;
        let misaligned = align > 1 && ea & (u64::from(align) - 1) != 0;
        if crosses || misaligned || mode.bits == 64 && !is_canonical(ea) {
            return false;
        }
        let privilege = match mode.privilege {
            0 => Privilege::User,
            1 => Privilege::Supervisor,
            _ => Privilege::SupervisorAc,
        };
        if self.breakpoints.is_some_and(|armed| armed.on_data(ea)) {
            return false;
        }
        let access = if write { Access::Write } else { Access::Read };
        let interp = &mut *self.interp;
        let Ok(Place::Ram { hva, gpa }) =
            interp.mem.translate(&interp.state, Gva(ea), access, privilege)
        else {
            return false;
        };
        let Some(page) = interp.mem.soft.cached(Gva(ea), privilege) else { return false };
        let may_write = page.writable && interp.mem.code_version(gpa) == 0;
        if writes && !may_write {
            return false;
        }
        let host = hva.addr() as u64 - (ea & (PAGE_SIZE - 1));
        let rights = Rights { read: true, write: may_write, global: page.global };
        self.area.fill(usize::from(mode.privilege), ea, host, rights);
        true
    }

    /// Registers from the state to the area.
    fn load(&mut self, mode: Mode) {
        for (register, segment) in self.interp.state.seg.iter().enumerate() {
            self.area.selectors[register] = u64::from(segment.selector);
        }
        if mode.bits < 64 {
            self.load_segments(mode);
        }
        self.ready_crossing(mode);
        self.area.attention_mask = self.deliverable();
        self.load_general();
        let state = &self.interp.state;
        for register in [sreg::FS, sreg::GS] {
            self.area.seg_base[register] = state.seg[register].base;
        }
        self.area.kernel_gs_base = state.msr.kernel_gs_base;
        self.area.control = [state.cr0, 0, state.cr2, state.cr3, state.cr4];
        self.area.tsc_base = self.tsc_base.unwrap_or(0).wrapping_add(state.msr.tsc_offset);
        self.area.tsc_aux = state.msr.tsc_aux;
    }

    /// General registers and flags from the state to the area.
    fn load_general(&mut self) {
        let state = &self.interp.state;
        let (status, interrupt) = (Rflags::STATUS.bits(), Rflags::IF.bits());
        self.area.gpr = state.gpr;
        self.area.flags = state.rflags & status | Rflags::FIXED.bits();
        self.area.system_flags = state.rflags & !(status | interrupt);
        self.area.interrupt_flag = state.rflags & interrupt;
    }

    /// Registers from the area to the state.
    fn unload(&mut self, rip: u64) {
        self.unload_segments();
        let status = Rflags::STATUS.bits();
        let state = &mut self.interp.state;
        state.gpr = self.area.gpr;
        state.seg[sreg::GS].base = self.area.seg_base[sreg::GS];
        state.msr.kernel_gs_base = self.area.kernel_gs_base;
        let system = self.area.system_flags | self.area.interrupt_flag;
        state.rflags = system | self.area.flags & status;
        state.rip = rip;
    }

    /// Lends FS to code of `mode`, or doesn't.
    fn lend_fs(&mut self, mode: Mode) {
        self.area.host_fs = 0;
        if mode.lends_fs() {
            let base: u64;
            // SAFETY: reads FS base.
            unsafe { asm!("rdfsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
            self.area.host_fs = base;
            if let Some(regions) = self.area.regions.get(usize::from(mode.privilege)) {
                self.area.window_fs = regions[0];
            }
        }
    }

    fn enter_guest(&mut self, target: usize) {
        let area: *mut Area = self.area.as_ptr();
        // SAFETY: the common code keeps the registers that a C function keeps; translated code touches
        // only guest RAM that the inline TLB leads to, and the area. GS is nobody else's.
        unsafe {
            asm!(
                "wrgsbase {area}", "call {enter}",
                area = in(reg) area, enter = in(reg) self.shared.enter, in("rdi") target,
                clobber_abi("C"),
            );
        }
    }

    /// Prepares the thread, the first time.
    fn prepare(&mut self) {
        if !std::mem::replace(&mut self.prepared, true) {
            block_signals();
            signal::take_stack();
        }
    }
}

impl Engine for Bt {
    fn run(&mut self, budget: u64) -> Exit {
        self.prepare();
        self.end = self.interp.state.retired.saturating_add(budget);
        let exit = loop {
            if let Some(exit) = self.round() {
                break exit;
            }
            if self.interp.state.retired >= self.end {
                break Exit::Budget;
            }
        };
        self.bring_x87_home();
        exit
    }
    fn step(&mut self) -> Exit {
        self.prepare();
        if !std::mem::replace(&mut self.stepping, true) {
            // What was chained would run on.
            self.shared.evict_all(&self.me);
        }
        let exit = self.round().unwrap_or(Exit::Budget);
        self.bring_x87_home();
        exit
    }
    fn state(&mut self) -> &mut CpuState {
        self.bring_home();
        &mut self.interp.state
    }
    fn state_changed(&mut self) {
        self.interp.mem.flush_all();
    }
    fn time_moved(&mut self) {
        self.tsc_base = self.interp.tsc_base();
    }
    fn dump(&self) -> String {
        self.interp.dump()
    }
}

/// Keeps signals but the synchronous ones from this thread: while the guest runs, the host's stack pointer
/// is the guest's, and a handler would write there.
fn block_signals() {
    // SAFETY: an empty set to begin with.
    let mut set = unsafe { std::mem::zeroed::<libc::sigset_t>() };
    // SAFETY: `set` is ours.
    unsafe { libc::sigfillset(&raw mut set) };
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
        // SAFETY: `set` is ours.
        unsafe { libc::sigdelset(&raw mut set, signal) };
    }
    // SAFETY: changes this thread's mask only.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
}

impl Drop for Bt {
    fn drop(&mut self) {
        self.shared.leave(&self.me);
        self.list_blocks();
        if let Some(report) = &self.shared.options.report {
            let cache = self.shared.cache();
            self.stats.retired = self.interp.state.retired;
            report.add(&self.stats, &cache.counters, cache.len());
        }
    }
}
