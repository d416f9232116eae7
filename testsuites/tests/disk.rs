//! Disks: what a guest has made safe is in the image, whatever happens to the program.
//!
//! An ordinary session with a clean shutdown is in cli/tests/boots.rs, on a disk with an MBR. Here the disk
//! has a GPT with the root file system in its second partition, and the program is killed.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use xenolith_testsuites::Program;
use xenolith_testsuites::debian::{Debian, PATIENCE};
use xenolith_testsuites::disk::{self, Partition, SECTOR, Scratch, tool};

const DISK_BYTES: u64 = 80 << 20;
/// Two partitions, as sfdisk takes them.
const TABLE: &str = "label: gpt\nstart=2048, size=8192\nstart=10240, size=131072\n";
const ROOT: Partition = Partition { start: 10240 * SECTOR, bytes: 131_072 * SECTOR };

/// Root's first program: a shell on the console, and no other process.
const INIT: &str = "\
#!/bin/sh
export PATH=/bin PS1='disk# '
mount -t proc proc /proc
exec setsid -c sh -i </dev/ttyS0 >/dev/ttyS0 2>&1
";

/// An image in a folder of its own, gone with the test.
struct Disk {
    scratch: Scratch,
    image: PathBuf,
}

impl Disk {
    /// Partitions, and busybox with [`INIT`] on an ext4 file system.
    fn new(name: &str, busybox: &Path) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let disk = Self { image: scratch.path().join("disk.img"), scratch };
        let tree = disk.scratch.path().join("tree");
        let applets =
            ["sh", "mount", "setsid", "sync", "dd", "sha256sum", "seq", "poweroff", "tail"];
        disk::busybox_tree(&tree, busybox, &applets, INIT)?;
        disk::make(&disk.image, DISK_BYTES, TABLE, ROOT, &tree)?;
        Ok(disk)
    }

    /// A copy of the root partition, with its journal replayed if asked.
    fn partition(&self, name: &str, replay: bool) -> Result<String> {
        let mut image = File::open(&self.image)?;
        image.seek(SeekFrom::Start(ROOT.start))?;
        let path = self.scratch.path().join(name);
        std::io::copy(&mut image.take(ROOT.bytes), &mut File::create(&path)?)?;
        let path = path.display().to_string();
        if replay {
            tool(&["e2fsck", "-E", "journal_only", "-p", &path], "")?;
        }
        // Complains, and ends with a status, about anything out of order.
        tool(&["e2fsck", "-f", "-n", &path], "")?;
        Ok(path)
    }
}

/// Boots with the disk's second partition as root.
fn boot(guest: &Debian, disk: &Disk) -> Result<Program> {
    let mut command = guest.run_elf("root=/dev/vda2")?;
    command.arg("--disk").arg(&disk.image);
    let mut program = Program::start(command)?;
    program.wait_for("disk# ", PATIENCE)?;
    Ok(program)
}

#[test]
fn boots_from_a_disk_that_keeps_what_was_synced_when_the_program_is_killed() -> Result<()> {
    let guest = Debian::get("debian", env!("CARGO_TARGET_TMPDIR"))?;
    let disk = Disk::new("disk-killed", &guest.busybox)?;

    let mut program = boot(&guest, &disk)?;
    program.command("echo by sync >/synced && sync", PATIENCE)?;
    // conv=fsync: fsync(2) after the last write, which ends in a flush of the disk.
    program.command("seq 1 60000 | dd of=/large bs=64k conv=fsync 2>/dev/null", PATIENCE)?;
    let digest = program.command("sha256sum /large", PATIENCE)?;

    // The image belongs to the running machine.
    let mut other = guest.run_elf("")?;
    other.arg("--disk").arg(&disk.image);
    let refused = Program::start(other)?.end(PATIENCE)?;
    ensure!(refused.status.code() == Some(1), "an image in use: {}", refused.status);
    ensure!(refused.stderr.lines().count() == 1, "{}", refused.stderr);
    ensure!(refused.stderr.contains("--disk") && refused.stderr.contains("disk.img"));

    program.kill()?;
    let partition = disk.partition("killed.img", true)?;
    ensure!(tool(&["debugfs", "-R", "cat /synced", &partition], "")? == "by sync\n");
    let large = disk.scratch.path().join("large").display().to_string();
    tool(&["debugfs", "-R", &format!("dump /large {large}"), &partition], "")?;
    let found = tool(&["sha256sum", &large], "")?;
    ensure!(found.split(' ').next() == digest.split(' ').next(), "{found} is not {digest}");

    // The next boot mends the file system by its journal, reads what was written and leaves it clean.
    let mut program = boot(&guest, &disk)?;
    ensure!(program.command("sha256sum /large", PATIENCE)? == digest);
    program.command("echo and more >>/synced", PATIENCE)?;
    program.command("mount -o remount,ro /", PATIENCE)?;
    program.type_line("poweroff -f");
    let ended = program.end(PATIENCE)?;
    ensure!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
    let partition = disk.partition("clean.img", false)?;
    ensure!(tool(&["debugfs", "-R", "cat /synced", &partition], "")? == "by sync\nand more\n");
    let state = tool(&["dumpe2fs", "-h", &partition], "")?;
    let clean = state.lines().any(|line| {
        line.split_once(':')
            .is_some_and(|(name, value)| name == "Filesystem state" && value.trim() == "clean")
    });
    ensure!(clean && !state.contains("needs_recovery"), "{state}");
    Ok(())
}

#[test]
fn a_disk_given_twice_is_refused() -> Result<()> {
    let guest = Debian::get("debian", env!("CARGO_TARGET_TMPDIR"))?;
    let image = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("disk-twice-{}.img", std::process::id()));
    File::create(&image)?.set_len(1 << 20)?;
    let mut command = guest.run_elf("")?;
    command.arg("--disk").arg(&image).arg("--disk").arg(&image);
    let ended = Program::start(command)?.end(PATIENCE)?;
    fs::remove_file(&image)?;
    ensure!(ended.status.code() == Some(1), "{}", ended.status);
    ensure!(ended.stdout.is_empty(), "something on standard output");
    let lines: Vec<_> = ended.stderr.lines().collect();
    let line = lines.first().context("nothing said")?;
    ensure!(lines.len() == 1 && line.contains("--disk"), "{}", ended.stderr);
    Ok(())
}

#[test]
fn boots_i386_with_a_read_only_disk() -> Result<()> {
    let guest = Debian::get("debian-i386", env!("CARGO_TARGET_TMPDIR"))?;
    let image =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("disk-ro-{}.img", std::process::id()));
    let content: String = (0..20_000).fold(String::new(), |mut text, n| {
        // Writing to a String can't fail.
        let _ = writeln!(text, "line {n}");
        text
    });
    fs::write(&image, &content)?;
    File::options().write(true).open(&image)?.set_len(256 << 10)?;
    let before = fs::read(&image)?;
    let mut command = guest.run_elf("")?;
    command.arg("--disk").arg(format!("{},ro", image.display()));
    let mut program = guest.boot(command)?;
    let digest = program.command("sha256sum </dev/vda", PATIENCE)?;
    let expected = tool(&["sha256sum", &image.display().to_string()], "")?;
    ensure!(digest.split(' ').next() == expected.split(' ').next(), "{digest} {expected}");
    let size = program.command("cat /sys/block/vda/size /sys/block/vda/ro", PATIENCE)?;
    ensure!(size == "512\n1\n", "{size}");
    let written = program.command("echo x | dd of=/dev/vda 2>&1; true", PATIENCE)?;
    ensure!(written.contains("not permitted") || written.contains("ead-only"), "{written}");
    program.power_off(PATIENCE)?;
    ensure!(fs::read(&image)? == before, "the image was written");
    fs::remove_file(&image)?;
    Ok(())
}
