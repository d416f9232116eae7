//! `xenolith image`: disk images made, looked at and converted.
//!
//! Problem: whoever has no other tool needs images to begin with; and what is there must not be lost by a slip.
//! Scheme: a new image is made under another name beside its own and renamed when it is whole.
//! Invariants: no file that exists is written; one that couldn't be finished is deleted.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use xenolith_devices::disk::{self, DiskImage, DiskOptions, Format};

use super::plain;
use crate::flags::{ConvertArgs, CreateArgs, ImageAction, ImageArgs, InfoArgs};
use crate::status;

/// Bytes that are copied in one piece: a cluster of the images that we make.
const PIECE: usize = 64 << 10;

/// Does what was asked and gives the exit status.
///
/// # Errors
/// Whatever keeps it from being done.
pub fn run(args: &ImageArgs) -> Result<u8> {
    match &args.action {
        ImageAction::Create(args) => create(args)?,
        ImageAction::Info(args) => info(args)?,
        ImageAction::Convert(args) => convert(args)?,
    }
    Ok(status::DONE)
}

/// The format that a file's name suggests.
fn by_name(path: &Path) -> Format {
    if path.extension().is_some_and(|end| end == "qcow2") { Format::Qcow2 } else { Format::Raw }
}

fn create(args: &CreateArgs) -> Result<()> {
    let usual = if args.backing.is_some() { Format::Qcow2 } else { by_name(&args.file) };
    let format = args.format.unwrap_or(usual);
    if format == Format::Raw && args.backing.is_some() {
        bail!("--backing: a raw image can't build on another; give -f qcow2");
    }
    let backing = args.backing.as_deref().map(|name| look_at_backing(args, name)).transpose()?;
    let size = match (args.size, &backing) {
        (Some(size), _) => size,
        (None, Some((_, _, size))) => *size,
        (None, None) => bail!("a size must be given, as 20G"),
    };
    let size = size.checked_next_multiple_of(disk::SECTOR).unwrap_or(0);
    if size == 0 {
        bail!("{}: a disk has at least 512 bytes", args.file.display());
    }
    let new = NewFile::make(&args.file)?;
    let made = match format {
        Format::Raw => new.file.set_len(size),
        Format::Qcow2 => {
            let backing = backing.as_ref();
            let named = backing.map(|(name, format, _)| (name.as_bytes(), format.as_str()));
            disk::create_qcow2(&new.file, size, named)
        }
    };
    made.map_err(|error| plain(&error))
        .with_context(|| format!("{}: cannot make it", args.file.display()))?;
    new.finish()
}

/// The backing image's name, format and size.
fn look_at_backing(args: &CreateArgs, name: &Path) -> Result<(OsString, String, u64)> {
    if disk::names_protocol(name.as_os_str().as_bytes()) {
        bail!(
            "--backing {}: such a name is a protocol's in qcow2; put ./ before it",
            name.display()
        );
    }
    let path = args.file.parent().unwrap_or(Path::new("")).join(name);
    let options = DiskOptions { read_only: true, format: args.backing_format, snapshot: false };
    // Opened as a machine would: one that can't be used is told now.
    let image = disk::open(&path, options).map_err(|error| anyhow!("--backing: {error}"))?;
    let format = match args.backing_format {
        Some(format) => format,
        None => disk::describe(&path).map_err(|error| anyhow!("--backing: {error}"))?.format,
    };
    Ok((name.as_os_str().to_owned(), format.to_string(), image.size()))
}

fn info(args: &InfoArgs) -> Result<()> {
    let info = disk::describe(&args.file).map_err(|error| anyhow!("{error}"))?;
    let mut text = format!(
        "image: {}\nformat: {}\ndisk size: {}\nsize on the host: {}\n",
        args.file.display(),
        info.format,
        in_words(info.disk_bytes),
        in_words(info.file_bytes)
    );
    if let Some((version, bytes)) = info.qcow2 {
        text.push_str(&format!("qcow2 version: {version}\ncluster size: {bytes} bytes\n"));
    }
    if let Some((name, format)) = info.backing {
        let format = format.map_or(String::new(), |format| format!(" (format: {format})"));
        text.push_str(&format!("backing image: {}{format}\n", name.display()));
    }
    if let Some(why) = info.reads_only {
        text.push_str(&format!("can't be written: {why}\n"));
    }
    match io::stdout().write_all(text.as_bytes()) {
        // A reader that went away (`| head`) is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(plain(&error)),
        _ => Ok(()),
    }
}

/// Bytes, with a rounded number in a larger unit.
fn in_words(bytes: u64) -> String {
    let mut unit = 0;
    while unit < 4 && bytes >> (10 * (unit + 1)) != 0 {
        unit += 1;
    }
    if unit == 0 {
        return format!("{bytes} bytes");
    }
    let rounded = bytes as f64 / (1u64 << (10 * unit)) as f64;
    format!("{rounded:.1} {}iB ({bytes} bytes)", ["", "K", "M", "G", "T"][unit])
}

fn convert(args: &ConvertArgs) -> Result<()> {
    let options = DiskOptions { read_only: true, format: args.format, snapshot: false };
    let input = disk::open(&args.input, options).map_err(|error| anyhow!("{error}"))?;
    let format = args.output_format.unwrap_or(by_name(&args.output));
    let new = NewFile::make(&args.output)?;
    let failed = || format!("{}: cannot write it", args.output.display());
    match format {
        Format::Raw => new.file.set_len(input.size()),
        Format::Qcow2 => disk::create_qcow2(&new.file, input.size(), None),
    }
    .map_err(|error| plain(&error))
    .with_context(failed)?;
    let options = DiskOptions { format: Some(format), ..DiskOptions::default() };
    let output = disk::open(&new.part, options).map_err(|error| anyhow!("{error}"))?;
    if let Err(error) = copy(args, &*input, &*output) {
        // The file is deleted: what is left to write of its tables would only fail again.
        std::mem::forget(output);
        return Err(error);
    }
    drop(output);
    new.finish()
}

/// Copies all of the disk in `input`, and sees to it that it is there.
fn copy(args: &ConvertArgs, input: &dyn DiskImage, output: &dyn DiskImage) -> Result<()> {
    let failed = || format!("{}: cannot write it", args.output.display());
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < input.size() {
        // Holes of a large disk, unread, in whole pieces.
        let holes = input.known_zeroes(at) / PIECE as u64 * PIECE as u64;
        if holes > 0 {
            at += holes;
            continue;
        }
        let len = (input.size() - at).min(PIECE as u64) as usize;
        let piece = &mut piece[..len];
        input
            .read_at(at, piece)
            .map_err(|error| plain(&error))
            .with_context(|| format!("{}: cannot read it at {at:#x}", args.input.display()))?;
        // What is zero stays without room.
        if piece.iter().any(|&byte| byte != 0) {
            output.write_at(at, piece).map_err(|error| plain(&error)).with_context(failed)?;
        }
        at += len as u64;
    }
    output.flush().map_err(|error| plain(&error)).with_context(failed)
}

/// A file that has its name only when it is whole.
struct NewFile {
    file: File,
    name: PathBuf,
    part: PathBuf,
}

impl NewFile {
    fn make(name: &Path) -> Result<Self> {
        let failed = || format!("{}: cannot make it", name.display());
        if name.symlink_metadata().is_ok() {
            bail!("{}: it is there already; remove it, or give another name", name.display());
        }
        let Some(last) = name.file_name() else { bail!("{}: is no file's name", name.display()) };
        let mut part = last.to_owned();
        part.push(format!(".part-{}", std::process::id()));
        let part = name.with_file_name(part);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&part);
        let file = file.map_err(|error| plain(&error)).with_context(failed)?;
        Ok(Self { file, name: name.to_owned(), part })
    }

    fn finish(self) -> Result<()> {
        self.file
            .sync_all()
            // Unlike a rename, this leaves alone what has appeared meanwhile.
            .and_then(|()| fs::hard_link(&self.part, &self.name))
            .or_else(|error| match error.kind() {
                // A file system without hard links.
                io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported => {
                    fs::rename(&self.part, &self.name)
                }
                _ => Err(error),
            })
            .map_err(|error| plain(&error))
            .with_context(|| format!("{}: cannot write it", self.name.display()))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // It has its own name by now, or is not wanted.
        let _ = fs::remove_file(&self.part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_in_a_unit_to_read() {
        assert_eq!(in_words(512), "512 bytes");
        assert_eq!(in_words(20 << 30), "20.0 GiB (21474836480 bytes)");
        assert_eq!(in_words(1536), "1.5 KiB (1536 bytes)");
        assert_eq!(in_words(5000 << 40), "5000.0 TiB (5497558138880000 bytes)");
    }
}
