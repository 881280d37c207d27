//! Numbers for people.

/// `1.5 GiB`.
pub fn bytes(n: usize) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let step = (0..units.len() - 1).take_while(|i| n as f64 >= 1024f64.powi(*i as i32 + 1)).count();
    format!("{:.*} {}", usize::from(step > 0), n as f64 / 1024f64.powi(step as i32), units[step])
}

/// `x` with so many decimals; what they cannot show is 0, not -0.
pub fn decimals(x: f64, n: usize) -> String {
    let text = format!("{x:.n$}");
    let zero = text.strip_prefix('-').filter(|digits| digits.chars().all(|c| matches!(c, '0' | '.')));
    zero.map_or_else(|| text.clone(), str::to_owned)
}

/// A length of time in words: `0.24 s`, `41 s`, `12 min`, `2 h 10 min`, `3 days 4 h`.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 9.95 => format!("{} s", digits(s)),
        s if s < 99.5 => format!("{s:.0} s"),
        s if s < 5970.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => {
            let minutes = (s / 60.0).round() as u64;
            format!("{} h {} min", minutes / 60, minutes % 60)
        }
        s => {
            let hours = (s / 3600.0).round() as u64;
            format!("{} days {} h", hours / 24, hours % 24)
        }
    }
}

/// `x` with two digits that say something; of less than 10.
fn digits(x: f64) -> String {
    let places = if x >= 0.95 { 1 } else { (1.0 - x.max(1e-6).log10()).ceil().clamp(2.0, 6.0) as usize };
    format!("{x:.places$}")
}

/// Bytes that `text` says: `80GiB`, `24 GB`, `22.5GiB`, `1000000`; 1 GB are 10^9 bytes, 1 GiB are 2^30. Errors: what it is not,
/// in words.
pub fn parse_bytes(text: &str) -> Result<usize, String> {
    const UNITS: [(&str, f64); 9] = [
        ("B", 1.0),
        ("KB", 1e3),
        ("MB", 1e6),
        ("GB", 1e9),
        ("TB", 1e12),
        ("KIB", 1024.0),
        ("MIB", 1048576.0),
        ("GIB", 1073741824.0),
        ("TIB", 1099511627776.0),
    ];
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|c: char| c.is_alphabetic()).unwrap_or(text.len()));
    let unit = unit.to_uppercase();
    let factor = UNITS.iter().find(|(name, _)| *name == if unit.is_empty() { "B" } else { &unit });
    let digits = |c: char| c.is_ascii_digit() || c == '.';
    let number = Some(number.trim()).filter(|n| n.chars().all(digits)).and_then(|n| n.parse::<f64>().ok());
    let bytes = number.zip(factor).map(|(n, (_, factor))| n * factor);
    match bytes.filter(|bytes| (1.0..9e15).contains(bytes)) {
        Some(bytes) => Ok(bytes as usize),
        None => Err("give a number of bytes above 0 with its unit, such as 80GiB or 24GB".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::{decimals, duration, parse_bytes};

    #[test]
    fn times_in_words() {
        for (seconds, want) in [
            (0.0, "0.000000 s"),
            (0.0791, "0.079 s"),
            (0.0123, "0.012 s"),
            (0.244, "0.24 s"),
            (4.06, "4.1 s"),
            (9.99, "10 s"),
            (41.4, "41 s"),
            (99.6, "2 min"),
            (725.0, "12 min"),
            (5990.0, "1 h 40 min"),
            (7790.0, "2 h 10 min"),
            (273_600.0, "3 days 4 h"),
        ] {
            assert_eq!(duration(seconds), want);
        }
    }

    #[test]
    fn nothing_has_no_sign() {
        let all = [-0.0, -4e-5, -6e-5, 0.0, -1.25, f64::NAN, f64::NEG_INFINITY].map(|x| decimals(x, 4));
        assert_eq!(all, ["0.0000", "0.0000", "-0.0001", "0.0000", "-1.2500", "NaN", "-inf"]);
    }

    #[test]
    fn sizes_have_units() {
        for (text, want) in [
            ("80GiB", 80 << 30),
            ("24 GB", 24_000_000_000),
            ("22.5gib", 24_159_191_040),
            ("1000000", 1_000_000),
            ("512 MiB", 512 << 20),
            (" 7B", 7),
        ] {
            assert_eq!(parse_bytes(text), Ok(want), "{text}");
        }
        for text in
            ["", "GiB", "80 G", "-1GB", "1e3", "0", "0.2", "nan", "inf", "80GiBs", "8 0GB", "1e99GB", "99999999TB"]
        {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
