//! The EEPROM: 64 words with the card's address, read through EERD or bit by bit through EECD.
//!
//! Scheme: the pins are those of a Microwire part: a start bit, two bits of operation and six of
//! address go in, then words come out, the next one behind each. Invariant: nothing is written; a driver
//! that tries sees a part that is ready and unchanged. Source: manual ch. 5, "EEPROM Interface" and
//! "EEPROM Address Map"; National Semiconductor NM93C46 data sheet.

use crate::net::Mac;

pub const DEVICE: u16 = 0x100e;
pub const SUBSYSTEM_VENDOR: u16 = 0x1af4;
pub const SUBSYSTEM: u16 = 0x1100;

const WORDS: usize = 64;
/// What all words add up to.
const SUM: u16 = 0xbaba;

const EECD_SK: u32 = 1 << 0;
const EECD_CS: u32 = 1 << 1;
const EECD_DI: u32 = 1 << 2;
const EECD_DO: u32 = 1 << 3;
/// The driver's bits: pins, flash write control, request.
const EECD_WRITABLE: u32 = EECD_SK | EECD_CS | EECD_DI | 3 << 4 | EECD_REQ;
const EECD_REQ: u32 = 1 << 6;
const EECD_GNT: u32 = 1 << 7;
const EECD_PRES: u32 = 1 << 8;

const EERD_START: u32 = 1 << 0;
const EERD_DONE: u32 = 1 << 4;

/// Start bit, operation and address.
const COMMAND_BITS: u32 = 9;
const READ: u32 = 0b110;

#[derive(Debug)]
pub struct Eeprom {
    words: [u16; WORDS],
    pins: u32,
    /// Bits that came in since the part was selected, from the start bit on, and how many.
    command: u32,
    bits: u32,
    /// The bit to come out next, counted from the first word's highest.
    next: Option<u32>,
    out: bool,
    register: u32,
}

impl Eeprom {
    pub fn new(mac: Mac) -> Self {
        let mut words = [0xffff; WORDS];
        for (word, bytes) in words.iter_mut().zip(mac.0.chunks_exact(2)) {
            *word = u16::from_le_bytes([bytes[0], bytes[1]]);
        }
        words[3..10].fill(0);
        // Initialization control 1: the signature of a valid part, and that the identities are here.
        words[0x0a] = 0x4003;
        words[0x0b] = SUBSYSTEM;
        words[0x0c] = SUBSYSTEM_VENDOR;
        words[0x0d] = DEVICE;
        words[0x0e] = 0x8086;
        // Initialization control 2: pause frames both ways.
        words[0x0f] = 0x3000;
        // No waking by magic packets.
        words[0x10..0x30].fill(0);
        let sum = words[..WORDS - 1].iter().fold(0_u16, |sum, &word| sum.wrapping_add(word));
        words[WORDS - 1] = SUM.wrapping_sub(sum);
        Self { words, pins: 0, command: 0, bits: 0, next: None, out: true, register: 0 }
    }

    pub fn reset(&mut self) {
        self.pins = 0;
        self.deselect();
        self.register = 0;
    }

    fn deselect(&mut self) {
        self.command = 0;
        self.bits = 0;
        self.next = None;
        self.out = true;
    }

    pub fn word(&self, index: usize) -> u16 {
        self.words.get(index).copied().unwrap_or(0)
    }

    /// EECD.
    pub fn read_pins(&self) -> u32 {
        let granted = if self.pins & EECD_REQ != 0 { EECD_GNT } else { 0 };
        let out = if self.out { EECD_DO } else { 0 };
        self.pins | granted | out | EECD_PRES
    }

    pub fn write_pins(&mut self, value: u32) {
        let rises = value & EECD_SK != 0 && self.pins & EECD_SK == 0;
        self.pins = value & EECD_WRITABLE;
        if value & EECD_CS == 0 {
            self.deselect();
        } else if rises {
            self.clock(value & EECD_DI != 0);
        }
    }

    fn clock(&mut self, bit: bool) {
        if let Some(next) = self.next {
            let word = self.words[(next / 16) as usize % WORDS];
            self.out = word >> (15 - next % 16) & 1 != 0;
            self.next = Some((next + 1) % (16 * WORDS as u32));
            return;
        }
        // Zeroes before the start bit don't count, nor does what follows other operations.
        if self.bits == 0 && !bit || self.bits == COMMAND_BITS {
            return;
        }
        self.command = self.command << 1 | u32::from(bit);
        self.bits += 1;
        if self.bits == COMMAND_BITS && self.command >> 6 == READ {
            self.next = Some(16 * (self.command & 0x3f));
            // A zero goes before the data.
            self.out = false;
        }
    }

    /// EERD.
    pub fn read_register(&self) -> u32 {
        self.register
    }

    pub fn write_register(&mut self, value: u32) {
        if value & EERD_START != 0 {
            let address = value >> 8 & 0xff;
            let word = self.word(address as usize);
            self.register = u32::from(word) << 16 | address << 8 | EERD_DONE;
        }
    }
}
