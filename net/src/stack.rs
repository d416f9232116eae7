//! The network's thread: everything that comes in, from the card or from a socket, finds its way here.
//!
//! Scheme: a round takes the card's frames, lets TCP, UDP, DHCP and TFTP do what they can without
//! waiting, gives the card what came of it, and then sleeps until the card, a socket or the earliest
//! timer calls. Sockets are polled for what can be used: a flow that waits for its peer asks for nothing
//! of its socket. Invariants: only `wait` sleeps; a round's work is bounded by the queues.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::wire::IpProtocol;

use crate::dhcp::{self, Dhcp};
use crate::dump::Dump;
use crate::link::{Link, Packet};
use crate::packet::{Udp, echo_reply};
use crate::settings::{Forward, Protocol, Resolver, Settings};
use crate::tcp::{Id, TcpFlows};
use crate::tftp::{self, Tftp};
use crate::udp::{self, Source, UdpFlows};
use crate::{GATEWAY, NAME_SERVER, NetError, Port, is_inside, plain};

/// Connections accepted from one listener in a round.
const ACCEPT_BURST: usize = 16;

/// Where the guest's packets may go.
#[derive(Clone, Copy, Debug)]
pub struct Routes {
    restrict: bool,
    resolver: Resolver,
}

impl Routes {
    /// Where a connection or a datagram to `to` leads; `None`: nowhere.
    pub fn route(&self, to: SocketAddrV4) -> Option<SocketAddr> {
        let address = *to.ip();
        if self.restrict || to.port() == 0 {
            return None;
        }
        if address == NAME_SERVER {
            return (to.port() == 53).then(|| self.resolver.address());
        }
        if address == GATEWAY {
            return Some((Ipv4Addr::LOCALHOST, to.port()).into());
        }
        // This computer is reached by the gateway's address only.
        let local = address.is_loopback() || address.octets()[0] == 0;
        let many = address.is_multicast() || address.is_broadcast();
        (!is_inside(address) && !local && !many).then_some(to.into())
    }

    /// Who the guest sees when `from` of this computer's world speaks to it.
    pub fn seen_by_guest(from: SocketAddrV4) -> SocketAddrV4 {
        if from.ip().is_loopback() { SocketAddrV4::new(GATEWAY, from.port()) } else { from }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Stack {
    port: Arc<Port>,
    link: Link,
    routes: Routes,
    dhcp: Dhcp,
    tftp: Option<Tftp>,
    udp: UdpFlows,
    tcp: TcpFlows,
    listeners: Vec<(Forward, TcpListener)>,
}

/// What may call.
#[derive(Clone, Copy, Debug)]
enum Caller {
    Card,
    Listener(usize),
    Tcp(Id),
    Udp(Source),
}

impl Stack {
    pub fn new(settings: &Settings, port: Arc<Port>) -> Result<Self, NetError> {
        let wrong = |option, path: &std::path::Path, error: &std::io::Error| NetError::File {
            option,
            path: path.display().to_string(),
            reason: plain(error),
        };
        let mut udp = UdpFlows::new();
        let mut listeners = Vec::new();
        for &forward in &settings.forwards {
            let listened = match forward.protocol {
                Protocol::Tcp => TcpListener::bind(forward.host).and_then(|listener| {
                    listener.set_nonblocking(true)?;
                    listeners.push((forward, listener));
                    Ok(())
                }),
                Protocol::Udp => udp.listen(forward),
            };
            listened.map_err(|error| NetError::Forward(forward, plain(&error)))?;
        }
        let tftp = settings.tftp.as_deref();
        let tftp = tftp
            .map(|path| Tftp::new(path).map_err(|error| wrong("tftp", path, &error)))
            .transpose()?;
        let dump = settings.dump.as_deref();
        let dump = dump
            .map(|path| Dump::create(path).map_err(|error| wrong("dump", path, &error)))
            .transpose()?;
        Ok(Self {
            link: Link::new(Arc::clone(&port), dump),
            port,
            routes: Routes { restrict: settings.restrict, resolver: settings.resolver },
            dhcp: Dhcp::new(settings.bootfile.as_deref(), settings.restrict),
            tftp,
            udp,
            tcp: TcpFlows::new(),
            listeners,
        })
    }

    /// The thread's body.
    pub fn run(mut self) {
        while let Some(frames) = self.port.take() {
            for frame in frames {
                if let Some(packet) = self.link.receive(&frame) {
                    self.packet(packet);
                }
            }
            self.tcp.work(&mut self.link);
            let now = Instant::now();
            self.udp.expire(now);
            let overdue = self.tftp.as_mut().map(|tftp| tftp.overdue(now)).unwrap_or_default();
            for (client, packet) in overdue {
                self.send_tftp(client, &packet);
            }
            self.link.flush();
            self.wait();
        }
    }

    fn packet(&mut self, packet: Packet) {
        let ours = packet.to == GATEWAY || packet.to == NAME_SERVER;
        match packet.protocol {
            IpProtocol::Tcp => self.tcp.packet(packet, &self.routes, &mut self.link),
            IpProtocol::Udp => {
                if let Some(udp) = Udp::parse(packet.from, packet.to, packet.payload()) {
                    self.datagram(&udp, &packet);
                }
            }
            IpProtocol::Icmp if ours => {
                let reply = echo_reply(packet.from, packet.to, packet.payload());
                for packet in reply.into_iter().flatten() {
                    self.link.send(packet);
                }
            }
            _ => {}
        }
    }

    fn datagram(&mut self, udp: &Udp<'_>, packet: &Packet) {
        let to_us = packet.to == GATEWAY || packet.to.is_broadcast();
        if to_us && udp.to.port() == dhcp::SERVER_PORT {
            if let Some(answer) = self.dhcp.answer(udp.payload) {
                let reply = Udp {
                    from: SocketAddrV4::new(GATEWAY, dhcp::SERVER_PORT),
                    to: SocketAddrV4::new(answer.to, dhcp::CLIENT_PORT),
                    payload: &answer.message,
                };
                for bytes in reply.packets(0) {
                    self.link.send_to(answer.mac, &bytes);
                }
            }
        } else if packet.to == GATEWAY
            && udp.to.port() == tftp::PORT
            && let Some(tftp) = &mut self.tftp
        {
            if let Some(answer) = tftp.answer(udp.from, udp.payload, Instant::now()) {
                self.send_tftp(udp.from, &answer);
            }
        } else {
            self.udp.out(udp, packet, &self.routes, &mut self.link);
        }
    }

    fn send_tftp(&mut self, client: SocketAddrV4, payload: &[u8]) {
        let from = SocketAddrV4::new(GATEWAY, tftp::PORT);
        for packet in (Udp { from, to: client, payload }).packets(0) {
            self.link.send(packet);
        }
    }

    /// Sleeps until there is something to do, and notes what.
    fn wait(&mut self) {
        let room = self.link.room();
        let now = Instant::now();
        // Without room TCP can't do what is due; room wakes us.
        let tcp_due = if room > 0 { self.tcp.due(now) } else { None };
        let tftp_due = self.tftp.as_ref().and_then(Tftp::due);
        let due = [tcp_due, tftp_due, self.udp.due()].into_iter().flatten().min();
        // What is due at once was just done: a millisecond keeps a timer that doesn't move from taking all
        // of a processor.
        let timeout =
            due.map(|due| due.saturating_duration_since(now).max(Duration::from_millis(1)));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());

        let mut callers = vec![Caller::Card];
        let mut sockets = vec![PollFd::from_borrowed_fd(self.port.wakes(), PollFlags::IN)];
        for (n, (_, listener)) in self.listeners.iter().enumerate() {
            if self.tcp.has_place() {
                callers.push(Caller::Listener(n));
                sockets.push(PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN));
            }
        }
        for (id, socket, flags) in self.tcp.wanted() {
            callers.push(Caller::Tcp(id));
            sockets.push(PollFd::from_borrowed_fd(socket, flags));
        }
        if room >= udp::ROOM_MIN {
            for (source, socket) in self.udp.sources() {
                callers.push(Caller::Udp(source));
                sockets.push(PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN));
            }
        }
        // Interrupted: nothing is ready.
        let ready = poll(&mut sockets, timeout.as_ref()).unwrap_or(0);
        if ready == 0 {
            return;
        }
        let called: Vec<_> = callers
            .into_iter()
            .zip(&sockets)
            .map(|(caller, socket)| (caller, socket.revents()))
            .filter(|(_, flags)| !flags.is_empty())
            .collect();
        for (caller, flags) in called {
            match caller {
                Caller::Card => {}
                Caller::Listener(n) => self.accept(n),
                Caller::Tcp(id) => self.tcp.called(id, flags, &mut self.link),
                Caller::Udp(source) => self.udp.read(source, &mut self.link),
            }
        }
    }

    fn accept(&mut self, listener: usize) {
        let (forward, listener) = &self.listeners[listener];
        for _ in 0..ACCEPT_BURST {
            // One that went away before it was accepted, or no descriptor left: the next round tries again.
            let Ok((stream, SocketAddr::V4(from))) = listener.accept() else { return };
            if !self.tcp.has_place() {
                return;
            }
            self.tcp.forward(stream, Routes::seen_by_guest(from), forward.guest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_network_lead_nowhere_else() {
        let resolver = Resolver::At("192.0.2.1:5353".parse().expect("an address"));
        let open = Routes { restrict: false, resolver };
        let to =
            |text: &str| open.route(text.parse().expect("an address")).map(|to| to.to_string());
        assert_eq!(to("10.0.2.2:80").as_deref(), Some("127.0.0.1:80"));
        assert_eq!(to("10.0.2.3:53").as_deref(), Some("192.0.2.1:5353"));
        assert_eq!(to("192.0.2.7:1").as_deref(), Some("192.0.2.7:1"));
        for none in [
            "10.0.2.3:80",
            "10.0.2.4:80",
            "10.0.2.255:80",
            "127.0.0.1:80",
            "0.0.0.0:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "10.0.2.2:0",
        ] {
            assert_eq!(to(none), None, "{none}");
        }
        let closed = Routes { restrict: true, resolver };
        for text in ["10.0.2.2:80", "10.0.2.3:53", "192.0.2.7:1"] {
            assert_eq!(closed.route(text.parse().expect("an address")), None, "{text}");
        }
    }
}
