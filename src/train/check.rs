//! Whether a model and a data set belong together.

use crate::data::dataset::{Dataset, Split};
use crate::data::tokenize::tokenizer_sha256;
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::note;
use rayon::prelude::*;
use std::path::Path;

/// Every split of a folder of shards, train first.
pub fn open_splits(dir: &Path) -> Result<Vec<Dataset>> {
    let mut all = vec![Dataset::open(dir, Split::Train)?];
    if Dataset::has_split(dir, Split::Eval) {
        all.push(Dataset::open(dir, Split::Eval)?);
    }
    Ok(all)
}

/// Checks every byte of the shards, and [`check_model`].
pub fn check_data(model: &Path, data: &Dataset) -> Result<()> {
    // First what is quick to find.
    check_vocabulary(model, data)?;
    data.verify()?;
    check_model(model, data)
}

/// Refuses data of another tokenizer, token ids that the model has no row for, and rows that it has no positions for.
/// The data are verified already.
pub fn check_model(model: &Path, data: &Dataset) -> Result<()> {
    check_vocabulary(model, data)?.check_positions(longest_row(data))
}

fn check_vocabulary(model: &Path, data: &Dataset) -> Result<ModelConfig> {
    let (config, meta) = (ModelConfig::load(model)?, data.meta());
    if meta.vocab_size as usize > config.vocab_size {
        return Err(Error::file(
            model,
            format!(
                "has {} tokens, but the shards were made with {}; pack them with this model's tokenizer",
                config.vocab_size, meta.vocab_size
            ),
        ));
    }
    if model.join("tokenizer.json").is_file() && tokenizer_sha256(model)? != meta.tokenizer_sha256 {
        return Err(Error::file(
            model,
            "its tokenizer.json is not the one that the shards were made with; pack them with this model's tokenizer",
        ));
    }
    Ok(config)
}

/// Says on stderr that rows are longer than the model was made for, where they are: RoPE goes on, quality may not.
pub fn warn_of_positions(model: &ModelConfig, positions: usize) {
    let made_for = model.max_position_embeddings;
    if positions > made_for {
        note!(
            "warning: rows of up to {positions} tokens, but the model was made for {made_for}: beyond, it may be poor"
        );
    }
}

/// Tokens of the longest prompt with one of its responses: the positions that a model must have.
pub fn longest_row(data: &Dataset) -> usize {
    let row = |id: u64| {
        let g = data.group(id);
        g.prompt().len() + g.responses().map(|r| r.tokens.len()).max().unwrap_or(0)
    };
    (0..data.num_groups()).into_par_iter().map(row).max().unwrap_or(0)
}
