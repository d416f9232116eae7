//! Our own engines behind the same image as QEMU.
//!
//! Problem: an engine must be tested as users run it, loader and serial port included. Scheme: a machine of
//! `xenolith-machine` boots the harness image; the serial bytes are collected in memory. Invariant: a
//! case that hangs costs [`PATIENCE`], then the machine is given up. The machine has its own threads.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use xenolith_machine::{Config, End, Engine, Machine, Making};

use super::assemble::Scratch;
use super::case::Maker;

/// Longest run of one boot; the whole corpus takes a few seconds.
const PATIENCE: Duration = Duration::from_secs(300);

/// A serial port's other end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Console(pub(crate) Arc<Mutex<Vec<u8>>>);

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Boots an image on a processor of that maker; returns what it wrote to the serial port, and how it stopped.
///
/// # Errors
/// The machine can't be built.
pub fn boot(
    image: &[u8],
    engine: Engine,
    making: impl Into<Making>,
    maker: Maker,
) -> Result<(String, String)> {
    let scratch = Scratch::new("engine")?;
    let kernel = scratch.path().join("image");
    std::fs::write(&kernel, image)?;
    let config = Config {
        memory_bytes: 64 << 20,
        vcpus: 2,
        engine,
        making: making.into(),
        cpu: format!("host,vendor={}", maker.vendor()),
        kernel,
        timeout: Some(PATIENCE),
        no_reboot: true,
        ..Config::default()
    };
    let console = Console::default();
    let end = Machine::new(config, Box::new(console.clone()))?.run();
    let stop = match end {
        End::TripleFault { dump } => format!("triple fault\n{dump}"),
        End::Failed { message } => format!("a defect of ours: {message}"),
        other => format!("{other:?}"),
    };
    let output = console.0.lock().unwrap_or_else(PoisonError::into_inner);
    Ok((String::from_utf8_lossy(&output).into_owned(), stop))
}
