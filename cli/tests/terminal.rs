//! The terminal: lent to the guest, and given back in every way out.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use common::{ECHO, Scratch, guest, xenolith};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{InputModes, LocalModes, OutputModes, Termios, tcgetattr};

const PATIENCE: Duration = Duration::from_secs(30);

/// The program on a terminal of its own, with a guest that echoes in brackets.
struct Session {
    master: File,
    child: Child,
    /// Everything shown so far, and what comes.
    screen: Vec<u8>,
    shown: Receiver<Vec<u8>>,
    _scratch: Scratch,
}

impl Session {
    fn start(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let kernel = scratch.file("kernel", &guest(ECHO));
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&master).expect("ours");
        unlockpt(&master).expect("ours");
        let path = ptsname(&master, Vec::new()).expect("it has a name");
        let slave: OwnedFd = File::options()
            .read(true)
            .write(true)
            .open(path.to_str().expect("plain"))
            .expect("unlocked")
            .into();
        let duplicate = || slave.try_clone().expect("a descriptor");
        let terminal = slave.as_raw_fd();
        let mut command =
            xenolith(&["run", "--kernel", kernel.to_str().expect("plain"), "--timeout", "100"]);
        command.stdin(duplicate()).stdout(duplicate()).stderr(duplicate());
        let control = move || {
            // SAFETY: a system call without pointers, in a child that is not a group leader.
            if unsafe { libc::setsid() } < 0 {
                return Err(std::io::Error::last_os_error());
            }
            // SAFETY: TIOCSCTTY takes a number; `terminal` is open until after the start.
            if unsafe { libc::ioctl(terminal, libc::TIOCSCTTY, 0) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        };
        // SAFETY: the closure only makes two system calls, both fit for a forked child.
        unsafe { command.pre_exec(control) };
        let child = command.spawn().expect("the program starts");
        drop(slave);
        let master = File::from(master);
        let mut reader = master.try_clone().expect("a descriptor");
        let (sender, shown) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 1024];
            // EIO: the other side is closed.
            while let Ok(len @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..len].to_vec()).is_err() {
                    return;
                }
            }
        });
        let session = Self { master, child, screen: Vec::new(), shown, _scratch: scratch };
        session.wait_for_settings(|settings| !is_cooked(settings));
        session
    }

    fn settings(&self) -> Termios {
        tcgetattr(&self.master).expect("a terminal")
    }

    fn wait_for_settings(&self, good: impl Fn(&Termios) -> bool) {
        let start = Instant::now();
        while !good(&self.settings()) {
            assert!(start.elapsed() < PATIENCE, "{:?}", self.settings());
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn press(&mut self, keys: &[u8]) {
        self.master.write_all(keys).expect("taken");
    }

    fn wait_for_text(&mut self, text: &[u8]) {
        let start = Instant::now();
        while !self.screen.windows(text.len()).any(|window| window == text) {
            assert!(
                start.elapsed() < PATIENCE,
                "no {:?} in {:?}",
                String::from_utf8_lossy(text),
                String::from_utf8_lossy(&self.screen)
            );
            if let Ok(more) = self.shown.recv_timeout(Duration::from_millis(100)) {
                self.screen.extend(more);
            }
        }
    }

    fn wait_for_end(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("ours") {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "it goes on");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        // SAFETY: no pointers; the child is ours and not yet waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_cooked(settings: &Termios) -> bool {
    settings.local_modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
        && settings.input_modes.contains(InputModes::ICRNL)
        && settings.output_modes.contains(OutputModes::OPOST)
}

#[test]
fn keys_reach_the_guest_and_ctrl_a_x_quits() {
    let mut session = Session::start("keys");
    session.press(b"a");
    session.wait_for_text(b"[a]");
    session.press(b"\x03\x1a\r");
    session.wait_for_text(b"[\x03][\x1a][\r]");
    session.press(b"\x01a");
    session.wait_for_text(b"[\x01]");
    session.press(b"\x01h");
    session.wait_for_text(b"Ctrl-A X");
    // Two reads, most likely.
    session.press(b"\x01");
    thread::sleep(Duration::from_millis(50));
    session.press(b"x");
    assert_eq!(session.wait_for_end().code(), Some(0));
    assert!(is_cooked(&session.settings()));
}

#[test]
fn the_guests_end_gives_the_terminal_back() {
    let mut session = Session::start("guests-end");
    session.press(b"q");
    assert_eq!(session.wait_for_end().code(), Some(7));
    assert!(is_cooked(&session.settings()));
}

#[test]
fn deadly_signals_give_the_terminal_back() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        let mut session = Session::start(&format!("signal-{signal}"));
        session.signal(signal);
        assert_eq!(session.wait_for_end().signal(), Some(signal));
        assert!(is_cooked(&session.settings()), "signal {signal}");
    }
}

#[test]
fn a_stop_gives_the_terminal_back_and_a_continue_takes_it_again() {
    let mut session = Session::start("stop");
    session.signal(libc::SIGTSTP);
    session.wait_for_settings(is_cooked);
    session.signal(libc::SIGCONT);
    session.wait_for_settings(|settings| !is_cooked(settings));
    session.press(b"b");
    session.wait_for_text(b"[b]");
    session.press(b"\x01x");
    assert_eq!(session.wait_for_end().code(), Some(0));
}
