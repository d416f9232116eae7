//! QEMU's copy-on-write format, to read.
//!
//! Problem: most disk images that people have are qcow2, and one that was fetched may be cut short, damaged
//! or made to do harm. Scheme: the header and the first-level table are checked and read at opening; second-level
//! tables and the last cluster that was decompressed are cached; clusters that the image doesn't have come
//! from its backing image or read as zeroes. Invariants: nothing is written, so that an image with a dirty or
//! corrupt mark is as good as any; every offset from the file is checked before it is used, and memory is
//! taken for tables in bounds only. Any thread; the caches have a lock, which is not held while data is read.
//!
//! Source: QEMU, docs/interop/qcow2.txt.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};

use super::{DiskImage, SECTOR};

/// What every image starts with.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";

const HEADER_V2: usize = 72;
const HEADER_V3: usize = 104;
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Bytes of a first-level table, as QEMU bounds it.
const L1_MAX: u64 = 32 << 20;
/// Bytes of second-level tables in the cache, if there is more than one.
const CACHE_MAX: u64 = 8 << 20;
const BACKING_NAME_MAX: u32 = 1023;

// Incompatible features.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const READS_AS_ZERO: u64 = 1;
const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// The image that another one builds on, as its header names it.
#[derive(Debug)]
pub struct Backing {
    pub path: PathBuf,
    /// `raw` or `qcow2`; none if the header doesn't say.
    pub format: Option<String>,
}

/// An open image.
pub struct Qcow2Image {
    file: File,
    file_len: u64,
    cluster_bits: u32,
    size: u64,
    version: u32,
    l1: Vec<u64>,
    backing: Option<Arc<dyn DiskImage>>,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    tables: HashMap<u64, Arc<Vec<u64>>>,
    /// The last cluster that was decompressed: its number in the disk and its bytes.
    decompressed: Option<(u64, Arc<Vec<u8>>)>,
}

/// Where a cluster's bytes are.
enum Cluster {
    Backing,
    Zeroes,
    Plain(u64),
    Compressed { offset: u64, len: u64 },
}

impl std::fmt::Debug for Qcow2Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qcow2Image").field("size", &self.size).finish_non_exhaustive()
    }
}

/// A damaged image's error.
fn bad(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Qcow2Image {
    /// Reads the tables of the image in `file`. `backing` opens the image that it builds on; a relative name
    /// is taken from `folder`.
    ///
    /// # Errors
    /// The host's, or [`io::ErrorKind::InvalidData`] with what is wrong or not supported.
    pub fn new(
        mut file: File,
        folder: &Path,
        backing: &mut dyn FnMut(Backing) -> io::Result<Arc<dyn DiskImage>>,
    ) -> io::Result<Self> {
        let file_len = file.seek(SeekFrom::End(0))?;
        let mut header = [0; HEADER_V3 + 8];
        let present = file_len.min(header.len() as u64) as usize;
        if present < HEADER_V2 {
            return Err(bad("the qcow2 header is cut short"));
        }
        file.read_exact_at(&mut header[..present], 0)?;
        if header[..4] != MAGIC {
            return Err(bad("not a qcow2 image"));
        }
        let version = be32(&header, 4);
        if !matches!(version, 2 | 3) {
            return Err(bad(format!("qcow2 version {version} is not known")));
        }
        let cluster_bits = be32(&header, 20);
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(bad(format!("qcow2 cluster size of 2^{cluster_bits} bytes")));
        }
        let cluster = 1u64 << cluster_bits;
        if be32(&header, 32) != 0 {
            return Err(bad("encrypted qcow2 images are not supported"));
        }
        let header_len = if version == 2 {
            HEADER_V2 as u64
        } else {
            if present < HEADER_V3 {
                return Err(bad("the qcow2 header is cut short"));
            }
            check_features(&header)?
        };
        if header_len > cluster {
            return Err(bad(format!("qcow2 header of {header_len} bytes")));
        }
        let size = be64(&header, 24) / SECTOR * SECTOR;
        if size == 0 {
            return Err(bad("the disk in the qcow2 image has no sector"));
        }
        let l1 = read_l1(&file, file_len, &header, size, cluster_bits)?;
        let backing = match find_backing(&file, &header, header_len, cluster, folder)? {
            Some(found) => Some(backing(found)?),
            None => None,
        };
        Ok(Self {
            file,
            file_len,
            cluster_bits,
            size,
            version,
            l1,
            backing,
            cache: Mutex::default(),
        })
    }

    fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Where the disk's cluster `number` is.
    fn find(&self, number: u64) -> io::Result<Cluster> {
        let entries_bits = self.cluster_bits - 3;
        let l1_index = number >> entries_bits;
        let l1 = self.l1[usize::try_from(l1_index).expect("checked at opening")];
        if l1 & OFFSET_MASK == 0 {
            return Ok(Cluster::Backing);
        }
        let table = self.table(l1_index, l1 & OFFSET_MASK)?;
        let entry = table[(number & ((1 << entries_bits) - 1)) as usize];
        if entry & COMPRESSED != 0 {
            let offset_bits = 62 - (self.cluster_bits - 8);
            let offset = entry & ((1 << offset_bits) - 1);
            let sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
            let len = (sectors + 1) * SECTOR - offset % SECTOR;
            if offset >= self.file_len {
                return Err(bad(format!("compressed cluster {number} lies past the file's end")));
            }
            return Ok(Cluster::Compressed { offset, len: len.min(self.file_len - offset) });
        }
        if self.version >= 3 && entry & READS_AS_ZERO != 0 {
            return Ok(Cluster::Zeroes);
        }
        let offset = entry & OFFSET_MASK;
        if offset == 0 {
            return Ok(Cluster::Backing);
        }
        if !offset.is_multiple_of(self.cluster_size()) || offset >= self.file_len {
            return Err(bad(format!("cluster {number} is said to be at {offset:#x}")));
        }
        Ok(Cluster::Plain(offset))
    }

    /// The second-level table at `offset`, which the first-level entry `index` points to.
    fn table(&self, index: u64, offset: u64) -> io::Result<Arc<Vec<u64>>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = cache.tables.get(&index) {
            return Ok(Arc::clone(table));
        }
        let cluster = self.cluster_size();
        if !offset.is_multiple_of(cluster)
            || offset.checked_add(cluster).is_none_or(|end| end > self.file_len)
        {
            return Err(bad(format!("second-level table {index} is said to be at {offset:#x}")));
        }
        let table = Arc::new(read_table(&self.file, offset, cluster)?);
        if cache.tables.len() as u64 >= (CACHE_MAX / cluster).max(1) {
            cache.tables.clear();
        }
        cache.tables.insert(index, Arc::clone(&table));
        Ok(table)
    }

    /// Cluster `number`, which is stored compressed.
    fn decompressed(&self, number: u64, offset: u64, len: u64) -> io::Result<Arc<Vec<u8>>> {
        {
            let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((which, bytes)) = &cache.decompressed
                && *which == number
            {
                return Ok(Arc::clone(bytes));
            }
        }
        // At most two clusters' worth: the field for the length has no room for more.
        let mut packed = vec![0; len as usize];
        self.file.read_exact_at(&mut packed, offset)?;
        let mut bytes = vec![0; self.cluster_size() as usize];
        let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let mut state = DecompressorOxide::new();
        let (status, _, done) = decompress(&mut state, &packed, &mut bytes, 0, flags);
        if status != TINFLStatus::Done || done != bytes.len() {
            return Err(bad(format!("compressed cluster {number} can't be decompressed")));
        }
        let bytes = Arc::new(bytes);
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).decompressed =
            Some((number, Arc::clone(&bytes)));
        Ok(bytes)
    }

    /// Reads from the backing image, which may be smaller.
    fn read_backing(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let Some(backing) = &self.backing else {
            data.fill(0);
            return Ok(());
        };
        let there = backing.size().saturating_sub(offset).min(data.len() as u64) as usize;
        let (data, rest) = data.split_at_mut(there);
        rest.fill(0);
        if data.is_empty() { Ok(()) } else { backing.read_at(offset, data) }
    }
}

/// Looks at a version 3 header's features. Returns its length in bytes.
fn check_features(header: &[u8]) -> io::Result<u64> {
    let features = be64(header, 72);
    if features & DATA_FILE != 0 {
        return Err(bad("qcow2 images with an external data file are not supported"));
    }
    if features & EXTENDED_L2 != 0 {
        return Err(bad("qcow2 images with subclusters are not supported"));
    }
    if features & !(DIRTY | CORRUPT | COMPRESSION_TYPE) != 0 {
        return Err(bad(format!("qcow2 features {features:#x} are not known")));
    }
    let len = be32(header, 100);
    if len < HEADER_V3 as u32 || !len.is_multiple_of(8) {
        return Err(bad(format!("qcow2 header of {len} bytes")));
    }
    // The byte is there only if the header is that long.
    let compression = if len as usize > HEADER_V3 { header[HEADER_V3] } else { 0 };
    if compression != 0 {
        return Err(bad("qcow2 images compressed by other than zlib are not supported"));
    }
    Ok(u64::from(len))
}

fn read_l1(
    file: &File,
    file_len: u64,
    header: &[u8],
    size: u64,
    cluster_bits: u32,
) -> io::Result<Vec<u64>> {
    let needed = ((size - 1) >> (2 * cluster_bits - 3)) + 1;
    let (entries, offset) = (u64::from(be32(header, 36)), be64(header, 40));
    if entries < needed {
        return Err(bad(format!(
            "a disk of {size} bytes needs {needed} first-level entries, not {entries}"
        )));
    }
    let bytes = needed * 8;
    if bytes > L1_MAX {
        return Err(bad(format!("a disk of {size} bytes is too large for its cluster size")));
    }
    if !offset.is_multiple_of(1 << cluster_bits)
        || offset.checked_add(bytes).is_none_or(|end| end > file_len)
    {
        return Err(bad(format!("the first-level table is said to be at {offset:#x}")));
    }
    read_table(file, offset, bytes)
}

fn read_table(file: &File, offset: u64, bytes: u64) -> io::Result<Vec<u64>> {
    let mut table = vec![0; bytes as usize];
    file.read_exact_at(&mut table, offset)?;
    Ok(table.chunks_exact(8).map(|entry| be64(entry, 0)).collect())
}

/// What the header says of a backing image.
fn find_backing(
    file: &File,
    header: &[u8],
    header_len: u64,
    cluster: u64,
    folder: &Path,
) -> io::Result<Option<Backing>> {
    use std::os::unix::ffi::OsStringExt;

    let (offset, len) = (be64(header, 8), be32(header, 16));
    if offset == 0 {
        return Ok(None);
    }
    if len == 0
        || len > BACKING_NAME_MAX
        || offset < header_len
        || offset.checked_add(u64::from(len)).is_none_or(|end| end > cluster)
    {
        return Err(bad(format!(
            "the backing file's name is said to be {len} bytes at {offset:#x}"
        )));
    }
    let mut name = vec![0; len as usize];
    file.read_exact_at(&mut name, offset)?;
    // A name before the first slash with a colon is a protocol's in QEMU.
    let first = name.split(|&byte| byte == b'/').next().unwrap_or_default();
    if first.contains(&b':') {
        let name = String::from_utf8_lossy(&name).into_owned();
        return Err(bad(format!("backing file {name:?} is not a file's name")));
    }
    let path = folder.join(std::ffi::OsString::from_vec(name));
    let format = backing_format(file, header_len, offset)?;
    Ok(Some(Backing { path, format }))
}

/// Looks through the header extensions, which end where the backing file's name begins.
fn backing_format(file: &File, start: u64, end: u64) -> io::Result<Option<String>> {
    let mut extensions = vec![0; (end - start) as usize];
    file.read_exact_at(&mut extensions, start)?;
    let mut rest = &extensions[..];
    while rest.len() >= 8 {
        let (kind, len) = (be32(rest, 0), be32(rest, 4) as usize);
        rest = &rest[8..];
        if kind == EXTENSION_END {
            break;
        }
        let Some(body) = rest.get(..len) else {
            return Err(bad(format!("a qcow2 header extension of {len} bytes")));
        };
        if kind == EXTENSION_BACKING_FORMAT {
            return Ok(Some(String::from_utf8_lossy(body).into_owned()));
        }
        rest = rest.get(len.next_multiple_of(8)..).unwrap_or_default();
    }
    Ok(None)
}

impl DiskImage for Qcow2Image {
    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        super::check_range(self.size, offset, data.len())?;
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let (number, inside) = (at >> self.cluster_bits, at % self.cluster_size());
            let len = (self.cluster_size() - inside).min(rest.len() as u64) as usize;
            let (piece, after) = rest.split_at_mut(len);
            match self.find(number)? {
                Cluster::Backing => self.read_backing(at, piece)?,
                Cluster::Zeroes => piece.fill(0),
                Cluster::Plain(start) => {
                    // The file may end inside its last cluster.
                    let from = start + inside;
                    let there = self.file_len.saturating_sub(from).min(len as u64) as usize;
                    let (piece, beyond) = piece.split_at_mut(there);
                    self.file.read_exact_at(piece, from)?;
                    beyond.fill(0);
                }
                Cluster::Compressed { offset, len: packed } => {
                    let bytes = self.decompressed(number, offset, packed)?;
                    piece.copy_from_slice(&bytes[inside as usize..inside as usize + len]);
                }
            }
            (at, rest) = (at + len as u64, after);
        }
        Ok(())
    }

    fn write_at(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        true
    }
}
