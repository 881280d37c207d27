//! Bad input from end to end: each mistake with its one line, its exit code, and nothing left behind.
//!
//! What one module refuses is tested beside it (`model_bad`, `shard`, `sidecar`, `rows`); here is that the commands pass it
//! on, and what only shows from outside: exit codes, leftovers, full disks, folders that cannot be written.

mod cli_common;

use cli_common::*;
use fusedpo::data::dataset::{Dataset, Split};
use fusedpo::data::sidecar::{RefKey, Sidecars};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// What a missing model directory says.
const WANT: &str = "expected a Hugging Face model directory with config.json and model.safetensors";

#[test]
fn options_that_cannot_be_honoured() {
    let cli = Cli::with_data();
    let train = |more: &str| format!("dpo --model m --data d --out r {more}");
    for (more, want) in [
        ("--learning-rate NaN", "--learning-rate NaN: must be a finite number, 0 or more"),
        ("--learning-rate inf", "--learning-rate inf: must be a finite number, 0 or more"),
        (
            "--learning-rate x",
            "invalid value 'x' for '--learning-rate <LEARNING_RATE>': invalid float literal; see --help",
        ),
        ("--beta 0", "--beta 0: must be a finite number greater than 0"),
        ("--label-smoothing 0.5", "--label-smoothing 0.5: must be in [0, 0.5)"),
        ("--batch-size 0", "--batch-size 0: must be 1 or more"),
        ("--max-steps 0", "--max-steps 0: must be 1 or more"),
        ("--num-train-epochs 1e300", "--num-train-epochs 1e300: must be greater than 0, and at most 1000000"),
        ("--seed 9223372036854775808", "--seed 9223372036854775808: must be at most 2^63 - 1"),
        ("--warmup-steps 1 --warmup-ratio 0.1", "--warmup-steps and --warmup-ratio: give one of them, not both"),
        ("--adam-beta1 1", "--adam-beta1 1: must be in [0, 1)"),
        (
            "--loss-type xyz",
            "invalid value 'xyz' for '--loss-type <LOSS_TYPE>' [possible values: sigmoid, hinge, ipo, sft]; see --help",
        ),
        ("--loss-type sft --beta 1", "--beta and --label-smoothing: the sft loss has neither; leave them out"),
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
            "c.toml: `loss_type`: unknown variant `ppo`, expected one of `sigmoid`, `hinge`, `ipo`, `sft`",
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
    each("no", &format!("no: no such directory; {WANT}"));
    each("d", &format!("d: no config.json; {WANT}"));
    cli.bad(
        "generate --model no --prompt w5",
        2,
        "no: cannot read the tokenizer: No such file or directory (os error 2)",
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
    let fewer = "small: has 20 tokens, but the shards were made with 97; pack them with this model's tokenizer";
    let another = "other: its tokenizer.json is not the one that the shards were made with; pack them with this model's tokenizer";
    for (model, want) in [("small", fewer), ("other", another)] {
        cli.bad(&format!("dpo --model {model} --data d --out r"), 2, want);
        cli.bad(&format!("sft --model {model} --data d --out r"), 2, want);
        cli.bad(&format!("dpo --model m --ref-model {model} --data d --out r"), 2, want);
        cli.bad(&format!("eval --model m --ref-model {model} --data d"), 2, want);
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
        (b"PK\x03\x04".to_vec(), "r.jsonl: is a zip archive; accepted are JSONL, a JSON array, either gzipped, and Parquet".into()),
        ([b"{\"prompt\":".to_vec(), vec![b'['; 100_000]].concat(), "r.jsonl: line 1: malformed JSON at column ".into()),
    ];
    for (rows, want) in cases {
        cli.write("r.jsonl", rows);
        let before = cli.tree();
        let ran = cli.run("pack --tokenizer m --input r.jsonl --out e");
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

/// Edits every sidecar of the data through the library, so that its checksums are right.
fn edit_sidecars(cli: &Cli, mut edit: impl FnMut(&mut Sidecars, u64)) {
    let name = cli.names("d", "train-00000.pref.ref-").pop().unwrap();
    let header = cli.bytes(&format!("d/{name}"))[..384].to_vec();
    // docs/shard-format.md: fingerprint length at 36, model at 72, fingerprint at 104.
    let len = u32::from_le_bytes(header[36..40].try_into().unwrap()) as usize;
    let key = RefKey {
        model_sha256: header[72..104].try_into().unwrap(),
        fingerprint: String::from_utf8(header[104..104 + len].to_vec()).unwrap(),
    };
    let data = Dataset::open(&cli.path("d"), Split::Train).unwrap();
    let mut sidecars = Sidecars::open(&data, None, &key).unwrap();
    assert_eq!(sidecars.missing(), 0);
    (0..data.num_responses()).for_each(|i| edit(&mut sidecars, i));
    sidecars.flush().unwrap();
}

#[test]
fn sidecars_that_are_not_what_they_say() {
    let cli = Cli::with_data();
    cli.ok("reference --model m --data d");
    let name = format!("d/{}", cli.names("d", "train-00000.pref.ref-").pop().unwrap());
    let good = cli.bytes(&name);
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    cli.write(&name, &bad);
    let mend = "delete it, and the reference pass makes it again";
    cli.bad("dpo --model m --data d --out r", 2, &format!("{name}: block 0 is damaged: {mend}"));
    cli.write(&name, &good[..good.len() - 8]);
    let why = format!("is {} bytes long, its header asks for {}", good.len() - 8, good.len());
    cli.bad("dpo --model m --data d --out r", 2, &format!("{name}: {why}: {mend}"));
    // Values that the reference never gave, in a file that is otherwise right.
    cli.write(&name, &good);
    edit_sidecars(&cli, |s, i| s.set(i, s.get(i).unwrap() * (1.0 + 1e-12)));
    let ran = cli.run("dpo --model m --data d --out r");
    let want = "fusedpo: step-0 proof failed: policy and reference are the same weights, yet 8 of 8 pairs differ and the loss is ";
    let last = ran.err.lines().last().unwrap();
    assert!(ran.code == 1 && last.starts_with(want), "{ran:?}");
    assert!(last.ends_with("delete the reference sidecars and try again, and report this if it stays"), "{ran:?}");
    std::fs::remove_file(cli.path(&name)).unwrap();
    cli.ok("dpo --model m --data d --out again --max-steps 1");
    // The data were packed again: the old sidecar is told of, and not read.
    cli.write_rows("rows.jsonl", &pairs(25));
    cli.ok("pack --tokenizer m --input rows.jsonl --out d2 --eval-fraction 0.25");
    for n in ["train-00000.pref", "eval-00000.pref"] {
        cli.write(&format!("d/{n}"), cli.bytes(&format!("d2/{n}")));
    }
    let ran = cli.ok("dpo --model m --data d --out third --max-steps 1");
    assert!(ran.err.contains("another content of the shard"), "{ran:?}");
    assert!(ran.err.contains("responses computed in"), "{ran:?}");
}

#[test]
fn outputs_that_are_in_the_way() {
    let cli = Cli::with_data();
    let occupied = "the output folder exists and is not empty; name a new one or remove it";
    for stage in ["dpo", "sft"] {
        cli.bad(&format!("{stage} --model m --data d --out m"), 2, &format!("m: {occupied}"));
        cli.bad(&format!("{stage} --model m --data d --out rows.jsonl"), 2, &format!("rows.jsonl: {occupied}"));
        let want = "rows.jsonl/x: cannot create the folder: Not a directory (os error 20)";
        cli.bad_leaving(&format!("{stage} --model m --data d --out rows.jsonl/x"), 2, want);
    }
    let pack = "pack --tokenizer m --input rows.jsonl --out";
    cli.bad(&format!("{pack} d"), 2, "d: exists and is not empty; give another --out, or --overwrite to replace it");
    let want = "m: is not a folder of shards, --overwrite leaves it alone; give another --out";
    cli.bad(&format!("{pack} m --overwrite"), 2, want);
    cli.bad(&format!("{pack} rows.jsonl"), 2, "rows.jsonl: exists and is not a folder; give another --out");
    std::fs::create_dir(cli.path("empty")).unwrap();
    cli.ok("dpo --model m --data d --out empty --max-steps 1");
}

#[test]
fn a_rate_that_blows_up_stops_the_run() {
    let cli = Cli::with_data();
    let args = "dpo --model m --data d --out r --learning-rate 1e30 --batch-size 4 --num-train-epochs 10";
    let ran = cli.run(args);
    let skipped: Vec<&str> = ran.err.lines().filter(|l| l.contains(" skipped: gradient norm ")).collect();
    assert_eq!(skipped.len(), 3, "{ran:?}");
    assert!(skipped.iter().all(|l| l.contains("pairs [") && !l.contains("pairs []")), "{skipped:?}");
    let last = ran.err.lines().last().unwrap();
    assert!(last.starts_with("fusedpo: no finite gradient in 3 steps in a row, the last was step "), "{ran:?}");
    assert!(
        last.contains(": lower --learning-rate, or look at pairs [") && last.ends_with("; no model was saved"),
        "{ran:?}"
    );
    assert_eq!(ran.code, 1);
    assert!(!cli.path("r/model.safetensors").exists());
    // Finite losses, infinite gradients, in every step that there is.
    let ran = cli.run("dpo --model m --data d --out s --beta 1e300 --max-steps 2");
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.lines().last().unwrap().starts_with("fusedpo: no finite gradient in 2 steps in a row"), "{ran:?}");
}

/// A mount that ends with the test.
struct Mount(std::path::PathBuf);

impl Mount {
    fn new(at: &Path, options: &str) -> Option<Mount> {
        std::fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).output();
        if mounted.is_ok_and(|o| o.status.success()) {
            return Some(Mount(at.to_owned()));
        }
        println!("skipped: a full disk and a read-only folder (this user may not mount a tmpfs)");
        None
    }
    fn remount(&self, options: &str) {
        assert!(Command::new("mount").args(["-o", options]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk() {
    let cli = Cli::with_data();
    let Some(_small) = Mount::new(&cli.path("t"), "size=64k") else { return };
    let full = "No space left on device (os error 28)";
    let ends = |args: &str| {
        let before = cli.tree();
        let ran = cli.run(args);
        let last = ran.err.lines().last().unwrap_or_default().to_owned();
        assert!(ran.code == 2 && last.starts_with("fusedpo: t/") && last.ends_with(full), "{args}: {ran:?}");
        (before, last)
    };
    // The model has 86 KB: metrics fit, weights do not. What was learned cannot be kept; no half of it lies there.
    let (_, last) = ends("dpo --model m --data d --out t/r --max-steps 2");
    assert!(last.contains("model.safetensors: cannot write"), "{last}");
    assert_eq!(cli.names("t/r", ""), ["config.toml", "metrics.jsonl"]);
    std::fs::remove_dir_all(cli.path("t/r")).unwrap();
    cli.write_rows("rows.jsonl", &pairs(3000));
    let (before, _) = ends("pack --tokenizer m --input rows.jsonl --out t/e");
    assert_eq!(cli.tree(), before);
    cli.ok("pack --tokenizer m --input rows.jsonl --out big");
    let (before, _) = ends("score --model m --data big --out t/s");
    assert_eq!(cli.tree(), before);
    // 48 KB of values, no room beside 40 KB of something else.
    cli.write("t/filler", vec![1; 40_000]);
    let (before, _) = ends("reference --model m --data big --cache t/c");
    let after = cli.tree();
    assert!(after.difference(&before).all(|p| p.ends_with("t/c")), "no half sidecar: {after:?}");
}

#[test]
fn a_read_only_folder() {
    let cli = Cli::with_data();
    let Some(ro) = Mount::new(&cli.path("t"), "size=4m") else { return };
    for n in cli.names("d", "") {
        cli.write(&format!("t/{n}"), cli.bytes(&format!("d/{n}")));
    }
    ro.remount("remount,ro");
    let why = "Read-only file system (os error 30)";
    for args in [
        "pack --tokenizer m --input rows.jsonl --out t/e",
        "dpo --model m --data d --out t/r",
        "sft --model m --data d --out t/r",
        "score --model m --data d --out t/s",
        "reference --model m --data t",
        "dpo --model m --data t --out r",
    ] {
        let before = cli.tree();
        let ran = cli.run(args);
        let last = ran.err.lines().last().unwrap_or_default();
        // A sidecar can lie elsewhere, and its line says so.
        let hint = if args.ends_with(" t") || args.contains("--data t ") {
            ": the folder t is read-only, give --cache DIR"
        } else {
            ""
        };
        let end = format!("{why}{hint}");
        assert!(ran.code == 2 && last.starts_with("fusedpo: t") && last.ends_with(&end), "{args}: {ran:?}");
        let left: Vec<_> = cli.tree().difference(&before).cloned().collect();
        let sidecars = |p: &std::path::PathBuf| p.to_string_lossy().contains(".ref-");
        assert!(left.iter().all(sidecars), "{args}: {left:?}");
    }
    cli.ok("dpo --model m --data t --cache c --out r --max-steps 1");
    cli.ok("eval --model r --data t --cache c --json");
}

/// Truncating what a run has mapped: an error where it can be seen in time. The documented rule remains that files in
/// use are left alone; a page that vanishes between the check and the read still ends the process by SIGBUS.
#[test]
fn files_cut_short_under_a_run() {
    let cli = Cli::with_data();
    let start = |out: &str| {
        let child = cli.spawn(&format!("dpo --model m --data d --out {out} --max-steps 1000000"));
        let metrics = cli.path(&format!("{out}/metrics.jsonl"));
        let begun = std::time::Instant::now();
        while !std::fs::read_to_string(&metrics).is_ok_and(|t| t.lines().count() > 3) {
            assert!(begun.elapsed().as_secs() < 60, "{out} takes no step");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        child
    };
    let cut = |name: &str| {
        let file = std::fs::OpenOptions::new().write(true).open(cli.path(name)).unwrap();
        // Not below a page: pages that are gone are what the checks cannot always outrun.
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    };
    let child = start("a");
    cut("m/model.safetensors");
    signal(&child, "INT");
    let ran = finish(child);
    let want =
        "m/model.safetensors: was cut short while in use: leave a model's files alone during a run, and start it again";
    one_line("model", &ran, 2, want);
    cli.write("m/model.safetensors", std::fs::read(golden("llama/model.safetensors")).unwrap());
    let child = start("b");
    cut("d/train-00000.pref");
    let want = "d/train-00000.pref: was changed while in use: leave shards alone during a run, and start it again";
    one_line("shard", &finish(child), 2, want);
}

/// Really so on this machine, whatever it lacks: every command says it at once and leaves nothing.
#[test]
fn a_gpu_that_cannot_be_used() {
    let Some(why) = fusedpo::backend::gpu::cuda::unavailable() else {
        eprintln!("skipped: a GPU that cannot be used (this machine has one that can)");
        return;
    };
    let cli = Cli::with_data();
    for command in [
        "sft --model m --data d --out r",
        "dpo --model m --data d --out r",
        "dpo --model m --data d --out r --dtype f32 --cuda-graphs on",
        "reference --model m --data d",
        "eval --model m --data d",
        "score --model m --data d --out scores",
        "generate --model m --prompt w5",
    ] {
        cli.bad(&format!("{command} --device cuda"), 1, &format!("--device cuda: {why}"));
    }
    assert!(cli.ok("doctor").out.contains(&why), "doctor says the same");
    cli.bad(
        "sft --model m --data d --out r --device cpu --cuda-graphs on",
        2,
        "--cuda-graphs on: this device records no graphs; leave it out, or use --device cuda",
    );
    cli.bad(
        "sft --model m --data d --out r --device cpu --matmul-plans plans",
        2,
        "--matmul-plans: the CPU has one algorithm for products; leave it out, or use --device cuda",
    );
}
