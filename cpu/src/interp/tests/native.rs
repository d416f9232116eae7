//! Random integer instructions, here and on the host: registers, memory, all flags, exceptions with error
//! code and CR2. The interpreter follows Intel's processors in the flags that the manuals call undefined;
//! on another maker's host these are not compared.
//!
//! Scheme: user-mode code on both sides, with the same bytes at the same addresses. One page of scratch
//! memory is mapped, the pages around it are not, so some accesses fault. EFLAGS.AC is set now and then:
//! Linux has CR0.AM set, so the host checks alignment too.

use std::collections::BTreeMap;

use iced_x86::{
    Code, DecoderOptions, EncodingKind, Instruction, MemorySize, Mnemonic as N, OpKind, Register,
};

use super::bench::{BIG, Bench, FREE, Mapping, Ram, flat, model_of};
use super::generate;
use crate::cpuid::{CpuidModel, Vendor};
use crate::interp::decode::Insn;
use crate::interp::table;
use crate::state::reg::{RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP};
use crate::state::{Cr0, Rflags, VectorState, sreg};
use crate::vector::tests::generate::Rng;
use crate::vector::tests::native::{Native, SCRATCH_LEN, native};

const CASES_EACH: usize = 100;
const CODE_GPA: u64 = 0x8_0000;
const SCRATCH_GPA: u64 = 0x8_2000;
/// 32-bit user code.
const CODE_32: u16 = FREE | 3;

/// Integer instructions that user code may execute, whose result depends on registers and memory only.
fn is_comparable(code: Code, bits: u32, cpuid: &CpuidModel) -> bool {
    let info = code.op_code();
    let plain = matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && info.is_instruction()
        && (bits == 64 && info.mode64() || bits == 32 && info.mode32())
        && info.decoder_option() == DecoderOptions::NONE;
    if !plain || !code.cpuid_features().iter().all(|&f| cpuid.allows(f)) {
        return false;
    }
    let mut rng = Rng::new(7);
    let Some(raw) = generate::decoded(&mut rng, code, bits) else { return false };
    let insn = Insn::<Ram>::new(raw, None, cpuid);
    if !table::is_integer(&insn) {
        return false;
    }
    let register = |kind| (0..info.op_count()).any(|i| info.op_kind(i) == kind);
    use iced_x86::OpCodeOperandKind as K;
    let special = [K::seg_reg, K::cr_reg, K::dr_reg, K::es, K::cs, K::ss, K::ds, K::fs, K::gs];
    if special.into_iter().any(register) {
        return false;
    }
    // Where to is not comparable; POPF could set TF.
    !matches!(
        raw.mnemonic(),
        N::Jmp
            | N::Call
            | N::Ret
            | N::Popf
            | N::Popfd
            | N::Popfq
            | N::Insb
            | N::Insw
            | N::Insd
            | N::Outsb
            | N::Outsw
            | N::Outsd
    )
}

/// Numbers at which instructions change their ways.
fn number(rng: &mut Rng) -> u64 {
    const EDGES: [u64; 16] = [
        0,
        1,
        2,
        0x7f,
        0x80,
        0xff,
        0x7fff,
        0x8000,
        0xffff,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0x7fff_ffff_ffff_ffff,
        0x8000_0000_0000_0000,
        0xffff_ffff_ffff_ffff,
        0xffff_ffff_0000_0000,
    ];
    match rng.below(4) {
        0 => rng.pick(&EDGES),
        1 => rng.below(80),
        _ => rng.next(),
    }
}

/// A place in the scratch page: mostly aligned, now and then at the page's ends.
fn place(rng: &mut Rng) -> u64 {
    match rng.below(10) {
        0 => rng.below(32),
        1 => SCRATCH_LEN as u64 - rng.below(32),
        2 | 3 => 1024 + rng.below(2048),
        _ => 1024 + rng.below(128) * 16,
    }
}

fn is_string(insn: &Instruction) -> bool {
    insn.is_string_instruction()
}

fn uses_stack(insn: &Instruction) -> bool {
    insn.stack_pointer_increment() != 0 || matches!(insn.mnemonic(), N::Enter | N::Leave)
}

/// Chooses registers so that memory operands lie about the scratch page. `None`: no way.
fn registers(rng: &mut Rng, insn: &Instruction, scratch: u64, bits: u32) -> Option<[u64; 16]> {
    let mut gpr: [u64; 16] = std::array::from_fn(|_| number(rng));
    let memory = (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory);
    match insn.mnemonic() {
        N::Div | N::Idiv if rng.one_in(2) => {
            gpr[RDX] = if rng.one_in(2) { rng.below(4) } else { u64::MAX };
        }
        N::Xlatb => {
            gpr[RBX] = (scratch + place(rng)).wrapping_sub(gpr[RAX] & 0xff);
            return Some(gpr);
        }
        N::Bt | N::Bts | N::Btr | N::Btc if memory && insn.op1_kind() == OpKind::Register => {
            let bit = insn.op1_register();
            if bit.full_register() == insn.memory_base().full_register() {
                return None;
            }
            gpr[bit.number()] = i64::from(rng.next() as i16) as u64;
            if insn.memory_index().full_register() == bit.full_register() {
                return None;
            }
        }
        _ => {}
    }
    if is_string(insn) {
        gpr[RCX] = if rng.one_in(6) { 0 } else { rng.below(40) };
        gpr[RSI] = scratch + place(rng);
        gpr[RDI] = scratch + place(rng);
        let narrow = (0..insn.op_count())
            .any(|i| matches!(insn.op_kind(i), OpKind::MemorySegESI | OpKind::MemoryESEDI));
        if narrow {
            for register in [RCX, RSI, RDI] {
                gpr[register] |= rng.next() << 32;
            }
        }
        return Some(gpr);
    }
    if uses_stack(insn) {
        gpr[RSP] = scratch + place(rng);
        gpr[RBP] = scratch + place(rng);
        if matches!(insn.memory_base(), Register::RSP | Register::ESP) {
            return None;
        }
    }
    if memory && insn.memory_base() != Register::None {
        let base = insn.memory_base();
        let locked = insn.has_lock_prefix() || insn.mnemonic() == N::Xchg;
        // Not over a cache line: the host's Linux may punish that.
        let place = if locked { place(rng) & 0xff0 } else { place(rng) };
        let mut at = (scratch + place).wrapping_sub(insn.memory_displacement64());
        if insn.memory_index() != Register::None {
            let index = gpr[insn.memory_index().number()];
            at = at.wrapping_sub(index.wrapping_mul(u64::from(insn.memory_index_scale())));
        }
        if base.size() == 4 && bits == 64 {
            at = at & 0xffff_ffff | rng.next() << 32;
        }
        if uses_stack(insn) && base.full_register() == Register::RBP {
            return None;
        }
        gpr[base.number()] = at;
    }
    Some(gpr)
}

/// Undefined flags that the host itself sets one way for an immediate count and another for a count
/// in CL; the interpreter always does the latter.
fn incomparable_flags(insn: &Instruction, intel: bool) -> u64 {
    let undefined = if intel { 0 } else { rflags_of(insn.rflags_undefined()) };
    let wide = insn.op0_register().is_gpr64() || insn.memory_size() == MemorySize::UInt64;
    let count = insn.immediate8() & if wide { 0x3f } else { 0x1f };
    let immediate = insn.op1_kind() == OpKind::Immediate8 && count != 1;
    let by_count = match insn.mnemonic() {
        N::Rol | N::Ror | N::Rcl | N::Rcr if immediate => Rflags::OF.bits(),
        _ => 0,
    };
    undefined | by_count
}

/// iced's flag bits as RFLAGS.
fn rflags_of(bits: u32) -> u64 {
    use iced_x86::RflagsBits as B;
    [
        (B::OF, Rflags::OF),
        (B::SF, Rflags::SF),
        (B::ZF, Rflags::ZF),
        (B::AF, Rflags::AF),
        (B::CF, Rflags::CF),
        (B::PF, Rflags::PF),
    ]
    .into_iter()
    .filter(|&(bit, _)| bits & bit != 0)
    .fold(0, |flags, (_, flag)| flags | flag.bits())
}

struct Pair {
    bits: u32,
    intel: bool,
    bench: Bench,
    rng: Rng,
    /// Cases by outcome: a vector, or none.
    outcomes: BTreeMap<Option<u8>, usize>,
}

impl Pair {
    fn new(seed: u64, bits: u32) -> Self {
        let model = model_of("host");
        let intel = model.vendor() == Vendor::Intel;
        let mut bench = Bench::with_model(64, model);
        bench.vm.state.cr0 |= Cr0::AM.bits();
        bench.set_descriptor(CODE_32, flat(0xfb, BIG));
        Self { bits, intel, bench, rng: Rng::new(seed), outcomes: BTreeMap::new() }
    }

    /// Finishes an instruction whose operands name addresses, and gives its bytes.
    fn bytes(&mut self, code: Code, scratch: u64) -> Option<(Vec<u8>, Instruction)> {
        let (rng, bits) = (&mut self.rng, self.bits);
        let mut insn = generate::instruction(rng, code, bits)?;
        let info = code.op_code();
        if (0..info.op_count()).any(|i| info.op_kind(i) == iced_x86::OpCodeOperandKind::mem_offs) {
            insn.set_memory_displacement64(scratch + place(rng));
        }
        if insn.mnemonic() == N::Enter {
            insn.set_immediate16(rng.below(256) as u16);
        }
        let memory_first = insn.op_count() > 0 && insn.op0_kind() == OpKind::Memory;
        if info.can_use_lock_prefix() && memory_first && rng.one_in(3) {
            insn.set_has_lock_prefix(true);
        }
        if is_string(&insn) {
            match rng.below(3) {
                0 if info.can_use_repne_prefix() => insn.set_has_repne_prefix(true),
                1 if info.can_use_rep_prefix() => insn.set_has_rep_prefix(true),
                _ => {}
            }
        }
        let mut bytes = generate::encode(&insn, bits)?;
        match insn.op0_kind() {
            // To the next instruction.
            OpKind::NearBranch64 => insn.set_near_branch64(bytes.len() as u64),
            OpKind::NearBranch32 => insn.set_near_branch32(bytes.len() as u32),
            // It would leave the harness, which lies above 64 KiB.
            OpKind::NearBranch16 => return None,
            _ => {}
        }
        if matches!(insn.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32) {
            bytes = generate::encode(&insn, bits)?;
        }
        let insn = generate::decode(&bytes, bits, DecoderOptions::NONE);
        (insn.code() == code).then_some((bytes, insn))
    }

    fn compare(&mut self, native: &mut Native, code: Code) -> Option<()> {
        let scratch = native.scratch_address();
        let (bytes, insn) = self.bytes(code, scratch)?;
        let gpr = registers(&mut self.rng, &insn, scratch, self.bits)?;
        let rng = &mut self.rng;
        let mut flags = rng.next() & (Rflags::STATUS | Rflags::DF).bits() | 0x202;
        if rng.one_in(8) {
            flags |= Rflags::AC.bits();
        }
        let mut memory = vec![0; SCRATCH_LEN];
        for word in memory.chunks_exact_mut(8) {
            word.copy_from_slice(&number(rng).to_le_bytes());
        }
        let mut gpr = gpr;
        if matches!(insn.mnemonic(), N::Cmpxchg | N::Cmpxchg8b | N::Cmpxchg16b) && rng.one_in(2) {
            // Memory and accumulator of one value, so that they can be equal.
            memory.fill(0);
            for register in [RAX, RDX] {
                let addresses = [insn.memory_base(), insn.memory_index()];
                if !addresses.iter().any(|a| a.is_gpr() && a.number() == register) {
                    gpr[register] = 0;
                }
            }
        }

        let wide = self.bits == 64;
        if !wide {
            // Upper halves and R8 up are not there.
            gpr = std::array::from_fn(|n| if n < 8 { gpr[n] & 0xffff_ffff } else { 0 });
        }
        let at = if wide { native.place(&bytes) } else { native.place_32(&bytes) };
        native.scratch().copy_from_slice(&memory);
        let host = native.run(&VectorState::default().bytes, &gpr, flags);

        let bench = &mut self.bench;
        bench.set_level(3);
        if !wide {
            bench.vm.state.seg[sreg::CS] = bench.segment(CODE_32);
        }
        for (page, gpa) in [(at, CODE_GPA), (at + 4096, CODE_GPA + 4096), (scratch, SCRATCH_GPA)] {
            bench.vm.mem.map(page, Some(Mapping { gpa, write: true, user: true }));
        }
        bench.write(CODE_GPA + (at & 0xfff), &bytes);
        bench.write(SCRATCH_GPA, &memory);
        bench.vm.state.gpr = gpr;
        bench.vm.state.rip = at;
        bench.vm.state.rflags = flags;
        bench.vm.step();

        let mut trap = None;
        let (mut error, mut cr2) = (0, 0);
        let mut flags_after = bench.vm.state.rflags;
        let mut rip = bench.vm.state.rip;
        if bench.vm.state.cpl == 0 {
            let caught = bench.frame();
            trap = Some(caught.vector);
            bench.vm.state.gpr[RSP] = caught.rsp;
            flags_after = caught.flags;
            rip = caught.rip;
            if caught.vector == 14 {
                (error, cr2) = (caught.code, bench.vm.state.cr2);
            }
        }
        let compares_strings = matches!(insn.mnemonic(), N::Cmpsb | N::Cmpsw | N::Cmpsd | N::Cmpsq);
        if compares_strings && trap.is_some() && host.trap.is_some() && trap != host.trap {
            // Both operands are bad, and which one faults is not said (SDM vol. 2, CMPS).
            return None;
        }
        let expected_rip = if host.trap.is_some() { at } else { at + bytes.len() as u64 };
        let (host_error, host_cr2) =
            if host.trap == Some(14) { (host.error, host.cr2) } else { (0, 0) };
        let ignored = Rflags::RF.bits() | incomparable_flags(&insn, self.intel);
        let mut host_gpr = host.gpr;
        if matches!(insn.mnemonic(), N::Popa | N::Popad) && trap.is_some() {
            // The host has loaded some registers by then; they will be loaded again.
            host_gpr = bench.vm.state.gpr;
        }
        if !wide {
            // What a change of mode does to upper halves is undefined.
            host_gpr[..8].iter_mut().for_each(|register| *register &= 0xffff_ffff);
        }
        let here = (trap, error, cr2, rip, flags_after & !ignored, bench.vm.state.gpr);
        let there =
            (host.trap, host_error, host_cr2, expected_rip, host.flags & !ignored, host_gpr);
        let described = || format!("{insn} ({code:?}) {bytes:02x?}\nflags {flags:x} in {gpr:x?}\n");
        assert_eq!(here, there, "{}left {here:x?}\nright {there:x?}", described());
        assert!(
            *bench.vm.mem.slice(SCRATCH_GPA, SCRATCH_LEN) == *native.scratch(),
            "memory after {}",
            described()
        );
        *self.outcomes.entry(trap).or_default() += 1;
        Some(())
    }
}

/// Runs every comparable code `CASES_EACH` times; how many cases, by outcome.
fn compare_all(seed: u64, bits: u32) -> BTreeMap<Option<u8>, usize> {
    let cpuid = model_of("host");
    let codes: Vec<Code> = Code::values().filter(|&c| is_comparable(c, bits, &cpuid)).collect();
    assert!(codes.len() > 300, "{}", codes.len());
    let mut native = native();
    let mut pair = Pair::new(seed, bits);
    for &code in &codes {
        let mut done = 0;
        for _ in 0..CASES_EACH {
            done += usize::from(pair.compare(&mut native, code).is_some());
        }
        // Branches with 16-bit operands end below 64 KiB.
        let branch_16 = code.op_code().operand_size() == 16;
        assert!(done > 0 || branch_16, "{code:?} was never run");
    }
    pair.outcomes
}

#[test]
fn integer_instructions_do_as_the_host_does() {
    let outcomes = compare_all(1, 64);
    assert!(outcomes.values().sum::<usize>() > 20_000, "{outcomes:?}");
    // Each way of ending has been seen: none, #DE, #GP, #PF, #AC.
    for outcome in [None, Some(0), Some(13), Some(14), Some(17)] {
        assert!(outcomes.contains_key(&outcome), "{outcomes:?}");
    }
}

#[test]
fn integer_instructions_in_32_bit_code_do_as_the_host_does() {
    let outcomes = compare_all(2, 32);
    assert!(outcomes.values().sum::<usize>() > 20_000, "{outcomes:?}");
    // Here BOUND as well.
    for outcome in [None, Some(0), Some(5), Some(14), Some(17)] {
        assert!(outcomes.contains_key(&outcome), "{outcomes:?}");
    }
}

#[test]
#[ignore = "the same for a minute, with other seeds"]
fn integer_instructions_do_as_the_host_does_for_long() {
    for seed in 3..8 {
        compare_all(seed, 64);
        compare_all(seed, 32);
    }
}
