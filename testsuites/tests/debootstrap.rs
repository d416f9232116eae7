//! A whole Debian system: systemd to a login, dpkg, a compiler, and a shutdown that leaves the disk in order.

use std::time::Duration;

use anyhow::{Result, ensure};
use xenolith_testsuites::Program;
use xenolith_testsuites::debian::Debian;
use xenolith_testsuites::debootstrap::{self, HOST, PASSWORD};
use xenolith_testsuites::disk::Scratch;
use xenolith_testsuites::program::xenolith;

const SCRATCH: &str = env!("CARGO_TARGET_TMPDIR");
/// For one step.
const PATIENCE: Duration = Duration::from_secs(400);

/// A package with one script, made in the guest.
const PACKAGE: &str = "mkdir -p p/DEBIAN p/usr/bin && \
    printf '%s\\n' 'Package: greeting' 'Version: 1.0' 'Architecture: all' 'Depends: libc6' \
    'Maintainer: Nobody <nobody@localhost>' 'Description: says a word' >p/DEBIAN/control && \
    printf '%s\\n' '#!/bin/sh' 'echo greeting from a package' >p/usr/bin/greeting && \
    chmod 755 p/usr/bin/greeting && dpkg-deb --build p greeting.deb";

/// Counts primes and calls libm through the dynamic linker.
const PROGRAM: &str = "printf '%s\\n' '#include <stdio.h>' '#include <math.h>' \
    'int main(void) { int n = 0; for (int i = 2; i < 20000; i++) { int j = 2; \
    while (j * j <= i && i % j) j++; n += j * j > i; } \
    printf(\"%d %.3f\\n\", n, sqrt(2.0)); return 0; }' >primes.c";

/// Logs in when the system has come up.
fn log_in(program: &mut Program) -> Result<()> {
    program.wait_for(&format!("{HOST} login: "), PATIENCE)?;
    program.type_line("root");
    program.wait_for("Password: ", PATIENCE)?;
    program.type_line(PASSWORD);
    program.wait_for(&format!("root@{HOST}:"), PATIENCE)?;
    Ok(())
}

fn power_off(mut program: Program) -> Result<()> {
    program.type_line("poweroff");
    program.wait_for("reboot: Power down", PATIENCE)?;
    let ended = program.end(PATIENCE)?;
    ensure!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
    Ok(())
}

#[test]
#[ignore = "minutes, most of them to make the system at first"]
fn debian_boots_to_a_login_installs_compiles_and_shuts_down() -> Result<()> {
    let guest = Debian::get("debian", SCRATCH)?;
    let scratch = Scratch::new("debootstrap")?;
    let disk = scratch.path().join("disk.img");
    debootstrap::copy_to(&guest, SCRATCH, &disk)?;

    // As from a disk that was installed: firmware, boot loader, kernel.
    let mut command = xenolith()?;
    command.arg("run").arg(&disk).args(["-m", "512M"]);
    let mut program = Program::start(command)?;
    log_in(&mut program)?;
    ensure!(program.command("cat /proc/1/comm", PATIENCE)? == "systemd\n");
    let failed = program.command("systemctl list-units --failed --no-legend --plain", PATIENCE)?;
    ensure!(failed.trim().is_empty(), "{failed}");
    program.command(PACKAGE, PATIENCE)?;
    program.command("dpkg --install greeting.deb", PATIENCE)?;
    let state = program.command("dpkg-query -W -f '${db:Status-Status}' greeting", PATIENCE)?;
    ensure!(state == "installed", "{state}");
    program.command(PROGRAM, PATIENCE)?;
    program.command("gcc -O2 -Wall -o primes primes.c -lm", PATIENCE)?;
    let primes = program.command("./primes", PATIENCE)?;
    ensure!(primes == "2262 1.414\n", "{primes}");
    power_off(program)?;
    debootstrap::check(&disk)?;

    // As a kernel and its disk; what was installed is there.
    let mut command = guest.run_elf("root=/dev/vda1")?;
    command.args(["-m", "512M", "-c", "2", "--disk"]).arg(&disk);
    let mut program = Program::start(command)?;
    log_in(&mut program)?;
    ensure!(program.command("greeting", PATIENCE)? == "greeting from a package\n");
    ensure!(program.command("./primes", PATIENCE)? == "2262 1.414\n");
    power_off(program)?;
    debootstrap::check(&disk)
}
