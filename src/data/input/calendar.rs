//! Dates and times as text, as Python's `str` writes them.

/// The day `days` after 1970-01-01; `None` beyond the years 1 to 9999.
pub(super) fn date(days: i64) -> Option<String> {
    if !(-719_162..=2_932_896).contains(&days) {
        return None;
    }
    // Years that begin in March end with the leap day: eras of 400 years are all alike.
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    Some(format!("{:04}-{month:02}-{day:02}", era * 400 + year_of_era + next))
}

/// `x` after midnight, `per` of them a second; `None` beyond the day.
pub(super) fn time(x: i64, per: i64) -> Option<String> {
    let (seconds, part) = (x.div_euclid(per), x.rem_euclid(per));
    if !(0..86_400).contains(&seconds) {
        return None;
    }
    let whole = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let nanos = part * (1_000_000_000 / per);
    Some(match nanos {
        0 => whole,
        n if n % 1_000 == 0 => format!("{whole}.{:06}", n / 1_000),
        n => format!("{whole}.{n:09}"),
    })
}

/// `x` after 1970, `per` of them a second, and then `zone`.
pub(super) fn timestamp(x: i64, per: i64, zone: &str) -> Option<String> {
    let day = 86_400 * per;
    Some(format!("{} {}{zone}", date(x.div_euclid(day))?, time(x.rem_euclid(day), per)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_pythons() {
        for (days, want) in [
            (0, Some("1970-01-01")),
            (-1, Some("1969-12-31")),
            (11_016, Some("2000-02-29")),
            (20_783, Some("2026-11-26")),
            (-719_162, Some("0001-01-01")),
            (2_932_896, Some("9999-12-31")),
            (-719_163, None),
            (2_932_897, None),
        ] {
            assert_eq!(date(days).as_deref(), want);
        }
        assert_eq!(timestamp(1_234_567_890_123_456, 1_000_000, "+00:00").unwrap(), "2009-02-13 23:31:30.123456+00:00");
        assert_eq!(timestamp(-1, 1_000, "").unwrap(), "1969-12-31 23:59:59.999000");
        assert_eq!(time(1, 1_000_000_000).unwrap(), "00:00:00.000000001");
        assert_eq!(time(86_400, 1), None);
    }
}
