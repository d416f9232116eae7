//! The server with a client of our own, well-behaved and otherwise.

use super::encode::{HEXTILE, TILE};
use super::*;
use std::collections::HashMap;
use std::io::{Read, Write};

const PATIENCE: Duration = Duration::from_secs(60);

/// A screen that the test paints, and what came from keyboard and mouse.
#[derive(Clone)]
struct Painted(Arc<Mutex<State>>);

struct State {
    picture: Picture,
    keys: Vec<(u16, bool)>,
    /// How often the keyboard has no room for a key before it has, and how often it hasn't had.
    refusals: (u32, u32),
    motion: (i32, i32, i32),
    buttons: Buttons,
    caps_lock: bool,
}

impl Painted {
    fn new(width: usize, height: usize, pixel: impl FnMut(usize) -> u32) -> Self {
        let picture = Picture { width, height, pixels: (0..width * height).map(pixel).collect() };
        let (keys, motion, buttons) = (Vec::new(), (0, 0, 0), Buttons::empty());
        let state = State { picture, keys, refusals: (0, 0), motion, buttons, caps_lock: false };
        Self(Arc::new(Mutex::new(state)))
    }

    fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        act(&mut self.0.lock().expect("no test panics with it"))
    }

    /// Waits until what came is as it should be.
    fn wait(&self, good: impl Fn(&State) -> bool, what: &str) {
        let start = Instant::now();
        while !self.with(|state| good(state)) {
            let keys = self.with(|state| state.keys.clone());
            assert!(start.elapsed() < PATIENCE, "{what}: {keys:x?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait_for_keys(&self, keys: &[(u16, bool)]) {
        self.wait(|state| state.keys == keys, "keys");
        self.with(|state| state.keys.clear());
    }

    fn serve(&self) -> SocketAddr {
        let server = Server::bind("127.0.0.1:0").expect("a port");
        let address = server.address().expect("bound");
        server.start(self.clone());
        address
    }
}

impl Seat for Painted {
    fn picture(&self) -> Option<Picture> {
        Some(self.with(|state| state.picture.clone()))
    }
    fn key(&self, key: Key, down: bool) -> bool {
        self.with(|state| {
            let (wanted, had) = state.refusals;
            let taken = had == wanted;
            if taken {
                state.keys.push((key.0, down));
            }
            state.refusals.1 = if taken { 0 } else { had + 1 };
            taken
        })
    }
    fn mouse(&self, dx: i32, dy: i32, dz: i32, buttons: Buttons) {
        self.with(|state| {
            let (x, y, z) = state.motion;
            state.motion = (x + dx, y + dy, z + dz);
            state.buttons = buttons;
        });
    }
    fn caps_lock(&self) -> bool {
        self.with(|state| state.caps_lock)
    }
}

/// A client with 32-bit pixels, 0x00RRGGBB.
struct Client {
    stream: TcpStream,
    width: usize,
    height: usize,
    pixels: Vec<u32>,
    /// Rectangles of the last update, but for pseudo-encodings, which are counted by their number.
    painted: usize,
    confirmed: HashMap<i32, usize>,
}

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = Self::greeted(address);
        let (painted, confirmed) = (0, HashMap::new());
        let mut client =
            Self { stream, width: 0, height: 0, pixels: Vec::new(), painted, confirmed };
        client.send(b"RFB 003.008\n");
        assert_eq!(client.take(2), [1, 1]);
        client.send(&[1]);
        assert_eq!(client.take(4), [0; 4]);
        client.send(&[1]);
        client.init();
        client
    }

    /// A connection that has been greeted: one that was turned away, since others have not gone yet, tries again.
    fn greeted(address: SocketAddr) -> TcpStream {
        let start = Instant::now();
        loop {
            let mut stream = TcpStream::connect(address).expect("it listens");
            stream.set_read_timeout(Some(PATIENCE)).expect("a time");
            let mut greeting = [0; 12];
            if stream.read_exact(&mut greeting).is_ok() {
                assert_eq!(&greeting, b"RFB 003.008\n");
                return stream;
            }
            assert!(start.elapsed() < PATIENCE, "turned away");
        }
    }

    fn init(&mut self) {
        (self.width, self.height) = (self.number(), self.number());
        self.pixels = vec![u32::MAX; self.width * self.height];
        assert_eq!(self.take(16), [32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0]);
        assert_eq!(self.take(4), [0, 0, 0, 8]);
        assert_eq!(self.take(8), b"xenolith");
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
        let bytes = self.take(2);
        usize::from(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn encodings(&mut self, encodings: &[i32]) {
        let mut message = vec![2, 0, 0, encodings.len() as u8];
        encodings.iter().for_each(|encoding| message.extend(encoding.to_be_bytes()));
        self.send(&message);
    }

    fn ask(&mut self, incremental: bool) {
        let (width, height) =
            ((self.width as u16).to_be_bytes(), (self.height as u16).to_be_bytes());
        let mut message = vec![3, incremental.into(), 0, 0, 0, 0];
        message.extend([width, height].concat());
        self.send(&message);
    }

    fn key(&mut self, symbol: u32, down: bool) {
        let mut message = vec![4, down.into(), 0, 0];
        message.extend(symbol.to_be_bytes());
        self.send(&message);
    }

    fn point(&mut self, mask: u8, x: u16, y: u16) {
        let mut message = vec![5, mask];
        message.extend([x.to_be_bytes(), y.to_be_bytes()].concat());
        self.send(&message);
    }

    fn pixel(&mut self) -> u32 {
        let bytes = self.take(4);
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    fn fill(&mut self, x: usize, y: usize, width: usize, height: usize, pixel: u32) {
        for line in y..y + height {
            self.pixels[line * self.width + x..][..width].fill(pixel);
        }
    }

    /// Takes an update.
    fn update(&mut self) {
        assert_eq!(self.take(2)[0], 0, "an update");
        self.painted = 0;
        for _ in 0..self.number() {
            let (x, y) = (self.number(), self.number());
            let (width, height) = (self.number(), self.number());
            let encoding = self.take(4);
            match i32::from_be_bytes([encoding[0], encoding[1], encoding[2], encoding[3]]) {
                0 => {
                    self.painted += 1;
                    for at in 0..width * height {
                        let pixel = self.pixel();
                        self.fill(x + at % width, y + at / width, 1, 1, pixel);
                    }
                }
                HEXTILE => {
                    self.painted += 1;
                    self.hextile(x, y, width, height);
                }
                -223 => {
                    (self.width, self.height) = (width, height);
                    self.pixels = vec![u32::MAX; width * height];
                }
                other => *self.confirmed.entry(other).or_default() += 1,
            }
        }
    }

    fn hextile(&mut self, x: usize, y: usize, width: usize, height: usize) {
        let (mut back, mut fore) = (0, 0);
        for ty in (y..y + height).step_by(TILE) {
            for tx in (x..x + width).step_by(TILE) {
                let (w, h) = (TILE.min(x + width - tx), TILE.min(y + height - ty));
                let kind = self.take(1)[0];
                if kind & 1 != 0 {
                    for at in 0..w * h {
                        let pixel = self.pixel();
                        self.fill(tx + at % w, ty + at / w, 1, 1, pixel);
                    }
                    continue;
                }
                if kind & 2 != 0 {
                    back = self.pixel();
                }
                if kind & 4 != 0 {
                    fore = self.pixel();
                }
                self.fill(tx, ty, w, h, back);
                let count = if kind & 8 != 0 { self.take(1)[0] } else { 0 };
                for _ in 0..count {
                    let pixel = if kind & 16 != 0 { self.pixel() } else { fore };
                    let (at, size) = (self.take(1)[0], self.take(1)[0]);
                    let (sx, sy) = (usize::from(at >> 4), usize::from(at & 15));
                    let (sw, sh) = (usize::from(size >> 4) + 1, usize::from(size & 15) + 1);
                    assert!(sx + sw <= w && sy + sh <= h, "within its tile");
                    self.fill(tx + sx, ty + sy, sw, sh, pixel);
                }
            }
        }
    }

    /// Asks until it has what is on the screen.
    fn wait_for(&mut self, painted: &Painted) {
        let start = Instant::now();
        loop {
            let (size, same) = painted.with(|state| {
                let picture = &state.picture;
                ((picture.width, picture.height), picture.pixels == self.pixels)
            });
            if same && size == (self.width, self.height) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "the picture doesn't arrive");
            self.ask(true);
            self.update();
        }
    }
}

/// Numbers without order.
fn random(seed: u32) -> impl FnMut() -> u32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    }
}

#[test]
fn pictures_arrive_raw_and_by_hextile_and_then_only_what_changes() {
    let mut number = random(1);
    // Text-like, one colour, and noise; sizes that tiles don't divide.
    let mut kinds = [2, 5, 1, 0xff_ffff].into_iter().cycle();
    for (width, height) in [(720, 400), (33, 17), (1, 1), (100, 130)] {
        for encoding in [0, HEXTILE] {
            let colours = kinds.next().expect("endless");
            let painted = Painted::new(width, height, |_| {
                (number() % colours).wrapping_mul(0x0001_0203) & 0xff_ffff
            });
            let mut client = Client::connect(painted.serve());
            assert_eq!((client.width, client.height), (width, height));
            client.encodings(&[encoding]);
            client.ask(false);
            client.update();
            assert!(painted.with(|state| state.picture.pixels == client.pixels), "{colours}");
            painted.with(|state| state.picture.pixels[(height - 1) * width] ^= 0x80_0000);
            client.ask(true);
            client.update();
            assert!(painted.with(|state| state.picture.pixels == client.pixels), "{colours}");
            assert_eq!(client.painted, 1, "one tile has changed");
        }
    }
}

#[test]
fn other_pixel_formats_are_made() {
    let painted = Painted::new(2, 1, |at| [0xff_8000, 0x12_34ff][at]);
    let mut client = Client::connect(painted.serve());
    // 16 bits, big endian, 5-6-5.
    client.send(&[0, 0, 0, 0, 16, 16, 1, 1, 0, 31, 0, 63, 0, 31, 11, 5, 0, 0, 0, 0]);
    client.ask(false);
    let update = client.take(4 + 12 + 4);
    assert_eq!(update[16..], [0xfc, 0x00, 0x11, 0xbf]);
    // 8 bits with a map.
    client.send(&[0, 0, 0, 0, 8, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    client.ask(false);
    let map = client.take(6 + 256 * 6);
    assert_eq!(map[..6], [1, 0, 0, 0, 1, 0]);
    assert_eq!(map[6 + 255 * 6..], [0xff; 6]);
    let update = client.take(4 + 12 + 2);
    // Red 7, green 4, blue 0; red 0, green 1, blue 3.
    assert_eq!(update[16..], [0xf0, 0x07]);
}

#[test]
fn a_new_size_is_told_or_cut() {
    let painted = Painted::new(64, 40, |at| at as u32);
    let address = painted.serve();
    let (mut sizing, mut fixed) = (Client::connect(address), Client::connect(address));
    sizing.encodings(&[HEXTILE, -223]);
    sizing.wait_for(&painted);
    fixed.wait_for(&painted);
    let other = Painted::new(80, 30, |at| 0x10_0000 + at as u32);
    painted.with(|state| state.picture = other.with(|other| other.picture.clone()));
    sizing.wait_for(&painted);
    assert_eq!((sizing.width, sizing.height), (80, 30));
    let start = Instant::now();
    while fixed.pixels[29 * 64 + 63] != 0x10_0000 + 29 * 80 + 63 {
        assert!(start.elapsed() < PATIENCE);
        fixed.ask(true);
        fixed.update();
    }
    assert_eq!(fixed.pixels[30 * 64], 0, "nothing is below");
}

#[test]
fn keys_arrive_as_the_client_means_them() {
    let painted = Painted::new(8, 8, |_| 0);
    let mut client = Client::connect(painted.serve());
    client.key(0x61, true);
    client.key(0x61, false);
    painted.wait_for_keys(&[(0x1e, true), (0x1e, false)]);
    // A client that sends no Shift.
    client.key(0x21, true);
    client.key(0x21, false);
    painted.wait_for_keys(&[(0x2a, true), (0x02, true), (0x2a, false), (0x02, false)]);
    // Another layout's Shift-7, which is a slash there.
    client.key(0xffe1, true);
    client.key(0x2f, true);
    client.key(0x2f, false);
    client.key(0x20, true);
    client.key(0x20, false);
    client.key(0xffe1, false);
    painted.wait_for_keys(&[
        (0x2a, true),
        (0x2a, false),
        (0x35, true),
        (0x2a, true),
        (0x35, false),
        (0x39, true),
        (0x39, false),
        (0x2a, false),
    ]);
    // AltGr-Q of another layout, AltGr-Shift-7 of one; and AltGr with a key that makes no character.
    for symbols in [&[0xfe03, 0x40][..], &[0xfe03, 0xffe1, 0x5c], &[0xff7e, 0xffbe]] {
        symbols.iter().for_each(|&symbol| client.key(symbol, true));
        symbols.iter().rev().for_each(|&symbol| client.key(symbol, false));
    }
    painted.wait_for_keys(&[
        (0x2a, true),
        (0x03, true),
        (0x2a, false),
        (0x03, false),
        (0x2a, true),
        (0x2a, false),
        (0x2b, true),
        (0x2a, true),
        (0x2b, false),
        (0x2a, false),
        (0xe038, true),
        (0x3b, true),
        (0x3b, false),
        (0xe038, false),
    ]);
    painted.with(|state| state.caps_lock = true);
    client.key(0x41, true);
    client.key(0x41, false);
    painted.wait_for_keys(&[(0x1e, true), (0x1e, false)]);
    // By QEMU's numbers: the right Alt key.
    client.encodings(&[-258]);
    client.ask(false);
    client.update();
    assert_eq!(client.confirmed.get(&-258), Some(&1));
    client.send(&[255, 0, 0, 1, 0, 0, 0xff, 0xea, 0, 0, 0, 0xb8]);
    painted.wait_for_keys(&[(0xe038, true)]);
    // What is down when a client goes comes up.
    client.key(0xff0d, true);
    drop(client);
    painted.wait_for_keys(&[(0x1c, true), (0xe038, false), (0x1c, false)]);
}

#[test]
fn what_is_typed_faster_than_the_guest_reads_waits_for_it() {
    let painted = Painted::new(8, 8, |_| 0);
    painted.with(|state| state.refusals = (2, 0));
    let mut client = Client::connect(painted.serve());
    for _ in 0..3 {
        client.key(0x61, true);
        client.key(0x61, false);
    }
    painted.wait_for_keys(&[(0x1e, true), (0x1e, false)].repeat(3));
}

#[test]
fn the_pointer_moves_and_presses() {
    let painted = Painted::new(8, 8, |_| 0);
    let mut client = Client::connect(painted.serve());
    client.point(0, 100, 100);
    client.point(1, 110, 95);
    let left = |state: &State| state.motion == (10, -5, 0) && state.buttons == Buttons::LEFT;
    painted.wait(left, "motion");
    client.point(4, 110, 95);
    client.point(4 | 16, 110, 95);
    client.point(4 | 16, 110, 95);
    let right = |state: &State| state.motion == (10, -5, 1) && state.buttons == Buttons::RIGHT;
    painted.wait(right, "a turn of the wheel");
    client.encodings(&[-257]);
    client.ask(false);
    client.update();
    assert_eq!(client.confirmed.get(&-257), Some(&1));
    client.point(4, 0x7fff - 3, 0x7fff + 4);
    painted.wait(|state| state.motion == (7, -1, 1), "relative motion");
    drop(client);
    painted.wait(|state| state.buttons.is_empty(), "released");
}

#[test]
fn old_clients_are_greeted_in_their_way() {
    let painted = Painted::new(8, 8, |_| 0);
    let address = painted.serve();
    for (version, rest) in [(b"RFB 003.003\n", None), (b"RFB 003.007\n", Some(1))] {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        let (pixels, confirmed) = (Vec::new(), HashMap::new());
        let mut client = Client { stream, width: 0, height: 0, pixels, painted: 0, confirmed };
        client.take(12);
        client.send(version);
        match rest {
            None => assert_eq!(client.take(4), [0, 0, 0, 1]),
            Some(chosen) => {
                assert_eq!(client.take(2), [1, 1]);
                client.send(&[chosen]);
            }
        }
        client.send(&[0]);
        client.init();
        client.ask(false);
        client.update();
        assert_eq!(client.pixels, [0; 64]);
    }
}

#[test]
fn nonsense_ends_its_client_and_nobody_else() {
    let painted = Painted::new(64, 64, |at| at as u32);
    let address = painted.serve();
    let mut steady = Client::connect(address);
    let mut number = random(7);
    let greeted = |more: &[u8]| [b"RFB 003.008\n\x01\x01", more].concat();
    let mut bad = vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"RFB 003.008\n\x02".to_vec(),
        greeted(&[9]),
        // Pixels of 7 bits, a shift beyond them, a map of too many.
        greeted(&[0, 0, 0, 0, 7, 0, 0, 1, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]),
        greeted(&[0, 0, 0, 0, 8, 8, 0, 1, 0, 1, 0, 1, 0, 1, 9, 0, 0, 0, 0, 0]),
        greeted(&[0, 0, 0, 0, 32, 8, 0, 0, 0, 1, 0, 1, 0, 1, 9, 0, 0, 0, 0, 0]),
        // A clipboard of 4 GiB.
        greeted(&[6, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
        greeted(&[255, 1]),
    ];
    for _ in 0..100 {
        let len = number() % 200;
        bad.push(greeted(&(0..len).map(|_| number() as u8).collect::<Vec<_>>()));
    }
    for bytes in &bad {
        let mut stream = TcpStream::connect(address).expect("it listens");
        // It may have hung up already.
        let _ = stream.write_all(bytes);
        drop(stream);
    }
    for bytes in &bad[..8] {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        stream.write_all(bytes).expect("taken");
        let mut rest = Vec::new();
        // A connection reset is an end as well.
        if let Err(error) = stream.read_to_end(&mut rest) {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }
    painted.with(|state| state.picture.pixels.fill(5));
    steady.wait_for(&painted);
    Client::connect(address).wait_for(&painted);
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    let mut number = random(3);
    // Larger than what sockets keep.
    let painted = Painted::new(1920, 1200, |_| number());
    let address = painted.serve();
    let mut deaf = Client::connect(address);
    for _ in 0..10 {
        deaf.ask(false);
    }
    let mut client = Client::connect(address);
    for n in 0..3 {
        painted.with(|state| state.picture.pixels[n] ^= 1);
        client.wait_for(&painted);
    }
    drop(deaf);
}

#[test]
fn clients_beyond_the_bound_are_turned_away() {
    let painted = Painted::new(8, 8, |_| 0);
    let address = painted.serve();
    let clients: Vec<_> = (0..CLIENTS_MAX).map(|_| Client::connect(address)).collect();
    let mut late = TcpStream::connect(address).expect("it listens");
    late.set_read_timeout(Some(PATIENCE)).expect("a time");
    let mut said = Vec::new();
    late.read_to_end(&mut said).expect("an end");
    assert!(said.is_empty());
    drop(clients);
    Client::connect(address);
}

#[test]
fn a_silent_clients_host_is_asked_for_it() {
    let server = Server::bind("127.0.0.1:0").expect("a free port");
    let _client = TcpStream::connect(server.address().expect("bound")).expect("a connection");
    let (stream, _) = server.0.accept().expect("a client");
    notice_absence(&stream).expect("Linux has all of it");
    assert!(sockopt::socket_keepalive(&stream).expect("a socket"));
    let asked_after = sockopt::tcp_keepidle(&stream).expect("a socket");
    let every = sockopt::tcp_keepintvl(&stream).expect("a socket");
    let times = sockopt::tcp_keepcnt(&stream).expect("a socket");
    assert_eq!(asked_after, ABSENCE_ASKED_AFTER);
    assert_eq!(every * times, ABSENCE_ASKED_AFTER);
}
