//! What snippets outside long mode run under.
//!
//! Problem: protected, virtual-8086 and real mode want tables of their own. Scheme: beside the 64-bit kernel's
//! ([`kernel`](super::kernel)) lie a GDT, IDT and TSS in 32-bit form and a page-directory-pointer table over the same
//! page tables and handlers; for real mode an interrupt table in low memory whose vectors lead to a HLT each.
//! Invariant: as there. Written before anything runs. Source: SDM vol. 3, "PAE Paging", "IDT Descriptors", "Task-State
//! Segment (TSS)", "Real-Address Mode Operation".

use std::sync::Arc;

use xenolith_cpu::CpuState;
use xenolith_cpu::cpuid::CpuidModel;
use xenolith_cpu::state::{Cr0, Cr4, Efer, Rflags, Segment, TableRegister, sreg};
use xenolith_mmu::GuestRam;

use super::engine::get;
use super::kernel::{
    self, GDT_LIMIT, HANDLER_STEP, HANDLERS, KERNEL_PD, KERNEL_STACK_TOP, LDT, PD, RAM_BYTES,
    has_error_code, ldt_limit,
};
use super::layout::{KCODE32, KDATA, LDT_SEL, TSS_SEL, UCODE32, UDATA};
use super::{End, Ending, System};

/// Where supervisor code sees all of RAM.
const KERNEL: u64 = 0xc000_0000;
const _: () = assert!(RAM_BYTES <= 1 << 30);
const GDT: u64 = 0x110_9000;
const IDT: u64 = 0x110_a000;
const TSS: u64 = 0x110_b000;
const PDPT: u64 = 0x118_7000;
const TASK_LIMIT: u32 = 0x67;

/// Real mode: the interrupt table, and a paragraph of code for each vector.
const VECTORS: u64 = 0x1000;
const REAL_HANDLERS: u64 = 0x2000;
const HLT: u64 = 0xf4;

/// Entries of the page-directory-pointer table have neither rights nor an accessed bit.
const PRESENT: u64 = 1;

/// Writes the tables, behind [`kernel::build`].
pub fn build(put: &mut kernel::Put) {
    put(PDPT, PD | PRESENT);
    put(PDPT + 8 * (KERNEL >> 30), KERNEL_PD | PRESENT);
    for (selector, value) in [
        (KCODE32, 0x00cf_9b00_0000_ffff),
        (KDATA, 0x00cf_9300_0000_ffff),
        (UCODE32, 0x00cf_fb00_0000_ffff),
        (UDATA, 0x00cf_f300_0000_ffff),
    ] {
        put(GDT + u64::from(selector & !7), value);
    }
    for (selector, base, limit, kind) in
        [(TSS_SEL, TSS, TASK_LIMIT, 0x8b), (LDT_SEL, LDT, ldt_limit(), 0x82)]
    {
        let base = KERNEL + base;
        let value =
            u64::from(limit) | (base & 0xff_ffff) << 16 | kind << 40 | (base >> 24 & 0xff) << 56;
        put(GDT + u64::from(selector), value);
    }
    // ESP0, SS0; no I/O permission bitmap.
    put(TSS, (KERNEL + KERNEL_STACK_TOP) << 32);
    put(TSS + 8, u64::from(KDATA));
    put(TSS + 0x60, 0x68 << 48);
    for vector in 0..256 {
        put(IDT + 8 * vector, gate(KERNEL + HANDLERS + HANDLER_STEP * vector, vector));
        put(REAL_HANDLERS + HANDLER_STEP * vector, HLT);
        // Two vectors of four bytes at a time.
        if vector % 2 == 0 {
            let far = |vector: u64| ((REAL_HANDLERS >> 4) << 16) | (HANDLER_STEP * vector);
            put(VECTORS + 4 * vector, far(vector) | far(vector + 1) << 32);
        }
    }
}

fn gate(handler: u64, vector: u64) -> u64 {
    // #BP and #OF are the program's to raise.
    let level: u64 = if matches!(vector, 3 | 4) { 3 } else { 0 };
    handler & 0xffff
        | u64::from(KCODE32) << 16
        | (0x8e | level << 5) << 40
        | (handler >> 16 & 0xffff) << 48
}

/// The state in which a snippet is entered, but for what the snippet says.
#[must_use]
pub fn state(model: &CpuidModel, system: System) -> CpuState {
    let mut state = kernel::state(model);
    match system {
        System::Long => {}
        System::Protected | System::V86 => {
            state.efer = Efer::NXE.bits();
            state.cr3 = PDPT;
            state.pdpte = [PD | PRESENT, 0, 0, KERNEL_PD | PRESENT];
            state.gdtr = TableRegister { base: KERNEL + GDT, limit: GDT_LIMIT };
            state.idtr = TableRegister { base: KERNEL + IDT, limit: 256 * 8 - 1 };
            state.ldtr =
                Segment { base: KERNEL + LDT, limit: ldt_limit(), access: 0x82, selector: LDT_SEL };
            state.tr =
                Segment { base: KERNEL + TSS, limit: TASK_LIMIT, access: 0x8b, selector: TSS_SEL };
        }
        System::Real => {
            state.efer = 0;
            state.cr0 &= (Cr0::MP | Cr0::ET | Cr0::NE).bits();
            state.cr4 &= (Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE).bits();
            state.cpl = 0;
            state.idtr = TableRegister { base: VECTORS, limit: 256 * 4 - 1 };
        }
    }
    state
}

/// The exception that led to the HLT, from the kernel's stack.
pub fn read_frame(ram: &Arc<GuestRam>, state: &CpuState, ending: &mut Ending) -> End {
    let vector = (state.rip.wrapping_sub(1 + KERNEL + HANDLERS) / HANDLER_STEP) as u8;
    let has_code = has_error_code(vector);
    let stack = (state.gpr[4] & 0xffff_ffff).wrapping_sub(KERNEL);
    let word = |n: u64| get(ram, stack.wrapping_add(4 * n)) & 0xffff_ffff;
    let at = u64::from(has_code);
    let flags = word(at + 2);
    ending.rip = word(at);
    ending.selectors[sreg::CS] = word(at + 1) as u16;
    ending.rflags = flags & !Rflags::VM.bits();
    ending.gpr[4] = word(at + 3);
    ending.selectors[sreg::SS] = word(at + 4) as u16;
    if flags & Rflags::VM.bits() != 0 {
        for (n, register) in [sreg::ES, sreg::DS, sreg::FS, sreg::GS].into_iter().enumerate() {
            ending.selectors[register] = word(at + 5 + n as u64) as u16;
        }
    }
    // HLT and the delivery are not the snippet's.
    ending.retired = ending.retired.saturating_sub(1);
    let error = if has_code { word(0) as u32 } else { 0 };
    End::Exception { vector, error, cr2: state.cr2 }
}

/// The same in real mode, from the snippet's own stack.
pub fn read_real_frame(ram: &Arc<GuestRam>, state: &CpuState, ending: &mut Ending) -> End {
    let place = state.rip.wrapping_sub(1);
    let in_handler = state.seg[sreg::CS].base == REAL_HANDLERS
        && place < 256 * HANDLER_STEP
        && place.is_multiple_of(HANDLER_STEP);
    if !in_handler {
        return End::Lost("it halted".to_owned());
    }
    let stack = state.seg[sreg::SS].base;
    let word = |n: u64| get(ram, stack + ((state.gpr[4] + 2 * n) & 0xffff)) & 0xffff;
    ending.rip = word(0);
    ending.selectors[sreg::CS] = word(1) as u16;
    ending.rflags = ending.rflags & !0xffff | word(2);
    ending.gpr[4] = state.gpr[4] & !0xffff | (state.gpr[4] + 6) & 0xffff;
    ending.retired = ending.retired.saturating_sub(1);
    End::Exception { vector: (place / HANDLER_STEP) as u8, error: 0, cr2: 0 }
}
