//! 82093AA I/O APIC, with the EOI register of its successors.
//!
//! Problem: 24 lines become messages to local APICs. Scheme: pins and redirection entries; a delivery
//! callback given with each call, so that this module knows no local APIC. Lines say "asserted", so
//! the polarity bit is kept for the guest but inverts nothing. Invariants: remote IRR is set only for
//! level-triggered fixed or lowest-priority entries whose message some local APIC accepted, and falls
//! with its EOI; an edge on a masked pin is lost, as the data sheet says.
//! Thread: any, under the I/O APIC's lock, which is held while local APICs are called.
//! Source: Intel 82093AA data sheet (290566), "Registers"; ICH9 data sheet, "EOI Register".

use super::{Delivery, Destination, IO_APIC_PINS, Message, describe_entry, describe_set};
use crate::irq::Acceptance;

const PINS: usize = IO_APIC_PINS as usize;

const REG_ID: u8 = 0;
const REG_VERSION: u8 = 1;
const REG_ARBITRATION: u8 = 2;
const REG_REDIRECTION: u8 = 0x10;
/// 24 entries; version 0x20 has an EOI register.
pub const VERSION: u32 = 0x0017_0020;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

const ENTRY_LOGICAL: u64 = 1 << 11;
const ENTRY_REMOTE_IRR: u64 = 1 << 14;
const ENTRY_LEVEL: u64 = 1 << 15;
const ENTRY_MASKED: u64 = 1 << 16;
/// Vector to mask, without delivery status and remote IRR; and the destination.
const ENTRY_WRITABLE: u64 = 0xff00_0000_0001_afff;

/// Sends a message; what the local APICs made of it.
pub(super) type Deliver<'a> = &'a dyn Fn(&Message) -> Acceptance;

#[derive(Clone, Debug)]
pub(super) struct IoApic {
    id: u32,
    select: u8,
    entries: [u64; PINS],
    /// Pins that are asserted.
    pins: u32,
}

impl IoApic {
    pub(super) fn new() -> Self {
        Self { id: 0, select: 0, entries: [ENTRY_MASKED; PINS], pins: 0 }
    }

    /// RESET: everything but the pins' levels.
    pub(super) fn reset(&mut self) {
        *self = Self { pins: self.pins, ..Self::new() };
    }

    /// The registers for people.
    pub(super) fn describe(&self) -> String {
        let mut text = format!("ioapic0: id={:#04x} sel={:#04x}\n", self.id, self.select);
        for (pin, &entry) in self.entries.iter().enumerate() {
            let logical = if entry & ENTRY_LOGICAL != 0 { "logical" } else { "physical" };
            let low = describe_entry((entry & 0xffff_ffff) as u32);
            text +=
                &format!("  pin {pin:<2} {entry:#018x} dest={:<3} {low} {logical}\n", entry >> 56);
        }
        let numbers = || (0u32..).zip(self.entries);
        let asserted = numbers().map(|(pin, _)| pin).filter(|pin| self.pins >> pin & 1 != 0);
        let remote = numbers().filter(|(_, entry)| entry & ENTRY_REMOTE_IRR != 0);
        text += &format!("  asserted  {}\n", describe_set(asserted));
        text + &format!("  remote IRR{}\n", describe_set(remote.map(|(pin, _)| pin)))
    }

    pub(super) fn set_pin(&mut self, pin: usize, level: bool, deliver: Deliver<'_>) {
        let bit = 1u32 << pin;
        if (self.pins & bit != 0) == level {
            return;
        }
        self.pins ^= bit;
        if level {
            if self.entries[pin] & ENTRY_LEVEL != 0 {
                self.service_level(pin, deliver);
            } else if self.entries[pin] & ENTRY_MASKED == 0 {
                self.send(pin, deliver);
            }
        }
    }

    /// `pin` rises, and is high afterwards.
    pub(super) fn edge(&mut self, pin: usize, deliver: Deliver<'_>) -> Acceptance {
        self.pins |= 1 << pin;
        match self.entries[pin] & (ENTRY_LEVEL | ENTRY_MASKED) {
            0 => self.send(pin, deliver),
            ENTRY_LEVEL if self.service_level(pin, deliver) => Acceptance::Accepted,
            _ => Acceptance::Refused,
        }
    }

    fn send(&self, pin: usize, deliver: Deliver<'_>) -> Acceptance {
        let entry = self.entries[pin];
        let [vector, control, .., destination] = entry.to_le_bytes();
        deliver(&Message {
            destination: Destination::narrow(destination, entry & ENTRY_LOGICAL != 0),
            delivery: Delivery::of(u32::from(control) << 8),
            vector,
            level_triggered: entry & ENTRY_LEVEL != 0,
        })
    }

    /// Sends a level-triggered interrupt if it is due; whether a local APIC took it.
    fn service_level(&mut self, pin: usize, deliver: Deliver<'_>) -> bool {
        let entry = self.entries[pin];
        let asserted = self.pins & 1 << pin != 0;
        let open = entry & (ENTRY_MASKED | ENTRY_REMOTE_IRR) == 0;
        let is_due = asserted && open && entry & ENTRY_LEVEL != 0;
        if !is_due || self.send(pin, deliver) == Acceptance::Refused {
            return false;
        }
        let [_, control, ..] = entry.to_le_bytes();
        let delivery = Delivery::of(u32::from(control) << 8);
        if matches!(delivery, Delivery::Fixed | Delivery::LowestPriority) {
            self.entries[pin] |= ENTRY_REMOTE_IRR;
        }
        true
    }

    /// An EOI message for `vector`.
    pub(super) fn eoi(&mut self, vector: u8, deliver: Deliver<'_>) {
        for pin in 0..PINS {
            let entry = self.entries[pin];
            if entry & ENTRY_REMOTE_IRR != 0 && entry.to_le_bytes()[0] == vector {
                self.entries[pin] &= !ENTRY_REMOTE_IRR;
                self.service_level(pin, deliver);
            }
        }
    }

    pub(super) fn read(&self, offset: u64) -> u32 {
        match offset {
            SELECT => self.select.into(),
            WINDOW => self.read_register(),
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, offset: u64, value: u32, deliver: Deliver<'_>) {
        let [byte, ..] = value.to_le_bytes();
        match offset {
            SELECT => self.select = byte,
            WINDOW => self.write_register(value, deliver),
            EOI => self.eoi(byte, deliver),
            _ => {}
        }
    }

    /// Pin and half of the selected redirection register.
    fn selected_entry(&self) -> Option<(usize, bool)> {
        let n = usize::from(self.select.checked_sub(REG_REDIRECTION)?);
        (n / 2 < PINS).then_some((n / 2, n % 2 != 0))
    }

    fn read_register(&self) -> u32 {
        match self.select {
            REG_ID | REG_ARBITRATION => self.id << 24,
            REG_VERSION => VERSION,
            _ => self.selected_entry().map_or(u32::MAX, |(pin, high)| {
                let bytes = self.entries[pin].to_le_bytes();
                let [a, b, c, d, e, f, g, h] = bytes;
                u32::from_le_bytes(if high { [e, f, g, h] } else { [a, b, c, d] })
            }),
        }
    }

    fn write_register(&mut self, value: u32, deliver: Deliver<'_>) {
        if self.select == REG_ID {
            self.id = value >> 24 & 0xf;
            return;
        }
        let Some((pin, high)) = self.selected_entry() else { return };
        let before = self.entries[pin];
        let new = if high {
            (before & 0xffff_ffff) | u64::from(value) << 32
        } else {
            (before & !0xffff_ffff) | u64::from(value)
        };
        let mut entry = (new & ENTRY_WRITABLE) | (before & ENTRY_REMOTE_IRR);
        if entry & ENTRY_LEVEL == 0 {
            // How drivers clear it without an EOI register: to edge and back.
            entry &= !ENTRY_REMOTE_IRR;
        }
        self.entries[pin] = entry;
        self.service_level(pin, deliver);
    }
}
