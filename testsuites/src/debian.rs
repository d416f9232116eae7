//! Debian's kernels for tests: fetched and built by the program, as `run debian` does it.
//!
//! Problem: tests want the very guests that a person gets, but also boots that take seconds. Scheme:
//! `xenolith run NAME` fills its cache and is stopped at once; the files are taken from there. Nearly half of
//! a boot is the kernel unpacking itself, so tests of other things boot the ELF that is packed inside,
//! through its PVH entry. The cache is `XENOLITH_CACHE`, or a folder below the build's own, so that a second
//! run needs no network.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};

use crate::program::{self, Program};

/// For one step of a boot on a slow or busy host.
pub const PATIENCE: Duration = Duration::from_secs(400);
/// Spares a boot minutes of RSA in the kernel's tests of its own ciphers.
pub const QUICK: &str = "cryptomgr.notests";

/// A guest in the cache.
#[derive(Clone, Debug)]
pub struct Debian {
    pub name: &'static str,
    /// The bzImage.
    pub vmlinuz: PathBuf,
    pub initrd: PathBuf,
    pub busybox: PathBuf,
    cache: PathBuf,
    scratch: PathBuf,
}

impl Debian {
    /// The guest `debian` or `debian-i386`, fetched if need be. `scratch` is the test's
    /// `CARGO_TARGET_TMPDIR`.
    ///
    /// # Errors
    /// It can't be fetched.
    pub fn get(name: &'static str, scratch: &str) -> Result<Self> {
        let usual = Path::new(scratch).join("guests");
        Self::get_into(name, scratch, env::var_os("XENOLITH_CACHE").map_or(usual, PathBuf::from))
    }

    fn get_into(name: &'static str, scratch: &str, cache: PathBuf) -> Result<Self> {
        let scratch = PathBuf::from(scratch);
        // Stopped before the guest does anything; fetching doesn't count. This makes the initrd of
        // today's scripts as well.
        let mut command = program::xenolith()?;
        command.args(["run", name, "--timeout", "0.01", "--serial", "none", "--cache"]).arg(&cache);
        let output = command.stdin(Stdio::null()).output()?;
        if output.status.code() != Some(124) {
            bail!("cannot get {name}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let folder = cache.join("guests").join(name);
        Ok(Self {
            name,
            vmlinuz: folder.join("vmlinuz"),
            initrd: newest_initrd(&folder)?,
            busybox: folder.join("busybox"),
            cache,
            scratch,
        })
    }

    /// The guest with the kernel's module `module`, also where it was fetched by a program that didn't know
    /// of it.
    ///
    /// # Errors
    /// It can't be fetched.
    pub fn with_module(name: &'static str, module: &str, scratch: &str) -> Result<Self> {
        let has = |guest: &Self| {
            guest.busybox.with_file_name("modules").join(format!("{module}.ko")).is_file()
        };
        let guest = Self::get(name, scratch)?;
        if has(&guest) {
            return Ok(guest);
        }
        let again = format!("{scratch}/{module}");
        fs::create_dir_all(&again)?;
        let guest = Self::get_into(name, &again, PathBuf::from(&again).join("guests"))?;
        ensure!(has(&guest), "{} has no {module}: remove it", guest.busybox.display());
        Ok(guest)
    }

    /// The ELF inside the bzImage.
    ///
    /// # Errors
    /// It isn't there, or `xz` isn't.
    pub fn vmlinux(&self) -> Result<PathBuf> {
        let image = fs::read(&self.vmlinuz)?;
        let packed = payload(&image).context("not a bzImage")?;
        // Named for the packed one, so that another kernel gets another name.
        let path = self.scratch.join(format!("vmlinux-{}-{}", self.name, checksum(packed)));
        if path.is_file() {
            return Ok(path);
        }
        // Two tests may do this at once, in one process too; each renames a whole file.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let partial = self.scratch.join(format!("vmlinux-{}-{n}.part", std::process::id()));
        let input = partial.with_extension("xz");
        fs::write(&input, packed)?;
        let status = Command::new("xz")
            .args(["--decompress", "--stdout", "--single-stream"])
            .stdin(fs::File::open(&input)?)
            .stdout(fs::File::create(&partial)?)
            .status()
            .context("xz");
        fs::remove_file(&input)?;
        ensure!(status?.success(), "xz cannot unpack {}", self.vmlinuz.display());
        fs::rename(&partial, &path)?;
        Ok(path)
    }

    /// A command that runs the guest as a person would, from its bzImage.
    ///
    /// # Errors
    /// There is no program.
    pub fn run(&self, append: &str) -> Result<Command> {
        let mut command = program::xenolith()?;
        command.args(["run", self.name, "--append", append, "--cache"]);
        command.arg(&self.cache);
        Ok(command)
    }

    /// A command that runs the guest's kernel from its ELF, which takes a fraction of the time.
    ///
    /// # Errors
    /// There is no program, or no ELF.
    pub fn run_elf(&self, append: &str) -> Result<Command> {
        let mut command = program::xenolith()?;
        command.arg("run").arg("--kernel").arg(self.vmlinux()?).arg("--initrd").arg(&self.initrd);
        let line = format!("console=ttyS0 {QUICK} {append}");
        command.args(["--append", line.trim()]);
        Ok(command)
    }

    /// The shell's prompt, as far as it doesn't depend on the folder.
    #[must_use]
    pub fn prompt(&self) -> String {
        format!("root@{}:", self.name)
    }

    /// Starts a command and waits for the guest's prompt.
    ///
    /// # Errors
    /// It doesn't come.
    pub fn boot(&self, command: Command) -> Result<Program> {
        let mut program = Program::start(command)?;
        program.wait_for(&self.prompt(), PATIENCE)?;
        Ok(program)
    }
}

/// Older scripts may have left theirs.
fn newest_initrd(folder: &Path) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("initrd-") {
            found.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    found.sort();
    Ok(found.pop().with_context(|| format!("no initrd in {}", folder.display()))?.1)
}

/// The compressed kernel in a bzImage (Linux, "The Linux/x86 Boot Protocol": `setup_sects`,
/// `payload_offset`, `payload_length`). The last four bytes are the unpacked size.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(*image.get(at..)?.first_chunk()?) as usize);
    let setup_sectors = match image.get(0x1f1)? {
        0 => 4,
        &n => usize::from(n),
    };
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    let length = word(0x24c)?.checked_sub(4)?;
    image.get(start..)?.get(..length)
}

/// FNV-1a, for names.
pub(crate) fn checksum(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_found_or_refused() {
        let mut image = vec![0; 0x800];
        image[0x1f1] = 1;
        image[0x248] = 0x10;
        image[0x24c] = 12;
        image[0x410..0x418].copy_from_slice(b"compress");
        assert_eq!(payload(&image), Some(&b"compress"[..]));
        image[0x24e] = 0xff;
        assert_eq!(payload(&image), None);
        assert_eq!(payload(b"short"), None);
    }
}
