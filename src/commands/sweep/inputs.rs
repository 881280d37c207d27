//! What a sweep rests on, by content: its models and data, which may not change under it, and what it measures with, of which what
//! changed is measured again.

use super::folder::Folder;
use super::planned::Plan;
use super::program;
use crate::error::{Error, Result};
use crate::files::{self, MOST_JSON, MOST_TEXT};
use crate::note;
use crate::recipe::{content_sha256, data_sha256, model_sha256};
use crate::sweep::Spec;
use crate::warn;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

/// Beside the sweep's own file.
const INPUTS: &str = "inputs.json";

/// In a run's folder.
const MARKS: &str = "measured.json";

const VERSION: u32 = 1;

/// Files and folders by their names, with the SHA-256 of their content.
type Sums = BTreeMap<String, String>;

/// `inputs.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Inputs {
    version: u32,
    /// The program's version.
    program: String,
    /// What the runs are made from.
    runs: Sums,
    /// The file that responses are drawn to.
    prompts: Sums,
    /// The program that scores, and the files among its arguments.
    scorer: Sums,
}

/// `measured.json`: by which prompts and which scorer a run's responses and scores are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Marks {
    pub prompts: Option<Sums>,
    pub scorer: Option<Sums>,
}

impl Marks {
    /// Those of the run in `out`; none where there are none.
    pub fn of(out: &Path) -> Self {
        let text = files::read_text(&out.join(MARKS), MOST_TEXT).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Keeps them.
    pub fn write(&self, out: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).expect("plain values") + "\n";
        files::write(&out.join(MARKS), text.as_bytes())
    }
}

impl Inputs {
    /// As they are now.
    pub fn of(spec: &Spec, plans: &[Plan]) -> Result<Self> {
        let mut runs = Sums::new();
        for plan in plans {
            let o = &plan.options;
            let models = [Some(&o.files.model), o.reference.ref_model.as_ref(), o.train.adapter.as_ref()];
            for model in models.into_iter().flatten() {
                add(&mut runs, model, || model_sha256(o.folder(model)))?;
            }
            for data in [&o.files.data].into_iter().chain(o.eval.eval_data.iter().map(|set| &set.data)) {
                add(&mut runs, data, || data_sha256(data))?;
            }
        }
        let (mut prompts, mut scorer) = (Sums::new(), Sums::new());
        if let Some(path) = &spec.measure.prompts {
            add(&mut prompts, path, || content_sha256(path))?;
        }
        for (i, word) in spec.measure.scorer.iter().flatten().enumerate() {
            let file = if i == 0 { program::found(word) } else { Some(PathBuf::from(word)) };
            if let Some(file) = file.filter(|f| f.is_file()) {
                add(&mut scorer, Path::new(word), || content_sha256(&file))?;
            }
        }
        Ok(Self { version: VERSION, program: env!("CARGO_PKG_VERSION").to_owned(), runs, prompts, scorer })
    }

    /// Compares them with those that `folder` was begun with, and keeps them there. Errors: its runs are of other ones.
    pub fn agree(&self, folder: &Folder, plans: &[Plan]) -> Result<()> {
        let path = folder.path(INPUTS);
        if path.symlink_metadata().is_ok() {
            let was: Self = serde_json::from_str(&files::read_text(&path, MOST_JSON)?).map_err(|e| {
                Error::file(&path, format!("cannot be understood ({e}); name a new folder for the sweep"))
            })?;
            self.refuse_other(&was, folder)?;
            for (is, was, what) in [
                (&self.prompts, &was.prompts, "responses are drawn and scored again"),
                (&self.scorer, &was.scorer, "responses are scored again"),
            ] {
                if let Some(name) = changed(is, was) {
                    note!("{name} has changed since the sweep began: {what}");
                }
            }
        } else if plans.iter().any(|p| folder.path(&p.point.name).exists()) {
            warn!(
                "{}: is not there, so that nobody knows what the runs were made from; taken as it is now",
                path.display()
            );
        }
        let text = serde_json::to_string_pretty(self).expect("plain values") + "\n";
        files::write(&path, text.as_bytes())
    }

    fn refuse_other(&self, was: &Self, folder: &Folder) -> Result<()> {
        let begun = folder.own();
        if was.program != self.program {
            let why = format!(
                "was begun by version {} of this program, and this is {}: its runs would not compare; go on with that one, or name \
                 a new folder",
                was.program, self.program
            );
            return Err(Error::file(begun, why));
        }
        match changed(&self.runs, &was.runs) {
            None => Ok(()),
            Some(name) => {
                let why = format!(
                    "has changed since the sweep in {} began, and its runs rest on it; put back what was there, or name a new folder",
                    begun.display()
                );
                Err(Error::file(name, why))
            }
        }
    }

    /// What the responses of a run are drawn to.
    pub fn prompts(&self) -> Sums {
        self.prompts.clone()
    }

    /// What scores are by.
    pub fn scorer(&self) -> Sums {
        self.scorer.clone()
    }
}

/// The first that is another, or was not there.
fn changed<'a>(is: &'a Sums, was: &'a Sums) -> Option<&'a str> {
    let gone = was.keys().find(|name| !is.contains_key(*name));
    is.iter().find(|(name, sum)| was.get(*name) != Some(sum)).map(|(name, _)| name).or(gone).map(String::as_str)
}

/// Adds one whose sum is not known yet.
fn add(sums: &mut Sums, name: &Path, sum: impl FnOnce() -> Result<String>) -> Result<()> {
    let name = name.to_string_lossy().into_owned();
    if let Entry::Vacant(place) = sums.entry(name) {
        place.insert(sum()?);
    }
    Ok(())
}
