//! From a file's name to a disk.
//!
//! Problem: a person names a file and doesn't say what is in it. Scheme: the first bytes tell, unless the
//! format is given; backing images are opened the same way, always to read. Invariants: a file is locked
//! before it is looked at and stays so; with `read_only` or `snapshot` it is open for reading only, so that
//! nothing here could write it; a chain of backing images ends, also one that is a circle.

use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use super::disc::Disc;
use super::qcow2::{Backing, MAGIC};
use super::raw::open_locked;
use super::{DiskError, DiskImage, Qcow2Image, RawImage, SECTOR, Snapshot};

/// Backing images below an image.
const CHAIN_MAX: usize = 32;

/// How an image is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Raw,
    Qcow2,
}

impl Format {
    /// The format of a name as the command line and QEMU have it.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "raw" => Some(Self::Raw),
            "qcow2" => Some(Self::Qcow2),
            _ => None,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

/// How to open an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskOptions {
    /// The guest can't write.
    pub read_only: bool,
    /// What the guest writes is forgotten at the end.
    pub snapshot: bool,
    /// As the content says, if not given. A guest that has a raw disk decides what its first bytes are, so
    /// give it for raw disks of guests that aren't trusted.
    pub format: Option<Format>,
}

/// Opens the image at `path`.
///
/// # Errors
/// See [`DiskError`].
pub fn open(path: &Path, options: DiskOptions) -> Result<Arc<dyn DiskImage>, DiskError> {
    let to_read = options.read_only || options.snapshot;
    let image = open_layer(path, to_read, options.format, SECTOR, &[])?;
    if options.read_only || !options.snapshot {
        return Ok(image);
    }
    let folder = std::env::temp_dir();
    match Snapshot::new(image, &folder) {
        Ok(snapshot) => Ok(Arc::new(snapshot)),
        Err(source) => Err(DiskError::Snapshot { path: path.to_owned(), folder, source }),
    }
}

/// Opens the image of a disc, to be read. One that ends inside a sector goes on with zeroes to the sector's end, as it
/// would on a disc that is written from it.
///
/// # Errors
/// See [`DiskError`].
pub fn open_disc(path: &Path, format: Option<Format>) -> Result<Arc<dyn DiskImage>, DiskError> {
    Ok(Disc::filled(open_layer(path, true, format, 1, &[])?))
}

/// Opens one file, on which those `above` build, and what it builds on. A raw one has `least` bytes.
fn open_layer(
    path: &Path,
    read_only: bool,
    format: Option<Format>,
    least: u64,
    above: &[Identity],
) -> Result<Arc<dyn DiskImage>, DiskError> {
    let told = |source| DiskError::Open { path: path.to_owned(), source };
    let file = open_locked(path, read_only)?;
    if format.map_or_else(|| find_format(&file), Ok).map_err(told)? == Format::Raw {
        return Ok(Arc::new(RawImage::new(file, path, read_only, least)?));
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let layers = [above, &[identity(&file.metadata().map_err(told)?)]].concat();
    let image = Qcow2Image::new(file, folder, read_only, &mut |b| open_backing(&b, &layers));
    Ok(Arc::new(image.map_err(told)?))
}

/// A file's device and inode, which two names of it share.
type Identity = (u64, u64);

fn identity(found: &Metadata) -> Identity {
    (found.dev(), found.ino())
}

/// Formats of others' that are not supported, by bytes at a place.
const FOREIGN: [(&str, usize, &[u8]); 10] = [
    ("VMDK", 0, b"KDMV"),
    ("VMDK", 0, b"COWD"),
    ("VMDK", 0, b"# Disk DescriptorFile"),
    ("VDI", 64, &0xbeda_107f_u32.to_le_bytes()),
    ("VHD", 0, b"conectix"),
    ("VHDX", 0, b"vhdxfile"),
    ("QED", 0, b"QED\0"),
    ("Parallels", 0, b"WithoutFreeSpace"),
    ("Parallels", 0, b"WithouFreSpacExt"),
    ("Bochs", 0, b"Bochs Virtual HD Image"),
];

/// What the content of `file` says.
///
/// # Errors
/// The host's, or it is one of others' formats.
pub(super) fn find_format(file: &File) -> io::Result<Format> {
    let mut start = [0; 128];
    let mut len = 0;
    while len < start.len() {
        match file.read_at(&mut start[len..], len as u64) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let start = &start[..len];
    if start.starts_with(&MAGIC) {
        return Ok(Format::Qcow2);
    }
    let is = |&&(_, at, magic): &&(&str, usize, &[u8])| {
        start.get(at..).is_some_and(|rest| rest.starts_with(magic))
    };
    match FOREIGN.iter().find(is) {
        None => Ok(Format::Raw),
        Some((name, ..)) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "a {name} image, which is not supported: make a qcow2 one of it by qemu-img convert -O qcow2, \
                 or say format=raw if it is a disk that begins like one"
            ),
        )),
    }
}

fn open_backing(backing: &Backing, above: &[Identity]) -> io::Result<Arc<dyn DiskImage>> {
    let refuse = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    if above.len() > CHAIN_MAX {
        return refuse(format!("more than {CHAIN_MAX} backing files"));
    }
    // Before it is locked: a file that is open to be written would seem to be another program's.
    if std::fs::metadata(&backing.path).is_ok_and(|found| above.contains(&identity(&found))) {
        return refuse(format!(
            "its backing file {}: the backing files go in a circle",
            backing.path.display()
        ));
    }
    let format = match backing.format.as_deref() {
        None => None,
        Some(name) => match Format::named(name) {
            None => return refuse(format!("backing file of format {name:?} is not supported")),
            known => known,
        },
    };
    open_layer(&backing.path, true, format, SECTOR, above)
        .map_err(|error| io::Error::other(format!("its backing file: {error}")))
}
