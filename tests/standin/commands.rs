//! Every command on the device: its numbers are the CPU's.

use crate::cli_common::*;
use crate::stand::Stand;
use fusedpo::backend::cpu::Cpu;
use fusedpo::model::{Model, ModelConfig, SaveDtype, export};
use serde_json::{Value, json};

/// Two steps of training in f32 are this near to the CPU's.
const NEAR: f64 = 2e-5;
pub const STEPS: &str = "--model m --data d --max-steps 2 --token-budget 64 --batch-size 8 --learning-rate 1e-3";

/// Panics unless every number of `a` is within `within` of that in `b`, relative to what is at least 1 (most are made of
/// log-probs of some tens); all else is equal.
#[track_caller]
fn near(what: &str, a: &Value, b: &Value, within: f64) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            assert!(a.keys().eq(b.keys()), "{what}: {a:?} {b:?}");
            a.iter().zip(b).for_each(|((key, a), (_, b))| near(&format!("{what}: {key}"), a, b, within));
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{what}");
            a.iter().zip(b).for_each(|(a, b)| near(what, a, b, within));
        }
        (Value::Number(x), Value::Number(y)) => {
            let (x, y) = (x.as_f64().unwrap(), y.as_f64().unwrap());
            assert!((x - y).abs() <= within * y.abs().max(1.0), "{what}: {x} {y}");
        }
        _ => assert_eq!(a, b, "{what}"),
    }
}

/// Trains on both and compares every number of every step.
#[track_caller]
fn trains_alike(s: &Stand, args: &str, out: &str, within: f64) {
    s.cli.ok(&format!("{args} --device cpu --out {out}-cpu"));
    s.ok(&format!("{args} --device cuda --out {out}"), &[]);
    let [a, b] = ["", "-cpu"].map(|end| Value::Array(rows(&s.cli, &format!("{out}{end}"))));
    assert!(a.as_array().is_some_and(|rows| rows.len() >= 2), "{args}: {a}");
    near(args, &a, &b, within);
}

#[test]
fn doctor_names_the_device() {
    let Some(s) = Stand::with(Cli::new) else { return };
    let ran = s.ok("doctor", &[]);
    assert!(ran.out.contains("Stand-in 9.0"), "{ran:?}");
    let (ran, _) = s.run("doctor", &[("GPUS", "0")]);
    assert!(ran.out.contains("this machine has 0"), "{ran:?}");
    let ran = s.ok("doctor", &[("GPUS", "2")]);
    for ordinal in 0..2 {
        assert!(ran.out.contains(&format!("gpu     cuda:{ordinal}, Stand-in 9.0")), "{ran:?}");
    }
    let found = s.ok("doctor --json", &[("GPUS", "2")]).json();
    assert!(found["gpus"].as_array().is_some_and(|all| all.len() == 2), "{found}");
    assert_eq!(found["gpu"], found["gpus"][0]);
}

/// A GPU of each architecture: with code for it the program trains as ever, also where the driver makes that from PTX; without, it
/// says so in one line, and goes on on the CPU where it may choose.
#[test]
fn every_architecture() {
    let Some(s) = Stand::with(Cli::with_data) else { return };
    let built = fusedpo::backend::gpu::cuda::BUILT;
    let targets: Vec<&str> = built.split_once("kernels for ").expect("targets").1.split(", ").collect();
    let steps = STEPS.replace("--max-steps 2", "--max-steps 1");
    s.cli.ok(&format!("dpo {steps} --dtype f32 --device cpu --out cpu"));
    for (capability, of) in
        [("80", "80"), ("86", "80"), ("90", "90a"), ("100", "100"), ("103", "100"), ("110", "ptx80"), ("120", "120")]
    {
        let (switches, out) = ([("CAPABILITY", capability)], format!("o{capability}"));
        let (major, minor) = capability.split_at(capability.len() - 1);
        let doctor = s.run("doctor", &switches).0.out;
        assert!(doctor.contains(&format!("Stand-in {major}.{minor}")), "{doctor}");
        let code = targets.contains(&of);
        if code || targets.contains(&"ptx80") {
            assert_eq!(
                doctor.contains("compiled from PTX by the driver"),
                !code || of == "ptx80",
                "{capability}: {doctor}"
            );
            s.ok(&format!("dpo {steps} --dtype f32 --device cuda --out {out}"), &switches);
            let [a, b] = [out.as_str(), "cpu"].map(|out| Value::Array(rows(&s.cli, out)));
            near(capability, &a, &b, NEAR);
            continue;
        }
        let why =
            format!("Stand-in {major}.{minor} has compute capability {major}.{minor}; this binary has kernels for");
        assert!(doctor.contains(&why), "{doctor}");
        let (ran, _) = s.run(&format!("dpo {steps} --device cuda --out {out}"), &switches);
        assert!(ran.code == 1 && ran.err.contains(&why) && ran.err.lines().count() == 1, "{ran:?}");
        let (ran, _) = s.run(&format!("dpo {steps} --device auto --out {out}"), &switches);
        assert!(ran.code == 0 && s.counted("launches") == 0, "{ran:?}");
    }
    let (ran, _) = s.run(&format!("dpo {steps} --device cuda --out no"), &[("CAPABILITY", "75")]);
    assert!(ran.code == 1 && ran.err.contains("has compute capability 7.5; the kernels need 8.0"), "{ran:?}");
}

#[test]
fn training_is_the_cpus() {
    let Some(s) = Stand::with(Cli::with_data) else { return };
    trains_alike(&s, &format!("sft {STEPS} --dtype f32 --eval-steps 1"), "sft", NEAR);
    trains_alike(&s, &format!("dpo {STEPS} --dtype f32"), "dpo", NEAR);
    // bf16: sums in another order round otherwise, and a pair may change sides.
    s.cli.ok(&format!("dpo {STEPS} --dtype bf16 --device cpu --out bf16-cpu"));
    s.ok(&format!("dpo {STEPS} --dtype bf16 --device cuda --out bf16"), &[]);
    s.ok(&format!("dpo {STEPS} --dtype bf16 --logits-dtype bf16 --device cuda --out narrow"), &[]);
    // Evaluations have other names.
    let steps = |name| rows(&s.cli, name).into_iter().filter(|row| row.get("loss").is_some()).collect::<Vec<_>>();
    let cpu = steps("bf16-cpu");
    for name in ["bf16", "narrow"] {
        assert_eq!((steps(name).len(), cpu.len()), (2, 2), "{name}");
        for (a, b) in steps(name).iter().zip(&cpu) {
            for key in ["loss", "grad_norm", "logps/chosen"] {
                assert!(b[key].is_number(), "{key}: {b}");
                near(key, &a[key], &b[key], 1e-2);
            }
        }
    }
    assert_ne!(steps("narrow")[0]["logps/chosen"], steps("bf16")[0]["logps/chosen"], "the option has an effect");
    let (ran, _) = s.run(&format!("dpo {STEPS} --dtype f32 --logits-dtype bf16 --device cuda --out no"), &[]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("--logits-dtype bf16 needs --dtype bf16"), "{ran:?}");
}

#[test]
fn every_kind_of_model() {
    let Some(s) = Stand::with(Cli::with_data) else { return };
    for kind in ["qwen2", "qwen3", "llama3-tied"] {
        s.cli.model(kind, kind);
        // Of words; the library that these models come from would cut them into bytes.
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::remove_file(s.cli.path(&format!("{kind}/{file}"))).unwrap();
        }
        let names = format!("--model {kind} --data d --max-steps 1");
        let steps = STEPS.replace("--model m --data d --max-steps 2", &names);
        trains_alike(&s, &format!("dpo {steps} --dtype f32"), &format!("{kind}-out"), NEAR);
    }
}

/// Heads for which there are tensor-core kernels of their own, and one between them. The large ones need more shared memory than a
/// launch may have without asking.
#[test]
fn every_size_of_head() {
    let Some(s) = Stand::with(Cli::with_data) else { return };
    let be = Cpu::<f32>::new().unwrap();
    for head in [16, 64, 80, 128] {
        let name = format!("m{head}");
        s.cli.model(&name, "llama");
        std::fs::remove_file(s.cli.path(&format!("{name}/model.safetensors"))).unwrap();
        let mut config: Value = serde_json::from_str(&s.cli.text(&format!("{name}/config.json"))).unwrap();
        let shape =
            json!({ "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": head });
        config.as_object_mut().unwrap().extend(shape.as_object().unwrap().clone());
        let at = s.cli.path(&name);
        let config = ModelConfig::parse(&at.join("config.json"), config.as_object().unwrap()).unwrap();
        let model = Model::random(&be, config, head, 128).unwrap();
        export(&be, &model, None, None, &at, SaveDtype::F32).unwrap();
        let steps =
            STEPS.replace("--model m --data d --max-steps 2", &format!("--model {name} --data d --max-steps 1"));
        for (dtype, within) in [("f32", NEAR), ("bf16", 1e-2)] {
            trains_alike(&s, &format!("dpo {steps} --dtype {dtype}"), &format!("{name}-{dtype}"), within);
        }
    }
}

#[test]
fn losses() {
    let Some(s) = Stand::with(Cli::with_data) else { return };
    for (name, options) in [
        ("synced", "--sync-ref-model --ref-model-sync-steps 1 --ref-model-mixup-alpha 0.6"),
        ("kto", "--loss-type kto"),
        ("sum", "--loss-type sigmoid,sft,aot --loss-weights 1,0.5,0.25"),
        ("beta_dpo", "--loss-type beta_dpo"),
        // Its first update is the sign of a gradient, however small.
        ("rmsprop", "--optim rmsprop --loss-type ipo --max-grad-norm 0 --learning-rate 1e-6"),
    ] {
        let steps = if name == "rmsprop" { STEPS.replace("--learning-rate 1e-3", "") } else { STEPS.to_owned() };
        trains_alike(&s, &format!("dpo {steps} --dtype f32 {options}"), name, NEAR);
    }
}

#[test]
fn adapters_and_frozen_parameters() {
    let Some(s) = Stand::with(Cli::with_data) else { return };
    for (name, options) in [
        ("frozen", "--train q_proj|layers.1.mlp.up|norm"),
        ("adapter", "--lora-r 4"),
        ("dropout", "--lora-r 4 --lora-dropout 0.3"),
        ("nf4", "--lora-r 4 --quantize nf4 --double-quant"),
        ("some", "--lora-r 8 --use-rslora --lora-target-modules k_proj,o_proj,up_proj --gradient-checkpointing"),
    ] {
        trains_alike(&s, &format!("dpo {STEPS} --dtype f32 {options}"), name, NEAR);
        s.ok(&format!("dpo {STEPS} --dtype bf16 --device cuda --cuda-graphs on {options} --out {name}-bf16"), &[]);
    }
    let score =
        |dev: &str| format!("score --model m --adapter adapter --data d --out {dev} --dtype f32 --device {dev}");
    s.ok(&score("cuda"), &[]);
    s.cli.ok(&score("cpu"));
    let lines = |dev: &str| Value::Array(s.cli.json_lines(dev));
    near("score", &lines("cuda"), &lines("cpu"), NEAR);
}

#[test]
fn eval_score_reference_and_generate() {
    let Some(s) = Stand::with(Cli::with_data) else { return };
    s.cli.ok(&format!("sft {STEPS} --device cpu --out t"));
    let both = |args: &str| {
        let cpu = s.cli.ok(&format!("{args} --dtype f32 --device cpu"));
        (s.ok(&format!("{args} --dtype f32 --device cuda"), &[]), cpu)
    };
    let (ours, cpu) =
        both("eval --model t --data d --ref-model m --json --kl-samples 4 --kl-max-new-tokens 4 --token-budget 64");
    near("eval", &ours.json(), &cpu.json(), NEAR);
    let lines = |args: &str, dev: &str| {
        s.ok(&format!("score --model m --data d --out {dev} --dtype f32 --device {dev} {args}"), &[]);
        Value::Array(s.cli.json_lines(dev))
    };
    s.cli.ok("score --model m --data d --out cpu --dtype f32 --device cpu --per-token");
    near("score", &lines("--per-token", "cuda"), &Value::Array(s.cli.json_lines("cpu")), NEAR);
    let (ours, cpu) =
        both("generate --model t --prompt w5 --max-new-tokens 6 --num-return-sequences 2 --seed 3 --temperature 1e-3");
    assert_eq!(ours.out, cpu.out);
    let ran = s.ok("reference --model m --data d --cache c --dtype f32 --device cuda", &[]);
    assert!(ran.out.contains("48 computed, 0 found") || ran.err.contains("48 computed, 0 found"), "{ran:?}");
    let ran =
        s.ok("reference --model m --data d --cache c --dtype f32 --device cuda", &[("EAGER", "1"), ("SEED", "5")]);
    assert!(ran.out.contains("0 computed, 48 found") || ran.err.contains("0 computed, 48 found"), "{ran:?}");
}

/// The numbers behind `before` in what a demo printed.
#[track_caller]
fn number_behind(text: &str, before: &str) -> f64 {
    let rest = text.split_once(before).unwrap_or_else(|| panic!("no `{before}`: {text}")).1;
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    rest[..end].parse().unwrap_or_else(|_| panic!("{before}: {rest}"))
}

/// All stages, of the smallest size that still has something to learn from and something to hold out.
#[test]
fn demo() {
    let Some(s) = Stand::with(Cli::new) else { return };
    let small = "--steps 4 --prompts 16";
    let cpu = s.cli.ok(&format!("demo {small} --out cpu --device cpu")).out;
    let ours = s.ok(&format!("demo {small} --out cuda --device cuda"), &[("EAGER", "1")]).out;
    let [a, b] = [&ours, &cpu].map(|out| number_behind(out, "after 4 steps: loss "));
    assert!((a - b).abs() < 0.02 * b, "SFT in bf16: {a}, the CPU's in f32: {b}");
    for out in [&ours, &cpu] {
        assert!(out.contains("every margin is 0 and the loss 0.6931 = ln 2, to the bit"), "{out}");
        assert!(out.contains("implicit-reward accuracy"), "{out}");
    }
    // Sidecars have the model's sum in their name.
    let files = |out: &str| {
        let names =
            s.cli.tree().into_iter().filter_map(|path| Some(path.strip_prefix(s.cli.path(out)).ok()?.to_owned()));
        names.filter(|path| !path.to_string_lossy().contains(".ref-")).collect::<Vec<_>>()
    };
    assert_eq!(files("cuda"), files("cpu"));
}

/// What `demo --steps 20` gives is rough; but texts are ordered better than by chance.
#[test]
#[ignore = "a quarter of an hour: scripts/standin.sh"]
fn demo_as_people_run_it() {
    let Some(s) = Stand::with(Cli::new) else { return };
    let out = s.ok("demo --out demo --device cuda --steps 20", &[("EAGER", "1")]).out;
    println!("{out}");
    assert!(out.contains("every margin is 0 and the loss 0.6931 = ln 2, to the bit"), "{out}");
    assert!(out.contains("implicit-reward accuracy"), "{out}");
}
