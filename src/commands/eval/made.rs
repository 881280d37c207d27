//! What the run that made a model says of itself in `MODEL/config.toml`: what `eval` takes where nothing is asked for.

use super::args::EvalArgs;
use crate::commands::effect;
use crate::commands::hub;
use crate::data::shard::Dataset;
use crate::error::{Error, Result};
use crate::files::{Inside, MOST_TEXT, line_of};
use crate::loss::{LossSpec, LossType, Param};
use crate::model::wanted::Wanted;
use crate::note;
use crate::observe::Observe;
use crate::train::group::{Group, take};
use crate::train::loss_options::{LossOptions, LossTypes};
use std::path::{Path, PathBuf};

/// What a run calls its options.
const CONFIG: &str = "config.toml";

/// The file, where there is one and something in it can be needed.
pub struct Made {
    path: PathBuf,
    config: Option<toml::Table>,
}

/// A value, and who said so.
struct Found<T> {
    value: T,
    origin: Origin,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Asked,
    Run,
    Default,
}

impl<T> Found<T> {
    /// As asked, as the run had it, or the default. The run's is not looked at where another was asked for.
    fn new(asked: Option<T>, run: impl FnOnce() -> Result<Option<T>>, default: T) -> Result<Self> {
        Ok(match asked {
            Some(value) => Self { value, origin: Origin::Asked },
            None => match run()? {
                Some(value) => Self { value, origin: Origin::Run },
                None => Self { value: default, origin: Origin::Default },
            },
        })
    }
}

impl Made {
    /// Reads it. Errors: one that cannot be read, unless every option that it could give was given.
    pub fn of(a: &EvalArgs, data: &Dataset) -> Result<Self> {
        // What was trained says how it was made: the adapter, where there is one.
        let folder = a.adapter.as_deref().unwrap_or(&a.model);
        let path = folder.join(CONFIG);
        let spec = a.loss_types().map(|types| LossOptions { loss_type: types, ..Default::default() }.spec());
        let pairwise = spec.as_ref().map_or(data.num_pairs() > 0 || data.has_labels(), |spec| !spec.is_sft());
        let has = |param| spec.as_ref().is_none_or(|spec| spec.has(param));
        // A loss without further hyper-parameters: all of it was asked for.
        let plain = spec.as_ref().is_some_and(|spec| spec.terms().iter().all(|t| t.def().options.len() <= 2));
        let smoothing = a.loss.label_smoothing.is_some() || !has(Param::LabelSmoothing);
        let all_given = plain && a.loss.beta.is_some() && a.ref_model.is_some() && smoothing;
        let config = if pairwise && !all_given { read(folder)? } else { None };
        Ok(Self { path, config })
    }

    /// The loss: as asked, as the run had it, or the default. Says which, where the run had a part in it.
    pub fn spec(&self, a: &EvalArgs, data: &Dataset) -> Result<LossSpec> {
        let default = if data.num_pairs() > 0 { LossType::Sigmoid } else { LossType::Sft };
        let loss = match data.num_pairs() {
            // Of what a run can be made from without pairs, kto alone says more than the default.
            0 => Found::new(a.loss_types(), || self.loss_of_judgements(data), default.into())?,
            _ => Found::new(a.loss_types(), || self.loss_type(), default.into())?,
        };
        if loss.value.0 == [LossType::Sft] {
            refuse_what_sft_ignores(a)?;
            refuse_of_samples(a, "the sft loss has no reference to be far from")?;
            return Ok(LossSpec::of(LossType::Sft));
        }
        let of_run = self.loss_type().ok().flatten().is_some_and(|of_run| of_run == loss.value);
        let has = |param| LossOptions { loss_type: loss.value.clone(), ..Default::default() }.spec().has(param);
        let (has_beta, smoothed) = (has(Param::Beta), has(Param::LabelSmoothing));
        let above_0 = |x: f64| x.is_finite() && x > 0.0;
        let of = |value| if has_beta { self.number("beta", "a finite number above 0", value) } else { Ok(None) };
        let beta = Found::new(a.loss.beta.map(Some), || Ok(of(above_0)?.map(Some)), None)?;
        let run = || match smoothed && of_run {
            true => Ok(self.number("label_smoothing", "in [0, 0.5)", |x| (0.0..0.5).contains(&x))?.map(Some)),
            false => Ok(None),
        };
        let smoothing = Found::new(a.loss.label_smoothing.map(Some), run, None)?;
        // Of the same loss everything else is the run's too; and what is asked for wins.
        let mut table = self.config.clone().filter(|_| of_run && loss.origin != Origin::Default).unwrap_or_default();
        table.retain(|key: &str, _| LossOptions::KEYS.contains(&key) && key != "beta" && key != "label_smoothing");
        table.extend(a.of_loss()?);
        let why = |why| Error::file(&self.path, format!("{why}: mend it, or give --loss-type"));
        let mut options: LossOptions = take(&mut table).map_err(why)?;
        options.loss_type = loss.value;
        (options.beta, options.label_smoothing) = (beta.value, smoothing.value);
        let spec = options.resolve()?;
        if !spec.reference() {
            refuse_of_reference(a, &spec.name())?;
        }
        if a.kl_samples == Some(0) {
            refuse_of_samples(a, "`kl_samples` is 0")?;
        }
        let mut said = vec![(format!("loss {}", spec.name()), loss.origin)];
        said.extend(options.beta.map(|x| (format!("beta {x}"), beta.origin)));
        said.push((format!("label smoothing {}", options.label_smoothing.unwrap_or(0.0)), smoothing.origin));
        self.say(&said);
        if a.kl_samples != Some(0) && a.kl_max_new_tokens == Some(0) {
            let why = "--kl-max-new-tokens 0: must be 1 or more; --kl-samples 0 leaves the estimate out";
            return Err(Error::usage(why));
        }
        Ok(spec)
    }

    /// The reference: as asked, or the model without its adapter, or what the run started from, or the policy.
    pub fn reference(&self, a: &EvalArgs, observe: &mut dyn Observe) -> Result<PathBuf> {
        if let Some(dir) = &a.ref_model {
            return Ok(dir.clone());
        }
        if a.adapter.is_some() {
            note!("reference: {} without the adapter", a.model.display());
            return Ok(a.model.clone());
        }
        let Some(config) = &self.config else {
            note!("no --ref-model: rewards are measured against the policy itself, and are 0");
            return Ok(a.model.clone());
        };
        let path = &self.path;
        let Some((key, named)) = ["ref_model", "model"].iter().find_map(|k| Some((k, config.get(*k)?))) else {
            return Err(Error::file(path, "names no model; use --ref-model"));
        };
        let dir = named.as_str().ok_or_else(|| self.wrong(key, "the folder of a model", "ref-model"))?;
        let mut place = PathBuf::from(dir);
        hub::place(&mut place, Wanted::Model, observe).map_err(|e| named_in(path, e))?;
        if !place.is_dir() {
            return Err(Error::file(path, format!("names the reference {dir}, which is not there; use --ref-model")));
        }
        let followed = config.get("sync_ref_model").and_then(toml::Value::as_bool).unwrap_or_default();
        let as_it_was = if followed { ", as it was before it followed the policy" } else { "" };
        note!("reference: {dir} (from {}){as_it_was}", path.display());
        Ok(place)
    }

    /// The run's loss of pairs, if it had one.
    fn loss_type(&self) -> Result<Option<LossTypes>> {
        let Some(value) = self.get("loss_type") else { return Ok(None) };
        let known: Result<LossTypes, _> = value.clone().try_into();
        let known = known.map_err(|_| self.wrong("loss_type", "a loss that this program knows", "loss-type"))?;
        Ok(Some(known).filter(|l| l.0 != [LossType::Sft]))
    }

    fn loss_of_judgements(&self, data: &Dataset) -> Result<Option<LossTypes>> {
        let known = if data.has_labels() { self.loss_type()? } else { None };
        Ok(known.filter(|l| l.0 == [LossType::Kto]))
    }

    fn number(&self, key: &str, range: &str, ok: impl FnOnce(f64) -> bool) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wrong = |want| self.wrong(key, want, &key.replace('_', "-"));
        let number = value.as_float().or_else(|| value.as_integer().map(|i| i as f64));
        let number = number.ok_or_else(|| wrong("a number"))?;
        if ok(number) { Ok(Some(number)) } else { Err(wrong(range)) }
    }

    fn get(&self, key: &str) -> Option<&toml::Value> {
        self.config.as_ref()?.get(key)
    }

    fn wrong(&self, key: &str, want: &str, flag: &str) -> Error {
        let value = self.get(key).map_or_else(String::new, toml::Value::to_string);
        Error::file(&self.path, format!("`{key}` is {value}, not {want}: mend it, or give --{flag}"))
    }

    /// Each value with its origin, neighbours of the same one together.
    fn say(&self, values: &[(String, Origin)]) {
        if values.iter().all(|(_, origin)| *origin != Origin::Run) {
            return;
        }
        let from = |origin: Origin| match origin {
            Origin::Asked => "as asked".to_owned(),
            Origin::Run => format!("from {}", self.path.display()),
            Origin::Default => "the default".to_owned(),
        };
        let groups = values.chunk_by(|a, b| a.1 == b.1).map(|same| {
            let texts: Vec<&str> = same.iter().map(|(text, _)| text.as_str()).collect();
            format!("{} ({})", texts.join(", "), from(same[0].1))
        });
        note!("{}", groups.collect::<Vec<_>>().join(", "));
    }
}

/// The table in the file [`CONFIG`] of a model's folder; `None` where there is no such file.
fn read(dir: &Path) -> Result<Option<toml::Table>> {
    let path = &dir.join(CONFIG);
    let unreadable = |e: Error| {
        let why = match e {
            Error::Io { source, .. } => source.to_string(),
            Error::File { why, .. } => why,
            e => e.to_string(),
        };
        let instead = "mend it, or give --loss-type, --beta, --label-smoothing and --ref-model";
        Error::file(path, format!("cannot be read ({why}), and says how the model was made: {instead}"))
    };
    let Some(text) = Inside::new(dir)?.read_text(CONFIG, MOST_TEXT).map_err(unreadable)? else { return Ok(None) };
    let table = text.parse().map_err(|e: toml::de::Error| {
        let line = line_of(&text, &e);
        Error::file(path, format!("line {line} is not valid TOML: mend it, or take it away"))
    })?;
    Ok(Some(table))
}

/// An error about what `path` names.
fn named_in(path: &Path, e: Error) -> Error {
    match e {
        Error::File { path: at, why } => {
            Error::file(at, format!("{why}; {} names it, give another reference", path.display()))
        }
        e => e,
    }
}

/// What is asked of a reference.
fn of_reference(a: &EvalArgs) -> [(&'static str, bool); 3] {
    [
        ("--ref-model", a.ref_model.is_some()),
        ("--cache", a.cache.is_some()),
        ("--kl-samples", a.kl_samples.is_some_and(|n| n > 0)),
    ]
}

fn refuse_of_reference(a: &EvalArgs, loss: &str) -> Result<()> {
    match of_reference(a).iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(Error::usage(format!("{flag}: the {loss} loss has no reference; leave it out"))),
        None => refuse_of_samples(a, &format!("the {loss} loss has no reference to be far from")),
    }
}

/// What is asked of samples that nobody takes.
fn refuse_of_samples(a: &EvalArgs, why: &str) -> Result<()> {
    let given = [("kl_max_new_tokens", a.kl_max_new_tokens.is_some()), ("seed", a.seed.is_some())];
    match given.iter().find(|(_, given)| *given) {
        Some((key, _)) => {
            effect::refuse(key, &format!("it is of the samples of the KL estimate, and {why}; leave it out"))
        }
        None => Ok(()),
    }
}

fn refuse_what_sft_ignores(a: &EvalArgs) -> Result<()> {
    let of_loss = a.of_loss()?.into_iter().map(|(key, _)| (format!("--{}", key.replace('_', "-")), true));
    let others = of_reference(a);
    let given: Vec<(String, bool)> = of_loss.chain(others.map(|(flag, given)| (flag.to_owned(), given))).collect();
    match given.iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(Error::usage(format!(
            "{flag}: the sft loss (that of data without pairs) has no use for it; leave it out"
        ))),
        None => Ok(()),
    }
}
