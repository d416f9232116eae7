//! From pictures to a client's pixels: which parts differ, and how they are sent.
//!
//! Scheme: a picture is cut into tiles of 16 by 16; tiles that differ from what the client has make rectangles
//! along a row of tiles. A rectangle goes out as raw pixels or by hextile, where a tile of one or two colours,
//! as most of a text screen is, takes a few bytes. Pure functions.
//! Source: RFC 6143, "Pixel Format Data Structure", "Raw Encoding", "Hextile Encoding".

use std::io::{self, Read};

use xenolith_devices::vga::Picture;

pub const TILE: usize = 16;

pub const RAW: i32 = 0;
pub const HEXTILE: i32 = 5;

const HEXTILE_RAW: u8 = 1;
const HEXTILE_BACKGROUND: u8 = 2;
const HEXTILE_FOREGROUND: u8 = 4;
const HEXTILE_SUBRECTS: u8 = 8;
const HEXTILE_COLOURED: u8 = 16;

/// How a client wants its pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelFormat {
    /// 1, 2 or 4.
    bytes: usize,
    big_endian: bool,
    /// Largest value and shift of red, green and blue.
    parts: [(u16, u8); 3],
    /// The client looks colours up in a map that we give it.
    pub mapped: bool,
}

impl PixelFormat {
    /// What we offer: 0x00RRGGBB, the lowest byte first.
    pub const OURS: Self =
        Self { bytes: 4, big_endian: false, parts: [(255, 16), (255, 8), (255, 0)], mapped: false };

    /// Three bits of red and green, two of blue: the map of [`Self::colour_map`].
    const MAPPED: Self =
        Self { bytes: 1, big_endian: false, parts: [(7, 5), (7, 2), (3, 0)], mapped: true };

    /// The sixteen bytes of the protocol.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut out = [0; 16];
        out[0] = (8 * self.bytes) as u8;
        out[1] = if self.bytes == 4 { 24 } else { out[0] };
        out[2] = self.big_endian.into();
        out[3] = u8::from(!self.mapped);
        for (n, (max, shift)) in self.parts.into_iter().enumerate() {
            out[4 + 2 * n..6 + 2 * n].copy_from_slice(&max.to_be_bytes());
            out[10 + n] = shift;
        }
        out
    }

    /// # Errors
    /// There are no such pixels.
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut bytes = [0; 16];
        from.read_exact(&mut bytes)?;
        let size = match bytes[0] {
            8 => 1,
            16 => 2,
            32 => 4,
            _ => return Err(io::Error::other("pixels of neither 8, 16 nor 32 bits")),
        };
        if bytes[3] == 0 {
            return if size == 1 {
                Ok(Self::MAPPED)
            } else {
                Err(io::Error::other("a colour map for more than 256 colours"))
            };
        }
        let part =
            |n: usize| (u16::from_be_bytes([bytes[4 + 2 * n], bytes[5 + 2 * n]]), bytes[10 + n]);
        let parts = [part(0), part(1), part(2)];
        if parts.iter().any(|&(_, shift)| usize::from(shift) >= 8 * size) {
            return Err(io::Error::other("a colour beyond its pixel"));
        }
        Ok(Self { bytes: size, big_endian: bytes[2] != 0, parts, mapped: false })
    }

    /// A SetColourMapEntries message for [`Self::MAPPED`].
    pub fn colour_map() -> Vec<u8> {
        let mut message = vec![1, 0, 0, 0, 1, 0];
        for index in 0..=255u16 {
            for (max, shift) in Self::MAPPED.parts {
                let value = u32::from(index >> shift & max) * 0xffff / u32::from(max);
                message.extend((value as u16).to_be_bytes());
            }
        }
        message
    }

    /// Appends a pixel, 0xRRGGBB.
    fn put(self, out: &mut Vec<u8>, pixel: u32) {
        let mut value = 0;
        for (n, (max, shift)) in self.parts.into_iter().enumerate() {
            let part = pixel >> (16 - 8 * n) & 0xff;
            // The nearest of the client's values; 255 becomes its largest.
            value |= ((part * u32::from(max) + 127) / 255) << shift;
        }
        let bytes = value.to_le_bytes();
        if self.big_endian {
            out.extend(bytes[..self.bytes].iter().rev());
        } else {
            out.extend(&bytes[..self.bytes]);
        }
    }
}

/// A part of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    pub x: usize,
    pub y: usize,
    pub width: usize,
    pub height: usize,
}

fn line(picture: &Picture, rect: Rect, y: usize) -> &[u32] {
    &picture.pixels[(rect.y + y) * picture.width + rect.x..][..rect.width]
}

/// What of `new` differs from `old`, which has the same size.
pub fn differences(old: &Picture, new: &Picture) -> Vec<Rect> {
    let mut rects = Vec::new();
    for y in (0..new.height).step_by(TILE) {
        let height = TILE.min(new.height - y);
        let mut run: Option<Rect> = None;
        for x in (0..new.width).step_by(TILE) {
            let tile = Rect { x, y, width: TILE.min(new.width - x), height };
            let same = (0..height).all(|n| line(old, tile, n) == line(new, tile, n));
            match (&mut run, same) {
                (Some(run), false) => run.width += tile.width,
                (None, false) => run = Some(tile),
                (_, true) => rects.extend(run.take()),
            }
        }
        rects.extend(run);
    }
    rects
}

/// Appends a rectangle with its header.
pub fn put(out: &mut Vec<u8>, picture: &Picture, rect: Rect, format: PixelFormat, hextile: bool) {
    let Rect { x, y, width, height } = rect;
    header(out, [x, y, width, height], if hextile { HEXTILE } else { RAW });
    if !hextile {
        for n in 0..height {
            line(picture, rect, n).iter().for_each(|&pixel| format.put(out, pixel));
        }
        return;
    }
    for y in (rect.y..rect.y + height).step_by(TILE) {
        for x in (rect.x..rect.x + width).step_by(TILE) {
            let width = TILE.min(rect.x + rect.width - x);
            let height = TILE.min(rect.y + rect.height - y);
            put_tile(out, picture, Rect { x, y, width, height }, format);
        }
    }
}

/// A rectangle's header. Pseudo-encodings mean other things by the numbers.
pub fn header(out: &mut Vec<u8>, numbers: [usize; 4], encoding: i32) {
    for number in numbers {
        out.extend(u16::try_from(number).unwrap_or(u16::MAX).to_be_bytes());
    }
    out.extend(encoding.to_be_bytes());
}

/// A hextile tile: its commonest colour as the background, and runs of other colours along its lines.
fn put_tile(out: &mut Vec<u8>, picture: &Picture, tile: Rect, format: PixelFormat) {
    let mut counts: Vec<(u32, usize)> = Vec::new();
    for n in 0..tile.height {
        for &pixel in line(picture, tile, n) {
            match counts.iter_mut().find(|(known, _)| *known == pixel) {
                Some((_, count)) => *count += 1,
                None => counts.push((pixel, 1)),
            }
        }
        // A photograph: looking for runs would be in vain.
        if counts.len() > TILE {
            return put_raw_tile(out, picture, tile, format);
        }
    }
    counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    let background = counts.first().map_or(0, |&(pixel, _)| pixel);
    let start = out.len();
    let foreground = match counts[..] {
        [_] => {
            out.push(HEXTILE_BACKGROUND);
            return format.put(out, background);
        }
        [_, (pixel, _)] => Some(pixel),
        _ => None,
    };
    out.push(
        HEXTILE_BACKGROUND
            | HEXTILE_SUBRECTS
            | if foreground.is_some() { HEXTILE_FOREGROUND } else { HEXTILE_COLOURED },
    );
    format.put(out, background);
    if let Some(pixel) = foreground {
        format.put(out, pixel);
    }
    let count_at = out.len();
    out.push(0);
    let mut count = 0;
    for y in 0..tile.height {
        let mut x = 0;
        for run in line(picture, tile, y).chunk_by(|a, b| a == b) {
            if run[0] != background {
                if foreground.is_none() {
                    format.put(out, run[0]);
                }
                // Sizes less one; both are at most 16.
                out.extend([(x << 4 | y) as u8, ((run.len() - 1) << 4) as u8]);
                count += 1;
            }
            x += run.len();
        }
    }
    let raw = 1 + tile.width * tile.height * format.bytes;
    match u8::try_from(count) {
        Ok(count) if out.len() - start <= raw => out[count_at] = count,
        _ => {
            out.truncate(start);
            put_raw_tile(out, picture, tile, format);
        }
    }
}

fn put_raw_tile(out: &mut Vec<u8>, picture: &Picture, tile: Rect, format: PixelFormat) {
    out.push(HEXTILE_RAW);
    for n in 0..tile.height {
        line(picture, tile, n).iter().for_each(|&pixel| format.put(out, pixel));
    }
}
