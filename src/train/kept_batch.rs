//! The batch of a step without finite numbers, as a file that is looked at and computed again: safetensors, a group of tensors a
//! micro-batch, and what the step was in `__metadata__`. `docs/runs.md` has its names.

use crate::batch::{MicroBatch, Outline, Role};
use crate::data::shard::format::hex;
use crate::error::{Error, Result};
use crate::files;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::Path;

/// Files of a run.
pub(super) const MOST_FILES: usize = 8;
/// Bytes of one.
pub(super) const MOST_BYTES: usize = 64 << 20;
/// What `__metadata__` holds it under: one key, as the order of several would differ from run to run.
const KEY: &str = "fusedpo";
const FORMAT: &str = "fusedpo batch";
const VERSION: u64 = 1;

/// What a step was.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepBatch {
    /// What this is.
    pub format: String,
    /// Of the format.
    pub version: u64,
    /// Version of the program that wrote it.
    pub program: String,
    /// `sft` or `dpo`.
    pub stage: String,
    /// From 1.
    pub step: u64,
    /// From 0.
    pub epoch: u64,
    /// Its place in the epoch, from 0.
    pub place: u64,
    /// Seed of the order of the data.
    pub seed: u64,
    /// Its learning rate.
    pub learning_rate: f64,
    /// Its loss, as text where it is no number.
    pub loss: String,
    /// Gradient norm before clipping, likewise.
    pub grad_norm: String,
    /// What computed it.
    pub numerics: String,
    /// Of the training split, the model that the run started from, and the options that decide a bit.
    pub sha256_data: String,
    /// See above.
    pub sha256_model: String,
    /// See above.
    pub sha256_options: String,
    /// Micro-batches.
    pub micro_batches: usize,
    /// Over names and bytes of all tensors, in the order of their micro-batches.
    pub sha256: String,
}

impl StepBatch {
    /// One of this version, without its sum.
    pub fn named(self, batches: &[MicroBatch]) -> Self {
        let (format, program) = (FORMAT.to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        Self { format, version: VERSION, program, micro_batches: batches.len(), sha256: sum(batches), ..self }
    }

    /// The content of the file.
    pub fn to_bytes(&self, batches: &[MicroBatch]) -> Result<Vec<u8>> {
        let all: Vec<Tensor> = tensors(batches).collect();
        let cannot = |e: &dyn std::fmt::Display| Error::Training(format!("a batch cannot be written down: {e}"));
        let views: Vec<_> = all
            .iter()
            .map(|t| Ok((t.name.as_str(), TensorView::new(t.dtype, t.shape.clone(), &t.bytes)?)))
            .collect::<std::result::Result<_, safetensors::SafeTensorError>>()
            .map_err(|e| cannot(&e))?;
        let text = serde_json::to_string(self).map_err(|e| cannot(&e))?;
        let metadata = HashMap::from([(KEY.to_owned(), text)]);
        safetensors::serialize(views, Some(metadata)).map_err(|e| cannot(&e))
    }

    /// What the file `path` says. Errors: none of ours, of another version, or damaged.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = files::read(path, 2 * MOST_BYTES as u64)?;
        let damaged = |why: &dyn std::fmt::Display| {
            Error::file(path, format!("is no batch of a step that this program can read ({why}): remove it"))
        };
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).map_err(|e| damaged(&e))?;
        let text = header.metadata().as_ref().and_then(|m| m.get(KEY)).ok_or_else(|| damaged(&"no metadata"))?;
        let this: Self = serde_json::from_str(text).map_err(|e| damaged(&e))?;
        if (this.format.as_str(), this.version) != (FORMAT, VERSION) {
            return Err(damaged(&format!("version {}", this.version)));
        }
        let file = safetensors::SafeTensors::deserialize(&bytes).map_err(|e| damaged(&e))?;
        let mut sha = Sha256::new();
        for i in 0..this.micro_batches {
            for name in NAMES {
                let name = format!("micro_batch.{i}.{name}");
                let tensor = file.tensor(&name).map_err(|e| damaged(&e))?;
                sha.update(name.as_bytes());
                sha.update(tensor.data());
            }
        }
        match hex(&sha.finalize()) == this.sha256 {
            true => Ok(this),
            false => Err(damaged(&"its sum is not that of its content")),
        }
    }
}

/// Over all that a step reads of `batches`.
pub(super) fn sum(batches: &[MicroBatch]) -> String {
    let mut sha = Sha256::new();
    for t in tensors(batches) {
        sha.update(t.name.as_bytes());
        sha.update(&t.bytes);
    }
    hex(&sha.finalize())
}

/// Bytes of the tensors of `batches`, counted before any is made.
pub(super) fn len<'b>(batches: impl Iterator<Item = &'b Outline>) -> usize {
    let numbers = |of: &Outline| {
        let rows = 2 * of.used() + 4 * of.num_segments() + 3 * of.num_predictions() + 4 * of.groups().len();
        rows + 7 * of.responses().len() + 8 * of.pairs().len()
    };
    8 * batches.map(numbers).sum::<usize>()
}

struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// Of every micro-batch, in this order.
const NAMES: [&str; 14] = [
    "tokens",
    "positions",
    "segments",
    "predictions",
    "groups",
    "responses.id",
    "responses.reference_logp",
    "responses.score",
    "responses.role",
    "responses.given",
    "pairs.id",
    "pairs.responses",
    "pairs.weight",
    "pairs.reference_heads_given",
];

fn tensors(batches: &[MicroBatch]) -> impl Iterator<Item = Tensor> + '_ {
    batches.iter().enumerate().flat_map(|(i, mb)| {
        NAMES.into_iter().zip(of(mb)).map(move |(name, (dtype, width, bytes))| {
            let rows = bytes.len() / 8 / width;
            let shape = if width == 1 { vec![rows] } else { vec![rows, width] };
            Tensor { name: format!("micro_batch.{i}.{name}"), dtype, shape, bytes }
        })
    })
}

/// Numbers of eight bytes each: what every reader of the format knows.
fn of(mb: &MicroBatch) -> Vec<(Dtype, usize, Vec<u8>)> {
    fn ints(width: usize, all: impl Iterator<Item = u64>) -> (Dtype, usize, Vec<u8>) {
        (Dtype::I64, width, all.flat_map(|x| (x as i64).to_le_bytes()).collect())
    }
    fn reals(width: usize, all: impl Iterator<Item = f64>) -> (Dtype, usize, Vec<u8>) {
        (Dtype::F64, width, all.flat_map(f64::to_le_bytes).collect())
    }
    let (used, responses, pairs) = (mb.used(), mb.responses(), mb.pairs());
    let role = |role: Role| match role {
        Role::Own { desirable, undesirable } => [0.0, f64::from(desirable), f64::from(undesirable)],
        Role::Mismatched { group, weight } => [1.0, group as f64, f64::from(weight)],
    };
    vec![
        ints(1, mb.tokens()[..used].iter().map(|x| u64::from(*x))),
        ints(1, mb.positions()[..used].iter().map(|x| u64::from(*x))),
        ints(4, mb.segments().iter().flat_map(|s| [s.start, s.len, s.prefix_start, s.prefix_len].map(u64::from))),
        ints(3, mb.predictions().iter().flat_map(|p| [p.row, p.target, p.response].map(u64::from))),
        ints(
            4,
            mb.groups().iter().flat_map(|g| {
                [g.id, u64::from(g.prompt.start), u64::from(g.responses.start), u64::from(g.responses.end)]
            }),
        ),
        ints(1, responses.iter().map(|r| r.id)),
        reals(1, responses.iter().map(|r| r.ref_logp)),
        reals(1, responses.iter().map(|r| r.score.map_or(f64::NAN, f64::from))),
        reals(3, responses.iter().flat_map(|r| role(r.role))),
        reals(1, responses.iter().map(|r| r.given)),
        ints(1, pairs.iter().map(|p| p.id)),
        ints(2, pairs.iter().flat_map(|p| [p.chosen, p.rejected].map(u64::from))),
        reals(1, pairs.iter().map(|p| f64::from(p.weight))),
        reals(4, pairs.iter().flat_map(|p| [p.ref_heads[0], p.ref_heads[1], p.given[0], p.given[1]])),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Builder;

    #[test]
    fn bytes_are_counted_before_they_are_made() {
        let mut b = Builder::default();
        for group in 0..3 {
            b.group(group, 0..5 * group as u32).unwrap();
            (0..group + 2).for_each(|i| b.response(10 * group + i, 1..4 + i as u32).unwrap());
            (0..group as usize).for_each(|i| b.pair(i, i + 1, 0.5, 7 * group + i as u64).unwrap());
        }
        let batches = [b.finish(100).unwrap(), Builder::default().finish(3).unwrap()];
        let made: usize = tensors(&batches).map(|t| t.bytes.len()).sum();
        let counted = len(batches.iter().map(MicroBatch::outline));
        assert!(made > 0 && counted == made, "{counted} {made}");
    }
}
