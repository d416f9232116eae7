//! Addresses for guests: a DHCP server, which answers BOOTP as well.
//!
//! Scheme: each hardware address has its lease from the first time it asks on, for the life of the
//! network. Invariants: no two have the same address; there are [`LEASES_MAX`] at most; a client that wants
//! another address than its own is refused. Source: RFC 2131 (DHCP), RFC 2132 (options), RFC 951 (BOOTP).

use std::net::Ipv4Addr;

use smoltcp::wire::EthernetAddress;

use crate::{GATEWAY, GUEST, NAME_SERVER};

pub const SERVER_PORT: u16 = 67;
pub const CLIENT_PORT: u16 = 68;

/// As many as QEMU has.
const LEASES_MAX: usize = 16;
const LEASE_SECONDS: u32 = 86400;

/// Bytes before the options: the BOOTP message and the cookie.
const FIXED: usize = 240;
/// Least length of a message (RFC 951).
const LEN_MIN: usize = 300;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const BOOT_REQUEST: u8 = 1;
const BOOT_REPLY: u8 = 2;
/// Length of the field for the boot file's name, with its terminator.
const FILE_LEN: usize = 128;
const BROADCAST_FLAG: u8 = 0x80;

mod option {
    pub const MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const NAME_SERVER: u8 = 6;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE: u8 = 51;
    pub const KIND: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const BOOT_FILE: u8 = 67;
    pub const END: u8 = 255;
}

mod kind {
    pub const DISCOVER: u8 = 1;
    pub const OFFER: u8 = 2;
    pub const REQUEST: u8 = 3;
    pub const ACK: u8 = 5;
    pub const NAK: u8 = 6;
    pub const INFORM: u8 = 8;
}

#[derive(Debug)]
pub struct Dhcp {
    /// The lease is the place.
    leases: Vec<[u8; 6]>,
    boot_file: Vec<u8>,
    /// A guest that is kept in has no router and no name server.
    restrict: bool,
}

/// An answer, and whom it is for.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub to: Ipv4Addr,
    pub mac: EthernetAddress,
    pub message: Vec<u8>,
}

impl Dhcp {
    /// A server that names `boot_file`, of which 127 bytes count.
    pub fn new(boot_file: Option<&str>, restrict: bool) -> Self {
        let mut boot_file = boot_file.unwrap_or_default().as_bytes().to_vec();
        boot_file.truncate(FILE_LEN - 1);
        Self { leases: Vec::new(), boot_file, restrict }
    }

    /// The address of `mac`, a new one if there still is one.
    fn lease(&mut self, mac: [u8; 6]) -> Option<Ipv4Addr> {
        let at = self.leases.iter().position(|&one| one == mac).or_else(|| {
            (self.leases.len() < LEASES_MAX).then(|| {
                self.leases.push(mac);
                self.leases.len() - 1
            })
        })?;
        Some(Ipv4Addr::from_bits(GUEST.to_bits() + at as u32))
    }

    /// Answers a message, if there is something to say.
    pub fn answer(&mut self, message: &[u8]) -> Option<Answer> {
        // Ethernet, with its six bytes.
        if message.len() < FIXED - 4 || message[..3] != [BOOT_REQUEST, 1, 6] {
            return None;
        }
        let mac: [u8; 6] = *message[28..].first_chunk()?;
        let client = address(&message[12..])?;
        let options = message.get(FIXED - 4..).filter(|end| end.starts_with(&COOKIE));
        let options = options.map_or(&[][..], |end| &end[4..]);
        let asked = find(options, option::KIND).and_then(|value| value.first().copied());
        let server = find(options, option::SERVER).and_then(address);
        if server.is_some_and(|server| server != GATEWAY) {
            return None;
        }
        let reply = match asked {
            None => None,
            Some(kind::DISCOVER) => Some(kind::OFFER),
            Some(kind::REQUEST) => {
                let wanted = find(options, option::REQUESTED_ADDRESS).and_then(address);
                let wanted = wanted.unwrap_or(client);
                if self.lease(mac) == Some(wanted) { Some(kind::ACK) } else { Some(kind::NAK) }
            }
            Some(kind::INFORM) => Some(kind::ACK),
            // Declined and released leases stay who they are.
            Some(_) => return None,
        };
        let refused = reply == Some(kind::NAK);
        let own = if asked == Some(kind::INFORM) || refused {
            Ipv4Addr::UNSPECIFIED
        } else {
            self.lease(mac)?
        };
        let message = self.reply(message, reply, own, asked == Some(kind::INFORM));
        let wants_broadcast = message[10] & BROADCAST_FLAG != 0;
        let to = if client.is_unspecified() || refused { Ipv4Addr::BROADCAST } else { client };
        let mac = EthernetAddress(mac);
        let mac = if wants_broadcast || refused { EthernetAddress::BROADCAST } else { mac };
        Some(Answer { to, mac, message })
    }

    fn reply(&self, request: &[u8], kind: Option<u8>, own: Ipv4Addr, informs: bool) -> Vec<u8> {
        let mut reply = vec![0; FIXED];
        // Kind of address, transaction, flags, client's address, relay, hardware address.
        reply[..16].copy_from_slice(&request[..16]);
        reply[24..44].copy_from_slice(&request[24..44]);
        reply[0] = BOOT_REPLY;
        reply[3] = 0;
        reply[8..10].fill(0);
        reply[16..20].copy_from_slice(&own.octets());
        reply[236..240].copy_from_slice(&COOKIE);
        let mut put = |code: u8, value: &[u8]| {
            reply.extend([code, value.len() as u8]);
            reply.extend_from_slice(value);
        };
        if let Some(kind) = kind {
            put(option::KIND, &[kind]);
            put(option::SERVER, &GATEWAY.octets());
        }
        if kind != Some(self::kind::NAK) {
            put(option::MASK, &[255, 255, 255, 0]);
            if !self.restrict {
                put(option::ROUTER, &GATEWAY.octets());
                put(option::NAME_SERVER, &NAME_SERVER.octets());
            }
            if kind.is_some() && !informs {
                put(option::LEASE, &LEASE_SECONDS.to_be_bytes());
            }
            if !self.boot_file.is_empty() {
                put(option::BOOT_FILE, &self.boot_file);
            }
            // The next server is this one.
            reply[20..24].copy_from_slice(&GATEWAY.octets());
            reply[108..108 + self.boot_file.len()].copy_from_slice(&self.boot_file);
        }
        reply.push(option::END);
        reply.resize(reply.len().max(LEN_MIN), 0);
        reply
    }
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    bytes.first_chunk::<4>().map(|&octets| octets.into())
}

/// The value of an option.
fn find(mut options: &[u8], wanted: u8) -> Option<&[u8]> {
    loop {
        match *options {
            [0, ref rest @ ..] => options = rest,
            [option::END, ..] | [] | [_] => return None,
            [code, len, ref rest @ ..] => {
                let value = rest.get(..usize::from(len))?;
                if code == wanted {
                    return Some(value);
                }
                options = &rest[usize::from(len)..];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

    fn message(mac: [u8; 6], options: &[u8]) -> Vec<u8> {
        let mut message = vec![0; FIXED];
        message[..3].copy_from_slice(&[1, 1, 6]);
        message[4..8].copy_from_slice(b"xid!");
        message[28..34].copy_from_slice(&mac);
        message[236..].copy_from_slice(&COOKIE);
        message.extend_from_slice(options);
        message.push(255);
        message
    }

    fn option_of(answer: &Answer, code: u8) -> Option<&[u8]> {
        find(&answer.message[FIXED..], code)
    }

    #[test]
    fn a_client_gets_an_address_and_the_same_again() {
        let mut dhcp = Dhcp::new(Some("boot.ipxe"), false);
        let offer = dhcp.answer(&message(MAC, &[53, 1, 1])).expect("an offer");
        assert_eq!(offer.message[..8], [2, 1, 6, 0, b'x', b'i', b'd', b'!']);
        assert_eq!(offer.message[16..24], [10, 0, 2, 15, 10, 0, 2, 2]);
        assert_eq!(offer.message[108..118], *b"boot.ipxe\0");
        assert_eq!(offer.message.len(), 300);
        assert_eq!((offer.to, offer.mac), (Ipv4Addr::BROADCAST, EthernetAddress(MAC)));
        for (code, value) in [
            (53, &[2][..]),
            (54, &[10, 0, 2, 2]),
            (1, &[255, 255, 255, 0]),
            (3, &[10, 0, 2, 2]),
            (6, &[10, 0, 2, 3]),
            (51, &86400_u32.to_be_bytes()),
            (67, b"boot.ipxe"),
        ] {
            assert_eq!(option_of(&offer, code), Some(value), "{code}");
        }
        let request = message(MAC, &[0, 53, 1, 3, 50, 4, 10, 0, 2, 15, 54, 4, 10, 0, 2, 2]);
        let ack = dhcp.answer(&request).expect("an acknowledgement");
        assert_eq!(option_of(&ack, 53), Some(&[5][..]));
        let other = dhcp.answer(&message([2; 6], &[53, 1, 1])).expect("an offer");
        assert_eq!(other.message[16..20], [10, 0, 2, 16]);
        let again = dhcp.answer(&message(MAC, &[53, 1, 1])).expect("an offer");
        assert_eq!(again.message[16..20], [10, 0, 2, 15]);
    }

    #[test]
    fn renewals_informs_and_plain_bootp_are_answered() {
        let mut dhcp = Dhcp::new(None, false);
        let mut renewal = message(MAC, &[53, 1, 3]);
        renewal[12..16].copy_from_slice(&[10, 0, 2, 15]);
        let ack = dhcp.answer(&renewal).expect("an acknowledgement");
        assert_eq!((ack.to, ack.mac), (GUEST, EthernetAddress(MAC)));
        assert_eq!(option_of(&ack, 53), Some(&[5][..]));
        let mut inform = message([2; 6], &[53, 1, 8]);
        inform[12..16].copy_from_slice(&[10, 0, 2, 99]);
        let ack = dhcp.answer(&inform).expect("an acknowledgement");
        assert_eq!(ack.message[16..20], [0; 4]);
        assert_eq!(option_of(&ack, 51), None);
        let mut bootp = message(MAC, &[]);
        bootp[10] = 0x80;
        bootp.truncate(FIXED - 4);
        let reply = dhcp.answer(&bootp).expect("a reply");
        assert_eq!(reply.message[16..20], [10, 0, 2, 15]);
        assert_eq!(option_of(&reply, 53), None);
        assert_eq!(reply.mac, EthernetAddress::BROADCAST);
    }

    #[test]
    fn another_address_is_refused_and_another_server_left_alone() {
        let mut dhcp = Dhcp::new(None, true);
        let answer = dhcp.answer(&message(MAC, &[53, 1, 3, 50, 4, 192, 168, 0, 7]));
        let nak = answer.expect("a refusal");
        assert_eq!(option_of(&nak, 53), Some(&[6][..]));
        assert_eq!((nak.to, nak.mac), (Ipv4Addr::BROADCAST, EthernetAddress::BROADCAST));
        assert_eq!(nak.message[16..24], [0; 8]);
        assert!(dhcp.answer(&message(MAC, &[53, 1, 3, 54, 4, 10, 0, 2, 9])).is_none());
        assert!(dhcp.answer(&message(MAC, &[53, 1, 7])).is_none(), "a release");
        let offer = dhcp.answer(&message(MAC, &[53, 1, 1])).expect("an offer");
        assert_eq!((option_of(&offer, 3), option_of(&offer, 6)), (None, None), "restricted");
    }

    #[test]
    fn odd_messages_and_too_many_clients_get_nothing() {
        let mut dhcp = Dhcp::new(None, false);
        let sound = message(MAC, &[53, 1, 1]);
        for len in 0..FIXED - 4 {
            assert!(dhcp.answer(&sound[..len]).is_none(), "{len}");
        }
        for (at, value) in [(0, 2), (1, 6), (2, 16)] {
            let mut odd = sound.clone();
            odd[at] = value;
            assert!(dhcp.answer(&odd).is_none());
        }
        assert!(dhcp.answer(&message(MAC, &[53, 200, 1])).is_some(), "taken for BOOTP");
        for n in 1..=20 {
            let answer = dhcp.answer(&message([n; 6], &[53, 1, 1]));
            assert_eq!(answer.is_some(), n < 16, "{n}");
        }
        assert!(Dhcp::new(Some(&"x".repeat(300)), false).answer(&sound).is_some());
    }
}
