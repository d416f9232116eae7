//! The program on a terminal of its own, as a person would use it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{
    InputModes, LocalModes, OutputModes, Termios, Winsize, tcgetattr, tcsetwinsize,
};

use super::xenolith;

/// A run of the program, what it has shown, and how long to wait for anything.
pub struct Session {
    master: File,
    child: Child,
    /// Everything shown so far, and what comes.
    screen: Vec<u8>,
    /// Waiting goes on from here.
    seen: usize,
    shown: Receiver<Vec<u8>>,
    patience: Duration,
}

impl Session {
    pub fn start(args: &[&str], patience: Duration) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&master).expect("ours");
        unlockpt(&master).expect("ours");
        resize(&master, 80, 24);
        let path = ptsname(&master, Vec::new()).expect("it has a name");
        let slave: OwnedFd = File::options()
            .read(true)
            .write(true)
            .open(path.to_str().expect("plain"))
            .expect("unlocked")
            .into();
        let duplicate = || slave.try_clone().expect("a descriptor");
        let terminal = slave.as_raw_fd();
        let mut command = xenolith(args);
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
        Self { master, child, screen: Vec::new(), seen: 0, shown, patience }
    }

    pub fn settings(&self) -> Termios {
        tcgetattr(&self.master).expect("a terminal")
    }

    pub fn wait_for_settings(&self, good: impl Fn(&Termios) -> bool) {
        let start = Instant::now();
        while !good(&self.settings()) {
            assert!(start.elapsed() < self.patience, "{:?}", self.settings());
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn press(&mut self, keys: &[u8]) {
        self.master.write_all(keys).expect("taken");
    }

    /// Waits until `text` is shown, after what was waited for before.
    pub fn wait_for_text(&mut self, text: &[u8]) {
        let start = Instant::now();
        let mut gone = false;
        loop {
            let new = &self.screen[self.seen..];
            if let Some(at) = new.windows(text.len()).position(|window| window == text) {
                self.seen += at + text.len();
                return;
            }
            assert!(
                !gone && start.elapsed() < self.patience,
                "no {:?} in {:?}",
                String::from_utf8_lossy(text),
                String::from_utf8_lossy(new)
            );
            match self.shown.recv_timeout(Duration::from_millis(100)) {
                Ok(more) => self.screen.extend(more),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => gone = true,
            }
        }
    }

    /// Changes the window's size, as a person does with the mouse.
    pub fn resize(&self, columns: u16, rows: u16) {
        resize(&self.master, columns, rows);
    }

    /// Everything shown until now.
    pub fn screen(&mut self) -> String {
        while let Ok(more) = self.shown.recv_timeout(Duration::from_millis(100)) {
            self.screen.extend(more);
        }
        String::from_utf8_lossy(&self.screen).into_owned()
    }

    pub fn wait_for_end(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("ours") {
                return status;
            }
            if start.elapsed() >= self.patience {
                panic!("it goes on: {:?}", self.screen());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until all its threads have stopped, as a shell does before it shows its prompt. Given back before that, a
    /// terminal says only that it is about to: a SIGCONT then would be lost.
    pub fn wait_for_stop(&self) {
        let pid = Pid::from_child(&self.child);
        let start = Instant::now();
        while !matches!(
            waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED | WaitIdOptions::NOHANG),
            Ok(Some(_))
        ) {
            assert!(start.elapsed() < self.patience, "it goes on");
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn signal(&self, signal: i32) {
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

fn resize(master: &impl AsFd, columns: u16, rows: u16) {
    let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(master, size).expect("a terminal");
}

/// Whether a terminal is as a shell likes it.
pub fn is_cooked(settings: &Termios) -> bool {
    settings.local_modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
        && settings.input_modes.contains(InputModes::ICRNL)
        && settings.output_modes.contains(OutputModes::OPOST)
}
