//! Guests that mean harm: none may panic the program, crash it, hang it or make it grow.
//!
//! The first tests are one for each sentence of the promise; the last runs the fuzzer for a few seconds. Longer:
//! `cargo run --release -p xenolith-testsuites --bin fuzz`.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use iced_x86::code_asm::{CodeAssembler, al, dword_ptr, dx, eax, ecx, edi, edx, esp};
use xenolith_machine::{Config, End, Engine};
use xenolith_testsuites::Guest;
use xenolith_testsuites::fuzz::{HostileGuest, Stage};
use xenolith_testsuites::multiboot::{self, TemporaryFile};

const LIMIT: Duration = Duration::from_secs(300);

/// Runs code in 32-bit protected mode, without an interrupt table: the first fault is a triple fault.
fn run(
    change: impl FnOnce(&mut Config),
    code: impl FnOnce(&mut CodeAssembler) -> Result<()>,
) -> Result<End> {
    let file = TemporaryFile::new(&multiboot::image(code)?)?;
    let mut config = Config {
        memory_bytes: 64 << 20,
        kernel: file.0.clone(),
        icount: true,
        guest_timeout: Some(Duration::from_millis(5)),
        ..Config::default()
    };
    change(&mut config);
    Guest::boot(config)?.end(LIMIT)
}

fn is_triple_fault(end: &End) -> bool {
    matches!(end, End::TripleFault { .. })
}

#[test]
fn garbage_is_executed_until_it_faults_or_time_is_up() -> Result<()> {
    let mut ends = [0; 2];
    for seed in 0u64..60 {
        let end = run(
            |_| (),
            |a| {
                let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                let garbage: Vec<u8> = (0..3000)
                    .map(|_| {
                        x ^= x << 13;
                        x ^= x >> 7;
                        x ^= x << 17;
                        (x >> 32) as u8
                    })
                    .collect();
                a.mov(esp, 0x20_0000)?;
                a.db(&garbage)?;
                Ok(())
            },
        )?;
        ensure!(!matches!(end, End::Failed { .. } | End::Quit), "{end:?}");
        ends[usize::from(is_triple_fault(&end))] += 1;
    }
    ensure!(ends[1] > 20, "most garbage faults: {ends:?}");
    Ok(())
}

#[test]
fn jumps_into_holes_end_in_the_guest() -> Result<()> {
    // Above RAM, the PCI hole, unclaimed and claimed device memory, where a ROM would be, the end of the
    // address space. All read as ones or as registers do, which is no code that goes far.
    for target in
        [0x1000_0000u32, 0xd000_0000, 0xfea0_0000, 0xfee0_0000, 0xfec0_0000, 0xf_fff0, 0xffff_fff0]
    {
        let end = run(
            |_| (),
            |a| {
                a.mov(eax, target)?;
                a.jmp(eax)?;
                Ok(())
            },
        )?;
        ensure!(is_triple_fault(&end) || end == End::Timeout, "{target:#x}: {end:?}");
        // The stack is there too.
        let end = run(
            |_| (),
            |a| {
                a.mov(esp, target)?;
                a.push(0x1234_5678)?;
                a.pop(eax)?;
                a.call(eax)?;
                Ok(())
            },
        )?;
        ensure!(is_triple_fault(&end) || end == End::Timeout, "{target:#x} as stack: {end:?}");
    }
    Ok(())
}

#[test]
fn triple_faults_again_and_again_are_the_guests_end_each_time() -> Result<()> {
    for _ in 0..100 {
        let end = run(
            |_| (),
            |a| {
                a.ud2()?;
                Ok(())
            },
        )?;
        ensure!(is_triple_fault(&end), "{end:?}");
    }
    Ok(())
}

#[test]
fn a_guest_that_resets_for_ever_runs_for_ever_and_leaves_nothing_behind() -> Result<()> {
    let threads = || std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    let before = threads();
    let start = Instant::now();
    let end = run(
        |config| {
            config.timeout = Some(Duration::from_secs(2));
            config.guest_timeout = None;
        },
        |a| {
            // Every page touched, so that a leak of one board would show.
            a.mov(edi, 0x20_0000)?;
            a.mov(ecx, 0x10_0000)?;
            a.rep().stosd()?;
            a.mov(dx, 0xcf9)?;
            a.mov(al, 6)?;
            a.out(dx, al)?;
            a.hlt()?;
            Ok(())
        },
    )?;
    ensure!(end == End::Timeout, "{end:?}");
    ensure!(start.elapsed() >= Duration::from_secs(2), "it ended early");
    // Other tests of this binary have threads too, but not hundreds.
    ensure!(threads() < before + 100, "threads were {before} and are {}", threads());
    Ok(())
}

/// Random writes and reads over the ports and the devices' memory.
#[test]
fn random_device_registers_are_written_without_harm() -> Result<()> {
    let mut to_the_end = 0;
    for seed in 1u32..40 {
        let end = run(
            |config| {
                config.guest_timeout = Some(Duration::from_millis(2));
                config.no_reboot = true;
            },
            |a| {
                let mut again = a.create_label();
                let mut skip = a.create_label();
                let mut x = seed;
                a.mov(ecx, seed.wrapping_mul(0x9e37_79b9))?;
                a.set_label(&mut again)?;
                for base in [0xfee0_0000u32, 0xfec0_0000, 0xfed0_0000, 0xfe00_0000, 0xff00_0000] {
                    x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    // ecx = ecx * 1664525 + 1013904223: the value, and the offset.
                    a.imul_3(ecx, ecx, 1_664_525)?;
                    a.add(ecx, 1_013_904_223)?;
                    a.mov(edi, ecx)?;
                    a.shr(edi, 20)?;
                    a.mov(dword_ptr(edi + base), ecx)?;
                    a.mov(eax, dword_ptr(edi + base))?;
                    a.mov(edi, ecx)?;
                    a.shr(edi, 16)?;
                    // Not the ports that end the run, nor those that take its memory away: the last
                    // byte of a wide access counts too.
                    for port in [0xf4, 0x604, 0xcf8, 0x64, 0x92] {
                        a.lea(eax, edi + 3)?;
                        a.and(eax, !7)?;
                        a.cmp(eax, port & !7)?;
                        a.je(skip)?;
                        a.mov(eax, edi)?;
                        a.and(eax, !7)?;
                        a.cmp(eax, port & !7)?;
                        a.je(skip)?;
                    }
                    a.mov(eax, ecx)?;
                    a.mov(edx, edi)?;
                    a.out(dx, eax)?;
                    a.in_(al, dx)?;
                }
                a.set_label(&mut skip)?;
                a.jmp(again)?;
                Ok(())
            },
        )?;
        // One may send itself an NMI, for which there is no handler, or reset the machine's registers.
        ensure!(!matches!(end, End::Failed { .. } | End::Quit), "seed {seed}: {end:?}");
        to_the_end += u32::from(end == End::Timeout);
    }
    ensure!(to_the_end > 20, "only {to_the_end} of 39 ran to the end");
    Ok(())
}

#[test]
fn counted_hostile_guests_do_the_same_every_time() -> Result<()> {
    let mut stage = Stage::new(Engine::Interp)?;
    let mut ran = 0;
    for seed in 5000.. {
        let guest = HostileGuest::from_seed(seed)?;
        if guest.repeatable {
            stage.run_twice(&guest).map_err(|defect| anyhow::anyhow!("{guest:?}: {defect}"))?;
            ran += 1;
        }
        if ran == 30 {
            break;
        }
    }
    Ok(())
}

#[test]
fn the_fuzzer_finds_nothing_in_ten_seconds() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("xenolith-fuzz-{}", std::process::id()));
    let output = Command::new(env!("CARGO_BIN_EXE_fuzz"))
        .args(["--seconds", "10", "--out"])
        .arg(&folder)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{text}\n{errors}");
    ensure!(text.contains("findings: 0"), "{text}\n{errors}");
    let guests = text.lines().find_map(|line| line.split_once(" guests,")?.0.parse::<u64>().ok());
    ensure!(guests > Some(5), "{text}\n{errors}");
    Ok(())
}

#[test]
fn the_fuzzer_refuses_nonsense_in_one_line() -> Result<()> {
    let output =
        Command::new(env!("CARGO_BIN_EXE_fuzz")).args(["--replay", "/dev/null"]).output()?;
    ensure!(output.status.code() == Some(1));
    ensure!(String::from_utf8_lossy(&output.stderr).contains("/dev/null"));
    Ok(())
}
