//! QEMU as the third opinion.
//!
//! Problem: system-level cases can't run on the bare CPU. Scheme: the harness image boots under QEMU's
//! own emulator (TCG, never KVM) with the serial port on its standard output. Invariant: a QEMU that
//! prints nothing for some seconds is killed. Its own reader thread, so that a deadline holds.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};

use super::assemble::{INSTALL_HINT, Scratch};
use super::case::Maker;

/// Silence after which a machine counts as hung, once it has said something and before.
const SILENCE: Duration = Duration::from_secs(60);
const START_UP: Duration = Duration::from_secs(120);

/// `qemu-system-x86_64 --version`, first line.
///
/// # Errors
/// No QEMU.
pub fn version() -> Result<String> {
    let output = Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .with_context(|| format!("no qemu-system-x86_64: {INSTALL_HINT}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Boots an image on a processor of that maker; returns what it wrote to the serial port, and how it stopped.
///
/// # Errors
/// No QEMU, or no room for the image.
pub fn boot(image: &[u8], maker: Maker) -> Result<(String, String)> {
    let scratch = Scratch::new("qemu")?;
    let path = scratch.path().join("image");
    std::fs::write(&path, image)?;
    let mut child = Command::new("qemu-system-x86_64")
        // With a thread for each processor QEMU sometimes runs code that another one has changed as it was, also behind
        // a CPUID.
        .args(["-M", "pc", "-accel", "tcg,thread=single", "-smp", "2", "-m", "64", "-no-reboot"])
        .arg("-cpu")
        .arg(format!("max,vendor={}", maker.vendor()))
        .args(["-display", "none", "-net", "none", "-serial", "stdio", "-monitor", "none"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04", "-kernel"])
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("no qemu-system-x86_64: {INSTALL_HINT}"))?;
    let mut pipe = child.stdout.take().context("QEMU has no standard output")?;
    let (sender, receiver) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = pipe.read(&mut buffer) {
            if sender.send(buffer[..len].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut output = Vec::new();
    let hung = loop {
        let patience = if output.is_empty() { START_UP } else { SILENCE };
        match receiver.recv_timeout(patience) {
            Ok(bytes) => output.extend(bytes),
            Err(mpsc::RecvTimeoutError::Disconnected) => break false,
            Err(mpsc::RecvTimeoutError::Timeout) => break true,
        }
    };
    if hung {
        child.kill().context("QEMU can't be killed")?;
    }
    let status = child.wait().context("QEMU has no exit status")?;
    drop(reader.join());
    let stop =
        if hung { "hung".to_owned() } else { format!("QEMU stopped: {status} (triple fault?)") };
    Ok((String::from_utf8_lossy(&output).into_owned(), stop))
}
