//! A disc whose image ends inside a sector.
//!
//! Problem: an image's size is in sectors of 512 bytes, a disc's in sectors of 2048; the last ones would be out of the
//! guest's reach. Scheme: what is missing reads as zeroes, as on a disc that was written from the image. Invariant: the
//! size is whole disc sectors; nothing is written. Any thread.

use std::io;
use std::sync::Arc;

use super::{DISC_SECTOR, DiskImage};

/// An image, filled up.
pub(super) struct Disc(Arc<dyn DiskImage>);

impl Disc {
    /// Fills up `image`, which is only read, if it needs that.
    pub(super) fn filled(image: Arc<dyn DiskImage>) -> Arc<dyn DiskImage> {
        if image.size().is_multiple_of(DISC_SECTOR) { image } else { Arc::new(Self(image)) }
    }

    /// The part of `data` at `offset` that the image has; the rest becomes zeroes.
    fn there<'a>(&self, offset: u64, data: &'a mut [u8]) -> &'a mut [u8] {
        let len = self.0.size().saturating_sub(offset).min(data.len() as u64);
        let (data, beyond) = data.split_at_mut(len as usize);
        beyond.fill(0);
        data
    }
}

impl DiskImage for Disc {
    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        super::check_range(self.size(), offset, data.len())?;
        match self.there(offset, data) {
            [] => Ok(()),
            data => self.0.read_at(offset, data),
        }
    }

    fn read_cached(&self, offset: u64, data: &mut [u8]) -> bool {
        super::check_range(self.size(), offset, data.len()).is_ok()
            && match self.there(offset, data) {
                [] => true,
                data => self.0.read_cached(offset, data),
            }
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn size(&self) -> u64 {
        self.0.size().next_multiple_of(DISC_SECTOR)
    }

    fn read_only(&self) -> bool {
        true
    }
}
