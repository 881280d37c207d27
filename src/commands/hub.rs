//! Names of the hub's, where a path may be given: what they name is brought here first.

use crate::data;
use crate::error::{Error, Result};
use crate::hub::{Fetched, Hub, Kind, Repo, Settings};
use crate::model::wanted::{self, Wanted};
use crate::observe::Observe;
use crate::train::options::TrainOptions;
use std::path::{Path, PathBuf};

/// What `named` names on the hub, with what is wanted of it; `None` where it is a path.
fn fetched(named: &Path, part: Wanted, observe: &mut dyn Observe) -> Result<Option<Fetched>> {
    let Some(repo) = Repo::of(Kind::Model, named)? else { return Ok(None) };
    let hub = Hub::new(Settings::from_env()?)?;
    wanted::fetch(&hub, &repo, part, observe).map(Some)
}

/// Puts the folder of what is wanted in place of a name of the hub's.
pub fn place(model: &mut PathBuf, part: Wanted, observe: &mut dyn Observe) -> Result<()> {
    if let Some(fetched) = fetched(model, part, observe)? {
        *model = fetched.path;
    }
    Ok(())
}

/// [`place`] of a model and of the adapter that may be given beside it.
pub fn place_both(model: &mut PathBuf, adapter: &mut Option<PathBuf>, observe: &mut dyn Observe) -> Result<()> {
    place(model, Wanted::Model, observe)?;
    adapter.as_mut().map_or(Ok(()), |adapter| place(adapter, Wanted::Adapter, observe))
}

/// Brings here what a run is made from. Its options keep the names, each with the commit that it is now: so the run's
/// `config.toml` names the same files on every machine. `part`: what is wanted of models.
pub fn place_run(options: &mut TrainOptions, part: Wanted, observe: &mut dyn Observe) -> Result<()> {
    let TrainOptions { files, reference, train, folders, .. } = options;
    let models = [Some(&mut files.model), reference.ref_model.as_mut()].into_iter().flatten().map(|m| (m, part));
    for (named, part) in models.chain(train.adapter.as_mut().map(|a| (a, Wanted::Adapter))) {
        if let Some(fetched) = fetched(named, part, observe)? {
            *named = folders.add(fetched);
        }
    }
    Ok(())
}

/// Puts the files of data sets in place of names of the hub's.
pub fn place_inputs(inputs: &mut Vec<PathBuf>, observe: &mut dyn Observe) -> Result<()> {
    let mut all = Vec::with_capacity(inputs.len());
    for named in inputs.drain(..) {
        match Repo::of(Kind::Dataset, &named)? {
            Some(repo) => {
                let hub = Hub::new(Settings::from_env()?)?;
                all.extend(data::wanted::fetch(&hub, &repo, observe)?.into_iter().map(|f| f.path));
            }
            None => all.push(named),
        }
    }
    *inputs = all;
    Ok(())
}

/// [`place_inputs`] where one file is read.
pub fn place_input(input: &mut PathBuf, observe: &mut dyn Observe) -> Result<()> {
    let mut all = vec![input.clone()];
    place_inputs(&mut all, observe)?;
    match &all[..] {
        [one] => input.clone_from(one),
        several => {
            let why = format!(
                "has {} files, and one is read here; name one, as in hf://datasets/org/name@revision/FILE",
                several.len()
            );
            return Err(Error::file(&input, why));
        }
    }
    Ok(())
}
