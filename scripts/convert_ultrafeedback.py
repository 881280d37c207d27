#!/usr/bin/env python3
"""Convert UltraFeedback in its original shape (openbmb/UltraFeedback) into scored-response rows for `fusedpo pack`.

Usage:   python scripts/convert_ultrafeedback.py INPUT... --out FILE [--score fine-grained|overall] [--messages]
Input:   rows with instruction and completions: [{"response", "overall_score", "fine-grained_score", "annotations"}].
Output:  {"prompt", "responses", "scores"}. fine-grained (default) is the mean of GPT-4's four aspect ratings;
         overall is its single score, known to hold parsing errors (10 for 1). Completions without a score are left out;
         rows with fewer than two are dropped and counted.
Needs:   Python alone.
"""

import math

from rows import assistant, field, run, user

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")


def number(value):
    """A score that may be stored as text ('4', 'N/A'), or None; a bool is none, nor is 'nan', which JSON cannot hold."""
    try:
        score = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return score if score is not None and math.isfinite(score) else None


def aspect_mean(completion):
    """The mean of the aspect ratings that are numbers, or None."""
    annotations = completion.get("annotations")
    if not isinstance(annotations, dict):
        return None
    parts = [annotations.get(aspect) for aspect in ASPECTS]
    ratings = [number(part.get("Rating")) for part in parts if isinstance(part, dict)]
    ratings = [rating for rating in ratings if rating is not None]
    return sum(ratings) / len(ratings) if ratings else None


def score_of(completion, kind):
    if kind == "overall":
        return number(completion.get("overall_score"))
    stored = number(completion.get("fine-grained_score"))
    return aspect_mean(completion) if stored is None else stored


def convert(row, where, args, drop):
    instruction = field(row, "instruction", str, where)
    responses, scores = [], []
    for completion in field(row, "completions", list, where):
        response = field(completion, "response", str, where)
        score = score_of(completion, args.score)
        if score is None:
            drop("completions without a score")
            continue
        responses.append(assistant(response) if args.messages else response)
        scores.append(score)
    if len(responses) < 2:
        drop("rows with fewer than two scored completions")
        return
    yield {"prompt": [user(instruction)] if args.messages else instruction, "responses": responses, "scores": scores}


def options(parser):
    parser.add_argument("--score", choices=["fine-grained", "overall"], default="fine-grained")
    parser.add_argument("--messages", action="store_true", help="chat messages instead of plain text")


if __name__ == "__main__":
    run(__doc__, convert, options)
