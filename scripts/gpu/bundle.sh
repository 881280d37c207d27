#!/usr/bin/env bash
# Everything that check.sh needs on a GPU machine without Rust and without a network, in one folder under 50 MiB.
#   scripts/gpu/bundle.sh DIR        then, over there: DIR/check.sh [--out RESULTS] [STAGE..]
# Builds the program, the tests that have a cuda column and the benches; needs nvcc (CUDA_HOME; scripts/install_nvcc.sh gets
# one) and takes stories260k and real preference pairs from FUSEDPO_TEST_DATA where that is set, small stand-ins otherwise.
# FUSEDPO_CUDA_ARCHS (80,90a unless set) says which machine code goes in: a bundle for one machine needs one.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:?usage: scripts/gpu/bundle.sh DIR}
if [ -e "$out" ] && [ ! -f "$out/manifest.json" ]; then
  echo "bundle: $out exists and is no bundle" >&2
  exit 1
fi
export FUSEDPO_CUDA_ARCHS=${FUSEDPO_CUDA_ARCHS:-80,90a}
if [ -z "${FUSEDPO_NVCC:-}" ] && [ ! -x "${CUDA_HOME:-}/bin/nvcc" ] && ! command -v nvcc >/dev/null; then
  echo "bundle: no nvcc: a bundle without kernels proves nothing; scripts/install_nvcc.sh DIR gets one" >&2
  exit 1
fi

mapfile -t tests < <(grep -l 'common/device.rs' tests/*.rs | xargs -n1 basename -s .rs)
benches=(kernels)
if grep -q '^name = "step"$' Cargo.toml; then benches+=(step); fi
messages=$(mktemp)
trap 'rm -f "$messages"' EXIT
cargo build --release --bin fusedpo --message-format=json >>"$messages"
cargo test --release --no-run "${tests[@]/#/--test=}" --message-format=json >>"$messages"
cargo bench --no-run "${benches[@]/#/--bench=}" --message-format=json >>"$messages"

rm -rf "$out"
python3 scripts/gpu/fill_bundle.py --messages "$messages" --out "$out" --archs "$FUSEDPO_CUDA_ARCHS" \
  --tests "${tests[@]}" --benches "${benches[@]}"
"$out/check.sh" --dry-run >/dev/null
size=$(du -sm "$out" | cut -f1)
echo "$out: $size MiB"
if [ "$size" -ge 50 ]; then
  echo "bundle: $size MiB is not under 50; name fewer targets in FUSEDPO_CUDA_ARCHS" >&2
  exit 1
fi
