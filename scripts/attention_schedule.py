#!/usr/bin/env python3
"""Blocks, tail and predicted TFLOP/s of the attention kernels for any mix of lengths and GPU: a model, no measurement.

    scripts/attention_schedule.py [--gpu h100] [--mix uf] [--slots 16384] [--heads 14] [--kv-heads 2] [--head-dim 64]
    scripts/attention_schedule.py --lengths FILE     one group a line: prompt response response ...

The same tables as src/backend/gpu/schedule.rs are made (tests/golden/attention_tables.json holds both to it), each block is
given the work that its kernel's own rules leave it (tiles and slices that a warp skips), and the blocks run on the GPU's
multiprocessors in order, sharing each.

A unit of work (a tile of keys forward, a slice of keys or queries backward) takes a warp's share of an SM (a quarter)

    max(issue slots, HMMA x 5.57, LDSM x 16 + copies / 128 B, MUFU x 8) clocks / REACHED,

issue slots from docs/kernels.md, the rest from the tile's shape in the sources. One resident block alone takes ALONE times
that. Partial sums of dk/dv are written and read once at the memory's rate. Compared with 72302e9 by the same rules and constants."""

import argparse
import heapq
import json
import math
import random
import re
import sys
from pathlib import Path

import issue_slots

ROOT = Path(__file__).resolve().parent.parent
# Multiprocessors, clock under load (Hz), bytes a second that a stream reaches. NVIDIA's data sheets, memory at 90 %; the clock of
# an H100 under load as in FlashAttention-3 (arXiv 2407.08608), others their boost clock.
GPUS = {"h100": (132, 1.70e9, 3.0e12), "h200": (132, 1.70e9, 4.3e12), "a100": (108, 1.41e9, 1.8e12)}
# Clocks of an HMMA.16816 on one of the four tensor cores of an SM, by cuBLAS's 660 TFLOP/s of bf16 on an H100 SXM (mma.sync reaches
# about two thirds of the data sheet's 989): 4096 FLOP x 132 x 4 x 1.7e9 / 660e12.
HMMA = 5.57
# Share of that bound that a kernel of this structure reaches: FlashAttention-2 forward at head_dim 64 on an H100, 320 TFLOP/s
# (arXiv 2407.08608, figure 5) of the 590 that these rules give 72302e9's forward.
REACHED = 0.54
# A block alone on an SM: what others would hide.
ALONE = 1.25
# Start and end of a block, half of it hidden behind others; a launch.
BLOCK_SECONDS, LAUNCH_SECONDS = 2.0e-6, 2.5e-6
# Log-normal lengths (median of prompts and responses in tokens, sigma 0.7): HH, TL;DR, UltraFeedback.
MIXES = {"hh": (127, 59), "tldr": (382, 34), "uf": (121, 288)}
QUERY_ROWS, PART_QUERIES, PART_STEP = 128, 2048, 64
# What 72302e9 had where the sources of today have something else: rows of a key tile and blocks an SM at head_dim 64, whole tiles.
BASELINE = {"key_rows": 64, "blocks": 3, "values_kept": 4, "parts": False}


# ---- the wrapper's tables (src/backend/gpu/schedule.rs) -------------------------------------------------------------
def query_tiles(segments, group):
    """[start, first packed query, end, prefix start, prefix length, keys] a tile, most keys first."""
    made = []
    for start, length, prefix_start, prefix_len, _, dummy in segments:
        for first in range(0, length * group, QUERY_ROWS):
            end = min(length * group, first + QUERY_ROWS)
            made.append([start, first, end, prefix_start, prefix_len, 0 if dummy else prefix_len + (end - 1) // group + 1])
    return sorted(made, key=lambda t: (-t[5], t[0], t[1]))


def key_tiles(segments, group, rows, parts=None):
    """[first row, rows, first packed query, end, row of its partial sums, part, parts] a part of a tile, most queries first; `parts`:
    None for whole tiles, else (packed queries a part, rows of partial sums, entries) that there may be."""
    most = parts[0] if parts else 2**31
    while True:
        made, partial_rows = [], 0
        for start, length, _, _, readers_end, dummy in segments:
            for first in range(0, length, rows):
                row, count = start + first, min(rows, length - first)
                queries = 0 if dummy else (readers_end - row) * group
                even = -(-queries // -(-queries // most)) if queries else 0
                step = max(-(-even // PART_STEP) * PART_STEP, 1)
                ends = [min(queries, at + step) for at in range(0, queries, step)] or [0]
                for part, end in enumerate(ends):
                    made.append([row, count, part * step, end, partial_rows if len(ends) > 1 else 0, part, len(ends)])
                partial_rows += count * len(ends) if len(ends) > 1 else 0
        if not parts or (partial_rows <= parts[1] and len(made) <= parts[2]):
            return sorted(made, key=lambda t: (t[2] - t[3], t[0], t[2])), partial_rows
        most *= 2


def limits(slots, segments, rows):
    """What the wrapper has room for: rows of partial sums and entries of the key table."""
    return PART_QUERIES, 2 * slots, slots // rows + segments + 2 * slots // rows


def segments_of(groups, slots):
    """(start, length, prefix start, prefix length, end of its readers, dummy) of groups of a prompt's and its responses' lengths."""
    made, at = [], 0
    for prompt, responses in groups:
        end = at + prompt + sum(responses)
        if prompt:
            made.append((at, prompt, at, 0, end, False))
        for i, length in enumerate(responses):
            start = at + prompt + sum(responses[:i])
            made.append((start, length, at, prompt, start + length, False))
        at = end
    if at < slots:
        made.append((at, slots - at, at, 0, slots, True))
    return made


# ---- work of a block ----------------------------------------------------------------------------------------------
def shapes(head_dim):
    """Kernel -> the numbers of its last line in the sources."""
    return {op: issue_slots.tiles(ROOT / "kernels")[f"attention_{op}_hd{head_dim}_bf16"] for op in ("fwd", "bwd_dq", "bwd_dkv")}


def clocks(op, products, hd, mi, bn, pair_slots, kept):
    """Clocks of a unit: a tile of `bn` keys forward, a slice of 16 backward; and its FLOP."""
    unit = bn if op == "fwd" else 16
    pairs = 16 * mi * unit
    hmma = products * mi * (unit // 8) * (hd // 16)
    ldsm = products * (unit // 16) * (hd // 16)
    if op == "fwd":
        ldsm += 0 if hd == 64 else mi * (hd // 16)
    elif op == "bwd_dkv":
        ldsm += mi * (hd // 16 - kept)
    elif hd == 96:
        ldsm += 2 * mi * (hd // 16)
    copies = 2 * unit * hd * 2 / 128
    bound = max(pair_slots * pairs, hmma * HMMA, ldsm * 16 + copies, pairs / 32 * 8)
    return bound / REACHED, hmma * 4096


def forward_units(t, group, bn):
    return -(-t[5] // bn), sum(last // bn + 1 for last in warp_last_keys(t, group, 32))


def dq_units(t, group, rows):
    last = list(warp_last_keys(t, group, rows))
    return max((x // 16 + 1 for x in last), default=0), sum(x // 16 + 1 for x in last)


def warp_last_keys(t, group, rows):
    for first in range(t[1], t[2], rows):
        if t[5]:
            yield t[4] + (min(first + rows, t[2]) - 1) // group


def key_units(t, group, rows):
    """Slices of 16 packed queries: of the busiest warp, of all."""
    each = [max(0, -(-t[3] // 16) - max(t[2], first * group) // 16) for first in range(0, t[1], rows)]
    return max(each, default=0), sum(each)


def run(blocks, gpu, resident, unit):
    """Seconds until the last of `blocks` (units each, in order) is done, and if all multiprocessors worked to the end."""
    multiprocessors, hertz, _ = gpu
    start = BLOCK_SECONDS / 2 * hertz / (unit * resident)
    work = [b + start for b in reversed(blocks)]
    ideal = sum(work) * unit / multiprocessors
    sm = [[] for _ in range(multiprocessors)]
    for _ in range(resident):
        for blocks_here in sm:
            if work:
                blocks_here.append(work.pop())
    rate = lambda n: max(ALONE * unit, n * unit)
    events = [(min(b) * rate(len(b)), i) for i, b in enumerate(sm) if b]
    heapq.heapify(events)
    last, end = [0.0] * multiprocessors, 0.0
    while events:
        now, i = heapq.heappop(events)
        done = (now - last[i]) / rate(len(sm[i]))
        sm[i] = [left for b in sm[i] if (left := b - done) > 1e-6]
        while work and len(sm[i]) < resident:
            sm[i].append(work.pop())
        last[i], end = now, max(end, now)
        if sm[i]:
            heapq.heappush(events, (now + min(sm[i]) * rate(len(sm[i])), i))
    return end / hertz, ideal / hertz


# ---- a batch ------------------------------------------------------------------------------------------------------
def lengths(mix, slots, rng, longest=1024):
    """Groups of a prompt and two responses that fill the slots."""
    draw = lambda median: max(2, int(median * math.exp(rng.gauss(0, 0.7))))
    groups, at = [], 0
    while True:
        prompt = min(draw(MIXES[mix][0]), longest - 64)
        responses = [min(draw(MIXES[mix][1]), longest - prompt) for _ in range(2)]
        at += prompt + sum(responses)
        if at > slots:
            return groups
        groups.append((prompt, responses))


def predict(groups, slots, heads, kv_heads, hd, gpu, slots_of, baseline):
    """Kernel -> blocks, executed over useful FLOP, seconds, seconds without a tail, useful FLOP."""
    group, segments = heads // kv_heads, segments_of(groups, slots)
    live = [s for s in segments if not s[5]]
    pairs = heads * sum(n * (n + 1) // 2 + n * prefix for _, n, _, prefix, _, _ in live)
    shape, out = shapes(hd), {}
    resident = dict(zip(("fwd", "bwd_dq", "bwd_dkv"), blocks_an_sm(hd)))
    queries = query_tiles(segments, group)
    for op in ("fwd", "bwd_dq", "bwd_dkv"):
        products, _, mi, bn = shape[op]
        kept, rows, partial_rows = values_kept(hd), 16 * mi * issue_slots.WARPS, 0
        if op == "bwd_dkv" and baseline and hd == 64:
            mi, kept, rows, resident[op] = 1, BASELINE["values_kept"], BASELINE["key_rows"], BASELINE["blocks"]
        unit, flop = clocks(op, products, hd, mi, bn, slots_of[op], kept)
        if op == "fwd":
            work = [forward_units(t, group, bn) for t in queries]
        elif op == "bwd_dq":
            parts = [[*t[:1], m, min(t[2], m + rows), *t[3:]] for t in queries for m in range(t[1], t[2], rows)]
            work = [dq_units(t, group, 16 * mi) for t in parts]
        else:
            tiles, partial_rows = key_tiles(segments, group, rows, None if baseline else limits(slots, len(segments), rows))
            work = [key_units(t, group, 16 * mi) for t in tiles]
        blocks = [units for units, _ in work if units for _ in range(kv_heads)]
        seconds, ideal = run(blocks, gpu, resident[op], unit)
        if partial_rows:
            seconds += 2 * partial_rows * kv_heads * 2 * hd * 4 / gpu[2] + LAUNCH_SECONDS
        executed = sum(u for _, u in work) * kv_heads * flop
        out[op] = len(blocks), executed / (2 * products * hd * pairs), seconds, ideal, 2 * products * hd * pairs, partial_rows
    return out


def last_arguments(file, head_dim):
    text = (ROOT / "kernels" / file).read_text()
    found = re.search(rf"^ATTENTION_\w+\({head_dim}, (\d+), \d+, \d+, ?(.*)\)$", text, flags=re.M)
    return int(found.group(1)), found.group(2).split(", ")[-1]


def blocks_an_sm(head_dim):
    return [last_arguments(f, head_dim)[0] for f in ("attention.cu", "attention_bwd_dq.cu", "attention_bwd_dkv.cu")]


def values_kept(head_dim):
    kept = last_arguments("attention_bwd_dkv.cu", head_dim)[1]
    return int(kept) if kept.isdigit() else 2  # by architecture: Hopper's


def slots_of_page(head_dim, target, baseline):
    known = issue_slots.read((ROOT / "docs/kernels.md").read_text())
    column = f"{target} at {issue_slots.BASELINE}" if baseline else target
    return {op: known[f"attention_{op}_hd{head_dim}_bf16", column] for op in ("fwd", "bwd_dq", "bwd_dkv")}


def golden(path):
    """Random small batches with the tables of all, for the tests of both sides."""
    rng, cases = random.Random(15), []
    for _ in range(24):
        groups = [(rng.choice([0, 1, rng.randrange(2, 300)]), [rng.randrange(1, 200) for _ in range(rng.randrange(1, 5))]) for _ in range(rng.randrange(1, 5))]
        slots = sum(p + sum(r) for p, r in groups) + rng.choice([0, rng.randrange(1, 90)])
        group, rows, most = rng.randrange(1, 9), rng.choice([64, 128]), rng.choice([64, 192, 512, PART_QUERIES])
        segments = segments_of(groups, slots)
        room = most, *limits(slots, len(segments), rows)[1:]
        keys, partial_rows = key_tiles(segments, group, rows, room)
        cases.append({"groups": groups, "slots": slots, "group": group, "rows": rows, "room": room, "queries": query_tiles(segments, group), "keys": keys, "partial_rows": partial_rows})
    Path(path).write_text("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", choices=GPUS, default="h100")
    parser.add_argument("--mix", choices=MIXES, help="one of them (all)")
    parser.add_argument("--lengths", type=Path, help="groups to take instead, one a line: prompt response response ...")
    parser.add_argument("--slots", type=int, default=16384)
    parser.add_argument("--heads", type=int, default=14)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, choices=(32, 64, 96, 128), default=64)
    parser.add_argument("--batches", type=int, default=1, help="random batches of each mix to average over")
    parser.add_argument("--golden", type=Path, help="write the tables that the tests hold both sides to, and stop")
    args = parser.parse_args()
    if args.golden:
        return golden(args.golden)
    if args.heads % args.kv_heads:
        sys.exit(f"--heads {args.heads} is not a multiple of --kv-heads {args.kv_heads}")
    gpu, target = GPUS[args.gpu], "80" if args.gpu == "a100" else "90a"
    rng = random.Random(1)
    for mix in [args.mix] if args.mix else ["lengths"] if args.lengths else MIXES:
        if args.lengths:
            groups = [[int(x) for x in line.split()] for line in args.lengths.read_text().splitlines() if line.strip()]
            batches = [[(g[0], g[1:]) for g in groups]]
        else:
            batches = [lengths(mix, args.slots, rng) for _ in range(args.batches)]
        for baseline in (True, False):
            slots_of = slots_of_page(args.head_dim, target, baseline)
            all_of = [predict(b, args.slots, args.heads, args.kv_heads, args.head_dim, gpu, slots_of, baseline) for b in batches]
            total = lambda op, i: sum(p[op][i] for p in all_of)
            for op in ("fwd", "bwd_dq", "bwd_dkv"):
                n = len(all_of)
                print(f"{mix:5} {'72302e9' if baseline else 'now':8} {op:8} blocks {total(op, 0) / n:6.0f}  executed/useful {total(op, 1) / n:.2f}  {total(op, 2) / n * 1e6:5.0f} us"
                      f" (no tail {total(op, 3) / n * 1e6:4.0f})  {total(op, 4) / total(op, 2) / 1e12:4.0f} TFLOP/s  partial rows {total(op, 5) / n:.0f}")
            backward = sum(total(op, 2) for op in ("bwd_dq", "bwd_dkv"))
            print(f"{mix:5} {'72302e9' if baseline else 'now':8} backward {total('fwd', 4) * 2.5 / backward / 1e12:.0f} TFLOP/s")


if __name__ == "__main__":
    main()
