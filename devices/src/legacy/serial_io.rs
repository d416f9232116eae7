//! The host's ends of a serial line: where a UART's bytes go and come from.
//!
//! Problem: a guest writes bytes one by one, from any vCPU, and must not wait for a host write each;
//! but nothing may stay behind, neither in time nor at the end. Scheme: [`SerialOutput`] is a buffer
//! with one writer thread, which gathers for [`GATHER`] after the first byte and writes all there is.
//! Invariants: bytes leave in order, each once; none waits longer than `GATHER` plus the host's write;
//! the buffer is bounded: above [`BUSY_BYTES`] the UART shows a busy transmitter, and at [`FULL_BYTES`]
//! (a guest that never looks) the pusher waits. A sink that fails (closed pipe) is reported once in
//! the log, and from then on takes and forgets everything. [`SerialOutput::finish`] returns when all is
//! written. Lock order: UART, then buffer; the writer calls the UART with no lock held.

use std::fmt;
use std::io::{ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::clock::lock;

/// How long the writer collects after the first byte: far below what a person or a test notices.
pub const GATHER: Duration = Duration::from_micros(500);
/// Unwritten bytes from which the transmitter looks busy to the guest.
pub const BUSY_BYTES: usize = 64 << 10;
/// Unwritten bytes from which a push waits for the host.
pub const FULL_BYTES: usize = 1 << 20;
/// Bytes that are worth writing without gathering more.
const ENOUGH_BYTES: usize = 4096;

#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// Bytes ever pushed, and those that the sink has got (or that are lost with it).
    pushed: u64,
    written: u64,
    /// The writer sleeps until a first byte comes.
    idle: bool,
    /// A push saw `BUSY_BYTES`: the UART is to be told when there is room.
    busy: bool,
    /// Nothing more is gathered; the writer drains and ends.
    closing: bool,
    /// Pushes no longer wait; see [`SerialOutput::finish`].
    abandoned: bool,
    ended: bool,
}

type Callback = Box<dyn Fn() + Send>;

struct Shared {
    buffer: Mutex<Buffer>,
    /// The writer waits here.
    more: Condvar,
    /// Pushers and finishers wait here.
    less: Condvar,
    on_room: Mutex<Option<Callback>>,
}

/// Where a UART's bytes go. Clones name the same line.
#[derive(Clone)]
pub struct SerialOutput(Arc<Shared>);

impl fmt::Debug for SerialOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let buffer = lock(&self.0.buffer);
        f.debug_struct("SerialOutput")
            .field("unwritten", &buffer.bytes.len())
            .field("ended", &buffer.ended)
            .finish_non_exhaustive()
    }
}

impl SerialOutput {
    /// Starts the writer thread for `sink`.
    ///
    /// # Errors
    /// If the host gives no thread.
    pub fn new(sink: Box<dyn Write + Send>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            buffer: Mutex::default(),
            more: Condvar::new(),
            less: Condvar::new(),
            on_room: Mutex::new(None),
        });
        let writer = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("serial-output".into())
            .spawn(move || writer.serve(sink))?;
        Ok(Self(shared))
    }

    /// A line that nobody listens to.
    #[must_use]
    pub fn none() -> Self {
        let buffer = Buffer { closing: true, abandoned: true, ended: true, ..Buffer::default() };
        Self(Arc::new(Shared {
            buffer: Mutex::new(buffer),
            more: Condvar::new(),
            less: Condvar::new(),
            on_room: Mutex::new(None),
        }))
    }

    /// Sets what to do when a busy line has room again. Called on the writer thread, no lock held.
    pub(super) fn on_room(&self, callback: Callback) {
        *lock(&self.0.on_room) = Some(callback);
    }

    /// Sends a byte. Returns whether the line is now busy; then `on_room` will be called.
    pub(super) fn push(&self, byte: u8) -> bool {
        let mut buffer = lock(&self.0.buffer);
        while buffer.bytes.len() >= FULL_BYTES && !buffer.abandoned {
            buffer = wait(&self.0.less, buffer, None);
        }
        if buffer.ended || buffer.abandoned {
            return false;
        }
        buffer.bytes.push(byte);
        buffer.pushed += 1;
        // A sleeping writer is woken by the first byte; one that gathers, when there is enough.
        if buffer.idle || buffer.bytes.len() == ENOUGH_BYTES {
            buffer.idle = false;
            self.0.more.notify_one();
        }
        buffer.busy |= buffer.bytes.len() >= BUSY_BYTES;
        buffer.busy
    }

    /// Waits until everything pushed so far is written, at most `limit`. True if it is. What others push
    /// meanwhile, perhaps without end, is not waited for.
    pub fn flush(&self, limit: Duration) -> bool {
        let end = Instant::now().checked_add(limit);
        let mut buffer = lock(&self.0.buffer);
        let wanted = buffer.pushed;
        while buffer.written < wanted && !buffer.ended {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            buffer = wait(&self.0.less, buffer, left);
        }
        true
    }

    /// Ends the line: writes what is left, at most for `limit`, then drops the sink (at the limit, as
    /// soon as its write returns). True if everything was written. Call it before the process ends.
    pub fn finish(&self, limit: Duration) -> bool {
        self.close();
        let done = self.flush(limit);
        lock(&self.0.buffer).abandoned = true;
        self.0.less.notify_all();
        done
    }

    /// Lets the writer end when it has written everything; does not wait.
    pub(super) fn close(&self) {
        lock(&self.0.buffer).closing = true;
        self.0.more.notify_all();
    }
}

/// For devices that send more than a byte at a time. Never fails; waits while the line is full.
impl Write for SerialOutput {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for &byte in bytes {
            self.push(byte);
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Shared {
    /// Body of the writer thread.
    fn serve(&self, mut sink: Box<dyn Write + Send>) {
        let mut alive = true;
        let mut batch = Vec::new();
        loop {
            let mut buffer = lock(&self.buffer);
            if buffer.bytes.is_empty() {
                if buffer.closing {
                    buffer.ended = true;
                    drop(buffer);
                    self.less.notify_all();
                    return;
                }
                buffer.idle = true;
                drop(wait(&self.more, buffer, None));
                continue;
            }
            buffer.idle = false;
            if buffer.bytes.len() < ENOUGH_BYTES && !buffer.closing {
                buffer = wait(&self.more, buffer, Some(GATHER));
            }
            std::mem::swap(&mut batch, &mut buffer.bytes);
            drop(buffer);

            if alive && let Err(error) = self.write(&mut *sink, &batch) {
                tracing::warn!("serial output is lost from here on: {error}");
                alive = false;
            }
            let mut buffer = lock(&self.buffer);
            buffer.written += batch.len() as u64;
            batch.clear();
            let room = buffer.busy && buffer.bytes.len() < BUSY_BYTES;
            if room {
                buffer.busy = false;
            }
            drop(buffer);
            self.less.notify_all();
            if room && let Some(callback) = lock(&self.on_room).as_ref() {
                callback();
            }
        }
    }

    /// Writes all of `bytes`, also to a descriptor that somebody made non-blocking.
    fn write(&self, sink: &mut dyn Write, mut bytes: &[u8]) -> std::io::Result<()> {
        loop {
            let result =
                if bytes.is_empty() { sink.flush().map(|()| 0) } else { sink.write(bytes) };
            match result {
                Ok(_) if bytes.is_empty() => return Ok(()),
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if lock(&self.buffer).abandoned {
                        return Err(error);
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn wait<'a>(
    condvar: &Condvar,
    guard: MutexGuard<'a, Buffer>,
    limit: Option<Duration>,
) -> MutexGuard<'a, Buffer> {
    use std::sync::PoisonError;
    match limit {
        None => condvar.wait(guard).unwrap_or_else(PoisonError::into_inner),
        Some(limit) => condvar.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner).0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Collects bytes and counts writes; optionally fails after some bytes.
    #[derive(Clone, Default)]
    struct Sink {
        got: Arc<Mutex<(Vec<u8>, usize)>>,
        fail_after: Option<usize>,
        pause: Duration,
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            std::thread::sleep(self.pause);
            let mut got = lock(&self.got);
            if self.fail_after.is_some_and(|limit| got.0.len() >= limit) {
                return Err(ErrorKind::BrokenPipe.into());
            }
            got.0.extend_from_slice(bytes);
            got.1 += 1;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn all_bytes_are_out_in_order_with_few_writes() {
        let sink = Sink::default();
        let output = SerialOutput::new(Box::new(sink.clone())).expect("a thread");
        let sent: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        for &byte in &sent {
            output.push(byte);
        }
        assert!(output.finish(Duration::from_secs(60)));
        let got = lock(&sink.got);
        assert!(got.0 == sent, "bytes lost or reordered");
        assert!(got.1 < 5_000, "{} host writes for 200,000 bytes", got.1);
    }

    #[test]
    fn a_lone_byte_comes_out_by_itself() {
        let sink = Sink::default();
        let output = SerialOutput::new(Box::new(sink.clone())).expect("a thread");
        output.push(b'$');
        let start = Instant::now();
        while lock(&sink.got).0.is_empty() {
            assert!(start.elapsed() < Duration::from_secs(60), "the byte was held back");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_closed_pipe_swallows_and_never_blocks() {
        let sink = Sink { fail_after: Some(1), ..Sink::default() };
        let output = SerialOutput::new(Box::new(sink.clone())).expect("a thread");
        for _ in 0..3 * FULL_BYTES {
            output.push(b'x');
        }
        assert!(output.finish(Duration::from_secs(60)));
        output.push(b'y');
        assert!(output.finish(Duration::ZERO));
    }

    #[test]
    fn whoever_pushes_without_end_does_not_hold_up_the_end() {
        let sink = Sink { pause: Duration::from_millis(5), ..Sink::default() };
        let output = SerialOutput::new(Box::new(sink)).expect("a thread");
        let (pusher, stop) = (output.clone(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                pusher.push(b'x');
            }
        });
        while lock(&output.0.buffer).pushed < FULL_BYTES as u64 {
            std::thread::yield_now();
        }
        assert!(output.flush(Duration::from_secs(60)) && output.finish(Duration::from_secs(60)));
        stop.store(true, Ordering::Relaxed);
        thread.join().expect("the pusher is let go");
    }

    #[test]
    fn a_stuck_reader_shows_busy_and_ends_at_the_limit() {
        let sink = Sink { pause: Duration::from_secs(3), ..Sink::default() };
        let output = SerialOutput::new(Box::new(sink)).expect("a thread");
        let busy = (0..2 * BUSY_BYTES).filter(|_| output.push(b'x')).count();
        assert!(busy > 0, "the line never looked busy");
        assert!(!output.finish(Duration::from_millis(1)));
        for _ in 0..2 * FULL_BYTES {
            output.push(b'z');
        }
    }
}
