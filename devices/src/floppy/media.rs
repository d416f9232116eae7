//! A floppy's image: which format it has, and where its sectors are.
//!
//! Problem: an image says nothing of its tracks but by its size. Scheme: a table of the formats that there were;
//! the drive is of the kind that the format needs. An image of another size, as a boot sector with what it loads behind
//! it, is the beginning of the largest of them, as on QEMU, and the rest reads as zeroes. Invariant: nothing is
//! written past the image's end. Any
//! thread. Source: IBM PC AT Technical Reference, "Diskette"; ECMA-99, ECMA-125.

use std::io;
use std::sync::Arc;

use crate::disk::{DiskImage, check_range};

pub(super) const SECTOR_BYTES: usize = 512;

/// A format: tracks of a side, sides, sectors of a track; the drive's type in CMOS; the data rate's code.
struct Format {
    cylinders: u8,
    heads: u8,
    sectors: u8,
    cmos_type: u8,
    rate: u8,
}

const fn format(cylinders: u8, heads: u8, sectors: u8, cmos_type: u8, rate: u8) -> Format {
    Format { cylinders, heads, sectors, cmos_type, rate }
}

// Rates: 0 is 500 kbit/s, 2 is 250, 3 is 1000.
const FORMATS: [Format; 12] = [
    format(40, 1, 8, 1, 2),
    format(40, 1, 9, 1, 2),
    format(40, 2, 8, 1, 2),
    format(40, 2, 9, 1, 2),
    format(80, 2, 9, 3, 2),
    format(80, 2, 10, 3, 2),
    format(80, 2, 15, 2, 0),
    format(80, 2, 18, 4, 0),
    format(80, 2, 20, 4, 0),
    format(80, 2, 21, 4, 0),
    format(82, 2, 21, 4, 0),
    LARGEST,
];
const LARGEST: Format = format(80, 2, 36, 5, 3);

impl Format {
    const fn bytes(&self) -> u64 {
        self.cylinders as u64 * self.heads as u64 * self.sectors as u64 * SECTOR_BYTES as u64
    }
}

/// An image is not a floppy's.
#[derive(Debug, thiserror::Error)]
#[error("{0} bytes is more than the largest floppy has: 2949120 (2880 KiB)")]
pub struct FloppyError(u64);

/// A disk for a drive.
pub struct Media {
    image: Arc<dyn DiskImage>,
    format: &'static Format,
}

impl std::fmt::Debug for Media {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Media").field("size", &self.image.size()).finish_non_exhaustive()
    }
}

impl Media {
    pub(super) fn new(image: Arc<dyn DiskImage>) -> Result<Self, FloppyError> {
        let size = image.size();
        if size > LARGEST.bytes() {
            return Err(FloppyError(size));
        }
        let format = FORMATS.iter().find(|format| format.bytes() == size).unwrap_or(&LARGEST);
        Ok(Self { format, image })
    }

    /// Reads the sector at `offset`. What the image doesn't have is zero.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn read(&self, offset: u64, sector: &mut [u8]) -> io::Result<()> {
        if check_range(self.image.size(), offset, sector.len()).is_ok() {
            self.image.read_at(offset, sector)
        } else {
            sector.fill(0);
            Ok(())
        }
    }

    /// Writes the sector at `offset`.
    ///
    /// # Errors
    /// The host's; or the image doesn't have that sector.
    pub(super) fn write(&self, offset: u64, sector: &[u8]) -> io::Result<()> {
        check_range(self.image.size(), offset, sector.len())?;
        self.image.write_at(offset, sector)
    }

    pub(super) fn read_only(&self) -> bool {
        self.image.read_only()
    }

    pub(super) fn rate(&self) -> u8 {
        self.format.rate
    }

    pub(super) fn cmos_type(&self) -> u8 {
        self.format.cmos_type
    }

    pub(super) fn has_track(&self, cylinder: u8, head: u8) -> bool {
        cylinder < self.format.cylinders && head < self.format.heads
    }

    /// The offset of a sector of the disk, if there is one of that number.
    pub(super) fn offset(&self, cylinder: u8, head: u8, sector: u8) -> Option<u64> {
        if !self.has_track(cylinder, head) || !(1..=self.format.sectors).contains(&sector) {
            return None;
        }
        let track = u64::from(cylinder) * u64::from(self.format.heads) + u64::from(head);
        let number = track * u64::from(self.format.sectors) + u64::from(sector) - 1;
        Some(number * SECTOR_BYTES as u64)
    }
}
