#!/usr/bin/env bash
# Everything that a change must pass: format, lints, docs, tests, benches that compile. `.ci/run` calls it.
set -euo pipefail
cd "$(dirname "$0")/.."
step() { printf '\n== %s\n' "$*"; "$@"; }

step cargo fmt --check
step cargo clippy --release --all-targets --quiet -- -D warnings
RUSTDOCFLAGS="-D warnings" step cargo doc --release --no-deps --quiet
# The program on stand-ins for NVIDIA's libraries: not skipped where there is what it needs.
if [ -x "${CUDA_HOME:-}/bin/nvcc" ]; then export FUSEDPO_REQUIRE_STANDIN=1; fi
step cargo test --release --quiet
step python3 scripts/third_party.py --check
# Registers, spills, local memory of what cargo compiled, and that docs/kernels.md says so.
if [ -x "${CUDA_HOME:-}/bin/nvdisasm" ]; then
  step python3 scripts/kernel_report.py --built "${CARGO_TARGET_DIR:-target}" --targets 80,90a --check docs/kernels.md --quiet
else
  echo "skipped: scripts/kernel_report.py (CUDA_HOME names no toolkit with nvdisasm)"
fi
step cargo bench --no-run --quiet
step python3 -m unittest discover -s tests/scripts
