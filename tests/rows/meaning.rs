//! Null columns, judgements, string prompts beside dialogues, columns that nobody uses.

use super::pack_common::place::*;
use super::*;
use fusedpo::data::pack::DropReason;

#[test]
fn a_null_column_is_an_absent_one() {
    let full = |known: Value| {
        let names = [
            "prompt",
            "chosen",
            "rejected",
            "completion",
            "label",
            "messages",
            "text",
            "weight",
            "tools",
            "scores",
            "responses",
            "prompt_ids",
            "conversations",
            "instruction",
            "system",
            "images",
            "chat_template_kwargs",
        ];
        let mut row: serde_json::Map<_, _> = names.into_iter().map(|n| (n.to_owned(), Value::Null)).collect();
        row.extend(known.as_object().unwrap().clone());
        Value::from(row)
    };
    let known = [
        json!({"prompt": "A", "chosen": "b", "rejected": "c"}),
        json!({"prompt": "d", "completion": "e", "label": true}),
        json!({"prompt": "f", "completion": "g", "label": false}),
        json!({"prompt": "h", "completion": "i"}),
        json!({"chosen": "x: y", "rejected": "x: z"}),
        json!({"messages": [say("user", "q"), say("assistant", "a")]}),
        json!({"prompt": "j", "responses": ["k", "l"], "scores": [1, 0]}),
        json!({"text": "t"}),
        json!({"prompt_ids": [100], "completion_ids": [101, 1]}),
    ];
    let (want, _) = packed(&known);
    let (got, report) = packed(&known.clone().map(full));
    assert_eq!(got, want);
    assert_eq!((report.rows_read, report.rows_kept, report.ignored_columns.len()), (9, 9, 0), "{report}");
    assert_eq!(want[2..6], ["pair 0>1 1", "1.0 d>e</s> label true", "2.0 f>g</s> label false", "3.0 h>i</s>"]);
}

/// A chosen response alone is a judgement; a rejected one alone is a pair without its chosen, and dropped. By itself a text
/// does not say where its prompt ends, a dialogue does.
#[test]
fn half_of_a_pair() {
    let (got, report) = packed(&[
        json!({"prompt": "p", "chosen": "a", "rejected": null}),
        json!({"prompt": "p", "chosen": null, "rejected": "b"}),
        json!({"chosen": [say("user", "q"), say("assistant", "a")], "rejected": null}),
        json!({"chosen": "a", "rejected": null}),
    ]);
    let chat = asked(&[("user", "q")], "a");
    assert_eq!(got, ["0.0 p>a</s> label true".into(), format!("2.0 {chat} label true")]);
    let shapes: Vec<_> = report.shapes.keys().map(String::as_str).collect();
    assert_eq!(shapes, ["chosen", "prompt, chosen", "prompt, chosen, rejected"]);
    assert_eq!(
        (report.dropped[&DropReason::Unusable].rows, report.dropped[&DropReason::NonStringResponse].rows),
        (1, 1)
    );
    assert!(report.warnings.iter().any(|w| w.starts_with("2 rows have `chosen` and no `rejected`")));
}

#[test]
fn labels_as_tables_write_them() {
    for (label, want) in
        [(json!(true), true), (json!(0), false), (json!(1.0), true), (json!("False"), false), (json!("1"), true)]
    {
        let (got, _) = packed(&[json!({"prompt": "p", "completion": "c", "label": label})]);
        assert_eq!(got, [format!("0.0 p>c</s> label {want}")]);
    }
    for label in [json!(2), json!(0.5), json!("yes"), json!([]), json!("")] {
        let want = format!("line 1: `label` must be true or false, found {label}");
        assert_eq!(refused(&[json!({"prompt": "p", "completion": "c", "label": label})]), want);
    }
    // Elsewhere a label that is no judgement is a column of its own.
    let (got, report) =
        packed(&[json!({"text": "t", "label": 1}), json!({"instruction": "q", "output": "a", "label": "sports"})]);
    assert_eq!(got, ["0.0 >t</s>".into(), format!("1.0 {}", asked(&[("user", "q")], "a"))]);
    assert_eq!(report.ignored_columns["label"], 2);
}

/// All that the dialogues share is prompt, whatever the string repeats of it.
#[test]
fn a_string_prompt_beside_dialogues() {
    let [sys, u, a, v, b, c] =
        [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "v"), ("assistant", "b"), ("assistant", "c")];
    let list = |turns: &[(&str, &str)]| Value::from(turns.iter().map(|(r, t)| say(r, t)).collect::<Vec<_>>());
    let pair = |prompt: &str, chosen: &[(&str, &str)], rejected: &[(&str, &str)]| {
        packed(&[json!({"prompt": prompt, "chosen": list(chosen), "rejected": list(rejected)})]).0
    };
    let want = |prompt: &[(&str, &str)], chosen: &str, rejected: &str| {
        [format!("0.0 {}", asked(prompt, chosen)), format!("0.1 {}", asked(prompt, rejected)), "pair 0>1 1".into()]
    };
    // The string may be any of the user's turns, be there twice, or have spaces around it.
    for prompt in ["q", "v", " v\n"] {
        assert_eq!(pair(prompt, &[u, a, v, b], &[u, a, v, c]), want(&[u, a, v], "b", "c"), "{prompt}");
    }
    assert_eq!(pair("q", &[u, a, u, b], &[u, a, u, c]), want(&[u, a, u], "b", "c"));
    assert_eq!(pair("q", &[sys, u, b], &[sys, u, c]), want(&[sys, u], "b", "c"));
    // Of another depth: what one says more is response.
    let more = asked(&[u], "b").trim_end().to_owned() + "\n" + &turn("user", "v") + &turn("assistant", "c");
    assert_eq!(pair("q", &[u, b, v, c], &[u, c])[..2], [format!("0.0 {more}"), format!("0.1 {}", asked(&[u], "c"))]);
    // A dialogue that begins with the answer follows the string; turns that both share are prompt.
    assert_eq!(pair("q", &[b], &[c]), want(&[u], "b", "c"));
    assert_eq!(pair("q", &[a, v, b], &[a, v, c]), want(&[u, a, v], "b", "c"));
    // A part of content, and keys that are null in one of the two.
    let parts = json!({"role": "user", "content": [{"type": "text", "text": "q"}]});
    let nulled = json!({"role": "user", "content": "q", "name": null});
    let row = json!({"prompt": "q", "chosen": [nulled, say("assistant", "b")], "rejected": [say("user", "q"), say("assistant", "c")]});
    assert_eq!(packed(&[row]).0, want(&[u], "b", "c"));
    let row =
        json!({"prompt": "q", "chosen": [parts, say("assistant", "b")], "rejected": [parts, say("assistant", "c")]});
    assert_eq!(packed(&[row]).0.len(), 3);
    // Several scored dialogues, one of them without an answer, one an answer by itself.
    let row = json!({"prompt": "q", "responses": [list(&[u, a, v, b]), list(&[u, a, v, c]), list(&[u]), list(&[u, a, v, a])], "scores": [3, 2, 1, 0]});
    let (got, report) = packed(&[row]);
    assert_eq!(got[0], format!("0.0 {} score 3", asked(&[u, a, v], "b")));
    assert_eq!(got[2], format!("0.3 {} score 0", asked(&[u, a, v], "a")));
    assert_eq!(report.dropped[&DropReason::EmptyResponse].responses, 1);
    let row = json!({"prompt": "q", "responses": [list(&[u, b]), "c"], "scores": [1, 0]});
    assert_eq!(
        packed(&[row]).0[..2],
        [format!("0.0 {} score 1", asked(&[u], "b")), format!("0.1 {} score 0", asked(&[u], "c"))]
    );
    // One dialogue shares all of it: the last turn is the completion.
    let (got, _) = packed(&[json!({"prompt": "q", "completion": list(&[u, a, v, b])})]);
    assert_eq!(got, [format!("0.0 {}", asked(&[u, a, v], "b"))]);
    let bad = |chosen: &[(&str, &str)], rejected: &[(&str, &str)]| {
        refused(&[json!({"prompt": "nowhere", "chosen": list(chosen), "rejected": list(rejected)})])
    };
    assert!(bad(&[u, b], &[u, c]).contains("does not repeat it; leave `prompt` out (`options.map` prompt=)"));
}

#[test]
fn a_call_without_words_is_a_response() {
    let call = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}});
    let row =
        |answer: Value| json!({"prompt": [say("user", "q")], "chosen": [answer], "rejected": [say("assistant", "b")]});
    for said in [
        json!({"role": "assistant", "content": "", "tool_calls": [call]}),
        json!({"role": "assistant", "tool_calls": [call]}),
        json!({"role": "assistant", "content": "", "reasoning_content": "hm"}),
        json!({"role": "assistant", "content": [{"type": "text", "text": "a"}]}),
    ] {
        assert_eq!(packed(&[row(said)]).1.rows_kept, 1);
    }
    for silent in [
        json!({"role": "assistant", "content": "", "tool_calls": []}),
        json!({"role": "assistant", "content": null, "tool_calls": null}),
        json!({"role": "assistant", "content": [{"type": "text", "text": ""}]}),
    ] {
        assert_eq!(refused(&[row(silent)]), "nothing left to pack of 1 rows (empty response: 1)");
    }
}

/// Of any type, in JSON as Python writes it, deep inside; where a shape uses such a value, it is refused.
#[test]
fn columns_that_nobody_uses() {
    let place = Place::new();
    let odd = r#""a": NaN, "b": [1, {"c": -Infinity, "\"d": "NaN"}], "e": {"f": Infinity}, "g": 1e400, "h": [[], {}], "i": true, "j": "cut \ud83d", "k": [{"\udc00": 1}]"#;
    let report =
        run(&place.options("rows.jsonl", format!(r#"{{"prompt": "p", "completion": "Infinity \" NaN", {odd}}}"#)));
    assert_eq!(place.contents(&place.dir.path().join("out"), Split::Train), [r#"0.0 p>Infinity " NaN</s>"#]);
    assert_eq!(report.ignored_columns.keys().map(String::as_str).collect::<String>(), "abeghijk");
    for (row, why) in [
        (r#"{"prompt": "p", "completion": NaN}"#, "`completion` holds NaN, which means nothing here"),
        (
            r#"{"prompt": "p", "chosen": "a", "rejected": "b", "weight": Infinity}"#,
            "`weight` holds Infinity, which means nothing here",
        ),
        (r#"{"prompt": "p", "responses": ["a"], "scores": [NaN]}"#, "`scores` holds NaN, which means nothing here"),
        (r#"{"prompt": "p", "responses": ["a"], "scores": [1e999]}"#, "`scores` holds 1e999, which means nothing here"),
        (
            r#"{"prompt": "p", "completion": "cut \ud83d"}"#,
            r"`completion` holds \ud83d, half of a surrogate pair, which means nothing here",
        ),
        (
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "\udfff": 1}]}"#,
            "`messages` holds half of a surrogate pair in a key, which means nothing here",
        ),
        (r#"{"prompt": "p", "completion": nan}"#, "malformed JSON at column 32: expected ident"),
    ] {
        let e = pack(&Place::new().options("rows.jsonl", row), &mut |_| Ok(())).unwrap_err().to_string();
        assert!(e.ends_with(&format!("rows.jsonl: line 1: {why}")), "{e}");
    }
}

/// A table of texts writes lists as JSON, and numbers as text.
#[test]
fn lists_may_be_json_text() {
    let (want, _) = packed(&[
        json!({"prompt": "p", "responses": ["a", "b"], "scores": [1, 0.5], "weight": 2}),
        json!({"prompt_ids": [100], "completion_ids": [101, 1]}),
    ]);
    let (got, _) = packed(&[
        json!({"prompt": "p", "responses": "[\"a\", \"b\"]", "scores": "[1, 0.5]", "weight": "2"}),
        json!({"prompt_ids": " [100]", "completion_ids": "[101, 1]"}),
    ]);
    assert_eq!(got, want);
    let why = "line 1: `scores` must be a list, found a string";
    assert_eq!(refused(&[json!({"prompt": "p", "responses": ["a"], "scores": "[1"})]), why);
}
