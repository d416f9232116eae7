//! Linux's bzImage through the 32-bit boot protocol, or unpacked by us.
//!
//! Problem: start a Linux kernel of either word size without firmware. Scheme: a page of boot parameters carries
//! the setup header as the file has it, plus our fields, the memory map and the ACPI root pointer. The kernel is
//! unpacked here ([`super::linux`]); or the protected-mode part goes to `code32_start` and is entered there in 32-bit
//! mode, the kernel unpacks itself, and a 64-bit one finds its own way to long mode. Invariants: nothing else that we
//! place reaches into the `init_size` bytes that the kernel unpacks itself in; what can't be unpacked here is left to
//! the guest, unless the person said otherwise. Source: Linux Documentation/arch/x86/boot.rst, "The Real-Mode
//! Kernel Header" and "32-bit BOOT PROTOCOL"; zero-page.rst.

use super::linux::{self, Kernel, Packed};
use super::{Loaded, Piece, Request, place, put, u16_at, u32_at, u64_at};
use crate::config::{ConfigError, Unpacker};
use crate::random::Random;

/// Offsets in the file's first sectors, which are those in the boot parameters too.
mod header {
    pub const SETUP_SECTS: usize = 0x1f1;
    pub const SYSSIZE: usize = 0x1f4;
    pub const BOOT_FLAG: usize = 0x1fe;
    /// The displacement byte of the jump at 0x200: the header ends that far behind 0x202.
    pub const JUMP: usize = 0x201;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const LOADFLAGS: usize = 0x211;
    pub const CODE32_START: usize = 0x214;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const INITRD_ADDR_MAX: usize = 0x22c;
    pub const KERNEL_ALIGNMENT: usize = 0x230;
    pub const RELOCATABLE_KERNEL: usize = 0x234;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const PAYLOAD_OFFSET: usize = 0x248;
    pub const PAYLOAD_LENGTH: usize = 0x24c;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
}

/// Offsets of boot parameters outside the header.
mod params {
    pub const EXT_MEM_K: usize = 0x002;
    pub const ACPI_RSDP_ADDR: usize = 0x070;
    pub const ALT_MEM_K: usize = 0x1e0;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const E820_TABLE: usize = 0x2d0;
    pub const SIZE: usize = 0x1000;
}

const LOADED_HIGH: u8 = 1 << 0;
/// Told by the kernel's unpacker to the kernel: it is at a random address.
const KASLR: u8 = 1 << 1;
const KEEP_SEGMENTS: u8 = 1 << 6;
const LOADER_UNDEFINED: u8 = 0xff;

pub fn matches(image: &[u8]) -> bool {
    image.get(header::MAGIC..header::MAGIC + 4) == Some(b"HdrS")
        && u16_at(image, header::BOOT_FLAG) == Some(0xaa55)
}

/// Where the signature ends of an image that is signed for UEFI: the last bytes of the file. Source:
/// Microsoft PE Format, "Optional Header Data Directories", "The Attribute Certificate Table".
fn signature_end(image: &[u8]) -> Option<u64> {
    let pe = u32_at(image, 0x3c)? as usize;
    if !image.starts_with(b"MZ") || image.get(pe..pe.checked_add(4)?)? != b"PE\0\0" {
        return None;
    }
    let optional = pe + 24;
    let directories = match u16_at(image, optional)? {
        0x10b => optional + 96,
        0x20b => optional + 112,
        _ => return None,
    };
    let certificates = directories + 4 * 8;
    let (at, size) = (u32_at(image, certificates)?, u32_at(image, certificates + 4)?);
    Some(u64::from(at) + u64::from(size))
}

pub fn load(mut request: Request<'_>, random: &mut Random) -> Result<Loaded, ConfigError> {
    let image: &[u8] = request.kernel;
    let short = || request.bad("the bzImage is cut short in its header");
    let version = u16_at(image, header::VERSION).ok_or_else(short)?;
    if version < 0x0202 {
        return Err(request.bad(format!(
            "its boot protocol is {}.{:02}; 2.02 (Linux 2.4) or later is needed",
            version >> 8,
            version & 0xff
        )));
    }
    let header_end = header::MAGIC + usize::from(*image.get(header::JUMP).ok_or_else(short)?);
    let mut boot_params = vec![0; params::SIZE];
    let header = image.get(header::SETUP_SECTS..header_end).ok_or_else(short)?;
    put(&mut boot_params, header::SETUP_SECTS, header);
    // From here on fields are read from the copy: those that an old header lacks are zero there.
    let field32 = |offset| u32_at(&boot_params, offset).unwrap_or(0);

    if boot_params[header::LOADFLAGS] & LOADED_HIGH == 0 {
        return Err(request.bad("it is a zImage for low memory; build a bzImage"));
    }
    let setup_sectors = match boot_params[header::SETUP_SECTS] {
        0 => 4,
        n => usize::from(n),
    };
    let setup_bytes = (setup_sectors + 1) * 512;
    let code = image.get(setup_bytes..).unwrap_or_default();
    // Before 2.04 the field had 16 bits and was not to be relied on.
    let code_bytes = if version >= 0x0204 {
        16 * u64::from(field32(header::SYSSIZE))
    } else {
        code.len() as u64
    };
    // The size is in whole paragraphs, so up to 15 bytes may be missing from a sound file.
    if code.is_empty() || (code.len() as u64) + 15 < code_bytes {
        return Err(request.bad(format!(
            "the bzImage is cut short: its header promises {} bytes and the file has {}",
            setup_bytes as u64 + code_bytes,
            image.len()
        )));
    }
    if let Some(end) = signature_end(image)
        && end > image.len() as u64
    {
        return Err(request.bad(format!(
            "the bzImage is cut short: its signature ends at {end} bytes and the file has {}",
            image.len()
        )));
    }
    let code = &code[..code.len().min(usize::try_from(code_bytes).unwrap_or(usize::MAX))];

    let start = field32(header::CODE32_START);
    let mut kernel_end = u64::from(start) + code.len() as u64;
    if version >= 0x020a {
        let unpacks_at = if boot_params[header::RELOCATABLE_KERNEL] == 0 {
            u64_at(&boot_params, header::PREF_ADDRESS).unwrap_or(0)
        } else {
            u64_at(&boot_params, header::PREF_ADDRESS).unwrap_or(0).max(u64::from(start))
        };
        let init_end = unpacks_at.saturating_add(u64::from(field32(header::INIT_SIZE)));
        kernel_end = kernel_end.max(init_end);
    }
    if start == 0 {
        return Err(request.bad(
            "its header has no address to start it at in protected mode: only firmware can start \
             it, from a disk or a disc",
        ));
    }
    if start < 0x10_0000 || !request.map.is_ram(u64::from(start), kernel_end - u64::from(start)) {
        return Err(request.bad(format!(
            "it needs the memory from {start:#x} to {kernel_end:#x} to unpack itself; give more \
             with -m"
        )));
    }

    let code_at = setup_bytes..setup_bytes + code.len();
    let command_line = {
        let max = if version >= 0x0206 { field32(header::CMDLINE_SIZE) as usize } else { 255 };
        request.command_line(max)?
    };
    let initrd_limit = match version {
        0x0203.. => u64::from(field32(header::INITRD_ADDR_MAX)) + 1,
        _ => 0x3800_0000,
    };
    let initrd = request.place_initrd(kernel_end.next_multiple_of(0x1000), initrd_limit)?;

    let span = |piece: &Piece| (piece.gpa, piece.gpa + piece.bytes.len() as u64);
    let unpacked = match request.unpacker {
        Unpacker::Guest => None,
        who => match unpack(&request, &boot_params, code, initrd.as_ref().map(span), random) {
            Ok(kernel) => Some(kernel),
            Err(reason) if who == Unpacker::Host => {
                return Err(request.bad(format!("it can't be unpacked here: {reason}")));
            }
            Err(reason) => {
                tracing::info!("the guest unpacks its kernel itself: {reason}");
                None
            }
        },
    };

    boot_params[header::TYPE_OF_LOADER] = LOADER_UNDEFINED;
    // We enter in 32-bit mode with our own descriptors, so the kernel may load its own.
    boot_params[header::LOADFLAGS] &= !(KEEP_SEGMENTS | KASLR);
    if unpacked.as_ref().is_some_and(|kernel| kernel.random) {
        boot_params[header::LOADFLAGS] |= KASLR;
    }
    put(&mut boot_params, header::CMD_LINE_PTR, &(place::COMMAND_LINE as u32).to_le_bytes());
    if let Some(initrd) = &initrd {
        // Both fit: low memory ends below 4 GiB.
        put(&mut boot_params, header::RAMDISK_IMAGE, &(initrd.gpa as u32).to_le_bytes());
        let len = initrd.bytes.len() as u32;
        put(&mut boot_params, header::RAMDISK_SIZE, &len.to_le_bytes());
    }
    if version >= 0x020e {
        put(&mut boot_params, params::ACPI_RSDP_ADDR, &request.rsdp.to_le_bytes());
    }
    let above_1m_k = (request.map.low_end().saturating_sub(0x10_0000) >> 10) as u32;
    put(&mut boot_params, params::EXT_MEM_K, &(above_1m_k.min(0xfc00) as u16).to_le_bytes());
    put(&mut boot_params, params::ALT_MEM_K, &above_1m_k.to_le_bytes());
    for (n, entry) in request.map.e820().iter().enumerate() {
        let at = params::E820_TABLE + 20 * n;
        put(&mut boot_params, at, &entry.start.to_le_bytes());
        put(&mut boot_params, at + 8, &entry.len.to_le_bytes());
        put(&mut boot_params, at + 16, &(entry.kind as u32).to_le_bytes());
    }
    // A memory map has a handful of entries; the table holds 128.
    boot_params[params::E820_ENTRIES] = request.map.e820().len() as u8;

    let Kernel { mut pieces, entry, page_tables, .. } = unpacked.unwrap_or_else(|| Kernel {
        pieces: vec![Piece { gpa: u64::from(start), bytes: request.kernel.part(code_at) }],
        entry: start,
        page_tables: None,
        random: false,
    });
    pieces.push(Piece { gpa: place::BOOT_PARAMS, bytes: boot_params.into() });
    pieces.push(Piece { gpa: place::COMMAND_LINE, bytes: command_line.into() });
    pieces.extend(initrd);
    let esi = place::BOOT_PARAMS as u32;
    let gdt = place::GDT;
    let linux_params = Some(place::BOOT_PARAMS);
    Ok(Loaded { pieces, entry, eax: 0, ebx: 0, esi, gdt, page_tables, linux_params })
}

/// Unpacks the kernel in the protected-mode part `code`. The error is a reason.
fn unpack(
    request: &Request<'_>,
    boot_params: &[u8],
    code: &[u8],
    initrd: Option<(u64, u64)>,
    random: &mut Random,
) -> Result<Kernel, String> {
    // A header has zeroes where its protocol had no field yet.
    let field = |at| u32_at(boot_params, at).unwrap_or(0);
    let start = field(header::PAYLOAD_OFFSET) as usize;
    let end = start.saturating_add(field(header::PAYLOAD_LENGTH) as usize);
    if start == 0 {
        return Err("its header doesn't say where the compressed kernel is".to_owned());
    }
    let payload = code.get(start..end).ok_or("the compressed kernel is not inside the file")?;
    let packed = Packed {
        payload,
        unpacker: [&code[..start], &code[end..]],
        init_size: u64::from(field(header::INIT_SIZE)),
        alignment: u64::from(field(header::KERNEL_ALIGNMENT)),
        relocatable: boot_params[header::RELOCATABLE_KERNEL] != 0,
        command_line: request.command_line,
        initrd,
        map: request.map,
        long_mode: request.long_mode,
    };
    linux::unpack(&packed, random)
}
