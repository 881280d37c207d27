//! Dropout of the input of an adapter. Source: Srivastava et al. 2014, as torch's `nn.Dropout`: kept with probability `1 - p`, and
//! then multiplied with `1 / (1 - p)`.
//!
//! Nothing is stored: whether an element is kept is drawn from a counter, of what the micro-batch says ([`MicroBatch::draws`]), the
//! row's place in the data, the site and the column. So a backward pass draws what the forward pass drew, a layer that is computed
//! again drops the same, and how rows are packed into micro-batches changes nothing.
//!
//! [`MicroBatch::draws`]: crate::batch::MicroBatch::draws

use super::device::{Act, ActMut, Device};
use crate::batch::Capacity;
use crate::error::Result;

/// What is dropped where.
pub struct Dropout<'a, B: Device> {
    /// Whose rows; it has room for what is drawn from ([`DropoutOps::make_room`]), and was loaded with draws.
    pub batch: &'a B::Batch,
    /// Whether there is a row for every prediction and not for every slot: it drops what the row drops that predicts.
    pub predicting: bool,
    /// Which of the model's dropouts: each drops by itself.
    pub site: u32,
    /// Share that is dropped, in [0, 1).
    pub p: f64,
}

impl<B: Device> Clone for Dropout<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B: Device> Copy for Dropout<'_, B> {}

/// `y = x / (1 - p)` where it is kept, else 0.
pub struct DropoutFwd<'a, B: Device> {
    /// rows x dim.
    pub y: ActMut<'a, B>,
    /// rows x dim.
    pub x: Act<'a, B>,
    /// Width of a row.
    pub dim: usize,
    /// What is dropped.
    pub dropout: Dropout<'a, B>,
}

/// `dx += dy / (1 - p)` where it was kept.
pub struct DropoutBwd<'a, B: Device> {
    /// rows x dim.
    pub dx: ActMut<'a, B>,
    /// rows x dim.
    pub dy: Act<'a, B>,
    /// Width of a row.
    pub dim: usize,
    /// What was dropped.
    pub dropout: Dropout<'a, B>,
}

/// Ops of dropout. Errors: [`crate::Error::Shape`]; [`crate::Error::Usage`] for a batch without draws.
pub trait DropoutOps: Device {
    /// Gives `batch` room for what is drawn from, a number a slot and a prediction of `capacity`, its own; until then it has none.
    fn make_room(&self, batch: &mut Self::Batch, capacity: Capacity) -> Result<()>;
    /// See [`DropoutFwd`].
    fn dropout_fwd(&self, op: DropoutFwd<'_, Self>) -> Result<()>;
    /// See [`DropoutBwd`].
    fn dropout_bwd(&self, op: DropoutBwd<'_, Self>) -> Result<()>;
}
