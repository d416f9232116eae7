//! The compressed kernel in a bzImage.
//!
//! Problem: unpacking is most of what a kernel does before its first line, and it does so a byte at a time;
//! the payload may be cut short or hostile. Scheme: the format is known by its first bytes, the size is in the
//! last four; a library decoder fills a buffer of just that size. Invariants: no more memory is taken than is
//! allowed for the kernel and for the decoder's window; a result is whole and its checksum, where the format has one,
//! is right. Any thread.
//!
//! Source: Linux Documentation/arch/x86/boot.rst, "payload_offset"; RFC 1952 (gzip); LZ4 Frame Format Description,
//! "Legacy frame"; The .xz File Format; The .lzma File Format; RFC 8878 (Zstandard).

use liblzma::stream::{Action, Status, Stream};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};

use super::xz::Block;
use super::{ask_for_large_pages, beside_populating, likely_range, u16_at, u32_at};

/// Bytes of the unpacked size behind the compressed kernel.
const SIZE_BYTES: usize = 4;
/// Largest unpacked block of an LZ4 legacy frame.
const LZ4_BLOCK: usize = 8 << 20;
const LZ4_MAGIC: u32 = 0x184c_2102;

/// What a kernel is compressed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Gzip,
    Lz4,
    Lzma,
    Xz,
    Zstd,
}

impl Format {
    fn of(payload: &[u8]) -> Result<Self, String> {
        let known: [(&[u8], Self); 5] = [
            (&[0x1f, 0x8b], Self::Gzip),
            (&[0x02, 0x21], Self::Lz4),
            (&[0x5d, 0x00], Self::Lzma),
            (&[0xfd, 0x37], Self::Xz),
            (&[0x28, 0xb5], Self::Zstd),
        ];
        let format = known.iter().find(|(magic, _)| payload.starts_with(magic));
        format.map(|&(_, format)| format).ok_or_else(|| {
            format!(
                "its compression is unknown: it begins with {:02x?}",
                &payload[..payload.len().min(4)]
            )
        })
    }
}

/// Unpacks a payload of at most `limit` bytes unpacked, with a decoder that takes at most `memory` bytes. The error is
/// a reason.
pub fn unpack(payload: &[u8], limit: u64, memory: u64) -> Result<Vec<u8>, String> {
    let format = Format::of(payload)?;
    let packed = payload.len().checked_sub(SIZE_BYTES).ok_or("it is cut short")?;
    let size = u64::from(u32_at(payload, packed).ok_or("it is cut short")?);
    if size > limit {
        return Err(format!("it would have {size:#x} bytes unpacked, and has room for {limit:#x}"));
    }
    let mut kernel = vec![0; usize::try_from(size).map_err(|_| "it is too large")?];
    ask_for_large_pages(&mut kernel);
    let packed = &payload[..packed];
    let likely = likely_range(kernel.as_mut_ptr_range(), packed.len());
    let filled = beside_populating(likely, || match format {
        // The size is the format's own here.
        Format::Gzip => gzip(payload, &mut kernel),
        Format::Lz4 => lz4(packed, &mut kernel),
        Format::Lzma => lzma(Stream::new_lzma_decoder(memory), packed, &mut kernel),
        Format::Xz => xz(packed, memory, &mut kernel),
        Format::Zstd => zstd(packed, &mut kernel),
    })
    .map_err(|reason| format!("its {format:?} data can't be unpacked: {reason}"))?;
    if filled != kernel.len() {
        return Err(format!("it has {filled:#x} bytes unpacked, not {size:#x}"));
    }
    Ok(kernel)
}

/// An .xz file. Gives the number of bytes that it has unpacked.
fn xz(file: &[u8], memory: u64, kernel: &mut [u8]) -> Result<usize, String> {
    match Block::of(file) {
        Some(block) => block.unpack(memory, kernel),
        None => lzma(Stream::new_stream_decoder(memory, 0), file, kernel),
    }
}

/// Runs a decoder to its end. Gives the number of bytes unpacked.
fn lzma(
    stream: Result<Stream, liblzma::stream::Error>,
    packed: &[u8],
    kernel: &mut [u8],
) -> Result<usize, String> {
    let mut stream = stream.map_err(|error| error.to_string())?;
    loop {
        let (read, filled) = (stream.total_in(), stream.total_out());
        // Both are within the slices that they count.
        let (from, to) = (&packed[read as usize..], &mut kernel[filled as usize..]);
        match stream.process(from, to, Action::Finish).map_err(|error| error.to_string())? {
            Status::StreamEnd => return Ok(stream.total_out() as usize),
            _ if (read, filled) == (stream.total_in(), stream.total_out()) => {
                return Err("it doesn't end where it should".to_owned());
            }
            _ => {}
        }
    }
}

fn zstd(packed: &[u8], kernel: &mut [u8]) -> Result<usize, String> {
    zstd::bulk::decompress_to_buffer(packed, kernel).map_err(|error| error.to_string())
}

fn lz4(packed: &[u8], kernel: &mut [u8]) -> Result<usize, String> {
    let mut rest = packed;
    let mut filled = 0;
    while !rest.is_empty() {
        let word = u32_at(rest, 0).ok_or("a block's size is cut short")?;
        rest = &rest[4..];
        // Another frame may follow.
        if word == LZ4_MAGIC {
            continue;
        }
        let block = rest.get(..word as usize).ok_or("a block is cut short")?;
        rest = &rest[block.len()..];
        let end = kernel.len().min(filled + LZ4_BLOCK);
        filled += lz4_flex::block::decompress_into(block, &mut kernel[filled..end])
            .map_err(|error| error.to_string())?;
    }
    Ok(filled)
}

/// `member` is the whole of it, header and trailer included.
fn gzip(member: &[u8], kernel: &mut [u8]) -> Result<usize, String> {
    const FHCRC: u8 = 1 << 1;
    const FEXTRA: u8 = 1 << 2;
    const FNAME: u8 = 1 << 3;
    const FCOMMENT: u8 = 1 << 4;
    const TRAILER: usize = 8;
    let cut = || "its header is cut short".to_owned();
    let flags = *member.get(3).ok_or_else(cut)?;
    let mut at = 10;
    if flags & FEXTRA != 0 {
        at += 2 + usize::from(u16_at(member, at).ok_or_else(cut)?);
    }
    for text in [FNAME, FCOMMENT] {
        if flags & text != 0 {
            let rest = member.get(at..).ok_or_else(cut)?;
            at += rest.iter().position(|&byte| byte == 0).ok_or_else(cut)? + 1;
        }
    }
    if flags & FHCRC != 0 {
        at += 2;
    }
    let end = member.len().checked_sub(TRAILER).ok_or_else(cut)?;
    let deflated = member.get(at..end).ok_or_else(cut)?;
    let mut decoder = Box::<DecompressorOxide>::default();
    let whole = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (status, _, filled) = decompress(&mut decoder, deflated, kernel, 0, whole);
    if status != TINFLStatus::Done {
        return Err(format!("{status:?}"));
    }
    if Some(crc32fast::hash(&kernel[..filled])) != u32_at(member, end) {
        return Err("its checksum is wrong".to_owned());
    }
    Ok(filled)
}
