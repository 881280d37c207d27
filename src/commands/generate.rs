//! `fusedpo generate`: continuations on stdout.

use super::choice::{Devices, named};
use super::effect;
use super::hub;
use super::out::Out;
use super::pack::parse_chat_template;
use super::quantize_flags::QuantizeFlags;
use super::ranks;
use super::stdin::Inputs;
use crate::backend::Backend;
use crate::data::input::{self, Text};
use crate::data::text::{TextTokenizer, TokenizerOptions, encode_prompt, user_turn};
use crate::device::{self, Task};
use crate::error::{Error, Result};
use crate::model::{GenerateOptions, Generated, MAX_NEW_TOKENS, MAX_SEQUENCES, Model, ModelDir};
use crate::observe::{Event, Flow, Observe};
use crate::say;
use crate::train::check::warn_of_positions;
use crate::train::choices::{DeviceChoice, DtypeChoice, LogitsChoice};
use crate::train::generating::{generate_by, prompts_of_first};
use crate::train::joined::Job;
use crate::train::memory::fitting_generation;
use clap::{Args, FromArgMatches};
use serde_json::{Map, Value, json};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Options of `fusedpo generate`.
#[derive(Clone, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["prompt", "input"]))]
pub struct GenerateArgs {
    /// Hugging Face directory, or name on the hub (org/name@revision), of the model
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Adapter (LoRA, in PEFT's form) beside the model
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// How weights are held.
    #[command(flatten)]
    pub quantize: QuantizeFlags,
    /// Text to continue; a user's message where the model has a chat template, unless it was trained on plain prompts
    #[arg(long, allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// Rows with a prompt (text or messages, of any shape that `pack` takes, with `tools` and `chat_template_kwargs`), `-`: stdin;
    /// gives one JSON object a continuation, with the row's other columns
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// File to write; `-`: stdout. A device, a pipe or a link may be named too [default: -]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace FILE where it exists
    #[arg(long)]
    pub overwrite: bool,
    /// Most new tokens
    #[arg(long, default_value_t = 128)]
    pub max_new_tokens: usize,
    /// 0: always the likeliest token
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// Draw from the likeliest tokens that together have this probability; needs --temperature
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f64,
    /// Continuations of each prompt; more than one need --temperature
    #[arg(long, default_value_t = 1)]
    pub num_return_sequences: usize,
    /// Seed of the draws; needs --temperature [default: 42]
    #[arg(long)]
    pub seed: Option<u64>,
    /// `auto`: the model's own, where it has one; `none`; `chatml`, `zephyr`, `alpaca`; or a Jinja file
    #[arg(long, default_value = "auto", value_name = "auto|none|NAME|FILE")]
    pub chat_template: String,
    /// Whether plain prompts become a user's turn of the chat template [default: as the model was trained, where it says
    /// so; else where it has a template]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub wrap_prompts: Option<bool>,
    /// Precision of the matrix products
    #[arg(long, value_parser = named::<DtypeChoice>(), default_value = "auto")]
    pub dtype: DtypeChoice,
    /// Device
    #[arg(long, value_parser = Devices, default_value = "auto")]
    pub device: DeviceChoice,
}

/// A prompt, encoded.
struct Prompt {
    row: usize,
    ids: Vec<u32>,
    /// The row's prompt, for people; and its other columns.
    shown: Value,
    columns: Map<String, Value>,
}

impl Prompt {
    /// A continuation of it.
    fn line(&self, index: usize, completion: &str, g: &Generated) -> Value {
        let mut line = Map::new();
        let own = [
            ("row", json!(self.row)),
            ("index", json!(index)),
            ("completion", json!(completion)),
            ("num_tokens", json!(g.tokens.len())),
            ("logp", json!(g.logps.iter().sum::<f64>())),
            ("finished", json!(g.finished)),
            ("prompt", self.shown.clone()),
        ];
        line.extend(own.map(|(key, value)| (key.to_owned(), value)));
        for (name, value) in &self.columns {
            let mut free = name.clone();
            // A name that is ours is not the row's; and what it gets is none that another column has.
            while own_key(&free) || free != *name && self.columns.contains_key(&free) {
                free.insert_str(0, "input_");
            }
            line.insert(free, value.clone());
        }
        Value::Object(line)
    }
}

fn own_key(name: &str) -> bool {
    ["row", "index", "completion", "num_tokens", "logp", "finished", "prompt"].contains(&name)
}

/// Runs the command.
pub fn run(args: &GenerateArgs, job: Job<'_>, observe: &mut dyn Observe) -> Result<()> {
    refuse_without_effect(args)?;
    let chat_template = parse_chat_template(&args.chat_template);
    let mut args = args.clone();
    ranks::first_fetches(job, || hub::place_both(&mut args.model, &mut args.adapter, observe))?;
    if !job.comm.world().is_first() {
        // Rank 0 alone reads prompts, which stdin may have, and writes.
        let dir = args.quantize.open(&args.model, args.adapter.as_deref())?;
        // However long who writes them takes.
        job.comm.barrier("wait for the prompts of rank 0")?;
        let task = Run { args: &args, dir, prompts: &[], job, observe };
        return device::dispatch_one_of(job.comm, args.device, (args.dtype, LogitsChoice::F32), task).map(drop);
    }
    args.input.as_mut().map_or(Ok(()), |input| hub::place_input(input, observe))?;
    let args = &args;
    let dir = args.quantize.open(&args.model, args.adapter.as_deref())?;
    let tokenizer = dir.load_tokenizer(&TokenizerOptions { chat_template, ..Default::default() })?;
    let wraps = wraps(args, &tokenizer)?;
    if !wraps && args.wrap_prompts.is_none() && tokenizer.template.is_some() {
        let why = "the model was trained on plain prompts: text is continued as it stands (`options.wrap_prompts` makes it a user's turn)";
        observe.tell(&Event::Note(why))?;
    }
    let out = args.out.as_deref().filter(|path| *path != Path::new("-"));
    let out = out.map(|path| Out::open(path, args.overwrite)).transpose()?;
    let named: Vec<PathBuf> = args.input.iter().cloned().collect();
    let inputs = Inputs::of(&named)?;
    let prompts = prompts(args, inputs.paths.first(), &tokenizer, wraps).map_err(|e| inputs.named(e))?;
    job.comm.barrier("wait for the prompts of rank 0")?;
    let task = Run { args, dir, prompts: &prompts, job, observe };
    let all = device::dispatch_one_of(job.comm, args.device, (args.dtype, LogitsChoice::F32), task)?;
    write(args, &tokenizer, (&prompts, &all), out)
}

/// Where nothing is drawn, what says how to draw has no effect; nor has a template that no prompt goes through. Values that mean
/// nothing anywhere are for their own messages.
fn refuse_without_effect(a: &GenerateArgs) -> Result<()> {
    if a.temperature == 0.0 {
        let why = "with `temperature` 0 the likeliest token is always taken; give a `temperature`, or leave it out";
        let drawn = [
            ("top_p", 0.0 < a.top_p && a.top_p < 1.0),
            ("num_return_sequences", a.num_return_sequences > 1 && a.num_return_sequences <= MAX_SEQUENCES),
            ("seed", a.seed.is_some()),
        ];
        if let Some((key, _)) = drawn.into_iter().find(|(_, given)| *given) {
            return effect::refuse(key, why);
        }
    }
    if a.overwrite && a.out.as_deref().is_none_or(|path| path == Path::new("-")) {
        return effect::refuse("overwrite", "nothing is written but to stdout; give `out` FILE, or leave it out");
    }
    let template = !["auto", "none"].contains(&a.chat_template.as_str());
    if template && a.prompt.is_some() && a.wrap_prompts == Some(false) {
        return effect::refuse(
            "chat_template",
            "without `wrap_prompts` the prompt is read as it stands; leave one of them out",
        );
    }
    Ok(())
}

/// Writes what was made, or prints it: what a model wrote goes into a pipe or a file as it is.
fn write(
    args: &GenerateArgs,
    tokenizer: &TextTokenizer,
    (prompts, all): (&[Prompt], &[Vec<Generated>]),
    mut out: Option<Out>,
) -> Result<()> {
    let mut written = 0;
    for (prompt, texts) in prompts.iter().zip(all) {
        for (index, g) in texts.iter().enumerate() {
            let text = tokenizer.decode(&g.tokens, true)?;
            let value = match (args.input.is_some(), texts.len()) {
                (false, 1) => None,
                (false, _) => Some(json!({ "index": index, "completion": text })),
                (true, _) => Some(prompt.line(index, &text, g)),
            };
            let json = value.map(|value| input::unmarked(&value.to_string()).into_owned());
            written += 1;
            match (&mut out, json) {
                (Some(out), json) => out.put((json.unwrap_or(text) + "\n").as_bytes())?,
                (None, Some(json)) => say::json_text(&json),
                (None, None) => say::result(&text),
            }
        }
    }
    out.map_or(Ok(()), |out| out.finish(&format!("{written} continuations")))
}

/// Whether a text without a role becomes a user's turn: as asked; a template that was named is for that; else as the model
/// was trained, or where it has a template.
fn wraps(args: &GenerateArgs, tokenizer: &TextTokenizer) -> Result<bool> {
    let has = tokenizer.template.is_some();
    match args.wrap_prompts {
        Some(true) if !has => {
            let why =
                "`wrap_prompts` needs a chat template, and the model has none; give one with `chat_template` FILE";
            Err(Error::usage(why))
        }
        Some(asked) => Ok(asked),
        None => Ok(has && (args.chat_template != "auto" || tokenizer.prompts() != Some("plain"))),
    }
}

/// What a user typed.
fn spoken(wraps: bool, text: String) -> Text {
    if wraps { user_turn(&text) } else { Text::Plain(text) }
}

fn prompts(
    args: &GenerateArgs,
    input: Option<&PathBuf>,
    tokenizer: &TextTokenizer,
    wraps: bool,
) -> Result<Vec<Prompt>> {
    if let Some(text) = &args.prompt {
        let ids = encode_prompt(tokenizer, &spoken(wraps, text.clone()), None, &Default::default())?;
        return Ok(vec![Prompt { row: 0, ids, shown: Value::Null, columns: Map::new() }]);
    }
    let path = input.expect("clap asks for one of the two");
    let (mut prompts, mut plain) = (Vec::new(), false);
    for (row, raw) in input::open(path, Default::default())?.enumerate() {
        let raw = raw?;
        let place = raw.place.clone();
        let mut columns = raw.fields()?;
        let asked = input::parse_prompt(columns.clone()).map_err(|why| place.error(why))?;
        let given = columns.shift_remove("prompt").filter(|prompt| !prompt.is_null());
        let (prompt, shown) = match asked.prompt {
            input::Prompt::Ids(ids) => {
                let shown = given.map_or_else(|| tokenizer.decode(&ids, false).map(Value::from), Ok)?;
                prompts.push(Prompt { row, ids, shown, columns });
                continue;
            }
            input::Prompt::Text(Text::Plain(text)) => {
                plain = true;
                (spoken(wraps, text.clone()), text.into())
            }
            input::Prompt::Text(Text::Chat(turns)) => (Text::Chat(turns.clone()), turns.into()),
            input::Prompt::Implicit | input::Prompt::None => return Err(place.error("needs a `prompt`")),
        };
        let ids = encode_prompt(tokenizer, &prompt, asked.tools.as_ref(), &asked.template_kwargs);
        let shown = given.unwrap_or(shown);
        prompts.push(Prompt { row, ids: ids.map_err(|e| place.error(e))?, shown, columns });
    }
    if args.wrap_prompts.is_some() && !plain {
        return Err(Error::file(
            path,
            "`options.wrap_prompts` has no effect: no prompt in it is plain text; leave it out",
        ));
    }
    Ok(prompts)
}

/// How many prompts the rows of `input` have, and the tokens of the longest, as the model in `model` reads them where nobody says
/// otherwise. Errors: as of the command; no prompt, or one without a token.
pub(super) fn longest_prompt(model: &Path, input: &Path) -> Result<(usize, usize)> {
    let words = [OsStr::new("--model"), model.as_os_str(), OsStr::new("--input"), input.as_os_str()];
    let command = GenerateArgs::augment_args(clap::Command::new("generate").no_binary_name(true));
    let read = |e: clap::Error| Error::usage(e.to_string());
    let args = GenerateArgs::from_arg_matches(&command.try_get_matches_from(words).map_err(read)?).map_err(read)?;
    let dir = ModelDir::open(model)?;
    let chat_template = parse_chat_template(&args.chat_template);
    let tokenizer = dir.load_tokenizer(&TokenizerOptions { chat_template, ..Default::default() })?;
    let inputs = Inputs::of(&[input.to_owned()])?;
    let prompts = prompts(&args, inputs.paths.first(), &tokenizer, wraps(&args, &tokenizer)?);
    let prompts = prompts.map_err(|e| inputs.named(e))?;
    check_ids(&dir, &prompts)?;
    let Some(longest) = prompts.iter().map(|p| p.ids.len()).max() else {
        return Err(inputs.named(Error::file(input, "has no row: there is no prompt to continue")));
    };
    if let Some(empty) = prompts.iter().find(|p| p.ids.is_empty()) {
        let why =
            format!("the prompt of row {} has no tokens: nothing to continue; start it with a BOS token", empty.row);
        return Err(inputs.named(Error::file(input, why)));
    }
    Ok((prompts.len(), longest))
}

/// A token that the model has no row for cannot be read.
fn check_ids(dir: &ModelDir, prompts: &[Prompt]) -> Result<()> {
    let rows = dir.config().vocab_size;
    let found = prompts.iter().find_map(|p| p.ids.iter().find(|id| **id as usize >= rows).map(|id| (p.row, id)));
    let Some((row, id)) = found else { return Ok(()) };
    let why =
        format!("its embedding has {rows} rows, and the prompt of row {row} uses token id {id}, which has no row");
    Err(Error::file(dir.path(), why))
}

struct Run<'a> {
    args: &'a GenerateArgs,
    dir: ModelDir,
    /// Of rank 0; the others hear of them.
    prompts: &'a [Prompt],
    job: Job<'a>,
    observe: &'a mut dyn Observe,
}

impl Task for Run<'_> {
    type Out = Vec<Vec<Generated>>;

    fn run<B: Backend>(self, be: &B) -> Result<Self::Out> {
        let (a, dir, job, observe) = (self.args, self.dir, self.job, self.observe);
        job.same_device(be)?;
        if a.max_new_tokens > MAX_NEW_TOKENS {
            return Err(Error::usage(format!(
                "--max-new-tokens {}: must be at most {MAX_NEW_TOKENS}",
                a.max_new_tokens
            )));
        }
        if a.input.is_some() {
            check_ids(&dir, self.prompts)?;
        }
        let (drawn, of) = ((a.temperature, a.top_p, a.seed), (a.max_new_tokens, a.num_return_sequences));
        job.same_work(be, (&[&dir], &[]), &[("set of options", format!("{drawn:?}, {of:?}"))])?;
        let ids = prompts_of_first(job.ranks(), self.prompts.iter().map(|p| p.ids.clone()).collect())?;
        let longest = ids.iter().map(Vec::len).max().unwrap_or(0);
        let positions = longest + a.max_new_tokens;
        let config = dir.config();
        let mut options = GenerateOptions {
            max_new_tokens: a.max_new_tokens,
            temperature: a.temperature,
            top_p: a.top_p,
            num_return_sequences: a.num_return_sequences,
            seed: a.seed.unwrap_or(42),
            eos_token_ids: config.eos_token_ids.clone(),
            cache_bytes: 2 << 30,
            pack_weights: true,
        };
        let instead = (0, "lower --max-new-tokens, shorten the prompts, or use a smaller model");
        let memory = fitting_generation(be, (config, positions), &ids, &mut options, instead, observe)?;
        be.reserve(&memory.table)?;
        let model = Model::load(be, &dir, positions)?;
        let goes_on = &mut || Ok(observe.on(&Event::Tick)? == Flow::On);
        let all = generate_by(job.ranks(), be, &model, (&ids, &options), goes_on)?;
        let lengths = ids.iter().zip(&all).flat_map(|(p, texts)| texts.iter().map(|g| p.len() + g.tokens.len()));
        warn_of_positions(config, lengths.max().unwrap_or(0), observe)?;
        Ok(all)
    }
}
