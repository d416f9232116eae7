//! Debian's kernels under the program itself: how runs end, what goes where, what idling costs.
//!
//! What a person sees and types on a terminal is in cli/tests/boots.rs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Result, bail, ensure};
use xenolith_testsuites::debian::{Debian, PATIENCE, QUICK};
use xenolith_testsuites::{Program, program};

fn debian(name: &'static str) -> Result<Debian> {
    Debian::get(name, env!("CARGO_TARGET_TMPDIR"))
}

/// A name for a file of this process's.
fn scratch(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("boot-{}-{name}", std::process::id()))
}

/// Kernel arguments that make the first program switch the machine off or on again at once.
fn and_then(busybox: &str) -> String {
    format!("rdinit=/bin/busybox -- {busybox}")
}

#[test]
fn boots_amd64_idles_reboots_and_exits_through_the_debug_port() -> Result<()> {
    let guest = debian("debian")?;
    let mut program = guest.boot(guest.run_elf("")?)?;
    ensure!(
        program.command("uname -m; echo $((6*7))", PATIENCE)? == "x86_64\n42\n",
        "another answer"
    );

    // Init has background jobs yet, which take the longer the busier the computer is.
    let (start, spell) = (Instant::now(), Duration::from_secs(3));
    let mut spells = Vec::new();
    while spells.last().is_none_or(|&used| used > spell / 20) {
        ensure!(spells.len() < 20, "an idle guest used {spells:?} of {spell:?} each");
        let before = program.cpu_time()?;
        thread::sleep(spell);
        spells.push(program.cpu_time()? - before);
    }

    // A reset is no end. The second life must be like the first.
    program.type_line("reboot");
    program.wait_for("reboot: Restarting system", PATIENCE)?;
    program.wait_for("Linux version", PATIENCE)?;
    program.wait_for(&guest.prompt(), PATIENCE)?;
    let uptime: f64 = program.command("cut -d' ' -f1 /proc/uptime", PATIENCE)?.trim().parse()?;
    ensure!(uptime < start.elapsed().as_secs_f64(), "time went on over the reset");

    // 244 is 0xf4.
    program.type_line("printf '\\025' | dd of=/dev/port bs=1 count=1 seek=244 conv=notrunc");
    let ended = program.end(PATIENCE)?;
    ensure!(ended.status.code() == Some(0x15 << 1 | 1), "{}", ended.status);
    ensure!(ended.stderr.is_empty(), "{}", ended.stderr);
    Ok(())
}

#[test]
fn boots_i386_to_a_triple_fault_with_a_dump() -> Result<()> {
    let guest = debian("debian-i386")?;
    // reboot=t: by an empty interrupt table.
    let mut program = guest.boot(guest.run_elf("reboot=t")?)?;
    ensure!(
        program.command("uname -m; echo $((6*7))", PATIENCE)? == "i686\n42\n",
        "another answer"
    );
    program.type_line("reboot -f");
    let ended = program.end(PATIENCE)?;
    ensure!(ended.status.code() == Some(3), "{}", ended.status);
    let dump = ended.stderr.to_lowercase();
    ensure!(dump.contains("triple fault"), "{dump}");
    for register in ["rip=", "rsp=", "cr3=", "idt="] {
        ensure!(dump.contains(register), "no {register} in the dump: {dump}");
    }
    // Standard output is the guest's alone.
    let output = String::from_utf8_lossy(&ended.stdout);
    ensure!(output.starts_with("[    0.000000] Linux version"), "{}", &output[..200]);
    ensure!(!output.to_lowercase().contains("triple fault"), "our words in the guest's output");
    Ok(())
}

#[test]
fn boots_into_a_file_and_a_reboot_ends_it_under_no_reboot() -> Result<()> {
    let guest = debian("debian")?;
    let file = scratch("serial");
    let mut command = guest.run_elf(&and_then("reboot -f"))?;
    command.arg("--no-reboot").args(["--serial", &format!("file:{}", file.display())]);
    let ended = Program::start(command)?.end(PATIENCE)?;
    let serial = fs::read_to_string(&file)?;
    fs::remove_file(&file)?;
    ensure!(ended.status.code() == Some(0), "{}: {}", ended.status, ended.stderr);
    ensure!(ended.stdout.is_empty() && ended.stderr.is_empty(), "something on the terminal");
    ensure!(serial.starts_with("[    0.000000] Linux version"), "{serial}");
    ensure!(serial.trim_end().ends_with("reboot: machine restart"), "{serial}");
    Ok(())
}

/// A command that runs the guest's bzImage with its kernel unpacked by `who`.
fn unpacked_by(guest: &Debian, who: &str, append: &str) -> Result<Command> {
    let mut command = program::xenolith()?;
    command.args(["run", "--net", "none", "--log", "info", "--kernel-unpack", who]);
    command.arg("--kernel").arg(&guest.vmlinuz).arg("--initrd").arg(&guest.initrd);
    command.args(["--append", &format!("console=ttyS0 {QUICK} {append}")]);
    Ok(command)
}

/// The address of the kernel's first instruction.
fn kernel_address(program: &mut Program) -> Result<u64> {
    let symbol = program.command("grep ' _text$' /proc/kallsyms", PATIENCE)?;
    Ok(u64::from_str_radix(symbol.split(' ').next().unwrap_or_default(), 16)?)
}

/// A kernel ends up alike whoever unpacks it: where it was linked for, or elsewhere at a multiple of `step`.
fn unpacked_both_ways(name: &'static str, linked_at: u64, step: u64) -> Result<()> {
    let guest = debian(name)?;
    for who in ["host", "guest"] {
        let mut program = guest.boot(unpacked_by(&guest, who, "nokaslr")?)?;
        let address = kernel_address(&mut program)?;
        ensure!(address == linked_at, "{who}: {address:#x}");
        let ended = program.power_off(PATIENCE)?;
        let told = ended.stderr.contains("not at a random address: nokaslr");
        ensure!(told == (who == "host"), "{}", ended.stderr);
    }
    let mut program = guest.boot(unpacked_by(&guest, "host", "")?)?;
    for life in 0..2 {
        let address = kernel_address(&mut program)?;
        ensure!(address >= linked_at && address % step == 0, "life {life}: {address:#x}");
        if life == 0 {
            program.type_line("reboot");
            program.wait_for("reboot: Restarting system", PATIENCE)?;
            program.wait_for(&guest.prompt(), PATIENCE)?;
        }
    }
    let ended = program.power_off(PATIENCE)?;
    ensure!(ended.stderr.is_empty(), "it was left to the guest, or not moved: {}", ended.stderr);
    Ok(())
}

#[test]
fn boots_amd64_unpacked_by_host_and_guest() -> Result<()> {
    unpacked_both_ways("debian", 0xffff_ffff_8100_0000, 2 << 20)
}

#[test]
fn boots_i386_unpacked_by_host_and_guest() -> Result<()> {
    unpacked_both_ways("debian-i386", 0xc100_0000, 16 << 20)
}

/// To where the kernel has set up its memory, on the interpreter.
#[test]
fn boots_unpacked_kernels_on_the_interpreter() -> Result<()> {
    for name in ["debian", "debian-i386"] {
        let mut command = unpacked_by(&debian(name)?, "host", "")?;
        command.args(["--engine", "interp"]);
        let mut program = Program::start(command)?;
        program.wait_for("Memory: ", PATIENCE)?;
    }
    Ok(())
}

#[test]
fn boots_no_longer_than_its_timeout() -> Result<()> {
    let guest = debian("debian-i386")?;
    // How much time the guest needs for its first line depends on what else the computer does.
    for limit in [1.5, 6.0, 24.0, 96.0] {
        let mut command = guest.run_elf("")?;
        command.args(["--timeout", &limit.to_string()]);
        let start = Instant::now();
        let ended = Program::start(command)?.end(PATIENCE)?;
        ensure!(start.elapsed().as_secs_f64() >= limit, "after {:?}", start.elapsed());
        ensure!(ended.status.code() == Some(124), "{}", ended.status);
        ensure!(ended.stderr.contains("--timeout"), "{}", ended.stderr);
        if ended.stdout.starts_with(b"[    0.000000] Linux version") {
            return Ok(());
        }
        ensure!(!ended.stdout.contains(&b'\n'), "another guest");
    }
    bail!("no guest")
}

/// Under counted time, from the first line to the last with all time stamps.
fn twice_the_same(name: &'static str) -> Result<()> {
    let guest = debian(name)?;
    let mut outputs = Vec::new();
    for _ in 0..2 {
        let mut command = guest.run_elf(&and_then("poweroff -f"))?;
        command.arg("--icount");
        let ended = Program::start(command)?.end(PATIENCE)?;
        ensure!(ended.status.code() == Some(0), "{}: {}", ended.status, ended.stderr);
        outputs.push(String::from_utf8_lossy(&ended.stdout).into_owned());
    }
    ensure!(outputs[0].contains("reboot: Power down"), "{}", outputs[0]);
    for (first, second) in outputs[0].lines().zip(outputs[1].lines()) {
        ensure!(first == second, "{first:?} is followed by {second:?} the next time");
    }
    ensure!(outputs[0] == outputs[1], "one output is longer");
    Ok(())
}

#[test]
#[ignore = "nightly: slow"]
fn boots_amd64_twice_the_same_under_icount() -> Result<()> {
    twice_the_same("debian")
}

#[test]
#[ignore = "nightly: slow"]
fn boots_i386_twice_the_same_under_icount() -> Result<()> {
    twice_the_same("debian-i386")
}
