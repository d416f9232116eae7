//! Keys by their names (QEMU's, for `sendkey`), characters (US layout) and X11 symbols.
//!
//! A key is its set 1 make code, which is what `devices` takes. Tables only; pure functions.
//! Source: X11's keysymdef.h for the numbers of symbols; IBM PS/2 Hardware Interface Technical Reference, "Scan
//! Code Tables".

use anyhow::{Context, Result, ensure};
use xenolith_devices::legacy::i8042::Key;

/// Keys that `sendkey` may press together, at most: as many as people have fingers.
const TOGETHER_MAX: usize = 10;

/// QEMU's names of keys. What is on a key in the US layout.
#[rustfmt::skip]
const NAMES: &[(&str, u16)] = &[
    ("esc", 0x01), ("1", 0x02), ("2", 0x03), ("3", 0x04), ("4", 0x05), ("5", 0x06), ("6", 0x07), ("7", 0x08),
    ("8", 0x09), ("9", 0x0a), ("0", 0x0b), ("minus", 0x0c), ("equal", 0x0d), ("backspace", 0x0e), ("tab", 0x0f),
    ("q", 0x10), ("w", 0x11), ("e", 0x12), ("r", 0x13), ("t", 0x14), ("y", 0x15), ("u", 0x16), ("i", 0x17),
    ("o", 0x18), ("p", 0x19), ("bracket_left", 0x1a), ("bracket_right", 0x1b), ("ret", 0x1c), ("ctrl", 0x1d),
    ("a", 0x1e), ("s", 0x1f), ("d", 0x20), ("f", 0x21), ("g", 0x22), ("h", 0x23), ("j", 0x24), ("k", 0x25),
    ("l", 0x26), ("semicolon", 0x27), ("apostrophe", 0x28), ("grave_accent", 0x29), ("shift", 0x2a),
    ("backslash", 0x2b), ("z", 0x2c), ("x", 0x2d), ("c", 0x2e), ("v", 0x2f), ("b", 0x30), ("n", 0x31),
    ("m", 0x32), ("comma", 0x33), ("dot", 0x34), ("slash", 0x35), ("shift_r", 0x36), ("kp_multiply", 0x37),
    ("alt", 0x38), ("spc", 0x39), ("caps_lock", 0x3a), ("f1", 0x3b), ("f2", 0x3c), ("f3", 0x3d), ("f4", 0x3e),
    ("f5", 0x3f), ("f6", 0x40), ("f7", 0x41), ("f8", 0x42), ("f9", 0x43), ("f10", 0x44), ("num_lock", 0x45),
    ("scroll_lock", 0x46), ("kp_7", 0x47), ("kp_8", 0x48), ("kp_9", 0x49), ("kp_subtract", 0x4a), ("kp_4", 0x4b),
    ("kp_5", 0x4c), ("kp_6", 0x4d), ("kp_add", 0x4e), ("kp_1", 0x4f), ("kp_2", 0x50), ("kp_3", 0x51),
    ("kp_0", 0x52), ("kp_decimal", 0x53), ("sysrq", 0x54), ("less", 0x56), ("f11", 0x57), ("f12", 0x58),
    ("kp_enter", 0xe01c), ("ctrl_r", 0xe01d), ("kp_divide", 0xe035), ("print", 0xe037), ("alt_r", 0xe038),
    ("home", 0xe047), ("up", 0xe048), ("pgup", 0xe049), ("left", 0xe04b), ("right", 0xe04d), ("end", 0xe04f),
    ("down", 0xe050), ("pgdn", 0xe051), ("insert", 0xe052), ("delete", 0xe053), ("meta_l", 0xe05b),
    ("meta_r", 0xe05c), ("menu", 0xe05d), ("pause", 0xe11d),
    // The same keys by other names.
    ("asterisk", 0x37), ("compose", 0xe05d), ("ctrl_l", 0x1d), ("shift_l", 0x2a), ("alt_l", 0x38),
];

/// Characters of the US layout from a key on: without and with Shift.
const CHARACTERS: &[(u16, &str, &str)] = &[
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1e, "asdfghjkl;'`", "ASDFGHJKL:\"~"),
    (0x2b, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
    (0x39, " ", " "),
];

/// X11's symbols of keys that make no character.
#[rustfmt::skip]
const SYMBOLS: &[(u32, u16)] = &[
    (0xff08, 0x0e), (0xff09, 0x0f), (0xfe20, 0x0f), (0xff0d, 0x1c), (0xff13, 0xe11d), (0xff14, 0x46),
    (0xff15, 0x54), (0xff1b, 0x01), (0xff50, 0xe047), (0xff51, 0xe04b), (0xff52, 0xe048), (0xff53, 0xe04d),
    (0xff54, 0xe050), (0xff55, 0xe049), (0xff56, 0xe051), (0xff57, 0xe04f), (0xff61, 0xe037), (0xff63, 0xe052),
    (0xff67, 0xe05d), (0xff7f, 0x45), (0xff8d, 0xe01c), (0xff95, 0x47), (0xff96, 0x4b), (0xff97, 0x48),
    (0xff98, 0x4d), (0xff99, 0x50), (0xff9a, 0x49), (0xff9b, 0x51), (0xff9c, 0x4f), (0xff9d, 0x4c),
    (0xff9e, 0x52), (0xff9f, 0x53), (0xffaa, 0x37), (0xffab, 0x4e), (0xffac, 0x53), (0xffad, 0x4a),
    (0xffae, 0x53), (0xffaf, 0xe035), (0xffb0, 0x52), (0xffb1, 0x4f), (0xffb2, 0x50), (0xffb3, 0x51),
    (0xffb4, 0x4b), (0xffb5, 0x4c), (0xffb6, 0x4d), (0xffb7, 0x47), (0xffb8, 0x48), (0xffb9, 0x49),
    (0xffbe, 0x3b), (0xffbf, 0x3c), (0xffc0, 0x3d), (0xffc1, 0x3e), (0xffc2, 0x3f), (0xffc3, 0x40),
    (0xffc4, 0x41), (0xffc5, 0x42), (0xffc6, 0x43), (0xffc7, 0x44), (0xffc8, 0x57), (0xffc9, 0x58),
    (0xffe1, 0x2a), (0xffe2, 0x36), (0xffe3, 0x1d), (0xffe4, 0xe01d), (0xffe5, 0x3a), (0xffe7, 0xe05b),
    (0xffe8, 0xe05c), (0xffe9, 0x38), (0xffea, 0xe038), (0xffeb, 0xe05b), (0xffec, 0xe05c),
    (0xffff, 0xe053),
];

pub const SHIFT: Key = Key(0x2a);
pub const SHIFT_RIGHT: Key = Key(0x36);
pub const CONTROL: Key = Key(0x1d);
pub const ALT: Key = Key(0x38);
pub const ALT_RIGHT: Key = Key(0xe038);
/// Keys that make something of others.
pub const MODIFIERS: [Key; 8] =
    [SHIFT, SHIFT_RIGHT, CONTROL, Key(0xe01d), ALT, ALT_RIGHT, Key(0xe05b), Key(0xe05c)];

/// X11's symbols of AltGr, in two generations of layouts.
pub const LEVEL_3_SHIFT: u32 = 0xfe03;
pub const MODE_SWITCH: u32 = 0xff7e;

/// The key that makes a character in the US layout, and whether Shift must be down for it.
pub fn of_character(character: char) -> Option<(Key, bool)> {
    CHARACTERS.iter().find_map(|&(first, plain, shifted)| {
        let at = |row: &str| (first..).zip(row.chars()).find(|&(_, it)| it == character);
        let plain = at(plain).map(|(code, _)| (Key(code), false));
        plain.or_else(|| at(shifted).map(|(code, _)| (Key(code), true)))
    })
}

/// The key with an X11 symbol; and for one that makes a character, whether Shift must be down for that.
pub fn of_symbol(symbol: u32) -> Option<(Key, Option<bool>)> {
    if let Some(character) = char::from_u32(symbol).filter(char::is_ascii) {
        // The space bar does it either way.
        let shift = |shift| (character != ' ').then_some(shift);
        return of_character(character).map(|(key, down)| (key, shift(down)));
    }
    SYMBOLS.iter().find(|&&(known, _)| known == symbol).map(|&(_, code)| (Key(code), None))
}

/// A key by the number that QEMU's VNC extension has: set 1, with 0x80 for 0xe0 in front.
pub fn of_number(number: u32) -> Option<Key> {
    let code = u16::try_from(number).ok().filter(|code| (1..=0xff).contains(code))?;
    Some(match code {
        0x54 => Key(0xe037),
        0xc6 => Key::PAUSE,
        _ if code & 0x80 != 0 => Key(0xe000 | code & 0x7f),
        _ => Key(code),
    })
}

/// The keys of a combination such as `ctrl-alt-delete`, in the order in which they go down.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn combination(text: &str) -> Result<Vec<Key>> {
    ensure!(!text.is_empty(), "a key must follow, as in ctrl-alt-delete");
    let keys = text.split('-').map(named).collect::<Result<Vec<_>>>()?;
    ensure!(keys.len() <= TOGETHER_MAX, "more than {TOGETHER_MAX} keys at once");
    Ok(keys)
}

/// A key by its name, or by its code after 0x as QEMU has it: set 1, with 0x80 for 0xe0 in front.
fn named(name: &str) -> Result<Key> {
    if let Some(digits) = name.strip_prefix("0x") {
        let code = u16::from_str_radix(digits, 16).ok().filter(|code| (1..=0xff).contains(code));
        let code = code.with_context(|| format!("{name}: not a key's code"))?;
        return Ok(Key(if code & 0x80 != 0 { 0xe000 | code & 0x7f } else { code }));
    }
    let found = NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    found.map(|&(_, code)| Key(code)).with_context(|| format!("{name:?} is no key's name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combinations_are_keys_in_order() {
        let codes =
            |text| combination(text).map(|keys| keys.iter().map(|key| key.0).collect::<Vec<_>>());
        assert_eq!(codes("ctrl-alt-delete").expect("known"), [0x1d, 0x38, 0xe053]);
        assert_eq!(codes("A").expect("known"), [0x1e]);
        assert_eq!(codes("0x1e-0xd3-pause").expect("known"), [0x1e, 0xe053, 0xe11d]);
        for bad in ["", "-", "ctrl-", "foo", "0x", "0x100", "0x0", "a-a-a-a-a-a-a-a-a-a-a"] {
            assert!(codes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn characters_and_symbols_have_their_keys() {
        assert_eq!(of_character('a'), Some((Key(0x1e), false)));
        assert_eq!(of_character('~'), Some((Key(0x29), true)));
        assert_eq!(of_character('|'), Some((Key(0x2b), true)));
        assert_eq!(of_character('/'), Some((Key(0x35), false)));
        let all = (0x20..0x7f).map(char::from).filter_map(of_character).count();
        assert_eq!(all, 95, "every printable character");
        assert_eq!(of_symbol(0x41), Some((Key(0x1e), Some(true))));
        assert_eq!(of_symbol(0xffff), Some((Key(0xe053), None)));
        assert_eq!((of_symbol(0x20ac), of_symbol(u32::MAX), of_symbol(0)), (None, None, None));
        assert_eq!(of_number(0xd3), Some(Key(0xe053)));
        assert_eq!(of_number(0xc6), Some(Key::PAUSE));
        assert_eq!((of_number(0), of_number(0x100)), (None, None));
        let mut symbols: Vec<_> = SYMBOLS.iter().map(|(symbol, _)| symbol).collect();
        symbols.sort();
        symbols.dedup();
        assert_eq!(symbols.len(), SYMBOLS.len());
    }

    #[test]
    fn no_two_names_are_the_same() {
        let mut names: Vec<_> = NAMES.iter().map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), NAMES.len());
    }
}
