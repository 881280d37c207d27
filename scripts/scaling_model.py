#!/usr/bin/env python3
"""What several GPUs would make of a DPO step, by arithmetic: every number is a prediction, none was measured.

    scripts/scaling_model.py [--write]      the table; --write: into docs/scaling-model.md, in place of the one there

One GPU's step is that of docs/step-model.md ("pairs/s at most", UltraFeedback), of which REACHED is taken. To it comes what ranks
hand each other in ZeRO-1: gradients in single precision to who adds them up, weights in bf16 to all; a message of n bytes takes
alpha + n / beta. Three ways are told apart:

- host: buckets pass the hosts' memory on their way, and nothing is done meanwhile. What the program would do without NCCL.
- device: from GPU to GPU by NCCL, first within a machine, then between machines, where each GPU sends an eighth; nothing is
  done meanwhile.
- overlapped: as device, gradients beside the last micro-batch's backward pass, as the program does it, and weights beside the next
  step's first forward pass, where the program has them travel beside the update of those after them."""

import argparse
import math
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/scaling-model.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"

# Parameters, and the row of docs/step-model.md.
MODELS = {"1b (Llama-3.2-1B)": 1.24e9, "3b (Qwen2.5-3B)": 3.09e9, "7b (Qwen2.5-7B)": 7.62e9}
# Of the most that the model of a step allows: what published training keeps in the layers.
REACHED = 0.75
# Bytes a second and GPU each way, and seconds a message. NVLink of an H100 SXM (450 GB/s, of which NCCL reaches 80 %), one 400 Gb/s
# port a GPU (85 %), PCIe 5 x16 (about 55 of 64 GB/s).
NVLINK, NETWORK, PCIE = (0.80 * 450e9, 5e-6), (0.85 * 50e9, 15e-6), 55e9
# A host adds and copies for all of its GPUs at this rate: eight channels of DDR5 on two sockets, half of it.
HOST = 200e9
# Of device memory, and what the optimiser moves a weight (docs/step-model.md).
MEMORY, OPTIMISER = 3.0e12, 38
GPUS_A_MACHINE, PAIRS_A_MICRO_BATCH, PAIRS_OF_THE_PAGE = 8, 18, 64
# Elements of a block, and blocks of a bucket where ranks are no more (src/train/{places,shares}.rs).
BLOCK, BUCKET = 1 << 14, 256
# Mean over largest load of the ranks, at 8 pairs a rank: UltraFeedback's lengths, 0.993 by the plan's own lanes at 8 ranks; with more ranks
# the largest of more draws. At more pairs a rank the rest shrinks as their number.
UNEVEN = {1: 0.0, 8: 0.007, 64: 0.02, 1024: 0.04}


def seconds_a_pair(model):
    """One GPU's, from docs/step-model.md, without the optimiser, which its rates have once in 64 pairs."""
    text = (ROOT / "docs/step-model.md").read_text()
    row = re.search(rf"^\| {re.escape(model)} \| ultrafeedback \|.*\| (\d+) \|$", text, re.M)
    return (1 / int(row[1]) - OPTIMISER * MODELS[model] / MEMORY / PAIRS_OF_THE_PAGE) / REACHED


def split(ranks):
    """GPUs a machine, and machines."""
    inside = min(ranks, GPUS_A_MACHINE)
    return inside, ranks // inside


def buckets_of(elements, ranks):
    return math.ceil(elements / BLOCK / max(BUCKET, ranks))


def between_gpus(elements, width, ranks):
    """Seconds in which every rank hands each its part of all elements: within the machine, then an eighth of it between machines."""
    (inside, machines), buckets, size = split(ranks), buckets_of(elements, ranks), elements * width
    (nvlink, alpha), (network, far) = NVLINK, NETWORK
    # A quarter of the messages' latency is seen: several buckets are under way.
    seconds = size * (inside - 1) / inside / nvlink + buckets * (inside - 1) * alpha / 4
    return seconds + size / inside * (machines - 1) / machines / network + buckets * (machines - 1) * far / 4


def by_the_host(elements, width, ranks):
    """The same through the hosts' memory, all to all in one level: down, up to be sent, down again, added up, and up in the end."""
    if ranks == 1:
        return 0.0
    inside, size = split(ranks)[0], elements * width
    (nvlink, alpha), (network, far) = NVLINK, NETWORK
    outside = size * (ranks - inside) / ranks
    seconds = 3 * size / PCIE + size / ranks / PCIE + 3 * inside * size / HOST
    seconds += size * (inside - 1) / ranks / nvlink + outside / network
    return seconds + buckets_of(elements, ranks) * ((inside - 1) * alpha + (ranks - inside) * far)


def step(model, ranks, pairs, way):
    """Seconds of a step of `pairs` pairs a rank."""
    weights, computes = MODELS[model], pairs * seconds_a_pair(model)
    computes *= 1 + UNEVEN[ranks] * 8 / max(8, pairs)
    seconds = computes + OPTIMISER * weights / ranks / MEMORY
    if ranks == 1:
        return seconds
    if way == "host":
        return seconds + by_the_host(weights, 4, ranks) + by_the_host(weights, 2, ranks)
    gradients, handed = between_gpus(weights, 4, ranks), between_gpus(weights, 2, ranks)
    if way == "device":
        return seconds + gradients + handed
    # Forward a third, backward two thirds; the embedding's bucket is there last, and the first layers' weights are needed first.
    one = computes / max(1, math.ceil(pairs / PAIRS_A_MICRO_BATCH))
    hidden = lambda seconds, beside, late: max(late * seconds, seconds - 0.9 * beside)
    return seconds + hidden(gradients, one * 2 / 3, 0.03) + hidden(handed, one / 3, 0.05)


def efficiency(model, ranks, pairs, way):
    """A rank's rate over that of one GPU by itself."""
    return step(model, 1, pairs, way) / step(model, ranks, pairs, way)


def memory(weights, ranks):
    """GiB a GPU of what does not depend on the batch: bf16 weights, gradients, masters and moments in single precision."""
    return (2 + 4 + 12 / ranks) * weights / 2**30


def table():
    lines = ["| model | pairs a GPU | GPUs | GiB a GPU | host | device | overlapped |", "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for model, weights in MODELS.items():
        for pairs in (8, 32):
            for ranks in (8, 64, 1024):
                ways = [f"{efficiency(model, ranks, pairs, way):.2f}" for way in ("host", "device", "overlapped")]
                head = f"| {model} | {pairs} | {ranks:,} | {memory(weights, ranks):.1f}"
                lines.append(f"{head} | {' | '.join(ways)} |")
    return "\n".join(lines) + "\n"


def page():
    """The page with today's table."""
    before, rest = PAGE.read_text().split(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into docs/scaling-model.md")
    if parser.parse_args().write:
        PAGE.write_text(page())
    else:
        sys.stdout.write(table())


if __name__ == "__main__":
    main()
