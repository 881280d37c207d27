"""scripts/mutants.py on toy trees: what applies, what it writes, and every verdict, with a cargo of a few lines."""

import contextlib
import io
import os
import stat
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

try:
    import mutants
except ImportError as e:
    raise unittest.SkipTest(f"mutants.py needs Python 3.11: {e}")

LIST = """
in = ["src/**/*.rs"]
[[mutant]]
name = "seen"
old = "a + b"
new = "a - b"
tests = ["sums"]
[[mutant]]
name = "unseen"
old = "x * «2»"
new = "3"
tests = ["sums"]
[[mutant]]
name = "left out"
old = "log(x);"
new = ""
form = "statement"
tests = ["sums"]
"""
SOURCE = "fn f(a, b) { a\n    + b }\nfn g(x) { log(x); x * 2 }\n"

# Builds "programs" that pass unless fault 1 is planted; complains about any switch in a line with the word `const`.
CARGO = """#!{python}
import json, os, pathlib, sys
source = pathlib.Path("src/lib.rs").read_text()
for i, line in enumerate(source.split("\\n"), 1):
    if "const" in line and "crate::mutant" in line or "nonsense" in line and "crate::mutant" not in line:
        print(json.dumps({{"reason": "compiler-message", "message": {{"level": "error", "message": "not here", "spans": [
            {{"file_name": "src/lib.rs", "line_start": i, "line_end": i}}]}}}}))
        sys.exit(101)
program = pathlib.Path(os.environ["CARGO_TARGET_DIR"], "sums")
program.parent.mkdir(parents=True, exist_ok=True)
program.write_text('''#!{python}
import os, sys
source = {{}}
bad = os.environ["FUSEDPO_MUTANT"] == "1" or "a * b" in source
print("test adds ... FAILED" if bad else "test result: ok. 1 passed")
sys.exit(bad)
'''.format(repr(source)))
program.chmod(0o755)
print(json.dumps({{"reason": "compiler-artifact", "executable": str(program), "profile": {{"test": True}},
                  "target": {{"kind": ["test"], "name": "sums"}}}}))
"""


class Toy(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name).resolve()
        self.tree = self.folder / "tree"
        self.write("src/lib.rs", SOURCE)
        cargo = self.folder / "bin/cargo"
        cargo.parent.mkdir()
        cargo.write_text(CARGO.format(python=sys.executable))
        cargo.chmod(cargo.stat().st_mode | stat.S_IXUSR)
        path = os.environ["PATH"]
        os.environ["PATH"] = f"{cargo.parent}{os.pathsep}{path}"
        self.addCleanup(os.environ.__setitem__, "PATH", path)

    def write(self, name, text):
        path = self.tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def read(self, text):
        path = self.folder / "list.toml"
        path.write_text(text)
        return mutants.read_lists([path])

    def run_list(self, text):
        """Verdicts by name, and what was printed."""
        all_of_it = self.read(text)
        builder = mutants.Builder(self.tree, self.folder / "target", 20, "1")
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            mutants.run(all_of_it, builder, 2)
        return {m.name: m.verdict for m in all_of_it}, said.getvalue()

    def test_verdicts(self):
        got, said = self.run_list(LIST)
        self.assertEqual(got, {"seen": "killed", "unseen": "survived", "left out": "survived"})
        self.assertIn("killed         seen  [sums: adds]", said)

    def test_switches(self):
        all_of_it = self.read(LIST)
        texts = mutants.locate(all_of_it, self.tree)
        got, whole = mutants.render(texts["src/lib.rs"], all_of_it)
        self.assertEqual(len(whole), 3)
        self.assertEqual(got, "fn f(a, b) { (if crate::mutant(1) { a - b } else { a\n    + b }) }\n"
                              "fn g(x) { if crate::mutant(3) {  } else { log(x); } x * (if crate::mutant(2) { 3 } else { 2 }) }\n")
        got, _ = mutants.render(texts["src/lib.rs"], all_of_it, forced=all_of_it[0])
        self.assertTrue(got.startswith("fn f(a, b) { a - b }\n"))

    def test_a_fault_inside_another_and_two_of_one_place(self):
        more = LIST + '[[mutant]]\nname = "outer"\nold = "x * 2"\nnew = "1"\ntests = ["sums"]\n' \
                      '[[mutant]]\nname = "twin"\nold = "x * «2»"\nnew = "4"\ntests = ["sums"]\n'
        all_of_it = self.read(more)
        text = mutants.locate(all_of_it, self.tree)["src/lib.rs"]
        got, _ = mutants.render(text, all_of_it)
        inner = "(if crate::mutant(5) { 4 } else { (if crate::mutant(2) { 3 } else { 2 }) })"
        self.assertIn(f"(if crate::mutant(4) {{ 1 }} else {{ x * {inner} }})", got)

    def test_what_does_not_apply_is_told(self):
        self.write("src/other.rs", "fn h(x) { x * 2 }\n")
        got, said = self.run_list(LIST + '[[mutant]]\nname = "gone"\nold = "y"\nnew = "z"\ntests = ["sums"]\n')
        self.assertEqual(got, {"seen": "killed", "unseen": "did not apply", "left out": "survived", "gone": "did not apply"})
        self.assertIn("`old` stands 2 times", said)
        self.assertIn("`old` stands 0 times", said)

    def test_what_cannot_be_switched_gets_a_build_of_its_own(self):
        self.write("src/lib.rs", "const fn f(a, b) { a + b }\nfn g(x) { log(x);\nx * 2 }\n")
        item = '[[mutant]]\nname = "item"\nold = "x * 2"\nnew = "nonsense"\nform = "item"\ntests = ["sums"]\n'
        got, _ = self.run_list(LIST.replace("a - b", "a * b") + item)
        self.assertEqual(got, {"seen": "killed", "unseen": "survived", "left out": "survived", "item": "did not build"})
        self.assertEqual((self.tree / "src/lib.rs").read_text(), "const fn f(a, b) { a + b }\nfn g(x) { log(x);\nx * 2 }\n",
                         "the tree is left as it was")

    def test_other_languages(self):
        self.write("scripts/two.py", "def two():\n    return 2\n")
        self.write("tests/scripts/test_two.py",
                   "import sys, unittest\nsys.path.insert(0, 'scripts')\nsys.dont_write_bytecode = True\nimport two\n"
                   "class T(unittest.TestCase):\n    def test_it(self):\n        self.assertGreater(two.two(), 1)\n")
        fault = '[[mutant]]\nname = "{0}"\nold = "return 2"\nnew = "return {0}"\ntests = ["python test_two"]\n'
        got, _ = self.run_list('in = ["scripts/*.py"]\n' + fault.format(1) + fault.format(3))
        self.assertEqual(got, {"1": "killed", "3": "survived"})

    def test_tests_that_fail_or_do_not_exist_without_a_fault_are_refused(self):
        for test, why in [("python test_none", "no such test|exit code"), ("sums", "adds")]:
            self.write("src/lib.rs", SOURCE if test != "sums" else SOURCE + "fn k() { a * b }\n")
            with self.assertRaisesRegex(SystemExit, f"fails without any fault: .*({why})"):
                self.run_list(LIST.replace('["sums"]', f'["{test}"]'))

    def test_lists_that_cannot_be_used(self):
        for bad in [LIST + LIST.split("]\n", 1)[1], LIST.replace('"sums"', ""), LIST.replace("old =", "odd ="),
                    LIST.replace('"statement"', '"verse"'), LIST.replace('"a - b"', '"a + b"'), "mutant = ["]:
            with self.assertRaises(mutants.ListError):
                self.read(bad)

    def test_the_lists_of_the_project_can_be_read(self):
        self.assertGreater(len(mutants.read_lists(sorted((mutants.ROOT / "tests/mutants").glob("*.toml")))), 50)


if __name__ == "__main__":
    unittest.main()
