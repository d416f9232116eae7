//! Raw images: the file's bytes are the disk's.
//!
//! Problem: a wrong path must be told in one line, before anything is read or written.
//! Scheme: the file's kind is looked at, then it is opened and locked. Invariants: the lock is kept until the
//! image is dropped; the size is fixed at opening; a file that ends inside a sector goes on with zeroes to the sector's
//! end, as on QEMU, and becomes longer only if the guest writes that sector. Any thread; positioned reads and writes
//! share the file.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::lock::lock;
use super::{DiskImage, SECTOR};

/// Why an image can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("disk image {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("disk image {}: is a directory", .0.display())]
    Directory(PathBuf),
    #[error("disk image {}: neither a regular file nor a block device", .0.display())]
    NotADisk(PathBuf),
    #[error("disk image {}: {bytes} bytes, less than {least}", path.display())]
    TooSmall { path: PathBuf, bytes: u64, least: u64 },
    #[error("disk image {}: in use by another program", .0.display())]
    InUse(PathBuf),
    #[error("disk image {}: a temporary file in {} for the snapshot: {source}", path.display(), folder.display())]
    Snapshot { path: PathBuf, folder: PathBuf, source: io::Error },
}

/// A file or block device used as it is.
#[derive(Debug)]
pub struct RawImage {
    file: File,
    /// Of the file.
    bytes: AtomicU64,
    /// Of the disk.
    size: u64,
    read_only: bool,
    /// A regular file, whose space can be given back.
    is_file: bool,
}

impl RawImage {
    /// Opens and locks the image at `path`.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open(path: &Path, read_only: bool) -> Result<Self, DiskError> {
        Self::new(open_locked(path, read_only)?, path, read_only, SECTOR)
    }

    /// The image in `file`, which is locked and was opened by the name `path`. With less than `least` bytes it is none.
    pub(super) fn new(
        mut file: File,
        path: &Path,
        read_only: bool,
        least: u64,
    ) -> Result<Self, DiskError> {
        // Unlike the metadata's length, this is right for block devices too.
        let bytes = file
            .seek(SeekFrom::End(0))
            .map_err(|source| DiskError::Open { path: path.to_owned(), source })?;
        if bytes < least {
            return Err(DiskError::TooSmall { path: path.to_owned(), bytes, least });
        }
        let size = bytes.next_multiple_of(SECTOR);
        let is_file = file.metadata().is_ok_and(|found| found.is_file());
        Ok(Self { file, bytes: bytes.into(), size, read_only, is_file })
    }

    /// The part of `data` at `offset` that the file has; the rest becomes zeroes.
    fn there<'a>(&self, offset: u64, data: &'a mut [u8]) -> &'a mut [u8] {
        let bytes = self.bytes.load(Ordering::Acquire);
        let len = bytes.saturating_sub(offset).min(data.len() as u64);
        let (data, beyond) = data.split_at_mut(len as usize);
        beyond.fill(0);
        data
    }
}

/// Refuses what can't be an image. To be looked at first: opening a pipe would wait for its other end.
pub(super) fn check_kind(path: &Path) -> Result<(), DiskError> {
    let kind = std::fs::metadata(path)
        .map_err(|source| DiskError::Open { path: path.to_owned(), source })?
        .file_type();
    if kind.is_dir() {
        return Err(DiskError::Directory(path.to_owned()));
    }
    if !kind.is_file() && !kind.is_block_device() {
        return Err(DiskError::NotADisk(path.to_owned()));
    }
    Ok(())
}

/// Opens the file at `path` and locks it: alone to write, with others to read.
pub(super) fn open_locked(path: &Path, read_only: bool) -> Result<File, DiskError> {
    let told = |source| DiskError::Open { path: path.to_owned(), source };
    check_kind(path)?;
    let file = OpenOptions::new().read(true).write(!read_only).open(path).map_err(told)?;
    match lock(&file, read_only) {
        Ok(true) => {}
        Ok(false) => return Err(DiskError::InUse(path.to_owned())),
        // Some network file systems have no locks. The user may still use the image there.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput) =>
        {
            tracing::warn!("disk image {}: can't be locked: {error}", path.display());
        }
        Err(error) => return Err(told(error)),
    }
    Ok(file)
}

impl DiskImage for RawImage {
    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        super::check_range(self.size, offset, data.len())?;
        self.file.read_exact_at(self.there(offset, data), offset)
    }

    fn read_cached(&self, offset: u64, data: &mut [u8]) -> bool {
        super::check_range(self.size, offset, data.len()).is_ok()
            && super::read_cached(&self.file, offset, self.there(offset, data))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        super::check_range(self.size, offset, data.len())?;
        if self.read_only {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.file.write_all_at(data, offset)?;
        self.bytes.fetch_max(offset + data.len() as u64, Ordering::Release);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.file.sync_data() }
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn known_zeroes(&self, offset: u64) -> u64 {
        use rustix::fs::{SeekFrom, seek};
        use rustix::io::Errno;
        if !self.is_file || offset >= self.size {
            return 0;
        }
        match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) => data.min(self.size) - offset,
            Err(Errno::NXIO) => self.size - offset,
            Err(_) => 0,
        }
    }

    fn can_discard(&self) -> bool {
        !self.read_only && self.is_file
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        super::check_range(self.size, offset, usize::try_from(len).unwrap_or(usize::MAX))?;
        if self.can_discard() {
            super::give_back(&self.file, offset, len);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that is deleted when dropped.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str, bytes: &[u8]) -> Self {
            let path = std::env::temp_dir().join(format!("xenolith-{name}-{}", std::process::id()));
            std::fs::write(&path, bytes).expect("the temporary directory is writable");
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn one_writer_or_many_readers() {
        let scratch = Scratch::new("lock", &[0; 1024]);
        let writer = RawImage::open(&scratch.0, false).expect("free");
        assert!(matches!(RawImage::open(&scratch.0, false), Err(DiskError::InUse(_))));
        assert!(matches!(RawImage::open(&scratch.0, true), Err(DiskError::InUse(_))));
        drop(writer);
        let _one = RawImage::open(&scratch.0, true).expect("free");
        let _two = RawImage::open(&scratch.0, true).expect("readers share");
        assert!(matches!(RawImage::open(&scratch.0, false), Err(DiskError::InUse(_))));
    }

    #[test]
    fn bad_paths_are_told_in_one_line() {
        let missing = RawImage::open(Path::new("/nonexistent/disk.img"), false).expect_err("none");
        assert_eq!(
            missing.to_string(),
            "disk image /nonexistent/disk.img: No such file or directory (os error 2)"
        );
        assert!(matches!(RawImage::open(Path::new("/"), false), Err(DiskError::Directory(_))));
        assert!(matches!(
            RawImage::open(Path::new("/dev/null"), false),
            Err(DiskError::NotADisk(_))
        ));
        let scratch = Scratch::new("small", &[0; 511]);
        assert!(matches!(
            RawImage::open(&scratch.0, false),
            Err(DiskError::TooSmall { bytes: 511, .. })
        ));
    }

    #[test]
    fn the_last_sector_goes_on_with_zeroes() {
        let scratch = Scratch::new("tail", &[7; 1500]);
        let image = RawImage::open(&scratch.0, false).expect("opens");
        assert_eq!(image.size(), 1536);
        let mut read = [0xa5; 1536];
        image.read_at(0, &mut read).expect("all of it");
        assert_eq!((read[1499], &read[1500..]), (7, &[0; 36][..]));
        assert!(image.write_at(1536, &[0]).is_err());
        assert!(image.read_at(1535, &mut [0; 2]).is_err());
        assert!(image.read_at(u64::MAX, &mut [0; 2]).is_err());
        image.write_at(0, &[1; 1024]).expect("writes");
        let len = || scratch.0.metadata().expect("there").len();
        assert_eq!(len(), 1500, "as long as nothing is written there");
        image.write_at(1510, &[2; 4]).expect("writes");
        image.read_at(1490, &mut read[..46]).expect("all of it");
        let wanted = [&[7; 10][..], &[0; 10], &[2; 4], &[0; 22]].concat();
        assert_eq!((&read[..46], len()), (&wanted[..], 1514));
        image.write_zeroes(0, 1536).expect("writes");
        drop(image);
        assert_eq!(std::fs::read(&scratch.0).expect("readable"), [0; 1536]);
    }

    #[test]
    fn holes_are_known() {
        let scratch = Scratch::new("holes", &[]);
        let file = OpenOptions::new().write(true).open(&scratch.0).expect("there");
        file.set_len(64 << 20).expect("room");
        file.write_all_at(&[7; 512], 32 << 20).expect("room");
        let image = RawImage::open(&scratch.0, true).expect("opens");
        let known = image.known_zeroes(0);
        // A file system may know nothing, or only blocks of its own size.
        assert!(known <= 32 << 20);
        assert_eq!(image.known_zeroes(32 << 20), 0);
        if known > 0 {
            assert!(image.known_zeroes(48 << 20) == 16 << 20);
        }
        assert_eq!(image.known_zeroes(64 << 20), 0);
    }

    #[test]
    fn the_last_sector_of_a_disc_is_filled_up() {
        for (bytes, size) in [(1, 2048), (1500, 2048), (2048, 2048), (2560, 4096), (5000, 6144)] {
            let scratch = Scratch::new("disc", &vec![7; bytes]);
            let disc = super::super::open_disc(&scratch.0, None).expect("opens");
            assert_eq!((disc.size(), disc.read_only()), (size, true));
            let mut wanted = vec![7; bytes];
            wanted.resize(size as usize, 0);
            let mut read = vec![0xa5; size as usize];
            disc.read_at(0, &mut read).expect("all of it");
            assert!(read == wanted, "{bytes}");
            read.fill(0xa5);
            assert!(!disc.read_cached(0, &mut read) || read == wanted, "{bytes}, in memory");
            disc.read_at(size - 1, &mut read[..1]).expect("the last byte");
            assert!(disc.read_at(size - 1, &mut [0; 2]).is_err());
        }
        let scratch = Scratch::new("disc", &[]);
        assert!(matches!(
            super::super::open_disc(&scratch.0, None),
            Err(DiskError::TooSmall { bytes: 0, .. })
        ));
    }

    #[test]
    fn a_read_only_image_takes_no_write() {
        let scratch = Scratch::new("ro", &[1; 512]);
        let image = RawImage::open(&scratch.0, true).expect("opens");
        assert!(image.write_at(0, &[2]).is_err());
        image.flush().expect("nothing to do");
    }
}
