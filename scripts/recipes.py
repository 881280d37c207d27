#!/usr/bin/env python3
"""Run the recipes of docs/data.md from raw data to a trained model: pack, reference, DPO with evaluation, for each data set.

Usage:   python scripts/recipes.py --model DIR --data FOLDER [--only NAME...] [--rows 240] [--steps 32] [--batch-size 8]
         [--learning-rate 1e-5] [--dtype bf16] [--token-budget 2048] [--fusedpo target/release/fusedpo] [--out FILE.md]
Input:   a Hugging Face model directory with a tokenizer; FOLDER/hh-harmless/test.jsonl.gz and so on, as RECIPES below names.
Output:  a Markdown table on stdout and in --out: what sharing prompts saves, tokens/s of the steps, and the share of
         held-out pairs (a tenth of the prompts, none of them trained on) that the policy orders as the data does, before
         and after, with Wilson's 95 % interval.
Needs:   Python alone. Runs on the first --rows rows of each set: a check that every kind of data trains, not a study.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

from rows import InputError, read_rows

SCRIPTS = Path(__file__).resolve().parent
# name: (files, converter with its options, options of pack)
RECIPES = {
    "hh-harmless": (["hh-harmless/test.jsonl.gz"], None, []),
    "qa-feedback": (["qa-feedback/scored.jsonl.gz"], None, ["--max-length", "2048"]),
    "ultrafeedback": (["ultrafeedback-1200/train_clean.jsonl.gz"], None, []),
    "rasbt-polite": (["rasbt-polite/instruction-data-with-preference.json"], ["convert_alpaca.py", "--mode", "preference"], []),
    "gsm8k (scored)": (["gsm8k/scored.jsonl.gz"], None, []),
    "oasst-100": (["oasst-100/en_100_tree.jsonl.gz"], ["convert_oasst.py"], []),
    "persona": (["persona/agreeableness.jsonl", "persona/interest-in-science.jsonl"], ["convert_persona.py"], []),
    "pandalm": (["pandalm/testset-v1.json"], ["convert_pandalm.py"], []),
}


class Failed(Exception):
    """A command failed; the message is its last line."""


def run(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise Failed(f"{Path(command[0]).name} {command[1]}: {lines[-1]}")


def first_rows(files, wanted, out):
    """The first rows of each file, evenly; returns how many."""
    rows = [row for file in files for _, row in islice(read_rows(file), -(-wanted // len(files)))]
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def wilson(share, count, z=1.96):
    """Wilson's interval of a share of `count` (Wilson 1927)."""
    if count == 0:
        return (0.0, 1.0)
    middle, width = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return tuple((middle + sign * width) / (1 + z * z / count) for sign in (-1, 1))


def measure(name, args, work):
    files, converter, options = RECIPES[name]
    rows, data, out = work / "rows.jsonl", work / "shards", work / "run"
    files = [args.data / file for file in files]
    if converter:
        run([sys.executable, SCRIPTS / converter[0], *files, *converter[1:], "--out", work / "all.jsonl"])
        files = [work / "all.jsonl"]
    count = first_rows(files, args.rows, rows)
    run([args.fusedpo, "pack", "--tokenizer", args.model, "--input", rows, "--out", data, "--eval-fraction", "0.1", *options])
    numerics = ["--dtype", args.dtype, "--token-budget", args.token_budget]
    run([args.fusedpo, "dpo", "--model", args.model, "--data", data, "--out", out, "--max-steps", args.steps, "--batch-size",
         args.batch_size, "--learning-rate", args.learning_rate, *numerics])
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps, evals = [row for row in log if "step_seconds" in row], [row for row in log if "eval_loss" in row]
    return line(name, count, json.loads((data / "report.json").read_text()), steps, evals)


def line(name, count, report, steps, evals):
    """A row of the table, from pack's report and a run's metrics."""
    train, held_out = report["train"], report["eval"]
    tokens, repeated = (train[key] + held_out[key] for key in ("tokens", "tokens_prompt_repeated"))
    speed = statistics.median(row["tokens_per_second"] for row in steps)
    before, after = evals[0], evals[-1]
    low, high = wilson(after["eval_rewards/accuracies"], held_out["pairs"])
    cells = [
        name, f"{report['rows_kept']} of {count}", f"{train['pairs']:,}", f"{tokens:,}", f"{100 * (1 - tokens / repeated):.1f} %",
        f"{speed:,.0f}", str(len(steps)), str(held_out["pairs"]), f"{before['eval_loss']:.4f}", f"{after['eval_loss']:.4f}",
        f"{before['eval_rewards/accuracies']:.3f}", f"{after['eval_rewards/accuracies']:.3f} [{low:.3f}, {high:.3f}]",
    ]
    return "| " + " | ".join(cells) + " |"


HEADER = ["data", "rows kept", "training pairs", "tokens, prompt once", "saved", "tokens/s of a step (median)", "steps", "held-out pairs",
          "loss before", "after", "accuracy before", "after"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", default="1e-5")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--token-budget", type=int, default=2048)
    parser.add_argument("--fusedpo", type=Path, default=SCRIPTS.parent / "target/release/fusedpo")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
    print("\n".join(lines), flush=True)
    for name in args.only:
        with tempfile.TemporaryDirectory() as work:
            lines.append(measure(name, args, Path(work)))
        print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except (Failed, InputError, OSError) as error:
        sys.exit(f"recipes.py: {error}")
