//! What to boot: a guest by name, or files; and the disks it sees.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use xenolith_devices::disk::{DiskOptions, Format};
use xenolith_machine::{Attachment, DiskConfig, Unpacker};

#[derive(Args, Debug)]
pub struct BootFlags {
    /// A guest known by name, fetched once: debian or debian-i386 (see `xenolith guests`); or a disk
    /// image, which is booted by firmware as the first disk, with options behind it as for --disk
    #[arg(value_name = "GUEST|IMAGE", conflicts_with = "kernel")]
    #[arg(required_unless_present_any = ["kernel", "bios", "disks", "cdrom", "floppies"])]
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

    /// Who unpacks the compressed kernel in a bzImage: this program (gzip, LZ4, LZMA, xz or Zstandard), which is
    /// faster, or the guest by itself, as when firmware loads it
    #[arg(long, value_name = "WHO", help_heading = "What to boot", value_enum)]
    #[arg(default_value_t = UnpackFlag::Auto)]
    pub kernel_unpack: UnpackFlag,

    /// Initial ramdisk for --kernel; for a multiboot image, its first module
    #[arg(long, value_name = "FILE", help_heading = "What to boot", conflicts_with = "guest")]
    #[arg(requires = "kernel")]
    pub initrd: Option<PathBuf>,

    /// Kernel command line. With --kernel it is the whole of it (console=ttyS0 shows a Linux guest
    /// here); a named guest has its own, which this extends
    #[arg(long, value_name = "STRING", help_heading = "What to boot", default_value = "")]
    #[arg(hide_default_value = true, allow_hyphen_values = true)]
    pub append: String,

    /// Disk image, raw or qcow2 (found by content), attached by virtio: the first is /dev/vda in
    /// Linux, the next /dev/vdb. ",if=ide" attaches it by IDE instead (/dev/sda), for guests without
    /// virtio. With ",ro" behind it the guest can't write it, with ",snapshot" what it
    /// writes is forgotten. ",format=raw" tells the format: give it for a raw
    /// disk of a guest that you don't trust. May be given again
    #[arg(long = "disk", value_name = "FILE[,if=ide|virtio][,ro][,snapshot][,format=raw|qcow2]")]
    #[arg(help_heading = "What to boot")]
    #[arg(value_parser = parse_disk)]
    pub disks: Vec<DiskConfig>,

    /// Disc image (ISO) in an IDE CD-ROM drive: /dev/sr0 in Linux. Without a disk to boot from,
    /// firmware boots from it. The file is not written
    #[arg(long, value_name = "FILE", help_heading = "What to boot")]
    pub cdrom: Option<PathBuf>,

    /// Floppy image of one of the usual sizes, as 1440 KiB, in drive A; given again, in drive B. One of another size
    /// is the beginning of 2880 KiB. Firmware boots from it if there is no disk to boot from. ",ro" and
    /// ",snapshot" as for disks
    #[arg(long = "floppy", value_name = "FILE[,ro][,snapshot]", help_heading = "What to boot")]
    #[arg(value_parser = parse_floppy)]
    pub floppies: Vec<DiskConfig>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UnpackFlag {
    /// this program where it can, else the guest
    Auto,
    /// this program; a bzImage that it can't unpack is refused
    Host,
    /// the guest
    Guest,
}

impl From<UnpackFlag> for Unpacker {
    fn from(flag: UnpackFlag) -> Self {
        match flag {
            UnpackFlag::Auto => Self::Auto,
            UnpackFlag::Host => Self::Host,
            UnpackFlag::Guest => Self::Guest,
        }
    }
}

/// Takes options from the end, since a file's name may have commas too. Also says what if= names.
fn options_behind(text: &str) -> Result<(DiskConfig, Option<Attachment>), String> {
    let mut options = DiskOptions::default();
    let mut attachment = None;
    let mut path = text;
    let twice = |option: &str| Err(format!("{option}= is given twice"));
    while let Some((rest, option)) = path.rsplit_once(',') {
        match option {
            "ro" => options.read_only = true,
            "snapshot" => options.snapshot = true,
            "if=ide" | "if=virtio" => {
                let named = if option == "if=ide" { Attachment::Ide } else { Attachment::Virtio };
                if attachment.replace(named).is_some() {
                    return twice("if");
                }
            }
            _ if option.starts_with("if=") => {
                return Err(format!("{option:?} is neither if=ide nor if=virtio"));
            }
            _ => match option.strip_prefix("format=") {
                Some(name) => {
                    let format = Format::named(name)
                        .ok_or_else(|| format!("format {name:?} is neither raw nor qcow2"))?;
                    if options.format.replace(format).is_some() {
                        return twice("format");
                    }
                }
                None => break,
            },
        }
        path = rest;
    }
    if path.is_empty() {
        return Err("a file name must be given".to_owned());
    }
    if options.read_only && options.snapshot {
        return Err("ro and snapshot exclude each other".to_owned());
    }
    Ok((DiskConfig { path: PathBuf::from(path), options, ..DiskConfig::default() }, attachment))
}

/// As [`options_behind`], of a hard disk.
pub fn parse_disk(text: &str) -> Result<DiskConfig, String> {
    let (disk, attachment) = options_behind(text)?;
    Ok(DiskConfig { attachment: attachment.unwrap_or_default(), ..disk })
}

fn parse_floppy(text: &str) -> Result<DiskConfig, String> {
    match options_behind(text)? {
        (disk, None) => Ok(DiskConfig { attachment: Attachment::Floppy, ..disk }),
        (_, Some(_)) => Err("if= is for disks; a floppy has its own controller".to_owned()),
    }
}

/// What is behind the name of an existing file but is no option of a disk: a slip, most likely.
pub fn no_option(path: &Path) -> Option<&str> {
    let mut rest = path.to_str()?;
    while let Some((name, option)) = rest.rsplit_once(',') {
        if Path::new(name).exists() {
            return Some(option);
        }
        rest = name;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_writable_unless_said() {
        let parse = |text| parse_disk(text).expect("sound");
        let disk = parse("a,b.img");
        assert_eq!((disk.path.to_str(), disk.options), (Some("a,b.img"), DiskOptions::default()));
        let disk = parse("a.img,ro");
        assert_eq!(disk.path.to_str(), Some("a.img"));
        assert!(disk.options.read_only && !disk.options.snapshot);
        let disk = parse("a,ro,b.img,format=raw,snapshot");
        assert_eq!(disk.path.to_str(), Some("a,ro,b.img"));
        assert!(disk.options.snapshot && !disk.options.read_only);
        assert_eq!(disk.options.format, Some(Format::Raw));
        assert_eq!(disk.attachment, Attachment::Virtio);
        assert_eq!(parse("a.img,if=ide,ro").attachment, Attachment::Ide);
        for bad in ["", ",ro", "a,if=scsi", "a,format=vmdk", "a,ro,snapshot"] {
            assert!(parse_disk(bad).is_err(), "{bad:?}");
        }
        for bad in ["a,if=ide,if=virtio", "a,if=ide,ro,if=ide", "a,format=raw,format=qcow2"] {
            assert!(parse_disk(bad).is_err_and(|error| error.contains("twice")), "{bad:?}");
        }
        assert!(parse_floppy("a,if=ide").is_err());
        assert_eq!(parse_floppy("a,ro").expect("sound").attachment, Attachment::Floppy);
    }

    #[test]
    fn a_slip_behind_a_files_name_is_found() {
        let file = std::env::temp_dir();
        let behind = |text: &str| {
            let mut path = file.clone().into_os_string();
            path.push(text);
            no_option(Path::new(&path)).map(str::to_owned)
        };
        assert_eq!(behind(",rw").as_deref(), Some("rw"));
        assert_eq!(behind(",").as_deref(), Some(""));
        assert_eq!(behind(",cache=none,rw").as_deref(), Some("cache=none"));
        assert_eq!(behind("-gone,rw"), None);
    }
}
