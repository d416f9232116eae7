//! Segment registers, for the engine: which code a RIP means, and what translated code must know.
//!
//! Problem: outside 64-bit and flat 32-bit code a RIP is an offset, and the same one means another place
//! under another CS. Scheme: each pair of base and limit that CS has had has a number; the number is
//! part of the keys of blocks and pages and of what the jump cache looks for. Blocks are made for one base and
//! limit of CS; of the other segments they find bases and bounds in the area. Invariants: a
//! number means the same base and limit for ever; the area's copy is made anew whenever Rust may have
//! changed a register. One per vCPU, on its thread.

use xenolith_codecache::cache::Key;
use xenolith_cpu::CpuState;
use xenolith_cpu::PAGE_SIZE;
use xenolith_cpu::interp::is_canonical;
use xenolith_cpu::state::{Shadow, sreg};
use xenolith_translator::area::{Bounds, FLOATING, SEGMENTED_CODE, is_floating};
use xenolith_translator::emit::Page;
use xenolith_translator::mode::{Loads, Mode};

use super::Bt;
use super::shared::{PageKey, Side};

/// Pairs that one vCPU remembers the numbers of; a power of two.
const CODES: usize = 64;

/// Numbers that this vCPU has asked for, and what it has told translated code.
#[derive(Debug)]
pub(super) struct Codes {
    known: [Option<(u64, u32, u64)>; CODES],
    /// The limit of CS that the area has numbers for, and the selectors that have one there.
    numbered: (u32, Vec<u16>),
    /// Limits and rights that the area has bounds of, and whether that was in protected mode.
    told: [Option<(u32, u32, bool)>; 6],
}

impl Default for Codes {
    fn default() -> Self {
        Self { known: [None; CODES], numbered: Default::default(), told: [None; 6] }
    }
}

/// Where code is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot {
    pub rip: u64,
    /// Its linear address.
    pub la: u64,
    /// Last RIP of its segment.
    pub limit: u64,
    /// See [`SEGMENTED_CODE`]; 0 where code isn't segmented.
    number: u64,
}

impl Spot {
    /// Of the instruction that comes next; nothing if fetching it faults. `number`: see
    /// [`Bt::code_number`].
    pub fn of(state: &CpuState, mode: Mode, number: u64) -> Option<Self> {
        let rip = state.rip;
        if mode.bits == 64 {
            return is_canonical(rip).then_some(Self { rip, la: rip, limit: u64::MAX, number });
        }
        let cs = &state.seg[sreg::CS];
        let la = cs.base.wrapping_add(rip) & 0xffff_ffff;
        let limit = u64::from(cs.limit);
        (rip <= limit).then_some(Self { rip, la, limit, number })
    }

    /// What the jump cache looks it up by.
    pub fn tag(&self) -> u64 {
        self.number.wrapping_add(self.rip)
    }
}

/// A key's low bits that tell the blocks of a page and mode apart.
pub(super) const KEY_OFFSET_BITS: u32 = 12;

/// What the block at `la`, in the page that `id` stands for, is kept under.
pub(super) fn key(id: u32, mode: Mode, la: u64) -> Key {
    u64::from(id) << 32 | u64::from(mode.number()) << KEY_OFFSET_BITS | la & (PAGE_SIZE - 1)
}

/// The mode in a key.
pub(super) fn mode_of(key: Key) -> Mode {
    Mode::numbered((key >> KEY_OFFSET_BITS) as u32 & 0xf_ffff)
}

/// In the tag of a floating block: it has been entered at other addresses too.
const ELSEWHERE: u64 = 1 << 59;

/// A block's tag: what the jump cache looks it up by, or for a floating one where it was first.
pub(super) fn tag_of(at: Spot, floats: bool) -> u64 {
    if floats { FLOATING | at.rip } else { at.tag() }
}

/// Notes that a block is also at `at`.
pub(super) fn note_place(tag: &mut u64, at: Spot) {
    if is_floating(*tag) && rip_of(*tag) != at.rip {
        *tag |= ELSEWHERE;
    }
}

/// Whether a block may be in jump caches under more than one address.
pub(super) fn is_anywhere(tag: u64) -> bool {
    is_floating(tag) && tag & ELSEWHERE != 0
}

/// The RIP in a tag: that of a floating block is the first it was at.
pub(super) fn rip_of(tag: u64) -> u64 {
    match tag >> 62 {
        top if top == SEGMENTED_CODE >> 62 => tag & 0xffff_ffff,
        top if top == FLOATING >> 62 => tag & ((1 << 47) - 1),
        _ => tag,
    }
}

impl Bt {
    /// The number of the present code segment, in its place above a RIP.
    pub(super) fn code_number(&mut self, mode: Mode) -> u64 {
        if !mode.segmented {
            return 0;
        }
        let cs = &self.interp.state.seg[sreg::CS];
        let (base, limit) = (cs.base, cs.limit);
        let slot = (base >> 4 ^ base >> 12) as usize & (CODES - 1);
        if let Some((known_base, known_limit, number)) = self.codes.known[slot]
            && (known_base, known_limit) == (base, limit)
        {
            return number;
        }
        let number = u64::from(self.shared.code_number(base, limit) & 0x3fff_ffff) << 32;
        let number = SEGMENTED_CODE | number;
        self.codes.known[slot] = Some((base, limit, number));
        number
    }

    /// What the block at `at` in `page` is kept under.
    pub(super) fn key_of(&mut self, page: Page, gpn: u64, mode: Mode, at: &Spot) -> Option<Key> {
        let id = if mode.segmented {
            let side = Side::of(mode);
            self.page_id(PageKey { la: page.la, gpn, code: at.number >> 32, side })?.id
        } else {
            page.id
        };
        Some(key(id, mode, at.la))
    }

    /// Tells translated code what more it wants to know of the segment registers where code is segmented.
    pub(super) fn load_segments(&mut self, mode: Mode) {
        let number = self.code_number(mode);
        self.area.code_number = number;
        if mode.loads == Loads::Base {
            self.tell_code_number(number);
        }
        let state = &self.interp.state;
        // What is beyond the end makes a negative number, as in `Bounds`.
        self.area.idt_above = (1 << 63) - 1 - u64::from(state.idtr.limit);
        self.area.idt_base = state.idtr.base;
        self.area.nmi_blocked = u64::from(state.nmi_blocked);
        let protected = !state.real_or_v86();
        let told = &mut self.codes.told;
        for (register, segment) in state.seg.iter().enumerate() {
            self.area.seg_base[register] = segment.base;
            let kind = Some((segment.limit, segment.access, protected));
            if std::mem::replace(&mut told[register], kind) != kind {
                self.area.bounds[register] = Bounds::of(segment, protected);
            }
        }
    }

    /// Tells translated code the number of the present code segment, whose base is made of its selector.
    fn tell_code_number(&mut self, number: u64) {
        let cs = &self.interp.state.seg[sreg::CS];
        let (limit, told) = &mut self.codes.numbered;
        if std::mem::replace(limit, cs.limit) != cs.limit {
            for selector in told.drain(..) {
                self.area.code_numbers[usize::from(selector)] = 0;
            }
        }
        // A base from protected mode may have stayed.
        if cs.base == u64::from(cs.selector) << 4 {
            let place = &mut self.area.code_numbers[usize::from(cs.selector)];
            if std::mem::replace(place, number) == 0 {
                told.push(cs.selector);
            }
        }
    }

    /// Takes over the segment registers that translated code has loaded.
    pub(super) fn unload_segments(&mut self) {
        if std::mem::take(&mut self.area.stack_loaded) != 0 {
            self.interp.state.shadow = Shadow::MovSs;
        }
        if std::mem::take(&mut self.area.code_loaded) != 0 {
            self.interp.set_real_cs(self.area.selectors[sreg::CS] as u16);
        }
        if std::mem::take(&mut self.area.segments_loaded) == 0 {
            return;
        }
        let state = &mut self.interp.state;
        for register in [sreg::ES, sreg::SS, sreg::DS, sreg::FS, sreg::GS] {
            state.seg[register].selector = self.area.selectors[register] as u16;
            state.seg[register].base = self.area.seg_base[register];
        }
    }
}
