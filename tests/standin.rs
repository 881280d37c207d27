//! The shipped program on a GPU that is none: `libcuda.so.1`, `libcublasLt.so.13` and `libnccl.so.2` of our own (`kernels/standin`), through
//! `LD_LIBRARY_PATH`, with the fatbins that nvcc wrote, cudarc, and `CudaDriver`. They are strict where the real ones are silent:
//! one line with DEFECT fails the run. Skipped without nvcc or a C++ compiler; `FUSEDPO_REQUIRE_STANDIN`: an error then.

#[path = "ranks/abreast.rs"]
mod abreast;
#[path = "standin/beside.rs"]
mod beside;
#[path = "standin/bits.rs"]
mod bits;
mod cli_common;
#[path = "standin/columns.rs"]
mod columns;
#[path = "standin/commands.rs"]
mod commands;
#[path = "standin/failures.rs"]
mod failures;
#[path = "standin/library.rs"]
mod library;
#[path = "ranks/mpirun.rs"]
mod mpirun;
#[path = "standin/ranks.rs"]
mod ranks;
#[path = "standin/stand.rs"]
mod stand;
#[path = "ranks/torchrun.rs"]
mod torchrun;
