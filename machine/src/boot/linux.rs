//! A Linux kernel out of its bzImage.
//!
//! Problem: a kernel that unpacks itself in the guest takes as long for that as for everything else until its first
//! program. Scheme: we do what its unpacker would have done: unpack the ELF file, choose where it goes
//! ([`super::kaslr`]), put its segments there and enter it: a 64-bit one in long mode, all of the first 4 GiB mapped
//! to itself, a 32-bit one without paging. Whatever is unusual about the image is no error here but a reason to leave the
//! work to the guest. Invariants: all that the kernel takes, its zeroed memory included, is RAM from 1 MiB on and
//! apart from the initrd; it is entered inside of a segment. Called before the machine runs.
//!
//! Source: Linux Documentation/arch/x86/boot.rst, "64-bit BOOT PROTOCOL", "32-bit BOOT PROTOCOL", "payload_offset";
//! System V ABI, "Program Header"; SDM vol. 3, "4-Level Paging".

use super::bytes::Bytes;
use super::elf::{EM_386, EM_X86_64, Elf};
use super::kaslr::{self, Choice};
use super::{Piece, payload, place};
use crate::memory_map::{EXTENDED_START, MemoryMap};
use crate::random::Random;

/// Below this the kernel and what it is given are mapped.
const MAPPED: u64 = 4 << 30;
const LARGE_PAGE: u64 = 2 << 20;
const PAGE: u64 = 0x1000;
/// Present and writable.
const TABLE: u64 = 0x3;
const LARGE: u64 = 0x83;

/// A bzImage, and what it starts with.
#[derive(Debug)]
pub struct Packed<'a> {
    pub payload: &'a [u8],
    /// The code in front of the payload and behind it: the kernel's own unpacker.
    pub unpacker: [&'a [u8]; 2],
    /// Room that the kernel needs from its first segment on; 0 if it doesn't say.
    pub init_size: u64,
    /// What its address must be a multiple of.
    pub alignment: u64,
    /// It can run elsewhere than where it was linked for.
    pub relocatable: bool,
    pub command_line: &'a str,
    /// Start and end of the initrd.
    pub initrd: Option<(u64, u64)>,
    pub map: &'a MemoryMap,
    /// The processor has long mode.
    pub long_mode: bool,
}

/// A kernel ready to be entered.
#[derive(Debug)]
pub struct Kernel {
    pub pieces: Vec<Piece>,
    pub entry: u32,
    /// It is entered in long mode with these page tables.
    pub page_tables: Option<u64>,
    /// It is at a random address.
    pub random: bool,
}

/// The layout of an unpacked kernel.
#[derive(Debug)]
pub struct Layout {
    /// It is a 64-bit kernel.
    pub wide: bool,
    /// Physical address of its first instruction.
    pub entry: u64,
    pub parts: Vec<Part>,
    /// Where the ELF file ends; what is behind it are relocations.
    pub end: usize,
    /// Linear minus physical addresses.
    pub base: u64,
}

/// A segment to load.
#[derive(Clone, Debug)]
pub struct Part {
    pub offset: usize,
    pub len: usize,
    pub physical: u64,
    pub memory_bytes: u64,
}

impl Layout {
    fn of(image: &[u8]) -> Result<Self, String> {
        let elf = Elf::parse(image)?;
        let wide = match (elf.wide, elf.machine) {
            (true, EM_X86_64) => true,
            (false, EM_386) => false,
            _ => return Err("the word size of its ELF file is not its machine's".to_owned()),
        };
        // None wraps around.
        elf.physical()?;
        let first = elf.loads().next().ok_or("there is nothing to load")?;
        let base = first.linear.wrapping_sub(first.physical);
        let entered =
            |part: &Part| (part.physical..part.physical + part.len as u64).contains(&elf.entry);
        let part = |segment: &super::elf::Segment<'_>| Part {
            offset: segment.offset,
            len: segment.bytes.len(),
            physical: segment.physical,
            memory_bytes: segment.memory_bytes,
        };
        let parts: Vec<_> = elf.loads().map(part).collect();
        if !parts.iter().any(entered) {
            return Err(format!("its entry point {:#x} is outside of its segments", elf.entry));
        }
        // All of it is inside the file.
        let ends = parts.iter().map(|part| part.offset + part.len);
        let end = ends.fold(elf.end as usize, usize::max);
        Ok(Self { wide, entry: elf.entry, parts, end, base })
    }

    /// Lowest physical address.
    pub fn start(&self) -> u64 {
        self.parts.iter().map(|part| part.physical).min().unwrap_or(0)
    }

    /// End of the last segment's memory.
    pub fn memory_end(&self) -> u64 {
        self.parts.iter().map(|part| part.physical + part.memory_bytes).max().unwrap_or(0)
    }
}

/// Unpacks a kernel. The error is a reason why it can't be done here.
pub fn unpack(packed: &Packed<'_>, random: &mut Random) -> Result<Kernel, String> {
    let memory = packed.map.low_end();
    let limit = if packed.init_size == 0 { memory } else { packed.init_size.min(memory) };
    let mut image = payload::unpack(packed.payload, limit, memory)?;
    let mut layout = Layout::of(&image)?;
    if layout.wide && !packed.long_mode {
        return Err("it is a 64-bit kernel and the processor has no long mode".to_owned());
    }
    let choice = kaslr::choose(packed, &layout, random);
    let is_random = match &choice {
        Ok(Choice { physical, linear }) => {
            kaslr::relocate(&mut image, &layout, *linear)?;
            layout.entry = layout.entry.wrapping_add(*physical);
            for part in &mut layout.parts {
                part.physical = part.physical.wrapping_add(*physical);
            }
            true
        }
        Err(reason) => {
            tracing::info!("the kernel is not at a random address: {reason}");
            false
        }
    };
    check(packed, &layout)?;
    let image = Bytes::from(image);
    let piece = |part: &Part| Piece {
        gpa: part.physical,
        bytes: image.part(part.offset..part.offset + part.len),
    };
    let mut pieces: Vec<_> = layout.parts.iter().map(piece).collect();
    let page_tables = layout.wide.then_some(place::PAGE_TABLES);
    if let Some(gpa) = page_tables {
        pieces.push(Piece { gpa, bytes: identity(gpa).into() });
    }
    let entry = u32::try_from(layout.entry).map_err(|_| "it is entered above 4 GiB")?;
    Ok(Kernel { pieces, entry, page_tables, random: is_random })
}

/// Whether each segment has its memory for itself.
fn check(packed: &Packed<'_>, layout: &Layout) -> Result<(), String> {
    let span = |part: &Part| (part.physical, part.physical + part.memory_bytes);
    let mut spans: Vec<_> = layout.parts.iter().map(span).collect();
    for &(start, end) in &spans {
        if start < EXTENDED_START || !packed.map.is_ram(start, end - start) || end > MAPPED {
            return Err(format!("it wants memory from {start:#x} to {end:#x}"));
        }
    }
    spans.extend(packed.initrd);
    spans.sort_unstable();
    match spans.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        None => Ok(()),
        Some(pair) => Err(format!("two parts want the memory at {:#x}", pair[1].0)),
    }
}

/// Page tables at `gpa` that map [`MAPPED`] bytes to themselves: one of each upper level, then one for each GiB.
fn identity(gpa: u64) -> Vec<u8> {
    let tables = MAPPED / (512 * LARGE_PAGE);
    let mut bytes = vec![0; ((2 + tables) * PAGE) as usize];
    let mut entry = |at: u64, value: u64| super::put(&mut bytes, at as usize, &value.to_le_bytes());
    entry(0, (gpa + PAGE) | TABLE);
    for table in 0..tables {
        entry(PAGE + 8 * table, (gpa + (2 + table) * PAGE) | TABLE);
    }
    for page in 0..MAPPED / LARGE_PAGE {
        entry(2 * PAGE + 8 * page, (page * LARGE_PAGE) | LARGE);
    }
    bytes
}
