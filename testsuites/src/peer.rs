//! QEMU with a screen and a keyboard: the same guest on the other machine.
//!
//! Problem: what a guest takes to show something means little without another emulator's time for the same. Scheme:
//! QEMU's own emulator (TCG, never KVM) gets what a [`Config`] of ours says; its monitor, on standard input and
//! output, saves the display's text memory and its pictures and presses keys. Text memory is read whole, so lines
//! that have scrolled away may be found as well. Invariant: a [`Qemu`] that is dropped has ended. Source: QEMU,
//! "Human Monitor Protocol".

use std::ffi::OsString;
use std::fs;
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use xenolith_devices::disk::Format;
use xenolith_devices::legacy::i8042::Key;
use xenolith_devices::vga::Picture;
use xenolith_machine::{Attachment, Config, DiskConfig, NetConfig, NetModel};

use crate::Program;
use crate::disk::Scratch;
use crate::screen::Seat;

/// For one command of the monitor.
const PATIENCE: Duration = Duration::from_secs(300);
const PROMPT: &str = "(qemu) ";
/// All that its emulator has; without the fifth level of page tables, which would only cost it time.
const CPU: &str = "max,la57=off";

/// A running QEMU.
#[derive(Debug)]
pub struct Qemu {
    program: Mutex<Program>,
    scratch: Scratch,
}

impl Qemu {
    /// Starts a machine like that of `config`, as far as QEMU's ordinary PC has the same.
    ///
    /// # Errors
    /// There is no QEMU.
    pub fn start(config: &Config) -> Result<Self> {
        let mut command = command(config);
        command.args(["-display", "none", "-serial", "null", "-monitor", "stdio"]);
        let mut program = Program::start(command)?;
        program.wait_for(PROMPT, PATIENCE)?;
        Ok(Self { program: Mutex::new(program), scratch: Scratch::new("peer")? })
    }

    fn order(&self, line: &str) -> Result<()> {
        let mut program = self.program.lock().unwrap_or_else(PoisonError::into_inner);
        program.type_line(line);
        program.wait_for(PROMPT, PATIENCE)?;
        Ok(())
    }

    /// How it has ended, if it has.
    fn status(&self) -> Option<ExitStatus> {
        self.program.lock().unwrap_or_else(PoisonError::into_inner).status()
    }

    /// What the monitor writes into a file when ordered so.
    fn saved(&self, order: impl FnOnce(&str) -> String) -> Result<Vec<u8>> {
        let path = self.scratch.path().join("saved");
        self.order(&order(path.to_str().context("a plain name")?))?;
        Ok(fs::read(path)?)
    }
}

/// `qemu-system-x86_64` with the machine of `config`, without screen, serial line and monitor.
#[must_use]
pub fn command(config: &Config) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", "pc", "-accel", "tcg", "-cpu", CPU, "-m"]);
    command.arg((config.memory_bytes >> 20).to_string());
    command.arg("-smp").arg(config.vcpus.to_string());
    if config.firmware.is_none() {
        command.arg("-kernel").arg(&config.kernel);
        command.args(
            config.initrd.iter().flat_map(|initrd| [OsString::from("-initrd"), initrd.into()]),
        );
        command.arg("-append").arg(&config.command_line);
    }
    for disk in &config.disks {
        command.arg("-drive").arg(drive(disk));
    }
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    command.arg("-nic").arg(config.net.as_ref().map_or("none".into(), nic));
    command
}

fn drive(disk: &DiskConfig) -> OsString {
    let kind = match disk.attachment {
        Attachment::Virtio => "if=virtio",
        Attachment::Ide => "if=ide",
        Attachment::Cdrom => "if=ide,media=cdrom",
        Attachment::Floppy => "if=floppy",
    };
    let format = disk.options.format.unwrap_or(Format::Raw);
    let mut text = OsString::from(format!("{kind},format={format},file="));
    text.push(&disk.path);
    text
}

fn nic(net: &NetConfig) -> OsString {
    let model = if net.model == NetModel::E1000 { "e1000" } else { "virtio-net-pci" };
    let mut text = OsString::from(format!("user,model={model}"));
    if let Some(folder) = &net.settings.tftp {
        text.push(",tftp=");
        text.push(folder);
    }
    if let Some(file) = &net.settings.bootfile {
        text.push(format!(",bootfile={file}"));
    }
    text
}

impl Seat for Qemu {
    fn text(&self) -> Result<String> {
        const TEXT: (u32, u32) = (0xb_8000, 0x8000);
        const COLUMNS: usize = 80;
        let (start, len) = TEXT;
        let cells = self.saved(|path| format!("pmemsave {start} {len} \"{path}\""))?;
        let letter = |cell: &[u8]| match cell[0] {
            byte @ b' '..=b'~' => char::from(byte),
            _ => ' ',
        };
        let rows = cells.chunks_exact(2 * COLUMNS);
        let rows = rows.map(|row| row.chunks_exact(2).map(letter).collect::<String>());
        Ok(rows.map(|row| format!("{}\n", row.trim_end())).collect())
    }

    fn picture(&self) -> Result<Option<Picture>> {
        let file = self.saved(|path| format!("screendump \"{path}\""))?;
        // P6, width, height, 255, one blank, three bytes a pixel.
        let mut fields = file.splitn(4, |byte| byte.is_ascii_whitespace());
        let mut number = |name| -> Result<usize> {
            let field = fields.next().with_context(|| format!("a picture without {name}"))?;
            Ok(std::str::from_utf8(field)?.trim_start_matches('P').parse()?)
        };
        if number("kind")? != 6 {
            bail!("QEMU saves pictures of another kind");
        }
        let (width, height) = (number("width")?, number("height")?);
        let colours = &file[file.len() - 3 * width * height..];
        let pixel = |colour: &[u8]| u32::from_be_bytes([0, colour[0], colour[1], colour[2]]);
        Ok(Some(Picture { width, height, pixels: colours.chunks_exact(3).map(pixel).collect() }))
    }

    fn press(&self, Key(code): Key) -> Result<()> {
        // Extended keys have bit 7 set there.
        let extended = if code >> 8 == 0xe0 { 0x80 } else { 0 };
        self.order(&format!("sendkey {:#x}", code & 0x7f | extended))
    }

    fn has_ended(&self) -> bool {
        self.status().is_some()
    }

    fn verdict(&self) -> Option<u32> {
        // The customary (V << 1) | 1.
        let status = u32::try_from(self.status()?.code()?).ok()?;
        (status & 1 == 1).then_some(status >> 1)
    }
}
