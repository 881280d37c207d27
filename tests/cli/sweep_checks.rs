//! A sweep's row is of one model; what lies damaged is made again; and what cannot be, or would be in vain, is said before anything is trained.

use crate::cli_common;

use cli_common::*;
use serde_json::{Value, json};

const BASE: &str = "model = \"m\"\ndata = \"d\"\ndevice = \"cpu\"\nlearning_rate = 1e-3\nmax_steps = 2\n";
const GRID: &str = "[grid]\nseed = [1]\n[sweep]\n";
const LENGTH: &str = "scorer = [\"sh\", \"-c\", \"while read -r l; do echo ${#l}; done\"]\n";
const SHORT: &str = "max_new_tokens = 8\nkl_samples = 3\n";

fn row(cli: &Cli, out: &str, i: usize) -> Value {
    let all: Value = serde_json::from_str(&cli.text(&format!("{out}/sweep.json"))).unwrap();
    all["runs"][i].clone()
}

/// The file is refused with `want`, in one line, and nothing is made.
fn refused(cli: &Cli, text: &str, want: &str) {
    cli.write("s.toml", text);
    let before = cli.tree();
    let ran = cli.run("sweep s.toml --out o");
    assert!(ran.code == 2 && ran.err.starts_with(&format!("fusedpo: {want}")), "{text}: {ran:?}");
    assert_eq!((ran.err.lines().count(), cli.tree()), (1, before), "{text}: {ran:?}");
}

/// The best or the worst evaluation is kept: one of them is not the last.
#[test]
fn a_row_is_of_the_model_that_was_kept() {
    let cli = Cli::with_data();
    let base = BASE.replace("max_steps = 2", "max_steps = 12");
    let best = "eval_steps = 3\nsave_steps = 3\nload_best_model_at_end = true\nmetric_for_best_model = \"eval_loss\"\n";
    cli.write("s.toml", format!("{base}{best}[grid]\ngreater_is_better = [true, false]\n[sweep]\nkl_samples = 0\n"));
    cli.ok("sweep s.toml --out o");
    let mut before_the_end = 0;
    for i in 0..2 {
        let row = row(&cli, "o", i);
        let out = format!("o/{}", row["name"].as_str().unwrap());
        let run: Value = serde_json::from_str(&cli.text(&format!("{out}/run.json"))).unwrap();
        let (step, value) = (run["best"]["step"].as_u64().unwrap(), run["best"]["value"].as_f64().unwrap());
        let last = rows(&cli, &out).iter().filter_map(|r| r["eval_loss"].as_f64()).next_back().unwrap();
        before_the_end += usize::from(step < 12 && value != last);
        assert_eq!((row["eval_loss"].as_f64(), row["steps"].as_u64()), (Some(value), Some(12)), "{row}");
        // The accuracy beside it is of that model, which has that loss.
        let eval = cli.ok(&format!(
            "eval --model {out} --ref-model m --data d --device cpu --loss-type sigmoid --beta 0.1 --kl-samples 0 --json"
        ));
        assert_eq!(row["accuracy"], eval.json()["accuracy"]);
        assert!((eval.json()["loss"].as_f64().unwrap() - value).abs() < 1e-6, "{eval:?} {value}");
    }
    assert!(before_the_end > 0);
}

#[test]
fn damaged_responses_are_drawn_again() {
    let cli = Cli::with_data();
    cli.write("s.toml", format!("{BASE}{GRID}{LENGTH}samples = 5\n{SHORT}"));
    cli.ok("sweep s.toml --out o");
    let file = "o/seed-1/generations.jsonl";
    let files = ["generations.jsonl", "scores.json", "measured.json"].map(|f| format!("o/seed-1/{f}"));
    let bytes = |cli: &Cli| files.iter().map(|f| cli.bytes(f)).collect::<Vec<_>>();
    let (whole, want, table) = (cli.text(file), bytes(&cli), cli.text("o/sweep.json"));
    let lines: Vec<&str> = whole.lines().collect();
    for (damaged, why) in [
        (lines[..3].join("\n") + "\n", "has 3 lines, and there are 5 prompts"),
        (whole[..whole.len() - 9].to_owned(), "has 5 lines, the last of them cut short, and there are 5 prompts"),
        (String::new(), "has 0 lines, and there are 5 prompts"),
        (whole.replacen(lines[1], lines[2], 1), "has a line 2 that is no response to its prompt"),
    ] {
        cli.write(file, damaged);
        // Its scores may be gone as well, or still say what they said.
        let _ = std::fs::remove_file(cli.path("o/seed-1/scores.json"));
        let ran = cli.ok("sweep s.toml --out o");
        let told = format!("warning: seed-1: {file} {why}: responses are drawn again\n");
        assert!(ran.err.contains(&told), "{told}: {ran:?}");
        assert!(bytes(&cli) == want && cli.text("o/sweep.json") == table, "{why}");
    }
    let ran = cli.ok("sweep s.toml --out o");
    assert!(!ran.err.contains("drawn again"), "{ran:?}");
}

#[test]
fn what_a_key_takes_is_said_by_its_name() {
    let cli = Cli::with_data();
    for (line, want) in [
        ("kl_samples = -4", "`kl_samples` is -4, not a whole number, 0 or more"),
        ("kl_samples = 1.5", "`kl_samples` is 1.5, not a whole number, 0 or more"),
        (
            "scorer = \"python3 x.py\"",
            "`scorer` is \"python3 x.py\", not a list of a program and its arguments, as in [",
        ),
        ("reward = \"foo\"", "`reward` is \"foo\", not \"demo\""),
        ("prompts = 3", "`prompts` is 3, not the name of a file"),
        ("scorers = 3", "`scorers` is none of what this table has: draws, draw_seed, reward, scorer, "),
        ("kl_samples = 0\nmax_new_tokens = 8", "`max_new_tokens` has no effect: with `kl_samples` 0 and without "),
        ("kl_samples = 0\nsample_seed = 8", "`sample_seed` has no effect: with `kl_samples` 0 and without "),
        (
            "reward = \"demo\"\ntemperature = 0\ntop_p = 0.5",
            "`top_p` has no effect: with `temperature` 0 the likeliest ",
        ),
    ] {
        refused(&cli, &format!("{BASE}{GRID}{line}\n"), &format!("s.toml: [sweep]: {want}"));
    }
    for (axis, want) in [
        (
            "beta = { min = 0.1, max = 1, steps = 10000 }",
            "`beta` has 9001 different numbers in four digits at `steps` 10000",
        ),
        (
            "batch_size = { min = 4, max = 8, steps = 9 }",
            "`batch_size` has 5 different whole numbers at `steps` 9; lower it",
        ),
    ] {
        refused(&cli, &format!("{BASE}[grid]\n{axis}\n"), &format!("s.toml: [grid]: {want}"));
    }
}

#[test]
fn what_a_run_would_refuse_is_refused_before_the_first() {
    let cli = Cli::with_data();
    let scored = format!("{BASE}{GRID}reward = 'demo'\nprompts = 'p.jsonl'\n{SHORT}");
    cli.write("p.jsonl", "");
    refused(&cli, &scored, "p.jsonl: has no row: there is no prompt to continue");
    cli.write_rows("p.jsonl", &[json!({ "prompt": words(1, 4) }), json!({ "prompt": "" })]);
    refused(&cli, &scored, "p.jsonl: the prompt of row 1 has no tokens: nothing to continue");
    cli.write("score.sh", "echo 1\n");
    for (program, want) in [
        ("./no-such-program", "`scorer` ./no-such-program: is not there; name a program that is"),
        ("no-such-program-anywhere", "`scorer` no-such-program-anywhere: no folder of PATH has such a program"),
        (
            "./score.sh",
            "`scorer` ./score.sh: is not executable; make it so, or name the program that reads it before it",
        ),
        ("./d", "`scorer` ./d: is not there"),
    ] {
        let text = format!("{BASE}{GRID}scorer = [\"{program}\"]\n{SHORT}");
        refused(&cli, &text, &format!("s.toml: [sweep]: {want}"));
    }
    let train = format!("{BASE}[grid]\ntrain = [\"layers\", \"zzz\"]\n");
    refused(&cli, &train, "s.toml: run train-zzz: `train` zzz: no parameter of the model has such a name; ");
    cli.write("plans.json", "{}");
    let plans = "`matmul_plans`: the CPU has one algorithm for products; leave it out, or use `device` cuda";
    refused(&cli, &format!("{BASE}matmul_plans = \"plans.json\"\n{GRID}"), &format!("s.toml: run seed-1: {plans}"));
    refused(&cli, &format!("{BASE}logits_dtype = \"bf16\"\n{GRID}"), "s.toml: run seed-1: ");
}

#[test]
fn gpus_are_refused_where_there_is_none() {
    let cli = Cli::with_data();
    cli.write("s.toml", format!("{}{GRID}kl_samples = 0\n", BASE.replace("device = \"cpu\"\n", "")));
    if std::path::Path::new("/dev/nvidiactl").exists() || std::env::var_os("CUDA_VISIBLE_DEVICES").is_some() {
        return println!("skipped: a machine without a GPU (this one may have one)");
    }
    for gpus in ["0", "0,0"] {
        cli.bad(
            &format!("sweep s.toml --out o --gpus {gpus}"),
            2,
            "--gpus has no effect: no GPU can be used here, and every run is on the CPU (--device); leave it out",
        );
    }
    assert!(!cli.path("o").exists());
}
