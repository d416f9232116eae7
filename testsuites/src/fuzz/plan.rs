//! How a hostile guest is set up: its mode, its privilege, and the bits of its control registers.
//!
//! Scheme: drawn so that most combinations get through set-up; a few don't, and then the guest ends there.
//! Source: SDM vol. 3, "Control Registers", "System Flags and Fields in the EFLAGS Register".

use xenolith_cpu::state::{Cr0, Cr4, Efer, Rflags};

use super::rng::Rng;

/// In which mode chunks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Real,
    V86,
    /// 16-bit protected mode without paging.
    Protected16,
    Protected32,
    Paged32,
    Pae32,
    Compatibility16,
    Compatibility32,
    Long64,
}

impl Mode {
    pub const ALL: [Self; 9] = [
        Self::Real,
        Self::V86,
        Self::Protected16,
        Self::Protected32,
        Self::Paged32,
        Self::Pae32,
        Self::Compatibility16,
        Self::Compatibility32,
        Self::Long64,
    ];

    /// Size of a chunk's code.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Self::Real | Self::V86 | Self::Protected16 | Self::Compatibility16 => 16,
            Self::Protected32 | Self::Paged32 | Self::Pae32 | Self::Compatibility32 => 32,
            Self::Long64 => 64,
        }
    }

    #[must_use]
    pub fn is_long(self) -> bool {
        matches!(self, Self::Compatibility16 | Self::Compatibility32 | Self::Long64)
    }

    pub(super) fn is_paged(self) -> bool {
        !matches!(self, Self::Real | Self::Protected16 | Self::Protected32)
    }

    /// 32-bit paging: entries of four bytes.
    pub(super) fn entries_are_narrow(self) -> bool {
        matches!(self, Self::V86 | Self::Paged32)
    }

    pub(super) fn runs_low(self) -> bool {
        matches!(self, Self::Real | Self::V86)
    }
}

/// How a guest is set up.
#[derive(Clone, Debug)]
pub struct Plan {
    pub mode: Mode,
    /// Chunks run at CPL 3.
    pub user: bool,
    pub cr0: u32,
    pub cr4: u32,
    pub efer: u32,
    pub xcr0: Option<u32>,
    /// RFLAGS of the chunks.
    pub flags: u32,
    /// The dispatcher acknowledges interrupts.
    pub acknowledges: bool,
    /// The 8254's divisor; its interrupt gets the guest out of loops.
    pub tick: u16,
    /// Starts a second processor in the chunks' code, in real mode.
    pub second_processor: bool,
}

impl Plan {
    pub fn draw(rng: &mut Rng) -> Self {
        let mode = *rng.pick(&Mode::ALL);
        let user = mode == Mode::V86 || mode != Mode::Real && rng.one_in(2);
        let switches = (Cr0::MP | Cr0::EM | Cr0::TS | Cr0::NE | Cr0::WP | Cr0::AM | Cr0::CD).bits();
        // Without the FPU half of the instructions only say so.
        let cr0 = rng.some_of(switches) & if rng.one_in(4) { u64::MAX } else { !0xc };
        let mut cr4 = rng.some_of(
            (Cr4::VME | Cr4::PVI | Cr4::TSD | Cr4::DE | Cr4::MCE | Cr4::PGE | Cr4::PCE | Cr4::UMIP)
                .bits(),
        );
        if !rng.one_in(8) {
            cr4 |= (Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE).bits();
        }
        if mode.entries_are_narrow() && !rng.one_in(16) {
            cr4 |= Cr4::PSE.bits();
        }
        if mode.is_long() || mode == Mode::Pae32 {
            cr4 |= Cr4::PAE.bits();
        }
        if mode.is_long() {
            cr4 |= rng.some_of(Cr4::FSGSBASE.bits());
        }
        // They take a user's pages from the dispatcher.
        if rng.one_in(if user { 64 } else { 4 }) {
            cr4 |= rng.some_of((Cr4::SMEP | Cr4::SMAP).bits());
        }
        let xsave = cr4 & Cr4::OSXSAVE.bits() != 0;
        let mut flags = Rflags::IF.bits();
        if rng.one_in(4) {
            flags = rng.u64() & 0x0001_04d5 | Rflags::IF.bits();
        }
        if rng.one_in(4) {
            flags |= rng.some_of((Rflags::TF | Rflags::AC | Rflags::DF | Rflags::NT).bits());
        }
        flags = flags & !Rflags::VM.bits() | rng.u64() & 3 << 12;
        if mode == Mode::V86 {
            flags |= Rflags::VM.bits();
        }
        Self {
            mode,
            user,
            cr0: cr0 as u32,
            cr4: cr4 as u32,
            efer: rng.some_of((Efer::SCE | Efer::NXE).bits()) as u32,
            xcr0: xsave.then(|| *rng.pick(&[1, 3, 7])),
            flags: flags as u32 | 2,
            acknowledges: rng.one_in(2),
            tick: rng.range(20..200) as u16,
            second_processor: false,
        }
    }
}
