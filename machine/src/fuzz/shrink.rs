//! The smallest snippet that still shows a difference.
//!
//! Problem: a failing snippet has eight instructions, sixteen random registers and pages of random memory, of
//! which one instruction and one operand matter. Scheme: try simpler ones, keep what still fails, until
//! nothing simpler does: fewer instructions, fewer prefixes, the usual place, zero registers, plain flags,
//! empty memory, zero immediates. Invariant: what comes out fails. Deterministic. The caller's thread.

use iced_x86::{Decoder, DecoderOptions};
use xenolith_cpu::state::VectorState;

use crate::snippet::image::{Memory, pattern};
use crate::snippet::{FLAGS, Piece, Snippet};

/// Rounds over everything.
const ROUNDS: usize = 4;
/// Bytes of memory that are cleared at once at first.
const CHUNK: usize = 4096;

/// Where instructions of the code begin, read in order from its start, and its end.
#[must_use]
pub fn boundaries(snippet: &Snippet) -> Vec<usize> {
    let mut decoder =
        Decoder::with_ip(snippet.bits.number(), &snippet.code, snippet.rip, DecoderOptions::NONE);
    let mut starts = Vec::new();
    while decoder.can_decode() {
        starts.push(decoder.position());
        let _ = decoder.decode();
    }
    starts.push(snippet.code.len());
    starts
}

struct Shrinker<'a> {
    best: Snippet,
    fails: &'a mut dyn FnMut(&Snippet) -> bool,
    changed: bool,
}

impl Shrinker<'_> {
    /// Keeps the changed snippet if it still fails.
    fn attempt(&mut self, change: impl FnOnce(&mut Snippet)) -> bool {
        let mut simpler = self.best.clone();
        change(&mut simpler);
        let better = (self.fails)(&simpler);
        if better {
            self.best = simpler;
            self.changed = true;
        }
        better
    }
}

/// Shrinks `snippet`, for which `fails` is true.
pub fn shrink(snippet: &Snippet, fails: &mut dyn FnMut(&Snippet) -> bool) -> Snippet {
    let mut it = Shrinker { best: snippet.clone(), fails, changed: true };
    for _ in 0..ROUNDS {
        if !std::mem::take(&mut it.changed) {
            break;
        }
        shrink_code(&mut it);
        shrink_place(&mut it);
        shrink_memory(&mut it);
        shrink_registers(&mut it);
        shrink_vectors(&mut it);
        shrink_bytes(&mut it);
    }
    it.best
}

/// Fewer instructions, from the end.
fn shrink_code(it: &mut Shrinker) {
    let mut n = boundaries(&it.best).len() - 1;
    while n > 0 {
        n -= 1;
        let starts = boundaries(&it.best);
        if starts.len() > 2 && n + 1 < starts.len() {
            let (from, to) = (starts[n], starts[n + 1]);
            it.attempt(|snippet| {
                snippet.code.drain(from..to);
            });
        }
    }
}

fn shrink_place(it: &mut Shrinker) {
    let usual = it.best.bits.code().1;
    if it.best.rip != usual {
        it.attempt(|snippet| snippet.rip = usual);
    }
    let selectors = it.best.usual().selectors;
    for (n, &selector) in selectors.iter().enumerate() {
        if it.best.selectors[n] != selector {
            it.attempt(|snippet| snippet.selectors[n] = selector);
        }
    }
}

fn shrink_memory(it: &mut Shrinker) {
    if it.best.pattern != 0 && !it.attempt(|snippet| snippet.pattern = 0) {
        // As a piece it can be made smaller.
        it.attempt(|snippet| {
            let at = Memory::pattern_at(snippet.bits);
            let bytes = pattern(snippet.pattern).to_vec();
            snippet.pattern = 0;
            snippet.memory.insert(0, Piece { at, bytes });
        });
    }
    let mut n = it.best.memory.len();
    while n > 0 {
        n -= 1;
        let gone = it.attempt(|snippet| {
            snippet.memory.remove(n);
        });
        if !gone {
            shrink_piece(it, n);
        }
    }
}

/// Zeroes what isn't needed of a piece, in smaller and smaller chunks, and cuts off zeroes at its ends.
fn shrink_piece(it: &mut Shrinker, n: usize) {
    let mut chunk = CHUNK;
    while chunk > 0 {
        let len = it.best.memory[n].bytes.len();
        for from in (0..len).step_by(chunk) {
            let to = (from + chunk).min(len);
            if it.best.memory[n].bytes[from..to].iter().any(|&byte| byte != 0) {
                it.attempt(|snippet| snippet.memory[n].bytes[from..to].fill(0));
            }
        }
        chunk /= if chunk > 16 { 4 } else { 2 };
    }
    let bytes = &it.best.memory[n].bytes;
    let Some(first) = bytes.iter().position(|&byte| byte != 0) else { return };
    let last = bytes.iter().rposition(|&byte| byte != 0).unwrap_or(first);
    if first > 0 || last + 1 < bytes.len() {
        it.attempt(|snippet| {
            let piece = &mut snippet.memory[n];
            piece.bytes.truncate(last + 1);
            piece.bytes.drain(..first);
            piece.at += first as u64;
        });
    }
}

fn shrink_registers(it: &mut Shrinker) {
    let usual = it.best.usual();
    for n in 0..16 {
        for value in [usual.gpr[n], 1, it.best.gpr[n] & 0xffff_ffff, it.best.gpr[n] & 0xff] {
            if it.best.gpr[n] != usual.gpr[n] && it.best.gpr[n] > value {
                it.attempt(|snippet| snippet.gpr[n] = value);
            }
        }
        if it.best.gpr[n] != usual.gpr[n] {
            it.attempt(|snippet| snippet.gpr[n] = usual.gpr[n]);
        }
    }
    for bit in 0..22 {
        let flag = 1u64 << bit;
        if (it.best.rflags ^ FLAGS) & flag != 0 {
            it.attempt(|snippet| snippet.rflags ^= flag);
        }
    }
}

fn shrink_vectors(it: &mut Shrinker) {
    let usual = VectorState::default();
    if it.best.vector == usual || it.attempt(|snippet| snippet.vector = usual.clone()) {
        return;
    }
    let ranges = [0..2, 2..4, 4..5, 24..28, 32..160, 160..416, 576..832]
        .into_iter()
        .chain((0..8).map(|n| VectorState::ST + 16 * n..VectorState::ST + 16 * n + 10))
        .chain((0..16).map(|n| VectorState::YMMH + 16 * n..VectorState::YMMH + 16 * n + 16))
        .chain((0..32).map(|n| VectorState::XMM + 8 * n..VectorState::XMM + 8 * n + 8));
    for range in ranges {
        if it.best.vector.bytes[range.clone()] != usual.bytes[range.clone()] {
            it.attempt(|snippet| {
                snippet.vector.bytes[range.clone()].copy_from_slice(&usual.bytes[range]);
            });
        }
    }
}

/// Leaves out prefixes and zeroes immediates: byte by byte, whatever they are.
fn shrink_bytes(it: &mut Shrinker) {
    let mut n = 0;
    while n + 1 < boundaries(&it.best).len() {
        let starts = boundaries(&it.best);
        let (from, to) = (starts[n], starts[n + 1]);
        let prefixed = to - from > 1
            && it.attempt(|snippet| {
                snippet.code.remove(from);
            });
        if prefixed {
            continue;
        }
        // The first bytes are the instruction itself.
        for at in (from + 2..to).rev() {
            if it.best.code[at] != 0 {
                it.attempt(|snippet| snippet.code[at] = 0);
            }
        }
        n += 1;
    }
}
