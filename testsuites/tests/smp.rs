//! Several processors: they come up, share the work, agree about time, see each other's changes of code
//! and page tables, and go off and on.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use xenolith_testsuites::debian::{Debian, PATIENCE};
use xenolith_testsuites::program::Program;

/// Digests by every processor at once, each held to its own: a pipe of two processes, several time slices
/// long.
const PINNED: &str = "for i in $(seq 0 LAST); do taskset -c $i \
    sh -c 'seq 1 40000 | sha256sum; seq 1 40000 | md5sum' >/tmp/pinned$i & done; wait";
/// Of `seq 1 40000`, as coreutils have them.
const SHA256: &str = "4dee400da20bb6b7cfd1721c3383c86bb26571402edfe6631109445b28632130";
const MD5: &str = "1c0f34fee7176dc367bead8f96cba6bc";

/// Many short processes that go where the scheduler likes.
const LOOSE: &str = "for i in $(seq 60); do echo $i | sha256sum & done | sort | sha256sum";

/// Patches the running scheduler, and maps and unmaps code.
const PATCHING: &str = "for i in $(seq 8); do \
    echo 1 >/proc/sys/kernel/sched_schedstats; modprobe squashfs || exit 1; \
    echo 0 >/proc/sys/kernel/sched_schedstats; modprobe -r squashfs || exit 1; done";

/// What Linux says when processors don't get along.
const TROUBLE: &str = "unstable|unsynchronized|out of sync|lockup|stall|stuck|BUG|WARNING|Oops|\
    not responding|failed to";

fn boot(name: &'static str, cpus: u32) -> Result<Program> {
    let guest = Debian::get(name, env!("CARGO_TARGET_TMPDIR"))?;
    let mut command = guest.run_elf("")?;
    command.args(["-c", &cpus.to_string()]);
    guest.boot(command)
}

/// Numbers of the line of /proc/interrupts that begins with `name`.
fn interrupts(program: &mut Program, name: &str) -> Result<Vec<u64>> {
    let text = program.command(&format!("grep {name}: /proc/interrupts"), PATIENCE)?;
    let numbers = text.split_whitespace().skip(1).map_while(|word| word.parse().ok());
    Ok(numbers.collect())
}

fn online(program: &mut Program) -> Result<u32> {
    Ok(program.command("nproc", PATIENCE)?.trim().parse()?)
}

fn work_together(name: &'static str, cpus: u32) -> Result<()> {
    let mut program = boot(name, cpus)?;
    ensure!(online(&mut program)? == cpus, "not all processors are online");

    let pinned = PINNED.replace("LAST", &(cpus - 1).to_string());
    let all = format!("(({pinned}) & ({PATCHING}) && wait); cat /tmp/pinned*");
    let digests = program.command(&all, PATIENCE)?;
    let expected = format!("{SHA256}  -\n{MD5}  -\n").repeat(cpus as usize);
    ensure!(digests == expected, "wrong digests:\n{digests}");

    let here = Command::new("/bin/sh").args(["-c", LOOSE]).output().context("a shell")?;
    let digest = program.command(&format!("({LOOSE})"), PATIENCE)?;
    ensure!(digest.as_bytes() == here.stdout, "another digest: {digest}");

    // Time goes forward from one processor to the next.
    let times = format!(
        "for n in 1 2 3 4; do for i in $(seq 0 {}); do taskset -c $i cat /proc/uptime; done; done",
        cpus - 1
    );
    let times: Vec<f64> = program
        .command(&times, PATIENCE)?
        .lines()
        .map(|line| line.split(' ').next().unwrap_or_default().parse())
        .collect::<Result<_, _>>()?;
    ensure!(times.len() == 4 * cpus as usize && times.is_sorted(), "{times:?}");

    // Every processor has its timer, and was told things by others.
    for kind in ["LOC", "CAL"] {
        let counts = interrupts(&mut program, kind)?;
        ensure!(
            counts.len() == cpus as usize && counts.iter().all(|&n| n > 0),
            "{kind} {counts:?}"
        );
    }

    // Off by INIT, on by INIT and SIPI, twice.
    let switch = "/sys/devices/system/cpu/cpu1/online";
    for _ in 0..2 {
        program.command(&format!("echo 0 >{switch}"), PATIENCE)?;
        ensure!(online(&mut program)? == cpus - 1, "the second processor stays online");
        program.command(&format!("echo 1 >{switch}"), PATIENCE)?;
        ensure!(online(&mut program)? == cpus, "the second processor stays offline");
    }
    let sum = program.command("taskset -c 1 seq 1 40000 | taskset -c 1 md5sum", PATIENCE)?;
    ensure!(sum.starts_with(MD5), "{sum}");

    let trouble = program.command(&format!("dmesg | grep -E '{TROUBLE}'; true"), PATIENCE)?;
    ensure!(trouble.is_empty(), "{trouble}");
    program.power_off(PATIENCE)?;
    Ok(())
}

#[test]
fn boots_amd64_with_four_processors() -> Result<()> {
    work_together("debian", 4)
}

#[test]
fn boots_i386_with_two_processors() -> Result<()> {
    work_together("debian-i386", 2)
}

/// Kernels that don't use ACPI know processors and wiring by the MultiProcessor configuration table.
#[test]
fn without_acpi_processors_and_interrupts_are_found() -> Result<()> {
    for name in ["debian", "debian-i386"] {
        let guest = Debian::get(name, env!("CARGO_TARGET_TMPDIR"))?;
        let mut command = guest.run_elf("acpi=off pci=nomsi")?;
        command.args(["-c", "2"]);
        let mut program = guest.boot(command)?;
        ensure!(online(&mut program)? == 2, "{name}: not all processors are online");
        // The UART's line, and a PCI pin: the console's and the entropy device's.
        let kinds = program.command("grep -E 'ttyS0|virtio' /proc/interrupts", PATIENCE)?;
        let (isa, pci): (Vec<_>, _) = kinds.lines().partition(|line| line.contains("ttyS0"));
        let wired = |line: &&str| line.contains("IO-APIC");
        ensure!(isa.len() == 1 && !pci.is_empty(), "{name}: {kinds}");
        ensure!(isa.iter().chain(&pci).all(wired), "{name}: {kinds}");
        let seed = program.command("head -c 64 /dev/hwrng | wc -c", PATIENCE)?;
        ensure!(seed.trim() == "64", "{name}: {seed}");
    }
    Ok(())
}

#[test]
#[ignore = "nightly: slow"]
fn boots_amd64_with_two_processors() -> Result<()> {
    work_together("debian", 2)
}

#[test]
#[ignore = "nightly: slow"]
fn boots_i386_with_four_processors() -> Result<()> {
    work_together("debian-i386", 4)
}

#[test]
#[ignore = "nightly: slow"]
fn boots_amd64_with_sixteen_processors() -> Result<()> {
    work_together("debian", 16)
}

/// Programs that compute, talk through pipes, come and go.
const WORK: &str = "seq 1 400000 | sha256sum; seq 1 400000 | md5sum; \
    for n in $(seq 300); do true | cat; done";

/// How long the busiest of the machine's processors works on two jobs, that run where `on` says.
fn work_on(program: &mut Program, on: [u32; 2]) -> Result<f64> {
    let jobs = on.map(|cpu| format!("taskset -c {cpu} sh /tmp/work >/dev/null &"));
    let before = program.thread_times("vcpu-")?;
    program.command(&format!("({} {} wait)", jobs[0], jobs[1]), PATIENCE)?;
    let after = program.thread_times("vcpu-")?;
    ensure!(before.len() == 2 && after.len() == 2, "two threads: {before:?} {after:?}");
    let spent = before.iter().zip(&after).map(|(before, after)| (*after - *before).as_secs_f64());
    Ok(spent.fold(0.0, f64::max))
}

/// In processor time, as others may use the host's processors too.
#[test]
#[ignore = "nightly: slow"]
fn two_processors_take_at_most_six_tenths_of_the_time_of_one() -> Result<()> {
    let mut program = boot("debian", 2)?;
    program.command(&format!("echo '{WORK}' >/tmp/work"), PATIENCE)?;
    let mut shares = Vec::new();
    // The first round translates.
    for round in 0..4 {
        let one = work_on(&mut program, [0, 0])?;
        let two = work_on(&mut program, [0, 1])?;
        eprintln!("one processor {one:.2} s, two {two:.2} s: {:.3}", two / one);
        if round > 0 {
            shares.push(two / one);
        }
    }
    shares.sort_by(f64::total_cmp);
    let median = shares[shares.len() / 2];
    ensure!(median <= 0.6, "{shares:?}");
    program.power_off(PATIENCE)?;
    Ok(())
}
