//! The PS/2 mouse: three buttons, and by the known knocks a wheel (id 3) and two more buttons (id 4).
//!
//! Problem: motion comes faster than a guest reads. Scheme: motion adds up until the last packet has
//! gone; a change of buttons closes a packet at once, so no click is lost while there is room.
//! Invariants: packets are queued whole; the queue is bounded, and beyond it motion goes on adding up
//! (saturating). Source: IBM PS/2 Hardware Interface Technical Reference, "Mouse"; Microsoft, "Input
//! Device Guidelines: IntelliMouse detection" (sample rates 200, 100, 80 and 200, 200, 80).

use std::collections::VecDeque;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_OK: u8 = 0xaa;
const EVENTS_MAX: usize = 256;

const ID_PLAIN: u8 = 0;
const ID_WHEEL: u8 = 3;
const ID_FIVE_BUTTONS: u8 = 4;

bitflags::bitflags! {
    /// Mouse buttons that are down.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Buttons: u8 {
        const LEFT = 1 << 0;
        const RIGHT = 1 << 1;
        const MIDDLE = 1 << 2;
        const SIDE = 1 << 3;
        const EXTRA = 1 << 4;
    }
}

/// A command that waits for its parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parameter {
    None,
    Resolution,
    SampleRate,
}

#[derive(Debug)]
pub(super) struct Mouse {
    answers: VecDeque<u8>,
    events: VecDeque<u8>,
    parameter: Parameter,
    /// Echoes everything until told otherwise.
    wrap: bool,
    remote: bool,
    reporting: bool,
    double_scale: bool,
    resolution: u8,
    sample_rate: u8,
    /// The last three sample rates: the knock.
    knock: [u8; 3],
    id: u8,
    dx: i32,
    dy: i32,
    dz: i32,
    buttons: Buttons,
    /// Buttons as the last packet told them.
    told: Buttons,
    last_sent: u8,
}

impl Mouse {
    pub(super) fn new() -> Self {
        Self {
            answers: VecDeque::new(),
            events: VecDeque::new(),
            parameter: Parameter::None,
            wrap: false,
            remote: false,
            reporting: false,
            double_scale: false,
            resolution: 2,
            sample_rate: 100,
            knock: [0; 3],
            id: ID_PLAIN,
            dx: 0,
            dy: 0,
            dz: 0,
            buttons: Buttons::empty(),
            told: Buttons::empty(),
            last_sent: 0,
        }
    }

    /// The next byte for the controller.
    pub(super) fn next(&mut self) -> Option<u8> {
        if self.answers.is_empty() && self.events.is_empty() && self.streaming() && self.moved() {
            let packet = self.packet();
            self.events.extend(packet);
        }
        let byte = self.answers.pop_front().or_else(|| self.events.pop_front())?;
        self.last_sent = byte;
        Some(byte)
    }

    pub(super) fn event(&mut self, dx: i32, dy: i32, dz: i32, buttons: Buttons) {
        if !self.streaming() && !self.remote {
            self.buttons = buttons;
            return;
        }
        if buttons != self.buttons
            && self.streaming()
            && self.moved()
            && self.events.len() < EVENTS_MAX
        {
            let packet = self.packet();
            self.events.extend(packet);
        }
        self.dx = self.dx.saturating_add(dx);
        self.dy = self.dy.saturating_sub(dy);
        self.dz = self.dz.saturating_add(dz);
        self.buttons = buttons;
    }

    fn streaming(&self) -> bool {
        self.reporting && !self.remote && !self.wrap
    }

    fn moved(&self) -> bool {
        self.dx != 0 || self.dy != 0 || self.dz != 0 || self.buttons != self.told
    }

    /// Takes as much of the motion as one packet holds.
    fn packet(&mut self) -> Vec<u8> {
        let dx = self.dx.clamp(-255, 255);
        let dy = self.dy.clamp(-255, 255);
        let dz = self.dz.clamp(-8, 7);
        self.dx -= dx;
        self.dy -= dy;
        // A mouse without a wheel forgets its turns.
        self.dz = if self.id == ID_PLAIN { 0 } else { self.dz - dz };
        self.told = self.buttons;
        let mut first = 0x08 | self.buttons.bits() & 7;
        if dx < 0 {
            first |= 0x10;
        }
        if dy < 0 {
            first |= 0x20;
        }
        let low = |value: i32| value.to_le_bytes()[0];
        let mut bytes = vec![first, low(dx), low(dy)];
        match self.id {
            ID_WHEEL => bytes.push(low(dz)),
            ID_FIVE_BUTTONS => bytes.push(low(dz) & 0x0f | (self.buttons.bits() & 0x18) << 1),
            _ => {}
        }
        bytes
    }

    fn answer(&mut self, bytes: &[u8]) {
        self.answers.clear();
        self.answers.extend(bytes);
    }

    fn forget_motion(&mut self) {
        self.events.clear();
        (self.dx, self.dy, self.dz) = (0, 0, 0);
        self.told = self.buttons;
    }

    fn set_defaults(&mut self) {
        self.forget_motion();
        self.remote = false;
        self.reporting = false;
        self.double_scale = false;
        self.resolution = 2;
        self.sample_rate = 100;
    }

    fn status(&self) -> [u8; 4] {
        let flag = |set, bit: u8| if set { bit } else { 0 };
        let first = flag(self.remote, 1 << 6)
            | flag(self.reporting, 1 << 5)
            | flag(self.double_scale, 1 << 4)
            | flag(self.buttons.contains(Buttons::LEFT), 1 << 2)
            | flag(self.buttons.contains(Buttons::MIDDLE), 1 << 1)
            | flag(self.buttons.contains(Buttons::RIGHT), 1 << 0);
        [ACK, first, self.resolution, self.sample_rate]
    }

    /// The host sends a command or a parameter.
    pub(super) fn write(&mut self, byte: u8) {
        if self.wrap && byte != 0xec && byte != 0xff {
            return self.answer(&[byte]);
        }
        match std::mem::replace(&mut self.parameter, Parameter::None) {
            Parameter::Resolution if byte < 4 => {
                self.resolution = byte;
                return self.answer(&[ACK]);
            }
            Parameter::SampleRate if (1..=200).contains(&byte) => {
                self.set_sample_rate(byte);
                return self.answer(&[ACK]);
            }
            _ => {}
        }
        match byte {
            0xe6 => self.double_scale = false,
            0xe7 => self.double_scale = true,
            0xe8 => self.parameter = Parameter::Resolution,
            0xe9 => return self.answer(&self.status()),
            0xea => {
                self.forget_motion();
                self.remote = false;
            }
            0xeb => {
                let packet = self.packet();
                self.answer(&[ACK]);
                return self.answers.extend(packet);
            }
            0xec => {
                self.forget_motion();
                self.wrap = false;
            }
            0xee => {
                self.forget_motion();
                self.wrap = true;
            }
            0xf0 => {
                self.forget_motion();
                self.remote = true;
            }
            0xf2 => return self.answer(&[ACK, self.id]),
            0xf3 => self.parameter = Parameter::SampleRate,
            0xf4 => {
                self.forget_motion();
                self.reporting = true;
            }
            0xf5 => {
                self.forget_motion();
                self.reporting = false;
            }
            0xf6 => self.set_defaults(),
            0xfe => return self.answer(&[self.last_sent]),
            0xff => {
                let buttons = self.buttons;
                *self = Self::new();
                (self.buttons, self.told) = (buttons, buttons);
                return self.answer(&[ACK, SELF_TEST_OK, self.id]);
            }
            _ => return self.answer(&[RESEND]),
        }
        self.answer(&[ACK]);
    }

    fn set_sample_rate(&mut self, rate: u8) {
        self.sample_rate = rate;
        self.knock = [self.knock[1], self.knock[2], rate];
        match self.knock {
            [200, 100, 80] => self.id = ID_WHEEL,
            [200, 200, 80] => self.id = ID_FIVE_BUTTONS,
            _ => {}
        }
    }
}
