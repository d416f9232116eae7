//! What translated code and Rust share: one area for each vCPU, which GS points to.
//!
//! Problem: translated code has the guest's registers in the host's, so it needs a place that costs no
//! register for everything else: the registers that don't fit, the way back to Rust, the inline TLB.
//! Scheme: one `repr(C)` record at GS; translated code names its fields by [`offset`]. On an exit the general
//! registers and flags are stored here, and Rust moves them to `CpuState` and back. Behind the record
//! lies reserved address space without access: a *poll* loads from the record's last word plus eight
//! times the attention word, so that any attention makes it fault ([`offset::POLL`]).
//!
//! Invariants: guest r10 and r11 live here, never in the host's r10 and r11, which are scratch; entries of
//! the inline TLB are those of the vCPU's present address space; an entry for writing never leads to a
//! page that is watched for code; [`AreaBox`] knows every slot that is filled, so that a flush costs
//! what the fills did. One per vCPU, on its thread; other threads only void jumps
//! ([`Area::forget_jump`]).

mod away;
mod kept;

use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use xenolith_codecache::span::Span;
use xenolith_cpu::state::{Rflags, Segment};

pub use away::Away;
pub use kept::CodePage;
use kept::{CodePages, KEPT};

/// Entries of each table of the inline TLB; a power of two.
pub const TLB_ENTRIES: usize = 1 << 16;
/// Entries of the jump cache; a power of two.
pub const JUMP_ENTRIES: usize = 1 << 18;
/// Address spaces whose user code's branches can be known at a time, each by a jump cache of its own.
pub const SPACES: usize = 8;
/// All jump caches: those of user code, then of the other privileges.
/// The kernel's: without windows, with them, and while AC is set.
const KERNEL_CACHES: usize = 3;
const JUMP_CACHES: usize = SPACES + KERNEL_CACHES;
/// Of a jump cache's entries those that a page's addresses are indexed to: the low bits are the index.
const PAGE_JUMPS: usize = 4096;
/// Entries of the table of pages that may be executed; a power of two.
pub const EXEC_ENTRIES: usize = 1 << 16;
/// Pages of user code have identifiers below this: see [`home_mark`].
pub const HOME_IDS: u32 = (EXEC_ENTRIES as u32) << 11;
/// Regions of 4 GiB that bits 32 to 47 of an address tell apart.
pub const REGIONS: usize = 1 << 16;
/// Host address of the page that can be read while all others below 4 GiB can't. Code that has guessed a
/// region reads there, as many pages beside it as the region that it finds is beside the guess.
pub const PROBE: u32 = 0x8000_0000;
/// Selectors of 16 bits.
pub const SELECTORS: usize = 1 << 16;
/// Addends that one block can keep.
pub const WINDOWS_MAX: usize = 16;
/// Numbers of code segments begin with this and are below half as much more: with a RIP added they are no
/// canonical addresses, so they aren't the RIPs of code that isn't segmented.
pub const SEGMENTED_CODE: u64 = 1 << 63;
/// Addresses of *floating* code, which runs wherever its page is mapped, begin with this: an address plus this is what
/// would be the address plus [`Area::home`]'s there. They are no canonical addresses, as far as a displacement reaches.
pub const FLOATING: u64 = 5 << 60;
/// See [`Area::crossed`].
pub const CROSSED_IN: u64 = 1;
pub const CROSSED_OUT: u64 = 2;
/// The first of the bits for [`Area::returns`].
pub const CROSSED_BACK: u64 = 4;
/// Of [`Area::returns`], those to CPL 0 and to CPL 3 in 64-bit code, and that to flat 32-bit code of the same level.
pub const RETURNS: usize = 3;
pub const NEAR_RETURN: usize = 2;
/// RFLAGS's bits that SYSRET in translated code may not set, and IF, which it must.
pub const SYSRET_LOOKS: Rflags = Rflags::TF
    .union(Rflags::IF)
    .union(Rflags::DF)
    .union(Rflags::NT)
    .union(Rflags::RF)
    .union(Rflags::VM)
    .union(Rflags::AC);
/// RFLAGS's bits that IRET in translated code may not set. Where no breakpoint is armed, RF does nothing.
const IRET_LOOKS: Rflags =
    Rflags::TF.union(Rflags::DF).union(Rflags::NT).union(Rflags::VM).union(Rflags::AC);
/// Privileges, as [`xenolith_cpu::env::Privilege`] numbers them.
const PRIVILEGES: usize = 3;

/// The inline TLB for one privilege (see [`xenolith_cpu::env::Privilege`]).
#[repr(C)]
#[derive(Debug)]
pub struct Tlb {
    /// Minus the linear page address that may be read, by page number.
    pub read: [u64; TLB_ENTRIES],
    /// Minus the linear page address that may be written.
    pub write: [u64; TLB_ENTRIES],
    /// Host address minus linear address.
    pub addend: [u64; TLB_ENTRIES],
}

/// An IRET at CPL 0 that translated code may do: what it has to find.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Return {
    /// It has to be left to Rust, unless this is zero.
    pub closed: u64,
    /// Minus the selectors of CS and SS.
    pub minus_selectors: [u64; 2],
    /// Linear addresses of their descriptors, and minus their contents.
    pub descriptors: [u64; 2],
    pub minus_descriptors: [u64; 2],
    /// Minus bits 47 to 63 of RIP.
    pub minus_upper: u64,
    /// Its bit in [`Area::crossed`].
    pub crossed: u64,
    /// The privilege that it leads to.
    pub side: u64,
}

impl Return {
    /// None is known.
    pub const CLOSED: Self = Self {
        closed: 1,
        minus_selectors: [0; 2],
        descriptors: [0; 2],
        minus_descriptors: [0; 2],
        minus_upper: 0,
        crossed: 0,
        side: 0,
    };
}

/// What offsets into a segment are checked against, so that a violation shows in the sign of a sum.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Plus the last byte's offset: negative if that isn't in the segment, or the segment may not be read,
    /// or written; then the same for accesses that must end below 64 KiB.
    pub above: [u64; 4],
    /// Plus the first byte's offset: negative if that is below the segment.
    pub below: u64,
}

impl Bounds {
    /// Of a segment in protected mode, or in real or virtual-8086 mode, which ignore rights. They are
    /// those of the interpreter: a segment of 4 GiB lets an access wrap around its end.
    #[must_use]
    pub fn of(segment: &Segment, protected: bool) -> Self {
        const SIGN: u64 = 1 << 63;
        let usable = !protected || segment.is_usable() && segment.is_present();
        let (last, first) = if segment.is_expand_down() {
            let top = if segment.is_big() { 0xffff_ffff } else { 0xffff };
            (top, u64::from(segment.limit) + 1)
        } else if segment.limit == u32::MAX {
            (u64::MAX >> 2, 0)
        } else {
            (u64::from(segment.limit), 0)
        };
        let above = |allowed: bool, last: u64| {
            if usable && allowed { SIGN - 1 - last } else { SIGN }
        };
        let readable = !protected || segment.is_readable();
        let writable = !protected || segment.is_writable();
        let narrow = last.min(0xffff);
        Self {
            above: [
                above(readable, last),
                above(writable, last),
                above(readable, narrow),
                above(writable, narrow),
            ],
            below: first.wrapping_neg(),
        }
    }
}

/// Where an indirect branch leads: a slot of the jump cache.
#[repr(C)]
#[derive(Debug)]
pub struct Jump {
    /// Minus the guest RIP, with the code segment's number added where code is segmented
    /// ([`SEGMENTED_CODE`]). Other threads may make it void.
    pub minus_rip: AtomicU64,
    pub host: u64,
}

/// x87 state as XSAVE and XRSTOR have it, with the header behind the legacy region.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct X87Image(pub [u8; 576]);

/// See the module's head.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Area {
    /// General registers while Rust runs; r10 and r11 always.
    pub gpr: [u64; 16],
    /// Status flags while Rust runs.
    pub flags: u64,
    /// Guest RIP after an exit.
    pub rip: u64,
    /// What r10 and r11 are to hold on entry: guest RIP for a block's beginning; what they held when an instruction
    /// faulted, for that one.
    pub scratch: [u64; 2],
    /// Where to enter, while that is done.
    pub target: u64,
    /// Rust's stack while the guest runs.
    pub host_rsp: u64,
    /// The host's FS base while FS is lent to translated code; else 0. See
    /// [`Mode::lends_fs`](crate::mode::Mode::lends_fs).
    pub host_fs: u64,
    /// FS base to enter that code with.
    pub window_fs: u64,
    /// Registers borrowed for a memory access, and what else is put aside within an instruction.
    /// RCX is in the first; behind the last one is always 0.
    pub spill: [u64; 12],
    /// Addends kept for later accesses of the same block.
    pub windows: [u64; WINDOWS_MAX],
    /// Segment bases.
    pub seg_base: [u64; 6],
    /// What SWAPGS exchanges GS's base for.
    pub kernel_gs_base: u64,
    /// CR0 to CR4.
    pub control: [u64; 5],
    /// SYSCALL, SYSRET, STAC and CLAC have to be left to Rust, unless this is zero.
    pub crossing_closed: u64,
    /// What translated code has done to CS, SS and CPL that Rust doesn't know of, in this order: SYSCALL
    /// ([`CROSSED_IN`], alone if it was the last), a return to CPL 0 ([`CROSSED_BACK`]), SYSRET ([`CROSSED_OUT`]), a
    /// return to CPL 3 (twice [`CROSSED_BACK`]); in 32-bit code a return to CPL 0 is four times that.
    pub crossed: u64,
    /// The privilege that translated code runs with.
    pub side: u64,
    /// See [`RETURNS`]; the selectors that SYSCALL loads to CS and SS, and those of SYSRET.
    pub returns: [Return; RETURNS],
    pub syscall_selectors: [u64; 2],
    pub sysret_selectors: [u64; 2],
    /// PEXT masks: RFLAGS's bits that IRET may not set here, and IF.
    pub iret_looks: u64,
    pub interrupt_bit: u64,
    /// Where SYSCALL or SYSENTER leads to, the bits of RFLAGS that SYSCALL leaves, and the stack pointer that SYSENTER
    /// loads.
    pub lstar: u64,
    pub syscall_keeps: u64,
    pub sysenter_esp: u64,
    /// PEXT mask: what isn't zero in addresses that SYSRET may not go to here.
    pub sysret_upper: u64,
    /// What is added to the host's time stamp counter, and IA32_TSC_AUX.
    pub tsc_base: u64,
    pub tsc_aux: u64,
    /// Where code is segmented: what offsets are checked against, by segment.
    pub bounds: [Bounds; 6],
    /// Selectors, and, where code is segmented, whether one was loaded that Rust doesn't know of.
    pub selectors: [u64; 6],
    pub segments_loaded: u64,
    /// Where code is segmented: what is added to a RIP to look it up in the jump cache.
    pub code_number: u64,
    /// Where a segment's base is made of its selector: SS was loaded by the instruction before this one, and interrupts
    /// are held off; CS was loaded, and Rust doesn't know; the base of the
    /// vectors, and what is added to an offset there to see whether it is beyond their end; NMIs are blocked.
    pub stack_loaded: u64,
    pub code_loaded: u64,
    pub idt_base: u64,
    pub idt_above: u64,
    pub nmi_blocked: u64,
    /// Linear address of the page that runs, while its code is floating.
    pub home: u64,
    /// The attention word.
    pub attention: *const u32,
    /// PEXT mask of the attention bits that the guest can be stopped for now.
    pub attention_mask: u64,
    /// RFLAGS but for IF and the status flags, and IF by itself.
    pub system_flags: u64,
    pub interrupt_flag: u64,
    /// The status flags' bits, for PEXT and PDEP.
    pub status: u64,
    /// Zero while the guest's vector state is in the host's registers.
    pub vector_idle: u64,
    /// Not zero: load the vector state on entry.
    pub vector_wanted: u64,
    /// Set by an exit that saved the vector state.
    pub vector_saved: u64,
    /// Zero if the upper halves of all vector registers are zero while Rust runs.
    pub vector_upper: u64,
    /// MXCSR of Rust, and of the guest while Rust runs.
    pub host_mxcsr: u64,
    pub guest_mxcsr: u64,
    /// Which site left translated code.
    pub site: u64,
    /// Linear address of the access that missed.
    pub ea: u64,
    /// PEXT masks: index in the TLB, page number, index in the jump cache.
    pub tlb_index: u64,
    pub page: u64,
    /// As `page`, and the low bits of aligned operands of 16 and 32 bytes.
    pub page_and_16: u64,
    pub page_and_32: u64,
    pub jump_index: u64,
    /// Where the jump cache of the current address space's user code is behind the first, in words of eight bytes.
    pub user_jumps: u64,
    /// The same of the kernel's code, by whether it uses shadow windows.
    pub kernel_jumps: u64,
    /// The number of a bit in 32 and in 64.
    pub bit_number: [u64; 2],
    /// The common exit, for the signal handler.
    pub exit: u64,
    /// Where translated code faulted, by which exception, at which host address and with which error code
    /// (of #PF); no fault if the first is zero. Set by the signal handler.
    pub fault_pc: u64,
    pub fault_vector: u64,
    pub fault_address: u64,
    pub fault_error: u64,
    /// Where blocks count: guest instructions that may still be run before a poll stops.
    pub remaining: i64,
    /// PEXT mask of the sign.
    pub sign: u64,
    /// Zero while the guest's x87 state is in the host's registers, also while Rust runs.
    pub x87_idle: u64,
    /// The x87 state to load.
    pub x87: X87Image,
    /// Vector registers while Rust runs.
    pub ymm: [[u8; 32]; 16],
    /// What is added to addresses of a region of 4 GiB, by bits 32 to 47, where code uses shadow windows:
    /// for user code and for supervisor code.
    pub regions: [[u64; REGIONS]; 2],
    /// Identifiers of the pages that may be executed, by page number.
    pub exec: [u32; EXEC_ENTRIES],
    /// The same for user code that isn't segmented: [`home_mark`]s minus linear addresses.
    pub homes: [u64; EXEC_ENTRIES],
    pub tlb: [Tlb; PRIVILEGES],
    /// Jump caches: of user code in each address space that is kept, of the kernel's, and of that with AC set.
    pub jumps: [[Jump; JUMP_ENTRIES]; JUMP_CACHES],
    /// Where a segment's base is made of its selector: what [`Self::code_number`] is in code of each selector
    /// with the limit that CS has; zero where that isn't known.
    pub code_numbers: [u64; SELECTORS],
    /// The last word of the record: what a poll loads when nothing is the matter.
    pub quiet: [u64; 512],
}

/// Slots whose pages are so near the end of the address space that an access which begins there may end in the
/// first page. Repeated string instructions are looked up with up to 32 KiB.
const LAST_SLOTS: usize = 16;

/// Minus a linear page address that no access indexed to `slot` can have, nor one that begins in one of the
/// pages before: its index bits are others. Fresh memory has it everywhere but in the first and the last
/// slots.
fn nobody(slot: usize) -> u64 {
    if slot == 0 || slot >= TLB_ENTRIES - LAST_SLOTS {
        ((TLB_ENTRIES as u64 / 2) << 12).wrapping_neg()
    } else {
        0
    }
}

/// What no RIP of `slot` is the negative of; fresh memory likewise.
fn nowhere(slot: usize) -> u64 {
    if slot == 0 { 1_u64.wrapping_neg() } else { 0 }
}

/// The first of a privilege's jump caches.
const fn first_jump_cache(privilege: usize) -> usize {
    match privilege {
        0 => 0,
        1 => SPACES,
        _ => SPACES + 2,
    }
}

/// How far behind a privilege's first jump cache another is, in words of eight bytes: see [`Area::user_jumps`] and
/// [`Area::kernel_jumps`].
#[must_use]
pub const fn jumps_behind(caches: usize) -> u64 {
    (caches * size_of::<[Jump; JUMP_ENTRIES]>() / 8) as u64
}

fn tlb_slot(la: u64) -> usize {
    (la >> 12) as usize & (TLB_ENTRIES - 1)
}

/// Whether a jump cache's address is of segmented code.
fn is_segmented(rip: u64) -> bool {
    rip >> 62 == SEGMENTED_CODE >> 62
}

/// Whether an address is one of floating code.
#[must_use]
pub fn is_floating(rip: u64) -> bool {
    rip >> 62 == FLOATING >> 62
}

fn exec_slot(la: u64) -> usize {
    (la >> 12) as usize & (EXEC_ENTRIES - 1)
}

impl Area {
    /// Forgets where the block at `rip` is, if a jump cache of this privilege knows it. Any thread.
    pub fn forget_jump(&self, privilege: usize, rip: u64) {
        let slot = self.jump_slot(rip);
        let first = first_jump_cache(privilege);
        let end =
            if privilege + 1 == PRIVILEGES { JUMP_CACHES } else { first_jump_cache(privilege + 1) };
        for cache in &self.jumps[first..end] {
            let jump = &cache[slot];
            if jump.minus_rip.load(Ordering::Relaxed) == rip.wrapping_neg() {
                jump.minus_rip.store(nowhere(slot), Ordering::Release);
            }
        }
    }

    /// Forgets where blocks of user code are that begin so many bytes into whatever page. Any thread.
    pub fn forget_jumps_at(&self, offset: u64) {
        let slots = (offset as usize & (PAGE_JUMPS - 1)..).step_by(PAGE_JUMPS);
        let end = self.jump_index as usize;
        for slot in slots.take_while(|&slot| slot <= end) {
            for cache in &self.jumps[..SPACES] {
                let jump = &cache[slot].minus_rip;
                // Fresh memory stays as it is.
                if jump.load(Ordering::Relaxed) != nowhere(slot) {
                    jump.store(nowhere(slot), Ordering::Release);
                }
            }
        }
    }

    fn jump_slot(&self, rip: u64) -> usize {
        (rip & self.jump_index) as usize
    }

    /// The GS offset at which `la`'s page has its identifier while it may be executed.
    #[must_use]
    pub fn exec_offset(la: u64) -> i32 {
        offset::EXEC + 4 * exec_slot(la) as i32
    }
}

/// Slots that were filled since the last flush.
#[derive(Debug)]
struct Filled {
    slots: Vec<u32>,
    /// A bit for each slot: it is among them.
    known: Box<[u64]>,
}

impl Filled {
    fn new(entries: usize) -> Self {
        Self { slots: Vec::new(), known: vec![0; entries / 64].into() }
    }

    fn note(&mut self, slot: usize) {
        let (word, bit) = (slot / 64, 1 << (slot % 64));
        if self.known[word] & bit == 0 {
            self.known[word] |= bit;
            self.slots.push(slot as u32);
        }
    }

    fn each(&self, mut each: impl FnMut(usize)) {
        self.slots.iter().for_each(|&slot| each(slot as usize));
    }

    /// Those of the 4096 that a page's addresses are indexed to, where `slot` is the first.
    fn each_of_page(&self, slot: usize, mut each: impl FnMut(usize)) {
        for (at, word) in self.known[slot / 64..].iter().enumerate().take(PAGE_JUMPS / 64) {
            let mut left = *word;
            while left != 0 {
                each(slot + 64 * at + left.trailing_zeros() as usize);
                left &= left - 1;
            }
        }
    }

    /// Calls `each` with every filled slot, and forgets them.
    fn drain(&mut self, mut each: impl FnMut(usize)) {
        for slot in self.slots.drain(..) {
            self.known[slot as usize / 64] = 0;
            each(slot as usize);
        }
    }
}

/// Filled slots of one kind of table, by whether their pages are global.
#[derive(Debug)]
struct Ledger {
    local: Filled,
    global: Filled,
}

impl Ledger {
    fn new(entries: usize) -> Self {
        Self { local: Filled::new(entries), global: Filled::new(entries) }
    }

    fn note(&mut self, slot: usize, global: bool) {
        if global { self.global.note(slot) } else { self.local.note(slot) }
    }

    fn each(&self, mut each: impl FnMut(usize)) {
        self.local.each(&mut each);
        self.global.each(each);
    }

    fn each_of_page(&self, slot: usize, mut each: impl FnMut(usize)) {
        self.local.each_of_page(slot, &mut each);
        self.global.each_of_page(slot, each);
    }

    fn drain(&mut self, global_too: bool, mut each: impl FnMut(usize)) {
        self.local.drain(&mut each);
        if global_too {
            self.global.drain(each);
        }
    }
}

/// Which pages the jump caches know, hashed: so many bits that a page of data seldom looks like one of them,
/// since looking for it takes a walk through as many slots as it has bytes.
#[derive(Debug)]
struct Pages(Box<[u64; PAGES_WORDS]>);

const PAGES_WORDS: usize = 512;

impl Default for Pages {
    fn default() -> Self {
        Self(Box::new([0; PAGES_WORDS]))
    }
}

impl Pages {
    fn bit(page: u64) -> (usize, u64) {
        // Neighbours stay apart, and so do the same pages of two regions.
        let hash = page ^ (page >> 16).wrapping_mul(0x9e37);
        ((hash >> 6) as usize & (PAGES_WORDS - 1), 1 << (hash & 63))
    }
    fn note(&mut self, page: u64) {
        let (word, bit) = Self::bit(page);
        self.0[word] |= bit;
    }
    fn may_have(&self, page: u64) -> bool {
        let (word, bit) = Self::bit(page);
        self.0[word] & bit != 0
    }
}

/// What a jump cache holds.
#[derive(Debug)]
struct Book {
    slots: Ledger,
    /// Of local and of global pages.
    pages: [Pages; 2],
    /// Some of it is of segmented code, or of the upper half.
    segmented: bool,
    high: bool,
    /// In the kernel's jump caches only.
    code_pages: CodePages,
}

impl Default for Book {
    fn default() -> Self {
        let slots = Ledger::new(JUMP_ENTRIES);
        let (pages, code_pages) = (Default::default(), CodePages::default());
        Self { slots, pages, segmented: false, high: false, code_pages }
    }
}

impl Book {
    fn may_have(&self, page: u64) -> bool {
        self.pages.iter().any(|pages| pages.may_have(page))
    }

    /// Empties the cache that this is the book of, or the part of it that isn't of global pages.
    fn drain(&mut self, global_too: bool, cache: &[Jump; JUMP_ENTRIES]) {
        self.slots.drain(global_too, |slot| {
            cache[slot].minus_rip.store(nowhere(slot), Ordering::Relaxed);
        });
        self.segmented &= !global_too;
        self.high &= !global_too;
        if global_too {
            self.code_pages.clear();
        }
        for pages in &mut self.pages[..1 + usize::from(global_too)] {
            pages.0.fill(0);
        }
    }
}

/// An area in memory of its own, and what is filled in it.
#[derive(Debug)]
pub struct AreaBox {
    area: NonNull<Area>,
    /// Owns it.
    _span: Span,
    tlb: [Ledger; PRIVILEGES],
    books: [Book; JUMP_CACHES],
    /// Which user code's jump cache is in use, and which of the kernel's, from the first.
    space: usize,
    windowed: usize,
    /// Executable pages that are not global, and their identifiers.
    pages: Vec<(u64, u32)>,
    global_exec: Filled,
    /// The same of pages in [`Area::homes`], global or not.
    homed: Vec<(u64, u32)>,
}

/// What a poll can reach behind the record.
const BEHIND_BYTES: usize = (8 << 32) + 4096;

// SAFETY: the mapping is the box's alone; what other threads do in it is atomic.
unsafe impl Send for AreaBox {}

impl Deref for AreaBox {
    type Target = Area;
    fn deref(&self) -> &Area {
        // SAFETY: mapped and initialised while `self` lives.
        unsafe { self.area.as_ref() }
    }
}

impl DerefMut for AreaBox {
    fn deref_mut(&mut self) -> &mut Area {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { self.area.as_mut() }
    }
}

impl AreaBox {
    /// An area with empty tables, for code with BMI2 or without. `attention` must stay readable while translated code
    /// runs.
    ///
    /// # Errors
    /// The host gives no address space.
    pub fn new(attention: *const u32, bmi2: bool) -> Result<Self, std::io::Error> {
        // A kernel soon has something in nearly each page of the jump cache that it uses for long, where every page costs
        // two faults: it is read first. User code may never run here.
        let kernel = std::mem::offset_of!(Area, jumps) + 8 * jumps_behind(KEPT.end - 1) as usize;
        let first = kernel & !0xfff;
        let large = first..first + size_of::<[Jump; JUMP_ENTRIES]>();
        let span = Span::new(size_of::<Area>(), BEHIND_BYTES, large)?;
        let mut this = Self {
            // Zeroes are valid for every field.
            area: span.start().cast(),
            _span: span,
            tlb: [(); PRIVILEGES].map(|()| Ledger::new(TLB_ENTRIES)),
            books: std::array::from_fn(|_| Book::default()),
            space: 0,
            windowed: 0,
            pages: Vec::new(),
            global_exec: Filled::new(EXEC_ENTRIES),
            homed: Vec::new(),
        };
        this.attention = attention;
        this.tlb_index = (TLB_ENTRIES as u64 - 1) << 12;
        this.page = !0xfff;
        this.page_and_16 = !0xfff | 15;
        this.page_and_32 = !0xfff | 31;
        this.bit_number = [31, 63];
        this.sysret_upper = !0 << 47;
        this.iret_looks = IRET_LOOKS.bits();
        this.interrupt_bit = Rflags::IF.bits();
        this.returns = [Return::CLOSED; RETURNS];
        this.crossing_closed = 1;
        this.status = 0x8d5;
        this.sign = 1 << 63;
        this.vector_idle = 1;
        this.x87_idle = 1;
        this.host_mxcsr = 0x1f80;
        this.guest_mxcsr = 0x1f80;
        // Return addresses and branch targets differ in their low bits.
        this.jump_index = if bmi2 { JUMP_ENTRIES as u64 - 1 } else { 0xffff };
        for table in &mut this.area_mut().tlb {
            for slot in (TLB_ENTRIES - LAST_SLOTS..TLB_ENTRIES).chain([0]) {
                table.read[slot] = nobody(slot);
                table.write[slot] = nobody(slot);
            }
        }
        for cache in &this.jumps {
            cache[0].minus_rip.store(nowhere(0), Ordering::Relaxed);
        }
        Ok(this)
    }

    fn area_mut(&mut self) -> &mut Area {
        self
    }

    fn jump_cache(&self, privilege: usize) -> usize {
        let behind = [self.space, self.windowed, 0];
        first_jump_cache(privilege) + behind[privilege]
    }

    /// Says whether the kernel's code uses shadow windows: that has a jump cache of its own.
    pub fn choose_kernel_jumps(&mut self, windows: bool) {
        self.windowed = usize::from(windows);
        self.area_mut().kernel_jumps = jumps_behind(self.windowed);
    }

    /// Says what is added to addresses of a region.
    pub fn set_region(&mut self, privilege: usize, region: u16, delta: u64) {
        self.area_mut().regions[privilege][usize::from(region)] = delta;
    }

    /// Where it is.
    #[must_use]
    pub fn as_ptr(&self) -> *mut Area {
        self.area.as_ptr()
    }

    /// Whether a host address is in the reserved space behind the record, where what must stop loads from.
    #[must_use]
    pub fn is_behind(&self, address: u64) -> bool {
        let end = self.area.as_ptr().addr() + size_of::<Area>();
        address.wrapping_sub(end as u64) < BEHIND_BYTES as u64
    }

    /// Empties all tables, those of other address spaces too.
    pub fn flush(&mut self) {
        self.flush_translations(true);
        self.flush_jumps(0..JUMP_CACHES, true);
    }

    /// Empties the inline TLB and the table of executable pages, or what of them isn't of global pages.
    fn flush_translations(&mut self, global_too: bool) {
        // SAFETY: mapped while `self` lives; the borrow of the ledgers beside it is of other memory.
        let area = unsafe { self.area.as_mut() };
        for (ledger, table) in self.tlb.iter_mut().zip(&mut area.tlb) {
            ledger.drain(global_too, |slot| {
                table.read[slot] = nobody(slot);
                table.write[slot] = nobody(slot);
            });
        }
        for (la, _) in self.pages.drain(..) {
            area.exec[exec_slot(la)] = 0;
        }
        if global_too {
            self.global_exec.drain(|slot| area.exec[slot] = 0);
        }
        for (la, _) in self.homed.drain(..) {
            area.homes[exec_slot(la)] = 0;
        }
    }

    fn flush_jumps(&mut self, caches: Range<usize>, global_too: bool) {
        // SAFETY: as in `flush_translations`.
        let area = unsafe { self.area.as_ref() };
        for (book, cache) in self.books[caches.clone()].iter_mut().zip(&area.jumps[caches]) {
            book.drain(global_too, cache);
        }
    }

    /// Drops `count` pages, the first of which is at `la`.
    pub fn flush_pages(&mut self, la: u64, count: u64) {
        let area = self.area_mut();
        for at in (0..count).map(|n| la.wrapping_add(n << 12)) {
            let slot = tlb_slot(at);
            for table in &mut area.tlb {
                table.read[slot] = nobody(slot);
                table.write[slot] = nobody(slot);
            }
            area.exec[exec_slot(at)] = 0;
            area.homes[exec_slot(at)] = 0;
        }
        let first = la >> 12;
        for number in [self.space].into_iter().chain(SPACES..JUMP_CACHES) {
            let (book, cache) = (&self.books[number], &self.jumps[number]);
            if !(first..first + count).any(|page| book.may_have(page)) {
                continue;
            }
            let visit = |slot: usize| {
                let jump = &cache[slot].minus_rip;
                let rip = jump.load(Ordering::Relaxed).wrapping_neg();
                if is_segmented(rip) || (rip >> 12).wrapping_sub(first) < count {
                    jump.store(nowhere(slot), Ordering::Relaxed);
                }
            };
            // Of segmented code only the engine knows the linear addresses.
            if book.segmented || count as usize >= JUMP_ENTRIES / PAGE_JUMPS {
                book.slots.each(visit);
            } else {
                for page in first..first + count {
                    book.slots.each_of_page(self.jump_slot(page << 12), visit);
                }
            }
        }
    }

    /// Lets nothing be written inline to the page at `host` any more: it holds code now.
    pub fn forbid_writes(&mut self, host: u64) {
        // SAFETY: as in `flush_translations`.
        let area = unsafe { self.area.as_mut() };
        for (ledger, table) in self.tlb.iter().zip(&mut area.tlb) {
            let mut visit = |slot: usize| {
                if table.addend[slot].wrapping_sub(table.write[slot]) == host {
                    table.write[slot] = nobody(slot);
                }
            };
            ledger.each(&mut visit);
        }
    }

    /// Empties the tables for writing: some page holds code now.
    pub fn flush_writes(&mut self) {
        for table in &mut self.area_mut().tlb {
            for slot in 0..TLB_ENTRIES {
                table.write[slot] = nobody(slot);
            }
        }
    }

    /// Empties the jump cache of one privilege.
    pub fn flush_jumps_of(&mut self, privilege: usize) {
        let cache = self.jump_cache(privilege);
        self.flush_jumps(cache..cache + 1, true);
    }

    /// Lets accesses to the page of `la` go to `host` (the page's first byte): reads, writes or both.
    pub fn fill(&mut self, privilege: usize, la: u64, host: u64, rights: Rights) {
        let page = la & !0xfff;
        let slot = tlb_slot(page);
        self.tlb[privilege].note(slot, rights.global);
        let table = &mut self.area_mut().tlb[privilege];
        let addend = host.wrapping_sub(page);
        if table.addend[slot] != addend {
            table.read[slot] = nobody(slot);
            table.write[slot] = nobody(slot);
        }
        table.addend[slot] = addend;
        if rights.read {
            table.read[slot] = page.wrapping_neg();
        }
        if rights.write {
            table.write[slot] = page.wrapping_neg();
        }
    }

    /// Remembers where the block at `rip` is, with its code segment's number and in the page of `la`, which is what `page`
    /// says.
    pub fn remember(&mut self, privilege: usize, rip: u64, la: u64, page: CodePage, host: u64) {
        let cache = self.jump_cache(privilege);
        if KEPT.contains(&cache) && !is_segmented(rip) {
            self.note_code_page(cache, la >> 12, page);
        }
        if self.jump(privilege, rip) == Some(host) {
            return;
        }
        let slot = self.jump_slot(rip);
        let book = &mut self.books[cache];
        book.segmented |= is_segmented(rip);
        book.high |= la >> 47 != 0;
        book.slots.note(slot, page.global);
        book.pages[usize::from(page.global)].note(la >> 12);
        let jump = &mut self.area_mut().jumps[cache][slot];
        jump.host = host;
        jump.minus_rip.store(rip.wrapping_neg(), Ordering::Release);
    }

    /// Where the block at `rip` is, if the jump cache knows it.
    #[must_use]
    pub fn jump(&self, privilege: usize, rip: u64) -> Option<u64> {
        let jump = &self.jumps[self.jump_cache(privilege)][self.jump_slot(rip)];
        (jump.minus_rip.load(Ordering::Acquire) == rip.wrapping_neg()).then_some(jump.host)
    }

    /// Says that the page of `la` may be executed, and is the one with this identifier.
    pub fn vouch(&mut self, la: u64, id: u32, global: bool) {
        let slot = exec_slot(la);
        if self.exec[slot] == id {
            return;
        }
        if global {
            self.global_exec.note(slot);
        } else {
            // SAFETY: as in `flush_translations`.
            let area = unsafe { self.area.as_ref() };
            tidy(&mut self.pages, |la, id| area.exec[exec_slot(la)] == id);
            self.pages.push((la & !0xfff, id));
        }
        self.area_mut().exec[slot] = id;
    }

    /// The same for user code that isn't segmented.
    pub fn vouch_home(&mut self, la: u64, id: u32) {
        let (page, slot) = (la & !0xfff, exec_slot(la));
        if self.homes[slot] == home_entry(page, id) {
            return;
        }
        // SAFETY: as in `flush_translations`.
        let area = unsafe { self.area.as_ref() };
        tidy(&mut self.homed, |la, id| area.homes[exec_slot(la)] == home_entry(la, id));
        self.homed.push((page, id));
        self.area_mut().homes[slot] = home_entry(page, id);
    }
}

/// Drops from a list of pages, once it is long, those whose slots others have taken.
fn tidy(pages: &mut Vec<(u64, u32)>, is_there: impl Fn(u64, u32) -> bool) {
    if pages.len() >= 2 * EXEC_ENTRIES {
        pages.sort_unstable();
        pages.dedup();
        pages.retain(|&(la, id)| is_there(la, id));
    }
}

/// What stands for a page's identifier in [`Area::homes`]. It is odd, and below what two pages of one slot are apart, so
/// a mark minus an address is zero for none, and the same for no other two.
#[must_use]
pub fn home_mark(id: u32) -> u32 {
    2 * id + 1
}

/// What is kept of a page in [`Area::homes`].
fn home_entry(page: u64, id: u32) -> u64 {
    u64::from(home_mark(id)).wrapping_sub(page)
}

/// What may be done inline with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    pub read: bool,
    pub write: bool,
    /// Of all address spaces.
    pub global: bool,
}

/// What the record has at a GS offset, for people: the field, and which part of it.
#[must_use]
pub fn name_of(offset: i32) -> Option<String> {
    use std::mem::offset_of;
    let at = usize::try_from(offset).ok()?;
    macro_rules! fields {
        ($($field:ident),*) => { [$((offset_of!(Area, $field), stringify!($field))),*] };
    }
    // In the record's order.
    let fields = fields!(
        gpr,
        flags,
        rip,
        host_rsp,
        host_fs,
        window_fs,
        spill,
        windows,
        seg_base,
        kernel_gs_base,
        control,
        crossing_closed,
        crossed,
        side,
        returns,
        syscall_selectors,
        sysret_selectors,
        iret_looks,
        interrupt_bit,
        lstar,
        syscall_keeps,
        sysenter_esp,
        sysret_upper,
        tsc_base,
        tsc_aux,
        bounds,
        selectors,
        segments_loaded,
        code_number,
        stack_loaded,
        code_loaded,
        idt_base,
        idt_above,
        nmi_blocked,
        home,
        attention,
        attention_mask,
        system_flags,
        interrupt_flag,
        status,
        vector_idle,
        vector_wanted,
        vector_saved,
        vector_upper,
        host_mxcsr,
        guest_mxcsr,
        site,
        ea,
        tlb_index,
        page,
        page_and_16,
        page_and_32,
        jump_index,
        user_jumps,
        kernel_jumps,
        bit_number,
        exit,
        fault_pc,
        fault_vector,
        fault_address,
        fault_error,
        remaining,
        sign,
        x87_idle,
        x87,
        ymm,
        regions,
        exec,
        homes,
        tlb,
        jumps,
        code_numbers,
        quiet
    );
    if offset == offset::POLL {
        return Some("quiet".to_owned());
    }
    let &(start, field) = fields.iter().rfind(|&&(start, _)| start <= at)?;
    let inside = at - start;
    let table = 8 * TLB_ENTRIES;
    let rest = |text: String, rest: usize| if rest == 0 { text } else { format!("{text}+{rest}") };
    Some(match field {
        _ if at > size_of::<Area>() => return None,
        "gpr" => ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"]
            .get(inside / 8)
            .map_or_else(|| format!("guest_r{}", inside / 8), |name| format!("guest_{name}")),
        "tlb" => {
            let privilege = inside / (3 * table);
            let part = ["read", "write", "addend"][inside / table % 3];
            rest(format!("tlb{privilege}.{part}"), inside % table)
        }
        "spill" | "windows" | "seg_base" | "control" | "selectors" | "bit_number" => {
            format!("{field}[{}]", inside / 8)
        }
        "ymm" => rest(format!("ymm[{}]", inside / 32), inside % 32),
        "exec" => format!("exec[{}]", inside / 4),
        "homes" => format!("homes[{}]", inside / 8),
        _ => rest(field.to_owned(), inside),
    })
}

/// Offsets of the fields from GS.
pub mod offset {
    use super::{Area, Bounds, JUMP_ENTRIES, TLB_ENTRIES, first_jump_cache};
    use std::mem::offset_of;

    const fn at(offset: usize) -> i32 {
        assert!(offset < i32::MAX as usize);
        offset as i32
    }
    #[must_use]
    pub const fn gpr(register: usize) -> i32 {
        at(offset_of!(Area, gpr) + 8 * register)
    }
    pub const FLAGS: i32 = at(offset_of!(Area, flags));
    pub const RIP: i32 = at(offset_of!(Area, rip));
    pub const TARGET: i32 = at(offset_of!(Area, target));
    #[must_use]
    pub const fn scratch(n: usize) -> i32 {
        at(offset_of!(Area, scratch) + 8 * n)
    }
    pub const HOST_RSP: i32 = at(offset_of!(Area, host_rsp));
    pub const HOST_FS: i32 = at(offset_of!(Area, host_fs));
    pub const WINDOW_FS: i32 = at(offset_of!(Area, window_fs));
    #[must_use]
    pub const fn spill(n: usize) -> i32 {
        at(offset_of!(Area, spill) + 8 * n)
    }
    #[must_use]
    pub const fn seg_base(segment: usize) -> i32 {
        at(offset_of!(Area, seg_base) + 8 * segment)
    }
    pub const KERNEL_GS_BASE: i32 = at(offset_of!(Area, kernel_gs_base));
    #[must_use]
    pub const fn control(register: usize) -> i32 {
        at(offset_of!(Area, control) + 8 * register)
    }
    pub const CROSSING_CLOSED: i32 = at(offset_of!(Area, crossing_closed));
    pub const CROSSED: i32 = at(offset_of!(Area, crossed));
    pub const SIDE: i32 = at(offset_of!(Area, side));
    /// The first return's fields; the second's follow in the same order.
    pub const RETURNS: i32 = at(offset_of!(Area, returns));
    #[must_use]
    pub const fn syscall_selector(n: usize) -> i32 {
        at(offset_of!(Area, syscall_selectors) + 8 * n)
    }
    #[must_use]
    pub const fn sysret_selector(n: usize) -> i32 {
        at(offset_of!(Area, sysret_selectors) + 8 * n)
    }
    pub const IRET_LOOKS: i32 = at(offset_of!(Area, iret_looks));
    pub const INTERRUPT_BIT: i32 = at(offset_of!(Area, interrupt_bit));
    pub const LSTAR: i32 = at(offset_of!(Area, lstar));
    pub const SYSENTER_ESP: i32 = at(offset_of!(Area, sysenter_esp));
    pub const SYSCALL_KEEPS: i32 = at(offset_of!(Area, syscall_keeps));
    pub const SYSRET_UPPER: i32 = at(offset_of!(Area, sysret_upper));
    pub const TSC_BASE: i32 = at(offset_of!(Area, tsc_base));
    pub const TSC_AUX: i32 = at(offset_of!(Area, tsc_aux));
    pub const ATTENTION: i32 = at(offset_of!(Area, attention));
    pub const ATTENTION_MASK: i32 = at(offset_of!(Area, attention_mask));
    pub const SYSTEM_FLAGS: i32 = at(offset_of!(Area, system_flags));
    pub const INTERRUPT_FLAG: i32 = at(offset_of!(Area, interrupt_flag));
    pub const STATUS: i32 = at(offset_of!(Area, status));
    /// The bound above of accesses to a segment that write or not, and stay within 64 KiB or not.
    #[must_use]
    pub const fn above(segment: usize, write: bool, narrow: bool) -> i32 {
        let field = write as usize + 2 * narrow as usize;
        at(offset_of!(Area, bounds) + size_of::<Bounds>() * segment + 8 * field)
    }
    #[must_use]
    pub const fn below(segment: usize) -> i32 {
        at(offset_of!(Area, bounds) + size_of::<Bounds>() * segment + offset_of!(Bounds, below))
    }
    #[must_use]
    pub const fn selector(segment: usize) -> i32 {
        at(offset_of!(Area, selectors) + 8 * segment)
    }
    pub const SEGMENTS_LOADED: i32 = at(offset_of!(Area, segments_loaded));
    pub const CODE_NUMBER: i32 = at(offset_of!(Area, code_number));
    pub const STACK_LOADED: i32 = at(offset_of!(Area, stack_loaded));
    pub const CODE_LOADED: i32 = at(offset_of!(Area, code_loaded));
    pub const IDT_BASE: i32 = at(offset_of!(Area, idt_base));
    pub const IDT_ABOVE: i32 = at(offset_of!(Area, idt_above));
    pub const NMI_BLOCKED: i32 = at(offset_of!(Area, nmi_blocked));
    pub const CODE_NUMBERS: i32 = at(offset_of!(Area, code_numbers));
    #[must_use]
    pub const fn window(n: usize) -> i32 {
        at(offset_of!(Area, windows) + 8 * n)
    }
    #[must_use]
    pub const fn ymm(n: usize) -> i32 {
        at(offset_of!(Area, ymm) + 32 * n)
    }
    #[must_use]
    pub const fn regions(privilege: usize) -> i32 {
        at(offset_of!(Area, regions) + privilege * 8 * super::REGIONS)
    }
    pub const EXEC: i32 = at(offset_of!(Area, exec));
    pub const HOME: i32 = at(offset_of!(Area, home));
    pub const HOMES: i32 = at(offset_of!(Area, homes));
    /// The record's last word. A poll loads from here plus eight times the attention.
    pub const POLL: i32 = at(size_of::<Area>() - 8);
    pub const USER_JUMPS: i32 = at(offset_of!(Area, user_jumps));
    pub const KERNEL_JUMPS: i32 = at(offset_of!(Area, kernel_jumps));
    pub const GUEST_MXCSR: i32 = at(offset_of!(Area, guest_mxcsr));
    pub const VECTOR_IDLE: i32 = at(offset_of!(Area, vector_idle));
    pub const X87_IDLE: i32 = at(offset_of!(Area, x87_idle));
    pub const X87: i32 = at(offset_of!(Area, x87));
    pub const VECTOR_WANTED: i32 = at(offset_of!(Area, vector_wanted));
    pub const VECTOR_UPPER: i32 = at(offset_of!(Area, vector_upper));
    pub const VECTOR_SAVED: i32 = at(offset_of!(Area, vector_saved));
    pub const HOST_MXCSR: i32 = at(offset_of!(Area, host_mxcsr));
    pub const PAGE_AND_16: i32 = at(offset_of!(Area, page_and_16));
    pub const PAGE_AND_32: i32 = at(offset_of!(Area, page_and_32));
    pub const SITE: i32 = at(offset_of!(Area, site));
    pub const EA: i32 = at(offset_of!(Area, ea));
    pub const TLB_INDEX: i32 = at(offset_of!(Area, tlb_index));
    pub const PAGE: i32 = at(offset_of!(Area, page));
    pub const JUMP_INDEX: i32 = at(offset_of!(Area, jump_index));
    #[must_use]
    pub const fn bit_number(is_long: bool) -> i32 {
        at(offset_of!(Area, bit_number) + if is_long { 8 } else { 0 })
    }
    pub const REMAINING: i32 = at(offset_of!(Area, remaining));
    pub const SIGN: i32 = at(offset_of!(Area, sign));
    #[must_use]
    pub const fn jumps(privilege: usize) -> i32 {
        let cache = first_jump_cache(privilege);
        at(offset_of!(Area, jumps) + cache * size_of::<[super::Jump; JUMP_ENTRIES]>())
    }
    const TABLE: usize = 8 * TLB_ENTRIES;
    #[must_use]
    pub const fn tlb_tag(privilege: usize, write: bool) -> i32 {
        at(offset_of!(Area, tlb) + privilege * 3 * TABLE + if write { TABLE } else { 0 })
    }
    #[must_use]
    pub const fn tlb_addend(privilege: usize) -> i32 {
        at(offset_of!(Area, tlb) + privilege * 3 * TABLE + 2 * TABLE)
    }
}
