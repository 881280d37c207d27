//! The model card, `RUN/README.md`, as the hub reads it, with the run's curves beside it.
//!
//! It has no times and no paths, so that the same run has the same card. It says by a hash of its own text that nobody has
//! changed it since; one that somebody did change is theirs, and stays.

mod sets;

use super::metrics::{Totals, wilson_95};
use super::options::{Stage, TrainOptions};
use super::record::Record;
use super::summary::Summary;
use crate::chart::{self, Chart, Line, Series, short};
use crate::choice::Choice;
use crate::data::shard::Dataset;
use crate::data::shard::format::hex;
use crate::error::Result;
use crate::files::RunDir;
use crate::hub::{Kind, Repo};
use crate::observe::{Event, Observe};
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// What stands before the hash of the text after it.
const MARK: &str = "<!-- Written by fusedpo; it is not written again over changes. sha256 ";
const CARD: &str = "README.md";
const PICTURE: &str = "training.svg";

/// What the card of a run says.
pub(super) struct Card<'a> {
    /// What was asked for.
    pub options: &'a TrainOptions,
    /// What it ran on.
    pub record: &'a Record,
    /// What it came to.
    pub summary: &'a Summary,
    /// The training split, and the held-out one.
    pub splits: &'a [Dataset],
    /// The step whose weights the run left.
    pub steps: u64,
    /// Parameters that trained, and all.
    pub parameters: (usize, usize),
}

impl Card<'_> {
    /// Writes it into the run's folder. What it cannot write is a warning: the model is there.
    pub fn write(&self, out: &RunDir, observe: &mut dyn Observe) -> Result<()> {
        let theirs = |name: &str| out.text(name).is_some_and(|text| !text.is_ok_and(|text| is_ours(&text)));
        if let Some(name) = [CARD, PICTURE].into_iter().find(|name| theirs(name)) {
            let why = format!("no model card: {name} was changed by somebody, or is theirs, and stays as it is");
            return observe.tell(&Event::Note(&why));
        }
        let written = self.curves(out).and_then(|curves| {
            let picture = picture(&curves);
            if let Some(svg) = &picture {
                out.write_text(PICTURE, &marked(svg, "\n"))?;
            }
            let sets = self.sets(out)?;
            out.write_text(CARD, &marked(&self.text(&sets, picture.is_some()), "---\n\n"))
        });
        match written {
            Ok(()) => Ok(()),
            Err(e) => observe.tell(&Event::Warning(&format!("no model card: {e}"))),
        }
    }

    /// Loss and what else there is over the steps, from `metrics.jsonl`.
    fn curves(&self, out: &RunDir) -> Result<[Curve; 4]> {
        let keys = ["loss", "rewards/accuracies", "rewards/margins", "mean_token_accuracy"];
        let titles = ["loss", "accuracy", "reward margin", "token accuracy"];
        let series = || Series::new(POINTS);
        let mut curves = titles.map(|title| Curve { title, train: series(), held_out: series() });
        let of_pairs = self.options.stage == Stage::Dpo;
        out.each_row(|row| {
            let Some(step) = row.get("step").and_then(Value::as_f64) else { return };
            for (key, curve) in keys.iter().zip(&mut curves) {
                if of_pairs && *key == "mean_token_accuracy" {
                    continue;
                }
                let put = |key: &str, series: &mut Series| {
                    row.get(key).and_then(Value::as_f64).into_iter().for_each(|y| series.add(step, y))
                };
                put(key, &mut curve.train);
                put(&format!("eval_{key}"), &mut curve.held_out);
            }
        })?;
        Ok(curves)
    }

    fn text(&self, sets: &str, picture: bool) -> String {
        let mut text = String::new();
        let name = self.options.files.out.file_name().map_or("model".into(), |n| n.to_string_lossy());
        // Writing to text does not fail.
        let _ = writeln!(text, "\n# {}\n\n{}\n", plain(&name), self.what());
        text += &self.results();
        text += sets;
        if picture {
            let _ = writeln!(text, "![Loss and more over the steps; dots: held out]({PICTURE})\n");
        }
        text += &self.usage();
        let _ = writeln!(text, "## How it was trained\n\n{}", self.method());
        text += &options(self.options);
        text += PUSH;
        self.front_matter() + &text
    }

    fn adapter(&self) -> bool {
        self.options.train.has_adapter()
    }

    /// The base model, where it was named by the hub's name.
    fn base(&self) -> Option<Repo> {
        let o = self.options;
        let named = o.folders.has(&o.files.model).then(|| Repo::of(Kind::Model, &o.files.model));
        named.and_then(|repo| repo.ok().flatten())
    }

    fn front_matter(&self) -> String {
        let library = if self.adapter() { "peft" } else { "transformers" };
        let mut text = format!("---\nlibrary_name: {library}\npipeline_tag: text-generation\n");
        if let Some(Repo { id, .. }) = self.base() {
            let relation = if self.adapter() { "adapter" } else { "finetune" };
            let _ = writeln!(text, "base_model: {id}\nbase_model_relation: {relation}");
        }
        let lora = self.adapter().then_some("lora");
        let losses: Vec<&str> = self.options.loss().defs().map(|def| def.name).collect();
        let tags = ["fusedpo", self.options.stage.name()].into_iter().chain(losses).chain(lora);
        let mut seen: Vec<&str> = Vec::new();
        tags.for_each(|tag| {
            if !seen.contains(&tag) {
                seen.push(tag)
            }
        });
        let _ = writeln!(text, "tags:\n- {}\n---", seen.join("\n- "));
        text
    }

    fn what(&self) -> String {
        let base = self.base().map(|Repo { id, revision, path, .. }| {
            let folder = if path.is_empty() { String::new() } else { format!(", folder `{path}`") };
            let at = revision.map_or_else(String::new, |commit| format!(" at `{commit}`"));
            format!("[{id}](https://huggingface.co/{id}){folder}{at}")
        });
        let base =
            base.unwrap_or_else(|| format!("a model whose weights have the sha256 `{}`", self.record.sha256.model));
        let split = &self.splits[0];
        let (on, many) = match (self.options.stage, split.num_pairs()) {
            (Stage::Dpo, pairs) if pairs > 0 => ("preference optimisation", format!("{pairs} pairs")),
            (Stage::Dpo, _) => ("preference optimisation", format!("{} judged responses", split.num_responses())),
            (Stage::Sft, _) => ("supervised fine-tuning", format!("{} prompts", split.num_groups())),
        };
        let (some, all) = self.parameters;
        let trained = match (self.adapter(), some == all) {
            (true, _) => format!("An adapter (LoRA) of {some} parameters beside {base}"),
            (_, true) => format!("{base}, all {all} parameters of it"),
            (_, false) => format!("{base}, {some} of its {all} parameters"),
        };
        let mut trained = trained.chars();
        let first = trained.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
        // Of the model itself it may be fewer.
        let (taken, asked) = (self.summary.steps, self.summary.steps_asked);
        let stopped = match &self.record.stopped_early {
            _ if taken >= asked => String::new(),
            Some(why) => format!("; ended at step {taken} of {asked}: {}", plain(why)),
            None => format!("; stopped at step {taken} of {asked}"),
        };
        let steps = format!("{taken} steps of {}", self.options.data.batch_size);
        let of_best = self.summary.best.as_ref().map_or_else(String::new, |(step, metric, _)| {
            format!("; the weights are those of step {step}, the best by `{metric}`")
        });
        format!("{first}{}, after {on} on {many}: {steps}{stopped}{of_best}.", trained.as_str())
    }

    /// Before and after, on what was held out.
    fn results(&self) -> String {
        let Some((first, last)) = &self.summary.eval else {
            return "What training changed was not measured on held-out rows.\n\n".into();
        };
        let of = if last.pairs > 0 { format!("{} pairs", last.pairs) } else { format!("{} responses", last.responses) };
        let mut text = format!("| held out: {of} | before | after |\n| --- | --- | --- |\n");
        let accuracy = |t: &Totals| {
            let [low, high] = wilson_95(t.accuracy(), t.pairs);
            format!("{:.3} [{low:.3}, {high:.3}]", t.accuracy())
        };
        if last.pairs > 0 {
            let _ = writeln!(
                text,
                "| accuracy, with its 95 % interval (Wilson) | {} | {} |",
                accuracy(first),
                accuracy(last)
            );
        }
        let rows = [first.to_json(""), last.to_json("")];
        for (key, name) in [
            ("loss", "loss"),
            ("rewards/margins", "reward margin"),
            ("logps/chosen", "log-prob of a chosen response, nats"),
            ("logps/rejected", "log-prob of a rejected response, nats"),
            ("entropy", "entropy of a token, nats"),
            ("mean_token_accuracy", "tokens that are the most likely one"),
        ] {
            let values = rows.each_ref().map(|row| row.get(key).and_then(Value::as_f64));
            if let [Some(before), Some(after)] = values {
                let _ = writeln!(text, "| {name} | {} | {} |", short(before), short(after));
            }
        }
        text + "\n"
    }

    fn usage(&self) -> String {
        let of =
            |name: &str, value: &str| if value.is_empty() { String::new() } else { format!(", {name}=\"{value}\"") };
        let base = self.base().map_or("\"BASE_MODEL\"".into(), |Repo { id, revision, path, .. }| {
            format!("\"{id}\"{}{}", of("revision", &revision.unwrap_or_default()), of("subfolder", &path))
        });
        let (imports, load) = match self.adapter() {
            true => (
                "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer",
                format!("model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base}), name)"),
            ),
            false => (
                "from transformers import AutoModelForCausalLM, AutoTokenizer",
                "model = AutoModelForCausalLM.from_pretrained(name)".into(),
            ),
        };
        format!(
            "## Use\n\n```python\n{imports}\n\nname = \".\"  # this folder, or its name on the hub\ntokenizer = \
             AutoTokenizer.from_pretrained(name)\n{load}\ninputs = tokenizer(\"Once upon a time\", return_tensors=\"pt\")\n\
             print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))\n```\n\n"
        )
    }

    fn method(&self) -> String {
        let mut text = format!(
            "By fusedpo {}, `{}` in {}, on {}; numerics `{}`.\n",
            self.record.call.version,
            self.options.stage,
            self.record.call.dtype,
            plain(&self.record.call.device),
            self.record.call.numerics
        );
        for def in self.options.loss().defs() {
            let _ = writeln!(
                text,
                "\n- Loss `{}`: {}. `{}`. Source: {}.",
                def.name,
                plain(def.about),
                def.formula,
                plain(def.source)
            );
        }
        if self.options.stage == Stage::Dpo && self.options.loss().reference() {
            let o = &self.options.reference;
            let reference = if o.ref_model.is_some() { "another model" } else { "the starting policy" };
            let follows = if o.sync_ref_model { ", which follows the policy (TR-DPO)" } else { "" };
            let _ = writeln!(text, "- Reference: {reference}{follows}.");
        }
        if self.adapter() {
            text += "- Adapter: Hu et al. 2021 (LoRA, arXiv 2106.09685).\n";
        }
        let sha = &self.record.sha256;
        let _ = writeln!(
            text,
            "- Data: {} tokens, sha256 `{}`; model: sha256 `{}`.",
            self.splits[0].num_tokens(),
            sha.data,
            sha.model
        );
        let _ = writeln!(
            text,
            "- The run's `config.toml` has every option: with it as its configuration, `fusedpo {}` on the same model and data \
             trains it again, to the bit on the same numerics.\n",
            self.options.stage
        );
        text
    }
}

/// Every hyper-parameter of a run, as a table in Markdown, without paths.
pub(super) fn options(o: &TrainOptions) -> String {
    let groups = [
        values(&o.loss),
        values(&o.reference),
        values(&o.schedule),
        values(&o.optim),
        values(&o.train),
        values(&o.data),
        values(&o.compute),
    ];
    let mut text = "| option | value |\n| --- | --- |\n".to_owned();
    for (key, value) in groups.into_iter().flatten() {
        // Steps that are given leave no say to epochs.
        let unused = key == "num_train_epochs" && o.data.max_steps.is_some();
        if value.is_null() || unused || PATHS.contains(&key.as_str()) {
            continue;
        }
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let value: String = value.chars().filter(|c| !c.is_control() && *c != '`').collect();
        let _ = writeln!(text, "| `{key}` | `{}` |", value.replace('|', "\\|"));
    }
    text + "\n"
}

/// Points of a line of the picture at most: neighbours are one.
const POINTS: usize = 240;
/// Share of the steps that a line is smoothed over.
const SMOOTHING: f64 = 0.02;

/// A quantity over the steps, of training and of what was held out.
struct Curve {
    title: &'static str,
    train: Series,
    held_out: Series,
}

/// The curves that have a line, one below the other; `None`: none has.
fn picture(curves: &[Curve]) -> Option<String> {
    let charts = curves.iter().filter(|c| c.train.buckets().len() + c.held_out.buckets().len() > 1).map(|c| Chart {
        title: c.title,
        lines: vec![
            Line { run: 0, name: "training", set: None, series: &c.train },
            // A colour of its own: there is no other run.
            Line { run: 1, name: "held out", set: Some(0), series: &c.held_out },
        ],
        may_be_log: false,
        range: None,
        smoothing: SMOOTHING,
    });
    chart::stacked(&charts.collect::<Vec<_>>())
}

/// How the hub gets it.
const PUSH: &str = include_str!("publish.md");

/// Options that say where something lies.
const PATHS: [&str; 4] = ["ref_model", "cache", "adapter", "matmul_plans"];

fn values(group: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(group) {
        Ok(Value::Object(values)) => values,
        _ => Map::new(),
    }
}

/// Text that Markdown takes as it is, on one line.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    for c in text.chars() {
        match c {
            c if c.is_control() => plain.push(' '),
            '<' => plain += "&lt;",
            '&' => plain += "&amp;",
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '~' => plain.extend(['\\', c]),
            c => plain.push(c),
        }
    }
    plain
}

fn sha256(text: &str) -> String {
    hex(&Sha256::digest(text))
}

/// With a line that has the hash of all else, after what ends with the first line of `head`.
fn marked(text: &str, head: &str) -> String {
    let end = text.find(head).map_or(0, |at| text[at..].find('\n').map_or(at, |line| at + line + 1));
    format!("{}\n{MARK}{} -->\n{}", &text[..end], sha256(text), &text[end..])
}

/// Whether nobody has changed what [`marked`] made.
fn is_ours(card: &str) -> bool {
    let Some((before, rest)) = card.split_once(&format!("\n{MARK}")) else { return false };
    let Some((hash, after)) = rest.split_once(" -->\n") else { return false };
    sha256(&format!("{before}{after}")) == hash
}
