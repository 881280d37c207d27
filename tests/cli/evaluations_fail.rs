//! What evaluations of a run cannot do: a metric that none has, models without finite numbers, a full disk.

use crate::cli_common::*;
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Command;

const RUN: &str = "--model m --data d --device cpu --dtype f32 --learning-rate 3e-3 --batch-size 3 --token-budget 64";

/// The keys that are named before a run begins are those that its evaluations have then.
#[test]
fn the_metrics_of_evaluations_are_known_before() {
    let cli = Cli::with_data();
    cli.write_rows("judged.jsonl", &judgements(30));
    cli.ok("pack --tokenizer m --input judged.jsonl --out judged --eval-fraction 0.3");
    cli.ok("pack --tokenizer m --input rows.jsonl --out whole");
    let samples = "--sample-prompts 2 --sample-max-new-tokens 3";
    for (i, args) in [
        format!("sft {RUN} --eval-data it=d {samples}"),
        format!("dpo {RUN} --kl-samples 2 --kl-max-new-tokens 3 {samples}"),
        format!("dpo {} --eval-data it=d --eval-data other=whole", RUN.replace("--data d", "--data whole")),
        format!("dpo {RUN} --loss-type simpo {samples}"),
        format!("dpo {RUN} --loss-type ipo,sft"),
        format!("dpo {} --loss-type kto", RUN.replace("--data d", "--data judged")),
    ]
    .into_iter()
    .enumerate()
    {
        let args = format!("{args} --eval-steps 2 --max-steps 2");
        let chooses = "--load-best-model-at-end --metric-for-best-model";
        let before = cli.tree();
        let ran = cli.run(&format!("{args} {chooses} qqq --out none"));
        let last = ran.err.lines().last().unwrap();
        let begins =
            "fusedpo: --metric-for-best-model eval_qqq: evaluations of this run have no such number; they have ";
        assert_eq!((ran.code, ran.err.lines().count()), (2, 1), "nothing else is said before: {ran:?}");
        let named: BTreeSet<&str> = last.strip_prefix(begins).unwrap_or_else(|| panic!("{last}")).split(", ").collect();
        assert_eq!(cli.tree(), before);
        cli.ok(&format!("{args} --out run{i}"));
        let row = rows(&cli, &format!("run{i}")).pop().unwrap();
        let has = row.as_object().unwrap().keys().map(String::as_str);
        let has: BTreeSet<&str> = has.filter(|key| *key != "step" && !key.ends_with("_ci95")).collect();
        assert_eq!(named, has, "{args}");
        // Every one of them will do, with what they begin with or without; of some it must be said which is better, more or less.
        for key in [has.first(), has.last()].into_iter().flatten() {
            let key = key.trim_start_matches("eval_");
            cli.ok(&format!("{args} {chooses} {key} --greater-is-better false --out run{i}-{}", key.replace('/', "-")));
        }
    }
    for (meant, typed) in
        [("rewards/accuracies", "reward/accuracy"), ("logps/chosen", "logp_chosen"), ("loss", "eval_los")]
    {
        let ran = cli.run(&format!(
            "dpo {RUN} --eval-steps 2 --early-stopping-patience 2 --metric-for-best-model {typed} --out none"
        ));
        assert!(ran.err.contains(&format!("no such number; nearest: eval_{meant}")), "{typed}: {ran:?}");
    }
}

/// The norm of a model's last layer so large that no logit is finite.
fn break_model(cli: &Cli, name: &str) {
    let path = format!("{name}/model.safetensors");
    let mut bytes = cli.bytes(&path);
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let all: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let of = &all["model.norm.weight"];
    assert_eq!(of["dtype"], "F32");
    let [from, to] = [0, 1].map(|i| header + of["data_offsets"][i].as_u64().unwrap() as usize);
    for x in bytes[from..to].chunks_exact_mut(4) {
        x.copy_from_slice(&f32::MAX.to_le_bytes());
    }
    cli.write(&path, bytes);
}

/// A reference without finite numbers, and a policy: what cannot be sampled is `null` and said, and ends nothing by itself.
#[test]
fn samples_without_finite_numbers_are_said() {
    let cli = Cli::with_data();
    cli.model("bad", "llama");
    break_model(&cli, "bad");
    let run = "--eval-steps 1 --max-steps 4 --sample-prompts 2 --sample-max-new-tokens 3";
    let kl = "--kl-samples 3 --kl-max-new-tokens 3 --kl-budget 0.001";
    let warned =
        |ran: &Ran, what: &str| ran.err.lines().filter(|l| l.starts_with("warning: ") && l.contains(what)).count();
    // A synced reference is not looked at before the steps.
    let ran = cli.run(&format!("dpo {RUN} {run} {kl} --ref-model bad --sync-ref-model --out dpo"));
    let last = ran.err.lines().last().unwrap();
    assert!(ran.code == 1 && last.starts_with("fusedpo: no finite gradient in 3 steps in a row"), "{ran:?}");
    let said = "step 0: `eval_kl` is not known: of 3 responses 3 have no finite log-prob under policy and reference";
    assert_eq!(warned(&ran, said), 1, "{ran:?}");
    assert_eq!(warned(&ran, "step 0: the reference continues no prompt: prompt 1: "), 1, "{ran:?}");
    let evaluations: Vec<Value> = rows(&cli, "dpo").into_iter().filter(|row| row.get("eval_loss").is_some()).collect();
    assert!(evaluations.len() >= 2 && !ran.err.contains("the run ends"), "{ran:?}");
    for row in &evaluations {
        assert!(row["eval_kl"].is_null() && row.get("eval_kl").is_some() && row.get("eval_kl_ci95").is_none(), "{row}");
        assert!(row["eval_samples/tokens"].is_f64() && row.get("eval_samples/tokens_reference").is_none(), "{row}");
    }
    let samples = cli.json_lines("dpo/samples.jsonl");
    assert!(samples.len() == 2 * evaluations.len(), "{samples:?}");
    assert!(samples.iter().all(|row| row["policy"].is_string() && row["reference"].is_null()), "{samples:?}");
    // The policy itself.
    let ran = cli.run(&format!("sft {} {run} --out sft", RUN.replace("--model m", "--model bad")));
    let last = ran.err.lines().last().unwrap();
    assert!(ran.code == 1 && last.starts_with("fusedpo: no finite gradient in 3 steps in a row"), "{ran:?}");
    assert_eq!(warned(&ran, "step 0: nothing is in samples.jsonl of this step: the policy, prompt 1: after 0 new "), 1);
    assert!(!cli.path("sft/samples.jsonl").exists());
    // `eval` has nothing else to say, and says so.
    let ran = cli.run("eval --model m --ref-model bad --data d --kl-samples 3 --dtype f32");
    assert_eq!(ran.code, 1, "{ran:?}");
}

/// `samples.jsonl` on a full disk is like the other files that a run adds to: one line, and what is half there is no harm to the run
/// that goes on.
#[test]
#[cfg(unix)]
fn a_full_disk_ends_samples_as_it_ends_metrics() {
    let cli = Cli::with_data();
    let args =
        "--eval-steps 1 --max-steps 30 --save-steps 10 --sample-prompts 6 --sample-max-new-tokens 1 --report-to none";
    let args = format!("sft {RUN} {args}");
    cli.ok(&format!("{args} --out peace"));
    let sizes = ["metrics.jsonl", "samples.jsonl"].map(|name| cli.bytes(&format!("peace/{name}")).len());
    assert!(sizes[1] > sizes[0] + 1024, "{sizes:?}");
    let blocks = (sizes[0] + 512) / 512;
    let program = env!("CARGO_BIN_EXE_fusedpo");
    let line = format!("ulimit -f {blocks}; '{program}' {args} --out r");
    let ran = Command::new("sh").args(["-c", &line]).current_dir(cli.dir.path()).output().unwrap();
    let err = String::from_utf8(ran.stderr).unwrap();
    assert!(err.ends_with("fusedpo: r/samples.jsonl: cannot write: File too large (os error 27)\n"), "{err}");
    assert_eq!((ran.status.code(), cli.bytes("r/samples.jsonl").len()), (Some(2), 512 * blocks), "{err}");
    cli.ok(&format!("{args} --out r --resume auto"));
    for name in ["samples.jsonl", "model.safetensors"] {
        assert!(cli.bytes(&format!("r/{name}")) == cli.bytes(&format!("peace/{name}")), "{name}");
    }
    assert_eq!(rows(&cli, "r"), rows(&cli, "peace"));
}
