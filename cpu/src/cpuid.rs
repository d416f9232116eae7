//! CPU models: which processor the guest sees.
//!
//! Problem: CPUID must promise exactly what both engines carry through, say the same on every host
//! for the named models, and let Linux skip calibrations and mitigations that make no sense here.
//! Scheme: a model is a name, a family signature and a [`FeatureSet`]; every feature has a row in
//! [`feature`], and bits without a row are never shown (default deny, also for the `host` model).
//! Leaves are computed from that when they are asked for, as some depend on the vCPU's state (XCR0,
//! CR4.OSXSAVE, 64-bit mode). [`CpuidModel::allows`] answers the decoder: an instruction whose feature
//! is absent is #UD.
//!
//! Speculation: the host's mitigations protect the host, and the guest's code never runs in a way that
//! the guest's own could help. `IA32_ARCH_CAPABILITIES` therefore denies every weakness that has a
//! bit, and offers enhanced IBRS, the one cheap answer to the weakness that has none.
//!
//! Invariants: a feature is present only with all features that it needs; features whose instructions
//! run on the host are present only if the host has them. Immutable once vCPUs run; any thread.
//! Source: SDM vol. 2, "CPUID-CPU Identification"; SDM vol. 4, "IA32_ARCH_CAPABILITIES"; Linux,
//! Documentation/virt/kvm/x86/cpuid.rst for the hypervisor range.

mod feature;

use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::fmt;

pub use feature::Feature;
use feature::{FeatureSet, Presence, Word, presence};
use iced_x86::{CpuidFeature, DecoderOptions};

use crate::state::{CpuState, Cr4};

/// Frequency of the core crystal clock and so of the local APIC timer's input: Linux takes one for the
/// other (`native_calibrate_tsc`).
pub const CRYSTAL_HZ: u64 = 1_000_000_000;

const HIGHEST_BASIC_INTEL: u32 = 0x16;
const HIGHEST_BASIC_OTHER: u32 = 0xd;
const HIGHEST_EXTENDED: u32 = 0x8000_0008;
const HYPERVISOR_BASE: u32 = 0x4000_0000;
const HYPERVISOR_SIGNATURE: &[u8; 12] = b"XenolithXeno";

/// Bytes of the x87 and SSE region with the XSAVE header, and of the AVX component after it.
const XSAVE_LEGACY_BYTES: u32 = 512 + 64;
const XSAVE_AVX_BYTES: u32 = 256;

/// Who made the processor, as far as it decides how instructions behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    Intel,
    /// AMD or Hygon.
    Amd,
    Other,
}

/// A model that `--cpu` names.
#[derive(Clone, Copy, Debug)]
struct Named {
    name: &'static str,
    summary: &'static str,
}

const MODELS: &[Named] = &[
    Named { name: "host", summary: "this host's processor, cut to what is carried through" },
    Named { name: "x86-64-v2", summary: "Nehalem class: SSE4.2, POPCNT, CMPXCHG16B" },
    Named { name: "x86-64-v3", summary: "Haswell class: AVX2, FMA, BMI, MOVBE, LZCNT" },
    Named { name: "i686", summary: "32-bit Pentium 4 class: SSE2, PAE, no 64-bit mode" },
];

/// What a Pentium 4 has.
const I686: &[Feature] = {
    use Feature as F;
    &[
        F::Fpu,
        F::Vme,
        F::De,
        F::Pse,
        F::Tsc,
        F::Msr,
        F::Pae,
        F::Mce,
        F::Cx8,
        F::Apic,
        F::Sep,
        F::Mtrr,
        F::Pge,
        F::Mca,
        F::Cmov,
        F::Pat,
        F::Pse36,
        F::Clfsh,
        F::Mmx,
        F::Fxsr,
        F::Sse,
        F::Sse2,
        // Ours.
        F::Hypervisor,
        F::InvariantTsc,
        F::ArchCapabilities,
        F::SpecCtrl,
    ]
};

/// What x86-64-v2 adds to that.
const V2: &[Feature] = {
    use Feature as F;
    &[
        F::Sse3,
        F::Ssse3,
        F::Sse41,
        F::Sse42,
        F::Cx16,
        F::Popcnt,
        F::Lm,
        F::LahfLm,
        F::Syscall,
        F::Nx,
        F::Rdtscp,
        F::X2apic,
        F::TscDeadline,
        F::TscAdjust,
    ]
};

/// What x86-64-v3 adds to that.
const V3: &[Feature] = {
    use Feature as F;
    &[
        F::Pclmulqdq,
        F::Fma,
        F::Pcid,
        F::Movbe,
        F::Aes,
        F::Xsave,
        F::Xsaveopt,
        F::Avx,
        F::F16c,
        F::Rdrand,
        F::Fsgsbase,
        F::Bmi1,
        F::Avx2,
        F::Smep,
        F::Bmi2,
        F::Erms,
        F::Invpcid,
        F::FdpExcptnOnly,
        F::ZeroFcsFds,
        F::Lzcnt,
        F::Pdpe1gb,
    ]
};

/// Features that we carry through whatever the host's processor is.
const WITHOUT_HOST: &[Feature] = {
    use Feature as F;
    &[
        F::Apic,
        F::X2apic,
        F::TscDeadline,
        F::TscAdjust,
        F::Hypervisor,
        F::InvariantTsc,
        F::ArchCapabilities,
        F::SpecCtrl,
        F::Umip,
        F::Pcid,
        F::Invpcid,
        F::Smep,
        F::Smap,
        F::Nx,
        F::Pdpe1gb,
        F::FdpExcptnOnly,
        F::ZeroFcsFds,
    ]
};

/// Why there is no such model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuidError {
    UnknownModel {
        name: String,
    },
    UnknownFeature {
        name: String,
    },
    /// A switch without `+` or `-` before it.
    NoSign {
        switch: String,
    },
    /// The model's instructions run on the host, which hasn't got them.
    HostLacks {
        model: String,
        features: Vec<Feature>,
    },
}

impl fmt::Display for CpuidError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownModel { name } => {
                let known: Vec<_> = list_models().map(|(name, _)| name).collect();
                write!(f, "unknown CPU model '{name}' (known: {})", known.join(", "))
            }
            Self::UnknownFeature { name } => write!(f, "unknown CPU feature '{name}'"),
            Self::NoSign { switch } => {
                write!(f, "CPU feature '{switch}' needs a + or - before it")
            }
            Self::HostLacks { model, features } => {
                let names: Vec<_> = features.iter().map(|feature| feature.name()).collect();
                let without: Vec<_> = names.iter().map(|name| format!(",-{name}")).collect();
                write!(
                    f,
                    "CPU model '{model}' needs host CPU features that are absent here: {} (try --cpu {model}{})",
                    names.join(", "),
                    without.concat()
                )
            }
        }
    }
}

impl std::error::Error for CpuidError {}

/// Names and one-line descriptions of the models.
pub fn list_models() -> impl Iterator<Item = (&'static str, &'static str)> {
    MODELS.iter().map(|model| (model.name, model.summary))
}

/// Names of the features that `+` and `-` switch.
pub fn list_features() -> impl Iterator<Item = &'static str> {
    Feature::ALL.iter().map(|feature| feature.name())
}

/// A processor as the guest sees it.
#[derive(Clone, Debug)]
pub struct CpuidModel {
    vendor: [u8; 12],
    signature: u32,
    brand: [u8; 48],
    features: FeatureSet,
    physical_bits: u8,
    vcpus: u32,
    tsc_hz: u64,
}

impl CpuidModel {
    /// The model that `MODEL[,+feature|,-feature]...` describes. A feature that is switched on brings
    /// what it needs; one that is switched off takes along what needs it.
    ///
    /// # Errors
    /// The specification names something unknown, or wants the impossible of this host.
    pub fn parse(spec: &str) -> Result<Self, CpuidError> {
        Self::parse_on(spec, &Host::read())
    }

    fn parse_on(spec: &str, host: &Host) -> Result<Self, CpuidError> {
        let mut parts = spec.split(',').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let mut model = Self::named(name, host)
            .ok_or_else(|| CpuidError::UnknownModel { name: name.to_owned() })?;
        for switch in parts {
            let (on, feature) = match (switch.strip_prefix('+'), switch.strip_prefix('-')) {
                (Some(feature), _) => (true, feature),
                (None, Some(feature)) => (false, feature),
                (None, None) => return Err(CpuidError::NoSign { switch: switch.to_owned() }),
            };
            let feature = Feature::by_name(feature)
                .ok_or_else(|| CpuidError::UnknownFeature { name: feature.to_owned() })?;
            if on {
                model.features.enable(feature);
            } else {
                model.features.disable(feature);
            }
        }
        let missing: Vec<_> = Feature::ALL
            .iter()
            .copied()
            .filter(|&f| f.runs_on_host() && model.has(f) && !host.features.contains(f))
            .collect();
        if missing.is_empty() {
            Ok(model)
        } else {
            Err(CpuidError::HostLacks { model: name.to_owned(), features: missing })
        }
    }

    fn named(name: &str, host: &Host) -> Option<Self> {
        let intel = |signature, brand: &str, physical_bits, sets: &[&[Feature]]| Self {
            vendor: *b"GenuineIntel",
            signature,
            brand: padded_brand(brand.as_bytes()),
            features: FeatureSet::of(&sets.concat()),
            physical_bits,
            vcpus: 1,
            tsc_hz: 0,
        };
        Some(match name.to_ascii_lowercase().as_str() {
            "host" => Self::host(host),
            // Nehalem, Haswell and Northwood.
            "x86-64-v2" => intel(0x106a3, "Xenolith x86-64-v2 processor", 40, &[I686, V2]),
            "x86-64-v3" => intel(0x306c3, "Xenolith x86-64-v3 processor", 40, &[I686, V2, V3]),
            "i686" => intel(0x00f29, "Xenolith i686 processor", 36, &[I686]),
            _ => return None,
        })
    }

    fn host(host: &Host) -> Self {
        let mut features = host.features;
        for &feature in WITHOUT_HOST {
            features.enable(feature);
        }
        features.close();
        Self {
            vendor: host.vendor,
            signature: host.signature,
            brand: host.brand,
            features,
            physical_bits: host.physical_bits,
            vcpus: 1,
            tsc_hz: 0,
        }
    }

    /// Number of vCPUs in the package, for the topology leaves.
    pub fn set_vcpus(&mut self, vcpus: u32) {
        self.vcpus = vcpus.clamp(1, 1 << 16);
    }

    /// Frequency of the time stamp counter, so that guests need not measure it. 0: not told.
    pub fn set_tsc_hz(&mut self, hz: u64) {
        self.tsc_hz = hz;
    }

    /// CPUID.1:EAX: family, model and stepping.
    #[must_use]
    pub fn signature(&self) -> u32 {
        self.signature
    }

    /// MAXPHYADDR.
    #[must_use]
    pub fn physical_bits(&self) -> u8 {
        self.physical_bits
    }

    #[must_use]
    pub fn vendor(&self) -> Vendor {
        match &self.vendor {
            b"GenuineIntel" => Vendor::Intel,
            b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
            _ => Vendor::Other,
        }
    }

    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        self.features.contains(feature)
    }

    /// Features that are present, in the order of [`list_features`].
    pub fn features(&self) -> impl Iterator<Item = Feature> + '_ {
        Feature::ALL.iter().copied().filter(|&feature| self.has(feature))
    }

    /// XCR0 bits that may be set.
    #[must_use]
    pub fn xcr0_mask(&self) -> u64 {
        match (self.has(Feature::Xsave), self.has(Feature::Avx)) {
            (false, _) => 0,
            (true, false) => 3,
            (true, true) => 7,
        }
    }

    /// Whether instructions that iced files under `feature` exist; if not, they are #UD. An instruction
    /// exists if all of its `cpuid_features()` do.
    #[must_use]
    pub fn allows(&self, feature: CpuidFeature) -> bool {
        match presence(feature) {
            Presence::Always => true,
            Presence::Never => false,
            Presence::With(feature) => self.has(feature),
        }
    }

    /// Options for the decoder: without BMI1 and LZCNT, TZCNT and LZCNT are BSF and BSR with a prefix
    /// that doesn't count.
    #[must_use]
    pub fn decoder_options(&self) -> u32 {
        let mut options = DecoderOptions::NO_WBNOINVD;
        for (feature, option) in [
            (Feature::Bmi1, DecoderOptions::NO_MPFX_0FBC),
            (Feature::Lzcnt, DecoderOptions::NO_MPFX_0FBD),
            (Feature::LahfLm, DecoderOptions::NO_LAHF_SAHF_64),
        ] {
            if !self.has(feature) {
                options |= option;
            }
        }
        options
    }

    /// IA32_ARCH_CAPABILITIES; 0 where the model hasn't got the register.
    #[must_use]
    pub fn arch_capabilities(&self) -> u64 {
        const RDCL_NO: u64 = 1 << 0;
        const IBRS_ALL: u64 = 1 << 1;
        const SKIP_L1DFL_VMENTRY: u64 = 1 << 3;
        const SSB_NO: u64 = 1 << 4;
        const MDS_NO: u64 = 1 << 5;
        const IF_PSCHANGE_MC_NO: u64 = 1 << 6;
        const TAA_NO: u64 = 1 << 8;
        const SBDR_SSDP_NO: u64 = 1 << 13;
        const FBSDP_NO: u64 = 1 << 14;
        const PSDP_NO: u64 = 1 << 15;
        const BHI_NO: u64 = 1 << 20;
        const PBRSB_NO: u64 = 1 << 24;
        const GDS_NO: u64 = 1 << 26;
        const RFDS_NO: u64 = 1 << 27;
        const ITS_NO: u64 = 1 << 62;
        if !self.has(Feature::ArchCapabilities) {
            return 0;
        }
        RDCL_NO
            | SKIP_L1DFL_VMENTRY
            | SSB_NO
            | MDS_NO
            | IF_PSCHANGE_MC_NO
            | TAA_NO
            | SBDR_SSDP_NO
            | FBSDP_NO
            | PSDP_NO
            | BHI_NO
            | PBRSB_NO
            | GDS_NO
            | RFDS_NO
            | ITS_NO
            | if self.has(Feature::SpecCtrl) { IBRS_ALL } else { 0 }
    }

    /// EAX, EBX, ECX and EDX of a CPUID leaf on the vCPU with `apic_id` in `state`.
    #[must_use]
    pub fn query(&self, leaf: u32, subleaf: u32, state: &CpuState, apic_id: u32) -> [u32; 4] {
        let hypervisor = self.has(Feature::Hypervisor);
        let known = match leaf {
            0..HYPERVISOR_BASE => leaf <= self.highest_basic(),
            HYPERVISOR_BASE..=0x4000_00ff if hypervisor => return hypervisor_leaf(leaf),
            HYPERVISOR_BASE..0x8000_0000 => false,
            0x8000_0000.. => leaf <= HIGHEST_EXTENDED,
        };
        // Beyond the highest leaf Intel repeats the highest basic one; others answer zero.
        match (known, self.vendor()) {
            (true, _) => self.leaf(leaf, subleaf, state, apic_id),
            (false, Vendor::Intel) => self.leaf(self.highest_basic(), subleaf, state, apic_id),
            (false, _) => [0; 4],
        }
    }

    fn highest_basic(&self) -> u32 {
        if self.vendor() == Vendor::Intel { HIGHEST_BASIC_INTEL } else { HIGHEST_BASIC_OTHER }
    }

    fn leaf(&self, leaf: u32, subleaf: u32, state: &CpuState, apic_id: u32) -> [u32; 4] {
        let word = |word| self.features.word(word);
        let intel = self.vendor() == Vendor::Intel;
        match leaf {
            0 => {
                let [ebx, edx, ecx] = three_words(&self.vendor);
                [self.highest_basic(), ebx, ecx, edx]
            }
            1 => self.leaf_1(state, apic_id),
            // Leaf 4 describes the caches; 64-byte prefetch.
            2 if intel => [0x00fe_ff01, 0xf0, 0, 0],
            4 if intel => self.leaf_4(subleaf),
            // The local APIC timer runs in all sleep states.
            6 => [1 << 2, 0, 0, 0],
            7 if subleaf == 0 => {
                [0, word(Word::Leaf7Ebx), word(Word::Leaf7Ecx), word(Word::Leaf7Edx)]
            }
            0xb => self.leaf_b(subleaf, apic_id),
            0xd => self.leaf_d(subleaf, state),
            0x15 => self.leaf_15(),
            0x16 => match self.tsc_hz.saturating_add(500_000) / 1_000_000 {
                0 => [0; 4],
                mhz => [mhz.min(0xffff) as u32, mhz.min(0xffff) as u32, 100, 0],
            },
            0x8000_0000 => {
                let [ebx, edx, ecx] = if intel { [0; 3] } else { three_words(&self.vendor) };
                [HIGHEST_EXTENDED, ebx, ecx, edx]
            }
            0x8000_0001 => {
                let mut edx = word(Word::ExtendedEdx);
                if intel && !state.is_64bit() {
                    // Intel's has SYSCALL, and so reports it, in 64-bit mode only.
                    edx &= !(1 << 11);
                }
                let eax = if intel { 0 } else { self.signature };
                [eax, 0, word(Word::ExtendedEcx), edx]
            }
            0x8000_0002..=0x8000_0004 => {
                let at = (leaf - 0x8000_0002) as usize * 16;
                let (words, _) = self.brand[at..at + 16].as_chunks::<4>();
                [0, 1, 2, 3].map(|n: usize| u32::from_le_bytes(words[n]))
            }
            // L2: 256 KiB, 8 ways, lines of 64 bytes.
            0x8000_0006 => [0, 0, 256 << 16 | 6 << 12 | 64, 0],
            0x8000_0007 => [0, 0, 0, word(Word::PowerEdx)],
            0x8000_0008 => {
                let linear_bits = if self.has(Feature::Lm) { 48 } else { 32 };
                let cores =
                    if intel { 0 } else { (self.vcpus - 1).min(0xff) | self.id_bits() << 12 };
                [u32::from(self.physical_bits) | linear_bits << 8, 0, cores, 0]
            }
            _ => [0; 4],
        }
    }

    /// Bits of an APIC id that tell the package's vCPUs apart.
    fn id_bits(&self) -> u32 {
        self.vcpus.next_power_of_two().trailing_zeros()
    }

    fn leaf_1(&self, state: &CpuState, apic_id: u32) -> [u32; 4] {
        let mut ecx = self.features.word(Word::Leaf1Ecx);
        let mut edx = self.features.word(Word::Leaf1Edx);
        if self.has(Feature::Xsave) && state.cr4(Cr4::OSXSAVE) {
            ecx |= 1 << 27;
        }
        if self.vcpus > 1 {
            // HTT: the package holds more than one logical processor.
            edx |= 1 << 28;
        }
        let ids = (1 << self.id_bits()).min(0xff_u32);
        let line = if self.has(Feature::Clfsh) { 64 / 8 } else { 0 };
        [self.signature, (apic_id & 0xff) << 24 | ids << 16 | line << 8, ecx, edx]
    }

    /// Caches. Each vCPU is a core with its own L1 and L2; all share the L3.
    fn leaf_4(&self, subleaf: u32) -> [u32; 4] {
        const SELF_INITIALISING: u32 = 1 << 8;
        const INCLUSIVE: u32 = 1 << 1;
        let cores = ((1_u32 << self.id_bits()) - 1).min(0x3f);
        let sharing_l3 = ((1_u32 << self.id_bits()) - 1).min(0xfff);
        let cache = |kind: u32, level: u32, sharing: u32, ways: u32, sets: u32, edx: u32| {
            let eax = kind | level << 5 | SELF_INITIALISING | sharing << 14 | cores << 26;
            [eax, (ways - 1) << 22 | (64 - 1), sets - 1, edx]
        };
        match subleaf {
            // Data, instructions, unified: 32 KiB, 32 KiB, 256 KiB, 8 MiB.
            0 => cache(1, 1, 0, 8, 64, 0),
            1 => cache(2, 1, 0, 8, 64, 0),
            2 => cache(3, 2, 0, 8, 512, 0),
            3 => cache(3, 3, sharing_l3, 16, 8192, INCLUSIVE),
            _ => [0; 4],
        }
    }

    /// Topology: one thread a core, all cores in one package.
    fn leaf_b(&self, subleaf: u32, apic_id: u32) -> [u32; 4] {
        let ecx = subleaf & 0xff;
        match subleaf {
            0 => [0, 1, ecx | 1 << 8, apic_id],
            1 => [self.id_bits(), self.vcpus.min(0xffff), ecx | 2 << 8, apic_id],
            _ => [0, 0, ecx, apic_id],
        }
    }

    /// XSAVE areas.
    fn leaf_d(&self, subleaf: u32, state: &CpuState) -> [u32; 4] {
        let size = |xcr0: u64| XSAVE_LEGACY_BYTES + if xcr0 & 4 != 0 { XSAVE_AVX_BYTES } else { 0 };
        let mask = self.xcr0_mask();
        match subleaf {
            _ if mask == 0 => [0; 4],
            0 => [mask as u32, size(state.xcr0), size(mask), 0],
            1 => {
                let compacted = if self.has(Feature::Xsavec) { size(state.xcr0) } else { 0 };
                [self.features.word(Word::XsaveEax), compacted, 0, 0]
            }
            2 if mask & 4 != 0 => [XSAVE_AVX_BYTES, XSAVE_LEGACY_BYTES, 0, 0],
            _ => [0; 4],
        }
    }

    /// TSC frequency as a ratio to the crystal's.
    ///
    /// Linux multiplies the crystal's kHz by the numerator in 32 bits, so the fraction has to be
    /// coarse: the best one below that bound is within a part in a million.
    fn leaf_15(&self) -> [u32; 4] {
        if self.tsc_hz == 0 {
            return [0; 4];
        }
        let numerator_max = u64::from(u32::MAX) / (CRYSTAL_HZ / 1000);
        let (numerator, denominator) = best_fraction(self.tsc_hz, CRYSTAL_HZ, numerator_max);
        [denominator as u32, numerator as u32, CRYSTAL_HZ as u32, 0]
    }
}

/// The last convergent of `a / b` whose numerator and denominator are at most `max`.
fn best_fraction(a: u64, b: u64, max: u64) -> (u64, u64) {
    let (mut a, mut b) = (a, b);
    let (mut before, mut last) = ((0, 1), (1, 0));
    while b != 0 {
        let quotient = a / b;
        let next = |before: u64, last: u64| quotient.saturating_mul(last).saturating_add(before);
        let convergent = (next(before.0, last.0), next(before.1, last.1));
        if convergent.0 > max || convergent.1 > max {
            break;
        }
        (before, last) = (last, convergent);
        (a, b) = (b, a % b);
    }
    // A ratio above `max` has no convergent at all: say nothing rather than something wrong.
    if last.1 == 0 { (0, 0) } else { last }
}

fn hypervisor_leaf(leaf: u32) -> [u32; 4] {
    if leaf != HYPERVISOR_BASE {
        return [0; 4];
    }
    let [ebx, ecx, edx] = three_words(HYPERVISOR_SIGNATURE);
    [HYPERVISOR_BASE, ebx, ecx, edx]
}

fn three_words(text: &[u8; 12]) -> [u32; 3] {
    let (words, _) = text.as_chunks::<4>();
    [words[0], words[1], words[2]].map(u32::from_le_bytes)
}

fn padded_brand(text: &[u8]) -> [u8; 48] {
    let mut brand = [0; 48];
    let len = text.len().min(47);
    brand[..len].copy_from_slice(&text[..len]);
    brand
}

/// The processor we run on.
#[derive(Clone, Debug)]
struct Host {
    vendor: [u8; 12],
    signature: u32,
    brand: [u8; 48],
    features: FeatureSet,
    physical_bits: u8,
}

impl Host {
    fn read() -> Self {
        let basic = __cpuid(0);
        let extended = __cpuid(0x8000_0000).eax;
        let leaf = |leaf: u32, subleaf: u32| {
            let highest = if leaf < 0x8000_0000 { basic.eax } else { extended };
            if leaf > highest {
                return [0; 4];
            }
            let registers = __cpuid_count(leaf, subleaf);
            [registers.eax, registers.ebx, registers.ecx, registers.edx]
        };
        let [signature, _, leaf1_ecx, leaf1_edx] = leaf(1, 0);
        let [_, leaf7_ebx, leaf7_ecx, leaf7_edx] = leaf(7, 0);
        let [_, _, extended_ecx, extended_edx] = leaf(0x8000_0001, 0);

        // In the order of `Word`.
        let reported = [
            leaf1_ecx,
            leaf1_edx,
            leaf7_ebx,
            leaf7_ecx,
            leaf7_edx,
            leaf(0xd, 1)[0],
            extended_ecx,
            extended_edx,
            leaf(0x8000_0007, 0)[3],
        ];
        let ours = FeatureSet::of(Feature::ALL);
        let mut features = FeatureSet::default();
        for (index, word) in features.0.iter_mut().enumerate() {
            *word = reported[index] & ours.0[index];
        }
        let os_uses_xsave = leaf1_ecx & 1 << 27 != 0;
        if !os_uses_xsave {
            features.disable(Feature::Xsave);
        } else if host_xcr0() & 6 != 6 {
            features.disable(Feature::Avx);
        }
        features.close();

        let mut vendor = [0; 12];
        for (chunk, word) in vendor.chunks_mut(4).zip([basic.ebx, basic.edx, basic.ecx]) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        let mut brand = [0; 48];
        let brand_words = (0x8000_0002..=0x8000_0004).flat_map(|n| leaf(n, 0));
        for (chunk, word) in brand.chunks_mut(4).zip(brand_words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        let physical_bits = (leaf(0x8000_0008, 0)[0] & 0xff).clamp(36, 52) as u8;
        Self { vendor, signature, brand, features, physical_bits }
    }
}

/// XCR0 of the host. Only where CPUID.1:ECX.OSXSAVE is set.
fn host_xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller has seen OSXSAVE, so XGETBV of register 0 exists in user mode.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests;
