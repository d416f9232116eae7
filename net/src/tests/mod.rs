//! Frames in, frames out: the network as a guest and its peers see it.
//!
//! [`Guest`] is the card's side of a running network, by hand; [`tcp`] puts another TCP there.

mod hostile;
mod tcp;
mod wire;

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use xenolith_devices::clock::lock;
use xenolith_devices::net::NetBackend;

use crate::packet::Udp;
use crate::settings::{Forward, Protocol};
use crate::{GUEST, Network, Port, Settings};

/// For anything that happens on another thread of a busy computer.
const PATIENCE: Duration = Duration::from_secs(60);

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];

/// A network, and the end of its wire.
struct Guest {
    port: Arc<Port>,
    /// Rings when there are frames.
    rung: Arc<(Mutex<bool>, Condvar)>,
    _network: Network,
}

impl Guest {
    fn new(settings: &Settings) -> Self {
        Self::on(Network::start(settings).expect("it starts"))
    }

    /// A network to which only this port of the host's, which is free, leads in: to one of the guest's.
    fn restricted(protocol: Protocol, guest_port: u16) -> (Self, u16) {
        let guest = SocketAddrV4::new(GUEST, guest_port);
        // Another program may be faster to take a port that is free.
        for _ in 0..20 {
            let free = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
            let port = free.expect("a port").port();
            let host = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
            let forwards = vec![Forward { protocol, host, guest }];
            let settings = Settings { restrict: true, forwards, ..Settings::default() };
            if let Ok(network) = Network::start(&settings) {
                return (Self::on(network), port);
            }
        }
        panic!("no port can be forwarded");
    }

    fn on(network: Network) -> Self {
        let port = network.port();
        let rung = Arc::new((Mutex::new(false), Condvar::new()));
        let ring = Arc::clone(&rung);
        port.plug(Box::new(move || {
            *lock(&ring.0) = true;
            ring.1.notify_all();
        }));
        Self { port, rung, _network: network }
    }

    /// Sends a frame with this destination, type and content.
    fn send(&self, to: [u8; 6], kind: u16, content: &[u8]) {
        let mut frame = [&to[..], &MAC, &kind.to_be_bytes(), content].concat();
        frame.resize(frame.len().max(60), 0);
        assert!(self.port.ready(1));
        self.port.send(&frame);
    }

    fn send_udp(&self, from: u16, to: (Ipv4Addr, u16), payload: &[u8]) {
        let from = SocketAddrV4::new(GUEST, from);
        let to = SocketAddrV4::new(to.0, to.1);
        for packet in (Udp { from, to, payload }).packets(77) {
            self.send(GATEWAY_MAC, 0x0800, &packet);
        }
    }

    /// Waits for the network's next sign of life, or until `deadline`.
    fn sleep(&self, deadline: Instant) {
        let mut rung = lock(&self.rung.0);
        let left = deadline.saturating_duration_since(Instant::now());
        if !*rung {
            rung = self.rung.1.wait_timeout(rung, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *rung = false;
    }

    /// The next frame that `wanted` makes something of.
    fn expect<T>(&self, what: &str, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            while let Some(frame) = self.port.receive() {
                if let Some(found) = wanted(&frame) {
                    return found;
                }
            }
            assert!(Instant::now() < deadline, "never: {what}");
            self.sleep(deadline);
        }
    }

    /// Asserts that all frames until the network answers an echo are none that `unwanted` knows.
    fn expect_none(&self, mut unwanted: impl FnMut(&[u8]) -> bool) {
        let mark = 0xfff0;
        self.send(GATEWAY_MAC, 0x0800, &wire::echo_request(GUEST, crate::GATEWAY, mark));
        self.expect("an echo", |frame| {
            assert!(!unwanted(frame), "{frame:02x?}");
            wire::is_echo_reply(frame, crate::GATEWAY, mark).then_some(())
        });
    }
}

/// The UDP datagram in a frame, if it has a whole one: addresses and payload.
fn udp_in(frame: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4, Vec<u8>)> {
    let packet = smoltcp::wire::Ipv4Packet::new_checked(frame.get(14..)?).ok()?;
    if frame[12..14] != [8, 0] || !packet.verify_checksum() || u8::from(packet.next_header()) != 17
    {
        return None;
    }
    let udp = Udp::parse(packet.src_addr(), packet.dst_addr(), packet.payload())?;
    Some((udp.from, udp.to, udp.payload.to_vec()))
}
