//! A run of a sweep before it begins.

use crate::sweep::Point;
use crate::train::options::TrainOptions;

/// A run, checked.
pub(super) struct Plan {
    pub point: Point,
    /// What its own configuration has.
    pub table: toml::Table,
    pub options: TrainOptions,
    /// Whether its data has pairs, or judgements of single responses.
    pub pairs: bool,
    pub labels: bool,
    /// Prompts that are answered and scored.
    pub prompts: usize,
}
