//! Whole guests as Debian ships them, seen on the screen.

use anyhow::{Result, ensure};
use xenolith_machine::End;
use xenolith_testsuites::screen::{Seat, Watched};
use xenolith_testsuites::unmodified::{PATIENCE, memtest, named, number};

const SCRATCH: &str = env!("CARGO_TARGET_TMPDIR");

fn memtest_starts(file: &str) -> Result<()> {
    let watched = Watched::start(memtest(file, SCRATCH)?, Box::new(std::io::sink()))?;
    watched.wait_for("Memtest86+", PATIENCE)?;
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
    memtest_starts("memtest86+x64.bin")
}

#[test]
fn memtest86_for_32_bits_tests_memory() -> Result<()> {
    memtest_starts("memtest86+ia32.bin")
}

fn works(name: &str) -> Result<()> {
    let guest = named(name)?;
    let (config, _files) = (guest.config)(SCRATCH)?;
    let watched = Watched::start(config, Box::new(std::io::sink()))?;
    (guest.steps)(&watched)?;
    ensure!(watched.quit() == Some(End::Quit));
    Ok(())
}

#[test]
fn boots_the_installer_to_its_questions() -> Result<()> {
    works("installer-amd64")
}

#[test]
fn boots_the_installer_for_32_bits_to_its_questions() -> Result<()> {
    works("installer-i386")
}

#[test]
fn boots_the_installer_to_its_questions_in_pictures() -> Result<()> {
    works("pictures-amd64")
}

#[test]
#[ignore = "nightly: slow"]
fn boots_the_installer_over_the_network() -> Result<()> {
    works("netboot-amd64")
}

#[test]
#[ignore = "nightly: slow"]
fn boots_the_installer_for_32_bits_over_the_network() -> Result<()> {
    works("netboot-i386")
}

#[test]
#[ignore = "nightly: slow"]
fn memtest86_makes_a_full_pass() -> Result<()> {
    works("memtest86+x64")
}

#[test]
#[ignore = "nightly: slow"]
fn memtest86_for_32_bits_makes_a_full_pass() -> Result<()> {
    works("memtest86+ia32")
}
