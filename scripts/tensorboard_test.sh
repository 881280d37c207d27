#!/usr/bin/env bash
# Event files in a real TensorBoard from PyPI, in a venv of its own: read by its library, and served while a run is killed and goes on.
#
#   scripts/tensorboard_test.sh [FUSEDPO]     the program (target/release/fusedpo)
#
# VENV=DIR keeps the venv there for another time. Needs python3 with venv, and PyPI.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
program=$(realpath "${1:-$top/target/release/fusedpo}")
work=$(mktemp -d)
venv=${VENV:-$work/venv}
server=
clean() { [ -z "$server" ] || kill "$server"; rm -rf "$work"; }
trap clean EXIT
die() { echo "tensorboard_test: $*" >&2; exit 1; }

[ -x "$venv/bin/tensorboard" ] || { python3 -m venv "$venv"; "$venv/bin/pip" install --quiet --disable-pip-version-check tensorboard setuptools; }
echo "tensorboard $("$venv/bin/tensorboard" --version 2>/dev/null | tail -1)"
cd "$work"
"$program" --quiet demo --out demo --steps 20 --prompts 40 >/dev/null
mkdir runs
mv demo/sft demo/dpo runs/
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$venv/bin/tensorboard" --logdir runs --port "$port" --reload_interval 1 >server.log 2>&1 &
server=$!

# One that nobody disturbs, and one that is killed twice at whatever step, and goes on from its last checkpoint.
train() { exec "$program" --quiet dpo --model runs/sft --data demo/preferences --out "$1" --max-steps 150 --save-steps 20 --eval-steps 50 --resume auto; }
(train runs/whole)
for lines in 45 100; do
  (train runs/killed) >/dev/null 2>&1 &
  run=$!
  until [ "$(cat runs/killed/metrics.jsonl 2>/dev/null | wc -l)" -ge "$lines" ]; do sleep 0.02; done
  kill -KILL "$run"
  wait "$run" 2>/dev/null || true
  sleep 2
done
(train runs/killed)
"$venv/bin/python" "$top/scripts/tensorboard_check.py" --server "http://127.0.0.1:$port" runs/sft runs/dpo runs/whole runs/killed || { cat server.log >&2; die "TensorBoard shows something else"; }
"$venv/bin/python" - runs/whole runs/killed <<'END'
import struct, sys

def events(run):
    data, at = open(f"{run}/events.out.tfevents.fusedpo", "rb").read(), 0
    while at < len(data):
        (n,) = struct.unpack_from("<Q", data, at)
        yield data[at + 21 : at + 12 + n]  # without the wall time
        at += 16 + n

def untimed(event):
    """Without the values of what measures time and memory."""
    import re
    return re.sub(rb"(_seconds?|_per_second|_bytes)\x15....", rb"\1", event, flags=re.S)

a, b = ([untimed(e) for e in events(run)] for run in sys.argv[1:])
assert a == b, f"{len(a)} events, {len(b)} of the run that was killed"
print(f"{len(a)} events, times apart the same bytes")
END
echo "tensorboard_test: sound"
