//! The two functions every i440FX machine has: host bridge and ISA bridge.
//!
//! Problem: guests look for a host bridge to believe in configuration mechanism #1, and for the ISA
//! bridge's interrupt routing. Scheme: the host bridge is identification plus storage (its shadowing
//! registers change nothing, as no firmware lives here); the ISA bridge drives [`IntxRouter`].
//! Invariants: none beyond the registers'. Any thread, under the function's lock.
//!
//! Source: Intel 82441FX (PMC) datasheet, "Register Description"; Intel 82371FB/SB (PIIX/PIIX3)
//! datasheet, "PCI Configuration Registers".

use std::sync::Arc;

use super::config::{ConfigSpace, HEADER_TYPE, Identity};
use super::function::{Function, PciDevice};
use super::interrupts::IntxRouter;

/// First of the four PIRQ route control registers.
pub(super) const PIRQRC: usize = 0x60;
const PIRQ_DISABLED: u8 = 0x80;

struct HostBridge;

impl PciDevice for HostBridge {}

/// 82441FX: 00:00.0.
pub(super) fn host_bridge() -> Function {
    let mut config = ConfigSpace::new(Identity {
        vendor: 0x8086,
        device: 0x1237,
        class: 0x06_0000,
        revision: 2,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
    });
    // Programmable attribute map and SMRAM control keep what is written.
    config.set_writable(0x59, &[0xff; 7]);
    config.set_writable(0x72, &[0x7f]);
    config.set_u8(0x72, 0x02);
    Function::new(config, Box::new(HostBridge))
}

struct IsaBridge {
    router: Arc<IntxRouter>,
}

impl PciDevice for IsaBridge {
    fn config_written(&mut self, config: &mut ConfigSpace, offset: usize, size: usize) {
        if offset < PIRQRC + 4 && offset + size > PIRQRC {
            for index in 0..4 {
                self.router.set_route(index, config.u8(PIRQRC + index));
            }
        }
    }

    fn reset(&mut self) {
        for index in 0..4 {
            self.router.set_route(index, PIRQ_DISABLED);
        }
    }
}

/// 82371SB function 0: 00:01.0.
pub(super) fn isa_bridge(router: Arc<IntxRouter>) -> Function {
    let mut config = ConfigSpace::new(Identity {
        vendor: 0x8086,
        device: 0x7000,
        class: 0x06_0100,
        revision: 0,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
    });
    // Multi-function: function 0 of a chip whose IDE and USB functions are not fitted.
    config.set_u8(HEADER_TYPE, 0x80);
    config.set_writable(PIRQRC, &[0x8f; 4]);
    // Deterministic latency control: Linux turns passive release on, and looks whether it is.
    config.set_writable(0x82, &[0x0f]);
    for index in 0..4 {
        config.set_u8(PIRQRC + index, PIRQ_DISABLED);
    }
    Function::new(config, Box::new(IsaBridge { router }))
}
