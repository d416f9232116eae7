//! CPUID leaves as AMD's processors have them.
//!
//! Problem: systems ask an AMD processor for caches, topology and cures of weaknesses in other leaves than
//! an Intel one. Scheme: these leaves stand before the common ones. Invariant: caches and topology say the
//! same as Intel's leaves 4 and 0xB do of the same model: each vCPU is a core of one thread with its own
//! L1 and L2, all in one package and one node, sharing the L3. Any thread. Source: APM vol. 3,
//! "Obtaining Processor Information Via the CPUID Instruction".

use super::CpuidModel;
use super::feature::Word;

/// Bits of leaf 1's EDX that leaf 0x8000_0001 repeats: 0-9, 12-17, 23, 24.
const REPEATED: u32 = 0x0183_f3ff;
/// Leaf 0x8000_0001, ECX: leaf 1's EBX counts cores, not threads.
const CMP_LEGACY: u32 = 1 << 1;
/// Leaves 0x8000_001D and 0x8000_001E exist.
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;

/// L1 TLBs: 64 entries each, fully associative.
const L1_TLB: u32 = 0xff40_ff40;
/// L1 caches: 32 KiB, 8 ways, one line a tag, 64 bytes a line.
const L1_CACHE: u32 = 32 << 24 | 8 << 16 | 1 << 8 | 64;
/// L2: 512 KiB, 8 ways (6). L3: 16 times 512 KiB, 16 ways (8).
const L2_CACHE: u32 = 512 << 16 | 6 << 12 | 1 << 8 | 64;
const L3_CACHE: u32 = 16 << 18 | 8 << 12 | 1 << 8 | 64;

impl CpuidModel {
    /// `None`: as leaves of all makers.
    pub(super) fn leaf_of_amd(&self, leaf: u32, subleaf: u32, apic_id: u32) -> Option<[u32; 4]> {
        let word = |word| self.features.word(word);
        Some(match leaf {
            // Caches are told by 0x8000_001D, the clock's frequency not at all.
            2 | 4 | 0x15 | 0x16 => [0; 4],
            0x8000_0001 => {
                let several = if self.vcpus > 1 { CMP_LEGACY } else { 0 };
                let ecx = word(Word::ExtendedEcx) | several | TOPOLOGY_EXTENSIONS;
                let edx = word(Word::ExtendedEdx) | word(Word::Leaf1Edx) & REPEATED;
                [self.signature, 0, ecx, edx]
            }
            0x8000_0005 => [L1_TLB, L1_TLB, L1_CACHE, L1_CACHE],
            0x8000_0006 => [0, 0, L2_CACHE, L3_CACHE],
            0x8000_0008 => {
                let cores = (self.vcpus - 1).min(0xff) | self.id_bits() << 12;
                [self.address_bits(), word(Word::AddressEbx), cores, 0]
            }
            0x8000_001d => self.leaf_of_caches(subleaf),
            // The core's number among those with one thread, in node 0 of 1.
            0x8000_001e => [apic_id, apic_id & 0xff, 0, 0],
            0x8000_0021 => [word(Word::Extended2Eax), 0, word(Word::Extended2Ecx), 0],
            _ => return None,
        })
    }

    fn leaf_of_caches(&self, subleaf: u32) -> [u32; 4] {
        const SELF_INITIALISING: u32 = 1 << 8;
        /// WBINVD does not reach the caches below.
        const WBINVD: u32 = 1 << 0;
        const INCLUSIVE: u32 = 1 << 1;
        let all = ((1_u32 << self.id_bits()) - 1).min(0xfff);
        let cache = |kind: u32, level: u32, sharing: u32, ways: u32, sets: u32, edx: u32| {
            let eax = kind | level << 5 | SELF_INITIALISING | sharing << 14;
            [eax, (ways - 1) << 22 | (64 - 1), sets - 1, edx]
        };
        match subleaf {
            // Data, instructions, unified: as L1_CACHE, L2_CACHE and L3_CACHE say.
            0 => cache(1, 1, 0, 8, 64, 0),
            1 => cache(2, 1, 0, 8, 64, 0),
            2 => cache(3, 2, 0, 8, 1024, INCLUSIVE),
            3 => cache(3, 3, all, 16, 8192, WBINVD),
            _ => [0; 4],
        }
    }
}
