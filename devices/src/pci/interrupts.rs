//! How a PCI function interrupts: MSI-X, MSI, or the INTx pins and their routing.
//!
//! Problem: worker threads of devices signal while vCPUs mask, unmask and re-aim vectors. Scheme:
//! [`Interrupts`], one per function, keeps table, pending bits and the pin's state under one lock and
//! delivers with it held, so that mask and delivery have an order. [`IntxRouter`], one per bus, wires
//! the pins of all functions to interrupt lines, since several pins share a line. Invariants: a
//! message goes out only if MSI-X is enabled, the function may master the bus, and neither mask is set;
//! a message held back by a mask stays pending; the pin is low while MSI-X or MSI is enabled. Where MSI is, its one
//! message goes out when the device would have raised the pin. Lock order:
//! function, `Interrupts`, router, interrupt controller. Any thread.
//!
//! Source: PCI Local Bus Specification 3.0, §6.8.1 "MSI Capability Structure", §6.8.2 "MSI-X Capability and
//! Table Structures", §2.2.6 "Interrupt Pins"; Intel 82371SB (PIIX3) datasheet, "PIRQRC[A:D]—PIRQx Route Control
//! Registers".

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::clock::lock;
use crate::irq::IrqSink;

/// First of the eight I/O APIC inputs that PCI pins use.
pub const INTX_GSI_BASE: u32 = 16;
const INTX_GSIS: usize = 8;
/// Interrupt pins of a device.
pub const INTX_PINS: u8 = 4;
/// Interrupt request lines of the PIIX3, for software without an I/O APIC.
const PIRQS: usize = 4;
/// PIRQ route control: not routed.
const PIRQ_DISABLED: u8 = 0x80;

/// The interrupt input of pin `pin` (0 is INTA#) of the device in `slot`.
#[must_use]
pub fn intx_gsi(slot: u8, pin: u8) -> u32 {
    INTX_GSI_BASE + (u32::from(slot) + u32::from(pin)) % INTX_GSIS as u32
}

fn pirq_of(slot: u8, pin: u8) -> usize {
    (usize::from(slot) + usize::from(pin) + PIRQS - 1) % PIRQS
}

/// Wires the INTx pins of a bus to I/O APIC inputs and, where PIRQ routing says so, to ISA lines.
pub struct IntxRouter {
    sink: Arc<dyn IrqSink>,
    state: Mutex<Lines>,
}

struct Lines {
    /// Pins that hold each I/O APIC input up.
    gsi: [u32; INTX_GSIS],
    /// Pins that hold each PIRQ up.
    pirq: [u32; PIRQS],
    route: [u8; PIRQS],
}

impl Lines {
    fn isa_level(&self, irq: u8) -> bool {
        (0..PIRQS).any(|i| self.route[i] == irq && self.pirq[i] != 0)
    }
}

impl fmt::Debug for IntxRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.state);
        f.debug_struct("IntxRouter").field("gsi", &state.gsi).field("pirq", &state.pirq).finish()
    }
}

impl IntxRouter {
    #[must_use]
    pub fn new(sink: Arc<dyn IrqSink>) -> Arc<Self> {
        let lines = Lines { gsi: [0; INTX_GSIS], pirq: [0; PIRQS], route: [PIRQ_DISABLED; PIRQS] };
        Arc::new(Self { sink, state: Mutex::new(lines) })
    }

    /// One pin changes. Each pin reports only changes, so that counting is right.
    fn change(&self, slot: u8, pin: u8, level: bool) {
        let mut lines = lock(&self.state);
        let gsi = intx_gsi(slot, pin);
        let count = &mut lines.gsi[(gsi - INTX_GSI_BASE) as usize];
        if step(count, level) {
            self.sink.set_level(gsi, level);
        }
        let pirq = pirq_of(slot, pin);
        let irq = lines.route[pirq];
        let before = lines.isa_level(irq);
        step(&mut lines.pirq[pirq], level);
        self.update_isa(&lines, irq, before);
    }

    /// Route control register of PIRQ `index` is written.
    pub fn set_route(&self, index: usize, value: u8) {
        let mut lines = lock(&self.state);
        let Some(&old) = lines.route.get(index) else { return };
        let (old_before, new_before) = (lines.isa_level(old), lines.isa_level(value));
        lines.route[index] = value;
        self.update_isa(&lines, old, old_before);
        if value != old {
            self.update_isa(&lines, value, new_before);
        }
    }

    fn update_isa(&self, lines: &Lines, irq: u8, before: bool) {
        let level = lines.isa_level(irq);
        // Bit 7 disables the route; values from 16 on are reserved.
        if irq < 16 && level != before {
            self.sink.set_level(u32::from(irq), level);
        }
    }
}

/// Counts a holder of a line in or out. True if the line's level changes.
fn step(count: &mut u32, level: bool) -> bool {
    if level {
        *count += 1;
        *count == 1
    } else {
        *count = count.saturating_sub(1);
        *count == 0
    }
}

/// A message table entry as in memory: address low and high, data, vector control.
type Entry = [u32; 4];
const ENTRY_MASKED: u32 = 1;

/// Bytes of one entry in the table.
pub const ENTRY_LEN: u64 = 16;

/// The interrupt side of one function.
pub struct Interrupts {
    sink: Arc<dyn IrqSink>,
    router: Arc<IntxRouter>,
    slot: u8,
    pin: u8,
    state: Mutex<State>,
}

struct State {
    table: Vec<Entry>,
    pending: Vec<bool>,
    enabled: bool,
    function_masked: bool,
    bus_master: bool,
    intx_disabled: bool,
    /// The device asks for INTx.
    intx: bool,
    /// The pin as the router knows it.
    pin_level: bool,
    /// While MSI is enabled.
    msi: Option<Message>,
}

/// A memory write that interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    pub address: u64,
    pub data: u32,
}

impl fmt::Debug for Interrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.state);
        f.debug_struct("Interrupts")
            .field("slot", &self.slot)
            .field("msix", &state.enabled)
            .field("intx", &state.intx)
            .finish_non_exhaustive()
    }
}

impl Interrupts {
    /// For pin `pin` (0-based) of the function in `slot`, with `vectors` MSI-X vectors.
    #[must_use]
    pub fn new(
        sink: Arc<dyn IrqSink>,
        router: Arc<IntxRouter>,
        slot: u8,
        pin: u8,
        vectors: u16,
    ) -> Arc<Self> {
        let state = State {
            table: vec![[0, 0, 0, ENTRY_MASKED]; usize::from(vectors)],
            pending: vec![false; usize::from(vectors)],
            enabled: false,
            function_masked: false,
            bus_master: false,
            intx_disabled: false,
            intx: false,
            pin_level: false,
            msi: None,
        };
        Arc::new(Self { sink, router, slot, pin, state: Mutex::new(state) })
    }

    #[must_use]
    pub fn vectors(&self) -> u16 {
        lock(&self.state).table.len().try_into().unwrap_or(u16::MAX)
    }

    #[must_use]
    pub fn pin(&self) -> u8 {
        self.pin
    }

    #[must_use]
    pub fn msix_enabled(&self) -> bool {
        lock(&self.state).enabled
    }

    /// Sends vector `vector`, or marks it pending. Without MSI-X, or past the table: nothing.
    pub fn signal(&self, vector: u16) {
        let mut state = lock(&self.state);
        let vector = usize::from(vector);
        if state.enabled && vector < state.table.len() {
            state.pending[vector] = true;
            self.deliver(&mut state);
        }
    }

    /// The device's INTx request.
    pub fn set_intx(&self, level: bool) {
        let mut state = lock(&self.state);
        let before = std::mem::replace(&mut state.intx, level);
        self.update_pin(&mut state);
        if level && !before {
            self.send(&state);
        }
    }

    /// MSI's part of the configuration space changed: its message, if it is enabled. What the device asks for already
    /// is sent then.
    pub fn configure_msi(&self, message: Option<Message>) {
        let mut state = lock(&self.state);
        let begins = std::mem::replace(&mut state.msi, message).is_none();
        self.update_pin(&mut state);
        if begins && state.intx {
            self.send(&state);
        }
    }

    /// Sends MSI's message, if it is enabled and the function may master the bus.
    fn send(&self, state: &State) {
        if let (Some(Message { address, data }), true) = (state.msi, state.bus_master) {
            self.sink.message(address, data);
        }
    }

    /// The interrupt status bit of the status register: set also while INTx is disabled.
    #[must_use]
    pub fn intx_requested(&self) -> bool {
        let state = lock(&self.state);
        state.intx && !state.enabled && state.msi.is_none()
    }

    /// The command register or MSI-X message control changed.
    pub fn configure(&self, enabled: bool, masked: bool, bus_master: bool, intx_disabled: bool) {
        let mut state = lock(&self.state);
        state.enabled = enabled;
        state.function_masked = masked;
        state.bus_master = bus_master;
        state.intx_disabled = intx_disabled;
        self.update_pin(&mut state);
        self.deliver(&mut state);
    }

    /// Power-on state.
    pub fn reset(&self) {
        let mut state = lock(&self.state);
        state.table.fill([0, 0, 0, ENTRY_MASKED]);
        state.pending.fill(false);
        state.intx = false;
        state.enabled = false;
        state.function_masked = false;
        state.bus_master = false;
        state.intx_disabled = false;
        state.msi = None;
        self.update_pin(&mut state);
    }

    fn update_pin(&self, state: &mut State) {
        let messages = state.enabled || state.msi.is_some();
        let level = state.intx && !messages && !state.intx_disabled;
        if level != state.pin_level {
            state.pin_level = level;
            self.router.change(self.slot, self.pin, level);
        }
    }

    /// Sends what is pending and not masked.
    fn deliver(&self, state: &mut State) {
        if !state.enabled || state.function_masked {
            return;
        }
        for (entry, pending) in state.table.iter().zip(&mut state.pending) {
            if *pending && entry[3] & ENTRY_MASKED == 0 {
                *pending = false;
                // A message is a memory write: without bus mastering it goes nowhere.
                if state.bus_master {
                    let address = u64::from(entry[1]) << 32 | u64::from(entry[0]);
                    self.sink.message(address, entry[2]);
                }
            }
        }
    }

    /// Reads `size` (1, 2 or 4) bytes of the table.
    #[must_use]
    pub fn read_table(&self, offset: u64, size: u8) -> u64 {
        let state = lock(&self.state);
        let index = usize::try_from(offset / ENTRY_LEN).unwrap_or(usize::MAX);
        let Some(entry) = state.table.get(index) else { return u64::MAX };
        let word = u64::from(entry[(offset / 4 % 4) as usize]) >> (8 * (offset % 4));
        word & (u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8))))
    }

    /// Writes an aligned double word of the table; other widths are ignored, as the specification
    /// leaves them undefined.
    pub fn write_table(&self, offset: u64, size: u8, value: u64) {
        let mut state = lock(&self.state);
        let index = usize::try_from(offset / ENTRY_LEN).unwrap_or(usize::MAX);
        let Some(entry) = state.table.get_mut(index) else { return };
        if size == 4 && offset.is_multiple_of(4) {
            let word = (offset / 4 % 4) as usize;
            let writable = match word {
                0 => !0b11,
                3 => ENTRY_MASKED,
                _ => u32::MAX,
            };
            entry[word] = (value & u64::from(writable)) as u32;
            self.deliver(&mut state);
        }
    }

    /// Reads `size` bytes of the pending bit array, which takes no writes.
    #[must_use]
    pub fn read_pending(&self, offset: u64, size: u8) -> u64 {
        let state = lock(&self.state);
        (0..u64::from(size) * 8)
            .filter(|bit| {
                let vector = usize::try_from(offset.saturating_mul(8).saturating_add(*bit));
                vector.is_ok_and(|vector| state.pending.get(vector) == Some(&true))
            })
            .fold(0, |bits, bit| bits | 1 << bit)
    }
}
