//! The memory balloon: what a guest gives up goes back to the host, and comes again when it is let.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use xenolith_machine::inspect::BalloonState;
use xenolith_machine::{Config, End};
use xenolith_testsuites::debian::{Debian, PATIENCE, QUICK};
use xenolith_testsuites::guest::Guest;

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 512 * MIB;
const LESS: u64 = 150 * MIB;

/// Memory of this computer that the guest's takes: what its file has, however often it is mapped.
fn used_bytes() -> Result<u64> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let path = entry?.path();
        if fs::read_link(&path).is_ok_and(|name| name.to_string_lossy().contains("xenolith-ram")) {
            return Ok(fs::metadata(&path)?.blocks() * 512);
        }
    }
    bail!("no file of the guest's memory")
}

/// Waits until the balloon is as it should be; `what` it does if it isn't.
fn wait_until(guest: &Guest, what: &str, is_good: impl Fn(&BalloonState) -> bool) -> Result<()> {
    for _ in 0..2000 {
        let balloon = guest.inspector().balloon()?.context("a balloon")?;
        if is_good(&balloon) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(100));
    }
    bail!("the balloon {what}: {:?}", guest.inspector().balloon())
}

/// Waits until the balloon leaves the guest so much.
fn wait_for(guest: &Guest, bytes: u64) -> Result<()> {
    wait_until(guest, "doesn't get there", |balloon| balloon.memory_bytes == bytes)
}

#[test]
fn boots_and_gives_memory_back_by_its_balloon() -> Result<()> {
    let debian = Debian::with_module("debian", "virtio_balloon", env!("CARGO_TARGET_TMPDIR"))?;
    let config = Config {
        memory_bytes: MEMORY,
        kernel: debian.vmlinux()?,
        initrd: Some(debian.initrd.clone()),
        command_line: format!("console=ttyS0 {QUICK}"),
        balloon: true,
        ..Config::default()
    };
    let mut guest = Guest::boot(config)?;
    guest.wait_for(&debian.prompt(), PATIENCE)?;
    wait_for(&guest, MEMORY)?;
    // Pages that were used once are the host's loss.
    guest.command("dd if=/dev/zero of=/tmp/fill bs=1M count=200 && rm /tmp/fill", PATIENCE)?;
    let before = used_bytes()?;
    ensure!(before > 200 * MIB, "only {before} bytes in use");
    ensure!(guest.inspector().set_memory_target(LESS)?);
    wait_for(&guest, LESS)?;
    let after = used_bytes()?;
    ensure!(after <= LESS + 4 * MIB, "{before} bytes in use before, {after} after");
    let meminfo = guest.command("grep MemTotal /proc/meminfo", PATIENCE)?;
    let kib: u64 = meminfo.split_whitespace().nth(1).context("a number")?.parse()?;
    ensure!(kib << 10 < LESS, "{meminfo}");
    // A guest that is too late with its answer is shown by the one before.
    let told = |balloon: &BalloonState| balloon.statistics.contains(&("total", kib << 10));
    wait_until(&guest, &format!("doesn't tell of {meminfo}"), told)?;

    // Another kernel finds the balloon as large as it shall be.
    guest.type_line("reboot");
    guest.wait_for("Linux version", PATIENCE)?;
    guest.wait_for(&debian.prompt(), PATIENCE)?;
    wait_for(&guest, LESS)?;

    // All of it again, with code in pages that were in the balloon.
    ensure!(guest.inspector().set_memory_target(2 * MEMORY)?);
    wait_for(&guest, MEMORY)?;
    let copies = "for n in 1 2 3 4 5; do cp /bin/busybox /tmp/busybox$n && /tmp/busybox$n true || echo bad; done; \
                  dd if=/dev/urandom of=/tmp/a bs=1M count=90 2>/dev/null && cp /tmp/a /tmp/b && \
                  cmp /tmp/a /tmp/b && echo same";
    let said = guest.command(copies, PATIENCE)?;
    ensure!(said == "same\n", "{said}");
    guest.type_line("poweroff");
    ensure!(guest.end(PATIENCE)? == End::PowerOff);
    Ok(())
}
