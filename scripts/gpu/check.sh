#!/usr/bin/env bash
# Proves and measures fusedpo on a machine with a GPU, from the folder that bundle.sh made: no Rust, no network.
#   check.sh [--out RESULTS] [--dry-run] [STAGE..]      all stages unless some are named; check.sh --list names them
# Writes RESULTS/check.md, RESULTS/check.json and a log of each stage; exits 1 where a stage failed. No GPU is a failure.
set -euo pipefail
exec python3 -B "$(dirname "${BASH_SOURCE[0]}")/check.py" "$@"
