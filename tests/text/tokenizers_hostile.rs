//! Tokenizers and rows that make the tokenizers library give up: one line that names the file and the row, and no panic.

use crate::pack_common;

use fusedpo::data::pack::pack;
use fusedpo::data::shard::{InspectOptions, inspect};
use fusedpo::data::text::{TextTokenizer, TokenizerOptions};
use pack_common::place::{Place, run};
use serde_json::{Value, json};

const ROW: &str = r#"{"prompt":"aaaa aaaa!","completion":" iii"}"#;

fn edited(edit: impl FnOnce(&mut Value)) -> Place {
    let place = Place::new();
    let path = place.model.join("tokenizer.json");
    let mut value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut value);
    std::fs::write(&path, value.to_string()).unwrap();
    place
}

fn refused(place: &Place, rows: &str) -> String {
    let e = pack(&place.options("rows.jsonl", rows), &mut |_| Ok(())).unwrap_err();
    assert_eq!(e.exit_code(), 2, "{e}");
    let text = e.to_string();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("tokenizer.json"), "{text}");
    text
}

#[test]
fn descriptions_are_refused_before_they_are_built() {
    let replace = |content: &str| json!({"type": "Replace", "pattern": {"Regex": ""}, "content": content});
    let table = |text: &str| json!({"type": "Precompiled", "precompiled_charsmap": text});
    type Edit = (&'static str, Value, &'static str);
    let cases: Vec<Edit> = vec![
        ("normalizer", table("EAAAAP////////////////////9hYmM="), ""),
        ("normalizer", table("//////////////////////////9hYmM="), "its trie is longer than the table"),
        ("normalizer", table("%%%%"), "not base64"),
        ("normalizer", replace(&"z".repeat(70_000)), "times as long, at most 1024"),
        (
            "normalizer",
            json!({"type": "Sequence", "normalizers": vec![json!({"type": "NFC"}); 300]}),
            "more than 256 steps",
        ),
        ("pre_tokenizer", json!({"type": "FixedLength", "length": 0}), "pieces of length 0"),
        (
            "decoder",
            json!({"type": "Sequence", "decoders": vec![json!({"type": "Replace", "pattern": {"String": "i"}, "content": "iiiiiiiiii"}); 9]}),
            "its decoder can make a text",
        ),
        (
            "post_processor",
            json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<zz>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {}}),
            "",
        ),
        (
            "post_processor",
            json!({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {}}),
            "repeats the text",
        ),
    ];
    for (part, value, want) in cases {
        let place = edited(|t| t[part] = value.clone());
        let e = refused(&place, ROW);
        assert!(e.contains(want), "{part} {want}: {e}");
    }
}

#[test]
fn a_text_that_grows_without_bound_is_refused_with_its_row() {
    let grows = json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "zz"});
    let place = edited(|t| t["normalizer"] = json!({"type": "Sequence", "normalizers": vec![grows; 40]}));
    let e = refused(&place, ROW);
    assert!(e.contains("makes more than"), "{e}");
    // Where the text stays what it is, no bound that could be is held against it.
    let spaces = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "});
    let place = edited(|t| t["normalizer"] = json!({"type": "Sequence", "normalizers": vec![spaces; 40]}));
    run(&place.options("rows.jsonl", ROW));
}

#[test]
fn a_pattern_that_gives_up_names_the_row() {
    let place = edited(|t| {
        t["pre_tokenizer"] =
            json!({"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": false})
    });
    let hard = format!("{{\"prompt\":\"{}!\",\"completion\":\"c\"}}", "a".repeat(40));
    let e = refused(&place, &hard);
    assert!(e.contains("line 1") && e.contains("cannot tokenise: the tokenizers library gives up"), "{e}");
    // Among others it is one row that cannot be used.
    let report = run(&place.options("rows.jsonl", format!("{{\"prompt\":\"b\",\"completion\":\"c\"}}\n{hard}")));
    assert_eq!((report.rows_read, report.rows_kept), (2, 1));

    // Ten million spaces before a word, under the pattern of Llama 3 and Qwen.
    let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let place = edited(|t| {
        let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        t["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [split, bytes]});
    });
    let row = format!("{{\"prompt\":\"a\",\"completion\":\"b{}c\"}}", " ".repeat(10_500_000));
    let e = refused(&place, &row);
    assert!(e.contains("line 1") && e.contains("gives up"), "{e}");
}

/// Oniguruma bounds a match, not a text: these took hours.
#[test]
fn a_pattern_that_takes_for_ever_names_the_row() {
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let replace = |pattern: &str| json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": "b"});
    let row = format!("{{\"prompt\":\"{}\",\"completion\":\"c\"}}", "a".repeat(1_000_000));
    let both = format!("{{\"prompt\":\"b\",\"completion\":\"c\"}}\n{row}");
    let grows = json!([{"type": "Prepend", "prepend": "zzzz"}, replace("(?>a*)b|a")]);
    for (part, step) in
        [("pre_tokenizer", split("a*b|a")), ("normalizer", json!({"type": "Sequence", "normalizers": grows}))]
    {
        let place = edited(|t| t[part] = step);
        let report = run(&place.options("rows.jsonl", &both));
        assert_eq!((report.rows_read, report.rows_kept), (2, 1));
        let why = format!("{:?}", report.unusable_rows);
        assert!(why.contains("line 2") && why.contains("takes too long"), "{why}");
    }
    // An added token is normalized where it is read.
    let place = edited(|t| {
        t["normalizer"] = replace("a*b|a");
        t["added_tokens"]
            .as_array_mut()
            .unwrap()
            .push(json!({"id": 9999, "content": "a".repeat(1_000_000), "special": false,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": true}));
    });
    let e = refused(&place, ROW);
    assert!(e.contains("cannot normalize its added tokens") && e.contains("takes too long"), "{e}");
    // A decoder, which joins its tokens first.
    let place =
        edited(|t| t["decoder"] = json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, replace("i*b|i")]}));
    let mut o =
        place.options("rows.jsonl", format!("{{\"prompt\":\"{}\",\"completion\":\"i\"}}", "i".repeat(1_000_000)));
    o.max_length = 0;
    run(&o);
    let e = inspect(&o.out, &InspectOptions { show: 1, verify: false }).unwrap_err().to_string();
    assert!(e.contains("tokenizer.json: cannot decode: its pattern takes too long"), "{e}");
}

#[test]
fn a_decoder_that_panics_ends_in_one_line() {
    let place = edited(|t| t["decoder"] = json!({"type": "Strip", "content": "i", "start": 0, "stop": 90}));
    let o = place.options("rows.jsonl", ROW);
    run(&o);
    let e = inspect(&o.out, &InspectOptions { show: 2, verify: false }).unwrap_err().to_string();
    assert!(e.contains("tokenizer.json: cannot decode: the tokenizers library gives up"), "{e}");
    // One that does not write from left to right is shown token by token.
    let place = edited(|t| {
        let strip = json!({"type": "Strip", "content": "a", "start": 1, "stop": 0});
        t["decoder"] = json!({"type": "Sequence", "decoders": [{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}, {"type": "Fuse"}, strip]});
    });
    let o = place.options("rows.jsonl", ROW);
    run(&o);
    inspect(&o.out, &InspectOptions { show: 2, verify: false }).unwrap();
}

/// Files with a byte or a value changed: read, or refused in one line; never a panic.
#[test]
fn mutated_files_are_read_or_refused() {
    let mut random = pack_common::Random(99);
    let cases: usize = std::env::var("FUSEDPO_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(400);
    let place = Place::new();
    let path = |name: &str| place.model.join(name);
    std::fs::write(path("added_tokens.json"), r#"{"<a>": 300, "<b>": 301}"#).unwrap();
    std::fs::write(path("special_tokens_map.json"), r#"{"sep_token": {"content": "<c>", "lstrip": true}}"#).unwrap();
    let config = json!({"eos_token": "</s>", "extra_special_tokens": ["<d>"], "add_bos_token": true, "legacy": false,
        "pad_token": {"__type": "AddedToken", "content": "<e>"}, "tokenizer_class": "LlamaTokenizer"});
    std::fs::write(path("tokenizer_config.json"), config.to_string()).unwrap();
    std::fs::write(path("config.json"), r#"{"model_type": "llama", "tokenizer_class": "GPT2Tokenizer"}"#).unwrap();
    let names =
        ["tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json", "config.json"];
    let (mut read, mut refused) = (0, 0);
    for _ in 0..cases {
        let name = names[random.below(names.len())];
        let good = std::fs::read(path(name)).unwrap();
        let mut bad = good.clone();
        for _ in 0..1 + random.below(3) {
            let at = random.below(bad.len());
            match random.below(4) {
                0 => bad[at] ^= 1 << random.below(7),
                1 => drop(bad.remove(at)),
                2 => bad.insert(at, b"[]{}\",:0-9eatrue\\"[random.below(17)]),
                _ => bad[at] = b"[]{}\",:0-9eatrue\\"[random.below(17)],
            }
        }
        std::fs::write(path(name), &bad).unwrap();
        match TextTokenizer::load(&place.model, &TokenizerOptions::default()) {
            Err(e) => {
                assert_eq!((e.exit_code(), e.to_string().lines().count()), (2, 1), "{e}");
                refused += 1;
            }
            Ok(tok) => {
                read += 1;
                for text in ["the in</s> on<a>", "é  <c>\n", ""] {
                    if let Ok(ids) = tok.encode(text) {
                        let _ = (tok.decode(&ids, false), tok.pieces(&ids));
                    }
                }
            }
        }
        std::fs::write(path(name), &good).unwrap();
    }
    println!("{read} read, {refused} refused");
    assert!(read > cases / 20 && refused > cases / 4);
}
