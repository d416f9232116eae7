//! Where the guest's serial line goes.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

#[derive(Args, Debug)]
pub struct ConsoleFlags {
    /// The guest's first serial line (COM1, ttyS0): stdio (standard input and output; a terminal is
    /// lent to the guest), file:PATH (written there, nothing is read), or none
    #[arg(long, value_name = "WHERE", help_heading = "Console", default_value = "stdio")]
    #[arg(value_parser = parse_serial)]
    pub serial: Serial,

    /// Writes what is on the guest's screen to a PNG file, so many seconds after the start, or when the
    /// guest ends before that. May be given again
    #[arg(long = "screenshot", value_name = "SECONDS:FILE", help_heading = "Screen")]
    #[arg(value_parser = parse_screenshot)]
    pub screenshots: Vec<Screenshot>,

    /// Option ROM of the display that firmware finds: its video services [default with firmware:
    /// Debian's package seabios's for this display, where it is installed]
    #[arg(long, value_name = "FILE", help_heading = "Screen", conflicts_with = "kernel")]
    pub vga_rom: Option<PathBuf>,
}

/// A picture to take.
#[derive(Clone, Debug, PartialEq)]
pub struct Screenshot {
    pub after: Duration,
    pub path: PathBuf,
}

fn parse_screenshot(text: &str) -> Result<Screenshot, String> {
    let (seconds, path) = text.split_once(':').ok_or("it is SECONDS:FILE, as in 10:screen.png")?;
    let seconds: f64 = seconds.parse().map_err(|_| format!("{seconds:?} is not a number"))?;
    let after = Duration::try_from_secs_f64(seconds)
        .map_err(|_| format!("{seconds} seconds can't be waited"))?;
    if path.is_empty() {
        return Err("a file name must follow the colon".to_owned());
    }
    Ok(Screenshot { after, path: PathBuf::from(path) })
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serial {
    Stdio,
    File(PathBuf),
    None,
}

fn parse_serial(text: &str) -> Result<Serial, String> {
    match text {
        "stdio" => Ok(Serial::Stdio),
        "none" => Ok(Serial::None),
        _ => match text.strip_prefix("file:") {
            Some("") => Err("a file name must follow \"file:\"".to_owned()),
            Some(path) => Ok(Serial::File(PathBuf::from(path))),
            None => Err("it is stdio, file:PATH or none".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screenshot_has_a_time_and_a_file() {
        let shot = parse_screenshot("1.5:a:b.png").expect("sound");
        assert_eq!((shot.after.as_millis(), shot.path), (1500, PathBuf::from("a:b.png")));
        for text in ["", "5", "5:", ":a.png", "x:a.png", "-1:a.png", "nan:a.png", "1e300:a.png"] {
            assert!(parse_screenshot(text).is_err(), "{text}");
        }
    }

    #[test]
    fn three_places() {
        assert_eq!(parse_serial("stdio"), Ok(Serial::Stdio));
        assert_eq!(parse_serial("none"), Ok(Serial::None));
        assert_eq!(parse_serial("file:a:b"), Ok(Serial::File(PathBuf::from("a:b"))));
        for text in ["", "file:", "file", "pty", "a.txt"] {
            assert!(parse_serial(text).is_err(), "{text}");
        }
    }
}
