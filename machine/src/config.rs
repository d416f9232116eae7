//! What a person asks for, and what is wrong with it.
//!
//! Problem: every mistake in a configuration must be told in one line that names the option and the
//! way out. Scheme: [`Config`] is plain data without invariants; [`Config::check`] refuses what can be
//! refused without looking at files, the loaders refuse the rest; both with [`ConfigError`], whose
//! `Display` is that line. Any thread.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use xenolith_devices::disk::DiskOptions;
use xenolith_devices::net::Mac;
use xenolith_devices::virtio::Interfaces;
use xenolith_devices::{floppy, ide};
use xenolith_net::Settings;

use crate::bt::Report;
use crate::disasm::Wanted;

/// Which engine executes guest code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// The plain interpreter: the reference.
    Interp,
    /// The binary translator.
    #[default]
    Bt,
}

/// How the translator's memory operands find the host's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mmu {
    /// Address spaces that work long get shadow windows.
    #[default]
    Auto,
    /// The inline TLB only.
    Soft,
    /// Shadow windows at once, wherever they can be.
    Shadow,
}

/// Who unpacks the compressed kernel in a bzImage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unpacker {
    /// The loader, where it can; else the guest.
    #[default]
    Auto,
    /// The loader; a kernel that it can't unpack is refused.
    Host,
    /// The kernel itself, in the guest.
    Guest,
}

/// What a disk image is attached to the machine as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attachment {
    #[default]
    Virtio,
    /// A hard disk on an IDE cable.
    Ide,
    /// The disc in an IDE CD-ROM drive.
    Cdrom,
    Floppy,
}

/// A disk image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskConfig {
    pub path: PathBuf,
    pub options: DiskOptions,
    pub attachment: Attachment,
}

impl DiskConfig {
    /// The option by which a person names such a disk.
    #[must_use]
    pub fn option(&self) -> &'static str {
        match self.attachment {
            Attachment::Virtio | Attachment::Ide => "--disk",
            Attachment::Cdrom => "--cdrom",
            Attachment::Floppy => "--floppy",
        }
    }
}

/// Which network card there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetModel {
    /// Virtio's.
    #[default]
    Virtio,
    /// Intel's 82540EM, which old systems and firmware know.
    E1000,
}

/// A network card and the network that it is plugged into.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetConfig {
    pub model: NetModel,
    pub mac: Mac,
    /// The card's option ROM, by which firmware starts from the network.
    pub rom: Option<PathBuf>,
    pub settings: Settings,
}

/// How translated code is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Making {
    /// How it finds memory.
    pub mmu: Mmu,
    /// With the host's BMI2, if it has that.
    pub bmi2: bool,
}

impl From<Mmu> for Making {
    fn from(mmu: Mmu) -> Self {
        Self { mmu, bmi2: true }
    }
}

/// A machine to build.
#[derive(Clone, Debug)]
pub struct Config {
    /// RAM in bytes, a multiple of 1 MiB (`-m`).
    pub memory_bytes: u64,
    /// Number of processors (`-c`).
    pub vcpus: u32,
    /// CPUID model and switches: `MODEL,+feature,-feature` (`--cpu`).
    pub cpu: String,
    pub engine: Engine,
    /// Firmware to start by (`--bios`); then there is no kernel, initrd or command line.
    pub firmware: Option<PathBuf>,
    /// Where bytes written to the debug ports go (`--debugcon`).
    pub debug_output: Option<PathBuf>,
    /// Where the second serial line's bytes go (`--serial2`): a file that is there. `None`: nowhere.
    pub second_serial: Option<PathBuf>,
    /// bzImage, ELF with a PVH note, or multiboot-1 image.
    pub kernel: PathBuf,
    /// Who unpacks a bzImage (`--kernel-unpack`).
    pub unpacker: Unpacker,
    pub initrd: Option<PathBuf>,
    /// Kernel command line (`--append`).
    pub command_line: String,
    /// The guest has its console on virtio-console, or hasn't (`--console`). `None`: as the command line says.
    pub console_is_virtio: Option<bool>,
    pub disks: Vec<DiskConfig>,
    /// Which drivers virtio devices are for (`--virtio`).
    pub virtio: Interfaces,
    /// There is a memory balloon (`--balloon`).
    pub balloon: bool,
    /// The network (`--net`). `None`: no card.
    pub net: Option<NetConfig>,
    /// Option ROM of a display to fit (`--vga-rom`): its video services. `None`: no display.
    pub vga_rom: Option<PathBuf>,
    /// End with [`crate::End::Timeout`] after so much host time.
    pub timeout: Option<Duration>,
    /// The same after so much guest time, resets included.
    pub guest_timeout: Option<Duration>,
    /// A guest reset ends the run instead of starting the machine again.
    pub no_reboot: bool,
    /// Guest time is counted in instructions, 1 ns each, instead of host time.
    pub icount: bool,
    /// Room for translated code in bytes (`--code-cache`).
    pub code_cache_bytes: usize,
    /// How translated code is made (`--mmu`, `--no-bmi2`).
    pub making: Making,
    /// Where the translator's counters go (`--stats`). Blocks then count what they run.
    pub report: Option<Arc<Report>>,
    /// Which of the translator's blocks to list at the end (`xenolith disasm`).
    pub listing: Option<Arc<Wanted>>,
}

/// Smallest and largest room for translated code.
pub const CODE_CACHE_BYTES_MIN: usize = 4 << 20;
pub const CODE_CACHE_BYTES_MAX: usize = 1 << 30;
/// The usual room.
pub const CODE_CACHE_BYTES: usize = 256 << 20;

/// Smallest and largest RAM.
pub const MEMORY_BYTES_MIN: u64 = 64 << 20;
pub const MEMORY_BYTES_MAX: u64 = 64 << 30;
/// Most processors: 8-bit APIC ids, 255 being the broadcast address.
pub const VCPUS_MAX: u32 = 64;

impl Default for Config {
    fn default() -> Self {
        Self {
            memory_bytes: 512 << 20,
            vcpus: 1,
            cpu: "host".to_owned(),
            engine: Engine::default(),
            firmware: None,
            debug_output: None,
            second_serial: None,
            kernel: PathBuf::new(),
            unpacker: Unpacker::Auto,
            initrd: None,
            command_line: String::new(),
            console_is_virtio: None,
            disks: Vec::new(),
            virtio: Interfaces::default(),
            balloon: false,
            net: None,
            vga_rom: None,
            timeout: None,
            guest_timeout: None,
            no_reboot: false,
            icount: false,
            code_cache_bytes: CODE_CACHE_BYTES,
            making: Mmu::Auto.into(),
            report: None,
            listing: None,
        }
    }
}

impl Config {
    /// Refuses what is wrong whatever the files hold.
    ///
    /// # Errors
    /// The first thing wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !(MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&self.memory_bytes)
            || !self.memory_bytes.is_multiple_of(1 << 20)
        {
            return Err(ConfigError::Memory { bytes: self.memory_bytes });
        }
        if !(1..=VCPUS_MAX).contains(&self.vcpus) {
            return Err(ConfigError::Vcpus { vcpus: self.vcpus });
        }
        if !(CODE_CACHE_BYTES_MIN..=CODE_CACHE_BYTES_MAX).contains(&self.code_cache_bytes) {
            return Err(ConfigError::CodeCache { bytes: self.code_cache_bytes });
        }
        let count = |kinds: &[Attachment]| {
            self.disks.iter().filter(|disk| kinds.contains(&disk.attachment)).count()
        };
        let floppies = count(&[Attachment::Floppy]);
        if floppies > floppy::DRIVES {
            return Err(ConfigError::Floppies { floppies });
        }
        let drives = count(&[Attachment::Ide, Attachment::Cdrom]);
        if drives > ide::DRIVES {
            return Err(ConfigError::IdeDrives { drives });
        }
        if self.icount && self.vcpus > 1 {
            return Err(ConfigError::CountedTimeVcpus { vcpus: self.vcpus });
        }
        Ok(())
    }
}

/// Why a machine can't be built. `Display` is one line for the person who asked.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "-m: {bytes} bytes of memory: give at least {} MiB and at most {} GiB, in whole MiB",
        MEMORY_BYTES_MIN >> 20,
        MEMORY_BYTES_MAX >> 30
    )]
    Memory { bytes: u64 },
    #[error("-c: {vcpus} processors: give 1 to {VCPUS_MAX}")]
    Vcpus { vcpus: u32 },
    #[error(
        "--code-cache: {bytes} bytes for translated code: give at least {} MiB and at most {} MiB",
        CODE_CACHE_BYTES_MIN >> 20,
        CODE_CACHE_BYTES_MAX >> 20
    )]
    CodeCache { bytes: usize },
    #[error("--icount counts one processor's instructions and so needs -c 1, not -c {vcpus}")]
    CountedTimeVcpus { vcpus: u32 },
    #[error("--cpu {model}: {reason}")]
    Cpu { model: String, reason: String },
    /// A file couldn't be opened or read.
    #[error("{option} {}: {}", path.display(), describe(source))]
    File { option: &'static str, path: PathBuf, source: io::Error },
    /// The kernel isn't in a format that we load.
    #[error(
        "--kernel {}: not a kernel that can be loaded: it must be a Linux bzImage, an ELF with a \
         PVH note (vmlinux) or a multiboot-1 image{hint}",
        path.display()
    )]
    UnknownKernel { path: PathBuf, hint: &'static str },
    /// The kernel is in a known format, but damaged or unsuitable.
    #[error("--kernel {}: {reason}", path.display())]
    Kernel { path: PathBuf, reason: String },
    #[error("--bios {}: {reason}", path.display())]
    Firmware { path: PathBuf, reason: String },
    #[error("--initrd {}: {reason}", path.display())]
    Initrd { path: PathBuf, reason: String },
    #[error("--append: the command line has {len} bytes, and this kernel takes at most {max}")]
    CommandLine { len: usize, max: usize },
    #[error("--append: the command line holds a NUL byte")]
    CommandLineNul,
    #[error("--net user: {reason}")]
    Net { reason: String },
    #[error("{option} {}: {reason}", path.display())]
    Disk { option: &'static str, path: PathBuf, reason: String },
    #[error(
        "--disk and --cdrom: {drives} drives by IDE, which has room for {}; disks are by virtio without \
         if=ide",
        ide::DRIVES
    )]
    IdeDrives { drives: usize },
    #[error("--floppy: {floppies} floppies: give at most {}", floppy::DRIVES)]
    Floppies { floppies: usize },
    /// The host refused something that is not a matter of configuration.
    #[error("cannot {what}: {reason}")]
    Host { what: &'static str, reason: String },
}

/// An I/O error without the "(os error N)" that tells nobody anything.
pub(crate) fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_configurations_are_refused_in_one_line() {
        let good = Config::default();
        good.check().expect("the default configuration is sound");
        let floppy = DiskConfig { attachment: Attachment::Floppy, ..DiskConfig::default() };
        let ide = DiskConfig { attachment: Attachment::Ide, ..DiskConfig::default() };
        let bad = [
            Config { memory_bytes: 0, ..good.clone() },
            Config { memory_bytes: u64::MAX, ..good.clone() },
            Config { memory_bytes: (64 << 20) + 1, ..good.clone() },
            Config { vcpus: 0, ..good.clone() },
            Config { vcpus: 1000, ..good.clone() },
            Config { code_cache_bytes: 0, ..good.clone() },
            Config { code_cache_bytes: 2 << 30, ..good.clone() },
            Config { disks: vec![ide; 5], ..good.clone() },
            Config { disks: vec![floppy; 3], ..good.clone() },
            Config { icount: true, vcpus: 2, ..good },
        ];
        for config in bad {
            let text = config.check().expect_err("refused").to_string();
            assert!(!text.contains('\n') && text.starts_with('-'), "{text}");
        }
    }
}
