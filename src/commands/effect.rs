//! Options that were typed and would change nothing: an error that names them, as whoever typed them expects something. In a
//! configuration they may stand: a run writes all that it has.

use crate::choice::Choice;
use crate::error::{Error, Result};
use crate::train::optim::OptimizerChoice;
use crate::train::options::TrainOptions;

/// Refuses what has no effect on the run that `o` says, of what was `typed` by key.
pub fn of_run(typed: &toml::Table, o: &TrainOptions) -> Result<()> {
    let typed = |key: &str| typed.contains_key(key);
    let optim = o.optim.optim;
    for key in ["adam_beta1", "adam_beta2"] {
        if typed(key) && optim == OptimizerChoice::Rmsprop {
            let name = optim.name();
            return refuse(key, &format!("`optim` {name} has no such decay; leave it out, or use adamw"));
        }
    }
    if typed("max_steps") && typed("num_train_epochs") {
        return refuse("num_train_epochs", "`max_steps` says where the run ends; leave one of them out");
    }
    Ok(())
}

/// The error about option `key`.
pub fn refuse<T>(key: &str, why: &str) -> Result<T> {
    Err(Error::usage(format!("`{key}` has no effect: {why}")))
}
