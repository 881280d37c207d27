//! Configurations as transformers resolves them: `tests/golden/configs.jsonl`, and new ones where `FUSEDPO_PYTHON` names a
//! Python with transformers 5.23. Made by `scripts/resolve_configs.py`, which asks transformers' own code.
//!
//! `FUSEDPO_CONFIGS=N` compares N new configurations instead of 300, `FUSEDPO_CONFIGS_SEED=S` others.

use fusedpo::model::ModelConfig;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Words of our refusals of what transformers takes: what is not implemented, and what is taken and makes no sense.
const NOT_IMPLEMENTED: &[&str] = &[
    "`hidden_act` \"gelu\" is not supported",
    "`mlp_bias` true is not supported",
    "`is_causal` other than true is not supported",
    "`layer_types` other than full attention is not supported for llama",
    // A stretch without a kind: transformers logs a warning and does not stretch.
    "but no `rope_type`, without which transformers ignores it",
    // Their high frequencies would begin below the low ones.
    "`high_freq_factor` must be greater than `low_freq_factor`",
    // Read by no forward pass of the plain kinds.
    "`max_position_embeddings` is -1, expected",
    "`max_position_embeddings` is 0, expected",
    // Shapes that fit by accident, in heads of 2 and 4.
    "`partial_rotary_factor` other than 1 is not supported",
    "of type `dynamic` needs heads wider than 2",
    // No position turns there, so nothing asks for the base.
    "`rope_theta` is null, expected",
    // A kind of layers that transformers takes for another family.
    "`layer_types` in a mistral model is not supported",
];

fn close(got: f64, want: f64) -> bool {
    (got - want).abs() <= 2e-5 * want.abs() + 1e-12
}

/// What differs between our reading of `config` and transformers'; the kind of rotary embedding where both take it.
fn compare(line: &Value) -> Result<Option<String>, String> {
    let config = line["config"].as_object().ok_or("no config")?;
    let ours = ModelConfig::parse("config.json".as_ref(), config);
    if let Some(theirs) = line["refused"].as_str() {
        return match ours {
            Ok(_) => Err(format!("we take it, transformers does not: {theirs}")),
            Err(_) => Ok(None),
        };
    }
    let r = &line["resolved"];
    let c = match ours {
        Ok(c) => c,
        Err(e) if NOT_IMPLEMENTED.iter().any(|w| e.to_string().contains(w)) => return Ok(None),
        Err(e) => return Err(format!("transformers takes it, we do not: {e}")),
    };
    let ids = |v: &Value| v.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect::<Vec<_>>();
    let size = |name: &str| r[name].as_u64().map(|n| n as usize);
    for (name, ours) in [
        ("vocab_size", c.vocab_size),
        ("hidden_size", c.hidden_size),
        ("intermediate_size", c.intermediate_size),
        ("num_hidden_layers", c.num_hidden_layers),
        ("num_attention_heads", c.num_attention_heads),
        ("num_key_value_heads", c.num_key_value_heads),
        ("head_dim", c.head_dim),
        ("max_position_embeddings", c.max_position_embeddings),
    ] {
        if size(name) != Some(ours) {
            return Err(format!("`{name}`: {ours}, transformers {}", r[name]));
        }
    }
    let others = [
        ("rms_norm_eps", r["rms_norm_eps"].as_f64() == Some(c.rms_norm_eps)),
        ("tie_word_embeddings", r["tie_word_embeddings"].as_bool() == Some(c.tie_word_embeddings)),
        ("qkv_bias", r["qkv_bias"].as_bool() == Some(c.qkv_bias)),
        ("o_bias", r["o_bias"].as_bool() == Some(c.o_bias)),
        ("sliding_window", size("sliding_window") == c.sliding_window),
        ("eos_token_id", ids(&r["eos_token_id"]) == c.eos_token_ids),
        ("bos_token_id", r["bos_token_id"].as_u64() == c.bos_token_id.map(u64::from)),
        ("dtype", r["dtype"].as_str() == c.dtype.as_deref()),
        ("hidden_act", matches!(r["hidden_act"].as_str(), Some("silu" | "swish"))),
        ("mlp_bias", r["mlp_bias"] == false),
        ("is_causal", r["is_causal"] == true),
        ("layer_types_of_llama", r["layer_types_of_llama"] == false),
    ];
    if let Some((name, _)) = others.iter().find(|(_, same)| !same) {
        return Err(format!("`{name}`: transformers {}; ours {c:?}", r[name]));
    }
    rotary(&c, &r["rope"])?;
    Ok(Some(r["rope_type"].as_str().unwrap().to_owned()))
}

/// The frequencies of rows of each length, and the factor.
fn rotary(c: &ModelConfig, rope: &Value) -> Result<(), String> {
    for one in rope.as_array().unwrap() {
        let length = one["length"].as_u64().unwrap() as usize;
        let want: Vec<f64> = one["frequencies"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        let got = c.rope.frequencies(c.head_dim, length);
        if got.len() != want.len() || !got.iter().zip(&want).all(|(g, w)| close(*g, *w)) {
            return Err(format!("rows of {length}: frequencies {got:?}, transformers {want:?}"));
        }
        let (got, want) = (c.rope.attention_factor(), one["factor"].as_f64().unwrap());
        if !close(got, want) {
            return Err(format!("rows of {length}: factor {got}, transformers {want}"));
        }
        // The table of a model for such rows turns them by these frequencies.
        let table = c.rope.table(length.min(300), c.head_dim);
        let at = (c.rope.tables(length.min(300)) - 1) * length.min(300) * c.head_dim;
        if length > 1 && length <= 300 {
            let f = c.rope.frequencies(c.head_dim, length)[0];
            assert_eq!(table[at + c.head_dim], want * f.cos(), "position 1 of the last table");
        }
    }
    Ok(())
}

/// Compares every line; `least` of each kind must be taken by both.
fn compare_all(lines: &str, least: usize) {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut n = 0;
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        n += 1;
        match compare(&line) {
            Ok(kind) => *kinds.entry(kind.unwrap_or("refused".into())).or_default() += 1,
            Err(why) => wrong.push(format!("{}: {why}", line["config"])),
        }
    }
    println!("{n} configurations: {kinds:?}, {} wrong", wrong.len());
    wrong.truncate(20);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for kind in ["default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"] {
        assert!(kinds.get(kind).is_some_and(|n| *n >= least), "too few of {kind}: {kinds:?}");
    }
}

#[test]
fn the_golden_configurations_are_read_as_transformers_reads_them() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/configs.jsonl");
    compare_all(&std::fs::read_to_string(path).unwrap(), 3);
}

#[test]
fn new_configurations_are_read_as_transformers_reads_them() {
    let Ok(python) = std::env::var("FUSEDPO_PYTHON") else {
        return println!("skipped: FUSEDPO_PYTHON is unset");
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/resolve_configs.py");
    let set = |name: &str, default: &str| std::env::var(name).unwrap_or(default.to_owned());
    let (count, seed) = (set("FUSEDPO_CONFIGS", "300"), set("FUSEDPO_CONFIGS_SEED", "2"));
    let out = std::process::Command::new(python)
        .arg(script)
        .args(["--count", &count, "--seed", &seed])
        .output()
        .expect("Python runs");
    if !out.status.success() {
        let why = String::from_utf8_lossy(&out.stderr);
        assert!(why.contains("install"), "{why}");
        return println!("skipped: {}", why.trim());
    }
    compare_all(std::str::from_utf8(&out.stdout).unwrap(), 1);
}
