"""Reads and writes preference shards with numpy alone: the twin of src/data/shard/, byte for byte.

The format is docs/shard-format.md. As a module: `Shard(path)`, `write(path, meta, groups)`. As a program:

    python shards.py show FILE.pref [--groups N]   header and the first groups, as JSON lines
    python shards.py verify FILE.pref              every checksum, record and token id
    python shards.py write FILE.pref < LINES       the inverse of `show`: a line of meta, then a line per group
"""

import argparse
import hashlib
import json
import os
import struct
import sys
import tempfile
import zlib
from itertools import islice

import numpy as np

MAGIC = b"\x89PREF\r\n\x1a"
VERSION = 1
HEADER_LEN = 384
IDENTITY_LEN = 144  # header bytes that the content hash covers
NO_EOS = 0xFFFFFFFF
HAS_SCORE, HAS_LABEL, DESIRABLE = 1, 2, 4
SECTIONS = ("tokens", "groups", "responses", "pairs")  # in file order
HEADER = struct.Struct("<8s10I4Q32s32s32s" + "QQII" * 4 + "108sI")
HEADER_FIELDS = (
    "magic version header_len token_width vocab_size eos_id bos_rule max_length truncation boundary num_sections "
    "num_groups num_responses num_pairs num_tokens tokenizer_sha256 template_sha256 content_sha256"
).split()
META_FIELDS = (
    "vocab_size", "eos_id", "bos_rule", "tokenizer_sha256", "template_sha256", "max_length", "truncation", "boundary",
)
GROUP = np.dtype([
    ("token_start", "<u8"), ("first_response", "<u8"), ("first_pair", "<u8"),
    ("num_tokens", "<u4"), ("prompt_len", "<u4"), ("num_responses", "<u4"), ("num_pairs", "<u4"),
])
RESPONSE = np.dtype([
    ("token_start", "<u8"), ("row", "<u8"), ("num_tokens", "<u4"), ("index", "<u4"), ("score", "<f4"), ("flags", "<u4"),
])
PAIR = np.dtype([("chosen", "<u4"), ("rejected", "<u4"), ("weight", "<f4")])
assert HEADER.size == HEADER_LEN and (GROUP.itemsize, RESPONSE.itemsize, PAIR.itemsize) == (40, 32, 12)


class ShardError(ValueError):
    """What is wrong with a file, in one line."""


def token_width(vocab_size):
    """Bytes of a token on disk."""
    return 2 if vocab_size <= 1 << 16 else 4


def layout(width, counts):
    """(offset, length) of each section; `counts` in the order of SECTIONS."""
    at, out = HEADER_LEN, []
    for name, count, size in zip(SECTIONS, counts, (width, GROUP.itemsize, RESPONSE.itemsize, PAIR.itemsize)):
        out.append((at, count * size))
        at += count * size
        if name == "tokens":
            at += -at % 8  # the header's length is a multiple of 8
    return out


class Shard:
    """A shard, memory-mapped. Opening checks the header; `verify` checks everything.

    `meta` is a dict of META_FIELDS (hashes in hexadecimal, `eos_id` None where there is none); `groups`, `responses`,
    `pairs` are structured arrays, `tokens` an array of u16 or u32. Do not modify the file while it is open.
    """

    def __init__(self, path):
        self.path = path
        size = os.path.getsize(path)
        with open(path, "rb") as f:
            self.raw_header = f.read(HEADER_LEN)
        if len(self.raw_header) < HEADER_LEN:
            self.fail(f"is not a preference shard: {size} bytes, a header alone has {HEADER_LEN}")
        values = HEADER.unpack(self.raw_header)
        h = self.header = dict(zip(HEADER_FIELDS, values))
        n = len(HEADER_FIELDS)
        self.sections = [values[n + 4 * s : n + 4 * s + 4] for s in range(4)]
        self._check_header(size, values[-2], values[-1])
        data = np.memmap(path, np.uint8, "r")
        view = lambda s, dtype: data[self.sections[s][0] : self.sections[s][0] + self.sections[s][1]].view(dtype)
        self.tokens = view(0, "<u2" if h["token_width"] == 2 else "<u4")
        self.groups, self.responses, self.pairs = view(1, GROUP), view(2, RESPONSE), view(3, PAIR)
        end = self.sections[0][0] + self.sections[0][1]
        if data[end : self.sections[1][0]].any():
            self.fail("the padding after its tokens is not zero")
        self.meta = {name: h[name].hex() if isinstance(h[name], bytes) else h[name] for name in META_FIELDS}
        if self.meta["eos_id"] == NO_EOS:
            self.meta["eos_id"] = None

    def fail(self, why):
        raise ShardError(f"{self.path}: {why}")

    def _check_header(self, size, reserved, crc):
        h = self.header
        if h["magic"] != MAGIC:
            self.fail("is not a preference shard (its first bytes differ)")
        if h["version"] != VERSION:
            self.fail(f"is of format version {h['version']}, this program reads {VERSION}")
        if zlib.crc32(self.raw_header[:-4]) != crc:
            self.fail("the header is damaged (CRC-32 mismatch)")
        counts = [h["num_tokens"], h["num_groups"], h["num_responses"], h["num_pairs"]]
        sound = (
            h["header_len"] == HEADER_LEN
            and h["num_sections"] == 4
            and h["vocab_size"] > 0
            and (h["eos_id"] == NO_EOS or h["eos_id"] < h["vocab_size"])
            and h["token_width"] == token_width(h["vocab_size"])
            and not any(reserved)
            and all(s[3] == 0 for s in self.sections)
            and counts[1] <= counts[2] <= counts[0]
            and [s[:2] for s in self.sections] == layout(h["token_width"], counts)
        )
        if not sound:
            self.fail("the header is inconsistent")
        if size != sum(self.sections[3][:2]):
            self.fail(f"has {size} bytes, its header asks for {sum(self.sections[3][:2])}")

    def group(self, g):
        """Group `g` as `write` takes it."""
        r = self.groups[g]
        start, prompt_len = int(r["token_start"]), int(r["prompt_len"])
        tokens = lambda at, n: self.tokens[at : at + n].tolist()
        return {
            "prompt": tokens(start, prompt_len),
            "responses": [
                {
                    "tokens": tokens(int(x["token_start"]), int(x["num_tokens"])),
                    "score": float(x["score"]) if x["flags"] & HAS_SCORE else None,
                    "label": bool(x["flags"] & DESIRABLE) if x["flags"] & HAS_LABEL else None,
                    "row": int(x["row"]),
                    "index": int(x["index"]),
                }
                for x in self.responses[int(r["first_response"]) :][: int(r["num_responses"])]
            ],
            "pairs": [
                [int(p["chosen"]), int(p["rejected"]), float(p["weight"])]
                for p in self.pairs[int(r["first_pair"]) :][: int(r["num_pairs"])]
            ],
        }

    def __iter__(self):
        return map(self.group, range(len(self.groups)))

    def verify(self):
        """Raises ShardError for the first thing wrong."""
        sha = hashlib.sha256()
        for name, array, (_, _, crc, _) in zip(SECTIONS, (self.tokens, self.groups, self.responses, self.pairs), self.sections):
            raw = array.view(np.uint8)
            sha.update(raw)
            if zlib.crc32(raw) != crc:
                self.fail(f"section {name} is damaged (CRC-32 mismatch)")
        sha.update(self.raw_header[:IDENTITY_LEN])
        if sha.digest() != self.header["content_sha256"]:
            self.fail("its content is not what its header's SHA-256 names")
        self._verify_records()
        if (self.tokens >= self.header["vocab_size"]).any():
            self.fail(f"a token id is not below vocab_size {self.header['vocab_size']}")

    def _verify_records(self):
        g, r, p = self.groups, self.responses, self.pairs
        need = lambda ok, why: None if np.all(ok) else self.fail(why)
        # Tiling: the first starts at 0, each starts where the one before ends, the last ends at the end.
        for start, count, total in (
            ("token_start", "num_tokens", len(self.tokens)),
            ("first_response", "num_responses", len(r)),
            ("first_pair", "num_pairs", len(p)),
        ):
            edges = np.concatenate([[0], np.cumsum(g[count], dtype=np.uint64)]).astype(np.uint64)
            need(g[start] == edges[:-1], f"groups leave a hole or overlap in {start}")
            need(edges[-1] == total, f"groups do not cover all of {total} behind {start}")
        need(g["num_responses"] > 0, "a group has no response")
        need(r["num_tokens"] > 0, "a response is empty")
        if len(g):
            first = g["first_response"].astype(np.int64)
            sums = np.add.reduceat(r["num_tokens"].astype(np.uint64), first)
            need(g["prompt_len"] + sums == g["num_tokens"], "a group's prompt and responses do not fill it")
            before = np.cumsum(r["num_tokens"], dtype=np.uint64) - r["num_tokens"]
            prompts = np.cumsum(g["prompt_len"], dtype=np.uint64)
            start = before + np.repeat(prompts, g["num_responses"])
            need(r["token_start"] == start, "a response does not start where the one before ends")
        need(r["flags"] < 8, "a response has unknown flags")
        need((r["flags"] & DESIRABLE == 0) | (r["flags"] & HAS_LABEL != 0), "a response is desirable without a label")
        bits = np.ascontiguousarray(r["score"]).view("<u4")
        need(np.isfinite(r["score"]) & ((r["flags"] & HAS_SCORE != 0) | (bits == 0)), "a response has a wrong score")
        members = np.repeat(g["num_responses"], g["num_pairs"])
        need((p["chosen"] < members) & (p["rejected"] < members), "a pair is outside of its group")
        need(p["chosen"] != p["rejected"], "a pair has one response on both sides")
        need(np.isfinite(p["weight"]) & (p["weight"] > 0), "a pair's weight is not a positive number")


def write(path, meta, groups):
    """Writes a shard and returns its content hash (hex).

    `meta`: see Shard; `groups`: an iterable of dicts as `Shard.group` returns them. Atomic: a temporary sibling, then a
    rename. Raises ShardError for what a shard cannot represent.
    """
    fail = lambda why: (_ for _ in ()).throw(ShardError(f"{path}: {why}"))
    dtype = "<u2" if token_width(meta["vocab_size"]) == 2 else "<u4"
    tables = ([], [], [])
    counts, sha, token_crc = [0, 0, 0, 0], hashlib.sha256(), 0
    fd, temp = tempfile.mkstemp(prefix=".tmp-", suffix=".part", dir=os.path.dirname(os.path.abspath(path)))
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(bytes(HEADER_LEN))
            for group in groups:
                try:
                    ids, records = _records(group, counts, meta["vocab_size"])
                except ShardError as e:
                    fail(f"group {counts[1]} cannot be stored: {e}")
                raw = np.asarray(ids, dtype).tobytes()
                f.write(raw)
                sha.update(raw)
                token_crc = zlib.crc32(raw, token_crc)
                for table, rows in zip(tables, records):
                    table.extend(rows)
                counts = [counts[0] + len(ids)] + [n + len(rows) for n, rows in zip(counts[1:], records)]
            sections = layout(token_width(meta["vocab_size"]), counts)
            f.write(bytes(sections[1][0] - sections[0][0] - sections[0][1]))
            crcs = [token_crc]
            for table, dtype in zip(tables, (GROUP, RESPONSE, PAIR)):
                raw = np.array(table, dtype).tobytes()
                f.write(raw)
                sha.update(raw)
                crcs.append(zlib.crc32(raw))
            head = _header(meta, counts, [(at, n, crc, 0) for (at, n), crc in zip(sections, crcs)], sha)
            f.seek(0)
            f.write(head)
            f.flush()
            os.fsync(f.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temp, 0o666 & ~umask)
        os.replace(temp, path)
    except BaseException:
        os.unlink(temp)
        raise
    return head[IDENTITY_LEN : IDENTITY_LEN + 32].hex()


def _records(group, counts, vocab_size):
    """Token ids of a group, and its (group, response, pair) records."""
    prompt, responses, pairs = group["prompt"], group["responses"], group["pairs"]
    ids, rows = list(prompt), []
    if not responses:
        raise ShardError("it has no response")
    for i, r in enumerate(responses):
        score, label = r.get("score"), r.get("label")
        if not r["tokens"]:
            raise ShardError(f"response {i} is empty")
        if score is not None and not np.isfinite(np.float32(score)):
            raise ShardError(f"response {i} has score {score}")
        flags = (HAS_SCORE if score is not None else 0) | (0 if label is None else HAS_LABEL | (DESIRABLE if label else 0))
        rows.append((counts[0] + len(ids), r["row"], len(r["tokens"]), r["index"], 0.0 if score is None else score, flags))
        ids.extend(r["tokens"])
    if not all(0 <= t < vocab_size for t in ids):
        raise ShardError(f"a token id is not below vocab_size {vocab_size}")
    for c, r, w in pairs:
        weight = np.float32(w)
        if not (0 <= c < len(rows) and 0 <= r < len(rows) and c != r and np.isfinite(weight) and weight > 0):
            raise ShardError(f"pair {[c, r, w]} is impossible")
    record = (counts[0], counts[2], counts[3], len(ids), len(prompt), len(rows), len(pairs))
    return ids, ([record], rows, [tuple(p) for p in pairs])


def _header(meta, counts, sections, sha):
    eos = NO_EOS if meta["eos_id"] is None else meta["eos_id"]
    if meta["vocab_size"] < 1 or (eos != NO_EOS and eos >= meta["vocab_size"]):
        raise ShardError(f"vocab_size {meta['vocab_size']} and eos_id {eos} do not agree")
    tokens, groups, responses, pairs = counts
    hashes = [bytes.fromhex(meta[name]) for name in ("tokenizer_sha256", "template_sha256")]
    pack = lambda content, crc: HEADER.pack(
        MAGIC, VERSION, HEADER_LEN, token_width(meta["vocab_size"]), meta["vocab_size"], eos, meta["bos_rule"],
        meta["max_length"], meta["truncation"], meta["boundary"], 4, groups, responses, pairs, tokens, *hashes,
        content, *(field for section in sections for field in section), bytes(108), crc,
    )
    sha.update(pack(bytes(32), 0)[:IDENTITY_LEN])
    head = pack(sha.digest(), 0)
    return pack(sha.digest(), zlib.crc32(head[:-4]))


def main(argv=None):
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["show", "verify", "write"])
    parser.add_argument("file")
    parser.add_argument("--groups", type=int, help="show only the first N groups")
    args = parser.parse_args(argv)
    try:
        if args.command == "write":
            meta = json.loads(sys.stdin.readline())
            print(write(args.file, meta, map(json.loads, sys.stdin)))
            return 0
        shard = Shard(args.file)
        if args.command == "verify":
            shard.verify()
            print(f"{args.file}: {len(shard.groups)} groups, {len(shard.pairs)} pairs, {len(shard.tokens)} tokens: sound")
            return 0
        print(json.dumps(shard.meta))
        for group in islice(shard, args.groups):
            print(json.dumps(group))
        return 0
    except (ShardError, OSError) as e:
        print(e, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
