#!/usr/bin/env python3
"""Convert PandaLM's human-labelled test set into preference rows for `fusedpo pack`.

Usage:   python scripts/convert_pandalm.py INPUT... --out FILE [--messages]
Input:   rows with instruction, input, response1, response2 and annotator1..3 (0 tie, 1 or 2 the better response).
Output:  {"prompt", "chosen", "rejected"} by majority; ties and rows without a majority are dropped and counted.
         Empty and non-string responses pass through: `fusedpo pack` reports them and applies its policy.
Needs:   Python alone.
"""

import collections

from convert_alpaca import prompt_of
from rows import InputError, assistant, field, run


def majority(labels):
    """The label that at least two of three annotators gave, or None."""
    label, votes = collections.Counter(labels).most_common(1)[0]
    return label if votes >= 2 else None


def convert(row, where, args, drop):
    labels = [field(row, f"annotator{i}", int, where) for i in (1, 2, 3)]
    if not set(labels) <= {0, 1, 2}:
        raise InputError(f"{where}: annotators gave {labels}; expected 0 (tie), 1 or 2")
    for name in ("response1", "response2"):
        if name not in row:
            raise InputError(f"{where}: no field '{name}'")
    better = majority(labels)
    if not better:
        drop("tie" if better == 0 else "no majority")
        return
    chosen, rejected = row[f"response{better}"], row[f"response{3 - better}"]
    if args.messages:
        chosen, rejected = assistant(chosen), assistant(rejected)
    yield {"prompt": prompt_of(row, where, args.messages), "chosen": chosen, "rejected": rejected}


def options(parser):
    parser.add_argument("--messages", action="store_true", help="chat messages instead of the Alpaca template")


if __name__ == "__main__":
    run(__doc__, convert, options)
