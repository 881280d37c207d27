//! What a run has learned: the one noun for what a checkpoint holds, a memory plan counts and ranks share.
//!
//! Weights are in the layout of the parameter arena; gradients, master weights and moments are in that of the trained arena,
//! which has what trains and nothing else ([`crate::model::ParamTable`]).

use super::clock::Clock;
use crate::backend::{Backend, Storage};
use crate::error::{Error, Result};
use crate::model::Model;
use std::ops::Range;

/// The tensors of a run, and its clock.
pub struct State<B: Backend> {
    /// The policy, or the reference; its weights are those that the passes read.
    pub model: Model<B>,
    /// Gradients of the weights, where they are trained.
    pub grads: Option<B::Buf<B::Acc>>,
    /// What the updates add up in, where the weights are of a narrower type.
    pub master: Option<B::Buf<B::Acc>>,
    /// What the optimiser remembers, where there is one.
    pub moments: Option<Moments<B>>,
    /// A reference that follows the policy, where there is one.
    pub reference: Option<Synced<B>>,
    /// Where the run stands.
    pub clock: Clock,
}

/// Running means over the gradients, in single precision.
pub struct Moments<B: Backend> {
    /// Of the gradients; empty where the optimiser has none.
    pub first: B::Buf<B::Acc>,
    /// Of their squares.
    pub second: B::Buf<B::Acc>,
    /// Elements of both, also on a backend that only counts.
    pub lens: [usize; 2],
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
    /// Gradients.
    Gradients,
    /// Master weights of what trains.
    Master,
    /// First moments.
    First,
    /// Second moments.
    Second,
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
    /// Elements.
    pub len: usize,
    /// Whether it outlives a step: a run can go on from the lasting sections and the clock alone.
    pub lasting: bool,
}

impl Part {
    /// Whether it is laid out as the trained arena is, not as the arena of all weights.
    pub fn of_trained(self) -> bool {
        matches!(self, Part::Gradients | Part::Master | Part::First | Part::Second)
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
        let grads = if trains { Some(be.zeros("gradients", model.table.trained_len)?) } else { None };
        Ok(Self { model, grads, master: None, moments: None, reference: None, clock: Clock::default() })
    }

    /// Every tensor that is there, in the order of [`Part`].
    pub fn sections(&self, _: &B) -> Vec<Section> {
        let (n, trained) = (self.model.table.len, self.model.table.trained_len);
        let mut all = vec![Section::of::<B::Act>(Part::Weights, "weights", n, true)];
        if self.grads.is_some() {
            all.push(Section::of::<B::Acc>(Part::Gradients, "gradients", trained, false));
        }
        if self.master.is_some() {
            all.push(Section::of::<B::Acc>(Part::Master, "master", trained, true));
        }
        if let Some(moments) = &self.moments {
            let parts = [(Part::First, "first_moment"), (Part::Second, "second_moment")];
            for ((part, name), len) in parts.into_iter().zip(moments.lens).filter(|(_, len)| *len > 0) {
                all.push(Section::of::<B::Acc>(part, name, len, true));
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

    /// Appends the elements `range` of `part` to `to`, as little-endian bytes; waits for the device. Errors: a part that is
    /// not there, a range beyond it.
    pub fn read(&self, be: &B, part: Part, range: Range<usize>, to: &mut Vec<u8>) -> Result<()> {
        let weights = match part {
            Part::Weights => Some(&self.model.weights),
            Part::Reference => Some(&self.reference.as_ref().ok_or_else(|| absent(part))?.weights),
            _ => None,
        };
        if let Some(weights) = weights {
            return read(be, weights, part, range, to);
        }
        let buf = match part {
            Part::Weights | Part::Reference => unreachable!("read above: their type is another"),
            Part::Gradients => self.grads.as_ref(),
            Part::Master => self.master.as_ref(),
            Part::First => self.moments.as_ref().map(|m| &m.first),
            Part::Second => self.moments.as_ref().map(|m| &m.second),
            Part::ReferenceMaster => self.reference.as_ref().and_then(|r| r.master.as_ref()),
        };
        read(be, buf.ok_or_else(|| absent(part))?, part, range, to)
    }

    /// Overwrites elements of `part` from `start` on with those that `bytes` are, little-endian. Errors: a part that is not
    /// there, bytes that end beyond it or within an element.
    pub fn write(&mut self, be: &B, part: Part, start: usize, bytes: &[u8]) -> Result<()> {
        let weights = match part {
            Part::Weights => Some(&mut self.model.weights),
            Part::Reference => Some(&mut self.reference.as_mut().ok_or_else(|| absent(part))?.weights),
            _ => None,
        };
        if let Some(weights) = weights {
            return write(be, weights, part, start, bytes);
        }
        let buf = match part {
            Part::Weights | Part::Reference => unreachable!("written above: their type is another"),
            Part::Gradients => self.grads.as_mut(),
            Part::Master => self.master.as_mut(),
            Part::First => self.moments.as_mut().map(|m| &mut m.first),
            Part::Second => self.moments.as_mut().map(|m| &mut m.second),
            Part::ReferenceMaster => self.reference.as_mut().and_then(|r| r.master.as_mut()),
        };
        write(be, buf.ok_or_else(|| absent(part))?, part, start, bytes)
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

fn write<B: Backend, T: Storage>(be: &B, to: &mut B::Buf<T>, part: Part, start: usize, bytes: &[u8]) -> Result<()> {
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
