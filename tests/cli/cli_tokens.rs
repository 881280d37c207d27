//! What the tokenizer's files say, from the rows to the trained model: tokens, identity, end token, template, prompts.

use crate::cli_common;

use cli_common::{Cli, pairs};
use fusedpo::data::text::BuiltInTemplate;
use serde_json::{Value, json};

const CHATML: &str = "{% for m in messages %}w3 {{ m.role }} {{ m.content }} w4\n{% endfor %}{% if add_generation_prompt %}w3 assistant {% endif %}";
const SFT: &str = "sft --max-steps 1 --batch-size 2 --token-budget 64";

/// Changes a description.
type Change = fn(&mut Value);

/// Runs a command that must end with `code`, and gives its error.
#[track_caller]
fn fails(cli: &Cli, args: &str, code: i32) -> String {
    let ran = cli.run(args);
    assert_eq!(ran.code, code, "{args}: {ran:?}");
    ran.err
}

/// The pieces of a folder's first group.
fn shown(cli: &Cli, data: &str) -> String {
    let out = cli.ok(&format!("inspect {data} --show 1")).out;
    out[out.find("group 0").unwrap()..].to_owned()
}

#[test]
fn tokens_of_every_file_are_tokens() {
    let cli = Cli::new();
    let row = json!({"prompt": "w5 <call>w6</call>", "completion": "<added> w7 <mapped>w8"});
    cli.write_rows("rows.jsonl", &[row]);
    let token = |text: &str| json!({"content": text, "lstrip": false, "rstrip": false, "single_word": false, "normalized": false, "special": false});
    cli.edit_json("m/tokenizer_config.json", |c| {
        c["additional_special_tokens"] = json!(["<call>"]);
        c["image_token"] = json!("</call>");
    });
    cli.write("m/added_tokens.json", r#"{"<added>": 250}"#);
    cli.write("m/special_tokens_map.json", json!({"sep_token": token("<mapped>")}).to_string());
    cli.ok("pack --tokenizer m --input rows.jsonl --out d");
    let text = shown(&cli, "d");
    // In transformers' order: added_tokens.json, then named ones, then the others; ids go on where the vocabulary ends.
    assert!(text.contains("w5|⟦ <call>⟧| w6|⟦ </call>⟧"), "{text}");
    assert!(text.contains("<added>| w7|⟦ <mapped>⟧| w8|⟦ </s>⟧"), "{text}");
    let told = cli.ok("inspect d").out;
    assert!(told.contains("101"), "97 and four more: {told}");

    // Where tokenizer_config.json has the list itself, the other two files are not read.
    cli.edit_json("m/tokenizer_config.json", |c| c["added_tokens_decoder"] = json!({"97": token("<call>")}));
    cli.ok("pack --tokenizer m --input rows.jsonl --out d2");
    let text = shown(&cli, "d2");
    assert!(text.contains("⟦<unk>⟧| w7|⟦ <unk>⟧"), "{text}");
}

/// Saved again by another tool: other spacing and order, merges and defaults in another notation, a no-op more.
fn save_again(cli: &Cli, from: &str, to: &str) {
    cli.model(to, "llama");
    let mut t: Value = serde_json::from_str(&cli.text(&format!("{from}/tokenizer.json"))).unwrap();
    t["post_processor"] = json!({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {}});
    t["truncation"] = json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    let turned: serde_json::Map<String, Value> =
        t.as_object().unwrap().iter().rev().map(|(k, v)| (k.clone(), v.clone())).collect();
    cli.write(&format!("{to}/tokenizer.json"), format!("{:#}", Value::Object(turned)));
}

#[test]
fn a_tokenizer_saved_again_is_the_same_one_and_another_is_not() {
    let cli = Cli::with_data();
    save_again(&cli, "m", "again");
    cli.ok("dpo --model again --data d --out r1 --max-steps 1 --token-budget 64");
    cli.ok("dpo --model m --ref-model again --data d --out r2 --max-steps 1 --token-budget 64");
    cli.ok("eval --model again --ref-model m --data d");
    cli.ok("pack --tokenizer again --input rows.jsonl --out d2");
    cli.ok("dpo --model m --data d2 --out r3 --max-steps 1 --token-budget 64");

    // Whatever changes an id makes it another one.
    let changes: [(&str, Change); 4] = [
        ("vocabulary", |t| {
            t["model"]["vocab"]["w9"] = json!(10);
            t["model"]["vocab"]["w10"] = json!(9);
        }),
        ("normalizer", |t| t["normalizer"] = json!({"type": "Lowercase"})),
        ("pre-tokenizer", |t| t["pre_tokenizer"] = json!({"type": "Whitespace"})),
        ("flag", |t| t["added_tokens"][1]["lstrip"] = json!(true)),
    ];
    for (what, change) in changes {
        cli.model(what, "llama");
        cli.edit_json(&format!("{what}/tokenizer.json"), change);
        let e = fails(&cli, &format!("dpo --model {what} --data d --out no --max-steps 1"), 2);
        assert!(e.contains("its tokenizer is not the one that the shards were made with"), "{what}: {e}");
    }
    cli.model("config", "llama");
    cli.edit_json("config/tokenizer_config.json", |c| c["extra_special_tokens"] = json!(["w5"]));
    let e = fails(&cli, "dpo --model config --data d --out no --max-steps 1", 2);
    assert!(e.contains("made from its tokenizer.json alone"), "{e}");
}

#[test]
fn more_tokens_than_rows_run_where_no_row_uses_them() {
    let cli = Cli::new();
    cli.edit_json("m/tokenizer_config.json", |c| c["pad_token"] = json!("<pad>"));
    cli.write_rows("rows.jsonl", &pairs(6));
    cli.ok("pack --tokenizer m --input rows.jsonl --out d");
    cli.ok("dpo --model m --data d --out run --max-steps 1 --token-budget 64");
    cli.ok("score --model m --data d --out scores");

    let mut rows = pairs(6);
    rows[4]["rejected"] = json!("w8 <pad> w9");
    cli.write_rows("rows.jsonl", &rows);
    cli.ok("pack --tokenizer m --input rows.jsonl --out d2");
    for command in [
        "dpo --model m --data d2 --out no --max-steps 1",
        "score --model m --data d2 --out no",
        "eval --model m --ref-model m --data d2",
    ] {
        let e = fails(&cli, command, 2);
        let want = "its embedding has 97 rows, and the data's tokenizer 98 tokens: input row 4 uses id 97 (`<pad>`), which has no row";
        assert!(e.contains(want), "{e}");
    }
    cli.write_rows("ask.jsonl", &[json!({"prompt": "w5"}), json!({"prompt": "w5 <pad>"})]);
    let e = fails(&cli, "generate --model m --input ask.jsonl", 2);
    assert!(e.contains("the prompt of row 1 uses token id 97"), "{e}");
}

#[test]
fn end_token_and_template_of_the_data_reach_the_model() {
    let cli = Cli::new();
    cli.write("chatml.jinja", CHATML);
    cli.write("m/generation_config.json", r#"{"eos_token_id": 2, "temperature": 0.5}"#);
    cli.write("m/special_tokens_map.json", r#"{"eos_token": "</s>"}"#);
    std::fs::create_dir(cli.path("m/additional_chat_templates")).unwrap();
    cli.write("m/additional_chat_templates/rag.jinja", "w9");
    let rows: Vec<Value> = (5..9)
        .map(|i| json!({"prompt": [{"role": "user", "content": format!("w{i}")}], "completion": [{"role": "assistant", "content": "w20 w21"}]}))
        .collect();
    cli.write_rows("rows.jsonl", &rows);
    cli.ok("pack --tokenizer m --input rows.jsonl --out d --chat-template chatml.jinja --eos-token w4");
    cli.ok(&format!("{SFT} --model m --data d --out run --save-steps 1"));
    let config: Value = serde_json::from_str(&cli.text("run/tokenizer_config.json")).unwrap();
    assert_eq!((config["eos_token"].as_str(), config["chat_template"].as_str()), (Some("w4"), Some(CHATML)));
    assert_eq!(cli.text("run/chat_template.jinja"), CHATML);
    assert_eq!(cli.text("run/additional_chat_templates/rag.jinja"), "w9");
    let generation: Value = serde_json::from_str(&cli.text("run/generation_config.json")).unwrap();
    assert_eq!(generation, json!({"eos_token_id": [4, 2], "temperature": 0.5}));
    let config: Value = serde_json::from_str(&cli.text("run/config.json")).unwrap();
    assert_eq!(config["eos_token_id"], json!([4, 2]));
    let map: Value = serde_json::from_str(&cli.text("run/special_tokens_map.json")).unwrap();
    assert_eq!(map["eos_token"], "w4");

    // A checkpoint is a model as the trained one is.
    let last = cli.names("run", "checkpoint-").pop().unwrap();
    let beside = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"];
    for name in [&beside[..], &["generation_config.json", "additional_chat_templates/rag.jinja"]].concat() {
        assert_eq!(cli.text(&format!("run/{last}/{name}")), cli.text(&format!("run/{name}")), "{name}");
    }
    let config: Value = serde_json::from_str(&cli.text(&format!("run/{last}/config.json"))).unwrap();
    assert_eq!((&config["eos_token_id"], &config["dtype"]), (&json!([4, 2]), &json!("float32")));
    // The trained model renders and goes on with the same data; its source does too.
    cli.write_rows("ask.jsonl", &[json!({"prompt": [{"role": "user", "content": "w5"}]})]);
    cli.ok("generate --model run --input ask.jsonl --max-new-tokens 3");
    let asked = |more: &str| cli.ok(&format!("generate --prompt w5 --max-new-tokens 3 {more}")).out;
    assert_eq!(asked("--model run"), asked("--model run --chat-template chatml.jinja"));
    cli.ok(&format!("{SFT} --model run --data d --out run2"));
    assert_eq!(cli.text("run2/tokenizer_config.json"), cli.text("run/tokenizer_config.json"));
    assert_eq!(cli.text("run2/generation_config.json"), cli.text("run/generation_config.json"));
    // By name, as beside another template the header has the hash of both.
    cli.ok("pack --tokenizer run --input rows.jsonl --out d2 --chat-template chatml.jinja");
    assert_eq!(cli.bytes("d2/train-00000.pref"), cli.bytes("d/train-00000.pref"));

    // Nothing changes where the data say nothing new.
    cli.write_rows("rows.jsonl", &pairs(4));
    cli.ok("pack --tokenizer m --input rows.jsonl --out plain");
    cli.ok(&format!("{SFT} --model m --data plain --out run3"));
    assert_eq!(cli.text("run3/generation_config.json"), cli.text("m/generation_config.json"));
    assert!(!cli.path("run3/chat_template.jinja").exists());
}

#[test]
fn the_default_of_named_templates_is_replaced_and_the_others_stay() {
    let cli = Cli::new();
    cli.write("chatml.jinja", CHATML);
    let named = json!([{"name": "default", "template": "w9"}, {"name": "other", "template": "w8"}]);
    cli.edit_json("m/tokenizer_config.json", |c| c["chat_template"] = named);
    let row =
        json!({"prompt": [{"role": "user", "content": "w5"}], "completion": [{"role": "assistant", "content": "w6"}]});
    cli.write_rows("rows.jsonl", &[row]);
    cli.ok("pack --tokenizer m --input rows.jsonl --out d --chat-template chatml.jinja");
    cli.ok(&format!("{SFT} --model m --data d --out run"));
    let config: Value = serde_json::from_str(&cli.text("run/tokenizer_config.json")).unwrap();
    let want = json!([{"name": "default", "template": CHATML}, {"name": "other", "template": "w8"}]);
    assert_eq!(config["chat_template"], want);
    assert!(!cli.path("run/chat_template.jinja").exists());
}

#[test]
fn plain_prompts_stay_plain_from_pack_to_generate() {
    let cli = Cli::new();
    cli.write("m/chat_template.jinja", CHATML);
    cli.write_rows(
        "rows.jsonl",
        &[json!({"prompt": "w5", "completion": " w6"}), json!({"prompt": "w7", "completion": " w8"})],
    );
    let told = cli.ok("pack --tokenizer m --input rows.jsonl --out plain").out;
    let want = "note: 2 rows are plain text and do not use the tokenizer's chat template; --wrap-prompts makes";
    assert!(told.contains(want), "{told}");
    let told = cli.ok("pack --tokenizer m --input rows.jsonl --out chat --wrap-prompts").out;
    assert!(!told.contains("note:"), "{told}");
    assert!(shown(&cli, "plain").contains("w5\n"), "{}", shown(&cli, "plain"));
    assert!(shown(&cli, "chat").contains("w3|"), "{}", shown(&cli, "chat"));
    cli.ok(&format!("{SFT} --model m --data plain --out p"));
    cli.ok(&format!("{SFT} --model m --data chat --out c"));
    let asked = |model: &str, more: &str| {
        let ran = cli.ok(&format!("generate --model {model} --prompt w5 --max-new-tokens 6 {more}"));
        (ran.out, ran.err)
    };
    let same = |a: (String, String), b: (String, String)| assert_eq!(a.0, b.0);
    same(asked("p", ""), asked("p", "--chat-template none"));
    assert!(asked("p", "").1.contains("was trained on plain prompts"), "{:?}", asked("p", ""));
    same(asked("p", "--wrap-prompts"), asked("p", "--chat-template m/chat_template.jinja"));
    same(asked("c", ""), asked("c", "--wrap-prompts"));
    same(asked("c", "--wrap-prompts false"), asked("c", "--chat-template none"));
    // A model that says nothing: its template, as ever.
    same(asked("m", ""), asked("m", "--wrap-prompts true"));
    let e = fails(&cli, "generate --model m --prompt w5 --chat-template none --wrap-prompts", 2);
    assert!(e.contains("--wrap-prompts needs a chat template"), "{e}");
    cli.write_rows("dialogue.jsonl", &[json!({"chosen": "w5 w6", "rejected": "w5 w7"})]);
    let e = fails(&cli, "pack --tokenizer m --input dialogue.jsonl --out no --wrap-prompts", 2);
    assert!(e.contains("--wrap-prompts needs a prompt"), "{e}");
    // Beside rows that can be used it is one bad row; with nothing to wrap the option is an error.
    let plain = json!({"prompt": "w5", "chosen": " w6", "rejected": " w7"});
    cli.write_rows("mixed.jsonl", &[json!({"chosen": "w5 w6", "rejected": "w5 w7"}), plain]);
    let told = cli.ok("pack --tokenizer m --input mixed.jsonl --out mixed --wrap-prompts").out;
    assert!(told.contains("mixed.jsonl: line 1: --wrap-prompts needs a prompt"), "{told}");
    let chat =
        json!({"prompt": [{"role": "user", "content": "w5"}], "completion": [{"role": "assistant", "content": "w6"}]});
    cli.write_rows("chat.jsonl", &[chat]);
    let e = fails(&cli, "pack --tokenizer m --input chat.jsonl --out no --wrap-prompts", 2);
    assert!(e.contains("--wrap-prompts has no effect"), "{e}");
    let e = fails(&cli, "generate --model m --input chat.jsonl --wrap-prompts", 2);
    assert!(e.contains("--wrap-prompts has no effect"), "{e}");
    assert!(!cli.path("no").exists());
}

#[test]
fn generate_reads_rows_as_pack_does() {
    let cli = Cli::new();
    let template = "{% for t in tools or [] %}{{ t.name }} {% endfor %}{{ mode|default('w9') }} {% for m in messages %}{{ m.content }} {% endfor %}";
    cli.write("m/chat_template.jinja", template);
    let ask = |row: Value| {
        cli.write_rows("ask.jsonl", &[row]);
        let line = cli.ok("generate --model m --input ask.jsonl --max-new-tokens 4").json();
        (line["completion"].clone(), line["logp"].clone())
    };
    let user = |text: &str| json!([{"role": "user", "content": text}]);
    let plain = ask(json!({"prompt": "w5"}));
    assert_eq!(ask(json!({"prompt": user("w5")})), plain);
    assert_eq!(ask(json!({"messages": user("w5")})), plain);
    assert_eq!(
        ask(json!({"messages": [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w6"}]})),
        plain
    );
    assert_eq!(ask(json!({"prompt": "w5", "chosen": "w6", "rejected": "w7", "extra": 1})), plain);
    let tools = json!([{"name": "w20"}]);
    let with = ask(json!({"prompt": "w5", "tools": tools, "chat_template_kwargs": {"mode": "w30"}}));
    assert_ne!(with, plain);
    assert_eq!(ask(json!({"prompt": "w5", "tools": tools.to_string(), "chat_template_kwargs": {"mode": "w30"}})), with);
    for (row, why) in [
        (json!({"completion": "w5"}), "needs a `prompt`"),
        (json!({"prompt": 5}), "`prompt` must be a string or a list of messages"),
        (json!({"prompt": "w5", "chat_template_kwargs": 3}), "`chat_template_kwargs` must be an object"),
        (json!({"prompt": "w5", "tools": "{"}), "`tools` is not JSON"),
    ] {
        cli.write_rows("ask.jsonl", &[row]);
        let e = fails(&cli, "generate --model m --input ask.jsonl", 2);
        assert!(e.contains("ask.jsonl: line 1") && e.contains(why), "{why}: {e}");
    }
    cli.write_rows("ask.jsonl", &[json!({"prompt": "w5", "tools": []})]);
    let e = fails(&cli, "generate --model m --input ask.jsonl --chat-template none", 2);
    assert!(e.contains("a plain prompt has no use for `tools`"), "{e}");
}

#[test]
fn config_toml_means_the_same_from_another_folder() {
    let cli = Cli::with_data();
    cli.ok("dpo --model m --ref-model m --data d --out run --max-steps 1 --token-budget 64");
    std::fs::create_dir(cli.path("elsewhere")).unwrap();
    let mut again = cli.command("dpo --config ../run/config.toml --out run2");
    again.current_dir(cli.path("elsewhere"));
    let o = again.output().unwrap();
    assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
    assert_eq!(cli.bytes("elsewhere/run2/model.safetensors"), cli.bytes("run/model.safetensors"));
}

#[test]
fn a_saved_dtype_stands_under_both_names() {
    let cli = Cli::with_data();
    cli.ok("sft --model m --data d --out run --max-steps 1 --token-budget 64 --save-dtype bf16");
    let config: Value = serde_json::from_str(&cli.text("run/config.json")).unwrap();
    assert_eq!((&config["dtype"], &config["torch_dtype"]), (&json!("bfloat16"), &json!("bfloat16")));
}

/// A template that comes with the program, by its name: the same shards as from a file of its text, kept in them; a file of that name
/// comes first.
#[test]
fn a_template_by_its_name() {
    let cli = Cli::new();
    let turns = json!([{"role": "user", "content": "w5 w6"}, {"role": "assistant", "content": "w7"}]);
    cli.write_rows("rows.jsonl", &[json!({"messages": turns})]);
    let pack = |out: &str, template: &str| {
        cli.ok(&format!("pack --tokenizer m --input rows.jsonl --out {out} --chat-template {template}"));
        cli.ok(&format!("inspect {out} --json")).json()["chat_template_sha256"].clone()
    };
    let sum = pack("named", "zephyr");
    let source = BuiltInTemplate::Zephyr.source();
    cli.write("zephyr.jinja", source);
    assert_eq!(pack("file", "zephyr.jinja"), sum);
    cli.write("zephyr", source.replace("<|", "<"));
    assert_ne!(pack("first", "zephyr"), sum);
    let ran = cli.run("pack --tokenizer m --input rows.jsonl --out none");
    assert!(ran.err.contains("give one with --chat-template, a file or chatml, zephyr or alpaca"), "{ran:?}");
}
