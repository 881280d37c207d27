//! What scripts read: `--json`, the keys of rows, and `-` for stdin and stdout.

use crate::cli_common;

use cli_common::*;
use serde_json::{Value, json};
use std::io::Write;
use std::process::Stdio;

/// Keys of an object, sorted.
fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> =
        value.as_object().unwrap_or_else(|| panic!("{value}")).keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// Every key below `value`.
fn all_keys(value: &Value, to: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            to.push(key.clone());
            all_keys(value, to);
        }),
        Value::Array(items) => items.iter().for_each(|value| all_keys(value, to)),
        _ => {}
    }
}

/// The keys that docs/json.md lists are there, in one object on stdout and nothing else; what a person reads says the same numbers.
#[test]
fn objects_have_the_documented_keys() {
    let cli = Cli::with_data();
    let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/json.md")).unwrap();
    let documented = |command: &str, value: &Value| {
        let section = docs
            .split(&format!("### `{command} --json`"))
            .nth(1)
            .unwrap_or_else(|| panic!("docs/json.md: {command} --json"));
        let section = section.split("\n#").next().unwrap();
        for key in keys(value) {
            assert!(section.contains(&format!("`{key}`")), "{command} --json: {key} is not documented");
        }
    };
    let packed = cli.ok("pack --tokenizer m --input rows.jsonl --out e --eval-fraction 0.25 --json");
    let pack = packed.json();
    documented("pack", &pack);
    assert_eq!(
        (&pack["rows_read"], &pack["rows_kept"], &pack["out"], &pack["train"]["pairs"]),
        (&json!(24), &json!(24), &json!("e"), &json!(16))
    );
    assert!(
        pack["elapsed_seconds"].as_f64().unwrap() > 0.0 && packed.out.lines().count() == 1 && packed.err.is_empty(),
        "{packed:?}"
    );
    let mut text = cli.ok("pack --tokenizer m --input rows.jsonl --out f --max-length 7 --json");
    let warned = text.json()["warnings"][0].as_str().unwrap().to_owned();
    assert!(warned.contains("--max-length 7") && text.err == format!("warning: {warned}\n"), "{text:?}");

    let inspect = cli.ok("inspect d --json --verify --show 1").json();
    documented("inspect", &inspect);
    documented("inspect", &inspect["splits"][1]);
    let shown = &inspect["splits"][0]["shown"][0];
    documented("inspect", shown);
    documented("inspect", &shown["responses"][0]);
    assert_eq!(
        (&inspect["verified"], &inspect["splits"][0]["split"], &inspect["splits"][1]["split"]),
        (&json!(true), &json!("train"), &json!("eval"))
    );
    assert_eq!((&inspect["splits"][0]["groups"], &inspect["splits"][1]["pairs"]), (&json!(16), &json!(8)));
    text = cli.ok("inspect d --show 1");
    let prompt = shown["prompt"].as_str().unwrap();
    assert!(text.out.contains(prompt) && !prompt.is_empty(), "{prompt}: {text:?}");
    assert_eq!(cli.ok("inspect d --json").json()["splits"][0].get("shown"), None);
    let damaged = {
        let mut bytes = cli.bytes("d/train-00000.pref");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        cli.write("x.pref", bytes);
        cli.run("inspect x.pref --json --verify")
    };
    assert!(damaged.code == 2 && damaged.out.is_empty(), "{damaged:?}");

    let doctor = cli.ok("doctor --json --threads 2").json();
    documented("doctor", &doctor);
    documented("doctor", &doctor["cpu"]);
    documented("doctor", &doctor["gpu"]);
    assert_eq!(doctor["cpu"]["threads"], 2);
    let said = cli.ok("doctor --threads 2").out;
    for found in [&doctor["version"], &doctor["cpu"]["description"], &doctor["cpu"]["f32"]["numerics"]] {
        assert!(said.contains(found.as_str().unwrap()), "{found}: {said}");
    }

    for value in [pack, inspect, doctor] {
        let mut all = Vec::new();
        all_keys(&value, &mut all);
        // Names that a row's columns have are not ours: this data has none but words.
        let odd: Vec<_> = all.iter().filter(|key| key.contains('-') || **key != key.to_lowercase()).collect();
        assert_eq!(odd, [""; 0]);
    }
}

/// `score` says of each response where it stands, `generate` what was asked, with whatever else the row had.
#[test]
fn rows_carry_what_they_came_from() {
    let cli = Cli::with_data();
    cli.ok("score --model m --data d --device cpu --out s.jsonl");
    let rows = cli.json_lines("s.jsonl");
    assert_eq!(keys(&rows[0]), ["group", "id", "logp", "num_tokens", "response", "row", "split"]);
    let of = |split: &str| -> Vec<u64> {
        let mut ids: Vec<u64> =
            rows.iter().filter(|r| r["split"] == split).map(|r| r["id"].as_u64().unwrap()).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!((of("train"), of("eval")), ((0..32).collect(), (0..16).collect()));
    // The same response, as inspect counts it.
    let shown = cli.ok("inspect d --json --show 1").json();
    let first = &shown["splits"][1]["shown"][0]["responses"][0];
    let scored = rows.iter().find(|r| r["split"] == "eval" && r["id"] == first["id"]).unwrap();
    assert_eq!((&scored["row"], &scored["response"]), (&first["row"], &first["response"]));

    cli.write(
        "in.jsonl",
        "{\"prompt\":\"w7 w8\",\"id\":7,\"meta\":{\"n\":123456789012345678901234567890},\"tags\":[\"a\",{\"b\":null}],\"index\":\"mine\",\"input_index\":1,\"none\":null}\n\
         {\"instruction\":\"w9\",\"input\":\"\",\"output\":\"w10\"}\n\
         {\"prompt_ids\":[5,6,7],\"chosen_ids\":[8],\"rejected_ids\":[9]}\n",
    );
    cli.write("t.jinja", "{% for m in messages %}w9 {{ m.content }}{% endfor %}");
    let out = cli.ok("generate --model m --input in.jsonl --max-new-tokens 2 --device cpu --chat-template t.jinja").out;
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("{\"row\":0,\"index\":0,\"completion\":"), "{out}");
    assert!(
        lines[0].contains("\"prompt\":\"w7 w8\",\"id\":7,\"meta\":{\"n\":123456789012345678901234567890},\"tags\":")
            && !out.contains("\\u0000"),
        "{out}"
    );
    let rows: Vec<Value> = lines.iter().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(
        (&rows[0]["prompt"], &rows[0]["index"], &rows[0]["tags"]),
        (&json!("w7 w8"), &json!(0), &json!(["a", {"b": null}]))
    );
    assert_eq!(
        (&rows[0]["input_input_index"], &rows[0]["input_index"], &rows[0]["none"]),
        (&json!("mine"), &json!(1), &Value::Null)
    );
    assert_eq!((&rows[1]["output"], &rows[1]["prompt"][0]["content"]), (&json!("w10"), &json!("w9")));
    assert_eq!((&rows[2]["prompt"], &rows[2]["prompt_ids"]), (&json!("w5 w6 w7"), &json!([5, 6, 7])));
}

/// `-` is standard input or output, whatever comes through it, and never a name.
#[test]
fn a_dash_is_a_stream() {
    let cli = Cli::with_data();
    let fed = |args: &str, bytes: &[u8]| {
        let mut child =
            cli.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        finish(child)
    };
    let rows = cli.bytes("rows.jsonl");
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&rows).unwrap();
    for (out, bytes) in [("plain", rows.clone()), ("gz", gz.finish().unwrap())] {
        let ran = fed(&format!("pack --tokenizer m --input - --out {out} --eval-fraction 0.25"), &bytes);
        assert_eq!(ran.code, 0, "{ran:?}");
        for shard in ["train-00000.pref", "eval-00000.pref"] {
            assert!(cli.bytes(&format!("{out}/{shard}")) == cli.bytes(&format!("d/{shard}")), "{out} {shard}");
        }
    }
    // Beside a file; twice is once too often; what is wrong with it is said of it.
    cli.write_rows("more.jsonl", &[json!({"prompt": "w5", "chosen": " w6", "rejected": " w7"})]);
    assert_eq!(fed("pack --tokenizer m --input more.jsonl - --out both --json", &rows).json()["rows_kept"], 25);
    for (args, bytes, want) in [
        ("pack --tokenizer m --input - - --out x", &b""[..], "--input -: standard input is there once; name it once"),
        (
            "pack --tokenizer m --input - --out -",
            b"",
            "--out -: a folder is written, which standard output cannot hold; name a folder",
        ),
        ("generate --model m --input -", b"{\"prompt\":", "standard input: line 1: "),
        ("pack --tokenizer m --input - --out x --on-bad-row stop", b"{\"prompt\": 3}\n", "standard input: line 1: "),
        ("pack --tokenizer m --input - --out x", b"PK\x03\x04abc", "standard input: is a zip archive; unpack it: "),
        ("dpo --model m --data d --out -", b"", "--out -: a folder is written"),
        ("sft --model m --data d --out -", b"", "--out -: a folder is written"),
        ("quantize --model m --out -", b"", "--out -: a folder is written"),
        ("merge --model m --adapter m --out -", b"", "--out -: a folder is written"),
        ("demo --out -", b"", "--out -: a folder is written"),
        ("man -", b"", "DIR -: pages go into a folder, which standard output cannot hold; name one"),
        (
            "score --model m --data d --out - --overwrite",
            b"",
            "--overwrite has no effect: nothing is written but to stdout",
        ),
        (
            "score --model m --data d --out /dev/stdout --overwrite",
            b"",
            "--overwrite has no effect: nothing is written but",
        ),
        (
            "generate --model m --prompt w5 --out - --overwrite",
            b"",
            "--overwrite has no effect: nothing is written but",
        ),
        (
            "generate --model m --prompt w5 --overwrite",
            b"",
            "--overwrite has no effect: nothing is written but to stdout",
        ),
    ] {
        let before = cli.tree();
        let ran = fed(args, bytes);
        assert!(
            ran.code == 2 && ran.err.lines().last().unwrap().starts_with(&format!("fusedpo: {want}")),
            "{args}: {ran:?}"
        );
        assert_eq!(cli.tree(), before, "{args}");
    }
    let prompts = b"{\"prompt\":\"w5 w6\"}\n{\"prompt\":\"w7\"}\n";
    let generate = "generate --model m --max-new-tokens 3 --device cpu --input -";
    let piped = fed(generate, prompts);
    assert_eq!((piped.code, piped.out.lines().count()), (0, 2), "{piped:?}");
    for out in ["--out -", "--out g.jsonl"] {
        let ran = fed(&format!("{generate} {out}"), prompts);
        let text = if out.ends_with('-') { ran.out.clone() } else { cli.text("g.jsonl") };
        assert_eq!((ran.code, text), (0, piped.out.clone()), "{ran:?}");
    }
    // A row that forges the mark of an integer beyond 64 bits gets back what it has.
    let forged = br#"{"prompt":"w3","x":{"\u0000integer":"1}, \"y\":{"},"n":99999999999999999999}"#;
    let line: serde_json::Value = serde_json::from_str(fed(generate, forged).out.trim_end()).unwrap();
    assert_eq!(line["x"]["\u{0}integer"], "1}, \"y\":{", "{line}");
    let again = fed(&format!("{generate} --out g.jsonl"), prompts);
    assert!(again.code == 2 && again.err.contains("g.jsonl: "), "{again:?}");
    assert_eq!(fed(&format!("{generate} --out g.jsonl --overwrite"), prompts).out, "2 continuations: g.jsonl\n");
    cli.ok("generate --model m --prompt w5 --max-new-tokens 3 --device cpu --out one.txt");
    assert_eq!(cli.text("one.txt"), cli.ok("generate --model m --prompt w5 --max-new-tokens 3 --device cpu").out);
    assert!(!cli.path("-").exists());
}

/// What limits a process limits what a memory plan has to do with, and `doctor` says the same.
#[test]
#[cfg(target_os = "linux")]
fn the_memory_is_what_a_plan_has() {
    let cli = Cli::new();
    let program = cli.command("").get_program().to_owned();
    let under = |limit: &str| {
        let line = format!("ulimit {limit} && exec '{}' doctor --json --threads 1", program.display());
        let out = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
        let found: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"));
        found["memory_available_bytes"].as_u64().unwrap()
    };
    let free = under("-c 0");
    for (limit, kib) in [("-v", 900_000), ("-d", 300_000)] {
        let left = under(&format!("{limit} {kib}"));
        assert!(left < kib << 10 && left > kib << 9, "{limit}: {left} of {kib} KiB");
        assert!(free > kib << 10, "{free}: this machine has less than the test takes away");
    }
}
