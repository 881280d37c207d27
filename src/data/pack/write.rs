//! From groups to shards, and what lies beside them.

use super::families::Families;
use super::groups::{GroupReader, Groups};
use super::options::PackOptions;
use super::record::Record;
use super::report::{PackReport, SplitCounts};
use crate::data::shard::format::Meta;
use crate::data::shard::{NewPair, OpenGroup, ShardWriter};
use crate::data::text::{PROMPTS_KEY, TextTokenizer};
use crate::error::{Error, Result};
use crate::files;
use std::path::Path;

/// What the shards' headers say of how they were made.
pub(super) fn meta(o: &PackOptions, tok: &TextTokenizer, used_template: bool) -> Meta {
    let template = tok.template.as_ref().filter(|_| used_template);
    Meta {
        vocab_size: tok.vocab_size,
        eos_id: tok.eos.as_ref().map(|e| e.id),
        bos_rule: u32::from(!tok.prefix().is_empty()),
        tokenizer_sha256: tok.sha256,
        template_sha256: template.map_or([0; 32], |t| t.sha256()),
        max_length: o.max_length as u32,
        truncation: if o.max_length == 0 { 0 } else { o.truncation.code() },
        boundary: o.prompt_boundary.code(),
    }
}

/// Writes every group into the shards of its split in `dir`, and counts what went there. `wrote` is asked after every group
/// whether to go on.
pub(super) fn write_shards(
    o: &PackOptions,
    meta: &Meta,
    (groups, mut families): (&Groups, Families),
    dir: &Path,
    report: &mut PackReport,
    wrote: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let split = |name| SplitWriter { o, meta, dir, name, counts: SplitCounts::default(), open: None };
    let (mut train, mut eval) = (split("train"), split("eval"));
    let (mut groups, mut record, mut tokens) = (groups.read()?, Vec::new(), Vec::new());
    while groups.next(&mut record)? {
        let key = Record(&record).key();
        let held_out = key.is_some_and(|key| families.is_eval(key, o.eval_fraction, o.seed));
        let to = if held_out { &mut eval } else { &mut train };
        to.group(&mut groups, &mut record, &mut tokens)?;
        wrote()?;
    }
    report.train = train.finish()?;
    report.eval = eval.finish()?;
    if o.eval_fraction > 0.0 {
        for (counts, name, change) in [(&report.train, "train", "smaller"), (&report.eval, "eval", "larger")] {
            if counts.groups == 0 {
                report.warnings.push(format!("the {name} split is empty: too few prompts for `options.eval_fraction` {}; a {change} one, or another `options.seed`, fills it", o.eval_fraction));
            }
        }
    }
    Ok(())
}

/// The shards of one split.
struct SplitWriter<'a> {
    o: &'a PackOptions,
    meta: &'a Meta,
    dir: &'a Path,
    name: &'a str,
    counts: SplitCounts,
    /// The shard at hand and the bytes of its tokens.
    open: Option<(ShardWriter, u64)>,
}

impl SplitWriter<'_> {
    /// Writes the group that begins with `record`; the rest of it is read from `groups`.
    fn group(&mut self, groups: &mut GroupReader<'_>, record: &mut Vec<u32>, tokens: &mut Vec<u32>) -> Result<()> {
        let (shard, bytes) = match &mut self.open {
            Some(open) => open,
            none => {
                let path = self.dir.join(format!("{}-{:05}.pref", self.name, self.counts.shards));
                self.counts.shards += 1;
                none.insert((ShardWriter::create(&path, self.meta)?, 0))
            }
        };
        Record(record).tokens(tokens);
        let mut sum = Sum { prompt: Record(record).prompt_len(), ..Sum::default() };
        let mut group = shard.group(&tokens[..sum.prompt], Record(record).row())?;
        loop {
            sum.row(Record(record), tokens, &mut group)?;
            if !groups.next_of_group(record)? {
                break;
            }
            Record(record).tokens(tokens);
        }
        group.finish()?;
        *bytes += sum.tokens() * u64::from(self.meta.token_width());
        let full = *bytes >= self.o.shard_bytes;
        sum.count(&mut self.counts);
        match self.open.take() {
            Some((shard, _)) if full => shard.finish().map(drop),
            open => {
                self.open = open;
                Ok(())
            }
        }
    }

    fn finish(self) -> Result<SplitCounts> {
        self.open.map_or(Ok(()), |(last, _)| last.finish().map(drop))?;
        Ok(self.counts)
    }
}

/// What a group adds to the counts.
#[derive(Default)]
struct Sum {
    prompt: usize,
    responses: u32,
    pairs: u64,
    /// Tokens of all responses, and of the responses of all pairs.
    response_tokens: u64,
    pair_tokens: u64,
}

impl Sum {
    /// Adds a row to the group; `tokens` are its prompt's, where it has one, and its responses'.
    fn row(&mut self, row: Record<'_>, tokens: &[u32], group: &mut OpenGroup<'_>) -> Result<()> {
        let before = self.responses;
        let mut at = row.prompt_len();
        for i in 0..row.num_responses() {
            let end = at + row.response_len(i);
            group.response(&row.response(i, &tokens[at..end]))?;
            at = end;
        }
        self.responses += row.num_responses() as u32; // `group` saw that they are no more
        self.response_tokens += (at - row.prompt_len()) as u64;
        for (chosen, rejected, weight) in row.pairs() {
            group.pair(&NewPair { chosen: before + chosen, rejected: before + rejected, weight })?;
            self.pairs += 1;
            self.pair_tokens += (row.response_len(chosen as usize) + row.response_len(rejected as usize)) as u64;
        }
        Ok(())
    }

    fn tokens(&self) -> u64 {
        self.prompt as u64 + self.response_tokens
    }

    /// The prompt-repeated count is what a trainer of pairs computes: prompt and response twice a pair; where a group has no
    /// pairs, prompt and response once a response.
    fn count(&self, counts: &mut SplitCounts) {
        let prompt = self.prompt as u64;
        counts.groups += 1;
        counts.responses += u64::from(self.responses);
        counts.pairs += self.pairs;
        counts.tokens += self.tokens();
        counts.tokens_prompt_repeated += match self.pairs {
            0 => prompt * u64::from(self.responses) + self.response_tokens,
            pairs => 2 * prompt * pairs + self.pair_tokens,
        };
    }
}

/// What [`write_side_files`] writes.
pub(super) const SIDE_FILES: [&str; 3] = ["report.json", "tokenizer.json", "tokenizer_config.json"];

/// `report.json`, and the tokenizer, so that the folder can be read without the model. `prompts`: what they are, for the
/// models that are trained on them.
pub(super) fn write_side_files(
    tok: &TextTokenizer,
    prompts: Option<&str>,
    dir: &Path,
    report: &PackReport,
) -> Result<()> {
    let write = |name: &str, bytes: &[u8]| files::write(&dir.join(name), bytes);
    let pretty = |v: &serde_json::Value| format!("{v:#}\n").into_bytes();
    let [told, tokenizer, config] = SIDE_FILES;
    write(told, &pretty(&serde_json::to_value(report).map_err(|e| Error::file(dir, e.to_string()))?))?;
    write(tokenizer, tok.json())?;
    let mut said = tok.config_json();
    match (prompts, said.as_object_mut()) {
        (Some(prompts), Some(said)) => drop(said.insert(PROMPTS_KEY.into(), prompts.into())),
        (None, Some(said)) => drop(said.shift_remove(PROMPTS_KEY)),
        _ => {}
    }
    write(config, &pretty(&said))
}
