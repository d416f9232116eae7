//! A snippet's memory before and after.
//!
//! Problem: memory must be as the snippet wants it before each run, and every changed byte be found after
//! it, in less time than the run takes; on the host that is done in a signal handler. Scheme: beside the
//! memory that the snippet runs on lies a *model* of how it was at the start. Laying out writes to
//! both; looking for changes compares them word by word and puts back what differs; clearing away
//! zeroes in both what was laid out. Invariant: between runs both are zero everywhere.
//! Nothing here allocates or locks. The runner's thread.

use std::sync::OnceLock;

use super::layout::{
    CODE16, DATA, DATA16, HIGH_LEN, HIGH_START, LOW_LEN, LOW_START, PAGE, RWX, STACK,
};
use super::{Bits, CHANGES_MAX};

/// Number of patterns, the zero one included.
pub const PATTERNS: usize = 64;
/// Length of a pattern: the data pages.
pub const PATTERN_LEN: usize = 2 * PAGE as usize;

/// Prepared contents of the data pages: number 0 is zero, the others are random bytes, small integers,
/// addresses of the data pages, floating-point numbers and text in turn.
#[must_use]
pub fn pattern(number: u8) -> &'static [u8; PATTERN_LEN] {
    static ALL: OnceLock<Box<[[u8; PATTERN_LEN]]>> = OnceLock::new();
    let all = ALL.get_or_init(|| (0..PATTERNS).map(make_pattern).collect());
    &all[usize::from(number) % PATTERNS]
}

fn make_pattern(number: usize) -> [u8; PATTERN_LEN] {
    let mut bytes = [0; PATTERN_LEN];
    if number == 0 {
        return bytes;
    }
    let mut rng = crate::fuzz::rng::Rng::new(number as u64);
    match number % 5 {
        0 => rng.fill(&mut bytes),
        1 => {
            for word in bytes.chunks_exact_mut(8) {
                word.copy_from_slice(&crate::fuzz::values::number(&mut rng).to_le_bytes());
            }
        }
        2 => {
            for word in bytes.chunks_exact_mut(8) {
                let address = DATA + rng.below(PATTERN_LEN as u64);
                word.copy_from_slice(&address.to_le_bytes());
            }
        }
        3 => {
            for word in bytes.chunks_exact_mut(16) {
                word.copy_from_slice(&crate::fuzz::values::vector(&mut rng));
            }
        }
        _ => {
            for byte in &mut bytes {
                *byte = rng.pick(b"\0\x01abcdXYZ09 \x7f\x80\xff");
            }
        }
    }
    bytes
}

/// A run of changed words as the handler counts them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub changed: u32,
    pub hash: u64,
}

impl Tally {
    /// Counts a changed word.
    pub fn add(&mut self, at: u64, value: u64) {
        self.changed += 1;
        let mixed = (self.hash ^ at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.hash = (mixed ^ mixed >> 29 ^ value).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
}

/// The two pieces of memory of a runner, and the model of each.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    high: *mut u8,
    low: *mut u8,
    high_model: *mut u8,
    low_model: *mut u8,
}

impl Memory {
    /// # Safety
    /// `high` and `high_model` lead to `HIGH_LEN` bytes, `low` and `low_model` to `LOW_LEN` bytes, page
    /// aligned, all zero, and stay valid as long as the value and its copies are used; nobody else uses them
    /// but the snippet, while it runs.
    #[must_use]
    pub unsafe fn new(
        high: *mut u8,
        low: *mut u8,
        high_model: *mut u8,
        low_model: *mut u8,
    ) -> Self {
        Self { high, low, high_model, low_model }
    }

    /// Memory and model at a linear address.
    fn place(&self, at: u64, len: usize) -> Option<[*mut u8; 2]> {
        let inside = |start: u64, size: usize| {
            let offset = at.wrapping_sub(start);
            (offset < size as u64 && len <= size - offset as usize).then_some(offset as usize)
        };
        if let Some(offset) = inside(HIGH_START, HIGH_LEN) {
            Some([self.high.wrapping_add(offset), self.high_model.wrapping_add(offset)])
        } else {
            let offset = inside(LOW_START, LOW_LEN)?;
            Some([self.low.wrapping_add(offset), self.low_model.wrapping_add(offset)])
        }
    }

    /// Writes bytes before a run. What lies outside is left out.
    pub fn lay(&self, at: u64, bytes: &[u8]) {
        for place in self.place(at, bytes.len()).into_iter().flatten() {
            // SAFETY: `place` has checked that so many bytes are there; the snippet doesn't run.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
        }
    }

    /// Undoes [`Memory::lay`], after a run and [`Memory::changes`].
    pub fn clear(&self, at: u64, len: usize) {
        for place in self.place(at, len).into_iter().flatten() {
            // SAFETY: `place` has checked that so many bytes are there; the snippet doesn't run.
            unsafe { std::ptr::write_bytes(place, 0, len) };
        }
    }

    /// Where a pattern goes.
    #[must_use]
    pub fn pattern_at(bits: Bits) -> u64 {
        if bits == Bits::B16 { DATA16 } else { DATA }
    }

    /// Tells `found` every word that a run has changed, up to [`CHANGES_MAX`] of them, and puts back what
    /// was there.
    pub fn changes(&self, bits: Bits, mut found: impl FnMut(usize, u64, u64)) -> Tally {
        let mut tally = Tally::default();
        let windows: &[(u64, usize)] = if bits == Bits::B16 {
            &[(CODE16, LOW_LEN)]
        } else {
            &[(RWX, PAGE as usize), (DATA, PATTERN_LEN), (STACK, 2 * PAGE as usize)]
        };
        for &(start, len) in windows {
            let Some([memory, model]) = self.place(start, len) else { continue };
            for line in (0..len).step_by(LINE) {
                let (now, before) = (memory.wrapping_add(line), model.wrapping_add(line));
                if same_line(now, before) {
                    continue;
                }
                for offset in (0..LINE).step_by(8) {
                    let place: *mut u64 = now.wrapping_add(offset).cast();
                    // SAFETY: inside the window, aligned.
                    let value = unsafe { place.read() };
                    // SAFETY: as above.
                    let old = unsafe { before.wrapping_add(offset).cast::<u64>().read() };
                    if value != old {
                        let at = start + (line + offset) as u64;
                        if (tally.changed as usize) < CHANGES_MAX {
                            found(tally.changed as usize, at, value);
                        }
                        tally.add(at, value);
                        // SAFETY: as above; the snippet doesn't run.
                        unsafe { place.write(old) };
                    }
                }
            }
        }
        tally
    }
}

/// Bytes compared at once.
const LINE: usize = 64;

#[inline(always)]
fn same_line(a: *const u8, b: *const u8) -> bool {
    // SAFETY: both lead to a whole, aligned line of the runner's memory.
    let a = unsafe { a.cast::<[u64; 8]>().read() };
    // SAFETY: as above.
    let b = unsafe { b.cast::<[u64; 8]>().read() };
    let mut differ = 0;
    for n in 0..8 {
        differ |= a[n] ^ b[n];
    }
    differ == 0
}
