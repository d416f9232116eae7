//! The chip set's switches of processors' memory: ROM or RAM below 1 MiB, and address line 20.
//!
//! Problem: registers of the host bridge and of the keyboard controller change what every processor finds at
//! an address, while TLBs remember. Scheme: [`Remapper`] changes the guest memory's views and raises REMAP
//! on all vCPUs; the one whose instruction did it flushes before its next instruction, the others before
//! their next block. [`Shadowed`] is the bus's part: what is not plainly readable and writable memory
//! there comes to it. [`Video`] does the same for a display's memory. Invariants: no vCPU starts a block with translations older than the REMAP it was
//! sent. Any thread, under the register's device lock. Source: Intel 82441FX (PMC) datasheet, "PAM:
//! Programmable Attribute Map Registers".

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};
use xenolith_cpu::Gpa;
use xenolith_cpu::env::attention;
use xenolith_devices::bus::BusDevice;
use xenolith_devices::pci::{MemorySwitch, Segment};
use xenolith_devices::vga::VideoHost;
use xenolith_mmu::GuestRam;
use xenolith_mmu::view::{Source, View};

use crate::vcpu::Pins;

/// Where the attribute registers hold sway.
pub const ATTRIBUTED: Range<u64> = 0xc_0000..0x10_0000;
/// Where the firmware's ROM shows below 1 MiB, as much of it as there is.
const ROM_START: u64 = 0xe_0000;

/// Changes what processors see.
#[derive(Clone)]
pub struct Remapper {
    ram: Arc<GuestRam>,
    pins: Vec<Arc<Pins>>,
}

impl fmt::Debug for Remapper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remapper").field("vcpus", &self.pins.len()).finish_non_exhaustive()
    }
}

impl Remapper {
    #[must_use]
    pub fn new(ram: Arc<GuestRam>, pins: Vec<Arc<Pins>>) -> Self {
        Self { ram, pins }
    }

    /// Lets address line 20 pass, or ties it to zero.
    pub fn set_a20(&self, passes: bool) {
        if self.ram.set_a20(passes) {
            self.tell();
        }
    }

    fn tell(&self) {
        for pins in &self.pins {
            pins.raise(attention::REMAP);
        }
    }
}

/// The display's memory, as the display reaches it.
#[derive(Debug)]
pub struct Video {
    remapper: Remapper,
    host: *mut u8,
    bytes: usize,
}

// SAFETY: the pointer leads into a shared mapping that the RAM in `remapper` keeps alive; all accesses
// through it are volatile or bounded copies of memory that the guest may change at any time.
unsafe impl Send for Video {}

impl Video {
    #[must_use]
    pub fn new(remapper: Remapper) -> Self {
        let (host, bytes) = remapper.ram.video();
        Self { remapper, host, bytes }
    }

    fn word(&self, index: usize) -> Option<*mut u32> {
        (index < self.bytes / 4).then(|| self.host.cast::<u32>().wrapping_add(index))
    }
}

impl VideoHost for Video {
    fn load(&self, index: usize) -> u32 {
        // SAFETY: an aligned word of the mapping, read as the guest's processors do.
        self.word(index).map_or(0, |word| unsafe { word.read_volatile() })
    }

    fn store(&self, index: usize, value: u32) {
        if let Some(word) = self.word(index) {
            // SAFETY: an aligned word of the mapping, written as the guest's processors do.
            unsafe { word.write_volatile(value) };
        }
    }

    fn copy_out(&self, offset: usize, out: &mut [u8]) {
        let len = self.bytes.saturating_sub(offset).min(out.len());
        if len > 0 {
            let from = self.host.wrapping_add(offset);
            // SAFETY: `len` bytes from `from` lie in the mapping, and `out` is ours alone.
            unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), len) };
        }
    }

    fn clear(&self, bytes: usize) {
        // SAFETY: that many bytes lie in the mapping.
        unsafe { std::ptr::write_bytes(self.host, 0, bytes.min(self.bytes)) };
    }

    fn place(&self, base: Option<u64>) {
        if self.remapper.ram.place_video(base) {
            self.remapper.tell();
        }
    }

    fn set_direct(&self, range: Range<u64>, direct: bool) {
        let view = if direct { View::RAM } else { View::BUS };
        if self.remapper.ram.set_view(range, view) {
            self.remapper.tell();
        }
    }

    fn read_window(&self, gpa: u64, out: &mut [u8]) {
        // The window lies in RAM: the smallest guest has 64 MiB.
        let _ = self.remapper.ram.memory().read_slice(out, GuestAddress(gpa));
    }

    fn write_window(&self, gpa: u64, bytes: &[u8]) {
        let _ = self.remapper.ram.memory().write_slice(bytes, GuestAddress(gpa));
    }
}

impl MemorySwitch for Remapper {
    fn set(&mut self, segment: Segment) {
        let bus = if segment.start >= ROM_START { Source::Rom } else { Source::Bus };
        let read = if segment.reads_ram { Source::Ram } else { bus };
        let view = View { read, write: segment.writes_ram };
        if self.ram.set_view(segment.start..segment.start + segment.bytes, view) {
            self.tell();
        }
    }
}

/// Reads and writes of memory whose two ways differ, and of the ROM below 4 GiB.
#[derive(Debug)]
pub struct Shadowed {
    ram: Arc<GuestRam>,
    start: u64,
}

impl Shadowed {
    /// The range that begins at `start`.
    #[must_use]
    pub fn new(ram: Arc<GuestRam>, start: u64) -> Self {
        Self { ram, start }
    }
}

impl BusDevice for Shadowed {
    fn name(&self, _: u64) -> String {
        "rom and shadow ram".to_owned()
    }

    fn read(&mut self, offset: u64, _: u8) -> u64 {
        let host = self.ram.host_ptr(Gpa(self.start + offset), 1);
        // SAFETY: a byte of mapped memory, read as the guest's processors do.
        host.map_or(u64::MAX, |host| u64::from(unsafe { host.read_volatile() }))
    }

    fn write(&mut self, offset: u64, _: u8, value: u64) {
        let gpa = self.start + offset;
        if self.ram.view(Gpa(gpa)).is_some_and(|view| view.write) {
            // The range lies in RAM: the smallest guest has 64 MiB.
            let _ = self.ram.memory().write_obj((value & 0xff) as u8, GuestAddress(gpa));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(start: u64, bytes: u64, reads_ram: bool, writes_ram: bool) -> Segment {
        Segment { start, bytes, reads_ram, writes_ram }
    }

    #[test]
    fn firmware_copies_itself_to_ram_and_locks_it() {
        let rom = vec![0x55; 128 << 10];
        let ram = GuestRam::with_rom(64 << 20, &rom).expect("RAM and ROM");
        let pins = Pins::new();
        let mut remapper = Remapper::new(Arc::clone(&ram), vec![Arc::clone(&pins)]);
        let mut low = Shadowed::new(Arc::clone(&ram), ATTRIBUTED.start);
        let at = 0xf_1234 - ATTRIBUTED.start;

        remapper.set(segment(0xf_0000, 0x1_0000, false, false));
        assert_eq!(pins.take(attention::REMAP), attention::REMAP);
        low.write(at, 1, 0xaa);
        assert_eq!(low.read(at, 1), 0x55);
        remapper.set(segment(0xf_0000, 0x1_0000, false, true));
        low.write(at, 1, 0xaa);
        assert_eq!(low.read(at, 1), 0x55, "reads still come from the ROM");
        remapper.set(segment(0xf_0000, 0x1_0000, true, false));
        assert_eq!(low.read(at, 1), 0xaa);
        low.write(at, 1, 0xbb);
        assert_eq!(low.read(at, 1), 0xaa, "locked");
        pins.take(attention::REMAP);
        remapper.set(segment(0xf_0000, 0x1_0000, true, false));
        assert!(!pins.has(attention::REMAP), "nothing has changed");

        remapper.set(segment(0xc_0000, 0x4000, false, false));
        assert_eq!(low.read(0, 1), u64::MAX, "nobody is there");
        let mut high = Shadowed::new(Arc::clone(&ram), (4 << 30) - rom.len() as u64);
        high.write(3, 1, 0);
        assert_eq!(high.read(3, 1), 0x55);
    }
}
