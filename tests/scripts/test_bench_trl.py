"""bench_trl.py: what it takes from the data, and a whole run with a stand-in for the fusedpo binary."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

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
