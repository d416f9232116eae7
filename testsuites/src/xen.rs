//! A disc from which GRUB starts Debian's Xen hypervisor, with Debian's kernel as its first domain.
//!
//! Problem: the same system is wanted on a serial line and on the screen. Scheme: a rescue disc whose menu differs in who
//! gets which console. Invariant: the menu doesn't wait. Source: Xen, "Xen Hypervisor Command Line Options".

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use crate::debian::{Debian, QUICK};
use crate::disk::{Scratch, rescue_disc};
use crate::packages;

const HYPERVISOR: &str = "xen-hypervisor-4.17-amd64";
const ON_SERIAL_LINE: &str = "\
serial
terminal_input serial
terminal_output serial
set timeout=0
menuentry 'Xen' {
multiboot2 /boot/xen.gz console=com1 com1=115200,8n1 dom0_mem=512M
module2 /boot/vmlinuz console=hvc0 CIPHERS
module2 /boot/initrd.img
}
";
const ON_SCREEN: &str = "\
set timeout=0
menuentry 'Xen' {
multiboot2 /boot/xen.gz console=vga dom0_mem=512M
module2 /boot/vmlinuz console=tty0 CIPHERS
module2 /boot/initrd.img
}
";

/// Who shows what the hypervisor and its first domain say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    SerialLine,
    Screen,
}

/// Makes the disc.
///
/// # Errors
/// What can't be fetched, or a tool's own complaint.
pub fn disc(
    guest: &Debian,
    console: Console,
    packages_in: &str,
    scratch: &Scratch,
) -> Result<PathBuf> {
    let tree = scratch.path().join("disc");
    fs::create_dir_all(tree.join("boot/grub"))?;
    let hypervisor = packages::get(HYPERVISOR, packages_in)?.join("boot/xen-4.17-amd64.gz");
    fs::copy(&hypervisor, tree.join("boot/xen.gz"))?;
    fs::copy(&guest.vmlinuz, tree.join("boot/vmlinuz"))?;
    fs::copy(&guest.initrd, tree.join("boot/initrd.img"))?;
    let menu = if console == Console::Screen { ON_SCREEN } else { ON_SERIAL_LINE };
    fs::write(tree.join("boot/grub/grub.cfg"), menu.replace("CIPHERS", QUICK))?;
    rescue_disc(&tree, scratch.path())
}
