//! Bochs's display interface: eleven 16-bit registers that set any packed mode.
//!
//! Problem: a guest writes resolution, depth and geometry in any order and to any value. Scheme: resolution
//! and depth are taken while the interface is off; switching it on checks them against the memory and
//! derives the rest. Invariant: the visible part always lies in the video memory. Any thread, under the
//! device's mutex. Source: Bochs, "VBE DISPI interface"; QEMU, docs/specs/standard-vga.

use super::BYTES;

/// The newest interface that we follow.
const ID: u16 = 0xb0c5;
const ID_OLDEST: u16 = 0xb0c0;
pub const WIDTH_MAX: u16 = 2560;
pub const HEIGHT_MAX: u16 = 1600;
const DEPTH_MAX: u16 = 32;

const ENABLED: u16 = 1 << 0;
const GET_CAPABILITIES: u16 = 1 << 1;
const EIGHT_BIT_DAC: u16 = 1 << 5;
const NO_CLEAR: u16 = 1 << 7;
const ENABLE_BITS: u16 = 0x00e3;

/// Registers by index.
const REG_ID: usize = 0;
const REG_WIDTH: usize = 1;
const REG_HEIGHT: usize = 2;
const REG_DEPTH: usize = 3;
const REG_ENABLE: usize = 4;
const REG_BANK: usize = 5;
const REG_VIRTUAL_WIDTH: usize = 6;
const REG_VIRTUAL_HEIGHT: usize = 7;
const REG_X: usize = 8;
const REG_Y: usize = 9;
const REG_MEMORY: usize = 10;
pub const REGISTERS: usize = 11;

/// What is shown from where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    pub width: usize,
    pub height: usize,
    /// Bits of a pixel: 4, 8, 15, 16, 24 or 32.
    pub depth: usize,
    /// Bytes of a line (of a line of one plane, for 4 bits).
    pub pitch: usize,
    /// Byte where the first line begins.
    pub start: usize,
}

#[derive(Clone, Copy, Debug)]
pub struct Dispi {
    index: u16,
    regs: [u16; REGISTERS],
}

impl Default for Dispi {
    fn default() -> Self {
        let mut regs = [0; REGISTERS];
        regs[REG_ID] = ID;
        regs[REG_DEPTH] = 8;
        Self { index: 0, regs }
    }
}

impl Dispi {
    pub fn index(&self) -> u16 {
        self.index
    }

    pub fn set_index(&mut self, index: u16) {
        self.index = index;
    }

    pub fn enabled(&self) -> bool {
        self.regs[REG_ENABLE] & ENABLED != 0
    }

    /// Switched on, in a mode that isn't planar.
    pub fn is_packed(&self) -> bool {
        self.enabled() && self.regs[REG_DEPTH] > 4
    }

    pub fn eight_bit_dac(&self) -> bool {
        self.regs[REG_ENABLE] & EIGHT_BIT_DAC != 0
    }

    /// Byte of the linear memory where the bank in the window begins.
    pub fn bank_offset(&self) -> usize {
        usize::from(self.regs[REG_BANK]) << 16 & (BYTES - 1)
    }

    pub fn read(&self) -> u16 {
        let asked = self.regs[REG_ENABLE] & GET_CAPABILITIES != 0;
        match usize::from(self.index) {
            REG_WIDTH if asked => WIDTH_MAX,
            REG_HEIGHT if asked => HEIGHT_MAX,
            REG_DEPTH if asked => DEPTH_MAX,
            REG_VIRTUAL_HEIGHT => self.lines(),
            REG_MEMORY => (BYTES >> 16) as u16,
            at => self.regs.get(at).copied().unwrap_or(0),
        }
    }

    /// Writes the register that the index names. Gives the bytes to clear, if a mode was set.
    pub fn write(&mut self, value: u16) -> Option<usize> {
        let at = usize::from(self.index);
        match at {
            REG_ID if (ID_OLDEST..=ID).contains(&value) => self.regs[REG_ID] = value,
            REG_WIDTH if !self.enabled() => self.regs[at] = value.min(WIDTH_MAX) & !7,
            REG_HEIGHT if !self.enabled() => self.regs[at] = value.min(HEIGHT_MAX),
            REG_DEPTH if !self.enabled() => {
                let value = if value == 0 { 8 } else { value };
                if matches!(value, 4 | 8 | 15 | 16 | 24 | 32) {
                    self.regs[at] = value;
                }
            }
            REG_BANK => self.regs[at] = value,
            REG_VIRTUAL_WIDTH => self.set_virtual_width(value),
            REG_X | REG_Y => {
                let old = std::mem::replace(&mut self.regs[at], value);
                if self.enabled() && !self.fits() {
                    self.regs[at] = old;
                }
            }
            REG_ENABLE => return self.enable(value & ENABLE_BITS),
            _ => {}
        }
        None
    }

    fn enable(&mut self, value: u16) -> Option<usize> {
        let was = self.enabled();
        self.regs[REG_ENABLE] = value;
        self.regs[REG_BANK] = 0;
        if was || value & ENABLED == 0 {
            return None;
        }
        self.regs[REG_VIRTUAL_WIDTH] = self.regs[REG_WIDTH];
        (self.regs[REG_X], self.regs[REG_Y]) = (0, 0);
        let mode = self.mode()?;
        let planes = if mode.depth == 4 { 4 } else { 1 };
        (value & NO_CLEAR == 0).then_some(mode.pitch * mode.height * planes)
    }

    fn set_virtual_width(&mut self, value: u16) {
        let old = self.regs[REG_VIRTUAL_WIDTH];
        // As wide as leaves room for the lines that are shown.
        self.regs[REG_VIRTUAL_WIDTH] = (value & !7).max(self.regs[REG_WIDTH]);
        if !self.fits() {
            self.regs[REG_VIRTUAL_WIDTH] = old;
        }
    }

    /// Bytes of a line.
    fn pitch(&self) -> usize {
        let width = usize::from(self.regs[REG_VIRTUAL_WIDTH].max(self.regs[REG_WIDTH]));
        match self.regs[REG_DEPTH] {
            4 => width / 8,
            depth => width * usize::from(depth).div_ceil(8),
        }
    }

    fn memory(&self) -> usize {
        if self.regs[REG_DEPTH] == 4 { super::PLANE_WORDS } else { BYTES }
    }

    /// Lines that the memory has room for.
    fn lines(&self) -> u16 {
        match self.pitch() {
            0 => 0,
            pitch => u16::try_from(self.memory() / pitch).unwrap_or(u16::MAX),
        }
    }

    fn start(&self) -> usize {
        let x = usize::from(self.regs[REG_X]);
        let x_bytes = match self.regs[REG_DEPTH] {
            4 => x / 8,
            depth => x * usize::from(depth).div_ceil(8),
        };
        usize::from(self.regs[REG_Y]) * self.pitch() + x_bytes
    }

    fn fits(&self) -> bool {
        let pitch = self.pitch();
        self.start() + pitch * usize::from(self.regs[REG_HEIGHT]) <= self.memory()
    }

    /// What is shown; `None` while the interface is off or asks for the impossible.
    pub fn mode(&self) -> Option<Mode> {
        let (width, height) = (self.regs[REG_WIDTH], self.regs[REG_HEIGHT]);
        let usable = self.enabled() && width > 0 && height > 0 && self.fits();
        usable.then(|| Mode {
            width: usize::from(width),
            height: usize::from(height),
            depth: usize::from(self.regs[REG_DEPTH]),
            pitch: self.pitch(),
            start: self.start(),
        })
    }
}
