//! What isn't TCP, frame by frame.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use smoltcp::wire::Ipv4Packet;

use super::{GATEWAY_MAC, Guest, MAC, udp_in};
use crate::fragments::Fragments;
use crate::settings::{Forward, Protocol};
use crate::{GATEWAY, GUEST, NAME_SERVER, Network, Resolver, Settings};

fn sum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let sum: u32 = words.sum();
    !((sum & 0xffff) as u16).wrapping_add((sum >> 16) as u16)
}

/// An ICMP echo request as an IPv4 packet.
pub fn echo_request(from: Ipv4Addr, to: Ipv4Addr, mark: u16) -> Vec<u8> {
    let mut icmp = vec![8, 0, 0, 0, 0, 1];
    icmp.extend(mark.to_be_bytes());
    icmp.extend(b"payload!");
    let check = sum(&icmp);
    icmp[2..4].copy_from_slice(&check.to_be_bytes());
    let mut packet = vec![0x45, 0, 0, 36, 0, 0, 0, 0, 64, 1, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    let check = sum(&packet);
    packet[10..12].copy_from_slice(&check.to_be_bytes());
    packet.extend(icmp);
    packet
}

pub fn is_echo_reply(frame: &[u8], from: Ipv4Addr, mark: u16) -> bool {
    frame.len() >= 50
        && frame[12..14] == [8, 0]
        && frame[26..30] == from.octets()
        && frame[34..36] == [0, 0]
        && frame[40..42] == mark.to_be_bytes()
        && &frame[42..50] == b"payload!"
        && sum(&frame[34..50]) == 0
        && sum(&frame[14..34]) == 0
}

fn arp_request(target: Ipv4Addr) -> Vec<u8> {
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend(MAC);
    arp.extend(GUEST.octets());
    arp.extend([0; 6]);
    arp.extend(target.octets());
    arp
}

#[test]
fn the_gateways_addresses_are_found_and_no_others() {
    let guest = Guest::new(&Settings::default());
    for address in [Ipv4Addr::new(10, 0, 2, 9), GUEST, NAME_SERVER, GATEWAY] {
        guest.send([0xff; 6], 0x0806, &arp_request(address));
    }
    for address in [NAME_SERVER, GATEWAY] {
        let octets = address.octets();
        let mac = [0x52, 0x55, octets[0], octets[1], octets[2], octets[3]];
        let reply = guest.expect("an ARP reply", |frame| Some(frame.to_vec()));
        let mut expected = [&MAC[..], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]].concat();
        expected.extend([&mac[..], &octets, &MAC, &GUEST.octets()].concat());
        assert_eq!(reply, expected);
    }
    guest.expect_none(|frame| frame[12..14] == [8, 6]);
}

#[test]
fn the_gateway_and_the_name_server_answer_echoes() {
    let guest = Guest::new(&Settings::default());
    for (mark, address) in [(7, GATEWAY), (9, NAME_SERVER)] {
        guest.send(GATEWAY_MAC, 0x0800, &echo_request(GUEST, address, mark));
        guest.expect("an echo", |frame| {
            assert_eq!(frame[..6], MAC);
            is_echo_reply(frame, address, mark).then_some(())
        });
    }
    // One that was damaged on the way, and one for somebody else.
    let mut damaged = echo_request(GUEST, GATEWAY, 11);
    damaged[30] ^= 1;
    guest.send(GATEWAY_MAC, 0x0800, &damaged);
    guest.send(GATEWAY_MAC, 0x0800, &echo_request(GUEST, Ipv4Addr::new(10, 0, 2, 200), 12));
    guest.expect_none(|frame| frame.len() > 41 && [11, 12].contains(&frame[41]));
}

#[test]
fn a_large_echo_comes_back_in_pieces() {
    let guest = Guest::new(&Settings::default());
    let mut icmp = vec![8, 0, 0, 0, 0, 1, 0, 5];
    icmp.extend((0..20_000_u32).map(|n| (n % 251) as u8));
    let check = sum(&icmp);
    icmp[2..4].copy_from_slice(&check.to_be_bytes());
    for (n, piece) in icmp.chunks(1480).enumerate() {
        let more = u16::from((n + 1) * 1480 < icmp.len());
        let mut packet = vec![0x45, 0];
        packet.extend((piece.len() as u16 + 20).to_be_bytes());
        packet.extend([0, 9]);
        packet.extend((more << 13 | (n * 1480 / 8) as u16).to_be_bytes());
        packet.extend([64, 1, 0, 0]);
        packet.extend(GUEST.octets());
        packet.extend(GATEWAY.octets());
        let check = sum(&packet);
        packet[10..12].copy_from_slice(&check.to_be_bytes());
        packet.extend(piece);
        guest.send(GATEWAY_MAC, 0x0800, &packet);
    }
    let mut fragments = Fragments::default();
    let reply = guest.expect("the answer", |frame| {
        assert!(frame.len() <= 1514, "{} bytes in a frame", frame.len());
        let packet = Ipv4Packet::new_checked(frame.get(14..)?).ok()?;
        assert!(packet.verify_checksum());
        let name = (packet.src_addr(), packet.dst_addr(), packet.ident(), 1);
        let (offset, more) = (usize::from(packet.frag_offset()), packet.more_frags());
        fragments.add(name, offset, more, packet.payload(), Instant::now())
    });
    assert_eq!((reply[0], sum(&reply)), (0, 0));
    assert_eq!(reply[4..], icmp[4..]);
}

#[test]
fn a_guest_without_an_address_gets_one() {
    let guest = Guest::new(&Settings::default());
    let mut discover = vec![0; 240];
    discover[..3].copy_from_slice(&[1, 1, 6]);
    discover[28..34].copy_from_slice(&MAC);
    discover[236..].copy_from_slice(&[99, 130, 83, 99]);
    discover.extend([53, 1, 1, 255]);
    let from = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);
    let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, 67);
    let packets = crate::packet::Udp { from, to, payload: &discover }.packets(0);
    guest.send([0xff; 6], 0x0800, &packets[0]);
    let (from, to, offer) = guest.expect("an offer", |frame| {
        assert_eq!(frame[..6], MAC, "for this guest's card");
        udp_in(frame)
    });
    assert_eq!(from, SocketAddrV4::new(GATEWAY, 67));
    assert_eq!(to, SocketAddrV4::new(Ipv4Addr::BROADCAST, 68));
    assert_eq!(offer[16..20], GUEST.octets());
}

fn local(socket: &UdpSocket) -> u16 {
    socket.set_read_timeout(Some(super::PATIENCE)).expect("a time-out");
    socket.local_addr().expect("bound").port()
}

#[test]
fn datagrams_go_out_and_answers_come_back_also_large_ones() {
    let peer = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let port = local(&peer);
    let guest = Guest::new(&Settings::default());
    for len in [0, 1, 1472, 1473, 9000, 40000] {
        let payload: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
        guest.send_udp(5000, (GATEWAY, port), &payload);
        let mut buffer = vec![0; 65536];
        let (got, from) = peer.recv_from(&mut buffer).expect("a datagram");
        assert_eq!(buffer[..got], payload, "{len}");
        peer.send_to(&buffer[..got], from).expect("sent");
        // Puts the pieces together again.
        let mut fragments = Fragments::default();
        let mut frames = 0;
        let datagram = guest.expect("the answer", |frame| {
            frames += 1;
            assert!(frame.len() <= 1514);
            let packet = Ipv4Packet::new_checked(&frame[14..]).expect("sound");
            assert!(packet.verify_checksum());
            let name = (packet.src_addr(), packet.dst_addr(), packet.ident(), 17);
            let (offset, more) = (usize::from(packet.frag_offset()), packet.more_frags());
            assert_eq!((name.0, name.1), (GATEWAY, GUEST));
            fragments.add(name, offset, more, packet.payload(), Instant::now())
        });
        assert_eq!(frames, (len + 8usize).div_ceil(1480));
        assert_eq!(datagram[..2], port.to_be_bytes());
        assert_eq!(datagram[2..4], 5000_u16.to_be_bytes());
        assert_eq!(datagram[8..], payload, "{len}");
    }
}

#[test]
fn questions_about_names_go_to_the_resolver() {
    let resolver = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let stranger = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let at: SocketAddr = ([127, 0, 0, 1], local(&resolver)).into();
    let guest = Guest::new(&Settings { resolver: Resolver::At(at), ..Settings::default() });
    guest.send_udp(4000, (NAME_SERVER, 53), b"who is it?");
    let mut buffer = [0; 100];
    let (len, from) = resolver.recv_from(&mut buffer).expect("a question");
    assert_eq!(&buffer[..len], b"who is it?");
    stranger.send_to(b"me!", from).expect("sent");
    resolver.send_to(b"it is us", from).expect("sent");
    let (from, to, answer) = guest.expect("an answer", udp_in);
    assert_eq!((from, to), (SocketAddrV4::new(NAME_SERVER, 53), SocketAddrV4::new(GUEST, 4000)));
    assert_eq!(answer, b"it is us");
}

fn forward(protocol: Protocol, port: u16, guest: u16) -> Forward {
    Forward {
        protocol,
        host: SocketAddrV4::new(Ipv4Addr::LOCALHOST, port),
        guest: SocketAddrV4::new(GUEST, guest),
    }
}

#[test]
fn a_forwarded_datagram_reaches_a_restricted_guest_and_is_answered() {
    let peer = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let port = local(&peer);
    let (guest, way_in) = Guest::restricted(Protocol::Udp, 777);
    peer.send_to(b"knock", ("127.0.0.1", way_in)).expect("sent");
    // The guest has not spoken yet: it is asked for its address first.
    guest.expect("a question", |frame| (frame[12..14] == [8, 6]).then_some(()));
    let mut reply = arp_request(GATEWAY);
    reply[7] = 2;
    guest.send(GATEWAY_MAC, 0x0806, &reply);
    let (from, to, payload) = guest.expect("the knock", udp_in);
    assert_eq!((from, to), (SocketAddrV4::new(GATEWAY, port), SocketAddrV4::new(GUEST, 777)));
    assert_eq!(payload, b"knock");
    guest.send_udp(777, (GATEWAY, port), b"come in");
    let mut buffer = [0; 100];
    let (len, from) = peer.recv_from(&mut buffer).expect("an answer");
    assert_eq!((&buffer[..len], from.port()), (&b"come in"[..], way_in));
    // From any other port nothing leaves, and from this one nothing to who didn't ask.
    guest.send_udp(778, (GATEWAY, port), b"let me out");
    let stranger = UdpSocket::bind("127.0.0.1:0").expect("a port");
    guest.send_udp(777, (GATEWAY, local(&stranger)), b"let me out");
    guest.send_udp(777, (Ipv4Addr::LOCALHOST, port), b"let me out");
    guest.expect_none(|_| false);
    stranger.set_read_timeout(Some(Duration::from_millis(50))).expect("a time-out");
    assert!(stranger.recv_from(&mut buffer).is_err());
    peer.set_read_timeout(Some(Duration::from_millis(50))).expect("a time-out");
    assert!(peer.recv_from(&mut buffer).is_err());
}

/// A folder of its own, gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("xenolith-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_file_comes_by_tftp_and_everything_is_in_the_dump() {
    let folder = Folder::new("net-tftp");
    let content: Vec<u8> = (0..3000_u32).map(|i| (i % 253) as u8).collect();
    fs::write(folder.0.join("boot"), &content).expect("a file");
    let dump = folder.0.join("dump.pcap");
    let settings =
        Settings { tftp: Some(folder.0.clone()), dump: Some(dump.clone()), ..Settings::default() };
    let guest = Guest::new(&settings);
    guest.send_udp(2070, (GATEWAY, 69), b"\0\x01boot\0octet\0blksize\x001468\0");
    let (mut received, mut last) = (0, Vec::new());
    let mut next = || loop {
        let (from, to, packet) = guest.expect("a packet", udp_in);
        assert_eq!((from.port(), to.port()), (69, 2070));
        received += 1;
        // Who acknowledges late gets it again.
        if packet != last {
            last.clone_from(&packet);
            return packet;
        }
    };
    assert_eq!(next(), b"\0\x06blksize\x001468\0");
    let mut file = Vec::new();
    for block in 0..3 {
        guest.send_udp(2070, (GATEWAY, 69), &[0, 4, 0, block]);
        let packet = next();
        assert_eq!(packet[..4], [0, 3, 0, block + 1]);
        file.extend_from_slice(&packet[4..]);
    }
    assert_eq!(file, content);
    guest.send_udp(2070, (GATEWAY, 69), &[0, 4, 0, 3]);
    // From here on nothing comes but an echo.
    guest.expect_none(|_| {
        received += 1;
        false
    });
    // The request, acknowledgements and the echo.
    let sent = 1 + 4 + 1;

    let dump = fs::read(dump).expect("the dump");
    assert_eq!(dump[..8], [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0]);
    assert_eq!(dump[20..24], [1, 0, 0, 0], "Ethernet");
    let (mut at, mut frames) = (24, 0);
    while at < dump.len() {
        let len = u32::from_le_bytes(dump[at + 8..at + 12].try_into().expect("four")) as usize;
        assert_eq!(dump[at + 8..at + 12], dump[at + 12..at + 16]);
        assert!(dump[at + 16..][..12].windows(6).any(|mac| mac == MAC), "a frame of the guest's");
        at += 16 + len;
        frames += 1;
    }
    assert_eq!((at, frames), (dump.len(), sent + received));
}

#[test]
fn what_cannot_be_is_told_in_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port();
    let refused = |settings: Settings| {
        let text = Network::start(&settings).expect_err("refused").to_string();
        assert!(!text.contains('\n') && !text.contains("os error"), "{text}");
        text
    };
    let forwards = vec![forward(Protocol::Tcp, port, 22)];
    let text = refused(Settings { forwards, ..Settings::default() });
    let wanted = format!("hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:22");
    assert!(text.contains(&wanted) && text.contains("in use"), "{text}");
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let forwards = vec![forward(Protocol::Udp, local(&taken), 22)];
    assert!(refused(Settings { forwards, ..Settings::default() }).contains("hostfwd=udp"));
    let missing = Some(PathBuf::from("/nonexistent/x"));
    let text = refused(Settings { tftp: missing.clone(), ..Settings::default() });
    assert!(text.starts_with("tftp=/nonexistent/x: "), "{text}");
    let text = refused(Settings { dump: missing, ..Settings::default() });
    assert!(text.starts_with("dump=/nonexistent/x: "), "{text}");
}

#[test]
fn odd_frames_are_dropped() {
    let guest = Guest::new(&Settings::default());
    let sound = echo_request(GUEST, GATEWAY, 1);
    for len in 0..sound.len() {
        guest.send(GATEWAY_MAC, 0x0800, &sound[..len]);
        guest.send(GATEWAY_MAC, 0x0806, &arp_request(GATEWAY)[..len.min(27)]);
        guest.expect_none(|frame| is_echo_reply(frame, GATEWAY, 1));
    }
    for at in 0..20 {
        for bit in 0..8 {
            let mut odd = sound.clone();
            odd[at] ^= 1 << bit;
            guest.send(GATEWAY_MAC, 0x0800, &odd);
        }
        guest.expect_none(|frame| is_echo_reply(frame, GATEWAY, 1));
    }
    guest.send(GATEWAY_MAC, 0x86dd, &[0x60; 40]);
    guest.expect_none(|_| false);
}
