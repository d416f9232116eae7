//! Addresses and selectors of the harness guest, from `harness/layout.inc`.
//!
//! Problem: the guest, the cases and the oracles must agree on where things are. Scheme: one file of
//! `NAME equ NUMBER` lines, included by NASM and parsed here. Invariant: names are upper case. Read-only
//! after first use.

use std::collections::BTreeMap;
use std::sync::OnceLock;

const TEXT: &str = include_str!("harness/layout.inc");

/// All symbols of `layout.inc`.
pub fn symbols() -> &'static BTreeMap<&'static str, u64> {
    static SYMBOLS: OnceLock<BTreeMap<&'static str, u64>> = OnceLock::new();
    SYMBOLS.get_or_init(|| {
        TEXT.lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let name = words.next()?;
                (words.next()? == "equ").then_some(())?;
                let digits = words.next()?.strip_prefix("0x")?;
                Some((name, u64::from_str_radix(digits, 16).ok()?))
            })
            .collect()
    })
}

/// The value of one symbol.
///
/// # Panics
/// When `layout.inc` has no such symbol: a mistake in this crate, not in a case.
#[must_use]
pub fn symbol(name: &str) -> u64 {
    *symbols().get(name).unwrap_or_else(|| panic!("layout.inc lacks {name}"))
}

/// Regions by which blessed addresses are named, with their lengths.
pub fn named_regions() -> impl Iterator<Item = (&'static str, u64, u64)> {
    const REGIONS: [(&str, u64); 17] = [
        ("CODE", 0x2000),
        ("RWX", 0x1001),
        ("DATA", 0x2000),
        ("ABSENT", 0x1000),
        ("RO", 0x1001),
        ("SUP", 0x1001),
        ("RSVD", 0x1001),
        ("STACK", 0x2001),
        ("GDT", 0x1000),
        ("LDT", 0x1000),
        ("IDT", 0x1000),
        ("TSS", 0x3000),
        ("TSS2", 0x1000),
        ("TSS3", 0x1000),
        ("KSTACK", 0x4001),
        ("PT", 0x1000),
        ("SETUP", 0x2000),
    ];
    REGIONS.iter().map(|&(name, len)| (name, symbol(name), len))
}
