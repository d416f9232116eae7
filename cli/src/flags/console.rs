//! Where the guest's serial line goes.

use std::path::PathBuf;

use clap::Args;

#[derive(Args, Debug)]
pub struct ConsoleFlags {
    /// The guest's first serial line (COM1, ttyS0): stdio (standard input and output; a terminal is
    /// lent to the guest), file:PATH (written there, nothing is read), or none
    #[arg(long, value_name = "WHERE", help_heading = "Console", default_value = "stdio")]
    #[arg(value_parser = parse_serial)]
    pub serial: Serial,
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
    fn three_places() {
        assert_eq!(parse_serial("stdio"), Ok(Serial::Stdio));
        assert_eq!(parse_serial("none"), Ok(Serial::None));
        assert_eq!(parse_serial("file:a:b"), Ok(Serial::File(PathBuf::from("a:b"))));
        for text in ["", "file:", "file", "pty", "a.txt"] {
            assert!(parse_serial(text).is_err(), "{text}");
        }
    }
}
