//! What a run leaves besides its model: the record, the lock, checkpoints on a full disk, what the reference was asked for, and
//! what is taken away again.

use crate::cli_common;

use cli_common::*;
use serde_json::{Value, json};
use std::process::Command;

const BASE: &str = "--model m --data d --device cpu --learning-rate 1e-3 --batch-size 3 --dtype f32";

fn record(cli: &Cli, out: &str) -> Value {
    serde_json::from_str(&cli.text(&format!("{out}/run.json"))).unwrap()
}

#[test]
fn a_record_of_everything() {
    let cli = Cli::with_data();
    cli.ok(&format!("dpo {BASE} --out r --max-steps 4"));
    let run = record(&cli, "r");
    let at = |pointer: &str| run.pointer(pointer).unwrap_or_else(|| panic!("{pointer}: {run}")).clone();
    assert_eq!([at("/outcome"), at("/steps_done"), at("/steps_asked")], [json!("finished"), json!(4), json!(4)]);
    let command: Vec<String> = serde_json::from_value(at("/command")).unwrap();
    assert_eq!(command[1..].join(" "), format!("dpo {BASE} --out r --max-steps 4"));
    assert_eq!((at("/version"), at("/dtype")), (json!(env!("CARGO_PKG_VERSION")), json!("f32")));
    assert!(at("/device").as_str().unwrap().starts_with("CPU, 2 threads"), "{run}");
    assert!(at("/numerics").as_str().unwrap().starts_with("cpu-f32-"));
    assert_eq!(at("/machine/os"), json!(std::env::consts::OS));
    // As the data say, and as sha256sum does.
    let tokenizer = {
        use sha2::Digest;
        sha2::Sha256::digest(cli.bytes("m/tokenizer.json")).iter().map(|b| format!("{b:02x}")).collect::<String>()
    };
    assert_eq!(at("/sha256/tokenizer"), json!(tokenizer));
    for key in ["data", "eval_data", "model", "reference"] {
        assert_eq!(at(&format!("/sha256/{key}")).as_str().unwrap().len(), 64, "{key}");
    }
    assert_eq!(at("/sha256/model"), at("/sha256/reference"));
    let written: toml::Table = cli.text("r/config.toml").parse().unwrap();
    for (key, value) in &written {
        assert_eq!(at(&format!("/options/{key}")), serde_json::to_value(value).unwrap(), "{key}");
    }
    let time = |key: &str| chrono_like(at(key).as_str().unwrap());
    assert!(time("/start") <= time("/end"));
    assert_eq!(at("/resumptions"), json!([]));
    // An error has its line, once the run has begun.
    cli.write_rows("rows.jsonl", &pairs(12));
    let ran =
        cli.run(&format!("sft {} --out f --lr-scheduler-type constant --max-steps 20", BASE.replace("1e-3", "1e30")));
    assert_eq!(ran.code, 1, "{ran:?}");
    let failed = record(&cli, "f");
    assert_eq!(failed["outcome"], "failed");
    assert!(failed["error"].as_str().unwrap().starts_with("no finite gradient in 3 steps in a row"), "{failed}");
    // And what could not begin leaves none.
    cli.bad(&format!("sft {BASE} --out g --eval-steps 2 --token-budget 3"), 2, {
        let ran = cli.run(&format!("sft {BASE} --out g --eval-steps 2 --token-budget 3"));
        ran.err.lines().last().unwrap().strip_prefix("fusedpo: ").unwrap().to_owned().leak()
    });
}

/// `2026-11-26T03:16:41Z`, which sorts as it is.
fn chrono_like(text: &str) -> String {
    let form: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(form, "0000-00-00T00:00:00Z", "{text}");
    text.to_owned()
}

/// Waits until the run has taken some steps.
fn steps(cli: &Cli, out: &str) {
    let metrics = cli.path(&format!("{out}/metrics.jsonl"));
    let begun = std::time::Instant::now();
    while !std::fs::read_to_string(&metrics).is_ok_and(|t| t.lines().count() > 5) {
        assert!(begun.elapsed().as_secs() < 60, "{out} takes no steps");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn one_run_at_a_time_and_none_after_a_kill() {
    let cli = Cli::with_data();
    let args = format!("sft {BASE} --out r --lr-scheduler-type constant");
    let mut child = cli.spawn(&format!("{args} --max-steps 1000000 --save-steps 3"));
    steps(&cli, "r");
    assert_eq!(record(&cli, "r")["outcome"], "running");
    for more in ["", " --resume auto"] {
        let ran = cli.run(&format!("{args} --max-steps 3{more}"));
        one_line(more, &ran, 2, "r: another run is writing to it; name a new folder");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(record(&cli, "r")["outcome"], "running", "nobody could say otherwise");
    let ran = cli.run(&args);
    assert!(
        ran.err.contains("r: a run of ") && ran.err.contains(" of 1000000 steps; --resume auto goes on with it"),
        "{ran:?}"
    );
    let last = cli
        .names("r", "checkpoint-")
        .iter()
        .filter_map(|n| n.strip_prefix("checkpoint-")?.parse::<u64>().ok())
        .max()
        .unwrap();
    cli.ok(&format!("{args} --max-steps {} --resume auto", last + 2));
    let run = record(&cli, "r");
    let (call, done) = (&run["resumptions"][0], run["steps_done"].as_u64().unwrap());
    assert_eq!((&call["before"], &call["from_step"], done), (&json!("killed"), &json!(last), last + 2));
    assert!(call["call"]["command"].as_array().unwrap().contains(&json!("1000000")), "{run}");
    assert!(run["command"].as_array().unwrap().contains(&json!("auto")), "{run}");
}

#[test]
fn a_disk_that_takes_no_checkpoint_does_not_end_the_run() {
    let cli = Cli::with_data();
    // A checkpoint has 260 KB: the first fits, no second beside it.
    let Some(_small) = Mount::new(&cli.path("t"), "size=500k", "checkpoints on a full disk and in a read-only folder")
    else {
        return;
    };
    let args = format!("sft {BASE} --max-steps 12 --save-steps 4");
    let ran = cli.ok(&format!("{args} --out t/r"));
    let said: Vec<&str> = ran.err.lines().filter(|l| l.starts_with("warning: ")).collect();
    let [second, third, end] = said[..] else { panic!("{ran:?}") };
    for (line, step) in [(second, 8), (third, 12)] {
        assert!(line.starts_with(&format!("warning: no checkpoint at step {step}: t/r/checkpoint-{step}/")), "{line}");
        assert!(
            line.ends_with("No space left on device (os error 28); the run goes on, and checkpoint-4 is its last"),
            "{line}"
        );
    }
    assert!(end.starts_with("warning: checkpoints could not be saved, the first at step 8 ("), "{end}");
    assert!(end.ends_with("), and checkpoint-4 is its last"), "{end}");
    assert_eq!(cli.names("t/r", "checkpoint-"), ["checkpoint-4"], "and nothing half-written");
    cli.ok(&format!("{args} --out peace"));
    assert!(cli.bytes("t/r/model.safetensors") == cli.bytes("peace/model.safetensors"));
}

/// `ulimit -f`: a file that grows too long is a full disk, not SIGXFSZ.
#[test]
#[cfg(unix)]
fn a_limit_on_files_is_a_full_disk() {
    let cli = Cli::with_data();
    // In blocks of 512 bytes.
    let limited = |blocks: u32, out: &str| {
        let program = env!("CARGO_BIN_EXE_fusedpo");
        // Events are longer than metrics, and would be the first that do not fit.
        let run = format!("sft {BASE} --max-steps 12 --save-steps 4 --report-to none --out {out}");
        let line = format!("ulimit -f {blocks}; '{program}' {run}");
        let ran = Command::new("sh").args(["-c", &line]).current_dir(cli.dir.path()).output().unwrap();
        (ran.status.code(), String::from_utf8(ran.stderr).unwrap())
    };
    // The model fits, the moments do not.
    let (code, err) = limited(200, "r");
    assert_eq!(code, Some(0), "{err}");
    let none = "checkpoint-8/optimizer.safetensors: cannot write: File too large (os error 27); the run goes on, and has none yet";
    assert!(err.contains(&format!("warning: no checkpoint at step 8: r/{none}\n")), "{err}");
    assert!(err.contains("File too large (os error 27)), and there is none\n"), "{err}");
    assert_eq!(record(&cli, "r")["outcome"], "finished");
    assert_eq!(cli.names("r", "checkpoint-"), Vec::<String>::new());
    // Not even the metrics do: half a line is no harm to the run that goes on.
    let (code, err) = limited(7, "s");
    assert_eq!(code, Some(2), "{err}");
    assert!(err.ends_with("fusedpo: s/metrics.jsonl: cannot write: File too large (os error 27)\n"), "{err}");
    assert_eq!(cli.bytes("s/metrics.jsonl").len(), 3584);
    cli.ok(&format!("sft {BASE} --max-steps 12 --save-steps 4 --report-to none --out s --resume auto"));
    assert!(cli.bytes("s/model.safetensors") == cli.bytes("r/model.safetensors"));
    assert_eq!(cli.json_lines("s/metrics.jsonl").len(), cli.json_lines("r/metrics.jsonl").len());
}

/// What a run's folder is before it has a model.
#[test]
fn a_run_without_a_model_says_what_to_do() {
    let cli = Cli::with_data();
    cli.ok(&format!("sft {BASE} --out r --max-steps 4 --save-steps 2"));
    std::fs::remove_file(cli.path("r/config.json")).unwrap();
    std::fs::remove_file(cli.path("r/model.safetensors")).unwrap();
    let want = "r: a run that has no model yet: go on with it (--resume auto), or give a checkpoint of it, RUN/checkpoint-STEP";
    for args in ["generate --model r --prompt w5", "eval --model r --data d", "dpo --model r --data d --out p"] {
        one_line(args, &cli.run(args), 2, want);
    }
    cli.ok("eval --model r/checkpoint-2 --data d");
}

#[test]
fn a_read_only_run_cannot_go_on() {
    let cli = Cli::with_data();
    let Some(ro) = Mount::new(&cli.path("t"), "size=4m", "checkpoints on a full disk and in a read-only folder") else {
        return;
    };
    cli.ok(&format!("sft {BASE} --out t/r --max-steps 4 --save-steps 2 --lr-scheduler-type constant"));
    ro.remount("remount,ro");
    let ran = cli.run(&format!("sft {BASE} --out t/r --max-steps 6 --lr-scheduler-type constant --resume auto"));
    one_line("ro", &ran, 2, "t/r/metrics.jsonl: cannot open: Read-only file system (os error 30)");
}

/// How many responses a run had the reference compute, and how many it left out, of the training split.
fn asked(err: &str) -> (u64, u64) {
    let line = err.lines().find(|l| l.starts_with("reference log-probs of ")).unwrap_or_else(|| panic!("{err}"));
    let number = |after: &str| line.split(after).nth(1).and_then(|r| r.split(' ').next()?.parse().ok());
    (number("reference log-probs of ").unwrap(), number("; ").unwrap_or(0))
}

#[test]
fn the_reference_is_asked_for_what_the_run_reads() {
    let cli = Cli::new();
    let mut rows = pairs(24);
    // What has no pair is read by no step.
    rows.extend((0..4).map(|i| json!({"prompt": format!("w{} w9", 20 + i), "completion": words(i, 4)})));
    cli.write_rows("rows.jsonl", &rows);
    let packed = cli.run("pack --tokenizer m --input rows.jsonl --out d");
    assert_eq!(packed.code, 0, "{packed:?}");
    let base = format!("dpo {BASE} --lr-scheduler-type constant --save-steps 1");
    let short = cli.ok(&format!("{base} --cache c --out r --max-steps 2"));
    assert_eq!(asked(&short.err), (12, 40), "two steps of three pairs, of 24 and four without");
    // Goes on: what it has is found, what is new is computed.
    let longer = cli.ok(&format!("{base} --cache c --out r --max-steps 4 --resume auto"));
    assert_eq!(asked(&longer.err), (12, 40));
    // An epoch and more reads all pairs.
    let whole = cli.ok(&format!("{base} --cache c --out r --max-steps 11 --resume auto"));
    // The last four steps of the epoch, and the first three of the next: some pairs are in both.
    assert!((24..24 + 18).contains(&asked(&whole.err).0), "{}", whole.err);
    let all = cli.ok(&format!("{base} --cache other --out peace --max-steps 11"));
    assert_eq!(asked(&all.err), (48, 4));
    for file in ["model.safetensors", "checkpoint-11/optimizer.safetensors"] {
        assert!(cli.bytes(&format!("r/{file}")) == cli.bytes(&format!("peace/{file}")), "{file}");
    }
    // The command alone computes the rest.
    let said = cli.ok("reference --model m --data d --device cpu --dtype f32 --cache other").out;
    assert!(said.starts_with("52 responses: 4 computed, 48 found"), "{said}");
}

#[test]
fn stale_sidecars_are_one_line_and_can_be_removed() {
    let cli = Cli::with_data();
    for (name, of) in [("m2", "llama"), ("m3", "qwen3"), ("m4", "llama3-tied")] {
        cli.model(name, of);
        if of == "llama" {
            // Another model by one bit of a weight: one of qwen2's reads texts by rules of its own.
            let mut weights = cli.bytes("m2/model.safetensors");
            let at = weights.len() - 4;
            weights[at] ^= 1;
            cli.write("m2/model.safetensors", weights);
        }
        cli.ok(&format!("reference --model {name} --data d --device cpu --dtype f32"));
    }
    let names = || cli.names("d", ".ref-").len();
    assert_eq!(names(), 6);
    let ran = cli.ok("reference --model m --data d --device cpu --dtype f32");
    let stale: Vec<&str> = ran.err.lines().filter(|l| l.contains("not used")).collect();
    assert_eq!(stale.len(), 2, "one line a split: {ran:?}");
    assert!(
        stale[0].ends_with("; 2 others are not used either (`fusedpo reference` with --prune removes them)"),
        "{stale:?}"
    );
    cli.write("d/train-00000.pref.ref-notes", "mine");
    cli.write("d/train-00000.pref.ref-0123456789abcdef", "damaged");
    let said = cli.ok("reference --model m --data d --device cpu --dtype f32 --prune").out;
    assert!(said.starts_with("7 sidecars removed, ") && said.ends_with("; 2 stay\n"), "{said}");
    assert_eq!(cli.names("d", ".ref-").len(), 3, "two of its own, and a file that only looks like one");
    let again = cli.ok("reference --model m --data d --device cpu --dtype f32");
    assert!(again.out.contains(" 0 computed, 48 found"), "{again:?}");
    // A cache may be another data set's too.
    cli.ok("reference --model m --data d --device cpu --dtype f32 --cache c");
    cli.write_rows("rows.jsonl", &pairs(30));
    cli.ok("pack --tokenizer m --input rows.jsonl --out d2 --eval-fraction 0.25");
    cli.ok("reference --model m2 --data d2 --device cpu --dtype f32 --cache c");
    let said = cli.ok("reference --model m --data d2 --device cpu --dtype f32 --cache c --prune").out;
    assert!(said.starts_with("2 sidecars removed, ") && said.ends_with("; 2 stay\n"), "{said}");
    assert!(
        cli.ok("reference --model m --data d --device cpu --dtype f32 --cache c").out.contains(" 0 computed, 48 found")
    );
}
