//! Adapters beside weights in four bits: what a run plans and leaves behind, every command, and what is refused.

use crate::cli_common::*;
use fusedpo::backend::Device;
use fusedpo::backend::cpu::Cpu;
use fusedpo::batch::Capacity;
use fusedpo::model::{AdapterInit, AdapterShape, Model, ModelDir, Quantized};
use fusedpo::train::engine::{Engine, Purpose};
use fusedpo::train::memory::MemoryPlan;
use fusedpo::train::optim::{OptimOptions, Optimizer};
use fusedpo::train::team::Ranks;
use fusedpo::train::trained::{Learns, Trained};
use serde_json::Value;

fn scores(cli: &Cli, args: &str) -> Vec<f64> {
    let text = cli.ok(&format!("score --data d --out - {args}")).out;
    text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["logp"].as_f64().unwrap()).collect()
}

/// What is planned is what is taken, buffer by buffer: weights in four bits, their magnitudes, and scratch for one of them.
#[test]
fn plans_count_four_bits() {
    let capacity = Capacity { slots: 64, predictions: 40, responses: 6, pairs: 3 };
    let (optim, trained) = (OptimOptions::default(), Trained::All);
    for double in [false, true] {
        let dir = ModelDir::open(&golden("qwen3")).unwrap().quantized(Quantized { double }).unwrap();
        let dir = dir.with_new_adapter(AdapterShape::new(4, 8.0).unwrap(), AdapterInit::Kaiming, 1).unwrap();
        for purpose in [Purpose::Train, Purpose::Recompute] {
            let learns = Learns { optim: &optim, trained: &trained, synced: false, ranks: Ranks::ALONE };
            let be = Cpu::<f32>::new().unwrap();
            let plan = MemoryPlan::training_as(&be, dir.config(), 32, capacity, (purpose, learns)).unwrap();
            let model = Model::load(&be, &dir, 32).unwrap();
            let mut engine = Engine::new(&be, model, capacity, purpose).unwrap();
            Optimizer::new(&be, &mut engine.state, &optim).unwrap();
            assert_eq!(plan.table, be.memory_table());
            let bytes = |name: &str| plan.table.iter().filter(|(n, _)| n == name).map(|(_, b)| b).sum::<usize>();
            assert!(bytes("weights in 4 bits") > 0 && bytes("weight made dense") > 0, "{:?}", plan.table);
        }
    }
}

#[test]
fn every_command_holds_weights_in_four_bits() {
    let cli = Cli::with_data();
    let nf4 = "--quantize nf4 --double-quant true";
    let ran = cli.ok(&format!("dpo --model m --data d --out a --lora-r 4 --learning-rate 1e-2 --max-steps 4 {nf4}"));
    assert!(ran.err.contains("linear weights of blocks, are in NF4: 4.127 bits each"), "{ran:?}");
    assert!(ran.err.contains("reference: the starting policy"), "{ran:?}");
    let first = rows(&cli, "a").into_iter().find_map(|r| r["loss"].as_f64()).unwrap();
    assert_eq!(first as f32, std::f32::consts::LN_2, "step 0 is exact");
    // The same bits twice; other bits of weights that are not quantized.
    cli.ok(&format!("dpo --model m --data d --out again --lora-r 4 --learning-rate 1e-2 --max-steps 4 {nf4}"));
    cli.ok("dpo --model m --data d --out plain --lora-r 4 --learning-rate 1e-2 --max-steps 4");
    let adapter = |run: &str| cli.bytes(&format!("{run}/adapter_model.safetensors"));
    assert!(adapter("a") == adapter("again") && adapter("a") != adapter("plain"));
    // It goes on with what it began with.
    let other =
        "dpo --model m --data d --out a --lora-r 4 --learning-rate 1e-2 --max-steps 4 --resume auto --quantize nf4";
    let ran = cli.run(other);
    assert!(ran.code != 0, "{ran:?}");
    for args in ["--model m --quantize nf4", "--model m --quantize nf4 --double-quant"] {
        let planned = cli.ok(&format!("plan --data d --device cpu --lora-r 4 {args}")).out;
        assert!(planned.contains("weights in 4 bits") && planned.contains("weight made dense"), "{planned}");
    }
    // A directory in four bits is the same model.
    let said = cli.ok("quantize --model m --out q --double-quant").out;
    assert!(said.starts_with("q: ") && said.contains("weights in 4 bits"), "{said}");
    assert!(scores(&cli, "--model q") == scores(&cli, &format!("--model m {nf4}")));
    assert!(scores(&cli, "--model q") != scores(&cli, "--model m --quantize nf4"));
    assert!(scores(&cli, "--model q --adapter a") == scores(&cli, &format!("--model m --adapter a {nf4}")));
    cli.ok("dpo --model q --data d --out b --lora-r 4 --learning-rate 1e-2 --max-steps 4");
    assert!(adapter("a") == adapter("b"), "four bits that are made and those that are read train the same");
    // Who forgets them is told.
    let ran = cli.ok("score --model m --adapter a --data d --out -");
    assert!(ran.err.contains("a was trained beside weights in NF4"), "{ran:?}");
    for (stage, more) in [("sft", "--gradient-checkpointing"), ("dpo", "--ref-model m --dtype f32")] {
        cli.ok(&format!("{stage} --model m --adapter a --data d --out {stage} --max-steps 2 {nf4} {more}"));
    }
    for args in [
        "eval --model q --adapter a --data d --json --kl-samples 2",
        "eval --model m --adapter a --data d --json --kl-samples 0 --quantize nf4",
        "generate --model q --prompt ab --max-new-tokens 6 --chat-template none",
        "reference --model m --data d --cache c --quantize nf4",
    ] {
        cli.ok(args);
    }
    // Merged it is dense, and the same within rounding; from a directory in four bits as from those that were asked for.
    let ran = cli.ok("merge --model q --adapter a --out merged");
    assert!(ran.err.contains("merged into the dense weights that NF4 stands for"), "{ran:?}");
    cli.ok(&format!("merge --model m --adapter a --out merged-m {nf4}"));
    let (merged, adapted) = (scores(&cli, "--model merged"), scores(&cli, "--model q --adapter a"));
    assert!(merged.iter().zip(&adapted).all(|(a, b)| (a - b).abs() <= 1e-4), "{merged:?} {adapted:?}");
    assert_eq!(merged, scores(&cli, "--model merged-m"));
    assert!(!cli.text("merged/config.json").contains("quantization_config"));
}

#[test]
fn four_bits_without_sense_are_refused_in_a_line() {
    let cli = Cli::with_data();
    cli.ok("quantize --model m --out q");
    let refused = |args: &str, code: i32, want: &str| {
        let ran = cli.run(args);
        assert!(ran.code == code && ran.err.contains(want) && ran.err.trim().lines().count() == 1, "{args}: {ran:?}");
        assert!(!cli.path("o").exists(), "{args}");
    };
    let train = "dpo --model m --data d --out o";
    refused(&format!("{train} --quantize nf4"), 2, "--quantize nf4: weights in four bits do not train; give --lora-r");
    refused(&format!("{train} --quantize nf4 --train norm"), 2, "--quantize nf4: weights in four bits do not train");
    refused(
        &format!("{train} --lora-r 4 --double-quant"),
        2,
        "--double-quant: only weights that are quantized have it; give --quantize too",
    );
    refused(&format!("{train} --lora-r 4 --quantize int8"), 2, "int8");
    refused("dpo --model q --data d --out o", 2, "q: its weights are in four bits, which do not train: give --lora-r");
    refused("sft --model q --data d --out o --train q_proj", 2, "which do not train: give --lora-r");
    refused("plan --model q --data d", 2, "which do not train: give --lora-r");
    let already =
        "q: its weights are in four bits already (`quantization_config` in config.json): leave --quantize out";
    refused("dpo --model q --data d --out o --lora-r 4 --quantize nf4", 2, already);
    refused("score --model q --data d --out o --quantize nf4", 2, already);
    refused("quantize --model q --out o", 2, already);
    refused("quantize --model m --out q", 2, "q");
    refused("score --model m --data d --out o --double-quant", 2, "--double-quant: only weights that are quantized");
    // What a directory lacks is said before anything is written.
    cli.edit_json("q/config.json", |c| c["quantization_config"]["bnb_4bit_use_double_quant"] = true.into());
    refused("dpo --model q --data d --out o --lora-r 4", 2, "has magnitudes of another kind than config.json says");
}
