//! The IDE function of the PIIX3: two channels of two drives, hard disks and CD-ROM drives.
//!
//! Problem: what is older than virtio boots from and is installed by IDE drives, and it must find them as on
//! the chip set. Scheme: a [`channel::Channel`] has the registers of a cable with its drives and of its half of
//! the bus master; what a command does with the image runs on the channel's own thread
//! ([`worker`]), meanwhile the drive shows BSY or waits for the bus master. [`ata`] has a disk's commands,
//! [`atapi`] those in packets, [`identify`] what drives say of themselves. Invariants: a channel has at most
//! one command under way; after a reset, and after the bus master was stopped, the thread touches neither
//! the guest's memory nor the image any more for what was under way; whatever software writes, registers keep
//! the meaning that they have on a drive, and a command that isn't known ends with ABRT. Lock order: function,
//! channel, desk. Any thread, under the channel's lock, but for the channel's thread.
//!
//! The legacy ports answer whatever the enable bits of the function's timing registers say, as on QEMU.
//!
//! Source: ATA/ATAPI-6 (T13/1410D); INCITS MMC-5, SPC-3 (packet commands); Intel 82371FB/SB (PIIX/PIIX3)
//! datasheet, "PCI Configuration Registers, IDE Interface"; "Programming Interface for Bus Master IDE
//! Controller, Revision 1.0".

mod ata;
mod atapi;
mod channel;
mod function;
mod identify;
mod worker;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use vm_memory::GuestAddressSpace;

use crate::bus::{Bus, Overlap};
use crate::disk::DiskImage;
use crate::irq::IrqLine;
use crate::pci::{PciError, PciRoot};

use channel::{Channel, Handle};

/// Interrupt requests of the two channels.
pub const IRQS: [u32; 2] = [14, 15];
/// Drives that the function has room for: by channel, then by the position on the cable.
pub const DRIVES: usize = 4;

/// First port of each channel's command block, and its control port.
const COMMAND_PORTS: [u64; 2] = [0x1f0, 0x170];
const CONTROL_PORTS: [u64; 2] = [0x3f6, 0x376];
const COMMAND_PORTS_LEN: u64 = 8;

/// A drive to fit.
#[derive(Clone)]
pub enum Drive {
    Disk(Arc<dyn DiskImage>),
    /// A CD-ROM drive with this disc in it. The image is never written.
    Cdrom(Arc<dyn DiskImage>),
}

impl std::fmt::Debug for Drive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Disk(_) => "Disk",
            Self::Cdrom(_) => "Cdrom",
        })
    }
}

/// Why the function can't be fitted.
#[derive(Debug, thiserror::Error)]
pub enum IdeError {
    #[error(transparent)]
    Ports(#[from] Overlap),
    #[error(transparent)]
    Pci(#[from] PciError),
    #[error("a channel's thread can't be started: {0}")]
    Thread(std::io::Error),
}

/// Fits the function with `drives` to the bus and its legacy ports to `ports`. With `threads`, what commands do
/// with images doesn't hold up the processor that gave them; without, they are done when the processor goes on.
///
/// # Errors
/// See [`IdeError`].
pub fn add<M>(
    root: &mut PciRoot,
    ports: &mut Bus,
    lines: [IrqLine; 2],
    memory: &M,
    drives: [Option<Drive>; DRIVES],
    threads: bool,
) -> Result<(), IdeError>
where
    M: GuestAddressSpace + Clone + Send + 'static,
{
    let mut drives = drives.into_iter();
    let mut handles = Vec::new();
    for (index, line) in lines.into_iter().enumerate() {
        let cable = [drives.next().flatten(), drives.next().flatten()];
        let channel = Channel::new(line, memory.clone(), cable, index);
        let handle = Handle::start(channel, threads).map_err(IdeError::Thread)?;
        channel::attach(&handle, ports, COMMAND_PORTS[index], CONTROL_PORTS[index])?;
        handles.push(handle);
    }
    root.add_ide(function::ide(handles))?;
    Ok(())
}
