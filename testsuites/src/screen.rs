//! A guest that a person watches on its screen and types to.
//!
//! Problem: what a display shows and what a keyboard does is part of the promise, for guests that never print a
//! letter on a serial line. Scheme: a [`Seat`] is where a person sits, before our machine ([`Watched`], on a thread
//! of its own) or a peer's; the test looks at the characters of its text screen, or at the picture, ten times a second.
//! Invariant: a [`Watched`] that is dropped has been quit and its thread is gone.

use std::fmt;
use std::io::Write;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xenolith_devices::legacy::i8042::Key;
use xenolith_devices::vga::Picture;
use xenolith_machine::{Config, End, Handle, Machine, Screen};

/// Debian's firmware and video services, package seabios.
pub const SEABIOS: &str = "/usr/share/seabios/bios-256k.bin";
pub const VGA_BIOS: &str = "/usr/share/seabios/vgabios-stdvga.bin";

/// Set 1 make codes.
pub const ENTER: Key = Key(0x1c);
pub const ESCAPE: Key = Key(0x01);
pub const UP: Key = Key(0xe048);

/// The rows of a keyboard with the make code of each one's first key.
const ROWS: [(u16, &str); 5] = [
    (0x02, "1234567890-="),
    (0x10, "qwertyuiop[]"),
    (0x1e, "asdfghjkl;'"),
    (0x2c, "zxcvbnm,./"),
    (0x39, " "),
];

/// What a person who waits for something looks at how often.
const GLANCE: Duration = Duration::from_millis(100);

/// A screen to look at and a keyboard to type on, whatever runs the guest.
pub trait Seat {
    /// What is to be read; nothing in a graphics mode.
    ///
    /// # Errors
    /// Who runs the guest doesn't answer.
    fn text(&self) -> Result<String>;

    /// What is to be seen, if anything is.
    ///
    /// # Errors
    /// Who runs the guest doesn't answer.
    fn picture(&self) -> Result<Option<Picture>>;

    /// Presses a key and lets it go.
    ///
    /// # Errors
    /// Who runs the guest doesn't answer.
    fn press(&self, key: Key) -> Result<()>;

    /// Whether the machine has ended.
    fn has_ended(&self) -> bool;

    /// What the guest wrote to the debug-exit port, if that has ended the machine.
    fn verdict(&self) -> Option<u32>;

    /// Waits until the guest ends the machine by the debug-exit port, and gives what it wrote there.
    ///
    /// # Errors
    /// It doesn't in time, or the machine ends otherwise.
    fn wait_for_verdict(&self, limit: Duration) -> Result<u32> {
        let deadline = Instant::now() + limit;
        while !self.has_ended() {
            ensure!(Instant::now() < deadline, "it still runs after {limit:?}:\n{}", self.text()?);
            std::thread::sleep(GLANCE);
        }
        self.verdict().context("the machine has ended without a verdict")
    }

    /// Waits until `part` is to be read, and gives the screen.
    ///
    /// # Errors
    /// It isn't in time, or the machine has ended; the message shows the screen.
    fn wait_for(&self, part: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            let text = self.text()?;
            if text.contains(part) {
                return Ok(text);
            }
            ensure!(!self.has_ended(), "the machine has ended without {part:?}:\n{text}");
            ensure!(Instant::now() < deadline, "no {part:?} within {limit:?}:\n{text}");
            std::thread::sleep(GLANCE);
        }
    }

    /// Waits for a picture that `is_it` likes; `what` it is for the message.
    ///
    /// # Errors
    /// It doesn't come in time, or the machine has ended; the message has the text screen, if it is one.
    fn wait_for_picture(
        &self,
        what: &str,
        limit: Duration,
        is_it: &dyn Fn(&Picture) -> bool,
    ) -> Result<Picture> {
        let deadline = Instant::now() + limit;
        loop {
            match self.picture()? {
                Some(picture) if is_it(&picture) => return Ok(picture),
                seen => {
                    let size = seen.map(|picture| (picture.width, picture.height));
                    let told =
                        || format!("no {what}: {size:?}\n{}", self.text().unwrap_or_default());
                    ensure!(!self.has_ended(), "the machine has ended: {}", told());
                    ensure!(Instant::now() < deadline, "within {limit:?} {}", told());
                }
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// Types what needs no Shift.
    ///
    /// # Errors
    /// A letter does.
    fn type_text(&self, text: &str) -> Result<()> {
        for letter in text.chars() {
            let key = ROWS.iter().find_map(|(first, row)| {
                let at = row.chars().position(|on_row| on_row == letter)?;
                Some(first + u16::try_from(at).ok()?)
            });
            self.press(Key(key.with_context(|| format!("{letter:?} needs Shift"))?))?;
        }
        Ok(())
    }
}

/// A running guest with a screen.
pub struct Watched {
    pub screen: Screen,
    handle: Handle,
    thread: Option<JoinHandle<End>>,
    ended: Arc<OnceLock<End>>,
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
        let ended = Arc::new(OnceLock::new());
        let told = Arc::clone(&ended);
        let thread = std::thread::Builder::new().name("machine".to_owned());
        let thread = thread.spawn(move || told.get_or_init(|| machine.run()).clone())?;
        Ok(Self { screen, handle, thread: Some(thread), ended })
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
        while !self.has_ended() {
            ensure!(Instant::now() < deadline, "it still runs after {limit:?}:\n{}", self.text()?);
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

impl Seat for Watched {
    fn text(&self) -> Result<String> {
        Ok(self.screen.text().map_or_else(String::new, |text| text.to_string()))
    }

    fn picture(&self) -> Result<Option<Picture>> {
        Ok(self.screen.picture())
    }

    fn press(&self, key: Key) -> Result<()> {
        self.screen.key(key, true);
        self.screen.key(key, false);
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn verdict(&self) -> Option<u32> {
        match self.ended.get() {
            Some(&End::DebugExit(value)) => Some(value),
            _ => None,
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.stop();
    }
}
