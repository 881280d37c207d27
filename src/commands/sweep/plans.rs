//! The runs of a sweep, each checked as its own command would, and against what is measured of it.

use super::args::SweepArgs;
use super::planned::Plan;
use super::program;
use super::row::{REFERENCE, SAMPLES, prompt_ids};
use crate::commands::{config, effect, generate, hub};
use crate::data::shard::{Dataset, Split};
use crate::device;
use crate::error::{Error, Result};
use crate::files;
use crate::model::wanted::Wanted;
use crate::model::{MAX_NEW_TOKENS, ModelDir};
use crate::observe::Observe;
use crate::sweep::{Point, Spec};
use crate::train::choices::DeviceChoice;
use crate::train::options::{Stage, TrainOptions};
use crate::train::trained::Trained;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The runs, each checked as its own command would: nothing starts before all are sound.
pub(super) fn of(args: &SweepArgs, spec: &Spec, observe: &mut dyn Observe) -> Result<Vec<Plan>> {
    for (key, why) in [
        ("out", "a sweep names the folders of its runs"),
        ("resume", "a sweep's runs go on by themselves"),
        ("allow_other_numerics", "runs of a sweep are to be compared"),
        (
            "fit",
            "runs of a sweep are to be compared, and it goes by what memory is free when each begins; `token_budget` is the same for all",
        ),
    ] {
        if spec.base.contains_key(key) || spec.varied.iter().any(|varied| varied == key) {
            return Err(Error::file(&args.file, format!("`{key}`: {why}; leave it out")));
        }
    }
    config::check_keys(spec.stage, &args.file, spec.base.keys().chain(&spec.varied))?;
    if let Some(path) = &spec.measure.prompts {
        files::open(path).map_err(|e| e.doing("read the prompts"))?;
    }
    program::refuse_unstartable(spec).map_err(|why| Error::file(&args.file, format!("[sweep]: {why}")))?;
    let mut plans: Vec<Plan> = Vec::with_capacity(spec.points.len());
    let (mut room, mut same) = (Room { spec, file: &args.file, prompts: HashMap::new() }, HashMap::new());
    for point in &spec.points {
        let plan = plan(args, spec, point, observe)?;
        // Values that are written in two ways: 1 and 1.0, "ipo" and ["ipo"].
        if let Some(other) = same.insert(plan.options.to_toml()?, &point.name) {
            let why = format!("runs {other} and {} are the same run; leave one of the two values out", point.name);
            return Err(Error::file(&args.file, why));
        }
        let prompts = room.check(&plan)?;
        plans.push(Plan { prompts, ..plan });
    }
    Ok(plans)
}

/// Whether the models have positions for what is drawn from them.
struct Room<'a> {
    spec: &'a Spec,
    file: &'a Path,
    /// How many prompts, and tokens of the longest, by the data or by the model that reads the prompts' file.
    prompts: HashMap<PathBuf, (usize, usize)>,
}

impl Room<'_> {
    /// Errors: they have not. How many prompts are answered otherwise.
    fn check(&mut self, plan: &Plan) -> Result<usize> {
        let (o, m) = (&plan.options, &self.spec.measure);
        if !m.scores() && (m.kl_samples == 0 || !(plan.pairs || plan.labels)) {
            return Ok(0);
        }
        let model = o.folder(&o.files.model);
        let (count, longest) = match (&m.prompts, m.scores()) {
            // Of a KL estimate alone: a prompt of a token at least.
            (_, false) => (0, 1),
            (Some(file), true) => self.longest(model, || generate::longest_prompt(model, file))?,
            (None, true) => self.longest(&o.files.data, || {
                let all = prompt_ids(&o.files.data, m.samples.unwrap_or(SAMPLES))?;
                let none =
                    || Error::file(&o.files.data, "has no prompt to continue: name some as `prompts` in [sweep]");
                Ok((all.len(), all.iter().map(Vec::len).max().ok_or_else(none)?))
            })?,
        };
        let config = ModelDir::shape(model, None)?;
        let positions = config.max_position_embeddings.min(config.rope.turning_point().unwrap_or(usize::MAX));
        let most = positions.saturating_sub(longest).min(MAX_NEW_TOKENS);
        if m.max_new_tokens <= most {
            return Ok(count);
        }
        let why = match most {
            0 => format!(
                "[sweep]: {} has {positions} positions, which a prompt of {longest} tokens fills; give shorter prompts",
                model.display()
            ),
            _ => format!(
                "[sweep]: `max_new_tokens` is {}, and after the longest prompt ({longest} tokens) {} has positions for {most}; lower it",
                m.max_new_tokens,
                model.display()
            ),
        };
        Err(Error::file(self.file, why))
    }

    fn longest(&mut self, of: &Path, count: impl FnOnce() -> Result<(usize, usize)>) -> Result<(usize, usize)> {
        if let Some(known) = self.prompts.get(of) {
            return Ok(*known);
        }
        let longest = count()?;
        self.prompts.insert(of.to_owned(), longest);
        Ok(longest)
    }
}

fn plan(args: &SweepArgs, spec: &Spec, point: &Point, observe: &mut dyn Observe) -> Result<Plan> {
    let named = |e: Error| match e {
        Error::Usage(why) => Error::file(&args.file, format!("run {}: {why}", point.name)),
        e => e,
    };
    let mut table = spec.options(point);
    let out = args.out.join(&point.name);
    let text = out.to_str().ok_or_else(|| Error::file(&args.out, "the folder's name is no UTF-8; give another"))?;
    table.insert("out".into(), text.into());
    if let Some(key) = ["model", "data"].iter().find(|key| !table.contains_key(**key)) {
        return Err(Error::file(&args.file, format!("`{key}` is missing: every run needs it")));
    }
    let mut options = TrainOptions::from_table(spec.stage, &table).map_err(named)?;
    effect::of_run(&point.values, &options).map_err(named)?;
    hub::place_run(&mut options, Wanted::Model, observe)?;
    for dir in [Some(&options.files.model), options.reference.ref_model.as_ref()].into_iter().flatten() {
        let dir = options.folder(dir);
        if !dir.is_dir() {
            return Err(Error::file(dir, format!("is not there, and {} names it as a model", args.file.display())));
        }
    }
    if let Some(train) = options.train.train.as_deref() {
        let shape = ModelDir::shape(options.folder(&options.files.model), None)?;
        Trained::of(Some(train)).and_then(|trained| trained.check(&shape)).map_err(named)?;
    }
    let compute = &options.compute;
    // The runs may see GPUs that are hidden from this process.
    if compute.device != DeviceChoice::Auto || args.gpus.is_empty() {
        device::check_options(compute.device, compute.logits_dtype, compute.matmul_plans.as_deref()).map_err(named)?;
    }
    let data = Dataset::open(&options.files.data, Split::Train)?;
    let follows = options.reference.sync_ref_model;
    if spec.stage == Stage::Dpo && options.loss().reference() && !follows && options.reference.cache.is_none() {
        let cache = args.out.join(REFERENCE);
        table.insert("cache".into(), cache.to_string_lossy().into_owned().into());
        options.reference.cache = Some(cache);
    }
    table.remove("out");
    table.insert("stage".into(), spec.stage.to_string().into());
    let (pairs, labels) = (data.num_pairs() > 0, data.has_labels());
    Ok(Plan { point: point.clone(), table, options, pairs, labels, prompts: 0 })
}
