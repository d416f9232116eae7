//! IPv6, of which there is none: the one answer that says so.
//!
//! Problem: systems and boot firmware that speak IPv6 ask for routers and wait many seconds for an answer. Scheme:
//! a router advertisement with a lifetime of zero and no prefixes: nobody routes here, and there are no
//! addresses to be had. Source: RFC 4861, "Router Solicitation Message Format", "Router Advertisement
//! Message Format", "Processing Router Solicitations"; RFC 4443 (checksum).

/// The gateway's address on this link, fe80::2.
const GATEWAY: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

const HEADER: usize = 40;
const ICMP: u8 = 58;
/// Messages between neighbours have come over no router.
const HOP_LIMIT: u8 = 255;
const SOLICITATION: u8 = 133;
const SOLICITATION_LEN: usize = 8;
const ADVERTISEMENT: u8 = 134;
const ADVERTISEMENT_LEN: usize = 16;

/// The answer to a packet that asks for routers.
pub fn answer(packet: &[u8]) -> Option<Vec<u8>> {
    let (header, rest) = packet.split_first_chunk::<HEADER>()?;
    let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let message = rest.get(..len)?;
    let asks = header[0] >> 4 == 6
        && header[6] == ICMP
        && header[7] == HOP_LIMIT
        && len >= SOLICITATION_LEN
        && message[..2] == [SOLICITATION, 0]
        && checksum(&header[8..], message) == 0;
    if !asks {
        return None;
    }
    let from: [u8; 16] = *header[8..].first_chunk()?;
    // One without an address yet is told with all others.
    let to = if from == [0; 16] { ALL_NODES } else { from };
    let mut reply = vec![0x60, 0, 0, 0, 0, ADVERTISEMENT_LEN as u8, ICMP, HOP_LIMIT];
    reply.extend_from_slice(&GATEWAY);
    reply.extend_from_slice(&to);
    // No hop limit, no flags, no lifetime, no timers.
    let mut message = [0; ADVERTISEMENT_LEN];
    message[0] = ADVERTISEMENT;
    let check = checksum(&reply[8..], &message);
    message[2..4].copy_from_slice(&check.to_be_bytes());
    reply.extend_from_slice(&message);
    Some(reply)
}

/// The checksum of a message between `addresses`, which is 0 for one that has it.
fn checksum(addresses: &[u8], message: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u32 {
        let words = bytes.chunks(2).map(|pair| {
            u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))
        });
        words.sum()
    };
    // A message in one frame: the sum fits.
    let mut sum = words(addresses) + words(message) + message.len() as u32 + u32::from(ICMP);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As iPXE sends it, with its hardware address as an option.
    fn solicitation() -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 16, 58, 255];
        packet.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x50, 0x54, 0, 0xff, 0xfe, 0x12, 0x34, 0x56]);
        packet.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        packet.extend([133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        let check = checksum(&packet[8..40], &packet[40..]);
        packet[42..44].copy_from_slice(&check.to_be_bytes());
        packet
    }

    #[test]
    fn who_asks_for_a_router_hears_that_there_is_none() {
        let packet = solicitation();
        let reply = answer(&packet).expect("an answer");
        assert_eq!(reply.len(), 56);
        assert_eq!(reply[..8], [0x60, 0, 0, 0, 0, 16, 58, 255]);
        assert_eq!(reply[24..40], packet[8..24], "to the sender");
        assert_eq!(reply[40..42], [134, 0]);
        assert_eq!(reply[44..], [0; 12], "no lifetime, no prefix");
        assert_eq!(checksum(&reply[8..40], &reply[40..]), 0);
        let mut nameless = packet;
        nameless[8..24].fill(0);
        nameless[42..44].fill(0);
        let check = checksum(&nameless[8..40], &nameless[40..]);
        nameless[42..44].copy_from_slice(&check.to_be_bytes());
        assert_eq!(answer(&nameless).expect("an answer")[24..40], ALL_NODES);
    }

    #[test]
    fn nothing_else_is_answered() {
        let packet = solicitation();
        for len in 0..packet.len() {
            assert!(answer(&packet[..len]).is_none(), "{len}");
        }
        for at in [0, 6, 7, 12, 40, 41, 42, 50] {
            let mut odd = packet.clone();
            odd[at] ^= 0x10;
            assert!(answer(&odd).is_none(), "{at}");
        }
    }
}
