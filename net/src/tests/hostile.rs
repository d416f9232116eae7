//! What a hostile guest sends: the network lives on, and others' connections with it.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::thread;

use smoltcp::wire::{IpAddress, IpProtocol, Ipv4Packet, TcpPacket};
use xenolith_devices::net::NetBackend;

use super::{GATEWAY_MAC, Guest};
use crate::{GATEWAY, GUEST, NAME_SERVER, Resolver, Settings};

/// Marsaglia's xorshift, from a seed that never changes.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// A segment that gets past the checksums: few ports, numbers near those before, any flags and options.
fn segment(random: &mut Random, port: u16, last: &mut u32) -> Vec<u8> {
    let options = 4 * random.below(11) as usize;
    let payload = [0, 1, 10, 1400][random.below(4) as usize];
    let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0];
    bytes.extend(GUEST.octets());
    bytes.extend(GATEWAY.octets());
    bytes.extend(random.bytes(20 + options + payload));
    let len = bytes.len();
    let mut ip = Ipv4Packet::new_unchecked(&mut bytes[..]);
    ip.set_total_len(len as u16);
    ip.set_next_header(IpProtocol::Tcp);
    ip.fill_checksum();
    let mut tcp = TcpPacket::new_unchecked(&mut bytes[20..]);
    tcp.set_src_port(1000 + random.below(8) as u16);
    tcp.set_dst_port(port);
    *last = last.wrapping_add(random.below(3000) as u32).wrapping_sub(1000);
    if random.below(4) > 0 {
        tcp.set_seq_number(smoltcp::wire::TcpSeqNumber(*last as i32));
    }
    tcp.set_header_len(if random.below(20) > 0 { 20 + options as u8 } else { 8 });
    // Most often one of the flags that lead somewhere.
    match random.below(6) {
        0 | 1 => {
            tcp.clear_flags();
            tcp.set_syn(true);
        }
        2 | 3 => {
            tcp.clear_flags();
            tcp.set_ack(true);
        }
        4 => tcp.set_rst(false),
        _ => {}
    }
    tcp.fill_checksum(&IpAddress::Ipv4(GUEST), &IpAddress::Ipv4(GATEWAY));
    bytes
}

#[test]
fn odd_segments_and_datagrams_end_nothing_but_themselves() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(&[7; 5000]);
        }
    });
    let resolver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let resolver = Resolver::At(resolver.local_addr().expect("bound"));
    let tftp = Some(std::env::temp_dir());
    let guest = Guest::new(&Settings { tftp, resolver, ..Settings::default() });
    let (mut random, mut last) = (Random(0x1234_5678_9abc_def1), 0);
    for round in 0..150 {
        for _ in 0..60 {
            match random.below(4) {
                0 => {
                    let to = [(GATEWAY, 67), (GATEWAY, 69), (NAME_SERVER, 53)];
                    let to = to[random.below(3) as usize];
                    let payload = [&[0, random.below(6) as u8][..], &random.bytes(300)].concat();
                    guest.send_udp(random.below(3) as u16, to, &payload);
                }
                1 if round % 3 == 0 => {
                    let len = random.below(100) as usize;
                    let kind = [0x0800, 0x0806, 0x86dd][random.below(3) as usize];
                    guest.send(GATEWAY_MAC, kind, &random.bytes(len));
                }
                _ => {
                    let packet = segment(&mut random, port, &mut last);
                    guest.send(GATEWAY_MAC, 0x0800, &packet);
                }
            }
        }
        // It answers, so it lives; and what it sent is taken off its hands.
        guest.expect_none(|frame| frame.len() > 1514);
    }
    assert!(guest.port.ready(1));
}
