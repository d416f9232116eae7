//! Boots: from the start of the process to the first line of the guest's first program.
//!
//! Scheme: Debian's bzImages with an initramfs that holds nothing but a program that says so and waits
//! for ever: so the same guests serve to measure what idling costs. Each boots twice: as usual, where Xenolith unpacks
//! the kernel itself, and with the kernel's own unpacker in the guest, which QEMU runs in both rows.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::files::Files;
use super::process::Usage;
use super::table::Row;
use super::target::Column;

/// Printed by `benches/guest/hello.c`.
const MARK: &str = "init: the guest is up";
const COMMAND_LINE: &str = "console=ttyS0";
/// Of the guests that are booted here.
pub const MEMORY_MIB: u32 = 512;
const BOOT_MAX: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub struct Boot {
    pub name: &'static str,
    pub group: &'static str,
    pub guest: &'static str,
    pub bits: u32,
    /// Xenolith leaves the unpacking to the guest.
    pub by_guest: bool,
}

const AMD64: Boot =
    Boot { name: "boot-amd64", group: "boot", guest: "debian", bits: 64, by_guest: false };
const I386: Boot = Boot { name: "boot-i386", guest: "debian-i386", bits: 32, ..AMD64 };
const BY_GUEST: Boot = Boot { group: "boot-guest", by_guest: true, ..AMD64 };

pub const BOOTS: [Boot; 4] = [
    AMD64,
    I386,
    Boot { name: "boot-guest-amd64", ..BY_GUEST },
    Boot { name: "boot-guest-i386", guest: I386.guest, bits: I386.bits, ..BY_GUEST },
];

impl Boot {
    /// A command that boots it, its console on standard input and output. Natively there is none.
    pub fn command(&self, files: &Files, column: &Column, line: &str) -> Option<Command> {
        let (kernel, initrd) = (files.vmlinuz(self.guest), files.hello(self.bits));
        let mut command = column.boot(&kernel, &initrd, MEMORY_MIB, line)?;
        if self.by_guest && matches!(column, Column::Xenolith { .. }) {
            command.args(["--kernel-unpack", "guest"]);
        }
        Some(command)
    }
}

/// Boots in all columns, `runs` times, in turns.
///
/// # Errors
/// A program can't be started.
pub fn measure(
    boot: &Boot,
    files: &Files,
    columns: &[Column],
    runs: usize,
    raw: bool,
) -> Result<Row> {
    let mut times = vec![Vec::new(); columns.len()];
    let mut notes = Vec::new();
    for _ in 0..runs {
        for (at, column) in columns.iter().enumerate() {
            match once(boot, files, column, raw)? {
                Some(Ok(time)) => times[at].push(time),
                Some(Err(note)) => notes.push(format!("{}: {note}", column.name())),
                None => {}
            }
        }
    }
    let mut row = Row::new(boot.name, boot.group, times);
    for note in notes {
        row.note(&note);
    }
    Ok(row)
}

/// None where there is nothing to boot.
fn once(
    boot: &Boot,
    files: &Files,
    column: &Column,
    raw: bool,
) -> Result<Option<Result<Duration, String>>> {
    let start = Instant::now();
    let Some(mut booted) = Booted::start(boot, files, column)? else { return Ok(None) };
    let came = booted.wait();
    let used = Usage::of(booted.pid()).since(&Usage::default());
    Ok(Some(came.map(|end| {
        let time = end - start;
        if raw { time } else { time.saturating_sub(used.waited) }
    })))
}

/// A guest that boots, or has booted and waits for nothing. Killed when dropped.
#[derive(Debug)]
pub struct Booted {
    child: Child,
    came: Receiver<Result<Instant, String>>,
}

impl Booted {
    /// None where there is nothing to boot.
    ///
    /// # Errors
    /// The program can't be started.
    pub fn start(boot: &Boot, files: &Files, column: &Column) -> Result<Option<Self>> {
        let Some(mut command) = boot.command(files, column, COMMAND_LINE) else {
            return Ok(None);
        };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {:?}", command.get_program()))?;
        let output = child.stdout.take().context("it was asked for")?;
        let (sender, came) = channel();
        thread::spawn(move || {
            let mut last = String::new();
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                last = String::from_utf8_lossy(&line).trim().to_owned();
                if last.contains(MARK) {
                    // Nobody listens any more if it came too late.
                    let _ = sender.send(Ok(Instant::now()));
                }
            }
            let _ = sender.send(Err(format!("it ended after {last:?}")));
        });
        Ok(Some(Self { child, came }))
    }

    /// Waits for the first program and says when it spoke.
    ///
    /// # Errors
    /// It didn't.
    pub fn wait(&mut self) -> Result<Instant, String> {
        self.came.recv_timeout(BOOT_MAX).unwrap_or_else(|_| Err("no end of it".to_owned()))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
