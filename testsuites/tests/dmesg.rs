//! Linux must have no complaint about this machine that it doesn't have about QEMU's.
//!
//! The same kernel, initramfs, memory and devices of the same kinds, once here and once under QEMU's own
//! emulator; `testsuites/guests/dmesg-allowed.txt` lists what may differ, with reasons. The default processor is
//! the host's, so it is compared with one of QEMU's of the same maker; the other maker's is compared by name.

use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{fs, slice};

use anyhow::{Result, ensure};
use xenolith_testsuites::asm::case::Maker;
use xenolith_testsuites::asm::host;
use xenolith_testsuites::debian::{Debian, PATIENCE, QUICK};
use xenolith_testsuites::dmesg::{self, Allowed, Line};

const ALLOWED: &str = include_str!("../guests/dmesg-allowed.txt");
const MEMORY: &str = "512M";
const DISK_BYTES: u64 = 8 << 20;
/// Linux measures its clocks within some milliseconds, and complains of a processor that was away meanwhile. What
/// is wrong with the machine it says at every boot.
const BOOTS: usize = 3;

/// How the lines begin that say that a processor was away. One read of the 8254 that takes ten times as long as the
/// fastest spoils a measurement of 10 or 50 ms; two clocks read one after the other differ by what came between; a
/// clock's interrupts are missed (Linux, "arch/x86/kernel/tsc.c", "hpet.c").
const AWAY: [&str; 4] = [
    "tsc: Fast TSC calibration failed",
    "tsc: Unable to calibrate against PIT",
    "tsc: PIT calibration deviates from ",
    "hpet: Lost ",
];

/// Boots to the shell, reads the log and powers off. What says that a processor was away is left out if ours has waited
/// for one of the host's, for a fiftieth of the time that it ran or more.
fn log_of(guest: &Debian, command: Command) -> Result<Vec<Line>> {
    let mut program = guest.boot(command)?;
    let log = program.command("dmesg -r", PATIENCE)?;
    let sum = |times: Vec<Duration>| times.iter().sum::<Duration>();
    let (ran, waited) = (program.thread_times("vcpu-")?, program.thread_waits("vcpu-")?);
    let (ran, waited) = (sum(ran), sum(waited));
    println!("{}: ran {ran:?}, waited {waited:?}", guest.name);
    let busy = waited * 50 > ran;
    let clock = program.command(
        "cat /sys/devices/system/clocksource/clocksource0/current_clocksource",
        PATIENCE,
    )?;
    println!("{}: clock source {clock}", guest.name);
    program.power_off(PATIENCE)?;
    let mut lines = dmesg::parse(&log);
    // The whole log, not the end of a ring that was too small.
    ensure!(lines.len() > 150, "only {} lines", lines.len());
    ensure!(lines.iter().any(|line| line.text.starts_with("Linux version")), "no beginning");
    lines.retain(|line| !busy || !AWAY.iter().any(|start| line.text.starts_with(start)));
    Ok(lines)
}

/// One of QEMU's processors of a maker: Linux asks each maker's for other things.
fn peer(maker: Maker) -> &'static str {
    match maker {
        Maker::Intel => "Haswell",
        Maker::Amd => "EPYC-Milan",
    }
}

fn qemu(guest: &Debian, maker: Maker, cpus: &str, disk: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", "pc", "-accel", "tcg", "-cpu", peer(maker), "-m", MEMORY, "-smp", cpus]);
    command.args(["-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio", "-vga", "std"]);
    command.arg("-kernel").arg(&guest.vmlinuz).arg("-initrd").arg(&guest.initrd);
    command.args(["-append", &format!("console=ttyS0 {QUICK}")]);
    command.args(["-device", "virtio-serial-pci", "-device", "virtio-rng-pci", "-drive"]);
    command.arg(format!("if=virtio,format=raw,file={}", disk.display()));
    command
}

/// Complaints about a machine with so many processors.
fn compare(name: &'static str, cpu: &str, maker: Maker, cpus: &str) -> Result<()> {
    let guest = Debian::get(name, env!("CARGO_TARGET_TMPDIR"))?;
    let disk = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("dmesg-{name}-{}.img", std::process::id()));
    fs::File::create(&disk)?.set_len(DISK_BYTES)?;
    let there = log_of(&guest, qemu(&guest, maker, cpus, &disk))?;
    let mut complains = 0;
    for boot in 1..=BOOTS {
        let mut ours = guest.run(QUICK)?;
        ours.args(["-m", MEMORY, "--cpu", cpu, "-c", cpus, "--disk"]).arg(&disk);
        let here = log_of(&guest, ours)?;
        let found = dmesg::complaints(&here, &there, &Allowed::parse(ALLOWED)?);
        for line in &found {
            eprintln!("boot {boot}: <{}> {}", line.level, line.text);
        }
        complains = found.len();
        if complains == 0 {
            break;
        }
    }
    fs::remove_file(&disk)?;
    ensure!(complains == 0, "{name} complains {complains} times about us and not about QEMU");
    // The comparison itself must be able to find something.
    let planted = Line { level: 6, text: "clocksource: planted is unstable".to_owned() };
    let found = dmesg::complaints(slice::from_ref(&planted), &there, &Allowed::parse(ALLOWED)?);
    ensure!(found == [&planted], "a planted complaint was not found");
    Ok(())
}

#[test]
fn boots_amd64_with_two_processors_without_new_complaints() -> Result<()> {
    compare("debian", "host", host::maker(), "2")
}

#[test]
fn boots_amd64_on_the_other_makers_processor_without_new_complaints() -> Result<()> {
    match host::maker() {
        Maker::Intel => compare("debian", "x86-64-v3,vendor=amd", Maker::Amd, "1"),
        Maker::Amd => compare("debian", "x86-64-v3", Maker::Intel, "1"),
    }
}

#[test]
fn boots_i386_without_new_complaints() -> Result<()> {
    compare("debian-i386", "host", host::maker(), "1")
}
