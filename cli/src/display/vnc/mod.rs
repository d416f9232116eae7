//! The screen by VNC: RFB 3.8 for any number of clients up to a bound, each with its own pace.
//!
//! Problem: clients are slow, go away in the middle or talk nonsense, and the guest must not notice. Scheme: a
//! thread takes connections; each client has one thread that reads what it says ([`client`]) and one that sends
//! it pictures. All take pictures from one [`Frames`], which draws the screen at most so often whoever asks. A
//! picture is compared with what the client has, and what differs goes out as rectangles ([`encode`]).
//! Invariants: no lock of the guest's is held while a socket is written or read; what a client makes us keep is
//! bounded; a client that is not read from or does not read for too long is dropped; its keys are released.
//! Everybody may look and type who can reach the port, so it is this computer's own unless told otherwise.
//! Source: RFC 6143; the RFB protocol registry's pseudo-encodings -257, -258 (QEMU) and -223.

mod client;
mod encode;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use xenolith_devices::legacy::i8042::{Buttons, Key};
use xenolith_devices::vga::Picture;
use xenolith_machine::Screen;

/// Pictures are made no more often.
pub const FRAME_TIME: Duration = Duration::from_millis(40);
/// More clients are turned away.
const CLIENTS_MAX: usize = 16;
/// How long nothing more is accepted after the host had no descriptor for a client.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How long a client may be silent before its host is asked for it; as long again without an answer, and it has gone.
const ABSENCE_ASKED_AFTER: Duration = Duration::from_secs(60);

/// What a client looks at, types on and points with.
pub trait Seat: Clone + Send + 'static {
    fn picture(&self) -> Option<Picture>;
    /// False if the keyboard has no room for it.
    fn key(&self, key: Key, down: bool) -> bool;
    fn mouse(&self, dx: i32, dy: i32, dz: i32, buttons: Buttons);
    /// The keyboard's Caps Lock light is on.
    fn caps_lock(&self) -> bool;
}

impl Seat for Screen {
    fn picture(&self) -> Option<Picture> {
        Self::picture(self)
    }
    fn key(&self, key: Key, down: bool) -> bool {
        Self::key(self, key, down)
    }
    fn mouse(&self, dx: i32, dy: i32, dz: i32, buttons: Buttons) {
        Self::mouse(self, dx, dy, dz, buttons);
    }
    fn caps_lock(&self) -> bool {
        Self::caps_lock(self)
    }
}

/// The latest picture, made when one is asked for and the last is old.
#[derive(Debug)]
struct Frames<S> {
    seat: S,
    latest: Mutex<Option<(Instant, Arc<Picture>)>>,
}

impl<S: Seat> Frames<S> {
    fn new(seat: S) -> Self {
        Self { seat, latest: Mutex::new(None) }
    }

    /// A picture that is at most [`FRAME_TIME`] old.
    fn get(&self) -> Arc<Picture> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, picture)) = &*latest
            && made.elapsed() < FRAME_TIME
        {
            return Arc::clone(picture);
        }
        let picture = Arc::new(
            self.seat.picture().filter(|it| it.width > 0 && it.height > 0).unwrap_or_else(nothing),
        );
        *latest = Some((Instant::now(), Arc::clone(&picture)));
        picture
    }
}

/// Before there is a board.
fn nothing() -> Picture {
    Picture { width: 640, height: 480, pixels: vec![0; 640 * 480] }
}

/// A port that is taken for VNC, before there is a machine.
#[derive(Debug)]
pub struct Server(TcpListener);

impl Server {
    /// # Errors
    /// The address is unknown, or the port is taken or not ours to take.
    pub fn bind(address: impl ToSocketAddrs) -> io::Result<Self> {
        TcpListener::bind(address).map(Self)
    }

    /// # Errors
    /// The host doesn't tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Serves clients until the process ends.
    pub fn start(self, seat: impl Seat + Sync) {
        let frames = Arc::new(Frames::new(seat));
        let clients = Arc::new(AtomicUsize::new(0));
        thread::spawn(move || {
            loop {
                match self.0.accept() {
                    Ok((stream, _)) => {
                        // Where that can't be had, a client that vanishes keeps its place.
                        let _ = notice_absence(&stream);
                        admit(stream, &frames, &clients);
                    }
                    Err(error) => {
                        tracing::warn!("VNC: {error}");
                        thread::sleep(ACCEPT_PAUSE);
                    }
                }
            }
        });
    }
}

/// Has the host ask a silent client whether it is there: it may have vanished without a word.
fn notice_absence(stream: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_tcp_keepidle(stream, ABSENCE_ASKED_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, ABSENCE_ASKED_AFTER / 4)?;
    sockopt::set_tcp_keepcnt(stream, 4)?;
    sockopt::set_socket_keepalive(stream, true)
}

/// One of the clients that are there; counted until dropped.
struct Admitted(Arc<AtomicUsize>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn admit<S: Seat + Sync>(stream: TcpStream, frames: &Arc<Frames<S>>, clients: &Arc<AtomicUsize>) {
    let before = clients.fetch_add(1, Ordering::Relaxed);
    let admitted = Admitted(Arc::clone(clients));
    if before >= CLIENTS_MAX {
        tracing::warn!("VNC: {CLIENTS_MAX} clients are there already");
        return;
    }
    let frames = Arc::clone(frames);
    let serve = move || {
        let _admitted = admitted;
        if let Err(error) = client::serve(&stream, &frames) {
            tracing::debug!("VNC: a client has gone: {error}");
        }
    };
    if let Err(error) = thread::Builder::new().name("vnc".to_owned()).spawn(serve) {
        tracing::warn!("VNC: no thread for a client: {error}");
    }
}
