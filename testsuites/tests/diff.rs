//! Lockstep finds a planted difference at its very instruction, and none where there is none.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use iced_x86::code_asm::{
    CodeAssembler, al, dword_ptr, dx, eax, ebx, ecx, edi, edx, esi, esp, ptr,
};
use xenolith_machine::Config;
use xenolith_machine::diff::{self, Against, DiffConfig, Difference, Outcome, Stop, Summary};
use xenolith_testsuites::multiboot::{TemporaryFile, image};

/// Iterations of the guest's loop, of about twenty instructions each.
const ROUNDS: u32 = 300;

/// Arithmetic with defined and undefined flags, memory, a stack, calls, a repeated string instruction,
/// time, a port, CPUID; then the debug-exit port.
fn guest(asm: &mut CodeAssembler) -> Result<()> {
    let mut round = asm.create_label();
    let mut function = asm.create_label();
    asm.mov(esp, 0x20_0000)?;
    asm.mov(esi, ROUNDS)?;
    asm.mov(ebx, 0x1234_5678)?;
    asm.set_label(&mut round)?;
    asm.imul_3(ebx, ebx, 1_103_515_245)?;
    asm.add(ebx, 12345)?;
    asm.mov(eax, ebx)?;
    asm.shr(eax, 7)?;
    asm.and(eax, 0xff)?;
    asm.mov(dword_ptr(0x30_0000) + eax * 4, ebx)?;
    asm.pushfd()?;
    asm.call(function)?;
    asm.popfd()?;
    asm.mov(edi, 0x30_1000)?;
    asm.mov(ecx, 100)?;
    asm.rep().stosd()?;
    asm.dec(esi)?;
    asm.jnz(round)?;
    asm.xor(eax, eax)?;
    asm.cpuid()?;
    asm.rdtsc()?;
    asm.mov(dx, 0x3fdi32)?;
    asm.in_(al, dx)?;
    end(asm)?;
    asm.set_label(&mut function)?;
    asm.xor(eax, ptr(esp))?;
    asm.adc(eax, 3)?;
    asm.mul(ebx)?;
    asm.xor(ebx, edx)?;
    asm.ret()?;
    Ok(())
}

/// Ends the run by the debug-exit port.
fn end(asm: &mut CodeAssembler) -> Result<()> {
    let mut hang = asm.create_label();
    asm.mov(edx, 0xf4)?;
    asm.mov(eax, 0x21)?;
    asm.out(dx, eax)?;
    asm.set_label(&mut hang)?;
    asm.jmp(hang)?;
    Ok(())
}

fn config(against: Against, file: &TemporaryFile) -> DiffConfig {
    let machine = Config {
        kernel: file.0.clone(),
        memory_bytes: 64 << 20,
        cpu: "x86-64-v2".to_owned(),
        ..Config::default()
    };
    DiffConfig::new(machine, against)
}

fn equal(config: DiffConfig) -> Result<Summary> {
    match diff::run(config)? {
        Outcome::Equal(summary) => Ok(summary),
        Outcome::Different(difference) => bail!("{difference}"),
    }
}

fn different(config: DiffConfig) -> Result<Box<Difference>> {
    match diff::run(config)? {
        Outcome::Equal(summary) => bail!("no difference: {summary:?}"),
        Outcome::Different(difference) => Ok(difference),
    }
}

fn has_qemu() -> bool {
    let there = std::process::Command::new("qemu-system-x86_64").arg("--version").output().is_ok();
    if !there {
        eprintln!("no qemu-system-x86_64: not compared with it");
    }
    there
}

#[test]
fn engines_agree_up_to_the_end_of_a_guest() -> Result<()> {
    let file = TemporaryFile::new(&image(guest)?)?;
    for against in [Against::Interp, Against::Bt] {
        let summary = equal(config(against, &file))?;
        assert_eq!(summary.stop, Stop::DebugExit(0x21), "{against:?}");
        assert!(summary.instructions > 5000, "{against:?}: {summary:?}");
    }
    Ok(())
}

#[test]
fn a_planted_flag_is_found_at_its_instruction() -> Result<()> {
    let file = TemporaryFile::new(&image(guest)?)?;
    let step = 3000;
    let mut config = config(Against::Interp, &file);
    config.tamper = Some(Box::new(move |at, state| {
        if at == step {
            // Interrupts, which no instruction leaves undefined.
            state.rflags ^= 1 << 18;
        }
    }));
    let difference = different(config)?;
    assert_eq!(difference.step, step);
    assert_eq!(difference.fields.len(), 1, "{difference}");
    assert_eq!(difference.fields[0].name, "RFLAGS");
    let text = difference.to_string();
    assert!(text.contains("the last blocks before"), "{text}");
    Ok(())
}

#[test]
fn a_wrong_register_of_a_block_is_traced_to_its_writer() -> Result<()> {
    let file = TemporaryFile::new(&image(guest)?)?;
    let mut config = config(Against::Bt, &file);
    let step = 500;
    config.tamper = Some(Box::new(move |at, state| {
        if at == step {
            state.gpr[3] ^= 0x100;
        }
    }));
    let difference = different(config)?;
    assert_eq!(difference.step, step);
    assert!(difference.fields.iter().any(|field| field.name == "RBX"), "{difference}");
    Ok(())
}

#[test]
fn qemu_agrees_and_shows_a_planted_difference() -> Result<()> {
    if !has_qemu() {
        return Ok(());
    }
    let file = TemporaryFile::new(&image(guest)?)?;
    let summary = equal(config(Against::Qemu, &file))?;
    assert_eq!(summary.stop, Stop::DebugExit(0x21));
    assert!(summary.injected >= 3, "CPUID, RDTSC, IN: {summary:?}");
    let step = 4321;
    let mut config = config(Against::Qemu, &file);
    config.tamper = Some(Box::new(move |at, state| {
        if at == step {
            state.gpr[3] ^= 1 << 20;
        }
    }));
    let difference = different(config)?;
    assert_eq!(difference.step, step, "{difference}");
    assert_eq!(difference.names, ["interp", "qemu"]);
    assert!(difference.fields.iter().any(|field| field.name == "RBX"), "{difference}");
    Ok(())
}

#[test]
fn qemu_agrees_instruction_by_instruction() -> Result<()> {
    if !has_qemu() {
        return Ok(());
    }
    let file = TemporaryFile::new(&image(guest)?)?;
    let mut config = config(Against::Qemu, &file);
    config.every_instruction = true;
    config.steps = Some(400);
    let summary = equal(config)?;
    assert_eq!((summary.stop, summary.steps), (Stop::Steps, 400));
    Ok(())
}

/// A loop is compared behind its end, not at each of its turns.
#[test]
fn qemu_runs_through_long_loops_at_its_own_speed() -> Result<()> {
    if !has_qemu() {
        return Ok(());
    }
    let file = TemporaryFile::new(&image(|asm| {
        let mut turn = asm.create_label();
        asm.mov(ecx, 500_000)?;
        asm.set_label(&mut turn)?;
        asm.imul_3(eax, ecx, 77)?;
        asm.add(ebx, eax)?;
        asm.dec(ecx)?;
        asm.jnz(turn)?;
        // Downwards, a repeated string instruction is stepped through element by element.
        asm.std()?;
        asm.mov(edi, 0x40_0000)?;
        asm.mov(ecx, 100_000)?;
        asm.rep().stosd()?;
        end(asm)
    })?)?;
    let start = Instant::now();
    let summary = equal(config(Against::Qemu, &file))?;
    assert_eq!(summary.stop, Stop::DebugExit(0x21));
    assert!(summary.steps > 2_000_000, "{summary:?}");
    assert_eq!(summary.repeated, 0, "{summary:?}");
    // A breakpoint a turn takes minutes.
    assert!(start.elapsed() < Duration::from_secs(60), "{summary:?}");
    Ok(())
}

/// Asking for the time often is followed, and so are flags that the manual leaves undefined where they are pushed,
/// kept in registers and pushed again: QEMU has others there.
#[test]
fn qemu_is_followed_through_time_and_pushed_flags() -> Result<()> {
    if !has_qemu() {
        return Ok(());
    }
    let file = TemporaryFile::new(&image(|asm| {
        let mut turn = asm.create_label();
        asm.mov(esp, 0x50_0000)?;
        asm.mov(ecx, 300)?;
        asm.set_label(&mut turn)?;
        // AF is undefined behind MUL, and AMD's processors and QEMU differ in others.
        for _ in 0..4 {
            asm.mov(eax, 0x8000_0000u32)?;
            asm.mul(ecx)?;
            asm.shl(eax, 5)?;
            asm.pushfd()?;
            asm.pop(ebx)?;
            asm.test(ebx, 0x200)?;
            asm.push(ebx)?;
        }
        asm.add(esp, 12)?;
        asm.popfd()?;
        asm.rdtsc()?;
        asm.dec(ecx)?;
        asm.jnz(turn)?;
        end(asm)
    })?)?;
    let summary = equal(config(Against::Qemu, &file))?;
    assert_eq!(summary.stop, Stop::DebugExit(0x21));
    assert_eq!(summary.repeated, 0, "{summary:?}");
    assert_eq!(summary.injected, 301, "{summary:?}");
    Ok(())
}

/// A loop that waits is compared often, but not at each of its turns; what comes behind it is compared.
#[test]
fn a_loop_that_waits_is_jumped_over_once_it_is_worn() -> Result<()> {
    const TURNS: u32 = 50_000;
    if !has_qemu() {
        return Ok(());
    }
    let file = TemporaryFile::new(&image(|asm| {
        let mut turn = asm.create_label();
        asm.mov(ecx, TURNS)?;
        asm.set_label(&mut turn)?;
        asm.rdtsc()?;
        asm.mov(dword_ptr(0x50_0000), ecx)?;
        asm.dec(ecx)?;
        asm.jnz(turn)?;
        asm.mov(ebx, dword_ptr(0x50_0000))?;
        asm.add(ebx, 5)?;
        asm.mov(edx, ebx)?;
        end(asm)
    })?)?;
    let steps = 1 + 4 * u64::from(TURNS);
    let summary = equal(config(Against::Qemu, &file))?;
    assert_eq!(summary.stop, Stop::DebugExit(0x21));
    assert_eq!(summary.repeated, 0, "{summary:?}");
    assert!(summary.jumped > steps * 9 / 10, "{summary:?}");
    // Before it is worn, and behind it.
    for (step, register, name) in [(4 * 300, 1, "RCX"), (steps + 2, 3, "RBX")] {
        let mut config = config(Against::Qemu, &file);
        config.tamper = Some(Box::new(move |at, state| {
            if at == step {
                state.gpr[register] ^= 1 << 4;
            }
        }));
        let difference = different(config)?;
        assert_eq!(difference.step, step, "{difference}");
        assert!(difference.fields.iter().any(|field| field.name == name), "{difference}");
    }
    let mut config = config(Against::Qemu, &file);
    config.every_instruction = true;
    config.steps = Some(4000);
    assert_eq!(equal(config)?.jumped, 0);
    Ok(())
}

/// Starting a timer asks for attention in the middle of a block.
#[test]
fn a_block_that_starts_a_timer_is_followed() -> Result<()> {
    const HPET_CONFIGURATION: u32 = 0xfed0_0010;
    const HPET_TIMER: u32 = 0xfed0_0100;
    const HPET_COMPARATOR: u32 = 0xfed0_0108;
    let file = TemporaryFile::new(&image(|asm| {
        asm.mov(dword_ptr(HPET_TIMER), 1 << 2 | 1 << 8)?;
        asm.mov(dword_ptr(HPET_COMPARATOR), 1_000_000)?;
        asm.mov(ebx, 3)?;
        asm.shr(ebx, 1)?;
        asm.mov(dword_ptr(HPET_CONFIGURATION), ebx)?;
        end(asm)
    })?)?;
    let summary = equal(config(Against::Bt, &file))?;
    assert_eq!(summary.stop, Stop::DebugExit(0x21));
    Ok(())
}
