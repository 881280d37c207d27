#!/usr/bin/env bash
# Everything about several processes (tests/ranks), of which `cargo test` runs a sample: every kind of run by 2, 3 and 4 processes under
# every MPI that is installed.
#   scripts/ranks.sh [FILTER]
set -euo pipefail
cd "$(dirname "$0")/.."
export FUSEDPO_RANKS=all
exec cargo test --release --test ranks -- --nocapture ${1:+"$1"}
