//! UDP: datagrams out and back, and in by forwards.
//!
//! Scheme: each of the guest's ports has a socket of ours, so that whoever it wrote to can answer; questions
//! to the name server have sockets of their own, whose answers come from 10.0.2.3; a forward is a socket
//! that was there before. Invariants: there are [`FLOWS_MAX`] sockets at most, the one that was quiet
//! longest goes first; a datagram is read only when the card has room for it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use smoltcp::wire::Icmpv4DstUnreachable;

use crate::link::{Link, Packet};
use crate::packet::{UDP_PAYLOAD_MAX, Udp, unreachable};
use crate::settings::Forward;
use crate::stack::Routes;
use crate::{GATEWAY, NAME_SERVER};

const FLOWS_MAX: usize = 256;
/// How long a quiet port keeps its socket (RFC 4787 asks for two minutes at least).
const QUIET: Duration = Duration::from_secs(240);
/// Callers of a forward that can be answered.
const CALLERS_MAX: usize = 64;
/// Datagrams taken from one socket before others get their turn.
const BURST: usize = 32;
/// Frames of the largest datagram, about.
pub const ROOM_MIN: usize = 48;

/// A port of the guest, and whether it talks to the name server.
pub type Name = (SocketAddrV4, bool);

#[derive(Debug)]
struct Flow {
    socket: UdpSocket,
    last: Instant,
}

#[derive(Debug)]
struct Forwarded {
    forward: Forward,
    socket: UdpSocket,
    /// Who spoke last, as the guest sees them.
    callers: VecDeque<SocketAddrV4>,
}

#[derive(Debug)]
pub struct UdpFlows {
    flows: HashMap<Name, Flow>,
    forwards: Vec<Forwarded>,
    identification: u16,
    buffer: Vec<u8>,
}

/// A socket to read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Flow(Name),
    Forward(usize),
}

impl UdpFlows {
    pub fn new() -> Self {
        Self {
            flows: HashMap::new(),
            forwards: Vec::new(),
            identification: 0,
            buffer: vec![0; UDP_PAYLOAD_MAX + 1],
        }
    }

    /// Listens for a forward.
    ///
    /// # Errors
    /// The port is taken or not ours.
    pub fn listen(&mut self, forward: Forward) -> io::Result<()> {
        let socket = UdpSocket::bind(forward.host)?;
        socket.set_nonblocking(true)?;
        self.forwards.push(Forwarded { forward, socket, callers: VecDeque::new() });
        Ok(())
    }

    /// All sockets, to wait for them.
    pub fn sources(&self) -> impl Iterator<Item = (Source, &UdpSocket)> {
        let flows = self.flows.iter().map(|(&name, flow)| (Source::Flow(name), &flow.socket));
        let forwards = self.forwards.iter().enumerate();
        flows.chain(forwards.map(|(n, one)| (Source::Forward(n), &one.socket)))
    }

    /// When the next socket will have been quiet for too long.
    pub fn due(&self) -> Option<Instant> {
        self.flows.values().map(|flow| flow.last + QUIET).min()
    }

    pub fn expire(&mut self, now: Instant) {
        self.flows.retain(|_, flow| now.duration_since(flow.last) < QUIET);
    }

    /// Sends the guest's datagram out.
    pub fn out(&mut self, udp: &Udp<'_>, packet: &Packet, routes: &Routes, link: &mut Link) {
        let is_question = udp.to == SocketAddrV4::new(NAME_SERVER, 53);
        let answered = self.answer_to_forward(udp);
        let sent = match answered {
            Some(sent) => sent,
            None => match routes.route(udp.to) {
                Some(to) => self.send(udp, is_question, to),
                None => return,
            },
        };
        match sent {
            Err(error) if is_unreachable(&error) => {
                let why = Icmpv4DstUnreachable::NetUnreachable;
                if let Some(answer) = unreachable(GATEWAY, &packet.bytes, why) {
                    link.send(answer);
                }
            }
            // As anywhere on the way.
            Err(error) => tracing::debug!("a datagram to {} is lost: {error}", udp.to),
            Ok(()) => {}
        }
    }

    /// What a forwarded port sends to who spoke to it goes through the forward's socket.
    fn answer_to_forward(&self, udp: &Udp<'_>) -> Option<io::Result<()>> {
        let forwarded = self
            .forwards
            .iter()
            .find(|one| one.forward.guest == udp.from && one.callers.contains(&udp.to))?;
        let to = if *udp.to.ip() == GATEWAY {
            SocketAddrV4::new(Ipv4Addr::LOCALHOST, udp.to.port())
        } else {
            udp.to
        };
        Some(forwarded.socket.send_to(udp.payload, to).map(|_| ()))
    }

    fn send(&mut self, udp: &Udp<'_>, is_question: bool, to: SocketAddr) -> io::Result<()> {
        let name = (udp.from, is_question);
        let now = Instant::now();
        if !self.flows.contains_key(&name) {
            if self.flows.len() == FLOWS_MAX {
                let quiet = self.flows.iter().min_by_key(|(_, flow)| flow.last);
                if let Some(&quiet) = quiet.map(|(name, _)| name) {
                    self.flows.remove(&quiet);
                }
            }
            let any: IpAddr = match to {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_nonblocking(true)?;
            if is_question {
                // Nobody else may answer.
                socket.connect(to)?;
            }
            self.flows.insert(name, Flow { socket, last: now });
        }
        let Some(flow) = self.flows.get_mut(&name) else { return Ok(()) };
        flow.last = now;
        if is_question {
            flow.socket.send(udp.payload)?;
        } else {
            flow.socket.send_to(udp.payload, to)?;
        }
        Ok(())
    }

    /// Reads from a socket that has something, and sends it to the guest.
    pub fn read(&mut self, source: Source, link: &mut Link) {
        for _ in 0..BURST {
            if link.room() < ROOM_MIN {
                return;
            }
            let (socket, guest) = match source {
                Source::Flow(name) => match self.flows.get_mut(&name) {
                    Some(flow) => {
                        flow.last = Instant::now();
                        (&flow.socket, name.0)
                    }
                    None => return,
                },
                Source::Forward(n) => (&self.forwards[n].socket, self.forwards[n].forward.guest),
            };
            let (len, from) = match socket.recv_from(&mut self.buffer) {
                Ok(read) => read,
                // What was sent before didn't arrive; there may be more behind this.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(_) => return,
            };
            let from = match (source, from) {
                (Source::Flow((_, true)), _) => SocketAddrV4::new(NAME_SERVER, 53),
                (_, SocketAddr::V4(from)) => Routes::seen_by_guest(from),
                (_, SocketAddr::V6(_)) => continue,
            };
            if let Source::Forward(n) = source {
                let callers = &mut self.forwards[n].callers;
                if callers.back() != Some(&from) {
                    callers.retain(|caller| *caller != from);
                    callers.push_back(from);
                    let old = callers.len().saturating_sub(CALLERS_MAX);
                    callers.drain(..old);
                }
            }
            let payload = &self.buffer[..len.min(UDP_PAYLOAD_MAX)];
            self.identification = self.identification.wrapping_add(1);
            let udp = Udp { from, to: guest, payload };
            for packet in udp.packets(self.identification) {
                link.send(packet);
            }
        }
    }
}

fn is_unreachable(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable)
}
