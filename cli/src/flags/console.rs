//! Where the guest's serial line goes.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

#[derive(Args, Debug)]
pub struct ConsoleFlags {
    /// The guest's first serial line (COM1, ttyS0): stdio (standard input and output; a terminal is
    /// lent to the guest), file:PATH (written there, nothing is read), or none [default: stdio; none
    /// with --display terminal]. The virtio console goes there too where it is the guest's (--console)
    #[arg(long, value_name = "WHERE", help_heading = "Console", value_parser = parse_serial)]
    pub serial: Option<Serial>,

    /// The guest's second serial line (COM2, ttyS1): file:PATH or none. Nothing is read from it
    #[arg(long, value_name = "WHERE", help_heading = "Console", value_parser = parse_serial2)]
    #[arg(default_value = "none")]
    pub serial2: SecondSerial,

    /// Where the guest has its console: serial (ttyS0), or virtio (hvc0), which is then shown beside the
    /// serial line and has the input once it has a driver [default: as the kernel's last console= says;
    /// serial, if firmware finds the kernel]
    #[arg(long = "console", value_name = "serial|virtio", help_heading = "Console")]
    pub port: Option<ConsolePort>,

    /// The guest's screen, keyboard and mouse: vnc (for VNC clients, at 127.0.0.1:5900 unless ADDRESS:PORT
    /// is given; whoever reaches the port may look and type), terminal (text in this terminal, which
    /// then has no serial line), or none
    #[arg(long, value_name = "none|terminal|vnc[=ADDRESS:PORT]", help_heading = "Screen")]
    #[arg(value_parser = parse_display, default_value = "none")]
    pub display: Display,

    /// Writes what is on the guest's screen to a PNG file, so many seconds after the start, or when the
    /// guest ends before that. May be given again
    #[arg(long = "screenshot", value_name = "SECONDS:FILE", help_heading = "Screen")]
    #[arg(value_parser = parse_screenshot)]
    pub screenshots: Vec<Screenshot>,

    /// Option ROM of the display: its video services [default: Debian's package seabios's for this
    /// display; without it there is no display]
    #[arg(long, value_name = "FILE", help_heading = "Screen")]
    pub vga_rom: Option<PathBuf>,
}

impl ConsoleFlags {
    /// Where the serial line goes.
    pub fn serial(&self) -> Serial {
        let usual = if self.display == Display::Terminal { Serial::None } else { Serial::Stdio };
        self.serial.clone().unwrap_or(usual)
    }

    /// Whether the guest must have a screen, and the option that says so.
    pub fn wants_screen(&self) -> Option<&'static str> {
        if self.display != Display::None {
            Some("--display")
        } else if self.screenshots.is_empty() {
            None
        } else {
            Some("--screenshot")
        }
    }
}

/// The device that is the guest's console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConsolePort {
    Serial,
    Virtio,
}

/// Where the guest's screen is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Display {
    None,
    Terminal,
    /// To VNC clients that come to this address and port.
    Vnc(String),
}

/// Where VNC clients look first, on this computer only.
const VNC_ADDRESS: &str = "127.0.0.1";
const VNC_PORT: &str = "5900";

fn parse_display(text: &str) -> Result<Display, String> {
    match text {
        "none" => return Ok(Display::None),
        "terminal" => return Ok(Display::Terminal),
        "vnc" => return Ok(Display::Vnc(format!("{VNC_ADDRESS}:{VNC_PORT}"))),
        _ => {}
    }
    let place = text.strip_prefix("vnc=").ok_or("it is vnc, vnc=ADDRESS:PORT, terminal or none")?;
    let (address, port) =
        place.rsplit_once(':').ok_or("it is vnc=ADDRESS:PORT, as in vnc=127.0.0.1:5901")?;
    if port.is_empty()
        || !port.bytes().all(|byte| byte.is_ascii_digit())
        || port.parse::<u16>().is_err()
    {
        return Err(format!("{port:?} is no port"));
    }
    let address = if address.is_empty() { VNC_ADDRESS } else { address };
    Ok(Display::Vnc(format!("{address}:{port}")))
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

/// Where the second serial line goes: to a file, or nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecondSerial(pub Option<PathBuf>);

fn parse_serial2(text: &str) -> Result<SecondSerial, String> {
    match parse_serial(text) {
        Ok(Serial::File(path)) => Ok(SecondSerial(Some(path))),
        Ok(Serial::None) => Ok(SecondSerial(None)),
        _ => Err("it is file:PATH or none".to_owned()),
    }
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
    fn displays_have_a_place() {
        let vnc = |place: &str| Ok(Display::Vnc(place.to_owned()));
        assert_eq!(parse_display("none"), Ok(Display::None));
        assert_eq!(parse_display("terminal"), Ok(Display::Terminal));
        assert_eq!(parse_display("vnc"), vnc("127.0.0.1:5900"));
        assert_eq!(parse_display("vnc=:5901"), vnc("127.0.0.1:5901"));
        assert_eq!(parse_display("vnc=0.0.0.0:1"), vnc("0.0.0.0:1"));
        assert_eq!(parse_display("vnc=[::1]:5900"), vnc("[::1]:5900"));
        for text in ["", "vnc=", "vnc=5900", "vnc=host:", "vnc=host:port", "vnc=a:99999", "gtk"] {
            assert!(parse_display(text).is_err(), "{text}");
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
        assert_eq!(parse_serial2("none"), Ok(SecondSerial(None)));
        assert_eq!(parse_serial2("file:a"), Ok(SecondSerial(Some(PathBuf::from("a")))));
        assert!(parse_serial2("stdio").is_err());
    }
}
