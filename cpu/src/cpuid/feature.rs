//! The features that a CPU model may have, and what each brings.
//!
//! One row a feature: where CPUID reports it, its names, whether its instructions run on the host in
//! stubs (so that the host must have it), and what it can't do without. A bit that has no row is
//! never shown to a guest. Sources: SDM vol. 2, "CPUID"; APM vol. 3, "Obtaining Processor Information Via
//! the CPUID Instruction"; names as in Linux's /proc/cpuinfo, KVM's as QEMU has them.

use iced_x86::CpuidFeature;

/// CPUID registers that hold feature bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Word {
    Leaf1Ecx,
    Leaf1Edx,
    Leaf7Ebx,
    Leaf7Ecx,
    Leaf7Edx,
    /// Leaf 0xD, subleaf 1.
    XsaveEax,
    ExtendedEcx,
    ExtendedEdx,
    /// Leaf 0x8000_0007.
    PowerEdx,
    /// Leaf 0x8000_0008.
    AddressEbx,
    /// Leaf 0x8000_0021.
    Extended2Eax,
    Extended2Ecx,
    /// KVM's leaf of features.
    KvmEax,
}

pub(super) const WORDS: usize = 13;

/// A set of features, as the registers that report them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FeatureSet(pub(super) [u32; WORDS]);

impl FeatureSet {
    pub(super) fn of(features: &[Feature]) -> Self {
        let mut set = Self::default();
        for &feature in features {
            set.insert(feature);
        }
        set
    }
    pub(super) fn word(&self, word: Word) -> u32 {
        self.0[word as usize]
    }
    pub(super) fn contains(&self, feature: Feature) -> bool {
        self.0[feature.row().word as usize] & feature.mask() != 0
    }
    pub(super) fn insert(&mut self, feature: Feature) {
        self.0[feature.row().word as usize] |= feature.mask();
    }
    fn remove(&mut self, feature: Feature) {
        self.0[feature.row().word as usize] &= !feature.mask();
    }

    /// Adds a feature and all that it needs.
    pub(super) fn enable(&mut self, feature: Feature) {
        self.insert(feature);
        // Needs point to earlier rows only, so this ends.
        for &need in feature.row().needs {
            self.enable(need);
        }
    }

    /// Removes a feature and all that need it.
    pub(super) fn disable(&mut self, feature: Feature) {
        self.remove(feature);
        self.close();
    }

    /// Removes features whose needs are not met.
    pub(super) fn close(&mut self) {
        // Needs point to earlier rows only, so one pass in order is enough.
        for &feature in Feature::ALL {
            if self.contains(feature)
                && feature.row().needs.iter().any(|&need| !self.contains(need))
            {
                self.remove(feature);
            }
        }
    }
}

pub(super) struct Row {
    word: Word,
    bit: u32,
    names: &'static [&'static str],
    on_host: bool,
    needs: &'static [Feature],
}

macro_rules! features {
    ($($variant:ident = $word:ident $bit:literal [$($name:literal),+] $host:literal [$($need:ident),*];)*) => {
        /// A feature that CPUID reports and that a model may have or lack.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Feature { $($variant),* }

        impl Feature {
            /// All features, those needed by others first.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
        }

        const ROWS: &[Row] = &[$(Row {
            word: Word::$word,
            bit: $bit,
            names: &[$($name),+],
            on_host: $host,
            needs: &[$(Feature::$need),*],
        }),*];
    };
}

// The column of booleans: its instructions run on the host.
features! {
    Fpu = Leaf1Edx 0 ["fpu"] true [];
    Vme = Leaf1Edx 1 ["vme"] false [];
    De = Leaf1Edx 2 ["de"] false [];
    Pse = Leaf1Edx 3 ["pse"] false [];
    Tsc = Leaf1Edx 4 ["tsc"] false [];
    Msr = Leaf1Edx 5 ["msr"] false [];
    Pae = Leaf1Edx 6 ["pae"] false [];
    Mce = Leaf1Edx 7 ["mce"] false [];
    Cx8 = Leaf1Edx 8 ["cx8"] false [];
    Apic = Leaf1Edx 9 ["apic"] false [Msr];
    Sep = Leaf1Edx 11 ["sep"] false [Msr];
    Mtrr = Leaf1Edx 12 ["mtrr"] false [Msr];
    Pge = Leaf1Edx 13 ["pge"] false [];
    Mca = Leaf1Edx 14 ["mca"] false [Msr];
    Cmov = Leaf1Edx 15 ["cmov"] false [];
    Pat = Leaf1Edx 16 ["pat"] false [Msr];
    Pse36 = Leaf1Edx 17 ["pse36"] false [Pse];
    Clfsh = Leaf1Edx 19 ["clflush", "clfsh"] false [];
    Mmx = Leaf1Edx 23 ["mmx"] true [Fpu];
    Fxsr = Leaf1Edx 24 ["fxsr"] true [Fpu];
    Sse = Leaf1Edx 25 ["sse"] true [Fxsr];
    Sse2 = Leaf1Edx 26 ["sse2"] true [Sse];
    Sse3 = Leaf1Ecx 0 ["sse3", "pni"] true [Sse2];
    Pclmulqdq = Leaf1Ecx 1 ["pclmulqdq"] true [Sse2];
    Ssse3 = Leaf1Ecx 9 ["ssse3"] true [Sse3];
    Cx16 = Leaf1Ecx 13 ["cx16"] false [];
    Sse41 = Leaf1Ecx 19 ["sse4_1"] true [Ssse3];
    Sse42 = Leaf1Ecx 20 ["sse4_2"] true [Sse41];
    X2apic = Leaf1Ecx 21 ["x2apic"] false [Apic];
    Movbe = Leaf1Ecx 22 ["movbe"] false [];
    Popcnt = Leaf1Ecx 23 ["popcnt"] false [];
    TscDeadline = Leaf1Ecx 24 ["tsc_deadline_timer", "tsc_deadline"] false [Apic, Tsc];
    Aes = Leaf1Ecx 25 ["aes"] true [Sse2];
    Xsave = Leaf1Ecx 26 ["xsave"] true [Fxsr];
    Avx = Leaf1Ecx 28 ["avx"] true [Xsave, Sse42];
    Fma = Leaf1Ecx 12 ["fma"] true [Avx];
    F16c = Leaf1Ecx 29 ["f16c"] true [Avx];
    Rdrand = Leaf1Ecx 30 ["rdrand"] false [];
    Hypervisor = Leaf1Ecx 31 ["hypervisor"] false [];
    Xsaveopt = XsaveEax 0 ["xsaveopt"] false [Xsave];
    Xsavec = XsaveEax 1 ["xsavec"] false [Xsave];
    Fsgsbase = Leaf7Ebx 0 ["fsgsbase"] false [];
    TscAdjust = Leaf7Ebx 1 ["tsc_adjust"] false [Tsc, Msr];
    Bmi1 = Leaf7Ebx 3 ["bmi1"] true [];
    Avx2 = Leaf7Ebx 5 ["avx2"] true [Avx];
    FdpExcptnOnly = Leaf7Ebx 6 ["fdp_excptn_only"] false [];
    Smep = Leaf7Ebx 7 ["smep"] false [];
    Bmi2 = Leaf7Ebx 8 ["bmi2"] true [];
    Erms = Leaf7Ebx 9 ["erms"] false [];
    ZeroFcsFds = Leaf7Ebx 13 ["zero_fcs_fds"] false [];
    Rdseed = Leaf7Ebx 18 ["rdseed"] false [];
    Adx = Leaf7Ebx 19 ["adx"] false [];
    Smap = Leaf7Ebx 20 ["smap"] false [];
    Clflushopt = Leaf7Ebx 23 ["clflushopt"] false [Clfsh];
    Clwb = Leaf7Ebx 24 ["clwb"] false [Clfsh];
    Sha = Leaf7Ebx 29 ["sha_ni", "sha"] true [Sse41];
    Umip = Leaf7Ecx 2 ["umip"] false [];
    Rdpid = Leaf7Ecx 22 ["rdpid"] false [];
    Fsrm = Leaf7Edx 4 ["fsrm"] false [Erms];
    SpecCtrl = Leaf7Edx 26 ["spec_ctrl", "ibrs"] false [Msr];
    ArchCapabilities = Leaf7Edx 29 ["arch_capabilities"] false [Msr];
    Lm = ExtendedEdx 29 ["lm"] false [Pae, Cx8, Cmov, Sse2];
    Pcid = Leaf1Ecx 17 ["pcid"] false [Lm];
    Invpcid = Leaf7Ebx 10 ["invpcid"] false [Pcid];
    LahfLm = ExtendedEcx 0 ["lahf_lm"] false [];
    Lzcnt = ExtendedEcx 5 ["abm", "lzcnt"] true [];
    Prefetchw = ExtendedEcx 8 ["3dnowprefetch", "prefetchw"] false [];
    Syscall = ExtendedEdx 11 ["syscall"] false [Lm];
    Nx = ExtendedEdx 20 ["nx"] false [Pae];
    Pdpe1gb = ExtendedEdx 26 ["pdpe1gb"] false [Lm];
    Rdtscp = ExtendedEdx 27 ["rdtscp"] false [Tsc];
    InvariantTsc = PowerEdx 8 ["invtsc", "invariant_tsc", "nonstop_tsc"] false [Tsc];
    // These go with AMD as the vendor.
    XsaveErPtr = AddressEbx 2 ["xsaveerptr"] false [Fxsr];
    SsbNo = AddressEbx 26 ["ssb_no", "amd_ssb_no"] false [];
    LfenceSerializing = Extended2Eax 2 ["lfence_rdtsc"] false [];
    NullSelectorClearsBase = Extended2Eax 6 ["null_sel_clr_base"] false [];
    AutoIbrs = Extended2Eax 8 ["autoibrs"] false [Lm];
    SrsoNo = Extended2Eax 29 ["srso_no"] false [];
    TsaSqNo = Extended2Ecx 1 ["tsa_sq_no"] false [];
    TsaL1No = Extended2Ecx 2 ["tsa_l1_no"] false [];
    // Linux, Documentation/virt/kvm/x86/cpuid.rst.
    KvmNoIoDelay = KvmEax 1 ["kvm_nopiodelay"] false [Hypervisor];
    KvmClock = KvmEax 3 ["kvmclock"] false [Hypervisor, Msr, Tsc];
    KvmClockStable = KvmEax 24 ["kvmclock_stable_bit"] false [KvmClock];
}

impl Feature {
    fn row(self) -> &'static Row {
        &ROWS[self as usize]
    }
    fn mask(self) -> u32 {
        1 << self.row().bit
    }
    /// The name that listings use.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().names[0]
    }
    /// Its instructions run on the host, so the host must have it.
    #[must_use]
    pub fn runs_on_host(self) -> bool {
        self.row().on_host
    }
    /// Finds a feature by any of its names; case doesn't count, and `-` and `.` are as good as `_`.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase().replace(['-', '.'], "_");
        Self::ALL.iter().copied().find(|feature| feature.row().names.contains(&name.as_str()))
    }
}

/// What decides whether an instruction exists.
pub(super) enum Presence {
    Always,
    Never,
    With(Feature),
}

/// What decides whether instructions that iced files under `feature` exist on a model.
///
/// Instructions in the hint space (0F 0D, 0F 18 to 0F 1F) are NOPs where the feature is absent, and
/// so exist always: that covers PREFETCHW, ENDBR and CLDEMOTE. RDSSP is one of them (compilers'
/// unwinders rely on it); the other shadow stack instructions share its iced feature and must have
/// no handler.
pub(super) fn presence(feature: CpuidFeature) -> Presence {
    use CpuidFeature as C;
    use Feature as F;
    use Presence::{Always, Never, With};
    match feature {
        C::INTEL8086
        | C::INTEL186
        | C::INTEL286
        | C::INTEL386
        | C::INTEL486
        | C::CPUID
        | C::FPU
        | C::FPU287
        | C::FPU387
        | C::MULTIBYTENOP
        | C::PAUSE
        | C::RDPMC
        | C::PREFETCHW
        | C::PREFETCHWT1
        | C::PREFETCHITI
        | C::CLDEMOTE
        | C::CET_IBT
        | C::CET_SS
        // F3 0F 09 without WBNOINVD is WBINVD with a prefix that doesn't count.
        | C::WBNOINVD => Always,
        C::X64 => With(F::Lm),
        C::ADX => With(F::Adx),
        C::AES => With(F::Aes),
        C::AVX => With(F::Avx),
        C::AVX2 => With(F::Avx2),
        C::BMI1 => With(F::Bmi1),
        C::BMI2 => With(F::Bmi2),
        C::CLFLUSHOPT => With(F::Clflushopt),
        C::CLFSH => With(F::Clfsh),
        C::CLWB => With(F::Clwb),
        C::CMOV => With(F::Cmov),
        C::CMPXCHG16B => With(F::Cx16),
        C::CX8 => With(F::Cx8),
        C::F16C => With(F::F16c),
        C::FMA => With(F::Fma),
        C::FSGSBASE => With(F::Fsgsbase),
        C::FXSR => With(F::Fxsr),
        C::INVPCID => With(F::Invpcid),
        C::LZCNT => With(F::Lzcnt),
        C::MMX => With(F::Mmx),
        C::MOVBE => With(F::Movbe),
        C::MSR => With(F::Msr),
        C::PCLMULQDQ => With(F::Pclmulqdq),
        C::POPCNT => With(F::Popcnt),
        C::RDPID => With(F::Rdpid),
        C::RDRAND => With(F::Rdrand),
        C::RDSEED => With(F::Rdseed),
        C::RDTSCP => With(F::Rdtscp),
        C::SEP => With(F::Sep),
        C::SHA => With(F::Sha),
        C::SMAP => With(F::Smap),
        C::SSE => With(F::Sse),
        C::SSE2 => With(F::Sse2),
        C::SSE3 => With(F::Sse3),
        C::SSE4_1 => With(F::Sse41),
        C::SSE4_2 => With(F::Sse42),
        C::SSSE3 => With(F::Ssse3),
        C::SYSCALL => With(F::Syscall),
        C::TSC => With(F::Tsc),
        C::XSAVE => With(F::Xsave),
        C::XSAVEC => With(F::Xsavec),
        C::XSAVEOPT => With(F::Xsaveopt),
        _ => Never,
    }
}
