//! Model-specific registers.
//!
//! Problem: guests probe for registers, so an unknown one must fault, and a known one must refuse what
//! a processor refuses. Scheme: two matches, read and write; registers of the local APIC and of KVM's clock go
//! to the machine. What only one vendor's processors have exists only when the model is that vendor's. Invariants:
//! no unknown register reads as zero; a refused write changes nothing. Source: SDM vol. 4, "Architectural
//! MSRs"; APM vol. 2, "MSR Cross-Reference"; Linux, Documentation/virt/kvm/x86/msr.rst.

use tracing::debug;

use super::Interp;
use super::memory::is_canonical;
use crate::cpuid::Feature;
use crate::env::Memory;
use crate::exception::{Outcome, Trap};
use crate::state::{Cr0, Efer, sreg};

/// Register numbers (SDM vol. 4, "Architectural MSRs").
mod number {
    pub const P5_MC_ADDR: u32 = 0x0;
    pub const P5_MC_TYPE: u32 = 0x1;
    pub const TSC: u32 = 0x10;
    pub const KVM_WALL_CLOCK: u32 = 0x11;
    pub const KVM_SYSTEM_TIME: u32 = 0x12;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1b;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const SPEC_CTRL: u32 = 0x48;
    pub const PRED_CMD: u32 = 0x49;
    pub const BIOS_UPDT_TRIG: u32 = 0x79;
    pub const BIOS_SIGN_ID: u32 = 0x8b;
    pub const MTRRCAP: u32 = 0xfe;
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const MTRR_PHYSBASE0: u32 = 0x200;
    pub const MTRR_PHYSMASK7: u32 = 0x20f;
    pub const MTRR_FIX64K: u32 = 0x250;
    pub const MTRR_FIX16K_80000: u32 = 0x258;
    pub const MTRR_FIX16K_A0000: u32 = 0x259;
    pub const MTRR_FIX4K_FIRST: u32 = 0x268;
    pub const MTRR_FIX4K_LAST: u32 = 0x26f;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const X2APIC_FIRST: u32 = 0x800;
    pub const X2APIC_EOI: u32 = 0x80b;
    pub const X2APIC_ICR: u32 = 0x830;
    pub const X2APIC_INITIAL_COUNT: u32 = 0x838;
    pub const X2APIC_LAST: u32 = 0x8ff;
    pub const KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
    pub const KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;

    pub const fn is_of_kvms_clock(msr: u32) -> bool {
        matches!(msr, KVM_WALL_CLOCK | KVM_SYSTEM_TIME | KVM_WALL_CLOCK_NEW | KVM_SYSTEM_TIME_NEW)
    }

    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const FMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;

    // AMD's (APM vol. 2, "MSR Cross-Reference"; Processor Programming Reference for family 19h).
    pub const SYSCFG: u32 = 0xc001_0010;
    pub const HWCR: u32 = 0xc001_0015;
    pub const NB_CFG: u32 = 0xc001_001f;
    pub const PATCH_LOADER: u32 = 0xc001_0020;
    pub const DE_CFG: u32 = 0xc001_1029;
}
use number as n;

/// Unknown registers that are logged; the guest may try all 2^32.
const MSRS_LOGGED_MAX: usize = 256;
/// Eight variable ranges, fixed ranges, write combining.
const MTRR_CAPABILITIES: u64 = 8 | 1 << 8 | 1 << 10;
/// FEATURE_CONTROL: locked, nothing enabled.
const FEATURE_CONTROL_LOCKED: u64 = 1;
/// HWCR as the firmware has left it: the time stamp counter runs at the P0 frequency. Locked.
const HWCR_FIXED: u64 = 1 << 24;
/// DE_CFG: LFENCE serialises.
const DE_CFG_FIXED: u64 = 1 << 1;
/// MISC_ENABLE bits that a guest may change: fast strings, and limited CPUID leaves.
const MISC_ENABLE_CHANGEABLE: u64 = 1 | 1 << 22;

/// Memory type encodings of MTRRs and PAT entries (`PAT` also has UC-, 7).
fn is_memory_type(value: u64, pat: bool) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6) || pat && value == 7
}

fn each_byte(value: u64, allowed: impl Fn(u64) -> bool) -> bool {
    value.to_le_bytes().iter().all(|&byte| allowed(u64::from(byte)))
}

impl<M: Memory> Interp<M> {
    /// Index in `Msrs::mtrr_fixed`.
    fn fixed_range(msr: u32) -> Option<usize> {
        match msr {
            n::MTRR_FIX64K => Some(0),
            n::MTRR_FIX16K_80000 => Some(1),
            n::MTRR_FIX16K_A0000 => Some(2),
            n::MTRR_FIX4K_FIRST..=n::MTRR_FIX4K_LAST => {
                Some((msr - n::MTRR_FIX4K_FIRST) as usize + 3)
            }
            _ => None,
        }
    }

    fn unknown_msr(&mut self, msr: u32, access: &str) -> Trap {
        if self.msrs_logged.len() < MSRS_LOGGED_MAX && self.msrs_logged.insert(msr) {
            debug!("guest {access} unknown MSR {msr:#x}: #GP");
        }
        Trap::gp0()
    }

    /// RDMSR.
    pub(super) fn read_msr(&mut self, msr: u32) -> Outcome<u64> {
        let has = |feature| self.cpuid.has(feature);
        let m = &self.state.msr;
        let long = has(Feature::Lm);
        let amd = self.amd;
        Ok(match msr {
            n::P5_MC_ADDR | n::P5_MC_TYPE if has(Feature::Mce) => 0,
            n::PLATFORM_ID if !amd => 0,
            n::TSC => self.time_stamp(),
            n::APIC_BASE | n::TSC_DEADLINE | n::X2APIC_FIRST..=n::X2APIC_LAST => {
                if msr == n::TSC_DEADLINE && !has(Feature::TscDeadline) {
                    return Err(self.unknown_msr(msr, "reads"));
                }
                self.read_device_msr(msr)?
            }
            msr if n::is_of_kvms_clock(msr) && has(Feature::KvmClock) => {
                self.read_device_msr(msr)?
            }
            n::FEATURE_CONTROL if !amd => FEATURE_CONTROL_LOCKED,
            n::TSC_ADJUST if has(Feature::TscAdjust) => m.tsc_adjust,
            n::SPEC_CTRL if has(Feature::SpecCtrl) => m.spec_ctrl,
            n::BIOS_SIGN_ID => m.microcode,
            n::MTRRCAP if has(Feature::Mtrr) => MTRR_CAPABILITIES,
            n::ARCH_CAPABILITIES if has(Feature::ArchCapabilities) => {
                self.cpuid.arch_capabilities()
            }
            n::SYSENTER_CS => m.sysenter_cs,
            n::SYSENTER_ESP => m.sysenter_esp,
            n::SYSENTER_EIP => m.sysenter_eip,
            // No machine-check banks.
            n::MCG_CAP if has(Feature::Mca) => 0,
            n::MCG_STATUS if has(Feature::Mca) => m.mcg_status,
            n::MISC_ENABLE if !amd => m.misc_enable,
            n::MTRR_PHYSBASE0..=n::MTRR_PHYSMASK7 if has(Feature::Mtrr) => {
                m.mtrr_variable[(msr - n::MTRR_PHYSBASE0) as usize]
            }
            n::MTRR_DEF_TYPE if has(Feature::Mtrr) => m.mtrr_def_type,
            n::PAT if has(Feature::Pat) => m.pat,
            n::EFER if has(Feature::Nx) || long => self.state.efer,
            n::STAR if has(Feature::Syscall) => m.star,
            n::LSTAR if long => m.lstar,
            n::CSTAR if long => m.cstar,
            n::FMASK if has(Feature::Syscall) => m.fmask,
            n::FS_BASE if long => self.state.seg[sreg::FS].base,
            n::GS_BASE if long => self.state.seg[sreg::GS].base,
            n::KERNEL_GS_BASE if long => m.kernel_gs_base,
            n::TSC_AUX if has(Feature::Rdtscp) || has(Feature::Rdpid) => m.tsc_aux,
            n::SYSCFG | n::NB_CFG if amd => 0,
            n::HWCR if amd => HWCR_FIXED,
            n::DE_CFG if amd => DE_CFG_FIXED,
            _ => match Self::fixed_range(msr) {
                Some(index) if has(Feature::Mtrr) => m.mtrr_fixed[index],
                _ => return Err(self.unknown_msr(msr, "reads")),
            },
        })
    }

    /// WRMSR at CPL 0 of a register that only the local APIC is concerned with: end of interrupt, interrupt command,
    /// the timer's count or deadline. False, and nothing is done, for any other, or if the write faults.
    pub fn write_apic_msr(&mut self, msr: u32, value: u64) -> bool {
        let is_quick = match msr {
            n::TSC_DEADLINE => self.cpuid.has(Feature::TscDeadline),
            n::X2APIC_EOI | n::X2APIC_ICR | n::X2APIC_INITIAL_COUNT => true,
            _ => false,
        };
        if !is_quick {
            return false;
        }
        self.env.set_retired(self.state.retired + 1);
        let done = self.env.device_msr_write(msr, value, self.state.msr.tsc_offset).is_ok();
        self.state.retired += u64::from(done);
        done
    }

    /// WRMSR.
    pub(super) fn write_msr(&mut self, msr: u32, value: u64) -> Outcome {
        let cpuid = std::sync::Arc::clone(&self.cpuid);
        let has = |feature| cpuid.has(feature);
        let long = has(Feature::Lm);
        let amd = self.amd;
        let physical = u64::MAX >> (64 - cpuid.physical_bits());
        let require = |good: bool| if good { Ok(()) } else { Err(Trap::gp0()) };
        match msr {
            n::P5_MC_ADDR | n::P5_MC_TYPE if has(Feature::Mce) => {}
            n::TSC => {
                let delta = value.wrapping_sub(self.time_stamp());
                self.move_tsc(delta);
            }
            n::TSC_ADJUST if has(Feature::TscAdjust) => {
                let delta = value.wrapping_sub(self.state.msr.tsc_adjust);
                self.move_tsc(delta);
            }
            n::APIC_BASE | n::TSC_DEADLINE | n::X2APIC_FIRST..=n::X2APIC_LAST => {
                if msr == n::TSC_DEADLINE && !has(Feature::TscDeadline) {
                    return Err(self.unknown_msr(msr, "writes"));
                }
                self.write_device_msr(msr, value)?;
            }
            msr if n::is_of_kvms_clock(msr) && has(Feature::KvmClock) => {
                self.write_device_msr(msr, value)?;
            }
            n::SPEC_CTRL if has(Feature::SpecCtrl) => {
                require(value & !7 == 0)?;
                self.state.msr.spec_ctrl = value;
            }
            n::PRED_CMD if has(Feature::SpecCtrl) => require(value & !1 == 0)?,
            // Microcode updates are accepted and do nothing.
            n::BIOS_UPDT_TRIG if !amd => {}
            n::PATCH_LOADER if amd => {}
            n::BIOS_SIGN_ID => {}
            n::SYSENTER_CS => self.state.msr.sysenter_cs = value,
            n::SYSENTER_ESP => {
                require(!long || is_canonical(value))?;
                self.state.msr.sysenter_esp = value;
            }
            n::SYSENTER_EIP => {
                require(!long || is_canonical(value))?;
                self.state.msr.sysenter_eip = value;
            }
            n::MCG_STATUS if has(Feature::Mca) => {
                require(value == 0)?;
                self.state.msr.mcg_status = 0;
            }
            n::MISC_ENABLE if !amd => {
                let m = &mut self.state.msr.misc_enable;
                *m = *m & !MISC_ENABLE_CHANGEABLE | value & MISC_ENABLE_CHANGEABLE;
            }
            n::MTRR_PHYSBASE0..=n::MTRR_PHYSMASK7 if has(Feature::Mtrr) => {
                let mask = msr & 1 != 0;
                let reserved = if mask { 0x7ff } else { 0xf00 };
                require(value & (!physical | reserved) == 0)?;
                require(mask || is_memory_type(value & 0xff, false))?;
                self.state.msr.mtrr_variable[(msr - n::MTRR_PHYSBASE0) as usize] = value;
            }
            n::MTRR_DEF_TYPE if has(Feature::Mtrr) => {
                require(value & !0xcff == 0 && is_memory_type(value & 0xff, false))?;
                self.state.msr.mtrr_def_type = value;
            }
            n::PAT if has(Feature::Pat) => {
                require(each_byte(value, |byte| is_memory_type(byte, true)))?;
                self.state.msr.pat = value;
            }
            n::EFER if has(Feature::Nx) || long => self.write_efer(value)?,
            n::STAR if has(Feature::Syscall) => self.state.msr.star = value,
            n::LSTAR if long => {
                require(is_canonical(value))?;
                self.state.msr.lstar = value;
            }
            n::CSTAR if long => {
                require(is_canonical(value))?;
                self.state.msr.cstar = value;
            }
            n::FMASK if has(Feature::Syscall) => {
                require(value >> 32 == 0)?;
                self.state.msr.fmask = value;
            }
            n::FS_BASE | n::GS_BASE | n::KERNEL_GS_BASE if long => {
                require(is_canonical(value))?;
                match msr {
                    n::FS_BASE => self.state.seg[sreg::FS].base = value,
                    n::GS_BASE => self.state.seg[sreg::GS].base = value,
                    _ => self.state.msr.kernel_gs_base = value,
                }
            }
            n::TSC_AUX if has(Feature::Rdtscp) || has(Feature::Rdpid) => {
                require(value >> 32 == 0)?;
                self.state.msr.tsc_aux = value;
            }
            // Set by the firmware, which has locked them: a guest's wishes count for nothing.
            n::SYSCFG | n::HWCR | n::NB_CFG | n::DE_CFG if amd => {}
            _ => match Self::fixed_range(msr) {
                Some(index) if has(Feature::Mtrr) => {
                    require(each_byte(value, |byte| is_memory_type(byte, false)))?;
                    self.state.msr.mtrr_fixed[index] = value;
                }
                _ => return Err(self.unknown_msr(msr, "writes")),
            },
        }
        Ok(())
    }

    /// Moves the time stamp counter; IA32_TSC_ADJUST follows (SDM vol. 3, "IA32_TSC_ADJUST Register").
    fn move_tsc(&mut self, delta: u64) {
        let m = &mut self.state.msr;
        m.tsc_offset = m.tsc_offset.wrapping_add(delta);
        m.tsc_adjust = m.tsc_adjust.wrapping_add(delta);
        if self.cpuid.has(Feature::KvmClock) {
            self.env.tsc_moved(self.state.msr.tsc_offset);
        }
    }

    fn read_device_msr(&mut self, msr: u32) -> Outcome<u64> {
        self.env.set_retired(self.state.retired);
        self.env.device_msr_read(msr).map_err(|_| Trap::gp0())
    }

    fn write_device_msr(&mut self, msr: u32, value: u64) -> Outcome {
        self.env.set_retired(self.state.retired);
        let offset = self.state.msr.tsc_offset;
        self.env.device_msr_write(msr, value, offset).map_err(|_| Trap::gp0())
    }

    fn write_efer(&mut self, value: u64) -> Outcome {
        let conditional = [
            (Feature::Syscall, Efer::SCE),
            (Feature::Lm, Efer::LME),
            (Feature::Nx, Efer::NXE),
            (Feature::AutoIbrs, Efer::AIBRSE),
        ];
        let changeable = conditional
            .iter()
            .filter(|(feature, _)| self.cpuid.has(*feature))
            .fold(0, |bits, (_, bit)| bits | bit.bits());
        // LMA is read-only; writing it back is allowed.
        if value & !(changeable | Efer::LMA.bits()) != 0 {
            return Err(Trap::gp0());
        }
        let new = value & changeable | self.state.efer & Efer::LMA.bits();
        let changed = new ^ self.state.efer;
        if changed & Efer::LME.bits() != 0 && self.state.cr0(Cr0::PG) {
            return Err(Trap::gp0());
        }
        self.state.efer = new;
        if changed & Efer::NXE.bits() != 0 {
            self.mem.flush_all();
        }
        Ok(())
    }
}
