//! Low-rank adapters of linear layers. Source: Hu et al. 2021 (LoRA), arXiv 2106.09685, section 4.1.
//!
//! Several layers that are one product (queries, keys and values; gates and ups) may have one each: part `i` adds to the
//! columns `columns[i]` of the product, `y[:, columns[i]] += scale (x a_i^T) b_i^T`. The `a_i` lie one below the other, `rank`
//! rows each, so that what they share is one product; so do the `b_i`, with a row a column of theirs. With `b` of zeros
//! nothing changes. The other gradients are those of linear layers: `da += dlow^T x`, `dx += dlow a`.

use super::device::{AccMut, Act, ActMut, Device};
use crate::error::Result;
use std::ops::Range;

/// Which columns a product's adapters add to, and how.
#[derive(Clone, Copy, Debug)]
pub struct AdapterParts<'a> {
    /// Of each part, in order, without overlap, within `out`.
    pub columns: &'a [Range<usize>],
    /// Rank of every part.
    pub rank: usize,
    /// Outputs of the product.
    pub out: usize,
    /// Its inputs.
    pub inp: usize,
    /// What the low-rank products are multiplied with.
    pub scale: f64,
}

impl AdapterParts<'_> {
    /// Width of what lies between the two products: `rank` a part.
    pub fn low(&self) -> usize {
        self.columns.len() * self.rank
    }

    /// Columns of all parts together: rows of `b`.
    pub fn covered(&self) -> usize {
        self.columns.iter().map(Range::len).sum()
    }
}

/// `low = scale x a^T`, then `y[:, columns[i]] += low_i b_i^T`.
pub struct AdapterFwd<'a, B: Device> {
    /// rows x out.
    pub y: ActMut<'a, B>,
    /// rows x (parts rank): scratch.
    pub low: ActMut<'a, B>,
    /// rows x inp.
    pub x: Act<'a, B>,
    /// (parts rank) x inp.
    pub a: Act<'a, B>,
    /// columns x rank.
    pub b: Act<'a, B>,
    /// Which.
    pub parts: AdapterParts<'a>,
}

/// `dlow_i = scale dy[:, columns[i]] b_i`.
pub struct AdapterBwdLow<'a, B: Device> {
    /// rows x (parts rank).
    pub dlow: ActMut<'a, B>,
    /// rows x out.
    pub dy: Act<'a, B>,
    /// columns x rank.
    pub b: Act<'a, B>,
    /// Which.
    pub parts: AdapterParts<'a>,
}

/// `low = scale x a^T` once more, then `db_i += dy[:, columns[i]]^T low_i`.
pub struct AdapterBwdWeight<'a, B: Device> {
    /// columns x rank.
    pub db: AccMut<'a, B>,
    /// rows x (parts rank): scratch.
    pub low: ActMut<'a, B>,
    /// rows x out.
    pub dy: Act<'a, B>,
    /// rows x inp.
    pub x: Act<'a, B>,
    /// (parts rank) x inp.
    pub a: Act<'a, B>,
    /// Which.
    pub parts: AdapterParts<'a>,
}

/// Ops of adapters. Errors: [`crate::Error::Shape`].
pub trait AdapterOps: Device {
    /// See [`AdapterFwd`].
    fn adapter_fwd(&self, op: AdapterFwd<'_, Self>) -> Result<()>;
    /// See [`AdapterBwdLow`].
    fn adapter_bwd_low(&self, op: AdapterBwdLow<'_, Self>) -> Result<()>;
    /// See [`AdapterBwdWeight`].
    fn adapter_bwd_weight(&self, op: AdapterBwdWeight<'_, Self>) -> Result<()>;
}
