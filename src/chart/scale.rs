//! Where a value lies on an axis, and the ticks that a person would choose.

/// An axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// The value at its beginning.
    pub low: f64,
    /// At its end.
    pub high: f64,
    /// Whether equal lengths are equal factors; both ends are then above 0.
    pub log: bool,
}

/// Ticks that an axis has at least, where it can.
const FEWEST: f64 = 3.0;

impl Scale {
    /// From the least to the largest value; a line that never moves lies in the middle.
    pub fn linear(low: f64, high: f64) -> Self {
        // Where they are so near that no number lies between, half of their size makes room.
        let half = match high - low > 1e-9 * low.abs().max(high.abs()) {
            true => 0.0,
            false if low == 0.0 => 0.5,
            false => low.abs() / 2.0,
        };
        Self { low: low - half, high: high + half, log: false }
    }

    /// Likewise, by factors. Both above 0.
    pub fn logarithmic(low: f64, high: f64) -> Self {
        let (low, high) = if high > low { (low, high) } else { (low / 2.0, high * 2.0) };
        Self { low, high, log: true }
    }

    /// Where `value` lies: 0 at the beginning, 1 at the end.
    pub fn at(&self, value: f64) -> f64 {
        match self.log {
            true => (value / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        }
    }

    /// With a share of its length more at both ends.
    pub fn padded(self, share: f64) -> Self {
        match self.log {
            true => {
                let by = (self.high / self.low).powf(share);
                Self { low: self.low / by, high: self.high * by, ..self }
            }
            false => {
                let by = (self.high - self.low) * share;
                Self { low: self.low - by, high: self.high + by, ..self }
            }
        }
    }

    /// Values on it to be named, about `wanted` of them, with their names.
    pub fn ticks(&self, wanted: usize) -> Vec<(f64, String)> {
        if self.log {
            let all = self.decades(wanted);
            if all.len() >= 2 {
                return all;
            }
        }
        // One tick alone says nothing of how far it is to another.
        let within = |step: f64| ((self.low / step).ceil(), (self.high / step).floor());
        let steps = || (wanted..wanted + 4).map(|n| step(self.high - self.low, n));
        let step =
            steps().find(|s| within(*s).1 > within(*s).0).unwrap_or_else(|| step(self.high - self.low, wanted + 4));
        let (first, last) = within(step);
        let count = (last - first).clamp(0.0, 50.0) as usize;
        let values = (0..=count).map(|i| (first + i as f64) * step);
        let largest = self.low.abs().max(self.high.abs());
        values.map(|v| (v, label(v, step, largest))).collect()
    }

    /// Powers of ten, or 1, 2 and 5 of each, or some of the powers.
    fn decades(&self, wanted: usize) -> Vec<(f64, String)> {
        let (from, to) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
        let within = |v: &f64| *v >= self.low * (1.0 - 1e-9) && *v <= self.high * (1.0 + 1e-9);
        let every = (((to - from) as usize).div_ceil(wanted.max(1))).max(1);
        let powers = (from..=to).filter(|p| p.rem_euclid(every as i32) == 0).map(|p| 10f64.powi(p));
        let mut all: Vec<f64> = powers.filter(within).collect();
        if (all.len() as f64) < FEWEST {
            let finer = (from..=to).flat_map(|p| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(p)));
            all = finer.filter(within).collect();
        }
        all.into_iter().map(|v| (v, short(v))).collect()
    }
}

/// 1, 2, 2.5 or 5 times a power of ten, so that about `wanted` of them fit.
fn step(length: f64, wanted: usize) -> f64 {
    let rough = length / wanted.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let times = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|m| m * power >= rough * 0.999);
    times.unwrap_or(10.0) * power
}

/// Letters for thousands and their powers.
const UNITS: [(f64, &str); 4] = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];

/// A tick's name: with as many digits as tell it from its neighbours.
fn label(value: f64, step: f64, largest: f64) -> String {
    if value.abs() < step / 1e6 {
        return "0".into();
    }
    let digits = |step: f64| {
        let places = (-step.log10()).ceil().max(0.0) as usize;
        // 2.5 needs one more than 2.
        let rest = step * 10f64.powi(places as i32);
        (places + usize::from((rest - rest.round()).abs() > 1e-6)).min(17)
    };
    if !(1e-3..1e15).contains(&largest) {
        let power = largest.log10().floor() as i32;
        let unit = 10f64.powi(power);
        return format!("{:.*}e{power}", digits(step / unit), value / unit);
    }
    match UNITS.iter().find(|(unit, _)| largest >= *unit * 10.0) {
        Some((unit, name)) => format!("{:.*}{name}", digits(step / unit), value / unit),
        None => format!("{:.*}", digits(step), value),
    }
}

/// A number in four digits, without zeros that say nothing.
pub fn short(x: f64) -> String {
    let plain = |text: String| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    };
    match x.abs() {
        0.0 => "0".into(),
        size if !size.is_finite() => format!("{x}"),
        size if !(1e-3..1e5).contains(&size) => {
            let text = format!("{x:.3e}");
            let (number, power) = text.split_once('e').unwrap_or((&text, "0"));
            format!("{}e{power}", plain(number.to_owned()))
        }
        size => plain(format!("{x:.0$}", (3.0 - size.log10().floor()).clamp(0.0, 4.0) as usize)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(scale: Scale, wanted: usize) -> Vec<String> {
        scale.ticks(wanted).into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn ticks_are_those_of_a_person() {
        for (scale, want) in [
            (Scale::linear(0.0, 1.0), vec!["0", "0.25", "0.50", "0.75", "1.00"]),
            (Scale::linear(0.31, 0.69), vec!["0.4", "0.5", "0.6"]),
            (Scale::linear(-120.0, -80.0), vec!["-120", "-110", "-100", "-90", "-80"]),
            (Scale::linear(0.0, 2e-5), vec!["0", "0.5e-5", "1.0e-5", "1.5e-5", "2.0e-5"]),
            (Scale::linear(0.0, 100_000.0), vec!["0", "25k", "50k", "75k", "100k"]),
            (Scale::linear(0.0, 2_500_000.0), vec!["0", "1000k", "2000k"]),
            (Scale::logarithmic(1e-6, 1e-3), vec!["1e-6", "1e-5", "1e-4", "0.001"]),
            (Scale::logarithmic(0.5, 6.0), vec!["0.5", "1", "2", "5"]),
            (Scale::linear(3.0, 3.0), vec!["2", "3", "4"]),
            (Scale::linear(0.0, 0.0), vec!["-0.50", "-0.25", "0", "0.25", "0.50"]),
        ] {
            assert_eq!(names(scale, 4), want, "{scale:?}");
        }
    }

    proptest! {
        /// There are some, they lie on the axis, in order, and no two have one name.
        #[test]
        fn ticks_tell_values_apart(a in -1e9f64..1e9, size in -12i32..13, log: bool, wanted in 2usize..8) {
            let length = 10f64.powi(size) * (1.0 + a.abs() / 1e9);
            let scale = match log {
                true => Scale::logarithmic(length, length * (3.0 + a.abs() / 1e5)),
                false => Scale::linear(a * length / 1e9, a * length / 1e9 + length),
            };
            let ticks = scale.ticks(wanted);
            prop_assert!((2..=24).contains(&ticks.len()), "{:?}", ticks);
            prop_assert!(ticks.iter().all(|(v, _)| (-1e-6..=1.000001).contains(&scale.at(*v))), "{scale:?} {ticks:?}");
            prop_assert!(ticks.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 != w[1].1), "{scale:?} {ticks:?}");
        }
    }

    #[test]
    fn numbers() {
        for (x, want) in [
            (0.0, "0"),
            (std::f64::consts::LN_2, "0.6931"),
            (-1.5, "-1.5"),
            (1234.5, "1234"),
            (1e-5, "1e-5"),
            (2.5e6, "2.5e6"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(short(x), want);
        }
    }
}
