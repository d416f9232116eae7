//! A person logs in to what a disk has, works and switches off; the disk is sound, however it is stored.

use std::fs;

use anyhow::{Result, ensure};
use xenolith_machine::{Config, DiskConfig, End};
use xenolith_testsuites::Program;
use xenolith_testsuites::debian::{Debian, PATIENCE};
use xenolith_testsuites::disk::{Scratch, tool};
use xenolith_testsuites::login::{self, Kind};
use xenolith_testsuites::program::xenolith;
use xenolith_testsuites::screen::{ENTER, SEABIOS, Seat, Watched};

fn session(kind: Kind) -> Result<()> {
    let guest = Debian::get("debian", env!("CARGO_TARGET_TMPDIR"))?;
    let scratch = Scratch::new("login")?;
    let image = login::make(&guest, scratch.path(), kind, "serial")?;
    let base = image.base_sum()?;
    let start = || -> Result<Program> {
        let mut command = xenolith()?;
        command.arg("run").arg(&image.path);
        let mut program = Program::start(command)?;
        login::log_in(&mut program)?;
        Ok(program)
    };

    let mut program = start()?;
    ensure!(program.command("id -un; tty", PATIENCE)? == "root\n/dev/ttyS0\n");
    let root = program.command("grep ' / ' /proc/mounts", PATIENCE)?;
    ensure!(root.contains("/dev/vda1 / ext4 rw"), "{root}");
    program.command("echo by hand >/root/note", PATIENCE)?;
    program.command("dd if=/dev/urandom of=/root/large bs=64k count=96 2>&1; sync", PATIENCE)?;
    let sum = program.command("sha256sum /root/large", PATIENCE)?;
    program.power_off(PATIENCE)?;

    let partition = image.checked_partition()?.display().to_string();
    ensure!(tool(&["debugfs", "-R", "cat /root/note", &partition], "")? == "by hand\n");
    let large = scratch.path().join("large").display().to_string();
    tool(&["debugfs", "-R", &format!("dump /root/large {large}"), &partition], "")?;
    let found = tool(&["sha256sum", &large], "")?;
    ensure!(found.split(' ').next() == sum.split(' ').next(), "{found} is not {sum}");

    // It starts from what it has written.
    if kind == Kind::Backed {
        let mut program = start()?;
        ensure!(program.command("sha256sum /root/large", PATIENCE)? == sum);
        program.power_off(PATIENCE)?;
        image.checked_partition()?;
    }
    if kind != Kind::Raw {
        ensure!(image.base_sum()? == base, "the image below was written");
        ensure!(fs::metadata(&image.path)?.len() > 6 << 20, "nothing is in the image");
    }
    Ok(())
}

#[test]
fn boots_to_a_login_from_a_raw_disk() -> Result<()> {
    session(Kind::Raw)
}

#[test]
fn boots_to_a_login_from_a_qcow2_disk() -> Result<()> {
    session(Kind::Qcow2)
}

#[test]
fn boots_to_a_login_from_a_qcow2_disk_on_a_raw_one() -> Result<()> {
    session(Kind::Backed)
}

#[test]
fn boots_to_a_login_on_the_screen() -> Result<()> {
    let guest = Debian::get("debian-i386", env!("CARGO_TARGET_TMPDIR"))?;
    let scratch = Scratch::new("login")?;
    let image = login::make(&guest, scratch.path(), Kind::Qcow2, "console")?;
    let disks = vec![DiskConfig { path: image.path.clone(), ..DiskConfig::default() }];
    let config = Config { firmware: Some(SEABIOS.into()), disks, ..Config::default() };
    let watched = Watched::start(config, Box::new(std::io::sink()))?;
    login::log_in_at(&watched)?;
    watched.type_text("poweroff")?;
    watched.press(ENTER)?;
    ensure!(watched.end(PATIENCE)? == End::PowerOff);
    image.checked_partition()?;
    Ok(())
}
