//! The machine's size and kind.

use clap::{Args, ValueEnum};
use xenolith_devices::virtio::Interfaces;
use xenolith_machine::{Engine, Mmu};

#[derive(Args, Debug)]
pub struct MachineFlags {
    /// Memory: a number of MiB, or with a suffix K, M, G or T (powers of 1024); 64M to 64G
    #[arg(short = 'm', long = "memory", value_name = "SIZE", help_heading = "Machine")]
    #[arg(value_parser = parse_size, default_value = "512M", allow_negative_numbers = true)]
    pub memory_bytes: u64,

    /// Number of processors, 1 to 64
    #[arg(short = 'c', long = "cpus", value_name = "N", help_heading = "Machine")]
    #[arg(default_value_t = 1, allow_negative_numbers = true)]
    pub cpus: u32,

    /// Processor: host (this computer's, cut to what is emulated), x86-64-v2, x86-64-v3 or i686, then
    /// switches such as "x86-64-v3,-avx2,+rdrand"; "vendor=amd" or "vendor=intel" is one too
    #[arg(long, value_name = "MODEL[,+F][,-F]", help_heading = "Machine", default_value = "host")]
    pub cpu: String,

    /// What executes guest code
    #[arg(long, value_name = "ENGINE", help_heading = "Machine", value_enum)]
    #[arg(default_value_t = EngineFlag::Bt)]
    pub engine: EngineFlag,

    /// Guest time counts instructions (1 ns each) instead of following this computer's clock: the same
    /// run every time. Needs -c 1
    #[arg(long, help_heading = "Machine")]
    pub icount: bool,

    /// Room for translated code: a number of MiB, or with a suffix; 4M to 1G
    #[arg(long, value_name = "SIZE", help_heading = "Machine")]
    #[arg(value_parser = parse_size, default_value = "256M", allow_negative_numbers = true)]
    pub code_cache: u64,

    /// How translated code finds the guest's memory
    #[arg(long, value_name = "KIND", help_heading = "Machine", value_enum)]
    #[arg(default_value_t = MmuFlag::Auto)]
    pub mmu: MmuFlag,

    /// Do without the host's BMI2, as on a host that has none: slower
    #[arg(long, help_heading = "Machine")]
    pub no_bmi2: bool,

    /// Which drivers the virtio devices are for
    #[arg(long, value_name = "KIND", help_heading = "Machine", value_enum)]
    #[arg(default_value_t = VirtioFlag::Transitional)]
    pub virtio: VirtioFlag,

    /// A memory balloon: the monitor's "balloon MIB" asks the guest for memory, which goes back to this computer
    #[arg(long, help_heading = "Machine")]
    pub balloon: bool,

    /// Print the translator's counters on standard error when the run ends; blocks then also count
    /// the instructions they run, which makes them a little slower
    #[arg(long, help_heading = "Machine")]
    pub stats: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineFlag {
    /// the binary translator
    Bt,
    /// the interpreter, the reference: right and slow
    Interp,
}

impl From<EngineFlag> for Engine {
    fn from(flag: EngineFlag) -> Self {
        match flag {
            EngineFlag::Interp => Self::Interp,
            EngineFlag::Bt => Self::Bt,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MmuFlag {
    /// the host's page tables for what works long, a look-up at each access for the rest
    Auto,
    /// a look-up at each access
    Soft,
    /// the host's page tables at once
    Shadow,
}

impl From<MmuFlag> for Mmu {
    fn from(flag: MmuFlag) -> Self {
        match flag {
            MmuFlag::Auto => Self::Auto,
            MmuFlag::Soft => Self::Soft,
            MmuFlag::Shadow => Self::Shadow,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VirtioFlag {
    /// all
    Transitional,
    /// those of virtio 1.0 and later
    Modern,
    /// those of before, as old systems have them
    Legacy,
}

impl From<VirtioFlag> for Interfaces {
    fn from(flag: VirtioFlag) -> Self {
        match flag {
            VirtioFlag::Transitional => Self::Transitional,
            VirtioFlag::Modern => Self::Modern,
            VirtioFlag::Legacy => Self::Legacy,
        }
    }
}

/// QEMU's syntax for `-m`: MiB unless a suffix says otherwise. The bounds are the machine's to check.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "K" | "KB" | "KIB" => 10,
        "" | "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err("a size is a number with K, M, G or T behind it, as 512M or 2G".to_owned()),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(
            "a size is a whole number with K, M, G or T behind it, as 512M or 2G".to_owned()
        );
    }
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| "more than a computer can have".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_as_qemu_reads_them() {
        assert_eq!(parse_size("512"), Ok(512 << 20));
        assert_eq!(parse_size("64M"), Ok(64 << 20));
        assert_eq!(parse_size("2g"), Ok(2 << 30));
        assert_eq!(parse_size("8192K"), Ok(8 << 20));
        assert_eq!(parse_size("10T"), Ok(10 << 40));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        for text in ["", "G", "-1", "1.5G", "lots", "1X", "0x10", "1 G", "99999999999T", "½G"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
