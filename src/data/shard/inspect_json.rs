//! `inspect`: what a folder of shards holds, as JSON. The keys are documented in docs/json.md, and stay.

use super::dataset::{Dataset, Group};
use super::format::hex;
use super::inspect::{InspectOptions, Statistics, boundary, count, splits, tokenizer, truncation};
use crate::data::text::{TextTokenizer, visible};
use crate::error::Result;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What [`inspect`](super::inspect::inspect) says, as an object. Errors: likewise.
pub fn inspect_json(dir: &Path, o: &InspectOptions) -> Result<Value> {
    let (names, folder, _) = splits(dir);
    let (mut all, mut told) = (Map::new(), Vec::new());
    for split in names {
        let data = Dataset::open(dir, split)?;
        if all.is_empty() {
            header(&data, &mut all);
        }
        data.check_unchanged()?;
        let mut one = statistics(&data);
        one.insert("split".into(), json!(split.prefix().trim_end_matches('-')));
        if o.verify {
            data.verify()?;
        }
        if o.show > 0 {
            let tok = tokenizer(folder, &data)?;
            let mut shown = Vec::new();
            for id in 0..o.show.min(data.num_groups()) {
                data.check_unchanged()?;
                shown.push(group(&data.try_group(id)?, tok.as_ref())?);
            }
            one.insert("shown".into(), shown.into());
        }
        told.push(Value::Object(one));
    }
    all.insert("verified".into(), json!(o.verify));
    all.insert("splits".into(), told.into());
    Ok(Value::Object(all))
}

fn header(data: &Dataset, all: &mut Map<String, Value>) {
    let m = data.meta();
    let sha = |sha: &[u8; 32]| (*sha != [0; 32]).then(|| hex(sha));
    let max_length = (m.max_length > 0).then_some(m.max_length);
    let entries = [
        ("vocab_size", json!(m.vocab_size)),
        ("token_bytes", json!(m.token_width())),
        ("eos_id", json!(m.eos_id)),
        ("tokenizer_sha256", json!(sha(&m.tokenizer_sha256))),
        ("chat_template_sha256", json!(sha(&m.template_sha256))),
        ("max_length", json!(max_length)),
        ("truncation", json!(truncation(m))),
        ("prompt_boundary", json!(boundary(m))),
    ];
    all.extend(entries.map(|(key, value)| (key.to_owned(), value)));
}

fn statistics(data: &Dataset) -> Map<String, Value> {
    let Statistics { prompts, responses, per_group, scored, labelled } = count(data);
    let entries = [
        ("shards", json!(data.shards().len())),
        ("groups", json!(data.num_groups())),
        ("responses", json!(data.num_responses())),
        ("responses_with_score", json!(scored)),
        ("responses_with_label", json!(labelled)),
        ("pairs", json!(data.num_pairs())),
        ("tokens", json!(data.num_tokens())),
        ("prompt_lengths", json!(prompts.lengths())),
        ("response_lengths", json!(responses.lengths())),
        ("responses_per_group", json!(per_group.lengths())),
    ];
    entries.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()
}

fn group(group: &Group<'_>, tok: Option<&TextTokenizer>) -> Result<Value> {
    let text = |ids: &[u32]| tok.map(|tok| visible(tok, ids)).transpose();
    let prompt = group.prompt().to_vec();
    let mut responses = Vec::new();
    for r in group.responses() {
        let ids = r.tokens.to_vec();
        responses.push(json!({
            "id": r.id, "row": r.row, "response": r.index, "score": r.score, "label": r.label,
            "text": text(&ids)?, "token_ids": ids,
        }));
    }
    let pair = |p: crate::data::shard::Pair| json!({ "chosen": p.chosen, "rejected": p.rejected, "weight": p.weight });
    let pairs: Vec<Value> = group.pairs().map(pair).collect();
    Ok(json!({
        "group": group.id, "prompt": text(&prompt)?, "prompt_token_ids": prompt, "responses": responses, "pairs": pairs,
    }))
}
