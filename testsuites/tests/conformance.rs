//! The conformance corpus (`testsuites/asm`) on the host CPU, QEMU and our engines: all must agree
//! with the files.
//!
//! `XENOLITH_CASE=part/of/a/name` runs only the cases whose names contain it. `XENOLITH_BLESS=1` writes what the
//! host CPU gave, or QEMU where the host can't run the case, into the files instead of comparing.

use std::collections::BTreeMap;

use anyhow::Result;
use xenolith_machine::{Engine, Making, Mmu};
use xenolith_testsuites::asm::case::{Maker, VECTORS};
use xenolith_testsuites::asm::suite::{Suite, Tally};
use xenolith_testsuites::asm::{corpus, engine, qemu};

fn blessing() -> bool {
    std::env::var_os("XENOLITH_BLESS").is_some_and(|value| value == "1")
}

fn filter() -> Option<String> {
    std::env::var("XENOLITH_CASE").ok()
}

fn suite() -> Result<Suite> {
    Suite::load(&corpus(), filter().as_deref())
}

fn report(who: &str, tally: &Tally) {
    println!("{who}: {} cases agree", tally.agreed);
    for case in &tally.lacking {
        println!("{who}: not run: {case}");
    }
    for case in &tally.excepted {
        println!("{who}: differs as the file says: {case}");
    }
    for case in &tally.unneeded {
        println!("{who}: agrees, though the file says it differs: {case}");
    }
    let complaint = tally.complaint(who);
    assert!(complaint.is_empty(), "\n{complaint}");
}

fn engine_agrees(who: &str, engine: Engine, making: impl Into<Making>) -> Result<()> {
    let making = making.into();
    for maker in Maker::ALL {
        let boot = |image: &[u8]| engine::boot(image, engine, making, maker);
        let tally = suite()?.on_machine(maker, boot, |_| None, |_| None)?;
        report(&format!("{who}, {}", maker.vendor()), &tally);
    }
    Ok(())
}

#[test]
fn host_cpu_agrees() -> Result<()> {
    if !blessing() {
        report("host CPU", &suite()?.on_host()?);
    }
    Ok(())
}

#[test]
fn qemu_agrees() -> Result<()> {
    if !blessing() {
        let version = qemu::version()?;
        for maker in Maker::ALL {
            let mut suite = suite()?;
            if maker == Maker::Amd {
                // The others have been run.
                suite.keep(|case| case.maker == Some(maker));
            }
            let tally = suite.on_machine(
                maker,
                |image| qemu::boot(image, maker),
                |case| case.not_on_qemu.as_deref(),
                |case| case.qemu_differs.as_deref(),
            )?;
            report(&format!("{version}, {}", maker.vendor()), &tally);
        }
    }
    Ok(())
}

#[test]
fn interpreter_agrees() -> Result<()> {
    if !blessing() {
        engine_agrees("interpreter", Engine::Interp, Mmu::Auto)?;
    }
    Ok(())
}

#[test]
fn translator_agrees() -> Result<()> {
    if !blessing() {
        engine_agrees("translator", Engine::Bt, Mmu::Soft)?;
    }
    Ok(())
}

#[test]
fn translator_with_shadow_windows_agrees() -> Result<()> {
    if !blessing() {
        engine_agrees("translator with windows", Engine::Bt, Mmu::Shadow)?;
    }
    Ok(())
}

#[test]
fn translator_without_bmi2_agrees() -> Result<()> {
    if !blessing() {
        for mmu in [Mmu::Soft, Mmu::Shadow] {
            engine_agrees("translator without BMI2", Engine::Bt, Making { mmu, bmi2: false })?;
        }
    }
    Ok(())
}

#[test]
fn bless() -> Result<()> {
    if blessing() {
        let left = suite()?.bless()?;
        assert!(left.is_empty(), "not blessed:\n{}", left.join("\n"));
    }
    Ok(())
}

/// Issue 2 asks for 600 cases, faulting ones of every kind among them.
#[test]
fn corpus_is_complete() -> Result<()> {
    let suite = Suite::load(&corpus(), None)?;
    let mut by_map: BTreeMap<&str, usize> = BTreeMap::new();
    for case in suite.cases() {
        *by_map.entry(case.name.split('/').next().unwrap_or_default()).or_default() += 1;
    }
    println!("{by_map:?}");
    for (name, vector, _) in VECTORS {
        let raised =
            suite.cases().filter_map(|case| case.fault.as_ref()).any(|f| f.vector == vector);
        assert!(raised, "no case raises {name}");
    }
    let total: usize = by_map.values().sum();
    assert!(total >= 600, "only {total} cases");
    Ok(())
}
