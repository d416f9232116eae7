//! `xenolith image`: disk images made, looked at and converted.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use xenolith_devices::disk::Format;

#[derive(Args, Debug)]
pub struct ImageArgs {
    #[command(subcommand)]
    pub action: ImageAction,
}

#[derive(Debug, Subcommand)]
pub enum ImageAction {
    /// Make a new, empty disk image, or one on top of another
    #[command(after_help = "Examples:\n  xenolith image create disk.qcow2 20G\n  \
                            xenolith image create -b base.qcow2 mine.qcow2")]
    Create(CreateArgs),
    /// Show what a disk image is
    #[command(after_help = "Example:\n  xenolith image info disk.qcow2")]
    Info(InfoArgs),
    /// Copy a disk image into a new one of another format
    #[command(after_help = "Example:\n  xenolith image convert disk.img disk.qcow2")]
    Convert(ConvertArgs),
}

#[derive(Args, Debug)]
pub struct CreateArgs {
    /// raw or qcow2 [default: qcow2 if the file's name ends so or there is a backing image, else raw]
    #[arg(short = 'f', long, value_name = "FORMAT", value_parser = parse_format)]
    pub format: Option<Format>,
    /// Image that the new one builds on: it has what isn't written to the new one, and must stay as it is. A
    /// relative name is taken from the new image's folder
    #[arg(short = 'b', long, value_name = "FILE")]
    pub backing: Option<PathBuf>,
    /// The backing image's format [default: as its content says]
    #[arg(short = 'F', long, value_name = "FORMAT", value_parser = parse_format)]
    #[arg(requires = "backing")]
    pub backing_format: Option<Format>,
    /// The new image, which must not be there yet
    pub file: PathBuf,
    /// Size of the disk: a number of bytes, or with a suffix K, M, G or T (powers of 1024) [default: the
    /// backing image's]
    #[arg(value_parser = parse_bytes, required_unless_present = "backing")]
    pub size: Option<u64>,
}

#[derive(Args, Debug)]
pub struct InfoArgs {
    /// The image. A machine may have it open
    pub file: PathBuf,
}

#[derive(Args, Debug)]
pub struct ConvertArgs {
    /// The old image's format [default: as its content says]
    #[arg(short = 'f', long, value_name = "FORMAT", value_parser = parse_format)]
    pub format: Option<Format>,
    /// The new image's format [default: qcow2 if its name ends so, else raw]
    #[arg(short = 'O', long, value_name = "FORMAT", value_parser = parse_format)]
    pub output_format: Option<Format>,
    /// The old image
    pub input: PathBuf,
    /// The new image, which must not be there yet
    pub output: PathBuf,
}

fn parse_format(name: &str) -> Result<Format, String> {
    Format::named(name).ok_or_else(|| format!("format {name:?} is neither raw nor qcow2"))
}

/// A size of a disk. Unlike memory's it is in bytes without a suffix, as qemu-img has it.
fn parse_bytes(text: &str) -> Result<u64, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map_err(|_| "more than a disk can have".to_owned());
    }
    super::machine::parse_size(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disks_size_is_in_bytes_unless_said() {
        assert_eq!(parse_bytes("1048576"), Ok(1 << 20));
        assert_eq!(parse_bytes("20G"), Ok(20 << 30));
        for text in ["", "G", "-1", "99999999999999999999"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
