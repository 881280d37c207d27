//! What this device takes for each op, measured: steps of a slice of the model, a second long.
//!
//! The slice has two layers of the model's own widths (of a large model smaller ones), the beginning of its vocabulary, and rows of
//! the lengths of the data. Its steps are those of the run: the same ops on the same kernels and threads, each timed by itself. An op
//! of the run takes as long for its multiplications, or else its bytes, as it takes in the slice.

use super::run::{Cut, Run};
use crate::backend::metered::{Metered, Work};
use crate::backend::watched::Watched;
use crate::backend::{Backend, DequantizeNf4, Nf4Absmax};
use crate::batch::{Builder, Capacity, MicroBatch};
use crate::error::{Error, Result};
use crate::loss::{LossSpec, LossType};
use crate::model::{Model, ModelConfig, ParamTable, RopeScaling};
use crate::quant::Precision;
use crate::train::engine::{Engine, Purpose};
use crate::train::memory::MemoryPlan;
use crate::train::optim::{OptimOptions, Optimizer};
use crate::train::team::Ranks;
use std::collections::BTreeMap;
use std::time::Instant;

/// Rows of the first step, and by how much the next has more.
const ROWS: usize = 64;
const GROWTH: usize = 4;
/// Seconds that a step of the slice may be expected to take.
const LONGEST: f64 = 0.35;
/// Steps that count; of each op the shortest time does.
const STEPS: usize = 3;
/// Layers: of the last one only the rows that predict something are computed.
const LAYERS: usize = 2;
/// Widest residual stream and MLP; at these widths products are as fast as they become.
const WIDEST: [usize; 2] = [1024, 4096];
/// Most weights of the head.
const HEAD: usize = 1 << 23;

/// Rates of a device that were measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibrated {
    /// How long that took.
    pub seconds: f64,
    /// FLOP/s of the layers' products.
    pub products: f64,
    /// Bytes a second of ops without products.
    pub bandwidth: f64,
    /// Seconds of each op for what it is asked for ([`Work::amount`]).
    by_op: BTreeMap<&'static str, f64>,
}

impl Calibrated {
    /// Seconds of one call of an op; of one that the slice does not have, by what others reach.
    pub fn seconds(&self, work: &Work) -> f64 {
        let others = if work.product + work.attention > 0.0 { self.products } else { self.bandwidth };
        work.amount() * self.by_op.get(work.op).copied().unwrap_or(1.0 / others)
    }

    fn of(work: &[Work], times: &[f64]) -> Self {
        let mut by_op: BTreeMap<&'static str, [f64; 2]> = BTreeMap::new();
        let mut rate = [[0.0; 2]; 2];
        for (work, seconds) in work.iter().zip(times) {
            let sum = by_op.entry(work.op).or_default();
            *sum = [sum[0] + seconds, sum[1] + work.amount()];
            if work.product > 0.0 && work.stream == 0.0 {
                rate[0] = [rate[0][0] + seconds, rate[0][1] + work.product];
            } else if work.product + work.attention == 0.0 {
                rate[1] = [rate[1][0] + seconds, rate[1][1] + work.stream];
            }
        }
        let [products, bandwidth] = rate.map(|[seconds, amount]| amount / seconds.max(1e-9));
        let by_op = by_op.into_iter().filter(|(_, [_, amount])| *amount > 0.0);
        let by_op = by_op.map(|(op, [seconds, amount])| (op, seconds / amount)).collect();
        Self { seconds: 0.0, products, bandwidth, by_op }
    }
}

/// Measures `be`, for the run of `run`; `None`: there is no memory for it.
pub(super) fn calibrate<B: Backend>(be: B, run: &Run<'_, B>, cut: &Cut<'_>) -> Result<Option<Calibrated>> {
    let begun = Instant::now();
    let Some(sample) = cut.train.step(0, 0)?.into_iter().max_by_key(MicroBatch::used) else { return Ok(None) };
    let config = run.with(|config, _| Ok(slice(config, run.positions)))?;
    let optim = &run.c.optim;
    let all = sample.used();
    let capacity = reduced(&sample, all, config.vocab_size)?.capacity();
    let head_rows = (B::LOGITS_BYTES / (run.opened.base.vocab_size * size_of::<B::Acc>())).max(1);
    let plan = MemoryPlan::training(&be, &config, run.positions, capacity, (Purpose::Train, optim))?;
    if be.memory()?.is_some_and(|memory| plan.needed() > memory.free) {
        return Ok(None);
    }
    let metered = Metered::new(&be);
    let be = Watched::new(be);
    let mut slice = Slice::new(&be, (&config, run.positions), capacity, (optim, head_rows))?;
    let mut counted = Slice::counted(&metered, (&config, run.positions), capacity, (optim, head_rows))?;
    let mut rows = ROWS.min(all);
    let batch = loop {
        let batch = reduced(&sample, rows, config.vocab_size)?;
        let since = Instant::now();
        slice.step(&batch)?;
        if rows == all || since.elapsed().as_secs_f64() * GROWTH as f64 > LONGEST {
            break batch;
        }
        rows = (GROWTH * rows).min(all);
    };
    let (mut shortest, mut timed): (Vec<f64>, Vec<&str>) = Default::default();
    be.time(true);
    for _ in 0..STEPS {
        slice.step(&batch)?;
        let times = be.times();
        timed = times.iter().map(|(op, _)| *op).collect();
        shortest.resize(times.len(), f64::INFINITY);
        shortest.iter_mut().zip(times).for_each(|(least, (_, seconds))| *least = least.min(seconds));
    }
    metered.take();
    counted.step(&batch)?;
    let mut work = metered.take();
    // Times belong to work by their place alone.
    if !work.iter().map(|work| work.op).eq(timed) {
        return Err(Error::Device("cannot calibrate: the ops that were timed are not those that were counted".into()));
    }
    if run.with(|config, _| Ok(config.quantized.is_some()))? {
        let (asked, seconds) = dense(be.inner(), &metered)?;
        work.push(asked);
        shortest.push(seconds);
    }
    let measured = Calibrated::of(&work, &shortest);
    Ok(Some(Calibrated { seconds: begun.elapsed().as_secs_f64(), ..measured }))
}

/// The slice of a model: as wide where that is not very wide, with rows of up to `positions` tokens.
fn slice(c: &ModelConfig, positions: usize) -> ModelConfig {
    let mut s = c.clone();
    let [widest, ffn] = WIDEST;
    s.num_hidden_layers = LAYERS;
    (s.hidden_size, s.intermediate_size) = (c.hidden_size.min(widest), c.intermediate_size.min(ffn));
    let heads = (widest / c.head_dim).clamp(1, c.num_attention_heads);
    let shared = c.num_attention_heads / c.num_key_value_heads;
    s.num_key_value_heads = (heads / shared).max(1);
    s.num_attention_heads = s.num_key_value_heads * shared.min(heads);
    s.vocab_size = c.vocab_size.min((HEAD / s.hidden_size).max(256));
    (s.quantized, s.skipped, s.sliding_window, s.rope.scaling) = (None, Default::default(), None, RopeScaling::None);
    s.max_position_embeddings = positions.max(c.max_position_embeddings);
    s
}

/// Groups like those of `sample`, of `rows` rows in all or a little more, with tokens of a vocabulary of `vocab`.
fn reduced(sample: &MicroBatch, rows: usize, vocab: usize) -> Result<MicroBatch> {
    let mut b = Builder::with_capacity(sample.slots());
    let token = |i: usize| (i * 7919 % vocab) as u32;
    for (id, group) in sample.groups().iter().enumerate() {
        let responses = &sample.responses()[group.responses.start as usize..group.responses.end as usize];
        let lengths = responses.iter().map(|r| r.predictions.len());
        let left = rows.saturating_sub(b.used());
        let own = group.prompt.len() + lengths.clone().sum::<usize>();
        if left == 0 {
            break;
        }
        let share = |n: usize| if own > left { (n * left / own).max(1) } else { n.max(1) };
        b.group(id as u64, (0..share(group.prompt.len())).map(token))?;
        for (i, n) in lengths.enumerate() {
            b.response((group.responses.start as usize + i) as u64, (0..share(n)).map(|t| token(t + i)))?;
        }
    }
    let used = b.used();
    b.finish(used)
}

/// A slice on a device.
struct Slice<'a, B: Backend> {
    engine: Engine<'a, B>,
    optimizer: Optimizer<B>,
    spec: LossSpec,
    step: u64,
}

impl<'a, B: Backend> Slice<'a, B> {
    /// With weights of all sizes that weights have.
    fn new(
        be: &'a B,
        (config, positions): (&ModelConfig, usize),
        capacity: Capacity,
        of: (&OptimOptions, usize),
    ) -> Result<Self> {
        let weight = |i: usize| ((i.wrapping_mul(0x9E37_79B1) >> 8 & 0xFFFF) as f32 / 65536.0 - 0.5) * 0.08;
        let values = (0..ParamTable::new(config)?.len).map(weight).collect();
        Self::of(be, Model::from_f32(be, config.clone(), values, positions)?, capacity, of)
    }

    fn counted(
        be: &'a B,
        (config, positions): (&ModelConfig, usize),
        capacity: Capacity,
        of: (&OptimOptions, usize),
    ) -> Result<Self> {
        Self::of(be, Model::counted(be, config, positions)?, capacity, of)
    }

    fn of(be: &'a B, model: Model<B>, capacity: Capacity, (optim, head_rows): (&OptimOptions, usize)) -> Result<Self> {
        let mut engine = Engine::over_rows(be, model, capacity, (Purpose::Train, optim), head_rows)?;
        let optimizer = Optimizer::reserve(be, &mut engine.state, optim, Ranks::ALONE)?;
        Ok(Self { engine, optimizer, spec: LossSpec::of(LossType::Sft), step: 0 })
    }

    /// A step of two micro-batches: the first sets gradients, the second adds to them.
    fn step(&mut self, batch: &MicroBatch) -> Result<()> {
        let be = self.engine.be;
        let engine = &mut self.engine;
        self.step += 1;
        engine.clear_grads()?;
        for _ in 0..2 {
            let mut batch = [batch.clone()];
            engine.drop_from(&mut batch, 0, self.step);
            let late = engine.start(&batch[0], &self.spec, 1.0 / batch[0].predictions().len() as f64)?;
            engine.collect_score(late)?;
        }
        self.optimizer.step(be, &mut engine.state, 1e-6)
    }
}

/// What it takes to make a weight in four bits dense.
fn dense<B: Backend>(be: &B, metered: &Metered<B>) -> Result<(Work, f64)> {
    const LEN: usize = 1 << 22;
    fn one<B: Backend>(be: &B) -> Result<f64> {
        let (mut w, codes) = (be.zeros::<B::Act>("weight made dense", LEN)?, be.zeros::<u8>("codes", LEN / 2)?);
        let absmax = be.zeros::<f32>("magnitudes", LEN / 64)?;
        let mut least = f64::INFINITY;
        for _ in 0..STEPS {
            let since = Instant::now();
            be.dequantize_nf4(DequantizeNf4 {
                w: be.view_mut(&mut w, 0..LEN),
                codes: be.view(&codes, 0..LEN / 2),
                absmax: Nf4Absmax::Plain(be.view(&absmax, 0..LEN / 64)),
                round: Precision::F32,
            })?;
            least = least.min(since.elapsed().as_secs_f64());
        }
        Ok(least)
    }
    one(metered)?;
    let asked = metered.take().pop().unwrap_or_default();
    Ok((asked, one(be)?))
}
