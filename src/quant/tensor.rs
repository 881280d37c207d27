//! A tensor in NF4, on the host.

use super::dynamic::{self, Dynamic, mean};
use super::nf4::{self, BLOCK, blocks};
use super::precision::Precision;
use std::ops::Range;

/// The largest magnitudes of a tensor's blocks.
#[derive(Clone, Debug, PartialEq)]
pub enum Absmax {
    /// As they are.
    Plain(Vec<f32>),
    /// In 8 bits: `map[codes[i]] x absmax[i / 256] + offset`.
    Nested {
        /// One a block.
        codes: Vec<u8>,
        /// One for every 256 of them.
        absmax: Vec<f32>,
        /// What the codes stand for.
        map: Box<[f32; 256]>,
        /// Their mean.
        offset: f32,
    },
}

/// A tensor in NF4.
#[derive(Clone, Debug, PartialEq)]
pub struct Nf4Tensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// What its numbers are rounded to: what it was made of.
    pub dtype: Precision,
    /// Two a byte, the first in the upper half.
    pub codes: Vec<u8>,
    /// Of its blocks.
    pub absmax: Absmax,
}

/// Elements of a shape; `None`: more than can be counted.
pub fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))
}

impl Absmax {
    /// What quantised magnitudes are kept as. Errors: their mean is too large.
    fn of(plain: Vec<f32>, double: Option<&Dynamic>) -> Result<Self, String> {
        let Some(dynamic) = double else { return Ok(Absmax::Plain(plain)) };
        let offset = mean(&plain);
        let (codes, absmax) = dynamic.quantize(&plain.iter().map(|a| a - offset).collect::<Vec<_>>());
        match offset.is_finite() && absmax.iter().all(|a| a.is_finite()) {
            true => Ok(Absmax::Nested { codes, absmax, map: Box::new(dynamic.map), offset }),
            false => Err("has weights too large for double quantisation".into()),
        }
    }

    /// Magnitudes of the blocks `range`.
    pub fn values(&self, range: Range<usize>) -> Vec<f32> {
        match self {
            Absmax::Plain(all) => all[range].to_vec(),
            Absmax::Nested { codes, absmax, map, offset } => {
                range.map(|i| map[usize::from(codes[i])] * absmax[i / dynamic::BLOCK] + offset).collect()
            }
        }
    }

    /// Blocks, and what of them is missing for `wanted`.
    fn check(&self, wanted: usize) -> Result<(), String> {
        let finite = |name: &str, values: &[f32]| match values.iter().all(|v| v.is_finite()) {
            true => Ok(()),
            false => Err(format!("`{name}` holds NaN or infinity; the checkpoint is damaged")),
        };
        let len = |name: &str, got: usize, want: usize| match got == want {
            true => Ok(()),
            false => Err(format!("`{name}` has {got} elements, and its shape makes it {want}")),
        };
        match self {
            Absmax::Plain(all) => len("absmax", all.len(), wanted).and_then(|()| finite("absmax", all)),
            Absmax::Nested { codes, absmax, map, offset } => {
                len("absmax", codes.len(), wanted)?;
                len("nested_absmax", absmax.len(), wanted.div_ceil(dynamic::BLOCK))?;
                finite("nested_absmax", absmax)?;
                finite("nested_quant_map", &map[..])?;
                finite("nested_offset", &[*offset])
            }
        }
    }
}

impl Nf4Tensor {
    /// `values` in NF4, with double quantisation where its type is given. `dtype` is what they were stored as.
    ///
    /// Errors: values that are not finite, not as many as the shape has, or too large for double quantisation.
    pub fn quantize(
        values: &[f32],
        shape: &[usize],
        dtype: Precision,
        double: Option<&Dynamic>,
    ) -> Result<Self, String> {
        let mut tensor = Quantizer::new(shape, dtype)?;
        tensor.push(values)?;
        tensor.finish(double)
    }

    /// A tensor of parts that were read. Errors: a length that is not what the shape makes it; magnitudes that are not finite.
    pub fn of_parts(shape: Vec<usize>, dtype: Precision, codes: Vec<u8>, absmax: Absmax) -> Result<Self, String> {
        let len = elements(&shape).ok_or("has a shape beyond counting")?;
        let bytes = len.div_ceil(2);
        if codes.len() != bytes {
            return Err(format!("has {} bytes of codes, and its shape makes it {bytes}", codes.len()));
        }
        absmax.check(blocks(len))?;
        Ok(Self { shape, dtype, codes, absmax })
    }

    /// Its elements.
    pub fn len(&self) -> usize {
        elements(&self.shape).expect("checked when it was made")
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.codes.is_empty()
    }

    /// Elements `range` as numbers; it starts with a block.
    pub fn values(&self, range: Range<usize>) -> Vec<f32> {
        assert!(range.start.is_multiple_of(BLOCK) && range.end <= self.len(), "{range:?} of {}", self.len());
        let mut out = vec![0.0; range.len()];
        let absmax = self.absmax.values(range.start / BLOCK..blocks(range.end));
        nf4::dequantize(&self.codes[range.start / 2..range.end.div_ceil(2)], &absmax, self.dtype, &mut out);
        out
    }
}

/// Makes a tensor of pieces.
pub struct Quantizer {
    shape: Vec<usize>,
    dtype: Precision,
    codes: Vec<u8>,
    absmax: Vec<f32>,
    taken: usize,
}

impl Quantizer {
    /// Of that shape. Errors: one beyond counting.
    pub fn new(shape: &[usize], dtype: Precision) -> Result<Self, String> {
        let len = elements(shape).ok_or("has a shape beyond counting")?;
        let (codes, absmax) = (Vec::with_capacity(len.div_ceil(2)), Vec::with_capacity(blocks(len)));
        Ok(Self { shape: shape.to_vec(), dtype, codes, absmax, taken: 0 })
    }

    /// The next values: whole blocks, but the last. Errors: values that are not finite.
    pub fn push(&mut self, values: &[f32]) -> Result<(), String> {
        use rayon::prelude::*;
        assert!(self.taken.is_multiple_of(BLOCK), "pieces are whole blocks");
        if !values.par_iter().with_min_len(1 << 14).all(|v| v.is_finite()) {
            return Err("holds NaN or infinity; the checkpoint is damaged".into());
        }
        self.taken += values.len();
        let part = |values: &[f32]| {
            let (mut codes, mut absmax) = (Vec::new(), Vec::new());
            nf4::quantize(values, &mut codes, &mut absmax);
            (codes, absmax)
        };
        for (codes, absmax) in values.par_chunks(BLOCK << 9).map(part).collect::<Vec<_>>() {
            self.codes.extend(codes);
            self.absmax.extend(absmax);
        }
        Ok(())
    }

    /// The tensor. Errors: values missing or too many; magnitudes too large for double quantisation.
    pub fn finish(self, double: Option<&Dynamic>) -> Result<Nf4Tensor, String> {
        let Self { shape, dtype, codes, absmax, taken } = self;
        if elements(&shape) != Some(taken) {
            return Err(format!("has {taken} values, which are not of shape {shape:?}"));
        }
        Ok(Nf4Tensor { shape, dtype, codes, absmax: Absmax::of(absmax, double)? })
    }
}
