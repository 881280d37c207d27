//! Whether a model and a data set belong together.

use crate::data::plan::Planner;
use crate::data::shard::{Dataset, Split};
use crate::data::text::{TemplateChoice, TextTokenizer, TokenizerOptions};
use crate::error::{Error, Result};
use crate::loss::LossSpec;
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
    check_tokenizer(model, data)?;
    data.verify()?;
    check_model(model, data)
}

/// Refuses data of another tokenizer, token ids that the model has no row for, and rows that it has no positions for.
/// The data are verified already.
pub fn check_model(model: &ModelDir, data: &Dataset) -> Result<()> {
    check_tokenizer(model, data)?;
    data.check_unchanged()?;
    check_ids(model, data)?;
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

/// Refuses data that say too little for the loss: scores that it reads, weights that it has no place for.
pub fn check_loss(spec: &LossSpec, data: &Dataset) -> Result<()> {
    if !spec.scores() && !spec.is_listwise() {
        return Ok(());
    }
    let name = spec.name();
    let refuse = |row: u64, why: &str| {
        let shard = data.shards()[0].path();
        Err(Error::usage(format!("{}: input row {row}: {why}", shard.display())))
    };
    for group in (0..data.num_groups()).map(|g| data.group(g)) {
        for pair in group.pairs() {
            let [chosen, rejected] = [pair.chosen, pair.rejected].map(|i| group.response(i));
            let (row, scores) = (chosen.row, chosen.score.zip(rejected.score));
            match scores {
                None if spec.scores() => {
                    return refuse(
                        row,
                        &format!("a pair without scores, which `loss_type` {name} reads: pack rows with scores"),
                    );
                }
                Some((w, l)) if spec.scores() && w <= l => {
                    return refuse(
                        row,
                        &format!(
                            "the chosen response's score, {w}, is not above the rejected one's, {l}: `loss_type` {name} has no value there"
                        ),
                    );
                }
                _ => {}
            }
            if spec.is_listwise() && pair.weight != 1.0 {
                return refuse(
                    row,
                    &format!("a pair of weight {}: `loss_type` {name} compares rankings, which have none", pair.weight),
                );
            }
        }
    }
    Ok(())
}

/// Refuses mismatched rows, each a prompt with a response to another, that the model has no positions for, or turns otherwise
/// than the prompt's own rows.
pub fn check_mismatched(model: &ModelDir, plan: &Planner<'_>) -> Result<()> {
    let (config, longest) = (model.config(), plan.longest_row());
    if longest <= plan.data().longest_row() {
        return Ok(());
    }
    config.check_positions(longest)?;
    if config.rope.tables(longest) > 1 {
        let usable = config.usable_positions();
        return Err(Error::usage(format!(
            "`loss_type` kto reads prompts with responses to others, here rows of up to {longest} tokens, and this model's \
             `longrope` turns rows of more than {usable} tokens by other frequencies; pack with `max_length` {usable}"
        )));
    }
    Ok(())
}

/// Ids that the embedding has no row for: a tokenizer may have more tokens than that, as long as no row uses them.
fn check_ids(model: &ModelDir, data: &Dataset) -> Result<()> {
    let (rows, tokens) = (model.config().vocab_size, data.meta().vocab_size as usize);
    if tokens <= rows {
        return Ok(());
    }
    let Some((id, row)) = data.largest_token().filter(|(id, _)| *id as usize >= rows) else { return Ok(()) };
    let text = model.tokenizer(None)?.and_then(|t| t.token(id));
    let text = text.map_or(String::new(), |t| format!(" (`{}`)", t.escape_debug()));
    let why = format!(
        "its embedding has {rows} rows, and the data's tokenizer {tokens} tokens: input row {row} uses id {id}{text}, which has \
         no row; pack with this model's tokenizer, leave such rows out, or give the model more rows (transformers: \
         resize_token_embeddings)"
    );
    Err(Error::file(model.path(), why))
}

/// The tokenizer of the data is the model's, by what it does with a text: whoever saved the files, and with the EOS that
/// the data were packed with.
fn check_tokenizer(model: &ModelDir, data: &Dataset) -> Result<()> {
    let (theirs, eos) = (data.meta().tokenizer_sha256, data.meta().eos_id);
    let Some(own) = model.tokenizer_identity()? else { return Ok(()) };
    // Rows that came tokenised elsewhere say nothing.
    if own.made(&theirs) || theirs == [0; 32] {
        return Ok(());
    }
    // The data may have been packed with another EOS, which changes what is matched whole.
    let mut candidates = vec![own];
    if let Some(eos) = eos.filter(|eos| own.eos_id != Some(*eos))
        && let Some(text) = model.tokenizer(None)?.and_then(|t| t.token(eos))
        && let Ok(Some(other)) = model.tokenizer(Some(&text))
    {
        candidates.push(other.identity());
    }
    if candidates.iter().any(|c| c.made(&theirs)) {
        return Ok(());
    }
    // A header of bytes says nothing of files that another tool wrote: the tokenizer beside the shards does.
    let options = TokenizerOptions { chat_template: TemplateChoice::None, ..Default::default() };
    let beside = TextTokenizer::load(data.folder(), &options).ok().map(|t| t.identity()).filter(|t| t.made(&theirs));
    if beside.is_some_and(|beside| candidates.iter().any(|c| c.meaning == beside.meaning)) {
        return Ok(());
    }
    let why = if own.file_sha256 == theirs {
        "the shards were made from its tokenizer.json alone, and the files beside it change how texts are read \
         (tokens of tokenizer_config.json, added_tokens.json or special_tokens_map.json, or its tokenizer_class); pack the data again"
    } else {
        "its tokenizer is not the one that the shards were made with; pack them with this model's tokenizer"
    };
    Err(Error::file(model.path(), why))
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
