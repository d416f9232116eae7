//! What of the host's processor emitted code depends on.
//!
//! Problem: the same guest code is best emitted differently for different hosts. Scheme: whoever makes blocks asks
//! once, and may say that there is less than there is. Any thread.

use std::arch::x86_64::__cpuid_count;

/// CPUID leaf 7, sub-leaf 0, EDX: short repeats of MOVSB start at once. SDM vol. 2, CPUID.
const FSRM: u32 = 1 << 4;
/// Leaf 7, sub-leaf 1, EAX: short repeats of STOSB do.
const FSRS: u32 = 1 << 11;

/// Features that code is emitted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    pub bmi2: bool,
    /// Short repeats of MOVSB, and of STOSB, are as fast as anything.
    pub fsrm: bool,
    pub fsrs: bool,
}

impl Host {
    /// A host with nothing that isn't on all of them.
    pub const OLD: Self = Self { bmi2: false, fsrm: false, fsrs: false };

    /// This one.
    #[must_use]
    pub fn detect() -> Self {
        if !std::arch::is_x86_feature_detected!("bmi2") {
            return Self::OLD;
        }
        // Whoever has BMI2 has this leaf.
        let seven = __cpuid_count(7, 0);
        Self {
            bmi2: true,
            fsrm: seven.edx & FSRM != 0,
            fsrs: seven.eax >= 1 && __cpuid_count(7, 1).eax & FSRS != 0,
        }
    }
}
