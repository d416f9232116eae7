//! `xenolith disasm`: guest code and what the translator makes of it.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, anyhow, bail};
use xenolith_machine::disasm::{self, Wanted};
use xenolith_machine::snippet::{engine, source};
use xenolith_machine::{Config, End, Handle, Machine, Mmu};

use crate::flags::DisasmArgs;
use crate::{guests, status};

/// Where --code lies unless told.
const USUAL_ADDRESS: u64 = 0x1000;
/// A file of code is no longer than this.
const CODE_BYTES_MAX: usize = 1 << 20;

/// Prints the listing and gives the exit status.
///
/// # Errors
/// The code can't be read, the guest can't be run, or there is no such block.
pub fn run(args: &DisasmArgs) -> Result<u8> {
    let text = match &args.code {
        Some(code) => of_code(args, code)?,
        None => of_guest(args)?,
    };
    // A reader that went away (`| head`) is no failure.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(status::DONE)
}

fn of_code(args: &DisasmArgs, text: &str) -> Result<String> {
    let code = match source::digits(text) {
        Some(code) => code,
        None => std::fs::read(Path::new(text))
            .map_err(|error| crate::cmd::plain(&error))
            .with_context(|| format!("--code {text}: neither hexadecimal digits nor a file"))?,
    };
    if code.len() > CODE_BYTES_MAX {
        bail!("--code {text}: more than {CODE_BYTES_MAX} bytes");
    }
    let bits = args.mode.parse().context("--mode")?;
    let model = engine::model(&args.cpu).map_err(|error| anyhow!("{error}"))?;
    let at = args.at.unwrap_or(USUAL_ADDRESS);
    disasm::code(&code, bits, at, &model, args.mmu.into())
        .map_err(|error| anyhow!("--code: {error}"))
}

fn of_guest(args: &DisasmArgs) -> Result<String> {
    let wanted = Arc::new(Wanted::new(args.at));
    let mut config = Config {
        memory_bytes: args.memory_bytes,
        cpu: args.cpu.clone(),
        making: Mmu::from(args.mmu).into(),
        timeout: Some(args.timeout),
        no_reboot: true,
        listing: Some(Arc::clone(&wanted)),
        ..Config::default()
    };
    match (&args.guest, &args.kernel, &args.bios) {
        (Some(name), ..) => {
            let guest = guests::find(name)?;
            config.check().map_err(|error| anyhow!("{error}"))?;
            let boot = guests::provide(guest, args.cache.folder.as_deref())?;
            config.kernel = boot.kernel;
            config.initrd = Some(boot.initrd);
            config.command_line = guest.command_line(guests::Consoles::Serial, None, &args.append);
        }
        (_, Some(kernel), _) => {
            config.kernel.clone_from(kernel);
            config.initrd.clone_from(&args.initrd);
            config.command_line.clone_from(&args.append);
        }
        (.., Some(bios)) => config.firmware = Some(bios.clone()),
        (None, None, None) => {
            bail!("disasm: nothing to show: give --code FILE|HEX, --kernel FILE or a guest's name")
        }
    }
    let handle = Arc::new(OnceLock::new());
    let marker = args.until.as_deref().unwrap_or_default().as_bytes().to_vec();
    let watcher = Watcher { marker, seen: Vec::new(), handle: Arc::clone(&handle) };
    let machine = Machine::new(config, Box::new(watcher)).map_err(|error| anyhow!("{error}"))?;
    // Nobody else sets it, and the guest doesn't run yet.
    let _ = handle.set(machine.handle());
    let end = machine.run();
    if let (Some(marker), End::Timeout) = (&args.until, &end) {
        bail!(
            "--until: the guest didn't write {marker:?} within {} seconds (--timeout)",
            args.timeout.as_secs_f64()
        );
    }
    let text = wanted.take();
    match args.at {
        Some(at) if text.is_empty() => {
            bail!("--at {at:#x}: no block has this address; without --at all blocks are listed")
        }
        _ => Ok(text),
    }
}

/// Ends the run when the guest has written the marker.
struct Watcher {
    marker: Vec<u8>,
    seen: Vec<u8>,
    handle: Arc<OnceLock<Handle>>,
}

impl Write for Watcher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.marker.is_empty() {
            return Ok(bytes.len());
        }
        self.seen.extend_from_slice(bytes);
        let found = self.seen.windows(self.marker.len()).any(|part| part == self.marker);
        if let (true, Some(handle)) = (found, self.handle.get()) {
            handle.quit();
        }
        // What may yet become the marker.
        let keep = self.seen.len().min(self.marker.len() - 1);
        self.seen.drain(..self.seen.len() - keep);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
