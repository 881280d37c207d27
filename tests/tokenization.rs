//! Token ids and boundaries against TRL 1.16's own (the golden files), the cut claim on random texts, chat templates.

mod pack_common;

use fusedpo::data::boundary::{PromptBoundary, TokenRow, last_turn_prompt_len, tokenise, trl_prompt_len};
use fusedpo::data::input::rows::{FieldMap, parse};
use fusedpo::data::tokenize::{TemplateChoice, TextTokenizer, TokenizerOptions};
use pack_common::{read_gz, test_data};
use serde_json::Value;
use std::path::Path;

fn tokenise_json(row: &Value, tok: &TextTokenizer) -> TokenRow {
    let row = parse(row.as_object().unwrap().clone(), &FieldMap::default()).unwrap();
    tokenise(row, tok, PromptBoundary::Trl).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn golden_tokenizer(data: &Path, golden: &Value, dir: &Path) -> TextTokenizer {
    let template = dir.join("template.jinja");
    std::fs::write(&template, golden["chat_template"].as_str().unwrap()).unwrap();
    let options = TokenizerOptions {
        eos_token: Some(golden["eos"].as_str().unwrap().into()),
        chat_template: TemplateChoice::File(template),
    };
    TextTokenizer::load(&data.join("data/tokenizers/smollm2.json"), &options).unwrap()
}

fn check(row: &Value, want: &Value, tok: &TextTokenizer, name: &str) {
    let got = tokenise_json(row, tok);
    assert_eq!(got.prompt, ids(&want["prompt_ids"]), "{name}: prompt");
    assert_eq!(got.responses[0].tokens, ids(&want["chosen_ids"]), "{name}: chosen");
    assert_eq!(got.responses[1].tokens, ids(&want["rejected_ids"]), "{name}: rejected");
}

#[test]
fn ids_and_boundaries_equal_trls() {
    let Some(data) = test_data("ids_and_boundaries_equal_trls") else { return };
    let read = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(data.join("goldens").join(name)).unwrap()).unwrap()
    };
    let golden = read("golden_tokenization.json");
    let dir = tempfile::tempdir().unwrap();
    let tok = golden_tokenizer(&data, &golden, dir.path());
    assert_eq!(tok.eos.as_ref().unwrap().id as u64, golden["eos_id"].as_u64().unwrap());
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 15);
    for case in cases {
        check(&case["input"], case, &tok, case["name"].as_str().unwrap());
    }
    let pairs = read("golden_hh16.json");
    let pairs = pairs["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 16);
    for (i, pair) in pairs.iter().enumerate() {
        check(pair, pair, &tok, &format!("hh16 pair {i}"));
    }
}

#[test]
fn the_two_boundary_rules_differ_on_445_hh_rows() {
    let Some(data) = test_data("the_two_boundary_rules_differ_on_445_hh_rows") else { return };
    let text = read_gz(&data.join("data/hh-harmless/test.jsonl.gz"));
    let (mut rows, mut differ) = (0, 0);
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let (chosen, rejected) = (row["chosen"].as_str().unwrap(), row["rejected"].as_str().unwrap());
        rows += 1;
        differ += usize::from(last_turn_prompt_len(chosen, rejected) != Some(trl_prompt_len(chosen, rejected)));
    }
    assert_eq!((rows, differ), (2312, 445));
}
