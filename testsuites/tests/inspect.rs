//! Looking at a running machine: what is shown is true, and the guest doesn't notice.

use std::thread;
use std::time::Duration;

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

fn time_stands_still(inspector: &Inspector) -> Result<()> {
    let first = number(&hold_counting(inspector)?, TIME)?;
    thread::sleep(Duration::from_millis(300));
    let held = hold_counting(inspector)?;
    let second = number(&held, TIME)?;
    thread::sleep(Duration::from_secs(3));
    drop(held);
    // Let it note the time again.
    thread::sleep(Duration::from_millis(50));
    let third = number(&hold_counting(inspector)?, TIME)?;
    let (ran, held) = (second - first, third - second);
    ensure!(third > second && held < 5 * ran, "{ran} ticks in 0.3 s, {held} over a hold of 3 s");
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
