//! `xenolith run`: builds the machine, lends it the terminal, waits for its end.
//!
//! Threads: the machine runs on the main thread (and on threads of its own); one thread of ours reads
//! standard input, one waits for signals. Neither holds up the end: both die with the process.

use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use xenolith_devices::disk::DiskOptions;
use xenolith_machine::{Attachment, Config, DiskConfig, Handle, Machine, Making, SerialInput};

use crate::display::terminal::TerminalDisplay;
use crate::display::vnc::Server;
use crate::flags::{ConsolePort, Display, RunArgs, Serial, no_option, parse_disk};
use crate::guests::{self, Consoles};
use crate::keys::{HELP, Key, Keys};
use crate::monitor::Monitor;
use crate::screenshot::Screenshots;
use crate::signals::Signals;
use crate::status;
use crate::terminal::{self, SerialOutput, Trouble};

/// Where Debian's package seabios has its ROM for machines with more than 128 KiB of it.
const SEABIOS: &str = "/usr/share/seabios/bios-256k.bin";
/// Where the same package has the video services for our display.
const VGA_BIOS: &str = "/usr/share/seabios/vgabios-stdvga.bin";

/// Runs a guest to its end and gives the exit status.
///
/// # Errors
/// Whatever keeps the machine from starting, and output that can't be written.
pub fn run(args: &RunArgs) -> Result<u8> {
    let serial = args.console.serial();
    let in_terminal = args.console.display == Display::Terminal;
    let interactive = serial == Serial::Stdio || in_terminal;
    if in_terminal {
        check_terminal(&serial)?;
    }
    let config = configure(args, interactive)?;
    // What can be refused without looking at files is, before a serial file is created.
    check(&config)?;
    let trouble = Arc::new(Trouble::default());
    let server = vnc_server(&args.console.display)?;
    let output: Box<dyn io::Write + Send> = match &serial {
        Serial::Stdio => Box::new(
            SerialOutput::stdout(Arc::clone(&trouble)).context("cannot use standard output")?,
        ),
        Serial::File(path) => {
            let file = File::create(path)
                .map_err(|error| crate::cmd::plain(&error))
                .with_context(|| format!("--serial file:{}: cannot write it", path.display()))?;
            Box::new(SerialOutput::new(file, Arc::clone(&trouble)))
        }
        Serial::None => Box::new(io::sink()),
    };

    let written =
        [("--debugcon ", &config.debug_output), ("--serial2 file:", &config.second_serial)];
    for (option, path) in written {
        if let Some(path) = path {
            File::create(path)
                .map_err(|error| crate::cmd::plain(&error))
                .with_context(|| format!("{option}{}: cannot write it", path.display()))?;
        }
    }

    let screenshots = Screenshots::open(&args.console.screenshots)?;
    let report = config.report.clone();
    let signals = Signals::block();
    let machine = Machine::new(config, output).map_err(|error| anyhow!("{error}"))?;
    let handle = machine.handle();
    let screenshots = screenshots.start(machine.screen());
    trouble.ends(handle.clone());
    signals.serve(handle.clone());
    if let Some((columns, rows)) = terminal::window() {
        handle.set_console_size(columns, rows);
    }
    if let Some(server) = server {
        let address = server.address().map_err(|error| crate::cmd::plain(&error));
        terminal::say(&format!("the screen is at {} for VNC clients", address.context("VNC")?));
        server.start(machine.screen());
    }
    if interactive {
        terminal::lend().context("cannot put the terminal into raw mode")?;
        let input = if in_terminal {
            Console::Screen(TerminalDisplay::start(machine.screen()))
        } else {
            Console::Serial(machine.serial_input())
        };
        let monitor = Monitor::new(machine.inspector(), machine.screen(), handle.clone());
        thread::spawn(move || pass_input(input, &handle, monitor));
    }

    let end = machine.run();
    terminal::restore();
    let screenshots = screenshots.finish();
    signals.die_if_told();
    if let Some(error) = trouble.take() {
        return Err(crate::cmd::plain(&error)).context("cannot write the guest's serial output");
    }
    if let Some(text) = status::explain(&end) {
        terminal::say(&text);
    }
    screenshots?;
    if let Some(report) = report {
        eprint!("{report}");
    }
    Ok(status::of(&end))
}

/// The machine that `args` describe; a named guest is fetched if need be.
fn configure(args: &RunArgs, interactive: bool) -> Result<Config> {
    let mut config = Config {
        memory_bytes: args.machine.memory_bytes,
        vcpus: args.machine.cpus,
        cpu: args.machine.cpu.clone(),
        engine: args.machine.engine.into(),
        unpacker: args.boot.kernel_unpack.into(),
        disks: args.boot.disks.clone(),
        timeout: args.limits.timeout,
        no_reboot: args.limits.no_reboot,
        icount: args.machine.icount,
        virtio: args.machine.virtio.into(),
        balloon: args.machine.balloon,
        // A size that doesn't fit is refused like one that is too large.
        code_cache_bytes: usize::try_from(args.machine.code_cache).unwrap_or(usize::MAX),
        making: Making { mmu: args.machine.mmu.into(), bmi2: !args.machine.no_bmi2 },
        report: args.machine.stats.then(Arc::default),
        debug_output: args.boot.debugcon.clone(),
        second_serial: args.console.serial2.0.clone(),
        console_is_virtio: args.console.port.map(|port| port == ConsolePort::Virtio),
        ..Config::default()
    };
    config.disks.extend(args.boot.floppies.iter().cloned());
    if let Some(path) = &args.boot.cdrom {
        let options = DiskOptions { read_only: true, ..DiskOptions::default() };
        let attachment = Attachment::Cdrom;
        config.disks.push(DiskConfig { path: path.clone(), options, attachment });
    }
    let image = args.boot.guest.as_deref().map(image).transpose()?.flatten();
    match (&args.boot.guest, &args.boot.kernel) {
        (Some(_), _) if let Some(disk) = image => {
            config.disks.insert(0, disk);
            config.firmware = Some(firmware(args)?);
        }
        (Some(name), _) => {
            let guest = guests::find(name)?;
            // A mistake elsewhere on the command line is told before anything is fetched.
            check(&config)?;
            let on_serial = interactive && args.console.display != Display::Terminal;
            let window = if on_serial { terminal::window() } else { None };
            let consoles = match (&args.console.display, args.console.wants_screen()) {
                (Display::Terminal, _) => Consoles::ScreenFirst,
                (_, Some(_)) => Consoles::SerialAndScreen,
                (_, None) => Consoles::Serial,
            };
            let boot = guests::provide(guest, args.cache.folder.as_deref())?;
            config.kernel = boot.kernel;
            config.initrd = Some(boot.initrd);
            config.command_line = guest.command_line(consoles, window, &args.boot.append);
        }
        (None, Some(kernel)) => {
            config.kernel.clone_from(kernel);
            config.initrd.clone_from(&args.boot.initrd);
            config.command_line.clone_from(&args.boot.append);
        }
        (None, None) => config.firmware = Some(firmware(args)?),
    }
    config.vga_rom = vga_rom(args)?;
    config.net = args.net.config(config.firmware.is_some(), config.icount)?;
    if config.firmware.is_some() && !args.boot.append.is_empty() {
        bail!("--append goes with a kernel or a guest's name; firmware finds its own kernel");
    }
    Ok(config)
}

/// The firmware that was asked for, or the usual one.
fn firmware(args: &RunArgs) -> Result<PathBuf> {
    if let Some(path) = &args.boot.bios {
        return Ok(path.clone());
    }
    let usual = Path::new(SEABIOS);
    if !usual.is_file() {
        bail!(
            "no firmware to boot by: {SEABIOS} is not there; install Debian's package seabios \
             (apt install seabios), or give --bios FILE"
        );
    }
    Ok(usual.to_owned())
}

/// The display's option ROM that was asked for, or the usual one. Without it there is no display.
fn vga_rom(args: &RunArgs) -> Result<Option<PathBuf>> {
    if args.console.vga_rom.is_some() {
        return Ok(args.console.vga_rom.clone());
    }
    let usual = Path::new(VGA_BIOS);
    if usual.is_file() {
        return Ok(Some(usual.to_owned()));
    }
    if args.console.wants_screen().is_some() {
        bail!(
            "no video services for the screen: {VGA_BIOS} is not there; install Debian's package \
             seabios (apt install seabios), or give --vga-rom FILE"
        );
    }
    Ok(None)
}

/// A terminal to paint the screen in, which nobody else wants.
fn check_terminal(serial: &Serial) -> Result<()> {
    if *serial == Serial::Stdio {
        bail!("--display terminal and --serial stdio both want the terminal");
    }
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        bail!("--display terminal: standard input and output are not a terminal");
    }
    Ok(())
}

/// Takes the port for VNC clients, if they are to be served.
fn vnc_server(display: &Display) -> Result<Option<Server>> {
    let Display::Vnc(address) = display else { return Ok(None) };
    let server = Server::bind(address)
        .map_err(|error| crate::cmd::plain(&error))
        .with_context(|| format!("--display vnc={address}"))?;
    Ok(Some(server))
}

/// The disk that stands in a guest's place, perhaps with options behind its name.
fn image(name: &str) -> Result<Option<DiskConfig>> {
    if guests::is_image(name) {
        return Ok(Some(DiskConfig { path: name.into(), ..DiskConfig::default() }));
    }
    if no_option(Path::new(name)).is_none() {
        return Ok(None);
    }
    parse_disk(name).map(Some).map_err(|error| anyhow!("{name}: {error}"))
}

/// Why the file of `disk` isn't there.
fn missing(disk: &DiskConfig, error: io::Error) -> anyhow::Error {
    match no_option(&disk.path) {
        Some(option) if error.kind() == io::ErrorKind::NotFound => {
            let known = match disk.attachment {
                Attachment::Cdrom => "there are none behind a disc's name",
                Attachment::Floppy => "ro, snapshot and format= are",
                _ => "ro, snapshot, if= and format= are",
            };
            anyhow!("there is no such file, and {option:?} is no option: {known}")
        }
        _ => crate::cmd::plain(&error),
    }
}

/// Refuses what can be refused before anything is fetched or written. The machine looks closer.
fn check(config: &Config) -> Result<()> {
    // A ConfigError's text is complete; its source would repeat the end of it.
    config.check().map_err(|error| anyhow!("{error}"))?;
    let mut before = Vec::new();
    for disk in &config.disks {
        let option = || format!("{} {}", disk.option(), disk.path.display());
        let plain = |error: io::Error| crate::cmd::plain(&error);
        let found = fs::metadata(&disk.path);
        let found = found.map_err(|error| missing(disk, error)).with_context(option)?;
        let kind = found.file_type();
        if kind.is_dir() {
            return Err(anyhow!("it is a folder, not a disk image")).with_context(option);
        }
        // Opening a pipe would wait for its other end.
        if !kind.is_file() && !kind.is_block_device() {
            return Err(anyhow!("it is neither a file nor a block device")).with_context(option);
        }
        File::open(&disk.path).map_err(plain).with_context(option)?;
        // The lock would say that another program has it.
        let writes = !disk.options.read_only && !disk.options.snapshot;
        let file = (found.dev(), found.ino());
        if before.iter().any(|&(other, wrote)| other == file && (writes || wrote)) {
            let way =
                "the same file is given twice: that goes only with ro or snapshot behind both";
            return Err(anyhow!(way)).with_context(option);
        }
        before.push((file, writes));
    }
    Ok(())
}

/// Whose the typed bytes are, but for the monitor's.
enum Console {
    Serial(SerialInput),
    Screen(TerminalDisplay),
}

impl Console {
    fn feed(&mut self, bytes: &[u8]) {
        match self {
            Self::Serial(input) => input.send(bytes),
            Self::Screen(display) => display.feed(bytes),
        }
    }
}

/// Passes standard input to the guest, or to the monitor while that has the terminal, until it ends. Its end is not
/// the guest's end: a guest fed from a pipe goes on.
fn pass_input(mut console: Console, handle: &Handle, mut monitor: Monitor) {
    let mut keys = Keys::default();
    let mut in_monitor = false;
    // The guest's screen showed before the monitor.
    let mut page = false;
    let mut buffer = [0; 4096];
    loop {
        let typed = terminal::read_input(&mut buffer);
        if typed.is_empty() {
            return;
        }
        for key in keys.feed(typed) {
            match key {
                Key::Bytes(bytes) if in_monitor => monitor.feed(&bytes),
                Key::Bytes(bytes) => console.feed(&bytes),
                Key::Monitor => {
                    in_monitor = !in_monitor;
                    if in_monitor {
                        page = terminal::show_page(false);
                        monitor.open();
                    } else {
                        monitor.close();
                        terminal::show_page(page);
                    }
                }
                Key::Help => terminal::say(HELP),
                Key::Quit => handle.quit(),
            }
        }
    }
}
