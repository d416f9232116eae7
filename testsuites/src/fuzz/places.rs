//! Where things are in a hostile guest, and addresses worth aiming at.
//!
//! One image holds everything, loaded in one piece at 1 MiB:
//!
//! ```text
//! 0x100000 header, set-up     0x108000 page tables     0x11e000 stack of the chunks (top at 0x120000)
//! 0x100800 dispatchers        0x110000 chunk addresses 0x120000 code of the chunks
//! 0x102000 GDT                0x110800 counter         0x128000 data
//! 0x103000 IDT                0x111000 registers       0x138000 virtqueues
//! 0x104000 TSS, I/O bitmap    0x119000 stacks of the   0x13c000 end
//! 0x107000 #DF's TSS, LDT              dispatchers
//! ```
//!
//! For real and virtual-8086 mode set-up copies the chunk addresses, registers and code to low memory.

use super::rng::Rng;

pub const LOAD: u32 = 0x10_0000;
pub const SETUP: u32 = 0x10_0020;
pub const DISPATCH: u32 = 0x10_0800;
pub const DOUBLE_FAULT: u32 = 0x10_0e00;
pub const GDT: u32 = 0x10_2000;
pub const GDT_ENTRIES: u32 = 512;
pub const IDT: u32 = 0x10_3000;
pub const TSS: u32 = 0x10_4000;
pub const TSS_LIMIT: u32 = 0x2100;
pub const DOUBLE_FAULT_TSS: u32 = 0x10_7000;
pub const LDT: u32 = 0x10_7800;
pub const LDT_ENTRIES: u32 = 256;
pub const TABLES: u32 = 0x10_8000;
pub const CHUNKS: u32 = 0x11_0000;
pub const COUNTER: u32 = 0x11_0800;
/// What LGDT and, 8 bytes on, LIDT read.
pub const TABLE_REGISTERS: u32 = 0x11_0810;
pub const REGISTERS: u32 = 0x11_1000;
/// Bytes of registers for each chunk.
pub const REGISTER_SET: u32 = 128;
pub const DISPATCH_STACK: u32 = 0x11_b000;
pub const RING0_STACK: u32 = 0x11_d000;
pub const STACK: u32 = 0x12_0000;
pub const CODE: u32 = 0x12_0000;
pub const CODE_BYTES: u32 = 0x8000;
pub const DATA: u32 = 0x12_8000;
pub const DATA_BYTES: u32 = 0x1_0000;
pub const RINGS: u32 = 0x13_8000;
pub const END: u32 = 0x13_c000;

/// Low-memory copies.
pub mod low {
    pub const CHUNKS: u32 = 0x6000;
    pub const COUNTER: u32 = 0x6800;
    pub const DISPATCH: u32 = 0x7000;
    pub const CODE: u32 = 0x8000;
    pub const CODE_SEGMENT: u32 = CODE >> 4;
    pub const REGISTERS: u32 = 0x1_8000;
}

pub const CHUNKS_MAX: usize = 256;

/// Selectors; user ones with their RPL.
pub mod selector {
    pub const CODE32: u32 = 0x08;
    pub const DATA32: u32 = 0x10;
    pub const CODE64: u32 = 0x18;
    pub const USER_CODE32: u32 = 0x23;
    pub const USER_DATA32: u32 = 0x2b;
    pub const USER_CODE64: u32 = 0x33;
    pub const CODE16: u32 = 0x38;
    pub const DATA16: u32 = 0x40;
    pub const TSS: u32 = 0x48;
    pub const LDT: u32 = 0x58;
    pub const DOUBLE_FAULT_TSS: u32 = 0x68;
    pub const USER_CODE16: u32 = 0x73;
}

/// RAM of the guest.
pub const RAM_BYTES: u64 = 64 << 20;

/// Ports with something behind them. Those that end the run are not among them.
pub const PORTS: [(u16, u16); 19] = [
    (0x20, 2),
    (0xa0, 2),
    (0x4d0, 2),
    (0x40, 4),
    (0x61, 1),
    (0x60, 1),
    (0x64, 1),
    (0x70, 2),
    (0x92, 1),
    (0xf0, 2),
    (0x3f8, 8),
    (0xcf8, 4),
    (0xcfc, 4),
    (0x600, 4),
    (0x608, 0x38),
    (0xafe0, 4),
    (0xb2, 2),
    (0xe0, 12),
    (0x2000, 24),
];
/// Ports by which a guest can end itself.
pub const ENDING_PORTS: [(u16, u16); 3] = [(0x604, 2), (0xcf9, 1), (0xf4, 4)];

/// Device memory: address and bytes.
pub const MMIO: [(u32, u32); 5] = [
    (0xfee0_0000, 0x400),
    (0xfec0_0000, 0x100),
    (0xfed0_0000, 0x400),
    (0xfe00_0000, 0x4_0000),
    (0xff00_0000, 0x1_0000),
];

/// A port, mostly one with a device.
pub fn port(rng: &mut Rng) -> u16 {
    match rng.below(64) {
        0 => {
            let &(first, count) = rng.pick(&ENDING_PORTS);
            first + rng.below(usize::from(count)) as u16
        }
        1..=4 => rng.u64() as u16,
        _ => {
            let &(first, count) = rng.pick(&PORTS);
            first + rng.below(usize::from(count)) as u16
        }
    }
}

/// An address in device memory, mostly aligned.
pub fn mmio(rng: &mut Rng) -> u32 {
    let &(start, bytes) = rng.pick(&MMIO);
    let offset = rng.below(bytes as usize) as u32;
    start
        + if rng.one_in(4) {
            offset
        } else if rng.one_in(2) {
            offset & !3
        } else {
            offset & !15
        }
}

/// A physical address where something odd begins or ends: tables, the end of RAM, holes, devices, ROM.
pub fn edge(rng: &mut Rng) -> u64 {
    let at = match rng.below(12) {
        0 => RAM_BYTES,
        1 => 0x9_fc00,
        2 => 0xa_0000,
        3 => 0xf_0000,
        4 => 0xc000_0000,
        5 => 0x1_0000_0000,
        6 => 1 << rng.range(32..52),
        7 => u64::from(GDT) + rng.range(0..0x1000),
        8 => u64::from(IDT) + rng.range(0..0x1000),
        9 => u64::from(TABLES) + rng.range(0..0x8000),
        10 => u64::from(CODE) + rng.range(0..0x8000),
        _ => u64::from(mmio(rng)),
    };
    at.wrapping_add(rng.range(0..33)).wrapping_sub(16)
}

/// A value for a register that may be used as an address, a count or a number.
pub fn register(rng: &mut Rng) -> u64 {
    match rng.below(16) {
        0..=5 => u64::from(DATA) + rng.range(0..u64::from(DATA_BYTES)),
        6 => u64::from(DATA) + (rng.range(0..16) << 12) - rng.range(0..9),
        7 => u64::from(mmio(rng)),
        8 | 9 => edge(rng),
        10..=12 => rng.range(0..256),
        13 => u64::from(selectors(rng)),
        _ => rng.odd_u64(),
    }
}

/// A selector, mostly in the tables.
pub fn selectors(rng: &mut Rng) -> u32 {
    let index = match rng.below(4) {
        0 => rng.below(16) as u32,
        1..=2 => rng.below(GDT_ENTRIES as usize) as u32,
        _ => rng.below(0x2000) as u32,
    };
    index << 3 | rng.u32() & 7
}
