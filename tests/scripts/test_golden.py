"""The committed golden numbers agree with each other: losses follow from the log-probs, models have their tensors."""

import json
import math
import struct
import unittest
from pathlib import Path

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def log_sigmoid(x):
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))


class GoldenTest(unittest.TestCase):
    def setUp(self):
        self.golden = json.loads((GOLDEN / "golden.json").read_text())

    def test_log_probs_sum_up(self):
        for name, model in self.golden["models"].items():
            for response in model["responses"]:
                row = self.golden["rows"][response["row"]]
                scored = len(row["responses_ids"][response["response"]]) - (not row["prompt_ids"])
                for who in ("ref", "policy"):
                    tokens = response[f"{who}_token_logps"]
                    self.assertEqual(len(tokens), scored, name)
                    self.assertEqual(response["num_tokens"], scored, name)
                    self.assertAlmostEqual(math.fsum(tokens), response[f"{who}_logp"], delta=1e-11)

    def test_losses_follow_from_log_probs(self):
        beta, eps = self.golden["beta"], self.golden["label_smoothing"]
        for name, model in self.golden["models"].items():
            by_key = {(r["row"], r["response"]): r for r in model["responses"]}
            expected = {key: [] for key in model["losses"] if key != "sft"}
            for row, chosen, rejected in self.golden["pairs"]:
                c, r = by_key[row, chosen], by_key[row, rejected]
                dc, dr = (x["policy_logp"] - x["ref_logp"] for x in (c, r))
                m = beta * (dc - dr)
                expected["sigmoid"].append(-log_sigmoid(m))
                expected["sigmoid|label_smoothing=0.1"].append(-(1 - eps) * log_sigmoid(m) - eps * log_sigmoid(-m))
                expected["hinge"].append(max(0.0, 1 - m))
                expected["ipo"].append((dc / c["num_tokens"] - dr / r["num_tokens"] - 1 / (2 * beta)) ** 2)
            for loss, values in expected.items():
                for got, want in zip(model["losses"][loss]["per_pair"], values, strict=True):
                    self.assertAlmostEqual(got, want, delta=1e-10, msg=f"{name} {loss}")
                self.assertAlmostEqual(model["losses"][loss]["loss"], sum(values) / len(values), delta=1e-10)
            best = [r for r in model["responses"] if r["response"] == 0]
            sft = -sum(r["policy_logp"] for r in best) / sum(r["num_tokens"] for r in best)
            self.assertAlmostEqual(model["losses"]["sft"]["loss"], sft, delta=1e-11)

    def test_models_hold_the_tensors_of_their_gradients(self):
        for name, model in self.golden["models"].items():
            data = (GOLDEN / name / "model.safetensors").read_bytes()
            (length,) = struct.unpack("<Q", data[:8])
            header = json.loads(data[8 : 8 + length])
            header.pop("__metadata__")
            self.assertEqual(set(header), set(model["gradient"]["tensors"]), name)
            self.assertEqual(len(data), 8 + length + max(t["data_offsets"][1] for t in header.values()))
            norms = math.fsum(t["norm"] ** 2 for t in model["gradient"]["tensors"].values())
            self.assertAlmostEqual(math.sqrt(norms), model["gradient"]["global_norm"], delta=1e-10)


if __name__ == "__main__":
    unittest.main()
