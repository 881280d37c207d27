//! What a run would take that is not begun, memory and time, and what would fit: for a model whose weights need not be there, on
//! a device that need not be there either.
//!
//! Memory: every buffer is counted by the run's own constructors ([`MemoryPlan`](super::memory::MemoryPlan)), for what its own
//! planners make of the data. Time: the run's own steps are taken on a backend that notes what each op is asked for
//! ([`Metered`](crate::backend::metered::Metered)), and [`Rates`] say how long that takes: measured on this CPU, or by a table of GPUs.

mod asked;
mod calibrate;
mod fit;
mod holds;
mod instead;
mod memory;
mod rates;
mod run;
mod time;

pub use calibrate::Calibrated;
pub use fit::fitted;
pub use holds::{Budget, Holds};
pub use memory::{Forecast, Part, Recommended, forecast};
pub use rates::{Basis, On, Rates};
pub use run::MOST;
pub use time::{Pace, Time};
