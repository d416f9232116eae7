//! Multiboot-1 images.
//!
//! Problem: small kernels and test programs carry a header in their first 8 KiB that says how to load
//! them. Scheme: by the header's addresses (a flat image) or as ELF; the initrd becomes the one module;
//! EAX holds the magic and EBX points to the information block. As with QEMU the command line begins
//! with the kernel's file name, and the module comes right behind the kernel. Kernels that lie below
//! 640 KiB get all this around them. Source: Multiboot Specification 0.6.96, "The layout of Multiboot
//! header", "Machine state", "Boot information format".

use super::elf::{self, Elf};
use super::{GDT_BYTES, Loaded, LowMemory, Piece, Request, end_of, place, put, terminated, u32_at};
use crate::config::ConfigError;
use crate::memory_map::EBDA_START;

const HEADER_MAGIC: u32 = 0x1bad_b002;
const LOADER_MAGIC: u32 = 0x2bad_b002;
const SEARCH_BYTES: usize = 8192;

const WANT_VIDEO: u32 = 1 << 2;
const WANT_KNOWN: u32 = 0x7;
/// The low half of the flags must be understood; the high half may be ignored.
const WANT_REQUIRED: u32 = 0xffff;
const HAS_ADDRESSES: u32 = 1 << 16;

const INFO_MEMORY: u32 = 1 << 0;
const INFO_COMMAND_LINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MEMORY_MAP: u32 = 1 << 6;
const INFO_LOADER_NAME: u32 = 1 << 9;

/// Layout of what EBX points to and of what that points to.
const INFO_BYTES: usize = 120;
const MODULE_AT: usize = 128;
const LOADER_NAME_AT: usize = 144;
const MEMORY_MAP_AT: usize = 160;
const MODULE_LINE_MAX: usize = 4096;

const _: () = assert!(INFO_BYTES <= MODULE_AT, "the parts don't overlap");

/// Finds the header: its offset in the image.
pub fn find(image: &[u8]) -> Option<usize> {
    (0..SEARCH_BYTES.min(image.len()).saturating_sub(11)).step_by(4).find(|&at| {
        u32_at(image, at) == Some(HEADER_MAGIC)
            && match (u32_at(image, at + 4), u32_at(image, at + 8)) {
                (Some(flags), Some(checksum)) => {
                    HEADER_MAGIC.wrapping_add(flags).wrapping_add(checksum) == 0
                }
                _ => false,
            }
    })
}

pub fn load(mut request: Request<'_>, header: usize) -> Result<Loaded, ConfigError> {
    let image: &[u8] = request.kernel;
    let flags = u32_at(image, header + 4).unwrap_or(0);
    if flags & WANT_REQUIRED & !WANT_KNOWN != 0 {
        return Err(request.bad(format!(
            "its multiboot header asks for features that are not there (flags {flags:#x})"
        )));
    }
    if flags & WANT_VIDEO != 0 {
        tracing::debug!("the multiboot kernel asks for a video mode; there is no display");
    }
    let (mut pieces, taken, entry) = if flags & HAS_ADDRESSES != 0 {
        flat(&request, header)?
    } else if elf::matches(image) {
        segments(&request)?
    } else {
        return Err(request.bad("its multiboot header has no load addresses, and it is not ELF"));
    };

    let command_line = {
        let name = request.kernel_path.to_string_lossy().into_owned();
        let space = if request.command_line.is_empty() { "" } else { " " };
        let line = format!("{name}{space}{}", request.command_line);
        terminated(&line, place::COMMAND_LINE_MAX - MODULE_LINE_MAX - 1)?
    };
    let module = request.place_initrd_low(end_of(&taken).next_multiple_of(0x1000))?;
    let module_line = match &module {
        Some(_) => terminated(&request.initrd_path.to_string_lossy(), MODULE_LINE_MAX - 1)?,
        None => Vec::new(),
    };
    let info_bytes = MEMORY_MAP_AT + 24 * request.map.e820().len();
    let mut low = LowMemory::new(&request, taken, module.as_ref());
    let gdt = low.take(place::GDT, GDT_BYTES)?;
    let info_at = low.take(place::INFO, info_bytes as u64)?;
    let lines = (command_line.len() + module_line.len()) as u64;
    let command_line_at = low.take(place::COMMAND_LINE, lines)?;

    let mut info = vec![0; MEMORY_MAP_AT];
    let mut put32 = |offset: usize, value: u64| {
        // Everything here lies in low memory.
        put(&mut info, offset, &(value as u32).to_le_bytes());
    };
    let mut has = INFO_MEMORY | INFO_COMMAND_LINE | INFO_MEMORY_MAP | INFO_LOADER_NAME;
    put32(4, EBDA_START >> 10);
    put32(8, request.map.low_end().saturating_sub(0x10_0000) >> 10);
    put32(16, command_line_at);
    if let Some(module) = &module {
        has |= INFO_MODULES;
        put32(20, 1);
        put32(24, info_at + MODULE_AT as u64);
        put32(MODULE_AT, module.gpa);
        put32(MODULE_AT + 4, module.gpa + module.bytes.len() as u64);
        let line_at = command_line_at + command_line.len() as u64;
        put32(MODULE_AT + 8, line_at);
        pieces.push(Piece { gpa: line_at, bytes: module_line.into() });
    }
    put32(44, 24 * request.map.e820().len() as u64);
    put32(48, info_at + MEMORY_MAP_AT as u64);
    put32(64, info_at + LOADER_NAME_AT as u64);
    put32(0, u64::from(has));
    put(&mut info, LOADER_NAME_AT, b"xenolith");
    for entry in request.map.e820() {
        // The size field doesn't count itself.
        info.extend(20u32.to_le_bytes());
        info.extend(entry.start.to_le_bytes());
        info.extend(entry.len.to_le_bytes());
        info.extend((entry.kind as u32).to_le_bytes());
    }
    pieces.push(Piece { gpa: info_at, bytes: info.into() });
    pieces.push(Piece { gpa: command_line_at, bytes: command_line.into() });
    pieces.extend(module);
    let (eax, ebx) = (LOADER_MAGIC, info_at as u32);
    Ok(Loaded { pieces, entry, eax, ebx, esi: 0, gdt, page_tables: None, linux_params: None })
}

/// A kernel's pieces, start and end of what it takes in memory, and its entry point.
type Kernel = (Vec<Piece>, Vec<(u64, u64)>, u32);

/// Loads an image with load addresses in its header.
fn flat(request: &Request<'_>, header: usize) -> Result<Kernel, ConfigError> {
    let image: &[u8] = request.kernel;
    let field = |n: usize| {
        u32_at(image, header + 12 + 4 * n)
            .ok_or_else(|| request.bad("its multiboot header is cut short"))
    };
    let (header_addr, load_addr) = (field(0)?, field(1)?);
    let (load_end_addr, bss_end_addr) = (field(2)?, field(3)?);
    let entry = field(4)?;
    let wrong = || request.bad("the addresses in its multiboot header contradict each other");
    let before = header_addr.checked_sub(load_addr).ok_or_else(wrong)?;
    let offset = header.checked_sub(before as usize).ok_or_else(wrong)?;
    let bytes = if load_end_addr == 0 {
        &image[offset..]
    } else {
        let len = load_end_addr.checked_sub(load_addr).ok_or_else(wrong)? as usize;
        image.get(offset..offset + len).ok_or_else(|| {
            request.bad(format!(
                "the multiboot image is cut short: its header promises {} bytes and the file has {}",
                offset + len,
                image.len()
            ))
        })?
    };
    let load_end = u64::from(load_addr) + bytes.len() as u64;
    let end = load_end.max(u64::from(bss_end_addr));
    if !request.map.is_loadable(u64::from(load_addr), end - u64::from(load_addr)) {
        return Err(request.bad(format!(
            "it wants the memory from {load_addr:#x} to {end:#x}, where there is none; give more \
             with -m"
        )));
    }
    let start = u64::from(load_addr);
    let bytes = request.kernel.part(offset..offset + bytes.len());
    Ok((vec![Piece { gpa: start, bytes }], vec![(start, end)], entry))
}

/// Loads an ELF image.
fn segments(request: &Request<'_>) -> Result<Kernel, ConfigError> {
    let elf = Elf::parse(request.kernel).map_err(|reason| request.bad(reason))?;
    let taken = elf.physical().map_err(|reason| request.bad(reason))?;
    let mut pieces = Vec::new();
    // The entry point is a linear address; a kernel linked high is entered where it was loaded.
    let mut entry = elf.entry;
    for segment in elf.loads() {
        if !request.map.is_loadable(segment.physical, segment.memory_bytes) {
            return Err(request.bad(format!(
                "it loads {:#x} bytes at {:#x}, where there is no memory; give more with -m",
                segment.memory_bytes, segment.physical
            )));
        }
        if let Some(into) = elf.entry.checked_sub(segment.linear)
            && into < segment.memory_bytes
        {
            entry = segment.physical + into;
        }
        pieces.push(Piece { gpa: segment.physical, bytes: request.kernel.part(segment.range()) });
    }
    let Ok(entry) = u32::try_from(entry) else {
        return Err(request.bad(format!("its entry point {entry:#x} is above 4 GiB")));
    };
    Ok((pieces, taken, entry))
}
