"""bench_trl.py: what it takes from the data, and a whole run with a stand-in for the fusedpo binary."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import bench_trl  # noqa: E402

STAND_IN = """#!{python} -B
import json, sys
from pathlib import Path
argument = lambda name: sys.argv[sys.argv.index(name) + 1]
if sys.argv[1] == "dpo":
    if {broken}:
        sys.exit("fusedpo: something is wrong")
    run = Path(argument("--out"))
    run.mkdir()
    steps = [{{"step": i, "loss": 0.69, "pairs_per_second": 4.0}} for i in (1, 2)] + [{{"eval_loss": 1.0}}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(step) + chr(10) for step in steps))
"""


class BenchTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "q", "responses": ["x", "y", "z"], "scores": [1, 2, 1]},
                {"prompt": "p", "chosen": "c", "rejected": "a"}, {"prompt": "r", "chosen": "c", "rejected": "a"}]
        self.data = self.folder / "rows.jsonl"
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def test_rows_become_groups_by_prompt(self):
        rows, groups, count = bench_trl.take_rows(self.data, 4)
        self.assertEqual((len(rows), count), (3, 4))
        self.assertEqual(groups, [{"prompt": "p", "responses": ["a", "b", "c", "a"], "pairs": [(0, 1), (2, 3)]},
                                  {"prompt": "q", "responses": ["x", "y", "z"], "pairs": [(1, 0), (1, 2)]}])

    def bench(self, broken=False, only="fusedpo-f32"):
        binary = self.folder / "fusedpo"
        binary.write_text(STAND_IN.format(python=sys.executable, broken=broken))
        binary.chmod(0o755)
        (self.folder / "config.json").write_text("{}")
        out = self.folder / "result.md"
        command = [sys.executable, "-B", str(SCRIPTS / "bench_trl.py"), "--model", str(self.folder), "--data", str(self.data),
                   "--only", only, "--pairs", "5", "--fusedpo", str(binary), "--out", str(out), "--work", str(self.folder)]
        result = subprocess.run(command, capture_output=True, text=True)
        return result, out.read_text() if out.exists() else None

    @unittest.skipUnless(hasattr(os, "wait4"), "needs os.wait4")
    def test_whole_run(self):
        result, page = self.bench()
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("| fusedpo-f32 | 0.25 | 1.2 |", page)  # 4 pairs, then 1, at 4 pairs a second
        self.assertFalse([name for name in os.listdir(self.folder) if name.startswith("fusedpo-bench-")])

    def test_a_failing_program_is_reported(self):
        result, page = self.bench(broken=True)
        self.assertEqual(result.returncode, 1)
        self.assertIn("something is wrong", page)
        self.assertNotIn("Traceback", result.stderr)

    def test_unknown_configuration(self):
        result, page = self.bench(only="trl-f8")
        self.assertEqual(result.returncode, 1)
        self.assertIsNone(page)
        self.assertIn("trl-f8: unknown", result.stderr)


class GpuTest(unittest.TestCase):
    """What --device cuda adds, without a GPU."""

    def memory(self, listed):
        """Peak that GpuMemory reads off a stand-in for nvidia-smi: 100 MiB in use before, 600 later; processes as listed."""
        with tempfile.TemporaryDirectory() as folder:
            tool = Path(folder) / "nvidia-smi"
            tool.write_text(f'#!/bin/sh\ncase "$1" in *compute-apps*) echo "{listed}";; *) if [ -e {folder}/asked ]; then echo 600; '
                            f'else echo 100; touch {folder}/asked; fi;; esac\n')
            tool.chmod(0o755)
            with mock.patch.dict(os.environ, {"PATH": f"{folder}:{os.environ['PATH']}"}):
                watch = bench_trl.GpuMemory(4711)
                watch.start()
                until = time.monotonic() + 20
                while not watch.grown_mib and time.monotonic() < until:
                    time.sleep(0.02)
                watch.done.set()
                watch.join()
        return watch.gigabytes() * 1e9 / 2**20

    def test_memory_of_the_process(self):
        self.assertEqual(self.memory("4711, 300"), 300)

    def test_growth_where_processes_are_not_seen(self):
        self.assertEqual(self.memory("1, 300"), 500)

    def measure(self, device):
        """trl-best with micro-batches 8 and 4, of which 8 does not fit."""
        def run_peer(config, micro_batch, args, work):
            if micro_batch == 8:
                raise bench_trl.RunFailed("out of memory")
            return {"steps": [1.0], "micro": micro_batch}
        args = SimpleNamespace(device=device, trl_micro_batch=[8, 4], batch_size=8, work=None)
        with mock.patch.object(bench_trl, "run_peer", run_peer):
            return bench_trl.measure("trl-best-bf16", args, [], [])

    def test_a_micro_batch_that_does_not_fit_is_left_out_on_a_gpu(self):
        self.assertEqual(self.measure("cuda")["micro"], 4)
        with self.assertRaises(bench_trl.RunFailed):
            self.measure("cpu")

    def test_torch_compile_is_for_gpus(self):
        self.assertIn("torch-compile", bench_trl.peers_on("cuda"))
        self.assertNotIn("torch-compile", bench_trl.peers_on("cpu"))


@unittest.skipIf(importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torch") is None,
                 "torch and transformers are not installed")
class PeersTest(unittest.TestCase):
    def test_padded_rows_give_what_shared_prompts_give(self):
        import torch
        from transformers import AutoModelForCausalLM

        import bench_peers
        model = AutoModelForCausalLM.from_pretrained(SCRIPTS.parent / "tests/golden/llama", dtype=torch.float32)
        step = [([5, 6, 7], [[8, 9], [10], [11, 12, 13]], [(0, 1), (2, 1)]), ([20, 21], [[22], [23, 24]], [(1, 0)])]
        weight = model.get_output_embeddings().weight
        with torch.no_grad():
            ids, positions, mask, predictors, targets, owners, pairs, count = bench_peers.pack(step, "cpu")
            hidden = model.model(input_ids=ids, position_ids=positions, attention_mask=mask).last_hidden_state[0]
            shared = bench_peers.token_sums(hidden, weight, predictors, targets, owners, count)[pairs]
            ids, predictors, targets, owners, pairs, count = bench_peers.pad(step, "cpu")
            hidden = model.model(input_ids=ids).last_hidden_state.flatten(0, 1)
            padded = bench_peers.token_sums(hidden, weight, predictors, targets, owners, count)[pairs]
        self.assertEqual(shared.shape, (3, 2))
        self.assertLess((shared - padded).abs().max().item(), 1e-5)


if __name__ == "__main__":
    unittest.main()
