//! `fusedpo generate`: continuations on stdout.

use super::choice::named;
use super::pack::parse_chat_template;
use crate::backend::Backend;
use crate::data::input::{self, Text};
use crate::data::text::{TextTokenizer, TokenizerOptions, encode_prompt, user_turn};
use crate::device::{self, Task};
use crate::error::{Error, Result};
use crate::model::{self, GenerateOptions, Generated, MAX_NEW_TOKENS, Model, ModelDir};
use crate::observe::{Event, Flow, Observe};
use crate::say;
use crate::train::check::warn_of_positions;
use crate::train::choices::{DeviceChoice, DtypeChoice};
use crate::train::memory::fitting_generation;
use std::path::PathBuf;

/// Options of `fusedpo generate`.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["prompt", "input"]))]
pub struct GenerateArgs {
    /// Hugging Face directory of the model
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Text to continue; a user's message where the model has a chat template
    #[arg(long, allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// JSONL with a `prompt` (text or messages) a line; prints one JSON object a continuation
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Most new tokens
    #[arg(long, default_value_t = 128)]
    pub max_new_tokens: usize,
    /// 0: always the likeliest token
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// Draw from the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f64,
    /// Continuations of each prompt
    #[arg(long, default_value_t = 1)]
    pub num_return_sequences: usize,
    /// Seed of the draws
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// `auto`: the model's own, where it has one; `none`; or a Jinja file
    #[arg(long, default_value = "auto", value_name = "auto|none|FILE")]
    pub chat_template: String,
    /// Precision of the matrix products
    #[arg(long, value_parser = named::<DtypeChoice>(), default_value = "auto")]
    pub dtype: DtypeChoice,
    /// Where to compute
    #[arg(long, value_parser = named::<DeviceChoice>(), default_value = "auto")]
    pub device: DeviceChoice,
}

/// A prompt, encoded.
struct Prompt {
    row: usize,
    ids: Vec<u32>,
}

/// Runs the command.
pub fn run(args: &GenerateArgs, observe: &mut dyn Observe) -> Result<()> {
    let chat_template = parse_chat_template(&args.chat_template);
    let tokenizer = TextTokenizer::load(&args.model, &TokenizerOptions { chat_template, ..Default::default() })?;
    let prompts = prompts(args, &tokenizer)?;
    let (prompts, all) = device::dispatch(args.device, args.dtype, Run { args, prompts, observe })?;
    print(args, &tokenizer, &prompts, &all)
}

fn print(args: &GenerateArgs, tokenizer: &TextTokenizer, prompts: &[Prompt], all: &[Vec<Generated>]) -> Result<()> {
    for (prompt, texts) in prompts.iter().zip(all) {
        for (index, g) in texts.iter().enumerate() {
            let text = tokenizer.decode(&g.tokens, true)?;
            match (args.input.is_some(), texts.len()) {
                (false, 1) => say::result(&text),
                (false, _) => say::json(&serde_json::json!({ "index": index, "completion": text })),
                (true, _) => say::json(&serde_json::json!({
                    "row": prompt.row, "index": index, "completion": text,
                    "num_tokens": g.tokens.len(), "logp": g.logps.iter().sum::<f64>(), "finished": g.finished,
                })),
            }
        }
    }
    Ok(())
}

/// What a user typed: a message where there is a chat template, else text to continue.
fn spoken(tokenizer: &TextTokenizer, text: String) -> Text {
    if tokenizer.template.is_some() { user_turn(&text) } else { Text::Plain(text) }
}

fn prompts(args: &GenerateArgs, tokenizer: &TextTokenizer) -> Result<Vec<Prompt>> {
    if let Some(text) = &args.prompt {
        let ids = encode_prompt(tokenizer, &spoken(tokenizer, text.clone()))?;
        return Ok(vec![Prompt { row: 0, ids }]);
    }
    let path = args.input.as_deref().expect("clap asks for one of the two");
    let mut prompts = Vec::new();
    for (row, raw) in input::open(path, Default::default())?.enumerate() {
        let raw = raw?;
        let place = raw.place.clone();
        let prompt = match raw.fields()?.remove("prompt") {
            Some(serde_json::Value::String(text)) => spoken(tokenizer, text),
            Some(serde_json::Value::Array(messages)) => Text::Chat(messages),
            _ => return Err(place.error("needs a `prompt`, a string or a list of messages")),
        };
        prompts.push(Prompt { row, ids: encode_prompt(tokenizer, &prompt).map_err(|e| place.error(e))? });
    }
    Ok(prompts)
}

struct Run<'a> {
    args: &'a GenerateArgs,
    prompts: Vec<Prompt>,
    observe: &'a mut dyn Observe,
}

impl Task for Run<'_> {
    type Out = (Vec<Prompt>, Vec<Vec<Generated>>);

    fn run<B: Backend>(self, be: &B) -> Result<Self::Out> {
        let (a, observe) = (self.args, self.observe);
        if a.max_new_tokens > MAX_NEW_TOKENS {
            return Err(Error::usage(format!(
                "--max-new-tokens {}: must be at most {MAX_NEW_TOKENS}",
                a.max_new_tokens
            )));
        }
        let longest = self.prompts.iter().map(|p| p.ids.len()).max().unwrap_or(0);
        let (dir, positions) = (ModelDir::open(&a.model)?, longest + a.max_new_tokens);
        let config = dir.config();
        let mut options = GenerateOptions {
            max_new_tokens: a.max_new_tokens,
            temperature: a.temperature,
            top_p: a.top_p,
            num_return_sequences: a.num_return_sequences,
            seed: a.seed,
            eos_token_ids: config.eos_token_ids.clone(),
            cache_bytes: 2 << 30,
        };
        let ids: Vec<Vec<u32>> = self.prompts.iter().map(|p| p.ids.clone()).collect();
        let instead = (0, "lower --max-new-tokens, shorten the prompts, or use a smaller model");
        let memory = fitting_generation(be, (config, positions), &ids, &mut options, instead, observe)?;
        be.reserve(&memory.table)?;
        let model = Model::load(be, &dir, positions)?;
        let all = model::generate_while(be, &model, &ids, &options, &mut || Ok(observe.on(&Event::Tick)? == Flow::On))?;
        let lengths = ids.iter().zip(&all).flat_map(|(p, texts)| texts.iter().map(|g| p.len() + g.tokens.len()));
        warn_of_positions(config, lengths.max().unwrap_or(0), observe)?;
        Ok((self.prompts, all))
    }
}
