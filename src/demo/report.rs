//! What DPO changed: a table, a histogram, the words, and texts to read.

use super::grammar::Grammar;
use super::samples::Sample;
use super::stages::{Accuracy, thousands};
use crate::say;
use crate::train::kl::KlEstimate;
use crate::train::spread::mean_95;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// Texts shown of each model.
const SHOWN: usize = 6;
/// Phrases shown that became more, and less, frequent.
const PHRASES: usize = 5;
/// Bars of the histogram.
const BARS: usize = 5;

/// A mean over prompts with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// Half the width of its interval (normal approximation).
    pub half_width_95: f64,
}

impl Mean {
    /// Of one number a prompt. Responses to one prompt are not independent of each other, prompts are.
    pub fn over(x: impl Iterator<Item = f64>) -> Self {
        let x: Vec<f64> = x.collect();
        let [mean, half_width_95] = mean_95(&x);
        Self { mean, half_width_95 }
    }

    /// Of `f` of every sample.
    fn of(samples: &[Vec<Sample>], f: impl Fn(&Sample) -> f64) -> Self {
        Self::over(samples.iter().map(|texts| texts.iter().map(&f).sum::<f64>() / texts.len() as f64))
    }

    fn show(self, scale: f64, digits: usize, unit: &str) -> String {
        format!("{:.digits$} ± {:.digits$}{unit}", scale * self.mean, scale * self.half_width_95)
    }
}

/// What is known in the end. Samples: one list a held-out prompt.
pub struct Report<'a> {
    /// The grammar.
    pub grammar: &'a Grammar,
    /// The prompts.
    pub prompts: &'a [String],
    /// Samples of the SFT model.
    pub before: &'a [Vec<Sample>],
    /// Samples of the DPO model.
    pub after: &'a [Vec<Sample>],
    /// KL divergence of the DPO model from the SFT model.
    pub kl: KlEstimate,
    /// Accuracy of the DPO model's implicit reward.
    pub accuracy: Accuracy,
}

impl Report<'_> {
    /// Prints everything on stdout.
    pub fn print(&self) {
        self.table();
        self.histogram();
        self.phrases();
        self.texts();
    }

    /// How often the DPO model's text has the higher reward, ties one half.
    fn wins(&self) -> Mean {
        let win = |(b, a): (&Sample, &Sample)| {
            if a.reward > b.reward { 1.0 } else { f64::from(u8::from(a.reward == b.reward)) / 2.0 }
        };
        let prompts = self.before.iter().zip(self.after);
        Mean::over(prompts.map(|(b, a)| b.iter().zip(a).map(win).sum::<f64>() / a.len().min(b.len()) as f64))
    }

    fn table(&self) {
        let texts: usize = self.after.iter().map(Vec::len).sum();
        say!(
            "{} prompts, {} texts of each model; ± is a 95 % interval over prompts\n",
            self.prompts.len(),
            thousands(texts)
        );
        line("", "SFT", "SFT + DPO");
        let both = |f: &dyn Fn(&[Vec<Sample>]) -> String| [f(self.before), f(self.after)];
        let row = |name: &str, [before, after]: [String; 2]| line(name, &before, &after);
        row("reward (-1 to 1)", both(&|s| Mean::of(s, |t| t.reward).show(1.0, 3, "")));
        line("  has the higher reward", "", &self.wins().show(100.0, 1, " %"));
        line("implicit-reward accuracy", "50.0 %", &format!("{:.1} %", 100.0 * self.accuracy.share));
        let kl = Mean { mean: self.kl.mean, half_width_95: self.kl.half_width_95 };
        line("KL to SFT, nats a text", "0", &kl.show(1.0, 2, ""));
        row("well-formed", both(&|s| Mean::of(s, |t| f64::from(t.well_formed)).show(100.0, 1, " %")));
        row("different texts", both(&|s| format!("{:.1} %", 100.0 * different(s))));
        row("words a text", both(&|s| Mean::of(s, |t| t.words.len() as f64).show(1.0, 1, "")));
        say!(
            "\nwell-formed: the grammar derives the whole text, its opinions in the right places, and the model ended it."
        );
    }

    fn histogram(&self) {
        say!("\nreward            SFT                           SFT + DPO");
        let [before, after] = [self.before, self.after].map(shares);
        let width = 2.0 / BARS as f64;
        let bar = |share: f64| format!("{:<22} {:>3.0} %", "█".repeat((share * 22.0).round() as usize), 100.0 * share);
        for i in (0..BARS).rev() {
            let from = -1.0 + width * i as f64;
            say!("{from:+.1} to {:+.1}      {}  {}", from + width, bar(before[i]), bar(after[i]));
        }
    }

    fn phrases(&self) {
        let [before, after] = [self.before, self.after].map(|s| self.counts(s));
        let total = |counts: &BTreeMap<String, usize>| counts.values().sum::<usize>().max(1) as f64;
        let share = |counts: &BTreeMap<String, usize>, phrase: &str| {
            100.0 * counts.get(phrase).copied().unwrap_or(0) as f64 / total(counts)
        };
        let all: HashSet<&String> = before.keys().chain(after.keys()).collect();
        let mut all: Vec<_> = all.into_iter().map(|p| (share(&after, p) - share(&before, p), p)).collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
        let show = |(_, p): &(f64, &String)| format!("{p} ({:.1} -> {:.1} %)", share(&before, p), share(&after, p));
        let [more, less] = [
            all.iter().take(PHRASES).map(show).collect::<Vec<_>>(),
            all.iter().rev().take(PHRASES).map(show).collect(),
        ];
        say!("\nopinions it learned to write:  {}", more.join(", "));
        say!("opinions it learned to avoid:  {}", less.join(", "));
    }

    /// How often each opinion was written.
    fn counts(&self, samples: &[Vec<Sample>]) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (phrase, _) in samples.iter().flatten().flat_map(|s| self.grammar.opinions(&s.words)) {
            *counts.entry(phrase.join(" ")).or_default() += 1;
        }
        counts
    }

    fn texts(&self) {
        let every = (self.prompts.len() / SHOWN).max(1);
        say!("\nThe first text of each model for one prompt (in brackets) in {every}, not picked:");
        for i in (0..self.prompts.len()).step_by(every).take(SHOWN) {
            say!("");
            for (name, samples) in [("SFT", self.before), ("DPO", self.after)] {
                let s = &samples[i][0];
                let note = if s.well_formed { "" } else { "   (not well-formed)" };
                say!("  {name} {:+.2}  [{}]{}{note}", s.reward, self.prompts[i], s.response);
            }
        }
    }
}

fn line(name: &str, before: &str, after: &str) {
    say!("  {name:<26} {before:>16} {after:>18}");
}

/// Share of texts that are not a repetition of an earlier one.
fn different(samples: &[Vec<Sample>]) -> f64 {
    let all: Vec<_> = samples.iter().flatten().map(|s| &s.words).collect();
    all.iter().collect::<HashSet<_>>().len() as f64 / all.len() as f64
}

/// Share of texts in each of `BARS` ranges of reward, lowest first.
fn shares(samples: &[Vec<Sample>]) -> [f64; BARS] {
    let mut bars = [0.0; BARS];
    let n = samples.iter().map(Vec::len).sum::<usize>() as f64;
    for s in samples.iter().flatten() {
        let at = ((s.reward + 1.0) / 2.0 * BARS as f64) as usize;
        bars[at.min(BARS - 1)] += 1.0 / n;
    }
    bars
}

/// Prints what to try next.
pub fn print_next(dir: &Path) {
    let dir = dir.display();
    say!(
        "\
Everything is in {dir}. Next:
  See the data as the model does
    $ fusedpo inspect {dir}/preferences --show 2
  Ask the models for more
    $ fusedpo generate --model {dir}/dpo --prompt \"the film was\" --temperature 1 --num-return-sequences 5
  Try another strength of the pull towards the reference
    $ fusedpo dpo --config {dir}/dpo/config.toml --beta 0.5 --out {dir}-beta-0.5
    $ fusedpo eval --model {dir}-beta-0.5 --data {dir}/preferences
  Your own data: JSONL with prompt, chosen, rejected, and any Llama, Mistral or Qwen folder
    $ fusedpo pack --tokenizer MODEL --input pairs.jsonl --out data
    $ fusedpo dpo --model MODEL --data data --out run"
    );
}
