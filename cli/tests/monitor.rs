//! The monitor behind Ctrl-A C, used on a terminal as a person would.

mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::pty::{Session, is_cooked};
use common::{ECHO, STOP, Scratch, guest};

const PATIENCE: Duration = Duration::from_secs(120);
const PROMPT: &[u8] = b"(xenolith) ";

/// A guest on a terminal that it has taken, with the monitor open.
fn start(name: &str, code: &[u8], more: &[&str]) -> (Session, Scratch) {
    let scratch = Scratch::new(name);
    let kernel = scratch.file("kernel", &guest(code));
    let kernel = kernel.to_str().expect("plain").to_owned();
    let mut args = vec!["run", "--kernel", &kernel, "--timeout", "500"];
    args.extend(more);
    let mut session = Session::start(&args, PATIENCE);
    session.wait_for_settings(|settings| !is_cooked(settings));
    session.press(b"\x01c");
    session.wait_for_text(PROMPT);
    (session, scratch)
}

/// Enters a command and waits for parts of its answer, in order, and the next prompt.
fn ask(session: &mut Session, command: &str, answer: &[&str]) {
    session.press(format!("{command}\r").as_bytes());
    session.wait_for_text(format!("{command}\r\n").as_bytes());
    for part in answer {
        session.wait_for_text(part.as_bytes());
    }
    session.wait_for_text(PROMPT);
}

/// Waits until the guest has written `text`, whatever the monitor has put between.
fn wait_for_guest(session: &mut Session, text: &str) {
    let start = Instant::now();
    loop {
        let screen = session.screen().replace("(xenolith) ", "");
        if screen.contains(text) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "no {text} in {screen}");
    }
}

#[test]
fn the_monitor_answers_and_gives_the_terminal_back() {
    for engine in ["bt", "interp"] {
        let name = format!("monitor-{engine}");
        let (mut session, _scratch) = start(&name, ECHO, &["--engine", engine, "-c", "2"]);
        ask(&mut session, "help", &["info", "x /10i", "xp", "sendkey", "system_powerdown", "quit"]);
        ask(&mut session, "info", &["registers", "pic", "ioapic", "lapic", "mtree", "block"]);
        ask(&mut session, "info registers", &["CPU#0", "RIP=", "RAX=", "CR0=", "FCW=", "MM15="]);
        ask(&mut session, "info registers -a", &["CPU#0", "CPU#1", "WaitForSipi"]);
        ask(&mut session, "info cpus", &["CPU #0: pc=0x00000000001000", "#1", "(not started)"]);
        // The guest's code, in three ways.
        let bytes = ["0000000000100020: 0x66 0xba 0xfd 0x03\r\n"];
        ask(&mut session, "xp /4xb 0x100020", &bytes);
        ask(&mut session, "x/4bx 0x100000 + 4*8", &bytes);
        ask(&mut session, "x /2i 0x100020", &["66bafd03", "mov dx,3FDh", "in al,dx"]);
        ask(&mut session, "x /1i $pc", &["0x00000000001000"]);
        ask(&mut session, "x /2dw 0x100000", &["464367618       65536"]);
        ask(&mut session, "p $cs*0+0x10", &["0x10\r\n"]);
        ask(&mut session, "gva2gpa 0x1234", &["gpa: 0x1234\r\n"]);
        ask(&mut session, "info pic", &["pic0: irr=", "imr=b8", "irq_base=08", "pic1:"]);
        ask(&mut session, "info ioapic", &["pin 0 ", "masked", "pin 23", "remote IRR (none)"]);
        ask(&mut session, "info lapic", &["local APIC 0 (xAPIC)", "LVT0", "ExtINT", "IRR"]);
        ask(&mut session, "info lapic 1", &["local APIC 1"]);
        let map = ["memory", "ram", "devices in memory", "00000000fec00000", "ports", "uart"];
        ask(&mut session, "info mtree", &map);
        ask(&mut session, "info block", &["no disks"]);
        ask(&mut session, "system_powerdown", &["the guest has not asked"]);
        ask(&mut session, "balloon 100", &["balloon: the machine has no balloon; --balloon"]);
        ask(&mut session, "balloon lots", &["balloon: a number of MiB must follow"]);
        ask(&mut session, "info balloon", &["info: the machine has no balloon"]);

        // Mistakes are one line each.
        ask(&mut session, "fly", &["fly: no such command"]);
        ask(&mut session, "info nonsense", &["info: there is no \"nonsense\""]);
        ask(&mut session, "x", &["x: an address must follow"]);
        ask(&mut session, "x $foo", &["x: $foo: no such register"]);
        ask(&mut session, "xp /1gx 0xfee00000", &["0xfee00000 (physical): not memory"]);
        ask(&mut session, "xp /99999999xb 0", &["at most"]);
        ask(&mut session, "info lapic 2", &["there is no processor 2"]);
        ask(&mut session, "cpu 7", &["there is no processor 7"]);
        ask(&mut session, "cpu 99999999999999999999", &["cpu: a number must follow"]);
        ask(&mut session, "sendkey ctrl-nonsense", &["\"nonsense\" is no key's name"]);
        ask(&mut session, "screendump", &["a file's name must follow"]);
        ask(&mut session, "quit now", &["quit takes nothing behind it"]);

        ask(&mut session, "cpu 1", &[]);
        ask(&mut session, "info registers", &["CPU#1"]);
        // What is typed in the monitor is not the guest's; what is typed after it is.
        session.press(b"\x01c");
        session.wait_for_text(b"back to the guest");
        session.press(b"z");
        session.wait_for_text(b"[z]");
        let screen = session.screen();
        assert!(!screen.contains("[h]") && !screen.contains("[x]"), "{screen}");
        session.press(b"\x01cquit\r");
        assert_eq!(session.wait_for_end().code(), Some(0));
        assert!(is_cooked(&session.settings()));
    }
}

#[test]
fn stop_holds_the_guest_until_cont() {
    let (mut session, _scratch) = start("monitor-stop", ECHO, &[]);
    ask(&mut session, "info status", &["running"]);
    ask(&mut session, "stop", &[]);
    ask(&mut session, "info status", &["paused"]);
    ask(&mut session, "info registers", &["RIP="]);
    session.press(b"\x01c");
    session.wait_for_text(b"which is stopped");
    session.press(b"held");
    thread::sleep(Duration::from_millis(500));
    assert!(!session.screen().contains("[h]"), "{}", session.screen());
    session.press(b"\x01c");
    ask(&mut session, "cont", &[]);
    wait_for_guest(&mut session, "[h][e][l][d]");
    // Ctrl-A X ends a run that is stopped.
    ask(&mut session, "stop", &[]);
    session.press(b"\x01x");
    assert_eq!(session.wait_for_end().code(), Some(0));
}

#[test]
fn the_reset_button_resets_also_what_is_stopped() {
    let (mut session, _scratch) = start("monitor-reset", ECHO, &["--no-reboot"]);
    ask(&mut session, "stop", &[]);
    session.press(b"system_reset\r");
    assert_eq!(session.wait_for_end().code(), Some(0));

    let (mut session, _scratch) = start("monitor-reset-again", ECHO, &[]);
    ask(&mut session, "stop", &[]);
    ask(&mut session, "system_reset", &[]);
    // Stopped still, at its first instruction.
    ask(&mut session, "x /1i $pc", &["0x0000000000100020: 66bafd03"]);
    ask(&mut session, "cont", &[]);
    session.press(b"\x01cq");
    session.wait_for_text(b"[q]");
    assert_eq!(session.wait_for_end().code(), Some(7));
}

/// Prints each byte of the keyboard's as a letter: 'A' for its low half, 'a' for its upper one added.
const KEYBOARD: &[u8] = &[
    0xe4, 0x64, // again: in al, 0x64
    0xa8, 0x01, // test al, 1
    0x74, 0xfa, // jz again
    0xe4, 0x60, // in al, 0x60
    0x88, 0xc3, // mov bl, al
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xc0, 0xe8, 0x04, // shr al, 4
    0x04, b'a', 0xee, // add al, 'a'; out dx, al
    0x88, 0xd8, // mov al, bl
    0x24, 0x0f, // and al, 15
    0x04, b'A', 0xee, // add al, 'A'; out dx, al
    0xeb, 0xe3, // jmp again
];

#[test]
fn sendkey_presses_and_releases() {
    let (mut session, _scratch) = start("monitor-keys", KEYBOARD, &[]);
    ask(&mut session, "sendkey ctrl-alt-delete", &[]);
    // 1d 38 e0 53, e0 d3 b8 9d.
    wait_for_guest(&mut session, "bNdIoAfDoAnDlIjN");
    ask(&mut session, "sendkey a 1", &[]);
    wait_for_guest(&mut session, "bOjO");
    session.press(b"\x01x");
    assert_eq!(session.wait_for_end().code(), Some(0));
}

#[test]
fn a_halted_machine_can_be_looked_at() {
    let (mut session, _scratch) = start("monitor-halted", STOP, &["--engine", "interp"]);
    // It may not have come to its halt yet.
    while !session.screen().contains("(halted)") {
        ask(&mut session, "info cpus", &["CPU #0"]);
    }
    ask(&mut session, "info registers", &["Halted"]);
    session.press(b"\x01x");
    assert_eq!(session.wait_for_end().code(), Some(0));
}
