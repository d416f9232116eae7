//! Small guests assembled on the spot.
//!
//! Problem: a test of one device or one path wants a guest of twenty instructions, not a kernel. Scheme:
//! the test writes them with iced's assembler; [`image`] puts a multiboot header before them. The code runs at
//! [`ENTRY`] in flat 32-bit protected mode with interrupts off and no stack.

use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use iced_x86::code_asm::CodeAssembler;

const LOAD: u32 = 0x10_0000;
const HEADER_BYTES: u32 = 32;
/// Where the code is.
pub const ENTRY: u32 = LOAD + HEADER_BYTES;

/// A multiboot-1 image with this code.
///
/// # Errors
/// The code can't be assembled.
pub fn image(code: impl FnOnce(&mut CodeAssembler) -> Result<()>) -> Result<Vec<u8>> {
    let mut assembler = CodeAssembler::new(32)?;
    code(&mut assembler)?;
    let code = assembler.assemble(u64::from(ENTRY))?;
    let (magic, flags) = (0x1bad_b002u32, 0x1_0000u32);
    let checksum = 0u32.wrapping_sub(magic.wrapping_add(flags));
    let mut image = Vec::new();
    // Header, load start, load end (whole file), bss end (none), entry.
    for field in [magic, flags, checksum, LOAD, LOAD, 0, 0, ENTRY] {
        image.extend(field.to_le_bytes());
    }
    image.extend(code);
    Ok(image)
}

/// A file that is gone when dropped.
#[derive(Debug)]
pub struct TemporaryFile(pub PathBuf);

impl TemporaryFile {
    /// # Errors
    /// The host's.
    pub fn new(bytes: &[u8]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        loop {
            let n = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("xenolith-test-{}-{n}", std::process::id());
            let path = std::env::temp_dir().join(name);
            match std::fs::File::create_new(&path) {
                Ok(mut file) => {
                    let this = Self(path);
                    file.write_all(bytes)?;
                    return Ok(this);
                }
                // Left by a test that was killed, whose process had the same number.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // Nobody minds a leftover in the folder for temporary files.
        let _ = std::fs::remove_file(&self.0);
    }
}
