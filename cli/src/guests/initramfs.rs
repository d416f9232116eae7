//! The initramfs around a fetched kernel: busybox, modules, an init of ours.
//!
//! Scheme: built in memory from the guest's cache folder and the scripts beside this file, then renamed
//! into that folder under a name made from the recipe; a newer Xenolith makes a new image from the same
//! packages. It is not compressed: unpacking would be the guest's work, and that is dear.
//! Invariant: an image under its final name is complete.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::{Guest, modules};

const INIT: &str = include_str!("files/init");
const WINDOW: &str = include_str!("files/window");
const PROFILE: &str = include_str!("files/profile");
const LEASE: &str = include_str!("files/lease");

/// Counts changes of the layout that the scripts don't show.
const FORMAT: u32 = 1;

const FOLDERS: [&str; 18] = [
    "bin",
    "dev",
    "etc",
    "etc/udhcpc",
    "lib",
    "lib/modules",
    "mnt",
    "newroot",
    "proc",
    "root",
    "run",
    "sbin",
    "sys",
    "tmp",
    "usr",
    "usr/bin",
    "usr/sbin",
    "var",
];

/// The image for the guest in `folder`, made if it is not there.
///
/// # Errors
/// The folder is damaged or can't be written.
pub fn provide(guest: &Guest, folder: &Path) -> Result<PathBuf> {
    let path = folder.join(format!("initrd-{:016x}.img", recipe(guest)));
    if path.is_file() {
        return Ok(path);
    }
    let image = build(guest, folder)?;
    // Two processes may build at once; each renames a whole image.
    let partial = folder.join(format!(".initrd-{}", std::process::id()));
    let written = write(&partial, &image).and_then(|()| fs::rename(&partial, &path));
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written.with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Writes a file so that it survives a power cut.
pub fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn build(guest: &Guest, folder: &Path) -> Result<Vec<u8>> {
    let read = |name: &str| {
        fs::read(folder.join(name)).with_context(|| {
            format!("{} is damaged (remove it to fetch it anew): {name}", folder.display())
        })
    };
    let busybox = read("busybox")?;
    let release = String::from_utf8_lossy(&read("release")?).trim().to_owned();
    let mut archive = Archive::default();
    for name in FOLDERS {
        archive.folder(name, if name == "tmp" { 0o1777 } else { 0o755 });
    }
    // The kernel opens it for init before anything is mounted.
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.character_device("dev/null", 0o666, 1, 3);
    archive.file("bin/busybox", 0o755, &busybox);
    archive.link("bin/sh", "busybox");
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("etc/window", 0o755, WINDOW.as_bytes());
    archive.file("etc/profile", 0o644, PROFILE.as_bytes());
    // Where Debian's busybox looks for it.
    archive.file("etc/udhcpc/default.script", 0o755, LEASE.as_bytes());
    archive.file("etc/hostname", 0o644, format!("{}\n", guest.name).as_bytes());
    archive.file("etc/hosts", 0o644, format!("127.0.0.1 localhost {}\n", guest.name).as_bytes());
    archive.file("etc/passwd", 0o644, b"root::0:0:root:/root:/bin/sh\n");
    archive.file("etc/group", 0o644, b"root:x:0:\ntty:x:5:\n");
    archive.link("etc/mtab", "/proc/mounts");

    let base = format!("lib/modules/{release}");
    archive.folder(&base, 0o755);
    let modules = match modules::collect(&folder.join("modules"), super::fetch::MODULES) {
        Ok(modules) => modules,
        Err(error) if is_missing(&error) => Vec::new(),
        Err(error) => return Err(error),
    };
    for module in &modules {
        archive.file(&format!("{base}/{}.ko", module.name), 0o644, &module.elf);
    }
    archive.file(&format!("{base}/modules.dep"), 0o644, modules::dep_table(&modules).as_bytes());
    archive.file(
        &format!("{base}/modules.alias"),
        0o644,
        modules::alias_table(&modules).as_bytes(),
    );
    Ok(archive.finish())
}

/// A kernel with everything built in leaves no folder of modules.
fn is_missing(error: &anyhow::Error) -> bool {
    error
        .root_cause()
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::NotFound)
}

/// FNV-1a over what the image is made of besides the packages.
fn recipe(guest: &Guest) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let format = FORMAT.to_string();
    let parts = [INIT, WINDOW, PROFILE, LEASE, guest.name, &format].into_iter();
    for part in parts.chain(super::fetch::MODULES.iter().copied()) {
        // The NUL keeps neighbours apart.
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guests::GUESTS;

    #[test]
    fn an_image_is_built_once_and_whole() {
        let folder =
            std::env::temp_dir().join(format!("xenolith-initramfs-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        for (name, text) in [("busybox", "ELF"), ("release", "6.1.0-test\n")] {
            fs::write(folder.join(name), text).expect("a file");
        }
        let path = provide(&GUESTS[0], &folder).expect("built");
        let image = fs::read(&path).expect("there");
        assert_eq!(image, build(&GUESTS[0], &folder).expect("the same again"));
        assert!(image.windows(10).any(|w| w == b"TRAILER!!!"));
        assert!(image.windows(29).any(|w| w == b"lib/modules/6.1.0-test/module"));
        // The second time nothing is needed but the image.
        fs::remove_file(folder.join("busybox")).expect("ours");
        assert_eq!(provide(&GUESTS[0], &folder).expect("cached"), path);
        let names = fs::read_dir(&folder).expect("there").count();
        assert_eq!(names, 2, "no partial file is left");
        fs::remove_dir_all(&folder).expect("ours");
    }

    #[test]
    fn every_file_has_its_folder() {
        for name in FOLDERS {
            if let Some((parent, _)) = name.rsplit_once('/') {
                let place = |wanted| FOLDERS.iter().position(|&one| one == wanted);
                assert!(place(parent) < place(name), "{name}");
            }
        }
    }
}
