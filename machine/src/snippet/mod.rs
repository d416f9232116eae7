//! One short piece of code with everything it starts from, run by engines and by the host's processor.
//!
//! Problem: a wrong instruction is found fastest by running it alone, in a state that brings the mistake out,
//! and comparing with somebody else; millions of such runs must fit into a minute. Scheme: a [`Snippet`]
//! is user-mode code in a fixed piece of memory ([`layout`]). Whoever can run one is a [`Runner`]:
//! an engine with memory of its own that is kept from snippet to snippet ([`engine`]), or the bare processor
//! in a child process ([`host`]). All say what came of it in an [`Ending`], and [`judge`] compares two,
//! leaving out what the manual leaves undefined ([`undefined`]).
//! Invariants: a runner keeps nothing of a snippet that a later one could see; results depend on the
//! snippet only. One thread a runner.

pub mod engine;
pub mod host;
pub mod image;
pub mod judge;
mod kernel;
mod kernel32;
pub mod layout;
pub mod makers;
pub mod qemu;
pub mod source;
pub mod undefined;

use std::sync::Arc;

use xenolith_cpu::cpuid::CpuidModel;
use xenolith_cpu::state::{Rflags, VectorState};

use crate::config::{Engine, Making};
use layout::{CODE, CODE16, DATA16, EXTRA16, STACK_MID, STACK16, STACK16_SP};

/// Code size. All three are user code under a 64-bit kernel: 64-bit mode and compatibility mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bits {
    B16,
    B32,
    #[default]
    B64,
}

impl Bits {
    pub const ALL: [Self; 3] = [Self::B16, Self::B32, Self::B64];

    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::B16 => 16,
            Self::B32 => 32,
            Self::B64 => 64,
        }
    }

    #[must_use]
    pub fn from_number(bits: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.number() == bits)
    }

    /// Linear address of the code segment's offset 0, and the offset where code is, if nothing else is said.
    #[must_use]
    pub fn code(self) -> (u64, u64) {
        if self == Self::B16 { (CODE16, 0) } else { (0, CODE) }
    }

    /// ES, CS, SS, DS, FS, GS at the start, as Linux has them.
    #[must_use]
    pub fn selectors(self) -> [u16; 6] {
        use layout::{
            UCODE16_SEL, UCODE32, UCODE64, UDATA, UDATA16_SEL, UEXTRA16_SEL, USTACK16_SEL,
        };
        match self {
            Self::B16 => [UEXTRA16_SEL, UCODE16_SEL, USTACK16_SEL, UDATA16_SEL, 0, 0],
            Self::B32 => [UDATA, UCODE32, UDATA, UDATA, 0, 0],
            Self::B64 => [0, UCODE64, UDATA, 0, 0, 0],
        }
    }
}

/// What a snippet runs under.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum System {
    /// A 64-bit kernel: the snippet is in 64-bit or compatibility mode.
    #[default]
    Long,
    /// A 32-bit kernel with PAE paging, without long mode: the snippet is in protected mode.
    Protected,
    /// The same kernel: the snippet, 16-bit code, is in virtual-8086 mode.
    V86,
    /// Nothing: the snippet, 16-bit code, is in real mode.
    Real,
}

impl System {
    /// Segment registers hold paragraph numbers.
    #[must_use]
    pub fn by_paragraphs(self) -> bool {
        matches!(self, Self::V86 | Self::Real)
    }
}

/// Bytes at a linear address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub at: u64,
    pub bytes: Vec<u8>,
}

/// See the module's head. Memory that no piece names is zero.
#[derive(Clone, Debug)]
pub struct Snippet {
    pub system: System,
    pub bits: Bits,
    /// Offset of the code in its segment; RIP at the start.
    pub rip: u64,
    /// Without the UD2 that ends it.
    pub code: Vec<u8>,
    pub gpr: [u64; 16],
    pub rflags: u64,
    pub selectors: [u16; 6],
    /// With XSTATE_BV as the host should track it.
    pub vector: VectorState,
    /// Number of the prepared contents of the data pages: see [`image::pattern`]. 0: zero.
    pub pattern: u8,
    /// Memory, over the pattern. Later pieces lie over earlier ones.
    pub memory: Vec<Piece>,
}

/// Flags that a process has at its start: interrupts enabled.
pub const FLAGS: u64 = Rflags::FIXED.bits() | Rflags::IF.bits();

impl Snippet {
    /// The state in which a conformance case starts that says nothing about it.
    #[must_use]
    pub fn new(bits: Bits, code: Vec<u8>) -> Self {
        Self::under(System::Long, bits, code)
    }

    /// The same under another system.
    #[must_use]
    pub fn under(system: System, bits: Bits, code: Vec<u8>) -> Self {
        let mut gpr = [0; 16];
        gpr[4] = if bits == Bits::B16 { STACK16_SP } else { STACK_MID };
        let selectors = match system.by_paragraphs() {
            true => [EXTRA16, CODE16, STACK16, DATA16, 0, 0].map(|base| (base >> 4) as u16),
            false => bits.selectors(),
        };
        Self {
            system,
            bits,
            rip: bits.code().1,
            code,
            gpr,
            rflags: FLAGS,
            selectors,
            vector: VectorState::default(),
            pattern: 0,
            memory: Vec::new(),
        }
    }

    /// What registers are without anything said about them.
    #[must_use]
    pub fn usual(&self) -> Self {
        Self::under(self.system, self.bits, Vec::new())
    }

    /// Linear address of the code.
    #[must_use]
    pub fn at(&self) -> u64 {
        self.bits.code().0 + self.rip
    }

    /// Offset of the instruction after the last one, where UD2 is.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.rip + self.code.len() as u64
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// By this exception. CR2 counts for page faults only.
    Exception { vector: u8, error: u32, cr2: u64 },
    /// It asked the kernel for something, which a snippet may not.
    SystemCall,
    /// It was still running when patience ended.
    Endless,
    /// The runner lost it: what became of it.
    Lost(String),
}

/// Changed words kept; more are counted and hashed only.
pub const CHANGES_MAX: usize = 128;

/// What came of a snippet.
#[derive(Clone, Debug)]
pub struct Ending {
    pub end: End,
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    pub selectors: [u16; 6],
    pub vector: VectorState,
    /// Memory that changed: aligned 8-byte words by linear address, in order, and their new values.
    pub changes: Vec<(u64, u64)>,
    /// Number of all changed words, and a hash over them.
    pub changed: u32,
    pub hash: u64,
    /// Instructions that were executed, where that is known.
    pub retired: u64,
}

impl Ending {
    /// Nothing but how it ended.
    #[must_use]
    pub fn only(end: End) -> Self {
        Self {
            end,
            gpr: [0; 16],
            rip: 0,
            rflags: 0,
            selectors: [0; 6],
            vector: VectorState::default(),
            changes: Vec::new(),
            changed: 0,
            hash: 0,
            retired: 0,
        }
    }

    /// Whether the snippet ran to its end.
    #[must_use]
    pub fn is_complete(&self, snippet: &Snippet) -> bool {
        matches!(self.end, End::Exception { vector: 6, .. }) && self.rip == snippet.end()
    }
}

/// Why there is no runner. `Display` is one line.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    #[error("cannot {what}: {reason}")]
    Host { what: &'static str, reason: String },
    #[error("--cpu {model}: {reason}")]
    Cpu { model: String, reason: String },
    #[error("QEMU: {0}")]
    Qemu(String),
    #[error("--snippet {0}")]
    Source(String),
}

/// Who can run snippets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Interp,
    Bt,
    Qemu,
    /// The processor that this program runs on.
    Host,
}

impl Who {
    pub const ALL: [Self; 4] = [Self::Interp, Self::Bt, Self::Qemu, Self::Host];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Interp => "interp",
            Self::Bt => "bt",
            Self::Qemu => "qemu",
            Self::Host => "host",
        }
    }

    /// A runner of that kind. The host and QEMU don't look at the model.
    ///
    /// # Errors
    /// The host refuses something, or there is no QEMU.
    pub fn runner(
        self,
        making: impl Into<Making>,
        model: &Arc<CpuidModel>,
    ) -> Result<Box<dyn Runner>, RunnerError> {
        let making = making.into();
        Ok(match self {
            Self::Interp => Box::new(engine::EngineRunner::new(Engine::Interp, making, model)?),
            Self::Bt => Box::new(engine::EngineRunner::new(Engine::Bt, making, model)?),
            Self::Qemu => Box::new(qemu::Qemu::new()?),
            Self::Host => Box::new(host::Host::new()?),
        })
    }
}

/// Somebody who can run snippets.
pub trait Runner {
    fn name(&self) -> &'static str;

    /// Whether it runs snippets under that system.
    fn takes(&self, system: System) -> bool {
        system == System::Long
    }

    /// Starts on a batch; [`Runner::finish`] waits for it. One batch at a time.
    ///
    /// # Errors
    /// The host refuses something.
    fn start(&mut self, batch: &[Snippet]) -> Result<(), RunnerError>;

    /// What came of the batch that was started, in its order.
    ///
    /// # Errors
    /// The host refuses something.
    fn finish(&mut self, batch: &[Snippet]) -> Result<Vec<Ending>, RunnerError>;

    /// Runs one.
    ///
    /// # Errors
    /// The host refuses something.
    fn run(&mut self, snippet: &Snippet) -> Result<Ending, RunnerError> {
        let batch = std::slice::from_ref(snippet);
        self.start(batch)?;
        let mut endings = self.finish(batch)?;
        Ok(endings.pop().unwrap_or_else(|| Ending::only(End::Lost("no answer".to_owned()))))
    }
}
