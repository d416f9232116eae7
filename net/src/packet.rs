//! IPv4, UDP and ICMP packets: taken apart with checks, put together with checksums.
//!
//! Invariant: what comes out of `parse` functions has sound lengths and checksums. Source: RFC 791, 768, 792.

use std::net::{Ipv4Addr, SocketAddrV4};

use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, IpAddress, IpProtocol, Ipv4Packet, UdpPacket,
};

/// Largest IPv4 packet in a frame.
pub const MTU: usize = 1500;
/// An IPv4 header without options.
pub const HEADER: usize = 20;
/// A UDP header.
pub const UDP_HEADER: usize = 8;
/// Largest payload of one UDP datagram.
pub const UDP_PAYLOAD_MAX: usize = 65535 - HEADER - UDP_HEADER;
const HOP_LIMIT: u8 = 64;

/// A UDP datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp<'a> {
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
    pub payload: &'a [u8],
}

impl<'a> Udp<'a> {
    /// Takes the payload of a whole IPv4 packet apart.
    pub fn parse(from: Ipv4Addr, to: Ipv4Addr, payload: &'a [u8]) -> Option<Self> {
        let packet = UdpPacket::new_checked(payload).ok()?;
        if !packet.verify_checksum(&IpAddress::Ipv4(from), &IpAddress::Ipv4(to)) {
            return None;
        }
        let from = SocketAddrV4::new(from, packet.src_port());
        let to = SocketAddrV4::new(to, packet.dst_port());
        Some(Self { from, to, payload: packet.payload() })
    }

    /// The packets that carry it: several if it doesn't fit one.
    pub fn packets(&self, identification: u16) -> Vec<Vec<u8>> {
        let mut datagram = vec![0; UDP_HEADER + self.payload.len().min(UDP_PAYLOAD_MAX)];
        let len = datagram.len();
        let mut packet = UdpPacket::new_unchecked(&mut datagram[..]);
        packet.set_src_port(self.from.port());
        packet.set_dst_port(self.to.port());
        packet.set_len(len as u16);
        packet.payload_mut().copy_from_slice(&self.payload[..len - UDP_HEADER]);
        packet.fill_checksum(&IpAddress::Ipv4(*self.from.ip()), &IpAddress::Ipv4(*self.to.ip()));
        packets(*self.from.ip(), *self.to.ip(), IpProtocol::Udp, &datagram, identification)
    }
}

/// A payload as packets: several if it doesn't fit one.
fn packets(
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: IpProtocol,
    payload: &[u8],
    identification: u16,
) -> Vec<Vec<u8>> {
    // A fragment's length is a multiple of eight, but for the last.
    let piece_max = (MTU - HEADER) / 8 * 8;
    let pieces = payload.chunks(piece_max);
    let last = pieces.len() - 1;
    let pieces = pieces.enumerate();
    pieces
        .map(|(n, piece)| {
            let place = Fragment { identification, offset: n * piece_max, more: n < last };
            ipv4(from, to, protocol, piece, place)
        })
        .collect()
}

/// Where a packet's payload belongs in a datagram.
#[derive(Clone, Copy, Debug, Default)]
struct Fragment {
    identification: u16,
    offset: usize,
    more: bool,
}

fn ipv4(
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: IpProtocol,
    payload: &[u8],
    place: Fragment,
) -> Vec<u8> {
    let mut bytes = vec![0; HEADER + payload.len()];
    let len = bytes.len() as u16;
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
    packet.set_version(4);
    packet.set_header_len(HEADER as u8);
    packet.set_total_len(len);
    packet.set_ident(place.identification);
    packet.set_more_frags(place.more);
    packet.set_frag_offset(place.offset as u16);
    packet.set_hop_limit(HOP_LIMIT);
    packet.set_next_header(protocol);
    packet.set_src_addr(from);
    packet.set_dst_addr(to);
    packet.payload_mut().copy_from_slice(payload);
    packet.fill_checksum();
    bytes
}

/// The packets of the answer to an echo request to one of our addresses.
pub fn echo_reply(from: Ipv4Addr, to: Ipv4Addr, request: &[u8]) -> Option<Vec<Vec<u8>>> {
    let packet = Icmpv4Packet::new_checked(request).ok()?;
    if packet.msg_type() != Icmpv4Message::EchoRequest || !packet.verify_checksum() {
        return None;
    }
    let mut reply = request.to_vec();
    let mut packet = Icmpv4Packet::new_unchecked(&mut reply[..]);
    packet.set_msg_type(Icmpv4Message::EchoReply);
    packet.fill_checksum();
    // Told from others by its number, if it is sent in pieces.
    let number = packet.echo_seq_no();
    Some(packets(to, from, IpProtocol::Icmp, &reply, number))
}

/// Tells the sender of `packet` that it can't be delivered.
pub fn unreachable(by: Ipv4Addr, packet: &[u8], why: Icmpv4DstUnreachable) -> Option<Vec<u8>> {
    let to = Ipv4Packet::new_checked(packet).ok()?.src_addr();
    // The header and the first eight bytes behind it, which tell the sender what it was.
    let quoted = &packet[..packet.len().min(HEADER + 8)];
    let mut bytes = vec![0; 8];
    bytes.extend_from_slice(quoted);
    let mut icmp = Icmpv4Packet::new_unchecked(&mut bytes[..]);
    icmp.set_msg_type(Icmpv4Message::DstUnreachable);
    icmp.set_msg_code(why.into());
    icmp.fill_checksum();
    Some(ipv4(by, to, IpProtocol::Icmp, &bytes, Fragment::default()))
}
