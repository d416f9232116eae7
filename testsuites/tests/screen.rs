//! The screen and the keyboard, under SeaBIOS and Debian's video services.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use xenolith_devices::legacy::i8042::Key;
use xenolith_devices::vga::Picture;
use xenolith_machine::{Config, DiskConfig, End, Engine, Handle, Machine, Screen};
use xenolith_testsuites::Program;
use xenolith_testsuites::debian::{self, Debian};
use xenolith_testsuites::disk::{self, Scratch};
use xenolith_testsuites::multiboot::{self, TemporaryFile};
use xenolith_testsuites::program::xenolith;
use xenolith_testsuites::screen::{ENTER, SEABIOS, Seat, VGA_BIOS, Watched};

const PATIENCE: Duration = Duration::from_secs(120);

/// Set 1 make codes.
const KEY_O: Key = Key(0x18);
const KEY_K: Key = Key(0x25);
const KEY_ENTER: Key = Key(0x1c);

/// Waits until `found` finds something.
fn wait<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until a row of the text screen contains `part`, and gives its number.
fn wait_for_text(screen: &Screen, part: &str) -> Result<usize> {
    wait(part, || {
        let text = screen.text()?;
        (0..text.rows).find(|&row| text.row(row).contains(part))
    })
    .with_context(|| screen.text().map_or("no text".to_owned(), |text| text.to_string()))
}

/// Waits for a picture that `is_it` likes.
fn wait_for_picture(
    screen: &Screen,
    what: &str,
    is_it: impl Fn(&Picture) -> bool,
) -> Result<Picture> {
    wait(what, || screen.picture().filter(&is_it))
}

fn press(screen: &Screen, key: Key) {
    screen.key(key, true);
    screen.key(key, false);
}

/// What a person does: read, type, look.
fn look(screen: &Screen) -> Result<()> {
    let row = wait_for_text(screen, "Drawn by the guest:")?;
    ensure!(row == 10, "row {row}");
    press(screen, KEY_O);
    press(screen, KEY_K);
    wait_for_text(screen, "Drawn by the guest: ok")?;
    let text = screen.text().context("text")?;
    ensure!(text.cells[10 * 80 + 20] == 0x1e44, "{:04x}", text.cells[10 * 80 + 20]);
    let picture = screen.picture().context("a picture")?;
    ensure!((picture.width, picture.height) == (720, 400), "text is 720x400");
    let at = |x: usize, y: usize| picture.pixels[y * picture.width + x];
    let letter: Vec<u32> = (0..16)
        .flat_map(|y| (0..9).map(move |x| (x, y)))
        .map(|(x, y)| at(20 * 9 + x, 160 + y))
        .collect();
    ensure!(letter.contains(&0xff_ff55) && letter.contains(&0x00_00aa), "yellow on blue");
    ensure!(letter.iter().all(|&pixel| [0xff_ff55, 0x00_00aa].contains(&pixel)), "no third colour");

    press(screen, KEY_ENTER);
    // The BIOS's palette: 4 is red, 15 white.
    let colours = wait_for_picture(screen, "320x200", |picture| {
        picture.height == 400 && picture.pixels.get(15 * 2 * 640) == Some(&0xff_ffff)
    })?;
    ensure!(colours.pixels[4 * 2 * 640 + 639] == 0xaa_0000, "red");
    press(screen, KEY_ENTER);
    let planes = wait_for_picture(screen, "640x480", |picture| {
        picture.height == 480 && picture.pixels.get(319) == Some(&0xff_ffff)
    })?;
    ensure!(planes.pixels[320] == 0 && planes.pixels[640] == 0, "the rest is black");
    Ok(())
}

fn run(engine: Engine, look: impl FnOnce(&Screen) -> Result<()>) -> Result<()> {
    let scratch = Scratch::new("screen")?;
    let path = disk::boot_sector("screen.asm", 1 << 20, scratch.path())?;
    let config = Config {
        engine,
        firmware: Some(SEABIOS.into()),
        vga_rom: Some(VGA_BIOS.into()),
        disks: vec![DiskConfig { path, ..DiskConfig::default() }],
        ..Config::default()
    };
    let machine = Machine::new(config, Box::new(std::io::sink()))?;
    let (screen, handle): (Screen, Handle) = (machine.screen(), machine.handle());
    let running = std::thread::spawn(move || machine.run());
    let seen = look(&screen);
    handle.quit();
    let end = running.join().expect("the machine's thread");
    seen?;
    ensure!(end == End::Quit, "{end:?}");
    Ok(())
}

#[test]
fn a_guest_draws_text_and_graphics_and_reads_keys() -> Result<()> {
    run(Engine::Bt, look)
}

#[test]
fn a_guest_draws_text_and_graphics_and_reads_keys_by_the_interpreter() -> Result<()> {
    run(Engine::Interp, look)
}

#[test]
fn a_screenshot_shows_the_firmwares_banner() -> Result<()> {
    let scratch = Scratch::new("screen")?;
    let file = scratch.path().join("screen.png");
    // When the banner comes depends on what else the computer does; the picture is of the end.
    for limit in ["3", "12", "48", "100"] {
        let mut command = xenolith()?;
        command.args(["run", "--bios", SEABIOS, "--timeout", limit, "--screenshot"]);
        command.arg(format!("600:{}", file.display()));
        let ended = Program::start(command)?.end(2 * PATIENCE)?;
        ensure!(ended.status.code() == Some(124), "{}: {}", ended.status, ended.stderr);
        let png = std::fs::read(&file)?;
        ensure!(png.starts_with(b"\x89PNG\r\n\x1a\n") && png.ends_with(b"IEND\xae\x42\x60\x82"));
        // A dark screen is compressed to almost nothing.
        if png.len() > 1000 {
            ensure!(png[16..24] == [0, 0, 2, 0xd0, 0, 0, 1, 0x90], "720x400");
            return Ok(());
        }
    }
    bail!("the screen stays dark")
}

/// A kernel without firmware finds the display as firmware would have left it: text, with a font.
fn text_without_firmware(config: Config) -> Result<()> {
    let image = multiboot::image(|code| {
        use iced_x86::code_asm::{dword_ptr, eax};
        // "Hi", white on red; and what the BIOS data area has for mode and columns, as two more letters.
        code.mov(dword_ptr(0xb_8000), 0x4f69_4f48)?;
        code.movzx(eax, iced_x86::code_asm::byte_ptr(0x449))?;
        code.add(eax, 0x4f30)?;
        code.mov(iced_x86::code_asm::word_ptr(0xb_8004), iced_x86::code_asm::ax)?;
        code.movzx(eax, iced_x86::code_asm::byte_ptr(0x44a))?;
        code.add(eax, 0x4f00)?;
        code.mov(iced_x86::code_asm::word_ptr(0xb_8006), iced_x86::code_asm::ax)?;
        code.hlt()?;
        Ok(())
    })?;
    let file = TemporaryFile::new(&image)?;
    let config = Config { kernel: file.0.clone(), ..config };
    let watched = Watched::start(config, Box::new(std::io::sink()))?;
    // Mode 3, and 80 is a P.
    watched.wait_for("Hi3P", PATIENCE)?;
    let text = watched.screen.text().context("text")?;
    ensure!((text.columns, text.rows) == (80, 25), "{}x{}", text.columns, text.rows);
    ensure!(text.row(1).trim().is_empty() && text.cells[81] == 0x0720, "the rest is empty");
    let picture = watched.screen.picture().context("a picture")?;
    ensure!((picture.width, picture.height) == (720, 400), "text is 720x400");
    let white = |x: std::ops::Range<usize>| {
        let lines = (0..16).map(|y| &picture.pixels[y * 720..][x.clone()]);
        lines.flatten().filter(|&&pixel| pixel == 0xff_ffff).count()
    };
    // An H has more ink than an i.
    ensure!(white(0..9) > white(9..18) && white(9..18) > 10, "{} {}", white(0..9), white(9..18));
    ensure!(watched.quit() == Some(End::Quit));
    Ok(())
}

#[test]
fn a_kernel_without_firmware_has_a_text_screen() -> Result<()> {
    text_without_firmware(Config::default())
}

#[test]
fn a_kernel_without_firmware_has_a_text_screen_under_counted_time() -> Result<()> {
    text_without_firmware(Config { icount: true, ..Config::default() })
}

#[test]
fn a_kernel_without_firmware_has_a_text_screen_by_the_interpreter() -> Result<()> {
    text_without_firmware(Config { engine: Engine::Interp, ..Config::default() })
}

#[test]
fn boots_debian_without_firmware_to_a_shell_on_the_screen() -> Result<()> {
    for name in ["debian", "debian-i386"] {
        let guest = Debian::get(name, env!("CARGO_TARGET_TMPDIR"))?;
        let config = Config {
            kernel: guest.vmlinuz.clone(),
            initrd: Some(guest.initrd.clone()),
            command_line: format!("console=tty0 console=ttyS0 {}", debian::QUICK),
            ..Config::default()
        };
        let watched = Watched::start(config, Box::new(std::io::sink()))?;
        watched.wait_for(&guest.prompt(), debian::PATIENCE)?;
        watched.type_text("expr 123456 - 1")?;
        watched.press(ENTER)?;
        watched.wait_for("123455", debian::PATIENCE)?;
        watched.type_text("poweroff")?;
        watched.press(ENTER)?;
        ensure!(watched.end(debian::PATIENCE)? == End::PowerOff);
    }
    Ok(())
}

#[test]
fn an_option_rom_that_never_returns_is_told() -> Result<()> {
    let kernel = TemporaryFile::new(&multiboot::image(|code| Ok(code.hlt()?))?)?;
    // jmp $; and hlt.
    for (code, part) in [([0xeb, 0xfe], "c000:0003"), ([0xf4, 0x90], "c000:0004")] {
        let mut rom = vec![0x55, 0xaa, 1];
        rom.extend(code);
        rom.resize(512, 0);
        let rom = TemporaryFile::new(&rom)?;
        let mut command = xenolith()?;
        command.args(["run", "--kernel"]).arg(&kernel.0).arg("--vga-rom").arg(&rom.0);
        let ended = Program::start(command)?.end(PATIENCE)?;
        ensure!(ended.status.code() == Some(1), "{}", ended.status);
        ensure!(ended.stderr.lines().count() == 1, "{}", ended.stderr);
        ensure!(
            ended.stderr.contains("--vga-rom") && ended.stderr.contains(part),
            "{}",
            ended.stderr
        );
    }
    Ok(())
}
