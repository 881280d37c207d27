//! `fusedpo pack`.

use super::choice::named;
use super::effect;
use super::flags::Flags;
use super::hub;
use super::out;
use super::signal;
use super::stdin::Inputs;
use super::terminal::Terminal;
use crate::choice::Choice;
use crate::data::input::{FieldMap, Limits};
use crate::data::numbers::grouped;
use crate::data::pack::{
    Asked, AssistantTurns, OnBadRow, PackOptions, PackReport, PairChoice, Progress, Truncation, pack,
};
use crate::data::text::{BuiltInTemplate, PromptBoundary, TemplateChoice, TokenizerOptions};
use crate::error::{Error, Result};
use crate::model::wanted::Wanted;
use crate::note;
use crate::say;
use crate::say::Level;
use crate::warn;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde_json::json;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Turn JSONL, JSON, CSV or Parquet rows into preference shards: tokenised once, each prompt stored once.
#[derive(Clone, Debug, clap::Args)]
pub struct PackArgs {
    /// Model directory (tokenizer.json, tokenizer_config.json, chat template), tokenizer file, or name on the hub (org/name@revision).
    #[arg(long, value_name = "MODEL")]
    pub tokenizer: PathBuf,
    /// Input files: JSONL, a JSON array, CSV or TSV, any of them in .gz or .zst, or Parquet; `-`: stdin; or data sets on the hub:
    /// org/name, hf://datasets/org/name/CONFIG/SPLIT, hf://datasets/org/name@REVISION/PATH.
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    pub input: Vec<PathBuf>,
    /// Folder to make.
    #[arg(long, value_name = "DATA")]
    pub out: PathBuf,
    /// Longest prompt + response in tokens; 0: no limit.
    #[arg(long, default_value_t = 1024)]
    pub max_length: usize,
    /// What to do about longer rows [default: keep-start]
    #[arg(long, value_parser = named::<Truncation>())]
    pub truncation: Option<Truncation>,
    /// Which column holds a field, e.g. prompt=question,completion=answer.
    #[arg(long, value_name = "FIELD=COLUMN,...")]
    pub map: Vec<String>,
    /// Longest row of a file in bytes, decompressed.
    #[arg(long, default_value_t = Limits::default().row_bytes, value_name = "BYTES")]
    pub max_row_bytes: u64,
    /// Most times its own bytes that a compressed file's rows may take: more is a decompression bomb.
    #[arg(long, default_value_t = Limits::default().expansion, value_name = "TIMES")]
    pub max_expansion: u64,
    /// Pairs of scored responses [default: all]
    #[arg(long, value_parser = named::<PairChoice>())]
    pub pairs: Option<PairChoice>,
    /// What to do about a row that cannot be used; a file of nothing else is refused all the same.
    #[arg(long, value_parser = named::<OnBadRow>(), default_value_t)]
    pub on_bad_row: OnBadRow,
    /// Which of the assistant's turns a conversation teaches, where it is a demonstration.
    #[arg(long, value_parser = named::<AssistantTurns>(), default_value_t)]
    pub assistant_turns: AssistantTurns,
    /// Chat template for message rows: auto (the model's), none (refuse them), chatml, zephyr, alpaca, or a Jinja file.
    #[arg(long, default_value = "auto", value_name = "auto|none|NAME|FILE")]
    pub chat_template: String,
    /// Make plain prompts and their responses a user's and an assistant's turn, for the chat template.
    #[arg(long)]
    pub wrap_prompts: bool,
    /// Where the prompt of a plain dialogue without a prompt column ends [default: trl]
    #[arg(long, value_parser = named::<PromptBoundary>())]
    pub prompt_boundary: Option<PromptBoundary>,
    /// EOS text, in place of the tokenizer configuration's.
    #[arg(long, value_name = "TEXT")]
    pub eos_token: Option<String>,
    /// Leave out the rows of this list, which `fusedpo analyze --exclude-out` wrote; one of other rows is refused
    #[arg(long, value_name = "FILE")]
    pub exclude: Option<PathBuf>,
    /// Share of the prompts held out for evaluation, by a hash of the prompt.
    #[arg(long, default_value_t = 0.0, value_name = "F")]
    pub eval_fraction: f64,
    /// Seed of that hash [default: 0]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Replace an existing folder of shards.
    #[arg(long)]
    pub overwrite: bool,
    /// Print the report as one JSON object (docs/json.md has its keys)
    #[arg(long)]
    pub json: bool,
}

impl PackArgs {
    /// What was typed, checked.
    pub fn resolve(&self, inputs: &[PathBuf]) -> Result<PackOptions> {
        let map = FieldMap::parse(&self.map.join(",")).map_err(|why| Error::usage(format!("`map`: {why}")))?;
        let chat_template = parse_chat_template(&self.chat_template);
        if self.truncation.is_some() && self.max_length == 0 {
            return effect::refuse(
                "truncation",
                "`max_length` 0 lets rows be as long as they are; leave one of them out",
            );
        }
        if self.seed.is_some() && self.eval_fraction == 0.0 {
            return effect::refuse(
                "seed",
                "nothing is held out without `eval_fraction`; give that too, or leave it out",
            );
        }
        Ok(PackOptions {
            tokenizer_options: TokenizerOptions { eos_token: self.eos_token.clone(), chat_template },
            exclude: self.exclude.clone(),
            overwrite: self.overwrite,
            max_length: self.max_length,
            truncation: self.truncation.unwrap_or_default(),
            map,
            limits: Limits { row_bytes: self.max_row_bytes, expansion: self.max_expansion },
            pairs: self.pairs.unwrap_or_default(),
            asked: Asked { pairs: self.pairs.is_some(), prompt_boundary: self.prompt_boundary.is_some() },
            on_bad_row: self.on_bad_row,
            assistant_turns: self.assistant_turns,
            wrap_prompts: self.wrap_prompts,
            prompt_boundary: self.prompt_boundary.unwrap_or_default(),
            eval_fraction: self.eval_fraction,
            seed: self.seed.unwrap_or(0),
            ..PackOptions::new(&self.tokenizer, inputs.to_vec(), &self.out)
        })
    }
}

/// `auto`, `none`, a file, or one that comes with the program: a file that is there comes first.
pub fn parse_chat_template(text: &str) -> TemplateChoice {
    match text {
        "auto" => TemplateChoice::Auto,
        "none" => TemplateChoice::None,
        text => match BuiltInTemplate::named(text) {
            Some(name) if !Path::new(text).exists() => TemplateChoice::BuiltIn(name),
            _ => TemplateChoice::File(text.into()),
        },
    }
}

/// Packs, with a progress bar on a terminal and a line every few seconds elsewhere, and prints the report.
pub fn run_pack(args: &PackArgs, terminal: &mut Terminal) -> Result<()> {
    out::refuse_stdout(&args.out)?;
    // Before anything is read of what is read once.
    args.resolve(&args.input)?;
    let inputs = Inputs::of(&args.input)?;
    let mut options = args.resolve(&inputs.paths)?;
    hub::place(&mut options.tokenizer, Wanted::Tokenizer, terminal)?;
    hub::place_inputs(&mut options.inputs, terminal)?;
    let flags = terminal.flags();
    let start = Instant::now();
    let mut tokens = 0;
    let mut shown = Shown::new();
    let report = pack(&options, &mut |p| {
        tokens = p.tokens;
        if p.written == 0 {
            shown.update(p, start.elapsed());
        }
        signal::check()
    });
    shown.clear();
    let report = report.map_err(|e| inputs.named(e))?;
    if args.json {
        return print_json(&report, &options.out, (tokens, start.elapsed()), flags);
    }
    say!("{}", flags.text(&report.to_string()).trim_end_matches('\n'));
    let seconds = start.elapsed().as_secs_f64();
    say!(
        "wrote {} in {seconds:.1} s ({} tokens/s)",
        options.out.display(),
        grouped((tokens as f64 / seconds.max(1e-3)) as u64)
    );
    Ok(())
}

/// The report's own keys, and what the command adds; warnings go to people, too.
fn print_json(report: &PackReport, out: &Path, (tokens, took): (u64, Duration), flags: &Flags) -> Result<()> {
    let mut all = serde_json::to_value(report).expect("a report is plain numbers and text");
    for list in ["warnings", "notes"] {
        for text in all[list].as_array_mut().into_iter().flatten() {
            *text = flags.text(text.as_str().unwrap_or_default()).into();
        }
    }
    let seconds = took.as_secs_f64();
    all["out"] = json!(out.display().to_string());
    all["elapsed_seconds"] = json!(seconds);
    all["tokens_per_second"] = json!(tokens as f64 / seconds.max(1e-3));
    say::json(&all);
    report.warnings.iter().for_each(|w| warn!("{}", flags.text(w)));
    Ok(())
}

/// Progress as it suits the place where it is shown.
enum Shown {
    Bar(ProgressBar),
    Lines { last: Duration },
}

impl Shown {
    fn new() -> Self {
        if !std::io::stderr().is_terminal() || !say::shows(Level::Info) {
            return Shown::Lines { last: Duration::ZERO };
        }
        let style = ProgressStyle::with_template("packing {bar:30} {percent:>3}%  {msg}  {eta} left");
        Shown::Bar(ProgressBar::new(1).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())))
    }

    fn update(&mut self, p: &Progress, elapsed: Duration) {
        let rate = grouped((p.tokens as f64 / elapsed.as_secs_f64().max(1e-3)) as u64);
        let text = format!("{} rows, {} tokens, {rate} tokens/s", grouped(p.rows), grouped(p.tokens));
        match self {
            Shown::Bar(bar) => {
                bar.set_length(p.total_bytes.max(1));
                bar.set_position(p.bytes);
                bar.set_message(text);
            }
            Shown::Lines { last } if elapsed.saturating_sub(*last) >= Duration::from_secs(5) => {
                *last = elapsed;
                note!("packing: {} of {}, {text}", HumanBytes(p.bytes), HumanBytes(p.total_bytes));
            }
            Shown::Lines { .. } => {}
        }
    }

    fn clear(&self) {
        if let Shown::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
