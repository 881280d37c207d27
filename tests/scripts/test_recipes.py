"""scripts/recipes.py: its table, without a run."""

import sys
import unittest
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import recipes  # noqa: E402


class Recipes(unittest.TestCase):
    def test_wilson_of_a_half(self):
        # By hand: (0.5 + z^2/52 -+ z sqrt(0.25/26 + z^2/2704)) / (1 + z^2/26), z = 1.96.
        low, high = recipes.wilson(0.5, 26)
        self.assertAlmostEqual(low, 0.3206, places=3)
        self.assertAlmostEqual(high, 0.6794, places=3)
        self.assertEqual(recipes.wilson(0.0, 0), (0.0, 1.0))

    def test_a_row_has_a_cell_for_every_column(self):
        side = {"pairs": 10, "tokens": 60, "tokens_prompt_repeated": 100}
        evals = [{"eval_loss": 0.6931, "eval_rewards/accuracies": 0.5}, {"eval_loss": 0.6, "eval_rewards/accuracies": 0.8}]
        row = recipes.line("x", 12, {"rows_kept": 11, "train": side, "eval": side}, [{"tokens_per_second": 10.0}], evals)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        self.assertEqual(len(cells), len(recipes.HEADER))
        self.assertEqual(cells[cells.index("11 of 12") + 3], "40.0 %")
        self.assertTrue(cells[-1].startswith("0.800 ["))

    def test_every_converter_exists(self):
        for files, converter, _ in recipes.RECIPES.values():
            self.assertTrue(files)
            if converter:
                self.assertTrue((SCRIPTS / converter[0]).is_file(), converter[0])


if __name__ == "__main__":
    unittest.main()
