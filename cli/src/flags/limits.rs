//! When a run ends though the guest does not switch the power off.

use std::time::Duration;

use clap::Args;

#[derive(Args, Debug)]
pub struct LimitFlags {
    /// End with status 124 after so many seconds (decimals allowed) of this computer's time. Fetching
    /// a guest does not count
    #[arg(long, value_name = "SECONDS", help_heading = "Limits", value_parser = parse_seconds)]
    #[arg(allow_negative_numbers = true)]
    pub timeout: Option<Duration>,

    /// A guest that resets the machine ends the run (status 0) instead of starting again
    #[arg(long, help_heading = "Limits")]
    pub no_reboot: bool,
}

/// Ten years: beyond this a time-out is a slip of the finger.
const TIMEOUT_SECONDS_MAX: f64 = 315_360_000.0;

pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= TIMEOUT_SECONDS_MAX => {
            Ok(Duration::from_secs_f64(seconds))
        }
        _ => Err("it is a number of seconds, more than 0, as 60 or 0.5".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_may_have_decimals_and_must_be_sound() {
        assert_eq!(parse_seconds("60"), Ok(Duration::from_secs(60)));
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "0", "-1", "nan", "inf", "1e300", "1m", "soon"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }
}
