//! `fusedpo replay` and what the run's own files say of its steps.

use crate::cli_common;

use cli_common::*;
use fusedpo::train::choices::DeviceChoice;
use fusedpo::train::replay::options_of;
use serde_json::{Value, json};

const RUN: &str = "--model m --data d --device cpu --batch-size 4 --lr-scheduler-type constant --learning-rate 1e-3";

/// Own checkpoints by their names, others by whole paths: replay finds both, from whatever folder it is called, and wherever the run has
/// been moved to.
#[test]
fn checkpoints_of_the_record_are_found_from_everywhere() {
    let cli = Cli::with_data();
    cli.ok(&format!("sft {RUN} --out r --max-steps 2 --save-steps 2"));
    cli.ok(&format!("sft {RUN} --out r --max-steps 3 --save-steps 0 --resume auto"));
    cli.ok(&format!("sft {RUN} --out s --max-steps 4 --save-steps 0 --resume r/checkpoint-2"));
    let of = |run: &str| {
        let record: Value = serde_json::from_slice(&cli.bytes(&format!("{run}/run.json"))).unwrap();
        record["resumptions"][0]["checkpoint"].as_str().unwrap().to_owned()
    };
    assert_eq!(of("r"), "checkpoint-2");
    assert_eq!(of("s"), std::path::absolute(cli.path("r/checkpoint-2")).unwrap().display().to_string());
    std::fs::create_dir_all(cli.path("far/away")).unwrap();
    std::fs::rename(cli.path("s"), cli.path("far/t")).unwrap();
    let ran = cli.command("replay ../t 4 --json").current_dir(cli.path("far/away")).output().unwrap();
    let found: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!((&found["from_step"], &found["steps_compared"]), (&json!(2), &json!(2)), "{ran:?}");
    assert_eq!((&found["difference"], &found["taken"]), (&Value::Null, &json!(true)), "{ran:?}");
}

/// `config.toml` is believed where it says what `run.json` says, but for where things lie.
#[test]
fn a_changed_configuration_is_noticed() {
    let cli = Cli::with_data();
    cli.ok(&format!("dpo {RUN} --out r --max-steps 2"));
    let text = cli.text("r/config.toml");
    let other = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}: {text}");
        cli.write("r/config.toml", text.replace(from, to));
    };
    let refused = |what: &str| {
        let end = "replay takes a step as the run did; put back what was there";
        cli.bad_leaving("replay r 2", 2, &format!("r/config.toml: {what}: {end}"));
    };
    other("learning_rate = 0.001", "learning_rate = 0.002");
    refused("`learning_rate` is 0.002, and in run.json 0.001");
    other("seed = ", "lora_r = 2\nseed = ");
    refused("`lora_r` is 2, and in run.json not given");
    other("max_steps = 2\n", "");
    refused("`max_steps` is not given, and in run.json 2");
    // Data that have moved.
    std::fs::rename(cli.path("d"), cli.path("e")).unwrap();
    let lies = std::path::absolute(cli.path("d")).unwrap().display().to_string();
    other(&format!("data = \"{lies}\""), &format!("data = \"{}\"", lies.strip_suffix('d').unwrap().to_owned() + "e"));
    let found = cli.ok("replay r 2 --json").json();
    assert_eq!(found["difference"], Value::Null);
}

/// Steps that the run stopped before, and those that it has from another.
#[test]
fn a_step_that_the_run_has_not_taken_is_told() {
    let cli = Cli::with_data();
    cli.ok(&format!("sft {RUN} --out r --max-steps 3 --save-steps 2"));
    cli.ok(&format!("sft {RUN} --out s --max-steps 4 --resume r/checkpoint-2"));
    // As if it had been stopped after its first step.
    let rows = cli.text("r/metrics.jsonl");
    let first: Vec<&str> = rows.lines().filter(|l| !l.contains("\"step\":2") && !l.contains("\"step\":3")).collect();
    cli.write("r/metrics.jsonl", first.join("\n") + "\n");
    std::fs::remove_dir_all(cli.path("r/checkpoint-2")).unwrap();
    for (run, step, taken, compared) in [("r", 1, true, 1), ("r", 3, false, 1), ("s", 1, false, 0), ("s", 4, true, 2)] {
        let ran = cli.ok(&format!("replay {run} {step} --json"));
        let found = ran.json();
        let what = format!("{run} {step}: {ran:?}");
        assert_eq!((&found["taken"], &found["steps_compared"]), (&json!(taken), &json!(compared)), "{what}");
        let said = format!(
            "warning: {run} has no numbers of step {step}: the run has not taken it, and this is what it would be"
        );
        assert_eq!(ran.err.contains(&said), !taken, "{what}");
    }
}

/// A run that went on with other numerics: its steps are told apart by the call that took them.
#[test]
fn steps_of_other_numerics_are_told_apart() {
    let cli = Cli::with_data();
    cli.ok(&format!("sft {RUN} --out r --max-steps 2 --save-steps 2"));
    for steps in [4, 6] {
        cli.ok(&format!("sft {RUN} --out r --max-steps {steps} --save-steps 2 --save-total-limit 0 --resume auto"));
    }
    // Its calls took steps 1 and 2, 3 and 4, 5 and 6; the first and the second computed otherwise.
    cli.edit_json("r/run.json", |v| {
        for (i, numerics) in ["cpu-old", "cpu-older"].into_iter().enumerate() {
            v["resumptions"][i]["numerics"] = json!(numerics);
            v["resumptions"][i]["call"]["numerics"] = json!(numerics);
        }
    });
    let told = |step: u64| {
        let ran = cli.ok(&format!("replay r {step} --json"));
        let lines = ran.err.lines().filter_map(|l| l.strip_prefix("warning: the run computed ")?.split_once(" (`"));
        let lines = lines.map(|(steps, rest)| format!("{steps}: {}", rest.split_once('`').unwrap().0));
        lines.collect::<Vec<_>>()
    };
    assert_eq!(told(6), [""; 0]);
    assert_eq!(told(4), ["steps 3 to 4 another way: cpu-older"]);
    assert_eq!(told(3), ["step 3 another way: cpu-older"]);
    assert_eq!(told(2), ["steps 1 to 2 another way: cpu-old"]);
    for name in cli.names("r", "checkpoint-") {
        std::fs::remove_dir_all(cli.path(&format!("r/{name}"))).unwrap();
    }
    assert_eq!(told(5), ["steps 3 to 4 another way: cpu-older", "steps 1 to 2 another way: cpu-old"]);
}

/// Where the run left the device open, it is what it came to and not what there is now.
#[test]
fn the_device_is_what_the_run_came_to() {
    let cli = Cli::with_data();
    cli.ok("sft --model m --data d --device cpu --max-steps 1 --out r");
    let config = cli.text("r/config.toml").replace("device = \"cpu\"", "device = \"auto\"");
    cli.write("r/config.toml", config);
    cli.edit_json("r/run.json", |v| v["options"]["device"] = json!("auto"));
    assert_eq!(options_of(&cli.path("r")).unwrap().compute.device, DeviceChoice::Cpu);
    cli.edit_json("r/run.json", |v| v["numerics"] = json!("sm_90-kernels01234567"));
    assert_eq!(options_of(&cli.path("r")).unwrap().compute.device, DeviceChoice::Cuda);
}

/// The folder of batches is the run's own, or it is let alone; what a killed write left in it goes.
#[test]
fn batches_lie_in_no_folder_of_others() {
    let cli = Cli::with_data();
    let run = format!("sft {RUN} --out r --save-steps 1 --resume auto");
    cli.ok(&format!("{run} --max-steps 1"));
    std::fs::create_dir(cli.path("theirs")).unwrap();
    cli.write("theirs/step-7.safetensors", b"x");
    std::os::unix::fs::symlink("../theirs", cli.path("r/non-finite")).unwrap();
    cli.ok(&format!("{run} --max-steps 2"));
    assert_eq!(cli.text("theirs/step-7.safetensors"), "x");
    cli.ok("replay r 2");
    std::fs::remove_file(cli.path("r/non-finite")).unwrap();
    std::fs::create_dir(cli.path("r/non-finite")).unwrap();
    cli.write("r/non-finite/.tmp-abc.part", b"x");
    cli.ok(&format!("{run} --max-steps 3"));
    assert!(!cli.path("r/non-finite").exists());
}
