#!/usr/bin/env bash
# Everything that a change must pass: format, lints, docs, tests, benches that compile. `.ci/run` calls it.
set -euo pipefail
cd "$(dirname "$0")/.."
step() { printf '\n== %s\n' "$*"; "$@"; }

step cargo fmt --check
step cargo clippy --release --all-targets --quiet -- -D warnings
RUSTDOCFLAGS="-D warnings" step cargo doc --release --no-deps --quiet
step cargo test --release --quiet
step cargo bench --no-run --quiet
step python3 -m unittest discover -s tests/scripts
