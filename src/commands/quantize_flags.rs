//! Options of weights in four bits, for every command that loads a model.

use super::choice::named;
use crate::error::{Error, Result};
use crate::files::{self, MOST_TEXT};
use crate::model::{ModelDir, Quantize, Quantized};
use crate::note;
use serde::Serialize;
use std::path::Path;

/// How weights are held, as typed.
#[derive(Clone, Debug, Default, clap::Args, Serialize)]
pub struct QuantizeFlags {
    /// Hold the linear weights of blocks in four bits, as bitsandbytes makes them; embedding, head and norms stay as they
    /// are. To train beside them takes an adapter (QLoRA) [default: as they are stored]
    #[arg(long, value_name = "TYPE", value_parser = named::<Quantize>())]
    pub quantize: Option<Quantize>,
    /// Quantize the magnitudes of blocks too: 4.127 bits a weight, not 4.5 (bnb_4bit_use_double_quant) [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub double_quant: Option<bool>,
}

impl QuantizeFlags {
    /// What was asked for. Errors: double quantisation of nothing.
    pub fn how(&self) -> Result<Option<Quantized>> {
        match (self.quantize, self.double_quant) {
            (None, Some(_)) => Err(Error::usage(
                "`double_quant`: only weights that are quantized have it; give `quantize` too, or leave it out",
            )),
            (quantize, double) => Ok(quantize.map(|q| q.with(double))),
        }
    }

    /// The model, its weights held so, with the adapter where there is one. Notes an adapter that was trained beside others.
    pub fn open(&self, model: &Path, adapter: Option<&Path>) -> Result<ModelDir> {
        let dir = ModelDir::open(model)?.quantized_if(self.how()?)?;
        let Some(adapter) = adapter else { return Ok(dir) };
        let dir = dir.with_adapter(adapter)?;
        if dir.config().quantized.is_none() && trained_beside_nf4(adapter) {
            note!(
                "{} was trained beside weights in NF4, and {} has others: --quantize nf4 makes those",
                adapter.display(),
                model.display()
            );
        }
        Ok(dir)
    }
}

/// Whether the run that made the adapter says so.
fn trained_beside_nf4(adapter: &Path) -> bool {
    let text = files::read_text(&adapter.join("config.toml"), MOST_TEXT).unwrap_or_default();
    text.parse::<toml::Table>().is_ok_and(|table| table.contains_key("quantize"))
}
