//! A client of the GDB remote serial protocol, as far as QEMU needs it.
//!
//! Problem: QEMU can be stopped, stepped and written to only through its debugger's socket. Scheme: one
//! request, one reply, over a Unix socket, each acknowledged. Invariants: no request is sent while the
//! guest runs but the interrupt byte; a reply that does not come in time is an error, never a wait for
//! ever. Source: GDB manual, "The GDB Remote Serial Protocol"; QEMU manual, "GDB usage".

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::DiffError;

/// How long QEMU may take for anything but running the guest.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes written in one packet: half a packet of QEMU's, in hexadecimal digits.
const WRITE_MAX: usize = 1024;

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
}

fn lost(error: impl std::fmt::Display) -> DiffError {
    DiffError::Qemu(format!("its debugger's connection is lost ({error})"))
}

impl Gdb {
    /// # Errors
    /// The socket's.
    pub fn new(socket: UnixStream) -> Result<Self, DiffError> {
        socket.set_write_timeout(Some(PATIENCE)).map_err(lost)?;
        let mut gdb = Self { socket, received: Vec::new() };
        gdb.ask("qSupported")?;
        // Only who has asked for the description may write single registers.
        gdb.ask("qXfer:features:read:target.xml:0,fff")?;
        // Memory is addressed physically from now on.
        gdb.command("Qqemu.PhyMemMode:1")?;
        Ok(gdb)
    }

    fn send(&mut self, request: &str) -> Result<(), DiffError> {
        let sum = request.bytes().fold(0u8, u8::wrapping_add);
        let packet = format!("${request}#{sum:02x}");
        self.socket.write_all(packet.as_bytes()).map_err(lost)
    }

    /// The next reply; `None` if none came in time.
    fn reply(&mut self, patience: Duration) -> Result<Option<String>, DiffError> {
        self.socket.set_read_timeout(Some(patience)).map_err(lost)?;
        loop {
            if let Some(text) = self.parse() {
                self.socket.write_all(b"+").map_err(lost)?;
                return Ok(Some(text));
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
        self.send(request)?;
        self.reply(PATIENCE)?.ok_or_else(|| lost(format!("no answer to {request:.20}")))
    }

    fn command(&mut self, request: &str) -> Result<(), DiffError> {
        match self.ask(request)?.as_str() {
            "OK" => Ok(()),
            answer => Err(DiffError::Qemu(format!("it answers {answer:?} to {request:.40}"))),
        }
    }

    /// All registers, in QEMU's order.
    pub fn registers(&mut self) -> Result<Vec<u8>, DiffError> {
        let text = self.ask("g")?;
        let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0) as u8;
        Ok(text.as_bytes().chunks_exact(2).map(|it| digit(it[0]) << 4 | digit(it[1])).collect())
    }

    /// Writes one register.
    pub fn set_register(&mut self, number: usize, bytes: &[u8]) -> Result<(), DiffError> {
        self.command(&format!("P{number:x}={}", hex(bytes)))
    }

    /// Writes physical memory; QEMU forgets what it has translated from there.
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
        self.send("c")
    }

    /// Lets the guest run to a breakpoint, or for `limit`.
    pub fn go(&mut self, limit: Duration) -> Result<Stopped, DiffError> {
        self.send("c")?;
        if self.reply(limit)?.is_some() {
            return Ok(Stopped::Trap);
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
        let mut gdb = Gdb { socket: ours, received: Vec::new() };
        theirs.write_all(b"++$T05thr").expect("room");
        assert_eq!(gdb.reply(Duration::from_millis(10)).expect("open"), None);
        theirs.write_all(b"ead:01;#07+$OK#9a").expect("room");
        let soon = Duration::from_secs(5);
        assert_eq!(gdb.reply(soon).expect("open").as_deref(), Some("T05thread:01;"));
        assert_eq!(gdb.reply(soon).expect("open").as_deref(), Some("OK"));
        drop(theirs);
        assert!(gdb.reply(soon).is_err(), "an ended QEMU is an error");
    }
}
