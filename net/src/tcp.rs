//! TCP: each connection of the guest ends here, and another of ours goes on from here.
//!
//! Scheme: smoltcp speaks to the guest, a stream of this computer's to the peer. A connection out begins
//! with the guest's SYN, which is kept until the peer has answered ours; only then does smoltcp see it, so
//! that the guest learns the truth: an answer, or a reset. A connection in begins when a
//! forward's listener accepts. From then on bytes move between the two as far as each has room, ends
//! (FIN) are passed on each way by themselves, and so are resets. Invariants: a flow's memory is its two buffers;
//! there are [`FLOWS_MAX`] at most; no call waits; smoltcp is given one packet at a time, and a listening socket
//! only with the SYN that is meant for it.
//!
//! Source: RFC 9293 (TCP); smoltcp's documentation for what it does of it.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as TcpInstant;
use smoltcp::wire::{HardwareAddress, IpCidr, IpListenEndpoint, TcpPacket};

use crate::link::{Link, Packet};
use crate::packet::MTU;
use crate::stack::Routes;
use crate::{GATEWAY, PREFIX};

/// Connections, those that begin included.
const FLOWS_MAX: usize = 512;
/// Bytes on the way in each direction.
const BUFFER: usize = 128 << 10;
/// A guest that is silent for so long is asked whether it is there, and given up after that.
const KEEP_ALIVE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(120);
const GIVEN_UP: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(600);
/// The same while the guest hasn't acknowledged our end. smoltcp 0.14 drops the timer of an end (FIN) that was sent
/// behind the last data when that data is acknowledged three times more, which is how a guest tells that only the end
/// was lost; asking whether the guest is there is what sends it again.
const KEEP_ALIVE_ENDING: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(2);

pub type Id = u64;

/// smoltcp's device: at most one packet for it, and what it sends.
#[derive(Debug, Default)]
struct Wire {
    incoming: Option<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
    /// Packets that may be sent of its own accord.
    room: usize,
}

struct Incoming(Vec<u8>);

struct Outgoing<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl phy::TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut packet = vec![0; len];
        let result = write(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: TcpInstant) -> Option<(Incoming, Outgoing<'_>)> {
        let packet = self.incoming.take()?;
        Some((Incoming(packet), Outgoing(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: TcpInstant) -> Option<Outgoing<'_>> {
        (self.outgoing.len() < self.room).then_some(Outgoing(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}

/// The two ends as the guest sees them: its own, and the other.
type Ends = (SocketAddrV4, SocketAddrV4);

/// A connection out that the peer hasn't answered.
struct Opening {
    ends: Ends,
    stream: TcpStream,
    syn: Packet,
}

/// A connection.
struct Flow {
    ends: Ends,
    handle: SocketHandle,
    /// Gone when nothing more is to be said to the peer.
    stream: Option<TcpStream>,
    /// The stream has, or takes, bytes as far as is known.
    readable: bool,
    writable: bool,
    /// The peer has said its last.
    peer_ended: bool,
    /// The guest has, and then: the peer knows.
    guest_ended: bool,
    peer_told: bool,
    /// The stream has failed.
    broken: bool,
}

/// See the module.
pub struct TcpFlows {
    interface: Interface,
    wire: Wire,
    sockets: SocketSet<'static>,
    openings: BTreeMap<Id, Opening>,
    flows: BTreeMap<Id, Flow>,
    next: Id,
    start: Instant,
}

impl std::fmt::Debug for TcpFlows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpFlows")
            .field("openings", &self.openings.len())
            .field("flows", &self.flows.len())
            .finish_non_exhaustive()
    }
}

fn new_socket() -> Socket<'static> {
    let buffer = || SocketBuffer::new(vec![0; BUFFER]);
    let mut socket = Socket::new(buffer(), buffer());
    socket.set_keep_alive(Some(KEEP_ALIVE));
    socket.set_timeout(Some(GIVEN_UP));
    // The peer's TCP has decided what goes together.
    socket.set_nagle_enabled(false);
    socket
}

/// Begins to connect.
fn begin(to: SocketAddr) -> io::Result<TcpStream> {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket.into()),
        Err(error) => Err(error.into()),
    }
}

impl TcpFlows {
    pub fn new() -> Self {
        let mut wire = Wire::default();
        let mut config = Config::new(HardwareAddress::Ip);
        // For sequence numbers that nobody outside can guess.
        let mut seed = [0; 8];
        let _ = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty());
        config.random_seed = u64::from_ne_bytes(seed);
        let mut interface = Interface::new(config, &mut wire, TcpInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // The list is empty and has room for two.
            let _ = addresses.push(IpCidr::new(GATEWAY.into(), PREFIX));
        });
        // All addresses are the gateway's business.
        interface.set_any_ip(true);
        let _ = interface.routes_mut().add_default_ipv4_route(GATEWAY);
        Self {
            interface,
            wire,
            sockets: SocketSet::new(Vec::new()),
            openings: BTreeMap::new(),
            flows: BTreeMap::new(),
            next: 0,
            start: Instant::now(),
        }
    }

    fn time(&self, now: Instant) -> TcpInstant {
        let passed = now.duration_since(self.start).as_micros();
        TcpInstant::from_micros(i64::try_from(passed).unwrap_or(i64::MAX))
    }

    /// Whether one more connection can be had, by giving up one that is over but for its echoes if need be.
    pub fn has_place(&self) -> bool {
        self.openings.len() + self.flows.len() < FLOWS_MAX || self.lingering().is_some()
    }

    fn lingering(&self) -> Option<Id> {
        let over = |flow: &Flow| self.socket(flow).state() == State::TimeWait;
        self.flows.iter().find(|(_, flow)| flow.stream.is_none() && over(flow)).map(|(&id, _)| id)
    }

    fn make_place(&mut self) -> bool {
        if self.openings.len() + self.flows.len() < FLOWS_MAX {
            return true;
        }
        let lingering = self.lingering();
        if let Some(id) = lingering {
            self.remove(id);
        }
        lingering.is_some()
    }

    fn socket(&self, flow: &Flow) -> &Socket<'static> {
        self.sockets.get(flow.handle)
    }

    fn find(&self, ends: Ends) -> Option<Id> {
        self.flows.iter().find(|(_, flow)| flow.ends == ends).map(|(&id, _)| id)
    }

    /// Takes a packet from the guest.
    pub fn packet(&mut self, packet: Packet, routes: &Routes, link: &mut Link) {
        let Ok(tcp) = TcpPacket::new_checked(packet.payload()) else { return };
        let ends = (
            SocketAddrV4::new(packet.from, tcp.src_port()),
            SocketAddrV4::new(packet.to, tcp.dst_port()),
        );
        let begins = tcp.syn() && !tcp.ack() && !tcp.rst();
        let sound = tcp.verify_checksum(&packet.from.into(), &packet.to.into());
        if !sound || ends.0.port() == 0 || ends.1.port() == 0 {
            return;
        }
        if let Some(id) = self.openings.iter().find(|(_, one)| one.ends == ends).map(|(&id, _)| id)
        {
            // The SYN again, or the guest has changed its mind.
            if tcp.rst() {
                self.openings.remove(&id);
            }
            return;
        }
        let mut id = self.find(ends);
        if let Some(old) = id
            && begins
            && self.flows.get(&old).is_some_and(|old| self.socket(old).state() == State::TimeWait)
        {
            self.remove(old);
            id = None;
        }
        if begins && id.is_none() {
            let to = routes.route(ends.1).filter(|_| self.make_place());
            let begun = to.map(begin).transpose().unwrap_or_else(|error| {
                tracing::debug!("no connection to {}: {error}", ends.1);
                None
            });
            if let Some(stream) = begun {
                self.next += 1;
                self.openings.insert(self.next, Opening { ends, stream, syn: packet });
                return;
            }
        }
        // Without a flow this ends in a reset.
        self.feed(packet.bytes, link);
        if let Some(id) = id {
            self.settle(id);
        }
    }

    /// Gives one packet to smoltcp.
    fn feed(&mut self, packet: Vec<u8>, link: &mut Link) {
        let now = self.time(Instant::now());
        self.wire.incoming = Some(packet);
        self.interface.poll_ingress_single(now, &mut self.wire, &mut self.sockets);
        self.wire.incoming = None;
        for packet in self.wire.outgoing.drain(..) {
            link.send(packet);
        }
    }

    /// A connection that a listener accepted from `from`, for the guest's port `guest`.
    pub fn forward(&mut self, stream: TcpStream, from: SocketAddrV4, guest: SocketAddrV4) {
        let ends = (guest, from);
        if !self.make_place() || self.find(ends).is_some() {
            return;
        }
        let mut socket = new_socket();
        let connected = socket.connect(self.interface.context(), guest, from);
        if connected.is_ok() && stream.set_nonblocking(true).is_ok() {
            let handle = self.sockets.add(socket);
            self.insert(ends, handle, stream);
        }
    }

    fn insert(&mut self, ends: Ends, handle: SocketHandle, stream: TcpStream) -> Id {
        // Only a matter of speed.
        let _ = stream.set_nodelay(true);
        self.next += 1;
        let flow = Flow {
            ends,
            handle,
            stream: Some(stream),
            readable: false,
            writable: true,
            peer_ended: false,
            guest_ended: false,
            peer_told: false,
            broken: false,
        };
        self.flows.insert(self.next, flow);
        self.next
    }

    /// The peer of a beginning connection has answered, one way or the other.
    fn answered(&mut self, id: Id, link: &mut Link) {
        let Some(opening) = self.openings.remove(&id) else { return };
        if !matches!(opening.stream.take_error(), Ok(None)) {
            // smoltcp refuses what nobody listens for.
            self.feed(opening.syn.bytes, link);
            return;
        }
        let (ends, mut socket) = (opening.ends, new_socket());
        let place = IpListenEndpoint { addr: Some((*ends.1.ip()).into()), port: ends.1.port() };
        if socket.listen(place).is_err() {
            return;
        }
        let handle = self.sockets.add(socket);
        let id = self.insert(ends, handle, opening.stream);
        self.feed(opening.syn.bytes, link);
        self.settle(id);
    }

    /// Removes a flow that must not meet another packet: it listens again, as its guest took its SYN back.
    fn settle(&mut self, id: Id) {
        if self.flows.get(&id).is_some_and(|flow| self.socket(flow).state() == State::Listen) {
            self.remove(id);
        }
    }

    /// Forgets a flow. A peer that was not told of an end is told of a reset.
    fn remove(&mut self, id: Id) {
        let Some(flow) = self.flows.remove(&id) else { return };
        self.sockets.remove(flow.handle);
        if let Some(stream) = flow.stream
            && !(flow.peer_ended && flow.peer_told)
        {
            let _ = sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
        }
    }

    /// Moves what can be moved, and sends what smoltcp has to send.
    pub fn work(&mut self, link: &mut Link) {
        self.pump();
        loop {
            self.wire.room = link.room();
            if self.wire.room == 0 {
                return;
            }
            let now = self.time(Instant::now());
            let result = self.interface.poll_egress(now, &mut self.wire, &mut self.sockets);
            for packet in self.wire.outgoing.drain(..) {
                link.send(packet);
            }
            if result == PollResult::None {
                break;
            }
        }
        // Sockets that smoltcp has given up, or whose reset is on its way now.
        self.pump();
    }

    fn pump(&mut self) {
        let mut over = Vec::new();
        for (&id, flow) in &mut self.flows {
            if flow.pump(self.sockets.get_mut(flow.handle)) {
                over.push(id);
            }
        }
        for id in over {
            self.remove(id);
        }
    }

    /// When there is something to send even if nobody calls.
    pub fn due(&mut self, now: Instant) -> Option<Instant> {
        let time = self.time(now);
        let delay = self.interface.poll_delay(time, &self.sockets)?;
        Some(now + Duration::from(delay))
    }

    /// The streams to wait for, and what for.
    pub fn wanted(&self) -> impl Iterator<Item = (Id, BorrowedFd<'_>, PollFlags)> {
        let openings =
            self.openings.iter().map(|(&id, one)| (id, one.stream.as_fd(), PollFlags::OUT));
        let flows = self.flows.iter().filter_map(|(&id, flow)| {
            let stream = flow.stream.as_ref()?;
            let flags = flow.wanted(self.socket(flow));
            (!flags.is_empty()).then_some((id, stream.as_fd(), flags))
        });
        openings.chain(flows)
    }

    /// A stream has what was waited for.
    pub fn called(&mut self, id: Id, flags: PollFlags, link: &mut Link) {
        if let Some(flow) = self.flows.get_mut(&id) {
            // Errors show when one reads or writes.
            let broken = flags.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
            flow.readable |= broken || flags.contains(PollFlags::IN);
            flow.writable |= broken || flags.contains(PollFlags::OUT);
        } else {
            self.answered(id, link);
        }
    }
}

/// Whether an error means "not now".
fn is_early(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

impl Flow {
    fn wanted(&self, socket: &Socket<'_>) -> PollFlags {
        let mut flags = PollFlags::empty();
        if !self.readable && !self.peer_ended && socket.can_send() {
            flags |= PollFlags::IN;
        }
        if !self.writable && socket.recv_queue() > 0 {
            flags |= PollFlags::OUT;
        }
        flags
    }

    /// Moves bytes both ways as far as they go. True if the flow is over.
    fn pump(&mut self, socket: &mut Socket<'_>) -> bool {
        let state = socket.state();
        self.guest_ended |=
            matches!(state, State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
        if let Some(mut stream) = self.stream.take_if(|_| !self.broken) {
            let sound = self.pass_out(socket, &mut stream) && self.pass_in(socket, &mut stream);
            if !sound {
                self.broken = true;
                socket.abort();
            }
            // Kept to the end for a reset, if that is how it ends.
            if !(self.peer_ended && self.peer_told) {
                self.stream = Some(stream);
            }
        }
        let ending = matches!(socket.state(), State::FinWait1 | State::Closing | State::LastAck);
        socket.set_keep_alive(Some(if ending { KEEP_ALIVE_ENDING } else { KEEP_ALIVE }));
        let closed = socket.state() == State::Closed && socket.remote_endpoint().is_none();
        // What an orderly guest sent before its end still goes to a slow peer.
        let owes = self.guest_ended && !self.peer_told && !self.broken;
        closed && !owes
    }

    /// False if the peer takes no more and never will.
    fn pass_out(&mut self, socket: &mut Socket<'_>, stream: &mut TcpStream) -> bool {
        while self.writable && socket.can_recv() {
            let written = socket.recv(|bytes| match stream.write(bytes) {
                Ok(len) => (len, Ok(())),
                Err(error) => (0, Err(error)),
            });
            match written {
                Ok(Ok(())) => {}
                Ok(Err(error)) if is_early(&error) => self.writable = false,
                _ => return false,
            }
        }
        if self.guest_ended && !self.peer_told && socket.recv_queue() == 0 {
            self.peer_told = true;
            return stream.shutdown(Shutdown::Write).is_ok();
        }
        true
    }

    /// False if the peer has reset the connection.
    fn pass_in(&mut self, socket: &mut Socket<'_>, stream: &mut TcpStream) -> bool {
        while self.readable && !self.peer_ended && socket.can_send() {
            let read = socket.send(|room| match stream.read(room) {
                Ok(len) => (len, Ok(len)),
                Err(error) => (0, Err(error)),
            });
            match read {
                Ok(Ok(0)) => {
                    self.peer_ended = true;
                    socket.close();
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) if is_early(&error) => self.readable = false,
                _ => return false,
            }
        }
        true
    }
}
