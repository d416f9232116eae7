//! A disk that a small system starts from, up to a person's login.
//!
//! Problem: a machine is of use when one can log in to what its disk has, and when the disk is sound afterwards,
//! however its image is stored. Scheme: a partitioned disk with GRUB, Debian's kernel and an ext4 root file system,
//! where busybox is init, getty, login and shell, on the serial line and on the screen; the image is raw, or one of
//! qcow2 made of it. Invariant: GRUB waits for a key, so that nothing depends on time. Source: busybox, "init.c"
//! (inittab).

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use xenolith_devices::disk::Format;

use crate::Program;
use crate::debian::{Debian, PATIENCE};
use crate::disk::{self, Partition, SECTOR, tool};
use crate::program::xenolith;
use crate::screen::{ENTER, Seat};

const DISK_BYTES: u64 = 160 << 20;
const TABLE: &str = "label: dos\nstart=2048, type=83, bootable\n";
const ROOT: Partition = Partition { start: 2048 * SECTOR, bytes: DISK_BYTES - 2048 * SECTOR };

const PASSWORD: &str = "sesame";
const INIT: &str = "#!/bin/sh\nexec /bin/busybox init\n";
const INITTAB: &str = "\
::sysinit:/bin/mount -t proc proc /proc
::sysinit:/bin/mount -t sysfs sys /sys
::sysinit:/bin/mount -o remount,rw /
::sysinit:/bin/hostname vault
ttyS0::respawn:/bin/getty -L ttyS0 115200 vt100
tty1::respawn:/bin/getty -L tty1 115200 linux
::shutdown:/bin/mount -o remount,ro /
";
const APPLETS: [&str; 14] = [
    "sh",
    "mount",
    "hostname",
    "getty",
    "login",
    "sync",
    "dd",
    "sha256sum",
    "cat",
    "id",
    "tty",
    "uname",
    "grep",
    "poweroff",
];
const MENU: &str = "Debian with a login";

/// How a disk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Raw,
    /// Our own `xenolith image convert`'s.
    Qcow2,
    /// An empty one of `qemu-img`'s on top of the raw one.
    Backed,
}

/// The disk's image.
#[derive(Clone, Debug)]
pub struct Image {
    pub path: PathBuf,
    pub format: Format,
    /// The raw image that it was made of.
    base: PathBuf,
}

/// Makes the disk in a folder, with the kernel and programs of `guest`. GRUB talks on `terminal`, which is "serial" or
/// "console".
///
/// # Errors
/// A tool's own complaint.
pub fn make(guest: &Debian, folder: &Path, kind: Kind, terminal: &str) -> Result<Image> {
    let tree = folder.join("tree");
    disk::busybox_tree(&tree, &guest.busybox, &APPLETS, INIT)?;
    fs::create_dir_all(tree.join("etc"))?;
    fs::create_dir_all(tree.join("root"))?;
    fs::write(tree.join("etc/inittab"), INITTAB)?;
    let secret = tool(&["busybox", "mkpasswd", "-m", "sha256", PASSWORD], "")?;
    fs::write(tree.join("etc/passwd"), format!("root:{}:0:0:root:/root:/bin/sh\n", secret.trim()))?;
    fs::write(tree.join("etc/group"), "root:x:0:\n")?;
    disk::grub_tree(&tree, guest, terminal, MENU, "root=/dev/vda1 console=tty0")?;
    let base = folder.join("disk.img");
    disk::make(&base, DISK_BYTES, TABLE, ROOT, &tree)?;
    disk::install_grub(&base, folder, ROOT.start)?;
    let path = match kind {
        Kind::Raw => return Ok(Image { path: base.clone(), format: Format::Raw, base }),
        Kind::Qcow2 => {
            let path = folder.join("converted.qcow2");
            let mut convert = xenolith()?;
            let status = convert.args(["image", "convert"]).arg(&base).arg(&path).status()?;
            ensure!(status.success(), "xenolith image convert: {status}");
            path
        }
        Kind::Backed => {
            let path = folder.join("top.qcow2");
            let (top, below) = (path.display().to_string(), base.display().to_string());
            tool(
                &["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", &below, &top],
                "",
            )?;
            path
        }
    };
    Ok(Image { path, format: Format::Qcow2, base })
}

impl Image {
    /// A checksum of the raw image that this one was made of.
    ///
    /// # Errors
    /// It can't be read.
    pub fn base_sum(&self) -> Result<String> {
        tool(&["sha256sum", &self.base.display().to_string()], "")
    }

    /// Has other programs look at the image: the image itself is sound, and so is the file system in it. The
    /// root partition, in a file of its own.
    ///
    /// # Errors
    /// Something is wrong with it.
    pub fn checked_partition(&self) -> Result<PathBuf> {
        let mut raw = self.path.clone();
        if self.format == Format::Qcow2 {
            let image = self.path.display().to_string();
            let told = tool(&["qemu-img", "check", &image], "")?;
            ensure!(told.contains("No errors were found"), "{told}");
            raw.set_extension("raw");
            tool(&["qemu-img", "convert", "-O", "raw", &image, &raw.display().to_string()], "")?;
        }
        let partition = self.path.with_extension("partition");
        let mut whole = File::open(raw)?;
        whole.seek(SeekFrom::Start(ROOT.start))?;
        std::io::copy(&mut whole.take(ROOT.bytes), &mut File::create(&partition)?)?;
        // Complains, and ends with a status, about anything out of order.
        tool(&["e2fsck", "-f", "-n", &partition.display().to_string()], "")?;
        Ok(partition)
    }
}

/// From GRUB's menu on the serial line to a shell of root's.
///
/// # Errors
/// Something else comes.
pub fn log_in(program: &mut Program) -> Result<()> {
    program.wait_for("GNU GRUB", PATIENCE)?;
    program.wait_for(MENU, PATIENCE)?;
    program.type_line("");
    // Whoever has the wrong password stays out.
    for (password, answer) in [("open", "Login incorrect"), (PASSWORD, "# ")] {
        program.wait_for("vault login: ", PATIENCE)?;
        program.type_line("root");
        program.wait_for("Password: ", PATIENCE)?;
        program.type_line(password);
        program.wait_for(answer, PATIENCE)?;
    }
    Ok(())
}

/// From GRUB's menu on the screen to a shell of root's.
///
/// # Errors
/// Something else comes.
pub fn log_in_at(seat: &dyn Seat) -> Result<()> {
    seat.wait_for("GNU GRUB", PATIENCE)?;
    seat.wait_for(MENU, PATIENCE)?;
    seat.press(ENTER)?;
    for (question, answer) in [("vault login:", "root"), ("Password:", PASSWORD), ("~ #", "tty")] {
        seat.wait_for(question, PATIENCE)?;
        seat.type_text(answer)?;
        seat.press(ENTER)?;
    }
    seat.wait_for("/dev/tty1", PATIENCE)?;
    Ok(())
}
