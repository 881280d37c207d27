//! What is timed: shapes of real models, and lengths like those of the data sets that DPO is known by.

use fusedpo::backend::AttnShape;
use fusedpo::data::shard::format::Meta;
use fusedpo::data::shard::{Dataset, NewGroup, NewPair, NewResponse, ShardWriter, Split};
use fusedpo::model::{Architecture, ModelConfig, Rope, RopeScaling};
use tempfile::TempDir;

/// A model by its config.json.
pub struct Shape {
    pub name: &'static str,
    pub of: &'static str,
    architecture: Architecture,
    /// hidden, ffn, layers, heads, key/value heads, head width, vocabulary.
    sizes: [usize; 7],
    tied: bool,
}

pub const SHAPES: [Shape; 7] = [
    Shape {
        name: "26m",
        of: "a small Llama",
        architecture: Architecture::Llama,
        sizes: [512, 1536, 6, 8, 8, 64, 8192],
        tied: true,
    },
    Shape {
        name: "135m",
        of: "SmolLM2-135M",
        architecture: Architecture::Llama,
        sizes: [576, 1536, 30, 9, 3, 64, 49152],
        tied: true,
    },
    Shape {
        name: "0.5b",
        of: "Qwen2.5-0.5B",
        architecture: Architecture::Qwen2,
        sizes: [896, 4864, 24, 14, 2, 64, 151936],
        tied: true,
    },
    Shape {
        name: "0.6b",
        of: "Qwen3-0.6B",
        architecture: Architecture::Qwen3,
        sizes: [1024, 3072, 28, 16, 8, 128, 151936],
        tied: true,
    },
    Shape {
        name: "1b",
        of: "Llama-3.2-1B",
        architecture: Architecture::Llama,
        sizes: [2048, 8192, 16, 32, 8, 64, 128256],
        tied: true,
    },
    Shape {
        name: "3b",
        of: "Qwen2.5-3B",
        architecture: Architecture::Qwen2,
        sizes: [2048, 11008, 36, 16, 2, 128, 151936],
        tied: true,
    },
    Shape {
        name: "7b",
        of: "Qwen2.5-7B",
        architecture: Architecture::Qwen2,
        sizes: [3584, 18944, 28, 28, 4, 128, 152064],
        tied: false,
    },
];

impl Shape {
    pub fn config(&self) -> ModelConfig {
        let [
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size,
        ] = self.sizes;
        ModelConfig {
            architecture: self.architecture,
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size,
            rms_norm_eps: 1e-6,
            rope: Rope { theta: 1e6, scaling: RopeScaling::None },
            tie_word_embeddings: self.tied,
            qkv_bias: self.architecture == Architecture::Qwen2,
            o_bias: false,
            qk_norm: self.architecture == Architecture::Qwen3,
            max_position_embeddings: 4096,
            sliding_window: None,
            eos_token_ids: vec![],
            bos_token_id: None,
            dtype: None,
            quantized: None,
            skipped: Default::default(),
            adapter: None,
        }
    }

    /// Weights of the layers, and of the embedding (the head, where it is another matrix, is as large).
    pub fn weights(&self) -> (f64, f64) {
        let [hidden, ffn, layers, heads, kv_heads, head_dim, vocab] = self.sizes.map(|n| n as f64);
        let a = AttnShape { heads: heads as usize, kv_heads: kv_heads as usize, head_dim: head_dim as usize };
        let attention = hidden * (a.qkv_width() + a.q_width()) as f64;
        (layers * (attention + 3.0 * hidden * ffn), vocab * hidden)
    }
}

impl Shape {
    /// All weights of its products.
    pub fn parameters(&self) -> f64 {
        let (body, embedding) = self.weights();
        body + embedding * if self.tied { 1.0 } else { 2.0 }
    }
}

/// Lengths in tokens: log-normal, by median and by the deviation of the logarithm.
pub struct Mix {
    pub name: &'static str,
    pub prompt: (f64, f64),
    pub response: (f64, f64),
    /// Where the medians come from.
    pub source: &'static str,
}

/// A deviation of 0.6 makes the mean 1.2 times the median, as real sets have it.
pub const MIXES: [Mix; 4] = [
    Mix { name: "hh", prompt: (127.0, 0.6), response: (59.0, 0.6), source: "HH-RLHF's medians" },
    Mix {
        name: "imdb",
        prompt: (5.0, 0.3),
        response: (64.0, 0.2),
        source: "prefixes of 2 to 8 tokens and samples, as in the DPO paper",
    },
    Mix { name: "tldr", prompt: (382.0, 0.4), response: (34.0, 0.4), source: "Reddit TL;DR's medians" },
    Mix { name: "ultrafeedback", prompt: (121.0, 0.6), response: (288.0, 0.6), source: "UltraFeedback's medians" },
];

/// Longest prompt with one response.
pub const LONGEST: usize = 1024;

/// A fixed sequence of numbers in 0..1.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }
    fn length(&mut self, (median, deviation): (f64, f64)) -> usize {
        let normal = (-2.0 * self.next().ln()).sqrt() * (2.0 * std::f64::consts::PI * self.next()).cos();
        ((median * (deviation * normal).exp()).round() as usize).max(1)
    }
}

/// `pairs` pairs with random tokens, as a shard of their own.
pub fn data(mix: &Mix, pairs: usize, vocab: usize) -> (TempDir, Dataset) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let meta = Meta {
        vocab_size: vocab as u32,
        eos_id: None,
        bos_rule: 0,
        tokenizer_sha256: [0; 32],
        template_sha256: [0; 32],
        max_length: 0,
        truncation: 0,
        boundary: 0,
    };
    let mut shard = ShardWriter::create(&dir.path().join("train-00000.pref"), &meta).expect("a shard");
    let mut numbers = Numbers(17);
    for row in 0..pairs {
        let prompt = numbers.length(mix.prompt).min(LONGEST * 3 / 4);
        let lengths = [(); 2].map(|()| numbers.length(mix.response).min(LONGEST - prompt));
        let mut tokens = |n: usize| (0..n).map(|_| (numbers.next() * vocab as f64) as u32).collect::<Vec<_>>();
        let (prompt, responses) = (tokens(prompt), lengths.map(&mut tokens));
        let responses = responses.iter().enumerate().map(|(index, tokens)| NewResponse {
            tokens,
            score: None,
            label: None,
            row: row as u64,
            index: index as u32,
        });
        let pair = NewPair { chosen: 0, rejected: 1, weight: 1.0 };
        shard.push(&NewGroup { prompt: &prompt, responses: responses.collect(), pairs: vec![pair] }).expect("a row");
    }
    shard.finish().expect("a shard");
    let data = Dataset::open(dir.path(), Split::Train).expect("the shard opens");
    (dir, data)
}
