"""plot_cost.py's FLOP count and plot, without running anything."""

import sys
import unittest
import xml.dom.minidom
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

try:
    import numpy
except ImportError:
    numpy = None


@unittest.skipIf(numpy is None, "numpy is not installed")
class PlotCostTest(unittest.TestCase):
    def test_flop_of_the_smallest_case(self):
        import plot_cost
        config = plot_cost.config_of(64, 1)
        blocks = 4 * 64 * 64 + 3 * 64 * config["intermediate_size"]
        # length 8: prompt 4, responses 2 and 2; positions read: 1+2+3+4, then twice 5+6
        expected = 6 * blocks + 6 * 64 * plot_cost.VOCAB * 4 / 8 + 12 * 64 * (10 + 22) / 8
        self.assertAlmostEqual(plot_cost.flop_per_token(config, 8), expected)

    def test_plot_is_well_formed(self):
        import plot_cost
        points = [{"size": s, "length": 8, "flop": f, "seconds": f / 1e9} for s, f in (("64x1", 1e6), ("64x2", 3e7))]
        picture = xml.dom.minidom.parseString(plot_cost.svg(points))
        self.assertEqual(len(picture.getElementsByTagName("circle")), 2)
        self.assertIn("| 64x2 | 8 | 30.00 | 30000.00 | 1.0 |", plot_cost.table(points))


if __name__ == "__main__":
    unittest.main()
