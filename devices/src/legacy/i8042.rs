//! 8042 keyboard controller with a keyboard and a wheel mouse.
//!
//! Problem: one output buffer of one byte serves three talkers, and drivers probe it in every corner.
//! Scheme: controller replies, keyboard ([`keyboard`]) and mouse ([`mouse`]) each have a queue; when
//! the output buffer is free the first of them, in that order, whose port is enabled fills it.
//! Keyboard bytes pass the scan code translation on the way, as in the chip. Nothing takes time.
//! Invariants: IRQ 1 and IRQ 12 follow the full output buffer, and fall between two bytes, so each
//! byte is an edge; a device's answers go before its events; all queues are bounded. Threads: vCPUs and
//! whoever has a display; under the device's mutex. Source: IBM PS/2 Hardware Interface Technical
//! Reference, "Keyboard and Auxiliary Device Controller"; Intel UPI-42 (8042) data sheet.

mod keyboard;
mod mouse;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use self::keyboard::{Keyboard, Translation};
use self::mouse::Mouse;
use super::reset::A20Gate;
use crate::bus::{Bus, BusDevice, Overlap};
use crate::irq::IrqLine;
use crate::power::{PowerEvent, PowerEvents};

pub use self::keyboard::Key;
pub use self::mouse::Buttons;

pub const DATA_PORT: u64 = 0x60;
pub const STATUS_PORT: u64 = 0x64;
pub const KEYBOARD_IRQ: u32 = 1;
pub const MOUSE_IRQ: u32 = 12;

/// Offset of the status and command port in the device.
const STATUS_OFFSET: u64 = 4;

const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_COMMAND: u8 = 1 << 3;
const STATUS_UNLOCKED: u8 = 1 << 4;
const STATUS_MOUSE_FULL: u8 = 1 << 5;

const COMMAND_KEYBOARD_IRQ: u8 = 1 << 0;
const COMMAND_MOUSE_IRQ: u8 = 1 << 1;
/// Shows as bit 2 of the status: the self test has passed.
const COMMAND_SYSTEM: u8 = 1 << 2;
const COMMAND_KEYBOARD_OFF: u8 = 1 << 4;
const COMMAND_MOUSE_OFF: u8 = 1 << 5;
const COMMAND_TRANSLATE: u8 = 1 << 6;
/// What firmware would leave: both ports tested, translation on, the keyboard in use.
const COMMAND_BOOT: u8 =
    COMMAND_KEYBOARD_IRQ | COMMAND_SYSTEM | COMMAND_MOUSE_OFF | COMMAND_TRANSLATE;

/// Output port: not resetting, and lines that float high.
const OUTPUT_BASE: u8 = 0xcd;
const OUTPUT_NOT_RESET: u8 = 1 << 0;
const OUTPUT_A20: u8 = 1 << 1;
const OUTPUT_KEYBOARD_IRQ: u8 = 1 << 4;
const OUTPUT_MOUSE_IRQ: u8 = 1 << 5;

const REPLIES_MAX: usize = 16;

/// What the next byte for the data port is for, after a command that takes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expecting {
    /// A byte for the keyboard.
    Nothing,
    /// The command byte (index 0) or another byte of the controller's RAM.
    Ram(u8),
    OutputPort,
    KeyboardEcho,
    MouseEcho,
    MouseByte,
}

/// A byte on its way to, or in, the output buffer.
#[derive(Clone, Copy, Debug)]
struct Output {
    byte: u8,
    mouse: bool,
}

/// The controller and its two devices.
#[derive(Debug)]
pub struct I8042 {
    ram: [u8; 32],
    expecting: Expecting,
    /// The last write went to the command port.
    last_was_command: bool,
    output: Output,
    output_full: bool,
    replies: VecDeque<Output>,
    translation: Translation,
    keyboard: Keyboard,
    mouse: Mouse,
    lines: [bool; 2],
    irqs: [IrqLine; 2],
    a20: A20Gate,
    power: PowerEvents,
}

impl I8042 {
    /// The controller as firmware leaves it. The lines are those of [`KEYBOARD_IRQ`], [`MOUSE_IRQ`].
    #[must_use]
    pub fn new(keyboard: IrqLine, mouse: IrqLine, a20: A20Gate, power: PowerEvents) -> Self {
        let mut ram = [0; 32];
        ram[0] = COMMAND_BOOT;
        Self {
            ram,
            expecting: Expecting::Nothing,
            last_was_command: false,
            output: Output { byte: 0, mouse: false },
            output_full: false,
            replies: VecDeque::new(),
            translation: Translation::default(),
            keyboard: Keyboard::new(),
            mouse: Mouse::new(),
            lines: [false; 2],
            irqs: [keyboard, mouse],
            a20,
            power,
        }
    }

    /// Puts `device` at ports 0x60 and 0x64.
    ///
    /// # Errors
    /// [`Overlap`] if one is taken.
    pub fn attach(device: &Arc<Mutex<Self>>, ports: &mut Bus) -> Result<(), Overlap> {
        ports.insert(DATA_PORT, 1, Arc::clone(device) as _)?;
        ports.insert_at(STATUS_PORT, 1, STATUS_OFFSET, Arc::clone(device) as _)
    }

    /// Back to what firmware leaves.
    pub fn reset(&mut self) {
        self.output_full = false;
        self.update_lines();
        let [keyboard, mouse] = self.irqs.clone();
        *self = Self::new(keyboard, mouse, self.a20.clone(), self.power.clone());
    }

    /// A key goes down or up on the display's side. False if it was lost: nobody reads the keyboard.
    pub fn key(&mut self, key: Key, down: bool) -> bool {
        let taken = self.keyboard.key(key, down);
        self.advance();
        taken
    }

    /// The mouse moves (right, down and wheel towards the user are positive), with these buttons down.
    pub fn mouse(&mut self, dx: i32, dy: i32, dz: i32, buttons: Buttons) {
        self.mouse.event(dx, dy, dz, buttons);
        self.advance();
    }

    /// Scroll, Num and Caps Lock lights in bits 0, 1 and 2.
    #[must_use]
    pub fn leds(&self) -> u8 {
        self.keyboard.leds()
    }

    fn command_byte(&self) -> u8 {
        self.ram[0]
    }

    /// Fills the free output buffer from the first talker, and drives the lines.
    fn advance(&mut self) {
        if !self.output_full
            && let Some(output) = self.next_output()
        {
            self.output = output;
            self.output_full = true;
        }
        self.update_lines();
    }

    fn next_output(&mut self) -> Option<Output> {
        if let Some(reply) = self.replies.pop_front() {
            return Some(reply);
        }
        let command = self.command_byte();
        if command & COMMAND_KEYBOARD_OFF == 0 {
            while let Some(byte) = self.keyboard.next() {
                let byte = if command & COMMAND_TRANSLATE != 0 {
                    self.translation.translate(byte)
                } else {
                    Some(byte)
                };
                // The break prefix merges into the next byte.
                if let Some(byte) = byte {
                    return Some(Output { byte, mouse: false });
                }
            }
        }
        if command & COMMAND_MOUSE_OFF == 0 {
            return self.mouse.next().map(|byte| Output { byte, mouse: true });
        }
        None
    }

    fn update_lines(&mut self) {
        let command = self.command_byte();
        let mouse = self.output.mouse;
        let levels = [
            self.output_full && !mouse && command & COMMAND_KEYBOARD_IRQ != 0,
            self.output_full && mouse && command & COMMAND_MOUSE_IRQ != 0,
        ];
        for ((line, irq), level) in self.lines.iter_mut().zip(&self.irqs).zip(levels) {
            if *line != level {
                *line = level;
                irq.set(level);
            }
        }
    }

    fn reply_as(&mut self, byte: u8, mouse: bool) {
        // A guest that never reads loses the oldest.
        if self.replies.len() >= REPLIES_MAX {
            self.replies.pop_front();
        }
        self.replies.push_back(Output { byte, mouse });
    }

    fn reply(&mut self, byte: u8) {
        self.reply_as(byte, false);
    }

    fn read_data(&mut self) -> u8 {
        let byte = self.output.byte;
        self.output_full = false;
        // The line falls before the next byte raises it.
        self.update_lines();
        self.advance();
        byte
    }

    fn read_status(&self) -> u8 {
        let mut status = STATUS_UNLOCKED | self.command_byte() & COMMAND_SYSTEM;
        if self.output_full {
            status |= STATUS_OUTPUT_FULL;
            if self.output.mouse {
                status |= STATUS_MOUSE_FULL;
            }
        }
        if self.last_was_command {
            status |= STATUS_COMMAND;
        }
        status
    }

    fn output_port(&self) -> u8 {
        let mut value = OUTPUT_BASE;
        if self.a20.is_open() {
            value |= OUTPUT_A20;
        }
        if self.lines[0] {
            value |= OUTPUT_KEYBOARD_IRQ;
        }
        if self.lines[1] {
            value |= OUTPUT_MOUSE_IRQ;
        }
        value
    }

    fn write_command(&mut self, command: u8) {
        self.last_was_command = true;
        self.expecting = Expecting::Nothing;
        match command {
            0x20..=0x3f => self.reply(self.ram[usize::from(command & 0x1f)]),
            0x60..=0x7f => self.expecting = Expecting::Ram(command & 0x1f),
            // No password is set.
            0xa4 => self.reply(0xf1),
            0xa7 => self.ram[0] |= COMMAND_MOUSE_OFF,
            0xa8 => self.ram[0] &= !COMMAND_MOUSE_OFF,
            // Tests of both lines: fine.
            0xa9 | 0xab => self.reply(0x00),
            0xaa => {
                self.ram[0] |= COMMAND_SYSTEM;
                self.reply(0x55);
            }
            0xad => self.ram[0] |= COMMAND_KEYBOARD_OFF,
            0xae => self.ram[0] &= !COMMAND_KEYBOARD_OFF,
            // Input port: keyboard not locked.
            0xc0 => self.reply(0x80),
            0xd0 => self.reply(self.output_port()),
            0xd1 => self.expecting = Expecting::OutputPort,
            0xd2 => self.expecting = Expecting::KeyboardEcho,
            0xd3 => self.expecting = Expecting::MouseEcho,
            0xd4 => self.expecting = Expecting::MouseByte,
            0xdd => self.a20.set(false),
            0xdf => self.a20.set(true),
            // Pulses those of the low four output lines whose bit is clear; line 0 is reset.
            0xf0..=0xff if command & OUTPUT_NOT_RESET == 0 => self.power.raise(PowerEvent::Reset),
            _ => tracing::debug!("8042: unknown command {command:#04x}"),
        }
        self.advance();
    }

    fn write_data(&mut self, value: u8) {
        self.last_was_command = false;
        match std::mem::replace(&mut self.expecting, Expecting::Nothing) {
            Expecting::Nothing => {
                // Talking to a device enables its port.
                self.ram[0] &= !COMMAND_KEYBOARD_OFF;
                self.keyboard.write(value);
            }
            Expecting::MouseByte => {
                self.ram[0] &= !COMMAND_MOUSE_OFF;
                self.mouse.write(value);
            }
            Expecting::Ram(index) => self.ram[usize::from(index & 0x1f)] = value,
            Expecting::KeyboardEcho => self.reply_as(value, false),
            Expecting::MouseEcho => self.reply_as(value, true),
            Expecting::OutputPort => {
                self.a20.set(value & OUTPUT_A20 != 0);
                if value & OUTPUT_NOT_RESET == 0 {
                    self.power.raise(PowerEvent::Reset);
                }
            }
        }
        self.advance();
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, _: u8) -> u64 {
        u64::from(if offset == STATUS_OFFSET { self.read_status() } else { self.read_data() })
    }

    fn write(&mut self, offset: u64, _: u8, value: u64) {
        let value = (value & 0xff) as u8;
        if offset == STATUS_OFFSET {
            self.write_command(value);
        } else {
            self.write_data(value);
        }
    }
}

#[cfg(test)]
mod tests;
