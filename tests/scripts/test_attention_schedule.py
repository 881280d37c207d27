"""The model of the attention kernels' schedule: its tables are the wrapper's, and what it says of a batch holds together."""

import json
import random
import sys
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import attention_schedule as model


class AttentionScheduleTest(unittest.TestCase):
    def test_tables_are_the_wrappers(self):
        """src/backend/gpu/schedule.rs holds its own tables to the same file."""
        for case in json.loads((ROOT / "tests/golden/attention_tables.json").read_text()):
            segments = model.segments_of(case["groups"], case["slots"])
            self.assertEqual(model.query_tiles(segments, case["group"]), case["queries"])
            keys, partial_rows = model.key_tiles(segments, case["group"], case["rows"], case["room"])
            self.assertEqual((keys, partial_rows), (case["keys"], case["partial_rows"]))

    def test_constants_are_the_sources(self):
        rust = (ROOT / "src/backend/gpu/schedule.rs").read_text()
        for name in ("QUERY_ROWS", "PART_QUERIES", "PART_STEP"):
            self.assertIn(f"const {name}: usize = {getattr(model, name)};", rust)
        for hd, rows in ((32, 128), (64, 128), (96, 64), (128, 64)):
            _, _, mi, _ = model.shapes(hd)["bwd_dkv"]
            self.assertEqual(16 * mi * model.issue_slots.WARPS, rows)
            self.assertRegex((ROOT / "src/backend/gpu/tiles.rs").read_text(), rf"tensor_cores!\({hd}, .*dkv {rows} x \d+\)")

    def test_blocks_run_in_order_on_places_that_get_free(self):
        gpu = (2, 1.0, 1.0)
        start = model.BLOCK_SECONDS
        self.assertAlmostEqual(model.run([5, 1, 1, 1], gpu, 1, 100)[0], 5 * 100 * model.ALONE, delta=10 * start)
        seconds, ideal = model.run([2] * 8, gpu, 2, 100)
        self.assertAlmostEqual(seconds, ideal, delta=1)

    def test_backward_on_ultrafeedback_lengths(self):
        rng, figures = random.Random(1), {}
        for mix in model.MIXES:
            groups = model.lengths(mix, 16384, rng)
        for baseline in (True, False):
            out = model.predict(groups, 16384, 14, 2, 64, model.GPUS["h100"], model.slots_of_page(64, "90a", baseline), baseline)
            figures[baseline] = out["fwd"][4] * 2.5 / (out["bwd_dq"][2] + out["bwd_dkv"][2]) / 1e12
            self.assertLess(out["bwd_dkv"][1], 1.15, "executed over useful")
        self.assertAlmostEqual(figures[True], 120, delta=2)
        self.assertGreater(figures[False], 1.5 * figures[True])


if __name__ == "__main__":
    unittest.main()
