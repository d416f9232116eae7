//! A client of the GDB remote serial protocol, as far as QEMU needs it.
//!
//! Problem: QEMU can be stopped, stepped and written to only through its debugger's socket, and a round trip takes
//! longer than thousands of guest instructions. Scheme: a Unix socket. Requests that are answered by "OK" only are
//! *queued*, and sent in one piece with the next that is asked for an answer or lets the guest run; their answers are
//! read then. Replies are not acknowledged: QEMU takes the next request for it. Invariants: no request is sent while
//! the guest runs but the interrupt byte, so one that lets it run is the last of its piece; who looks at QEMU's memory
//! past the socket has called [`Gdb::settle`]; a reply that does not come in time is an error, never a wait for ever.
//! Source: GDB manual, "The GDB Remote Serial Protocol"; QEMU manual, "GDB usage".

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::DiffError;
use crate::cpu_time::CpuClock;

/// How long QEMU may take to start, and for anything but running the guest.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// A guest that has run for so many times its limit is late, though QEMU has hardly had a processor.
const WAITS_MAX: u32 = 20;
/// Bytes written in one packet: half a packet of QEMU's, in hexadecimal digits.
const WRITE_MAX: usize = 1024;
/// Requests that are queued at most: their answers must find room in the socket.
const QUEUED_MAX: usize = 64;

/// Why the guest stands again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    Trap,
    /// It ran too long and was interrupted.
    Late,
}

/// A connection.
#[derive(Debug)]
pub struct Gdb {
    socket: UnixStream,
    received: Vec<u8>,
    patience: Duration,
    /// QEMU's processor time.
    clock: Option<CpuClock>,
    /// Requests that have not been sent, and how many "OK" are still to come, those for them included.
    queue: String,
    owed: usize,
}

fn lost(error: impl std::fmt::Display) -> DiffError {
    DiffError::Qemu(format!("its debugger's connection is lost ({error})"))
}

impl Gdb {
    /// A connection to the QEMU with the process id `pid`.
    ///
    /// # Errors
    /// The socket's.
    pub fn new(socket: UnixStream, pid: u32) -> Result<Self, DiffError> {
        socket.set_write_timeout(Some(PATIENCE)).map_err(lost)?;
        let mut gdb = Self::on(socket);
        gdb.clock = CpuClock::of_process(pid);
        gdb.ask("qSupported")?;
        // Only who has asked for the description may write single registers.
        gdb.ask("qXfer:features:read:target.xml:0,fff")?;
        // Memory is addressed physically from now on.
        gdb.command("Qqemu.PhyMemMode:1")?;
        Ok(gdb)
    }

    fn on(socket: UnixStream) -> Self {
        let queue = String::new();
        let (received, patience) = (Vec::new(), Duration::ZERO);
        Self { socket, received, patience, clock: None, queue, owed: 0 }
    }

    fn enqueue(&mut self, request: &str) {
        let sum = request.bytes().fold(0u8, u8::wrapping_add);
        // Writing to a String can't fail.
        let _ = write!(self.queue, "${request}#{sum:02x}");
    }

    /// Sends what is queued and reads the answers that are owed.
    fn send(&mut self) -> Result<(), DiffError> {
        self.socket.write_all(self.queue.as_bytes()).map_err(lost)?;
        self.queue.clear();
        while self.owed > 0 {
            match self.reply(PATIENCE)?.as_deref() {
                Some("OK") => self.owed -= 1,
                Some(answer) => {
                    let text = format!("its debugger answers {answer:?} to a request");
                    return Err(DiffError::Qemu(text));
                }
                None => return Err(lost("no answer to a request")),
            }
        }
        Ok(())
    }

    /// Has all that is queued done.
    ///
    /// # Errors
    /// QEMU refuses one of the requests, or is gone.
    pub fn settle(&mut self) -> Result<(), DiffError> {
        if self.owed > 0 { self.send() } else { Ok(()) }
    }

    /// The next reply; `None` if none came in time.
    fn reply(&mut self, patience: Duration) -> Result<Option<String>, DiffError> {
        loop {
            if let Some(text) = self.parse() {
                return Ok(Some(text));
            }
            if self.patience != patience {
                self.socket.set_read_timeout(Some(patience)).map_err(lost)?;
                self.patience = patience;
            }
            let mut buffer = [0; 4096];
            match self.socket.read(&mut buffer) {
                Ok(0) => return Err(lost("QEMU has ended")),
                Ok(len) => self.received.extend(&buffer[..len]),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => return Ok(None),
                    ErrorKind::Interrupted => {}
                    _ => return Err(lost(error)),
                },
            }
        }
    }

    /// Takes a whole packet out of what was received.
    fn parse(&mut self) -> Option<String> {
        let start = self.received.iter().position(|&byte| byte == b'$')?;
        let len = self.received[start..].iter().position(|&byte| byte == b'#')?;
        let end = start + len;
        // Two digits of checksum follow; a local socket needs none.
        if self.received.len() < end + 3 {
            return None;
        }
        let text = String::from_utf8_lossy(&self.received[start + 1..end]).into_owned();
        self.received.drain(..end + 3);
        Some(text)
    }

    fn ask(&mut self, request: &str) -> Result<String, DiffError> {
        self.enqueue(request);
        self.send()?;
        self.reply(PATIENCE)?.ok_or_else(|| lost(format!("no answer to {request:.20}")))
    }

    /// Queues a request that QEMU answers with "OK".
    fn command(&mut self, request: &str) -> Result<(), DiffError> {
        self.enqueue(request);
        self.owed += 1;
        if self.owed >= QUEUED_MAX { self.send() } else { Ok(()) }
    }

    /// All registers, in QEMU's order.
    pub fn registers(&mut self) -> Result<Vec<u8>, DiffError> {
        let text = self.ask("g")?;
        let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0) as u8;
        Ok(text.as_bytes().chunks_exact(2).map(|it| digit(it[0]) << 4 | digit(it[1])).collect())
    }

    /// Writes one register (queued).
    pub fn set_register(&mut self, number: usize, bytes: &[u8]) -> Result<(), DiffError> {
        self.command(&format!("P{number:x}={}", hex(bytes)))
    }

    /// Writes physical memory (queued); QEMU forgets what it has translated from there.
    pub fn write(&mut self, gpa: u64, bytes: &[u8]) -> Result<(), DiffError> {
        for (n, part) in bytes.chunks(WRITE_MAX).enumerate() {
            let at = gpa + (n * WRITE_MAX) as u64;
            self.command(&format!("M{at:x},{:x}:{}", part.len(), hex(part)))?;
        }
        Ok(())
    }

    /// Executes one instruction; of a repeated one, one iteration.
    pub fn step(&mut self) -> Result<(), DiffError> {
        self.ask("s").map(|_| ())
    }

    pub fn set_breakpoint(&mut self, linear: u64) -> Result<(), DiffError> {
        self.command(&format!("Z0,{linear:x},1"))
    }

    pub fn clear_breakpoint(&mut self, linear: u64) -> Result<(), DiffError> {
        self.command(&format!("z0,{linear:x},1"))
    }

    /// Lets the guest run for ever.
    pub fn run(&mut self) -> Result<(), DiffError> {
        self.enqueue("c");
        self.send()
    }

    /// Lets the guest run to a breakpoint, or for `limit` of QEMU's processor time.
    pub fn go(&mut self, limit: Duration) -> Result<Stopped, DiffError> {
        let used = |gdb: &Self| gdb.clock.and_then(CpuClock::now);
        let start = used(self);
        self.run()?;
        for _ in 0..WAITS_MAX {
            if self.reply(limit)?.is_some() {
                return Ok(Stopped::Trap);
            }
            let late = |(start, now)| now - start >= limit;
            if start.zip(used(self)).is_none_or(late) {
                break;
            }
        }
        self.socket.write_all(&[3]).map_err(lost)?;
        match self.reply(PATIENCE)? {
            Some(_) => Ok(Stopped::Late),
            None => Err(lost("QEMU doesn't stop")),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_in_pieces_and_with_noise() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        let mut gdb = Gdb::on(ours);
        theirs.write_all(b"++$T05thr").expect("room");
        assert_eq!(gdb.reply(Duration::from_millis(10)).expect("open"), None);
        theirs.write_all(b"ead:01;#07+$OK#9a").expect("room");
        let soon = Duration::from_secs(60);
        assert_eq!(gdb.reply(soon).expect("open").as_deref(), Some("T05thread:01;"));
        assert_eq!(gdb.reply(soon).expect("open").as_deref(), Some("OK"));
        drop(theirs);
        assert!(gdb.reply(soon).is_err(), "an ended QEMU is an error");
    }

    #[test]
    fn requests_without_an_answer_of_their_own_go_in_one_piece() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        let mut gdb = Gdb::on(ours);
        gdb.set_register(1, &[0xab]).expect("queued");
        gdb.set_breakpoint(0x10).expect("queued");
        theirs.write_all(b"+$OK#9a+$OK#9a+$T05#b9").expect("room");
        assert_eq!(gdb.go(Duration::from_secs(60)).expect("answered"), Stopped::Trap);
        let mut sent = [0; 64];
        let len = theirs.read(&mut sent).expect("open");
        assert_eq!(&sent[..len], b"$P1=ab#81$Z0,10,1#74$c#63");
        gdb.set_register(1, &[0xab]).expect("queued");
        theirs.write_all(b"$E22#a9").expect("room");
        assert!(gdb.settle().is_err(), "a refusal is told");
    }
}
