//! The values that one option takes.

use toml::Value;

/// Values of an option: given, or drawn.
#[derive(Clone, Debug, PartialEq)]
pub enum Axis {
    /// These.
    List(Vec<Value>),
    /// Numbers from `min` to `max`.
    Range {
        /// The least.
        min: f64,
        /// The greatest; above `min`.
        max: f64,
        /// Even in the logarithm; then both are above 0.
        log: bool,
        /// Whole numbers only.
        whole: bool,
        /// How many, of a grid.
        steps: Option<usize>,
    },
}

/// Values of a range, in a grid.
const STEPS: std::ops::RangeInclusive<usize> = 2..=10_000;

/// What a range may say.
const KEYS: [&str; 4] = ["min", "max", "log", "steps"];

impl Axis {
    /// What a file says of an option: a list, or a table `{ min, max, log, steps }`. Errors: in words, without the option's name.
    pub fn of(value: &Value, in_grid: bool) -> Result<Self, String> {
        match value {
            Value::Array(list) if list.is_empty() => Err("is empty; give values, or leave it out".into()),
            Value::Array(list) => match list.iter().enumerate().find(|(i, v)| list[..*i].contains(v)) {
                Some((_, twice)) => Err(format!("has {twice} twice")),
                None => Ok(Self::List(list.clone())),
            },
            Value::Table(table) => Self::range(table, in_grid),
            _ => Err("is neither a list of values nor a range { min, max }; what does not vary stands outside".into()),
        }
    }

    fn range(table: &toml::Table, in_grid: bool) -> Result<Self, String> {
        if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(format!("`{key}` is none of what a range has: {}", KEYS.join(", ")));
        }
        let end = |key: &str| {
            let value = table.get(key).ok_or_else(|| format!("has no `{key}`"))?;
            let number = value.as_float().or_else(|| value.as_integer().map(|n| n as f64));
            number.filter(|x| x.is_finite()).ok_or_else(|| format!("`{key}` is {value}, not a finite number"))
        };
        let (min, max) = (end("min")?, end("max")?);
        let whole = ["min", "max"].iter().all(|key| table[*key].is_integer());
        let log = match table.get("log") {
            None => false,
            Some(log) => log.as_bool().ok_or_else(|| format!("`log` is {log}, neither true nor false"))?,
        };
        let steps = match table.get("steps") {
            None => None,
            Some(n) => match n.as_integer().and_then(|n| usize::try_from(n).ok()).filter(|n| STEPS.contains(n)) {
                None => return Err(format!("`steps` is {n}, not a whole number from 2 to 10000")),
                steps => steps,
            },
        };
        match () {
            () if min >= max => Err(format!("`min` {min} is not below `max` {max}")),
            () if log && min <= 0.0 => Err(format!("`min` is {min}: even in the logarithm are numbers above 0")),
            () if in_grid && steps.is_none() => Err("is a range, of which a grid takes `steps` values; give it".into()),
            () if !in_grid && steps.is_some() => Err("`steps` is of a grid; `draws` says how often is drawn".into()),
            () => Self::Range { min, max, log, whole, steps }.distinct(),
        }
    }

    /// Refuses a grid of more steps than there are values: fewer runs than were asked for would be made.
    fn distinct(self) -> Result<Self, String> {
        let (count, Self::Range { steps: Some(steps), whole, .. }) = (self.all().len(), &self) else { return Ok(self) };
        let what = if *whole { "whole numbers" } else { "numbers in four digits" };
        match count < *steps {
            true => Err(format!("has {count} different {what} at `steps` {steps}; lower it")),
            false => Ok(self),
        }
    }

    /// The values of a grid, in order, each once.
    pub fn all(&self) -> Vec<Value> {
        match self {
            Self::List(list) => list.clone(),
            Self::Range { steps, .. } => {
                let steps = steps.unwrap_or(2);
                let mut all: Vec<Value> = Vec::with_capacity(steps);
                for i in 0..steps {
                    let value = self.at(i as f64 / (steps - 1) as f64);
                    // Steps may lie nearer together than numbers.
                    if all.last() != Some(&value) {
                        all.push(value);
                    }
                }
                all
            }
        }
    }

    /// The value at `u` in `[0, 1]`: of a range `min` at 0 and `max` at 1, in four digits; of a list the nearest below.
    pub fn at(&self, u: f64) -> Value {
        match self {
            Self::List(list) => list[((u * list.len() as f64) as usize).min(list.len() - 1)].clone(),
            Self::Range { min, max, log, whole, .. } => {
                let x = match log {
                    true => (min.ln() + u * (max.ln() - min.ln())).exp(),
                    false => min + u * (max - min),
                };
                let x = x.clamp(*min, *max);
                match whole {
                    true => Value::Integer(x.round() as i64),
                    false => Value::Float(format!("{x:.3e}").parse::<f64>().unwrap_or(x).clamp(*min, *max)),
                }
            }
        }
    }

    /// The value that `u`, uniform in `[0, 1)`, draws: whole numbers are as likely as each other where they are not even in the
    /// logarithm.
    pub fn draw(&self, u: f64) -> Value {
        match self {
            Self::Range { min, max, log: false, whole: true, .. } => {
                Value::Integer((min + (u * (max - min + 1.0)).floor()).min(*max) as i64)
            }
            _ => self.at(u),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(text: &str, in_grid: bool) -> Result<Axis, String> {
        let table: toml::Table = format!("x = {text}").parse().unwrap();
        Axis::of(&table["x"], in_grid)
    }

    #[test]
    fn grids_have_their_values() {
        let all = |text: &str| Value::Array(axis(text, true).unwrap().all()).to_string();
        assert_eq!(all("[0.1, 0.3]"), "[0.1, 0.3]");
        assert_eq!(all("['ipo', ['ipo', 'sft']]"), "[\"ipo\", [\"ipo\", \"sft\"]]");
        assert_eq!(all("{ min = 0.001, max = 1, log = true, steps = 4 }"), "[0.001, 0.01, 0.1, 1.0]");
        assert_eq!(all("{ min = 1, max = 4, steps = 4 }"), "[1, 2, 3, 4]");
        assert_eq!(all("{ min = 0.0, max = 1.0, steps = 3 }"), "[0.0, 0.5, 1.0]");
    }

    /// Against the distribution function: the share of draws below each tenth of the range.
    #[test]
    fn draws_are_even() {
        let n = 20_000;
        let us = (0..n).map(|i| crate::model::sample::uniform(7, 0, i));
        let log = axis("{ min = 1e-6, max = 1e-2, log = true }", false).unwrap();
        let even = axis("{ min = -2.0, max = 3.0 }", false).unwrap();
        let whole = axis("{ min = 3, max = 7 }", false).unwrap();
        let (mut counts, mut wholes) = ([[0; 10]; 2], [0; 5]);
        for u in us {
            let [x, y] = [&log, &even].map(|a| a.draw(u).as_float().unwrap());
            assert!((1e-6..=1e-2).contains(&x) && (-2.0..=3.0).contains(&y));
            counts[0][((x.ln() - 1e-6f64.ln()) / 1e4f64.ln() * 10.0).min(9.0) as usize] += 1;
            counts[1][((y + 2.0) * 2.0).min(9.0) as usize] += 1;
            wholes[(whole.draw(u).as_integer().unwrap() - 3) as usize] += 1;
        }
        // Six standard deviations, and what four digits move.
        assert!(counts.iter().flatten().all(|c| (c - 2000i64).abs() < 300), "{counts:?}");
        assert!(wholes.iter().all(|c| (c - 4000i64).abs() < 350), "{wholes:?}");
    }

    #[test]
    fn what_is_no_axis_is_named() {
        for (text, in_grid, want) in [
            ("[]", true, "is empty"),
            ("[1, 2, 1]", true, "has 1 twice"),
            ("3", true, "neither a list"),
            ("{ min = 1 }", false, "has no `max`"),
            ("{ min = 1, max = 'a' }", false, "not a finite number"),
            ("{ min = 1, max = inf }", false, "not a finite number"),
            ("{ min = 2, max = 1 }", false, "is not below"),
            ("{ min = 0, max = 1, log = true }", false, "above 0"),
            ("{ min = 1, max = 2, log = 1 }", false, "neither true nor false"),
            ("{ min = 1, max = 2 }", true, "takes `steps` values"),
            ("{ min = 1, max = 2, steps = 3 }", false, "is of a grid"),
            ("{ min = 1, max = 2, steps = 1 }", true, "from 2 to 10000"),
            ("{ min = 1, max = 2, step = 1 }", true, "`step` is none of"),
            ("{ min = 4, max = 8, steps = 9 }", true, "has 5 different whole numbers at `steps` 9; lower it"),
            ("{ min = 1, max = 8, log = true, steps = 6 }", true, "has 5 different whole numbers at `steps` 6"),
            (
                "{ min = 0.1, max = 1, steps = 10000 }",
                true,
                "has 9001 different numbers in four digits at `steps` 10000",
            ),
        ] {
            let why = axis(text, in_grid).unwrap_err();
            assert!(why.contains(want), "{text}: {why}");
        }
    }
}
