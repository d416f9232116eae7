//! Option ROMs that are for more than one device.
//!
//! Problem: a ROM names one device, and firmware starts it for no other, though its driver knows several: iPXE's
//! for virtio names that of virtio 1.x. Scheme: the image gets the IDs of the function that it is fitted to, and the
//! byte that such images have for that purpose keeps the sum of all bytes. Invariants: an image that isn't an
//! option ROM of PCI is left alone. The machine's thread.
//!
//! Source: PCI Firmware Specification 3.0, §5.1 "PCI Expansion ROM Contents"; QEMU does the same with its own ROMs.

/// Offset of the pointer to the PCI data structure, and of what is in that.
const POINTER: usize = 0x18;
const VENDOR: usize = 4;
const DEVICE: usize = 6;
/// A reserved byte of the header.
const CHECKSUM: usize = 6;

/// Has `rom` name device `device` of `vendor`.
pub fn readdress(rom: &mut [u8], vendor: u16, device: u16) {
    let Some(&pointer) = rom.get(POINTER..).and_then(|rom| rom.first_chunk()) else { return };
    let at = usize::from(u16::from_le_bytes(pointer));
    let is_pci = rom.starts_with(&[0x55, 0xaa])
        && rom.get(at..at + DEVICE + 2).is_some_and(|data| data.starts_with(b"PCIR"));
    if !is_pci {
        return;
    }
    let ids = [(at + VENDOR, vendor.to_le_bytes()), (at + DEVICE, device.to_le_bytes())];
    for (at, bytes) in ids {
        for (at, byte) in (at..).zip(bytes) {
            let change = rom[at].wrapping_sub(byte);
            rom[at] = byte;
            rom[CHECKSUM] = rom[CHECKSUM].wrapping_add(change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(rom: &[u8]) -> u8 {
        rom.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn a_rom_gets_other_ids_and_keeps_its_sum() {
        let mut rom = vec![0; 512];
        rom[..2].copy_from_slice(&[0x55, 0xaa]);
        rom[POINTER] = 0x1c;
        rom[0x1c..0x24].copy_from_slice(b"PCIR\xf4\x1a\x41\x10");
        let before = sum(&rom);
        readdress(&mut rom, 0x1af4, 0x1000);
        assert_eq!(rom[0x1c..0x24], *b"PCIR\xf4\x1a\x00\x10");
        assert_eq!(sum(&rom), before);
        for pointer in [508, 0x20, 0xffff_u16] {
            rom[POINTER..POINTER + 2].copy_from_slice(&pointer.to_le_bytes());
            let before = rom.clone();
            readdress(&mut rom, 1, 2);
            assert_eq!(rom, before, "no PCI data structure at {pointer:#x}");
        }
        readdress(&mut [0x55, 0xaa], 1, 2);
    }
}
