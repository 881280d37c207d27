//! `pack` from rows to groups: every row shape and file kind, drops, truncation, choices of pairs.

use crate::pack_common;

use fusedpo::data::input::FieldMap;
use fusedpo::data::pack::{DropReason, PairChoice, Truncation, pack};
use fusedpo::data::shard::Split;
use fusedpo::data::text::PromptBoundary;
use pack_common::place::*;
use pack_common::tiny_model;
use std::io::Write;

#[test]
fn every_row_shape() {
    let turn = |role: &str, text: &str| format!(r#"{{"role":"{role}","content":"{text}"}}"#);
    let (u, a, b) = (turn("user", "q"), turn("assistant", "a"), turn("assistant", "b"));
    let chat = "0.0 <|turn|>user\nq</s>\n<|turn|>assistant\n>a</s>\n";
    let both: &[&str] = &[chat, "0.1 <|turn|>user\nq</s>\n<|turn|>assistant\n>b</s>\n", "pair 0>1 1"];
    let cases: Vec<(String, Vec<&str>)> = vec![
        (
            r#"{"prompt":"p:","chosen":" yes","rejected":" no","weight":0.5}"#.into(),
            vec!["0.0 p:> yes</s>", "0.1 p:> no</s>", "pair 0>1 0.5"],
        ),
        (r#"{"chosen":"p: yes","rejected":"p: no"}"#.into(), vec!["0.0 p:> yes</s>", "0.1 p:> no</s>", "pair 0>1 1"]),
        (
            r#"{"prompt":"p","responses":["x","y","z"],"scores":[1,3,1]}"#.into(),
            vec!["0.0 p>x</s> score 1", "0.1 p>y</s> score 3", "0.2 p>z</s> score 1", "pair 1>0 1", "pair 1>2 1"],
        ),
        (r#"{"prompt":"p","completion":" c","label":false}"#.into(), vec!["0.0 p> c</s> label false"]),
        (r#"{"prompt":"p","completion":" c"}"#.into(), vec!["0.0 p> c</s>"]),
        (r#"{"prompt":"p","completion":" c","label":null}"#.into(), vec!["0.0 p> c</s>"]),
        (r#"{"prompt":"p","completion":" c","label":0}"#.into(), vec!["0.0 p> c</s> label false"]),
        // Where one dialogue is the beginning of the other, its last message is still the response's.
        (
            format!(r#"{{"chosen":[{u},{a},{b}],"rejected":[{u},{a}]}}"#),
            vec![
                "0.0 <|turn|>user\nq</s>\n<|turn|>assistant\n>a</s>\n<|turn|>assistant\nb</s>\n",
                "0.1 <|turn|>user\nq</s>\n<|turn|>assistant\n>a</s>\n",
                "pair 0>1 1",
            ],
        ),
        (r#"{"text":"the end</s>"}"#.into(), vec!["0.0 >the end</s>"]),
        (
            r#"{"prompt_ids":[100],"chosen_ids":[101,1],"rejected_ids":[102]}"#.into(),
            vec!["0.0 a>b</s>", "0.1 a>c", "pair 0>1 1"],
        ),
        (
            r#"{"prompt_ids":[],"responses_ids":[[100],[101]],"scores":[0.5,0.25]}"#.into(),
            vec!["0.0 >a score 0.5", "0.1 >b score 0.25", "pair 0>1 1"],
        ),
        (r#"{"prompt_ids":[100],"completion_ids":[101],"label":1}"#.into(), vec!["0.0 a>b label true"]),
        // messages: with a prompt; whole dialogues; whole dialogues beside the prompt, as messages and as a string
        (format!(r#"{{"prompt":[{u}],"chosen":[{a}],"rejected":[{b}]}}"#), both.to_vec()),
        (format!(r#"{{"chosen":[{u},{a}],"rejected":[{u},{b}]}}"#), both.to_vec()),
        (format!(r#"{{"prompt":[{u}],"chosen":[{u},{a}],"rejected":[{u},{b}]}}"#), both.to_vec()),
        (format!(r#"{{"prompt":"q","chosen":[{u},{a}],"rejected":[{u},{b}]}}"#), both.to_vec()),
        (format!(r#"{{"prompt":"q","chosen":[{a}],"rejected":[{b}]}}"#), both.to_vec()),
        (format!(r#"{{"prompt":[{u}],"chosen":"a","rejected":"b"}}"#), both.to_vec()),
        (format!(r#"{{"messages":[{u},{a}]}}"#), vec![chat]),
        (format!(r#"{{"prompt":[{u}],"completion":[{a}]}}"#), vec![chat]),
    ];
    for (row, want) in cases {
        check_rows("rows.jsonl", &row, &want);
    }
}

#[test]
fn rows_with_the_same_prompt_make_one_group_in_order_of_appearance() {
    let rows = r#"{"prompt":"p","chosen":"1","rejected":"2"}
{"prompt":"q","chosen":"3","rejected":"4"}
{"prompt":"p","chosen":"1","rejected":"5"}
"#;
    let want = [
        "0.0 p>1</s>",
        "0.1 p>2</s>",
        "2.0 p>1</s>",
        "2.1 p>5</s>",
        "pair 0>1 1",
        "pair 2>3 1",
        "1.0 q>3</s>",
        "1.1 q>4</s>",
        "pair 0>1 1",
    ];
    let report = check_rows("rows.jsonl", rows, &want);
    assert_eq!((report.train.groups, report.train.responses, report.train.pairs), (2, 6, 3));
    // 2 prompts of one token and 6 responses of two, against 6 sequences of three.
    assert_eq!((report.train.tokens, report.train.tokens_prompt_repeated), (14, 18));
    // Texts without a prompt share nothing, and sft takes one response a group: they stay apart.
    check_rows("texts.jsonl", "{\"text\":\"a\"}\n{\"text\":\"b\"}\n", &["0.0 >a</s>", "1.0 >b</s>"]);
    let place = Place::new();
    let mut o = place.options("texts.jsonl", "{\"text\":\"a\"}\n{\"text\":\"b\"}\n");
    o.tokenizer = tiny_model(place.dir.path(), true);
    assert_eq!(run(&o).train.groups, 2, "a prompt of BOS alone is empty as well");
}

#[test]
fn every_file_kind_gives_the_same_rows() {
    let rows = ["{\"prompt\":\"p\",\"completion\":\"{[\\\"}\\\\\"}", "{\"prompt\":\"q\",\n \"completion\":\"d\"}"];
    let want = ["0.0 p>{[\"}\\</s>", "1.0 q>d</s>"];
    let jsonl = rows.map(|r| r.replace('\n', " ")).join("\n\n");
    let array = format!(" \n[ {} ,\n{}\n]\n", rows[0], rows[1]);
    let gz = |text: &str| {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        e.write_all(text.as_bytes()).unwrap();
        e.finish().unwrap()
    };
    check_rows("a.jsonl", &jsonl, &want);
    check_rows("crlf.jsonl", format!("\u{feff}{}\r\n", jsonl.replace('\n', "\r\n")), &want);
    check_rows("misnamed.txt", &array, &want);
    check_rows("a.jsonl.gz", gz(&jsonl), &want);
    check_rows("a.json.gz", gz(&array), &want);
    check_rows("a.parquet", parquet(&[("p", "{[\"}\\"), ("q", "d")]), &want);
}

#[test]
fn columns_are_renamed() {
    let place = Place::new();
    let mut o = place.options("qa.jsonl", r#"{"question":"q","prompt":"ignored","answer":" a"}"#);
    o.map = FieldMap::parse("prompt=question, completion=answer").unwrap();
    // The old `prompt` is replaced, and the new one's column has played its part.
    assert!(run(&o).ignored_columns.is_empty());
    assert_eq!(place.contents(&o.out, Split::Train), ["0.0 q> a</s>"]);
    for (text, why) in [
        ("prompt", "\"prompt\" is not FIELD=COLUMN"),
        ("promt=q", "unknown field \"promt\"; fields are prompt, chosen, rejected"),
        ("prompt=a,prompt=b", "field \"prompt\" is given twice"),
    ] {
        let got = FieldMap::parse(text).unwrap_err();
        assert!(got.starts_with(why), "{got}");
    }
}

#[test]
fn unusable_responses_are_dropped_counted_and_named() {
    let rows = r#"{"prompt":"p","chosen":"","rejected":"b"}
{"prompt":"p","chosen":"a","rejected":7}
{"prompt":"p","chosen":null,"rejected":""}
{"prompt":"p","chosen":"a","rejected":"a"}
{"prompt":"p","responses":["","x","x","y",[]],"scores":[5,1,2,0,3]}
{"prompt":"p","responses":[],"scores":[]}
{"prompt":"p","responses":["x","y"],"scores":[1,1]}
{"chosen":"","rejected":"b"}
"#;
    let want = [
        "4.1 p>x</s> score 1",
        "4.2 p>x</s> score 2",
        "4.3 p>y</s> score 0",
        "6.0 p>x</s> score 1",
        "6.1 p>y</s> score 1",
        "pair 0>2 1",
        "pair 1>2 1",
    ];
    let report = check_rows("rows.jsonl", rows, &want);
    let count = |reason| report.dropped.get(&reason).map(|d| (d.rows, d.responses, d.first.join(" | ")));
    assert_eq!(
        count(DropReason::EmptyResponse),
        Some((
            3,
            2,
            "rows.jsonl line 1 | rows.jsonl line 5 | rows.jsonl line 5 | rows.jsonl line 6 | rows.jsonl line 8".into()
        ))
    );
    assert_eq!(count(DropReason::NonStringResponse), Some((2, 0, "rows.jsonl line 2 | rows.jsonl line 3".into())));
    assert_eq!(count(DropReason::ChosenEqualsRejected), Some((1, 0, "rows.jsonl line 4".into())));
    assert_eq!((report.rows_read, report.rows_kept, report.rows_without_pair), (8, 2, 1));
    assert_eq!((report.identical_pairs, report.duplicate_pairs, report.contradictory_pairs), (1, 1, 0));
}

#[test]
fn judgements_are_something_to_learn_from() {
    let of = |rows: &str| {
        let place = Place::new();
        run(&place.options("rows.jsonl", rows))
    };
    let judged =
        of("{\"prompt\":\"p\",\"completion\":\"a\",\"label\":true}\n{\"prompt\":\"q\",\"completion\":\"b\"}\n");
    assert_eq!((judged.rows_judged, judged.warnings.len()), (1, 0), "{judged}");
    let none = of("{\"prompt\":\"p\",\"completion\":\"a\"}\n");
    assert!(none.rows_judged == 0 && none.warnings[0].starts_with("no pairs: "), "{none}");
}

#[test]
fn oddities_are_noticed() {
    let rows = r#"{"prompt":"p","chosen":"a","rejected":"b","instruction":"x"}
{"prompt":"p","chosen":"b","rejected":"a"}
{"prompt":"p","chosen":"a","rejected":"b"}
{"prompt":"p","chosen":"p q","rejected":"p r</s> s"}
{"prompt_ids":[5],"chosen_ids":[6],"rejected_ids":[7,1]}
{"prompt":"another","chosen":"a","rejected":"b"}
"#;
    let place = Place::new();
    let report = run(&place.options("rows.jsonl", rows));
    // The same answers to another prompt repeat nothing.
    assert_eq!((report.duplicate_pairs, report.contradictory_pairs, report.rows_repeating_prompt), (1, 2, 1));
    assert_eq!((report.responses_without_eos, report.responses_with_many_eos), (1, 1));
    assert_eq!(report.ignored_columns.get("instruction"), Some(&1));
    let printed = report.to_string();
    for part in ["contradictory pairs, kept", "ignored columns: instruction", "warning: 1 responses have no EOS"] {
        assert!(printed.contains(part), "{part} in\n{printed}");
    }
}

#[test]
fn truncation_follows_its_policy() {
    // Prompt 4 tokens; responses 3 and 5 tokens with EOS.
    let rows = r#"{"prompt":"pqrs","responses":["ab","abcd"],"scores":[1,0]}"#;
    let pair = r#"{"prompt":"pqrs","chosen":"ab","rejected":"abcd"}"#;
    let check = |rows: &str, max: usize, policy: Truncation, want: &[&str]| {
        let place = Place::new();
        let mut o = place.options("rows.jsonl", rows);
        (o.max_length, o.truncation) = (max, policy);
        match pack(&o, &mut |_| Ok(())) {
            Ok(_) => assert_eq!(place.contents(&o.out, Split::Train), want, "{max} {policy:?}"),
            Err(e) => assert_eq!(want, [e.to_string().split("rows ").nth(1).unwrap()], "{max} {policy:?}"),
        }
    };
    use Truncation::{Drop, KeepStart, PromptLeft};
    check(rows, 9, KeepStart, &["0.0 pqrs>ab</s> score 1", "0.1 pqrs>abcd</s> score 0", "pair 0>1 1"]);
    check(rows, 8, KeepStart, &["0.0 pqrs>ab</s> score 1", "0.1 pqrs>abcd score 0", "pair 0>1 1"]);
    check(rows, 6, KeepStart, &["0.0 pqrs>ab score 1", "0.1 pqrs>ab score 0"]);
    check(pair, 6, KeepStart, &["(chosen equals rejected once truncated: 1)"]);
    check(rows, 4, KeepStart, &["(prompt fills max_length: 1)"]);
    check(rows, 8, Drop, &["0.0 pqrs>ab</s> score 1"]);
    check(pair, 8, Drop, &["(longer than max_length: 1)"]);
    check(rows, 7, Drop, &["0.0 pqrs>ab</s> score 1"]);
    check(rows, 6, Drop, &["(longer than max_length: 1)"]);
    check(rows, 7, PromptLeft, &["0.0 rs>ab</s> score 1", "0.1 rs>abcd</s> score 0", "pair 0>1 1"]);
    check(rows, 5, PromptLeft, &["0.0 rs>ab</s> score 1"]);
    check(pair, 5, PromptLeft, &["(longer than max_length: 1)"]);
    check(rows, 0, Drop, &["0.0 pqrs>ab</s> score 1", "0.1 pqrs>abcd</s> score 0", "pair 0>1 1"]);
}

/// The prompt is then one token longer, and what is cut on the left comes after that token.
#[test]
fn a_prompt_cut_on_the_left_keeps_its_bos() {
    let check = |row: &str, max: usize, want: &[&str]| {
        let place = Place::new();
        let mut o = place.options("rows.jsonl", row);
        o.tokenizer = tiny_model(place.dir.path(), true);
        (o.max_length, o.truncation) = (max, Truncation::PromptLeft);
        let report = run(&o);
        assert_eq!(place.contents(&o.out, Split::Train), want, "{max}");
        assert_eq!(report.truncated_prompts, u64::from(max < 10), "{max}");
    };
    let pair = r#"{"prompt":"pqrs","chosen":"ab","rejected":"abcd"}"#;
    check(pair, 10, &["0.0 <s>pqrs>ab</s>", "0.1 <s>pqrs>abcd</s>", "pair 0>1 1"]);
    check(pair, 8, &["0.0 <s>rs>ab</s>", "0.1 <s>rs>abcd</s>", "pair 0>1 1"]);
    check(pair, 6, &["0.0 <s>>ab</s>", "0.1 <s>>abcd</s>", "pair 0>1 1"]);
    // Ids that do not begin with it have none to keep.
    let ids = r#"{"prompt_ids":[115,116,117,118],"chosen_ids":[100,101,1],"rejected_ids":[100,101,102,103,1]}"#;
    check(ids, 7, &["0.0 rs>ab</s>", "0.1 rs>abcd</s>", "pair 0>1 1"]);
}

#[test]
fn the_last_turn_rule_and_best_against_worst() {
    let place = Place::new();
    let mut o = place.options("a.jsonl", "{\"chosen\":\"\\n\\nHuman: x\\n\\nAssistant: I do\",\"rejected\":\"\\n\\nHuman: x\\n\\nAssistant: I am\"}\n{\"chosen\":\"x\",\"rejected\":\"y\"}");
    o.prompt_boundary = PromptBoundary::LastTurn;
    let report = run(&o);
    let prompt = "\n\nHuman: x\n\nAssistant:";
    assert_eq!(
        place.contents(&o.out, Split::Train),
        [&format!("0.0 {prompt}> I do</s>"), &format!("0.1 {prompt}> I am</s>"), "pair 0>1 1"]
    );
    assert_eq!(report.dropped[&DropReason::NoLastTurn].first, ["a.jsonl line 2"]);
    let place = Place::new();
    let mut o = place.options("a.jsonl", r#"{"prompt":"p","responses":["a","b","c","d"],"scores":[1,3,0,3]}"#);
    o.pairs = PairChoice::BestWorst;
    run(&o);
    assert_eq!(place.contents(&o.out, Split::Train).last().unwrap(), "pair 1>2 1");
    // Of equals the first, among the best and among the worst.
    let pairs = |scores: &str| {
        let place = Place::new();
        let row = format!(r#"{{"prompt":"p","responses":["a","b","c","d"],"scores":{scores}}}"#);
        let mut o = place.options("a.jsonl", row);
        o.pairs = PairChoice::BestWorst;
        run(&o);
        place.contents(&o.out, Split::Train).split_off(4)
    };
    assert_eq!(pairs("[3,0,0,1]"), ["pair 0>1 1"]);
    assert_eq!(pairs("[0,3,3,0]"), ["pair 1>0 1"]);
    assert_eq!(pairs("[2,2,2,2]"), [""; 0]);
}

/// As in transformers 5: the older `special_tokens_map.json` wins over `tokenizer_config.json`, unless that has
/// `added_tokens_decoder`, and what was asked for wins over both.
#[test]
fn special_tokens_of_two_files() {
    let row = r#"{"prompt":"p","completion":"c"}"#;
    let packed = |config: &str, map: &str, asked: Option<&str>| {
        let place = Place::new();
        std::fs::write(place.model.join("tokenizer_config.json"), config).unwrap();
        std::fs::write(place.model.join("special_tokens_map.json"), map).unwrap();
        let mut o = place.options("rows.jsonl", row);
        o.tokenizer_options.eos_token = asked.map(str::to_owned);
        run(&o);
        place.contents(&o.out, Split::Train).remove(0)
    };
    let (end, turn) = (r#"{"eos_token":"</s>"}"#, r#"{"eos_token":{"content":"<|turn|>"}}"#);
    assert_eq!(packed(end, turn, None), "0.0 p>c<|turn|>");
    assert_eq!(packed(turn, end, None), "0.0 p>c</s>");
    assert_eq!(packed(r#"{"eos_token":"</s>","added_tokens_decoder":{}}"#, turn, None), "0.0 p>c</s>");
    assert_eq!(packed("{}", turn, None), "0.0 p>c<|turn|>");
    assert_eq!(packed(r#"{"eos_token":null}"#, turn, None), "0.0 p>c<|turn|>");
    assert_eq!(packed(end, end, Some("<|turn|>")), "0.0 p>c<|turn|>");
}
