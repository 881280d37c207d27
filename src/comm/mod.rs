//! Several processes as one: who is there, and how they hand each other bytes.
//!
//! A launcher starts the same command several times and tells each in its environment which it is ([`launch`]). Host memory
//! goes through MPI ([`mpi`]), whose library is opened when a launcher started more than one process, and only then; or over
//! connections of the ranks' own ([`tcp`]), under torchrun. Memory of GPUs goes through NCCL ([`nccl`]), which is opened when ranks
//! compute on them. Nothing is added up by a library: bytes travel, and [`tree`] adds them
//! up in an order that does not depend on how many ranks there are.

mod join;
pub mod launch;
mod link;
pub mod mpi;
pub mod nccl;
mod patience;
mod staging;
pub mod tcp;
pub mod tree;

pub use join::join;
pub use link::{Alone, Comm, Pair, Parts, World};
pub use patience::TIMEOUT;
pub use staging::Staging;
