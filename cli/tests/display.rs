//! The guest's screen by VNC and in the terminal, with a boot sector that types what is typed.
//!
//! Needs SeaBIOS and its video services, as Debian's package seabios installs them.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::pty::{Session, is_cooked};
use common::{Scratch, output, xenolith};

const PATIENCE: Duration = Duration::from_secs(120);

/// The line of text where it starts. The firmware's own lines don't come so far.
const LINE: usize = 20;
/// Writes "R>" by the video services, then each key; `g` turns to 320x200 in 256 colours first.
const TYPEWRITER: &[u8] = &[
    0xb4, 0x02, 0x30, 0xff, // mov ah, 2; xor bh, bh
    0xba, 0x00, LINE as u8, 0xcd, 0x10, // mov dx, LINE << 8; int 0x10
    0xb4, 0x0e, 0xb0, b'R', 0xcd, 0x10, // mov ah, 0xe; mov al, 'R'; int 0x10
    0xb0, b'>', 0xcd, 0x10, // mov al, '>'; int 0x10
    0x30, 0xe4, 0xcd, 0x16, // again: xor ah, ah; int 0x16
    0x3c, b'g', 0x75, 0x05, // cmp al, 'g'; jne type
    0xb8, 0x13, 0x00, 0xcd, 0x10, // mov ax, 0x13; int 0x10
    0xb4, 0x0e, 0xcd, 0x10, 0xeb, 0xed, // type: mov ah, 0xe; int 0x10; jmp again
];

fn disk(scratch: &Scratch) -> String {
    let mut image = vec![0; 1 << 20];
    image[..TYPEWRITER.len()].copy_from_slice(TYPEWRITER);
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    scratch.file("disk.img", &image).to_str().expect("plain").to_owned()
}

/// A run that serves VNC, and its port.
struct Served {
    child: Child,
    port: u16,
}

impl Served {
    fn start(disk: &str) -> Self {
        let mut child = xenolith(&["run", disk, "--serial", "none", "--timeout", "300"])
            .args(["--display", "vnc=127.0.0.1:0"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        let stderr = child.stderr.take().expect("piped");
        BufReader::new(stderr).read_line(&mut line).expect("a line");
        let port = line.split(':').next_back().and_then(|rest| rest.split(' ').next());
        let port = port.and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("{line}"));
        Self { child, port }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client that takes raw pixels and new sizes.
struct Client {
    stream: TcpStream,
    width: usize,
    height: usize,
    pixels: Vec<u32>,
}

impl Client {
    fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        let mut client = Self { stream, width: 0, height: 0, pixels: Vec::new() };
        client.take(12);
        client.send(b"RFB 003.008\n");
        client.take(2);
        client.send(&[1]);
        client.take(4);
        client.send(&[1]);
        let size = (client.number(), client.number());
        client.resize(size);
        client.take(16);
        let name = u32::from_be_bytes(client.take(4).try_into().expect("four"));
        client.take(name as usize);
        // Raw and DesktopSize.
        client.send(&[2, 0, 0, 2, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0x21]);
        client
    }

    fn resize(&mut self, (width, height): (usize, usize)) {
        (self.width, self.height) = (width, height);
        self.pixels = vec![0; width * height];
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("taken");
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).expect("sent");
        bytes
    }

    fn number(&mut self) -> usize {
        usize::from(u16::from_be_bytes(self.take(2).try_into().expect("two")))
    }

    fn press(&mut self, symbol: u8) {
        self.send(&[4, 1, 0, 0, 0, 0, 0, symbol]);
        self.send(&[4, 0, 0, 0, 0, 0, 0, symbol]);
    }

    /// Asks for the next picture and takes it.
    fn update(&mut self) {
        self.send(&[3, 1, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        self.take(2);
        for _ in 0..self.number() {
            let (x, y) = (self.number(), self.number());
            let (width, height) = (self.number(), self.number());
            if i32::from_be_bytes(self.take(4).try_into().expect("four")) == -223 {
                self.resize((width, height));
                continue;
            }
            let bytes = self.take(4 * width * height);
            for (n, pixel) in bytes.chunks_exact(4).enumerate() {
                let at = (y + n / width) * self.width + x + n % width;
                self.pixels[at] = u32::from_le_bytes(pixel.try_into().expect("four"));
            }
        }
    }

    fn wait(&mut self, what: &str, good: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !good(self) {
            assert!(start.elapsed() < PATIENCE, "{what}");
            self.update();
        }
    }

    /// Where text's cells are not black, by line of text and column; a cursor counts.
    fn inked(&self) -> Vec<(usize, usize)> {
        let cells = (0..25).flat_map(|row| (0..80).map(move |column| (row, column)));
        let ink = |&(row, column): &(usize, usize)| {
            // Without the lines of the cursor.
            (0..13).any(|y| {
                let start = (row * 16 + y) * self.width + column * 9;
                self.pixels[start..start + 9].iter().any(|&pixel| pixel != 0)
            })
        };
        cells.filter(ink).collect()
    }

    fn is_text(&self) -> bool {
        (self.width, self.height) == (720, 400)
    }
}

#[test]
fn vnc_clients_see_and_type() {
    let scratch = Scratch::new("vnc");
    let served = Served::start(&disk(&scratch));
    let mut client = Client::connect(served.port);
    client
        .wait("the prompt", |client| client.is_text() && client.inked().last() == Some(&(LINE, 1)));
    let mut other = Client::connect(served.port);
    client.press(b'x');
    client.press(b'Y');
    for client in [&mut client, &mut other] {
        client.wait("what was typed", |client| {
            client.is_text() && client.inked().ends_with(&[(LINE, 2), (LINE, 3)])
        });
    }
    assert!(client.pixels == other.pixels, "both see the same");
    // One that is deaf and one that talks nonsense.
    let deaf = TcpStream::connect(("127.0.0.1", served.port)).expect("it listens");
    let mut loud = TcpStream::connect(("127.0.0.1", served.port)).expect("it listens");
    loud.write_all(&[0xff; 4096]).expect("taken");
    other.press(b'g');
    client.wait("graphics", |client| (client.width, client.height) == (640, 400));
    drop(deaf);
}

#[test]
fn a_port_that_is_taken_is_told_in_one_line() {
    let scratch = Scratch::new("vnc-taken");
    let disk = disk(&scratch);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let place = format!("vnc={}", taken.local_addr().expect("bound"));
    for place in [place.as_str(), "vnc=no.such.host.invalid:5900"] {
        let output = output(&["run", &disk, "--display", place]);
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains(&format!("--display {place}")), "{text}");
    }
}

/// Waits until the terminal shows `text` when it is painted anew, as after each change of its size: what the guest
/// writes slowly is painted piece by piece.
fn wait_for_screen(session: &mut Session, text: &str) {
    let start = Instant::now();
    for rows in [24, 23].into_iter().cycle() {
        session.resize(80, rows);
        let screen = session.screen();
        if screen.rsplit("\x1b[2J").next().is_some_and(|painted| painted.contains(text)) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "no {text} in {screen:?}");
    }
}

#[test]
fn the_terminal_shows_the_screen_and_takes_keys() {
    let scratch = Scratch::new("display-terminal");
    let disk = disk(&scratch);
    let args = ["run", &disk, "--display", "terminal", "--timeout", "300"];
    let mut session = Session::start(&args, PATIENCE);
    session.wait_for_text(b"\x1b[?1049h");
    wait_for_screen(&mut session, "R>");
    session.press(b"abC");
    wait_for_screen(&mut session, "R>abC");
    // In a small window the cursor's line is in sight.
    session.resize(40, 2);
    session.wait_for_text(b"\x1b[2;1HR>abC");
    // The monitor has the usual page; then the screen comes back.
    session.press(b"\x01c");
    session.wait_for_text(b"\x1b[?1049l");
    session.wait_for_text(b"(xenolith) ");
    session.press(b"sendkey shift-d\r");
    session.wait_for_text(b"(xenolith) ");
    session.press(b"\x01c");
    session.wait_for_text(b"\x1b[?1049h");
    wait_for_screen(&mut session, "R>abCD");
    session.press(b"g");
    session.wait_for_text(b"graphics, 640 x 400");
    session.press(b"\x01x");
    session.wait_for_text(b"\x1b[?1049l");
    assert_eq!(session.wait_for_end().code(), Some(0));
    assert!(is_cooked(&session.settings()));
    thread::sleep(Duration::from_millis(200));
    assert!(session.screen().ends_with("\x1b[?1049l"), "nothing is painted after the end");
}

#[test]
fn the_terminal_has_one_owner() {
    let scratch = Scratch::new("display-owner");
    let disk = disk(&scratch);
    for (more, answer) in
        [(&["--serial", "stdio"][..], "both want the terminal"), (&[][..], "not a terminal")]
    {
        let output = output(&[&["run", disk.as_str(), "--display", "terminal"], more].concat());
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.lines().count() == 1 && text.contains(answer), "{text}");
    }
}
