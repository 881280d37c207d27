//! Which parameters a run trains.

use super::optim::OptimOptions;
use super::team::Ranks;
use crate::error::{Error, Result};
use crate::model::{ModelConfig, ParamTable};
use regex::Regex;

/// Which parameters train.
#[derive(Clone, Debug, Default)]
pub enum Trained {
    /// Every one of them; of a model with an adapter, the adapter's.
    #[default]
    All,
    /// Those whose Hugging Face name has a match.
    Matching(Regex),
}

impl Trained {
    /// As the option `train` says: `all`, or a regular expression. Errors: one that is none.
    pub fn of(option: Option<&str>) -> Result<Self> {
        match option {
            None | Some("all") => Ok(Self::All),
            Some(text) => match Regex::new(text) {
                Ok(regex) => Ok(Self::Matching(regex)),
                Err(e) => {
                    let why = e.to_string();
                    let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ");
                    Err(Error::usage(format!("`train` {text}: not a regular expression ({why})")))
                }
            },
        }
    }

    /// [`Trained::apply`], asked of a model by its shape, before a run. Errors: as there.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        match self {
            Self::All => Ok(()),
            Self::Matching(_) => self.apply(&mut ParamTable::new(config)?),
        }
    }

    /// Lays out the trained arena of `table`. Errors: nothing in it would train.
    pub fn apply(&self, table: &mut ParamTable) -> Result<()> {
        let Self::Matching(regex) = self else { return Ok(()) };
        if !table.specs.iter().any(|spec| regex.is_match(&spec.name)) {
            let first = table.specs.get(1).map_or("", |spec| spec.name.as_str());
            return Err(Error::usage(format!(
                "`train` {regex}: no parameter of the model has such a name; they are called {first} and the like"
            )));
        }
        table.set_trains(|name| regex.is_match(name));
        Ok(())
    }
}

/// What a run learns, and with what: all that decides its state's tensors beside the model.
#[derive(Clone, Copy, Debug)]
pub struct Learns<'a> {
    /// The optimiser.
    pub optim: &'a OptimOptions,
    /// Which parameters train.
    pub trained: &'a Trained,
    /// Whether a synced reference lies beside the policy.
    pub synced: bool,
    /// Who shares what the optimiser keeps.
    pub ranks: Ranks,
}
