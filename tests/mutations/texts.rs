//! Damaged tokenizers, the files beside them, and templates.

use super::bench::{Bench, golden, lines};
use super::grammar;
use super::models::mutate_json;
use super::rows::packed;
use super::tokenizers;
use super::{Rng, Verdict, bytes, json_value, refused};
use fusedpo::data::text::{TextTokenizer, TokenizerOptions};
use serde_json::{Value, json};

pub fn tokenizer(b: &Bench, rng: &mut Rng) -> Verdict {
    let name = if rng.below(4) == 0 { "tokenizer_config.json" } else { "tokenizer.json" };
    mutate_json(b, rng, name);
    use_tokenizer(b)
}

/// Loads the tokenizer, and has it encode and decode.
fn use_tokenizer(b: &Bench) -> Verdict {
    let tok = match TextTokenizer::load(&b.path("m"), &TokenizerOptions::default()) {
        Err(e) => return refused(&e),
        Ok(tok) => tok,
    };
    let ids = match tok.encode("w3 w4 nothing </s> \u{1f600}") {
        Err(e) => return refused(&e),
        Ok(ids) => ids,
    };
    for ids in [&ids[..], &[0, 96, 97, u32::MAX]] {
        for e in [tok.decode(ids, false).err(), tok.pieces(ids).err()].into_iter().flatten() {
            refused(&e)?;
        }
    }
    Ok(true)
}

/// Tokenizers of other parts.
pub fn parts(b: &Bench, rng: &mut Rng) -> Verdict {
    let good: Value = serde_json::from_slice(&std::fs::read(golden().join("tokenizer.json")).unwrap()).unwrap();
    b.write("m/tokenizer.json", tokenizers::tokenizer(rng, &good).to_string());
    match rng.below(3) {
        0 => packed(b, "rows.jsonl", &chats(rng)),
        1 => packed(b, "rows.jsonl", lines(&b.rows[..4]).as_bytes()),
        _ => use_tokenizer(b),
    }
}

/// The files beside tokenizer.json, each with what tools write into it.
pub fn side_files(b: &Bench, rng: &mut Rng) -> Verdict {
    let token = |content: &str| {
        json!({"content": content, "lstrip": false, "normalized": false, "rstrip": false,
        "single_word": false, "special": true})
    };
    let files = [
        (
            "tokenizer_config.json",
            json!({
                "added_tokens_decoder": {"0": token("<unk>"), "1": token("<s>"), "2": token("</s>"), "96": token("<|im_end|>"),
                    "97": token("<|new|>")},
                "bos_token": "<s>", "eos_token": token("</s>"), "unk_token": "<unk>", "pad_token": null, "add_bos_token": true,
                "add_eos_token": false, "additional_special_tokens": ["<|im_end|>", "<|new|>"], "model_max_length": 1e30,
                "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false,
                "extra_special_tokens": {"image": "<|image|>"},
                "chat_template": [{"name": "default", "template": "{{ messages }}"}, {"name": "tool_use", "template": "{{ tools }}"}],
            }),
        ),
        ("added_tokens.json", json!({"<|new|>": 97, "<|im_end|>": 96})),
        (
            "special_tokens_map.json",
            json!({"bos_token": "<s>", "eos_token": token("</s>"), "pad_token": "<|pad|>",
            "additional_special_tokens": [token("<|a|>"), "<|b|>"]}),
        ),
        ("chat_template.json", json!({"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"})),
        ("generation_config.json", json!({"eos_token_id": [2, 5], "bos_token_id": 1, "pad_token_id": 0})),
    ];
    // All of them stand there; one or two are damaged.
    let damaged = [rng.below(files.len()), rng.below(files.len())];
    for (i, (name, good)) in files.iter().enumerate() {
        let text = match (damaged.contains(&i), rng.below(3)) {
            (false, _) => good.to_string().into_bytes(),
            (true, 0) => bytes(rng, good.to_string().as_bytes(), 200),
            (true, _) => json_value(rng, good).to_string().into_bytes(),
        };
        if damaged.contains(&i) || rng.below(2) == 0 {
            b.write(&format!("m/{name}"), text);
        }
    }
    match rng.below(3) {
        0 => packed(b, "rows.jsonl", &chats(rng)),
        _ => use_tokenizer(b),
    }
}

/// Templates of every construct, nested at random, and damaged ones; conversations of every shape.
pub fn template(b: &Bench, rng: &mut Rng) -> Verdict {
    let mut text = grammar::template(rng);
    if rng.below(4) == 0 {
        text = String::from_utf8_lossy(&bytes(rng, text.as_bytes(), text.len())).into_owned();
    }
    match rng.below(5) {
        0 => {
            let config = std::fs::read(golden().join("tokenizer_config.json")).unwrap();
            let mut config: Value = serde_json::from_slice(&config).unwrap();
            config["chat_template"] = json!(text);
            let _ = std::fs::remove_file(b.path("m/chat_template.jinja"));
            b.write("m/tokenizer_config.json", config.to_string());
        }
        1 => {
            let _ = std::fs::create_dir(b.path("m/additional_chat_templates"));
            b.write("m/additional_chat_templates/tool_use.jinja", &text);
        }
        _ => b.write("m/chat_template.jinja", &text),
    }
    packed(b, "rows.jsonl", &chats(rng))
}

/// Rows of conversations, a few values of them changed.
fn chats(rng: &mut Rng) -> Vec<u8> {
    let call =
        json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1, "b": [1.5, null, "x"]}}});
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}});
    let rows = [
        json!({"messages": [{"role": "system", "content": "w9"}, {"role": "user", "content": "w3 \u{1f600}"},
            {"role": "assistant", "content": "w4"}]}),
        json!({"prompt": [{"role": "user", "content": "w3"}], "chosen": [{"role": "assistant", "content": "", "tool_calls": [call]}],
            "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "w5"}]}], "tools": [tool],
            "chat_template_kwargs": {"enable_thinking": false}}),
        json!({"messages": [{"role": "user", "content": "w3"}, {"role": "tool", "content": "7", "name": null},
            {"role": "assistant", "content": null, "reasoning_content": "w6"}, {"role": "user", "content": "\r\n"},
            {"role": "assistant", "content": "w4 </s> {{ 7 }}"}], "documents": [{"title": "a", "text": "b"}]}),
    ];
    let row = rng.pick(&rows).clone();
    let row = if rng.below(2) == 0 { json_value(rng, &row) } else { row };
    format!("{row}\n{}\n", rng.pick(&rows)).into_bytes()
}
