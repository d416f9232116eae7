//! Port and memory-mapped I/O buses: which device answers at which address.
//!
//! Problem: vCPUs on several threads reach devices by address. Scheme: one sorted table per bus, built before the
//! machine runs and then read without a lock; each device sits behind a mutex of its own. Ranges that move while it
//! runs (PCI base address registers) are in [`MovingRanges`], asked second and behind a read lock. Invariants: fixed
//! ranges of one bus don't overlap and win over moving ones; an access wider than a device's width reaches it as
//! several, lowest address first; nobody's address reads as ones and drops writes. Any thread.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::clock::lock;

/// A device on a bus. Ports and memory differ only in the bus that they are put on.
pub trait BusDevice: Send {
    /// Reads `size` bytes (1, 2, 4 or 8, at most [`BusDevice::width`]) at `offset` from the start of
    /// the range. Upper bytes of the result are ignored.
    fn read(&mut self, offset: u64, size: u8) -> u64;
    /// Writes the low `size` bytes of `value`.
    fn write(&mut self, offset: u64, size: u8, value: u64);
    /// Reads `size` bytes at `offset` again and again, as much of `out` as can be had before anything else
    /// changes, for a port that a block of data is read from: how many bytes. None if it must be read one by one.
    fn read_many(&mut self, offset: u64, size: u8, out: &mut [u8]) -> usize {
        let _ = (offset, size, out);
        0
    }
    /// Widest access that the device takes in one piece, in bytes.
    fn width(&self) -> u8 {
        1
    }
    /// For people: what answers in the range that begins at `offset`.
    fn name(&self, offset: u64) -> String {
        let _ = offset;
        let name = std::any::type_name::<Self>();
        name.rsplit("::").next().unwrap_or(name).to_lowercase()
    }
}

/// A range of a bus, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    pub start: u64,
    /// Last address.
    pub last: u64,
    pub name: String,
}

impl Mapped {
    fn of(range: &Range) -> Self {
        Self {
            start: range.start,
            last: range.start.wrapping_add(range.len).wrapping_sub(1),
            name: lock(&range.device).name(range.base),
        }
    }
}

/// A bus address range with its device.
struct Range {
    start: u64,
    len: u64,
    /// Offset of `start` in the device, for a device with several ranges.
    base: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// A port or memory bus.
#[derive(Default)]
pub struct Bus {
    ranges: Vec<Range>,
    moving: Arc<MovingRanges>,
}

/// Ranges that appear, move and go away while vCPUs run. They may overlap, as the guest places them:
/// the one mapped first answers.
#[derive(Default)]
pub struct MovingRanges {
    ranges: RwLock<Vec<Range>>,
}

impl fmt::Debug for MovingRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_list().entries(ranges.iter().map(|range| (range.start, range.len))).finish()
    }
}

impl MovingRanges {
    /// Puts `device` at `start..start + len`; the first address is offset `base` in the device.
    pub fn map(&self, start: u64, len: u64, base: u64, device: Arc<Mutex<dyn BusDevice>>) {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        ranges.push(Range { start, len, base, device });
    }

    /// Takes away the range of `device` that was mapped with `base`. An access that a vCPU has begun
    /// may still reach the device after this returns.
    pub fn unmap(&self, base: u64, device: &Arc<Mutex<dyn BusDevice>>) {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        ranges.retain(|range| range.base != base || !Arc::ptr_eq(&range.device, device));
    }

    /// The device at `address` and the offset in it. The lock is not held when the device is called,
    /// so a device may remap itself.
    fn find(&self, address: u64) -> Option<(Arc<Mutex<dyn BusDevice>>, u64)> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let range = ranges.iter().find(|range| address.wrapping_sub(range.start) < range.len)?;
        Some((Arc::clone(&range.device), range.base + (address - range.start)))
    }
}

/// Two devices claim one address.
#[derive(Debug, thiserror::Error)]
#[error("bus range {start:#x}+{len:#x} overlaps another device's")]
pub struct Overlap {
    start: u64,
    len: u64,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ranges.iter().map(|range| (range.start, range.len))).finish()
    }
}

impl Bus {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `start..start + len`; its offsets begin at 0.
    ///
    /// # Errors
    /// [`Overlap`] if part of the range is taken.
    pub fn insert(
        &mut self,
        start: u64,
        len: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), Overlap> {
        self.insert_at(start, len, 0, device)
    }

    /// Like [`Bus::insert`]; the range's first address is offset `base` in the device.
    ///
    /// # Errors
    /// [`Overlap`] if part of the range is taken.
    pub fn insert_at(
        &mut self,
        start: u64,
        len: u64,
        base: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), Overlap> {
        let at = self.ranges.partition_point(|range| range.start < start);
        let before_ok = at == 0 || {
            let before = &self.ranges[at - 1];
            before.start + before.len <= start
        };
        let after_ok = at == self.ranges.len() || start + len <= self.ranges[at].start;
        if !(before_ok && after_ok) {
            return Err(Overlap { start, len });
        }
        self.ranges.insert(at, Range { start, len, base, device });
        Ok(())
    }

    /// Reads `size` bytes (1, 2, 4 or 8), little-endian.
    #[must_use]
    pub fn read(&self, address: u64, size: u8) -> u64 {
        let mut value = 0;
        let mut done = 0;
        while done < size {
            let at = address.wrapping_add(u64::from(done));
            let (piece, part) = self
                .with_device(at, |device, offset| {
                    let piece = piece_of(device, size - done);
                    (piece, device.read(offset, piece) & mask(piece))
                })
                .unwrap_or((1, 0xff));
            value |= part << (8 * done);
            done += piece;
        }
        value
    }

    /// Reads `size` bytes again and again, if the device can do that at once: see [`BusDevice::read_many`].
    #[must_use]
    pub fn read_many(&self, address: u64, size: u8, out: &mut [u8]) -> usize {
        self.with_device(address, |device, offset| {
            if size <= device.width() { device.read_many(offset, size, out) } else { 0 }
        })
        .unwrap_or(0)
    }

    /// Writes the low `size` bytes of `value`.
    pub fn write(&self, address: u64, size: u8, value: u64) {
        let mut done = 0;
        while done < size {
            let at = address.wrapping_add(u64::from(done));
            done += self
                .with_device(at, |device, offset| {
                    let piece = piece_of(device, size - done);
                    let part = (value >> (8 * done)) & mask(piece);
                    device.write(offset, piece, part);
                    piece
                })
                .unwrap_or(1);
        }
    }

    /// Where devices that move put themselves.
    #[must_use]
    pub fn moving(&self) -> Arc<MovingRanges> {
        Arc::clone(&self.moving)
    }

    /// What is on the bus now, by address.
    #[must_use]
    pub fn mapped(&self) -> Vec<Mapped> {
        let moving = self.moving.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = self.ranges.iter().chain(moving.iter()).map(Mapped::of).collect();
        all.sort_by_key(|mapped| (mapped.start, mapped.last));
        all
    }

    /// Calls `access` with the device at `address`, locked, and the offset in it.
    fn with_device<R>(
        &self,
        address: u64,
        access: impl FnOnce(&mut dyn BusDevice, u64) -> R,
    ) -> Option<R> {
        if let Some(range) = self.find(address) {
            let mut device = lock(&range.device);
            return Some(access(&mut *device, range.base + (address - range.start)));
        }
        let (device, offset) = self.moving.find(address)?;
        let mut device = lock(&device);
        Some(access(&mut *device, offset))
    }

    fn find(&self, address: u64) -> Option<&Range> {
        let at = self.ranges.partition_point(|range| range.start <= address);
        let range = self.ranges.get(at.checked_sub(1)?)?;
        (address - range.start < range.len).then_some(range)
    }
}

fn piece_of(device: &dyn BusDevice, left: u8) -> u8 {
    let width = device.width().min(left);
    // The largest power of two that fits.
    1 << (7 - width.leading_zeros())
}

fn mask(size: u8) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Recorder(Vec<(u64, u8, u64)>);

    impl BusDevice for Recorder {
        fn read(&mut self, offset: u64, size: u8) -> u64 {
            self.0.push((offset, size, 0));
            offset
        }
        fn write(&mut self, offset: u64, size: u8, value: u64) {
            self.0.push((offset, size, value));
        }
        fn width(&self) -> u8 {
            2
        }
    }

    #[test]
    fn wide_accesses_are_split_and_holes_read_as_ones() {
        let mut bus = Bus::new();
        let device = Arc::new(Mutex::new(Recorder(Vec::new())));
        bus.insert(0x10, 4, Arc::clone(&device) as _).expect("free");
        assert!(bus.insert(0x13, 1, Arc::clone(&device) as _).is_err());
        assert_eq!(bus.read(0x12, 4), 0xffff_0002);
        bus.write(0x10, 4, 0x1122_3344);
        assert_eq!(lock(&device).0, [(2, 2, 0), (0, 2, 0x3344), (2, 2, 0x1122)]);
        assert_eq!(bus.read(0, 1), 0xff);
    }

    #[test]
    fn fixed_ranges_win_over_moving_ones_and_unmapped_ranges_are_gone() {
        let mut bus = Bus::new();
        let fixed = Arc::new(Mutex::new(Recorder(Vec::new())));
        bus.insert(0x10, 4, fixed).expect("free");
        let moving: Arc<Mutex<dyn BusDevice>> = Arc::new(Mutex::new(Recorder(Vec::new())));
        bus.moving().map(0x12, 4, 0x40, Arc::clone(&moving));
        assert_eq!(bus.read(0x12, 1), 2, "the fixed range answers");
        assert_eq!(bus.read(0x14, 1), 0x42);
        bus.moving().map(u64::MAX - 1, 2, 0x80, Arc::clone(&moving));
        assert_eq!(bus.read(u64::MAX, 1), 0x81, "a range may end at the top");
        let mapped: Vec<_> =
            bus.mapped().into_iter().map(|it| (it.start, it.last, it.name)).collect();
        let name = || "recorder".to_owned();
        let all = [(0x10, 0x13), (0x12, 0x15), (u64::MAX - 1, u64::MAX)];
        assert_eq!(mapped, all.map(|(start, last)| (start, last, name())));
        bus.moving().unmap(0x40, &moving);
        assert_eq!(bus.read(0x14, 1), 0xff);
    }
}
