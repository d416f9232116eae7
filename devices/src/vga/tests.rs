//! From the driver's side: modes as a video BIOS sets them, and what is then seen.

use super::*;
use crate::clock::lock;

/// Video memory in a vector, and 128 KiB behind the window.
struct Memory {
    words: Vec<u32>,
    window: Vec<u8>,
    direct: Option<Range<u64>>,
    base: Option<u64>,
}

#[derive(Clone)]
struct Host(Arc<Mutex<Memory>>);

impl VideoHost for Host {
    fn load(&self, index: usize) -> u32 {
        lock(&self.0).words.get(index).copied().unwrap_or(0)
    }
    fn store(&self, index: usize, value: u32) {
        if let Some(word) = lock(&self.0).words.get_mut(index) {
            *word = value;
        }
    }
    fn copy_out(&self, offset: usize, out: &mut [u8]) {
        for (n, byte) in out.iter_mut().enumerate() {
            let at = offset + n;
            *byte = self.load(at / 4).to_le_bytes()[at % 4];
        }
    }
    fn clear(&self, bytes: usize) {
        lock(&self.0).words[..bytes / 4].fill(0);
    }
    fn place(&self, base: Option<u64>) {
        lock(&self.0).base = base;
    }
    fn set_direct(&self, range: Range<u64>, direct: bool) {
        lock(&self.0).direct = direct.then_some(range);
    }
    fn read_window(&self, gpa: u64, out: &mut [u8]) {
        let at = (gpa - WINDOW.start) as usize;
        out.copy_from_slice(&lock(&self.0).window[at..at + out.len()]);
    }
    fn write_window(&self, gpa: u64, bytes: &[u8]) {
        let at = (gpa - WINDOW.start) as usize;
        lock(&self.0).window[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

struct Rig {
    vga: Arc<Mutex<Vga>>,
    memory: Arc<Mutex<Memory>>,
    ports: Bus,
    window: Bus,
    clock: Arc<crate::fake::FakeClock>,
}

/// CRTC, sequencer, graphics and attribute mode registers of the BIOS's modes 3, 12h and 13h.
struct Mode {
    misc: u8,
    sequencer: [u8; 5],
    crtc: [u8; 25],
    graphics: [u8; 9],
    attribute: u8,
}

#[rustfmt::skip]
const TEXT: Mode = Mode {
    misc: 0x67,
    sequencer: [3, 0, 3, 0, 2],
    crtc: [0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0, 0x4f, 0x0d, 0x0e, 0, 0, 0, 0,
           0x9c, 0x8e, 0x8f, 0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff],
    graphics: [0, 0, 0, 0, 0, 0x10, 0x0e, 0x0f, 0xff],
    attribute: 0x0c,
};
#[rustfmt::skip]
const PLANAR: Mode = Mode {
    misc: 0xe3,
    sequencer: [3, 1, 0x0f, 0, 6],
    crtc: [0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0x0b, 0x3e, 0, 0x40, 0, 0, 0, 0, 0, 0,
           0xea, 0x8c, 0xdf, 0x28, 0x00, 0xe7, 0x04, 0xe3, 0xff],
    graphics: [0, 0, 0, 0, 0, 0, 0x05, 0x0f, 0xff],
    attribute: 0x01,
};
#[rustfmt::skip]
const BYTES_256: Mode = Mode {
    misc: 0x63,
    sequencer: [3, 1, 0x0f, 0, 0x0e],
    crtc: [0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0xbf, 0x1f, 0, 0x41, 0, 0, 0, 0, 0, 0,
           0x9c, 0x8e, 0x8f, 0x28, 0x40, 0x96, 0xb9, 0xa3, 0xff],
    graphics: [0, 0, 0, 0, 0, 0x40, 0x05, 0x0f, 0xff],
    attribute: 0x41,
};

impl Rig {
    fn new() -> Self {
        let memory = Arc::new(Mutex::new(Memory {
            words: vec![0; BYTES / 4],
            window: vec![0; 0x2_0000],
            direct: None,
            base: None,
        }));
        let clock = Arc::new(crate::fake::FakeClock::default());
        let host = Box::new(Host(Arc::clone(&memory)));
        let vga = Arc::new(Mutex::new(Vga::new(host, Arc::clone(&clock) as _)));
        let (mut ports, mut window) = (Bus::new(), Bus::new());
        Vga::attach(&vga, &mut ports, &mut window).expect("free");
        let rig = Self { vga, memory, ports, window, clock };
        rig.out(0x3c8, 0);
        // Colour n is (n, 63 - n, n / 2).
        for n in 0..64 {
            for part in [n, 63 - n, n / 2] {
                rig.out(0x3c9, part);
            }
        }
        rig
    }

    fn out(&self, port: u64, value: u8) {
        self.ports.write(port, 1, value.into());
    }

    fn indexed(&self, port: u64, index: u8, value: u8) {
        self.ports.write(port, 2, u64::from(value) << 8 | u64::from(index));
    }

    fn attribute(&self, index: u8, value: u8) {
        let _ = self.ports.read(0x3da, 1);
        self.out(0x3c0, index);
        self.out(0x3c0, value);
    }

    fn set(&self, mode: &Mode) {
        self.out(0x3c2, mode.misc);
        for (n, &value) in (0..).zip(&mode.sequencer) {
            self.indexed(0x3c4, n, value);
        }
        self.indexed(0x3d4, 0x11, 0);
        for (n, &value) in (0..).zip(&mode.crtc) {
            self.indexed(0x3d4, n, value);
        }
        for (n, &value) in (0..).zip(&mode.graphics) {
            self.indexed(0x3ce, n, value);
        }
        for n in 0..16 {
            self.attribute(n, n);
        }
        self.attribute(0x10, mode.attribute);
        self.attribute(0x12, 0x0f);
        // No panning, which nine dots have a number of their own for.
        self.attribute(0x13, if mode.attribute & 1 == 0 { 8 } else { 0 });
        self.out(0x3c0, 0x20);
    }

    /// A byte as a processor stores it: to plain memory, or to the bus.
    fn store(&self, gpa: u64, value: u8) {
        let direct = lock(&self.memory).direct.clone().is_some_and(|range| range.contains(&gpa));
        if direct {
            lock(&self.memory).window[(gpa - WINDOW.start) as usize] = value;
        } else {
            self.window.write(gpa, 1, value.into());
        }
    }

    fn dispi(&self, index: u16, value: u16) {
        self.ports.write(0x1ce, 2, index.into());
        self.ports.write(0x1cf, 2, value.into());
    }
}

fn colour(n: u32) -> u32 {
    let part = |n: u32| n << 2 | n >> 4;
    part(n) << 16 | part(63 - n) << 8 | part(n / 2)
}

#[test]
fn text_is_drawn_with_the_guests_font_cursor_and_palette() {
    let rig = Rig::new();
    rig.set(&TEXT);
    assert_eq!(lock(&rig.memory).direct, Some(0xb_8000..0xc_0000), "text is plain memory");
    // A font for 'A' in plane 2, written as a BIOS does: a line that is the character's only one.
    rig.indexed(0x3c4, 2, 4);
    rig.indexed(0x3c4, 4, 7);
    rig.indexed(0x3ce, 5, 0);
    rig.indexed(0x3ce, 6, 4);
    assert_eq!(lock(&rig.memory).direct, None);
    rig.store(0xa_0000 + 0x41 * 32 + 3, 0b1000_0001);
    rig.store(0xa_0000 + 0xc4 * 32 + 3, 0b0000_0001);
    rig.set(&TEXT);
    // 'A' yellow on blue at row 1, column 2, a line character behind it; the cursor below.
    rig.store(0xb_8000 + 2 * 82, b'A');
    rig.store(0xb_8000 + 2 * 82 + 1, 0x1e);
    rig.store(0xb_8000 + 2 * 83, 0xc4);
    rig.store(0xb_8000 + 2 * 83 + 1, 0x1e);
    rig.store(0xb_8000 + 2 * 162 + 1, 0x07);
    rig.indexed(0x3d4, 0x0f, 162);

    let text = lock(&rig.vga).text().expect("a text screen");
    assert_eq!((text.columns, text.rows, text.cursor), (80, 25, Some((2, 2))));
    assert_eq!((text.row(1).as_str(), text.cells[82]), ("  A", 0x1e41));
    let picture = lock(&rig.vga).picture();
    assert_eq!((picture.width, picture.height), (720, 400));
    let at = |x: usize, y: usize| picture.pixels[y * 720 + x];
    let (yellow, blue) = (colour(14), colour(1));
    assert_eq!([18, 19, 25, 26].map(|x| at(x, 16 + 3)), [yellow, blue, yellow, blue]);
    assert_eq!([34, 35].map(|x| at(x, 16 + 3)), [yellow, yellow], "the ninth dot of a line");
    assert_eq!(at(18, 16 + 4), blue);
    assert_eq!([12, 13, 14, 15].map(|y| at(18, 32 + y) == at(0, 0)), [true, false, false, true]);
    // Switched off.
    let _ = rig.ports.read(0x3da, 1);
    rig.out(0x3c0, 0);
    assert!(lock(&rig.vga).text().is_none());
    assert!(lock(&rig.vga).picture().pixels.iter().all(|&pixel| pixel == 0));
}

#[test]
fn a_text_screen_survives_a_look_at_its_planes() {
    let rig = Rig::new();
    rig.set(&TEXT);
    rig.store(0xb_8000, b'x');
    rig.indexed(0x3ce, 8, 0x0f);
    assert_eq!(lock(&rig.memory).direct, None, "a bit mask is not plain memory's");
    assert_eq!(rig.window.read(0xb_8000, 1), u64::from(b'x'));
    rig.window.write(0xb_8000, 1, 0xff);
    rig.indexed(0x3ce, 8, 0xff);
    assert_eq!(lock(&rig.memory).window[0x1_8000], 0x7f, "the upper half came from the latches");
}

#[test]
fn planes_take_the_four_write_modes_and_both_read_modes() {
    let rig = Rig::new();
    rig.set(&PLANAR);
    let word = || lock(&rig.memory).words[5];
    let at = 0xa_0005;
    rig.store(at, 0xf0);
    assert_eq!(word(), 0xf0f0_f0f0);
    rig.indexed(0x3c4, 2, 0b0010);
    rig.store(at, 0x0f);
    assert_eq!(word(), 0xf0f0_0ff0, "the map mask");
    rig.indexed(0x3c4, 2, 0x0f);
    // Set/reset of planes 0 and 3, xor with the latches, rotated.
    rig.indexed(0x3ce, 0, 0b0001);
    rig.indexed(0x3ce, 1, 0b1001);
    rig.indexed(0x3ce, 3, 0x18 | 4);
    let _ = rig.window.read(at, 1);
    rig.store(at, 0x0f);
    assert_eq!(word(), 0xf000_ff0f);
    rig.indexed(0x3ce, 3, 0);
    rig.indexed(0x3ce, 1, 0);
    // Mode 1 copies the latches, mode 2 spreads a colour, mode 3 masks set/reset.
    rig.indexed(0x3ce, 5, 1);
    let _ = rig.window.read(at, 1);
    rig.store(at + 1, 0);
    let copied = lock(&rig.memory).words[6];
    assert_eq!(copied, word());
    rig.indexed(0x3ce, 5, 2);
    rig.indexed(0x3ce, 8, 0x0f);
    rig.store(at, 0b0110);
    assert_eq!(word(), 0xf00f_ff00);
    rig.indexed(0x3ce, 8, 0xff);
    rig.indexed(0x3ce, 5, 3);
    rig.indexed(0x3ce, 0, 0b1111);
    let _ = rig.window.read(at, 1);
    rig.store(at, 0x81);
    assert_eq!(word(), 0xf18f_ff81);
    // Read mode 0 gives a plane, read mode 1 where the planes that count have a colour.
    rig.indexed(0x3ce, 5, 0);
    rig.indexed(0x3ce, 4, 2);
    assert_eq!(rig.window.read(at, 1), 0x8f);
    rig.indexed(0x3ce, 5, 8);
    rig.indexed(0x3ce, 2, 0b1010);
    rig.indexed(0x3ce, 7, 0b1110);
    assert_eq!(rig.window.read(at, 1), 0xf1 & 0xff & !0x8f);
    // What is in the planes is on the screen.
    let picture = lock(&rig.vga).picture();
    assert_eq!((picture.width, picture.height), (640, 480));
    assert_eq!(picture.pixels[40], colour(0b1111));
    assert_eq!(picture.pixels[41], colour(0b1010));
}

#[test]
fn a_byte_is_a_pixel_in_256_colours() {
    let rig = Rig::new();
    rig.set(&BYTES_256);
    assert_eq!(lock(&rig.memory).direct, Some(0xa_0000..0xb_0000));
    rig.store(0xa_0000 + 320 + 7, 33);
    let picture = lock(&rig.vga).picture();
    // Each pixel is two dots wide and two lines high.
    assert_eq!((picture.width, picture.height), (640, 400));
    let at = |x: usize, y: usize| picture.pixels[y * 640 + x];
    assert_eq!([13, 14, 15, 16].map(|x| at(x, 2) == colour(33)), [false, true, true, false]);
    assert_eq!([1, 2, 3, 4].map(|y| at(14, y) == colour(33)), [false, true, true, false]);
    // Unchained, the planes are a quarter as long, and the same bytes are still there.
    rig.indexed(0x3c4, 4, 6);
    assert_eq!(lock(&rig.memory).direct, None);
    assert_eq!(lock(&rig.memory).words[(320 + 7) & !3].to_le_bytes()[3], 33);
}

/// The columns in which a line of a picture has a colour.
fn columns(picture: &Picture, y: usize, colour: u32) -> Vec<usize> {
    let line = &picture.pixels[y * picture.width..][..picture.width];
    (0..picture.width).filter(|&x| line[x] == colour).collect()
}

#[test]
fn panning_moves_pixels_and_ends_below_the_compared_line_if_told_so() {
    let rig = Rig::new();
    rig.set(&BYTES_256);
    // Of line 0, which is also what the part below begins with, and of line 2.
    rig.store(0xa_0000 + 8, 33);
    rig.store(0xa_0000 + 640 + 8, 33);
    // The screen begins at line 2, and at line 100 again with line 0.
    rig.indexed(0x3d4, 0x0d, 160);
    rig.indexed(0x3d4, 0x18, 99);
    rig.indexed(0x3d4, 0x07, 0x0f);
    rig.indexed(0x3d4, 0x09, 0x01);
    let shown = || {
        let picture = lock(&rig.vga).picture();
        [0, 100].map(|y| columns(&picture, y, colour(33)))
    };
    assert_eq!(shown(), [[16, 17], [16, 17]]);
    rig.attribute(0x33, 2);
    assert_eq!(shown(), [[14, 15], [14, 15]], "by one pixel");
    rig.attribute(0x33, 6);
    rig.indexed(0x3d4, 0x08, 0x20);
    assert_eq!(shown(), [[2, 3], [2, 3]], "by four pixels, and three");
    rig.attribute(0x30, 0x61);
    assert_eq!(shown(), [[2, 3], [16, 17]], "only above");
    // The first row begins with its second line, so that the next comes sooner.
    rig.store(0xa_0000 + 960 + 20, 33);
    let below = |y| columns(&lock(&rig.vga).picture(), y, colour(33));
    assert_eq!([below(1).len(), below(2).len()], [2, 2]);
    rig.indexed(0x3d4, 0x08, 0x21);
    assert_eq!((below(0), below(1)), (vec![2, 3], vec![26, 27]));
    // Planes count dots.
    rig.set(&PLANAR);
    rig.store(0xa_0001, 0x80);
    rig.attribute(0x33, 3);
    assert_eq!(columns(&lock(&rig.vga).picture(), 0, colour(15)), [5]);
}

#[test]
fn text_is_panned_split_underlined_and_twice_as_wide() {
    let rig = Rig::new();
    rig.set(&TEXT);
    // Spaces on red, with a blue background at column 1 of rows 0 and 3.
    for cell in 0..80 * 26 {
        rig.store(0xb_8000 + 2 * cell, b' ');
        rig.store(0xb_8000 + 2 * cell + 1, 0x47);
    }
    for cell in [1, 241] {
        rig.store(0xb_8000 + 2 * cell + 1, 0x10);
    }
    rig.indexed(0x3d4, 0x0a, 0x20);
    let picture = || lock(&rig.vga).picture();
    let blue = |y| columns(&picture(), y, colour(1));
    assert_eq!((blue(0), blue(16).len(), blue(48)), ((9..18).collect(), 0, (9..18).collect()));
    rig.attribute(0x33, 1);
    assert_eq!(blue(0), (7..16).collect::<Vec<_>>());
    rig.attribute(0x33, 8);
    // From row 3 on, with its first two lines left out; from line 32 on from the beginning.
    rig.indexed(0x3d4, 0x0d, 240);
    rig.indexed(0x3d4, 0x08, 2);
    rig.indexed(0x3d4, 0x18, 31);
    rig.indexed(0x3d4, 0x07, 0x0f);
    rig.indexed(0x3d4, 0x09, 0x0f);
    let lines: Vec<usize> = (0..400).filter(|&y| !blue(y).is_empty()).collect();
    assert_eq!(lines, (0..14).chain(32..48).chain(80..96).collect::<Vec<_>>());
    let text = lock(&rig.vga).text().expect("text");
    let marked: Vec<usize> = (0..25).filter(|row| text.cells[row * 80 + 1] == 0x1020).collect();
    assert_eq!(marked, [0, 2, 5]);
    // Blue on black, as monochrome text has it.
    rig.set(&TEXT);
    rig.store(0xb_8000 + 1, 0x01);
    assert_eq!(blue(5), (9..18).collect::<Vec<_>>());
    rig.indexed(0x3d4, 0x14, 5);
    assert_eq!(blue(5), (0..18).collect::<Vec<_>>());
    // Forty columns at half the dot clock.
    rig.indexed(0x3d4, 0x11, 0x0e);
    rig.indexed(0x3d4, 0x01, 39);
    rig.indexed(0x3c4, 0x01, 0x08);
    assert_eq!((picture().width, blue(0)), (720, (18..36).collect()));
    assert_eq!(lock(&rig.vga).text().map(|text| text.columns), Some(40));
}

#[test]
fn the_display_interface_sets_packed_modes() {
    let rig = Rig::new();
    rig.ports.write(0x1ce, 2, 0);
    assert_eq!(rig.ports.read(0x1cf, 2), 0xb0c5);
    rig.out(0x3c0, 0x20);
    lock(&rig.memory).words[0] = 7;
    for (index, value) in [(1, 800), (2, 600), (3, 32), (4, 0x41)] {
        rig.dispi(index, value);
    }
    assert_eq!(lock(&rig.memory).words[0], 0, "cleared");
    lock(&rig.memory).words[801] = 0xff12_3456;
    let picture = lock(&rig.vga).picture();
    assert_eq!((picture.width, picture.height, picture.pixels[801]), (800, 600, 0x12_3456));
    rig.dispi(9, 1);
    assert_eq!(lock(&rig.vga).picture().pixels[1], 0x12_3456, "panned by a line");
    rig.dispi(9, 0xffff);
    assert_eq!(lock(&rig.vga).picture().pixels[1], 0x12_3456, "not past the memory");
    // The window is a bank of it.
    rig.out(0x3c2, 3);
    rig.indexed(0x3ce, 6, 5);
    rig.dispi(5, 1);
    rig.window.write(0xa_0004, 4, 0x0102_0304);
    assert_eq!(lock(&rig.memory).words[0x4001], 0x0102_0304);
    assert_eq!(rig.window.read(0xa_0004, 4), 0x0102_0304);
    rig.dispi(4, 0);
    for (depth, bytes, seen) in [
        (16, 0xf81f_u32, 0xff_00ff),
        (15, 0x7c1f, 0xff_00ff),
        (24, 0x0a_0b0c, 0x0a_0b0c),
        (8, 5, colour(5)),
    ] {
        rig.dispi(3, depth);
        rig.dispi(4, 0xc1);
        lock(&rig.memory).words[0] = bytes;
        assert_eq!(lock(&rig.vga).picture().pixels[0], seen, "{depth} bits");
        rig.dispi(4, 0);
    }
}

#[test]
fn the_beam_moves_and_retraces() {
    let rig = Rig::new();
    rig.out(0x3c2, 1);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..2000 {
        rig.clock.advance(9_000);
        seen.insert(rig.ports.read(0x3da, 1) & 9);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 1, 9]);
}

#[test]
fn any_registers_make_a_picture_of_bounded_size() {
    let rig = Rig::new();
    let mut seed = 1_u32;
    let mut random = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed >> 8
    };
    for round in 0..300 {
        for _ in 0..60 {
            match random() % 4 {
                0 => rig.dispi((random() % 12) as u16, random() as u16),
                1 => {
                    rig.window.write(0xa_0000 + u64::from(random() % 0x2_0000), 1, random().into());
                }
                2 => rig.indexed(0x3d4, random() as u8, random() as u8),
                _ => rig.out(0x3c0 + u64::from(random() % 0x20), random() as u8),
            }
        }
        if round % 10 == 0 {
            let picture = lock(&rig.vga).picture();
            assert_eq!(picture.pixels.len(), picture.width * picture.height);
            assert!(picture.pixels.len() <= 4096 * 1600, "{} pixels", picture.pixels.len());
            let _ = lock(&rig.vga).text();
        }
    }
}
