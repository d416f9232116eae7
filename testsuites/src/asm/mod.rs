//! Conformance cases: small pieces of machine code with everything they must do, in text files.
//!
//! Problem: three opinions on what an instruction does (this program's engines, QEMU, the bare host
//! CPU) must be compared for hundreds of cases, in every processor mode, and a person must be able to read
//! and review each case. Scheme: a file under `testsuites/asm/<map>/` holds cases ([`case`]); NASM turns
//! all of them into machine code in one run ([`assemble`]); [`image`] packs code and initial states
//! behind a small guest, `harness/harness.asm`, that any x86 machine with multiboot and a serial port
//! can run, and reads its report back; [`host`] runs user-mode cases in a child process. [`verdict`]
//! compares an [`state::Outcome`] with the file, and writes an outcome into the file when blessing.
//! Invariants: what a case doesn't list must stay unchanged; expected values come from the host CPU or
//! from QEMU, never from our own engines. Runs on test threads; only [`host`] forks.
//! Source: SDM vol. 1-3; `docs/testing.md` describes the format.

pub mod assemble;
pub mod case;
pub mod engine;
pub mod host;
pub mod image;
pub mod layout;
pub mod qemu;
pub mod state;
pub mod suite;
pub mod value;
pub mod verdict;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where the case files are.
#[must_use]
pub fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("asm")
}

/// Reads every case file below `root`, sorted by path.
///
/// # Errors
/// An unreadable file, or a line that is not understood, with file and line number.
pub fn load(root: &Path) -> Result<Vec<case::CaseFile>> {
    let mut paths = Vec::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(folder) = pending.pop() {
        let entries = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "asm") {
                paths.push(path);
            }
        }
    }
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let name = path.strip_prefix(root).unwrap_or(path).with_extension("");
            case::CaseFile::parse(path, &name.display().to_string(), &text)
        })
        .collect()
}
