//! What a device reaches at most, and what work takes by that alone.

use super::work::Work;

/// What a device reaches of each kind of work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// FLOP/s of large products.
    pub products: f64,
    /// Numbers of a product's result that are computed at a time, where the last of them leave some of the device idle: half of as many
    /// are lost.
    pub wave: f64,
    /// FLOP/s of attention, forward and backward.
    pub attention: [f64; 2],
    /// Bytes a second.
    pub bandwidth: f64,
    /// Share of a product's bytes that are not moved behind its multiplications.
    pub exposed: f64,
    /// Seconds that no op takes less than.
    pub least: f64,
}

impl Ceilings {
    /// Seconds of one call of an op. Nothing overlaps but what `exposed` leaves out.
    pub fn seconds(&self, work: &Work) -> f64 {
        let attention = self.attention[usize::from(work.op == "attention_bwd")];
        let bytes = work.stream + self.exposed * work.operands;
        let idle = if work.results > 0.0 { 1.0 + 0.5 * self.wave / work.results } else { 1.0 };
        let all = idle * work.product / self.products + work.attention / attention + bytes / self.bandwidth;
        all.max(self.least)
    }
}

/// A device that is not here: what its maker says of it, and what a run is assumed to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Assumed {
    /// For people.
    pub name: &'static str,
    /// FLOP/s of its products, in the precision of the run, by its maker's sheet.
    pub products: f64,
    /// Bytes of its memory a second, likewise.
    pub bandwidth: f64,
    /// What a run is assumed to reach.
    pub ceilings: Ceilings,
}
