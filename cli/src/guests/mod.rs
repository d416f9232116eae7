//! Guests known by name: where each comes from, and the cache that keeps them.
//!
//! Scheme: a guest is a Debian kernel, the modules it needs to see our devices, and a static busybox;
//! all come from Debian's archive through the machine's own apt ([`fetch`]), the initramfs around them
//! is ours ([`initramfs`]). The cache holds one folder a guest:
//!
//! ```text
//! guests/debian/vmlinuz      the kernel, as in its package
//!               busybox      the static one
//!               modules/     *.ko, only what is needed
//!               release      as uname -r says it
//!               origin       packages and versions, one line for people
//!               initrd-*.img made from the above; the name tells the recipe
//! ```
//!
//! Invariant: a guest's folder appears complete, by one rename, or not at all; whatever was interrupted
//! lies in a folder with another name and is swept by the next fetch. The main thread.

mod apt;
mod cpio;
mod fetch;
mod initramfs;
mod modules;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// A guest that `run` knows by name.
#[derive(Debug)]
pub struct Guest {
    pub name: &'static str,
    pub summary: &'static str,
    /// As dpkg calls it.
    pub architecture: &'static str,
    /// Depends on the newest kernel of its kind.
    pub kernel_package: &'static str,
}

pub static GUESTS: [Guest; 2] = [
    Guest {
        name: "debian",
        summary: "Debian's 64-bit kernel and a busybox shell as root",
        architecture: "amd64",
        kernel_package: "linux-image-amd64",
    },
    Guest {
        name: "debian-i386",
        summary: "the same with Debian's 32-bit (PAE) kernel",
        architecture: "i386",
        kernel_package: "linux-image-686-pae",
    },
];

/// Where a guest's person looks and types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consoles {
    Serial,
    SerialAndScreen,
    /// Both, but the first program speaks on the screen.
    ScreenFirst,
}

impl Guest {
    /// The kernel's command line: ours, then what the person appends.
    pub fn command_line(
        &self,
        consoles: Consoles,
        window: Option<(u16, u16)>,
        append: &str,
    ) -> String {
        // The last is what the guest takes for its console.
        let mut line = match consoles {
            Consoles::Serial => "console=ttyS0",
            Consoles::SerialAndScreen => "console=tty0 console=ttyS0",
            Consoles::ScreenFirst => "console=ttyS0 console=tty0",
        }
        .to_owned();
        // What the kernel doesn't know it hands to init as environment.
        if let Ok(term) = std::env::var("TERM")
            && term.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._+".contains(&b))
            && (1..=40).contains(&term.len())
            && window.is_some()
        {
            line.push_str(&format!(" TERM={term}"));
        }
        // For the time until the virtio console tells the window's size, and for machines without.
        if let Some((columns, rows)) = window {
            line.push_str(&format!(" xenolith.size={columns}x{rows}"));
        }
        if !append.trim().is_empty() {
            line.push(' ');
            line.push_str(append.trim());
        }
        line
    }
}

/// Whether what stands in a guest's place is a file to boot from, as no guest has that name.
pub fn is_image(name: &str) -> bool {
    GUESTS.iter().all(|guest| guest.name != name) && Path::new(name).exists()
}

/// The guest called `name`.
///
/// # Errors
/// There is none; the message names those that there are.
pub fn find(name: &str) -> Result<&'static Guest> {
    if let Some(guest) = GUESTS.iter().find(|guest| guest.name == name) {
        return Ok(guest);
    }
    let names = GUESTS.each_ref().map(|guest| guest.name).join(" and ");
    bail!(
        "no guest is called '{name}', and there is no disk image of that name; known guests are \
         {names}; a kernel in a file goes with --kernel FILE"
    )
}

/// The folder for fetched guests.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// The folder that was chosen, else the one that the XDG rules give.
    ///
    /// # Errors
    /// Nothing says where the home folder is.
    pub fn find(chosen: Option<&Path>) -> Result<Self> {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let folder = match chosen {
            Some(folder) => std::path::absolute(folder).context("--cache")?,
            None => absolute("XDG_CACHE_HOME")
                .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
                .context(
                    "no folder for fetched guests: $HOME is not set; give one with --cache FOLDER",
                )?
                .join("xenolith"),
        };
        Ok(Self { folder })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn guests(&self) -> PathBuf {
        self.folder.join("guests")
    }

    fn guest(&self, guest: &Guest) -> PathBuf {
        self.guests().join(guest.name)
    }
}

/// Packages and versions of a cached guest.
pub fn origin(guest: &Guest, cache: &Cache) -> Option<String> {
    let text = fs::read_to_string(cache.guest(guest).join("origin")).ok()?;
    Some(text.trim_end().to_owned())
}

/// Files to boot.
#[derive(Debug)]
pub struct Boot {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

/// The files of `guest`, fetched and built if they are not in the cache.
///
/// # Errors
/// They can't be had; the message says how to do without.
pub fn provide(guest: &Guest, chosen: Option<&Path>) -> Result<Boot> {
    let cache = Cache::find(chosen)?;
    let folder = cache.guest(guest);
    if origin(guest, &cache).is_none() {
        fetch::fetch(guest, &cache).with_context(|| {
            format!(
                "guest '{}' ({} and busybox-static) is not cached in {} and can't be fetched (give \
                 local files instead: xenolith run --kernel VMLINUZ --initrd INITRD --append \
                 console=ttyS0)",
                guest.name,
                guest.kernel_package,
                folder.display()
            )
        })?;
    }
    let initrd = initramfs::provide(guest, &folder)
        .with_context(|| format!("cannot build the initramfs of '{}'", guest.name))?;
    Ok(Boot { kernel: folder.join("vmlinuz"), initrd })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn append_extends_the_command_line() {
        let guest = find("debian").expect("known");
        let serial = Consoles::Serial;
        assert_eq!(guest.command_line(serial, None, ""), "console=ttyS0");
        assert_eq!(guest.command_line(serial, None, " quiet "), "console=ttyS0 quiet");
        let line = guest.command_line(serial, Some((80, 25)), "root=/dev/vda1");
        assert!(line.ends_with(" xenolith.size=80x25 root=/dev/vda1"), "{line}");
    }

    #[test]
    fn an_unknown_name_is_told_the_known_ones() {
        let text = find("slackware").expect_err("unknown").to_string();
        assert!(text.contains("debian and debian-i386") && !text.contains('\n'), "{text}");
        assert!(find("/").expect_err("a folder").to_string().contains("--kernel"));
    }

    #[test]
    fn a_chosen_cache_wins() {
        let cache = Cache::find(Some(Path::new("/x"))).expect("absolute");
        assert_eq!(cache.guest(&GUESTS[0]), Path::new("/x/guests/debian"));
    }
}
