//! ELF files, as far as boot loaders need them.
//!
//! Problem: headers of two word sizes, with offsets that a damaged file sets to anything. Scheme: one
//! view with 64-bit fields over the bytes; every lookup checks its bounds. Invariant: a [`Segment`]'s
//! file bytes are inside the file and fit its memory size. Source: System V ABI, "ELF Header",
//! "Program Header", "Note Section".

use std::ops::Range;

use super::{u16_at, u32_at, u64_at};

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
pub const EM_386: u16 = 3;
pub const EM_X86_64: u16 = 62;
/// More program headers than any kernel has; bounds the work on a hostile file.
const SEGMENTS_MAX: u16 = 128;

pub struct Elf<'a> {
    /// 64-bit headers.
    pub wide: bool,
    pub machine: u16,
    pub entry: u64,
    pub segments: Vec<Segment<'a>>,
    /// Where the section headers end, which linkers put behind everything else.
    pub end: u64,
}

/// A program header with its bytes.
pub struct Segment<'a> {
    kind: u32,
    pub physical: u64,
    pub linear: u64,
    /// Where its bytes are in the file.
    pub offset: usize,
    pub bytes: &'a [u8],
    pub memory_bytes: u64,
    align: u64,
}

impl Segment<'_> {
    /// Its bytes in the file.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.bytes.len()
    }
}

pub fn matches(image: &[u8]) -> bool {
    image.starts_with(b"\x7fELF")
}

impl<'a> Elf<'a> {
    /// Reads the headers. The error is a reason for the person who gave the file.
    pub fn parse(image: &'a [u8]) -> Result<Self, String> {
        let cut = || "the ELF file is cut short".to_owned();
        let wide = match image.get(4) {
            Some(1) => false,
            Some(2) => true,
            _ => return Err("the ELF file is neither 32-bit nor 64-bit".to_owned()),
        };
        if image.get(5) != Some(&1) {
            return Err("the ELF file is not little-endian".to_owned());
        }
        let machine = u16_at(image, 18).ok_or_else(cut)?;
        if ![EM_386, EM_X86_64].contains(&machine) {
            return Err(format!("the ELF file is for machine {machine}, not for x86"));
        }
        let word = |at: usize, narrow: usize, wide_at: usize| {
            if wide {
                u64_at(image, at + wide_at)
            } else {
                u32_at(image, at + narrow).map(u64::from)
            }
            .ok_or_else(cut)
        };
        let entry = word(0, 24, 24)?;
        let table = word(0, 28, 32)?;
        let (size_at, count_at) = if wide { (54, 56) } else { (42, 44) };
        let entry_size = u64::from(u16_at(image, size_at).ok_or_else(cut)?);
        let count = u16_at(image, count_at).ok_or_else(cut)?;
        if count > SEGMENTS_MAX || entry_size < if wide { 56 } else { 32 } {
            return Err("the ELF file's program header table is damaged".to_owned());
        }
        let mut segments = Vec::new();
        for n in 0..u64::from(count) {
            let at = table
                .checked_add(n * entry_size)
                .and_then(|at| usize::try_from(at).ok())
                .filter(|&at| at < image.len())
                .ok_or_else(cut)?;
            let kind = u32_at(image, at).ok_or_else(cut)?;
            if kind != PT_LOAD && kind != PT_NOTE {
                continue;
            }
            let offset = word(at, 4, 8)?;
            let linear = word(at, 8, 16)?;
            let physical = word(at, 12, 24)?;
            let file_bytes = word(at, 16, 32)?;
            let memory_bytes = word(at, 20, 40)?;
            let align = word(at, 28, 48)?;
            let bytes = offset
                .checked_add(file_bytes)
                .and_then(|end| {
                    image.get(usize::try_from(offset).ok()?..usize::try_from(end).ok()?)
                })
                .ok_or_else(cut)?;
            if kind == PT_LOAD && memory_bytes < file_bytes {
                return Err("an ELF segment is larger in the file than in memory".to_owned());
            }
            // The range was looked up.
            let offset = offset as usize;
            segments.push(Segment { kind, physical, linear, offset, bytes, memory_bytes, align });
        }
        // Nothing is loaded from the sections, but they end a file that is whole.
        let sections = word(0, 32, 40)?;
        let section_size = u64::from(u16_at(image, size_at + 4).ok_or_else(cut)?);
        let section_count = u64::from(u16_at(image, count_at + 4).ok_or_else(cut)?);
        match sections.checked_add(section_size * section_count) {
            Some(end) if end <= image.len() as u64 => {
                Ok(Self { wide, machine, entry, segments, end })
            }
            _ => Err(cut()),
        }
    }

    /// The segments to load, empty ones left out.
    pub fn loads(&self) -> impl Iterator<Item = &Segment<'a>> {
        self.segments.iter().filter(|segment| segment.kind == PT_LOAD && segment.memory_bytes > 0)
    }

    /// Start and end in memory of each segment; the reason if one wraps.
    pub fn physical(&self) -> Result<Vec<(u64, u64)>, &'static str> {
        let span = |segment: &Segment<'_>| {
            let end = segment.physical.checked_add(segment.memory_bytes);
            Some((segment.physical, end?))
        };
        let spans = self.loads().map(span).collect::<Option<_>>();
        spans.ok_or("an ELF segment wraps around the end of the address space")
    }

    /// The descriptor of the note of this owner and type.
    pub fn note(&self, owner: &[u8], kind: u32) -> Option<&'a [u8]> {
        for segment in self.segments.iter().filter(|segment| segment.kind == PT_NOTE) {
            // GNU property notes are padded to 8 bytes, everything else to 4, whatever p_align says.
            let align = if segment.align == 8 { 8 } else { 4 };
            let mut rest = segment.bytes;
            while let (Some(name_len), Some(desc_len), Some(note_kind)) =
                (u32_at(rest, 0), u32_at(rest, 4), u32_at(rest, 8))
            {
                let name_end = 12usize.checked_add(name_len as usize)?;
                let desc_at = name_end.checked_next_multiple_of(align)?;
                let desc_end = desc_at.checked_add(desc_len as usize)?;
                let (Some(name), Some(desc)) =
                    (rest.get(12..name_end), rest.get(desc_at..desc_end))
                else {
                    break;
                };
                if note_kind == kind && name.strip_suffix(&[0]).unwrap_or(name) == owner {
                    return Some(desc);
                }
                match desc_end.checked_next_multiple_of(align).and_then(|at| rest.get(at..)) {
                    Some(next) => rest = next,
                    None => break,
                }
            }
        }
        None
    }
}
