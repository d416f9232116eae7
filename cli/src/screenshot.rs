//! `--screenshot`: pictures of the guest's screen as PNG files.
//!
//! Problem: a picture is due at a time, but a guest may end before it, and a file that can't be written
//! should be told at the start. Scheme: the files are made first; one thread waits for each time in turn
//! and writes; [`Running::finish`] takes the rest, since the last picture outlives the machine. Invariant: each
//! picture is taken once. Source: W3C, "Portable Network Graphics (PNG) Specification".

use std::fs::File;
use std::io::{self, Write};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use xenolith_devices::vga::Picture;
use xenolith_machine::Screen;

use crate::flags::Screenshot;

/// Pictures that are asked for, with their files.
#[derive(Debug)]
pub struct Screenshots(Vec<(Screenshot, File)>);

/// The thread that takes them.
#[derive(Debug)]
pub struct Running {
    end: Sender<()>,
    thread: JoinHandle<Result<()>>,
}

impl Screenshots {
    /// # Errors
    /// A file can't be made.
    pub fn open(asked: &[Screenshot]) -> Result<Self> {
        let mut files = Vec::new();
        for shot in asked {
            let file =
                File::create(&shot.path).map_err(|error| crate::cmd::plain(&error)).with_context(
                    || format!("--screenshot {}: cannot write it", shot.path.display()),
                )?;
            files.push((shot.clone(), file));
        }
        files.sort_by_key(|(shot, _)| shot.after);
        Ok(Self(files))
    }

    /// From now on the time counts.
    pub fn start(self, screen: Screen) -> Running {
        let (end, ended) = channel();
        let start = Instant::now();
        let thread = thread::spawn(move || {
            for (shot, file) in self.0 {
                let left = shot.after.saturating_sub(start.elapsed());
                // Whatever comes, the picture is due: its time, or the end.
                let _: Result<(), RecvTimeoutError> = ended.recv_timeout(left);
                let option = || format!("--screenshot {}", shot.path.display());
                let picture = screen.picture().ok_or_else(|| anyhow!("there is no screen"));
                write_png(file, &picture.with_context(option)?)
                    .map_err(|error| crate::cmd::plain(&error))
                    .with_context(option)?;
            }
            Ok(())
        });
        Running { end, thread }
    }
}

impl Running {
    /// The guest has ended: takes what was not taken yet.
    ///
    /// # Errors
    /// A picture couldn't be written.
    pub fn finish(self) -> Result<()> {
        drop(self.end);
        self.thread.join().map_err(|_| anyhow!("the thread for screenshots has failed"))?
    }
}

/// Writes `picture` as a PNG of eight bits a colour.
///
/// # Errors
/// The file can't be written.
pub fn write_png(mut out: impl Write, picture: &Picture) -> io::Result<()> {
    let mut lines = Vec::with_capacity(picture.height * (1 + 3 * picture.width));
    for line in picture.pixels.chunks_exact(picture.width.max(1)) {
        // No filter.
        lines.push(0);
        lines.extend(
            line.iter().flat_map(|pixel| [(pixel >> 16) as u8, (pixel >> 8) as u8, *pixel as u8]),
        );
    }
    let mut header = Vec::new();
    for size in [picture.width, picture.height] {
        header.extend(u32::try_from(size).unwrap_or(0).to_be_bytes());
    }
    // Eight bits, red, green and blue; the only compression and filters; not interlaced.
    header.extend([8, 2, 0, 0, 0]);
    out.write_all(b"\x89PNG\r\n\x1a\n")?;
    chunk(&mut out, *b"IHDR", &header)?;
    chunk(&mut out, *b"IDAT", &miniz_oxide::deflate::compress_to_vec_zlib(&lines, 6))?;
    chunk(&mut out, *b"IEND", &[])?;
    out.flush()
}

fn chunk(out: &mut impl Write, name: [u8; 4], body: &[u8]) -> io::Result<()> {
    out.write_all(&u32::try_from(body.len()).map_err(io::Error::other)?.to_be_bytes())?;
    out.write_all(&name)?;
    out.write_all(body)?;
    out.write_all(&checksum(name.iter().chain(body)).to_be_bytes())
}

/// CRC-32 as PNG has it.
fn checksum<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    !bytes.fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| {
            sum >> 1 ^ if sum & 1 != 0 { 0xedb8_8320 } else { 0 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_can_be_read_back() {
        assert_eq!(checksum(b"123456789".iter()), 0xcbf4_3926);
        let picture = Picture { width: 2, height: 1, pixels: vec![0x12_3456, 0xff_0080] };
        let mut png = Vec::new();
        write_png(&mut png, &picture).expect("a vector");
        assert_eq!(png[..8], *b"\x89PNG\r\n\x1a\n");
        assert_eq!(png[8..29], *b"\0\0\0\x0dIHDR\0\0\0\x02\0\0\0\x01\x08\x02\0\0\0");
        let len = u32::from_be_bytes([png[33], png[34], png[35], png[36]]) as usize;
        let lines = miniz_oxide::inflate::decompress_to_vec_zlib(&png[41..41 + len]);
        assert_eq!(lines.expect("zlib"), [0, 0x12, 0x34, 0x56, 0xff, 0, 0x80]);
        assert!(png.ends_with(b"IEND\xae\x42\x60\x82"));
    }
}
