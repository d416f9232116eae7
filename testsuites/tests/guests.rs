//! Whole guests as Debian ships them, seen on the screen.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xenolith_machine::{Config, End, Engine};
use xenolith_testsuites::packages;
use xenolith_testsuites::screen::Watched;

const PATIENCE: Duration = Duration::from_secs(300);
const SCRATCH: &str = env!("CARGO_TARGET_TMPDIR");

/// memtest86+ by its Linux boot protocol.
fn memtest(file: &str, engine: Engine) -> Result<Watched> {
    let kernel = packages::get("memtest86+", SCRATCH)?.join("boot").join(file);
    let config = Config { engine, kernel, memory_bytes: 64 << 20, ..Config::default() };
    let watched = Watched::start(config, Box::new(std::io::sink()))?;
    watched.wait_for("Memtest86+", PATIENCE)?;
    Ok(watched)
}

/// What its screen says behind a label, up to the next blanks.
fn number(screen: &str, label: &str) -> Result<u64> {
    let (_, rest) = screen.split_once(label).with_context(|| format!("no {label:?}:\n{screen}"))?;
    let word = rest.split_whitespace().next().unwrap_or_default();
    word.parse().with_context(|| format!("{label:?} {word:?}:\n{screen}"))
}

fn memtest_starts(file: &str, engine: Engine) -> Result<()> {
    let watched = memtest(file, engine)?;
    watched.wait_for("Memory  :   64MB", PATIENCE)?;
    // The one before has found nothing.
    let screen = watched.wait_for("Test #1", PATIENCE)?;
    ensure!(number(&screen, "Errors:")? == 0, "{screen}");
    ensure!(screen.contains("<ESC> Exit"), "{screen}");
    ensure!(watched.quit() == Some(End::Quit));
    Ok(())
}

#[test]
fn memtest86_tests_memory() -> Result<()> {
    memtest_starts("memtest86+x64.bin", Engine::Bt)
}

#[test]
fn memtest86_for_32_bits_tests_memory() -> Result<()> {
    memtest_starts("memtest86+ia32.bin", Engine::Bt)
}
