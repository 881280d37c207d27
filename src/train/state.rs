//! What a run has learned: the one noun for what a checkpoint holds, a memory plan counts and ranks share.
//!
//! Weights are in the layout of the parameter arena; gradients, master weights and moments are in that of the trained arena,
//! which has what trains and nothing else ([`crate::model::ParamTable`]). Where several ranks train, each has the whole of the
//! weights and of its gradients, and its share of master weights and moments ([`Shares`]).

use super::clock::Clock;
use super::places::Kind;
use super::shares::Shares;
use crate::backend::{Backend, Storage, code8};
use crate::comm::World;
use crate::error::{Error, Result};
use crate::model::{Gradients, Model, Sums};
use half::bf16;
use std::ops::Range;

/// The tensors of a run, and its clock.
pub struct State<B: Backend> {
    /// The policy, or the reference; its weights are those that the passes read.
    pub model: Model<B>,
    /// Gradients of the weights, where they are trained.
    pub grads: Option<Gradients<B>>,
    /// What the updates add up in, where the weights are of a narrower type.
    pub master: Option<B::Buf<B::Acc>>,
    /// What the optimiser remembers, where there is one.
    pub moments: Option<Moments<B>>,
    /// What of masters and moments this rank has.
    pub shares: Shares,
    /// A reference that follows the policy, where there is one.
    pub reference: Option<Synced<B>>,
    /// Where the run stands.
    pub clock: Clock,
}

/// Running means over the gradients and over their squares.
pub enum Moments<B: Backend> {
    /// In single precision.
    Full {
        /// Of the gradients; empty where the optimiser has none.
        first: B::Buf<B::Acc>,
        /// Whether it has.
        has_first: bool,
        /// Of their squares.
        second: B::Buf<B::Acc>,
    },
    /// In bf16, rounded stochastically.
    Bf16 {
        /// Of the gradients.
        first: B::Buf<bf16>,
        /// Of their squares.
        second: B::Buf<bf16>,
    },
    /// In 8 bits and a scale a block.
    Block8 {
        /// Of the gradients, with a sign.
        first: Coded<B>,
        /// Of their squares.
        second: Coded<B>,
    },
}

/// Numbers of 8 bits in blocks that share a scale. Blocks are a tensor's own: its last one may be shorter.
pub struct Coded<B: Backend> {
    /// In the layout of the trained arena.
    pub codes: B::Buf<u8>,
    /// Tensor after tensor ([`ParamTable::trained_blocks`](crate::model::ParamTable::trained_blocks)).
    pub scales: B::Buf<f32>,
}

/// The weights of a reference of the same shape as the policy, on the device.
pub struct Synced<B: Backend> {
    /// As the passes read them.
    pub weights: B::Buf<B::Act>,
    /// What syncs add up in, where the weights are of a narrower type: a small step would be lost in their rounding.
    pub master: Option<B::Buf<B::Acc>>,
}

/// Names a tensor of a [`State`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Weights as the passes read them.
    Weights,
    /// Gradients; of matrices alone where they are in bf16.
    Gradients,
    /// Those of norms and biases, where they are apart.
    VectorGradients,
    /// Master weights of what trains.
    Master,
    /// First moments.
    First,
    /// Second moments.
    Second,
    /// Scales of the first moments' blocks.
    FirstScale,
    /// Scales of the second moments' blocks.
    SecondScale,
    /// Weights of the synced reference.
    Reference,
    /// Its master weights.
    ReferenceMaster,
}

/// A tensor of a [`State`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Which.
    pub part: Part,
    /// Its name in files.
    pub name: &'static str,
    /// Type of its elements, as `f32`.
    pub dtype: &'static str,
    /// Bytes of an element.
    pub width: usize,
    /// Elements, of all ranks.
    pub len: usize,
    /// Whether it outlives a step: a run can go on from the lasting sections and the clock alone.
    pub lasting: bool,
}

impl Part {
    /// Whether it is laid out as the trained arena is, not as the arena of all weights.
    pub fn of_trained(self) -> bool {
        matches!(self, Part::Gradients | Part::VectorGradients | Part::Master | Part::First | Part::Second)
            || self.of_blocks()
    }

    /// How it is shared among ranks, where it is: what the optimiser keeps.
    pub fn shared(self) -> Option<Kind> {
        match self {
            Part::Master | Part::First | Part::Second => Some(Kind::Elements),
            Part::FirstScale | Part::SecondScale => Some(Kind::Scales),
            _ => None,
        }
    }

    /// Whether it has an element for each block of a tensor that trains, and not for each of its own.
    pub fn of_blocks(self) -> bool {
        matches!(self, Part::FirstScale | Part::SecondScale)
    }
}

impl Section {
    fn of<T: Storage>(part: Part, name: &'static str, len: usize, lasting: bool) -> Self {
        Self { part, name, dtype: T::NAME, width: size_of::<T>(), len, lasting }
    }
}

impl<B: Backend> State<B> {
    /// Of a model alone, or with gradients of zero.
    pub fn new(be: &B, model: Model<B>, trains: bool) -> Result<Self> {
        let grads = if trains { Some(Gradients::new(be, &model.table, false)?) } else { None };
        let shares = Shares::new(&model.table, false, World::ALONE);
        Ok(Self { model, grads, master: None, moments: None, shares, reference: None, clock: Clock::default() })
    }

    /// With gradients of zero, those of matrices in bf16 where `narrow` says so. Errors: [`Error::Usage`] where no matrix trains
    /// that it could say so of; the device's.
    pub fn training(be: &B, model: Model<B>, narrow: bool) -> Result<Self> {
        if narrow && model.table.trained_matrices == 0 {
            return Err(Error::usage(
                "`gradient_dtype` bf16: no matrix trains, and the rest is summed up in f32; leave it out",
            ));
        }
        let grads = Gradients::new(be, &model.table, narrow)?;
        Ok(Self { grads: Some(grads), ..Self::new(be, model, false)? })
    }

    /// Every tensor that is there, in the order of [`Part`].
    pub fn sections(&self, _: &B) -> Vec<Section> {
        let (n, trained) = (self.model.table.len, self.model.table.trained_len);
        let mut all = vec![Section::of::<B::Act>(Part::Weights, "weights", n, true)];
        match &self.grads {
            None => {}
            Some(Gradients { sums: Sums::Full(_), .. }) => {
                all.push(Section::of::<B::Acc>(Part::Gradients, "gradients", trained, false))
            }
            Some(Gradients { sums: Sums::Narrow { split, .. }, .. }) => {
                let (part, name) = (Part::VectorGradients, "vector_gradients");
                all.push(Section::of::<bf16>(Part::Gradients, "gradients", *split, false));
                all.push(Section::of::<B::Acc>(part, name, trained - split, false));
            }
        }
        if self.master.is_some() {
            all.push(Section::of::<B::Acc>(Part::Master, "master", trained, true));
        }
        let [first, second] = [(Part::First, "first_moment"), (Part::Second, "second_moment")];
        match &self.moments {
            None => {}
            Some(Moments::Full { has_first, .. }) => {
                let full = |(part, name)| Section::of::<B::Acc>(part, name, trained, true);
                all.extend(has_first.then(|| full(first)));
                all.push(full(second));
            }
            Some(Moments::Bf16 { .. }) => {
                all.extend([first, second].map(|(part, name)| Section::of::<bf16>(part, name, trained, true)));
            }
            Some(Moments::Block8 { .. }) => {
                let blocks = self.model.table.trained_blocks(code8::blocks);
                let scales = [(Part::FirstScale, "first_scale"), (Part::SecondScale, "second_scale")];
                for ((part, name), (of_scales, named)) in [first, second].into_iter().zip(scales) {
                    all.push(Section::of::<u8>(part, name, trained, true));
                    all.push(Section::of::<f32>(of_scales, named, blocks, true));
                }
            }
        }
        if let Some(reference) = &self.reference {
            all.push(Section::of::<B::Act>(Part::Reference, "reference", n, true));
            if reference.master.is_some() {
                all.push(Section::of::<B::Acc>(Part::ReferenceMaster, "reference_master", n, true));
            }
        }
        all
    }

    /// Appends the elements `range` of `part` to `to`, as little-endian bytes, but for those that other ranks have; waits for the
    /// device. Errors: a part that is not there, a range beyond it.
    pub fn read(&self, be: &B, part: Part, range: Range<usize>, to: &mut Vec<u8>) -> Result<()> {
        let (Some(kind), true) = (part.shared(), self.shares.shared()) else {
            return self.read_held(be, part, range, to);
        };
        let kept = self.shares.kept(kind, &range);
        kept.into_iter().try_for_each(|(of, at)| self.read_held(be, part, at..at + of.len(), to))
    }

    fn read_held(&self, be: &B, part: Part, range: Range<usize>, to: &mut Vec<u8>) -> Result<()> {
        let none = || absent(part);
        let reference = || self.reference.as_ref().ok_or_else(none);
        match part {
            Part::Weights => read(be, &self.model.weights, part, range, to),
            Part::Gradients | Part::VectorGradients => match (part, &self.grads.as_ref().ok_or_else(none)?.sums) {
                (Part::Gradients, Sums::Full(all)) => read(be, all, part, range, to),
                (Part::Gradients, Sums::Narrow { matrices, .. }) => read(be, matrices, part, range, to),
                (_, Sums::Narrow { vectors, .. }) => read(be, vectors, part, range, to),
                (_, Sums::Full(_)) => Err(none()),
            },
            Part::Master => read(be, self.master.as_ref().ok_or_else(none)?, part, range, to),
            Part::Reference => read(be, &reference()?.weights, part, range, to),
            Part::ReferenceMaster => read(be, reference()?.master.as_ref().ok_or_else(none)?, part, range, to),
            Part::First | Part::Second | Part::FirstScale | Part::SecondScale => {
                match (part, self.moments.as_ref().ok_or_else(none)?) {
                    (Part::First, Moments::Full { first, has_first: true, .. }) => read(be, first, part, range, to),
                    (Part::Second, Moments::Full { second, .. }) => read(be, second, part, range, to),
                    (Part::First, Moments::Bf16 { first, .. }) => read(be, first, part, range, to),
                    (Part::Second, Moments::Bf16 { second, .. }) => read(be, second, part, range, to),
                    (Part::First, Moments::Block8 { first, .. }) => read(be, &first.codes, part, range, to),
                    (Part::Second, Moments::Block8 { second, .. }) => read(be, &second.codes, part, range, to),
                    (Part::FirstScale, Moments::Block8 { first, .. }) => read(be, &first.scales, part, range, to),
                    (Part::SecondScale, Moments::Block8 { second, .. }) => read(be, &second.scales, part, range, to),
                    _ => Err(none()),
                }
            }
        }
    }

    /// Overwrites elements of `part` from `start` on with those that `bytes` are, little-endian, but for those that other ranks have.
    /// Errors: a part that is not there, bytes that end beyond it or within an element.
    pub fn write(&mut self, be: &B, part: Part, start: usize, bytes: &[u8]) -> Result<()> {
        let (Some(kind), true) = (part.shared(), self.shares.shared()) else {
            return self.write_held(be, part, start, bytes);
        };
        let section = self.sections(be).into_iter().find(|s| s.part == part).ok_or_else(|| absent(part))?;
        let end = start.saturating_add(bytes.len() / section.width);
        check(part, &(start..end), section.len)?;
        for (of, at) in self.shares.kept(kind, &(start..end)) {
            let bytes = &bytes[(of.start - start) * section.width..(of.end - start) * section.width];
            self.write_held(be, part, at, bytes)?;
        }
        Ok(())
    }

    fn write_held(&mut self, be: &B, part: Part, start: usize, bytes: &[u8]) -> Result<()> {
        let none = || absent(part);
        let at = (part, start);
        match part {
            Part::Weights => write(be, &mut self.model.weights, at, bytes),
            Part::Gradients | Part::VectorGradients => match (part, &mut self.grads.as_mut().ok_or_else(none)?.sums) {
                (Part::Gradients, Sums::Full(all)) => write(be, all, at, bytes),
                (Part::Gradients, Sums::Narrow { matrices, .. }) => write(be, matrices, at, bytes),
                (_, Sums::Narrow { vectors, .. }) => write(be, vectors, at, bytes),
                (_, Sums::Full(_)) => Err(none()),
            },
            Part::Master => write(be, self.master.as_mut().ok_or_else(none)?, at, bytes),
            Part::Reference => write(be, &mut self.reference.as_mut().ok_or_else(none)?.weights, at, bytes),
            Part::ReferenceMaster => {
                let reference = self.reference.as_mut().ok_or_else(none)?;
                write(be, reference.master.as_mut().ok_or_else(none)?, at, bytes)
            }
            Part::First | Part::Second | Part::FirstScale | Part::SecondScale => {
                match (part, self.moments.as_mut().ok_or_else(none)?) {
                    (Part::First, Moments::Full { first, has_first: true, .. }) => write(be, first, at, bytes),
                    (Part::Second, Moments::Full { second, .. }) => write(be, second, at, bytes),
                    (Part::First, Moments::Bf16 { first, .. }) => write(be, first, at, bytes),
                    (Part::Second, Moments::Bf16 { second, .. }) => write(be, second, at, bytes),
                    (Part::First, Moments::Block8 { first, .. }) => write(be, &mut first.codes, at, bytes),
                    (Part::Second, Moments::Block8 { second, .. }) => write(be, &mut second.codes, at, bytes),
                    (Part::FirstScale, Moments::Block8 { first, .. }) => write(be, &mut first.scales, at, bytes),
                    (Part::SecondScale, Moments::Block8 { second, .. }) => write(be, &mut second.scales, at, bytes),
                    _ => Err(none()),
                }
            }
        }
    }
}

// Elements go as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"));

fn read<B: Backend, T: Storage>(
    be: &B,
    from: &B::Buf<T>,
    part: Part,
    range: Range<usize>,
    to: &mut Vec<u8>,
) -> Result<()> {
    check(part, &range, be.len(from))?;
    let before = to.len();
    to.resize(before + range.len() * size_of::<T>(), 0);
    // Where they come to lie as elements lie, nothing is copied twice.
    if let Ok(elements) = bytemuck::try_cast_slice_mut(&mut to[before..]) {
        return be.download(elements, be.view(from, range));
    }
    let mut elements = vec![T::zeroed(); range.len()];
    be.download(&mut elements, be.view(from, range))?;
    to[before..].copy_from_slice(bytemuck::cast_slice(&elements));
    Ok(())
}

fn write<B: Backend, T: Storage>(be: &B, to: &mut B::Buf<T>, (part, start): (Part, usize), bytes: &[u8]) -> Result<()> {
    if !bytes.len().is_multiple_of(size_of::<T>()) {
        return Err(Error::Training(format!("{part:?}: {} bytes end within an element", bytes.len())));
    }
    let range = start..start.saturating_add(bytes.len() / size_of::<T>());
    check(part, &range, be.len(to))?;
    // `bytes` may lie at any address.
    let elements: Vec<T> = bytemuck::pod_collect_to_vec(bytes);
    be.upload(be.view_mut(to, range), &elements)
}

fn check(part: Part, range: &Range<usize>, len: usize) -> Result<()> {
    match range.start <= range.end && range.end <= len {
        true => Ok(()),
        false => Err(Error::Training(format!("{part:?}: elements {range:?} of {len}"))),
    }
}

fn absent(part: Part) -> Error {
    Error::Training(format!("{part:?}: this state has none"))
}
