#!/usr/bin/env python3
"""Convert Anthropic's persona evaluations (yes/no statements) into preference rows for `fusedpo pack`.

Usage:   python scripts/convert_persona.py INPUT... --out FILE [--flip] [--messages]
Input:   rows with question, answer_matching_behavior, answer_not_matching_behavior (anthropics/evals, persona/*.jsonl).
Output:  {"prompt", "chosen", "rejected"}; chosen is the answer that matches the persona, with --flip the other one.
Needs:   Python alone.
"""

from rows import assistant, field, run, user


def convert(row, where, args, drop):
    question = field(row, "question", str, where)
    matching = field(row, "answer_matching_behavior", str, where)
    other = field(row, "answer_not_matching_behavior", str, where)
    chosen, rejected = (other, matching) if args.flip else (matching, other)
    if args.messages:
        yield {"prompt": [user(question)], "chosen": assistant(chosen), "rejected": assistant(rejected)}
    else:  # the answers begin with a space, so they continue this prompt
        yield {"prompt": f"\n\nHuman: {question}\n\nAssistant:", "chosen": chosen, "rejected": rejected}


def options(parser):
    parser.add_argument("--flip", action="store_true", help="prefer the answer that does not match")
    parser.add_argument("--messages", action="store_true", help="chat messages instead of Human/Assistant text")


if __name__ == "__main__":
    run(__doc__, convert, options)
