//! Options of a run: one struct a concern, every option once, with its description, default and range.
//!
//! Every option is also a key of a TOML table, by the same name: what the command line and `--config` give is such a table,
//! and `RUN/config.toml` holds every resolved value but `out`, so that it can be given to another run.

pub use super::checkpoint::SaveOptions;

use super::choices::{DeviceChoice, DtypeChoice, GradientChoice, GraphsChoice, LogitsChoice, Resume};
use super::group::{Group, options, take};
use super::ledger::LedgerOptions;
use super::optim::OptimOptions;
use super::schedule::{SFT_LEARNING_RATE, ScheduleOptions};
use crate::choice;
use crate::choice::Choice;
use crate::error::{Error, Result};
use crate::hub::Folders;
use crate::loss::{LossSpec, LossType};

pub use super::adapter_options::TrainedOptions;
pub use super::eval_options::{EvalOptions, EvalStrategy, NamedData};
pub use super::loss_options::LossOptions;
pub use super::report_options::ReportOptions;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Most epochs: beyond it, counting the steps alone would not end.
const MAX_EPOCHS: f64 = 1e6;

choice! {
    /// Which stage a run is: what was asked for, whatever a configuration holds.
    pub enum Stage: default Dpo {
        /// Supervised fine-tuning on completions.
        Sft = "sft",
        /// Preference optimisation.
        Dpo = "dpo",
    }
}

options! {
    /// What a run reads and where it writes. All three must be given.
    pub struct FileOptions {
        /// Hugging Face directory of the starting policy.
        model: PathBuf = PathBuf::new();
        /// Folder of shards.
        data: PathBuf = PathBuf::new();
        /// New folder for the result.
        #[serde(skip_serializing)]
        out: PathBuf = PathBuf::new();
    }

    /// The reference, and where its log-probs are kept.
    pub struct ReferenceOptions {
        /// Hugging Face directory of the reference; `None`: the starting policy.
        ref_model: Option<PathBuf> = None;
        /// Folder for sidecars; `None`: beside the shards.
        cache: Option<PathBuf> = None;
        /// Whether the reference follows the policy (TR-DPO).
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        sync_ref_model: bool = false;
        /// The policy's share in the reference after a sync; `None`: 0.6, where there are syncs.
        ref_model_mixup_alpha: Option<f64> = None, in given_share, "greater than 0, and at most 1";
        /// Steps from one sync to the next; `None`: 512, where there are syncs.
        ref_model_sync_steps: Option<u64> = None, in given_positive, "1 or more";
    }

    /// How the data are read, and for how long.
    pub struct DataOptions {
        /// Pairs (SFT: responses) a step, at least; a step takes whole groups.
        batch_size: usize = 8, in positive, "1 or more";
        /// Token slots of a micro-batch; `None`: chosen from the data.
        token_budget: Option<usize> = None, in given_positive, "1 or more";
        /// Whether the recommended budget is chosen in its place, when the run begins.
        #[serde(skip_serializing)]
        fit: bool = false;
        /// Sums that a step's gradient is made of, which the ranks of a job share; `None`: 1, or with a launcher what
        /// [`Job::settled`](super::joined::Job::settled) says.
        #[serde(skip_serializing_if = "one_lane")]
        lanes: Option<usize> = None, in given_positive, "1 or more";
        /// Steps; `None`: by epochs.
        max_steps: Option<u64> = None, in given_positive, "1 or more";
        /// Passes over the data; may be a fraction.
        num_train_epochs: f64 = 1.0, in epochs, "greater than 0, and at most 1000000";
        /// Seed of the data order.
        seed: u64 = 42, in toml_integer, "at most 2^63 - 1";
    }

    /// Where and how to compute.
    pub struct ComputeOptions {
        /// Precision of the matrix products.
        dtype: DtypeChoice = DtypeChoice::Auto;
        /// Precision of the head's logits.
        logits_dtype: LogitsChoice = LogitsChoice::F32;
        /// Device.
        device: DeviceChoice = DeviceChoice::Auto;
        /// Layers keep their input only, and are computed again in the backward pass.
        gradient_checkpointing: bool = false;
        /// Whether the layers' passes are replayed as CUDA graphs.
        cuda_graphs: GraphsChoice = GraphsChoice::Auto;
        /// File of tuned algorithms.
        matmul_plans: Option<PathBuf> = None;
    }

    /// Where a run begins. Of this call alone: not in `config.toml`.
    pub struct ResumeOptions {
        /// Where to go on from; `None`: the run is new.
        #[serde(skip_serializing)]
        resume: Option<Resume> = None;
        /// Whether it may go on with other numerics, such as another CPU's or a GPU's: not with the same bits, then.
        #[serde(skip_serializing)]
        allow_other_numerics: bool = false;
    }
}

fn positive(n: &usize) -> bool {
    *n > 0
}

/// As serde asks: runs that knew no lanes had one.
fn one_lane(lanes: &Option<usize>) -> bool {
    lanes.is_none_or(|lanes| lanes == 1)
}

fn given_positive<T: Default + PartialEq>(n: &Option<T>) -> bool {
    *n != Some(T::default())
}

fn given_share(x: &Option<f64>) -> bool {
    x.is_none_or(|x| 0.0 < x && x <= 1.0)
}

fn epochs(n: &f64) -> bool {
    *n > 0.0 && *n <= MAX_EPOCHS
}

/// `config.toml` must be able to hold it.
fn toml_integer(n: &u64) -> bool {
    i64::try_from(*n).is_ok()
}

impl ReferenceOptions {
    /// Writes the defaults of a synced reference. Errors: what a reference that stays, or a loss without one, has no use for.
    fn resolve(&mut self, loss: &LossSpec) -> Result<()> {
        self.check()?;
        let given = [
            ("ref_model_mixup_alpha", self.ref_model_mixup_alpha.is_some()),
            ("ref_model_sync_steps", self.ref_model_sync_steps.is_some()),
        ];
        if !self.sync_ref_model {
            let ignored = given.into_iter().find(|(_, given)| *given);
            return ignored.map_or(Ok(()), |(name, _)| {
                Err(Error::usage(format!("`{name}`: only a reference that follows has it; give `sync_ref_model` too")))
            });
        }
        if !loss.reference() {
            let name = loss.name();
            return Err(Error::usage(format!("`sync_ref_model`: the {name} loss has no reference; leave it out")));
        }
        if self.cache.is_some() {
            let why = "`cache`: a reference that follows the policy (`sync_ref_model`) has no sidecars; leave it out";
            return Err(Error::usage(why));
        }
        self.ref_model_mixup_alpha.get_or_insert(0.6);
        self.ref_model_sync_steps.get_or_insert(512);
        Ok(())
    }
}

/// Options of a run. Defaults are TRL 1.16's, but one epoch; [`Default`] has DPO's learning rate, SFT has
/// [`SFT_LEARNING_RATE`]. Serialised as `RUN/config.toml`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TrainOptions {
    /// The stage, so that a configuration says what it is of.
    pub stage: Stage,
    /// What is read and written.
    #[serde(flatten)]
    pub files: FileOptions,
    /// The reference.
    #[serde(flatten)]
    pub reference: ReferenceOptions,
    /// The loss.
    #[serde(flatten)]
    pub loss: LossOptions,
    /// Learning rates.
    #[serde(flatten)]
    pub schedule: ScheduleOptions,
    /// The optimiser.
    #[serde(flatten)]
    pub optim: OptimOptions,
    /// What is trained.
    #[serde(flatten)]
    pub train: TrainedOptions,
    /// Data and length.
    #[serde(flatten)]
    pub data: DataOptions,
    /// Device and precision.
    #[serde(flatten)]
    pub compute: ComputeOptions,
    /// Evaluation.
    #[serde(flatten)]
    pub eval: EvalOptions,
    /// The ledger of pairs.
    #[serde(flatten)]
    pub ledger: LedgerOptions,
    /// Saving.
    #[serde(flatten)]
    pub save: SaveOptions,
    /// Who is told.
    #[serde(flatten)]
    pub report: ReportOptions,
    /// Where it begins.
    #[serde(flatten)]
    pub resume: ResumeOptions,
    /// What was typed, for `run.json`; nothing where no command line asked for the run.
    #[serde(skip)]
    pub command: Vec<String>,
    /// Where models that are named by the hub's names lie.
    #[serde(skip)]
    pub folders: Folders,
}

impl TrainOptions {
    /// The options that `table` gives, the rest being defaults of `stage`; not checked yet. SFT has neither a reference nor a choice of
    /// losses.
    ///
    /// Errors: a key that `stage` does not know or whose value has the wrong type, in one line.
    pub fn read(stage: Stage, table: &toml::Table) -> Result<Self, String> {
        let mut rest = table.clone();
        if let Some(of) = rest.remove("stage")
            && of.as_str() != Some(stage.name())
        {
            return Err(format!("`stage` is {of}, this is \"{stage}\""));
        }
        // An SFT run's own config.toml says so; in that stage there is nothing else to choose.
        if stage == Stage::Sft && rest.get("loss_type").and_then(|v| v.as_str()) == Some("sft") {
            rest.remove("loss_type");
        }
        let mut o = Self {
            stage,
            files: take(&mut rest)?,
            schedule: take(&mut rest)?,
            optim: take(&mut rest)?,
            train: take(&mut rest)?,
            data: take(&mut rest)?,
            compute: take(&mut rest)?,
            eval: take(&mut rest)?,
            save: take(&mut rest)?,
            report: take(&mut rest)?,
            resume: take(&mut rest)?,
            ..Self::default()
        };
        if stage == Stage::Sft && !table.contains_key("learning_rate") {
            o.schedule.learning_rate = SFT_LEARNING_RATE;
        }
        if stage == Stage::Dpo {
            (o.reference, o.loss, o.ledger) = (take(&mut rest)?, take(&mut rest)?, take(&mut rest)?);
        }
        match rest.keys().next() {
            Some(key) => Err(format!("`{key}` is not an option of this command")),
            None => Ok(o),
        }
    }

    /// [`TrainOptions::read`], then [`TrainOptions::resolve`].
    pub fn from_table(stage: Stage, table: &toml::Table) -> Result<Self> {
        Self::read(stage, table).map_err(Error::Usage)?.resolve(stage)
    }

    /// Checks every range and combination, and fills in what depends on others.
    pub fn resolve(mut self, stage: Stage) -> Result<Self> {
        self.stage = stage;
        if stage == Stage::Sft {
            self.loss.loss_type = LossType::Sft.into();
        }
        let loss = self.loss.resolve()?;
        let r = &mut self.reference;
        r.resolve(&loss)?;
        self.ledger.resolve(&loss)?;
        if !loss.reference() && (r.ref_model.is_some() || r.cache.is_some()) {
            let name = loss.name();
            return Err(Error::usage(format!(
                "`ref_model` and `cache`: the {name} loss has no reference; leave them out"
            )));
        }
        for (name, path) in [("model", &self.files.model), ("data", &self.files.data), ("out", &self.files.out)] {
            if path.as_os_str().is_empty() {
                return Err(Error::usage(format!("`{name}` is required")));
            }
        }
        self.resolve_trained()?;
        self.schedule.check()?;
        self.optim.check()?;
        self.data.check()?;
        if let (true, Some(slots)) = (self.data.fit, self.data.token_budget) {
            return Err(Error::usage(format!(
                "`fit` and `token_budget` {slots}: one chooses what the other says; give one"
            )));
        }
        self.compute.check()?;
        self.eval.resolve()?;
        if self.eval.kl_samples > 0 && !loss.reference() {
            let name = loss.name();
            return Err(Error::usage(format!(
                "`kl_samples`: the {name} loss has no reference to be far from; leave it out"
            )));
        }
        self.save.check()?;
        if self.resume.allow_other_numerics && self.resume.resume.is_none() {
            return Err(Error::usage(
                "`allow_other_numerics`: only a run that goes on has numerics of before; give `resume` too",
            ));
        }
        Ok(self)
    }

    /// Refuses what cannot be said of what trains.
    fn resolve_trained(&mut self) -> Result<()> {
        self.train.resolve()?;
        if self.optim.gradient_dtype == GradientChoice::Bf16 && self.train.has_adapter() {
            let why = "`gradient_dtype` bf16: an adapter's gradients are small, and summed up in f32; leave it out";
            return Err(Error::usage(why));
        }
        if !self.reference.sync_ref_model {
            return Ok(());
        }
        let what = match &self.train.train {
            Some(regex) => format!("`train` {regex}"),
            None if self.train.has_adapter() => "an adapter".to_owned(),
            None if self.optim.optim.is_small() => {
                return Err(Error::usage(format!(
                    "`optim` {}: a reference that follows (`sync_ref_model`) follows master weights, which it has none of; leave \
                     one of them out",
                    self.optim.optim.name()
                )));
            }
            None => return Ok(()),
        };
        Err(Error::usage(format!(
            "{what}: a reference that follows (`sync_ref_model`) follows all weights; leave one of them out"
        )))
    }

    /// The loss with its hyper-parameters, once they are resolved.
    pub fn loss(&self) -> LossSpec {
        self.loss.spec()
    }

    /// The reference model, as it is named.
    pub fn reference_dir(&self) -> &Path {
        self.reference.ref_model.as_deref().unwrap_or(&self.files.model)
    }

    /// The folder of a model that is named so.
    pub fn folder<'a>(&'a self, named: &'a Path) -> &'a Path {
        self.folders.path(named)
    }

    /// The content of `config.toml`, with paths that mean the same from every folder. Errors: a path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(&self.placed()).map_err(|e| Error::usage(e.to_string()))
    }

    /// With absolute paths; links in them stay, and so do the hub's names.
    pub fn placed(&self) -> Self {
        let mut placed = self.clone();
        let (files, reference) = (&mut placed.files, &mut placed.reference);
        let given = [
            &mut reference.ref_model,
            &mut reference.cache,
            &mut placed.compute.matmul_plans,
            &mut placed.train.adapter,
        ];
        let sets = placed.eval.eval_data.iter_mut().map(|set| &mut set.data);
        for path in [&mut files.model, &mut files.data].into_iter().chain(given.into_iter().flatten()).chain(sets) {
            if self.folders.has(path) {
                continue;
            }
            if let Ok(absolute) = std::path::absolute(&*path) {
                *path = absolute;
            }
        }
        placed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> toml::Table {
        text.parse().unwrap()
    }

    #[test]
    fn what_a_run_wrote_can_be_read_again() {
        let given = "model = 'm'\ndata = 'd'\nout = 'o'\nlearning_rate = 1\nlr_scheduler_type = 'cosine'\nsave_dtype = 'bfloat16'";
        for (stage, more) in [(Stage::Sft, ""), (Stage::Dpo, "\nbeta = 0.3\nref_model = 'r'\nmax_steps = 7")] {
            let o = TrainOptions::from_table(stage, &table(&format!("{given}{more}"))).unwrap();
            let mut again = table(&o.to_toml().unwrap());
            assert!(!again.contains_key("out"), "{again}");
            again.insert("out".into(), "o".into());
            assert_eq!(TrainOptions::from_table(stage, &again).unwrap(), o.placed());
            assert!(Path::new(again["model"].as_str().unwrap()).is_absolute(), "{again}");
        }
    }

    #[test]
    fn every_option_is_in_config_toml_unless_it_is_none() {
        let o = TrainOptions::from_table(Stage::Dpo, &table("model = 'm'\ndata = 'd'\nout = 'o'")).unwrap();
        let written = table(&o.to_toml().unwrap());
        let mut keys: Vec<&str> = written.keys().map(String::as_str).collect();
        keys.sort_unstable();
        let mut want = [
            "adam_beta1",
            "adam_beta2",
            "adam_epsilon",
            "batch_size",
            "beta",
            "cuda_graphs",
            "data",
            "device",
            "dtype",
            "eval_steps",
            "f_divergence_type",
            "gradient_checkpointing",
            "label_smoothing",
            "learning_rate",
            "logits_dtype",
            "loss_type",
            "lr_scheduler_type",
            "max_grad_norm",
            "model",
            "num_train_epochs",
            "optim",
            "save_dtype",
            "save_total_limit",
            "seed",
            "stage",
            "use_weighting",
            "warmup_ratio",
            "warmup_steps",
            "weight_decay",
        ];
        want.sort_unstable();
        assert_eq!(keys, want);
    }

    #[test]
    fn epochs_are_some_and_not_without_end() {
        for (n, ok) in
            [("0.0", false), ("-1.0", false), ("nan", false), ("1e-9", true), ("1e6", true), ("1.1e6", false)]
        {
            let given = format!("model = 'm'\ndata = 'd'\nout = 'o'\nnum_train_epochs = {n}");
            assert_eq!(TrainOptions::from_table(Stage::Sft, &table(&given)).is_ok(), ok, "{n}");
        }
    }

    #[test]
    fn options_of_the_other_stage_are_refused() {
        let given = table("model = 'm'\ndata = 'd'\nout = 'o'\nbeta = 0.1");
        let e = TrainOptions::read(Stage::Sft, &given).unwrap_err();
        assert_eq!(e, "`beta` is not an option of this command");
        let e = TrainOptions::read(Stage::Dpo, &table("stage = 'sft'")).unwrap_err();
        assert_eq!(e, "`stage` is \"sft\", this is \"dpo\"");
        let sft = table("model = 'm'\ndata = 'd'\nout = 'o'\nloss_type = 'sft'");
        assert_eq!(TrainOptions::from_table(Stage::Sft, &sft).unwrap().loss.beta, None);
    }
}
