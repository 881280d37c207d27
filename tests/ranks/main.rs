//! Several processes: what launchers say, what is refused, and what travels between ranks, under every MPI that is installed.

#[path = "../cli_common/mod.rs"]
mod cli_common;

mod launchers;
mod maps;
mod mpirun;
mod refused;
mod training;
mod transport;
