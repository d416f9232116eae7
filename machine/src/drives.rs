//! The drives of a machine: which image is attached where, and in which order firmware tries them.
//!
//! Problem: a person names files; the guest sees controllers, positions on cables and a boot order. Scheme:
//! virtio drives get PCI slots in order; IDE disks fill the cables from the first on, and a CD-ROM drive takes
//! the first position of the second cable, as on QEMU's machine of this kind; firmware is told
//! hard disks first, in the order in which they were named, then floppies, then discs, and of disks' geometry
//! what it wouldn't find by itself. Invariant: every drive has its
//! place, since [`crate::Config::check`] has counted them. Thread: the machine's. Source: Open Firmware device
//! paths as in SeaBIOS, docs/Runtime_config, "bootorder".

use std::sync::{Arc, Mutex};

use xenolith_devices::bus::Bus;
use xenolith_devices::clock::lock;
use xenolith_devices::disk::{self, DiskImage, Told};
use xenolith_devices::floppy::{self, Fdc};
use xenolith_devices::ide::{self, Drive};
use xenolith_devices::irq::IrqLine;
use xenolith_devices::legacy::dma::DmaChannels;
use xenolith_devices::legacy::rtc::Rtc;
use xenolith_devices::pci::PciRoot;
use xenolith_devices::virtio::{self, Interfaces};
use xenolith_mmu::GuestRam;

use crate::config::{Attachment, ConfigError, DiskConfig};
use crate::geometry::{self, Geometry};

/// An open disk image.
pub type Disk = Arc<dyn DiskImage>;

/// Opens the disks, which stay open over resets.
///
/// # Errors
/// One can't be opened.
pub fn open_disks(disks: &[DiskConfig]) -> Result<Vec<Disk>, ConfigError> {
    disks
        .iter()
        .map(|disk| {
            let opened = match disk.attachment {
                Attachment::Cdrom => disk::open_disc(&disk.path, disk.options.format),
                _ => disk::open(&disk.path, disk.options),
            };
            match opened {
                Ok(image) => Ok(Arc::new(Told::new(image, &disk.path)) as _),
                Err(error) => Err(ConfigError::Disk {
                    option: disk.option(),
                    path: disk.path.clone(),
                    reason: error.to_string(),
                }),
            }
        })
        .collect()
}

/// Positions in which CD-ROM drives and disks look for a free one.
const CDROM_POSITIONS: [usize; ide::DRIVES] = [2, 3, 1, 0];
const DISK_POSITIONS: [usize; ide::DRIVES] = [0, 1, 2, 3];

/// The IDE position of each drive that has one.
fn positions(attachments: &[Attachment]) -> Vec<Option<usize>> {
    let mut found = vec![None; attachments.len()];
    let mut taken = [false; ide::DRIVES];
    for (wanted, order) in [(Attachment::Cdrom, CDROM_POSITIONS), (Attachment::Ide, DISK_POSITIONS)]
    {
        for (n, _) in attachments.iter().enumerate().filter(|&(_, &is)| is == wanted) {
            let free = order.into_iter().find(|&position| !taken[position]);
            if let Some(position) = free {
                taken[position] = true;
                found[n] = Some(position);
            }
        }
    }
    found
}

/// What drives are wired to.
pub struct Sockets<'a> {
    pub root: &'a mut PciRoot,
    pub ports: &'a mut Bus,
    /// Of the IDE channels.
    pub ide_lines: [IrqLine; 2],
    pub floppy_line: IrqLine,
    pub dma: &'a Arc<Mutex<dyn DmaChannels>>,
    /// Where firmware looks for floppy drives.
    pub rtc: &'a Mutex<Rtc>,
    pub ram: &'a Arc<GuestRam>,
    /// Which drivers virtio disks are for.
    pub virtio: Interfaces,
    /// Images are read and written by threads of their own where the device can be told to.
    pub threads: bool,
    /// The IDE function is there even if it has no drive.
    pub always_ide: bool,
}

impl std::fmt::Debug for Sockets<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sockets").field("threads", &self.threads).finish_non_exhaustive()
    }
}

/// What firmware is to know of the drives, by their paths.
#[derive(Debug, Default)]
pub struct ForFirmware {
    /// In the order in which they are to be tried.
    pub boot: Vec<String>,
    pub geometry: Vec<(String, Geometry)>,
}

/// Attaches all drives.
///
/// # Errors
/// The bus has no room, or the host no thread.
pub fn fit(
    sockets: Sockets<'_>,
    configs: &[DiskConfig],
    disks: &[Disk],
) -> Result<ForFirmware, ConfigError> {
    let bad = |error: Box<dyn std::error::Error>| ConfigError::Host {
        what: "attach the disks",
        reason: error.to_string(),
    };
    let attachments: Vec<_> = configs.iter().map(|config| config.attachment).collect();
    let positions = positions(&attachments);
    let (mut hard, mut floppies, mut discs) = (Vec::new(), Vec::new(), Vec::new());
    let (mut told, mut translated) = (Vec::new(), [false; ide::DRIVES]);
    let mut tell = |path: &str, image: &dyn DiskImage| {
        told.extend(geometry::of(image).map(|geometry| (path.to_owned(), geometry)));
    };
    let mut media = [const { None }; floppy::DRIVES];
    let mut cables = [const { None }; ide::DRIVES];
    for (n, (disk, attachment)) in disks.iter().zip(&attachments).enumerate() {
        let image = Arc::clone(disk);
        let ide_path = |position: usize| {
            format!("/pci@i0cf8/ide@1,1/drive@{}/disk@{}", position / 2, position % 2)
        };
        match (attachment, positions[n]) {
            (Attachment::Ide, Some(position)) => {
                translated[position] = geometry::is_translated(&*image);
                tell(&ide_path(position), &*image);
                cables[position] = Some(Drive::Disk(image));
                hard.push(ide_path(position));
            }
            (Attachment::Cdrom, Some(position)) => {
                cables[position] = Some(Drive::Cdrom(image));
                discs.push(ide_path(position));
            }
            (Attachment::Floppy, _) => {
                let found = floppy::media(image).map_err(|error| ConfigError::Disk {
                    option: configs[n].option(),
                    path: configs[n].path.clone(),
                    reason: error.to_string(),
                })?;
                let number = floppies.len();
                media[number] = Some(found);
                floppies.push(format!("/pci@i0cf8/isa@1/fdc@03f0/floppy@{number}"));
            }
            _ => {
                let block = virtio::Block::new(Arc::clone(&image), &format!("disk{n}"));
                let memory = sockets.ram.memory_arc();
                let slot = virtio::add(sockets.root, block, memory, sockets.virtio)
                    .map_err(|error| bad(error.into()))?;
                let path = format!("/pci@i0cf8/scsi@{slot:x}/disk@0,0");
                tell(&path, &*image);
                hard.push(path);
            }
        }
    }
    lock(sockets.rtc).set_translated(translated);
    lock(sockets.rtc).set_floppies(media.each_ref().map(|media| floppy::cmos_type(media.as_ref())));
    if !floppies.is_empty() {
        let fdc = Fdc::new(media, Arc::clone(sockets.dma), sockets.floppy_line.clone());
        Fdc::attach(&Arc::new(Mutex::new(fdc)), sockets.ports)
            .map_err(|error| bad(error.into()))?;
    }
    if sockets.always_ide || cables.iter().any(Option::is_some) {
        let memory = sockets.ram.memory_arc();
        let Sockets { root, ports, ide_lines, threads, .. } = sockets;
        ide::add(root, ports, ide_lines, &memory, cables, threads)
            .map_err(|error| bad(error.into()))?;
    }
    hard.extend(floppies);
    hard.extend(discs);
    Ok(ForFirmware { boot: hard, geometry: told })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discs_are_on_the_second_cable_unless_it_is_full() {
        use Attachment::{Cdrom, Ide, Virtio};
        assert_eq!(positions(&[Ide, Cdrom, Virtio, Ide]), [Some(0), Some(2), None, Some(1)]);
        assert_eq!(positions(&[Ide, Ide, Ide, Cdrom]), [Some(0), Some(1), Some(3), Some(2)]);
        assert_eq!(positions(&[Cdrom; 4]), [Some(2), Some(3), Some(1), Some(0)]);
    }
}
