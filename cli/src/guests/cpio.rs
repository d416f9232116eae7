//! An archive writer in cpio's "newc" format, as much as an initramfs needs.
//!
//! Scheme: one growing buffer; a header of 8-digit hexadecimal fields, the name with a NUL, the data,
//! each padded to four bytes. Invariants: equal input gives equal bytes (time stamps are zero, inode
//! numbers count up), so that a cached image can be compared; a parent is written before its children,
//! since the kernel makes no missing folders: that is the caller's part.
//! Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst, "initramfs buffer format".

const TYPE_FOLDER: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_LINK: u32 = 0o120_000;
const TYPE_CHARACTER_DEVICE: u32 = 0o020_000;

#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    pub fn folder(&mut self, name: &str, permissions: u32) {
        self.entry(name, TYPE_FOLDER | permissions, (0, 0), &[]);
    }

    pub fn file(&mut self, name: &str, permissions: u32, data: &[u8]) {
        self.entry(name, TYPE_FILE | permissions, (0, 0), data);
    }

    pub fn link(&mut self, name: &str, target: &str) {
        self.entry(name, TYPE_LINK | 0o777, (0, 0), target.as_bytes());
    }

    pub fn character_device(&mut self, name: &str, permissions: u32, major: u32, minor: u32) {
        self.entry(name, TYPE_CHARACTER_DEVICE | permissions, (major, minor), &[]);
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), data: &[u8]) {
        self.inode += 1;
        let name_len = u32::try_from(name.len() + 1).expect("names are ours and short");
        let data_len = u32::try_from(data.len()).expect("no file of a kernel package has 4 GiB");
        self.bytes.extend_from_slice(b"070701");
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        for field in [self.inode, mode, 0, 0, 1, 0, data_len, 0, 0, major, minor, name_len, 0] {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_newc() {
        let mut archive = Archive::default();
        archive.folder("dev", 0o755);
        archive.character_device("dev/console", 0o600, 5, 1);
        archive.file("hi", 0o644, b"hello");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        // "dev": 110 + 4 bytes, padded to 116.
        assert!(text.starts_with("07070100000001000041ED"), "{text}");
        assert_eq!(&bytes[110..116], b"dev\0\0\0");
        let console = &text[116..];
        assert!(console.starts_with("0707010000000200002180"), "{console}");
        assert_eq!(&console[6 + 9 * 8..6 + 11 * 8], "0000000500000001");
        // 110 + 12 = 122, padded to 124.
        let file = &bytes[116 + 124..];
        assert_eq!(&file[6 + 6 * 8..6 + 7 * 8], b"00000005");
        assert_eq!(&file[110..124], b"hi\x00\x00\x00\x00hello\x00\x00\x00");
        assert!(text.contains("TRAILER!!!"));
    }
}
