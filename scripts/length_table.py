"""Writes the tables in src/data/lengths: lengths of pairs in tokens, for plans without data.

Usage:   python scripts/length_table.py --shards FOLDER --source TEXT > src/data/lengths/NAME.csv
         python scripts/length_table.py --log-normal PROMPT,RESPONSE,DEVIATION,MOST --source TEXT > src/data/lengths/NAME.csv
Input:   a folder of shards that `fusedpo pack --max-length 0 --chat-template none` wrote; or medians in tokens, the
         deviation of the logarithm, and the longest prompt.
Output:  `prompt,chosen,rejected` of --rows pairs: those at even places among all, ordered by their sum, the largest too.
Needs:   numpy.
"""

import argparse
import glob
import os
import sys
from statistics import NormalDist

import numpy as np

from shards import Shard, ShardError


def of_shards(folder):
    """Lengths of every pair, `[pairs, 3]`."""
    paths = sorted(glob.glob(os.path.join(folder, "*.pref")))
    if not paths:
        raise ShardError(f"{folder}: no shards here")
    rows = []
    for shard in map(Shard, paths):
        for group in shard.groups:
            responses = shard.responses[group["first_response"] :]
            for pair in shard.pairs[group["first_pair"] :][: group["num_pairs"]]:
                ends = (responses[pair[end]]["num_tokens"] for end in ("chosen", "rejected"))
                rows.append((group["prompt_len"], *ends))
    return np.array(rows, dtype=int)


def log_normal(prompt, response, deviation, most, rows=4096):
    """As many triples as `rows`, each length at even quantiles of its own, in three orders that have nothing in common."""
    quantile = NormalDist().inv_cdf
    places = [(i + 0.5) / rows for i in range(rows)]
    orders = [range(rows), *([(i * step) % rows for i in range(rows)] for step in (1597, 2531))]
    lengths = [[median * np.exp(deviation * quantile(places[i])) for i in order]
               for median, order in zip((prompt, response, response), orders)]
    table = np.maximum(np.rint(np.array(lengths).T), 1).astype(int)
    table[:, 0] = np.minimum(table[:, 0], int(most))
    return table


def even(table, rows):
    """`rows` of them at even places in the order of their sums; the last is the largest."""
    ordered = table[np.lexsort((*table.T, table.sum(1)))]
    if len(ordered) <= rows:
        return ordered
    places = ((np.arange(rows) + 0.5) * len(ordered) / rows).astype(int)
    places[-1] = len(ordered) - 1
    return ordered[places]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    of = parser.add_mutually_exclusive_group(required=True)
    of.add_argument("--shards", metavar="FOLDER")
    of.add_argument("--log-normal", metavar="PROMPT,RESPONSE,DEVIATION,MOST")
    parser.add_argument("--source", required=True)
    parser.add_argument("--rows", type=int, default=256)
    args = parser.parse_args(argv)
    try:
        table = of_shards(args.shards) if args.shards else log_normal(*map(float, args.log_normal.split(",")))
    except (ShardError, OSError) as e:
        sys.exit(f"length_table.py: {e}")
    print(f"# {args.source}")
    print("prompt,chosen,rejected")
    for row in even(table, args.rows):
        print(*row, sep=",")


if __name__ == "__main__":
    main()
