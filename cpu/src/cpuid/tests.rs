//! Tests of the CPU models.

use std::arch::x86_64::__cpuid;

use super::leaves::HYPERVISOR_SIGNATURE;
use super::*;
use crate::state::{CpuState, Cr4, Segment, sreg};
use Feature as F;

/// A host that has everything.
fn rich_host() -> Host {
    let mut host = Host::read();
    host.vendor = *b"GenuineIntel";
    host.features = FeatureSet::of(F::ALL);
    host
}

fn model(spec: &str) -> CpuidModel {
    CpuidModel::parse_on(spec, &rich_host()).expect(spec)
}

fn long_state() -> CpuState {
    let mut state = CpuState::reset(0);
    state.efer = 0x500;
    state.seg[sreg::CS].access |= Segment::LONG;
    state
}

fn query(model: &CpuidModel, leaf: u32, subleaf: u32) -> [u32; 4] {
    model.query(leaf, subleaf, &long_state(), 0)
}

#[test]
fn rows_are_distinct_and_needs_come_first() {
    for (index, &feature) in F::ALL.iter().enumerate() {
        assert_eq!(feature as usize, index);
        assert_eq!(F::by_name(feature.name()), Some(feature), "name used twice");
        assert_eq!(FeatureSet::of(&[feature]).0.iter().map(|w| w.count_ones()).sum::<u32>(), 1);
        for &other in &F::ALL[..index] {
            assert_ne!(FeatureSet::of(&[feature]), FeatureSet::of(&[other]), "bit used twice");
        }
        let mut alone = FeatureSet::default();
        alone.enable(feature);
        let mut closed = alone;
        closed.close();
        assert_eq!(closed, alone, "{feature:?} needs a later row");
    }
}

#[test]
fn specifications_that_make_no_sense_are_told_apart() {
    let error = |spec| CpuidModel::parse_on(spec, &rich_host()).expect_err(spec).to_string();
    assert_eq!(
        error("pentium"),
        "unknown CPU model 'pentium' (known: host, x86-64-v2, x86-64-v3, i686)"
    );
    assert!(error("").contains("unknown CPU model ''"));
    assert_eq!(error("host,+warp"), "unknown CPU feature 'warp'");
    assert_eq!(error("host,avx"), "CPU feature 'avx' needs a + or - before it");
    assert!(error("host,").contains("needs a + or -"));
    assert_eq!(error("host,+"), "unknown CPU feature ''");
    assert_eq!(error("host,vendor=via"), "unknown CPU vendor 'via' (known: intel, amd)");
}

#[test]
fn a_host_without_the_instructions_refuses_the_model() {
    let mut host = rich_host();
    host.features.disable(F::Avx);
    let error = CpuidModel::parse_on("x86-64-v3", &host).expect_err("no AVX");
    let CpuidError::HostLacks { ref features, .. } = error else { panic!("{error}") };
    assert_eq!(features, &[F::Avx, F::Fma, F::F16c, F::Avx2]);
    assert_eq!(
        error.to_string(),
        "CPU model 'x86-64-v3' needs host CPU features that are absent here: avx, fma, f16c, avx2 \
         (try --cpu x86-64-v3,-avx,-fma,-f16c,-avx2)"
    );
    assert!(CpuidModel::parse_on("x86-64-v3,-avx", &host).is_ok());
    assert!(CpuidModel::parse_on("x86-64-v2", &host).is_ok());
    assert!(CpuidModel::parse_on("x86-64-v2,+fma", &host).is_err());
    assert!(!CpuidModel::parse_on("host", &host).expect("host").has(F::Avx2));
    // What is interpreted asks nothing of the host.
    host.features.disable(F::Adx);
    host.features.disable(F::Movbe);
    assert!(CpuidModel::parse_on("x86-64-v2,+adx,+movbe", &host).is_ok());
}

#[test]
fn switches_take_dependent_features_along() {
    let without = model("x86-64-v3,-xsave");
    for feature in [F::Xsave, F::Xsaveopt, F::Avx, F::Avx2, F::Fma, F::F16c] {
        assert!(!without.has(feature), "{feature:?}");
    }
    assert!(without.has(F::Sse42) && without.xcr0_mask() == 0);
    let with = model("i686,+AVX2,+sse4.1");
    assert!(with.has(F::Avx2) && with.has(F::Xsave) && with.has(F::Ssse3));
    // In order: the last word counts.
    assert!(model("i686,-sse,+sse2").has(F::Sse));
    assert!(!model("i686,+sse2,-sse").has(F::Sse2));
    assert!(!model("x86-64-v2,-lm").has(F::Syscall));
}

#[test]
fn named_models_keep_the_levels_of_the_psabi() {
    let (v2, v3, i686) = (model("x86-64-v2"), model("x86-64-v3"), model("i686"));
    for feature in
        [F::Cx16, F::LahfLm, F::Popcnt, F::Sse3, F::Sse41, F::Sse42, F::Ssse3, F::Lm, F::Syscall]
    {
        assert!(v2.has(feature) && v3.has(feature) && !i686.has(feature), "{feature:?}");
    }
    for feature in
        [F::Avx, F::Avx2, F::Bmi1, F::Bmi2, F::F16c, F::Fma, F::Lzcnt, F::Movbe, F::Xsave]
    {
        assert!(!v2.has(feature) && v3.has(feature), "{feature:?}");
    }
    for feature in [F::Sse2, F::Pae, F::Cx8, F::Cmov, F::Apic] {
        assert!(i686.has(feature), "{feature:?}");
    }
    assert!(!i686.has(F::Nx));
    assert_eq!(i686.signature(), 0xf29);
    assert_eq!(v3.signature(), 0x306c3);
    assert_eq!((i686.physical_bits(), v3.physical_bits()), (36, 40));
    for model in [&v2, &v3, &i686] {
        assert_eq!(model.vendor(), Vendor::Intel);
    }
}

#[test]
fn the_host_model_shows_only_what_has_a_row() {
    let host = CpuidModel::parse("host").expect("the host model fits every host");
    let [_, ebx, ecx, edx] = query(&host, 7, 0);
    let avx512 = 1 << 16 | 1 << 17 | 1 << 21 | 0x1f << 26 & !(1 << 29) | 3 << 30;
    assert_eq!(ebx & (avx512 | 1 << 14 | 1 << 4 | 1 << 11), 0, "AVX-512, MPX or TSX");
    assert_eq!(host.has(F::ArchCapabilities), host.vendor() != Vendor::Amd);
    assert_eq!(host.has(F::AutoIbrs), host.vendor() == Vendor::Amd);
    // UMIP and RDPID; FSRM, SPEC_CTRL, ARCH_CAPABILITIES.
    assert_eq!(ecx & !(1 << 2 | 1 << 22), 0);
    assert_eq!(edx & !(1 << 4 | 1 << 26 | 1 << 29), 0);
    let [signature, _, ecx, edx] = query(&host, 1, 0);
    assert_eq!(signature, __cpuid(1).eax);
    // DTES64, MONITOR, DS-CPL, VMX, SMX, EST, TM2, CNXT-ID, SDBG, xTPR, PDCM, DCA.
    assert_eq!(ecx & 0b0000_0000_0000_0101_1100_1101_1111_1100, 0);
    assert_eq!(edx & (1 << 21 | 1 << 22 | 1 << 29), 0, "DS, ACPI, TM");
    assert_ne!(ecx & 1 << 31, 0, "HYPERVISOR");
    assert!(host.has(F::X2apic) && host.has(F::TscDeadline));
    for leaf in 0..0x20 {
        for subleaf in 0..8 {
            let _ = query(&host, leaf, subleaf);
        }
    }
}

#[test]
fn state_changes_what_is_reported() {
    let model = model("x86-64-v3");
    let mut state = long_state();
    let ecx = |state: &CpuState| model.query(1, 0, state, 0)[2];
    assert_eq!(ecx(&state) & 1 << 27, 0);
    state.cr4 = Cr4::OSXSAVE.bits();
    assert_ne!(ecx(&state) & 1 << 27, 0);
    let sizes = |state: &CpuState| model.query(0xd, 0, state, 0);
    assert_eq!(sizes(&state), [7, 576, 832, 0]);
    state.xcr0 = 7;
    assert_eq!(sizes(&state), [7, 832, 832, 0]);
    assert_eq!(model.query(0xd, 2, &state, 0), [256, 576, 0, 0]);
    assert_eq!(model.query(0xd, 1, &state, 0), [1, 0, 0, 0]);
    assert_eq!(model.query(0xd, 3, &state, 0), [0; 4]);
    // SYSCALL: in 64-bit mode only.
    let syscall = |state: &CpuState| model.query(0x8000_0001, 0, state, 0)[3] & 1 << 11;
    assert_ne!(syscall(&state), 0);
    assert_eq!(syscall(&CpuState::reset(0)), 0);
}

#[test]
fn xsave_leaf_is_empty_without_xsave() {
    let model = model("x86-64-v2");
    for subleaf in 0..4 {
        assert_eq!(query(&model, 0xd, subleaf), [0; 4]);
    }
    let mut state = long_state();
    state.cr4 = Cr4::OSXSAVE.bits();
    assert_eq!(model.query(1, 0, &state, 0)[2] & 3 << 26, 0);
    assert_eq!(super::tests::model("x86-64-v3,-avx").xcr0_mask(), 3);
}

#[test]
fn topology_of_one_and_of_several_vcpus() {
    let mut model = model("x86-64-v3");
    let [_, ebx, _, edx] = query(&model, 1, 0);
    assert_eq!((ebx, edx & 1 << 28), (0x0001_0800, 0));
    assert_eq!(query(&model, 0xb, 1), [0, 1, 0x201, 0]);
    assert_eq!(query(&model, 4, 3)[0] >> 26, 0);

    model.set_vcpus(6);
    let state = long_state();
    let [_, ebx, _, edx] = model.query(1, 0, &state, 5);
    assert_eq!((ebx, edx >> 28 & 1), (0x0508_0800, 1));
    assert_eq!(model.query(0xb, 0, &state, 5), [0, 1, 0x100, 5]);
    assert_eq!(model.query(0xb, 1, &state, 5), [3, 6, 0x201, 5]);
    assert_eq!(model.query(0xb, 2, &state, 5), [0, 0, 2, 5]);
    let l1 = model.query(4, 0, &state, 5);
    assert_eq!(l1, [0x1c00_0121, 0x01c0_003f, 63, 0]);
    let l3 = model.query(4, 3, &state, 5);
    assert_eq!(l3, [0x1c01_c163, 0x03c0_003f, 8191, 2]);
    assert_eq!(model.query(4, 4, &state, 5), [0; 4]);
    // 16 ways of 8192 sets of 64 bytes.
    assert_eq!(((l3[1] >> 22) + 1) * (l3[2] + 1) * 64, 8 << 20);

    model.set_vcpus(0);
    assert_eq!(query(&model, 0xb, 1)[1], 1);
    model.set_vcpus(u32::MAX);
    let _ = (query(&model, 1, 0), query(&model, 4, 3), query(&model, 0xb, 1));
}

#[test]
fn amd_tells_caches_and_topology_in_its_own_leaves() {
    let mut model = model("x86-64-v3,vendor=amd");
    model.set_vcpus(6);
    model.set_tsc_hz(3_000_000_000);
    let state = long_state();
    let leaf = |leaf, subleaf| model.query(leaf, subleaf, &state, 5);
    for intel in [2, 4, 0x15, 0x16] {
        assert_eq!(leaf(intel, 0), [0; 4], "{intel:#x}");
    }
    assert_eq!(leaf(0, 0)[0], 0xd);
    assert_eq!(leaf(0x8000_0000, 0), [0x8000_0021, 0x6874_7541, 0x444d_4163, 0x6974_6e65]);
    // The signature, of leaf 1 too; CMP_LEGACY and topology extensions; leaf 1's EDX once more.
    let [eax, _, ecx, edx] = leaf(0x8000_0001, 0);
    assert_eq!((eax, eax), (leaf(1, 0)[0], 0x00a0_0f11));
    assert_eq!(ecx & (1 << 1 | 1 << 22), 1 << 1 | 1 << 22);
    assert_eq!(edx & 0x0183_f3ff, leaf(1, 0)[3] & 0x0183_f3ff);
    // SYSCALL is there in every mode.
    assert_ne!(model.query(0x8000_0001, 0, &CpuState::reset(0), 0)[3] & 1 << 11, 0);
    // Six of eight APIC ids.
    assert_eq!(leaf(0x8000_0008, 0)[2], 0x3005);
    assert_eq!(leaf(0x8000_001e, 0), [5, 5, 0, 0]);
    assert_eq!(leaf(0xb, 1), [3, 6, 0x201, 5]);
    // L2 and L3, the second shared by all: as large as the older leaves say.
    let bytes = |[_, ebx, ecx, _]: [u32; 4]| ((ebx >> 22) + 1) * (ecx + 1) * 64;
    let (l2, l3, sizes) = (leaf(0x8000_001d, 2), leaf(0x8000_001d, 3), leaf(0x8000_0006, 0));
    assert_eq!((bytes(l2), bytes(l2)), (512 << 10, (sizes[2] >> 16) << 10));
    assert_eq!((bytes(l3), bytes(l3)), (8 << 20, (sizes[3] >> 18) << 19));
    assert_eq!((l2[0] >> 14 & 0xfff, l3[0] >> 14 & 0xfff), (0, 7));
    assert_eq!(leaf(0x8000_001d, 4), [0; 4]);
    for hidden in [0x8000_000a, 0x8000_001f, 0x8000_0022] {
        assert_eq!(leaf(hidden, 0), [0; 4], "{hidden:#x}");
    }
}

#[test]
fn amd_denies_weaknesses_in_its_own_bits() {
    let model = model("x86-64-v3,vendor=amd");
    // Not Intel's bits, nor what Intel says of x87 pointers.
    assert_eq!(query(&model, 7, 0)[3] & (1 << 26 | 1 << 29), 0);
    assert_eq!(query(&model, 7, 0)[1] & (1 << 6 | 1 << 13), 0);
    assert_eq!(model.arch_capabilities(), 0);
    // XSAVEERPTR, SSB_NO.
    assert_eq!(query(&model, 0x8000_0008, 0)[1], 1 << 2 | 1 << 26);
    // LFENCE, null selectors, automatic IBRS, SRSO_NO; TSA_SQ_NO, TSA_L1_NO.
    let [eax, _, ecx, _] = query(&model, 0x8000_0021, 0);
    assert_eq!((eax, ecx), (1 << 2 | 1 << 6 | 1 << 8 | 1 << 29, 1 << 1 | 1 << 2));
    // There and back.
    let back = super::tests::model("x86-64-v3,vendor=amd,vendor=intel");
    assert_eq!(back.features, super::tests::model("x86-64-v3").features);
    assert_eq!(back.vendor(), Vendor::Intel);
    assert!(!super::tests::model("i686,vendor=amd").has(F::AutoIbrs));
}

#[test]
fn amd_reads_some_prefixes_otherwise() {
    let amd = model("x86-64-v3,vendor=amd").decoder_options() & DecoderOptions::AMD;
    let intel = model("x86-64-v3").decoder_options() & DecoderOptions::AMD;
    assert_eq!((amd, intel), (DecoderOptions::AMD, 0));
}

#[test]
fn tsc_frequency_survives_linux_arithmetic() {
    let mut model = model("x86-64-v3");
    assert_eq!(query(&model, 0x15, 0), [0; 4]);
    for hz in [800_000_000, 2_445_123_456, 2_999_999_999, 3_000_000_000, 4_200_000_001, 1_u64] {
        model.set_tsc_hz(hz);
        let [denominator, numerator, crystal_hz, _] = query(&model, 0x15, 0);
        if hz == 1 {
            continue;
        }
        let khz =
            (crystal_hz / 1000).checked_mul(numerator).expect("fits in 32 bits") / denominator;
        let error_khz = u64::from(khz).abs_diff(hz / 1000);
        assert!(error_khz * 1_000_000 <= 2 * hz / 1000, "{hz} Hz came out as {khz} kHz");
    }
    model.set_tsc_hz(2_445_123_456);
    assert_eq!(query(&model, 0x16, 0), [2445, 2445, 100, 0]);
    for hz in [u64::MAX, 1 << 40] {
        model.set_tsc_hz(hz);
        let _ = (query(&model, 0x15, 0), query(&model, 0x16, 0));
    }
}

#[test]
fn leaves_beyond_the_highest_repeat_the_highest_basic_one() {
    let mut model = model("x86-64-v3");
    model.set_tsc_hz(3_000_000_000);
    assert_eq!(query(&model, 0, 0)[0], 0x16);
    let highest = query(&model, 0x16, 0);
    for leaf in
        [0x17, 0x1f, 0x3fff_ffff, 0x4000_0200, 0x7fff_ffff, 0x8000_0009, 0x8fff_ffff, u32::MAX]
    {
        assert_eq!(query(&model, leaf, 0), highest, "{leaf:#x}");
    }
    model.vendor = *b"AuthenticAMD";
    assert_eq!(query(&model, 0x17, 0), [0; 4]);
    assert_eq!(query(&model, 0x8000_0009, 0), [0; 4]);
}

#[test]
fn identity_strings() {
    let model = model("x86-64-v3");
    assert_eq!(query(&model, 0, 0)[1..], [0x756e_6547, 0x6c65_746e, 0x4965_6e69]);
    let brand: Vec<u8> = (0x8000_0002..=0x8000_0004)
        .flat_map(|leaf| query(&model, leaf, 0))
        .flat_map(u32::to_le_bytes)
        .collect();
    assert_eq!(brand, padded_brand(b"Xenolith x86-64-v3 processor"));
    let [eax, ebx, ecx, edx] = query(&model, 0x4000_0000, 0);
    let signature: Vec<u8> = [ebx, ecx, edx].into_iter().flat_map(u32::to_le_bytes).collect();
    assert_eq!((eax, signature.as_slice()), (0x4000_0000, &HYPERVISOR_SIGNATURE[..]));
    assert_eq!(query(&model, 0x4000_0001, 0), [0; 4]);
    let hidden = super::tests::model("x86-64-v3,-hypervisor");
    assert_eq!(query(&hidden, 0x4000_0000, 0), query(&hidden, 0x16, 0));
    assert_eq!(query(&model, 0x8000_0008, 0)[0], 0x3028);
}

#[test]
fn kvms_clock_is_offered_behind_our_own_leaf() {
    let leaves = |spec| {
        let model = model(spec);
        [0x4000_0100, 0x4000_0101, 0x4000_0102].map(|leaf| query(&model, leaf, 0))
    };
    let named = [0x4000_0101, 0x4b4d_564b, 0x564b_4d56, 0x4d];
    for spec in ["host", "x86-64-v3", "i686", "x86-64-v2,vendor=amd"] {
        assert_eq!(leaves(spec), [named, [1 << 24 | 0b1011, 0, 0, 0], [0; 4]], "{spec}");
    }
    assert_eq!(leaves("host,-kvmclock")[1][0], 0b10);
    assert_eq!(leaves("host,-kvm-nopiodelay")[1][0], 1 << 24 | 0b1001);
    assert_eq!(leaves("host,-kvmclock-stable-bit")[1][0], 0b1011);
    assert_eq!(leaves("host,-kvmclock,-kvm-nopiodelay"), [[0; 4]; 3]);
    assert_eq!(leaves("host,vendor=amd,-hypervisor"), [[0; 4]; 3]);
    assert!(!model("host,-hypervisor").has(F::KvmClock));
}

#[test]
fn mitigations_are_denied_through_the_msr() {
    let model = model("x86-64-v3");
    assert_eq!(query(&model, 7, 0)[3], 1 << 26 | 1 << 29);
    // RDCL_NO, IBRS_ALL, SSB_NO, MDS_NO, TAA_NO.
    assert_eq!(model.arch_capabilities() & 0x133, 0x133);
    assert_eq!(super::tests::model("x86-64-v3,-spec_ctrl").arch_capabilities() & 2, 0);
    assert_eq!(super::tests::model("x86-64-v3,-arch_capabilities").arch_capabilities(), 0);
}

#[test]
fn the_decoder_is_told_what_exists() {
    use CpuidFeature as C;
    let (v2, v3) = (model("x86-64-v2"), model("x86-64-v3"));
    for feature in [C::INTEL8086, C::INTEL486, C::FPU387, C::MULTIBYTENOP, C::PAUSE, C::CET_IBT] {
        assert!(v2.allows(feature), "{feature:?}");
    }
    for feature in [C::AVX, C::AVX2, C::BMI1, C::FMA, C::XSAVE, C::MOVBE, C::INVPCID, C::LZCNT] {
        assert!(!v2.allows(feature) && v3.allows(feature), "{feature:?}");
    }
    let host = CpuidModel::parse("host").expect("host");
    for feature in [C::AVX512F, C::VMX, C::SVM, C::MPX, C::RTM, C::XOP, C::AMX_TILE, C::MONITOR] {
        assert!(!host.allows(feature), "{feature:?}");
    }
    assert!(!model("i686").allows(C::X64));
    let option = DecoderOptions::NO_MPFX_0FBC;
    assert_eq!((v2.decoder_options() & option, v3.decoder_options() & option), (option, 0));
}

/// Every instruction of the models' sets must pass, judged as the decoder judges.
#[test]
fn typical_instructions_pass_as_a_whole() {
    let exists = |model: &CpuidModel, bytes: &[u8]| {
        let mut decoder = iced_x86::Decoder::new(64, bytes, model.decoder_options());
        let instruction = decoder.decode();
        assert!(!instruction.is_invalid(), "{bytes:x?}");
        instruction.cpuid_features().iter().all(|&feature| model.allows(feature))
    };
    let v3 = model("x86-64-v3,+rdseed,+adx,+smap,+clflushopt,+clwb,+sha,+rdpid,+xsavec");
    let present: &[&[u8]] = &[
        &[0xf3, 0x0f, 0x1e, 0xfa],          // endbr64
        &[0xf3, 0x48, 0x0f, 0x1e, 0xc8],    // rdsspq rax
        &[0x0f, 0x0d, 0x08],                // prefetchw
        &[0x0f, 0x18, 0x08],                // prefetcht0
        &[0x0f, 0x1f, 0x44, 0, 0],          // nop
        &[0x0f, 0x1c, 0x00],                // cldemote
        &[0xf3, 0x90],                      // pause
        &[0x0f, 0x05],                      // syscall
        &[0x0f, 0x01, 0xf8],                // swapgs
        &[0x0f, 0x01, 0xf9],                // rdtscp
        &[0x0f, 0x01, 0xd0],                // xgetbv
        &[0x0f, 0xc7, 0x20],                // xsavec
        &[0x0f, 0xae, 0x30],                // xsaveopt
        &[0x0f, 0xae, 0x38],                // clflush
        &[0x66, 0x0f, 0xae, 0x38],          // clflushopt
        &[0x66, 0x0f, 0xae, 0x30],          // clwb
        &[0xf3, 0x0f, 0xae, 0xc0],          // rdfsbase
        &[0xf3, 0x0f, 0xc7, 0xf8],          // rdpid
        &[0x0f, 0xc7, 0xf8],                // rdseed
        &[0x66, 0x0f, 0x38, 0x82, 0x00],    // invpcid
        &[0x0f, 0x01, 0xca],                // clac
        &[0x0f, 0x09],                      // wbinvd
        &[0xf3, 0x0f, 0x09],                // wbinvd with a prefix
        &[0x48, 0x0f, 0xc7, 0x08],          // cmpxchg16b
        &[0x9f],                            // lahf
        &[0x66, 0x0f, 0x38, 0xf6, 0xc0],    // adcx
        &[0xf2, 0x0f, 0x38, 0xf1, 0xc0],    // crc32
        &[0xf3, 0x0f, 0xbc, 0xc0],          // tzcnt
        &[0xc5, 0xf8, 0x77],                // vzeroupper
        &[0xc4, 0xe2, 0x7d, 0x18, 0x00],    // vbroadcastss
        &[0xc4, 0xe2, 0x71, 0xdc, 0xc0],    // vaesenc xmm
        &[0xc4, 0xe3, 0x71, 0x44, 0xc0, 0], // vpclmulqdq xmm
        &[0xc4, 0xe2, 0x79, 0x13, 0xc0],    // vcvtph2ps
        &[0x0f, 0x38, 0xcb, 0xc0],          // sha256rnds2
        &[0xdf, 0xe0],                      // fnstsw ax
        &[0xdb, 0xf0],                      // fcomi
        &[0xdd, 0x08],                      // fisttp
        &[0x0f, 0x38, 0x00, 0xc0],          // pshufb mm
        &[0x0f, 0x33],                      // rdpmc
        &[0x0f, 0xb9, 0xc0],                // ud1
        &[0x0f, 0x0b],                      // ud2
    ];
    for bytes in present {
        assert!(exists(&v3, bytes), "{bytes:x?} must exist");
    }
    let absent: &[&[u8]] = &[
        &[0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc0], // vaddps zmm
        &[0xc4, 0xe2, 0x75, 0xdc, 0xc0],       // vaesenc ymm
        &[0x0f, 0x01, 0xc8],                   // monitor
        &[0x0f, 0x01, 0xc1],                   // vmcall
        &[0x0f, 0x01, 0xd9],                   // vmmcall
        &[0x0f, 0x01, 0xd6],                   // xtest
        &[0x0f, 0x37],                         // getsec
        &[0x0f, 0xaa],                         // rsm
        &[0x0f, 0x01, 0xef],                   // wrpkru
        &[0x0f, 0x01, 0xe8],                   // serialize
        &[0x0f, 0xc7, 0x28],                   // xsaves
        &[0x0f, 0x01, 0xcf],                   // encls
        &[0x0f, 0x0f, 0xc0, 0x9e],             // pfadd
        &[0x0f, 0x01, 0xfc],                   // clzero
        &[0xf2, 0x0f, 0x79, 0xc0],             // insertq
    ];
    for bytes in absent {
        assert!(!exists(&v3, bytes), "{bytes:x?} must not exist");
    }
}
