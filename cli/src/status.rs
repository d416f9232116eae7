//! Exit statuses: the promise that scripts rely on, in one place.

use xenolith_machine::End;

/// The guest switched the power off, reset under `--no-reboot`, or the person left with Ctrl-A X.
pub const DONE: u8 = 0;
/// Wrong usage or configuration; one line on standard error says what.
pub const WRONG: u8 = 1;
/// A defect of ours.
pub const DEFECT: u8 = 2;
/// A triple fault; the registers are on standard error.
pub const TRIPLE_FAULT: u8 = 3;
/// `diff` has found a difference.
pub const DIFFERENT: u8 = 4;
/// `--timeout` passed, as with timeout(1).
pub const TIMEOUT: u8 = 124;

/// The status for `end`. What there is to say about it is [`explain`]'s matter.
pub fn of(end: &End) -> u8 {
    match end {
        End::PowerOff | End::Reboot | End::Quit => DONE,
        End::TripleFault { .. } => TRIPLE_FAULT,
        // As QEMU's isa-debug-exit; the host keeps the low eight bits.
        End::DebugExit(value) => ((value << 1) | 1).to_le_bytes()[0],
        End::Timeout => TIMEOUT,
        End::Failed { .. } => DEFECT,
    }
}

/// What a person should read about `end` on standard error, if anything.
pub fn explain(end: &End) -> Option<String> {
    match end {
        End::PowerOff | End::Reboot | End::Quit | End::DebugExit(_) => None,
        End::TripleFault { dump } => {
            Some(format!("triple fault: the guest's processor shut down\n{}", dump.trim_end()))
        }
        End::Timeout => Some("the time given by --timeout is over".to_owned()),
        End::Failed { message } => {
            Some(format!("a defect of xenolith stopped the machine, please report it: {message}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_exit_is_odd_and_cut_to_eight_bits() {
        assert_eq!(of(&End::DebugExit(0)), 1);
        assert_eq!(of(&End::DebugExit(0x10)), 0x21);
        assert_eq!(of(&End::DebugExit(0x80)), 1);
        assert_eq!(of(&End::DebugExit(u32::MAX)), 0xff);
    }

    #[test]
    fn a_dump_is_told_and_a_power_off_is_not() {
        let end = End::TripleFault { dump: "RIP=1234\n".to_owned() };
        assert_eq!(of(&end), 3);
        assert!(explain(&end).is_some_and(|text| text.ends_with("RIP=1234")));
        assert_eq!((of(&End::PowerOff), explain(&End::PowerOff)), (0, None));
        assert_eq!(of(&End::Timeout), 124);
    }
}
