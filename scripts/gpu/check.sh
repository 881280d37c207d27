#!/usr/bin/env bash
# Proves and measures fusedpo on a machine with a GPU, from the folder that bundle.sh made: no Rust, no network.
#   check.sh [--out RESULTS] [--seconds N] [--again] [--dry-run] [STAGE..]
# All stages that RESULTS has not as passed, unless some are named; check.sh --list names them.
# Writes RESULTS/check.md, check.json and check.log; exits 1 where a stage failed. No GPU is a failure.
set -euo pipefail
exec python3 -B "$(dirname "${BASH_SOURCE[0]}")/check.py" "$@"
