//! `pack`: input rows to shards.
//!
//! ```text
//! reader thread        this thread, on every core         admitting thread            this thread
//! files -> raw rows -> parse, template, tokenise     ->   truncate, count, group  ->  train-*.pref, eval-*.pref
//! ```
//! Batches keep the input's order and no result depends on a thread's timing: the same input gives the same bytes on any
//! number of cores.

use super::admit::Admission;
use super::boundary::{PromptBoundary, Refusal, TokenRow, tokenise};
use super::format::Meta;
use super::groups::{GroupData, Groups, IN_MEMORY};
use super::input::rows::{FieldMap, parse};
use super::input::{self, Place, RawRow};
use super::report::{PackReport, SplitCounts};
use super::shard_write::{NewGroup, NewPair, NewResponse, ShardWriter};
use super::tokenize::{TextTokenizer, TokenizerOptions};
use crate::choice;
use crate::error::{Error, Result};
use crate::files::{self, AtomicFolder};
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

choice! {
    /// What happens to rows longer than `max_length`.
    pub enum Truncation: default KeepStart {
        /// TRL's: keep the start of prompt + response; drop rows whose prompt alone fills `max_length`. EOS is lost, none
        /// is made up.
        KeepStart = "keep-start",
        /// Drop the row (of scored rows, the response).
        Drop = "drop",
        /// Cut the prompt on the left until the row's longest response fits; drop rows with a response that fills
        /// `max_length`.
        PromptLeft = "prompt-left",
    }
}

impl Truncation {
    /// [`Meta::truncation`]'s code.
    pub fn code(self) -> u32 {
        match self {
            Self::KeepStart => 1,
            Self::Drop => 2,
            Self::PromptLeft => 3,
        }
    }
}

choice! {
    /// Which pairs scored responses make.
    pub enum PairChoice: default All {
        /// Every two responses with different scores.
        All = "all",
        /// The first best against the first worst.
        BestWorst = "best-worst",
    }
}

/// Everything that decides what `pack` writes.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// Model directory or tokenizer file.
    pub tokenizer: PathBuf,
    /// EOS and chat template.
    pub tokenizer_options: TokenizerOptions,
    /// Input files, in order; row numbers run on from one to the next.
    pub inputs: Vec<PathBuf>,
    /// Folder to make.
    pub out: PathBuf,
    /// Replace `out` if it is a folder of shards.
    pub overwrite: bool,
    /// Longest prompt + response in tokens; 0: no limit.
    pub max_length: usize,
    /// What to do about longer ones.
    pub truncation: Truncation,
    /// Column names.
    pub map: FieldMap,
    /// Pairs of scored rows.
    pub pairs: PairChoice,
    /// Rule for prompts that are not given.
    pub prompt_boundary: PromptBoundary,
    /// Share of prompts held out, in [0, 1).
    pub eval_fraction: f64,
    /// Seed of the split.
    pub seed: u64,
    /// A shard ends when its tokens reach this many bytes.
    pub shard_bytes: u64,
    /// Tokens kept in memory before the rest goes to a temporary file.
    pub tokens_in_memory: usize,
}

impl PackOptions {
    /// The defaults of the command line for what has one.
    pub fn new(tokenizer: impl Into<PathBuf>, inputs: Vec<PathBuf>, out: impl Into<PathBuf>) -> Self {
        Self {
            tokenizer: tokenizer.into(),
            tokenizer_options: TokenizerOptions::default(),
            inputs,
            out: out.into(),
            overwrite: false,
            max_length: 1024,
            truncation: Truncation::default(),
            map: FieldMap::default(),
            pairs: PairChoice::default(),
            prompt_boundary: PromptBoundary::default(),
            eval_fraction: 0.0,
            seed: 0,
            shard_bytes: 1 << 30,
            tokens_in_memory: IN_MEMORY,
        }
    }

    fn check(&self) -> Result<()> {
        if self.inputs.is_empty() {
            return Err(Error::usage("--input: give at least one file"));
        }
        if !(0.0..1.0).contains(&self.eval_fraction) {
            return Err(Error::usage(format!("--eval-fraction {} is not in [0, 1)", self.eval_fraction)));
        }
        if u32::try_from(self.max_length).is_err() {
            return Err(Error::usage(format!("--max-length {} is too large", self.max_length)));
        }
        Ok(())
    }
}

/// How far `pack` is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read of the input files.
    pub bytes: u64,
    /// Bytes of the input files.
    pub total_bytes: u64,
    /// Rows grouped.
    pub rows: u64,
    /// Tokens of their prompts and responses.
    pub tokens: u64,
}

/// A row on its way: where it stands, what it became, and its ignored columns.
pub(super) type Outcome = (Place, Result<TokenRow, Refusal>, Vec<String>);

/// Rows a batch holds at most, and the bytes at which it is full.
const BATCH: (usize, usize) = (1024, 4 << 20);

/// Packs the rows of `o.inputs` into `o.out`; `progress` is called now and then, from another thread.
///
/// Errors: any input file or row that cannot be used (file and line are named), an output folder that exists, no row left.
/// Nothing is left behind then.
pub fn pack(o: &PackOptions, progress: &mut (dyn FnMut(&Progress) + Send)) -> Result<PackReport> {
    o.check()?;
    let tok = TextTokenizer::load(&o.tokenizer, &o.tokenizer_options)?;
    let total_bytes = o
        .inputs
        .iter()
        .map(|p| std::fs::metadata(p).map(|m| m.len()).map_err(Error::io(p, "open")))
        .sum::<Result<u64>>()?;
    if o.overwrite {
        refuse_no_shards(&o.out)?;
    }
    let out = AtomicFolder::create(&o.out, o.overwrite)?;
    let groups = Groups::new(out.path(), o.tokens_in_memory);
    let mut admission = Admission::new(o, &tok, groups);
    let bytes = Arc::new(AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (raw_to, raw_from) = sync_channel(4);
        let (row_to, row_from) = sync_channel::<Result<Vec<Outcome>>>(4);
        let (count, admission) = (bytes.clone(), &mut admission);
        scope.spawn(move || read_all(&o.inputs, count, &raw_to));
        let admitting = scope.spawn(move || -> Result<()> {
            for batch in row_from {
                for outcome in batch? {
                    admission.row(outcome)?;
                }
                check_stop()?;
                let (rows, tokens) = (admission.report.rows_read, admission.tokens);
                progress(&Progress { bytes: bytes.load(Ordering::Relaxed), total_bytes, rows, tokens });
            }
            Ok(())
        });
        tokenise_all(o, &tok, raw_from, row_to);
        admitting.join().expect("admitting rows does not panic")
    })?;
    admission.finish();
    let Admission { mut report, mut groups, used_template, .. } = admission;
    if groups.is_empty() {
        let why = report.dropped.iter().map(|(reason, d)| format!("{}: {}", reason.text(), d.rows)).collect::<Vec<_>>();
        let why = if why.is_empty() { "the input has no rows".to_owned() } else { why.join(", ") };
        return Err(Error::file(&o.inputs[0], format!("nothing left to pack of {} rows ({why})", report.rows_read)));
    }
    groups.seal()?;
    write_shards(o, &tok, used_template, &mut groups, out.path(), &mut report)?;
    report.warn();
    report.warnings.extend(tok.warning());
    write_side_files(&tok, out.path(), &report)?;
    out.commit()?;
    Ok(report)
}

/// Only what `pack` made is replaced.
fn refuse_no_shards(out: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(out) else { return Ok(()) };
    let names: Vec<_> = entries.filter_map(|e| e.ok()).map(|e| e.file_name()).collect();
    let shards = names.iter().any(|n| Path::new(n).extension().is_some_and(|e| e == "pref"));
    match shards || names.is_empty() {
        true => Ok(()),
        false => Err(Error::file(out, "is not a folder of shards, --overwrite leaves it alone; give another --out")),
    }
}

/// Ctrl-C leaves nothing behind: the temporary folder goes with the error.
fn check_stop() -> Result<()> {
    match crate::signal::stop_requested() {
        true => Err(Error::usage("stopped by Ctrl-C; nothing was written")),
        false => Ok(()),
    }
}

/// Reads the files one after the other and sends their rows in batches, up to the first error.
fn read_all(inputs: &[PathBuf], bytes: Arc<AtomicU64>, to: &SyncSender<Result<Vec<RawRow>>>) {
    let mut batch = Vec::new();
    let mut size = 0;
    for path in inputs {
        let rows = match input::open(path, bytes.clone()) {
            Ok(rows) => rows,
            Err(e) => {
                let _ = to.send(Ok(batch)).and_then(|()| to.send(Err(e)));
                return;
            }
        };
        for row in rows {
            match row {
                Ok(row) => {
                    size += if let input::RawBody::Json(b) = &row.body { b.len() } else { 2048 };
                    batch.push(row);
                }
                Err(e) => {
                    let _ = to.send(Ok(batch)).and_then(|()| to.send(Err(e)));
                    return;
                }
            }
            if batch.len() >= BATCH.0 || size >= BATCH.1 {
                size = 0;
                // A closed channel: the other side met an error, which it reports itself.
                if to.send(Ok(std::mem::take(&mut batch))).is_err() {
                    return;
                }
            }
        }
    }
    let _ = to.send(Ok(batch));
}

/// Tokenises batches on every core, in order, until the input ends or the receiver gives up.
fn tokenise_all(
    o: &PackOptions,
    tok: &TextTokenizer,
    from: Receiver<Result<Vec<RawRow>>>,
    to: SyncSender<Result<Vec<Outcome>>>,
) {
    for batch in from {
        let batch = batch.and_then(|rows| {
            rows.into_par_iter().map(|row| one_row(o, tok, row)).collect::<Vec<_>>().into_iter().collect()
        });
        if to.send(batch).is_err() {
            return;
        }
    }
}

fn one_row(o: &PackOptions, tok: &TextTokenizer, raw: RawRow) -> Result<Outcome> {
    let place = raw.place.clone();
    let mut row = parse(raw.fields()?, &o.map).map_err(|why| place.error(why))?;
    let ignored = std::mem::take(&mut row.ignored);
    let tokens = tokenise(row, tok, o.prompt_boundary);
    if let Err(Refusal::Error(why)) = &tokens {
        return Err(place.error(why));
    }
    Ok((place, tokens, ignored))
}

fn write_shards(
    o: &PackOptions,
    tok: &TextTokenizer,
    used_template: bool,
    groups: &mut Groups,
    dir: &Path,
    report: &mut PackReport,
) -> Result<()> {
    let template = tok.template.as_ref().filter(|_| used_template);
    let meta = Meta {
        vocab_size: tok.vocab_size,
        eos_id: tok.eos.as_ref().map(|e| e.id),
        bos_rule: u32::from(!tok.prefix().is_empty()),
        tokenizer_sha256: tok.sha256,
        template_sha256: template.map_or([0; 32], |t| t.sha256()),
        max_length: o.max_length as u32,
        truncation: if o.max_length == 0 { 0 } else { o.truncation.code() },
        boundary: o.prompt_boundary.code(),
    };
    let mut split = |name: &str, eval: bool| -> Result<SplitCounts> {
        let mut counts = SplitCounts::default();
        let mut writer: Option<(ShardWriter, u64)> = None;
        let mut data = GroupData::default();
        for at in 0..groups.len() as u32 {
            if (o.eval_fraction > 0.0 && groups.is_eval(at, o.eval_fraction, o.seed)) != eval {
                continue;
            }
            check_stop()?;
            groups.read(at, &mut data)?;
            let (shard, bytes) = match &mut writer {
                Some(open) => open,
                None => {
                    let path = dir.join(format!("{name}-{:05}.pref", counts.shards));
                    counts.shards += 1;
                    writer.insert((ShardWriter::create(&path, &meta)?, 0))
                }
            };
            shard.push(&new_group(&data))?;
            count(&data, &mut counts);
            *bytes += data.tokens.len() as u64 * u64::from(meta.token_width());
            if *bytes >= o.shard_bytes
                && let Some((full, _)) = writer.take()
            {
                full.finish()?;
            }
        }
        if let Some((last, _)) = writer {
            last.finish()?;
        }
        Ok(counts)
    };
    report.train = split("train", false)?;
    if o.eval_fraction > 0.0 {
        report.eval = split("eval", true)?;
        for (counts, name, change) in [(&report.train, "train", "smaller"), (&report.eval, "eval", "larger")] {
            if counts.groups == 0 {
                report.warnings.push(format!("the {name} split is empty: too few prompts for --eval-fraction {}; a {change} one, or another --seed, fills it", o.eval_fraction));
            }
        }
    }
    Ok(())
}

fn new_group(data: &GroupData) -> NewGroup<'_> {
    NewGroup {
        prompt: &data.tokens[..data.prompt_len],
        responses: data
            .responses
            .iter()
            .map(|r| NewResponse {
                tokens: &data.tokens[r.tokens.clone()],
                score: r.score,
                label: r.label,
                row: r.row,
                index: r.index,
            })
            .collect(),
        pairs: data.pairs.iter().map(|&(chosen, rejected, weight)| NewPair { chosen, rejected, weight }).collect(),
    }
}

/// The prompt-repeated count is what a trainer of pairs computes: prompt and response twice a pair; where a group has no
/// pairs, prompt and response once a response.
fn count(data: &GroupData, counts: &mut SplitCounts) {
    let whole = |i: usize| (data.prompt_len + data.responses[i].tokens.len()) as u64;
    counts.groups += 1;
    counts.responses += data.responses.len() as u64;
    counts.pairs += data.pairs.len() as u64;
    counts.tokens += data.tokens.len() as u64;
    counts.tokens_prompt_repeated += if data.pairs.is_empty() {
        (0..data.responses.len()).map(whole).sum::<u64>()
    } else {
        data.pairs.iter().map(|p| whole(p.0 as usize) + whole(p.1 as usize)).sum()
    };
}

/// `report.json`, and the tokenizer, so that the folder can be read without the model.
fn write_side_files(tok: &TextTokenizer, dir: &Path, report: &PackReport) -> Result<()> {
    let write = |name: &str, bytes: &[u8]| files::write(&dir.join(name), bytes);
    let pretty = |v: &serde_json::Value| format!("{v:#}\n").into_bytes();
    write("report.json", &pretty(&serde_json::to_value(report).map_err(|e| Error::file(dir, e.to_string()))?))?;
    write("tokenizer.json", tok.json())?;
    write("tokenizer_config.json", &pretty(&tok.config_json()))
}
