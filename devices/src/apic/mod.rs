//! Local APICs, the I/O APIC, and the router that joins them with the 8259A pair.
//!
//! Problem: lines, message-signalled interrupts and inter-processor interrupts meet, from many
//! threads, in per-processor state. Scheme: [`local`] and [`io`] are plain state machines behind a
//! mutex each; what they want to tell each other is a [`Message`], or an [`Effect`] that the
//! [`router`] carries out after the lock is released. Lock order: 8259A pair, I/O APIC, one local
//! APIC at a time. Any thread.
//! Source: SDM vol. 3, "Advanced Programmable Interrupt Controller (APIC)".

use std::fmt;

mod bits;
mod io;
mod local;
pub mod router;
mod timer;

pub use io::VERSION as IO_VERSION;
pub use local::VERSION as LOCAL_VERSION;
pub use router::{ApicFeatures, InterruptRouter, IoApicMmio, PicPorts};
pub use timer::BUS_HZ;

/// Where the local APIC is after reset.
pub const LOCAL_APIC_BASE: u64 = 0xfee0_0000;
/// Where the I/O APIC is.
pub const IO_APIC_BASE: u64 = 0xfec0_0000;
/// Pins of the I/O APIC, which are GSI 0 to 23.
pub const IO_APIC_PINS: u32 = 24;

/// An MSR access that becomes #GP(0): no such register, reserved bits, or not in this mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the local APIC refuses this MSR access")
    }
}

impl std::error::Error for Refused {}

/// Delivery mode, bits 8-10 of LVT and redirection entries, ICR and MSI data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    Fixed,
    LowestPriority,
    Smi,
    Nmi,
    Init,
    StartUp,
    ExtInt,
    Reserved,
}

impl Delivery {
    /// From a register's bits 8-10.
    fn of(register: u32) -> Self {
        match (register >> 8) & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            7 => Self::ExtInt,
            _ => Self::Reserved,
        }
    }

    /// For people.
    fn name(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::LowestPriority => "lowpri",
            Self::Smi => "SMI",
            Self::Nmi => "NMI",
            Self::Init => "INIT",
            Self::StartUp => "SIPI",
            Self::ExtInt => "ExtINT",
            Self::Reserved => "reserved",
        }
    }
}

/// What LVT and redirection entries have in common, for people.
fn describe_entry(low: u32) -> String {
    let pick = |bit: u32, set: &'static str, clear: &'static str| {
        if low >> bit & 1 != 0 { set } else { clear }
    };
    format!(
        "vec={:<3} {} {:<5} {:<6} {}",
        low & 0xff,
        pick(13, "active-lo", "active-hi"),
        pick(15, "level", "edge"),
        pick(16, "masked", ""),
        Delivery::of(low).name()
    )
}

/// The numbers that are in a set, for people.
fn describe_set(set: impl Iterator<Item = u32>) -> String {
    let text = set.map(|number| format!(" {number}")).collect::<String>();
    if text.is_empty() { " (none)".to_owned() } else { text }
}

/// Who gets a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    Physical(u32),
    /// `wide`: a 32-bit logical x2APIC ID rather than an 8-bit one.
    Logical {
        mask: u32,
        wide: bool,
    },
    All,
    /// All but the processor of this index.
    AllBut(usize),
    /// The processor of this index.
    One(usize),
}

impl Destination {
    /// The 8-bit destination of redirection entries, MSIs and the xAPIC ICR.
    fn narrow(id: u8, logical: bool) -> Self {
        match (id, logical) {
            (0xff, _) => Self::All,
            (_, false) => Self::Physical(id.into()),
            (_, true) => Self::Logical { mask: id.into(), wide: false },
        }
    }

    /// The 32-bit destination of the x2APIC ICR.
    fn wide(id: u32, logical: bool) -> Self {
        match (id, logical) {
            (u32::MAX, _) => Self::All,
            (_, false) => Self::Physical(id),
            (_, true) => Self::Logical { mask: id, wide: true },
        }
    }
}

/// An interrupt on its way to local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    destination: Destination,
    delivery: Delivery,
    vector: u8,
    level_triggered: bool,
}

/// What a register write asks for outside of its local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Effect {
    None,
    /// A level-triggered vector ended: tell the I/O APIC.
    Eoi(u8),
    Send(Message),
}
