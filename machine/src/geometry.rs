//! The cylinders, heads and sectors by which firmware's services know a hard disk.
//!
//! Problem: boot loaders and old systems address sectors by cylinder, head and sector, with numbers that were
//! right for the firmware which the disk was partitioned under; and a disk of less than a cylinder would have no
//! sector at all. Scheme: SeaBIOS is told a geometry for a disk whose partition table fits one, and for
//! a very small one; for the others the CMOS memory says whether the numbers are the drive's own or
//! made of sector numbers ("LBA assist"). Invariants: a geometry that is told has sectors in it; what a partition
//! table says counts only if all its entries agree. Thread: the machine's.
//!
//! Source: SeaBIOS, docs/Runtime_config, "bios-geometry"; Phoenix, Enhanced Disk Drive Specification, "Geometry
//! translation".

use xenolith_devices::disk::{DiskImage, SECTOR};

/// Heads and sectors of a track that a drive has by itself.
const OWN: (u64, u64) = (16, 63);
/// Cylinders that a number in a partition table, or in a call of the firmware, can count.
const CYLINDERS_MAX: u64 = 1024;

/// A disk's geometry in calls of the firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub cylinders: u64,
    pub heads: u64,
    pub sectors: u64,
}

/// Where a partition begins or ends: by its number, and by cylinder, head and sector.
#[derive(Clone, Copy, Debug)]
struct Corner {
    number: u64,
    cylinder: u64,
    head: u64,
    sector: u64,
}

impl Corner {
    fn new(number: u64, [head, sector, cylinder]: [u8; 3]) -> Self {
        Self {
            number,
            cylinder: u64::from(cylinder) | u64::from(sector & 0xc0) << 2,
            head: head.into(),
            sector: (sector & 0x3f).into(),
        }
    }

    fn agrees(&self, (heads, sectors): (u64, u64)) -> bool {
        let track = self.number / sectors;
        // Nothing is said of what is too far for such numbers.
        track / heads >= CYLINDERS_MAX
            || (self.cylinder, self.head, self.sector)
                == (track / heads, track % heads, self.number % sectors + 1)
    }

    fn is_near(&self, (heads, sectors): (u64, u64)) -> bool {
        self.number / sectors / heads < CYLINDERS_MAX
    }
}

/// What firmware is to be told of a disk; none if it finds the right numbers by itself.
pub fn of(image: &dyn DiskImage) -> Option<Geometry> {
    let total = image.size() / SECTOR;
    let mut first = [0; SECTOR as usize];
    let found = match image.read_at(0, &mut first) {
        Ok(()) => by_partitions(&first),
        // The guest will see that.
        Err(_) => None,
    };
    let small = (total < 2 * OWN.0 * OWN.1).then_some(OWN);
    let (heads, sectors) = found.or(small)?;
    let cylinders = (total / (heads * sectors)).clamp(2, CYLINDERS_MAX);
    Some(Geometry { cylinders, heads, sectors })
}

/// Whether firmware should count cylinders of an IDE disk by sector numbers, since the drive has more of its own
/// than a call can name.
pub fn is_translated(image: &dyn DiskImage) -> bool {
    image.size() / SECTOR / (OWN.0 * OWN.1) > CYLINDERS_MAX
}

/// Heads and sectors of a track that all entries of the partition table in the `first` sector agree on.
fn by_partitions(first: &[u8; SECTOR as usize]) -> Option<(u64, u64)> {
    if first[510..] != [0x55, 0xaa] {
        return None;
    }
    let mut corners = Vec::new();
    for entry in first[446..510].chunks_exact(16) {
        let word = |at: usize| {
            u64::from(u32::from_le_bytes(entry[at..at + 4].try_into().expect("four bytes")))
        };
        let (start, count) = (word(8), word(12));
        // Unused; or the one that keeps others off a disk with a GPT, which may say anything.
        if entry[4] == 0 || entry[4] == 0xee || count == 0 {
            continue;
        }
        corners.push(Corner::new(start, [entry[1], entry[2], entry[3]]));
        corners.push(Corner::new(start + count - 1, [entry[5], entry[6], entry[7]]));
    }
    // The last sector of a partition is often that of a cylinder.
    let ends = corners.iter().map(|corner| (corner.head + 1, corner.sector));
    let usual = [255, 240, 128, 64, 32, 16].map(|heads| (heads, 63));
    ends.chain(usual).filter(|&(heads, sectors)| (1..=255).contains(&heads) && sectors > 0).find(
        |&geometry| {
            // More than what any would fit: a place that isn't in the first cylinder.
            corners.iter().all(|corner| corner.agrees(geometry))
                && corners.iter().any(|corner| corner.is_near(geometry) && corner.cylinder > 0)
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sector with these partitions: first sector and number of sectors, made under a geometry.
    fn table(partitions: &[(u64, u64)], (heads, sectors): (u64, u64)) -> [u8; 512] {
        let mut bytes = [0; 512];
        bytes[510..].copy_from_slice(&[0x55, 0xaa]);
        for (entry, &(start, count)) in bytes[446..510].chunks_exact_mut(16).zip(partitions) {
            entry[4] = 0x83;
            for (at, number) in [(1, start), (5, start + count - 1)] {
                let track = number / sectors;
                let (mut cylinder, mut head, mut sector) =
                    (track / heads, track % heads, number % sectors + 1);
                if cylinder > 1023 {
                    (cylinder, head, sector) = (1023, heads - 1, sectors);
                }
                entry[at] = head as u8;
                entry[at + 1] = sector as u8 | (cylinder >> 8 << 6) as u8;
                entry[at + 2] = cylinder as u8;
            }
            entry[8..12].copy_from_slice(&(start as u32).to_le_bytes());
            entry[12..16].copy_from_slice(&(count as u32).to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_partition_table_tells_the_geometry_under_which_it_was_made() {
        for geometry in [(255, 63), (240, 63), (64, 63), (16, 63), (4, 17), (8, 32), (255, 62)] {
            let cylinder = geometry.0 * geometry.1;
            // DOS: whole cylinders, but for the first track.
            let dos = [(geometry.1, 99 * cylinder), (100 * cylinder, 50 * cylinder)];
            let dos =
                dos.map(
                    |(start, count)| {
                        if start == geometry.1 { (start, count - start) } else { (start, count) }
                    },
                );
            assert_eq!(by_partitions(&table(&dos, geometry)), Some(geometry), "{geometry:?}");
        }
        for geometry in [(255, 63), (128, 63), (16, 63)] {
            // Whole MiB, as today; the second ends beyond what cylinders reach.
            let today = [(2048, 409_600), (411_648, 600 << 21)];
            assert_eq!(by_partitions(&table(&today, geometry)), Some(geometry), "{geometry:?}");
        }
    }

    #[test]
    fn a_table_that_contradicts_itself_tells_nothing() {
        let good = table(&[(2048, 409_600), (411_648, 409_600)], (255, 63));
        assert!(by_partitions(&good).is_some());
        for (at, name) in [(447, "start"), (451, "end"), (463, "the second's start"), (510, "mark")]
        {
            let mut wrong = good;
            wrong[at] ^= 1;
            assert_eq!(by_partitions(&wrong), None, "{name}");
        }
        assert_eq!(by_partitions(&table(&[], (255, 63))), None);
        // All within the first cylinder, which is the same under many.
        assert_eq!(by_partitions(&table(&[(63, 100)], (16, 63))), None);
        let mut whole = table(&[(1, 0xffff_ffff)], (255, 63));
        whole[446 + 4] = 0xee;
        assert_eq!(by_partitions(&whole), None);
        for at in 446..510 {
            let mut wild = good;
            for (n, byte) in wild[at..510].iter_mut().enumerate() {
                *byte = (n * 37 + at * 101) as u8;
            }
            let _ = by_partitions(&wild);
        }
        let _ = by_partitions(&[0xff; 512]);
    }
}
