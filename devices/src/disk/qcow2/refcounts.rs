//! Which clusters of an image's file are in use, and by how many.
//!
//! Problem: a cluster that gets a use must never have another, also if we are killed at any moment. Scheme: a
//! table names blocks of counts; both are kept in memory, changed there and written by [`Refcounts::write`],
//! which the image calls before it writes what refers to clusters. Missing blocks, and a larger table, are put
//! into clusters that no block counts yet, and are in the file before anything names them. Invariants: a
//! count in the file is never less than the uses that the file's tables make of its cluster; clusters that
//! hold tables ([`Refcounts::tables`]) are never given away, whatever the counts of a damaged image
//! say. Any thread, under the image's lock.
//!
//! Source: QEMU, docs/interop/qcow2.txt, "Host cluster management".

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::header::{Header, REFCOUNT_TABLE_AT, REFCOUNT_TABLE_MAX};
use super::{OFFSET_MASK, bad, read_table, table_bytes};

/// A block of counts.
struct Block {
    bytes: Vec<u8>,
    /// Bytes that the file doesn't have yet.
    dirty: Range<usize>,
}

pub(super) struct Refcounts {
    cluster_bits: u32,
    order: u32,
    /// Where the table is in the file.
    table_at: u64,
    table: Vec<u64>,
    /// Entries of the table that the file doesn't have yet.
    table_dirty: BTreeSet<usize>,
    blocks: HashMap<usize, Block>,
    /// No cluster below this is free.
    free_from: u64,
    /// The clusters of header, tables and blocks.
    pub(super) tables: HashSet<u64>,
}

/// Widens `range` to take in `more`.
pub(super) fn widen(range: &mut Range<usize>, more: Range<usize>) {
    let empty = range.start >= range.end;
    *range = if empty { more } else { range.start.min(more.start)..range.end.max(more.end) };
}

impl Refcounts {
    /// Reads the table that `header` names, and checks the counts of all clusters that hold tables; `l1` is the
    /// first-level table.
    pub(super) fn read(
        file: &File,
        file_len: u64,
        header: &Header,
        l1: &[u64],
    ) -> io::Result<Self> {
        let table_bytes = header.refcount_table_bytes(file_len)?;
        let table = read_table(file, header.refcount_table, table_bytes)?;
        let mut counts = Self {
            cluster_bits: header.cluster_bits,
            order: header.refcount_order,
            table_at: header.refcount_table,
            table,
            table_dirty: BTreeSet::new(),
            blocks: HashMap::new(),
            free_from: 0,
            tables: HashSet::from([0]),
        };
        let cluster = counts.cluster();
        let mut tables = vec![(header.refcount_table, table_bytes)];
        tables.push((header.l1_offset, header.l1_entries * 8));
        let single = counts.table.iter().chain(l1).map(|entry| entry & OFFSET_MASK);
        tables.extend(single.filter(|&offset| offset != 0).map(|offset| (offset, cluster)));
        for (offset, bytes) in tables {
            // Offsets of blocks and second-level tables are looked at when they are used, too.
            if !offset.is_multiple_of(cluster) || offset.saturating_add(bytes) > file_len {
                return Err(bad(format!("a table is said to be at {offset:#x}")));
            }
            counts.tables.extend(offset / cluster..(offset + bytes).div_ceil(cluster));
        }
        let all: Vec<u64> = counts.tables.iter().copied().collect();
        for number in all {
            if counts.get(file, number)? == 0 {
                return Err(bad(format!(
                    "the table at {:#x} counts as free space; mend the image by qemu-img check -r all",
                    number * cluster
                )));
            }
        }
        Ok(counts)
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Counts in a block.
    fn per_block(&self) -> u64 {
        (8 << self.cluster_bits) >> self.order
    }

    /// The block that counts cluster `number`. None if there is none, so that all of its clusters are free.
    fn block(&mut self, file: &File, number: u64) -> io::Result<Option<&mut Block>> {
        let index = (number / self.per_block()) as usize;
        let offset = self.table.get(index).map_or(0, |entry| entry & OFFSET_MASK);
        if offset == 0 {
            return Ok(None);
        }
        if !self.blocks.contains_key(&index) {
            let mut bytes = vec![0; self.cluster() as usize];
            if !offset.is_multiple_of(self.cluster()) {
                return Err(bad(format!("a refcount block is said to be at {offset:#x}")));
            }
            file.read_exact_at(&mut bytes, offset)?;
            self.blocks.insert(index, Block { bytes, dirty: 0..0 });
        }
        Ok(self.blocks.get_mut(&index))
    }

    /// How many uses cluster `number` has.
    pub(super) fn get(&mut self, file: &File, number: u64) -> io::Result<u64> {
        let (order, within) = (self.order, number % self.per_block());
        Ok(self.block(file, number)?.map_or(0, |block| get_count(&block.bytes, order, within)))
    }

    fn set(&mut self, file: &File, number: u64, count: u64) -> io::Result<()> {
        let (order, within) = (self.order, number % self.per_block());
        let Some(block) = self.block(file, number)? else {
            return Err(bad(format!("cluster {number:#x} is in use and has no refcount")));
        };
        let changed = set_count(&mut block.bytes, order, within, count);
        widen(&mut block.dirty, changed);
        Ok(())
    }

    /// Takes a use from cluster `number`. True if it is free now.
    pub(super) fn release(&mut self, file: &File, number: u64) -> io::Result<bool> {
        let count = self.get(file, number)?;
        if count == 0 || self.tables.contains(&number) && count == 1 {
            return Err(bad(format!("cluster {number:#x} has fewer refcounts than uses")));
        }
        self.set(file, number, count - 1)?;
        if count == 1 {
            self.free_from = self.free_from.min(number);
        }
        Ok(count == 1)
    }

    /// A free cluster, which has one use from now on. Its offset.
    pub(super) fn allocate(&mut self, file: &File) -> io::Result<u64> {
        loop {
            let number = self.free_from;
            // As far as offsets in tables reach.
            if number >= 1 << (56 - self.cluster_bits) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let index = (number / self.per_block()) as usize;
            if index >= self.table.len() {
                self.grow(file)?;
            } else if self.table[index] & OFFSET_MASK == 0 {
                self.add_block(file, index)?;
            }
            if self.get(file, number)? == 0 {
                self.check_free(number)?;
                self.set(file, number, 1)?;
                self.free_from = number + 1;
                return Ok(number << self.cluster_bits);
            }
            self.free_from = number + 1;
        }
    }

    fn check_free(&self, number: u64) -> io::Result<()> {
        if self.tables.contains(&number) {
            return Err(bad(format!("cluster {number:#x} holds a table and counts as free")));
        }
        Ok(())
    }

    /// Makes the block that counts the clusters of entry `index`, in the first of these.
    fn add_block(&mut self, file: &File, index: usize) -> io::Result<()> {
        let number = index as u64 * self.per_block();
        self.check_free(number)?;
        let mut bytes = vec![0; self.cluster() as usize];
        set_count(&mut bytes, self.order, 0, 1);
        let offset = number << self.cluster_bits;
        file.write_all_at(&bytes, offset)?;
        self.blocks.insert(index, Block { bytes, dirty: 0..0 });
        self.table[index] = offset;
        self.table_dirty.insert(index);
        self.tables.insert(number);
        Ok(())
    }

    /// Puts a larger table into the file, behind all that the old one can count: first the blocks that
    /// count the new clusters, then the table. The header names it last.
    fn grow(&mut self, file: &File) -> io::Result<()> {
        let old_entries = self.table.len() as u64;
        let (cluster, per_block) = (self.cluster(), self.per_block());
        let per_cluster = cluster / 8;
        let start = old_entries * per_block;
        // Half as much again; then as many blocks as count themselves and the table.
        let mut table_clusters = (old_entries + old_entries / 2 + 1).div_ceil(per_cluster);
        let blocks = loop {
            let blocks = (1..).find(|n| n * per_block >= n + table_clusters).unwrap_or(1);
            let enough = (old_entries + blocks).div_ceil(per_cluster);
            if enough <= table_clusters {
                break blocks;
            }
            table_clusters = enough;
        };
        let end = start + blocks + table_clusters;
        if table_clusters * cluster > REFCOUNT_TABLE_MAX || end >= 1 << (56 - self.cluster_bits) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut table = self.table.clone();
        table.resize((table_clusters * per_cluster) as usize, 0);
        let mut new_blocks = Vec::new();
        for n in 0..blocks {
            let first = start + n * per_block;
            let used = end.saturating_sub(first).min(per_block);
            let mut bytes = vec![0; cluster as usize];
            for within in 0..used {
                set_count(&mut bytes, self.order, within, 1);
            }
            file.write_all_at(&bytes, (start + n) << self.cluster_bits)?;
            let index = (old_entries + n) as usize;
            table[index] = (start + n) << self.cluster_bits;
            new_blocks.push((index, Block { bytes, dirty: 0..0 }));
        }
        let table_at = (start + blocks) << self.cluster_bits;
        file.write_all_at(&table_bytes(&table), table_at)?;
        file.sync_data()?;
        let mut place = [0; 12];
        place[..8].copy_from_slice(&table_at.to_be_bytes());
        let clusters = u32::try_from(table_clusters).expect("bounded above");
        place[8..].copy_from_slice(&clusters.to_be_bytes());
        file.write_all_at(&place, REFCOUNT_TABLE_AT)?;
        file.sync_data()?;

        let old = self.table_at / cluster..(self.table_at + old_entries * 8).div_ceil(cluster);
        self.table = table;
        self.table_at = table_at;
        // The new table has them.
        self.table_dirty.clear();
        self.blocks.extend(new_blocks);
        self.tables.extend(start..end);
        for number in old {
            self.tables.remove(&number);
            self.release(file, number)?;
        }
        Ok(())
    }

    /// Gives back a cluster that was allocated and that nothing refers to.
    pub(super) fn undo(&mut self, file: &File, offset: u64) {
        // Counted as in use it is lost space at worst.
        let _ = self.release(file, offset >> self.cluster_bits);
    }

    /// Whether [`Refcounts::write`] has something to write.
    pub(super) fn is_dirty(&self) -> bool {
        !self.table_dirty.is_empty() || self.blocks.values().any(|block| !block.dirty.is_empty())
    }

    /// Writes what has changed: blocks, then entries of the table that name new ones.
    pub(super) fn write(&mut self, file: &File) -> io::Result<()> {
        for (&index, block) in &mut self.blocks {
            if !block.dirty.is_empty() {
                let at = (self.table[index] & OFFSET_MASK) + block.dirty.start as u64;
                file.write_all_at(&block.bytes[block.dirty.clone()], at)?;
                block.dirty = 0..0;
            }
        }
        if !self.table_dirty.is_empty() {
            file.sync_data()?;
        }
        while let Some(&index) = self.table_dirty.first() {
            let entry = self.table[index].to_be_bytes();
            file.write_all_at(&entry, self.table_at + 8 * index as u64)?;
            self.table_dirty.remove(&index);
        }
        Ok(())
    }

    /// Forgets blocks that can be read again, if there are more than `limit`.
    pub(super) fn trim(&mut self, limit: usize) {
        if self.blocks.len() > limit {
            self.blocks.retain(|_, block| !block.dirty.is_empty());
        }
    }
}

/// Count `within` of a block whose counts have two to the power `order` bits.
fn get_count(bytes: &[u8], order: u32, within: u64) -> u64 {
    if order < 3 {
        let per_byte = 8 >> order;
        let byte = bytes[(within / per_byte) as usize];
        let shift = (within % per_byte) << order;
        return u64::from(byte) >> shift & ((1 << (1 << order)) - 1);
    }
    let len = 1usize << (order - 3);
    let at = within as usize * len;
    bytes[at..at + len].iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// Sets it. Returns the bytes that have changed.
fn set_count(bytes: &mut [u8], order: u32, within: u64, value: u64) -> Range<usize> {
    if order < 3 {
        let per_byte = 8 >> order;
        let at = (within / per_byte) as usize;
        let shift = (within % per_byte) << order;
        let mask = (((1u16 << (1 << order)) - 1) << shift) as u8;
        bytes[at] = bytes[at] & !mask | ((value << shift) & 0xff) as u8 & mask;
        return at..at + 1;
    }
    let len = 1usize << (order - 3);
    let at = within as usize * len;
    bytes[at..at + len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
    at..at + len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_widths_are_kept_apart() {
        for order in 0..=6 {
            let mut bytes = vec![0; 512];
            let counts = (512 * 8) >> order;
            for within in 0..counts {
                set_count(&mut bytes, order, within, within & 1);
            }
            for within in 0..counts {
                assert_eq!(get_count(&bytes, order, within), within & 1, "{order} {within}");
            }
        }
    }
}
