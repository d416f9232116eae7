//! Typing no faster than the guest reads.
//!
//! Problem: a keyboard has room for so many keys, and what is pasted or sent by a script is more. Scheme: a key that
//! finds no room waits for it; a guest that has let one wait in vain reads no keys now, and until it takes one again
//! none waits. Invariant: nobody waits for such a guest more than once in a row. The thread of who types.

use std::thread;
use std::time::Duration;

/// How long a key waits for room in the keyboard, and how often it looks.
const KEY_TIME_MAX: Duration = Duration::from_millis(500);
const KEY_PAUSE: Duration = Duration::from_millis(5);

/// Somebody who types.
#[derive(Debug, Default)]
pub struct Pace {
    /// The last key waited in vain.
    deaf: bool,
}

impl Pace {
    /// Presses or releases a key by `key`, which is true when the keyboard has taken it. Whether it has.
    pub fn press(&mut self, mut key: impl FnMut() -> bool) -> bool {
        let tries = if self.deaf { 1 } else { KEY_TIME_MAX.as_millis() / KEY_PAUSE.as_millis() };
        let taken = (0..tries).any(|n| {
            if n > 0 {
                thread::sleep(KEY_PAUSE);
            }
            key()
        });
        self.deaf = !taken;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_waits_for_room_but_not_for_a_guest_that_is_deaf() {
        let mut pace = Pace::default();
        let mut tries = 0;
        let mut after = |pace: &mut Pace, room_at| {
            tries = 0;
            let taken = pace.press(|| {
                tries += 1;
                tries >= room_at
            });
            (taken, tries)
        };
        assert_eq!(after(&mut pace, 3), (true, 3));
        assert_eq!(after(&mut pace, 1000), (false, 100));
        assert_eq!(after(&mut pace, 2), (false, 1));
        assert_eq!(after(&mut pace, 1), (true, 1));
        assert_eq!(after(&mut pace, 3), (true, 3));
    }
}
