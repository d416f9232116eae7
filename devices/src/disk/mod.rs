//! Disk images behind one trait.
//!
//! Problem: block devices (virtio, IDE) don't care how an image is stored. Scheme:
//! [`DiskImage`], positioned and shared by reference, so that workers need no lock; [`RawImage`],
//! [`Qcow2Image`] and [`Snapshot`] are its kinds, and [`open`] finds the one for a file. Invariants: offsets and lengths that a device passes are within [`DiskImage::size`];
//! what was written before a [`DiskImage::flush`] that succeeded survives our being killed, and the
//! host's. Called by the devices' workers; may block, but for [`DiskImage::read_cached`], which any thread calls.

mod describe;
mod disc;
mod lock;
mod open;
mod qcow2;
mod raw;
mod snapshot;
#[cfg(test)]
mod tests;
mod told;

use std::io;

pub use describe::{Info, describe};
pub use open::{DiskOptions, Format, open, open_disc};
pub use qcow2::{Backing, Qcow2Image, create as create_qcow2, names_protocol};
pub use raw::{DiskError, RawImage};
pub use snapshot::Snapshot;
pub use told::Told;

/// Bytes of a sector, the unit of sizes and requests.
pub const SECTOR: u64 = 512;

/// Bytes of a sector of a disc (CD, DVD).
pub const DISC_SECTOR: u64 = 2048;

/// A disk's contents.
pub trait DiskImage: Send + Sync {
    /// Fills `data` from byte `offset` on.
    ///
    /// # Errors
    /// The host's.
    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// The same, if that needs no waiting: the host has the bytes in memory. If not, says so, and what `data` holds is
    /// undefined.
    fn read_cached(&self, offset: u64, data: &mut [u8]) -> bool {
        let _ = (offset, data);
        false
    }

    /// Writes all of `data` from byte `offset` on.
    ///
    /// # Errors
    /// The host's, or [`io::ErrorKind::PermissionDenied`] on a read-only image.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// The host's.
    fn flush(&self) -> io::Result<()>;

    /// Bytes in the image, a multiple of [`SECTOR`].
    fn size(&self) -> u64;

    fn read_only(&self) -> bool;

    /// How many bytes from `offset` on surely read as zeroes, as far as that is known without reading them. For who
    /// copies the image.
    fn known_zeroes(&self, offset: u64) -> u64 {
        let _ = offset;
        0
    }

    /// Whether [`DiskImage::discard`] gives space back.
    fn can_discard(&self) -> bool {
        false
    }

    /// The bytes are not needed any more; what they read as is undefined.
    ///
    /// # Errors
    /// The host's.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let _ = (offset, len);
        Ok(())
    }

    /// Makes the bytes read as zeroes.
    ///
    /// # Errors
    /// As [`DiskImage::write_at`].
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(ZEROES.len() as u64);
            self.write_at(offset + done, &ZEROES[..piece as usize])?;
            done += piece;
        }
        Ok(())
    }
}

/// Gives the space of a part of `file` back to the host, if it takes it. The part reads as zeroes then; if
/// it isn't taken, as it did.
fn give_back(file: &std::fs::File, offset: u64, len: u64) {
    use rustix::fs::{FallocateFlags, fallocate};
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if let Err(error) = fallocate(file, flags, offset, len) {
        tracing::debug!("space of a disk image can't be given back: {error}");
    }
}

/// Fills `data` from byte `offset` of `file` on with what the host has in memory. False if that isn't all, or the file
/// system can't tell.
fn read_cached(file: &std::fs::File, offset: u64, data: &mut [u8]) -> bool {
    use rustix::io::{ReadWriteFlags, preadv2};
    let len = data.len();
    let done = preadv2(file, &mut [io::IoSliceMut::new(data)], offset, ReadWriteFlags::NOWAIT);
    done == Ok(len)
}

/// Refuses what would reach past an image of `size` bytes: a write there could make the file longer.
pub(crate) fn check_range(size: u64, offset: u64, len: usize) -> io::Result<()> {
    let end = u64::try_from(len).ok().and_then(|len| offset.checked_add(len));
    if end.is_some_and(|end| end <= size) {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "past the end of the disk image"))
    }
}
