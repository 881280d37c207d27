//! What the stages of a recipe take from one another, and what is known before the first of them.

use crate::cli_common;

use cli_common::*;
use serde_json::Value;

const RUNS: &str = "[sft]\nmodel = \"m\"\nmax_steps = 2\ndevice = \"cpu\"\n[dpo]\nmax_steps = 2\ndevice = \"cpu\"\n";

fn manifest(cli: &Cli, out: &str) -> Value {
    serde_json::from_str(&cli.text(&format!("{out}/manifest.json"))).unwrap()
}

/// A stage's line of the manifest.
fn stage(cli: &Cli, name: &str) -> Value {
    let all = manifest(cli, "o");
    all["stages"].as_array().unwrap().iter().find(|s| s["stage"] == name).unwrap().clone()
}

fn command(cli: &Cli, name: &str) -> Vec<String> {
    stage(cli, name)["command"].as_array().unwrap().iter().map(|w| w.as_str().unwrap().to_owned()).collect()
}

fn made(ran: &Ran) -> usize {
    ran.out.lines().filter(|l| !l.ends_with(" is there") && l.contains(": ")).count()
}

/// Sidecars that a stage writes beside given data do not make them other data.
#[test]
fn given_data_are_read_as_they_are() {
    let cli = Cli::with_data();
    let text =
        "[reference]\n[dpo]\nmodel = \"m\"\ndata = \"d\"\nmax_steps = 2\ndevice = \"cpu\"\n[eval]\nkl_samples = 0\n";
    cli.write("r.toml", text);
    assert_eq!(made(&cli.ok("run r.toml --out o")), 3);
    assert!(!cli.names("d", ".ref-").is_empty());
    for stage in ["reference", "dpo", "eval"] {
        let words = command(&cli, stage);
        assert!(words.contains(&"--data=d".to_owned()) && words.contains(&"--device=cpu".to_owned()), "{words:?}");
    }
    let before = cli.bytes("o/manifest.json");
    let again = cli.ok("run r.toml --out o");
    assert_eq!((made(&again), cli.bytes("o/manifest.json") == before), (0, true), "{again:?}");
    // Nor does a model become another by what is written beside it.
    cli.write("m/run.log", "x");
    assert_eq!(made(&cli.ok("run r.toml --out o")), 0);
    // As a run of its own, with the reference that was there.
    cli.ok("dpo --model m --data d --max-steps 2 --device cpu --out own");
    let dpo = format!("o/{}", stage(&cli, "dpo")["result"].as_str().unwrap());
    assert!(cli.bytes("own/model.safetensors") == cli.bytes(&format!("{dpo}/model.safetensors")));
}

/// The reference is what dpo starts from, wherever dpo has it from; and eval computes as dpo does.
#[test]
fn a_reference_borrows_what_dpo_starts_from() {
    let cli = Cli::with_data();
    cli.ok("sft --model m --data d --max-steps 1 --device cpu --lora-r 2 --out a");
    let has = |stage: &str, word: &str| {
        let words = command(&cli, stage);
        assert!(words.contains(&word.to_owned()), "{stage}: no {word} in {words:?}");
    };
    // An adapter beside a model that another stage made.
    cli.write(
        "r.toml",
        "[sft]\nmodel = \"m\"\ndata = \"d\"\nmax_steps = 1\ndevice = \"cpu\"\n[reference]\n\
         [dpo]\nadapter = \"a\"\ndata = \"d\"\nmax_steps = 1\ndevice = \"cpu\"\ntoken_budget = 64\ncache = \"c\"\n[eval]\nkl_samples = 0\n",
    );
    let ran = cli.ok("run r.toml --out o");
    let model = format!("--model=o/{}", stage(&cli, "sft")["result"].as_str().unwrap());
    for (stage, words) in [("reference", &["--adapter=a", "--data=d"][..]), ("eval", &["--data=d"])] {
        words.iter().chain(&["--cache=c", "--token-budget=64", &model]).for_each(|word| has(stage, word));
    }
    // The run found what the stage had made, and made no other. (To eval an adapter's reference is the model without it.)
    assert_eq!(cli.names("c", "train-").len(), 1, "{ran:?}");
    assert_eq!(stage(&cli, "reference")["inputs"].as_object().unwrap().len(), 2, "the adapter and the data");
    // A reference of its own has no adapter.
    cli.write("r.toml", cli.text("r.toml").replace("adapter = \"a\"\n", "adapter = \"a\"\nref_model = \"m\"\n"));
    cli.ok("run r.toml --out o");
    has("reference", "--model=m");
    has("eval", "--ref-model=m");
    assert!(!command(&cli, "reference").iter().any(|w| w.starts_with("--adapter")));
}

#[test]
fn what_later_stages_need_is_looked_for_before_the_first() {
    let cli = Cli::new();
    cli.write_rows("rows.jsonl", &pairs(8));
    let pack = "[pack]\ninput = [\"rows.jsonl\"]\n";
    for (more, want) in [
        ("[eval]\nref_model = \"none\"\n", "[eval]: --ref-model none"),
        ("[eval]\ndata = \"none\"\n", "[eval]: --data none"),
        ("[export]\nadapter = \"none\"\n", "[export]: --adapter none"),
        ("[quantize]\nmodel = \"./none/x\"\n", "[quantize]: --model ./none/x"),
    ] {
        cli.write("r.toml", format!("{pack}{RUNS}{more}"));
        let want = format!("r.toml: {want}: is not there; name what is, or put it there first");
        cli.bad("run r.toml --out o", 2, &want);
    }
    for (was, is, want) in [
        ("[dpo]\n", "[dpo]\nref_model = \"none\"\n", "[dpo]: --ref-model none"),
        ("[sft]\n", "[sft]\neval_data = [\"x=none\"]\n", "[sft]: --eval-data none"),
        ("rows.jsonl", "none.jsonl", "[pack]: --input none.jsonl"),
    ] {
        cli.write("r.toml", format!("{pack}{RUNS}").replace(was, is));
        let want = format!("r.toml: {want}: is not there; name what is, or put it there first");
        cli.bad("run r.toml --out o", 2, &want);
    }
}

/// Data sets of evaluations are a run's inputs too.
#[test]
fn what_is_evaluated_on_decides() {
    let cli = Cli::with_data();
    cli.write_rows("more.jsonl", &pairs(9));
    cli.ok("pack --tokenizer m --input more.jsonl --out e");
    cli.write("r.toml", "[sft]\nmodel = \"m\"\ndata = \"d\"\neval_data = [\"x=e\"]\nmax_steps = 1\ndevice = \"cpu\"\n");
    cli.ok("run r.toml --out o");
    assert!(stage(&cli, "sft")["inputs"]["e"].is_string());
    assert_eq!(made(&cli.ok("run r.toml --out o")), 0);
    std::fs::remove_dir_all(cli.path("e")).unwrap();
    cli.write_rows("more.jsonl", &pairs(10));
    cli.ok("pack --tokenizer m --input more.jsonl --out e");
    assert_eq!(made(&cli.ok("run r.toml --out o")), 1);
}

#[test]
fn a_result_is_quantized() {
    let cli = Cli::new();
    cli.write_rows("rows.jsonl", &pairs(24));
    let text =
        format!("[pack]\ninput = [\"rows.jsonl\"]\neval_fraction = 0.25\n{RUNS}[quantize]\ndouble_quant = true\n");
    cli.write("r.toml", &text);
    cli.ok("run r.toml --out o");
    let result = |name: &str| format!("o/{}", stage(&cli, name)["result"].as_str().unwrap());
    cli.ok(&format!("quantize --model {} --double-quant --out q", result("dpo")));
    assert!(cli.bytes("q/model.safetensors") == cli.bytes(&format!("{}/model.safetensors", result("quantize"))));
    assert!(stage(&cli, "quantize")["outputs"]["model.safetensors"].is_string());
    // An adapter is merged first.
    let lora = text.replace("model = \"m\"\n", "model = \"m\"\nlora_r = 2\n");
    cli.write("r.toml", &lora);
    cli.bad(
        "run r.toml --out o",
        2,
        "r.toml: [quantize]: what was trained is an adapter; give [export] too, which merges it into its base",
    );
    cli.write("r.toml", lora + "[export]\n");
    cli.ok("run r.toml --out o");
    cli.ok(&format!("quantize --model {} --double-quant --out q2", result("export")));
    assert!(cli.bytes("q2/model.safetensors") == cli.bytes(&format!("{}/model.safetensors", result("quantize"))));
}
