//! Whole guests as Debian ships them, and what a person does at their screens.
//!
//! Problem: that guests boot is shown by what a person sees and does, and the same must be timed here and on another
//! emulator. Scheme: each guest is a machine ([`Config`]) made of a package's files, and its steps at a [`Seat`];
//! tests run them on ours, the program `unmodified` on both, with times. Invariant: steps wait for what is to be
//! seen and never for time.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xenolith_machine::Config;

use crate::disk::Scratch;
use crate::packages;
use crate::screen::{ENTER, Seat, UP};

/// For one step on a slow or busy host.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// Keeps the installer, and the kernel's display drivers, in text mode.
const TEXT_MODE: &str = "nomodeset vga=normal fb=false";

/// With less the installer asks nothing but speaks English.
const INSTALLER_MEMORY_BYTES: u64 = 1 << 30;

/// A machine, and the files that it has for itself, if any; they go with this value.
pub type Ready = (Config, Option<Scratch>);

/// A guest: how to start it, and what to do and see. `scratch` is the test's `CARGO_TARGET_TMPDIR`.
#[derive(Clone, Copy, Debug)]
pub struct Unmodified {
    pub name: &'static str,
    pub config: fn(scratch: &str) -> Result<Ready>,
    pub steps: fn(&dyn Seat) -> Result<()>,
}

/// All of them.
pub const GUESTS: [Unmodified; 2] = [
    Unmodified {
        name: "installer-amd64",
        config: |s| Ok((installer("amd64", s)?, None)),
        steps: choose,
    },
    Unmodified {
        name: "installer-i386",
        config: |s| Ok((installer("i386", s)?, None)),
        steps: choose,
    },
];

/// The one of this name.
///
/// # Errors
/// There is none.
pub fn named(name: &str) -> Result<Unmodified> {
    let names = GUESTS.map(|guest| guest.name).join(", ");
    GUESTS
        .into_iter()
        .find(|guest| guest.name == name)
        .with_context(|| format!("no {name}: {names}"))
}

/// memtest86+ by its Linux boot protocol.
///
/// # Errors
/// It can't be fetched.
pub fn memtest(file: &str, scratch: &str) -> Result<Config> {
    let kernel = packages::get("memtest86+", scratch)?.join("boot").join(file);
    Ok(Config { kernel, memory_bytes: 64 << 20, ..Config::default() })
}

/// What a screen says behind a label, up to the next blanks.
///
/// # Errors
/// No such label, or no number.
pub fn number(screen: &str, label: &str) -> Result<u64> {
    let (_, rest) = screen.split_once(label).with_context(|| format!("no {label:?}:\n{screen}"))?;
    let word = rest.split_whitespace().next().unwrap_or_default();
    word.parse().with_context(|| format!("{label:?} {word:?}:\n{screen}"))
}

fn netboot_files(architecture: &str, scratch: &str) -> Result<PathBuf> {
    let package = packages::get(&format!("debian-installer-12-netboot-{architecture}"), scratch)?;
    Ok(package.join("usr/lib/debian-installer/images/12").join(architecture).join("text"))
}

/// The installer's kernel and ramdisk, in text mode.
fn installer(architecture: &str, scratch: &str) -> Result<Config> {
    let folder = netboot_files(architecture, scratch)?.join("debian-installer").join(architecture);
    Ok(Config {
        kernel: folder.join("linux"),
        initrd: Some(folder.join("initrd.gz")),
        command_line: TEXT_MODE.to_owned(),
        memory_bytes: INSTALLER_MEMORY_BYTES,
        ..Config::default()
    })
}

/// From the first question to the second and the third, in the language that was chosen: the one above English.
fn choose(seat: &dyn Seat) -> Result<()> {
    let screen = seat.wait_for("Select a language", PATIENCE)?;
    ensure!(screen.contains("Dutch") && screen.contains("English"), "{screen}");
    seat.press(UP)?;
    seat.press(ENTER)?;
    let screen = seat.wait_for("Uw locatie kiezen", PATIENCE)?;
    ensure!(screen.contains("Nederland") && screen.contains("Aruba"), "{screen}");
    seat.press(UP)?;
    seat.press(ENTER)?;
    seat.wait_for("toetsenbord", PATIENCE)?;
    Ok(())
}
