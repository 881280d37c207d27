#!/usr/bin/env python3
"""Time fusedpo against TRL's DPOTrainer and the strongest plain torch loop: same machine, model, pairs and precision.

Usage:   python scripts/bench_trl.py --model DIR --data ROWS.jsonl [--pairs 32] [--batch-size 4] [--max-length 512]
         [--device cpu|cuda] [--precision f32 bf16] [--only CONFIG...] [--repeats 1] [--trl-micro-batch 4 2]
         [--python VENV/bin/python] [--fusedpo target/release/fusedpo] [--out docs/results/FILE.md] [--json FILE]
Input:   a Hugging Face model directory; rows {"prompt", "chosen", "rejected"} or {"prompt", "responses", "scores"}, strings.
Output:  a table and ratios on stdout, and as a dated Markdown page in --out.
Needs:   Python alone for this program; --python (default: this one) has torch, transformers, trl and datasets.

Configurations run one after the other, each in processes of its own, so that each has its own peak memory:
fusedpo-PRECISION (the commands pack, reference and dpo), trl-default-PRECISION, trl-best-PRECISION and
torch-shared-PRECISION (scripts/bench_peers.py says what they are), with --device cuda also torch-compile-PRECISION. Step
times come from the programs' own clocks: TRL's step callbacks, fusedpo's metrics.jsonl. Memory is the kernel's peak resident
size, with --device cuda also the GPU's: of fusedpo all that nvidia-smi sees, of the peers torch's peak of live tensors.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench_report import markdown
from rows import InputError, field, read_rows

PEERS = ("trl-default", "trl-best", "torch-shared")
GPU_PEERS = (*PEERS, "torch-compile")


class RunFailed(Exception):
    """A configuration could not be measured; the message says why."""


# ---- data

def pairs_of(scores):
    return [(c, r) for c, high in enumerate(scores) for r, low in enumerate(scores) if high > low]


def take_rows(path, wanted):
    """The first rows that hold at least `wanted` pairs: (rows as they are, groups merged by prompt, pair count)."""
    rows, groups, count = [], {}, 0
    for where, row in read_rows(path):
        if count >= wanted:
            break
        prompt = field(row, "prompt", str, where)
        if "responses" in row:
            responses, scores = field(row, "responses", list, where), field(row, "scores", list, where)
            if len(responses) != len(scores) or not all(isinstance(response, str) for response in responses):
                raise InputError(f"{where}: responses must be strings, with a score each")
            pairs = pairs_of(scores)
        else:
            responses, pairs = [field(row, "chosen", str, where), field(row, "rejected", str, where)], [(0, 1)]
        if not pairs:
            continue
        group = groups.setdefault(prompt, {"prompt": prompt, "responses": [], "pairs": []})
        base = len(group["responses"])
        group["responses"] += responses
        group["pairs"] += [(base + c, base + r) for c, r in pairs]
        rows.append(row)
        count += len(pairs)
    if not rows:
        raise InputError(f"{path}: no pairs")
    return rows, list(groups.values()), count


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


# ---- running one process and watching it

def busy_seconds():
    """CPU seconds the whole machine has spent, from /proc/stat; 0 where there is none."""
    try:
        numbers = [int(x) for x in open("/proc/stat").readline().split()[1:]]
    except OSError:
        return 0.0
    return (sum(numbers[:3]) + sum(numbers[5:8])) / os.sysconf("SC_CLK_TCK")


class GpuMemory(threading.Thread):
    """Polls nvidia-smi for the memory of one process; where it knows no processes (in a container), for the growth of all."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.peak_mib, self.done = pid, 0, threading.Event()
        self.grown_mib, self.before = 0, self.ask("--query-gpu=memory.used", lambda line: int(line))

    @staticmethod
    def ask(query, read):
        """The sum of what `read` makes of each line of nvidia-smi; 0 where there is none."""
        try:
            result = subprocess.run(["nvidia-smi", query, "--format=csv,noheader,nounits"], capture_output=True, text=True)
            return sum(read(line) for line in result.stdout.splitlines())
        except (OSError, ValueError):
            return 0

    def mine(self, line):
        pid, _, mib = line.partition(",")
        return int(mib) if pid.strip() == str(self.pid) else 0

    def run(self):
        while not self.done.wait(0.5):  # each question takes the driver's time, and that from the program that is timed
            self.peak_mib = max(self.peak_mib, self.ask("--query-compute-apps=pid,used_memory", self.mine))
            self.grown_mib = max(self.grown_mib, self.ask("--query-gpu=memory.used", lambda line: int(line)) - self.before)

    def gigabytes(self):
        return (self.peak_mib or self.grown_mib) * 2**20 / 1e9


def run_process(command, log, device, environment):
    """Run to the end; returns wall seconds, peak memory in GB and the CPUs that others kept busy meanwhile."""
    with open(log, "wb") as out:
        others, start = busy_seconds(), time.perf_counter()
        try:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **environment})
        except OSError as error:
            raise RunFailed(f"{command[0]} does not start: {error}") from None
        gpu = GpuMemory(process.pid) if device == "cuda" else None
        if gpu:
            gpu.start()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - start
        if gpu:
            gpu.done.set()
        others = busy_seconds() - others - usage.ru_utime - usage.ru_stime
    if process.returncode:
        lines = Path(log).read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
        raise RunFailed(f"{shlex.join(map(str, command[:3]))} ... ended with {process.returncode}: {lines[-1]}")
    return {"wall_s": wall, "rss_gb": usage.ru_maxrss * 1024 / 1e9, "gpu_gb": gpu.gigabytes() if gpu else None,
            "others_cpus": max(0.0, others / wall)}


# ---- the configurations

def run_peer(config, micro_batch, args, work):
    spec = {"model": str(args.model), "data": str(work / "groups.jsonl"), "batch_size": args.batch_size,
            "micro_batch": micro_batch, "max_length": args.max_length, "learning_rate": 1e-6, "beta": 0.1,
            "device": args.device, "threads": args.threads, "work": str(work)}
    (work / "spec.json").write_text(json.dumps(spec))
    log = work / "log.txt"
    script = Path(__file__).with_name("bench_peers.py")
    watched = run_process([args.python, str(script), config, str(work / "spec.json")], log, args.device,
                          {"OMP_NUM_THREADS": str(args.threads)})
    results = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("RESULT ")]
    if not results:
        raise RunFailed(f"{config}: no result line in its output")
    return {**watched, **json.loads(results[-1][len("RESULT "):])}


def training_rows(path):
    """The rows of metrics.jsonl that are training steps."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if "loss" in row and "pairs_per_second" in row]
    if not rows:
        raise RunFailed(f"{path}: no training steps")
    return rows


def step_times(rows, args):
    """Seconds of each step: given, or from its rate, its pairs being batch_size or what is left at the end."""
    if "step_seconds" in rows[0]:
        return [row["step_seconds"] for row in rows]
    if len(rows) != -(-args.pair_count // args.batch_size):
        raise RunFailed(f"{len(rows)} steps for {args.pair_count} pairs: steps of unequal size, and metrics.jsonl has no "
                        "step_seconds; choose --batch-size as a multiple of the pairs of a prompt")
    left = [args.pair_count - i * args.batch_size for i in range(len(rows))]
    return [min(args.batch_size, n) / row["pairs_per_second"] for n, row in zip(left, rows)]


def run_fusedpo(precision, args, work):
    binary, data, run = str(args.fusedpo), work / "shards", work / "run"
    numerics = ["--dtype", precision, "--device", args.device, "--token-budget", str(args.token_budget)]
    commands = {
        "pack": [binary, "pack", "--tokenizer", str(args.model), "--input", str(work / "rows.jsonl"), "--out", str(data),
                 "--max-length", str(args.max_length), "--chat-template", "none"],
        "reference": [binary, "reference", "--model", str(args.model), "--data", str(data), *numerics],
        "dpo": [binary, "dpo", "--model", str(args.model), "--data", str(data), "--out", str(run), "--batch-size",
                str(args.batch_size), "--learning-rate", "1e-6", "--lr-scheduler-type", "constant", "--num-train-epochs", "1",
                *numerics, *shlex.split(args.fusedpo_args)],
    }
    environment = {"RAYON_NUM_THREADS": str(args.threads)}
    parts = {name: run_process(command, work / "log.txt", args.device, environment) for name, command in commands.items()}
    rows = training_rows(run / "metrics.jsonl")
    steps, note = step_times(rows, args), f"token budget {args.token_budget}; reference: whole command"
    gpu = [part["gpu_gb"] for part in parts.values() if part["gpu_gb"] is not None]
    return {"steps": steps, "losses": [row["loss"] for row in rows], "pairs": args.pair_count, "pair_tokens": None,
            "reference_s": parts["reference"]["wall_s"], "wall_s": sum(part["wall_s"] for part in parts.values()),
            "rss_gb": max(part["rss_gb"] for part in parts.values()), "gpu_gb": max(gpu) if gpu else None,
            "others_cpus": parts["dpo"]["others_cpus"], "note": note}


def measure(config, args, rows, groups):
    """One configuration once; of TRL at its best, the fastest of the micro-batches asked for that fit."""
    name, _, precision = config.rpartition("-")
    results, failure = [], None
    for micro_batch in args.trl_micro_batch if name == "trl-best" else [args.batch_size]:
        with tempfile.TemporaryDirectory(prefix="fusedpo-bench-", dir=args.work) as folder:
            work = Path(folder)
            write_jsonl(work / "rows.jsonl", rows)
            write_jsonl(work / "groups.jsonl", groups)
            try:
                results.append(run_fusedpo(precision, args, work) if name == "fusedpo" else run_peer(config, micro_batch, args, work))
            except RunFailed as error:  # on a GPU, most likely too large a micro-batch
                failure = error
                if args.device == "cpu":
                    break
    if failure and (args.device == "cpu" or not results):
        raise failure
    return min(results, key=lambda result: sum(result["steps"]))


def summarise(config, runs):
    """Medians over repeats of what the report shows."""
    middle = lambda value: statistics.median(value(run) for run in runs)
    optional = lambda key: None if runs[0][key] is None else middle(lambda run: run[key])
    return {"config": config, "steps": len(runs[0]["steps"]), "pairs": runs[0]["pairs"], "pair_tokens": runs[0]["pair_tokens"],
            "step_s": middle(lambda run: statistics.median(run["steps"][1:] or run["steps"])),
            "steps_s": middle(lambda run: sum(run["steps"])), "reference_s": middle(lambda run: run["reference_s"]),
            "wall_s": middle(lambda run: run["wall_s"]), "rss_gb": middle(lambda run: run["rss_gb"]), "gpu_gb": optional("gpu_gb"),
            "others_cpus": middle(lambda run: run["others_cpus"]), "losses": runs[0]["losses"], "note": runs[0]["note"]}


# ---- the machine

def first_line(command):
    try:
        result = subprocess.run(command, capture_output=True, text=True)
        lines = result.stdout.strip().splitlines()
        return lines[0] if result.returncode == 0 and lines else "unknown"
    except OSError:
        return "unknown"


def describe(args):
    cpu = platform.processor() or platform.machine()
    try:
        names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        cpu = names[0] if names else cpu
    except OSError:
        pass
    versions = "import torch, transformers, trl; print(*(f'{m.__name__} {m.__version__}' for m in (torch, transformers, trl)))"
    if args.device == "cuda":  # there trl may be missing, and the others are measured all the same
        versions = ("import importlib.metadata as m, importlib.util as u; print(*(f'{n} {m.version(n)}' "
                    "for n in ('torch', 'transformers', 'trl', 'flash_attn') if u.find_spec(n)))")
    commit = first_line(["git", "rev-parse", "--short", "HEAD"])
    machine = {"date": datetime.date.today().isoformat(), "cpu": f"{cpu}, {args.threads} threads",
               "fusedpo": f"{first_line([str(args.fusedpo), '--version'])}, commit {commit}",
               "peers": first_line([args.python, "-c", versions])}
    if args.device == "cuda":
        machine["gpu"] = first_line(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"])
    return machine


# ---- command line

def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=32, help="take the first rows that hold this many pairs")
    parser.add_argument("--batch-size", type=int, default=4, help="pairs a step")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--token-budget", type=int, default=1024, help="fusedpo's")
    parser.add_argument("--trl-micro-batch", type=int, nargs="+",
                        help="trl-best takes the fastest of these [batch size; with --device cuda also its half and quarter]")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", nargs="+", choices=["f32", "bf16"], default=["f32", "bf16"])
    parser.add_argument("--only", nargs="+", metavar="CONFIG", help="such as fusedpo-f32 trl-best-bf16")
    parser.add_argument("--repeats", type=int, default=1, help="each configuration this often; medians are shown")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--python", default=sys.executable, help="interpreter that has torch and trl")
    parser.add_argument("--fusedpo", type=Path, default=Path("target/release/fusedpo"))
    parser.add_argument("--fusedpo-args", default="", help="more options for fusedpo dpo")
    parser.add_argument("--work", type=Path, help="folder for temporary files (a run saves the model there)")
    parser.add_argument("--out", type=Path, help="Markdown page to write")
    parser.add_argument("--json", type=Path, help="the numbers, for other programs")
    args = parser.parse_args()
    halves = [args.batch_size // n for n in ((1, 2, 4) if args.device == "cuda" else (1,)) if args.batch_size % n == 0]
    args.trl_micro_batch = args.trl_micro_batch or halves
    return args


def peers_on(device):
    return GPU_PEERS if device == "cuda" else PEERS


def check(args, configs):
    every = {f"{name}-{precision}" for name in ("fusedpo", *peers_on(args.device)) for precision in ("f32", "bf16")}
    unknown = [config for config in configs if config not in every]
    if unknown:
        raise InputError(f"--only {unknown[0]}: unknown; choose from {', '.join(sorted(every))}")
    if not (args.model / "config.json").is_file():
        raise InputError(f"--model {args.model}: no config.json there; scripts/fetch_smollm2.py makes a model directory")
    if any(config.startswith("fusedpo") for config in configs) and not args.fusedpo.is_file():
        raise InputError(f"--fusedpo {args.fusedpo}: no such file; run: cargo build --release")
    for path in (args.out, args.json):
        if path and not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}")


def write_whole(path, text):
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def main():
    args = parse_args()
    configs = args.only or [f"{name}-{precision}" for precision in args.precision for name in ("fusedpo", *peers_on(args.device))]
    try:
        check(args, configs)
        rows, groups, args.pair_count = take_rows(args.data, args.pairs)
    except (InputError, OSError) as error:
        sys.exit(f"bench_trl: {error}")
    machine, runs, failures = describe(args), {}, {}
    job = {"model": args.model.resolve().name, "data": args.data.name, "pairs": args.pair_count, "groups": len(groups),
           "batch_size": args.batch_size, "max_length": args.max_length, "device": args.device, "repeats": args.repeats}

    def report():
        """Writes what there is so far, so that who stops this program keeps it; returns the page."""
        summaries = [summarise(config, runs[config]) for config in configs if config in runs]
        page = markdown(job, machine, summaries, failures)
        if args.out:
            write_whole(args.out, page)
        if args.json:
            write_whole(args.json, json.dumps({"job": job, "machine": machine, "results": summaries, "failed": failures}, indent=1))
        return page

    for repeat in range(args.repeats):  # the outer loop: a slow spell of the machine then hits all alike
        for config in configs:
            try:
                result = measure(config, args, rows, groups)
            except RunFailed as error:
                failures[config] = str(error)
                print(f"bench_trl: {config} failed: {error}", file=sys.stderr)
                continue
            runs.setdefault(config, []).append(result)
            print(f"{config}: steps {sum(result['steps']):.1f} s, reference {result['reference_s']:.1f} s, peak "
                  f"{result['rss_gb']:.2f} GB, others used {result['others_cpus']:.2f} CPUs", file=sys.stderr, flush=True)
            report()
    print(report())
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
