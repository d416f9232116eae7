//! A VGA adapter with Bochs's display interface and a linear frame buffer.
//!
//! Problem: text screens, planar and packed graphics and plain frame buffers are one memory under many
//! registers, and guests write it at full speed. Scheme: four 64 KiB planes stand interleaved, a byte of each in
//! every 32-bit word, at the start of the video memory, whose whole is the linear frame buffer that
//! processors meet as plain memory. The window at 0xa0000 comes here access by access ([`memory`]), except
//! where a byte written is just a byte stored (colour text, 256 colours): then it is *direct*, plain memory of the
//! [`VideoHost`], and [`Vga`] takes it over into the planes before anything looks at them. [`scan`] makes
//! pictures when somebody asks; nothing is done for a screen that nobody looks at. Invariants: indices are
//! masked to the memory; the window is direct exactly when the registers say so; no allocation is larger than
//! a frame of 2560x1600. Threads: vCPUs and displays, under the device's mutex.
//!
//! Source: IBM PS/2 Hardware Interface Technical Reference, "Video Subsystem"; Bochs, "VBE DISPI interface";
//! QEMU, docs/specs/standard-vga.

mod dispi;
mod function;
mod memory;
mod scan;

#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use self::dispi::Dispi;
use crate::bus::{Bus, BusDevice, Overlap};
use crate::clock::Clock;

pub use self::function::{ROM_BYTES_MAX, add};
pub use self::scan::{Picture, Text};

/// The legacy window.
pub const WINDOW: Range<u64> = 0xa_0000..0xc_0000;
/// Video memory in bytes.
pub const BYTES: usize = 16 << 20;
/// Words of the planes.
const PLANE_WORDS: usize = 64 << 10;

/// First port of the attribute controller and what follows it; also at BAR 2, offset 0x400.
const PORTS: u64 = 0x3b0;
const PORTS_LEN: u64 = 0x30;
/// Index and data ports of the display interface.
const DISPI_PORTS: u64 = 0x1ce;
const DISPI_PORTS_LEN: u64 = 3;
/// Offset of those in the device.
const DISPI_OFFSET: u64 = 0x100;

/// A frame lasts so long: 70 Hz.
const FRAME_NS: u64 = 14_268_000;
const LINES_TOTAL: u64 = 449;

/// Where the video memory is, and the two ways in which processors meet it without this device.
pub trait VideoHost: Send {
    /// 32-bit word `index` of the video memory; past its end 0.
    fn load(&self, index: usize) -> u32;
    fn store(&self, index: usize, value: u32);
    /// Bytes from `offset` on, as many as `out` takes; past the end nothing is changed.
    fn copy_out(&self, offset: usize, out: &mut [u8]);
    /// Zeroes `bytes` at the start.
    fn clear(&self, bytes: usize);
    /// The whole shows at this guest physical address.
    fn place(&self, base: Option<u64>);
    /// These addresses of [`WINDOW`], whole pages, are plain memory from now on (or no more).
    fn set_direct(&self, range: Range<u64>, direct: bool);
    /// The plain memory there, whether it shows or not.
    fn read_window(&self, gpa: u64, out: &mut [u8]);
    fn write_window(&self, gpa: u64, bytes: &[u8]);
}

/// How a direct window's bytes stand in the planes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direct {
    /// 0xb8000: even bytes in plane 0, odd ones in plane 1.
    Text,
    /// 0xa0000: four bytes after each other in the four planes.
    Chain4,
}

impl Direct {
    fn range(self) -> Range<u64> {
        match self {
            Self::Text => 0xb_8000..0xc_0000,
            Self::Chain4 => 0xa_0000..0xb_0000,
        }
    }
}

/// Sequencer registers.
#[derive(Clone, Copy, Debug, Default)]
struct Sequencer {
    index: u8,
    regs: [u8; 5],
}

/// Graphics controller registers.
#[derive(Clone, Copy, Debug, Default)]
struct Graphics {
    index: u8,
    regs: [u8; 9],
}

/// Attribute controller registers.
#[derive(Clone, Copy, Debug, Default)]
struct Attribute {
    /// Bit 5: the palette belongs to the picture, not to the processor.
    index: u8,
    data_next: bool,
    regs: [u8; 21],
}

/// Cathode ray tube controller registers.
#[derive(Clone, Copy, Debug)]
struct Crtc {
    index: u8,
    regs: [u8; 25],
}

/// The colours.
#[derive(Clone, Copy)]
struct Dac {
    mask: u8,
    read: u8,
    write: u8,
    component: u8,
    reading: bool,
    /// Red, green, blue.
    colours: [[u8; 3]; 256],
}

impl fmt::Debug for Dac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dac").field("mask", &self.mask).finish_non_exhaustive()
    }
}

/// The adapter.
pub struct Vga {
    host: Box<dyn VideoHost>,
    clock: Arc<dyn Clock>,
    misc: u8,
    feature: u8,
    sequencer: Sequencer,
    graphics: Graphics,
    attribute: Attribute,
    crtc: Crtc,
    dac: Dac,
    dispi: Dispi,
    latches: u32,
    direct: Option<Direct>,
}

impl fmt::Debug for Vga {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vga")
            .field("misc", &self.misc)
            .field("sequencer", &self.sequencer)
            .field("graphics", &self.graphics)
            .field("attribute", &self.attribute)
            .field("crtc", &self.crtc)
            .field("dispi", &self.dispi)
            .field("direct", &self.direct)
            .finish_non_exhaustive()
    }
}

/// Bits of the sequencer, graphics and attribute registers that exist.
const SEQUENCER_BITS: [u8; 5] = [0x03, 0x3d, 0x0f, 0x3f, 0x0e];
const GRAPHICS_BITS: [u8; 9] = [0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff];
/// The CRTC's registers 0 to 7 take no write, but for a bit of 7.
const CRTC_PROTECT: u8 = 0x80;
/// Miscellaneous output: the CRTC is at 0x3d4; processors reach the memory.
const MISC_COLOUR: u8 = 1 << 0;
const MISC_RAM: u8 = 1 << 1;

impl Vga {
    /// An adapter as power-on leaves it: dark.
    #[must_use]
    pub fn new(host: Box<dyn VideoHost>, clock: Arc<dyn Clock>) -> Self {
        Self {
            host,
            clock,
            misc: 0,
            feature: 0,
            sequencer: Sequencer::default(),
            graphics: Graphics::default(),
            attribute: Attribute::default(),
            crtc: Crtc { index: 0, regs: [0; 25] },
            dac: Dac {
                mask: 0xff,
                read: 0,
                write: 0,
                component: 0,
                reading: false,
                colours: [[0; 3]; 256],
            },
            dispi: Dispi::default(),
            latches: 0,
            direct: None,
        }
    }

    /// Puts the ports on `ports` and the window on `memory`.
    ///
    /// # Errors
    /// [`Overlap`] if one is taken.
    pub fn attach(
        device: &Arc<Mutex<Self>>,
        ports: &mut Bus,
        memory: &mut Bus,
    ) -> Result<(), Overlap> {
        let registers = Arc::new(Mutex::new(Registers(Arc::clone(device))));
        ports.insert(PORTS, PORTS_LEN, Arc::clone(&registers) as _)?;
        ports.insert_at(DISPI_PORTS, DISPI_PORTS_LEN, DISPI_OFFSET, registers as _)?;
        let window = Arc::new(Mutex::new(Window(Arc::clone(device))));
        memory.insert(WINDOW.start, WINDOW.end - WINDOW.start, window as _)
    }

    /// Where the linear frame buffer decodes.
    fn place(&self, base: Option<u64>) {
        self.host.place(base);
    }

    /// Takes a direct window's bytes over into the planes.
    fn settle(&mut self) {
        let Some(direct) = self.direct else { return };
        let range = direct.range();
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.host.read_window(range.start, &mut bytes);
        match direct {
            Direct::Text => {
                for (at, pair) in bytes.chunks_exact(2).enumerate() {
                    let word = self.host.load(2 * at) & 0xffff_0000;
                    let both = u32::from(u16::from_le_bytes([pair[0], pair[1]]));
                    self.host.store(2 * at, word | both);
                }
            }
            Direct::Chain4 => {
                for (at, four) in bytes.chunks_exact(4).enumerate() {
                    let word = u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
                    self.host.store(4 * at, word);
                }
            }
        }
    }

    /// Makes the window direct, or not, as the registers say now.
    fn update_window(&mut self) {
        let wanted = self.wanted_window();
        if wanted == self.direct {
            return;
        }
        if let Some(direct) = self.direct {
            self.host.set_direct(direct.range(), false);
            self.settle();
        }
        self.direct = wanted;
        if let Some(direct) = wanted {
            let range = direct.range();
            let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
            match direct {
                Direct::Text => {
                    for at in 0..bytes.capacity() / 2 {
                        bytes.extend_from_slice(&self.host.load(2 * at).to_le_bytes()[..2]);
                    }
                }
                Direct::Chain4 => {
                    for at in 0..bytes.capacity() / 4 {
                        bytes.extend_from_slice(&self.host.load(4 * at).to_le_bytes());
                    }
                }
            }
            self.host.write_window(range.start, &bytes);
            self.host.set_direct(range, true);
        }
    }

    fn wanted_window(&self) -> Option<Direct> {
        let (seq, gr) = (&self.sequencer.regs, &self.graphics.regs);
        // A byte is stored as it is: write mode 0 without set/reset, rotation, function or bit mask.
        let plain = gr[1] == 0 && gr[3] == 0 && gr[5] & 0x0b == 0 && gr[8] == 0xff;
        let usable = self.misc & MISC_RAM != 0 && !self.dispi.enabled();
        if !plain || !usable {
            return None;
        }
        let map = gr[6] >> 2 & 3;
        if seq[4] & 0x08 != 0 {
            return (map == 1 && seq[2] == 0x0f).then_some(Direct::Chain4);
        }
        // Odd and even addresses apart, for writes and for reads.
        let odd_even = seq[4] & 0x04 == 0 && gr[5] & 0x10 != 0;
        (odd_even && map == 3 && seq[2] == 0x03 && gr[4] & 2 == 0).then_some(Direct::Text)
    }

    fn crtc_port(&self) -> u64 {
        if self.misc & MISC_COLOUR != 0 { 0x3d4 } else { 0x3b4 }
    }

    /// Input status 1: where the beam is.
    fn status(&self) -> u8 {
        let in_frame_ns = self.clock.now_ns() % FRAME_NS;
        let line = in_frame_ns * LINES_TOTAL / FRAME_NS;
        let line_ns = FRAME_NS / LINES_TOTAL;
        let displayed = LINES_TOTAL * 8 / 9;
        let vertical = line >= displayed;
        let horizontal = in_frame_ns % line_ns >= line_ns * 4 / 5;
        let retrace = line >= displayed + 12 && line < displayed + 16;
        u8::from(vertical || horizontal) | u8::from(retrace) << 3
    }

    fn read_port(&mut self, port: u64) -> u8 {
        let index = |at: u8, regs: &[u8]| regs.get(usize::from(at)).copied().unwrap_or(0);
        match port {
            0x3c0 => self.attribute.index,
            0x3c1 => index(self.attribute.index & 0x1f, &self.attribute.regs),
            // Input status 0: the sense line says that a colour monitor is there.
            0x3c2 => 0x10,
            0x3c4 => self.sequencer.index,
            0x3c5 => index(self.sequencer.index, &self.sequencer.regs),
            0x3c6 => self.dac.mask,
            0x3c7 => {
                if self.dac.reading {
                    3
                } else {
                    0
                }
            }
            0x3c8 => self.dac.write,
            0x3c9 => self.dac.next_read(),
            0x3ca => self.feature,
            0x3cc => self.misc,
            0x3ce => self.graphics.index,
            0x3cf => index(self.graphics.index, &self.graphics.regs),
            _ if port == self.crtc_port() => self.crtc.index,
            _ if port == self.crtc_port() + 1 => index(self.crtc.index, &self.crtc.regs),
            _ if port == self.crtc_port() + 6 => {
                self.attribute.data_next = false;
                self.status()
            }
            _ => 0xff,
        }
    }

    fn write_port(&mut self, port: u64, value: u8) {
        match port {
            0x3c0 => self.write_attribute(value),
            0x3c2 => self.misc = value & !0x10,
            0x3c4 => self.sequencer.index = value & 0x07,
            0x3c5 => {
                let at = usize::from(self.sequencer.index);
                if let Some(reg) = self.sequencer.regs.get_mut(at) {
                    *reg = value & SEQUENCER_BITS[at];
                }
            }
            0x3c6 => self.dac.mask = value,
            0x3c7 => {
                self.dac.read = value;
                (self.dac.component, self.dac.reading) = (0, true);
            }
            0x3c8 => {
                self.dac.write = value;
                (self.dac.component, self.dac.reading) = (0, false);
            }
            0x3c9 => self.dac.next_write(value, self.dispi.eight_bit_dac()),
            0x3ce => self.graphics.index = value & 0x0f,
            0x3cf => {
                let at = usize::from(self.graphics.index);
                if let Some(reg) = self.graphics.regs.get_mut(at) {
                    *reg = value & GRAPHICS_BITS[at];
                }
            }
            _ if port == self.crtc_port() => self.crtc.index = value & 0x3f,
            _ if port == self.crtc_port() + 1 => self.write_crtc(value),
            _ if port == self.crtc_port() + 6 => self.feature = value,
            _ => {}
        }
        if matches!(port, 0x3c2 | 0x3c5 | 0x3cf) {
            self.update_window();
        }
    }

    fn write_attribute(&mut self, value: u8) {
        let attribute = &mut self.attribute;
        let is_data = attribute.data_next;
        attribute.data_next = !is_data;
        if is_data {
            let at = usize::from(attribute.index & 0x1f);
            // The palette takes no write while the picture uses it.
            if at < 16 && attribute.index & 0x20 != 0 {
                return;
            }
            if let Some(reg) = attribute.regs.get_mut(at) {
                *reg = if at < 16 || at == 0x12 { value & 0x3f } else { value };
            }
        } else {
            attribute.index = value & 0x3f;
        }
    }

    fn write_crtc(&mut self, value: u8) {
        let at = usize::from(self.crtc.index);
        let protected = self.crtc.regs[0x11] & CRTC_PROTECT != 0 && at < 8;
        match self.crtc.regs.get_mut(at) {
            Some(reg) if protected && at == 7 => *reg = *reg & !0x10 | value & 0x10,
            Some(reg) if !protected => *reg = value,
            _ => {}
        }
    }

    fn read_dispi(&self, offset: u64) -> u16 {
        if offset == 0 { self.dispi.index() } else { self.dispi.read() }
    }

    fn write_dispi(&mut self, offset: u64, value: u16) {
        if offset == 0 {
            self.dispi.set_index(value);
        } else {
            if let Some(bytes) = self.dispi.write(value) {
                // Text in a direct window is in the way of what is cleared.
                self.update_window();
                self.host.clear(bytes);
            }
            self.update_window();
        }
    }
}

impl Dac {
    fn next_read(&mut self) -> u8 {
        let value = self.colours[usize::from(self.read)][usize::from(self.component)];
        self.component += 1;
        if self.component == 3 {
            self.component = 0;
            self.read = self.read.wrapping_add(1);
        }
        value
    }

    fn next_write(&mut self, value: u8, eight_bits: bool) {
        let value = if eight_bits { value } else { value & 0x3f };
        self.colours[usize::from(self.write)][usize::from(self.component)] = value;
        self.component += 1;
        if self.component == 3 {
            self.component = 0;
            self.write = self.write.wrapping_add(1);
        }
    }
}

/// The ports.
struct Registers(Arc<Mutex<Vga>>);

impl BusDevice for Registers {
    fn name(&self, offset: u64) -> String {
        if offset < DISPI_OFFSET { "vga" } else { "vbe" }.to_owned()
    }

    fn read(&mut self, offset: u64, size: u8) -> u64 {
        let mut vga = crate::clock::lock(&self.0);
        if let Some(offset) = offset.checked_sub(DISPI_OFFSET) {
            let value = u64::from(vga.read_dispi(offset));
            return if size == 1 { value & 0xff } else { value };
        }
        let port = PORTS + offset;
        (0..u64::from(size)).fold(0, |all, n| all | u64::from(vga.read_port(port + n)) << (8 * n))
    }

    fn write(&mut self, offset: u64, size: u8, value: u64) {
        let mut vga = crate::clock::lock(&self.0);
        if let Some(offset) = offset.checked_sub(DISPI_OFFSET) {
            return vga.write_dispi(offset, (value & 0xffff) as u16);
        }
        for n in 0..u64::from(size) {
            vga.write_port(PORTS + offset + n, (value >> (8 * n) & 0xff) as u8);
        }
    }

    fn width(&self) -> u8 {
        2
    }
}

/// The legacy window.
struct Window(Arc<Mutex<Vga>>);

impl BusDevice for Window {
    fn name(&self, _: u64) -> String {
        "vga window".to_owned()
    }

    fn read(&mut self, offset: u64, size: u8) -> u64 {
        let mut vga = crate::clock::lock(&self.0);
        (0..u64::from(size))
            .fold(0, |all, n| all | u64::from(vga.read_window(offset + n)) << (8 * n))
    }

    fn write(&mut self, offset: u64, size: u8, value: u64) {
        let mut vga = crate::clock::lock(&self.0);
        for n in 0..u64::from(size) {
            vga.write_window(offset + n, (value >> (8 * n) & 0xff) as u8);
        }
    }

    fn width(&self) -> u8 {
        8
    }
}
