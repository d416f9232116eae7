//! A whole Debian system on a disk, made by debootstrap.
//!
//! Problem: tests want the system that a person installs (systemd, dpkg, a compiler), made without root on the machine
//! that tests and without a mirror's name in any file. Scheme: debootstrap unpacks the packages under fakeroot, from
//! where the machine's own apt has its release, and mke2fs makes a file system of them; the second stage, which
//! configures them, runs in a guest. GRUB and a kernel are on the disk too. The image is kept in the cache of
//! [`crate::debian`], named by its recipe. Invariant: an image with its name is whole. Source: debootstrap(8).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result, ensure};

use crate::Program;
use crate::debian::{Debian, QUICK, checksum};
use crate::disk::{self, Partition, SECTOR, tool};

/// The root file system, the disk's one partition.
pub const ROOT: Partition = Partition { start: 2048 * SECTOR, bytes: DISK_BYTES - 2048 * SECTOR };
pub const PASSWORD: &str = "correct horse";
/// Name and prompt.
pub const HOST: &str = "bookworm-guest";

const DISK_BYTES: u64 = 1 << 30;
const TABLE: &str = "label: dos\nstart=2048, type=83, bootable\n";
/// What a minimal root has not: an init, logins on a serial line, a compiler, a network.
const PACKAGES: &str = "systemd-sysv,udev,login,gcc,libc6-dev,iproute2";
/// For the second stage, which unpacks and configures some hundred packages.
const PATIENCE: Duration = Duration::from_secs(1200);

/// On the host, under fakeroot, which keeps owners and devices for mke2fs: the packages, unpacked.
const FIRST_STAGE: &str = r#"
debootstrap --foreign --variant=minbase --include="$1" "$2" tree "$3"
install -m 755 second-stage tree/second-stage
mkdir -p tree/boot/grub
cp vmlinuz initrd.img tree/boot
cp grub.cfg tree/boot/grub
mke2fs -q -F -t ext4 -L root -E "offset=$4" -d tree disk.img "$5"
"#;

/// In the guest, as its first program.
const SECOND_STAGE: &str = r#"#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive
if /debootstrap/debootstrap --second-stage; then
    apt-get clean
    echo HOST >/etc/hostname
    echo '127.0.0.1 localhost HOST' >/etc/hosts
    echo '/dev/vda1 / ext4 errors=remount-ro 0 1' >/etc/fstab
    echo 'root:PASSWORD' | chpasswd || exit
    # A new process: this one still has the C library that was replaced, and so keeps the disk busy.
    exec sh -c "sync; mount -o remount,ro / && echo 'second stage: done'; exec poweroff --force --force"
fi
tail -n 20 /debootstrap/debootstrap.log
exec poweroff --force --force
"#;

const MENU: &str = "\
serial
terminal_input serial
terminal_output serial
set timeout=0
menuentry 'Debian' {
linux /boot/vmlinuz root=/dev/vda1 console=ttyS0 QUICK
initrd /boot/initrd.img
}
";

/// A copy of the system's disk at `copy`; the system is made first if need be.
///
/// # Errors
/// What can't be fetched, or a tool's own complaint.
pub fn copy_to(guest: &Debian, scratch: &str, copy: &Path) -> Result<()> {
    let image = image(guest, scratch)?;
    let (image, copy) = (image.display().to_string(), copy.display().to_string());
    tool(&["cp", "--sparse=always", "--reflink=auto", &image, &copy], "")?;
    Ok(())
}

fn image(guest: &Debian, scratch: &str) -> Result<PathBuf> {
    let cache =
        env::var_os("XENOLITH_CACHE").map_or(Path::new(scratch).join("guests"), PathBuf::from);
    let folder = cache.join("debootstrap");
    let second_stage = SECOND_STAGE.replace("HOST", HOST).replace("PASSWORD", PASSWORD);
    let menu = MENU.replace("QUICK", QUICK);
    let recipe = [FIRST_STAGE, &second_stage, &menu, PACKAGES, TABLE, &DISK_BYTES.to_string()];
    let image = folder.join(format!("disk-{}.img", checksum(recipe.concat().as_bytes())));
    if image.is_file() {
        return Ok(image);
    }
    let partial = folder.join(format!(".partial-{}", std::process::id()));
    fs::create_dir_all(&partial)?;
    fs::copy(&guest.vmlinuz, partial.join("vmlinuz"))?;
    fs::copy(&guest.initrd, partial.join("initrd.img"))?;
    fs::write(partial.join("second-stage"), second_stage)?;
    fs::write(partial.join("grub.cfg"), menu)?;
    let made = make(guest, &partial);
    // Another test may have been faster; both images are good.
    let made = made.and_then(|disk| Ok(fs::rename(disk, &image)?));
    let swept = fs::remove_dir_all(&partial);
    made.and_then(|()| Ok(swept.map(|()| image)?))
}

/// Makes the disk in `folder`.
fn make(guest: &Debian, folder: &Path) -> Result<PathBuf> {
    let disk = folder.join("disk.img");
    fs::File::create(&disk)?.set_len(DISK_BYTES)?;
    tool(&["sfdisk", "--quiet", &disk.display().to_string()], TABLE)?;
    let (suite, mirror) = release()?;
    let (start, blocks) = (ROOT.start.to_string(), format!("{}k", ROOT.bytes >> 10));
    let folder_name = folder.to_str().context("a folder's name that is text")?;
    let in_folder = ["env", "-C", folder_name, "fakeroot", "sh", "-e", "-c", FIRST_STAGE, "sh"];
    let arguments = [PACKAGES, &suite, &mirror, &start, &blocks];
    tool(&[&in_folder[..], &arguments[..]].concat(), "")?;
    disk::install_grub(&disk, folder, ROOT.start)?;

    // What isn't whole at the end is thrown away: no write need be waited for.
    let append = "root=/dev/vda1 rootflags=nobarrier init=/second-stage";
    let mut command = guest.run_elf(append)?;
    command.args(["-m", "512M", "--disk"]).arg(&disk);
    let mut program = Program::start(command)?;
    program.wait_for("second stage: done", PATIENCE)?;
    let ended = program.end(PATIENCE)?;
    ensure!(ended.status.success(), "second stage: {}: {}", ended.status, ended.stderr);
    check(&disk)?;
    Ok(disk)
}

/// Looks whether the file system is in order: anything that isn't is an error.
///
/// # Errors
/// e2fsck's own complaint.
pub fn check(disk: &Path) -> Result<()> {
    let partition = format!("{}?offset={}", disk.display(), ROOT.start);
    tool(&["e2fsck", "-f", "-n", &partition], "")?;
    Ok(())
}

/// The machine's release, and where its apt has that from.
fn release() -> Result<(String, String)> {
    let about = fs::read_to_string("/etc/os-release")?;
    let suite = about.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let suite = suite.context("/etc/os-release names no release")?.trim_matches('"').to_owned();
    let format = "$(CODENAME) $(COMPONENT) $(REPO_URI)";
    let targets = Command::new("apt-get")
        .args(["indextargets", "--format", format, "Identifier: Packages"])
        .output()
        .context("apt-get")?;
    let targets = String::from_utf8_lossy(&targets.stdout).into_owned();
    let wanted = format!("{suite} main ");
    let mirror = targets.lines().find_map(|line| line.strip_prefix(&wanted));
    let mirror = mirror.with_context(|| format!("this machine's apt has no source for {suite}"))?;
    Ok((suite, mirror.to_owned()))
}
