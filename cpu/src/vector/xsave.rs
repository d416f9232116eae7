//! FXSAVE, FXRSTOR, the XSAVE family, XCR0 and MXCSR.
//!
//! Problem: operating systems switch contexts with these, in two formats and under per-component
//! rules, over a state that lives in `CpuState` and not in host registers. Scheme: written out on the
//! image. Invariants: components are x87 (0), SSE (1) and AVX (2); MXCSR has bits 16-31 clear;
//! a load checks everything before it changes anything. A component counts as in use (XINUSE) exactly
//! when it differs from its initial configuration, so XSTATE_BV depends on the state alone; hardware
//! may report an initialised component as in use, never the other way round. XSAVEOPT's modified
//! optimisation is not used. x87 pointers are zeros in an AMD model's images unless an exception is pending.
//! Thread: the vCPU's. Source: SDM vol. 1, "Managing State Using the XSAVE Feature Set"; vol. 2, FXSAVE,
//! XSAVE, XSAVEC, XSAVEOPT, XRSTOR. Extents probed for faults and bytes left alone were measured on a
//! Sapphire Rapids host.

use super::{Operand, x87};
use crate::exception::{Outcome, Trap};
use crate::state::{CpuState, VectorState, reg};

const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;

const MXCSR_DEFAULT: u32 = 0x1f80;
/// Bits that MXCSR has; what FXSAVE reports as MXCSR_MASK.
const MXCSR_MASK: u32 = 0xffff;
/// End of the header, where the AVX component starts in both formats (it is the only one).
const EXTENDED: usize = 576;
const AVX_LEN: usize = 256;
const COMPACTED: u64 = 1 << 63;

/// `wide`: REX.W, 64-bit pointers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    Fxsave { wide: bool },
    Fxrstor { wide: bool },
    Xsave { wide: bool },
    Xsaveopt { wide: bool },
    Xsavec { wide: bool },
    Xrstor { wide: bool },
}

pub fn execute(area: Area, operand: &mut Operand<'_>) -> Outcome {
    match area {
        Area::Fxsave { wide } => fxsave(operand, wide),
        Area::Fxrstor { wide } => fxrstor(operand, wide),
        Area::Xsave { wide } => xsave(operand, wide, false),
        Area::Xsaveopt { wide } => xsave(operand, wide, true),
        Area::Xsavec { wide } => xsavec(operand, wide),
        Area::Xrstor { wide } => xrstor(operand, wide),
    }
}

/// Bytes of XMM registers, or of upper halves, that the mode's instructions reach.
fn registers_len(cpu: &CpuState) -> usize {
    if cpu.is_64bit() { 256 } else { 128 }
}

/// Components not in their initial configuration. MXCSR is not part of SSE here.
fn in_use(state: &VectorState, amd: bool) -> u64 {
    // Without an early way out the compiler makes vector code of it.
    let zero = |from: usize, len: usize| {
        state.bytes[from..from + len].iter().fold(0, |any, &byte| any | byte) == 0
    };
    let pointers = x87::saves_pointers(state, amd);
    let x87_init = state.u16_at(VectorState::FCW) == 0x37f
        && zero(VectorState::FSW, if pointers { VectorState::MXCSR - VectorState::FSW } else { 4 })
        && zero(VectorState::ST, 128);
    u64::from(!x87_init) * X87
        + u64::from(!zero(VectorState::XMM, 256)) * SSE
        + u64::from(!zero(VectorState::YMMH, AVX_LEN)) * AVX
}

/// The same with MXCSR counted to SSE: XSAVEC, XGETBV.
fn in_use_with_mxcsr(state: &VectorState, amd: bool) -> u64 {
    in_use(state, amd) | if state.mxcsr() == MXCSR_DEFAULT { 0 } else { SSE }
}

/// The first 160 bytes of a legacy region, MXCSR and its mask included.
fn legacy_head(state: &VectorState, wide: bool, amd: bool) -> [u8; 160] {
    let mut head = [0; 160];
    head.copy_from_slice(&state.bytes[..160]);
    if !wide {
        for (at, selector) in [(12, VectorState::FCS), (20, VectorState::FDS)] {
            head[at..at + 2].copy_from_slice(&state.bytes[selector..selector + 2]);
            head[at + 2..at + 4].fill(0);
        }
    }
    if !x87::saves_pointers(state, amd) {
        head[6..24].fill(0);
    }
    head[5] = 0;
    head[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    for slot in head[32..].chunks_exact_mut(16) {
        slot[10..].fill(0);
    }
    head
}

/// Loads x87 state from a legacy region.
fn load_x87(state: &mut VectorState, image: &[u8], wide: bool, amd: bool) {
    state.bytes[VectorState::FCS..VectorState::FDS + 2].fill(0);
    state.bytes[..24].copy_from_slice(&image[..24]);
    state.bytes[5] = 0;
    let opcode = state.u16_at(6) & 0x7ff;
    state.set_u16_at(6, opcode);
    for pointer in state.bytes[8..24].chunks_exact_mut(8) {
        if wide {
            // A processor keeps as many bits as linear addresses have: 48, sign-extended.
            let sign = if pointer[5] & 0x80 != 0 { 0xff } else { 0 };
            pointer[6..].fill(sign);
        } else {
            pointer[4..].fill(0);
        }
    }
    if amd && !wide {
        state.bytes[VectorState::FCS..][..2].copy_from_slice(&image[12..14]);
        state.bytes[VectorState::FDS..][..2].copy_from_slice(&image[20..22]);
    }
    state.bytes[VectorState::ST..][..128].copy_from_slice(&image[32..160]);
    for slot in state.bytes[VectorState::ST..][..128].chunks_exact_mut(16) {
        slot[10..].fill(0);
    }
    x87::normalise(state);
    if !x87::saves_pointers(state, amd) {
        x87::clear_pointers(state);
    }
}

fn init_x87(state: &mut VectorState) {
    x87::clear_pointers(state);
    state.bytes[..24].fill(0);
    state.bytes[VectorState::ST..][..128].fill(0);
    state.set_u16_at(VectorState::FCW, 0x37f);
}

fn mxcsr_of(image: &[u8]) -> u32 {
    u32::from_le_bytes([image[24], image[25], image[26], image[27]])
}

/// #GP(0) if a reserved bit is set.
fn check_mxcsr(value: u32) -> Outcome {
    if value & !MXCSR_MASK != 0 { Err(Trap::gp0()) } else { Ok(()) }
}

fn fxsave(operand: &mut Operand<'_>, wide: bool) -> Outcome {
    operand.check_area(16)?;
    operand.probe(512)?;
    let len = registers_len(operand.cpu);
    let mut image = [0; 160 + 256];
    image[..160].copy_from_slice(&legacy_head(&operand.cpu.vector, wide, operand.amd));
    image[160..].copy_from_slice(&operand.cpu.vector.bytes[VectorState::XMM..][..256]);
    operand.write(0, &image[..160 + len])
}

fn fxrstor(operand: &mut Operand<'_>, wide: bool) -> Outcome {
    operand.check_area(16)?;
    let mut image = [0; 512];
    operand.read(0, &mut image)?;
    let mxcsr = mxcsr_of(&image);
    check_mxcsr(mxcsr)?;
    let len = registers_len(operand.cpu);
    let state = &mut operand.cpu.vector;
    load_x87(state, &image, wide, operand.amd);
    state.set_mxcsr(mxcsr);
    state.bytes[VectorState::XMM..][..len].copy_from_slice(&image[160..160 + len]);
    Ok(())
}

/// EDX:EAX, cut to what XCR0 enables.
fn requested(cpu: &CpuState) -> u64 {
    let mask = (cpu.gpr[reg::RDX] << 32) | (cpu.gpr[reg::RAX] & 0xffff_ffff);
    mask & cpu.xcr0 & 7
}

fn area_len(components: u64) -> usize {
    if components & AVX != 0 { EXTENDED + AVX_LEN } else { EXTENDED }
}

/// Stores the components in `saved`; the area has been probed.
fn store_components(operand: &mut Operand<'_>, saved: u64, mxcsr: bool, wide: bool) -> Outcome {
    let head = legacy_head(&operand.cpu.vector, wide, operand.amd);
    let len = registers_len(operand.cpu);
    if saved & X87 != 0 {
        operand.write(0, &head[..24])?;
        operand.write(32, &head[32..])?;
    }
    if mxcsr {
        operand.write(24, &head[24..32])?;
    }
    let mut registers = [0; 256];
    if saved & SSE != 0 {
        registers.copy_from_slice(&operand.cpu.vector.bytes[VectorState::XMM..][..256]);
        operand.write(160, &registers[..len])?;
    }
    if saved & AVX != 0 {
        registers.copy_from_slice(&operand.cpu.vector.bytes[VectorState::YMMH..][..256]);
        operand.write(EXTENDED as u64, &registers[..len])?;
    }
    Ok(())
}

/// XSAVE, and XSAVEOPT (`optimise`: leave out what is in its initial configuration).
fn xsave(operand: &mut Operand<'_>, wide: bool, optimise: bool) -> Outcome {
    operand.check_area(64)?;
    let wanted = requested(operand.cpu);
    operand.probe(area_len(wanted))?;
    let mut old = [0; 8];
    operand.read(512, &mut old)?;
    let used = in_use(&operand.cpu.vector, operand.amd);
    let saved = if optimise { wanted & used } else { wanted };
    store_components(operand, saved, wanted & (SSE | AVX) != 0, wide)?;
    let present = (u64::from_le_bytes(old) & !wanted) | (used & wanted);
    operand.write(512, &present.to_le_bytes())
}

fn xsavec(operand: &mut Operand<'_>, wide: bool) -> Outcome {
    operand.check_area(64)?;
    let wanted = requested(operand.cpu);
    operand.probe(area_len(wanted))?;
    let saved = in_use_with_mxcsr(&operand.cpu.vector, operand.amd) & wanted;
    store_components(operand, saved, saved & SSE != 0, wide)?;
    let mut header = [0; 16];
    header[..8].copy_from_slice(&saved.to_le_bytes());
    header[8..].copy_from_slice(&(wanted | COMPACTED).to_le_bytes());
    operand.write(512, &header)
}

fn xrstor(operand: &mut Operand<'_>, wide: bool) -> Outcome {
    operand.check_area(64)?;
    let wanted = requested(operand.cpu);
    let mut image = [0; EXTENDED + AVX_LEN];
    operand.read(0, &mut image[..EXTENDED])?;
    let quad = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().expect("eight bytes"));
    let (present, compaction) = (quad(512), quad(520));
    let compacted = compaction & COMPACTED != 0;
    let enabled = operand.cpu.xcr0;
    let reserved = |from: usize| image[from..EXTENDED].iter().any(|&byte| byte != 0);
    let bad = if compacted {
        let layout = compaction & !COMPACTED;
        layout & !enabled != 0 || present & !layout != 0 || reserved(528)
    } else {
        present & !enabled != 0 || compaction != 0 || quad(528) != 0
    };
    if bad {
        return Err(Trap::gp0());
    }

    // The standard format takes MXCSR with either of SSE and AVX, present or not; the compacted one
    // treats it as part of SSE.
    let loaded = wanted & present;
    let mxcsr = if compacted {
        (wanted & SSE != 0).then_some(if loaded & SSE != 0 {
            mxcsr_of(&image)
        } else {
            MXCSR_DEFAULT
        })
    } else {
        (wanted & (SSE | AVX) != 0).then_some(mxcsr_of(&image))
    };
    if let Some(value) = mxcsr {
        check_mxcsr(value)?;
    }
    let extended = if compacted { loaded } else { wanted };
    if extended & AVX != 0 {
        operand.read(EXTENDED as u64, &mut image[EXTENDED..])?;
    }

    let len = registers_len(operand.cpu);
    let state = &mut operand.cpu.vector;
    if loaded & X87 != 0 {
        load_x87(state, &image, wide, operand.amd);
    } else if wanted & X87 != 0 {
        init_x87(state);
    }
    if let Some(value) = mxcsr {
        state.set_mxcsr(value);
    }
    for (component, to, from) in [(SSE, VectorState::XMM, 160), (AVX, VectorState::YMMH, EXTENDED)]
    {
        if loaded & component != 0 {
            state.bytes[to..to + len].copy_from_slice(&image[from..from + len]);
        } else if wanted & component != 0 {
            state.bytes[to..to + len].fill(0);
        }
    }
    Ok(())
}

pub fn xgetbv(cpu: &mut CpuState, amd: bool) -> Outcome {
    let value = match cpu.gpr[reg::RCX] & 0xffff_ffff {
        0 => cpu.xcr0,
        1 => cpu.xcr0 & in_use_with_mxcsr(&cpu.vector, amd),
        _ => return Err(Trap::gp0()),
    };
    cpu.gpr[reg::RAX] = value & 0xffff_ffff;
    cpu.gpr[reg::RDX] = value >> 32;
    Ok(())
}

/// `supported`: XCR0 bits of the guest's CPUID model.
pub fn xsetbv(cpu: &mut CpuState, supported: u64) -> Outcome {
    let value = (cpu.gpr[reg::RDX] << 32) | (cpu.gpr[reg::RAX] & 0xffff_ffff);
    let refused = cpu.cpl != 0
        || cpu.gpr[reg::RCX] & 0xffff_ffff != 0
        || value & X87 == 0
        || value & !supported != 0
        || value & (SSE | AVX) == AVX;
    if refused {
        return Err(Trap::gp0());
    }
    cpu.xcr0 = value;
    Ok(())
}

pub fn ldmxcsr(operand: &mut Operand<'_>) -> Outcome {
    let mut bytes = [0; 4];
    operand.read(0, &mut bytes)?;
    let value = u32::from_le_bytes(bytes);
    check_mxcsr(value)?;
    operand.cpu.vector.set_mxcsr(value);
    Ok(())
}
