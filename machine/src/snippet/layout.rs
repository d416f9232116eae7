//! Where a snippet's code and data lie, in every engine and on the host.
//!
//! Problem: all who run a snippet must have the same memory at the same addresses, a host process included,
//! and a failing snippet must become a conformance case without change. Scheme: the addresses,
//! descriptors and selectors of the conformance suite's harness, which are Linux's where a process
//! sees them; `testsuites` checks that the two agree. Memory is two pieces, a high one about 16 MiB for 32-
//! and 64-bit code and a low one of four 64 KiB segments for 16-bit code; only one of them is mapped.
//! Invariant: nothing here changes while a program runs. Any thread.
//! Source: Linux `arch/x86/include/asm/segment.h`; modify_ldt(2).

use super::Bits;

/// Code, read-only: two pages, then an absent one.
pub const CODE: u64 = 0x100_0000;
/// Code that may be written: one page, then an absent one.
pub const RWX: u64 = 0x100_4000;
/// Two pages, not executable, absent pages on both sides.
pub const DATA: u64 = 0x101_0000;
pub const ABSENT: u64 = 0x101_2000;
/// One read-only page, then an absent one.
pub const RO: u64 = 0x101_4000;
/// Two pages, not executable, absent pages on both sides.
pub const STACK: u64 = 0x102_0000;
pub const STACK_MID: u64 = 0x102_1000;
pub const PAGE: u64 = 4096;

/// The 16-bit segments.
pub const CODE16: u64 = 0x1_0000;
pub const DATA16: u64 = 0x2_0000;
pub const EXTRA16: u64 = 0x3_0000;
pub const STACK16: u64 = 0x4_0000;
pub const STACK16_SP: u64 = 0x8000;

/// The high piece of memory and its length.
pub const HIGH_START: u64 = CODE;
pub const HIGH_LEN: usize = 0x2_2000;
/// The low one.
pub const LOW_START: u64 = CODE16;
pub const LOW_LEN: usize = 0x4_0000;

/// A run of pages with the same rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    pub start: u64,
    pub len: u64,
    pub write: bool,
    pub execute: bool,
}

/// What is mapped for 32- and 64-bit code; all of it user memory.
pub const HIGH_AREAS: [Area; 5] = [
    Area { start: CODE, len: 2 * PAGE, write: false, execute: true },
    Area { start: RWX, len: PAGE, write: true, execute: true },
    Area { start: DATA, len: 2 * PAGE, write: true, execute: false },
    Area { start: RO, len: PAGE, write: false, execute: false },
    Area { start: STACK, len: 2 * PAGE, write: true, execute: false },
];
/// What is mapped for 16-bit code.
pub const LOW_AREAS: [Area; 1] =
    [Area { start: LOW_START, len: LOW_LEN as u64, write: true, execute: true }];

/// What is mapped for code of that size. Only this is looked through for changes.
#[must_use]
pub fn areas(bits: Bits) -> &'static [Area] {
    if bits == Bits::B16 { &LOW_AREAS } else { &HIGH_AREAS }
}

/// Selectors of Linux's GDT.
pub const KCODE32: u16 = 0x08;
pub const KCODE64: u16 = 0x10;
pub const KDATA: u16 = 0x18;
pub const UCODE32: u16 = 0x23;
pub const UDATA: u16 = 0x2b;
pub const UCODE64: u16 = 0x33;
pub const TSS_SEL: u16 = 0x40;
pub const LDT_SEL: u16 = 0x50;
/// Past the limit of every table.
pub const BEYOND_SEL: u16 = 0x1000;

/// `struct user_desc` of modify_ldt(2).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UserDesc {
    pub entry_number: u32,
    pub base: u32,
    pub limit: u32,
    /// Bits: 32-bit 0, contents 1-2, read or execute only 3, limit in pages 4, not present 5.
    pub flags: u32,
}

const BIG: u32 = 1;
const EXPAND_DOWN: u32 = 1 << 1;
const CODE_SEGMENT: u32 = 2 << 1;
const CONFORMING: u32 = 3 << 1;
const ONLY: u32 = 1 << 3;
const PAGES: u32 = 1 << 4;
const NOT_PRESENT: u32 = 1 << 5;
const FLAT: u32 = BIG | PAGES;

/// The LDT: name, selector, base, limit, flags. All of DPL 3.
#[rustfmt::skip]
pub const LOCAL: [(&str, u16, u64, u32, u32); 15] = [
    ("LDT_DATA_SEL",     0x0f, 0,       0xf_ffff, FLAT),
    ("LDT_CODE_SEL",     0x17, 0,       0xf_ffff, FLAT | CODE_SEGMENT),
    ("SMALL_SEL",        0x1f, DATA,    0xfff,    BIG),
    ("EXPDOWN_SEL",      0x27, DATA,    0xfff,    BIG | EXPAND_DOWN),
    ("RODATA_SEL",       0x2f, 0,       0xf_ffff, FLAT | ONLY),
    ("ABSENT_SEL",       0x37, 0,       0xf_ffff, FLAT | NOT_PRESENT),
    ("XCODE_SEL",        0x3f, 0,       0xf_ffff, FLAT | CODE_SEGMENT | ONLY),
    ("UCONFORM_SEL",     0x47, 0,       0xf_ffff, FLAT | CONFORMING),
    ("UCODE16_SEL",      0x4f, CODE16,  0xffff,   CODE_SEGMENT),
    ("UDATA16_SEL",      0x57, DATA16,  0xffff,   0),
    ("UEXTRA16_SEL",     0x5f, EXTRA16, 0xffff,   0),
    ("USTACK16_SEL",     0x67, STACK16, 0xffff,   0),
    ("UABSENT_CODE_SEL", 0x6f, 0,       0xf_ffff, FLAT | CODE_SEGMENT | NOT_PRESENT),
    ("EXPDOWN16_SEL",    0x77, DATA,    0xfff,    EXPAND_DOWN),
    ("SMALLCODE_SEL",    0x7f, CODE,    0xff,     BIG | CODE_SEGMENT),
];
pub const UCODE16_SEL: u16 = 0x4f;
pub const UDATA16_SEL: u16 = 0x57;
pub const UEXTRA16_SEL: u16 = 0x5f;
pub const USTACK16_SEL: u16 = 0x67;

/// The LDT as modify_ldt(2) takes it.
#[must_use]
pub fn local_descriptors() -> [UserDesc; LOCAL.len()] {
    LOCAL.map(|(_, selector, base, limit, flags)| UserDesc {
        entry_number: u32::from(selector) >> 3,
        base: base as u32,
        limit,
        flags,
    })
}

/// A descriptor of the LDT as the kernel makes it: DPL 3, accessed. It makes no conforming code segment that is
/// present.
#[must_use]
pub fn descriptor(desc: &UserDesc) -> u64 {
    if desc.flags & (CONFORMING | NOT_PRESENT) == CONFORMING {
        return 0;
    }
    let bit = |mask: u32| u64::from(desc.flags & mask != 0);
    let kind = u64::from(desc.flags >> 1 & 3) << 2 | (bit(ONLY) ^ 1) << 1 | 1;
    let access = kind | 1 << 4 | 3 << 5 | (bit(NOT_PRESENT) ^ 1) << 7;
    let high = bit(BIG) << 6 | bit(PAGES) << 7 | u64::from(desc.limit) >> 16 & 0xf;
    u64::from(desc.limit) & 0xffff
        | (u64::from(desc.base) & 0xff_ffff) << 16
        | access << 40
        | high << 48
        | (u64::from(desc.base) >> 24) << 56
}

#[cfg(test)]
mod tests {
    use super::*;
    use xenolith_cpu::state::Segment;

    #[test]
    fn descriptors_are_what_a_processor_reads() {
        let all = local_descriptors();
        let read = |n: usize| Segment::from_descriptor(0, descriptor(&all[n]));
        let flat = read(0);
        assert_eq!((flat.base, flat.limit, flat.access), (0, u32::MAX, 0xc0f3));
        let small = read(2);
        assert_eq!((small.base, small.limit, small.access), (DATA, 0xfff, 0x40f3));
        assert!(read(3).is_expand_down() && !read(4).is_writable() && !read(5).is_present());
        assert!(read(6).is_code() && !read(6).is_readable() && !read(7).is_present());
        assert_eq!((read(8).base, read(8).access), (CODE16, 0xfb));
    }
}
