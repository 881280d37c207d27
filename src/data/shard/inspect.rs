//! `inspect`: what a folder of shards holds, in words.

use super::dataset::{Dataset, Group, Split};
use super::format::{GROUPS, Meta, RESPONSES, hex};
use super::mapped::Shard;
use crate::data::numbers::{Histogram, grouped};
use crate::data::text::{TextTokenizer, TokenizerOptions, visible};
use crate::error::{Error, Result};
use std::fmt::Write;
use std::path::Path;

/// What to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InspectOptions {
    /// Groups to show, from the first on.
    pub show: u64,
    /// Check every checksum and every token id.
    pub verify: bool,
}

/// Describes the shards in `dir` (or a single `.pref` file). Errors: no shards, damaged ones, or with
/// [`InspectOptions::verify`] any byte that is not as it was written.
pub fn inspect(dir: &Path, o: &InspectOptions) -> Result<String> {
    let mut out = String::new();
    let (splits, folder, single) = splits(dir);
    for (i, split) in splits.iter().enumerate() {
        let data = Dataset::open(dir, *split)?;
        if i == 0 {
            header(&data, &mut out);
        }
        data.check_unchanged()?;
        let name = if single { dir.display().to_string() } else { split.prefix().trim_end_matches('-').to_owned() };
        statistics(&name, &data, &mut out);
        if o.verify {
            data.verify()?;
            let _ = writeln!(out, "  every checksum and every token id is right");
        }
        if o.show > 0 {
            let tok = tokenizer(folder, &data)?;
            for id in 0..o.show.min(data.num_groups()) {
                data.check_unchanged()?;
                show(&data.try_group(id)?, tok.as_ref(), &mut out)?;
            }
        }
    }
    Ok(out)
}

/// The splits in `dir`, the folder with their tokenizer, and whether `dir` is one shard alone.
pub(super) fn splits(dir: &Path) -> (Vec<Split>, &Path, bool) {
    let single = dir.is_file();
    let splits: Vec<Split> =
        [Split::Train, Split::Eval].into_iter().filter(|s| !single && Dataset::has_split(dir, *s)).collect();
    let splits = if splits.is_empty() { vec![Split::Train] } else { splits };
    (splits, if single { dir.parent().unwrap_or(Path::new(".")) } else { dir }, single)
}

/// The tokenizer that `pack` put beside the shards of `data`, if it is there; one that is not theirs is refused.
pub fn tokenizer_beside(data: &Dataset) -> Result<Option<TextTokenizer>> {
    tokenizer(data.folder(), data)
}

/// That in `folder`.
pub(super) fn tokenizer(folder: &Path, data: &Dataset) -> Result<Option<TextTokenizer>> {
    if !folder.join("tokenizer.json").is_file() {
        return Ok(None);
    }
    let tok = TextTokenizer::load(folder, &TokenizerOptions::default())?;
    // By the file's bytes too: an older version's shards are shown with the ids that it gave.
    let (which, theirs) = (tok.identity(), data.meta().tokenizer_sha256);
    if !which.made(&theirs) && which.file_sha256 != theirs {
        return Err(Error::file(
            &tok.path,
            "is not the tokenizer of these shards; put theirs there, or remove it to see ids",
        ));
    }
    Ok(Some(tok))
}

// Writing to a String cannot fail: the results of `writeln!` below are not looked at.

fn header(data: &Dataset, out: &mut String) {
    let m = data.meta();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "  {name:<22}{value}");
    };
    let sha = |sha: &[u8; 32], none: &str| if *sha == [0; 32] { none.to_owned() } else { hex(sha) };
    let id = |id: Option<u32>| id.map_or("none".to_owned(), |id| id.to_string());
    line("vocabulary", format!("{} ({} bytes a token)", grouped(m.vocab_size.into()), m.token_width()));
    line("EOS id", id(m.eos_id));
    line("tokenizer sha256", sha(&m.tokenizer_sha256, "none"));
    line("chat template sha256", sha(&m.template_sha256, "none used"));
    line("max_length", if m.max_length == 0 { "no limit".into() } else { grouped(m.max_length.into()) });
    line("truncation", truncation(m).into());
    line("prompt boundary", boundary(m).into());
}

/// How rows were cut.
pub(super) fn truncation(m: &Meta) -> &'static str {
    match m.truncation {
        0 => "nothing is cut",
        1 => "keep-start",
        2 => "drop",
        3 => "prompt-left",
        _ => "unknown",
    }
}

/// Where prompts ended.
pub(super) fn boundary(m: &Meta) -> &'static str {
    ["as given", "trl", "last-turn"].get(m.boundary as usize).unwrap_or(&"unknown")
}

/// Records that are read before their memory is given back.
const RECORDS_AT_ONCE: usize = 1 << 14;

/// Gives the memory of chunk `i` of a section back.
fn release<T>(shard: &Shard, section: usize, i: usize, chunk: &[T]) {
    let start = i * RECORDS_AT_ONCE * size_of::<T>();
    shard.release(section, start..start + size_of_val(chunk));
}

/// What a split's records come to.
#[derive(Default)]
pub(super) struct Statistics {
    pub(super) prompts: Histogram,
    pub(super) responses: Histogram,
    pub(super) per_group: Histogram,
    pub(super) scored: u64,
    pub(super) labelled: u64,
}

pub(super) fn count(data: &Dataset) -> Statistics {
    let mut all = Statistics::default();
    let Statistics { prompts, responses, per_group, scored, labelled } = &mut all;
    for shard in data.shards() {
        for (i, groups) in shard.groups().chunks(RECORDS_AT_ONCE).enumerate() {
            for g in groups {
                prompts.add(g.prompt_len as usize);
                per_group.add(g.num_responses as usize);
            }
            release(shard, GROUPS, i, groups);
        }
        for (i, records) in shard.responses().chunks(RECORDS_AT_ONCE).enumerate() {
            for r in records {
                responses.add(r.num_tokens as usize);
                *scored += u64::from(r.flags & super::format::HAS_SCORE != 0);
                *labelled += u64::from(r.flags & super::format::HAS_LABEL != 0);
            }
            release(shard, RESPONSES, i, records);
        }
    }
    all
}

fn statistics(name: &str, data: &Dataset, out: &mut String) {
    let Statistics { prompts, responses, per_group, scored, labelled } = count(data);
    let _ = writeln!(out, "{name}: {} shards", data.shards().len());
    let counts = [
        ("groups (prompts)", data.num_groups()),
        ("responses", data.num_responses()),
        ("  with a score", scored),
        ("  with a label", labelled),
        ("pairs", data.num_pairs()),
        ("tokens", data.num_tokens()),
    ];
    for (name, n) in counts {
        let _ = writeln!(out, "  {name:<22}{:>14}", grouped(n));
    }
    let _ = writeln!(out, "  {:<22}{:>14}{:>10}{:>10}{:>10}", "", "median", "90 %", "99 %", "most");
    for (name, h) in [("prompt tokens", prompts), ("response tokens", responses), ("responses a group", per_group)] {
        let l = h.lengths();
        let _ = writeln!(out, "  {name:<22}{:>14}{:>10}{:>10}{:>10}", l.p50, l.p90, l.p99, l.max);
    }
}

fn show(group: &Group<'_>, tok: Option<&TextTokenizer>, out: &mut String) -> Result<()> {
    let text = |ids: &[u32]| match tok {
        Some(tok) => visible(tok, ids),
        None => Ok(ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")),
    };
    let prompt = group.prompt().to_vec();
    let _ = writeln!(out, "group {}: prompt, {} tokens", group.id, prompt.len());
    let _ = writeln!(out, "    {}", text(&prompt)?);
    for (i, r) in group.responses().enumerate() {
        let score = r.score.map_or(String::new(), |s| format!(", score {s}"));
        let label = r.label.map_or("", |l| if l { ", desirable" } else { ", undesirable" });
        let _ =
            writeln!(out, "  response {i} (row {}, place {}): {} tokens{score}{label}", r.row, r.index, r.tokens.len());
        let _ = writeln!(out, "    {}", text(&r.tokens.to_vec())?);
    }
    for p in group.pairs() {
        let weight = if p.weight == 1.0 { String::new() } else { format!(", weight {}", p.weight) };
        let _ = writeln!(out, "  pair: {} preferred to {}{weight}", p.chosen, p.rejected);
    }
    Ok(())
}
