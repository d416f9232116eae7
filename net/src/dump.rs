//! The dump: every frame of both directions in a pcap file, for tcpdump and Wireshark.
//!
//! Invariant: after each round of the network's thread the file ends with a whole frame; a file that can't be written
//! any more is reported once and then left alone. Source: IETF draft-ietf-opsawg-pcap, "PCAP Capture File
//! Format".

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

const MAGIC: u32 = 0xa1b2_c3d4;
/// Frames are never cut.
const SNAP_LEN: u32 = 0x4_0000;
const LINK_ETHERNET: u32 = 1;

#[derive(Debug)]
pub struct Dump {
    /// `None` after a failure.
    file: Option<BufWriter<File>>,
}

impl Dump {
    /// Makes the file with its header.
    ///
    /// # Errors
    /// It can't be written.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(&MAGIC.to_le_bytes())?;
        // Version 2.4, no time zone, no accuracy.
        file.write_all(&[2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0])?;
        file.write_all(&SNAP_LEN.to_le_bytes())?;
        file.write_all(&LINK_ETHERNET.to_le_bytes())?;
        file.flush()?;
        Ok(Self { file: Some(file) })
    }

    pub fn frame(&mut self, frame: &[u8]) {
        self.attempt(|file| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            // The format's seconds end in 2106.
            file.write_all(&(now.as_secs() as u32).to_le_bytes())?;
            file.write_all(&now.subsec_micros().to_le_bytes())?;
            let len = u32::try_from(frame.len()).unwrap_or(u32::MAX).to_le_bytes();
            file.write_all(&len)?;
            file.write_all(&len)?;
            file.write_all(frame)
        });
    }

    pub fn flush(&mut self) {
        self.attempt(Write::flush);
    }

    fn attempt(&mut self, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) {
        if let Some(file) = &mut self.file
            && let Err(error) = write(file)
        {
            tracing::warn!("the network's dump ends here: {}", crate::plain(&error));
            self.file = None;
        }
    }
}
