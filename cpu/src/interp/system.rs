//! System instructions: control, debug and table registers, TLB maintenance, flags, CPUID, time.
//!
//! Problem: each is rare, privileged, and hedged with checks. Scheme: one handler each; those that may
//! change the mode, the mapping or what interrupts are taken end with [`Trap::Exit`], so the run loop
//! looks again. Invariant: a refused value changes nothing. Source: SDM vol. 3, "Control
//! Registers", "Debug Registers"; vol. 2, each instruction.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::alu::operand_bytes;
use super::decode::{Handler, Insn};
use super::memory::is_canonical;
use super::width::Width;
use super::{DR7_GD, Interp};
use crate::addr::Gva;
use crate::cpuid::Feature;
use crate::env::Memory;
use crate::exception::{Outcome, Trap};
use crate::state::reg::{RAX, RBX, RCX, RDX};
use crate::state::{Activity, Cr0, Cr4, Efer, Rflags, Segment, Shadow, TableRegister, sreg};

/// DR6 bits that always read as one.
const DR6_ONES: u64 = 0xffff_0ff0;
/// DR7 bits that always read as one.
const DR7_ONES: u64 = 0x400;
/// DR7 bits that always read as zero.
const DR7_ZEROS: u64 = 0xd800;
/// DR6.BD: a debug register was touched while guarded.
const DR6_BD: u32 = 1 << 13;

impl<M: Memory> Interp<M> {
    /// #GP(0) unless CPL is 0.
    pub(super) fn privileged(&self) -> Outcome {
        if self.state.cpl == 0 { Ok(()) } else { Err(Trap::gp0()) }
    }

    /// Loads CR0 (SDM vol. 2, "MOV—Move to/from Control Registers").
    fn write_cr0(&mut self, value: u64) -> Outcome {
        let known = Cr0::all().bits();
        if value >> 32 != 0 {
            return Err(Trap::gp0());
        }
        let new = value & known | Cr0::ET.bits();
        let old = self.state.cr0;
        let set = |bit: Cr0| new & bit.bits() != 0;
        let changed = |bit: Cr0| (new ^ old) & bit.bits() != 0;
        if set(Cr0::PG) && !set(Cr0::PE) || set(Cr0::NW) && !set(Cr0::CD) {
            return Err(Trap::gp0());
        }
        let mut efer = self.state.efer;
        if changed(Cr0::PG) {
            let long = efer & Efer::LME.bits() != 0;
            let cs_long = self.state.seg[sreg::CS].access & Segment::LONG != 0;
            if set(Cr0::PG) && long {
                let tss_16 = self.state.tr.access & 0xf < 8;
                if !self.state.cr4(Cr4::PAE) || cs_long || tss_16 {
                    return Err(Trap::gp0());
                }
                efer |= Efer::LMA.bits();
            } else if !set(Cr0::PG) {
                if self.mode.long64 || self.state.cr4(Cr4::PCIDE) {
                    return Err(Trap::gp0());
                }
                efer &= !Efer::LMA.bits();
            }
        }
        let pae = self.state.cr4(Cr4::PAE) && efer & Efer::LMA.bits() == 0;
        let reload = changed(Cr0::PG) || changed(Cr0::CD) || changed(Cr0::NW);
        if set(Cr0::PG) && pae && reload {
            self.load_pdptes(self.state.cr3)?;
        }
        self.state.cr0 = new;
        self.state.efer = efer;
        if changed(Cr0::PE) {
            self.state.cpl = 0;
        }
        if changed(Cr0::PG) || changed(Cr0::WP) || changed(Cr0::PE) {
            self.mem.flush_all();
        }
        if changed(Cr0::PG) {
            self.mem.set_context(&self.state, false);
        }
        Err(Trap::Exit)
    }

    fn load_pdptes(&mut self, cr3: u64) -> Outcome {
        self.state.pdpte = self.mem.pdptes(cr3).ok_or(Trap::gp0())?;
        Ok(())
    }

    /// PAE paging with PDPTE registers is in use.
    fn uses_pdptes(&self) -> bool {
        self.state.cr0(Cr0::PG) && self.state.cr4(Cr4::PAE) && !self.state.long_mode()
    }

    fn write_cr3(&mut self, value: u64) -> Outcome {
        let mut value = value;
        let mut keep = false;
        if self.state.long_mode() {
            if self.state.cr4(Cr4::PCIDE) {
                keep = value >> 63 != 0;
                value &= !(1 << 63);
            }
            if value >> self.cpuid.physical_bits() != 0 {
                return Err(Trap::gp0());
            }
        } else {
            value &= 0xffff_ffff;
            if self.uses_pdptes() {
                self.load_pdptes(value)?;
            }
        }
        self.state.cr3 = value;
        self.mem.set_context(&self.state, keep);
        Err(Trap::Exit)
    }

    /// CR3 from a 32-bit TSS.
    pub(super) fn switch_cr3(&mut self, cr3: u64) -> Outcome {
        match self.write_cr3(cr3) {
            Err(Trap::Exit) => Ok(()),
            other => other,
        }
    }

    /// CR4 bits of this CPU model.
    fn cr4_allowed(&self) -> u64 {
        let always = Cr4::TSD | Cr4::MCE | Cr4::PCE;
        let conditional = [
            (Feature::Vme, Cr4::VME | Cr4::PVI),
            (Feature::De, Cr4::DE),
            (Feature::Pse, Cr4::PSE),
            (Feature::Pae, Cr4::PAE),
            (Feature::Pge, Cr4::PGE),
            (Feature::Fxsr, Cr4::OSFXSR),
            (Feature::Sse, Cr4::OSXMMEXCPT),
            (Feature::Umip, Cr4::UMIP),
            (Feature::Fsgsbase, Cr4::FSGSBASE),
            (Feature::Pcid, Cr4::PCIDE),
            (Feature::Xsave, Cr4::OSXSAVE),
            (Feature::Smep, Cr4::SMEP),
            (Feature::Smap, Cr4::SMAP),
        ];
        conditional
            .iter()
            .filter(|(feature, _)| self.cpuid.has(*feature))
            .fold(always.bits(), |allowed, (_, bits)| allowed | bits.bits())
    }

    fn write_cr4(&mut self, value: u64) -> Outcome {
        if value & !self.cr4_allowed() != 0 {
            return Err(Trap::gp0());
        }
        let old = self.state.cr4;
        let set = |bit: Cr4| value & bit.bits() != 0;
        let changed = |bits: Cr4| (value ^ old) & bits.bits() != 0;
        if self.state.long_mode() && !set(Cr4::PAE) {
            return Err(Trap::gp0());
        }
        let pcids_usable = self.state.long_mode() && self.state.cr3 & 0xfff == 0;
        if changed(Cr4::PCIDE) && set(Cr4::PCIDE) && !pcids_usable {
            return Err(Trap::gp0());
        }
        let paging = Cr4::PGE | Cr4::PSE | Cr4::PAE | Cr4::SMEP | Cr4::SMAP | Cr4::PCIDE;
        let reload = changed(Cr4::PGE | Cr4::PSE | Cr4::PAE | Cr4::SMEP);
        if self.state.cr0(Cr0::PG) && set(Cr4::PAE) && !self.state.long_mode() && reload {
            self.load_pdptes(self.state.cr3)?;
        }
        self.state.cr4 = value;
        if changed(paging) {
            self.mem.flush_all();
            self.mem.set_context(&self.state, false);
        }
        Err(Trap::Exit)
    }

    /// Reads a debug register; #UD for DR4 and DR5 under CR4.DE, #DB when guarded.
    fn check_debug_register(&mut self, n: usize) -> Outcome<usize> {
        let n = match n {
            4 | 5 if self.state.cr4(Cr4::DE) => return Err(Trap::ud()),
            4 | 5 => n + 2,
            _ => n,
        };
        self.privileged()?;
        if self.state.dr[7] & DR7_GD != 0 {
            self.state.dr[6] |= u64::from(DR6_BD);
            self.state.dr[7] &= !DR7_GD;
            return Err(Trap::db());
        }
        Ok(n)
    }

    fn write_debug_register(&mut self, n: usize, value: u64) -> Outcome {
        let n = self.check_debug_register(n)?;
        if n >= 6 && value >> 32 != 0 {
            return Err(Trap::gp0());
        }
        self.state.dr[n] = match n {
            6 => value & 0xe00f | DR6_ONES,
            7 => value & !DR7_ZEROS & 0xffff_ffff | DR7_ONES,
            _ => value,
        };
        Err(Trap::Exit)
    }

    /// The guest's time stamp counter.
    pub(super) fn time_stamp(&mut self) -> u64 {
        self.env.set_retired(self.state.retired);
        self.env.tsc().wrapping_add(self.state.msr.tsc_offset)
    }

    /// #GP(0) where CR4.UMIP keeps table registers from users.
    pub(super) fn check_umip(&self) -> Outcome {
        if self.state.cpl > 0 && self.state.cr4(Cr4::UMIP) { Err(Trap::gp0()) } else { Ok(()) }
    }
}

/// MOV to and from control and debug registers: operands are 64 bits in 64-bit mode, else 32.
pub(super) fn mov_special<M: Memory>(raw: &Instruction) -> Handler<M> {
    let (to, from) = (raw.op0_register(), raw.op1_register());
    match (to.is_cr(), from.is_cr(), to.is_dr(), from.is_dr()) {
        (true, ..) => mov_to_cr,
        (_, true, ..) => mov_from_cr,
        (_, _, true, _) => mov_to_dr,
        (_, _, _, true) => mov_from_dr,
        _ => super::table::undefined,
    }
}

fn mov_to_cr<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let n = i.raw.op0_register().number();
    // LOCK MOV CR0, by which some AMD processors mean CR8, comes with a CPUID bit that no model has.
    if !matches!(n, 0 | 2 | 3 | 4 | 8) || i.lock {
        return Err(Trap::ud());
    }
    vm.privileged()?;
    let value = vm.state.gpr[usize::from(i.src)];
    let value = if vm.mode.long64 { value } else { value & 0xffff_ffff };
    match n {
        0 => vm.write_cr0(value),
        2 => {
            vm.state.cr2 = value;
            Ok(())
        }
        3 => vm.write_cr3(value),
        4 => vm.write_cr4(value),
        _ if value & !0xf != 0 => Err(Trap::gp0()),
        _ => {
            vm.env.set_retired(vm.state.retired);
            vm.env.set_task_priority(value as u8);
            Err(Trap::Exit)
        }
    }
}

fn mov_from_cr<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let n = i.raw.op1_register().number();
    if !matches!(n, 0 | 2 | 3 | 4 | 8) || i.lock {
        return Err(Trap::ud());
    }
    vm.privileged()?;
    let value = match n {
        0 => vm.state.cr0,
        2 => vm.state.cr2,
        3 => vm.state.cr3,
        4 => vm.state.cr4,
        _ => u64::from(vm.env.task_priority()),
    };
    vm.state.gpr[usize::from(i.dst)] = if vm.mode.long64 { value } else { value & 0xffff_ffff };
    Ok(())
}

fn mov_to_dr<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let value = vm.state.gpr[usize::from(i.src)];
    let value = if vm.mode.long64 { value } else { value & 0xffff_ffff };
    vm.write_debug_register(i.raw.op0_register().number(), value)
}

fn mov_from_dr<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let n = vm.check_debug_register(i.raw.op1_register().number())?;
    let value = vm.state.dr[n];
    vm.state.gpr[usize::from(i.dst)] = if vm.mode.long64 { value } else { value & 0xffff_ffff };
    Ok(())
}

pub(super) fn clts<M: Memory>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    vm.privileged()?;
    vm.state.cr0 &= !Cr0::TS.bits();
    Ok(())
}

pub(super) fn smsw<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    vm.check_umip()?;
    let value = vm.state.cr0;
    vm.store_word_or_register(i, value)
}

impl<M: Memory> Interp<M> {
    /// Stores 16 bits to memory, or a register in its full operand size (SMSW, SLDT, STR).
    pub(super) fn store_word_or_register(&mut self, i: &Insn<M>, value: u64) -> Outcome {
        if i.raw.op0_kind() == OpKind::Memory {
            let offset = self.address(i);
            return self.store(i.seg, offset, value as u16);
        }
        match i.raw.op0_register().size() {
            2 => u16::set(&mut self.state, i.dst, value as u16),
            4 => u32::set(&mut self.state, i.dst, value as u32),
            _ => u64::set(&mut self.state, i.dst, value),
        }
        Ok(())
    }

    /// Loads a 16-bit operand from a register or memory.
    pub(super) fn load_word(&mut self, i: &Insn<M>) -> Outcome<u16> {
        super::alu::source::<M, u16>(self, i)
    }
}

pub(super) fn lmsw<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    vm.privileged()?;
    let value = u64::from(vm.load_word(i)?);
    // PE can be set, not cleared.
    let new = vm.state.cr0 & !0xe | value & 0xf;
    vm.write_cr0(new)
}

/// LGDT and LIDT (`INTERRUPTS`).
fn load_table<M: Memory, const INTERRUPTS: bool>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    vm.privileged()?;
    let offset = vm.address(i);
    let limit = vm.load::<u16>(i.seg, offset)?;
    let at = offset.wrapping_add(2) & i.addr_mask;
    let base = if vm.mode.long64 {
        vm.load::<u64>(i.seg, at)?
    } else {
        let base = u64::from(vm.load::<u32>(i.seg, at)?);
        if is_word_form(&i.raw) { base & 0xff_ffff } else { base }
    };
    if vm.mode.long64 && !is_canonical(base) {
        return Err(Trap::gp0());
    }
    let table = TableRegister { base, limit };
    if INTERRUPTS {
        vm.state.idtr = table;
    } else {
        vm.state.gdtr = table;
    }
    Ok(())
}

/// SGDT and SIDT (`INTERRUPTS`).
fn store_table<M: Memory, const INTERRUPTS: bool>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    vm.check_umip()?;
    let table = if INTERRUPTS { vm.state.idtr } else { vm.state.gdtr };
    let offset = vm.address(i);
    let base_bytes = if vm.mode.long64 { 8 } else { 4 };
    let la = vm.linear(i.seg, offset, 2 + base_bytes, true)?;
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    vm.write_linear(la, &bytes[..2 + base_bytes as usize], vm.mode.privilege)
}

/// The 16-bit operand size form, whose base has 24 bits.
fn is_word_form(raw: &Instruction) -> bool {
    use iced_x86::Code as C;
    matches!(raw.code(), C::Lgdt_m1632_16 | C::Lidt_m1632_16)
}

pub(super) fn table_register<M: Memory>(raw: &Instruction) -> Handler<M> {
    match raw.mnemonic() {
        Mnemonic::Lgdt => load_table::<M, false>,
        Mnemonic::Lidt => load_table::<M, true>,
        Mnemonic::Sgdt => store_table::<M, false>,
        _ => store_table::<M, true>,
    }
}

pub(super) fn invlpg<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    vm.privileged()?;
    let offset = vm.address(i);
    let base = if vm.mode.long64 && usize::from(i.seg) < sreg::FS {
        0
    } else {
        vm.state.seg[usize::from(i.seg)].base
    };
    let la = vm.wrap_code(base.wrapping_add(offset));
    // A non-canonical address does nothing.
    if !vm.mode.long64 || is_canonical(la) {
        vm.mem.flush_page(Gva(la));
    }
    Err(Trap::Exit)
}

pub(super) fn invpcid<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    vm.privileged()?;
    let offset = vm.address(i);
    let kind = vm.state.gpr[usize::from(i.dst)];
    let kind = if vm.mode.long64 { kind } else { kind & 0xffff_ffff };
    let la = vm.linear(i.seg, offset, 16, false)?;
    let mut descriptor = [0; 16];
    vm.read_linear(la, &mut descriptor, vm.mode.privilege)?;
    let [low, address] = [0, 8].map(|at| {
        let mut word = [0; 8];
        word.copy_from_slice(&descriptor[at..at + 8]);
        u64::from_le_bytes(word)
    });
    if low >> 12 != 0 || kind > 3 {
        return Err(Trap::gp0());
    }
    let pcid = low as u16;
    if kind < 2 && pcid != 0 && !vm.state.cr4(Cr4::PCIDE) {
        return Err(Trap::gp0());
    }
    match kind {
        0 if !is_canonical(address) => return Err(Trap::gp0()),
        0 => vm.mem.flush_page_in(pcid, Gva(address)),
        1 => vm.mem.flush_context(Some(pcid)),
        2 => vm.mem.flush_all(),
        _ => vm.mem.flush_context(None),
    }
    Err(Trap::Exit)
}

pub(super) fn cli<M: Memory>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    if vm.state.protected() && vm.state.cpl > vm.state.iopl() {
        return vm.virtual_interrupt_flag(false);
    }
    if vm.state.v86() && vm.state.iopl() < 3 {
        return vm.virtual_interrupt_flag(false);
    }
    vm.state.rflags &= !Rflags::IF.bits();
    Ok(())
}

pub(super) fn sti<M: Memory>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    if vm.state.protected() && vm.state.cpl > vm.state.iopl() {
        return vm.virtual_interrupt_flag(true);
    }
    if !vm.state.flag(Rflags::IF) {
        vm.state.rflags |= Rflags::IF.bits();
        vm.state.shadow = Shadow::Sti;
    }
    Err(Trap::Exit)
}

impl<M: Memory> Interp<M> {
    /// CLI and STI above IOPL: VIF under the virtual interrupt extensions, else #GP(0).
    fn virtual_interrupt_flag(&mut self, set: bool) -> Outcome {
        let extended = if self.state.v86() {
            self.state.cr4(Cr4::VME)
        } else {
            self.state.cpl == 3 && self.state.cr4(Cr4::PVI)
        };
        if !extended || set && self.state.flag(Rflags::VIP) {
            return Err(Trap::gp0());
        }
        self.state.rflags &= !Rflags::VIF.bits();
        if set {
            self.state.rflags |= Rflags::VIF.bits();
        }
        Ok(())
    }
}

pub(super) fn hlt<M: Memory>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    vm.privileged()?;
    vm.state.activity = Activity::Halted;
    Err(Trap::Exit)
}

pub(super) fn cpuid<M: Memory>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    let leaf = vm.state.gpr[RAX] as u32;
    let subleaf = vm.state.gpr[RCX] as u32;
    let words = vm.cpuid.query(leaf, subleaf, &vm.state, vm.apic_id);
    for (register, word) in [RAX, RBX, RCX, RDX].into_iter().zip(words) {
        vm.state.gpr[register] = u64::from(word);
    }
    Ok(())
}

/// RDTSC, and RDTSCP (`WITH_AUX`).
pub(super) fn rdtsc<M: Memory, const WITH_AUX: bool>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    if vm.state.cr4(Cr4::TSD) && vm.state.cpl != 0 && vm.state.protected() {
        return Err(Trap::gp0());
    }
    let ticks = vm.time_stamp();
    vm.state.gpr[RAX] = ticks & 0xffff_ffff;
    vm.state.gpr[RDX] = ticks >> 32;
    if WITH_AUX {
        vm.state.gpr[RCX] = vm.state.msr.tsc_aux & 0xffff_ffff;
    }
    Ok(())
}

pub(super) fn rdpid<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    vm.state.gpr[usize::from(i.dst)] = vm.state.msr.tsc_aux & 0xffff_ffff;
    Ok(())
}

/// No performance counters: #GP(0) for every number.
pub(super) fn rdpmc<M: Memory>(_: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    Err(Trap::gp0())
}

pub(super) fn rdmsr<M: Memory>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    vm.privileged()?;
    let value = vm.read_msr(vm.state.gpr[RCX] as u32)?;
    vm.state.gpr[RAX] = value & 0xffff_ffff;
    vm.state.gpr[RDX] = value >> 32;
    Ok(())
}

pub(super) fn wrmsr<M: Memory>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    vm.privileged()?;
    let value = vm.state.gpr[RDX] << 32 | vm.state.gpr[RAX] & 0xffff_ffff;
    vm.write_msr(vm.state.gpr[RCX] as u32, value)?;
    Err(Trap::Exit)
}

/// RDRAND and RDSEED: there is always a number.
pub(super) fn random<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let value = vm.env.random();
    match operand_bytes(&i.raw) {
        2 => u16::set(&mut vm.state, i.dst, value as u16),
        4 => u32::set(&mut vm.state, i.dst, value as u32),
        _ => u64::set(&mut vm.state, i.dst, value),
    }
    vm.state.rflags = vm.state.rflags & !Rflags::STATUS.bits() | Rflags::CF.bits();
    Ok(())
}

/// STAC and CLAC.
pub(super) fn set_ac<M: Memory, const SET: bool>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    if vm.state.cpl != 0 || vm.state.v86() {
        return Err(Trap::ud());
    }
    vm.state.rflags &= !Rflags::AC.bits();
    if SET {
        vm.state.rflags |= Rflags::AC.bits();
    }
    vm.refresh();
    Ok(())
}

/// INVD, WBINVD: caches are the host's affair.
pub(super) fn flush_caches<M: Memory>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    vm.privileged()
}

/// CLFLUSH, CLFLUSHOPT, CLWB: the address is checked as by a load of a byte.
pub(super) fn flush_line<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    let offset = vm.address(i);
    let la = vm.linear(i.seg, offset, 1, false)?;
    let access = super::Access::Read;
    match vm.mem.translate(&vm.state, Gva(la), access, vm.mode.privilege) {
        Ok(_) => Ok(()),
        Err(fault) => Err(vm.page_fault(fault)),
    }
}

/// MFENCE, LFENCE, SFENCE and SERIALIZE: a full barrier covers all.
pub(super) fn fence<M: Memory>(_: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(())
}

/// RDFSBASE, RDGSBASE, WRFSBASE and WRGSBASE.
pub(super) fn segment_base<M: Memory>(vm: &mut Interp<M>, i: &Insn<M>) -> Outcome {
    if !vm.state.cr4(Cr4::FSGSBASE) {
        return Err(Trap::ud());
    }
    use Mnemonic as N;
    let register = match i.raw.mnemonic() {
        N::Rdfsbase | N::Wrfsbase => sreg::FS,
        _ => sreg::GS,
    };
    let wide = i.raw.op0_register().size() == 8;
    let value = vm.state.gpr[usize::from(i.dst)];
    if matches!(i.raw.mnemonic(), N::Rdfsbase | N::Rdgsbase) {
        let base = vm.state.seg[register].base;
        vm.state.gpr[usize::from(i.dst)] = if wide { base } else { base & 0xffff_ffff };
        return Ok(());
    }
    let value = if wide { value } else { value & 0xffff_ffff };
    if !is_canonical(value) {
        return Err(Trap::gp0());
    }
    vm.state.seg[register].base = value;
    Ok(())
}

pub(super) fn swapgs<M: Memory>(vm: &mut Interp<M>, _: &Insn<M>) -> Outcome {
    vm.privileged()?;
    std::mem::swap(&mut vm.state.seg[sreg::GS].base, &mut vm.state.msr.kernel_gs_base);
    Ok(())
}
