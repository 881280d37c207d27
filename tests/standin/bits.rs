//! The same bits however the work is enqueued, whatever is kept, and wherever a run was stopped.

use crate::cli_common::*;
use crate::commands::STEPS;
use crate::stand::{Stand, Switches};

#[track_caller]
fn equal(s: &Stand, one: &str, two: &str) {
    assert_eq!(rows(&s.cli, one), rows(&s.cli, two), "{one} {two}");
    let [a, b] = [one, two].map(|out| s.cli.bytes(&format!("{out}/model.safetensors")));
    assert!(a == b, "{one} {two}: other weights");
}

#[test]
fn however_the_work_is_enqueued() {
    let Some(s) = Stand::with(Cli::with_data) else { return };
    // Algorithms of gradients by the clock are other algorithms: other bits than without, the same with one file.
    s.ok(&format!("dpo {STEPS} --device cuda --out plain"), &[]);
    s.ok(&format!("dpo {STEPS} --device cuda --out tuned --matmul-plans plans"), &[]);
    let plans = s.cli.text("plans");
    let ways: [(&str, &str, Switches); 6] = [
        ("plain", "", &[("EAGER", "1"), ("SEED", "3")]),
        ("plain", "--cuda-graphs on", &[]),
        ("plain", "--gradient-checkpointing", &[("SEED", "9")]),
        ("plain", "--cuda-graphs on --gradient-checkpointing", &[("EAGER", "1")]),
        ("plain", "", &[("PAGEABLE", "late")]),
        ("tuned", "--matmul-plans plans --cuda-graphs on", &[]),
    ];
    for (i, (first, options, switches)) in ways.into_iter().enumerate() {
        let out = format!("way{i}");
        s.ok(&format!("dpo {STEPS} --device cuda --out {out} {options}"), switches);
        assert_eq!(s.counted("replays") > 0, options.contains("graphs"), "{options}");
        equal(&s, &out, first);
    }
    assert_eq!(s.cli.text("plans"), plans, "a choice is made once");
}

#[test]
fn a_run_that_was_stopped_goes_on() {
    let Some(s) = Stand::with(Cli::with_data) else { return };
    for (name, options) in
        [("plain", ""), ("graphs", "--cuda-graphs on --loss-type beta_dpo --sync-ref-model --ref-model-sync-steps 1")]
    {
        let args = format!("dpo {STEPS} --device cuda {options} --max-steps 3 --save-steps 1").replacen(
            "--max-steps 2 ",
            "",
            1,
        );
        s.ok(&format!("{args} --out {name}"), &[]);
        // Lost in the third step, with two checkpoints on the disk.
        let counts = s.count(&format!("{args} --out {name}-counted"));
        let lose = (counts["ran"] * 9 / 10).to_string();
        let (ran, _) = s.run(&format!("{args} --out {name}-again"), &[("LOSE", &lose)]);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.err.contains("the GPU is lost to this run"), "{ran:?}");
        assert!(s.cli.path(&format!("{name}-again/checkpoint-2")).is_dir(), "{:?}", s.cli.tree());
        s.ok(&format!("{args} --out {name}-again --resume auto"), &[]);
        equal(&s, &format!("{name}-again"), name);
    }
}

/// Ranges for a profiler: stages in their order, layers inside them, each ended; and the work is what it was.
#[test]
fn a_profile_has_the_names_of_stages_and_layers() {
    let Some(s) = Stand::with(Cli::with_data) else { return };
    s.ok(&format!("dpo {STEPS} --device cuda --out plain"), &[]);
    let (args, file) = (format!("dpo {STEPS} --device cuda --out named"), s.cli.path("ranges"));
    let mut command = s.command(&args, &[("NVTX", file.to_str().expect("UTF-8"))]);
    let libraries = crate::library::folder().expect("they were there above");
    command.env("LD_LIBRARY_PATH", std::env::join_paths([libraries, &libraries.join("nvtx")]).unwrap());
    let (ran, _) = s.end(&args, &[], command);
    assert_eq!(ran.code, 0, "{}", ran.err);
    equal(&s, "named", "plain");
    let said = s.cli.text("ranges");
    assert!(!said.contains("DEFECT"), "{said}");
    let mut open = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for line in said.lines() {
        match line.strip_prefix("push ") {
            Some(name) => open.push(name),
            None => drop(open.pop()),
        }
        seen.insert(open.join(" > "));
    }
    let want = ["load", "forward", "head", "loss", "head backward", "backward", "update"];
    for name in
        want.into_iter().chain(["forward > layer 0", "forward > layer 1", "backward > layer 1", "backward > layer 0"])
    {
        assert!(seen.contains(name), "{name}: {seen:?}");
    }
    assert!(!seen.iter().any(|s| s.starts_with("layer")), "layers are inside stages: {seen:?}");
}
