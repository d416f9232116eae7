//! Instructions that Rust does on the area, with the guest's state left there.
//!
//! Problem: what is handed over to the interpreter costs more for the state's way out of the area and back than for the
//! instruction itself. Scheme: a kernel's most frequent ones, port accesses and writes of the local APIC's MSRs,
//! need general registers only, and these are taken from the area. Invariant: whatever could make them fault or trap is
//! left to the interpreter, and nothing but general registers, memory and devices is changed. Source: SDM vol. 2, IN,
//! OUT, WRMSR.

use iced_x86::Mnemonic;
use xenolith_cpu::state::Activity;
use xenolith_translator::mode::Mode;

use super::{Bt, PREPARED};

impl Bt {
    /// Does the instruction that translated code of `mode` has come to, if it is one of these.
    pub(super) fn do_quickly(&mut self, mnemonic: Mnemonic, epoch: u64, mode: Mode) -> bool {
        // Behind a load of SS there is more to see to, and with breakpoints.
        if !mode.ring0 || mode.armed || self.area.stack_loaded != 0 {
            return false;
        }
        match mnemonic {
            Mnemonic::In | Mnemonic::Out => self.access_port(epoch),
            Mnemonic::Wrmsr => self.write_apic(),
            _ => false,
        }
    }

    /// IN or OUT, if it is known what the site just left by stands for.
    fn access_port(&mut self, epoch: u64) -> bool {
        let site = self.area.site as u32;
        let known = self.prepared_insns[site as usize % PREPARED].as_ref();
        let known = known.filter(|known| known.site == site && known.epoch == epoch);
        let Some(access) = known.and_then(|known| known.port) else { return false };
        self.interp.access_port(access, &mut self.area.gpr);
        true
    }

    /// Does a WRMSR of the local APIC's, if it is such.
    fn write_apic(&mut self) -> bool {
        let [rax, rcx, rdx] = [0, 1, 2].map(|register| self.area.gpr[register]);
        self.interp.write_apic_msr(rcx as u32, rdx << 32 | rax & 0xffff_ffff)
    }

    /// As [`Self::is_over_or_wanted`], while the guest's flags are in the area.
    pub(super) fn is_over_or_wanted_inside(&self) -> bool {
        self.stepping
            || self.interp.state.retired >= self.end
            || u64::from(self.attention()) & self.area.attention_mask != 0
            || self.interp.state.activity != Activity::Running
    }
}
