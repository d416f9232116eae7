//! Debian's Xen hypervisor, started by GRUB, with Debian's kernel as its first domain.
//!
//! The kernel is paravirtualized: it runs at CPL 3 in the upper half of the addresses, beside its programs, and Xen
//! comes in at every system call, fault and interrupt.

use anyhow::{Context, Result, ensure};
use xenolith_testsuites::Program;
use xenolith_testsuites::debian::{Debian, PATIENCE};
use xenolith_testsuites::disk::Scratch;
use xenolith_testsuites::program::xenolith;
use xenolith_testsuites::xen::{self, Console};

const SCRATCH: &str = env!("CARGO_TARGET_TMPDIR");

/// Starts the hypervisor from a disc and waits for the shell of its first domain.
fn start(scratch: &Scratch, processors: &str) -> Result<Program> {
    let guest = Debian::get("debian", SCRATCH)?;
    let disc = xen::disc(&guest, Console::SerialLine, SCRATCH, scratch)?;
    let mut command = xenolith()?;
    command.args(["run", "-m", "1G", "-c", processors, "--cdrom"]).arg(&disc);
    let mut program = Program::start(command)?;
    program.wait_for("(XEN) Xen version 4.17", PATIENCE)?;
    // From here on the lines are Linux's, by hypercalls.
    program.wait_for("Linux version ", PATIENCE)?;
    program.wait_for("Hypervisor detected: Xen PV", PATIENCE)?;
    program.wait_for("Run /init as init process", PATIENCE)?;
    program.wait_for(&guest.prompt(), PATIENCE)?;
    Ok(program)
}

fn power_off(mut program: Program) -> Result<()> {
    program.type_line("poweroff");
    program.wait_for("Entering ACPI S5 state", PATIENCE)?;
    let ended = program.end(PATIENCE)?;
    ensure!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
    Ok(())
}

#[test]
fn xen_boots_debian_as_its_first_domain() -> Result<()> {
    let scratch = Scratch::new("xen")?;
    let mut program = start(&scratch, "1")?;
    ensure!(program.command("cat /sys/hypervisor/type", PATIENCE)? == "xen\n");
    // Programs, pipes and faults of the domain's own.
    let sum = program.command("seq 1 2000 | sha256sum | cut -c1-16", PATIENCE)?;
    ensure!(sum == "6251e5743b6fd6a7\n", "{sum}");
    let memory = program.command("grep MemTotal /proc/meminfo", PATIENCE)?;
    let kib: u64 = memory.split_whitespace().nth(1).context("a number")?.parse()?;
    ensure!((300 << 10..512 << 10).contains(&kib), "{memory}");
    power_off(program)
}

#[test]
#[ignore = "for the night"]
fn xen_boots_debian_on_two_processors() -> Result<()> {
    let scratch = Scratch::new("xen")?;
    let mut program = start(&scratch, "2")?;
    ensure!(program.command("nproc", PATIENCE)? == "2\n");
    power_off(program)
}
