"""Read a GGUF file (llama.cpp's model format) with numpy alone: metadata, tensor table, dequantised tensors.

Usage:   from gguf import GgufFile          (a module; it has no command line)
Input:   a GGUF file, version 2 or 3, little-endian; tensors in F32, F16, Q8_0 or Q4_1.
Output:  `metadata` (a dict) and `tensor(name)` (a float32 array, slowest dimension first).
Needs:   numpy.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct

import numpy as np

# Metadata value types: id -> struct format. 8 is a string, 9 an array.
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9

# Tensor types: id -> (name, elements per block, bytes per block).
TENSOR_TYPES = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 3: ("Q4_1", 32, 20), 8: ("Q8_0", 32, 34)}


class GgufError(ValueError):
    """The file is not a GGUF file this module can read; the message says why."""


class GgufFile:
    """A GGUF file: `metadata`, `names` and `tensor(name)`."""

    def __init__(self, path):
        self.path = path
        with open(path, "rb") as file:
            try:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:
                raise GgufError(f"{path}: the file is empty") from None
        self._at = 0
        try:
            self._read_header()
        except struct.error:
            raise GgufError(f"{path}: ends inside the header, at byte {self._at}") from None

    def _read_header(self):
        if self._data[:4] != b"GGUF":
            raise GgufError(f"{self.path}: does not begin with 'GGUF'")
        self._at = 4
        version, tensor_count, pair_count = self._unpack("<IQQ")
        if version not in (2, 3):
            raise GgufError(f"{self.path}: GGUF version {version}; only 2 and 3 are read")
        self.metadata = {}
        for _ in range(pair_count):
            key = self._string()
            self.metadata[key] = self._value(self._unpack("<I")[0])
        self._tensors = {}
        for _ in range(tensor_count):
            name = self._string()
            (dims,) = self._unpack("<I")
            shape = self._unpack(f"<{dims}Q")
            type_id, offset = self._unpack("<IQ")
            self._tensors[name] = (type_id, shape[::-1], offset)
        alignment = self.metadata.get("general.alignment", 32)
        self._base = -(-self._at // alignment) * alignment

    @property
    def names(self):
        """Names of all tensors, in file order."""
        return list(self._tensors)

    def tensor(self, name):
        """The tensor as float32, shaped with the slowest dimension first (GGUF stores the fastest first)."""
        type_id, shape, offset = self._tensors[name]
        if type_id not in TENSOR_TYPES:
            raise GgufError(f"{self.path}: tensor {name} has type {type_id}; only F32, F16, Q4_1 and Q8_0 are read")
        kind, block, size = TENSOR_TYPES[type_id]
        count = int(np.prod(shape))
        start, length = self._base + offset, count // block * size
        if count % block or start + length > len(self._data):
            raise GgufError(f"{self.path}: tensor {name} does not fit into the file")
        raw = np.frombuffer(self._data, np.uint8, length, start)
        return dequantise(kind, raw).reshape(shape)

    def _unpack(self, fmt):
        values = struct.unpack_from(fmt, self._data, self._at)
        self._at += struct.calcsize(fmt)
        return values

    def _string(self):
        (length,) = self._unpack("<Q")
        text = self._data[self._at : self._at + length]
        if len(text) != length:
            raise GgufError(f"{self.path}: ends inside a string, at byte {self._at}")
        self._at += length
        return text.decode("utf-8")

    def _value(self, kind):
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            item, count = self._unpack("<IQ")
            return [self._value(item) for _ in range(count)]
        if kind not in SCALARS:
            raise GgufError(f"{self.path}: metadata type {kind} at byte {self._at} is unknown")
        return self._unpack(SCALARS[kind])[0]


def dequantise(kind, raw):
    """Raw little-endian bytes of one tensor -> a flat float32 array."""
    if kind in ("F32", "F16"):
        return raw.view("<f4" if kind == "F32" else "<f2").astype(np.float32)
    if kind == "Q8_0":  # f16 scale, 32 x int8
        blocks = raw.reshape(-1, 34)
        scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
        return (scale * blocks[:, 2:].view(np.int8)).reshape(-1)
    # Q4_1: f16 scale, f16 minimum, 16 bytes holding 32 nibbles, the low nibbles first
    blocks = raw.reshape(-1, 20)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    minimum = blocks[:, 2:4].copy().view("<f2").astype(np.float32)
    nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return (scale * nibbles + minimum).reshape(-1)
