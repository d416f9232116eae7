//! Hostile code, a few dozen bytes at a time.
//!
//! Problem: each part of the machine wants its own kind of misuse. Scheme: a [`Kind`] is a way to write a
//! chunk; a guest draws how much of each it has, so that some guests do one thing all the time and others
//! everything. Chunks for devices are written with a small emitter that gives the same code in all three
//! widths. A chunk ends with an instruction that traps, back to the dispatcher.

use super::instructions;
use super::places::{self, selector};
use super::plan::Mode;
use super::rng::Rng;
use super::virtio;

/// Ways to be hostile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Random bytes.
    Garbage,
    /// Random instructions, all as likely as another.
    Instructions,
    /// Port input and output, string forms too.
    Ports,
    /// Device memory, in all widths.
    Mmio,
    /// PCI configuration space.
    Pci,
    /// Virtio devices, set up half right.
    Virtio,
    /// Model-specific, control and debug registers.
    Registers,
    /// XSAVE areas.
    Xsave,
    /// Selectors, gates, tasks, descriptor tables.
    Descriptors,
    /// Transfers into holes, device memory and nowhere.
    Jumps,
    /// Page tables, and the TLB.
    Paging,
    /// Code that changes itself or what follows it.
    SelfModifying,
    /// Waits for an interrupt.
    Idle,
    /// Interrupts, INITs and start-ups for this processor and others.
    Ipi,
    /// Ways to reset the machine.
    Reset,
    /// Triple faults.
    TripleFault,
}

impl Kind {
    pub const ALL: [Self; 16] = [
        Self::Garbage,
        Self::Instructions,
        Self::Ports,
        Self::Mmio,
        Self::Pci,
        Self::Virtio,
        Self::Registers,
        Self::Xsave,
        Self::Descriptors,
        Self::Jumps,
        Self::Paging,
        Self::SelfModifying,
        Self::Idle,
        Self::Ipi,
        Self::Reset,
        Self::TripleFault,
    ];

    /// Ends the guest or the board, so that nothing after it runs.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Reset | Self::TripleFault)
    }

    /// A chunk of this kind.
    pub fn chunk(self, rng: &mut Rng, mode: Mode) -> Vec<u8> {
        let mut e = Emitter { bits: mode.bits(), out: Vec::new() };
        match self {
            Self::Garbage => {
                let mut bytes = vec![0; 16 + rng.below(100)];
                rng.fill(&mut bytes);
                e.out = bytes;
            }
            Self::Instructions => {
                for _ in 0..4 + rng.below(20) {
                    instructions::random(rng, e.bits, &mut e.out);
                }
            }
            Self::Ports => (0..2 + rng.below(10)).for_each(|_| ports(rng, &mut e)),
            Self::Mmio => (0..2 + rng.below(8)).for_each(|_| {
                let at = places::mmio(rng);
                memory(rng, &mut e, at);
            }),
            Self::Pci => (0..2 + rng.below(6)).for_each(|_| pci(rng, &mut e)),
            Self::Virtio => virtio::chunk(rng, &mut e),
            Self::Registers => (0..2 + rng.below(6)).for_each(|_| registers(rng, &mut e)),
            Self::Xsave => xsave(rng, &mut e),
            Self::Descriptors => (0..1 + rng.below(6)).for_each(|_| descriptors(rng, &mut e)),
            Self::Jumps => jump(rng, &mut e),
            Self::Paging => (0..1 + rng.below(6)).for_each(|_| paging(rng, &mut e)),
            Self::SelfModifying => self_modifying(rng, &mut e),
            // sti; hlt
            Self::Idle => e.out.extend([0xfb, 0xf4]),
            Self::Ipi => (0..1 + rng.below(4)).for_each(|_| ipi(rng, &mut e)),
            Self::Reset => reset(rng, &mut e),
            Self::TripleFault => triple_fault(rng, &mut e),
        }
        // A little of something else in between, so that not all state is the generator's.
        if rng.one_in(4) {
            instructions::random(rng, e.bits, &mut e.out);
        }
        e.out.extend(*rng.pick(&[[0x0f, 0x0b], [0xcc, 0xcc], [0xcd, 0x80], [0xeb, 0xfe]]));
        e.out
    }
}

/// Writes the same instructions for 16-, 32- and 64-bit code.
#[derive(Debug)]
pub struct Emitter {
    pub bits: u32,
    pub out: Vec<u8>,
}

pub const EAX: u8 = 0;
pub const ECX: u8 = 1;
pub const EDX: u8 = 2;
pub const EBX: u8 = 3;

impl Emitter {
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.out.extend(bytes);
    }

    /// Prefix for a 32-bit operand.
    pub fn operand32(&mut self) {
        if self.bits == 16 {
            self.out.push(0x66);
        }
    }

    /// Prefix for a 32-bit address.
    fn far_address(&mut self) {
        if self.bits == 16 {
            self.out.push(0x67);
        }
    }

    /// `mov r32, imm32`.
    pub fn mov(&mut self, register: u8, value: u32) {
        self.operand32();
        self.out.push(0xb8 + register);
        self.out.extend(value.to_le_bytes());
    }

    /// All 64 bits of a register, where there are so many.
    fn mov64(&mut self, register: u8, value: u64) {
        if self.bits == 64 {
            self.out.extend([0x48, 0xb8 + register]);
            self.out.extend(value.to_le_bytes());
        } else {
            self.mov(register, value as u32);
        }
    }

    /// `opcode` on `[ebx + displacement]`, with `reg` in ModRM. Operand size as the mode has it.
    pub fn at_ebx(&mut self, opcode: &[u8], reg: u8, displacement: u32) {
        self.far_address();
        self.bytes(opcode);
        self.out.push(0x80 | reg << 3 | EBX);
        self.out.extend(displacement.to_le_bytes());
    }

    /// Stores EAX (or its low part) of `size` bytes to `[ebx + displacement]`.
    pub fn store(&mut self, size: u32, displacement: u32) {
        match size {
            1 => self.at_ebx(&[0x88], EAX, displacement),
            2 if self.bits == 16 => self.at_ebx(&[0x89], EAX, displacement),
            2 => self.at_ebx(&[0x66, 0x89], EAX, displacement),
            8 if self.bits == 64 => self.at_ebx(&[0x48, 0x89], EAX, displacement),
            _ if self.bits == 16 => self.at_ebx(&[0x66, 0x89], EAX, displacement),
            _ => self.at_ebx(&[0x89], EAX, displacement),
        }
    }

    /// `out dx, eax` of `size` bytes.
    pub fn out(&mut self, port: u16, size: u32, value: u32) {
        self.mov(EDX, port.into());
        self.mov(EAX, value);
        self.port_instruction(0xee, size);
    }

    /// `in eax, dx` of `size` bytes.
    pub fn input(&mut self, port: u16, size: u32) {
        self.mov(EDX, port.into());
        self.port_instruction(0xec, size);
    }

    fn port_instruction(&mut self, opcode: u8, size: u32) {
        match (size, self.bits) {
            (1, _) => return self.out.push(opcode),
            (2, 32 | 64) | (4, 16) => self.out.push(0x66),
            _ => {}
        }
        self.out.push(opcode | 1);
    }

    /// `mov ebx, ADDRESS; mov eax, VALUE; mov [ebx], eax`.
    fn poke(&mut self, at: u32, value: u32) {
        self.mov(EBX, at);
        self.mov(EAX, value);
        self.store(4, 0);
    }
}

fn size(rng: &mut Rng) -> u32 {
    *rng.pick(&[1, 1, 2, 4, 4])
}

fn ports(rng: &mut Rng, e: &mut Emitter) {
    let (port, size) = (places::port(rng), size(rng));
    match rng.below(8) {
        0..=4 => e.out(port, size, rng.register_value() as u32),
        5 | 6 => e.input(port, size),
        _ => {
            e.mov(EDX, port.into());
            e.mov(ECX, if rng.one_in(64) { rng.u32() } else { rng.below(300) as u32 });
            if rng.one_in(2) {
                e.bytes(&[0xf3]);
            }
            if size == 2 {
                e.bytes(&[0x66]);
            }
            // INSB/OUTSB and their wider forms.
            let output = if rng.one_in(2) { 2 } else { 0 };
            e.bytes(&[0x6c | output | u8::from(size > 1)]);
        }
    }
}

/// One access to memory that is probably a device's.
fn memory(rng: &mut Rng, e: &mut Emitter, at: u32) {
    e.mov(EBX, at);
    e.mov64(EAX, rng.register_value());
    let displacement = if rng.one_in(8) { rng.below(0x2000) as u32 } else { 0 };
    match rng.below(12) {
        0..=5 => {
            let size = *rng.pick(&[1, 2, 4, 4, 8]);
            e.store(size, displacement);
        }
        6 => e.at_ebx(&[0x8b], EAX, displacement),
        7 => {
            let lock = *rng.pick(&[0xf0, 0x2e]);
            let opcode = *rng.pick(&[0x01, 0x09, 0x21, 0x31, 0x11, 0x29]);
            e.at_ebx(&[lock, opcode], EAX, displacement);
        }
        // CMPXCHG, XADD, XCHG, BTS, CMPXCHG8B
        8 => {
            const OPCODES: &[&[u8]] =
                &[&[0xf0, 0x0f, 0xb1], &[0x0f, 0xc1], &[0x87], &[0xf0, 0x0f, 0xab], &[0x0f, 0xc7]];
            let opcode = *rng.pick(OPCODES);
            e.at_ebx(opcode, 1, displacement);
        }
        // MOVUPS, FXSAVE, FSTP tbyte, FLD tbyte, MOVDQU, XSAVE
        9 => {
            let (opcode, reg): (&[u8], u8) = *rng.pick(&[
                (&[0x0f, 0x11][..], 1),
                (&[0x0f, 0xae], 0),
                (&[0xdb], 7),
                (&[0xdb], 5),
                (&[0xf3, 0x0f, 0x6f], 1),
                (&[0x0f, 0xae], 4),
            ]);
            e.at_ebx(opcode, reg, displacement);
        }
        // PUSH and POP of memory, CALL and JMP through it.
        10 => {
            let (opcode, reg) = *rng.pick(&[(0xff, 6), (0x8f, 0), (0xff, 2), (0xff, 4), (0xff, 5)]);
            e.at_ebx(&[opcode], reg, displacement);
        }
        // REP MOVS/STOS with EDI there.
        _ => {
            e.mov(7, at);
            e.mov(6, if rng.one_in(2) { places::DATA } else { at });
            e.mov(ECX, rng.below(70) as u32);
            let opcode = *rng.pick(&[0xa4, 0xa5, 0xaa, 0xab]);
            if e.bits == 16 {
                e.bytes(&[0x67]);
            }
            e.bytes(&[0xf3, opcode]);
        }
    }
}

/// A configuration address of the bus's few functions, mostly.
pub fn pci_address(rng: &mut Rng) -> u32 {
    let slot = if rng.one_in(8) { rng.u32() & 0xffff } else { rng.below(8) as u32 * 8 };
    let enable = if rng.one_in(16) { 0 } else { 1 << 31 };
    enable | slot << 8 | rng.u32() & 0xfc
}

fn pci(rng: &mut Rng, e: &mut Emitter) {
    e.out(0xcf8, 4, pci_address(rng));
    let size = size(rng);
    let port = 0xcfc + (rng.u32() & 3 & !(size - 1)) as u16;
    if rng.one_in(4) {
        e.input(port, size);
    } else {
        e.out(port, size, rng.register_value() as u32);
    }
}

/// Numbers of registers that exist, and of others.
fn msr(rng: &mut Rng) -> u32 {
    let known = [
        0x10,
        0x1b,
        0x3a,
        0x3b,
        0x48,
        0x49,
        0x79,
        0x8b,
        0xfe,
        0x10a,
        0x174,
        0x175,
        0x176,
        0x179,
        0x17a,
        0x1a0,
        0x200,
        0x20f,
        0x250,
        0x258,
        0x26f,
        0x277,
        0x2ff,
        0x6e0,
        0xc000_0080,
        0xc000_0081,
        0xc000_0082,
        0xc000_0083,
        0xc000_0084,
        0xc000_0100,
        0xc000_0101,
        0xc000_0102,
        0xc000_0103,
        0xda0,
    ];
    match rng.below(8) {
        0..=4 => *rng.pick(&known),
        5 | 6 => 0x800 + rng.below(0x100) as u32,
        _ => rng.odd_u64() as u32,
    }
}

fn registers(rng: &mut Rng, e: &mut Emitter) {
    match rng.below(10) {
        0..=4 => {
            let (number, value) = (msr(rng), rng.odd_u64());
            e.mov(ECX, number);
            e.mov(EAX, value as u32);
            e.mov(EDX, (value >> 32) as u32);
            if rng.one_in(4) {
                // Its own value with a bit flipped.
                e.bytes(&[0x0f, 0x32]);
                e.operand32();
                e.bytes(&[0x0f, 0xba, 0xf8, rng.u8() & 31]);
            }
            e.bytes(&[0x0f, if rng.one_in(4) { 0x32 } else { 0x30 }]);
        }
        5 | 6 => {
            // A control register with a bit flipped: MOV EAX, CRn; BTC EAX, imm; MOV CRn, EAX.
            let cr = *rng.pick(&[0, 0, 4, 4, 4, 3, 2, 8]) as u8;
            let rex: &[u8] = if cr == 8 && e.bits == 64 { &[0x44] } else { &[] };
            let modrm = 0xc0 | (cr & 7) << 3;
            e.bytes(rex);
            e.bytes(&[0x0f, 0x20, modrm]);
            e.operand32();
            e.bytes(&[0x0f, 0xba, 0xf8, rng.u8() & 31]);
            e.bytes(rex);
            e.bytes(&[0x0f, 0x22, modrm]);
        }
        7 => {
            e.mov64(EAX, rng.odd_u64());
            let cr = *rng.pick(&[0, 2, 3, 4, 1, 7]);
            e.bytes(&[0x0f, 0x22, 0xc0 | cr << 3]);
        }
        8 => {
            let value = if rng.one_in(2) { places::register(rng) } else { rng.odd_u64() };
            e.mov64(EAX, value);
            e.bytes(&[0x0f, 0x23, 0xc0 | (rng.u8() & 7) << 3]);
        }
        _ => {
            // XSETBV, RDPMC, CLTS, LMSW, SMSW, SWAPGS
            e.mov(ECX, if rng.one_in(4) { rng.u32() } else { 0 });
            e.mov(EAX, rng.u32() & 0xff);
            e.mov(EDX, if rng.one_in(4) { rng.u32() } else { 0 });
            const CODES: &[&[u8]] = &[
                &[0x0f, 0x01, 0xd1],
                &[0x0f, 0x33],
                &[0x0f, 0x06],
                &[0x0f, 0x01, 0xf0],
                &[0x0f, 0x01, 0xe0],
                &[0x0f, 0x01, 0xf8],
                &[0x0f, 0x01, 0xd0],
            ];
            let code = *rng.pick(CODES);
            e.bytes(code);
        }
    }
}

/// XRSTOR and relatives from an area with a drawn header.
fn xsave(rng: &mut Rng, e: &mut Emitter) {
    let area = places::DATA + 64 * rng.below(500) as u32 + if rng.one_in(8) { 8 } else { 0 };
    e.mov(EBX, area);
    let headers = [0, 1, 2, 3, 4, 7, 0xff, 1 << 9, u64::MAX];
    for (offset, value) in [
        (512, *rng.pick(&headers)),
        (520, if rng.one_in(2) { 0 } else { *rng.pick(&headers) | rng.u64() << 63 }),
        (24, rng.u64() & 0xffff_ffff),
    ] {
        for half in 0..2 {
            e.mov(EAX, (value >> (32 * half)) as u32);
            e.store(4, offset + 4 * half);
        }
    }
    for offset in (528..576).step_by(4) {
        e.mov(EAX, if rng.one_in(100) { 1 } else { 0 });
        e.store(4, offset);
    }
    for _ in 0..1 + rng.below(4) {
        e.mov(EAX, if rng.one_in(4) { rng.u32() } else { rng.u32() & 7 });
        e.mov(EDX, if rng.one_in(8) { rng.u32() } else { 0 });
        let opcode = *rng.pick(&[0xae, 0xae, 0xc7]);
        let reg = if opcode == 0xae { *rng.pick(&[0, 1, 4, 5, 6]) } else { 3 + rng.u8() % 3 };
        if e.bits == 64 && rng.one_in(2) {
            e.at_ebx(&[0x48, 0x0f, opcode], reg, 0);
        } else {
            e.at_ebx(&[0x0f, opcode], reg, 0);
        }
    }
}

/// `jmp` or `call` far through memory, or as an immediate where the mode has that.
fn far_transfer(rng: &mut Rng, e: &mut Emitter, selector: u32, offset: u32) {
    let call = rng.one_in(2);
    if e.bits != 64 {
        e.operand32();
        e.bytes(&[if call { 0x9a } else { 0xea }]);
        e.bytes(&offset.to_le_bytes());
        e.bytes(&(selector as u16).to_le_bytes());
        return;
    }
    e.mov(EBX, places::DATA);
    e.mov(EAX, offset);
    e.store(4, 0);
    e.mov(EAX, selector);
    e.store(4, 4);
    e.at_ebx(&[0xff], if call { 3 } else { 5 }, 0);
}

fn descriptors(rng: &mut Rng, e: &mut Emitter) {
    let selector = places::selectors(rng);
    match rng.below(12) {
        0 | 1 => {
            let offset = *rng.pick(&[places::DISPATCH, places::CODE, 0, 0xffff_fff0, 0x1_0000]);
            far_transfer(rng, e, selector, offset);
        }
        2 | 3 => {
            e.mov(EAX, selector);
            e.bytes(&[0x8e, 0xc0 | (rng.u8() & 7) << 3]);
        }
        4 => {
            // LLDT, LTR, VERR, VERW of AX.
            e.mov(EAX, selector);
            e.bytes(&[0x0f, 0x00, 0xd0 | (rng.u8() & 3) << 3]);
        }
        5 => {
            // LAR, LSL, ARPL
            e.mov(EAX, selector);
            const CODES: &[&[u8]] = &[&[0x0f, 0x02, 0xd8], &[0x0f, 0x03, 0xd8], &[0x63, 0xc3]];
            let code = *rng.pick(CODES);
            e.bytes(code);
        }
        6 => {
            // LGDT, LIDT, SGDT, SIDT
            let at = places::DATA + rng.below(0x8000) as u32;
            e.poke(at, rng.odd_u64() as u32);
            let nowhere = rng.u32();
            let table = *rng.pick(&[places::GDT, places::IDT, 0xfee0_0000, nowhere]);
            e.poke(at + 2, table);
            e.mov(EBX, at);
            let reg = *rng.pick(&[0, 1, 0, 1, 2, 3]);
            e.at_ebx(&[0x0f, 0x01], reg, 0);
        }
        7 => e.bytes(&[0xcd, rng.u8()]),
        8 => {
            // Another descriptor in a table.
            let table = *rng.pick(&[places::GDT, places::LDT, places::IDT]);
            let at = table + 4 * rng.below(512) as u32;
            e.poke(at, rng.u32());
        }
        9 => {
            // A frame for IRET or RETF, of whatever size the mode takes.
            let flags = rng.u32() & 0x003f_7fd5;
            for value in [places::selectors(rng), places::STACK - 64, flags, selector, places::CODE]
            {
                e.operand32();
                e.bytes(&[0x68]);
                e.bytes(&value.to_le_bytes());
            }
            if e.bits == 64 {
                e.bytes(&[0x48]);
            }
            let code = *rng.pick(&[0xcf, 0xcf, 0xcb]);
            e.bytes(&[code]);
        }
        10 => {
            // Another word in a TSS.
            let tss = *rng.pick(&[places::TSS, places::DOUBLE_FAULT_TSS]);
            let at = tss + 4 * rng.below(0x1a) as u32;
            let value = if rng.one_in(2) { selector } else { places::register(rng) as u32 };
            e.poke(at, value);
        }
        _ => {
            // SYSCALL, SYSRET, SYSENTER, SYSEXIT, INTO, BOUND
            const CODES: &[&[u8]] = &[
                &[0x0f, 0x05],
                &[0x0f, 0x07],
                &[0x48, 0x0f, 0x07],
                &[0x0f, 0x34],
                &[0x0f, 0x35],
                &[0xce],
                &[0x62, 0x03],
            ];
            let code = *rng.pick(CODES);
            e.bytes(code);
        }
    }
}

fn jump(rng: &mut Rng, e: &mut Emitter) {
    let target = match rng.below(6) {
        0..=2 => places::edge(rng),
        3 => u64::from(places::mmio(rng)),
        4 => rng.odd_u64(),
        _ => u64::from(places::DATA) + rng.range(0..0x1_0000),
    };
    match rng.below(6) {
        0 | 1 => {
            // jmp/call eax
            e.mov64(EAX, target);
            let reg = if rng.one_in(2) { 0xe0 } else { 0xd0 };
            e.operand32();
            e.bytes(&[0xff, reg]);
        }
        2 => {
            // push eax; ret
            e.mov64(EAX, target);
            e.operand32();
            e.bytes(&[0x50]);
            e.operand32();
            e.bytes(&[0xc3]);
        }
        3 => {
            let selector =
                *rng.pick(&[selector::CODE32, selector::CODE64, selector::USER_CODE32, 0xf000]);
            far_transfer(rng, e, selector, target as u32);
        }
        4 => {
            // The stack goes there; then a fault.
            e.mov64(4, target);
            const CODES: &[&[u8]] =
                &[&[0x0f, 0x0b], &[0x60], &[0x9c], &[0xe8, 0, 0, 0, 0], &[0xc8, 0x10, 0, 0x1f]];
            let code = *rng.pick(CODES);
            e.bytes(code);
        }
        _ => {
            // jmp rel
            e.bytes(&[*rng.pick(&[0xe8, 0xe9])]);
            e.bytes(&rng.u32().to_le_bytes());
        }
    }
}

fn paging(rng: &mut Rng, e: &mut Emitter) {
    match rng.below(8) {
        0..=3 => {
            // Half an entry of a table that is in use; mostly not the first ones.
            let at = places::TABLES + 4 * rng.below(0x2000) as u32;
            let value = if rng.one_in(2) {
                places::edge(rng) as u32 & !0xfff | rng.u32() & 0xfff
            } else {
                rng.odd_u64() as u32
            };
            e.poke(at, value);
        }
        4 => {
            // INVLPG [ebx]
            e.mov64(EBX, places::register(rng));
            e.bytes(&[0x0f, 0x01, 0x3b]);
        }
        5 => {
            // INVPCID eax, [ebx]
            e.mov(EBX, places::DATA + 16 * rng.below(0x100) as u32);
            e.mov(EAX, rng.below(6) as u32);
            e.far_address();
            e.bytes(&[0x66, 0x0f, 0x38, 0x82, 0x03]);
        }
        6 => {
            // CR3 again, sometimes elsewhere.
            let root = match rng.below(8) {
                0 => places::edge(rng),
                1 => u64::from(places::TABLES) + rng.range(0..8) * 0x1000 + rng.range(0..0x1000),
                _ => u64::from(places::TABLES) | rng.u64() & 0x18,
            };
            e.mov64(EAX, root);
            e.bytes(&[0x0f, 0x22, 0xd8]);
        }
        _ => {
            // Touch something far away.
            e.mov64(EBX, rng.odd_u64());
            e.bytes(&[*rng.pick(&[0x8b, 0x89, 0x01]), 0x03]);
        }
    }
}

fn self_modifying(rng: &mut Rng, e: &mut Emitter) {
    // call +0; pop ebx: where we are.
    match e.bits {
        16 => e.bytes(&[0xe8, 0, 0, 0x66, 0x0f, 0xb7, 0xdb, 0x5b]),
        _ => e.bytes(&[0xe8, 0, 0, 0, 0, 0x5b]),
    }
    for _ in 0..1 + rng.below(6) {
        e.mov(EAX, rng.u32());
        let size = *rng.pick(&[1, 2, 4]);
        e.store(size, rng.below(64) as u32);
        if rng.one_in(3) {
            instructions::random(rng, e.bits, &mut e.out);
        }
    }
    // Into itself.
    e.bytes(&[0xeb, rng.u8()]);
}

fn ipi(rng: &mut Rng, e: &mut Emitter) {
    // Destination, then command.
    e.mov(EBX, 0xfee0_0000);
    e.mov(EAX, *rng.pick(&[0, 1 << 24, 2 << 24, 0xff << 24, 0x0f00_0000]));
    e.store(4, 0x310);
    let mode = rng.range(0..8) as u32;
    let shorthand = rng.range(0..4) as u32;
    let vector = if mode == 6 { places::low::CODE >> 12 } else { 0x20 + rng.below(0xe0) as u32 };
    let mut command = vector | mode << 8 | shorthand << 18 | 1 << 14;
    if rng.one_in(4) {
        command ^= 1 << rng.below(20);
    }
    // An INIT to the boot processor is a reset.
    if mode == 5 && !rng.one_in(16) {
        command = command & !(3 << 18) | 3 << 18;
    }
    e.mov(EAX, command);
    e.store(4, 0x300);
}

fn reset(rng: &mut Rng, e: &mut Emitter) {
    match rng.below(6) {
        0 => e.out(0xcf9, 1, 6),
        1 => e.out(0xcf9, 1, 0xe),
        2 => e.out(0x64, 1, 0xfe),
        3 => e.out(0x92, 1, 1),
        4 => e.out(0x604, 2, 0x2000 | rng.u32() & 7 << 10),
        _ => e.out(0xf4, 4, rng.u32()),
    }
}

fn triple_fault(rng: &mut Rng, e: &mut Emitter) {
    let at = places::DATA + 0x10;
    e.poke(at, 0);
    e.poke(at + 4, 0);
    e.mov(EBX, at);
    // An IDT of no bytes, then whatever traps.
    e.at_ebx(&[0x0f, 0x01], 3, 0);
    let code = *rng.pick(&[[0x0f, 0x0b], [0xcc, 0x90], [0xcd, 0x08], [0x0f, 0xff]]);
    e.bytes(&code);
}
