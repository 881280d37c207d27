"""scripts/shards.py: round trips, what it refuses, and damage of every byte."""

import contextlib
import io
import json
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

try:
    import shards
except ImportError as e:
    raise unittest.SkipTest(f"shards.py needs numpy: {e}")

META = {
    "vocab_size": 100, "eos_id": 2, "bos_rule": 1, "tokenizer_sha256": "07" * 32, "template_sha256": "00" * 32,
    "max_length": 1024, "truncation": 1, "boundary": 1,
}


def response(tokens, score=None, label=None, row=0, index=0):
    return {"tokens": tokens, "score": score, "label": label, "row": row, "index": index}


GROUPS = [
    {"prompt": [5, 6, 7], "responses": [response([8, 2], 1.5), response([9, 9, 2], label=True, index=1)], "pairs": [[0, 1, 1.0]]},
    {"prompt": [], "responses": [response([11], -0.0, False, row=1 << 40)], "pairs": []},
]


class ShardsTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.path = self.folder / "train-00000.pref"

    def write(self, groups=GROUPS, **meta):
        return shards.write(self.path, META | meta, groups)

    def check(self):
        shards.Shard(self.path).verify()

    def test_what_was_written_is_read(self):
        for vocab_size, eos_id in ((100, 2), (70_000, None)):
            digest = self.write(vocab_size=vocab_size, eos_id=eos_id)
            shard = shards.Shard(self.path)
            shard.verify()
            self.assertEqual(shard.meta, META | {"vocab_size": vocab_size, "eos_id": eos_id})
            self.assertEqual(list(shard), GROUPS)
            self.assertEqual(shard.header["content_sha256"].hex(), digest)
        self.write([])
        self.check()

    def test_the_bytes_of_a_release_are_kept(self):
        self.assertEqual(self.write(), "33dddd057568b867b787caf759fe6ff282f8b6a7e98f536de8051b4cc780c7f3")
        self.assertEqual(self.path.stat().st_size, 384 + 24 + 2 * 40 + 3 * 32 + 12)

    def test_every_flipped_byte_and_every_length_is_refused(self):
        self.write()
        good = self.path.read_bytes()
        for at in range(len(good)):
            bad = bytearray(good)
            bad[at] ^= 0x81
            self.path.write_bytes(bad)
            with self.assertRaises(shards.ShardError, msg=f"byte {at}"):
                self.check()
        for length in [*range(len(good)), len(good) + 1]:
            self.path.write_bytes((good + b"\0")[:length])
            with self.assertRaises(shards.ShardError, msg=f"length {length}"):
                self.check()

    def test_what_a_shard_cannot_hold_is_refused(self):
        good = GROUPS[0]
        for change, why in (
            ({"responses": []}, "no response"),
            ({"responses": [response([])]}, "response 0 is empty"),
            ({"prompt": [100]}, "token id"),
            ({"responses": [response([1], float("nan"))], "pairs": []}, "score"),
            ({"pairs": [[0, 2, 1.0]]}, "impossible"),
            ({"pairs": [[1, 1, 1.0]]}, "impossible"),
            ({"pairs": [[0, 1, 0.0]]}, "impossible"),
        ):
            with self.assertRaisesRegex(shards.ShardError, f"group 1 cannot be stored: .*{why}"):
                self.write([good, good | change])
        self.assertEqual(list(self.folder.iterdir()), [], "nothing is left behind")

    def test_the_command_line(self):
        self.write()
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            self.assertEqual(shards.main(["show", str(self.path), "--groups", "1"]), 0)
            self.assertEqual(shards.main(["verify", str(self.path)]), 0)
        lines = out.getvalue().splitlines()
        self.assertEqual([json.loads(line) for line in lines[:2]], [META, GROUPS[0]])
        self.assertIn("2 groups, 1 pairs, 9 tokens: sound", lines[2])
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            self.assertEqual(shards.main(["verify", str(self.folder / "none.pref")]), 2)
        self.assertIn("none.pref", err.getvalue())


if __name__ == "__main__":
    unittest.main()
