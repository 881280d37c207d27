//! Options of losses on the command line: those of [`loss_params!`](crate::loss_params!), and what sums and f-divergences ask.

use super::choice::named;
use crate::error::{Error, Result};
use crate::loss::{Divergence, LOSSES, LossType, Param};
use crate::loss_params;
use crate::train::group::take;
use crate::train::loss_options::{LossOptions, LossTypes};
use clap::ArgAction;
use serde::Serialize;

macro_rules! flags {
    ($(#[doc = $about:literal] $field:ident $variant:ident $range:ident $want:literal;)+) => {
        /// Options of losses as typed; `None` means not given. As keys of a TOML file they have the same names.
        #[derive(Clone, Debug, Default, PartialEq, clap::Args, Serialize)]
        pub struct LossFlags {
            $(
                #[doc = $about]
                #[arg(long, value_name = "X", help = help(Param::$variant))]
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $field: Option<f64>,
            )+
            /// Weight of each loss of a sum, with commas, in the order of the losses [default: 1 each]
            #[arg(long, value_name = "X,...", value_delimiter = ',', num_args = 1, action = ArgAction::Set)]
            #[serde(skip_serializing_if = "Option::is_none")]
            pub loss_weights: Option<Vec<f64>>,
            /// What keeps the policy near the reference: how a log-ratio becomes a reward [default: reverse_kl]
            #[arg(long, value_parser = named::<Divergence>())]
            #[serde(skip_serializing_if = "Option::is_none")]
            pub f_divergence_type: Option<Divergence>,
            /// Exponent of alpha_divergence; greater than 0 [default: 0.5]
            #[arg(long, value_name = "X")]
            #[serde(skip_serializing_if = "Option::is_none")]
            pub f_alpha_divergence_coef: Option<f64>,
        }
    };
}
loss_params!(flags);

/// What losses of a run can ask of single tokens; a pair of sums says nothing of it.
#[derive(Clone, Debug, Default, PartialEq, clap::Args, Serialize)]
pub struct TokenFlags {
    /// LD-DPO: how much tokens beyond the length of a pair's shorter response count, in [0, 1] [default: as the others]
    #[arg(long, value_name = "X")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ld_alpha: Option<f64>,
    /// WPO: pairs count by how likely the policy is to write both responses [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_weighting: Option<bool>,
}

impl LossFlags {
    /// As options of a run with `losses`. Errors: [`Error::Usage`] about what a TOML file could not hold either.
    pub fn options(&self, losses: &[LossType]) -> Result<LossOptions> {
        let mut table = toml::Table::try_from(self).map_err(|e| Error::usage(e.to_string()))?;
        let rest: LossOptions = take(&mut table).map_err(Error::Usage)?;
        Ok(LossOptions { loss_type: LossTypes(losses.to_vec()), ..rest })
    }
}

/// What a hyper-parameter is, which values it may have, which losses have it, and its default in each.
fn help(param: Param) -> String {
    let mut defaults: Vec<(f64, Vec<&str>)> = Vec::new();
    for def in LOSSES {
        for (_, x) in def.options.iter().filter(|(of, _)| *of == param) {
            match defaults.iter_mut().find(|(y, _)| x == y) {
                Some((_, names)) => names.push(def.name),
                None => defaults.push((*x, vec![def.name])),
            }
        }
    }
    let mut text = format!("{}; {}", param.about(), param.domain());
    let names: Vec<&str> = defaults.iter().flat_map(|(_, names)| names).copied().collect();
    if 2 * names.len() < LOSSES.len() {
        text += &format!("; for {}", names.join(", "));
    }
    for (i, (x, names)) in defaults.iter().enumerate() {
        // That of the table's first loss that has it.
        let of = if i == 0 { "default".to_owned() } else { names.join(", ") };
        text += &format!(" [{of}: {x}]");
    }
    text
}
