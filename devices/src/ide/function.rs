//! The IDE function as PCI sees it: 00:01.1.
//!
//! Problem: the bus master's registers are at BAR 4, the rest is at the legacy ports. Scheme: timing registers
//! keep what is written, since drives here have no timing; BAR 4 has 8 bytes a channel. Invariant: the
//! function holds its channels, so that they live as long as it does. Any thread, under the function's lock.
//!
//! Source: Intel 82371FB/SB (PIIX/PIIX3) datasheet, "PCI Configuration Registers, IDE Interface".

use std::sync::Arc;

use vm_memory::GuestAddressSpace;

use super::channel::Handle;
use crate::clock::lock;
use crate::pci::config::{Bar, BarKind, ConfigSpace, Identity};
use crate::pci::{Function, IDE_TIMING, PciDevice};

/// The bus master's registers.
const BUS_MASTER: usize = 4;
/// Bytes of a channel there.
const CHANNEL_BYTES: u64 = 8;

struct Ide<M: GuestAddressSpace + Clone + Send + 'static> {
    channels: Vec<Arc<Handle<M>>>,
}

/// The function with these channels.
pub(super) fn ide<M>(channels: Vec<Arc<Handle<M>>>) -> Function
where
    M: GuestAddressSpace + Clone + Send + 'static,
{
    let mut config = ConfigSpace::new(Identity {
        vendor: 0x8086,
        device: 0x7010,
        // Bus master; both channels at the legacy ports, for good.
        class: 0x01_0180,
        revision: 0,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
    });
    config.add_bar(BUS_MASTER, Bar { kind: BarKind::Io, size: 2 * CHANNEL_BYTES });
    // Timing of both channels, and of their second drives.
    config.set_writable(IDE_TIMING, &[0xff, 0xf3, 0xff, 0xf3, 0xff]);
    let mut function = Function::new(config, Box::new(Ide { channels }));
    function.reset();
    function
}

impl<M: GuestAddressSpace + Clone + Send + 'static> PciDevice for Ide<M> {
    fn bar_read(&mut self, bar: u8, offset: u64, size: u8) -> u64 {
        if usize::from(bar) != BUS_MASTER {
            return u64::MAX;
        }
        (0..u64::from(size)).fold(0, |all, n| {
            let at = offset + n;
            let channel = self.channels.get((at / CHANNEL_BYTES) as usize);
            let byte = channel.map_or(0xff, |channel| {
                lock(&channel.channel).bus_master_read((at % CHANNEL_BYTES) as u8)
            });
            all | u64::from(byte) << (8 * n)
        })
    }

    fn bar_write(&mut self, bar: u8, offset: u64, size: u8, value: u64) {
        if usize::from(bar) != BUS_MASTER {
            return;
        }
        for n in 0..u64::from(size) {
            let at = offset + n;
            if let Some(channel) = self.channels.get((at / CHANNEL_BYTES) as usize) {
                let byte = (value >> (8 * n) & 0xff) as u8;
                lock(&channel.channel).bus_master_write((at % CHANNEL_BYTES) as u8, byte);
            }
        }
    }

    fn reset(&mut self, config: &mut ConfigSpace) {
        for offset in 0..5 {
            config.set_u8(IDE_TIMING + offset, 0);
        }
        for channel in &self.channels {
            lock(&channel.channel).power_on();
        }
    }
}
