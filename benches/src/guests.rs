//! Small guests with a loop each, in 64-bit mode with paging.
//!
//! Scheme: a multiboot image whose first code builds an identity map of 1 GiB and enters long mode; the loop runs
//! there so often as asked and then writes to the debug-exit port, so that the same image runs here and
//! under QEMU. The loops are mixed on purpose: one that fits a single fast path would measure only that.

use anyhow::Result;
use iced_x86::code_asm::*;

const LOAD: u32 = 0x10_0000;
const ENTRY: u32 = LOAD + 32;
/// Page tables, a page each: PML4, PDPT, PD.
const TABLES: u32 = 0x20_0000;
const STACK: u64 = 0x30_0000;
/// 16 MiB of data.
const DATA: u64 = 0x40_0000;

/// A loop to measure.
#[derive(Clone, Copy, Debug)]
pub struct Loop {
    pub name: &'static str,
    pub what: &'static str,
    body: fn(&mut CodeAssembler) -> Result<()>,
    /// Instructions in an iteration, about; only to choose how many iterations.
    pub about: u32,
}

pub const LOOPS: [Loop; 3] = [
    Loop {
        name: "integer",
        what: "ALU, loads, stores, branches of which half go either way",
        body: integer,
        about: 25,
    },
    Loop {
        name: "memory",
        what: "pointer chase, read-modify-write and byte scans over 4 MiB",
        body: memory,
        about: 24,
    },
    Loop {
        name: "calls",
        what: "calls and returns, pushes and pops, REP MOVSB of 96 bytes",
        body: calls,
        about: 40,
    },
];

impl Loop {
    /// The image that goes around `iterations` times.
    ///
    /// # Errors
    /// The code can't be assembled.
    pub fn image(&self, iterations: u32) -> Result<Vec<u8>> {
        let mut asm = CodeAssembler::new(64)?;
        let a = &mut asm;
        a.mov(rsp, STACK)?;
        a.mov(rsi, DATA)?;
        // A pointer chain through 4 MiB: each cache line points to one 4,097 lines on, all are visited.
        let mut fill = a.create_label();
        a.xor(eax, eax)?;
        a.set_label(&mut fill)?;
        a.lea(ecx, dword_ptr(rax + 4097 * 64))?;
        a.and(ecx, 0x3f_ffff)?;
        a.mov(qword_ptr(rsi + rax), rcx)?;
        a.add(eax, 64)?;
        a.cmp(eax, 0x40_0000)?;
        a.jb(fill)?;
        a.mov(rbx, 0x9e37_79b9_7f4a_7c15u64)?;
        for register in [r8, r9, r10, r11, r12, r13, r14, rdi] {
            a.xor(register, register)?;
        }
        a.mov(ecx, iterations)?;
        (self.body)(a)?;
        // The counter is in RCX; the debug-exit port ends the run.
        a.mov(eax, 0)?;
        a.mov(dx, 0xf4)?;
        a.out(dx, al)?;
        a.hlt()?;
        let start = start()?;
        let code = asm.assemble(u64::from(ENTRY) + start.len() as u64)?;

        let (magic, flags) = (0x1bad_b002u32, 0x1_0000u32);
        let checksum = 0u32.wrapping_sub(magic.wrapping_add(flags));
        let mut image = Vec::new();
        // Header, load start, load end (whole file), bss end (none), entry.
        for field in [magic, flags, checksum, LOAD, LOAD, 0, 0, ENTRY] {
            image.extend(field.to_le_bytes());
        }
        image.extend(start);
        image.extend(code);
        Ok(image)
    }
}

/// From flat 32-bit mode to 64-bit mode, ending right behind itself.
fn start() -> Result<Vec<u8>> {
    let assemble = |end: u32| -> Result<Vec<u8>> {
        let mut asm = CodeAssembler::new(32)?;
        let a = &mut asm;
        let mut fill = a.create_label();
        a.mov(dword_ptr(TABLES), (TABLES + 0x1000) | 3)?;
        a.mov(dword_ptr(TABLES + 0x1000), (TABLES + 0x2000) | 3)?;
        a.xor(eax, eax)?;
        a.mov(edi, TABLES + 0x2000)?;
        a.set_label(&mut fill)?;
        // 2 MiB pages, present and writable.
        a.mov(ecx, eax)?;
        a.shl(ecx, 21)?;
        a.or(ecx, 0x83)?;
        a.mov(dword_ptr(edi + eax * 8), ecx)?;
        a.inc(eax)?;
        a.cmp(eax, 512)?;
        a.jb(fill)?;
        a.mov(eax, TABLES)?;
        a.mov(cr3, eax)?;
        a.mov(eax, cr4)?;
        a.or(eax, 0x20)?;
        a.mov(cr4, eax)?;
        a.mov(ecx, 0xc000_0080u32)?;
        a.mov(eax, 0x100)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0000u32)?;
        a.mov(cr0, eax)?;
        // A descriptor table with nothing but 64-bit code, on the stack.
        a.mov(esp, STACK as u32)?;
        for word in [0x00af_9b00, 0x0000_ffff, 0, 0] {
            a.push(word)?;
        }
        a.mov(eax, esp)?;
        a.push(eax)?;
        a.push(0x000f_0000)?;
        a.lgdt(ptr(esp + 2))?;
        a.push(8)?;
        a.push(end as i32)?;
        a.retf()?;
        Ok(asm.assemble(u64::from(ENTRY))?)
    };
    let len = assemble(ENTRY)?.len() as u32;
    assemble(ENTRY + len)
}

/// A random number (xorshift) picks a word of a 4 KiB table to add to; its bits decide branches.
fn integer(a: &mut CodeAssembler) -> Result<()> {
    let (mut again, mut even, mut join) = (a.create_label(), a.create_label(), a.create_label());
    a.set_label(&mut again)?;
    a.mov(rax, rbx)?;
    a.shl(rax, 13)?;
    a.xor(rbx, rax)?;
    a.mov(rax, rbx)?;
    a.shr(rax, 7)?;
    a.xor(rbx, rax)?;
    a.mov(rax, rbx)?;
    a.shl(rax, 17)?;
    a.xor(rbx, rax)?;
    a.mov(edx, ebx)?;
    a.and(edx, 0xff8)?;
    a.mov(r8, qword_ptr(rsi + rdx))?;
    a.add(r8, rbx)?;
    a.mov(qword_ptr(rsi + rdx), r8)?;
    a.test(r8b, 1)?;
    a.jz(even)?;
    a.lea(r9, qword_ptr(r9 + r8 * 2 + 3))?;
    a.jmp(join)?;
    a.set_label(&mut even)?;
    a.sub(r9, r8)?;
    a.imul_3(r10, r9, 7)?;
    a.set_label(&mut join)?;
    a.cmp(r9, r10)?;
    a.cmovb(r11, r9)?;
    a.adc(r12d, 0)?;
    a.movzx(eax, r9b)?;
    a.add(r13d, eax)?;
    a.dec(ecx)?;
    a.jnz(again)?;
    Ok(())
}

/// Chases pointers through all of 4 MiB and works on the lines found.
fn memory(a: &mut CodeAssembler) -> Result<()> {
    let (mut again, mut scan, mut found) = (a.create_label(), a.create_label(), a.create_label());
    a.set_label(&mut again)?;
    a.mov(rdi, qword_ptr(rsi + rdi))?;
    a.add(dword_ptr(rsi + rdi + 8), ecx)?;
    a.inc(byte_ptr(rsi + rdi + 16))?;
    a.mov(eax, dword_ptr(rsi + rdi + 12))?;
    a.xor(eax, ecx)?;
    a.mov(dword_ptr(rsi + rdi + 12), eax)?;
    a.mov(word_ptr(rsi + rdi + 20), ax)?;
    a.movzx(edx, byte_ptr(rsi + rdi + 9))?;
    a.and(edx, 3)?;
    a.lea(r8, qword_ptr(rsi + rdi + 16))?;
    a.set_label(&mut scan)?;
    a.cmp(byte_ptr(r8), 0)?;
    a.je(found)?;
    a.inc(r8)?;
    a.dec(edx)?;
    a.jns(scan)?;
    a.set_label(&mut found)?;
    a.add(r9, r8)?;
    a.dec(ecx)?;
    a.jnz(again)?;
    Ok(())
}

/// Two levels of calls with a frame each, and a copy.
fn calls(a: &mut CodeAssembler) -> Result<()> {
    let (mut again, mut end) = (a.create_label(), a.create_label());
    let (mut outer, mut inner) = (a.create_label(), a.create_label());
    a.set_label(&mut again)?;
    a.push(rcx)?;
    a.mov(rdi, rcx)?;
    a.call(outer)?;
    a.add(r9, rax)?;
    a.pop(rcx)?;
    a.dec(ecx)?;
    a.jnz(again)?;
    a.jmp(end)?;
    a.set_label(&mut outer)?;
    a.push(rbp)?;
    a.mov(rbp, rsp)?;
    a.push(rbx)?;
    a.push(rsi)?;
    a.sub(rsp, 128)?;
    a.mov(ebx, 2)?;
    a.mov(edx, edi)?;
    a.and(edx, 0xfff)?;
    a.add(rsi, rdx)?;
    a.mov(rdi, rsp)?;
    a.mov(ecx, 96)?;
    a.rep().movsb()?;
    a.mov(rdi, rsp)?;
    a.call(inner)?;
    a.call(inner)?;
    a.add(rsp, 128)?;
    a.pop(rsi)?;
    a.pop(rbx)?;
    a.leave()?;
    a.ret()?;
    a.set_label(&mut inner)?;
    a.push(r14)?;
    a.mov(r14, qword_ptr(rdi + 8))?;
    a.add(r14, qword_ptr(rdi + rbx * 8))?;
    a.lea(rax, qword_ptr(rax + r14))?;
    a.pop(r14)?;
    a.ret()?;
    a.set_label(&mut end)?;
    Ok(())
}
