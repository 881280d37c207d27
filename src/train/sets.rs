//! The data sets that a run evaluates beside the held-out split of its own data, each under a name.

use super::check::{check_data, check_loss, check_mismatched, check_model};
use super::eval_options::NamedData;
use super::means;
use super::options::{EvalStrategy, TrainOptions};
use crate::data::plan::{PlanOptions, Planner};
use crate::data::shard::{Dataset, Split};
use crate::error::{Error, Result};
use crate::model::ModelDir;
use crate::observe::{Event, Observe};
use std::path::Path;

/// Pairs (responses, judgements) of a step of an evaluation of a set: what `eval` takes, so that both come to the same bits.
pub const STEP: usize = 64;

/// A data set with its name.
pub struct NamedSet {
    /// Of its metrics.
    pub name: String,
    /// Its held-out split, or where it has none its training split.
    pub data: Dataset,
    /// Which.
    pub split: Split,
}

/// The split of the shards in `data` that an evaluation looks at: what is held out, or all where nothing is.
pub fn evaluated_split(data: &Path) -> Split {
    if Dataset::has_split(data, Split::Eval) { Split::Eval } else { Split::Train }
}

/// Opens the sets of `c`; none where nothing is evaluated. Errors: no shards there.
pub(super) fn open(c: &TrainOptions) -> Result<Vec<NamedSet>> {
    if c.eval.eval_strategy == EvalStrategy::No {
        return Ok(Vec::new());
    }
    let open = |set: &NamedData| {
        let split = evaluated_split(&set.data);
        Ok(NamedSet { name: set.name.clone(), data: Dataset::open(&set.data, split)?, split })
    };
    c.eval.eval_data.iter().map(open).collect()
}

/// Refuses sets that are not for the run: of another tokenizer, end token or chat template than the training split `train`; ids
/// or rows that a model has no place for; what the loss cannot read.
pub(super) fn check(
    c: &TrainOptions,
    sets: &[NamedSet],
    train: &Dataset,
    (model, reference): (&ModelDir, Option<&ModelDir>),
) -> Result<()> {
    for NamedSet { name, data, .. } in sets {
        let refuse = |what: &str| {
            Err(Error::file(
                data.folder(),
                format!(
                    "`options.eval_data` {name} was packed with another {what} than the training split ({}): pack it as that was",
                    train.folder().display()
                ),
            ))
        };
        let (is, was) = (data.meta(), train.meta());
        if is.template_sha256 != was.template_sha256 && [is, was].iter().all(|m| m.template_sha256 != [0; 32]) {
            return refuse("chat template");
        }
        if is.tokenizer_sha256 != was.tokenizer_sha256 && check_data(model, data).is_err() {
            return refuse("tokenizer");
        }
        if is.eos_id != was.eos_id {
            return refuse("end token");
        }
        check_data(model, data)?;
        check_loss(&c.loss(), data)?;
        reference.map_or(Ok(()), |reference| check_model(reference, data))?;
    }
    Ok(())
}

/// How the run cuts each of them, with the token slots of its own data. Errors: what the loss finds nothing in, a pair that does
/// not fit.
pub(super) fn planners<'a>(c: &TrainOptions, sets: &'a [NamedSet], slots: usize) -> Result<Vec<Planner<'a>>> {
    let options = PlanOptions {
        objective: means::objective(&c.loss()),
        batch_size: STEP,
        token_budget: Some(slots),
        seed: 0,
        shuffle: false,
    };
    let plan = |set: &'a NamedSet| {
        let of_set = |e: Error| match e {
            Error::Usage(why) => Error::usage(format!("`eval_data` {}: {why}", set.name)),
            e => e,
        };
        Planner::new(&set.data, &options).map_err(of_set)
    };
    sets.iter().map(plan).collect()
}

/// Refuses mismatched rows that a model has no positions for.
pub(super) fn check_rows(models: &[&ModelDir], plans: &[Planner<'_>]) -> Result<()> {
    models.iter().try_for_each(|model| plans.iter().try_for_each(|plan| check_mismatched(model, plan)))
}

/// Says what each set is, and warns of one that is the training split itself.
pub(super) fn tell(sets: &[(&NamedSet, u64, u64)], train: &Dataset, observe: &mut dyn Observe) -> Result<()> {
    let same = |a: &Dataset, b: &Dataset| {
        let of = |data: &Dataset| data.shards().iter().map(|s| s.content_sha256()).collect::<Vec<_>>();
        of(a) == of(b)
    };
    for (set, of, all) in sets {
        let (name, folder) = (&set.name, set.data.folder().display());
        let split = set.split.prefix().trim_end_matches('-');
        let how_many = if of < all { format!("the first {of} of {all}") } else { format!("all {all}") };
        let line = format!("evaluated as {name}: {folder}, split {split}, {how_many} {}", units(set));
        observe.tell(&Event::Note(&line))?;
        if same(&set.data, train) {
            let line =
                format!("`options.eval_data` {name} is the training split: what it says is not of held-out rows");
            observe.tell(&Event::Warning(&line))?;
        }
    }
    Ok(())
}

fn units(set: &NamedSet) -> &'static str {
    if set.data.num_pairs() > 0 { "pairs" } else { "responses" }
}
