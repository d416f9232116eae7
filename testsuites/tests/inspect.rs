//! Looking at a running machine: what is shown is true, and the guest doesn't notice.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use iced_x86::code_asm::{dword_ptr, eax, ebx, ecx, edx, esi, xmm0};
use xenolith_machine::inspect::{Held, Inspector, Space};
use xenolith_machine::{Config, End, Engine, Machine};
use xenolith_testsuites::multiboot::{self, TemporaryFile};

/// Where the guest keeps its count, its time and its mark.
const COUNT: u32 = 0x20_0000;
const TIME: u32 = 0x20_0008;
const MARK: u32 = 0x1234_5678;

/// Counts in ECX and then in memory, notes the time stamp counter, and again.
fn counting(engine: Engine, look: impl FnOnce(&Inspector) -> Result<()>) -> Result<()> {
    let image = multiboot::image(|a| {
        // CR4.OSFXSR, and SSE usable: CR0.EM off.
        a.mov(eax, 0x200)?;
        a.mov(iced_x86::code_asm::cr4, eax)?;
        a.mov(ebx, MARK)?;
        a.movd(xmm0, ebx)?;
        a.mov(esi, COUNT)?;
        a.xor(ecx, ecx)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(ecx)?;
        a.mov(dword_ptr(esi), ecx)?;
        a.rdtsc()?;
        a.mov(dword_ptr(esi + 8), eax)?;
        a.mov(dword_ptr(esi + 12), edx)?;
        a.jmp(again)?;
        Ok(())
    })?;
    let file = TemporaryFile::new(&image)?;
    let config =
        Config { memory_bytes: 64 << 20, kernel: file.0.clone(), engine, ..Config::default() };
    let machine = Machine::new(config, Box::new(std::io::sink()))?;
    let (inspector, handle) = (machine.inspector(), machine.handle());
    let running = thread::spawn(move || machine.run());
    let seen = look(&inspector);
    handle.quit();
    let end = running.join().expect("the machine's thread");
    seen?;
    ensure!(end == End::Quit, "{end:?}");
    Ok(())
}

/// Waits until the guest has begun to count.
fn hold_counting(inspector: &Inspector) -> Result<Held> {
    for _ in 0..6000 {
        // Before the run has begun there is nothing to hold.
        if let Ok(held) = inspector.hold()
            && number(&held, COUNT)? > 1000
        {
            return Ok(held);
        }
        thread::sleep(Duration::from_millis(10));
    }
    anyhow::bail!("the guest doesn't count")
}

/// Waits until it has counted further than to `count`.
fn hold_further(inspector: &Inspector, count: u64) -> Result<Held> {
    for _ in 0..6000 {
        let held = hold_counting(inspector)?;
        if register(&held, "ecx")? > count {
            return Ok(held);
        }
        drop(held);
        thread::sleep(Duration::from_millis(10));
    }
    anyhow::bail!("the guest doesn't go on")
}

fn number(held: &Held, at: u32) -> Result<u64> {
    let mut bytes = [0; 8];
    held.read(0, Space::Physical, at.into(), &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn register(held: &Held, name: &str) -> Result<u64> {
    held.register(0, name).context("a register")
}

fn true_state(inspector: &Inspector) -> Result<()> {
    let mut counts = Vec::new();
    for _ in 0..50 {
        let held = hold_further(inspector, counts.last().copied().unwrap_or(0))?;
        let (count, stored) = (register(&held, "ecx")?, number(&held, COUNT)? & 0xffff_ffff);
        let text = held.disassemble(0, Space::Linear, register(&held, "pc")?, 1);
        // ECX is ahead only before the store.
        let ahead = u64::from(text.contains("mov [esi],ecx"));
        ensure!(count == stored + ahead, "ECX {count}, memory {stored}, at {text}");
        let places =
            ["inc ecx", "mov [esi],ecx", "rdtsc", "mov [esi+8],eax", "mov [esi+0Ch],edx", "jmp"];
        ensure!(places.iter().any(|place| text.contains(place)), "not in the loop: {text}");
        ensure!(register(&held, "ebx")? == u64::from(MARK), "EBX");
        let registers = held.registers(0);
        ensure!(registers.contains("RBX=0000000012345678"), "{registers}");
        ensure!(
            registers.contains("MM00=00000000000000000000000012345678")
                || registers.contains(&format!("YMM00={:064x}", MARK)),
            "{registers}"
        );
        thread::sleep(Duration::from_millis(2));
        ensure!(number(&held, COUNT)? & 0xffff_ffff == stored, "it went on while it was held");
        counts.push(count);
    }
    Ok(())
}

/// Waits until the guest has noted another time than `old`; it is held from then on.
fn next_note(inspector: &Inspector, old: u64) -> Result<(u64, Held)> {
    for _ in 0..6000 {
        let held = hold_counting(inspector)?;
        let note = number(&held, TIME)?;
        if note != old {
            return Ok((note, held));
        }
        drop(held);
        thread::sleep(Duration::from_millis(10));
    }
    anyhow::bail!("the guest notes no other time")
}

/// Three notes: a second at least lies between the first two, a long hold between the others. How long the guest ran
/// beside is known the less exactly the busier the computer is.
fn time_stands_still(inspector: &Inspector) -> Result<()> {
    let (first, held) = next_note(inspector, 0)?;
    drop(held);
    let start = Instant::now();
    thread::sleep(Duration::from_secs(1));
    let ran_at_least = start.elapsed().as_secs_f64();
    let (old, held) = next_note(inspector, first)?;
    // What is noted from here on is noted later than this.
    let start = Instant::now();
    drop(held);
    let (second, held) = next_note(inspector, old)?;
    let hold = Instant::now();
    thread::sleep(Duration::from_secs(3));
    let stood = hold.elapsed();
    drop(held);
    let (third, _held) = next_note(inspector, second)?;
    let ran_at_most = (start.elapsed() - stood).as_secs_f64();
    let ticks_a_second = (second - first) as f64 / ran_at_least;
    let ticks = third - second;
    ensure!(
        (ticks as f64) < ticks_a_second * ran_at_most,
        "{ticks} ticks in {ran_at_most} s beside a hold of {stood:?}, at {ticks_a_second} a second"
    );
    Ok(())
}

#[test]
fn a_look_shows_the_state_between_two_instructions() -> Result<()> {
    counting(Engine::Bt, true_state)
}

#[test]
fn a_look_shows_the_state_between_two_instructions_of_the_interpreter() -> Result<()> {
    counting(Engine::Interp, true_state)
}

#[test]
fn time_stands_still_while_the_machine_is_held() -> Result<()> {
    counting(Engine::Bt, time_stands_still)
}

#[test]
fn time_stands_still_while_the_interpreter_is_held() -> Result<()> {
    counting(Engine::Interp, time_stands_still)
}
