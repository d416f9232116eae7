//! The monitor: a person asks a running machine what it does, by Ctrl-A C.
//!
//! Problem: who looks at a guest from outside wants true answers at any moment, without ending it. Scheme: while
//! the monitor has the terminal, what is typed comes here instead of to the guest: [`line`] makes lines of it,
//! [`commands`] carries them out, and the answer goes to standard error as all that we say. Commands and their
//! answers are named as in QEMU's monitor where it has the same. Invariants: a command that looks lets the
//! machine go on before its answer is shown; only `stop` holds it longer; a mistake is one line and changes
//! nothing. Thread: the input thread.

mod commands;
mod expression;
mod line;
mod memory;

use xenolith_devices::legacy::i8042::Buttons;
use xenolith_machine::inspect::Hold;
use xenolith_machine::{Handle, Inspector, Screen};

use self::line::Editor;
use crate::terminal;

const PROMPT: &str = "(xenolith) ";

/// The monitor of one machine.
#[derive(Debug)]
pub struct Monitor {
    inspector: Inspector,
    screen: Screen,
    handle: Handle,
    editor: Editor,
    /// The vCPU that commands without a number mean.
    cpu: usize,
    /// `stop` was given and no `cont` since.
    stopped: Option<Hold>,
    /// Mouse buttons that are down.
    buttons: Buttons,
}

impl Monitor {
    pub fn new(inspector: Inspector, screen: Screen, handle: Handle) -> Self {
        Self {
            inspector,
            screen,
            handle,
            editor: Editor::default(),
            cpu: 0,
            stopped: None,
            buttons: Buttons::empty(),
        }
    }

    /// The terminal is ours now.
    pub fn open(&mut self) {
        terminal::show(&format!(
            "\nxenolith monitor: help lists commands, Ctrl-A C leaves\n{PROMPT}"
        ));
    }

    /// The terminal is the guest's again.
    pub fn close(&mut self) {
        self.editor = Editor::default();
        terminal::show(match self.stopped {
            Some(_) => "\nback to the guest, which is stopped: cont in the monitor lets it go on\n",
            None => "\nback to the guest\n",
        });
    }

    /// Takes what was typed.
    pub fn feed(&mut self, typed: &[u8]) {
        for &byte in typed {
            let (shown, entered) = self.editor.feed(byte);
            // A terminal that is not in raw mode, and a file, show by themselves what is typed.
            if terminal::is_lent() {
                terminal::show(&shown);
            }
            if let Some(line) = entered {
                let answer = match self.execute(&line) {
                    Ok(answer) => answer,
                    Err(mistake) => format!("{mistake}\n"),
                };
                terminal::show(&format!("{answer}{PROMPT}"));
            }
        }
    }
}
