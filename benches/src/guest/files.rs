//! What is needed to measure: the program, Debian's kernels, the guest built around `benches/guest`.
//!
//! Scheme: kernels come from the cache of `xenolith run debian`, which fetches them if need be; the guest is
//! built by `benches/guest/build.sh` beside them, once for each state of its sources. Workloads run on the ELF inside the
//! bzImage, as its unpacking is of no interest there; boots are measured with the bzImage.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};

/// Given to the guest's kernel. Without protection against the processor's leaks in both emulators: they
/// differ in what processor they show, and so in what the kernel would do.
pub const COMMAND_LINE: &str =
    "console=ttyS0 quiet mitigations=off cryptomgr.notests panic=-1 no_timer_check";

#[derive(Debug)]
pub struct Files {
    cache: PathBuf,
    guests: PathBuf,
    /// Made by the script.
    folder: PathBuf,
}

impl Files {
    /// Fetches and builds what isn't there.
    ///
    /// # Errors
    /// It can't be had.
    pub fn provide() -> Result<Self> {
        let cache = cache()?;
        let guests = cache.join("guests");
        for name in ["debian", "debian-i386"] {
            if !guests.join(name).join("vmlinuz").is_file() {
                fetch(name)?;
            }
        }
        let cache = cache.join("bench");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/build.sh");
        let output = Command::new(&script)
            .arg(&cache)
            .arg(guests.join("debian/busybox"))
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot run {}", script.display()))?;
        ensure!(output.status.success(), "the guest can't be built");
        let folder = PathBuf::from(String::from_utf8(output.stdout)?.trim());
        let files = Self { cache, guests, folder };
        files.unpack_kernel()?;
        Ok(files)
    }

    /// The packages' and the guest's root folder.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    pub fn initrd(&self) -> PathBuf {
        self.folder.join("guest.img")
    }

    /// The unpacked kernel.
    pub fn vmlinux(&self) -> PathBuf {
        self.cache.join("vmlinux")
    }

    pub fn vmlinuz(&self, guest: &str) -> PathBuf {
        self.guests.join(guest).join("vmlinuz")
    }

    /// An initramfs that says that it runs, for 32 or 64 bits.
    pub fn hello(&self, bits: u32) -> PathBuf {
        self.folder.join(format!("hello-{bits}.img"))
    }

    fn unpack_kernel(&self) -> Result<()> {
        let (from, to) = (self.vmlinuz("debian"), self.vmlinux());
        let age = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified());
        if age(&to).is_ok_and(|made| age(&from).is_ok_and(|fetched| fetched <= made)) {
            return Ok(());
        }
        let image = fs::read(&from)?;
        let packed = payload(&image).with_context(|| format!("{}: no bzImage", from.display()))?;
        let partial = to.with_extension(std::process::id().to_string());
        let input = partial.with_extension("xz");
        fs::write(&input, packed)?;
        let status = Command::new("xz")
            .args(["--decompress", "--stdout", "--single-stream"])
            .stdin(fs::File::open(&input)?)
            .stdout(fs::File::create(&partial)?)
            .status();
        fs::remove_file(&input)?;
        ensure!(status.context("xz")?.success(), "xz cannot unpack {}", from.display());
        fs::rename(&partial, &to)?;
        Ok(())
    }

    /// Prints how to run the guest without us.
    pub fn explain(&self, memory: u32, qemu_cpu: &str) {
        let (kernel, initrd) = (self.vmlinux(), self.initrd());
        let files = format!("--kernel {} --initrd {}", kernel.display(), initrd.display());
        let bench = "bench=int-alu,sys-pipe bench.scale=1000 bench.runs=3";
        println!("guest:    {}", initrd.display());
        println!("kernel:   {}", kernel.display());
        println!("native:   {} {}", self.root().join("init").display(), self.root().display());
        println!(
            "xenolith: xenolith run --engine bt -m {memory}M {files} \\\n              --append '{COMMAND_LINE} {bench}'"
        );
        println!(
            "qemu:     qemu-system-x86_64 -accel tcg -cpu {qemu_cpu} -m {memory} -display none -nodefaults -serial stdio \\\n              {} \\\n              -append '{COMMAND_LINE} {bench}'",
            files.replace("--", "-")
        );
        println!(
            "Without bench= it reads commands: list; run NAME|GROUP|all PERMILLE; quit. So does the native program."
        );
    }
}

/// The compressed kernel in a bzImage (Linux, "The Linux/x86 Boot Protocol": `setup_sects`, `payload_offset`,
/// `payload_length`; the last four bytes are the unpacked size).
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(*image.get(at..)?.first_chunk()?) as usize);
    let setup_sectors = match image.get(0x1f1)? {
        0 => 4,
        &n => usize::from(n),
    };
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    image.get(start..)?.get(..word(0x24c)?.checked_sub(4)?)
}

/// The program's cache of guests.
fn cache() -> Result<PathBuf> {
    let folder = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(chosen) = folder("XENOLITH_CACHE") {
        return Ok(chosen);
    }
    let base = folder("XDG_CACHE_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".cache")))
        .context("no folder for the guest: $HOME is not set")?;
    Ok(base.join("xenolith"))
}

/// By the program, which is stopped before the guest does anything.
fn fetch(name: &str) -> Result<()> {
    let status = Command::new(program()?)
        .args(["run", name, "--timeout", "0.01", "--serial", "none"])
        .stdin(Stdio::null())
        .status()
        .context("cannot run xenolith")?;
    ensure!(status.code() == Some(124), "xenolith cannot fetch '{name}'");
    Ok(())
}

/// This workspace's program in its release build, brought up to date; or `XENOLITH_PROGRAM`.
///
/// # Errors
/// It can't be built.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = env::var_os("XENOLITH_PROGRAM") {
        return Ok(path.into());
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("a workspace")?;
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--package", "xenolith"])
        .current_dir(root)
        .status()
        .context("cargo")?;
    ensure!(status.success(), "cargo can't build xenolith");
    // Beside this very program, unless it is not a release build.
    let folder = env::current_exe()?;
    let target = folder.parent().and_then(Path::parent).context("a target folder")?;
    let path = target.join("release/xenolith");
    if !path.is_file() {
        bail!("{} is not there", path.display());
    }
    Ok(path)
}
