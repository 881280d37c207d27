"""Flips labels of preference rows by a seed, and measures how many of them `fusedpo analyze` names by one epoch of a run's ledger.

Usage:   python scripts/flip_experiment.py --program target/release/fusedpo --model DIR --out DIR NAME=FILE... [options]
Input:   rows as `fusedpo pack` takes them, each with `prompt`, `chosen`, `rejected` (the convert_*.py programs write them).
Output:  a JSON object a data set: rows, flipped, named, right, precision, recall; with --held-out also the accuracy on rows that
         were neither flipped nor trained on, of runs on the flipped rows, on those without the named ones, and on the clean ones.
Needs:   Python alone, and a built program.

The decision rule is the program's own (docs/ledger.md) and is not touched here. Arguments behind `--` go to `fusedpo dpo`.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path


def run(program, *args):
    """The program's stdout; ends this one where that failed."""
    done = subprocess.run([program, "--quiet", *map(str, args)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"error: {program} {' '.join(map(str, args))}: {done.stderr.strip()}")
    return done.stdout


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flipped(rows, share, seed):
    """The rows with `share` of them the wrong way round, and which."""
    which = set(random.Random(seed).sample(range(len(rows)), round(share * len(rows))))
    turned = lambda row: row | {"chosen": row["rejected"], "rejected": row["chosen"]}
    return [turned(row) if i in which else row for i, row in enumerate(rows)], which


def experiment(args, name, path):
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    random.Random(f"{args.seed} {name}").shuffle(rows)
    rows = rows[: args.rows]
    held = round(args.held_out * len(rows))
    held_out, clean = rows[:held], rows[held:]
    dirty, which = flipped(clean, args.share, args.seed)
    folder = args.out / f"{name}-{args.seed}"
    folder.mkdir(parents=True)
    pack = lambda source, to, *more: run(args.program, "pack", "--tokenizer", args.model, "--input", source, "--out", folder / to, *more)

    def train(data, to):
        options = ["--model", args.model, "--data", folder / data, "--out", folder / to, "--eval-strategy", "no", "--save-steps", 0]
        run(args.program, "dpo", *options, "--report-to", "none", *args.dpo)

    pack(write(folder / "dirty.jsonl", dirty), "dirty")
    train("dirty", "run-dirty")
    listed = folder / "exclude.jsonl"
    epoch = [] if args.epoch is None else ["--epoch", args.epoch]
    found = json.loads(run(args.program, "analyze", folder / "run-dirty", "--exclude-out", listed, "--json", *epoch))
    named = {json.loads(line)["row"] for line in listed.read_text().splitlines()}
    right = len(named & which)
    result = {
        "data": name, "seed": args.seed, "rows": len(dirty), "flipped": len(which), "epoch": found["epoch"],
        "judged": found["judged"], "named": len(named), "right": right,
        "precision": right / len(named) if named else None, "recall": right / len(which) if which else None,
        "accuracy": found["all"]["accuracy"],
    }
    if held:
        pack(write(folder / "held.jsonl", held_out), "held")
        accuracies = {}

        def accuracy(of):
            options = ["--ref-model", args.model, "--data", folder / "held", "--kl-samples", 0, "--json"]
            return json.loads(run(args.program, "eval", "--model", folder / of, *options))["rewards/accuracies"]

        accuracies["flipped"] = accuracy("run-dirty")
        if named:
            pack(folder / "dirty.jsonl", "without", "--exclude", listed)
            train("without", "run-without")
            accuracies["without_named"] = accuracy("run-without")
        pack(write(folder / "clean.jsonl", clean), "clean")
        train("clean", "run-clean")
        accuracies["clean"] = accuracy("run-clean")
        result["held_out"] = {"rows": held, "accuracy": accuracies}
    return result


def main(argv=None):
    """The command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="the built program")
    parser.add_argument("--model", required=True, help="the starting policy, and the reference")
    parser.add_argument("--out", type=Path, required=True, help="folder for rows, shards and runs")
    parser.add_argument("--share", type=float, default=0.05, help="of the rows that are flipped (0.05)")
    parser.add_argument("--seed", type=int, default=0, help="of the flips, and of which rows are taken (0)")
    parser.add_argument("--rows", type=int, help="rows of each data set, at most")
    parser.add_argument("--held-out", type=float, default=0.0, metavar="SHARE", help="of the rows, kept clean to evaluate on (0)")
    parser.add_argument("--epoch", type=int, help="of the ledger, from 0 (the last whole one)")
    parser.add_argument("data", nargs="+", metavar="NAME=FILE")
    args = parser.parse_args(argv[:cut])
    args.dpo = argv[cut + 1 :]
    for of in args.data:
        name, found, path = of.partition("=")
        if not found or not Path(path).is_file():
            sys.exit(f"error: {of}: give NAME=FILE, a file of rows")
        print(json.dumps(experiment(args, name, path)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
