//! Whether a debugger can bring segments back.
//!
//! Problem: a stretch that QEMU went through otherwise is taken back, and a debugger writes a segment register by its
//! selector alone: QEMU loads base, limit and rights from the guest's table. Scheme: before a stretch it is looked
//! whether every segment is what its selector would load now. Only then may the stretch load segments. Pure but for
//! reading guest memory. Source: SDM vol. 3, "Segment Registers". Thread: the lockstep's.

use std::sync::Arc;

use xenolith_cpu::env::{Access, Memory, Place, Privilege};
use xenolith_cpu::state::{Segment, TableRegister, sreg};
use xenolith_cpu::{CpuState, Gva};
use xenolith_mmu::{GuestRam, SoftMmu};

use super::memory::read;

/// Whether loading the selectors of `state` from the tables as they are would give its segments.
pub fn are_loadable(mem: &mut SoftMmu, ram: &Arc<GuestRam>, state: &CpuState) -> bool {
    state.seg.iter().enumerate().all(|(n, now)| {
        if state.real_or_v86() {
            return now.base == u64::from(now.selector) << 4 && now.limit == 0xffff;
        }
        if now.selector < 4 {
            return n != sreg::CS && !now.is_usable();
        }
        let Some(raw) = descriptor(mem, ram, state, now.selector) else { return false };
        let loaded = Segment::from_descriptor(now.selector, raw);
        // In long mode these two bases are written as registers of their own.
        let own_base = state.long_mode() && (n == sreg::FS || n == sreg::GS);
        // The lowest bit is the accessed bit.
        (loaded.base == now.base || own_base)
            && loaded.limit == now.limit
            && (loaded.access ^ now.access) & !1 == 0
    })
}

fn descriptor(
    mem: &mut SoftMmu,
    ram: &Arc<GuestRam>,
    state: &CpuState,
    selector: u16,
) -> Option<u64> {
    let table = match selector & 4 {
        0 => state.gdtr,
        _ => TableRegister { base: state.ldtr.base, limit: state.ldtr.limit.min(0xffff) as u16 },
    };
    if selector | 7 > table.limit {
        return None;
    }
    let linear = table.base.wrapping_add(u64::from(selector & !7));
    let linear = if state.long_mode() { linear } else { linear & 0xffff_ffff };
    match mem.translate(state, Gva(linear), Access::Read, Privilege::Supervisor) {
        Ok(Place::Ram { gpa, .. }) => {
            let mut bytes = [0; 8];
            read(ram, gpa.0, &mut bytes);
            Some(u64::from_le_bytes(bytes))
        }
        _ => None,
    }
}
