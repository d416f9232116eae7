//! How fast the firmware reads a disk: `guests/int13.asm`.
//!
//! Problem: firmware and boot loaders wait for each request by looking at the controller again and again, so a
//! disk that is fast for an operating system may be slow for them. Scheme: a boot sector reads the same 8 MiB several
//! times and tells by the ACPI timer how long that took; what it read is added up and compared. Needs NASM and SeaBIOS.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xenolith_devices::disk::DiskOptions;
use xenolith_machine::{Attachment, Config, DiskConfig, End, Machine};

use crate::asm::engine::Console;
use crate::disk::{self, SECTOR, Scratch};
use crate::peer;
use crate::screen::SEABIOS;

/// What the guest reads each time, from the second sector on.
pub const BYTES: usize = 8 << 20;
const TICKS_PER_S: f64 = 3_579_545.0;
const PATIENCE: Duration = Duration::from_secs(300);

/// A disk for the guest, and what it must find.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    sum: u32,
    _files: Scratch,
}

impl Disk {
    /// Makes the disk, of numbers that don't repeat.
    ///
    /// # Errors
    /// No NASM.
    pub fn new() -> Result<Self> {
        let files = Scratch::new("int13")?;
        let bytes = SECTOR + BYTES as u64;
        let path = disk::boot_sector("int13.asm", bytes, files.path())?;
        let words = (0..BYTES as u32 / 4).map(|n| n.wrapping_mul(0x9e37_79b1));
        let sum = words.clone().fold(0, u32::wrapping_add);
        let data: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        File::options().write(true).open(&path)?.write_all_at(&data, SECTOR)?;
        Ok(Self { path, sum, _files: files })
    }

    fn config(&self, attachment: Attachment) -> Config {
        let options = DiskOptions { snapshot: true, ..DiskOptions::default() };
        Config {
            firmware: Some(SEABIOS.into()),
            disks: vec![DiskConfig { path: self.path.clone(), options, attachment }],
            timeout: Some(PATIENCE),
            no_reboot: true,
            ..Config::default()
        }
    }

    /// Seconds of each time but the first, in a machine of ours.
    ///
    /// # Errors
    /// The guest read something else, or the machine can't be built or ends otherwise.
    pub fn here(&self, attachment: Attachment) -> Result<Vec<f64>> {
        let console = Console::default();
        let config = self.config(attachment);
        let end = Machine::new(config, Box::new(console.clone()))?.run();
        let output = console.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&output);
        ensure!(matches!(end, End::DebugExit(0)), "{end:?}: {text}");
        self.times(&text)
    }

    /// The same on QEMU's emulator.
    ///
    /// # Errors
    /// There is no QEMU; and the same.
    pub fn there(&self, attachment: Attachment) -> Result<Vec<f64>> {
        let output = peer::command(&self.config(attachment))
            .args(["-display", "none", "-serial", "stdio", "-monitor", "none", "-snapshot"])
            .stdin(Stdio::null())
            .output()
            .context("no qemu-system-x86_64")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.code() == Some(1), "QEMU ended with {}: {text}", output.status);
        self.times(&text)
    }

    /// What the guest printed, behind what the firmware did.
    fn times(&self, text: &str) -> Result<Vec<f64>> {
        let numbers = text.lines().map(str::trim).filter(|line| line.len() == 8);
        let mut numbers = numbers.filter_map(|line| u32::from_str_radix(line, 16).ok());
        let sum = numbers.next().with_context(|| format!("the guest's sum: {text}"))?;
        ensure!(sum == self.sum, "read {sum:#x} instead of {:#x}", self.sum);
        let times: Vec<f64> = numbers.map(|ticks| f64::from(ticks) / TICKS_PER_S).collect();
        ensure!(!times.is_empty(), "no times: {text}");
        Ok(times)
    }
}
