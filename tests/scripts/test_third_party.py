"""scripts/third_party.py: choices of licences, and what is refused."""

import contextlib
import io
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import third_party  # noqa: E402


def package(name, version="1.0.0", licence="MIT", source=third_party.SOURCE):
    return {"name": name, "version": version, "license": licence, "source": source}


class Choose(unittest.TestCase):
    def test_the_first_allowed_of_a_choice_and_all_of_a_conjunction(self):
        for expression, want in [
            ("MIT", ["MIT"]),
            ("MIT OR Apache-2.0", ["Apache-2.0"]),
            ("MIT/Apache-2.0", ["Apache-2.0"]),
            ("GPL-3.0-only OR Zlib", ["Zlib"]),
            ("Apache-2.0 WITH LLVM-exception OR MIT", ["MIT"]),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", ["Apache-2.0", "Unicode-3.0"]),
            ("BSD-3-Clause AND BSD-2-Clause", ["BSD-2-Clause", "BSD-3-Clause"]),
            ("GPL-3.0-only", None),
            ("MIT AND GPL-3.0-only", None),
            ("Apache-2.0 WITH LLVM-exception", None),
            ("MPL-2.0 OR (MIT AND LGPL-2.1-only)", None),
        ]:
            self.assertEqual(third_party.choose(expression), want, expression)


class Refuse(unittest.TestCase):
    def refused(self, *packages):
        twice = [package(n, v) for n in third_party.TWICE for v in ("1.0.0", "2.0.0")]
        with contextlib.redirect_stderr(io.StringIO()), self.assertRaises(SystemExit) as e:
            third_party.refuse([*packages, *twice])
        return str(e.exception)

    def test_each_rule(self):
        self.assertIn("copyleft 1.0.0: licence 'GPL-3.0-only' is none of", self.refused(package("copyleft", licence="GPL-3.0-only")))
        self.assertIn("none 1.0.0: licence None is none of", self.refused(package("none", licence=None)))
        self.assertIn("mine 1.0.0: comes from git+x", self.refused(package("mine", source="git+x")))
        self.assertIn("a: in 2 versions", self.refused(package("a"), package("a", "2.0.0")))

    def test_what_keeps_the_rules(self):
        third_party.refuse([package(n, v) for n in third_party.TWICE for v in ("1.0.0", "2.0.0")])
        with self.assertRaises(SystemExit):
            third_party.refuse([package(n) for n in third_party.TWICE])


if __name__ == "__main__":
    unittest.main()
