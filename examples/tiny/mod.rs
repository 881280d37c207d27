//! What the examples work on where they are given nothing: rows, and a small Llama with random weights for their words.
#![allow(dead_code)] // each example uses its own part

use fusedpo::Result;
use fusedpo::backend::cpu::Cpu;
use fusedpo::demo::tokenizer;
use fusedpo::model::{Architecture, Model, ModelConfig, Rope, RopeScaling, SaveDtype, export};
use std::path::Path;
use std::process::ExitCode;

/// Prompt, chosen and rejected, by tabs: films that somebody liked, and did not.
pub const PAIRS: &str = "\
the film was\t good , really good .\t dull , really dull .
the story is\t clever .\t thin , and the end is worse .
the actors are\t a joy to watch .\t bored .
the music was\t a joy .\t worse than dull .
the end is\t clever , and really good .\t thin .
the picture was\t good to watch .\t worse .
the dialogue is\t really clever .\t dull and thin .
the film is\t a joy , and the music is good .\t bored , dull and thin .
";

/// Those pairs as JSONL.
pub fn jsonl() -> String {
    let row = |line: &str| {
        let mut columns = line.split('\t');
        let mut next = || columns.next().unwrap_or_default();
        format!("{}\n", serde_json::json!({ "prompt": next(), "chosen": next(), "rejected": next() }))
    };
    PAIRS.lines().map(row).collect()
}

/// Writes a model directory: a tokenizer of the words of [`PAIRS`], and a Llama of 13,000 random weights.
pub fn write_model(dir: &Path) -> Result<()> {
    let mut words: Vec<String> = PAIRS.split_whitespace().map(str::to_owned).collect();
    words.sort_unstable();
    words.dedup();
    tokenizer::write(dir, &words)?;
    let config = ModelConfig {
        architecture: Architecture::Llama,
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 1,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        vocab_size: tokenizer::SPECIAL.len() + words.len(),
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 10000.0, scaling: RopeScaling::None },
        tie_word_embeddings: true,
        qkv_bias: false,
        o_bias: false,
        qk_norm: false,
        max_position_embeddings: 64,
        sliding_window: None,
        eos_token_ids: vec![2],
        bos_token_id: Some(1),
        dtype: None,
        quantized: None,
        skipped: Default::default(),
        adapter: None,
    };
    let be = Cpu::<f32>::new()?;
    export(&be, &Model::random(&be, config, 1, 64)?, None, None, dir, SaveDtype::F32)?;
    Ok(())
}

/// Ends a program as fusedpo's own commands do: a line on stderr, and the code that goes with it.
pub fn exit(name: &str, result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{name}: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}
