#!/usr/bin/env bash
# Proves a wheel: a fresh venv without Rust, what the wheel holds, and with a model the README's run from a hub on this machine.
#
#   scripts/wheel_test.sh WHEEL [MODEL]     MODEL: a model directory, such as scripts/fetch_smollm2.py writes
#
# STEPS=N training steps of each stage (2). Needs python3 with venv; no network, no Rust, no compiler.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
wheel=$(realpath "${1:?usage: scripts/wheel_test.sh WHEEL [MODEL]}")
model=${2:+$(realpath "$2")}
python=$(command -v python3)
work=$(mktemp -d)
server=
clean() { [ -z "$server" ] || kill "$server"; rm -rf "$work"; }
trap clean EXIT
die() { echo "wheel_test: $*" >&2; exit 1; }

"$python" -m venv "$work/venv"
# Nothing of this shell: no cargo, no rustc, no cache, no token.
fresh() { env -i HOME="$work" PATH="$work/venv/bin:/usr/bin:/bin" LANG=C.UTF-8 "$@"; }
fresh pip install --quiet --disable-pip-version-check --no-index --no-deps "$wheel"
for program in cargo rustc; do
  if fresh sh -c "command -v $program" >/dev/null; then die "$program is on the PATH of the test"; fi
done
[ "$(fresh sh -c 'command -v fusedpo')" = "$work/venv/bin/fusedpo" ] || die "fusedpo is not on the PATH"

version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$top/Cargo.toml" | head -1)
[ "$(fresh fusedpo --version)" = "fusedpo $version" ] || die "fusedpo --version says $(fresh fusedpo --version), not $version"
fresh python - "$version" "$top" <<'END'
import sys
from importlib.metadata import distribution
from pathlib import Path

version, top = sys.argv[1:]
wheel = distribution("fusedpo")
assert wheel.version == version, wheel.version
assert wheel.metadata["License-Expression"] == "MIT OR Apache-2.0", wheel.metadata["License-Expression"]
assert (Path(top) / "README.md").read_text()[:200] in wheel.metadata.json["description"], "the README is not inside"
texts = {Path(f).name: f.locate().read_text() for f in wheel.files if "licenses" in str(f)}
for name in ["LICENSE", "THIRD-PARTY.md"]:
    assert texts.get(name) == (Path(top) / name).read_text(), f"{name} is not inside"
print(f"{wheel.metadata['Name']} {wheel.version}:", next(l for l in wheel.read_text("WHEEL").splitlines() if l.startswith("Tag")))
END
fresh fusedpo doctor
[ -n "$model" ] || { echo "wheel_test: no model named: the README's run is skipped"; exit 0; }

mkdir "$work/pairs"
"$python" - >"$work/pairs/pairs.jsonl" <<'END'
import json
for i in range(40):
    ask = f"Say in one sentence what {i + 2} times {i + 3} is."
    said = [f"It is {(i + 2) * (i + 3)}.", f"I do not know what {i + 2} times {i + 3} is, sorry."]
    print(json.dumps({"prompt": [{"role": "user", "content": ask}],
                      "chosen": [{"role": "assistant", "content": said[0]}], "rejected": [{"role": "assistant", "content": said[1]}]}))
END
"$python" "$top/scripts/hub_server.py" --port 0 --model "org/model=$model" --dataset "org/pairs=$work/pairs" >"$work/address" &
server=$!
for _ in $(seq 600); do [ -s "$work/address" ] && break; sleep 0.1; done
address=$(cat "$work/address")
[ -n "$address" ] || die "the hub does not start"

cd "$work"
steps=${STEPS:-2}
say() { printf '\n$ fusedpo %s\n' "$*"; fresh HF_ENDPOINT="$address" NO_PROXY='*' fusedpo "$@"; }
say pack --tokenizer org/model --input hf://datasets/org/pairs/pairs.jsonl --out data --eval-fraction 0.1
say inspect data --show 1
say sft --model org/model --data data --out run-sft --learning-rate 1e-5 --max-steps "$steps"
say dpo --model run-sft --data data --out run-dpo --learning-rate 1e-6 --beta 0.1 --max-steps "$steps"
say eval --model run-dpo --ref-model run-sft --data data --kl-samples 2 --kl-max-new-tokens 8
say generate --model run-dpo --prompt "How do I say no politely?" --max-new-tokens 20
grep -q '^model = "org/model@[0-9a-f]\{40\}"$' run-sft/config.toml || die "run-sft/config.toml names no commit"
# And without the hub, from what is in the cache.
kill "$server"; wait "$server" 2>/dev/null || true; server=
fresh HF_HUB_OFFLINE=1 fusedpo generate --model org/model --prompt "Hello" --max-new-tokens 4
printf '\nwheel_test: %s is sound\n' "$(basename "$wheel")"
