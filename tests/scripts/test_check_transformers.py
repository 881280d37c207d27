"""check_transformers.py on the committed tiny models, with their golden log-probs in the place of `fusedpo score`'s."""

import importlib.util
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden"


@unittest.skipIf(importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torch") is None,
                 "torch and transformers are not installed")
class CheckTransformersTest(unittest.TestCase):
    def check(self, name, change, *more):
        golden = json.loads((GOLDEN / "golden.json").read_text())
        with tempfile.TemporaryDirectory() as folder:
            data, scores = Path(folder) / "rows.jsonl", Path(folder) / "scores.jsonl"
            data.write_text("".join(json.dumps(row) + "\n" for row in golden["rows"]))
            with open(scores, "w") as out:
                for r in golden["models"][name]["responses"]:
                    line = {"row": r["row"], "response": r["response"], "group": r["row"], "num_tokens": r["num_tokens"],
                            "logp": r["ref_logp"], "token_logps": r["ref_token_logps"]}
                    change(line)
                    out.write(json.dumps(line) + "\n")
            command = [sys.executable, "-B", str(ROOT / "scripts/check_transformers.py"), "--model", str(GOLDEN / name),
                       "--scores", str(scores), "--data-jsonl", str(data), "--tolerance", "1e-4", *more]
            return subprocess.run(command, capture_output=True, text=True)

    def test_agreement(self):
        result = self.check("qwen3", lambda line: None)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("13 responses", result.stdout)
        self.assertIn("of a token", result.stdout)

    def test_plain_torch_agrees(self):
        result = self.check("llama", lambda line: None, "--oracle", "torch")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("13 responses, torch in float32", result.stdout)

    def test_the_rule_for_low_precision(self):
        for oracle in ("transformers", "torch"):
            result = self.check("llama", lambda line: None, "--oracle", oracle, "--dtype", "bfloat16", "--twice-plain")
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn("error against float64", result.stdout)

        def change(line):
            line["logp"] += 1.0
        result = self.check("llama", change, "--dtype", "bfloat16", "--twice-plain")
        self.assertEqual(result.returncode, 1)
        self.assertIn("is above twice", result.stderr)

    def test_a_wrong_score_fails(self):
        def change(line):
            line["logp"] += 2e-4 * (line["row"] == 3)
        result = self.check("llama3-tied", change)
        self.assertEqual(result.returncode, 1)
        self.assertIn("above the tolerance", result.stderr)

    def test_nan_fails(self):
        def change(line):
            if line["row"] == 2:
                line["token_logps"][0] = float("nan")
                line["logp"] = float("nan")
        result = self.check("llama", change)
        self.assertEqual(result.returncode, 1)

    def test_foreign_rows_are_refused_in_one_line(self):
        result = self.check("llama", lambda line: line.update(row=line["row"] + 1))
        self.assertEqual(result.returncode, 1)
        self.assertIn("is not in the data", result.stderr)
        self.assertEqual(len(result.stderr.strip().splitlines()), 1, result.stderr)


if __name__ == "__main__":
    unittest.main()
