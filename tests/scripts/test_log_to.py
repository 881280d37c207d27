"""scripts/log_to.py with a client that only notes what it gets: what is sent, once, through cuts, kills and other runs."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "log_to.py"
# Stands for wandb and trackio: a line a call in $NOTES.
CLIENT = """
import json, os

def note(*what):
    with open(os.environ["NOTES"], "a") as notes:
        print(json.dumps(what), file=notes)

class Run:
    def define_metric(self, *a, **k): pass
    def log(self, values, step=None): note("log", values, step)
    def finish(self, exit_code=0): note("finish", exit_code)

def init(**k):
    note("init", k)
    return Run()

log, finish = Run().log, Run().finish
"""


def row(step, seed, evaluates=False):
    rng = random.Random(f"{seed} {step} {evaluates}")
    if evaluates:
        return {"step": step, "eval_loss": rng.random(), "eval_rewards/margins": rng.random()}
    return {"step": step, "loss": rng.random(), "grad_norm": None if step == 3 else rng.random(), "step_seconds": random.random()}


def rows(first, last, seed=0):
    for step in range(first, last + 1):
        yield row(step, seed)
        if step % 5 == 0:
            yield row(step, seed, True)


class LogTo(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.run_dir = self.folder / "my-run"
        for name in ["wandb", "trackio"]:
            (self.folder / f"{name}.py").write_text(CLIENT)
        self.notes = self.folder / "notes"
        self.env = {**os.environ, "PYTHONPATH": str(self.folder), "NOTES": str(self.notes), "PYTHONDONTWRITEBYTECODE": "1"}

    def fill(self, all_rows, outcome="running"):
        self.run_dir.mkdir(exist_ok=True)
        record = {"outcome": outcome, "options": {"beta": 0.1, "cache": None}}
        (self.run_dir / "run.json").write_text(json.dumps(record))
        (self.run_dir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in all_rows))

    def command(self, *args):
        return [sys.executable, str(SCRIPT), *args]

    def send(self, *args, code=0):
        ran = subprocess.run(self.command(*args), env=self.env, capture_output=True, text=True, timeout=60)
        self.assertEqual(ran.returncode, code, ran.stderr)
        return ran

    def noted(self, what):
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return [call[1:] for call in map(json.loads, lines) if call[0] == what]

    def losses(self):
        return [(v["train/global_step"], v["train/loss"]) for v, _ in self.noted("log") if "train/loss" in v]

    def want(self, last, seed=0):
        return [(r["step"], r["loss"]) for r in rows(1, last, seed) if "loss" in r]

    def test_what_is_sent(self):
        self.fill(rows(1, 7), "finished")
        self.send("wandb", str(self.run_dir), "--project", "p")
        begun = self.noted("init")[0][0]
        self.assertEqual((begun["name"], begun["project"], begun["config"]), ("my-run", "p", {"beta": 0.1}))
        self.assertEqual(self.losses(), self.want(7))
        values = [v for v, _ in self.noted("log")]
        self.assertNotEqual(values[2]["train/grad_norm"], values[2]["train/grad_norm"], "null is no number")
        self.assertEqual(set(values[5]), {"eval/loss", "eval/rewards/margins", "train/global_step"})
        self.assertEqual(self.noted("finish"), [[0]])
        # trackio has steps of its own.
        self.send("trackio", str(self.run_dir))
        self.assertEqual([step for _, step in self.noted("log")][-8:], [1, 2, 3, 4, 5, 5, 6, 7])

    def test_again_and_after_a_cut(self):
        self.fill(rows(1, 12))
        self.send("wandb", str(self.run_dir))
        self.send("wandb", str(self.run_dir))
        self.assertEqual(len(self.noted("init")), 1, "nothing new, nobody asked")
        # The run went on from step 6 and is at 9, then at 20; a line is being written.
        for last in [9, 20]:
            self.fill(rows(1, last))
            with open(self.run_dir / "metrics.jsonl", "a") as file:
                file.write('{"step": 21, "lo')
            self.send("wandb", str(self.run_dir))
        self.assertEqual(self.losses(), self.want(20))
        evaluated = [v["train/global_step"] for v, _ in self.noted("log") if "eval/loss" in v]
        self.assertEqual(evaluated, [5, 10, 15, 20])
        self.assertEqual(len({begun[0]["id"] for begun in self.noted("init")}), 1)

    def test_another_run_in_the_folder(self):
        self.fill(rows(1, 6))
        self.send("wandb", str(self.run_dir))
        self.fill(rows(1, 8, seed=1))
        ran = self.send("wandb", str(self.run_dir))
        self.assertIn("step 5 has other numbers than were sent: a new run", ran.stderr)
        self.assertEqual(self.losses(), self.want(6) + self.want(8, 1))
        names = [begun[0]["name"] for begun in self.noted("init")]
        self.assertEqual(names[-1], "my-run-2")
        self.assertEqual(len({begun[0]["id"] for begun in self.noted("init")}), 2)

    def test_follows_until_the_end(self):
        follow = self.command("wandb", str(self.run_dir), "--follow", "--every", "0.02")
        child = subprocess.Popen(follow, env=self.env, stderr=subprocess.PIPE, text=True)
        self.addCleanup(child.stderr.close)
        self.addCleanup(child.kill)
        # Not begun, going on, cut, killed and followed by another call, finished.
        for last in [4, 9, 6, 14]:
            time.sleep(0.2)
            self.fill(rows(1, last))
        until = time.monotonic() + 20
        while len(self.losses()) < 14 and time.monotonic() < until:
            time.sleep(0.05)
        child.kill()
        child.wait()
        child = subprocess.Popen(follow, env=self.env, stderr=subprocess.PIPE, text=True)
        self.addCleanup(child.stderr.close)
        self.addCleanup(child.kill)
        time.sleep(0.2)
        self.fill(rows(1, 17), "finished")
        self.assertEqual(child.wait(20), 0)
        # What was sent just before the kill may come again, with the same number.
        self.assertEqual(sorted(set(self.losses())), self.want(17))
        self.assertEqual(self.noted("finish")[-1], [0])

    def test_ctrl_c_ends_it_in_order(self):
        self.fill(rows(1, 3))
        follow = self.command("wandb", str(self.run_dir), "--follow", "--every", "0.02")
        # Whoever runs the tests in the background ignores Ctrl-C, and children would too.
        heeds = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        child = subprocess.Popen(follow, env=self.env, stderr=subprocess.PIPE, text=True, preexec_fn=heeds)
        self.addCleanup(child.stderr.close)
        self.addCleanup(child.kill)
        until = time.monotonic() + 20
        while len(self.losses()) < 3 and time.monotonic() < until:
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        self.assertEqual(child.wait(20), 0)
        self.assertEqual((self.losses(), self.noted("finish")), (self.want(3), [[0]]))

    def test_what_it_refuses(self):
        ran = self.send("wandb", str(self.folder / "none"), code=1)
        self.assertIn("none: is not the folder of a run: it has no metrics.jsonl", ran.stderr)
        self.fill(rows(1, 2))
        with open(self.run_dir / "metrics.jsonl", "a") as file:
            file.write("no JSON\n")
        self.assertIn("not a line of metrics", self.send("wandb", str(self.run_dir), code=1).stderr)
        (self.run_dir / "log_to.wandb.json").write_text("{")
        self.assertIn("log_to.wandb.json: damaged", self.send("wandb", str(self.run_dir), code=1).stderr)
        (self.folder / "wandb.py").write_text("raise ImportError('none here')")
        (self.run_dir / "log_to.wandb.json").unlink()
        self.assertIn("wandb is not installed (none here): pip install wandb", self.send("wandb", str(self.run_dir), code=1).stderr)


if __name__ == "__main__":
    unittest.main()
