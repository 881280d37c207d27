//! Every option that is typed has its effect: each is changed alone, and what it must change does change. The table names every
//! option of the commands' own help, so that a new one is written here too.

use crate::cli_common;

use cli_common::*;
use fusedpo::loss::{LossSpec, LossType, Param};
use serde_json::Value;
use std::collections::BTreeSet;

/// What a changed option must do to a run.
#[derive(Clone, Copy)]
enum Changes {
    /// Other weights, metrics of the same form.
    Weights,
    /// The same weights to the bit; other lines on stderr with this in them.
    Words(&'static str),
    /// The same weights to the bit; another number of rows of metrics.
    Rows,
    /// The same numbers in another element type.
    Dtype,
    /// The same weights to the bit, and a file that is not there without.
    File(&'static str),
    /// The same weights to the bit, and without a file of RUN that is there else.
    NoFile(&'static str),
    /// The same weights and metrics: what it changes is held by tests/resume.rs.
    Same,
    /// Of a run that trains an adapter: another one.
    Adapter,
    /// A refusal that names what was asked for.
    Refusal(&'static str),
}

use Changes::*;

/// Options of `sft` and `dpo`, each as it is added to the base run.
const TRAIN: &[(&str, &str, Changes)] = &[
    ("--learning-rate", "2e-3", Weights),
    ("--lr-scheduler-type", "cosine", Weights),
    ("--warmup-steps", "3", Weights),
    ("--warmup-ratio", "0.5", Weights),
    ("--weight-decay", "0.3", Weights),
    ("--max-grad-norm", "0.05", Weights),
    ("--adam-beta1", "0.5", Weights),
    ("--adam-beta2", "0.9", Weights),
    ("--adam-epsilon", "1e-3", Weights),
    ("--optim", "rmsprop", Weights),
    ("--gradient-dtype", "bf16 --dtype bf16", Weights),
    ("--train", "mlp", Weights),
    ("--adapter", "m", Refusal("no adapter")),
    ("--lora-r", "2", Adapter),
    ("--lora-alpha", "3", Adapter),
    ("--lora-dropout", "0.1", Refusal("--lora-dropout: only an adapter has it")),
    ("--lora-target-modules", "q_proj", Adapter),
    ("--use-rslora", "", Adapter),
    ("--lora-init", "gaussian", Adapter),
    ("--quantize", "nf4", Refusal("--lora-r")),
    ("--double-quant", "", Refusal("--quantize")),
    ("--batch-size", "5", Weights),
    ("--lanes", "2", Weights),
    ("--token-budget", "40", Words("40 token slots")),
    ("--fit", "", Words("token budget 512, as --fit asks")),
    ("--max-steps", "3", Weights),
    ("--num-train-epochs", "2", Weights),
    ("--dtype", "bf16", Weights),
    ("--save-dtype", "bf16", Dtype),
    ("--seed", "43", Weights),
    ("--save-steps", "2", Words(": saved ")),
    ("--report-to", "none", NoFile("events.out.tfevents.fusedpo")),
    ("--save-total-limit", "1", Same),
    ("--resume", "auto", Same),
    ("--allow-other-numerics", "", Refusal("--resume")),
    ("--device", "cuda", Refusal("--device cuda")),
    ("--logits-dtype", "bf16", Refusal("--logits-dtype bf16")),
    ("--eval-steps", "2", Rows),
    ("--eval-strategy", "no", Rows),
    ("--max-eval-samples", "4", Words("held out: the first 6 of 8 are evaluated")),
    ("--eval-data", "more=d", Words("evaluated as more: ")),
    ("--sample-prompts", "2", Words("2 continuations in samples.jsonl")),
    ("--sample-max-new-tokens", "3", Refusal("--sample-prompts")),
    ("--sample-temperature", "0.5", Refusal("--sample-prompts")),
    ("--load-best-model-at-end", "", Refusal("--eval-steps")),
    ("--metric-for-best-model", "loss", Refusal("--load-best-model-at-end")),
    ("--greater-is-better", "", Refusal("--load-best-model-at-end")),
    ("--early-stopping-patience", "2", Refusal("--eval-steps")),
    ("--early-stopping-threshold", "0.1", Refusal("--early-stopping-patience")),
    ("--gradient-checkpointing", "", Words("  gate_up")),
    ("--cuda-graphs", "on", Refusal("graphs")),
    ("--matmul-plans", "plans.json", Refusal("--matmul-plans")),
];

/// Options of `dpo` alone.
const DPO: &[(&str, &str, Changes)] = &[
    ("--ref-model", "other", Weights),
    ("--beta", "0.7", Weights),
    ("--loss-type", "ipo", Weights),
    ("--label-smoothing", "0.2", Weights),
    ("--loss-weights", "0.5", Weights),
    ("--f-divergence-type", "js_divergence", Weights),
    ("--f-alpha-divergence-coef", "0.3", Refusal("--f-divergence-type")),
    ("--ld-alpha", "0.3", Weights),
    ("--use-weighting", "", Weights),
    ("--ledger", "off", Same),
    ("--cache", "c", File("c")),
    // Before the first sync the reference is what the sidecars say, to the bit: tests/training/synced.rs has the syncs.
    ("--kl-samples", "3", Words("3 responses for the KL divergence")),
    ("--kl-max-new-tokens", "3", Refusal("--kl-samples")),
    ("--kl-budget", "2", Refusal("--kl-samples")),
    ("--sync-ref-model", "", Words("reference: ")),
    ("--ref-model-mixup-alpha", "0.3", Refusal("--sync-ref-model")),
    ("--ref-model-sync-steps", "3", Refusal("--sync-ref-model")),
];

/// Hyper-parameters that the base run's loss does not have, as options.
fn of_other_losses() -> Vec<String> {
    let others = Param::ALL.iter().filter(|p| !LossSpec::of(LossType::Sigmoid).has(**p));
    others.map(|p| format!("--{}", p.name().replace('_', "-"))).collect()
}

/// Whether this machine has no such device or precision, or, where a refusal is looked for, has it.
fn cannot(cli: &Cli, option: &str) -> bool {
    let doctor = cli.ok("doctor").out;
    let cannot = match option {
        "--dtype" | "--gradient-dtype" => doctor.contains("--dtype bf16: not here"),
        "--device" => !doctor.contains("gpu     none"),
        _ => false,
    };
    if cannot {
        println!("skipped: {option} among the options, on this machine");
    }
    cannot
}

/// `--name` of every option in a command's help.
fn listed(cli: &Cli, command: &str) -> BTreeSet<String> {
    let help = cli.ok(&format!("{command} --help")).out;
    let words = help.lines().filter_map(|l| l.split_whitespace().find(|w| w.starts_with("--")));
    // What every command takes is held by cli_say.
    let everywhere = ["--help", "--quiet", "--log-level", "--threads"];
    words.map(str::to_owned).filter(|w| !everywhere.contains(&w.as_str())).collect()
}

struct Run {
    err: String,
    weights: Vec<u8>,
    metrics: Vec<Value>,
}

fn run(cli: &Cli, args: &str, out: &str) -> Run {
    let err = cli.ok(&format!("{args} --out {out}")).err;
    let metrics = cli.json_lines(&format!("{out}/metrics.jsonl"));
    Run { err, weights: cli.bytes(&format!("{out}/model.safetensors")), metrics }
}

/// Without what the clock says.
fn without_times(rows: &[Value]) -> Vec<Value> {
    let mut rows = rows.to_vec();
    for row in rows.iter_mut().filter_map(Value::as_object_mut) {
        row.retain(|key, _| !key.contains("second") && !key.ends_with("_bytes"));
    }
    rows
}

fn dtype(weights: &[u8]) -> safetensors::Dtype {
    safetensors::SafeTensors::deserialize(weights).unwrap().iter().next().unwrap().1.dtype()
}

fn check(cli: &Cli, stage: &str, options: &[(&str, &str, Changes)]) {
    let base = format!("{stage} --model m --data d --device cpu --learning-rate 1e-3 --batch-size 3");
    let without = run(cli, &base, &format!("{stage}-base"));
    for (option, value, changes) in options {
        if cannot(cli, option) {
            continue;
        }
        let what = format!("{stage} {option} {value}");
        // A value of the base's own is replaced.
        let base = match base.find(option) {
            Some(at) => {
                let rest = base[at..].splitn(3, ' ').nth(2).unwrap_or_default();
                format!("{}{rest}", &base[..at])
            }
            None => base.clone(),
        };
        let (args, out) = (format!("{base} {option} {value}"), format!("{stage}{option}"));
        if let Refusal(word) = changes {
            let ran = cli.run(&format!("{args} --out {out}"));
            assert!(ran.code != 0 && ran.err.contains(word) && !cli.path(&out).exists(), "{what}: {ran:?}");
            continue;
        }
        if let Adapter = changes {
            let adapter = |args: &str, out: &str| {
                cli.ok(&format!("{args} --out {out}"));
                cli.bytes(&format!("{out}/adapter_model.safetensors"))
            };
            let more = if *option == "--lora-r" { "" } else { "--lora-r 3" };
            let without = adapter(&format!("{base} --lora-r 3"), &format!("{out}-without"));
            assert!(adapter(&format!("{args} {more}"), &out) != without, "{what} changes nothing");
            continue;
        }
        let with = run(cli, &args, &out);
        let same = with.weights == without.weights;
        match changes {
            Weights => assert!(!same, "{what} changes nothing"),
            Words(word) => {
                assert!(with.err.contains(word), "{what}: {}", with.err);
                let said = |r: &Run| r.err.lines().filter(|l| l.contains(word)).map(str::to_owned).collect::<Vec<_>>();
                assert_ne!(said(&with), said(&without), "{what}: nothing else is said");
                // Micro-batches of another size add up in another order.
                assert!(same || *option == "--token-budget", "{what} must not change the weights");
            }
            Same => {
                assert!(same, "{what} must not change the weights");
                assert_eq!(without_times(&with.metrics), without_times(&without.metrics), "{what}");
            }
            Rows => {
                assert!(same, "{what} must not change the weights");
                assert_ne!(with.metrics.len(), without.metrics.len(), "{what}");
            }
            Dtype => {
                assert_eq!(
                    (dtype(&with.weights), dtype(&without.weights)),
                    (safetensors::Dtype::BF16, safetensors::Dtype::F32)
                );
                assert_eq!(
                    without_times(&with.metrics),
                    without_times(&without.metrics),
                    "{what} must not change the run"
                );
            }
            File(name) => {
                assert!(same, "{what} must not change the weights");
                assert!(!cli.names(name, ".ref-").is_empty(), "{what}: nothing in {name}");
            }
            NoFile(name) => {
                assert!(same, "{what} must not change the weights");
                assert_eq!(without_times(&with.metrics), without_times(&without.metrics), "{what}");
                let there = |run: &str| cli.path(&format!("{run}/{name}")).exists();
                assert!(!there(&out) && there(&format!("{stage}-base")), "{what}: {name}");
            }
            Adapter | Refusal(_) => unreachable!("handled above"),
        }
    }
}

#[test]
fn options_of_training() {
    let cli = Cli::with_data();
    cli.model("other", "qwen3");
    let common: BTreeSet<String> = ["--model", "--data", "--out", "--config"].map(str::to_owned).into();
    let others = of_other_losses();
    let refused = others.iter().map(|name| (name.as_str(), "0.37", Refusal("--loss-type")));
    for (stage, options) in
        [("sft", TRAIN.to_vec()), ("dpo", TRAIN.iter().chain(DPO).copied().chain(refused).collect())]
    {
        let named = options.iter().map(|(name, ..)| (*name).to_owned()).chain(common.clone()).collect();
        assert_eq!(listed(&cli, stage), named, "{stage}: the help and this table");
        check(&cli, stage, &options);
    }
    // `--config` is the table's last: every key of a run's own file, out of which another run is made.
    cli.ok("dpo --config dpo--beta/config.toml --out again");
    assert!(cli.bytes("again/model.safetensors") == cli.bytes("dpo--beta/model.safetensors"));
}

/// Optimisers with small states: each gives other weights than every other, the same ones twice, and what they cannot be combined
/// with is refused before anything is made.
#[test]
fn small_optimiser_states() {
    let cli = Cli::with_data();
    let base = "sft --model m --data d --device cpu --learning-rate 1e-3 --batch-size 3 --max-steps 3";
    let refused = |args: &str, want: &str| {
        let ran = cli.run(&format!("{base} {args} --out none"));
        assert_eq!((ran.code, ran.err.trim_end()), (2, want), "{args}");
        assert!(!cli.path("none").exists(), "{args}");
    };
    for (name, and) in [("adamw_bf16", ""), ("adamw_8bit", "--gradient-dtype bf16")] {
        let want =
            format!("fusedpo: --optim {name} keeps weights in bf16, and products are in f32 here: give --dtype bf16");
        refused(&format!("--optim {name} --dtype f32"), &want);
        refused(&format!("--optim {name} {and}"), &want);
    }
    let why =
        "--gradient-dtype bf16 sums up what is multiplied in bf16, and products are in f32 here: give --dtype bf16";
    refused("--gradient-dtype bf16", &format!("fusedpo: {why}"));
    let why = "--gradient-dtype bf16: an adapter's gradients are small, and summed up in f32; leave it out";
    refused("--gradient-dtype bf16 --dtype bf16 --lora-r 2", &format!("fusedpo: {why}"));
    for (option, value) in [("--optim", "adamw_4bit"), ("--gradient-dtype", "f16")] {
        let ran = cli.run(&format!("{base} {option} {value} --out none"));
        assert!(ran.code == 2 && ran.err.contains(value) && !cli.path("none").exists(), "{ran:?}");
    }
    let ran = cli.run("dpo --model m --data d --optim adamw_bf16 --dtype bf16 --sync-ref-model --out none");
    assert!(
        ran.code == 2 && ran.err.contains("--optim adamw_bf16: a reference that follows (--sync-ref-model)"),
        "{ran:?}"
    );
    if cannot(&cli, "--dtype") {
        return;
    }
    let mut all = Vec::new();
    for (i, args) in [
        "",
        "--optim adamw_bf16",
        "--optim adamw_bf16 --seed 43",
        "--optim adamw_8bit",
        "--gradient-dtype bf16",
        "--optim adamw_8bit --gradient-dtype bf16",
        "--optim adamw_bf16 --gradient-dtype bf16 --train mlp",
    ]
    .iter()
    .enumerate()
    {
        let weights = |again: &str| run(&cli, &format!("{base} --dtype bf16 {args}"), &format!("o{i}{again}")).weights;
        all.push(weights(""));
        assert!(weights("-again") == all[i], "{args}: twice the same");
        assert!(!all[..i].contains(&all[i]), "{args} changes nothing");
    }
    // Another name for the same; and an adapter trains with small states, too.
    let named = run(&cli, &format!("{base} --dtype bf16 --optim adamw_torch"), "named");
    assert!(named.weights == all[0]);
    cli.ok(&format!("{base} --dtype bf16 --optim adamw_8bit --lora-r 2 --out adapter"));
    assert!(cli.path("adapter/adapter_model.safetensors").exists());
}

/// Each hyper-parameter changes the runs and the evaluations of a loss that has it.
#[test]
fn hyper_parameters_change_their_losses() {
    let cli = Cli::new();
    let row = |i: usize| {
        let responses = [format!("w{} w9 w{} w4", 5 + i, 20 + i), format!("w{} w12", 5 + i)];
        serde_json::json!({"prompt": format!("w{} w7", 8 + i), "responses": responses, "scores": [i + 1, 0]})
    };
    cli.write_rows("rows.jsonl", &(0..12).map(row).collect::<Vec<_>>());
    cli.ok("pack --tokenizer m --input rows.jsonl --out d --eval-fraction 0.3");
    cli.model("other", "qwen3");
    // Against another model, so that margins are not all 0 at first; one that chosen responses are likelier under.
    let common = "--model other --data d --device cpu --dtype f32 --learning-rate 1e-3 --batch-size 4 --max-steps 3";
    for param in Param::ALL {
        let has = |l: &&LossType| LossSpec::of(**l).has(*param) && **l != LossType::Sigmoid;
        let loss = LossType::EVERY.iter().find(has).expect("a loss has it");
        let reference = if loss.def().reference { "--ref-model m" } else { "" };
        let train = format!("dpo {common} {reference} --loss-type {loss}");
        let weights = |more: &str, out: &str| {
            let out = format!("{out}-{}", param.name());
            cli.ok(&format!("{train} {more} --out {out}"));
            cli.bytes(&format!("{out}/model.safetensors"))
        };
        let given = format!("--{} 0.37", param.name().replace('_', "-"));
        assert!(weights("", "without") != weights(&given, "with"), "{train} {given}: the same weights");
    }
}

/// Commands that print or write one result: each option changes it.
#[test]
fn options_of_the_other_commands() {
    let cli = Cli::with_data();
    cli.model("other", "qwen3");
    cli.write("template.jinja", "{% for m in messages %}w9 {{ m.content }}{% endfor %}");
    cli.write("prompts.jsonl", "{\"prompt\":\"w7 w8\"}\n");
    let eval = "eval --model other --ref-model m --data d --device cpu --json";
    let generate = "generate --model m --device cpu --prompt w5 --max-new-tokens 12 --temperature 1";
    let score = "score --model m --data d --device cpu --overwrite --out s.jsonl";
    let table: [(&str, &[&str], &str, &[&str]); 3] = [
        (
            eval,
            &[
                "--model m",
                "--quantize nf4",
                "--ref-model other",
                "--beta 0.7",
                "--loss-type hinge",
                "--label-smoothing 0.2",
                "--loss-weights 0.5",
                "--f-divergence-type js_divergence",
                "--ld-alpha 0.3",
                "--use-weighting",
                "--kl-samples 3",
                "--kl-max-new-tokens 5",
                "--seed 43",
                "--dtype bf16",
            ],
            "eval",
            // Form of the output, place of files, memory; not numbers.
            &[
                "--adapter",
                "--double-quant",
                "--data",
                "--json",
                "--cache",
                "--token-budget",
                "--device",
                "--logits-dtype",
                "--f-alpha-divergence-coef",
            ],
        ),
        (
            generate,
            &[
                "--model other",
                "--prompt w6",
                "--max-new-tokens 3",
                "--temperature 0.2",
                "--top-p 0.1",
                "--num-return-sequences 2",
                "--seed 43",
                "--chat-template template.jinja",
            ],
            "generate",
            // Wrapping needs a template: tests/cli_tokens.
            &[
                "--adapter",
                "--quantize",
                "--double-quant",
                "--input",
                "--out",
                "--overwrite",
                "--dtype",
                "--device",
                "--wrap-prompts",
            ],
        ),
        (
            score,
            &["--model other", "--quantize nf4", "--per-token", "--dtype bf16"],
            "score",
            &[
                "--adapter",
                "--double-quant",
                "--data",
                "--out",
                "--overwrite",
                "--token-budget",
                "--device",
                "--logits-dtype",
            ],
        ),
    ];
    for (base, changed, command, elsewhere) in table {
        let named = changed.iter().map(|c| c.split(' ').next().unwrap()).chain(elsewhere.iter().copied());
        let losses = if command == "eval" { of_other_losses() } else { Vec::new() };
        let named = named.map(str::to_owned).chain(losses).collect();
        assert_eq!(listed(&cli, command), named, "{command}: the help and this table");
        let result = |args: &str| {
            let out = cli.ok(args).out;
            if command == "score" { cli.text("s.jsonl") } else { out }
        };
        let without = result(base);
        assert_eq!(without, result(base), "{base}: twice the same");
        for change in changed {
            let option = change.split(' ').next().unwrap();
            if cannot(&cli, option) {
                continue;
            }
            let args = match base.split_once(&format!("{option} ")) {
                Some((before, after)) => {
                    let rest = after.split_once(' ').map_or("", |(_, rest)| rest);
                    format!("{before}{change} {rest}")
                }
                None => format!("{base} {change}"),
            };
            assert!(result(&args) != without, "{args}: {option} changes nothing");
        }
    }
    let texts = cli.ok("generate --model m --input prompts.jsonl --max-new-tokens 3").out;
    assert!(texts.starts_with("{\"row\":0,"), "{texts}");
}

/// What the help calls the default is what a run without the option has, and says so in its config.toml.
#[test]
fn defaults_are_those_of_the_help() {
    let cli = Cli::with_data();
    for stage in ["sft", "dpo"] {
        cli.ok(&format!("{stage} --model m --data d --out {stage} --max-steps 1"));
        let written: toml::Table = cli.text(&format!("{stage}/config.toml")).parse().unwrap();
        // An option, and somewhere below it, before the next, its default.
        let help = cli.ok(&format!("{stage} --help")).out;
        let mut seen = 0;
        let mut option = "";
        for line in help.lines() {
            if let Some(name) = line.trim_start().strip_prefix("--") {
                option = name.split([' ', '[']).next().unwrap();
            }
            let Some((_, value)) = line.split_once("[default: ") else { continue };
            let value = value.split(']').next().unwrap();
            let Some(has) = written.get(&option.replace('-', "_")) else { continue };
            let same = match (has.as_float().or(has.as_integer().map(|i| i as f64)), has.as_str()) {
                (Some(has), _) => value.parse() == Ok(has),
                (_, Some(has)) => value == has,
                _ => value == has.to_string(),
            };
            assert!(same, "{stage}: --{option} is {has}, the help says {value}");
            seen += 1;
        }
        assert!(seen >= 15, "{seen} defaults of {stage} in\n{help}");
    }
}
