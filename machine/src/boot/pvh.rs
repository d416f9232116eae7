//! ELF kernels with a PVH entry point, such as Linux's vmlinux.
//!
//! Problem: an uncompressed kernel has no boot header. Scheme: its Xen note of type
//! `XEN_ELFNOTE_PHYS32_ENTRY` names a 32-bit entry; segments go to their physical addresses, and EBX
//! points to a `hvm_start_info` with the command line, the initrd, the memory map and the ACPI root
//! pointer. Source: Xen docs/misc/pvh.pandoc; Xen public/arch-x86/hvm/start_info.h.

use super::elf::Elf;
use super::{GDT_BYTES, Loaded, LowMemory, Piece, Request, end_of, place, u32_at};
use crate::config::ConfigError;

const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
const START_INFO_MAGIC: u32 = 0x336e_c578;
const START_INFO_BYTES: u64 = 56;
const MODULE_BYTES: u64 = 32;
/// Bytes of one entry of the memory map.
const MEMORY_MAP_BYTES: u64 = 24;

pub fn load(mut request: Request<'_>) -> Result<Loaded, ConfigError> {
    let elf = Elf::parse(request.kernel).map_err(|reason| request.bad(reason))?;
    let entry = elf.note(b"Xen", XEN_ELFNOTE_PHYS32_ENTRY).and_then(|note| u32_at(note, 0));
    let Some(entry) = entry else {
        return Err(request.bad(
            "the ELF file has neither a PVH entry note (CONFIG_PVH in Linux) nor a multiboot-1 header",
        ));
    };
    let taken = elf.physical().map_err(|reason| request.bad(reason))?;
    let end = end_of(&taken);
    let mut pieces = Vec::new();
    for segment in elf.loads() {
        if !request.map.is_loadable(segment.physical, segment.memory_bytes) {
            return Err(request.bad(format!(
                "it loads {:#x} bytes at {:#x}, where there is no memory; give more with -m",
                segment.memory_bytes, segment.physical
            )));
        }
        pieces.push(Piece { gpa: segment.physical, bytes: request.kernel.part(segment.range()) });
    }
    let command_line = request.command_line(usize::MAX)?;
    let initrd = request.place_initrd(end.next_multiple_of(0x1000).max(0x10_0000), u64::MAX)?;

    let info_bytes =
        START_INFO_BYTES + MODULE_BYTES + MEMORY_MAP_BYTES * request.map.e820().len() as u64;
    let mut low = LowMemory::new(&request, taken, initrd.as_ref());
    let gdt = low.take(place::GDT, GDT_BYTES)?;
    let info_at = low.take(place::INFO, info_bytes)?;
    let command_line_at = low.take(place::COMMAND_LINE, command_line.len() as u64)?;
    let modules = info_at + START_INFO_BYTES;
    let memory_map = modules + MODULE_BYTES;
    let mut info = Vec::new();
    for field in [START_INFO_MAGIC, 1, 0, u32::from(initrd.is_some())] {
        info.extend(field.to_le_bytes());
    }
    let module_list = if initrd.is_some() { modules } else { 0 };
    for field in [module_list, command_line_at, request.rsdp, memory_map] {
        info.extend(field.to_le_bytes());
    }
    for field in [request.map.e820().len() as u32, 0] {
        info.extend(field.to_le_bytes());
    }
    let module = initrd.as_ref().map_or([0; 4], |it| [it.gpa, it.bytes.len() as u64, 0, 0]);
    for field in module {
        info.extend(field.to_le_bytes());
    }
    for entry in request.map.e820() {
        info.extend(entry.start.to_le_bytes());
        info.extend(entry.len.to_le_bytes());
        info.extend((entry.kind as u32).to_le_bytes());
        info.extend([0; 4]);
    }
    pieces.push(Piece { gpa: info_at, bytes: info.into() });
    pieces.push(Piece { gpa: command_line_at, bytes: command_line.into() });
    pieces.extend(initrd);
    let ebx = info_at as u32;
    Ok(Loaded { pieces, entry, eax: 0, ebx, esi: 0, gdt, page_tables: None, linux_params: None })
}
