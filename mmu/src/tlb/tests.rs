//! The TLB against fresh walks by the oracle, under random edits followed by the invalidation that the
//! SDM asks for, and counts of walks where the TLB must keep what it has.

use proptest::prelude::*;
use xenolith_cpu::state::{Cr0, Efer};

use super::*;
use crate::oracle::Tables;

const PHYSICAL_BITS: u8 = 40;
/// Two roots share the upper half; below each: PDPT, PD, PT with two slots in use each.
const ROOTS: [u64; 2] = [0x10_0000, 0x10_1000];
const FIRST_TABLE: u64 = 0x20_0000;
/// The two slots in use in PML4, PDPT, PD and PT.
const SLOTS: [[u64; 2]; 4] = [[0, 256], [0, 3], [0, 5], [1, 8]];
/// 4 KiB fragments of large pages that are accessed: those in use by small pages and others.
const FRAGMENTS: u64 = 3;

/// Where a path of four bits of slot choices goes, in a root's tables.
#[derive(Clone, Copy, Debug)]
struct Path(usize);

impl Path {
    fn choice(self, level: usize) -> usize {
        self.0 >> level & 1
    }
    fn shared(self) -> bool {
        self.choice(0) == 1
    }
    /// Address of the entry at `level` (0 is the PML4) for a root.
    fn entry_gpa(self, root: usize, level: usize) -> u64 {
        self.table_gpa(root, level) + 8 * SLOTS[level][self.choice(level)]
    }
    fn table_gpa(self, root: usize, level: usize) -> u64 {
        if level == 0 {
            return ROOTS[root];
        }
        let tree = if self.shared() { 2 } else { root };
        let above = (self.0 & ((1 << level) - 1)) >> 1;
        FIRST_TABLE + ((tree * 4 + level) * 4 + above) as u64 * 0x1000
    }
    fn gva(self) -> u64 {
        let mut gva = 0;
        for level in 0..4 {
            gva |= SLOTS[level][self.choice(level)] << (39 - 9 * level);
        }
        if self.shared() { gva | 0xffff << 48 } else { gva }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Access {
        path: usize,
        fragment: u64,
        access: Access,
        privilege: Privilege,
    },
    /// Changes the leaf of a path, be it a large page or a PTE, then invalidates it properly.
    Leaf {
        path: usize,
        flags: u64,
        page: u64,
        fragment: u64,
    },
    /// Makes a level 1 or 2 entry refer to its table or map a page, then flushes all.
    Size {
        path: usize,
        level: usize,
        flags: u64,
        page: u64,
    },
    SwitchTo {
        root: usize,
        keep: bool,
    },
    FlushContext {
        pcid: Option<u16>,
    },
    FlushAll,
    Control {
        bits: u64,
    },
}

fn any_op() -> impl Strategy<Value = Op> {
    let access = prop_oneof![
        3 => Just(Access::Read),
        3 => Just(Access::Write),
        1 => Just(Access::Fetch),
    ];
    let privilege = prop_oneof![
        Just(Privilege::User),
        Just(Privilege::Supervisor),
        Just(Privilege::SupervisorAc),
    ];
    let path = || 0_usize..16;
    let flags = || any::<u64>();
    prop_oneof![
        12 => (path(), 0..FRAGMENTS, access, privilege).prop_map(
            |(path, fragment, access, privilege)| Op::Access { path, fragment, access, privilege }
        ),
        4 => (path(), flags(), 0_u64..6, 0..FRAGMENTS)
            .prop_map(|(path, flags, page, fragment)| Op::Leaf { path, flags, page, fragment }),
        1 => (path(), 1_usize..3, flags(), 0_u64..6).prop_map(
            |(path, level, flags, page)| Op::Size { path, level, flags, page }
        ),
        2 => (0_usize..2, any::<bool>()).prop_map(|(root, keep)| Op::SwitchTo { root, keep }),
        1 => prop::option::of(0_u16..4).prop_map(|pcid| Op::FlushContext { pcid }),
        1 => Just(Op::FlushAll),
        1 => any::<u64>().prop_map(|bits| Op::Control { bits }),
    ]
}

struct Rig {
    tables: Tables,
    mmu: SoftMmu,
    cpu: CpuState,
    root: usize,
}

impl Rig {
    fn new() -> Self {
        let tables = Tables::new();
        let mmu = SoftMmu::new(Arc::clone(&tables.ram), PHYSICAL_BITS);
        let mut rig = Self { tables, mmu, cpu: CpuState::reset(0), root: 0 };
        rig.start();
        rig
    }

    fn start(&mut self) {
        self.tables.clear();
        self.cpu = CpuState::reset(0);
        self.cpu.cr0 = Cr0::PE.bits() | Cr0::PG.bits();
        self.cpu.efer = Efer::LME.bits() | Efer::LMA.bits() | Efer::NXE.bits();
        self.cpu.cr4 = Cr4::PAE.bits() | Cr4::PGE.bits() | Cr4::PCIDE.bits();
        self.cpu.cr3 = ROOTS[0];
        self.root = 0;
        for root in 0..2 {
            for path in (0..16).map(Path) {
                for level in 0..3 {
                    let next = path.table_gpa(root, level + 1);
                    // Accessed already in the PML4, as a global page of one root serves the other.
                    let accessed = if level == 0 { 0x20 } else { 0 };
                    self.tables.set64(path.entry_gpa(root, level), next | 7 | accessed);
                }
                self.tables.set64(path.entry_gpa(root, 3), 0x40_0000 | 7);
            }
        }
        self.mmu.flush_all();
        self.mmu.set_context(&self.cpu, false);
    }

    /// Turns half of the paths into large pages, so that random edits find some.
    fn enlarge_some_pages(&mut self) {
        for (root, path) in
            [0, 1].into_iter().flat_map(|root| (0..16).map(move |n| (root, Path(n))))
        {
            let level = if path.choice(1) == 1 { 1 } else { 2 };
            if path.choice(level) == 1 {
                let entry = Self::leaf_entry(path, level, 6 | 1 << 20, 0);
                self.tables.set64(path.entry_gpa(root, level), entry);
            }
        }
    }

    fn is_leaf(&self, path: Path, level: usize) -> bool {
        level == 3 || self.tables.get64(path.entry_gpa(self.root, level)) & 0x80 != 0
    }

    fn leaf_entry(path: Path, level: usize, flags: u64, page: u64) -> u64 {
        // Up to page 3 RAM, then the PCI hole; pages above the small ones are aligned to 1 GiB.
        let address = match level {
            1 => (page & 3) << 30,
            2 => page << 21,
            _ => 0x40_0000 + (page << 12) + if page == 5 { 0xfe00_0000 } else { 0 },
        };
        let present = u64::from(flags >> 20 & 7 != 0);
        let large = if level < 3 { 1 << 7 } else { 0 };
        // Global pages must be the same in all address spaces.
        let global = if path.shared() { flags & 1 << 8 } else { 0 };
        address | (flags & (0x66 | 1 << 63)) | global | large | present
    }

    fn translate(&mut self, gva: u64, access: Access, privilege: Privilege) -> Result<Place, u32> {
        self.mmu.translate(&self.cpu, Gva(gva), access, privilege).map_err(|fault| fault.error_code)
    }

    fn apply(&mut self, op: &Op) -> Result<(), TestCaseError> {
        match *op {
            Op::Access { path, fragment, access, privilege } => {
                let gva = Path(path).gva() ^ (fragment << 13) | 0x123;
                let expected = self.tables.walk(&self.cpu, PHYSICAL_BITS, gva, access, privilege);
                let found = self.translate(gva, access, privilege).map(|place| match place {
                    Place::Ram { hva, gpa } => {
                        let expected = self.mmu.ram(gpa, 1).expect("RAM by its address too");
                        assert_eq!(hva, expected);
                        gpa.0
                    }
                    Place::Device { gpa } => {
                        assert_eq!(self.mmu.ram(gpa, 1), None);
                        gpa.0
                    }
                });
                prop_assert_eq!(found, expected.map(|found| found.gpa | 0x123), "{:?}", op);
            }
            Op::Leaf { path, flags, page, fragment } => {
                let path = Path(path);
                let level = (1..4).find(|&level| self.is_leaf(path, level)).expect("a PTE at last");
                let entry = Self::leaf_entry(path, level, flags, page);
                self.tables.set64(path.entry_gpa(self.root, level), entry);
                // Any address in the page will do.
                let inside = fragment << if level < 3 { 13 } else { 3 };
                let gva = Gva(path.gva() ^ inside);
                self.mmu.flush_page(gva);
                if path.shared() {
                    self.mmu.flush_page_in(1 - self.root as u16, gva);
                }
            }
            Op::Size { path, level, flags, page } => {
                let path = Path(path);
                let table = flags >> 24 & 1 != 0;
                let entry = if table {
                    path.table_gpa(self.root, level + 1) | 1 | flags & 0x26
                } else {
                    Self::leaf_entry(path, level, flags, page)
                };
                self.tables.set64(path.entry_gpa(self.root, level), entry);
                self.mmu.flush_all();
            }
            Op::SwitchTo { root, keep } => {
                switch(self, root, keep);
            }
            Op::FlushContext { pcid } => self.mmu.flush_context(pcid),
            Op::FlushAll => self.mmu.flush_all(),
            Op::Control { bits } => {
                self.cpu.cr0 = self.cpu.cr0 & !Cr0::WP.bits() | bits & Cr0::WP.bits();
                let cr4 = Cr4::SMEP.bits() | Cr4::SMAP.bits();
                self.cpu.cr4 = self.cpu.cr4 & !cr4 | bits & cr4;
                self.mmu.flush_all();
            }
        }
        self.tables
            .check()
            .map_err(|difference| TestCaseError::fail(format!("{op:?}: {difference}")))
    }
}

#[test]
fn the_tlb_answers_as_a_fresh_walk_does() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let rig = std::cell::RefCell::new(Rig::new());
    let ops = prop::collection::vec(any_op(), 1..250);
    let result = runner.run(&ops, |ops| {
        let mut rig = rig.borrow_mut();
        rig.start();
        rig.enlarge_some_pages();
        ops.iter().try_for_each(|op| rig.apply(op))
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    assert!(rig.borrow().mmu.walks() > 0);
}

/// Reads and says whether that took a walk.
fn walked(rig: &mut Rig, gva: u64) -> bool {
    let before = rig.mmu.walks();
    rig.translate(gva, Access::Read, Privilege::Supervisor).expect("mapped");
    rig.mmu.walks() != before
}

/// Loads CR3 with a root and the PCID of the same number.
fn switch(rig: &mut Rig, root: usize, keep: bool) {
    rig.root = root;
    rig.cpu.cr3 = ROOTS[root] | root as u64;
    rig.mmu.set_context(&rig.cpu, keep);
}

#[test]
fn translations_are_kept_until_flushed() {
    let mut rig = Rig::new();
    let (own, global) = (Path(0).gva(), Path(9).gva());
    rig.tables.set64(Path(9).entry_gpa(0, 3), 0x40_0107);
    assert!(walked(&mut rig, own) && walked(&mut rig, global));
    assert!(!walked(&mut rig, own) && !walked(&mut rig, global));

    switch(&mut rig, 1, true);
    assert!(walked(&mut rig, own), "another PCID's translation was used");
    assert!(!walked(&mut rig, global), "a global translation was lost");
    switch(&mut rig, 0, true);
    // Both use one slot of the table, so PCID 0's has been replaced.
    assert!(walked(&mut rig, own));
    let elsewhere = Path(2).gva();
    assert!(walked(&mut rig, elsewhere));
    switch(&mut rig, 1, true);
    switch(&mut rig, 0, true);
    assert!(!walked(&mut rig, elsewhere), "this PCID's translation was lost");
    switch(&mut rig, 0, false);
    assert!(walked(&mut rig, elsewhere) && !walked(&mut rig, global));

    rig.mmu.flush_context(Some(1));
    assert!(!walked(&mut rig, elsewhere));
    rig.mmu.flush_context(Some(0));
    assert!(walked(&mut rig, elsewhere) && !walked(&mut rig, global));
    rig.mmu.flush_context(None);
    assert!(walked(&mut rig, elsewhere) && !walked(&mut rig, global));
    rig.mmu.flush_all();
    assert!(walked(&mut rig, elsewhere) && walked(&mut rig, global));

    rig.mmu.flush_page_in(0, Gva(global));
    assert!(!walked(&mut rig, global), "INVPCID of an address keeps global translations");
    rig.mmu.flush_page_in(1, Gva(elsewhere));
    assert!(!walked(&mut rig, elsewhere), "of another PCID");
    rig.mmu.flush_page_in(0, Gva(elsewhere));
    assert!(walked(&mut rig, elsewhere));
    rig.mmu.flush_page(Gva(global));
    assert!(walked(&mut rig, global));
}

#[test]
fn all_pcids_are_flushed_at_once() {
    let mut rig = Rig::new();
    let path = Path(2).gva();
    assert!(walked(&mut rig, path));
    switch(&mut rig, 1, true);
    rig.mmu.flush_context(None);
    switch(&mut rig, 0, true);
    assert!(walked(&mut rig, path));
}

#[test]
fn invlpg_drops_all_fragments_of_large_pages_only() {
    for (level, size) in [(1, 1_u64 << 30), (2, 1 << 21)] {
        let mut rig = Rig::new();
        let entry = Rig::leaf_entry(Path(0), level, 7 | 1 << 20, 0);
        rig.tables.set64(Path(0).entry_gpa(0, level), entry);
        rig.mmu.flush_all();
        let other = Path(9).gva();
        let fragments = [0, 0x1000, size / 2 + 0x5000, size - 0x1000];
        for gva in fragments {
            assert!(walked(&mut rig, gva), "{gva:#x}");
        }
        assert!(walked(&mut rig, other));
        rig.mmu.flush_page(Gva(size - 1));
        for gva in fragments {
            assert!(walked(&mut rig, gva), "{gva:#x} survived");
        }
        assert!(!walked(&mut rig, other));
        // Fragments of another PCID go by INVPCID.
        switch(&mut rig, 1, true);
        rig.mmu.flush_page_in(0, Gva(0x20_0000 % size));
        switch(&mut rig, 0, true);
        assert!(walked(&mut rig, 0x1000));
    }
}

#[test]
fn four_mib_pages_fall_as_a_whole() {
    let mut rig = Rig::new();
    rig.cpu.efer = 0;
    rig.cpu.cr4 = Cr4::PSE.bits();
    rig.cpu.cr3 = 0x30_0000;
    rig.tables.set32(0x30_0000, 0x87);
    rig.mmu.flush_all();
    assert!(walked(&mut rig, 0x1000) && walked(&mut rig, 0x30_1000));
    rig.mmu.flush_page(Gva(0x20_0000));
    assert!(walked(&mut rig, 0x1000) && walked(&mut rig, 0x30_1000));
    assert!(!walked(&mut rig, 0x1000));
}

#[test]
fn a_write_after_a_read_sets_the_dirty_bit() {
    let mut rig = Rig::new();
    let (gva, pte) = (Path(0).gva(), Path(0).entry_gpa(0, 3));
    let flags = |rig: &Rig| {
        let host = rig.mmu.ram(Gpa(pte), 8).expect("RAM");
        // SAFETY: eight aligned bytes of RAM, and no other thread.
        unsafe { host.cast::<u64>().read() & 0x60 }
    };
    assert_eq!(flags(&rig), 0);
    rig.translate(gva, Access::Read, Privilege::User).expect("mapped");
    assert_eq!(flags(&rig), 0x20);
    rig.translate(gva, Access::Write, Privilege::User).expect("writable");
    assert_eq!(flags(&rig), 0x60);
    let walks = rig.mmu.walks();
    rig.translate(gva, Access::Write, Privilege::Supervisor).expect("writable");
    rig.translate(gva, Access::Fetch, Privilege::User).expect("executable");
    assert_eq!(rig.mmu.walks(), walks, "all rights come with one walk");
}

#[test]
fn without_paging_addresses_are_physical() {
    let mut rig = Rig::new();
    rig.cpu = CpuState::reset(0);
    rig.mmu.flush_all();
    for (gva, ram) in [(0x1234, true), (0xfee0_0010, false)] {
        for access in [Access::Read, Access::Write, Access::Fetch] {
            let place = rig.translate(gva, access, Privilege::User).expect("no paging, no fault");
            match place {
                Place::Ram { gpa, .. } => assert!(ram && gpa.0 == gva),
                Place::Device { gpa } => assert!(!ram && gpa.0 == gva),
            }
        }
    }
    assert_eq!(rig.mmu.walks(), 2);
}

#[test]
fn code_is_watched_through_the_trait() {
    let mut rig = Rig::new();
    let version = rig.mmu.watch_code(Gpa(0x5123));
    assert_eq!(rig.mmu.code_version(Gpa(0x5fff)), version);
    assert!(!rig.mmu.stored(Gpa(0x6000), 1));
    assert!(rig.mmu.stored(Gpa(0x5000), 1));
    assert_ne!(rig.mmu.code_version(Gpa(0x5000)), version);
    assert_ne!(rig.mmu.watch_code(Gpa(0xfee0_0000)), rig.mmu.code_version(Gpa(0xfee0_0000)));
}

#[test]
fn leaving_pcids_behind_starts_afresh() {
    let mut rig = Rig::new();
    let gva = Path(2).gva();
    switch(&mut rig, 1, true);
    assert!(walked(&mut rig, gva));
    rig.cpu.cr4 &= !Cr4::PCIDE.bits();
    rig.cpu.cr3 = ROOTS[0];
    rig.mmu.flush_all();
    assert!(walked(&mut rig, gva));
    rig.mmu.flush_page_in(0, Gva(gva));
    assert!(walked(&mut rig, gva), "PCID 0 is current without PCIDE");
}
