//! What a model is, in 32 bytes: part of the key of everything that was computed with it.

use super::config::ModelConfig;
use super::params::ParamTable;
use super::source::Stored;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

/// Bytes per leaf of the hash.
const LEAF: usize = 4 << 20;

/// Identity of weights and of what their configuration makes of them: see [`super::ModelDir::identity`].
pub(super) fn hash(c: &ModelConfig, table: &ParamTable, stored: Stored) -> [u8; 32] {
    let numerics = (c.architecture, c.rms_norm_eps, c.rope, c.num_attention_heads, c.num_key_value_heads);
    let mut all = Sha256::new();
    all.update(format!("{numerics:?} {} {}\n", c.head_dim, c.tie_word_embeddings));
    for spec in &table.specs {
        let (dtype, bytes) = stored.bytes(spec);
        all.update(format!("{} {dtype:?} {:?}\n", spec.name, spec.shape));
        let leaves: Vec<_> = bytes.par_chunks(LEAF).map(Sha256::digest).collect();
        leaves.iter().for_each(|leaf| all.update(leaf));
        stored.release(spec, 0..bytes.len());
    }
    all.finalize().into()
}
