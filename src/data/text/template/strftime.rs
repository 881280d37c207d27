//! Python's `datetime.now().strftime(format)`.

use super::fault::{Fault, Res};
use chrono::{DateTime, Datelike, Local, NaiveDateTime, Timelike};
use std::time::SystemTime;

/// `format` filled with the local time of `now`, as Python does it in the C locale. Errors: a directive that is not known
/// here, by name.
pub fn strftime(format: &str, now: SystemTime) -> Res<String> {
    filled(format, DateTime::<Local>::from(now).naive_local())
}

fn filled(format: &str, t: NaiveDateTime) -> Res<String> {
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let directive = &rest[at + 1..];
        let flag = directive.chars().next().filter(|c| matches!(c, '-' | '_' | '0' | '^'));
        let directive = &directive[usize::from(flag.is_some())..];
        let Some(c) = directive.chars().next() else {
            return Err(Fault::refused("strftime_now with % at the end of its format"));
        };
        rest = &directive[c.len_utf8()..];
        let Some(text) = one(c, t)? else {
            let flag = flag.map_or(String::new(), String::from);
            return Err(Fault::refused(format!("strftime_now with %{flag}{c}")));
        };
        out.push_str(&flagged(flag, c, text)?);
    }
    out.push_str(rest);
    Ok(out)
}

/// The C library's flags: without padding, padded with spaces or zeros, upper case.
fn flagged(flag: Option<char>, directive: char, text: String) -> Res<String> {
    let number = text.trim_start_matches(['0', ' ']);
    let digits = !text.is_empty() && text.trim_start_matches(' ').bytes().all(|c| c.is_ascii_digit());
    let plain = digits && directive != 'f';
    Ok(match flag {
        None => text,
        Some('^') if !digits => text.to_uppercase(),
        Some('-') if plain => if number.is_empty() { "0" } else { number }.to_owned(),
        Some('_') if plain => format!("{:>1$}", if number.is_empty() { "0" } else { number }, text.len()),
        Some('0') if plain => text.replace(' ', "0"),
        Some(flag) => return Err(Fault::refused(format!("strftime_now with %{flag}{directive}"))),
    })
}

fn one(directive: char, t: NaiveDateTime) -> Res<Option<String>> {
    const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let weekday = t.weekday().num_days_from_sunday();
    let (day, month) = (DAYS[weekday as usize], MONTHS[t.month0() as usize]);
    let (yearday, week) = (t.ordinal0(), t.iso_week());
    let hour = (t.hour() + 11) % 12 + 1;
    let also = |format: &str| filled(format, t).map(Some);
    Ok(Some(match directive {
        'a' => day[..3].into(),
        'A' => day.into(),
        'b' | 'h' => month[..3].into(),
        'B' => month.into(),
        'C' => format!("{:02}", t.year() / 100),
        'd' => format!("{:02}", t.day()),
        'e' => format!("{:2}", t.day()),
        'f' => format!("{:06}", t.nanosecond() / 1000 % 1_000_000),
        'g' => format!("{:02}", week.year() % 100),
        'G' => week.year().to_string(),
        'H' => format!("{:02}", t.hour()),
        'I' => format!("{hour:02}"),
        'j' => format!("{:03}", yearday + 1),
        'k' => format!("{:2}", t.hour()),
        'l' => format!("{hour:2}"),
        'm' => format!("{:02}", t.month()),
        'M' => format!("{:02}", t.minute()),
        'n' => "\n".into(),
        'p' => if t.hour() < 12 { "AM" } else { "PM" }.into(),
        'P' => if t.hour() < 12 { "am" } else { "pm" }.into(),
        'S' => format!("{:02}", t.second()),
        't' => "\t".into(),
        'u' => if weekday == 0 { 7 } else { weekday }.to_string(),
        'U' => format!("{:02}", (yearday + 7 - weekday) / 7),
        'V' => format!("{:02}", week.week()),
        'w' => weekday.to_string(),
        'W' => format!("{:02}", (yearday + 7 - (weekday + 6) % 7) / 7),
        'y' => format!("{:02}", t.year() % 100),
        'Y' => t.year().to_string(),
        // A local time that knows no zone.
        'z' | 'Z' => String::new(),
        '%' => "%".into(),
        'c' => return also("%a %b %e %H:%M:%S %Y"),
        'D' | 'x' => return also("%m/%d/%y"),
        'F' => return also("%Y-%m-%d"),
        'r' => return also("%I:%M:%S %p"),
        'R' => return also("%H:%M"),
        'T' | 'X' => return also("%H:%M:%S"),
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_as_python_prints_it() {
        let t = chrono::NaiveDate::from_ymd_opt(2024, 1, 7).unwrap().and_hms_micro_opt(0, 5, 9, 42).unwrap();
        let all = "%a %A %b %B %C %d|%e|%f|%g %G %H %I %j|%k|%l|%m %M %p %P %S %u %U %V %w %W %y %Y %z%Z%%";
        let want =
            "Sun Sunday Jan January 20 07| 7|000042|24 2024 00 12 007| 0|12|01 05 AM am 09 7 01 01 0 01 24 2024 %";
        assert_eq!(filled(all, t).unwrap(), want);
        assert_eq!(filled("%c|%x|%X|%D|%F|%r|%R|%T", t).unwrap(), {
            "Sun Jan  7 00:05:09 2024|01/07/24|00:05:09|01/07/24|2024-01-07|12:05:09 AM|00:05|00:05:09"
        });
        assert_eq!(filled("%-d %-m %_d %0e %^a %-H", t).unwrap(), "7 1  7 07 SUN 0");
        for bad in ["%Q", "%Ey", "%10d", "%", "%-a"] {
            assert!(filled(bad, t).is_err(), "{bad}");
        }
    }
}
