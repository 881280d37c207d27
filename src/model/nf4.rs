//! Linear weights of blocks in four bits, on a device: [`crate::quant`].
//!
//! They are no part of the arena of weights, and never train. For a product a weight is made dense, all of it, in scratch
//! that all of them share (of [`super::acts::Acts`]): the products are those of a model that has these weights as they
//! are, to the bit, whatever a row's company. That costs a pass over the weight a product, which is small beside the
//! product of a step's rows.

use super::nf4_file;
use super::params::{Nf4Param, ParamTable};
use super::quantized::Quantized;
use super::stored::Stored;
use crate::backend::{Backend, DequantizeNf4, Device, Nf4Absmax};
use crate::error::Result;
use crate::quant::{Absmax, Dynamic, Precision};

/// A dense buffer for one weight at a time, where there are any in four bits.
pub(super) type Dense<B> = Option<<B as Device>::Buf<<B as Device>::Act>>;

/// Weights in four bits.
pub struct Nf4Weights<B: Backend> {
    codes: B::Buf<u8>,
    /// Of blocks; with double quantisation of blocks of blocks.
    absmax: B::Buf<f32>,
    nested: Option<Nested<B>>,
    /// What each tensor's numbers are rounded to.
    round: Vec<Precision>,
}

/// What double quantisation has besides.
struct Nested<B: Backend> {
    codes: B::Buf<u8>,
    /// What they stand for: the same in all tensors.
    map: B::Buf<f32>,
    /// One a tensor.
    offsets: B::Buf<f32>,
}

impl<B: Backend> Nf4Weights<B> {
    /// Memory for those of `table`; none where it has none.
    pub(super) fn reserve(be: &B, table: &ParamTable) -> Result<Option<Self>> {
        let (Some(last), Some(Quantized { double })) = (table.nf4.last(), table.quantized) else { return Ok(None) };
        let magnitudes = if double { last.nested.end } else { last.blocks.end };
        let codes = be.zeros("weights in 4 bits", last.codes.end)?;
        let absmax = be.zeros("magnitudes of weights", magnitudes)?;
        let nested = match double {
            true => Some(Nested {
                codes: be.zeros("magnitudes of weights", last.blocks.end)?,
                map: be.zeros("magnitudes of weights", 256)?,
                offsets: be.zeros("magnitudes of weights", table.nf4.len())?,
            }),
            false => None,
        };
        Ok(Some(Self { codes, absmax, nested, round: vec![Precision::F32; table.nf4.len()] }))
    }

    /// Reads them, or makes them of weights that are not quantised.
    pub(super) fn fill(&mut self, be: &B, table: &ParamTable, stored: Stored<'_>) -> Result<()> {
        let (dynamic, mut known) = (self.nested.as_ref().map(|_| Dynamic::new()), None);
        for (i, p) in table.nf4.iter().enumerate() {
            let tensor = stored.nf4(p, dynamic.as_ref())?;
            self.round[i] = tensor.dtype;
            be.upload(be.view_mut(&mut self.codes, p.codes.start..p.codes.start + tensor.codes.len()), &tensor.codes)?;
            match (&tensor.absmax, &mut self.nested) {
                (Absmax::Plain(absmax), None) => be.upload(be.view_mut(&mut self.absmax, p.blocks.clone()), absmax)?,
                (Absmax::Nested { codes, absmax, map, offset }, Some(nested)) => {
                    be.upload(be.view_mut(&mut nested.codes, p.blocks.clone()), codes)?;
                    be.upload(be.view_mut(&mut self.absmax, p.nested.clone()), absmax)?;
                    be.upload(be.view_mut(&mut nested.offsets, i..i + 1), &[*offset])?;
                    if known.as_ref().is_some_and(|known| known != map) {
                        return Err(stored.bad(&p.name, "has another `nested_quant_map` than the tensors before it"));
                    }
                    if known.is_none() {
                        be.upload(be.view_mut(&mut nested.map, 0..256), &map[..])?;
                        known = Some(map.clone());
                    }
                }
                _ => return Err(stored.bad(&p.name, nf4_file::OTHER_KIND)),
            }
        }
        Ok(())
    }

    /// Where their codes are.
    pub fn address(&self, be: &B) -> usize {
        be.address(&self.codes)
    }

    /// Makes tensor `i` dense.
    pub(super) fn dequantize<'a>(
        &'a self,
        be: &B,
        (i, p): (usize, &Nf4Param),
        w: B::ViewMut<'a, B::Act>,
    ) -> Result<()> {
        let absmax = match &self.nested {
            None => Nf4Absmax::Plain(be.view(&self.absmax, p.blocks.clone())),
            Some(nested) => Nf4Absmax::Nested {
                codes: be.view(&nested.codes, p.blocks.clone()),
                absmax: be.view(&self.absmax, p.nested.clone()),
                map: be.view(&nested.map, 0..256),
                offset: be.view(&nested.offsets, i..i + 1),
            },
        };
        let codes = be.view(&self.codes, p.codes.start..p.codes.start + p.len.div_ceil(2));
        be.dequantize_nf4(DequantizeNf4 { w, codes, absmax, round: self.round[i] })
    }
}

/// Scratch for the largest weight in four bits.
pub(super) fn scratch<B: Backend>(be: &B, table: &ParamTable) -> Result<Dense<B>> {
    let all = table.layers.iter().flat_map(|l| [&l.qkv, &l.o, &l.gate_up, &l.down]);
    match all.filter(|p| !p.nf4.is_empty()).map(|p| p.at.len()).max() {
        Some(len) => be.zeros("weight made dense", len).map(Some),
        None => Ok(None),
    }
}
