//! Values in case files: numbers, addresses, typed vector contents.
//!
//! Problem: files are read by people, who want `DATA+8` and `f32:1.5,nan`, and compared bit for bit.
//! Scheme: a term is a hexadecimal or decimal number, a symbol of `layout.inc` or a `.label` of the case,
//! joined by + and -; vector contents are either one hexadecimal number or a list with an element type,
//! lowest element first. [`View`] remembers the element type, so that blessing writes values the way
//! the inputs are written. Invariant: formatting and parsing are inverse. Pure functions.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use super::layout;

/// `.label` to address; the empty map before assembly.
pub type Labels = BTreeMap<String, u64>;

/// Evaluates a sum of terms.
///
/// # Errors
/// An unknown symbol or a malformed number.
pub fn evaluate(text: &str, labels: &Labels) -> Result<u64> {
    let mut total = 0u64;
    let mut rest = text.trim();
    ensure!(!rest.is_empty(), "a value is missing");
    let mut negative = false;
    if let Some(after) = rest.strip_prefix('-') {
        negative = true;
        rest = after;
    }
    loop {
        let end = rest.find(['+', '-']).unwrap_or(rest.len());
        let value = term(rest[..end].trim(), labels)?;
        total = if negative { total.wrapping_sub(value) } else { total.wrapping_add(value) };
        if end == rest.len() {
            return Ok(total);
        }
        negative = rest.as_bytes()[end] == b'-';
        rest = &rest[end + 1..];
    }
}

fn term(text: &str, labels: &Labels) -> Result<u64> {
    if text.starts_with('.') {
        return labels.get(text).copied().with_context(|| format!("no label {text}"));
    }
    if let Some(digits) = text.strip_prefix("0x") {
        return u64::from_str_radix(&digits.replace('_', ""), 16)
            .with_context(|| format!("not a number: {text}"));
    }
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return text.parse().with_context(|| format!("not a number: {text}"));
    }
    layout::symbols().get(text).copied().with_context(|| format!("no symbol {text}"))
}

/// Writes a number, by region and offset where it lies in one (`symbolic`).
#[must_use]
pub fn number(value: u64, symbolic: bool) -> String {
    if symbolic {
        for (name, base, len) in layout::named_regions() {
            if value == base {
                return name.to_owned();
            }
            if value > base && value - base < len {
                return format!("{name}+{:#x}", value - base);
            }
        }
    }
    if value < 10 { value.to_string() } else { format!("{value:#x}") }
}

/// Writes a memory address: as [`number`], with the 16-bit segments named too.
#[must_use]
pub fn address(value: u64) -> String {
    for name in ["CODE16", "DATA16", "EXTRA16", "STACK16"] {
        let base = layout::symbol(name);
        if (base..base + 0x10000).contains(&value) {
            return format!("{name}+{:#x}", value - base);
        }
    }
    number(value, true)
}

/// How vector contents are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum View {
    /// One number.
    #[default]
    Hex,
    Unsigned(usize),
    F32,
    F64,
}

impl View {
    fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "u8" => Self::Unsigned(1),
            "u16" => Self::Unsigned(2),
            "u32" => Self::Unsigned(4),
            "u64" => Self::Unsigned(8),
            "f32" => Self::F32,
            "f64" => Self::F64,
            _ => return None,
        })
    }
}

/// Parses vector contents of `len` bytes: `HEX`, or `TYPE:element,...`; a short list is repeated.
///
/// # Errors
/// A malformed or surplus element.
pub fn vector(text: &str, len: usize) -> Result<(Vec<u8>, View)> {
    let Some((name, list)) = text.split_once(':') else {
        let digits = text.strip_prefix("0x").unwrap_or(text).replace('_', "");
        ensure!(digits.len() <= 2 * len, "{text} is longer than {len} bytes");
        let digits = format!("{digits:0>width$}", width = 2 * len);
        let mut bytes = (0..len)
            .map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16))
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| format!("not a hexadecimal number: {text}"))?;
        bytes.reverse();
        return Ok((bytes, View::Hex));
    };
    let view = View::by_name(name).with_context(|| format!("no element type {name}"))?;
    let mut bytes = Vec::new();
    for element in list.split(',') {
        bytes.extend(parse_element(element, view)?);
    }
    let unit = bytes.len();
    ensure!(unit <= len && len.is_multiple_of(unit), "{unit} bytes of elements don't fill {len}");
    Ok((bytes.repeat(len / unit), view))
}

fn parse_element(text: &str, view: View) -> Result<Vec<u8>> {
    let text = text.trim();
    let raw = |len: usize| -> Result<Vec<u8>> {
        let value = evaluate(text, &Labels::new())?;
        let signed_fits = (value as i64) < 0 && (value as i64) >= -(1i64 << (8 * len.min(7)));
        ensure!(len == 8 || value >> (8 * len) == 0 || signed_fits, "{text} is too large");
        Ok(value.to_le_bytes()[..len].to_vec())
    };
    match view {
        View::Hex => bail!("an untyped value has one element"),
        View::Unsigned(len) => raw(len),
        View::F32 if text.starts_with("0x") => raw(4),
        View::F32 => Ok(text.parse::<f32>().context("not a number")?.to_le_bytes().to_vec()),
        View::F64 if text.starts_with("0x") => raw(8),
        View::F64 => Ok(text.parse::<f64>().context("not a number")?.to_le_bytes().to_vec()),
    }
}

/// Writes vector contents.
#[must_use]
pub fn format_vector(bytes: &[u8], view: View) -> String {
    let unit = match view {
        View::Hex => {
            let mut text = String::new();
            for (i, byte) in bytes.iter().enumerate().rev() {
                text.push_str(&format!("{byte:02x}"));
                if i % 8 == 0 && i != 0 {
                    text.push('_');
                }
            }
            return text;
        }
        View::Unsigned(len) => len,
        View::F32 => 4,
        View::F64 => 8,
    };
    let name = match view {
        View::F32 => "f32".to_owned(),
        View::F64 => "f64".to_owned(),
        _ => format!("u{}", 8 * unit),
    };
    let elements: Vec<String> =
        bytes.chunks(unit).map(|chunk| format_element(chunk, view)).collect();
    format!("{name}:{}", elements.join(","))
}

fn format_element(chunk: &[u8], view: View) -> String {
    let mut word = [0; 8];
    word[..chunk.len()].copy_from_slice(chunk);
    let bits = u64::from_le_bytes(word);
    let float = match view {
        View::F32 => {
            let text = format!("{:?}", f32::from_bits(bits as u32));
            text.parse::<f32>().ok().filter(|v| u64::from(v.to_bits()) == bits).map(|_| text)
        }
        View::F64 => {
            let text = format!("{:?}", f64::from_bits(bits));
            text.parse::<f64>().ok().filter(|v| v.to_bits() == bits).map(|_| text)
        }
        _ => None,
    };
    float.map_or_else(|| number(bits, false), |text| text.to_lowercase())
}

/// Parses an x87 register: a decimal number that an f64 holds, or `EXPONENT_MANTISSA` in hexadecimal.
///
/// # Errors
/// Neither of the two.
pub fn x87(text: &str) -> Result<[u8; 10]> {
    if let Some((exponent, mantissa)) = text.split_once('_') {
        let mut bytes = [0; 10];
        bytes[8..].copy_from_slice(&u16::from_str_radix(exponent, 16)?.to_le_bytes());
        bytes[..8].copy_from_slice(&u64::from_str_radix(mantissa, 16)?.to_le_bytes());
        return Ok(bytes);
    }
    Ok(extend(text.parse::<f64>().with_context(|| format!("not a number: {text}"))?))
}

/// Writes an x87 register.
#[must_use]
pub fn format_x87(bytes: &[u8]) -> String {
    let mantissa = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes were taken"));
    let exponent = u16::from_le_bytes([bytes[8], bytes[9]]);
    let power = i32::from(exponent & 0x7fff) - 16383;
    if mantissa >> 63 == 1 && (-1000..1000).contains(&power) && mantissa & 0x7ff == 0 {
        let value = mantissa as f64 / 2f64.powi(63) * 2f64.powi(power);
        let value = if exponent & 0x8000 != 0 { -value } else { value };
        let text = format!("{value:?}");
        if text.len() <= 12 {
            return text;
        }
    }
    if mantissa == 0 && exponent & 0x7fff == 0 {
        return if exponent == 0 { "0.0" } else { "-0.0" }.to_owned();
    }
    format!("{exponent:04x}_{mantissa:016x}")
}

/// The x87 form of a double (SDM vol. 1, "Floating-Point Data Types").
fn extend(value: f64) -> [u8; 10] {
    let bits = value.to_bits();
    let sign = ((bits >> 63) as u16) << 15;
    let exponent = ((bits >> 52) & 0x7ff) as u16;
    let fraction = bits & ((1 << 52) - 1);
    let (exponent, mantissa) = match (exponent, fraction) {
        (0, 0) => (0, 0),
        (0, _) => {
            let shift = fraction.leading_zeros() as u16;
            (16383 - 1022 + 11 - shift, fraction << shift)
        }
        (0x7ff, _) => (0x7fff, 1 << 63 | fraction << 11),
        _ => (exponent + 16383 - 1023, 1 << 63 | fraction << 11),
    };
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&mantissa.to_le_bytes());
    bytes[8..].copy_from_slice(&(sign | exponent).to_le_bytes());
    bytes
}

/// Flag names and their bits, in the order they are written.
const FLAGS: [(&str, u64); 15] = [
    ("CF", 1),
    ("PF", 4),
    ("AF", 0x10),
    ("ZF", 0x40),
    ("SF", 0x80),
    ("TF", 0x100),
    ("IF", 0x200),
    ("DF", 0x400),
    ("OF", 0x800),
    ("NT", 0x4000),
    ("VM", 0x2_0000),
    ("AC", 0x4_0000),
    ("VIF", 0x8_0000),
    ("VIP", 0x10_0000),
    ("ID", 0x20_0000),
];
const IOPL: u64 = 0x3000;

/// Parses `CF,ZF` on top of `base`; `-IF` clears a bit of it, `none` adds nothing, `IOPLn` sets the level.
///
/// # Errors
/// An unknown name.
pub fn flags(text: &str, base: u64) -> Result<u64> {
    if text == "none" {
        return Ok(base);
    }
    text.split(',').try_fold(base, |bits, name| {
        if let Some(level) = name.strip_prefix("IOPL") {
            return Ok(bits & !IOPL | level.parse::<u64>().context("IOPL0 to IOPL3")? << 12);
        }
        let bare = name.strip_prefix('-').unwrap_or(name);
        let bit = FLAGS.iter().find(|(known, _)| *known == bare);
        let bit = bit.with_context(|| format!("no flag {name}"))?.1;
        Ok(if bare == name { bits | bit } else { bits & !bit })
    })
}

/// Writes flags as [`flags`] reads them, without RF and those in `hidden`.
#[must_use]
pub fn format_flags(value: u64, base: u64, hidden: u64) -> String {
    let mut names = Vec::new();
    for (name, bit) in FLAGS {
        match (value & !hidden & bit != 0, base & !hidden & bit != 0) {
            (true, false) => names.push(name.to_owned()),
            (false, true) => names.push(format!("-{name}")),
            _ => {}
        }
    }
    if (value ^ base) & !hidden & IOPL != 0 {
        names.push(format!("IOPL{}", (value & IOPL) >> 12));
    }
    if names.is_empty() { "none".to_owned() } else { names.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_symbols_and_numbers() {
        let labels = Labels::from([(".here".to_owned(), 0x40)]);
        assert_eq!(evaluate("DATA+0x10-1", &labels).ok(), Some(layout::symbol("DATA") + 15));
        assert_eq!(evaluate("-1", &labels).ok(), Some(u64::MAX));
        assert_eq!(evaluate(".here+2", &labels).ok(), Some(0x42));
        assert!(evaluate("NOWHERE", &labels).is_err());
    }

    #[test]
    fn vectors_read_and_write_alike() {
        for text in [
            "f32:1.0,-0.0,inf,0xffc00001",
            "u8:0,1,2,3,4,5,6,7,8,9,0xa,0xb,0xc,0xd,0xe,0xff",
            "f64:0.1,1e300",
            "0011223344556677_8899aabbccddeeff",
        ] {
            let (bytes, view) = vector(text, 16).expect("these are well-formed");
            assert_eq!(format_vector(&bytes, view), text);
        }
        assert!(vector("u32:1,2,3", 16).is_err());
    }

    #[test]
    fn x87_numbers_read_and_write_alike() {
        for text in ["1.0", "-2.5", "0.0", "-0.0", "7fff_c000000000000000", "3ffd_aaaaaaaaaaaaaaab"]
        {
            assert_eq!(format_x87(&x87(text).expect("these are well-formed")), text);
        }
        assert_eq!(x87("1").ok(), Some([0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]));
    }
}
