//! Lines from typed bytes.
//!
//! Problem: a raw terminal neither shows what is typed nor corrects it. Scheme: a state machine that takes a
//! byte at a time and says what to show: printable characters, backspace, Ctrl-U and Ctrl-W, Ctrl-C for an empty
//! line, and the arrows up and down through what was entered before. Invariants: the line and the history are
//! bounded; what is shown is always the line. The input thread.

/// Longest line; more is not taken.
const LINE_MAX: usize = 1024;
const HISTORY_MAX: usize = 100;

/// How far into an escape sequence the bytes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    Started,
    /// After ESC and `[` or `O`.
    Control,
}

/// A line in the making.
#[derive(Debug, Default)]
pub struct Editor {
    line: String,
    history: Vec<String>,
    /// Which entry of the history the line came from; its length: none.
    at: usize,
    escape: Escape,
    /// The last byte was a carriage return: a line feed after it is the same end.
    after_return: bool,
}

impl Editor {
    /// Takes a byte: what to show for it, and the line if it ends one.
    pub fn feed(&mut self, byte: u8) -> (String, Option<String>) {
        let after_return = std::mem::take(&mut self.after_return);
        match std::mem::take(&mut self.escape) {
            Escape::Started if byte == b'[' || byte == b'O' => {
                self.escape = Escape::Control;
                return Default::default();
            }
            Escape::Control => {
                return (
                    match byte {
                        b'A' => self.recall(self.at.saturating_sub(1)),
                        b'B' => self.recall(self.at + 1),
                        0x20..=0x3f => {
                            self.escape = Escape::Control;
                            String::new()
                        }
                        _ => String::new(),
                    },
                    None,
                );
            }
            Escape::None | Escape::Started => {}
        }
        let shown = match byte {
            b'\n' if after_return => String::new(),
            b'\r' | b'\n' => {
                self.after_return = byte == b'\r';
                let line = std::mem::take(&mut self.line);
                if !line.trim().is_empty() && self.history.last() != Some(&line) {
                    self.history.push(line.clone());
                    if self.history.len() > HISTORY_MAX {
                        self.history.remove(0);
                    }
                }
                self.at = self.history.len();
                return ("\n".to_owned(), Some(line));
            }
            0x1b => {
                self.escape = Escape::Started;
                String::new()
            }
            0x08 | 0x7f => self.take_back(1),
            // Ctrl-W, Ctrl-U.
            0x17 => {
                let kept = self.line.trim_end().rfind(' ').map_or(0, |space| space + 1);
                self.take_back(self.line.len() - kept)
            }
            0x15 => self.take_back(self.line.len()),
            // Ctrl-C.
            0x03 => {
                self.line.clear();
                return ("^C\n".to_owned(), Some(String::new()));
            }
            0x20..=0x7e if self.line.len() < LINE_MAX => {
                self.line.push(char::from(byte));
                char::from(byte).to_string()
            }
            _ => String::new(),
        };
        (shown, None)
    }

    /// Takes characters off the end. All are ASCII.
    fn take_back(&mut self, count: usize) -> String {
        let count = count.min(self.line.len());
        self.line.truncate(self.line.len() - count);
        "\x08 \x08".repeat(count)
    }

    /// Puts an entry of the history in place of the line; behind the last there is an empty one.
    fn recall(&mut self, at: usize) -> String {
        let at = at.min(self.history.len());
        let erased = self.take_back(self.line.len());
        self.at = at;
        self.line = self.history.get(at).cloned().unwrap_or_default();
        erased + &self.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is entered by these bytes, and what is left of what was shown.
    fn type_in(editor: &mut Editor, bytes: &[u8]) -> (Vec<String>, String) {
        let (mut entered, mut seen) = (Vec::new(), String::new());
        for &byte in bytes {
            let (shown, line) = editor.feed(byte);
            for character in shown.chars() {
                match character {
                    '\x08' => {
                        seen.pop();
                    }
                    // The space that wipes a character out is taken back in its turn.
                    '\n' => seen.clear(),
                    _ => seen.push(character),
                }
            }
            entered.extend(line);
        }
        (entered, seen)
    }

    #[test]
    fn lines_can_be_corrected_and_recalled() {
        let mut editor = Editor::default();
        let (lines, _) = type_in(&mut editor, b"infx\x7fo \xc3\xa4pic\r\nhelp me\x17\x08\r");
        assert_eq!(lines, ["info pic", "help"]);
        let (lines, seen) = type_in(&mut editor, b"x\x1b[A\x1b[A\x1b[A");
        assert_eq!((lines.len(), seen.as_str()), (0, "info pic"));
        let (lines, seen) = type_in(&mut editor, b"\x1bOB");
        assert_eq!((lines.len(), seen.as_str()), (0, "help"));
        let (lines, _) = type_in(&mut editor, b"\n\n");
        assert_eq!(lines, ["help", ""]);
        let (lines, _) = type_in(&mut editor, b"abc\x15\x1b[1;5Cd\x1b[Be\x03");
        assert_eq!(lines, [""]);
    }

    #[test]
    fn a_line_is_bounded() {
        let mut editor = Editor::default();
        for _ in 0..3 * LINE_MAX {
            editor.feed(b'a');
        }
        assert_eq!(editor.feed(b'\r').1.map(|line| line.len()), Some(LINE_MAX));
    }
}
