//! The header of a qcow2 image: read and checked, and made.
//!
//! Problem: a file that was fetched may say anything. Scheme: [`Header::read`] checks every field against the
//! others and the file's length before anything uses it; [`create`] writes an image without data. Invariant:
//! what a [`Header`] names lies within the file, in whole clusters. Any thread.
//!
//! Source: QEMU, docs/interop/qcow2.txt, "Header", "Header extensions".

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::super::SECTOR;
use super::{Backing, MAGIC, bad, be32, be64};

const HEADER_V2: usize = 72;
const HEADER_V3: usize = 104;
pub(super) const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Bytes of a first-level table, as QEMU bounds it.
const L1_MAX: u64 = 32 << 20;
/// Bytes of a refcount table, as QEMU bounds it.
pub(super) const REFCOUNT_TABLE_MAX: u64 = 8 << 20;
const BACKING_NAME_MAX: u32 = 1023;

// Incompatible features.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// Offset of the refcount table's place and number of clusters, beside each other.
pub(super) const REFCOUNT_TABLE_AT: u64 = 48;
/// Offset of the features that a program which doesn't know them must clear when it writes.
pub(super) const AUTOCLEAR_AT: u64 = 88;

/// What a header says.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    /// Bytes of the disk, in whole sectors.
    pub(super) size: u64,
    pub(super) l1_offset: u64,
    /// First-level entries that the disk's size needs.
    pub(super) l1_entries: u64,
    pub(super) refcount_table: u64,
    pub(super) refcount_table_clusters: u32,
    /// A refcount has two to this power bits.
    pub(super) refcount_order: u32,
    /// Why the image may be read but not written.
    pub(super) reads_only: Option<&'static str>,
    pub(super) autoclear: u64,
    pub(super) compression: Compression,
    pub(super) backing: Option<Backing>,
}

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Zlib,
    Zstd,
}

impl Header {
    /// Reads and checks the header of `file`. Relative names of backing images are taken from `folder`.
    pub(super) fn read(file: &File, file_len: u64, folder: &Path) -> io::Result<Self> {
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
        let (mut header_len, mut refcount_order, mut autoclear) = (HEADER_V2 as u64, 4, 0);
        let mut reads_only = None;
        let mut compression = Compression::Zlib;
        if version == 3 {
            if present < HEADER_V3 {
                return Err(bad("the qcow2 header is cut short"));
            }
            (header_len, compression) = check_features(&header)?;
            reads_only = match be64(&header, 72) {
                features if features & CORRUPT != 0 => Some("it is marked corrupt"),
                features if features & DIRTY != 0 => Some("it was not closed (marked dirty)"),
                _ => None,
            };
            refcount_order = be32(&header, 96);
            if refcount_order > 6 {
                return Err(bad(format!("qcow2 refcounts of 2^{refcount_order} bits")));
            }
            autoclear = be64(&header, AUTOCLEAR_AT as usize);
        }
        if header_len > cluster {
            return Err(bad(format!("qcow2 header of {header_len} bytes")));
        }
        let size = be64(&header, 24) / SECTOR * SECTOR;
        if size == 0 {
            return Err(bad("the disk in the qcow2 image has no sector"));
        }
        let (l1_offset, l1_entries) = check_l1(&header, file_len, size, cluster_bits)?;
        let backing = find_backing(file, &header, header_len, cluster, folder)?;
        Ok(Self {
            version,
            cluster_bits,
            size,
            l1_offset,
            l1_entries,
            refcount_table: be64(&header, REFCOUNT_TABLE_AT as usize),
            refcount_table_clusters: be32(&header, REFCOUNT_TABLE_AT as usize + 8),
            refcount_order,
            reads_only,
            autoclear,
            compression,
            backing,
        })
    }

    /// Bytes of the refcount table. Only who writes needs it.
    ///
    /// # Errors
    /// It isn't where the header says, or is too long.
    pub(super) fn refcount_table_bytes(&self, file_len: u64) -> io::Result<u64> {
        let bytes = u64::from(self.refcount_table_clusters) << self.cluster_bits;
        let offset = self.refcount_table;
        let within = offset.checked_add(bytes).is_some_and(|end| end <= file_len);
        if bytes == 0
            || bytes > REFCOUNT_TABLE_MAX
            || !within
            || offset == 0
            || !offset.is_multiple_of(1 << self.cluster_bits)
        {
            return Err(bad(format!(
                "the refcount table is said to have {} clusters at {offset:#x}",
                self.refcount_table_clusters
            )));
        }
        Ok(bytes)
    }
}

/// Looks at a version 3 header's features. Returns its length in bytes, and how clusters are compressed.
fn check_features(header: &[u8]) -> io::Result<(u64, Compression)> {
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
    let compression = match (compression, features & COMPRESSION_TYPE != 0) {
        (0, false) => Compression::Zlib,
        (1, true) => Compression::Zstd,
        (0 | 1, _) => return Err(bad("the qcow2 header contradicts itself about compression")),
        _ => {
            return Err(bad(
                "qcow2 images compressed by other than zlib and zstd are not supported",
            ));
        }
    };
    Ok((u64::from(len), compression))
}

/// Where the first-level table is, and how many entries of it the disk needs.
fn check_l1(header: &[u8], file_len: u64, size: u64, cluster_bits: u32) -> io::Result<(u64, u64)> {
    let needed = l1_entries(size, cluster_bits);
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
    Ok((offset, needed))
}

fn l1_entries(size: u64, cluster_bits: u32) -> u64 {
    ((size - 1) >> (2 * cluster_bits - 3)) + 1
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
    if names_protocol(&name) {
        let name = String::from_utf8_lossy(&name).into_owned();
        return Err(bad(format!("backing file {name:?} is not a file's name")));
    }
    let name = PathBuf::from(std::ffi::OsString::from_vec(name));
    let format = backing_format(file, header_len, offset)?;
    Ok(Some(Backing { path: folder.join(&name), name, format }))
}

/// Whether QEMU takes a backing image's name for a protocol's: there is a colon before the first slash.
#[must_use]
pub fn names_protocol(name: &[u8]) -> bool {
    name.iter().take_while(|&&byte| byte != b'/').any(|&byte| byte == b':')
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

/// Cluster size of images that we make, as QEMU's: 64 KiB.
const NEW_CLUSTER_BITS: u32 = 16;
/// Refcounts of images that we make have 16 bits.
const NEW_REFCOUNT_ORDER: u32 = 4;

/// Makes `file`, which is empty, an image of a disk of `size` bytes without data, on top of `backing` if there
/// is one: its name as it is to be found from the image's folder, and its format.
///
/// # Errors
/// The host's, or [`io::ErrorKind::InvalidInput`] for a size or a name that doesn't fit.
pub fn create(file: &File, size: u64, backing: Option<(&[u8], &str)>) -> io::Result<()> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
    let cluster = 1u64 << NEW_CLUSTER_BITS;
    if size == 0 || !size.is_multiple_of(SECTOR) {
        return Err(invalid("a disk has a multiple of 512 bytes, and not 0"));
    }
    let entries = l1_entries(size, NEW_CLUSTER_BITS);
    if entries * 8 > L1_MAX {
        return Err(invalid("a qcow2 disk of more than 2 PiB"));
    }
    let l1_clusters = (entries * 8).div_ceil(cluster);
    // Header, refcount table, its one block, first-level table.
    let [table_at, block_at, l1_at] = [1, 2, 3].map(|n| n * cluster);
    let mut header = vec![0; HEADER_V3];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &MAGIC);
    put(4, &3u32.to_be_bytes());
    put(20, &NEW_CLUSTER_BITS.to_be_bytes());
    put(24, &size.to_be_bytes());
    put(36, &u32::try_from(entries).expect("bounded above").to_be_bytes());
    put(40, &l1_at.to_be_bytes());
    put(48, &table_at.to_be_bytes());
    put(56, &1u32.to_be_bytes());
    put(96, &NEW_REFCOUNT_ORDER.to_be_bytes());
    put(100, &(HEADER_V3 as u32).to_be_bytes());
    if let Some((name, format)) = backing {
        let name_len = u32::try_from(name.len()).unwrap_or(u32::MAX);
        if name.is_empty() || name_len > BACKING_NAME_MAX {
            return Err(invalid("the backing file's name is too long for a qcow2 header"));
        }
        header.extend(EXTENSION_BACKING_FORMAT.to_be_bytes());
        header.extend((format.len() as u32).to_be_bytes());
        header.extend(format.as_bytes());
        header.resize(header.len().next_multiple_of(8), 0);
        header.extend([0; 8]);
        let at = header.len() as u64;
        header[8..16].copy_from_slice(&at.to_be_bytes());
        header[16..20].copy_from_slice(&name_len.to_be_bytes());
        header.extend(name);
    }
    let mut block = vec![0; cluster as usize];
    for count in block.chunks_exact_mut(2).take((3 + l1_clusters) as usize) {
        count.copy_from_slice(&1u16.to_be_bytes());
    }
    file.set_len(l1_at + l1_clusters * cluster)?;
    file.write_all_at(&block, block_at)?;
    file.write_all_at(&block_at.to_be_bytes(), table_at)?;
    file.write_all_at(&header, 0)
}
