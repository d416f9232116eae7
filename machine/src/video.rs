//! A display's option ROM, started where there is no firmware to do it.
//!
//! Problem: a kernel that is started directly expects the display as firmware leaves it: a text mode with its
//! font, and what the BIOS data area says of it. Only the option ROM knows how to do that to its display.
//! Scheme: while the board is built, an interpreter of its own calls the ROM at its shadow as firmware would, in
//! real mode with data segments of 4 GiB, and goes on to the usual text mode. Then the kernel's loader learns from
//! the data area what is on the screen, as Linux's real-mode part would. Invariants: no guest time passes;
//! memory below the kernel is zero again but for the vector table and the data area. Called before the machine
//! runs. Source: Plug and Play BIOS Specification, "Option ROM Initialization"; PCI Firmware Specification, "Option ROM
//! Initialization Sequence"; Linux, Documentation/arch/x86/zero-page.rst.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use xenolith_cpu::CpuState;
use xenolith_cpu::cpuid::CpuidModel;
use xenolith_cpu::interp::{Exit, Interp};
use xenolith_cpu::state::{Segment, TableRegister, reg, sreg};
use xenolith_mmu::{GuestRam, SoftMmu};

use crate::engine::Stubs;
use crate::env::{BareEnv, Buses};

/// The shadow of a display's ROM.
const SHADOW: u64 = 0xc_0000;
/// Behind the ROM's signature and size.
const ENTRY_OFFSET: u64 = 3;
/// Where it returns to; its stack ends there. Firmware uses the same place for boot sectors, so it is free.
const LANDING: u16 = 0x7c00;
const SCRATCH_START: u64 = 0x500;
/// What is there: as firmware does next, `mov ax, 3; int 10h` for colour text of 80 columns; then `hlt`.
const AFTERWARDS: [u8; 6] = [0xb8, 3, 0, 0xcd, 0x10, 0xf4];
/// Where interrupts lead that nobody serves: an IRET, in the place where IBM's firmware has it.
const DUMMY: u64 = 0xf_ff53;
const DUMMY_VECTOR: u32 = 0xf000_ff53;
const IRET: u8 = 0xcf;
/// Debian's takes a third of a million.
const INSTRUCTIONS_MAX: u64 = 10_000_000;

/// BIOS data area, "Video Display Data".
mod data_area {
    pub const MODE: u64 = 0x449;
    pub const COLUMNS: u64 = 0x44a;
    pub const CURSOR_COLUMN: u64 = 0x450;
    pub const CURSOR_ROW: u64 = 0x451;
    pub const PAGE: u64 = 0x462;
    pub const CRTC_PORT: u64 = 0x463;
    pub const LAST_ROW: u64 = 0x484;
    pub const POINTS: u64 = 0x485;
    pub const CONTROL: u64 = 0x487;
}

/// Linux's `screen_info`, at the start of the boot parameters.
mod screen_info {
    pub const COLUMN: u64 = 0;
    pub const ROW: u64 = 1;
    pub const PAGE: u64 = 4;
    pub const MODE: u64 = 6;
    pub const COLUMNS: u64 = 7;
    pub const EGA_BX: u64 = 10;
    pub const LINES: u64 = 14;
    pub const IS_VGA: u64 = 15;
    pub const POINTS: u64 = 16;
}

/// The ROM didn't come back.
#[derive(Debug, thiserror::Error)]
pub enum VideoError {
    #[error(
        "its start is still at {cs:04x}:{ip:04x} after {} million instructions",
        INSTRUCTIONS_MAX / 1_000_000
    )]
    TooLong { cs: u16, ip: u64 },
    #[error("its start ends in a processor that has stopped at {cs:04x}:{ip:04x}")]
    Stopped { cs: u16, ip: u64 },
    #[error(transparent)]
    Memory(#[from] GuestMemoryError),
}

/// Copies `rom` to its shadow and calls it. `address` is its display's bus, device and function, 8, 5 and 3 bits.
/// `stubs` is for vector instructions.
///
/// # Errors
/// It doesn't return.
pub fn start(
    rom: &[u8],
    address: u16,
    ram: &Arc<GuestRam>,
    buses: &Arc<Buses>,
    model: &Arc<CpuidModel>,
    stubs: Stubs,
) -> Result<(), VideoError> {
    let memory = ram.memory();
    memory.write_slice(rom, GuestAddress(SHADOW))?;
    memory.write_obj(IRET, GuestAddress(DUMMY))?;
    for vector in 0..256 {
        memory.write_obj(DUMMY_VECTOR, GuestAddress(4 * vector))?;
    }
    memory.write_slice(&AFTERWARDS, GuestAddress(u64::from(LANDING)))?;
    // The far address to return to: offset, segment 0.
    let stack = u64::from(LANDING) - 4;
    memory.write_obj(u32::from(LANDING), GuestAddress(stack))?;

    let mut state = CpuState::reset(model.signature());
    state.gpr[reg::RAX] = u64::from(address);
    state.gpr[reg::RSP] = stack;
    // SeaBIOS calls option ROMs so, and its own for displays relies on it.
    state.seg = [Segment { limit: u32::MAX, ..Segment::real(0, 0x93) }; 6];
    state.seg[sreg::CS] = Segment::real((SHADOW >> 4) as u16, 0x9b);
    state.rip = ENTRY_OFFSET;
    state.idtr = TableRegister { base: 0, limit: 0x3ff };
    let env = BareEnv { buses: Arc::clone(buses), ..BareEnv::default() };
    let mmu = SoftMmu::new(Arc::clone(ram), model.physical_bits());
    let mut interp = Interp::new(state, mmu, Box::new(env), Arc::clone(model), 0, Box::new(stubs));
    let end = u64::from(LANDING) + AFTERWARDS.len() as u64;
    let exit = interp.run(INSTRUCTIONS_MAX);
    let (cs, ip) = (interp.state.seg[sreg::CS].selector, interp.state.rip);
    match exit {
        Exit::Halted if cs == 0 && ip == end => {}
        Exit::Budget => return Err(VideoError::TooLong { cs, ip }),
        Exit::Halted | Exit::Shutdown | Exit::Attention => {
            return Err(VideoError::Stopped { cs, ip });
        }
    }
    let scratch = vec![0; (end - SCRATCH_START) as usize];
    memory.write_slice(&scratch, GuestAddress(SCRATCH_START))?;
    Ok(())
}

/// Fills Linux's boot parameters at `params` with what the data area says of the screen.
///
/// # Errors
/// They are not in RAM.
pub fn describe(ram: &GuestRam, params: u64) -> Result<(), GuestMemoryError> {
    let memory = ram.memory();
    let byte = |at| memory.read_obj::<u8>(GuestAddress(at));
    let word = |at| memory.read_obj::<u16>(GuestAddress(at));
    let is_monochrome = word(data_area::CRTC_PORT)? == 0x3b4;
    // As INT 10h, function 12h, subfunction 10h answers: the memory in 64 KiB, less one, and the kind of mode.
    let ega_bx = u16::from(byte(data_area::CONTROL)? >> 5 & 3) | u16::from(is_monochrome) << 8;
    let bytes = [
        (screen_info::COLUMN, byte(data_area::CURSOR_COLUMN)?),
        (screen_info::ROW, byte(data_area::CURSOR_ROW)?),
        (screen_info::MODE, byte(data_area::MODE)? & 0x7f),
        (screen_info::COLUMNS, (word(data_area::COLUMNS)? & 0xff) as u8),
        (screen_info::LINES, byte(data_area::LAST_ROW)?.wrapping_add(1)),
        (screen_info::IS_VGA, 1),
    ];
    let words = [
        (screen_info::PAGE, u16::from(byte(data_area::PAGE)?)),
        (screen_info::EGA_BX, ega_bx),
        (screen_info::POINTS, word(data_area::POINTS)?),
    ];
    for (offset, value) in bytes {
        memory.write_obj(value, GuestAddress(params + offset))?;
    }
    for (offset, value) in words {
        memory.write_obj(value, GuestAddress(params + offset))?;
    }
    Ok(())
}
