//! Connections, with smoltcp as the guest's TCP on a wire that may lose frames.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as TcpInstant;
use smoltcp::wire::{
    EthernetAddress, HardwareAddress, IpCidr, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl,
    TcpPacket, TcpRepr, TcpSeqNumber,
};
use xenolith_devices::net::NetBackend;

use super::{GATEWAY_MAC, Guest, MAC, PATIENCE};
use crate::settings::Protocol;
use crate::{GATEWAY, GUEST, NAME_SERVER, Port, Settings};

/// The guest's card, which loses some frames of both directions, counted together.
struct Card {
    port: Arc<Port>,
    lost: &'static [u32],
    count: u32,
}

struct Frame(Vec<u8>);
struct Send<'a>(&'a mut Card);

impl Card {
    fn loses(&mut self) -> bool {
        self.count += 1;
        self.lost.contains(&self.count)
    }
}

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Send<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut frame = vec![0; len];
        let result = write(&mut frame);
        if !self.0.loses() {
            self.0.port.send(&frame);
        }
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Send<'a>;

    fn receive(&mut self, _: TcpInstant) -> Option<(Frame, Send<'_>)> {
        loop {
            let frame = self.port.receive()?;
            if !self.loses() {
                return Some((Frame(frame), Send(self)));
            }
        }
    }

    fn transmit(&mut self, _: TcpInstant) -> Option<Send<'_>> {
        self.port.ready(1).then_some(Send(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// A guest with a TCP.
struct Tcp {
    guest: Guest,
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    start: Instant,
    next_port: u16,
}

impl Tcp {
    fn new(settings: &Settings, lost: &'static [u32]) -> Self {
        Self::on(Guest::new(settings), lost)
    }

    fn on(guest: Guest, lost: &'static [u32]) -> Self {
        let mut card = Card { port: Arc::clone(&guest.port), lost, count: 0 };
        let address = HardwareAddress::Ethernet(EthernetAddress(MAC));
        let mut interface = Interface::new(Config::new(address), &mut card, TcpInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(GUEST.into(), 24)).expect("room");
        });
        interface.routes_mut().add_default_ipv4_route(GATEWAY).expect("room");
        let sockets = SocketSet::new(Vec::new());
        Self { guest, card, interface, sockets, start: Instant::now(), next_port: 40000 }
    }

    fn socket(&mut self) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 65536]);
        let mut socket = Socket::new(buffer(), buffer());
        // Sends a lost end again: see `KEEP_ALIVE_ENDING`.
        socket.set_keep_alive(Some(smoltcp::time::Duration::from_secs(2)));
        self.sockets.add(socket)
    }

    fn connect(&mut self, to: (Ipv4Addr, u16)) -> SocketHandle {
        let handle = self.socket();
        self.next_port += 1;
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        socket.connect(self.interface.context(), to, self.next_port).expect("a free port");
        handle
    }

    fn get(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Lets the guest's TCP work until `done`.
    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + 2 * PATIENCE;
        loop {
            let now = TcpInstant::from_micros(self.start.elapsed().as_micros() as i64);
            self.interface.poll(now, &mut self.card, &mut self.sockets);
            if done(self) {
                return;
            }
            assert!(Instant::now() < deadline, "never: {what}");
            // What `done` did may have something to send.
            self.interface.poll(now, &mut self.card, &mut self.sockets);
            let delay = self.interface.poll_delay(now, &self.sockets);
            let delay = delay.map_or(Duration::from_millis(50), Duration::from);
            self.guest.sleep(Instant::now() + delay.min(Duration::from_millis(50)));
        }
    }

    /// Sends all of `bytes` and receives until the other end is done, both at once.
    fn exchange(&mut self, handle: SocketHandle, bytes: &[u8]) -> Vec<u8> {
        let (mut sent, mut received, mut closed) = (0, Vec::new(), false);
        self.until("the exchange", |tcp| {
            let socket = tcp.get(handle);
            if sent < bytes.len() && socket.can_send() {
                sent += socket.send_slice(&bytes[sent..]).expect("open");
            }
            if sent == bytes.len() && !closed && socket.state() != State::SynSent {
                socket.close();
                closed = true;
            }
            while socket.can_recv() {
                socket.recv(|data| (data.len(), received.extend_from_slice(data))).expect("open");
            }
            // The end must have arrived, too.
            closed && matches!(socket.state(), State::TimeWait | State::Closed)
        });
        received
    }
}

/// A server that does `serve` with its first client.
fn server(
    serve: impl FnOnce(TcpStream) + std::marker::Send + 'static,
) -> (u16, thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let thread = thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a client");
        stream.set_read_timeout(Some(2 * PATIENCE)).expect("a time-out");
        serve(stream);
    });
    (port, thread)
}

fn pattern(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 24) as u8)
        .collect()
}

#[test]
fn much_goes_both_ways_also_over_a_wire_that_loses_frames() {
    for (len, lost) in [(4 << 20, &[][..]), (150_000, &[1, 4, 20, 21, 60, 100, 150, 200])] {
        let (port, thread) = server(move |mut stream| {
            let mut writer = stream.try_clone().expect("two of them");
            let writes = thread::spawn(move || {
                writer.write_all(&pattern(len, 1)).expect("written");
                writer.shutdown(Shutdown::Write).expect("shut");
            });
            let mut got = Vec::new();
            stream.read_to_end(&mut got).expect("read");
            assert!(got == pattern(len, 2), "what came out is not what went in");
            writes.join().expect("written");
        });
        let mut tcp = Tcp::new(&Settings::default(), lost);
        let handle = tcp.connect((GATEWAY, port));
        let got = tcp.exchange(handle, &pattern(len, 2));
        assert!(got == pattern(len, 1), "what came in is not what was sent");
        thread.join().expect("the server is content");
    }
}

#[test]
fn an_end_that_was_lost_is_sent_again() {
    let (port, thread) = server(|mut stream| {
        stream.write_all(b"all there is").expect("written");
        stream.shutdown(Shutdown::Write).expect("shut");
        stream.read_to_end(&mut Vec::new()).expect("read");
    });
    let guest = Guest::new(&Settings::default());
    let segment = |control, number: u32, acknowledged: Option<u32>| {
        let repr = TcpRepr {
            src_port: 999,
            dst_port: port,
            control,
            seq_number: TcpSeqNumber(number as i32),
            ack_number: acknowledged.map(|number| TcpSeqNumber(number as i32)),
            window_len: 8000,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let ip = Ipv4Repr {
            src_addr: GUEST,
            dst_addr: GATEWAY,
            next_header: IpProtocol::Tcp,
            payload_len: repr.buffer_len(),
            hop_limit: 64,
        };
        let mut bytes = vec![0; ip.buffer_len() + repr.buffer_len()];
        let sums = ChecksumCapabilities::default();
        ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[..]), &sums);
        let (from, to) = (GUEST.into(), GATEWAY.into());
        let mut tcp = TcpPacket::new_unchecked(&mut bytes[ip.buffer_len()..]);
        repr.emit(&mut tcp, &from, &to, &sums);
        guest.send(GATEWAY_MAC, 0x0800, &bytes);
    };
    // The number behind the next segment's payload, and whether an end or an answer to our beginning is there.
    let next = |what: &str| {
        guest.expect(what, |frame| {
            let ip = Ipv4Packet::new_checked(frame.get(14..)?).ok()?;
            let tcp = (ip.next_header() == IpProtocol::Tcp)
                .then(|| TcpPacket::new_checked(ip.payload()).ok())??;
            let number = tcp.seq_number().0 as u32;
            Some((number.wrapping_add(tcp.payload().len() as u32), tcp.fin(), tcp.syn()))
        })
    };
    segment(TcpControl::Syn, 1000, None);
    let (start, _, answers) = next("an answer");
    assert!(answers);
    segment(TcpControl::None, 1001, Some(start.wrapping_add(1)));
    let end = loop {
        if let (end, true, _) = next("an end") {
            break end;
        }
    };
    // Everything has come but the end; then from something else that came twice, the same again.
    for _ in 0..4 {
        segment(TcpControl::None, 1001, Some(end));
    }
    while next("the end once more") != (end, true, false) {}
    segment(TcpControl::Fin, 1001, Some(end.wrapping_add(1)));
    thread.join().expect("the server is content");
}

#[test]
fn each_direction_ends_by_itself() {
    let (port, thread) = server(|mut stream| {
        let mut question = String::new();
        // Ends only when the guest's end has come through.
        stream.read_to_string(&mut question).expect("read");
        stream.write_all(format!("you said {question}").as_bytes()).expect("written");
    });
    let mut tcp = Tcp::new(&Settings::default(), &[]);
    let handle = tcp.connect((GATEWAY, port));
    assert_eq!(tcp.exchange(handle, b"hello"), b"you said hello");
    thread.join().expect("the server is content");

    // The other way round: the peer ends first, and still hears.
    let (port, thread) = server(|mut stream| {
        stream.write_all(b"speak").expect("written");
        stream.shutdown(Shutdown::Write).expect("shut");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read");
        assert_eq!(answer, "something");
    });
    let handle = tcp.connect((GATEWAY, port));
    tcp.until("the peer's end", |tcp| tcp.get(handle).state() == State::CloseWait);
    let mut word = [0; 10];
    assert_eq!(tcp.get(handle).recv_slice(&mut word), Ok(5));
    assert_eq!(tcp.exchange(handle, b"something"), b"");
    thread.join().expect("the server is content");
}

#[test]
fn a_refused_connection_is_refused_and_a_reset_goes_through() {
    // Nobody listens at a connection's own end, and nobody else gets its port.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
    let deaf = taken.local_addr().expect("bound").port();
    let mut tcp = Tcp::new(&Settings::default(), &[]);
    for to in [(GATEWAY, deaf), (NAME_SERVER, 80)] {
        let handle = tcp.connect(to);
        tcp.until("a refusal", |tcp| tcp.get(handle).state() == State::Closed);
    }
    // By the peer: a socket closed over unread bytes.
    let (port, thread) = server(|mut stream| {
        stream.read_exact(&mut [0]).expect("read");
    });
    let handle = tcp.connect((GATEWAY, port));
    tcp.until("a connection", |tcp| tcp.get(handle).may_send());
    tcp.get(handle).send_slice(b"more than one byte").expect("open");
    tcp.until("a reset", |tcp| tcp.get(handle).state() == State::Closed);
    thread.join().expect("the server is content");
    // By the guest.
    let (port, thread) = server(|mut stream| {
        let error = stream.read(&mut [0]).expect_err("no orderly end");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    });
    let handle = tcp.connect((GATEWAY, port));
    tcp.until("a connection", |tcp| tcp.get(handle).may_send());
    tcp.get(handle).abort();
    tcp.until("the server's end", |_| thread.is_finished());
    thread.join().expect("the server is content");
}

#[test]
fn a_peer_that_does_not_read_holds_up_nobody_else() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (slow, slow_thread) = server(move |mut stream| {
        wait.recv().expect("told");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("read");
        assert!(all.len() > 100_000 && all == pattern(all.len(), 3));
    });
    let mut tcp = Tcp::new(&Settings::default(), &[]);
    let stuck = tcp.connect((GATEWAY, slow));
    let bytes = pattern(64 << 20, 3);
    let mut sent = 0;
    let mut quiet = Instant::now();
    // Until nothing has gone for a while: the host's buffers and ours are full, and they end somewhere.
    tcp.until("a closed window", |tcp| {
        let socket = tcp.get(stuck);
        if socket.can_send() {
            let len = socket.send_slice(&bytes[sent..]).expect("open");
            if len > 0 {
                sent += len;
                quiet = Instant::now();
            }
        }
        sent > 100_000 && quiet.elapsed() > Duration::from_millis(700)
    });
    assert!(sent < bytes.len(), "no end to what is taken");
    let (port, thread) = server(|mut stream| {
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("read");
        stream.write_all(text.as_bytes()).expect("written");
    });
    let handle = tcp.connect((GATEWAY, port));
    assert_eq!(tcp.exchange(handle, b"passing by"), b"passing by");
    thread.join().expect("the server is content");
    // And nothing of the slow one's is lost.
    go.send(()).expect("it waits");
    tcp.get(stuck).close();
    tcp.until("its end", |_| slow_thread.is_finished());
    slow_thread.join().expect("the server is content");
}

#[test]
fn a_forward_leads_in_and_both_ends_know_how_it_ends() {
    let (guest, way_in) = Guest::restricted(Protocol::Tcp, 22);
    let mut tcp = Tcp::on(guest, &[]);
    let handle = tcp.socket();
    tcp.get(handle).listen(22).expect("free");
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(("127.0.0.1", way_in)).expect("a listener");
        stream.write_all(b"who is there?").expect("written");
        stream.shutdown(Shutdown::Write).expect("shut");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read");
        (answer, stream.local_addr().expect("bound").port())
    });
    tcp.until("a client", |tcp| tcp.get(handle).may_send());
    let remote = tcp.get(handle).remote_endpoint().expect("connected");
    let got = tcp.exchange(handle, b"the guest");
    assert_eq!(got, b"who is there?");
    let (answer, port) = client.join().expect("the client is content");
    assert_eq!(answer, "the guest");
    assert_eq!(remote.to_string(), format!("10.0.2.2:{port}"));
    // Nobody listens any more: the client hears so.
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(("127.0.0.1", way_in)).expect("a listener");
        stream.read(&mut [0]).expect_err("a reset").kind()
    });
    tcp.until("the client's end", |_| client.is_finished());
    assert_eq!(client.join().expect("the client is content"), ErrorKind::ConnectionReset);
    // A guest that is kept in gets nowhere by itself.
    let handle = tcp.connect((GATEWAY, way_in));
    tcp.until("a refusal", |tcp| tcp.get(handle).state() == State::Closed);
}

#[test]
fn many_short_connections_leave_nothing_behind() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // The server ends first, which leaves our side waiting for echoes.
            let _ = stream.write_all(b"x");
        }
    });
    let mut tcp = Tcp::new(&Settings::default(), &[]);
    let mut open = VecDeque::new();
    for _ in 0..1200 {
        open.push_back(tcp.connect((GATEWAY, port)));
        while open.len() >= 50 {
            let handle = open.pop_front().expect("fifty");
            assert_eq!(tcp.exchange(handle, b""), b"x");
            tcp.sockets.remove(handle);
        }
    }
}
