//! Register state as the harness guest stores it, and what a run of a case came to.
//!
//! Problem: guest, host oracle and case files describe the same registers. Scheme: one flat block of 256
//! 32-bit words with the layout of `harness.asm` (`S_GPR` and so on); names map to positions in it.
//! Invariant: words outside the named fields are zero. Plain data.

use std::collections::BTreeMap;

/// Length of the block in bytes.
pub const SIZE: usize = 1024;
pub const RIP: usize = 128;
pub const RFLAGS: usize = 136;
pub const SEGMENTS: usize = 144;
pub const VECTOR: usize = 168;
pub const ERROR: usize = 172;
pub const CR2: usize = 176;
pub const DR6: usize = 184;
/// FXSAVE image.
pub const FX: usize = 256;
pub const FCW: usize = FX;
pub const FSW: usize = FX + 2;
pub const FTW: usize = FX + 4;
pub const MXCSR: usize = FX + 24;
pub const ST: usize = FX + 32;
pub const XMM: usize = FX + 160;
/// Upper halves of the YMM registers.
pub const YMMH: usize = 768;

/// `VECTOR` before anything happened.
pub const NO_VECTOR: u32 = u32::MAX;

pub const GPR_64: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];
pub const GPR_32: [&str; 8] = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"];
pub const SEGMENT_NAMES: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// The register block.
#[derive(Clone, PartialEq, Eq)]
pub struct State {
    pub bytes: [u8; SIZE],
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "State {{ rip: {:#x}, vector: {:#x} }}", self.u64_at(RIP), self.u32_at(VECTOR))
    }
}

impl State {
    /// All zero but for the values after FNINIT, an untouched DR6 and no exception.
    #[must_use]
    pub fn new() -> Self {
        let mut state = Self { bytes: [0; SIZE] };
        state.set(VECTOR, 4, u64::from(NO_VECTOR));
        state.set(DR6, 4, 0xffff_0ff0);
        state.set(FCW, 2, 0x37f);
        state.set(MXCSR, 4, 0x1f80);
        state
    }

    #[must_use]
    pub fn get(&self, offset: usize, len: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&self.bytes[offset..offset + len]);
        u64::from_le_bytes(bytes)
    }
    pub fn set(&mut self, offset: usize, len: usize, value: u64) {
        self.bytes[offset..offset + len].copy_from_slice(&value.to_le_bytes()[..len]);
    }
    #[must_use]
    pub fn u16_at(&self, offset: usize) -> u16 {
        self.get(offset, 2) as u16
    }
    #[must_use]
    pub fn u32_at(&self, offset: usize) -> u32 {
        self.get(offset, 4) as u32
    }
    #[must_use]
    pub fn u64_at(&self, offset: usize) -> u64 {
        self.get(offset, 8)
    }
    #[must_use]
    pub fn gpr(&self, n: usize) -> u64 {
        self.u64_at(8 * n)
    }
    #[must_use]
    pub fn xmm(&self, n: usize) -> [u8; 16] {
        self.bytes[XMM + 16 * n..][..16].try_into().expect("sixteen bytes were taken")
    }
    #[must_use]
    pub fn ymmh(&self, n: usize) -> [u8; 16] {
        self.bytes[YMMH + 16 * n..][..16].try_into().expect("sixteen bytes were taken")
    }
    /// x87 top of stack.
    #[must_use]
    pub fn top(&self) -> usize {
        usize::from(self.u16_at(FSW) >> 11) & 7
    }
    /// Offset of physical x87 register `n`: FXSAVE stores them relative to the top.
    #[must_use]
    pub fn physical_x87(&self, n: usize) -> usize {
        ST + 16 * ((n + 8 - self.top()) % 8)
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

/// State and memory after a case.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub state: State,
    /// Changed memory: aligned 32-bit words by address.
    pub memory: BTreeMap<u64, u32>,
}

/// What became of a case in one oracle or engine.
#[derive(Clone, Debug)]
pub enum Run {
    Ended(Box<Outcome>),
    /// The machine died or hung in it; the text says how.
    Lost(String),
}
