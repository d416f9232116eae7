//! Random instructions on [`VectorUnit`] against the host, bit for bit.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::generate::{self, Rng};
use super::native::{self, Native, SCRATCH_LEN, TestCode};
use crate::cpuid::{CpuidModel, Vendor};
use crate::exception::{Exception, Outcome, Trap, Vector};
use crate::state::{
    CpuState, Cr0, Cr4, Efer, Rflags, Segment, VectorState, XSAVE_AREA_SIZE, reg, sreg,
};
use crate::vector::{OperandMemory, VectorUnit, x87};

/// The scratch page as guest memory, at the same address; all else is a page fault.
#[derive(Debug)]
pub struct Page {
    pub base: u64,
    pub bytes: Vec<u8>,
}

impl Page {
    fn range(&self, offset: u64, len: usize) -> Outcome<std::ops::Range<usize>> {
        let start = offset.wrapping_sub(self.base);
        if start >= self.bytes.len() as u64 || start + len as u64 > self.bytes.len() as u64 {
            return Err(Trap::with_code(Vector::PageFault, 0));
        }
        Ok(start as usize..start as usize + len)
    }
}

impl OperandMemory for Page {
    fn read(&mut self, _: &mut CpuState, _: usize, offset: u64, out: &mut [u8]) -> Outcome {
        let range = self.range(offset, out.len())?;
        out.copy_from_slice(&self.bytes[range]);
        Ok(())
    }
    fn write(&mut self, _: &mut CpuState, _: usize, offset: u64, data: &[u8]) -> Outcome {
        let range = self.range(offset, data.len())?;
        self.bytes[range].copy_from_slice(data);
        Ok(())
    }
    fn probe_write(&mut self, _: &mut CpuState, _: usize, offset: u64, len: usize) -> Outcome {
        self.range(offset, len).map(|_| ())
    }
}

/// A vCPU in user mode of a system that has everything switched on.
pub fn cpu(bits: u32) -> CpuState {
    let mut cpu = CpuState::reset(0);
    cpu.cr0 = (Cr0::PE | Cr0::PG | Cr0::NE | Cr0::MP | Cr0::ET).bits();
    cpu.cr4 = (Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE | Cr4::PAE).bits();
    cpu.xcr0 = 7;
    cpu.cpl = 3;
    for segment in &mut cpu.seg {
        *segment = Segment { base: 0, limit: u32::MAX, access: 0xc0f3, selector: 0x2b };
    }
    cpu.seg[sreg::CS] = Segment { base: 0, limit: u32::MAX, access: 0xc0fb, selector: 0x23 };
    if bits == 64 {
        cpu.efer = (Efer::LMA | Efer::LME | Efer::SCE).bits();
        cpu.seg[sreg::CS].access = 0xa0fb;
    }
    cpu
}

fn is_restore(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Fxrstor | M::Fxrstor64 | M::Xrstor | M::Xrstor64)
}

fn is_area(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    is_restore(mnemonic)
        || matches!(
            mnemonic,
            M::Fxsave
                | M::Fxsave64
                | M::Xsave
                | M::Xsave64
                | M::Xsavec
                | M::Xsavec64
                | M::Xsaveopt
                | M::Xsaveopt64
        )
}

/// Fills memory, the base register and what else the instruction needs to make sense.
fn arrange(
    rng: &mut Rng,
    insn: &Instruction,
    host: &mut Native,
    gpr: &mut [u64; 16],
    state: &mut VectorState,
) {
    let scratch = host.scratch_address();
    let page = host.scratch();
    if rng.one_in(3) {
        rng.fill(page);
    } else {
        for chunk in page.chunks_exact_mut(16) {
            chunk.copy_from_slice(&generate::vector(rng));
        }
    }
    let mnemonic = insn.mnemonic();
    let vsib = insn.memory_index().is_vector_register();
    let size = insn.memory_size().size().max(1) as u64;
    let size = if is_area(mnemonic) { if size == 512 { 512 } else { 832 } } else { size };
    let last = SCRATCH_LEN as u64 - size;
    let mut offset = match rng.below(8) {
        0 => last,
        1 => 0,
        2 => last + 1 + rng.below(size),
        3 => rng.below(last + 1),
        _ => rng.below(last + 1) & !63,
    };
    if vsib {
        offset = SCRATCH_LEN as u64 / 2;
    }
    if matches!(mnemonic, Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu) {
        // Hardware may fault for a wholly or partly unselected neighbour page: stay inside.
        gpr[reg::RDI] = scratch + rng.below(SCRATCH_LEN as u64 - 16);
    }
    if is_area(mnemonic) {
        offset = if rng.one_in(8) { offset } else { offset.min(last) & !63 };
        gpr[reg::RAX] = gpr[reg::RAX] & !0xffff_ffff | rng.pick(&[7, 7, 7, 6, 5, 4, 3, 2, 1, 0]);
        gpr[reg::RDX] &= !0xffff_ffff;
        let at = offset.min(last) as usize;
        let image = generate::state(rng);
        if is_restore(mnemonic) {
            page[at..at + 512].copy_from_slice(&image.bytes[..512]);
            if rng.one_in(8) {
                page[at + 26] |= 1;
            }
            if rng.one_in(2) {
                // Pointers canonical for 48 bits and for the host's 57.
                rng.fill(&mut page[at..at + 24]);
                for top in [at + 13, at + 21] {
                    let sign = if page[top] & 0x80 != 0 { 0xff } else { 0 };
                    page[top + 1..top + 3].fill(sign);
                }
            }
        }
        if size == 832 {
            page[at + 512..at + 576].fill(0);
            page[at + 576..at + 832].copy_from_slice(&image.bytes[576..]);
            page[at + 512] = rng.below(8) as u8;
            if rng.one_in(2) {
                page[at + 520] = 7 & (page[at + 512] | rng.next() as u8);
                page[at + 527] = 0x80;
            }
            if rng.one_in(10) {
                page[at + 512 + rng.below(64) as usize] ^= rng.pick(&[1, 2, 4]);
            }
            // Bits of host components that the guest does not have would be accepted there.
            page[at + 512] &= 7;
            page[at + 513..at + 516].fill(0);
            page[at + 520] &= 7;
            page[at + 521..at + 524].fill(0);
        }
    }
    if matches!(mnemonic, Mnemonic::Fldcw | Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr)
        && !rng.one_in(6)
    {
        page[offset as usize & !3..].iter_mut().skip(2).step_by(4).for_each(|byte| *byte = 0);
        page[offset as usize & !3..].iter_mut().skip(3).step_by(4).for_each(|byte| *byte = 0);
    }
    if (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory) {
        let target = scratch + offset;
        let base = insn.memory_base().number();
        if vsib {
            let scale = i64::from(insn.memory_index_scale());
            let wide = insn.memory_index().is_ymm();
            let n = insn.memory_index().number();
            let name = format!("{:?}", insn.code());
            let quad = name.contains("vm64");
            let mut index = [0; 32];
            let far = rng.one_in(4);
            for lane in index.chunks_exact_mut(if quad { 8 } else { 4 }) {
                let mut value = (rng.below(SCRATCH_LEN as u64 - 32) as i64 - 2048 + 16) / scale;
                if far && rng.one_in(3) {
                    value = 3000 / scale + 1;
                }
                let len = lane.len();
                lane.copy_from_slice(&value.to_le_bytes()[..len]);
            }
            if !wide {
                index[16..].copy_from_slice(&state.ymm(n)[16..]);
            }
            state.set_ymm(n, &index);
            state.bytes[VectorState::XSTATE_BV] = generate::in_use(state);
        } else if insn.memory_index() != Register::None {
            gpr[insn.memory_index().number()] = rng.below(1024);
        }
        let index = if vsib || insn.memory_index() == Register::None {
            0
        } else {
            let index = insn.memory_index().number();
            let scale = u64::from(insn.memory_index_scale());
            if index == base {
                // base * (1 + scale) can't be steered: let it fault or not.
                gpr[base] = 0;
            }
            gpr[index].wrapping_mul(scale)
        };
        gpr[base] = target.wrapping_sub(insn.memory_displacement64()).wrapping_sub(index);
    }
}

fn effective_address(insn: &Instruction, gpr: &[u64; 16], bits: u32) -> u64 {
    if !(0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory)
        || insn.memory_index().is_vector_register()
    {
        return 0;
    }
    let part = |register: Register| {
        if register == Register::None { 0 } else { gpr[register.number() & 15] }
    };
    let scale = u64::from(insn.memory_index_scale());
    let address = part(insn.memory_base())
        .wrapping_add(part(insn.memory_index()).wrapping_mul(scale))
        .wrapping_add(insn.memory_displacement64());
    if bits == 64 { address } else { address & 0xffff_ffff }
}

fn expected_trap(vector: u8) -> Option<Vector> {
    Some(match vector {
        6 => Vector::InvalidOpcode,
        13 => Vector::GeneralProtection,
        14 => Vector::PageFault,
        16 => Vector::FloatingPoint,
        19 => Vector::SimdFloatingPoint,
        _ => return None,
    })
}

/// Gathers whose registers are half used: dword data by two qword indices.
fn is_half_gather(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Vgatherqps | Mnemonic::Vpgatherqd)
        && insn.memory_index().is_xmm()
}

/// What an AMD processor shows of x87 pointers when its state is saved, and keeps when it is loaded.
fn forget_pointers(state: &mut VectorState, amd: bool) {
    if !x87::saves_pointers(state, amd) {
        x87::clear_pointers(state);
    }
}

/// Runs one case both ways. `Err` describes the difference.
fn compare(
    rng: &mut Rng,
    unit: &mut VectorUnit,
    host: &mut Native,
    insn: &Instruction,
    bits: u32,
) -> Result<(), String> {
    if bits == 32
        && (is_area(insn.mnemonic())
            || matches!(insn.mnemonic(), Mnemonic::Vzeroall | Mnemonic::Vzeroupper))
    {
        // Another set of registers than in the 64-bit code that the host is asked with.
        return Ok(());
    }
    let mut insn = *insn;
    while is_area(insn.mnemonic())
        && [insn.memory_base(), insn.memory_index()]
            .iter()
            .any(|r| matches!(r, Register::RAX | Register::RDX))
    {
        insn.set_memory_base(Register::RSI);
        insn.set_memory_index(Register::RDI);
    }
    let insn = &insn;
    let bytes = generate::encode(insn).ok_or("does not encode")?;
    let at = host.place(&bytes);
    let decoded = generate::decode(&bytes, bits, at);
    if decoded.code() != insn.code() {
        // Same bytes, another name (an alias, or a different meaning in 32-bit code).
        return Ok(());
    }
    let mut state = generate::state(rng);
    forget_pointers(&mut state, unit.amd);
    let mut gpr = [0; 16];
    for value in &mut gpr {
        *value = match rng.below(3) {
            0 => rng.below(40),
            1 => rng.next(),
            _ => rng.next() & 0xffff_ffff,
        };
        if bits == 32 {
            *value &= 0xffff_ffff;
        }
    }
    arrange(rng, insn, host, &mut gpr, &mut state);
    if bits == 32 {
        for value in &mut gpr {
            *value &= 0xffff_ffff;
        }
    }
    let address = effective_address(insn, &gpr, bits);
    if bits == 32 && address != effective_address(insn, &gpr, 64) {
        // 64-bit code would not wrap there.
        return Ok(());
    }
    let flags = (rng.next() & Rflags::STATUS.bits()) | 0x202;

    let mut cpu = cpu(bits);
    cpu.vector = state.clone();
    cpu.gpr = gpr;
    cpu.rflags = flags;
    cpu.rip = at;
    let mut page = Page { base: host.scratch_address(), bytes: host.scratch().to_vec() };
    let before = cpu.clone();
    let page_before = page.bytes.clone();
    let ours = match unit.prepare(&decoded) {
        Some(op) => unit.execute(&op, &decoded, &mut cpu, &mut page, address),
        None => Err(Trap::ud()),
    };

    let mut theirs = host.run(&state.bytes, &gpr, flags);
    // A switch of the host's between loading the state and the instruction marks SSE as in use when
    // MXCSR isn't its initial value (SDM vol. 1, 13.11 "Operation of XSAVES"): ask once more.
    let saves = is_area(decoded.mnemonic()) && !is_restore(decoded.mnemonic());
    for _ in 0..3 {
        if !saves || host.scratch() == page.bytes {
            break;
        }
        host.scratch().copy_from_slice(&page_before);
        theirs = host.run(&state.bytes, &gpr, flags);
    }
    let host_page = host.scratch();

    forget_pointers(&mut cpu.vector, unit.amd);
    let trap = match ours {
        Ok(()) => None,
        Err(Trap::Exception(Exception { vector, .. })) => Some(vector),
        Err(Trap::Exit) => return Err("unexpected exit".into()),
    };
    let mut differences = Vec::new();
    if trap != theirs.trap.and_then(expected_trap) {
        differences.push(format!("outcome {trap:?}, host {:?}", theirs.trap));
    }
    for n in 0..16 {
        if cpu.gpr[n] != theirs.gpr[n] {
            differences.push(format!("gpr {n}: {:x}, host {:x}", cpu.gpr[n], theirs.gpr[n]));
        }
    }
    if (cpu.rflags ^ theirs.flags) & Rflags::STATUS.bits() != 0 {
        differences.push(format!("flags {:x}, host {:x}", cpu.rflags, theirs.flags));
    }
    // Words of the image that are not registers: MXCSR_MASK, the unused tail, the header. And what a
    // fault may leave half done, until the instruction is restarted: x87 state after an MMX store,
    // bytes past the gathered lanes, state loaded before a compacted image's bad MXCSR was seen, the
    // first part of a ten-byte store over a page end.
    let faulted = trap == Some(Vector::PageFault);
    let mmx = (0..decoded.op_count()).any(|i| decoded.op_register(i).is_mm());
    let gathered = if decoded.memory_index().is_vector_register() {
        decoded.op0_register().size()
    } else {
        usize::MAX
    };
    let skip = |at: usize| {
        (28..32).contains(&at)
            || (416..576).contains(&at)
            || faulted && mmx && at < 160
            || faulted && gathered < 32 && at >= 576
            || faulted && is_half_gather(&decoded) && (160..416).contains(&at) && at & 8 != 0
            || faulted && is_half_gather(&decoded) && at >= 576
            || trap == Some(Vector::GeneralProtection) && is_restore(decoded.mnemonic())
    };
    let split_store = faulted && decoded.memory_size().size() == 10;
    // The host may have bits of MXCSR that no model has, and say so in the images it saves.
    let mask_at = address.wrapping_sub(page.base).wrapping_add(28) as usize;
    if saves
        && let Some(host_mask) = host_page.get_mut(mask_at..mask_at + 4)
        && *host_mask == [0xff, 0xff, 2, 0]
    {
        host_mask[2] = 0;
    }
    for at in (0..XSAVE_AREA_SIZE).filter(|&at| !skip(at)) {
        if cpu.vector.bytes[at] != theirs.state[at] {
            let from = at & !15;
            differences.push(format!(
                "state {at}: was {:02x?}\n    ours {:02x?}\n    host {:02x?}",
                &before.vector.bytes[from..from + 16],
                &cpu.vector.bytes[from..from + 16],
                &theirs.state[from..from + 16]
            ));
            break;
        }
    }
    if let Some(at) = (0..SCRATCH_LEN).find(|&at| page.bytes[at] != host_page[at] && !split_store) {
        let from = at & !15;
        differences.push(format!(
            "memory {:x}: ours {:02x?}, host {:02x?}",
            page.base + at as u64,
            &page.bytes[from..from + 16],
            &host_page[from..from + 16]
        ));
    }
    if differences.is_empty() {
        return Ok(());
    }
    if is_area(decoded.mnemonic()) {
        let header = address.wrapping_sub(page.base).wrapping_add(512) as usize;
        differences.push(format!(
            "rax {:x}, rdx {:x}, header {:02x?}",
            gpr[0],
            gpr[2],
            page.bytes.get(header..header + 64)
        ));
    }
    Err(format!(
        "{bits}-bit {decoded} ({:?}) at {address:x}, mxcsr {:x} fcw {:x} fsw {:x}:\n  {}",
        insn.code(),
        state.mxcsr(),
        state.u16_at(0),
        state.u16_at(2),
        differences.join("\n  ")
    ))
}

/// Every code of the allowlist that can be compared in user mode.
pub fn codes(unit: &mut VectorUnit) -> Vec<Code> {
    let mut rng = Rng::new(1);
    Code::values()
        .filter(|&code| {
            use Mnemonic as M;
            // XCR0 differs from the host's.
            if matches!(code.mnemonic(), M::Xgetbv | M::Xsetbv) {
                return false;
            }
            generate::instruction(&mut rng, code, false)
                .and_then(|insn| generate::encode(&insn))
                .map(|bytes| generate::decode(&bytes, 64, 0))
                .is_some_and(|insn| insn.code() == code && unit.prepare(&insn).is_some())
        })
        .collect()
}

fn run(bits: u32, rounds: u32, seed: u64) {
    if !std::is_x86_feature_detected!("avx2") {
        // The harness itself saves and loads AVX state.
        return;
    }
    let mut unit = VectorUnit::new(Box::new(TestCode::new(1 << 20)));
    let host_is_amd = CpuidModel::parse("host").is_ok_and(|host| host.vendor() == Vendor::Amd);
    unit.set_model(7, host_is_amd);
    let mut host = native::native();
    let mut rng = Rng::new(seed);
    let codes = codes(&mut unit);
    assert!(codes.len() > 1000, "{}", codes.len());
    let (mut cases, mut failures) = (0, Vec::new());
    for code in codes {
        for _ in 0..rounds {
            let Some(insn) = generate::instruction(&mut rng, code, bits == 32) else { break };
            cases += 1;
            if let Err(difference) = compare(&mut rng, &mut unit, &mut host, &insn, bits) {
                failures.push(difference);
                break;
            }
        }
    }
    drop(host);
    assert!(
        failures.is_empty(),
        "{} of {cases} cases differ:\n{}",
        failures.len(),
        failures.iter().take(40).map(String::as_str).collect::<Vec<_>>().join("\n")
    );
    assert!(cases > 10_000 || rounds < 16);
}

#[test]
fn sixty_four_bit_code_matches_the_host() {
    let rounds = std::env::var("VECTOR_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let seed = std::env::var("VECTOR_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(7);
    run(64, rounds, seed);
}

#[test]
fn thirty_two_bit_code_matches_the_host() {
    run(32, 16, 11);
}
