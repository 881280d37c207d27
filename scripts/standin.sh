#!/usr/bin/env bash
# Everything that the stand-ins for NVIDIA's libraries can show (tests/standin.rs), of which `cargo test` runs a sample: the device
# lost at every launch, every call of the libraries failing at every place, memory running out at every allocation, the demo.
#   CUDA_HOME=... scripts/standin.sh [FILTER]      two hours on two cores; FILTER: names of tests, such as `lost`
#   FUSEDPO_STANDIN_SWEEP=20 scripts/standin.sh fails_once      at least 20 places of each kind
# Needs nvcc and a C++ compiler, and fails where they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."
export FUSEDPO_REQUIRE_STANDIN=1 FUSEDPO_STANDIN_SWEEP="${FUSEDPO_STANDIN_SWEEP:-all}"
cargo test --release --no-run --test standin --test kernels --test kernels_attention --test kernels_step --test kernels_runtime \
  --test kernels_run --test kernels_generate
exec cargo test --release --test standin -- --include-ignored --nocapture ${1:+"$1"}
