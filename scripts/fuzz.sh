#!/usr/bin/env bash
# Damaged files of every kind, other ones each time: scripts/fuzz.sh MINUTES [FROM]
#
# Runs tests/mutate.rs over inputs from FROM on (by default a number that the clock gives), 20,000 at a time, until the minutes
# are over; says how many of each kind, and where it ended. What goes wrong is named by kind and number, and belongs into
# ONCE_WRONG there. One program for every file is enough for the formats here: a coverage-guided fuzzer needs a nightly compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=${1:?scripts/fuzz.sh MINUTES [FROM]}
from=${2:-$(($(date +%s) * 1000))}
ends=$(($(date +%s) + minutes * 60))
first=$from
while [ "$(date +%s)" -lt "$ends" ]; do
  FUSEDPO_MUTATIONS=20000 FUSEDPO_MUTATE_FROM=$from cargo test --release --quiet --test mutate damaged -- --nocapture
  from=$((from + 20000))
done
echo "inputs $first to $from: none wrong"
