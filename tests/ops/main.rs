//! The CPU backend's ops: derivatives, values, independence of rows, determinism, refusals.

mod denormals;
mod gradients;
mod independence;
mod naive;
mod optimiser;
mod refusals;
mod run;
mod small_states;
mod support;
mod thin;
mod values;
