//! The machine's screen, keyboard and mouse on the host side.
//!
//! Problem: displays and screenshots outlive the boards that a guest's resets build. Scheme: [`Screen`] holds
//! the adapter and the keyboard controller of the latest board, which stay readable when it has
//! stopped: the last picture remains. Invariant: nothing here waits for the guest. Any thread.

use std::fmt;
use std::sync::{Arc, Mutex};

use xenolith_devices::clock::lock;
use xenolith_devices::legacy::i8042::{Buttons, I8042, Key};
use xenolith_devices::vga::{Picture, Text, Vga};

/// The light's bit.
const CAPS_LOCK: u8 = 1 << 2;

/// A board's ends of them.
#[derive(Clone, Debug)]
pub struct Parts {
    vga: Option<Arc<Mutex<Vga>>>,
    i8042: Arc<Mutex<I8042>>,
}

impl Parts {
    #[must_use]
    pub fn new(vga: Option<Arc<Mutex<Vga>>>, i8042: Arc<Mutex<I8042>>) -> Self {
        Self { vga, i8042 }
    }
}

/// What a person looks at, types on and points with.
#[derive(Clone, Default)]
pub struct Screen(Arc<Mutex<Option<Parts>>>);

impl fmt::Debug for Screen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Screen").finish_non_exhaustive()
    }
}

impl Screen {
    /// A board is there.
    pub(crate) fn connect(&self, parts: Parts) {
        *lock(&self.0) = Some(parts);
    }

    fn parts(&self) -> Option<Parts> {
        lock(&self.0).clone()
    }

    /// What is on the screen, if there is a display and a machine has been started.
    #[must_use]
    pub fn picture(&self) -> Option<Picture> {
        let vga = self.parts()?.vga?;
        let picture = lock(&vga).picture();
        Some(picture)
    }

    /// The characters on the screen, if it is a text screen.
    #[must_use]
    pub fn text(&self) -> Option<Text> {
        let vga = self.parts()?.vga?;
        lock(&vga).text()
    }

    /// Whether there is nothing to see.
    #[must_use]
    pub fn is_dark(&self) -> bool {
        let vga = self.parts().and_then(|parts| parts.vga);
        vga.is_none_or(|vga| lock(&vga).is_dark())
    }

    /// Whether the keyboard's Caps Lock light is on.
    #[must_use]
    pub fn caps_lock(&self) -> bool {
        self.parts().is_some_and(|parts| lock(&parts.i8042).leds() & CAPS_LOCK != 0)
    }

    /// A key goes down or up. False if nobody reads the keyboard.
    pub fn key(&self, key: Key, down: bool) -> bool {
        self.parts().is_some_and(|parts| lock(&parts.i8042).key(key, down))
    }

    /// The mouse moves (right, down and wheel towards the user are positive), with these buttons down.
    pub fn mouse(&self, dx: i32, dy: i32, dz: i32, buttons: Buttons) {
        if let Some(parts) = self.parts() {
            lock(&parts.i8042).mouse(dx, dy, dz, buttons);
        }
    }
}
