//! Matrix products by cuBLASLt: bf16 x bf16 -> bf16 or f32, f32 x f32 -> f32 (no TF32), f32 accumulation throughout.
//!
//! # Which algorithm
//! The algorithm decides the last bits. It is chosen once per shape by the library's heuristic, which is a function of the
//! shape, not of a timing: two runs compute the same bits. Products of a forward pass (`row_invariant`) always go by it, as
//! reference log-probs that other processes have kept must equal the policy's to the bit; split-K is ruled out there, and one
//! algorithm, chosen for one number of them, serves every number of rows. Where sums are split, their parts are f32 too. Products of gradients, two thirds of the work,
//! may be tuned instead: the library's first candidates are timed when a shape is met for the
//! first time, and what won is kept in a file, by which later runs compute the same bits.

mod call;
mod library;
mod plans;
pub(super) mod products;
mod tune;

pub(super) use library::WORKSPACE;
