//! Translated blocks: finding, chaining, invalidating and evicting them.
//!
//! Problem: a block must be found by where and how the guest runs, jumped to directly by its neighbours,
//! and never run once its guest bytes have changed; and the memory for blocks must not grow without
//! bound. Scheme: one map by key, one list for each guest page; a block remembers the jumps that were
//! pointed at it, and invalidation points them back at their exit stubs. A page that was written to
//! keeps the blocks whose bytes are still the same. The arena is a ring of segments: when the last one
//! is full, the oldest is emptied and filled anew, so what is in use comes back at the price of
//! translating it again, and what isn't is gone.
//!
//! Invariants: the map holds live blocks only; every patched jump into a live block is in its
//! `incoming`; a site's number leads to its record until its segment is emptied, which the owner does only
//! while nobody runs or will go on in the segment. One cache serves all vCPUs, behind a lock; records
//! of sites are read without it. What a site means is the translator's: this crate only keeps it.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::arena::{Arena, ArenaError};

/// Parts of the arena, the unit of eviction.
pub const SEGMENTS: usize = 8;
/// Records of sites in one piece of memory.
const CHUNK_SITES: usize = 4096;
const CHUNKS_PER_SEGMENT: usize = 512;
/// Sites of one segment at most.
const SEGMENT_SITES: usize = CHUNK_SITES * CHUNKS_PER_SEGMENT;
const CHUNKS: usize = SEGMENTS * CHUNKS_PER_SEGMENT;
/// Blocks over whose pages a block extends at most.
const PAGES_MAX: usize = 2;

/// What a block was made for. The owner packs what it likes into it, without loss.
pub type Key = u64;

/// Hashes keys and page numbers by one multiplication.
#[derive(Clone, Copy, Debug, Default)]
pub struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }
    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }
    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
}

/// A map by numbers that no stranger chooses for collisions to matter.
pub type NumberMap<K, V> = HashMap<K, V, BuildHasherDefault<NumberHasher>>;

/// A jump that may be pointed at a block.
#[derive(Clone, Copy, Debug)]
struct Jump {
    /// Its 32-bit displacement.
    at: usize,
    /// What that was at first: the way to the exit stub.
    original: i32,
    /// The block that it leaves, and that block's serial number: it may be another one by now.
    from: u32,
    serial: u64,
}

/// Where a block can be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entries {
    pub guarded: usize,
    pub polled: usize,
    pub plain: usize,
}

/// A page of guest code that a block was made from: guest physical page, and the part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    pub gpn: u64,
    pub offset: u16,
    pub len: u16,
}

/// A block to be kept.
#[derive(Debug)]
pub struct NewBlock<'a, S> {
    pub key: Key,
    pub code: &'a [u8],
    pub sites: &'a [S],
    /// Offsets of the entries; `guarded` is at 0.
    pub polled: u32,
    pub plain: u32,
    /// Guest bytes, and where they are.
    pub bytes: &'a [u8],
    pub sources: &'a [Source],
    pub instructions: u32,
    /// Where each instruction's host code begins, in order, and a word about it.
    pub map: &'a [(u32, u64)],
    /// What the owner wants to know of it again.
    pub tag: u64,
}

#[derive(Debug)]
struct Block {
    key: Key,
    entries: Entries,
    /// Of all blocks ever made; 0 once its code is gone.
    serial: u64,
    bytes: Box<[u8]>,
    sources: [Source; PAGES_MAX],
    incoming: Vec<Jump>,
    live: bool,
    tag: u64,
    map: Box<[(u32, u64)]>,
}

/// A place in a block's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    pub block: u32,
    pub key: Key,
    pub tag: u64,
    /// Address of the instruction's host code, and the word about it.
    pub host: usize,
    pub word: u64,
}

/// A site of some block.
#[derive(Clone, Copy, Debug)]
pub struct Record<S> {
    pub site: S,
    /// Where its block's code begins.
    pub code: usize,
    pub block: u32,
}

/// Records of sites by number, for readers without a lock.
#[derive(Debug)]
pub struct Sites<S> {
    chunks: Box<[AtomicPtr<Record<S>>]>,
}

impl<S: Copy> Sites<S> {
    fn new() -> Self {
        Self { chunks: (0..CHUNKS).map(|_| AtomicPtr::default()).collect() }
    }

    /// The record of a site that translated code named.
    ///
    /// # Panics
    /// No such site was ever kept.
    #[must_use]
    #[inline]
    pub fn get(&self, number: u32) -> Record<S> {
        let chunk = self.chunks[number as usize / CHUNK_SITES].load(Ordering::Acquire);
        assert!(!chunk.is_null(), "the number of a site that was kept");
        let record = chunk.wrapping_add(number as usize % CHUNK_SITES);
        // SAFETY: a chunk has CHUNK_SITES records and lives as long as `self`; the record was written
        // before the code that names it was published, and isn't written again while that code may run.
        unsafe { record.read() }
    }

    /// Keeps a record. Only for the owner of the numbers, and while nobody can name this one.
    fn set(&self, number: u32, record: Record<S>) {
        let slot = &self.chunks[number as usize / CHUNK_SITES];
        let mut chunk = slot.load(Ordering::Acquire);
        if chunk.is_null() {
            let fresh = vec![record; CHUNK_SITES].into_boxed_slice();
            chunk = Box::into_raw(fresh).cast::<Record<S>>();
            slot.store(chunk, Ordering::Release);
        }
        let place = chunk.wrapping_add(number as usize % CHUNK_SITES);
        // SAFETY: within the chunk; by contract nobody reads this record now.
        unsafe { place.write(record) };
    }
}

impl<S> Drop for Sites<S> {
    fn drop(&mut self) {
        for slot in &self.chunks {
            let chunk = slot.load(Ordering::Acquire);
            if !chunk.is_null() {
                let records = std::ptr::slice_from_raw_parts_mut(chunk, CHUNK_SITES);
                // SAFETY: made by `Box::into_raw` from a slice of this length.
                drop(unsafe { Box::from_raw(records) });
            }
        }
    }
}

/// Counters of a cache.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    pub blocks: u64,
    pub instructions: u64,
    /// Guest bytes translated, host bytes made of them.
    pub guest_bytes: u64,
    pub host_bytes: u64,
    /// Jumps pointed at blocks.
    pub chains: u64,
    /// Blocks dropped because their bytes changed, and writes to pages with blocks that changed none.
    pub invalidated: u64,
    pub spared: u64,
    pub evicted: u64,
}

/// See the module's head.
#[derive(Debug)]
pub struct Cache<S> {
    arena: Arena,
    sites: Arc<Sites<S>>,
    blocks: Vec<Block>,
    free: Vec<u32>,
    by_key: NumberMap<Key, u32>,
    by_page: NumberMap<u64, Vec<u32>>,
    /// Blocks by the address of their code, dead ones too.
    starts: BTreeMap<usize, u32>,
    /// Blocks of each segment, dead ones too.
    segments: [Vec<u32>; SEGMENTS],
    current: usize,
    next_site: u32,
    segment_bytes: usize,
    /// Bytes at the arena's start that every block needs.
    common_bytes: usize,
    pub counters: Counters,
}

impl<S: Copy> Cache<S> {
    /// A cache of about `capacity_bytes`; `common` makes the code that every block needs from the
    /// address that it will have.
    ///
    /// # Errors
    /// The host refuses executable memory.
    pub fn new(
        capacity_bytes: usize,
        common: impl FnOnce(u64) -> Vec<u8>,
    ) -> Result<Self, ArenaError> {
        let mut arena = Arena::new(capacity_bytes)?;
        let code = common(arena.next_entry().addr() as u64);
        arena.publish(&code).ok_or(ArenaError::Capacity { bytes: capacity_bytes })?;
        let common_bytes = arena.used_bytes();
        let segment_bytes = ((arena.capacity_bytes() - common_bytes) / SEGMENTS) & !63;
        let mut cache = Self {
            arena,
            sites: Arc::new(Sites::new()),
            blocks: Vec::new(),
            free: Vec::new(),
            by_key: NumberMap::default(),
            by_page: NumberMap::default(),
            starts: BTreeMap::new(),
            segments: std::array::from_fn(|_| Vec::new()),
            current: 0,
            next_site: 0,
            segment_bytes,
            common_bytes,
            counters: Counters::default(),
        };
        cache.open_segment(0);
        Ok(cache)
    }

    /// Where the common code is.
    #[must_use]
    pub fn common(&self) -> u64 {
        self.arena.first_entry().addr() as u64
    }

    /// The addresses that code of this cache runs at.
    #[must_use]
    pub fn span(&self) -> std::ops::Range<usize> {
        let start = self.arena.first_entry().addr();
        start..start + self.arena.capacity_bytes()
    }

    #[must_use]
    pub fn sites(&self) -> Arc<Sites<S>> {
        Arc::clone(&self.sites)
    }

    fn open_segment(&mut self, segment: usize) {
        let start = self.common_bytes + segment * self.segment_bytes;
        self.arena.open(start, start + self.segment_bytes);
        self.current = segment;
        self.next_site = (segment * SEGMENT_SITES) as u32;
    }

    /// Where the next block's code begins, and its first site's number.
    #[must_use]
    pub fn next(&self) -> (u64, u32) {
        (self.arena.next_entry().addr() as u64, self.next_site)
    }

    /// Keeps a block that was assembled for [`Self::next`]. `None` when the segment is full: then the
    /// next one must be opened by [`Self::evict`].
    pub fn insert(&mut self, new: &NewBlock<S>) -> Option<Entries> {
        let sites_end = (self.current + 1) * SEGMENT_SITES;
        if self.next_site as usize + new.sites.len() > sites_end {
            return None;
        }
        let code = self.arena.append(new.code)?.addr();
        let number = self.free.pop().unwrap_or(self.blocks.len() as u32);
        for (site, at) in new.sites.iter().zip(self.next_site..) {
            self.sites.set(at, Record { site: *site, code, block: number });
        }
        self.next_site += new.sites.len() as u32;
        let entries = Entries {
            guarded: code,
            polled: code + new.polled as usize,
            plain: code + new.plain as usize,
        };
        let none = Source { gpn: 0, offset: 0, len: 0 };
        let source = |n: usize| new.sources.get(n).copied().unwrap_or(none);
        let block = Block {
            key: new.key,
            entries,
            serial: self.counters.blocks + 1,
            bytes: new.bytes.into(),
            sources: [source(0), source(1)],
            incoming: Vec::new(),
            live: true,
            tag: new.tag,
            map: new.map.into(),
        };
        self.starts.insert(code, number);
        match self.blocks.get_mut(number as usize) {
            Some(slot) => *slot = block,
            None => self.blocks.push(block),
        }
        self.by_key.insert(new.key, number);
        for source in new.sources {
            self.by_page.entry(source.gpn).or_default().push(number);
        }
        self.segments[self.current].push(number);
        self.counters.blocks += 1;
        self.counters.instructions += u64::from(new.instructions);
        self.counters.guest_bytes += new.bytes.len() as u64;
        self.counters.host_bytes += new.code.len() as u64;
        Some(entries)
    }

    /// A live block.
    #[must_use]
    #[inline]
    pub fn find(&self, key: Key) -> Option<Entries> {
        Some(self.blocks[*self.by_key.get(&key)? as usize].entries)
    }

    /// Whether a block still is what its key stands for.
    #[must_use]
    pub fn is_live(&self, block: u32) -> bool {
        self.blocks.get(block as usize).is_some_and(|block| block.live)
    }

    #[must_use]
    pub fn key_of(&self, block: u32) -> Key {
        self.blocks[block as usize].key
    }

    /// What its owner said of a block.
    #[must_use]
    pub fn tag_of(&self, block: u32) -> u64 {
        self.blocks[block as usize].tag
    }

    /// Points the jump of a site, whose displacement is `patch` bytes into its block, at an entry of the
    /// block of `key`, if both are live.
    pub fn chain(
        &mut self,
        record: &Record<S>,
        patch: u32,
        key: Key,
        entry: impl FnOnce(Entries) -> usize,
    ) {
        let from = record.block;
        let Some(&number) = self.by_key.get(&key) else { return };
        let source = &self.blocks[from as usize];
        if !source.live || source.entries.guarded != record.code {
            return;
        }
        let serial = source.serial;
        let at = record.code + patch as usize;
        let block = &mut self.blocks[number as usize];
        let distance = entry(block.entries).wrapping_sub(at + 4) as i32;
        let original = self.arena.read_displacement(at);
        if original == distance || block.incoming.iter().any(|jump| jump.at == at) {
            return;
        }
        block.incoming.push(Jump { at, original, from, serial });
        self.arena.patch(at, distance);
        self.counters.chains += 1;
    }

    /// Whether a guest page has blocks.
    #[must_use]
    pub fn has_page(&self, gpn: u64) -> bool {
        self.by_page.contains_key(&gpn)
    }

    /// A page was written to: drops the blocks whose bytes have changed. `read` gives the page's present
    /// bytes. `dropped` is told the key and tag of each.
    pub fn page_written(
        &mut self,
        gpn: u64,
        read: impl Fn(Source, &mut [u8]),
        mut dropped: impl FnMut(Key, u64),
    ) {
        let Some(numbers) = self.by_page.remove(&gpn) else { return };
        let mut kept = Vec::with_capacity(numbers.len());
        let mut now = Vec::new();
        for number in numbers {
            let block = &self.blocks[number as usize];
            if !block.live {
                continue;
            }
            now.resize(block.bytes.len(), 0);
            let mut at = 0;
            for source in block.sources {
                let end = at + usize::from(source.len);
                read(source, &mut now[at..end]);
                at = end;
            }
            if now[..] == block.bytes[..] {
                kept.push(number);
            } else {
                dropped(block.key, block.tag);
                self.counters.invalidated += 1;
                self.unlink(number);
            }
        }
        self.counters.spared += u64::from(!kept.is_empty());
        if !kept.is_empty() {
            self.by_page.insert(gpn, kept);
        }
    }

    /// Overwrites code from host address `at` on, which nobody is running.
    ///
    /// # Panics
    /// Not all of it is in the cache.
    pub fn rewrite(&mut self, at: usize, code: &[u8]) {
        self.arena.rewrite(at, code);
    }

    /// Which instruction of which block the code at `pc` is of.
    #[must_use]
    pub fn locate(&self, pc: usize) -> Option<Located> {
        let (&code, &number) = self.starts.range(..=pc).next_back()?;
        let block = &self.blocks[number as usize];
        let after = block.map.partition_point(|&(host, _)| code + host as usize <= pc);
        let &(host, word) = block.map.get(after.checked_sub(1)?)?;
        Some(Located {
            block: number,
            key: block.key,
            tag: block.tag,
            host: code + host as usize,
            word,
        })
    }

    /// Drops one block.
    pub fn remove(&mut self, key: Key) {
        if let Some(&number) = self.by_key.get(&key) {
            self.unlink(number);
        }
    }

    /// Takes a block out of the maps and points the jumps into it back.
    fn unlink(&mut self, number: u32) {
        let block = &mut self.blocks[number as usize];
        block.live = false;
        if self.by_key.get(&block.key) == Some(&number) {
            self.by_key.remove(&block.key);
        }
        for jump in std::mem::take(&mut block.incoming) {
            // The jump's own block may be gone, and other code be where it was.
            if self.blocks[jump.from as usize].serial == jump.serial {
                self.arena.patch(jump.at, jump.original);
            }
        }
    }

    /// Empties the oldest segment and goes on there. Nobody may be in translated code, nor go on at an
    /// address of it; `dropped` is told the key and tag of each live block.
    pub fn evict(&mut self, mut dropped: impl FnMut(Key, u64)) {
        let segment = (self.current + 1) % SEGMENTS;
        let numbers = std::mem::take(&mut self.segments[segment]);
        for &number in &numbers {
            let block = &self.blocks[number as usize];
            if block.live {
                self.counters.evicted += 1;
                dropped(block.key, block.tag);
                let pages = block.sources;
                self.unlink(number);
                for source in pages {
                    if let Some(list) = self.by_page.get_mut(&source.gpn) {
                        list.retain(|&other| other != number);
                    }
                }
            }
            let block = &mut self.blocks[number as usize];
            block.serial = 0;
            self.starts.remove(&block.entries.guarded);
        }
        self.free.extend(numbers);
        self.open_segment(segment);
    }

    /// Forgets all blocks, under the conditions of [`Self::evict`].
    pub fn clear(&mut self) {
        for _ in 0..SEGMENTS {
            self.evict(|_, _| {});
        }
    }

    /// Live blocks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }
}
