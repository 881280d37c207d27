"""Reads pair ledgers (RUN/ledger.bin) with numpy alone: the twin of src/train/ledger/.

The format is docs/ledger.md. As a module: `Ledger(path)`. As a program, FILE being a ledger or the folder of its run:

    python ledger.py show FILE [--epoch E] [--records N]   header, then records, as JSON lines
    python ledger.py verify FILE                           header and every record's pair, step and epoch
"""

import argparse
import json
import os
import struct
import sys
import zlib

import numpy as np

MAGIC = b"\x89LEDG\r\n\x1a"
VERSION = 1
HEADER_LEN = 128
REFERENCE = 1
HEADER = struct.Struct("<8s4IQ32s60sI")
RECORD = np.dtype([
    ("pair", "<u8"), ("step", "<u4"), ("epoch", "<u4"),
    ("chosen", "<f8"), ("rejected", "<f8"), ("ref_chosen", "<f8"), ("ref_rejected", "<f8"),
    ("margin", "<f4"), ("loss", "<f4"), ("coef_chosen", "<f4"), ("coef_rejected", "<f4"),
])
assert HEADER.size == HEADER_LEN and RECORD.itemsize == 64


class LedgerError(ValueError):
    """What is wrong with a file, in one line."""


class Ledger:
    """A ledger, memory-mapped: up to its last whole record. Opening checks the header, and every record's numbers.

    `num_pairs`, `data_sha256` (hexadecimal), `reference` (whether the loss reads one); `records`, a structured array of RECORD.
    """

    def __init__(self, path):
        self.path = path = os.path.join(path, "ledger.bin") if os.path.isdir(path) else path
        with open(path, "rb") as f:
            raw = f.read(HEADER_LEN)
        if len(raw) < HEADER_LEN:
            self.fail(f"is no ledger: {len(raw)} bytes, a header alone has {HEADER_LEN}")
        magic, version, header_len, record_len, flags, self.num_pairs, sha, reserved, crc = HEADER.unpack(raw)
        if magic != MAGIC:
            self.fail("is no ledger (its first bytes differ)")
        if version != VERSION:
            self.fail(f"is of version {version}, this program reads {VERSION}")
        sound = (header_len, record_len) == (HEADER_LEN, RECORD.itemsize) and flags <= REFERENCE and not any(reserved)
        if zlib.crc32(raw[:-4]) != crc or not sound:
            self.fail("has a damaged header")
        self.data_sha256, self.reference = sha.hex(), bool(flags & REFERENCE)
        count = (os.path.getsize(path) - HEADER_LEN) // RECORD.itemsize
        self.records = np.memmap(path, RECORD, "r", HEADER_LEN, (count,)) if count else np.zeros(0, RECORD)
        self._verify()

    def fail(self, why):
        raise LedgerError(f"{self.path}: {why}")

    def _verify(self):
        r = self.records
        bad = (r["pair"] >= self.num_pairs) | (r["step"] == 0)
        for name in ("step", "epoch"):
            bad[1:] |= r[name][1:] < r[name][:-1]
        if bad.any():
            i = int(np.argmax(bad))
            self.fail(f"is damaged: record {i} is of pair {r['pair'][i]} at step {r['step'][i]} of epoch {r['epoch'][i]}")

    def epoch(self, epoch):
        """The records of an epoch."""
        return self.records[self.records["epoch"] == epoch]

    def header(self):
        """What the header says, as JSON has it."""
        return {"num_pairs": self.num_pairs, "data_sha256": self.data_sha256, "reference": self.reference}


def main(argv=None):
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["show", "verify"])
    parser.add_argument("file", help="ledger.bin, or the folder that it is in")
    parser.add_argument("--epoch", type=int, help="show only the records of one epoch, counted from 0")
    parser.add_argument("--records", type=int, help="show only the first N of them")
    args = parser.parse_args(argv)
    try:
        ledger = Ledger(args.file)
        if args.command == "verify":
            epochs = len(np.unique(ledger.records["epoch"]))
            print(f"{ledger.path}: {len(ledger.records)} records of {ledger.num_pairs} pairs, {epochs} epochs: sound")
            return 0
        print(json.dumps(ledger.header()))
        records = ledger.records if args.epoch is None else ledger.epoch(args.epoch)
        for record in records[: args.records]:
            print(json.dumps(dict(zip(RECORD.names, record.tolist()))))
        return 0
    except (LedgerError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
