//! What an image file says of itself, without opening it for a machine.
//!
//! Problem: a person wants to know what is in a file, also while a machine has it. Scheme: the file is read
//! without a lock, its header only. Invariant: nothing is written. Any thread; may block.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::open::find_format;
use super::{DiskError, Format, qcow2};

/// An image file.
#[derive(Debug)]
pub struct Info {
    pub format: Format,
    /// Bytes of the disk.
    pub disk_bytes: u64,
    /// Bytes that the file takes on the host.
    pub file_bytes: u64,
    /// A qcow2 image's version and the bytes of its clusters.
    pub qcow2: Option<(u32, u64)>,
    /// The image that it builds on, as it names it, and that image's format if it says.
    pub backing: Option<(PathBuf, Option<String>)>,
    /// Why it can't be written as it is.
    pub reads_only: Option<&'static str>,
}

/// Reads what the file at `path` says of itself.
///
/// # Errors
/// It can't be read, or is no sound image.
pub fn describe(path: &Path) -> Result<Info, DiskError> {
    let told = |source| DiskError::Open { path: path.to_owned(), source };
    super::raw::check_kind(path)?;
    let mut file = File::open(path).map_err(told)?;
    let format = find_format(&file).map_err(told)?;
    let file_bytes = file.metadata().map_err(told)?.blocks() * 512;
    let disk_bytes = file.seek(SeekFrom::End(0)).map_err(told)?;
    let mut info =
        Info { format, disk_bytes, file_bytes, qcow2: None, backing: None, reads_only: None };
    if format == Format::Qcow2 {
        let folder = path.parent().unwrap_or(Path::new(""));
        let found = qcow2::describe(&file, folder).map_err(told)?;
        info.disk_bytes = found.size;
        info.qcow2 = Some((found.version, found.cluster_bytes));
        info.backing = found.backing.map(|backing| (backing.name, backing.format));
        info.reads_only = found.reads_only;
    }
    Ok(info)
}
