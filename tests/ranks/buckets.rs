//! A model of seventeen buckets, the last of them shorter: each rank has a part of each, and places that reach from one bucket into the
//! next are updated in pieces. The golden models have a few buckets, whose parts are a block each.

use crate::abreast::abreast;
use crate::cli_common::Cli;
use crate::mpirun::said;
use crate::torchrun::Torchrun;
use crate::training::{RUN, assert_same};
use crate::transport::{Draws, seed};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const HIDDEN: usize = 384;
const FFN: usize = 1024;
const LAYERS: usize = 3;

/// Puts a llama of 4.9 million random weights in the place of the golden one.
fn widen(cli: &Cli, draws: &mut Draws) {
    let mut config: serde_json::Value = serde_json::from_slice(&cli.bytes("m/config.json")).unwrap();
    let vocab = config["vocab_size"].as_u64().unwrap() as usize;
    for (name, value) in [
        ("hidden_size", HIDDEN),
        ("intermediate_size", FFN),
        ("num_hidden_layers", LAYERS),
        ("num_attention_heads", 6),
        ("num_key_value_heads", 3),
        ("head_dim", 64),
    ] {
        config[name] = value.into();
    }
    cli.write("m/config.json", config.to_string());
    let mut shapes = vec![("model.embed_tokens".to_owned(), vec![vocab, HIDDEN])];
    for layer in 0..LAYERS {
        let of = |name: &str, shape: Vec<usize>| (format!("model.layers.{layer}.{name}"), shape);
        shapes.extend([
            of("input_layernorm", vec![HIDDEN]),
            of("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            of("self_attn.k_proj", vec![HIDDEN / 2, HIDDEN]),
            of("self_attn.v_proj", vec![HIDDEN / 2, HIDDEN]),
            of("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            of("post_attention_layernorm", vec![HIDDEN]),
            of("mlp.gate_proj", vec![FFN, HIDDEN]),
            of("mlp.up_proj", vec![FFN, HIDDEN]),
            of("mlp.down_proj", vec![HIDDEN, FFN]),
        ]);
    }
    shapes.extend([("model.norm".to_owned(), vec![HIDDEN]), ("lm_head".to_owned(), vec![vocab, HIDDEN])]);
    let all: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let around = if shape.len() == 1 { 1.0 } else { 0.0 };
            let mut number = || around + 0.08 * (draws.next() >> 40) as f32 / (1u32 << 24) as f32 - 0.04;
            let bytes = (0..shape.iter().product()).flat_map(|_| number().to_le_bytes()).collect();
            (format!("{name}.weight"), shape, bytes)
        })
        .collect();
    let elements: usize = all.iter().map(|(_, _, bytes)| bytes.len() / 4).sum();
    // Buckets are a sixteenth of the blocks of 16,384: 18 of them, and less in the last.
    let blocks = elements.div_ceil(1 << 14);
    assert!(blocks / 16 == 18 && blocks % 18 > 3, "{elements}");
    let views =
        all.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &cli.path("m/model.safetensors")).unwrap();
}

/// `args` as so many ranks, over TCP; four are on two machines, as far as they know.
#[track_caller]
fn by(ranks: usize, cli: &Cli, args: &str) {
    let torchrun = Torchrun::new(ranks).on_machines(if ranks == 4 { 2 } else { ranks });
    let all = Torchrun::end(torchrun.start(|_| cli.command(args)));
    assert!(all.iter().all(|ran| ran.status.success()), "{args}: {}", all.iter().map(said).collect::<String>());
}

#[test]
fn a_model_of_several_buckets_is_that_of_one_process() {
    let (cli, seed) = (Cli::with_data(), seed());
    widen(&cli, &mut Draws(seed));
    let bf16 = !cli.ok("doctor").out.contains("--dtype bf16: not here");
    let small = "--optim adamw_8bit --dtype bf16";
    let kinds = [("adamw", "--dtype f32"), ("8bit", small)];
    abreast(2, &kinds[..if bf16 { 2 } else { 1 }], |(name, how)| {
        let args = format!("dpo {RUN} {how} --save-steps 2 --save-total-limit 1 --lr-scheduler-type constant");
        cli.ok(&format!("{args} --max-steps 3 --lanes 4 --out {name}-1"));
        for ranks in [2, 4] {
            by(ranks, &cli, &format!("{args} --max-steps 3 --lanes 4 --out {name}-{ranks}"));
            assert_same(
                &cli,
                &format!("{name}-{ranks}"),
                &format!("{name}-1"),
                &format!("{how}, {ranks} ranks, seed {seed}"),
            );
        }
        // Each reads its share of what others wrote together.
        let parts = format!("{name}-parts");
        by(3, &cli, &format!("{args} --max-steps 2 --lanes 4 --out {parts}"));
        by(2, &cli, &format!("{args} --max-steps 3 --out {parts} --resume auto"));
        let [last, whole] = [&*parts, &format!("{name}-1")].map(|run| cli.bytes(&format!("{run}/model.safetensors")));
        assert!(last == whole, "{how}: weights of a run that went on differ, seed {seed}");
    });
}
