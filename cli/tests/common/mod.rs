//! What the program's tests share: starting it, scratch folders, and the smallest guests.
//!
//! Guests are multiboot-1 images of a few instructions, assembled here by hand: they need no tool and no
//! other file. Each test has its own scratch folder, removed when the test ends.

#![allow(dead_code, reason = "each test program uses a part of this")]

pub mod pty;

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A folder that lives as long as the test.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let process = std::process::id();
        for n in 0.. {
            let folder = std::env::temp_dir().join(format!("xenolith-{name}-{process}-{n}"));
            match fs::create_dir(&folder) {
                Ok(()) => return Self(folder),
                // A process of the same number was killed.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => panic!("{}: {error}", folder.display()),
            }
        }
        unreachable!("there is a number that is free")
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).expect("the scratch folder is writable");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The program with `args`, deaf, and without the person's settings.
pub fn xenolith<S: AsRef<OsStr>>(args: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xenolith"));
    command.args(args).stdin(Stdio::null());
    command.env_remove("XENOLITH_LOG").env_remove("XENOLITH_CACHE");
    command
}

pub fn output<S: AsRef<OsStr>>(args: &[S]) -> Output {
    xenolith(args).output().expect("the program starts")
}

/// Time limits in seconds for guests that must have come far enough before: which of them is enough for that depends
/// on what else the computer does.
pub const TIME_LIMITS: [&str; 4] = ["1.5", "6", "24", "96"];

/// Runs a guest under a time limit that no test should reach.
pub fn run(kernel: &Path, more: &[&str]) -> Output {
    let kernel = kernel.to_str().expect("scratch names are plain");
    let mut args = vec!["run", "--kernel", kernel, "-m", "64M"];
    args.extend(more);
    if !more.contains(&"--timeout") {
        args.extend(["--timeout", "300"]);
    }
    output(&args)
}

/// A multiboot-1 image that executes `code` at 1 MiB + 32 in flat 32-bit protected mode.
pub fn guest(code: &[u8]) -> Vec<u8> {
    const MAGIC: u32 = 0x1bad_b002;
    // Bit 16: the header itself says where to load; no ELF needed.
    const FLAGS: u32 = 1 << 16;
    const LOAD: u32 = 0x10_0000;
    let end = LOAD + 32 + u32::try_from(code.len()).expect("guests are tiny");
    let checksum = 0_u32.wrapping_sub(MAGIC).wrapping_sub(FLAGS);
    let mut image = Vec::new();
    for word in [MAGIC, FLAGS, checksum, LOAD, LOAD, end, end, LOAD + 32] {
        image.extend_from_slice(&word.to_le_bytes());
    }
    image.extend_from_slice(code);
    // Multiboot loaders look for the header in the first 8 KiB; a file that short may be refused as
    // truncated by a careless one.
    image.resize(image.len().max(4096), 0);
    image
}

/// `mov dx, PORT; mov al, VALUE; out dx, al`.
pub fn out8(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// Writes text to COM1, whose FIFO a machine may let fill at once.
pub fn print(text: &str) -> Vec<u8> {
    text.bytes().flat_map(|byte| out8(0x3f8, byte)).collect()
}

/// `mov dx, 0x604; mov ax, 0x2000; out dx, ax`: ACPI's soft off.
pub const POWER_OFF: &[u8] = &[0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef];

/// `cli; hlt; jmp` back to the halt.
pub const STOP: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd];

/// `lidt [empty]; int3`: no handler for the breakpoint, none for the faults that follow.
pub const TRIPLE_FAULT: &[u8] = &[
    0x6a, 0x00, 0x6a,
    0x00, // push 0; push 0: a limit and base of nothing, if there is a stack
    0xbc, 0x00, 0x80, 0x10, 0x00, // mov esp, 0x108000
    0x6a, 0x00, 0x6a, 0x00, // push 0; push 0
    0x0f, 0x01, 0x1c, 0x24, // lidt [esp]
    0xcc, // int3
];

/// Echoes COM1 back in `[brackets]`; the byte `q` ends with debug exit 3 (status 7).
pub const ECHO: &[u8] = &[
    0x66, 0xba, 0xfd, 0x03, // again: mov dx, 0x3fd
    0xec, // wait: in al, dx
    0xa8, 0x01, // test al, 1
    0x74, 0xfb, // jz wait
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xec, // in al, dx
    0x88, 0xc3, // mov bl, al
    0xb0, b'[', 0xee, // mov al, '['; out dx, al
    0x88, 0xd8, 0xee, // mov al, bl; out dx, al
    0xb0, b']', 0xee, // mov al, ']'; out dx, al
    0x80, 0xfb, b'q', // cmp bl, 'q'
    0x75, 0xe2, // jne again
    0x66, 0xba, 0xf4, 0x00, // mov dx, 0xf4
    0xb0, 0x03, 0xee, // mov al, 3; out dx, al
    0xfa, 0xf4, // cli; hlt
];
