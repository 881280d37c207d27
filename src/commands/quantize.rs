//! `fusedpo quantize`: a model directory in four bits, for transformers with bitsandbytes and for this program.

use super::hub;
use super::out::refuse_stdout;
use crate::error::Result;
use crate::files::{self, AtomicFolder};
use crate::model::wanted::Wanted;
use crate::model::{ModelDir, Quantized, export_nf4};
use crate::observe::Observe;
use crate::{say, units};
use std::path::PathBuf;

/// Options of `fusedpo quantize`.
#[derive(Clone, clap::Args)]
pub struct QuantizeArgs {
    /// Hugging Face directory, or name on the hub (org/name@revision), of the model
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// New folder for the model in NF4
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Quantize the magnitudes of blocks too: 4.127 bits a weight, not 4.5 (bnb_4bit_use_double_quant) [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub double_quant: Option<bool>,
}

/// Runs the command.
pub fn run(args: &QuantizeArgs, observe: &mut dyn Observe) -> Result<()> {
    let out = &args.out;
    refuse_stdout(out)?;
    files::refuse_occupied(out)?;
    let how = Quantized { double: args.double_quant.unwrap_or_default() };
    let mut model = args.model.clone();
    hub::place(&mut model, Wanted::Model, observe)?;
    let dir = ModelDir::open(&model)?.quantized(how)?;
    let folder = AtomicFolder::create(out, false)?;
    let report = export_nf4(&dir, folder.path()).map_err(|e| folder.as_named(e))?;
    folder.commit()?;
    say!(
        "{}: {} weights in 4 bits, {} as they were; {}",
        out.display(),
        report.quantized,
        report.others,
        units::bytes(report.bytes as usize)
    );
    Ok(())
}
