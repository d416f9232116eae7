//! A second page walker for tests: slow, literal, and sharing no code with [`crate::walk`].
//!
//! It works on its own copy of the page tables, one bit of the SDM's entry-format tables at a time
//! (SDM vol. 3, "Formats of CR3 and Paging-Structure Entries"), and sets accessed and dirty bits in
//! the copy. Tests write the same entries to the copy and to guest RAM and compare.

use std::collections::BTreeMap;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};
use xenolith_cpu::env::{Access, Privilege};
use xenolith_cpu::state::{Cr0, Cr4, Efer};
use xenolith_cpu::{CpuState, Gpa};

use crate::ram::GuestRam;

/// Page tables, in guest RAM and as a copy in 4-byte cells.
#[derive(Debug)]
pub struct Tables {
    pub ram: Arc<GuestRam>,
    cells: BTreeMap<u64, u32>,
}

/// What a walk must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub gpa: u64,
    pub page_shift: u8,
    pub dirty: bool,
    pub global: bool,
}

impl Tables {
    pub fn new() -> Self {
        Self { ram: GuestRam::new(64 << 20).expect("64 MiB"), cells: BTreeMap::new() }
    }

    /// Zeroes every entry ever written.
    pub fn clear(&mut self) {
        for &gpa in self.cells.keys() {
            self.ram.memory().write_obj(0_u32, GuestAddress(gpa)).expect("RAM");
        }
        self.cells.clear();
    }

    pub fn set32(&mut self, gpa: u64, value: u32) {
        self.ram.memory().write_obj(value, GuestAddress(gpa)).expect("entries are put in RAM");
        self.cells.insert(gpa, value);
    }

    pub fn set64(&mut self, gpa: u64, value: u64) {
        self.set32(gpa, value as u32);
        self.set32(gpa + 4, (value >> 32) as u32);
    }

    /// A cell as the copy has it: zero if never written, all ones outside RAM.
    pub fn get32(&self, gpa: u64) -> u32 {
        match self.ram.host_ptr(Gpa(gpa), 4) {
            Some(_) => self.cells.get(&gpa).copied().unwrap_or(0),
            None => u32::MAX,
        }
    }

    pub fn get64(&self, gpa: u64) -> u64 {
        u64::from(self.get32(gpa)) | u64::from(self.get32(gpa + 4)) << 32
    }

    fn set_low_bits(&mut self, gpa: u64, bits: u32) {
        let value = self.get32(gpa) | bits;
        if self.ram.host_ptr(Gpa(gpa), 4).is_some() {
            self.cells.insert(gpa, value);
        }
    }

    /// Fails if guest RAM differs from the copy: a wrong accessed or dirty bit.
    pub fn check(&self) -> Result<(), String> {
        for (&gpa, &expected) in &self.cells {
            let found: u32 = self.ram.memory().read_obj(GuestAddress(gpa)).expect("RAM");
            if found != expected {
                return Err(format!("entry at {gpa:#x} is {found:#x}, expected {expected:#x}"));
            }
        }
        Ok(())
    }

    /// Walks by the book. The error is the page-fault error code.
    pub fn walk(
        &mut self,
        cpu: &CpuState,
        physical_bits: u8,
        gva: u64,
        access: Access,
        privilege: Privilege,
    ) -> Result<Found, u32> {
        if !cpu.cr0(Cr0::PG) {
            let gpa = gva & 0xffff_f000;
            return Ok(Found { gpa, page_shift: 12, dirty: true, global: false });
        }
        let pae = cpu.cr4(Cr4::PAE);
        let long = cpu.efer & Efer::LMA.bits() != 0;
        let nxe = cpu.efer & Efer::NXE.bits() != 0;
        let user = privilege == Privilege::User;
        let fetch = access == Access::Fetch;
        let write = access == Access::Write;
        let code = u32::from(write) << 1
            | u32::from(user) << 2
            | u32::from(fetch && (cpu.cr4(Cr4::SMEP) || (pae && nxe))) << 4;

        // Each step: address of the entry, its value, whether it is the leaf.
        let mut used: Vec<(u64, u64)> = Vec::new();
        let found = if long {
            self.levels_4(cpu, physical_bits, nxe, gva, &mut used)
        } else if pae {
            self.levels_pae(cpu, physical_bits, nxe, gva & 0xffff_ffff, &mut used)
        } else {
            self.levels_32(cpu, physical_bits, gva & 0xffff_ffff, &mut used)
        };
        let (gpa, page_shift) =
            found.map_err(|present_and_reserved| code | present_and_reserved)?;

        let all = |bit: u32| used.iter().all(|(_, entry)| entry >> bit & 1 == 1);
        let any = |bit: u32| used.iter().any(|(_, entry)| entry >> bit & 1 == 1);
        let user_address = all(2);
        let writable = all(1);
        let forbidden_to_execute = pae && nxe && any(63);
        let allowed = match (user, access) {
            (true, Access::Read) => user_address,
            (true, Access::Write) => user_address && writable,
            (true, Access::Fetch) => user_address && !forbidden_to_execute,
            (false, Access::Read | Access::Write) => {
                let smap =
                    user_address && cpu.cr4(Cr4::SMAP) && privilege != Privilege::SupervisorAc;
                !smap && (!write || writable || !cpu.cr0(Cr0::WP))
            }
            (false, Access::Fetch) => !(forbidden_to_execute || user_address && cpu.cr4(Cr4::SMEP)),
        };
        if !allowed {
            return Err(code | 1);
        }
        let (leaf_gpa, leaf) = *used.last().expect("a path has a leaf");
        for (gpa, _) in used {
            self.set_low_bits(gpa, 1 << 5);
        }
        if write {
            self.set_low_bits(leaf_gpa, 1 << 6);
        }
        Ok(Found {
            gpa,
            page_shift,
            dirty: write || leaf >> 6 & 1 == 1,
            global: cpu.cr4(Cr4::PGE) && leaf >> 8 & 1 == 1,
        })
    }

    fn levels_4(
        &self,
        cpu: &CpuState,
        m: u8,
        nxe: bool,
        gva: u64,
        used: &mut Vec<(u64, u64)>,
    ) -> Result<(u64, u8), u32> {
        let mut table = bits(cpu.cr3, 12, u32::from(m) - 1);
        for (level, shift) in [(4, 39), (3, 30), (2, 21), (1, 12)] {
            let at = table + 8 * (gva >> shift & 511);
            let entry = self.get64(at);
            if entry & 1 == 0 {
                return Err(0);
            }
            let leaf = level == 1 || (level < 4 && entry >> 7 & 1 == 1);
            let mut reserved: Vec<u32> = (u32::from(m)..=51).collect();
            if !nxe {
                reserved.push(63);
            }
            if level == 4 {
                reserved.push(7);
            }
            if leaf && level == 3 {
                reserved.extend(13..=29);
            }
            if leaf && level == 2 {
                reserved.extend(13..=20);
            }
            if reserved.iter().any(|bit| entry >> bit & 1 == 1) {
                return Err(9);
            }
            used.push((at, entry));
            if leaf {
                let base = bits(entry, shift, u32::from(m) - 1);
                return Ok((
                    base + bits(gva, 12, shift.max(13) - 1) * u64::from(level > 1),
                    shift as u8,
                ));
            }
            table = bits(entry, 12, u32::from(m) - 1);
        }
        unreachable!("level 1 is a leaf")
    }

    fn levels_pae(
        &self,
        cpu: &CpuState,
        m: u8,
        nxe: bool,
        gva: u64,
        used: &mut Vec<(u64, u64)>,
    ) -> Result<(u64, u8), u32> {
        let m = u32::from(m);
        let pdpte = cpu.pdpte[(gva >> 30) as usize];
        if pdpte & 1 == 0 {
            return Err(0);
        }
        let bad = |entry: u64, also: std::ops::Range<u32>| {
            (m..=62).chain(also).any(|bit| entry >> bit & 1 == 1) || (!nxe && entry >> 63 == 1)
        };
        let pde_at = bits(pdpte, 12, m - 1) + 8 * bits_down(gva, 21, 29);
        let pde = self.get64(pde_at);
        if pde & 1 == 0 {
            return Err(0);
        }
        if pde >> 7 & 1 == 1 {
            if bad(pde, 13..21) {
                return Err(9);
            }
            used.push((pde_at, pde));
            return Ok((bits(pde, 21, m - 1) + bits(gva, 12, 20), 21));
        }
        if bad(pde, 0..0) {
            return Err(9);
        }
        used.push((pde_at, pde));
        let pte_at = bits(pde, 12, m - 1) + 8 * bits_down(gva, 12, 20);
        let pte = self.get64(pte_at);
        if pte & 1 == 0 {
            return Err(0);
        }
        if bad(pte, 0..0) {
            return Err(9);
        }
        used.push((pte_at, pte));
        Ok((bits(pte, 12, m - 1), 12))
    }

    fn levels_32(
        &self,
        cpu: &CpuState,
        m: u8,
        gva: u64,
        used: &mut Vec<(u64, u64)>,
    ) -> Result<(u64, u8), u32> {
        let pde_at = bits(cpu.cr3, 12, 31) + 4 * bits_down(gva, 22, 31);
        let pde = u64::from(self.get32(pde_at));
        if pde & 1 == 0 {
            return Err(0);
        }
        used.push((pde_at, pde));
        if cpu.cr4(Cr4::PSE) && pde >> 7 & 1 == 1 {
            let m = u32::from(m).min(40);
            // Bits M-20 down to 13 are bits M-1 down to 32 of the address.
            for bit in m - 19..=21 {
                if pde >> bit & 1 == 1 {
                    return Err(9);
                }
            }
            let high = if m > 32 { bits_down(pde, 13, m - 20) } else { 0 };
            return Ok((bits(pde, 22, 31) + (high << 32) + bits(gva, 12, 21), 22));
        }
        let pte_at = bits(pde, 12, 31) + 4 * bits_down(gva, 12, 21);
        let pte = u64::from(self.get32(pte_at));
        if pte & 1 == 0 {
            return Err(0);
        }
        used.push((pte_at, pte));
        Ok((bits(pte, 12, 31), 12))
    }
}

/// Bits `low` to `high` of `value`, where they are.
fn bits(value: u64, low: u32, high: u32) -> u64 {
    bits_down(value, low, high) << low
}

/// Bits `low` to `high` of `value`, shifted down.
fn bits_down(value: u64, low: u32, high: u32) -> u64 {
    value >> low & (u64::MAX >> (63 - (high - low)))
}
