//! `fusedpo merge`: an adapter into the weights that it belongs to.

use super::choice::named;
use super::hub;
use super::out::refuse_stdout;
use super::quantize_flags::QuantizeFlags;
use crate::backend::cpu::Cpu;
use crate::error::Result;
use crate::files::{self, AtomicFolder, Inside};
use crate::model::{self, SaveDtype};
use crate::observe::Observe;
use crate::{note, say};
use std::path::PathBuf;

/// Options of `fusedpo merge`.
#[derive(Clone, clap::Args)]
pub struct MergeArgs {
    /// Hugging Face directory, or name on the hub (org/name@revision), of the base model
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// The adapter (LoRA, in PEFT's form)
    #[arg(long, value_name = "DIR")]
    pub adapter: PathBuf,
    /// How weights are held.
    #[command(flatten)]
    pub quantize: QuantizeFlags,
    /// New folder for the merged model
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Precision of the saved weights
    #[arg(long, value_parser = named::<SaveDtype>(), default_value = "source")]
    pub save_dtype: SaveDtype,
}

/// Runs the command.
pub fn run(args: &MergeArgs, observe: &mut dyn Observe) -> Result<()> {
    let out = &args.out;
    refuse_stdout(out)?;
    files::refuse_occupied(out)?;
    let mut args = args.clone();
    let mut adapter = Some(args.adapter);
    hub::place_both(&mut args.model, &mut adapter, observe)?;
    args.adapter = adapter.unwrap_or_default();
    let dir = args.quantize.open(&args.model, Some(&args.adapter))?;
    dir.read_side_files()?;
    let be = Cpu::<f32>::new()?;
    if dir.config().quantized.is_some() {
        note!(
            "merged into the dense weights that NF4 stands for, and written dense: fusedpo quantize makes four bits of them again"
        );
    }
    let merged = model::merge::merged(&be, &dir, 1)?;
    // Its tokenizer is the adapter's, where that has one: with the template that it was trained with.
    let own = Inside::new(&args.adapter)?.has("tokenizer.json").then_some(args.adapter.as_path());
    let folder = AtomicFolder::create(out, false)?;
    let done = model::export(&be, &merged, None, own, folder.path(), args.save_dtype);
    let report = done.map_err(|e| folder.as_named(e))?;
    folder.commit()?;
    say!("{}: {} of {} weights changed", out.display(), report.changed, report.weights);
    Ok(())
}
