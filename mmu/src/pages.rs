//! Maps and sets of page numbers.
//!
//! Problem: page numbers are looked up at every flush and fault, and the standard hash, made to withstand
//! chosen keys, takes longer than the rest of it. Scheme: one multiplication. A guest that chooses
//! colliding pages slows itself down. Any thread.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// Hashes page numbers by one multiplication.
#[derive(Clone, Copy, Debug, Default)]
pub struct PageHasher(u64);

impl Hasher for PageHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }
    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
}

pub type PageMap<K, V> = HashMap<K, V, BuildHasherDefault<PageHasher>>;
pub type PageSet = HashSet<u64, BuildHasherDefault<PageHasher>>;
