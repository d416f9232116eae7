//! What to boot: a guest by name, or files; and the disks it sees.

use std::path::PathBuf;

use clap::Args;
use xenolith_machine::DiskConfig;

#[derive(Args, Debug)]
pub struct BootFlags {
    /// A guest known by name, fetched once: debian or debian-i386 (see `xenolith guests`); or a disk
    /// image, which is booted by firmware as the first disk
    #[arg(value_name = "GUEST|IMAGE", conflicts_with = "kernel")]
    #[arg(required_unless_present_any = ["kernel", "bios", "disks"])]
    pub guest: Option<String>,

    /// Firmware to start by: a ROM image [default without a kernel: SeaBIOS as Debian's package seabios
    /// installs it]
    #[arg(long, value_name = "FILE", help_heading = "What to boot", conflicts_with = "kernel")]
    pub bios: Option<PathBuf>,

    /// File for what the guest writes to the debug ports 0x402 (firmware) and 0xe9
    #[arg(long, value_name = "FILE", help_heading = "What to boot")]
    pub debugcon: Option<PathBuf>,

    /// Kernel to boot instead: a Linux bzImage (vmlinuz), an ELF with a PVH note (vmlinux), or a
    /// multiboot-1 image
    #[arg(long, value_name = "FILE", help_heading = "What to boot")]
    pub kernel: Option<PathBuf>,

    /// Initial ramdisk for --kernel; for a multiboot image, its first module
    #[arg(long, value_name = "FILE", help_heading = "What to boot", conflicts_with = "guest")]
    #[arg(requires = "kernel")]
    pub initrd: Option<PathBuf>,

    /// Kernel command line. With --kernel it is the whole of it (console=ttyS0 shows a Linux guest
    /// here); a named guest has its own, which this extends
    #[arg(long, value_name = "STRING", help_heading = "What to boot", default_value = "")]
    #[arg(hide_default_value = true, allow_hyphen_values = true)]
    pub append: String,

    /// Raw disk image, attached as virtio-blk: the first is /dev/vda in Linux, the next /dev/vdb. With
    /// ",ro" behind it, the guest can't write it. May be given again
    #[arg(long = "disk", value_name = "FILE[,ro]", help_heading = "What to boot")]
    #[arg(value_parser = parse_disk)]
    pub disks: Vec<DiskConfig>,
}

fn parse_disk(text: &str) -> Result<DiskConfig, String> {
    let (path, read_only) = match text.strip_suffix(",ro") {
        Some(path) => (path, true),
        None => (text, false),
    };
    if path.is_empty() {
        return Err("a file name must be given".to_owned());
    }
    Ok(DiskConfig { path: PathBuf::from(path), read_only })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_writable_unless_said() {
        let disk = parse_disk("a,b.img").expect("a plain name");
        assert_eq!((disk.path.as_os_str().to_str(), disk.read_only), (Some("a,b.img"), false));
        let disk = parse_disk("a.img,ro").expect("read-only");
        assert_eq!((disk.path.as_os_str().to_str(), disk.read_only), (Some("a.img"), true));
        assert!(parse_disk(",ro").is_err());
        assert!(parse_disk("").is_err());
    }
}
