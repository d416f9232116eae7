//! A guest that a person watches on its screen and types to.
//!
//! Problem: what a display shows and what a keyboard does is part of the promise, for guests that never print a
//! letter on a serial line. Scheme: a machine on a thread of its own; the test looks at the characters of its text
//! screen, or at the picture, ten times a second. Invariant: a [`Watched`] that is dropped has been quit and its
//! thread is gone.

use std::fmt;
use std::io::Write;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use xenolith_devices::legacy::i8042::Key;
use xenolith_machine::{Config, End, Handle, Machine, Screen};

/// Debian's firmware and video services, package seabios.
pub const SEABIOS: &str = "/usr/share/seabios/bios-256k.bin";
pub const VGA_BIOS: &str = "/usr/share/seabios/vgabios-stdvga.bin";

/// Set 1 make codes.
pub const ENTER: Key = Key(0x1c);
pub const ESCAPE: Key = Key(0x01);

/// The rows of a keyboard with the make code of each one's first key.
const ROWS: [(u16, &str); 5] = [
    (0x02, "1234567890-="),
    (0x10, "qwertyuiop[]"),
    (0x1e, "asdfghjkl;'"),
    (0x2c, "zxcvbnm,./"),
    (0x39, " "),
];

/// A running guest with a screen.
pub struct Watched {
    pub screen: Screen,
    handle: Handle,
    thread: Option<JoinHandle<End>>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").finish_non_exhaustive()
    }
}

impl Watched {
    /// Starts a machine whose serial line goes to `serial`. The display is the usual one if `config` has none.
    ///
    /// # Errors
    /// It can't be built.
    pub fn start(config: Config, serial: Box<dyn Write + Send>) -> Result<Self> {
        let vga_rom = config.vga_rom.clone().or(Some(VGA_BIOS.into()));
        let machine = Machine::new(Config { vga_rom, ..config }, serial)?;
        let (screen, handle) = (machine.screen(), machine.handle());
        let thread = std::thread::Builder::new().name("machine".to_owned());
        Ok(Self { screen, handle, thread: Some(thread.spawn(move || machine.run())?) })
    }

    /// What is to be read.
    #[must_use]
    pub fn text(&self) -> String {
        self.screen.text().map_or_else(String::new, |text| text.to_string())
    }

    /// Waits until `part` is to be read, and gives the screen.
    ///
    /// # Errors
    /// It isn't in time, or the machine has ended; the message shows the screen.
    pub fn wait_for(&self, part: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            let text = self.text();
            if text.contains(part) {
                return Ok(text);
            }
            if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
                bail!("the machine has ended without {part:?}:\n{text}");
            }
            ensure!(Instant::now() < deadline, "no {part:?} within {limit:?}:\n{text}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Presses a key and lets it go.
    pub fn press(&self, key: Key) {
        self.screen.key(key, true);
        self.screen.key(key, false);
    }

    /// Types what needs no Shift.
    ///
    /// # Errors
    /// A letter does.
    pub fn type_text(&self, text: &str) -> Result<()> {
        for letter in text.chars() {
            let key = ROWS.iter().find_map(|(first, row)| {
                let at = row.chars().position(|on_row| on_row == letter)?;
                Some(first + u16::try_from(at).ok()?)
            });
            self.press(Key(key.with_context(|| format!("{letter:?} needs Shift"))?));
        }
        Ok(())
    }

    /// Quits the machine and gives its end.
    pub fn quit(mut self) -> Option<End> {
        self.stop()
    }

    /// Waits until the machine ends by itself.
    ///
    /// # Errors
    /// It doesn't in time; the message shows the screen.
    pub fn end(mut self, limit: Duration) -> Result<End> {
        let deadline = Instant::now() + limit;
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            ensure!(Instant::now() < deadline, "it still runs after {limit:?}:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(50));
        }
        let thread = self.thread.take().context("joined before")?;
        thread.join().map_err(|_| anyhow::anyhow!("the machine's thread has panicked"))
    }

    fn stop(&mut self) -> Option<End> {
        self.handle.quit();
        self.thread.take()?.join().ok()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.stop();
    }
}
