//! From what a terminal sends for keys to a keyboard's keys.
//!
//! Problem: a terminal sends characters and escape sequences, never a key's release. Scheme: each character or
//! sequence becomes one stroke: keys that go down in order and up again. What comes in one read belongs together,
//! so an escape character that nothing follows is the Escape key, and one before a character is Alt. Characters
//! that no key of the US layout makes are dropped. Pure, but for what a read cut off. Source: ECMA-48; xterm's
//! control sequences, "PC-Style Function Keys".

use xenolith_devices::legacy::i8042::Key;

use super::keys::{self, ALT, CONTROL, SHIFT};

const ESCAPE: u8 = 0x1b;
const KEY_ESCAPE: Key = Key(0x01);

/// Keys that are pressed together, the last of them the one that counts.
pub type Stroke = Vec<Key>;

/// The strokes that `typed`, read at once, stands for.
pub fn strokes(typed: &[u8]) -> Vec<Stroke> {
    let mut strokes = Vec::new();
    let mut rest = typed;
    while let [first, more @ ..] = rest {
        rest = more;
        if *first != ESCAPE {
            strokes.extend(character(*first));
            continue;
        }
        match more {
            [b'[' | b'O', ..] => {
                let (stroke, after) = sequence(more);
                strokes.extend(stroke);
                rest = after;
            }
            [ESCAPE, ..] | [] => strokes.push(vec![KEY_ESCAPE]),
            [next, after @ ..] => {
                if let Some(mut stroke) = character(*next) {
                    stroke.insert(0, ALT);
                    strokes.push(stroke);
                }
                rest = after;
            }
        }
    }
    strokes
}

fn character(byte: u8) -> Option<Stroke> {
    let with = |modifier, key| Some(vec![modifier, key]);
    match byte {
        b'\r' | b'\n' => Some(vec![Key(0x1c)]),
        b'\t' => Some(vec![Key(0x0f)]),
        0x7f => Some(vec![Key(0x0e)]),
        // Ctrl-Space; Ctrl-A to Ctrl-Z; Ctrl-\ to Ctrl-_.
        0 => with(CONTROL, Key(0x39)),
        0x01..=0x1a => with(CONTROL, keys::of_character(char::from(byte + b'a' - 1))?.0),
        0x1c..=0x1f => {
            with(CONTROL, keys::of_character(char::from(b"\\]6-"[usize::from(byte - 0x1c)]))?.0)
        }
        _ => {
            let (key, shift) = keys::of_character(char::from(byte)).filter(|_| byte.is_ascii())?;
            Some(if shift { vec![SHIFT, key] } else { vec![key] })
        }
    }
}

/// A sequence behind its escape character, and what follows it.
fn sequence(bytes: &[u8]) -> (Option<Stroke>, &[u8]) {
    // The Linux console's F1 to F5.
    if let [b'[', b'[', last, after @ ..] = bytes {
        let code = last.checked_sub(b'A').filter(|&n| n < 5).map(|n| Key(0x3b + u16::from(n)));
        return (code.map(|key| vec![key]), after);
    }
    let Some(end) = bytes[1..].iter().position(|byte| (0x40..0x7f).contains(byte)) else {
        // Alt-[ or Alt-O, or a sequence that was cut off.
        return match bytes {
            [one] => (character(*one).map(|stroke| [vec![ALT], stroke].concat()), &[]),
            _ => (None, &[]),
        };
    };
    let (parameters, last) = (&bytes[1..1 + end], bytes[1 + end]);
    let after = &bytes[end + 2..];
    let mut numbers = parameters.split(|&byte| byte == b';').map(|digits| {
        std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<u16>().ok())
    });
    let first = numbers.next().flatten();
    // One more than a sum of 1 for Shift, 2 for Alt and 4 for Control.
    let modifiers = numbers.next().flatten().unwrap_or(1).saturating_sub(1);
    let mut stroke = Vec::new();
    for (bit, modifier) in [(1, SHIFT), (2, ALT), (4, CONTROL)] {
        if modifiers & bit != 0 {
            stroke.push(modifier);
        }
    }
    let code = match (last, first) {
        (b'A', _) => 0xe048,
        (b'B', _) => 0xe050,
        (b'C', _) => 0xe04d,
        (b'D', _) => 0xe04b,
        (b'E', _) => 0x4c,
        (b'F', _) => 0xe04f,
        (b'H', _) => 0xe047,
        (b'P'..=b'S', _) => 0x3b + u16::from(last - b'P'),
        (b'Z', _) => {
            stroke = vec![SHIFT];
            0x0f
        }
        (b'~', Some(1 | 7)) => 0xe047,
        (b'~', Some(2)) => 0xe052,
        (b'~', Some(3)) => 0xe053,
        (b'~', Some(4 | 8)) => 0xe04f,
        (b'~', Some(5)) => 0xe049,
        (b'~', Some(6)) => 0xe051,
        // F1 to F5, F6 to F10, F11 and F12.
        (b'~', Some(number @ 11..=15)) => 0x3b + number - 11,
        (b'~', Some(number @ 17..=21)) => 0x40 + number - 17,
        (b'~', Some(number @ 23..=24)) => 0x57 + number - 23,
        _ => return (None, after),
    };
    stroke.push(Key(code));
    (Some(stroke), after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(typed: &[u8]) -> Vec<Vec<u16>> {
        strokes(typed).iter().map(|stroke| stroke.iter().map(|key| key.0).collect()).collect()
    }

    #[test]
    fn characters_become_strokes() {
        assert_eq!(codes(b"aA!\r"), [vec![0x1e], vec![0x2a, 0x1e], vec![0x2a, 0x02], vec![0x1c]]);
        assert_eq!(
            codes(b"\x03\x7f\t\x00\x1c"),
            [vec![0x1d, 0x2e], vec![0x0e], vec![0x0f], vec![0x1d, 0x39], vec![0x1d, 0x2b]]
        );
        assert_eq!(codes("äx".as_bytes()), [vec![0x2d]]);
    }

    #[test]
    fn sequences_become_strokes() {
        assert_eq!(codes(b"\x1b"), [[0x01]]);
        assert_eq!(codes(b"\x1b\x1b[A"), [[0x01], [0xe048]]);
        assert_eq!(codes(b"\x1bx\x1b["), [vec![0x38, 0x2d], vec![0x38, 0x1a]]);
        assert_eq!(
            codes(b"\x1b[1;5D\x1bOP\x1b[15~\x1b[24;2~"),
            [vec![0x1d, 0xe04b], vec![0x3b], vec![0x3f], vec![0x2a, 0x58]]
        );
        assert_eq!(
            codes(b"\x1b[[Bq\x1b[3~\x1b[Z"),
            [vec![0x3c], vec![0x10], vec![0xe053], vec![0x2a, 0x0f]]
        );
        assert_eq!(codes(b"\x1b[99~\x1b[12;"), Vec::<Vec<u16>>::new());
        for byte in 0..=255 {
            strokes(&[ESCAPE, b'[', byte, byte]);
            strokes(&[ESCAPE, byte]);
        }
    }
}
