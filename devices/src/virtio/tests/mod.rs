//! Virtio devices from the driver's side: a board with two buses and RAM, the `virtio-drivers` crate on
//! a transport that goes through PCI configuration space and BARs, and hostile drivers.

mod balloon;
pub(crate) mod board;
mod devices;
mod hostile;
mod legacy;
mod net;
