//! What a person may choose of the network.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::str::FromStr;

use crate::GUEST;

/// The choices, all off by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The guest reaches nothing but DHCP, TFTP and who comes in by a forward.
    pub restrict: bool,
    /// Folder whose files TFTP gives out.
    pub tftp: Option<PathBuf>,
    /// The file that DHCP names for booting.
    pub bootfile: Option<String>,
    pub forwards: Vec<Forward>,
    /// File for all frames, in pcap's format.
    pub dump: Option<PathBuf>,
    pub resolver: Resolver,
}

/// Who answers questions about names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resolver {
    /// The first server of this computer's /etc/resolv.conf, read for each conversation.
    #[default]
    Host,
    At(SocketAddr),
}

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// What resolv.conf(5) says of a file without servers.
const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 53);

impl Resolver {
    /// The server's address now.
    #[must_use]
    pub fn address(self) -> SocketAddr {
        match self {
            Self::At(address) => address,
            Self::Host => std::fs::read_to_string(RESOLV_CONF)
                .map_or(LOCAL, |text| first_server(&text).unwrap_or(LOCAL)),
        }
    }
}

fn first_server(text: &str) -> Option<SocketAddr> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            return None;
        }
        Some(SocketAddr::new(words.next()?.parse().ok()?, 53))
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// A port of this computer that leads to one of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Forward {
    pub protocol: Protocol,
    pub host: SocketAddrV4,
    pub guest: SocketAddrV4,
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{protocol}:{}-{}", self.host, self.guest)
    }
}

impl FromStr for Forward {
    type Err = String;

    /// QEMU's form: `[tcp|udp]:[HOSTADDR]:HOSTPORT-[GUESTADDR]:GUESTPORT`. Without addresses: all of this
    /// computer's, and the guest's first.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "hostfwd={text}: the form is tcp:HOSTADDR:PORT-GUESTADDR:PORT (or udp), as in \
                 hostfwd=tcp:127.0.0.1:2222-:22"
            )
        };
        let (protocol, rest) = text.split_once(':').ok_or_else(wrong)?;
        let protocol = match protocol {
            "tcp" | "" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(wrong()),
        };
        let (host, guest) = rest.split_once('-').ok_or_else(wrong)?;
        let place = |text: &str, default: Ipv4Addr| {
            let (address, port) = text.rsplit_once(':').ok_or_else(wrong)?;
            let address = match address {
                "" => default,
                address => address.parse().map_err(|_| wrong())?,
            };
            match port.parse() {
                Ok(port) if port > 0 => Ok(SocketAddrV4::new(address, port)),
                _ => Err(wrong()),
            }
        };
        let forward = Self {
            protocol,
            host: place(host, Ipv4Addr::UNSPECIFIED)?,
            guest: place(guest, GUEST)?,
        };
        if !crate::is_inside(*forward.guest.ip()) {
            return Err(format!("hostfwd={text}: the guest's addresses are 10.0.2.15 and up"));
        }
        Ok(forward)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_read_as_qemu_reads_them() {
        let read = |text: &str| text.parse::<Forward>().map(|forward| forward.to_string());
        let same = |text: &str, long: &str| assert_eq!(read(text).as_deref(), Ok(long));
        same("tcp:127.0.0.1:2222-:22", "tcp:127.0.0.1:2222-10.0.2.15:22");
        same("udp::5353-10.0.2.16:53", "udp:0.0.0.0:5353-10.0.2.16:53");
        same(":127.0.0.1:80-:8080", "tcp:127.0.0.1:80-10.0.2.15:8080");
        for bad in [
            "",
            "tcp",
            "tcp:2222-22",
            "tcp::2222",
            "tcp::0-:22",
            "tcp::2222-:0",
            "tcp::65536-:22",
            "sctp::1-:1",
            "tcp:localhost:1-:1",
            "tcp:::1:1-:1",
            "tcp::1-192.168.0.1:1",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_server_of_resolv_conf_counts() {
        let text =
            "# nameserver 1.1.1.1\nsearch x\nnameserver fe80::1%eth0\nnameserver 9.9.9.9 x\n";
        assert_eq!(first_server(text), Some("9.9.9.9:53".parse().expect("an address")));
        assert_eq!(first_server("nameserver ::1"), Some("[::1]:53".parse().expect("an address")));
        assert_eq!(first_server("options x\nnameserver\n"), None);
    }
}
