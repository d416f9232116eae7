//! The .xz file of a kernel.
//!
//! Problem: most kernels are packed so, and unpacking one is a third of what a boot costs; the general decoder spends a
//! good part of that on its checksum, its filter and small pages. Scheme: the usual file, a single block of LZMA2 with
//! or without the x86 filter and with a CRC32 or no check, is taken apart here from both ends; its data is then
//! decoded a piece at a time, so that filter ([`x86`]) and checksum find the piece in the processor's cache. Any other
//! file is left to the library. Invariants: what is found here the library accepts too, if its data is sound;
//! everything but the data is checked before the decoder starts. Any thread.
//!
//! Source: The .xz File Format, sections 2, 3 and 5.3.

mod lzma2;
mod x86;

use super::{beside_populating, likely_range, u32_at};
use lzma2::{Decoder, Room};
use x86::Filter;

/// Of a stream's header, and of its footer.
const FRAME_BYTES: usize = 12;
const MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
const FOOTER_MAGIC: [u8; 2] = [b'Y', b'Z'];
const X86: u64 = 0x04;
const LZMA2: u64 = 0x21;
/// Decoded at once: the filter and the checksum come while it is still in the second-level cache.
const PIECE_BYTES: usize = 128 << 10;

/// The only block of a file.
#[derive(Debug)]
pub struct Block<'a> {
    /// LZMA2 data.
    data: &'a [u8],
    window_bytes: u32,
    filter: Option<Filter>,
    crc32: Option<u32>,
    /// Unpacked, says the index.
    bytes: usize,
}

impl<'a> Block<'a> {
    /// `None` if the file isn't just a stream with one block of the usual kind.
    pub fn of(file: &'a [u8]) -> Option<Self> {
        let (header, rest) = file.split_at_checked(FRAME_BYTES)?;
        let (rest, footer) = rest.split_at_checked(rest.len().checked_sub(FRAME_BYTES)?)?;
        let flags = sealed(header.strip_prefix(&MAGIC)?)?;
        let check_bytes = match flags {
            [0, 0] => 0,
            [0, 1] => 4,
            _ => return None,
        };
        let (sizes, magic) = footer.split_at(FRAME_BYTES - FOOTER_MAGIC.len());
        let is_whole = magic == FOOTER_MAGIC
            && sizes[8..] == *flags
            && u32_at(sizes, 0)? == crc32fast::hash(&sizes[4..]);
        let index_bytes = (u32_at(sizes, 4)? as usize).checked_add(1)?.checked_mul(4)?;
        if !is_whole {
            return None;
        }

        let (block, index) = rest.split_at_checked(rest.len().checked_sub(index_bytes)?)?;
        let mut index = Fields(sealed(index)?);
        // The index's indicator, and the number of blocks.
        if (index.byte()?, index.number()?) != (0, 1) {
            return None;
        }
        let (packed_bytes, bytes) = (index.number()?, index.number()?);
        let unpacked = usize::try_from(bytes).ok()?;
        let is_padded = |padding: &[u8]| padding.iter().all(|&byte| byte == 0);
        if index.0.len() > 3 || !is_padded(index.0) {
            return None;
        }

        let header_bytes = (usize::from(*block.first()?) + 1) * 4;
        let (header, body) = block.split_at_checked(header_bytes)?;
        let (body, check) = body.split_at_checked(body.len().checked_sub(check_bytes)?)?;
        let around = (header_bytes + check_bytes) as u64;
        let data_bytes = packed_bytes.checked_sub(around).filter(|&bytes| bytes > 0)?;
        let (data, padding) = body.split_at_checked(usize::try_from(data_bytes).ok()?)?;
        if padding.len() > 3 || !body.len().is_multiple_of(4) || !is_padded(padding) {
            return None;
        }
        let mut header = Fields(sealed(header)?.get(1..)?);
        let flags = header.byte()?;
        let same = |header: &mut Fields<'_>, bit: u8, size: u64| {
            Some(flags & bit == 0 || header.number()? == size)
        };
        if flags & 0x3c != 0
            || !same(&mut header, 0x40, data_bytes)?
            || !same(&mut header, 0x80, bytes)?
        {
            return None;
        }
        let filter = match flags & 3 {
            0 => None,
            1 => match header.filter()? {
                (X86, []) => Some(Filter::new(0)),
                (X86, start) => Some(Filter::new(u32::from_le_bytes(start.try_into().ok()?))),
                _ => return None,
            },
            _ => return None,
        };
        let window_bytes = match header.filter()? {
            (LZMA2, &[40]) => u32::MAX,
            (LZMA2, &[size @ 0..40]) => (2 | u32::from(size & 1)) << (size / 2 + 11),
            _ => return None,
        };
        let crc32 = u32_at(check, 0);
        is_padded(header.0).then_some(Self { data, window_bytes, filter, crc32, bytes: unpacked })
    }

    /// Unpacks into `kernel`, with a decoder that takes at most `memory` bytes. Gives the number of bytes that the
    /// block has unpacked; only if it is `kernel`'s, they are there. The error is a reason.
    pub fn unpack(self, memory: u64, kernel: &mut [u8]) -> Result<usize, String> {
        if self.bytes != kernel.len() {
            return Ok(self.bytes);
        }
        // The window needs to be no larger than all that there is to look back at.
        let window = self.window_bytes.min(u32::try_from(kernel.len()).unwrap_or(u32::MAX));
        let room = Room::new(window);
        let likely = likely_range(room.range(), self.data.len());
        beside_populating(likely, || self.decode(window, &room, memory, kernel))
    }

    fn decode(
        self,
        window_bytes: u32,
        room: &Room,
        memory: u64,
        kernel: &mut [u8],
    ) -> Result<usize, String> {
        let mut decoder = Decoder::new(self.data, window_bytes, room, memory)?;
        let mut filter = self.filter;
        let mut sum = crc32fast::Hasher::new();
        let (mut filled, mut summed) = (0, 0);
        let mut is_at_end = false;
        while !is_at_end {
            let piece = kernel.len().min(filled + PIECE_BYTES);
            let more;
            (more, is_at_end) = decoder.decode(&mut kernel[filled..piece])?;
            filled += more;
            let finished = match &mut filter {
                Some(filter) => filter.undo(&mut kernel[..filled]),
                None => filled,
            };
            let finished = if is_at_end { filled } else { finished };
            if self.crc32.is_some() {
                sum.update(&kernel[summed..finished]);
            }
            summed = finished;
        }
        if filled != kernel.len() || decoder.taken() != self.data.len() {
            return Err("it doesn't end where it should".to_owned());
        }
        if self.crc32.is_some_and(|crc32| crc32 != sum.finalize()) {
            return Err("its checksum is wrong".to_owned());
        }
        Ok(self.bytes)
    }
}

/// What is in front of a CRC32 of it.
fn sealed(bytes: &[u8]) -> Option<&[u8]> {
    let (bytes, crc32) = bytes.split_last_chunk()?;
    (u32::from_le_bytes(*crc32) == crc32fast::hash(bytes)).then_some(bytes)
}

/// What is left of a header or of the index.
#[derive(Debug)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn byte(&mut self) -> Option<u8> {
        self.0.split_off_first().copied()
    }

    /// Seven bits to the byte, the lowest first, at most nine of them and none too many.
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for n in 0..9 {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << (7 * n);
            if byte & 0x80 == 0 {
                return (byte != 0 || n == 0).then_some(number);
            }
        }
        None
    }

    /// A filter's number and its properties.
    fn filter(&mut self) -> Option<(u64, &'a [u8])> {
        let (id, bytes) = (self.number()?, self.number()?);
        Some((id, self.0.split_off(..usize::try_from(bytes).ok()?)?))
    }
}

#[cfg(test)]
mod tests;
