//! `xenolith disasm`: which code to show.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::CacheFlags;
use super::limits::parse_seconds;
use super::machine::{MmuFlag, parse_size};

const DISASM_HELP: &str = "\
Examples:
  xenolith disasm --code '01 43 08 75 fb c3'
  xenolith disasm --code boot.bin --mode 16 --at 0x7c00
  xenolith disasm --kernel vmlinuz --append 'console=ttyS0 nokaslr' --until 'Linux version'
  xenolith disasm debian --append nokaslr --until 'Run /init' --at 0xffffffff81000000

A guest runs until it has written the marker, the time is over or it ends by itself. With --at the blocks
that have the address are shown, jumps as they were chained; without it all blocks, a line each.

Exit status:
  0              done
  1              wrong usage or configuration, or no such block; one line on standard error says what";

#[derive(Args, Debug)]
#[command(after_help = DISASM_HELP, max_term_width = 100)]
pub struct DisasmArgs {
    /// A guest known by name (see `xenolith guests`)
    #[arg(value_name = "GUEST", conflicts_with_all = ["kernel", "code", "bios"])]
    pub guest: Option<String>,

    /// The guest: a Linux bzImage, an ELF with a PVH note, or a multiboot-1 image
    #[arg(long, value_name = "FILE", conflicts_with_all = ["code", "bios"])]
    pub kernel: Option<PathBuf>,

    /// The guest: firmware, a ROM image
    #[arg(long, value_name = "FILE", conflicts_with = "code")]
    pub bios: Option<PathBuf>,

    /// Instead of a guest: code as hexadecimal digits or in a flat file, translated but not run
    #[arg(long, value_name = "FILE|HEX")]
    pub code: Option<String>,

    /// Code size of --code: 16 (real mode), 32 or 64
    #[arg(long, value_name = "BITS", requires = "code", default_value = "64")]
    #[arg(value_parser = ["16", "32", "64"], hide_default_value = true)]
    pub mode: String,

    /// A linear address, hexadecimal: where --code lies [default: 0x1000], or what the guest's blocks
    /// must have
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    pub at: Option<u64>,

    /// Initial ramdisk; for a multiboot image, its first module
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,

    /// Kernel command line; of a guest known by name, more of it
    #[arg(long, value_name = "STRING", default_value = "", hide_default_value = true)]
    #[arg(allow_hyphen_values = true, conflicts_with_all = ["code", "bios"])]
    pub append: String,

    /// Memory, as for `run`
    #[arg(short = 'm', long = "memory", value_name = "SIZE", value_parser = parse_size)]
    #[arg(default_value = "512M", allow_negative_numbers = true)]
    pub memory_bytes: u64,

    /// Processor, as for `run`
    #[arg(long, value_name = "MODEL[,+F][,-F]", default_value = "host")]
    pub cpu: String,

    /// How translated code finds the guest's memory, as for `run`; auto is soft for --code
    #[arg(long, value_name = "KIND", value_enum, default_value_t = MmuFlag::Auto)]
    pub mmu: MmuFlag,

    /// End the run when the guest has written this on its console
    #[arg(long, value_name = "MARKER", conflicts_with = "code")]
    pub until: Option<String>,

    /// End the run after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "60")]
    #[arg(allow_negative_numbers = true)]
    pub timeout: Duration,

    #[command(flatten)]
    pub cache: CacheFlags,
}

/// Hexadecimal digits, with or without 0x.
fn parse_address(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    let sound = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let address = sound.then(|| u64::from_str_radix(digits, 16).ok()).flatten();
    address.ok_or_else(|| "an address is up to 16 hexadecimal digits, as 0x7c00".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hexadecimal() {
        assert_eq!(parse_address("0x7c00"), Ok(0x7c00));
        assert_eq!(parse_address("ffffffff81000000"), Ok(0xffff_ffff_8100_0000));
        for text in ["", "0x", "-1", "+5", "g", "1ffffffffffffffff"] {
            assert!(parse_address(text).is_err(), "{text}");
        }
    }
}
