//! One client: greeting, what it says, what it is sent.
//!
//! Problem: a client asks for pictures at its own pace while it types, and each message is to be distrusted. Scheme:
//! after the greeting this thread reads messages and acts on keys and pointer at once; what concerns pictures
//! goes into [`Wants`], on which the sending thread waits. Invariants: nothing of a message's stated length is
//! kept; either thread's end closes the connection, which ends the other; keys and buttons that are down when a
//! client goes are released. Source: RFC 6143, "Handshake Messages", "Client-to-Server Messages",
//! "Server-to-Client Messages".

use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use xenolith_devices::legacy::i8042::{Buttons, Key};
use xenolith_devices::vga::Picture;

use super::encode::{self, PixelFormat, Rect};
use super::{FRAME_TIME, Frames, Seat};
use crate::display::keys;
use crate::display::pace::Pace;

/// How long a client may take to greet, and to take what it asked for.
const PATIENCE: Duration = Duration::from_secs(10);
/// A clipboard's text is skipped; a longer one is nonsense.
const TEXT_MAX: u32 = 16 << 20;
/// Lines of a rectangle of a whole picture.
const BAND: usize = 64;
/// What is put together before it is written.
const OUT_BYTES: usize = 128 << 10;

const ENCODING_DESKTOP_SIZE: i32 = -223;
const ENCODING_POINTER: i32 = -257;
const ENCODING_KEYS: i32 = -258;
/// The middle of a relative pointer's numbers.
const POINTER_MIDDLE: i32 = 0x7fff;

const NAME: &[u8] = b"xenolith";

/// What concerns pictures.
#[derive(Debug)]
struct Wants {
    format: PixelFormat,
    hextile: bool,
    desktop_size: bool,
    /// Asked for and not yet sent.
    update: Option<Update>,
    /// Pseudo-encodings to confirm once.
    confirm: Vec<i32>,
    /// A map of colours is due.
    colour_map: bool,
    gone: bool,
}

#[derive(Clone, Copy, Debug)]
struct Update {
    incremental: bool,
    area: Rect,
}

struct Shared {
    wants: Mutex<Wants>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Wants> {
        self.wants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Wants)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

/// Serves a client to its end.
///
/// # Errors
/// Why it came to an end: the connection, or nonsense.
pub fn serve<S: Seat + Sync>(stream: &TcpStream, frames: &Frames<S>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    greet(&mut reader, stream)?;
    let first = frames.get();
    send_init(stream, &first)?;
    stream.set_read_timeout(None)?;
    let shared = Shared {
        wants: Mutex::new(Wants {
            format: PixelFormat::OURS,
            hextile: false,
            desktop_size: false,
            update: None,
            confirm: Vec::new(),
            colour_map: false,
            gone: false,
        }),
        changed: Condvar::new(),
    };
    let size = (first.width, first.height);
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let ended = Sender { stream, frames, shared: &shared, size, last: None }.run();
            // Nobody may be left who reads.
            let _ = stream.shutdown(Shutdown::Both);
            ended
        });
        let mut input = Input::new(frames.seat.clone());
        let ended = read_messages(&mut reader, &shared, &mut input);
        input.release_all();
        shared.change(|wants| wants.gone = true);
        let _ = stream.shutdown(Shutdown::Both);
        let sent = sender.join().unwrap_or_else(|_| Err(io::Error::other("the sender failed")));
        sent.and(ended)
    })
}

fn nonsense(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn read<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read_u16(from: &mut impl Read) -> io::Result<u16> {
    read(from).map(u16::from_be_bytes)
}

fn read_u32(from: &mut impl Read) -> io::Result<u32> {
    read(from).map(u32::from_be_bytes)
}

/// Versions, no security, and the client's greeting.
fn greet(reader: &mut impl Read, mut stream: &TcpStream) -> io::Result<()> {
    stream.write_all(b"RFB 003.008\n")?;
    let version = read::<12>(reader)?;
    if !version.starts_with(b"RFB 003.") || version[11] != b'\n' {
        return Err(nonsense("not a VNC client"));
    }
    // Others are to be taken for 3.3.
    let minor = match &version[8..11] {
        b"007" => 7,
        minor if *minor >= b"008"[..] && minor.iter().all(u8::is_ascii_digit) => 8,
        _ => 3,
    };
    if minor == 3 {
        stream.write_all(&1u32.to_be_bytes())?;
    } else {
        stream.write_all(&[1, 1])?;
        let [chosen] = read(reader)?;
        if chosen != 1 {
            if minor == 8 {
                let reason = b"no such security type";
                stream.write_all(&1u32.to_be_bytes())?;
                stream.write_all(&(reason.len() as u32).to_be_bytes())?;
                stream.write_all(reason)?;
            }
            return Err(nonsense("a security type that was not offered"));
        }
        if minor == 8 {
            stream.write_all(&0u32.to_be_bytes())?;
        }
    }
    // Whether others may stay: they always may.
    read::<1>(reader).map(|_| ())
}

fn send_init(mut stream: &TcpStream, picture: &Picture) -> io::Result<()> {
    let mut out = Vec::new();
    for size in [picture.width, picture.height] {
        out.extend(u16::try_from(size).unwrap_or(u16::MAX).to_be_bytes());
    }
    out.extend(PixelFormat::OURS.to_bytes());
    out.extend((NAME.len() as u32).to_be_bytes());
    out.extend(NAME);
    stream.write_all(&out)
}

fn read_messages<S: Seat>(
    from: &mut impl Read,
    shared: &Shared,
    input: &mut Input<S>,
) -> io::Result<()> {
    loop {
        let [kind] = read(from)?;
        match kind {
            0 => {
                read::<3>(from)?;
                let format = PixelFormat::read(from)?;
                shared.change(|wants| {
                    wants.format = format;
                    wants.colour_map = format.mapped;
                });
            }
            2 => {
                read::<1>(from)?;
                let count = read_u16(from)?;
                let (mut hextile, mut desktop_size) = (false, false);
                let mut confirm = Vec::new();
                for _ in 0..count {
                    let encoding = i32::from_be_bytes(read(from)?);
                    match encoding {
                        encode::HEXTILE => hextile = true,
                        ENCODING_DESKTOP_SIZE => desktop_size = true,
                        ENCODING_POINTER | ENCODING_KEYS if !confirm.contains(&encoding) => {
                            confirm.push(encoding);
                        }
                        _ => {}
                    }
                }
                input.relative = confirm.contains(&ENCODING_POINTER);
                input.pointer = None;
                shared.change(|wants| {
                    (wants.hextile, wants.desktop_size) = (hextile, desktop_size);
                    wants.confirm = confirm;
                });
            }
            3 => {
                let [incremental] = read(from)?;
                let mut number = || read_u16(from).map(usize::from);
                let area = Rect { x: number()?, y: number()?, width: number()?, height: number()? };
                let incremental = incremental != 0;
                shared.change(|wants| {
                    // One that wants everything outlives one that doesn't.
                    let keep = wants.update.filter(|update| incremental && !update.incremental);
                    wants.update = keep.or(Some(Update { incremental, area }));
                });
            }
            4 => {
                let [down, _, _] = read(from)?;
                input.symbol(read_u32(from)?, down != 0);
            }
            5 => {
                let [mask] = read(from)?;
                let (x, y) = (read_u16(from)?, read_u16(from)?);
                input.point(mask, x.into(), y.into());
            }
            6 => {
                read::<3>(from)?;
                let length = read_u32(from)?;
                if length > TEXT_MAX {
                    return Err(nonsense("an endless clipboard"));
                }
                let skipped = io::copy(&mut from.take(length.into()), &mut io::sink())?;
                if skipped < length.into() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            255 => {
                let [0] = read(from)? else { return Err(nonsense("an unknown message")) };
                let down = read_u16(from)? != 0;
                let (symbol, number) = (read_u32(from)?, read_u32(from)?);
                match keys::of_number(number) {
                    Some(key) => input.key(key, down),
                    None => input.symbol(symbol, down),
                }
            }
            _ => return Err(nonsense("an unknown message")),
        }
    }
}

/// A client's keyboard and pointer.
struct Input<S: Seat> {
    seat: S,
    pace: Pace,
    /// Keys that are down.
    down: Vec<Key>,
    /// AltGr is down at the client.
    alt_gr: bool,
    buttons: Buttons,
    wheel: u8,
    /// The pointer sends motion, not places.
    relative: bool,
    /// Where it was.
    pointer: Option<(i32, i32)>,
}

impl<S: Seat> Input<S> {
    fn new(seat: S) -> Self {
        Self {
            seat,
            pace: Pace::default(),
            down: Vec::new(),
            alt_gr: false,
            buttons: Buttons::empty(),
            wheel: 0,
            relative: false,
            pointer: None,
        }
    }

    /// Tells the keyboard, which a client that pastes text is faster than.
    fn send(&mut self, key: Key, down: bool) {
        self.pace.press(|| self.seat.key(key, down));
    }

    fn key(&mut self, key: Key, down: bool) {
        self.down.retain(|&known| known != key);
        if down {
            self.down.push(key);
        }
        self.send(key, down);
    }

    /// A key by what it makes. Where the client's layout has the character with another shift than ours, Shift is
    /// pressed or let go for it. AltGr makes other characters at the client, but none in our layout: it goes down
    /// for keys that make none.
    fn symbol(&mut self, symbol: u32, down: bool) {
        if [keys::LEVEL_3_SHIFT, keys::MODE_SWITCH].contains(&symbol) {
            self.alt_gr = down;
            if !down && self.down.contains(&keys::ALT_RIGHT) {
                self.key(keys::ALT_RIGHT, false);
            }
            return;
        }
        let Some((key, shift)) = keys::of_symbol(symbol) else { return };
        let makes_none = shift.is_none() && !keys::MODIFIERS.contains(&key);
        if down && self.alt_gr && makes_none && !self.down.contains(&keys::ALT_RIGHT) {
            self.key(keys::ALT_RIGHT, true);
        }
        let shifts: Vec<Key> = [keys::SHIFT, keys::SHIFT_RIGHT]
            .into_iter()
            .filter(|shift| self.down.contains(shift))
            .collect();
        let is_letter = char::from_u32(symbol).is_some_and(|it| it.is_ascii_alphabetic());
        let wanted = shift.map(|shift| shift ^ (is_letter && self.seat.caps_lock()));
        match wanted {
            Some(true) if down && shifts.is_empty() => {
                self.send(keys::SHIFT, true);
                self.key(key, true);
                self.send(keys::SHIFT, false);
            }
            Some(false) if down && !shifts.is_empty() => {
                shifts.iter().for_each(|&shift| self.send(shift, false));
                self.key(key, true);
                shifts.iter().for_each(|&shift| self.send(shift, true));
            }
            _ => self.key(key, down),
        }
    }

    fn point(&mut self, mask: u8, x: i32, y: i32) {
        let pairs = [(1, Buttons::LEFT), (2, Buttons::MIDDLE), (4, Buttons::RIGHT)];
        let pressed = pairs.into_iter().filter(|&(bit, _)| mask & bit != 0);
        self.buttons = pressed.map(|(_, button)| button).collect();
        // A turn of the wheel is a press of one of two buttons.
        let wheel = mask & 0x18;
        let turned = wheel & !self.wheel;
        self.wheel = wheel;
        let dz = i32::from(turned & 0x10 != 0) - i32::from(turned & 0x08 != 0);
        let (dx, dy) = if self.relative {
            (x - POINTER_MIDDLE, y - POINTER_MIDDLE)
        } else {
            let (old_x, old_y) = self.pointer.replace((x, y)).unwrap_or((x, y));
            (x - old_x, y - old_y)
        };
        self.seat.mouse(dx, dy, dz, self.buttons);
    }

    fn release_all(&mut self) {
        for key in std::mem::take(&mut self.down) {
            self.send(key, false);
        }
        if !self.buttons.is_empty() {
            self.seat.mouse(0, 0, 0, Buttons::empty());
        }
    }
}

/// Sends pictures.
struct Sender<'a, S: Seat> {
    stream: &'a TcpStream,
    frames: &'a Frames<S>,
    shared: &'a Shared,
    /// The screen's size as the client has been told.
    size: (usize, usize),
    /// What the client has; nothing if all of it is stale.
    last: Option<Picture>,
}

impl<S: Seat> Sender<'_, S> {
    fn run(mut self) -> io::Result<()> {
        let mut format = PixelFormat::OURS;
        loop {
            let mut wants = self.shared.lock();
            let update = loop {
                if wants.gone {
                    return Ok(());
                }
                match wants.update.take() {
                    Some(update) => break update,
                    None => {
                        let waited = self.shared.changed.wait(wants);
                        wants = waited.unwrap_or_else(PoisonError::into_inner);
                    }
                }
            };
            let (hextile, desktop_size) = (wants.hextile, wants.desktop_size);
            let colour_map = std::mem::take(&mut wants.colour_map);
            let confirm = std::mem::take(&mut wants.confirm);
            if std::mem::replace(&mut format, wants.format) != format {
                // Pixels of the old format are no use to a client that changes it.
                self.last = None;
            }
            drop(wants);

            if colour_map {
                self.stream.write_all(&PixelFormat::colour_map())?;
            }
            let picture = self.frames.get();
            let resized = (picture.width, picture.height) != self.size;
            let mut out = Vec::new();
            for &encoding in &confirm {
                // For a pointer, 0 in front means that it is relative.
                encode::header(&mut out, [0, 0, self.size.0, self.size.1], encoding);
            }
            let mut rects = Vec::new();
            if resized && desktop_size {
                self.size = (picture.width, picture.height);
                self.last = None;
                encode::header(
                    &mut out,
                    [0, 0, picture.width, picture.height],
                    ENCODING_DESKTOP_SIZE,
                );
            } else {
                let picture =
                    if resized { fitted(&picture, self.size) } else { (*picture).clone() };
                rects = self.due(&picture, update);
                self.last = Some(picture);
            }
            let pseudo = confirm.len() + usize::from(resized && desktop_size);
            if rects.is_empty() && pseudo == 0 {
                // The request stands until there is something, or another takes its place.
                self.shared.lock().update.get_or_insert(update);
                thread::sleep(FRAME_TIME);
                continue;
            }
            self.send(&out, pseudo, &rects, format, hextile)?;
        }
    }

    /// What to send of `picture`: what is asked for and what the client doesn't have.
    fn due(&self, picture: &Picture, update: Update) -> Vec<Rect> {
        let whole = Rect { x: 0, y: 0, width: picture.width, height: picture.height };
        let Some(last) = &self.last else { return bands(whole) };
        let mut rects = Vec::new();
        if !update.incremental {
            let Rect { x, y, width, height } = update.area;
            let (x, y) = (x.min(whole.width), y.min(whole.height));
            let (width, height) = (width.min(whole.width - x), height.min(whole.height - y));
            rects = bands(Rect { x, y, width, height });
        }
        rects.extend(encode::differences(last, picture));
        rects
    }

    fn send(
        &mut self,
        pseudo: &[u8],
        pseudo_count: usize,
        rects: &[Rect],
        format: PixelFormat,
        hextile: bool,
    ) -> io::Result<()> {
        // A screen has far fewer tiles than fit.
        let count = u16::try_from(pseudo_count + rects.len()).unwrap_or(u16::MAX);
        let mut out = vec![0, 0];
        out.extend(count.to_be_bytes());
        out.extend(pseudo);
        if let Some(picture) = &self.last {
            for &rect in rects {
                encode::put(&mut out, picture, rect, format, hextile);
                if out.len() > OUT_BYTES {
                    self.stream.write_all(&out)?;
                    out.clear();
                }
            }
        }
        self.stream.write_all(&out)
    }
}

/// A rectangle as several that are not too high.
fn bands(rect: Rect) -> Vec<Rect> {
    let end = rect.y + rect.height;
    (rect.y..end)
        .step_by(BAND)
        .filter(|_| rect.width > 0)
        .map(|y| Rect { y, height: BAND.min(end - y), ..rect })
        .collect()
}

/// The upper left part of a picture, for a client whose screen can't change its size.
fn fitted(picture: &Picture, (width, height): (usize, usize)) -> Picture {
    let mut pixels = Vec::with_capacity(width * height);
    for y in 0..height {
        for x in 0..width {
            let inside = x < picture.width && y < picture.height;
            pixels.push(if inside { picture.pixels[y * picture.width + x] } else { 0 });
        }
    }
    Picture { width, height, pixels }
}
