//! The model against the plainest forward pass there is, written here in f64: what `tests/golden` has no file for, an epsilon
//! that matters in every norm and stretched rotary frequencies, both from `config.json`.

use crate::model_common;

use fusedpo::model::{Model, ModelDir};
use model_common::files::{Tensors, copy, edit_json, read_json, tensors};
use model_common::{Group, cpu64, pack, score};
use serde_json::{Value, json};

/// `config.json` and the weights of a directory.
struct Naive {
    config: Value,
    tensors: Tensors,
    /// Divides every rotary frequency.
    stretch: f64,
}

/// Rows of numbers.
type Rows = Vec<Vec<f64>>;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Naive {
    fn size(&self, key: &str) -> usize {
        self.config[key].as_u64().unwrap() as usize
    }

    fn head_dim(&self) -> usize {
        let own = self.config.get("head_dim").and_then(Value::as_u64);
        own.map_or(self.size("hidden_size") / self.size("num_attention_heads"), |d| d as usize)
    }

    fn theta(&self) -> f64 {
        let inside = self.config.get("rope_parameters").and_then(|r| r["rope_theta"].as_f64());
        inside.unwrap_or_else(|| self.config["rope_theta"].as_f64().unwrap())
    }

    fn vector(&self, name: &str) -> Option<Vec<f64>> {
        let (dtype, _, bytes) = self.tensors.get(name)?;
        assert_eq!(*dtype, safetensors::Dtype::F32);
        Some(bytes.chunks(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect())
    }

    /// `x W^T`, and the bias where there is one.
    fn linear(&self, x: &Rows, name: &str) -> Rows {
        let w = self.vector(&format!("{name}.weight")).unwrap();
        let bias = self.vector(&format!("{name}.bias"));
        let row = |x: &Vec<f64>| {
            let out = w.chunks(x.len()).enumerate();
            out.map(|(i, w)| dot(x, w) + bias.as_ref().map_or(0.0, |b| b[i])).collect()
        };
        x.iter().map(row).collect()
    }

    fn norm(&self, x: &[f64], name: &str) -> Vec<f64> {
        let w = self.vector(&format!("{name}.weight")).unwrap();
        let root = (dot(x, x) / x.len() as f64 + self.config["rms_norm_eps"].as_f64().unwrap()).sqrt();
        x.iter().zip(&w).map(|(x, w)| x / root * w).collect()
    }

    fn normed(&self, x: &Rows, name: &str) -> Rows {
        x.iter().map(|x| self.norm(x, name)).collect()
    }

    /// Rotates a head at `position`: element `i` with element `i + head_dim / 2`, as transformers does.
    fn rotate(&self, head: &[f64], position: usize) -> Vec<f64> {
        let (d, half) = (head.len(), head.len() / 2);
        let mut out = vec![0.0; d];
        for i in 0..half {
            let angle = position as f64 * self.theta().powf(-2.0 * i as f64 / d as f64) / self.stretch;
            out[i] = head[i] * angle.cos() - head[i + half] * angle.sin();
            out[i + half] = head[i + half] * angle.cos() + head[i] * angle.sin();
        }
        out
    }

    /// Heads of every row, normed where the family does so, and rotated.
    fn heads(&self, x: &Rows, layer: &str, which: &str) -> Vec<Rows> {
        let norm = format!("{layer}.self_attn.{which}_norm");
        let head = |position: usize, head: &[f64]| match self.vector(&format!("{norm}.weight")) {
            Some(_) => self.rotate(&self.norm(head, &norm), position),
            None => self.rotate(head, position),
        };
        let rows = x.iter().enumerate();
        rows.map(|(p, row)| row.chunks(self.head_dim()).map(|h| head(p, h)).collect()).collect()
    }

    fn attention(&self, x: &Rows, layer: &str) -> Rows {
        let of = |which: &str| self.linear(x, &format!("{layer}.self_attn.{which}_proj"));
        let (q, k, v) = (self.heads(&of("q"), layer, "q"), self.heads(&of("k"), layer, "k"), of("v"));
        let (d, shared) = (self.head_dim(), self.size("num_attention_heads") / self.size("num_key_value_heads"));
        let mut out = Vec::new();
        for (row, heads) in q.iter().enumerate() {
            let mut joined = Vec::new();
            for (h, q) in heads.iter().enumerate() {
                let weights: Vec<f64> =
                    (0..=row).map(|t| (dot(q, &k[t][h / shared]) / (d as f64).sqrt()).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let value = |i: usize| (0..=row).map(|t| weights[t] / sum * v[t][h / shared * d + i]).sum::<f64>();
                joined.extend((0..d).map(value));
            }
            out.push(joined);
        }
        self.linear(&out, &format!("{layer}.self_attn.o_proj"))
    }

    fn mlp(&self, x: &Rows, layer: &str) -> Rows {
        let of = |which: &str| self.linear(x, &format!("{layer}.mlp.{which}_proj"));
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let inner = |(g, u): (Vec<f64>, Vec<f64>)| g.into_iter().zip(u).map(|(g, u)| silu(g) * u).collect();
        let inner: Rows = of("gate").into_iter().zip(of("up")).map(inner).collect();
        self.linear(&inner, &format!("{layer}.mlp.down_proj"))
    }

    /// Log-probs of every token but the first, each after those before it.
    fn logps(&self, tokens: &[u32]) -> Vec<f64> {
        let embedding = self.vector("model.embed_tokens.weight").unwrap();
        let hidden = self.size("hidden_size");
        let mut x: Rows = tokens.iter().map(|t| embedding[*t as usize * hidden..][..hidden].to_vec()).collect();
        let add = |x: &mut Rows, y: Rows| {
            x.iter_mut().zip(y).for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x += y));
        };
        for l in 0..self.size("num_hidden_layers") {
            let layer = format!("model.layers.{l}");
            let y = self.attention(&self.normed(&x, &format!("{layer}.input_layernorm")), &layer);
            add(&mut x, y);
            let y = self.mlp(&self.normed(&x, &format!("{layer}.post_attention_layernorm")), &layer);
            add(&mut x, y);
        }
        let head = self.vector("lm_head.weight").unwrap_or(embedding);
        let logp = |(x, target): (&Vec<f64>, &u32)| {
            let z: Vec<f64> = head.chunks(hidden).map(|w| dot(x, w)).collect();
            z[*target as usize] - z.iter().map(|z| z.exp()).sum::<f64>().ln()
        };
        self.normed(&x, "model.norm").iter().zip(&tokens[1..]).map(logp).collect()
    }
}

/// Two responses to one prompt, packed, against each text alone.
fn check(name: &str, stretch: f64, edit: impl FnOnce(&mut Value)) {
    let dir = copy(name);
    let path = dir.path().join("config.json");
    edit_json(&path, edit);
    let naive = Naive { config: read_json(&path), tensors: tensors(&dir.path().join("model.safetensors")), stretch };
    let ids = |from: u32, n: u32| (0..n).map(|i| 3 + (from + i * i * 7 + i * 11) % 94).collect::<Vec<u32>>();
    let group = Group { prompt: ids(5, 13), responses: vec![ids(40, 17), ids(70, 4)], ..Group::default() };
    let be = cpu64();
    let model = Model::load(&be, &ModelDir::open(dir.path()).unwrap(), 64).unwrap();
    let got = score(&be, &model, &[pack(std::slice::from_ref(&group), 3)]);
    for (got, response) in got.iter().zip(&group.responses) {
        let want = naive.logps(&[group.prompt.as_slice(), response].concat());
        let want = &want[group.prompt.len() - 1..];
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() <= 1e-11 * want.abs().max(1.0), "{name}: {got}, not {want}");
        }
    }
}

#[test]
fn an_epsilon_that_matters() {
    for name in ["llama", "qwen2", "qwen3"] {
        for eps in [1e-6, 1e-5, 0.05] {
            check(name, 1.0, |c| c["rms_norm_eps"] = json!(eps));
        }
    }
}

/// transformers: `inv_freq /= factor`. In the words of its versions 4 (two of them) and 5.
#[test]
fn linear_scaling_divides_every_frequency() {
    check("llama", 2.5, |c| c["rope_scaling"] = json!({"type": "linear", "factor": 2.5}));
    check("llama", 8.0, |c| c["rope_scaling"] = json!({"rope_type": "linear", "factor": 8}));
    check("qwen3", 4.0, |c| {
        c["rope_parameters"] = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0});
    });
}
