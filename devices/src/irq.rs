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
    /// A memory write into the interrupt address range (SDM vol. 3, "Message Signalled Interrupts").
    fn message(&self, address: u64, data: u32);
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
