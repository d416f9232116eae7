//! The person's terminal: lent to the guest in raw mode, and always given back.
//!
//! Problem: in raw mode a terminal that is not restored is useless to the person, and the program can
//! end in many ways. Scheme: the settings found at the start are kept in one place, [`LENT`]; whoever
//! ends the program calls [`restore`], which is idempotent: the return from `main`, the panic hook, the
//! signal thread. Where the guest's screen is painted, that is on the terminal's other page, which `restore` leaves.
//! Invariants: `LENT` holds the old settings exactly while the terminal is raw; nothing is painted after `restore`.
//! All that we say goes through [`say`] or [`LogWriter`], since a raw terminal needs a carriage return
//! that an ordinary one does not. Any thread.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{self, OptionalActions, Termios};
use xenolith_machine::Handle;

/// The terminal's own settings while the guest has it.
static LENT: Mutex<Option<Termios>> = Mutex::new(None);
/// The terminal's other page, where the guest's screen is painted.
static PAGE: Mutex<Page> = Mutex::new(Page { shown: false, blank: false, message: None });

#[derive(Debug)]
struct Page {
    shown: bool,
    /// Nobody knows what is on it.
    blank: bool,
    /// When a message was last put on it.
    message: Option<Instant>,
}

/// What there is to do for who paints the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// Nothing: it doesn't show, or a message is to be read on it.
    Away,
    /// To paint all of it.
    Blank,
    /// To paint what has changed.
    Painted,
}

/// How long a message stays on the guest's screen.
const MESSAGE_TIME: Duration = Duration::from_secs(3);
/// To the terminal's other page, where lines don't wrap; and back, with colours and cursor as usual.
const ENTER_PAGE: &str = "\x1b[?1049h\x1b[?7l";
const LEAVE_PAGE: &str = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l";
/// To the last line, for a message.
const LAST_LINE: &str = "\x1b[0m\x1b[999;1H\x1b[K";

fn lent() -> MutexGuard<'static, Option<Termios>> {
    LENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the guest has the terminal.
pub fn is_lent() -> bool {
    lent().is_some()
}

/// Puts the terminal on standard input, if there is one, into raw mode: every key is the guest's, and
/// what the guest writes reaches the screen unchanged.
///
/// # Errors
/// The terminal refuses its settings.
pub fn lend() -> io::Result<()> {
    let stdin = io::stdin();
    if !termios::isatty(&stdin) {
        return Ok(());
    }
    let mut lent = lent();
    if lent.is_none() {
        let settings = termios::tcgetattr(&stdin)?;
        let mut raw = settings.clone();
        raw.make_raw();
        termios::tcsetattr(&stdin, OptionalActions::Drain, &raw)?;
        *lent = Some(settings);
    }
    Ok(())
}

fn page() -> MutexGuard<'static, Page> {
    PAGE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write_now(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Turns to the page where the guest's screen is painted, or back to the usual one. Whether it showed before.
pub fn show_page(shown: bool) -> bool {
    let mut page = page();
    let before = page.shown;
    if before != shown {
        *page = Page { shown, blank: true, message: None };
        write_now(if shown { ENTER_PAGE } else { LEAVE_PAGE });
    }
    before
}

/// What to paint now; one that is blank is so once only.
pub fn page_state() -> PageState {
    let mut page = page();
    if !page.shown || page.message.is_some_and(|since| since.elapsed() < MESSAGE_TIME) {
        return PageState::Away;
    }
    let over = page.message.take().is_some();
    if std::mem::take(&mut page.blank) || over { PageState::Blank } else { PageState::Painted }
}

/// Writes to the page where the guest's screen is painted, if it shows.
pub fn paint(text: &str) {
    if page().shown {
        // Nobody to tell of a terminal that is gone.
        write_now(text);
    }
}

/// Gives the terminal back. Nothing happens unless it is lent.
pub fn restore() {
    show_page(false);
    if let Some(settings) = lent().take() {
        // Nothing can be done about a terminal that is gone.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Drain, &settings);
    }
}

/// Makes panics restore the terminal before they are told, so that the message can be read.
pub fn restore_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        tell(info);
    }));
}

/// Columns and rows of the window that shows standard output.
pub fn window() -> Option<(u16, u16)> {
    let size =
        termios::tcgetwinsize(io::stdout()).or_else(|_| termios::tcgetwinsize(io::stdin())).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Tells the person something, on standard error.
pub fn say(text: &str) {
    write_lines(&format!("xenolith: {}\n", text.trim_end()));
}

/// Shows the person text that needs no introduction, such as an answer, on standard error.
pub fn show(text: &str) {
    write_lines(text);
}

fn write_lines(text: &str) {
    let raw = is_lent() && termios::isatty(io::stderr());
    let mut text = if raw { text.replace('\n', "\r\n") } else { text.to_owned() };
    let mut page = page();
    if raw && page.shown {
        page.message = Some(Instant::now());
        text.insert_str(0, LAST_LINE);
        text.truncate(text.trim_end().len());
    }
    drop(page);
    // Standard error closed: nobody to tell.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Collects one log event and writes it as lines when it is complete.
#[derive(Debug, Default)]
pub struct LogWriter {
    event: Vec<u8>,
}

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.event.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        write_lines(&String::from_utf8_lossy(&self.event));
    }
}

/// What the serial line's writer and the run share: how to end the run when nobody can receive the
/// guest's bytes any more, and why it was ended.
#[derive(Debug, Default)]
pub struct Trouble {
    handle: OnceLock<Handle>,
    error: Mutex<Option<io::Error>>,
}

impl Trouble {
    /// From now on trouble ends the run.
    pub fn ends(&self, handle: Handle) {
        if self.handle.set(handle).is_err() {
            tracing::error!("one serial line was given two machines");
        }
    }

    /// What ended the run, if it was trouble.
    pub fn take(&self) -> Option<io::Error> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The guest's serial bytes on their way to a file: unbuffered, so that a prompt without a newline is
/// seen; patient with a non-blocking descriptor, as a terminal shared with other programs may be.
#[derive(Debug)]
pub struct SerialOutput {
    file: File,
    trouble: Arc<Trouble>,
    broken: bool,
}

impl SerialOutput {
    pub fn new(file: File, trouble: Arc<Trouble>) -> Self {
        Self { file, trouble, broken: false }
    }

    /// Standard output, without the line buffer of `io::stdout`.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn stdout(trouble: Arc<Trouble>) -> io::Result<Self> {
        Ok(Self::new(File::from(io::stdout().as_fd().try_clone_to_owned()?), trouble))
    }
}

impl Write for SerialOutput {
    /// Takes all of `bytes`. A failure ends the run and is not the guest's: it sees a line that takes
    /// everything.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() && !self.broken {
            match self.file.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // A poll that fails shows itself at the next write.
                    let _ = poll(&mut [PollFd::new(&self.file, PollFlags::OUT)], None);
                }
                Err(error) => {
                    self.broken = true;
                    *self.trouble.error.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some(error);
                    if let Some(handle) = self.trouble.handle.get() {
                        handle.quit();
                    }
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads standard input once, waiting for it; empty at its end, and when the terminal is gone.
pub fn read_input(buffer: &mut [u8]) -> &[u8] {
    let stdin = io::stdin();
    loop {
        match rustix::io::read(&stdin, &mut *buffer) {
            Ok(len) => return &buffer[..len],
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                if poll(&mut [PollFd::new(&stdin, PollFlags::IN)], None)
                    .is_err_and(|error| error != rustix::io::Errno::INTR)
                {
                    return &[];
                }
            }
            Err(_) => return &[],
        }
    }
}
