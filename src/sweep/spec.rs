//! The file of a sweep.

use super::axis::Axis;
use super::points::{self, Point};
use crate::choice::Choice;
use crate::error::{Error, Result};
use crate::files::parse_toml;
use crate::train::options::Stage;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Runs of one sweep.
const MOST: usize = 10_000;

/// What a sweep's runs are, and how each is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Whether they are runs of `sft` or of `dpo`.
    pub stage: Stage,
    /// Options that all have, by key.
    pub base: Table,
    /// The runs, in the order of the table.
    pub points: Vec<Point>,
    /// The keys that vary.
    pub varied: Vec<String>,
    /// How they are measured.
    pub measure: Measure,
    /// All that the file says.
    pub table: Table,
}

/// `[sweep]`: how runs are drawn and measured.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Measure {
    /// Runs that are drawn, of `[random]`.
    pub draws: Option<usize>,
    /// Seed of those draws.
    pub draw_seed: Option<u64>,
    /// A known reward.
    pub reward: Option<Reward>,
    /// A program that scores, and its arguments.
    pub scorer: Option<Vec<String>>,
    /// Seconds that it has for a run's responses.
    pub scorer_timeout: Option<f64>,
    /// Rows with prompts; `None`: those of the data's held-out split.
    pub prompts: Option<PathBuf>,
    /// Prompts of the data that are continued, the first ones.
    pub samples: Option<usize>,
    /// Longest response, in tokens.
    pub max_new_tokens: usize,
    /// Of the draws of responses.
    pub temperature: f64,
    /// Likeliest tokens that responses are drawn from, by their probability together.
    pub top_p: f64,
    /// Seed of responses, and of the KL estimate's.
    pub sample_seed: u64,
    /// Samples of the KL estimate; 0: none.
    pub kl_samples: usize,
}

impl Default for Measure {
    fn default() -> Self {
        Self {
            draws: None,
            draw_seed: None,
            reward: None,
            scorer: None,
            scorer_timeout: None,
            prompts: None,
            samples: None,
            max_new_tokens: 64,
            temperature: 1.0,
            top_p: 1.0,
            sample_seed: 42,
            kl_samples: 64,
        }
    }
}

/// A reward that the program itself knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reward {
    /// The sentiment of the demo's reviews.
    Demo,
}

/// What each key of `[sweep]` takes, in words.
const TAKES: [(&str, &str); 12] = [
    ("draws", "a whole number, 1 or more"),
    ("draw_seed", "a whole number, 0 or more"),
    ("reward", "\"demo\""),
    ("scorer", "a list of a program and its arguments, as in [\"python3\", \"score.py\"]"),
    ("scorer_timeout", "a number of seconds"),
    ("prompts", "the name of a file"),
    ("samples", "a whole number, 1 or more"),
    ("max_new_tokens", "a whole number, 1 or more"),
    ("temperature", "a number, 0 or more"),
    ("top_p", "a number above 0, at most 1"),
    ("sample_seed", "a whole number, 0 or more"),
    ("kl_samples", "a whole number, 0 or more"),
];

impl Measure {
    /// As the table `[sweep]` says. Errors: a key that there is not, or one with what it does not take; in words.
    fn of(table: Table) -> Result<Self, String> {
        for (key, value) in &table {
            let Some((_, takes)) = TAKES.iter().find(|(known, _)| known == key) else {
                let known = TAKES.map(|(known, _)| known).join(", ");
                return Err(format!("`{key}` is none of what this table has: {known}"));
            };
            // One by one, so that the error can name its key.
            if Table::from_iter([(key.clone(), value.clone())]).try_into::<Self>().is_err() {
                return Err(format!("`{key}` is {value}, not {takes}"));
            }
        }
        table.try_into().map_err(|e: toml::de::Error| e.message().split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// Whether responses are generated and scored.
    pub fn scores(&self) -> bool {
        self.reward.is_some() || self.scorer.is_some()
    }

    /// Ranges, and what has no effect beside what else is asked for; in words.
    fn check(&self, random: bool, said: &Table) -> Result<(), String> {
        let given = |key: &str| said.contains_key(key);
        let of_random = [("draws", self.draws.is_some()), ("draw_seed", self.draw_seed.is_some())];
        if let (Some((key, _)), false) = (of_random.iter().find(|(_, given)| *given), random) {
            return Err(format!("`{key}` has no effect: nothing is drawn without [random]"));
        }
        if random && self.draws.is_none_or(|n| n == 0) {
            return Err("`draws` says how many runs [random] draws, 1 or more; give it".into());
        }
        if self.reward.is_some() && self.scorer.is_some() {
            return Err("`reward` and `scorer` both say what is good; leave one of them out".into());
        }
        if self.scorer.as_ref().is_some_and(|words| words.first().is_none_or(String::is_empty)) {
            return Err("`scorer` names no program".into());
        }
        let of_scores = [
            ("scorer_timeout", self.scorer_timeout.is_some(), self.scorer.is_some(), "`scorer`"),
            ("prompts", self.prompts.is_some(), self.scores(), "`reward` or `scorer`"),
            ("samples", self.samples.is_some(), self.scores(), "`reward` or `scorer`"),
            ("temperature", given("temperature"), self.scores(), "`reward` or `scorer`"),
            ("top_p", given("top_p"), self.scores(), "`reward` or `scorer`"),
        ];
        if let Some((key, .., needs)) = of_scores.iter().find(|(_, given, used, _)| *given && !used) {
            return Err(format!("`{key}` has no effect: nothing is scored; give {needs}, or leave it out"));
        }
        if self.prompts.is_some() && self.samples.is_some() {
            return Err("`samples` has no effect: every row of `prompts` is continued; leave one of them out".into());
        }
        self.check_draws(&given)?;
        let above_0 = |x: f64| x.is_finite() && x > 0.0;
        let ranges = [
            ("scorer_timeout", self.scorer_timeout.is_none_or(|s| above_0(s) && s <= 1e6), "above 0, at most 1000000"),
            ("samples", self.samples.is_none_or(|n| n > 0), "1 or more"),
            ("max_new_tokens", self.max_new_tokens > 0, "1 or more"),
            ("temperature", self.temperature.is_finite() && self.temperature >= 0.0, "0 or more"),
            ("top_p", self.top_p > 0.0 && self.top_p <= 1.0, "above 0, at most 1"),
        ];
        match ranges.iter().find(|(_, ok, _)| !ok) {
            Some((key, _, range)) => Err(format!("`{key}` must be {range}")),
            None => Ok(()),
        }
    }
}

impl Measure {
    /// What says how to draw has no effect where nothing is drawn.
    fn check_draws(&self, given: &dyn Fn(&str) -> bool) -> Result<(), String> {
        if self.kl_samples == 0 && !self.scores() {
            let why = "with `kl_samples` 0 and without `reward` or `scorer` nothing is drawn; leave it out";
            let key = ["max_new_tokens", "sample_seed"].into_iter().find(|key| given(key));
            return key.map_or(Ok(()), |key| Err(format!("`{key}` has no effect: {why}")));
        }
        if self.temperature == 0.0 {
            let why = "with `temperature` 0 the likeliest token is always taken; give another, or leave it out";
            let top_p = self.top_p > 0.0 && self.top_p < 1.0;
            let of_draws = [("top_p", top_p), ("sample_seed", given("sample_seed") && self.kl_samples == 0)];
            if let Some((key, _)) = of_draws.into_iter().find(|(_, given)| *given) {
                return Err(format!("`{key}` has no effect: {why}"));
            }
        }
        Ok(())
    }
}

impl Spec {
    /// Reads the text of `path`. The options' own names and values are for the command to check.
    ///
    /// Errors: no TOML; a table or a key of `[sweep]` that there is not; no axis, or one without values; too many runs.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        Self::of(parse_toml(path, text)?).map_err(|why| Error::file(path, why))
    }

    fn of(table: Table) -> Result<Self, String> {
        let mut base = table.clone();
        let stage = match base.remove("stage") {
            None => Stage::Dpo,
            Some(name) => name
                .as_str()
                .and_then(Stage::named)
                .ok_or_else(|| format!("`stage` is {name}, neither \"sft\" nor \"dpo\""))?,
        };
        let (grid, random) = (base.remove("grid"), base.remove("random"));
        let said = match base.remove("sweep") {
            None => Table::new(),
            Some(Value::Table(said)) => said,
            Some(other) => return Err(format!("`sweep` is {other}, not the table [sweep]")),
        };
        let of_sweep = |why: String| format!("[sweep]: {why}");
        let measure = Measure::of(said.clone()).map_err(of_sweep)?;
        if let Some((key, _)) = base.iter().find(|(_, value)| value.is_table()) {
            return Err(format!("[{key}] is none of the tables of a sweep: [grid], [random], [sweep]"));
        }
        let (name, of) = match (grid, random) {
            (Some(of), None) => ("grid", of),
            (None, Some(of)) => ("random", of),
            (Some(_), Some(_)) => return Err("has both [grid] and [random]; a sweep is one of them".into()),
            (None, None) => return Err("has neither [grid] nor [random]: nothing is searched over".into()),
        };
        measure.check(name == "random", &said).map_err(of_sweep)?;
        let Value::Table(of) = of else { return Err(format!("`{name}` is {of}, not the table [{name}]")) };
        let axes = axes(name, &of, &base)?;
        let points = match name {
            "grid" => {
                let count = axes.iter().try_fold(1usize, |n, (_, axis)| n.checked_mul(axis.all().len()));
                let count = count.unwrap_or(usize::MAX);
                if count > MOST {
                    return Err(format!("[grid] has {count} runs; a sweep has at most {MOST}"));
                }
                points::grid(&axes)
            }
            _ => {
                let draws = measure.draws.unwrap_or(0);
                if draws > MOST {
                    return Err(format!("[sweep]: `draws` is {draws}; a sweep has at most {MOST} runs"));
                }
                points::random(&axes, draws, measure.draw_seed.unwrap_or(42)).ok_or_else(|| {
                    format!("[random] does not have {draws} different runs; lower `draws`, or widen what is drawn from")
                })?
            }
        };
        let varied = axes.into_iter().map(|(key, _)| key).collect();
        Ok(Self { stage, base, points, varied, measure, table })
    }

    /// All options of a point, by key.
    pub fn options(&self, point: &Point) -> Table {
        let mut all = self.base.clone();
        all.extend(point.values.clone());
        all
    }
}

fn axes(name: &str, of: &Table, base: &Table) -> Result<Vec<(String, Axis)>, String> {
    if of.is_empty() {
        return Err(format!("[{name}] is empty: nothing is searched over"));
    }
    let axis = |(key, value): (&String, &Value)| {
        if base.contains_key(key) {
            return Err(format!("`{key}` stands in [{name}] and outside; leave one of them out"));
        }
        let axis = Axis::of(value, name == "grid").map_err(|why| format!("[{name}]: `{key}` {why}"))?;
        Ok((key.clone(), axis))
    };
    of.iter().map(axis).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Spec, String> {
        Spec::parse(Path::new("s.toml"), text).map_err(|e| e.to_string())
    }

    #[test]
    fn a_file_says_what_varies_and_what_does_not() {
        let spec = of("stage = 'sft'\nmodel = 'm'\n[grid]\nseed = [1, 2]\nbatch_size = [4]\n[sweep]\nreward = 'demo'")
            .unwrap();
        assert_eq!((spec.stage, spec.points.len(), spec.measure.scores()), (Stage::Sft, 2, true));
        assert_eq!(spec.varied, ["batch_size", "seed"]);
        let want: Table = "model = 'm'\nbatch_size = 4\nseed = 2".parse().unwrap();
        assert_eq!(spec.options(&spec.points[1]), want);
    }

    #[test]
    fn every_key_says_what_it_takes() {
        let wrong: Value = toml::Value::Array(vec![Value::Boolean(true)]);
        for (key, takes) in TAKES {
            let why = Measure::of(Table::from_iter([(key.to_owned(), wrong.clone())])).unwrap_err();
            assert_eq!(why, format!("`{key}` is [true], not {takes}"));
        }
        let sound =
            "[grid]\nbeta = [1]\n[sweep]\nreward = 'demo'\ntemperature = 0\nsample_seed = 1\nmax_new_tokens = 3";
        assert_eq!(of(sound).unwrap().measure.temperature, 0.0);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let grid = "[grid]\nbeta = [1]\n";
        for (text, want) in [
            ("x = [", "s.toml: line 1: "),
            ("beta = 1", "neither [grid] nor [random]"),
            ("[grid]\nbeta=[1]\n[random]\nbeta=[1]", "both [grid] and [random]"),
            ("[grid]", "[grid] is empty"),
            ("[grid]\nbeta = []", "[grid]: `beta` is empty"),
            ("beta = 1\n[grid]\nbeta = [2]", "and outside"),
            ("grid = 3", "not the table [grid]"),
            ("stage = 'ppo'\n[grid]\nbeta = [1]", "neither \"sft\" nor \"dpo\""),
            (&format!("{grid}[gird]\nx = 1"), "[gird] is none of the tables"),
            (&format!("{grid}[sweep]\nsample = 1"), "[sweep]: `sample` is none of what this table has: draws, "),
            (&format!("{grid}[sweep]\nreward = 'x'"), "[sweep]: `reward` is \"x\", not \"demo\""),
            (&format!("{grid}[sweep]\nkl_samples = -4"), "[sweep]: `kl_samples` is -4, not a whole number, 0 or more"),
            (
                &format!("{grid}[sweep]\nscorer = 'python3 x.py'"),
                "`scorer` is \"python3 x.py\", not a list of a program",
            ),
            (&format!("{grid}[sweep]\ntemperature = 'hot'"), "`temperature` is \"hot\", not a number, 0 or more"),
            (&format!("{grid}[sweep]\nprompts = 3"), "`prompts` is 3, not the name of a file"),
            (
                &format!("{grid}[sweep]\nkl_samples = 0\nmax_new_tokens = 9"),
                "`max_new_tokens` has no effect: with `kl_samples` 0",
            ),
            (
                &format!("{grid}[sweep]\nkl_samples = 0\nsample_seed = 42"),
                "`sample_seed` has no effect: with `kl_samples` 0",
            ),
            (&format!("{grid}[sweep]\ntemperature = 1"), "`temperature` has no effect: nothing is scored"),
            (
                &format!("{grid}[sweep]\nreward = 'demo'\ntemperature = 0\ntop_p = 0.5"),
                "`top_p` has no effect: with `temperature` 0",
            ),
            (
                &format!("{grid}[sweep]\nreward = 'demo'\nkl_samples = 0\ntemperature = 0.0\nsample_seed = 1"),
                "`sample_seed` has no effect: with `temperature` 0",
            ),
            (&format!("{grid}[sweep]\ndraws = 3"), "`draws` has no effect"),
            ("[random]\nbeta = [1, 2]", "`draws` says how many"),
            ("[random]\nbeta = [1, 2]\n[sweep]\ndraws = 3", "does not have 3 different runs"),
            (&format!("{grid}[sweep]\nreward = 'demo'\nscorer = ['a']"), "leave one of them out"),
            (&format!("{grid}[sweep]\nscorer = []"), "names no program"),
            (&format!("{grid}[sweep]\nsamples = 3"), "`samples` has no effect"),
            (&format!("{grid}[sweep]\nscorer_timeout = 3"), "`scorer_timeout` has no effect"),
            (&format!("{grid}[sweep]\nscorer = ['a']\nscorer_timeout = 0"), "`scorer_timeout` must be"),
            (&format!("{grid}[sweep]\nreward = 'demo'\ntop_p = 1.5"), "`top_p` must be"),
            (&format!("{grid}[sweep]\nmax_new_tokens = 0"), "`max_new_tokens` must be"),
            (
                "[grid]\nseed = { min = 1, max = 101, steps = 101 }\nbeta = { min = 1, max = 100, steps = 100 }",
                "has 10100 runs",
            ),
        ] {
            let why = of(text).unwrap_err();
            assert!(why.contains(want) && why.lines().count() == 1, "{text}: {why}");
        }
    }
}
