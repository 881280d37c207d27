//! The pair ledger: its numbers against the metrics of the same steps and against the formulas, its bytes however a run was cut,
//! stopped or gone on with, and what a reader refuses.

use crate::cli_common;

use cli_common::*;
use fusedpo::backend::cpu::Cpu;
use fusedpo::data::shard::{Dataset, Split};
use fusedpo::loss::{LossSpec, LossType, Pair, Param, Rule, Term};
use fusedpo::observe::Silent;
use fusedpo::train::choices::Resume;
use fusedpo::train::ledger::{HEADER_LEN, HasReference, Ledger, LedgerChoice, PairRecord, RECORD_LEN};
use fusedpo::train::options::{Stage, TrainOptions};
use fusedpo::train::run::train;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::Command;

/// Data whose pairs have weights, and prompts of several pairs.
fn cli() -> Cli {
    let cli = Cli::new();
    // Other weights each time.
    let mut draw = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as usize;
    let mut rows = pairs(20);
    for (i, row) in rows.iter_mut().enumerate() {
        row["weight"] = json!([0.5, 1.0, 2.25][draw % 3]);
        draw /= 3;
        if i % 4 == 3 {
            row["prompt"] = json!("w5 w6 w7");
        }
    }
    cli.write_rows("rows.jsonl", &rows);
    cli.ok("pack --tokenizer m --input rows.jsonl --out d");
    cli
}

fn run(cli: &Cli, out: &str, more: &str, resume: bool) -> TrainOptions {
    let [model, data, to] = ["m", "d", out].map(|p| cli.path(p).display().to_string());
    let text = format!(
        "model = '{model}'\ndata = '{data}'\nout = '{to}'\nlearning_rate = 2e-3\nbatch_size = 5\nnum_train_epochs = 2.0\n\
         {more}\n"
    );
    let text = if more.contains("token_budget") { text } else { text + "token_budget = 64\n" };
    let mut options = TrainOptions::from_table(Stage::Dpo, &text.parse().unwrap()).unwrap();
    options.resume.resume = resume.then_some(Resume::Auto);
    train(&Cpu::<f32>::new().unwrap(), &options, &mut Silent).unwrap_or_else(|e| panic!("{out}: {e}"));
    options
}

fn records(cli: &Cli, out: &str) -> Vec<PairRecord> {
    Ledger::open(&cli.path(out)).unwrap().unwrap().records().to_vec()
}

/// Weight and lengths of every pair.
fn known(cli: &Cli) -> BTreeMap<u64, (f64, [f64; 2])> {
    let data = Dataset::open(&cli.path("d"), Split::Train).unwrap();
    let of = |id: u64| {
        let g = data.group(id);
        let len = |i: usize| g.response(i).tokens.len() as f64;
        g.pairs().map(|p| (p.id, (f64::from(p.weight), [len(p.chosen), len(p.rejected)]))).collect::<Vec<_>>()
    };
    (0..data.num_groups()).flat_map(of).collect()
}

/// What formulas see of a record.
fn seen(r: &PairRecord, [chosen_len, rejected_len]: [f64; 2]) -> Pair {
    let (chosen, rejected, ref_chosen, ref_rejected) = (r.chosen, r.rejected, r.ref_chosen, r.ref_rejected);
    Pair { chosen, rejected, ref_chosen, ref_rejected, chosen_len, rejected_len, ..Pair::ZERO }
}

#[track_caller]
fn near(what: &str, got: f64, want: f64) {
    assert!((got - want).abs() <= 5e-6 * want.abs().max(1.0), "{what}: {got}, not {want}");
}

/// The means of a step's records are its metrics, whose numbers came another way; each record's loss and coefficients are what the
/// formula gives at its log-probs.
#[test]
fn records_are_what_the_metrics_are_means_of() {
    let cli = cli();
    let known = known(&cli);
    let tokens = |t: &Term| matches!(t.def().rule, Rule::Tokens);
    for (name, more) in [
        ("sigmoid", "label_smoothing = 0.1"),
        ("ipo", "loss_type = 'ipo'\nbeta = 0.5"),
        ("mpo", "loss_type = ['sigmoid', 'bco_pair', 'sft']\nloss_weights = [0.8, 0.2, 1.5]"),
        ("js", "f_divergence_type = 'js_divergence'"),
        ("simpo", "loss_type = 'simpo'"),
        ("aot", "loss_type = 'aot'"),
        ("beta_dpo", "loss_type = 'beta_dpo'"),
    ] {
        let options = run(&cli, name, more, false);
        let (spec, records) = (options.loss(), records(&cli, name));
        let ledger = Ledger::open(&cli.path(name)).unwrap().unwrap();
        assert_eq!(ledger.epochs(), [0, 1], "{name}");
        for epoch in 0..2 {
            let mut ids: Vec<u64> = ledger.epoch(epoch).iter().map(|r| r.pair).collect();
            ids.sort_unstable();
            assert_eq!(ids, known.keys().copied().collect::<Vec<_>>(), "{name}: every pair once in epoch {epoch}");
        }
        assert_eq!(ledger.header().reference() == HasReference::Yes, spec.reference());
        let steps = cli.json_lines(&format!("{name}/metrics.jsonl"));
        let steps: Vec<Value> = steps.into_iter().filter(|row| row.get("loss").is_some()).collect();
        for (of, row) in records.chunk_by(|a, b| a.step == b.step).zip(&steps) {
            assert_eq!(row["step"], of[0].step, "{name}");
            assert!(of.is_sorted_by_key(|r| r.pair), "{name}");
            let mean = |f: &dyn Fn(&PairRecord) -> f64| of.iter().map(f).sum::<f64>() / of.len() as f64;
            let metric = |key: &str| row[key].as_f64().unwrap();
            near(name, mean(&|r| r.chosen), metric("logps/chosen"));
            near(name, mean(&|r| r.rejected), metric("logps/rejected"));
            near(name, mean(&|r| f64::from(r.margin)), metric("rewards/margins"));
            // A loss of tokens is a mean over those of the step, and not over pairs.
            if !spec.terms().iter().any(tokens) {
                let weight = |r: &PairRecord| known[&r.pair].0;
                let sum: f64 = of.iter().map(|r| weight(r) * f64::from(r.loss)).sum();
                near(name, sum / of.iter().map(weight).sum::<f64>(), metric("loss"));
            }
        }
        assert_eq!(steps.last().unwrap()["step"], records.last().unwrap().step);
        if spec.scope() == fusedpo::loss::Scope::Group {
            for r in &records {
                by_formula(name, &spec, r, known[&r.pair].1);
            }
        }
    }
    assert!(records(&cli, "beta_dpo").iter().any(|r| r.coef_chosen == 0.0), "some are left out");
    let moved = |r: &PairRecord| r.coef_chosen < 0.0 && r.coef_rejected > 0.0;
    assert!(records(&cli, "beta_dpo").iter().any(moved) && records(&cli, "aot").iter().all(moved));
}

fn by_formula(name: &str, spec: &LossSpec, r: &PairRecord, lens: [f64; 2]) {
    let at = |p: &Pair| {
        let term = |t: &Term| {
            let by = if matches!(t.def().rule, Rule::Tokens) { 1.0 / p.chosen_len } else { 1.0 };
            t.weight * by * spec.of_pair(t, p).loss
        };
        spec.terms().iter().map(term).sum::<f64>()
    };
    let p = seen(r, lens);
    near(name, f64::from(r.loss), at(&p));
    let d = 1e-5;
    let chosen = |d: f64| at(&Pair { chosen: p.chosen + d, ..p });
    let rejected = |d: f64| at(&Pair { rejected: p.rejected + d, ..p });
    near(name, f64::from(r.coef_chosen), (chosen(d) - chosen(-d)) / (2.0 * d));
    near(name, f64::from(r.coef_rejected), (rejected(d) - rejected(-d)) / (2.0 * d));
}

/// The coefficients of a loss of the whole step, against that loss's formula at the step's records.
#[test]
fn coefficients_of_a_whole_step_are_without_its_mean() {
    let cli = cli();
    let options = run(&cli, "aot", "loss_type = 'aot'\nbeta = 0.3", false);
    let (known, beta) = (known(&cli), options.loss().terms()[0].params[Param::Beta]);
    assert_eq!(beta, 0.3);
    for of in records(&cli, "aot").chunk_by(|a, b| a.step == b.step) {
        let sorted = |f: fn(&PairRecord) -> f64| {
            let mut all: Vec<f64> = of.iter().map(f).collect();
            all.sort_by(f64::total_cmp);
            all
        };
        let (policy, reference) = (sorted(|r| r.chosen - r.rejected), sorted(|r| r.ref_chosen - r.ref_rejected));
        for r in of {
            let at = policy.iter().position(|m| *m == r.chosen - r.rejected).unwrap();
            let d = policy[at] - reference[at];
            near("aot", f64::from(r.coef_chosen), -beta / (1.0 + (beta * d).exp()));
            near("aot", f64::from(r.coef_rejected), beta / (1.0 + (beta * d).exp()));
            assert!(known[&r.pair].0 > 0.0);
        }
    }
}

#[test]
fn the_same_bytes_however_a_run_was_cut() {
    let cli = cli();
    let bytes = |out: &str| cli.bytes(&format!("{out}/ledger.bin"));
    run(&cli, "whole", "save_steps = 3\nsave_total_limit = 0", false);
    let whole = bytes("whole");
    assert_eq!((whole.len() - HEADER_LEN) % RECORD_LEN, 0);
    // Its step 3 onwards again; behind the file's end there is half a record, as of a killed run.
    std::fs::remove_dir_all(cli.path("whole/checkpoint-6")).unwrap();
    let last = |n: usize| cli.path(&format!("whole/checkpoint-{n}"));
    (7..20).for_each(|n| drop(std::fs::remove_dir_all(last(n))));
    cli.write("whole/ledger.bin", [&whole[..], &[7; 40]].concat());
    assert_eq!(
        Ledger::open(&cli.path("whole")).unwrap().unwrap().records().len() * RECORD_LEN,
        whole.len() - HEADER_LEN
    );
    cli.edit_json("whole/run.json", |run| run["outcome"] = "running".into());
    run(&cli, "whole", "save_steps = 3\nsave_total_limit = 0", true);
    assert!(bytes("whole") == whole, "after going on");
    // Without a checkpoint it begins again.
    for n in [3, 6] {
        std::fs::remove_dir_all(last(n)).unwrap();
    }
    cli.edit_json("whole/run.json", |run| run["outcome"] = "running".into());
    run(&cli, "whole", "save_steps = 3\nsave_total_limit = 0", true);
    assert!(bytes("whole") == whole, "after beginning again");
    // Other micro-batches: the same pairs in the same order, with numbers that differ as their updates round otherwise.
    run(&cli, "wide", "token_budget = 300", false);
    let (wide, narrow) = (records(&cli, "wide"), records(&cli, "whole"));
    let first = narrow.iter().filter(|r| r.step == 1).count();
    assert_eq!(wide[..first], narrow[..first], "before the first update, to the bit");
    assert_eq!(wide.len(), narrow.len());
    for (a, b) in wide.iter().zip(&narrow) {
        assert_eq!((a.pair, a.step, a.epoch), (b.pair, b.step, b.epoch));
        near("in one micro-batch", a.chosen, b.chosen);
    }
    // Going on without one leaves what there was; going on with one again leaves a gap.
    std::fs::remove_dir_all(last(6)).unwrap();
    (7..20).for_each(|n| drop(std::fs::remove_dir_all(last(n))));
    cli.edit_json("whole/run.json", |run| run["outcome"] = "running".into());
    run(&cli, "whole", "save_steps = 3\nsave_total_limit = 0\nledger = 'off'", true);
    assert!(whole.starts_with(&bytes("whole")) && bytes("whole").len() < whole.len());
    assert_eq!(records(&cli, "whole").last().unwrap().step, 3);
}

#[test]
fn a_ledger_that_was_changed_ends_going_on() {
    let cli = cli();
    let more = "save_steps = 3\nsave_total_limit = 0";
    run(&cli, "r", more, false);
    let resume = "dpo --config r/config.toml --out r --resume r/checkpoint-3";
    let whole = cli.bytes("r/ledger.bin");
    let mut other = whole.clone();
    other[HEADER_LEN + 20] ^= 1;
    let why = "does not begin as it did when r/checkpoint-3 was saved: put back what was there, or take it away, and a new one begins here";
    for bytes in [&other[..], &whole[..100]] {
        cli.write("r/ledger.bin", bytes);
        cli.bad(resume, 2, &format!("r/ledger.bin: {why}"));
    }
    cli.write("r/ledger.bin", &whole);
    cli.ok(resume);
    assert!(cli.bytes("r/ledger.bin") == whole);
}

#[test]
fn a_reader_refuses_what_is_damaged() {
    let cli = cli();
    run(&cli, "r", "", false);
    let whole = cli.bytes("r/ledger.bin");
    let open = |bytes: &[u8]| {
        cli.write("r/ledger.bin", bytes);
        Ledger::open(&cli.path("r")).map(|l| l.unwrap().records().len()).map_err(|e| e.to_string())
    };
    let all = (whole.len() - HEADER_LEN) / RECORD_LEN;
    for len in (0..whole.len()).step_by(13) {
        match open(&whole[..len]) {
            Ok(n) => assert_eq!(n, (len - HEADER_LEN) / RECORD_LEN),
            Err(e) => assert!(len < HEADER_LEN && e.contains("is no ledger of pairs"), "{len}: {e}"),
        }
    }
    for at in 0..HEADER_LEN {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        let e = open(&bytes).unwrap_err();
        let want = if at < 8 {
            "is no ledger"
        } else if at < 12 {
            "of version"
        } else {
            "has a damaged header"
        };
        assert!(e.contains(want), "{at}: {e}");
    }
    for (at, want) in [(7, "is of pair"), (8, "at step"), (12, "of epoch")] {
        let mut bytes = whole.clone();
        bytes[HEADER_LEN + RECORD_LEN * (all / 2) + at] = if at == 8 { 0 } else { 200 };
        let e = open(&bytes).unwrap_err();
        assert!(e.contains("is damaged: record") && e.contains(want), "{e}");
    }
    std::fs::remove_file(cli.path("r/ledger.bin")).unwrap();
    assert!(Ledger::open(&cli.path("r")).unwrap().is_none());
}

#[test]
fn only_where_there_are_pairs() {
    let cli = cli();
    run(&cli, "off", "ledger = 'off'", false);
    assert!(!cli.path("off/ledger.bin").exists());
    for (choice, loss, keeps) in [
        (LedgerChoice::Auto, LossType::Sigmoid, true),
        (LedgerChoice::On, LossType::PlackettLuce, true),
        (LedgerChoice::Off, LossType::Sigmoid, false),
        (LedgerChoice::Auto, LossType::Kto, false),
        (LedgerChoice::Auto, LossType::Sft, false),
    ] {
        let mut options = TrainOptions::default();
        options.ledger.ledger = choice;
        assert_eq!(options.ledger.keeps(&LossSpec::of(loss)), keeps, "{choice} {loss}");
    }
    cli.bad(
        "dpo --model m --data d --out r --loss-type kto --ledger on",
        2,
        "--ledger has no effect: it is of pairs, and the kto loss reads single responses; leave it out",
    );
}

#[test]
fn the_python_twin_reads_the_same() {
    let exe = std::env::var("FUSEDPO_PYTHON").unwrap_or_else(|_| "python3".into());
    if !Command::new(&exe).args(["-c", "import numpy"]).output().is_ok_and(|o| o.status.success()) {
        println!("skipped: scripts/ledger.py (no python3 with numpy; FUSEDPO_PYTHON names one)");
        return;
    }
    let cli = cli();
    run(&cli, "r", "", false);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/ledger.py");
    let python = |args: &str| {
        let out =
            Command::new(&exe).args(["-B", script]).args(args.split(' ')).current_dir(cli.path("")).output().unwrap();
        (out.status.code().unwrap(), String::from_utf8([out.stdout, out.stderr].concat()).unwrap())
    };
    let (code, shown) = python("show r --epoch 1");
    assert_eq!(code, 0, "{shown}");
    let lines: Vec<Value> = shown.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let run_json: Value = serde_json::from_str(&cli.text("r/run.json")).unwrap();
    assert_eq!(lines[0], json!({"num_pairs": 20, "data_sha256": run_json["sha256"]["data"], "reference": true}));
    let ledger = Ledger::open(&cli.path("r")).unwrap().unwrap();
    assert_eq!(lines.len() - 1, ledger.epoch(1).len());
    for (line, r) in lines[1..].iter().zip(ledger.epoch(1)) {
        let want = json!({
            "pair": r.pair, "step": r.step, "epoch": r.epoch, "chosen": r.chosen, "rejected": r.rejected,
            "ref_chosen": r.ref_chosen, "ref_rejected": r.ref_rejected, "margin": f64::from(r.margin),
            "loss": f64::from(r.loss), "coef_chosen": f64::from(r.coef_chosen), "coef_rejected": f64::from(r.coef_rejected),
        });
        assert_eq!(*line, want);
    }
    assert_eq!(python("verify r").0, 0);
    let whole = cli.bytes("r/ledger.bin");
    cli.write("r/ledger.bin", &whole[..HEADER_LEN + 100]);
    assert!(python("verify r").1.contains(": 1 records of 20 pairs"));
    let mut bad = whole.clone();
    bad[HEADER_LEN + 8] = 0;
    cli.write("r/ledger.bin", &bad);
    assert_eq!(
        python("show r"),
        (2, "error: r/ledger.bin: is damaged: record 0 is of pair 0 at step 0 of epoch 0\n".into())
    );
    bad[40] ^= 1;
    cli.write("r/ledger.bin", &bad);
    assert_eq!(python("verify r/ledger.bin"), (2, "error: r/ledger.bin: has a damaged header\n".into()));
}
