//! CPUID's leaves: what all processors have, and Intel's.
//!
//! Problem: one model answers for a thousand leaves, some of which depend on the vCPU. Scheme: a leaf is
//! computed from the model's features when it is asked for; AMD's own leaves are in [`super::amd`], which
//! is asked first. Invariant: what is not described here reads as zero, or beyond the highest leaf as the
//! vendor has it. Any thread. Source: SDM vol. 2, "CPUID"; Linux,
//! Documentation/virt/kvm/x86/cpuid.rst for the hypervisor range.

use super::feature::{Feature, Word};
use super::{CRYSTAL_HZ, CpuidModel, Vendor};
use crate::state::{CpuState, Cr4};

const HIGHEST_BASIC_INTEL: u32 = 0x16;
const HIGHEST_BASIC_OTHER: u32 = 0xd;
const HIGHEST_EXTENDED: u32 = 0x8000_0008;
const HIGHEST_EXTENDED_AMD: u32 = 0x8000_0021;
const HYPERVISOR_BASE: u32 = 0x4000_0000;
pub(super) const HYPERVISOR_SIGNATURE: &[u8; 12] = b"XenolithXeno";
/// Guests look for the interface that they know at each multiple of 0x100.
const KVM_BASE: u32 = 0x4000_0100;
const KVM_FEATURES: u32 = KVM_BASE + 1;
const KVM_SIGNATURE: &[u8; 12] = b"KVMKVMKVM\0\0\0";
/// The clock by its older MSR numbers.
const KVM_OLD_CLOCK: u32 = 1;

/// Bytes of the x87 and SSE region with the XSAVE header, and of the AVX component after it.
const XSAVE_LEGACY_BYTES: u32 = 512 + 64;
const XSAVE_AVX_BYTES: u32 = 256;

impl CpuidModel {
    /// EAX, EBX, ECX and EDX of a CPUID leaf on the vCPU with `apic_id` in `state`.
    #[must_use]
    pub fn query(&self, leaf: u32, subleaf: u32, state: &CpuState, apic_id: u32) -> [u32; 4] {
        let hypervisor = self.has(Feature::Hypervisor);
        let known = match leaf {
            0..HYPERVISOR_BASE => leaf <= self.highest_basic(),
            HYPERVISOR_BASE..=0x4000_01ff if hypervisor => return self.hypervisor_leaf(leaf),
            HYPERVISOR_BASE..0x8000_0000 => false,
            0x8000_0000.. => leaf <= self.highest_extended(),
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

    fn highest_extended(&self) -> u32 {
        if self.vendor() == Vendor::Amd { HIGHEST_EXTENDED_AMD } else { HIGHEST_EXTENDED }
    }

    fn leaf(&self, leaf: u32, subleaf: u32, state: &CpuState, apic_id: u32) -> [u32; 4] {
        if self.vendor() == Vendor::Amd
            && let Some(registers) = self.leaf_of_amd(leaf, subleaf, apic_id)
        {
            return registers;
        }
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
                [self.highest_extended(), ebx, ecx, edx]
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
            0x8000_0008 => [self.address_bits(), 0, 0, 0],
            _ => [0; 4],
        }
    }

    /// Physical and linear address widths, as leaf 0x8000_0008 has them.
    pub(super) fn address_bits(&self) -> u32 {
        let linear_bits = if self.has(Feature::Lm) { 48 } else { 32 };
        u32::from(self.physical_bits) | linear_bits << 8
    }

    /// Bits of an APIC id that tell the package's vCPUs apart.
    pub(super) fn id_bits(&self) -> u32 {
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

    /// Leaves that a hypervisor answers: who we are, and what we offer as KVM does.
    fn hypervisor_leaf(&self, leaf: u32) -> [u32; 4] {
        let named = |highest: u32, name| {
            let [ebx, ecx, edx] = three_words(name);
            [highest, ebx, ecx, edx]
        };
        let mut offered = self.features.word(Word::KvmEax);
        if self.has(Feature::KvmClock) {
            offered |= KVM_OLD_CLOCK;
        }
        match leaf {
            HYPERVISOR_BASE => named(HYPERVISOR_BASE, HYPERVISOR_SIGNATURE),
            KVM_BASE if offered != 0 => named(KVM_FEATURES, KVM_SIGNATURE),
            KVM_FEATURES => [offered, 0, 0, 0],
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

fn three_words(text: &[u8; 12]) -> [u32; 3] {
    let (words, _) = text.as_chunks::<4>();
    [words[0], words[1], words[2]].map(u32::from_le_bytes)
}
