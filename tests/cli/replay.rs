//! `fusedpo replay`: faults planted in each kind of op, and the op named; and of steps without a fault the run's own numbers.

use crate::cli_common;

use cli_common::*;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// What is done to a tensor: all of it set, or multiplied.
#[derive(Clone, Copy)]
enum Edit {
    Set(f32),
    Times(f64),
}

use Edit::*;

/// A copy of the model `m` as `name`, with other weights. `tensor` is a name without `model.layers.`, or all of it.
fn edited(cli: &Cli, name: &str, edits: &[(&str, Edit)]) {
    let _ = std::fs::remove_dir_all(cli.path(name));
    cli.model(name, "llama");
    let bytes = cli.bytes("m/model.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let full = |tensor: &str| match file.names().contains(&tensor) {
        true => tensor.to_owned(),
        false => format!("model.layers.{tensor}"),
    };
    let mut all: Vec<(String, Vec<usize>, Vec<u8>)> =
        file.iter().map(|(name, t)| (name.to_owned(), t.shape().to_vec(), t.data().to_vec())).collect();
    for (tensor, edit) in edits {
        let (_, _, data) = all.iter_mut().find(|(name, ..)| *name == full(tensor)).unwrap();
        for x in data.as_chunks_mut().0 {
            *x = match edit {
                Set(to) => to.to_le_bytes(),
                Times(by) => ((f64::from(f32::from_le_bytes(*x)) * by) as f32).to_le_bytes(),
            };
        }
    }
    let views = all.iter().map(|(name, shape, data)| {
        (name.as_str(), TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
    });
    cli.write(&format!("{name}/model.safetensors"), safetensors::serialize(views, None).unwrap());
}

/// Every file of a folder with its content.
fn content(cli: &Cli, folder: &str) -> Vec<(String, Vec<u8>)> {
    fn walk(dir: &std::path::Path, to: &mut Vec<(String, Vec<u8>)>) {
        for entry in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            match entry.is_dir() {
                true => walk(&entry, to),
                false => to.push((entry.display().to_string(), std::fs::read(&entry).unwrap())),
            }
        }
    }
    let mut all = Vec::new();
    walk(&cli.path(folder), &mut all);
    all.sort();
    all
}

/// Stage, layer, op, output, and what of the model it is of.
type Named<'a> = (&'a str, Option<u64>, &'a str, &'a str, &'a str);

fn named(first: &Value) -> Named<'_> {
    let text = |key: &str| first[key].as_str().unwrap();
    (text("stage"), first["layer"].as_u64(), text("op"), text("output"), text("of"))
}

/// A model's edits, the run's other options, and the op that overflows first.
type Fault = (&'static [(&'static str, Edit)], &'static str, Named<'static>);

const QKV: &str = "self_attn.{q_proj, k_proj, v_proj}.weight";
const GATE_UP: &str = "mlp.{gate_proj, up_proj}.weight";

/// Those of the forward pass in SFT, which reads no reference; those of the backward pass where the loss's slope is 1e30 and the
/// forward pass that of the model without the fault: what one factor takes away the other brings back.
const FAULTS: &[Fault] = &[
    (&[("1.mlp.down_proj.weight", Set(3e38))], "sft", ("forward", Some(1), "linear_fwd", "y", "mlp.down_proj.weight")),
    (&[("0.mlp.down_proj.weight", Set(3e38))], "sft", ("forward", Some(0), "linear_fwd", "y", "mlp.down_proj.weight")),
    (
        &[("0.self_attn.o_proj.weight", Set(3e38))],
        "sft",
        ("forward", Some(0), "linear_fwd", "y", "self_attn.o_proj.weight"),
    ),
    (
        &[("1.self_attn.o_proj.weight", Set(3e38))],
        "sft",
        ("forward", Some(1), "linear_fwd", "y", "self_attn.o_proj.weight"),
    ),
    (&[("0.mlp.up_proj.weight", Set(3e38))], "sft", ("forward", Some(0), "linear_fwd", "y", GATE_UP)),
    (&[("1.self_attn.k_proj.weight", Set(3e38))], "sft", ("forward", Some(1), "linear_fwd", "y", QKV)),
    (
        &[("1.post_attention_layernorm.weight", Set(3e38))],
        "sft",
        ("forward", Some(1), "rmsnorm_fwd", "y", "post_attention_layernorm.weight"),
    ),
    (
        &[("0.input_layernorm.weight", Set(3e38))],
        "sft --gradient-checkpointing",
        ("forward", Some(0), "rmsnorm_fwd", "y", "input_layernorm.weight"),
    ),
    (&[("model.norm.weight", Set(3e38))], "sft", ("forward", None, "rmsnorm_fwd", "y", "model.norm.weight")),
    (&[("lm_head.weight", Times(3e38))], "sft", ("head", None, "head_fwd", "logp", "lm_head.weight")),
    (
        &[("0.mlp.gate_proj.weight", Times(1e20)), ("0.mlp.up_proj.weight", Times(1e20))],
        "sft",
        ("forward", Some(0), "swiglu_fwd", "act", ""),
    ),
    (
        &[("1.mlp.gate_proj.weight", Times(1e20)), ("1.mlp.up_proj.weight", Times(1e20))],
        "sft",
        ("forward", Some(1), "swiglu_fwd", "act", ""),
    ),
    (
        &[("1.self_attn.q_proj.weight", Times(1e20)), ("1.self_attn.k_proj.weight", Times(1e20))],
        "sft",
        ("forward", Some(1), "attention_fwd", "out", ""),
    ),
    (&[], "dpo --beta 1e300", ("loss", None, "loss", "coef", "")),
    (
        &[("0.mlp.down_proj.weight", Times(1e12)), ("0.mlp.up_proj.weight", Times(1e-12))],
        "dpo --beta 1e30",
        ("backward", Some(0), "linear_bwd_input", "dx", "mlp.down_proj.weight"),
    ),
    (
        &[("1.self_attn.o_proj.weight", Times(1e12)), ("1.self_attn.v_proj.weight", Times(1e-12))],
        "dpo --beta 1e30",
        ("backward", Some(1), "linear_bwd_input", "dx", "self_attn.o_proj.weight"),
    ),
    (
        &[
            ("0.post_attention_layernorm.weight", Times(1e12)),
            ("0.mlp.gate_proj.weight", Times(1e-12)),
            ("0.mlp.up_proj.weight", Times(1e-12)),
        ],
        "dpo --beta 1e30",
        ("backward", Some(0), "linear_bwd_weight", "dw", GATE_UP),
    ),
    (
        &[],
        "sft --lora-r 2 --lora-alpha 1e39",
        ("forward", Some(0), "adapter_fwd", "low", "self_attn.q_proj.lora_A.weight and 5 others"),
    ),
];

#[test]
fn the_op_that_overflows_first_is_named() {
    let cli = Cli::with_data();
    for (i, (edits, options, want)) in FAULTS.iter().enumerate() {
        edited(&cli, &format!("x{i}"), edits);
        let what = format!("fault {i}: {options}");
        let (stage, more) = options.split_once(' ').unwrap_or((options, ""));
        let out = format!("r{i}");
        let run =
            format!("{stage} --model x{i} --data d --out {out} --device cpu --eval-strategy no --max-steps 1 {more}");
        let ran = cli.run(&run);
        assert_eq!(ran.code, 1, "{what}: {ran:?}");
        // It is said what to do next, and the one batch is kept.
        assert!(ran.err.contains(&format!("`fusedpo replay {out} 1` names the op")), "{what}: {ran:?}");
        let before = content(&cli, &out);
        let found = cli.ok(&format!("replay {out} 1 --json")).json();
        let first = &found["first"];
        assert_eq!(&named(first), want, "{what}: {}", found["verdict"]);
        // The first of all that are not finite, and no other before it.
        let ops = found["ops"].as_array().unwrap();
        assert_eq!(ops.iter().find(|op| op["non_finite"] != 0), Some(first), "{what}");
        assert_eq!((&found["inputs"], &found["difference"]), (&json!([]), &Value::Null), "{what}");
        assert_eq!((&found["updated"], &found["steps_compared"]), (&json!(false), &json!(1)), "{what}");
        assert_eq!(found["batch"], json!(format!("{out}/non-finite/step-1.safetensors")), "{what}");
        assert!(content(&cli, &out) == before, "{what}: the run was changed");
    }
    // The one of several that are one product, by its columns.
    let of = |i: usize| cli.ok(&format!("replay r{i} 1 --json")).json()["first"]["place"]["tensor"].clone();
    assert_eq!(of(4), json!("model.layers.0.mlp.up_proj.weight"));
    assert_eq!(of(5), json!("model.layers.1.self_attn.k_proj.weight"));
    // In text it is the last line, and says whose token.
    let text = cli.ok("replay r3 1");
    let last = text.out.lines().last().unwrap();
    let want = "step 1: the first number that is not finite: forward, layer 1: linear_fwd of self_attn.o_proj.weight, output y: ";
    assert!(last.starts_with(want) && last.contains(" of micro-batch 1: token "), "{last}");
}

/// One response alone has `w90`, and of all tokens that one alone has a first dimension, with which queries are multiplied by far too
/// much: its row, its token, its pair and its input row are named.
#[test]
fn the_token_and_the_pair_are_named() {
    let cli = Cli::new();
    let plain = |i: usize| json!({"prompt": format!("w{}", 10 + i), "chosen": " w5 w6", "rejected": " w7 w8 w9"});
    let mut rows: Vec<Value> = (0..8).map(plain).collect();
    rows[5]["rejected"] = " w7 w90 w8".into();
    cli.write_rows("rows.jsonl", &rows);
    cli.ok("pack --tokenizer m --input rows.jsonl --out d");
    let bytes = cli.bytes("m/model.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    // Token ids are those of the words.
    let first_column = |name: &str, of: &dyn Fn(usize) -> f32| {
        let tensor = file.tensor(name).unwrap();
        let (shape, mut data) = (tensor.shape().to_vec(), tensor.data().to_vec());
        for (i, row) in data.chunks_exact_mut(4 * shape[1]).enumerate() {
            row[..4].copy_from_slice(&of(i).to_le_bytes());
        }
        (name.to_owned(), shape, data)
    };
    let changed = [
        first_column("model.embed_tokens.weight", &|token| f32::from(u8::from(token == 90))),
        first_column("model.layers.0.self_attn.q_proj.weight", &|_| 3e38),
    ];
    let views = file.iter().map(|(name, t)| match changed.iter().find(|(other, ..)| other == name) {
        Some((_, shape, data)) => (name, TensorView::new(t.dtype(), shape.clone(), data).unwrap()),
        None => (name, t),
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    cli.write("m/model.safetensors", bytes);
    // A loss without a reference: its pass would find the response before any step does.
    cli.run("dpo --model m --data d --out r --device cpu --loss-type orpo --batch-size 8 --max-steps 1");
    let found = cli.ok("replay r 1 --json").json();
    let place = &found["first"]["place"];
    assert_eq!(
        (&place["token"], &place["end"], &place["data_row"], &place["prompt_of"]),
        (&json!(90), &json!("rejected"), &json!(5), &Value::Null),
        "{}",
        found["verdict"]
    );
    let inspected = cli.ok("inspect d --json --show 8").json();
    let groups = inspected["splits"][0]["shown"].as_array().unwrap();
    let responses = groups.iter().flat_map(|g| g["responses"].as_array().unwrap());
    let with: Vec<&Value> = responses.filter(|r| r.to_string().contains("w90")).map(|r| &r["id"]).collect();
    assert_eq!(with, [&place["response"]]);
    let of = (&place["tensor"], &found["first"]["op"], &found["first"]["layer"]);
    assert_eq!(of, (&json!("model.layers.0.self_attn.q_proj.weight"), &json!("linear_fwd"), &json!(0)));
}

/// What a run wrote down of its steps is what replay computes, of every kind of run; from a checkpoint to the same bits as from the
/// beginning.
#[test]
fn a_step_without_a_fault_is_that_of_the_run() {
    let cli = Cli::with_data();
    let doctor = cli.ok("doctor").out;
    let kinds = [
        "sft --save-steps 2",
        "sft --train mlp",
        "sft --lora-r 2 --quantize nf4 --double-quant",
        "dpo --save-steps 3 --gradient-checkpointing",
        "dpo --lora-r 2 --lora-dropout 0.3",
        "dpo --optim rmsprop --token-budget 40",
        "dpo --loss-type kto",
        "dpo --loss-type beta_dpo",
        "dpo --loss-type ipo,sft --loss-weights 1,0.1 --ld-alpha 0.5",
        "dpo --loss-type kto --sync-ref-model --ref-model-sync-steps 2 --save-steps 2",
        "dpo --dtype bf16",
        "sft --dtype bf16 --optim adamw_8bit --gradient-dtype bf16 --save-steps 4",
    ];
    for (i, kind) in kinds.into_iter().enumerate() {
        if kind.contains("bf16") && doctor.contains("--dtype bf16: not here") {
            println!("skipped: {kind}, on this machine");
            continue;
        }
        let (stage, more) = kind.split_once(' ').unwrap();
        let out = format!("k{i}");
        cli.ok(&format!(
            "{stage} --model m --data d --out {out} --device cpu --learning-rate 1e-3 --batch-size 4 --max-steps 5 {more}"
        ));
        let before = content(&cli, &out);
        let found = cli.ok(&format!("replay {out} 5 --json")).json();
        let from = found["from_step"].as_u64().unwrap();
        let row = &cli.json_lines(&format!("{out}/metrics.jsonl"));
        let row = row.iter().find(|row| row["step"] == 5 && row.get("grad_norm").is_some()).unwrap();
        assert_eq!((&found["loss"], &found["grad_norm"]), (&row["loss"], &row["grad_norm"]), "{kind}");
        assert_eq!((&found["difference"], &found["first"]), (&Value::Null, &Value::Null), "{kind}");
        assert_eq!(found["steps_compared"], 5 - from, "{kind}");
        assert_eq!(found["checkpoint"].is_null(), !more.contains("--save-steps"), "{kind}");
        assert!(content(&cli, &out) == before, "{kind}: the run was changed");
        if from > 0 {
            for name in cli.names(&out, "checkpoint-") {
                std::fs::remove_dir_all(cli.path(&format!("{out}/{name}"))).unwrap();
            }
            let again = cli.ok(&format!("replay {out} 5 --json")).json();
            assert_eq!((&again["from_step"], &again["steps_compared"]), (&json!(0), &json!(5)), "{kind}");
            assert_eq!((&again["ops"], &again["state"]), (&found["ops"], &found["state"]), "{kind}");
        }
        let stages: std::collections::BTreeSet<&str> =
            found["ops"].as_array().unwrap().iter().map(|op| op["stage"].as_str().unwrap()).collect();
        let want = ["backward", "forward", "head", "head backward", "loss", "update"];
        assert_eq!(stages.into_iter().collect::<Vec<_>>(), want, "{kind}");
    }
    let text = cli.ok("replay k0 5").out;
    let last = text.lines().last().unwrap();
    assert!(last.starts_with("step 5: every number is finite, in ") && last.ends_with(" outputs of ops"), "{last}");
}

/// Weights that an update left without numbers are named before any op, with the step that did it.
#[test]
fn what_was_not_finite_before_the_step_is_named_first() {
    let cli = Cli::with_data();
    let run = "sft --model m --data d --device cpu --eval-strategy no --learning-rate 1e39 --batch-size 4 --save-steps 1 --save-total-limit 0";
    cli.run(&format!("{run} --max-steps 3 --out r"));
    let first = cli.ok("replay r 1 --json").json();
    assert_eq!(named(&first["first"]), ("update", None, "update", "w", "model.embed_tokens.weight and 15 others"));
    assert_eq!((&first["inputs"], &first["updated"]), (&json!([]), &json!(true)));
    // Its checkpoints hold weights that are no numbers: replay says so, and begins before them.
    let second = cli.ok("replay r 2 --json");
    assert!(second.err.contains("checkpoint-1/model.safetensors: weights in it are not finite"), "{second:?}");
    assert!(second.err.contains("; replay begins before it"), "{second:?}");
    let second = second.json();
    assert_eq!((&second["from_step"], &second["inputs_since"]), (&json!(0), &json!(1)));
    assert_eq!(second["inputs"][0]["part"], "weights");
    let said = second["verdict"].as_str().unwrap();
    assert!(said.starts_with("step 2: not finite before any op: weights of model.embed_tokens.weight: "), "{said}");
    assert!(
        said.contains("; it was the update of step 1 that left it so: replay that step; of ops the first: "),
        "{said}"
    );
    // Steps without finite numbers change nothing: it is the same step that is named from further on.
    let third = cli.ok("replay r 3 --json").json();
    assert_eq!((&third["from_step"], &third["inputs_since"]), (&json!(0), &json!(1)));
}

/// Steps without numbers leave their batches, as every reader of safetensors reads them; a run that begins again has none
/// that it did not meet itself.
#[test]
fn batches_are_kept_and_are_few() {
    let cli = Cli::with_data();
    edited(&cli, "x", &[("lm_head.weight", Times(3e38))]);
    let run = "sft --model x --data d --out r --device cpu --eval-strategy no --batch-size 4 --max-steps 20";
    let ran = cli.run(run);
    let kept = ["step-1.safetensors", "step-2.safetensors", "step-3.safetensors"];
    assert_eq!(cli.names("r/non-finite", ""), kept, "{ran:?}");
    let before = content(&cli, "r/non-finite");
    let bytes = cli.bytes("r/non-finite/step-2.safetensors");
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let of: Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["fusedpo"]).unwrap();
    assert_eq!((&of["step"], &of["loss"], &of["seed"]), (&json!(2), &json!("NaN"), &json!(42)));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ints = |name: &str| -> Vec<i64> {
        file.tensor(name).unwrap().data().as_chunks().0.iter().map(|x| i64::from_le_bytes(*x)).collect()
    };
    let (tokens, predictions) = (ints("micro_batch.0.tokens"), ints("micro_batch.0.predictions"));
    for p in predictions.as_chunks::<3>().0 {
        assert!((p[0] as usize) < tokens.len() && tokens.contains(&p[1]), "{p:?}");
    }
    assert_eq!(ints("micro_batch.0.responses.id").len(), 4);
    // A file that is there, but not of this run's data, is said to be another's.
    cli.write("r/non-finite/step-1.safetensors", &bytes);
    let other = cli.ok("replay r 1");
    let why =
        "warning: r/non-finite/step-1.safetensors is another batch than the data and the reference give for this step";
    assert!(other.err.contains(why), "{other:?}");
    cli.write("r/non-finite/step-1.safetensors", &bytes[..bytes.len() - 9]);
    cli.bad_leaving(
        "replay r 1",
        2,
        "r/non-finite/step-1.safetensors: is no batch of a step that this program can read (incomplete metadata, file not fully covered): remove it",
    );
    // The same again, to the byte; what the run has not met itself is gone.
    cli.write("r/non-finite/step-7.safetensors", &bytes);
    cli.run(&format!("{run} --resume auto"));
    assert!(content(&cli, "r/non-finite") == before);
}

/// A checkpoint of another run, where one of this run's was, is passed over: of the same model and step, it has other weights.
#[test]
fn a_checkpoint_of_another_run_is_passed_over() {
    let cli = Cli::with_data();
    let sft = |out: &str, more: &str| {
        cli.ok(&format!("sft --model m --data d --out {out} --device cpu --max-steps 4 --save-steps 2 {more}"));
    };
    sft("r", "--learning-rate 1e-3");
    sft("x", "--learning-rate 1e-2 --seed 7");
    let own = cli.ok("replay r 4 --json").json();
    assert_eq!(own["from_step"], 2);
    std::fs::remove_dir_all(cli.path("r/checkpoint-2")).unwrap();
    std::fs::rename(cli.path("x/checkpoint-2"), cli.path("r/checkpoint-2")).unwrap();
    let ran = cli.ok("replay r 4 --json");
    let found = ran.json();
    assert_eq!((&found["from_step"], &found["difference"]), (&json!(0), &Value::Null));
    assert_eq!(found["ops"], own["ops"]);
    assert!(ran.err.contains("checkpoint-2 is of a run with other options; replay begins before it"), "{ran:?}");
}

#[test]
fn what_cannot_be_replayed_is_refused() {
    let cli = Cli::with_data();
    cli.ok("sft --model m --data d --out r --device cpu --max-steps 2 --learning-rate 1e-3");
    cli.bad_leaving("replay r 3", 2, "step 3: r has steps 1 to 2");
    cli.bad_leaving("replay r 0", 2, "step 0: r has steps 1 to 2");
    cli.bad_leaving("replay m 1", 2, "m: is not the folder of a run: it has no metrics.jsonl");
    cli.bad_leaving("replay none 1", 2, "none: is not the folder of a run: it has no metrics.jsonl");
    // Another model where the run's was.
    let own = cli.bytes("m/model.safetensors");
    edited(&cli, "x", &[("lm_head.weight", Times(2.0))]);
    cli.write("m/model.safetensors", cli.bytes("x/model.safetensors"));
    let ran = cli.run("replay r 1");
    assert!(ran.code == 2 && ran.err.contains("is not the model of the run in r ("), "{ran:?}");
    cli.write("m/model.safetensors", own);
    // Other rows.
    cli.write_rows("other.jsonl", &pairs(20));
    cli.ok("pack --tokenizer m --input other.jsonl --out d --eval-fraction 0.25 --overwrite");
    for step in [1, 99] {
        let ran = cli.run(&format!("replay r {step}"));
        assert!(ran.code == 2 && ran.err.contains("is not the data of the run in r ("), "{ran:?}");
    }
    // Numbers that are not the run's are told.
    cli.ok("sft --model m --data d --out s --device cpu --max-steps 2 --learning-rate 1e-3");
    let rows = cli.text("s/metrics.jsonl").replacen("\"loss\":", "\"loss\":1", 1);
    cli.write("s/metrics.jsonl", rows);
    let ran = cli.ok("replay s 2");
    assert!(ran.err.contains("warning: step 1 had loss "), "{ran:?}");
    // A damaged batch of the step ends it before any step is taken.
    std::fs::create_dir_all(cli.path("s/non-finite")).unwrap();
    cli.write("s/non-finite/step-2.safetensors", b"x");
    let ran = cli.run("replay s 2");
    assert!(ran.code == 2 && ran.err.contains("is no batch of a step") && !ran.err.contains("replaying"), "{ran:?}");
    std::fs::remove_dir_all(cli.path("s/non-finite")).unwrap();
    std::fs::remove_file(cli.path("s/run.json")).unwrap();
    cli.bad_leaving(
        "replay s 2",
        2,
        "s/run.json: is missing or damaged: replay reads there what the run was made from",
    );
}
