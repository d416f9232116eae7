//! Descriptor tables, task state segments and page tables of a hostile guest: sound where the guest stands
//! on them, random elsewhere.
//!
//! Scheme: the first descriptors, the identity map of the first megabytes and of device memory, and most
//! gates are what the set-up code needs; all other entries are drawn so that most have a known type and
//! about half of their fields make sense. Source: SDM vol. 3, "Segment Descriptors", "IDT Descriptors",
//! "Task-State Segment (TSS)", "Paging".

use super::places::{self, selector};
use super::plan::{Mode, Plan};
use super::rng::Rng;
use super::world::Image;

/// A code or data descriptor.
fn segment(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    let (base, limit) = (u64::from(base), u64::from(limit));
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | u64::from(access) << 40
        | (limit >> 16 & 0xf) << 48
        | u64::from(flags & 0xf) << 52
        | (base >> 24) << 56
}

/// A gate; `extra` is the word between selector and flags' upper byte (IST or parameter count).
fn gate(selector: u32, offset: u32, access: u8, extra: u8) -> u64 {
    let (selector, offset) = (u64::from(selector), u64::from(offset));
    (offset & 0xffff)
        | (selector & 0xffff) << 16
        | u64::from(extra) << 32
        | u64::from(access) << 40
        | (offset >> 16) << 48
}

/// A descriptor of any type, half sound.
fn random_descriptor(rng: &mut Rng) -> u64 {
    let access = (rng.u8() & 0x7f) | if rng.one_in(8) { 0 } else { 0x80 };
    let system = access & 0x10 == 0;
    if rng.one_in(8) {
        return rng.u64();
    }
    if system && matches!(access & 0xf, 4..=7 | 0xc..=0xf) {
        let target = if rng.one_in(2) { 8 * rng.below(16) as u32 } else { places::selectors(rng) };
        let offset = *rng.pick(&[places::DISPATCH, places::CODE, places::CODE + 64, 0xfee0_0000]);
        return gate(target, offset, access, rng.u8() & 0x1f);
    }
    let base = if system {
        *rng.pick(&[places::TSS, places::DOUBLE_FAULT_TSS, places::LDT, places::DATA, 0xffff_f000])
    } else {
        *rng.pick(&[0, 0, 0, places::DATA, places::CODE, 0xffff_ff00])
    };
    let limit = match rng.below(4) {
        0 => 0xf_ffff,
        1 => 0x2100,
        2 => rng.below(0x100) as u32,
        _ => rng.u32() & 0xf_ffff,
    };
    segment(base, limit, access, rng.u8() & 0xf)
}

/// Fills GDT, IDT, both TSSs and the LDT.
pub fn descriptors(rng: &mut Rng, plan: &Plan, image: &mut Image) {
    let long = plan.mode.is_long();
    // Real mode keeps the limit; mostly it is the customary one.
    let (limit16, flags16) =
        if plan.mode == Mode::Real && !rng.one_in(4) { (0xffff, 0) } else { (0xf_ffff, 8) };
    let fixed = [
        0,
        segment(0, 0xf_ffff, 0x9b, 0xc),
        segment(0, 0xf_ffff, 0x93, 0xc),
        segment(0, 0xf_ffff, 0x9b, 0xa),
        segment(0, 0xf_ffff, 0xfb, 0xc),
        segment(0, 0xf_ffff, 0xf3, 0xc),
        segment(0, 0xf_ffff, 0xfb, 0xa),
        segment(0, limit16, 0x9b, flags16),
        segment(0, limit16, 0x93, flags16),
        segment(places::TSS, places::TSS_LIMIT, 0x89, 0),
        0,
        segment(places::LDT, places::LDT_ENTRIES * 8 - 1, 0x82, 0),
        0,
        segment(places::DOUBLE_FAULT_TSS, 0x67, 0x89, 0),
        segment(0, 0xf_ffff, 0xfb, 0x8),
        0,
    ];
    for (n, descriptor) in (0..).zip(fixed) {
        image.put_u64(places::GDT + 8 * n, descriptor);
    }
    for n in fixed.len() as u32..places::GDT_ENTRIES {
        image.put_u64(places::GDT + 8 * n, random_descriptor(rng));
    }
    for n in 0..places::LDT_ENTRIES {
        image.put_u64(places::LDT + 8 * n, random_descriptor(rng));
    }

    for vector in 0..256 {
        let wild = vector >= 32 && rng.one_in(8);
        let access = if rng.one_in(8) { 0xef } else { 0xee };
        if long {
            let sound = gate(selector::CODE64, places::DISPATCH, access, 1);
            let low = if wild { random_descriptor(rng) } else { sound };
            image.put_u64(places::IDT + 16 * vector, low);
            image.put_u64(places::IDT + 16 * vector + 8, if wild { rng.odd_u64() } else { 0 });
        } else {
            let sound = match vector {
                8 => gate(selector::DOUBLE_FAULT_TSS, 0, 0x85, 0),
                _ => gate(selector::CODE32, places::DISPATCH, access, 0),
            };
            let descriptor = if wild { random_descriptor(rng) } else { sound };
            image.put_u64(places::IDT + 8 * vector, descriptor);
        }
    }

    if long {
        image.put_u64(places::TSS + 4, u64::from(places::RING0_STACK));
        image.put_u64(places::TSS + 36, u64::from(places::DISPATCH_STACK));
    } else {
        image.put_u32(places::TSS + 4, places::RING0_STACK);
        image.put_u32(places::TSS + 8, selector::DATA32);
    }
    // The I/O permission bitmap, and the interrupt redirection bitmap of virtual-8086 mode below it.
    image.put_u32(places::TSS + 0x64, 0x88 << 16);
    let open = rng.one_in(2);
    for n in 0x68..places::TSS_LIMIT {
        let byte = if open || rng.one_in(2) { 0 } else { rng.u8() };
        image.put(places::TSS + n, &[byte]);
    }
    image.put(places::TSS + places::TSS_LIMIT, &[0xff]);

    let task = places::DOUBLE_FAULT_TSS;
    image.put_u32(task + 0x1c, places::TABLES);
    image.put_u32(task + 0x20, places::DOUBLE_FAULT);
    image.put_u32(task + 0x24, 2);
    image.put_u32(task + 0x38, places::DISPATCH_STACK);
    let segments = [(0x48, 0x10), (0x4c, 0x08), (0x50, 0x10), (0x54, 0x10), (0x58, 0), (0x5c, 0)];
    for (offset, selector) in segments {
        image.put_u32(task + offset, selector);
    }
}

const PAGE: u32 = 0x1000;
const PRESENT_WRITABLE: u64 = 3;
const USER: u64 = 4;
const LARGE: u64 = 0x80;

/// An entry of any level.
fn random_entry(rng: &mut Rng) -> u64 {
    let flags = rng.u64() & 0xfff | u64::from(!rng.one_in(4));
    let address = match rng.below(6) {
        0 => u64::from(places::TABLES) + 0x1000 * rng.range(0..8),
        1 => u64::from(places::DATA) + 0x1000 * rng.range(0..16),
        2 => places::edge(rng) & !0xfff,
        3 => rng.range(0..512) << 21,
        4 => rng.range(0..16) << 30,
        _ => return rng.odd_u64(),
    };
    let high = if rng.one_in(8) { rng.odd_u64() & 0xfff0_0000_0000_0000 } else { 0 };
    address & 0x000f_ffff_ffff_f000 | flags | high
}

/// Fills the eight pages of page tables. The first is the root.
pub fn paging(rng: &mut Rng, plan: &Plan, image: &mut Image) {
    let user = if plan.user || plan.mode == Mode::V86 { USER } else { 0 };
    let base = PRESENT_WRITABLE | user;
    let page = |n: u32| places::TABLES + PAGE * n;
    let link = |n: u32| u64::from(page(n)) | base;
    if plan.mode.entries_are_narrow() {
        for n in 0..1024u32 {
            let identity = u64::from(n) << 22 | base | LARGE;
            let entry = match n {
                0 => link(4),
                1..16 | 768.. => identity,
                _ => random_entry(rng),
            };
            image.put_u32(page(0) + 4 * n, entry as u32);
            let entry = u64::from(n) << 12 | leaf_flags(rng, n, base);
            image.put_u32(page(4) + 4 * n, entry as u32);
        }
        return;
    }
    for n in 0..512u32 {
        for table in 0..8 {
            image.put_u64(page(table) + 8 * n, random_entry(rng));
        }
        let identity = |gib: u64| (gib << 30 | u64::from(n) << 21) | base | LARGE;
        if n < 32 {
            image.put_u64(page(2) + 8 * n, if n == 0 { link(4) } else { identity(0) });
        }
        image.put_u64(page(3) + 8 * n, identity(3));
        image.put_u64(page(4) + 8 * n, u64::from(n) << 12 | leaf_flags(rng, n, base));
    }
    let pointers = if plan.mode == Mode::Pae32 { page(0) } else { page(1) };
    let flags = if plan.mode == Mode::Pae32 { 1 } else { base };
    image.put_u64(pointers, u64::from(page(2)) | flags);
    image.put_u64(pointers + 24, u64::from(page(3)) | flags);
    match plan.mode {
        Mode::Pae32 => {
            image.put_u64(pointers + 8, 0);
            image.put_u64(pointers + 16, u64::from(page(5)) | u64::from(rng.one_in(2)));
        }
        _ => {
            image.put_u64(page(0), link(1));
            image.put_u64(pointers + 8, 1 << 30 | base | LARGE);
        }
    }
}

/// Flags of a 4 KiB page of the identity map: changed only for data pages.
fn leaf_flags(rng: &mut Rng, gpn: u32, base: u64) -> u64 {
    let first = places::DATA >> 12;
    let last = first + (places::DATA_BYTES >> 12);
    if (first..last).contains(&gpn) && rng.one_in(4) { rng.u64() & 0x1ff } else { base }
}
