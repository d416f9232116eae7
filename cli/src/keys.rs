//! The few keys that are ours: everything typed passes through here on its way to the guest.
//!
//! Scheme: Ctrl-A opens a command of one more byte, as in QEMU; all else is the guest's, unchanged and
//! in order. The state outlives a read, since the two bytes may arrive apart. The input thread.

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

pub const HELP: &str = "\
Ctrl-A, then X: quit, C: monitor and back, A: Ctrl-A itself, H: this";

/// What typed bytes ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// To the guest.
    Bytes(Vec<u8>),
    Quit,
    Help,
    /// To the monitor, or back to the guest.
    Monitor,
}

/// Whether a Ctrl-A waits for its command.
#[derive(Debug, Default)]
pub struct Keys {
    escaped: bool,
}

impl Keys {
    /// Splits `typed` into what is the guest's and what is ours.
    pub fn feed(&mut self, typed: &[u8]) -> Vec<Key> {
        let mut keys = Vec::new();
        let mut bytes = Vec::with_capacity(typed.len());
        for &byte in typed {
            if !std::mem::take(&mut self.escaped) {
                if byte == ESCAPE {
                    self.escaped = true;
                } else {
                    bytes.push(byte);
                }
                continue;
            }
            let command = match byte {
                b'x' | b'X' => Key::Quit,
                b'h' | b'H' | b'?' => Key::Help,
                b'c' | b'C' => Key::Monitor,
                b'a' | b'A' | ESCAPE => {
                    bytes.push(ESCAPE);
                    continue;
                }
                // Not a command: swallowed, as QEMU does, so that a slip doesn't reach the guest.
                _ => continue,
            };
            if !bytes.is_empty() {
                keys.push(Key::Bytes(std::mem::take(&mut bytes)));
            }
            keys.push(command);
        }
        if !bytes.is_empty() {
            keys.push(Key::Bytes(bytes));
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &[u8]) -> Key {
        Key::Bytes(text.to_vec())
    }

    #[test]
    fn plain_bytes_pass_unchanged() {
        let all: Vec<u8> = (0..=255).filter(|&b| b != ESCAPE).collect();
        assert_eq!(Keys::default().feed(&all), [bytes(&all)]);
        assert_eq!(Keys::default().feed(b""), []);
    }

    #[test]
    fn commands_keep_their_place() {
        let keys = Keys::default().feed(b"ab\x01hc\x01ad\x01\x01\x01zq\x01Cr\x01x");
        let rest = [bytes(b"c\x01d\x01q"), Key::Monitor, bytes(b"r"), Key::Quit];
        assert_eq!(keys, [[bytes(b"ab"), Key::Help].as_slice(), &rest].concat());
    }

    #[test]
    fn a_command_may_come_in_two_reads() {
        let mut keys = Keys::default();
        assert_eq!(keys.feed(b"a\x01"), [bytes(b"a")]);
        assert_eq!(keys.feed(b"X"), [Key::Quit]);
        assert_eq!(keys.feed(b"x"), [bytes(b"x")]);
    }
}
