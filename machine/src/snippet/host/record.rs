//! What parent and child write for each other.
//!
//! Problem: both sides are the same program but may not share anything that allocates. Scheme: one block of
//! shared memory: counters that double as futexes, snippets one behind the other in an input area, and an
//! answer for each. Invariant: the parent writes the input and the child the answers, each only while the
//! counters say that it is its turn.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use xenolith_cpu::state::{VectorState, XSAVE_AREA_SIZE};

use super::super::{Bits, CHANGES_MAX, End, Ending, Snippet};

/// Snippets in a batch.
pub const ANSWERS_MAX: usize = 256;
/// Room for their registers and memory.
pub const INPUT_LEN: usize = 1 << 20;

/// A snippet's registers, behind which its pieces of memory follow.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Head {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    pub selectors: [u16; 6],
    pub bits: u8,
    pub pattern: u8,
    pub pieces: u16,
    pub vector: [u8; XSAVE_AREA_SIZE],
}

/// In front of a piece's bytes, which are filled up to eight.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PieceHead {
    pub at: u64,
    pub len: u64,
}

/// What came of one.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Answer {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    pub cr2: u64,
    pub hash: u64,
    pub selectors: [u16; 6],
    pub error: u32,
    /// Exception vector, or one of the below.
    pub trap: u32,
    pub changed: u32,
    pub vector: [u8; XSAVE_AREA_SIZE],
    pub changes: [[u64; 2]; CHANGES_MAX],
}

pub const SYSTEM_CALL: u32 = 0x100;
pub const ENDLESS: u32 = 0x101;

/// The whole block.
#[repr(C, align(4096))]
pub struct Shared {
    /// Batches asked for, and batches done. Futexes.
    pub wanted: AtomicU32,
    pub done: AtomicU32,
    /// Snippets in the batch, and how many of them are through.
    pub count: AtomicU32,
    pub index: AtomicU32,
    /// How far the child's set-up is.
    pub stage: AtomicU32,
    pub input: UnsafeCell<[u8; INPUT_LEN]>,
    pub answers: [UnsafeCell<Answer>; ANSWERS_MAX],
}

impl Shared {
    /// An answer that the child has finished.
    pub fn answer(&self, n: usize) -> &Answer {
        // SAFETY: the child has said that this answer is there, and doesn't write it again before the next
        // batch, which the caller gives it.
        unsafe { &*self.answers[n].get() }
    }
}

impl Answer {
    pub fn ending(&self) -> Ending {
        let end = match self.trap {
            SYSTEM_CALL => End::SystemCall,
            ENDLESS => End::Endless,
            trap => End::Exception { vector: trap as u8, error: self.error, cr2: self.cr2 },
        };
        let kept = (self.changed as usize).min(CHANGES_MAX);
        Ending {
            end,
            gpr: self.gpr,
            rip: self.rip,
            rflags: self.rflags,
            selectors: self.selectors,
            vector: VectorState { bytes: self.vector },
            changes: self.changes[..kept].iter().map(|&[at, value]| (at, value)).collect(),
            changed: self.changed,
            hash: self.hash,
            retired: 0,
        }
    }
}

/// Writes snippets into the input.
pub struct Writer<'a> {
    input: &'a mut [u8; INPUT_LEN],
    used: usize,
}

/// Bytes of plain data.
fn bytes_of<T: Copy>(value: &T) -> &[u8] {
    // SAFETY: `T` is one of the heads, which are made of integers without gaps but at most at their ends;
    // the bytes of those may hold anything, and nobody looks at them.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }
}

impl<'a> Writer<'a> {
    pub fn new(input: &'a mut [u8; INPUT_LEN]) -> Self {
        Self { input, used: 0 }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.input[self.used..][..bytes.len()].copy_from_slice(bytes);
        self.used = (self.used + bytes.len()).next_multiple_of(8);
    }

    /// Whether there was room.
    pub fn put(&mut self, snippet: &Snippet) -> bool {
        const END: [u8; 2] = [0x0f, 0x0b];
        let piece_len = |len: usize| size_of::<PieceHead>() + len.next_multiple_of(8);
        let memory: usize = snippet.memory.iter().map(|it| piece_len(it.bytes.len())).sum();
        let code = snippet.code.len();
        if self.used + size_of::<Head>() + memory + piece_len(code + 2) > INPUT_LEN {
            return false;
        }
        let head = Head {
            gpr: snippet.gpr,
            rip: snippet.rip,
            rflags: snippet.rflags,
            selectors: snippet.selectors,
            bits: snippet.bits.number() as u8,
            pattern: snippet.pattern,
            pieces: snippet.memory.len() as u16 + 1,
            vector: snippet.vector.bytes,
        };
        self.push(bytes_of(&head));
        let at = snippet.at();
        self.push(bytes_of(&PieceHead { at, len: code as u64 + 2 }));
        self.input[self.used..][..code].copy_from_slice(&snippet.code);
        self.input[self.used + code..][..2].copy_from_slice(&END);
        self.used = (self.used + code + 2).next_multiple_of(8);
        for piece in &snippet.memory {
            self.push(bytes_of(&PieceHead { at: piece.at, len: piece.bytes.len() as u64 }));
            self.push(&piece.bytes);
        }
        true
    }
}

/// Reads them, in the child.
#[derive(Clone, Copy)]
pub struct Reader {
    at: *const u8,
}

impl Reader {
    /// `input` holds what a [`Writer`] wrote.
    pub fn new(input: *const u8) -> Self {
        Self { at: input }
    }

    /// The next snippet's registers.
    pub fn head(&mut self) -> Head {
        // SAFETY: the writer put a head here.
        let head = unsafe { self.at.cast::<Head>().read_unaligned() };
        self.skip(size_of::<Head>());
        head
    }

    /// The next piece: where it goes and its bytes.
    pub fn piece(&mut self) -> (u64, &'static [u8]) {
        // SAFETY: the writer put a piece here.
        let head = unsafe { self.at.cast::<PieceHead>().read_unaligned() };
        self.skip(size_of::<PieceHead>());
        // SAFETY: the piece's bytes follow; the input stays as it is until the batch is done.
        let bytes = unsafe { std::slice::from_raw_parts(self.at, head.len as usize) };
        self.skip(head.len as usize);
        (head.at, bytes)
    }

    fn skip(&mut self, len: usize) {
        self.at = self.at.wrapping_add(len.next_multiple_of(8));
    }
}

/// futex(2) without libc's errno, which is thread-local.
fn futex(word: &AtomicU32, operation: i32, value: u32, timeout: *const libc::timespec) {
    let address = word.as_ptr();
    // SAFETY: waits for or wakes waiters of a word that stays mapped; the kernel changes no memory.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") libc::SYS_futex => _,
            in("rdi") address, in("rsi") operation, in("rdx") value, in("r10") timeout,
            out("rcx") _, out("r11") _,
            options(nostack),
        );
    }
}

/// Wakes whoever waits for `word`.
pub fn wake(word: &AtomicU32) {
    futex(word, libc::FUTEX_WAKE, 1, std::ptr::null());
}

/// Waits while `word` is `value`, for `limit` at most.
pub fn wait(word: &AtomicU32, value: u32, limit: Duration) {
    // A short look first: the other side is often about to be done.
    for _ in 0..200 {
        if word.load(Ordering::SeqCst) != value {
            return;
        }
        std::hint::spin_loop();
    }
    let timeout = libc::timespec {
        tv_sec: limit.as_secs() as libc::time_t,
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    futex(word, libc::FUTEX_WAIT, value, &raw const timeout);
}

/// Code size by its number in a [`Head`].
pub fn bits(number: u8) -> Bits {
    Bits::from_number(u32::from(number)).unwrap_or_default()
}
