//! A person hears that a machine's image fails.
//!
//! Problem: when the host's disk is full, the guest sees an I/O error of its disk, and nobody says why. Scheme: the
//! first failure of an image is an error in our log, which is shown. Invariant: the guest's own mistakes are not told.
//! Any thread.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::DiskImage;

/// A machine's image.
pub struct Told {
    image: Arc<dyn DiskImage>,
    path: PathBuf,
    told: AtomicBool,
}

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Told").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Told {
    /// The image that was opened by the name `path`.
    #[must_use]
    pub fn new(image: Arc<dyn DiskImage>, path: &Path) -> Self {
        Self { image, path: path.to_owned(), told: AtomicBool::new(false) }
    }

    fn tell<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result {
            let guests = matches!(
                error.kind(),
                io::ErrorKind::InvalidInput | io::ErrorKind::PermissionDenied
            );
            if !guests && !self.told.swap(true, Ordering::Relaxed) {
                let why = match error.kind() {
                    io::ErrorKind::UnexpectedEof => "the file ends before its data".to_owned(),
                    _ => error.to_string(),
                };
                tracing::error!(
                    "disk image {}: {why}; the guest sees an I/O error",
                    self.path.display()
                );
            }
        }
        result
    }
}

impl DiskImage for Told {
    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.tell(self.image.read_at(offset, data))
    }

    fn read_cached(&self, offset: u64, data: &mut [u8]) -> bool {
        self.image.read_cached(offset, data)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.tell(self.image.write_at(offset, data))
    }

    fn flush(&self) -> io::Result<()> {
        self.tell(self.image.flush())
    }

    fn size(&self) -> u64 {
        self.image.size()
    }

    fn read_only(&self) -> bool {
        self.image.read_only()
    }

    fn known_zeroes(&self, offset: u64) -> u64 {
        self.image.known_zeroes(offset)
    }

    fn can_discard(&self) -> bool {
        self.image.can_discard()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.tell(self.image.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.tell(self.image.write_zeroes(offset, len))
    }
}
