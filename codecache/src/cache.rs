//! Translated blocks: finding, chaining, invalidating and evicting them.
//!
//! Problem: a block must be found by where and how the guest runs, jumped to directly by its neighbours,
//! and never run once its guest bytes have changed; and the memory for blocks must not grow without
//! bound. Scheme: one map by key, lists for each guest page; a block remembers the jumps that were
//! pointed at it, and invalidation points them back at their exit stubs. A direct jump whose target isn't
//! there waits for it by key. A page that was written to keeps the blocks whose bytes are still the
//! same, which are compared only if the write was to a line that some block has bytes in; until it has been written
//! to so often that it looks like data with code left over from an earlier use: then all go, so that writes need not be
//! looked at any more, and what is in use after all comes back.
//! The arena is a ring of segments: when the last one is full, the oldest is emptied and filled
//! anew, so what is in use comes back at the price of translating it again, and what isn't is gone.
//!
//! Invariants: the map holds live blocks only; all their bytes are in lines that are noted for their pages; every
//! patched jump into a live block is in its list; a site's number leads to its record until its segment is emptied,
//! which the owner does only while nobody runs or will go on in the segment. One cache serves all vCPUs, behind a
//! lock; records of sites are read without it. What a site means is the translator's: this crate only keeps it.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::arena::{Arena, ArenaError};
use crate::table::{ALIGN, Pool, Table};

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
/// Writes to a page beside its blocks before these are dropped, the first time: that many take longer than to translate
/// a page again. Where blocks come back it is twice as many each time, up to as many as a person wouldn't notice.
const SPARED_MAX: u32 = 1 << 10;
const SPARED_MAX_LAST: u32 = 1 << 16;
/// A page has 64 lines.
const LINE_BITS: u16 = 6;

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

/// Which entry of its target a direct jump goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Forward in the same page.
    Plain,
    /// Backward in the same page.
    Polled,
    /// From a loop's end to its next round.
    Again,
    /// To another page.
    Guarded,
}

/// A jump that is pointed at a block or waits for one.
#[derive(Clone, Copy, Debug)]
struct Jump {
    /// Its 32-bit displacement.
    at: usize,
    /// What that was at first: the way to the exit stub.
    original: i32,
    /// The block that it leaves, and that block's serial number: it may be another one by now.
    from: u32,
    serial: u64,
    link: Link,
    /// The next in its list; [`NO_JUMP`] ends it.
    next: u32,
}

/// So many jumps in lists are no burden, whether their blocks are gone or not.
const JUMPS_MIN: usize = 1 << 16;
const NO_JUMP: u32 = u32::MAX;

/// Where a block can be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entries {
    pub guarded: usize,
    pub indirect: usize,
    pub polled: usize,
    pub again: usize,
    pub plain: usize,
}

impl Entries {
    fn of(&self, link: Link) -> usize {
        match link {
            Link::Plain => self.plain,
            Link::Polled => self.polled,
            Link::Again => self.again,
            Link::Guarded => self.guarded,
        }
    }
}

/// A page of guest code that a block was made from: guest physical page, and the part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    pub gpn: u64,
    /// What its owner knows the page by.
    pub id: u32,
    pub offset: u16,
    pub len: u16,
}

impl Source {
    fn lines(self) -> u64 {
        lines(self.offset..self.offset + self.len)
    }
}

/// The lines of a page that have some of its bytes.
fn lines(bytes: Range<u16>) -> u64 {
    if bytes.is_empty() {
        return 0;
    }
    let (first, last) = (bytes.start >> LINE_BITS, (bytes.end - 1) >> LINE_BITS);
    u64::MAX << first & u64::MAX >> (63 - last)
}

/// What is known of a guest page.
#[derive(Clone, Copy, Debug)]
struct Page {
    /// Where it has bytes of blocks, and maybe some lines more.
    lines: u64,
    /// Writes that changed no block, and how many there may be.
    spared: u32,
    spared_max: u32,
}

/// A block to be kept.
#[derive(Debug)]
pub struct NewBlock<'a, S> {
    pub key: Key,
    pub code: &'a [u8],
    pub sites: &'a [S],
    /// Offsets of the entries; `guarded` is at 0.
    pub indirect: u32,
    pub polled: u32,
    pub again: u32,
    pub plain: u32,
    /// Where in its code the exits begin, which run only to leave it.
    pub exits: u32,
    /// Guest bytes, and where they are.
    pub bytes: &'a [u8],
    pub sources: &'a [Source],
    pub instructions: u32,
    /// Where each instruction's host code begins, in order, and a word about it.
    pub map: &'a [Mapped],
    /// What the owner wants to know of it again.
    pub tag: u64,
    /// Direct jumps whose target's key is known: they lead there as soon as it exists.
    pub links: &'a [NewLink],
}

/// Where an instruction's host code begins in its block, and a word of its owner's about it. Blocks in their thousands
/// have one for every instruction, so it is small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped(u64);

impl Mapped {
    /// Bits that the word may have.
    pub const WORD_BITS: u32 = 42;

    /// # Panics
    /// The word has more bits, or the code would be 4 MiB and longer.
    #[must_use]
    pub fn new(host: u32, word: u64) -> Self {
        assert!(
            word >> Self::WORD_BITS == 0 && host >> (64 - Self::WORD_BITS) == 0,
            "a small block"
        );
        Self(u64::from(host) << Self::WORD_BITS | word)
    }

    #[must_use]
    pub fn host(self) -> usize {
        (self.0 >> Self::WORD_BITS) as usize
    }

    #[must_use]
    pub fn word(self) -> u64 {
        self.0 & ((1 << Self::WORD_BITS) - 1)
    }
}

/// A direct jump of a new block.
#[derive(Clone, Copy, Debug)]
pub struct NewLink {
    /// Where its 32-bit displacement is, in the block's code.
    pub patch: u32,
    pub key: Key,
    pub link: Link,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    key: Key,
    /// Where its code begins, which is an entry, and offsets of the others.
    code: usize,
    indirect: u32,
    polled: u32,
    again: u32,
    plain: u32,
    /// Of all blocks ever made; 0 once its code is gone.
    serial: u64,
    sources: [Source; PAGES_MAX],
    /// Jumps that are pointed at it, a list.
    incoming: u32,
    code_bytes: u32,
    exits: u32,
    /// Where its guest bytes and its map are, in its segment's lists.
    bytes_at: u32,
    map_at: u32,
    map_len: u32,
    live: bool,
    tag: u64,
}

impl Block {
    fn entries(&self) -> Entries {
        let at = |offset: u32| self.code + offset as usize;
        Entries {
            guarded: self.code,
            indirect: at(self.indirect),
            polled: at(self.polled),
            again: at(self.again),
            plain: at(self.plain),
        }
    }
}

/// What the blocks of a segment have, dead ones too.
#[derive(Debug)]
struct Segment {
    /// In the order of their code's addresses.
    blocks: Vec<u32>,
    by_page: NumberMap<u64, Vec<u32>>,
    bytes: Table<u8>,
    map: Table<Mapped>,
}

impl Segment {
    fn new(pool: &Arc<Pool>) -> Self {
        let (bytes, map) = (Table::new(pool), Table::new(pool));
        Self { blocks: Vec::new(), by_page: NumberMap::default(), bytes, map }
    }
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

/// A block that is there, for a listing.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    pub key: Key,
    pub tag: u64,
    pub entries: Entries,
    /// Its code as it is now: jumps lead where they have been pointed.
    pub code: &'a [u8],
    /// Where in it the exits begin.
    pub exits: u32,
    pub bytes: &'a [u8],
    pub map: &'a [Mapped],
    /// Jumps of other blocks, and of its own, that lead to it.
    pub incoming: usize,
    number: u32,
    segment: usize,
}

/// A site of some block.
#[derive(Clone, Copy, Debug)]
pub struct Record<S> {
    pub site: S,
    /// Where its block's code begins.
    pub code: usize,
    pub block: u32,
}

/// A record as it is kept: there are hundreds of thousands.
#[derive(Clone, Copy, Debug)]
struct Brief<S> {
    site: S,
    /// Where its block's code begins, behind the arena's beginning.
    code: u32,
    block: u32,
}

/// Records of sites by number, for readers without a lock.
#[derive(Debug)]
pub struct Sites<S> {
    /// Where the arena begins.
    start: usize,
    chunks: Box<[AtomicPtr<Brief<S>>]>,
    /// What the chunks are in.
    pool: Arc<Pool>,
}

impl<S: Copy> Sites<S> {
    fn new(arena: &Arena, pool: &Arc<Pool>) -> Self {
        let chunks = (0..CHUNKS).map(|_| AtomicPtr::default()).collect();
        Self { start: arena.first_entry().addr(), chunks, pool: Arc::clone(pool) }
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
        let Brief { site, code, block } = unsafe { record.read() };
        Record { site, code: self.start + code as usize, block }
    }

    /// The record of a site, if its number is one that has been used. Only for the owner of the numbers.
    fn known(&self, number: u32) -> Option<Record<S>> {
        let chunk = &self.chunks[number as usize / CHUNK_SITES];
        (!chunk.load(Ordering::Acquire).is_null()).then(|| self.get(number))
    }

    /// Keeps a record. Only for the owner of the numbers, and while nobody can name this one.
    fn set(&self, number: u32, record: Record<S>) {
        let Record { site, code, block } = record;
        // No arena is larger than 1 GiB.
        let record = Brief { site, code: (code - self.start) as u32, block };
        let slot = &self.chunks[number as usize / CHUNK_SITES];
        let mut chunk = slot.load(Ordering::Acquire);
        if chunk.is_null() {
            chunk = self.fresh(record);
            slot.store(chunk, Ordering::Release);
        }
        let place = chunk.wrapping_add(number as usize % CHUNK_SITES);
        // SAFETY: within the chunk; by contract nobody reads this record now.
        unsafe { place.write(record) };
    }

    /// A new chunk, full of `record`.
    fn fresh(&self, record: Brief<S>) -> *mut Brief<S> {
        // As all that a pool gives.
        const { assert!(align_of::<Brief<S>>() <= ALIGN) };
        let chunk: *mut Brief<S> =
            self.pool.take(CHUNK_SITES * size_of::<Brief<S>>()).cast().as_ptr();
        for n in 0..CHUNK_SITES {
            let place = chunk.wrapping_add(n);
            // SAFETY: within the chunk, which is aligned and nobody else's.
            unsafe { place.write(record) };
        }
        chunk
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
    /// Blocks dropped because of many such writes.
    pub outwritten: u64,
    pub evicted: u64,
}

/// See the module's head.
#[derive(Debug)]
pub struct Cache<S> {
    arena: Arena,
    sites: Arc<Sites<S>>,
    blocks: Table<Block>,
    free: Vec<u32>,
    by_key: NumberMap<Key, u32>,
    /// Jumps in all lists, and the list of those that are free.
    jumps: Table<Jump>,
    free_jump: u32,
    /// How many are in lists, and how many were when those of dropped blocks were last freed.
    jumps_kept: usize,
    jumps_needed: usize,
    /// Lists of jumps whose target isn't there, by its key.
    waiting: NumberMap<Key, u32>,
    /// Guest pages that have blocks, or had some that were dropped for many writes beside them.
    pages: NumberMap<u64, Page>,
    segments: [Segment; SEGMENTS],
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
        let pool = Arc::default();
        let mut cache = Self {
            sites: Arc::new(Sites::new(&arena, &pool)),
            arena,
            blocks: Table::new(&pool),
            free: Vec::new(),
            by_key: NumberMap::default(),
            jumps: Table::new(&pool),
            free_jump: NO_JUMP,
            jumps_kept: 0,
            jumps_needed: 0,
            waiting: NumberMap::default(),
            pages: NumberMap::default(),
            segments: std::array::from_fn(|_| Segment::new(&pool)),
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
        let none = Source { gpn: 0, id: 0, offset: 0, len: 0 };
        let source = |n: usize| new.sources.get(n).copied().unwrap_or(none);
        let serial = self.counters.blocks + 1;
        let segment = &mut self.segments[self.current];
        let block = Block {
            key: new.key,
            code,
            indirect: new.indirect,
            polled: new.polled,
            again: new.again,
            plain: new.plain,
            serial,
            sources: [source(0), source(1)],
            incoming: NO_JUMP,
            code_bytes: new.code.len() as u32,
            exits: new.exits,
            bytes_at: segment.bytes.extend(new.bytes) as u32,
            map_at: segment.map.extend(new.map) as u32,
            map_len: new.map.len() as u32,
            live: true,
            tag: new.tag,
        };
        segment.blocks.push(number);
        for source in new.sources {
            segment.by_page.entry(source.gpn).or_default().push(number);
            let fresh = Page { lines: 0, spared: 0, spared_max: SPARED_MAX };
            self.pages.entry(source.gpn).or_insert(fresh).lines |= source.lines();
        }
        match self.blocks.get_mut(number as usize) {
            Some(slot) => *slot = block,
            None => {
                self.blocks.push(block);
            }
        }
        self.by_key.insert(new.key, number);
        self.counters.blocks += 1;
        self.counters.instructions += u64::from(new.instructions);
        self.counters.guest_bytes += new.bytes.len() as u64;
        self.counters.host_bytes += new.code.len() as u64;
        for &NewLink { patch, key, link } in new.links {
            let at = code + patch as usize;
            let original = self.arena.read_displacement(at);
            let jump = Jump { at, original, from: number, serial, link, next: NO_JUMP };
            let jump = self.keep_jump(jump);
            match self.by_key.get(&key) {
                Some(&target) => self.point(jump, target),
                None => self.wait(jump, key),
            }
        }
        let mut next = self.waiting.remove(&new.key).unwrap_or(NO_JUMP);
        while next != NO_JUMP {
            let jump = next;
            next = self.jumps[jump as usize].next;
            if self.is_there(jump) {
                self.point(jump, number);
            } else {
                self.free_jump(jump);
            }
        }
        Some(block.entries())
    }

    fn keep_jump(&mut self, jump: Jump) -> u32 {
        self.jumps_kept += 1;
        let number = self.free_jump;
        if number == NO_JUMP {
            return self.jumps.push(jump) as u32;
        }
        self.free_jump = std::mem::replace(&mut self.jumps[number as usize], jump).next;
        number
    }

    fn free_jump(&mut self, jump: u32) {
        self.jumps_kept -= 1;
        self.jumps[jump as usize].next = std::mem::replace(&mut self.free_jump, jump);
    }

    /// Whether the block that a jump leaves still runs.
    fn is_there(&self, jump: u32) -> bool {
        let jump = &self.jumps[jump as usize];
        let from = &self.blocks[jump.from as usize];
        from.live && from.serial == jump.serial
    }

    /// Points a jump that is in no list at a live block.
    fn point(&mut self, jump: u32, target: u32) {
        let block = &mut self.blocks[target as usize];
        let Jump { at, link, next, from, .. } = &mut self.jumps[jump as usize];
        *next = std::mem::replace(&mut block.incoming, jump);
        // Another block of the same key keeps other things from round to round.
        let link = if *link == Link::Again && *from != target { Link::Polled } else { *link };
        let distance = block.entries().of(link).wrapping_sub(*at + 4) as i32;
        self.arena.patch(*at, distance);
        self.counters.chains += 1;
    }

    /// Lets a jump that is in no list wait for a block.
    fn wait(&mut self, jump: u32, key: Key) {
        self.jumps[jump as usize].next = self.waiting.insert(key, jump).unwrap_or(NO_JUMP);
    }

    /// A live block.
    #[must_use]
    #[inline]
    pub fn find(&self, key: Key) -> Option<Entries> {
        Some(self.blocks[*self.by_key.get(&key)? as usize].entries())
    }

    /// The page that the block's last instruction ends in, if it began in another.
    #[must_use]
    pub fn second_page(&self, key: Key) -> Option<Source> {
        let [_, second] = self.blocks[*self.by_key.get(&key)? as usize].sources;
        (second.len > 0).then_some(second)
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

    /// The guest physical page that a block begins in.
    #[must_use]
    pub fn page_of(&self, block: u32) -> u64 {
        self.blocks[block as usize].sources[0].gpn
    }

    /// What its owner said of a block.
    #[must_use]
    pub fn tag_of(&self, block: u32) -> u64 {
        self.blocks[block as usize].tag
    }

    /// Points the jump of a site, whose displacement is `patch` bytes into its block, at an entry of the
    /// block of `key`, if both are live.
    pub fn chain(&mut self, record: &Record<S>, patch: u32, key: Key, link: Link) {
        let from = record.block;
        let Some(&number) = self.by_key.get(&key) else { return };
        let source = &self.blocks[from as usize];
        if !source.live || source.code != record.code {
            return;
        }
        let at = record.code + patch as usize;
        let original = self.arena.read_displacement(at);
        // Not to its stub, which is behind it: another vCPU was quicker.
        let stubs = at + 4..source.code + source.code_bytes as usize;
        if !stubs.contains(&(at + 4).wrapping_add_signed(original as isize)) {
            return;
        }
        let jump = Jump { at, original, from, serial: source.serial, link, next: NO_JUMP };
        let jump = self.keep_jump(jump);
        self.point(jump, number);
    }

    /// Whether a guest page has blocks.
    #[must_use]
    pub fn has_page(&self, gpn: u64) -> bool {
        self.pages.get(&gpn).is_some_and(|page| page.lines != 0)
    }

    /// Bytes of a page were written to: drops the blocks whose bytes have changed, or all when many writes have changed
    /// none. `read` gives the page's present bytes. `dropped` is told the key and tag of each.
    pub fn page_written(
        &mut self,
        gpn: u64,
        written: Range<u16>,
        read: impl Fn(Source, &mut [u8]),
        mut dropped: impl FnMut(Key, u64),
    ) {
        let Some(page) = self.pages.get_mut(&gpn).filter(|page| page.lines != 0) else { return };
        if page.lines & lines(written) == 0 {
            return self.spare(gpn, dropped);
        }
        let mut now = Vec::new();
        let mut left = 0;
        for segment in 0..SEGMENTS {
            let Some(mut numbers) = self.segments[segment].by_page.remove(&gpn) else { continue };
            numbers.retain(|&number| {
                let block = &self.blocks[number as usize];
                if !block.live {
                    return false;
                }
                let len = block.sources.iter().map(|source| usize::from(source.len)).sum();
                now.resize(len, 0);
                let mut at = 0;
                for source in block.sources {
                    let end = at + usize::from(source.len);
                    read(source, &mut now[at..end]);
                    at = end;
                }
                if now == self.segments[segment].bytes.slice(block.bytes_at as usize, len) {
                    let sources = block.sources.iter().filter(|source| source.gpn == gpn);
                    left |= sources.fold(0, |lines, source| lines | source.lines());
                    return true;
                }
                dropped(block.key, block.tag);
                self.counters.invalidated += 1;
                self.unlink(number);
                false
            });
            if !numbers.is_empty() {
                self.segments[segment].by_page.insert(gpn, numbers);
            }
        }
        if left == 0 {
            self.pages.remove(&gpn);
            return;
        }
        if let Some(page) = self.pages.get_mut(&gpn) {
            page.lines = left;
        }
        self.spare(gpn, dropped);
    }

    /// A page was written to beside blocks: after many times they go.
    fn spare(&mut self, gpn: u64, mut dropped: impl FnMut(Key, u64)) {
        self.counters.spared += 1;
        let Some(page) = self.pages.get_mut(&gpn) else { return };
        page.spared += 1;
        if page.spared < page.spared_max {
            return;
        }
        let spared_max = (2 * page.spared_max).min(SPARED_MAX_LAST);
        *page = Page { lines: 0, spared: 0, spared_max };
        let mut gone = Vec::new();
        for segment in &mut self.segments {
            gone.append(&mut segment.by_page.remove(&gpn).unwrap_or_default());
        }
        for number in gone {
            let block = &self.blocks[number as usize];
            if block.live {
                dropped(block.key, block.tag);
                self.counters.outwritten += 1;
                self.unlink(number);
            }
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
        let start = self.arena.first_entry().addr() + self.common_bytes;
        let segment = self.segments.get(pc.checked_sub(start)? / self.segment_bytes)?;
        let code = |number: u32| self.blocks[number as usize].code;
        let after = segment.blocks.partition_point(|&number| code(number) <= pc);
        let number = *segment.blocks.get(after.checked_sub(1)?)?;
        let (block, code) = (&self.blocks[number as usize], code(number));
        let map = segment.map.slice(block.map_at as usize, block.map_len as usize);
        let after = map.partition_point(|mapped| code + mapped.host() <= pc);
        let mapped = map.get(after.checked_sub(1)?)?;
        let (key, tag) = (block.key, block.tag);
        Some(Located { block: number, key, tag, host: code + mapped.host(), word: mapped.word() })
    }

    /// The instruction behind the one that the code at `pc` is of, if that code still is `block`'s, which is live.
    #[must_use]
    pub fn locate_next(&self, block: u32, pc: usize) -> Option<Located> {
        let found = self.blocks.get(block as usize).filter(|found| found.live)?;
        let code = found.code;
        let offset = pc.checked_sub(code).filter(|&at| at < found.code_bytes as usize)?;
        let start = self.arena.first_entry().addr() + self.common_bytes;
        let segment = &self.segments[(code - start) / self.segment_bytes];
        let map = segment.map.slice(found.map_at as usize, found.map_len as usize);
        let mapped = map.get(map.partition_point(|mapped| mapped.host() <= offset))?;
        let (key, tag) = (found.key, found.tag);
        Some(Located { block, key, tag, host: code + mapped.host(), word: mapped.word() })
    }

    /// Drops one block: its tag, if there is one.
    pub fn remove(&mut self, key: Key) -> Option<u64> {
        let number = *self.by_key.get(&key)?;
        self.unlink(number);
        Some(self.blocks[number as usize].tag)
    }

    /// A live block, and its tag, which may be changed.
    pub fn find_mut(&mut self, key: Key) -> Option<(Entries, &mut u64)> {
        let block = &mut self.blocks[*self.by_key.get(&key)? as usize];
        Some((block.entries(), &mut block.tag))
    }

    /// Takes a block out of the maps and points the jumps into it back: they wait for another of its key.
    fn unlink(&mut self, number: u32) {
        let block = &mut self.blocks[number as usize];
        let key = block.key;
        block.live = false;
        let mut next = std::mem::replace(&mut block.incoming, NO_JUMP);
        if self.by_key.get(&key) == Some(&number) {
            self.by_key.remove(&key);
        }
        while next != NO_JUMP {
            let jump = next;
            let Jump { at, original, from, serial, .. } = self.jumps[jump as usize];
            next = self.jumps[jump as usize].next;
            // The jump's own block may be gone, and other code be where it was.
            if self.blocks[from as usize].serial == serial {
                self.arena.patch(at, original);
                self.wait(jump, key);
            } else {
                self.free_jump(jump);
            }
        }
    }

    /// Empties the oldest segment and goes on there. Nobody may be in translated code, nor go on at an
    /// address of it; `dropped` is told the key and tag of each live block.
    pub fn evict(&mut self, mut dropped: impl FnMut(Key, u64)) {
        let number = (self.current + 1) % SEGMENTS;
        let segment = &mut self.segments[number];
        segment.bytes.clear();
        segment.map.clear();
        let mut blocks = std::mem::take(&mut segment.blocks);
        let by_page = std::mem::take(&mut segment.by_page);
        for &number in &blocks {
            let block = &self.blocks[number as usize];
            if block.live {
                self.counters.evicted += 1;
                dropped(block.key, block.tag);
                self.unlink(number);
            }
            self.blocks[number as usize].serial = 0;
        }
        self.free.append(&mut blocks);
        for gpn in by_page.into_keys() {
            if !self.segments.iter().any(|other| other.by_page.contains_key(&gpn)) {
                self.pages.remove(&gpn);
            }
        }
        if self.jumps_kept > JUMPS_MIN && self.jumps_kept / 2 > self.jumps_needed {
            self.forget_waiting();
            self.jumps_needed = self.jumps_kept;
        }
        self.open_segment(number);
    }

    /// Frees jumps that wait though their own blocks are gone.
    fn forget_waiting(&mut self) {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(|_, head| {
            let mut next = std::mem::replace(head, NO_JUMP);
            while next != NO_JUMP {
                let jump = next;
                next = self.jumps[jump as usize].next;
                if self.is_there(jump) {
                    self.jumps[jump as usize].next = std::mem::replace(head, jump);
                } else {
                    self.free_jump(jump);
                }
            }
            *head != NO_JUMP
        });
        self.waiting = waiting;
    }

    /// Forgets all blocks, under the conditions of [`Self::evict`].
    pub fn clear(&mut self) {
        for _ in 0..SEGMENTS {
            self.evict(|_, _| {});
        }
    }

    /// The live blocks, in no order.
    pub fn kept(&self) -> impl Iterator<Item = Kept<'_>> {
        let numbered = |(number, segment): (usize, &'_ Segment)| {
            segment.blocks.iter().map(move |&block| (number, block)).collect::<Vec<_>>()
        };
        let all = self.segments.iter().enumerate().flat_map(numbered);
        all.filter(|&(_, number)| self.blocks[number as usize].live).map(|(segment, number)| {
            let block = &self.blocks[number as usize];
            let lists = &self.segments[segment];
            let len: usize = block.sources.iter().map(|source| usize::from(source.len)).sum();
            let mut incoming = 0;
            let mut next = block.incoming;
            while next != NO_JUMP {
                incoming += 1;
                next = self.jumps[next as usize].next;
            }
            Kept {
                key: block.key,
                tag: block.tag,
                entries: block.entries(),
                code: self.arena.read(block.code, block.code_bytes as usize),
                exits: block.exits,
                bytes: lists.bytes.slice(block.bytes_at as usize, len),
                map: lists.map.slice(block.map_at as usize, block.map_len as usize),
                incoming,
                number,
                segment,
            }
        })
    }

    /// The sites of a block, and the first one's number.
    #[must_use]
    pub fn sites_of(&self, kept: &Kept) -> (u32, Vec<S>) {
        let first = kept.segment * SEGMENT_SITES;
        let end = if kept.segment == self.current {
            self.next_site as usize
        } else {
            first + SEGMENT_SITES
        };
        let mine = |number: &u32| {
            self.sites.known(*number).is_some_and(|record| {
                record.block == kept.number && record.code == kept.entries.guarded
            })
        };
        let mut numbers = (first as u32..end as u32).filter(mine).peekable();
        let first = numbers.peek().copied().unwrap_or_default();
        (first, numbers.map(|number| self.sites.get(number).site).collect())
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

#[cfg(test)]
mod tests;
