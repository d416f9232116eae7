//! Interrupt lines between devices, interrupt controllers and processors.
//!
//! Problem: a device raises a line without knowing which controller listens, and a local APIC signals
//! a processor without knowing its engine. Scheme: devices hold an [`IrqLine`]; controllers implement
//! [`IrqSink`]; the machine implements [`CpuSignals`] for each vCPU. Lock order: device, then
//! 8259/I/O APIC, then local APIC, then `CpuSignals` (which takes no device lock). Any thread.

use std::fmt;
use std::sync::Arc;

/// Receives line levels and message-signalled interrupts.
pub trait IrqSink: Send + Sync {
    /// Line `gsi` (global system interrupt; 0-15 are the ISA lines, as pins) has this level.
    fn set_level(&self, gsi: u32, level: bool);
    /// Line `gsi` has risen `count` times and is high. Each edge is to be an interrupt, however late its processor is:
    /// one that would fall together with another that isn't taken yet is owed, and comes when that is taken. A few are
    /// owed at most; on a masked line, none.
    fn edges(&self, gsi: u32, count: u64);
    /// Nothing is owed on line `gsi` any more.
    fn forget_edges(&self, gsi: u32);
    /// A memory write into the interrupt address range (SDM vol. 3, "Message Signalled Interrupts").
    fn message(&self, address: u64, data: u32);
}

/// What became of a request, from worst to best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Acceptance {
    /// Nobody takes it: masked, off, no such processor.
    Refused,
    /// The same was pending already: the two are one interrupt.
    Merged,
    Accepted,
}

/// One device's interrupt output.
#[derive(Clone)]
pub struct IrqLine {
    sink: Arc<dyn IrqSink>,
    gsi: u32,
}

impl IrqLine {
    #[must_use]
    pub fn new(sink: Arc<dyn IrqSink>, gsi: u32) -> Self {
        Self { sink, gsi }
    }
    pub fn set(&self, level: bool) {
        self.sink.set_level(self.gsi, level);
    }
    /// As [`IrqSink::edges`].
    pub fn edges(&self, count: u64) {
        self.sink.edges(self.gsi, count);
    }
    /// As [`IrqSink::forget_edges`].
    pub fn forget_edges(&self) {
        self.sink.forget_edges(self.gsi);
    }
    /// A rising and a falling edge.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IrqLine({})", self.gsi)
    }
}

/// The pins of one processor. Called with controller locks held: must not call back.
pub trait CpuSignals: Send + Sync {
    /// INTR: there is (or no longer is) an interrupt to acknowledge.
    fn intr(&self, level: bool);
    fn nmi(&self);
    fn init(&self);
    /// Start-up IPI with its vector.
    fn sipi(&self, vector: u8);
}
