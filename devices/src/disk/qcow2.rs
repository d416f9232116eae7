//! QEMU's copy-on-write format.
//!
//! Problem: most disk images that people have are qcow2; one that was fetched may be cut short, damaged or made to
//! do harm, and one that is written must be whole, and have what the guest flushed, if we are killed at
//! any moment. Scheme: the header and the first-level table are checked and read at opening; second-level tables
//! are kept in memory, in bounds, and so are refcounts ([`refcounts`]) of an image that is written. What the guest
//! writes goes to the file at once: in place where a cluster is the image's alone, else into a new
//! cluster with what the old one has around it. Tables change in memory; [`DiskImage::flush`] (and a full
//! cache, and the end) writes them in an order: counts of new clusters, second-level tables, the first-level
//! table, with the data and each step on the disk before the next. Clusters that lost their use are counted down
//! and used again only after that. Invariants: the file's tables never refer to a cluster that isn't counted or not
//! yet written, so that a kill costs space at worst; what is marked dirty or corrupt is not written;
//! every offset from the file is checked before it is used, and no data is written over a table. Any
//! thread, one at a time.
//!
//! The first-level table has its full length from an image's making on, as QEMU's have. Images with snapshots of
//! their own can be written; the snapshots stay.
//!
//! Source: QEMU, docs/interop/qcow2.txt.

mod compressed;
mod header;
mod refcounts;

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{DiskImage, SECTOR};
use header::{AUTOCLEAR_AT, Compression, Header};
use refcounts::{Refcounts, widen};

pub use header::{create, names_protocol};

/// What every image starts with.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Bytes of second-level tables, and of blocks of refcounts, in memory, if there is more than one.
const CACHE_MAX: u64 = 8 << 20;
/// Clusters that wait to be counted down.
const FREED_MAX: usize = 1 << 16;

const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster, or table, that an entry refers to is used by nobody else.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const READS_AS_ZERO: u64 = 1;

/// The image that another one builds on, as its header names it.
#[derive(Debug)]
pub struct Backing {
    pub path: PathBuf,
    /// As the header has it.
    pub name: PathBuf,
    /// `raw` or `qcow2`; none if the header doesn't say.
    pub format: Option<String>,
}

/// An open image.
pub struct Qcow2Image {
    file: File,
    cluster_bits: u32,
    size: u64,
    version: u32,
    l1_offset: u64,
    compression: Compression,
    backing: Option<Arc<dyn DiskImage>>,
    read_only: bool,
    state: Mutex<State>,
}

struct State {
    file_len: u64,
    l1: Vec<u64>,
    tables: HashMap<u64, Table>,
    /// The last cluster that was decompressed: its number in the disk and its bytes.
    decompressed: Option<(u64, Arc<Vec<u8>>)>,
    /// None if the image is only read.
    writer: Option<Writer>,
}

/// A second-level table.
struct Table {
    entries: Vec<u64>,
    /// Entries that the file doesn't have yet.
    dirty: Range<usize>,
}

/// What only an image that is written needs.
struct Writer {
    refcounts: Refcounts,
    /// First-level entries that the file doesn't have yet.
    l1_dirty: BTreeSet<u64>,
    /// Clusters that have lost a use, which the file still has; and whether their space is to be given back.
    freed: Vec<(u64, bool)>,
    /// The header's autoclear features are to be cleared before anything is written.
    autoclear: bool,
}

/// Where a cluster's bytes are.
#[derive(Clone, Copy)]
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

fn read_table(file: &File, offset: u64, bytes: u64) -> io::Result<Vec<u64>> {
    let mut table = vec![0; bytes as usize];
    file.read_exact_at(&mut table, offset)?;
    Ok(table.chunks_exact(8).map(|entry| be64(entry, 0)).collect())
}

fn table_bytes(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}

/// What the header of an image says, for people.
#[derive(Debug)]
pub struct Description {
    pub version: u32,
    pub cluster_bytes: u64,
    /// Bytes of the disk.
    pub size: u64,
    pub backing: Option<Backing>,
    /// Why the image can't be written as it is.
    pub reads_only: Option<&'static str>,
}

/// Reads the header of the image in `file`; names are taken from `folder`.
///
/// # Errors
/// As [`Qcow2Image::new`].
pub fn describe(mut file: &File, folder: &Path) -> io::Result<Description> {
    let file_len = file.seek(SeekFrom::End(0))?;
    let header = Header::read(file, file_len, folder)?;
    Ok(Description {
        version: header.version,
        cluster_bytes: 1 << header.cluster_bits,
        size: header.size,
        backing: header.backing,
        reads_only: header.reads_only,
    })
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
        read_only: bool,
        backing: &mut dyn FnMut(Backing) -> io::Result<Arc<dyn DiskImage>>,
    ) -> io::Result<Self> {
        let file_len = file.seek(SeekFrom::End(0))?;
        let mut header = Header::read(&file, file_len, folder)?;
        let l1 = read_table(&file, header.l1_offset, header.l1_entries * 8)?;
        let writer = if read_only {
            None
        } else {
            if let Some(why) = header.reads_only {
                let way = "mend it by qemu-img check -r all, or add ,ro or ,snapshot";
                return Err(bad(format!("{why}: {way}")));
            }
            Some(Writer {
                refcounts: Refcounts::read(&file, file_len, &header, &l1)?,
                l1_dirty: BTreeSet::new(),
                freed: Vec::new(),
                autoclear: header.autoclear != 0,
            })
        };
        let backing = header.backing.take().map(backing).transpose()?;
        let state = State { file_len, l1, tables: HashMap::new(), decompressed: None, writer };
        Ok(Self {
            file,
            cluster_bits: header.cluster_bits,
            size: header.size,
            version: header.version,
            l1_offset: header.l1_offset,
            compression: header.compression,
            backing,
            read_only,
            state: Mutex::new(state),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// The place of cluster `number` of the disk: its table's, and its entry's there.
    fn place(&self, number: u64) -> (u64, usize) {
        let entries_bits = self.cluster_bits - 3;
        (number >> entries_bits, (number & ((1 << entries_bits) - 1)) as usize)
    }

    /// The pieces of a range that lie in one cluster each: its number, where in it, and how many bytes.
    fn pieces(&self, offset: u64, len: u64) -> impl Iterator<Item = (u64, u64, u64)> + use<> {
        let (bits, end) = (self.cluster_bits, offset + len);
        let next = move |at: u64| ((at >> bits) + 1) << bits;
        std::iter::successors((offset < end).then_some(offset), move |&at| {
            (next(at) < end).then_some(next(at))
        })
        .map(move |at| (at >> bits, at & ((1 << bits) - 1), next(at).min(end) - at))
    }

    /// The entry for the disk's cluster `number`, and what it says.
    fn find(&self, state: &mut State, number: u64) -> io::Result<(u64, Cluster)> {
        let (index, within) = self.place(number);
        let Some(table) = self.table(state, index)? else { return Ok((0, Cluster::Backing)) };
        let entry = table.entries[within];
        let file_len = state.file_len;
        let cluster = if entry & COMPRESSED != 0 {
            let (offset, len) = self.compressed(entry);
            if offset >= file_len {
                return Err(bad(format!("compressed cluster {number} lies past the file's end")));
            }
            Cluster::Compressed { offset, len: len.min(file_len - offset) }
        } else if self.version >= 3 && entry & READS_AS_ZERO != 0 {
            Cluster::Zeroes
        } else {
            match entry & OFFSET_MASK {
                0 => Cluster::Backing,
                offset if !offset.is_multiple_of(self.cluster_size()) || offset >= file_len => {
                    return Err(bad(format!("cluster {number} is said to be at {offset:#x}")));
                }
                offset => Cluster::Plain(offset),
            }
        };
        Ok((entry, cluster))
    }

    /// Offset and length of a compressed cluster, as its entry has them.
    fn compressed(&self, entry: u64) -> (u64, u64) {
        let offset_bits = 62 - (self.cluster_bits - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
        (offset, (sectors + 1) * SECTOR - offset % SECTOR)
    }

    /// The second-level table of first-level entry `index`, if there is one.
    fn table<'a>(&self, state: &'a mut State, index: u64) -> io::Result<Option<&'a mut Table>> {
        let offset = state.l1[usize::try_from(index).expect("checked at opening")] & OFFSET_MASK;
        if offset == 0 {
            return Ok(None);
        }
        if !state.tables.contains_key(&index) {
            let cluster = self.cluster_size();
            if !offset.is_multiple_of(cluster)
                || offset.checked_add(cluster).is_none_or(|end| end > state.file_len)
            {
                return Err(bad(format!(
                    "second-level table {index} is said to be at {offset:#x}"
                )));
            }
            let entries = read_table(&self.file, offset, cluster)?;
            self.make_room(state)?;
            state.tables.insert(index, Table { entries, dirty: 0..0 });
        }
        Ok(state.tables.get_mut(&index))
    }

    /// Makes room for one more table in memory.
    fn make_room(&self, state: &mut State) -> io::Result<()> {
        let limit = (CACHE_MAX >> self.cluster_bits).max(1) as usize;
        if state.tables.len() >= limit {
            if state.tables.values().any(|table| !table.dirty.is_empty()) {
                self.commit(state)?;
            }
            state.tables.clear();
        }
        if let Some(writer) = &mut state.writer {
            writer.refcounts.trim(limit);
        }
        Ok(())
    }

    /// Cluster `number`, which is stored compressed.
    fn decompressed(
        &self,
        state: &mut State,
        number: u64,
        offset: u64,
        len: u64,
    ) -> io::Result<Arc<Vec<u8>>> {
        if let Some((which, bytes)) = &state.decompressed
            && *which == number
        {
            return Ok(Arc::clone(bytes));
        }
        // At most two clusters' worth: the field for the length has no room for more.
        let mut packed = vec![0; len as usize];
        self.file.read_exact_at(&mut packed, offset)?;
        let mut bytes = vec![0; self.cluster_size() as usize];
        if !compressed::unpack(self.compression, &packed, &mut bytes) {
            return Err(bad(format!("compressed cluster {number} can't be decompressed")));
        }
        let bytes = Arc::new(bytes);
        state.decompressed = Some((number, Arc::clone(&bytes)));
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

    /// Reads a piece of cluster `number`, which is `cluster`, from byte `inside` of it on.
    fn read_piece(
        &self,
        state: &mut State,
        number: u64,
        cluster: Cluster,
        inside: u64,
        data: &mut [u8],
    ) -> io::Result<()> {
        match cluster {
            Cluster::Backing => self.read_backing((number << self.cluster_bits) + inside, data),
            Cluster::Zeroes => {
                data.fill(0);
                Ok(())
            }
            Cluster::Plain(start) => {
                // The file may end inside its last cluster.
                let from = start + inside;
                let there = state.file_len.saturating_sub(from).min(data.len() as u64) as usize;
                let (data, beyond) = data.split_at_mut(there);
                beyond.fill(0);
                self.file.read_exact_at(data, from)
            }
            Cluster::Compressed { offset, len } => {
                let bytes = self.decompressed(state, number, offset, len)?;
                data.copy_from_slice(&bytes[inside as usize..inside as usize + data.len()]);
                Ok(())
            }
        }
    }

    /// Reads a piece of cluster `number`, if its table and its bytes are in memory.
    fn read_piece_cached(
        &self,
        state: &mut State,
        number: u64,
        inside: u64,
        data: &mut [u8],
    ) -> bool {
        let (index, _) = self.place(number);
        let table = state.l1[index as usize] & OFFSET_MASK;
        if table != 0 && !state.tables.contains_key(&index) {
            return false;
        }
        match self.find(state, number) {
            Ok((_, Cluster::Plain(start))) => super::read_cached(&self.file, start + inside, data),
            Ok((_, cluster @ Cluster::Zeroes)) => {
                self.read_piece(state, number, cluster, inside, data).is_ok()
            }
            Ok((_, Cluster::Backing)) => {
                let offset = (number << self.cluster_bits) + inside;
                match &self.backing {
                    Some(backing) => backing.read_cached(offset, data),
                    None => self.read_backing(offset, data).is_ok(),
                }
            }
            // To decompress a cluster takes as long as to wake somebody.
            Ok((_, Cluster::Compressed { .. })) | Err(_) => false,
        }
    }

    /// Writes `data` at `offset` of the file, which may grow by it.
    fn put(&self, state: &mut State, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)?;
        state.file_len = state.file_len.max(offset + data.len() as u64);
        Ok(())
    }

    /// Writes a piece of the disk's cluster `number`.
    fn write_piece(
        &self,
        state: &mut State,
        number: u64,
        inside: u64,
        data: &[u8],
    ) -> io::Result<()> {
        let (entry, cluster) = self.find(state, number)?;
        if let Cluster::Plain(start) = cluster
            && entry & COPIED != 0
        {
            let (index, _) = self.place(number);
            let own_table = state.l1[index as usize] & COPIED != 0;
            let writer = state.writer.as_ref().expect("the image is written");
            if writer.refcounts.tables.contains(&(start >> self.cluster_bits)) {
                return Err(bad(format!("cluster {number} is said to be where a table is")));
            }
            if own_table {
                return self.put(state, start + inside, data);
            }
        }
        let mut whole;
        let whole = if data.len() as u64 == self.cluster_size() {
            data
        } else {
            whole = vec![0; self.cluster_size() as usize];
            self.read_piece(state, number, cluster, 0, &mut whole)?;
            whole[inside as usize..inside as usize + data.len()].copy_from_slice(data);
            &whole
        };
        self.own_table(state, number)?;
        let writer = state.writer.as_mut().expect("the image is written");
        let offset = writer.refcounts.allocate(&self.file)?;
        if let Err(error) = self.put(state, offset, whole) {
            let writer = state.writer.as_mut().expect("it was there");
            writer.refcounts.undo(&self.file, offset);
            return Err(error);
        }
        self.replace(state, number, offset | COPIED, false)
    }

    /// Makes sure that the second-level table for cluster `number` is there and the image's alone.
    fn own_table(&self, state: &mut State, number: u64) -> io::Result<()> {
        let (index, _) = self.place(number);
        let old = state.l1[index as usize];
        if old & COPIED != 0 && old & OFFSET_MASK != 0 {
            return Ok(());
        }
        let entries = match self.table(state, index)? {
            Some(table) => table.entries.clone(),
            None => vec![0; 1 << (self.cluster_bits - 3)],
        };
        self.make_room(state)?;
        let writer = state.writer.as_mut().expect("the image is written");
        let offset = writer.refcounts.allocate(&self.file)?;
        // At once, so that there is room for it when it is committed.
        if let Err(error) = self.put(state, offset, &table_bytes(&entries)) {
            let writer = state.writer.as_mut().expect("it was there");
            writer.refcounts.undo(&self.file, offset);
            return Err(error);
        }
        let writer = state.writer.as_mut().expect("it was there");
        writer.refcounts.tables.insert(offset >> self.cluster_bits);
        if old & OFFSET_MASK != 0 {
            let number = (old & OFFSET_MASK) >> self.cluster_bits;
            writer.refcounts.tables.remove(&number);
            writer.freed.push((number, false));
        }
        writer.l1_dirty.insert(index);
        state.l1[index as usize] = offset | COPIED;
        state.tables.insert(index, Table { entries, dirty: 0..0 });
        Ok(())
    }

    /// Gives cluster `number` another entry in its table, which is there and the image's alone. What the old
    /// one refers to has a use less; with `punch` its space goes back to the host.
    fn replace(&self, state: &mut State, number: u64, new: u64, punch: bool) -> io::Result<()> {
        let (index, within) = self.place(number);
        let table = self.table(state, index)?.expect("it is there");
        let old = std::mem::replace(&mut table.entries[within], new);
        widen(&mut table.dirty, within..within + 1);
        if state.decompressed.as_ref().is_some_and(|(which, _)| *which == number) {
            state.decompressed = None;
        }
        let clusters = if old & COMPRESSED != 0 {
            let (offset, len) = self.compressed(old);
            offset >> self.cluster_bits..((offset + len - 1) >> self.cluster_bits) + 1
        } else {
            let cluster = (old & OFFSET_MASK) >> self.cluster_bits;
            if old & OFFSET_MASK == 0 { 0..0 } else { cluster..cluster + 1 }
        };
        let writer = state.writer.as_mut().expect("the image is written");
        writer.freed.extend(clusters.map(|cluster| (cluster, punch)));
        if writer.freed.len() >= FREED_MAX { self.commit(state) } else { Ok(()) }
    }

    /// Writes all that has changed in tables, in such an order that the file is whole after each step.
    fn commit(&self, state: &mut State) -> io::Result<()> {
        let State { l1, tables, writer: Some(writer), .. } = state else { return Ok(()) };
        let dirty_tables = tables.values().any(|table| !table.dirty.is_empty());
        if writer.refcounts.is_dirty() {
            writer.refcounts.write(&self.file)?;
        }
        if !dirty_tables && writer.l1_dirty.is_empty() {
            return Ok(());
        }
        self.file.sync_data()?;
        for (&index, table) in tables.iter_mut().filter(|(_, table)| !table.dirty.is_empty()) {
            let at = (l1[index as usize] & OFFSET_MASK) + 8 * table.dirty.start as u64;
            self.file.write_all_at(&table_bytes(&table.entries[table.dirty.clone()]), at)?;
            table.dirty = 0..0;
        }
        if !writer.l1_dirty.is_empty() {
            self.file.sync_data()?;
        }
        while let Some(&index) = writer.l1_dirty.first() {
            let entry = l1[index as usize].to_be_bytes();
            self.file.write_all_at(&entry, self.l1_offset + 8 * index)?;
            writer.l1_dirty.remove(&index);
        }
        if writer.freed.is_empty() {
            return Ok(());
        }
        // Only now are they free, whatever comes.
        self.file.sync_data()?;
        for (cluster, punch) in std::mem::take(&mut writer.freed) {
            if writer.refcounts.release(&self.file, cluster)? && punch {
                super::give_back(&self.file, cluster << self.cluster_bits, self.cluster_size());
            }
        }
        writer.refcounts.write(&self.file)
    }

    /// The image is about to be written.
    fn begin(&self, state: &mut State) -> io::Result<()> {
        let Some(writer) = &mut state.writer else {
            return Err(io::ErrorKind::PermissionDenied.into());
        };
        if writer.autoclear {
            self.file.write_all_at(&[0; 8], AUTOCLEAR_AT)?;
            self.file.sync_data()?;
            writer.autoclear = false;
        }
        Ok(())
    }

    /// Makes a whole cluster read as zeroes without room of its own. False if that can't be said.
    fn empty(&self, state: &mut State, number: u64, punch: bool) -> io::Result<bool> {
        let (_, cluster) = self.find(state, number)?;
        let new = match (&self.backing, self.version) {
            (None, _) => 0,
            (Some(_), 3..) => READS_AS_ZERO,
            (Some(_), _) => return Ok(false),
        };
        match (cluster, new) {
            (Cluster::Zeroes, _) | (Cluster::Backing, 0) => return Ok(true),
            _ => {}
        }
        self.own_table(state, number)?;
        self.replace(state, number, new, punch)?;
        Ok(true)
    }
}

impl DiskImage for Qcow2Image {
    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        super::check_range(self.size, offset, data.len())?;
        let state = &mut *self.state();
        let mut rest = data;
        for (number, inside, len) in self.pieces(offset, rest.len() as u64) {
            let (piece, after) = rest.split_at_mut(len as usize);
            let (_, cluster) = self.find(state, number)?;
            self.read_piece(state, number, cluster, inside, piece)?;
            rest = after;
        }
        Ok(())
    }

    fn read_cached(&self, offset: u64, data: &mut [u8]) -> bool {
        let Ok(mut state) = self.state.try_lock() else { return false };
        let mut rest = &mut data[..];
        super::check_range(self.size, offset, rest.len()).is_ok()
            && self.pieces(offset, rest.len() as u64).all(|(number, inside, len)| {
                let (piece, after) = std::mem::take(&mut rest).split_at_mut(len as usize);
                rest = after;
                self.read_piece_cached(&mut state, number, inside, piece)
            })
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        super::check_range(self.size, offset, data.len())?;
        let state = &mut *self.state();
        self.begin(state)?;
        let mut rest = data;
        for (number, inside, len) in self.pieces(offset, data.len() as u64) {
            let (piece, after) = rest.split_at(len as usize);
            self.write_piece(state, number, inside, piece)?;
            rest = after;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.commit(&mut self.state())?;
        self.file.sync_data()
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn known_zeroes(&self, offset: u64) -> u64 {
        let state = &mut *self.state();
        let mut at = offset;
        while at < self.size {
            let number = at >> self.cluster_bits;
            let (index, _) = self.place(number);
            let (cluster, unit_bits) = if state.l1[index as usize] & OFFSET_MASK == 0 {
                // Nothing under this first-level entry.
                (Cluster::Backing, 2 * self.cluster_bits - 3)
            } else {
                match self.find(state, number) {
                    Ok((_, cluster)) => (cluster, self.cluster_bits),
                    Err(_) => break,
                }
            };
            let end = (((at >> unit_bits) + 1) << unit_bits).min(self.size);
            let known = match (cluster, &self.backing) {
                (Cluster::Zeroes, _) | (Cluster::Backing, None) => end - at,
                (Cluster::Backing, Some(backing)) if at >= backing.size() => end - at,
                (Cluster::Backing, Some(backing)) => backing.known_zeroes(at).min(end - at),
                _ => 0,
            };
            if known == 0 {
                break;
            }
            at += known;
        }
        at.max(offset) - offset
    }

    fn can_discard(&self) -> bool {
        !self.read_only
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        super::check_range(self.size, offset, usize::try_from(len).unwrap_or(usize::MAX))?;
        let state = &mut *self.state();
        self.begin(state)?;
        for (number, _, len) in self.pieces(offset, len) {
            // Parts of clusters keep what they have.
            if len == self.cluster_size() {
                self.empty(state, number, true)?;
            }
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        super::check_range(self.size, offset, usize::try_from(len).unwrap_or(usize::MAX))?;
        let state = &mut *self.state();
        self.begin(state)?;
        for (number, inside, len) in self.pieces(offset, len) {
            if len == self.cluster_size() && self.empty(state, number, false)? {
                continue;
            }
            let (_, cluster) = self.find(state, number)?;
            let is_zero = match cluster {
                Cluster::Zeroes => true,
                Cluster::Backing => self.backing.is_none(),
                _ => false,
            };
            if !is_zero {
                self.write_piece(state, number, inside, &vec![0; len as usize])?;
            }
        }
        Ok(())
    }
}

impl Drop for Qcow2Image {
    fn drop(&mut self) {
        if !self.read_only
            && let Err(error) = self.commit(&mut self.state())
        {
            tracing::error!("a qcow2 image loses what was written after its last flush: {error}");
        }
    }
}
