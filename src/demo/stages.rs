//! The stages of the demo. Each is what an ordinary command does, with the same functions, and prints that command.

use super::grammar::Review;
use super::samples::{Judge, Sample};
use super::sizes::Sizes;
use super::tokenizer;
use super::words::join;
use crate::backend::Backend;
use crate::choice::Choice;
use crate::data::pack::{PackOptions, PackReport, pack};
use crate::data::shard::{Dataset, Split};
use crate::error::{Error, Result};
use crate::files;
use crate::model::{self, GenerateOptions, Model, ModelConfig, ModelDir, SaveDtype};
use crate::observe::{Event, Flow, Observe};
use crate::say;
use crate::train::choices::DeviceChoice;
use crate::train::kl::{self, KlEstimate, KlOptions, KlPlan};
use crate::train::options::{Stage, TrainOptions};
use crate::train::run::{self, Summary};
use crate::train::schedule::SchedulerType;
use crate::train::team::Team;
use serde_json::{Value, json};
use std::path::Path;

/// Longest response in tokens; the longest review of the grammar has 44 words.
const MAX_NEW_TOKENS: usize = 48;
/// Positions of the model: the KL estimate lets a sampled text take half of them.
const POSITIONS: usize = 96;
/// Token slots of SFT: what [`Sizes::sft_batch`] reviews fill.
const SFT_TOKENS: usize = 1024;
/// Token slots of a micro-batch of sampled texts under the reference.
const KL_TOKENS: usize = 2048;
/// Share of prompts that DPO does not train on.
const EVAL_FRACTION: f64 = 0.1;

/// What all stages need.
pub struct Stages<'a, B: Backend> {
    /// The device.
    pub be: &'a B,
    /// The demo's folder.
    pub dir: &'a Path,
    /// How much of everything.
    pub sizes: Sizes,
    /// Seed of everything that is drawn.
    pub seed: u64,
    /// The device, as asked for.
    pub device: DeviceChoice,
}

/// Accuracy of the implicit reward on held-out pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Accuracy {
    /// Share of pairs ordered rightly, ties one half.
    pub share: f64,
    /// Pairs.
    pub pairs: u64,
}

/// A Llama with grouped queries and a tied head, small enough to learn the language in half a minute on two cores.
fn config(vocab_size: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": vocab_size,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "max_position_embeddings": POSITIONS,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
    })
}

impl<B: Backend> Stages<'_, B> {
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.join(name)
    }

    /// `init`: tokenizer and random weights.
    pub fn init(&self, words: &[String]) -> Result<()> {
        let dir = self.path("init");
        tokenizer::write(&dir, words)?;
        let config = config(words.len() + tokenizer::SPECIAL.len());
        let config = ModelConfig::parse(&dir.join("config.json"), config.as_object().expect("an object"))?;
        let model = Model::random(self.be, config, self.seed, POSITIONS)?;
        model::export(self.be, &model, None, None, &dir, SaveDtype::F32)?;
        say!(
            "\nA Llama of {} parameters, with random weights: {}",
            thousands(model.table.num_parameters()),
            dir.display()
        );
        Ok(())
    }

    /// `sft.jsonl` -> `sft-data` -> `sft`.
    pub fn sft(&self, reviews: &[Review], observe: &mut dyn Observe) -> Result<()> {
        self.write_jsonl("sft.jsonl", reviews.iter().map(|r| json!({ "text": join(&r.words) })))?;
        self.pack("sft.jsonl", "sft-data", 0.0, observe)?;
        let options = vec![
            ("learning_rate", 8e-3.into()),
            ("lr_scheduler_type", SchedulerType::Cosine.name().into()),
            ("warmup_ratio", 0.03.into()),
            ("adam_beta2", 0.98.into()),
            ("token_budget", integer(SFT_TOKENS)),
            ("batch_size", integer(self.sizes.sft_batch)),
            ("max_steps", (self.sizes.sft_steps as i64).into()),
        ];
        let s = self.train(Stage::Sft, ["init", "sft-data", "sft"], options, vec![], observe)?;
        let number = |key: &str| s.last.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN);
        say!(
            "after {} steps: loss {:.3} nats a token, {:.0} % of the next words guessed",
            s.steps,
            number("loss"),
            100.0 * number("mean_token_accuracy")
        );
        Ok(())
    }

    /// Continues every prompt with the model in `name`, at temperature 1.
    pub fn generate(
        &self,
        name: &str,
        prompts: &[String],
        judge: &Judge<'_>,
        observe: &mut dyn Observe,
    ) -> Result<Vec<Vec<Sample>>> {
        let model = Model::load(self.be, &ModelDir::open(&self.path(name))?, POSITIONS)?;
        let ids = prompts.iter().map(|p| judge.tokenizer.encode(p)).collect::<Result<Vec<_>>>()?;
        let options = GenerateOptions {
            max_new_tokens: MAX_NEW_TOKENS,
            temperature: 1.0,
            top_p: 1.0,
            num_return_sequences: self.sizes.responses,
            seed: self.seed,
            eos_token_ids: model.config.eos_token_ids.clone(),
            cache_bytes: 1 << 30,
            pack_weights: true,
        };
        let all =
            model::generate_while(self.be, &model, &ids, &options, &mut || Ok(observe.on(&Event::Tick)? == Flow::On))?;
        let judged = prompts.iter().zip(&ids).zip(&all);
        judged.map(|((p, ids), texts)| texts.iter().map(|g| judge.judge(p, ids, g)).collect()).collect()
    }

    /// `preferences.jsonl` -> `preferences`; which of `prompts` are held out.
    pub fn preferences(
        &self,
        prompts: &[String],
        samples: &[Vec<Sample>],
        observe: &mut dyn Observe,
    ) -> Result<Vec<usize>> {
        // A text that the model did not end has no end to learn from.
        let ended = |i: usize| samples[i].iter().filter(|s| s.finished);
        let used: Vec<usize> = (0..prompts.len()).filter(|&i| ended(i).count() > 0).collect();
        if used.is_empty() {
            let why = format!("the model ended none of its texts within {MAX_NEW_TOKENS} words: use more --steps");
            return Err(Error::Training(why));
        }
        let rows = used.iter().map(|&i| {
            let responses: Vec<_> = ended(i).map(|s| &s.response).collect();
            let scores: Vec<_> = ended(i).map(|s| s.reward).collect();
            json!({ "prompt": prompts[i], "responses": responses, "scores": scores })
        });
        self.write_jsonl("preferences.jsonl", rows)?;
        let unfinished = samples.iter().flatten().filter(|s| !s.finished).count();
        say!(
            "{} prompts (beginnings of new reviews), {} responses each; {unfinished} had no end after {MAX_NEW_TOKENS} words and are left out",
            prompts.len(),
            self.sizes.responses
        );
        say!("for example, the prompt in brackets:");
        for s in ended(used[0]) {
            say!("    {:+.2}  [{}]{}", s.reward, prompts[used[0]], s.response);
        }
        let report = self.pack("preferences.jsonl", "preferences", EVAL_FRACTION, observe)?;
        say!(
            "every two responses with different rewards make a pair: {} to train on; {} of {} prompts held out",
            thousands(report.train.pairs as usize),
            thousands(report.eval.pairs as usize),
            report.eval.groups
        );
        let held_out = Dataset::open(&self.path("preferences"), Split::Eval)?;
        Ok((0..held_out.num_groups()).map(|g| used[held_out.group(g).response(0).row as usize]).collect())
    }

    /// `dpo`; accuracy on the held-out pairs in the end.
    pub fn dpo(&self, observe: &mut dyn Observe) -> Result<Accuracy> {
        let options = vec![
            ("learning_rate", 2e-4.into()),
            ("warmup_ratio", 0.1.into()),
            ("batch_size", integer(self.sizes.dpo_batch)),
        ];
        let s = self.train(Stage::Dpo, ["sft", "preferences", "dpo"], options, vec![("beta", 0.1.into())], observe)?;
        let (first, last) = s
            .eval
            .ok_or_else(|| Error::Training("no prompt was held out: use more --prompts, or more --steps".into()))?;
        say!(
            "before the first step every margin is 0 and the loss {:.4} = ln 2, to the bit; after {} steps: {:.4} on held-out pairs",
            first.mean_loss(),
            s.steps,
            last.mean_loss()
        );
        Ok(Accuracy { share: last.accuracy(), pairs: last.pairs })
    }

    /// KL divergence of `dpo` from `sft`, on held-out prompts.
    pub fn kl(&self, observe: &mut dyn Observe) -> Result<KlEstimate> {
        let data = Dataset::open(&self.path("preferences"), Split::Eval)?;
        let [policy, reference] = ["dpo", "sft"].map(|name| ModelDir::open(&self.path(name)));
        let policy = Model::load(self.be, &policy?, POSITIONS)?;
        let o = KlOptions { samples: data.num_groups() as usize, max_new_tokens: MAX_NEW_TOKENS, seed: self.seed };
        let plan = KlPlan::new(&policy.config, POSITIONS, &data, &o);
        let plan =
            plan.ok_or_else(|| Error::Training("no prompt was held out: use more --prompts, or more --steps".into()))?;
        kl::estimate(self.be, policy, &reference?, (&data, &plan, KL_TOKENS), Team::ALONE, observe)
    }

    fn write_jsonl(&self, name: &str, rows: impl Iterator<Item = Value>) -> Result<()> {
        let text: String = rows.map(|row| row.to_string() + "\n").collect();
        files::write(&self.path(name), text.as_bytes())
    }

    fn pack(&self, input: &str, out: &str, eval_fraction: f64, observe: &mut dyn Observe) -> Result<PackReport> {
        let [tokenizer, input, out] = ["init", input, out].map(|name| self.path(name));
        let fraction = if eval_fraction > 0.0 { format!(" --eval-fraction {eval_fraction}") } else { String::new() };
        say!(
            "  $ fusedpo pack --tokenizer {} --input {} --out {}{fraction}",
            tokenizer.display(),
            input.display(),
            out.display()
        );
        let options = PackOptions { eval_fraction, ..PackOptions::new(tokenizer, vec![input], out) };
        let report = pack(&options, &mut |_| Ok(()))?;
        go_on(observe)?;
        Ok(report)
    }

    /// Trains with these options, and those that every stage has, after printing the command that does the same.
    fn train(
        &self,
        stage: Stage,
        folders: [&str; 3],
        mut common: Given,
        own: Given,
        observe: &mut dyn Observe,
    ) -> Result<Summary> {
        let seed = i64::try_from(self.seed);
        let seed = seed.map_err(|_| Error::usage(format!("`seed` {}: must be at most 2^63 - 1", self.seed)))?;
        common.push(("seed", seed.into()));
        if self.device != DeviceChoice::Auto {
            common.push(("device", self.device.to_string().into()));
        }
        common.sort_by_key(|(name, _)| *name);
        let folder = |name: &str| self.path(name).to_string_lossy().into_owned().into();
        let folders = ["model", "data", "out"].into_iter().zip(folders.map(folder));
        let given: Given = folders.chain(common).chain(own).collect();
        say!("  $ {}", command(stage, &given));
        let table = given.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        run::train(self.be, &TrainOptions::from_table(stage, &table)?, observe)
    }
}

/// Options by name, in the order in which they are printed.
type Given = Vec<(&'static str, toml::Value)>;

fn integer(n: usize) -> toml::Value {
    (n as i64).into()
}

/// The command line that means these options.
fn command(stage: Stage, given: &Given) -> String {
    let mut text = String::from(if stage == Stage::Sft { "fusedpo sft" } else { "fusedpo dpo" });
    for (name, value) in given {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text += &format!(" --{} {value}", name.replace('_', "-"));
    }
    text
}

/// What ends a training run after its step ends the demo too.
pub fn go_on(observe: &mut dyn Observe) -> Result<()> {
    match observe.on(&Event::Tick)? {
        Flow::Stop | Flow::Pause => Err(Error::stopped("the demo was stopped; the next one begins anew")),
        Flow::On => Ok(()),
    }
}

/// `12,345`.
pub fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, d) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(d);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_threes() {
        assert_eq!([0, 999, 1000, 1234567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn the_printed_command_is_the_options() {
        let given: Given = vec![
            ("model", "a/b".into()),
            ("learning_rate", 5e-4.into()),
            ("max_steps", integer(3)),
            ("beta", 0.1.into()),
        ];
        let line = command(Stage::Dpo, &given);
        for part in ["fusedpo dpo --model a/b ", " --learning-rate 0.0005", " --max-steps 3", " --beta 0.1"] {
            assert!(line.contains(part), "{line}");
        }
    }
}
