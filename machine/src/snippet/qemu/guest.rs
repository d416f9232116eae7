//! The program that runs snippets in QEMU.
//!
//! See the parent module. From RESET through protected mode to long mode under [`super::kernel`]'s tables, then a
//! loop:
//!
//! ```text
//! wait:    until WANTED isn't DONE
//! next:    for each of COUNT records: clear and copy memory, load x87, vector, segment and general
//!          registers, IRETQ into the snippet
//! common:  every exception comes here through its handler: registers, x87 and vector state, memory go into the
//!          answer; on to the next record, or DONE becomes WANTED
//! ```
//!
//! Invariant: it stores to the snippet's memory itself, so that QEMU sees code change.

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, CodeLabel, qword_ptr, registers as r};
use xenolith_cpu::state::XSAVE_AREA_SIZE;

use super::super::kernel::{
    CR0, EFER, GDT, GDT_LIMIT, HANDLER_STEP, HANDLERS, IDT, IDT_LIMIT, KERNEL, KERNEL_PDPT, PML4,
    TABLE, cr4, has_error_code,
};
use super::super::layout::{KCODE32, KCODE64, KDATA, LDT_SEL, TSS_SEL};

/// Where real mode begins.
pub const START: u64 = 0x600;
const PROTECTED: u64 = 0x700;
const TABLE_POINTER: u64 = 0x6f0;
/// Tables under which long mode is entered: with low memory where it is.
const BOOT_PML4: u64 = 0x118_7000;
const BOOT_PDPT: u64 = 0x118_8000;
const LOOP: u64 = 0x120_0000;
const VARS: u64 = 0x121_0000;
const STACK_TOP: u64 = 0x122_0000;
/// Records, and what came of them.
pub const INPUT: u64 = 0x200_0000;
pub const INPUT_LEN: u64 = 0x100_0000;
pub const ANSWERS: u64 = 0x300_0000;

/// Words shared with the other side, by physical address.
pub struct Vars;

impl Vars {
    pub const WANTED: u64 = VARS;
    pub const DONE: u64 = VARS + 8;
    pub const COUNT: u64 = VARS + 16;
    pub const INDEX: u64 = VARS + 24;
    /// Where the next answer goes.
    pub const ANSWER: u64 = VARS + 32;
    /// The record that is being run.
    const RECORD: u64 = VARS + 40;
    pub const ALIVE: u64 = VARS + 48;
    /// The page tables have changed.
    pub const RELOAD: u64 = VARS + 56;
    const GDTR: u64 = VARS + 64;
    const IDTR: u64 = VARS + 80;
}

/// What is done to memory: word, address, length, and bytes to copy.
pub const ZERO: u64 = 1;
pub const COPY: u64 = 2;

/// Offsets of a record's registers.
pub mod registers {
    use super::XSAVE_AREA_SIZE;
    pub const RIP: usize = 128;
    pub const CS: usize = 136;
    pub const RFLAGS: usize = 144;
    pub const SS: usize = 152;
    pub const ES: usize = 160;
    pub const DS: usize = 168;
    pub const FS: usize = 176;
    pub const GS: usize = 184;
    pub const XSAVE: usize = 256;
    pub const LEN: usize = XSAVE + XSAVE_AREA_SIZE;
}

/// Offsets of an answer; general registers come first.
pub mod answer {
    pub const VECTOR: u64 = 128;
    pub const ERROR: u64 = 136;
    pub const RIP: u64 = 144;
    pub const CS: u64 = 152;
    pub const RFLAGS: u64 = 160;
    pub const RSP: u64 = 168;
    pub const SS: u64 = 176;
    pub const ES: u64 = 184;
    pub const DS: u64 = 192;
    pub const FS: u64 = 200;
    pub const GS: u64 = 208;
    pub const CR2: u64 = 216;
    pub const XSAVE: u64 = 256;
    /// Memory.
    pub const WINDOWS: u64 = 1152;
}

/// Code of a vector's handler: the error code if the processor pushes none, the vector, and on to the common part.
pub fn handler(vector: u64) -> [u8; 16] {
    let mut code = [0x90; 16];
    let mut at = 0;
    if !has_error_code(vector as u8) {
        code[..2].copy_from_slice(&[0x6a, 0]);
        at = 2;
    }
    code[at..at + 2].copy_from_slice(&[0x6a, vector as u8]);
    let next = HANDLERS + HANDLER_STEP * vector + at as u64 + 7;
    // The loop's program begins with a jump to its common part, five bytes before its own start.
    let distance = LOOP.wrapping_sub(next) as u32;
    code[at + 2] = 0xe9;
    code[at + 3..at + 7].copy_from_slice(&distance.to_le_bytes());
    code
}

/// Bytes and where they go.
pub fn program() -> Result<Vec<(u64, Vec<u8>)>, IcedError> {
    let gdt_pointer = |base: u64| {
        let mut bytes = GDT_LIMIT.to_le_bytes().to_vec();
        bytes.extend(base.to_le_bytes());
        bytes
    };
    let mut idt_pointer = IDT_LIMIT.to_le_bytes().to_vec();
    idt_pointer.extend((KERNEL + IDT).to_le_bytes());
    let entry = |table: u64| (table | TABLE).to_le_bytes().to_vec();
    // Kernel and low memory by the same tables.
    let boot_tables = [
        (BOOT_PML4, entry(BOOT_PDPT)),
        (BOOT_PML4 + 8 * 256, entry(KERNEL_PDPT)),
        (BOOT_PDPT, entry(KERNEL_PDPT + 0x1000)),
    ];
    let mut all = vec![
        (START, real_mode()),
        (PROTECTED, protected_mode()?),
        (TABLE_POINTER, gdt_pointer(GDT)),
        (Vars::GDTR, gdt_pointer(KERNEL + GDT)),
        (Vars::IDTR, idt_pointer),
        (LOOP, main_loop()?),
    ];
    all.extend(boot_tables);
    Ok(all)
}

#[rustfmt::skip]
fn real_mode() -> Vec<u8> {
    let [p0, p1, ..] = PROTECTED.to_le_bytes();
    let [t0, t1, ..] = TABLE_POINTER.to_le_bytes();
    vec![
        0x66, 0x0f, 0x01, 0x16, t0, t1,             // o32 lgdt [TABLE_POINTER]
        0x0f, 0x20, 0xc0,                           // mov eax, cr0
        0x0c, 0x01,                                 // or al, 1
        0x0f, 0x22, 0xc0,                           // mov cr0, eax
        0xea, p0, p1, KCODE32 as u8, 0,             // jmp KCODE32:PROTECTED
    ]
}

fn protected_mode() -> Result<Vec<u8>, IcedError> {
    const MSR_EFER: u32 = 0xc000_0080;
    let mut a = CodeAssembler::new(32)?;
    a.mov(r::eax, u32::from(KDATA))?;
    for segment in [r::ds, r::es, r::ss] {
        a.mov(segment, r::eax)?;
    }
    a.mov(r::eax, cr4(|_| true) as u32)?;
    a.mov(r::cr4, r::eax)?;
    a.mov(r::eax, BOOT_PML4 as u32)?;
    a.mov(r::cr3, r::eax)?;
    a.mov(r::ecx, MSR_EFER)?;
    a.mov(r::eax, (EFER & !(1 << 10)) as u32)?;
    a.xor(r::edx, r::edx)?;
    a.wrmsr()?;
    a.mov(r::eax, CR0 as u32)?;
    a.mov(r::cr0, r::eax)?;
    let mut code = a.assemble(PROTECTED)?;
    // jmp KCODE64:long, where long is the byte behind; then mov rax, KERNEL + main; jmp rax.
    let long = PROTECTED as u32 + code.len() as u32 + 7;
    code.push(0xea);
    code.extend(long.to_le_bytes());
    code.extend(KCODE64.to_le_bytes());
    code.extend([0x48, 0xb8]);
    code.extend((KERNEL + LOOP + MAIN).to_le_bytes());
    code.extend([0xff, 0xe0]);
    Ok(code)
}

/// Offset of the loop's entry: the jump to its common part comes first.
const MAIN: u64 = 16;

/// A shared word, by its offset from RBX.
fn var(at: u64) -> i32 {
    (at - VARS) as i32
}

const GENERAL: [iced_x86::code_asm::AsmRegister64; 16] = [
    r::rax,
    r::rcx,
    r::rdx,
    r::rbx,
    r::rsp,
    r::rbp,
    r::rsi,
    r::rdi,
    r::r8,
    r::r9,
    r::r10,
    r::r11,
    r::r12,
    r::r13,
    r::r14,
    r::r15,
];

fn main_loop() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut common = a.create_label();
    let mut next = a.create_label();
    a.jmp(common)?;
    a.nops_with_size(MAIN as usize - 5)?;
    initialise(&mut a)?;
    wait(&mut a, &mut next)?;
    lay_out(&mut a)?;
    enter(&mut a)?;
    a.set_label(&mut common)?;
    leave(&mut a, next)?;
    let code = a.assemble(KERNEL + LOOP)?;
    // The jump must be the long form, or the entry would lie elsewhere.
    if code[0] == 0xe9 {
        return Ok(code);
    }
    let mut padded = vec![0xeb, code[1].wrapping_add(3), 0x90, 0x90, 0x90];
    padded.extend(&code[2..]);
    Ok(padded)
}

fn initialise(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(r::rsp, KERNEL + STACK_TOP)?;
    a.mov(r::rbx, KERNEL + VARS)?;
    a.lgdt(r::rbx + var(Vars::GDTR))?;
    a.lidt(r::rbx + var(Vars::IDTR))?;
    a.mov(r::eax, PML4 as u32)?;
    a.mov(r::cr3, r::rax)?;
    a.mov(r::eax, u32::from(TSS_SEL))?;
    a.ltr(r::ax)?;
    a.mov(r::eax, u32::from(LDT_SEL))?;
    a.lldt(r::ax)?;
    a.xor(r::ecx, r::ecx)?;
    a.xor(r::edx, r::edx)?;
    a.mov(r::eax, 7u32)?;
    a.xsetbv()?;
    a.mov(qword_ptr(r::rbx + var(Vars::ALIVE)), 1)
}

/// Waits for a batch, and takes its records one after the other.
fn wait(a: &mut CodeAssembler, next: &mut CodeLabel) -> Result<(), IcedError> {
    let mut wait = a.create_label();
    let mut go = a.create_label();
    let mut run = a.create_label();
    let mut same = a.create_label();
    a.set_label(&mut wait)?;
    a.mov(r::rax, qword_ptr(r::rbx + var(Vars::WANTED)))?;
    a.cmp(r::rax, qword_ptr(r::rbx + var(Vars::DONE)))?;
    a.jne(go)?;
    a.pause()?;
    a.jmp(wait)?;
    a.set_label(&mut go)?;
    a.cmp(qword_ptr(r::rbx + var(Vars::RELOAD)), 0)?;
    a.je(same)?;
    a.mov(r::rax, r::cr3)?;
    a.mov(r::cr3, r::rax)?;
    a.set_label(&mut same)?;
    a.mov(r::rax, KERNEL + INPUT)?;
    a.mov(qword_ptr(r::rbx + var(Vars::RECORD)), r::rax)?;
    a.set_label(next)?;
    a.mov(r::rbx, KERNEL + VARS)?;
    a.mov(r::rax, qword_ptr(r::rbx + var(Vars::INDEX)))?;
    a.cmp(r::rax, qword_ptr(r::rbx + var(Vars::COUNT)))?;
    a.jne(run)?;
    a.mov(r::rax, qword_ptr(r::rbx + var(Vars::WANTED)))?;
    a.mov(qword_ptr(r::rbx + var(Vars::DONE)), r::rax)?;
    a.jmp(wait)?;
    a.set_label(&mut run)
}

/// Clears and writes memory. R15 is the record, R14 the place in it.
fn lay_out(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut command = a.create_label();
    let mut copy = a.create_label();
    let mut done = a.create_label();
    a.mov(r::r15, qword_ptr(r::rbx + var(Vars::RECORD)))?;
    a.lea(r::r14, r::r15 + 24)?;
    a.set_label(&mut command)?;
    a.mov(r::rax, qword_ptr(r::r14))?;
    a.mov(r::rdi, qword_ptr(r::r14 + 8))?;
    a.mov(r::rcx, qword_ptr(r::r14 + 16))?;
    a.test(r::rax, r::rax)?;
    a.jz(done)?;
    a.cmp(r::rax, ZERO as i32)?;
    a.jne(copy)?;
    a.shr(r::rcx, 3)?;
    a.xor(r::eax, r::eax)?;
    a.rep().stosq()?;
    a.add(r::r14, 24)?;
    a.jmp(command)?;
    a.set_label(&mut copy)?;
    a.lea(r::rsi, r::r14 + 24)?;
    a.lea(r::r14, r::rsi + r::rcx + 7)?;
    a.and(r::r14, -8)?;
    a.rep().movsb()?;
    a.jmp(command)?;
    a.set_label(&mut done)
}

/// Loads all registers and enters the snippet.
fn enter(a: &mut CodeAssembler) -> Result<(), IcedError> {
    use registers as at;
    a.mov(r::r14, qword_ptr(r::r15))?;
    a.add(r::r14, r::r15)?;
    a.mov(r::eax, 7u32)?;
    a.xor(r::edx, r::edx)?;
    a.xrstor64(r::r14 + at::XSAVE as i32)?;
    a.xor(r::eax, r::eax)?;
    a.wrfsbase(r::rax)?;
    a.wrgsbase(r::rax)?;
    for (segment, offset) in [(r::es, at::ES), (r::ds, at::DS), (r::fs, at::FS), (r::gs, at::GS)] {
        a.mov(r::rax, qword_ptr(r::r14 + offset as i32))?;
        a.mov(segment, r::eax)?;
    }
    for offset in [at::SS, 8 * 4, at::RFLAGS, at::CS, at::RIP] {
        a.push(qword_ptr(r::r14 + offset as i32))?;
    }
    for (n, register) in GENERAL.into_iter().enumerate() {
        if n != 4 && n != 14 {
            a.mov(register, qword_ptr(r::r14 + 8 * n as i32))?;
        }
    }
    a.mov(r::r14, qword_ptr(r::r14 + 8 * 14))?;
    a.iretq()
}

/// Writes the answer, from the exception's stack: vector, error code, RIP, CS, RFLAGS, RSP, SS.
fn leave(a: &mut CodeAssembler, next: CodeLabel) -> Result<(), IcedError> {
    use answer as at;
    a.push(r::rbx)?;
    a.push(r::rax)?;
    a.cld()?;
    a.mov(r::rbx, KERNEL + VARS)?;
    a.mov(r::rax, qword_ptr(r::rbx + var(Vars::ANSWER)))?;
    for (n, register) in GENERAL.into_iter().enumerate() {
        if !matches!(n, 0 | 3 | 4) {
            a.mov(qword_ptr(r::rax + 8 * n as i32), register)?;
        }
    }
    // RAX, RBX, then the frame.
    let frame = [0, 8 * 3, at::VECTOR, at::ERROR, at::RIP, at::CS, at::RFLAGS, at::RSP, at::SS];
    for (n, offset) in frame.into_iter().enumerate() {
        a.mov(r::rcx, qword_ptr(r::rsp + 8 * n as i32))?;
        a.mov(qword_ptr(r::rax + offset as i32), r::rcx)?;
    }
    for (segment, offset) in [(r::es, at::ES), (r::ds, at::DS), (r::fs, at::FS), (r::gs, at::GS)] {
        a.mov(r::ecx, segment)?;
        a.mov(qword_ptr(r::rax + offset as i32), r::rcx)?;
    }
    a.mov(r::rcx, r::cr2)?;
    a.mov(qword_ptr(r::rax + at::CR2 as i32), r::rcx)?;
    a.mov(r::r8, r::rax)?;
    a.mov(r::eax, 7u32)?;
    a.xor(r::edx, r::edx)?;
    a.xsave64(r::r8 + at::XSAVE as i32)?;
    a.lea(r::rdi, r::r8 + at::WINDOWS as i32)?;
    a.mov(r::r15, qword_ptr(r::rbx + var(Vars::RECORD)))?;
    a.mov(r::r14, qword_ptr(r::r15 + 16))?;
    a.add(r::r14, r::r15)?;
    let mut window = a.create_label();
    let mut done = a.create_label();
    a.set_label(&mut window)?;
    a.mov(r::rsi, qword_ptr(r::r14))?;
    a.test(r::rsi, r::rsi)?;
    a.jz(done)?;
    a.mov(r::rcx, qword_ptr(r::r14 + 8))?;
    a.shr(r::rcx, 3)?;
    a.rep().movsq()?;
    a.add(r::r14, 16)?;
    a.jmp(window)?;
    a.set_label(&mut done)?;
    a.mov(qword_ptr(r::rbx + var(Vars::ANSWER)), r::rdi)?;
    a.mov(r::rax, qword_ptr(r::r15 + 8))?;
    a.add(r::rax, r::r15)?;
    a.mov(qword_ptr(r::rbx + var(Vars::RECORD)), r::rax)?;
    a.inc(qword_ptr(r::rbx + var(Vars::INDEX)))?;
    a.mov(r::rsp, KERNEL + STACK_TOP)?;
    a.jmp(next)
}
