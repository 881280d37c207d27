//! Rows that predict something: gathered for the head, their gradients scattered back.

use super::device::{Act, ActMut, Device};
use crate::error::Result;

/// `out[n] = x[row of prediction n]`.
pub struct GatherRows<'a, B: Device> {
    /// predictions x dim.
    pub out: ActMut<'a, B>,
    /// rows x dim.
    pub x: Act<'a, B>,
    /// Whose predictions.
    pub batch: &'a B::Batch,
    /// Hidden size.
    pub dim: usize,
}

/// `dx[row] = sum of dout[n] over the predictions n of that row`, in order of n; all other rows of `dx` become 0.
pub struct ScatterRows<'a, B: Device> {
    /// rows x dim.
    pub dx: ActMut<'a, B>,
    /// predictions x dim.
    pub dout: Act<'a, B>,
    /// Whose predictions.
    pub batch: &'a B::Batch,
    /// Hidden size.
    pub dim: usize,
}

/// Ops on rows that predict something. Errors: [`crate::Error::Shape`].
pub trait RowOps: Device {
    /// See [`GatherRows`].
    fn gather_rows(&self, op: GatherRows<'_, Self>) -> Result<()>;
    /// See [`ScatterRows`].
    fn scatter_rows(&self, op: ScatterRows<'_, Self>) -> Result<()>;
}
