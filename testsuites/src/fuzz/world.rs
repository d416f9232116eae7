//! The stage of a hostile guest: an image that sets a mode up and then runs chunk after chunk.
//!
//! Problem: garbage faults at its first instruction or loops for ever, and a guest that ends there tests
//! little. Scheme: the hostile code is cut into *chunks*. A dispatcher, to which every gate of the IDT
//! leads, picks the next chunk, loads the registers drawn for it and enters it by IRET in the guest's mode
//! and privilege; whatever goes wrong there brings the dispatcher back, and so does the timer. Chunks may
//! destroy all this, and then the guest ends as it ends. A guest uses nothing but instructions to get
//! where it is, so whatever state it is in, a real one can be too.
//!
//! Source: SDM vol. 3, "Mode Switching"; Multiboot
//! Specification 0.6.96.

use anyhow::Result;
use iced_x86::code_asm::*;
use xenolith_cpu::state::{Cr0, Efer};

use super::places::{self, low, selector};
use super::plan::{Mode, Plan};
use super::rng::Rng;
use super::tables;

/// A guest's memory from [`places::LOAD`] on.
#[derive(Clone, Debug)]
pub struct Image {
    pub bytes: Vec<u8>,
}

impl Image {
    fn new() -> Self {
        Self { bytes: vec![0; (places::END - places::LOAD) as usize] }
    }

    /// Writes at a physical address of the image.
    pub fn put(&mut self, gpa: u32, data: &[u8]) {
        let at = (gpa - places::LOAD) as usize;
        self.bytes[at..at + data.len()].copy_from_slice(data);
    }

    pub fn put_u16(&mut self, gpa: u32, value: u16) {
        self.put(gpa, &value.to_le_bytes());
    }

    pub fn put_u32(&mut self, gpa: u32, value: u32) {
        self.put(gpa, &value.to_le_bytes());
    }

    pub fn put_u64(&mut self, gpa: u32, value: u64) {
        self.put(gpa, &value.to_le_bytes());
    }
}

/// A guest that runs `chunks` under `plan`.
///
/// # Errors
/// Code can't be assembled: a defect of the fuzzer.
pub fn image(rng: &mut Rng, plan: &Plan, chunks: &[Vec<u8>]) -> Result<Image> {
    let mut image = Image::new();
    // Header: magic, flags (addresses follow), checksum; header, start, end of file, no bss, entry.
    let (magic, flags) = (0x1bad_b002u32, 0x1_0000u32);
    let checksum = 0u32.wrapping_sub(magic.wrapping_add(flags));
    let header =
        [magic, flags, checksum, places::LOAD, places::LOAD, places::END, 0, places::SETUP];
    for (n, field) in (0..).zip(header) {
        image.put_u32(places::LOAD + 4 * n, field);
    }
    let mut data = vec![0; places::DATA_BYTES as usize];
    rng.fill(&mut data);
    image.put(places::DATA, &data);
    tables::descriptors(rng, plan, &mut image);
    tables::paging(rng, plan, &mut image);
    image.put_u16(places::TABLE_REGISTERS, (places::GDT_ENTRIES * 8 - 1) as u16);
    image.put_u32(places::TABLE_REGISTERS + 2, places::GDT);
    let (idt, idt_limit) = if plan.mode == Mode::Real { (0, 0x3ff) } else { (places::IDT, 0xfff) };
    image.put_u16(places::TABLE_REGISTERS + 8, idt_limit);
    image.put_u32(places::TABLE_REGISTERS + 10, idt);

    let mut at = places::CODE;
    let mut count = 0;
    for (n, chunk) in (0..).zip(chunks) {
        if n as usize == places::CHUNKS_MAX
            || at + chunk.len() as u32 + 16 > places::CODE + places::CODE_BYTES
        {
            break;
        }
        image.put(at, chunk);
        let offset = if plan.mode.runs_low() { at - places::CODE } else { at };
        image.put_u32(places::CHUNKS + 4 * n, offset);
        for r in 0..16 {
            let set = places::REGISTERS + places::REGISTER_SET * n;
            image.put_u64(set + 8 * r, draw_register(rng, plan.mode, r));
        }
        // Most chunks lie close together, some at the end of a page.
        at += chunk.len() as u32;
        if rng.one_in(8) {
            at = (at | 0xfff) - rng.range(0..16) as u32;
        }
        count += 1;
    }

    image.put(places::DISPATCH, &dispatcher32(plan, count)?);
    if plan.mode.is_long() {
        image.put(places::DISPATCH, &dispatcher64(plan, count)?);
    }
    image.put(places::DOUBLE_FAULT, &double_fault_task()?);
    let real = dispatcher16(count)?;
    let real_at = places::DOUBLE_FAULT + 0x80;
    image.put(real_at, &real);
    let setup = setup(plan, real_at, real.len() as u32)?;
    anyhow::ensure!(places::SETUP + setup.len() as u32 <= places::DISPATCH, "set-up is too long");
    image.put(places::SETUP, &setup);
    Ok(image)
}

/// What chunks get in register `r`. 7 of 8 stack pointers are sound.
fn draw_register(rng: &mut Rng, mode: Mode, r: u32) -> u64 {
    match r {
        4 if !rng.one_in(8) => match mode {
            Mode::Real | Mode::V86 => 0x6000 - 2 * rng.range(0..16),
            _ => u64::from(places::STACK) - 8 * rng.range(1..64),
        },
        // Counts of string instructions, and ports.
        1 if rng.one_in(2) => rng.range(0..64),
        2 if rng.one_in(2) => u64::from(places::port(rng)),
        _ if mode.runs_low() && rng.one_in(2) => rng.u64() & 0xffff,
        _ => places::register(rng),
    }
}

/// Ends the guest when all chunks have run: the debug-exit port.
fn finish(a: &mut CodeAssembler) -> Result<()> {
    a.mov(dx, 0xf4)?;
    a.mov(al, 1)?;
    a.out(dx, al)?;
    a.cli()?;
    a.hlt()?;
    Ok(())
}

/// From the loader's 32-bit protected mode to the first chunk. `real` is the 16-bit dispatcher.
fn setup(plan: &Plan, real: u32, real_len: u32) -> Result<Vec<u8>> {
    let mut asm = CodeAssembler::new(32)?;
    let a = &mut asm;
    a.lgdt(ptr(places::TABLE_REGISTERS))?;
    a.lidt(ptr(places::TABLE_REGISTERS + 8))?;
    a.mov(eax, selector::DATA32)?;
    for segment in [ds, es, fs, gs, ss] {
        a.mov(segment, eax)?;
    }
    a.mov(esp, places::DISPATCH_STACK)?;
    for (from, to, bytes) in [
        (places::CHUNKS, low::CHUNKS, 0x400),
        (real, low::DISPATCH, real_len),
        (places::CODE, low::CODE, places::CODE_BYTES),
        (places::REGISTERS, low::REGISTERS, 0x8000),
    ] {
        a.mov(esi, from)?;
        a.mov(edi, to)?;
        a.mov(ecx, bytes)?;
        a.rep().movsb()?;
    }
    // The 8254's channel 0 in mode 2; the 8259s let it through.
    a.mov(al, 0x34)?;
    a.out(0x43, al)?;
    for byte in plan.tick.to_le_bytes() {
        a.mov(al, u32::from(byte))?;
        a.out(0x40, al)?;
    }
    a.mov(al, 0)?;
    a.out(0x21, al)?;
    a.out(0xa1, al)?;
    if plan.second_processor {
        a.mov(edi, 0xfee0_0000u32)?;
        a.mov(dword_ptr(edi + 0x310), 1 << 24)?;
        a.mov(dword_ptr(edi + 0x300), 0x4500)?;
        a.mov(dword_ptr(edi + 0x300), 0x4600 | low::CODE >> 12)?;
    }
    a.mov(eax, plan.cr4)?;
    a.mov(cr4, eax)?;
    if let Some(mask) = plan.xcr0 {
        a.mov(eax, mask)?;
        a.xor(edx, edx)?;
        a.xor(ecx, ecx)?;
        a.xsetbv()?;
    }
    a.fninit()?;
    if plan.mode == Mode::Real {
        return to_real_mode(asm);
    }
    if !plan.mode.is_long() {
        a.mov(eax, selector::TSS)?;
        a.ltr(ax)?;
        a.mov(eax, selector::LDT)?;
        a.lldt(ax)?;
    }
    a.mov(ecx, 0xc000_0080u32)?;
    a.mov(eax, plan.efer | if plan.mode.is_long() { Efer::LME.bits() as u32 } else { 0 })?;
    a.xor(edx, edx)?;
    a.wrmsr()?;
    a.mov(eax, places::TABLES)?;
    a.mov(cr3, eax)?;
    let paging = if plan.mode.is_paged() { Cr0::PG.bits() as u32 } else { 0 };
    a.mov(eax, plan.cr0 | (Cr0::PE | Cr0::ET).bits() as u32 | paging)?;
    a.mov(cr0, eax)?;
    // The dispatcher has the same address in either width; the far return chooses.
    let code = if plan.mode.is_long() { selector::CODE64 } else { selector::CODE32 };
    a.push(code as i32)?;
    a.push(places::DISPATCH as i32)?;
    a.retf()?;
    Ok(asm.assemble(u64::from(places::SETUP))?)
}

/// The end of set-up for real mode: an interrupt table whose vectors all lead to the dispatcher.
fn to_real_mode(mut asm: CodeAssembler) -> Result<Vec<u8>> {
    let a = &mut asm;
    a.xor(edi, edi)?;
    a.mov(ecx, 256)?;
    a.mov(eax, low::DISPATCH)?;
    a.rep().stosd()?;
    // A 16-bit tail below 64 KiB, since a far jump back to real mode ends there.
    const TAIL: u32 = 0x6c00;
    let mut tail = CodeAssembler::new(16)?;
    tail.mov(eax, selector::DATA16)?;
    for segment in [ds, es, fs, gs, ss] {
        tail.mov(segment, eax)?;
    }
    tail.mov(eax, cr0)?;
    tail.and(eax, !1u32)?;
    tail.mov(cr0, eax)?;
    let mut tail = tail.assemble(u64::from(TAIL))?;
    // jmp 0:DISPATCH
    tail.push(0xea);
    tail.extend((low::DISPATCH as u16).to_le_bytes());
    tail.extend([0, 0]);
    for (n, part) in (0..).zip(tail.chunks(4)) {
        let mut word = [0; 4];
        word[..part.len()].copy_from_slice(part);
        a.mov(dword_ptr(TAIL + 4 * n), u32::from_le_bytes(word))?;
    }
    a.push(selector::CODE16 as i32)?;
    a.push(TAIL as i32)?;
    a.retf()?;
    Ok(asm.assemble(u64::from(places::SETUP))?)
}

/// Tells the interrupt controllers that the interrupt, if it was one, is over.
fn acknowledge(a: &mut CodeAssembler) -> Result<()> {
    a.mov(al, 0x20)?;
    a.out(0x20, al)?;
    a.out(0xa0, al)?;
    a.mov(ebx, 0xfee0_0000u32)?;
    a.mov(dword_ptr(ebx + 0xb0), 0)?;
    Ok(())
}

/// The dispatcher of 32-bit modes, at [`places::DISPATCH`].
fn dispatcher32(plan: &Plan, count: u32) -> Result<Vec<u8>> {
    let mut asm = CodeAssembler::new(32)?;
    let a = &mut asm;
    let mut done = a.create_label();
    a.mov(eax, selector::DATA32)?;
    a.mov(ss, eax)?;
    a.mov(esp, places::DISPATCH_STACK)?;
    a.mov(ds, eax)?;
    if plan.acknowledges {
        acknowledge(a)?;
    }
    let data = if plan.user { selector::USER_DATA32 } else { selector::DATA32 };
    a.mov(ecx, data)?;
    for segment in [es, fs, gs] {
        a.mov(segment, ecx)?;
    }
    a.mov(esi, dword_ptr(places::COUNTER))?;
    a.inc(dword_ptr(places::COUNTER))?;
    a.cmp(esi, count)?;
    a.jae(done)?;
    a.mov(eax, dword_ptr(esi * 4 + places::CHUNKS))?;
    a.shl(esi, places::REGISTER_SET.trailing_zeros())?;
    a.add(esi, places::REGISTERS)?;
    match plan.mode {
        Mode::V86 => {
            for segment in [0x1800, 0x1900, 0x2000, low::CODE_SEGMENT, 0] {
                a.push(segment as i32)?;
            }
            a.push(dword_ptr(esi + 32))?;
            a.push(plan.flags as i32)?;
            a.push(low::CODE_SEGMENT as i32)?;
        }
        _ => {
            let code = match (plan.user, plan.mode.bits()) {
                (true, 16) => selector::USER_CODE16,
                (true, _) => selector::USER_CODE32,
                (false, 16) => selector::CODE16,
                (false, _) => selector::CODE32,
            };
            if plan.user {
                a.push(selector::USER_DATA32 as i32)?;
                a.push(dword_ptr(esi + 32))?;
            } else {
                a.mov(esp, dword_ptr(esi + 32))?;
            }
            a.push(plan.flags as i32)?;
            a.push(code as i32)?;
        }
    }
    a.push(eax)?;
    let registers = [eax, ecx, edx, ebx, esp, ebp, esi, edi];
    for (n, register) in (0..).zip(registers) {
        if register != esp && register != esi {
            a.mov(register, dword_ptr(esi + 8 * n))?;
        }
    }
    if plan.user && plan.mode != Mode::V86 {
        // DS last: this code needs it.
        a.push(eax)?;
        a.mov(eax, data)?;
        a.mov(ds, eax)?;
        a.pop(eax)?;
        a.mov(esi, dword_ptr(esi + 48).ss())?;
    } else {
        a.mov(esi, dword_ptr(esi + 48))?;
    }
    a.iretd()?;
    a.set_label(&mut done)?;
    finish(a)?;
    Ok(asm.assemble(u64::from(places::DISPATCH))?)
}

/// The dispatcher of long mode, at [`places::DISPATCH`]; compatibility mode's too.
fn dispatcher64(plan: &Plan, count: u32) -> Result<Vec<u8>> {
    let mut asm = CodeAssembler::new(64)?;
    let a = &mut asm;
    let mut done = a.create_label();
    a.mov(rsp, u64::from(places::DISPATCH_STACK))?;
    // The first time it comes here without its own task register.
    let mut loaded = a.create_label();
    a.str(eax)?;
    a.cmp(eax, selector::TSS)?;
    a.je(loaded)?;
    a.mov(eax, selector::TSS)?;
    a.ltr(ax)?;
    a.mov(eax, selector::LDT)?;
    a.lldt(ax)?;
    a.set_label(&mut loaded)?;
    if plan.acknowledges {
        acknowledge(a)?;
    }
    let (code, data) = match (plan.mode, plan.user) {
        (Mode::Long64, true) => (selector::USER_CODE64, selector::USER_DATA32),
        (Mode::Long64, false) => (selector::CODE64, selector::DATA32),
        (Mode::Compatibility16, true) => (selector::USER_CODE16, selector::USER_DATA32),
        (Mode::Compatibility16, false) => (selector::CODE16, selector::DATA32),
        (_, true) => (selector::USER_CODE32, selector::USER_DATA32),
        (_, false) => (selector::CODE32, selector::DATA32),
    };
    a.mov(ecx, data)?;
    for segment in [ds, es, fs, gs] {
        a.mov(segment, ecx)?;
    }
    a.mov(esi, dword_ptr(u64::from(places::COUNTER)))?;
    a.inc(dword_ptr(u64::from(places::COUNTER)))?;
    a.cmp(esi, count)?;
    a.jae(done)?;
    a.mov(eax, dword_ptr(rsi * 4 + places::CHUNKS))?;
    a.shl(esi, places::REGISTER_SET.trailing_zeros())?;
    a.add(esi, places::REGISTERS)?;
    a.push(data as i32)?;
    a.push(qword_ptr(rsi + 32))?;
    a.push(plan.flags as i32)?;
    a.push(code as i32)?;
    a.push(rax)?;
    let registers = [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
    for (n, register) in (0..).zip(registers) {
        if register != rsp && register != rsi {
            a.mov(register, qword_ptr(rsi + 8 * n))?;
        }
    }
    a.mov(rsi, qword_ptr(rsi + 48))?;
    a.iretq()?;
    a.set_label(&mut done)?;
    finish(a)?;
    Ok(asm.assemble(u64::from(places::DISPATCH))?)
}

/// The dispatcher of real mode, at [`low::DISPATCH`].
fn dispatcher16(count: u32) -> Result<Vec<u8>> {
    let mut asm = CodeAssembler::new(16)?;
    let a = &mut asm;
    let mut done = a.create_label();
    a.xor(eax, eax)?;
    a.mov(ds, eax)?;
    a.mov(ss, eax)?;
    a.mov(esp, low::DISPATCH)?;
    a.mov(al, 0x20)?;
    a.out(0x20, al)?;
    a.mov(eax, dword_ptr(low::COUNTER))?;
    a.inc(dword_ptr(low::COUNTER))?;
    a.cmp(eax, count)?;
    a.jae(done)?;
    a.mov(ebx, eax)?;
    a.mov(ebp, dword_ptr(ebx * 4 + low::CHUNKS))?;
    a.shl(eax, 3)?;
    a.add(eax, low::REGISTERS >> 4)?;
    a.mov(ds, eax)?;
    a.mov(ecx, 0x2000)?;
    a.mov(es, ecx)?;
    // FLAGS with IF, CS and IP for IRET.
    a.push(0x202)?;
    a.push(low::CODE_SEGMENT as i32)?;
    a.push(bp)?;
    let registers = [eax, ecx, edx, ebx, esp, ebp, esi, edi];
    for (n, register) in (0..).zip(registers) {
        if register != esp {
            a.mov(register, dword_ptr(8 * n))?;
        }
    }
    a.iret()?;
    a.set_label(&mut done)?;
    finish(a)?;
    Ok(asm.assemble(u64::from(low::DISPATCH))?)
}

/// The task that takes double faults outside long mode: makes both TSSs available again and goes on.
fn double_fault_task() -> Result<Vec<u8>> {
    let mut asm = CodeAssembler::new(32)?;
    let a = &mut asm;
    for task in [selector::TSS, selector::DOUBLE_FAULT_TSS] {
        a.and(byte_ptr(places::GDT + task + 5), !2i32)?;
    }
    a.push(2)?;
    a.popfd()?;
    a.mov(eax, selector::TSS)?;
    a.ltr(ax)?;
    a.jmp(u64::from(places::DISPATCH))?;
    Ok(asm.assemble(u64::from(places::DOUBLE_FAULT))?)
}
