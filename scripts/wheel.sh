#!/usr/bin/env bash
# A wheel: `pip install FILE` puts `fusedpo` on the PATH, with the kernels inside where nvcc is found (CUDA_HOME, FUSEDPO_NVCC,
# PATH; scripts/install_nvcc.sh DIR gets one), and needs neither Rust nor a compiler.
#
#   scripts/wheel.sh [DIR]     writes DIR/fusedpo-VERSION-py3-none-PLATFORM.whl; DIR is `dist` where none is named
#
# The platform is the oldest manylinux that the program's symbols allow, as maturin finds: the machine's own glibc decides.
# Needs cargo, a C compiler and maturin (`pip install maturin`; MATURIN names another program). Nothing is downloaded but crates.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$top/dist}
mkdir -p "$out"
out=$(cd "$out" && pwd)
maturin=${MATURIN:-maturin}
command -v "$maturin" >/dev/null || { echo "wheel.sh: $maturin is not here: pip install maturin" >&2; exit 1; }

# A project of its own, so that Python's files stand beside neither Cargo.toml nor the sources.
project=$(mktemp -d)
trap 'rm -rf "$project"' EXIT
cp "$top/README.md" "$top/LICENSE" "$top/THIRD-PARTY.md" "$project"
# Links of the page lead into the repository, which is not where the wheel is.
sed "s|\"MANIFEST\"|\"$top/Cargo.toml\"|" "$top/scripts/wheel/pyproject.toml" >"$project/pyproject.toml"

before=$(mktemp)
(cd "$project" && "$maturin" build --release --out "$out" --target-dir "${CARGO_TARGET_DIR:-$top/target}") || exit 1
wheel=$(find "$out" -maxdepth 1 -name 'fusedpo-*.whl' -newer "$before" | head -1)
rm -f "$before"
[ -n "$wheel" ] || { echo "wheel.sh: maturin wrote no wheel into $out" >&2; exit 1; }
echo "$wheel"
