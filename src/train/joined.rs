//! What the ranks of a job settle before a run begins.

use super::checkpoint::{Checkpoint, Identity};
use super::choices::GradientChoice;
use super::options::TrainOptions;
use super::schedule::Schedule;
use super::team::Team;
use crate::backend::Backend;
use crate::comm::{Alone, Comm};
use crate::data::shard::Dataset;
use crate::data::shard::format::hex;
use crate::error::{Error, Result};
use crate::model::ModelDir;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Lanes of a run under a launcher that asks for none: so many processes at most share them, and fewer come to the same bits.
const LANES: usize = 8;

/// Most lanes: a plan would have more of them than anybody has groups a step.
const MOST_LANES: usize = 65_536;

/// Options that say where something lies, or on what a rank computes: by what is found there ranks are compared.
const PLACES: [&str; 8] = ["model", "data", "out", "ref_model", "adapter", "cache", "matmul_plans", "device"];

/// The processes that a run is computed by.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// How they hear of each other.
    pub comm: &'a dyn Comm,
    /// Whether a launcher started them, be it one.
    pub launched: bool,
}

impl Job<'static> {
    /// One, which the user started.
    pub const ALONE: Self = Job { comm: &Alone, launched: false };
}

impl Job<'_> {
    /// `c` with the number of its lanes: what was asked for, or those of the checkpoint that the run goes on from, or 1, and under a
    /// launcher 8, or as many as there are processes where those are more.
    ///
    /// Errors: [`Error::Usage`] where there are fewer than processes, or what several lanes cannot have is asked for.
    pub fn settled(&self, c: &TrainOptions, from: Option<&Checkpoint>) -> Result<TrainOptions> {
        let size = self.comm.world().size;
        let held = from.map(|from| from.saved().identity.options.get("lanes").and_then(Value::as_u64).unwrap_or(1));
        let held = held.map(|lanes| usize::try_from(lanes).unwrap_or(usize::MAX));
        let new = if self.launched { LANES.max(size) } else { 1 };
        let lanes = c.data.lanes.or(held).unwrap_or(new);
        if lanes < size {
            let what = if c.data.lanes.is_some() { "`lanes`" } else { "the checkpoint's `lanes`," };
            return Err(Error::usage(format!(
                "{what} {lanes}: fewer than the {size} processes that are to share them; start at most {lanes}"
            )));
        }
        if lanes > MOST_LANES {
            return Err(Error::usage(format!("`lanes` {lanes}: at most {MOST_LANES}")));
        }
        let mut c = c.clone();
        c.data.lanes = Some(lanes);
        Ok(c)
    }

    /// Refuses ranks that compute on another kind of device than rank 0, of which `be` is this one's.
    pub fn same_device<B: Backend>(&self, be: &B) -> Result<()> {
        Team { comm: self.comm, lanes: 1 }.same(&[("way of computing", be.fingerprint())])
    }

    /// [`Job::same_device`]; and makes the devices such as reach each other.
    ///
    /// Errors: [`Error::Usage`] where there is no way from one to the other.
    pub fn join_devices<B: Backend>(&self, be: &B, env: &dyn Fn(&str) -> Option<String>) -> Result<()> {
        self.same_device(be)?;
        be.join(self.comm, env)
    }

    /// The ranks with the lanes of `c`, once they are settled.
    pub fn team(&self, c: &TrainOptions) -> Team<'_> {
        Team { comm: self.comm, lanes: c.data.lanes.unwrap_or(1) }
    }

    /// Refuses ranks that were given other options than rank 0, but for where files lie, which each machine may have elsewhere. Before
    /// anything that depends on them: else some would say what others do not listen to.
    pub fn same_options(&self, c: &TrainOptions) -> Result<()> {
        let Ok(Value::Object(mut options)) = serde_json::to_value(c) else {
            return Err(Error::usage("an option's value cannot be written down"));
        };
        options.insert("fit".into(), c.data.fit.into());
        options.retain(|key, value| !PLACES.contains(&key.as_str()) && !value.is_null());
        let names: Vec<&str> = c.eval.eval_data.iter().map(|set| set.name.as_str()).collect();
        options.insert("eval_data".into(), names.into());
        let all = self.comm.gather(&serde_json::to_vec(&options).unwrap_or_default(), "compare the options")?;
        let all: Vec<Map<String, Value>> =
            all.iter().map(|said| serde_json::from_slice(said).unwrap_or_default()).collect();
        let (first, others) = all.split_first().expect("rank 0 is there");
        for (rank, said) in others.iter().enumerate() {
            if let Some(key) = first.keys().chain(said.keys()).find(|key| first.get(*key) != said.get(*key)) {
                let [is, was] = [said, first].map(|of| of.get(key).map_or("not given".to_owned(), in_words));
                let rank = rank + 1;
                return Err(Error::usage(format!(
                    "`{key}`: {is} on rank {rank}, and {was} on rank 0; give all the same options"
                )));
            }
        }
        Ok(())
    }

    /// Refuses what several lanes, or several processes, do not do yet.
    pub fn refuse<B: Backend>(&self, c: &TrainOptions) -> Result<()> {
        let (size, lanes) = (self.comm.world().size, c.data.lanes.unwrap_or(1));
        let refuse = |what: String| Err(Error::usage(what));
        if lanes > 1 && c.optim.gradient_dtype == GradientChoice::Bf16 {
            let what = if size > 1 { "leave it out, or start one process" } else { "leave it out, or give `lanes` 1" };
            return refuse(format!("`gradient_dtype` bf16: several lanes, here {lanes}, are added up in f32; {what}"));
        }
        // Its masters would be divided as the policy's are.
        if c.reference.sync_ref_model && size > 1 && B::MASTER_WEIGHTS {
            return refuse(format!(
                "`sync_ref_model`: {size} processes do not share it here yet; leave it out, or start one"
            ));
        }
        Ok(())
    }

    /// The ranks, for work that is no step: a lane each.
    pub fn ranks(&self) -> Team<'_> {
        Team { comm: self.comm, lanes: self.comm.world().size }
    }

    /// Refuses ranks of which one would compute another thing than rank 0, of `models` over `data`; `more` is what else decides it.
    pub fn same_work<B: Backend>(
        &self,
        be: &B,
        (models, data): (&[&ModelDir], &[&Dataset]),
        more: &[(&str, String)],
    ) -> Result<()> {
        let team = self.ranks();
        if team.size() == 1 {
            return Ok(());
        }
        let identities = models.iter().map(|model| model.identity().map(|sha| hex(&sha)));
        let identities: Vec<String> = identities.collect::<Result<_>>()?;
        let shards = data.iter().flat_map(|data| data.shards()).map(|shard| hex(&shard.content_sha256()));
        let mut mine = vec![
            ("version of the program", env!("CARGO_PKG_VERSION").to_owned()),
            ("way of computing", be.fingerprint()),
            ("model", identities.join(", ")),
            ("content of the shards", shards.collect::<Vec<_>>().join(", ")),
        ];
        mine.extend_from_slice(more);
        team.same(&mine)
    }

    /// What rank 0 has to say, where it has.
    pub fn told(&self, said: Option<String>) -> Result<Option<String>> {
        let mut bytes = said.map(String::into_bytes).unwrap_or_default();
        self.comm.broadcast(&mut bytes, "hear whether there is something to do")?;
        Ok((!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Refuses ranks of which one would compute another run than rank 0.
    pub fn compare(
        &self,
        team: &Team<'_>,
        identity: &Identity,
        (schedule, sets): (&Schedule, &BTreeMap<String, String>),
    ) -> Result<()> {
        let none = || "none".to_owned();
        team.same(&[
            ("version of the program", env!("CARGO_PKG_VERSION").to_owned()),
            ("way of computing", identity.numerics.clone()),
            ("content of the training shards", identity.train_sha256.clone()),
            ("content of the held-out shards", identity.eval_sha256.clone().unwrap_or_else(none)),
            ("content of the sets to evaluate on", serde_json::to_string(sets).unwrap_or_default()),
            ("model", identity.model_sha256.clone()),
            ("reference", identity.reference_sha256.clone().unwrap_or_else(none)),
            ("token budget", identity.token_budget.to_string()),
            ("number of steps", schedule.total.to_string()),
            ("set of options", serde_json::to_string(&identity.options).unwrap_or_default()),
        ])
    }
}

/// An option's value as it is typed.
fn in_words(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.chars().take(100).collect()
}
