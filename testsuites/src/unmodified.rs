//! Whole guests as Debian ships them, and what a person does at their screens.
//!
//! Problem: that guests boot is shown by what a person sees and does, and the same must be timed here and on another
//! emulator. Scheme: each guest is a machine ([`Config`]) made of a package's files, and its steps at a [`Seat`];
//! tests run them on ours, the program `unmodified` on both, with times. Invariant: steps wait for what is to be
//! seen and never for time.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xenolith_devices::disk::DiskOptions;
use xenolith_devices::vga::Picture;
use xenolith_machine::{Attachment, Config, DiskConfig, NetConfig, NetModel};

use crate::asm::assemble::nasm;
use crate::debian::Debian;
use crate::debootstrap;
use crate::disk::{self, Scratch};
use crate::login::{self, Kind};
use crate::packages;
use crate::screen::{ENTER, ESCAPE, SEABIOS, Seat, UP};
use crate::xen;

/// For one step on a slow or busy host.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// iPXE for both cards, package ipxe-qemu.
const IPXE_E1000: &str = "/usr/lib/ipxe/qemu/pxe-e1000.rom";
const IPXE_VIRTIO: &str = "/usr/lib/ipxe/qemu/pxe-virtio.rom";
/// The verdict of `guests/netboot.asm`.
const LOADED: u32 = 20;
/// The rescue disc's line in GRUB's menu.
const RESCUE: &str = "Debian from the disc";
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
pub const GUESTS: [Unmodified; 15] = [
    Unmodified { name: "login-raw", config: |s| login_disk(s, Kind::Raw), steps: login::log_in_at },
    Unmodified {
        name: "login-qcow2",
        config: |s| login_disk(s, Kind::Qcow2),
        steps: login::log_in_at,
    },
    Unmodified { name: "rescue-disc", config: rescue, steps: rescue_steps },
    Unmodified {
        name: "memtest86+x64",
        config: |s| Ok((memtest("memtest86+x64.bin", s)?, None)),
        steps: full_pass,
    },
    Unmodified {
        name: "memtest86+ia32",
        config: |s| Ok((memtest("memtest86+ia32.bin", s)?, None)),
        steps: full_pass,
    },
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
    Unmodified {
        name: "pictures-amd64",
        config: |s| Ok((Config { command_line: "quiet".into(), ..installer("amd64", s)? }, None)),
        steps: choose_in_pictures,
    },
    Unmodified {
        name: "netboot-amd64",
        config: |s| Ok((netboot("amd64", s)?, None)),
        steps: netboot_steps,
    },
    Unmodified {
        name: "netboot-i386",
        config: |s| Ok((netboot("i386", s)?, None)),
        steps: netboot_steps,
    },
    Unmodified { name: "floppy", config: floppy, steps: |seat| ends_with(seat, 0) },
    Unmodified {
        name: "ipxe-e1000",
        config: |s| ipxe(NetModel::E1000, IPXE_E1000, s),
        steps: |seat| ends_with(seat, LOADED),
    },
    Unmodified {
        name: "ipxe-virtio",
        config: |s| ipxe(NetModel::Virtio, IPXE_VIRTIO, s),
        steps: |seat| ends_with(seat, LOADED),
    },
    Unmodified { name: "xen", config: hypervisor, steps: hypervisor_steps },
    Unmodified { name: "debootstrap", config: whole_system, steps: whole_system_steps },
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

/// GRUB, Debian's kernel and a login on a partitioned disk.
fn login_disk(scratch: &str, kind: Kind) -> Result<Ready> {
    let guest = Debian::get("debian", scratch)?;
    let files = Scratch::new("login")?;
    let image = login::make(&guest, files.path(), kind, "console")?;
    let options = DiskOptions { format: Some(image.format), ..DiskOptions::default() };
    let disks = vec![DiskConfig { path: image.path, options, ..DiskConfig::default() }];
    Ok((Config { firmware: Some(SEABIOS.into()), disks, ..Config::default() }, Some(files)))
}

/// GRUB and Debian's kernel on a disc, whose initramfs has a shell on the screen.
fn rescue(scratch: &str) -> Result<Ready> {
    let guest = Debian::get("debian", scratch)?;
    let files = Scratch::new("rescue")?;
    let tree = files.path().join("tree");
    disk::grub_tree(&tree, &guest, "console", RESCUE, "")?;
    // The shell is on the last console.
    let menu = tree.join("boot/grub/grub.cfg");
    let text = fs::read_to_string(&menu)?.replace("console=ttyS0", "console=ttyS0 console=tty0");
    fs::write(menu, text)?;
    let path = disk::rescue_disc(&tree, files.path())?;
    let options = DiskOptions { read_only: true, ..DiskOptions::default() };
    let disks = vec![DiskConfig { path, options, attachment: Attachment::Cdrom }];
    Ok((Config { firmware: Some(SEABIOS.into()), disks, ..Config::default() }, Some(files)))
}

fn rescue_steps(seat: &dyn Seat) -> Result<()> {
    seat.wait_for("GNU GRUB", PATIENCE)?;
    seat.wait_for(RESCUE, PATIENCE)?;
    seat.press(ENTER)?;
    seat.wait_for("root@debian:", PATIENCE)?;
    seat.type_text("uname -m")?;
    seat.press(ENTER)?;
    seat.wait_for("x86_64", PATIENCE)?;
    Ok(())
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

fn full_pass(seat: &dyn Seat) -> Result<()> {
    seat.wait_for("Memtest86+", PATIENCE)?;
    let screen = seat.wait_for("Pass:  1", PATIENCE * 4)?;
    ensure!(number(&screen, "Errors:")? == 0, "{screen}");
    Ok(())
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

/// The installer as it comes: firmware loads its boot loader over the network, by iPXE and TFTP; the loader its kernel.
fn netboot(architecture: &str, scratch: &str) -> Result<Config> {
    let mut net =
        NetConfig { model: NetModel::E1000, rom: Some(IPXE_E1000.into()), ..NetConfig::default() };
    net.settings.tftp = Some(netboot_files(architecture, scratch)?);
    net.settings.bootfile = Some("pxelinux.0".to_owned());
    let memory_bytes = INSTALLER_MEMORY_BYTES;
    Ok(Config { firmware: Some(SEABIOS.into()), net: Some(net), memory_bytes, ..Config::default() })
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

/// How much of a picture has this colour, in hundredths.
fn share(picture: &Picture, colour: u32) -> usize {
    let count = picture.pixels.iter().filter(|&&pixel| pixel == colour).count();
    100 * count / picture.pixels.len().max(1)
}

/// The line where the bar over a list's chosen entry begins, with the first row of it that no letter reaches.
fn bar(picture: &Picture) -> Option<usize> {
    const RED: u32 = 0xaa_0000;
    const LETTERS: usize = 8 * 8;
    picture.pixels.chunks_exact(picture.width.max(1)).position(|line| {
        line.chunk_by(|a, b| a == b).any(|run| run[0] == RED && run.len() >= LETTERS)
    })
}

/// The kernel's own display driver sets the mode that the display prefers (1024x768 here, 1280x800 on QEMU), so there are
/// no characters to read: a large grey window with a list on blue, whose bar goes up by a line of text; then a small one.
fn choose_in_pictures(seat: &dyn Seat) -> Result<()> {
    const BLUE: u32 = 0x00_00aa;
    const GREY: u32 = 0xaa_aaaa;
    const LINE: usize = 16;
    let questions = |picture: &Picture| {
        picture.width >= 1024 && picture.height >= 768 && bar(picture).is_some()
    };
    let languages = |picture: &Picture| {
        questions(picture) && share(picture, GREY) > 70 && share(picture, BLUE) < 10
    };
    let picture = seat.wait_for_picture("languages", PATIENCE, &languages)?;
    let first = bar(&picture).context("a bar")?;
    seat.press(UP)?;
    seat.wait_for_picture("bar one line up", PATIENCE, &|picture| {
        languages(picture) && bar(picture) == first.checked_sub(LINE)
    })?;
    seat.press(ENTER)?;
    seat.wait_for_picture("countries", PATIENCE, &|picture| {
        questions(picture) && share(picture, BLUE) > 50 && (20..50).contains(&share(picture, GREY))
    })?;
    Ok(())
}

fn netboot_steps(seat: &dyn Seat) -> Result<()> {
    // Before a guest sets a mode, a display may be as large and dark.
    seat.wait_for_picture("menu", PATIENCE, &|picture| {
        (picture.width, picture.height) == (640, 480) && share(picture, 0) < 10
    })?;
    seat.press(ESCAPE)?;
    seat.wait_for("boot:", PATIENCE)?;
    // Firmware takes 15 keys ahead of who reads them.
    let mut typed = "boot: ".to_owned();
    for word in ["install"].into_iter().chain(TEXT_MODE.split(' ')) {
        seat.type_text(word)?;
        typed.push_str(word);
        seat.wait_for(&typed, PATIENCE)?;
        seat.type_text(" ")?;
        typed.push(' ');
    }
    seat.press(ENTER)?;
    choose(seat)
}

/// A floppy whose boot sector reads the rest of it.
fn floppy(_: &str) -> Result<Ready> {
    const BYTES: u64 = 1440 << 10;
    let files = Scratch::new("floppy")?;
    let path = disk::boot_sector("floppy.asm", BYTES, files.path())?;
    let attachment = Attachment::Floppy;
    let disks = vec![DiskConfig { path, options: DiskOptions::default(), attachment }];
    Ok((Config { firmware: Some(SEABIOS.into()), disks, ..Config::default() }, Some(files)))
}

/// A card whose firmware gets an address and loads a program.
fn ipxe(model: NetModel, rom: &str, _: &str) -> Result<Ready> {
    let files = Scratch::new("ipxe")?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests/netboot.asm");
    nasm(&source, &files.path().join("program"))?;
    let mut net = NetConfig { model, rom: Some(rom.into()), ..NetConfig::default() };
    net.settings.tftp = Some(files.path().to_owned());
    net.settings.bootfile = Some("program".to_owned());
    let config = Config { firmware: Some(SEABIOS.into()), net: Some(net), ..Config::default() };
    Ok((config, Some(files)))
}

fn ends_with(seat: &dyn Seat, verdict: u32) -> Result<()> {
    let found = seat.wait_for_verdict(PATIENCE)?;
    ensure!(found == verdict, "the guest says {found}");
    Ok(())
}

/// Debian's hypervisor from a disc, with Debian's kernel as its first domain.
fn hypervisor(scratch: &str) -> Result<Ready> {
    let guest = Debian::get("debian", scratch)?;
    let files = Scratch::new("xen")?;
    let path = xen::disc(&guest, xen::Console::Screen, scratch, &files)?;
    let options = DiskOptions { read_only: true, ..DiskOptions::default() };
    let disks = vec![DiskConfig { path, options, attachment: Attachment::Cdrom }];
    let memory_bytes = 1 << 30;
    let firmware = Some(SEABIOS.into());
    Ok((Config { firmware, disks, memory_bytes, ..Config::default() }, Some(files)))
}

fn hypervisor_steps(seat: &dyn Seat) -> Result<()> {
    seat.wait_for("root@debian:", PATIENCE)?;
    seat.type_text("cat /sys/hypervisor/type")?;
    seat.press(ENTER)?;
    seat.wait_for("\nxen\n", PATIENCE)?;
    Ok(())
}

/// The system that debootstrap makes, started by GRUB.
fn whole_system(scratch: &str) -> Result<Ready> {
    let guest = Debian::get("debian", scratch)?;
    let files = Scratch::new("system")?;
    let path = files.path().join("disk.img");
    debootstrap::copy_to(&guest, scratch, &path)?;
    let disks = vec![DiskConfig { path, ..DiskConfig::default() }];
    Ok((Config { firmware: Some(SEABIOS.into()), disks, ..Config::default() }, Some(files)))
}

fn whole_system_steps(seat: &dyn Seat) -> Result<()> {
    let prompt = format!("root@{}:", debootstrap::HOST);
    for (question, answer) in
        [(" login:", "root"), ("Password:", debootstrap::PASSWORD), (&prompt, "cat /proc/1/comm")]
    {
        seat.wait_for(question, PATIENCE)?;
        seat.type_text(answer)?;
        seat.press(ENTER)?;
    }
    seat.wait_for("\nsystemd\n", PATIENCE)?;
    Ok(())
}
