//! Debug ports: bytes that firmware and small kernels write about themselves.
//!
//! Problem: firmware has something to say before there is any other output. Scheme: a port where each byte
//! written goes to the host; reading it tells that it is there. SeaBIOS uses 0x402, Bochs and many small
//! kernels 0xe9. Invariant: the guest never waits and never hears of a reader that is gone. Any thread,
//! under the device's lock. Source: Bochs, "port e9 hack"; QEMU's isa-debugcon.

use std::fmt;
use std::io::Write;

use crate::bus::BusDevice;

/// Where SeaBIOS writes.
pub const SEABIOS: u64 = 0x402;
pub const PORTS: [u64; 2] = [0xe9, SEABIOS];
/// What a port reads as when somebody listens.
const PRESENT: u64 = 0xe9;

/// One debug port.
pub struct DebugConsole(Box<dyn Write + Send>);

impl fmt::Debug for DebugConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DebugConsole").finish_non_exhaustive()
    }
}

impl DebugConsole {
    #[must_use]
    pub fn new(output: Box<dyn Write + Send>) -> Self {
        Self(output)
    }
}

impl BusDevice for DebugConsole {
    fn read(&mut self, _: u64, _: u8) -> u64 {
        PRESENT
    }
    fn write(&mut self, _: u64, _: u8, value: u64) {
        let _ = self.0.write_all(&[(value & 0xff) as u8]);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::clock::lock;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            lock(&self.0).extend(bytes);
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_go_out_whether_or_not_anybody_takes_them() {
        let kept = Kept::default();
        let mut port = DebugConsole::new(Box::new(kept.clone()));
        assert_eq!(port.read(0, 1), 0xe9);
        port.write(0, 1, u64::from(b'h'));
        port.write(0, 1, u64::from(b'i'));
        assert_eq!(*lock(&kept.0), b"hi");
    }
}
