//! Boot loaders: from kernel files to bytes in guest memory and a processor to start.
//!
//! Problem: three formats, each with its own header, information block and register contract, from
//! files that may be cut short or hostile. Scheme: a loader is a pure function from the files, the
//! [`MemoryMap`] and random numbers to a [`Loaded`]: pieces of memory and entry registers. [`Files`] are read once,
//! and loaded from at every (re)start; loaders need no RAM to be tested. Every format we take is entered in flat
//! 32-bit protected mode with paging off, but for 64-bit Linux that we have unpacked. Invariants: pieces lie in RAM,
//! apart from each other and from the firmware's tables; a file offset is used only after it was checked against the
//! file's length. Called before the machine runs.
//!
//! The image is tried as QEMU does: bzImage, multiboot, then ELF with a PVH note.

mod bytes;
mod bzimage;
mod elf;
mod firmware;
mod kaslr;
mod linux;
mod multiboot;
mod payload;
mod pvh;
mod xz;

use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use xenolith_cpu::cpuid::{CpuidModel, Feature};
use xenolith_cpu::state::{Cr0, Cr4, Efer, Segment, TableRegister, sreg};
use xenolith_cpu::{CpuState, PAGE_SIZE};

use crate::config::{Config, ConfigError, Unpacker};
use crate::memory_map::{EBDA_START, EXTENDED_START, MemoryMap};
use crate::random::Random;
use bytes::Bytes;

/// Where loaders put their own blocks in low memory, if the kernel leaves these places free. The
/// firmware's data area is at 0x400, its extended one at [`crate::memory_map::EBDA_START`].
mod place {
    /// Descriptor table, [`super::GDT`].
    pub const GDT: u64 = 0x500;
    /// PVH start information, memory map and module list, or multiboot information.
    pub const INFO: u64 = 0x1000;
    /// Linux's boot parameters.
    pub const BOOT_PARAMS: u64 = 0x7000;
    /// Page tables of a 64-bit Linux, six pages.
    pub const PAGE_TABLES: u64 = 0x9000;
    pub const COMMAND_LINE: u64 = 0x2_0000;
    /// Longest command line that fits below the extended BIOS data area, with its NUL.
    pub const COMMAND_LINE_MAX: usize = 0x1_0000;
}

/// Of the host.
const LARGE_PAGE: usize = 2 << 20;
/// Kernels are packed to a fourth or so.
const LIKELY_RATIO: usize = 8;

/// Null, null, flat code at 0x10, flat data at 0x18 (the selectors of Linux's boot protocol), and a
/// task state segment for PVH, which in long mode has two places.
const GDT: [u64; 6] =
    [0, 0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067, 0];
const GDT_BYTES: u64 = 8 * GDT.len() as u64;
/// The code segment of 64-bit mode.
const LONG_CODE: u64 = 0x00af_9b00_0000_ffff;

/// Bytes to place in guest memory before the start.
#[derive(Clone, PartialEq, Eq)]
pub struct Piece {
    pub gpa: u64,
    pub bytes: Bytes,
}

impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Piece({:#x}+{:#x})", self.gpa, self.bytes.len())
    }
}

/// A guest's first state: memory and the boot processor's registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    pub pieces: Vec<Piece>,
    pub entry: u32,
    pub eax: u32,
    pub ebx: u32,
    pub esi: u32,
    /// Address of the descriptor table.
    pub gdt: u64,
    /// Address of the page tables of a guest that is entered in long mode.
    pub page_tables: Option<u64>,
    /// Address of Linux's boot parameters, whose description of the screen is still missing.
    pub linux_params: Option<u64>,
}

impl Loaded {
    fn descriptors(&self) -> [u64; 6] {
        let mut table = GDT;
        if self.page_tables.is_some() {
            table[2] = LONG_CODE;
        }
        table
    }

    /// Gives the boot processor its registers: flat 32-bit protected mode with paging off, or 64-bit mode with
    /// the guest's page tables; interrupts off.
    pub fn enter(&self, cpu: &mut CpuState) {
        cpu.gpr = [0; 16];
        cpu.gpr[0] = u64::from(self.eax);
        cpu.gpr[3] = u64::from(self.ebx);
        cpu.gpr[6] = u64::from(self.esi);
        cpu.rip = u64::from(self.entry);
        cpu.rflags = 2;
        cpu.cr0 = (Cr0::PE | Cr0::ET).bits();
        if let Some(root) = self.page_tables {
            cpu.cr3 = root;
            cpu.cr4 = Cr4::PAE.bits();
            cpu.efer = (Efer::LME | Efer::LMA).bits();
            cpu.cr0 |= Cr0::PG.bits();
        }
        let table = self.descriptors();
        cpu.gdtr = TableRegister { base: self.gdt, limit: (GDT_BYTES - 1) as u16 };
        cpu.idtr = TableRegister { base: 0, limit: 0 };
        cpu.seg = [Segment::from_descriptor(0x18, table[3]); 6];
        cpu.seg[sreg::CS] = Segment::from_descriptor(0x10, table[2]);
        cpu.tr = Segment::from_descriptor(0x20, table[4]);
    }
}

/// How a machine starts.
#[derive(Clone, Debug)]
pub enum Start {
    /// A kernel is in memory, and the board is as firmware would have left it.
    Kernel(Loaded),
    /// The board is as power-on leaves it, with this ROM below 4 GiB.
    Firmware(Vec<u8>),
}

/// What the loaders work from.
struct Request<'a> {
    kernel: &'a Bytes,
    kernel_path: &'a Path,
    initrd: Option<Bytes>,
    initrd_path: &'a Path,
    command_line: &'a str,
    map: &'a MemoryMap,
    /// Address of the ACPI root pointer.
    rsdp: u64,
    unpacker: Unpacker,
    /// The processor has long mode.
    long_mode: bool,
}

impl Request<'_> {
    /// The kernel is damaged or unsuitable.
    fn bad(&self, reason: impl Into<String>) -> ConfigError {
        ConfigError::Kernel { path: self.kernel_path.to_owned(), reason: reason.into() }
    }

    /// The command line with its NUL, refused beyond `max` bytes without it.
    fn command_line(&self, max: usize) -> Result<Vec<u8>, ConfigError> {
        let max = max.min(place::COMMAND_LINE_MAX - 1);
        terminated(self.command_line, max)
    }

    /// Takes the initrd and places it as high as it fits in low RAM, below `limit` and above `floor`.
    fn place_initrd(&mut self, floor: u64, limit: u64) -> Result<Option<Piece>, ConfigError> {
        let Some(bytes) = self.initrd.take() else { return Ok(None) };
        let top = self.map.low_end().min(limit);
        let len = bytes.len() as u64;
        let gpa = top.checked_sub(len).map(|start| start & !0xfff);
        match gpa {
            Some(gpa) if gpa >= floor => Ok(Some(Piece { gpa, bytes })),
            _ => Err(self.no_room(len, floor, top)),
        }
    }

    /// Takes the initrd and places it at `floor`, or from 1 MiB on if it doesn't fit below.
    fn place_initrd_low(&mut self, floor: u64) -> Result<Option<Piece>, ConfigError> {
        let Some(bytes) = self.initrd.take() else { return Ok(None) };
        let len = bytes.len() as u64;
        match [floor, floor.max(EXTENDED_START)].into_iter().find(|&at| self.map.is_ram(at, len)) {
            Some(gpa) => Ok(Some(Piece { gpa, bytes })),
            None => Err(self.no_room(len, floor, self.map.low_end())),
        }
    }

    fn no_room(&self, len: u64, floor: u64, top: u64) -> ConfigError {
        ConfigError::Initrd {
            path: self.initrd_path.to_owned(),
            reason: format!(
                "its {len} bytes don't fit between the end of the kernel ({floor:#x}) and the end \
                 of low memory ({top:#x}); give more memory with -m"
            ),
        }
    }
}

/// Where the last of these parts of memory ends.
fn end_of(taken: &[(u64, u64)]) -> u64 {
    taken.iter().map(|&(_, end)| end).max().unwrap_or(0)
}

/// Low memory for a loader's blocks, around what the kernel and its module take.
struct LowMemory<'a> {
    request: &'a Request<'a>,
    taken: Vec<(u64, u64)>,
}

impl<'a> LowMemory<'a> {
    /// `taken`: start and end of each part of the kernel, zeroed memory included.
    fn new(request: &'a Request<'a>, mut taken: Vec<(u64, u64)>, module: Option<&Piece>) -> Self {
        taken.extend(module.map(|piece| (piece.gpa, piece.gpa + piece.bytes.len() as u64)));
        Self { request, taken }
    }

    /// Takes `len` bytes at `usual`, or else in the first gap behind [`place::GDT`] that has room.
    fn take(&mut self, usual: u64, len: u64) -> Result<u64, ConfigError> {
        let ends = self.taken.iter().map(|&(_, end)| end.next_multiple_of(16));
        let mut places: Vec<u64> =
            ends.chain([place::GDT]).filter(|&at| at >= place::GDT).collect();
        places.sort_unstable();
        let free = |at: u64| {
            at + len <= EBDA_START
                && self.taken.iter().all(|&(start, end)| at + len <= start || end <= at)
        };
        let Some(at) = [usual].into_iter().chain(places).find(|&at| free(at)) else {
            return Err(self
                .request
                .bad("it leaves no room in the first 640 KiB for what it is given"));
        };
        self.taken.push((at, at + len));
        Ok(at)
    }
}

/// `text` with a NUL behind it.
fn terminated(text: &str, max: usize) -> Result<Vec<u8>, ConfigError> {
    if text.len() > max {
        return Err(ConfigError::CommandLine { len: text.len(), max });
    }
    if text.contains('\0') {
        return Err(ConfigError::CommandLineNul);
    }
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    Ok(bytes)
}

/// Reads a file whole that must fit in memory.
fn read_file(option: &'static str, path: &Path, max: u64) -> Result<Vec<u8>, ConfigError> {
    let too_large = format!("larger than the {} MiB of memory; give more with -m", max >> 20);
    read_limited(option, path, max, &too_large)
}

/// Reads a file whole, but not more than `max` bytes: a device file may never end.
fn read_limited(
    option: &'static str,
    path: &Path,
    max: u64,
    too_large: &str,
) -> Result<Vec<u8>, ConfigError> {
    read_bounded(path, max, too_large).map_err(|source| ConfigError::File {
        option,
        path: path.to_owned(),
        source,
    })
}

/// The same, with the bare error.
fn read_bounded(path: &Path, max: u64, too_large: &str) -> io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    // What isn't a plain file says nothing of its size.
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(usize::try_from(metadata.len().min(max)).unwrap_or_default())?;
    ask_for_large_pages(&mut bytes);
    file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::other(too_large));
    }
    Ok(bytes)
}

/// Asks for large pages of the host's for what a vector has room for: a small one is a fault.
fn ask_for_large_pages(room: &mut Vec<u8>) {
    let start = room.as_mut_ptr() as usize;
    let first = start.next_multiple_of(PAGE_SIZE as usize);
    let len = (start + room.capacity()).saturating_sub(first);
    // SAFETY: a range inside the vector's memory; the advice changes no contents. A refusal does no harm.
    let _ = unsafe { libc::madvise(first as *mut libc::c_void, len, libc::MADV_HUGEPAGE) };
}

/// What of `room` will probably be filled by what is packed into `packed` bytes: not all, if somebody only says that it
/// becomes so large.
fn likely_range(room: Range<*mut u8>, packed: usize) -> Range<*mut u8> {
    let bytes = room.end.addr() - room.start.addr();
    room.start..room.start.wrapping_add(bytes.min(packed.saturating_mul(LIKELY_RATIO)))
}

/// Does some work while another thread has the host find the pages of `room`, which is memory of ours: unpacking is so slow
/// that it rarely has to wait for one then.
fn beside_populating<T>(room: Range<*mut u8>, work: impl FnOnce() -> T) -> T {
    let (start, end) = (room.start.addr(), room.end.addr());
    if end - start < LARGE_PAGE {
        return work();
    }
    let populate = move || {
        let mut at = start.next_multiple_of(PAGE_SIZE as usize);
        while at < end {
            let next = end.min((at + 1).next_multiple_of(LARGE_PAGE));
            // SAFETY: pages of a range that is allocated until the thread has been joined; the advice changes no contents.
            // A refusal does no harm.
            let _ = unsafe {
                libc::madvise(at as *mut libc::c_void, next - at, libc::MADV_POPULATE_WRITE)
            };
            at = next;
        }
    };
    std::thread::scope(|scope| {
        // Without a thread the pages are found when they are written.
        let _ = std::thread::Builder::new().name("memory".to_owned()).spawn_scoped(scope, populate);
        work()
    })
}

/// Reads an option ROM of at most `max` bytes.
///
/// # Errors
/// The host's, or the file is larger or no option ROM.
pub fn option_rom(path: &Path, max: usize) -> io::Result<Vec<u8>> {
    let reason = format!("not an option ROM of at most {} KiB", max >> 10);
    let rom = read_bounded(path, max as u64, &reason)?;
    if rom.starts_with(&[0x55, 0xaa]) { Ok(rom) } else { Err(io::Error::other(reason)) }
}

/// What a machine starts from, as it was read once.
#[derive(Debug)]
pub enum Files {
    Firmware(Vec<u8>),
    Kernel { kernel: Bytes, initrd: Option<Bytes> },
}

impl Files {
    /// Reads what `config` names: firmware, or a kernel.
    ///
    /// # Errors
    /// A file can't be read, or is too large.
    pub fn read(config: &Config) -> Result<Self, ConfigError> {
        if let Some(path) = &config.firmware {
            return firmware::load(path).map(Self::Firmware);
        }
        let kernel = read_file("--kernel", &config.kernel, config.memory_bytes)?.into();
        let initrd = match &config.initrd {
            None => None,
            Some(path) => Some(read_file("--initrd", path, config.memory_bytes)?.into()),
        };
        Ok(Self::Kernel { kernel, initrd })
    }

    /// Makes a start of them. `config` is what they were read for, `rsdp` the address of the ACPI root
    /// pointer.
    ///
    /// # Errors
    /// The file isn't a kernel, is damaged, or doesn't fit.
    pub fn load(
        &self,
        config: &Config,
        map: &MemoryMap,
        rsdp: u64,
        random: &mut Random,
    ) -> Result<Start, ConfigError> {
        let (kernel, initrd) = match self {
            Self::Firmware(rom) => return Ok(Start::Firmware(rom.clone())),
            Self::Kernel { kernel, initrd } => (kernel, initrd),
        };
        let request = Request {
            kernel,
            kernel_path: &config.kernel,
            initrd: initrd.clone(),
            initrd_path: config.initrd.as_deref().unwrap_or(Path::new("")),
            command_line: &config.command_line,
            map,
            rsdp,
            unpacker: config.unpacker,
            // A model that is none is refused where the processors are made.
            long_mode: CpuidModel::parse(&config.cpu).is_ok_and(|model| model.has(Feature::Lm)),
        };
        let loaded = load_image(request, random)?;
        check(&loaded, map, &config.kernel)?;
        Ok(Start::Kernel(loaded))
    }
}

fn load_image(request: Request<'_>, random: &mut Random) -> Result<Loaded, ConfigError> {
    let mut loaded = if bzimage::matches(request.kernel) {
        bzimage::load(request, random)
    } else if let Some(header) = multiboot::find(request.kernel) {
        multiboot::load(request, header)
    } else if elf::matches(request.kernel) {
        pvh::load(request)
    } else {
        Err(ConfigError::UnknownKernel {
            path: request.kernel_path.to_owned(),
            hint: hint(request.kernel),
        })
    }?;
    let gdt: Vec<u8> = loaded.descriptors().into_iter().flat_map(u64::to_le_bytes).collect();
    loaded.pieces.push(Piece { gpa: loaded.gdt, bytes: gdt.into() });
    loaded.pieces.retain(|piece| !piece.bytes.is_empty());
    Ok(loaded)
}

/// What a file that is no kernel seems to be.
fn hint(bytes: &[u8]) -> &'static str {
    let head = &bytes[..bytes.len().min(512)];
    if bytes.is_empty() {
        " (the file is empty)"
    } else if head.starts_with(&[0x1f, 0x8b]) || head.starts_with(b"\xfd7zXZ") {
        " (it is a compressed file: unpack it first)"
    } else if bytes.len() < 0x250 && head.starts_with(b"MZ") {
        " (it seems to be a bzImage cut short)"
    } else if head.iter().all(|&b| b == b'\t' || b == b'\n' || b == b'\r' || (32..127).contains(&b))
    {
        " (it seems to be a text file)"
    } else if bytes.get(510..512) == Some(&[0x55, 0xaa]) {
        " (it seems to be a disk image: boot it without --kernel, as in 'xenolith run disk.img')"
    } else {
        ""
    }
}

/// Holds a loader to its promise: everything is in RAM, nothing overlaps.
fn check(loaded: &Loaded, map: &MemoryMap, kernel: &Path) -> Result<(), ConfigError> {
    let bad = |reason| Err(ConfigError::Kernel { path: kernel.to_owned(), reason });
    let mut spans: Vec<(u64, u64)> = Vec::new();
    for piece in &loaded.pieces {
        let len = piece.bytes.len() as u64;
        if !map.is_loadable(piece.gpa, len) {
            return bad(format!(
                "it loads {len:#x} bytes at {:#x}, where there is no memory; give more with -m",
                piece.gpa
            ));
        }
        spans.push((piece.gpa, piece.gpa + len));
    }
    spans.sort_unstable();
    match spans.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        None => Ok(()),
        Some(pair) => bad(format!(
            "it wants memory at {:#x} that the boot loader or another part of it uses",
            pair[1].0
        )),
    }
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    let end = offset.checked_add(2)?;
    Some(u16::from_le_bytes(bytes.get(offset..end)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let end = offset.checked_add(4)?;
    Some(u32::from_le_bytes(bytes.get(offset..end)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    let end = offset.checked_add(8)?;
    Some(u64::from_le_bytes(bytes.get(offset..end)?.try_into().ok()?))
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

#[cfg(test)]
mod tests;
