//! CPU models: which processor the guest sees.
//!
//! Problem: CPUID must promise exactly what both engines carry through, say the same on every host
//! for the named models, and let Linux skip calibrations and mitigations that make no sense here.
//! Scheme: a model is a name, a family signature and a [`FeatureSet`]; every feature has a row in
//! [`feature`], and bits without a row are never shown (default deny, also for the `host` model).
//! Leaves are computed from that when they are asked for, as some depend on the vCPU's state (XCR0,
//! CR4.OSXSAVE, 64-bit mode): [`leaves`] has those of all makers and Intel's, [`amd`] has AMD's.
//! [`CpuidModel::allows`] answers the decoder: an instruction whose feature is absent is #UD.
//!
//! Vendors: where Intel's and AMD's processors differ, the guest gets what the vendor does that CPUID
//! names (docs/decisions/2026-11-27-vendor-behaviour.md lists the places).
//!
//! Speculation: the host's mitigations protect the host, and the guest's code never runs in a way that
//! the guest's own could help. `IA32_ARCH_CAPABILITIES`, or the bits that AMD has in its place, therefore
//! deny every weakness that has a bit, and offer enhanced or automatic IBRS, the one cheap answer to the
//! weakness that has none.
//!
//! Invariants: a feature is present only with all features that it needs; features whose instructions
//! run on the host are present only if the host has them. Immutable once vCPUs run; any thread.
//! Source: SDM vol. 2, "CPUID-CPU Identification"; SDM vol. 4, "IA32_ARCH_CAPABILITIES"; APM vol. 3,
//! "Obtaining Processor Information Via the CPUID Instruction".

mod amd;
mod feature;
mod host;
mod leaves;

use std::fmt;

pub use feature::Feature;
use feature::{FeatureSet, Presence, presence};
use host::Host;
use iced_x86::{CpuidFeature, DecoderOptions};

/// Frequency of the core crystal clock and so of the local APIC timer's input: Linux takes one for the
/// other (`native_calibrate_tsc`).
pub const CRYSTAL_HZ: u64 = 1_000_000_000;

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
        F::KvmNoIoDelay,
        F::KvmClock,
        F::KvmClockStable,
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
        F::KvmNoIoDelay,
        F::KvmClock,
        F::KvmClockStable,
        F::Umip,
        F::Pcid,
        F::Invpcid,
        F::Smep,
        F::Smap,
        F::Nx,
        F::Pdpe1gb,
    ]
};

/// What says of an Intel processor how it keeps x87 pointers, and of which weaknesses it is free.
const OF_INTEL: &[Feature] =
    &[Feature::FdpExcptnOnly, Feature::ZeroFcsFds, Feature::ArchCapabilities, Feature::SpecCtrl];

/// The same of an AMD processor.
const OF_AMD: &[Feature] = {
    use Feature as F;
    &[
        F::XsaveErPtr,
        F::SsbNo,
        F::LfenceSerializing,
        F::NullSelectorClearsBase,
        F::AutoIbrs,
        F::SrsoNo,
        F::TsaSqNo,
        F::TsaL1No,
    ]
};

/// Signature of a named model when AMD is said to have made it: Zen 3.
const AMD_SIGNATURE: u32 = 0x00a0_0f11;

/// Why there is no such model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuidError {
    UnknownModel {
        name: String,
    },
    UnknownFeature {
        name: String,
    },
    UnknownVendor {
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
            Self::UnknownVendor { name } => {
                write!(f, "unknown CPU vendor '{name}' (known: intel, amd)")
            }
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
    /// The model that `MODEL[,vendor=intel|amd][,+feature|,-feature]...` describes. A feature that is
    /// switched on brings what it needs; one that is switched off takes along what needs it.
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
            if let Some(vendor) = switch.strip_prefix("vendor=") {
                model.set_vendor(match vendor.to_ascii_lowercase().as_str() {
                    "intel" | "genuineintel" => Vendor::Intel,
                    "amd" | "authenticamd" => Vendor::Amd,
                    _ => return Err(CpuidError::UnknownVendor { name: vendor.to_owned() }),
                });
                continue;
            }
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
            "x86-64-v2" => {
                intel(0x106a3, "Xenolith x86-64-v2 processor", 40, &[I686, V2, OF_INTEL])
            }
            "x86-64-v3" => {
                intel(0x306c3, "Xenolith x86-64-v3 processor", 40, &[I686, V2, V3, OF_INTEL])
            }
            "i686" => intel(0x00f29, "Xenolith i686 processor", 36, &[I686, OF_INTEL]),
            _ => return None,
        })
    }

    fn host(host: &Host) -> Self {
        let mut features = host.features;
        for &feature in WITHOUT_HOST {
            features.enable(feature);
        }
        features.close();
        let mut model = Self {
            vendor: host.vendor,
            signature: host.signature,
            brand: host.brand,
            features,
            physical_bits: host.physical_bits,
            vcpus: 1,
            tsc_hz: 0,
        };
        model.set_features_of_vendor();
        model
    }

    /// Has the features that go with the vendor, and none that go with another.
    fn set_features_of_vendor(&mut self) {
        let (own, foreign) = match self.vendor() {
            Vendor::Amd => (OF_AMD, OF_INTEL),
            Vendor::Intel | Vendor::Other => (OF_INTEL, OF_AMD),
        };
        for &feature in foreign {
            self.features.disable(feature);
        }
        // Not what they need: a model without long mode has no automatic IBRS.
        for &feature in own {
            self.features.insert(feature);
        }
        self.features.close();
    }

    /// Makes it another vendor's processor. A signature that means something else with the other vendor
    /// goes too.
    fn set_vendor(&mut self, vendor: Vendor) {
        if vendor == self.vendor() {
            return;
        }
        (self.vendor, self.signature) = match vendor {
            Vendor::Amd => (*b"AuthenticAMD", AMD_SIGNATURE),
            // Haswell.
            Vendor::Intel | Vendor::Other => (*b"GenuineIntel", 0x306c3),
        };
        if !self.brand.starts_with(b"Xenolith") {
            self.brand = padded_brand(b"Xenolith processor");
        }
        self.set_features_of_vendor();
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
    /// that doesn't count; AMD's processors heed an operand size prefix at near branches in 64-bit code,
    /// and no REX.W at far pointers.
    #[must_use]
    pub fn decoder_options(&self) -> u32 {
        let mut options = DecoderOptions::NO_WBNOINVD;
        if self.vendor() == Vendor::Amd {
            options |= DecoderOptions::AMD;
        }
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
}

fn padded_brand(text: &[u8]) -> [u8; 48] {
    let mut brand = [0; 48];
    let len = text.len().min(47);
    brand[..len].copy_from_slice(&text[..len]);
    brand
}

#[cfg(test)]
mod tests;
