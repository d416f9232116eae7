//! The guest's text screen in the person's terminal.
//!
//! Problem: the terminal has one owner at a time (the guest's screen, the monitor, a message of ours), and must be
//! as it was in the end. Scheme: a thread looks at the screen so many times a second and has [`Painter`] turn
//! the terminal into it, on the terminal's other page; while the monitor is open, or for a while after a message, it
//! paints nothing, and begins anew after. Invariants: the thread holds no lock of the guest's while it writes; it
//! writes nothing once the terminal has been given back. Threads: its own; the input thread types.

use std::thread;
use std::time::Duration;

use xenolith_devices::legacy::i8042::Key;
use xenolith_machine::Screen;

use super::pace::Pace;
use super::text::Painter;
use super::typing::{self, Stroke};
use crate::terminal::{self, PageState};

const FRAME_TIME: Duration = Duration::from_millis(40);

/// The screen and the keyboard in the terminal.
#[derive(Debug)]
pub struct TerminalDisplay {
    screen: Screen,
    pace: Pace,
}

impl TerminalDisplay {
    /// Begins to paint `screen`. The terminal is lent.
    pub fn start(screen: Screen) -> Self {
        let painted = screen.clone();
        terminal::show_page(true);
        thread::spawn(move || paint(&painted));
        Self { screen, pace: Pace::default() }
    }

    /// Presses the keys that `typed` stands for. What a guest that reads no keys has no room for is lost.
    pub fn feed(&mut self, typed: &[u8]) {
        for stroke in typing::strokes(typed) {
            if !self.press(&stroke) {
                return;
            }
        }
    }

    fn press(&mut self, stroke: &Stroke) -> bool {
        let down = stroke.iter().all(|&key| self.key(key, true));
        // All come up, whatever has become of the others.
        stroke.iter().rev().fold(down, |taken, &key| self.key(key, false) && taken)
    }

    fn key(&mut self, key: Key, down: bool) -> bool {
        self.pace.press(|| self.screen.key(key, down))
    }
}

/// What the terminal shows.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Shown {
    Unknown,
    Text,
    Line(String),
}

fn paint(screen: &Screen) {
    let mut painter = Painter::default();
    let mut shown = Shown::Unknown;
    let mut last_window = None;
    loop {
        thread::sleep(FRAME_TIME);
        let state = terminal::page_state();
        let window = terminal::window();
        // A terminal that changes its size does with its page as it likes.
        if state != PageState::Painted || window != last_window {
            shown = Shown::Unknown;
        }
        if state == PageState::Away {
            continue;
        }
        last_window = window;
        let (columns, rows) = window.unwrap_or((80, 25));
        if let Some(text) = screen.text() {
            if shown != Shown::Text {
                painter.forget();
                shown = Shown::Text;
            }
            terminal::paint(&painter.paint(&text, (columns.into(), rows.into())));
            continue;
        }
        let line = match screen.picture() {
            Some(it) if !screen.is_dark() => {
                format!(
                    "graphics, {} x {}: --display vnc or --screenshot shows it",
                    it.width, it.height
                )
            }
            _ => String::new(),
        };
        if shown != Shown::Line(line.clone()) {
            terminal::paint(&format!("\x1b[0m\x1b[2J\x1b[H\x1b[?25l{line}"));
            shown = Shown::Line(line);
        }
    }
}
