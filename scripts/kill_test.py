#!/usr/bin/env python3
"""Runs that are killed at random moments and gone on with, against runs that nobody disturbed: the same bytes.

    scripts/kill_test.py N [--program target/release/fusedpo] [--seed S] [--keep]

Each of N cases is a stage (sft, dpo), a precision, and how often it saves, evaluates and keeps. It is run once in peace; then
it is started with `--resume auto` and killed (SIGKILL) again and again: at any moment, in the middle of a save, of a sidecar's
write, of an evaluation, of the export; until it has been killed often enough, and ends by itself. Then the model and every metric
that measures no time or memory must be equal to the byte, and nothing half-written may lie anywhere. Needs Python alone; the
model is that of tests/golden.
"""

import argparse
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
MEASURED = ("_seconds", "_per_second", "_bytes")
MOMENTS = ["time", "time", "save", "removal", "sidecar", "file", "evaluation"]
LONGEST = 120.0  # seconds of a call, on a busy machine too


def words(seed, n):
    return "".join(f" w{3 + (seed * 31 + i * i * 7 + i * 11) % 94}" for i in range(n))


def write_rows(path, n):
    with open(path, "w") as out:
        for i in range(n):
            row = {
                "prompt": f"w{3 + i % 94} w{3 + i // 94}{words(i + 1, 3 + i % 5)}",
                "chosen": words(i + 100, 2 + i % 7),
                "rejected": words(i + 200, 1 + i % 6),
            }
            out.write(json.dumps(row) + "\n")


def metrics(run):
    """Rows without what the clock or the memory says."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.endswith(MEASURED)} for row in rows]


class Case:
    """One run, in peace and disturbed."""

    def __init__(self, program, folder, rng, precisions, steps):
        self.program, self.folder, self.rng, self.steps = program, folder, rng, steps
        self.stage = rng.choice(["sft", "dpo", "dpo"])
        self.precision = rng.choice(precisions)
        self.options = [
            *("--model m --data d --device cpu --learning-rate 1e-3 --batch-size 3".split()),
            *("--max-steps", str(steps), "--dtype", self.precision),
            *("--save-steps", str(rng.choice([3, 10, 17, 40]))),
            *("--save-total-limit", str(rng.choice([0, 1, 2, 3]))),
            *("--eval-steps", str(rng.choice([0, 7, 20, 50]))),
            *("--lr-scheduler-type", rng.choice(["linear", "cosine", "constant"])),
            *("--optim", rng.choice(["adamw", "adamw", "rmsprop"] + ["adamw_bf16", "adamw_8bit"] * (self.precision == "bf16"))),
        ]
        if rng.random() < 0.3:
            self.options.append("--gradient-checkpointing")
        self.kills = {}

    def cache(self, run):
        return ["--cache", str(self.folder / f"cache-{run}")] if self.stage == "dpo" else []

    def start(self, run, *more):
        command = [self.program, self.stage, *self.options, "--out", run, *self.cache(run), *more]
        # A file: nobody has to read a pipe while the run is watched.
        with open(self.folder / "err", "w") as err:
            return subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=err)

    def said(self):
        return (self.folder / "err").read_text(errors="replace")

    def peace(self):
        child = self.start("peace")
        began = time.monotonic()
        if child.wait(timeout=LONGEST) != 0:
            raise SystemExit(f"the undisturbed run failed: {self.said()}")
        return time.monotonic() - began

    def reach(self, child, moment, seconds):
        """Waits for the moment; whether it came before the run's end."""
        run, cache = self.folder / "killed", self.folder / "cache-killed"
        evaluations = self.rng.randrange(0, 12)
        looks = {
            "time": lambda: True,
            "save": lambda: any(run.glob(".checkpoint-*-*.tmp")),
            "removal": lambda: any(run.glob(".checkpoint-*.removed.tmp")),
            "sidecar": lambda: any(cache.glob(".tmp-*")),
            "file": lambda: any(run.glob(".tmp-*")),
            "evaluation": lambda: self.said().count("\nevaluation ") > evaluations,
        }
        # Not the first of its kind, but the first after some time; sidecars are written at the beginning.
        began, longest = time.monotonic(), seconds * (0.0 if moment in ("sidecar", "evaluation") else 0.8)
        after = self.rng.uniform(0, longest)
        while child.poll() is None and time.monotonic() < began + after:
            time.sleep(0.0005)
        while child.poll() is None and time.monotonic() < began + 2 * seconds and not looks[moment]():
            pass
        if self.rng.random() < 0.5:
            time.sleep(self.rng.uniform(0, 0.004))
        return child.poll() is None

    def disturbed(self, seconds):
        wanted = self.rng.randrange(2, 6)
        for _ in range(100):
            child = self.start("killed", "--resume", "auto")
            moment = self.rng.choice(MOMENTS)
            if wanted > 0 and self.reach(child, moment, seconds):
                child.send_signal(signal.SIGKILL)
                child.wait()
                self.kills[moment] = self.kills.get(moment, 0) + 1
                wanted -= 1
                continue
            if child.wait(timeout=LONGEST) != 0:
                raise SystemExit(f"{self}: a run that was gone on with failed: {self.said()}")
            if wanted <= 0:
                return
            # It was through before its moment came.
            for folder in ["killed", "cache-killed"]:
                shutil.rmtree(self.folder / folder, ignore_errors=True)
        raise SystemExit(f"{self}: it did not end in 100 calls")

    def compare(self):
        peace, killed = self.folder / "peace", self.folder / "killed"
        wrong = []
        for name in ["model.safetensors", "config.json"]:
            if (peace / name).read_bytes() != (killed / name).read_bytes():
                wrong.append(name)
        if metrics(peace) != metrics(killed):
            wrong.append("metrics.jsonl")
        record = json.loads((killed / "run.json").read_text())
        done = (record["outcome"], record["steps_done"], record["steps_asked"])
        if done != ("finished", self.steps, self.steps):
            wrong.append(f"run.json {done}")
        if any(r["before"] != "killed" for r in record["resumptions"]):
            wrong.append("run.json resumptions")
        wrong += [str(p.name) for p in killed.iterdir() if p.name.startswith(".")]
        return wrong

    def __str__(self):
        return f"{self.stage} {' '.join(self.options[4:])}"


def precisions(program, folder):
    """What this machine computes in."""
    said = subprocess.run([program, "doctor"], cwd=folder, capture_output=True, text=True, check=True).stdout
    return ["f32"] if "--dtype bf16: not here" in said else ["f32", "bf16"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("n", type=int, help="cases")
    parser.add_argument("--program", default=str(ROOT / "target/release/fusedpo"))
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--steps", type=int, default=200, help="steps of a run")
    parser.add_argument("--folder", default=None, help="where runs are made: another disk, or memory")
    parser.add_argument("--keep", action="store_true", help="leave the folders of a case that failed")
    args = parser.parse_args()
    program = str(pathlib.Path(args.program).resolve())
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    failed, kills = 0, {}
    for i in range(args.n):
        rng = random.Random(f"{seed} {i}")
        folder = pathlib.Path(tempfile.mkdtemp(prefix="fusedpo-kill-", dir=args.folder))
        try:
            shutil.copytree(ROOT / "tests/golden/llama", folder / "m")
            write_rows(folder / "rows.jsonl", 120)
            pack = "pack --tokenizer m --input rows.jsonl --out d --eval-fraction 0.15".split()
            subprocess.run([program, *pack], cwd=folder, check=True, capture_output=True)
            case = Case(program, folder, rng, precisions(program, folder), args.steps)
            case.disturbed(case.peace())
            wrong = case.compare()
            for moment, n in case.kills.items():
                kills[moment] = kills.get(moment, 0) + n
            print(f"{i + 1}/{args.n} {case}: killed {case.kills}: {'WRONG ' + str(wrong) if wrong else 'equal'}", flush=True)
            failed += bool(wrong)
            if wrong and args.keep:
                print(f"kept: {folder}")
                folder = None
        finally:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
    total = sum(kills.values())
    print(f"{args.n - failed} of {args.n} runs equal to the byte after {total} kills {dict(sorted(kills.items()))}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
