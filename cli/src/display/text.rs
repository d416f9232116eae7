//! A text screen as a terminal shows it.
//!
//! Problem: a terminal has another character set, other colours and another size than the guest's screen, and is
//! slow. Scheme: [`Painter`] keeps what the terminal shows and gives the control sequences that turn it into the
//! next screen: only cells that differ. Code page 437 becomes Unicode; the sixteen usual colours become the
//! terminal's own sixteen, others exact ones. A window that is too small shows the part with the cursor. No
//! invariants but that; pure. Source: ECMA-48; IBM, "Code Page 437"; xterm's control sequences for colours.

use std::fmt::Write;

use xenolith_devices::vga::Text;

/// Characters of code page 437, those that a screen shows for control characters too.
const CODE_PAGE: &str = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼ !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~⌂ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// The sixteen colours as firmware sets them, 0xRRGGBB.
const USUAL: [u32; 16] = [
    0x00_0000, 0x00_00aa, 0x00_aa00, 0x00_aaaa, 0xaa_0000, 0xaa_00aa, 0xaa_5500, 0xaa_aaaa,
    0x55_5555, 0x55_55ff, 0x55_ff55, 0x55_ffff, 0xff_5555, 0xff_55ff, 0xff_ff55, 0xff_ffff,
];

/// Bits of a character's attribute.
const BLINK: u8 = 0x80;

/// A cell of the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    character: char,
    foreground: u32,
    background: u32,
    blinks: bool,
}

/// What the terminal shows.
#[derive(Debug)]
pub struct Painter {
    characters: Vec<char>,
    shown: Vec<Cell>,
    /// Columns and rows of the terminal that are used.
    window: (usize, usize),
    cursor: Option<(usize, usize)>,
    /// First row of the screen that is seen.
    top: usize,
}

impl Default for Painter {
    fn default() -> Self {
        let characters = CODE_PAGE.chars().collect();
        Self { characters, shown: Vec::new(), window: (0, 0), cursor: None, top: 0 }
    }
}

impl Painter {
    /// The terminal shows nothing that is known.
    pub fn forget(&mut self) {
        self.shown.clear();
        self.window = (0, 0);
    }

    /// The bytes that make a terminal of `window` columns and rows show `text`.
    pub fn paint(&mut self, text: &Text, window: (usize, usize)) -> String {
        let size = (text.columns.min(window.0), text.rows.min(window.1));
        let mut out = String::new();
        // Writing to a String can't fail.
        if self.window != size || self.shown.is_empty() {
            out += "\x1b[0m\x1b[2J";
            self.window = size;
            self.shown.clear();
        }
        let (columns, rows) = size;
        let hidden = text.rows - rows;
        // No further than it must for the cursor to be seen.
        if let Some((_, row)) = text.cursor {
            self.top = self.top.clamp((row + 1).saturating_sub(rows.max(1)), row);
        }
        self.top = self.top.min(hidden);
        let mut colours = None;
        let mut next = Vec::with_capacity(columns * rows);
        for row in 0..rows {
            let mut at = None;
            for column in 0..columns {
                let cell = self.cell(text, text.cells[(self.top + row) * text.columns + column]);
                if self.shown.get(next.len()) != Some(&cell) {
                    if at != Some(column) {
                        let _ = write!(out, "\x1b[{};{}H", row + 1, column + 1);
                    }
                    let style = (cell.foreground, cell.background, cell.blinks);
                    if colours != Some(style) {
                        out += "\x1b[0";
                        colour(&mut out, cell.foreground, false);
                        colour(&mut out, cell.background, true);
                        out += if cell.blinks { ";5m" } else { "m" };
                        colours = Some(style);
                    }
                    out.push(cell.character);
                    at = Some(column + 1);
                }
                next.push(cell);
            }
        }
        self.shown = next;
        let cursor =
            text.cursor.and_then(|(column, row)| Some((column, row.checked_sub(self.top)?)));
        let cursor = cursor.filter(|&(column, row)| column < columns && row < rows);
        if !out.is_empty() || cursor != self.cursor {
            match cursor {
                Some((column, row)) => {
                    let _ = write!(out, "\x1b[{};{}H\x1b[?25h", row + 1, column + 1);
                }
                None => out += "\x1b[?25l",
            }
        }
        self.cursor = cursor;
        out
    }

    fn cell(&self, text: &Text, cell: u16) -> Cell {
        let [character, attribute] = cell.to_le_bytes();
        let background = if text.bright_backgrounds { attribute >> 4 } else { attribute >> 4 & 7 };
        Cell {
            character: self.characters[usize::from(character)],
            foreground: text.colours[usize::from(attribute & 15)],
            background: text.colours[usize::from(background)],
            blinks: !text.bright_backgrounds && attribute & BLINK != 0,
        }
    }
}

/// A parameter of the sequence that sets colours.
fn colour(out: &mut String, colour: u32, background: bool) {
    let base = if background { 10 } else { 0 };
    let _ = match USUAL.iter().position(|&usual| usual == colour) {
        Some(n) => {
            // Blue and red have changed places.
            let number = (n & 2) | (n & 1) << 2 | (n >> 2 & 1);
            write!(out, ";{}", base + number + if n < 8 { 30 } else { 90 })
        }
        None => {
            let [blue, green, red, _] = colour.to_le_bytes();
            write!(out, ";{};2;{red};{green};{blue}", 38 + base)
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(columns: usize, rows: usize) -> Text {
        Text {
            columns,
            rows,
            cells: vec![0x0720; columns * rows],
            cursor: None,
            colours: USUAL,
            bright_backgrounds: false,
        }
    }

    #[test]
    fn every_character_has_its_unicode() {
        let all: Vec<char> = CODE_PAGE.chars().collect();
        assert_eq!(all.len(), 256);
        assert_eq!((all[1], all[0x41], all[0x7f]), ('☺', 'A', '⌂'));
        assert_eq!((all[0x84], all[0xb0], all[0xc9], all[0xdb]), ('ä', '░', '╔', '█'));
        assert_eq!((all[0xe1], all[0xfe]), ('ß', '■'));
    }

    #[test]
    fn only_what_differs_is_painted() {
        let mut painter = Painter::default();
        let mut screen = text(4, 2);
        let first = painter.paint(&screen, (80, 24));
        assert!(
            first.starts_with("\x1b[0m\x1b[2J\x1b[1;1H\x1b[0;37;40m    \x1b[2;1H"),
            "{first:?}"
        );
        assert_eq!(painter.paint(&screen, (80, 24)), "");
        // Yellow on blue, blinking; then a colour that no terminal has.
        screen.cells[5] = 0x9ec9;
        assert_eq!(painter.paint(&screen, (80, 24)), "\x1b[2;2H\x1b[0;93;44;5m╔\x1b[?25l");
        screen.colours[14] = 0x01_0203;
        screen.bright_backgrounds = true;
        let painted = painter.paint(&screen, (80, 24));
        assert_eq!(painted, "\x1b[2;2H\x1b[0;38;2;1;2;3;104m╔\x1b[?25l");
        screen.cursor = Some((3, 0));
        assert_eq!(painter.paint(&screen, (80, 24)), "\x1b[1;4H\x1b[?25h");
        painter.forget();
        assert!(painter.paint(&screen, (80, 24)).contains("\x1b[2J"));
    }

    #[test]
    fn a_small_window_follows_the_cursor() {
        let mut painter = Painter::default();
        let mut screen = text(6, 25);
        for row in 0..25 {
            screen.cells[row * 6] = 0x0741 + row as u16;
        }
        screen.cursor = Some((0, 0));
        let painted = painter.paint(&screen, (3, 24));
        assert!(painted.contains("A  ") && painted.contains('X') && !painted.contains('Y'));
        screen.cursor = Some((5, 24));
        let painted = painter.paint(&screen, (3, 24));
        assert!(painted.contains('Y') && !painted.contains('A'), "{painted:?}");
        assert!(painted.ends_with("\x1b[?25l"), "the cursor is beyond the right edge");
        painter.paint(&screen, (0, 0));
        painter.paint(&text(0, 0), (80, 24));
    }
}
