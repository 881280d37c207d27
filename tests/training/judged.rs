//! Losses of a whole step in whole runs: gradients of both times through the model against finite differences, metrics against
//! formulas written here, and the files that the reference of mismatched rows is kept in.

use crate::cli_common;
use crate::host;
use crate::model_common;

use cli_common::*;
use fusedpo::backend::cpu::{Cpu, GemmPrecision};
use fusedpo::backend::gpu::Gpu;
use fusedpo::backend::{Backend, Device};
use fusedpo::batch::{Batches, Capacity, MicroBatch, ResponseSlot, Role};
use fusedpo::data::plan::{Objective, PlanOptions, Planner};
use fusedpo::data::shard::{Dataset, Split};
use fusedpo::loss::{LossSpec, LossType, Param, Running, Term};
use fusedpo::model::{Model, ModelDir};
use fusedpo::observe::{Event, Flow, Observe, Silent};
use fusedpo::train::engine::{Engine, Purpose};
use fusedpo::train::loss_options::LossTypes;
use fusedpo::train::means;
use fusedpo::train::metrics::Totals;
use fusedpo::train::options::{
    DataOptions, EvalOptions, FileOptions, LossOptions, ReferenceOptions, SaveOptions, Stage, TrainOptions,
};
use fusedpo::train::run::train;
use fusedpo::train::schedule::ScheduleOptions;
use fusedpo::train::whole_step::{self, Taking};
use model_common::{cpu64, norm, read};
use serde_json::{Value, json};

/// `n` judged answers to about half as many prompts.
fn judged(n: usize) -> Vec<Value> {
    let row = |i: usize| {
        json!({
            "prompt": format!("w{}{}", 3 + (i / 2) % 94, words(i / 2 + 1, 3 + (i / 2) % 5)),
            "completion": words(i + 100, 2 + i % 7),
            "label": i % 3 != 1,
        })
    };
    (0..n).map(row).collect()
}

fn packed(rows: &[Value], more: &str) -> Cli {
    let cli = Cli::new();
    cli.write_rows("rows.jsonl", rows);
    cli.ok(&format!("pack --tokenizer m --input rows.jsonl --out d {more}"));
    cli
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// What the reference is made to say of a response: near the policy, and different for each.
fn drift(slot: &ResponseSlot, towards: f64) -> f64 {
    let own = (slot.id * 37 % 11) as f64 * 0.6 - 3.0;
    if slot.role.is_mismatched() { towards } else { own }
}

struct Step {
    first: Vec<MicroBatch>,
    second: Vec<MicroBatch>,
    totals: Totals,
    grads: Vec<f64>,
}

/// The first step of `data` under `spec`, both times through the model.
fn step(engine: &mut Engine<'_, Cpu<f64>>, plan: &Planner<'_>, spec: &LossSpec, towards: f64) -> Step {
    let mut first = plan.first(0, 0).unwrap();
    for mb in &mut first {
        let mut policy = engine.score(mb).unwrap().into_iter();
        mb.set_ref_logps(|slot| Ok(policy.next().unwrap() - drift(slot, towards))).unwrap();
    }
    let mut first = Batches::from(first);
    let scales = means::scales(first.all(), spec);
    let how = Taking { spec, scales, seed: [1, 1], trains: true, proves: false };
    let totals = whole_step::first(engine, &mut first, how, &mut Running::default()).unwrap();
    let second = whole_step::second(&first, || Ok(plan.step(0, 0)?.into())).unwrap();
    engine.clear_grads().unwrap();
    second.iter().for_each(|mb| engine.start_given(mb, spec, scales).unwrap());
    let n = engine.state.model.table.len;
    let grads = read(engine.be, engine.state.grads.as_ref().unwrap().all().unwrap(), n);
    Step { first: first.own, second, totals, grads }
}

/// Gradients against central differences of `loss`, which sees each response's log-prob in the order of `of`, for weights all
/// over the model.
fn hold(engine: &mut Engine<'_, Cpu<f64>>, of: &[MicroBatch], grads: &[f64], loss: &dyn Fn(&[Vec<f64>]) -> f64) {
    let n = engine.state.model.table.len;
    let weights = read(engine.be, &engine.state.model.weights, n);
    let size = norm(grads) / (n as f64).sqrt();
    assert!(size > 0.0);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| grads[*b].abs().total_cmp(&grads[*a].abs()));
    // The steepest, and some anywhere.
    for i in order[..6].iter().copied().chain((0..n).step_by(n / 12)) {
        let mut at = |by: f64| {
            let value = [weights[i] + by];
            engine.be.upload(engine.be.view_mut(&mut engine.state.model.weights, i..i + 1), &value).unwrap();
            let scores: Vec<Vec<f64>> = of.iter().map(|mb| engine.score(mb).unwrap()).collect();
            loss(&scores)
        };
        let numeric = (at(1e-5) - at(-1e-5)) / 2e-5;
        at(0.0);
        assert!(
            (numeric - grads[i]).abs() <= 1e-6 * (size + grads[i].abs()),
            "weight {i}: {}, not {numeric}",
            grads[i]
        );
    }
}

fn planner(data: &Dataset, objective: Objective, batch_size: usize, budget: usize) -> Planner<'_> {
    let o = PlanOptions { objective, batch_size, token_budget: Some(budget), seed: 5, shuffle: true };
    Planner::new(data, &o).unwrap()
}

fn with_engine(cli: &Cli, plan: &Planner<'_>, then: impl FnOnce(&mut Engine<'_, Cpu<f64>>)) {
    let be = cpu64();
    let model = Model::load(&be, &ModelDir::open(&cli.path("m")).unwrap(), plan.longest_row()).unwrap();
    then(&mut Engine::with_head_rows(&be, model, plan.capacity(), Purpose::Train, 11).unwrap());
}

#[test]
fn gradients_of_judgements() {
    for (rows, name) in [(judged(14), "labels"), (pairs(8), "pairs")] {
        let cli = packed(&rows, "");
        let data = Dataset::open(&cli.path("d"), Split::Train).unwrap();
        let plan = planner(&data, Objective::Judgement, 12, 40);
        with_engine(&cli, &plan, |engine| {
            for towards in [1.7, -0.8] {
                let (beta, desirable, undesirable) = (0.35, 1.2, 0.7);
                let spec = LossSpec::of(LossType::Kto).beta(beta).with(Param::DesirableWeight, desirable);
                let spec = spec.with(Param::UndesirableWeight, undesirable);
                let s = step(engine, &plan, &spec, towards);
                assert!(s.first.len() > 2 && s.second.len() > 1, "{name}: several micro-batches");
                assert!(s.second.iter().flat_map(MicroBatch::responses).all(|r| !r.role.is_mismatched()));
                let z = towards.max(0.0);
                assert!((s.totals.kl().unwrap() - z).abs() < 1e-9, "{name}: {:?}", s.totals.kl());
                // The references and weights of the second time's responses.
                let known: std::collections::HashMap<u64, f64> = s
                    .first
                    .iter()
                    .flat_map(MicroBatch::responses)
                    .filter(|r| !r.role.is_mismatched())
                    .map(|r| (r.id, r.ref_logp))
                    .collect();
                let slots: Vec<Vec<ResponseSlot>> = s.second.iter().map(|mb| mb.responses().to_vec()).collect();
                let loss = |scores: &[Vec<f64>]| {
                    let (mut sum, mut over) = (0.0, 0.0);
                    for (slot, logp) in slots.iter().flatten().zip(scores.iter().flatten()) {
                        let Role::Own { desirable: d, undesirable: u } = slot.role else { unreachable!() };
                        let x = beta * (logp - known[&slot.id] - z);
                        sum += f64::from(d) * desirable * (1.0 - sigmoid(x))
                            + f64::from(u) * undesirable * (1.0 - sigmoid(-x));
                        over += f64::from(d) + f64::from(u);
                    }
                    sum / over
                };
                let scores: Vec<Vec<f64>> = s.second.iter().map(|mb| engine.score(mb).unwrap()).collect();
                assert!((loss(&scores) - s.totals.mean_loss()).abs() < 1e-12, "{name}: {}", s.totals.mean_loss());
                hold(engine, &s.second, &s.grads, &loss);
            }
        });
    }
}

#[test]
fn gradients_of_sorted_margins() {
    let cli = packed(&pairs(9), "");
    let data = Dataset::open(&cli.path("d"), Split::Train).unwrap();
    let plan = planner(&data, Objective::Preference, 7, 40);
    with_engine(&cli, &plan, |engine| {
        for (types, weights) in [
            (vec![LossType::Aot], vec![1.0]),
            (vec![LossType::AotUnpaired], vec![1.0]),
            (vec![LossType::Aot, LossType::Sft], vec![0.7, 0.4]),
            (vec![LossType::Sigmoid, LossType::AotUnpaired], vec![0.2, 2.0]),
        ] {
            let terms: Vec<Term> =
                types.iter().zip(&weights).map(|(l, w)| Term { weight: *w, ..Term::of(*l) }).collect();
            let spec = LossSpec::sum(&terms).beta(0.4);
            let s = step(engine, &plan, &spec, 0.0);
            assert!(s.first.len() > 1);
            let batches = &s.first;
            let loss = |scores: &[Vec<f64>]| sum_of_losses(&types, &weights, 0.4, batches, scores);
            let scores: Vec<Vec<f64>> = batches.iter().map(|mb| engine.score(mb).unwrap()).collect();
            assert!((loss(&scores) - s.totals.mean_loss()).abs() < 1e-12, "{types:?}");
            hold(engine, &s.second, &s.grads, &loss);
        }
    });
}

/// The losses by their formulas, at weight 1 of every pair.
fn sum_of_losses(types: &[LossType], weights: &[f64], beta: f64, batches: &[MicroBatch], scores: &[Vec<f64>]) -> f64 {
    let mut all: Vec<[f64; 4]> = Vec::new();
    let (mut nll, mut tokens) = (0.0, 0.0);
    for (mb, scores) in batches.iter().zip(scores) {
        for p in mb.pairs() {
            let [w, l] = [p.chosen, p.rejected].map(|i| i as usize);
            all.push([scores[w], scores[l], mb.responses()[w].ref_logp, mb.responses()[l].ref_logp]);
            nll -= scores[w];
            tokens += mb.responses()[w].predictions.len() as f64;
        }
    }
    let sorted = |of: &dyn Fn(&[f64; 4]) -> f64| {
        let mut all: Vec<f64> = all.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let logistic = |m: f64| (-beta * m).exp().ln_1p();
    let against =
        |a: Vec<f64>, b: Vec<f64>| a.iter().zip(&b).map(|(a, b)| logistic(a - b)).sum::<f64>() / a.len() as f64;
    let one = |l: &LossType| match l {
        LossType::Aot => against(sorted(&|p| p[0] - p[1]), sorted(&|p| p[2] - p[3])),
        LossType::AotUnpaired => against(sorted(&|p| p[0] - p[2]), sorted(&|p| p[1] - p[3])),
        LossType::Sft => nll / tokens,
        LossType::Sigmoid => all.iter().map(|p| logistic(p[0] - p[2] - p[1] + p[3])).sum::<f64>() / all.len() as f64,
        _ => unreachable!(),
    };
    types.iter().zip(weights).map(|(l, w)| w * one(l)).sum()
}

fn options(cli: &Cli, types: &[LossType], out: &str) -> TrainOptions {
    let o = TrainOptions {
        files: FileOptions { model: cli.path("m"), data: cli.path("d"), out: cli.path(out) },
        reference: ReferenceOptions { cache: Some(cli.path(&format!("cache-{out}"))), ..Default::default() },
        loss: LossOptions { loss_type: LossTypes(types.to_vec()), ..Default::default() },
        schedule: ScheduleOptions { learning_rate: 1e-3, ..Default::default() },
        data: DataOptions { batch_size: 5, max_steps: Some(6), token_budget: Some(64), ..Default::default() },
        eval: EvalOptions { eval_steps: 3, ..Default::default() },
        save: SaveOptions { save_steps: Some(2), ..Default::default() },
        ..Default::default()
    };
    o.resolve(Stage::Dpo).unwrap()
}

/// Two steps on the kernels, compared with those on the CPU.
fn kernels_agree(cli: &Cli, types: &[LossType], name: &str, cpu: &[Value], keys: &[&str]) {
    let Some(driver) = host::deferred_driver(3) else { return };
    let out = format!("{name}-kernels");
    let mut c = options(cli, types, &out);
    // Of the schedule's six steps the first two.
    struct Two;
    impl Observe for Two {
        fn on(&mut self, event: &Event<'_>) -> fusedpo::Result<Flow> {
            let done = matches!(event, Event::Step { step: 2, .. });
            if done { Err(fusedpo::Error::Training("enough".into())) } else { Ok(Flow::On) }
        }
    }
    c.save.save_steps = None;
    assert_eq!(train(&Gpu::<_, f32>::new(driver).unwrap(), &c, &mut Two).unwrap_err().to_string(), "enough");
    let kernels = rows(cli, &out);
    for key in keys {
        let (want, got) = (column(cpu, key), column(&kernels, key));
        assert!(!got.is_empty(), "{name} {key}");
        for (want, got) in want.iter().zip(got) {
            assert!((want - got).abs() <= 2e-3 * want.abs().max(0.05), "{name} {key}: {want} {got}");
        }
    }
}

/// The run, run again, and gone on with from its fourth step: the same numbers and weights.
fn the_same_again<B: Backend>(be: &dyn Fn() -> B, cli: &Cli, types: &[LossType], name: &str) -> Vec<Value> {
    struct Crash;
    impl Observe for Crash {
        fn on(&mut self, event: &Event<'_>) -> fusedpo::Result<Flow> {
            match event {
                Event::Step { step: 5, .. } => Err(fusedpo::Error::Training("crash".into())),
                _ => Ok(Flow::On),
            }
        }
    }
    let [one, two, crash] = ["one", "two", "crash"].map(|what| format!("{name}-{what}"));
    train(&be(), &options(cli, types, &one), &mut Silent).unwrap();
    train(&be(), &options(cli, types, &two), &mut Silent).unwrap();
    let mut c = options(cli, types, &crash);
    assert_eq!(train(&be(), &c, &mut Crash).unwrap_err().to_string(), "crash");
    c.resume.resume = Some(fusedpo::train::choices::Resume::Auto);
    train(&be(), &c, &mut Silent).unwrap();
    for other in [&two, &crash] {
        assert_eq!(rows(cli, &one), rows(cli, other), "{other}");
        assert!(
            cli.bytes(&format!("{one}/model.safetensors")) == cli.bytes(&format!("{other}/model.safetensors")),
            "{other}"
        );
    }
    rows(cli, &one)
}

fn column(rows: &[Value], key: &str) -> Vec<f64> {
    rows.iter().filter_map(|r| r.get(key)?.as_f64()).collect()
}

fn f32s() -> Cpu<f32> {
    Cpu::with(GemmPrecision::Native).unwrap()
}

#[test]
fn judgements_of_labels_and_of_pairs() {
    for (data, name) in [(judged(40), "labels"), (pairs(20), "pairs")] {
        let cli = packed(&data, "--eval-fraction 0.25");
        let cpu = the_same_again(&f32s, &cli, &[LossType::Kto], name);
        // Policy and reference are the same: z is 0, and every judgement's loss 1 - sigmoid(0).
        assert_eq!((column(&cpu, "loss")[0], column(&cpu, "kl")[0]), (0.5, 0.0), "{name}");
        assert_eq!((column(&cpu, "eval_loss")[0], column(&cpu, "eval_kl_mismatched")[0]), (0.5, 0.0), "{name}");
        for key in ["rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected", "kl"] {
            let n = column(&cpu, key).len();
            let evaluated = if key == "kl" { "eval_kl_mismatched".to_owned() } else { format!("eval_{key}") };
            assert!(n > 2 && column(&cpu, &evaluated).len() == 3, "{name} {key}: {n}");
        }
        assert!(column(&cpu, "kl").iter().all(|z| *z >= 0.0) && column(&cpu, "loss")[5] < 0.5, "{cpu:?}");
        kernels_agree(
            &cli,
            &[LossType::Kto],
            name,
            &cpu,
            &["loss", "eval_loss", "kl", "grad_norm", "rewards/chosen", "logps/rejected"],
        );
    }
}

#[test]
fn sorted_and_dynamic_losses_of_pairs() {
    let cli = packed(&pairs(24), "--eval-fraction 0.25");
    let sums: [&[LossType]; 4] =
        [&[LossType::Aot], &[LossType::AotUnpaired], &[LossType::BetaDpo], &[LossType::Aot, LossType::Sft]];
    for types in sums {
        let name = types.iter().map(|l| l.def().name).collect::<Vec<_>>().join("-");
        let cpu = the_same_again(&f32s, &cli, types, &name);
        let losses = column(&cpu, "loss");
        assert!(losses.iter().all(|l| l.is_finite()) && losses[5] < losses[0], "{name}: {losses:?}");
        if types.len() == 1 {
            assert!((losses[0] - std::f64::consts::LN_2).abs() < 1e-12, "{name}: {losses:?}");
            kernels_agree(&cli, types, &name, &cpu, &["loss", "eval_loss", "grad_norm", "rewards/margins"]);
        }
    }
}

/// Refused in one line that says so, and nothing of `out` is there.
#[track_caller]
fn refused(cli: &Cli, args: &str, out: &str, want: &str) {
    let ran = cli.run(args);
    assert!(ran.code == 2 && ran.out.is_empty(), "{ran:?}");
    let last = ran.err.lines().last().unwrap();
    assert!(last.starts_with("fusedpo: ") && last.contains(want), "{want}: {ran:?}");
    assert!(!cli.path(out).exists(), "{out}");
}

const KTO: &str =
    "--model m --data d --loss-type kto --device cpu --dtype f32 --learning-rate 1e-3 --batch-size 5 --max-steps 3";

#[test]
fn mismatched_rows_are_kept_found_checked_and_pruned() {
    let cli = packed(&judged(30), "--eval-fraction 0.3");
    let said = |ran: &Ran, what: &str| assert!(ran.err.contains(what), "{what}: {}", ran.err);
    said(&cli.ok(&format!("dpo {KTO} --out a")), "mismatched rows (a prompt with a response to another) computed");
    let files = cli.names("d", ".mismatched-");
    assert_eq!(files.len(), 2, "one a split: {files:?}");
    let again = cli.ok(&format!("dpo {KTO} --out b"));
    said(&again, "mismatched rows (a prompt with a response to another) found");
    assert!(!again.err.contains("another) computed"));
    assert_eq!(rows(&cli, "a"), rows(&cli, "b"));
    // Whole or refused: every byte counts.
    let file = format!("d/{}", files.iter().find(|f| f.starts_with("train")).unwrap());
    let whole = cli.bytes(&file);
    for at in [0, 8, 20, 60, 120, 370, 382, 384, 400, 415, whole.len() - 9, whole.len() - 5, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        cli.write(&file, &damaged);
        refused(&cli, &format!("dpo {KTO} --out c"), "c", "delete it, and the reference pass makes it again");
    }
    for len in [0, 100, 384, whole.len() - 1] {
        cli.write(&file, &whole[..len]);
        refused(&cli, &format!("dpo {KTO} --out c"), "c", "delete it, and the reference pass makes it again");
    }
    cli.write(&file, &whole);
    let ran = cli.ok("eval --model a --data d --device cpu --dtype f32 --kl-samples 0 --json");
    let row: Value = serde_json::from_str(&ran.out).unwrap();
    let last = column(&rows(&cli, "a"), "eval_loss").pop().unwrap();
    // Its steps are larger than the run's, and so is what it estimates z from.
    assert!((row["loss"].as_f64().unwrap() - last).abs() < 0.02, "{row} {last}");
    for key in ["rewards/chosen", "rewards/rejected", "kl_mismatched"] {
        assert!(row[key].is_number(), "{key}: {row}");
    }
    cli.model("other", "llama");
    cli.ok("reference --model m --data d --device cpu --dtype f32 --prune");
    assert_eq!(cli.names("d", ".mismatched-").len(), 2, "those of this model stay");
    // Another content of the shards.
    cli.write_rows("rows.jsonl", &pairs(20));
    cli.ok("pack --tokenizer m --input rows.jsonl --out e --eval-fraction 0.3");
    for f in cli.names("e", ".pref") {
        cli.write(&format!("d/{f}"), cli.bytes(&format!("e/{f}")));
    }
    cli.ok("reference --model m --data d --device cpu --dtype f32 --prune");
    assert_eq!(cli.names("d", ".mismatched-"), [""; 0]);
}

#[test]
fn what_does_not_go_together_is_one_line() {
    let cli = packed(&judged(12), "");
    let kto = |more: &str| format!("dpo {KTO} --out x {more}");
    refused(&cli, "dpo --model m --data d --out x --device cpu", "x", "use --loss-type kto");
    refused(&cli, &kto("--batch-size 1").replace("--batch-size 5 ", ""), "x", "--batch-size 1: kto compares");
    refused(&cli, &kto("--label-smoothing 0.1"), "x", "--label-smoothing: not defined for --loss-type kto");
    refused(&cli, &kto("--desirable-weight -1"), "x", "--desirable-weight -1: must be a finite number, 0 or more");
    refused(&cli, &kto("").replace("kto", "kto,sft"), "x", "it stands alone");
    let plain: Vec<Value> = (0..6).map(|i| json!({"prompt": format!("w{}", i + 3), "completion": " w9"})).collect();
    cli.write_rows("plain.jsonl", &plain);
    cli.ok("pack --tokenizer m --input plain.jsonl --out p");
    refused(&cli, &kto("").replace("--data d", "--data p"), "x", "no judgement: pack rows with a label");
}

#[test]
fn the_plan_knows_rows_longer_than_the_data() {
    // A long prompt with a short answer, a short one with a long answer.
    let row = |p: usize, c: usize, i: usize| json!({"prompt": format!("w{}{}", 3 + i, words(i, p)), "completion": words(i + 9, c), "label": i.is_multiple_of(2)});
    let rows = [row(30, 2, 0), row(2, 30, 1), row(3, 3, 2), row(4, 3, 3)];
    let cli = packed(&rows, "");
    let data = Dataset::open(&cli.path("d"), Split::Train).unwrap();
    let o = PlanOptions { objective: Objective::Judgement, batch_size: 4, token_budget: None, seed: 0, shuffle: true };
    let plan = Planner::new(&data, &o).unwrap();
    assert!(plan.longest_row() > data.longest_row() + 20, "{} {}", plan.longest_row(), data.longest_row());
    assert!(plan.least_budget() >= plan.longest_row());
    let Capacity { responses, predictions, .. } = plan.capacity();
    assert!(responses >= 8 && predictions >= 80, "{responses} {predictions}");
    // Every order of the four, with a budget of the largest row.
    let least = plan.least_budget();
    for seed in 0..6 {
        cli.ok(&format!("dpo {KTO} --out r{seed} --seed {seed} --token-budget {least}"));
    }
    let small = least - 1;
    refused(&cli, &format!("dpo {KTO} --out r --token-budget {small}"), "r", &format!("needs {least} token slots"));
}
