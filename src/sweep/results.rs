//! What came of a sweep's runs: `sweep.json`, `sweep.csv`, and the table that is printed.

use super::points::{number, word};
use crate::train::options::Stage;
use crate::train::spread::mean_95;
use crate::units::decimals;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// A run and what was measured of it; `None`: not, or not yet.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    /// The run's folder.
    pub name: String,
    /// What it has that others have not.
    pub options: Map<String, Value>,
    /// Steps taken.
    pub steps: Option<u64>,
    /// Its own loss on the held-out split: of the model that it kept, which is that of the last step or of its best evaluation.
    pub eval_loss: Option<f64>,
    /// Share of held-out pairs whose chosen response has the greater implicit reward.
    pub accuracy: Option<f64>,
    /// KL divergence from the reference, by samples: nats a response.
    pub kl: Option<f64>,
    /// Its 95 % interval.
    pub kl_ci95: Option<[f64; 2]>,
    /// Mean score of the responses.
    pub reward: Option<f64>,
    /// Its 95 % interval.
    pub reward_ci95: Option<[f64; 2]>,
    /// Responses that were scored.
    pub samples: Option<usize>,
    /// Whether no other run has at least its reward at no more KL.
    pub on_frontier: bool,
    /// Why something is missing.
    pub error: Option<String>,
}

/// Mean and interval of a run's scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, serde::Deserialize)]
pub struct Scores {
    /// Mean.
    pub reward: f64,
    /// 95 % interval (normal approximation).
    pub reward_ci95: [f64; 2],
    /// How many.
    pub samples: usize,
}

impl Scores {
    /// Of some scores.
    pub fn of(scores: &[f64]) -> Self {
        let [mean, half] = mean_95(scores);
        Self { reward: mean, reward_ci95: [mean - half, mean + half], samples: scores.len() }
    }
}

/// All of a sweep's runs, in its order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Results {
    /// Of this file's form.
    pub version: u32,
    /// `sft` or `dpo`.
    pub stage: Stage,
    /// The options that vary.
    pub varied: Vec<String>,
    /// Whether every run is through.
    pub complete: bool,
    /// The runs.
    pub runs: Vec<Row>,
}

impl Results {
    /// Marks the rows on the frontier.
    pub fn mark_frontier(&mut self) {
        let all: Vec<Option<(f64, f64)>> = self.runs.iter().map(|r| r.kl.zip(r.reward)).collect();
        for (row, own) in self.runs.iter_mut().zip(&all) {
            let beaten = |(kl, reward): (f64, f64)| {
                all.iter().flatten().any(|(k, r)| *k <= kl && *r >= reward && (*k < kl || *r > reward))
            };
            row.on_frontier = own.is_some_and(|own| !beaten(own));
        }
    }

    /// `sweep.json`.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain values") + "\n"
    }

    /// `sweep.csv`: a line a run, the options that vary first.
    pub fn csv(&self) -> String {
        let fixed = [
            "steps",
            "eval_loss",
            "accuracy",
            "kl",
            "kl_low",
            "kl_high",
            "reward",
            "reward_low",
            "reward_high",
            "samples",
            "on_frontier",
            "error",
        ];
        let head = ["name".to_owned()].into_iter().chain(self.varied.iter().cloned());
        let mut out = csv::Writer::from_writer(Vec::new());
        let mut line = |cells: Vec<String>| out.write_record(cells).expect("as many cells a line, into memory");
        line(head.chain(fixed.map(str::to_owned)).collect());
        for r in &self.runs {
            let own = self.varied.iter().map(|key| r.options.get(key).map_or_else(String::new, plain));
            let float = |x: Option<f64>| x.map_or_else(String::new, |x| x.to_string());
            let ends = |ci: Option<[f64; 2]>| [float(ci.map(|c| c[0])), float(ci.map(|c| c[1]))];
            let ([kl_low, kl_high], [low, high]) = (ends(r.kl_ci95), ends(r.reward_ci95));
            let cells = [
                r.steps.map_or_else(String::new, |n| n.to_string()),
                float(r.eval_loss),
                float(r.accuracy),
                float(r.kl),
                kl_low,
                kl_high,
                float(r.reward),
                low,
                high,
                r.samples.map_or_else(String::new, |n| n.to_string()),
                r.on_frontier.to_string(),
                r.error.clone().unwrap_or_default(),
            ];
            line([r.name.clone()].into_iter().chain(own).chain(cells).collect());
        }
        String::from_utf8(out.into_inner().expect("memory takes all")).expect("cells are text")
    }

    /// For people: a line a run with its number, and `*` on the frontier; columns that nobody has are left out.
    pub fn table(&self) -> Vec<String> {
        let pm = |x: Option<f64>, ci: Option<[f64; 2]>| {
            let half = ci.map_or_else(String::new, |c| format!(" +- {}", decimals((c[1] - c[0]) / 2.0, 3)));
            x.map_or_else(|| "-".to_owned(), |x| decimals(x, 3) + &half)
        };
        let plain_number = |x: Option<f64>| x.map_or_else(|| "-".to_owned(), |x| decimals(x, 4));
        let mut columns: Vec<(String, Vec<String>)> = vec![(
            String::new(),
            self.runs
                .iter()
                .enumerate()
                .map(|(i, r)| format!("{}{}", i + 1, if r.on_frontier { "*" } else { "" }))
                .collect(),
        )];
        for key in &self.varied {
            columns
                .push((key.clone(), self.runs.iter().map(|r| r.options.get(key).map_or("-".into(), shown)).collect()));
        }
        let mut add = |name: &str, any: bool, cells: Vec<String>| {
            if any {
                columns.push((name.to_owned(), cells));
            }
        };
        let rows = || self.runs.iter();
        let steps = |r: &Row| r.steps.map_or_else(|| "-".to_owned(), |n| n.to_string());
        add("steps", rows().any(|r| r.steps.is_some()), rows().map(steps).collect());
        let loss = rows().map(|r| plain_number(r.eval_loss)).collect();
        add("held-out loss", rows().any(|r| r.eval_loss.is_some()), loss);
        let accuracy = rows().map(|r| plain_number(r.accuracy)).collect();
        add("accuracy", rows().any(|r| r.accuracy.is_some()), accuracy);
        add("kl", rows().any(|r| r.kl.is_some()), rows().map(|r| pm(r.kl, r.kl_ci95)).collect());
        add("reward", rows().any(|r| r.reward.is_some()), rows().map(|r| pm(r.reward, r.reward_ci95)).collect());
        laid_out(&columns)
    }
}

fn laid_out(columns: &[(String, Vec<String>)]) -> Vec<String> {
    let width = |(head, cells): &(String, Vec<String>)| {
        cells.iter().chain([head]).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = columns.iter().map(width).collect();
    let row = |cell: &dyn Fn(usize) -> String| {
        let cells = widths.iter().enumerate().map(|(i, w)| format!("{:<w$}", cell(i)));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let head = row(&|i| columns[i].0.clone());
    let rows = (0..columns[0].1.len()).map(|r| row(&|i| columns[i].1[r].clone()));
    [head].into_iter().chain(rows).collect()
}

/// A value as text: of a list its parts with `+` between them.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join("+"),
        other => other.to_string(),
    }
}

fn shown(value: &Value) -> String {
    match value.as_f64().filter(|_| value.is_f64()) {
        Some(x) => number(x),
        None => plain(value),
    }
}

impl Row {
    /// Of a run of which nothing is known yet.
    pub fn new(name: &str, values: &toml::Table) -> Self {
        let options = values.iter().map(|(key, value)| (key.clone(), as_json(value))).collect();
        Self { name: name.to_owned(), options, ..Self::default() }
    }
}

fn as_json(value: &toml::Value) -> Value {
    match value {
        toml::Value::String(text) => json!(text),
        toml::Value::Integer(n) => json!(n),
        toml::Value::Float(x) => json!(x),
        toml::Value::Boolean(b) => json!(b),
        toml::Value::Array(list) => list.iter().map(as_json).collect(),
        other => json!(word(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(points: &[(Option<f64>, Option<f64>)]) -> Results {
        let runs = points.iter().enumerate().map(|(i, (kl, reward))| Row {
            name: format!("r{i}"),
            kl: *kl,
            reward: *reward,
            ..Row::default()
        });
        let mut all =
            Results { version: 1, stage: Stage::Dpo, varied: Vec::new(), complete: true, runs: runs.collect() };
        all.mark_frontier();
        all
    }

    /// Against the definition: what lies on it is beaten by nobody, and what does not by somebody on it.
    #[test]
    fn the_frontier_is_what_nobody_beats() {
        for seed in 0..200 {
            let u = |i| (crate::model::sample::uniform(seed, 1, i) * 5.0).floor();
            let points: Vec<_> = (0..8).map(|i| (Some(u(2 * i)), Some(u(2 * i + 1)))).collect();
            let all = results(&points);
            let at = |r: &Row| (r.kl.unwrap(), r.reward.unwrap());
            let beats = |a: (f64, f64), b: (f64, f64)| a.0 <= b.0 && a.1 >= b.1 && a != b;
            for row in &all.runs {
                let by = all.runs.iter().filter(|o| o.on_frontier && beats(at(o), at(row))).count();
                assert_eq!(row.on_frontier, by == 0, "{points:?}: {row:?}");
            }
        }
        let all = results(&[(None, Some(9.0)), (Some(1.0), Some(1.0)), (Some(0.0), None)]);
        assert_eq!(all.runs.iter().map(|r| r.on_frontier).collect::<Vec<_>>(), [false, true, false]);
    }

    #[test]
    fn means_have_intervals() {
        let s = Scores::of(&[1.0, 2.0, 3.0, 6.0]);
        let half = 1.96 * (14.0f64 / 3.0 / 4.0).sqrt();
        assert_eq!((s.reward, s.samples), (3.0, 4));
        assert!((s.reward_ci95[1] - 3.0 - half).abs() < 1e-12 && (3.0 - s.reward_ci95[0] - half).abs() < 1e-12);
        assert_eq!(Scores::of(&[2.0]).reward_ci95, [2.0, 2.0]);
    }

    #[test]
    fn csv_is_csv() {
        let mut all = results(&[(Some(1.5), Some(-2.0))]);
        all.runs[0].error = Some("a \"b\", c\nd".into());
        let text = all.csv();
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let heads = reader.headers().unwrap().clone();
        let row = reader.records().next().unwrap().unwrap();
        let cell = |name: &str| &row[heads.iter().position(|h| h == name).unwrap()];
        assert_eq!((cell("kl"), cell("reward"), cell("error")), ("1.5", "-2", "a \"b\", c\nd"));
    }
}
