//! A model on a device: from a directory, from given values, or made from a seed.

use super::config::ModelConfig;
use super::dir::ModelDir;
use super::identity;
use super::nf4::Nf4Weights;
use super::params::ParamTable;
use super::sample::normal;
use super::source::{Source, decode, dtype_bytes};
use super::stored::Stored;
use crate::backend::{Backend, Float};
use crate::error::{Result, expect_len};
use rayon::prelude::*;
use std::sync::Arc;

/// Elements converted at a time.
const PIECE: usize = 1 << 20;

/// Where a model's weights came from.
pub(super) enum Origin {
    /// A Hugging Face directory, and its weights.
    Dir(ModelDir, Arc<Source>),
    /// Values in the table's layout.
    Values(Vec<f32>),
}

impl Origin {
    /// The weights as they are stored.
    pub fn stored(&self) -> Stored<'_> {
        match self {
            Origin::Dir(dir, source) => Stored::Files(source, dir.adapter()),
            Origin::Values(values) => Stored::Values(values),
        }
    }
}

/// A model on a device: [`Model::load`] from a directory, [`Model::random`] from a seed, [`Model::from_f32`] from values.
///
/// It remembers where its weights came from, unrounded: an optimiser's master weights start there ([`Model::fill_master`]),
/// and an export compares with it. A model of a directory keeps the directory's files open.
pub struct Model<B: Backend> {
    /// Its shape.
    pub config: ModelConfig,
    /// Where its parameters are.
    pub table: ParamTable,
    /// The weights in compute precision, in the table's layout.
    pub weights: B::Buf<B::Act>,
    /// Linear weights of blocks in four bits, where they are held so.
    pub nf4: Option<Nf4Weights<B>>,
    /// Rotary tables of [`super::Rope::table`], each positions x head_dim.
    pub rope: B::Buf<B::Acc>,
    /// Positions of a rotary table: no row can be longer.
    pub max_positions: usize,
    /// Where the weights came from.
    pub(super) origin: Origin,
}

impl<B: Backend> Model<B> {
    /// Loads the weights of `dir` for rows of up to `max_positions` tokens.
    ///
    /// Errors: [`Error::File`](crate::Error::File) naming what is missing, damaged, of another shape or dtype, unknown or not supported.
    pub fn load(be: &B, dir: &ModelDir, max_positions: usize) -> Result<Self> {
        let weights = dir.weights()?;
        let origin = Origin::Dir(dir.clone(), weights.source.clone());
        origin.stored().check_whole()?;
        Self::build(be, dir.config().clone(), weights.table.clone(), origin, max_positions)
    }

    /// A model of given weights, in the layout of `ParamTable::new(&config)`.
    pub fn from_f32(be: &B, config: ModelConfig, values: Vec<f32>, max_positions: usize) -> Result<Self> {
        let table = ParamTable::new(&config)?;
        expect_len("from_f32", "values", values.len(), &[("arena", table.len)])?;
        Self::build(be, config, table, Origin::Values(values), max_positions)
    }

    /// A model to train from scratch: normal with deviation 0.02, the projections into the residual stream divided by
    /// sqrt(2 layers) (GPT-2's rule), norms 1, biases 0. The same seed gives the same model on every backend.
    pub fn random(be: &B, config: ModelConfig, seed: u64, max_positions: usize) -> Result<Self> {
        let table = ParamTable::new(&config)?;
        let mut values = vec![0f32; table.len];
        let residual = 0.02 / ((2 * config.num_hidden_layers) as f64).sqrt();
        for (stream, spec) in table.specs.iter().enumerate() {
            let into_residual = spec.name.ends_with("o_proj.weight") || spec.name.ends_with("down_proj.weight");
            let deviation = if into_residual { residual } else { 0.02 };
            values[spec.at.clone()].par_iter_mut().enumerate().for_each(|(i, v)| {
                *v = match (spec.decay, spec.name.ends_with(".bias")) {
                    (true, _) => (deviation * normal(seed, stream as u64, i as u64)) as f32,
                    (false, true) => 0.0,
                    (false, false) => 1.0,
                };
            });
        }
        Self::from_f32(be, config, values, max_positions)
    }

    fn build(be: &B, config: ModelConfig, table: ParamTable, origin: Origin, max_positions: usize) -> Result<Self> {
        let mut model = Self::reserve(be, config, table, origin, max_positions)?;
        fill(be, &mut model.weights, &model.table, model.origin.stored(), Arena::All)?;
        if let Some(nf4) = &mut model.nf4 {
            nf4.fill(be, &model.table, model.origin.stored())?;
        }
        let (c, rope) = (&model.config, &mut model.rope);
        let angles: Vec<B::Acc> = c.rope.table(max_positions, c.head_dim).into_iter().map(B::Acc::from_f64).collect();
        be.upload(be.view_mut(rope, 0..angles.len()), &angles)?;
        Ok(model)
    }

    /// A model's memory without its content.
    fn reserve(be: &B, config: ModelConfig, table: ParamTable, origin: Origin, max_positions: usize) -> Result<Self> {
        config.check_positions(max_positions)?;
        let weights = be.zeros("weights", table.len)?;
        let nf4 = Nf4Weights::reserve(be, &table)?;
        let rope = be.zeros("rope table", config.rope.tables(max_positions) * max_positions * config.head_dim)?;
        Ok(Self { config, table, weights, nf4, rope, max_positions, origin })
    }

    /// A model without content on a backend that only counts ([`crate::backend::Device::counting`]).
    pub fn counted(counting: &B, config: &ModelConfig, max_positions: usize) -> Result<Self> {
        let table = ParamTable::new(config)?;
        Self::reserve(counting, config.clone(), table, Origin::Values(Vec::new()), max_positions)
    }

    /// Elements of the rotary tables.
    pub(super) fn rope_len(&self) -> usize {
        self.config.rope.tables(self.max_positions) * self.max_positions * self.config.head_dim
    }

    /// The weights that train as they were loaded, unrounded, in the trained arena: what an optimiser's master weights start
    /// from.
    pub fn master(&self, be: &B) -> Result<B::Buf<B::Acc>> {
        let mut master = be.zeros("master weights", self.table.trained_len)?;
        self.fill_master(be, &mut master)?;
        Ok(master)
    }

    /// [`Model::master`] into memory that is there.
    pub fn fill_master(&self, be: &B, master: &mut B::Buf<B::Acc>) -> Result<()> {
        let stored = self.origin.stored();
        stored.check_whole()?;
        fill(be, master, &self.table, stored, Arena::Trained)
    }

    /// The weights of `dir`, which has this model's configuration, into memory that is there: rounded as weights are, or not.
    pub fn fill_from<T: Float>(&self, be: &B, dir: &ModelDir, to: &mut B::Buf<T>) -> Result<()> {
        let origin = Origin::Dir(dir.clone(), dir.weights()?.source.clone());
        origin.stored().check_whole()?;
        fill(be, to, &self.table, origin.stored(), Arena::All)
    }

    /// Makes what trains what it was when the model was loaded, in the weights that passes read.
    pub fn fill_start(&mut self, be: &B) -> Result<()> {
        let stored = self.origin.stored();
        stored.check_whole()?;
        fill(be, &mut self.weights, &self.table, stored, Arena::Learned)
    }

    /// What these weights are, as they were loaded: of a directory, [`ModelDir::identity`].
    pub fn sha256(&self) -> Result<[u8; 32]> {
        match &self.origin {
            Origin::Dir(dir, _) => dir.identity(),
            Origin::Values(values) => identity::hash(&self.config, &self.table, Stored::Values(values)),
        }
    }
}

/// Which parameters a buffer has, and where.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Arena {
    All,
    /// What trains, in an arena of its own.
    Trained,
    /// What trains, where it lies among all.
    Learned,
}

/// Uploads every tensor of an arena, converted to `T`; refuses NaN and infinity.
fn fill<B: Backend, T: Float>(
    be: &B,
    dst: &mut B::Buf<T>,
    table: &ParamTable,
    stored: Stored,
    arena: Arena,
) -> Result<()> {
    let (mut piece, mut buf) = (Vec::<T>::with_capacity(PIECE), Vec::new());
    for spec in table.specs.iter().filter(|spec| spec.trains || arena == Arena::All) {
        let to = if arena == Arena::Trained { spec.grad.start } else { spec.at.start };
        let dtype = stored.dtype(spec);
        let width = dtype_bytes(dtype);
        for at in spec.at.clone().step_by(PIECE) {
            let end = spec.at.end.min(at + PIECE);
            let range = (at - spec.at.start) * width..(end - spec.at.start) * width;
            decode(dtype, stored.bytes(spec, range, &mut buf)?, &mut piece);
            if !piece.par_iter().all(|v| v.to_f64().is_finite()) {
                return Err(stored.not_finite(spec));
            }
            let start = to + at - spec.at.start;
            be.upload(be.view_mut(dst, start..start + piece.len()), &piece)?;
        }
    }
    Ok(())
}
