//! Translated blocks: finding, chaining and invalidating them.
//!
//! Problem: a block must be found by where and how the guest runs, jumped to directly by its neighbours,
//! and never run once its guest bytes have changed. Scheme: one map by key, one list for each page; a
//! block remembers the jumps that were pointed at it, and invalidation points them back at their
//! exit stubs. Code memory is given back only all at once. Invariants: `by_key` holds live blocks only;
//! every patched jump into a live block is in its `incoming`. Owner: the engine of one vCPU.

use std::collections::HashMap;

use xenolith_codecache::arena::Arena;
use xenolith_translator::emit::{Site, Translation};
use xenolith_translator::mode::Mode;

/// What a block was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub rip: u64,
    /// Guest physical page.
    pub gpn: u64,
    pub mode: Mode,
}

/// A jump that may be pointed at a block.
#[derive(Clone, Copy, Debug)]
struct Jump {
    /// Its 32-bit displacement.
    at: *const u8,
    /// What that was at first: the way to the exit stub.
    original: i32,
}

#[derive(Debug)]
pub struct Block {
    pub entry: *const u8,
    pub key: Key,
    /// Code version of the page.
    pub version: u32,
    incoming: Vec<Jump>,
}

/// An exit of some block.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    pub site: Site,
    /// Where its block's code begins.
    pub code: *const u8,
    block: u32,
    generation: u32,
}

/// All blocks of one vCPU.
#[derive(Debug)]
pub struct Blocks {
    arena: Arena,
    blocks: Vec<Block>,
    by_key: HashMap<Key, u32>,
    by_page: HashMap<u64, Vec<u32>>,
    exits: Vec<Exit>,
    /// Counts resets.
    generation: u32,
    /// Code that every block needs, published again after a reset.
    common: Vec<u8>,
}

// SAFETY: the pointers lead into `arena`, which moves along.
unsafe impl Send for Blocks {}

impl Blocks {
    /// `common` goes first into the arena.
    pub fn new(arena: Arena, common: Vec<u8>) -> Self {
        let mut blocks = Self {
            arena,
            blocks: Vec::new(),
            by_key: HashMap::new(),
            by_page: HashMap::new(),
            exits: Vec::new(),
            generation: 0,
            common,
        };
        blocks.reset();
        blocks
    }

    /// Forgets all blocks.
    pub fn reset(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.arena.reset();
        self.blocks.clear();
        self.by_key.clear();
        self.by_page.clear();
        self.exits.clear();
        self.arena.publish(&self.common).expect("an arena holds more than the common code");
    }

    /// Where the next block's code begins, and its first exit's number.
    pub fn next(&self) -> (u64, u32) {
        (self.arena.next_entry().addr() as u64, self.exits.len() as u32)
    }

    /// Keeps a block; `None` when the arena is full.
    pub fn insert(
        &mut self,
        key: Key,
        version: u32,
        translation: &Translation,
    ) -> Option<*const u8> {
        let entry = self.arena.append(&translation.code)?;
        let number = self.blocks.len() as u32;
        let generation = self.generation;
        let exit = |&site| Exit { site, code: entry, block: number, generation };
        self.exits.extend(translation.sites.iter().map(exit));
        self.blocks.push(Block { entry, key, version, incoming: Vec::new() });
        self.by_key.insert(key, number);
        self.by_page.entry(key.gpn).or_default().push(number);
        Some(entry)
    }

    /// A live block, with the version it was made under.
    pub fn find(&self, key: &Key) -> Option<(*const u8, u32)> {
        let block = &self.blocks[*self.by_key.get(key)? as usize];
        Some((block.entry, block.version))
    }

    pub fn exit(&self, number: u64) -> Exit {
        self.exits[number as usize]
    }

    /// Points a chainable exit at the block of `key`, if it is there.
    pub fn chain(&mut self, exit: Exit, patch: usize, key: &Key) {
        let Some(&number) = self.by_key.get(key) else { return };
        let block = &mut self.blocks[number as usize];
        let at = exit.code.wrapping_add(patch);
        // SAFETY: the displacement is in published code, which is readable.
        let original = unsafe { at.cast::<i32>().read_unaligned() };
        let distance = block.entry.addr().wrapping_sub(at.addr() + 4) as i32;
        if original != distance {
            block.incoming.push(Jump { at, original });
            self.arena.patch(at, distance);
        }
    }

    /// The bytes of a page have changed: its blocks must not run any more.
    pub fn invalidate(&mut self, gpn: u64) {
        for number in self.by_page.remove(&gpn).unwrap_or_default() {
            let block = &mut self.blocks[number as usize];
            self.by_key.remove(&block.key);
            for jump in std::mem::take(&mut block.incoming) {
                self.arena.patch(jump.at, jump.original);
            }
        }
    }

    /// Whether an exit's block still exists, that is, the arena was not reset since.
    pub fn is_live(&self, exit: Exit) -> bool {
        exit.generation == self.generation
    }

    /// The key of a block in the same page and mode as an exit's.
    pub fn key_like(&self, exit: Exit, rip: u64) -> Key {
        Key { rip, ..self.blocks[exit.block as usize].key }
    }

    pub fn len(&self) -> usize {
        self.blocks.len()
    }
}
