//! The kernel of one instruction under which snippets run in a machine: tables and gates.
//!
//! Problem: a snippet must see what a Linux process sees, whoever runs it. Scheme: page tables with the snippet's
//! pages, nothing else below, and the kernel's above; Linux's GDT as far as programs see it, the same LDT; an
//! IDT whose every gate leads to a handler of its own, on a stack of its own. Invariant: accessed and dirty bits
//! are set from the start, so nothing in the tables changes. Written before anything runs.
//! Source: SDM vol. 3, "4-Level Paging", "IDT Descriptors in 64-Bit Mode", "Interrupt Stack Table".

use xenolith_cpu::CpuState;
use xenolith_cpu::cpuid::{CpuidModel, Feature};
use xenolith_cpu::state::{Activity, Cr0, Cr4, Efer, Rflags, Segment, Shadow, TableRegister};

use super::layout::{
    Area, HIGH_AREAS, HIGH_START, KCODE32, KCODE64, KDATA, LDT_SEL, LOCAL, LOW_AREAS, LOW_START,
    PAGE, TSS_SEL, UCODE32, UCODE64, UDATA, descriptor, local_descriptors,
};

pub const RAM_BYTES: u64 = 64 << 20;
/// Where supervisor code sees all of RAM.
pub const KERNEL: u64 = 0xffff_8000_0000_0000;
/// Physical places of the kernel's things.
pub const GDT: u64 = 0x110_0000;
pub const LDT: u64 = 0x110_1000;
pub const IDT: u64 = 0x110_2000;
const TSS: u64 = 0x110_3000;
pub const HANDLERS: u64 = 0x110_4000;
pub const KERNEL_STACK_TOP: u64 = 0x110_8000;
pub const PML4: u64 = 0x118_0000;
const PDPT: u64 = 0x118_1000;
pub const PD: u64 = 0x118_2000;
const PT_LOW: u64 = 0x118_3000;
const PT_HIGH: u64 = 0x118_4000;
pub const KERNEL_PDPT: u64 = 0x118_5000;
pub const KERNEL_PD: u64 = 0x118_6000;
pub const HANDLER_STEP: u64 = 16;

pub const GDT_LIMIT: u16 = 0x7f;
pub const IDT_LIMIT: u16 = 0xfff;

/// Bits of table entries: accessed and dirty already, so that nothing in the tables changes.
pub const TABLE: u64 = 0x67;
const LARGE: u64 = 0xe3;

/// Whether an exception pushes an error code.
#[must_use]
pub fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}

/// Writes eight bytes at a physical address.
pub type Put<'a> = dyn FnMut(u64, u64) + 'a;

/// Maps one of the two pieces of memory.
pub fn map_piece(put: &mut Put, low: bool) {
    let entry = |table, mapped| if mapped { table | TABLE } else { 0 };
    put(PD + 8 * (LOW_START >> 21), entry(PT_LOW, low));
    put(PD + 8 * (HIGH_START >> 21), entry(PT_HIGH, !low));
}

/// Writes the tables. `handler` gives the code of a vector's handler, at most 16 bytes.
pub fn build(put: &mut Put, handler: impl Fn(u64) -> [u8; 16]) {
    put(PML4, PDPT | TABLE);
    put(PDPT, PD | TABLE);
    map_piece(put, false);
    let areas: [&[Area]; 2] = [&HIGH_AREAS, &LOW_AREAS];
    for area in areas.concat() {
        for page in (area.start..area.start + area.len).step_by(PAGE as usize) {
            let table = if area.start < HIGH_START { PT_LOW } else { PT_HIGH };
            let write = if area.write { 0 } else { 2 };
            let execute = if area.execute { 0 } else { 1 << 63 };
            put(table + 8 * (page >> 12 & 511), (page | TABLE | execute) & !write);
        }
    }
    put(PML4 + 8 * (KERNEL >> 39 & 511), KERNEL_PDPT | TABLE);
    put(KERNEL_PDPT, KERNEL_PD | TABLE);
    for n in 0..RAM_BYTES >> 21 {
        put(KERNEL_PD + 8 * n, n << 21 | LARGE);
    }
    for (selector, value) in [
        (KCODE32, 0x00cf_9b00_0000_ffff),
        (KCODE64, 0x00af_9b00_0000_ffff),
        (KDATA, 0x00cf_9300_0000_ffff),
        (UCODE32, 0x00cf_fb00_0000_ffff),
        (UDATA, 0x00cf_f300_0000_ffff),
        (UCODE64, 0x00af_fb00_0000_ffff),
    ] {
        put(GDT + u64::from(selector & !7), value);
    }
    for (selector, base, limit, kind) in
        [(TSS_SEL, TSS, 0x67, 0x89), (LDT_SEL, LDT, ldt_limit(), 0x82)]
    {
        let base = KERNEL + base;
        let low =
            u64::from(limit) | (base & 0xff_ffff) << 16 | kind << 40 | (base >> 24 & 0xff) << 56;
        put(GDT + u64::from(selector), low);
        put(GDT + u64::from(selector) + 8, base >> 32);
    }
    for (desc, (_, selector, ..)) in local_descriptors().iter().zip(LOCAL) {
        put(LDT + u64::from(selector & !7), descriptor(desc));
    }
    // IST 1.
    put(TSS + 0x24, KERNEL + KERNEL_STACK_TOP);
    put(TSS + 4, KERNEL + KERNEL_STACK_TOP);
    // No I/O permission bitmap.
    put(TSS + 0x60, 0x68 << 48);
    for vector in 0..256 {
        let at = HANDLERS + HANDLER_STEP * vector;
        put(IDT + 16 * vector, gate(KERNEL + at, vector));
        put(IDT + 16 * vector + 8, (KERNEL + at) >> 32);
        let code = u128::from_le_bytes(handler(vector));
        put(at, code as u64);
        put(at + 8, (code >> 64) as u64);
    }
}

fn gate(handler: u64, vector: u64) -> u64 {
    // #BP and #OF are the program's to raise.
    let level: u64 = if matches!(vector, 3 | 4) { 3 } else { 0 };
    handler & 0xffff
        | u64::from(KCODE64) << 16
        | 1 << 32
        | (0x8e | level << 5) << 40
        | (handler >> 16 & 0xffff) << 48
}

pub fn ldt_limit() -> u32 {
    (LOCAL.len() as u32 + 1) * 8 - 1
}

pub const CR0: u64 = Cr0::PE.bits()
    | Cr0::MP.bits()
    | Cr0::ET.bits()
    | Cr0::NE.bits()
    | Cr0::WP.bits()
    | Cr0::AM.bits()
    | Cr0::PG.bits();
pub const EFER: u64 = Efer::SCE.bits() | Efer::LME.bits() | Efer::LMA.bits() | Efer::NXE.bits();

/// CR4 as a 64-bit Linux has it, as far as programs see it.
#[must_use]
pub fn cr4(has: impl Fn(Feature) -> bool) -> u64 {
    let mut cr4 = Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::PGE;
    for (feature, bit) in [
        (Feature::Xsave, Cr4::OSXSAVE),
        (Feature::Fsgsbase, Cr4::FSGSBASE),
        (Feature::Umip, Cr4::UMIP),
    ] {
        if has(feature) {
            cr4 |= bit;
        }
    }
    cr4.bits()
}

/// The state in which a snippet is entered, but for what the snippet says.
#[must_use]
pub fn state(model: &CpuidModel) -> CpuState {
    let mut state = CpuState::reset(model.signature());
    state.cr0 = CR0;
    state.cr4 = cr4(|feature| model.has(feature));
    state.cr3 = PML4;
    state.efer = EFER;
    state.xcr0 = model.xcr0_mask().max(1);
    state.cpl = 3;
    state.activity = Activity::Running;
    state.shadow = Shadow::None;
    state.rflags = Rflags::FIXED.bits();
    state.gdtr = TableRegister { base: KERNEL + GDT, limit: GDT_LIMIT };
    state.idtr = TableRegister { base: KERNEL + IDT, limit: IDT_LIMIT };
    state.ldtr =
        Segment { base: KERNEL + LDT, limit: ldt_limit(), access: 0x82, selector: LDT_SEL };
    state.tr = Segment { base: KERNEL + TSS, limit: 0x67, access: 0x8b, selector: TSS_SEL };
    state
}

/// Selectors that a snippet may start with, with what they load.
#[must_use]
pub fn segments() -> Vec<(u16, Segment)> {
    let flat =
        |selector, access| (selector, Segment { base: 0, limit: u32::MAX, access, selector });
    let mut all = vec![flat(UCODE32, 0xc0fb), flat(UDATA, 0xc0f3), flat(UCODE64, 0xa0fb)];
    for (desc, (_, selector, ..)) in local_descriptors().iter().zip(LOCAL) {
        all.push((selector, Segment::from_descriptor(selector, descriptor(desc))));
    }
    all
}
