//! A disk whose writes are forgotten.
//!
//! Problem: a guest must be able to write while its image stays as it is. Scheme: the first write to a 64 KiB
//! block copies it from the image to a nameless temporary file, which has it from then on. Invariants: the
//! image is never written; a block is marked only when the temporary file has the whole of it, so that a full
//! host disk is an error to the guest and nothing else. Any thread; writes exclude one another and reads.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::DiskImage;

const BLOCK: u64 = 64 << 10;

/// An image and what was written on top of it.
pub struct Snapshot {
    image: Arc<dyn DiskImage>,
    file: File,
    /// The blocks that `file` has. A set, since an image may claim to be of any size.
    written: RwLock<HashSet<u64>>,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("size", &self.image.size()).finish_non_exhaustive()
    }
}

impl Snapshot {
    /// Puts a temporary file in `folder` on top of `image`.
    ///
    /// # Errors
    /// The file can't be made.
    pub fn new(image: Arc<dyn DiskImage>, folder: &Path) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let file = loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!("xenolith-snapshot-{}-{number}", std::process::id()));
            let mut options = OpenOptions::new();
            match options.read(true).write(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => {
                    std::fs::remove_file(&path)?;
                    break file;
                }
                // A process of the same number was killed between the two steps.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        };
        Ok(Self { image, file, written: RwLock::default() })
    }

    /// The pieces of a range that lie in one block each: offset and length.
    fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize)> {
        let end = offset + len as u64;
        std::iter::successors(Some(offset), |at| Some((at / BLOCK + 1) * BLOCK))
            .take_while(move |&at| at < end)
            .map(move |at| (at, ((at / BLOCK + 1) * BLOCK).min(end) - at))
            .map(|(at, len)| (at, len as usize))
    }
}

impl DiskImage for Snapshot {
    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        super::check_range(self.size(), offset, data.len())?;
        let written = self.written.read().unwrap_or_else(PoisonError::into_inner);
        let mut rest = &mut data[..];
        for (at, len) in Self::pieces(offset, rest.len()) {
            let (piece, after) = rest.split_at_mut(len);
            if written.contains(&(at / BLOCK)) {
                self.file.read_exact_at(piece, at)?;
            } else {
                self.image.read_at(at, piece)?;
            }
            rest = after;
        }
        Ok(())
    }

    fn read_cached(&self, offset: u64, data: &mut [u8]) -> bool {
        let Ok(written) = self.written.try_read() else { return false };
        let mut rest = &mut data[..];
        super::check_range(self.size(), offset, rest.len()).is_ok()
            && Self::pieces(offset, rest.len()).all(|(at, len)| {
                let (piece, after) = std::mem::take(&mut rest).split_at_mut(len);
                rest = after;
                if written.contains(&(at / BLOCK)) {
                    super::read_cached(&self.file, at, piece)
                } else {
                    self.image.read_cached(at, piece)
                }
            })
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        super::check_range(self.size(), offset, data.len())?;
        let mut written = self.written.write().unwrap_or_else(PoisonError::into_inner);
        let mut rest = data;
        for (at, len) in Self::pieces(offset, data.len()) {
            let (piece, after) = rest.split_at(len);
            let block = at / BLOCK;
            if written.contains(&block) {
                self.file.write_all_at(piece, at)?;
            } else {
                let start = block * BLOCK;
                let mut whole = vec![0; BLOCK.min(self.size() - start) as usize];
                if len < whole.len() {
                    self.image.read_at(start, &mut whole)?;
                }
                let inside = (at - start) as usize;
                whole[inside..inside + len].copy_from_slice(piece);
                self.file.write_all_at(&whole, start)?;
                written.insert(block);
            }
            rest = after;
        }
        Ok(())
    }

    /// Nothing of it outlives us anyway.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn size(&self) -> u64 {
        self.image.size()
    }

    fn read_only(&self) -> bool {
        false
    }
}
