//! A backend that does nothing and takes note of what it is asked for: of every op, what its products multiply, what its
//! attention does, and what it reads and writes. A run's own passes on it tell what a step takes of a device that need not be
//! there, as its own constructors on a counting backend tell the memory.
//!
//! Bytes are those of every operand once, in and out; a number that an op reads and writes counts twice.

mod ceilings;
mod decode;
mod device;
mod ops;
mod work;

pub use ceilings::{Assumed, Ceilings};
pub use device::Metered;
pub use work::Work;
