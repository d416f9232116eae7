//! The terminal: lent to the guest, and given back in every way out.

mod common;

use std::os::unix::process::ExitStatusExt;
use std::thread;
use std::time::Duration;

use common::pty::{Session, is_cooked};
use common::{ECHO, Scratch, guest};

const PATIENCE: Duration = Duration::from_secs(120);

/// A guest that echoes in brackets, on a terminal of its own that it has already taken.
fn start(name: &str) -> (Session, Scratch) {
    let scratch = Scratch::new(name);
    let kernel = scratch.file("kernel", &guest(ECHO));
    let kernel = kernel.to_str().expect("plain");
    let session = Session::start(&["run", "--kernel", kernel, "--timeout", "300"], PATIENCE);
    session.wait_for_settings(|settings| !is_cooked(settings));
    (session, scratch)
}

#[test]
fn keys_reach_the_guest_and_ctrl_a_x_quits() {
    let (mut session, _scratch) = start("keys");
    session.press(b"a");
    session.wait_for_text(b"[a]");
    session.press(b"\x03\x1a\r");
    session.wait_for_text(b"[\x03][\x1a][\r]");
    session.press(b"\x01a");
    session.wait_for_text(b"[\x01]");
    session.press(b"\x01h");
    session.wait_for_text(b"Ctrl-A, then X: quit");
    // Two reads, most likely.
    session.press(b"\x01");
    thread::sleep(Duration::from_millis(50));
    session.press(b"x");
    assert_eq!(session.wait_for_end().code(), Some(0));
    assert!(is_cooked(&session.settings()));
}

#[test]
fn the_guests_end_gives_the_terminal_back() {
    let (mut session, _scratch) = start("guests-end");
    session.press(b"q");
    assert_eq!(session.wait_for_end().code(), Some(7));
    assert!(is_cooked(&session.settings()));
}

#[test]
fn deadly_signals_give_the_terminal_back() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        let (mut session, _scratch) = start(&format!("signal-{signal}"));
        session.signal(signal);
        assert_eq!(session.wait_for_end().signal(), Some(signal));
        assert!(is_cooked(&session.settings()), "signal {signal}");
    }
}

#[test]
fn a_stop_gives_the_terminal_back_and_a_continue_takes_it_again() {
    let (mut session, _scratch) = start("stop");
    session.signal(libc::SIGTSTP);
    session.wait_for_stop();
    assert!(is_cooked(&session.settings()));
    session.signal(libc::SIGCONT);
    session.wait_for_settings(|settings| !is_cooked(settings));
    session.press(b"b");
    session.wait_for_text(b"[b]");
    session.press(b"\x01x");
    assert_eq!(session.wait_for_end().code(), Some(0));
}
