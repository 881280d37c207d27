//! What `pack` says of what it did: counts by hand, notes, and the shards' own words on how they were made.

use crate::pack_common;

use fusedpo::data::pack::{DropReason, OnBadRow, Truncation, pack};
use fusedpo::data::shard::{Dataset, Split};
use fusedpo::data::text::{TextTokenizer, TokenizerOptions};
use pack_common::place::*;
use pack_common::tiny_model;
use serde_json::{Value, json};

const ROW: &str = r#"{"prompt":"pqrs","chosen":"ab","rejected":"abcd"}"#;
const CHAT: &str = r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#;

#[test]
fn tokens_are_counted_by_hand() {
    // Prompt 4 tokens, responses 3 and 5 with EOS.
    let report = check_rows("rows.jsonl", ROW, &["0.0 pqrs>ab</s>", "0.1 pqrs>abcd</s>", "pair 0>1 1"]);
    assert_eq!((report.train.tokens, report.train.tokens_prompt_repeated), (12, 4 + 3 + 4 + 5));
    assert_eq!((report.train.groups, report.train.responses, report.train.pairs, report.train.shards), (1, 2, 1, 1));
    let l = report.response_lengths;
    assert_eq!((l.p50, l.p90, l.p99, l.max), (3, 5, 5, 5), "of two, the half is the first");
    assert_eq!((report.prompt_lengths.max, report.total_lengths.p50, report.total_lengths.max), (4, 7, 9));
    // Without pairs, once a response.
    let scored = r#"{"prompt":"pqrs","responses":["ab","abcd"],"scores":[1,1]}"#;
    let report = check_rows("rows.jsonl", scored, &["0.0 pqrs>ab</s> score 1", "0.1 pqrs>abcd</s> score 1"]);
    assert_eq!((report.train.tokens, report.train.tokens_prompt_repeated), (12, 16));
}

#[test]
fn what_is_cut_and_dropped_is_counted() {
    let place = Place::new();
    let mut o = place.options("rows.jsonl", ROW);
    o.max_length = 8;
    let report = run(&o);
    assert_eq!((report.truncated_responses, report.truncated_prompts), (1, 0));
    // Seven rows dropped for one reason: the first five are named.
    let equal = r#"{"prompt":"p","chosen":"a","rejected":"a"}"#;
    let report = run(&Place::new().options("rows.jsonl", format!("{ROW}\n{}", format!("{equal}\n").repeat(7))));
    let dropped = &report.dropped[&DropReason::ChosenEqualsRejected];
    assert_eq!((dropped.rows, dropped.first.len(), dropped.first[4].as_str()), (7, 5, "rows.jsonl line 6"));
    // Messages that say nothing.
    let empty = r#"{"prompt":"q","chosen":[{"role":"assistant","content":""}],"rejected":[{"role":"assistant","content":"b"}]}"#;
    let report = run(&Place::new().options("rows.jsonl", format!("{ROW}\n{empty}\n")));
    assert_eq!(report.dropped[&DropReason::EmptyResponse].rows, 1);
}

#[test]
fn a_bos_is_noticed_where_it_is_there_twice_or_not_at_all() {
    let place = Place::new();
    let rows = [
        json!({"prompt": "p", "completion": "a"}),
        json!({"prompt": "<s>p", "completion": "a"}),
        json!({"prompt_ids": [100], "completion_ids": [101, 1]}),
    ];
    let mut o = place.options("rows.jsonl", rows.map(|r| format!("{r}\n")).concat());
    o.tokenizer = tiny_model(place.dir.path(), true);
    let report = run(&o);
    assert_eq!((report.rows_with_double_bos, report.rows_without_bos), (1, 1));
}

/// A BOS alone is what every prompt begins with: rows with no more share nothing and stay apart.
#[test]
fn prompts_that_say_nothing_stay_apart() {
    let row = |prompt: &[u32], id: u32| json!({"prompt_ids": prompt, "completion_ids": [id, 1]});
    for (prompt, groups) in [(&[0][..], 2), (&[], 2), (&[0, 100], 1)] {
        let place = Place::new();
        let mut o = place.options("rows.jsonl", format!("{}\n{}\n", row(prompt, 101), row(prompt, 102)));
        o.tokenizer = tiny_model(place.dir.path(), true);
        assert_eq!(run(&o).train.groups, groups, "{prompt:?}");
    }
}

#[test]
fn shards_say_how_they_were_made() {
    let meta = |row: &str, bos: bool, max_length: usize, truncation: Truncation| {
        let place = Place::new();
        let mut o = place.options("rows.jsonl", row);
        o.tokenizer = tiny_model(place.dir.path(), bos);
        (o.max_length, o.truncation) = (max_length, truncation);
        run(&o);
        let tok = TextTokenizer::load(&o.tokenizer, &TokenizerOptions::default()).unwrap();
        let meta = Dataset::open(&o.out, Split::Train).unwrap().meta().clone();
        assert_eq!((meta.vocab_size, meta.eos_id, meta.tokenizer_sha256), (275, Some(1), tok.sha256));
        assert_eq!((meta.bos_rule, meta.max_length as usize), (u32::from(bos), max_length));
        (meta.template_sha256 == tok.template.unwrap().sha256(), meta.template_sha256 == [0; 32], meta.truncation)
    };
    use Truncation::{Drop, KeepStart, PromptLeft};
    assert_eq!(meta(ROW, false, 0, Drop), (false, true, 0), "no template was used, nothing is cut");
    assert_eq!(meta(ROW, true, 0, KeepStart), (false, true, 0));
    assert_eq!(meta(CHAT, false, 0, KeepStart), (true, false, 0));
    let ways = [KeepStart, Drop, PromptLeft].map(|t| meta(ROW, false, 20, t).2);
    assert_eq!(ways, [KeepStart.code(), Drop.code(), PromptLeft.code()]);
    assert!(!ways.contains(&0));
}

/// The line that is named, in an array whose elements have several; and the first id that the vocabulary has not.
#[test]
fn errors_name_the_line_and_the_bound() {
    let fails = |rows: &str| {
        let place = Place::new();
        let mut o = place.options("rows.json", rows);
        o.on_bad_row = OnBadRow::Stop;
        pack(&o, &mut |_| Ok(())).unwrap_err().to_string()
    };
    let e = fails("[\n{\n\"text\":\"a\"\n},\n\n{\"nonsense\":\n1}]");
    assert!(e.contains("rows.json: line 6: unknown row shape"), "{e}");
    let ids = |id: u32| json!({"prompt_ids": [100], "completion_ids": [101, id]}).to_string();
    assert!(fails(&ids(275)).contains("line 1: token id 275 is outside the tokenizer's vocabulary of 275"));
    run(&Place::new().options("rows.json", ids(274)));
}

/// What a post-processor puts behind a text, alone and in a family; and the template that is called `default`.
#[test]
fn what_stands_behind_a_text() {
    let place = Place::new();
    let file = place.model.join("tokenizer.json");
    let mut t: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    t["post_processor"] = json!({"type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|turn|>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|turn|>": {"id": "<|turn|>", "ids": [2], "tokens": ["<|turn|>"]}}});
    std::fs::write(&file, t.to_string()).unwrap();
    let tok = TextTokenizer::load(&place.model, &TokenizerOptions::default()).unwrap();
    let texts = ["a an b".to_owned(), "a an b on".to_owned(), String::new()];
    let alone: Vec<Vec<u32>> = texts.iter().map(|t| tok.encode(t).unwrap()).collect();
    for (text, ids) in texts.iter().zip(&alone) {
        assert_eq!(*ids, [tok.encode_bare(text).unwrap(), vec![2]].concat(), "{text}");
    }
    assert_eq!(tok.encode_family(&texts, true).unwrap(), alone);
    run(&place.options("rows.jsonl", ROW));
    assert_eq!(place.contents(&place.dir.path().join("out"), Split::Train)[0], "0.0 pqrs>ab</s><|turn|>");

    let place = Place::new();
    let named = |name: &str, text: &str| json!({"name": name, "template": text});
    let config = json!({"eos_token": "</s>", "chat_template": [named("tool_use", "t"), named("default", "d"), named("rag", "r")]});
    std::fs::write(place.model.join("tokenizer_config.json"), config.to_string()).unwrap();
    let tok = TextTokenizer::load(&place.model, &TokenizerOptions::default()).unwrap();
    assert_eq!(tok.template.unwrap().source(), "d");
}
