//! What a model is, in 32 bytes: part of the key of everything that was computed with it.

use super::adapter::AdapterWeights;
use super::config::ModelConfig;
use super::params::ParamTable;
use super::quantized::Quantized;
use super::source::dtype_bytes;
use super::stored::Stored;
use crate::error::Result;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

/// Bytes per leaf of the hash.
const LEAF: usize = 4 << 20;

/// Identity of a model of identity `base` with an adapter. A new adapter has one too, by its values.
pub(super) fn hash_adapter(base: [u8; 32], adapter: &AdapterWeights, table: &ParamTable) -> [u8; 32] {
    let mut all = Sha256::new();
    all.update(base);
    all.update(format!("adapter {:?}\n", adapter.shape.scale()));
    for spec in &table.specs {
        let Some(values) = adapter.get(&spec.name, None) else { continue };
        all.update(format!("{} {:?}\n", spec.name, spec.shape));
        all.update(bytemuck::cast_slice::<f32, u8>(&values));
    }
    all.finalize().into()
}

/// Identity of a model of identity `stored` whose weights are held in another way than they are stored.
pub(super) fn hash_held(stored: [u8; 32], how: Option<Quantized>) -> [u8; 32] {
    let mut all = Sha256::new();
    all.update(stored);
    all.update(match how {
        Some(Quantized { double }) => format!("nf4 double {double}\n"),
        None => "dequantized\n".into(),
    });
    all.finalize().into()
}

/// Identity of weights and of what their configuration makes of them: see [`super::ModelDir::identity`].
///
/// Errors: what reading the weights meets.
pub(super) fn hash(c: &ModelConfig, table: &ParamTable, stored: Stored) -> Result<[u8; 32]> {
    let numerics = (c.architecture, c.rms_norm_eps, &c.rope, c.num_attention_heads, c.num_key_value_heads);
    let mut all = Sha256::new();
    all.update(format!("{numerics:?} {} {}\n", c.head_dim, c.tie_word_embeddings));
    for spec in &table.specs {
        let dtype = stored.dtype(spec);
        let len = spec.at.len() * dtype_bytes(dtype);
        all.update(format!("{} {dtype:?} {:?}\n", spec.name, spec.shape));
        let leaf = |buf: &mut Vec<u8>, at: usize| {
            let range = at * LEAF..len.min((at + 1) * LEAF);
            Ok(Sha256::digest(stored.bytes(spec, range, buf)?))
        };
        let leaves = (0..len.div_ceil(LEAF)).into_par_iter().map_init(Vec::new, leaf).collect::<Result<Vec<_>>>()?;
        leaves.iter().for_each(|leaf| all.update(leaf));
    }
    // Read whole, one after the other: in four bits they are small.
    for p in &table.nf4 {
        let t = stored.nf4(p, None)?;
        all.update(format!("{} {:?} {:?}\n", p.name, t.dtype, p.shape));
        all.update(Sha256::digest(&t.codes));
        all.update(bytemuck::cast_slice::<f32, u8>(&t.absmax.values(0..p.blocks.len())));
    }
    Ok(all.finalize().into())
}
