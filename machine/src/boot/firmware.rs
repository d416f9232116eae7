//! Firmware: a ROM image, entered at the processor's reset vector.
//!
//! Problem: a file that isn't a ROM must be refused in words before a processor runs into it. Scheme: the
//! size is a ROM's, and the last 16 bytes, where processors start, are not empty. Source: SDM vol. 3,
//! "First Instruction Executed".

use std::path::Path;

use xenolith_mmu::ram::{ROM_BYTES_MAX, ROM_BYTES_STEP};

use super::read_limited;
use crate::config::ConfigError;

/// Where the processor starts, from the end.
const RESET_VECTOR: usize = 16;

/// Reads a ROM image.
pub(super) fn load(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let refused = |reason: String| ConfigError::Firmware { path: path.to_owned(), reason };
    let too_large = format!("it is larger than {} MiB", ROM_BYTES_MAX >> 20);
    let rom = read_limited("--bios", path, ROM_BYTES_MAX, &too_large)?;
    if rom.is_empty() || !(rom.len() as u64).is_multiple_of(ROM_BYTES_STEP) {
        let step = ROM_BYTES_STEP >> 10;
        let len = rom.len();
        return Err(refused(format!("it has {len} bytes; a ROM has a multiple of {step} KiB")));
    }
    let start = &rom[rom.len() - RESET_VECTOR..];
    if start.iter().all(|&byte| byte == start[0]) {
        return Err(refused("there is no code where the processor starts".to_owned()));
    }
    Ok(rom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_rom_is_refused() {
        let path = std::env::temp_dir().join(format!("xenolith-rom-{}", std::process::id()));
        let mut good = vec![0xff; 128 << 10];
        let end = good.len();
        good[end - 16] = 0xea;
        let large = vec![1; (8 << 20) + 1];
        for (bytes, part) in [
            (&b""[..], "0 bytes"),
            (&good[1..], "multiple of 64 KiB"),
            (&[0xff; 64 << 10][..], "no code"),
            (&large, "larger than 8 MiB"),
        ] {
            std::fs::write(&path, bytes).expect("a temporary file");
            let text = load(&path).expect_err("refused").to_string();
            assert!(text.contains(part) && text.starts_with("--bios"), "{text}");
        }
        std::fs::write(&path, &good).expect("a temporary file");
        assert_eq!(load(&path).expect("a ROM"), good);
        std::fs::remove_file(&path).expect("still there");
        assert!(load(&path).is_err());
    }
}
