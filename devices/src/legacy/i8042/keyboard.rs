//! The PS/2 keyboard, and the scan code translation of the controller.
//!
//! Problem: keys come from the host as one code, and leave in the scan code set that the guest chose.
//! Scheme: the key's set 1 code is its name; set 2, the keyboard's default, comes from [`SET2`], and
//! the controller's translation is the same table backwards. Invariants: answers go before key events;
//! a new command drops what was not yet sent of the last one's answer; a key that finds the event
//! queue full is dropped whole. Source: IBM PS/2 Hardware Interface Technical Reference, "Keyboards
//! (101- and 102-Key)".

use std::collections::VecDeque;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_OK: u8 = 0xaa;
const BREAK: u8 = 0xf0;
const EXTENDED: u8 = 0xe0;
const EVENTS_MAX: usize = 256;

/// Set 2 make code of each set 1 make code.
#[rustfmt::skip]
const SET2: [u8; 128] = [
    0x00, 0x76, 0x16, 0x1e, 0x26, 0x25, 0x2e, 0x36, 0x3d, 0x3e, 0x46, 0x45, 0x4e, 0x55, 0x66, 0x0d,
    0x15, 0x1d, 0x24, 0x2d, 0x2c, 0x35, 0x3c, 0x43, 0x44, 0x4d, 0x54, 0x5b, 0x5a, 0x14, 0x1c, 0x1b,
    0x23, 0x2b, 0x34, 0x33, 0x3b, 0x42, 0x4b, 0x4c, 0x52, 0x0e, 0x12, 0x5d, 0x1a, 0x22, 0x21, 0x2a,
    0x32, 0x31, 0x3a, 0x41, 0x49, 0x4a, 0x59, 0x7c, 0x11, 0x29, 0x58, 0x05, 0x06, 0x04, 0x0c, 0x03,
    0x0b, 0x02, 0x0a, 0x01, 0x09, 0x77, 0x7e, 0x6c, 0x75, 0x7d, 0x7b, 0x6b, 0x73, 0x74, 0x79, 0x69,
    0x72, 0x7a, 0x70, 0x71, 0x7f, 0x60, 0x61, 0x78, 0x07, 0x0f, 0x17, 0x1f, 0x27, 0x2f, 0x37, 0x3f,
    0x47, 0x4f, 0x56, 0x5e, 0x08, 0x10, 0x18, 0x20, 0x28, 0x30, 0x38, 0x40, 0x48, 0x50, 0x57, 0x6f,
    0x13, 0x19, 0x39, 0x51, 0x53, 0x5c, 0x5f, 0x62, 0x63, 0x64, 0x65, 0x67, 0x68, 0x6a, 0x6d, 0x6e,
];

/// The controller's translation: set 1 byte of each byte below 0x80 from the keyboard.
const SET1: [u8; 128] = {
    let mut table = [0; 128];
    let mut set1 = 0;
    while set1 < 128 {
        table[SET2[set1] as usize] = set1 as u8;
        set1 += 1;
    }
    table
};

/// A key by its set 1 make code: `0xNN`, `0xe0NN` for the extended keys, [`Key::PAUSE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(pub u16);

impl Key {
    /// The one key with a two-code sequence, and none on release.
    pub const PAUSE: Self = Self(0xe11d);
}

/// Scan code translation: break prefixes become bit 7.
#[derive(Debug, Default)]
pub(super) struct Translation {
    releasing: bool,
}

impl Translation {
    /// The byte that the guest gets for a byte from the keyboard, if it gets one.
    pub(super) fn translate(&mut self, byte: u8) -> Option<u8> {
        if byte == BREAK {
            self.releasing = true;
            return None;
        }
        let release = if std::mem::take(&mut self.releasing) { 0x80 } else { 0 };
        Some(match byte {
            // F7 and Alt-SysRq lie beyond the table.
            0x83 => 0x41 | release,
            0x84 => 0x54 | release,
            0x00..=0x7f => SET1[usize::from(byte)] | release,
            _ => byte,
        })
    }
}

/// A command that waits for its parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parameter {
    None,
    Leds,
    ScanCodeSet,
    Typematic,
}

#[derive(Debug)]
pub(super) struct Keyboard {
    answers: VecDeque<u8>,
    events: VecDeque<u8>,
    parameter: Parameter,
    scanning: bool,
    scan_code_set: u8,
    leds: u8,
    last_sent: u8,
}

impl Keyboard {
    pub(super) fn new() -> Self {
        Self {
            answers: VecDeque::new(),
            events: VecDeque::new(),
            parameter: Parameter::None,
            scanning: true,
            scan_code_set: 2,
            leds: 0,
            last_sent: 0,
        }
    }

    pub(super) fn leds(&self) -> u8 {
        self.leds
    }

    /// The next byte for the controller.
    pub(super) fn next(&mut self) -> Option<u8> {
        let byte = self.answers.pop_front().or_else(|| self.events.pop_front())?;
        self.last_sent = byte;
        Some(byte)
    }

    pub(super) fn key(&mut self, key: Key, down: bool) -> bool {
        let mut bytes = Vec::with_capacity(8);
        if key == Key::PAUSE {
            if down {
                bytes.extend(match self.scan_code_set {
                    1 => [0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5].as_slice(),
                    _ => [0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77].as_slice(),
                });
            }
        } else {
            let [set1, prefix] = key.0.to_le_bytes();
            let set1 = set1 & 0x7f;
            if prefix == EXTENDED {
                bytes.push(EXTENDED);
            }
            match (self.scan_code_set, down) {
                (1, true) => bytes.push(set1),
                (1, false) => bytes.push(set1 | 0x80),
                (_, true) => bytes.push(make_set2(set1)),
                (_, false) => bytes.extend([BREAK, make_set2(set1)]),
            }
        }
        if !self.scanning || self.events.len() + bytes.len() > EVENTS_MAX {
            return false;
        }
        self.events.extend(bytes);
        true
    }

    fn answer(&mut self, bytes: &[u8]) {
        self.answers.clear();
        self.answers.extend(bytes);
    }

    fn set_defaults(&mut self) {
        self.events.clear();
        self.scan_code_set = 2;
    }

    /// The host sends a command or a parameter.
    pub(super) fn write(&mut self, byte: u8) {
        // A parameter is below 0x80; any command ends the waiting for one.
        let parameter = std::mem::replace(&mut self.parameter, Parameter::None);
        if byte < 0x80 && parameter != Parameter::None {
            return self.write_parameter(parameter, byte);
        }
        match byte {
            0xed => {
                self.parameter = Parameter::Leds;
                self.answer(&[ACK]);
            }
            0xee => self.answer(&[0xee]),
            0xf0 => {
                self.parameter = Parameter::ScanCodeSet;
                self.answer(&[ACK]);
            }
            0xf2 => self.answer(&[ACK, 0xab, 0x83]),
            0xf3 => {
                self.parameter = Parameter::Typematic;
                self.answer(&[ACK]);
            }
            0xf4 => {
                self.events.clear();
                self.scanning = true;
                self.answer(&[ACK]);
            }
            0xf5 => {
                self.set_defaults();
                self.scanning = false;
                self.answer(&[ACK]);
            }
            0xf6 => {
                self.set_defaults();
                self.answer(&[ACK]);
            }
            // Key types of set 3, which this keyboard takes note of and does not have.
            0xf7..=0xfa => self.answer(&[ACK]),
            0xfe => self.answer(&[self.last_sent]),
            0xff => {
                *self = Self::new();
                self.answer(&[ACK, SELF_TEST_OK]);
            }
            _ => self.answer(&[RESEND]),
        }
    }

    fn write_parameter(&mut self, parameter: Parameter, value: u8) {
        match (parameter, value) {
            (Parameter::Leds, _) => self.leds = value & 7,
            (Parameter::ScanCodeSet, 0) => return self.answer(&[ACK, self.scan_code_set]),
            (Parameter::ScanCodeSet, 1 | 2) => self.scan_code_set = value,
            (Parameter::ScanCodeSet, _) => return self.answer(&[RESEND]),
            // The host's own key repeat is what arrives.
            (Parameter::Typematic | Parameter::None, _) => {}
        }
        self.answer(&[ACK]);
    }
}

/// Set 2 code of a key; F7 and Alt-SysRq have theirs beyond the table.
fn make_set2(set1: u8) -> u8 {
    match set1 {
        0x41 => 0x83,
        0x54 => 0x84,
        _ => SET2[usize::from(set1 & 0x7f)],
    }
}
