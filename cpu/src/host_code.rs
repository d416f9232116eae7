//! Where generated host code goes.
//!
//! Problem: vector and x87 instructions run on the host in small generated stubs, but this crate makes
//! no host calls and so has no executable memory. Scheme: it hands finished, position-independent
//! bytes to a [`HostCode`], which the machine makes from the code cache's arena. Invariant: published
//! code stays at its address, unchanged, until [`HostCode::reset`]. One instance per vCPU.

/// Executable memory for finished stubs.
pub trait HostCode: Send {
    /// Copies `code` into executable memory and returns its entry point, aligned to 16 bytes; `None`
    /// when there is no room left.
    fn publish(&mut self, code: &[u8]) -> Option<*const u8>;
    /// Forgets everything published.
    fn reset(&mut self);
}
