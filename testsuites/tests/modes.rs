//! Code of every mode runs from the code cache: `xenolith_testsuites::modes`.

use xenolith_machine::{Engine, Making, Mmu};
use xenolith_testsuites::modes::{MODES, image, run};

/// Enough for what happens once to vanish in the share.
const ROUNDS: u32 = 2000;

/// Interpreted instructions in a thousand: of a mode's own, and of breakpoints that are met or code that is beside
/// data.
const SHARE_MAX: u64 = 1;
const MIXED_SHARE_MAX: u64 = 10;
/// Faults that windows can't help, each of which costs as much as hundreds of instructions.
const WINDOW_MISSES_MAX: u64 = 64;

fn is_translated(mode: &str, making: Making) {
    let image = image(mode, ROUNDS).expect("install-peers.sh was run");
    let reference = run(&image, Engine::Interp, Mmu::default(), false).expect("the guest runs");
    assert_eq!(reference.output.trim_end().len(), 4, "{:?}", reference.output);
    let translated = run(&image, Engine::Bt, making, true).expect("the guest runs");
    assert_eq!(translated.output, reference.output, "{mode}");
    let (all, interpreted) = translated.instructions;
    assert!(all > 700 * u64::from(ROUNDS), "{mode}: only {all} instructions");
    let share_max = match mode {
        "watched" | "leftover" => MIXED_SHARE_MAX,
        _ => SHARE_MAX,
    };
    assert!(
        interpreted * 1000 <= all * share_max,
        "{mode}: {interpreted} of {all} instructions were interpreted"
    );
    let misses = translated.window_misses;
    assert!(misses <= WINDOW_MISSES_MAX, "{mode}: {misses} faults that windows couldn't help");
}

#[test]
fn every_mode_is_translated() {
    for mode in MODES {
        is_translated(mode, Mmu::Soft.into());
    }
}

#[test]
fn every_mode_is_translated_without_bmi2() {
    for mode in MODES {
        is_translated(mode, Making { mmu: Mmu::Auto, bmi2: false });
    }
}

#[test]
fn every_mode_is_translated_with_shadow_windows() {
    for mode in MODES {
        is_translated(mode, Mmu::Shadow.into());
    }
}
