//! `pack` from rows to shards: every row shape, every bad input with its line, drops, truncation, splits, determinism.

mod pack_common;

use fusedpo::data::boundary::PromptBoundary;
use fusedpo::data::dataset::{Dataset, Split};
use fusedpo::data::input::rows::FieldMap;
use fusedpo::data::inspect::{InspectOptions, inspect};
use fusedpo::data::pack::{PackOptions, PairChoice, Truncation, pack};
use fusedpo::data::report::{DropReason, PackReport};
use fusedpo::data::tokenize::{TextTokenizer, TokenizerOptions};
use pack_common::tiny_model;
use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A fresh folder with the tiny model in it.
struct Place {
    dir: tempfile::TempDir,
    model: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = tiny_model(dir.path(), false);
        Self { dir, model }
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn options(&self, name: &str, bytes: impl AsRef<[u8]>) -> PackOptions {
        PackOptions::new(&self.model, vec![self.write(name, bytes)], self.dir.path().join("out"))
    }

    /// What the shards say, one line a response: prompt>response, score, label; then the pairs.
    fn contents(&self, out: &Path, split: Split) -> Vec<String> {
        let tok = TextTokenizer::load(&self.model, &TokenizerOptions::default()).unwrap();
        let data = Dataset::open(out, split).unwrap();
        data.verify().unwrap();
        let mut lines = Vec::new();
        for g in (0..data.num_groups()).map(|id| data.group(id)) {
            let text = |ids: Vec<u32>| tok.decode(&ids, false).unwrap();
            for r in g.responses() {
                let score = r.score.map_or(String::new(), |s| format!(" score {s}"));
                let label = r.label.map_or(String::new(), |l| format!(" label {l}"));
                lines.push(format!(
                    "{}.{} {}>{}{score}{label}",
                    r.row,
                    r.index,
                    text(g.prompt().to_vec()),
                    text(r.tokens.to_vec())
                ));
            }
            lines.extend(g.pairs().map(|p| format!("pair {}>{} {}", p.chosen, p.rejected, p.weight)));
        }
        lines
    }
}

fn run(o: &PackOptions) -> PackReport {
    pack(o, &mut |_| {}).unwrap()
}

fn check_rows(name: &str, bytes: impl AsRef<[u8]>, want: &[&str]) -> PackReport {
    let place = Place::new();
    let o = place.options(name, bytes);
    let report = run(&o);
    assert_eq!(place.contents(&o.out, Split::Train), want, "{name}");
    report
}

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

/// A Parquet file with string columns `prompt` and `completion` and a list column `tags` that is ignored.
fn parquet(rows: &[(&str, &str)]) -> Vec<u8> {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::writer::SerializedFileWriter;
    let schema = "message rows { REQUIRED BINARY prompt (STRING); OPTIONAL BINARY completion (STRING);
        OPTIONAL GROUP tags (LIST) { REPEATED GROUP list { OPTIONAL BINARY element (STRING); } } }";
    let schema = std::sync::Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let mut bytes = Vec::new();
    let mut file = SerializedFileWriter::new(&mut bytes, schema, Default::default()).unwrap();
    let mut group = file.next_row_group().unwrap();
    let texts = |get: fn(&(&str, &str)) -> String| {
        rows.iter().map(|r| ByteArray::from(get(r).into_bytes())).collect::<Vec<_>>()
    };
    let n = rows.len();
    let tags: Vec<ByteArray> = (0..2 * n).map(|i| ByteArray::from(format!("t{i}").into_bytes())).collect();
    let columns = [
        (texts(|r| r.0.to_owned()), None, None),
        (texts(|r| r.1.to_owned()), Some(vec![1; n]), None),
        (tags, Some(vec![3; 2 * n]), Some([0, 1].repeat(n))),
    ];
    for (values, def, rep) in columns {
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, def.as_deref(), rep.as_deref()).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    file.close().unwrap();
    bytes
}

#[test]
fn columns_are_renamed() {
    let place = Place::new();
    let mut o = place.options("qa.jsonl", r#"{"question":"q","prompt":"ignored","answer":" a"}"#);
    o.map = FieldMap::parse("prompt=question, completion=answer").unwrap();
    run(&o);
    assert_eq!(place.contents(&o.out, Split::Train), ["0.0 q> a</s>"]);
    for (text, why) in [
        ("prompt", "--map: `prompt` is not FIELD=COLUMN"),
        ("promt=q", "--map: unknown field `promt`; fields are prompt, chosen, rejected"),
        ("prompt=a,prompt=b", "--map: field `prompt` is given twice"),
    ] {
        let got = FieldMap::parse(text).unwrap_err();
        assert!(got.starts_with(why), "{got}");
    }
}

/// Packing `bytes` must fail with one line that says `path: why`, and leave nothing behind.
#[track_caller]
fn check_refused(name: &str, bytes: impl AsRef<[u8]>, why: &str) {
    let place = Place::new();
    let o = place.options(name, bytes);
    let error = pack(&o, &mut |_| {}).unwrap_err();
    assert_eq!(error.to_string(), format!("{}: {why}", o.inputs[0].display()));
    assert_eq!(error.exit_code(), 2);
    let left: Vec<_> = std::fs::read_dir(place.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "only the model and the input are there: {left:?}");
}

#[test]
fn every_bad_input_has_its_line() {
    let good = r#"{"prompt":"p","completion":"c"}"#;
    check_refused(
        "a.jsonl",
        [format!("{good}\n\n").as_bytes(), b"{\"prompt\":\"\xff\"}"].concat(),
        "line 3: not UTF-8 (byte 0xff at byte 11 of the row); convert the file to UTF-8",
    );
    check_refused(
        "a.jsonl",
        format!("{good}\n{{\"prompt\": \"p\",}}\n"),
        "line 2: malformed JSON at column 16: trailing comma",
    );
    check_refused(
        "a.jsonl",
        format!("{good}\n{{\"prompt\": \"p\"\n"),
        "line 2: malformed JSON at column 14: EOF while parsing an object; the row is cut short (JSONL needs one whole object a line)",
    );
    check_refused("a.jsonl", "\"text\"", "line 1: a row must be a JSON object, this one is a string");
    check_refused(
        "a.json",
        format!("[{good}\n,\n{{\"prompt\":\n nul}}]"),
        "line 4: malformed JSON at column 5: expected ident",
    );
    check_refused(
        "a.json",
        format!("[{good} {good}]"),
        "line 1: malformed JSON: a comma or `]` must follow an element of the array",
    );
    check_refused(
        "a.json",
        format!("[\n{good},\n"),
        "line 3: malformed JSON: the array is cut short: its closing `]` is missing",
    );
    check_refused("a.json", "[{\"a\": 1", "line 1: malformed JSON: the file ends inside an object");
    check_refused("a.json", "[1]", "line 1: an element of the array is not a JSON object");
    check_refused("a.json", format!("[{good}] x"), "line 1: malformed JSON: text after the array's closing `]`");
    check_refused(
        "a.jsonl",
        "{\"input\":1,\"output\":2}",
        "line 1: unknown row shape: found `input`, `output`; accepted are prompt+chosen+rejected, \
        chosen+rejected, prompt+responses+scores, prompt+completion(+label), messages, text, or prompt_ids with chosen_ids+rejected_ids, \
        responses_ids+scores or completion_ids; rename columns with --map FIELD=COLUMN",
    );
    check_refused(
        "a.jsonl",
        "{\"prompt\":null,\"completion\":\"c\"}",
        "line 1: `prompt` must be a string or a list of messages, found null",
    );
    check_refused(
        "a.jsonl",
        "{\"prompt\":\"p\",\"responses\":[\"a\"],\"scores\":[1,2]}",
        "line 1: 2 `scores` for 1 `responses`; they must be as many",
    );
    check_refused(
        "a.jsonl",
        "{\"prompt\":\"p\",\"responses\":[\"a\"],\"scores\":[null]}",
        "line 1: `scores` holds null; a score must be a finite number",
    );
    check_refused(
        "a.jsonl",
        "{\"prompt\":\"p\",\"chosen\":\"a\",\"rejected\":\"b\",\"weight\":0}",
        "line 1: `weight` must be a finite number above 0, found 0",
    );
    check_refused(
        "a.jsonl",
        "{\"prompt\":\"p\",\"completion\":\"a\",\"label\":\"yes\"}",
        "line 1: `label` must be true or false, found \"yes\"",
    );
    check_refused(
        "a.jsonl",
        "{\"prompt_ids\":[1],\"completion_ids\":[-1]}",
        "line 1: `completion_ids` holds -1, which is no token id",
    );
    check_refused(
        "a.jsonl",
        "{\"prompt_ids\":[1],\"completion_ids\":[9999]}",
        "line 1: token id 9999 is outside the tokenizer's vocabulary of 275",
    );
    check_refused(
        "a.jsonl",
        "{\"prompt\":[{\"role\":1}],\"completion\":\"c\"}",
        "line 1: message 0 of `prompt` has no `role` string; messages are {\"role\", \"content\"}",
    );
    check_refused(
        "a.jsonl",
        "{\"chosen\":\"c\",\"rejected\":[{\"role\":\"user\",\"content\":\"c\"}]}",
        "line 1: `chosen` and `rejected` must both be strings or both be message lists",
    );
    check_refused(
        "a.jsonl",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"c\"}]}",
        "line 1: the last of `messages` must be the assistant's: it is what is learned",
    );
    check_refused("empty.jsonl", "", "nothing left to pack of 0 rows (the input has no rows)");
    check_refused(
        "a.jsonl",
        "{\"prompt\":\"p\",\"chosen\":\"a\",\"rejected\":\"a\"}",
        "nothing left to pack of 1 rows (chosen equals rejected: 1)",
    );
    check_refused(
        "a.gz",
        b"\x1f\x8b\x08\x00",
        "damaged gzip stream near line 1 (unexpected end of file); fetch the file again",
    );
    check_refused(
        "a.zip",
        b"PK\x03\x04",
        "is a zip archive; accepted are JSONL, a JSON array, either gzipped, and Parquet",
    );
    check_refused("a.jsonl", b"\xff\xfe{\x00", "is UTF-16; convert it to UTF-8");
    let cut = &parquet(&[("p", "c")])[..100];
    check_refused(
        "a.parquet",
        cut,
        "damaged or unsupported Parquet: Parquet error: Invalid Parquet file. Corrupt footer; fetch or write the file again",
    );
}

#[test]
fn damaged_parquet_never_panics_past_the_reader() {
    let good = parquet(&[("prompt one", "completion"), ("prompt two", "another")]);
    let place = Place::new();
    for at in 4..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0x40;
        // What a flipped byte means is Parquet's affair: its pages carry no checksum here.
        if let Ok(rows) = fusedpo::data::input::open(&place.write("a.parquet", bytes), Default::default()) {
            let _ = rows.take(10).filter(Result::is_err).count();
        }
    }
}

#[test]
fn model_directories_are_checked() {
    let place = Place::new();
    let row = r#"{"prompt":"p","completion":"c"}"#;
    let chat = r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#;
    let config = place.model.join("tokenizer_config.json");
    let refused = |rows: &str| pack(&place.options("a.jsonl", rows), &mut |_| {}).unwrap_err().to_string();
    std::fs::write(&config, r#"{"eos_token":"<eos>"}"#).unwrap();
    assert!(refused(row).ends_with(
        "eos_token `<eos>` is not in the vocabulary; name one that is (--eos-token, tokenizer_config.json)"
    ));
    std::fs::write(&config, "{").unwrap();
    assert!(refused(row).contains("tokenizer_config.json: malformed JSON: "));
    std::fs::remove_file(&config).unwrap();
    assert!(refused(row).ends_with("names no EOS token, which plain text must end with; give --eos-token TEXT"));
    assert!(refused(chat).ends_with("has no chat template; give one with --chat-template FILE"));
    let mut o = place.options("a.jsonl", row);
    o.tokenizer_options.eos_token = Some("</s>".into());
    run(&o);
    std::fs::write(place.model.join("tokenizer.json"), "{}").unwrap();
    assert!(refused(row).contains("tokenizer.json: not a tokenizer.json: "));
    std::fs::remove_file(place.model.join("tokenizer.json")).unwrap();
    assert!(refused(row).ends_with("no tokenizer.json here: a Hugging Face model directory has one"));
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
fn oddities_are_noticed() {
    let rows = r#"{"prompt":"p","chosen":"a","rejected":"b","instruction":"x"}
{"prompt":"p","chosen":"b","rejected":"a"}
{"prompt":"p","chosen":"a","rejected":"b"}
{"prompt":"p","chosen":"p q","rejected":"p r</s> s"}
{"prompt_ids":[5],"chosen_ids":[6],"rejected_ids":[7,1]}
"#;
    let place = Place::new();
    let report = run(&place.options("rows.jsonl", rows));
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
        match pack(&o, &mut |_| {}) {
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
    check(rows, 6, Drop, &["(longer than max_length: 1)"]);
    check(rows, 7, PromptLeft, &["0.0 rs>ab</s> score 1", "0.1 rs>abcd</s> score 0", "pair 0>1 1"]);
    check(rows, 5, PromptLeft, &["0.0 rs>ab</s> score 1"]);
    check(pair, 5, PromptLeft, &["(longer than max_length: 1)"]);
    check(rows, 0, Drop, &["0.0 pqrs>ab</s> score 1", "0.1 pqrs>abcd</s> score 0", "pair 0>1 1"]);
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
}

/// 300 rows over 100 prompts, some of which two rows write differently though their ids are the same.
fn many_rows() -> String {
    (0..300)
        .map(|i| format!("{{\"prompt\":\"prompt {}\",\"chosen\":\"the {i}\",\"rejected\":\"on {i}\"}}\n", i * 7 % 100))
        .collect()
}

#[test]
fn a_split_never_shares_a_prompt_and_does_not_depend_on_order() {
    let place = Place::new();
    let sides = |rows: &str, seed: u64| -> (HashSet<String>, HashSet<String>) {
        let mut o = place.options("rows.jsonl", rows);
        (o.eval_fraction, o.overwrite, o.seed) = (0.3, true, seed);
        let report = run(&o);
        assert_eq!(report.train.pairs + report.eval.pairs, 300);
        let prompts = |split| {
            place
                .contents(&o.out, split)
                .iter()
                .filter_map(|l| Some(l.split_once(' ')?.1.split_once('>')?.0.to_owned()))
                .filter(|p| p.starts_with("prompt"))
                .collect()
        };
        (prompts(Split::Train), prompts(Split::Eval))
    };
    let rows = many_rows();
    let (train, eval) = sides(&rows, 0);
    assert_eq!((train.len() + eval.len(), train.intersection(&eval).count()), (100, 0));
    assert!((15..=45).contains(&eval.len()), "{} of 100 prompts for 0.3", eval.len());
    let mut reversed: Vec<&str> = rows.lines().collect();
    reversed.reverse();
    assert_eq!(sides(&reversed.join("\n"), 0).1, eval, "the rows' order does not matter");
    assert_ne!(sides(&rows, 1).1, eval, "another seed, another split");
}

#[test]
fn the_same_bytes_on_any_number_of_threads_and_with_any_memory() {
    let place = Place::new();
    let mut bytes = Vec::new();
    for (threads, in_memory) in [(1, 1 << 20), (4, 1 << 20), (3, 100), (2, 0)] {
        let mut o = place.options("rows.jsonl", many_rows());
        (o.eval_fraction, o.tokens_in_memory, o.overwrite) = (0.2, in_memory, true);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&o));
        let mut files: Vec<_> = std::fs::read_dir(&o.out).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        bytes.push(files.iter().map(|f| (f.clone(), std::fs::read(f).unwrap())).collect::<Vec<_>>());
    }
    assert_eq!(bytes[0].len(), 5, "two shards, the report, the tokenizer and its configuration");
    assert!(bytes.iter().all(|b| *b == bytes[0]));
}

#[test]
fn large_data_are_split_into_shards() {
    let place = Place::new();
    let mut o = place.options("rows.jsonl", many_rows());
    run(&o);
    let one = place.contents(&o.out, Split::Train);
    (o.shard_bytes, o.overwrite) = (1000, true);
    let report = run(&o);
    assert!(report.train.shards > 3, "{} shards", report.train.shards);
    assert_eq!(place.contents(&o.out, Split::Train), one);
}

#[test]
fn an_output_folder_is_not_overwritten_by_accident() {
    let place = Place::new();
    let mut o = place.options("a.jsonl", r#"{"prompt":"p","completion":"c"}"#);
    let refused =
        |o: &PackOptions| pack(o, &mut |_| {}).unwrap_err().to_string().split_once("out: ").unwrap().1.to_owned();
    std::fs::write(&o.out, "x").unwrap();
    assert_eq!(refused(&o), "exists and is not a folder; give another --out");
    std::fs::remove_file(&o.out).unwrap();
    std::fs::create_dir(&o.out).unwrap();
    run(&o); // an empty folder is as good as none
    assert_eq!(refused(&o), "exists and is not empty; give another --out, or --overwrite to replace it");
    o.overwrite = true;
    run(&o);
    std::fs::remove_file(o.out.join("train-00000.pref")).unwrap();
    assert_eq!(refused(&o), "is not a folder of shards, --overwrite leaves it alone; give another --out");
}

#[test]
fn inspect_shows_tokens_and_refuses_another_tokenizer() {
    let place = Place::new();
    let o = place.options("a.jsonl", r#"{"prompt":"in the","chosen":" on\n","rejected":"é"}"#);
    run(&o);
    let text = inspect(&o.out, &InspectOptions { show: 1, verify: true }).unwrap();
    for part in [
        "every checksum and every token id is right",
        "group 0: prompt, 2 tokens\n    in| the\n",
        "response 0 (row 0, place 0): 4 tokens\n     |on|\\n|⟦</s>⟧\n",
        "response 1 (row 0, place 1): 3 tokens\n    ·|é|⟦</s>⟧\n",
        "pair: 0 preferred to 1\n",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    std::fs::write(
        o.out.join("tokenizer.json"),
        std::fs::read_to_string(place.model.join("tokenizer.json")).unwrap() + " ",
    )
    .unwrap();
    let error = inspect(&o.out, &InspectOptions { show: 1, verify: false }).unwrap_err().to_string();
    assert!(
        error.ends_with("is not the tokenizer of these shards; put theirs there, or remove it to see ids"),
        "{error}"
    );
    std::fs::remove_file(o.out.join("tokenizer.json")).unwrap();
    assert!(inspect(&o.out, &InspectOptions { show: 1, verify: false }).unwrap().contains("    262 261\n"));
}

/// Rows of every shape, to be damaged.
const SEEDS: [&str; 8] = [
    r#"{"prompt":"in the","chosen":" a\n","rejected":"é","weight":2}"#,
    r#"{"chosen":"\n\nHuman: x\n\nAssistant: I do","rejected":"\n\nHuman: x\n\nAssistant: é"}"#,
    r#"{"prompt":[{"role":"user","content":"q"}],"chosen":[{"role":"assistant","content":"a"}],"rejected":"b","tools":"[]"}"#,
    r#"{"prompt":"q","responses":["a","",[{"role":"user","content":"q"},{"role":"assistant","content":null}]],"scores":[1,2,3.5]}"#,
    r#"{"messages":[{"role":"user","content":[{"type":"text","text":"q"}]},{"role":"assistant","content":"a"}],"chat_template_kwargs":{}}"#,
    r#"{"prompt_ids":[1,2],"responses_ids":[[3],[4,5]],"scores":[1,0]}"#,
    r#"[{"prompt":"p","completion":"c","label":true}, {"text":"t"}]"#,
    r#"{"prompt":"p","chosen":[],"rejected":{}}"#,
];

/// Cuts, repeats, swaps or overwrites bytes of `text`, or puts in a JSON value where it may not belong.
fn mutate(random: &mut pack_common::Random, text: &mut Vec<u8>) {
    const VALUES: [&str; 10] =
        ["null", "\"\"", "[]", "{}", "-1", "1e400", "\"\\ud800\"", "true", "\"role\"", "[[[[[[[["];
    let at = random.below(text.len());
    let len = 1 + random.below(8.min(text.len() - at));
    match random.below(5) {
        0 => drop(text.drain(at..at + len)),
        1 => text[at] = random.below(256) as u8,
        2 => text.splice(at..at, VALUES[random.below(VALUES.len())].bytes()).for_each(drop),
        3 => text.splice(at..at + len, VALUES[random.below(VALUES.len())].bytes()).for_each(drop),
        _ => {
            let piece = text[at..at + len].to_vec();
            let to = random.below(text.len());
            text.splice(to..to, piece).for_each(drop);
        }
    }
}

#[test]
fn damaged_rows_are_refused_or_understood_and_never_panic() {
    use fusedpo::data::boundary::tokenise;
    use fusedpo::data::input::{open, rows::parse};
    let tries = std::env::var("FUSEDPO_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    let place = Place::new();
    let tok = TextTokenizer::load(&place.model, &TokenizerOptions::default()).unwrap();
    let mut random = pack_common::Random(0x2545_f491_4f6c_dd1d);
    for i in 0..tries {
        let mut text = SEEDS[i % SEEDS.len()].as_bytes().to_vec();
        for _ in 0..1 + random.below(3) {
            if !text.is_empty() {
                mutate(&mut random, &mut text);
            }
        }
        let Ok(rows) = open(&place.write("row.jsonl", &text), Default::default()) else { continue };
        for raw in rows {
            let Ok(raw) = raw else { break };
            let at = raw.place.clone();
            let row = raw.fields().and_then(|f| parse(f, &FieldMap::default()).map_err(|why| at.error(why)));
            match row {
                Err(e) => assert!(!e.to_string().contains('\n'), "{e}"),
                Ok(row) => {
                    for boundary in [PromptBoundary::Trl, PromptBoundary::LastTurn] {
                        let Ok(tokens) = tokenise(row.clone(), &tok, boundary) else { continue };
                        assert!(tokens.responses.iter().all(|r| !r.tokens.is_empty()));
                    }
                }
            }
        }
    }
}
