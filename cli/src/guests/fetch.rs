//! Fetches a guest into the cache.
//!
//! Problem: several processes may want the same guest at once, and any may be killed at any moment.
//! Scheme: who fetches holds a lock on a file beside the guest's folder and works in a partial folder of
//! its own, after sweeping those that killed ones left (whose apt may outlive them for a while and go on
//! writing there); the finished folder gets its name by one rename.
//! Invariant: nobody changes a guest's folder once it has its name (but for images, see `initramfs`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::{FlockOperation, flock};

use super::apt::{self, Apt, Package};
use super::{Cache, Guest, initramfs, modules};
use crate::terminal;

/// Modules for our devices and for what may be on a disk; those they need come along.
pub const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_console",
    "virtio_rng",
    "virtio_net",
    "virtio_balloon",
    "e1000",
    "ata_piix",
    "sd_mod",
    "sr_mod",
    "ext4",
    "crc32c_generic",
    "crc32c_intel",
    "vfat",
    "nls_cp437",
    "nls_ascii",
    "isofs",
    "squashfs",
];

/// The last Debian release with a 32-bit kernel, for machines of a later one.
const LAST_WITH_I386: &str = "bookworm";

/// Fetches `guest` unless another process has done it meanwhile.
///
/// # Errors
/// What is missing: a program, a source, the network, room.
pub fn fetch(guest: &Guest, cache: &Cache) -> Result<()> {
    let guests = cache.guests();
    fs::create_dir_all(&guests)
        .map_err(|error| crate::cmd::plain(&error))
        .with_context(|| format!("cannot make {}", guests.display()))?;
    let _lock = lock(guest, &guests.join(format!("{}.lock", guest.name)))?;
    if super::origin(guest, cache).is_some() {
        return Ok(());
    }
    let prefix = format!(".{}.partial-", guest.name);
    sweep_left_over(&guests, &prefix);
    let partial = guests.join(format!("{prefix}{}", std::process::id()));
    fs::create_dir_all(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
    let fetched = fetch_into(guest, &partial, &cache.guest(guest));
    let swept = sweep(&partial);
    fetched.and(swept)
}

/// Held until dropped.
fn lock(guest: &Guest, path: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|error| crate::cmd::plain(&error))
        .with_context(|| format!("cannot write {}", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        terminal::say(&format!("waiting for another xenolith that fetches '{}'", guest.name));
        flock(&file, FlockOperation::LockExclusive)
            .with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// Nobody else works here while we hold the lock, but for an orphaned apt: what it keeps busy goes next
/// time.
fn sweep_left_over(guests: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(guests) else { return };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn sweep(partial: &Path) -> Result<()> {
    match fs::remove_dir_all(partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", partial.display()))
        }
        _ => Ok(()),
    }
}

fn fetch_into(guest: &Guest, partial: &Path, folder: &Path) -> Result<()> {
    let steps = Steps::new(guest);
    let (apt, meta) = find_kernel(guest, partial, &steps)?;
    let kernel = meta
        .depends
        .iter()
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("{} {} names no kernel", meta.name, meta.version))?;
    let kernel = wanted(&apt, kernel)?;
    let busybox = wanted(&apt, "busybox-static")?;

    let mut unpacked = Vec::new();
    for (package, place) in [(&kernel, "kernel"), (&busybox, "busybox")] {
        let bar = steps.bytes(&format!("Fetching {} {}", package.name, package.version), package);
        let deb = apt.download(package, &partial.join(place).join("deb"), &mut |percent| {
            bar.set_position((package.bytes as f64 * percent / 100.0) as u64);
        })?;
        bar.finish_and_clear();
        let bar = steps.spinner(&format!("Unpacking {}", package.name));
        let root = partial.join(place).join("root");
        apt::unpack(&deb, &root)?;
        // The largest thing that we no longer need.
        let _ = fs::remove_file(deb);
        bar.finish_and_clear();
        unpacked.push(root);
    }
    let [kernel_root, busybox_root] = &unpacked[..] else { bail!("a package got lost") };

    let bar = steps.spinner("Choosing kernel modules");
    let done = partial.join("done");
    fs::create_dir_all(done.join("modules"))
        .with_context(|| format!("cannot make {}", done.display()))?;
    let write = |name: &str, bytes: &[u8]| {
        initramfs::write(&done.join(name), bytes)
            .map_err(|error| crate::cmd::plain(&error))
            .with_context(|| format!("cannot write {name} into {}", done.display()))
    };
    let release = kernel.name.trim_start_matches("linux-image-");
    let release = release.trim_end_matches("-unsigned");
    let vmlinuz = kernel_root.join("boot").join(format!("vmlinuz-{release}"));
    write("vmlinuz", &read(&vmlinuz)?)?;
    write("release", format!("{release}\n").as_bytes())?;
    let program = ["bin/busybox", "usr/bin/busybox"].map(|place| busybox_root.join(place));
    let program = program.iter().find(|path| path.is_file());
    write("busybox", &read(program.context("busybox-static has no bin/busybox")?)?)?;
    let base =
        ["lib/modules", "usr/lib/modules"].map(|place| kernel_root.join(place).join(release));
    if let Some(base) = base.iter().find(|path| path.is_dir()) {
        for module in modules::collect(base, MODULES)? {
            write(&format!("modules/{}.ko", module.name), &module.elf)?;
        }
    }
    let origin = format!(
        "{} {}, busybox-static {} ({})\n",
        kernel.name, kernel.version, busybox.version, guest.architecture
    );
    write("origin", origin.as_bytes())?;
    bar.finish_and_clear();

    // A folder without `origin` is a damaged guest: make room.
    sweep(folder)?;
    fs::rename(&done, folder).with_context(|| format!("cannot make {}", folder.display()))?;
    terminal::say(&format!("fetched {} into {}", origin.trim_end(), folder.display()));
    Ok(())
}

/// The package that names the newest kernel, and the apt that knows it.
fn find_kernel(guest: &Guest, partial: &Path, steps: &Steps) -> Result<(Apt, Package)> {
    let mut complaint = None;
    for (place, release) in [("apt", None), ("apt-last", Some(LAST_WITH_I386))] {
        let apt = Apt::new(&partial.join(place), guest.architecture, release)?;
        let bar = steps.spinner(&format!(
            "Reading Debian's package lists ({}, sources as in {})",
            guest.architecture,
            apt.etc().display()
        ));
        let trouble = apt.update(&mut |_| {})?;
        bar.finish_and_clear();
        if let Some(meta) = apt.show(guest.kernel_package)? {
            return Ok((apt, meta));
        }
        complaint = complaint.or(trouble);
        // Only the 32-bit kernel has gone from later releases.
        if guest.architecture != "i386" || complaint.is_some() {
            break;
        }
    }
    match complaint {
        Some(complaint) => bail!("Debian's archive can't be read: {complaint}"),
        None => bail!("Debian's archive has no package {}", guest.kernel_package),
    }
}

fn wanted(apt: &Apt, name: &str) -> Result<Package> {
    apt.show(name)?.with_context(|| format!("Debian's archive has no package {name}"))
}

fn read(path: &PathBuf) -> Result<Vec<u8>> {
    let bytes = fs::read(path).map_err(|error| crate::cmd::plain(&error));
    let bytes = bytes.with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.is_empty() {
        bail!("{} is empty", path.display());
    }
    Ok(bytes)
}

/// Progress on standard error: bars on a terminal, else a line a step.
struct Steps {
    visible: bool,
}

impl Steps {
    fn new(guest: &Guest) -> Self {
        terminal::say(&format!("fetching guest '{}', once", guest.name));
        Self { visible: io::stderr().is_terminal() }
    }

    fn bytes(&self, text: &str, package: &Package) -> ProgressBar {
        self.bar(
            ProgressBar::new(package.bytes),
            text,
            "{msg}  {bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left",
        )
    }

    fn spinner(&self, text: &str) -> ProgressBar {
        self.bar(ProgressBar::no_length(), text, "{msg} {spinner}")
    }

    fn bar(&self, bar: ProgressBar, text: &str, template: &str) -> ProgressBar {
        if !self.visible {
            terminal::say(text);
            return ProgressBar::hidden();
        }
        // A template of ours that can't be parsed would only look different.
        let style = ProgressStyle::with_template(template);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(text.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        bar
    }
}
