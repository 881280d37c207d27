"""What stages are made of: steps, the bundle and its machine, a verdict; and what they read of a run.

Usage:   from place import Bad, Place, Skipped, Stage, Step, digest, metrics      (a module; it has no command line)
"""

import hashlib
import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

TIMES = ("step_seconds", "tokens_per_second", "pairs_per_second", "samples_per_second", "peak_memory_bytes")  # what two runs may differ in


class Bad(Exception):
    """A stage's result is not what must hold: what was seen, and the `table` (header, rows) that there is all the same."""

    def __init__(self, why, table=None):
        super().__init__(why)
        self.table = table


class Skipped(Bad):
    """A stage that this machine cannot have, as its steps found out."""


@dataclass
class Step:
    """A command, what it is called in the log, and what it makes: a step whose `makes` is there already is left out."""
    name: str
    command: list
    env: dict = field(default_factory=dict)
    makes: Path = None
    alone: bool = False  # the steps behind it do not need it: they run though it fails, and have half of the time left
    partial: bool = False  # what it printed before it failed or was stopped is judged too
    weighed: bool = False  # whether its failure is one of the stage, the stage's judge says, from what it printed


@dataclass
class Place:
    """The bundle, its programs, a folder for the stages' files, and where to compute."""
    bundle: Path
    programs: Path
    work: Path
    python: str
    manifest: dict
    rehearsal: bool = False
    stand_in: bool = False  # a rehearsal on libraries that only look like a GPU's

    @property
    def device(self):
        return "cpu" if self.rehearsal and not self.stand_in else "cuda"

    @property
    def patience(self):
        """By what limits are multiplied: they are made for a GPU."""
        return 20 if self.stand_in else 4 if self.rehearsal else 1

    @property
    def fusedpo(self):
        return self.programs / "bin/fusedpo"

    @property
    def small(self):
        return self.bundle / "data" / self.manifest["data"]["model"]

    @property
    def gpus(self):
        """How many there are; 0 on a machine that has no nvidia-smi."""
        if self.rehearsal:
            return int(os.environ.get("STANDIN_GPUS", 1)) if self.stand_in else 0
        try:
            said = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30).stdout
        except (OSError, subprocess.TimeoutExpired):
            return 0
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        return len(seen.split(",")) if seen else len(re.findall(r"^GPU \d+:", said, re.M))

    def script(self, name):
        return [self.python, self.bundle / "scripts" / name]

    def has_module(self, name):
        """Whether the interpreter that runs the peers has a package. Looked up, as importing it can take as long as a stage."""
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
        return subprocess.run([self.python, "-c", code], capture_output=True).returncode == 0

    def random_model(self, shape):
        """(step that makes it, directory) of a model of real shape with random weights; a rehearsal takes the small one."""
        if self.rehearsal:
            return [], self.small
        out = self.work / shape
        command = [*self.script("random_model.py"), "--shape", shape, "--tokenizer", self.small, "--out", out]
        return [Step(f"make {shape}", command, makes=out / "config.json")], out

    def pack(self, name="pairs", rows="ids.jsonl", *more):
        """(step, folder) of a file of pairs as shards."""
        out = self.work / name
        command = [self.fusedpo, "pack", "--tokenizer", self.small, "--input", self.bundle / "data" / rows, "--out", out, *more]
        return Step(f"pack {name}", command, makes=out), out

    def dpo(self, model, data, out, dtype, *more, device=None):
        """A DPO run; `more` says how long it is."""
        command = [self.fusedpo, "dpo", "--model", model, "--data", data, "--out", out, "--device", device or self.device,
                   "--dtype", dtype, *more]
        return Step(f"dpo {out.name}", [str(part) for part in command])


@dataclass
class Stage:
    name: str
    limit: int  # seconds
    plan: object  # Place -> [Step], or a string: why it cannot run here
    judge: object  # (Place, {step name: output}) -> (header, rows)


def metrics(run):
    """Training rows of a run."""
    rows = [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in row]
    if not rows:
        raise Bad(f"{run.name}: metrics.jsonl has no training step")
    return rows


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
