//! KVM's clock: kernels find it, and it goes as the host's does, on every processor.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use xenolith_testsuites::debian::{Debian, PATIENCE, QUICK};
use xenolith_testsuites::program::Program;

const SOURCES: &str = "/sys/devices/system/clocksource/clocksource0";
/// How long the two clocks are compared.
const COMPARED: Duration = Duration::from_secs(2);
/// Without the battery's clock the kernel has the date from KVM's alone.
const NO_BATTERY: &str = "initcall_blacklist=cmos_init";
/// What the guest's date may be ahead after some seconds, and behind: from when it has asked for the date to its first
/// tick the kernel counts nothing, which takes a busy host a second.
const AHEAD_S: f64 = 0.001;
const BEHIND_S: f64 = 10.0;

fn boot(name: &'static str, cpu: &str, cpus: u32, append: &str) -> Result<Program> {
    let guest = Debian::get(name, env!("CARGO_TARGET_TMPDIR"))?;
    let mut command = guest.run(&format!("{QUICK} {append}"))?;
    command.args(["--cpu", cpu, "-c", &cpus.to_string()]);
    guest.boot(command)
}

fn unix_s() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}

/// The guest's date, in seconds since 1970.
fn guest_unix_s(program: &mut Program) -> Result<f64> {
    let text = program.command("adjtimex", PATIENCE)?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
        line.map(str::trim).with_context(|| format!("no {name} in {text}"))
    };
    Ok(field("time.tv_sec:")?.parse::<f64>()? + field("time.tv_usec:")?.parse::<f64>()? / 1e6)
}

/// The guest's nanoseconds since its start, asked on one of its processors.
fn guest_ns(program: &mut Program, cpu: u32) -> Result<u64> {
    let line =
        format!("taskset -c {cpu} sed -n 's/^now at \\([0-9]*\\) nsecs/\\1/p' /proc/timer_list");
    let text = program.command(&line, PATIENCE)?;
    text.trim().parse().with_context(|| format!("no time: {text}"))
}

fn goes_as_the_hosts(name: &'static str, cpus: u32) -> Result<()> {
    let mut program = boot(name, "host", cpus, &format!("clocksource=kvm-clock {NO_BATTERY}"))?;
    let current = program.command(&format!("cat {SOURCES}/current_clocksource"), PATIENCE)?;
    ensure!(current == "kvm-clock\n", "{name}: {current}");

    // Nothing was measured.
    let log = program.command("dmesg", PATIENCE)?;
    let measured = log.lines().find(|line| line.contains("alibrat") && !line.contains("skipped"));
    ensure!(measured.is_none(), "{name}: {measured:?}");

    let before_s = unix_s()?;
    let date_s = guest_unix_s(&mut program)?;
    let after_s = unix_s()?;
    let good = before_s - BEHIND_S..after_s + AHEAD_S;
    println!("{name}: host's date {good:?}, guest's {date_s}");
    ensure!(good.contains(&date_s), "host's date {good:?}, guest's {date_s}");

    // Each reading of the guest's clock lies between two of the host's.
    let mut readings = Vec::new();
    for cpu in [0, cpus - 1] {
        let before = Instant::now();
        let ns = guest_ns(&mut program, cpu)?;
        readings.push((before, Duration::from_nanos(ns), Instant::now()));
        thread::sleep(COMPARED);
    }
    let [first, last] = [readings[0], readings[1]];
    let (least, most) = (last.0 - first.2, last.2 - first.0);
    let passed = last.1.saturating_sub(first.1);
    println!("{name}: host {least:?} to {most:?}, guest {passed:?}");
    ensure!(least <= passed && passed <= most, "host {least:?} to {most:?}, guest {passed:?}");

    // Time goes forward from one processor to the next.
    let times = format!(
        "for n in $(seq 20); do for i in $(seq 0 {}); do taskset -c $i grep '^now at' /proc/timer_list; done; done",
        cpus - 1
    );
    let times: Vec<u64> = program
        .command(&times, PATIENCE)?
        .lines()
        .map(|line| line.split(' ').nth(2).unwrap_or_default().parse())
        .collect::<Result<_, _>>()?;
    ensure!(times.len() == 20 * cpus as usize && times.is_sorted(), "{name}: {times:?}");
    program.power_off(PATIENCE)?;
    Ok(())
}

#[test]
fn goes_as_the_hosts_on_amd64() -> Result<()> {
    goes_as_the_hosts("debian", 1)
}

#[test]
fn goes_as_the_hosts_on_amd64_with_two_processors() -> Result<()> {
    goes_as_the_hosts("debian", 2)
}

#[test]
fn goes_as_the_hosts_on_i386_with_two_processors() -> Result<()> {
    goes_as_the_hosts("debian-i386", 2)
}

/// What the guest has of it as the processor's features are.
#[test]
fn is_not_there_when_switched_off() -> Result<()> {
    for (cpu, hypervisor, clock) in
        [("host", true, true), ("host,-kvmclock", true, false), ("host,-hypervisor", false, false)]
    {
        let mut program = boot("debian", cpu, 1, "")?;
        let sources = program.command(&format!("cat {SOURCES}/available_clocksource"), PATIENCE)?;
        let log = program.command("dmesg", PATIENCE)?;
        let found = (log.contains("Hypervisor detected: KVM"), sources.contains("kvm-clock"));
        ensure!(found == (hypervisor, clock), "{cpu}: {found:?} {sources}");
    }
    Ok(())
}
