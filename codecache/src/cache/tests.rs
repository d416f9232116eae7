//! Which blocks a write to their pages drops, and what it looks at for that.

use super::*;

const PAGE_BYTES: usize = 4096;

/// A cache over some pages of memory.
struct Rig {
    cache: Cache<()>,
    memory: Vec<u8>,
}

impl Rig {
    fn new() -> Self {
        let cache = Cache::new(1 << 20, |_| vec![0x90; 64]).expect("executable memory");
        Self { cache, memory: vec![0; 4 * PAGE_BYTES] }
    }

    /// Keeps a block of what is at `at`.
    fn insert(&mut self, key: Key, at: usize, len: usize) {
        let first = len.min(PAGE_BYTES - at % PAGE_BYTES);
        let source = |at: usize, len: usize| Source {
            gpn: (at / PAGE_BYTES) as u64,
            id: 0,
            offset: (at % PAGE_BYTES) as u16,
            len: len as u16,
        };
        let sources = [source(at, first), source(at + first, len - first)];
        let inserted = self.cache.insert(&NewBlock {
            key,
            code: &[0xcc; 64],
            sites: &[],
            indirect: 0,
            polled: 0,
            again: 0,
            plain: 0,
            exits: 64,
            bytes: &self.memory[at..at + len],
            sources: &sources[..1 + usize::from(first < len)],
            instructions: 1,
            map: &[],
            tag: !key,
            links: &[],
        });
        inserted.expect("room");
    }

    /// Writes, and tells the cache: which blocks are dropped, and whether any bytes were looked at.
    fn write(&mut self, at: usize, bytes: &[u8]) -> (Vec<Key>, bool) {
        self.memory[at..at + bytes.len()].copy_from_slice(bytes);
        let in_page = (at % PAGE_BYTES) as u16;
        let (mut gone, looked) = (Vec::new(), std::cell::Cell::new(false));
        let read = |source: Source, out: &mut [u8]| {
            looked.set(true);
            let at = source.gpn as usize * PAGE_BYTES + usize::from(source.offset);
            out.copy_from_slice(&self.memory[at..at + out.len()]);
        };
        let written = in_page..in_page + bytes.len() as u16;
        let gpn = (at / PAGE_BYTES) as u64;
        self.cache.page_written(gpn, written, read, |key, tag| {
            assert_eq!(tag, !key);
            gone.push(key);
        });
        (gone, looked.get())
    }

    fn has(&self, key: Key) -> bool {
        self.cache.find(key).is_some()
    }
}

#[test]
fn only_writes_to_lines_with_code_look_at_it() {
    let mut rig = Rig::new();
    rig.insert(1, 0x13e, 4);
    for at in [0x0ff, 0x180, 0x800, 0xfff] {
        assert_eq!(rig.write(at, &[7]), (vec![], false), "{at:#x}");
    }
    // The same bytes, and others in the same two lines.
    for at in [0x13e, 0x141, 0x100, 0x17f] {
        assert_eq!(rig.write(at, &[0]), (vec![], true), "{at:#x}");
    }
    assert_eq!(rig.write(0x0fd, &[7; 4]), (vec![], true), "from beside into a line");
    assert_eq!(rig.write(0x13d, &[7; 2]), (vec![1], true));
    assert!(!rig.has(1) && !rig.cache.has_page(0));
}

#[test]
fn one_changed_byte_drops_its_blocks_and_no_others() {
    let mut rig = Rig::new();
    rig.insert(1, 0x100, 16);
    rig.insert(2, 0x108, 16);
    rig.insert(3, 0x800, 16);
    assert_eq!(rig.write(0x102, &[1]), (vec![1], true));
    assert!(rig.has(2) && rig.has(3));
    assert_eq!(rig.write(0x10f, &[1]), (vec![2], true));
    assert!(rig.has(3));
    assert_eq!(rig.write(0x100, &[2]), (vec![], false), "no block is left there");
    rig.insert(4, 0x100, 16);
    assert_eq!(rig.write(0x100, &[3]), (vec![4], true), "one is again");
}

#[test]
fn a_block_over_a_pages_end_is_on_both() {
    let mut rig = Rig::new();
    rig.insert(1, PAGE_BYTES - 2, 5);
    assert_eq!(rig.write(PAGE_BYTES + 0x40, &[1]), (vec![], false));
    assert_eq!(rig.write(PAGE_BYTES + 2, &[1]), (vec![1], true));
    rig.insert(2, PAGE_BYTES - 2, 5);
    assert_eq!(rig.write(PAGE_BYTES - 1, &[1]), (vec![2], true));
}

#[test]
fn many_writes_beside_code_drop_it_and_twice_as_many_the_next_time() {
    let mut rig = Rig::new();
    for times in [SPARED_MAX, 2 * SPARED_MAX] {
        rig.insert(1, 0x100, 16);
        rig.insert(2, 0x200, 16);
        for n in 1..times {
            assert_eq!(rig.write(0x800, &[1]).0, [], "write {n} of {times}");
        }
        assert_eq!(rig.write(0x800, &[1]).0, [1, 2]);
        assert!(!rig.cache.has_page(0));
        assert_eq!(rig.write(0x800, &[1]), (vec![], false), "nothing is there");
    }
    // What is written over is code that is made anew.
    rig.insert(3, 0x100, 16);
    assert_eq!(rig.write(0x100, &[9]).0, [3]);
    rig.insert(4, 0x100, 16);
    assert!((0..SPARED_MAX).any(|_| rig.write(0x800, &[1]).0 == [4]));
}

#[test]
fn an_emptied_cache_knows_no_pages() {
    let mut rig = Rig::new();
    rig.insert(1, PAGE_BYTES - 2, 5);
    assert!(rig.cache.has_page(0) && rig.cache.has_page(1));
    rig.cache.clear();
    assert!(!rig.cache.has_page(0) && !rig.cache.has_page(1));
    assert_eq!(rig.write(PAGE_BYTES, &[1]), (vec![], false));
}
