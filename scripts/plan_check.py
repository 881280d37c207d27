#!/usr/bin/env python3
"""Compare what `fusedpo plan` says of runs with what the runs take: seconds a step, and peak memory.

Usage:   plan_check.py --fusedpo PROGRAM --model DIR --input PAIRS.jsonl [--measured-by PROGRAM] [--steps N] [--only NAME..]
Input:   a model of Hugging Face's form and preference rows; the first 64 are packed.
Output:  a table in Markdown on stdout; a line a configuration as it is done on stderr.
Needs:   Python alone. Nothing else should run on the machine meanwhile.

Steps are measured by metrics.jsonl: its seconds for a token, after the first two steps, whose memory is touched for the first time, times
the tokens of a mean step; memory by the largest resident size of the process (`ru_maxrss`). Predicted are `step_seconds` and `all` of the
plan.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIGURATIONS = {
    "dpo, f32": "dpo --batch-size 4 --token-budget 1024",
    "dpo, bf16": "dpo --dtype bf16 --batch-size 8 --token-budget 2048",
    "dpo, LoRA": "dpo --lora-r 16 --batch-size 4 --token-budget 1024",
    "sft, bf16": "sft --dtype bf16 --batch-size 8 --token-budget 1536",
    "dpo, recomputed": "dpo --gradient-checkpointing --dtype bf16 --batch-size 8 --token-budget 4096",
}


def run(command):
    """Runs a command; its stdout and its peak resident size in bytes."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"plan_check: {' '.join(map(str, command))}: {err.strip()}")
    return out, usage.ru_maxrss * 1024


def check(args, place, name, words):
    """Predicted and measured: seconds a step, bytes."""
    stage, *rest = words.split()
    options = ["--model", args.model, "--data", place / "data", "--device", "cpu", "--eval-strategy", "no", "--max-steps", str(args.steps), *rest]
    plan = json.loads(run([args.fusedpo, "plan", "--stage", stage, "--json", *options])[0])
    out = place / name.replace(", ", "-")
    _, peak = run([args.measured_by or args.fusedpo, "--quiet", stage, *options, "--save-steps", "0", "--out", out])
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [(row["step_seconds"], row["tokens_per_second"] * row["step_seconds"]) for row in rows if "step_seconds" in row]
    seconds, tokens = (sum(column) for column in zip(*steps[2:]))
    measured = seconds / tokens * statistics.mean(tokens for _, tokens in steps)
    found = {"predicted": plan["step_seconds"], "measured": measured, "memory": plan["all"], "peak": peak, "calibration": plan["calibration_seconds"]}
    print(name, found, file=sys.stderr, flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fusedpo", required=True, type=Path, help="the program, built as for users")
    parser.add_argument("--measured-by", type=Path, help="another program, for the measured runs")
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--input", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        rows = args.input.read_text().splitlines(keepends=True)[:64]
        (place / "rows.jsonl").write_text("".join(rows))
        run([args.fusedpo, "pack", "--tokenizer", args.model, "--input", place / "rows.jsonl", "--out", place / "data",
             "--max-length", "512", "--chat-template", "none"])
        print("| run | seconds a step, predicted | measured | off | peak memory, predicted, MB | measured | off |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        for name in args.only:
            f = check(args, place, name, CONFIGURATIONS[name])
            off = [100 * (f[a] / f[b] - 1) for a, b in (("predicted", "measured"), ("memory", "peak"))]
            print(f"| {name}: `{CONFIGURATIONS[name]}` | {f['predicted']:.2f} | {f['measured']:.2f} | {off[0]:+.0f} % | "
                  f"{f['memory'] / 1e6:.0f} | {f['peak'] / 1e6:.0f} | {off[1]:+.0f} % |", flush=True)


if __name__ == "__main__":
    main()
