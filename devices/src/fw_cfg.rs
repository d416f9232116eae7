//! The firmware configuration device: what the machine tells its firmware.
//!
//! Problem: firmware that runs on many machines must learn this one's memory, tables and boot settings.
//! Scheme: numbered items of bytes, and a directory that gives names to those from 0x20 on. Software
//! selects an item and reads it byte by byte, or has it copied into memory by a descriptor. Nothing can be
//! written. Invariants: a read past an item's end gives zeroes; a descriptor outside RAM, or one that asks
//! for what isn't offered, ends with its error bit set and moves nothing. Any thread, under the device's
//! lock. Source: QEMU, docs/specs/fw_cfg, "QEMU Firmware Configuration (fw_cfg) Device".

use std::collections::BTreeMap;
use std::fmt;

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use crate::bus::BusDevice;

/// First of the device's ports: selector, data, address of a descriptor.
pub const PORT: u64 = 0x510;
pub const PORTS: u64 = 12;

const SELECTOR: u64 = 0;
const DATA: u64 = 1;
const DMA_HIGH: u64 = 4;
const DMA_LOW: u64 = 8;
const DMA_LAST: u64 = 11;

/// What the descriptor address reads as: "QEMU CFG".
const DMA_SIGNATURE: u64 = 0x5145_4d55_2043_4647;

/// Items with fixed numbers.
mod key {
    pub const SIGNATURE: u16 = 0x00;
    pub const ID: u16 = 0x01;
    pub const RAM_BYTES: u16 = 0x03;
    pub const VCPUS: u16 = 0x05;
    pub const BOOT_MENU: u16 = 0x0e;
    pub const VCPUS_MAX: u16 = 0x0f;
    pub const DIRECTORY: u16 = 0x19;
    pub const FILES: u16 = 0x20;
}

/// Interface features: item reads by port, and by descriptor.
const FEATURES: u32 = 0b11;
/// A file's name in the directory, with its NUL.
const NAME_BYTES: usize = 56;

mod control {
    pub const ERROR: u32 = 1 << 0;
    pub const READ: u32 = 1 << 1;
    pub const SKIP: u32 = 1 << 2;
    pub const SELECT: u32 = 1 << 3;
    pub const WRITE: u32 = 1 << 4;
}
/// Bytes of a descriptor: control, length, address, all big-endian.
const DESCRIPTOR_BYTES: usize = 16;

/// The items that a machine offers.
#[derive(Clone, Debug, Default)]
pub struct Items {
    fixed: BTreeMap<u16, Vec<u8>>,
    files: BTreeMap<String, Vec<u8>>,
}

impl Items {
    /// What every machine has: how much memory, how many processors.
    #[must_use]
    pub fn new(ram_bytes: u64, vcpus: u16) -> Self {
        let mut items = Self::default();
        let mut add = |key, bytes: &[u8]| items.fixed.insert(key, bytes.to_vec());
        add(key::SIGNATURE, b"QEMU");
        add(key::ID, &FEATURES.to_le_bytes());
        add(key::RAM_BYTES, &ram_bytes.to_le_bytes());
        add(key::VCPUS, &vcpus.to_le_bytes());
        add(key::VCPUS_MAX, &vcpus.to_le_bytes());
        // Nobody is asked what to boot.
        add(key::BOOT_MENU, &0u16.to_le_bytes());
        items
    }

    /// Adds a file, or replaces it.
    ///
    /// # Panics
    /// The name has 56 bytes or more: a mistake in the machine.
    pub fn file(&mut self, name: &str, bytes: Vec<u8>) {
        assert!(name.len() < NAME_BYTES, "fw_cfg name {name}");
        self.files.insert(name.to_owned(), bytes);
    }

    /// Numbers the files and makes their directory.
    fn finish(self) -> BTreeMap<u16, Vec<u8>> {
        let mut items = self.fixed;
        let count = u32::try_from(self.files.len()).expect("a dozen files");
        let mut directory = count.to_be_bytes().to_vec();
        for (key, (name, bytes)) in (key::FILES..).zip(self.files) {
            let len = u32::try_from(bytes.len()).expect("files of some KiB");
            directory.extend(len.to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0; 2]);
            let mut field = name.into_bytes();
            field.resize(NAME_BYTES, 0);
            directory.extend(field);
            items.insert(key, bytes);
        }
        items.insert(key::DIRECTORY, directory);
        items
    }
}

/// The device over the guest's memory `M`.
pub struct FwCfg<M> {
    items: BTreeMap<u16, Vec<u8>>,
    memory: M,
    selected: u16,
    /// The next byte of the selected item.
    next: usize,
    /// The upper half of a descriptor's address.
    dma_high: u32,
}

impl<M> fmt::Debug for FwCfg<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FwCfg").field("selected", &self.selected).finish_non_exhaustive()
    }
}

impl<M: GuestAddressSpace + Send> FwCfg<M> {
    #[must_use]
    pub fn new(items: Items, memory: M) -> Self {
        Self { items: items.finish(), memory, selected: 0, next: 0, dma_high: 0 }
    }

    fn select(&mut self, key: u16) {
        (self.selected, self.next) = (key, 0);
    }

    /// What is left of the selected item.
    fn rest(&self) -> &[u8] {
        let item = self.items.get(&self.selected).map_or(&[][..], Vec::as_slice);
        item.get(self.next..).unwrap_or_default()
    }

    fn read_byte(&mut self) -> u8 {
        let byte = self.rest().first().copied().unwrap_or(0);
        self.next = self.next.saturating_add(1);
        byte
    }

    /// Does what the descriptor at `address` asks, and writes the outcome into it.
    fn transfer(&mut self, address: u64) {
        let mut descriptor = [0; DESCRIPTOR_BYTES];
        let at = GuestAddress(address);
        if self.memory.memory().read_slice(&mut descriptor, at).is_err() {
            return;
        }
        let word = |at: usize| {
            u32::from_be_bytes([
                descriptor[at],
                descriptor[at + 1],
                descriptor[at + 2],
                descriptor[at + 3],
            ])
        };
        let (control, len) = (word(0), word(4));
        let target = u64::from(word(8)) << 32 | u64::from(word(12));
        if control & control::SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        let done = match control & (control::READ | control::WRITE | control::SKIP) {
            0 => true,
            bits if bits & control::READ != 0 => self.copy_out(target, len),
            bits if bits & control::WRITE != 0 => false,
            _ => {
                self.next = self.next.saturating_add(len as usize);
                true
            }
        };
        let outcome = if done { 0 } else { control::ERROR };
        // The guest may have given an address that only reads; then nobody is told.
        let _ = self.memory.memory().write_slice(&outcome.to_be_bytes(), at);
    }

    /// Copies `len` bytes of the item to memory; behind its end there are zeroes.
    fn copy_out(&mut self, target: u64, len: u32) -> bool {
        let len = len as usize;
        let item = self.rest();
        let given = &item[..item.len().min(len)];
        let memory = self.memory.memory();
        let at = GuestAddress(target);
        if memory.write_slice(given, at).is_err() {
            return false;
        }
        // Piece by piece: the guest names the length.
        let zeroes = [0; 4096];
        let mut done = given.len();
        while done < len {
            let piece = zeroes.len().min(len - done);
            let Some(at) = target.checked_add(done as u64) else { return false };
            if memory.write_slice(&zeroes[..piece], GuestAddress(at)).is_err() {
                return false;
            }
            done += piece;
        }
        self.next = self.next.saturating_add(len);
        true
    }
}

impl<M: GuestAddressSpace + Send> BusDevice for FwCfg<M> {
    fn read(&mut self, offset: u64, size: u8) -> u64 {
        match (offset, size) {
            (DATA, 1) => self.read_byte().into(),
            (DMA_HIGH..=DMA_LAST, _) => {
                // Big-endian: the first port has the first letter.
                (0..u64::from(size)).fold(0, |value, i| {
                    let at = (offset - DMA_HIGH + i).min(7);
                    value | (DMA_SIGNATURE >> (56 - 8 * at) & 0xff) << (8 * i)
                })
            }
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, size: u8, value: u64) {
        let big_endian = ((value & 0xffff_ffff) as u32).swap_bytes();
        match (offset, size) {
            (SELECTOR, 2) => self.select((value & 0xffff) as u16),
            (DMA_HIGH, 4) => self.dma_high = big_endian,
            (DMA_LOW, 4) => {
                let high = std::mem::take(&mut self.dma_high);
                self.transfer(u64::from(high) << 32 | u64::from(big_endian));
            }
            _ => {}
        }
    }

    fn width(&self) -> u8 {
        4
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use vm_memory::GuestMemoryMmap;

    use super::*;
    use crate::bus::Bus;

    struct Rig {
        ports: Bus,
        memory: Arc<GuestMemoryMmap>,
    }

    impl Rig {
        fn new() -> Self {
            let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2_0000)]);
            let memory = Arc::new(memory.expect("128 KiB"));
            let mut items = Items::new(64 << 20, 3);
            items.file("etc/b", vec![1, 2, 3]);
            items.file("etc/a", (0..=255).collect());
            let mut ports = Bus::new();
            let device = Arc::new(Mutex::new(FwCfg::new(items, Arc::clone(&memory))));
            ports.insert(PORT, PORTS, device).expect("free");
            Self { ports, memory }
        }

        fn item<const N: usize>(&self, key: u16) -> [u8; N] {
            self.ports.write(PORT, 2, key.into());
            std::array::from_fn(|_| self.ports.read(PORT + 1, 1) as u8)
        }

        /// Runs a descriptor at 0x100: its control word afterwards.
        fn transfer(&self, control: u32, len: u32, address: u64) -> u32 {
            let mut descriptor = control.to_be_bytes().to_vec();
            descriptor.extend(len.to_be_bytes());
            descriptor.extend(address.to_be_bytes());
            self.memory.write_slice(&descriptor, GuestAddress(0x100)).expect("RAM");
            self.ports.write(PORT + 4, 4, 0);
            self.ports.write(PORT + 8, 4, 0x100u32.swap_bytes().into());
            let mut word = [0; 4];
            self.memory.read_slice(&mut word, GuestAddress(0x100)).expect("RAM");
            u32::from_be_bytes(word)
        }
    }

    #[test]
    fn items_are_read_by_port() {
        let rig = Rig::new();
        assert_eq!(&rig.item::<4>(0), b"QEMU");
        assert_eq!(rig.item(1), [3, 0, 0, 0]);
        assert_eq!(rig.item(3), (64u64 << 20).to_le_bytes());
        assert_eq!(rig.item(5), [3, 0]);
        assert_eq!(rig.item(0x4000), [0; 3], "an item that isn't there");
        let directory = rig.item::<{ 4 + 2 * 64 }>(0x19);
        assert_eq!(directory[..4], [0, 0, 0, 2]);
        assert_eq!(directory[4..18], *b"\x00\x00\x01\x00\x00\x20\x00\x00etc/a\x00");
        assert_eq!(directory[68..82], *b"\x00\x00\x00\x03\x00\x21\x00\x00etc/b\x00");
        assert_eq!(rig.item(0x21), [1, 2, 3, 0, 0]);
    }

    #[test]
    fn items_are_copied_by_descriptor() {
        let rig = Rig::new();
        assert_eq!(rig.ports.read(PORT + 4, 4), u64::from(u32::from_le_bytes(*b"QEMU")));
        assert_eq!(rig.ports.read(PORT + 8, 4), u64::from(u32::from_le_bytes(*b" CFG")));
        assert_eq!(rig.transfer(0x20 << 16 | control::SELECT | control::READ, 4, 0x1000), 0);
        assert_eq!(rig.transfer(control::SKIP, 100, 0), 0);
        assert_eq!(rig.transfer(control::READ, 200, 0x1004), 0);
        let mut bytes = [0xee; 204];
        rig.memory.read_slice(&mut bytes, GuestAddress(0x1000)).expect("RAM");
        assert_eq!(bytes[..6], [0, 1, 2, 3, 104, 105]);
        assert_eq!(bytes[155..158], [255, 0, 0], "zeroes follow the item");
    }

    #[test]
    fn what_is_not_offered_ends_with_an_error() {
        let rig = Rig::new();
        assert_eq!(rig.transfer(0x21 << 16 | control::SELECT | control::WRITE, 1, 0x1000), 1);
        assert_eq!(rig.transfer(0x21 << 16 | control::SELECT | control::READ, 3, u64::MAX), 1);
        assert_eq!(rig.transfer(0x21 << 16 | control::SELECT | control::READ, 3, 0x1_ffff), 1);
        assert_eq!(rig.transfer(control::READ, u32::MAX, 0x1000), 1);
        // A descriptor that isn't in memory: nothing happens.
        rig.ports.write(PORT + 4, 4, u64::from(u32::MAX));
        rig.ports.write(PORT + 8, 4, u64::from(u32::MAX));
    }
}
