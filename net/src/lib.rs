//! A network for guests in an ordinary program: addresses, names, connections out and in, no privileges.
//!
//! Problem: a guest speaks Ethernet, and an ordinary program may only open sockets. Scheme: the guest is
//! alone on the network 10.0.2.0/24 with a gateway that ends each of its conversations here and
//! leads it on through a socket of ours: TCP by a TCP of our own (`tcp`), UDP datagram by datagram
//! (`udp`); addresses by DHCP, files by TFTP, names through this computer's resolver. One thread
//! (`stack`) does all of it, on sockets that never block; the card's side is [`port::Port`], two bounded
//! queues. Invariants: nothing that a guest or a peer sends makes memory grow without bound; a slow peer
//! holds up nobody but itself; an address of the gateway means this computer's loopback, and no other
//! address of 10.0.2.0/24 leaves the program.
//!
//! ```text
//! 10.0.2.2   gateway, and this computer's 127.0.0.1     10.0.2.3   name server
//! 10.0.2.15  the guest; further ones count on           52:55:0a:00:02:xx  their hardware addresses
//! ```
//!
//! Source: the addresses and options are QEMU's (docs/system/devices/net, "Using the user mode network
//! stack"), so that what people and images know holds here.

mod dhcp;
mod dump;
mod fragments;
mod ipv6;
mod link;
mod packet;
pub mod port;
pub mod settings;
mod stack;
mod tcp;
mod tftp;
mod udp;

#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::thread::JoinHandle;

pub use port::Port;
pub use settings::{Forward, Protocol, Resolver, Settings};

/// The network's number and the length of its prefix.
pub const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 0);
pub const PREFIX: u8 = 24;
/// This computer, as the guest sees it.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The name server.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The first address that a guest gets.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// Whether an address belongs to the network.
fn is_inside(address: Ipv4Addr) -> bool {
    address.octets()[..3] == NETWORK.octets()[..3]
}

/// Why there is no network. `Display` is one line that names the option.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("hostfwd={0}: cannot listen there: {1}")]
    Forward(Forward, String),
    #[error("{option}={path}: {reason}")]
    File { option: &'static str, path: String, reason: String },
    #[error("the host refuses: {0}")]
    Host(String),
}

/// An I/O error without the number that tells nobody anything.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

/// A running network. Dropping it ends its thread and every connection.
#[derive(Debug)]
pub struct Network {
    port: Arc<Port>,
    thread: Option<JoinHandle<()>>,
}

impl Network {
    /// Listens where `settings` say, and starts the thread.
    ///
    /// # Errors
    /// [`NetError`]: a port is taken, a file can't be used, or the host has no thread for us.
    pub fn start(settings: &Settings) -> Result<Self, NetError> {
        let port = Port::new().map_err(|error| NetError::Host(plain(&error)))?;
        let port = Arc::new(port);
        let stack = stack::Stack::new(settings, Arc::clone(&port))?;
        let thread = std::thread::Builder::new()
            .name("network".to_owned())
            .spawn(move || stack.run())
            .map_err(|error| NetError::Host(plain(&error)))?;
        Ok(Self { port, thread: Some(thread) })
    }

    /// Where a card is plugged in.
    #[must_use]
    pub fn port(&self) -> Arc<Port> {
        Arc::clone(&self.port)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.port.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the network's thread panicked");
        }
    }
}
