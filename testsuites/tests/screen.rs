//! The screen and the keyboard, under SeaBIOS and Debian's video services.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xenolith_devices::legacy::i8042::Key;
use xenolith_devices::vga::Picture;
use xenolith_machine::{Config, DiskConfig, End, Engine, Handle, Machine, Screen};
use xenolith_testsuites::Program;
use xenolith_testsuites::disk::{self, Scratch};
use xenolith_testsuites::program::xenolith;

const PATIENCE: Duration = Duration::from_secs(120);
const SEABIOS: &str = "/usr/share/seabios/bios-256k.bin";
const VGA_BIOS: &str = "/usr/share/seabios/vgabios-stdvga.bin";

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
    let path = disk::boot_sector("screen.asm", scratch.path())?;
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
    let mut command = xenolith()?;
    command.args(["run", "--bios", SEABIOS, "--timeout", "20", "--screenshot"]);
    command.arg(format!("600:{}", file.display()));
    let ended = Program::start(command)?.end(PATIENCE)?;
    ensure!(ended.status.code() == Some(124), "{}: {}", ended.status, ended.stderr);
    let png = std::fs::read(file)?;
    ensure!(png.starts_with(b"\x89PNG\r\n\x1a\n") && png.ends_with(b"IEND\xae\x42\x60\x82"));
    ensure!(png[16..24] == [0, 0, 2, 0xd0, 0, 0, 1, 0x90], "720x400");
    // A dark screen would be compressed to almost nothing.
    ensure!(png.len() > 1000, "{} bytes", png.len());
    Ok(())
}
