#!/usr/bin/env python3
"""Convert the Stanford Human Preferences data set (stanfordnlp/SHP) into preference rows for `fusedpo pack`.

Usage:   python scripts/convert_shp.py INPUT... --out FILE [--min-score-ratio 2] [--messages]
Input:   rows with history, human_ref_A, human_ref_B, labels (1: A preferred, 0: B) and score_ratio.
Output:  {"prompt", "chosen", "rejected"}; pairs whose score ratio is below the minimum are dropped and counted (a small
         ratio is mostly noise; 2 is what the data set's authors and the DPO paper's code use).
Needs:   Python alone.
"""

from rows import InputError, assistant, field, run, user


def convert(row, where, args, drop):
    history = field(row, "history", str, where)
    answers = {1: field(row, "human_ref_A", str, where), 0: field(row, "human_ref_B", str, where)}
    label = field(row, "labels", int, where)
    if label not in answers:
        raise InputError(f"{where}: labels is {label}; expected 1 (A preferred) or 0 (B preferred)")
    if field(row, "score_ratio", (int, float), where) < args.min_score_ratio:
        drop(f"score ratio below {args.min_score_ratio:g}")
        return
    chosen, rejected = answers[label], answers[1 - label]
    if args.messages:
        yield {"prompt": [user(history)], "chosen": assistant(chosen), "rejected": assistant(rejected)}
    else:
        yield {"prompt": f"\n\nHuman: {history}\n\nAssistant:", "chosen": f" {chosen}", "rejected": f" {rejected}"}


def options(parser):
    parser.add_argument("--min-score-ratio", type=float, default=2.0)
    parser.add_argument("--messages", action="store_true", help="chat messages instead of Human/Assistant text")


if __name__ == "__main__":
    run(__doc__, convert, options)
