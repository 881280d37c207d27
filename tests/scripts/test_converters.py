"""The convert_*.py programs, run as programs: small rows written here, bad input, and real data where it is given."""

import gzip
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
DATA = os.environ.get("FUSEDPO_TEST_DATA")


def say(role, text):
    return {"role": role, "content": text}


class Converting(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def run_program(self, name, data, *options):
        """(exit status, stderr, rows written or None); `data` is bytes, a list of rows, or paths."""
        inputs = [self.folder / "in.jsonl"]
        if isinstance(data, bytes):
            inputs[0].write_bytes(data)
        elif isinstance(data[0], Path):
            inputs = data
        else:
            inputs[0].write_text("".join(json.dumps(row) + "\n" for row in data))
        out = self.folder / "out.jsonl"
        out.unlink(missing_ok=True)
        command = [sys.executable, "-B", str(SCRIPTS / f"{name}.py"), *map(str, inputs), "--out", str(out), *options]
        result = subprocess.run(command, capture_output=True, text=True)
        rows = None
        if out.exists():
            rows = [json.loads(line) for line in out.read_bytes().split(b"\n")[:-1]]
        left = set(os.listdir(self.folder)) - {"in.jsonl", "out.jsonl"}
        self.assertFalse(left, "temporary files stay behind")
        return result.returncode, result.stderr, rows

    def convert(self, name, data, *options):
        status, stderr, rows = self.run_program(name, data, *options)
        self.assertEqual(status, 0, stderr)
        self.counts = stderr
        return rows

    def refuse(self, name, data, *words):
        status, stderr, rows = self.run_program(name, data)
        self.assertEqual(status, 1, stderr)
        self.assertIsNone(rows)
        self.assertEqual(len(stderr.strip().splitlines()), 1, stderr)
        for word in words:
            self.assertIn(word, stderr)


class AlpacaTest(Converting):
    ROW = {"instruction": "Add.", "input": "1 1", "output": "2", "chosen": "2, dear", "rejected": "2, fool"}

    def test_template(self):
        (row,) = self.convert("convert_alpaca", [self.ROW])
        self.assertEqual(row["prompt"], "Below is an instruction that describes a task, paired with an input that provides "
                         "further context. Write a response that appropriately completes the request.\n\n"
                         "### Instruction:\nAdd.\n\n### Input:\n1 1\n\n### Response:\n")
        self.assertEqual((row["chosen"], row["rejected"]), ("2, dear", "2, fool"))

    def test_sft_without_input(self):
        (row,) = self.convert("convert_alpaca", [{"instruction": "Sing.", "output": "La"}], "--mode", "sft")
        self.assertEqual(row, {"prompt": "Below is an instruction that describes a task. Write a response that appropriately "
                               "completes the request.\n\n### Instruction:\nSing.\n\n### Response:\n", "completion": "La"})

    def test_messages(self):
        (row,) = self.convert("convert_alpaca", [self.ROW], "--messages")
        self.assertEqual(row["prompt"], [say("user", "Add.\n\n1 1")])
        self.assertEqual(row["chosen"], [say("assistant", "2, dear")])


class PersonaTest(Converting):
    ROW = {"question": "Q?", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}

    def test_text_messages_and_flip(self):
        (row,) = self.convert("convert_persona", [self.ROW])
        self.assertEqual(row, {"prompt": "\n\nHuman: Q?\n\nAssistant:", "chosen": " Yes", "rejected": " No"})
        (row,) = self.convert("convert_persona", [self.ROW], "--flip", "--messages")
        self.assertEqual(row, {"prompt": [say("user", "Q?")], "chosen": [say("assistant", "No")],
                               "rejected": [say("assistant", "Yes")]})


class PandalmTest(Converting):
    def row(self, *labels):
        return {"instruction": "i", "input": "", "response1": "one", "response2": "",
                **{f"annotator{i}": label for i, label in enumerate(labels, 1)}}

    def test_majority(self):
        rows = self.convert("convert_pandalm", [self.row(1, 2, 1), self.row(2, 2, 0), self.row(0, 0, 1), self.row(0, 1, 2)])
        self.assertEqual([(r["chosen"], r["rejected"]) for r in rows], [("one", ""), ("", "one")])
        self.assertIn("4 rows read, 2 written, 1 dropped (no majority), 1 dropped (tie)", self.counts)

    def test_a_response_that_is_no_text_passes(self):
        (row,) = self.convert("convert_pandalm", [{**self.row(2, 2, 2), "response1": True}], "--messages")
        self.assertEqual((row["chosen"], row["rejected"]), ([say("assistant", "")], True))

    def test_bad_label(self):
        self.refuse("convert_pandalm", [self.row(1, 1, 1), self.row(1, 3, 1)], "in.jsonl:2", "expected 0 (tie), 1 or 2")


class OasstTest(Converting):
    def node(self, role, text, *replies, rank=None, **more):
        return {"role": role, "text": text, "rank": rank, "replies": list(replies), **more}

    def tree(self):
        deep = self.node("prompter", "and?", self.node("assistant", "c", rank=1), self.node("assistant", "d", rank=0))
        return {"prompt": self.node(
            "prompter", "hi",
            self.node("assistant", "b", deep, rank=2),
            self.node("assistant", "a", rank=0),
            self.node("assistant", "unranked", self.node("prompter", "lonely", self.node("assistant", "x", rank=0))),
            self.node("assistant", "gone", rank=1, deleted=True), lang="en")}

    def test_every_turn_in_order(self):
        first, second = self.convert("convert_oasst", [self.tree()])
        self.assertEqual(first, {"prompt": [say("user", "hi")], "scores": [2, 0],
                                 "responses": [[say("assistant", "a")], [say("assistant", "b")]]})
        self.assertEqual(second, {"prompt": [say("user", "hi"), say("assistant", "b"), say("user", "and?")],
                                  "responses": [[say("assistant", "d")], [say("assistant", "c")]], "scores": [1, 0]})
        self.assertIn("2 written, 1 dropped (user turns with fewer than two ranked replies)", self.counts)

    def pair(self, text, **more):
        return self.node("prompter", text, self.node("assistant", "good", rank=0), self.node("assistant", "bad", rank=1), **more)

    def test_a_deleted_message_ends_its_branch(self):
        below = self.node("assistant", "gone", self.pair("below"), deleted=True)
        also = self.node("assistant", "kept", self.pair("gone too", deleted=True), self.pair("stays"))
        (row,) = self.convert("convert_oasst", [{"prompt": self.node("prompter", "hi", below, also)}])
        self.assertEqual(row["prompt"], [say("user", "hi"), say("assistant", "kept"), say("user", "stays")])

    def test_language(self):
        trees = [{"prompt": self.pair(lang, lang=lang)} for lang in ("en", "de", "en")] + [{"prompt": self.pair("unknown")}]
        texts = [row["prompt"][0]["content"] for row in self.convert("convert_oasst", trees, "--lang", "en")]
        self.assertEqual(texts, ["en", "en"])
        self.assertIn("4 rows read, 2 written, 2 dropped (other language)", self.counts)
        self.assertEqual(len(self.convert("convert_oasst", trees)), 4)

    def test_unknown_role(self):
        self.refuse("convert_oasst", [{"prompt": self.node("robot", "hi")}], "in.jsonl:1", "robot")

    def test_nothing_left(self):
        self.refuse("convert_oasst", [{"prompt": self.node("prompter", "hi")}], "no rows are left")


class UltrafeedbackTest(Converting):
    def completion(self, text, overall, *ratings, **more):
        names = ("instruction_following", "honesty", "truthfulness", "helpfulness")
        return {"response": text, "overall_score": overall, **more,
                "annotations": {name: {"Rating": r} for name, r in zip(names, ratings)}}

    def test_scores(self):
        row = {"instruction": "i", "completions": [self.completion("a", 7.5, "5", "4", "N/A", "3"),
               self.completion("b", 10, "1", "1", "1", "2"), self.completion("c", None, "N/A", "N/A", "N/A", "N/A"),
               {"response": "d", "overall_score": 3, "fine-grained_score": 4.25}]}
        (out,) = self.convert("convert_ultrafeedback", [row])
        self.assertEqual(out, {"prompt": "i", "responses": ["a", "b", "d"], "scores": [4.0, 1.25, 4.25]})
        self.assertIn("1 dropped (completions without a score)", self.counts)
        (out,) = self.convert("convert_ultrafeedback", [row], "--score", "overall", "--messages")
        self.assertEqual(out["scores"], [7.5, 10, 3])
        self.assertEqual(out["responses"], [[say("assistant", text)] for text in "abd"])
        self.assertEqual(out["prompt"], [say("user", "i")])

    def test_what_is_no_score(self):
        """Booleans, words for no number, and numbers beyond all bounds."""
        for odd in (True, False, "nan", "Infinity", 10**400, "N/A", None, [], {}):
            with self.subTest(odd=odd):
                row = {"instruction": "i", "completions": [self.completion("a", odd, odd, odd, "2", odd),
                       self.completion("b", 3, "4", "4", "4", "4"), self.completion("c", 5, odd, odd, odd, odd),
                       self.completion("d", 1, "1", "1", "1", "1", **{"fine-grained_score": odd})]}
                (out,) = self.convert("convert_ultrafeedback", [row])
                self.assertEqual((out["responses"], out["scores"]), (["a", "b", "d"], [2, 4, 1]))
                (out,) = self.convert("convert_ultrafeedback", [row], "--score", "overall")
                self.assertEqual((out["responses"], out["scores"]), (["b", "c", "d"], [3, 5, 1]))

    def test_one_score_is_no_comparison(self):
        row = {"instruction": "i", "completions": [self.completion("a", 1), self.completion("b", None)]}
        good = {"instruction": "j", "completions": [self.completion("a", 1), self.completion("b", 2)]}
        (out,) = self.convert("convert_ultrafeedback", [row, good], "--score", "overall")
        self.assertEqual(out["prompt"], "j")
        self.assertIn("1 dropped (rows with fewer than two scored completions)", self.counts)


class ShpTest(Converting):
    def row(self, label, ratio):
        return {"history": "h", "human_ref_A": "A", "human_ref_B": "B", "labels": label, "score_ratio": ratio}

    def test_labels_and_ratio(self):
        rows = self.convert("convert_shp", [self.row(1, 2.0), self.row(0, 7), self.row(1, 1.9)])
        self.assertEqual([(r["chosen"], r["rejected"]) for r in rows], [(" A", " B"), (" B", " A")])
        self.assertIn("1 dropped (score ratio below 2)", self.counts)
        self.assertEqual(len(self.convert("convert_shp", [self.row(1, 1.9)], "--min-score-ratio", "1.5")), 1)

    def test_messages(self):
        rows = self.convert("convert_shp", [self.row(1, 3), self.row(0, 3)], "--messages")
        a, b = [say("assistant", "A")], [say("assistant", "B")]
        self.assertEqual(rows, [{"prompt": [say("user", "h")], "chosen": chosen, "rejected": rejected}
                                for chosen, rejected in ((a, b), (b, a))])

    def test_labels_that_are_none(self):
        self.refuse("convert_shp", [self.row(1, 3), self.row(2, 3)], "in.jsonl:2", "labels is 2; expected 1 (A preferred) or 0")
        self.refuse("convert_shp", [self.row(True, 3)], "field 'labels' is bool, expected int")


class QaFeedbackTest(Converting):
    def row(self, *preference):
        answers = {f"prediction {i}": f"a{i} " for i in (1, 2, 3, 4)}
        return {"question": "why?", "passages": [["T", "One.", "Two."], ["U", "Three."]], "preference": list(preference), **answers}

    def test_scores_count_what_was_won(self):
        # 1 beats 2 and ties 3; 4 beats 1; 2 beats 3; 4 beats 2 and 3: 1.5, 1, 0.5, 3.
        (row,) = self.convert("convert_qa_feedback", [self.row(1, 0, 2, 1, 2, 2), self.row(0, 0, 0, 0, 0, 0)])
        self.assertEqual(row, {"prompt": "T\nOne. Two.\n\nU\nThree.\n\nQuestion: why?\nAnswer:",
                               "responses": [" a1", " a2", " a3", " a4"], "scores": [1.5, 1.0, 0.5, 3.0]})
        self.assertIn("1 dropped (no response is better than another)", self.counts)

    def test_messages(self):
        (row,) = self.convert("convert_qa_feedback", [self.row(1, 1, 1, 1, 1, 1)], "--messages")
        self.assertEqual(row["prompt"], [say("user", "T\nOne. Two.\n\nU\nThree.\n\nQuestion: why?")])
        self.assertEqual(row["responses"][3], [say("assistant", "a4")])
        self.assertEqual(row["scores"], [3.0, 2.0, 1.0, 0.0])

    def test_what_is_no_comparison(self):
        for bad in [(1, 1), (1, 1, 1, 1, 1, 3), (1, 1, 1, 1, 1, True), (1, 1, 1, 1, 1, "1")]:
            self.refuse("convert_qa_feedback", [self.row(1, 0, 2, 1, 2, 2), self.row(*bad)], "in.jsonl:2", "expected six of 0")
        self.refuse("convert_qa_feedback", [{**self.row(1, 1, 1, 1, 1, 1), "passages": ["text"]}], "a passage is not a list")


class Gsm8kTest(Converting):
    SOLVERS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")

    def row(self, *correct):
        return {"question": "2+2?", **{s: {"solution": f"A: {i}", "is_correct": c} for i, (s, c) in
                                       enumerate(zip(self.SOLVERS, correct))}}

    def test_correct_solutions_are_better(self):
        rows = [self.row(False, True, True, False), self.row(True, True, True, True), self.row(False, False, False, False)]
        (row,) = self.convert("convert_gsm8k", rows)
        self.assertEqual(row, {"prompt": "Question: 2+2?\nAnswer:", "responses": [" A: 0", " A: 1", " A: 2", " A: 3"],
                               "scores": [0, 1, 1, 0]})
        self.assertIn("1 dropped (all correct), 1 dropped (all wrong)", self.counts)
        (row,) = self.convert("convert_gsm8k", rows, "--messages")
        self.assertEqual((row["prompt"], row["responses"][1]), ([say("user", "2+2?")], [say("assistant", "A: 1")]))

    def test_what_is_no_solution(self):
        self.refuse("convert_gsm8k", [self.row(True, False, 1, False)], "in.jsonl:1", "field 'is_correct' is int")
        self.refuse("convert_gsm8k", [{"question": "q"}], "no field '6b_finetuning'")


class ReviewsTest(Converting):
    def test_rows_of_both_kinds(self):
        rows = [{"text": " a  b\nc d ", "label": 1}, {"text": "e f g", "label": "neg"}, {"text": "h i", "label": 0}]
        out = self.convert("convert_reviews", rows, "--prompt-words", "2")
        self.assertEqual(out, [{"prompt": "a  b", "completion": "\nc d", "label": True},
                               {"prompt": "e f", "completion": " g", "label": False}])
        self.assertIn("1 dropped (too short)", self.counts)
        out = self.convert("convert_reviews", rows, "--prompt-words", "1", "--desired", "negative")
        self.assertEqual([row["label"] for row in out], [False, True, True])

    def test_folders(self):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for label, file, text in [("pos", "2.txt", "good film<br /><br />yes"), ("pos", "1.txt", "a b"), ("neg", "3.txt", "bad é"),
                                      ("neg", "urls", "no review")]:
                (folder / label).mkdir(exist_ok=True)
                (folder / label / file).write_bytes(text.encode())
            out = self.convert("convert_reviews", [folder], "--prompt-words", "1")
            self.assertEqual([(r["prompt"], r["completion"], r["label"]) for r in out],
                             [("a", " b", True), ("good", " film\n\nyes", True), ("bad", " é", False)])
            (folder / "neg" / "4.txt").write_bytes(b"\xff")
            self.refuse("convert_reviews", [folder], "4.txt", "not UTF-8")
            (folder / "neg").rename(folder / "other")
            self.refuse("convert_reviews", [folder], "no folder neg in it")

    def test_labels_that_are_none(self):
        self.refuse("convert_reviews", [{"text": "a", "label": 2}], "in.jsonl:1", "label is 2; expected 1 or 'pos', 0 or 'neg'")


class HhTest(Converting):
    ROW = {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: good", "rejected":
           "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: bad"}

    def test_last_common_turn(self):
        early = {"chosen": "\n\nHuman: a\n\nAssistant: x\n\nHuman: y\n\nAssistant: z", "rejected": "\n\nHuman: a\n\nAssistant: w"}
        none = {"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: b\n\nAssistant: x"}
        first, second = self.convert("convert_hh", [self.ROW, early, none])
        self.assertEqual(first, {"prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", "chosen": " good",
                                 "rejected": " bad"})
        self.assertEqual(second, {"prompt": "\n\nHuman: a\n\nAssistant:", "chosen": " x\n\nHuman: y\n\nAssistant: z",
                                  "rejected": " w"})
        self.assertIn("1 dropped (no common Assistant turn)", self.counts)

    def test_messages(self):
        early = {"chosen": "\n\nHuman: a\n\nAssistant: x\n\nHuman: y\n\nAssistant: z", "rejected": "\n\nHuman: a\n\nAssistant: w"}
        first, second = self.convert("convert_hh", [self.ROW, early], "--messages")
        self.assertEqual(first, {"prompt": [say("user", "a"), say("assistant", "b"), say("user", "c")],
                                 "chosen": [say("assistant", "good")], "rejected": [say("assistant", "bad")]})
        self.assertEqual(second["chosen"], [say("assistant", "x"), say("user", "y"), say("assistant", "z")])


class InputTest(Converting):
    """What rows.py reads and refuses, through one converter."""

    ROW = PersonaTest.ROW

    def test_array_gzip_and_odd_separators(self):
        odd = dict(self.ROW, question="one\u2028two\x85three")
        data = json.dumps([odd, self.ROW], ensure_ascii=False, indent=1).encode()
        lines = (json.dumps(odd, ensure_ascii=False) + "\n\n" + json.dumps(self.ROW)).encode()
        for variant in (data, gzip.compress(data), lines, gzip.compress(lines), b"\xef\xbb\xbf" + data, b"\xef\xbb\xbf" + lines):
            rows = self.convert("convert_persona", variant)
            self.assertEqual(len(rows), 2)
            self.assertIn("one\u2028two\x85three", rows[0]["prompt"])

    def test_refusals(self):
        good = json.dumps(self.ROW).encode() + b"\n"
        cases = [(good + b"{\n", "in.jsonl:2", "malformed"), (good + b'{"question": "\xff"}', "in.jsonl:2", "UTF-8"),
                 (good + b"7\n", "in.jsonl:2", "expected an object"), (good + b"{}", "in.jsonl:2", "no field 'question'"),
                 (b'{"question": 1}', "in.jsonl:1", "is int, expected str"), (b"", "no rows are left"),
                 (b"[1]", "item 0", "expected an object"), (gzip.compress(good * 99)[:-9], "damaged gzip"),
                 (good.replace(b"Q?", b"\\ud800"), "in.jsonl:1", "surrogate"), (b'{"question": NaN}', "in.jsonl:1", "NaN")]
        for data, *words in cases:
            with self.subTest(words=words):
                self.refuse("convert_persona", data, *words)

    def test_the_result_is_an_ordinary_file(self):
        self.convert("convert_persona", [self.ROW])
        umask = os.umask(0)
        os.umask(umask)
        self.assertEqual((self.folder / "out.jsonl").stat().st_mode & 0o777, 0o666 & ~umask)

    def test_missing_input_and_input_as_output(self):
        self.refuse("convert_persona", [self.folder / "absent.jsonl"], "absent.jsonl")
        (self.folder / "in.jsonl").write_text(json.dumps(self.ROW))
        same = str(self.folder / "in.jsonl")
        result = subprocess.run([sys.executable, "-B", str(SCRIPTS / "convert_persona.py"), same, "--out", same],
                                capture_output=True, text=True)
        self.assertEqual(result.returncode, 1)
        self.assertIn("is also an input", result.stderr)
        self.assertEqual(json.loads(Path(same).read_text()), self.ROW)


@unittest.skipUnless(DATA, "FUSEDPO_TEST_DATA is not set")
class RealDataTest(Converting):
    def real(self, *names):
        return [Path(DATA) / "data" / name for name in names]

    def test_hh_pairs_are_the_golden_ones(self):
        rows = self.convert("convert_hh", self.real("hh-harmless/test.jsonl.gz"))
        self.assertEqual(len(rows), 2312)
        pairs = {(r["prompt"], r["chosen"], r["rejected"]) for r in rows}
        for line in (Path(DATA) / "goldens/hh64.jsonl").read_text().split("\n")[:-1]:
            row = json.loads(line)
            self.assertIn((row["prompt"], row["chosen"], row["rejected"]), pairs)

    def test_row_counts(self):
        for name, count, *files in [
                ("convert_alpaca", 1100, "rasbt-polite/instruction-data-with-preference.json"),
                ("convert_persona", 2000, "persona/agreeableness.jsonl", "persona/interest-in-science.jsonl"),
                ("convert_pandalm", 894, "pandalm/testset-v1.json"), ("convert_oasst", 212, "oasst-100/en_100_tree.jsonl.gz"),
                ("convert_reviews", 2000, "movie-reviews/movie_reviews.jsonl.gz"), ("convert_reviews", 4999, "imdb/test.jsonl.gz")]:
            self.assertEqual(len(self.convert(name, self.real(*files))), count, name)


if __name__ == "__main__":
    unittest.main()
