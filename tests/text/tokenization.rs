//! Token ids and boundaries against TRL 1.16's own (the golden files), the cut claim on random texts, chat templates.

use crate::pack_common;

use fusedpo::data::input::{FieldMap, parse};
use fusedpo::data::text::{
    PromptBoundary, TemplateChoice, TextTokenizer, TokenRow, TokenizerOptions, last_turn_prompt_len, tokenise,
    trl_prompt_len,
};
use pack_common::{Random, read_gz, test_data, tiny_model};
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

/// Every text of a family alone must give the ids that `encode_family` gives.
fn check_family(tok: &TextTokenizer, texts: &[String]) {
    for special in [true, false] {
        let family = tok.encode_family(texts, special).unwrap();
        for (text, ids) in texts.iter().zip(&family) {
            let alone = if special { tok.encode(text) } else { tok.encode_bare(text) };
            assert_eq!(*ids, alone.unwrap(), "{text:?}, special {special}");
        }
    }
}

/// A random text out of pieces that sit badly: contractions, spaces, combining marks, special tokens, digits.
fn awkward(random: &mut Random, pieces: usize) -> String {
    const PIECES: [&str; 40] = [
        "the",
        " the",
        "in",
        " on",
        "re",
        "'re",
        "'",
        "'t",
        " '",
        "n't",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "a",
        " a",
        "B ",
        "1",
        "23",
        " 4",
        "é",
        "e\u{301}",
        "ſ",
        "日本",
        "😀",
        "\u{a0}",
        "</s>",
        "<s>",
        " <|turn|>",
        "<|im_end|>",
        "<|im_start|>assistant\n",
        ".",
        ", ",
        "!?",
        "\r\n",
        " x y",
        "Z z ",
        "\u{200d}",
        "_",
    ];
    (0..pieces).map(|_| PIECES[random.below(PIECES.len())]).collect()
}

#[test]
fn cutting_a_text_gives_the_ids_of_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut tokenizers = vec![tiny_model(dir.path(), false), tiny_model(dir.path(), true)];
    if let Some(data) = test_data("cutting_a_text_gives_the_ids_of_the_whole, with real tokenizers") {
        tokenizers.push(data.join("data/tokenizers/smollm2.json"));
        tokenizers.push(data.join("data/tokenizers/llama3-style-2000.json"));
        tokenizers.push(data.join("data/stories260k"));
    }
    for path in tokenizers {
        let tok = TextTokenizer::load(&path, &TokenizerOptions::default()).unwrap();
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for _ in 0..2000 {
            let pieces = random.below(14);
            let prompt = awkward(&mut random, pieces);
            let mut family = vec![prompt.clone()];
            for _ in 0..1 + random.below(3) {
                let pieces = random.below(8);
                family.push(prompt.clone() + &awkward(&mut random, pieces));
            }
            check_family(&tok, &family);
        }
    }
}

#[test]
fn the_post_processor_alone_decides_about_bos() {
    let dir = tempfile::tempdir().unwrap();
    for bos in [false, true] {
        let model = tiny_model(dir.path(), bos);
        let tok = TextTokenizer::load(&model, &TokenizerOptions::default()).unwrap();
        assert_eq!(tok.prefix(), if bos { &[0][..] } else { &[] });
        assert_eq!(tok.encode("in").unwrap().len(), 1 + usize::from(bos));
        let row = tokenise_json(&serde_json::json!({"prompt": "the", "chosen": " in", "rejected": " on"}), &tok);
        assert_eq!(row.prompt.first() == Some(&0), bos, "BOS once, at the prompt's start");
        assert!(row.responses.iter().all(|r| !r.tokens.contains(&0) && r.tokens.ends_with(&[1])));
        let text = tokenise_json(&serde_json::json!({"text": "the"}), &tok);
        assert_eq!((text.prompt.len(), text.has_prompt), (usize::from(bos), false));
    }
}

#[test]
fn a_token_that_merges_across_the_boundary_goes_to_every_response() {
    let dir = tempfile::tempdir().unwrap();
    let tok = TextTokenizer::load(&tiny_model(dir.path(), false), &TokenizerOptions::default()).unwrap();
    // "t" + "he" is one token after a space: the prompt loses its " t", for the response that does not merge as well.
    let row = serde_json::json!({"prompt": "a t", "responses": ["he", "o", "he one"], "scores": [1, 0, 2]});
    let row = tokenise_json(&row, &tok);
    assert_eq!(row.prompt, tok.encode("a").unwrap());
    assert_eq!(row.prompt_tokens_cut, 1);
    let texts: Vec<String> = row.responses.iter().map(|r| tok.decode(&r.tokens, true).unwrap()).collect();
    assert_eq!(texts, [" the", " to", " the one"]);
}

#[test]
fn implicit_prompts_end_as_trls() {
    for (chosen, rejected, prompt) in [
        ("Q: a yes", "Q: a no", "Q: a"),
        ("Q: a  yes", "Q: a  no", "Q: a "), // one trailing space, not all
        ("same", "same and more", "sam"),   // a beginning of the other keeps its last character
        ("é1", "é2", "é"),
        ("a", "b", ""),
        ("日本", "日光", "日"),
    ] {
        assert_eq!(&chosen[..trl_prompt_len(chosen, rejected)], prompt, "{chosen:?}");
    }
    let (a, b) = ("\n\nHuman: x\n\nAssistant: I do", "\n\nHuman: x\n\nAssistant: I am");
    assert_eq!(last_turn_prompt_len(a, b), Some(a.len() - " I do".len()));
    assert_eq!(last_turn_prompt_len("no marker a", "no marker b"), None);
    // Where one text is the beginning of the other, its last character is left to it: no response is empty.
    for (a, b, want) in [("p: yes", "p: yes!", 5), ("ab", "ab", 1), ("a\u{e9}", "a\u{e9}b", 1), ("", "x", 0)] {
        assert_eq!((trl_prompt_len(a, b), trl_prompt_len(b, a)), (want, want), "{a} {b}");
    }
    // Bytes in common end within a character.
    let (a, b) = ("\n\nAssistant: \u{e9}", "\n\nAssistant: \u{e8}");
    assert_eq!(last_turn_prompt_len(a, b), Some("\n\nAssistant:".len()));
}

#[test]
fn chat_templates_render_as_transformers_renders_them() {
    use fusedpo::data::text::ChatTemplate;
    use serde_json::json;
    let render = |source: &str, messages: Value, tools: Option<Value>| {
        let tokens = vec![("bos_token".to_owned(), "<s>".to_owned())];
        let template = ChatTemplate::new(source.into(), tokens, Path::new("t.jinja")).unwrap();
        template.render(messages.as_array().unwrap(), true, tools.as_ref(), &serde_json::Map::new())
    };
    let hi = json!([{"role": "user", "content": " Hi <b>'é'\n"}]);
    // Expected texts: transformers 5.23's own output for the same template and messages.
    for (source, messages, want) in [
        (
            "{{ bos_token }}{% for m in messages %}\n[{{ m.role }}]\n    {% endfor %}\nend\n",
            hi.clone(),
            "<s>[user]\nend",
        ),
        ("{{ messages[0].content | trim }}{{ messages[0]['content'].strip()[1:] }}", hi.clone(), "Hi <b>'é'i <b>'é'"),
        ("{{ messages | tojson }}", hi.clone(), r#"[{"role": "user", "content": " Hi <b>'é'\n"}]"#),
        ("{{ messages }}", hi.clone(), r#"[{'role': 'user', 'content': " Hi <b>'é'\n"}]"#),
        (
            "{{ none }} {{ true }} {{ nothing }} {{ 1.0 }} {{ [1, 'a', none] }}",
            hi.clone(),
            "None True  1.0 [1, 'a', None]",
        ),
        ("{% generation %}x{% endgeneration %}{%- generation -%} y {%- endgeneration %}", hi.clone(), "xy"),
        ("{% for m in messages %}{{ m.content.split('<')[-1] }}{% break %}{% endfor %}", hi.clone(), "b>'é'\n"),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            hi.clone(),
            "1",
        ),
        ("{% if tools is iterable and tools | length > 0 %}t{% else %}no{% endif %}", hi.clone(), "no"),
        ("{{ messages[0].reasoning_content }}", json!([{"role": "assistant", "content": "", "thinking": "hm"}]), "hm"),
    ] {
        assert_eq!(render(source, messages, None).unwrap(), want, "{source}");
    }
    let error = render("a\n{{ raise_exception('roles must\n alternate') }}", hi.clone(), None).unwrap_err();
    assert_eq!(error, "chat template: roles must alternate (line 2)");
    let indented = render("{{ tools | tojson(indent=2) }}", hi, Some(json!([{"a": []}]))).unwrap();
    assert_eq!(indented, "[\n  {\n    \"a\": []\n  }\n]");
    let broken = ChatTemplate::new("{% for %}".into(), vec![], Path::new("t.jinja")).err().unwrap().to_string();
    assert!(broken.starts_with("t.jinja: chat template: ") && !broken.contains('\n'), "{broken}");
}
