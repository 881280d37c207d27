//! A search over options, without its processes: the file that asks for it, its points, what came of each, and the table and
//! picture of them. [`commands`](crate::commands) starts the runs.

mod axis;
mod frontier;
mod points;
mod results;
mod spec;

pub use axis::Axis;
pub use frontier::svg;
pub use points::Point;
pub use results::{Results, Row, Scores};
pub use spec::{Measure, Reward, Spec};
