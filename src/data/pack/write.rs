//! From groups to shards, and what lies beside them.

use super::groups::{GroupData, Groups};
use super::options::PackOptions;
use super::report::{PackReport, SplitCounts};
use crate::data::shard::format::Meta;
use crate::data::shard::{NewGroup, NewPair, NewResponse, ShardWriter};
use crate::data::text::TextTokenizer;
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
    groups: &mut Groups,
    dir: &Path,
    report: &mut PackReport,
    wrote: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let mut split = |name: &str, eval: bool| -> Result<SplitCounts> {
        let mut counts = SplitCounts::default();
        let mut writer: Option<(ShardWriter, u64)> = None;
        let mut data = GroupData::default();
        for at in 0..groups.len() as u32 {
            if (o.eval_fraction > 0.0 && groups.is_eval(at, o.eval_fraction, o.seed)) != eval {
                continue;
            }
            groups.read(at, &mut data)?;
            let (shard, bytes) = match &mut writer {
                Some(open) => open,
                None => {
                    let path = dir.join(format!("{name}-{:05}.pref", counts.shards));
                    counts.shards += 1;
                    writer.insert((ShardWriter::create(&path, meta)?, 0))
                }
            };
            shard.push(&new_group(&data))?;
            count(&data, &mut counts);
            wrote()?;
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
                report.warnings.push(format!("the {name} split is empty: too few prompts for `options.eval_fraction` {}; a {change} one, or another `options.seed`, fills it", o.eval_fraction));
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

/// What [`write_side_files`] writes.
pub(super) const SIDE_FILES: [&str; 3] = ["report.json", "tokenizer.json", "tokenizer_config.json"];

/// `report.json`, and the tokenizer, so that the folder can be read without the model.
pub(super) fn write_side_files(tok: &TextTokenizer, dir: &Path, report: &PackReport) -> Result<()> {
    let write = |name: &str, bytes: &[u8]| files::write(&dir.join(name), bytes);
    let pretty = |v: &serde_json::Value| format!("{v:#}\n").into_bytes();
    let [told, tokenizer, config] = SIDE_FILES;
    write(told, &pretty(&serde_json::to_value(report).map_err(|e| Error::file(dir, e.to_string()))?))?;
    write(tokenizer, tok.json())?;
    write(config, &pretty(&tok.config_json()))
}
