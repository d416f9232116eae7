//! The machine's console on the host side.
//!
//! Problem: the person's terminal outlives the boards that a guest's resets build, and a guest may have
//! its console on the serial port or on virtio-console. Scheme: [`Sink`] is one output that all of them
//! share, with whole writes under its lock; [`Input`] passes what is typed to the port that the person names, or the
//! last `console=` of the kernel's command line, of whatever board there is. The serial port is always heard,
//! virtio-console only if it is that port. Bytes that come while there
//! is none wait for the next. Any thread.

use std::fmt;
use std::io::Write;
use std::sync::{Arc, Mutex};

use xenolith_devices::clock::lock;

/// Bytes that wait for a board; more are dropped, as by a port whose other end is off.
const WAITING_MAX: usize = 64 << 10;

/// The one output.
#[derive(Clone)]
pub struct Sink(Arc<Mutex<Box<dyn Write + Send>>>);

impl Sink {
    #[must_use]
    pub fn new(output: Box<dyn Write + Send>) -> Self {
        Self(Arc::new(Mutex::new(output)))
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink").finish_non_exhaustive()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        lock(&self.0).write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        lock(&self.0).flush()
    }
}

/// A board's ends of the console.
pub trait Port: Send {
    /// Takes what was typed.
    fn receive(&self, bytes: &[u8]);
    /// The terminal's window has this size.
    fn resize(&self, columns: u16, rows: u16);
}

#[derive(Default)]
struct Inner {
    port: Option<Box<dyn Port>>,
    waiting: Vec<u8>,
    size: Option<(u16, u16)>,
}

/// The input side, shared by all boards in turn.
#[derive(Clone, Default)]
pub struct Input(Arc<Mutex<Inner>>);

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = lock(&self.0);
        f.debug_struct("Input").field("waiting", &inner.waiting.len()).finish_non_exhaustive()
    }
}

impl Input {
    /// A board is there, or with `None` gone.
    pub fn connect(&self, port: Option<Box<dyn Port>>) {
        let mut inner = lock(&self.0);
        if let Some(port) = &port {
            if let Some((columns, rows)) = inner.size {
                port.resize(columns, rows);
            }
            port.receive(&std::mem::take(&mut inner.waiting));
        }
        inner.port = port;
    }

    pub fn send(&self, bytes: &[u8]) {
        let mut inner = lock(&self.0);
        match &inner.port {
            Some(port) => port.receive(bytes),
            None => {
                let room = WAITING_MAX.saturating_sub(inner.waiting.len()).min(bytes.len());
                inner.waiting.extend_from_slice(&bytes[..room]);
            }
        }
    }

    pub fn resize(&self, columns: u16, rows: u16) {
        let mut inner = lock(&self.0);
        inner.size = Some((columns, rows));
        if let Some(port) = &inner.port {
            port.resize(columns, rows);
        }
    }
}

/// Whether a Linux command line puts `/dev/console` on virtio-console.
#[must_use]
pub fn is_on_virtio(command_line: &str) -> bool {
    let mut words = command_line.split_ascii_whitespace().rev();
    words
        .find_map(|word| word.strip_prefix("console="))
        .is_some_and(|console| console.starts_with("hvc"))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Recorder(Arc<Mutex<Vec<String>>>);

    impl Port for Recorder {
        fn receive(&self, bytes: &[u8]) {
            lock(&self.0).push(String::from_utf8_lossy(bytes).into_owned());
        }
        fn resize(&self, columns: u16, rows: u16) {
            lock(&self.0).push(format!("{columns}x{rows}"));
        }
    }

    #[test]
    fn what_comes_before_the_board_waits_for_it() {
        let (input, log) = (Input::default(), Arc::default());
        input.send(b"ab");
        input.resize(80, 25);
        input.connect(Some(Box::new(Recorder(Arc::clone(&log)))));
        input.send(b"c");
        input.connect(None);
        input.send(&[b'x'; 2 * WAITING_MAX]);
        input.resize(132, 50);
        input.connect(Some(Box::new(Recorder(Arc::clone(&log)))));
        let log = lock(&log);
        assert_eq!(log[..4], ["80x25", "ab", "c", "132x50"]);
        assert_eq!(log[4].len(), WAITING_MAX);
    }

    #[test]
    fn the_last_console_counts() {
        assert!(!is_on_virtio(""));
        assert!(!is_on_virtio("console=hvc0 console=ttyS0"));
        assert!(is_on_virtio("console=ttyS0,115200 quiet console=hvc0"));
    }
}
