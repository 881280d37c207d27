//! `--config` of another stage or another loss: what was typed wins, and what the file cannot mean there is named.

use crate::cli_common;

use cli_common::*;

const FILES: &str = "--model m --data d --max-steps 2 --learning-rate 1e-3";

/// Runs of both stages, `s` and `p`.
fn runs() -> Cli {
    let cli = Cli::with_data();
    cli.ok(&format!("sft {FILES} --out s"));
    cli.ok(&format!("dpo {FILES} --out p --beta 0.5 --label-smoothing 0.1 --ref-model m"));
    cli
}

fn same_weights(cli: &Cli, a: &str, b: &str) {
    let weights = |run: &str| cli.bytes(&format!("{run}/model.safetensors"));
    assert!(weights(a) == weights(b), "{a} and {b}");
}

/// The lines that tell what was left out of a file.
fn left_out(ran: &Ran) -> Vec<&str> {
    ran.err.lines().filter(|l| l.contains(" left out: ")).collect()
}

#[test]
fn the_stage_is_the_one_that_was_typed() {
    let cli = runs();
    let ran = cli.ok("dpo --config s/config.toml --out dpo");
    assert_eq!(left_out(&ran), ["s/config.toml: `loss_type` left out: the file is of sft, this is dpo"]);
    cli.ok(&format!("dpo {FILES} --out plain"));
    same_weights(&cli, "dpo", "plain");
    assert!(cli.json_lines("dpo/metrics.jsonl")[0].get("eval_rewards/margins").is_some());
    assert!(cli.text("dpo/config.toml").contains("stage = \"dpo\"\n"));

    let ran = cli.ok("sft --config p/config.toml --out sft");
    let want =
        "p/config.toml: `loss_type`, `beta`, `label_smoothing`, `ref_model` left out: the file is of dpo, this is sft";
    assert_eq!(left_out(&ran), [want]);
    same_weights(&cli, "sft", "s");
    assert!(cli.text("sft/config.toml").contains("stage = \"sft\"\n"));
    // Its own stage loses nothing.
    for (stage, run) in [("sft", "s"), ("dpo", "p")] {
        let ran = cli.ok(&format!("{stage} --config {run}/config.toml --out {run}-again"));
        assert_eq!(left_out(&ran), [""; 0]);
        same_weights(&cli, run, &format!("{run}-again"));
    }
}

#[test]
fn the_loss_is_the_one_that_was_typed() {
    let cli = runs();
    let ran = cli.ok("dpo --config p/config.toml --loss-type sft --out r");
    let want = "p/config.toml: `beta`, `label_smoothing`, `ref_model` left out: not for the sft loss";
    assert_eq!(left_out(&ran), [want]);
    same_weights(&cli, "r", "s");
    // That loss was chosen, and is kept.
    let ran = cli.ok("dpo --config r/config.toml --out r2");
    assert_eq!(left_out(&ran), [""; 0]);
    same_weights(&cli, "r2", "s");

    let ran = cli.ok("dpo --config p/config.toml --loss-type ipo --out ipo");
    assert_eq!(left_out(&ran), ["p/config.toml: `label_smoothing` left out: not for the ipo loss"]);
    cli.ok(&format!("dpo {FILES} --loss-type ipo --beta 0.5 --out plain"));
    same_weights(&cli, "ipo", "plain");
    // A smoothing of nothing is no loss.
    let ran = cli.ok("dpo --config ipo/config.toml --loss-type hinge --out hinge");
    assert_eq!(left_out(&ran), [""; 0]);
}

#[test]
fn what_was_typed_is_never_left_out() {
    let cli = runs();
    let neither = "--beta: not defined for --loss-type sft; leave it out, or use another loss";
    cli.bad("dpo --config p/config.toml --loss-type sft --beta 0.3 --out r", 2, neither);
    let want = "--ref-model and --cache: the sft loss has no reference; leave them out";
    cli.bad("dpo --config s/config.toml --loss-type sft --cache c --out r", 2, want);
    let want = "--label-smoothing: not defined for --loss-type ipo; leave it out, or use another loss";
    cli.bad("dpo --config p/config.toml --loss-type ipo --label-smoothing 0.1 --out r", 2, want);
    // Nor is a file mended that contradicts itself, or is of no stage.
    for (text, stage, want) in [
        ("loss_type = \"sft\"\nbeta = 0.1\n", "dpo", neither),
        ("stage = \"rlhf\"\n", "dpo", "c.toml: `stage` is \"rlhf\", this is \"dpo\""),
        ("stage = 3\n", "sft", "c.toml: `stage` is 3, this is \"sft\""),
        ("beta = 0.1\n", "sft", "c.toml: `beta` is not an option of this command"),
        ("stage = \"dpo\"\ngamma = 1\n", "sft", "c.toml: `gamma` is not an option of this command"),
    ] {
        cli.write("c.toml", text);
        cli.bad(&format!("{stage} {FILES} --config c.toml --out r"), 2, want);
    }
    #[cfg(unix)]
    cli.bad("dpo --config /dev/zero --out r", 2, "/dev/zero: is a device, not a regular file; name a file");
}

/// An option that was typed is obeyed: what of a file would be in its way is left out and named.
#[test]
fn what_was_typed_rules_out_what_is_in_its_way() {
    let cli = Cli::with_data();
    let said = |args: &str| {
        let ran = cli.ok(args);
        let mut said: Vec<String> = left_out(&ran).iter().map(|l| l.split_once(": ").unwrap().1.to_owned()).collect();
        said.sort_unstable();
        said
    };
    let table = |run: &str| cli.text(&format!("{run}/config.toml")).parse::<toml::Table>().unwrap();
    cli.ok(&format!("dpo {FILES} --warmup-steps 1 --eval-steps 1 --max-eval-samples 2 --out a"));
    assert_eq!(
        said("dpo --config a/config.toml --num-train-epochs 3 --eval-strategy no --warmup-ratio 0.5 --out b"),
        [
            "`eval_steps`, `max_eval_samples` left out: --eval-strategy no was typed",
            "`max_steps` left out: --num-train-epochs was typed",
            "`warmup_steps` left out: --warmup-ratio was typed",
        ]
    );
    let b = table("b");
    assert_eq!((b.get("max_steps"), b["num_train_epochs"].as_float()), (None, Some(3.0)));
    let steps = cli.json_lines("b/metrics.jsonl").iter().filter(|row| row.get("loss").is_some()).count();
    assert!(steps > 2, "{steps}");
    // And back; steps that are typed win over the file's epochs, which may stand.
    assert_eq!(
        said("dpo --config b/config.toml --max-steps 1 --eval-steps 1 --warmup-steps 1 --out c"),
        ["`eval_strategy` left out: --eval-steps was typed", "`warmup_ratio` left out: --warmup-steps was typed",]
    );
    // What says nothing is left out without a word.
    assert_eq!(said("dpo --config c/config.toml --warmup-ratio 0.5 --warmup-steps 0 --out e"), [""; 0]);
    // An adapter that goes on, and a new one.
    cli.ok(&format!("sft {FILES} --lora-r 2 --out l"));
    assert_eq!(
        said("dpo --config l/config.toml --learning-rate 1e-3 --adapter l --out m2"),
        [
            "`lora_r`, `lora_alpha`, `lora_target_modules`, `lora_init` left out: --adapter l was typed",
            "`loss_type` left out: the file is of sft, this is dpo",
        ]
    );
    assert_eq!(said("dpo --config m2/config.toml --lora-r 2 --out n"), ["`adapter` left out: --lora-r was typed"]);
    for (text, typed, want) in [
        (
            "sync_ref_model = true\nref_model_sync_steps = 1\nref_model_mixup_alpha = 0.5\n",
            "--sync-ref-model false",
            "`ref_model_mixup_alpha`, `ref_model_sync_steps` left out: --sync-ref-model was typed",
        ),
        ("cache = 'k'\n", "--sync-ref-model", "`cache` left out: --sync-ref-model was typed"),
        (
            "f_divergence_type = 'alpha_divergence'\nf_alpha_divergence_coef = 0.5\n",
            "--f-divergence-type js_divergence",
            "`f_alpha_divergence_coef` left out: --f-divergence-type js_divergence was typed",
        ),
        (
            "logits_dtype = 'bf16'\ncuda_graphs = 'on'\nmatmul_plans = 'p'\n",
            "--device cpu",
            "`logits_dtype`, `cuda_graphs`, `matmul_plans` left out: --device cpu was typed",
        ),
        (
            "gradient_dtype = 'bf16'\ntrain = 'norm'\n",
            "--lora-r 2",
            "`train`, `gradient_dtype` left out: --lora-r was typed",
        ),
    ] {
        cli.write("c.toml", text);
        let out = format!("r{}", typed.len());
        assert_eq!(said(&format!("dpo {FILES} --config c.toml {typed} --out {out}")), [want]);
    }
}

/// A configuration as TRL's users have it makes the run that our own options make.
#[test]
fn yaml_under_trls_names() {
    let cli = Cli::with_data();
    let yaml = "# trl dpo --config run.yaml\nmodel_name_or_path: m\ndata: d\noutput_dir: y\nlearning_rate: 1.0e-3\nnum_train_epochs: 1\n\
                max_steps: -1\nbatch_size: 3\nloss_type: [sigmoid, sft]\nbeta: 0.2\nlr_scheduler_type: cosine\nwarmup_ratio: 0.25\n\
                use_peft: true\nlora_r: 2\nlora_alpha: 4\nlora_target_modules: [q_proj, v_proj]\nprecompute_ref_log_probs: true\n\
                eval_strategy: \"no\"\nseed: 7\nref_model: null\n";
    cli.write("run.yaml", yaml);
    cli.ok("dpo --config run.yaml");
    cli.ok(
        "dpo --model m --data d --out o --learning-rate 1e-3 --num-train-epochs 1 --batch-size 3 --loss-type sigmoid,sft --beta 0.2 \
         --lr-scheduler-type cosine --warmup-ratio 0.25 --lora-r 2 --lora-alpha 4 --lora-target-modules q_proj,v_proj --eval-strategy no --seed 7",
    );
    assert!(cli.bytes("y/adapter_model.safetensors") == cli.bytes("o/adapter_model.safetensors"));
    assert_eq!(cli.text("y/config.toml"), cli.text("o/config.toml"));
    // What it leaves out is TRL's, and said; what was typed is not.
    let short = "model_name_or_path: m\ndata: d\noutput_dir: t\nlearning_rate: 1.0e-3\nuse_peft: true\nlora_r: 2\nuse_dora: false\n\
                 push_to_hub: false\nsave_strategy: \"no\"\n";
    cli.write("t.yaml", short);
    let said = |more: &str| {
        let ran = cli.ok(&format!("dpo --config t.yaml {more}"));
        ran.err.lines().filter(|l| l.contains("not in the file: ")).collect::<Vec<_>>().join("\n")
    };
    let adapter = "`lora_target_modules` q_proj, v_proj, as in TRL; `disable_dropout` true, as in TRL, so that `lora_dropout` is 0";
    let want =
        format!("t.yaml: not in the file: `lora_alpha` 32, as in TRL; {adapter}; `num_train_epochs` 3, as in TRL");
    assert_eq!(said(""), want);
    let table: toml::Table = cli.text("t/config.toml").parse().unwrap();
    assert_eq!((table["num_train_epochs"].as_float(), table["save_steps"].as_integer()), (Some(3.0), Some(0)));
    assert_eq!(
        (table["lora_alpha"].as_float(), table["lora_target_modules"].as_array().unwrap().len()),
        (Some(32.0), 2)
    );
    let want = format!("t.yaml: not in the file: {adapter}");
    assert_eq!(said("--max-steps 1 --lora-alpha 4 --out t2"), want);
    // What was typed wins; the other ending is the same; and the stage is the one that was typed.
    cli.write("run.yml", yaml);
    cli.ok("dpo --config run.yml --out z --seed 8");
    assert!(cli.bytes("z/adapter_model.safetensors") != cli.bytes("o/adapter_model.safetensors"));
    for (text, args, want) in [
        (
            "per_device_train_batch_size: 4\ngradient_accumulation_steps: 2\n",
            "dpo",
            "`per_device_train_batch_size`: fusedpo has `batch_size`, pairs a step over all devices and micro-batches, which `token_budget` \
             cuts: write `batch_size: 8` in place of per_device_train_batch_size and gradient_accumulation_steps (on one device)",
        ),
        ("lerning_rate: 1\n", "dpo", "`lerning_rate` is not an option of this command; did you mean `learning_rate`?"),
        ("lerning_rate:\n", "dpo", "`lerning_rate` is not an option of this command; did you mean `learning_rate`?"),
        (
            "warmup_steps: 0.1\nwarmup_ratio: 0.5\n",
            "sft",
            "`warmup_steps` 0.1 and `warmup_ratio` 0.5: both are the share of the steps; leave one of them out",
        ),
        (
            "max_length: 8\nfp16: true\nlerning_rate: 1\nbata:\ndeepspeed:\n",
            "dpo",
            "`fp16` true: there is no fp16; bf16 is `dtype`; leave it out; `max_length`: rows are cut when they are packed: `fusedpo pack \
             --max-length N`; leave it out; `lerning_rate` is not an option of this command; did you mean `learning_rate`?; `bata` is not \
             an option of this command; did you mean `beta`?",
        ),
        ("beta: 1\n", "sft", "`beta` is not an option of this command"),
        ("learning_rate: fast\n", "sft", "`learning_rate`: invalid type: string \"fast\", expected f64"),
        ("a: &x 1\nb: *x\n", "sft", "line 1: an anchor (`&name`); leave it out"),
        (
            "dataset_name: trl-lib/x\n",
            "dpo",
            "`dataset_name`: fusedpo trains on shards: pack the rows (`fusedpo pack --input FILE --out DATA`) and write `data: DATA`",
        ),
        ("eval_strategy: epoch\n", "dpo", "`eval_strategy`: unknown variant `epoch`, expected one of `no`, `steps`"),
    ] {
        cli.write("bad.yaml", text);
        cli.bad(&format!("{args} {FILES} --config bad.yaml --out r"), 2, &format!("bad.yaml: {want}"));
    }
    // TOML answers them too, where it has no translation.
    for (text, want) in [
        ("model_name_or_path = 'm'\n", "`model_name_or_path`: here it is `model`"),
        (
            "max_length = 512\n",
            "`max_length`: rows are cut when they are packed: `fusedpo pack --max-length N`; leave it out",
        ),
        (
            "labelsmoothing = 0.1\n",
            "`labelsmoothing` is not an option of this command; did you mean `label_smoothing`?",
        ),
    ] {
        cli.write("bad.toml", text);
        cli.bad(&format!("dpo {FILES} --config bad.toml --out r"), 2, &format!("bad.toml: {want}"));
    }
}

/// A loaded adapter has what its files say, beside TRL's names too: its shape, and what it drops unless the file turns that off.
#[test]
fn yaml_with_a_loaded_adapter() {
    let cli = Cli::with_data();
    cli.ok(&format!("dpo {FILES} --lora-r 2 --lora-dropout 0.1 --out a"));
    let run = |args: &str, yaml: &str, out: &str| {
        cli.write("z.yaml", format!("model_name_or_path: m\ndata: d\nmax_steps: 3\nlearning_rate: 1.0e-3\n{yaml}"));
        let (stage, more) = args.split_once(' ').unwrap_or((args, ""));
        let ran = cli.ok(&format!("{stage} --config z.yaml {more} --out {out}"));
        (cli.bytes(&format!("{out}/adapter_model.safetensors")), ran.err)
    };
    let calm = run("dpo --adapter a --lora-dropout 0", "", "calm").0;
    for (i, (args, yaml)) in [
        ("dpo --adapter a", "disable_dropout: true\n"),
        ("dpo --adapter a", "use_peft: true\n"),
        ("dpo", "use_peft: true\nadapter: a\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let (weights, said) = run(args, yaml, &format!("calm{i}"));
        assert!(weights == calm && !said.contains("the adapter drops"), "{args} {yaml}: {said}");
        assert!(!said.contains("left out") && !said.contains("`lora_r`"), "{args} {yaml}: {said}");
    }
    for (i, (args, yaml, drops)) in [
        ("dpo --adapter a", "", 0.1),
        ("dpo --adapter a --lora-dropout 0.3", "disable_dropout: true\n", 0.3),
        ("dpo --adapter a", "use_peft: true\ndisable_dropout: false\n", 0.1),
        ("sft --adapter a", "use_peft: true\n", 0.1),
        ("sft", "use_peft: true\nadapter: a\nlora_dropout: 0.2\n", 0.2),
    ]
    .into_iter()
    .enumerate()
    {
        let (weights, said) = run(args, yaml, &format!("drops{i}"));
        assert!(said.contains(&format!("the adapter drops {drops} of its input")), "{args} {yaml}: {said}");
        assert!(weights != calm, "{args} {yaml}");
    }
}
