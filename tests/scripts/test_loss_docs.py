"""loss_docs.py's blocks and plot_losses.py's pictures, on losses made up here."""

import contextlib
import io
import math
import sys
import unittest
import xml.dom.minidom
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import loss_docs  # noqa: E402
import plot_losses  # noqa: E402

LOSS = {"name": "mean", "about": "A mean", "formula": "(w/|w| - 1/(2 beta))^2", "notation": {"w": "a sum", "|w|": "a length"},
        "source": "nobody", "guidance": "For tests " + "of lines " * 30, "reference": True, "scores": True, "lengths": "both",
        "f_divergence": True, "scope": "step",
        "options": [{"name": "label_smoothing", "default": 0.0, "domain": "in [0, 0.5)", "about": "A share"}]}
BARE = {**LOSS, "name": "bare", "formula": "-w", "notation": {"w": "a sum"}, "reference": False, "scores": False,
        "lengths": "none", "scope": "group", "options": []}


class Blocks(unittest.TestCase):
    def test_bars_end_no_cell(self):
        lines = loss_docs.overview([LOSS, BARE]).splitlines()
        self.assertEqual(lines[2], "| `mean` | A mean | `(w/\\|w\\| - 1/(2 beta))^2` |")
        for line in loss_docs.needs([LOSS, BARE]).splitlines() + lines:
            self.assertEqual(line.replace("\\|", "").count("|"), 4 if line in lines else 5, line)

    def test_what_is_read(self):
        _, _, mean, bare = loss_docs.needs([LOSS, BARE]).splitlines()
        self.assertEqual(mean, "| [`mean`](#mean) | reference, lengths, scores, the whole step | yes | `--label-smoothing 0` |")
        self.assertEqual(bare, "| [`bare`](#bare) | - | - | - |")

    def test_sections_fit_the_page(self):
        text = loss_docs.each([LOSS, BARE])
        self.assertTrue(all(len(line) <= loss_docs.WIDTH for line in text.splitlines()))
        self.assertIn("- `--label-smoothing 0`: A share; in [0, 0.5).\n", text)
        self.assertIn("](losses/bare.svg)", text)
        self.assertEqual(loss_docs.notation([LOSS, BARE]), "- `w`: a sum\n- `|w|`: a length\n")

    def test_blocks_are_replaced_and_nothing_else(self):
        page = "a\n<!-- losses: notation -->\nold\n<!-- losses: end -->\nb\n"
        new = loss_docs.written(page, [BARE], "page")
        self.assertEqual(new, "a\n<!-- losses: notation -->\n- `w`: a sum\n<!-- losses: end -->\nb\n")
        self.assertEqual(loss_docs.written(new, [BARE], "page"), new)
        for bad in ("no block\n", "<!-- losses: other -->\n<!-- losses: end -->\n", page + "<!-- losses: end -->\n"):
            with contextlib.redirect_stderr(io.StringIO()), self.assertRaises(SystemExit):
                loss_docs.written(bad, [BARE], "page")


class Pictures(unittest.TestCase):
    def test_only_what_is_read_is_given(self):
        self.assertEqual(plot_losses.pair(BARE, 4), ["--chosen", "-38.0", "--rejected", "-42.0"])
        self.assertEqual(plot_losses.pair(LOSS, 0)[4:], ["--ref-chosen", "-40", "--ref-rejected", "-40", "--chosen-len", "10",
                                                         "--rejected-len", "10", "--chosen-score", "8", "--rejected-score", "6"])

    def test_picture_is_well_formed(self):
        for value in (lambda m: math.exp(m / 20), lambda m: 0.0, lambda m: -3.0, lambda m: 1e-9 * m, lambda m: 1e9 * m):
            points = [(m, value(m), -value(m), value(m)) for m in plot_losses.MARGINS]
            picture = xml.dom.minidom.parseString(plot_losses.svg(points))
            lines = picture.getElementsByTagName("polyline")
            self.assertEqual(len(lines), 3)
            for line in lines:
                at = [tuple(map(float, p.split(","))) for p in line.getAttribute("points").split()]
                self.assertTrue(all(0 <= x <= 2 * plot_losses.WIDTH and 0 <= y <= plot_losses.HEIGHT for x, y in at))
            self.assertGreater(len(picture.getElementsByTagName("text")), 8)

    def test_ticks_are_round(self):
        self.assertEqual(plot_losses.ticks(-60, 60), [-50, 0, 50])
        for low, high in ((0, 1), (0, 7), (-0.1, 0.1), (0, 4e6), (-3e-9, 0)):
            self.assertIn(len(plot_losses.ticks(low, high)), range(2, 7), (low, high))

    def test_lines_keep_their_corners(self):
        self.assertEqual(plot_losses.without_middle_of_lines([(0, 0), (1, 0), (2, 0), (3, 5), (4, 10)]), [(0, 0), (2, 0), (4, 10)])


if __name__ == "__main__":
    unittest.main()
