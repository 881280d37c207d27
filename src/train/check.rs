//! Whether a model and a data set belong together.

use crate::data::shard::{Dataset, Split};
use crate::error::{Error, Result};
use crate::model::{ModelConfig, ModelDir};
use crate::observe::{Event, Observe};
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
pub fn check_data(model: &ModelDir, data: &Dataset) -> Result<()> {
    // First what is quick to find.
    check_vocabulary(model, data)?;
    data.verify()?;
    check_model(model, data)
}

/// Refuses data of another tokenizer, token ids that the model has no row for, and rows that it has no positions for.
/// The data are verified already.
pub fn check_model(model: &ModelDir, data: &Dataset) -> Result<()> {
    check_vocabulary(model, data)?;
    data.check_unchanged()?;
    let config = model.config();
    config.check_positions(data.longest_row())?;
    // Only what is turned by its length is read row by row.
    if config.rope.tables(data.longest_row()) > 1 {
        for group in (0..data.num_groups()).map(|g| data.group(g)) {
            let rows = || group.responses().map(|r| group.prompt().len() + r.tokens.len());
            config.turns_as_long(rows().min().unwrap_or(0), rows().max().unwrap_or(0))?;
        }
    }
    Ok(())
}

fn check_vocabulary(model: &ModelDir, data: &Dataset) -> Result<()> {
    let (tokens, meta) = (model.config().vocab_size, data.meta());
    if meta.vocab_size as usize > tokens {
        return Err(Error::file(
            model.path(),
            format!(
                "has {tokens} tokens, but the shards were made with {}; pack them with this model's tokenizer",
                meta.vocab_size
            ),
        ));
    }
    if model.tokenizer_sha256()?.is_some_and(|sha| sha != meta.tokenizer_sha256) {
        return Err(Error::file(
            model.path(),
            "its tokenizer.json is not the one that the shards were made with; pack them with this model's tokenizer",
        ));
    }
    Ok(())
}

/// Warns where rows are longer than the model was made for: RoPE goes on, quality may not.
pub fn warn_of_positions(model: &ModelConfig, positions: usize, observe: &mut dyn Observe) -> Result<()> {
    let made_for = model.max_position_embeddings;
    if positions > made_for {
        let why =
            format!("rows of up to {positions} tokens, but the model was made for {made_for}: beyond, it may be poor");
        observe.tell(&Event::Warning(&why))?;
    }
    Ok(())
}
