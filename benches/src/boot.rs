//! Debian's amd64 kernel, from power-on to its first program and to a shell's prompt.
//!
//! Scheme: the guest `debian` as the command line's cache holds it (fetched by the program itself if it isn't there), its
//! console read in this process; marks are lines that the kernel and the shell print. It boots twice, with the kernel
//! unpacked by Xenolith and by itself in the guest. QEMU's emulator boots the same files for comparison, unpacked in the
//! guest.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xenolith_machine::{Config, End, Engine, Handle, Machine, Unpacker};

/// The contract of the reference engine.
const TO_INIT_MAX: Duration = Duration::from_secs(240);
const MARKS: [&str; 2] = ["Run /init as init process", "# "];
const COMMAND_LINE: &str = "console=ttyS0";

/// When each mark came, and after how many instructions.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<(Duration, u64)>>>);

/// The console's end: looks for marks, and ends the run after the last.
struct Watch {
    start: Instant,
    handle: Arc<Mutex<Option<Handle>>>,
    text: Vec<u8>,
    seen: Seen,
}

impl Write for Watch {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        let mut seen = self.seen.0.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(mark) = MARKS.get(seen.len()) {
            let Some(at) = self.text.windows(mark.len()).position(|part| part == mark.as_bytes())
            else {
                break;
            };
            self.text.drain(..at + mark.len());
            let retired = handle.as_ref().map_or(0, Handle::retired);
            seen.push((self.start.elapsed(), retired));
        }
        if seen.len() == MARKS.len()
            && let Some(handle) = &*handle
        {
            handle.quit();
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Kernel and initrd of the guest, from the cache.
fn cached() -> Option<(PathBuf, PathBuf)> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let folder = cache.join("xenolith/guests/debian");
    // The youngest, if recipes have changed.
    let initrd = std::fs::read_dir(&folder)
        .ok()?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("initrd-"))
        .max_by_key(|entry| entry.metadata().and_then(|meta| meta.modified()).ok())?;
    Some((folder.join("vmlinuz"), initrd.path()))
}

/// The same, fetched by the program if need be.
fn files() -> Result<(PathBuf, PathBuf)> {
    if let Some(files) = cached() {
        return Ok(files);
    }
    println!("boot: fetching the guest 'debian'");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // It fetches, starts the guest and ends at once.
    Command::new(cargo)
        .args(["run", "--quiet", "--release", "-p", "xenolith", "--", "run", "debian"])
        .args(["--serial", "none", "--timeout", "0.1"])
        .status()
        .context("cannot run xenolith to fetch the guest")?;
    cached().context("the guest 'debian' is not in the cache; 'xenolith run debian' fetches it")
}

/// Boots the guest. False if the contract isn't met.
///
/// # Errors
/// There is no guest, or it doesn't boot.
pub fn run() -> Result<bool> {
    let (kernel, initrd) = files()?;
    println!("boot: {} with 512 MiB, one processor", kernel.display());
    let mut kept = true;
    for (unpacker, who) in [(Unpacker::Host, "Xenolith"), (Unpacker::Guest, "the guest")] {
        println!(" unpacked by {who}");
        kept &= boot(&kernel, &initrd, unpacker)?;
    }
    if let Some(times) = qemu(&kernel, &initrd) {
        println!(" unpacked by the guest in QEMU's TCG");
        for (mark, time) in MARKS.iter().zip(times) {
            println!("  {:6.1} s  to {mark:?}", time.as_secs_f64());
        }
    }
    Ok(kept)
}

/// One boot.
fn boot(kernel: &Path, initrd: &Path, unpacker: Unpacker) -> Result<bool> {
    let seen = Seen::default();
    let handle = Arc::new(Mutex::new(None));
    let start = Instant::now();
    let watch = Watch { start, handle: Arc::clone(&handle), text: Vec::new(), seen: seen.clone() };
    let config = Config {
        engine: Engine::Interp,
        kernel: kernel.to_owned(),
        unpacker,
        initrd: Some(initrd.to_owned()),
        command_line: COMMAND_LINE.to_owned(),
        timeout: Some(2 * TO_INIT_MAX),
        ..Config::default()
    };
    let machine = Machine::new(config, Box::new(watch))?;
    let counter = machine.handle();
    *handle.lock().unwrap_or_else(PoisonError::into_inner) = Some(counter.clone());
    let end = machine.run();
    let marks = seen.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for (mark, (time, retired)) in MARKS.iter().zip(&marks) {
        println!(
            "  {:6.1} s  {:7.0} million instructions  to {mark:?}",
            time.as_secs_f64(),
            *retired as f64 / 1e6
        );
    }
    println!("  {:.0} million instructions in all", counter.retired() as f64 / 1e6);
    ensure!(end == End::Quit, "the guest ended with {end:?}");
    let to_init = marks.first().map_or(Duration::MAX, |mark| mark.0);
    if to_init > TO_INIT_MAX {
        println!("  init must be reached in {TO_INIT_MAX:?}");
    }
    Ok(to_init <= TO_INIT_MAX)
}

/// Times of the marks under QEMU's emulator, if it is installed and gets there.
fn qemu(kernel: &Path, initrd: &Path) -> Option<Vec<Duration>> {
    let start = Instant::now();
    let mut child = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg", "-cpu", "Haswell", "-m", "512", "-display", "none", "-nodefaults"])
        .args(["-serial", "stdio", "-append", COMMAND_LINE, "-kernel"])
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut output = child.stdout.take()?;
    let mut times = Vec::new();
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while times.len() < MARKS.len() && start.elapsed() < TO_INIT_MAX {
        let count = output.read(&mut buffer).unwrap_or(0);
        if count == 0 {
            break;
        }
        text.extend_from_slice(&buffer[..count]);
        while let Some(mark) = MARKS.get(times.len()) {
            let Some(at) = text.windows(mark.len()).position(|part| part == mark.as_bytes()) else {
                break;
            };
            text.drain(..at + mark.len());
            times.push(start.elapsed());
        }
    }
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
    (!times.is_empty()).then_some(times)
}
