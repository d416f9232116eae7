//! Disk images for tests, made of files without any privilege.
//!
//! Problem: tests boot from disks with partitions, file systems and boot loaders, and none may be stored.
//! Scheme: sfdisk writes the table into a file, mke2fs makes a file system in the middle of it from a
//! folder, and what a boot loader has outside file systems is copied to its sectors. Invariant: everything
//! is in a [`Scratch`] folder, gone with the test.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

pub use crate::asm::assemble::Scratch;
use crate::debian::{Debian, QUICK};

pub const SECTOR: u64 = 512;

/// A partition of a file system that is made from a folder.
#[derive(Clone, Copy, Debug)]
pub struct Partition {
    pub start: u64,
    pub bytes: u64,
}

/// Runs a host program, which may be where an ordinary PATH doesn't look, and returns what it printed.
///
/// # Errors
/// It isn't there, or ends with another status than 0.
pub fn tool(args: &[&str], input: &str) -> Result<String> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut child = Command::new("/usr/bin/env")
        .args(args)
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{args:?}: {}\n{text}{errors}", output.status);
    Ok(text)
}

/// Fills a folder with a small system: busybox under the names `applets`, and `init` as its first program.
///
/// # Errors
/// The folder can't be written.
pub fn busybox_tree(tree: &Path, busybox: &Path, applets: &[&str], init: &str) -> Result<()> {
    for name in ["bin", "sbin", "dev", "proc", "sys", "run", "tmp"] {
        fs::create_dir_all(tree.join(name))?;
    }
    fs::copy(busybox, tree.join("bin/busybox"))?;
    for applet in applets {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet))?;
    }
    fs::write(tree.join("sbin/init"), init)?;
    for program in ["bin/busybox", "sbin/init"] {
        fs::set_permissions(tree.join(program), fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Makes a disk of `bytes` with this partition table, as sfdisk takes it, and in `partition` an ext4 file
/// system with the files of `tree`.
///
/// # Errors
/// A tool's own complaint.
pub fn make(
    image: &Path,
    bytes: u64,
    table: &str,
    partition: Partition,
    tree: &Path,
) -> Result<()> {
    File::create(image)?.set_len(bytes)?;
    let image = image.display().to_string();
    tool(&["sfdisk", "--quiet", &image], table)?;
    let offset = format!("offset={}", partition.start);
    let size = format!("{}k", partition.bytes >> 10);
    let tree = tree.display().to_string();
    tool(&["mke2fs", "-q", "-F", "-t", "ext4", "-E", &offset, "-d", &tree, &image, &size], "")?;
    Ok(())
}

/// Adds the kernel and initial ramdisk of `guest` to a folder, and a menu for GRUB whose one entry is called `title`
/// and gives the kernel the options `linux`. GRUB talks on `terminal`, which is
/// "serial" or "console", and waits for a key.
///
/// # Errors
/// The folder can't be written.
pub fn grub_tree(
    tree: &Path,
    guest: &Debian,
    terminal: &str,
    title: &str,
    linux: &str,
) -> Result<()> {
    fs::create_dir_all(tree.join("boot/grub"))?;
    fs::copy(&guest.vmlinuz, tree.join("boot/vmlinuz"))?;
    fs::copy(&guest.initrd, tree.join("boot/initrd.img"))?;
    let menu = format!(
        "serial\nterminal_input {terminal}\nterminal_output {terminal}\n\
         menuentry '{title}' {{\n\
         linux /boot/vmlinuz {linux} console=ttyS0 {QUICK}\n\
         initrd /boot/initrd.img\n}}\n"
    );
    fs::write(tree.join("boot/grub/grub.cfg"), menu)?;
    Ok(())
}

/// Where Debian's package grub-pc-bin has GRUB for BIOS machines.
const GRUB: &str = "/usr/lib/grub/i386-pc";
/// Bytes of a master boot record before the disk's signature and partition table.
const BOOT_CODE_BYTES: usize = 440;
/// Modules for a disk with an MBR, ext4 and a Linux kernel.
const GRUB_MODULES: &str = "biosdisk part_msdos ext2 normal linux configfile serial terminal";

/// Puts GRUB before the first partition of a disk with an MBR. It reads `/boot/grub/grub.cfg` there.
///
/// # Errors
/// GRUB isn't installed, or is too large for the gap.
pub fn install_grub(image: &Path, scratch: &Path, gap_end: u64) -> Result<()> {
    let core = scratch.join("core.img");
    let mut args = vec!["grub-mkimage", "--format=i386-pc", "--prefix=(hd0,msdos1)/boot/grub"];
    let output = format!("--output={}", core.display());
    args.push(&output);
    args.extend(GRUB_MODULES.split(' '));
    tool(&args, "")?;
    let boot = fs::read(Path::new(GRUB).join("boot.img")).context(GRUB)?;
    let core = fs::read(core)?;
    ensure!(SECTOR + core.len() as u64 <= gap_end, "GRUB has {} bytes", core.len());
    let mut disk = File::options().write(true).open(image)?;
    disk.write_all(boot.get(..BOOT_CODE_BYTES).context("boot.img is short")?)?;
    // Its first sector has the place of the others, which follow.
    disk.seek(SeekFrom::Start(SECTOR))?;
    disk.write_all(&core)?;
    Ok(())
}

/// Makes a disc of the files of `tree` that starts GRUB, which reads `/boot/grub/grub.cfg` there.
///
/// # Errors
/// A tool's own complaint.
pub fn rescue_disc(tree: &Path, scratch: &Path) -> Result<PathBuf> {
    let image = scratch.join("disc.iso");
    let (output, tree) = (image.display().to_string(), tree.display().to_string());
    tool(&["grub-mkrescue", "-d", GRUB, "-o", &output, &tree], "")?;
    Ok(image)
}

/// Assembles a NASM file of `testsuites/guests` into a boot sector, and what may follow it, on a disk of
/// `bytes`.
///
/// # Errors
/// NASM is missing, or doesn't like the source.
pub fn boot_sector(name: &str, bytes: u64, scratch: &Path) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests").join(name);
    let image = scratch.join("boot.img");
    let code = crate::asm::assemble::nasm(&source, &image)?;
    let sector = code.get(..SECTOR as usize).context("no boot sector")?;
    ensure!(sector.ends_with(&[0x55, 0xaa]) && code.len() as u64 <= bytes, "no boot sector");
    File::options().write(true).open(&image)?.set_len(bytes)?;
    Ok(image)
}
