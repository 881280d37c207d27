"""The model of several GPUs: its page is what it says today, and what it says holds together."""

import sys
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import scaling_model as model


class ScalingModelTest(unittest.TestCase):
    def test_the_page_is_what_it_says(self):
        self.assertEqual(model.PAGE.read_text(), model.page(), "run scripts/scaling_model.py --write")

    def test_constants_are_the_sources(self):
        rust = "".join((ROOT / "src/train" / file).read_text() for file in ("places.rs", "shares.rs"))
        self.assertIn("pub const BLOCK: usize = 1 << 14;", rust)
        self.assertEqual(model.BLOCK, 1 << 14)
        self.assertIn(f"const BUCKET: usize = {model.BUCKET};", rust)

    def test_by_hand(self):
        """8 GPUs, 4 GB: seven eighths over NVLink at 360 GB/s, and 239 buckets of 16 MiB to seven others, a quarter of 5 us each."""
        seconds = 4e9 * 7 / 8 / 360e9 + 239 * 7 * 5e-6 / 4
        self.assertAlmostEqual(model.between_gpus(1e9, 4, 8), seconds, places=12)
        self.assertEqual(model.by_the_host(1e9, 4, 1), 0.0)

    def test_what_can_be_said_without_numbers(self):
        for name, weights in model.MODELS.items():
            for pairs in (1, 8, 32, 200):
                self.assertEqual(model.efficiency(name, 1, pairs, "device"), 1.0)
                for ranks in (8, 64, 1024):
                    host, device, overlapped = (
                        model.step(name, ranks, pairs, way) for way in ("host", "device", "overlapped"))
                    self.assertTrue(0 < overlapped <= device < host)
                    # More pairs a rank wait less for the others.
                    more, few = (model.efficiency(name, ranks, n, "host") for n in (2 * pairs, pairs))
                    self.assertGreater(more, few)
            self.assertLess(model.memory(weights, 64), model.memory(weights, 8))


if __name__ == "__main__":
    unittest.main()
