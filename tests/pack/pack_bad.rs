//! `pack` on bad input: every mistake with its line, damaged rows and files.

use crate::pack_common;

use fusedpo::data::input::FieldMap;
use fusedpo::data::pack::{OnBadRow, pack};
use fusedpo::data::text::{PromptBoundary, TextTokenizer, TokenizerOptions};
use pack_common::place::*;

/// Packing `bytes` must fail with one line that says `path: why`, and leave nothing behind.
#[track_caller]
fn check_refused(name: &str, bytes: impl AsRef<[u8]>, why: &str) {
    let place = Place::new();
    let mut o = place.options(name, bytes);
    o.on_bad_row = OnBadRow::Stop;
    let error = pack(&o, &mut |_| Ok(())).unwrap_err();
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
        responses_ids+scores or completion_ids; rename columns with `options.map` FIELD=COLUMN",
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
        "is a zip archive; unpack it: accepted are JSONL, a JSON array, CSV and TSV, each by itself or in .gz or .zst, and Parquet",
    );
    check_refused("a.jsonl", b"\xff\xfe{\x00", "is UTF-16; convert it to UTF-8");
    let cut = &parquet(&[("p", "c")])[..100];
    check_refused(
        "a.parquet",
        cut,
        "damaged or unsupported Parquet: it is cut short: it does not end as it begins; fetch or write the file again",
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
    let refused = |rows: &str| pack(&place.options("a.jsonl", rows), &mut |_| Ok(())).unwrap_err().to_string();
    std::fs::write(&config, r#"{"eos_token":"<eos>"}"#).unwrap();
    // As in transformers, it becomes a token; that is said.
    let told = run(&place.options("a.jsonl", row)).warnings.concat();
    assert!(told.contains("the end token `<eos>` is not in tokenizer.json"), "{told}");
    std::fs::remove_dir_all(place.dir.path().join("out")).unwrap();
    let mut asked = place.options("a.jsonl", row);
    asked.tokenizer_options.eos_token = Some("<asked>".into());
    assert!(pack(&asked, &mut |_| Ok(())).unwrap_err().to_string().ends_with(
        "eos_token `<asked>` is not in the vocabulary; name one that is (`options.eos_token`, tokenizer_config.json)"
    ));
    std::fs::write(&config, "{").unwrap();
    assert!(refused(row).contains("tokenizer_config.json: malformed JSON: "));
    std::fs::remove_file(&config).unwrap();
    assert!(
        refused(row).ends_with("names no EOS token, which plain text must end with; give `options.eos_token` TEXT")
    );
    assert!(
        refused(chat).ends_with(
            "has no chat template; give one with `options.chat_template`, a file or chatml, zephyr or alpaca"
        )
    );
    let mut o = place.options("a.jsonl", row);
    o.tokenizer_options.eos_token = Some("</s>".into());
    run(&o);
    std::fs::write(place.model.join("tokenizer.json"), "{}").unwrap();
    assert!(refused(row).contains("tokenizer.json: not a tokenizer.json: "));
    std::fs::remove_file(place.model.join("tokenizer.json")).unwrap();
    assert!(refused(row).ends_with("no tokenizer.json here: a Hugging Face model directory has one"));
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
    use fusedpo::data::input::{open, parse};
    use fusedpo::data::text::tokenise;
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
