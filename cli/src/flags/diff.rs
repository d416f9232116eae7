//! `xenolith diff`: what to compare with what.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use xenolith_machine::diff::Against;

use super::machine::parse_size;

const DIFF_HELP: &str = "\
Examples:
  xenolith diff --kernel bzImage --initrd initrd.img --append console=ttyS0
  xenolith diff --kernel guest.elf --against qemu --steps 10000
  xenolith diff --kernel bzImage --against qemu --until 'Run /init'
  xenolith diff --snippet '48 0f af c3' --mode 64
  xenolith diff --snippet test.asm --mode 32

Exit status:
  0              no difference
  1              wrong usage or configuration; one line on standard error says what
  4              a difference; standard output has it";

#[derive(Args, Debug)]
#[command(after_help = DIFF_HELP, max_term_width = 100)]
pub struct DiffArgs {
    /// The guest: a Linux bzImage, an ELF with a PVH note, or a multiboot-1 image
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,

    /// Instead of a guest: a few instructions of user code, as hexadecimal digits or in a file for NASM, run in
    /// all engines, in QEMU if it is installed, and on this processor
    #[arg(long, value_name = "FILE.asm|HEX", conflicts_with = "kernel")]
    pub snippet: Option<String>,

    /// Code size of the snippet
    #[arg(long, value_name = "BITS", requires = "snippet", default_value = "64")]
    #[arg(value_parser = ["16", "32", "64"], hide_default_value = true)]
    pub mode: String,

    /// Initial ramdisk; for a multiboot image, its first module
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,

    /// Kernel command line
    #[arg(long, value_name = "STRING", default_value = "", hide_default_value = true)]
    #[arg(allow_hyphen_values = true)]
    pub append: String,

    /// Memory, as for `run`
    #[arg(short = 'm', long = "memory", value_name = "SIZE", value_parser = parse_size)]
    #[arg(default_value = "256M", allow_negative_numbers = true)]
    pub memory_bytes: u64,

    /// Processor, as for `run` [default: host; with --against qemu x86-64-v2]
    #[arg(long, value_name = "MODEL[,+F][,-F]")]
    pub cpu: Option<String>,

    /// Which two engines: bt (the translator and the interpreter), qemu (the interpreter and QEMU), or
    /// interp (the interpreter twice)
    #[arg(long, value_name = "ENGINE", value_enum, default_value_t = AgainstFlag::Bt)]
    pub against: AgainstFlag,

    /// End when the guest has written this on its first serial line
    #[arg(long, value_name = "MARKER")]
    pub until: Option<String>,

    /// End after so many steps: instructions, or blocks of the translator
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,

    /// With --against qemu: compare after every instruction, not after stretches (a thousand times
    /// slower)
    #[arg(long)]
    pub every_instruction: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AgainstFlag {
    Qemu,
    Interp,
    Bt,
}

impl From<AgainstFlag> for Against {
    fn from(flag: AgainstFlag) -> Self {
        match flag {
            AgainstFlag::Qemu => Self::Qemu,
            AgainstFlag::Interp => Self::Interp,
            AgainstFlag::Bt => Self::Bt,
        }
    }
}
