//! Gregorian dates for the real-time clock.
//!
//! Problem: registers hold a calendar date, the clock counts seconds. Scheme: day numbers by eras of
//! 400 years that begin in March, so that the leap day comes last. Invariants: any field values give
//! a number of seconds without overflow; seconds within years 0 to 9999 give fields in range.
//! Pure functions. Source: ISO 8601, "Gregorian calendar".

pub(super) const SECONDS_PER_DAY: i64 = 86_400;
const DAYS_PER_ERA: i64 = 146_097;
/// 0000-03-01 to 1970-01-01.
const EPOCH_DAY: i64 = 719_468;

/// What the time registers hold, as numbers. `weekday` counts from Sunday as 0, `day` and `month`
/// from 1. While the calendar stands still they may be anything that a guest wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) second: u8,
    pub(super) minute: u8,
    pub(super) hour: u8,
    pub(super) weekday: u8,
    pub(super) day: u8,
    pub(super) month: u8,
    pub(super) year: u16,
}

/// Days since 1970 of a date; month and day may be out of range.
pub(super) fn days_from_date(year: i64, month: i64, day: i64) -> i64 {
    // Months from March.
    let months = year * 12 + month - 3;
    let (year, month) = (months.div_euclid(12), months.rem_euclid(12));
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    // Five months from March (or August) have 153 days.
    let of_year = (153 * month + 2) / 5 + day - 1;
    era * DAYS_PER_ERA + of_era * 365 + of_era / 4 - of_era / 100 + of_year - EPOCH_DAY
}

/// The nearest time within years 0 to 9999.
pub(super) fn clamp(seconds: i64) -> i64 {
    let first = days_from_date(0, 1, 1) * SECONDS_PER_DAY;
    let end = days_from_date(10_000, 1, 1) * SECONDS_PER_DAY;
    seconds.clamp(first, end - 1)
}

impl Fields {
    pub(super) fn from_unix(seconds: i64) -> Self {
        let seconds = clamp(seconds);
        let days = seconds.div_euclid(SECONDS_PER_DAY);
        let of_day = seconds.rem_euclid(SECONDS_PER_DAY);
        let shifted = days + EPOCH_DAY;
        let era = shifted.div_euclid(DAYS_PER_ERA);
        let of_era = shifted.rem_euclid(DAYS_PER_ERA);
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        let year = era * 400 + year + i64::from(month >= 10);
        let month = if month < 10 { month + 3 } else { month - 9 };
        // All in range by the arithmetic above; 1970-01-01 was a Thursday.
        let byte = |value: i64| u8::try_from(value).unwrap_or(0);
        Self {
            second: byte(of_day % 60),
            minute: byte(of_day / 60 % 60),
            hour: byte(of_day / 3600),
            weekday: byte((days + 4).rem_euclid(7)),
            day: byte(day),
            month: byte(month),
            year: u16::try_from(year).unwrap_or(0),
        }
    }

    pub(super) fn to_unix(self) -> i64 {
        let days = days_from_date(self.year.into(), self.month.into(), self.day.into());
        let minutes = i64::from(self.hour) * 60 + i64::from(self.minute);
        days * SECONDS_PER_DAY + minutes * 60 + i64::from(self.second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_of_four_centuries_has_its_successor() {
        let mut last = Fields::from_unix(clamp(i64::MIN));
        assert_eq!((last.year, last.month, last.day, last.weekday), (0, 1, 1, 6));
        let leap = |year: u16| {
            year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400)
        };
        for _ in 0..DAYS_PER_ERA {
            let next = Fields::from_unix(last.to_unix() + SECONDS_PER_DAY);
            let length = match last.month {
                2 => 28 + u8::from(leap(last.year)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            let want = if last.day < length {
                (last.year, last.month, last.day + 1)
            } else if last.month < 12 {
                (last.year, last.month + 1, 1)
            } else {
                (last.year + 1, 1, 1)
            };
            assert_eq!((next.year, next.month, next.day), want);
            assert_eq!(next.weekday, (last.weekday + 1) % 7);
            last = next;
        }
    }

    #[test]
    fn known_times() {
        let fields = Fields::from_unix(1_700_000_000);
        let want =
            Fields { second: 20, minute: 13, hour: 22, weekday: 2, day: 14, month: 11, year: 2023 };
        assert_eq!(fields, want);
        assert_eq!(fields.to_unix(), 1_700_000_000);
        assert_eq!(Fields::from_unix(i64::MAX).year, 9999);
    }
}
