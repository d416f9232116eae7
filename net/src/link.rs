//! The Ethernet between the card and the rest: who has which address, and what goes out next.
//!
//! Scheme: the guest's hardware addresses are learnt from what it sends; a packet for one that isn't known
//! waits a while for the answer to a question. Frames of a round are gathered and given to the port at its
//! end. Invariants: the table and those waiting are bounded; packets come out whole and with a sound header.
//!
//! Source: RFC 826 (ARP), RFC 894 (IP over Ethernet).

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, IpProtocol, Ipv4Packet,
};

use crate::dump::Dump;
use crate::fragments::Fragments;
use crate::{GATEWAY, NAME_SERVER, Port, ipv6, is_inside};

const HEADER: usize = 14;
/// Addresses that are kept.
const NEIGHBOURS_MAX: usize = 64;
/// Packets that wait for a hardware address, and for one of them.
const WAITING_MAX: usize = 32;
const WAITING_FOR_ONE_MAX: usize = 4;
const ARP_LEN: usize = 28;

/// A whole packet from the guest.
#[derive(Debug)]
pub struct Packet {
    pub from: Ipv4Addr,
    pub to: Ipv4Addr,
    pub protocol: IpProtocol,
    /// The header, without options if it was put together from fragments, and the payload.
    pub bytes: Vec<u8>,
    payload_at: usize,
}

impl Packet {
    pub fn payload(&self) -> &[u8] {
        &self.bytes[self.payload_at..]
    }
}

#[derive(Debug)]
pub struct Link {
    port: Arc<Port>,
    dump: Option<Dump>,
    neighbours: HashMap<Ipv4Addr, EthernetAddress>,
    waiting: Vec<(Ipv4Addr, Vec<u8>)>,
    fragments: Fragments,
    out: Vec<Vec<u8>>,
}

/// The hardware address of one of our addresses.
fn mac_of(address: Ipv4Addr) -> EthernetAddress {
    let [a, b, c, d] = address.octets();
    EthernetAddress([0x52, 0x55, a, b, c, d])
}

fn frame(
    to: EthernetAddress,
    from: EthernetAddress,
    kind: EthernetProtocol,
    len: usize,
) -> Vec<u8> {
    let mut bytes = vec![0; HEADER + len];
    let repr = EthernetRepr { src_addr: from, dst_addr: to, ethertype: kind };
    repr.emit(&mut EthernetFrame::new_unchecked(&mut bytes[..]));
    bytes
}

impl Link {
    pub fn new(port: Arc<Port>, dump: Option<Dump>) -> Self {
        Self {
            port,
            dump,
            neighbours: HashMap::new(),
            waiting: Vec::new(),
            fragments: Fragments::default(),
            out: Vec::new(),
        }
    }

    /// Frames that can be sent now.
    pub fn room(&self) -> usize {
        self.port.room().saturating_sub(self.out.len())
    }

    /// Takes a frame from the card. A packet is for the caller, the rest is answered here.
    pub fn receive(&mut self, bytes: &[u8]) -> Option<Packet> {
        if let Some(dump) = &mut self.dump {
            dump.frame(bytes);
        }
        let ethernet = EthernetFrame::new_checked(bytes).ok()?;
        let mac = ethernet.src_addr();
        if !mac.is_unicast() {
            return None;
        }
        match ethernet.ethertype() {
            EthernetProtocol::Arp => {
                self.arp(ethernet.payload());
                None
            }
            EthernetProtocol::Ipv4 => self.ipv4(mac, ethernet.payload()),
            EthernetProtocol::Ipv6 => {
                if let Some(answer) = ipv6::answer(ethernet.payload()) {
                    self.put(mac, EthernetProtocol::Ipv6, &answer);
                }
                None
            }
            _ => None,
        }
    }

    fn arp(&mut self, bytes: &[u8]) {
        let packet = ArpPacket::new_checked(bytes).and_then(|packet| ArpRepr::parse(&packet));
        let Ok(ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        }) = packet
        else {
            return;
        };
        self.learn(source_protocol_addr, source_hardware_addr);
        if operation == ArpOperation::Request
            && [GATEWAY, NAME_SERVER].contains(&target_protocol_addr)
        {
            self.send_arp(
                ArpOperation::Reply,
                target_protocol_addr,
                source_hardware_addr,
                source_protocol_addr,
            );
        }
    }

    fn send_arp(
        &mut self,
        operation: ArpOperation,
        from: Ipv4Addr,
        mac: EthernetAddress,
        to: Ipv4Addr,
    ) {
        let asks = operation == ArpOperation::Request;
        let repr = ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: mac_of(from),
            source_protocol_addr: from,
            target_hardware_addr: if asks { EthernetAddress([0; 6]) } else { mac },
            target_protocol_addr: to,
        };
        let mut bytes = frame(mac, mac_of(from), EthernetProtocol::Arp, ARP_LEN);
        repr.emit(&mut ArpPacket::new_unchecked(&mut bytes[HEADER..]));
        self.out.push(bytes);
    }

    /// Remembers a guest's address, and sends what waited for it.
    fn learn(&mut self, address: Ipv4Addr, mac: EthernetAddress) {
        let ours = [GATEWAY, NAME_SERVER].contains(&address);
        if !is_inside(address) || ours || !mac.is_unicast() {
            return;
        }
        if self.neighbours.len() == NEIGHBOURS_MAX && !self.neighbours.contains_key(&address) {
            self.neighbours.clear();
        }
        self.neighbours.insert(address, mac);
        let (known, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|(to, _)| *to == address);
        self.waiting = waiting;
        let known: Vec<(Ipv4Addr, Vec<u8>)> = known;
        for (_, packet) in known {
            self.send_to(mac, &packet);
        }
    }

    fn ipv4(&mut self, mac: EthernetAddress, bytes: &[u8]) -> Option<Packet> {
        let packet = Ipv4Packet::new_checked(bytes).ok()?;
        if packet.version() != 4 || !packet.verify_checksum() {
            return None;
        }
        let (from, to, protocol) = (packet.src_addr(), packet.dst_addr(), packet.next_header());
        self.learn(from, mac);
        let (offset, more) = (usize::from(packet.frag_offset()), packet.more_frags());
        let header_len = usize::from(packet.header_len());
        let len = usize::from(packet.total_len());
        if offset == 0 && !more {
            let bytes = bytes[..len].to_vec();
            return Some(Packet { from, to, protocol, bytes, payload_at: header_len });
        }
        let name = (from, to, packet.ident(), protocol.into());
        let piece = &bytes[header_len..len];
        let payload = self.fragments.add(name, offset, more, piece, Instant::now())?;
        // The header of the last piece stands for all.
        let mut whole = bytes[..header_len].to_vec();
        whole.extend_from_slice(&payload);
        Some(Packet { from, to, protocol, bytes: whole, payload_at: header_len })
    }

    /// Sends a packet to the guest with its destination address.
    pub fn send(&mut self, packet: Vec<u8>) {
        let Ok(to) = Ipv4Packet::new_checked(&packet[..]).map(|packet| packet.dst_addr()) else {
            return;
        };
        if let Some(&mac) = self.neighbours.get(&to) {
            self.send_to(mac, &packet);
            return;
        }
        self.send_arp(ArpOperation::Request, GATEWAY, EthernetAddress::BROADCAST, to);
        let same = self.waiting.iter().filter(|(address, _)| *address == to).count();
        if same < WAITING_FOR_ONE_MAX && self.waiting.len() < WAITING_MAX {
            self.waiting.push((to, packet));
        }
    }

    /// Sends a packet to a hardware address.
    pub fn send_to(&mut self, mac: EthernetAddress, packet: &[u8]) {
        self.put(mac, EthernetProtocol::Ipv4, packet);
    }

    fn put(&mut self, mac: EthernetAddress, kind: EthernetProtocol, packet: &[u8]) {
        let mut bytes = frame(mac, mac_of(GATEWAY), kind, packet.len());
        bytes[HEADER..].copy_from_slice(packet);
        self.out.push(bytes);
    }

    /// Ends the round: everything goes to the card and into the dump.
    pub fn flush(&mut self) {
        if let Some(dump) = &mut self.dump {
            for frame in &self.out {
                dump.frame(frame);
            }
            dump.flush();
        }
        self.port.give(self.out.drain(..));
    }
}
