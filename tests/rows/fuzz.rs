//! Damaged rows of every shape: understood or refused in one line, never a panic, and nothing that the row does not say.
//!
//! `FUSEDPO_FUZZ=N` tries N rows instead of a few thousand.

use super::pack_common::Random;
use super::pack_common::place::*;
use super::places::{count, nth};
use super::*;
use fusedpo::data::input::{Body, FieldMap, Pairs, Row, Text, parse, parse_turns};
use fusedpo::data::text::{PromptBoundary, TextTokenizer, TokenizerOptions, tokenise};

fn seeds() -> Vec<Value> {
    let (u, a) = (say("user", "q"), say("assistant", "a"));
    let (h, g) = (json!({"from": "human", "value": "q"}), json!({"from": "gpt", "value": "a"}));
    let call = json!({"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {}}"});
    let calls = json!([{"type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    vec![
        json!({"prompt": "p", "chosen": "a", "rejected": "b", "weight": 2, "system": "s"}),
        json!({"prompt": "q", "chosen": [u, a], "rejected": [u, say("assistant", "b")], "messages": [u, a]}),
        json!({"prompt": [u], "completion": [a, u, {"role": "assistant", "content": "", "tool_calls": calls}], "tools": "[]"}),
        json!({"prompt": "p", "responses": ["a", "b", [u, a]], "scores": [1, 0.5, true]}),
        json!({"prompt": "p", "completion": "c", "label": 1, "images": []}),
        json!({"conversations": [h, call, {"from": "tool", "value": "1"}, g], "system": "s", "tools": "[{\"name\": \"f\"}]"}),
        json!({"conversations": [h], "chosen": g, "rejected": [g]}),
        json!({"messages": [u, {"role": "assistant", "content": "a", "weight": 0}, u, a], "functions": [{}], "label": true}),
        json!({"instruction": "i", "input": "j", "output": "a", "history": [["q", "a"]], "kto_tag": false}),
        json!({"instruction": "i", "output": ["a", "b"], "system_prompt": ""}),
        json!({"question": "q", "response_j": "a", "response_k": "b"}),
        json!({"query": "q", "response": "a", "rejected_response": "b"}),
        json!({"input": {"messages": [u], "tools": [{}]}, "preferred_output": [a], "non_preferred_output": [a]}),
        json!({"instruction": "q", "generations": ["a", "b"], "ratings": [5, 1]}),
        json!({"prompt": "p", "chosen": [a], "rejected": null, "chat_template_kwargs": {"x": 1}}),
        json!({"prompt_ids": [1, 2], "responses_ids": [[3], [4]], "scores": [1, 0]}),
        json!({"text": "t", "label": 3}),
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, a], "rejected_response": "b"}),
    ]
}

/// Puts a value of some row, or an odd one, in a place of this one; renames, removes or adds a key.
fn mutate(row: &mut Value, all: &[Value], random: &mut Random) {
    let odd = [
        json!(null),
        json!(""),
        json!([]),
        json!({}),
        json!(-1),
        json!(1e300),
        json!("\u{0}"),
        json!([null]),
        json!(true),
    ];
    let mut other = all[random.below(all.len())].clone();
    let n = count(&other);
    let taken = nth(&mut other, &mut { random.below(n) }).map(|v| v.take()).unwrap_or_default();
    let keys: Vec<String> = all.iter().filter_map(Value::as_object).flat_map(|m| m.keys().cloned()).collect();
    let key = keys[random.below(keys.len())].clone();
    let n = count(row);
    let Some(place) = nth(row, &mut { random.below(n) }) else { return };
    match (random.below(5), place) {
        (0, Value::Object(map)) if !map.is_empty() => {
            let old = map.keys().nth(random.below(map.len())).cloned().unwrap();
            let value = map.remove(&old).unwrap();
            if random.below(2) == 0 {
                map.insert(key, value);
            }
        }
        (1, Value::Object(map)) => drop(map.insert(key, taken)),
        (1, Value::Array(items)) => items.push(taken),
        (2, place) => *place = odd[random.below(odd.len())].clone(),
        (3, Value::Array(items)) if !items.is_empty() => drop(items.remove(random.below(items.len()))),
        (_, place) => *place = taken,
    }
}

/// What must hold of a row that was understood.
fn check(row: &Row, said: &str) {
    assert!(row.responses.iter().all(|r| r.score.is_none_or(f32::is_finite)), "{said}");
    match row.pairs {
        Pairs::Given { weight } => assert!(row.responses.len() == 2 && weight > 0.0 && weight.is_finite(), "{said}"),
        Pairs::FromScores { .. } => assert!(row.responses.iter().all(|r| r.score.is_some()), "{said}"),
        Pairs::None => assert_eq!(row.responses.len(), 1, "{said}"),
    }
    for r in &row.responses {
        match &r.body {
            Body::Text(Text::Plain(text)) => {
                assert!(
                    !text.is_empty() && said.contains(Value::from(text.as_str()).to_string().trim_matches('"')),
                    "{said}"
                );
            }
            Body::Text(Text::Chat(turns)) => assert!(turns.iter().all(|m| m["role"].is_string()), "{said}"),
            Body::Ids(ids) => assert!(!ids.is_empty(), "{said}"),
            Body::Unusable(_) => {}
        }
    }
}

#[test]
fn damaged_rows_are_understood_or_refused_in_one_line() {
    let tries = std::env::var("FUSEDPO_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(6000);
    let place = Place::new();
    let tok = TextTokenizer::load(&place.model, &TokenizerOptions::default()).unwrap();
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let (all, map) = (seeds(), FieldMap::default());
    let mut understood = 0;
    for i in 0..tries {
        let mut row = all[i % all.len()].clone();
        for _ in 0..1 + random.below(3) {
            mutate(&mut row, &all, &mut random);
        }
        let Value::Object(fields) = &row else { continue };
        let said = row.to_string();
        let one = parse(fields.clone(), &map);
        let turns = parse_turns(fields.clone(), &map);
        for e in [one.as_ref().err(), turns.as_ref().err()].into_iter().flatten() {
            assert!(!e.contains('\n') && !e.is_empty(), "{said}: {e}");
        }
        understood += usize::from(one.is_ok());
        let turns = turns.ok().flatten().unwrap_or_default();
        assert!(turns.iter().all(|r| r.pairs == Pairs::None), "{said}");
        for row in one.into_iter().chain(turns) {
            check(&row, &said);
            if let Ok(ids) = tokenise(row, &tok, PromptBoundary::Trl) {
                assert!(ids.responses.iter().all(|r| !r.tokens.is_empty()), "{said}");
            }
        }
    }
    println!("{understood} of {tries} rows were understood");
    assert!(understood > tries / 20 && understood < tries);
}
