//! Several processes: what launchers say, what is refused, and what travels between ranks, under every MPI that is installed.

#[path = "../cli_common/mod.rs"]
mod cli_common;

mod abreast;
mod buckets;
#[cfg(target_os = "linux")]
mod faults;
#[cfg(target_os = "linux")]
mod job;
mod kept;
mod launchers;
mod maps;
mod meeting;
mod mpirun;
mod refused;
mod same;
#[cfg(target_os = "linux")]
mod signals;
mod torchrun;
mod torchrun_runs;
mod training;
mod transport;
mod work;
