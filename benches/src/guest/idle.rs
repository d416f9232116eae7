//! What a guest costs that does nothing: its share of a processor, and memory beyond its own.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::boots::{BOOTS, Booted, MEMORY_MIB};
use super::files::Files;
use super::process::{self, Usage};
use super::table::Table;
use super::target::Column;

/// The kernel has things to do yet when the first program starts.
const SETTLE: Duration = Duration::from_secs(3);
const SPAN: Duration = Duration::from_secs(5);

/// Boots each column's guest and leaves it alone for a while.
///
/// # Errors
/// One doesn't boot.
pub fn measure(files: &Files, columns: &[Column], table: &mut Table) -> Result<()> {
    for (at, column) in columns.iter().enumerate() {
        let Some(mut booted) = Booted::start(&BOOTS[0], files, column)? else { continue };
        booted.wait().map_err(|text| anyhow!("{}: {text}", column.name()))?;
        thread::sleep(SETTLE);
        let (start, before) = (Instant::now(), Usage::of(booted.pid()));
        thread::sleep(SPAN);
        let used = Usage::of(booted.pid()).since(&before);
        let share = used.ran.as_secs_f64() / start.elapsed().as_secs_f64();
        let memory = process::memory_beyond(booted.pid(), u64::from(MEMORY_MIB) << 20);
        table.idle(at, share, memory);
    }
    Ok(())
}
