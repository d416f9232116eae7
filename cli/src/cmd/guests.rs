//! `xenolith guests`: what `run` knows by name.

use std::fmt::Write as _;
use std::io::{self, Write};

use anyhow::Result;

use crate::flags::GuestsArgs;
use crate::guests::{self, Cache, GUESTS};
use crate::status;

/// Prints the list on standard output.
///
/// # Errors
/// There is no place for a cache.
pub fn run(args: &GuestsArgs) -> Result<u8> {
    let cache = Cache::find(args.cache.folder.as_deref())?;
    let mut text = String::new();
    for guest in &GUESTS {
        let state = match guests::origin(guest, &cache) {
            Some(origin) => format!("cached: {origin}"),
            None => format!("not fetched yet: `xenolith run {}` does", guest.name),
        };
        // Writing to a String can't fail.
        let _ = writeln!(
            text,
            "{:<12}  {}\n{:14}from Debian by apt: {} and busybox-static ({})\n{:14}{state}",
            guest.name, guest.summary, "", guest.kernel_package, guest.architecture, "",
        );
    }
    let _ = writeln!(text, "\nCache: {}", cache.folder().display());
    // A reader that went away (`| head`) is no failure.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(status::DONE)
}
