//! What a checkpoint keeps beside the tensors: what a run that goes on knows of the steps before. `tests/resume.rs` has the bytes.

use crate::cli_common;

use cli_common::*;
use fusedpo::Result;
use fusedpo::backend::cpu::{Cpu, GemmPrecision};
use fusedpo::observe::{Event, Flow, Observe};
use fusedpo::train::checkpoint::{Manifest, Plans};
use fusedpo::train::choices::Resume;
use fusedpo::train::options::{Stage, TrainOptions};
use fusedpo::train::run::{Ended, Summary, train};
use fusedpo::train::schedule::Schedule;
use serde_json::Value;

const BASE: &str = "--model m --data d --device cpu --learning-rate 1e-3 --batch-size 3 --dtype f32";

/// Pauses the run when it has seen what `when` looks for, and keeps the warnings.
struct Pauses<'a> {
    when: &'a dyn Fn(&Event<'_>) -> bool,
    warnings: Vec<String>,
}

impl Observe for Pauses<'_> {
    fn on(&mut self, event: &Event<'_>) -> Result<Flow> {
        if let Event::Warning(text) = event {
            self.warnings.push((*text).to_owned());
        }
        Ok(if (self.when)(event) { Flow::Pause } else { Flow::On })
    }
}

/// A run of six steps, saved at every second; nobody is warned of anything.
fn run(cli: &Cli, out: &str, resume: bool, limit: usize, when: &dyn Fn(&Event<'_>) -> bool) -> Result<Summary> {
    let mut c = TrainOptions::default();
    (c.files.model, c.files.data, c.files.out) = (cli.path("m"), cli.path("d"), cli.path(out));
    (c.schedule.learning_rate, c.data.batch_size, c.data.max_steps) = (1e-3, 3, Some(6));
    (c.save.save_steps, c.save.save_total_limit) = (Some(2), limit);
    c.resume.resume = resume.then_some(Resume::Auto);
    let mut observe = Pauses { when, warnings: Vec::new() };
    let be = Cpu::<f32>::with(GemmPrecision::Native).unwrap();
    let summary = train(&be, &c.resolve(Stage::Sft).unwrap(), &mut observe);
    assert_eq!(observe.warnings, Vec::<String>::new());
    summary
}

fn at(wanted: u64) -> impl Fn(&Event<'_>) -> bool {
    move |event| matches!(event, Event::Step { step, .. } if *step == wanted)
}

fn at_the_beginning(event: &Event<'_>) -> bool {
    matches!(event, Event::RunBegins { .. })
}

#[test]
fn a_pause_leaves_what_the_next_call_needs() {
    let cli = Cli::with_data();
    let whole = run(&cli, "whole", false, 0, &|_| false).unwrap();
    assert_eq!(cli.names("whole", "checkpoint-"), ["checkpoint-2", "checkpoint-4", "checkpoint-6"], "0: all");
    assert_eq!(cli.text("whole/checkpoint-4/config.toml"), cli.text("whole/config.toml"));
    // Before its first step there is nothing to go on from.
    let e = run(&cli, "r", false, 2, &at_the_beginning).unwrap_err().to_string();
    assert_eq!(e, "stopped before the first step; nothing was learned yet");
    assert!(!cli.path("r").exists());
    // Where its checkpoint was saved just now, it is not saved again.
    let paused = run(&cli, "r", false, 2, &at(4)).unwrap();
    assert_eq!((paused.ended, paused.steps, paused.checkpoint), (Ended::Paused, 4, Some(4)));
    // Nor where it goes on from there, and takes no step.
    let paused = run(&cli, "r", true, 2, &at_the_beginning).unwrap();
    assert_eq!((paused.ended, paused.steps, paused.checkpoint), (Ended::Paused, 4, Some(4)));
    cli.edit_json("r/run.json", |run| run["start"] = "2001-02-03T04:05:06Z".into());
    // Three calls, each from the checkpoint of the one before.
    run(&cli, "r", true, 2, &at(5)).unwrap();
    let last = run(&cli, "r", true, 2, &|_| false).unwrap();
    assert_eq!((last.ended, last.steps), (Ended::Finished, 6));
    assert!(cli.bytes("r/model.safetensors") == cli.bytes("whole/model.safetensors"));
    let [a, b] = [last, whole].map(|s| s.eval.unwrap());
    assert!(a == b, "the first evaluation is that of step 0");
    let record: Value = serde_json::from_str(&cli.text("r/run.json")).unwrap();
    assert_eq!(record["start"], "2001-02-03T04:05:06Z");
    assert_eq!(record["resumptions"].as_array().unwrap().len(), 3, "{record}");
    assert!(record["resumptions"].as_array().unwrap().iter().all(|r| r["before"] == "stopped"), "{record}");
}

/// Two steps were skipped before the checkpoint: one more is the third in a row.
#[test]
fn skipped_steps_are_counted_on() {
    let cli = Cli::with_data();
    let args = format!(
        "sft {} --lr-scheduler-type constant --max-steps 20 --save-steps 1 --out r",
        BASE.replace("1e-3", "1e30")
    );
    let first = cli.run(&args);
    let line = |ran: &Ran| ran.err.lines().last().unwrap_or_default().to_owned();
    assert!(
        line(&first).starts_with("fusedpo: no finite gradient in 3 steps in a row, the last was step 4"),
        "{first:?}"
    );
    let state: Value = serde_json::from_str(&cli.text("r/checkpoint-3/trainer_state.json")).unwrap();
    assert_eq!(state["saved"]["clock"]["skipped"], 2, "{state}");
    let again = cli.run(&format!("{args} --resume auto"));
    assert_eq!((again.code, line(&again)), (first.code, line(&first)));
}

/// Rows that only the held-out split has.
#[test]
fn other_held_out_data_are_other_data() {
    let cli = Cli::with_data();
    cli.ok(&format!("sft {BASE} --out r --max-steps 4 --save-steps 2 --lr-scheduler-type constant"));
    for i in 0..24 {
        let mut rows = pairs(24);
        rows[i]["rejected"] = " w9 w9 w9 w9 w9".into();
        cli.write_rows("rows.jsonl", &rows);
        cli.ok(&format!("pack --tokenizer m --input rows.jsonl --out d{i} --eval-fraction 0.25"));
        if cli.bytes(&format!("d{i}/train-00000.pref")) == cli.bytes("d/train-00000.pref") {
            let args = format!(
                "sft {} --out r --max-steps 6 --lr-scheduler-type constant --resume auto",
                BASE.replace("--data d", &format!("--data d{i}"))
            );
            let ran = cli.run(&args);
            let want = "fusedpo: r/checkpoint-4: was made with another content of the held-out shards";
            assert!(ran.code == 2 && ran.err.lines().last().unwrap().starts_with(want), "{ran:?}");
            return;
        }
    }
    panic!("no row is held out");
}

/// The file of tuned products only grows: what a run had chosen must stand in it still.
#[test]
fn tuned_products_may_grow() {
    let cli = Cli::with_data();
    run(&cli, "r", false, 2, &at(4)).unwrap();
    let mut saved = Manifest::read(&cli.path("r/checkpoint-4")).unwrap().saved;
    let mut c = TrainOptions::default();
    c.compute.matmul_plans = Some(cli.path("plans"));
    let now = saved.identity.clone();
    let schedule = Schedule::new(&c.schedule, saved.max_steps).unwrap();
    let mut why = |text: Option<&str>, plans: Option<Plans>| {
        if let Some(text) = text {
            cli.write("plans", text);
        }
        saved.identity.plans = plans;
        saved.identity.difference(&now, &c, &schedule, saved.max_steps)
    };
    cli.write("plans", "one\n");
    let plans = Plans::of(&cli.path("plans")).unwrap();
    assert_eq!(why(None, Some(plans.clone())), None);
    assert_eq!(why(Some("one\ntwo\n"), Some(plans.clone())), None);
    for text in ["One\ntwo\n", "on", ""] {
        let said = why(Some(text), Some(plans.clone())).unwrap();
        assert!(said.starts_with("its products' algorithms were others than in "), "{said}");
    }
    let said = why(None, None).unwrap();
    assert!(said.starts_with("it had no `options.matmul_plans`: leave it out"), "{said}");
    c.compute.matmul_plans = None;
    saved.identity.plans = Some(plans);
    let said = saved.identity.difference(&now, &c, &schedule, saved.max_steps).unwrap();
    assert!(said.starts_with("it had `options.matmul_plans`: give that file"), "{said}");
}

/// What a checkpoint holds is on the disk before it has its name, and so is the name before an older one loses its own.
#[test]
#[cfg(target_os = "linux")]
fn a_checkpoint_is_on_the_disk_before_it_has_its_name() {
    let cli = Cli::with_data();
    let mut command = std::process::Command::new("strace");
    command.args([
        "-f",
        "-y",
        "-e",
        "trace=fsync,rename,renameat,renameat2",
        "-o",
        "calls",
        env!("CARGO_BIN_EXE_fusedpo"),
    ]);
    let args = format!("sft {BASE} --out r --max-steps 4 --save-steps 2 --save-total-limit 1");
    let ran = command.args(args.split(' ')).current_dir(cli.dir.path()).output();
    if !ran.is_ok_and(|ran| ran.status.success()) {
        return println!("skipped: the order of what goes to the disk (strace is not here, or may not look)");
    }
    let text = cli.text("calls");
    let mut calls: Vec<String> = text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    calls.retain(|call| call.ends_with(" = 0"));
    let of = |end: &str| calls.iter().position(|call| call.ends_with(end)).unwrap_or_else(|| panic!("{end}: {text}"));
    let named = of("\"r/checkpoint-4\") = 0");
    for file in ["model.safetensors", "optimizer.safetensors", "config.json", "config.toml", "trainer_state.json"] {
        let inside = |call: &String| call.contains(".checkpoint-4.") && call.ends_with(&format!("/{file}\") = 0"));
        let at = calls.iter().position(inside).unwrap_or_else(|| panic!("{file}: {text}"));
        let temporary = calls[at].split('"').nth(1).unwrap();
        assert!(
            at < named && calls[at - 1].contains("fsync(") && calls[at - 1].contains(&format!("{temporary}>)")),
            "{file}: {text}"
        );
    }
    assert!(calls[named - 1].contains("fsync(") && calls[named - 1].ends_with(".tmp>) = 0"), "{text}");
    let tensors = calls.iter().position(|call| call.contains(".checkpoint-4.")).unwrap();
    assert!(calls[tensors - 1].ends_with("/r/metrics.jsonl>) = 0"), "the metrics that belong to it, too: {text}");
    assert!(calls[named + 1].contains("fsync(") && calls[named + 1].ends_with("/r>) = 0"), "{text}");
    assert!(of("\"r/.checkpoint-2.removed.tmp\") = 0") > named + 1, "{text}");
}
