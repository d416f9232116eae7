//! Walks against the oracle, and cases by hand for what random tables rarely hit.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::oracle::Tables;

/// Pages that hold tables; entries point among them so that paths are deep, shared and cyclic.
const TABLE_PAGES: u64 = 5;
const TABLES: u64 = 0x10_0000;
/// Slots in use in each table, for 512 and for 1024 entries.
const SLOTS: [u64; 4] = [0, 1, 300, 511];

#[derive(Clone, Debug)]
struct Scene {
    mode: Mode,
    control: u64,
    physical_bits: u8,
    /// For each table page and slot.
    entries: Vec<u64>,
    pdptes: [u64; 4],
    accesses: Vec<(u64, Access, Privilege)>,
}

fn any_mode() -> impl Strategy<Value = Mode> {
    prop_oneof![
        1 => Just(Mode::Off),
        6 => Just(Mode::Bits32),
        6 => Just(Mode::Pae),
        8 => Just(Mode::FourLevel),
    ]
}

fn any_access() -> impl Strategy<Value = Access> {
    prop_oneof![Just(Access::Read), Just(Access::Write), Just(Access::Fetch)]
}

fn any_privilege() -> impl Strategy<Value = Privilege> {
    prop_oneof![Just(Privilege::User), Just(Privilege::Supervisor), Just(Privilege::SupervisorAc)]
}

/// An entry that is mostly sound: it points to a table, to RAM, or now and then to a device.
fn any_entry() -> impl Strategy<Value = u64> {
    let address = prop_oneof![
        12 => (0..TABLE_PAGES).prop_map(|page| TABLES + page * 0x1000),
        2 => (0_u64..32).prop_map(|n| n << 21),
        1 => (0_u64..4).prop_map(|n| n << 30),
        1 => Just(0xfee0_0000),
        1 => any::<u64>().prop_map(|a| a & 0xf_ffff_ffff_f000),
    ];
    // R/W, U/S, PWT, PCD, A, D, G and bits for software.
    let flags = any::<u64>().prop_map(|flags| flags & 0xf7e);
    let generous = prop_oneof![2 => Just(6_u64), 1 => Just(0)];
    let large = prop_oneof![3 => Just(0_u64), 1 => Just(1 << 7)];
    let xd = prop_oneof![9 => Just(0_u64), 1 => Just(1 << 63)];
    let odd_bit = prop_oneof![20 => Just(0_u64), 1 => (12_u32..63).prop_map(|bit| 1 << bit)];
    let present = prop_oneof![14 => Just(1_u64), 1 => Just(0)];
    (address, flags, generous, large, xd, odd_bit, present).prop_map(
        |(address, flags, generous, large, xd, odd_bit, present)| {
            // A large page of any size, aligned more often than not.
            let aligned =
                if large != 0 && generous != 0 { address & !0x3fff_e000 } else { address };
            (aligned | flags | generous | large | xd) & !1 | odd_bit | present
        },
    )
}

fn any_gva() -> impl Strategy<Value = u64> {
    let slot = || prop::sample::select(&SLOTS[..]);
    (slot(), slot(), slot(), slot(), 0_u64..0x1000, any::<bool>()).prop_map(
        |(a, b, c, d, offset, ten_bits)| {
            if ten_bits {
                // Directory and table index of 32-bit paging.
                c << 22 | d << 12 | offset
            } else {
                let gva = a << 39 | b << 30 | c << 21 | d << 12 | offset;
                (gva << 16).cast_signed().wrapping_shr(16).cast_unsigned()
            }
        },
    )
}

fn any_scene() -> impl Strategy<Value = Scene> {
    (
        any_mode(),
        any::<u64>(),
        prop::sample::select(&[32_u8, 36, 39, 40, 46, 52][..]),
        prop::collection::vec(any_entry(), TABLE_PAGES as usize * SLOTS.len()),
        prop::array::uniform4(any_entry()),
        prop::collection::vec((any_gva(), any_access(), any_privilege()), 1..24),
    )
        .prop_map(|(mode, control, physical_bits, entries, pdptes, accesses)| Scene {
            mode,
            control,
            physical_bits,
            entries,
            pdptes,
            accesses,
        })
}

/// A CPU in `mode`; `control`'s bits choose the rest.
fn cpu_in(mode: Mode, control: u64) -> CpuState {
    let mut cpu = CpuState::reset(0);
    cpu.cr0 = Cr0::PE.bits() | if control & 1 != 0 { Cr0::WP.bits() } else { 0 };
    let optional = [Cr4::SMEP, Cr4::SMAP, Cr4::PSE, Cr4::PGE];
    for (bit, flag) in (1..).zip(optional) {
        if control >> bit & 1 != 0 {
            cpu.cr4 |= flag.bits();
        }
    }
    if control >> 5 & 1 != 0 {
        cpu.efer |= Efer::NXE.bits();
    }
    if mode != Mode::Off {
        cpu.cr0 |= Cr0::PG.bits();
    }
    if matches!(mode, Mode::Pae | Mode::FourLevel) {
        cpu.cr4 |= Cr4::PAE.bits();
    }
    if mode == Mode::FourLevel {
        cpu.efer |= Efer::LME.bits() | Efer::LMA.bits();
    }
    cpu.cr3 = TABLES | (control >> 6 & 0x18);
    cpu
}

fn play(tables: &mut Tables, scene: &Scene) -> Result<(), TestCaseError> {
    tables.clear();
    let mut cpu = cpu_in(scene.mode, scene.control);
    cpu.pdpte = scene.pdptes;
    let mut entries = scene.entries.iter();
    for page in 0..TABLE_PAGES {
        for slot in SLOTS {
            let entry = *entries.next().expect("one for each slot");
            if scene.mode == Mode::Bits32 {
                // PSE-36 bits are likelier to be wrong than right at random.
                let entry = if entry >> 40 & 3 != 0 { entry & !0x3f_e000 } else { entry };
                tables.set32(TABLES + page * 0x1000 + slot * 4, entry as u32);
            } else {
                tables.set64(TABLES + page * 0x1000 + slot * 8, entry);
            }
        }
    }
    let paging = Paging::of(&cpu, scene.physical_bits, true);
    prop_assert_eq!(paging.mode, scene.mode);
    for &(gva, access, privilege) in &scene.accesses {
        let expected = tables.walk(&cpu, scene.physical_bits, gva, access, privilege);
        let found = walk(&tables.ram, &paging, Gva(gva), access, privilege);
        let what = format!("{access:?} by {privilege:?} at {gva:#x}");
        match (expected, found) {
            (Ok(expected), Ok(found)) => {
                // It has left nothing to be set.
                prop_assert_eq!(peek(&tables.ram, &paging, Gva(gva)), Some(found), "{}", what);
                let found = crate::oracle::Found {
                    gpa: found.gpa.0,
                    page_shift: found.page_shift,
                    dirty: found.dirty,
                    global: found.global,
                };
                prop_assert_eq!(found, expected, "{}", what);
            }
            (Err(code), Err(fault)) => {
                prop_assert_eq!(fault, PageFault { gva: Gva(gva), error_code: code }, "{}", what);
            }
            (expected, found) => {
                prop_assert!(false, "{}: found {:?}, expected {:?}", what, found, expected);
            }
        }
        tables
            .check()
            .map_err(|difference| TestCaseError::fail(format!("{what}: {difference}")))?;
    }
    // Neighbours, by way of what the first was found by.
    let mut ways = Ways::new(&tables.ram, paging);
    let slots = || SLOTS.iter().flat_map(|slot| [slot << 12, (slot << 12) + 0x1000]);
    for gva in scene.accesses.iter().flat_map(|(gva, ..)| slots().map(move |at| gva ^ at)) {
        let expected = peek(&tables.ram, &paging, Gva(gva));
        prop_assert_eq!(ways.peek(Gva(gva)), expected, "at {:#x} by ways", gva);
    }
    Ok(())
}

#[test]
fn random_tables_walk_as_the_oracle_says() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let tables = std::cell::RefCell::new(Tables::new());
    let result = runner.run(&any_scene(), |scene| play(&mut tables.borrow_mut(), &scene));
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// How often random scenes reach each outcome; a generator that only ever faults proves little.
#[test]
fn random_tables_reach_all_outcomes() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut tables = Tables::new();
    let mut outcomes = std::collections::BTreeMap::new();
    for _ in 0..3000 {
        let scene = any_scene().new_tree(&mut runner).expect("a scene").current();
        play(&mut tables, &scene).expect("agrees with the oracle");
        let mut cpu = cpu_in(scene.mode, scene.control);
        cpu.pdpte = scene.pdptes;
        for &(gva, access, privilege) in &scene.accesses {
            let key = match tables.walk(&cpu, scene.physical_bits, gva, access, privilege) {
                Ok(found) => u32::from(found.page_shift) | 0x100,
                Err(code) => code & 9,
            };
            *outcomes.entry((scene.mode as u8, key)).or_insert(0) += 1;
        }
    }
    let (b32, pae, long) = (Mode::Bits32 as u8, Mode::Pae as u8, Mode::FourLevel as u8);
    for mode in [b32, pae, long] {
        for key in [0, 1, 9, 0x100 + 12] {
            assert!(
                outcomes.get(&(mode, key)).is_some_and(|&n| n > 50),
                "{mode} {key}: {outcomes:?}"
            );
        }
    }
    for key in [(b32, 0x100 + 22), (pae, 0x100 + 21), (long, 0x100 + 21), (long, 0x100 + 30)] {
        assert!(outcomes.get(&key).is_some_and(|&n| n > 50), "{key:?}: {outcomes:?}");
    }
}

#[test]
fn without_gigabyte_pages_ps_in_a_pdpte_is_reserved() {
    let mut tables = Tables::new();
    tables.set64(TABLES, (TABLES + 0x1000) | 7);
    tables.set64(TABLES + 0x1000, 0x87);
    let cpu = cpu_in(Mode::FourLevel, 0);
    let at = |gigabyte_pages| {
        let paging = Paging::of(&cpu, 40, gigabyte_pages);
        walk(&tables.ram, &paging, Gva(0x1234_5678), Access::Read, Privilege::User)
    };
    assert_eq!(at(true).expect("a 1 GiB page").gpa, Gpa(0x1234_5000));
    let expected = page_fault::PRESENT | page_fault::RESERVED | page_fault::USER;
    assert_eq!(at(false).expect_err("PS is reserved").error_code, expected);
}

#[test]
fn amd_reserves_the_global_bit_above_page_directories() {
    let expected = page_fault::PRESENT | page_fault::RESERVED | page_fault::USER;
    // In the PML4 and in a PDPT entry that refers to a page directory, not below.
    for (level, reserved) in [(0, true), (1, true), (2, false), (3, false)] {
        let mut tables = Tables::new();
        for n in 0..4 {
            let global = if n == level { entry::GLOBAL } else { 0 };
            tables.set64(TABLES + 0x1000 * n, (TABLES + 0x1000 * (n + 1)) | 7 | global);
        }
        let intel = Paging::of(&cpu_in(Mode::FourLevel, 0), 40, true);
        let amd = Paging { reserves_global: true, ..intel };
        let read = |paging| walk(&tables.ram, &paging, Gva(0), Access::Read, Privilege::User);
        assert!(read(intel).is_ok(), "{level}");
        assert_eq!(read(amd).err().map(|fault| fault.error_code), reserved.then_some(expected));
    }
    // A 1 GiB page may be global.
    let mut tables = Tables::new();
    tables.set64(TABLES, (TABLES + 0x1000) | 7);
    tables.set64(TABLES + 0x1000, 0x87 | entry::GLOBAL);
    let amd = Paging { reserves_global: true, ..Paging::of(&cpu_in(Mode::FourLevel, 0), 40, true) };
    assert!(walk(&tables.ram, &amd, Gva(0), Access::Read, Privilege::User).is_ok());
}

#[test]
fn tables_outside_ram_read_as_ones() {
    let ram = GuestRam::new(64 << 20).expect("64 MiB");
    for mode in [Mode::FourLevel, Mode::Pae] {
        let mut cpu = cpu_in(mode, 0);
        cpu.cr3 = 0xfee0_0000;
        cpu.pdpte = [0xfee0_0001; 4];
        let paging = Paging::of(&cpu, 40, true);
        let fault = walk(&ram, &paging, Gva(0), Access::Read, Privilege::Supervisor);
        assert_eq!(fault.expect_err("ones have reserved bits").error_code, 9);
    }
    // 32-bit entries have no reserved bits without PSE: ones lead to the last page.
    let mut cpu = cpu_in(Mode::Bits32, 0);
    cpu.cr3 = 0xfee0_0000;
    let paging = Paging::of(&cpu, 40, true);
    let found = walk(&ram, &paging, Gva(0x5000), Access::Write, Privilege::User).expect("mapped");
    assert_eq!(found.gpa, Gpa(0xffff_f000));
}

#[test]
fn setting_accessed_bits_in_a_code_page_changes_its_version() {
    let mut tables = Tables::new();
    tables.set32(TABLES, (TABLES as u32 + 0x1000) | 7);
    tables.set32(TABLES + 0x1000, 0x5007);
    let version = tables.ram.code().watch((TABLES + 0x1000) >> 12);
    let paging = Paging::of(&cpu_in(Mode::Bits32, 0), 40, true);
    let read = || walk(&tables.ram, &paging, Gva(0), Access::Read, Privilege::User);
    assert!(read().is_ok());
    let after = tables.ram.code().version((TABLES + 0x1000) >> 12);
    assert_ne!(after, version);
    assert!(read().is_ok());
    assert_eq!(tables.ram.code().version((TABLES + 0x1000) >> 12), after, "nothing was set");
}

/// While one thread flips a page between two addresses, walks must set accessed and dirty bits only in
/// the entry that they have judged.
#[test]
fn a_walk_never_marks_an_entry_that_it_has_not_judged() {
    use std::sync::atomic::AtomicBool;
    let mut tables = Tables::new();
    tables.set64(TABLES, (TABLES + 0x1000) | 0x27);
    tables.set64(TABLES + 0x1000, (TABLES + 0x2000) | 0x27);
    tables.set64(TABLES + 0x2000, (TABLES + 0x3000) | 0x27);
    let pte_gpa = TABLES + 0x3000;
    let ram = &tables.ram;
    let host = ram.host_ptr(Gpa(pte_gpa), 8).expect("RAM");
    // SAFETY: eight aligned bytes of RAM that live as long as `tables`.
    let pte = unsafe { AtomicU64::from_ptr(host.cast()) };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let paging = Paging::of(&cpu_in(Mode::FourLevel, 1), 40, true);
            while !done.load(Ordering::Relaxed) {
                // A write to the read-only page faults; one to the other sets its dirty bit.
                let _ = walk(ram, &paging, Gva(0), Access::Write, Privilege::Supervisor);
            }
        });
        for n in 0..200_000_u64 {
            let read_only = n & 1 == 0;
            let old = pte.swap(if read_only { 0x5001 } else { 0x6003 }, Ordering::AcqRel);
            assert!(old & 2 != 0 || old & 0x60 == 0, "read-only entry marked: {old:#x}");
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn pdptes_load_unless_reserved_bits_are_set() {
    let tables = Tables::new();
    let memory = tables.ram.memory();
    let load = |values: [u64; 4], bits| {
        for (n, value) in (0..).zip(values) {
            memory.write_obj(value, GuestAddress(0x2_0020 + 8 * n)).expect("RAM");
        }
        load_pdptes(&tables.ram, 0x2_0020 | 0x18, bits)
    };
    let good = [0x1001, 0, 0x7_ffff_f019 | 0xe00, 0xffff_ffff_ffff_fffe];
    assert_eq!(load(good, 40), Ok(good), "absent ones are not checked");
    for bit in [1, 2, 5, 6, 7, 8, 40, 51, 52, 62, 63] {
        assert_eq!(load([0, 0, 0, 1 | 1 << bit], 40), Err(Reserved), "bit {bit}");
    }
    assert!(load([1 | 1 << 40, 0, 0, 0], 41).is_ok());
    assert_eq!(load_pdptes(&tables.ram, 0xfee0_0000, 40), Err(Reserved));
}
