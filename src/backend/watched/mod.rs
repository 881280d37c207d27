//! A backend that passes every op on to another one and, while it is asked to, looks at what each op of a training step has left:
//! the range of its numbers, and which are not finite; or, where that is asked for, how long each takes. Passes and updates give the bits that they give without it.
//!
//! It waits for every op and copies what it left to the host: for finding out, not for working.

mod decode;
mod device;
mod log;
mod ops;

pub use device::Watched;
pub use log::{Arena, Numbers, Rows, Seen, Viewed};
