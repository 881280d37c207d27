//! What would fit where nothing does: other options.

use super::run::Run;
use crate::backend::Backend;
use crate::choice::Choice;
use crate::error::Result;
use crate::model::Quantize;
use crate::train::choices::GradientChoice;
use crate::train::optim::OptimizerChoice;
use crate::train::options::TrainOptions;

/// Rank of the adapter that is proposed.
const RANK: usize = 16;

impl<B: Backend> Run<'_, B> {
    /// Changes of options with which `slots` fit into `free` bytes: single ones, or else two together.
    pub fn instead(&self, slots: usize, free: usize) -> Result<Vec<(String, usize)>> {
        let changes = changes(self.be, self.c);
        let singles = (0..changes.len()).map(|i| vec![i]);
        let both = (0..changes.len()).flat_map(|j| (0..j).map(move |i| vec![i, j]));
        for sets in [singles.collect::<Vec<_>>(), both.collect()] {
            let mut fit = Vec::new();
            for set in sets {
                let mut c = self.c.clone();
                set.iter().for_each(|i| changes[*i].1(&mut c));
                // What does not go together is no answer.
                let Ok(c) = c.clone().resolve(c.stage) else { continue };
                let changed = Run { c: &c, budgets: self.budgets.clone(), ..*self };
                let needed = changed.needed(slots)?;
                if needed <= free {
                    let names: Vec<&str> = set.iter().map(|i| changes[*i].0.as_str()).collect();
                    fit.push((names.join(" with "), needed));
                }
            }
            if !fit.is_empty() {
                return Ok(fit);
            }
        }
        Ok(Vec::new())
    }
}

type Change = (String, Box<dyn Fn(&mut TrainOptions)>);

/// What takes less memory than `c`, by its option.
fn changes<B: Backend>(be: &B, c: &TrainOptions) -> Vec<Change> {
    let mut all: Vec<Change> = Vec::new();
    if !c.compute.gradient_checkpointing {
        all.push(("`gradient_checkpointing`".into(), Box::new(|c| c.compute.gradient_checkpointing = true)));
    }
    // Weights in bf16 alone can do without masters, and a reference that follows cannot.
    let narrow = be.products() == "bf16" && !c.reference.sync_ref_model;
    let others = OptimizerChoice::ALL.iter().filter(|other| **other != c.optim.optim);
    for other in others.filter(|other| narrow || !other.is_small()) {
        all.push((format!("`optim` {other}"), Box::new(|c| c.optim.optim = *other)));
    }
    // An adapter's gradients are summed in f32.
    let sums = if c.optim.narrow_gradients() { " without `gradient_dtype`" } else { "" };
    let adapter = |c: &mut TrainOptions| {
        c.optim.gradient_dtype = GradientChoice::F32;
        c.train.lora_r = Some(RANK);
    };
    if !c.train.has_adapter() && c.train.train.is_none() {
        all.push((format!("`lora_r` {RANK}{sums}"), Box::new(adapter)));
    }
    if c.train.train.is_none() && c.train.quantize.is_none() {
        let rank = if c.train.has_adapter() { String::new() } else { format!("`lora_r` {RANK} and ") };
        let change = move |c: &mut TrainOptions| {
            if !c.train.has_adapter() {
                adapter(c);
            }
            c.train.quantize = Some(Quantize::Nf4);
        };
        all.push((format!("{rank}`quantize` nf4{sums}"), Box::new(change)));
    }
    all
}
