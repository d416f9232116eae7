//! The processor we run on, as CPUID tells.
//!
//! Problem: the `host` model and the check that a model's vector instructions exist here need the host's
//! features. Scheme: they are read once a model is made, and cut to the rows of [`super::feature`].
//! Invariant: a feature whose state the host's system doesn't save is absent. Any thread.

use std::arch::x86_64::{__cpuid, __cpuid_count};

use super::feature::{Feature, FeatureSet};

/// The processor we run on.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub vendor: [u8; 12],
    pub signature: u32,
    pub brand: [u8; 48],
    pub features: FeatureSet,
    pub physical_bits: u8,
}

impl Host {
    pub fn read() -> Self {
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
            // What AMD's processors say of themselves goes with the vendor.
            0,
            0,
            0,
            // The hypervisor is we.
            0,
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
