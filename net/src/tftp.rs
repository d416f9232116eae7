//! Files for guests that boot: a read-only TFTP server.
//!
//! Scheme: a transfer is a file, a block and what was sent last, found by the client's address; blocks are
//! read from the file when they are due, and sent again when no answer comes. Invariants: only plain files
//! below the folder are given out, also through links; there are [`TRANSFERS_MAX`] transfers at most; a packet
//! fits a frame. Source: RFC 1350 (TFTP), RFC 2347 to 2349 (options).

use std::fs::{File, OpenOptions};
use std::io;
use std::net::SocketAddrV4;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::packet::{HEADER, MTU, UDP_HEADER};

pub const PORT: u16 = 69;

const TRANSFERS_MAX: usize = 16;
const BLOCK_LEN: usize = 512;
/// Largest block that is agreed to: with its header it fills a frame.
const BLOCK_LEN_MAX: usize = MTU - HEADER - UDP_HEADER - 4;
const BLOCK_LEN_MIN: usize = 8;
/// How often a packet is sent in all, and how long an answer may take.
const SENT_MAX: u32 = 6;
const PATIENCE: Duration = Duration::from_secs(1);

mod op {
    pub const READ: u16 = 1;
    pub const WRITE: u16 = 2;
    pub const DATA: u16 = 3;
    pub const ACK: u16 = 4;
    pub const ERROR: u16 = 5;
    pub const OPTIONS: u16 = 6;
}

/// Error codes.
const NOT_DEFINED: u16 = 0;
const NOT_FOUND: u16 = 1;
const ACCESS: u16 = 2;
const ILLEGAL: u16 = 4;

#[derive(Debug)]
struct Transfer {
    client: SocketAddrV4,
    file: File,
    len: u64,
    block_len: usize,
    /// The block that was sent last; 0 while only options were.
    block: u64,
    last: Vec<u8>,
    sent: u32,
    due: Instant,
}

#[derive(Debug)]
pub struct Tftp {
    folder: PathBuf,
    transfers: Vec<Transfer>,
}

fn error(code: u16, text: &str) -> Vec<u8> {
    let mut packet = [op::ERROR.to_be_bytes(), code.to_be_bytes()].concat();
    packet.extend_from_slice(text.as_bytes());
    packet.push(0);
    packet
}

impl Tftp {
    /// A server of the files in `folder`.
    ///
    /// # Errors
    /// It is no folder.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let folder = folder.canonicalize()?;
        if !folder.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self { folder, transfers: Vec::new() })
    }

    /// Answers a packet.
    pub fn answer(&mut self, client: SocketAddrV4, packet: &[u8], now: Instant) -> Option<Vec<u8>> {
        let (operation, rest) = packet.split_first_chunk::<2>()?;
        match u16::from_be_bytes(*operation) {
            op::READ => {
                self.transfers.retain(|transfer| transfer.client != client);
                Some(self.begin(client, rest, now).unwrap_or_else(|refusal| refusal))
            }
            op::WRITE => Some(error(ACCESS, "files are only read here")),
            op::ACK => self.acknowledged(client, u16::from_be_bytes(*rest.first_chunk()?), now),
            op::ERROR => {
                self.transfers.retain(|transfer| transfer.client != client);
                None
            }
            _ => Some(error(ILLEGAL, "no such operation")),
        }
    }

    fn begin(
        &mut self,
        client: SocketAddrV4,
        request: &[u8],
        now: Instant,
    ) -> Result<Vec<u8>, Vec<u8>> {
        let illegal = || error(ILLEGAL, "not a request");
        let Some(request) = request.strip_suffix(&[0]) else { return Err(illegal()) };
        let mut words = request.split(|&byte| byte == 0).map(std::str::from_utf8);
        let mut word = || words.next().transpose().map_err(|_| illegal());
        let (Some(name), Some(mode)) = (word()?, word()?) else { return Err(illegal()) };
        if !mode.eq_ignore_ascii_case("octet") {
            return Err(error(NOT_DEFINED, "the only mode is octet"));
        }
        let (file, len) = self.open(name)?;
        let mut block_len = BLOCK_LEN;
        let mut agreed = Vec::new();
        while let (Some(option), Some(value)) = (word()?, word()?) {
            let Ok(number) = value.parse::<u64>() else { continue };
            let granted = match option.to_ascii_lowercase().as_str() {
                "blksize" if number >= BLOCK_LEN_MIN as u64 => {
                    block_len = usize::try_from(number).unwrap_or(usize::MAX).min(BLOCK_LEN_MAX);
                    block_len as u64
                }
                "tsize" => len,
                // Ours is shorter than any that can be asked for, which disturbs nobody.
                "timeout" if (1..=255).contains(&number) => number,
                _ => continue,
            };
            agreed.extend_from_slice(format!("{option}\0{granted}\0").as_bytes());
        }
        if self.transfers.len() == TRANSFERS_MAX {
            self.transfers.remove(0);
        }
        let mut transfer = Transfer {
            client,
            file,
            len,
            block_len,
            block: 0,
            last: Vec::new(),
            sent: 0,
            due: now,
        };
        let packet = if agreed.is_empty() {
            transfer.next()?
        } else {
            [&op::OPTIONS.to_be_bytes()[..], &agreed].concat()
        };
        transfer.remember(&packet, now);
        self.transfers.push(transfer);
        Ok(packet)
    }

    /// The file called `name`, and its length.
    fn open(&self, name: &str) -> Result<(File, u64), Vec<u8>> {
        let missing = || error(NOT_FOUND, "there is no such file");
        let name = Path::new(name.trim_start_matches('/'));
        if !name.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            return Err(error(ACCESS, "that is outside the folder"));
        }
        let path = self.folder.join(name).canonicalize().map_err(|_| missing())?;
        if !path.starts_with(&self.folder) {
            return Err(error(ACCESS, "that is outside the folder"));
        }
        // A pipe would keep us waiting.
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let file = opened.map_err(|_| error(ACCESS, "the file can't be read"))?;
        let metadata = file.metadata().map_err(|_| missing())?;
        if !metadata.is_file() {
            return Err(error(ACCESS, "that is no plain file"));
        }
        Ok((file, metadata.len()))
    }

    fn acknowledged(&mut self, client: SocketAddrV4, block: u16, now: Instant) -> Option<Vec<u8>> {
        let at = self.transfers.iter().position(|transfer| transfer.client == client)?;
        let transfer = &mut self.transfers[at];
        // An old one was answered when it came first.
        if transfer.block as u16 != block {
            return None;
        }
        if transfer.is_done() {
            self.transfers.remove(at);
            return None;
        }
        match transfer.next() {
            Ok(packet) => {
                transfer.sent = 0;
                transfer.remember(&packet, now);
                Some(packet)
            }
            Err(packet) => {
                self.transfers.remove(at);
                Some(packet)
            }
        }
    }

    /// What has to be sent again by now.
    pub fn overdue(&mut self, now: Instant) -> Vec<(SocketAddrV4, Vec<u8>)> {
        self.transfers.retain(|transfer| now < transfer.due || transfer.sent < SENT_MAX);
        let late = self.transfers.iter_mut().filter(|transfer| now >= transfer.due);
        late.map(|transfer| {
            let packet = transfer.last.clone();
            transfer.remember(&packet, now);
            (transfer.client, packet)
        })
        .collect()
    }

    /// When to look again.
    pub fn due(&self) -> Option<Instant> {
        self.transfers.iter().map(|transfer| transfer.due).min()
    }
}

impl Transfer {
    /// Whether the block that was sent last is the file's last: it isn't full.
    fn is_done(&self) -> bool {
        self.block > 0 && self.last.len() < 4 + self.block_len
    }

    /// The next block.
    fn next(&mut self) -> Result<Vec<u8>, Vec<u8>> {
        let offset = self.block * self.block_len as u64;
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = left.min(self.block_len);
        self.block += 1;
        let mut packet = op::DATA.to_be_bytes().to_vec();
        // Block numbers of large files begin again at 0.
        packet.extend_from_slice(&(self.block as u16).to_be_bytes());
        packet.resize(4 + len, 0);
        self.file
            .read_exact_at(&mut packet[4..], offset)
            .map_err(|_| error(NOT_DEFINED, "the file can't be read any more"))?;
        Ok(packet)
    }

    fn remember(&mut self, packet: &[u8], now: Instant) {
        self.last = packet.to_vec();
        self.due = now + PATIENCE * 2_u32.pow(self.sent.min(4));
        self.sent += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A folder with some files, gone with the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder =
                std::env::temp_dir().join(format!("xenolith-{name}-{}", std::process::id()));
            fs::create_dir_all(folder.join("tree/sub")).expect("a folder");
            fs::write(folder.join("secret"), "no").expect("a file");
            fs::write(folder.join("tree/short"), "hello").expect("a file");
            fs::write(folder.join("tree/sub/even"), [7; 1024]).expect("a file");
            std::os::unix::fs::symlink("../secret", folder.join("tree/link")).expect("a link");
            Self(folder)
        }
        fn tftp(&self) -> Tftp {
            Tftp::new(&self.0.join("tree")).expect("a folder")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn client() -> SocketAddrV4 {
        SocketAddrV4::new(crate::GUEST, 1234)
    }

    fn read(words: &str) -> Vec<u8> {
        [&[0, 1], words.as_bytes()].concat()
    }

    #[test]
    fn a_file_comes_in_blocks_and_an_even_one_ends_with_an_empty_block() {
        let folder = Folder::new("tftp-blocks");
        let (mut tftp, now) = (folder.tftp(), Instant::now());
        let answer = tftp.answer(client(), &read("short\0octet\0"), now);
        assert_eq!(answer.as_deref(), Some(&b"\0\x03\0\x01hello"[..]));
        assert_eq!(tftp.answer(client(), &[0, 4, 0, 1], now), None);
        assert!(tftp.transfers.is_empty());
        for block in 1..=3_u8 {
            let packet = if block == 1 {
                tftp.answer(client(), &read("/sub/even\0OCTET\0"), now)
            } else {
                tftp.answer(client(), &[0, 4, 0, block - 1], now)
            };
            let packet = packet.expect("a block");
            assert_eq!(packet[..4], [0, 3, 0, block]);
            assert_eq!(packet.len(), if block < 3 { 516 } else { 4 });
        }
        assert_eq!(tftp.answer(client(), &[0, 4, 0, 3], now), None);
        assert!(tftp.transfers.is_empty());
    }

    #[test]
    fn options_are_agreed_and_a_block_fits_a_frame() {
        let folder = Folder::new("tftp-options");
        let (mut tftp, now) = (folder.tftp(), Instant::now());
        let request = read("sub/even\0octet\0blksize\0999999\0tsize\x000\0windowsize\x004\0x\0y\0");
        let answer = tftp.answer(client(), &request, now).expect("agreed");
        assert_eq!(answer, *b"\0\x06blksize\x001468\0tsize\x001024\0");
        let block = tftp.answer(client(), &[0, 4, 0, 0], now).expect("the only block");
        assert_eq!(block.len(), 1028);
        assert_eq!(tftp.answer(client(), &[0, 4, 0, 1], now), None);
    }

    #[test]
    fn what_is_lost_is_sent_again_and_given_up_in_the_end() {
        let folder = Folder::new("tftp-lost");
        let (mut tftp, mut now) = (folder.tftp(), Instant::now());
        let first = tftp.answer(client(), &read("short\0octet\0"), now).expect("a block");
        assert!(tftp.overdue(now).is_empty());
        let mut again = 0;
        while let Some(due) = tftp.due() {
            assert!(due > now, "no two at once");
            now = due;
            for (to, packet) in tftp.overdue(now) {
                assert_eq!((to, &packet), (client(), &first));
                again += 1;
            }
        }
        assert_eq!(again, SENT_MAX - 1);
    }

    #[test]
    fn nothing_outside_the_folder_and_nothing_odd_is_given_out() {
        let folder = Folder::new("tftp-outside");
        let (mut tftp, now) = (folder.tftp(), Instant::now());
        for (request, code) in [
            ("../secret\0octet\0", ACCESS),
            ("sub/../../secret\0octet\0", ACCESS),
            ("link\0octet\0", ACCESS),
            ("sub\0octet\0", ACCESS),
            ("missing\0octet\0", NOT_FOUND),
            ("short\0netascii\0", NOT_DEFINED),
            ("short\0octet", ILLEGAL),
            ("short\0", ILLEGAL),
            ("", ILLEGAL),
        ] {
            let answer = tftp.answer(client(), &read(request), now).expect("an error");
            assert_eq!(answer[..4], [0, 5, 0, code as u8], "{request:?}");
        }
        assert_eq!(tftp.answer(client(), &[0, 2, 0], now).expect("an error")[3], ACCESS as u8);
        assert_eq!(tftp.answer(client(), &[0, 4], now), None);
        assert_eq!(tftp.answer(client(), &[0, 4, 0, 1], now), None, "nothing under way");
        assert_eq!(tftp.answer(client(), &[0], now), None);
        for port in 1..100 {
            let client = SocketAddrV4::new(crate::GUEST, port);
            tftp.answer(client, &read("short\0octet\0"), now);
        }
        assert_eq!(tftp.transfers.len(), TRANSFERS_MAX);
        assert!(Tftp::new(&folder.0.join("secret")).is_err());
    }
}
