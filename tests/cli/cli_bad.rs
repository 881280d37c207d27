//! Bad input from end to end: each mistake with its one line, its exit code, and nothing left behind.
//!
//! What one module refuses is tested beside it (`model_bad`, `shard`, `sidecar`, `rows`); here is that the commands pass it
//! on, and what only shows from outside: exit codes, leftovers, full disks, folders that cannot be written.

use crate::cli_common;

use cli_common::*;
use serde_json::{Value, json};

/// What a missing model directory says.
const WANT: &str = "expected a Hugging Face model directory with config.json and model.safetensors";

#[test]
fn options_that_cannot_be_honoured() {
    let cli = Cli::with_data();
    let train = |more: &str| format!("dpo --model m --data d --out r {more}");
    for (more, want) in [
        ("--learning-rate NaN", "--learning-rate NaN: must be a finite number, 0 or more"),
        ("--learning-rate inf", "--learning-rate inf: must be a finite number, 0 or more"),
        ("--learning-rate x", "invalid value 'x' for '--learning-rate <X>': invalid float literal; see --help"),
        ("--beta 0", "--beta 0: must be a finite number greater than 0"),
        ("--label-smoothing 0.5", "--label-smoothing 0.5: must be in [0, 0.5)"),
        ("--batch-size 0", "--batch-size 0: must be 1 or more"),
        (
            "--device cpu --logits-dtype bf16",
            "--logits-dtype bf16: the CPU's logits are f32; leave it out, or use --device cuda",
        ),
        (
            "--device cuda:x",
            "invalid value 'cuda:x' for '--device <NAME>': possible values: auto, cpu, cuda, cuda:N; see --help",
        ),
        ("--max-steps 0", "--max-steps 0: must be 1 or more"),
        ("--num-train-epochs 1e300", "--num-train-epochs 1e300: must be greater than 0, and at most 1000000"),
        ("--seed 9223372036854775808", "--seed 9223372036854775808: must be at most 2^63 - 1"),
        ("--warmup-steps 1 --warmup-ratio 0.1", "--warmup-steps and --warmup-ratio: give one of them, not both"),
        ("--adam-beta1 1", "--adam-beta1 1: must be in [0, 1)"),
        (
            "--loss-type xyz",
            &format!(
                "invalid value 'xyz' for '--loss-type <NAME,...>' [possible values: {}]; see --help",
                losses(", ")
            ),
        ),
        (
            "--loss-type ipo --label-smoothing 0.1",
            "--label-smoothing: not defined for --loss-type ipo; leave it out, or use another loss",
        ),
        ("--loss-type sft --beta 1", "--beta: not defined for --loss-type sft; leave it out, or use another loss"),
        ("--nonsense 1", "unexpected argument '--nonsense' found; see --help"),
        ("--token-budget 0", "--token-budget 0: must be 1 or more"),
        ("--token-budget 99999999999", "--token-budget 99999999999 is too large: at most 2147483647"),
    ] {
        cli.bad(&train(more), 2, want);
    }
    cli.bad("dpo --model m --data d", 2, "--out is required (as a flag or in --config)");
    cli.bad("sft --model m --data d --out r --beta 1", 2, "unexpected argument '--beta' found; see --help");
    cli.bad("frobnicate", 2, "unrecognized subcommand 'frobnicate'; see --help");
    cli.bad(
        "pack --tokenizer m --out x",
        2,
        "the following required arguments were not provided: --input <FILE>...; see --help",
    );
    let generate = |more: &str| format!("generate --model m --prompt w5 {more}");
    for (more, want) in [
        ("--max-new-tokens 0", "--max-new-tokens and --num-return-sequences: must be at least 1"),
        ("--max-new-tokens 18446744073709551615", "--max-new-tokens 18446744073709551615: must be at most 1048576"),
        ("--num-return-sequences 1000000000000", "--num-return-sequences 1000000000000: must be at most 65536"),
        ("--temperature NaN", "--temperature NaN: must be a finite number, at least 0"),
        ("--top-p 0", "--top-p 0: must be in (0, 1]"),
    ] {
        cli.bad(&generate(more), 2, want);
    }
    cli.bad(
        "eval --model m --data d --kl-max-new-tokens 0",
        2,
        "--kl-max-new-tokens 0: must be 1 or more; --kl-samples 0 leaves the estimate out",
    );
    cli.bad("score --model m --data d --out no/s", 2, "no/s: its folder no does not exist; make it first");
    cli.bad("score --model m --data d --out d", 2, "d: is a folder; name a file");
}

#[test]
fn configurations() {
    let cli = Cli::with_data();
    for (text, want) in [
        ("nonsense = 3", "c.toml: `nonsense` is not an option of this command"),
        ("beta = \"x\"", "c.toml: `beta`: invalid type: string \"x\", expected f64"),
        ("seed = -1", "c.toml: `seed`: invalid value: integer `-1`, expected u64"),
        (
            "loss_type = \"ppo\"",
            &format!("c.toml: `loss_type`: unknown variant `ppo`, expected one of `{}`", losses("`, `")),
        ),
        ("beta = 0.1\n\noptim = \"adamw", "c.toml: line 3: invalid basic string, expected `\"`"),
        ("learning_rate = nan", "--learning-rate NaN: must be a finite number, 0 or more"),
    ] {
        cli.write("c.toml", text);
        cli.bad("dpo --model m --data d --out r --config c.toml", 2, want);
    }
    cli.write("c.toml", b"\xff\xfe");
    let want = "c.toml: cannot read the configuration: stream did not contain valid UTF-8";
    cli.bad("dpo --model m --data d --out r --config c.toml", 2, want);
    let want = "no.toml: cannot read the configuration: No such file or directory (os error 2)";
    cli.bad("dpo --model m --data d --out r --config no.toml", 2, want);
    cli.write("c.toml", "beta = 0.1");
    cli.bad("sft --model m --data d --out r --config c.toml", 2, "c.toml: `beta` is not an option of this command");
}

#[test]
fn models_that_cannot_be_used() {
    let cli = Cli::with_data();
    let all = [
        "dpo --out r --data d",
        "sft --out r --data d",
        "reference --data d",
        "eval --data d",
        "score --data d --out s",
    ];
    let each = |model: &str, want: &str| {
        for command in all {
            cli.bad(&format!("{command} --model {model}"), 2, want);
        }
    };
    each("no", &format!("no: no such directory; {WANT}, or a name on the hub: org/name"));
    each("d", &format!("d: no config.json; {WANT}"));
    cli.bad(
        "generate --model no --prompt w5",
        2,
        &format!("no: no such directory; {WANT}, or a name on the hub: org/name"),
    );
    cli.bad("generate --model d --prompt w5", 2, &format!("d: no config.json; {WANT}"));
    cli.edit_json("m/config.json", |c| c["model_type"] = json!("gpt2"));
    each("m", "m/config.json: model type `gpt2` is not supported; supported: llama, mistral, qwen2, qwen3");
    cli.edit_json("m/config.json", |c| {
        c["model_type"] = json!("llama");
        c["hidden_size"] = json!(16)
    });
    let want =
        "m/model.safetensors: tensor `model.embed_tokens.weight` has shape [97, 32], but config.json makes it [97, 16]";
    each("m", want);
    cli.edit_json("m/config.json", |c| c["hidden_size"] = json!(32));
    std::fs::rename(cli.path("m/model.safetensors"), cli.path("kept")).unwrap();
    each("m", "m: neither model.safetensors nor model.safetensors.index.json");
    cli.write("m/model.safetensors", &cli.bytes("kept")[..999]);
    let ran = cli.run("eval --model m --data d");
    assert!(ran.code == 2 && ran.err.contains("\nfusedpo: m/model.safetensors: damaged safetensors file ("), "{ran:?}");
}

#[test]
fn models_and_data_that_do_not_belong_together() {
    let cli = Cli::with_data();
    cli.model("small", "llama");
    rows_of(&cli, "small", 20);
    cli.model("other", "llama");
    cli.edit_json("other/tokenizer.json", |t| {
        t["model"]["vocab"]["w96"] = json!(95);
        t["model"]["vocab"]["w95"] = json!(96)
    });
    // The row differs with the split that is looked at.
    let fewer = |row: u64| {
        format!(
            "small: its embedding has 20 rows, and the data's tokenizer 97 tokens: input row {row} uses id 96 (`w96`), \
             which has no row; pack with this model's tokenizer, leave such rows out, or give the model more rows \
             (transformers: resize_token_embeddings)"
        )
    };
    let another =
        "other: its tokenizer is not the one that the shards were made with; pack them with this model's tokenizer";
    let (train, held_out) = (fewer(2), fewer(23));
    for (model, want, want_eval) in [("small", train.as_str(), held_out.as_str()), ("other", another, another)] {
        cli.bad(&format!("dpo --model {model} --data d --out r"), 2, want);
        cli.bad(&format!("sft --model {model} --data d --out r"), 2, want);
        cli.bad(&format!("dpo --model m --ref-model {model} --data d --out r"), 2, want);
        cli.bad(&format!("eval --model m --ref-model {model} --data d"), 2, want_eval);
        cli.bad(&format!("reference --model {model} --data d"), 2, want);
        cli.bad(&format!("score --model {model} --data d --out s"), 2, want);
    }
    cli.bad("generate --model small --prompt w50", 2, "token id 50 is outside the model's vocabulary of 20");
    // More rows than the tokenizer has tokens is how models are padded: not an error, in samples neither.
    cli.model("big", "llama");
    rows_of(&cli, "big", 130);
    cli.ok("dpo --model big --data d --out p --max-steps 1");
    cli.ok("eval --model big --data d --json");
    // A sliding window shorter than the rows.
    cli.edit_json("other/config.json", |c| {
        c["model_type"] = json!("mistral");
        c["architectures"] = json!(["MistralForCausalLM"]);
        c["sliding_window"] = json!(5)
    });
    cli.write("other/tokenizer.json", cli.bytes("m/tokenizer.json"));
    let ran = cli.run("dpo --model other --data d --out r");
    assert!(ran.code == 2 && ran.err.contains("the model has a sliding window of 5"), "{ran:?}");
}

/// Gives a model's embedding and head `n` rows, and its configuration the same vocabulary.
fn rows_of(cli: &Cli, model: &str, n: usize) {
    cli.edit_json(&format!("{model}/config.json"), |c| c["vocab_size"] = json!(n));
    let bytes = cli.bytes(&format!("{model}/model.safetensors"));
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<_> = file
        .iter()
        .map(|(name, t)| {
            let (mut shape, mut data) = (t.shape().to_vec(), t.data().to_vec());
            if shape[0] == 97 {
                let row = data.len() / 97;
                data = data.iter().copied().cycle().take(n * row).collect();
                shape[0] = n;
            }
            (name.to_owned(), t.dtype(), shape, data)
        })
        .collect();
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let out = safetensors::serialize(views, None).unwrap();
    cli.write(&format!("{model}/model.safetensors"), out);
}

#[test]
fn rows_that_cannot_be_used() {
    let cli = Cli::new();
    let good = r#"{"prompt":"w3","chosen":" w4","rejected":" w5"}"#;
    let second = |line: &[u8]| [good.as_bytes(), b"\n", line, b"\n"].concat();
    let nothing = |n: usize, why: &str| format!("r.jsonl: nothing left to pack of {n} rows ({why})");
    let cases: Vec<(Vec<u8>, String)> = vec![
        (b"".to_vec(), nothing(0, "the input has no rows")),
        (
            second(b"{\"prompt\":\"w3\",\"chosen\":\"\xff\",\"rejected\":\"w5\"}"),
            "r.jsonl: line 2: not UTF-8 (byte 0xff at byte 25 of the row); convert the file to UTF-8".into(),
        ),
        (
            second(br#"{"prompt":"w3","chosen" "w4"}"#),
            "r.jsonl: line 2: malformed JSON at column 25: expected `:`".into(),
        ),
        (
            second(br#"{"question":"w3"}"#),
            "r.jsonl: line 2: unknown row shape: found `question`; accepted are prompt+chosen+rejected, chosen+rejected, \
             prompt+responses+scores, prompt+completion(+label), messages, text, or prompt_ids with chosen_ids+rejected_ids, \
             responses_ids+scores or completion_ids; rename columns with --map FIELD=COLUMN"
                .into(),
        ),
        (
            second(br#"{"prompt":"w3","responses":["w4"],"scores":[1,2]}"#),
            "r.jsonl: line 2: 2 `scores` for 1 `responses`; they must be as many".into(),
        ),
        (
            second(br#"{"prompt_ids":[3],"chosen_ids":[500],"rejected_ids":[4]}"#),
            "r.jsonl: line 2: token id 500 is outside the tokenizer's vocabulary of 97".into(),
        ),
        (
            br#"{"prompt":"w3","chosen":" w4","rejected":" w4"}"#.to_vec(),
            nothing(1, "chosen equals rejected: 1"),
        ),
        (
            br#"{"prompt":"w3","chosen":"","rejected":" w4"}
                {"prompt":"w3","chosen":7,"rejected":" w4"}"#
                .to_vec(),
            nothing(2, "empty response: 1, response is not a string: 1"),
        ),
        (b"\x1f\x8b\x08\0junk".to_vec(), "r.jsonl: damaged gzip stream near line 1 (".into()),
        (b"PAR1junk".to_vec(), "r.jsonl: damaged or unsupported Parquet: ".into()),
        (b"PK\x03\x04".to_vec(), "r.jsonl: is a zip archive; unpack it: accepted are JSONL, a JSON array, CSV and TSV, each by itself or in .gz or .zst, and Parquet".into()),
        ([b"{\"prompt\":".to_vec(), vec![b'['; 100_000]].concat(), "r.jsonl: line 1: malformed JSON at column ".into()),
    ];
    for (rows, want) in cases {
        cli.write("r.jsonl", rows);
        let before = cli.tree();
        let ran = cli.run("pack --tokenizer m --input r.jsonl --out e --on-bad-row stop");
        assert!(ran.code == 2 && ran.err.starts_with(&format!("fusedpo: {want}")), "{want}: {ran:?}");
        assert_eq!((ran.err.lines().count(), cli.tree()), (1, before), "{want}: {ran:?}");
    }
    cli.bad(
        "pack --tokenizer m --input no.jsonl --out e",
        2,
        "no.jsonl: cannot open: No such file or directory (os error 2)",
    );
    let want = "no: cannot read the tokenizer: No such file or directory (os error 2)";
    cli.bad("pack --tokenizer no --input r.jsonl --out e", 2, want);
}

/// The library names options by their fields; `pack` turns them into flags, in errors and in its report.
#[test]
fn pack_names_flags() {
    let cli = Cli::with_data();
    let row = r#"{"prompt":"w3","chosen":" w4","rejected":" w5"}"#;
    cli.write("r.jsonl", row);
    let pack = "pack --tokenizer m --input r.jsonl --out e";
    for (more, want) in [
        ("--map prompt", "--map: \"prompt\" is not FIELD=COLUMN"),
        (
            "--map prompt=question",
            "r.jsonl: line 1: --map names column `question`, the row has `prompt`, `chosen`, `rejected`",
        ),
        ("--eval-fraction 1", "--eval-fraction 1 is not in [0, 1)"),
        ("--max-length 4294967296", "--max-length 4294967296 is too large"),
    ] {
        cli.bad(&format!("{pack} {more}"), 2, want);
    }
    cli.write("odd.jsonl", r#"{"prompts":"w1"}"#);
    let want = "rename columns with --map FIELD=COLUMN";
    let ran = cli.run("pack --tokenizer m --input odd.jsonl --out e");
    assert!(ran.code == 2 && ran.err.trim_end().ends_with(want), "{ran:?}");
    let said = cli.ok(&format!("{pack} --eval-fraction 0.5")).out;
    let empty = ["train split is empty", "eval split is empty"].iter().any(|s| said.contains(s));
    let why = "too few prompts for --eval-fraction 0.5; a ";
    assert!(empty && said.contains(why) && said.contains(" one, or another --seed, fills it\n"), "{said}");
}

#[test]
fn rows_are_dropped_and_counted() {
    let cli = Cli::new();
    let row = |chosen: Value, rejected: Value| json!({"prompt": "w3 w4", "chosen": chosen, "rejected": rejected});
    let mut rows = pairs(3);
    rows.extend([
        row(json!(""), json!(" w4")),
        row(json!(" w5"), json!("")),
        row(json!(7), json!(" w4")),
        row(Value::Null, json!(" w4")),
        row(json!(" w6"), json!(" w6")),
        json!({"prompt": words(3, 60), "chosen": " w5", "rejected": " w6"}),
    ]);
    cli.write_rows("r.jsonl", &rows);
    let said = cli.ok("pack --tokenizer m --input r.jsonl --out d --max-length 40").out;
    let report: Value = serde_json::from_slice(&cli.bytes("d/report.json")).unwrap();
    assert_eq!((&report["rows_read"], &report["rows_kept"]), (&json!(9), &json!(3)), "{said}");
    for (reason, n) in [
        ("empty response", 2),
        ("response is not a string", 2),
        ("chosen equals rejected", 1),
        ("prompt fills max_length", 1),
    ] {
        let line = said.lines().find(|l| l.trim().starts_with(reason)).unwrap_or_else(|| panic!("{reason}: {said}"));
        assert!(line.split_whitespace().any(|w| w == format!("{n}:")), "{line}");
    }
}

#[test]
fn data_without_what_the_command_needs() {
    let cli = Cli::with_data();
    cli.write("one.jsonl", r#"{"prompt":"w3","completion":" w4"}"#);
    cli.ok("pack --tokenizer m --input one.jsonl --out n");
    let want = "n/train-00000.pref: the data (1 groups) have no usable pair: pack rows with chosen and rejected, or with different scores";
    cli.bad("dpo --model m --data n --out r", 2, want);
    cli.bad("eval --model m --data n --loss-type sigmoid", 2, want);
    cli.bad(
        "dpo --model m --data m --out r",
        2,
        "m: has no shard train-*.pref: give a folder that `fusedpo pack` wrote",
    );
    cli.bad("inspect no", 2, "no: does not exist: give a folder that `fusedpo pack` wrote");
    let ran = cli.run("dpo --model m --data d --out r --token-budget 9");
    assert!(
        ran.code == 2 && ran.err.starts_with("fusedpo: --token-budget 9 is too small: the largest pair (input row "),
        "{ran:?}"
    );
    assert_eq!(ran.err.lines().count(), 1);
}

#[test]
fn shards_that_were_damaged() {
    let cli = Cli::with_data();
    let name = "d/train-00000.pref";
    let good = cli.bytes(name);
    let commands = [
        "dpo --model m --data d --out r",
        "sft --model m --data d --out r",
        "reference --model m --data d",
        "score --model m --data d --out s",
        "inspect d --verify",
    ];
    let each = |bytes: &[u8], why: &str| {
        cli.write(name, bytes);
        for command in commands {
            cli.bad(command, 2, &format!("{name}: {why}"));
        }
    };
    let n = good.len();
    let cut = format!("is cut short: {} bytes, the header asks for {n}: copy it again or pack the data again", n - 1);
    cli.write(name, &good[..n - 1]);
    let ran = cli.run(commands[0]);
    assert!(ran.code == 2 && ran.err.contains(&cut), "{ran:?}");
    each(b"", "is not a preference shard: 0 bytes, a header alone has 384: copy it again or pack the data again");
    // A byte of the tokens: the first section.
    let mut bad = good.clone();
    bad[400] ^= 1;
    each(&bad, "section tokens is damaged (CRC-32 mismatch): pack or copy the file again");
    let mut bad = good.clone();
    bad[0] = b'X';
    each(&bad, "is not a preference shard (its first bytes differ): give a file that `fusedpo pack` wrote");
    // Shards of two tokenizers in one folder.
    cli.write(name, &good);
    cli.model("other", "llama");
    cli.edit_json("other/tokenizer.json", |t| t["model"]["vocab"]["w96"] = json!(95));
    cli.ok("pack --tokenizer other --input rows.jsonl --out o");
    cli.write("d/train-00001.pref", cli.bytes("o/train-00000.pref"));
    let ran = cli.run(commands[0]);
    let want = "fusedpo: d/train-00001.pref: does not belong with d/train-00000.pref: its tokenizer_sha256 is ";
    assert!(ran.code == 2 && ran.err.starts_with(want) && ran.err.lines().count() == 1, "{ran:?}");
}

/// The names of all losses.
fn losses(between: &str) -> String {
    fusedpo::loss::LOSSES.iter().map(|l| l.name).collect::<Vec<_>>().join(between)
}
