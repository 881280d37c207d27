#!/usr/bin/env bash
# One run by four processes on two "hosts", by TCP, Open MPI and MPICH: network namespaces with a link between them. Bytes are
# compared with one process's; then the link is cut in the middle, and what each process says and when it ends is shown.
#   scripts/two_hosts.sh PROGRAM [LAUNCHER...]        as root, with `ip`; LAUNCHER: torchrun, openmpi, mpich
set -euo pipefail
program=$(realpath "${1:?PROGRAM}")
launchers=("${@:2}")
if [ $# = 1 ]; then launchers=(torchrun openmpi mpich); fi
golden=$(realpath "$(dirname "$0")/../tests/golden/llama")
work=$(mktemp -d)
a=fpa$$ b=fpb$$
end() { for n in $a $b; do ip netns del "$n" 2>/dev/null || true; done; rm -rf "$work"; }
trap end EXIT
cd "$work"

ip netns add $a; ip netns add $b
ip link add v$a netns $a type veth peer name v$b netns $b
ip -n $a addr add 10.77.0.1/24 dev v$a; ip -n $b addr add 10.77.0.2/24 dev v$b
link() { ip -n $a link set v$a "$1"; ip -n $b link set v$b "$1"; }
ip -n $a link set lo up; ip -n $b link set lo up; link up

# What a launcher takes for ssh: the namespace that has the address.
cat >agent <<END
#!/bin/bash
while [[ \$1 == -* ]]; do shift; done
case \$1 in *.1) ns=$a;; *) ns=$b;; esac
shift
exec ip netns exec \$ns /bin/sh -c "\$*"
END
chmod +x agent

python3 - <<'END'
import json
words = lambda i, n: "".join(f" w{3 + (7 * i + 3 * k) % 94}" for k in range(n))
rows = ({"prompt": f"w{3 + i}{words(i, 3)}", "chosen": words(i + 9, 4), "rejected": words(i + 5, 3)} for i in range(24))
open("rows.jsonl", "w").writelines(json.dumps(row) + "\n" for row in rows)
END
"$program" pack --quiet --tokenizer "$golden" --input rows.jsonl --out d --eval-fraction 0.25 >/dev/null
run=("$program" dpo --model "$golden" --data d --device cpu --learning-rate 1e-3 --batch-size 5 --token-budget 96 --quiet
  --max-steps 120 --save-steps 30 --eval-steps 30 --lanes 4 --out)
export RAYON_NUM_THREADS=1 HF_HUB_OFFLINE=1

# The run in folder $2, by launcher $1, for at most a minute; how it ended is in $2.ends.
by() {
  local mpi=(--allow-run-as-root --oversubscribe --bind-to none --host 10.77.0.1:2,10.77.0.2:2 -n 4 --mca plm_rsh_agent "$work/agent"
    --mca pml ob1 --mca btl tcp,self --mca btl_tcp_if_include 10.77.0.0/24 --mca oob_tcp_if_include 10.77.0.0/24
    -x RAYON_NUM_THREADS -x FUSEDPO_COMM_TIMEOUT -wdir "$work")
  ends() { local rc=0; "${@:2}" >>"$out.said" 2>&1 || rc=$?; echo "$1 ended with $rc after $((SECONDS - begun)) s" >>"$out.ends"; }
  local out=$2 begun=$SECONDS
  case $1 in
  torchrun)
    for rank in 0 1 2 3; do
      local ns=$a
      if [ $rank -ge 2 ]; then ns=$b; fi
      ends "rank $rank" ip netns exec $ns env RANK=$rank WORLD_SIZE=4 LOCAL_RANK=$((rank % 2)) LOCAL_WORLD_SIZE=2 \
        MASTER_ADDR=10.77.0.1 MASTER_PORT=29500 timeout -k 5 60 "${run[@]}" "$out" &
    done
    wait ;;
  openmpi) ends mpirun ip netns exec $a timeout -k 5 60 mpirun.openmpi "${mpi[@]}" "${run[@]}" "$out" ;;
  mpich)
    # Not over shared memory, though all are on one machine.
    UCX_TLS=tcp,self MPIR_CVAR_NOLOCAL=1 ends mpirun ip netns exec $a timeout -k 5 60 mpirun.mpich -launcher ssh \
      -launcher-exec "$work/agent" -iface v$a -hosts 10.77.0.1:2,10.77.0.2:2 -n 4 "${run[@]}" "$out" ;;
  esac
}

# Whether $1 is the run of one process, times apart.
same() {
  python3 - "$1" one <<'END'
import json, pathlib, sys
def rows(run):
    times = ("_seconds", "_per_second", "_bytes")
    return [{k: v for k, v in json.loads(line).items() if not k.endswith(times)} for line in open(f"{run}/metrics.jsonl")]
def files(run):
    kept = lambda path: path.suffix == ".safetensors" or path.name in ("ledger.bin", "state.bin")
    return {path.relative_to(run): path.read_bytes() for path in pathlib.Path(run).rglob("*") if path.is_file() and kept(path)}
one, other = sys.argv[1:]
same = rows(one) == rows(other) and files(one) == files(other)
print(f"{one}: {len(files(one))} files and {len(rows(one))} rows", "as one process's" if same else "DIFFER from one process's")
sys.exit(not same)
END
}

"${run[@]}" one >/dev/null 2>&1
for launcher in "${launchers[@]}"; do
  if [ $launcher != torchrun ] && ! command -v mpirun.$launcher >/dev/null; then echo "skipped: mpirun.$launcher"; continue; fi
  echo "== $launcher"
  FUSEDPO_COMM_TIMEOUT=30 by $launcher "$launcher"
  cat "$launcher.ends"
  same "$launcher"
  out=cut-$launcher
  FUSEDPO_COMM_TIMEOUT=4 by $launcher "$out" &
  job=$!
  until [ -d "$out/checkpoint-30" ]; do sleep 0.05; kill -0 $job; done
  link down
  echo "the link is cut $SECONDS s after this began; processes have 4 s of patience"
  wait $job
  link up
  cat "$out.ends"
  grep -a "fusedpo: " "$out.said"
  "${run[@]}" "$out" --resume auto >/dev/null 2>&1
  same "$out"
done
