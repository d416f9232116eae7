//! What the chip set lets a processor see of the first MiB, and its address line 20.
//!
//! Problem: behind 0xa0000-0xfffff there are RAM, the firmware's ROM and the bus at once, and chip set
//! registers say, for reads and writes apart, which of them answers; another gate ties address line 20 to
//! zero. Scheme: a byte for each page of that range, and a mask for all addresses, looked at when
//! a translation enters a TLB. Invariants: a change here is followed by a flush of every vCPU's TLB, for
//! which its maker answers; devices' own accesses (DMA) always meet the RAM. Any thread.
//! Source: Intel 82441FX (PMC) datasheet, "PAM: Programmable Attribute Map Registers"; IBM PC AT Technical
//! Reference, "Address line 20".

use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use xenolith_cpu::PAGE_SIZE;

/// The range that is switched.
pub const SWITCHED: Range<u64> = 0xa_0000..0x10_0000;
const PAGES: usize = ((SWITCHED.end - SWITCHED.start) / PAGE_SIZE) as usize;
const A20: u64 = 1 << 20;

/// Who answers reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Ram,
    /// The firmware's ROM, whose end is also at 1 MiB.
    Rom,
    /// A device, if any.
    Bus,
}

/// What a processor meets at a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    pub read: Source,
    /// Stores go to RAM; otherwise to the bus, where a ROM or nobody takes them.
    pub write: bool,
}

impl View {
    /// Plain memory.
    pub const RAM: Self = Self { read: Source::Ram, write: true };
    /// A device's.
    pub const BUS: Self = Self { read: Source::Bus, write: false };

    const WRITE: u8 = 4;

    fn encode(self) -> u8 {
        self.read as u8 | if self.write { Self::WRITE } else { 0 }
    }

    fn decode(byte: u8) -> Self {
        let read = match byte & 3 {
            0 => Source::Ram,
            1 => Source::Rom,
            _ => Source::Bus,
        };
        Self { read, write: byte & Self::WRITE != 0 }
    }
}

/// The views of all pages of [`SWITCHED`], and the address mask.
#[derive(Debug)]
pub struct Views {
    pages: [AtomicU8; PAGES],
    address_mask: AtomicU64,
}

impl Default for Views {
    /// RAM everywhere, and line 20 passes.
    fn default() -> Self {
        Self {
            pages: std::array::from_fn(|_| AtomicU8::new(View::RAM.encode())),
            address_mask: AtomicU64::new(u64::MAX),
        }
    }
}

impl Views {
    /// The view of the page of `gpa`, if it is one that is switched.
    #[must_use]
    #[inline]
    pub fn of(&self, gpa: u64) -> Option<View> {
        if !SWITCHED.contains(&gpa) {
            return None;
        }
        let page = &self.pages[((gpa - SWITCHED.start) / PAGE_SIZE) as usize];
        Some(View::decode(page.load(Ordering::Relaxed)))
    }

    /// Changes the view of a page in [`SWITCHED`]; true if it was another one.
    pub(crate) fn set(&self, gpa: u64, view: View) -> bool {
        let page = &self.pages[((gpa - SWITCHED.start) / PAGE_SIZE) as usize];
        page.swap(view.encode(), Ordering::Relaxed) != view.encode()
    }

    /// Lets address line 20 pass or not; true if that is a change.
    pub(crate) fn set_a20(&self, passes: bool) -> bool {
        let mask = if passes { u64::MAX } else { !A20 };
        self.address_mask.swap(mask, Ordering::Relaxed) != mask
    }

    /// The address that reaches memory when a processor issues `gpa`.
    #[must_use]
    #[inline(always)]
    pub fn issue(&self, gpa: u64) -> u64 {
        gpa & self.address_mask.load(Ordering::Relaxed)
    }
}
