//! What a person sees: from registers and memory to a picture, or to text.
//!
//! Problem: the same memory is text, planes or pixels, as two dozen registers say. Scheme: [`Vga::picture`]
//! picks one of three readers (text, the adapter's graphics, the display interface's modes), each of which makes
//! a line at a time from a snapshot of the memory. Blinking is shown in its lit phase, so that a screen that
//! doesn't change makes equal pictures. Invariants: sizes come from registers of bounded width, so that no
//! picture is larger than the largest mode. Any thread, under the device's mutex.
//! Source: IBM PS/2 Hardware Interface Technical Reference, "CRT Controller", "Attribute Controller",
//! "Video Digital-to-Analog Converter".

use super::{PLANE_WORDS, Vga};

/// A picture of the screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    pub width: usize,
    pub height: usize,
    /// 0xRRGGBB, lines from the top.
    pub pixels: Vec<u32>,
}

/// A text screen: code page 437 characters with their attributes in the upper byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    pub columns: usize,
    pub rows: usize,
    pub cells: Vec<u16>,
    /// Column and row, if it shows.
    pub cursor: Option<(usize, usize)>,
    /// The sixteen colours, 0xRRGGBB.
    pub colours: [u32; 16],
    /// The attribute's top bit means a bright background instead of blinking.
    pub bright_backgrounds: bool,
}

/// Where each character map begins in plane 2, by its number.
const FONTS: [usize; 8] = [0x0000, 0x4000, 0x8000, 0xc000, 0x2000, 0x6000, 0xa000, 0xe000];

/// Attribute mode control.
const ATTRIBUTE_GRAPHICS: u8 = 1 << 0;
const ATTRIBUTE_LINE_GRAPHICS: u8 = 1 << 2;
const ATTRIBUTE_BLINK: u8 = 1 << 3;
/// The part below the compared line isn't panned.
const ATTRIBUTE_PAN_ABOVE: u8 = 1 << 5;
const ATTRIBUTE_COLOUR_SELECT: u8 = 1 << 7;
/// Attribute index: the palette belongs to the picture.
const ATTRIBUTE_SHOWN: u8 = 1 << 5;

/// Geometry of a text screen.
struct TextShape {
    columns: usize,
    rows: usize,
    char_width: usize,
    char_height: usize,
    /// Each line is shown so many times, and each dot.
    repeat: usize,
    dots: usize,
}

/// Where a line of the screen comes from.
struct Source {
    /// The address counter of the first row of its part.
    first: usize,
    /// The line in its part, in the CRTC's row scans.
    line: usize,
    /// Dots that are shifted out at the left.
    pan: usize,
}

impl Vga {
    /// The screen as a picture. A dark one is black.
    pub fn picture(&mut self) -> Picture {
        self.settle();
        let shown = self.attribute.index & ATTRIBUTE_SHOWN != 0;
        if let Some(mode) = self.dispi.mode() {
            let mut picture = Picture::dark(mode.width, mode.height);
            if shown {
                self.draw_dispi(&mode, &mut picture);
            }
            return picture;
        }
        if self.attribute.regs[0x10] & ATTRIBUTE_GRAPHICS == 0 {
            let shape = self.text_shape();
            let width = shape.columns * shape.char_width * shape.dots;
            let height = shape.rows * shape.char_height * shape.repeat;
            let mut picture = Picture::dark(width, height);
            if shown && self.sequencer.regs[1] & 0x20 == 0 {
                self.draw_text(&shape, &mut picture);
            }
            return picture;
        }
        let dots = self.dots();
        let width = (usize::from(self.crtc.regs[1]) + 1) * 8 * dots;
        let mut picture = Picture::dark(width, self.lines());
        if shown && self.sequencer.regs[1] & 0x20 == 0 {
            self.draw_graphics(dots, &mut picture);
        }
        picture
    }

    /// Whether nothing is shown, as before firmware or a driver sets a mode.
    #[must_use]
    pub fn is_dark(&self) -> bool {
        self.attribute.index & ATTRIBUTE_SHOWN == 0
    }

    /// The screen's characters, if it is a text screen.
    pub fn text(&mut self) -> Option<Text> {
        let is_text = self.attribute.regs[0x10] & ATTRIBUTE_GRAPHICS == 0
            && self.attribute.index & ATTRIBUTE_SHOWN != 0
            && self.dispi.mode().is_none();
        if !is_text {
            return None;
        }
        self.settle();
        let shape = self.text_shape();
        let mut cells = Vec::with_capacity(shape.columns * shape.rows);
        for row in 0..shape.rows {
            let counter = self.row_counter(&shape, row);
            cells.extend((0..shape.columns).map(|column| self.cell(counter + column)));
        }
        let bright_backgrounds = self.attribute.regs[0x10] & ATTRIBUTE_BLINK == 0;
        let cursor = self.cursor(&shape);
        let mut colours = [0; 16];
        for (value, colour) in (0..).zip(&mut colours) {
            *colour = self.attribute_colour(value);
        }
        let (columns, rows) = (shape.columns, shape.rows);
        Some(Text { columns, rows, cells, cursor, colours, bright_backgrounds })
    }

    /// Lines of the displayed part.
    fn lines(&self) -> usize {
        let regs = &self.crtc.regs;
        let high = usize::from(regs[7] >> 1 & 1) << 8 | usize::from(regs[7] >> 6 & 1) << 9;
        (usize::from(regs[0x12]) | high) + 1
    }

    /// Lines of a row of characters, or times that a line is shown.
    fn row_lines(&self) -> usize {
        usize::from(self.crtc.regs[9] & 0x1f) + 1
    }

    fn double_scan(&self) -> usize {
        if self.crtc.regs[9] & 0x80 != 0 { 2 } else { 1 }
    }

    /// How wide a dot is: twice as wide at half the dot clock.
    fn dots(&self) -> usize {
        1 << (self.sequencer.regs[1] >> 3 & 1)
    }

    /// Where line `y` comes from. Below the compared line the memory is shown from its start.
    fn source(&self, y: usize) -> Source {
        let regs = &self.crtc.regs;
        let compare = usize::from(regs[0x18])
            | usize::from(regs[7] >> 4 & 1) << 8
            | usize::from(regs[9] >> 6 & 1) << 9;
        let double = self.double_scan();
        let pan = self.pan();
        // Whole characters, and lines of the first row.
        let (bytes, preset) = (usize::from(regs[8] >> 5 & 3), usize::from(regs[8] & 0x1f));
        if y <= compare {
            let (first, line) = (self.crtc_pair(0x0c) + bytes, y / double + preset);
            return Source { first, line, pan };
        }
        let line = (y - compare - 1) / double;
        if self.attribute.regs[0x10] & ATTRIBUTE_PAN_ABOVE != 0 {
            return Source { first: 0, line, pan: 0 };
        }
        Source { first: bytes, line, pan }
    }

    /// Dots that panning shifts out.
    fn pan(&self) -> usize {
        let value = usize::from(self.attribute.regs[0x13] & 0x0f);
        let is_graphics = self.attribute.regs[0x10] & ATTRIBUTE_GRAPHICS != 0;
        if !is_graphics && self.char_width() == 9 {
            // Nine dots are counted from the ninth.
            return if value < 8 { value + 1 } else { 0 };
        }
        // A pixel of 256 colours takes two dots.
        if is_graphics && self.graphics.regs[5] & 0x40 != 0 { value & 6 } else { value & 7 }
    }

    fn char_width(&self) -> usize {
        if self.sequencer.regs[1] & 1 != 0 { 8 } else { 9 }
    }

    fn text_shape(&self) -> TextShape {
        let (char_height, repeat) = (self.row_lines(), self.double_scan());
        TextShape {
            columns: usize::from(self.crtc.regs[1]) + 1,
            rows: (self.lines() / (char_height * repeat)).max(1),
            char_width: self.char_width(),
            char_height,
            repeat,
            dots: self.dots(),
        }
    }

    /// A 16-bit number in two CRTC registers, the upper half first.
    fn crtc_pair(&self, at: usize) -> usize {
        usize::from(self.crtc.regs[at]) << 8 | usize::from(self.crtc.regs[at + 1])
    }

    /// Words of the planes from one row to the next, as the CRTC counts.
    fn row_pitch(&self) -> usize {
        usize::from(self.crtc.regs[0x13]) * 2
    }

    /// From the CRTC's address counter to the word of the planes.
    fn word_at(&self, counter: usize, row_scan: usize) -> usize {
        let mode = self.crtc.regs[0x17];
        let counter = counter & 0xffff;
        let mut word = if self.crtc.regs[0x14] & 0x40 != 0 {
            counter << 2 & 0xfffc | counter >> 14
        } else if mode & 0x40 == 0 {
            let top = if mode & 0x20 != 0 { 15 } else { 13 };
            counter << 1 & 0xfffe | counter >> top & 1
        } else {
            counter
        };
        if mode & 1 == 0 {
            word = word & !0x2000 | (row_scan & 1) << 13;
        }
        if mode & 2 == 0 {
            word = word & !0x4000 | (row_scan >> 1 & 1) << 14;
        }
        word % PLANE_WORDS
    }

    /// A character with its attribute.
    fn cell(&self, counter: usize) -> u16 {
        (self.host.load(self.word_at(counter, 0)) & 0xffff) as u16
    }

    /// The address counter at the beginning of a row of characters.
    fn row_counter(&self, shape: &TextShape, row: usize) -> usize {
        let source = self.source(row * shape.char_height * shape.repeat);
        source.first + source.line / shape.char_height * self.row_pitch()
    }

    /// The cursor's address and lines, if it shows.
    fn cursor_at(&self, shape: &TextShape) -> Option<(usize, std::ops::RangeInclusive<usize>)> {
        let start = usize::from(self.crtc.regs[0x0a] & 0x1f);
        let end = usize::from(self.crtc.regs[0x0b] & 0x1f);
        let on = self.crtc.regs[0x0a] & 0x20 == 0 && start <= end && start < shape.char_height;
        on.then(|| (self.crtc_pair(0x0e), start..=end))
    }

    fn cursor(&self, shape: &TextShape) -> Option<(usize, usize)> {
        let (at, _) = self.cursor_at(shape)?;
        (0..shape.rows).find_map(|row| {
            let column = at.checked_sub(self.row_counter(shape, row))?;
            (column < shape.columns).then_some((column, row))
        })
    }

    fn draw_text(&self, shape: &TextShape, picture: &mut Picture) {
        let maps = self.sequencer.regs[3];
        let font = |low: u8, high: u8| FONTS[usize::from(low & 3 | (high & 1) << 2)];
        // Attribute bit 3 picks map A.
        let fonts = [font(maps, maps >> 4), font(maps >> 2, maps >> 5)];
        let mode = self.attribute.regs[0x10];
        let cursor = self.cursor_at(shape);
        let underline = usize::from(self.crtc.regs[0x14] & 0x1f);
        let mut colours = [0; 16];
        for (value, colour) in (0..).zip(&mut colours) {
            *colour = self.attribute_colour(value);
        }
        let (pitch, width) = (self.row_pitch(), shape.char_width);
        // A line's dots, with a character more than is seen where it is panned.
        let mut dots = vec![0; (shape.columns + 1) * width];
        for (y, out) in picture.pixels.chunks_exact_mut(picture.width).enumerate() {
            let Source { first, line, pan } = self.source(y);
            let (row, line) = (line / shape.char_height, line % shape.char_height);
            for (column, dots) in dots.chunks_exact_mut(width).enumerate() {
                let counter = first + row * pitch + column;
                let [character, attribute] = self.cell(counter).to_le_bytes();
                let background =
                    if mode & ATTRIBUTE_BLINK != 0 { attribute >> 4 & 7 } else { attribute >> 4 };
                let fore = colours[usize::from(attribute & 0x0f)];
                let back = colours[usize::from(background)];
                let glyph = fonts[usize::from(attribute >> 3 & 1)] + usize::from(character) * 32;
                let ninth =
                    mode & ATTRIBUTE_LINE_GRAPHICS != 0 && (0xc0..0xe0).contains(&character);
                let bits = self.host.load((glyph + line) % PLANE_WORDS).to_le_bytes()[2];
                let mut bits = u16::from(bits) << 1 | u16::from(ninth && bits & 1 != 0);
                let has_cursor = cursor
                    .as_ref()
                    .is_some_and(|(at, lines)| *at == counter & 0xffff && lines.contains(&line));
                // Blue is underlined where that is on, as in the monochrome mode.
                if has_cursor || line == underline && attribute & 7 == 1 {
                    bits = 0x1ff;
                }
                for (n, pixel) in dots.iter_mut().enumerate() {
                    *pixel = if bits >> (8 - n) & 1 != 0 { fore } else { back };
                }
            }
            for (x, pixel) in out.iter_mut().enumerate() {
                *pixel = dots[x / shape.dots + pan];
            }
        }
    }

    /// The adapter's own graphics modes; each dot is `dots` wide.
    fn draw_graphics(&self, dots: usize, picture: &mut Picture) {
        let (pitch, row_lines) = (self.row_pitch(), self.row_lines());
        let palette: Vec<u32> = (0..16).map(|value| self.attribute_colour(value)).collect();
        let colours: Vec<u32> = (0..=255).map(|value| self.dac_colour(value)).collect();
        let shift = self.graphics.regs[5] >> 5 & 3;
        // A line's dots, with eight more than are seen where it is panned.
        let mut pixels = vec![0; (usize::from(self.crtc.regs[1]) + 2) * 8];
        for (y, out) in picture.pixels.chunks_exact_mut(picture.width).enumerate() {
            let Source { first, line, pan } = self.source(y);
            let (row, row_scan) = (line / row_lines, line % row_lines);
            for (clock, pixels) in pixels.chunks_exact_mut(8).enumerate() {
                let word = self.host.load(self.word_at(first + row * pitch + clock, row_scan));
                let planes = word.to_le_bytes();
                for (n, pixel) in pixels.iter_mut().enumerate() {
                    *pixel = match shift {
                        0 => {
                            let bit = |plane: usize| planes[plane] >> (7 - n) & 1;
                            let value = bit(0) | bit(1) << 1 | bit(2) << 2 | bit(3) << 3;
                            palette[usize::from(value)]
                        }
                        1 => {
                            // Two bits a pixel: even planes first, planes 2 and 3 on top.
                            let (plane, at) = (n / 4, 6 - 2 * (n % 4));
                            let low = planes[plane] >> at & 3;
                            let high = planes[plane + 2] >> at & 3;
                            palette[usize::from(low | high << 2)]
                        }
                        _ => colours[usize::from(planes[n / 2])],
                    };
                }
            }
            for (x, pixel) in out.iter_mut().enumerate() {
                *pixel = pixels[x / dots + pan];
            }
        }
    }

    fn draw_dispi(&self, mode: &super::dispi::Mode, picture: &mut Picture) {
        let palette: Vec<u32> = (0..16).map(|value| self.attribute_colour(value)).collect();
        let colours: Vec<u32> = (0..=255).map(|value| self.dac_colour(value)).collect();
        let bytes = mode.depth.div_ceil(8);
        let mut line = vec![0; mode.width * bytes];
        for (y, out) in picture.pixels.chunks_exact_mut(mode.width).enumerate() {
            let at = mode.start + y * mode.pitch;
            if mode.depth == 4 {
                for (x, pixel) in out.iter_mut().enumerate() {
                    let planes = self.host.load((at + x / 8) % PLANE_WORDS).to_le_bytes();
                    let bit = |plane: usize| planes[plane] >> (7 - x % 8) & 1;
                    let value = bit(0) | bit(1) << 1 | bit(2) << 2 | bit(3) << 3;
                    *pixel = palette[usize::from(value)];
                }
                continue;
            }
            self.host.copy_out(at, &mut line);
            for (pixel, bytes) in out.iter_mut().zip(line.chunks_exact(bytes)) {
                *pixel = match (mode.depth, bytes) {
                    (15, &[low, high]) => {
                        let value = u32::from(u16::from_le_bytes([low, high]));
                        five(value >> 10) << 16 | five(value >> 5) << 8 | five(value)
                    }
                    (_, &[low, high]) => {
                        let value = u32::from(u16::from_le_bytes([low, high]));
                        let green = value >> 5 & 0x3f;
                        five(value >> 11) << 16 | (green << 2 | green >> 4) << 8 | five(value)
                    }
                    (_, &[blue, green, red, ..]) => {
                        u32::from(red) << 16 | u32::from(green) << 8 | u32::from(blue)
                    }
                    (_, bytes) => colours[usize::from(bytes[0])],
                };
            }
        }
    }

    /// The colour of a four-bit value, by the attribute controller's palette.
    fn attribute_colour(&self, value: u8) -> u32 {
        let regs = &self.attribute.regs;
        let inner = regs[usize::from(value & regs[0x12] & 0x0f)] & 0x3f;
        let index = if regs[0x10] & ATTRIBUTE_COLOUR_SELECT != 0 {
            inner & 0x0f | (regs[0x14] & 0x0f) << 4
        } else {
            inner | (regs[0x14] & 0x0c) << 4
        };
        self.dac_colour(index)
    }

    fn dac_colour(&self, index: u8) -> u32 {
        let wide = self.dispi.eight_bit_dac();
        let colour = self.dac.colours[usize::from(index & self.dac.mask)];
        colour.into_iter().fold(0, |all, part| {
            let part = u32::from(part);
            all << 8 | if wide { part } else { part << 2 | part >> 4 }
        })
    }
}

/// Five bits as eight.
fn five(value: u32) -> u32 {
    let value = value & 0x1f;
    value << 3 | value >> 2
}

impl Picture {
    fn dark(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![0; width * height] }
    }
}

impl Text {
    /// A row's characters, without what code page 437 has beyond ASCII: that shows as spaces.
    #[must_use]
    pub fn row(&self, row: usize) -> String {
        let cells = self.cells.chunks(self.columns.max(1)).nth(row).unwrap_or(&[]);
        let text: String = cells
            .iter()
            .map(|cell| cell.to_le_bytes()[0])
            .map(|byte| if (0x20..0x7f).contains(&byte) { char::from(byte) } else { ' ' })
            .collect();
        text.trim_end().to_owned()
    }
}

impl std::fmt::Display for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (0..self.rows).try_for_each(|row| writeln!(f, "{}", self.row(row)))
    }
}
