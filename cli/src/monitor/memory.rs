//! `x` and `xp`: memory in the formats of QEMU's monitor.
//!
//! A format is `/COUNT`, a letter for the kind (x, d, u, o, c, i, s) and one for the size (b, h, w, g: 1, 2, 4 and 8
//! bytes), in any order, each optional. Pure functions.

use anyhow::{Context, Result, bail};
use xenolith_machine::inspect::{Held, Space};

/// Most items of one command: an answer that a person can scroll through.
const COUNT_MAX: usize = 65536;
/// Longest text that `s` looks for an end in.
const TEXT_MAX: usize = 4096;

/// What to show, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    pub count: usize,
    pub kind: char,
    /// Bytes of an item.
    pub size: usize,
}

impl Format {
    /// # Errors
    /// What is wrong with it, in one line.
    pub fn parse(text: &str) -> Result<Self> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let count = match &text[..digits] {
            "" => 1,
            number => number
                .parse()
                .ok()
                .filter(|&count| count <= COUNT_MAX)
                .with_context(|| format!("/{number}: at most {COUNT_MAX} at once"))?,
        };
        let (mut kind, mut size) = (None, None);
        for letter in text[digits..].chars() {
            let bytes = match letter {
                'b' => 1,
                'h' => 2,
                'w' => 4,
                'g' => 8,
                'x' | 'd' | 'u' | 'o' | 'c' | 'i' | 's' => {
                    kind = Some(letter);
                    continue;
                }
                _ => bail!("/{text}: {letter:?} is neither a kind (xduocis) nor a size (bhwg)"),
            };
            size = Some(bytes);
        }
        let kind = kind.unwrap_or('x');
        let size = size.unwrap_or(if kind == 'c' { 1 } else { 4 });
        Ok(Self { count, kind, size })
    }

    /// One item.
    pub fn show(self, value: u64) -> String {
        let bits = 8 * self.size as u32;
        let value = value & u64::MAX >> (64 - bits);
        // Wide enough for any item of this kind, so that columns stay straight.
        match self.kind {
            'd' => {
                let signed = (value << (64 - bits)) as i64 >> (64 - bits);
                format!("{signed:>width$}", width = [4, 6, 11, 20][self.size.ilog2() as usize])
            }
            'u' => format!("{value:>width$}", width = [3, 5, 10, 20][self.size.ilog2() as usize]),
            'o' => format!("{value:#0width$o}", width = [5, 8, 13, 24][self.size.ilog2() as usize]),
            'c' => match u8::try_from(value) {
                Ok(byte) => format!("{:>6}", format!("'{}'", byte.escape_ascii())),
                Err(_) => format!("{value:#x}"),
            },
            _ => format!("{value:#0width$x}", width = 2 + 2 * self.size),
        }
    }
}

/// Memory from `address` on.
pub fn dump(held: &Held, cpu: usize, space: Space, format: Format, address: u64) -> String {
    match format.kind {
        'i' => return held.disassemble(cpu, space, address, format.count),
        's' => return text(held, cpu, space, address),
        _ => {}
    }
    let on_a_line = (16 / format.size).min(if format.kind == 'c' { 8 } else { 16 });
    let mut out = String::new();
    for n in 0..format.count {
        let at = address.wrapping_add((n * format.size) as u64);
        let mut bytes = [0; 8];
        if let Err(unreadable) = held.read(cpu, space, at, &mut bytes[..format.size]) {
            if n % on_a_line != 0 {
                out.push('\n');
            }
            return format!("{out}{unreadable}\n");
        }
        if n % on_a_line == 0 {
            out += &format!("{at:016x}:");
        }
        out.push(' ');
        out += &format.show(u64::from_le_bytes(bytes));
        if (n + 1) % on_a_line == 0 || n + 1 == format.count {
            out.push('\n');
        }
    }
    out
}

/// A text that ends with a zero byte.
fn text(held: &Held, cpu: usize, space: Space, address: u64) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < TEXT_MAX {
        let mut byte = [0];
        let at = address.wrapping_add(bytes.len() as u64);
        if let Err(unreadable) = held.read(cpu, space, at, &mut byte) {
            return format!("\"{}\"...\n{unreadable}\n", bytes.escape_ascii());
        }
        if byte == [0] {
            return format!("\"{}\"\n", bytes.escape_ascii());
        }
        bytes.extend(byte);
    }
    format!("\"{}\"...\n", bytes.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_qemus() {
        let parse = |text| Format::parse(text).ok().map(|it| (it.count, it.kind, it.size));
        assert_eq!(parse(""), Some((1, 'x', 4)));
        assert_eq!(parse("10i"), Some((10, 'i', 4)));
        assert_eq!(parse("4xg"), Some((4, 'x', 8)));
        assert_eq!(parse("8hd"), Some((8, 'd', 2)));
        assert_eq!(parse("c"), Some((1, 'c', 1)));
        for bad in ["4q", "99999999", "99999999999999999999999", "4 x", "-1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn items_have_their_width() {
        let show = |text, value| Format::parse(text).expect("sound").show(value);
        assert_eq!(show("xb", 0xffff_ff0a), "0x0a");
        assert_eq!(show("xg", 1), "0x0000000000000001");
        assert_eq!(show("db", 0xff), "  -1");
        assert_eq!(show("ug", u64::MAX), "18446744073709551615");
        assert_eq!(show("dg", u64::MAX), "                  -1");
        assert_eq!(show("oh", 8), "0o000010");
        assert_eq!(show("c", 0x41).trim(), "'A'");
        assert_eq!(show("c", 0x0a).trim(), "'\\n'");
    }
}
